"""The full state of a running fit as one file, so that a killed fit goes on as if nothing had happened."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from deepSTRF.training.errors import StateMismatchError
from deepSTRF.training.files import load_tensors, save_tensors

__all__ = ["FitStateFile"]

#: Number of the file layout; another number is refused rather than guessed at.
STATE_FORMAT = 1


class FitStateFile:
    """A fit's state on disk: written atomically after each epoch, read back when the same fit starts again.

    Parameters
    ----------
    path : path
        The file. It need not exist.
    signature : dict
        Plain facts that must agree for a resumed fit to be the same fit (model, data, optimiser, settings).

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
        """Write the state, replacing the one before it in a single step.

        Raises
        ------
        OSError
            When the disk is full or not writable; the state before it is untouched then.
        """
        save_tensors(self.path, {"format": STATE_FORMAT, "signature": self.signature, "content": content})

    def load(self) -> dict[str, Any] | None:
        """Return the state saved by an earlier run of the same fit, or None where there is none.

        Raises
        ------
        StateMismatchError
            When the file belongs to another fit; the text names every difference.
        DamagedFileError
            When the file is damaged.
        """
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
