"""`NeuralDataset` and `AudioNeuralDataset`: recordings with views, constructors, joining and files.

What a dataset holds and promises is checked in `deepSTRF.datasets.recording`; this file adds what is done
with it: selection, standardisation, smoothing and normalisation (each a view), ``from_arrays``, ``+``,
``save`` and ``load``, and for sounds the grid of samples and bins.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from deepSTRF._files import MANIFEST, naming_damage
from deepSTRF._moved import find_moved_attribute
from deepSTRF._validation import checked, checked_but
from deepSTRF.datasets import alignment, io
from deepSTRF.datasets.alignment import AlignmentReport
from deepSTRF.datasets.concat import concat_neural_datasets
from deepSTRF.datasets.download import cache_dir
from deepSTRF.datasets.from_arrays import (
    DEFAULT_BANDS,
    as_spectrogram,
    as_waveform,
    check_sound_level,
    fill,
    given_frequencies,
    set_level,
)
from deepSTRF.datasets.from_continuous import FromContinuous
from deepSTRF.datasets.from_trials import FromTrials
from deepSTRF.datasets.recording import Recording, StimulusList, check_window, is_integer
from deepSTRF.datasets.responses import ResponseStorage
from deepSTRF.datasets.selection import resolve_selection
from deepSTRF.datasets.transforms import fit_normalization, fit_standardization, given_normalization
from deepSTRF.datasets.windows import cut_pieces
from deepSTRF.dsp.filters import samples_per_bin

__all__ = ["AudioNeuralDataset", "NeuralDataset", "check_hop", "plain_rate"]


class NeuralDataset(Recording):
    """Stimuli, the responses of a population to them, and metadata of both.

    Clips are indexed ``0 .. len(ds) - 1`` and ``ds[i]`` belongs to ``ds.stims[i]``; neurons are indexed ``0
    .. ds.N_neurons - 1``. `select`, `standardized`, `normalized` and `smoothed` return views: datasets of the
    same class that share the recorded data and leave their source as it was. In a view every attribute
    describes the view.

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
        Folder or file of the recording; None for data made in memory.
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
        (1, F, T) spectrograms or (1, T_audio) waveforms, float32, finite. Copied on reading, like responses.
    responses : sequence of sequences of Tensor
        ``responses[s][n]`` is (R, T) float32, NaN where single bins are missing; a (1, 1) NaN where neuron n
        has no data for clip s. Decoded on reading: writing into the tensors changes nothing here.
    stim_meta, nrn_meta : list of dict
        One dictionary per clip and per neuron.
    I, S_sel : list of int or None
        Neurons and clips of the root recording this view shows; None means all.
    features : dict of str to int
        Named features of the stimuli and their numbers of rows, one below the other; empty where stimuli are
        not named. ``feature_rows(name)`` is the slice of rows of one.
    smoothing_ms : float or None
        Width of the Hanning window the responses are read through.
    response_kind, response_unit : str
        Kind ("counts", "rate" or "trace") and unit of the responses as read, see `from_arrays`. A loader
        assigns those of its recording; smoothed counts become "rate", z-scored responses "trace".
    stim_normalization, response_normalization : dict or None
        Statistics that `standardized` and `normalized` fitted.
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

    @checked
    def select(
        self,
        neurons: Any = None,
        clips: Any = None,
        *,
        features: Any = None,
        keep_unheard: bool = False,
    ) -> Self:
        """View of chosen neurons, clips and features, in the order given, duplicates kept.

        A selection by neurons leaves out the clips without data of any of them, so that no batch is empty;
        a selection by clips never changes the neurons.

        Parameters
        ----------
        neurons, clips : None, int, list, slice, bool mask, dict or callable
            None takes all, an empty list nothing. ``{"area": "A1"}`` or ``{"single_t": ["Yes", "Maybe"]}``
            select by metadata; a callable gets each metadata dictionary, and its errors are passed on.
        features : str or list of str, optional
            Names of features, each at most once; the stimuli of the view hold their rows one below the other
            in this order. None takes all.
        keep_unheard : bool
            Keep clips without data of any chosen neuron, so that clip indices stay those of the source.

        Returns
        -------
        NeuralDataset
            A dataset of the same class that shares the recorded data.

        Raises
        ------
        TypeError, IndexError, KeyError, ValueError
            For a selector that is none of the above, out of range, an unknown metadata key or feature, a mask
            of another length.
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
        if features is not None:
            view._take_features(features)
        return view

    @checked
    def standardized(self, stim_indices: Any = None, per_band: bool = True, eps: float = 1e-8) -> Self:
        """View whose stimuli are z-scored: ``(x - mean) / std``.

        Statistics come from the stimuli as loaded, so calling it twice is calling it once. After it a value
        of 0 means the mean level and no longer silence: batches of clips of different lengths are still
        padded with 0, the level of an average sound (losses and metrics leave those bins out).

        Parameters
        ----------
        stim_indices : selector of clips
            Clips the statistics come from; give the training clips. None takes all.
        per_band : bool
            One mean and (unbiased) standard deviation per frequency band, or one pair for all bands: of each
            feature where features are named.
        eps : float
            A band whose standard deviation is at most this share of its largest absolute value (constant, up
            to rounding) is only centred.

        Returns
        -------
        NeuralDataset
            View with ``stim_normalization`` set.

        Raises
        ------
        ValueError
            When there is no clip to take statistics from.
        """
        clips = resolve_selection(stim_indices, self.stim_meta, "clip").tolist()
        transform = fit_standardization(
            lambda: self.scored_stimuli(clips, loaded=True), clips, per_band, eps, self.features
        )
        view = self._view()
        view._stims = self._stims.standardized(transform)
        view.stim_normalization = transform.record()
        return view

    @checked
    def normalized(
        self,
        method: str = "max",
        stim_indices: Any = None,
        eps: float = 1e-8,
        *,
        statistics: Mapping[str, Any] | None = None,
    ) -> Self:
        """View whose responses are scaled per neuron, after smoothing.

        Statistics come from un-normalised responses, so calling it twice is calling it once.

        Parameters
        ----------
        method : str
            "max" divides by the largest absolute value, "zscore" subtracts the mean and divides by the
            standard deviation (unbiased), both over all valid bins and repeats of the reference clips.
        stim_indices : selector of clips
            Reference clips; give the training clips. None takes all.
        eps : float
            A neuron whose scale is at most this share of its largest absolute value (silent or constant in
            the reference clips) keeps scale 1.
        statistics : mapping, optional
            The ``response_normalization`` of another recording of the same neurons, to be applied as it is:
            that of the training clips, for a recording to be scored. Nothing is measured then.

        Returns
        -------
        NeuralDataset
            View with ``response_normalization`` set.

        Raises
        ------
        ValueError
            When ``method`` is unknown, or ``statistics`` are of another number of neurons.
        """
        if statistics is not None:
            view = self._view()
            view._normalization = given_normalization(statistics, self.N_neurons)
            return view
        clips = resolve_selection(stim_indices, self.stim_meta, "clip").tolist()
        view = self._view()
        view._normalization = None  # the blocks below are read without the earlier normalisation
        blocks = (view._read(clip, *piece) for clip in clips for piece in self.pieces(clip))
        view._normalization = fit_normalization(
            blocks, self.N_neurons, method=method, stim_indices=clips, eps=eps
        )
        return view

    @checked
    def smoothed(self, window_ms: float | None = 21.0) -> Self:
        """View whose responses are smoothed with a Hanning window of unit gain.

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
                "ds.smoothed(...).normalized(...)"
            )
        if window_ms is not None:
            check_window(window_ms, self.dt)
        view = self._view()
        view.smoothing_ms = None if window_ms is None else float(window_ms)
        return view

    @checked_but("length_ms", "gap_ms")
    def cut(self, length_ms: float, *, gap_ms: float = 0.0) -> NeuralDataset:
        """Dataset whose clips are pieces of the clips of this one: how one long recording is split.

        The first piece starts where its clip starts, and ``gap_ms`` separates each from the next, so that a
        training piece does not end where a test piece begins: make it as long as sound and response depend on
        each other. A last piece of at least half the length is kept; what is left out is in ``load_report``.
        Models start every piece without its past: give fits a ``warmup_ms``. Recorded data are shared.

        Parameters
        ----------
        length_ms : float
            Length of a piece in ms, rounded to whole bins.
        gap_ms : float
            Length left out between pieces in ms, rounded to whole bins.

        Returns
        -------
        NeuralDataset
            An `AudioNeuralDataset` where this is one. Each piece counts as a sound of its own; pieces of the
            same stretch of equal sounds are equal. ``stim_meta`` holds that of the clip and, beside it,
            "cut_from" (the clip's ``name`` or index: splits keep a clip whole with ``group="cut_from"``),
            "start_ms" and "source_sha256".

        Raises
        ------
        ValueError
            When a piece is shorter than a bin, the gap is negative, no clip is long enough, or the dataset is
            standardised or normalised (by statistics of what would become test pieces).

        Examples
        --------
        >>> import torch
        >>> from deepSTRF.datasets import random_split
        >>> hour = NeuralDataset.from_arrays([torch.rand(4, 1000)], [torch.ones(2, 1000)], dt_ms=10.0)
        >>> pieces = hour.cut(length_ms=900.0, gap_ms=100.0)
        >>> len(pieces), pieces.n_bins(9), pieces.stim_meta[9]["start_ms"]
        (10, 90, 9000.0)
        >>> [len(part) for part in random_split(pieces).apply(pieces)]
        [7, 2, 1]
        """
        return cut_pieces(self, length_ms, gap_ms)

    # ---- construction

    @classmethod
    @checked_but("stims", "responses", "response_unit")
    def from_arrays(
        cls,
        stims: Sequence[Any],
        responses: Sequence[Any],
        dt_ms: float,
        *,
        stim_meta: Sequence[dict[str, Any]] | None = None,
        nrn_meta: Sequence[dict[str, Any]] | None = None,
        name: str | None = None,
        response_kind: str | None = None,
        response_unit: str | None = None,
        on_length_mismatch: str = "error",
        pre_ms: float = 0.0,
        check_alignment: bool = True,
    ) -> Self:
        """Dataset of plain arrays, ragged clips and repeats included.

        Parameters
        ----------
        stims : sequence of array
            One per clip: (F, T) or (1, F, T), numpy or torch, real and finite. Or one mapping per clip from
            names of features to (F, T) or (T,): ``[{"spectrogram": ..., "pupil": ...}, ...]``, all with the
            same names and numbers of rows.
        responses : sequence
            One entry per clip: an (N, R, T) or (N, T) array; or a list with one entry per neuron, (R, T) or
            (T,) or a list of repeats of different lengths, or None where the neuron was not recorded; or a
            dictionary from neuron name (``cell_id``) or index to such an entry. NaN marks single bins without
            data. An (A, T) array holds A neurons, or with ``nrn_meta`` of one neuron A repeats. MATLAB cells,
            tables (one row per bin, one column per neuron) and labelled arrays (dimensions "neuron",
            "repeat", "time") will do.
        dt_ms : float
            Bin width in ms.
        stim_meta, nrn_meta : sequence of dict, optional
            Metadata; by default ``{"name": "clip000"}`` and ``{"cell_id": "neuron000"}``.
        name : str, optional
            Name in reports.
        response_kind : {"counts", "rate", "trace"}, optional
            Spike counts (whole numbers), rates (not negative), or any other trace (LFP, BOLD, membrane
            potential, z-scores). None: "counts" where all values are whole numbers of at least 0, "rate"
            where none is negative, else "trace".
        response_unit : str, optional
            Unit for labels, such as "uV"; None is "spikes per bin" for counts, else "arbitrary units".
        on_length_mismatch : str
            "error" refuses a clip whose stimulus and responses differ in length, "trim" cuts both to the
            shorter at their end: right only when both start together.
        pre_ms : float
            Length of the baseline before the stimulus with which the responses to every clip begin, in ms,
            whole bins. It is cut off, and what was recorded after the stimulus too: models start from silence
            at each clip's start, and what the level of silence in a spectrogram is, is unknown.
        check_alignment : bool
            Warn when responses seem to lead their stimulus or to lag implausibly (see `check_alignment`).

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
        ds.response_kind, ds.response_unit = response_kind, response_unit
        excess = fill(
            ds, stims, responses, as_spectrogram,
            stim_meta=stim_meta, nrn_meta=nrn_meta, name=name, on_length_mismatch=on_length_mismatch,
            pre_ms=pre_ms,
        )  # fmt: skip
        ds.validate()
        if check_alignment:
            alignment.check_alignment(ds, warn_unclear=False, excess=excess)
        return ds

    # ---- description and checks

    def describe(self) -> dict[str, Any]:
        """Facts of the recording for the protocol card, as plain numbers and strings."""
        repeats = [int(count) for clip in self._storage.clips for count in clip.counts]
        normalization = self._normalization
        facts: dict[str, Any] = {
            "name": self.name,
            "class": type(self).__name__,
            "dt_ms": self.dt,
            "n_clips": len(self),
            "n_neurons": self.N_neurons,
            "duration_s": sum(self.n_bins(clip) - self.context_bins(clip) for clip in range(len(self)))
            * self.dt
            / 1000.0,
            "repeats_min": min(repeats, default=0),
            "repeats_max": max(repeats, default=0),
            "missing_pairs": int(self.nrn_masks.numel() - self.nrn_masks.sum()),
            "response_kind": self.response_kind,
            "response_unit": self.response_unit,
            "smoothing_ms": self.smoothing_ms,
            "features": dict(self.features) or None,
            "stimuli_standardized": self.stim_normalization is not None,
            "response_normalization": None if normalization is None else normalization.method,
            "F": None,
            "audio_fs": None,
        }
        return {**facts, **self.facts}

    @checked
    def check_alignment(
        self, *, warn_unclear: bool = True, max_latency_ms: float | None = None
    ) -> AlignmentReport:
        """Estimate the lag of the population response behind the stimulus and warn when it is implausible.

        Responses are taken as recorded, before smoothing. The method is described in
        `deepSTRF.datasets.alignment`.

        Parameters
        ----------
        warn_unclear : bool
            Also warn when responses repeat reliably for many seconds and yet no lag relates them to their
            stimuli, as when clips and responses are in different orders.
        max_latency_ms : float, optional
            Longest normal lag in ms. None is 100 (latencies are 10 to 50 ms in auditory cortex), and 300 for
            responses that begin before 100 and go on, and for traces such as EEG
            (``response_kind="trace"``).

        Returns
        -------
        AlignmentReport
            ``status`` ("aligned", "early", "late", "unclear", "too short"), ``lag_bins``, ``lag_ms``,
            ``strength`` (correlation in units of its spread by chance) and ``message``.

        Warns
        -----
        UserWarning
            When responses lead the stimulus by two bins or more, follow it by more than ``max_latency_ms``,
            or (see ``warn_unclear``) have no relation to it.
        """
        return alignment.check_alignment(self, warn_unclear=warn_unclear, max_latency_ms=max_latency_ms)

    # ---- joining and files

    def __add__(self, other: object) -> NeuralDataset:  # type: ignore[override]
        if not isinstance(other, NeuralDataset):
            return NotImplemented
        return concat_neural_datasets([self, other])

    @checked
    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write what this dataset or view shows into one ``.npz`` file.

        Responses are written as recorded together with smoothing and normalisation. The file appears under
        its name only when it is complete; an older file of that name stays until then. A link that is named
        stays one, and its target is written. The file carries its size and SHA-256, which `load` verifies.

        Parameters
        ----------
        path : str or path-like
            File to write; it ends in ``.npz``.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        TypeError
            When metadata hold something else than numbers, strings, booleans, None, and lists or dictionaries
            of those.
        ValueError
            When the name does not end in ``.npz``.
        FileNotFoundError
            When the folder does not exist.
        OSError
            When the disk is full, the folder is read-only, or a folder, pipe or device has that name; nothing
            was changed then.
        """
        return io.write_file(self, path, self._facts_to_save())

    @checked
    def mapped(self, folder: str | os.PathLike[str] | None = None) -> Self:
        """View whose stimuli and responses lie in files and are read, piece by piece, when they are needed.

        For recordings that are longer than memory, or for several processes that share one: selections, cuts
        and windows of the view read the same files, and it is small when it is sent to a loader's workers. A
        file that vanishes or changes while it is in use is a `DamagedFileError` that names it.

        Parameters
        ----------
        folder : str or path-like, optional
            Folder to write, in place of an earlier recording there; ``NeuralDataset.load(folder)`` opens it
            again. None is an entry of the package's cache folder that is named by its content, written once
            and verified when it is used again; it stays until you delete it.

        Returns
        -------
        NeuralDataset
            The view. Its numbers are those of this dataset to the last bit.

        Raises
        ------
        FileExistsError
            When the folder holds something else that would be replaced.
        OSError
            When the disk is full or the folder is read-only; nothing was changed then.
        ValueError
            When this is a dataset of windows: map the recording, then make the windows.

        Examples
        --------
        >>> import tempfile
        >>> import torch
        >>> ds = NeuralDataset.from_arrays([torch.rand(4, 50)], [torch.ones(2, 3, 50)], dt_ms=10.0)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     view = ds.mapped(folder)
        ...     bool((view.response_block(0) == ds.response_block(0)).all())
        True
        """
        if any(self.context_bins(clip) for clip in range(len(self))):
            raise ValueError("these are windows: map the recording, ds.mapped(), then make windows of that")
        place = None if folder is None else Path(folder).expanduser()
        place = io.write_mapped(self, place, self._facts_to_save(), cache_dir("recordings"))
        view = self._view()
        stimuli, clips = io.open_mapped(self, place)
        view._stims = StimulusList(stimuli, self._stims.transforms)
        view._storage = ResponseStorage(clips, self.N_neurons)
        return view

    def _facts_to_save(self) -> dict[str, Any]:
        known = AudioNeuralDataset if isinstance(self, AudioNeuralDataset) else NeuralDataset
        plain = known.describe(self)  # what a loader's own class adds is unknown to the class that reads
        added = {key: value for key, value in self.describe().items() if key not in plain}
        return {**added, **self.facts}

    @classmethod
    @checked
    def load(cls, path: str | os.PathLike[str]) -> NeuralDataset:
        """Read a dataset written by `save`; a file of sounds comes back as an `AudioNeuralDataset`.

        Parameters
        ----------
        path : str or path-like
            The ``.npz`` file, or the folder of `mapped`, whose arrays then stay in it.

        Returns
        -------
        NeuralDataset
            The dataset, with transforms as they were. It is a root of its own: ``I`` and ``S_sel`` are None.

        Raises
        ------
        FileNotFoundError
            When there is no such file.
        DamagedFileError
            A ValueError: the file is no dataset, is damaged (its size and SHA-256 are verified, and what is
            in it like what `from_arrays` is given), or is from a newer version.
        TypeError
            When a file without sounds is loaded as an audio dataset.

        Warns
        -----
        UserWarning
            When the file is of an earlier version, which wrote no checksums.
        """
        folder = Path(path).expanduser()
        header, arrays = io.read_mapped(folder) if (folder / MANIFEST).is_file() else io.read_file(path)
        kind = AudioNeuralDataset if header["kind"] == "audio" else NeuralDataset
        if issubclass(cls, AudioNeuralDataset) and kind is NeuralDataset:
            raise TypeError(
                f"this file holds no sounds; read it with NeuralDataset.load, not {cls.__name__}.load"
            )
        with naming_damage(path, io.REMEDY):
            ds = kind._blank(header["dt_ms"])
            io.restore(ds, header, arrays)
            ds.validate()
        return ds

    if not TYPE_CHECKING:  # type checkers know every name

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):  # what copy and pickle ask for
                raise AttributeError(name)
            return find_moved_attribute(self, name)

    def __repr__(self) -> str:
        named = "" if self.name == type(self).__name__ else f"{self.name!r}, "
        view = ", view" if self.I is not None or self.S_sel is not None else ""
        smooth = "" if self.smoothing_ms is None else f", smoothing_ms={self.smoothing_ms:g}"
        return (
            f"{type(self).__name__}({named}N_neurons={self.N_neurons}, n_clips={len(self)}, "
            f"dt_ms={self.dt:g}{smooth}{view})"
        )


