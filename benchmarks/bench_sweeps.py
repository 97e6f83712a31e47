"""Sweeps whose seeds are trained together, against separate fits: `python benchmarks/bench_sweeps.py`.

Two learning rates of a small network with so many seeds on simulated neurons, 30 epochs, run folders and all, on one
process and one thread: `run_sweep` as it is, and with together=False. Both are run twice, in turn; medians.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time

import torch

from deepSTRF.experiments import Sweep, SweepResults, run_sweep

MODELS = ("linear", "linear_nonlinear", "nrf", "dnet")
DATA = {"n_clips": 12, "n_repeats": 6, "clip_seconds": 2.0}


def timed(sweep: Sweep, together: bool) -> tuple[float, SweepResults]:
    """Seconds of a sweep in a new folder, and its results."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        results = run_sweep(sweep, folder, together=together, progress=False)
        return time.perf_counter() - start, results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, nargs="+", default=[1, 20, 64])
    parser.add_argument("--seeds", type=int, nargs="+", default=[2, 5, 8])
    parser.add_argument("--models", nargs="+", default=["linear"], choices=MODELS)
    parser.add_argument("--repeats", type=int, default=2)
    chosen = parser.parse_args()
    print(f"torch {torch.__version__}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    print("model              neurons  seeds   apart  together  ratio  largest difference of a mean score")
    for model in chosen.models:
        for n_neurons in chosen.neurons:
            base = {
                "dataset_options": {"n_neurons": n_neurons, **DATA},
                "split": "8/2/2",
                "model": model,
                "epochs": 30,
            }
            timed(Sweep({**base, "epochs": 1}, {"seeds": [0, 1]}), True)  # imports
            for n_seeds in chosen.seeds:
                sweep = Sweep(base, {"learning_rate": [1e-3, 3e-3], "seeds": list(range(n_seeds))})
                runs = [(timed(sweep, False), timed(sweep, True)) for _ in range(chosen.repeats)]
                apart, together = (statistics.median(pair[side][0] for pair in runs) for side in (0, 1))
                fits = zip(runs[0][0][1].fits, runs[0][1][1].fits, strict=True)
                worst = max(abs(one.validation - other.validation) for one, other in fits)
                print(
                    f"{model:18s} {n_neurons:7d} {n_seeds:6d} {apart:7.2f} {together:9.2f} "
                    f"{together / apart:6.2f}  {worst:.1e}"
                )


if __name__ == "__main__":
    main()
