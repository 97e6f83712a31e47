"""Recordings that are kept as variables: spike times, counts or signals in cells, structs and matrices.

MATLAB files and NumPy archives say how an array is shaped, not what its axes mean. `VariablesFormat` takes
the meaning as hints and makes a session of it; what reads the bytes is a `VariableFile`.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError
from deepSTRF._validation import check_choice, first_names
from deepSTRF.datasets.formats import Findings, Format, MissingHintError
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Feature, Pieces, Session, Signal, Sound, Trials
from deepSTRF.datasets.sounds import exact_rate, find_name, natural, sounds_of
from deepSTRF.datasets.tables import text_of
from deepSTRF.datasets.variable_paths import (
    VariableFile,
    depth_of,
    elements,
    fitted,
    groups_of,
    is_pattern,
    levels_of,
    matches,
    numbers_of,
    proposals_of,
    spread,
    texts_of,
    value_at,
)

__all__ = ["VariablesFormat"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_UNITS = {"s": 1, "ms": 1000, "us": 1_000_000}
#: Variables of files up to this size are read to see what they may be.
_LOOKED_INTO = 64_000_000
#: Time in s between trials whose times are counted from the onset.
_GAP_S = 1.0
#: A matrix of more columns and rows is no sound with channels.
_MOST_CHANNELS = 8
#: The last spike and the end of what was presented are within these factors, unless a window is told: a unit
#: of time is off by 1,000. Fewer spikes than these may all be early.
_LATEST, _EARLIEST, _FEW = 50.0, 200.0, 20
#: Counts and signals cover at least this part of a stimulus; lengths that differ by less are the same.
_SHORTEST, _NEARLY = 0.1, 0.2
#: So many variables are listed.
_LISTED = 30


# ---- stimuli


@dataclass
class _Stimuli:
    """Sounds and features by name, and how long each lasts in s."""

    sounds: dict[str, Sound]
    features: dict[str, dict[str, Feature]]

    @property
    def names(self) -> list[str]:
        return list(self.sounds) or list(dict.fromkeys(n for f in self.features.values() for n in f))

    def length_s(self, name: str) -> float:
        """Duration of a stimulus; NaN where it is not there."""
        known = find_name(name, self.names, "stimulus")
        if known is None:
            return math.nan
        if self.sounds:
            sound = self.sounds[known]
            n = len(sound.read()) if sound.n_samples is None else sound.n_samples
            return float(Fraction(n) / Fraction(sound.fs))
        lengths = [
            f[known].values.shape[-1] / float(rate)
            for f in self.features.values()
            if known in f and (rate := f[known].fs) is not None
        ]
        return min(lengths, default=math.nan)


def _collection(
    file: VariableFile, path: str, axes: str | None, names: Sequence[str] | None, first: int, leaf: str
) -> dict[str, Array]:
    """Arrays by name of stimulus: of a pattern, of the elements of a cell, or of the rows of a matrix.

    ``first``: number of the first one where they have no names. ``leaf``: axes of one of them, in order.
    """
    found: dict[str, Array] = {}
    if is_pattern(path):
        for parts, name in matches(file, path):
            if set(parts) != {"stimulus"}:
                raise ValueError(f"{path!r} needs the part {{stimulus}} and no other")
            found[parts["stimulus"]] = _ordered(value_at(file, name), axes, leaf, f"{file.path}: {name}")
        return found
    value = value_at(file, path)
    if depth_of(value) == 0:
        words = groups_of(axes)[-1] if axes else []
        if "stimulus" in words:
            array = fitted(np.asarray(value), words, path, exact=False)
            at = words.index("stimulus")
            inner = " ".join(w for w in words if w != "stimulus")
            items = [
                _ordered(np.take(array, k, at), inner, leaf, f"{file.path}: {path}")
                for k in range(array.shape[at])
            ]
        else:
            items = [_ordered(value, axes, leaf, f"{file.path}: {path}")]
    else:
        items = [
            _ordered(item, axes, leaf, f"{file.path}: {path}{{{k + 1}}}")
            for k, item in enumerate(elements(value))
        ]
    if names is None:
        names = [str(first + k) for k in range(len(items))]
    if len(names) != len(items):
        raise ValueError(
            f"{file.path}: {path} holds {len(items)} stimuli, and there are {len(names)} names: "
            f"{first_names(list(names))}"
        )
    return dict(zip(names, items, strict=True))


def _ordered(value: Any, axes: str | None, leaf: str, what: str) -> Array:
    """A vector, or a matrix with its axes in the order of ``leaf`` ("time", "feature time")."""
    array = np.asarray(value)
    if array.dtype.kind not in "biuf" or not array.size:
        raise ValueError(f"{what} holds no numbers: {array.dtype} of the shape {array.shape}")
    if max(array.shape, default=1) == array.size:
        return array.reshape(-1)
    wanted, words = leaf.split(), groups_of(axes)[-1] if axes else []
    if not words and "channel" in wanted and array.ndim == 2 and min(array.shape) <= _MOST_CHANNELS:
        return array  # the longer axis is time
    if sorted(words) != sorted(wanted) or len(wanted) != array.ndim:
        raise MissingHintError(
            f"{what} has the shape {array.shape}: say which axis is which, "
            + " or ".join(f'"{" ".join(order)}"' for order in (wanted, wanted[::-1]))
        )
    return np.transpose(array, [words.index(w) for w in wanted])


# ---- the format


@dataclass
class _Cells:
    """What is along each axis, and the arrays at each place: ``(place, leaf)``."""

    items: list[tuple[dict[str, int], Array]]
    names: dict[str, list[str]]  # of parts of patterns
    sizes: dict[str, int]


@dataclass
class _Row:
    """One presentation: its stimulus, and what each unit has of it; what is not there was not recorded."""

    stimulus: str
    leaves: dict[str, Array]


class VariablesFormat(Format):
    """Spike times, counts or signals in variables, with the meaning of their axes as hints."""

    #: Whether numbers of trials and samples usually begin at 1.
    from_one: ClassVar[bool | None] = None
    #: Whether arrays keep all of their axes (MATLAB drops axes of length 1 at the end).
    exact_axes: ClassVar[bool] = False

    @classmethod
    def takes(cls, hint: str, value: Any) -> bool:
        """A list of features is computed from sounds, and no hint."""
        return hint != "features" or not isinstance(value, (list, tuple))

    def opened(self) -> contextlib.AbstractContextManager[VariableFile]:
        """The file, open."""
        raise NotImplementedError

    def facts(self) -> str:
        """The file's format and version in words."""
        raise NotImplementedError

    # -- looking

    def look(self, hints: Mapping[str, Any]) -> Findings:
        """Variables with class and shape; those that look like spike times or counts are proposed."""
        with self.opened() as file:
            found = list(file.variables().values())
            if not found:
                raise DamagedFileError(f"{self.path} holds no variable; is it cut, or saved without any?")
            lines = [self.facts()]
            lines += [
                f"{v.name}: {v.kind} {' x '.join(map(str, v.shape)) or 'scalar'}" for v in found[:_LISTED]
            ]
            if len(found) > _LISTED:
                lines.append(f"and {len(found) - _LISTED} more variables")
            proposals: dict[str, list[tuple[Any, str]]] = {}
            if self.path.stat().st_size <= _LOOKED_INTO:
                proposals = proposals_of(file, hints)
            needed = self._needed(hints)
            lines += [
                f"{name} may be {hint}: {why}"
                for hint in ("counts", "signal")
                if "spikes" in needed
                for name, why in proposals.get(hint, ())
            ]
            # what is not needed is not proposed: a single proposal would be taken
            return Findings(lines, {key: proposals[key] for key in needed if key in proposals}, needed)

    def _needed(self, hints: Mapping[str, Any]) -> list[str]:
        """Names of hints that must be told."""
        told = {key for key, value in hints.items() if value is not None}
        kinds = [kind for kind in ("spikes", "counts", "signal") if kind in told]
        if not kinds:
            return ["spikes", *(["sounds"] if not told & {"sounds", "features"} else [])]
        needed = []
        if "axes" not in told and not is_pattern(str(hints[kinds[0]])):
            needed.append("axes")
        if kinds == ["spikes"]:
            needed += [key for key in ("time_unit", "zero") if key not in told]
        if (kinds != ["spikes"] or hints.get("time_unit") == "samples") and "fs" not in told:
            needed.append("fs")
        if self.from_one is None and "one_based" not in told and (
            "samples" in (hints.get("time_unit"), hints.get("onset_unit")) or "spike_trials" in told
        ):  # fmt: skip
            needed.append("one_based")
        if hints.get("zero") == "session" and "onsets" not in told:
            needed.append("onsets")
        if "onsets" in told and "stimuli" not in told:
            needed.append("stimuli")
        if "onsets" in told and not told & {"onset_unit", "time_unit"}:
            needed.append("onset_unit")
        if not told & {"sounds", "features"}:
            needed.append("sounds")
        if "sounds" in told and "sounds_fs" not in told and self._folder(str(hints["sounds"])) is None:
            needed.append("sounds_fs")
        if "features" in told and "features_fs" not in told:
            needed.append("features_fs")
        return needed

    def _folder(self, name: str) -> Path | None:
        """A folder or file of sounds, beside the recording or from here."""
        for place in (self.path.parent / name, Path(name).expanduser()):
            with contextlib.suppress(OSError, ValueError):
                if place.exists() and place != self.path:
                    return place
        return None

    # -- reading

    def sessions(  # type: ignore[override]  # the hints of these formats
        self,
        *,
        spikes: str | None = None,
        counts: str | None = None,
        signal: str | None = None,
        axes: str | None = None,
        time_unit: str | None = None,
        fs: float | str | None = None,
        zero: str | None = None,
        one_based: bool | None = None,
        spike_units: str | None = None,
        spike_trials: str | None = None,
        unit_names: str | Sequence[str] | None = None,
        stimuli: str | Sequence[str] | None = None,
        onsets: str | Sequence[float] | None = None,
        onset_unit: str | None = None,
        window_ms: Sequence[float] | None = None,
        sounds: str | None = None,
        sounds_fs: float | str | None = None,
        sounds_axes: str | None = None,
        sound_names: str | Sequence[str] | None = None,
        features: str | Mapping[str, str] | None = None,
        features_fs: float | str | None = None,
        features_axes: str | None = None,
        signal_unit: str = "arbitrary units",
    ) -> list[Session]:
        """The recording in the variables, as one session.

        Parameters
        ----------
        spikes, counts, signal : str
            Variable with spike times, with counts per bin, or with a continuous signal; one of the three. A
            path ("data.units(:).spikes": of each unit) or a pattern over variables ("spikes_{stimulus}").
        axes : str
            Meaning of each axis, of unit, stimulus, repeat, trial (in order of presentation), time, and spike
            (one spike beside the other): "unit stimulus repeat". "/" stands between the axes of a cell and
            those of what is in it: "unit / stimulus repeat", "stimulus / time unit".
        time_unit : str
            Unit of spike times: "s", "ms", "us" or "samples".
        fs : float or str
            Rate in Hz of the samples in which times count, of count bins, or of the signal; or its variable.
        zero : str
            What spike times count from: "onset" of the stimulus of each trial, or begin of the "session".
        one_based : bool
            Whether numbers of samples, trials and stimuli begin at 1, as in MATLAB.
        spike_units, spike_trials : str
            For one vector of all spikes (axes="spike"): the variable with the unit of each, and with the
            number of its trial.
        unit_names : str or list of str
            Variable with the names of the units, or the names.
        stimuli : str or list of str
            Variable with the name or number of the stimulus: of each trial, or along the axis stimulus.
        onsets : str or list of float
            Variable with the onset of the stimulus in each trial, in time of the session, or the onsets.
        onset_unit : str
            Unit of the onsets: "s", "ms", "us" or "samples"; default that of the spike times.
        window_ms : (float, float)
            Time around the onset that was recorded in each trial. Default: from the onset to the end of the
            stimulus, or as far as there are spikes. Counts and signals of trials begin at its first number.
        sounds : str
            Variable, pattern ("wav_{stimulus}") or folder of the sounds.
        sounds_fs, features_fs : float or str
            Rate in Hz of the samples of sounds, and of the frames of features; or its variable.
        sounds_axes, features_axes : str
            Meaning of the axes of a matrix: "stimulus time", "time feature".
        sound_names : str or list of str
            Variable with the names of the sounds in their order, or the names: what numbers in ``stimuli``
            stand for.
        features : str or dict
            Variable or pattern of features that are given in place of sounds, by name of the feature:
            {"envelope": "env_{stimulus}"}, or "envelope=env_{stimulus}".
        signal_unit : str
            Unit of the signal, such as "mV".
        """
        hints = {k: v for k, v in locals().items() if k not in ("self", "__class__") and v is not None}
        for name, legal in (("time_unit", (*_UNITS, "samples")), ("onset_unit", (*_UNITS, "samples")),
                            ("zero", ("onset", "session"))):  # fmt: skip
            if hints.get(name) is not None:
                check_choice(name, hints[name], legal)
        kinds = [kind for kind in ("spikes", "counts", "signal") if kind in hints]
        if len(kinds) > 1:
            raise ValueError(f"{' and '.join(kinds)} are given; a recording is one of them")
        missing = self._needed(hints)
        if missing:
            found = self.look(hints)
            raise MissingHintError(
                f"{self.path} must be told: {', '.join(missing)}. Found: {'; '.join(found.found)}"
            )
        with self.opened() as file:
            return [_Reader(self, file, hints).session(kinds[0])]


