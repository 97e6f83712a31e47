"""Windows of long clips: every bin scored once, context heard and not scored, equal to the whole, no leak."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import (
    NeuralDataset,
    concat_neural_datasets,
    index_split,
    k_fold,
    leave_one_clip_out,
    plan_folds,
    random_split,
    windows,
)
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.models.audio import DNet, Linear
from deepSTRF.training import Fitter, make_loaders, score_model

LAGS = 9


@pytest.fixture(scope="module")
def whole() -> SyntheticDataset:
    return SyntheticDataset(n_neurons=4, n_clips=5, n_repeats=3, clip_seconds=1.6)


def holey(seed: int = 0) -> NeuralDataset:
    """Clips with missing bins, ragged repeats and a missing pair."""
    rng = np.random.default_rng(seed)
    stims = [torch.from_numpy(rng.standard_normal((3, n))).float() for n in (230, 117)]
    counts = [[rng.poisson(1.0, (2, 230)).astype(float), rng.poisson(1.0, (3, 230)), None],
              [None, rng.poisson(1.0, (1, 117)), rng.poisson(2.0, (2, 117)).astype(float)]]  # fmt: skip
    counts[0][0][1, 40:130] = np.nan
    counts[1][2][:, :25] = np.nan
    return NeuralDataset.from_arrays(stims, counts, dt_ms=10.0, check_alignment=False)


@pytest.mark.parametrize(("length", "context"), [(50, 0), (50, 8), (33, 40), (400, 12)])
def test_windows_tile_every_bin_once_with_its_context(length, context):
    ds = holey()
    parts = windows(ds, length * 0.01, context_ms=context * 10.0)
    seen = {name: np.zeros((3, 3, 400)) for name in ("n", "sum")}
    for clip in range(len(parts)):
        row, source = parts.stim_meta[clip], int(parts.stim_meta[clip]["cut_from"][-3:])
        start, before = round(row["start_ms"] / 10), parts.context_bins(clip)
        assert before == min(context, start) == round(row["context_ms"] / 10)
        stop = start - before + parts.n_bins(clip)
        assert stop == min(start + length, ds.n_bins(source))
        assert torch.equal(parts.stims[clip], ds.stims[source][..., start - before : stop])
        block, expected = parts.response_block(clip), ds.response_block(source)
        assert bool(block[..., :before].isnan().all())
        for neuron in range(3):
            truth = expected[neuron, :, start:stop]
            found = block[neuron, : len(truth), before:]
            if bool(truth.isnan().all()):
                assert bool(found.isnan().all())
                assert not parts.nrn_masks[clip, neuron]
                continue
            np.testing.assert_array_equal(found, truth[: len(found)])
            read = parts.responses[clip][neuron]
            assert bool(read[:, :before].isnan().all())
            np.testing.assert_array_equal(read[:, before:], truth[: len(read)])
        seen["n"][source, :, start:stop] += 1
    assert (seen["n"][0, :, :230] == 1).all()
    assert (seen["n"][1, :, :117] == 1).all()
    assert parts.describe()["duration_s"] == pytest.approx(ds.describe()["duration_s"])


def test_overlapping_windows_and_refusals():
    ds = holey()
    parts = windows(ds, 0.5, 0.2, context_ms=50.0)
    starts = [round(row["start_ms"] / 10) for row in parts.stim_meta if row["cut_from"] == "clip000"]
    assert starts == list(range(0, 181, 20))
    assert parts.n_bins(9) == 5 + 50
    for arguments, text in (
        ((0.001,), "at least one bin"), ((1.0, 2.0), "would be lost"), ((-1.0,), "length_s"),
        ((float("nan"),), "length_s"), ((1.0, 0.0), "at least one bin"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=text):
            windows(ds, *arguments)
    with pytest.raises(TypeError, match="length_s"):
        windows(ds, "1")
    for again in (lambda: windows(parts, 0.1), parts.mapped):
        with pytest.raises(ValueError, match="windows"):
            again()


def test_ridge_and_scores_on_windows_are_those_of_the_whole(whole):
    for view in (whole, whole.smoothed(21.0)):
        train, val = view.select(clips=[0, 1, 2]), view.select(clips=[3, 4])
        cut = [windows(part, 0.23, context_ms=(LAGS - 1) * whole.dt) for part in (train, val)]
        fit, parts = fit_ridge(train, val, n_lags=LAGS), fit_ridge(*cut, n_lags=LAGS)
        scale = float(fit.weight.abs().max())
        assert float((fit.weight - parts.weight).abs().max()) < 1e-9 * scale
        assert torch.equal(fit.lambdas / fit.grid[0], parts.lambdas / parts.grid[0])
        a = score_model(fit.model, val, n_bootstrap=0)
        b = score_model(fit.model, cut[1], n_bootstrap=0)
        for name in ("cc", "fve", "cc_norm", "mse", "snr", "ccmax"):
            np.testing.assert_allclose(a[name], b[name], atol=1e-6, err_msg=name)


def test_predictions_of_a_causal_model_with_finite_memory_are_those_of_the_whole(whole):
    torch.manual_seed(0)
    models = [Linear(whole.F, LAGS, 4, norm="none"), DNet(whole.F, LAGS, 4)]
    for model in models:
        memory = model.receptive_field
        if memory is None:
            continue
        parts = windows(whole, 0.25, context_ms=(memory - 1) * whole.dt)
        full = model.eval().predict(whole)
        for clip, rates in enumerate(model.predict(parts)):
            row, before = parts.stim_meta[clip], parts.context_bins(clip)
            source, start = int(row["cut_from"][-2:]), round(row["start_ms"] / whole.dt)
            truth = full[source][:, start : start + rates.shape[1] - before]
            torch.testing.assert_close(rates[:, before:], truth, atol=1e-6, rtol=1e-5)


def test_a_fit_leaves_the_context_out_and_equals_the_plain_loop(whole):
    parts = windows(whole, 0.3, context_ms=LAGS * whole.dt)
    train, val = parts.select(clips=range(12)), parts.select(clips=[15, 16])
    results = []
    for fast in (True, False):
        torch.manual_seed(0)
        model = Linear(whole.F, LAGS, 4, norm="none", standardize=True)
        fitter = Fitter(
            model, *make_loaders(train, val, batch_size=3, seed=0), max_epochs=2, progress=False, seed=0,
            fast=fast,
        )  # fmt: skip
        history = fitter.fit()
        results.append((history, model.state_dict()))
    (fast, weights), (plain, _) = results
    for a, b in zip(fast, plain, strict=True):
        np.testing.assert_allclose(a["val_cc"], b["val_cc"], atol=1e-5)
    frames = torch.cat([parts.stims[c][0, :, parts.context_bins(c) :] for c in range(12)], dim=1)
    torch.testing.assert_close(weights["standardizer.mean"].flatten(), frames.mean(1), atol=1e-5, rtol=1e-5)


def test_standardisation_and_normalisation_leave_the_context_out(whole):
    parts = windows(whole, 0.3, context_ms=50.0)
    a, b = parts.standardized().stim_normalization, whole.standardized().stim_normalization
    torch.testing.assert_close(a["mean"], b["mean"])
    torch.testing.assert_close(a["std"], b["std"])
    for method in ("max", "zscore"):
        x, y = (d.smoothed(21.0).normalized(method).response_normalization for d in (parts, whole))
        torch.testing.assert_close(x["scale"], y["scale"])
        torch.testing.assert_close(x["offset"], y["offset"])
    view = windows(whole.standardized().smoothed(21.0).normalized("zscore"), 0.3, context_ms=50.0)
    truth = whole.standardized().smoothed(21.0).normalized("zscore")
    assert torch.equal(view.stims[0], truth.stims[0][..., :60])
    torch.testing.assert_close(view.response_block(1)[..., 10:], truth.response_block(0)[..., 60:120])
    assert view.response_kind == truth.response_kind


def test_windows_of_one_clip_stay_on_one_side(whole):
    parts = windows(whole, 0.3, context_ms=50.0)
    side = {}
    for split in [random_split(parts), *k_fold(parts, 5), *leave_one_clip_out(parts)]:
        for role in ("train", "val", "test"):
            for clip in getattr(split, role):
                assert side.setdefault((split.name, parts.stim_meta[clip]["cut_from"]), role) == role
    alone = windows(whole.select(clips=[0]), 0.3)
    with pytest.raises(ValueError, match="cut a long recording"):
        random_split(alone)
    with pytest.raises(ValueError, match="overlap in one clip"):
        index_split(parts, [0], [], [1])  # window 1 hears the end of window 0
    index_split(parts, [0], [], [2])
    overlapping = windows(whole, 0.3, 0.1)
    with pytest.raises(ValueError, match="overlap in one clip"):
        index_split(overlapping, [0], [], [1])
    index_split(overlapping, [0], [], [3])
    with pytest.raises(ValueError, match="plan folds of the recording"):
        plan_folds(parts, crossval=True)
    both = concat_neural_datasets([whole.select(clips=[0]), whole.select(clips=[1])], names=["a", "b"])
    twice = windows(both, 0.3)
    assert len({row["window_of"] for row in twice.stim_meta}) == 2


def test_pieces_with_a_gap_then_windows_of_each_part(whole):
    pieces = whole.select(clips=[0]).cut(400.0, gap_ms=100.0)
    split = random_split(pieces, (0.5, 0.25, 0.25))
    train, _, test = split.apply(pieces)
    parts = [windows(view, 0.1, context_ms=80.0) for view in (train, test)]

    def heard(view, clip) -> range:
        first = round((view.stim_meta[clip]["start_ms"] - view.stim_meta[clip]["context_ms"]) / whole.dt)
        return range(first, first + view.n_bins(clip))

    spans = [{b for clip in range(len(view)) for b in heard(view, clip)} for view in parts]
    assert min(abs(a - b) for a in spans[0] for b in spans[1]) > 100.0 / whole.dt


def test_windows_of_waveforms_files_and_selections(whole, tmp_path):
    sound = AudioNeuralDataset.from_arrays(
        [np.sin(np.arange(8000) * 0.1)],
        [np.ones((2, 3, 100))],
        dt_ms=10.0,
        audio_fs=8000,
        check_alignment=False,
    )
    parts = windows(sound, 0.25, context_ms=30.0)
    assert [tuple(s.shape) for s in parts.stims] == [(1, 2000), (1, 2240), (1, 2240), (1, 2240)]
    parts.validate()
    some = windows(whole.select(neurons=[3, 1]), 0.4, context_ms=20.0)
    other = windows(whole, 0.4, context_ms=20.0).select(neurons=[3, 1])
    assert some.content_fingerprint() == other.content_fingerprint()
    some.save(tmp_path / "some.npz")
    back = NeuralDataset.load(tmp_path / "some.npz")
    assert back.content_fingerprint() == some.content_fingerprint()
    assert [back.context_bins(c) for c in range(len(back))] == [
        some.context_bins(c) for c in range(len(some))
    ]
