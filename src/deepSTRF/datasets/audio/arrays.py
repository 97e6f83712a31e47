"""NumPy archives (.npz) and arrays (.npy) with recordings: the variables of a Python script.

Arrays of Python objects are refused: reading them would run code that the file holds.
"""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from deepSTRF._files import DamagedFileError, check_regular, load_npz
from deepSTRF._text import printable
from deepSTRF._validation import first_names
from deepSTRF.datasets.variable_paths import Variable, VariableFile
from deepSTRF.datasets.variables import VariablesFormat
from deepSTRF.registry import FORMATS

__all__ = ["ArraysFormat"]

_REMEDY = (
    "copy it again, or save it once more: np.savez(path, name=array, ...) without lists of unequal arrays"
)
_ZIP, _NPY = b"PK\x03\x04", b"\x93NUMPY"


@FORMATS.register("arrays")
class ArraysFormat(VariablesFormat):
    """NumPy archives (.npz) and arrays (.npy)."""

    suffixes = (".npz", ".npy")
    exact_axes = True

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A .npy file, or a zip file with nothing but such, that is none of deepSTRF's own."""
        if not path.is_file():
            return False
        with open(path, "rb") as stream:
            start = stream.read(6)
        if start == _NPY:
            return True
        if start[:4] != _ZIP:
            return False
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            ours = archive.comment.startswith(b'{"deepSTRF"') or "header.npy" in names
        return bool(names) and all(name.endswith(".npy") for name in names) and not ours

    @contextlib.contextmanager
    def opened(self) -> Iterator[VariableFile]:
        """The file, open."""
        yield _Arrays(self.path)

    def facts(self) -> str:
        """What kind of file it is."""
        return "NumPy archive" if self.path.suffix.lower() != ".npy" else "NumPy array"


class _Arrays(VariableFile):
    """The arrays of a file, each read when it is asked for; the one of a .npy file has the file's name."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        check_regular(path)
        with open(path, "rb") as stream:
            self.single = stream.read(6) == _NPY
        self._known: dict[str, Variable] | None = None

    def variables(self) -> dict[str, Variable]:
        """Name, type and shape of each array, by its header."""
        if self._known is None:
            with self._naming_file():
                self._known = {v.name: v for v in self._headers()}
        return self._known

    def value(self, name: str) -> Any:
        """One array."""
        found = self.variables().get(name)
        if found is None:
            raise ValueError(
                f"{self.path} has no array {printable(name)!r}; it holds: "
                f"{first_names(list(self.variables())) or 'nothing'}"
            )
        if found.kind == "object":
            raise ValueError(
                f"{self.path}: the array {printable(name)!r} holds Python objects, which are not loaded: "
                "that would run code of the file; save one array per cell: spikes_{stimulus}_{repeat}"
            )
        with self._naming_file():
            if self.single:
                array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            else:
                array = load_npz(self.path, [name])[name]
            return array if array.dtype.isnative else array.astype(array.dtype.newbyteorder("="))

    def _headers(self) -> Iterator[Variable]:
        if self.single:
            with open(self.path, "rb") as stream:
                yield self._header(self.path.stem, stream)
            return
        with zipfile.ZipFile(self.path) as archive:
            for name in archive.namelist():
                with archive.open(name) as stream:
                    yield self._header(name.removesuffix(".npy"), stream)

    @staticmethod
    def _header(name: str, stream: IO[bytes]) -> Variable:
        version = np.lib.format.read_magic(stream)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = read(stream)
        return Variable(name, "text" if dtype.kind in "US" else str(dtype.name), tuple(int(n) for n in shape))

    @contextlib.contextmanager
    def _naming_file(self) -> Iterator[None]:
        try:
            yield
        except DamagedFileError:
            raise
        except Exception as error:  # parsers of damaged bytes raise anything
            if isinstance(error, OSError) and error.filename is not None:
                raise
            reason = " ".join(printable(f"{type(error).__name__}: {error}", longest=300).split())
            raise DamagedFileError(f"{self.path} is damaged ({reason}); {_REMEDY}") from error
