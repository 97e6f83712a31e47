"""The state of a running fit as one file, so that a killed fit goes on as if nothing had happened.

The file holds everything that the next epoch depends on: model, optimizer, schedule, random states (also the
loaders' own), history, and the states of all callbacks. It belongs to one fit: its signature (model, data,
loss, optimizer, ...) must agree.
"""

from __future__ import annotations

import functools
import hashlib
import os
import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from deepSTRF._files import (
    check_regular,
    check_target,
    damaged,
    load_tensors,
    naming_damage,
    save_or_warn,
    save_tensors,
    warn_unsealed,
)
from deepSTRF.training.callbacks import Callback, FitterLike
from deepSTRF.training.data import HASH_LENGTH, batches_of, generators_of
from deepSTRF.training.objective import pack_history, unpack_history
from deepSTRF.training.optimization import optimizer_facts, schedule_facts
from deepSTRF.training.seeds import random_state, set_random_state

__all__ = [
    "FitStateFile",
    "ResumeState",
    "StateMismatchError",
    "fit_signature",
    "function_name",
    "model_signature",
]

#: Number of the file layout; another number is refused rather than guessed at. 2 had no seal.
STATE_FORMAT, UNSEALED_FORMAT = 3, 2
STATE_KIND = "fit state"
#: What to do with a file that cannot be resumed.
REMEDY = "delete it, or name another file, to start anew"
#: Characters of a value in an error text.
SHOWN = 80


class StateMismatchError(ValueError):
    """The file given as ``state_path`` was written by a different fit and cannot be resumed by this one."""


class FitStateFile:
    """A file with a state and the signature of the fit that it belongs to, sealed and replaced atomically."""

    def __init__(self, path: str | os.PathLike[str], signature: dict[str, Any]) -> None:
        self.path = Path(path)
        self.signature = signature

    def save(self, content: dict[str, Any]) -> None:
        """Write the state, replacing the one before it in a single step."""
        tree = {"format": STATE_FORMAT, "signature": self.signature, "content": content}
        save_tensors(self.path, tree, STATE_KIND)

    def load(self) -> dict[str, Any] | None:
        """Return the state saved by an earlier run of the same fit, or None where there is none."""
        # An empty file is what tempfile.NamedTemporaryFile leaves behind: no state yet.
        if not self.path.exists() or check_regular(self.path).st_size == 0:
            return None
        stored = load_tensors(self.path)  # of any kind: what it is instead is said below
        written = stored.get("format") if isinstance(stored, dict) else None
        if written not in (STATE_FORMAT, UNSEALED_FORMAT) or type(written) is not int:
            raise StateMismatchError(
                f"state_path={self.path}: this file is no fit state of this version of deepSTRF; "
                "name another file, or delete it to start anew"
            )
        self._check_seal(written)
        before, content = stored.get("signature"), stored.get("content")
        if not isinstance(before, dict) or not isinstance(content, dict):
            raise damaged(self.path, "it holds no signature, or no state", REMEDY)
        differences = [
            f"{key}: the file has {_short(before.get(key))}, this fit has {_short(self.signature.get(key))}"
            for key in sorted({*before, *self.signature}, key=str)
            if before.get(key) != self.signature.get(key)
        ]
        if differences:
            raise StateMismatchError(
                f"state_path={self.path} holds the state of another fit ({'; '.join(differences)}). "
                "To resume, build the Fitter as it was; to start anew, delete the file or name another one"
            )
        return content

    def _check_seal(self, written: int) -> None:
        """Raise for a lost seal; verify what an earlier version wrote as far as zip files allow, and warn."""
        with naming_damage(self.path, REMEDY), zipfile.ZipFile(self.path) as archive:
            if archive.comment:  # the seal, which `load_tensors` has verified
                return
            if written != UNSEALED_FORMAT:
                raise ValueError("it has lost its checksum")
            if (broken := archive.testzip()) is not None:
                raise ValueError(f"{broken} in it has another checksum")
        warn_unsealed(self.path, "the next epoch adds them")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN else text[: SHOWN - 3] + "..."


