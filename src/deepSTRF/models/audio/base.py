"""Models of auditory neurons: the four slots with bands, a window and an optional standardisation."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from torch import Tensor, nn

from deepSTRF._validation import check_flag, check_positive_int
from deepSTRF.models.base import NeuralModel, resolve_slot
from deepSTRF.models.configurable import placement
from deepSTRF.models.gradients import GradientMaps
from deepSTRF.models.norms import BandStandardizer
from deepSTRF.models.prediction import evaluating
from deepSTRF.models.streaming import State
from deepSTRF.registry import PREFILTERS

__all__ = ["AudioEncodingModel"]


class AudioEncodingModel(GradientMaps, NeuralModel):
    """An encoding model that hears: a spectrogram of F bands, or a waveform through a front-end.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    temporal_window_size : int
        Frames of the past that the model looks at, the current one included, T.
    out_neurons : int
        Neurons, N.
    prefiltering : nn.Module, dict or None
        Maps (B, 1, F, T) to (B, C, F, T); its ``out_channels`` is C (1 when it has none). A dictionary names
        one: ``{"prefiltering": "adaptrans", "dt": 5.0}``.
    wav2spec : nn.Module or None
        Front-end that maps (B, 1, T_audio) to (B, 1, F, T); None expects spectrograms.
    standardize : bool
        Whether each band is z-scored with numbers measured by `fit_standardization`.

    Attributes
    ----------
    F, T, C_in : int
        Bands, window, channels after prefiltering.
    standardizer : BandStandardizer or None
        The input standardisation; it is part of the saved model.

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, or a front-end or prefilter with another number of bands.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> issubclass(Linear, AudioEncodingModel)
    True
    """

    standardizer: BandStandardizer | None

    def __init__(
        self,
        n_frequency_bands: int,
        temporal_window_size: int,
        out_neurons: int = 1,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        standardize: bool = False,
    ) -> None:
        super().__init__(out_neurons=out_neurons)
        self.F = check_positive_int("n_frequency_bands", n_frequency_bands)
        self.T = check_positive_int("temporal_window_size", temporal_window_size)
        prefilter = resolve_slot("prefiltering", prefiltering, PREFILTERS, n_frequency_bands=self.F)
        if prefilter is not None:
            _check_bands("prefiltering", "F", prefilter, self.F)
            self.prefiltering = prefilter
        self.C_in = check_positive_int("prefiltering.out_channels", getattr(prefilter, "out_channels", 1))
        if wav2spec is not None:
            _check_front_end(wav2spec, self.F)
            self.wav2spec = wav2spec
        if getattr(prefilter, "needs_energy", False):
            _check_energy(prefilter, wav2spec, standardize)
        self.standardizer = BandStandardizer(self.F) if check_flag("standardize", standardize) else None

    def respond(self, spectrogram: Tensor) -> Tensor:
        """Return the responses (B, N, 1, T) to spectrograms (B, 1, F, T), standardised when asked for."""
        return super().respond(self._standardized(spectrogram))

    def fit_standardization(self, stims: Iterable[Tensor]) -> Self:
        """Measure each band's mean and standard deviation on training clips.

        Parameters
        ----------
        stims : iterable of Tensor
            Training stimuli as the dataset holds them: (1, F, T) spectrograms, or (1, T_audio) waveforms,
            which pass through the front-end as it is now. A leading batch axis is fine.

        Returns
        -------
        AudioEncodingModel
            This model.

        Raises
        ------
        ValueError
            When the model was built without ``standardize=True``, or for no clips or values that are not
            finite.
        """
        if self.standardizer is None:
            name = type(self).__name__
            if "standardize" not in inspect.signature(type(self)).parameters:
                raise ValueError(f"{name} takes no standardisation: it learns its scales from the waveform")
            raise ValueError(f"build the model with {name}(..., standardize=True) to standardise its input")
        with evaluating(self):
            self.standardizer.fit(self._spectrograms(stims))
        return self

    def _spectrograms(self, stims: Iterable[Tensor]) -> Iterator[Tensor]:
        device, dtype = placement(self)
        rank = 4 if isinstance(self.wav2spec, nn.Identity) else 3
        for stim in stims:
            batch = stim.unsqueeze(0) if stim.ndim == rank - 1 else stim
            yield self.spectrogram(batch.to(device, dtype))

    def _standardized(self, spectrogram: Tensor) -> Tensor:
        return spectrogram if self.standardizer is None else self.standardizer(spectrogram)

    def _step_response(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        return super()._step_response(self._standardized(frames), state)

    def _check_spectrogram(self, x: Tensor) -> None:
        super()._check_spectrogram(x)
        if x.shape[1] != 1 or x.shape[2] != self.F:
            raise ValueError(
                f"expected spectrograms (B, 1, {self.F}, T), got {tuple(x.shape)}; the model was built with "
                f"n_frequency_bands={self.F}"
            )

    def param_groups(self, lr: float, *, weight_decay: float = 0.0) -> list[dict[str, Any]]:
        """Return optimiser groups: front-end and prefilter by themselves, at the rates they ask for.

        Parameters
        ----------
        lr : float
            Learning rate of core and readout, and of a front-end or prefilter without ``param_groups``.
        weight_decay : float
            Weight decay of core and readout; front-end and prefilter are never decayed.

        Returns
        -------
        list of dict
            E.g. for ``torch.optim.AdamW(model.param_groups(1e-3))``.
        """
        taken: set[int] = set()
        front: list[dict[str, Any]] = []
        for slot in (self.wav2spec, self.prefiltering):
            groups = getattr(slot, "param_groups", None)
            front += groups(lr) if callable(groups) else [{"params": list(slot.parameters()), "lr": lr}]
            taken.update(id(parameter) for parameter in slot.parameters())
        front = [{"weight_decay": 0.0, **group} for group in front if group["params"]]
        rest = [parameter for parameter in self.parameters() if id(parameter) not in taken]
        return [{"params": rest, "lr": lr, "weight_decay": weight_decay}, *front]

    @property
    def receptive_field(self) -> int | None:
        """Frames a prediction depends on: the model's own window plus the prefilter's memory, or None.

        They are frames of the spectrogram: what a front-end remembers of the sound comes on top.
        """
        window = self._memory()
        if window is None or self._sees_raw_bands():
            return window
        memory = getattr(self.prefiltering, "receptive_field", None)
        return None if memory is None else window + int(memory) - 1

    def _memory(self) -> int | None:
        """Prefiltered frames a prediction depends on; None when there is no end to them."""
        return self.T

    def _sees_raw_bands(self) -> bool:
        """Whether no prefilter stands between the spectrogram and the model."""
        return isinstance(self.prefiltering, nn.Identity)

    def _per_raw_unit(self, weight: Tensor) -> Tensor:
        """Receptive fields (..., F, T) on the raw spectrogram: the input standardisation is folded in."""
        if self.standardizer is None:
            return weight
        if not self._sees_raw_bands():
            raise ValueError(
                "standardisation cannot be folded through a prefilter; use folded=False, or the gradient "
                "map model.STRF_gradmap()"
            )
        return weight / self.standardizer.std.detach().cpu().unsqueeze(-1)

    def validate(self) -> None:
        """Check that the model is complete; see `NeuralModel.validate`."""
        super().validate()
        check_positive_int("n_frequency_bands", self.F)
        check_positive_int("temporal_window_size", self.T)
        check_positive_int("C_in", self.C_in)


def _check_front_end(wav2spec: object, bands: int) -> None:
    if not isinstance(wav2spec, nn.Module):
        raise TypeError(f"wav2spec must be an nn.Module or None, got {type(wav2spec).__name__}")
    missing = [name for name in ("out_channels", "hop", "audio_fs") if not hasattr(wav2spec, name)]
    if missing:
        raise ValueError(
            f"the front-end {type(wav2spec).__name__} lacks the attribute(s) {', '.join(missing)}; a "
            "wav2spec module states out_channels (bands), hop (samples per bin) and audio_fs (Hz)"
        )
    _check_bands("wav2spec", "out_channels", wav2spec, bands)


def _check_energy(prefilter: object, wav2spec: object, standardize: bool) -> None:
    """Raise an error where a prefilter that divides energies would be handed levels of either sign."""
    name = type(prefilter).__name__
    if standardize:
        raise ValueError(
            f"standardize=True hands {name} z-scored bands, and it needs energies, which are not negative: "
            "build the model with standardize=False"
        )
    if getattr(wav2spec, "compression", None) == "log":
        raise ValueError(
            f"{type(wav2spec).__name__} takes logarithms (compression='log'), and {name} needs energies, "
            "which are not negative: build the front-end with compression='none'"
        )


def _check_bands(slot: str, attribute: str, module: nn.Module, bands: int) -> None:
    has = getattr(module, attribute, bands)
    if int(has) != bands:
        raise ValueError(
            f"{slot} ({type(module).__name__}) has {int(has)} bands ({attribute}) but the model has "
            f"n_frequency_bands={bands}; make them equal"
        )
