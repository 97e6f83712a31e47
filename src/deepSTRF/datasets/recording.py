"""The data contract: what a recording holds, how its items are read, and how items become a batch.

`Recording` is the part of `deepSTRF.datasets.NeuralDataset` that loading, joining, saving and the alignment
check work on; views and constructors are added in `deepSTRF.datasets.dataset`. Stimuli are shared between
views, standardised when they are read, and identified by content hashes.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn, Self, overload

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepSTRF._text import check_encodable, check_name, printable
from deepSTRF._validation import check_choice, checked, to_tensor
from deepSTRF.datasets.responses import (
    ItemResponses,
    ResponseGrid,
    ResponseStorage,
    bytes_of,
    pack_responses,
    type_name,
)
from deepSTRF.datasets.selection import as_index
from deepSTRF.datasets.stored import FileArray, row_pieces
from deepSTRF.datasets.transforms import ResponseNormalization, StimulusStandardization
from deepSTRF.dsp.smoothing import hanning_smooth, hanning_window

__all__ = ["LoadReport", "Recording", "Stimulus", "StimulusList", "neural_collate"]

#: Kinds of responses, each with its unit where none is stated; from what is most special to what is least.
RESPONSE_KINDS = {"counts": "spikes per bin", "rate": "arbitrary units", "trace": "arbitrary units"}
#: Kind (None: that of the recording, counts being rates) and unit of normalised responses, by method.
NORMALIZED = {"max": (None, "fraction of maximum"), "zscore": ("trace", "z-score")}

#: No response is binned finer than this (50 kHz); a bin width in seconds is.
_SHORTEST_BIN_MS = 0.02
#: A smoothing window of more bins than this is a slip, and would not fit into memory.
_LONGEST_WINDOW = 1_000_000
#: Metadata nested deeper than this hold themselves, or are made to harm.
_DEEPEST = 50
#: Number of skipped entries that the printed form of a load report names before it only counts them.
_SHOWN = 10
#: Responses to a clip (as float32) and stimuli beyond these sizes are read in pieces where that will do.
WHOLE_CLIP_BYTES = 1 << 29
WHOLE_STIMULUS_BYTES = 1 << 27
#: Size of such a piece.
PIECE_OF_CLIP_BYTES = 1 << 26
#: Values of responses that short clips are read in together, and of one that is short.
STACKED_VALUES, SHORT_VALUES = 1 << 20, 1 << 16
#: Metadata that name a clip or a neuron.
_NAMES = {"cell_id", "name", "dataset"}


class Stimulus:
    """One stimulus (..., T) as it was loaded, in memory or in a file; its hash is computed at most once."""

    __slots__ = ("_digest", "held")

    def __init__(self, held: Tensor | FileArray) -> None:
        self.held = held
        self._digest: str | None = None

    @property
    def values(self) -> Tensor:
        """The stimulus in memory."""
        return torch.from_numpy(self.held.read()) if isinstance(self.held, FileArray) else self.held

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, without reading it."""
        return tuple(self.held.shape)

    def part(self, start: int, stop: int) -> Tensor:
        """Samples ``start`` up to ``stop`` of the last axis, in memory."""
        if isinstance(self.held, FileArray):
            return torch.from_numpy(self.held.read(None, start, stop))
        return self.held[..., start:stop]

    def cropped(self, start: int, stop: int) -> Stimulus:
        """The same of these samples; data are shared."""
        if isinstance(self.held, FileArray):
            return Stimulus(self.held.crop(start, stop))
        return Stimulus(self.held[..., start:stop])

    def rows(self, index: slice | list[int]) -> Stimulus:
        """The chosen rows (second last axis); a file, or a slice, shares the values."""
        if isinstance(self.held, FileArray):
            return Stimulus(self.held.pick(index))
        return Stimulus(self.held[..., index, :])

    def fingerprint(self) -> str:
        """SHA-256 (hex) over dtype, shape and bytes."""
        if self._digest is None:
            in_file = isinstance(self.held, FileArray)
            self._digest = _hash_stored(self.held) if in_file else _hash_tensor(self.held)  # type: ignore[arg-type]
        return self._digest


def _hash_tensor(values: Tensor) -> str:
    """SHA-256 (hex) over dtype, shape and little-endian bytes of a tensor."""
    array = values.detach().cpu().numpy()
    digest = hashlib.sha256(f"{type_name(array.dtype)}:{array.shape}:".encode())
    digest.update(bytes_of(array))
    return digest.hexdigest()


def _hash_stored(array: FileArray) -> str:
    """`_hash_tensor` of an array in a file, piece by piece."""
    digest = hashlib.sha256(f"{array.dtype.name}:{array.shape}:".encode())
    for piece in row_pieces(array):
        digest.update(np.ascontiguousarray(piece, dtype=piece.dtype.newbyteorder("<")).data)
    return digest.hexdigest()


