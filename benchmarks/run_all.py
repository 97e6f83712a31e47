"""Run the speed benchmarks and put what they print into `benchmarks/RESULTS.md`: `python benchmarks/run_all.py [NAME ...]`.

Needs an otherwise idle machine: two processes that both want every core slow each other tenfold. The scores on NS1 have a
command of their own, `benchmarks/ns1_records.py`, because they take longer.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

from results_page import machine, write_section

HERE = Path(__file__).parent
#: Section name: (title, command line after `python`).
BENCHMARKS = {
    "fit": ("Seconds per epoch of a fit", "benchmarks/bench_fit.py"),
    "many": ("A thousand single-neuron fits together", "benchmarks/bench_many.py --threads 1"),
    "sweeps": (
        "Sweeps whose seeds are trained together",
        "benchmarks/bench_sweeps.py --models linear linear_nonlinear nrf dnet",
    ),
    "growth": ("What a fit costs as recordings grow, beside loops by hand", "benchmarks/bench_growth.py"),
    "metrics": ("Scores and ceilings of a large recording", "benchmarks/bench_metrics.py"),
    "frontends": ("Waveform front-ends", "benchmarks/bench_frontends.py"),
    "ridge": ("Ridge STRFs on NS1: how the window matters", "benchmarks/bench_ridge.py --threads 2"),
    "ridge-growth": (
        "Ridge at other sizes, beside numpy by hand",
        "benchmarks/bench_ridge.py --threads 1 --growth",
    ),
    "ridge-nested": (
        "Nested leave-one-clip-out ridge on NS1, with intervals",
        "benchmarks/bench_ridge.py --threads 2 --nested",
    ),
    "toolboxes": ("Ridge beside scikit-learn, mTRFpy and MNE", "benchmarks/bench_toolboxes.py"),
    "linear": (
        "Linear models on NS1, method by method",
        "benchmarks/bench_linear.py --threads 1 --lags 15 40",
    ),
    "backbones": ("Recurrent backbones", "benchmarks/bench_backbones.py"),
    "kernels": ("Kernels of the linear model, started from ridge", "benchmarks/bench_kernels.py"),
    "zoo": ("Cost of every model", "benchmarks/bench_zoo.py"),
    "icnet": ("Cost of ICNet", "benchmarks/bench_zoo.py icnet --epochs 2"),
    "dstrf": ("Dynamic STRFs and their shift search", "benchmarks/bench_dstrf.py --no-textbook --repeats 1"),
    "load": ("Loading NS1, from its files and from the cache", "benchmarks/bench_load.py"),
    "long": ("A recording of ten hours in bounded memory", "benchmarks/bench_long.py --write"),
    "inference": ("False positives of tests, coverage of intervals", "benchmarks/bench_inference.py"),
    "stream": ("Live streams: real-time factor and latency", "benchmarks/bench_stream.py --hour"),
    "server": (
        "A server of live streams: processor time and latency, beside an echo",
        "benchmarks/bench_server.py",
    ),
    "export": ("Exported weights in 16 and 8 bits", "benchmarks/bench_export.py"),
    "compile": ("Whole models by torch.compile", "benchmarks/bench_export.py --compile"),
    "verify": ("What checksums add to a load", "benchmarks/bench_verify.py"),
}


def run(name: str) -> int:
    """Run one benchmark and write its section; returns its exit status."""
    title, command = BENCHMARKS[name]
    done = subprocess.run(
        [sys.executable, *shlex.split(command)], cwd=HERE.parent, capture_output=True, text=True, check=False
    )
    sys.stdout.write(done.stdout)
    if done.returncode != 0:
        sys.stderr.write(done.stderr)
        return done.returncode
    write_section(name, title, f"`python {command}`\n\n{machine()}\n\n```text\n{done.stdout.strip()}\n```")
    return 0


def main() -> int:
    """Run the chosen benchmarks; exit status 1 when one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(BENCHMARKS)}"
    )
    names = parser.parse_args().names or list(BENCHMARKS)
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"unknown benchmark {unknown[0]!r}; benchmarks: {', '.join(BENCHMARKS)}")
    return max(run(name) for name in names)  # a failed one does not stop the others


if __name__ == "__main__":
    sys.exit(main())
