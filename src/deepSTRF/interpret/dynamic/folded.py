"""Dynamic STRFs of a whole recording, each clip through the fits that never saw it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF.datasets import FoldManifest, NeuralDataset
from deepSTRF.interpret.dynamic.ensembles import NOTE_OF_CUT
from deepSTRF.interpret.dynamic.jackknife import jackknifed_dstrf
from deepSTRF.interpret.dynamic.sinks import FileSink

__all__ = ["dstrf_folds"]


class FoldedFits(Protocol):
    """What `dstrf_folds` asks of a set of fits; `deepSTRF.training.FoldFits` has it."""

    manifest: FoldManifest

    def unseen(self, dataset: NeuralDataset, clip: int, *, strangers: bool = False) -> Sequence[nn.Module]:
        """Return the fits that never saw a clip."""
        ...


def dstrf_folds(
    fits: FoldedFits,
    dataset: NeuralDataset,
    out: str | os.PathLike[str],
    *,
    clips: Sequence[int] | None = None,
    agreement: float | None = None,
    dtype: torch.dtype | None = None,
    **options: Any,
) -> list[Path]:
    """Write the mean dynamic STRF of each clip, over the fits that never saw its sound, into a file.

    The files are named after the trials' places in the manifest, ``dSTRF-003.npy``, whatever subset or order
    of clips is given; a ``dSTRF-003.json`` beside each says how it was made, and which of its bins statistics
    leave out because the start of the clip cuts their filters off. A file that was made the same
    way already is not made again.

    Parameters
    ----------
    fits : FoldFits
        From `deepSTRF.training.fit_folds`.
    dataset : NeuralDataset
        Any view of the recording they were fitted to.
    out : path
        Folder of the files.
    clips : sequence of int, optional
        Which clips; None is all.
    agreement : float, optional
        Sign consistency, see `jackknifed_dstrf`; None keeps every entry.
    dtype : torch.dtype, optional
        Storage type; None is the model's.
    **options
        For `jackknifed_dstrf`, but sinks: ``lags``, ``neurons``, ``times``, ``wrt``, ``method``,
        ``budget_bytes``, ...

    Returns
    -------
    list of pathlib.Path
        One ``.npy`` file (T, N, L, F) per clip, which `nonlinearities` takes.

    Raises
    ------
    KeyError, ValueError, FileNotFoundError
        When no fit is known never to have seen a clip, or what `jackknifed_dstrf` raises.
    TypeError
        For an option that `jackknifed_dstrf` does not have, or sinks.

    References
    ----------
    Keshishian et al. 2020, doi 10.7554/eLife.53445.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> from deepSTRF.datasets import plan_folds
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=2, n_repeats=2, clip_seconds=0.1)
    >>> models = [Linear(ds.F, 3, 2) for _ in range(4)]  # in earnest: fits = fit_folds(...)
    >>> fits = SimpleNamespace(manifest=plan_folds(ds, crossval=True), unseen=lambda ds, clip: models)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     [path.name for path in dstrf_folds(fits, ds, folder, agreement=0.75)]
    ['dSTRF-000.npy', 'dSTRF-001.npy']
    """
    folder = Path(out)
    taken = [name for name in ("sink", "error") if name in options]
    if taken:
        raise TypeError(
            f"dstrf_folds writes mean filters to files and takes no {taken[0]}: of one clip at a time "
            f"jackknifed_dstrf(fits.unseen(dataset, clip), dataset.stims[clip], {taken[0]}=...) has one"
        )
    # no result depends on the working memory
    named = {"agreement": agreement, "dtype": dtype, **options, "budget_bytes": None}
    settings = {name: _described(value) for name, value in sorted(named.items()) if value is not None}
    paths = []
    for clip in range(len(dataset)) if clips is None else clips:
        models = fits.unseen(dataset, clip)
        manifest = fits.manifest
        trial = manifest.trial_of(dataset, clip)
        path = folder / f"dSTRF-{manifest.trials.index(trial):03d}.npy"
        facts = {
            "trial": trial,
            "stimulus": dataset.fingerprint(clip),
            "fits": [fold.name for fold in manifest.eligible(trial)],
            "weights": [_stamp(model) for model in models],
            "settings": settings,
        }
        if not _is_made(path, facts):
            note = path.with_suffix(".json")
            note.unlink(missing_ok=True)  # until the filters are there, nothing says how they were made
            sink = FileSink(path, dtype)
            result = jackknifed_dstrf(models, dataset.stims[clip], agreement=agreement, sink=sink, **options)
            cut = result.cut().tolist()
            # they stand at the ends; of a clip that is all cut off, all at the start
            last = next((place for place, one in enumerate(reversed(cut)) if not one), 0)
            made = {**facts, "kept": result.kept, NOTE_OF_CUT: [sum(cut) - last, last]}
            note.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def _is_made(path: Path, facts: dict[str, Any]) -> bool:
    note = path.with_suffix(".json")
    if not (path.is_file() and note.is_file()):
        return False
    try:
        stored = json.loads(note.read_text(encoding="utf-8"))
    except ValueError:  # a run was killed while it wrote this
        return False
    return NOTE_OF_CUT in stored and all(stored.get(name) == value for name, value in facts.items())


def _described(value: Any) -> str:
    """A setting as text; of an array, whose text leaves out its middle, a hash."""
    if not isinstance(value, Tensor | np.ndarray):
        return repr(value)
    array = torch.as_tensor(value).detach().cpu().contiguous()
    return f"{tuple(array.shape)} {array.dtype} {hashlib.sha256(array.numpy().tobytes()).hexdigest()}"


def _stamp(model: nn.Module) -> str:
    """A hash of the weights."""
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(f"{name} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
