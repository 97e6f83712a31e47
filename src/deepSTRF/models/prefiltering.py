"""Prefilters: adaptation to the recent level of each band, with or without ON and OFF channels.

Each band is compared with a leaky mean of its own past, ``m[t] = a m[t - 1] + (1 - a) x[t - 1]``, an exact
recursion that starts at the first frame of a clip. A prefilter is a module that maps (B, 1, F, T) to
(B, C, F, T) and has ``out_channels`` C; a function ``make(n_frequency_bands, **options)`` that builds it is
registered in `deepSTRF.registry.PREFILTERS`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._moved import earlier_keywords
from deepSTRF._validation import (
    check_choice,
    check_flag,
    check_positive_int,
    check_positive_number,
    checked,
    checked_but,
    to_tensor,
)
from deepSTRF.dsp.recursion import a_to_tau, freq_to_tau, leaky_mean, leaky_mean_state, tau_to_a
from deepSTRF.dsp.scales import frequency_scale
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.derived import KeepsDerived
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import PREFILTERS

__all__ = [
    "AdapTrans",
    "ICAdaptation",
    "Willmore_Adaptation",
    "a_to_tau",
    "freq_to_tau",
    "get_CFs",
    "make_prefiltering",
    "tau_to_a",
]

#: Time constants that a finite kernel must hold to agree with the recursion to 1e-3 (2.5e-3 at 6, 5% at 3).
_KERNEL_TIME_CONSTANTS = 12.0


class _Adaptation(KeepsDerived):
    """Base of both prefilters: F bands in, a leaky mean per band and channel, an unbounded memory."""

    out_channels: int
    #: The memory of the mean is unbounded.
    receptive_field = None

    F: int

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, 1, F, T) to (B, out_channels, F, T)."""
        return self.step(x, self.init_state(x.shape[0], device=x.device, dtype=x.dtype))[0]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state of the leaky means before the first frame."""
        where, kind = placement(self, device, dtype)
        shapes = (1, self.F), (self.out_channels, self.F)
        return leaky_mean_state(batch, *shapes, device=where, dtype=kind)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, 1, F, T') to (B, out_channels, F, T')."""
        raise NotImplementedError

    def _check_bands(self, x: Tensor) -> None:
        if x.ndim != 4 or x.shape[1] != 1 or x.shape[2] != self.F or x.shape[3] < 1:
            raise ValueError(
                f"expected spectrograms (B, 1, {self.F}, T) with T of at least 1, got {tuple(x.shape)}; "
                f"build {type(self).__name__} with one value per frequency band"
            )


