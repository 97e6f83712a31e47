"""The linear model: one spectro-temporal receptive field per neuron."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from deepSTRF._validation import check_positive_int, check_positive_number, checked, checked_but
from deepSTRF.models.base import AudioEncodingModel, resolve_slot
from deepSTRF.models.readouts import STRFReadout
from deepSTRF.registry import KERNELS, MODELS

__all__ = ["DEFAULT_WINDOW", "Linear", "lag_range", "window_of_lags"]

#: Frames of a window that nobody chose: that of the published models of NS1 (45 ms of 5 ms bins).
DEFAULT_WINDOW = 9
#: Lags in ms may miss a whole bin by this share of one: numbers rounded for a page still count.
LAG_TOLERANCE = 0.01


def lag_range(lags_ms: Sequence[float], dt_ms: float) -> tuple[int, int]:
    """First and last lag in bins, both included, of a range of lags in ms (first, last)."""
    ends = [float(end) for end in lags_ms]
    if len(ends) != 2 or not all(abs(end) < float("inf") for end in ends) or ends[0] > ends[1]:
        raise ValueError(
            f"lags_ms must be (first, last) in ms, first <= last, e.g. (-100, 400): from 100 ms after the "
            f"response to 400 ms before it; got {tuple(lags_ms)!r}"
        )
    bins = [round(end / dt_ms) for end in ends]
    if any(abs(end / dt_ms - whole) > LAG_TOLERANCE for end, whole in zip(ends, bins, strict=True)):
        raise ValueError(
            f"lags_ms={tuple(lags_ms)!r} are no whole bins of {dt_ms:.9g} ms; the nearest that are: "
            f"({bins[0] * dt_ms:.9g}, {bins[1] * dt_ms:.9g})"
        )
    return bins[0], bins[1]


def window_of_lags(lags: Sequence[int], given: int | None, name: str) -> tuple[int, int]:
    """Frames of a window and its first lag, from lags (first, last); an error where ``given`` disagrees."""
    if len(lags) != 2 or any(int(lag) != lag for lag in lags) or lags[0] > lags[1]:
        raise ValueError(f"lags must be (first, last) in whole frames, first <= last, got {tuple(lags)!r}")
    n_frames = int(lags[1]) - int(lags[0]) + 1
    if given is not None and given != n_frames:
        raise ValueError(
            f"the lags {lags[0]} to {lags[1]} are {n_frames} frames (both ends included) and {name}={given} "
            "says otherwise; leave one of them out"
        )
    return check_positive_int("the number of lags", n_frames), int(lags[0])


@MODELS.register("linear")
class Linear(AudioEncodingModel):
    """The STRF model: each rate is a weighted sum of the spectrogram's last ``T`` frames, plus a constant.

    With 34 bands, 9 frames, 119 neurons and batch normalisation it has 36,771 parameters: 119 * 34 * 9
    weights, 119 biases, and a gain and offset per neuron.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    temporal_window_size : int or None
        Frames of each STRF, T; None is 9, or the number of ``lags``.
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
    lags : (int, int), optional
        First and last lag in frames, both included: the response at t depends on the frames t - lag. Lags
        below 0 are frames after the response; (-10, 40) is T = 51. None is (0, T - 1).
    lags_ms, dt_ms : (float, float) and float, optional
        The same in ms, with the bin width: whole bins, to a hundredth.

    Attributes
    ----------
    first_lag : int
        Lag of the newest frame of the STRFs, 0 unless ``lags`` say otherwise.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, or a window and lags that disagree.

    Notes
    -----
    With lags below 0 the model is not causal (``lookahead_frames``): it has no stream, and at the end of a
    clip, where frames are still to come, it sees zeros, as at the start (the mean level with
    ``standardize=True``). In a padded batch the ends of shorter clips see the padding instead: fit such
    models with a batch size of 1, or clips of one length.

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
        temporal_window_size: int | None = None,
        out_neurons: int = 1,
        output_activation: nn.Module | str | None = None,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        kernel: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        norm: str = "batch",
        standardize: bool = False,
        lags: Sequence[int] | None = None,
        lags_ms: Sequence[float] | None = None,
        dt_ms: float | None = None,
    ) -> None:
        if lags_ms is not None:
            if lags is not None or dt_ms is None:
                raise ValueError("lags_ms goes with dt_ms, the bin width in ms, and in the place of lags")
            lags = lag_range(lags_ms, check_positive_number("dt_ms", dt_ms))
        window = DEFAULT_WINDOW if temporal_window_size is None else temporal_window_size
        first_lag = 0
        if lags is not None:
            window, first_lag = window_of_lags(lags, temporal_window_size, "temporal_window_size")
        super().__init__(n_frequency_bands, window, out_neurons, prefiltering, wav2spec, standardize)
        self.first_lag, self.lookahead_frames = first_lag, max(-first_lag, 0)
        #: Bin width for which lags in ms were given; fits and predictions compare it with the recording's.
        self.lag_bin_ms = None if lags_ms is None or dt_ms is None else float(dt_ms)
        sizes = {"F": self.F, "T": self.T, "C_in": self.C_in, "C_out": self.O}
        strfs = resolve_slot("kernel", kernel, KERNELS, **sizes)
        self.readout = STRFReadout(
            self.F, self.T, self.C_in, self.O, strfs, output_activation, norm=norm, first_lag=self.first_lag
        )
        self.validate()

    def extra_repr(self) -> str:
        """Return the lags, where they do not begin at the current frame."""
        return f"lags=({self.first_lag}, {self.first_lag + self.T - 1})" if self.first_lag else ""

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

    def feature_rows(self, name: str) -> slice:
        """Return the bands of one feature of the recording that the model was fitted on.

        Parameters
        ----------
        name : str
            E.g. "onsets", of stimuli that are several named features.

        Returns
        -------
        slice
            Of axis F.

        Raises
        ------
        KeyError
            For another name, or a model that knows no features.
        """
        known = self.fitted_on.feature_sizes() if self.fitted_on is not None else {}
        if name not in known:
            has = f"has {', '.join(known)}" if known else "names no features"
            raise KeyError(f"no feature {name!r}: the recording of the fit {has}")
        first = sum(known[other] for other in list(known)[: list(known).index(name)])
        return slice(first, first + known[name])

    @checked
    def STRF_weight(
        self,
        polarity: str | int | None = None,
        folded: bool = False,
        *,
        unit: str | None = None,
        feature: str | None = None,
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
        feature : str, optional
            One feature of a recording of several; None is all rows.

        Returns
        -------
        Tensor
            (N, F, T), detached, on the CPU; band 0 is the lowest, frame ``T - 1`` the current one, or that of
            ``first_lag``.

        Raises
        ------
        KeyError
            For a feature that the recording of the fit does not have.
        ValueError
            For an unknown polarity or unit, "sd" of a model that was not fitted, or ``folded`` with a
            standardisation before a (nonlinear) prefilter.
        """
        weight = self.readout.STRF_weight(0 if polarity is None else polarity, folded=folded)
        if folded:
            weight = weight * self.output_scale.scale.detach().cpu().view(-1, 1, 1)
        fields = self._kernel_in_unit(weight, folded, unit)
        return fields if feature is None else fields[:, self.feature_rows(feature)]

    @checked
    def STRFs(
        self,
        polarity: str | int | None = None,
        folded: bool = False,
        *,
        unit: str | None = None,
        feature: str | None = None,
    ) -> Tensor:
        """Return the STRFs (N, F, T): `STRF_weight` by the name that all models with STRFs share."""
        return self.STRF_weight(polarity, folded, unit=unit, feature=feature)
