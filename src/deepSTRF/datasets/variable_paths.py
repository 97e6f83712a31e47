"""Variables of a file: paths into structs and cells, arrays spread along axes with a stated meaning.

`proposals_of` looks for what variables may be; nothing is taken for granted by it.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from deepSTRF._text import printable
from deepSTRF._validation import first_names
from deepSTRF.datasets.sounds import natural
from deepSTRF.datasets.tables import text_of

__all__ = [
    "Variable",
    "VariableFile",
    "cells_of",
    "depth_of",
    "elements",
    "fitted",
    "groups_of",
    "is_pattern",
    "levels_of",
    "matches",
    "numbers_of",
    "proposals_of",
    "spread",
    "texts_of",
    "value_at",
]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

#: What an axis may mean, and other words for it.
AXES = ("unit", "stimulus", "repeat", "trial", "time", "spike", "feature", "channel")
_SYNONYMS = {
    "units": "unit", "neuron": "unit", "cell": "unit", "electrode": "unit", "stim": "stimulus",
    "sound": "stimulus", "rep": "repeat", "repetition": "repeat", "trials": "trial", "bin": "time",
    "sample": "time", "spikes": "spike", "band": "feature",
}  # fmt: skip
_PART = re.compile(r"(?P<name>[^.(){}]+)(?P<index>\(:\)|\(\d+\)|\{\d+\})?")


@dataclass(frozen=True)
class Variable:
    """Name, class and shape of a variable that was not read."""

    name: str
    kind: str
    shape: tuple[int, ...]


class VariableFile:
    """An open file: its variables, and the value of one, by its name or a path such as "data.fs"."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def variables(self) -> dict[str, Variable]:
        """Name, class and shape of each variable, without its content."""
        raise NotImplementedError

    def value(self, name: str) -> Any:
        """Content of one variable, or of one field: a field of a struct array is a cell of its shape."""
        raise NotImplementedError


def cells_of(values: Sequence[Any], shape: Sequence[int]) -> Array:
    """Object array of a MATLAB shape, filled in MATLAB's order: columns first."""
    out = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        out[index] = value
    return out.reshape(tuple(shape), order="F")


