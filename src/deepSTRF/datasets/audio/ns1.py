"""NS1: ferret auditory cortex, 119 units, 20 natural sounds (Harper et al. 2016)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepSTRF.datasets import _validation
from deepSTRF.datasets.audio._ns1_spikes import ON_BAD_FILE, load_spikes
from deepSTRF.datasets.audio._ns1_stimuli import (
    SPECTROGRAMS,
    Stimuli,
    choose_spectrogram,
    load_spectrograms,
    load_waveforms,
)
from deepSTRF.datasets.audio.base import AudioNeuralDataset
from deepSTRF.datasets.audio.ns1_download import download_ns1
from deepSTRF.datasets.audio.ns1_files import *  # noqa: F403  (the recording's constants, listed in its __all__)
from deepSTRF.datasets.audio.ns1_files import (
    NS1_DRC_SOUNDS,
    NS1_NAT_SOUNDS,
    NS1_RAW_LEN_MS,
    NS1_TYPE_OVERRIDES,
    NS1_WAV_FILENAMES,
)
from deepSTRF.datasets.fetch import data_dir
from deepSTRF.datasets.spikes import BINNINGS, count_bins, validate_binning
from deepSTRF.dsp.cochleagram import ALIGNMENTS, RAHMAN_N_FILTERS, rahman_frequencies
from deepSTRF.registry import DATASETS

__all__ = ["DRCResponses", "NS1Dataset"]

#: Width of the Hanning window of the literature (Hsu, Borst & Theunissen 2004, 10.1088/0954-898X_15_2_002).
SMOOTHING_MS = 21.0
#: Ferret audiogram, advice for front-ends.
FERRET_HEARING_RANGE_HZ = (200.0, 40000.0)
#: What the spike files say of the random chord sequences: four sets with three tokens each, at 75 dB.
_DRC_SETS, _DRC_LEVEL_DB = (10, 20, 30, 40), 75


@dataclass(frozen=True, eq=False)
class DRCResponses:
    """Responses to the 12 random chord sequences of NS1, whose sounds were not published.

    Attributes
    ----------
    responses : list of Tensor (N, R, T)
        Spike counts per bin, float32, not smoothed; R is 5. NaN where a unit has fewer repeats.
    stim_meta : list of dict
        ``name``, ``type``, ``set``, ``token`` and ``level_db`` as the spike files give them.
    cell_ids : list of str
        ``cell_id`` of each row.
    dt_ms : float
        Bin in ms.

    Examples
    --------
    >>> empty = DRCResponses(responses=[], stim_meta=[], cell_ids=[], dt_ms=5.0)
    >>> len(empty.responses)
    0
    """

    responses: list[Tensor]
    stim_meta: list[dict[str, Any]]
    cell_ids: list[str]
    dt_ms: float


@DATASETS.register("ns1")
class NS1Dataset(AudioNeuralDataset):
    """Ferret primary auditory cortex: 119 units, 20 natural sounds of 5 s, 20 repeats, nothing missing.

    The published spectrogram of these data (``X_nfht``) does not lie with the recording; by default it is
    recomputed from the sounds by its authors' recipe (`deepSTRF.dsp.cochleagram.rahman_cochleagram`), at any
    bin. Its native form looks one bin ahead. Which spectrogram, alignment, binning and smoothing were used is
    in `describe`. Files are parsed once; later loads read a cache (see `deepSTRF.datasets.fetch.cache_dir`).

    Parameters
    ----------
    path : path, optional
        Folder with ``MetadataSHEnCneurons.mat`` and ``spikesandwav/``. Default: ``$DEEPSTRF_DATA_DIR/NS1``,
        else the user's cache folder.
    dt_ms : float
        Bin in ms. 5 gives 999 bins; other bins give ``floor(4995 / dt_ms)``.
    smooth : bool
        Read the responses through a 21 ms Hanning window of unit gain (the unit stays spikes per bin).
    download : bool
        Fetch missing files from osf.io/ayw2p (about 160 MB); touches no network when the files are there.
    return_waveform : bool
        Stimuli are (1, T_audio) waveforms instead of (1, 34, T) spectrograms. Responses are the same.
    audio_fs : int
        Rate in Hz of the waveforms, resampled by the exact ratio from 48,828.125 Hz; a bin must be a whole
        number of samples. Not used in spectrogram mode.
    spectrogram : {"auto", "shipped", "recomputed"}
        "shipped" reads ``test_data_5ms.mat`` (5 ms, native alignment; ``download=True`` fetches it),
        "recomputed" applies the recipe, "auto" takes the first when it is there and fits, else the second.
    alignment : {"native", "causal"}
        Spectrogram frame k covers bins k and k+1 (native, 5 ms look-ahead) or k-1 and k (causal).
    binning : {"half-open", "published"}
        "half-open" counts every spike in ``[k*dt, (k+1)*dt)``; "published" reproduces earlier packages, which
        round to milliseconds and lose coincident spikes (see `deepSTRF.datasets.spikes.bin_spikes`).
    on_bad_file : {"error", "skip"}
        What a missing or damaged spike file does: stop, or leave that unit out and say so in ``load_report``.
    cache : bool
        Use and fill the cache of parsed files.

    Attributes
    ----------
    nrn_meta : list of dict
        ``cell_id``, ``area``, ``depth_um`` (negative: unknown), ``noise_ratio`` (low is clean), ``single_n``
        (2, 1, 0) and ``single_t`` ("Yes", "Maybe", "No": is it a single unit), ``n_electrodes``,
        ``electrode_number``.
    stim_meta : list of dict
        ``name`` ("nat01" ...), ``type``, ``file``, ``source_sha256``.
    load_report : LoadReport
        Units kept and skipped.

    Raises
    ------
    FileNotFoundError
        When files are missing; the text names the first one and the call that fetches it.
    ValueError, TypeError
        When an option is not legal (checked before any file is touched) or a file is damaged.

    References
    ----------
    Harper et al. 2016, PLoS Comput. Biol. 12(11), 10.1371/journal.pcbi.1005113. Rahman et al. 2019, PLoS
    Comput. Biol. 15(5), 10.1371/journal.pcbi.1006618. Data: osf.io/ayw2p.

    Examples
    --------
    >>> from deepSTRF.datasets.audio.ns1 import NS1Dataset
    >>> ds = NS1Dataset(return_waveform=True)                                        # doctest: +SKIP
    >>> ds.N_neurons, ds.hop, tuple(ds.stims[0].shape)                               # doctest: +SKIP
    (119, 240, (1, 239760))
    >>> NS1Dataset(audio_fs=44100, return_waveform=True)
    Traceback (most recent call last):
        ...
    ValueError: audio_fs=44100 Hz gives 220.5 samples per bin of 5 ms, which is not an integer number of
    samples...
    """

    #: Clips by index, as in every published score of these data; used where no split is named.
    default_split = "14/3/3"

    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        dt_ms: float = 5.0,
        smooth: bool = True,
        download: bool = False,
        return_waveform: bool = False,
        audio_fs: int = 48000,
        *,
        spectrogram: str = "auto",
        alignment: str = "native",
        binning: str = "half-open",
        on_bad_file: str = "error",
        cache: bool = True,
    ) -> None:
        root = data_dir("NS1") if path is None else Path(path)
        super().__init__(root, dt_ms)
        n_bins = count_bins(NS1_RAW_LEN_MS, self.dt)
        _validate_options(spectrogram, alignment, binning, on_bad_file)
        validate_binning(binning, self.dt)
        hop = 0
        if return_waveform:
            hop, audio_fs = _validation.check_hop(audio_fs, self.dt), int(audio_fs)
        kind = "recomputed" if return_waveform else choose_spectrogram(root, spectrogram, alignment, self.dt)
        if download:
            download_ns1(root, spectrogram=spectrogram == "shipped", cache=cache)
        self.name, self.species = "NS1", "ferret"
        self.hearing_range_hz = FERRET_HEARING_RANGE_HZ
        self.F = RAHMAN_N_FILTERS
        self.frequencies_hz = rahman_frequencies().numpy()
        self.return_waveform, self.audio_fs = return_waveform, audio_fs if return_waveform else None
        trains = load_spikes(root, "natural", on_bad_file=on_bad_file, cache=cache)
        if return_waveform:
            stimuli = load_waveforms(root, audio_fs, n_bins * hop, cache=cache)
        else:
            stimuli = load_spectrograms(root, kind, alignment, self.dt, n_bins, cache=cache)
        self.nrn_meta, self.load_report = trains.neurons, trains.report
        self.N_neurons = len(trains.neurons)
        self.stims = [torch.from_numpy(values) for values in stimuli.values]
        self.responses = trains.binned(n_bins, self.dt, binning)
        self.stim_meta = _stim_meta(stimuli)
        self.smoothing_ms = SMOOTHING_MS if smooth else None
        self.facts = {**stimuli.facts, "binning": binning, "source": "osf.io/ayw2p"}
        self.validate()

    def drc_responses(self, duration_ms: float = NS1_RAW_LEN_MS, *, cache: bool = True) -> DRCResponses:
        """Return the responses of this dataset's units to the 12 random chord sequences.

        The sounds of these sequences were not published, so there is nothing to fit; the responses serve
        reliability and rate statistics. With the sounds at hand, ``AudioNeuralDataset.from_arrays`` makes a
        dataset of both.

        Parameters
        ----------
        duration_ms : float
            Whole bins up to this time after sound onset; spikes were recorded up to 5200 ms.
        cache : bool
            Use and fill the cache of parsed files.

        Returns
        -------
        DRCResponses
            12 blocks (N, 5, T), binned as this dataset is, rows in the order of `nrn_meta`.

        Raises
        ------
        FileNotFoundError, ValueError
            When the recording is no longer where this dataset was loaded from.
        """
        binning = self.facts.get("binning", BINNINGS[0])
        n_bins = count_bins(duration_ms, self.dt)
        trains = load_spikes(Path(self.path), "drc", on_bad_file="skip", cache=cache)
        rows = {neuron["cell_id"]: row for row, neuron in enumerate(trains.neurons)}
        cell_ids = [str(neuron["cell_id"]) for neuron in self.nrn_meta]
        chosen = [rows[cell_id] for cell_id in cell_ids]
        blocks = trains.binned(n_bins, self.dt, binning)
        stim_meta = [
            {
                "name": f"drc{number + 1:02d}",
                "type": "random_chords",
                "set": _DRC_SETS[number % len(_DRC_SETS)],
                "token": number // len(_DRC_SETS),
                "level_db": _DRC_LEVEL_DB,
            }
            for number in range(NS1_DRC_SOUNDS)
        ]
        return DRCResponses([_block(block)[chosen] for block in blocks], stim_meta, cell_ids, self.dt)


def _validate_options(spectrogram: str, alignment: str, binning: str, on_bad_file: str) -> None:
    """Raise ValueError for a word that is not among the legal ones."""
    for name, value, legal in (
        ("spectrogram", spectrogram, SPECTROGRAMS),
        ("alignment", alignment, ALIGNMENTS),
        ("binning", binning, BINNINGS),
        ("on_bad_file", on_bad_file, ON_BAD_FILE),
    ):
        if value not in legal:
            raise ValueError(f"{name} is one of {', '.join(map(repr, legal))}, got {value!r}")


def _stim_meta(stimuli: Stimuli) -> list[dict[str, Any]]:
    meta = []
    for clip in range(NS1_NAT_SOUNDS):
        row = {
            "name": f"nat{clip + 1:02d}",
            "type": NS1_TYPE_OVERRIDES.get(clip, "unknown"),
            "file": NS1_WAV_FILENAMES[clip],
        }
        if stimuli.source_sha256:
            row["source_sha256"] = stimuli.source_sha256[clip]
        meta.append(row)
    return meta


def _block(counts: Any) -> Tensor:
    """Return (N, R, T) float32 of a block, or of a list of (R_n, T) filled up with NaN."""
    if not isinstance(counts, list):
        return torch.from_numpy(counts.astype(np.float32))
    rows = [torch.from_numpy(one.astype(np.float32)) for one in counts]
    block = torch.full((len(rows), max(len(one) for one in rows), rows[0].shape[-1]), torch.nan)
    for at, one in enumerate(rows):
        block[at, : len(one)] = one
    return block
