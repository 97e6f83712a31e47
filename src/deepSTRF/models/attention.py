"""Causal self-attention over frames, with an optional window and the streaming protocol.

Tensors are (B, T, D) here: frames on axis 1, features last. Layers have the parameters of
``nn.TransformerEncoderLayer``. Sources: Vaswani et al. 2017, doi 10.48550/arXiv.1706.03762; for rotary
positions Su et al. 2024, doi 10.1016/j.neucom.2023.127063.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import MOST_LAYERS, check_dropout, check_flag, check_positive_int
from deepSTRF.dsp.recursion import split_non_finite
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.streaming import Device, DType, State

__all__ = [
    "CausalSelfAttention",
    "CausalTransformerEncoder",
    "CausalTransformerLayer",
    "SinusoidalPositionalEncoding",
    "build_causal_window_mask",
    "check_even",
    "check_window",
]

#: Longest wavelength of the position codes is 2 pi times this (Vaswani et al. 2017, section 3.5).
_BASE = 10_000.0
#: Width of the feed-forward part, in widths of the model (Vaswani et al. 2017, section 3.3).
_FEED_FORWARD = 4
#: Fewest queries that share a block: narrower windows would make many tiny products.
_SMALLEST_BLOCK = 32


class SinusoidalPositionalEncoding(nn.Module, Configurable):
    """Add a code of each frame's number p (from the first frame of the clip or stream).

    ``code[p, 2i] = sin(p * 10000^(-2i / d_model))`` and ``code[p, 2i + 1]`` its cosine.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = check_even("d_model", d_model)

    def forward(self, x: Tensor) -> Tensor:
        """Add the code to (B, T, D), whose first frame is number 0."""
        return self._add(x, _first_frame(x))

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the number of the next frame, ``{"position": (B,)}``: zero."""
        return {"position": torch.zeros(batch, dtype=torch.int64, device=device)}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Add the code to the next frames (B, T', D)."""
        return self._add(chunk, state["position"]), {"position": state["position"] + chunk.shape[1]}

    def _add(self, x: Tensor, first: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[-1] != self.d_model:
            raise ValueError(f"expected features (B, T, {self.d_model}), got {tuple(x.shape)}")
        angle = _frame_angles(first, x.shape[1], self.d_model)
        return x + torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).to(x.dtype)


