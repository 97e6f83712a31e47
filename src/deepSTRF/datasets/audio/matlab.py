"""MATLAB files: version 4 to 7 and 7.3 (HDF5) as one plain tree of arrays, texts, dictionaries and cells.

The bytes decide which version a file is, not its name. Nothing is squeezed: an array has its MATLAB shape.
What a file declares is checked against what it holds before memory is taken, and nesting is bounded, so a
damaged or hostile file is an error that names it.
"""

from __future__ import annotations

import contextlib
import math
import os
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import numpy.typing as npt

from deepSTRF import _optional
from deepSTRF._files import DamagedFileError, check_regular
from deepSTRF._text import printable
from deepSTRF._validation import check_memory, first_names
from deepSTRF.datasets.variable_paths import Variable, VariableFile, cells_of, elements
from deepSTRF.datasets.variables import VariablesFormat
from deepSTRF.registry import FORMATS

__all__ = ["MatFile", "MatlabFormat", "Unreadable", "elements", "open_mat", "read_variables", "version_of"]

_REMEDY = "copy the file again, or save it once more in MATLAB: save('mine.mat', 'spikes', '-v7')"
#: Cells in structs in cells ... deeper than this are made to harm.
_DEEPEST = 64
#: The most that a byte of a deflated stream can become, and what is allowed beside it.
_MOST_INFLATION, _SLACK = 1032, 1 << 20
#: Bytes of a variable that hold its header: class, shape and name.
_HEAD = 4096
_HDF5 = b"\x89HDF\r\n\x1a\n"
#: Numbers of classes and of data types in files of version 5.
_CELL, _STRUCT, _CHAR, _SPARSE = 1, 2, 4, 5
_NUMBERS = {6: "f8", 7: "f4", 8: "i1", 9: "u1", 10: "i2", 11: "u2", 12: "i4", 13: "u4", 14: "i8", 15: "u8"}
_STORED = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
_TEXT = {16: "utf-8", 17: "utf-16", 18: "utf-32"}
_MATRIX, _COMPRESSED = 14, 15
_COMPLEX, _LOGICAL = 0x08, 0x02
_NAMES = {1: "cell", 2: "struct", 3: "object", 4: "char", 5: "sparse", 6: "double", 7: "single"} | {
    number: f"{'u' * (number % 2)}int{8 << (number - 8) // 2}" for number in range(8, 16)
}
_NAMES |= {16: "function_handle", 17: "opaque"}
_EMPTY = np.empty((0, 0))  # one for all: a small file can declare a million
_CLASSES_73 = {*_NAMES.values(), "logical", "canonical empty"} - {"object", "function_handle", "opaque"}
_INSTEAD = {
    "string": "cellstr(x) or char(x)",
    "table": "table2struct(x, 'ToScalar', true)",
    "timetable": "table2struct(timetable2table(x), 'ToScalar', true)",
    "categorical": "cellstr(x)",
    "datetime": "posixtime(x)",
    "duration": "seconds(x)",
    "function_handle": "func2str(x)",
    "containers.Map": "struct('keys', {keys(x)}, 'values', {values(x)})",
}


class Unreadable:
    """A value whose class only MATLAB can read, in the place where it stands: using it is a ValueError."""

    def __init__(self, where: str, kind: str) -> None:
        self.where, self.kind = where, kind

    def refuse(self) -> NoReturn:
        """Raise the error that names the value, its class, and what to save in its place."""
        instead = _INSTEAD.get(self.kind, "struct(x), or its numbers")
        raise ValueError(
            f"{self.where} is of the MATLAB class {printable(self.kind, longest=60)!r}, which only MATLAB "
            f"can read; there, save {instead} in its place"
        )

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.refuse()

    def __getitem__(self, _: Any) -> NoReturn:
        self.refuse()

    def __iter__(self) -> Iterator[Any]:
        self.refuse()

    def __float__(self) -> float:
        self.refuse()

    def __repr__(self) -> str:
        return f"<{self.where}: MATLAB class {self.kind}>"


