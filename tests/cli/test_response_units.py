"""Runs of responses in any unit: labels, normalisation, and notes on the scale of predictions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from deepSTRF.cli import main
from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig, Run, evaluate_run, run_experiment

# inner: the label of response axes, the note on scores
from deepSTRF.experiments.run import response_label
from deepSTRF.report import explain_run, write_report
from deepSTRF.report.explanation import Explanation
from deepSTRF.report.sections.dynamics import _curves
from deepSTRF.training import score_model
from deepSTRF.training.evaluation import scale_note

SPLIT = {"split": "4/1/1", "epochs": 2}


def made(unit_scale=1.0, offset=0.0, seed=0, **options):
    """Six clips, three neurons, responses that follow one band, in any unit."""
    rng = np.random.default_rng(seed)
    stims = [rng.normal(size=(8, 120)) for _ in range(6)]
    size = np.array([1.0, 2.0, 5.0])[:, None, None]
    responses = [
        offset + unit_scale * size * (stim[3] + 0.3 * rng.normal(size=(3, 4, 120))) for stim in stims
    ]
    return AudioNeuralDataset.from_arrays(
        stims, responses, 10.0, check_alignment=False, frequencies_hz=np.geomspace(500, 8000, 8), **options
    )


@pytest.mark.parametrize(
    ("kind", "unit", "label"),
    [
        ("counts", None, "spikes per bin"),
        ("rate", None, "response (arbitrary units)"),
        ("rate", "spikes/s", "spikes/s"),
        ("rate", "dF/F", "dF/F"),
        ("trace", "uV", "response (uV)"),
        ("trace", "dB per octave", "response (dB per octave)"),
    ],
)
def test_the_label_of_response_axes(kind, unit, label):
    ds = AudioNeuralDataset.from_arrays(
        [np.ones((2, 9))], [np.ones((1, 2, 9))], 5.0, response_kind=kind, response_unit=unit
    )
    assert response_label(ds) == label
    assert response_label(ds.normalized("max")) == "response (fraction of maximum)"
    assert response_label(ds.normalized("zscore")) == "response (z-score)"


@pytest.mark.parametrize("model", ["linear", "statenet", "ridge"])
@pytest.mark.parametrize(
    ("scale", "offset", "unit"), [(1e-6, 0.0, "V"), (3.0, -65.0, "mV"), (12.0, 1000.0, "BOLD signal")]
)
def test_traces_go_through_runs_and_reports_under_their_unit(tmp_path, model, scale, offset, unit):
    made(scale, offset, response_kind="trace", response_unit=unit).save(tmp_path / "trace.npz")
    config = ExperimentConfig(dataset=str(tmp_path / "trace.npz"), model=model, **SPLIT)
    run = run_experiment(config, tmp_path / "run", progress=False)
    assert run.facts["response_unit"] == f"response ({unit})"
    assert dict(run.protocol)["Unit of responses"] == unit
    assert dict(run.protocol)["Kind of responses"] == "trace"
    if model == "linear":
        explain_run(run)
        page = write_report(Run.load(run.path)).read_text()
        assert "spikes per bin" not in page
        with pytest.raises(ValueError, match="unit='hz'"):
            run.load_model().predict(made(scale, offset, response_unit=unit), unit="hz")


@pytest.mark.parametrize("method", ["max", "zscore"])
def test_responses_are_normalised_by_the_training_clips(tmp_path, method):
    recording = made(1e-6, 2e-6)
    recording.save(tmp_path / "lfp.npz")
    words = [
        "fit", "-d", str(tmp_path / "lfp.npz"), "--split", "4/1/1", "--epochs", "2", "-q",
        "--normalize-responses", method, "--out", str(tmp_path / "run"),
    ]  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert not stop.value.code
    run = Run.load(tmp_path / "run")
    assert run.config.normalize_responses == method
    train = np.concatenate([recording.response_block(clip).numpy() for clip in range(4)], axis=2).astype(
        float
    )
    spread = (
        train.reshape(3, -1).std(axis=1, ddof=1) if method == "zscore" else np.abs(train).max(axis=(1, 2))
    )
    middle = train.mean(axis=(1, 2)) if method == "zscore" else np.zeros(3)
    fitted = run.facts["response_normalization"]
    assert np.allclose(fitted["scale"], spread, rtol=1e-5)
    assert np.allclose(fitted["offset"], middle, rtol=1e-4, atol=1e-12)
    again = evaluate_run(run)
    for name, column in run.scores.per_neuron("test").items():
        assert np.allclose(again.per_neuron("test")[name], column, equal_nan=True), name
    # another recording is read in the unit of the fit, in any order of its neurons
    other = made(1e-6, 2e-6, seed=5).select(neurons=[2, 0, 1])
    scores = evaluate_run(run, other).per_neuron("all")
    raw = other.select(neurons=[1, 2, 0])
    scaled = raw.normalized(statistics={"method": method, "scale": spread, "offset": middle})
    wanted = score_model(run.load_model(), scaled)
    assert np.allclose(scores["mse"], wanted["mse"][[2, 0, 1]], rtol=1e-3)


def test_normalised_responses_meet_the_rules_of_losses_and_explain(tmp_path):
    made(1e-6).save(tmp_path / "lfp.npz")
    config = ExperimentConfig(
        dataset=str(tmp_path / "lfp.npz"),
        normalize_responses="zscore",
        loss="poisson",
        model="statenet",
        **SPLIT,
    )
    with pytest.raises(ValueError, match="are 'trace' in 'z-score'"):
        run_experiment(config, tmp_path / "run", progress=False)
    run = run_experiment(
        ExperimentConfig(dataset=str(tmp_path / "lfp.npz"), normalize_responses="zscore", **SPLIT),
        tmp_path / "run",
        progress=False,
    )
    explain_run(run)
    facts = json.loads((run.path / "explain" / "explain.json").read_text())
    assert not any("recording" in part for part, _ in facts["skipped"])
    arrays = np.load(run.path / "explain" / "dstrf.npz")
    assert float(np.nanstd(arrays["response"])) > 0.1, "z-scores, not volts"
    plain = ExperimentConfig()
    assert plain.differences(plain.with_changes(normalize_responses="max"))
    assert "normalize_responses" not in plain.identity()


def test_normalising_by_given_statistics_and_of_tiny_values():
    ds = made(1e-13)  # MEG in tesla
    for method in ("max", "zscore"):
        view = ds.normalized(method, stim_indices=[0, 1])
        assert 0.1 < float(view.response_block(0).abs().max()) < 20
        same = ds.select(clips=[3]).normalized(statistics=view.response_normalization)
        assert np.allclose(same.response_block(0), view.response_block(3), rtol=1e-6)
    with pytest.raises(ValueError, match="response_normalization of 2 neurons"):
        ds.select(neurons=[0, 1]).normalized(statistics=view.response_normalization)
    silent = NeuralDataset.from_arrays([np.ones((2, 9))], [np.zeros((1, 2, 9))], 5.0)
    constant = NeuralDataset.from_arrays([np.ones((2, 9))], [np.full((1, 2, 9), 0.1)], 5.0)
    for quiet in (silent, constant):
        assert quiet.normalized("zscore").response_normalization["scale"].tolist() == [1.0]


def test_a_wrong_scale_is_said_beside_a_good_correlation():
    columns = {"cc": np.array([0.9, 0.9, 0.1, np.nan]), "fve": np.array([-1e10, 0.8, -1e10, np.nan])}
    note = scale_note(columns, list("abcd"))
    assert note is not None
    assert note.startswith("1 of 4 neurons")
    assert "fve is -1e+10 while cc is 0.90 for a" in note
    assert scale_note({"cc": np.array([0.9]), "fve": np.array([-0.18])}, ["a"]) is None
    assert scale_note({"cc": np.array([0.9]), "fve": np.array([-0.2])}, ["a"]) is not None
    assert scale_note({"mse": np.array([1.0])}, ["a"]) is None


def test_standardising_does_not_depend_on_the_unit_of_the_stimuli():
    powers = np.random.default_rng(0).random((4, 50))
    powers[2] = 0.3  # a constant band is only centred
    standard = [
        AudioNeuralDataset.from_arrays([scale * powers], [np.ones((1, 2, 50))], 5.0).standardized().stims[0]
        for scale in (1.0, 1e-10, 1e10)
    ]
    wanted = (powers - powers.mean(1, keepdims=True)) / powers.std(1, ddof=1, keepdims=True).clip(1e-9)
    wanted[2] = 0
    for stim, scale in zip(standard, (1.0, 1e-10, 1e10), strict=True):
        found = stim.numpy()
        assert np.allclose(np.delete(found[0], 2, 0), np.delete(wanted, 2, 0), atol=1e-4)
        assert float(np.abs(found[0, 2]).max()) <= 1e-6 * scale


@pytest.mark.parametrize(
    ("unit", "label"),
    [("spikes per bin", "evoked rate (spikes per bin)"), ("response (uV)", "evoked response (uV)")],
)
def test_figures_of_probes_name_the_unit(unit, label):
    arrays = {"noise_levels_db": np.array([-40.0, -20.0]), "noise_rate_level": np.array([[0.0, 1.0]])}
    found = Explanation(Path(), {"names": ["a"], "neurons": [0]}, arrays={"probes": arrays})
    assert f"{label} over level" in _curves(found, unit)


def test_the_note_stands_in_the_table_the_run_and_the_report(tmp_path, capsys):
    ds = made(1e-3, 1.0)
    ds.save(tmp_path / "u.npz")
    config = ExperimentConfig(dataset=str(tmp_path / "u.npz"), model="ridge", **SPLIT)
    run = run_experiment(config, tmp_path / "run", progress=False)
    good = score_model(run.load_model(), ds)
    assert good.facts["notes"] == []
    assert good.facts["response_unit"] == "arbitrary units"
    assert not any("another scale" in text for _, text in run.facts["notes"])
    far = made(1e-3, 500.0)  # the same neurons, recorded with another offset
    table = score_model(run.load_model(), far)
    assert table.facts["notes"][0].startswith("3 of 3 neurons: the predictions have another scale or offset")
    notes: list[str] = []
    evaluate_run(run, made(1e-3, 500.0, seed=3), log=notes.append)
    assert any("another scale or offset" in note for note in notes)
