"""What a fit costs as recordings grow, beside a loop written by hand: `python benchmarks/bench_growth.py [CASE ...]`.

Each line is one kind of growth. Both sides do the same work with one `Linear` (or LSTM) and run in processes of their
own, one after the other: processor seconds (and the ratio by hand / ours), and the peak of resident memory above what
the recording itself takes. The exit status is 1 where ours takes over 10% longer, which is more than two equal sides
differ by, or more than twice the memory. Cases in `MISSED` are known to take longer: they are printed as missed, with
the reason and with what a further epoch takes, and fail where they take longer than is stated there.

- missing: 2,000 neurons x 600 ragged clips, each neuron recorded for 6 of them; by hand: a loop over the clips that
  keeps only recorded pairs, with running sums for the correlations;
- short: 10,000 clips of 1 s in batches of 64 (many-short, on request: 100,000); by hand: batches indexed out of one
  stacked tensor, and `Fitter` with ``track_train_metrics=False`` beside it (val only), which computes as many scores as
  the loop does: cc and cc_norm of one pass in place of cc of both;
- bucket: an LSTM on ragged clips in batches of 16; by hand: the same loop over clips sorted by length, and `Fitter`
  without ``bucket_by_length`` beside it. The frames of padded batches over those of batches of like lengths are the most
  that these can gain, without what a step costs whatever its length;
- budget: 500 neurons x 12 minutes in clips of 20 s with ``clip_bytes=0`` (hour, on request: 1 h); by hand: a loop that
  reads each clip anew;
- pieces: front-ends over 2 minutes of sound; by hand: chunks of 5 s with the overlap they need (FIR front-ends), that
  is ``step`` in a loop.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from deepSTRF.datasets import NeuralDataset
from deepSTRF.metrics import psth
from deepSTRF.models.audio import Linear, StateNet
from deepSTRF.models.prediction import front_end_frames
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.training import Fitter, make_loaders
from deepSTRF.training.data import read_loader

DT_MS = 10.0
BANDS, LAGS, EPOCHS = 18, 15, int(os.environ.get("BENCH_EPOCHS", "2"))
FRONT_ENDS = ("mel", "gammatone", "sincnet", "leaf")
FS, SOUND_S, PIECE_S = 24_000, 120, 5
#: Times that a sound is heard; the shortest counts, because half a second of a busy machine says little.
PIECE_ROUNDS = 5
#: Two equal sides differ by a few percent from one process to the next: slower is what takes a tenth longer.
TOLERANCE = 1.1


# ---- time and memory of what a process does from here on


def memory(what: str) -> float:
    """MB of this process: resident now (VmRSS) or its peak since `measured` began (VmHWM)."""
    text = Path("/proc/self/status").read_text()
    return int(re.search(rf"{what}:\s+(\d+)", text).group(1)) / 1024


@contextmanager
def measured(found: dict[str, float]) -> Iterator[None]:
    """Processor seconds and peak of memory above what is held at the start."""
    # both sides' optimizer imports torch's compiler, which takes longer than some of the cases
    torch.optim.AdamW([torch.zeros(1, requires_grad=True)])
    gc.collect()
    ctypes.CDLL(None).malloc_trim(
        0
    )  # else a side takes what building the recording left, and seems to need less
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    held, begin = memory("VmRSS"), time.process_time()
    yield
    found["seconds"] = time.process_time() - begin
    found["peak_mb"] = memory("VmHWM") - held


# ---- what both sides are given


def spectrogram(rng: np.random.Generator, bins: int) -> np.ndarray:
    return rng.standard_normal((BANDS, bins), dtype=np.float32)


def sparse_recording(n_neurons: int = 2000, n_clips: int = 600, heard: int = 6) -> NeuralDataset:
    """Clips of 1 to 5 s; every neuron recorded for a few of them, 2 to 6 times."""
    rng = np.random.default_rng(0)
    clips = [rng.choice(n_clips, heard, replace=False) for _ in range(n_neurons)]
    lengths = rng.integers(100, 500, n_clips)
    responses: list[dict[int, np.ndarray]] = [{} for _ in range(n_clips)]
    for neuron, those in enumerate(clips):
        for clip in those:
            shape = (int(rng.integers(2, 7)), lengths[clip])
            responses[clip][neuron] = rng.poisson(0.2, shape).astype(np.int8)
    names = [{"cell_id": f"n{i}"} for i in range(n_neurons)]
    return NeuralDataset.from_arrays(
        [spectrogram(rng, int(t)) for t in lengths], responses, DT_MS, nrn_meta=names, check_alignment=False
    )


def short_recording(n_clips: int = 10_000, bins: int = 100, n_neurons: int = 20) -> NeuralDataset:
    rng = np.random.default_rng(0)
    stims = [spectrogram(rng, bins) for _ in range(n_clips)]
    responses = list(rng.poisson(0.2, (n_clips, n_neurons, 1, bins)).astype(np.int8))
    return NeuralDataset.from_arrays(stims, responses, DT_MS, check_alignment=False)


def ragged_recording(n_clips: int = 960, n_neurons: int = 20) -> NeuralDataset:
    """Lengths as of words and sentences: most clips short, a few ten times as long."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(4.6, 0.8, n_clips), 30, 1000).astype(int)
    stims = [spectrogram(rng, int(t)) for t in lengths]
    responses = [rng.poisson(0.2, (n_neurons, 2, t)).astype(np.int8) for t in lengths]
    return NeuralDataset.from_arrays(stims, responses, DT_MS, check_alignment=False)


