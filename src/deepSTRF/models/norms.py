"""Normalisation layers that keep causality: they mix bands or channels, never time."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_positive_int, checked
from deepSTRF.models.configurable import Configurable
from deepSTRF.models.fitted_on import band_moments
from deepSTRF.models.streaming import FramewiseMixin

__all__ = ["BandStandardizer", "CausalLayerNorm"]


class CausalLayerNorm(FramewiseMixin, nn.Module, Configurable):
    """Layer normalisation over one axis, at every other index by itself.

    ``gamma (x - mean) / sqrt(var + eps) + beta`` with the biased variance.

    Parameters
    ----------
    normalized_shape : int
        Size of the normalised axis.
    dim : int
        The axis: 1 for channels, -2 for frequency. Normalising the last axis (time) would look ahead and is
        an error.
    eps : float
        Added to the (biased) variance.
    elementwise_affine : bool
        Whether gain and offset are learned.

    Raises
    ------
    ValueError
        When ``dim`` is the time axis.

    Examples
    --------
    >>> norm = CausalLayerNorm(20)
    >>> norm(torch.randn(2, 20, 1, 100)).shape
    torch.Size([2, 20, 1, 100])
    """

    @checked
    def __init__(
        self, normalized_shape: int, dim: int = 1, eps: float = 1e-5, elementwise_affine: bool = True
    ) -> None:
        super().__init__()
        if dim == -1:
            raise ValueError(
                "dim=-1 is time, and normalising over time looks ahead; use 1 (channels) or -2 (frequency)"
            )
        self.dim = dim
        self.ln = nn.LayerNorm(
            check_positive_int("normalized_shape", normalized_shape),
            eps=eps,
            elementwise_affine=elementwise_affine,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Normalise axis ``dim`` of a tensor whose last axis is time."""
        if self.dim % x.ndim == x.ndim - 1:
            raise ValueError(f"dim={self.dim} is the time axis of an input of shape {tuple(x.shape)}")
        return self.ln(x.transpose(self.dim, -1)).transpose(self.dim, -1)  # type: ignore[no-any-return]


class BandStandardizer(FramewiseMixin, nn.Module, Configurable):
    """Fixed z-scoring of every frequency band: ``(x - mean) / std`` with numbers measured on training clips.

    Both are buffers, saved with the model and without gradient. A band that never changes has divisor 1.
    """

    mean: Tensor  # (F,) in the units of the spectrogram
    std: Tensor
    _fitted: Tensor

    def __init__(self, n_frequency_bands: int) -> None:
        super().__init__()
        self.F = check_positive_int("n_frequency_bands", n_frequency_bands)
        self.register_buffer("mean", torch.zeros(self.F))
        self.register_buffer("std", torch.ones(self.F))
        self.register_buffer("_fitted", torch.tensor(False))
        self._is_fitted = False  # the buffer's value, held here so that forward never waits for a GPU
        self._measured: tuple[Tensor, Tensor] | None = None

    @property
    def fitted(self) -> bool:
        """Whether mean and standard deviation were measured or loaded."""
        return self._is_fitted

    def fit(self, spectrograms: Iterable[Tensor]) -> BandStandardizer:
        """Measure mean and (population) standard deviation of each band over all frames (..., F, T)."""
        return self.set_moments(*band_moments(spectrograms, self.F))

    def set_moments(self, mean: Tensor, std: Tensor) -> BandStandardizer:
        """Take mean and standard deviation (F,) of `band_moments`."""
        self._measured = mean.double().cpu(), torch.where(std == 0, 1.0, std.double()).cpu()
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std == 0, 1.0, std))
        self._fitted.fill_(True)
        self._is_fitted = True
        return self

    def measured_moments(self) -> tuple[Tensor, Tensor]:
        """Mean and divisor (F,) in double precision: as measured, or as loaded."""
        return (
            (self.mean.double().cpu(), self.std.double().cpu()) if self._measured is None else self._measured
        )

    def forward(self, x: Tensor) -> Tensor:
        """Standardise (..., F, T)."""
        if not self._is_fitted:
            raise RuntimeError(
                "the per-band standardisation was not fitted: call "
                "model.fit_standardization(training_stimuli) before the first forward, e.g. "
                "model.fit_standardization([dataset.stims[i] for i in train_clips])"
            )
        return (x - self.mean.unsqueeze(-1)) / self.std.unsqueeze(-1)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._measured = None
        self._is_fitted = bool(self._fitted) and math.isfinite(float(self.std.sum()))
