"""Time scores and ceilings of a large recording against hand-written NumPy run beside it.

    python benchmarks/bench_metrics.py                   # 1,000 neurons x 20 clips x 20 repeats x 1,000 bins
    python benchmarks/bench_metrics.py --neurons 119 --clips 3

What is timed. "The pass" is everything that reads the responses, once: PSTHs, signal and noise power, and
half-split ceilings with 126 splits, of every neuron and clip. "After the pass" is what a new set of
predictions costs: moments of 20 million predicted bins, then cc, cc_norm and ceilings of every neuron. Making
the data up is not timed; it is made clip by clip, so memory stays at one clip's responses. The yardstick is
what somebody writes who knows NumPy: sums and products of all neurons at once, clip by clip, half-split correlations from
the products of repeats, nothing for missing data. The textbook form, named as such, takes one neuron, one clip and one split at
a time; it is timed on a few neurons and scaled to all. The results of both are compared with ours.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from deepSTRF.metrics import ScoreTracker, mse_loss, normalized_corrcoef, poisson_loss
from deepSTRF.metrics.ceilings import RepeatGroups, SplitCeiling, half_splits

N_SPLITS = 126
NS1_SHAPE = (119, 20, 999)


class Clock:
    """Adds up wall time and processor time of named parts."""

    def __init__(self) -> None:
        self.wall: dict[str, float] = {}
        self.cpu: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        self.wall[name] = self.wall.get(name, 0.0) + time.perf_counter() - wall
        self.cpu[name] = self.cpu.get(name, 0.0) + time.process_time() - cpu

    def scale(self, name: str, factor: float) -> None:
        self.wall[name] *= factor
        self.cpu[name] *= factor

    def ratio(self, slow: str, fast: tuple[str, ...], text: str) -> None:
        """Print how much faster, by the clock and by processor time (which a busy machine distorts less)."""
        wall, cpu = sum(self.wall[name] for name in fast), sum(self.cpu[name] for name in fast)
        times = f"{self.wall[slow] / wall:.3g}x by the clock, {self.cpu[slow] / cpu:.3g}x by processor time"
        print(f"  {text:<58} {wall:8.2f} s, {times}")

    def line(self, name: str, text: str) -> None:
        print(f"  {text:<58} {self.wall[name]:8.2f} s  (processor {self.cpu[name]:.2f} s)")


def make_clip(arguments: argparse.Namespace, clip: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return spikes (N, R, T) drawn at a rate that follows the stimulus, and a mediocre prediction (N, T)."""
    generator = torch.Generator().manual_seed(clip)
    shape = (arguments.neurons, arguments.bins)
    rate = 0.05 + 0.3 * torch.rand(shape, generator=generator) ** 2
    size = (arguments.neurons, arguments.repeats, arguments.bins)
    spikes = (torch.rand(size, generator=generator) < rate.unsqueeze(1)).float()
    return spikes, rate + 0.1 * torch.rand(shape, generator=generator)


def loop_over_neurons(spikes: list[np.ndarray], preds: list[np.ndarray]) -> np.ndarray:
    """Textbook cc, cc_norm (concatenated clips) and half-split ceiling of each neuron, (N, 3)."""
    splits = half_splits(spikes[0].shape[1], N_SPLITS, 0)
    halves = [
        (np.flatnonzero(a), np.flatnonzero(b)) for a, b in zip(splits.first, splits.second, strict=True)
    ]
    scores = []
    for neuron in range(spikes[0].shape[0]):
        repeats = np.concatenate([clip[neuron] for clip in spikes], axis=1).astype(np.float64)
        pred = np.concatenate([clip[neuron] for clip in preds]).astype(np.float64)
        psth = repeats.mean(0)
        n_repeats = len(repeats)
        total = repeats.var(1, ddof=1).mean()
        signal = (n_repeats * psth.var(ddof=1) - total) / (n_repeats - 1)
        covariance = np.cov(pred, psth)
        ceilings = []
        for clip in spikes:
            values = clip[neuron].astype(np.float64)
            rho = np.mean([np.corrcoef(values[a].mean(0), values[b].mean(0))[0, 1] for a, b in halves])
            ceilings.append(np.sqrt(2 * rho / (1 + rho)))
        cc = covariance[0, 1] / np.sqrt(covariance[0, 0] * covariance[1, 1])
        scores.append((cc, covariance[0, 1] / np.sqrt(covariance[0, 0] * signal), np.mean(ceilings)))
    return np.array(scores)


