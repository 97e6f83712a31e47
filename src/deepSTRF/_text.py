"""Text from users and files where it is shown or tabulated: terminals, figures, pages, CSV files.

A name may hold anything: control characters, markup, formulas. In memory and in files that are read again it
stays as it is; `printable` spells out what a reader could not see, and what would act on a terminal.
"""

from __future__ import annotations

import csv
import io
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["check_encodable", "check_name", "csv_table", "markdown", "plain_cell", "printable", "read_csv"]

#: Unicode categories without a shape of their own: control characters and escapes, direction overrides, lone
#: surrogates, separators of lines and paragraphs.
UNSEEN = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
#: More characters are no name; the reader of CSV files takes up to 131,072 in a cell.
LONGEST = 10_000
#: What a spreadsheet takes for a formula (OWASP, CSV injection), also behind blanks; the signs in full width
#: count in some locales. A number with a sign is none.
FORMULA = re.compile(r"[\s']*[=+\-@\uff1d\uff0b\uff0d\uff20]|'*[\t\r\n]")
#: Signs of Markdown: of cells, code, emphasis, links, mathematics. "_" within a word, as in names, is none.
MARKUP = re.compile(r"[\\`*\[\]|$]|(?<![^\W_])_|_(?![^\W_])")
NUMBER = re.compile(r"[+-]?((\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|inf|nan)")


def printable(text: object, *, keep: str = "", longest: int | None = None) -> str:
    """Return a text with invisible characters as escapes such as ``\\x1b``, other than those in ``keep``."""
    shown = str(text)
    if longest is not None and len(shown) > longest:
        shown = shown[: longest - 1] + "\u2026"
    if shown.isprintable():
        return shown
    return "".join(
        char.encode("unicode_escape").decode("ascii")
        if unicodedata.category(char) in UNSEEN and char not in keep
        else char
        for char in shown
    )


def check_encodable(where: str, text: str) -> None:
    """Raise ValueError for a text with lone surrogates, which no file in UTF-8 can hold."""
    if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
        raise ValueError(
            f"{where} holds {text[:60]!a}, which is no valid text (a lone surrogate); decode names with the "
            "encoding that they were written in"
        )


def check_name(where: str, text: object) -> None:
    """Raise ValueError for a text that is no name: with lone surrogates, or of `LONGEST` characters."""
    if isinstance(text, str):
        check_encodable(where, text)
        if len(text) > LONGEST:
            raise ValueError(
                f"{where} has {len(text)} characters, a name at most {LONGEST}: {text[:60]!r}..."
            )


def markdown(text: object) -> str:
    """Return a text for one line or cell of Markdown, in which none of its signs is markup."""
    return MARKUP.sub(r"\\\g<0>", printable(str(text).replace("\n", " "))).replace("<", "&lt;")


# ---- CSV: texts that a spreadsheet would take for formulas get an apostrophe, which our reader removes


def csv_table(rows: Iterable[Sequence[Any]]) -> str:
    """Return rows as CSV: texts that look like formulas behind an apostrophe, numbers as they are."""
    return "".join(",".join(_cell(value) for value in row) + "\n" for row in rows)


def read_csv(text: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file by the names of its first one, texts as they were before `csv_table`."""
    try:
        lines = [line for line in csv.reader(io.StringIO(text, newline=""), strict=True) if line]
    except csv.Error as error:
        raise ValueError(f"it is no CSV ({error})") from None
    lines = [[plain_cell(cell) for cell in line] for line in lines]
    for number, line in enumerate(lines[1:], start=2):
        if len(line) != len(lines[0]):
            raise ValueError(f"row {number} has {len(line)} cells, the first one has {len(lines[0])}")
    return [dict(zip(lines[0], line, strict=True)) for line in lines[1:]]


def _cell(value: Any) -> str:
    text = "" if value is None else str(value)
    if isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value):
        text = f"'{value}"
    return '"' + text.replace('"', '""') + '"' if re.search('[",\r\n]', text) else text


def plain_cell(cell: str) -> str:
    """A cell of a CSV file as it was before `csv_table`."""
    rest = cell.removeprefix("'")
    return rest if rest != cell and FORMULA.match(rest) and not NUMBER.fullmatch(rest) else cell
