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
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.metrics import ScoreTracker, corrcoef, fve, mse_loss, normalized_corrcoef, poisson_loss
from deepSTRF.metrics.ceilings import RepeatGroups, SplitCeiling, half_splits
from deepSTRF.models.audio import Linear
from deepSTRF.training import ScoreTable, score_model, score_predictions

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
            ceiling.add(RepeatGroups.of(spikes.unsqueeze(0), None))
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


class SecondMoments:
    """Scores of many clips as one writes them by hand: NumPy, a loop over clips that adds second moments."""

    def __init__(self) -> None:
        self.n_bins = 0
        self.sums: list[np.ndarray] = []

    def add(self, pred: np.ndarray, repeats: np.ndarray) -> None:
        """Take in a prediction (N, T) and repeats (N, R, T)."""
        p, y = pred.astype(np.float64), repeats.astype(np.float64)
        n_repeats, n_bins = y.shape[1:]
        level, mean = p.mean(1), y.mean(2)
        p, y = p - level[:, None], y - mean[:, :, None]
        gram = y @ y.transpose(0, 2, 1)
        trace = np.trace(gram, axis1=1, axis2=2)
        if not self.sums:
            self.level, self.mean = level, mean.mean(1)
            self.sums = [0.0 * one for one in (level, level, level, gram, mean, level)]
        shift, shifts = level - self.level, mean - self.mean[:, None]
        signal = (gram.sum((1, 2)) - trace) / (n_repeats * (n_repeats - 1) * (n_bins - 1))
        new = (
            (p * p).sum(1) + n_bins * shift**2,
            (p * y.mean(1)).sum(1) + n_bins * shift * shifts.mean(1),
            n_bins * shift,
            gram + n_bins * shifts[:, :, None] * shifts[:, None, :],
            n_bins * shifts,
            n_bins * signal,
        )
        for total, one in zip(self.sums, new, strict=True):
            total += one
        self.n_bins += n_bins

    def columns(self) -> dict[str, np.ndarray]:
        """The columns of a score table without bootstrap."""
        square, product, shift, gram, shifts, clip_signal = self.sums
        n, n_repeats = self.n_bins, gram.shape[1]
        xx, mean = square - shift**2 / n, shifts / n
        gram = gram - n * mean[:, :, None] * mean[:, None, :]
        yy, xy = gram.sum((1, 2)) / n_repeats**2, product - shift * mean.mean(1)
        trace = np.trace(gram, axis1=1, axis2=2)
        signal = (gram.sum((1, 2)) - trace) / (n_repeats * (n_repeats - 1) * (n - 1))
        gap = shift / n + self.level - mean.mean(1) - self.mean
        error = xx + yy - 2 * xy + n * gap**2
        splits = half_splits(n_repeats, N_SPLITS, 0)
        a, b = splits.first.numpy(), splits.second.numpy()
        aa, bb, ab = (
            np.einsum("sr,nrt,st->ns", one, gram, two, optimize=True) for one, two in ((a, a), (b, b), (a, b))
        )
        rho = (ab / np.sqrt(aa * bb))[:, : splits.n_used].mean(1)
        return {
            "cc": xy / np.sqrt(xx * yy),
            "cc_norm": xy / np.sqrt(xx * (n - 1) * signal),
            "cc_norm_published": xy / np.sqrt(xx * (n - 1) * clip_signal / n),
            "fve": 1 - error / yy,
            "mse": error / n,
            "ccmax": np.sqrt(splits.ratio * rho / (1 + (splits.ratio - 1) * rho)),
            "snr": signal / (trace / n_repeats / (n - 1) - signal),
        }


def by_hand(model: torch.nn.Module, stims: list[np.ndarray], responses: list[np.ndarray]) -> dict:
    """Predict and score clip after clip."""
    moments = SecondMoments()
    with torch.no_grad():
        for stim, repeats in zip(stims, responses, strict=True):
            pred = model(torch.from_numpy(stim)[None, None])[0, :, 0].numpy()
            moments.add(pred, repeats)
    return moments.columns()