def elements(value: Any) -> list[Any]:
    """Elements of a struct array or cell in MATLAB's order (columns first); [value] of anything else."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return list(value.ravel(order="F"))
    return [value]


# ---- what hints point to


def value_at(file: VariableFile, path: str) -> Any:
    """What a path such as ``data.units(:).spikes``, ``s(2).fs`` or ``sounds{1}`` leads to."""
    if path in file.variables():
        return file.value(path)
    parts = path.split(".")
    for at, part in enumerate(parts):
        found = _PART.fullmatch(part)
        if found is None:
            raise ValueError(
                f"{file.path}: {printable(path)!r} is no name of a variable, nor a path such as "
                "'data.units(:).spikes', 's(2).fs' or 'sounds{1}'"
            )
        if found["index"] is None:
            continue
        base = file.value(".".join([*parts[:at], found["name"]]))
        return _indexed(file, base, found["index"], parts[at + 1 :], path)
    return file.value(path)


def _indexed(file: VariableFile, base: Any, index: str, left: Sequence[str], path: str) -> Any:
    """One element or all of a struct array or cell, and the fields below."""
    items = elements(base)
    if index == "(:)":
        return cells_of([_below(file, item, left, path) for item in items], (len(items), 1))
    number = int(index[1:-1])
    if not (isinstance(base, np.ndarray) and base.dtype == object) and isinstance(base, np.ndarray):
        items = list(base.ravel(order="F"))
    if not 1 <= number <= len(items):
        raise ValueError(f"{file.path}: {path} asks for element {number} of {len(items)}, counted from 1")
    return _below(file, items[number - 1], left, path)


def _below(file: VariableFile, item: Any, left: Sequence[str], path: str) -> Any:
    for at, part in enumerate(left):
        found = _PART.fullmatch(part)
        if found is None or not isinstance(item, dict) or found["name"] not in item:
            known = first_names(sorted(item)) if isinstance(item, dict) else "no fields"
            raise ValueError(f"{file.path}: {path} has no field {printable(part)!r}; there: {known}")
        item = item[found["name"]]
        if found["index"] is not None:
            return _indexed(file, item, found["index"], left[at + 1 :], path)
    return item


def matches(file: VariableFile, pattern: str) -> list[tuple[dict[str, str], str]]:
    """Named parts and path of each variable that fits a pattern such as ``spikes_{unit}_{stimulus}``."""
    first, dot, rest = pattern.partition(".")
    pieces = re.split(r"\{([A-Za-z]\w*)\}", first)
    words = [_word(piece, pattern) if at % 2 else piece for at, piece in enumerate(pieces)]
    if len(set(words[1::2])) < len(words[1::2]):
        raise ValueError(f"{pattern!r} names a part twice")
    expression = "".join(f"(?P<{w}>.+?)" if at % 2 else re.escape(w) for at, w in enumerate(words))
    found = [
        (match.groupdict(), name + dot + rest)
        for name in sorted(file.variables(), key=natural)
        if (match := re.fullmatch(expression, name))
    ]
    if not found:
        raise ValueError(
            f"{file.path}: no variable fits {pattern!r}; there are "
            f"{first_names(list(file.variables())) or 'none'}"
        )
    return found


def is_pattern(path: str) -> bool:
    """Whether a path has named parts, as ``spikes_{stimulus}``."""
    return re.search(r"\{[A-Za-z]\w*\}", path) is not None


def _word(text: str, where: str) -> str:
    word = _SYNONYMS.get(text.lower(), text.lower())
    if word not in AXES:
        raise ValueError(
            f"{where!r}: {text!r} is no meaning of an axis; legal: {', '.join(AXES)}; '/' stands between "
            "the axes of a cell or struct array and those of its elements: 'unit / stimulus repeat'"
        )
    return word


def groups_of(axes: str) -> list[list[str]]:
    """Meanings of axes by level: ``"unit / stimulus repeat"``."""
    groups = [[_word(w, axes) for w in re.split(r"[\s,]+", part) if w] for part in axes.split("/")]
    words = [word for group in groups for word in group]
    if len(set(words)) < len(words):
        raise ValueError(f"axes={axes!r} names an axis twice")
    return groups


def depth_of(value: Any) -> int:
    """Levels of cells and struct arrays around the numbers."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        return 1 + max((depth_of(item) for item in value.ravel()), default=0)
    return 0


def levels_of(value: Any, axes: str, what: str) -> list[list[str]]:
    """The axes of each level of cells, and last those of the numbers in them."""
    groups, depth = groups_of(axes), depth_of(value)
    words = [word for group in groups for word in group]
    if len(groups) == depth + 1:
        return groups
    if len(groups) == 1 and depth == 1 and words[-1:] == ["time"] and _holds_vectors(value):
        return [words[:-1], ["time"]]
    if len(groups) == depth and "time" not in words:
        return [*groups, []]
    own = [word for word in words if word == "spike" and word == words[-1]]
    rest = words[: len(words) - len(own)]
    if len(groups) == 1 and "time" not in words:
        if depth == 1:
            return [rest, own]
        if len(rest) == depth:
            return [*([word] for word in rest), own]
    raise ValueError(
        f"{what} has {depth} levels of cells or structs, and axes={axes!r} does not say which axes belong to "
        "which: put '/' between the levels, such as 'unit / stimulus repeat' for a cell of cells, or "
        "'stimulus / time unit' for a cell of matrices"
    )


def _holds_vectors(value: Any) -> bool:
    return all(max(np.shape(item), default=1) >= np.size(item) for item in elements(value))


