"""Mamba: a state-space model whose transition depends on the input of each frame."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import check_positive_int, checked
from deepSTRF.dsp.recursion import linear_scan
from deepSTRF.models.backbones.base import Backbone
from deepSTRF.models.configurable import placement
from deepSTRF.models.derived import KeepsDerived
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import BACKBONES

__all__ = ["Mamba", "MambaLayer"]

#: Range of the step sizes at the start, and their floor (Gu & Dao 2023, section 3.6 and appendix).
DT_MIN, DT_MAX, DT_FLOOR = 1e-3, 0.1, 1e-4
#: Frames whose hidden states (B, frames, E, d_state) are held at once where no gradient is needed.
SEGMENT = 512


class MambaLayer(KeepsDerived):
    """One selective state-space block, without residual path and normalisation.

    With ``[u, z] = W_in x``, ``u = SiLU(causal depthwise convolution of u)``, ``[d, B, C] = W_x u`` and step
    sizes ``Δ = softplus(W_Δ d + b_Δ)``: ``h_t = exp(Δ_t A) h_{t-1} + Δ_t B_t u_t``, ``y_t = C_t h_t + D
    u_t``, output ``W_out (y SiLU(z))``, where A is diagonal and negative.
    """

    def __init__(self, input_size: int, hidden_size: int, d_state: int, expand: int, d_conv: int) -> None:
        super().__init__()
        inner, rank = expand * hidden_size, math.ceil(hidden_size / 16)
        self.sizes = (rank, d_state, d_state)
        self.d_conv = d_conv
        self.in_proj = nn.Linear(input_size, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, d_conv, groups=inner)
        self.x_proj = nn.Linear(inner, rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(rank, inner)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(inner, 1))
        self.D = nn.Parameter(torch.ones(inner))
        self.out_proj = nn.Linear(inner, hidden_size, bias=False)
        self._init_steps(rank)

    def _init_steps(self, rank: int) -> None:
        """Start with step sizes spread evenly in the logarithm: time constants from 10 to 1000 frames."""
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        with torch.no_grad():
            low, high = math.log(DT_MIN), math.log(DT_MAX)
            steps = torch.empty_like(self.dt_proj.bias).uniform_(low, high).exp_().clamp_(min=DT_FLOOR)
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse softplus

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the inputs before the first, (B, d_conv - 1, E), and the hidden state (B, E, d_state)."""
        where, kind = placement(self, device, dtype)
        inner, d_state = self.A_log.shape
        shapes = {"history": (batch, self.d_conv - 1, inner), "h": (batch, inner, d_state)}
        return {name: torch.zeros(shape, device=where, dtype=kind) for name, shape in shapes.items()}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, T', input_size) to (B, T', hidden_size)."""
        u, gate = self.in_proj(chunk).chunk(2, dim=-1)
        padded = torch.cat([state["history"], u], dim=1)
        u = functional.silu(self._convolve(padded, chunk.shape[1]))
        selective, h = self._select(u, state["h"])
        y = self.out_proj((selective + self.D * u) * functional.silu(gate))
        return y, {"history": padded[:, padded.shape[1] - (self.d_conv - 1) :], "h": h}

    def _transition(self) -> Tensor:
        return -torch.exp(self.A_log)

    def fix_derived(self) -> None:
        """The transition."""
        self._derived("A", self._transition, [self.A_log])

    def _convolve(self, padded: Tensor, n_frames: int) -> Tensor:
        """(B, T' + d_conv - 1, E) -> (B, T', E)."""
        taps = self.conv1d.weight.squeeze(1)
        shifted = [padded[:, k : k + n_frames] * taps[:, k] for k in range(self.d_conv)]
        bias = self.conv1d.bias
        return sum(shifted) if bias is None else sum(shifted, start=bias)  # type: ignore[return-value]

    def _select(self, u: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
        """Run the selective recursion over (B, T', E), in segments to bound its memory."""
        rank_part, B, C = self.x_proj(u).split(self.sizes, dim=-1)
        steps = functional.softplus(self.dt_proj(rank_part))
        A = self._derived("A", self._transition, [self.A_log])
        outputs = []
        for dt, x, b, c in zip(*(part.split(SEGMENT, dim=1) for part in (steps, u, B, C)), strict=True):
            decay = torch.exp(dt.unsqueeze(-1) * A)
            hidden = linear_scan((dt * x).unsqueeze(-1) * b.unsqueeze(2), decay, h)
            outputs.append((hidden @ c.unsqueeze(-1)).squeeze(-1))
            h = hidden[:, -1]
        return torch.cat(outputs, dim=1), h


@BACKBONES.register("mamba")
class Mamba(Backbone):
    """Mamba: a diagonal state-space model whose input, output and step size depend on the input.

    See `MambaLayer` for the equations. 38,500 parameters for 70 features.

    Parameters
    ----------
    input_size, hidden_size : int
        Features per frame in and out.
    num_layers : int
        Stacked blocks.
    dropout : float
        Share of features dropped between layers while training.
    d_state : int
        States per inner feature.
    expand : int
        Inner features per feature that goes out.
    d_conv : int
        Taps of the convolution in front of the recursion.

    Raises
    ------
    TypeError, ValueError
        For illegal sizes, or a dropout outside [0, 1).

    References
    ----------
    Gu & Dao 2023, doi 10.48550/arXiv.2312.00752.

    Examples
    --------
    >>> backbone = Mamba(70, 70)
    >>> sum(parameter.numel() for parameter in backbone.parameters())
    38500
    >>> backbone(torch.zeros(2, 100, 70)).shape
    torch.Size([2, 100, 70])
    """

    @checked
    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        dropout: float = 0.0,
        d_state: int = 16,
        expand: int = 2,
        d_conv: int = 4,
    ) -> None:
        super().__init__(input_size, hidden_size, num_layers, dropout)
        options = {
            "d_state": check_positive_int("d_state", d_state),
            "expand": check_positive_int("expand", expand),
            "d_conv": check_positive_int("d_conv", d_conv),
        }
        self.layers.extend(MambaLayer(width, self.hidden_size, **options) for width in self.layer_widths())
