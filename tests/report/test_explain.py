"""Explanations: every model gets what applies to it, the rest is skipped by name, and the page shows it."""

from __future__ import annotations

import csv
import json
import re
import wave

import numpy as np
import pytest
import torch
from PIL import Image

from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.experiments import ExperimentConfig, Run, run_experiment
from deepSTRF.experiments.examples import GRADIENT, receptive_fields  # inner: tested by itself
from deepSTRF.interpret import dstrf, strf_tuning
from deepSTRF.interpret.filter_statistics import complexity
from deepSTRF.report import explain_run, write_report
from deepSTRF.report.explain.run import open_bars  # inner: what is tried here is not part of the face
from deepSTRF.report.explain.target import choose_excerpts, strongest_part
from deepSTRF.report.explanation import Explanation  # inner: tested by itself
from deepSTRF.report.gather import gather_parts  # inner: tested by itself
from deepSTRF.report.parts import shown_lags  # inner: tested by itself

SMALL = {"n_neurons": 3, "n_clips": 5, "n_repeats": 3, "clip_seconds": 0.6}


def fitted(folder, **choices) -> Run:
    config = ExperimentConfig(dataset_options=SMALL, split="3/1/1", epochs=1, **choices)
    return run_experiment(config, folder, progress=False)


@pytest.fixture(scope="module")
def nonlinear(tmp_path_factory) -> Run:
    folder = tmp_path_factory.mktemp("runs") / "nrf"
    run = fitted(folder, model="nrf", model_options={"n_hidden": 2, "temporal_window_size": 5})
    explain_run(run, ["2", "sim000"], progress=False)
    return run


