"""Kills at random moments and full disks, over everything that writes: ``python tests/damage/kills.py``.

A stage runs in a forked process that gets SIGKILL after a random part of the time that it takes; then the
same stage runs undisturbed. What is on the disk must be what an undisturbed process writes. Full disks are
file systems in memory of 50 kB to 2 MB (mounting one needs root): a stage must end well, or with an error
that names a file, and the earlier artefact must be whole.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bank
import numpy as np
import torch
from safetensors.torch import load_file

from deepSTRF.cli import main as cli
from deepSTRF.crossval import FoldFits
from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.download import cached_arrays  # inner: a writer of files
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import Linear

Act = Callable[[Path], Any]
SIZES_KB = (50, 100, 200, 400, 800, 1200, 2000)
#: Entries of JSON files that tell times.
TIMES = ("seconds", "time", "date", "created", "when", "started", "finished", "written", "epoch_seconds")
RECORDING = [
    word for name, value in bank.SMALL.items() for word in ("--dataset-option", f"{name}={value}")
]  # fmt: skip
FIT = ["fit", "--dataset", "synthetic", *RECORDING, "--split", "4/1/1", "--quiet"]


def deepstrf(*words: str) -> None:
    """Run the command in this process; a status other than 0 stays an exit."""
    try:
        cli(list(words))
    except SystemExit as end:
        if end.code:
            raise


def fit(path: Path, epochs: int = 6) -> None:
    deepstrf(*FIT, "--epochs", str(epochs), "--seeds", "0,1", "--out", str(path / "run"))


def fit_again(path: Path) -> None:
    deepstrf(*FIT, "--epochs", "5", "--seeds", "3,4", "--out", str(path / "run"), "--overwrite")


def report(path: Path) -> None:
    deepstrf("report", str(path / "run"))


def explain(path: Path) -> None:
    deepstrf("explain", str(path / "run"), "--neurons", "0", "--overwrite", "--quiet")


def save(path: Path) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        Linear(34, 20, 3).save_pretrained(path / "model", metadata={"seed": seed})
        bank.recording(seed=seed).save(path / "ds.npz")


def cache(path: Path) -> None:
    os.environ["DEEPSTRF_CACHE_DIR"] = str(path / "cache")
    for number in range(40):
        rng = np.random.default_rng(number)
        cached_arrays("kills", "waves", {"of": number}, lambda rng=rng: {"a": rng.random((40, 400))})


@dataclass
class Stage:
    """What runs, what lies there before, and a reading of the result that must work at any time, if given."""

    act: Act
    before: Act = lambda path: None
    whole: Act = lambda path: None


def whole_run(path: Path) -> None:
    bank.read_run(path)


def whole_save(path: Path) -> None:
    if (path / "model").exists() and (path / "model" / "config.json").exists():
        NeuralModel.from_pretrained(path / "model")
    if (path / "ds.npz").exists():
        NeuralDataset.load(path / "ds.npz")


def whole_folds(path: Path) -> None:
    if (path / "folds" / "folds.json").exists():
        fits = FoldFits(path / "folds")
        for fold in fits.manifest.folds:
            if fits.has(fold.name):
                fits.model(fold.name)


STAGES = {
    "fit": Stage(fit),
    "fit --overwrite": Stage(fit_again, before=lambda path: fit(path, 2), whole=whole_run),
    "report": Stage(report, before=lambda path: fit(path, 2), whole=whole_run),
    "explain --overwrite": Stage(explain, before=lambda path: (fit(path, 2), explain(path)), whole=whole_run),
    "save": Stage(save, before=save, whole=whole_save),
    "folds": Stage(bank.make_folds, whole=whole_folds),
    "cache": Stage(cache),
}
#: Share of the kills that each stage gets.
SHARES = {
    "fit": 30,
    "fit --overwrite": 25,
    "report": 8,
    "explain --overwrite": 12,
    "save": 50,
    "folds": 45,
    "cache": 30,
}


def forked(act: Callable[[], Any], after_s: float | None = None) -> tuple[int, str]:
    """Run in a forked process, killed after some seconds; its exit status (-9: killed) and its last words."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing):
                os.dup2(write, 2)
                warnings.simplefilter("ignore")
                act()
        except SystemExit as end:
            os._exit(int(end.code or 0))
        except BaseException as error:  # noqa: BLE001  (the child has nowhere to raise it)
            os.write(2, f"{type(error).__name__}: {error}".encode())
            os._exit(1)
        os._exit(0)
    os.close(write)
    if after_s is not None:
        time.sleep(after_s)
        os.kill(child, signal.SIGKILL)
    with open(read, "rb") as stream:
        words = stream.read().decode(errors="replace")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), words


