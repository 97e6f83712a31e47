"""Thousands of single-neuron fits together against one `Fitter` each: `python benchmarks/bench_many.py`.

1,000 simulated neurons, Linear with one output each, clips one at a time, early stopping per neuron. `fit_many` fits all
of them; of the separate fits a few, spread over the population, stand for all, timed in the same process before and after
it. Both sides do the same work: the same steps, losses, cc and cc_norm of training and validation every epoch, best
weights. Seconds are processor seconds where the machine is shared (--threads 1), else wall-clock seconds.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import sys
import time

import torch

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, fit_many, make_loaders, seeded

BUDGET_RATIO, TOLERANCE, SEED = 20.0, 1e-5, 0
N_CLIPS, N_TRAIN = 17, 14


def now() -> tuple[float, float]:
    """Wall-clock and processor seconds."""
    return time.perf_counter(), time.process_time()


def since(start: tuple[float, float]) -> tuple[float, float]:
    end = now()
    return end[0] - start[0], end[1] - start[1]


def separate(train, val, neuron: int, arguments) -> tuple[Fitter, tuple[float, float]]:
    """One neuron's own fit, with all that it needs."""
    start = now()
    with seeded(SEED):
        model = Linear(train.F, 9, 1)
        views = train.select(neurons=[neuron]), val.select(neurons=[neuron])
        fitter = Fitter(model, *make_loaders(*views, seed=SEED), progress=False, **arguments)
        fitter.fit()
    return fitter, since(start)


def differences(fits, neuron: int, fitter: Fitter) -> tuple[float, float]:
    """Largest difference of cc and cc_norm, of both passes: in the best epoch, and in any."""
    found = []
    for own, ours in zip(fitter.history, fits.histories[neuron], strict=True):
        found.append(max(float((own[key] - ours[key]).abs().max()) for key in own if "cc" in key))
    return found[fitter.best_epoch], max(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--neurons", type=int, default=1000)
    parser.add_argument("--separate", type=int, default=20, help="separate fits that stand for all")
    parser.add_argument("--epochs", type=int, default=20, help="most epochs")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (0 leaves them)")
    parser.add_argument("--chunk", type=int, default=None, help="models at a time")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, load {os.getloadavg()[0]:.1f}")
    ds = SyntheticDataset(n_neurons=chosen.neurons, n_clips=N_CLIPS, n_repeats=10)
    train, val = ds.select(clips=range(N_TRAIN)), ds.select(clips=range(N_TRAIN, N_CLIPS))
    arguments = {"max_epochs": chosen.epochs, "patience": 5}
    which = [round(i * chosen.neurons / chosen.separate) for i in range(chosen.separate)]
    separate(train, val, 0, {**arguments, "max_epochs": 2})  # imports
    half = len(which) // 2
    alone = {neuron: separate(train, val, neuron, arguments) for neuron in which[:half]}
    start = now()
    fits = fit_many(
        lambda seed: Linear(ds.F, 9, 1),
        train,
        val,
        seeds=SEED,
        fitter_kwargs=arguments,
        chunk_size=chosen.chunk,
    )
    together = since(start)
    alone |= {neuron: separate(train, val, neuron, arguments) for neuron in which[half:]}
    each = [statistics.median(times[side] for _, times in alone.values()) for side in (0, 1)]
    total = [chosen.neurons * seconds for seconds in each]
    print(f"{chosen.neurons} neurons x {N_CLIPS} clips of {ds.n_bins(0)} bins, {ds.F} bands, 9 frames")
    print(f"  one Fitter (median of {len(alone)})     {each[0]:8.2f} s wall {each[1]:8.2f} s processor")
    print(f"  {chosen.neurons} of them, extrapolated    {total[0]:8.1f} s wall {total[1]:8.1f} s processor")
    print(f"  fit_many                     {together[0]:8.1f} s wall {together[1]:8.1f} s processor")
    ratio = total[0] / together[0], total[1] / together[1]
    print(f"  ratio {ratio[0]:.1f}x wall, {ratio[1]:.1f}x processor; budget {BUDGET_RATIO:.0f}x")
    same = all(int(fits.best_epochs[n]) == fitter.best_epoch for n, (fitter, _) in alone.items())
    found = [differences(fits, neuron, fitter) for neuron, (fitter, _) in alone.items()]
    worst, anywhere = (max(column) for column in zip(*found, strict=True))
    print(
        f"  best epochs {'equal' if same else 'NOT EQUAL'}; there cc and cc_norm differ by at most {worst:.1e} "
        f"({anywhere:.1e} in any epoch)"
    )
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, kibibytes elsewhere
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit:.2f} GiB")
    return 0 if same and worst <= TOLERANCE and ratio[1] >= BUDGET_RATIO else 1


if __name__ == "__main__":
    sys.exit(main())
