"""Tables in files: CSV of any delimiter, decimal sign and encoding, and Parquet; cells stay as written.

"007" stays "007", "NA" and "None" are texts; what a number is, the reader of a column decides.
"""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF import _optional
from deepSTRF._files import DamagedFileError, naming_damage
from deepSTRF._text import plain_cell, printable
from deepSTRF._validation import check_memory
from deepSTRF.datasets.file_tree import FileTree, decoded
from deepSTRF.datasets.tables import UNITS, column_for, unit_of

__all__ = ["TABLE_SUFFIXES", "Table", "ids_of", "read_table"]

TABLE_SUFFIXES = (".csv", ".tsv", ".parquet")
_REMEDY = "export the table again"
#: Lines that the delimiter is found by.
_SNIFFED = 200
_DECIMAL = re.compile(r"\s*[+-]?\d*,\d+([eE][+-]?\d+)?\s*")
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*|\s*[nN][aA][nN]\s*|\s*[+-]?inf\s*")
_WHOLE_FLOAT = re.compile(r"-?\d+\.0+")
#: Columns of Parquet that are read: numbers, texts, dictionaries of texts.
_MOST_INFLATION = 100


class Table:
    """Columns of texts or numbers by name.

    Attributes
    ----------
    where : str
        File, for messages.
    columns : dict of str to sequence
        Texts (CSV), or numbers and texts (Parquet).
    has_header : bool
        Whether names are those of the file; they are "column1", "column2", ... where it has none.
    how : str
        How the file was read ("delimiter ';', decimal comma, utf-16").
    """

    def __init__(self, where: str, columns: Mapping[str, Any], *, has_header: bool, how: str) -> None:
        self.where, self.columns, self.has_header, self.how = where, dict(columns), has_header, how

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), ()))

    def column(self, role: str, told: Mapping[str, str] | None = None, *, needed: bool = True) -> str | None:
        """The column of a role (see `column_for`); ``told`` maps roles to names."""
        known = {key: name for key, name in (told or {}).items() if key == role}
        if known and known[role] not in self.columns:
            raise ValueError(
                f"{self.where}: columns says {role} is {known[role]!r}, and the table has "
                f"{', '.join(map(repr, self.columns))}"
            )
        return column_for(role, self.columns, known, self.where, needed=needed)

    def texts(self, name: str) -> list[str]:
        """A column as texts without blanks around; numbers of Parquet as Python writes them."""
        values = self.columns[name]
        return [
            ""
            if value is None or value != value
            else str(value.item() if isinstance(value, np.generic) else value).strip()
            for value in values
        ]

    def numbers(self, name: str) -> npt.NDArray[np.float64]:
        """A column as numbers, NaN for empty cells; ValueError names the row of another text."""
        values = self.columns[name]
        if isinstance(values, np.ndarray) and values.dtype.kind in "biuf":
            return values.astype(np.float64)
        out = np.empty(len(values))
        for row, value in enumerate(self.texts(name)):
            try:
                out[row] = float(value) if value else np.nan
            except ValueError:
                raise ValueError(
                    f"{self.where}: row {row + 1 + self.has_header} of column {name!r} holds "
                    f"{printable(value, longest=40)!r}, which is no number"
                ) from None
        return out

    def unit(self, name: str) -> str | None:
        """Unit of time at the end of a column's name: "s", "ms", ..., or None."""
        found = unit_of(name)
        return None if found is None else {1.0: "s", 1e-3: "ms", 1e-6: "us"}[UNITS[found]]

    def is_numeric(self, name: str) -> bool:
        """Whether every cell is a number, or empty."""
        values = self.columns[name]
        if isinstance(values, np.ndarray):
            return values.dtype.kind in "biuf"
        return all(not cell or _NUMBER.fullmatch(cell) for cell in values)


def ids_of(texts: Sequence[str]) -> list[str]:
    """Ids as texts: "7.0" is "7" where every id of the column is written so; "007" stays."""
    return (
        [text.split(".")[0] for text in texts]
        if texts and all(_WHOLE_FLOAT.fullmatch(t) for t in texts)
        else list(texts)
    )


def read_table(tree: FileTree, name: str) -> Table:
    """The table in a file of a tree; `DamagedFileError` where it is none."""
    if name not in tree.cache:
        tree.cache[name] = _read(tree, name)
    table: Table = tree.cache[name]
    return table


