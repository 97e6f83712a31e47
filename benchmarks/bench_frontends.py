"""Time the waveform front-ends against hand-written forms, run beside them.

    python benchmarks/bench_frontends.py        # 14 + 3 clips of 5 s at 48 kHz, 34 bands, 119 neurons
    python benchmarks/bench_frontends.py --threads 1 --only leaf
    python benchmarks/bench_frontends.py --device cuda --compile

What is timed. A training epoch is 14 clips of noise, batch 1, forward and backward through the front-end and
a Linear readout with one AdamW step each, then 3 validation clips without gradient. "First epoch" of a fixed
front-end is the same with nothing remembered; a Fitter caches it afterwards. The yardstick is the textbook
form: conv1d at stride 1 with one kernel length for all channels, magnitude, depthwise pooling convolution, a
recursion in a loop over frames; its subnormal taps are zeroed, so that it is not slow for a silly reason. It
is timed on `--yardstick-clips` clips and scaled to the epoch. Memory is what one training clip and one
validation clip add to the resident set of a fresh process, at its highest, once the libraries have been warmed
up on a few samples (on a GPU, the allocator's peak).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from scipy.fft import next_fast_len
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.dsp.gammatone import gammatone_length
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import (
    CausalGammatone,
    CausalLEAF,
    CausalMelSpectrogram,
    Gammatonegram,
    SincNet,
)

FS, HOP, F, N = 48000, 240, 34, 119
T_AUDIO = 999 * HOP
TRAIN, VALIDATION = 14, 3
SINCNET = {"n_filters": F, "kernel_size": 753, "f_min": 500.0, "f_max": 22627.0}


class Textbook(nn.Module):
    """Stride-1 filters of one length, a detector, a pooling convolution, a compression: nothing clever."""

    out_channels, hop, audio_fs = F, HOP, FS

    def __init__(self, detector: str, compress: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.detector, self.compress = detector, compress

    def filters(self) -> tuple[Tensor, Tensor]:
        """Taps (2F or F, 1, K) and pooling windows (F, 1, L), both in the order of conv1d."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        taps, windows = self.filters()
        taps = torch.where(taps.abs() < 1e-30, torch.zeros_like(taps), taps)
        y = functional.conv1d(functional.pad(x, (taps.shape[-1] - 1, 0)), taps)
        if self.detector == "magnitude":
            y = torch.sqrt(y[:, :F].square() + y[:, F:].square() + 1e-9)
        else:
            y = y.abs() if self.detector == "full" else y.relu()
        y = functional.pad(y, (windows.shape[-1] - HOP, 0))
        return self.compress(functional.conv1d(y, windows, stride=HOP, groups=F)).unsqueeze(1)


def loop_pcen(energy: Tensor, s: Tensor, alpha: Tensor, delta: Tensor, root: Tensor) -> Tensor:
    """The recursion frame by frame, as written in the papers."""
    memory, frames = torch.zeros_like(energy[..., 0]), []
    for t in range(energy.shape[-1]):
        memory = (1 - s) * memory + s * energy[..., t]
        frames.append(memory)
    mean = torch.stack(frames, -1)
    alpha, delta, root = (value.unsqueeze(-1) for value in (alpha, delta, root))
    return (energy / (1e-6 + mean) ** alpha + delta) ** root - delta**root


class TextbookLEAF(Textbook):
    """LEAF with a common kernel of 15 ms, as the earlier package documents it."""

    def __init__(self) -> None:
        super().__init__("magnitude", self.normalise)
        leaf = CausalLEAF(FS)
        self.center = nn.Parameter(leaf.center_freq_.detach().clone())
        self.sigma = nn.Parameter(leaf.gabor_sigma.detach().clone())
        self.pool = nn.Parameter(torch.full((F,), float(HOP)))
        self.pcen = nn.ParameterList([nn.Parameter(torch.full((F,), v)) for v in (0.04, 0.96, 2.0, 0.5)])

    def filters(self) -> tuple[Tensor, Tensor]:
        n = torch.arange(-360.0, 361.0, device=self.sigma.device)
        envelope = torch.exp(-0.5 * (n / self.sigma.unsqueeze(-1)) ** 2)
        envelope = envelope / envelope.sum(-1, keepdim=True)
        phase = self.center.unsqueeze(-1) * n
        age = torch.arange(4 * HOP - 1.0, -1.0, -1.0, device=self.sigma.device)
        window = torch.exp(-0.5 * (age / self.pool.unsqueeze(-1)) ** 2)
        taps = torch.cat([envelope * phase.cos(), envelope * phase.sin()])
        return taps.unsqueeze(1), (window / window.sum(-1, keepdim=True)).unsqueeze(1)

    def normalise(self, energy: Tensor) -> Tensor:
        return loop_pcen(energy, *self.pcen)


