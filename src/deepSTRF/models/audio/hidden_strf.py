"""Models with hidden units that each have a spectro-temporal receptive field, and access to those fields.

`NetworkReceptiveField` and `DNet` derive from `HiddenSTRFModel`; `StateNet` shares `select_strfs`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from deepSTRF._validation import check_choice, check_positive_int, checked, polarity_channel
from deepSTRF.models.base import AudioEncodingModel, resolve_slot
from deepSTRF.models.kernels import CausalSTRFConv
from deepSTRF.models.norms import CausalLayerNorm
from deepSTRF.registry import KERNELS

__all__ = ["HiddenSTRFModel", "select_strfs"]


class HiddenSTRFModel(AudioEncodingModel):
    """A model whose H hidden units each have a receptive field; a subclass adds nonlinearity and readout."""

    core: nn.Sequential

    @checked
    def __init__(
        self,
        n_frequency_bands: int,
        temporal_window_size: int,
        n_hidden: int,
        out_neurons: int,
        prefiltering: nn.Module | Mapping[str, Any] | None,
        kernel: nn.Module | Mapping[str, Any] | None,
        wav2spec: nn.Module | None,
        norm: str,
        standardize: bool,
    ) -> None:
        super().__init__(
            n_frequency_bands, temporal_window_size, out_neurons, prefiltering, wav2spec, standardize
        )
        self.H = check_positive_int("n_hidden", n_hidden)
        check_choice("norm", norm, ("layer", "none"))
        if self.H == 1 and norm == "layer":
            raise ValueError(
                "layer normalisation of one hidden unit leaves a constant: use n_hidden of at least 2, or "
                "norm='none'"
            )
        sizes = {"F": self.F, "T": self.T, "C_in": self.C_in, "C_out": self.H}
        built = resolve_slot("kernel", kernel, KERNELS, **sizes)
        strfs = CausalSTRFConv(self.F, self.T, self.C_in, self.H, kernel=built)
        self.core = nn.Sequential(strfs, CausalLayerNorm(self.H) if norm == "layer" else nn.Identity())

    @checked
    def STRFs(
        self,
        hidden_idx: int | None = 0,
        polarity: str | int | None = "ON",
        folded: bool = False,
        *,
        unit: str | None = None,
    ) -> Tensor:
        """Return the receptive field (F, T) of one hidden unit, or those of all (H, F, T).

        ``hidden_idx=None`` is all units; ``polarity`` is the channel of an ON/OFF prefilter (``"ON"`` or 0,
        ``"OFF"`` or 1; None is the first); ``folded`` folds the input standardisation in, which gives weights
        on the spectrogram; ``unit`` is "sd", "raw" or None as in `Linear.STRF_weight`. Detached, on the CPU;
        band 0 is the lowest, frame ``T - 1`` the current one. An IndexError for an unknown unit; a ValueError
        for an unknown polarity, or for folding through a prefilter.
        """
        return select_strfs(self, cast(CausalSTRFConv, self.core[0]), hidden_idx, polarity, folded, unit)


def select_strfs(
    model: AudioEncodingModel,
    convolution: CausalSTRFConv,
    hidden_idx: int | None,
    polarity: str | int | None,
    folded: bool,
    unit: str | None = None,
) -> Tensor:
    """Return the receptive fields of the units of a model's convolution; see `HiddenSTRFModel.STRFs`."""
    weight = convolution.STRF_weight()
    weight = weight[:, polarity_channel(0 if polarity is None else polarity, model.C_in)]
    weight = model._kernel_in_unit(weight, folded, unit)
    if hidden_idx is None:
        return weight
    n_hidden = convolution.C_out
    if not -n_hidden <= hidden_idx < n_hidden:
        raise IndexError(
            f"hidden_idx must be below {n_hidden}, the number of hidden units, and at least {-n_hidden}, got "
            f"{hidden_idx}"
        )
    return weight[hidden_idx]
