"""The full state of a running fit as one file, so that a killed fit goes on as if nothing had happened."""

from __future__ import annotations

import functools
import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from deepSTRF._files import load_tensors, save_tensors
from deepSTRF.training.callbacks import BestWeights
from deepSTRF.training.data import BatchSource, DirectSource, generators_of
from deepSTRF.training.history import pack_history, unpack_history
from deepSTRF.training.seeds import random_state, set_random_state

if TYPE_CHECKING:
    from deepSTRF.training.fitter import Fitter

__all__ = [
    "FitStateFile",
    "StateMismatchError",
    "apply_state",
    "collect_state",
    "fit_signature",
    "function_name",
    "model_facts",
]

#: Number of the file layout; another number is refused rather than guessed at.
STATE_FORMAT = 1


class StateMismatchError(ValueError):
    """The file given as ``state_path`` was written by a different fit and cannot be resumed by this one."""


class FitStateFile:
    """A fit's state on disk: written atomically after each epoch, read back when the same fit starts again.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     state = FitStateFile(pathlib.Path(folder) / "fit.state", {"model": "Linear"})
    ...     state.save({"epoch": 3})
    ...     state.load()
    {'epoch': 3}
    """

    def __init__(self, path: str | os.PathLike[str], signature: dict[str, Any]) -> None:
        self.path = Path(path)
        self.signature = signature

    def save(self, content: dict[str, Any]) -> None:
        """Write the state, replacing the one before it in a single step."""
        save_tensors(self.path, {"format": STATE_FORMAT, "signature": self.signature, "content": content})

    def load(self) -> dict[str, Any] | None:
        """Return the state saved by an earlier run of the same fit, or None where there is none."""
        # An empty file is what tempfile.NamedTemporaryFile leaves behind: no state yet.
        if not self.path.exists() or self.path.stat().st_size == 0:
            return None
        stored = load_tensors(self.path)
        if not isinstance(stored, dict) or stored.get("format") != STATE_FORMAT:
            raise StateMismatchError(
                f"state_path={self.path}: this file is no fit state of this version of deepSTRF; "
                "name another file, or delete it to start anew"
            )
        self._compare(stored["signature"])
        content: dict[str, Any] = stored["content"]
        return content

    def _compare(self, stored: dict[str, Any]) -> None:
        differences = [
            f"{key}: the file has {_short(stored.get(key))}, this fit has {_short(self.signature.get(key))}"
            for key in sorted(set(stored) | set(self.signature))
            if stored.get(key) != self.signature.get(key)
        ]
        if differences:
            raise StateMismatchError(
                f"state_path={self.path} holds the state of another fit ({'; '.join(differences)}). "
                "To resume, build the Fitter as it was; to start anew, delete the file or name another one"
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


#: Characters of a hash that stand for it in an error text.
HASH_LENGTH = 12


def collect_state(fitter: Fitter, best: BestWeights) -> dict[str, Any]:
    """Return everything the next epoch depends on, as tensors and plain values."""
    return {
        "model": fitter.model.state_dict(),
        "optimizer": fitter.optimizer.state_dict(),
        "scheduler": None if fitter.scheduler is None else _plain(fitter.scheduler.state_dict()),
        "scaler": fitter.scaler.state_dict(),
        "random": random_state(generators_of(fitter.train_loader, fitter.val_loader)),
        "history": pack_history([_plain_record(record) for record in fitter.history]),
        "stopping": fitter.stopping.state_dict(),
        "best": best.state,
        "per_cell": None if fitter.per_cell is None else fitter.per_cell.state_dict(),
    }


def apply_state(fitter: Fitter, best: BestWeights, stored: dict[str, Any]) -> None:
    """Put a fit back to where `collect_state` found it."""
    fitter.model.load_state_dict(stored["model"])
    fitter.optimizer.load_state_dict(stored["optimizer"])
    if fitter.scheduler is not None:
        fitter.scheduler.load_state_dict(stored["scheduler"])
    fitter.scaler.load_state_dict(stored["scaler"])
    fitter.history = unpack_history(stored["history"])
    fitter.stopping.load_state_dict(stored["stopping"])
    best.state = stored["best"]
    if fitter.per_cell is not None:
        fitter.per_cell.load_state_dict(stored["per_cell"])
    set_random_state(stored["random"], generators_of(fitter.train_loader, fitter.val_loader))


def _plain_record(record: dict[str, Any]) -> dict[str, Any]:
    """A record as a file of tensors and plain values can hold it, whatever a hook has added."""
    plain: dict[str, Any] = {}
    for key, value in record.items():
        if isinstance(value, Tensor):
            plain[key] = value.detach().cpu()
        elif isinstance(value, bool | int | float | str | type(None)) and not hasattr(value, "dtype"):
            plain[key] = value
        else:
            plain[key] = (
                value.item() if hasattr(value, "item") and getattr(value, "size", 0) == 1 else repr(value)
            )
    return plain


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """A scheduler's state without functions, which cannot be saved as data and are set anew anyway."""
    return {key: value for key, value in state.items() if not callable(value)}


def fit_signature(fitter: Fitter, optimizer: str, train: BatchSource, val: BatchSource) -> dict[str, str]:
    """Return what must agree for a stored state to belong to this fit.

    How long to go on (``max_epochs``, ``patience``) is not part of it: both may change between runs.
    """
    return {
        "model": model_facts(fitter.model),
        "optimizer": optimizer,
        "scheduler": type(fitter.scheduler).__name__,
        "loss": function_name(fitter.loss_fn),
        "monitor": f"{fitter.monitor} ({fitter.mode}, min_delta={fitter.stopping.min_delta})",
        "precision": fitter.precision,
        "grad_clip": str(fitter.grad_clip),
        "warmup_ms": str(fitter.warmup_ms),
        "seed": str(fitter.seed),
        "track_per_cell_best": str(fitter.per_cell is not None),
        "training data": f"{_data_facts(train)}, batches of {fitter.train_loader.batch_size}",
        "validation data": _data_facts(val),
    }


def model_facts(model: nn.Module) -> str:
    """Return a model's class, size and a hash of its shapes and plain settings."""
    shapes = sorted((name, tuple(value.shape)) for name, value in model.named_parameters())
    count = sum(parameter.numel() for parameter in model.parameters())
    settings = getattr(model, "init_arguments", {})
    plain = {
        key: value
        for key, value in settings.items()
        if isinstance(value, int | float | str | bool | type(None))
    }
    digest = hashlib.sha256(repr((shapes, sorted(plain.items()))).encode()).hexdigest()[:HASH_LENGTH]
    return f"{type(model).__name__} with {count:,} parameters [{digest}]"


def function_name(function: Any) -> str:
    """Return a function's name, with the settings of a ``functools.partial``."""
    if isinstance(function, functools.partial):
        settings = ", ".join(f"{key}={value!r}" for key, value in sorted(function.keywords.items()))
        return f"{function_name(function.func)}({settings})"
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _data_facts(source: BatchSource) -> str:
    """Number of clips and a hash of their stimuli and targets, where they can be read without the loader."""
    if not isinstance(source, DirectSource):
        return "clips of a loader"
    digest = hashlib.sha256()
    clips = source.clips.one_pass()
    for clip in clips:
        digest.update(source.clips.dataset.fingerprint(clip).encode())
        target = source.store.target(clip)[0].detach().cpu().contiguous()
        digest.update(str(tuple(target.shape)).encode())
        digest.update(target.flatten().view(torch.uint8).numpy().tobytes())
    return f"{len(clips)} clips [{digest.hexdigest()[:HASH_LENGTH]}]"
