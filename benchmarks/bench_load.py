"""Seconds to load NS1 in a fresh process, from the public files and from the parsed cache: `python benchmarks/bench_load.py`.

The yardstick is the first load, which parses 119 spike files and 20 sounds. Each load is timed inside its own process,
after `import torch` and before anything else, so the second load pays for every import it needs. Needs NS1: set
DEEPSTRF_DATA_DIR. The cache goes to a temporary folder, never to the user's.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile

CODE = """
import sys, time, torch
start = time.perf_counter()
from deepSTRF.datasets.audio import NS1Dataset
NS1Dataset(return_waveform={waveform})
sys.stdout.write(str(time.perf_counter() - start))
"""
BUDGET_S = 0.5
ROUNDS = 5


def load(waveform: bool, cache: str) -> float:
    """Seconds of one load in a fresh process."""
    environment = {**os.environ, "DEEPSTRF_CACHE_DIR": cache}
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(waveform=waveform)],
        env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout)


def main() -> None:
    """Print first and later loads of both modes."""
    for waveform in (False, True):
        with tempfile.TemporaryDirectory() as cache:
            first = load(waveform, cache)
            later = [load(waveform, cache) for _ in range(ROUNDS)]
        median = statistics.median(later)
        mode = "waveform" if waveform else "spectrogram"
        print(
            f"{mode:12s} first {first:5.2f} s   later {median:.2f} s (median of {ROUNDS}, {min(later):.2f}-{max(later):.2f}; "
            f"asked <= {BUDGET_S})   ratio {first / median:.0f}x"
        )


if __name__ == "__main__":
    main()