class Sums:
    """What somebody writes for complete recordings: sums over clips, of all neurons at once."""

    def __init__(self, n_repeats: int) -> None:
        splits = half_splits(n_repeats, N_SPLITS, 0)
        self.first, self.second = np.asarray(splits.first, float), np.asarray(splits.second, float)
        self.n, self.psths, self.ceilings = 0, [], []
        self.repeat_sum = self.repeat_square = self.target_sum = self.target_square = 0.0

    def add(self, spikes: np.ndarray) -> None:
        """Mean response and what signal power needs, of a clip (N, R, T)."""
        psth = spikes.mean(1)
        self.psths.append(psth)
        self.n += psth.shape[1]
        self.repeat_sum += spikes.sum(2, dtype=float)
        self.repeat_square += np.einsum("nrt,nrt->nr", spikes, spikes)
        self.target_sum += psth.sum(1, dtype=float)
        self.target_square += np.einsum("nt,nt->n", psth, psth)

    def add_ceiling(self, spikes: np.ndarray) -> None:
        """Mean correlation of halves, from the products of repeats (N, R, R)."""
        centred = spikes - spikes.mean(2, keepdims=True)
        products = (centred @ centred.transpose(0, 2, 1)).astype(float)
        first, second = products @ self.first.T, products @ self.second.T
        across = np.einsum("sr,nrs->ns", self.first, second)
        within = np.einsum("sr,nrs->ns", self.first, first) * np.einsum("sr,nrs->ns", self.second, second)
        rho = (across / np.sqrt(within)).mean(1)
        self.ceilings.append(np.sqrt(2 * rho / (1 + rho)))

    def scores(self, preds: list[np.ndarray]) -> np.ndarray:
        """cc, cc_norm and ceiling, (N, 3)."""
        p_sum = p_square = product = 0.0
        for pred, psth in zip(preds, self.psths, strict=True):
            p_sum += pred.sum(1, dtype=float)
            p_square += np.einsum("nt,nt->n", pred, pred)
            product += np.einsum("nt,nt->n", pred, psth)
        n, n_repeats = self.n, self.repeat_sum.shape[1]
        covariance = (product - p_sum * self.target_sum / n) / (n - 1)
        p_var = (p_square - p_sum**2 / n) / (n - 1)
        target_var = (self.target_square - self.target_sum**2 / n) / (n - 1)
        total = ((self.repeat_square - self.repeat_sum**2 / n) / (n - 1)).mean(1)
        signal = (n_repeats * target_var - total) / (n_repeats - 1)
        cc, cc_norm = covariance / np.sqrt(p_var * target_var), covariance / np.sqrt(p_var * signal)
        return np.stack([cc, cc_norm, np.mean(self.ceilings, 0)], 1)


