"""Explanations as artefacts: verified, of the model that is there, replaced whole, nothing from elsewhere."""

from __future__ import annotations

import errno
import json
import os
import shutil

import numpy as np
import pytest

from deepSTRF import _files as files
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig, Run, run_experiment
from deepSTRF.report import explain_run, write_report
from deepSTRF.report.explanation import Explanation  # inner: tested by itself
from deepSTRF.report.gather import gather_parts  # inner: tested by itself

SMALL = {"n_neurons": 2, "n_clips": 5, "n_repeats": 3, "clip_seconds": 0.4}
CONFIG = ExperimentConfig(
    dataset_options=SMALL, split="3/1/1", epochs=1, model_options={"temporal_window_size": 4}
)
SECRET = b"RIFF of somebody else"


@pytest.fixture(scope="module")
def explained(tmp_path_factory) -> Run:
    run = run_experiment(CONFIG, tmp_path_factory.mktemp("runs") / "one", progress=False)
    explain_run(run, [0], progress=False)
    return run


@pytest.fixture
def run(explained, tmp_path) -> Run:
    return Run.load(shutil.copytree(explained.path, tmp_path / "run"))


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-9]),
    "empty": lambda path: path.write_bytes(b""),
    "flipped": flip,
    "dropped": lambda path: path.unlink(),
    "utf-16": lambda path: path.write_bytes(path.read_bytes().decode("latin-1").encode("utf-16")),
    "list": lambda path: path.write_text("[1, 2]"),
    "fifo": lambda path: (path.unlink(), os.mkfifo(path)),
    "endless": lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
    "folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_every_damaged_file_of_an_explanation_is_named(explained, tmp_path, kind):
    names = [path.name for path in (explained.path / "explain").iterdir()]
    assert len(names) > 5
    for name in names:
        folder = shutil.copytree(explained.path, tmp_path / "run")
        DAMAGE[kind](folder / "explain" / name)
        with pytest.raises((files.DamagedFileError, OSError), match=name.replace(".", r"\.")):
            Explanation.load(folder)
        parts = gather_parts(Run.load(folder))  # the report says so, and shows the rest
        assert parts.explanation is None
        assert any("The explanation is not shown" in text and name in text for _, text in parts.notes)
        shutil.rmtree(folder)


def edited(run: Run, **changes) -> None:
    """Change the facts of an explanation of an earlier version, which has no checksums."""
    folder = run.path / "explain"
    (folder / "manifest.json").unlink(missing_ok=True)
    facts = json.loads((folder / "explain.json").read_text())
    (folder / "explain.json").write_text(json.dumps({**facts, "format": 1, **changes}))


@pytest.mark.filterwarnings("ignore:.*holds no checksums")
@pytest.mark.parametrize(
    "name", ["../../secret.wav", "{folder}/secret.wav", "strf-7.wav", "..", "", "strf-0.wav/../../x", "a.csv"]
)
def test_no_sound_from_elsewhere_enters_the_report(run, tmp_path, name):
    (tmp_path / "secret.wav").write_bytes(SECRET)
    (run.path / "explain" / "strf-7.wav").symlink_to(tmp_path / "secret.wav")
    edited(run, sounds=[[name.format(folder=tmp_path), "a sound"]])
    with pytest.raises(files.DamagedFileError, match="is no file of it"):
        Explanation.load(run.path)
    page = write_report(run).read_text(encoding="utf-8")
    assert "data:audio/wav" not in page


@pytest.mark.filterwarnings("ignore:.*holds no checksums")
@pytest.mark.parametrize(
    "changes",
    [
        {"sounds": [["strf-0.wav"]]}, {"sounds": 3}, {"skipped": [[1, 2]]}, {"neurons": ["a"]},
        {"neurons": [0, 1]}, {"names": None}, {"format": 9}, {"format": "1"},
    ],
)  # fmt: skip
def test_facts_of_another_shape_are_named(run, changes):
    edited(run, **changes)
    with pytest.raises(files.DamagedFileError, match=r"explain\.json"):
        Explanation.load(run.path)


@pytest.mark.filterwarnings("ignore:.*holds no checksums")
def test_a_lost_array_of_an_earlier_explanation_is_said(run):
    edited(run)
    path = run.path / "explain" / "probes.npz"
    with np.load(path) as stored:
        kept = {name: stored[name] for name in stored.files[:1]}
    path.write_bytes(files.npz_bytes(kept))
    page = write_report(run).read_text(encoding="utf-8")
    assert "The explanation is not shown" in page
    assert "KeyError" in page