class ResumeState(Callback):
    """State of the fit on disk, written after every epoch and read when the same fit starts again."""

    def __init__(self, path: str | os.PathLike[str], fitter: FitterLike) -> None:
        check_target(path)
        self._path = path
        self._optimizer = optimizer_facts(fitter.optimizer)  # before the first step
        self._file: FitStateFile | None = None

    def on_fit_start(self, fitter: FitterLike) -> None:
        """Describe this fit."""
        self._file = FitStateFile(self._path, fit_signature(fitter, self._optimizer))

    def resume(self, fitter: FitterLike) -> None:
        """Put the fit back to where an earlier run left it, if there is one."""
        processes = fitter.processes
        stored = self._file.load() if self._file is not None and processes.writes else None
        stored = processes.agree(stored)
        if stored is None:
            return
        with naming_damage(self._path, REMEDY):
            self._restore(fitter, stored)

    @staticmethod
    def _restore(fitter: FitterLike, stored: dict[str, Any]) -> None:
        fitter.model.load_state_dict(stored["model"])
        fitter.optimizer.load_state_dict(stored["optimizer"])
        if fitter.scheduler is not None:
            fitter.scheduler.load_state_dict(stored["scheduler"])
        fitter.scaler.load_state_dict(stored["scaler"])
        fitter.history = unpack_history(stored["history"])
        for name, callback in _named(fitter.callbacks).items():
            if name in stored["callbacks"]:
                callback.load_state_dict(stored["callbacks"][name])
        set_random_state(stored["random"], generators_of(fitter.train_loader, fitter.val_loader))

    def on_epoch_end(self, fitter: FitterLike, epoch: int, record: dict[str, Any]) -> None:
        """Write everything the next epoch depends on, as tensors and plain values."""
        schedule = None if fitter.scheduler is None else fitter.scheduler.state_dict()
        states = {name: callback.state_dict() for name, callback in _named(fitter.callbacks).items()}
        for name, state in states.items():
            _check_plain(name, state)
        content = {
            "model": fitter.model.state_dict(),
            "optimizer": fitter.optimizer.state_dict(),
            # Functions in a schedule cannot be saved as data and are set anew anyway.
            "scheduler": schedule and {k: v for k, v in schedule.items() if not callable(v)},
            "scaler": fitter.scaler.state_dict(),
            "random": random_state(generators_of(fitter.train_loader, fitter.val_loader)),
            "history": pack_history([_plain_record(record) for record in fitter.history]),
            "callbacks": {name: state for name, state in states.items() if state},
        }
        file = self._file
        if file is not None and fitter.processes.writes:
            save_or_warn("state_path", file.path, lambda: file.save(content))


def _named(callbacks: list[Callback]) -> dict[str, Callback]:
    """Callbacks by the name of their class; a second one of a class is 'Name 2'."""
    named: dict[str, Callback] = {}
    for callback in callbacks:
        name, number = type(callback).__name__, 1
        while name in named:
            number += 1
            name = f"{type(callback).__name__} {number}"
        named[name] = callback
    return named


def _check_plain(name: str, value: Any) -> None:
    """Raise TypeError for what a file of tensors and plain values cannot hold."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list | tuple):
        for item in value:
            _check_plain(name, item)
    elif type(value) not in (bool, int, float, str, type(None)) and not isinstance(value, Tensor):
        raise TypeError(
            f"the state_dict of the callback {name} holds a {type(value).__name__}; with a state_path it may "
            "hold tensors, numbers, text, None, lists, tuples and dictionaries"
        )


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


# ---- which fit a state belongs to


def fit_signature(fitter: FitterLike, optimizer: str) -> dict[str, str]:
    """What must agree for a stored state to belong to this fit (not ``max_epochs`` and ``patience``)."""
    callbacks = [text for callback in fitter.callbacks if (text := callback.describe())]
    return {
        "model": model_signature(fitter.model),
        "optimizer": optimizer,
        "scheduler": schedule_facts(fitter.scheduler),
        "loss": function_name(fitter.loss_fn),
        "monitor": f"{fitter.monitor} ({fitter.mode}, min_delta={fitter.stopping.min_delta})",
        "precision": fitter.precision,
        "grad_clip": str(fitter.grad_clip),
        "warmup_ms": str(fitter.warmup_ms),
        "seed": str(fitter.seed),
        "track_per_cell_best": str(fitter.per_neuron is not None),
        "training data": f"{fitter.train_source.describe()}, batches of {batches_of(fitter.train_loader)}",
        "validation data": fitter.val_source.describe(),
        **({"callbacks": ", ".join(callbacks)} if callbacks else {}),  # states of before have none
        **({"processes": str(size)} if (size := fitter.processes.share.size) > 1 else {}),
    }


def model_signature(model: nn.Module) -> str:
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