def bench_scores(arguments: argparse.Namespace) -> None:
    """The budget line: cc, cc_norm and ceilings of a large recording."""
    clock = Clock()
    tracker = ScoreTracker()
    ceiling = SplitCeiling("clip", N_SPLITS, seed=0)
    preds, few_spikes = [], []
    sums = Sums(arguments.repeats)
    for clip in range(arguments.clips):
        spikes, pred = make_clip(arguments, clip)
        with clock.part("numpy pass"):
            sums.add(spikes.numpy())
        with clock.part("numpy splits"):
            sums.add_ceiling(spikes.numpy())
        with clock.part("pass"):
            tracker.prepare(clip, spikes)
        with clock.part("splits"):
            ceiling.add(RepeatGroups.of(spikes, None))
        preds.append(pred)
        few_spikes.append(spikes[: arguments.loop_neurons].numpy())
    with clock.part("after"):
        for clip, pred in enumerate(preds):
            tracker.update([clip], pred[None, :, None])
        scores = tracker.compute()
        ceilings = ceiling.value()
    with clock.part("report"):
        tracker.report()
    few_preds = [pred[: arguments.loop_neurons].numpy() for pred in preds]
    with clock.part("loop"):
        expected = loop_over_neurons(few_spikes, few_preds)
    whole = [pred.numpy() for pred in preds]
    with clock.part("numpy after"):
        by_sums = sums.scores(whole)
    found = torch.stack([scores["cc"], scores["cc_norm"], ceilings], 1).numpy()
    np.testing.assert_allclose(found[: arguments.loop_neurons], expected, rtol=1e-6)
    np.testing.assert_allclose(found, by_sums, rtol=1e-3)  # its sums are of float32 products

    n_values = arguments.neurons * arguments.clips * arguments.repeats * arguments.bins
    print(
        f"{arguments.neurons} neurons x {arguments.clips} clips x {arguments.repeats} repeats x "
        f"{arguments.bins} bins ({4e-9 * n_values:.1f} GB of float32), {torch.get_num_threads()} threads"
    )
    clock.scale("loop", arguments.neurons / arguments.loop_neurons)
    clock.line("pass", "the pass: PSTHs, signal and noise power")
    clock.line("splits", f"the pass: half-split ceilings, {N_SPLITS} splits")
    clock.line("after", "after the pass: predictions in, cc, cc_norm, ceilings out")
    clock.line("report", "all three centrings, fve and mse besides")
    print("against NumPy, all neurons at once")
    for name, text in (("pass", "the pass: PSTHs, signal and noise power"),
                       ("splits", "the pass: half-split ceilings"),
                       ("after", "after the pass")):  # fmt: skip
        clock.line(f"numpy {name}", f"NumPy, {text}")
        clock.ratio(f"numpy {name}", (name,), text)
    print("against the textbook form")
    clock.line("loop", f"one neuron at a time, scaled from {arguments.loop_neurons} neurons")
    clock.ratio("loop", ("after",), "after the pass (budget: 1 s)")
    clock.ratio("loop", ("pass", "splits", "after"), "the pass included (budget: 50x)")


def best_of(function: object, number: int = 50) -> float:
    """Shortest of several runs in milliseconds, after a warm-up."""
    times = []
    for _ in range(number):
        begin = time.perf_counter()
        function()  # type: ignore[operator]
        times.append(1000 * (time.perf_counter() - begin))
    return min(times[3:])


def bench_training_step() -> None:
    """What a training step and a validation clip of NS1's size cost."""
    n_neurons, n_repeats, n_bins = NS1_SHAPE
    responses = torch.poisson(torch.rand(1, n_neurons, n_repeats, n_bins))
    psth = responses.mean(2, keepdim=True)
    pred = torch.rand(1, n_neurons, 1, n_bins, requires_grad=True)
    tracker = ScoreTracker()
    tracker.prepare(0, responses[0])
    fixed = pred.detach()
    print(f"per batch of one NS1 clip, {NS1_SHAPE} (shortest of 50 runs)")
    for name, loss in (("mse_loss", mse_loss), ("poisson_loss", poisson_loss)):
        forward, both = (
            best_of(lambda loss=loss: loss(pred, psth)),
            best_of(lambda loss=loss: loss(pred, psth).backward()),
        )
        print(f"  {name:<58} {forward:8.2f} ms forward, {both:.2f} ms with backward")
    plain = best_of(lambda: torch.nn.functional.mse_loss(pred, psth).backward())
    print(f"  {'torch.nn.functional.mse_loss':<58} {'':8}            {plain:.2f} ms with backward")
    print(f"  {'ScoreTracker.update':<58} {best_of(lambda: tracker.update([0], fixed)):8.2f} ms")
    tracker.reset()
    tracker.update([0, 0, 0], fixed.expand(3, -1, -1, -1))
    print(f"  {'ScoreTracker.compute, three clips':<58} {best_of(tracker.compute):8.2f} ms")
    whole = best_of(lambda: normalized_corrcoef(fixed, responses), 10)
    print(f"  {'normalized_corrcoef from the repeats, for comparison':<58} {whole:8.2f} ms")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--bins", type=int, default=1000)
    parser.add_argument("--loop-neurons", type=int, default=4, help="neurons the per-neuron loop is timed on")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    arguments.loop_neurons = min(arguments.loop_neurons, arguments.neurons)
    torch.set_num_threads(arguments.threads)
    bench_scores(arguments)
    bench_training_step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()