class AdapTrans(_Adaptation, Configurable):
    """ON and OFF channels of an adapting spectrogram, with learned time constants and depth per band.

    With ``m``, the leaky mean of the band's past (``m[t] = a m[t - 1] + (1 - a) x[t - 1]``, starting at the
    first frame), ``ON = ReLU(x - w m)`` and ``OFF = ReLU(m - w x)``. ON and OFF have their own decay ``a``
    and share the depth ``w``; a constant input keeps the share ``1 - w``.

    Parameters
    ----------
    init_a_vals : Tensor or sequence of float
        (F,) decay factors per bin at the start, between 0 and 1; ``tau_to_a(tau_ms, dt)``.
    init_w_vals : Tensor or sequence of float
        (F,) depths at the start, between 0 (none) and 1 (a constant input is removed; not learnable).
    learnable : bool
        Whether the 3F values are parameters; else they are buffers.

    Attributes
    ----------
    d_on, d_off, p : nn.Parameter or Tensor
        (F,) each: ``a = 1 / (1 + d^2)``, ``w = 1 / (1 + p^2)``.

    Raises
    ------
    ValueError
        For values that are not (F,) or outside their range.

    References
    ----------
    Rançon, Masquelier & Cottereau 2024, doi 10.1371/journal.pcbi.1012288.

    Examples
    --------
    >>> prefilter = AdapTrans([0.97, 0.95, 0.9], [0.75, 0.75, 0.75])
    >>> prefilter(torch.randn(1, 1, 3, 20)).shape
    torch.Size([1, 2, 3, 20])
    """

    out_channels = 2

    d_on: Tensor
    d_off: Tensor
    p: Tensor

    @checked
    def __init__(
        self,
        init_a_vals: Tensor | np.ndarray[Any, Any] | Sequence[float],
        init_w_vals: Tensor | np.ndarray[Any, Any] | Sequence[float],
        learnable: bool = True,
    ) -> None:
        super().__init__()
        self.learnable = check_flag("learnable", learnable)
        a = _check_fractions("init_a_vals", init_a_vals, open_above=True)
        w = _check_fractions("init_w_vals", init_w_vals, open_above=self.learnable)
        if len(a) != len(w):
            raise ValueError(
                f"init_a_vals and init_w_vals must have one value per band, got {len(a)} and {len(w)}"
            )
        self.F = len(a)
        d, p = torch.sqrt(1.0 / a - 1.0), torch.sqrt(1.0 / w - 1.0)
        for name, value in (("d_on", d), ("d_off", d), ("p", p)):
            start = value.to(torch.get_default_dtype(), copy=True)
            if self.learnable:
                self.register_parameter(name, nn.Parameter(start))
            else:
                self.register_buffer(name, start)

    def get_a(self) -> tuple[Tensor, Tensor]:
        """Return the decay factors per bin of ON and OFF, (F,) each; `a_to_tau` makes them milliseconds."""
        return 1.0 / (1.0 + self.d_on.square()), 1.0 / (1.0 + self.d_off.square())

    def get_w(self) -> Tensor:
        """Return the depths (F,)."""
        return 1.0 / (1.0 + self.p.square())

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, 1, F, T') to (B, 2, F, T')."""
        self._check_bands(chunk)
        a, weight, w, kept = self._derived("values", self._values)
        origin, now, mean, following = leaky_mean(chunk, a, weight, state)
        past = mean[..., :-1]
        # x - w m and m - w x, with the constant level taken out of both
        level = kept * origin[:, 0]
        on = now[:, 0] - w * past[:, 0] + level
        off = past[:, 1] - w * now[:, 0] + level
        return _rectified(torch.stack([on, off], dim=1)), following

    def _values(self) -> tuple[Tensor, ...]:
        """Decay and weight of a frame (2, F), depth and the share that it leaves (F, 1)."""
        d_squared = torch.stack([self.d_on, self.d_off]).square()
        a, w = 1.0 / (1.0 + d_squared), self.get_w().unsqueeze(-1)
        return a, d_squared * a, w, 1.0 - w

    def fix_derived(self) -> None:
        """The values of decay and depth."""
        self._derived("values", self._values)

    def build_kernels(self, kernel_size: int | None = None) -> tuple[Tensor, Tensor]:
        """Return finite ON and OFF kernels (F, 1, K) that approach the recursion, before rectification."""
        w = self.get_w().unsqueeze(-1)
        a_on, a_off = self.get_a()
        size = _kernel_size(kernel_size, torch.stack([a_on, a_off]))
        on, off = _past_weights(a_on, size), _past_weights(a_off, size)
        on = torch.cat([-w * on, torch.ones_like(w)], dim=-1)
        off = torch.cat([off, -w], dim=-1)
        return on.unsqueeze(1), off.unsqueeze(1)


class ICAdaptation(_Adaptation, Configurable):
    """Adaptation to the mean level as in the inferior colliculus: what exceeds the recent mean of each band.

    ``ReLU(x - m)`` with the leaky mean ``m[t] = a m[t - 1] + (1 - a) x[t - 1]``, starting at the first frame.
    Nothing is learned.

    Parameters
    ----------
    init_a_vals : Tensor or sequence of float
        (F,) decay factors per bin, between 0 and 1; ``tau_to_a(tau_ms, dt)``.

    Attributes
    ----------
    a : Tensor
        (F,) the factors, a buffer.

    Raises
    ------
    ValueError
        For values that are not (F,) or outside their range.

    References
    ----------
    Willmore et al. 2016, doi 10.1523/JNEUROSCI.2441-15.2016.

    Examples
    --------
    >>> prefilter = ICAdaptation([0.97, 0.95, 0.9])
    >>> prefilter(torch.ones(1, 1, 3, 20)).max()
    tensor(0.)
    """

    out_channels = 1

    a: Tensor

    @checked
    def __init__(self, init_a_vals: Tensor | np.ndarray[Any, Any] | Sequence[float]) -> None:
        super().__init__()
        a = _check_fractions("init_a_vals", init_a_vals, open_above=True)
        self.F = len(a)
        self.register_buffer("a", a.to(torch.get_default_dtype()))

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, 1, F, T') to (B, 1, F, T')."""
        self._check_bands(chunk)
        _, now, mean, following = leaky_mean(chunk, self.a.unsqueeze(0), 1.0 - self.a.unsqueeze(0), state)
        return _rectified(now - mean[..., :-1]), following

    def build_kernels(self, kernel_size: int | None = None) -> Tensor:
        """Return a finite kernel (F, 1, K) that approaches the recursion, before rectification."""
        past = _past_weights(self.a, _kernel_size(kernel_size, self.a))
        return torch.cat([-past, torch.ones_like(past[:, :1])], dim=-1).unsqueeze(1)


