"""Cost of the recurrent backbones against `torch.nn.GRU`: `python benchmarks/bench_backbones.py [--device cuda] [--batch 8]`.

One clip of NS1 is 999 frames, StateNet has 70 features. Each backbone takes turns with `nn.GRU` in one process, forward
without gradients and forward and backward; a ratio below 1 is faster than `nn.GRU`. Then one frame at a time, as a stream.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from deepSTRF.models.backbones import GRU, LMU, LSTM, RNN, S4, S4D, Mamba, ParallelGRU

BACKBONES: dict[str, Callable[[int], nn.Module]] = {
    "GRU": lambda width: GRU(width, width),
    "GRU in 2 groups": lambda width: ParallelGRU(width, width),
    "LSTM": lambda width: LSTM(width, width),
    "RNN": lambda width: RNN(width, width),
    "LMU": lambda width: LMU(width, width),
    "LMU, 32 coefficients": lambda width: LMU(width, width, memory_size=32),
    "LMU without feedback": lambda width: LMU(width, width, feedback=False),
    "Mamba": lambda width: Mamba(width, width),
    "S4": lambda width: S4(width, width),
    "S4D": lambda width: S4D(width, width),
}
STREAMED = 200


class Yardstick(nn.Module):
    """`nn.GRU` as it comes."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gru = nn.GRU(width, width, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.gru(x)[0]


def seconds(work: Callable[[], Any], device: str) -> tuple[float, float]:
    """Wall and processor time of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - wall, time.process_time() - cpu


def median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


def forward(module: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        module(x)


def train(module: nn.Module, x: torch.Tensor) -> None:
    module.zero_grad()
    module(x).square().mean().backward()


def compare(
    module: nn.Module, yardstick: nn.Module, x: torch.Tensor, arguments: argparse.Namespace
) -> list[str]:
    """Milliseconds of the backbone, and ratios to the yardstick by the clock and by processor time."""
    cells = []
    for work in (forward, train):
        ours, theirs = [], []
        for _ in range(arguments.rounds + 1):
            ours.append(seconds(lambda work=work: work(module, x), arguments.device))
            theirs.append(seconds(lambda work=work: work(yardstick, x), arguments.device))
        wall, cpu = (median([one[kind] for one in ours[1:]]) for kind in (0, 1))  # the first call warms up
        wall_gru, cpu_gru = (median([one[kind] for one in theirs[1:]]) for kind in (0, 1))
        cells.append(f"{1e3 * wall:9.1f} ms {wall / wall_gru:6.2f} x ({cpu / cpu_gru:.2f} x)")
    return cells


def per_frame(module: nn.Module, width: int, device: str) -> float:
    """Milliseconds of processor time per frame of a stream."""
    module.eval()
    state, frame = module.init_state(1), torch.randn(1, 1, width, device=device)
    with torch.inference_mode():
        for _ in range(20):
            _, state = module.step(frame, state)
        start = time.process_time()
        for _ in range(STREAMED):
            _, state = module.step(frame, state)
    return (time.process_time() - start) / STREAMED * 1e3


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--frames", type=int, default=999)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--width", type=int, default=70)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="*", choices=list(BACKBONES))
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    width, device = arguments.width, arguments.device
    yardstick = Yardstick(width).to(device)
    x = torch.randn(arguments.batch, arguments.frames, width, device=device)
    print(f"torch {torch.__version__}, {device}, {arguments.threads} thread(s); {arguments.batch} clip(s) of "
          f"{arguments.frames} frames, width {width}; x: against nn.GRU by the clock (by processor time)")  # fmt: skip
    print(
        f"{'backbone':<22}{'parameters':>11}   {'forward':<32}{'forward + backward':<32}streamed, per frame"
    )
    for name in arguments.only or BACKBONES:
        module = BACKBONES[name](width).to(device)
        cells = compare(module, yardstick, x, arguments)
        count = sum(parameter.numel() for parameter in module.parameters())
        print(
            f"{name:<22}{count:>11,}   {cells[0]:<32}{cells[1]:<32}{per_frame(module, width, device):6.2f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
