"""Bands of a learned front-end stand in the order of their frequencies, in pictures and in tables."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from deepSTRF.experiments import ExperimentConfig, Run, run_experiment
from deepSTRF.experiments.examples import ModelFields  # inner: tested by itself
from deepSTRF.interpret import strf_tuning
from deepSTRF.report import explain_run
from deepSTRF.report.explanation import Explanation  # inner: what is tried here is not part of the face
from deepSTRF.report.gather import gather_parts
from deepSTRF.report.parts import Bands  # inner: tested by itself


def test_bands_from_low_to_high():
    bands, values = Bands([3.0, 1.0, 2.0]), np.arange(6).reshape(3, 2)
    np.testing.assert_array_equal(bands.sorted(values, axis=0), values[[1, 2, 0]])
    np.testing.assert_array_equal(bands.sorted(values, axis=1), values)  # another axis: not these bands
    np.testing.assert_array_equal(Bands(None).sorted(values, axis=0), values)
    assert bands.of_fields(None) is None
    fields = bands.of_fields(ModelFields(values[None], "maps"))
    np.testing.assert_array_equal(fields.maps[0], values[[1, 2, 0]])


@pytest.fixture(scope="module")
def crossed(tmp_path_factory) -> tuple[Run, np.ndarray]:
    """A run whose front-end's channels have changed places, as far as anybody can tell from its facts."""
    options = {"n_neurons": 2, "n_clips": 5, "n_repeats": 2, "clip_seconds": 0.6}
    config = ExperimentConfig(dataset_options=options, split="3/1/1", epochs=1, model="linear_nonlinear")
    run = run_experiment(config, tmp_path_factory.mktemp("runs") / "ln", progress=False)
    straight = np.asarray(run.facts["frequencies_hz"])
    order = np.random.default_rng(0).permutation(straight.size)
    run.facts["frequencies_hz"] = straight[order].tolist()
    return run, order


def test_the_page_draws_them_in_order(crossed):
    run, order = crossed
    parts = gather_parts(run)
    assert (np.diff(parts.frequencies_hz) > 0).all()
    back = np.argsort(order)
    np.testing.assert_array_equal(parts.examples[0].stim, run.examples[0].stim[back])
    np.testing.assert_array_equal(parts.examples[0].strf, run.examples[0].strf[back])


def test_an_explanation_leaves_nothing_out(crossed):
    run, order = crossed
    explain_run(run, [0], progress=False)
    found = Explanation.load(run.path)
    assert found.skipped == []
    fields, model = found.arrays["fields"], run.load_model()
    np.testing.assert_allclose(
        fields["fields"], model.STRFs(folded=True)[:, np.argsort(order)].numpy(), rtol=1e-5, atol=1e-8
    )
    assert found.unit == "sd"
    dstrf = found.arrays["dstrf"]  # of an LN neuron: its field, times a slope, per unit of the spectrogram
    filters = dstrf["weights"][:, 0] * dstrf["band_std"]
    shape = filters / np.linalg.norm(filters, axis=(1, 2), keepdims=True)
    field = fields["fields"][0].T
    np.testing.assert_allclose((shape * field / np.linalg.norm(field)).sum((1, 2)), 1.0, atol=1e-4)
    with (run.path / "explain" / "tuning.csv").open(encoding="utf-8") as file:
        row = next(csv.DictReader(file))
    expected = strf_tuning(fields["fields"], fields["frequencies_hz"], run.facts["dt_ms"])
    assert float(row["best_frequency_hz"]) == pytest.approx(expected["best_frequency_hz"][0], rel=1e-4)