def fitted(value: Array, axes: Sequence[str], what: str, exact: bool) -> Array:
    """An array with one axis per meaning: MATLAB drops axes of length 1 at the end, and vectors have two."""
    shape = list(value.shape)
    while len(shape) > len(axes) and shape[-1] == 1:
        shape.pop()
    if len(axes) == 1 and sum(n != 1 for n in shape) <= 1:
        return value.reshape(-1, order="F")
    if len(shape) > len(axes) or (exact and len(shape) < len(axes)):
        raise ValueError(f"{what} has the shape {value.shape}, and axes={' '.join(axes)!r} names {len(axes)}")
    return value.reshape(shape + [1] * (len(axes) - len(shape)), order="F" if not exact else "A")


def spread(
    value: Any, levels: Sequence[Sequence[str]], what: str, exact: bool
) -> Iterator[tuple[dict[str, int], Array]]:
    """Each leaf of nested cells, with its place along the axes; the axes of the numbers stay in the leaf."""
    if len(levels) == 1:
        if isinstance(value, (dict, str)):
            kind = "a struct" if isinstance(value, dict) else "a text"
            raise ValueError(f"{what} is {kind}; name the field with the numbers, such as {what}.times")
        yield {}, np.asarray(value)
        return
    if not (isinstance(value, np.ndarray) and value.dtype == object):
        value = cells_of([value], (1, 1))  # an element that is no cell, where others are
    array = fitted(value, levels[0], what, exact)
    for index in np.ndindex(array.shape):
        place = dict(zip(levels[0], index, strict=True))
        inside = f"{what}{{{','.join(str(i + 1) for i in index)}}}"
        for deeper, leaf in spread(array[index], levels[1:], inside, exact):
            yield {**place, **deeper}, leaf