class MatFile(VariableFile):
    """An open MATLAB file: its variables, and the value of one, by its name or a path such as "data.fs"."""

    def variables(self) -> dict[str, Variable]:
        """Name, class and shape of each variable, without its content."""
        with _naming_file(self.path):
            return self._variables()

    def value(self, name: str) -> Any:
        """Content of one variable, or of one field: a field of a struct array is a cell of its shape."""
        first, *fields = name.split(".")
        with _naming_file(self.path):
            value, left = self._read(first, fields)
            for field in left:
                value = self._field(value, field, name)
        return value

    def _variables(self) -> dict[str, Variable]:
        raise NotImplementedError

    def _read(self, name: str, fields: list[str]) -> tuple[Any, list[str]]:
        """Content of a variable or of its field, and the fields that are left to be taken from it."""
        raise NotImplementedError

    def _field(self, value: Any, field: str, name: str) -> Any:
        """A field of a struct, or of each element of a struct array."""
        if isinstance(value, Unreadable):
            value.refuse()
        structs = elements(value)
        if not all(isinstance(struct, dict) for struct in structs):
            raise ValueError(
                f"{self.path}: {name} cannot be read, {field!r} being no field of a struct there"
            )
        known = sorted({key for struct in structs for key in struct})
        if any(field not in struct for struct in structs):
            raise ValueError(
                f"{self.path}: {name} cannot be read, there is no field {field!r}; there are "
                f"{first_names(known) or 'none'}"
            )
        if isinstance(value, dict):
            return value[field]
        return cells_of([struct[field] for struct in structs], value.shape)

    def _missing(self, name: str) -> NoReturn:
        known = first_names(list(self._variables())) or "nothing"
        raise ValueError(f"{self.path} has no variable {printable(name)!r}; it holds: {known}")


def read_variables(path: str | os.PathLike[str], names: Sequence[str] | None = None) -> dict[str, Any]:
    """Content of a MATLAB file (version 4 to 7, and 7.3), as one plain tree.

    Numeric arrays keep MATLAB's shape (at least 2 axes) and class; logicals are bool; a text is a str
    (several rows: an object array of str); a cell array is an object array of its shape; a struct is a dict,
    an array of structs an object array of dicts (`elements` lists either); sparse matrices are dense.

    Parameters
    ----------
    path : path
    names : list of str, optional
        Variables, or paths into structs ("data.units"); only these are read. Default all.

    Raises
    ------
    ValueError
        For a name that is not there, or of a class that only MATLAB can read (string, table, function
        handle). Inside of structs and cells, and without ``names``, such a value is an `Unreadable`.
    DamagedFileError
        For files that are truncated, damaged, or hold links to other files.
    """
    with open_mat(path) as file:
        found = {name: file.value(name) for name in (list(file.variables()) if names is None else names)}
    for value in found.values() if names is not None else ():
        if isinstance(value, Unreadable):
            value.refuse()
    return found


def version_of(path: str | os.PathLike[str]) -> str:
    """'7.3', '5', '4' or '' of a file, by its bytes; only a file called .mat may be of version 4."""
    check_regular(path)
    with open(path, "rb") as stream:
        start = stream.read(520)
    suffix = Path(path).suffix.lower()
    if start[:19] == b"MATLAB 7.3 MAT-file" or (suffix == ".mat" and _HDF5 in (start[:8], start[512:520])):
        return "7.3"
    if start[124:128] in (b"\x00\x01IM", b"\x01\x00MI"):
        return "5"
    header = np.frombuffer(start[:20].ljust(20, b"\xff"), dtype="<i4")
    if suffix == ".mat" and any(
        0 <= h[0] < 5000 and min(h[1:3]) >= 0 and h[3] in (0, 1) and 0 < h[4] < 256
        for h in (header, header.byteswap())
    ):
        return "4"
    return ""


