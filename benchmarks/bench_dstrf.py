"""Time dynamic STRFs and the shift search of shape change against hand-written forms, run beside them.

    python benchmarks/bench_dstrf.py                     # 65-lag deep encoder, 34 bands, 999 bins, 1 and 119 outputs
    python benchmarks/bench_dstrf.py --device cuda

What is timed. `dstrf` with its self-check, the whole tensor kept, on five dilated convolutions (kernel 5, dilations
1, 1, 2, 4, 8, 128 units, no bias, ReLU) with a linear readout. The yardstick is what somebody writes who knows autograd:
the windows of 65 bins of a chunk are a batch, so that one pass back per output gives the gradients of all its bins (of each
window's last bin); chunks of 100 bins. It is timed on one chunk, at 119 outputs on a share of them, and scaled to all; where
both were computed they are compared. The textbook loop, one pass back per bin and output through a graph that is kept and a
dense Jacobian of the chunk, is named as such. Memory is the growth of the peak resident set of a process of its own
(the median of some; on a GPU, the allocator's peak) beyond the state after one forward pass, less the result; for the
loops of one chunk. All are warmed up on a few frames before. A second line has a small `budget_bytes` and no
self-check (which is the loop on three responses, and takes its memory). The shift search is held against one Fourier
transform per filter, and against all shifted copies and their correlations (textbook).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.interpret.dstrf import dstrf
from deepSTRF.interpret.filter_statistics import find_shifts

BANDS, BINS, LAGS, WIDTH, CHUNK = 34, 999, 65, 128, 100
DILATIONS = (1, 1, 2, 4, 8)
#: Working memory of the second line, in bytes.
SMALL_BUDGET = {1: 10 * 2**18, 119: 2**25}
#: Of 119 outputs, those that the yardstick is timed on.
TIMED_OUTPUTS = 12


class DeepEncoder(nn.Module):
    receptive_field = LAGS

    def __init__(self, outputs: int) -> None:
        super().__init__()
        layers, width = [], BANDS
        for dilation in DILATIONS:
            layers += [nn.Conv1d(width, WIDTH, 5, dilation=dilation, bias=False), nn.ReLU()]
            width = WIDTH
        self.layers = nn.Sequential(*layers, nn.Conv1d(WIDTH, outputs, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(functional.pad(x.squeeze(1), (LAGS - 1, 0))).unsqueeze(2)


def naive_chunk(model: nn.Module, stimulus: Tensor, start: int, outputs: int) -> Tensor:
    """(CHUNK, outputs, LAGS, BANDS): one pass back per bin and output."""
    padded = functional.pad(stimulus, (LAGS - 1, 0))[:, start : start + CHUNK + LAGS - 1]
    x = padded.clone().requires_grad_()
    y = model(x[None, None])[0, :, 0, LAGS - 1 :]
    dense = []
    for t in range(y.shape[1]):
        rows = [torch.autograd.grad(y[n, t], x, retain_graph=True)[0] for n in range(outputs)]
        dense.append(torch.stack(rows))
    jacobian = torch.stack(dense)  # (chunk, outputs, bands, chunk + lags - 1)
    return torch.stack([jacobian[t, :, :, t : t + LAGS].transpose(1, 2) for t in range(len(jacobian))])


def window_batch(model: nn.Module, stimulus: Tensor, start: int, outputs: int) -> Tensor:
    """(CHUNK, outputs, LAGS, BANDS): one pass back per output through a batch of windows."""
    padded = functional.pad(stimulus, (LAGS - 1, 0))[:, start : start + CHUNK + LAGS - 1]
    windows = padded.unfold(1, LAGS, 1).transpose(0, 1).contiguous().requires_grad_()
    last = model.layers(windows)[:, :, 0]  # (chunk, outputs): without padding only the last bin is left
    rows = [torch.autograd.grad(last[:, n].sum(), windows, retain_graph=True)[0] for n in range(outputs)]
    return torch.stack(rows, 1).transpose(2, 3)


LOOPS = {"naive": naive_chunk, "windows": window_batch}


def sparse_spectrogram() -> Tensor:
    """Smooth bumps on silence, as sound has."""
    noise = torch.randn(1, 1, BANDS, BINS)
    return functional.avg_pool2d((noise - 1.0).clamp_min(0), (3, 9), 1, (1, 4))[0, 0]


def clock(work: Callable[[], Tensor], repeats: int, device: torch.device) -> tuple[float, float, Tensor]:
    """Median wall seconds, mean processor seconds, and the result."""
    result, walls, cpu = work(), [], time.process_time()
    for _ in range(repeats):
        start = time.perf_counter()
        result = work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        walls.append(time.perf_counter() - start)
    return sorted(walls)[len(walls) // 2], (time.process_time() - cpu) / repeats, result


def prepared(outputs: int, device: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model, stimulus = DeepEncoder(outputs).to(device).eval(), sparse_spectrogram().to(device)
    with torch.no_grad():
        model(stimulus[None, None])
    return model.requires_grad_(False), stimulus


def compare(outputs: int, arguments: argparse.Namespace) -> None:
    device = torch.device(arguments.device)
    model, stimulus = prepared(outputs, arguments.device)
    timed = min(outputs, TIMED_OUTPUTS)
    start = 500
    # interleaved, so that a neighbour on the machine slows both
    ours, fair, naive, small = [], [], [], []
    few = {"budget_bytes": SMALL_BUDGET.get(outputs, 2**22), "check": False}
    for _ in range(arguments.repeats):
        fair.append(clock(lambda: window_batch(model, stimulus, start, timed), 1, device))
        if not arguments.no_textbook:
            naive.append(clock(lambda: naive_chunk(model, stimulus, start, timed), 1, device))
        ours.append(clock(lambda: dstrf(model, stimulus).weights, 1, device))
        small.append(clock(lambda: dstrf(model, stimulus, **few).weights, 1, device))
    factor = BINS / CHUNK * outputs / timed
    wall, cpu = (factor * sorted(run[k] for run in fair)[len(fair) // 2] for k in (0, 1))
    error = float((ours[0][2][start : start + CHUNK, :timed] - fair[0][2]).abs().max())
    scaled = f"one chunk, {timed} of {outputs} outputs, scaled" if outputs > timed else "one chunk, scaled"
    print(f"{outputs} output(s), {BINS} bins, {BANDS} bands, {LAGS} lags")
    loop = None if arguments.no_memory else memory_of("windows", outputs, arguments)
    print(f"  batch of windows    {wall:8.2f} s  ({scaled}){_megabytes(loop)}")
    rows = [("dstrf", "dstrf", ours, 1.0), ("  small, unchecked", "small", small, 1.0)]
    rows += [("textbook loop", "naive", naive, factor)] if naive else []
    for name, which, runs, scale in rows:
        own_wall, own_cpu = (scale * sorted(run[k] for run in runs)[len(runs) // 2] for k in (0, 1))
        own = None if loop is None else memory_of(which, outputs, arguments)
        print(
            f"  {name:19s} {own_wall:8.2f} s  {wall / own_wall:.2g}x by the clock, {cpu / own_cpu:.2g}x by processor time"
            f"{_megabytes(own, loop)}",
            flush=True,
        )
    print(f"  difference  {error:.1e} of {float(fair[0][2].abs().max()):.1e}")


def _megabytes(own: float | None, loop: float | None = None) -> str:
    """Memory beyond the result, and how many times less than the loop's."""
    if own is None:
        return ""
    return f"; {own:.1f} MB beyond the result" + (
        "" if loop is None else f", {loop / max(own, 0.1):.1f}x less"
    )


