"""Learnable per-channel energy normalisation (PCEN): the gain control of LEAF, for any spectrogram."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_choice, check_flag, check_positive_int, check_positive_number, checked
from deepSTRF.dsp.pcen import PCEN_STARTS, check_energies, pcen, pcen_initial_state
from deepSTRF.dsp.scales import bounded_shift
from deepSTRF.models.configurable import Configurable, ScaleFreeParameters, placement
from deepSTRF.models.derived import KeepsDerived
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.models.wav2spec.base import full_precision
from deepSTRF.registry import PREFILTERS

__all__ = ["PCEN", "make_pcen"]

# How far learning may move each quantity from its start, on the scale on which it moves.
_ALPHA_RANGE = 6.0  # log-odds of the gain exponent: it stays between 0.06 and 0.9999
_ROOT_RANGE = 4.0  # log-odds of the compression exponent: between 0.02 and 0.98
_DELTA_RANGE = math.log(100.0)  # bias: a hundredth to a hundred times its start
_LONGEST_TAU_MS = 10_000.0
_SHORTEST_TAU_BINS = 1.0 / 3.0  # a third of a bin: 95% of the mean is the present frame


class PCEN(KeepsDerived, ScaleFreeParameters, Configurable):
    """Gain control: each band divided by its recent mean, then compressed.

    ``(E / (1e-6 + M)^alpha + delta)^root - delta^root``, where ``M`` is a running mean over ``tau_ms``.

    All four quantities are learned per band, as shifts from their start: log-odds for the two exponents, logs
    for the bias and the time constant. Every shift is bounded smoothly, so nothing can die at a limit, and
    one step of an optimiser means the same relative change everywhere.

    Parameters
    ----------
    n_bands : int
        Bands, F.
    hop_ms : float
        Bin width in ms.
    tau_ms : float
        Time constant of the running mean at the start, in ms: the memory does not change with the bin width.
    alpha, delta, root : float
        Strength of the gain control and compression exponent, both between 0 and 1, and bias, at the start.
    start : {"debiased", "zero", "first"}
        How the running mean begins, see `deepSTRF.dsp.pcen`.
    learnable : bool
        Whether the parameters are trained.

    Attributes
    ----------
    alpha_shift, delta_shift, root_shift, tau_shift : nn.Parameter
        (F,) shifts from the start; zero at first.

    References
    ----------
    Wang et al. 2017, doi 10.1109/ICASSP.2017.7953242; Zeghidour et al. 2021, doi 10.48550/arXiv.2101.08596.

    Examples
    --------
    >>> gain_control = PCEN(n_bands=34, hop_ms=5.0)
    >>> gain_control(torch.rand(1, 1, 34, 10)).shape
    torch.Size([1, 1, 34, 10])
    >>> float(gain_control.tau_ms[0].detach())
    122.5
    """

    #: Channels (C) of the output, as the prefiltering slot requires.
    out_channels = 1
    #: The input must not be negative; models refuse a front-end with levels of either sign.
    needs_energy = True

    @checked
    def __init__(
        self,
        n_bands: int,
        hop_ms: float,
        tau_ms: float = 122.5,
        alpha: float = 0.96,
        delta: float = 2.0,
        root: float = 0.5,
        start: str = "debiased",
        learnable: bool = True,
    ) -> None:
        super().__init__()
        self.n_bands = check_positive_int("n_bands", n_bands)
        self.hop_ms = check_positive_number("hop_ms", hop_ms)
        self.initial = {
            "alpha": _fraction("alpha", alpha),
            "delta": check_positive_number("delta", delta),
            "root": _fraction("root", root),
            "tau_ms": check_positive_number("tau_ms", tau_ms),
        }
        check_choice("start", start, PCEN_STARTS)
        self.start = start
        self._was_given_energies = False
        learnable = check_flag("learnable", learnable)
        for name in ("alpha", "delta", "root", "tau"):
            self.register_parameter(
                f"{name}_shift", nn.Parameter(torch.zeros(self.n_bands), requires_grad=learnable)
            )

    alpha_shift: nn.Parameter
    delta_shift: nn.Parameter
    root_shift: nn.Parameter
    tau_shift: nn.Parameter

    @property
    def alpha(self) -> Tensor:
        """Strength of the gain control per band (F,)."""
        odds = _log_odds(self.initial["alpha"])
        return torch.sigmoid(odds + _bounded(self.alpha_shift, _ALPHA_RANGE))

    @property
    def delta(self) -> Tensor:
        """Bias per band (F,)."""
        return self.initial["delta"] * _bounded(self.delta_shift, _DELTA_RANGE).exp()

    @property
    def root(self) -> Tensor:
        """Compression exponent per band (F,)."""
        odds = _log_odds(self.initial["root"])
        return torch.sigmoid(odds + _bounded(self.root_shift, _ROOT_RANGE))

    @property
    def tau_ms(self) -> Tensor:
        """Time constant of the running mean per band (F,), in ms."""
        start = self.initial["tau_ms"]
        shortest = min(_SHORTEST_TAU_BINS * self.hop_ms, start / 2.0)
        longest = max(_LONGEST_TAU_MS, 2.0 * start)
        shorter, longer = math.log(start / shortest), math.log(longest / start)
        return start * bounded_shift(full_precision(self.tau_shift), shorter, longer).exp()

    def values(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return decay per bin, alpha, delta and root, each (F,): the arguments of `deepSTRF.dsp.pcen`."""
        return self.hop_ms / self.tau_ms, self.alpha, self.delta, self.root

    def forward(self, x: Tensor) -> Tensor:
        """Normalise a spectrogram of energies.

        Parameters
        ----------
        x : Tensor
            (B, 1, F, T), not negative: amplitudes or powers without a logarithm.

        Returns
        -------
        Tensor
            (B, 1, F, T).

        Raises
        ------
        ValueError
            For another shape, or negative levels. On accelerators, where looking at values waits for all work
            before, only the first call looks.
        """
        self._check_bands(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            return pcen(x[:, 0].to(self.alpha_shift.dtype), *self._values(), start=self.start)[0].unsqueeze(1)

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state of the running mean before the first frame (`deepSTRF.dsp.pcen`)."""
        where, kind = placement(self, device, dtype)
        return dict(pcen_initial_state(batch, self.n_bands, start=self.start, device=where, dtype=kind))

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Normalise the next frames (B, 1, F, n); return them and the next state."""
        self._check_bands(chunk)
        frames, following = pcen(chunk[:, 0], *self._values(), start=self.start, state=state)
        return frames.unsqueeze(1), following

    def _values(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._derived("values", self.values)

    def fix_derived(self) -> None:
        """The values."""
        self._values()

    def _check_bands(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[2] != self.n_bands:
            raise ValueError(
                f"expected spectrograms (B, 1, {self.n_bands}, T), got {tuple(x.shape)}; build PCEN with "
                "n_bands = the number of frequency bands"
            )
        if x.device.type not in ("cpu", "meta") and not self._was_given_energies:
            check_energies(x)  # on a CPU `pcen` does, each time
            self._was_given_energies = True


@PREFILTERS.register("pcen")
def make_pcen(n_frequency_bands: int, dt: float, **options: Any) -> PCEN:
    """Per-channel energy normalisation (`PCEN`): ``prefiltering={"prefiltering": "pcen", "dt": 5.0}``."""
    return PCEN(n_frequency_bands, dt, **options)


def _bounded(shift: Tensor, limit: float) -> Tensor:
    """A learned shift within a limit, in float32 at least."""
    return bounded_shift(full_precision(shift), limit, limit)


def _fraction(name: str, value: float) -> float:
    number = check_positive_number(name, value)
    if number >= 1.0:
        raise ValueError(f"{name} must lie between 0 and 1, got {number}")
    return number


def _log_odds(fraction: float) -> float:
    return math.log(fraction / (1.0 - fraction))
