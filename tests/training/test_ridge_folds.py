"""Ridge over folds: explicit designs, scikit-learn, mTRFpy, nested choice, missing data, shared forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.baselines import fit_ridge, fit_ridge_folds, solution

# inner names: forms and solvers are checked against explicit matrices
from deepSTRF.baselines.heldout import QuadraticForm
from deepSTRF.baselines.lagged import ClipFeatures, group_neurons, lagged_columns, lagged_gram, lagged_rows
from deepSTRF.baselines.solution import Problem
from deepSTRF.baselines.tridiagonal import ShiftedSystems
from deepSTRF.datasets import index_split, k_fold, leave_one_clip_out
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.metrics import corrcoef, normalized_corrcoef
from deepSTRF.models.audio import Linear

LAGS, GRID = 4, [1.0, 30.0, 300.0]


def with_holes(kit, seed=0):
    """Neurons with missing bins, repeats that ended early, clips not heard, single repeats."""
    whole = kit.spectrogram_recording(kit.RAGGED, seed=seed)
    rng, responses = np.random.default_rng(seed), []
    for clip in range(len(whole)):
        entry = [whole.responses[clip][n].double().numpy() for n in range(4)]
        entry[1][:, 10:14] = np.nan
        entry[2][2:, 5:] = np.nan
        entry[3] = None if clip in (1, 2) else entry[3][:1]
        if clip == 0:
            entry[0][rng.random(entry[0].shape) < 0.7] = np.nan
        responses.append(entry)
    stims = [np.asarray(stim) for stim in whole.stims]
    return AudioNeuralDataset.from_arrays(stims, responses, dt_ms=whole.dt, check_alignment=False)


def zscored(ds, train, standardize=True):
    """Stimuli (F, T) of all clips in double precision, standardised on some."""
    stims = [np.asarray(stim[0], dtype=np.float64) for stim in ds.stims]
    if not standardize:
        return stims
    frames = np.concatenate([stims[clip] for clip in train], axis=1)
    return [(stim - frames.mean(1)[:, None]) / frames.std(1)[:, None] for stim in stims]


def explicit(stim, lags):
    """Rows (T, F, L), newest lag last, zeros outside the clip."""
    bands, frames = stim.shape
    rows = np.zeros((frames, bands, len(lags)))
    for place, lag in enumerate(lags):
        for t in range(frames):
            if 0 <= t - lag < frames:
                rows[t, :, len(lags) - 1 - place] = stim[:, t - lag]
    return rows.reshape(frames, -1)


def psth(ds, clip):
    """Mean over repeats (N, T), NaN where nothing was recorded."""
    block = ds.response_block(clip).double().numpy()
    heard = ~np.isnan(block)
    total = np.where(heard, block, 0.0).sum(1)
    return np.where(heard.any(1), total / np.maximum(heard.sum(1), 1), np.nan)


def solved(ds, train, neuron, lam, lags, standardize=True, skip=0):
    """Weights and intercept by the normal equations, and the stimuli that go with them."""
    stims, x, y = zscored(ds, train, standardize), [], []
    for clip in train:
        target = psth(ds, clip)[neuron]
        target[:skip] = np.nan
        keep = ~np.isnan(target)
        x.append(explicit(stims[clip], lags)[keep])
        y.append(target[keep])
    x, y = np.concatenate(x), np.concatenate(y)
    if len(y) < 2:
        return np.zeros(x.shape[1]), 0.0, stims
    xc = x - x.mean(0)
    w = np.linalg.solve(xc.T @ xc + lam * np.eye(x.shape[1]), xc.T @ (y - y.mean()))
    return w, y.mean() - x.mean(0) @ w, stims


def padded(parts, width, axis=-1):
    """Stack arrays, filled with NaN to a width."""
    return torch.from_numpy(
        np.stack(
            [
                np.pad(p, [(0, 0)] * (p.ndim - 1) + [(0, width - p.shape[-1])], constant_values=np.nan)
                for p in parts
            ]
        )
    )


def pooled_scores(ds, predictions, clips, skip=0):
    """cc and cc_norm (N,) of predictions (N, T) of some clips, by the metrics of the package."""
    width = max(ds.response_block(clip).shape[-1] for clip in clips)
    blocks = [ds.response_block(clip).double().numpy() for clip in clips]
    repeats = max(block.shape[1] for block in blocks)
    blocks = [
        np.pad(b, ((0, 0), (0, repeats - b.shape[1]), (0, 0)), constant_values=np.nan)[..., skip:]
        for b in blocks
    ]
    responses = padded(blocks, width)
    rates = torch.nan_to_num(padded([p[:, skip:] for p in predictions], width))[:, :, None]
    return {
        "cc": corrcoef(rates, responses, reduction="none"),
        "cc_norm": normalized_corrcoef(rates, responses, reduction="none"),
    }


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize(
    "options",
    [
        {"n_lags": LAGS},
        {"n_lags": LAGS, "standardize": False},
        {"n_lags": 60},
        {"lags_ms": (-20, 30)},
        {"lags_ms": (10, 30), "warmup_ms": 25.0},
        {"n_lags": LAGS, "lambdas": GRID, "per_neuron": False, "score": "cc", "max_bytes": 5000},
        {
            "n_lags": 3,
            "prefiltering": {"prefiltering": "adaptrans", "dt": 5.0, "min_freq": 500, "max_freq": 8000},
        },
        {
            "n_lags": 3,
            "standardize": False,
            "prefiltering": {"prefiltering": "adaptrans", "dt": 5.0, "min_freq": 500, "max_freq": 8000},
        },
    ],
)
def test_each_fold_is_the_fit_to_its_clips(kit, holes, options):
    ds = with_holes(kit) if holes else kit.spectrogram_recording(kit.RAGGED)
    splits = k_fold(ds, 3)
    for split, fit in zip(splits, fit_ridge_folds(ds, splits, **options), strict=True):
        train, validation, _ = split.apply(ds)
        alone = fit_ridge(train, validation, **options)
        scale = float(alone.weight.abs().max())
        torch.testing.assert_close(fit.weight, alone.weight, rtol=0, atol=1e-10 * scale)
        torch.testing.assert_close(fit.bias, alone.bias, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(fit.lambdas, alone.lambdas, rtol=1e-12, atol=0)
        torch.testing.assert_close(fit.grid, alone.grid, rtol=1e-12, atol=0)
        for name, values in alone.scores.items():
            torch.testing.assert_close(fit.scores[name], values, rtol=0, atol=1e-10, equal_nan=True)
        assert fit.unvalidated == alone.unvalidated
        assert fit.forms == alone.forms
        assert fit.model.fitted_on == alone.model.fitted_on
        assert fit.facts() == alone.facts() or "lambdas" not in options
        rates, expected = fit.model.predict(validation), alone.model.predict(validation)
        for one, other in zip(rates, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("inner", [2, "leave-one-clip-out"])
@pytest.mark.parametrize(
    ("options", "lags", "skip"),
    [
        ({"n_lags": LAGS}, range(LAGS), 0),
        ({"n_lags": LAGS, "standardize": False, "warmup_ms": 20.0}, range(LAGS), 4),
        ({"lags_ms": (-20, 30)}, range(-4, 7), 0),
        ({"n_lags": 50}, range(50), 0),
    ],
)
def test_nested_choice_is_that_of_loops(kit, holes, inner, options, lags, skip):
    ds = with_holes(kit) if holes else kit.spectrogram_recording(kit.RAGGED)
    splits = leave_one_clip_out(ds, n_val=1)[:2]
    standardize = options.get("standardize", True)
    for split, fit in zip(
        splits, fit_ridge_folds(ds, splits, inner=inner, lambdas=GRID, **options), strict=True
    ):
        clips = sorted((*split.train, *split.val))
        view = ds.select(clips=clips)
        parts = k_fold(view, inner, n_val=0) if inner == 2 else leave_one_clip_out(view, n_val=0)
        for place, lam in enumerate(GRID):
            predicted = {}
            for part in parts:
                for neuron in range(4):
                    w, b, stims = solved(view, part.train, neuron, lam, lags, standardize, skip)
                    for clip in part.test:
                        rates = predicted.setdefault(clip, np.zeros((4, stims[clip].shape[1])))
                        rates[neuron] = explicit(stims[clip], lags) @ w + b
            scores = pooled_scores(
                view, [predicted[clip] for clip in sorted(predicted)], sorted(predicted), skip
            )
            for name, values in scores.items():
                np.testing.assert_allclose(fit.scores[name][place], values, atol=1e-9, err_msg=name)
        best = torch.where(fit.scores["cc_norm"].isnan().all(0), fit.scores["cc"], fit.scores["cc_norm"])
        for neuron, place in enumerate(best.nan_to_num(nan=-9.0).argmax(0).tolist()):
            scored = not bool(best[:, neuron].isnan().all())
            assert float(fit.lambdas[neuron]) == (GRID[place] if scored else fit.shared_lambda)
        for neuron in range(4):
            w, b, _ = solved(
                view, range(len(view)), neuron, float(fit.lambdas[neuron]), lags, standardize, skip
            )
            np.testing.assert_allclose(fit.weight[neuron].flatten(), w, atol=1e-8 * np.abs(w).max(), rtol=0)
            assert fit.bias[neuron].item() == pytest.approx(b, rel=1e-8, abs=1e-9)


def test_default_penalties_are_those_of_each_inner_fit(kit):
    ds = kit.spectrogram_recording(kit.RAGGED)
    split = index_split(ds, [0, 1, 2, 3], [], [4, 5])
    (fit,) = fit_ridge_folds(ds, [split], inner="leave-one-clip-out", n_lags=LAGS)
    view = ds.select(clips=[0, 1, 2, 3])
    predicted = []
    for part in leave_one_clip_out(view, n_val=0):
        train, _, test = part.apply(view)
        grid = fit_ridge(train, test, n_lags=LAGS).grid
        alone = fit_ridge(train, n_lags=LAGS, lambdas=float(grid[5]))
        predicted.append(alone.model.predict(test)[0].double().numpy())
    scores = pooled_scores(view, predicted, range(4))
    np.testing.assert_allclose(fit.scores["cc"][5], scores["cc"], atol=1e-5)
    expected = fit_ridge(view, ds.select(clips=[4]), n_lags=LAGS).grid
    torch.testing.assert_close(fit.grid, expected, rtol=1e-12, atol=0)


def test_folds_agree_with_scikit_learn(kit):
    linear_model = pytest.importorskip("sklearn.linear_model", reason="scikit-learn is a development extra")
    ds = kit.spectrogram_recording(kit.RAGGED)
    splits = leave_one_clip_out(ds, n_val=0)
    for split, fit in zip(splits, fit_ridge_folds(ds, splits, n_lags=LAGS, lambdas=7.0), strict=True):
        stims = zscored(ds, split.train)
        x = np.concatenate([explicit(stims[clip], range(LAGS)) for clip in split.train])
        y = np.concatenate([psth(ds, clip).T for clip in split.train])
        theirs = linear_model.Ridge(alpha=7.0, solver="svd").fit(x, y)
        scale = np.abs(theirs.coef_).max()
        np.testing.assert_allclose(fit.weight.flatten(1), theirs.coef_, atol=1e-8 * scale, rtol=0)
        np.testing.assert_allclose(fit.bias, theirs.intercept_, rtol=1e-8)


def test_folds_agree_with_mtrfpy(kit):
    model = pytest.importorskip("mtrf.model", reason="mTRFpy is a development extra")
    ds = kit.spectrogram_recording(kit.RAGGED)
    fs, r = 1000.0 / ds.dt, 0.002
    splits = leave_one_clip_out(ds, n_val=0)
    for split in splits:
        # theirs is the mean of Gram matrices over trials, times the sampling step
        lam = r * fs * len(split.train)
        (fit,) = fit_ridge_folds(ds, [split], lags_ms=(-10, 15), lambdas=lam, standardize=False)
        stims = [np.asarray(ds.stims[clip][0].T, dtype=np.float64) for clip in split.train]
        theirs = model.TRF(direction=1)
        theirs.train(stims, [psth(ds, clip).T for clip in split.train], fs, -0.010, 0.015, r)
        weights = theirs.weights.transpose(2, 0, 1)[..., ::-1] / fs
        scale = np.abs(weights).max()
        np.testing.assert_allclose(fit.weight[:, 0], weights, atol=1e-8 * scale, rtol=0)
        np.testing.assert_allclose(fit.bias, theirs.bias.reshape(-1) / fs, rtol=1e-8)


def test_front_ends_features_single_neurons_and_double_precision(kit):
    sounds = kit.waveform_recording(kit.RAGGED)
    splits = k_fold(sounds, 3)
    front_end = kit.PowerBands()
    fits = fit_ridge_folds(sounds, splits, wav2spec=front_end, n_lags=3, lambdas=GRID)
    train, validation, test = splits[1].apply(sounds)
    alone = fit_ridge(train, validation, wav2spec=kit.PowerBands(), n_lags=3, lambdas=GRID)
    torch.testing.assert_close(fits[1].weight, alone.weight, rtol=1e-9, atol=1e-12)
    assert fits[1].model.predict(test)[0].shape[0] == 4
    torch.testing.assert_close(fits[1].model.band_std, alone.model.band_std)
    one = kit.spectrogram_recording().select(neurons=[2])
    (fit,) = fit_ridge_folds(one, [index_split(one, [0, 1, 2], [], [3])], inner=3, n_lags=LAGS)
    assert fit.weight.shape == (1, 1, kit.BANDS, LAGS)
    assert fit.weight.dtype == torch.float64


def test_banded_folds_are_the_closed_form_of_the_rescaled_problem():
    rng = np.random.default_rng(0)
    stims = [{"bands": rng.normal(size=(3, t)), "onsets": rng.normal(size=(1, t))} for t in (60, 50, 70, 40)]
    responses = [rng.normal(size=(2, 3, stim["bands"].shape[1])) for stim in stims]
    responses[1][1, :, 5:9] = np.nan  # another group of neurons
    ds = AudioNeuralDataset.from_arrays(
        stims, responses, dt_ms=5.0, response_kind="trace", check_alignment=False
    )
    splits = leave_one_clip_out(ds, n_val=0)
    grid = {"bands": [1.0, 50.0], "onsets": [3.0, 400.0]}
    fits = fit_ridge_folds(ds, splits, inner="leave-one-clip-out", n_lags=3, lambdas=grid)
    for split, fit in zip(splits, fits, strict=True):
        train = split.train
        for neuron in range(2):
            chosen = [float(fit.feature_lambdas[name][neuron]) for name in grid]
            assert chosen[0] in grid["bands"] and chosen[1] in grid["onsets"]  # noqa: PT018
            root = np.sqrt(np.array([chosen[0]] * 3 + [chosen[1]]))
            z, x, y = zscored(ds, train), [], []
            for clip in train:
                target = psth(ds, clip)[neuron]
                keep = ~np.isnan(target)
                x.append(explicit(z[clip] / root[:, None], range(3))[keep])
                y.append(target[keep])
            x, y = np.concatenate(x), np.concatenate(y)
            xc = x - x.mean(0)
            w = np.linalg.solve(xc.T @ xc + np.eye(12), xc.T @ (y - y.mean())).reshape(4, 3) / root[:, None]
            np.testing.assert_allclose(fit.weight[neuron, 0], w, atol=1e-9 * np.abs(w).max(), rtol=0)
    (wide,) = fit_ridge_folds(ds, splits[:1], inner=3, n_lags=3, banded=True)
    assert wide.scores["cc"].shape == (13 * 12, 2)


def test_very_long_clips_in_pieces_count_as_whole(kit, monkeypatch):
    ds = kit.spectrogram_recording((300, 200, 250, 220))
    splits = leave_one_clip_out(ds, n_val=0)
    options = {"inner": 3, "n_lags": LAGS, "lambdas": GRID, "score": "cc"}
    whole = fit_ridge_folds(ds, splits, **options)
    length = ds.stims[0].shape[-1]

    def in_pieces(self, clip):
        n_bins = self.stims[clip].shape[-1]
        return [(0, 90), (90, 200), (200, n_bins)] if n_bins == length else [(0, n_bins)]

    monkeypatch.setattr(type(ds), "pieces", in_pieces)
    for one, other in zip(whole, fit_ridge_folds(ds, splits, **options), strict=True):
        torch.testing.assert_close(one.scores["cc"], other.scores["cc"], rtol=0, atol=1e-9)
        torch.testing.assert_close(one.weight, other.weight, rtol=1e-9, atol=1e-12)


def test_mistakes(kit):
    ds = kit.spectrogram_recording()
    splits = leave_one_clip_out(ds, n_val=0)
    with pytest.raises(ValueError, match="without validation clips nothing can choose"):
        fit_ridge_folds(ds, splits, n_lags=LAGS)
    with pytest.raises(TypeError, match="fit_ridge_folds has no option 'penalty'"):
        fit_ridge_folds(ds, splits, penalty=[1.0])
    with pytest.raises(TypeError, match=r"inner must be a number of folds.*got 'loo'"):
        fit_ridge_folds(ds, splits, inner="loo")
    with pytest.raises(ValueError, match="k=7 folds need at least"):
        fit_ridge_folds(ds, splits, inner=7)
    with pytest.raises(TypeError, match="splits must hold ClipSplits, got int"):
        fit_ridge_folds(ds, [3])
    with pytest.raises(ValueError, match="made for other sounds"):
        fit_ridge_folds(kit.spectrogram_recording(seed=4), splits, inner=2)
    with pytest.raises(ValueError, match=r"no neuron has responses to fit.*warmup_ms=1e"):
        fit_ridge_folds(ds, splits, inner=2, n_lags=LAGS, warmup_ms=1e7)
    assert fit_ridge_folds(ds, []) == []


# ------------------------------ what it is made of


@pytest.mark.parametrize("size", [1, 2, 3, 130, 300])
def test_shifted_systems(size):
    generator = torch.Generator().manual_seed(size)
    x = torch.randn(2 * size, size, dtype=torch.float64, generator=generator)
    gram, rows = x.T @ x, torch.randn(300, size, dtype=torch.float64, generator=generator)
    systems = ShiftedSystems(gram.clone())
    rotated = systems.rotate(rows)
    torch.testing.assert_close(rotated.norm(dim=1), rows.norm(dim=1))
    for shift in (1e-3, 10.0):
        found = systems.rotate_back(systems.solve(rotated, shift).clone())
        expected = torch.linalg.solve(gram + shift * torch.eye(size, dtype=torch.float64), rows.T).T
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(systems.rotate_back(systems.multiply(rotated)), rows @ gram)


def test_systems_of_a_singular_matrix():
    x = torch.randn(5, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = torch.randn(3, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) @ x
    systems = ShiftedSystems(x.T @ x)
    found = systems.rotate_back(systems.solve(systems.rotate(rows), 1e-9).clone())
    torch.testing.assert_close(found @ x.T @ x, rows, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lags", [range(1), range(5), range(-3, 4), range(2, 6), range(-6, -2), range(40)])
@pytest.mark.parametrize("lengths", [(60, 45), (3, 7, 1, 5), (200,)])
def test_quadratic_form_is_the_sum_of_squared_predictions(kit, lags, lengths):
    ds = kit.spectrogram_recording(lengths)
    clips = ClipFeatures(Linear(kit.BANDS, len(lags), 4), ds, 0.0, lags)
    generator = torch.Generator().manual_seed(0)
    weights = torch.randn(5, len(lags) * kit.BANDS, dtype=torch.float64, generator=generator)
    masks = {clip: torch.rand(length, generator=generator) > 0.2 for clip, length in enumerate(lengths)}
    masks[0] = None
    rows = []
    for clip, mask in masks.items():
        design = lagged_rows(clips.features(clip), torch.arange(lengths[clip]), lags)
        rows.append(design if mask is None else design[mask])
    design = torch.cat(rows)
    form = QuadraticForm(clips, masks, lags, 2**20)
    torch.testing.assert_close(form(weights), (weights @ design.T).square().sum(1))
    torch.testing.assert_close(form.columns, design.sum(0))


def test_neurons_that_lack_a_few_bins_share_one_form(kit, monkeypatch):
    whole = kit.spectrogram_recording((200, 160, 180), neurons=6)
    rng, responses = np.random.default_rng(0), []
    for clip in range(3):
        block = np.stack([np.asarray(r, dtype=np.float64) for r in whole.responses[clip]])
        for neuron in range(1, 6):
            block[neuron, :, rng.integers(0, block.shape[2], 1)] = np.nan
        responses.append(block)
    responses[2][5, :, 3:] = np.nan  # hardly anything of a clip
    stims = [np.asarray(stim) for stim in whole.stims]
    ds = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0, check_alignment=False)
    formed = []
    monkeypatch.setattr(
        solution, "lagged_gram", lambda *args, **options: (formed.append(1), lagged_gram(*args, **options))[1]
    )
    fit = fit_ridge(ds, n_lags=10, lambdas=0.5)
    assert len(formed) == 2  # one for the clips that five neurons heard, one for the sixth
    for neuron in range(6):
        w, b, _ = solved(ds, range(3), neuron, 0.5, range(10))
        np.testing.assert_allclose(fit.weight[neuron].flatten(), w, atol=1e-9 * np.abs(w).max(), rtol=0)
        assert fit.bias[neuron].item() == pytest.approx(b, rel=1e-9)


def test_a_shared_form_that_rounding_would_spoil_is_not_used(kit):
    whole = kit.spectrogram_recording((200, 160), neurons=3)
    stims = [np.asarray(stim[0]).astype(np.float64) for stim in whole.stims]
    responses = [np.stack([np.asarray(r, dtype=np.float64) for r in whole.responses[c]]) for c in range(2)]
    stims[0][:, 50] = 1e9  # a bin that drowns everything, missing in two neurons
    for neuron, at in ((0, 50), (1, 49)):
        responses[0][neuron, :, at : at + 12] = np.nan
    ds = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0, check_alignment=False)
    clips = ClipFeatures(Linear(kit.BANDS, 10, 3), ds, 0.0, range(10))
    problem = Problem(clips, group_neurons(clips), range(10), 2**28)
    fit = fit_ridge(ds, n_lags=10, lambdas=1.0, standardize=False)
    w, _, _ = solved(ds, range(2), 0, 1.0, range(10), standardize=False)
    np.testing.assert_allclose(fit.weight[0].flatten(), w, atol=1e-6 * np.abs(w).max(), rtol=0)
    assert len(problem.groups) == 3


@pytest.mark.parametrize("repeats", [1, 5])
def test_constant_predictions_and_silent_neurons_have_no_score(kit, repeats):
    ds = kit.spectrogram_recording(repeats=repeats)
    stims = [np.zeros_like(np.asarray(stim[0])) for stim in ds.stims]
    responses = [np.stack([np.asarray(r) for r in ds.responses[clip]]) for clip in range(len(ds))]
    flat = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0, check_alignment=False)
    train = flat.select(clips=[0, 1])
    fit = fit_ridge(train, ds.select(clips=[2, 3]), n_lags=2, lambdas=[1.0, 2.0], standardize=False)
    assert fit.scores["cc"].isnan().all()
    assert len(fit.unvalidated) == 4


def test_an_identity_prefilter_shares_sums(kit):
    ds = kit.spectrogram_recording()
    splits = k_fold(ds, 3)
    plain = fit_ridge_folds(ds, splits, n_lags=2, lambdas=GRID)
    same = fit_ridge_folds(ds, splits, n_lags=2, lambdas=GRID, prefiltering=nn.Identity())
    torch.testing.assert_close(plain[0].weight, same[0].weight, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("lags", [(-3, 4), (5, 12), (-9, -2), (0, 300)])
@pytest.mark.parametrize("length", [3, 255, 600])
def test_columns_of_any_lags_are_the_design_matrix(lags, length):
    features = torch.rand(4, length, dtype=torch.float64)
    for first, last in ((0, length), (length // 3, length - 1)):
        expected = lagged_rows(features, torch.arange(first, last), range(*lags)).T
        assert torch.equal(lagged_columns(features, first, last, range(*lags)), expected)


@pytest.mark.parametrize("lam", [1e-30, 2.0])
def test_one_penalty_is_the_closed_form(kit, lam):
    ds = kit.spectrogram_recording()
    alone = fit_ridge(ds, n_lags=6, lambdas=lam)
    largest = alone.weight.abs().max()
    w, b, _ = solved(ds, range(len(ds)), 1, lam, range(6))
    np.testing.assert_allclose(alone.weight[1].flatten(), w, atol=1e-8 * largest, rtol=0)
    assert alone.bias[1].item() == pytest.approx(b, rel=1e-8)
