"""Arrays in files: read piece by piece when they are needed, so that a recording may exceed the memory.

Pieces are read, not mapped: pages of a mapped file count as memory of the process as long as they are
mapped, and a mapped file that another program cuts ends the process without an error.
"""

from __future__ import annotations

import io
import math
import os
import shutil
import weakref
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError, check_regular, naming_damage, remove_abandoned, scratch_name

__all__ = ["FileArray", "Scratch", "npy_pieces", "open_npy"]

Array = npt.NDArray[Any]

#: Bytes that are written, hashed or searched at once.
PIECE_BYTES = 1 << 24
#: What the name of a folder of temporary arrays starts with.
_SCRATCH = ".deepSTRF-scratch-"
_REMEDY = "copy or make it again, and open the recording anew"


@dataclass(frozen=True, eq=False)
class FileArray:
    """An array (..., T) in a file in C order, or the bins ``start`` to ``stop`` of it; never written."""

    path: str
    n_bytes: int  # of the file, as it was when it was opened
    offset: int
    whole: tuple[int, ...]  # shape of all that is in the file
    dtype: np.dtype[Any]
    start: int
    stop: int
    picked: tuple[int, ...] | None = None  # of the second last axis, where all before it are 1
    owner: Scratch | None = None  # keeps temporary files as long as they are in use

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the rows and bins that are shown."""
        rows = self.whole[:-1] if self.picked is None else (*self.whole[:-2], len(self.picked))
        return (*rows, self.stop - self.start)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.whole)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes on the disk."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def crop(self, start: int, stop: int | None) -> FileArray:
        """Bins ``start`` up to ``stop``, as a slice would take them; nothing is read."""
        first, last, _ = slice(start, stop).indices(self.stop - self.start)
        return replace(self, start=self.start + first, stop=self.start + max(first, last))

    def pick(self, rows: slice | list[int]) -> FileArray:
        """The chosen rows of (1, F, T) or (F, T); nothing is read."""
        index = range(self.whole[-2]) if self.picked is None else self.picked
        return replace(
            self, picked=tuple(index[rows] if isinstance(rows, slice) else [index[i] for i in rows])
        )

    def read(self, rows: slice | Array | None = None, start: int = 0, stop: int | None = None) -> Array:
        """Chosen rows (of all axes but the last as one; None keeps the axes) of chosen bins, in memory."""
        first, last, _ = slice(start, stop).indices(self.stop - self.start)
        bins = max(0, last - first)
        index: Any = range(math.prod(self.whole[:-1])) if self.picked is None else self.picked
        index = (
            [index[i] for i in rows.tolist()] if isinstance(rows, np.ndarray) else index[rows or slice(None)]
        )
        out = np.empty((len(index), bins), dtype=self.dtype)
        stride = self.whole[-1] * self.dtype.itemsize
        at = self.offset + (self.start + first) * self.dtype.itemsize
        contiguous = isinstance(index, range) and index.step == 1 and bins == self.whole[-1]
        with self._opened() as stream:
            if contiguous and len(index):
                self._fill(stream, at + index[0] * stride, out)
            else:
                for line, row in zip(out, index, strict=True):
                    self._fill(stream, at + row * stride, line)
        return out.reshape(*self.shape[:-1], bins) if rows is None else out

    def _opened(self) -> Any:
        try:
            stream = open(self.path, "rb", buffering=0)  # noqa: SIM115 - the caller closes it
        except OSError as error:
            raise DamagedFileError(
                f"{self.path} cannot be read any more ({error.strerror}); {_REMEDY}"
            ) from error
        found = os.fstat(stream.fileno()).st_size
        if found != self.n_bytes:
            stream.close()
            raise self._changed(f"it has {found:,} bytes, {self.n_bytes:,} when it was opened")
        return stream

    def _fill(self, stream: Any, at: int, out: Array) -> None:
        target = memoryview(out.data).cast("B") if out.size else memoryview(b"")
        stream.seek(at)
        while len(target):
            n = stream.readinto(target)
            if not n:
                raise self._changed("it ended early")
            target = target[n:]

    def _changed(self, what: str) -> DamagedFileError:
        return DamagedFileError(f"{self.path} was changed while it was in use ({what}); {_REMEDY}")

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "owner": None}  # a copy in another process does not remove the files


def npy_pieces(shape: tuple[int, ...], dtype: np.dtype[Any], pieces: Iterable[Array]) -> Iterator[bytes]:
    """The content of a ``.npy`` file whose values come in pieces, in C order."""
    header = io.BytesIO()
    facts = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    yield header.getvalue()
    for piece in pieces:
        yield np.ascontiguousarray(piece, dtype=dtype).tobytes()


def row_pieces(array: Array | FileArray) -> Iterator[Array]:
    """Two-dimensional pieces of an array whose bytes one after the other are those of the array."""
    if isinstance(array, np.ndarray) and array.nbytes <= PIECE_BYTES:
        yield array.reshape(-1, array.shape[-1]) if array.ndim != 2 else array
        return
    n_rows, bins = math.prod(array.shape[:-1]), array.shape[-1]
    flat = array if isinstance(array, FileArray) else array.reshape(n_rows, bins)
    for rows, part in blocks(n_rows, bins, array.dtype.itemsize):
        if isinstance(flat, FileArray):
            yield flat.read(rows, part.start, part.stop)
        else:
            yield flat[rows, part]


def blocks(n_rows: int, bins: int, itemsize: int) -> Iterator[tuple[slice, slice]]:
    """Rows and bins of pieces of at most `PIECE_BYTES` that follow each other in C order."""
    limit = PIECE_BYTES
    at_once = max(1, limit // max(1, bins * itemsize))
    step = bins if at_once > 1 or bins * itemsize <= limit else max(1, limit // itemsize)
    for first in range(0, n_rows, at_once):
        for start in range(0, bins, max(1, step)):
            yield slice(first, min(first + at_once, n_rows)), slice(start, min(start + step, bins))


def open_npy(path: str | os.PathLike[str], owner: Scratch | None = None) -> FileArray:
    """The array of a ``.npy`` file, of which only the header is read; DamagedFileError for anything else."""
    facts = check_regular(path)
    with naming_damage(path, _REMEDY), open(path, "rb") as stream:
        if np.lib.format.read_magic(stream) != (1, 0):
            raise ValueError("it is of another version of the .npy format")
        shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
        offset = stream.tell()
        if dtype.hasobject or fortran_order or not shape or min(shape) < 0:
            raise ValueError(f"it holds {dtype} of shape {shape}, which cannot be read piece by piece")
        if offset + math.prod(shape) * dtype.itemsize != facts.st_size:
            raise ValueError(f"it states the shape {shape} and has {facts.st_size:,} bytes")
    return FileArray(
        os.path.abspath(path), facts.st_size, offset, tuple(shape), dtype, 0, shape[-1], None, owner
    )


class Scratch:
    """A folder of temporary arrays, which goes with the last array in it, or with the process.

    It lies in the package's cache folder (a folder for temporary files may be memory itself); what a killed
    process left there goes with the next one.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        remove_abandoned(folder, _SCRATCH)
        self.folder = folder / f"{_SCRATCH}{scratch_name()}"
        self.folder.mkdir()
        self._count = 0
        weakref.finalize(self, _remove, self.folder, os.getpid())

    def put(self, array: Array) -> FileArray:
        """Write an array (..., T) into a file and return it from there."""
        return self.write(npy_pieces(array.shape, array.dtype, row_pieces(array)))

    def write(self, content: Iterable[bytes]) -> FileArray:
        """Write the content of a ``.npy`` file and return the array in it."""
        path = self.folder / f"{self._count}.npy"
        self._count += 1
        try:
            with open(path, "xb") as stream:
                stream.writelines(content)
        except OSError as error:
            path.unlink(missing_ok=True)
            error.filename = os.fspath(path)
            raise
        return open_npy(path, self)


def _remove(folder: Path, process: int) -> None:
    if os.getpid() == process:  # not the copy of this object that a worker process has
        shutil.rmtree(folder, ignore_errors=True)
