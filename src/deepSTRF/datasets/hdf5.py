"""HDF5 files from elsewhere, read without trust: links, shapes and types are checked before values are read.

No link leaves the folder of the file, no declared shape makes memory larger than what is stored, a loop of
links ends, and data sets that take their bytes from other files are refused. Names are looked up part by
part, since HDF5 itself would follow any link on the way.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError, check_regular, damaged, naming_damage
from deepSTRF._optional import require
from deepSTRF._text import printable
from deepSTRF._validation import check_memory

__all__ = ["SIGNATURE", "Hdf5File", "is_hdf5"]

#: First bytes of an HDF5 file, or of what follows a user block of 512, 1024, ... bytes.
SIGNATURE = b"\x89HDF\r\n\x1a\n"
#: User blocks are looked for up to this many bytes.
_LARGEST_USER_BLOCK = 1 << 20
#: Links on the way to one object, and groups in one another.
_MOST_LINKS, _DEEPEST = 32, 12
#: A stored byte of a compressed data set is not more than this many; small data sets may be unwritten.
_MOST_INFLATION, _SMALL = 1032, 1 << 20
#: Texts of one column, and of one attribute, in bytes and entries.
_MOST_TEXT, _MOST_VALUES = 256_000_000, 1_000_000


def is_hdf5(path: Path) -> bool:
    """Whether a regular file holds the signature of HDF5 where it may stand."""
    with contextlib.suppress(OSError, ValueError):
        size = check_regular(path).st_size
        with open(path, "rb") as stream:
            at = 0
            while at < min(size, _LARGEST_USER_BLOCK):
                stream.seek(at)
                if stream.read(len(SIGNATURE)) == SIGNATURE:
                    return True
                at = max(512, 2 * at)
    return False


class Hdf5File:
    """An HDF5 file that is open for reading in a ``with`` block; errors name the file and the object.

    ``remedy`` ends the errors about damage: what to do. ``content`` are the bytes of a file that lies in an
    archive, where ``path`` is its name for messages.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        remedy: str = "copy it again from where it is whole",
        content: bytes | None = None,
    ) -> None:
        self.path = Path(path)
        self.remedy = remedy
        self.content = content
        self._open: dict[Path, Any] = {}
        self._stored: dict[tuple[str, str], int] = {}

    def __enter__(self) -> Self:
        self.root = self._file(self.path)
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._open.values():
            handle.close()
        self._open.clear()

    def _file(self, path: Path) -> Any:
        key = path.resolve()
        if key not in self._open:
            h5py = require("h5py", extra="formats")
            inside = self.content if path == self.path else None
            if not (check_regular(path).st_size if inside is None else len(inside)):
                raise damaged(path, "it is empty", self.remedy)
            with naming_damage(path, self.remedy):
                self._open[key] = h5py.File(path if inside is None else io.BytesIO(inside), "r")
        return self._open[key]

    def _size(self, dataset: Any) -> int:
        """Bytes of the file that a data set is in."""
        return os.stat(dataset.file.filename).st_size if self.content is None else len(self.content)

    def damage(self, what: str) -> DamagedFileError:
        """The error for something in the file that cannot be trusted."""
        return damaged(self.path, what, self.remedy)

    # ---- objects

    def find(self, name: str, start: Any = None) -> Any | None:
        """The group or data set at a path, from ``start`` (the root); None where there is none."""
        with naming_damage(self.path, self.remedy):
            return self._find(name, self.root if start is None else start, _MOST_LINKS)

    def _find(self, name: str, start: Any, links: int) -> Any | None:
        place = start.file["/"] if name.startswith("/") else start
        for part in name.split("/"):
            if part in ("", "."):
                continue
            if not hasattr(place, "keys"):  # a data set has no members
                return None
            place = self._member(place, part, links)
            if place is None:
                return None
        return place

    def _member(self, group: Any, name: str, links: int) -> Any | None:
        h5py = require("h5py", extra="formats")
        link = group.get(name, getlink=True)
        if link is None:
            return None
        if isinstance(link, h5py.HardLink):
            return group[name]
        if links == 0:
            raise ValueError(
                f"the link {group.name}/{name} leads to more than {_MOST_LINKS} others, or to itself"
            )
        if isinstance(link, h5py.SoftLink):
            return self._find(link.path, group, links - 1)
        here = Path(os.path.realpath(self.path)).parent
        target = Path(os.path.realpath(Path(group.file.filename).parent / link.filename))
        if not target.is_relative_to(here):
            raise ValueError(
                f"{printable(group.name)}/{printable(name)} is a link into another file, "
                f"{printable(link.filename, longest=200)!r}, outside the folder of this one, which is not "
                "followed: copy that file beside it and link it by its name"
            )
        if not target.is_file():
            raise FileNotFoundError(
                f"{printable(group.name)}/{printable(name)} is a link into {printable(target)}, which is not "
                "there"
            )
        return self._find(link.path, self._file(target)["/"], links - 1)

    def members(self, group: Any) -> Iterator[tuple[str, Any]]:
        """Names and objects in a group, by name; links to nothing and out of the folder are left out."""
        with naming_damage(self.path, self.remedy):
            names = list(group) if hasattr(group, "keys") else []
        for name in names:
            try:
                found = self._member(group, name, _MOST_LINKS)
            except (ValueError, KeyError, RuntimeError, OSError):  # said when it is asked for by its name
                continue
            if found is not None:
                yield name, found

    def walk(self, group: Any) -> Iterator[tuple[str, Any]]:
        """Paths and groups at or below a group, each once, however it is linked."""
        seen: set[Any] = set()
        pending = [(str(group.name), group, 0)]
        while pending:
            path, place, depth = pending.pop()
            if place.id in seen or depth > _DEEPEST:
                continue
            seen.add(place.id)
            yield path, place
            below = [(name, item) for name, item in self.members(place) if hasattr(item, "keys")]
            pending += [(f"{path.rstrip('/')}/{name}", item, depth + 1) for name, item in reversed(below)]

    # ---- values

    def attribute(self, item: Any, name: str) -> Any:
        """A small attribute as text, number or array of them; None where there is none."""
        with naming_damage(self.path, self.remedy):
            if name not in item.attrs:
                return None
            if math.prod(item.attrs.get_id(name).shape or ()) > _MOST_VALUES:
                raise ValueError(
                    f"the attribute {name!r} of {item.name} has more than {_MOST_VALUES:,} values"
                )
            value = item.attrs[name]
        if isinstance(value, bytes):
            return value.decode("utf-8", "replace")
        if isinstance(value, np.ndarray) and value.dtype.kind in "OS":
            return np.array([v.decode("utf-8", "replace") if isinstance(v, bytes) else v for v in value.flat])
        return value

    def values(self, dataset: Any, begin: int | None = None, end: int | None = None) -> npt.NDArray[Any]:
        """Rows of a data set (all of a scalar) in the byte order of this machine."""
        with naming_damage(self.path, self.remedy):
            shape = dataset.shape
            if shape is None:
                return np.empty(0)
            rows = range(shape[0])[begin:end] if shape else range(1)
            self._check_storage(dataset, math.prod((len(rows), *shape[1:])) * dataset.dtype.itemsize)
            found = np.asarray(dataset[rows.start : rows.stop] if shape else dataset[()])
        return found.astype(found.dtype.newbyteorder("="), copy=False)

    def _check_storage(self, dataset: Any, size: int) -> None:
        """Refuse bytes of other files, unknown compression, and shapes beyond what is stored."""
        h5py = require("h5py", extra="formats")
        name = printable(dataset.name)
        if dataset.external or dataset.is_virtual:
            raise ValueError(
                f"{name} takes its values from other files, which is not followed; repack the file"
            )
        key = (dataset.file.filename, dataset.name)
        if key not in self._stored:  # of many chunks, it is a long sum
            self._stored[key] = dataset.id.get_storage_size()
        stored = self._stored[key]
        if dataset.chunks is None and stored > self._size(dataset):
            raise ValueError(f"{name} states {stored:,} bytes, more than the file has")
        if size > max(_SMALL, stored * _MOST_INFLATION):
            raise ValueError(
                f"{name} states the shape {dataset.shape}, and {stored:,} bytes of it are stored"
            )
        check_memory(size, f"{name} of shape {dataset.shape}")
        plist = dataset.id.get_create_plist()
        for number in range(plist.get_nfilters()):
            code, _, _, label = plist.get_filter(number)
            if not h5py.h5z.filter_avail(code):
                raise ValueError(
                    f"{name} is compressed with {printable(label.decode('ascii', 'replace')) or code}, which "
                    "is not installed here: pip install hdf5plugin and import it first, or repack the file "
                    "with gzip"
                )

    def texts(self, dataset: Any) -> list[str]:
        """Text of each element of a data set of texts, flat."""
        h5py = require("h5py", extra="formats")
        if h5py.check_string_dtype(dataset.dtype) is None or dataset.dtype.kind == "S":
            return [_text(value) for value in self.values(dataset).flat]
        # no text is longer than the file, but each may stand for the same bytes of it
        most = max(1, _MOST_TEXT // max(1, self._size(dataset)))
        rows = dataset.shape[0] if dataset.shape else 1
        step = max(1, most // max(1, math.prod((dataset.shape or (1,))[1:])))
        found: list[str] = []
        total = 0
        for begin in range(0, rows, step):
            found += [_text(value) for value in self.values(dataset, begin, begin + step).flat]
            total += sum(map(len, found[-step:]))
            if total > _MOST_TEXT:
                raise self.damage(f"{dataset.name} holds more than {_MOST_TEXT:,} bytes of text")
        return found


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