class CausalSelfAttention(nn.Module, Configurable):
    """Multi-head self-attention to the past, with the parameters of ``nn.MultiheadAttention``.

    With a ``context_window`` of w frames the work is blockwise, O(T w), and a stream keeps the last ``w - 1``
    keys and values. Without one every frame sees all earlier ones, O(T^2), and there is no stream.
    """

    def __init__(
        self,
        embed_dim: int,
        n_heads: int = 1,
        context_window: int | None = None,
        rotary: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dim = check_positive_int("embed_dim", embed_dim)
        self.n_heads = check_positive_int("n_heads", n_heads)
        if self.embed_dim % self.n_heads:
            few = min(self.embed_dim, MOST_LAYERS)
            legal = [number for number in range(1, few + 1) if self.embed_dim % number == 0]
            raise ValueError(
                f"n_heads must divide the width {self.embed_dim}, got {self.n_heads}; these do: {legal}"
            )
        self.context_window = None if context_window is None else check_window(context_window)
        self.rotary = check_flag("rotary", rotary)
        if self.rotary:
            check_even("the width per head (embed_dim / n_heads)", self.embed_dim // self.n_heads)
        self.dropout = check_dropout(dropout)
        self.in_proj_weight = nn.Parameter(torch.empty(3 * self.embed_dim, self.embed_dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * self.embed_dim))
        self.out_proj = nn.Linear(self.embed_dim, self.embed_dim)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        first = _first_frame(x)
        query, key, value = self._project(x, first)
        if self.context_window is None:
            dropout = self.dropout if self.training else 0.0
            key, value, spoiled = _set_aside(key, value)
            y = functional.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True)
            y = y + spoiled.cumsum(-1).unsqueeze(-1)
        else:
            before = (0, 0, self.context_window - 1, 0)
            y = self._look_back(query, functional.pad(key, before), functional.pad(value, before), first)
        return self._merge(y)

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return ``{"keys", "values": (B, heads, w - 1, D / heads), "position": (B,)}``, all zero."""
        if self.context_window is None:
            raise ValueError(
                "attention without a context_window cannot run chunk by chunk: its memory would grow with "
                "every frame. Build the model with context_window=..., e.g. Transformer(context_window=60), "
                "or call it on whole clips"
            )
        where, kind = placement(self, device, dtype)
        shape = (batch, self.n_heads, self.context_window - 1, self.embed_dim // self.n_heads)
        return {
            "keys": torch.zeros(shape, device=where, dtype=kind),
            "values": torch.zeros(shape, device=where, dtype=kind),
            "position": torch.zeros(batch, device=where, dtype=torch.int64),
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, T', D) to (B, T', D) and the next state."""
        n_frames, position = chunk.shape[1], state["position"]
        query, key, value = self._project(chunk, position)
        keys, values = torch.cat([state["keys"], key], dim=2), torch.cat([state["values"], value], dim=2)
        y = self._merge(self._look_back(query, keys, values, position))
        following = {
            "keys": keys[:, :, n_frames:],
            "values": values[:, :, n_frames:],
            "position": position + n_frames,
        }
        return y, following

    def _project(self, x: Tensor, first: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, T, D) to queries, keys and values (B, heads, T, D / heads)."""
        if x.ndim != 3 or x.shape[-1] != self.embed_dim:
            raise ValueError(f"expected features (B, T, {self.embed_dim}), got {tuple(x.shape)}")
        projected = functional.linear(x, self.in_proj_weight, self.in_proj_bias)
        query, key, value = projected.view(*x.shape[:2], 3, self.n_heads, -1).permute(2, 0, 3, 1, 4)
        if self.rotary:
            angle = _frame_angles(first, x.shape[1], query.shape[-1]).unsqueeze(1)
            cosine, sine = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
            query, key = _turn_pairs(query, cosine, sine), _turn_pairs(key, cosine, sine)
        return query, key, value

    def _look_back(self, query: Tensor, keys: Tensor, values: Tensor, first: Tensor) -> Tensor:
        """Attend within the window, block by block of queries.

        ``keys`` and ``values`` (B, heads, w - 1 + T, ...) begin ``w - 1`` frames before the queries; what
        lies before frame 0 is masked. A block of b queries meets the ``b + w - 1`` keys that any may see.
        """
        window, n_frames = cast(int, self.context_window), query.shape[2]
        if n_frames == 1:  # a stream: it may see all keys but those before frame 0, which are zeros
            scores = (query @ keys.mT) / math.sqrt(query.shape[-1])
            number = torch.arange(1 - window, 1, device=first.device) + first.view(-1, 1, 1, 1)
            weights = scores.masked_fill(number < 0, -math.inf).softmax(dim=-1)
            return functional.dropout(weights, self.dropout, self.training) @ values
        keys, values, spoiled = _set_aside(keys, values)
        block = min(n_frames, max(window, _SMALLEST_BLOCK))
        n_blocks = -(-n_frames // block)
        span, tail = block + window - 1, (0, 0, 0, n_blocks * block - n_frames)
        query = functional.pad(query, tail).reshape(*query.shape[:2], n_blocks, block, -1)
        keys = functional.pad(keys, tail).unfold(2, span, block)  # (B, heads, n_blocks, D / heads, span)
        values = functional.pad(values, tail).unfold(2, span, block)
        spoiled = functional.pad(spoiled, tail[2:]).unfold(2, span, block).unsqueeze(-2)
        scores = (query @ keys) / math.sqrt(query.shape[-1]) + spoiled
        scores = scores.masked_fill(_forbidden_keys(first, n_blocks, block, window), -math.inf)
        weights = functional.dropout(scores.softmax(dim=-1), self.dropout, self.training)
        return (weights @ values.transpose(-1, -2)).flatten(2, 3)[:, :, :n_frames]

    def _merge(self, y: Tensor) -> Tensor:
        return self.out_proj(y.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


class CausalTransformerLayer(nn.Module, Configurable):
    """Causal attention and a feed-forward part, each with residual and layer normalisation (post-norm, ReLU).

    Parameters have the names of ``nn.TransformerEncoderLayer``, 12 D^2 + 13 D of them.
    """

    def __init__(
        self,
        embed_dim: int,
        n_heads: int = 1,
        context_window: int | None = None,
        rotary: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.self_attn = CausalSelfAttention(embed_dim, n_heads, context_window, rotary, dropout)
        width = _FEED_FORWARD * self.self_attn.embed_dim
        self.linear1 = nn.Linear(embed_dim, width)
        self.linear2 = nn.Linear(width, embed_dim)
        self.norm1 = nn.LayerNorm(embed_dim)
        self.norm2 = nn.LayerNorm(embed_dim)
        self.dropout = nn.Dropout(self.self_attn.dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        return self._finish(x, self.self_attn(x))

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state of the attention."""
        return self.self_attn.init_state(batch, device=device, dtype=dtype)

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, T', D)."""
        seen, following = self.self_attn.step(chunk, state)
        return self._finish(chunk, seen), following

    def _finish(self, x: Tensor, seen: Tensor) -> Tensor:
        x = self.norm1(x + self.dropout(seen))
        hidden = self.dropout(functional.relu(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(hidden)))  # type: ignore[no-any-return]


class CausalTransformerEncoder(nn.Module, Configurable):
    """A stack of `CausalTransformerLayer`; with a window of w it sees ``n_layers * (w - 1) + 1`` frames."""

    def __init__(
        self,
        n_layers: int,
        embed_dim: int,
        n_heads: int = 1,
        context_window: int | None = None,
        rotary: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            CausalTransformerLayer(embed_dim, n_heads, context_window, rotary, dropout)
            for _ in range(check_positive_int("n_layers", n_layers, MOST_LAYERS))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, T, D) to (B, T, D)."""
        for layer in self.layers:
            x = layer(x)
        return x

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state of every layer."""
        return {
            name: cast(CausalTransformerLayer, layer).init_state(batch, device=device, dtype=dtype)
            for name, layer in self.layers.named_children()
        }

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, T', D)."""
        following: State = {}
        for name, layer in self.layers.named_children():
            chunk, following[name] = cast(CausalTransformerLayer, layer).step(chunk, state[name])
        return chunk, following


def build_causal_window_mask(
    L: int, window: int | None = None, device: torch.device | str | None = None
) -> Tensor:
    """Return (L, L) frames that may not be seen: later ones, and those ``window`` frames ago or more."""
    frames = torch.arange(check_positive_int("L", L), device=device)
    age = frames.unsqueeze(1) - frames
    return (age < 0) if window is None else (age < 0) | (age >= check_window(window))


def check_window(context_window: int) -> int:
    """Return ``context_window`` after checking that it is an integer of at least 1."""
    try:
        return check_positive_int("context_window", context_window)
    except ValueError as error:
        raise ValueError(
            f"{error}: it counts the frames that a layer sees, the current one included (e.g. 60), and None "
            "is all of the past"
        ) from None


def check_even(name: str, value: int) -> int:
    """Return ``value`` after checking that it is an even positive integer."""
    number = check_positive_int(name, value)
    if number % 2:
        raise ValueError(
            f"{name} must be even for a position code (a sine and a cosine per pair), got {number}; "
            f"{' or '.join(str(n) for n in (number - 1, number + 1) if n)} would work"
        )
    return number


def _set_aside(keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finite keys and values, and NaN (B, heads, T) for the frames of others: 0 * NaN would leave a mask."""
    (keys, bad_keys), (values, bad_values) = split_non_finite(keys), split_non_finite(values)
    return keys, values, 0.0 * (bad_keys.sum(-1) + bad_values.sum(-1))


def _first_frame(x: Tensor) -> Tensor:
    """Number of the first frame of a whole clip, for all clips of a batch: (1,), zero."""
    return torch.zeros(1, dtype=torch.int64, device=x.device)


def _frame_angles(first: Tensor, n_frames: int, width: int) -> Tensor:
    """Angles (B, T, width / 2) of frames from ``first`` (B,) on, in float64 (not on Apple's GPU)."""
    dtype = torch.float32 if first.device.type == "mps" else torch.float64
    index = torch.arange(0, width, 2, device=first.device, dtype=dtype)
    number = first.unsqueeze(-1) + torch.arange(n_frames, device=first.device)
    return number.unsqueeze(-1).to(dtype) * torch.exp(index * (-math.log(_BASE) / width))


def _turn_pairs(x: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """Turn each pair of neighbouring features by its angle."""
    real, imaginary = x[..., 0::2], x[..., 1::2]
    pairs = [real * cosine - imaginary * sine, real * sine + imaginary * cosine]
    return torch.stack(pairs, dim=-1).flatten(-2)


def _forbidden_keys(first: Tensor, n_blocks: int, block: int, window: int) -> Tensor:
    """Which keys of a block no query may see, (B, 1, n_blocks, block, block + window - 1).

    Key c of a block is ``window - 1 - c`` frames older than the block's first query.
    """
    column = torch.arange(block + window - 1, device=first.device)
    age = torch.arange(block, device=first.device).unsqueeze(1) + (window - 1) - column
    start = torch.arange(n_blocks, device=first.device) * block - (window - 1)
    number = first.view(-1, 1, 1) + start.unsqueeze(1) + column  # (B, n_blocks, span)
    unseen = (age < 0) | (age >= window)
    return (unseen | (number < 0).unsqueeze(-2)).unsqueeze(1)