class TextbookSincNet(Textbook):
    """SincNet with stride-1 conv1d, absolute value and a flat window: the published form."""

    def __init__(self) -> None:
        super().__init__("full", torch.log1p)
        sincnet = SincNet(FS, **SINCNET, envelope=True)
        self.low = nn.Parameter(sincnet.f1.detach().clone())
        self.band = nn.Parameter((sincnet.f2 - sincnet.f1).detach().clone())
        self.register_buffer("window", torch.hamming_window(753, periodic=False))

    def filters(self) -> tuple[Tensor, Tensor]:
        n = torch.arange(-376.0, 377.0, device=self.low.device)
        low = self.low.abs().unsqueeze(-1) / FS
        high = low + self.band.abs().unsqueeze(-1) / FS
        taps = 2 * high * torch.sinc(2 * high * n) - 2 * low * torch.sinc(2 * low * n)
        flat = torch.full((F, 1, 2 * HOP), 1 / (2 * HOP), device=n.device)
        return (taps * self.window).unsqueeze(1), flat


class TextbookGammatone(Textbook):
    """Half-wave gammatone filters, one kernel length (1e-8 of the longest one's energy is cut off), stride 1."""

    def __init__(self) -> None:
        super().__init__("halfwave", lambda energy: energy.clamp_min(1e-4).log())
        bank = CausalGammatone(FS)
        longest = max(gammatone_length(bank.frequencies_hz, FS))
        self.register_buffer("taps", bank.impulse_responses[:, :longest].flip(-1).unsqueeze(1))

    def filters(self) -> tuple[Tensor, Tensor]:
        return self.taps, torch.full((F, 1, 2 * HOP), 1 / (2 * HOP), device=self.taps.device)


class Strided:
    """Complex filters at every 4th sample by one matrix product; what is rectified by one Fourier transform."""

    #: LEAF's output then differs by 0.8 % of its range: its narrowest envelope has a sigma of 3 samples.
    stride = 4

    def forward(self, x: Tensor) -> Tensor:
        taps, windows = self.filters()  # type: ignore[attr-defined]
        taps = taps.squeeze(1)
        n_taps, stride = taps.shape[-1], self.stride
        if self.detector == "magnitude":  # type: ignore[attr-defined]
            frames = functional.pad(x[:, 0], (n_taps - stride, 0)).unfold(-1, n_taps, stride)
            y = (frames @ taps.T).transpose(1, 2)
            y = torch.sqrt(y[:, :F].square() + y[:, F:].square() + 1e-9)
            windows = windows[..., stride - 1 :: stride] * stride
        else:
            size = next_fast_len(x.shape[-1] + n_taps - 1, real=True)
            y = torch.fft.irfft(torch.fft.rfft(x, size) * torch.fft.rfft(taps.flip(-1), size), size)
            y = y[..., : x.shape[-1]]
            y, stride = (y.abs() if self.detector == "full" else y.relu()), 1  # type: ignore[attr-defined]
        hop = HOP // stride
        y = functional.pad(y, (windows.shape[-1] - hop, 0))
        return self.compress(functional.conv1d(y, windows, stride=hop, groups=F)).unsqueeze(1)  # type: ignore[attr-defined]


class StridedLEAF(Strided, TextbookLEAF):
    """LEAF by a matrix product, with PCEN's recursion as a convolution."""

    def normalise(self, energy: Tensor) -> Tensor:
        s, alpha, delta, root = (value.unsqueeze(-1) for value in self.pcen)
        n = energy.shape[-1]
        kernel = s * (1 - s).pow(torch.arange(n, device=energy.device))
        mean = torch.fft.irfft(torch.fft.rfft(energy, 2 * n) * torch.fft.rfft(kernel, 2 * n), 2 * n)[..., :n]
        return (energy / (1e-6 + mean.clamp_min(0)) ** alpha + delta) ** root - delta**root