def medians(functions: dict[str, Callable[[], object]], number: int) -> dict[str, float]:
    """Median processor time in seconds of functions run in turn."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(number):
        for name, function in functions.items():
            begin = time.process_time()
            function()
            times[name].append(time.process_time() - begin)
    return {name: statistics.median(found) for name, found in times.items()}


def bench_many_clips(arguments: argparse.Namespace) -> None:
    """`score_model` on many short clips against a loop that adds second moments."""
    for ragged in (False, True):
        random = np.random.default_rng(0)
        lengths = random.integers(50, 150, arguments.many) if ragged else [100] * arguments.many
        stims = [random.standard_normal((18, n)).astype(np.float32) for n in lengths]
        rates = [random.uniform(0.0, 0.5, (20, 1, n)).repeat(5, axis=1) for n in lengths]
        responses = [random.poisson(rate).astype(np.float32) for rate in rates]
        recording = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=10.0)
        torch.manual_seed(0)
        model = Linear(18, 9, 20).eval()
        table = score_model(model, recording, n_bootstrap=0)  # its fingerprint is kept
        for name, expected in by_hand(model, stims, responses).items():
            np.testing.assert_allclose(table[name], expected, rtol=1e-6, atol=1e-9, err_msg=name)
        found = medians(
            {
                "ours": lambda m=model, r=recording: score_model(m, r, n_bootstrap=0),
                "hand": lambda m=model, s=stims, r=responses: by_hand(m, s, r),
            },
            3,
        )
        what = "clips of 50 to 150 bins" if ragged else "clips of 100 bins"
        print(
            f"  {f'score_model, {arguments.many} {what}':<58} {found['ours']:8.2f} s, by hand "
            f"{found['hand']:.2f} s: {found['ours'] / found['hand']:.2f}x its processor time"
        )


def bench_predictions(arguments: argparse.Namespace) -> None:
    """`score_predictions` on predictions that exist against the same second moments by hand."""
    for ragged in (False, True):
        random = np.random.default_rng(0)
        lengths = random.integers(50, 150, arguments.many) if ragged else [100] * arguments.many
        rates = [random.uniform(0.0, 0.5, (20, n)) for n in lengths]
        responses = [random.poisson(rate[:, None].repeat(5, axis=1)).astype(np.float32) for rate in rates]
        recording = AudioNeuralDataset.from_arrays(
            [np.ones((1, n), np.float32) for n in lengths], responses, dt_ms=10.0, check_alignment=False
        )
        pred = [(rate + 0.1).astype(np.float32) for rate in rates]
        tensors = [torch.from_numpy(one) for one in pred]

        def hand(pred: list[np.ndarray] = pred, responses: list[np.ndarray] = responses) -> dict:
            moments = SecondMoments()
            for one, repeats in zip(pred, responses, strict=True):
                moments.add(one, repeats)
            return moments.columns()

        def ours(
            tensors: list[torch.Tensor] = tensors, recording: AudioNeuralDataset = recording
        ) -> ScoreTable:
            return score_predictions(tensors.__getitem__, recording, n_bootstrap=0)

        table = ours()
        for name, expected in hand().items():
            np.testing.assert_allclose(table[name], expected, rtol=1e-6, atol=1e-9, err_msg=name)
        found = medians({"ours": ours, "hand": hand}, 3)
        what = "clips of 50 to 150 bins" if ragged else "clips of 100 bins"
        print(
            f"  {f'score_predictions, {arguments.many} {what}':<58} {found['ours']:8.2f} s, by hand "
            f"{found['hand']:.2f} s: {found['ours'] / found['hand']:.2f}x its processor time"
        )


def numpy_line(pred: np.ndarray, responses: np.ndarray) -> np.ndarray:
    """Correlation of (B, N, T) with the PSTH of (B, N, R, T), NaN left out."""
    psth = np.nanmean(responses, axis=2, dtype=np.float64)
    x, y = (values.transpose(1, 0, 2).reshape(values.shape[1], -1) for values in (pred, psth))
    x, y = x - x.mean(1, keepdims=True), y - y.mean(1, keepdims=True)
    return (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))


def bench_repeats() -> None:
    """`corrcoef` and `fve` from repeats against a line of NumPy, at 10 x 300 x 20 x 1,000."""
    generator = torch.Generator().manual_seed(0)
    for what in ("complete", "a quarter of the repeats missing"):
        responses = torch.poisson(torch.rand(10, 300, 20, 1000, generator=generator))
        if what != "complete":
            responses[:, :, 15:] = torch.nan
        pred = torch.rand(10, 300, 1, 1000, generator=generator)
        arrays = pred[:, :, 0].double().numpy(), responses.numpy()
        np.testing.assert_allclose(
            corrcoef(pred, responses, reduction="none"), numpy_line(*arrays), atol=1e-9
        )
        found = medians(
            {
                "corrcoef": lambda p=pred, y=responses: corrcoef(p, y),
                "fve": lambda p=pred, y=responses: fve(p, y),
                "hand": lambda a=arrays: numpy_line(*a),
            },
            5,
        )
        print(
            f"  {f'corrcoef from repeats, {what}':<58} {found['corrcoef']:8.2f} s, fve {found['fve']:.2f} s, "
            f"NumPy {found['hand']:.2f} s: {found['corrcoef'] / found['hand']:.2f}x"
        )


def bench_tracker() -> None:
    """What a fit keeps for the scores of 500 neurons x 1 hour in windows of 10 s, bins of 10 ms."""
    tracker = ScoreTracker()
    for clip in range(360):
        tracker.prepare(clip, torch.rand(500, 1, 1000))
        tracker.update([clip], torch.rand(1, 500, 1, 1000))
    held = sum(summary.n_bytes for summary in tracker._clips.values()) / 2**20
    print(f"  {'kept by ScoreTracker, 500 neurons x 1 h':<58} {held:8.0f} MB, as float64 PSTHs 1373 MB")


def bench_lists() -> None:
    """Start of ``deepstrf datasets`` beside that of a process that imports torch."""
    command = "from deepSTRF.cli import main; main(['datasets'])"

    times: dict[str, list[float]] = {}
    for _ in range(3):
        for name, code in (("datasets", command), ("torch", "import torch")):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, check=False)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            times.setdefault(name, []).append(spent)
    ours, torch_alone = (statistics.median(times[name]) for name in ("datasets", "torch"))
    print(f"  {'deepstrf datasets (processor)':<58} {ours:8.2f} s, import torch alone {torch_alone:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--neurons", type=int, default=1000)
    parser.add_argument("--clips", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--bins", type=int, default=1000)
    parser.add_argument("--loop-neurons", type=int, default=4, help="neurons the per-neuron loop is timed on")
    parser.add_argument("--many", type=int, default=8000, help="short clips of the table of scores")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    arguments.loop_neurons = min(arguments.loop_neurons, arguments.neurons)
    torch.set_num_threads(arguments.threads)
    bench_scores(arguments)
    bench_training_step()
    print("growth, beside what one writes by hand (medians of processor time, run in turn)")
    bench_many_clips(arguments)
    bench_predictions(arguments)
    bench_repeats()
    bench_tracker()
    bench_lists()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.1f} GB")


if __name__ == "__main__":
    main()
