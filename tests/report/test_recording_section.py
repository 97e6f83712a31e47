"""Sections on the recording: the load report, the alignment figure and the rasters."""

import numpy as np
import pytest

from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.experiments.examples import Raster, choose_rasters, examples_to_bytes, rasters_from_bytes
from deepSTRF.experiments.run_folder import Run
from deepSTRF.report import ReportParts
from deepSTRF.report.gather import render_report


def _facts(**more):
    return {
        "n_kept": 2,
        "skipped": [["cell <b>", "no spikes"]],
        "notes": [["clock drift", "20 ppm", 1]],
        **more,
    }


def test_load_report_is_shown_escaped():
    page = render_report(ReportParts("x", recording=_facts()))
    assert "cell &lt;b&gt;: no spikes" in page
    assert "clock drift" in page
    assert "<b>" not in page.split('id="recording"')[1]


def test_pages_without_facts_have_no_section():
    assert 'id="recording"' not in render_report(ReportParts("x"))


def test_alignment_is_drawn_where_it_is_known():
    lags = {"lags_ms": [-10.0, 0.0, 10.0], "strengths": [1.0, 2.0, 9.0], "lag_ms": 10.0, "message": "fine."}
    assert "Cross-correlogram" in render_report(ReportParts("x", recording=_facts(alignment=lags)))
    short = {"lags_ms": [], "strengths": [], "lag_ms": None, "message": "too few bins"}
    assert "too few bins" in render_report(ReportParts("x", recording=_facts(alignment=short)))


def test_rasters_come_in_pages_of_twelve():
    one = Raster("a", 0.5, "clip", np.zeros((3, 10), np.int8))
    page = render_report(ReportParts("x", neurons=["a"], rasters=[one] * 13, dt_ms=5.0))
    assert page.count("Rasters of 12 neurons") == page.count("Rasters of 1 neurons") == 1


def test_rasters_are_kept_in_the_file_of_examples():
    counts = [Raster("a", float("nan"), "c", np.ones((2, 5), np.int8), 1.5)]
    (again,) = rasters_from_bytes(examples_to_bytes([], counts))
    assert (again.neuron, again.clip, again.start_s) == ("a", "c", 1.5)
    assert np.isnan(again.score)
    assert again.response.dtype == np.int8
    assert rasters_from_bytes(examples_to_bytes([])) == []


def test_rasters_are_the_repeats_of_neurons_over_the_range_of_scores():
    responses = np.random.default_rng(0).poisson(1.0, (40, 3, 50)).astype(float)
    responses[5, 2] = np.nan
    ds = AudioNeuralDataset.from_arrays([np.ones((2, 50))], [responses], 5.0, check_alignment=False)
    scores = np.linspace(1, 0, 40)
    scores[7] = np.nan
    names = [f"n{i}" for i in range(40)]
    rasters = choose_rasters(ds, scores, names)
    assert len(rasters) == 24
    assert rasters[0].neuron == "n0"
    assert rasters[-1].neuron == "n7"
    for one in rasters:
        expected = responses[int(one.neuron[1:])]
        np.testing.assert_array_equal(one.response, expected[~np.isnan(expected).any(axis=1)])


@pytest.mark.slow
def test_run_keeps_what_its_recording_was(tmp_path):
    ds = SyntheticDataset(n_neurons=3, n_clips=6, n_repeats=4)
    ds.load_report.note("clock drift", "20.0 ppm, corrected")
    ds.save(tmp_path / "mine.npz")
    config = ExperimentConfig(dataset=str(tmp_path / "mine.npz"), model="linear", epochs=1)
    run_experiment(config, out=tmp_path / "run")
    run = Run.load(tmp_path / "run")
    assert run.facts["import"]["notes"] == [["clock drift", "20.0 ppm, corrected", 1]]
    assert len(run.facts["import"]["alignment"]["lags_ms"]) == len(
        run.facts["import"]["alignment"]["strengths"]
    )
    assert len(run.rasters) == 3