def texts_of(value: Any) -> list[str]:
    """Names in a cell of texts, an array of numbers, or a list."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, np.ndarray):
        flat = value.ravel(order="F")
        return [
            text_of(item if np.size(item) == 1 or isinstance(item, str) else "")
            for item in (
                np.asarray(v).ravel()[0] if isinstance(v, np.ndarray) and v.size == 1 else v for v in flat
            )
        ]
    return [text_of(item) for item in value]


def numbers_of(value: Any, what: str) -> Floats:
    """A vector of numbers; a cell of single numbers counts."""
    if isinstance(value, np.ndarray) and value.dtype == object:
        value = [np.asarray(item).ravel() for item in elements(value)]
        if any(item.size != 1 for item in value):
            raise ValueError(f"{what} holds cells with several numbers or none; name a vector")
        value = np.concatenate([*value, np.empty(0)])
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or max(array.shape, default=1) != array.size:
        raise ValueError(f"{what} is {array.dtype} of the shape {array.shape}, a vector of numbers is needed")
    return array.astype(np.float64).reshape(-1)


# ---- proposals


def _may_be_times(value: Any) -> bool:
    """Whether a field holds more than one number, or cells: not a name, a number or a single onset."""
    return isinstance(value, np.ndarray) and value.size > 1 and value.dtype.kind in "biufO"


def proposals_of(file: VariableFile, hints: Mapping[str, Any]) -> dict[str, list[tuple[Any, str]]]:
    """Variables that look like spike times, counts or sounds, and the unit of times with its evidence."""
    out: dict[str, list[tuple[Any, str]]] = {}
    spikes, counts, sounds = [], [], []
    groups: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for name, variable in file.variables().items():
        with contextlib.suppress(ValueError):
            values[name] = file.value(name)
        pattern = re.sub(r"\d+$", "{stimulus}", name)
        if pattern != name:
            groups.setdefault(pattern, []).append(name)
        shape = " x ".join(map(str, variable.shape))
        value = values.get(name)
        if isinstance(value, np.ndarray) and value.dtype == object and value.size:
            leaves = [item for item in value.ravel() if isinstance(item, np.ndarray)]
            if len(leaves) == value.size and all(_is_vector(leaf) for leaf in leaves):
                spikes.append((name, f"a cell of vectors, {shape}"))
            elif all(isinstance(item, dict) for item in value.ravel()):
                spikes += [
                    (f"{name}(:).{key}", f"a struct array of {value.size}")
                    for key in value.ravel()[0]
                    if any(_may_be_times(item.get(key)) for item in value.ravel())
                ]
        elif isinstance(value, dict):
            spikes += [
                (f"{name}.{key}", f"a cell of vectors, {' x '.join(map(str, item.shape))}")
                for key, item in value.items()
                if isinstance(item, np.ndarray) and item.dtype == object and depth_of(item) == 1
                and all(isinstance(one, np.ndarray) and _is_vector(one) for one in item.ravel())
            ]  # fmt: skip
        elif isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.size:
            numbers = value[~np.isnan(value)] if value.dtype.kind == "f" else value
            whole = numbers.size and (numbers >= 0).all() and (numbers == np.round(numbers)).all()
            if 3 <= value.ndim <= 4 and whole and numbers.max() <= 255:
                counts.append((name, f"{value.ndim} axes of small whole numbers, {shape}"))
            elif _is_vector(value) and value.size > 1000 and (numbers < 0).any() and not whole:
                sounds.append((name, f"a vector of {value.size} values with both signs"))
    for pattern, names in groups.items():
        if len(names) > 1 and all(
            isinstance(values.get(n), np.ndarray) and _is_vector(values[n]) for n in names
        ):
            text = f"vectors {first_names(names)}"
            flat = [np.asarray(values[n]).ravel() for n in names]
            ascending = all(
                v.size < 2 or (v.dtype.kind in "iuf" and (np.diff(v.astype(float)) >= 0).all()) for v in flat
            )
            (spikes if ascending else sounds).append((pattern, text))
    lists = {"spikes": spikes, "counts": counts, "sounds": sounds}
    out |= {hint: found for hint, found in lists.items() if found and hint not in hints}
    given = hints.get("spikes")
    if isinstance(given, str) and "time_unit" not in hints:
        with contextlib.suppress(ValueError):
            out["time_unit"] = _unit_proposals(file, given)
    if "axes" not in hints and isinstance(given, str) and not is_pattern(given):
        with contextlib.suppress(ValueError):
            out["axes"] = _axes_proposals(value_at(file, given))
    return out


def _is_vector(value: Array) -> bool:
    return value.dtype.kind in "biuf" and max(value.shape, default=1) >= value.size


def _axes_proposals(value: Any) -> list[tuple[Any, str]]:
    if not isinstance(value, np.ndarray):
        return []
    shape = tuple(n for n in value.shape if n != 1)
    words = {
        1: ["unit", "trial"],
        2: ["unit stimulus", "stimulus repeat", "unit trial"],
        3: ["unit stimulus repeat"],
    }
    return [(axes, f"a guess: the shape is {value.shape}") for axes in words.get(len(shape), [])]


def _unit_proposals(file: VariableFile, path: str) -> list[tuple[Any, str]]:
    """Units of spike times, the likeliest first, with the evidence."""
    names = [name for _, name in matches(file, path)] if is_pattern(path) else [path]
    parts: list[Floats] = []

    def gather(value: Any) -> None:
        for item in elements(value):
            if isinstance(item, np.ndarray) and item.dtype == object:
                gather(item)
            elif isinstance(item, np.ndarray) and item.dtype.kind in "iuf":
                parts.append(item.astype(np.float64).ravel())

    for name in names:
        gather(value_at(file, name))
    times = np.concatenate([*parts, np.empty(0)])
    times = times[np.isfinite(times)]
    if not times.size:
        return []
    largest, whole = float(np.abs(times).max()), bool((times == np.round(times)).all())
    text = f"the largest is {largest:g}, {'all' if whole else 'not all'} are whole numbers"
    order = ["s", "ms", "us"]
    if whole and largest > 1e6:
        order = ["us", "samples", "ms"]
    elif whole and largest > 1e4:
        order = ["samples", "us", "ms"]
    elif largest > 100:
        order = ["ms", "samples" if whole else "us", "s"]
    return [(unit, text) for unit in order]
