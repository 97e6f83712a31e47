"""Time and score ridge STRFs on NS1 for several windows: `python benchmarks/bench_ridge.py [--lags 9 15 25 40]`.

Clips are split 14/3/3. Twelve penalties are tried, one is chosen per neuron on the three validation clips, and
the three test clips are scored once. Timed is the whole fit: responses, features, Gram matrix, decomposition, all
penalties and their validation scores; loading the recording is not. The yardstick solves the normal equations of an
explicit design matrix once per penalty, without any validation, and its weights are compared with ours. Needs
NS1: set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch

from deepSTRF.baselines import RidgeFit, fit_ridge
from deepSTRF.datasets.audio import NS1Dataset
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
            features = model.prefiltering(model.standardizer(model.spectrogram(stim[None])))
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


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lags", type=int, nargs="+", default=[9, 15, 25, 40])
    parser.add_argument("--rounds", type=int, default=3, help="fits per window; the median is printed")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--arms", nargs="+", default=list(ARMS), choices=list(ARMS), help="what ridge sees")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"NS1, {arguments.threads} threads; mean cc_norm over neurons, 34 bands")
    for arm in arguments.arms:
        bench(arm, arguments)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GB")


if __name__ == "__main__":
    main()
