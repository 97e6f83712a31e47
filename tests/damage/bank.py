"""A damage bank: every file that the package writes and reads again, damaged in every way that files are.

Each case damages one file of an artefact and reads the artefact as a user would. It passes when the result
is that of the undamaged artefact, bit for bit, when one error names the file or its folder, or when a warning
says what is missing; it fails on
another result, on an error that names nothing, on a reader that does not return within seconds, and when
anything beside the damaged file has changed. ``python tests/damage/bank.py [KIND ...]`` prints the counts.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import stat
import sys
import tempfile
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepSTRF.crossval import FoldFits, fit_folds
from deepSTRF.datasets import NeuralDataset, plan_folds
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.datasets.download import cached_arrays  # inner: a reader of files
from deepSTRF.experiments import ExperimentConfig, Run, run_experiment
from deepSTRF.interpret.dstrf import dstrf_folds
from deepSTRF.interpret.filter_statistics import complexity
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import Linear, StateNet
from deepSTRF.report import explain_run
from deepSTRF.report.explanation import Explanation  # inner: a reader of files
from deepSTRF.training import Fitter, make_loaders

#: A reader that takes longer hangs.
LONGEST_S = 10
#: A reader may take this much memory: the artefacts are small.
MOST_BYTES = 1 << 30
#: Seeded damages of the three kinds that depend on a position.
FLIPS, CUTS, BURSTS = 14, 6, 3
SMALL = {"n_neurons": 3, "n_clips": 6, "n_repeats": 3, "clip_seconds": 0.4}


# ---- the damages: functions of a file and a random generator


def flip(path: Path, rng: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut(path: Path, rng: random.Random) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: rng.randrange(len(data))])


def burst(path: Path, rng: random.Random) -> None:
    """A run of foreign bytes, as a bad sector leaves."""
    data = bytearray(path.read_bytes())
    start, length = rng.randrange(len(data)), rng.randint(2, 64)
    data[start : start + length] = rng.randbytes(length)
    path.write_bytes(data)


def instead(content: bytes, path: Path, _: random.Random) -> None:
    path.write_bytes(content)


def appended(path: Path, _: random.Random) -> None:
    path.write_bytes(path.read_bytes() + b"\0" * 7)


def reencoded(encoding: str, path: Path, _: random.Random) -> None:
    path.write_bytes(path.read_bytes().decode("latin-1").encode(encoding))


def absent(path: Path, _: random.Random) -> None:
    path.unlink()


def folder(path: Path, _: random.Random) -> None:
    path.unlink()
    path.mkdir()


def pipe(path: Path, _: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def link_beside(name: str, path: Path, _: random.Random) -> None:
    """A link to something beside the artefact, which `faults` finds unchanged in the end."""
    outside = next(folder / name for folder in path.parents if os.path.lexists(folder / name))
    path.unlink()
    path.symlink_to(outside)


def own_link(path: Path, _: random.Random) -> None:
    path.unlink()
    path.symlink_to(path.name)


DEVICE, OUTSIDE, DANGLING = "zero", "outside.txt", "dangling"
Damage = Callable[[Path, random.Random], None]
SHAPES = [[], {}, 3, "x", None, True, [[]], {"a": 1}, [{"name": 1}], {"format": 10**30}, {"files": []}]
DAMAGES: dict[str, Damage] = {
    "absent": absent, "folder": folder, "pipe": pipe, "appended": appended, "own link": own_link,
    "link to a device": partial(link_beside, DEVICE), "link to another file": partial(link_beside, OUTSIDE),
    "dangling link": partial(link_beside, DANGLING),
    "empty": partial(instead, b""), "zeros": partial(instead, b"\0" * 4096), "NaN": partial(instead, b"NaN"),
    "deep": partial(instead, b"[" * 200_000), "deep object": partial(instead, b'{"a":' * 100_000),
    "zip": partial(instead, b"PK\x05\x06" + b"\0" * 18), "pickle": partial(instead, b"\x80\x04K\x01."),
    "huge header": partial(instead, (2**60).to_bytes(8, "little") + b"{}"),
    "utf-16": partial(reencoded, "utf-16"), "utf-8 twice": partial(reencoded, "utf-8"),
    **{f"JSON {json.dumps(tree)}": partial(instead, json.dumps(tree).encode()) for tree in SHAPES},
}  # fmt: skip


# ---- the artefacts: how each is made, and what a user reads of it


@dataclass
class Kind:
    """An artefact: ``make(folder)`` writes it, ``read(folder)`` returns what a user gets of it.

    ``free`` are files whose content a user may change, ``fresh`` is set where damage is repaired in silence,
    ``only`` names the folder whose files are damaged, ``rounds`` repeats the seeded damages, ``other`` makes
    another artefact to swap files with.
    """

    make: Callable[[Path], None]
    read: Callable[[Path], Any]
    free: tuple[str, ...] = ()
    fresh: bool = False
    rounds: int = 1
    only: str = ""
    other: Callable[[Path], None] | None = None


def recording(**options: Any) -> SyntheticDataset:
    return SyntheticDataset(**{**SMALL, **options})


def make_checkpoint(path: Path, seed: int = 1) -> None:
    torch.manual_seed(seed)
    model = StateNet(34, out_neurons=3, hidden_channels=4)
    model.save_pretrained(path / "model", metadata={"note": [seed, 2.5, "é"]})


def predicted(model: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model(torch.rand(1, 1, model.F, 20, generator=generator))


def read_checkpoint(path: Path) -> Any:
    model, metadata = NeuralModel.from_pretrained(path / "model", return_metadata=True)
    return predicted(model), metadata


def read_run(path: Path) -> Any:
    run = Run.load(path / "run")
    facts = {name: value for name, value in vars(run).items() if name not in ("path", "examples")}
    examples = [vars(example) for example in run.examples]
    return facts, examples, [predicted(run.load_model(seed)) for seed in (None, *run.scores.seeds)]


def read_explanation(path: Path) -> Any:
    found = Explanation.load(path / "run")
    if found is None:
        return None
    sounds = [(label, file.read_bytes()) for label, file in found.sounds]
    return found.facts, found.tables, found.arrays, sounds, found.movie and found.movie.read_bytes()


def make_run(path: Path, rate: float = 0.01) -> None:
    config = ExperimentConfig(
        dataset_options=SMALL, split="4/1/1", epochs=1, seeds=(0, 1), learning_rate=rate
    )
    run_experiment(config, path / "run", progress=False)


def make_explained(path: Path, rate: float = 0.01) -> None:
    config = ExperimentConfig(dataset_options=SMALL, split="4/1/1", epochs=1, learning_rate=rate)
    explain_run(run_experiment(config, path / "run", progress=False), ["0"], progress=False)


def read_dataset(path: Path) -> Any:
    ds = NeuralDataset.load(path / "ds.npz")
    responses = [list(clip) for clip in ds.responses]
    return list(ds.stims), responses, ds.stim_meta, ds.nrn_meta, ds.dt, ds.describe()


class KilledError(Exception):
    pass


def resumed(path: Path, die: bool) -> Any:
    """Weights after a fit that was stopped in its second epoch and goes on."""
    ds = recording()
    torch.manual_seed(3)
    model = Linear(ds.F, 3, 3)

    def stop(row: dict[str, Any]) -> None:
        if die and row["epoch"] == 1:
            raise KilledError

    loaders = make_loaders(ds.select(clips=[0, 1]), ds.select(clips=[2]), seed=0)
    fitter = Fitter(model, *loaders, max_epochs=3, seed=0, progress=False, log_fn=stop,
                    state_path=path / "fit.state")  # fmt: skip
    fitter.fit()
    return model.state_dict()


def make_state(path: Path) -> None:
    with contextlib.suppress(KilledError):
        resumed(path, die=True)


def make_folds(path: Path, seed: int = 0) -> None:
    ds = recording(n_clips=3)
    fit_folds(lambda seed: Linear(ds.F, 3, 3), ds, plan_folds(ds, crossval=True), path / "folds",
              fitter_kwargs={"max_epochs": 1}, seed=seed, progress=False)  # fmt: skip


def read_folds(path: Path) -> Any:
    fits = FoldFits(path / "folds")
    return [predicted(fits.model(fold.name)) for fold in fits.manifest.folds], fits.manifest.facts


def make_filters(path: Path) -> None:
    ds = recording(n_clips=3)
    make_folds(path)
    dstrf_folds(FoldFits(path / "folds"), ds, path / "filters", clips=[0])
    shutil.rmtree(path / "folds")


def read_filters(path: Path) -> Any:
    (file,) = sorted((path / "filters").glob("*.npy")) or [path / "filters" / "dSTRF-000.npy"]
    return complexity(file)


def entry(path: Path) -> dict[str, Any]:
    os.environ["DEEPSTRF_CACHE_DIR"] = str(path / "cache")
    try:
        rng = np.random.default_rng(0)
        return cached_arrays("bank", "waves", {"of": 1}, lambda: {"a": rng.random((4, 9)), "b": np.arange(5)})
    finally:
        del os.environ["DEEPSTRF_CACHE_DIR"]


def make_config(path: Path) -> None:
    (path / "choices.toml").write_text(ExperimentConfig(dataset_options=SMALL).to_toml(), encoding="utf-8")


#: What a user may change, or what is only told: the model card and the metadata of a checkpoint.
CARDS = ("README.md", "metadata.json")
KINDS = {
    "checkpoint": Kind(
        make_checkpoint, read_checkpoint, free=CARDS, rounds=3, other=partial(make_checkpoint, seed=2)
    ),
    "run": Kind(make_run, read_run, free=(*CARDS, "README.txt"), other=partial(make_run, rate=0.02)),
    "explanation": Kind(
        make_explained, read_explanation, only="run/explain", other=partial(make_explained, rate=0.02)
    ),
    "dataset": Kind(lambda path: recording().save(path / "ds.npz"), read_dataset, rounds=3),
    "fit state": Kind(make_state, partial(resumed, die=False), fresh=True),
    "folds": Kind(make_folds, read_folds, free=CARDS, other=partial(make_folds, seed=5)),
    "filters": Kind(make_filters, read_filters, free=("dSTRF-000.npy",)),
    "cache": Kind(entry, entry, fresh=True, rounds=3),
    "choices": Kind(
        make_config, lambda path: ExperimentConfig.from_toml(path / "choices.toml"), free=("choices.toml",)
    ),
}


# ---- one case


def same(one: Any, other: Any) -> bool:
    """Equality of trees of tensors, arrays and plain values, bit for bit; NaN equals NaN."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return (
            type(one) is type(other)
            and one.dtype == other.dtype
            and torch.equal(one.nan_to_num(nan=-7.5), other.nan_to_num(nan=-7.5))
        )
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return (
            type(one) is type(other)
            and one.dtype == other.dtype
            and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")
        )
    if hasattr(one, "__dict__") and type(one) is type(other):
        return same(vars(one), vars(other))
    return bool(one == other) or (one != one and other != other)