@contextlib.contextmanager
def open_mat(path: str | os.PathLike[str]) -> Iterator[MatFile]:
    """Open a MATLAB file of any version; what a parser raises of it becomes a `DamagedFileError`."""
    path = Path(path)
    version = version_of(path)
    if not version:
        raise DamagedFileError(f"{path} is no MATLAB file, by its first bytes; name one, or another format")
    if version == "4":
        yield _Mat4(path)
    elif version == "5":
        with open(path, "rb") as stream:
            yield _Mat5(path, stream)
    else:
        h5py = _optional.require("h5py", extra="formats")
        with _naming_file(path):
            file = h5py.File(path, "r")
        with file:
            yield _Mat73(path, file, h5py)


@FORMATS.register("matlab")
class MatlabFormat(VariablesFormat):
    """MATLAB files of version 4 to 7 and 7.3."""

    suffixes = (".mat",)
    from_one = True

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """By the first bytes; a file of version 4, or HDF5 without MATLAB's header, is called .mat."""
        return path.is_file() and bool(version_of(path))

    def opened(self) -> contextlib.AbstractContextManager[VariableFile]:
        """The file, open."""
        return open_mat(self.path)

    def facts(self) -> str:
        """The version of the file."""
        return f"MATLAB file of version {version_of(self.path)}"


@contextlib.contextmanager
def _naming_file(path: Path) -> Iterator[None]:
    """Turn what reading raises into a `DamagedFileError`; errors that name the file are as they should be."""
    try:
        yield
    except Exception as error:  # parsers of damaged bytes raise anything
        named = isinstance(error, OSError) and error.filename is not None
        if (
            named
            or isinstance(error, ImportError)
            or (isinstance(error, ValueError) and str(path) in str(error))
        ):
            raise
        raise _damaged(path, f"{type(error).__name__}: {error}") from error


def _damaged(path: Path, what: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path} is damaged ({' '.join(printable(what, longest=300).split())}); {_REMEDY}"
    )


def _text_of(rows: npt.NDArray[np.uint16]) -> Any:
    """Text of a char array of UTF-16 codes: one str, or an object array of the texts of its rows."""
    if rows.size == 0:
        return ""
    lines = np.moveaxis(rows, 1, -1)
    texts = [
        np.ascontiguousarray(line, dtype="<u2").tobytes().decode("utf-16-le", errors="replace")
        for line in lines.reshape(-1, rows.shape[1], order="F")
    ]
    return texts[0] if len(texts) == 1 else cells_of(texts, (rows.shape[0], 1, *rows.shape[2:]))


def _complex(real: npt.NDArray[Any], imag: npt.NDArray[Any]) -> npt.NDArray[Any]:
    out = np.empty(real.shape, dtype="c8" if real.dtype.itemsize == 4 else "c16")
    out.real, out.imag = real, imag
    return out


def _dense(
    values: npt.NDArray[Any], rows: npt.NDArray[Any], starts: npt.NDArray[Any], shape: tuple[int, int]
) -> npt.NDArray[Any]:
    """A sparse matrix as a dense one: ``starts[j]:starts[j + 1]`` are the elements of column j."""
    counts: npt.NDArray[np.int64] = np.diff(starts.astype(np.int64)).astype(np.int64)
    if len(counts) != shape[1] or (counts < 0).any() or counts.sum() > min(len(rows), len(values)):
        raise ValueError("a sparse matrix whose columns do not agree with its elements")
    n = int(counts.sum())
    if n and not 0 <= int(rows[:n].min()) <= int(rows[:n].max()) < shape[0]:
        raise ValueError("a sparse matrix with elements outside its rows")
    out = np.zeros(shape, dtype=values.dtype)
    out[rows[:n].astype(np.int64), np.repeat(np.arange(shape[1]), counts)] = values[:n]
    return out


# ---- versions 4 and 5 to 7