#: The name under which other packages know `ICAdaptation`.
Willmore_Adaptation = ICAdaptation


@earlier_keywords
def get_CFs(min_freq: float, max_freq: float, n: int, scale: str = "mel") -> Tensor:
    """Return centre frequencies (n,) in hertz, equally spaced on a frequency scale, both ends included."""
    low, high = check_positive_number("min_freq", min_freq), check_positive_number("max_freq", max_freq)
    if high < low:
        raise ValueError(f"max_freq must be at least min_freq, got {high:g} and {low:g} Hz")
    return frequency_scale(scale).points(low, high, check_positive_int("n_frequency_bands", n))


@PREFILTERS.register("adaptrans")
def make_adaptrans(
    n_frequency_bands: int,
    dt: float,
    min_freq: float = 500.0,
    max_freq: float = 20_000.0,
    scale: str = "mel",
    learnable: bool = True,
    init_w: float = 0.75,
) -> AdapTrans:
    """ON and OFF channels with learned adaptation (`AdapTrans`), time constants by the bands' frequencies."""
    a = _decay_factors(n_frequency_bands, dt, min_freq, max_freq, scale)
    return AdapTrans(a, torch.full_like(a, check_positive_number("init_w", init_w)), learnable)


@PREFILTERS.register("icadaptation")
@PREFILTERS.register("willmore")
@PREFILTERS.register("willmore_adaptation")
def make_icadaptation(
    n_frequency_bands: int,
    dt: float,
    min_freq: float = 500.0,
    max_freq: float = 20_000.0,
    scale: str = "mel",
    learnable: bool = False,
    init_w: float = 0.75,
) -> ICAdaptation:
    """Fixed adaptation to the mean level (`ICAdaptation`), time constants by the bands' frequencies."""
    # learnable and init_w have no effect here: one dictionary may serve all kinds, and checkpoints hold it
    return ICAdaptation(_decay_factors(n_frequency_bands, dt, min_freq, max_freq, scale))


