"""What a dataset holds and how it is read: the part of `NeuralDataset` below views and conveniences."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from deepSTRF.datasets import _validation
from deepSTRF.datasets._pack import pack_responses
from deepSTRF.datasets.grid import ItemResponses, ResponseGrid, StimulusList
from deepSTRF.datasets.report import LoadReport
from deepSTRF.datasets.selection import as_index
from deepSTRF.datasets.storage import ResponseStorage
from deepSTRF.datasets.transforms import ResponseNormalization
from deepSTRF.dsp.smoothing import hanning_smooth

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
        self.dt = _validation.check_bin_width(dt_ms)
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

        Parameters
        ----------
        clip : int
            Clip index.

        Returns
        -------
        Tensor (N, R, T)
            float32, smoothed and normalised as the dataset says; NaN where nothing was recorded. R is the
            largest number of repeats of any neuron (1 when no neuron heard the clip).
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
