"""Position codes: what tells attention where in time a frame is.

Tensors are (B, T, D) here: frames on axis 1, features last.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from deepSTRF.models._checks import check_positive_int
from deepSTRF.models.causal import State
from deepSTRF.models.configurable import Configurable

__all__ = ["SinusoidalPositionalEncoding", "check_even", "first_frame", "frame_angles", "turn_pairs"]

#: Longest wavelength of the position codes is 2 pi times this (Vaswani et al. 2017, section 3.5).
_BASE = 10_000.0


class SinusoidalPositionalEncoding(nn.Module, Configurable):
    """Add a code of each frame's number: sines and cosines of geometrically spaced wavelengths.

    ``code[p, 2i] = sin(p * 10000^(-2i / d_model))`` and ``code[p, 2i + 1]`` its cosine. The number counts
    from the first frame of the clip (or stream), so what follows depends on clock time.

    Parameters
    ----------
    d_model : int
        Features, D; even.

    Raises
    ------
    TypeError, ValueError
        When ``d_model`` is no even positive integer.

    References
    ----------
    Vaswani et al. 2017, doi 10.48550/arXiv.1706.03762.

    Examples
    --------
    >>> SinusoidalPositionalEncoding(4)(torch.zeros(1, 2, 4))[0, 0]
    tensor([0., 1., 0., 1.])
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = check_even("d_model", d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Add the code to (B, T, D), whose first frame is number 0.

        Raises
        ------
        ValueError
            For another number of features.
        """
        return self._add(x, first_frame(x))

    def init_state(
        self, batch: int, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> State:
        """Return the number of the next frame, ``{"position": (B,)}``: zero."""
        return {"position": torch.zeros(batch, dtype=torch.int64, device=device)}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Add the code to the next frames (B, T', D)."""
        return self._add(chunk, state["position"]), {"position": state["position"] + chunk.shape[1]}

    def _add(self, x: Tensor, first: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[-1] != self.d_model:
            raise ValueError(f"expected features (B, T, {self.d_model}), got {tuple(x.shape)}")
        angle = frame_angles(first, x.shape[1], self.d_model)
        return x + torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).to(x.dtype)


def check_even(name: str, value: int) -> int:
    """Return ``value`` after checking that it is an even positive integer."""
    number = check_positive_int(name, value)
    if number % 2:
        raise ValueError(
            f"{name} must be even for a position code (a sine and a cosine per pair), got {number}; "
            f"{' or '.join(str(n) for n in (number - 1, number + 1) if n)} would work"
        )
    return number


def first_frame(x: Tensor) -> Tensor:
    """Number of the first frame of a whole clip, for all clips of a batch: (1,), zero."""
    return torch.zeros(1, dtype=torch.int64, device=x.device)


def frame_angles(first: Tensor, n_frames: int, width: int) -> Tensor:
    """Angles (B, T, width / 2) of the frames from number ``first`` (B,) on.

    In float64, so that a stream of days has the angles that it would have had in one pass; Apple's GPU has no
    float64.
    """
    dtype = torch.float32 if first.device.type == "mps" else torch.float64
    index = torch.arange(0, width, 2, device=first.device, dtype=dtype)
    number = first.unsqueeze(-1) + torch.arange(n_frames, device=first.device)
    return number.unsqueeze(-1).to(dtype) * torch.exp(index * (-math.log(_BASE) / width))


def turn_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of neighbouring features by its angle."""
    real, imaginary = x[..., 0::2], x[..., 1::2]
    pairs = [real * cosine - imaginary * sine, real * sine + imaginary * cosine]
    return torch.stack(pairs, dim=-1).flatten(-2)