def _read(tree: FileTree, name: str) -> Table:
    where = tree.where(name)
    if name.lower().endswith(".parquet"):
        return _parquet(tree.read(name), where)
    text, encoding = decoded(tree.read(name), where)
    lines = text.splitlines()
    delimiter = _delimiter(lines[:_SNIFFED])
    with naming_damage(where, _REMEDY):
        if delimiter == " ":
            rows = [line.split() for line in lines if line.strip()]
        else:
            reader = csv.reader(
                io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True
            )
            rows = [
                [plain_cell(cell.strip()) for cell in row]
                for row in reader
                if any(cell.strip() for cell in row)
            ]
        if not rows:
            raise ValueError("it is empty")
        width = Counter(map(len, rows)).most_common(1)[0][0]
        wrong = next((number for number, row in enumerate(rows, start=1) if len(row) != width), None)
        if wrong is not None:
            raise ValueError(f"row {wrong} has {len(rows[wrong - 1])} cells, most rows have {width}")
    comma = delimiter != "," and any(_DECIMAL.fullmatch(cell) for row in rows[:_SNIFFED] for cell in row)
    if comma:
        rows = [
            [cell.replace(",", ".") if _DECIMAL.fullmatch(cell) else cell for cell in row] for row in rows
        ]
    has_header = any(not _NUMBER.fullmatch(cell) for cell in rows[0])
    names = (
        [cell or f"column{number}" for number, cell in enumerate(rows[0], start=1)]
        if has_header
        else ([f"column{number}" for number in range(1, width + 1)])
    )
    twice = [one for one, count in Counter(names).items() if count > 1]
    if twice:
        raise DamagedFileError(f"{where} has two columns {twice[0]!r}; rename one")
    body = rows[has_header:]
    columns = {one: [row[number] for row in body] for number, one in enumerate(names)}
    how = f"delimiter {'white space' if delimiter == ' ' else repr(delimiter)}, {encoding}"
    return Table(where, columns, has_header=has_header, how=how + (", decimal comma" if comma else ""))


def _delimiter(lines: Sequence[str]) -> str:
    """The sign that cuts most lines into the same number of cells."""
    lines = [line for line in lines if line.strip()]
    best, most = ",", 1
    for sign in (",", ";", "\t", "|", " "):
        if sign == " ":
            counts = Counter(len(line.split()) for line in lines)
        else:
            try:
                counts = Counter(
                    len(row)
                    for row in csv.reader(lines, delimiter=sign, strict=True, skipinitialspace=sign != "\t")
                )
            except csv.Error:
                continue
        (cells, times), *_ = counts.most_common(1) or [(1, 0)]
        if times == len(lines) and cells > most and (sign != " " or (best == "," and most == 1)):
            best, most = sign, cells
    if most == 1 and lines:  # rows of other lengths: the sign that most lines hold, for the error about it
        held = {sign: sum(sign in line for line in lines) for sign in ",;\t|"}
        top = max(held, key=lambda sign: held[sign])
        if held[top] == len(lines):
            best = top
        elif all(_DECIMAL.fullmatch(line) for line in lines[1:]):
            best = ";"  # one column with decimal commas
    return best


def _parquet(content: bytes, where: str) -> Table:
    parquet = _optional.require("pyarrow.parquet", extra="formats")
    with naming_damage(where, _REMEDY):
        opened = parquet.ParquetFile(io.BytesIO(content))
        size = sum(
            opened.metadata.row_group(i).total_byte_size for i in range(opened.metadata.num_row_groups)
        )
        if size > _MOST_INFLATION * len(content) + (1 << 30):
            raise ValueError(f"it states {size:,} bytes of data")
        check_memory(size, f"the table {where}")
        arrow = opened.read()
        columns: dict[str, Any] = {}
        for name in arrow.column_names:
            column = arrow.column(name)
            if str(column.type).startswith(("list", "struct", "map", "large_list", "extension")):
                raise ValueError(f"its column {name!r} holds {column.type}; write one row per spike")
            plain = (
                column.to_numpy()
                if str(column.type).startswith(("int", "uint", "float", "double", "halffloat"))
                else None
            )
            columns[name] = column.to_pylist() if plain is None else plain
        if len(columns) != len(arrow.column_names):
            raise ValueError("two of its columns have one name")
    return Table(where, columns, has_header=True, how="Parquet")