def long_recording(hours: float = 0.2, n_neurons: int = 500) -> NeuralDataset:
    rng = np.random.default_rng(0)
    count, bins = round(hours * 180), 2000
    stims = [spectrogram(rng, bins) for _ in range(count)]
    responses = [rng.poisson(0.2, (n_neurons, 1, bins)).astype(np.int8) for _ in range(count)]
    return NeuralDataset.from_arrays(stims, responses, DT_MS, check_alignment=False)


def halves(ds: NeuralDataset) -> tuple[NeuralDataset, NeuralDataset]:
    """Five sixths to train on, one to validate on."""
    cut = len(ds) * 5 // 6
    return ds.select(clips=list(range(cut))), ds.select(clips=list(range(cut, len(ds))))


def linear(ds: NeuralDataset) -> Linear:
    torch.manual_seed(0)
    return Linear(BANDS, LAGS, ds.N_neurons)


def recurrent(ds: NeuralDataset) -> StateNet:
    torch.manual_seed(0)
    return StateNet(BANDS, LAGS, out_neurons=ds.N_neurons, rnn_type="LSTM")


# ---- the loop by hand


class RunningCorrelation:
    """Correlation per neuron from sums over everything seen."""

    def __init__(self, n_neurons: int) -> None:
        self.sums = torch.zeros(6, n_neurons, dtype=torch.float64)

    def add(self, pred: Tensor, y: Tensor, heard: Tensor | slice = slice(None)) -> None:
        """Predictions and PSTHs (H, T) or (B, H, T), NaN where nothing was recorded."""
        axes = (-1,) if pred.dim() == 2 else (0, -1)
        valid = ~y.isnan()
        p, y = torch.where(valid, pred, 0.0), torch.where(valid, y, 0.0)
        self.sums[:, heard] += torch.stack(
            [one.sum(axes, dtype=torch.float64) for one in (valid, p, y, p * p, y * y, p * y)]
        )

    def result(self) -> Tensor:
        n, p, y, pp, yy, py = self.sums
        return (n * py - p * y) / ((n * pp - p * p) * (n * yy - y * y)).sqrt()