def rows_of(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_files_agree_with_the_model_and_with_each_other(nonlinear):
    folder, model = nonlinear.path / "explain", nonlinear.load_model()
    found = Explanation.load(nonlinear.path)
    assert found.names == ["sim002", "sim000"]
    assert found.skipped == []
    fields = receptive_fields(model)
    assert fields.kind == GRADIENT == found.facts["field_kind"]
    np.testing.assert_allclose(found.arrays["fields"]["fields"], fields.maps, rtol=1e-6)
    expected = strf_tuning(fields.maps, np.asarray(nonlinear.facts["frequencies_hz"]), 5.0)
    written = rows_of(folder / "tuning.csv")
    assert [row["neuron"] for row in written] == nonlinear.scores.neurons
    for row, latency in zip(written, expected["latency_ms"], strict=True):
        assert float(row["latency_ms"] or "nan") == pytest.approx(latency, rel=1e-5, nan_ok=True)
    assert [row["index"] for row in rows_of(folder / "nonlinearity.csv")] == ["2", "0"]
    assert [row["index"] for row in rows_of(folder / "probes.csv")] == ["2", "0"]
    assert sorted(path.name for path in folder.glob("*.wav")) == ["strf-0.wav", "strf-2.wav"]


def test_filters_stand_in_the_order_asked_for_and_explain_the_response(nonlinear):
    dstrf = Explanation.load(nonlinear.path).arrays["dstrf"]
    model = nonlinear.load_model()
    stim, weights = dstrf["stim"], dstrf["weights"]
    n_bins, n_neurons, n_lags, n_bands = weights.shape
    assert (n_neurons, n_lags, n_bands) == (2, 5, 24)
    assert stim.shape == (n_bands, n_bins)
    x = torch.from_numpy(stim)[None, None].requires_grad_()
    response = model.eval().respond(x)
    for column, neuron in enumerate((2, 0)):
        moment = n_bins // 2
        np.testing.assert_allclose(
            dstrf["pred"][moment, column], response[0, neuron, 0, moment].item(), rtol=1e-4
        )
        (gradient,) = torch.autograd.grad(response[0, neuron, 0, moment], x, retain_graph=True)
        window = gradient[0, 0, :, moment - n_lags + 1 : moment + 1].T
        np.testing.assert_allclose(weights[moment, column], window, atol=1e-6)


def test_statistics_are_means_over_several_test_clips(tmp_path):
    options = {**SMALL, "n_clips": 7, "n_neurons": 2}
    config = ExperimentConfig(
        dataset_options=options, split="2/1/4", epochs=1, model="nrf",
        model_options={"n_hidden": 2, "temporal_window_size": 5},
    )  # fmt: skip
    run = run_experiment(config, tmp_path / "run", progress=False)
    found = explain_run(run, [1, 0], progress=False)
    clips = found.facts["statistics_clips"]
    assert len(set(clips)) == 4
    assert clips[0] == found.facts["clip"]
    whole = SyntheticDataset(**options)
    by_name = {meta["name"]: stim for meta, stim in zip(whole.stim_meta, whole.stims, strict=True)}
    results = [
        dstrf(run.load_model(), by_name[name], lags=5, neurons=[0, 1], times=slice(4, None)) for name in clips
    ]
    expected = torch.stack([complexity(one.weights) for one in results])
    for row, neuron in zip(rows_of(run.path / "explain" / "nonlinearity.csv"), (1, 0), strict=True):
        assert row["clips"] == "4"
        assert float(row["complexity"]) == pytest.approx(expected[:, neuron].mean().item(), rel=1e-3)
        assert float(row["complexity_sd"]) == pytest.approx(
            expected[:, neuron].std().item(), rel=1e-2, abs=1e-4
        )
    page = write_report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert "along 4 test clips (means over them)" in page
    assert f"Clips: {', '.join(clips)}." in page


def test_movie_and_page_hold_everything(nonlinear, tmp_path):
    found = Explanation.load(nonlinear.path)
    with Image.open(found.movie) as movie:
        assert movie.n_frames > 20
    page = write_report(nonlinear, tmp_path / "r.html").read_text(encoding="utf-8")
    for anchor in ("fields", "tuning", "listening", "dynamics", "nonlinearity", "probes"):
        assert f'<section id="{anchor}">' in page
    assert 'id="left-out"' not in page
    assert page.count("data:audio/wav") == 2
    assert page.count("data:image/gif") == 1
    assert "slopes at the null stimulus" in page
    standardises = nonlinear.load_model().standardizer is not None
    assert ("the mean of each band over the training sounds, not silence" in page) == standardises
    assert ("0 in every band: silence only where" in page) != standardises
    assert "sound in silence" not in page


def test_explained_before_is_read_and_another_choice_is_refused(nonlinear):
    before = (nonlinear.path / "explain" / "explain.json").stat().st_mtime_ns
    assert explain_run(nonlinear, [2, 0], progress=False).names == ["sim002", "sim000"]
    assert (nonlinear.path / "explain" / "explain.json").stat().st_mtime_ns == before
    with pytest.raises(FileExistsError, match=r"neurons \[2, 0\], not \[1\].*--overwrite"):
        explain_run(nonlinear, [1], progress=False)
    for wrong, error, text in (
        ([7], IndexError, "neuron 7 does not exist"),
        (["A1"], ValueError, "no neuron 'A1'"),
        ([0, "sim000"], ValueError, "different neurons"),
        ([], ValueError, "1 to 12"),
    ):
        with pytest.raises(error, match=text):
            explain_run(nonlinear, wrong, progress=False)


def test_a_linear_model_is_one_filter_and_has_no_movie(tmp_path):
    run = fitted(tmp_path / "linear", model_options={"temporal_window_size": 4})
    found = explain_run(run, [1], progress=False)
    assert found.facts["constant"] is True
    assert found.movie is None
    (row,) = found.tables["nonlinearity"]
    assert float(row["complexity"]) == pytest.approx(1.0)
    page = write_report(run).read_text(encoding="utf-8")
    assert "it is linear in its spectrogram" in page


@pytest.mark.parametrize(
    ("name", "options"),
    [("statenet", {"hidden_channels": 2}), ("transformer", {"embedding_dim": 4})],
)
def test_a_model_of_unbounded_memory_has_a_window_and_gradient_maps(tmp_path, name, options):
    run = fitted(tmp_path / name, model=name, model_options=options)
    found = explain_run(run, [0], progress=False)
    assert found.skipped == []
    assert found.facts["receptive_field"] is None
    assert found.facts["lags"] == 60
    assert found.arrays["fields"]["fields"].shape == (3, 24, 60)
    assert gather_parts(run).strf_kind == GRADIENT


def test_a_waveform_model_is_played_sounds_and_gives_its_field_as_one(tmp_path):
    run = fitted(tmp_path / "mel", wav2spec="mel", wav2spec_options={"n_mels": 12})
    found = explain_run(run, [0], progress=False)
    assert found.skipped == []
    ((_, path),) = found.sounds
    assert path.name == "field-0.wav"
    with wave.open(str(path)) as file:
        assert file.getframerate() == 16000
        assert file.getnframes() > 0.3 * 16000
    # every probe of the battery is played, and the page states units, levels and what its columns mean
    assert {name.split("_")[0] for name in found.arrays["probes"]} >= {"tones", "gaps", "sweeps", "masking"}
    assert {"gap_threshold_ms", "common_ssa_index", "two_tone_suppression"} <= set(found.tables["probes"][0])
    page = write_report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    for text in (
        "evoked rate (spikes per bin) over level (dB re 1)",
        "largest change (spikes per bin) over gap (ms)",
        "share of the response over delay after the masker (ms)",
        "<dt>SSA</dt><dd>above 0: a rare tone",
        "<dt>E/I</dt><dd>excitation minus inhibition",
    ):
        assert text in page
    stims = SyntheticDataset(**SMALL, return_waveform=True).stims
    levels = [20 * np.log10(stim.double().pow(2).mean().sqrt().item()) for stim in stims]
    stated = float(re.search(r"have a level of .(\d+) dB", page).group(1))
    assert -stated in np.round(levels)  # that of the one test clip


def test_without_the_recording_the_rest_is_done_and_the_reason_logged(tmp_path, monkeypatch):
    run = fitted(tmp_path / "lost", model_options={"temporal_window_size": 4})
    monkeypatch.setattr(
        "deepSTRF.report.explain.run.load_dataset",
        lambda *a, **k: (_ for _ in ()).throw(FileNotFoundError("mine.npz is not there")),
    )
    logged = []
    found = explain_run(run, [0], progress=False, log=logged.append)
    assert [part for part, _ in found.skipped] == ["dynamic STRFs", "probes"]
    assert all("mine.npz is not there" in reason for _, reason in found.skipped)
    assert len(logged) == 2
    assert sorted(found.tables) == ["tuning"]
    page = write_report(run).read_text(encoding="utf-8")
    assert 'id="left-out"' in page
    assert "mine.npz is not there" in page


def test_another_seed_is_named_and_bands_without_frequencies_have_no_tuning(tmp_path):
    rng = np.random.default_rng(0)
    stims = [rng.random((6, 150)) for _ in range(5)]
    spikes = [rng.poisson(stim[[2, 3]][:, None], (2, 4, 150)) for stim in stims]
    AudioNeuralDataset.from_arrays(stims, spikes, dt_ms=5.0).save(tmp_path / "mine.npz")
    config = ExperimentConfig(
        dataset=str(tmp_path / "mine.npz"), model="linear_nonlinear", split="3/1/1", epochs=1, seeds=(0, 1)
    )
    run = run_experiment(config, tmp_path / "run", progress=False)
    other = 1 - run.best_seed
    found = explain_run(run, seed=other, progress=False)
    assert [part for part, _ in found.skipped] == ["tuning", "sounds", "probes"]
    assert "does not state how its spectrograms were made" in dict(found.skipped)["probes"]
    page = write_report(run).read_text(encoding="utf-8")
    assert f"This is the model of seed {other}" in page
    assert '<section id="dynamics">' in page


def test_bands_of_a_ridge_fit_lie_around_its_weights(tmp_path):
    run = fitted(tmp_path / "ridge", model="ridge", model_options={"n_lags": 4})
    found = explain_run(run, [2, 0], progress=False)
    assert found.skipped == []
    assert found.facts["refits"] == 4
    band = found.arrays["confidence"]
    weights = found.arrays["fields"]["fields"][[2, 0]]
    np.testing.assert_allclose(band["estimate"], weights, atol=1e-4 * np.abs(weights).max())
    assert (band["low"] <= band["estimate"]).all()
    assert (band["high"] >= band["estimate"]).all()
    page = write_report(run).read_text(encoding="utf-8")
    assert '<section id="confidence">' in page


def test_a_neuron_that_heard_too_few_clips_takes_no_other_ones_band(tmp_path):
    options = {"n_neurons": 6, "n_clips": 6, "n_repeats": 2, "clip_seconds": 0.5, "missing_fraction": 0.5}
    config = ExperimentConfig(
        dataset_options=options, split="4/1/1", model="ridge", model_options={"n_lags": 3}
    )
    run = run_experiment(config, tmp_path / "run", progress=False)
    found = explain_run(run, list(range(6)), progress=False)
    bands, reasons = found.arrays["confidence"], found.facts["without_band"]
    without = np.isnan(bands["low"]).all(axis=(1, 2))
    assert 0 < without.sum() < 6
    assert [reason.split(":")[0] for reason in reasons] == [found.names[k] for k in np.flatnonzero(without)]
    assert np.isfinite(bands["low"][~without]).all()
    np.testing.assert_allclose(
        bands["estimate"][without], found.arrays["fields"]["fields"][without], rtol=1e-5
    )
    assert f"No band for {reasons[0]}" in write_report(run, tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_clip_too_short_for_statistics_still_shows_its_filters(tmp_path):
    options = {"n_neurons": 4, "n_clips": 7, "n_repeats": 40, "clip_seconds": 0.1}
    wide = {"temporal_window_size": 16}
    config = ExperimentConfig(
        dataset_options=options, split="3/3/1", epochs=1, model="nrf", model_options=wide
    )
    run = run_experiment(config, tmp_path / "run", progress=False)
    found = explain_run(run, [0], progress=False)
    assert "nonlinearity" not in found.tables
    assert found.arrays["dstrf"]["weights"].shape[0] == 5  # of 20 bins those with a whole window
    assert "dynamic STRFs" not in dict(found.skipped)
    page = write_report(run, tmp_path / "r.html").read_text(encoding="utf-8")
    assert '<section id="dynamics">' in page
    assert '<section id="nonlinearity">' not in page


def test_a_refit_takes_the_explanation_with_it_and_damage_is_named(tmp_path):
    run = fitted(tmp_path / "one", model_options={"temporal_window_size": 4})
    explain_run(run, [0], progress=False)
    (run.path / "explain" / "probes.npz").write_bytes(b"PK")
    with pytest.raises(ValueError, match=r"damaged.*--overwrite"):
        Explanation.load(run.path)
    assert explain_run(run, [0], overwrite=True, progress=False).names == ["sim000"]
    run_experiment(run.config, run.path, overwrite=True, progress=False)
    assert Explanation.load(run.path) is None


def test_an_interrupted_explanation_is_none(nonlinear, tmp_path):
    (tmp_path / "explain").mkdir()
    (tmp_path / "explain" / "tuning.csv").write_text("neuron\n")
    assert Explanation.load(tmp_path) is None
    facts = json.loads((nonlinear.path / "explain" / "explain.json").read_text())
    assert facts["format"] == 2


def test_excerpt_is_the_clip_with_the_largest_spread():
    class Recording:
        dt = 5.0
        stims = ["a", "b"]
        stim_meta = [{"name": "quiet"}, {"name": "loud"}]

        def __len__(self):
            return 2

        def response_block(self, clip):
            block = np.zeros((2, 3, 20))
            block[1, :, 5] = 1.0 + 5 * clip
            block[0] = np.nan
            return block

    chosen = choose_excerpts(Recording(), [1])[0]
    assert [one.name for one in choose_excerpts(Recording(), [1])] == ["loud", "quiet"]
    assert (chosen.clip, chosen.name, chosen.start, chosen.stop) == (1, "loud", 0, 20)
    assert chosen.psth[5, 0] == 6.0
    with pytest.raises(ValueError, match="none of the chosen neurons"):
        choose_excerpts(Recording(), [0])
    Recording.dt = 400.0  # of eight seconds the strongest five; two such clips are ten of fifteen
    assert [one.stop - one.start for one in choose_excerpts(Recording(), [1])] == [12, 12]
    Recording.dt = 5.0
    assert strongest_part(np.array([5.0, np.nan, 1.0, 2.0]), 2) == slice(0, 2)


def test_only_windows_that_are_mostly_empty_are_cut():
    field = np.zeros((2, 3, 40))
    field[:, 0, -4:] = 1.0
    assert shown_lags(field) == 5
    field[:, 0, 5] = 1.0
    assert shown_lags(field) == 40
    assert shown_lags(np.zeros((1, 3, 7))) == 7


def test_bars_are_drawn_on_stderr_and_only_when_wanted(capsys):
    for wanted in (True, False):
        with open_bars(wanted) as begin:
            count = begin("tuning", 3)
            count(1)
            begin("probes", 2)
        out, err = capsys.readouterr()
        assert out == ""
        assert ("tuning" in err and "3/3" in err) is wanted
    with pytest.raises(ValueError, match="progress must be"), open_bars("yes"):
        pass


@pytest.mark.parametrize("dt_ms", [5.0, 200.0, 2000.0])
def test_parts_of_clips_hold_bins_however_long_a_bin_is(dt_ms):
    from deepSTRF.report.explain.target import part_length, strongest_part  # inner: tested by itself

    series = np.r_[np.zeros(300), np.ones(40), np.zeros(300)]
    part = strongest_part(series, part_length(1.0, dt_ms))
    assert part.stop - part.start == max(10, round(1000.0 / dt_ms))
    assert series[part].sum() == min(40, part.stop - part.start)
    assert strongest_part(np.ones(3), part_length(1.0, dt_ms)) == slice(0, 3)
