"""Files that are written whole or not at all: bytes, JSON, arrays and tensors.

A crash, a kill or a full disk leaves the version that was there before.
"""

from __future__ import annotations

import io
import json
import math
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

__all__ = [
    "DamagedFileError",
    "json_safe",
    "load_tensors",
    "npz_bytes",
    "save_or_warn",
    "save_tensors",
    "write_atomically",
    "write_json",
]


class DamagedFileError(ValueError):
    """A file that a run or a fit wrote cannot be read any more: no argument is wrong, the file is."""


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: the old content stays until the new one is safely on the disk."""
    target = Path(os.path.realpath(path))  # a link stays a link
    target.parent.mkdir(parents=True, exist_ok=True)
    # The temporary file lies beside the target: os.replace is atomic only within one file system.
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, os.fspath(temporary)):
            error.filename = os.fspath(
                target
            )  # a write that fails names no file, the temporary one helps nobody
        raise


def npz_bytes(arrays: Mapping[str, Any]) -> bytes:
    """Return arrays as the content of a compressed .npz file."""
    buffer = io.BytesIO()
    plain = {name: np.asarray(value) for name, value in arrays.items()}
    np.savez_compressed(buffer, **plain)  # type: ignore[arg-type]
    return buffer.getvalue()


def json_safe(value: Any) -> Any:
    """Return ``value`` as JSON can hold it: NaN and infinities become None, tensors become lists."""
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if hasattr(value, "tolist"):  # tensors, NumPy arrays and NumPy numbers
        return json_safe(value.tolist())
    if isinstance(value, Iterable):
        return [json_safe(item) for item in value]
    return repr(value)


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write a value as JSON that every reader accepts; see `json_safe`."""
    write_atomically(path, (json.dumps(json_safe(value), indent=1, allow_nan=False) + "\n").encode())


def save_tensors(path: str | os.PathLike[str], tree: Any) -> None:
    """Save a tree of tensors and plain values with ``torch.save``, atomically."""
    buffer = io.BytesIO()
    torch.save(tree, buffer)
    write_atomically(path, buffer.getvalue())


def load_tensors(path: str | os.PathLike[str]) -> Any:
    """Load what `save_tensors` wrote, onto the CPU, executing nothing from the file."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # torch.load raises many classes for a damaged file
        raise DamagedFileError(
            f"{os.fspath(path)} is no readable file of tensors ({type(error).__name__}: {error}); "
            "delete it or name another path"
        ) from error


def save_or_warn(name: str, path: str | os.PathLike[str], save: Callable[[], None]) -> bool:
    """Save a file of a running fit; when the disk refuses, warn and let the fit go on."""
    try:
        save()
    except OSError as error:
        warnings.warn(
            f"{name}={os.fspath(path)} could not be written ({error}). The fit goes on and keeps its best "
            "weights in memory; the file is as it was before. Free some space or name another path",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True