class AudioNeuralDataset(FromTrials, FromContinuous, NeuralDataset):
    """A `NeuralDataset` whose stimuli are sounds.

    In spectrogram mode a stimulus is (1, F, T). In waveform mode (``return_waveform`` true) it is (1,
    T_audio) at ``audio_fs`` hertz with ``T_audio = T * hop`` exactly, where ``hop = audio_fs * dt / 1000``
    must be an integer: response bin t belongs to samples ``t * hop`` to ``(t + 1) * hop - 1``.

    Parameters
    ----------
    path : str, path-like or None
        Folder or file of the recording.
    dt_ms : float
        Bin width in ms.

    Attributes
    ----------
    F : int
        Number of frequency bands, of all features together where they are named; in waveform mode the number
        a front-end makes.
    audio_fs : int, float or None
        Sample rate in Hz, an int where it is whole; None in spectrogram mode.
    return_waveform : bool
        Whether stimuli are waveforms.
    hearing_range_hz : (float, float) or None
        Audible range of the animal; the banks of experiments end there by default.
    frequencies_hz : float ndarray (F,) or None
        Centre frequencies of the bands in Hz, where known; None where further features stand beside them.
    feature_frequencies : dict of str to float ndarray
        Centre frequencies in Hz of the rows of named features that are bands.
    species : str or None
        Whose neurons these are.
    level : str
        "raw", "rms", "peak" or "pascal": what the level of the waveforms refers to (see `from_arrays`).
    level_factor : float
        What the waveforms were multiplied by for it; multiply other sounds of the recording by it too.

    Examples
    --------
    >>> import numpy as np
    >>> sound = np.sin(np.arange(16000) * 0.05)                      # one second at 16 kHz
    >>> spikes = np.ones((2, 5, 200))                                # 2 neurons, 5 repeats, 200 bins of 5 ms
    >>> ds = AudioNeuralDataset.from_arrays([sound], [spikes], dt_ms=5.0, audio_fs=16000)
    >>> ds.hop, tuple(ds.stims[0].shape), tuple(ds.response_block(0).shape)
    (80, (1, 16000), (2, 5, 200))
    """

    @checked
    def __init__(self, path: str | os.PathLike[str] | None, dt_ms: float) -> None:
        super().__init__(path, dt_ms)
        self.F = 0
        self.audio_fs: int | float | None = None
        self.return_waveform = False
        self.hearing_range_hz: tuple[float, float] | None = None
        self.frequencies_hz: np.ndarray[Any, np.dtype[np.float64]] | None = None
        self.feature_frequencies: dict[str, np.ndarray[Any, np.dtype[np.float64]]] = {}
        self.species: str | None = None
        self.level, self.level_factor = "raw", 1.0

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

    def _take_features(self, chosen: Any) -> None:
        super()._take_features(chosen)
        self._update_bands()

    def _update_bands(self) -> None:
        """Bands and their frequencies, of the features that there are."""
        known = {name: self.feature_frequencies.get(name) for name in self.features}
        self.feature_frequencies = {name: hertz for name, hertz in known.items() if hertz is not None}
        self.F = sum(self.features.values())
        self.frequencies_hz = next(iter(known.values())) if len(known) == 1 else None

    @classmethod
    def _blank(cls, dt_ms: float) -> Self:
        ds = cls.__new__(cls)
        AudioNeuralDataset.__init__(ds, None, dt_ms)
        return ds

    @classmethod
    @checked_but("stims", "responses", "F", "response_unit")
    def from_arrays(
        cls,
        stims: Sequence[Any],
        responses: Sequence[Any],
        dt_ms: float,
        audio_fs: float | None = None,
        *,
        frequencies_hz: Any = None,
        F: int | None = None,
        hearing_range_hz: tuple[float, float] | None = None,
        species: str | None = None,
        stim_meta: Sequence[dict[str, Any]] | None = None,
        nrn_meta: Sequence[dict[str, Any]] | None = None,
        name: str | None = None,
        response_kind: str | None = None,
        response_unit: str | None = None,
        on_length_mismatch: str = "error",
        pre_ms: float = 0.0,
        check_alignment: bool = True,
        level: str = "raw",
    ) -> Self:
        """Audio dataset of plain arrays; see `NeuralDataset.from_arrays` for what is not listed.

        Parameters
        ----------
        stims : sequence of array
            Without ``audio_fs``: spectrograms (F, T) or (1, F, T), or mappings of named features. With it:
            waveforms (T_audio,) or (1, T_audio). Floats stay as they are; integers are samples of a sound
            file and become +-1 by their full scale (int16 by 32768; int32 by 2**31, 24 bits stand at the top;
            unsigned around the middle).
        responses : sequence
            One entry per clip.
        dt_ms : float
            Bin width in ms.
        audio_fs : float, optional
            Sample rate in Hz of the waveforms, such as 44100 or 24414.0625; ``audio_fs * dt_ms / 1000`` must
            be an integer. A ``dt_ms`` that misses it by its own rounding (33.3333) becomes exact.
        frequencies_hz : array (F,), optional
            Centre frequencies of the bands in Hz; with named features those of the one called "spectrogram",
            or a mapping from feature to its frequencies.
        F : int, optional
            Waveforms: number of bands a front-end should make (34).
        hearing_range_hz : (float, float), optional
            Lowest and highest audible frequency in Hz; default banks of experiments end at the highest.
        species : str, optional
            Whose neurons these are.
        stim_meta, nrn_meta, name, response_kind, response_unit, on_length_mismatch, pre_ms, check_alignment
            As in `NeuralDataset.from_arrays`.
        level : {"raw", "rms", "peak", "pascal"}
            Level of the waveforms, which floors and compressions of front-ends depend on. "rms" and "peak"
            multiply the whole recording by one factor (``level_factor``), after which its root mean square or
            its peak is 1: clips keep their relative levels, and scores do not depend on the unit. "pascal"
            states sound pressure in Pa, so that 20e-6 is 0 dB SPL. "raw" states nothing.

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
        ds.response_kind, ds.response_unit = response_kind, response_unit
        ds.F = F or 0
        if audio_fs is not None:
            ds.audio_fs, ds.return_waveform = plain_rate(audio_fs), True
            hop = check_hop(ds.audio_fs, ds.dt)
            if not math.isclose(hop * 1000.0 / ds.audio_fs, ds.dt, rel_tol=1e-9):
                ds.dt = hop * 1000.0 / ds.audio_fs
            if F is None and frequencies_hz is None:
                ds.F = DEFAULT_BANDS
        ds.hearing_range_hz, ds.species = hearing_range_hz, species
        check_sound_level(stims, level, is_waveform=ds.return_waveform)
        excess = fill(
            ds, stims, responses, as_waveform if ds.return_waveform else as_spectrogram,
            stim_meta=stim_meta, nrn_meta=nrn_meta, name=name, on_length_mismatch=on_length_mismatch,
            pre_ms=pre_ms,
        )  # fmt: skip
        if ds.features:
            ds.feature_frequencies = given_frequencies(ds.features, frequencies_hz)
            ds._update_bands()
        elif frequencies_hz is not None:
            ds.frequencies_hz = np.asarray(frequencies_hz, dtype=np.float64)
            ds.F = int(ds.frequencies_hz.size) if F is None else F
        if not ds.return_waveform:
            ds.F = ds.F or int(ds.stims[0].shape[-2])
        ds.validate()
        ds.level, ds.level_factor = level, set_level(ds._stims.raw(), level)
        if check_alignment:
            alignment.check_alignment(ds, warn_unclear=False, excess=excess)
        return ds

    def validate(self) -> None:
        """Check the data contract, in waveform mode the grid of samples as well; a loader calls this last.

        Raises
        ------
        TypeError, ValueError
            When something does not fit; the text names the clip and the neuron.
        """
        self._check_contents()
        self._check_audio()
        self._check_lengths()

    def _check_audio(self) -> None:
        """Bands and range; spectrograms (1, F, T), or mono waveforms of a whole number of bins."""
        if not is_integer(self.F) or self.F < 1:
            raise TypeError(f"F is the number of frequency bands, a positive integer, got {self.F!r}")
        if self.hearing_range_hz is not None:
            low, high = self.hearing_range_hz
            if not 0 < low < high:
                raise ValueError(f"hearing_range_hz needs 0 < low < high, got {self.hearing_range_hz}")
        if self.frequencies_hz is not None and tuple(self.frequencies_hz.shape) != (self.F,):
            raise ValueError(f"frequencies_hz has shape {tuple(self.frequencies_hz.shape)}, F is {self.F}")
        for name, hertz in self.feature_frequencies.items():
            if np.shape(hertz) != (self.features.get(name),):
                raise ValueError(
                    f"feature {name!r}: frequencies_hz of shape {np.shape(hertz)} for "
                    f"{self.features.get(name, 'no')} rows"
                )
        if self.features and self.return_waveform:
            raise ValueError("named features are for spectrograms; waveforms (audio_fs=...) have none")
        hop = self.samples_per_bin
        for clip, stimulus in enumerate(self._stims.stimuli):
            shape = stimulus.shape
            if not self.return_waveform:
                if len(shape) != 3 or shape[-2] != self.F:
                    raise ValueError(f"clip {clip}: a spectrogram is (1, F={self.F}, T), got {shape}")
                continue
            if len(shape) != 2 or shape[0] != 1:
                raise ValueError(f"clip {clip}: a waveform is (1, T_audio), mono, got {shape}")
            if shape[-1] % hop:
                raise ValueError(
                    f"clip {clip}: {shape[-1]} samples are no multiple of the {hop} samples of one "
                    f"bin; crop to {shape[-1] // hop * hop} samples or pad with zeros"
                )

    def describe(self) -> dict[str, Any]:
        """Facts of the recording for the protocol card, as plain numbers and strings."""
        audio = {
            "F": self.F,
            "audio_fs": self.audio_fs,
            "stimuli": "waveform" if self.return_waveform else "spectrogram",
            "species": self.species,
            "level": self.level if self.return_waveform else None,
            "level_factor": self.level_factor if self.return_waveform else None,
        }
        return {**super().describe(), **audio, **self.facts}


def plain_rate(value: Any) -> Any:
    """A numpy or torch number as a Python one, a whole rate as an integer; anything else as it is."""
    value = value.item() if isinstance(value, (np.generic, Tensor)) and np.ndim(value) == 0 else value
    return int(value) if isinstance(value, float) and value.is_integer() else value


def check_hop(audio_fs: Any, dt_ms: float) -> int:
    """`samples_per_bin` of a rate that is an integer where it is whole, so that grids align exactly."""
    is_fraction = isinstance(audio_fs, float) and not audio_fs.is_integer()
    if not is_fraction and (not is_integer(audio_fs) or audio_fs < 1):
        raise TypeError(
            "audio_fs is a sample rate in Hz, a positive integer or a fraction such as 24414.0625, "
            f"got {audio_fs!r}"
        )
    return samples_per_bin(audio_fs, dt_ms)
