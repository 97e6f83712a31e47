"""Base classes of the front-ends that are a filterbank, a detector and a pooling window.

`PooledFilterbank` runs on the grouped engine (`deepSTRF.dsp.filterbank`) with filters that a subclass builds
from its parameters; `FixedFilterbank` is the form without parameters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF.dsp.filterbank import (
    COMPLEX_DETECTORS,
    Bank,
    FilterbankPlan,
    filter_matrix,
    pooled_filterbank,
    pooling_matrix,
    prepare_bank,
    stream_bank,
    stream_filterbank,
)
from deepSTRF.dsp.resonators import ResonatorBank, pooled_resonators, resonator_bank
from deepSTRF.models.configurable import placement
from deepSTRF.models.derived import KeepsDerived
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.models.wav2spec.base import WaveformFrontEnd, full_precision, without_autocast

__all__ = ["FixedFilterbank", "PooledFilterbank"]

#: The bank, and the values of the compression.
Prepared = tuple[Bank, tuple[Tensor, ...]]

#: Strides keep so many samples of a smooth pooling window: with fewer, ripples of the envelope alias.
SAMPLES_PER_WINDOW = 16
#: Up to this many frames, a chunk is computed with the plan for streams.
_FEW_FRAMES = 4


class PooledFilterbank(KeepsDerived, WaveformFrontEnd):
    """Base of the front-ends that run on the grouped filterbank engine (`deepSTRF.dsp.filterbank`).

    A subclass calls `set_plan` in its constructor and writes `build_filters`, which turns its parameters into
    taps and pooling windows; it may override `compress` (and `init_compression` when that carries a state).
    Streaming keeps the last samples of sound and their contributions to bins that are not complete.
    """

    plan: FilterbankPlan
    detector: str  # of `deepSTRF.dsp.filterbank.detect`

    def set_plan(self, plan: FilterbankPlan, detector: str, window_samples: int) -> None:
        """Fix groups, detector and the length of the longest pooling window (rounded up to whole bins)."""
        self.plan, self.detector = plan, detector
        self.pooled_bins = -(-window_samples // self.hop)
        self.left_context = plan.history + (self.pooled_bins - 1) * self.hop

    def build_filters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Taps (P, F_g, K_g) and pooling windows (F_g, pooled_bins * hop / stride) of every group."""
        raise NotImplementedError(f"{type(self).__name__} must define build_filters()")

    def build_bank(self, plan: FilterbankPlan) -> Bank:
        """Filters and pooling of every group, arranged for `deepSTRF.dsp.filterbank.pooled_filterbank`."""
        return prepare_bank(*self.build_filters(), plan)

    def compression_values(self) -> tuple[Tensor, ...]:
        """Values that `compress` computes from the parameters; computed once while not learning."""
        return ()

    def compress(
        self, energy: Tensor, values: tuple[Tensor, ...], state: State | None
    ) -> tuple[Tensor, State]:
        """Compress pooled energies (B, F, T); return them and the state for the next chunk."""
        return energy, {}

    def init_compression(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """State of `compress` before the first frame."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """Spectrogram (B, 1, F, T) of a waveform (B, 1, T * hop)."""
        self.check_waveform(x)
        x = full_precision(x)
        with without_autocast(x.device.type):
            sound = functional.pad(x[:, 0], (self.plan.history, 0))
            bank, values = self._prepare(streaming=False)
            pooled = pooled_filterbank(sound, _as_precise(bank, sound), self.plan, self.detector)
            frames, _ = self.compress(pooled[..., : x.shape[-1] // self.hop], values, None)
        return frames.unsqueeze(1)

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """State of silence before the first sample.

        ``"history"`` (B, 1, H) holds the latest sound, ``"pending"`` (B, F, D - 1) its contributions to bins
        that are not complete, ``"compression"`` the state of the compression.
        """
        where, precision = placement(self, device, dtype)
        kind: dict[str, Any] = {"device": where, "dtype": precision}
        return {
            "history": torch.zeros(batch, 1, self.plan.history, **kind),
            "pending": torch.zeros(batch, self.n_filters, self.pooled_bins - 1, **kind),
            "compression": self.init_compression(batch, **kind),
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Turn the next whole frames of audio (B, 1, n * hop) into (B, 1, F, n) and the next state."""
        self.check_waveform(chunk)
        chunk = full_precision(chunk)
        n_frames = chunk.shape[-1] // self.hop
        with without_autocast(chunk.device.type):
            pooled, memory, values = self._pool(chunk, state)
            pooled = pooled + functional.pad(state["pending"], (0, n_frames))
            frames, compression = self.compress(pooled[..., :n_frames], values, state["compression"])
        following = {**memory, "pending": pooled[..., n_frames:], "compression": compression}
        return frames.unsqueeze(1), following

    def _pool(self, chunk: Tensor, state: State) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        """Pooled energies (B, F, T + D - 1), what the filters remember, and values of the compression."""
        sound = torch.cat([state["history"], chunk], dim=-1)
        streaming = chunk.shape[-1] <= _FEW_FRAMES * self.hop
        bank, values = self._prepare(streaming)
        plan = self.plan.for_streams if streaming else self.plan
        compute = stream_filterbank if streaming else pooled_filterbank
        pooled = compute(sound[:, 0], _as_precise(bank, sound), plan, self.detector)
        return pooled, {"history": sound[..., sound.shape[-1] - self.plan.history :]}, values

    def _prepare(self, streaming: bool) -> Prepared:
        """Filters and compression: built anew while learning, kept otherwise."""
        return self._derived(streaming, lambda: self._build(streaming))

    def fix_derived(self) -> None:
        """Filters for single frames, and those for many."""
        self._prepare(streaming=True)
        self._prepare(streaming=False)
        # traces of loops cannot enter the lock of a cached property that was never read
        max(plan.history for plan in (self.plan, self.plan.for_streams))

    def _build(self, streaming: bool) -> Prepared:
        if not streaming:
            return self.build_bank(self.plan), self.compression_values()
        n_parts = 2 if self.detector in COMPLEX_DETECTORS else 1
        return stream_bank(self.build_bank(self.plan.for_streams), n_parts), self.compression_values()

    @property
    def channel_latency_ms(self) -> Tensor:
        """Delay of each band (F,) in ms: centroid of what a click leaves in the frames, less half a bin.

        It is the mean age of the detected impulse response, as the bank has it (learned, cut by
        ``kernel_ms``), and of the pooling window.
        """
        ages = []
        with torch.no_grad():
            for group, taps, window in zip(self.plan.groups, *self.build_filters(), strict=True):
                # as `detect` has it, without its floor
                mark = (taps.clamp_min(0.0) if self.detector == "halfwave" else taps).double().square().sum(0)
                mark = mark if self.detector in ("power", "square") else mark.sqrt()
                weight = window.double()
                age = torch.arange(mark.shape[-1] - 1, -1, -1, device=mark.device)
                window_age = group.stride * torch.arange(weight.shape[-1], device=mark.device)
                filter_mean = (mark * age).sum(-1) / mark.sum(-1)
                ages.append(filter_mean + (weight * window_age).sum(-1) / weight.sum(-1))
        # ages count from the newest sample, whose middle lies half a sample before the end of the bin
        samples = torch.cat(ages) + 0.5 - self.hop / 2.0
        return (1000.0 * samples / float(self.audio_fs)).to(placement(self)[1])

    @property
    def latency_ms(self) -> float:
        """Mean over bands of `channel_latency_ms`."""
        return float(self.channel_latency_ms.mean())


class FixedFilterbank(PooledFilterbank):
    """Base of the filterbanks without parameters: `set_plan`, then `set_filters`, in float64.

    Filters that ring (`deepSTRF.dsp.resonators`) carry their states in the place of the latest sound.
    """

    _taps: Tensor
    _windows: Tensor
    _samples: Tensor
    _states: Tensor
    _ringing: Tensor
    _bins: Tensor
    _pooling: Tensor

    def set_filters(
        self, taps: list[Tensor], windows: Tensor, resonators: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Fix taps (P, F_g, K_g) per group, pooling windows, and resonators (pole and amplitude (F,))."""
        self.register_constant("_taps", torch.cat([rows.flatten(1) for rows in taps], dim=-1))
        self.register_constant("_windows", windows)
        bins = [
            rows.reshape(len(rows), self.pooled_bins, -1)
            for rows in self.plan.split_windows(windows, self.pooled_bins)
        ]
        self._flat = all(torch.equal(rows, rows[..., :1].expand_as(rows)) for rows in bins)
        self._rings = resonators is not None
        if resonators is None:
            return
        for name, matrix in resonator_bank(*resonators, self.hop)._asdict().items():
            self.register_constant(f"_{name}", matrix)
        weights = torch.cat(bins).flip(-1).transpose(1, 2)  # ages: the newest sample comes first
        self.register_constant("_pooling", weights[:, :1] if self._flat else weights)

    def build_filters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Taps (P, F_g, K_g) and averaging windows of every group."""
        return self.plan.split_taps(self._taps), self.plan.split_windows(self._windows, self.pooled_bins)

    def build_bank(self, plan: FilterbankPlan) -> Bank:
        """Filters and pooling of every group, arranged for `deepSTRF.dsp.filterbank.pooled_filterbank`."""
        bank = []
        for group, taps, windows in zip(plan.groups, *self.build_filters(), strict=True):
            steps = plan.hop // group.stride
            # flat windows need one weight per bin
            pooling = pooling_matrix(windows[:, ::steps], 1) if self._flat else pooling_matrix(windows, steps)
            bank.append((filter_matrix(taps, group), pooling))
        return bank

    def forward(self, x: Tensor) -> Tensor:
        """Spectrogram (B, 1, F, T) of a waveform (B, 1, T * hop)."""
        if not self._rings:
            return super().forward(x)
        self.check_waveform(x)
        return self.step(x, self.init_state(x.shape[0], device=x.device, dtype=full_precision(x).dtype))[0]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """State of silence; ringing filters hold ``"ringing"`` (B, F, R) in the place of the sound."""
        state = super().init_state(batch, device=device, dtype=dtype)
        if self._rings:
            n_states = self._ringing.shape[1]
            state = {"ringing": state.pop("history").new_zeros(batch, self.n_filters, n_states), **state}
        return state

    def fix_derived(self) -> None:
        """Filters given by taps have matrices, those that ring are ready."""
        if not self._rings:
            super().fix_derived()

    def _pool(self, chunk: Tensor, state: State) -> tuple[Tensor, State, tuple[Tensor, ...]]:
        if not self._rings:
            return super()._pool(chunk, state)
        bank = ResonatorBank(self._samples, self._states, self._ringing, self._bins)
        windows = self._pooling
        if windows.dtype != chunk.dtype:
            bank, windows = bank.to(chunk.dtype), windows.to(chunk.dtype)
        pooled, ringing = pooled_resonators(chunk[:, 0], bank, windows, state["ringing"], self.detector)
        return pooled, {"ringing": ringing}, ()


def _as_precise(bank: Bank, sound: Tensor) -> Bank:
    """The bank in the precision of the sound."""
    if bank[0][1].dtype == sound.dtype:
        return bank
    return [(filters.to(sound.dtype), pooling.to(sound.dtype)) for filters, pooling in bank]
