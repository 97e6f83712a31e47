"""Run folders as artefacts: nothing wrong is read, nothing destroyed, a run is replaced whole or not."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import warnings

import numpy as np
import pytest

from deepSTRF import _files as files
from deepSTRF.cli import main
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig, Run, evaluate_run, run_experiment
from deepSTRF.experiments.run_folder import NEXT, write_run  # inner: tested by itself
from deepSTRF.report import write_report
from deepSTRF.training import FitDivergedError, Fitter, score_model

SMALL = {"n_neurons": 2, "n_clips": 5, "n_repeats": 3, "clip_seconds": 0.4}
CONFIG = ExperimentConfig(dataset_options=SMALL, split="3/1/1", epochs=1, seeds=(0,))
OTHER = CONFIG.with_changes(seeds=(7, 8))


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    return run_experiment(CONFIG, tmp_path_factory.mktemp("runs") / "one", progress=False)


@pytest.fixture(scope="module")
def other(tmp_path_factory) -> Run:
    return run_experiment(OTHER, tmp_path_factory.mktemp("runs") / "two", progress=False)


@pytest.fixture
def folder(run, tmp_path):
    """A copy of the run that a test may break."""
    return shutil.copytree(run.path, tmp_path / "run")


@pytest.fixture(autouse=True)
def bounded():
    """A hang ends the test."""

    def stop(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def contents(folder) -> dict[str, str]:
    """SHA-256 of all files below a folder by name."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def read_all(folder):
    loaded = Run.load(folder)
    return loaded, [loaded.load_model(seed) for seed in loaded.scores.seeds], loaded.load_model()


def flip(path, _):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path, _: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path, _: path.write_bytes(b""),
    "flipped": flip,
    "swapped": lambda path, twin: path.write_bytes(twin.read_bytes()),
    "dropped": lambda path, _: path.unlink(),
    "utf-16": lambda path, _: path.write_bytes(path.read_bytes().decode("latin-1").encode("utf-16")),
    "list": lambda path, _: path.write_text("[1, 2]"),
    "null": lambda path, _: path.write_text("null"),
    "deep": lambda path, _: path.write_text("[" * 100_000),
    "fifo": lambda path, _: (path.unlink(), os.mkfifo(path)),
    "endless": lambda path, _: (path.unlink(), path.symlink_to("/dev/zero")),
    "folder": lambda path, _: (path.unlink(), path.mkdir()),
    "dangling": lambda path, _: (path.unlink(), path.symlink_to("nowhere")),
}
#: Not read, so only known to be there with their sizes; those of cards may be edited.
UNREAD, CARDS = ("README.txt", "history.csv", "README.md"), ("README.txt", "README.md")


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damaged_file_of_a_run_is_named(run, other, tmp_path, kind):
    for name in contents(run.path):
        folder = shutil.copytree(run.path, tmp_path / "run")
        twin = next((path for path in (other.path / name,) if path.is_file()), other.path / "run.json")
        DAMAGE[kind](folder / name, twin)
        edited = name.endswith(CARDS) and (folder / name).is_file() and kind != "endless"
        if edited:
            read_all(folder)
        elif not (kind in ("flipped", "swapped") and name.endswith(UNREAD)):
            with pytest.raises((ValueError, OSError, UserWarning)) as caught:  # metadata.json is optional
                read_all(folder)
            swapped = kind == "swapped" and name.endswith("manifest.json")  # then it is the others' fault
            assert swapped or os.path.basename(name) in str(caught.value), (name, str(caught.value))
            assert type(caught.value) is not TimeoutError
        shutil.rmtree(folder)


def test_a_changed_digit_and_an_empty_config_are_found(folder):
    text = (folder / "scores.csv").read_text()
    digit = next(i for i, c in enumerate(text) if i > text.index("\n") + 20 and c.isdigit())
    (folder / "scores.csv").write_text(text[:digit] + str((int(text[digit]) + 1) % 10) + text[digit + 1 :])
    with pytest.raises(files.DamagedFileError, match=r"scores\.csv.*fit again with --overwrite"):
        Run.load(folder)
    (folder / "scores.csv").write_text(text)
    (folder / "config.toml").write_text("")
    for call in (lambda: Run.load(folder), lambda: run_experiment(CONFIG, folder, progress=False)):
        with pytest.raises(files.DamagedFileError, match=r"config\.toml"):
            call()
    assert run_experiment(CONFIG, folder, overwrite=True, progress=False).scores.seeds == [0]


