"""Parsed copies of a recording: arrays in one file each, written atomically, checked when read, no pickle.

A cache entry is named after everything it depends on: the package version, the parameters, and the files it
was made from. An entry that is damaged or belongs to something else is rebuilt, and losing the whole folder
costs nothing but time.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import secrets
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF.datasets.fetch import CACHE_DIR_VARIABLE, cache_dir

__all__ = ["cached_arrays", "fingerprint_files"]

Arrays = dict[str, npt.NDArray[Any]]

#: Raise it when the meaning of a stored array changes without a change of the package version.
CACHE_FORMAT = 1
#: Bytes of the beginning and of the end of a file that enter its fingerprint, beside its size and its time
#: stamp.
SAMPLED_BYTES = 4096
#: Entries of one recording beyond this number are removed, oldest first, so that a sweep over bins cannot
#: fill a disk.
MAX_ENTRIES = 24
#: Everything that reading a damaged .npz file can raise.
DAMAGE = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError)
_KEY_MEMBER = "cache_key"


def fingerprint_files(root: str | os.PathLike[str], names: Iterable[str]) -> str:
    """Return a hash that changes when one of the files does, without reading all of them.

    Each file enters with its name, size, time of modification, and its first and last 4 KiB.

    Parameters
    ----------
    root : path
        Folder the names are relative to. It is not part of the hash.
    names : iterable of str
        Files, with ``/`` between folders.

    Returns
    -------
    str
        SHA-256, hexadecimal.

    Raises
    ------
    FileNotFoundError
        When a file is missing.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> Path(folder.name, "a").write_bytes(b"1")
    1
    >>> before = fingerprint_files(folder.name, ["a"])
    >>> Path(folder.name, "a").write_bytes(b"2")
    1
    >>> fingerprint_files(folder.name, ["a"]) == before
    False
    >>> folder.cleanup()
    """
    digest = hashlib.sha256()
    for name in names:
        with open(Path(root, name), "rb") as source:
            facts = os.fstat(source.fileno())
            digest.update(f"{name}\0{facts.st_size}\0{facts.st_mtime_ns}\0".encode())
            digest.update(source.read(SAMPLED_BYTES))
            source.seek(max(0, facts.st_size - SAMPLED_BYTES))
            digest.update(source.read(SAMPLED_BYTES))
    return digest.hexdigest()


def cached_arrays(
    name: str,
    product: str,
    depends_on: Mapping[str, Any],
    build: Callable[[], Arrays],
    *,
    members: Iterable[str] | None = None,
    enabled: bool = True,
) -> Arrays:
    """Return the arrays ``build()`` makes, from the cache when an intact entry is there.

    Parameters
    ----------
    name : str
        Short name of the recording; its folder is `deepSTRF.datasets.fetch.cache_dir(name)`.
    product : str
        What the arrays are, a file-name word such as ``"spikes"``.
    depends_on : mapping
        Everything the arrays depend on, as JSON values. The package version is added.
    build : callable
        Makes a dictionary of arrays without Python objects in them.
    members : iterable of str, optional
        Names of the arrays wanted; the others are not read. Default: all.
    enabled : bool
        False calls ``build()`` and touches no file.

    Returns
    -------
    dict of ndarray
        The arrays.

    Warns
    -----
    UserWarning
        When the entry cannot be written (a full disk, a read-only home). The arrays are returned all the
        same.

    Examples
    --------
    >>> arrays = cached_arrays("demo", "squares", {"n": 3}, lambda: {"x": np.arange(3) ** 2}, enabled=False)
    >>> arrays["x"]
    array([0, 1, 4])
    """
    if not enabled:
        return build()
    key = _key(product, depends_on)
    path = cache_dir(name) / f"{product}-{hashlib.sha256(key.encode()).hexdigest()[:20]}.npz"
    wanted = None if members is None else list(members)
    stored = _read(path, key, wanted)
    if stored is not None:
        return stored
    arrays = build()
    _write(path, key, arrays)
    return arrays if wanted is None else {member: arrays[member] for member in wanted}


def _key(product: str, depends_on: Mapping[str, Any]) -> str:
    from deepSTRF import __version__

    facts = {"format": CACHE_FORMAT, "version": __version__, "product": product, **depends_on}
    return json.dumps(facts, sort_keys=True)


def _read(path: Path, key: str, wanted: list[str] | None) -> Arrays | None:
    """Return the arrays of an entry, None when it is absent, damaged or of another key."""
    try:
        with zipfile.ZipFile(path) as entry:
            if str(_member(entry, _KEY_MEMBER)) != key:
                return None
            stored = [name.removesuffix(".npy") for name in entry.namelist()]
            names = [name for name in stored if name != _KEY_MEMBER] if wanted is None else wanted
            return {name: _member(entry, name) for name in names}
    except DAMAGE:
        return None


def _member(entry: zipfile.ZipFile, name: str) -> npt.NDArray[Any]:
    """Return one array of an .npz file; reading the whole member first checks its CRC, header included."""
    content = io.BytesIO(entry.read(f"{name}.npy"))
    array: npt.NDArray[Any] = np.lib.format.read_array(content, allow_pickle=False)
    return array


def _write(path: Path, key: str, arrays: Arrays) -> None:
    """Write an entry under a temporary name, then rename it."""
    temporary = path.with_name(f".{path.stem}-{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as out:
            np.savez(out, allow_pickle=False, **{_KEY_MEMBER: np.array(key)}, **arrays)
        os.replace(temporary, path)
        _prune(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        warnings.warn(
            f"the parsed recording could not be cached at {path} ({error}), so the next load takes as long "
            f"as this one; set {CACHE_DIR_VARIABLE} to a folder with room, or pass cache=False",
            stacklevel=4,
        )


def _prune(folder: Path) -> None:
    """Remove the oldest entries beyond `MAX_ENTRIES`."""
    entries = sorted(folder.glob("*.npz"), key=lambda entry: entry.stat().st_mtime, reverse=True)
    for entry in entries[MAX_ENTRIES:]:
        entry.unlink(missing_ok=True)