class _Mat4(MatFile):
    """Version 4: flat numbers and texts, read with SciPy."""

    def _variables(self) -> dict[str, Variable]:
        from scipy.io import whosmat

        return {name: Variable(name, kind, tuple(shape)) for name, shape, kind in whosmat(self.path)}

    def _read(self, name: str, fields: list[str]) -> tuple[Any, list[str]]:
        from scipy.io import loadmat

        variable = self._variables().get(name) or self._missing(name)
        declared = 16 * math.prod(variable.shape)  # complex numbers
        if variable.kind != "sparse" and declared > 16 * os.path.getsize(self.path):
            raise ValueError(f"{name} declares the shape {variable.shape}, more than the file holds")
        check_memory(declared, f"{self.path}: the variable {name}")
        found = loadmat(self.path, variable_names=[name], chars_as_strings=False)[name]
        value = found.toarray() if hasattr(found, "toarray") else np.asarray(found)
        if value.dtype.kind == "U":
            codes = [ord(letter or " ") for letter in value.ravel(order="F")]
            return _text_of(np.array(codes, dtype=np.uint16).reshape(value.shape, order="F")), fields
        return value.astype(value.dtype.newbyteorder("=")), fields


@dataclass
class _Element:
    """Data type, and where the bytes of an element begin and end in what was read."""

    kind: int
    start: int
    end: int


class _Mat5(MatFile):
    """Versions 5 to 7: a list of matrices, compressed or not; only those asked for are read."""

    def __init__(self, path: Path, stream: IO[bytes]) -> None:
        super().__init__(path)
        self.stream = stream
        self.size = os.fstat(stream.fileno()).st_size
        stream.seek(126)
        self.order = "<" if stream.read(2) == b"IM" else ">"
        self._places: dict[str, tuple[Variable, int, int, int]] = {}

    def _found(self) -> dict[str, tuple[Variable, int, int, int]]:
        """Header, data type, position and length of each variable, by its name."""
        position = 128
        while not self._places and position + 8 <= self.size:
            position = self._scan(position)
        return self._places

    def _scan(self, position: int) -> int:
        while position + 8 <= self.size:
            self.stream.seek(position)
            kind, length = (int(n) for n in np.frombuffer(self.stream.read(8), dtype=f"{self.order}u4"))
            if kind not in (_MATRIX, _COMPRESSED) or position + 8 + length > self.size:
                raise ValueError(f"an element of type {kind} and {length:,} bytes at byte {position:,}")
            head = self.stream.read(min(length, _HEAD))
            if kind == _COMPRESSED:
                head = zlib.decompressobj().decompress(head, _HEAD)[8:]
            variable = _Matrices(head, self.order, cut=True).header()
            if variable.name:  # the one without a name holds what objects need
                self._places[variable.name] = (variable, kind, position + 8, length)
            position += 8 + length
        if position != self.size:
            raise ValueError(f"{self.size - position} bytes after its last variable")
        return position

    def _variables(self) -> dict[str, Variable]:
        return {name: place[0] for name, place in self._found().items()}

    def _read(self, name: str, fields: list[str]) -> tuple[Any, list[str]]:
        _, kind, position, length = self._found().get(name) or self._missing(name)
        self.stream.seek(position)
        content = self.stream.read(length)
        if kind == _COMPRESSED:
            content = self._inflated(content, name)
        else:
            check_memory(length, f"{self.path}: the variable {name}")
        reader = _Matrices(content, self.order)
        return reader.matrix(_Element(_MATRIX, 0, len(content)), name), fields

    def _inflated(self, content: bytes, name: str) -> bytes:
        """The matrix in a compressed element, whose checksum is verified."""
        inflate = zlib.decompressobj()
        kind, length = np.frombuffer(inflate.decompress(content, 8), dtype=f"{self.order}u4")
        if kind != _MATRIX or length > len(content) * _MOST_INFLATION + _SLACK:
            raise ValueError(f"{name} declares {length:,} bytes, more than its {len(content):,} can hold")
        check_memory(int(length), f"{self.path}: the variable {name}")
        matrix = inflate.decompress(inflate.unconsumed_tail, int(length)) if length else b""
        inflate.decompress(inflate.unconsumed_tail, 8)
        if len(matrix) != length or not inflate.eof:
            raise ValueError(f"{name} holds {len(matrix):,} of {length:,} bytes")
        return matrix


