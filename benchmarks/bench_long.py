"""Import, ridge, a fit and scores of a long recording in bounded memory: `python benchmarks/bench_long.py [--hours 10]`.

A simulated recording: sounds of an hour (noise in six bands whose levels go up and down), each presented once, and
units with known delays and bands whose spike times are drawn bin by bin. Each stage runs in a process of its own, which
reports its time and its peak memory (`ru_maxrss`: pages of files that are mapped count, those of the page cache do not):

- simulate: the sound files and the spike times of every unit;
- import: `AudioNeuralDataset.from_trials(sounds, trials, spikes, dt_ms=10, features=("spectrogram",), cache=folder)`;
- ridge: `fit_ridge` on all hours but the last two, the penalty chosen on the last but one, read in pieces;
- fit: a `Linear` with `Fitter` on `windows(train, length_s, context_ms=...)`;
- scores: `score_model` of both on the last hour, in pieces.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import soundfile
import torch

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import NeuralDataset, windows
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, make_loaders, score_model

RESULTS = Path(__file__).parent / "results"
STAGES = ("simulate", "import", "ridge", "fit", "scores")
FS, DT_MS = 4000, 10.0
#: Edges of the bands of the sounds in Hz.
EDGES = (60.0, 180.0, 330.0, 540.0, 820.0, 1250.0, 1900.0)
#: Mean rate of a unit in Hz.
RATE_HZ = 3.0
LIMIT_GB = 4.0


def simulate(a: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Sounds of an hour each, and spike times of all units on the clock of the recording."""
    rng = np.random.default_rng(0)
    bins = round(3_600_000 / DT_MS * min(1.0, a.hours / max(3, a.hours)))
    n_sounds = max(3, round(a.hours))
    hop = round(FS * DT_MS / 1000)
    (folder / "sounds").mkdir(parents=True)
    band, delay = rng.integers(0, 6, a.units), rng.integers(1, 8, a.units)
    gain = rng.uniform(0.5, 1.5, a.units)
    spikes: list[list[np.ndarray]] = [[] for _ in range(a.units)]
    onsets = []
    for sound in range(n_sounds):
        steps = rng.standard_normal((6, bins // 5 + 2))
        level = np.repeat(steps, 5, axis=1)[:, :bins]  # steps of 50 ms
        freq = np.fft.rfftfreq(bins * hop, 1 / FS)
        total = np.zeros(bins * hop)
        for k in range(6):
            spectrum = np.fft.rfft(rng.standard_normal(bins * hop))
            spectrum[(freq < EDGES[k]) | (freq >= EDGES[k + 1])] = 0
            total += np.fft.irfft(spectrum, bins * hop) * np.repeat(10 ** (0.4 * level[k]), hop)
        soundfile.write(
            folder / "sounds" / f"hour{sound:02d}.wav", 0.05 * total / total.std(), FS, subtype="PCM_16"
        )
        onset = 10.0 + sound * (bins * DT_MS / 1000 + 5.0)
        onsets.append(onset)
        for unit in range(a.units):
            drive = np.roll(level[band[unit]], delay[unit])
            rate = RATE_HZ * DT_MS / 1000 * np.exp(gain[unit] * drive - gain[unit] ** 2 / 2)
            counts = rng.poisson(rate)
            at = np.repeat(np.arange(bins), counts)
            spikes[unit].append(np.sort(onset + (at + rng.uniform(0.001, 0.999, len(at))) * DT_MS / 1000))
    np.savez(
        folder / "spikes.npz", **{f"u{unit:03d}": np.concatenate(one) for unit, one in enumerate(spikes)}
    )
    trials = {"stimulus": [f"hour{i:02d}" for i in range(n_sounds)], "onset": onsets}
    (folder / "trials.json").write_text(json.dumps(trials))
    return {"spikes": float(sum(len(part) for one in spikes for part in one))}


def load(folder: Path) -> tuple[NeuralDataset, NeuralDataset, NeuralDataset]:
    """Training, validation and test hours of the imported recording."""
    ds = NeuralDataset.load(folder / "recording")
    last = len(ds) - 1
    return ds.select(clips=list(range(last - 1))), ds.select(clips=[last - 1]), ds.select(clips=[last])


def do_import(a: argparse.Namespace, folder: Path) -> dict[str, float]:
    """From the files to a dataset in files."""
    trials = json.loads((folder / "trials.json").read_text())
    with np.load(folder / "spikes.npz") as held:
        spikes = {name: held[name] for name in held.files}
    ds = AudioNeuralDataset.from_trials(
        folder / "sounds", trials, spikes, DT_MS, features=("spectrogram",), cache=folder / "recording",
        spectrogram={"wav2spec": "mel", "n_mels": a.bands, "f_min": 60.0, "win_ms": 40.0}, name="simulated",
    )  # fmt: skip
    counts = sum(clip.data.nbytes for clip in ds.response_storage.clips)
    return {"clips": len(ds), "bins": sum(ds.n_bins(i) for i in range(len(ds))), "counts_gb": counts / 1e9}


def ridge(a: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Ridge in pieces."""
    train, validation, _ = load(folder)
    fit = fit_ridge(train, validation, n_lags=a.lags)
    torch.save(fit.model.state_dict(), folder / "ridge.pt")
    return {
        "pieces": sum(len(train.pieces(i)) for i in range(len(train))),
        "validation_cc": float(fit.scores["cc"].max(0).values.mean()),
    }


def do_fit(a: argparse.Namespace, folder: Path) -> dict[str, float]:
    """A Linear on windows."""
    train, validation, _ = load(folder)
    context = a.lags * DT_MS
    parts = [windows(view, a.window_s, context_ms=context) for view in (train, validation)]
    torch.manual_seed(0)
    model = Linear(train.F, a.lags, train.N_neurons, norm="none", standardize=True)
    loaders = make_loaders(*parts, batch_size=2, seed=0)
    fitter = Fitter(
        model,
        *loaders,
        max_epochs=a.epochs,
        patience=a.epochs,
        progress=False,
        seed=0,
        track_train_metrics=False,
    )
    history = fitter.fit()
    torch.save(model.state_dict(), folder / "fit.pt")
    return {
        "windows": len(parts[0]),
        "epochs": len(history),
        "validation_cc": float(np.nanmean(history[-1]["val_cc"])),
    }


def scores(a: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Both models on the last hour, in pieces."""
    train, _, test = load(folder)
    found: dict[str, float] = {"pieces": len(test.pieces(0))}
    for name in ("ridge", "fit"):
        model = Linear(train.F, a.lags, train.N_neurons, norm="none", standardize=True)
        model.load_state_dict(torch.load(folder / f"{name}.pt", weights_only=True))
        found[f"{name}_cc"] = score_model(model.eval(), test, n_bootstrap=0).mean("cc").mean
    return found


RUN = {"simulate": simulate, "import": do_import, "ridge": ridge, "fit": do_fit, "scores": scores}


def stage(a: argparse.Namespace, folder: Path) -> None:
    """Run one stage in this process and print its figures."""
    torch.set_num_threads(a.threads)
    begin, cpu = time.perf_counter(), time.process_time()
    found = RUN[a.stage](a, folder)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    facts = {
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": peak,
    }
    print(json.dumps({**facts, **found}))


def main() -> int:
    """Run all stages, print the table and write the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hours", type=float, default=10.0)
    parser.add_argument("--units", type=int, default=500)
    parser.add_argument("--bands", type=int, default=18)
    parser.add_argument("--lags", type=int, default=20, help="of both models, in bins")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--window-s", type=float, default=20.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="keep what is made there, and go on with what is there")
    parser.add_argument("--write", action="store_true", help="write results/long-recording.json")
    parser.add_argument("--stage", choices=STAGES, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.stage:
        stage(a, a.folder)
        return 0
    with tempfile.TemporaryDirectory() as made:
        folder = a.folder or Path(made)
        folder.mkdir(parents=True, exist_ok=True)
        found = {}
        for name in STAGES:
            kept = folder / f"{name}.json"
            if not kept.exists():
                command = [sys.executable, __file__, *sys.argv[1:], "--stage", name, "--folder", str(folder)]
                done = subprocess.run(
                    command, capture_output=True, text=True, check=False, env=dict(os.environ)
                )
                if done.returncode:
                    sys.stderr.write(done.stderr)
                    return done.returncode
                kept.write_text(done.stdout.strip().splitlines()[-1])
            found[name] = json.loads(kept.read_text())
            print(name, json.dumps(found[name]), file=sys.stderr, flush=True)
    print(
        f"{a.hours:g} hours, {a.units} units, bins of {DT_MS:g} ms, {a.bands} bands x {a.lags} lags, {a.threads} threads"
    )
    print("  stage      wall s   processor s   peak memory   figures")
    for name, one in found.items():
        rest = ", ".join(
            f"{key} {value:.4g}"
            for key, value in one.items()
            if key not in ("seconds", "cpu_seconds", "peak_gb")
        )
        print(f"  {name:<9}{one['seconds']:8.0f}{one['cpu_seconds']:14.0f}{one['peak_gb']:11.2f} GB   {rest}")
    worst = max(found[name]["peak_gb"] for name in STAGES[1:])
    print(f"largest peak from the import on: {worst:.2f} GB, at most {LIMIT_GB:g} GB")
    if a.write:
        settings = {
            key: getattr(a, key)
            for key in ("hours", "units", "bands", "lags", "epochs", "window_s", "threads")
        }
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "long-recording.json").write_text(
            json.dumps({"settings": settings, "stages": found}, indent=1) + "\n"
        )
    return int(worst > LIMIT_GB)


if __name__ == "__main__":
    sys.exit(main())