def memory_of(which: str, outputs: int, arguments: argparse.Namespace) -> float:
    command = [sys.executable, __file__, "--memory-of", which, str(outputs), "--device", arguments.device]
    command += ["--threads", str(arguments.threads)]
    runs = [
        subprocess.run(command, check=True, capture_output=True, text=True) for _ in range(arguments.repeats)
    ]
    return sorted(float(json.loads(run.stdout)["mb"]) for run in runs)[len(runs) // 2]


def report_memory(which: str, outputs: int, device: str) -> None:
    model, stimulus = prepared(outputs, device)
    if which in LOOPS:  # what both ways need once (the first pass back, libraries) is no one's
        few = stimulus[None, None, :, :2].clone().requires_grad_()
        torch.autograd.grad(model(few)[0, 0, 0, 1], few)
    else:
        dstrf(model, stimulus[:, : LAGS + 5], times=slice(LAGS, LAGS + 5), neurons=[0])
    before = peak_resident_mb() if device == "cpu" else torch.cuda.memory_allocated() / 2**20
    few = {"budget_bytes": SMALL_BUDGET.get(outputs, 2**22), "check": False} if which == "small" else {}
    if which in LOOPS:
        result = LOOPS[which](model, stimulus, 500, outputs)
    else:
        result = dstrf(model, stimulus, **few).weights
    peak = peak_resident_mb() if device == "cpu" else torch.cuda.max_memory_allocated() / 2**20
    print(json.dumps({"mb": peak - before - result.numel() * result.element_size() / 2**20}))


def peak_resident_mb() -> float:
    """Largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child starts at its parent's size on Linux
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def brute_shifts(filters: Tensor, reference: Tensor, farthest: int) -> Tensor:
    """Every shifted copy, eight filters at a time, and the correlation of each."""
    found = []
    target = reference - reference.mean()
    for few in filters.split(8):
        copies = torch.stack([few.roll(k, dims=1) for k in range(-farthest, farthest + 1)], dim=1)
        copies = copies - copies.mean((2, 3), keepdim=True)
        r = (copies * target).sum((2, 3)) / (copies.flatten(2).norm(dim=2) * target.norm())
        found.append(r.argmax(1) - farthest)
    return torch.cat(found)


def fourier_shifts(filters: Tensor, reference: Tensor, farthest: int) -> Tensor:
    """All circular correlations by one transform; a circular shift changes neither mean nor norm."""
    n = filters.shape[1]
    target = torch.fft.rfft(reference - reference.mean(), dim=0)
    product = (torch.fft.rfft(filters, dim=1).conj() * target).sum(2)
    every = torch.fft.irfft(product, n, dim=1)
    shifts = torch.arange(-farthest, farthest + 1)
    return shifts[every[:, shifts % n].argmax(1)]


def compare_shifts(arguments: argparse.Namespace) -> None:
    torch.manual_seed(0)
    room, count = 55, 200
    filters = functional.pad(torch.randn(count, LAGS, BANDS).double(), (0, 0, room, room))
    farthest, device = LAGS // 2 + room, torch.device("cpu")
    reference = filters.mean(0)
    brute = clock(lambda: brute_shifts(filters, reference, farthest), arguments.repeats, device)
    repeats = max(11, arguments.repeats)  # milliseconds each
    fourier = clock(lambda: fourier_shifts(filters, reference, farthest), repeats, device)
    ours = clock(lambda: find_shifts(filters, reference, farthest), repeats, device)
    same = bool((brute[2] == ours[2]).all() and (fourier[2] == ours[2]).all())
    print(f"shift search, {count} filters of {filters.shape[1]} lags, {2 * farthest + 1} shifts")
    print(f"  Fourier transforms    {1e3 * fourier[0]:8.1f} ms")
    print(
        f"  find_shifts           {1e3 * ours[0]:8.1f} ms  {fourier[0] / ours[0]:.2g}x by the clock, {fourier[1] / ours[1]:.2g}x by processor time"
    )
    print(f"  all copies (textbook) {1e3 * brute[0]:8.1f} ms")
    print(f"  shifts identical: {same}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--outputs", type=int, nargs="*", default=[1, 119])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--no-textbook", action="store_true", help="leave the textbook loop out")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        which, outputs = arguments.memory_of
        report_memory(which, int(outputs), arguments.device)
        return
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads")
    for outputs in arguments.outputs:
        compare(outputs, arguments)
    compare_shifts(arguments)


if __name__ == "__main__":
    main()
