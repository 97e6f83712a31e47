"""`NeuralDataset`: the contract between recordings and everything that uses them."""

from __future__ import annotations

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from torch import Tensor

from deepSTRF.datasets import _arrays, _validation
from deepSTRF.datasets._recording import Recording
from deepSTRF.datasets.selection import resolve_selection
from deepSTRF.datasets.transforms import fit_normalization, fit_standardization
from deepSTRF.dsp.smoothing import hanning_window

if TYPE_CHECKING:
    from deepSTRF.datasets.alignment import AlignmentReport

__all__ = ["NeuralDataset"]


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
        _arrays.fill(ds, stims, responses, stim_meta, nrn_meta, name, on_length_mismatch)
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
        return _arrays.as_spectrogram(values, where)

    def validate(self) -> None:
        """Check the data contract; a loader calls this last.

        Raises
        ------
        TypeError, ValueError
            When something does not fit; the text names the clip and the neuron.
        """
        _validation.check_dataset(self)
        _validation.check_time(self)

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
