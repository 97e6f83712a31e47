"""The folder of fits over folds: who may write in it, which fits belong to a run, and how one is saved.

A run has a mark, a hash of its settings, folds and sounds, which each of its fits carries; a fit counts when
it is complete and has the mark of the run. Jobs of a cluster may share the folder.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from deepSTRF import __version__
from deepSTRF._files import MANIFEST as CHECKPOINT_MANIFEST
from deepSTRF._files import read_bytes, remove_folder, replace_folder, write_atomically
from deepSTRF.crossval.predict import MANIFEST, RUN, RUN_FILE, FoldFits, is_complete, mark_of
from deepSTRF.datasets import FoldManifest
from deepSTRF.models.io.checkpoint import KIND, check_folder
from deepSTRF.training.callbacks import shows_progress

__all__ = ["claim_folder", "folds_bar", "save_fit", "settled"]

#: Folder in which a model writes itself before its files go to their place.
UNFINISHED = ".unfinished-"
#: Seconds after which such a folder was left by a killed process: a fit is written within seconds.
ABANDONED = 86_400


def save_fit(model: nn.Module, target: Path, facts: dict[str, Any], run: str | None) -> None:
    """Write a fit in place of what lies there; its mark is the last file, so what has it is complete."""
    if is_complete(target, run):  # another job was faster, with the same fit
        return
    _check_place(target)
    with tempfile.TemporaryDirectory(prefix=UNFINISHED, dir=target.parent) as staging:
        written = model.cpu().save_pretrained(Path(staging) / target.name, metadata=facts)  # type: ignore[operator]
        names = [
            path.relative_to(written).as_posix() for path in sorted(written.rglob("*")) if path.is_file()
        ]
        files = [(name, read_bytes(written / name)) for name in names if name != CHECKPOINT_MANIFEST]
    replace_folder(target, [*files, *([] if run is None else [(RUN_FILE, mark_of(run, target.name))])], KIND)


def _check_place(target: Path) -> None:
    """Raise FileExistsError where a fit may not go: a link, or a folder with files of something else."""
    if target.is_symlink():
        raise FileExistsError(f"{target} is a link, and a fit is to be written there; remove it first")
    check_folder(target)


@contextmanager
def folds_bar(progress: bool | Literal["auto"], total: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar over the folds on stderr, or nothing."""
    if not shows_progress(progress):
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True)) as bar:
        task = bar.add_task("folds", total=total, completed=done)
        yield lambda: bar.advance(task)


@dataclass(frozen=True)
class Before:
    """A run that is being replaced: its manifest file, and folds that the new one does not have."""

    content: bytes
    folds: tuple[str, ...]


def claim_folder(
    folder: Path, manifest: FoldManifest, facts: dict[str, Any], overwrite: bool
) -> Before | None:
    """Make the folder, or see that the fits in it belong to this run; all checks come first."""
    path = folder / MANIFEST
    noted = {"version": __version__, **manifest.facts, "fit": facts, RUN: _mark(manifest, facts)}
    wanted = dataclasses.replace(manifest, facts=noted)
    weights = [f"{fold.name}.pt" for fold in wanted.folds if (folder / f"{fold.name}.pt").exists()]
    if weights:  # they would pass for fits of this run
        raise FileExistsError(
            f"{folder} holds {weights[0]}, weights of another origin; name another folder for new fits, "
            "or read these with FoldFits(folder, recording=dataset, build=...)"
        )
    before = None
    if path.is_file():
        stored = FoldManifest.load(path)
        changed = _differences(stored, wanted)
        if not changed:
            if stored.facts.get(RUN) is None:  # of an earlier version: with its checksum from now on
                stored.save(path)
            _sweep(folder)
            return None
        if not overwrite:
            raise ValueError(
                f"{folder} holds fits of another run ({'; '.join(changed)}); name another folder, or "
                "pass overwrite=True to fit anew"
            )
        names = {fold.name for fold in wanted.folds}
        gone = tuple(fold.name for fold in stored.folds if fold.name not in names)
        before = Before(read_bytes(path), gone)
    else:
        foreign = [fold.name for fold in wanted.folds if (folder / fold.name).exists()]
        if foreign:
            raise FileExistsError(
                f"{folder} has no {MANIFEST} but holds {foreign[0]}, whose origin is unknown; name "
                "another folder"
            )
    for fold in wanted.folds:
        _check_place(folder / fold.name)
    folder.mkdir(parents=True, exist_ok=True)
    _sweep(folder)
    wanted.save(path)
    return before


def _differences(stored: FoldManifest, wanted: FoldManifest) -> list[str]:
    """What keeps the fits of a stored run from being those of this one."""
    before, now = (manifest.facts.get("fit", {}) for manifest in (stored, wanted))
    if not isinstance(before, dict):
        before = {"settings": before}
    changed = [
        f"{key}: {before.get(key)!r} there, {now.get(key)!r} now"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    if (stored.folds, dict(stored.sounds)) != (wanted.folds, dict(wanted.sounds)):
        changed.insert(0, "the folds or their sounds differ")
    return changed


def _mark(manifest: FoldManifest, facts: dict[str, Any]) -> str:
    """Mark of a run, which each of its fits carries: a hash of the settings, the folds and their sounds."""
    folds = [[fold.name, *fold.left_out] for fold in manifest.folds]
    text = json.dumps([facts, folds, dict(manifest.sounds)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sweep(folder: Path) -> None:
    """Remove what killed processes have left."""
    for left in folder.glob(f"{UNFINISHED}*"):
        with suppress(FileNotFoundError):  # another job was faster
            if time.time() - left.stat().st_mtime > ABANDONED:
                shutil.rmtree(left, ignore_errors=True)


@contextmanager
def settled(fits: FoldFits, before: Before | None) -> Iterator[None]:
    """A run before this one comes back when none of the new fits is made, and goes when all are."""
    try:
        yield
    except BaseException:
        if before is not None and fits.n_missing == len(fits.manifest.folds):
            write_atomically(fits.folder / MANIFEST, before.content)
        raise
    if before is not None and not fits.n_missing:
        for name in before.folds:
            remove_folder(fits.folder / name)