def test_the_model_of_another_run_is_not_the_one_of_this(folder, other):
    shutil.rmtree(folder / "model")
    shutil.copytree(other.path / "model", folder / "model")
    with pytest.raises(files.DamagedFileError, match="model"):
        read_all(folder)


def make_earlier(folder, **changes) -> None:
    """A run of an earlier version has no manifest."""
    (folder / "manifest.json").unlink()
    facts = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**facts, "format": 1, **changes}))


def test_a_run_of_an_earlier_version_loads_with_one_warning_and_is_never_removed(folder):
    make_earlier(folder)
    (folder / "model" / "manifest.json").unlink()
    model = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps({**model, "_format": 1}))
    with pytest.warns(UserWarning, match="holds no checksums") as caught:
        read_all(folder)
    assert len(caught) == 1
    before = contents(folder)
    with pytest.raises(FileExistsError, match=r"earlier version.*delete the folder"):
        run_experiment(OTHER, folder, overwrite=True, progress=False)
    assert contents(folder) == before


def test_a_lost_manifest_is_damage(folder):
    (folder / "manifest.json").unlink()
    before = contents(folder)
    for overwrite in (False, True):
        with pytest.raises(files.DamagedFileError, match=r"manifest\.json .*the file is missing"):
            run_experiment(CONFIG, folder, overwrite=overwrite, progress=False)
    assert contents(folder) == before


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run.json", {"notes": 3}),
        ("run.json", {"notes": [["warning"]]}),
        ("run.json", {"frequencies_hz": ["low"]}),
        ("run.json", {"dt_ms": "5"}),
        ("run.json", {"dt_ms": -1}),
        ("run.json", {"response_normalization": []}),
        ("run.json", {"response_normalization": {"method": "max", "scale": [1.0], "offset": []}}),
        ("run.json", {"response_normalization": {"scale": 3}}),
        ("history.json", {"seeds": [1]}),
        ("history.json", {"seeds": {"0": [{"train_loss": "low"}]}}),
        ("history.json", {"best_epochs": {"0": "first"}}),
        ("history.json", {"best_epochs": {}}),
        ("scores.json", {"rows": [1]}),
        ("scores.json", {"rows": []}),
        ("protocol.json", {"rows": [1]}),
        ("protocol.json", {"rows": {}}),
    ],
)
def test_json_of_another_shape_is_named(folder, name, change):
    make_earlier(folder)  # a checksum would find it before
    tree = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**tree, **change}))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(files.DamagedFileError, match=r"scores\.csv" if name == "scores.json" and not
                           change["rows"] else name.replace(".", r"\.")):  # fmt: skip
            Run.load(folder)


# ---- replacing a run


STEPS = {"os.replace": (os, "replace"), "os.rename": (os, "rename"), "write": (files, "_write_durably")}


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_any_step_leaves_the_old_run_or_the_new_one(run, other, tmp_path, monkeypatch, step):
    owner, name = STEPS[step]
    real = getattr(owner, name)
    models = {seed: other.load_model(seed) for seed in other.scores.seeds}
    seeds = set()
    for at in range(100):
        folder = shutil.copytree(run.path, tmp_path / "run")
        calls = iter(range(1000))

        def killed(*args, calls=calls, at=at):
            if next(calls) == at:
                raise KeyboardInterrupt
            return real(*args)

        monkeypatch.setattr(owner, name, killed)
        new = Run(**{**{k: v for k, v in vars(other).items() if k != "_files"}, "path": folder})
        finished = True
        try:
            write_run(new, models)
        except KeyboardInterrupt:
            finished = False
        monkeypatch.setattr(owner, name, real)
        found, _, _ = read_all(folder)
        assert found.scores.seeds in (run.scores.seeds, other.scores.seeds)
        wanted = run if found.scores.seeds == run.scores.seeds else other
        assert contents(folder).keys() == contents(wanted.path).keys()
        seeds.add(len(found.scores.seeds))
        write_run(new, models)  # and the same again ends as if nothing had happened
        assert contents(folder).keys() == contents(other.path).keys()
        assert read_all(folder)[0].histories == other.histories
        shutil.rmtree(folder)
        if finished:
            break
    assert finished
    assert 2 in seeds


