"""Front-ends whose filters are never learned."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from deepSTRF.dsp.filterbank import (
    COMPLEX_DETECTORS,
    Bank,
    FilterbankPlan,
    ResonatorMatrices,
    filter_matrix,
    pooled_filterbank,
    pooling_matrix,
    prepare_bank,
    resonator_matrices,
    stream_bank,
    stream_filterbank,
)
from deepSTRF.models.streaming import State, placement
from deepSTRF.models.wav2spec.base import WaveformFrontEnd, without_autocast

__all__ = ["FixedFilterbank", "PooledFilterbank"]

# ------------------------------------------------------------------------------
# Front-ends that are a filterbank, a detector and a pooling window.


#: The bank, and the values of the compression.
Prepared = tuple[Bank, tuple[Tensor, ...]]
#: Up to this many frames, a chunk is computed with the plan for streams.
_FEW_FRAMES = 4


class PooledFilterbank(WaveformFrontEnd):
    """Base of the front-ends that run on the grouped filterbank engine (`deepSTRF.dsp.filterbank`).

    A subclass calls `set_plan` in its constructor and writes `build_filters`, which turns its parameters into
    taps and pooling windows; it may override `compress` (and `init_compression` when that carries a state).
    Streaming keeps the last samples of sound and the bins that they have not finished filling, so a chunk
    costs what its own samples cost.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_filters : int
        Bands, F.
    hop_ms : float
        Bin width in milliseconds.

    Attributes
    ----------
    plan : FilterbankPlan
        Kernel length and stride of each group of channels.
    detector : str
        What follows the filters (`deepSTRF.dsp.filterbank.detect`).

    Examples
    --------
    >>> from deepSTRF.dsp.filterbank import plan_filterbank
    >>> class Energy(PooledFilterbank):
    ...     def __init__(self, audio_fs, hop_ms=5.0):
    ...         super().__init__(audio_fs, 1, hop_ms)
    ...         plan = plan_filterbank([1], [1], self.hop, n_parts=1)
    ...         self.set_plan(plan, "square", window_samples=self.hop)
    ...     def build_filters(self):
    ...         return [torch.ones(1, 1, 1)], [torch.full((1, self.hop), 1 / self.hop)]
    >>> Energy(16000, hop_ms=4.0)(torch.ones(1, 1, 128))
    tensor([[[[1., 1.]]]])
    """

    plan: FilterbankPlan
    detector: str

    def set_plan(self, plan: FilterbankPlan, detector: str, window_samples: int) -> None:
        """Fix the shapes of the filterbank.

        Parameters
        ----------
        plan : FilterbankPlan
            Groups of channels.
        detector : str
            What follows the filters.
        window_samples : int
            Length of the longest pooling window; it is rounded up to whole bins.
        """
        self.plan, self.detector = plan, detector
        self.pooled_bins = -(-window_samples // self.hop)
        self.left_context = plan.history + (self.pooled_bins - 1) * self.hop
        self._prepared: tuple[Tensor | None, dict[bool, Prepared]] | None = None

    def build_filters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return taps (P, F_g, K_g) and pooling windows (F_g, pooled_bins * hop / stride) of every group."""
        raise NotImplementedError(f"{type(self).__name__} must define build_filters()")

    def build_bank(self, plan: FilterbankPlan) -> Bank:
        """Return filters and pooling of every group, laid out for `deepSTRF.dsp.pooled_filterbank`.

        Parameters
        ----------
        plan : FilterbankPlan
            The front-end's own plan, or that plan `for_streams`.
        """
        return prepare_bank(*self.build_filters(), plan)

    def compression_values(self) -> tuple[Tensor, ...]:
        """Return what `compress` needs of the parameters; computed once while not learning."""
        return ()

    def compress(
        self, energy: Tensor, values: tuple[Tensor, ...], state: State | None
    ) -> tuple[Tensor, State]:
        """Compress pooled energies (B, F, T); return them and the state for the next chunk."""
        return energy, {}

    def init_compression(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """Return the state of `compress` before the first frame."""
        return {}

    def forward(self, x: Tensor) -> Tensor:
        """Return the spectrogram (B, 1, F, T) of a waveform (B, 1, T * hop).

        Parameters
        ----------
        x : Tensor
            (B, 1, T_audio), T_audio a multiple of ``hop``.

        Returns
        -------
        Tensor
            (B, 1, F, T_audio / hop).

        Raises
        ------
        ValueError
            For another rank, more than one channel, or a length that is no multiple of the hop.
        """
        self.check_waveform(x)
        x = _full_precision(x)
        with without_autocast(x.device.type):
            sound = functional.pad(x[:, 0], (self.plan.history, 0))
            bank, values = self._prepare(streaming=False)
            pooled = pooled_filterbank(sound, _as_precise(bank, sound), self.plan, self.detector)
            frames, _ = self.compress(pooled[..., : x.shape[-1] // self.hop], values, None)
        return frames.unsqueeze(1)

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the silence before the first sample.

        ``"history"`` (B, 1, H) holds the latest sound, ``"pending"`` (B, F, D - 1) what it has given to bins
        that are not complete, ``"compression"`` the state of the compression.
        """
        own_device, own_dtype = placement(self)
        kind: dict[str, Any] = {"device": torch.device(device or own_device), "dtype": dtype or own_dtype}
        return {
            "history": torch.zeros(batch, 1, self.plan.history, **kind),
            "pending": torch.zeros(batch, self.n_filters, self.pooled_bins - 1, **kind),
            "compression": self.init_compression(batch, **kind),
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Turn the next whole frames of audio (B, 1, n * hop) into (B, 1, F, n) and the next state."""
        self.check_waveform(chunk)
        chunk = _full_precision(chunk)
        n_frames = chunk.shape[-1] // self.hop
        with without_autocast(chunk.device.type):
            sound = torch.cat([state["history"], chunk], dim=-1)
            streaming = n_frames <= _FEW_FRAMES
            bank, values = self._prepare(streaming)
            plan = self.plan.for_streams if streaming else self.plan
            compute = stream_filterbank if streaming else pooled_filterbank
            pooled = compute(sound[:, 0], _as_precise(bank, sound), plan, self.detector)
            pooled = pooled + functional.pad(state["pending"], (0, n_frames))
            frames, compression = self.compress(pooled[..., :n_frames], values, state["compression"])
        following = {
            "history": sound[..., sound.shape[-1] - self.plan.history :],
            "pending": pooled[..., n_frames:],
            "compression": compression,
        }
        return frames.unsqueeze(1), following

    def _prepare(self, streaming: bool) -> Prepared:
        """Return filters and compression: built anew while learning, remembered otherwise."""
        learning = torch.is_grad_enabled() and self.is_learnable
        if learning or torch.compiler.is_compiling():
            return self._build(streaming)
        with torch.inference_mode(False), torch.no_grad():
            # the values themselves are the key: a version counter would miss writes through .data
            values = [p if p.ndim == 1 else p.reshape(-1) for p in self.parameters()]
            key = torch.cat(values) if values else None
            if self._prepared is None or not _same_values(self._prepared[0], key):
                self._prepared = (key, {})
            remembered = self._prepared[1]
            if streaming not in remembered:
                remembered[streaming] = self._build(streaming)
            return remembered[streaming]

    def _build(self, streaming: bool) -> Prepared:
        if not streaming:
            return self.build_bank(self.plan), self.compression_values()
        n_parts = 2 if self.detector in COMPLEX_DETECTORS else 1
        return stream_bank(self.build_bank(self.plan.for_streams), n_parts), self.compression_values()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        self._prepared = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_prepared": None}

    @property
    def channel_latency_ms(self) -> Tensor:
        """Delay of each band (F,) in ms: mean age of the envelope in a frame, less half a bin."""
        raise NotImplementedError(f"{type(self).__name__} must define channel_latency_ms")

    @property
    def latency_ms(self) -> float:
        """Mean over bands of `channel_latency_ms`."""
        return float(self.channel_latency_ms.mean())

    def _latency_from_ages(self, filter_age: Tensor, window_age: Tensor) -> Tensor:
        """Return delays (F,) in ms from the mean ages, in samples, of each filter and each pooling window."""
        # ages count from the newest sample, whose middle lies half a sample before the end of the bin
        samples = filter_age + window_age + 0.5 - self.hop / 2.0
        return 1000.0 * samples.detach() / float(self.audio_fs)


def _full_precision(x: Tensor) -> Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _as_precise(bank: Bank, sound: Tensor) -> Bank:
    """Return the bank in the precision of the sound."""
    if bank[0][1].dtype == sound.dtype:
        return bank
    return [(filters.to(sound.dtype), pooling.to(sound.dtype)) for filters, pooling in bank]


def _same_values(old: Tensor | None, new: Tensor | None) -> bool:
    if old is None or new is None:
        return old is new
    return old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)


# ------------------------------------------------------------------------------


class FixedFilterbank(PooledFilterbank):
    """Base of the filterbanks without parameters: laid out once, in float64, when they are built.

    A subclass calls `set_plan` and then `set_filters` in its constructor.

    Examples
    --------
    >>> from deepSTRF.dsp.filterbank import plan_filterbank
    >>> class MeanSquare(FixedFilterbank):
    ...     def __init__(self, audio_fs, hop_ms=5.0):
    ...         super().__init__(audio_fs, 1, hop_ms)
    ...         plan = plan_filterbank([1], [1], self.hop, n_parts=1)
    ...         self.set_plan(plan, "square", window_samples=self.hop)
    ...         self.set_filters([torch.ones(1, 1, 1)], torch.full((self.hop,), 1 / self.hop))
    >>> MeanSquare(16000, hop_ms=4.0)(torch.ones(1, 1, 128))
    tensor([[[[1., 1.]]]])
    """

    _taps: Tensor
    _windows: Tensor

    def set_filters(
        self, taps: list[Tensor], windows: Tensor, resonators: tuple[Tensor, Tensor] | None = None
    ) -> None:
        """Fix the filters.

        Shapes: taps (P, F_g, K_g); resonators (F,).
        """
        self.register_constant("_taps", torch.cat([rows.flatten(1) for rows in taps], dim=-1))
        self.register_constant("_windows", windows)
        bins = [
            rows.reshape(len(rows), self.pooled_bins, -1)
            for rows in self.plan.split_windows(windows, self.pooled_bins)
        ]
        self._flat = all(torch.equal(rows, rows[..., :1].expand_as(rows)) for rows in bins)
        if resonators is None:
            return
        for index, group in enumerate(self.plan.groups):
            pole, coefficients = (values[group.start : group.stop] for values in resonators)
            matrices = resonator_matrices(pole, coefficients, group)
            for name, matrix in zip(ResonatorMatrices._fields, matrices, strict=True):
                self.register_constant(f"_{name}_{index}", matrix)

    def build_filters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Return the taps (P, F_g, K_g) and the averaging windows of every group."""
        return self.plan.split_taps(self._taps), self.plan.split_windows(self._windows, self.pooled_bins)

    def build_bank(self, plan: FilterbankPlan) -> Bank:
        """Return filters and pooling of every group, laid out for `deepSTRF.dsp.pooled_filterbank`."""
        bank = []
        for index, (group, taps, windows) in enumerate(zip(plan.groups, *self.build_filters(), strict=True)):
            filters: Tensor | ResonatorMatrices
            if group.doublings > 0:
                matrices = (getattr(self, f"_{name}_{index}") for name in ResonatorMatrices._fields)
                filters = ResonatorMatrices(*matrices)
            else:
                filters = filter_matrix(taps, group)
            steps = plan.hop // group.stride
            # flat windows need one weight per bin
            pooling = pooling_matrix(windows[:, ::steps], 1) if self._flat else pooling_matrix(windows, steps)
            bank.append((filters, pooling))
        return bank