class StimulusList(Sequence[Tensor]):
    """The stimuli of a dataset or view: a read-only sequence of tensors, each with its transform or None.

    What is read is a copy, safe to write into.
    """

    def __init__(
        self, stimuli: Sequence[Stimulus], transforms: Sequence[StimulusStandardization | None]
    ) -> None:
        self.stimuli = list(stimuli)
        self.transforms = list(transforms)
        self._digests: dict[int, str] = {}

    @classmethod
    def of(cls, values: Sequence[Any]) -> StimulusList:
        """Wrap tensors or arrays, without transforms."""
        tensors = [v if isinstance(v, Tensor) else to_tensor(np.asarray(v)) for v in values]
        return cls([Stimulus(tensor) for tensor in tensors], [None] * len(tensors))

    def __len__(self) -> int:
        return len(self.stimuli)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        clip = as_index(index, len(self), "clip")
        return self.shared(clip) if self.transforms[clip] is not None else self.shared(clip).clone()

    def shared(self, clip: int) -> Tensor:
        """What ``[clip]`` returns without the copy that makes it safe to write into."""
        transform, values = self.transforms[clip], self.stimuli[clip].values
        return values if transform is None else transform(values)

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(
            f"stims is a read-only sequence without {name!r}: collect stimuli in a list and assign it, "
            "ds.stims = [...]; list(ds.stims) is a list of tensors, as torch.stack needs it"
        )

    def raw(self) -> Sequence[Tensor]:
        """The stimuli as they were loaded, each read when it is asked for."""
        return _Loaded(self.stimuli)

    def take(self, clips: Sequence[int] | None) -> StimulusList:
        """The chosen clips (None: all); tensors and hashes are shared."""
        if clips is None:
            return StimulusList(self.stimuli, self.transforms)
        return StimulusList([self.stimuli[i] for i in clips], [self.transforms[i] for i in clips])

    def rows(self, index: slice | list[int]) -> StimulusList:
        """The chosen rows of every stimulus and transform; what clips share, they go on sharing."""
        stimuli = {id(one): one.rows(index) for one in self.stimuli}
        transforms = {id(one): one and one.rows(index) for one in self.transforms}
        return StimulusList(
            [stimuli[id(one)] for one in self.stimuli], [transforms[id(one)] for one in self.transforms]
        )

    def standardized(self, transform: StimulusStandardization) -> StimulusList:
        """The loaded stimuli under ``transform``, which replaces any earlier one."""
        return StimulusList(self.stimuli, [transform] * len(self.stimuli))

    @checked
    def fingerprint(self, clip: int) -> str:
        """Content hash of what ``[clip]`` returns."""
        if self.transforms[clip] is None:
            return self.stimuli[clip].fingerprint()
        if clip not in self._digests:
            self._digests[clip] = _hash_tensor(self.shared(clip))
        return self._digests[clip]

    def __repr__(self) -> str:
        shape = f", first {self.stimuli[0].shape}" if self.stimuli else ""
        return f"<{len(self)} stimuli{shape}>"


class _Loaded(Sequence[Tensor]):
    """Stimuli without their transforms."""

    def __init__(self, stimuli: Sequence[Stimulus]) -> None:
        self._stimuli = stimuli

    def __len__(self) -> int:
        return len(self._stimuli)

    def __getitem__(self, index: Any) -> Any:
        return self._stimuli[index].values


@checked
@dataclass
class LoadReport:
    """What a loader kept and skipped, and why.

    Attributes
    ----------
    kept : list of str
        Names of what is in the dataset (neurons, files or clips, depending on the loader).
    skipped : list of (str, str)
        Name and reason of everything that was left out.
    notes : list of (str, str, int)
        What a reader should know, as topic, text and count: ("overlapping trials", "trials 4 and 5", 1).

    Examples
    --------
    >>> report = LoadReport(kept=["cell_a"])
    >>> report.skip("cell_b", "the spike file is truncated")
    >>> report.note("clock drift", "20.0 ppm, corrected")
    >>> str(report)
    'kept 1, skipped 1: cell_b (the spike file is truncated); clock drift: 20.0 ppm, corrected'
    """

    kept: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)
    notes: list[tuple[str, str, int]] = field(default_factory=list)

    def keep(self, name: str) -> None:
        """Note that ``name`` is in the dataset."""
        self.kept.append(str(name))

    def skip(self, name: str, reason: str) -> None:
        """Note that ``name`` was left out, and why."""
        self.skipped.append((str(name), str(reason)))

    @checked
    def note(self, topic: str, text: str, count: int = 1) -> None:
        """Note something about the data under a topic, with how often it was found."""
        self.notes.append((str(topic), str(text), int(count)))

    def count(self, topic: str) -> int:
        """Sum of the counts noted under a topic; 0 where it was not found."""
        return sum(count for name, _, count in self.notes if name == topic)

    def __str__(self) -> str:
        text = f"kept {len(self.kept)}, skipped {len(self.skipped)}"
        entries = [f"{printable(name)} ({printable(reason)})" for name, reason in self.skipped[:_SHOWN]]
        if entries:
            more = len(self.skipped) - _SHOWN
            text += f": {'; '.join(entries)}" + (f"; and {more} more" if more > 0 else "")
        noted = [f"{printable(topic)}: {printable(what)}" for topic, what, _ in self.notes[:_SHOWN]]
        more = len(self.notes) - _SHOWN
        return "; ".join([text, *noted]) + (f"; and {more} more notes" if more > 0 else "")