def test_an_explanation_of_an_earlier_version_loads_with_a_warning(run):
    edited(run)
    with pytest.warns(UserWarning, match="holds no checksums") as caught:
        assert Explanation.load(run.path).names == ["sim000"]
    assert len(caught) == 1
    explain_run(run, [1], overwrite=True, progress=False)
    assert Explanation.load(run.path).names == ["sim001"]


def test_an_explanation_of_another_model_is_said_and_not_shown(run, tmp_path):
    kept = shutil.copytree(run.path / "explain", tmp_path / "kept")
    other = run_experiment(CONFIG.with_changes(seeds=(3,)), run.path, overwrite=True, progress=False)
    assert Explanation.load(run.path) is None  # it went with its model
    shutil.copytree(kept, run.path / "explain")
    for seed in (0, 3):  # also when it claims to be of this seed
        parts = gather_parts(other)
        assert parts.explanation is None
        assert any("is not shown: it is of another model" in text for _, text in parts.notes), seed
        (run.path / "explain" / "manifest.json").unlink()
        facts = json.loads((run.path / "explain" / "explain.json").read_text())
        content = json.dumps({**facts, "seed": 3, "best_seed": 3}).encode()
        held = {p.name: p.read_bytes() for p in (run.path / "explain").iterdir()} | {"explain.json": content}
        files.replace_folder(run.path / "explain", held.items(), "explanation")
    with pytest.raises(FileExistsError, match=r"of the model that was here before.*--overwrite"):
        explain_run(other, [0], progress=False)
    assert explain_run(other, [0], overwrite=True, progress=False).explains(other)


@pytest.mark.parametrize("what", ["kill", "full disk"])
def test_the_earlier_explanation_stays_until_the_new_one_is_whole(run, monkeypatch, what):
    before = {p.name: p.read_bytes() for p in (run.path / "explain").iterdir()}
    real = files._write_durably

    def failing(path, data):
        if str(path).endswith("tuning.csv") and ".deepSTRF" in str(path):
            raise KeyboardInterrupt if what == "kill" else OSError(errno.ENOSPC, "No space left on device")
        real(path, data)

    monkeypatch.setattr(files, "_write_durably", failing)
    with pytest.raises((KeyboardInterrupt, OSError)) as caught:
        explain_run(run, [1], overwrite=True, progress=False)
    if what != "kill":
        assert caught.value.filename == str(run.path / "explain" / "tuning.csv")
    assert {p.name: p.read_bytes() for p in (run.path / "explain").iterdir()} == before
    monkeypatch.setattr(files, "_write_durably", real)
    assert explain_run(run, [1], overwrite=True, progress=False).names == ["sim001"]
    assert not (run.path / "explain" / "strf-0.wav").exists()


def test_files_and_links_that_are_not_ours_are_refused(run, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "tuning.csv").write_text("mine")
    shutil.rmtree(run.path / "explain")
    (run.path / "explain").symlink_to(mine, target_is_directory=True)
    with pytest.raises(FileExistsError, match="explain is a link"):
        explain_run(run, [0], overwrite=True, progress=False)
    (run.path / "explain").unlink()
    shutil.copytree(mine, run.path / "explain")
    with pytest.raises(FileExistsError, match="files that are no explanation"):
        explain_run(run, [0], overwrite=True, progress=False)
    assert (run.path / "explain" / "tuning.csv").read_text() == "mine" == (mine / "tuning.csv").read_text()


def test_an_explanation_with_another_recording_says_so(tmp_path):
    rng = np.random.default_rng(0)
    for count in range(2):
        stims = [rng.normal(size=(5, 80)) for _ in range(5)]
        responses = [rng.poisson(1.0, size=(2, 3, 80)) for _ in stims]
        ds = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0, check_alignment=False)
        ds.save(tmp_path / "mine.npz")
        if count == 0:
            config = ExperimentConfig(dataset=str(tmp_path / "mine.npz"), split="3/1/1", epochs=1)
            run = run_experiment(config, tmp_path / "run", progress=False)
    log: list[str] = []
    explain_run(run, [0], progress=False, log=log.append)
    assert log[0] == "The recording is another one than that of the fit"
    assert any("The recording is another one" in text for _, text in gather_parts(run).notes)