@earlier_keywords
@checked_but("kind")
def make_prefiltering(
    kind: str,
    n_frequency_bands: int,
    dt: float,
    min_freq: float = 500.0,
    max_freq: float = 20_000.0,
    scale: str = "mel",
    learnable: bool = True,
    init_w: float = 0.75,
) -> nn.Module:
    """Build a registered prefilter by name; its time constants follow the bands' frequencies.

    Models take the same as a dictionary: ``prefiltering={"prefiltering": "AdapTrans", "dt": 5.0}``.

    Parameters
    ----------
    kind : str
        Name in the registry, in any case: ``"adaptrans"``, ``"icadaptation"`` (or ``"willmore"``), ...
    n_frequency_bands : int
        Bands, F.
    dt : float
        Bin width in ms; time constants are in ms, whatever the bin.
    min_freq, max_freq : float
        Centres of the lowest and the highest band, in hertz.
    scale : str
        Frequency scale on which the centres are equally spaced.
    learnable : bool
        Whether decay and depth are learned (AdapTrans).
    init_w : float
        Depth at the start (AdapTrans).

    Returns
    -------
    nn.Module
        The prefilter, (B, 1, F, T) to (B, C, F, T).

    Raises
    ------
    TypeError, ValueError
        For an unknown kind or scale, or illegal numbers.

    Examples
    --------
    >>> prefilter = make_prefiltering("adaptrans", 34, dt=5.0)
    >>> a_on, a_off = prefilter.get_a()
    >>> [round(tau) for tau in a_to_tau(a_on.detach(), dt=5.0)[[0, -1]].tolist()]
    [217, 48]
    """
    check_choice("kind", kind.lower() if isinstance(kind, str) else kind, tuple(PREFILTERS))
    build = PREFILTERS.get(kind)
    given = {
        "n_frequency_bands": n_frequency_bands,
        "dt": dt,
        "min_freq": min_freq,
        "max_freq": max_freq,
        "scale": scale,
        "learnable": learnable,
        "init_w": init_w,
    }
    taken = inspect.signature(build).parameters
    prefilter: nn.Module = build(**{name: value for name, value in given.items() if name in taken})
    return prefilter


def _decay_factors(n: int, dt: float, min_freq: float, max_freq: float, scale: str) -> Tensor:
    """(F,) decay factors per bin of bands from ``min_freq`` to ``max_freq``."""
    centres = get_CFs(min_freq, max_freq, n, scale)
    return tau_to_a(freq_to_tau(centres), check_positive_number("dt", dt))


def _rectified(x: Tensor) -> Tensor:
    """``ReLU(x)`` with slope 1/2 at 0, where the null stimulus lies: at slope 0 its gradient map vanishes."""
    return torch.maximum(x, torch.zeros_like(x))


def _check_fractions(name: str, values: Any, *, open_above: bool) -> Tensor:
    """Return (F,) float64 values between 0 and 1."""
    tensor = to_tensor(values).detach().to("cpu", torch.float64)
    if tensor.ndim != 1 or len(tensor) == 0:
        raise ValueError(f"{name} must be (F,), one value per frequency band, got {tuple(tensor.shape)}")
    if not bool(((tensor > 0) & ((tensor < 1) if open_above else (tensor <= 1))).all()):
        range_ = "above 0 and below 1" if open_above else "above 0 and at most 1"
        raise ValueError(
            f"{name} must be {range_}, got {float(tensor.min()):g} to {float(tensor.max()):g}"
            + ("; tau_to_a(tau_ms, dt) gives decay factors" if name == "init_a_vals" else "")
        )
    return tensor


def _kernel_size(kernel_size: int | None, a: Tensor) -> int:
    """Frames K of a finite kernel: as given, or long enough for all decay factors."""
    if kernel_size is None:
        return math.ceil(_KERNEL_TIME_CONSTANTS * float(a_to_tau(a.detach()).max())) + 1
    size = check_positive_int("kernel_size", kernel_size)
    if size < 2:
        raise ValueError("kernel_size must be at least 2: the current frame and one of the past")
    return size


def _past_weights(a: Tensor, kernel_size: int) -> Tensor:
    """Return (F, K - 1) weights of the past that sum to 1, the most recent last."""
    lags = torch.arange(kernel_size - 2, -1, -1, dtype=a.dtype, device=a.device)
    weights = a.unsqueeze(-1) ** lags
    return weights / weights.sum(-1, keepdim=True)