class Recording(Dataset[dict[str, Any]]):
    """Stimuli, responses and metadata of one recording; the base of `NeuralDataset`, which documents them."""

    dt: float
    N_neurons: int
    stim_meta: list[dict[str, Any]]
    nrn_meta: list[dict[str, Any]]

    @checked
    def __init__(self, path: str | os.PathLike[str] | None, dt_ms: float) -> None:
        if path is not None and not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"path is a string, a path or None, got {type(path).__name__}")
        self.path = "" if path is None else os.fspath(path)
        self.dt = check_bin_width(dt_ms)
        self.name = type(self).__name__
        self.N_neurons = 0
        self.stim_meta, self.nrn_meta = [], []
        self.I: list[int] | None = None
        self.S_sel: list[int] | None = None
        self.smoothing_ms: float | None = None
        self.stim_normalization: dict[str, Any] | None = None
        self.facts: dict[str, Any] = {}
        self.features: dict[str, int] = {}
        self.load_report = LoadReport()
        self._stims = StimulusList([], [])
        self._storage = ResponseStorage([], 0)
        self._normalization: ResponseNormalization | None = None
        self._stated_kind: str | None = None
        self._stated_unit: str | None = None
        self._inferred_kind: str | None = None

    @classmethod
    def _blank(cls, dt_ms: float) -> Self:
        """An empty recording of this class, made without a loader's own constructor."""
        ds = cls.__new__(cls)
        Recording.__init__(ds, None, dt_ms)
        return ds

    def _view(self) -> Self:
        """A copy that shares stimuli and recorded responses."""
        view = copy.copy(self)
        view.stim_meta = [dict(row) for row in self.stim_meta]
        view.nrn_meta = [dict(row) for row in self.nrn_meta]
        view.facts, view.features = dict(self.facts), dict(self.features)
        view._stims = self._stims.take(None)
        return view

    # ---- what a recording holds

    @property
    def stims(self) -> Sequence[Tensor]:
        """One stimulus per clip."""
        return self._stims

    @stims.setter
    def stims(self, values: Sequence[Any]) -> None:
        self._stims = StimulusList.of(values)
        self.stim_normalization = None

    @property
    def responses(self) -> Sequence[Sequence[Tensor]]:
        """Grid of responses, ``responses[clip][neuron]``."""
        return ResponseGrid(self)

    @responses.setter
    def responses(self, values: Sequence[Any]) -> None:
        self._storage = pack_responses(values, copy=False)
        self._normalization = self._inferred_kind = None

    @property
    def recorded_kind(self) -> str:
        """Kind of the responses as recorded: the stated one, else what the values of the root look like."""
        if self._stated_kind is None and self._inferred_kind is None:
            self._inferred_kind = self._storage.kind()
        return self._stated_kind or self._inferred_kind or "counts"

    @property
    def recorded_unit(self) -> str:
        """Unit of the responses as recorded: the stated one, else that of their kind."""
        return self._stated_unit or RESPONSE_KINDS[self.recorded_kind]

    @property
    def response_kind(self) -> str:
        """ "counts", "rate" (not negative) or "trace", as read: smoothed counts are a rate."""
        kind = self.recorded_kind
        if self._normalization is not None:
            return NORMALIZED[self._normalization.method][0] or ("rate" if kind == "counts" else kind)
        window = self.smoothing_ms
        is_smooth = window is not None and len(hanning_window(window, self.dt)) > 1
        return "rate" if kind == "counts" and is_smooth else kind

    @response_kind.setter
    def response_kind(self, kind: str | None) -> None:
        check_choice("response_kind", kind, (None, *RESPONSE_KINDS))
        self._stated_kind = kind

    @property
    def response_unit(self) -> str:
        """Unit of the responses as read, such as "spikes per bin"; that of the method where normalised."""
        return (
            self.recorded_unit if self._normalization is None else NORMALIZED[self._normalization.method][1]
        )

    @response_unit.setter
    def response_unit(self, unit: str | None) -> None:
        if unit is not None and (not isinstance(unit, str) or not unit.strip()):
            raise TypeError(f"response_unit is a text such as 'spikes per bin' or 'uV', got {unit!r}")
        self._stated_unit = unit

    @property
    def response_storage(self) -> ResponseStorage:
        """The recorded rows behind `responses`, before smoothing and normalisation."""
        return self._storage

    @property
    def nrn_masks(self) -> Tensor:
        """(S, N) bool: True where a neuron has at least one real value for a clip."""
        return self._storage.masks

    @property
    def response_normalization(self) -> dict[str, Any] | None:
        """Method, scale (N,), offset (N,) and reference clips of `normalized`; None without it."""
        return None if self._normalization is None else self._normalization.record()

    def __len__(self) -> int:
        return len(self.stim_meta)

    @checked
    def n_bins(self, clip: int) -> int:
        """Number of neural time bins T of one clip."""
        clip = as_index(clip, len(self), "clip")
        responses = self._storage.clips[clip]
        return responses.n_bins if responses.heard.size else self.stimulus_bins(clip)

    @checked
    def stimulus_bins(self, clip: int) -> int:
        """Number of neural time bins that the stimulus of one clip covers."""
        return int(self._stims.stimuli[clip].shape[-1]) // self.samples_per_bin

    @checked
    def context_bins(self, clip: int) -> int:
        """Leading bins of a clip that are heard and not scored (`deepSTRF.datasets.windows`); else 0."""
        return self._storage.clips[as_index(clip, len(self), "clip")].context

    @property
    def samples_per_bin(self) -> int:
        """Stimulus samples per neural bin: 1 for spectrograms, the hop for waveforms."""
        return 1

    @checked
    def feature_rows(self, name: str) -> slice:
        """Rows of a named feature in stimuli (1, F, T); KeyError for a name that `features` has not."""
        if name not in self.features:
            known = ", ".join(map(repr, self.features)) or "none: its stimuli are unnamed"
            raise KeyError(f"no feature {printable(str(name))!r}; features of this dataset: {known}")
        names = list(self.features)
        first = sum(self.features[before] for before in names[: names.index(name)])
        return slice(first, first + self.features[name])

    def _take_features(self, chosen: Any) -> None:
        """Keep the rows of the named features, in their order; clips keep the hash of the whole."""
        names = [chosen] if isinstance(chosen, str) else list(chosen)
        names = [str(name) if isinstance(name, str) else name for name in names]
        if not names or len(set(names)) < len(names):
            raise ValueError(f"features is a list of distinct names, at least one, got {names!r:.200}")
        rows = [row for name in names for row in range(self._n_rows())[self.feature_rows(name)]]
        whole = rows == list(range(rows[0], rows[0] + len(rows)))
        index = slice(rows[0], rows[-1] + 1) if whole else rows
        for clip, row in enumerate(self.stim_meta):
            row.setdefault("source_sha256", self.source_fingerprint(clip))
        self._stims = self._stims.rows(index)
        self.features = {name: self.features[name] for name in names}
        if self.stim_normalization is not None:
            records = [t.record() for t in dict.fromkeys(self._stims.transforms) if t is not None]
            self.stim_normalization = records[0] if len(records) == 1 else {"datasets": records}

    def _n_rows(self) -> int:
        return sum(self.features.values())

    @checked
    def fingerprint(self, clip: int) -> str:
        """SHA-256 (hex) of the stimulus as ``stims[clip]`` returns it: bytes, shape and dtype."""
        return self._stims.fingerprint(as_index(clip, len(self), "clip"))

    @checked
    def source_fingerprint(self, clip: int) -> str:
        """Hash of the sound behind a clip, over which splits are hashed.

        ``stim_meta[clip]["source_sha256"]`` if given, else the hash of the stimulus before standardisation.
        """
        clip = as_index(clip, len(self), "clip")
        source = self.stim_meta[clip].get("source_sha256")
        return source if isinstance(source, str) else self._stims.stimuli[clip].fingerprint()

    def clip_fingerprint(self, clip: int, *, source: bool = False) -> str:
        """SHA-256 (hex) of one clip as recorded: its stimulus and all its responses.

        Before standardisation, smoothing and normalisation. ``source``: of the sound (`source_fingerprint`)
        in place of the stimulus that was made from it.
        """
        clip = as_index(clip, len(self), "clip")
        stimulus = self.source_fingerprint(clip) if source else self._stims.stimuli[clip].fingerprint()
        return hashlib.sha256(f"{stimulus} {self._storage.clips[clip].digest}".encode()).hexdigest()

    def content_fingerprint(self, *, source: bool = False) -> str:
        """SHA-256 (hex) of a recording or view: all clips, in any order, the neurons' names and the bin.

        ``source`` as in `clip_fingerprint`: it does not depend on how spectrograms are made.
        """
        clips = sorted(self.clip_fingerprint(clip, source=source) for clip in range(len(self)))
        names = [str(row.get("cell_id", row.get("name", ""))) for row in self.nrn_meta]
        return hashlib.sha256(json.dumps([repr(float(self.dt)), names, clips]).encode()).hexdigest()

    # ---- reading

    @checked
    def shared_stimulus(self, clip: int) -> Tensor:
        """``stims[clip]`` without a copy: what reads it must not write into it."""
        return self._stims.shared(clip)

    @checked
    def stimulus_part(self, clip: int, start: int, stop: int) -> Tensor:
        """The stimulus of one clip in bins ``start`` up to ``stop``, of which no more is read."""
        per_bin, stimulus = self.samples_per_bin, self._stims.stimuli[clip]
        values = stimulus.part(start * per_bin, stop * per_bin)
        transform = self._stims.transforms[clip]
        return values if transform is None else transform(values)

    def scored_stimuli(self, clips: Sequence[int], *, loaded: bool = False) -> Iterator[Tensor]:
        """Stimuli without context bins, very long ones in pieces; ``loaded``: before standardisation."""
        for clip in clips:
            stimulus, first = self._stims.stimuli[clip], self._storage.clips[clip].context
            n_bytes = 4 * math.prod(stimulus.shape)
            if not first and n_bytes <= WHOLE_STIMULUS_BYTES:
                yield stimulus.values if loaded else self._stims.shared(clip)
                continue
            last = self.stimulus_bins(clip)
            whole = n_bytes <= WHOLE_STIMULUS_BYTES or (self.samples_per_bin > 1 and not loaded)
            step = last if whole else max(1, last * PIECE_OF_CLIP_BYTES // n_bytes)
            for start in range(first, last, max(1, step)):
                stop = min(start + step, last)
                if loaded:
                    per_bin = self.samples_per_bin
                    yield self._stims.stimuli[clip].part(start * per_bin, stop * per_bin)
                else:
                    yield self.stimulus_part(clip, start, stop)

    @checked
    def pieces(self, clip: int) -> list[tuple[int, int]]:
        """Bins (start, stop) that one clip is read in: all of them, or those of one piece after the other.

        A clip whose responses would take more than `WHOLE_CLIP_BYTES` as float32 is cut.
        """
        n_bins, responses = self.n_bins(clip), self._storage.clips[clip]
        per_bin = 4 * self.N_neurons * max(1, responses.max_repeats)
        if n_bins * per_bin <= WHOLE_CLIP_BYTES:
            return [(0, n_bins)]
        step = max(1, PIECE_OF_CLIP_BYTES // per_bin)
        return [(start, min(start + step, n_bins)) for start in range(0, n_bins, step)]

    @property
    def in_pieces(self) -> bool:
        """Whether any clip is so long that it is read in several `pieces`."""
        most = WHOLE_CLIP_BYTES // (4 * max(1, self.N_neurons))
        return any(
            len(clip.heard) == 0 or clip.n_bins * clip.max_repeats > most for clip in self._storage.clips
        ) and any(len(self.pieces(clip)) > 1 for clip in range(len(self)))

    def _read(
        self, clip: int, start: int = 0, stop: int | None = None, neurons: npt.NDArray[np.int64] | None = None
    ) -> tuple[npt.NDArray[np.int64], Tensor]:
        """Neurons with data for a clip (H,) and their (H, R, T) values after smoothing and normalisation.

        ``neurons``: the recorded ones among these, which are counted from 0.
        """
        responses = self._storage.clips[clip]
        own = responses.heard
        if neurons is not None:
            responses = responses.take(neurons)
            own = neurons[responses.heard]
        n_bins = responses.n_bins
        stop = n_bins if stop is None else min(stop, n_bins)
        window = self.smoothing_ms
        if window is None or (stop - start == n_bins and responses.whole is None):
            return responses.heard, self._transformed(torch.from_numpy(responses.values(start, stop)), own)
        margin = len(hanning_window(window, self.dt)) // 2
        near, before = responses.around(start, stop, margin)
        values = self._transformed(torch.from_numpy(near), own)[..., before : before + stop - start].clone()
        values[..., : max(0, responses.context - start)] = torch.nan
        return responses.heard, values

    def _transformed(self, values: Tensor, neurons: npt.NDArray[np.int64]) -> Tensor:
        if self.smoothing_ms is not None:
            values = hanning_smooth(values, self.smoothing_ms, self.dt)
        return values if self._normalization is None else self._normalization(values, neurons)

    @checked
    def read_neuron(self, clip: int, neuron: int) -> Tensor:
        """(R, T) response of one neuron to one clip, or the (1, 1) NaN of a missing pair."""
        responses = self._storage.clips[clip]
        if responses.whole is not None:
            heard, found = self._read(clip, neurons=np.array([neuron]))
            return found[0] if len(heard) else torch.full((1, 1), torch.nan)
        values = responses.neuron(neuron)
        if values is None:
            return torch.full((1, 1), torch.nan)
        return self._transformed(torch.from_numpy(values)[None], np.array([neuron]))[0]

    @checked
    def read_item(self, clip: int) -> ItemResponses:
        """The N responses to one clip as the list that items hold."""
        heard, values = self._read(clip)
        counts = self._storage.clips[clip].counts.tolist()
        return ItemResponses(self.N_neurons, torch.from_numpy(heard), values, counts, self.n_bins(clip))

    @checked
    def recorded_block(self, clip: int) -> tuple[Tensor, Tensor]:
        """Neurons that were recorded for a clip (H,), and their rows (H, R, T) of `response_block`."""
        heard, values = self._read(clip := as_index(clip, len(self), "clip"))
        return torch.from_numpy(heard), values if len(heard) else torch.empty(0, 1, self.n_bins(clip))

    @checked
    def response_block(
        self, clip: int, start: int = 0, stop: int | None = None, neurons: slice | None = None
    ) -> Tensor:
        """All responses to one clip as one (N, R, T) tensor, NaN where nothing was recorded.

        ``start``, ``stop`` and ``neurons`` read only those bins and neurons.
        """
        clip = as_index(clip, len(self), "clip")
        chosen = None if neurons is None else np.arange(self.N_neurons)[neurons]
        n_neurons = self.N_neurons if chosen is None else len(chosen)
        heard, values = self._read(clip, start, stop, chosen)
        if len(heard) == n_neurons and len(heard):
            return values
        repeats = values.shape[1] if len(heard) else 1
        n_bins = len(range(self.n_bins(clip))[start:stop])
        block = torch.full((n_neurons, repeats, n_bins), torch.nan)
        if len(heard):
            block[torch.from_numpy(heard)] = values
        return block

    def has_all_bins(self, clip: int) -> bool:
        """Whether it is known, without reading, that every neuron has a value in every bin of a clip."""
        held = self._storage.clips[clip]
        complete = held.heard.size == self.N_neurons and not held.has_missing and not held.context
        return complete and self._normalization is None

    def response_stacks(self, clips: Sequence[int]) -> Iterator[tuple[list[int], Tensor]]:
        """`response_block` of many short clips at once: clips of one shape and their (B, N, R, T).

        Clips that lack a neuron or a repeat, lie in a file or are windows are left out.
        """
        alike: dict[Any, list[int]] = {}
        for clip in clips:
            held = self._storage.clips[clip]
            if held.heard.size == self.N_neurons and held.data.size <= SHORT_VALUES and held.is_block:
                alike.setdefault((held.data.shape, held.data.dtype), []).append(clip)
        for (shape, kind), chosen in alike.items():
            size = max(1, STACKED_VALUES // max(1, math.prod(shape)))
            for some in (chosen[start : start + size] for start in range(0, len(chosen), size)):
                held_here = [self._storage.clips[clip] for clip in some]
                rows = [one.data for one in held_here if isinstance(one.data, np.ndarray)]
                values = np.stack(rows, dtype=np.float32)
                if kind != np.float32 and any(one.has_missing for one in held_here):
                    values[values == np.iinfo(kind).min] = np.nan
                block = values.reshape(len(some), self.N_neurons, -1, shape[1])
                yield some, self._transformed(torch.from_numpy(block), held_here[0].heard)

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Item of one clip, or for a slice or list of clips a dictionary of lists."""
        several = isinstance(index, (slice, list, tuple, range)) or np.ndim(index) == 1
        if not several:
            return self._item(as_index(index, len(self), "clip"))
        clips = range(len(self))[index] if isinstance(index, slice) else list(index)
        items = [self._item(as_index(clip, len(self), "clip")) for clip in clips]
        keys = items[0] if items else ("stims", "responses", "valid_mask", "stim_meta")
        return {key: [item[key] for item in items] for key in keys}

    def _item(self, clip: int) -> dict[str, Any]:
        return {
            "stims": self.stims[clip],
            "responses": self.read_item(clip),
            "valid_mask": self.nrn_masks[clip].clone(),
            "stim_meta": self.stim_meta[clip],
        }

    # ---- checking

    def validate(self) -> None:
        """Check the data contract, as loaders do last; errors name the clip and the neuron."""
        self._check_contents()
        self._check_lengths()

    def _check_contents(self) -> None:
        """One entry per clip and per neuron, of the right types; finite stimuli."""
        check_bin_width(self.dt)
        check_name("name", self.name)
        n_clips = len(self.stim_meta)
        if len(self.stims) != n_clips or len(self.response_storage) != n_clips:
            raise ValueError(
                f"stims ({len(self.stims)}), responses ({len(self.response_storage)}) and stim_meta "
                f"({n_clips}) need one entry per clip"
            )
        if not is_integer(self.N_neurons) or self.N_neurons < 0:
            raise TypeError(f"N_neurons is a non-negative integer, got {self.N_neurons!r}")
        if len(self.nrn_meta) != self.N_neurons:
            raise ValueError(f"nrn_meta has {len(self.nrn_meta)} entries, N_neurons is {self.N_neurons}")
        if self.response_storage.n_neurons != self.N_neurons:
            raise ValueError(
                f"responses hold {self.response_storage.n_neurons} neurons per clip, N_neurons is "
                f"{self.N_neurons}; give every clip one entry per neuron (None where it was not recorded)"
            )
        for name, rows in (("stim_meta", self.stim_meta), ("nrn_meta", self.nrn_meta)):
            for index, row in enumerate(rows):
                if not isinstance(row, dict):
                    raise TypeError(f"{name}[{index}] is a dictionary, got {type(row).__name__}")
                for key in _NAMES.intersection(row):
                    check_name(f"{name}[{index}][{key!r}]", row[key])
                check_metadata(row, f"{name}[{index}]")
        if self.smoothing_ms is not None:
            check_window(self.smoothing_ms, self.dt)
        for clip in range(n_clips):
            self._check_stimulus(clip)
        self._check_features()
        self._inferred_kind = self._storage.kind()  # now: a view shows only some of the values
        kinds = list(RESPONSE_KINDS)
        if kinds.index(self.recorded_kind) < kinds.index(self._inferred_kind):
            what = "no whole numbers" if self._inferred_kind == "rate" else "negative values"
            raise ValueError(
                f"response_kind={self.recorded_kind!r}, but the responses hold {what}: they are "
                f"{self._inferred_kind!r}, which response_kind=None finds by itself"
            )

    def _check_features(self) -> None:
        """Names and rows of the features; together they are the rows of every stimulus (1, F, T)."""
        for feature, count in self.features.items():
            check_name("features", feature)
            if not is_integer(count) or count < 1:
                raise ValueError(f"feature {feature!r} has {count!r} rows; it needs at least one")
        for clip, stimulus in enumerate(self._stims.stimuli if self.features else ()):
            shape, total = stimulus.shape, self._n_rows()
            if len(shape) != 3 or shape[-2] != total:
                raise ValueError(
                    f"clip {clip}: the features {self.features} are {total} rows of a stimulus (1, F, T), "
                    f"got {shape}"
                )

    def _check_stimulus(self, clip: int) -> None:
        """The stimulus of one clip; one in a file is read piece by piece."""
        stimulus, where = self._stims.stimuli[clip], f"clip {clip}"
        if not isinstance(stimulus.held, FileArray):
            _check_stimulus(self.shared_stimulus(clip), where)
        elif stimulus.held.dtype != np.float32 or stimulus.held.ndim < 2 or not stimulus.held.size:
            raise TypeError(
                f"{where}: a stimulus is float32 (..., T), got {stimulus.held.dtype} {stimulus.shape}"
            )
        elif not all(np.isfinite(piece).all() for piece in row_pieces(stimulus.held)):
            raise ValueError(f"{where}: the stimulus holds NaN or infinite values; stimuli must be finite")

    def _check_lengths(self) -> None:
        """Stimulus and responses of every clip cover the same number of bins."""
        for clip, responses in enumerate(self.response_storage.clips):
            bins = self.stimulus_bins(clip)
            if responses.heard.size and responses.n_bins != bins:
                reaching = responses.first_reaching(bins) if responses.n_bins > bins else None
                neuron = int(responses.heard[0]) if reaching is None else reaching
                raise ValueError(
                    f"clip {clip}: the stimulus has {bins} bins of {self.dt:g} ms, the neural responses "
                    f"(neuron {neuron}) have {responses.n_bins}; cut both to the same length, e.g. with "
                    "from_arrays(..., on_length_mismatch='trim')"
                )


def check_bin_width(dt_ms: Any) -> float:
    """``dt_ms`` as a float; ValueError or TypeError when it is no positive number."""
    value = dt_ms.item() if isinstance(dt_ms, (np.generic, Tensor)) and np.ndim(dt_ms) == 0 else dt_ms
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"dt_ms is a number of milliseconds, got {type(dt_ms).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"dt_ms is a positive number of milliseconds, got {value!r}")
    if value < _SHORTEST_BIN_MS:
        raise ValueError(
            f"dt_ms is the bin width in milliseconds, got {value!r}: are these seconds? Then "
            f"dt_ms={1000 * value:g}"
        )
    return float(value)


def check_window(window_ms: Any, dt_ms: float) -> None:
    """Refuse a width of a smoothing window that is no positive number, or of more than `_LONGEST_WINDOW`."""
    if isinstance(window_ms, (int, float)) and window_ms > _LONGEST_WINDOW * dt_ms:
        raise ValueError(
            f"window_ms={window_ms!r:.40} is longer than {_LONGEST_WINDOW:,} bins; it is a width in ms, such "
            "as 21.0"
        )
    hanning_window(window_ms, dt_ms)


def check_metadata(value: Any, where: str, depth: int = 0) -> None:
    """Refuse text that no file can hold, and nesting without an end."""
    if depth > _DEEPEST:
        raise ValueError(f"{where[:80]} is nested more than {_DEEPEST} levels deep; flatten it")
    if isinstance(value, str):
        check_encodable(where, value)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_metadata(key, f"a key of {where}", depth)
            if isinstance(item, (str, Mapping, list, tuple)):
                check_metadata(item, f"{where}[{key!r}]", depth + 1)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            if isinstance(item, (str, Mapping, list, tuple)):
                check_metadata(item, f"{where}[{index}]", depth + 1)


def is_integer(value: Any) -> bool:
    """Whether a value is a Python or numpy integer and no boolean."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _check_stimulus(values: Tensor, where: str) -> None:
    """Refuse a stimulus that is no float32 tensor, is empty, or holds NaN or infinity."""
    if not isinstance(values, Tensor):
        raise TypeError(f"{where}: a stimulus is a torch tensor, got {type(values).__name__}")
    if values.dtype != torch.float32:
        raise TypeError(f"{where}: a stimulus is float32, got {values.dtype}; convert it with .float()")
    if values.ndim < 2 or values.numel() == 0:
        raise ValueError(f"{where}: a stimulus has axes (..., T) and is not empty, got {tuple(values.shape)}")
    if np.isfinite(values.detach().cpu().numpy()).all():  # numpy: torch's threads cost more than the check
        return
    bad = ~torch.isfinite(values)
    first = tuple(int(i) for i in bad.nonzero()[0])
    raise ValueError(
        f"{where}: {int(bad.sum())} of {values.numel()} values are NaN or infinite, the first at {first}; "
        "stimuli must be finite: repair them, or leave the clip out"
    )


@checked
def neural_collate(batch: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Stack items into a batch; pass it to a ``DataLoader`` as ``collate_fn``.

    Parameters
    ----------
    batch : sequence of dict
        Items ``ds[i]`` of datasets with the same neurons.

    Returns
    -------
    dict
        In this order: ``'stims'`` (B, ..., T_max), zero padded at the end of the last axis; ``'responses'``
        (B, N, R_max, T_max), dtype and device of the stimuli, NaN padded; ``'valid_mask'`` bool of the same
        shape, true where a response is a number; ``'stim_meta'`` list of B dictionaries; any other key of the
        first item as a list of B values.

    Raises
    ------
    ValueError
        When the batch is empty, items have different numbers of neurons, or stimuli differ in an axis other
        than time.

    Examples
    --------
    >>> from deepSTRF.datasets import NeuralDataset
    >>> ds = NeuralDataset.from_arrays(
    ...     [torch.rand(4, 6), torch.rand(4, 9)], [torch.ones(2, 3, 6), torch.ones(2, 5, 9)], dt_ms=5.0
    ... )
    >>> batch = neural_collate([ds[0], ds[1]])
    >>> tuple(batch["stims"].shape), tuple(batch["responses"].shape)
    ((2, 1, 4, 9), (2, 2, 5, 9))
    """
    if len(batch) == 0:
        raise ValueError("a batch needs at least one item")
    stims = _stack_stimuli([item["stims"] for item in batch])
    responses = _stack_responses([item["responses"] for item in batch], stims)
    out: dict[str, Any] = {
        "stims": stims,
        "responses": responses,
        "valid_mask": ~torch.isnan(responses),
        "stim_meta": [item["stim_meta"] for item in batch],
    }
    for key in batch[0]:
        if key not in out:
            out[key] = [item[key] for item in batch]
    return out


def _stack_stimuli(stims: Sequence[Tensor]) -> Tensor:
    shapes = {tuple(stimulus.shape[:-1]) for stimulus in stims}
    if len(shapes) > 1:
        raise ValueError(
            f"stimuli of a batch may differ in the last axis only, got leading axes {sorted(shapes)}"
        )
    lengths = [int(stimulus.shape[-1]) for stimulus in stims]
    if len(set(lengths)) == 1:
        return torch.stack(list(stims))
    out = stims[0].new_zeros((len(stims), *stims[0].shape[:-1], max(lengths)))
    for row, stimulus, length in zip(out, stims, lengths, strict=True):
        row[..., :length] = stimulus
    return out


def _stack_responses(items: Sequence[Sequence[Tensor]], like: Tensor) -> Tensor:
    counts = [len(item) for item in items]
    if len(set(counts)) > 1:
        raise ValueError(
            f"items of one batch must have the same neurons, got {counts} neurons; make both from one view "
            "(ds.select(neurons=...)) or join recordings with concat_neural_datasets"
        )
    quick = [item if isinstance(item, ItemResponses) and item.is_untouched() else None for item in items]
    repeats, bins = 1, 1
    for item, block in zip(items, quick, strict=True):
        if block is not None:
            repeats, bins = max(repeats, block.values.shape[1]), max(bins, block.n_bins)
        else:
            repeats = max([repeats, *(response.shape[0] for response in item)])
            bins = max([bins, *(response.shape[1] for response in item)])
    shape = (len(items), counts[0], repeats, bins)
    out = torch.full(shape, torch.nan, dtype=like.dtype, device=like.device)
    for slab, item, block in zip(out, items, quick, strict=True):
        if block is not None:
            _, r, t = block.values.shape
            index = slice(None) if len(block.heard) == len(block) else block.heard.to(like.device)
            slab[index, :r, :t] = block.values.to(like)
            continue
        for row, response in zip(slab, item, strict=True):
            row[: response.shape[0], : response.shape[1]] = response
    return out
