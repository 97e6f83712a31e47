"""Spike history, coupling filters and a gain by covariates on top of any encoding model.

The rate is ``g(t) * f(d(t) + h(t))``: ``d`` is the drive of the encoding model in front of its output
activation ``f``, ``h`` sums the past responses of the neuron (and of the others) through causal filters, and
``g = exp(w z)`` is the gain by z-scored covariates such as pupil size and running speed.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_flag, check_positive_int, checked
from deepSTRF.models.base import AudioEncodingModel
from deepSTRF.models.configurable import placement
from deepSTRF.models.fitted_on import band_moments
from deepSTRF.models.norms import BandStandardizer
from deepSTRF.models.prediction import evaluating
from deepSTRF.models.readouts import LinearReadout, STRFReadout, activation_domain, start_output
from deepSTRF.models.streaming import Device, DType, State, init_slot_state, step_slot

__all__ = ["ConditionalModel"]

#: Largest logarithm of the gain: a factor of 400 is beyond any state of an animal.
MOST_LOG_GAIN = 6.0


class ConditionalModel(AudioEncodingModel):
    """Encoding model with spike history, coupling filters and a multiplicative gain by covariates.

    It takes datasets with named features: those of the stimulus, which ``base`` sees, the past responses
    (`deepSTRF.datasets.single_trials` makes them) and covariates. All filters and gains start at zero: the
    model then is ``base``. Predictions are one step ahead: they use the recorded past, and are to be compared
    with those of models that do so as well. The past before a clip counts as average.

    Parameters
    ----------
    base : AudioEncodingModel
        Model of the stimulus' rows, without a front-end; it is copied.
    features : mapping of str to int
        ``dataset.features``: names and numbers of rows.
    history : str, optional
        Feature that holds the responses one bin earlier, one row per recorded neuron.
    history_frames : int
        Length of the filters in bins.
    coupling : bool
        Whether each neuron sees the past of all rows, or of its own only.
    own_rows : sequence of int, optional
        Row of ``history`` of each of the N neurons; None where rows and neurons are the same.
    gain : sequence of str
        Features whose rows set the gain.
    n_basis : int, optional
        Number of raised cosines on a logarithmic axis that the filters are made of (Pillow et al. 2008); None
        gives each bin a weight.

    Raises
    ------
    TypeError, ValueError
        When names, rows or the base model do not fit each other.

    References
    ----------
    Pillow et al. 2008, doi 10.1038/nature07140; Truccolo et al. 2005, doi 10.1152/jn.00697.2004.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> features = {"spectrogram": 8, "history": 2, "pupil": 1}
    >>> base = Linear(8, 5, out_neurons=2, norm="none")
    >>> model = ConditionalModel(base, features, history="history", history_frames=4, gain=["pupil"])
    >>> model.count_trainable_params() - base.count_trainable_params()   # 2 filters of 4 bins, 2 gains
    10
    >>> x = torch.randn(1, 1, 11, 50)
    >>> bool((model(x) == base(x[:, :, :8])).all())                      # at the start it is its base
    True
    """

    @checked
    def __init__(
        self,
        base: AudioEncodingModel,
        features: Mapping[str, int],
        *,
        history: str | None = None,
        history_frames: int = 0,
        coupling: bool = False,
        own_rows: Sequence[int] | None = None,
        gain: Sequence[str] = (),
        n_basis: int | None = None,
    ) -> None:
        _check_base(base)
        rows = {name: check_positive_int(f"features[{name!r}]", count) for name, count in features.items()}
        gain = [gain] if isinstance(gain, str) else list(gain)
        used = [*([history] if history is not None else []), *gain]
        unknown = [name for name in used if name not in rows]
        if unknown or len(set(used)) < len(used):
            raise ValueError(
                f"history={history!r} and gain={gain!r} name different features of {list(rows)}; "
                "deepSTRF.datasets.single_trials(ds, history=True, covariates=...) adds them"
            )
        length = check_positive_int("history_frames", history_frames) if history is not None else 1
        super().__init__(sum(rows.values()), max(base.T, length), base.O)
        self.features, self.history = rows, history
        self.base: Any = copy.deepcopy(base)
        self._stimulus_rows = _rows_of(rows, [name for name in rows if name not in used])
        if len(self._stimulus_rows) != base.F:
            raise ValueError(
                f"the base model has n_frequency_bands={base.F}, and {len(self._stimulus_rows)} rows are no "
                f"history and no gain: {[name for name in rows if name not in used]}"
            )
        past, covariates = _rows_of(rows, [history] if history else []), _rows_of(rows, gain)
        self._past_rows, self._gain_rows = past, covariates
        self.past_scale = BandStandardizer(len(past)) if past else None
        self.gain_scale = BandStandardizer(len(covariates)) if covariates else None
        self.coupling, self.length = check_flag("coupling", coupling), length
        self.own_rows = _own_rows(own_rows, self.O, len(past)) if past and not coupling else None
        basis = _raised_cosines(n_basis, length) if n_basis is not None else torch.eye(length)
        self.register_buffer("basis", basis, persistent=False)
        shape = (self.O, len(past), len(basis)) if coupling else (self.O, len(basis))
        if past:
            self.filters = nn.Parameter(torch.zeros(shape))
        if covariates:
            self.log_gain = nn.Parameter(torch.zeros(self.O, len(covariates)))
        self.validate()

    @property
    def readout(self) -> Any:  # type: ignore[override]
        """Readout of the base model."""
        return self.base.readout

    # ---- the parts of a prediction

    def respond(self, spectrogram: Tensor) -> Tensor:
        """Return the rates (B, N, 1, T) for rows (B, 1, F, T) of stimulus, past and covariates."""
        base = self.base
        stimulus = base._standardized(spectrogram[:, :, self._stimulus_rows])
        drive = self.readout.drive(base.core(base.prefiltering(stimulus)))
        if self.history is not None:
            past = self._scaled(self.past_scale, spectrogram[:, 0, self._past_rows])
            drive = drive + self._filtered(functional.pad(past, (self.length - 1, 0)))
        return self._finish(drive, spectrogram)

    def _finish(self, drive: Tensor, spectrogram: Tensor) -> Tensor:
        rate: Tensor = self.output_scale(self.readout.activate(drive))
        if not self._gain_rows:
            return rate
        z = self._scaled(self.gain_scale, spectrogram[:, 0, self._gain_rows])
        log_gain = torch.einsum("nk,bkt->bnt", self.log_gain, z).clamp(-MOST_LOG_GAIN, MOST_LOG_GAIN)
        return rate * log_gain.exp().unsqueeze(2)

    def _scaled(self, scale: BandStandardizer | None, rows: Tensor) -> Tensor:
        return scale(rows) if scale is not None and scale.fitted else rows

    def _filtered(self, padded: Tensor) -> Tensor:
        """(B, rows, T + L - 1) past responses -> (B, N, T)."""
        kernel = self.history_filters().flip(-1)  # newest last, as a convolution reads
        if self.coupling:
            return functional.conv1d(padded, kernel)
        return functional.conv1d(padded[:, self.own_rows], kernel.unsqueeze(1), groups=self.O)

    def history_filters(self) -> Tensor:
        """Return the filters on z-scored past responses: (N, L), or (N, rows, L) with coupling.

        Returns
        -------
        Tensor
            Entry ``[..., 0]`` weighs the bin before the predicted one, ``[..., 1]`` the one before that.

        Raises
        ------
        ValueError
            When the model has no history.
        """
        if self.history is None:
            raise ValueError("this model has no history: build it with history=<feature>, history_frames=...")
        basis: Any = self.basis
        filters: Tensor = self.filters @ basis.to(self.filters)
        return filters

    # ---- streaming

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame."""
        where, kind = placement(self, device, dtype)
        state: State = {
            slot: init_slot_state(getattr(self.base, slot), slot, batch, device=where, dtype=kind)
            for slot in ("prefiltering", "core", "readout")
        }
        past = torch.zeros((batch, len(self._past_rows), self.length - 1), device=where, dtype=kind)
        return {"wav2spec": {}, **state, "past": past}

    def _step_response(self, frames: Tensor, state: State) -> tuple[Tensor, State]:
        following: State = {}
        x = self.base._standardized(frames[:, :, self._stimulus_rows])
        for slot in ("prefiltering", "core"):
            x, following[slot] = step_slot(getattr(self.base, slot), slot, x, state[slot])
        drive, following["readout"] = self.readout.step_drive(x, state["readout"])
        following["past"] = state["past"]
        if self.history is not None:
            past = self._scaled(self.past_scale, frames[:, 0, self._past_rows])
            padded = torch.cat([state["past"], past], dim=-1)
            drive = drive + self._filtered(padded)
            following["past"] = padded[..., padded.shape[-1] - (self.length - 1) :]
        return self._finish(drive, frames), following

    @checked
    def simulate(self, stimulus: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Draw spike counts bin by bin, each fed back as the past of the next.

        Parameters
        ----------
        stimulus : Tensor
            (B, 1, F, T) rows as the model takes them; those of the history are not read.
        generator : torch.Generator, optional
            Source of the random numbers.

        Returns
        -------
        Tensor
            (B, N, T) Poisson counts.

        Raises
        ------
        ValueError
            When the rows of the history are not the N neurons of the model, or rates are negative.
        """
        n_rows = len(self._past_rows)
        if self.history is not None and (
            n_rows != self.O or self.own_rows not in (None, list(range(n_rows)))
        ):
            raise ValueError(
                f"simulate needs the past of its own {self.O} neurons, history has {n_rows} rows"
            )
        state, rows = self.init_state(len(stimulus)), stimulus.clone()
        last, counts = torch.zeros(len(stimulus), self.O, dtype=rows.dtype, device=rows.device), []
        with evaluating(self):
            for t in range(rows.shape[-1]):
                if self.history is not None:
                    rows[:, 0, self._past_rows, t] = last
                rate, state = self.step(rows[..., t : t + 1], state)
                if bool((rate < 0).any()):
                    raise ValueError(
                        "a rate is negative: build the base model with output_activation='softplus'"
                    )
                last = torch.poisson(rate[:, :, 0, 0], generator=generator)
                counts.append(last)
        return torch.stack(counts, dim=-1)

    def transfer(self, out_neurons: int, **options: Any) -> Self:
        """Refuse: history filters and gains belong to the neurons; the model below them transfers."""
        raise TypeError(
            "history filters, coupling and gains belong to the neurons: transfer the model below them, "
            f"ConditionalModel(model.base.transfer({out_neurons!r}), features, history=...)"
        )

    # ---- what a fit asks for

    @property
    def prediction_domain(self) -> str:
        """Range of the predictions, that of the base model's activation: a gain is positive."""
        domain = activation_domain(self.readout.activation, self.O)
        return "real" if domain == "non-negative" and bool((self.output_scale.offset < 0).any()) else domain

    def start_output(self, mean: Tensor, deviation: Tensor, lowest: Tensor, highest: Tensor) -> None:
        """Start the output at each neuron's own size, see `NeuralModel.start_output`."""
        start_output(self.output_scale, self.readout, mean, deviation, lowest, highest)
        self.base.output_scale.start(self.output_scale.scale, self.output_scale.offset)

    def measure_bands(self, stims: Iterable[Tensor], spectrograms: Iterable[Tensor] | None = None) -> Self:
        """Measure each row on training clips: the unit of receptive fields, filters and gains.

        Parameters
        ----------
        stims : iterable of Tensor
            Training stimuli (1, F, T) with all rows.
        spectrograms : iterable of Tensor, optional
            As in `AudioEncodingModel.measure_bands`.

        Returns
        -------
        ConditionalModel
            This model.
        """
        mean, std = band_moments(self._spectrograms(stims, spectrograms), self.F)
        device, dtype = placement(self)
        self.band_std = std.to(device, dtype)
        rows = self._stimulus_rows
        self.base.band_std = self.band_std[rows]
        parts = ((self.base.standardizer, rows), (self.past_scale, self._past_rows),
                 (self.gain_scale, self._gain_rows))  # fmt: skip
        for scale, index in parts:
            if scale is not None and not scale.fitted:
                scale.set_moments(mean[index], std[index])
        return self

    @property
    def receptive_field(self) -> int | None:
        """Frames of the stimulus and of the past that a prediction depends on, None when unbounded."""
        memory: int | None = self.base.receptive_field
        return None if memory is None else max(memory, self.length)


def _check_base(base: Any) -> None:
    if not isinstance(base, AudioEncodingModel) or isinstance(base, ConditionalModel):
        raise TypeError(
            f"base is an encoding model of this package such as Linear(...), got {type(base).__name__}"
        )
    if not isinstance(base.wav2spec, nn.Identity):
        raise ValueError(  # noqa: TRY004 (of the right type, and built with a front-end)
            "past responses and covariates stand beside a spectrogram, in bins: compute the spectrograms "
            "first (from_arrays with named features) and build the base model without wav2spec"
        )
    if not isinstance(base.readout, STRFReadout | LinearReadout) or base.own_loss is not None:
        raise TypeError(
            f"{type(base).__name__} has a readout of its own ({type(base.readout).__name__}); legal are "
            "models that end in STRFReadout or LinearReadout: Linear, NRF, DNet, StateNet, ..."
        )


def _rows_of(rows: Mapping[str, int], names: Sequence[str]) -> list[int]:
    """Indices of the rows of some features, in the order of the features."""
    found, first = [], 0
    for name, count in rows.items():
        found += list(range(first, first + count)) if name in names else []
        first += count
    return found


def _own_rows(own_rows: Sequence[int] | None, n_neurons: int, n_rows: int) -> list[int]:
    """Row of the past of each neuron."""
    if own_rows is None and n_rows != n_neurons:
        raise ValueError(
            f"history has {n_rows} rows and the model {n_neurons} neurons: say which row is whose with "
            "own_rows=[...], or pass coupling=True"
        )
    chosen = list(range(n_rows)) if own_rows is None else [int(row) for row in own_rows]
    if len(chosen) != n_neurons or not all(0 <= row < n_rows for row in chosen):
        raise ValueError(f"own_rows holds one of the rows 0..{n_rows - 1} for each of {n_neurons} neurons")
    return chosen


def _raised_cosines(n_basis: int, length: int) -> Tensor:
    """(K, L) raised cosines, evenly spaced on a logarithmic axis of time; each bin is covered.

    ``(cos(clip((log(j + 1) - c_k) pi / (2 d), -pi, pi)) + 1) / 2`` at bin j, centres ``c_k`` a distance d
    apart.
    """
    n_basis = check_positive_int("n_basis", n_basis)
    if n_basis > length:
        raise ValueError(f"n_basis={n_basis} is more than the {length} bins of the filters")
    where = torch.log(torch.arange(1, length + 1, dtype=torch.float64))
    centres = torch.linspace(0.0, float(where[-1]), n_basis, dtype=torch.float64)
    distance = float(centres[1] - centres[0]) if n_basis > 1 else max(float(where[-1]), 1.0)
    phase = (where - centres.unsqueeze(1)) * (math.pi / (2 * distance))
    return (0.5 * (phase.clamp(-math.pi, math.pi).cos() + 1)).float()
