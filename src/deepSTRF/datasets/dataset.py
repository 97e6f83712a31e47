"""`neural_collate`: from items of a dataset to one padded batch."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepSTRF.datasets.responses import (
    ItemResponses,
    ResponseGrid,
    ResponseStorage,
    StimulusList,
    as_array,
    check_outer,
    pack_responses,
)
from deepSTRF.datasets.selection import as_index, resolve_selection
from deepSTRF.datasets.transforms import ResponseNormalization, fit_normalization, fit_standardization
from deepSTRF.dsp.smoothing import hanning_smooth, hanning_window

if TYPE_CHECKING:
    from deepSTRF.datasets.alignment import AlignmentReport

__all__ = ["AudioNeuralDataset", "LoadReport", "NeuralDataset", "neural_collate"]

# ------------------------------------------------------------------------------
# Checks of the data contract, each with the clip and neuron it is about and the call that mends it.


#: Largest distance of audio_fs * dt / 1000 from an integer that still counts as one (float rounding of dt).
HOP_TOLERANCE = 1e-6


def check_bin_width(dt_ms: Any) -> float:
    """Return ``dt_ms`` as a float; ValueError or TypeError when it is no positive number."""
    value = dt_ms.item() if isinstance(dt_ms, (np.generic, Tensor)) and np.ndim(dt_ms) == 0 else dt_ms
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"dt_ms is a number of milliseconds, got {type(dt_ms).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"dt_ms is a positive number of milliseconds, got {value!r}")
    return float(value)


def plain_integer(value: Any) -> Any:
    """A numpy or torch integer as a Python one; anything else as it is."""
    if isinstance(value, (np.integer, Tensor)) and np.ndim(value) == 0:
        return value.item()
    return value


def _is_count(value: Any) -> bool:
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def check_stimulus(values: Tensor, where: str) -> None:
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


def check_dataset(ds: NeuralDataset) -> None:
    """Check everything the base contract promises."""
    check_bin_width(ds.dt)
    n_clips = len(ds.stim_meta)
    if len(ds.stims) != n_clips or len(ds.response_storage) != n_clips:
        raise ValueError(
            f"stims ({len(ds.stims)}), responses ({len(ds.response_storage)}) and stim_meta ({n_clips}) "
            "need one entry per clip"
        )
    if not _is_count(ds.N_neurons) or ds.N_neurons < 0:
        raise TypeError(f"N_neurons is a non-negative integer, got {ds.N_neurons!r}")
    if len(ds.nrn_meta) != ds.N_neurons:
        raise ValueError(f"nrn_meta has {len(ds.nrn_meta)} entries, N_neurons is {ds.N_neurons}")
    if ds.response_storage.n_neurons != ds.N_neurons:
        raise ValueError(
            f"responses hold {ds.response_storage.n_neurons} neurons per clip, N_neurons is {ds.N_neurons}; "
            "give every clip one entry per neuron (None where it was not recorded)"
        )
    _check_metadata(ds.stim_meta, "stim_meta")
    _check_metadata(ds.nrn_meta, "nrn_meta")
    for clip, stimulus in enumerate(ds.stims):
        check_stimulus(stimulus, f"clip {clip}")


def _check_metadata(meta: Sequence[Any], name: str) -> None:
    for index, row in enumerate(meta):
        if not isinstance(row, dict):
            raise TypeError(f"{name}[{index}] is a dictionary, got {type(row).__name__}")


def check_time(ds: NeuralDataset) -> None:
    """Stimulus and responses of every clip must cover the same number of bins."""
    for clip, responses in enumerate(ds.response_storage.clips):
        bins = ds.stimulus_bins(clip)
        if responses.heard.size and responses.n_bins != bins:
            reaching = responses.first_reaching(bins) if responses.n_bins > bins else None
            neuron = int(responses.heard[0]) if reaching is None else reaching
            raise ValueError(
                f"clip {clip}: the stimulus has {bins} bins of {ds.dt:g} ms, the neural responses (neuron "
                f"{neuron}) have {responses.n_bins}; cut both to the same length, e.g. with "
                "from_arrays(..., on_length_mismatch='trim')"
            )


def check_audio(ds: AudioNeuralDataset) -> None:
    """Check what audio datasets promise besides."""
    if not _is_count(ds.F) or ds.F < 1:
        raise TypeError(f"F is the number of frequency bands, a positive integer, got {ds.F!r}")
    if ds.hearing_range_hz is not None:
        low, high = ds.hearing_range_hz
        if not 0 < low < high:
            raise ValueError(f"hearing_range_hz needs 0 < low < high, got {ds.hearing_range_hz}")
    if ds.frequencies_hz is not None and tuple(ds.frequencies_hz.shape) != (ds.F,):
        raise ValueError(f"frequencies_hz has shape {tuple(ds.frequencies_hz.shape)}, F is {ds.F}")
    if ds.return_waveform:
        check_grid(ds)
        return
    for clip, stimulus in enumerate(ds.stims):
        if stimulus.ndim != 3 or stimulus.shape[-2] != ds.F:
            raise ValueError(f"clip {clip}: a spectrogram is (1, F={ds.F}, T), got {tuple(stimulus.shape)}")


def check_hop(audio_fs: Any, dt_ms: float) -> int:
    """Return the samples per bin; ValueError when it is no integer."""
    if not _is_count(audio_fs) or audio_fs < 1:
        raise TypeError(f"audio_fs is a sample rate in Hz, a positive integer, got {audio_fs!r}")
    samples = audio_fs * dt_ms / 1000.0
    hop = round(float(samples))
    if hop < 1 or abs(samples - hop) > HOP_TOLERANCE:
        near = max(1, hop) * 1000.0 / dt_ms
        raise ValueError(
            f"audio_fs={audio_fs} Hz gives {samples:g} samples per bin of {dt_ms:g} ms, which is not an "
            f"integer number of samples; resample the audio, e.g. to {near:g} Hz, or choose another bin width"
        )
    return hop


def check_grid(ds: AudioNeuralDataset) -> None:
    """The grid lock of waveform mode: mono, a whole number of bins, as long as the responses."""
    hop = check_hop(ds.audio_fs, ds.dt)
    for clip, stimulus in enumerate(ds.stims):
        if stimulus.ndim != 2 or stimulus.shape[0] != 1:
            raise ValueError(f"clip {clip}: a waveform is (1, T_audio), mono, got {tuple(stimulus.shape)}")
        if stimulus.shape[-1] % hop:
            raise ValueError(
                f"clip {clip}: {stimulus.shape[-1]} samples are no multiple of the {hop} samples of one bin; "
                f"crop to {stimulus.shape[-1] // hop * hop} samples or pad with zeros"
            )


# ------------------------------------------------------------------------------
# What a loader kept, what it skipped, and why.


#: How many skipped entries the printed form names before it only counts.
_SHOWN = 10


@dataclass
class LoadReport:
    """What a loader kept and skipped: nothing is dropped silently.

    Attributes
    ----------
    kept : list of str
        Names of what is in the dataset (neurons, files, clips: the loader says which).
    skipped : list of (str, str)
        Name and reason of everything that was left out.

    Examples
    --------
    >>> report = LoadReport(kept=["cell_a"])
    >>> report.skip("cell_b", "the spike file is truncated")
    >>> str(report)
    'kept 1, skipped 1: cell_b (the spike file is truncated)'
    """

    kept: list[str] = field(default_factory=list)
    skipped: list[tuple[str, str]] = field(default_factory=list)

    def keep(self, name: str) -> None:
        """Note that ``name`` is in the dataset."""
        self.kept.append(str(name))

    def skip(self, name: str, reason: str) -> None:
        """Note that ``name`` was left out, and why."""
        self.skipped.append((str(name), str(reason)))

    def __str__(self) -> str:
        text = f"kept {len(self.kept)}, skipped {len(self.skipped)}"
        if not self.skipped:
            return text
        named = "; ".join(f"{name} ({reason})" for name, reason in self.skipped[:_SHOWN])
        more = len(self.skipped) - _SHOWN
        return f"{text}: {named}" + (f"; and {more} more" if more > 0 else "")


# ------------------------------------------------------------------------------
# What a dataset holds and how it is read: the part of `NeuralDataset` below views and conveniences.


Index = npt.NDArray[np.int64]


class Recording(Dataset[dict[str, Any]]):
    """Stimuli, responses and metadata of one recording; users meet it as `NeuralDataset`."""

    dt: float
    N_neurons: int
    stim_meta: list[dict[str, Any]]
    nrn_meta: list[dict[str, Any]]

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
        self.load_report = LoadReport()
        self._stims = StimulusList([], [])
        self._storage = ResponseStorage([], 0)
        self._normalization: ResponseNormalization | None = None

    # ---- what a dataset holds

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
        self._normalization = None

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
        """Method, scale (N,), offset (N,) and reference clips of `normalize_responses`; None without it."""
        return None if self._normalization is None else self._normalization.record()

    def __len__(self) -> int:
        return len(self.stim_meta)

    def n_bins(self, clip: int) -> int:
        """Number of neural time bins T of one clip."""
        clip = as_index(clip, len(self), "clip")
        responses = self._storage.clips[clip]
        return responses.n_bins if responses.heard.size else self.stimulus_bins(clip)

    def stimulus_bins(self, clip: int) -> int:
        """Number of neural time bins that the stimulus of one clip covers."""
        return int(self._stims.stimuli[clip].values.shape[-1]) // self.samples_per_bin

    @property
    def samples_per_bin(self) -> int:
        """Stimulus samples per neural bin: 1 for spectrograms, the hop for waveforms."""
        return 1

    def fingerprint(self, clip: int) -> str:
        """SHA-256 (hex) of the stimulus as ``stims[clip]`` returns it: bytes, shape and dtype."""
        return self._stims.fingerprint(as_index(clip, len(self), "clip"))

    def source_fingerprint(self, clip: int) -> str:
        """Hash of the sound behind a clip, whatever was computed from it; splits are hashed over these.

        It is ``stim_meta[clip]["source_sha256"]`` where the loader gave one, else the hash of the stimulus
        before standardisation.
        """
        clip = as_index(clip, len(self), "clip")
        source = self.stim_meta[clip].get("source_sha256")
        return source if isinstance(source, str) else self._stims.stimuli[clip].fingerprint()

    # ---- reading

    def _read(self, clip: int) -> tuple[Index, Tensor]:
        """Neurons that heard a clip and their (H, R, T) values after smoothing and normalisation."""
        responses = self._storage.clips[clip]
        return responses.heard, self._transformed(torch.from_numpy(responses.values()), responses.heard)

    def _transformed(self, values: Tensor, neurons: Index) -> Tensor:
        if self.smoothing_ms is not None:
            values = hanning_smooth(values, self.smoothing_ms, self.dt)
        return values if self._normalization is None else self._normalization(values, neurons)

    def read_neuron(self, clip: int, neuron: int) -> Tensor:
        """(R, T) response of one neuron to one clip, or the (1, 1) NaN of a missing pair."""
        values = self._storage.clips[clip].neuron(neuron)
        if values is None:
            return torch.full((1, 1), torch.nan)
        return self._transformed(torch.from_numpy(values)[None], np.array([neuron]))[0]

    def read_item(self, clip: int) -> ItemResponses:
        """The N responses to one clip as the list that items hold."""
        heard, values = self._read(clip)
        counts = self._storage.clips[clip].counts.tolist()
        return ItemResponses(self.N_neurons, torch.from_numpy(heard), values, counts, self.n_bins(clip))

    def response_block(self, clip: int) -> Tensor:
        """All responses to one clip as one tensor.

        Shapes: returns (N, R, T).
        """
        clip = as_index(clip, len(self), "clip")
        heard, values = self._read(clip)
        if len(heard) == self.N_neurons and len(heard):
            return values
        repeats = values.shape[1] if len(heard) else 1
        block = torch.full((self.N_neurons, repeats, self.n_bins(clip)), torch.nan)
        if len(heard):
            block[torch.from_numpy(heard)] = values
        return block

    def _item(self, clip: int) -> dict[str, Any]:
        return {
            "stims": self.stims[clip],
            "responses": self.read_item(clip),
            "valid_mask": self.nrn_masks[clip].clone(),
            "stim_meta": self.stim_meta[clip],
        }

    def __getitem__(self, index: Any) -> dict[str, Any]:
        """Item of one clip, or for a slice or list of clips a dictionary of lists."""
        several = isinstance(index, (slice, list, tuple, range)) or np.ndim(index) == 1
        if not several:
            return self._item(as_index(index, len(self), "clip"))
        clips = range(len(self))[index] if isinstance(index, slice) else list(index)
        items = [self._item(as_index(clip, len(self), "clip")) for clip in clips]
        keys = items[0] if items else ("stims", "responses", "valid_mask", "stim_meta")
        return {key: [item[key] for item in items] for key in keys}


# ------------------------------------------------------------------------------
# From plain arrays to a dataset: the working part of ``from_arrays``.


_TRIM = "from_arrays(..., on_length_mismatch='trim') cuts both to the shorter"


def as_float32(values: Any, what: str) -> Tensor:
    """A float32 copy of an array, tensor or nested list."""
    return torch.from_numpy(as_array(values, what).astype("float32"))


def as_spectrogram(values: Any, where: str) -> Tensor:
    """(1, F, T) from (F, T) or (1, F, T); arrays of higher rank (videos) stay as they are."""
    stimulus = as_float32(values, f"stimulus of {where}")
    if stimulus.ndim < 2:
        raise ValueError(
            f"stimulus of {where}: a spectrogram is (F, T) or (1, F, T), got shape {tuple(stimulus.shape)}; "
            "for waveforms use AudioNeuralDataset.from_arrays(..., audio_fs=<sample rate in Hz>)"
        )
    return stimulus[None] if stimulus.ndim == 2 else stimulus


def fill(
    ds: NeuralDataset,
    stims: Sequence[Any],
    responses: Sequence[Any],
    stim_meta: Sequence[dict[str, Any]] | None,
    nrn_meta: Sequence[dict[str, Any]] | None,
    name: str | None,
    on_length_mismatch: str,
) -> None:
    """Put arrays and metadata into an empty dataset; it still has to be validated."""
    if on_length_mismatch not in ("error", "trim"):
        raise ValueError(f"on_length_mismatch is 'error' or 'trim', got {on_length_mismatch!r}")
    check_outer(responses)
    if len(stims) != len(responses) or len(stims) == 0:
        raise ValueError(
            "stims and responses need one entry per clip and at least one clip, "
            f"got {len(stims)} and {len(responses)}"
        )
    storage = pack_responses(responses, None if nrn_meta is None else len(nrn_meta), copy=True)
    stimuli = [ds._as_stimulus(values, f"clip {clip}") for clip, values in enumerate(stims)]
    ds.N_neurons = storage.n_neurons
    ds.stim_meta = _metadata(stim_meta, len(stimuli), "stim_meta", "name", "clip")
    ds.nrn_meta = _metadata(nrn_meta, storage.n_neurons, "nrn_meta", "cell_id", "neuron")
    if name is not None:
        ds.name = name
    ds.stims = stimuli
    ds._storage = storage
    ds.load_report.kept += [str(row.get("cell_id", row.get("name", n))) for n, row in enumerate(ds.nrn_meta)]
    _match_lengths(ds, trim=on_length_mismatch == "trim")


def _metadata(
    given: Sequence[dict[str, Any]] | None, count: int, what: str, key: str, word: str
) -> list[dict[str, Any]]:
    if given is None:
        return [{key: f"{word}{index:03d}"} for index in range(count)]
    if len(given) != count:
        raise ValueError(f"{what} has {len(given)} entries for {count} {word}s; give one dictionary each")
    return [dict(row) for row in given]


def _match_lengths(ds: NeuralDataset, *, trim: bool) -> None:
    """Compare, and where asked cut, the stimulus and the responses of every clip."""
    stimuli, clips, changed = list(ds.stims), list(ds.response_storage.clips), False
    per_bin = ds.samples_per_bin
    for clip, stimulus in enumerate(stimuli):
        bins, rest = divmod(stimulus.shape[-1], per_bin)
        recorded = clips[clip].n_bins if clips[clip].heard.size else bins
        if rest and not trim:
            raise ValueError(
                f"clip {clip}: {stimulus.shape[-1]} samples are no multiple of the {per_bin} samples of one "
                f"bin; crop to {bins * per_bin}, or {_TRIM} (and to whole bins)"
            )
        reaching = clips[clip].first_reaching(bins) if recorded > bins else None
        if reaching is not None and not trim:
            turned = stimulus.ndim == 3 and stimulus.shape[-2] == recorded
            hint = (
                "a spectrogram is (F, T): is it transposed?" if turned else f"if both start together, {_TRIM}"
            )
            raise ValueError(
                f"clip {clip}: the neural responses ({recorded} bins of {ds.dt:g} ms, neuron {reaching}) are "
                f"longer than the stimulus ({bins} bins); {hint}"
            )
        if recorded < bins and not trim:
            raise ValueError(
                f"clip {clip}: the neural responses ({recorded} bins of {ds.dt:g} ms) are shorter than the "
                f"stimulus ({bins} bins); if both start together, {_TRIM}, or fill up the responses with NaN"
            )
        if recorded != bins or rest:  # bins without any value behind the stimulus go in either case
            common = min(recorded, bins)
            _note_trim(
                ds, clip, stimulus.shape[-1] - common * per_bin, 0 if reaching is None else recorded - bins
            )
            stimuli[clip] = stimulus[..., : common * per_bin].clone()
            clips[clip], changed = clips[clip].cropped(common), True
    if changed:
        ds.stims = stimuli
        ds._storage = ResponseStorage(clips, ds.response_storage.n_neurons)


def _note_trim(ds: NeuralDataset, clip: int, samples: int, bins: int) -> None:
    """Say in the load report what was cut off the end of a clip."""
    unit = "frames" if ds.samples_per_bin == 1 else "samples"
    cut = [f"the last {samples} {unit} of its stimulus"] if samples else []
    cut += [f"the last {bins} bins of its responses"] if bins else []
    if cut:
        ds.load_report.skip(f"clip {clip}", f"{' and '.join(cut)} cut by on_length_mismatch='trim'")


# ------------------------------------------------------------------------------
# `NeuralDataset`: the contract between recordings and everything that uses them.


class NeuralDataset(Recording):
    """Stimuli, the responses of a population to them, and what is known about both.

    Clips are indexed ``0 .. len(ds) - 1`` and ``ds[i]`` belongs to ``ds.stims[i]``; neurons are indexed ``0
    .. ds.N_neurons - 1``. `select`, `standardize_stims`, `normalize_responses` and `smooth_responses` return
    views: datasets of the same class that share the recorded data and leave their source as it was. In a view
    every attribute describes the view.

    A loader is a subclass whose constructor calls ``super().__init__(path, dt_ms)``, assigns ``stims``,
    ``responses``, ``stim_meta``, ``nrn_meta`` and ``N_neurons``, and calls ``self.validate()`` last.
    ``responses`` takes one entry per clip: a block (N, R, T) or (N, T) (best as small integers: int8 blocks
    are kept without a copy), or a list of N entries (R, T), (T,) or None. A loader that smooths by default
    assigns ``self.smoothing_ms``. Facts for `describe` go into ``self.facts``. A loader that computes its
    stimuli puts the SHA-256 of each sound (its file, or its piece of a file) into
    ``stim_meta[i]["source_sha256"]``: the hash of a split then does not depend on front-end, sample rate or
    machine. Equal hashes mean the same sound, which a split keeps on one side.

    Parameters
    ----------
    path : str, path-like or None
        Where the recording lies; None for data made in memory.
    dt_ms : float
        Bin width in ms.

    Attributes
    ----------
    dt : float
        Bin width in ms.
    name : str
        Name in reports.
    N_neurons : int
        Number of neurons N.
    stims : sequence of Tensor
        (1, F, T) spectrograms or (1, T_audio) waveforms, float32, finite.
    responses : sequence of sequences of Tensor
        ``responses[s][n]`` is (R, T) float32, NaN where single bins are missing; a (1, 1) NaN where neuron n
        has no data for clip s. Decoded on reading: writing into the tensors changes nothing here.
    stim_meta, nrn_meta : list of dict
        One dictionary per clip and per neuron.
    I, S_sel : list of int or None
        Neurons and clips of the root recording this view shows; None means all.
    smoothing_ms : float or None
        Width of the Hanning window the responses are read through.
    stim_normalization, response_normalization : dict or None
        What `standardize_stims` and `normalize_responses` did.
    load_report : LoadReport
        What the loader kept and skipped.

    Examples
    --------
    >>> import torch
    >>> stims = [torch.rand(8, 100), torch.rand(8, 60)]              # two clips, 8 bands
    >>> counts = [torch.ones(3, 10, 100), torch.ones(3, 10, 60)]     # 3 neurons, 10 repeats
    >>> ds = NeuralDataset.from_arrays(stims, counts, dt_ms=5.0)
    >>> ds
    NeuralDataset(N_neurons=3, n_clips=2, dt_ms=5)
    >>> view = ds.select(neurons=[2, 0], clips=[1])
    >>> view.N_neurons, len(view), view.I, ds.N_neurons
    (2, 1, [2, 0], 3)
    """

    # ---- views

    def _view(self) -> Self:
        view = copy.copy(self)
        view.stim_meta = [dict(row) for row in self.stim_meta]
        view.nrn_meta = [dict(row) for row in self.nrn_meta]
        view.facts = dict(self.facts)
        view._stims = self._stims.take(None)
        return view

    def select(self, neurons: Any = None, clips: Any = None, *, keep_unheard: bool = False) -> Self:
        """Return a view of chosen neurons and clips, in the order given, duplicates kept.

        A selection by neurons leaves out the clips that none of them heard, so that no batch is empty;
        a selection by clips never changes the neurons.

        Parameters
        ----------
        neurons, clips : None, int, list, slice, bool mask, dict or callable
            None takes all, an empty list nothing. ``{"area": "A1"}`` or ``{"single_t": ["Yes", "Maybe"]}``
            take what the metadata say; a callable gets each metadata dictionary, and errors in it come out.
        keep_unheard : bool
            Keep clips that no chosen neuron heard, so that clip indices stay those of the source.

        Returns
        -------
        NeuralDataset
            A dataset of the same class that shares the recorded data.

        Raises
        ------
        TypeError, IndexError, KeyError, ValueError
            For a selector that is none of the above, out of range, an unknown metadata key, a mask of another
            length.
        """
        clip_index = None if clips is None else resolve_selection(clips, self.stim_meta, "clip")
        neuron_index = None if neurons is None else resolve_selection(neurons, self.nrn_meta, "neuron")
        storage = self._storage.take(neuron_index, clip_index)
        if neuron_index is not None and not keep_unheard:
            heard = np.array([clip.heard.size > 0 for clip in storage.clips], dtype=bool)
            if not heard.all():
                before = np.arange(len(self), dtype=np.int64) if clip_index is None else clip_index
                clip_index, storage = before[heard], storage.take(None, np.flatnonzero(heard))
        view = self._view()
        view._storage = storage
        if clip_index is not None:
            chosen = clip_index.tolist()
            view.S_sel = chosen if self.S_sel is None else [self.S_sel[i] for i in chosen]
            view.stim_meta = [dict(self.stim_meta[i]) for i in chosen]
            view._stims = self._stims.take(chosen)
        if neuron_index is not None:
            chosen = neuron_index.tolist()
            view.I = chosen if self.I is None else [self.I[i] for i in chosen]
            view.nrn_meta = [dict(self.nrn_meta[i]) for i in chosen]
            view.N_neurons = len(chosen)
            view._normalization = self._normalization and self._normalization.take(neuron_index)
        return view

    def _reference_clips(self, stim_indices: Any) -> list[int]:
        clips: list[int] = resolve_selection(stim_indices, self.stim_meta, "clip").tolist()
        return clips

    def standardize_stims(self, stim_indices: Any = None, per_band: bool = True, eps: float = 1e-8) -> Self:
        """Return a view whose stimuli are z-scored: ``(x - mean) / std``.

        Statistics come from the stimuli as loaded, so calling it twice is calling it once. After it a value
        of 0 means the mean level and no longer silence: batches of clips of different lengths are still
        padded with 0, and models see an average sound there (losses and metrics leave those bins out).

        Parameters
        ----------
        stim_indices : selector of clips
            Clips the statistics come from; give the training clips. None takes all.
        per_band : bool
            One mean and (unbiased) standard deviation per frequency band, or one pair for all.
        eps : float
            A band whose standard deviation is at most this is only centred.

        Returns
        -------
        NeuralDataset
            View with ``stim_normalization`` set.

        Raises
        ------
        ValueError
            When there is no clip to take statistics from.
        """
        transform = fit_standardization(self._stims.raw(), self._reference_clips(stim_indices), per_band, eps)
        view = self._view()
        view._stims = self._stims.standardized(transform)
        view.stim_normalization = transform.record()
        return view

    def normalize_responses(self, method: str = "max", stim_indices: Any = None, eps: float = 1e-8) -> Self:
        """Return a view whose responses are scaled per neuron, after smoothing.

        Statistics come from un-normalised responses, so calling it twice is calling it once.

        Parameters
        ----------
        method : str
            "max" divides by the largest absolute value, "zscore" subtracts the mean and divides by the
            standard deviation (unbiased), both over all valid bins and repeats of the reference clips.
        stim_indices : selector of clips
            Reference clips; give the training clips. None takes all.
        eps : float
            A neuron whose scale is at most this (silent in the reference clips) keeps scale 1.

        Returns
        -------
        NeuralDataset
            View with ``response_normalization`` set.

        Raises
        ------
        ValueError
            When ``method`` is unknown.
        """
        clips = self._reference_clips(stim_indices)
        plain = self._view()
        plain._normalization = None
        blocks = (plain._read(clip) for clip in clips)
        plain._normalization = fit_normalization(
            blocks, self.N_neurons, method=method, stim_indices=clips, eps=eps
        )
        return plain

    def smooth_responses(self, window_ms: float | None = 21.0) -> Self:
        """Return a view whose responses are smoothed with a Hanning window of unit gain.

        The window replaces the one the dataset had (it is applied to the recorded responses when they are
        read), so calling it twice is calling it once. NaN bins are left out and stay NaN; the unit (spikes
        per bin) and the mean stay. See `deepSTRF.dsp.smoothing` for the kernel at each bin width.

        Parameters
        ----------
        window_ms : float or None
            Width in ms; None gives the responses as recorded.

        Returns
        -------
        NeuralDataset
            View with ``smoothing_ms`` set.

        Raises
        ------
        ValueError
            When the width is not positive, or the responses are already normalised.
        """
        if self._normalization is not None:
            raise ValueError(
                "these responses are already normalised, and that was fitted before smoothing; smooth first: "
                "ds.smooth_responses(...).normalize_responses(...)"
            )
        if window_ms is not None:
            hanning_window(window_ms, self.dt)
        view = self._view()
        view.smoothing_ms = None if window_ms is None else float(window_ms)
        return view

    # ---- making, describing, joining, keeping

    @classmethod
    def from_arrays(
        cls,
        stims: Sequence[Any],
        responses: Sequence[Any],
        dt_ms: float,
        *,
        stim_meta: Sequence[dict[str, Any]] | None = None,
        nrn_meta: Sequence[dict[str, Any]] | None = None,
        name: str | None = None,
        on_length_mismatch: str = "error",
        check_alignment: bool = True,
    ) -> Self:
        """Make a dataset from plain arrays, ragged clips and repeats included.

        Parameters
        ----------
        stims : sequence of array
            One per clip: (F, T) or (1, F, T), numpy or torch, real and finite.
        responses : sequence
            One entry per clip: an (N, R, T) or (N, T) array; or a list with one entry per neuron, (R, T) or
            (T,) or a list of repeats of different lengths, or None where the neuron was not recorded; or a
            dictionary from neuron index to such an entry. NaN marks single bins without data.
        dt_ms : float
            Bin width in ms.
        stim_meta, nrn_meta : sequence of dict, optional
            Metadata; by default ``{"name": "clip000"}`` and ``{"cell_id": "neuron000"}``.
        name : str, optional
            Name in reports.
        on_length_mismatch : str
            "error" refuses a clip whose stimulus and responses differ in length, "trim" cuts both to the
            shorter.
        check_alignment : bool
            Warn when responses seem to lead their stimulus (see `check_alignment`).

        Returns
        -------
        NeuralDataset
            The dataset.

        Raises
        ------
        TypeError, ValueError
            When something is not as described; the text names the clip and the neuron.

        Examples
        --------
        >>> import torch
        >>> ds = NeuralDataset.from_arrays([torch.rand(4, 6)], [[[0, 1, 0, 0, 2, 0], None]], dt_ms=5.0)
        >>> ds.nrn_masks
        tensor([[ True, False]])
        """
        ds = cls._blank(dt_ms)
        fill(ds, stims, responses, stim_meta, nrn_meta, name, on_length_mismatch)
        ds.validate()
        if check_alignment:
            ds.check_alignment(warn_unclear=False)
        return ds

    @classmethod
    def _blank(cls, dt_ms: float) -> Self:
        """An empty dataset of this class, made without a loader's own constructor."""
        ds = cls.__new__(cls)
        NeuralDataset.__init__(ds, None, dt_ms)
        return ds

    def _as_stimulus(self, values: Any, where: str) -> Tensor:
        """One user-given stimulus as the float32 tensor that ``stims`` holds."""
        return as_spectrogram(values, where)

    def validate(self) -> None:
        """Check the data contract; a loader calls this last.

        Raises
        ------
        TypeError, ValueError
            When something does not fit; the text names the clip and the neuron.
        """
        check_dataset(self)
        check_time(self)

    def describe(self) -> dict[str, Any]:
        """Return the facts that belong on a protocol card, as plain numbers and strings."""
        repeats = [int(count) for clip in self._storage.clips for count in clip.counts]
        normalization = self._normalization
        facts: dict[str, Any] = {
            "name": self.name,
            "class": type(self).__name__,
            "dt_ms": self.dt,
            "n_clips": len(self),
            "n_neurons": self.N_neurons,
            "duration_s": sum(self.n_bins(clip) for clip in range(len(self))) * self.dt / 1000.0,
            "repeats_min": min(repeats, default=0),
            "repeats_max": max(repeats, default=0),
            "missing_pairs": int(self.nrn_masks.numel() - self.nrn_masks.sum()),
            "smoothing_ms": self.smoothing_ms,
            "stimuli_standardized": self.stim_normalization is not None,
            "response_normalization": None if normalization is None else normalization.method,
            "F": None,
            "audio_fs": None,
        }
        return {**facts, **self.facts}

    def check_alignment(self, *, warn_unclear: bool = True, max_latency_ms: float = 300.0) -> AlignmentReport:
        """Look whether responses follow their stimulus, and warn when they do not.

        See `deepSTRF.datasets.alignment.check_alignment`, which this calls.
        """
        from deepSTRF.datasets.alignment import check_alignment

        return check_alignment(self, warn_unclear=warn_unclear, max_latency_ms=max_latency_ms)

    def __add__(self, other: object) -> NeuralDataset:  # type: ignore[override]
        if not isinstance(other, NeuralDataset):
            return NotImplemented
        from deepSTRF.datasets.concat import concat_neural_datasets

        return concat_neural_datasets([self, other])

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what this dataset or view shows into one ``.npz`` file; see `deepSTRF.datasets.io`."""
        from deepSTRF.datasets.io import save_dataset

        return save_dataset(self, path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> NeuralDataset:
        """Read a dataset written by `save`; see `deepSTRF.datasets.io`."""
        from deepSTRF.datasets.io import load_dataset

        return load_dataset(path, cls)

    def __repr__(self) -> str:
        named = "" if self.name == type(self).__name__ else f"{self.name!r}, "
        view = ", view" if self.I is not None or self.S_sel is not None else ""
        smooth = "" if self.smoothing_ms is None else f", smoothing_ms={self.smoothing_ms:g}"
        return (
            f"{type(self).__name__}({named}N_neurons={self.N_neurons}, n_clips={len(self)}, "
            f"dt_ms={self.dt:g}{smooth}{view})"
        )


# ------------------------------------------------------------------------------
# `AudioNeuralDataset`: recordings with sounds as stimuli, as spectrograms or as waveforms.


#: Bands a front-end should make of a waveform when nobody says otherwise: the width of the NS1 cochleagram.
_DEFAULT_BANDS = 34


class AudioNeuralDataset(NeuralDataset):
    """A `NeuralDataset` whose stimuli are sounds.

    In spectrogram mode a stimulus is (1, F, T). In waveform mode (``return_waveform`` true) it is (1,
    T_audio) at ``audio_fs`` hertz with ``T_audio = T * hop`` exactly, where ``hop = audio_fs * dt / 1000``
    must be an integer: response bin t belongs to samples ``t * hop`` to ``(t + 1) * hop - 1``.

    Parameters
    ----------
    path : str, path-like or None
        Where the recording lies.
    dt_ms : float
        Bin width in ms.

    Attributes
    ----------
    F : int
        Number of frequency bands; in waveform mode the width a front-end is asked for.
    audio_fs : int or None
        Sample rate in Hz; None in spectrogram mode.
    return_waveform : bool
        Whether stimuli are waveforms.
    hearing_range_hz : (float, float) or None
        What the animal hears; advice for front-ends.
    frequencies_hz : float ndarray (F,) or None
        Centre frequencies of the bands in Hz, where known.
    species : str or None
        Whose neurons these are.

    Examples
    --------
    >>> import numpy as np
    >>> sound = np.sin(np.arange(16000) * 0.05)                      # one second at 16 kHz
    >>> spikes = np.ones((2, 5, 200))                                # 2 neurons, 5 repeats, 200 bins of 5 ms
    >>> ds = AudioNeuralDataset.from_arrays([sound], [spikes], dt_ms=5.0, audio_fs=16000)
    >>> ds.hop, tuple(ds.stims[0].shape), tuple(ds.response_block(0).shape)
    (80, (1, 16000), (2, 5, 200))
    """

    def __init__(self, path: str | os.PathLike[str] | None, dt_ms: float) -> None:
        super().__init__(path, dt_ms)
        self.F = 0
        self.audio_fs: int | None = None
        self.return_waveform = False
        self.hearing_range_hz: tuple[float, float] | None = None
        self.frequencies_hz: np.ndarray[Any, np.dtype[np.float64]] | None = None
        self.species: str | None = None

    @property
    def hop(self) -> int | None:
        """Audio samples per bin, ``audio_fs * dt / 1000``; None in spectrogram mode."""
        return None if self.audio_fs is None else round(self.audio_fs * self.dt / 1000.0)

    @property
    def samples_per_bin(self) -> int:
        """Stimulus samples per neural bin: 1 for spectrograms, the hop for waveforms."""
        if not self.return_waveform:
            return 1
        return check_hop(self.audio_fs, self.dt)

    @classmethod
    def _blank(cls, dt_ms: float) -> Self:
        ds = cls.__new__(cls)
        AudioNeuralDataset.__init__(ds, None, dt_ms)
        return ds

    def _as_stimulus(self, values: Any, where: str) -> Tensor:
        if not self.return_waveform:
            stimulus = as_spectrogram(values, where)
            self.F = self.F or int(stimulus.shape[-2])
            return stimulus
        stimulus = as_float32(values, f"stimulus of {where}")
        return stimulus[None] if stimulus.ndim == 1 else stimulus

    @classmethod
    def from_arrays(
        cls,
        stims: Sequence[Any],
        responses: Sequence[Any],
        dt_ms: float,
        audio_fs: int | None = None,
        *,
        frequencies_hz: Any = None,
        F: int | None = None,
        hearing_range_hz: tuple[float, float] | None = None,
        species: str | None = None,
        stim_meta: Sequence[dict[str, Any]] | None = None,
        nrn_meta: Sequence[dict[str, Any]] | None = None,
        name: str | None = None,
        on_length_mismatch: str = "error",
        check_alignment: bool = True,
    ) -> Self:
        """Make an audio dataset from plain arrays; see `NeuralDataset.from_arrays` for what is not listed.

        Parameters
        ----------
        stims : sequence of array
            Without ``audio_fs``: spectrograms (F, T) or (1, F, T). With it: waveforms (T_audio,) or (1,
            T_audio).
        responses : sequence
            One entry per clip.
        dt_ms : float
            Bin width in ms.
        audio_fs : int, optional
            Sample rate in Hz of the waveforms; ``audio_fs * dt_ms / 1000`` must be an integer.
        frequencies_hz : array (F,), optional
            Centre frequencies of the bands in Hz.
        F : int, optional
            Waveforms: number of bands a front-end should make (34).
        hearing_range_hz : (float, float), optional
            Lowest and highest audible frequency in Hz.
        species : str, optional
            Whose neurons these are.
        stim_meta, nrn_meta, name, on_length_mismatch, check_alignment
            As in `NeuralDataset.from_arrays`.

        Returns
        -------
        AudioNeuralDataset
            The dataset.

        Raises
        ------
        TypeError, ValueError
            When something is not as described; the text names the clip and the neuron.
        """
        ds = cls._blank(dt_ms)
        if audio_fs is not None:
            ds.audio_fs = plain_integer(audio_fs)
            ds.return_waveform = True
            check_hop(ds.audio_fs, ds.dt)
            ds.F = _DEFAULT_BANDS if F is None else F
        elif F is not None:
            ds.F = F
        if frequencies_hz is not None:
            ds.frequencies_hz = np.asarray(frequencies_hz, dtype=np.float64)
            if F is None:
                ds.F = int(ds.frequencies_hz.size)
        ds.hearing_range_hz, ds.species = hearing_range_hz, species
        fill(ds, stims, responses, stim_meta, nrn_meta, name, on_length_mismatch)
        ds.validate()
        if check_alignment:
            ds.check_alignment(warn_unclear=False)
        return ds

    def validate(self) -> None:
        """Check the data contract, in waveform mode the grid lock as well; a loader calls this last.

        Raises
        ------
        TypeError, ValueError
            When something does not fit; the text names the clip and the neuron.
        """
        check_dataset(self)
        check_audio(self)
        check_time(self)

    def describe(self) -> dict[str, Any]:
        """Return the facts that belong on a protocol card, as plain numbers and strings."""
        facts = super().describe()
        mine = {
            "F": self.F,
            "audio_fs": self.audio_fs,
            "stimuli": "waveform" if self.return_waveform else "spectrogram",
            "species": self.species,
        }
        return {**facts, **mine, **self.facts}


# ------------------------------------------------------------------------------


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
