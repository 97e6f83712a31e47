"""What verification adds to a load: ``python benchmarks/bench_verify.py [--megabytes 100]``.

A checkpoint and a dataset of 100 MB are loaded in turns as they are, and as they were before checksums: files
believed, and random weights drawn that the file then replaces. The table shows medians and their ratio, which
must stay below 1.1.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from deepSTRF import _files
from deepSTRF.datasets import NeuralDataset
from deepSTRF.models import NeuralModel, configurable
from deepSTRF.models.audio import Linear

LIMIT = 1.1
BANDS, LAGS = 128, 200


def write(folder: Path, megabytes: int) -> dict[str, Callable[[], Any]]:
    """Make both artefacts; the responses are counts, as most recordings are."""
    Linear(BANDS, LAGS, megabytes * 1_000_000 // (4 * BANDS * LAGS)).save_pretrained(folder / "model")
    rng = np.random.default_rng(0)
    bins = megabytes * 1_000_000 // (4 * BANDS) // 10
    stims = [rng.standard_normal((BANDS, bins)).astype(np.float32) for _ in range(10)]
    responses = [rng.poisson(0.2, (5, 4, bins)) for _ in range(10)]
    NeuralDataset.from_arrays(stims, responses, dt_ms=5.0).save(folder / "ds.npz")
    return {
        "checkpoint": lambda: NeuralModel.from_pretrained(folder / "model"),
        "dataset": lambda: NeuralDataset.load(folder / "ds.npz"),
    }


@contextlib.contextmanager
def unverified() -> Any:
    """Files are believed and weights are drawn, as before checksums."""
    with (
        mock.patch.object(_files.Artefact, "path", lambda self, name: self.folder / name),
        mock.patch.object(_files, "check_zip_seal", return_value=True),
        mock.patch.object(configurable, "_RANDOM", ()),
    ):
        yield


def seconds(load: Callable[[], Any]) -> float:
    started = time.perf_counter()
    load()
    return time.perf_counter() - started


def main() -> int:
    """Print one line per artefact; status 1 when a load takes 10% longer."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=11)
    chosen = parser.parse_args()
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for name, load in write(Path(folder), chosen.megabytes).items():
            load()
            verified, plain = [], []
            for _ in range(chosen.repeats):
                verified.append(seconds(load))
                with unverified():
                    plain.append(seconds(load))
            one, other = statistics.median(verified), statistics.median(plain)
            worst = max(worst, one / other)
            sys.stdout.write(
                f"{name:10s} {one * 1e3:7.0f} ms, before {other * 1e3:7.0f} ms, x {one / other:.3f}\n"
            )
    sys.stdout.write(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {chosen.megabytes} MB\n")
    return worst >= LIMIT


if __name__ == "__main__":
    sys.exit(main())