class FourierSincNet(Strided, TextbookSincNet):
    """SincNet by Fourier transforms: a rectified real filter has no smooth envelope."""


class FourierGammatone(Strided, TextbookGammatone):
    """Gammatone filters by Fourier transforms."""


FRONT_ENDS: dict[str, Callable[[], nn.Module]] = {
    "mel": lambda: CausalMelSpectrogram(FS),
    "gammatone": lambda: CausalGammatone(FS),
    "gammatone-analytic": lambda: CausalGammatone(FS, rectify="analytic"),
    "gammatonegram": lambda: Gammatonegram(FS, n_filters=F),
    "sincnet": lambda: SincNet(FS, **SINCNET, envelope=True, env_window_ms=10.0),
    "sincnet-signed": lambda: SincNet(FS, **SINCNET),
    "leaf": lambda: CausalLEAF(FS),
}
YARDSTICKS: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "gammatone": ("Fourier gammatone", FourierGammatone),
    "gammatone-analytic": ("Fourier gammatone", FourierGammatone),
    "sincnet": ("Fourier SincNet", FourierSincNet),
    "leaf": ("strided LEAF", StridedLEAF),
}
TEXTBOOK: dict[str, tuple[str, Callable[[], nn.Module]]] = {
    "gammatone": ("textbook gammatone", TextbookGammatone),
    "sincnet": ("textbook SincNet", TextbookSincNet),
    "leaf": ("textbook LEAF", TextbookLEAF),
}


