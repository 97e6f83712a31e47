"""Front-ends whose filters are never learned."""

from __future__ import annotations

import torch
from torch import Tensor

from deepSTRF.dsp.filterbank import Bank, filter_matrix, pooling_matrix
from deepSTRF.dsp.plan import FilterbankPlan
from deepSTRF.dsp.resonators import ResonatorMatrices, resonator_matrices
from deepSTRF.models.wav2spec.pooled import PooledFilterbank

__all__ = ["FixedFilterbank"]


class FixedFilterbank(PooledFilterbank):
    """Base of the filterbanks without parameters: laid out once, in float64, when they are built.

    A subclass calls `set_plan` and then `set_filters` in its constructor.

    Parameters
    ----------
    audio_fs : float
        Audio rate in hertz.
    n_filters : int
        Bands, F.
    hop_ms : float
        Bin width in milliseconds.

    Examples
    --------
    >>> from deepSTRF.dsp.plan import plan_filterbank
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

        Parameters
        ----------
        taps : list of Tensor
            Per group of the plan (P, F_g, K_g), in the order of the samples they meet.
        windows : Tensor
            Averaging windows of all channels on `FilterbankPlan.window_layout`.
        resonators : tuple of Tensor, optional
            Poles (F,) and coefficients (F, n_poles) of the same filters, for a plan of resonators.
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