class _Matrices:
    """The matrices in the bytes of one variable; every length is checked against what is there."""

    def __init__(self, content: bytes, order: str, *, cut: bool = False) -> None:
        self.content, self.order, self.cut = content, order, cut
        self.at = 0

    def element(self, end: int) -> _Element:
        """The element at the present place, which moves behind it."""
        if self.at + 8 > end:
            raise ValueError(f"it ends at byte {self.at:,}, inside of a variable")
        first, second = (int(n) for n in np.frombuffer(self.content, f"{self.order}u4", 2, self.at))
        if first >> 16:  # up to four bytes lie in the second half of the tag
            kind, length, start = first & 0xFFFF, first >> 16, self.at + 4
            stop = self.at + 8
            if length > 4:
                raise ValueError(f"a short element of {length} bytes")
        else:
            kind, length, start = first, second, self.at + 8
            stop = start + length + (-length % 8)
        if start + length > end and not self.cut:
            raise ValueError(f"an element of {length:,} bytes where {end - start:,} are left")
        self.at = min(stop, end)
        return _Element(kind, start, min(start + length, end))

    def numbers(self, end: int) -> npt.NDArray[Any]:
        """A run of numbers as they are stored."""
        item = self.element(end)
        if item.kind not in _STORED:
            raise ValueError(f"numbers of the unknown type {item.kind}")
        dtype = np.dtype(self.order + _STORED[item.kind])
        count, rest = divmod(item.end - item.start, dtype.itemsize)
        if rest:
            raise ValueError(f"{item.end - item.start} bytes are no whole number of {dtype.itemsize}")
        return np.frombuffer(self.content, dtype, count, item.start)

    def text(self, end: int) -> str:
        """A name in one byte per letter."""
        item = self.element(end)
        return self.content[item.start : item.end].rstrip(b"\0").decode("utf-8", errors="replace")

    def header(self) -> Variable:
        """Name, class and shape of the variable."""
        end = len(self.content)
        flags = self.numbers(end)
        kind = int(flags[0]) & 0xFF
        if kind == 17:
            return Variable(self.text(end), "opaque", (1, 1))
        shape = self.shape(end)
        name = self.text(end)
        logical = int(flags[0]) >> 8 & _LOGICAL
        return Variable(name, "logical" if logical else _NAMES.get(kind, f"class {kind}"), shape)

    def shape(self, end: int) -> tuple[int, ...]:
        """Dimensions of a matrix, at least two."""
        shape = tuple(int(n) for n in self.numbers(end))
        if not 2 <= len(shape) <= 32 or min(shape) < 0:
            raise ValueError(f"a matrix of the shape {shape[:5]}")
        return shape

    def matrix(self, item: _Element, where: str, depth: int = 0) -> Any:
        """Value of a matrix; the present place moves behind it."""
        if item.kind != _MATRIX:
            raise ValueError(f"{where} is of type {item.kind}, not a matrix")
        if item.start == item.end:
            return _EMPTY
        if depth > _DEEPEST:
            raise ValueError(f"{where[:60]}... is nested more than {_DEEPEST} levels deep")
        behind, self.at = self.at if depth else item.end, item.start
        flags = int(self.numbers(item.end)[0])
        kind, flags = flags & 0xFF, flags >> 8
        value: Any
        if kind == 17:
            _, _, name = (self.text(item.end) for _ in range(3))
            value = Unreadable(where, name)
        else:
            shape = self.shape(item.end)
            self.text(item.end)
            value = self.content_of(kind, flags, shape, item.end, where, depth)
        self.at = behind
        return value

    def content_of(
        self, kind: int, flags: int, shape: tuple[int, ...], end: int, where: str, depth: int
    ) -> Any:
        """Value of a matrix of a class and shape whose content begins at the present place."""
        size = math.prod(shape)
        if kind in _NUMBERS:
            values = self.array(_NUMBERS[kind], size, flags, end).reshape(shape, order="F")
            return values.astype(bool) if flags & _LOGICAL else values
        if kind == _CHAR:
            return _text_of(self.letters(size, end).reshape(shape, order="F"))
        if kind == _CELL:
            self.room(size, end)
            parts = (f"{where}{{{index + 1}}}" for index in range(size))
            return cells_of([self.matrix(self.element(end), part, depth + 1) for part in parts], shape)
        if kind == _STRUCT:
            return self.structs(shape, end, where, depth)
        if kind == _SPARSE:
            rows, starts = self.numbers(end), self.numbers(end)
            if flags & _LOGICAL:  # MATLAB calls them numbers of 8 bytes, and stores one byte each
                item = self.element(end)
                width = 8 if item.kind == 9 and item.end - item.start >= 8 * int(starts[-1]) else 1
                values = np.frombuffer(
                    self.content, f"u{width}", (item.end - item.start) // width, item.start
                )
            else:
                values = self.array("f8", None, flags, end)
            if len(shape) != 2 or len(starts) != shape[1] + 1:
                raise ValueError(f"{where} is sparse, of the shape {shape}, with {len(starts)} columns")
            check_memory(values.itemsize * size, f"the sparse matrix {where}")
            dense = _dense(values, rows, starts, (shape[0], shape[1]))
            return dense.astype(bool) if flags & _LOGICAL else dense
        return Unreadable(where, self.text(end) if kind == 3 else _NAMES.get(kind, f"number {kind}"))

    def room(self, count: int, end: int) -> None:
        """Refuse more matrices than the bytes that are left can hold."""
        if count > (end - self.at) // 8:
            raise ValueError(f"{count:,} elements are declared where {end - self.at:,} bytes are left")

    def array(self, dtype: str, size: int | None, flags: int, end: int) -> npt.NDArray[Any]:
        """Real or complex numbers of a class, which may be stored in fewer bytes."""
        if size == 0 and self.at >= end:
            return np.empty(0, dtype)
        parts = [self.numbers(end) for _ in range(2 if flags & _COMPLEX else 1)]
        if any(len(part) != (len(parts[0]) if size is None else size) for part in parts):
            raise ValueError(f"{len(parts[-1]):,} numbers where {size:,} are declared")
        real = parts[0].astype(dtype)
        if len(parts) == 1:
            return real
        return _complex(real, parts[1].astype(dtype))

    def letters(self, size: int, end: int) -> npt.NDArray[np.uint16]:
        """UTF-16 codes of the letters of a char array."""
        item = self.element(end) if size or self.at < end else _Element(2, end, end)
        content = self.content[item.start : item.end]
        if item.kind in _TEXT:
            ending = {"<": "-le", ">": "-be"}[self.order] if item.kind != 16 else ""
            text = content.decode(_TEXT[item.kind] + ending, errors="replace")
            codes = np.array([min(ord(letter), 0xFFFD) for letter in text], dtype=np.uint16)
        elif item.kind in (1, 2, 4):
            dtype = self.order + ("u2" if item.kind == 4 else "u1")
            codes = np.frombuffer(content, dtype).astype(np.uint16)
        else:
            raise ValueError(f"letters of the unknown type {item.kind}")
        if not len(codes) and size <= _HEAD:
            return np.full(size, ord(" "), dtype=np.uint16)  # MATLAB writes some blanks so
        if len(codes) != size:
            raise ValueError(f"{len(codes):,} letters where {size:,} are declared")
        return codes

    def structs(self, shape: tuple[int, ...], end: int, where: str, depth: int) -> Any:
        """A struct as a dictionary, or an array of them."""
        lengths = self.numbers(end)
        if len(lengths) != 1 or not 0 < lengths[0] <= 4096:
            raise ValueError(f"{where} has field names of {lengths[:3]} letters")
        item, width = self.element(end), int(lengths[0])
        raw = self.content[item.start : item.end]
        names = [
            raw[i : i + width].split(b"\0")[0].decode("utf-8", errors="replace")
            for i in range(0, len(raw), width)
        ]
        size = math.prod(shape)
        self.room(size * len(names) if names else size // 1_000_000, end)
        structs = []
        for index in range(size):
            inside = where if size == 1 else f"{where}({index + 1})"
            structs.append(
                {name: self.matrix(self.element(end), f"{inside}.{name}", depth + 1) for name in names}
            )
        return structs[0] if shape == (1, 1) else cells_of(structs, shape)


# ---- version 7.3


class _Mat73(MatFile):
    """Version 7.3: HDF5, axes reversed, cells and struct arrays as references, which may not form circles."""

    def __init__(self, path: Path, file: Any, h5py: Any) -> None:
        super().__init__(path)
        self.file, self.h5py = file, h5py
        self._known: dict[int, Any] = {}
        self._open: set[int] = set()

    def _variables(self) -> dict[str, Variable]:
        found = {}
        for name in self.file:
            if not name.startswith("#"):
                node = self._member(self.file, name)
                found[name] = Variable(name, self._class(node), self._shape(node))
        return found

    def _read(self, name: str, fields: list[str]) -> tuple[Any, list[str]]:
        if name not in self.file or name.startswith("#"):
            self._missing(name)
        node, where = self._member(self.file, name), name
        while fields and self._is_struct(node) and fields[0] in node:
            where, node, fields = f"{where}.{fields[0]}", self._member(node, fields[0]), fields[1:]
        return self._value(node, where, 0), fields

    def _member(self, group: Any, name: str) -> Any:
        """A member of a group in this file; links that lead elsewhere are refused."""
        if not isinstance(group.get(name, getlink=True), self.h5py.HardLink):
            text = f"{name} is a link to another place or file, which no MATLAB file holds"
            raise _damaged(self.path, text)
        return group[name]

    def _class(self, node: Any) -> str:
        text = node.attrs.get("MATLAB_class", "")
        text = text.decode("utf-8", errors="replace") if isinstance(text, bytes) else str(text)
        if text:
            return text
        if isinstance(node, self.h5py.Group):
            return "struct"
        if node.dtype == self.h5py.ref_dtype:
            return "cell"
        if self.h5py.check_string_dtype(node.dtype) is not None:
            return "char"
        if node.dtype.names is not None or node.dtype.kind == "c":
            return "double"
        name = str(node.dtype.name)
        return {"float64": "double", "float32": "single", "bool": "logical"}.get(name, name)

    def _shape(self, node: Any) -> tuple[int, ...]:
        if isinstance(node, self.h5py.Group):
            if "MATLAB_sparse" in node.attrs:
                starts = node.get("jc")
                return int(node.attrs["MATLAB_sparse"]), 0 if starts is None else len(starts) - 1
            if not self._is_struct(node) and len(node):
                return self._shape(self._member(node, next(iter(node))))
            return (1, 1)
        if node.shape is None or (self._is_empty(node) and node.size > 64):
            return (0, 0)
        shape = tuple(int(n) for n in node[()].ravel()) if self._is_empty(node) else node.shape[::-1]
        return (*shape, *(1,) * (2 - len(shape)))

    def _is_empty(self, node: Any) -> bool:
        return bool(node.attrs.get("MATLAB_empty", 0))

    def _is_struct(self, node: Any) -> bool:
        """Whether a node is one struct; the fields of an array of structs are references without a class."""
        if not isinstance(node, self.h5py.Group) or "MATLAB_sparse" in node.attrs:
            return False
        members = [node.get(name) for name in node]
        references = [
            isinstance(m, self.h5py.Dataset)
            and m.dtype == self.h5py.ref_dtype
            and "MATLAB_class" not in m.attrs
            for m in members
        ]
        return not members or not all(references) or len({m.shape for m in members}) > 1

    def _value(self, node: Any, where: str, depth: int) -> Any:
        """Value of a group or data set; each is read once, however often it is referred to."""
        if depth > _DEEPEST:
            raise ValueError(f"{where[:60]}... is nested more than {_DEEPEST} levels deep")
        address = self.h5py.h5o.get_info(node.id).addr
        if address in self._open:
            raise ValueError(f"{where[:60]} holds itself")
        if address not in self._known:
            self._open.add(address)
            self._known[address] = self._converted(node, where, depth)
            self._open.discard(address)
        return self._known[address]

    def _converted(self, node: Any, where: str, depth: int) -> Any:
        kind = self._class(node)
        if kind not in _CLASSES_73 or "MATLAB_object_decode" in node.attrs:
            return Unreadable(where, kind)
        if not isinstance(node, self.h5py.Group):
            return self._array(node, kind, where, depth)
        if "MATLAB_sparse" in node.attrs:
            return self._sparse(node, kind, where)
        names = list(node)
        fields = {name: self._member(node, name) for name in names}
        if self._is_struct(node):
            return {name: self._value(fields[name], f"{where}.{name}", depth + 1) for name in names}
        columns = {name: elements(self._cell(fields[name], f"{where}.{name}", depth)) for name in names}
        structs = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        return cells_of(structs, self._shape(fields[names[0]]))

    def _array(self, node: Any, kind: str, where: str, depth: int) -> Any:
        """Value of a data set: numbers, a text, or a cell."""
        if self._is_empty(node) or node.shape is None:
            return self._nothing(kind, self._shape(node), where)
        if node.dtype == self.h5py.ref_dtype:
            return self._cell(node, where, depth)
        values = self._content(node, where)
        if values.dtype.names is not None and len(values.dtype.names) == 2:
            real, imag = (values[part] for part in values.dtype.names)
            values = _complex(real, imag)
        if values.dtype.kind in "SO":
            raw = values.ravel(order="F")
            texts = [t.decode("utf-8", errors="replace") if isinstance(t, bytes) else t for t in raw]
            if not all(isinstance(text, str) for text in texts):
                raise ValueError(f"{where} is of the type {node.dtype}, which no MATLAB file holds")
            return texts[0] if len(texts) == 1 else cells_of(texts, values.shape)
        if values.dtype.kind not in "biufc":
            raise ValueError(f"{where} is of the type {node.dtype}, which no MATLAB file holds")
        if kind == "char":
            return _text_of(values.astype(np.uint16))
        return values.astype(bool) if kind == "logical" else values

    def _content(self, node: Any, where: str) -> npt.NDArray[Any]:
        """Values of a data set with MATLAB's axes, unless it declares more than the file can hold."""
        if node.is_virtual or node.external:
            raise ValueError(f"{where} lies in other files; no MATLAB file is made so")
        needed = node.size * node.dtype.itemsize
        if needed > node.id.get_storage_size() * _MOST_INFLATION + _SLACK:
            raise ValueError(f"{where} declares the shape {node.shape}, more than the file holds")
        check_memory(needed, f"{self.path}: the variable {where}")
        values = np.asarray(node[()]).T
        values = values.reshape(values.shape + (1,) * (2 - values.ndim))
        return values if values.dtype.isnative else values.astype(values.dtype.newbyteorder("="))

    def _nothing(self, kind: str, shape: tuple[int, ...], where: str) -> Any:
        """An empty value, whose data set holds its shape."""
        if kind == "char":
            return ""
        if len(shape) > 32 or min(shape, default=0) < 0 or math.prod(shape) != 0:
            raise ValueError(f"{where} is said to be empty and to have the shape {shape[:5]}")
        types = {"cell": object, "struct": object, "logical": bool, "single": "f4"}
        return np.empty(shape, dtype=types.get(kind, kind if "int" in kind else "f8"))

    def _cell(self, node: Any, where: str, depth: int) -> npt.NDArray[Any]:
        """Object array of what the references of a data set lead to."""
        values = []
        for index, reference in enumerate(self._content(node, where).ravel(order="F")):
            if not reference:
                raise ValueError(f"{where}{{{index + 1}}} is a reference to nothing")
            values.append(self._value(self.file[reference], f"{where}{{{index + 1}}}", depth + 1))
        return cells_of(values, self._shape(node))

    def _sparse(self, group: Any, kind: str, where: str) -> npt.NDArray[Any]:
        parts = {name: self._content(self._member(group, name), where).reshape(-1) for name in group}
        shape = self._shape(group)
        rows, values = parts.get("ir", np.empty(0, int)), parts.get("data", np.empty(0))
        check_memory(values.itemsize * math.prod(shape), f"{self.path}: the sparse matrix {where}")
        starts = parts["jc"]
        dense = _dense(values, rows, starts, (shape[0], shape[1]))
        return dense.astype(bool) if kind == "logical" else dense