class Epoch:
    """Times training and validation clips of one front-end with a Linear readout."""

    def __init__(self, front_end: nn.Module, arguments: argparse.Namespace) -> None:
        torch.manual_seed(0)
        self.device = torch.device(arguments.device)
        self.model = Linear(F, 9, N, wav2spec=front_end).to(self.device)
        self.run = torch.compile(self.model) if arguments.compile else self.model
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3)
        self.sound = 0.2 * torch.randn(1, 1, T_AUDIO, device=self.device)
        self.rates = torch.rand(1, N, 1, T_AUDIO // HOP, device=self.device)

    def train_clip(self) -> None:
        self.optimizer.zero_grad()
        functional.mse_loss(self.run(self.sound), self.rates).backward()
        self.optimizer.step()

    def validate_clip(self) -> None:
        with torch.no_grad():
            self.run(self.sound)

    def time(self, work: Callable[[], None], repeats: int) -> tuple[float, float]:
        """Median wall seconds and mean processor seconds of one call."""
        work()
        walls, cpu = [], time.process_time()
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            walls.append(time.perf_counter() - start)
        return sorted(walls)[len(walls) // 2], (time.process_time() - cpu) / repeats

    def measure(self, clips: int) -> dict[str, float]:
        self.model.train()
        train, train_cpu = self.time(self.train_clip, clips)
        self.model.eval()
        validate, validate_cpu = self.time(self.validate_clip, max(1, clips // 3))
        return {
            "clip": train,
            "forward": validate,
            "epoch": TRAIN * train + VALIDATION * validate,
            "epoch_cpu": TRAIN * train_cpu + VALIDATION * validate_cpu,
        }


def peak_memory(name: str, arguments: argparse.Namespace) -> float:
    """Peak memory in MB of one training clip in a process of its own."""
    command = [sys.executable, __file__, "--memory-of", name, "--device", arguments.device]
    command += ["--threads", str(arguments.threads)]
    return float(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["mb"])


def report_memory(name: str, arguments: argparse.Namespace) -> None:
    make = {**FRONT_ENDS, **dict(YARDSTICKS.values()), **dict(TEXTBOOK.values())}[name]
    epoch = Epoch(make(), arguments)
    warm_up(epoch.device)
    before = forget_peak()
    epoch.train_clip()
    epoch.validate_clip()
    on_gpu = epoch.device.type == "cuda"
    used = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else peak_resident_mb() - before
    print(json.dumps({"mb": used}))


def warm_up(device: torch.device) -> None:
    """Load what every front-end makes torch load: convolution, product, Fourier transform, backward, optimiser."""
    weight = nn.Parameter(torch.randn(8, 1, 9, device=device))
    y = functional.conv1d(torch.randn(1, 1, 256, device=device), weight)
    (torch.fft.rfft(y @ torch.randn(248, 64, device=device)).abs().sum()).backward()
    torch.optim.AdamW([weight]).step()


def forget_peak() -> float:
    """Start the peak anew where the system allows it (Linux); returns the resident set now, in MB.

    Without it the peak of the imports would hide work that fits beneath it.
    """
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return peak_resident_mb()


def peak_resident_mb() -> float:
    """Largest resident set of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # ru_maxrss of a child starts at its parent's size on Linux
        line = next(row for row in status.read_text().splitlines() if row.startswith("VmHWM"))
        return float(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", action="store_true", help="time our modules under torch.compile")
    parser.add_argument("--only", nargs="*", choices=sorted(FRONT_ENDS))
    parser.add_argument("--clips", type=int, default=TRAIN, help="clips timed per front-end")
    parser.add_argument("--yardstick-clips", type=int, default=3)
    parser.add_argument("--textbook", action="store_true", help="the textbook forms too")
    parser.add_argument("--no-memory", action="store_true")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        report_memory(arguments.memory_of, arguments)
        return
    print(f"torch {torch.__version__}, {arguments.device}, {arguments.threads} threads; one epoch = {TRAIN} clips of "
          f"{T_AUDIO / FS:.1f} s forward and backward + {VALIDATION} forward; {F} bands, {N} neurons")  # fmt: skip
    print(f"{'front-end':<22}{'clip f+b':>10}{'forward':>10}{'epoch':>9}{'(cpu)':>9}{'memory':>10}   against")
    measured: dict[str, dict[str, float]] = {}
    for name in arguments.only or FRONT_ENDS:
        ours = Epoch(FRONT_ENDS[name](), arguments).measure(arguments.clips)
        notes = []
        for table in (YARDSTICKS, TEXTBOOK) if arguments.textbook else (YARDSTICKS,):
            if name not in table:
                continue
            label, make = table[name]
            if label not in measured:
                plain = argparse.Namespace(**{**vars(arguments), "compile": False})
                measured[label] = Epoch(make(), plain).measure(arguments.yardstick_clips)
                print_row(label, measured[label], arguments, "")
            notes.append(
                f"{label}: {measured[label]['epoch'] / ours['epoch']:.1f}x by the clock, "
                f"{measured[label]['epoch_cpu'] / ours['epoch_cpu']:.1f}x by processor time"
            )
        print_row(name, ours, arguments, "; ".join(notes))
    if arguments.device == "cpu":
        stream_speed()


def print_row(name: str, row: dict[str, float], arguments: argparse.Namespace, note: str) -> None:
    memory = math.nan if arguments.no_memory else peak_memory(name, arguments)
    print(
        f"{name:<22}{1e3 * row['clip']:>7.1f} ms{1e3 * row['forward']:>7.1f} ms{row['epoch']:>7.2f} s"
        f"{row['epoch_cpu']:>7.2f} s{memory:>7.0f} MB   {note}",
        flush=True,
    )


def stream_speed() -> None:
    """Print how much faster than real time each front-end runs in steps of one 5 ms frame, on one core."""
    torch.set_num_threads(1)
    print("streaming, one core, one frame of 5 ms at a time (asked: 5x real time):")
    for name, make in FRONT_ENDS.items():
        front_end = make().eval()
        state = front_end.init_state(1)
        chunk = 0.2 * torch.randn(1, 1, HOP)
        with torch.inference_mode():
            for step in range(220):
                if step == 20:  # filters are laid out, caches are warm
                    wall, cpu = time.perf_counter(), time.process_time()
                _, state = front_end.step(chunk, state)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        print(f"  {name:<20}{wall / 200 * 1e3:6.2f} ms per frame, {1.0 / wall:5.1f}x real time "
              f"({1.0 / cpu:.1f}x by processor time)")  # fmt: skip


if __name__ == "__main__":
    main()
