"""Kind and unit of responses: found or stated, kept by views, joins and files, used by predictions."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.datasets import NeuralDataset, concat_neural_datasets
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.models.audio import Linear

RNG = np.random.default_rng(0)
COUNTS = RNG.poisson(0.4, size=(2, 3, 60))
LFP = RNG.normal(size=(2, 3, 60)) * 1e-4


def made(responses, dt_ms=10.0, **options):
    return AudioNeuralDataset.from_arrays(
        [np.ones((4, responses.shape[-1]))], [responses], dt_ms, check_alignment=False, **options
    )


def facts(ds):
    return ds.response_kind, ds.response_unit


@pytest.mark.parametrize(
    ("responses", "kind", "unit"),
    [
        (COUNTS, "counts", "spikes per bin"),
        (COUNTS.astype(float), "counts", "spikes per bin"),
        (COUNTS.astype(bool), "counts", "spikes per bin"),
        (COUNTS + 40_000, "counts", "spikes per bin"),  # beyond the integers of the storage
        (np.where(COUNTS == 0, np.nan, COUNTS), "counts", "spikes per bin"),
        (COUNTS.mean(1), "rate", "arbitrary units"),
        (COUNTS / 3 - 1e-9, "rate", "arbitrary units"),  # rounding of a smoother, no negative response
        (LFP, "trace", "arbitrary units"),
        (COUNTS - 1, "trace", "arbitrary units"),  # whole numbers of an analogue-to-digital converter
        (np.where(COUNTS == 0, np.nan, -COUNTS), "trace", "arbitrary units"),
        (np.full((2, 3, 60), np.nan), "counts", "spikes per bin"),
    ],
)
def test_the_kind_is_found(responses, kind, unit):
    ds = made(responses)
    assert facts(ds) == (kind, unit)
    described = ds.describe()
    assert (described["response_kind"], described["response_unit"]) == (kind, unit)


def test_a_stated_kind_and_unit_are_kept_by_views_and_files(tmp_path):
    ds = made(LFP, response_kind="trace", response_unit="V")
    for view in (ds, ds.select(neurons=[1]), ds.select(clips=[0]), ds.smoothed(30.0)):
        assert facts(view) == ("trace", "V")
        view.save(tmp_path / "lfp.npz")
        assert facts(NeuralDataset.load(tmp_path / "lfp.npz")) == ("trace", "V")
    positive = made(np.abs(LFP), response_kind="trace", response_unit="V")
    assert facts(positive) == ("trace", "V")
    plain = NeuralDataset.from_arrays([np.ones((2, 60))], [np.abs(LFP)], 5.0, response_unit="spikes/s")
    assert facts(plain) == ("rate", "spikes/s")


def test_the_kind_of_a_view_is_that_of_the_recording(tmp_path):
    ds = AudioNeuralDataset.from_arrays(
        [np.ones((4, 60))] * 2, [np.abs(LFP), LFP], 10.0, check_alignment=False
    )
    view = ds.select(clips=[0])
    assert float(view.response_block(0).min()) >= 0
    assert view.response_kind == "trace"
    view.save(tmp_path / "part.npz")
    assert NeuralDataset.load(tmp_path / "part.npz").response_kind == "trace"


def test_smoothed_counts_are_a_rate_and_normalised_responses_have_a_unit_of_their_own(tmp_path):
    ds = made(COUNTS, dt_ms=5.0)
    assert facts(ds.smoothed(21.0)) == ("rate", "spikes per bin")
    assert facts(ds.smoothed(5.0)) == ("counts", "spikes per bin"), "a window of one bin changes nothing"
    assert facts(ds.smoothed(21.0).smoothed(None)) == ("counts", "spikes per bin")
    assert facts(ds.normalized("max")) == ("rate", "fraction of maximum")
    scores = ds.normalized("zscore")
    assert facts(scores) == ("trace", "z-score")
    scores.save(tmp_path / "z.npz")
    assert facts(NeuralDataset.load(tmp_path / "z.npz")) == ("trace", "z-score")
    assert facts(made(LFP).normalized("max")) == ("trace", "fraction of maximum")
    assert facts(SyntheticDataset(n_neurons=2, n_clips=2, n_repeats=2)) == ("counts", "spikes per bin")


def test_a_file_of_an_earlier_version_has_its_kind_found(tmp_path):
    import json

    made(COUNTS).save(tmp_path / "new.npz")
    with np.load(tmp_path / "new.npz") as archive:
        arrays = dict(archive)
    header = json.loads(arrays["header"].tobytes())
    del header["response_kind"], header["response_unit"]
    header["format"] = 1
    arrays["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    np.savez(tmp_path / "old.npz", **arrays)
    with pytest.warns(UserWarning, match="earlier version"):
        assert facts(NeuralDataset.load(tmp_path / "old.npz")) == ("counts", "spikes per bin")


def test_a_loader_assigns_them(loader):
    ds = loader([torch.ones(1, 4, 60)], [np.abs(LFP)], 2)
    assert ds.response_kind == "rate"
    ds.response_kind, ds.response_unit = "trace", "mV"
    assert facts(ds.select(neurons=0)) == ("trace", "mV")
    ds.responses = [COUNTS]
    assert facts(ds) == ("trace", "mV"), "what is stated stays"
    ds.response_kind = ds.response_unit = None
    assert facts(ds) == ("counts", "spikes per bin")


def test_a_join_has_the_kind_of_all_and_refuses_two_units():
    counts, rate = made(COUNTS), made(COUNTS.mean(1))
    assert facts(concat_neural_datasets([counts, counts], names=["a", "b"])) == ("counts", "spikes per bin")
    assert facts(concat_neural_datasets([counts, rate], names=["a", "b"])) == ("rate", "arbitrary units")
    volts = made(LFP, response_unit="V")
    assert facts(concat_neural_datasets([volts, volts], names=["a", "b"])) == ("trace", "V")
    with pytest.raises(ValueError, match=r"^response_unit mismatch: .*'spikes per bin'.*'V'; normalise both"):
        concat_neural_datasets([counts, volts], names=["a", "b"])
    both = [ds.normalized("zscore") for ds in (counts, volts)]
    assert facts(concat_neural_datasets(both, names=["a", "b"])) == ("trace", "z-score")


@pytest.mark.parametrize(
    ("responses", "options", "error", "words"),
    [
        (
            COUNTS,
            {"response_kind": "spikes"},
            ValueError,
            "response_kind must be one of .*'counts', 'rate', 'trace'",
        ),
        (LFP, {"response_kind": "counts"}, ValueError, "response_kind='counts', but .* negative values"),
        (LFP, {"response_kind": "rate"}, ValueError, "they are 'trace', which response_kind=None finds"),
        (COUNTS / 3, {"response_kind": "counts"}, ValueError, "hold no whole numbers: they are 'rate'"),
        (COUNTS, {"response_unit": 5}, TypeError, "response_unit is a text .* got 5"),
        (COUNTS, {"response_unit": " "}, TypeError, "response_unit is a text"),
    ],
)
def test_what_cannot_be_is_refused(responses, options, error, words):
    with pytest.raises(error, match=words):
        made(responses, **options)


@pytest.mark.parametrize(
    ("responses", "options", "factor"),
    [
        (COUNTS, {}, 100.0),
        (COUNTS, {"response_unit": "spikes"}, 100.0),
        (COUNTS / 3, {}, 100.0),
        (COUNTS / 3, {"response_unit": "events/bin"}, 100.0),
        (COUNTS / 3, {"response_unit": "spikes/s"}, 1.0),
        (COUNTS / 3, {"response_unit": "spikes per second"}, 1.0),
        (COUNTS / 3, {"response_unit": "Hz"}, 1.0),
        (COUNTS / 3, {"response_unit": "photons per sample"}, None),
        (COUNTS / 3, {"response_unit": "dF/F"}, None),
        (LFP, {}, None),
        (LFP, {"response_unit": "spikes per bin"}, None),
    ],
)
def test_only_counts_and_rates_are_predicted_in_hertz(responses, options, factor):
    ds = made(responses, **options)
    model = Linear(4, 3, 2).eval()
    plain = model.predict(ds)[0]
    if factor is None:
        with pytest.raises(ValueError, match="unit='hz' needs counts or rates per bin"):
            model.predict(ds, unit="hz")
    else:
        assert torch.allclose(model.predict(ds, unit="hz")[0], plain * factor)
    for method in ("max", "zscore"):
        with pytest.raises(ValueError, match="unit='hz'"):
            model.predict(ds.normalized(method), unit="hz")