@pytest.mark.parametrize(
    ("changes", "error", "text"),
    [
        ({"split": "5/0/0"}, ValueError, "leaves no clip"),
        ({"split": "4/1/0"}, ValueError, "leaves no clip"),
        ({"split": "9/9/9"}, ValueError, "gives roles"),
        ({"warmup_ms": 1000.0}, ValueError, "warmup_ms covers"),
        ({"model_options": {"norm": "foo"}}, ValueError, "norm must"),
        ({"device": "cuda:77"}, (ValueError, RuntimeError), "device|CUDA"),
        ({"learning_rate": 1e30, "epochs": 4}, FitDivergedError, "the loss became inf"),
    ],
)
def test_what_is_refused_or_fails_costs_nothing(folder, tmp_path, changes, error, text):
    before = contents(folder)
    config = CONFIG.with_changes(**changes)
    with pytest.raises(error, match=text):
        run_experiment(config, folder, overwrite=True, progress=False)
    assert contents(folder) == before
    with pytest.raises(error, match=text):
        run_experiment(config, tmp_path / "deep" / "new", progress=False)
    assert not (tmp_path / "deep").exists()


def test_a_full_disk_at_any_file_leaves_the_earlier_run(folder, other, monkeypatch):
    before, real = contents(folder), files._write_durably
    for name in contents(other.path):

        def full(path, data, name=name):
            if str(path).endswith(name):
                raise OSError(errno.ENOSPC, "No space left on device")
            real(path, data)

        monkeypatch.setattr(files, "_write_durably", full)
        new = Run(**{**{k: v for k, v in vars(other).items() if k != "_files"}, "path": folder})
        with pytest.raises(OSError, match=f"No space left on device: '.*{name}'"):
            write_run(new, {seed: other.load_model(seed) for seed in other.scores.seeds})
        assert contents(folder) == before


def test_a_killed_overwrite_keeps_the_earlier_run_and_goes_on(folder, other, run, monkeypatch):
    finish, config = Fitter.on_epoch_end, OTHER.with_changes(epochs=2)
    epochs = iter(range(10))

    def killed(self, epoch, record):
        finish(self, epoch, record)
        if next(epochs) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(Fitter, "on_epoch_end", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, folder, overwrite=True, progress=False)
    monkeypatch.setattr(Fitter, "on_epoch_end", finish)
    assert read_all(folder)[0].scores.seeds == run.scores.seeds
    assert sorted(p.name for p in (folder / NEXT / "state").iterdir()) == ["recording.json", "seed7.pt"]
    fitted: list[int] = []
    monkeypatch.setattr(Fitter, "on_epoch_end", lambda self, e, r: (fitted.append(e), finish(self, e, r))[1])
    again = run_experiment(config, folder, overwrite=True, progress=False)
    assert again.scores.seeds == [7, 8]
    assert len(fitted) < 4  # it went on
    assert not (folder / NEXT).exists()


def interrupted(monkeypatch, *arguments, **options):
    """A fit that Ctrl-C ends after its first epoch."""
    finish = Fitter.on_epoch_end

    def killed(self, epoch, record):
        finish(self, epoch, record)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Fitter, "on_epoch_end", killed)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(*arguments, **options)


def test_a_working_folder_of_other_choices_is_discarded(folder, monkeypatch):
    interrupted(monkeypatch, OTHER, folder, overwrite=True, progress=False)
    assert run_experiment(CONFIG, folder, overwrite=True, progress=False).scores.seeds == [0]
    assert not (folder / NEXT).exists()


# ---- what is not ours


def test_folders_of_the_users_own_are_never_touched(tmp_path):
    mine = tmp_path / "mine"
    for name in ("models", "model", "state", "explain"):
        (mine / name).mkdir(parents=True)
        (mine / name / "thesis.txt").write_text("years")
    for text in ("", "title = 'mine'", CONFIG.to_toml()):
        (mine / "config.toml").write_text(text)
        before = contents(mine)
        for overwrite in (False, True):
            with pytest.raises(FileExistsError, match="holds no run of deepSTRF"):
                run_experiment(CONFIG, mine, overwrite=overwrite, progress=False)
        assert contents(mine) == before