@contextlib.contextmanager
def in_time() -> Iterator[None]:
    def late(*_: Any) -> None:
        raise TimeoutError(f"no answer within {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, late)
    memory = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    signal.alarm(LONGEST_S)
    resource.setrlimit(resource.RLIMIT_AS, (in_use + MOST_BYTES, memory[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, memory)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def state_of(root: Path, but: Path) -> dict[str, int]:
    """Checksum of every file except one; pipes and links are not followed."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path != but and path.is_file() and not path.is_symlink():
            found[str(path.relative_to(root))] = zlib.crc32(path.read_bytes())
    return found


def damages(rounds: int) -> list[tuple[str, Damage]]:
    """Every damage once, and those at random positions more often; an empty file has no positions."""
    seeded = [("flip", flip)] * FLIPS + [("cut", cut)] * CUTS + [("burst", burst)] * BURSTS
    return [*DAMAGES.items(), *seeded * rounds]


def fault(kind: Kind, root: Path, path: Path, expected: Any, is_free: bool) -> str | None:
    """Read a damaged artefact; None when all is well, else what was wrong."""
    before = state_of(root, path)
    try:
        with warnings.catch_warnings(record=True) as said, in_time():
            warnings.simplefilter("always")
            found = kind.read(root)
    except TimeoutError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  (every class that names nothing is a fault)
        named = isinstance(error, ValueError | OSError) and (
            path.name in str(error) or root.name in str(error)
        )
        if not named:
            return f"names nothing: {type(error).__name__}: {error}"[:200]
    else:
        is_said = any(path.stem in str(one.message) for one in said)
        if not is_free and not is_said and not same(found, expected):
            return "another result"
    if not kind.fresh and state_of(root, path) != before:
        return "other files were changed"
    return None


def restore(path: Path, content: bytes) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def faults(name: str, folder: Path) -> tuple[int, list[str]]:
    """Number of cases of a kind, and a line for each that failed."""
    kind = KINDS[name]
    made, twin = folder / f"made-{name.replace(' ', '-')}", folder / "twin"
    made.mkdir()
    twin.mkdir()
    (folder / OUTSIDE).write_text("somebody's own", encoding="utf-8")
    (folder / DANGLING).symlink_to(folder / "none")
    try:  # one of our own: root could lose the real one
        os.mknod(folder / DEVICE, stat.S_IFCHR | 0o666, os.makedev(1, 5))
    except OSError:
        (folder / DEVICE).symlink_to("/dev/zero")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind.make(made)
        if kind.other is not None:
            kind.other(twin)
        pristine = {
            str(path.relative_to(made)): path.read_bytes() for path in made.rglob("*") if path.is_file()
        }
        expected = kind.read(made)
    cases, failed = 0, []
    for file, content in sorted(pristine.items()):
        if not file.startswith(kind.only):
            continue
        path = made / file
        every = damages(kind.rounds if content else 0)
        if (twin / file).is_file() and (twin / file).read_bytes() != content:
            every.append(("swap", partial(instead, (twin / file).read_bytes())))
        for number, (what, damage) in enumerate(every):
            if kind.fresh:  # the reader writes
                for other, before in pristine.items():
                    restore(made / other, before)
            damage(path, random.Random(f"{name} {file} {number}"))
            reason = fault(kind, made, path, expected, file.endswith(kind.free))
            if reason:
                failed.append(f"{name}: {file}: {what}: {reason}")
            restore(path, content)
            cases += 1
    if (folder / OUTSIDE).read_text(encoding="utf-8") != "somebody's own":
        failed.append(f"{name}: a file outside: link: it was written through a link")
    if not stat.S_ISCHR((folder / DEVICE).stat().st_mode):
        failed.append(f"{name}: a device: link: it was replaced by a file")
    if (folder / "none").exists() and name != "fit state":  # a path that the user named may be a link
        failed.append(f"{name}: a dangling link: link: its target was made")
    return cases, failed


def main() -> None:
    """Print the number of cases and of failures per kind."""
    total, bad = 0, 0
    for name in sys.argv[1:] or KINDS:
        with tempfile.TemporaryDirectory() as temporary:
            cases, failed = faults(name, Path(temporary))
        total, bad = total + cases, bad + len(failed)
        write = sys.stdout.write
        write(f"{name:12s} {cases:5d} cases, {len(failed):4d} failed\n")
        why = Counter(line.split(": ", 3)[3][:90] + " | " + line.split(": ")[1] for line in failed)
        for reason, count in why.most_common(8):
            write(f"    {count:4d} {reason}\n")
    sys.stdout.write(f"{total} cases, {bad} failed\n")


if __name__ == "__main__":
    main()
