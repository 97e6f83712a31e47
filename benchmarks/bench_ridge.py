"""Time and score ridge STRFs on NS1 for several windows: `python benchmarks/bench_ridge.py [--lags 9 15 25 40]`.

Clips are split 14/3/3. Twelve penalties are tried, one is chosen per neuron on the three validation clips, and
the three test clips are scored once. Timed is the whole fit: responses, features, Gram matrix, decomposition, all
penalties and their validation scores; loading the recording is not. The yardstick solves the normal equations of an
explicit design matrix once per penalty, without any validation, and its weights are compared with ours. Needs
NS1: set DEEPSTRF_DATA_DIR.

`--growth` measures other sizes instead, on noise, each beside numpy as somebody writes it by hand who knows the
field (explicit design, one eigendecomposition or Cholesky factors, all penalties, predictions and correlations as
matrix products), each side in a process of its own. `--nested` times nested leave-one-clip-out on NS1.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import torch

from bench_growth import measured
from deepSTRF.baselines import RidgeFit, fit_ridge, fit_ridge_folds
from deepSTRF.crossval import score_intervals
from deepSTRF.datasets import leave_one_clip_out
from deepSTRF.datasets.audio import AudioNeuralDataset, NS1Dataset
from deepSTRF.datasets.splits import parse_split
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.training import score_model

#: Adaptation of the midbrain to the mean level: no parameters.
ADAPTATION = {"prefiltering": "icadaptation", "dt": 5.0, "min_freq": 500, "max_freq": 22627}
#: Name: (title, whether it starts from the sound, prefilter).
ARMS = {
    "spectrogram": ("The recording's own spectrogram", False, None),
    "mel": ("Mel front-end on the sounds", True, None),
    "adaptation": ("The recording's own spectrogram through ICAdaptation", False, ADAPTATION),
}


def textbook_seconds(fit: RidgeFit, train: NS1Dataset, n_lags: int) -> float:
    """Seconds of the plain way: the whole design, and one system of equations per penalty."""
    begin = time.perf_counter()
    rows, targets = [], []
    for clip, stim in enumerate(train.stims):
        with torch.no_grad():
            model = fit.model
            spectrogram = model.spectrogram(stim[None])
            if isinstance(model.prefiltering, torch.nn.Identity):  # standardised in double precision
                mean, std = (values[:, None] for values in model.standardizer.measured_moments())
                features = (spectrogram.double() - mean) / std
            else:
                features = model.prefiltering(model.standardizer(spectrogram))
            bands = features[0].flatten(0, 1).double().numpy()
        padded = np.pad(bands, ((0, 0), (n_lags - 1, 0)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, n_lags, axis=1)  # (F, T, L)
        rows.append(windows.transpose(1, 0, 2).reshape(bands.shape[1], -1))
        targets.append(train.response_block(clip).double().mean(1).T.numpy())
    x, y = np.concatenate(rows), np.concatenate(targets)
    x -= x.mean(0)
    y -= y.mean(0)
    gram, xy = x.T @ x, x.T @ y
    every = [np.linalg.solve(gram + lam * np.eye(len(gram)), xy) for lam in fit.grid.tolist()]
    seconds = time.perf_counter() - begin
    chosen = np.searchsorted(fit.grid.numpy(), fit.lambdas.numpy())
    expected = np.stack([every[index][:, neuron] for neuron, index in enumerate(chosen)])
    np.testing.assert_allclose(fit.weight.flatten(1).numpy(), expected, atol=1e-8 * np.abs(expected).max())
    return seconds


def bench(arm: str, arguments: argparse.Namespace) -> None:
    """Print the table of one arm."""
    title, hears_sound, prefilter = ARMS[arm]
    ds = NS1Dataset(return_waveform=hears_sound)
    options = {"prefiltering": prefilter}
    if hears_sound:
        options["wav2spec"] = make_wav2spec("mel", audio_fs=ds.audio_fs, dt_ms=ds.dt, n_filters=34)
    train, validation, test = parse_split(ds, "14/3/3").apply(ds)
    print(f"\n{title}, {ds.N_neurons} neurons")
    print("  lags     ms   validation    test   (one penalty for all)   fit     processor   explicit design")
    for n_lags in arguments.lags:
        wall, cpu = [], []
        for _ in range(arguments.rounds):
            begin = time.process_time()
            fit = fit_ridge(train, validation, n_lags=n_lags, **options)
            cpu.append(time.process_time() - begin)
            wall.append(fit.seconds)
        plain = textbook_seconds(fit, train, n_lags)
        shared = fit_ridge(train, n_lags=n_lags, lambdas=fit.shared_lambda, **options)
        found, best = (
            score_model(fit.model, view, n_bootstrap=0).mean("cc_norm") for view in (test, validation)
        )
        common = score_model(shared.model, test, n_bootstrap=0).mean("cc_norm")
        print(
            f"  {n_lags:4d}  {n_lags * ds.dt:5.0f}   {best.mean:10.4f}  {found.mean:.4f}   {common.mean:19.4f}"
            f"   {np.median(wall):6.2f} s  {np.median(cpu):6.2f} s   {plain:8.2f} s",
            flush=True,
        )


# ---- Growth: beside numpy by hand


PENALTIES = np.logspace(2.0, 6.0, 12)
BANDS, BINS, WINDOW = 34, 1000, 40
#: Title: (neurons, clips, missing bins per neuron and clip, how it is fitted).
GROWTH = {
    "119 neurons, one split": (119, 17, 0, "split"),
    "5,000 neurons, one split": (5000, 17, 0, "split"),
    "24 neurons, each lacks other bins": (24, 17, 4, "split"),
    "119 neurons, nested, 8 clips": (119, 8, 0, "nested"),
    "119 neurons, 2 features, 13 ratios": (119, 17, 0, "banded"),
}


def noise(n_neurons: int, n_clips: int, n_missing: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Stimuli (F, T) and responses (N, T) of linear neurons with noise."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(n_neurons, BANDS))
    stims, responses = [], []
    for _ in range(n_clips):
        stim = np.cumsum(rng.normal(size=(BANDS, BINS)), axis=1) * 0.1 + rng.normal(size=(BANDS, BINS))
        drive = weights @ np.roll(stim, 3, axis=1) * 0.1 + rng.normal(size=(n_neurons, BINS))
        for neuron in range(n_neurons if n_missing else 0):
            drive[neuron, rng.integers(0, BINS, n_missing)] = np.nan
        stims.append(stim.astype(np.float32))
        responses.append(drive.astype(np.float32))
    return stims, responses


def design(stim: np.ndarray) -> np.ndarray:
    """Rows (T, F L), newest lag last."""
    padded = np.pad(stim.astype(np.float64), ((0, 0), (WINDOW - 1, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, WINDOW, axis=1)
    return windows.transpose(1, 0, 2).reshape(BINS, -1)


def correlations(found: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Correlation of each column."""
    found, truth = found - found.mean(0), truth - truth.mean(0)
    return (found * truth).sum(0) / np.sqrt((found**2).sum(0) * (truth**2).sum(0))