@pytest.mark.parametrize("name", ["models/seed7/config.json", "models/notes.txt", "state/mine.txt"])
def test_own_files_beside_a_run_stay(folder, name):
    (folder / name).parent.mkdir(parents=True)
    (folder / name).write_text("mine")
    if name.startswith("models/seed7"):
        with pytest.raises(FileExistsError, match="is not of the run in that folder"):
            run_experiment(OTHER, folder, overwrite=True, progress=False)
    else:
        run_experiment(OTHER, folder, overwrite=True, progress=False)
    assert (folder / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["model", "state", "models", NEXT])
def test_nothing_is_written_or_removed_through_links(folder, tmp_path, name):
    beside = tmp_path / "elsewhere"
    shutil.copytree(folder / "model", beside)
    before = contents(beside)
    if name == "model":
        shutil.rmtree(folder / "model")
    (folder / name).symlink_to(beside, target_is_directory=True)
    if name == "state":  # a fit that replaces a run does not work there
        run_experiment(OTHER, folder, overwrite=True, progress=False)
    else:
        with pytest.raises(FileExistsError, match=r"link|holds files that are not of a fit"):
            run_experiment(OTHER, folder, overwrite=True, progress=False)
    assert contents(beside) == before


def test_a_linked_report_is_replaced_and_its_target_stays(folder, tmp_path):
    (tmp_path / "page.html").write_text("mine")
    (folder / "report.html").symlink_to(tmp_path / "page.html")
    write_report(Run.load(folder))
    assert (tmp_path / "page.html").read_text() == "mine"
    assert not (folder / "report.html").is_symlink()


def test_a_linked_state_of_an_interrupted_fit_is_refused(tmp_path, monkeypatch):
    interrupted(monkeypatch, CONFIG, tmp_path / "run", progress=False)
    shutil.move(tmp_path / "run" / "state", tmp_path / "state")
    (tmp_path / "run" / "state").symlink_to(tmp_path / "state", target_is_directory=True)
    before = contents(tmp_path / "state")
    with pytest.raises(FileExistsError, match="state is a link"):
        run_experiment(CONFIG, tmp_path / "run", progress=False)
    assert contents(tmp_path / "state") == before


# ---- the recording behind a run


def recording(seed: int = 0) -> AudioNeuralDataset:
    rng = np.random.default_rng(seed)
    stims = [rng.normal(size=(5, 80)) for _ in range(5)]
    responses = [rng.poisson(1.0, size=(2, 3, 80)) for _ in stims]
    meta = [{"cell_id": name} for name in "ab"]
    return AudioNeuralDataset.from_arrays(
        stims, responses, dt_ms=5.0, nrn_meta=meta, check_alignment=False
    )  # fmt: skip


def changed(ds: AudioNeuralDataset, what: str) -> AudioNeuralDataset:
    stims, responses = [s.numpy() for s in ds.stims], [ds.response_block(c).numpy() for c in range(5)]
    names = "ab"
    if what == "stimulus":
        stims[4][0, 0, 0] += 1e-3
    elif what == "response":
        responses[0][0, 0, 0] += 1
    elif what == "repeats":
        responses[1] = responses[1][:, :2]
    else:
        names = "ba"
    meta = [{"cell_id": name} for name in names]
    return AudioNeuralDataset.from_arrays(
        [s[0] for s in stims], responses, dt_ms=5.0, nrn_meta=meta, check_alignment=False
    )  # fmt: skip


@pytest.mark.parametrize("what", ["stimulus", "response", "repeats", "names"])
def test_a_rerun_after_the_recording_changed_shows_no_old_scores(tmp_path, monkeypatch, what):
    path = tmp_path / "mine.npz"
    recording().save(path)
    config = ExperimentConfig(dataset=str(path), split="3/1/1", epochs=2)
    run = run_experiment(config, tmp_path / "run", progress=False)
    assert run.facts["recording"] == recording().content_fingerprint() == run.scores.recording
    assert json.loads((run.path / "scores.json").read_text())["recording"] == run.facts["recording"]
    assert run.facts["recording"][:12] in dict(run.protocol)["Content of the recording"]
    assert run.load_model().fitted_on.recording
    run_experiment(config, tmp_path / "run", progress=False)  # the same: read
    interrupted(monkeypatch, config, tmp_path / "cut", progress=False)
    changed(recording(), what).save(path)
    for folder in ("run", "cut"):
        with pytest.raises(FileExistsError, match=r"the recording has changed since.*--overwrite"):
            run_experiment(config, tmp_path / folder, progress=False)
    notes: list[str] = []
    evaluate_run(run, log=notes.append)
    assert notes[0] == "The recording is another one than that of the fit"
    with pytest.warns(UserWarning, match="has changed since the fit"):
        evaluate_run(run)
    for folder in ("run", "cut"):
        new = run_experiment(config, tmp_path / folder, overwrite=True, progress=False)
        assert new.facts["recording"] == changed(recording(), what).content_fingerprint()