class _Reader:
    """One reading of a file with the hints for it."""

    def __init__(self, form: VariablesFormat, file: VariableFile, hints: Mapping[str, Any]) -> None:
        self.form, self.file, self.hints = form, file, hints
        self.report = LoadReport()
        self.first = int(bool(hints.get("one_based", form.from_one)))
        self.numbered: int | None = None  # so many sounds have numbers in place of names

    def session(self, kind: str) -> Session:
        """The session of spikes, counts or a signal."""
        stimuli = self.stimuli()
        cells = self.cells(kind)
        if not cells.items:
            self.fail(f"{self.hints[kind]} holds nothing")
        rest: dict[str, Any] = {
            "sounds": stimuli.sounds,
            "features": stimuli.features,
            "name": self.file.path.stem,
            "facts": {"source": self.file.path.name},
            "report": self.report,
        }
        if "onsets" in self.hints or self.hints.get("zero") == "session":
            return self.on_session_time(kind, cells, stimuli, rest)
        rows = self.rows(kind, cells, stimuli)
        if kind != "spikes":
            self.check_lengths(kind, rows, stimuli)
        make = {"spikes": self.of_spikes, "counts": self.of_counts, "signal": self.of_signal}[kind]
        return make(rows, stimuli, rest)

    def fail(self, text: str) -> NoReturn:
        raise ValueError(f"{self.file.path}: {text}")

    def names(self, hint: str) -> list[str] | None:
        """Names that a hint gives or leads to."""
        given = self.hints.get(hint)
        if given is None:
            return None
        texts = (
            texts_of(value_at(self.file, given)) if isinstance(given, str) else [text_of(v) for v in given]
        )
        if not texts:
            self.fail(f"{hint}={given!r} holds no names; leave it out to number them")
        return texts

    def rate(self, hint: str) -> Fraction:
        """A rate that a hint gives or leads to."""
        given = self.hints[hint]
        if isinstance(given, str):
            with contextlib.suppress(ValueError):
                return exact_rate(float(given), hint)
            found = np.unique(numbers_of(value_at(self.file, given), given))
            if len(found) != 1:
                self.fail(f"{hint}={given!r} holds {len(found)} different rates; one is needed")
            given = float(found[0])
        return exact_rate(given, hint)

    # -- stimuli

    def stimuli(self) -> _Stimuli:
        """Sounds or features that hints lead to."""
        names = self.names("sound_names")
        axes = self.hints.get("axes", "") or ""
        if names is None and "stimulus" in {w for g in groups_of(axes) for w in g}:
            names = self.names("stimuli")
        out, patterns = _Stimuli({}, {}), [is_pattern(str(self.hints.get("sounds", "")))]
        given = self.hints.get("sounds")
        if given is not None:
            folder = self.form._folder(given)
            if folder is not None:
                out.sounds, patterns = dict(sounds_of(folder)), [True]
            else:
                arrays = _collection(
                    self.file, given, self.hints.get("sounds_axes"), names, self.first, "time channel"
                )
                out.sounds = dict(sounds_of(arrays, self.rate("sounds_fs")))
        features = self.hints.get("features") or {}
        if isinstance(features, str):
            name, sign, path = features.partition("=")
            features = {name: path} if sign else {"feature": features}
        for name, path in features.items():
            patterns.append(is_pattern(path))
            arrays = _collection(
                self.file, path, self.hints.get("features_axes"), names, self.first, "feature time"
            )
            rate = self.rate("features_fs")
            out.features[name] = {
                key: Feature(np.atleast_2d(array).astype(np.float64), rate) for key, array in arrays.items()
            }
        if names is None and not any(patterns):
            self.numbered = len(out.names)
        return out

    def presented(self) -> list[str] | None:
        """Names of the stimuli that the hint leads to; numbers must be those of the sounds in their order."""
        names, listed = self.names("stimuli"), self.names("sound_names")
        if listed is not None and not set(listed).isdisjoint(names or ()):
            listed = None
        n_sounds = self.numbered if listed is None else len(listed)
        if names is None or n_sounds is None or not all(name.isdecimal() for name in names):
            return names
        numbers = {int(name) for name in names}
        most = self.first + n_sounds - 1
        if "one_based" not in self.hints and (
            self.form.from_one is None or min(numbers, default=1) < self.first
        ):
            raise MissingHintError(
                f"{self.file.path} must be told: one_based, whether the numbers of {n_sounds} stimuli "
                f"(there are {min(numbers)} to {max(numbers)}) begin at 1 or at 0"
            )
        if max(numbers, default=0) > most:
            self.fail(
                f"stimuli has the number {max(numbers)}, and the {n_sounds} sounds are {self.first} to "
                f"{most}; one_based= says from where they are counted"
            )
        if listed is None:
            return names
        return [name if int(name) < self.first else listed[int(name) - self.first] for name in names]

    # -- the arrays

    def cells(self, kind: str) -> _Cells:
        """The arrays of the variable or of all variables of the pattern, by their place along the axes."""
        path, axes = str(self.hints[kind]), str(self.hints.get("axes") or "")
        if is_pattern(path):
            found = matches(self.file, path)
        else:
            found = [({}, path)]
        names: dict[str, list[str]] = {}
        for parts, _ in found:
            for word, text in parts.items():
                if text not in names.setdefault(word, []):
                    names[word].append(text)
        items: list[tuple[dict[str, int], Array]] = []
        sizes = {word: len(texts) for word, texts in names.items()}
        for parts, name in found:
            value = value_at(self.file, name)
            outer = {word: names[word].index(text) for word, text in parts.items()}
            levels = levels_of(value, axes, name)
            if set(sizes) & {w for level in levels for w in level} and parts:
                twice = set(parts) & {w for level in levels for w in level}
                if twice:
                    self.fail(f"{sorted(twice)} is an axis and a part of {path!r}; name it once")
            for place, leaf in spread(value, levels, name, self.form.exact_axes):
                for inner, array in self.leaves(leaf, levels[-1], name):
                    items.append(({**outer, **place, **inner}, array))
        for place, _ in items:
            for word, index in place.items():
                sizes[word] = max(sizes.get(word, 0), index + 1)
        return _Cells(items, names, sizes)

    def leaves(self, leaf: Array, words: Sequence[str], what: str) -> Iterator[tuple[dict[str, int], Array]]:
        """Vectors along time or spikes in an array of numbers, by their place along its other axes."""
        if leaf.dtype.kind not in "biuf":
            self.fail(f"{what} holds {leaf.dtype}, not numbers")
        along = [word for word in words if word in ("time", "spike")]
        others = [word for word in words if word not in along]
        if not words or (leaf.size <= 1 and not along):
            yield dict.fromkeys(others, 0), leaf
            return
        if leaf.size == 0 or (leaf.size == 1 and np.isnan(leaf.astype(float)).all() and others):
            return  # an empty cell in place of a matrix, or NaN: not recorded
        array = fitted(leaf, words, what, self.form.exact_axes)
        array = np.moveaxis(array, [words.index(word) for word in along], range(-len(along), 0))
        for index in np.ndindex(array.shape[: array.ndim - len(along)]):
            yield dict(zip(others, index, strict=True)), np.atleast_1d(array[index])

    def unit_names(self, cells: _Cells) -> list[str]:
        """Name of each place along the axis of units."""
        size = cells.sizes.get("unit", 1)
        names = self.names("unit_names") or cells.names.get("unit")
        if names is None:
            return [str(k + 1) for k in range(size)] if "unit" in cells.sizes else [self.file.path.stem]
        if len(names) != size:
            self.fail(f"there are {size} units and {len(names)} names of units: {first_names(names)}")
        if len(set(names)) < len(names):
            self.fail(f"unit_names holds a name twice: {first_names(names)}")
        return names

    def rows(self, kind: str, cells: _Cells, stimuli: _Stimuli) -> list[_Row]:
        """Presentations, each with what the units have of it."""
        if "spike_units" in self.hints or "spike_trials" in self.hints:
            return self.rows_of_vectors(cells)
        units, sizes = self.unit_names(cells), cells.sizes
        self.units = units
        names = cells.names.get("stimulus") or self.presented()
        if "trial" in sizes:
            if "stimulus" in sizes or "repeat" in sizes:
                self.fail(
                    "axes names 'trial' beside 'stimulus' or 'repeat'; trials are in order, each with one"
                )
            keys: list[tuple[int, ...]] = [(k,) for k in range(sizes["trial"])]
            words = ["trial"]
        else:
            words = ["stimulus", "repeat"]
            keys = [(s, r) for s in range(sizes.get("stimulus", 1)) for r in range(sizes.get("repeat", 1))]
        count = sizes.get(words[0], 1)
        if names is None:
            if len(stimuli.names) == 1:
                names = stimuli.names * (count if words[0] == "trial" else 1)
            elif words[0] == "stimulus" and self.numbered is not None:
                names = stimuli.names
            else:
                raise MissingHintError(
                    f"{self.file.path} must be told: stimuli, the variable with the name of the stimulus at "
                    f"each of {count} places along the axis {words[0]!r}, or the names in that order; there "
                    f"are {first_names(stimuli.names) or 'none'}"
                )
        if len(names) != count:
            self.fail(
                f"the axis {words[0]!r} has {count} places, and there are {len(names)} stimuli "
                f"({first_names(names) or 'none'}); give stimuli=<variable with the stimulus of each>"
            )
        rows = {key: _Row(names[key[0]], {}) for key in keys}
        for place, leaf in cells.items:
            row = rows[tuple(place.get(word, 0) for word in words)]
            row.leaves[units[place.get("unit", 0)]] = leaf
        return list(rows.values())

    def rows_of_vectors(self, cells: _Cells) -> list[_Row]:
        """Presentations of one vector of all spikes, with the unit and the trial of each."""
        if len(cells.items) != 1 or set(cells.sizes) - {"spike"}:
            self.fail('spike_units and spike_trials are for one vector of all spikes: axes="spike"')
        times = numbers_of(cells.items[0][1], str(self.hints["spikes"]))
        owners, which = self.owners(len(times))
        self.units = names = self.names("unit_names") or owners
        unknown = sorted(set(owners) - set(names), key=natural)
        if unknown:
            self.fail(f"spikes are of units that unit_names lacks: {first_names(unknown)}")
        which = np.array([names.index(owner) for owner in owners], dtype=np.int64)[which]
        if "spike_trials" not in self.hints:
            return [_Row("", {name: times[which == k] for k, name in enumerate(names)})]
        trial = self.numbers_from_one("spike_trials", len(times))
        stimuli = self.presented()
        if stimuli is None:
            raise MissingHintError(
                f"{self.file.path} must be told: stimuli, the variable with the stimulus of each trial; "
                "trials without spikes are otherwise unknown"
            )
        if len(trial) and not 0 <= trial.min() <= trial.max() < len(stimuli):
            self.fail(
                f"spike_trials go from {trial.min() + self.first} to {trial.max() + self.first}, and there "
                f"are {len(stimuli)} trials, counted from {self.first}; one_based= says from where"
            )
        place = trial * len(names) + which
        order = np.argsort(place, kind="stable")
        edges = np.searchsorted(place[order], np.arange(1, len(stimuli) * len(names)))
        parts = np.split(times[order], edges)
        return [
            _Row(name, dict(zip(names, parts[k * len(names) : (k + 1) * len(names)], strict=True)))
            for k, name in enumerate(stimuli)
        ]

    def owners(self, count: int) -> tuple[list[str], npt.NDArray[np.int64]]:
        """The units in natural order, and which of them each spike is of."""
        given = self.hints.get("spike_units")
        if given is None:
            return [self.file.path.stem], np.zeros(count, dtype=np.int64)
        value = np.asarray(value_at(self.file, given))
        if value.dtype.kind == "O":
            value = np.array(texts_of(value))
        found, which = np.unique(value.reshape(-1, order="F"), return_inverse=True)
        if value.size != count:
            self.fail(f"{given} has {value.size} entries and there are {count} spikes")
        names = [text_of(one) for one in found]
        order = sorted(range(len(names)), key=lambda k: natural(names[k]))
        places = np.empty(len(names), dtype=np.int64)
        places[order] = np.arange(len(names))
        return [names[k] for k in order], places[which.reshape(-1)]

    def numbers_from_one(self, hint: str, count: int) -> npt.NDArray[np.int64]:
        """Indices in a variable, counted from 0."""
        found = numbers_of(value_at(self.file, str(self.hints[hint])), str(self.hints[hint]))
        if len(found) != count or not (found == np.round(found)).all():
            self.fail(f"{hint} holds {len(found)} numbers, {count} whole ones are needed")
        return found.astype(np.int64) - self.first

    # -- times

    def seconds(self, values: Array, unit: str, what: str) -> Floats:
        """Times in s."""
        numbers = np.asarray(values).astype(np.float64).reshape(-1)
        if unit == "samples":
            if not (np.isnan(numbers) | (numbers == np.round(numbers))).all():
                self.fail(f"{what} holds fractions, which numbers of samples are not; is the unit s or ms?")
            if "fs" not in self.hints:
                raise MissingHintError(f"{self.file.path} must be told: fs, the rate in Hz of samples")
            return (numbers - self.first) / float(self.rate("fs"))
        return numbers / _UNITS[unit]

    def times(self, leaf: Array, what: str) -> Floats | None:
        """Spike times in s of one cell; None where it says "not recorded" (NaN)."""
        padded = "spike" in {w for g in groups_of(str(self.hints.get("axes") or "")) for w in g}
        numbers = np.asarray(leaf).astype(np.float64).reshape(-1)
        gaps = np.isnan(numbers)
        if gaps.any():
            if gaps.all() and not (padded and len(numbers) > 1):
                return None
            if not padded:
                self.fail(f"{what} holds NaN among spike times; an axis 'spike' says that NaN fills up rows")
            numbers = numbers[~gaps]
        elif padded and len(numbers) > 1 and numbers[-1] == 0 and numbers.max() > 0:
            self.fail(f"{what} ends in zeros after later spikes, which fill up a row; fill it up with NaN")
        if np.isinf(numbers).any():
            self.fail(f"{what} holds an infinite spike time")
        return np.sort(self.seconds(numbers, str(self.hints["time_unit"]), what))

    def check_unit(self, latest: float, count: int, lengths: Sequence[float]) -> None:
        """Refuse a unit of time with which spikes last much longer or shorter than what they belong to."""
        longest = max((length for length in lengths if length == length), default=0.0)
        few = count < _FEW
        if longest and latest and (latest > _LATEST * longest or (latest < longest / _EARLIEST and not few)):
            self.fail(
                f"with time_unit={self.hints['time_unit']!r} the last spike is at {latest:.4g} s, and what "
                f"was presented ends after {longest:.4g} s; another time_unit, fs or zero is meant, or "
                "window_ms=(start, end) says that it is so"
            )

    def check_lengths(self, kind: str, rows: Sequence[_Row], stimuli: _Stimuli) -> None:
        """Refuse counts and signals whose trials are of another length than stimuli, as by exchanged axes."""
        rate = float(self.rate("fs"))
        for row in rows:
            length = stimuli.length_s(row.stimulus)
            covered = max((leaf.size for leaf in row.leaves.values()), default=0) / rate
            if math.isnan(length) or not covered:
                continue
            turned = [
                name
                for name, values in stimuli.features.items()
                for key, one in values.items()
                if key == row.stimulus and one.fs is not None
                and abs(one.values.shape[0] / float(one.fs) / covered - 1) < _NEARLY and covered > 2 * length
            ]  # fmt: skip
            if turned:
                self.fail(
                    f"the feature {turned[0]!r} lasts {length:.4g} s and {self.hints[kind]} {covered:.4g} s "
                    "for one presentation; are the axes in features_axes exchanged?"
                )
            if covered < _SHORTEST * length:
                self.fail(
                    f"{self.hints[kind]} lasts {covered:.4g} s at fs={rate:g} Hz for one presentation of "
                    f"{row.stimulus!r}, which lasts {length:.4g} s; is the order of axes, or fs, another one?"
                )

    def window_s(self) -> tuple[float, float] | None:
        """The stretch around onsets that hints tell, in s."""
        given = self.hints.get("window_ms")
        if given is None:
            return None
        numbers = [float(v) for v in given]
        if len(numbers) != 2 or not numbers[0] < numbers[1]:
            raise ValueError(
                f"window_ms is (start, end) around the onset in ms, such as (-200, 1500), got {given}"
            )
        return numbers[0] / 1000, numbers[1] / 1000

    # -- trials whose times count from their onset

    def of_spikes(self, rows: Sequence[_Row], stimuli: _Stimuli, rest: dict[str, Any]) -> Session:
        """Session of spike times that count from each onset."""
        heard = [
            {unit: times for unit, leaf in row.leaves.items()
             if (times := self.times(leaf, f"{unit}, {row.stimulus}")) is not None}
            for row in rows
        ]  # fmt: skip
        told = self.window_s()
        earliest = min([0.0, *(float(t[0]) for row in heard for t in row.values() if len(t))])
        latest: dict[str, float] = {}
        for row, trains in zip(rows, heard, strict=True):
            ends = [float(t[-1]) + 1e-6 for t in trains.values() if len(t)]
            latest[row.stimulus] = max([latest.get(row.stimulus, 0.0), *ends])
        if told is None:
            count = sum(len(times) for row in heard for times in row.values())
            lengths = [stimuli.length_s(name) for name in latest]
            self.check_unit(max(latest.values(), default=0.0), count, lengths)
        windows = []
        for row in rows:
            length = stimuli.length_s(row.stimulus)
            end = max(latest[row.stimulus], 0.0 if math.isnan(length) else length, 1e-3)
            windows.append(told or (earliest, end))
        if told is None:
            self.report.note(
                "recorded window",
                f"not told; taken as {earliest:g} s to the end of each stimulus, or its last spike "
                "(window_ms=(start, end) tells it)",
                0,
            )
        return self._placed(rows, heard, windows, {}, rest)

    def _placed(
        self,
        rows: Sequence[_Row],
        heard: Sequence[Mapping[str, Floats]],
        windows: Sequence[tuple[float, float]],
        gaps: Mapping[tuple[int, str], Sequence[tuple[float, float]]],
        rest: dict[str, Any],
    ) -> Session:
        """Trials one after the other on one clock; ``gaps``: stretches observed in part, by row and unit."""
        spikes: dict[str, list[Floats]] = {unit: [] for unit in self.units}
        observed: dict[str, list[tuple[float, float]]] = {unit: [] for unit in self.units}
        names, onsets, clock, outside = [], [], 0.0, 0
        for k, (row, trains, (start, end)) in enumerate(zip(rows, heard, windows, strict=True)):
            if not trains:
                continue
            onset = float(math.ceil(clock - start + _GAP_S))  # whole seconds: k * dt stays what it was
            names.append(row.stimulus)
            onsets.append(onset)
            for unit, times in trains.items():
                inside = times[(times >= start) & (times < end)]
                outside += len(times) - len(inside)
                spikes[unit].append(onset + inside)
                parts = gaps.get((k, unit), [(start, end)])
                observed[unit] += [(onset + a, onset + b) for a, b in parts]
            clock = onset + end
        if outside:
            self.report.note("spikes outside their trial", f"{outside} spikes outside the window", outside)
        absent = sum(len(self.units) - len(trains) for trains in heard)
        if absent:
            self.report.note("repeats not recorded", f"{absent} of {len(rows) * len(self.units)}", absent)
        return Session(
            trials=Trials(names, np.array(onsets)),
            spikes={unit: np.concatenate([*parts, np.empty(0)]) for unit, parts in spikes.items()},
            observed={unit: np.array(spans).reshape(-1, 2) for unit, spans in observed.items()},
            span_s=(0.0, clock + _GAP_S),
            **rest,
        )

    def of_counts(self, rows: Sequence[_Row], stimuli: _Stimuli, rest: dict[str, Any]) -> Session:
        """Session of counts per bin: as many spikes in the middle of each bin."""
        rate = self.rate("fs")
        start = (self.window_s() or (0.0, 1.0))[0]
        if (Fraction(start).limit_denominator(10**6) * rate).denominator != 1:
            self.fail(f"the first bin begins {start:g} s from the onset, which is no whole number of bins")
        heard: list[dict[str, Floats]] = []
        windows, gaps = [], {}
        for k, row in enumerate(rows):
            trains = {}
            length = 0
            for unit, leaf in row.leaves.items():
                counts = np.asarray(leaf).astype(np.float64).reshape(-1)
                known = ~np.isnan(counts)
                if not known.any():
                    continue
                numbers = np.where(known, counts, 0.0)
                if (numbers < 0).any() or (numbers != np.round(numbers)).any():
                    self.fail(
                        f"{self.hints['counts']} holds negative or broken numbers ({unit}, {row.stimulus}), "
                        "so they are no counts; signal= reads rates and traces"
                    )
                length = max(length, len(counts))
                middle = start + (np.arange(len(counts)) + 0.5) / float(rate)
                trains[unit] = np.repeat(middle, numbers.astype(np.int64))
                edges = np.flatnonzero(np.diff(np.concatenate([[False], known, [False]]).astype(np.int8)))
                gaps[k, unit] = [
                    (start + a / float(rate), start + b / float(rate)) for a, b in edges.reshape(-1, 2)
                ]
            heard.append(trains)
            windows.append((start, start + length / float(rate)))
        rest["facts"]["bin_ms"] = 1000.0 / float(rate)
        return self._placed(rows, heard, windows, gaps, rest)

    def of_signal(self, rows: Sequence[_Row], stimuli: _Stimuli, rest: dict[str, Any]) -> Session:
        """Session of a signal that was stored trial by trial, one after the other with gaps between."""
        rate = self.rate("fs")
        start = (self.window_s() or (0.0, 1.0))[0]
        pieces, names, onsets, at = [], [], [], 0
        gap = math.ceil(rate * Fraction(_GAP_S))
        for row in rows:
            length = max((leaf.size for leaf in row.leaves.values()), default=0)
            if not length:
                continue
            block = np.full((len(self.units), length), np.nan)
            for unit, leaf in row.leaves.items():
                block[self.units.index(unit), : leaf.size] = np.asarray(leaf).astype(np.float64).reshape(-1)
            at += gap
            pieces.append((at, block))
            names.append(row.stimulus)
            onsets.append(at / float(rate) - start)
            at += length
        signal = Signal(Pieces(pieces, len(self.units), at + gap), rate, self.units, 0.0, self._unit())
        return Session(trials=Trials(names, np.array(onsets)), signal=signal, **rest)

    def _unit(self) -> str:
        return str(self.hints.get("signal_unit", "arbitrary units"))

    # -- one clock for the whole session

    def on_session_time(self, kind: str, cells: _Cells, stimuli: _Stimuli, rest: dict[str, Any]) -> Session:
        """Session of spikes or a signal on one clock, with a table of onsets."""
        if kind == "counts":
            self.fail("counts on the session's clock are not read; cut them into trials, or use signal=")
        unit = str(self.hints.get("onset_unit") or self.hints.get("time_unit"))
        given = self.hints["onsets"]
        path = given if isinstance(given, str) else "onsets"
        told = value_at(self.file, given) if isinstance(given, str) else np.asarray(given, dtype=np.float64)
        onset = self.seconds(numbers_of(told, path), unit, path)
        names = self.presented() or []
        if len(names) == 1 and len(onset) > 1:
            names = names * len(onset)
        if len(names) != len(onset):
            self.fail(
                f"{path} holds {len(onset)} onsets, and stimuli {len(names)} names: {first_names(names)}"
            )
        trials = Trials(names, onset)
        if kind == "signal":
            if set(cells.sizes) - {"unit"}:
                self.fail(
                    f"a signal on the session's clock has the axes unit and time, not {sorted(cells.sizes)}"
                )
            self.units = self.unit_names(cells)
            if len(self.units) > max(leaf.size for _, leaf in cells.items):
                self.fail(f"{self.hints[kind]} has more units than samples; are its axes exchanged?")
            data = np.full((len(self.units), max(leaf.size for _, leaf in cells.items)), np.nan)
            for place, leaf in cells.items:
                data[place.get("unit", 0), : leaf.size] = leaf.reshape(-1)
            return Session(
                trials=trials, signal=Signal(data, self.rate("fs"), self.units, 0.0, self._unit()), **rest
            )
        if "spike_units" in self.hints:
            trains = {unit: [leaf] for unit, leaf in self.rows_of_vectors(cells)[0].leaves.items()}
        else:
            self.units = self.unit_names(cells)
            trains = {name: [] for name in self.units}
            for place, leaf in cells.items:
                trains[self.units[place.get("unit", 0)]].append(leaf)
        spikes = {}
        for name, leaves in trains.items():
            parts = [times for leaf in leaves if (times := self.times(leaf, name)) is not None]
            if not parts:
                self.report.skip(name, "not recorded (NaN in place of spike times)")
                continue
            spikes[name] = np.sort(np.concatenate(parts))
        observed, window = {}, self.window_s()
        if window is None:
            self.check_unit(
                max((float(times[-1]) for times in spikes.values() if len(times)), default=0.0),
                sum(len(times) for times in spikes.values()),
                [float(np.nanmax(onset, initial=0.0))],
            )
        else:
            spans = np.stack([onset + window[0], onset + window[1]], axis=1)
            observed = dict.fromkeys(spikes, spans[~np.isnan(onset)])
        return Session(trials=trials, spikes=spikes, observed=observed, **rest)