def split_by_hand(stims: list[np.ndarray], responses: list[np.ndarray]) -> np.ndarray:
    """Weights (N, P) chosen on the last three clips: one eigendecomposition, or factors where bins differ."""
    x, y = np.concatenate([design(s) for s in stims[:-3]]), np.concatenate(responses[:-3], axis=1).T
    heard, truth = np.concatenate([design(s) for s in stims[-3:]]), np.concatenate(responses[-3:], axis=1).T
    if np.isnan(y).any():
        return holes_by_hand(x, y, heard, truth)
    mean, middle = x.mean(0), y.mean(0)
    x -= mean
    sizes, vectors = np.linalg.eigh(x.T @ x)
    rotated = vectors.T @ (x.T @ (y - middle))
    del x
    scores = np.stack(
        [correlations(heard @ (vectors @ (rotated / (sizes + lam)[:, None])), truth) for lam in PENALTIES]
    )
    return (vectors @ (rotated / (sizes[:, None] + PENALTIES[scores.argmax(0)]))).T


def holes_by_hand(x: np.ndarray, y: np.ndarray, heard: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Weights (N, P): the common Gram matrix less the missing rows, and Cholesky factors per neuron."""
    from scipy.linalg import cho_factor, cho_solve

    gram, total, found = x.T @ x, x.sum(0), []
    for neuron in range(y.shape[1]):
        keep, valid = ~np.isnan(y[:, neuron]), ~np.isnan(truth[:, neuron])
        missing, target = x[~keep], y[keep, neuron]
        mean = (total - missing.sum(0)) / keep.sum()
        own = gram - missing.T @ missing - keep.sum() * np.outer(mean, mean)
        product = x[keep].T @ (target - target.mean())
        weights = np.stack(
            [cho_solve(cho_factor(own + lam * np.eye(len(own))), product) for lam in PENALTIES], axis=1
        )
        scores = correlations(heard[valid] @ weights, np.repeat(truth[valid, neuron][:, None], 12, axis=1))
        found.append(weights[:, scores.argmax()])
    return np.stack(found)


def nested_by_hand(stims: list[np.ndarray], responses: list[np.ndarray]) -> np.ndarray:
    """Weights (clips, N, P) of leave-one-clip-out: sums per clip, one eigendecomposition per pair left out."""
    ones = np.ones((BINS, 1))
    rows = [np.hstack([design(s), ones]) for s in stims]
    grams = [x.T @ x for x in rows]
    products = [x.T @ r.T for x, r in zip(rows, responses, strict=True)]
    gram, product, clips = sum(grams), sum(products), range(len(stims))

    def solved(left_out: tuple[int, ...]) -> Callable[[float], np.ndarray]:
        g = gram - sum(grams[clip] for clip in left_out)
        c = product - sum(products[clip] for clip in left_out)
        n, mean, middle = g[-1, -1], g[-1, :-1] / g[-1, -1], c[-1] / g[-1, -1]
        sizes, vectors = np.linalg.eigh(g[:-1, :-1] - n * np.outer(mean, mean))
        rotated = vectors.T @ (c[:-1] - n * np.outer(mean, middle))

        def weights(lam: float) -> np.ndarray:
            w = vectors @ (rotated / (sizes + lam)[:, None])
            return np.vstack([w, middle - mean @ w])

        return weights

    predicted = {}
    for first in clips:
        for second in range(first + 1, len(stims)):
            weights = solved((first, second))
            every = [weights(lam) for lam in PENALTIES]
            for outer, heard in ((first, second), (second, first)):
                predicted[outer, heard] = [rows[heard] @ w for w in every]
    found = []
    for outer in clips:
        others = [clip for clip in clips if clip != outer]
        truth = np.concatenate([responses[clip].T for clip in others])
        scores = np.stack(
            [
                correlations(np.concatenate([predicted[outer, clip][k] for clip in others]), truth)
                for k in range(len(PENALTIES))
            ]
        )
        weights = solved((outer,))
        chosen = scores.argmax(0)
        final = np.empty((len(gram) - 1, truth.shape[1]))
        for k in np.unique(chosen):
            final[:, chosen == k] = weights(PENALTIES[k])[:-1][:, chosen == k]
        found.append(final.T)
    return np.stack(found)


def banded_by_hand(stims: list[np.ndarray], responses: list[np.ndarray]) -> np.ndarray:
    """Weights (N, P) of the best of 13 ratios of penalties: the Gram matrix rescaled for each."""
    x, y = np.concatenate([design(s) for s in stims[:-3]]), np.concatenate(responses[:-3], axis=1).T
    heard, truth = np.concatenate([design(s) for s in stims[-3:]]), np.concatenate(responses[-3:], axis=1).T
    x -= x.mean(0)
    gram, product = x.T @ x, x.T @ (y - y.mean(0))
    del x
    best, found = np.full(y.shape[1], -np.inf), np.empty((y.shape[1], len(gram)))
    for half in np.linspace(-1.5, 1.5, 13):
        root = np.repeat(
            np.where(np.arange(BANDS) < BANDS // 2, 10.0 ** (half / 2), 10.0 ** (-half / 2)), WINDOW
        )
        sizes, vectors = np.linalg.eigh(gram * root * root[:, None])
        rotated = vectors.T @ (product * root[:, None])
        for lam in PENALTIES:
            weights = root[:, None] * (vectors @ (rotated / (sizes + lam)[:, None]))
            score = correlations(heard @ weights, truth)
            better = score > best
            best[better], found[better] = score[better], weights.T[better]
    return found


def side(title: str, by_hand: bool, threads: int) -> tuple[float, float, np.ndarray]:
    """Processor seconds, memory in GB above that of the data, and weights of one side."""
    torch.set_num_threads(threads)
    found: dict[str, float] = {}
    n_neurons, n_clips, n_missing, kind = GROWTH[title]
    stims, responses = noise(n_neurons, n_clips, n_missing)
    if by_hand:
        form = {"split": split_by_hand, "nested": nested_by_hand, "banded": banded_by_hand}[kind]
        with measured(found):
            weights = form(stims, responses)
    else:
        half = BANDS // 2
        named = [{"low": s[:half], "high": s[half:]} if kind == "banded" else s for s in stims]
        ds = AudioNeuralDataset.from_arrays(
            named, [r[:, None] for r in responses], dt_ms=5.0, response_kind="trace", check_alignment=False
        )
        del responses
        options = {"n_lags": WINDOW, "lambdas": PENALTIES.tolist(), "standardize": False, "score": "cc"}
        train, validation = ds.select(clips=range(n_clips - 3)), ds.select(clips=range(n_clips - 3, n_clips))
        with measured(found):
            if kind == "nested":
                splits = leave_one_clip_out(ds, n_val=0)
                fits = fit_ridge_folds(ds, splits, inner="leave-one-clip-out", **options)
                weights = np.stack([fit.weight.flatten(1).numpy() for fit in fits])
            else:
                fit = fit_ridge(train, validation, banded=kind == "banded", **options)
                weights = fit.weight.flatten(1).numpy()
    return found["seconds"], found["peak_mb"] / 1024, weights


def growth(titles: list[str], threads: int) -> None:
    """Print a line per size."""
    print("\n                                       fit_ridge            numpy by hand       weights")
    for title in titles:
        results = []
        for by_hand in (False, True):
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=context) as pool:
                results.append(pool.submit(side, title, by_hand, threads).result())
        (ours, our_gb, found), (theirs, their_gb, expected) = results
        difference = np.abs(found - expected).max() / np.abs(expected).max()
        print(
            f"  {title:36s} {ours:6.2f} s  {our_gb:5.2f} GB   {theirs:6.2f} s  {their_gb:5.2f} GB   differ by "
            f"{difference:.0e}   {theirs / ours:4.1f}x",
            flush=True,
        )


def nested() -> None:
    """Time nested leave-one-clip-out on NS1, and score it with intervals over clips."""
    ds = NS1Dataset()
    splits = leave_one_clip_out(ds, n_val=0)
    begin, wall = time.process_time(), time.perf_counter()
    fits = fit_ridge_folds(ds, splits, inner="leave-one-clip-out", n_lags=WINDOW)
    predictions: list[torch.Tensor] = [torch.empty(0)] * len(ds)
    for split, fit in zip(splits, fits, strict=True):
        for clip, rates in zip(split.test, fit.model.predict(ds.select(clips=split.test)), strict=True):
            predictions[clip] = rates
    score = score_intervals(predictions, ds)
    seconds = time.process_time() - begin, time.perf_counter() - wall
    print(
        f"\nNested leave-one-clip-out, {ds.N_neurons} neurons, {len(ds)} clips, {WINDOW} lags, 12 penalties"
    )
    print(f"  {seconds[1]:.1f} s, {seconds[0]:.1f} s of processors, with intervals over clips")
    print(score)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lags", type=int, nargs="+", default=[9, 15, 25, 40])
    parser.add_argument("--rounds", type=int, default=3, help="fits per window; the median is printed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="what ridge sees")
    parser.add_argument(
        "--growth", nargs="*", choices=list(GROWTH), metavar="SIZE",
        help=f"other sizes, beside numpy by hand (default: all): {'; '.join(GROWTH)}",
    )  # fmt: skip
    parser.add_argument("--nested", action="store_true", help="nested leave-one-clip-out on NS1")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.growth is not None:
        growth(arguments.growth or list(GROWTH), arguments.threads)
    if arguments.nested:
        nested()
    if arguments.growth is not None or arguments.nested:
        return
    print(f"NS1, {arguments.threads} threads; mean cc_norm over neurons, 34 bands")
    for arm in arguments.arms:
        bench(arm, arguments)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB")


if __name__ == "__main__":
    main()
