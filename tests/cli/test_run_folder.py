"""Run folders: complete or resumable, read back as written, never another run's."""

from __future__ import annotations

import csv
import errno
import json
import shutil

import numpy as np
import pytest
import torch

from deepSTRF import _files as files
from deepSTRF.experiments import ExperimentConfig, Run, evaluate_run, run_experiment
from deepSTRF.experiments.examples import receptive_fields  # inner: tested by itself
from deepSTRF.experiments.run_folder import RunScores, prepare_folder  # inner: tested by itself
from deepSTRF.models.wav2spec import WaveformFrontEnd
from deepSTRF.registry import MODULES, WAV2SPEC
from deepSTRF.report import write_report
from deepSTRF.report.gather import gather_parts  # inner: the parts are not part of the face
from deepSTRF.training import Callback, Fitter


def weights(run: Run, seed: int | None = None) -> dict[str, torch.Tensor]:
    return run.load_model(seed).state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def earlier(folder) -> None:
    """Make a run folder one of an earlier version, without a manifest."""
    (folder / "manifest.json").unlink()
    facts = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    (folder / "run.json").write_text(json.dumps({**facts, "format": 1}), encoding="utf-8")


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


def test_folder_holds_what_it_promises(finished):
    found = {path.name for path in finished.path.iterdir()}
    assert found == {
        "README.txt", "config.toml", "examples.npz", "history.csv", "history.json", "manifest.json", "model",
        "models", "protocol.json", "run.json", "scores.csv", "scores.json",
    }  # fmt: skip
    for name in ("history.json", "protocol.json", "run.json", "scores.json"):
        text = (finished.path / name).read_text(encoding="utf-8")
        json.loads(text, parse_constant=_refuse)


def test_scores_csv_has_one_line_per_seed_split_and_neuron(finished):
    with (finished.path / "scores.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 2 * 2 * 3
    assert {row["split"] for row in rows} == {"test", "validation"}
    assert {"seed", "split", "neuron", "cc", "cc_norm"} <= set(rows[0])


def test_history_csv_has_one_line_per_seed_and_epoch(finished):
    with (finished.path / "history.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert [(row["seed"], row["epoch"]) for row in rows] == [(s, e) for s in "01" for e in "012"]
    assert float(rows[0]["train_loss"]) > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "9/9/9"},
        {"model_options": {"norm": "foo"}},
        {"device": "gpu"},
        {"dataset_options": {"n_clips": -1}},
    ],
)
def test_a_wrong_choice_costs_no_earlier_run_and_claims_no_folder(finished, small_config, tmp_path, wrong):
    shutil.copytree(finished.path, tmp_path / "run")
    for folder in ("run", "new"):
        with pytest.raises(ValueError, match=r"gives roles|norm must|device must|n_clips must"):
            run_experiment(
                small_config.with_changes(**wrong), tmp_path / folder, overwrite=True, progress=False
            )
    assert Run.load(tmp_path / "run").histories == finished.histories
    assert not (tmp_path / "new").exists()


def test_reading_back_gives_the_same_run(finished):
    again = Run.load(finished.path)
    assert again.config == finished.config
    assert again.protocol == finished.protocol
    assert again.histories == finished.histories
    for split, columns in finished.scores.values.items():
        for name, column in columns.items():
            np.testing.assert_allclose(again.scores.values[split][name], column, rtol=1e-8)
    assert [example.neuron for example in again.examples] == [example.neuron for example in finished.examples]


def test_every_seed_has_its_model_and_the_best_one_is_model(finished):
    assert not same(weights(finished, 0), weights(finished, 1))
    assert same(weights(finished), weights(finished, finished.best_seed))
    with pytest.raises(ValueError, match="seed 7 was not fitted"):
        finished.load_model(7)


def test_best_seed_is_chosen_on_validation_not_on_test():
    values = {
        "test": {"cc_norm": np.array([[0.9], [0.1]])},
        "validation": {"cc_norm": np.array([[0.1], [0.9]])},
    }
    assert RunScores(["a"], [3, 4], values).best_seed() == 4
    silent = {"validation": {"cc_norm": np.full((2, 1), np.nan)}}
    assert RunScores(["a"], [3, 4], silent).best_seed() == 3


