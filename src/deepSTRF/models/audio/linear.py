"""The linear model: one spectro-temporal receptive field per neuron."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from deepSTRF._validation import checked, checked_but
from deepSTRF.models.base import AudioEncodingModel, resolve_slot
from deepSTRF.models.readouts import STRFReadout
from deepSTRF.registry import KERNELS, MODELS

__all__ = ["Linear"]


@MODELS.register("linear")
class Linear(AudioEncodingModel):
    """The STRF model: each rate is a weighted sum of the spectrogram's last ``T`` frames, plus a constant.

    With 34 bands, 9 frames, 119 neurons and batch normalisation it has 36,771 parameters: 119 * 34 * 9
    weights, 119 biases, and a gain and offset per neuron.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    temporal_window_size : int
        Frames of each STRF, T.
    out_neurons : int
        Neurons, N.
    output_activation : nn.Module, str or None
        Applied with the neurons on the last axis; a name is one of `ACTIVATIONS`, None is the identity.
    prefiltering : nn.Module, dict or None
        See `AudioEncodingModel`.
    kernel : nn.Module, dict or None
        A parameterised kernel, see `CausalSTRFConv`; None is a free weight per band and frame.
    wav2spec : nn.Module or None
        Front-end for waveforms; None expects spectrograms.
    norm : {"batch", "none"}
        Batch normalisation of each neuron's drive, or none (as closed-form solutions need).
    standardize : bool
        Whether the bands are z-scored first, see `AudioEncodingModel.fit_standardization`.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    References
    ----------
    Theunissen, Sen & Doupe 2000, doi 10.1523/JNEUROSCI.20-06-02315.2000.

    Examples
    --------
    >>> import torch
    >>> model = Linear(n_frequency_bands=34, temporal_window_size=9, out_neurons=119)
    >>> model.count_trainable_params()
    36771
    >>> model(torch.zeros(1, 1, 34, 100)).shape
    torch.Size([1, 119, 1, 100])
    >>> model.STRF_weight().shape
    torch.Size([119, 34, 9])
    """

    readout: STRFReadout

    @checked_but("output_activation")
    def __init__(
        self,
        n_frequency_bands: int = 34,
        temporal_window_size: int = 9,
        out_neurons: int = 1,
        output_activation: nn.Module | str | None = None,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        kernel: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        norm: str = "batch",
        standardize: bool = False,
    ) -> None:
        super().__init__(
            n_frequency_bands, temporal_window_size, out_neurons, prefiltering, wav2spec, standardize
        )
        sizes = {"F": self.F, "T": self.T, "C_in": self.C_in, "C_out": self.O}
        strfs = resolve_slot("kernel", kernel, KERNELS, **sizes)
        self.readout = STRFReadout(self.F, self.T, self.C_in, self.O, strfs, output_activation, norm=norm)
        self.validate()

    def convert_public_state(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Read the linear encoder of the dynamic STRF toolbox: one convolution (N, F, T) with a bias."""
        kernels = [name for name, value in state.items() if name.endswith("weight") and value.ndim == 3]
        if len(kernels) != 1 or state.keys() - {kernels[0], kernels[0].removesuffix("weight") + "bias"}:
            return dict(state)
        if self.readout.norm != "none":
            raise ValueError(
                "the linear model of the dynamic STRF toolbox has no batch normalisation: build "
                f'{type(self).__name__}(..., norm="none")'
            )
        return {
            "readout.strf.kernel." + name.rpartition(".")[2]: value.unsqueeze(1) if value.ndim == 3 else value
            for name, value in state.items()
        }

    @checked
    def STRF_weight(
        self, polarity: str | int | None = None, folded: bool = False, *, unit: str | None = None
    ) -> Tensor:
        """Return the STRFs of all neurons.

        Parameters
        ----------
        polarity : {None, "ON", "OFF", 0, 1}
            Channel of an ON/OFF prefilter; None is the first.
        folded : bool
            Whether to fold in the gains of batch normalisation (eval mode), input standardisation and output
            scale: weights from the spectrogram to the unit of the responses. Else the convolution kernel.
        unit : {None, "sd", "raw"}
            Per standard deviation of each band of the training sounds (0 for one without variance), or per
            unit of the spectrogram (not folded: the kernel as it is stored). None is "sd" for a fitted model,
            "raw" where no fit has measured the bands.

        Returns
        -------
        Tensor
            (N, F, T), detached, on the CPU; band 0 is the lowest, frame ``T - 1`` the current one.

        Raises
        ------
        ValueError
            For an unknown polarity or unit, "sd" of a model that was not fitted, or ``folded`` with a
            standardisation before a (nonlinear) prefilter.
        """
        weight = self.readout.STRF_weight(0 if polarity is None else polarity, folded=folded)
        if folded:
            weight = weight * self.output_scale.scale.detach().cpu().view(-1, 1, 1)
        return self._kernel_in_unit(weight, folded, unit)

    @checked
    def STRFs(
        self, polarity: str | int | None = None, folded: bool = False, *, unit: str | None = None
    ) -> Tensor:
        """Return the STRFs (N, F, T): `STRF_weight` by the name that all models with STRFs share."""
        return self.STRF_weight(polarity, folded, unit=unit)
