"""Seconds per training epoch and peak memory of every model, beside a plain loop over the same module.

    python benchmarks/bench_zoo.py                  # all but ICNet
    python benchmarks/bench_zoo.py statenet --threads 1
    python benchmarks/bench_zoo.py icnet            # one training step: an epoch takes minutes on a CPU

The epoch is that of `bench_fit.py`: 14 clips of NS1 one at a time, forward and backward, 3 validation clips, scores of
both. The plain loop is the hand-written one of that file. Each model runs in a fresh process; memory is what its fit adds to
the resident set at the highest, once the recording is loaded.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

import torch
from torch.utils.data import DataLoader, Subset

from bench_fit import fit, handwritten, recording
from bench_frontends import forget_peak, peak_resident_mb
from deepSTRF.datasets import neural_collate
from deepSTRF.metrics import poisson_loss
from deepSTRF.models.audio import ICNet
from deepSTRF.registry import MODELS

#: Row name: (registered model, options beyond the sizes of the recording).
ZOO: dict[str, tuple[str, dict[str, object]]] = {
    "linear": ("linear", {}),
    "linear_nonlinear": ("linear_nonlinear", {}),
    "nrf": ("nrf", {}),
    "dnet": ("dnet", {}),
    "convnet2d": ("convnet2d", {}),
    "transformer, window 40": ("transformer", {"context_window": 40}),
    **{
        f"statenet, {name}": ("statenet", {"rnn_type": name})
        for name in ("GRU", "LSTM", "RNN", "LMU", "Mamba", "S4", "S4D")
    },
}


def measure(name: str, arguments: argparse.Namespace) -> dict[str, float]:
    """One model in this process: medians of both loops, and the memory its fit added."""
    kind, options = ZOO[name]
    dataset = recording(waveform=False)
    loader = {"batch_size": 1, "collate_fn": neural_collate}
    train = DataLoader(Subset(dataset, range(14)), shuffle=True, **loader)
    val = DataLoader(Subset(dataset, range(14, 17)), **loader)

    def build() -> torch.nn.Module:
        torch.manual_seed(0)
        sizes = {"n_frequency_bands": dataset.F, "out_neurons": dataset.N_neurons}
        return MODELS.get(kind)(**sizes, **options)

    model = build()
    model(torch.zeros(1, 1, dataset.F, 100)).sum().backward()  # loads the libraries a first call loads
    before = forget_peak()
    ours = fit(model, train, val, arguments.epochs, fast=True)
    added = peak_resident_mb() - before
    plain = handwritten(build(), train, val, arguments.epochs)
    return {
        "parameters": model.count_trainable_params(),
        "wall": statistics.median(wall for wall, _ in ours[1:]),
        "plain": statistics.median(wall for wall, _ in plain[1:]),
        "memory": added,
    }


def measure_icnet(arguments: argparse.Namespace) -> None:
    """One training step of ICNet on one clip of five seconds, and what it takes."""
    dataset = recording(waveform=True)
    torch.manual_seed(0)
    model = ICNet(audio_fs=dataset.audio_fs, out_neurons=dataset.N_neurons, dt_ms=dataset.dt)
    optimizer = torch.optim.AdamW(model.param_groups(4e-4))
    clip = neural_collate([dataset[0]])
    before, seconds = forget_peak(), []
    for _ in range(max(2, arguments.epochs)):
        started = time.perf_counter()
        optimizer.zero_grad()
        poisson_loss(model(clip["stims"]), clip["responses"]).backward()
        optimizer.step()
        seconds.append(time.perf_counter() - started)
    length = clip["stims"].shape[-1] / dataset.audio_fs
    print(f"ICNet, {model.count_trainable_params():,} parameters: one step on {length:.1f} s of sound")
    print(
        f"  {statistics.median(seconds):.1f} s (median of {len(seconds)}), {peak_resident_mb() - before:.0f} MB"
    )
    print(
        f"  an epoch of 14 clips is about {14 * statistics.median(seconds) / 60:.1f} min without validation"
    )


def main() -> int:
    """Measure the chosen models, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="MODEL", help=f"icnet, or any of: {'; '.join(ZOO)}")
    parser.add_argument("--epochs", type=int, default=5, help="epochs of each loop; the first does not count")
    parser.add_argument("--threads", type=int, default=0, help="threads of PyTorch (0 leaves them)")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    if arguments.alone:
        print(json.dumps(measure(arguments.alone, arguments)))
        return 0
    if arguments.names == ["icnet"]:
        measure_icnet(arguments)
        return 0
    chosen = [row for row in ZOO if not arguments.names or any(row.startswith(n) for n in arguments.names)]
    if not chosen:
        parser.error(f"no model begins with {arguments.names}; models: icnet, {', '.join(ZOO)}")
    print(
        f"{torch.get_num_threads()} threads, torch {torch.__version__}; medians of {arguments.epochs - 1} epochs"
    )
    print(f"{'model':<24} {'parameters':>10} {'epoch':>9} {'plain loop':>11} {'ratio':>6} {'memory':>8}")
    for row in chosen:
        command = [sys.executable, __file__, "--alone", row, "--epochs", str(arguments.epochs)]
        command += ["--threads", str(arguments.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.stderr.write(done.stderr)
            return done.returncode
        found = json.loads(done.stdout.splitlines()[-1])
        print(
            f"{row:<24} {found['parameters']:>10,} {found['wall']:>7.3f} s {found['plain']:>9.3f} s "
            f"{found['plain'] / found['wall']:>5.1f}x {found['memory']:>5.0f} MB",
            flush=True,
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