def test_scores_of_the_folder_are_those_of_the_saved_model(finished):
    for seed in finished.scores.seeds:
        again = evaluate_run(finished, seed=seed)
        row = finished.scores.seeds.index(seed)
        np.testing.assert_allclose(
            again.values["test"]["cc_norm"][0], finished.scores.values["test"]["cc_norm"][row], rtol=1e-6
        )
    assert list(evaluate_run(finished, clips="all").values) == ["all"]
    with pytest.raises(ValueError, match="clips must be one of train, validation, test, all"):
        evaluate_run(finished, clips="tests")


def test_protocol_card_says_what_a_comparison_needs(finished):
    card = dict(finished.protocol)
    text = " ".join(f"{label} {value}" for label, value in card.items())
    for needed in ("Neurons 3", "hash", "Bin 5", "Seeds 0, 1", "Noise ceiling", "Smoothing", "AdamW"):
        assert needed in text


def test_finished_run_is_read_not_fitted_again(finished, small_config, monkeypatch):
    monkeypatch.setattr(Fitter, "fit", lambda self: pytest.fail("fitted again"))
    said: list[str] = []
    run = run_experiment(small_config, finished.path, log=said.append)
    assert run.histories == finished.histories
    assert "complete" in said[0]


def test_another_run_in_the_folder_is_refused(finished, small_config):
    other = small_config.with_changes(learning_rate=0.1)
    with pytest.raises(FileExistsError, match=r"learning_rate: 0.001, not 0.1.*--overwrite"):
        run_experiment(other, finished.path)
    longer = small_config.with_changes(epochs=9)
    with pytest.raises(FileExistsError, match="epochs/patience: 3/3, not 9/3"):
        run_experiment(longer, finished.path)


def test_callbacks_of_the_user_see_each_seed(small_config, tmp_path):
    seen: list[tuple[int, int]] = []

    class Diary(Callback):
        def __init__(self, seed: int) -> None:
            self.seed = seed

        def on_epoch_end(self, fitter, epoch, record):
            seen.append((self.seed, epoch))

    run_experiment(
        small_config.with_changes(epochs=2),
        tmp_path / "run",
        progress=False,
        callbacks=lambda seed: [Diary(seed)],
    )
    assert seen == [(seed, epoch) for seed in small_config.seeds for epoch in range(2)]


def test_a_killed_fit_goes_on_and_ends_with_the_same_numbers(finished, small_config, tmp_path, monkeypatch):
    folder, finish = tmp_path / "killed", Fitter.on_epoch_end
    epochs = iter(range(10))

    def killed(self, epoch, record):
        finish(self, epoch, record)
        if next(epochs) == 4:  # in the second epoch of the second seed
            raise KeyboardInterrupt

    monkeypatch.setattr(Fitter, "on_epoch_end", killed)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(small_config, folder, progress=False)
    with pytest.raises(FileNotFoundError, match="not complete; go on with: deepstrf fit --config"):
        Run.load(folder)
    monkeypatch.setattr(Fitter, "on_epoch_end", finish)
    said: list[str] = []
    run = run_experiment(small_config, folder, progress=False, log=said.append)
    assert said[0].startswith("Going on with the unfinished run")
    assert same(weights(run, 0), weights(finished, 0))
    assert same(weights(run, 1), weights(finished, 1))
    assert run.histories == finished.histories
    assert not (folder / "state").exists()


