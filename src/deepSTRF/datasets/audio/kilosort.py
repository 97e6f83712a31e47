"""Kilosort and phy folders, and ALF folders: spike samples, clusters, labels, and a table of onsets.

Samples stay integers until they are divided by the rate. ``params.py`` is read as literals and never
executed. The curator's labels come first; the sorter's guess is never passed off as curated.
"""

from __future__ import annotations

import ast
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from deepSTRF._files import DamagedFileError, load_npy, naming_damage
from deepSTRF._text import printable
from deepSTRF._validation import as_numbers, check_choice, first_names
from deepSTRF.datasets.file_tree import FileTree, is_archive
from deepSTRF.datasets.formats import Findings, Format, MissingHintError
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.session import Session, Trials
from deepSTRF.datasets.sounds import SOUND_SUFFIXES, exact_rate, sounds_of
from deepSTRF.datasets.table_files import TABLE_SUFFIXES, Table, read_table
from deepSTRF.datasets.tables import columns_of
from deepSTRF.registry import FORMATS

__all__ = ["Kilosort"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

_REMEDY = "copy the sorter's output again, or sort again"
#: Files with spike times: in samples of the sorted binary, and in s (ALF).
_SAMPLES, _SECONDS = "spike_times.npy", "spikes.times.npy"
#: Clusters of spikes, the curated ones first.
_CLUSTERS = ("spike_clusters.npy", "spikes.clusters.npy", "spike_templates.npy", "spikes.templates.npy")
#: Where the acquisition system states the number of the binary's first sample.
_FIRST_SAMPLE = ("sample_numbers.npy", "timestamps.npy", "continuous/sample_numbers.npy")
_UNITS = ("samples", "s", "ms")
#: A params.py has a few lines; text beyond this is something else.
_MOST_PARAMS = 64_000
_MOST_TEMPLATES = 1 << 30
_LABELS_BY_DEFAULT = ("good",)
_UNSORTED = "unsorted"
#: Columns of ``cluster_*.tsv`` and of ALF metrics, as metadata are called here.
_META = {
    "ch": "channel", "channel": "channel", "depth": "depth", "depths": "depth", "amp": "amplitude",
    "amplitude": "amplitude", "contampct": "contamination", "contamination": "contamination",
    "fr": "firing_rate", "sh": "shank", "n_spikes": "n_spikes",
}  # fmt: skip
#: Columns that hold the curator's label, and the sorter's.
_CURATED, _SORTED = ("group", "phy_label", "curated"), ("kslabel", "ks2_label", "ks_label")


@FORMATS.register("kilosort")
class Kilosort(Format):
    """Output of Kilosort, with or without phy's curation, or spikes in ALF files; and a table of onsets."""

    suffixes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """A folder or zip file with spike times and clusters, itself or one folder deeper."""
        if path.is_dir():
            inner = [one for one in path.iterdir() if one.is_dir() and not one.name.startswith(".")]
            found = [set(os.listdir(folder)) for folder in (path, *inner[:100])]
        elif is_archive(path) and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                found = [{PurePosixPath(name).name for name in archive.namelist()}]
        else:
            return False
        return any(names & {_SAMPLES, _SECONDS} and names & set(_CLUSTERS) for names in found)

    def look(self, hints: Mapping[str, Any]) -> Findings:
        """Clusters, labels, rate and tables in the folder, and what must be told."""
        told = {key: value for key, value in hints.items() if value is not None}
        with _opened(self.path) as folder:
            return _Look(folder, told).findings()

    def sessions(  # type: ignore[override]  # hints by name
        self,
        *,
        onsets: str | os.PathLike[str] | Mapping[str, Any] | Sequence[Any] | None = None,
        stimulus: str | None = None,
        onset: str | None = None,
        onset_unit: str | None = None,
        offset: str | None = None,
        condition: str | None = None,
        first_sample: int | float | str | None = None,
        sounds: str | os.PathLike[str] | Mapping[str, Any] | None = None,
        labels: str | Sequence[str] | None = None,
        min_spikes: int | None = None,
        sample_rate: float | None = None,
        segments: Sequence[int] | None = None,
        segment: int | None = None,
        observed: Mapping[str, Any] | None = None,
        span_s: Sequence[float] | None = None,
    ) -> list[Session]:
        """The sessions in the folder: one, or one per sorted recording for a list of tables of onsets.

        Parameters
        ----------
        onsets : path, table, or list of them
            Table of presentations (CSV, TSV, Parquet, or in memory); a list has one per segment.
        stimulus : str
            Column that names the sound of each presentation.
        onset : str
            Column of the sounds' onsets.
        onset_unit : str
            "samples" (of ``sample_rate``), "s" or "ms".
        offset : str
            Column of the sounds' ends, in the unit of the onsets.
        condition : str
            Column of conditions.
        first_sample : int, float or str
            What the clock of the onsets shows at the first sample of the sorted binary, in the unit of the
            onsets; 0 where they count from there; or a file such as "sample_numbers.npy" that begins with it.
        sounds : path or mapping
            Folder of sound files, or sounds by name.
        labels : list of str
            Labels of the clusters to keep: "good" where it is left out; "all" keeps every cluster. Clusters
            without a label are "unsorted".
        min_spikes : int
            Clusters with fewer spikes are left out.
        sample_rate : float
            Rate of the recording in Hz, where params.py does not say it.
        segments : list of int
            Lengths in samples of the recordings that were joined before sorting.
        segment : int
            Which of them the onsets belong to, from 0.
        observed : mapping of str to (k, 2)
            Intervals in s in which a cluster was observed, by its id.
        span_s : (float, float)
            Begin and end of the recording in s.
        """
        told = {key: value for key, value in locals().items() if key != "self" and value is not None}
        with _opened(self.path) as folder:
            look = _Look(folder, told)
            while more := look.settled():
                told.update(more)
                look = _Look(folder, told)
            if look.needed:
                words = [f"{key}: {look.in_words(key)}" for key in look.needed]
                raise MissingHintError(
                    f"{folder.where()} is sorted spikes, and must be told: {'; '.join(words)}. "
                    f"Found: {'; '.join(look.lines)}"
                )
            return _sessions(folder, told)


# ---- the files of a folder


@dataclass
class _Folder:
    """The files beside the spike times."""

    root: Path
    tree: FileTree
    base: str  #: folder of the spike times in the tree, with "/" at its end, or ""

    def where(self, name: str = "") -> str:
        """A file as messages name it."""
        return f"{self.root}/{self.base}{name}".rstrip("/")

    def has(self, name: str) -> bool:
        """Whether a file is there."""
        return self.base + name in self.tree

    def names(self) -> list[str]:
        """Files in the folder and below, relative to it."""
        return [name.removeprefix(self.base) for name in self.tree.names if name.startswith(self.base)]

    def array(self, name: str) -> npt.NDArray[Any]:
        """An .npy file."""
        return load_npy(self.tree.local(self.base + name), _REMEDY)

    def numbers(self, name: str, kinds: str = "iu") -> npt.NDArray[Any]:
        """An .npy file of (n,) or (n, 1) numbers, flat."""
        found = self.array(name)
        if found.dtype.kind not in kinds or found.ndim > 2 or found.size != max((*found.shape, 0)):
            raise DamagedFileError(
                f"{self.where(name)} holds {found.dtype} of shape {found.shape}, and not one number per "
                f"spike; {_REMEDY}"
            )
        return found.reshape(-1)

    def table(self, name: str) -> Table:
        """A table in the folder."""
        return read_table(self.tree, self.base + name)

    def params(self) -> dict[str, Any]:
        """The literals that params.py assigns; anything else in it is left alone."""
        if not self.has("params.py"):
            return {}
        found: dict[str, Any] = {}
        text = self.tree.text(self.base + "params.py", _MOST_PARAMS)
        with naming_damage(self.where("params.py"), "write sample_rate = <Hz> into it"):
            for line in ast.parse(text).body:
                if (
                    isinstance(line, ast.Assign)
                    and len(line.targets) == 1
                    and isinstance(line.targets[0], ast.Name)
                ):
                    try:
                        found[line.targets[0].id] = ast.literal_eval(line.value)
                    except ValueError:  # no literal
                        continue
        return found


@contextmanager
def _opened(path: Path) -> Iterator[_Folder]:
    """The folder of the spike times, which may lie one deeper."""
    tree = FileTree(path)
    try:
        found = [n for n in tree.names if PurePosixPath(n).name in (_SAMPLES, _SECONDS) and n.count("/") <= 2]
        places = list(dict.fromkeys(name.rpartition("/")[0] for name in found))
        if not places:
            raise DamagedFileError(
                f"{path} holds no {_SAMPLES} and no {_SECONDS}; name the folder of the sorter's output"
            )
        if len(places) > 1 and "" not in places:
            raise ValueError(f"{path} holds {len(places)} sorted recordings; name one: {first_names(places)}")
        place = "" if "" in places else places[0]
        yield _Folder(path, tree, f"{place}/" if place else "")
    finally:
        tree.close()


# ---- what must be told


@dataclass
class _Look:
    """Findings, proposals and missing hints, given what was told."""

    folder: _Folder
    told: Mapping[str, Any]
    lines: list[str] = field(default_factory=list)
    hints: dict[str, list[tuple[Any, str]]] = field(default_factory=dict)
    needed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._look_at_spikes()
        self._look_at_onsets()
        self._look_at_sounds()

    def settled(self) -> dict[str, Any]:
        """Hints with one candidate and no doubt."""
        return {
            key: found[0][0]
            for key, found in self.hints.items()
            if key not in self.told and len(found) == 1 and key not in self.needed
        }

    def in_words(self, key: str) -> str:
        """Proposals for a hint."""
        return ", ".join(f"{value!r} ({why})" for value, why in self.hints.get(key, ())) or "nothing proposed"

    def findings(self) -> Findings:
        """For the front door."""
        return Findings([printable(line, longest=400) for line in self.lines], self.hints, self.needed)

    def _ask(self, hint: str, candidates: list[tuple[Any, str]], *, doubt: bool = False) -> None:
        if hint in self.told:
            return
        self.hints[hint] = candidates
        if len(candidates) != 1 or doubt:
            self.needed.append(hint)

    def _look_at_spikes(self) -> None:
        folder = self.folder
        in_seconds = not folder.has(_SAMPLES)
        labels, source = _labels(folder, LoadReport())
        clusters = folder.numbers(_clusters_file(folder))
        counts = Counter(labels.get(int(one), _UNSORTED) for one in np.unique(clusters))
        self.lines.append(
            f"{len(clusters):,} spikes of {sum(counts.values())} clusters in {_clusters_file(folder)}"
        )
        self.lines.append(
            f"labels ({source}): " + ", ".join(f"{label!r} {n}" for label, n in counts.items())
            if source
            else "no labels"
        )
        if not source:
            self._ask(
                "labels", [("all", "no file of labels is there, so every cluster is unsorted")], doubt=True
            )
        rate = self.told.get("sample_rate") or folder.params().get("sample_rate")
        if rate is not None:
            self.lines.append(
                f"sample rate: {rate:.10g} Hz" if isinstance(rate, int | float) else f"sample rate: {rate!r}"
            )
        elif not in_seconds:
            self._ask("sample_rate", [])

    def _look_at_onsets(self) -> None:
        folder = self.folder
        if "onsets" not in self.told:
            found = [name for name in folder.names() if _is_onset_table(folder, name)]
            self._ask("onsets", [(name, "a table with onsets") for name in found])
            return
        if "segments" in self.told and "segment" not in self.told and not _is_list(self.told["onsets"]):
            n = len(self.told["segments"])
            self._ask("segment", [(k, f"recording {k} of {n}") for k in range(n)], doubt=True)
        table = _onset_tables(folder, self.told["onsets"])[0]
        self.lines.append(f"onsets: {len(table)} rows with {first_names(list(table.columns))}")
        for role in ("stimulus", "onset"):
            name = self.told.get(role)
            if name is None:
                found_column = _column(table, role)
                names = [found_column] if found_column else list(table.columns)
                self._ask(role, [(one, _sample(table, one)) for one in names])
        name = self.told.get("onset") or _column(table, "onset")
        if name in table.columns and "onset_unit" not in self.told:
            unit = _unit_of(table, name)
            self._ask(
                "onset_unit", [(unit, f"by its name, {name!r}")] if unit else _units_by_size(table, name)
            )
        if "first_sample" not in self.told:
            files = [one for one in _FIRST_SAMPLE if folder.has(one)]
            firsts = [(one, folder.array(one).reshape(-1)[:1]) for one in files]
            real = [(one, first[0]) for one, first in firsts if first.size and first[0] != 0]
            if real:
                self._ask(
                    "first_sample",
                    [*((one, f"it begins with {value}: onsets count on that clock") for one, value in real),
                     (0, "onsets count from the binary's first sample")],
                )  # fmt: skip

    def _look_at_sounds(self) -> None:
        if "sounds" in self.told:
            return
        root = self.folder.root
        near = []
        for place in (root, root.parent) if root.is_dir() else ():
            inner = sorted(
                entry for entry in place.iterdir() if entry.is_dir() and not entry.name.startswith(".")
            )
            near += [one for one in (place, *inner) if _has_sounds(one)]
        found = list(dict.fromkeys(str(one) for one in near))
        self._ask("sounds", [(one, "a folder of sound files") for one in found])


def _has_sounds(folder: Path) -> bool:
    try:
        return any(name.lower().endswith(SOUND_SUFFIXES) for name in os.listdir(folder))
    except OSError:
        return False


def _is_list(value: Any) -> bool:
    """Whether onsets are several tables, and not the rows of one."""
    if not isinstance(value, (list, tuple)):
        return False
    cells = value[0].values() if value and isinstance(value[0], Mapping) else ()
    return not cells or any(np.ndim(cell) for cell in cells)


def _is_onset_table(folder: _Folder, name: str) -> bool:
    last = PurePosixPath(name).name
    if (
        not last.lower().endswith(TABLE_SUFFIXES)
        or last.startswith(("cluster_", "clusters."))
        or name.count("/") > 1
    ):
        return False
    try:
        table = folder.table(name)
    except (ValueError, ImportError):
        return False
    return _column(table, "onset") is not None and _column(table, "stimulus") is not None


def _column(table: Table, role: str) -> str | None:
    """The column of a role by its usual names, also ``onset_sample``; None for none or several."""
    try:
        found = table.column(role, needed=False)
    except ValueError:
        return None
    if found is None and role == "onset":
        hits = [name for name in table.columns if "sample" in name.lower()]
        return hits[0] if len(hits) == 1 else None
    return found


def _sample(table: Table, name: str) -> str:
    return "such as " + ", ".join(printable(text, longest=30) for text in table.texts(name)[:4])


def _unit_of(table: Table, name: str) -> str | None:
    """Unit of a column of times by its name."""
    if "sample" in name.lower():
        return "samples"
    found = table.unit(name)
    return found if found in _UNITS else None


def _units_by_size(table: Table, name: str) -> list[tuple[Any, str]]:
    """The units that a column may have, the likeliest first, with why."""
    try:
        values = table.numbers(name)
    except ValueError:
        return [(unit, "") for unit in _UNITS]
    values = values[np.isfinite(values)]
    most = float(values.max(initial=0.0))
    whole = bool(np.all(values == np.round(values)))
    order = (
        ("samples", "ms", "s")
        if whole and most > 1e6
        else ("ms", "samples", "s")
        if whole and most > 1e4
        else _UNITS[1:] + _UNITS[:1]
    )
    return [(unit, f"the last is {most:.10g}{', all are whole' if whole else ''}") for unit in order]


# ---- spikes and labels


def _clusters_file(folder: _Folder) -> str:
    for name in _CLUSTERS:
        if folder.has(name):
            return name
    raise DamagedFileError(f"{folder.where()} holds neither {_CLUSTERS[0]} nor {_CLUSTERS[2]}; {_REMEDY}")


def _samples(folder: _Folder, report: LoadReport) -> tuple[Ints, Ints]:
    """Ascending samples of spikes from the first one of the binary, and their clusters."""
    stored = folder.numbers(_SAMPLES, "iuf")
    where = folder.where(_SAMPLES)
    if stored.dtype.kind == "f" and not (stored == np.floor(stored)).all():
        raise DamagedFileError(f"{where} holds {stored.dtype} that are no numbers of samples; {_REMEDY}")
    if stored.size and (stored.min() < 0 or stored.max() >= 2**62):
        raise DamagedFileError(f"{where} reaches from {stored.min()} to {stored.max()}; {_REMEDY}")
    times = stored.astype(np.int64)  # unsigned numbers would wrap when something is subtracted
    return _paired(folder, times, report)


def _paired(folder: _Folder, times: Any, report: LoadReport) -> tuple[Any, Ints]:
    name = _clusters_file(folder)
    stored = folder.numbers(name)
    if len(stored) != len(times):
        raise DamagedFileError(
            f"{folder.where(name)} has {len(stored):,} entries for {len(times):,} spikes; {_REMEDY}"
        )
    if stored.size and (stored.min() < 0 or stored.max() >= 2**62):
        raise DamagedFileError(
            f"{folder.where(name)} reaches from {stored.min()} to {stored.max()}; {_REMEDY}"
        )
    clusters = stored.astype(np.int64)
    if name.endswith(("templates.npy",)):
        report.note("not curated", f"{name} in place of {_CLUSTERS[0]}: clusters are the sorter's templates")
    if (np.diff(times) < 0).any():
        report.note("unsorted spike times", folder.where(_SAMPLES if folder.has(_SAMPLES) else _SECONDS))
        order = np.argsort(times, kind="stable")
        return times[order], clusters[order]
    return times, clusters


def _cluster_tables(folder: _Folder) -> dict[str, Table]:
    """The tables of clusters, ``cluster_group`` and ``cluster_info`` first."""
    found = {}
    for name in folder.names():
        last = name.lower()
        if last.startswith(("cluster_", "cluster_groups", "clusters.metrics")) and last.endswith(
            TABLE_SUFFIXES
        ):
            found[name] = folder.table(name)
    order = ("cluster_group", "cluster_info")
    return dict(
        sorted(
            found.items(),
            key=lambda item: (not item[0].startswith(order[0]), not item[0].startswith(order[1]), item[0]),
        )
    )


def _rows(table: Table) -> list[int]:
    """The cluster of each row."""
    key = next((name for name in table.columns if name.lower() in ("cluster_id", "id", "cluster")), None)
    if key is None:
        return list(range(len(table)))
    with naming_damage(table.where, _REMEDY):
        ids = table.numbers(key)
    if not (np.isfinite(ids) & (ids == np.floor(ids)) & (np.abs(ids) < 2**53)).all():
        raise DamagedFileError(
            f"{table.where}: the column {key!r} holds what is no number of a cluster; {_REMEDY}"
        )
    return [int(one) for one in ids]


def _labels(folder: _Folder, report: LoadReport) -> tuple[dict[int, str], str]:
    """Labels by cluster, and who gave them: "curated", "sorter", or "" where no file says."""
    curated: dict[int, str] = {}
    guessed: dict[int, str] = {}
    is_curated = is_guessed = False
    for table in _cluster_tables(folder).values():
        rows = _rows(table)
        for name in table.columns:
            if name.lower() not in (*_CURATED, *_SORTED):
                continue
            texts = table.texts(name)
            found = {one: text.lower() for one, text in zip(rows, texts, strict=True) if text}
            if name.lower() in _CURATED:
                curated = {**found, **curated}
                is_curated = True
            else:
                guessed = {**found, **guessed}
                is_guessed = True
    if (
        is_curated
        and is_guessed
        and curated
        and curated == {one: guessed.get(one, "") for one in curated}
        and len(curated) > 1
    ):
        report.note("not curated", "the curator's labels are those of the sorter, cluster by cluster: a copy")
        return curated, "sorter"
    if is_curated:
        return curated, "curated"
    if is_guessed:
        report.note("not curated", "labels are the sorter's guess (KSLabel); nobody curated them")
        return guessed, "sorter"
    return {}, ""


def _kept(
    folder: _Folder, clusters: Ints, told: Mapping[str, Any], report: LoadReport
) -> dict[int, dict[str, Any]]:
    """Metadata of the clusters to keep, by id."""
    labels, source = _labels(folder, report)
    wanted = told.get("labels", _LABELS_BY_DEFAULT)
    wanted = [wanted] if isinstance(wanted, str) else list(wanted)
    wanted = [str(label).strip().lower() for label in wanted]
    ids, counts = np.unique(clusters, return_counts=True)
    known = {*labels.values(), _UNSORTED, "all", "good", "mua", "noise"}
    unknown = [label for label in wanted if label not in known]
    if unknown:
        raise ValueError(
            f"{folder.where()}: labels={unknown!r} are not there; clusters are {first_names(sorted(known))}"
        )
    meta = _metadata(folder)
    kept: dict[int, dict[str, Any]] = {}
    excluded: Counter[str] = Counter()
    for one, n in zip(ids.tolist(), counts.tolist(), strict=True):
        label = labels.get(one, _UNSORTED)
        if "all" not in wanted and label not in wanted:
            excluded[label] += 1
            report.skip(f"unit {one}", f"its label is {label!r}")
        elif n < told.get("min_spikes", 0):
            excluded["few spikes"] += 1
            report.skip(f"unit {one}", f"it has {n} spikes, min_spikes is {told['min_spikes']}")
        else:
            by = {"quality_by": "curator" if source == "curated" else "sorter"} if one in labels else {}
            kept[one] = {**meta.get(one, {}), "cell_id": str(one), "quality": label, **by, "n_spikes": n}
    for why, n in excluded.items():
        report.note("unit excluded", f"{n} {why}", n)
    stale = sorted(set(labels) - set(ids.tolist()))
    if stale:
        report.note("labels without spikes", f"clusters {first_names(list(map(str, stale)))}", len(stale))
    if not kept:
        raise ValueError(
            f"{folder.where()}: no cluster is left: {dict(excluded)}; labels={wanted!r} and "
            "min_spikes choose them"
        )
    return kept


def _metadata(folder: _Folder) -> dict[int, dict[str, Any]]:
    """Depth, channel, amplitude and the like by cluster."""
    found: dict[int, dict[str, Any]] = {}
    for table in _cluster_tables(folder).values():
        for name in table.columns:
            key = _META.get(name.lower().replace(" ", "_"))
            if key is None or not table.is_numeric(name):
                continue
            for one, value in zip(_rows(table), table.numbers(name).tolist(), strict=True):
                if np.isfinite(value):
                    found.setdefault(one, {}).setdefault(key, int(value) if key == "channel" else value)
    for one, row in _by_templates(folder).items():
        for key, value in row.items():
            found.setdefault(one, {}).setdefault(key, value)
    return found


def _by_templates(folder: _Folder) -> dict[int, dict[str, Any]]:
    """Channel and depth of templates where their largest amplitude is; those of clusters before curation."""
    needed = ("templates.npy", "channel_map.npy", "channel_positions.npy")
    if (
        not all(folder.has(name) for name in needed)
        or folder.tree.size(folder.base + needed[0]) > _MOST_TEMPLATES
    ):
        return {}
    waves, channels, places = folder.array(needed[0]), folder.numbers(needed[1]), folder.array(needed[2])
    if (
        waves.ndim != 3
        or places.ndim != 2
        or not waves.shape[2] == len(channels) == len(places)
        or not waves.size
    ):
        return {}  # sparse templates
    best = np.ptp(waves, axis=1).argmax(axis=1)
    return {
        k: {"channel": int(channels[row]), "depth": float(places[row, -1])}
        for k, row in enumerate(best.tolist())
    }


# ---- onsets


class _OneFile(FileTree):
    """A single file in place of a tree."""

    def __init__(self, path: Path) -> None:
        self.root, self.names = path.parent, (path.name,)
        self._close, self._zip, self._tar, self._prefix = ExitStack(), None, None, ""
        self._at = {path.name: path.name}
        self.cache = {}


def _onset_tables(folder: _Folder, given: Any) -> list[Table]:
    """Tables of onsets: one, or one per segment."""
    return [_onset_table(folder, one) for one in (given if _is_list(given) else [given])]


def _onset_table(folder: _Folder, given: Any) -> Table:
    if isinstance(given, (str, os.PathLike)):
        name = os.fspath(given)
        if folder.has(name):
            return folder.table(name)
        places = [Path(name), folder.root / name] if folder.root.is_dir() else [Path(name)]
        path = next((one for one in places if one.is_file()), None)
        if path is None:
            raise FileNotFoundError(f"onsets: there is no table {name!r}, in {folder.where()} or as a path")
        return read_table(_OneFile(path), path.name)
    return Table("onsets", columns_of(given, "onsets"), has_header=True, how="in memory")


def _trials(folder: _Folder, table: Table, told: Mapping[str, Any], rate: Fraction | None) -> Trials:
    """Presentations in s from the first sample of the binary."""
    stimulus, unit = told["stimulus"], told["onset_unit"]
    check_choice("onset_unit", unit, _UNITS)
    for name in (stimulus, told["onset"], told.get("offset"), told.get("condition")):
        if name is not None and name not in table.columns:
            raise ValueError(
                f"{table.where} has no column {name!r}; it has {first_names(list(table.columns))}"
            )
    if unit == "samples" and rate is None:
        raise ValueError("onset_unit='samples' needs the rate: tell sample_rate=<Hz>")
    first = _first(folder, told.get("first_sample", 0), unit, rate)
    offset = told.get("offset")
    used = {stimulus, told["onset"], offset, told.get("condition")}
    return Trials(
        table.texts(stimulus),
        _seconds(table, told["onset"], unit, rate, first),
        None if offset is None else _seconds(table, offset, unit, rate, first),
        None if told.get("condition") is None else table.texts(told["condition"]),
        {name: table.texts(name) for name in table.columns if name not in used},
    )


def _seconds(table: Table, name: str, unit: str, rate: Fraction | None, first: Fraction) -> Floats:
    """A column of times in s, after what the clock shows at the first sample was taken off exactly."""
    values = table.numbers(name)
    if unit != "samples" or rate is None:
        step = 1000 if unit == "ms" else 1
        return np.array(
            [
                float(Fraction(value) / step - first) if np.isfinite(value) else np.nan
                for value in values.tolist()
            ]
        )
    return np.array(
        [float(Fraction(value) / rate - first) if np.isfinite(value) else np.nan for value in values.tolist()]
    )


def _first(folder: _Folder, given: Any, unit: str, rate: Fraction | None) -> Fraction:
    """What the clock of the onsets shows at the first sample of the binary, in s."""
    if isinstance(given, str) and not given.strip().lstrip("+-").replace(".", "", 1).isdigit():
        if not folder.has(given):
            raise FileNotFoundError(f"first_sample: there is no file {folder.where(given)}")
        values = folder.numbers(given, "iuf")
        if not values.size or not np.isfinite(float(values[0])):
            raise DamagedFileError(f"{folder.where(given)} holds no first sample")
        if values.dtype.kind == "f":
            return Fraction(float(values[0]))  # Open Ephys: timestamps in s
        if rate is None:
            raise ValueError(
                "first_sample is a number of samples, which needs the rate: tell sample_rate=<Hz>"
            )
        return Fraction(int(values[0])) / rate
    value = Fraction(str(given)) if isinstance(given, str) else Fraction(given)
    if unit == "samples" and rate is not None:
        return value / rate
    return value / 1000 if unit == "ms" else value


# ---- sessions


def _sessions(folder: _Folder, told: Mapping[str, Any]) -> list[Session]:
    """One session, or one per table of onsets."""
    report = LoadReport()
    rate = _rate(folder, told)
    if folder.has(_SAMPLES):
        times, clusters = _samples(folder, report)
    else:
        seconds = folder.numbers(_SECONDS, "f").astype(np.float64)
        if not np.isfinite(seconds).all():
            raise DamagedFileError(f"{folder.where(_SECONDS)} holds NaN or infinity; {_REMEDY}")
        times, clusters = _paired(folder, seconds, report)
    kept = _kept(folder, clusters, told, report)
    tables = _onset_tables(folder, told["onsets"])
    cuts = _segments(folder, told, times, rate, len(tables))
    sounds = sounds_of(_sound_folder(folder, told["sounds"]))
    sessions: list[Session] = []
    for table, (begin, end, name) in zip(tables, cuts, strict=True):
        inside = slice(*np.searchsorted(times, [begin, np.inf if end is None else end]).tolist())
        part, of = times[inside], clusters[inside]
        in_s: Floats = _in_seconds(part, begin, rate) if folder.has(_SAMPLES) else part.astype(np.float64)
        trains = {str(one): in_s[of == one] for one in kept}
        trials = _trials(folder, table, told, rate)
        _check_clock(folder, trials, in_s)
        span = _span(folder, told, begin, end, rate)
        sessions.append(
            Session(
                trials,
                sounds,
                spikes=trains,
                observed=_observed(told.get("observed", {}), trains),
                span_s=span,
                unit_meta={str(one): dict(row) for one, row in kept.items()},
                name=name,
                facts={"source": folder.root.name, "sample_rate_hz": None if rate is None else float(rate)},
                report=report if not sessions else LoadReport(),
            )
        )
    return sessions


def _observed(given: Mapping[str, Any], trains: Mapping[str, Floats]) -> dict[str, Floats]:
    found = {str(unit): as_numbers(spans, "observed").reshape(-1, 2) for unit, spans in given.items()}
    unknown = [unit for unit in found if unit not in trains]
    if unknown:
        raise ValueError(
            f"observed names {first_names(unknown)}; the kept clusters are {first_names(list(trains))}"
        )
    return found


def _rate(folder: _Folder, told: Mapping[str, Any]) -> Fraction | None:
    given = told.get("sample_rate")
    stated = folder.params().get("sample_rate")
    if given is None and stated is None:
        return None
    if given is None and (isinstance(stated, bool) or not isinstance(stated, (int, float))):
        raise DamagedFileError(
            f"{folder.where('params.py')}: sample_rate is {stated!r:.80}; tell sample_rate=<Hz>"
        )
    if given is None:
        with naming_damage(folder.where("params.py"), "tell sample_rate=<Hz>"):
            return exact_rate(stated, "sample_rate")
    return exact_rate(given, "sample_rate")


def _in_seconds(samples: Ints, begin: int, rate: Fraction | None) -> Floats:
    """Samples after ``begin`` in s; the division of exact integers rounds once."""
    if rate is None:
        raise ValueError("spike times are numbers of samples, which need the rate: tell sample_rate=<Hz>")
    after = samples - begin
    if rate.denominator == 1 or float(rate) == rate:
        return np.asarray(after / float(rate))
    return np.array([float(one / rate) for one in after.tolist()])


def _segments(
    folder: _Folder, told: Mapping[str, Any], times: Any, rate: Fraction | None, n_tables: int
) -> list[tuple[int, int | None, str]]:
    """Begin, end and name of the recordings of the tables of onsets, in samples."""
    name = folder.root.stem
    lengths = told.get("segments")
    if lengths is None:
        if n_tables != 1 or told.get("segment") not in (None, 0):
            raise ValueError(
                f"{n_tables} tables of onsets, or a segment, need segments=[<length in samples of each "
                "recording>]"
            )
        return [(0, None, name)]
    if not folder.has(_SAMPLES):
        raise ValueError(
            "segments are lengths in samples, and spike times are in s: give the onsets on the joined clock"
        )
    values = np.asarray(lengths)
    if values.ndim != 1 or values.dtype.kind not in "iu" or not values.size or (values <= 0).any():
        raise ValueError(f"segments is a list of lengths in samples, got {lengths!r:.80}")
    ends = np.cumsum(values.astype(np.int64))
    if len(times) and int(times[-1]) >= int(ends[-1]):
        raise ValueError(
            f"segments hold {ends[-1]:,} samples, and the last spike is at {times[-1]:,}; give every "
            "recording"
        )
    cuts: list[tuple[int, int | None, str]] = [
        (int(end - length), int(end), f"{name} {k}")
        for k, (end, length) in enumerate(zip(ends, values.astype(np.int64), strict=True))
    ]
    if n_tables > 1 or "segment" not in told:
        if n_tables != len(cuts):
            raise ValueError(f"{n_tables} tables of onsets for {len(cuts)} segments")
        return cuts
    chosen = told["segment"]
    if isinstance(chosen, bool) or not isinstance(chosen, (int, np.integer)) or not 0 <= chosen < len(cuts):
        raise ValueError(f"segment is a number from 0 to {len(cuts) - 1}, got {chosen!r}")
    return [cuts[int(chosen)]]


def _span(
    folder: _Folder, told: Mapping[str, Any], begin: int, end: int | None, rate: Fraction | None
) -> tuple[float, float] | None:
    """Begin and end of a recording in s: told, of its segment, or by the size of the binary beside it."""
    if "span_s" in told:
        span = as_numbers(told["span_s"], "span_s").reshape(-1)
        if len(span) != 2 or not span[0] < span[1]:
            raise ValueError(f"span_s is (begin, end) in s, got {told['span_s']!r:.80}")
        return float(span[0]), float(span[1])
    if end is not None and rate is not None:
        return 0.0, float(Fraction(end - begin) / rate)
    params = folder.params()
    name, channels = params.get("dat_path"), params.get("n_channels_dat")
    if (
        isinstance(name, str)
        and folder.has(name)
        and type(channels) is int
        and channels > 0
        and rate is not None
    ):
        with naming_damage(folder.where("params.py"), _REMEDY):
            size = np.dtype(str(params.get("dtype", "int16"))).itemsize
        n = (folder.tree.size(folder.base + name) - int(params.get("offset", 0))) // (channels * size)
        return (0.0, float(Fraction(n) / rate)) if n > 0 else None
    return None


def _check_clock(folder: _Folder, trials: Trials, spikes: Floats) -> None:
    """Refuse onsets that all lie outside of the spikes: another unit, or another clock."""
    onsets = trials.onset_s[np.isfinite(trials.onset_s)]
    if onsets.size and spikes.size and (onsets.min() > spikes[-1] or onsets.max() < min(0.0, spikes[0])):
        raise ValueError(
            f"{folder.where()}: onsets reach from {onsets.min():g} to {onsets.max():g} s, and spikes from "
            f"{spikes[0]:g} to {spikes[-1]:g} s: the unit (onset_unit) or the clock (first_sample) of the "
            "onsets is another one"
        )


def _sound_folder(folder: _Folder, given: Any) -> Any:
    """A folder of sounds as it was told, or relative to the recording."""
    if isinstance(given, (str, os.PathLike)) and not Path(given).exists() and folder.root.is_dir():
        return folder.root / given
    return given