def without_times(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {
            key: without_times(value)
            for key, value in tree.items()
            if not any(word in key.lower() for word in TIMES) and key not in ("sha256", "size")
        }
    return [without_times(item) for item in tree] if isinstance(tree, list) else tree


def content(path: Path) -> dict[str, Any]:
    """Every file: JSON without times and checksums, CSV, TOML and weights as bytes, others by name."""
    found: dict[str, Any] = {}
    for file in sorted(path.rglob("*")):
        if not file.is_file():
            continue
        name = str(file.relative_to(path))
        if file.suffix == ".json":
            found[name] = without_times(json.loads(file.read_text(encoding="utf-8")))
        elif file.suffix == ".npz":
            with np.load(file) as stored:
                found[name] = {member: stored[member].tobytes() for member in stored.files}
        elif file.suffix == ".safetensors":  # the order of its header is random
            found[name] = {key: tensor.numpy().tobytes() for key, tensor in load_file(file).items()}
        elif file.suffix in (".csv", ".toml", ".gif", ".wav"):
            found[name] = file.read_bytes() if file.name != "history.csv" else b""
        else:
            found[name] = None
    return found


def difference(one: dict[str, Any], other: dict[str, Any]) -> str:
    if missing := sorted(one.keys() ^ other.keys()):
        return f"files: {', '.join(missing[:4])}"
    return ", ".join(name for name in one if one[name] != other[name])[:200]


def kill_stage(name: str, kills: int, folder: Path, rng: random.Random) -> list[str]:
    """Lines on kills after which something was wrong."""
    stage, faults = STAGES[name], []
    start, undisturbed, work = folder / "start", folder / "undisturbed", folder / "work"
    start.mkdir()
    forked(lambda: stage.before(start))
    shutil.copytree(start, undisturbed, symlinks=True)
    began = time.monotonic()
    status, words = forked(lambda: stage.act(undisturbed))
    needed = time.monotonic() - began
    if status:
        return [f"{name}: does not even run: {words[-300:]}"]
    expected = content(undisturbed)
    for number in range(kills):
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(start, work, symlinks=True)
        moment = rng.random() * needed
        forked(lambda: stage.act(work), moment)
        status, words = forked(lambda: stage.whole(work))
        if status:
            faults.append(f"{name}: kill {number} at {moment:.2f} s: unreadable: {words[-200:]}")
        status, words = forked(lambda: stage.act(work))
        if status:
            faults.append(f"{name}: kill {number} at {moment:.2f} s: the same command fails: {words[-200:]}")
        elif wrong := difference(expected, content(work)):
            faults.append(f"{name}: kill {number} at {moment:.2f} s: differs from undisturbed: {wrong}")
    return faults


@contextlib.contextmanager
def disk(size_kb: int, where: Path) -> Any:
    """A file system in memory of that size."""
    where.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size_kb}k", "tmpfs", str(where)], check=True)
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def can_mount(folder: Path) -> bool:
    try:
        with disk(50, folder / "probe"):
            return True
    except (OSError, subprocess.CalledProcessError):
        return False


def fill_disk(name: str, free_kb: int, folder: Path) -> str | None:
    """One stage on a disk with little space left; None when it ended well or with a named error."""
    stage, start = STAGES[name], folder / f"start {name}"
    if not start.is_dir():
        start.mkdir()
        forked(lambda: stage.before(start))
    held = sum(-(-file.stat().st_size // 4096) * 4 for file in start.rglob("*") if file.is_file())
    with disk(held + 80 + free_kb, folder / "disk") as where:
        shutil.copytree(start, where, symlinks=True, dirs_exist_ok=True)
        status, words = forked(lambda: stage.act(where))
        if status and not (
            "No space left" in words and ("/" in words.split("No space left")[1] or str(where) in words)
        ):
            return f"{name}, {free_kb} kB free: ended with {status}: {words[-300:]}"
        broken, why = forked(lambda: stage.whole(where))
        if broken:
            return f"{name}, {free_kb} kB free: the earlier artefact: {why[-300:]}"
    return None


def main() -> int:
    """Print one line per stage and per fault; status 1 when there was one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stages", nargs="*", default=list(STAGES))
    parser.add_argument("--no-disks", action="store_true")
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    rng, faults, write = random.Random(chosen.seed), [], sys.stdout.write
    total = sum(SHARES[name] for name in chosen.stages)
    for name in chosen.stages:
        kills = round(chosen.kills * SHARES[name] / total)
        with tempfile.TemporaryDirectory() as folder:
            found = kill_stage(name, kills, Path(folder), rng)
        write(f"{name:20s} {kills:4d} kills, {len(found)} faults\n")
        faults += found
    with tempfile.TemporaryDirectory() as folder:
        if chosen.no_disks or not can_mount(Path(folder)):
            write("full disks: not tried (mounting a file system needs root)\n")
        else:
            for name in chosen.stages:
                found = [one for size in SIZES_KB if (one := fill_disk(name, size, Path(folder)))]
                write(f"{name:20s} {len(SIZES_KB)} full disks, {len(found)} faults\n")
                faults += found
    write("".join(f"  {line}\n" for line in faults))
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main())