def test_a_full_disk_at_the_end_loses_nothing(small_config, tmp_path, monkeypatch):
    config = small_config.with_changes(seeds=(0,), epochs=1)
    real = files._write_durably

    def full(path, data):
        if str(path).endswith("run.json"):
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        real(path, data)

    monkeypatch.setattr(files, "_write_durably", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/run/run\.json'"):
        run_experiment(config, tmp_path / "run", progress=False)
    monkeypatch.setattr(files, "_write_durably", real)
    assert {path.name for path in (tmp_path / "run" / "state").iterdir()} == {"recording.json", "seed0.pt"}
    run = run_experiment(config, tmp_path / "run", progress=False)
    assert len(run.histories[0]) == 1


def test_overwrite_replaces_the_run_and_keeps_files_of_the_users_own(finished, small_config, tmp_path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.path, folder)
    (folder / "my_notes.txt").write_text("mine", encoding="utf-8")
    config = small_config.with_changes(seeds=(5,), epochs=1)
    run = run_experiment(config, folder, overwrite=True, progress=False)
    assert run.scores.seeds == [5]
    assert (folder / "my_notes.txt").read_text(encoding="utf-8") == "mine"
    assert not (folder / "models").exists()


def test_foreign_folders_and_files_are_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("x", encoding="utf-8")
    for overwrite in (False, True):
        with pytest.raises(FileExistsError, match="holds no run of deepSTRF"):
            prepare_folder(tmp_path / "thesis", ExperimentConfig(), overwrite=overwrite)
    with pytest.raises(FileExistsError, match="is a file"):
        prepare_folder(tmp_path / "thesis" / "chapter.txt", ExperimentConfig())
    with pytest.raises(FileNotFoundError, match="is no run folder"):
        Run.load(tmp_path / "thesis")


def test_damaged_files_are_named(finished, tmp_path):
    for name in ("scores.csv", "history.json", "run.json"):
        folder = tmp_path / name
        shutil.copytree(finished.path, folder)
        (folder / name).write_text("{broken", encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            Run.load(folder)
    lines = (finished.path / "scores.csv").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "run.json").write_bytes((finished.path / "run.json").read_bytes())
    earlier(folder)  # without checksums the shape of the table is what shows damage
    for kept in (2, len(lines) - 1):  # each a table of its own, of other neurons
        (folder / "scores.csv").write_text("".join(lines[:kept]), encoding="utf-8")
        what = r"scores\.csv is damaged or not of deepSTRF \(.*(not the neurons|11 lines for 2 seeds)"
        with (
            pytest.warns(UserWarning, match="holds no checksums"),
            pytest.raises(ValueError, match=what),
        ):
            Run.load(folder)
    whole = (finished.path / "examples.npz").read_bytes()
    for size in (0, 300, len(whole) // 2):  # cut off by a copy that stopped
        folder = tmp_path / f"examples{size}"
        shutil.copytree(finished.path, folder)
        (folder / "examples.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"examples\.npz is damaged"):
            Run.load(folder)


def test_report_needs_no_recording(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "deepSTRF.datasets.audio.SyntheticDataset.__init__", lambda *a, **k: pytest.fail("loaded")
    )
    page = write_report(Run.load(finished.path), tmp_path / "r.html").read_text(encoding="utf-8")
    for anchor in ("scores", "protocol", "population", "neurons", "fields", "learning", "table", "reproduce"):
        assert f'<section id="{anchor}"' in page
    assert "deepstrf fit --dataset-option n_neurons=3" in page


def test_report_shows_fields_as_the_model_responds(finished):
    parts = gather_parts(finished)
    model = finished.load_model()
    np.testing.assert_allclose(parts.strfs, receptive_fields(model).maps)
    assert parts.strfs.shape == (3, model.F, model.T)
    assert len(parts.frequencies_hz) == model.F
    assert parts.examples[0].stim.shape[0] == model.F


def test_fit_from_the_waveform_ends_in_a_report(small_config, tmp_path):
    config = small_config.with_changes(wav2spec="mel", standardize=True, seeds=(0,), epochs=1)
    run = run_experiment(config, tmp_path / "mel", progress=False)
    parts = gather_parts(run)
    assert parts.title.startswith("CausalMelSpectrogram + Linear on")
    assert write_report(run).stat().st_size > 10_000


def test_neuron_without_signal_is_counted_and_named(small_config, tmp_path):
    from deepSTRF.datasets.audio import AudioNeuralDataset

    rng = np.random.default_rng(0)
    stims = [rng.normal(size=(5, 80)) for _ in range(6)]
    responses = [rng.poisson(np.exp(stim[:3]) * 0.2, size=(4, 3, 80)).transpose(1, 0, 2) for stim in stims]
    for response in responses:
        response[1] = 0  # a silent neuron
    ds = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0, check_alignment=False)
    ds.save(tmp_path / "mine.npz")
    config = ExperimentConfig(dataset=str(tmp_path / "mine.npz"), split="4/1/1", epochs=2)
    run = run_experiment(config, tmp_path / "run", progress=False)
    row = next(row for row in run.scores.summary() if (row.split, row.metric) == ("test", "cc_norm"))
    assert (row.n, row.n_nan) == (2, 1)
    parts = gather_parts(run)
    assert any("1 of 3 neurons has no cc_norm" in text and "neuron001" in text for _, text in parts.notes)
    write_report(run)


def test_an_uncorrected_score_is_not_passed_off_as_noise_corrected(small_config, tmp_path):
    from deepSTRF.datasets.audio import AudioNeuralDataset

    rng = np.random.default_rng(0)
    stims = [rng.normal(size=(5, 80)) for _ in range(6)]
    responses = [[rng.poisson(np.exp(stim[n]), size=(1 if n else 4, 80)) for n in range(3)] for stim in stims]
    for response in responses:
        response[2][:] = 0  # recorded once, and silent: that is why it has no score
    ds = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0, check_alignment=False)
    ds.save(tmp_path / "mine.npz")
    config = ExperimentConfig(dataset=str(tmp_path / "mine.npz"), split="4/1/1", epochs=2)
    run = run_experiment(config, tmp_path / "run", progress=False)
    notes = [text for level, text in run.facts["notes"] if level == "warning"]
    assert any("neuron002 (silent" in text for text in notes)
    assert any(
        text.startswith("1 of 3 neurons has no repeats to compare") and text.endswith("(neuron001).")
        for text in notes
    )
    assert np.isnan(run.scores.per_neuron()["snr"]).tolist() == [False, True, True]


def test_a_run_knows_the_callbacks_of_its_fit(small_config, tmp_path):
    class StopEarly(Callback):
        def on_epoch_end(self, fitter, epoch, record):
            fitter.should_stop = True

    run = run_experiment(small_config, tmp_path / "run", progress=False, callbacks=lambda seed: [StopEarly()])
    assert run.facts["callbacks"] == ["StopEarly"]
    assert "StopEarly may stop earlier" in dict(run.protocol)["Fit: stopped by"]
    with pytest.raises(FileExistsError, match=r"other callbacks \(StopEarly\)"):
        run_experiment(small_config, tmp_path / "run", progress=False)
    again = run_experiment(small_config, tmp_path / "run", callbacks=lambda seed: [StopEarly()])
    assert again.histories == run.histories


def test_a_front_end_with_bands_of_its_own_and_without_frequencies_is_fitted_and_reported(
    small_config, tmp_path
):
    @MODULES.register("TwoPowers")  # as a file of the package would: its checkpoint loads by name
    @WAV2SPEC.register("two-powers")
    class TwoPowers(WaveformFrontEnd):
        """Power of the sound and of its differences in each bin."""

        def __init__(self, audio_fs, hop_ms=5.0):
            super().__init__(audio_fs, 2, hop_ms)

        def transform(self, audio):
            bins = audio[:, 0].unflatten(-1, (-1, self.hop))
            powers = [bins.square().mean(-1), bins.diff(dim=-1).square().mean(-1)]
            return torch.stack(powers, 1).add(1e-6).log().unsqueeze(1)

    try:
        options = {**small_config.dataset_options, "return_waveform": True}
        config = small_config.with_changes(wav2spec="two-powers", dataset_options=options, epochs=2)
        run = run_experiment(config, tmp_path / "run", progress=False)
        assert run.facts["wav2spec"] == "TwoPowers"
        assert write_report(run).is_file()
    finally:
        del WAV2SPEC._entries["two-powers"], MODULES._entries["twopowers"]
