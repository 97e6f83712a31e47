"""Ridge STRFs beside scikit-learn, mTRFpy and MNE: `python benchmarks/bench_toolboxes.py [CASE ...] [--threads 1]`.

Every side fits the same recording, noise and linear neurons, with one penalty and without standardisation, in a process
of its own: processor seconds, peak of memory above what the recording takes (float32), and how far its weights are from
ours. What a toolbox needs of its user is part of it: arrays in double precision, in which ours sums too, and the design
matrix for scikit-learn's `Ridge`. MNE's `ReceptiveField` corrects sums at the ends of clips where the others take silence,
and so differs a little. The line "12 penalties" is ours with twelve of them, one chosen per neuron on further clips; the
others start anew for each. Needs mne, mtrf and scikit-learn, which the development extra installs. The exit status is 1
where a toolbox takes less than 0.9 of our time or memory.

- neurons: 5,000 neurons, 14 clips of 1,000 bins, 34 bands, 40 lags;
- hour: one clip of an hour in bins of 10 ms, 100 neurons, 18 bands, 20 lags.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from bench_growth import measured
from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import NeuralDataset

FS, PENALTY = 100, 1e3
#: Two equal sides differ by a few percent from one process to the next.
AHEAD = 0.9
Clips = list[np.ndarray]


class Case(NamedTuple):
    """Size of a recording."""

    title: str
    neurons: int
    clips: int
    bins: int
    bands: int
    lags: int


CASES = {
    "neurons": Case("5,000 neurons, 14 clips of 1,000 bins, 34 bands, 40 lags", 5000, 14, 1000, 34, 40),
    "hour": Case("one clip of an hour in bins of 10 ms, 100 neurons, 18 bands, 20 lags", 100, 1, 360_000, 18, 20),
}  # fmt: skip


def recording(case: Case) -> tuple[Clips, Clips]:
    """Stimuli (T, F) and responses (T, N) of linear neurons with noise; three more clips to choose on."""
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(case.bands, case.neurons)).astype(np.float32)
    stims, responses = [], []
    for bins in [case.bins] * case.clips + [1000] * 3:
        stim = rng.standard_normal((bins, case.bands), dtype=np.float32)
        drive = np.roll(stim, 3, axis=0) @ weights
        responses.append(drive + 5 * rng.standard_normal(drive.shape, dtype=np.float32))
        stims.append(stim)
    return stims, responses


def ours(case: Case, stims: Clips, responses: Clips, found: dict[str, float], many: bool) -> np.ndarray:
    ds = NeuralDataset.from_arrays(
        [stim.T for stim in stims],
        [response.T[:, None] for response in responses],
        1000.0 / FS,
        response_kind="trace",
        check_alignment=False,
    )
    stims.clear()
    responses.clear()
    train, validation = ds.select(clips=range(case.clips)), ds.select(clips=range(case.clips, len(ds)))
    lambdas = np.logspace(1, 5, 12).tolist() if many else PENALTY
    with measured(found):
        fit = fit_ridge(
            train, validation if many else None, n_lags=case.lags, lambdas=lambdas, standardize=False
        )
    return fit.weight[:, 0].flip(-1).numpy()


def of_sklearn(case: Case, stims: Clips, responses: Clips, found: dict[str, float]) -> np.ndarray:
    from sklearn.linear_model import Ridge

    with measured(found):
        y = np.concatenate(responses[: case.clips], dtype=np.float64)
        rows = []
        for stim in stims[: case.clips]:
            padded = np.pad(stim.astype(np.float64), ((case.lags - 1, 0), (0, 0)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, case.lags, axis=0)  # (T, F, L)
            rows.append(windows[..., ::-1].reshape(len(stim), -1))
        x = np.concatenate(rows) if len(rows) > 1 else rows[0]
        del rows
        model = Ridge(alpha=PENALTY, copy_X=False).fit(x, y)
    return model.coef_.reshape(case.neurons, case.bands, case.lags)


def of_mtrf(case: Case, stims: Clips, responses: Clips, found: dict[str, float]) -> np.ndarray:
    from mtrf.model import TRF

    model = TRF()
    with measured(found):
        x, y = ([clip.astype(np.float64) for clip in clips[: case.clips]] for clips in (stims, responses))
        # its penalty is one of the mean over clips, times the sampling rate
        model.train(x, y, FS, 0.0, (case.lags - 1) / FS, PENALTY / FS / case.clips, verbose=False)
    return model.weights.transpose(2, 0, 1) / FS


def of_mne(case: Case, stims: Clips, responses: Clips, found: dict[str, float]) -> np.ndarray:
    import mne

    mne.set_log_level("error")
    model = mne.decoding.ReceptiveField(0.0, (case.lags - 1) / FS, FS, estimator=PENALTY)
    with measured(found):
        x, y = (np.stack(clips[: case.clips], axis=1, dtype=np.float64) for clips in (stims, responses))
        model.fit(x, y)
    return model.coef_


SIDES: dict[str, Callable[..., np.ndarray]] = {
    "fit_ridge": lambda *given: ours(*given, many=False),
    "12 penalties": lambda *given: ours(*given, many=True),
    "scikit-learn": of_sklearn,
    "mTRFpy": of_mtrf,
    "MNE": of_mne,
}


def run(name: str, side: str, threads: int, file: Path) -> dict[str, float]:
    """One side in a process of its own, its weights in a file."""
    command = [sys.executable, __file__, name, "--side", side, "--threads", str(threads), "--file", str(file)]
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | limits)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("cases", nargs="*", choices=[*CASES, []], help="which (default: all)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    if a.side:
        found: dict[str, float] = {}
        case = CASES[a.cases[0]]
        np.save(a.file, SIDES[a.side](case, *recording(case), found))
        print(json.dumps(found))
        return 0
    behind = 0
    print(f"{a.threads} thread(s), processor time")
    for name in a.cases or CASES:
        print(f"{name}: {CASES[name].title}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            results: dict[str, dict[str, float]] = {}
            for side in SIDES:
                file = Path(folder) / f"{len(results)}.npy"
                found = results[side] = run(name, side, a.threads, file)
                here, first = found["seconds"], results["fit_ridge"]
                line = f"  {side:14s} {here:8.2f} s  {found['peak_mb']:7.0f} MB"
                line += f"  {here / first['seconds']:6.1f}x the time, {found['peak_mb'] / first['peak_mb']:5.1f}x the memory"
                if side in ("scikit-learn", "mTRFpy", "MNE"):
                    reference, weights = np.load(Path(folder) / "0.npy"), np.load(file)
                    gap = np.abs(weights - reference).max() / np.abs(reference).max()
                    line += f", weights differ by {gap:.0e}"
                    behind += min(here / first["seconds"], found["peak_mb"] / first["peak_mb"]) < AHEAD
                print(line, flush=True)
    return int(behind > 0)


if __name__ == "__main__":
    sys.exit(main())