def loop(
    model: torch.nn.Module,
    train: Callable[[], Iterator[tuple[Tensor, Tensor, Tensor | slice]]],
    val: Callable[[], Iterator[tuple[Tensor, Tensor, Tensor | slice]]],
    n_neurons: int,
) -> float:
    """Train and validate; an item is inputs (B, 1, F, T), PSTHs (B, H, T) and the neurons they belong to."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1e-4)
    score = 0.0
    for _ in range(EPOCHS):
        model.train()
        seen = RunningCorrelation(n_neurons)
        for x, y, heard in train():
            optimizer.zero_grad()
            pred = model(x)[:, :, 0][:, heard]
            valid = ~y.isnan()
            error = torch.where(valid, pred - torch.nan_to_num(y), 0.0)
            loss = (error.square().sum((0, 2)) / valid.sum((0, 2)).clamp(min=1)).mean()
            loss.backward()
            optimizer.step()
            seen.add(pred.detach(), y, heard)
        seen.result()
        model.eval()
        seen = RunningCorrelation(n_neurons)
        with torch.no_grad():
            for x, y, heard in val():
                seen.add(model(x)[:, :, 0][:, heard], y, heard)
        score = float(seen.result().nanmean())
    return score


def clipwise(ds: NeuralDataset, *, keep: bool, shuffle: bool) -> Callable[[], Iterator[tuple]]:
    """Clips one by one with the PSTHs of the neurons that heard them, kept or read each time."""

    def read(i: int) -> tuple:
        clip = ds.response_storage.clips[i]
        y = torch.from_numpy(np.nanmean(clip.values(), axis=1))
        return ds.shared_stimulus(i).unsqueeze(0), y.unsqueeze(0), torch.from_numpy(clip.heard)

    kept = [read(i) for i in range(len(ds))] if keep else None

    def items() -> Iterator[tuple]:
        order = torch.randperm(len(ds)) if shuffle else torch.arange(len(ds))
        for i in order.tolist():
            yield kept[i] if kept is not None else read(i)

    return items


def stacked(ds: NeuralDataset, size: int, *, shuffle: bool) -> Callable[[], Iterator[tuple]]:
    """Batches out of one tensor."""
    x = torch.stack([ds.shared_stimulus(i) for i in range(len(ds))])
    y = torch.stack([psth(ds.response_block(i))[:, 0] for i in range(len(ds))])

    def items() -> Iterator[tuple]:
        order = torch.randperm(len(x)) if shuffle else torch.arange(len(x))
        for batch in order.split(size):
            yield x[batch], y[batch], slice(None)

    return items


def sorted_batches(ds: NeuralDataset, size: int, *, shuffle: bool) -> Callable[[], Iterator[tuple]]:
    """Padded batches of clips of about one length, made once."""
    order = sorted(range(len(ds)), key=ds.stimulus_bins)
    made = []
    for start in range(0, len(order), size):
        clips = order[start : start + size]
        longest = max(map(ds.stimulus_bins, clips))
        x, y = (
            torch.zeros(len(clips), 1, BANDS, longest),
            torch.full((len(clips), ds.N_neurons, longest), torch.nan),
        )
        for row, i in enumerate(clips):
            x[row, ..., : ds.stimulus_bins(i)] = ds.shared_stimulus(i)
            y[row, :, : ds.stimulus_bins(i)] = psth(ds.response_block(i))[:, 0]
        made.append((x, y, slice(None)))

    def items() -> Iterator[tuple]:
        places = torch.randperm(len(made)) if shuffle else torch.arange(len(made))
        for place in places.tolist():
            yield made[place]

    return items


def fit(model: torch.nn.Module, train: NeuralDataset, val: NeuralDataset, batch: int, **options) -> float:
    """Ours, with all that `Fitter` does beside the loop: signal power, guards, best weights."""
    bucket = options.pop("bucket_by_length", False)
    loaders = make_loaders(train, val, batch_size=batch, seed=0, bucket_by_length=bucket)
    history = Fitter(
        model, *loaders, max_epochs=EPOCHS, patience=EPOCHS, progress=False, seed=0, **options
    ).fit()
    return float(history[-1]["val_cc"].nanmean())


# ---- cases: name of a side -> what it measures


def missing(side: str, found: dict[str, float]) -> None:
    train, val = halves(sparse_recording())
    with measured(found):
        model = linear(train)
        if side == "ours":
            found["cc"] = fit(model, train, val, 1)
        else:
            pairs = [clipwise(view, keep=True, shuffle=view is train) for view in (train, val)]
            found["cc"] = loop(model, *pairs, train.N_neurons)


def short(side: str, found: dict[str, float], n_clips: int = 10_000) -> None:
    train, val = halves(short_recording(n_clips))
    with measured(found):
        model = linear(train)
        if side != "by hand":
            found["cc"] = fit(model, train, val, 64, track_train_metrics=side == "ours")
        else:
            pairs = [stacked(view, 64, shuffle=view is train) for view in (train, val)]
            found["cc"] = loop(model, *pairs, train.N_neurons)


def many_short(side: str, found: dict[str, float]) -> None:
    short(side, found, 100_000)


def bucket(side: str, found: dict[str, float]) -> None:
    train, val = halves(ragged_recording())
    with measured(found):
        model = recurrent(train)
        if side == "by hand":
            pairs = [sorted_batches(view, 16, shuffle=view is train) for view in (train, val)]
            found["cc"] = loop(model, *pairs, train.N_neurons)
        else:
            found["cc"] = fit(model, train, val, 16, bucket_by_length=side == "ours")


def padding() -> str:
    """Frames that batches of the bucket case hold, of random and of like lengths."""
    train, _ = halves(ragged_recording())
    lengths = torch.tensor([train.stimulus_bins(clip) for clip in range(len(train))])
    held = {}
    for bucketed in (False, True):
        loader = make_loaders(train, batch_size=16, seed=0, bucket_by_length=bucketed)[0]
        clips = read_loader(loader)
        held[bucketed] = sum(int(lengths[list(one)].max()) * len(one) for one in clips)
    return (
        f"  training clips have {int(lengths.sum()):,} frames, batches {held[False]:,}, of like lengths "
        f"{held[True]:,}: {held[False] / held[True]:.2f}x fewer"
    )


def hour(side: str, found: dict[str, float]) -> None:
    budget(side, found, 1.0)


def budget(side: str, found: dict[str, float], hours: float = 0.2) -> None:
    train, val = halves(long_recording(hours))
    with measured(found):
        model = linear(train)
        if side == "by hand":
            pairs = [clipwise(view, keep=False, shuffle=view is train) for view in (train, val)]
            found["cc"] = loop(model, *pairs, train.N_neurons)
        else:
            found["cc"] = fit(model, train, val, 1, clip_bytes=0)


def pieces(side: str, found: dict[str, float], name: str) -> None:
    torch.manual_seed(0)
    front_end = make_wav2spec(name, audio_fs=FS, dt_ms=DT_MS).eval()
    hop = round(FS * DT_MS / 1000)
    sound = torch.randn(1, 1, FS * SOUND_S) * 0.1

    def by_hand() -> torch.Tensor:
        state, parts = front_end.init_state(1), []
        for chunk in sound.split(FS * PIECE_S, dim=-1):
            frames, state = front_end.step(chunk, state)
            parts.append(frames)
        return torch.cat(parts, dim=-1)

    ways = {
        "by hand": by_hand,
        "whole": lambda: front_end(sound),
        "ours": lambda: front_end_frames(front_end, sound),
    }
    with torch.no_grad():
        front_end(sound[..., : 100 * hop])
        with measured(found):
            frames = ways[side]()
        seconds = []
        for _ in range(PIECE_ROUNDS):
            begin = time.process_time()
            ways[side]()
            seconds.append(time.process_time() - begin)
    found["mean"], found["seconds"] = float(frames.mean()), min(seconds)


#: Name: (what it is, sides, function).
CASES: dict[str, tuple[str, tuple[str, ...], Callable[[str, dict[str, float]], None]]] = {
    "missing": ("2,000 neurons x 600 ragged clips, 1% of pairs", ("ours", "by hand"), missing),
    "short": ("10,000 clips of 1 s, batches of 64", ("ours", "by hand", "val only"), short),
    "many-short": ("100,000 clips of 1 s, batches of 64", ("ours", "by hand", "val only"), many_short),
    "bucket": ("LSTM on ragged clips, batches of 16", ("ours", "by hand", "padded"), bucket),
    "budget": ("500 neurons x 12 minutes, clip_bytes=0", ("ours", "by hand"), budget),
    "hour": ("500 neurons x 1 hour, clip_bytes=0", ("ours", "by hand"), hour),
    **{
        f"pieces-{name}": (
            f"{name} over {SOUND_S} s of sound", ("ours", "by hand", "whole"),
            lambda side, found, name=name: pieces(side, found, name),
        )
        for name in FRONT_ENDS
    },
}  # fmt: skip


#: Cases in which ours takes longer than by hand: up to so many times, and why.
MISSED: dict[str, tuple[float, str]] = {
    name: (
        limit,
        "before its first step a fit hashes every clip and measures bands, responses and the noise of repeats, and "
        "in every epoch it scores both passes clip by clip for cc_norm; the loop does none of that, and the model "
        f"is so small that it shows{more}",
    )
    for name, limit, more in (
        ("short", 1.4, ""),
        ("many-short", 1.4, ""),
        ("bucket", 1.5, ". Batches drawn anew in each epoch also hold 15% more frames than fixed ones"),
    )
}
#: Epochs of the further run that says what one more epoch takes.
MORE_EPOCHS = 6
#: Runs of a case that takes at most so many seconds, of which the shortest counts.
ROUNDS, FEW_SECONDS = 3, 5.0
#: Cases of several GB.
ON_REQUEST = ("many-short", "hour")


def run(case: str, side: str, threads: int, epochs: int = EPOCHS) -> dict[str, float]:
    """One side in a process of its own."""
    command = [sys.executable, __file__, case, "--side", side, "--threads", str(threads)]
    environment = dict(os.environ, BENCH_EPOCHS=str(epochs))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])


def shortest(case: str, side: str, threads: int) -> dict[str, float]:
    """One side: of a few seconds the shortest of several runs, because other processes come between."""
    first = run(case, side, threads)
    rounds = ROUNDS if first["seconds"] < FEW_SECONDS else 1
    again = (run(case, side, threads) for _ in range(rounds - 1))
    return min((first, *again), key=lambda one: one["seconds"])


def further_epoch(case: str, results: dict[str, dict[str, float]], threads: int) -> dict[str, float]:
    """Processor seconds that one more epoch takes, of both sides."""
    seconds = {side: run(case, side, threads, MORE_EPOCHS)["seconds"] for side in ("ours", "by hand")}
    return {
        side: (more - results[side]["seconds"]) / (MORE_EPOCHS - EPOCHS) for side, more in seconds.items()
    }


def main() -> int:
    """Run the cases; exit status 1 where ours is over 10% slower, or takes more than twice the memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help=f"which (default: all): {', '.join(CASES)}")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    a = parser.parse_args()
    names = a.cases or [name for name in CASES if name not in ON_REQUEST]
    if unknown := [name for name in names if name not in CASES]:
        parser.error(f"unknown case {unknown[0]!r}; cases: {', '.join(CASES)}")
    if a.side:
        torch.set_num_threads(a.threads)
        found: dict[str, float] = {}
        CASES[names[0]][2](a.side, found)
        print(json.dumps(found))
        return 0
    print(f"{a.threads} thread(s), torch {torch.__version__}, load {os.getloadavg()[0]:.1f}; processor time")
    behind = missed = 0
    for name in names:
        what, sides, _ = CASES[name]
        results = {side: shortest(name, side, a.threads) for side in sides}
        ours, hand = results["ours"], results["by hand"]
        print(f"{name}: {what}")
        for side, one in results.items():
            seconds, peak = one["seconds"], one["peak_mb"]
            print(
                f"  {side:<8} {seconds:8.2f} s {peak:8.0f} MB   {seconds / ours['seconds']:5.2f}x the time, "
                f"{peak / max(ours['peak_mb'], 1.0):5.2f}x the memory of ours"
            )
        if name == "bucket":
            print(padding())
        ratio = ours["seconds"] / hand["seconds"]
        limit, reason = MISSED.get(name, (TOLERANCE, ""))
        behind += ratio > limit or ours["peak_mb"] > 2 * max(hand["peak_mb"], 1.0)
        if reason and ratio > TOLERANCE:
            missed += 1
            one = further_epoch(name, results, a.threads)
            print(f"  missed, {ratio:.2f}x by hand: {reason}")
            print(f"  a further epoch: ours {one['ours']:.2f} s, by hand {one['by hand']:.2f} s")
        sys.stdout.flush()
    print(f"{behind} of {len(names)} cases over 10% slower than by hand, or above twice its memory")
    print(f"{missed} more slower for a reason that is stated")
    return int(behind > 0)


if __name__ == "__main__":
    sys.exit(main())
