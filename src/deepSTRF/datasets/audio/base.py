"""`AudioNeuralDataset`: recordings with sounds as stimuli, as spectrograms or as waveforms."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from torch import Tensor

from deepSTRF.datasets import _arrays, _validation
from deepSTRF.datasets.base import NeuralDataset

__all__ = ["AudioNeuralDataset"]

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
        return _validation.check_hop(self.audio_fs, self.dt)

    @classmethod
    def _blank(cls, dt_ms: float) -> Self:
        ds = cls.__new__(cls)
        AudioNeuralDataset.__init__(ds, None, dt_ms)
        return ds

    def _as_stimulus(self, values: Any, where: str) -> Tensor:
        if not self.return_waveform:
            stimulus = _arrays.as_spectrogram(values, where)
            self.F = self.F or int(stimulus.shape[-2])
            return stimulus
        stimulus = _arrays.as_float32(values, f"stimulus of {where}")
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
            ds.audio_fs = _validation.plain_integer(audio_fs)
            ds.return_waveform = True
            _validation.check_hop(ds.audio_fs, ds.dt)
            ds.F = _DEFAULT_BANDS if F is None else F
        elif F is not None:
            ds.F = F
        if frequencies_hz is not None:
            ds.frequencies_hz = np.asarray(frequencies_hz, dtype=np.float64)
            if F is None:
                ds.F = int(ds.frequencies_hz.size)
        ds.hearing_range_hz, ds.species = hearing_range_hz, species
        _arrays.fill(ds, stims, responses, stim_meta, nrn_meta, name, on_length_mismatch)
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
        _validation.check_dataset(self)
        _validation.check_audio(self)
        _validation.check_time(self)

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