def test_the_fingerprint_is_of_what_was_recorded(tmp_path):
    ds = recording()
    known = ds.content_fingerprint()
    ds.save(tmp_path / "a.npz")
    again = AudioNeuralDataset.load(tmp_path / "a.npz")
    for same in (ds.select(clips=[4, 0, 1, 2, 3]), ds.standardized(), ds.smoothed(), again):
        assert same.content_fingerprint() == known
    views = [ds.select(clips=[0]), ds.select(neurons=[0]), ds.select(neurons=[1, 0]), recording(1)]
    assert len({known, *(view.content_fingerprint() for view in views)}) == 5
    wide = AudioNeuralDataset.from_arrays(
        [s[0].numpy() for s in ds.stims],
        [ds.response_block(c).numpy() for c in range(5)],
        dt_ms=5.0,
        nrn_meta=ds.nrn_meta,
        check_alignment=False,
    )
    clip = wide.response_storage.clips[0]
    low = clip.data.astype(np.int16)
    assert type(clip)(low, clip.heard, clip.starts, clip.counts, False).digest == clip.digest


def test_scores_of_trained_sounds_need_the_word(tmp_path):
    recording().save(tmp_path / "mine.npz")
    config = ExperimentConfig(dataset=str(tmp_path / "mine.npz"), split="3/1/1", epochs=1)
    run = run_experiment(config, tmp_path / "run", progress=False)
    trained = [c for c in range(5) if recording().source_fingerprint(c) in run.load_model().fitted_on.sounds]
    seen = recording().select(clips=trained)
    with pytest.raises(ValueError, match=r"all 3 clips hold sounds that took part.*clips='all'"):
        evaluate_run(run, seen)
    notes: list[str] = []
    scores = evaluate_run(run, seen, clips="all", log=notes.append)
    assert any("3 of 3 clips hold sounds that took part in the fit" in note for note in notes)
    assert scores.recording == seen.content_fingerprint()
    table = score_model(run.load_model(), recording())
    assert table.facts["trained_on"] == 4  # with the validation clip
    assert table.facts["recording"] == recording().content_fingerprint()
    for clips in ("train", "validation", "tests"):
        with pytest.raises(ValueError, match="of another recording must be one of test, all"):
            evaluate_run(run, seen, clips=clips)
    assert list(evaluate_run(run).values) == ["test"]


# ---- targets of the command line


@pytest.mark.parametrize("command", ["evaluate --csv", "report --out"])
def test_unwritable_targets_are_refused_before_the_work(folder, tmp_path, capsys, command, monkeypatch):
    monkeypatch.setattr(Run, "load", lambda path: pytest.fail("work was done"))
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("mine")
    word, flag = command.split()
    for target in (tmp_path, tmp_path / "pipe", "/dev/full", tmp_path / "file" / "in.csv"):
        with pytest.raises(SystemExit) as ended:
            main([word, str(folder), flag, str(target)])
        assert ended.value.code == 2
        assert str(target) in " ".join(capsys.readouterr().err.split())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("command", [["report", "--out"], ["evaluate", "--csv"]])
def test_results_replace_earlier_ones_and_no_other_file(folder, tmp_path, capsys, command):
    (tmp_path / "recording.npz").write_bytes(b"PK months of work")
    inside = ("scores.csv", "config.toml", "manifest.json", "model/model.safetensors", "model/README.md")
    for name in ("../recording.npz", *inside):
        before = contents(tmp_path)
        with pytest.raises(SystemExit) as refused:
            main([command[0], str(folder), command[1], str(folder / name)])
        assert refused.value.code == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "something else, which would be lost" in error
        assert contents(tmp_path) == before
    (tmp_path / "made").touch()
    for _ in range(2):  # an empty file, and an earlier one
        with pytest.raises(SystemExit) as made:
            main([command[0], str(folder), command[1], str(tmp_path / "made")])
        assert made.value.code in (0, None)
