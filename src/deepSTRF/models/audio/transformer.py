"""The Transformer: causal self-attention over spectro-temporal patches.

Vaswani et al. 2017, doi 10.48550/arXiv.1706.03762; the layers are those of `deepSTRF.models.attention`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF._validation import MOST_LAYERS, check_choice, check_positive_int, checked_but
from deepSTRF.models.attention import (
    CausalTransformerEncoder,
    SinusoidalPositionalEncoding,
    check_even,
    check_window,
)
from deepSTRF.models.base import AudioEncodingModel
from deepSTRF.models.configurable import Configurable, placement
from deepSTRF.models.readouts import LinearReadout
from deepSTRF.models.streaming import Device, DType, State
from deepSTRF.registry import MODELS

__all__ = ["PatchTransformer", "Transformer"]

#: Window reported as `T` when attention is unbounded, in frames: that of the linear models.
_NOMINAL_WINDOW = 9
#: Dropout of the published model (and PyTorch's default for a Transformer layer).
_DROPOUT = 0.1


@MODELS.register("transformer")
class Transformer(AudioEncodingModel):
    """Causal self-attention over frames, read out linearly by every neuron.

    Each frame (or patch of frames) becomes a token of D numbers; layers of attention combine it with earlier
    ones; one affine map per neuron gives the response. Clips of any length work. With 34 bands and 119
    neurons it has 35,783 parameters: 1,680 of the patches, 28,272 of the layer (12 D^2 + 13 D), 5,831 of the
    readout.

    Parameters
    ----------
    n_frequency_bands : int
        Bands, F.
    freq_patch_size : int or None
        Bands of a patch; they divide F. None is all of them: one patch per frame.
    time_patch_size : int
        Frames of a patch, the current one last; patches overlap, one per frame.
    context_window : int or None
        Frames that each layer attends to, the current one included. Attention is then blockwise, linear in
        the clip's length, and the model can run on a stream. None is all of the past.
    embedding_dim : int
        Numbers per patch; the token has ``D = embedding_dim * F / freq_patch_size``.
    n_heads, n_layers : int
        Attention heads (they divide D) and layers.
    out_neurons : int
        Neurons, N.
    output_activation : nn.Module, str or None
        Applied with the neurons on the last axis; a name is one of `ACTIVATIONS`, None is the identity.
    prefiltering : nn.Module, dict or None
        See `AudioEncodingModel`.
    wav2spec : nn.Module or None
        Front-end for waveforms; None expects spectrograms.
    positional : {"sinusoidal", "rope", "none"}
        ``"sinusoidal"`` encodes the frame's number since the start of the clip: predictions depend on it, and
        clips longer than those of the fit are extrapolation. ``"rope"`` rotates queries and keys, so that
        only distances in time count. ``"none"``: the order of frames enters through the patches alone.
    dropout : float
        Dropout of the layers in train mode.
    standardize : bool
        Whether the bands are z-scored first. Nothing else bounds the input: on a raw log spectrogram (silence
        is -9.2) fits are slow or fail.

    Attributes
    ----------
    K_F, K_T, F_p, token_dim, H : int
        Bands and frames of a patch, patches per frame, width of a token (twice).
    T : int
        The window, else 9 (or ``time_patch_size`` if longer).

    Raises
    ------
    TypeError, ValueError
        For illegal arguments, such as a window of 0, an odd token with a position code, or heads that do not
        divide it; the text lists legal values.

    References
    ----------
    Vaswani et al. 2017, doi 10.48550/arXiv.1706.03762; as a model of auditory cortex: Rançon, Masquelier &
    Cottereau 2025, doi 10.1038/s42003-025-08858-3; rotary code: Su et al. 2024, doi
    10.1016/j.neucom.2023.127063.

    Examples
    --------
    >>> Transformer(34, out_neurons=119).count_trainable_params()
    35783
    >>> model = Transformer(34, context_window=5, n_layers=3, out_neurons=2)
    >>> model(torch.zeros(1, 1, 34, 100)).shape, model.receptive_field
    (torch.Size([1, 2, 1, 100]), 13)
    """

    core: PatchTransformer
    readout: LinearReadout

    @checked_but("output_activation")
    def __init__(
        self,
        n_frequency_bands: int = 34,
        freq_patch_size: int | None = None,
        time_patch_size: int = 1,
        context_window: int | None = None,
        embedding_dim: int = 48,
        n_heads: int = 1,
        n_layers: int = 1,
        out_neurons: int = 1,
        output_activation: nn.Module | str | None = None,
        prefiltering: nn.Module | Mapping[str, Any] | None = None,
        wav2spec: nn.Module | None = None,
        *,
        positional: str = "sinusoidal",
        dropout: float = _DROPOUT,
        standardize: bool = False,
    ) -> None:
        window = None if context_window is None else check_window(context_window)
        shown = window or max(check_positive_int("time_patch_size", time_patch_size), _NOMINAL_WINDOW)
        super().__init__(n_frequency_bands, shown, out_neurons, prefiltering, wav2spec, standardize)
        self.core = PatchTransformer(
            self.C_in,
            self.F,
            freq_patch_size,
            time_patch_size,
            embedding_dim,
            n_heads,
            n_layers,
            window,
            positional,
            dropout,
        )
        self.K_F, self.K_T, self.F_p = self.core.K_F, self.core.K_T, self.core.F_p
        self.token_dim = self.H = self.core.token_dim
        self.context_window = window
        self.embedding_dim, self.n_heads, self.n_layers = int(embedding_dim), int(n_heads), int(n_layers)
        self.readout = LinearReadout(self.token_dim, self.O, activation=output_activation)
        self.validate()

    @property
    def receptive_field(self) -> int | None:
        """Frames a prediction depends on: ``n_layers * (context_window - 1) + K_T``, plus the prefilter's."""
        behind = super().receptive_field
        if self.context_window is None or behind is None:
            return None
        return behind - self.T + self.n_layers * (self.context_window - 1) + self.K_T

    def convert_public_state(self, state: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Rename public weights: the layers are part of ``core`` here, and the position code is computed."""
        if "pos_encoding.div_term" in state and self.core.pos_encoding is None:
            raise ValueError(
                "the checkpoint was fitted with a sinusoidal position code: build the Transformer with "
                "positional='sinusoidal'"
            )
        return {
            f"core.{name}" if name.startswith(("patchify.", "tsfm.")) else name: tensor
            for name, tensor in state.items()
            if name != "pos_encoding.div_term"
        }


class PatchTransformer(nn.Module, Configurable):
    """Patches of a spectrogram to tokens, one per frame, then causal attention: (B, C, F, T) to (B, D, T).

    A patch is ``freq_patch_size`` bands by ``time_patch_size`` frames, the current one last; the embeddings
    of the ``F / freq_patch_size`` patches of a frame, side by side, are its token of D numbers.
    """

    def __init__(
        self,
        C_in: int,
        F: int,
        freq_patch_size: int | None = None,
        time_patch_size: int = 1,
        embedding_dim: int = 48,
        n_heads: int = 1,
        n_layers: int = 1,
        context_window: int | None = None,
        positional: str = "sinusoidal",
        dropout: float = _DROPOUT,
    ) -> None:
        super().__init__()
        check_choice("positional", positional, ("sinusoidal", "rope", "none"))
        self.C_in, self.F = check_positive_int("C_in", C_in), check_positive_int("F", F)
        self.K_F = self.F
        if freq_patch_size is not None:
            self.K_F = check_positive_int("freq_patch_size", freq_patch_size)
        if self.F % self.K_F:
            legal = [number for number in range(1, min(self.F, MOST_LAYERS) + 1) if self.F % number == 0]
            raise ValueError(
                f"freq_patch_size must divide the {self.F} bands, got {self.K_F}; these do: {legal}"
            )
        self.K_T = check_positive_int("time_patch_size", time_patch_size)
        self.F_p = self.F // self.K_F
        self.token_dim = check_positive_int("embedding_dim", embedding_dim) * self.F_p
        if positional == "sinusoidal":
            check_even("the token width (embedding_dim * patches per frame)", self.token_dim)
        self.patchify = nn.Conv2d(self.C_in, embedding_dim, (self.K_F, self.K_T), stride=(self.K_F, 1))
        self.pos_encoding: SinusoidalPositionalEncoding | None = None
        if positional == "sinusoidal":
            self.pos_encoding = SinusoidalPositionalEncoding(self.token_dim)
        self.tsfm = CausalTransformerEncoder(
            n_layers, self.token_dim, n_heads, context_window, positional == "rope", dropout
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, F, T) to (B, D, T)."""
        tokens = self._tokens(functional.pad(x, (self.K_T - 1, 0)))
        if self.pos_encoding is not None:
            tokens = self.pos_encoding(tokens)
        return self.tsfm(tokens).transpose(1, 2)  # type: ignore[no-any-return]

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the zeros before the first frame, its number, and the state of every layer."""
        where, kind = placement(self, device, dtype)
        shape = (batch, self.C_in, self.F, self.K_T - 1)
        state: State = {"history": torch.zeros(shape, device=where, dtype=kind)}
        if self.pos_encoding is not None:
            state["pos_encoding"] = self.pos_encoding.init_state(batch, device=where, dtype=kind)
        state["tsfm"] = self.tsfm.init_state(batch, device=where, dtype=kind)
        return state

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Map the next frames (B, C, F, T') to (B, D, T') and the next state."""
        padded = torch.cat([state["history"], chunk], dim=-1)
        tokens = self._tokens(padded)
        following: State = {"history": padded[..., padded.shape[-1] - (self.K_T - 1) :]}
        if self.pos_encoding is not None:
            tokens, following["pos_encoding"] = self.pos_encoding.step(tokens, state["pos_encoding"])
        tokens, following["tsfm"] = self.tsfm.step(tokens, state["tsfm"])
        return tokens.transpose(1, 2), following

    def _tokens(self, padded: Tensor) -> Tensor:
        """(B, C, F, T + K_T - 1) to (B, T, D), embedding first and patch second."""
        return self.patchify(padded).flatten(1, 2).transpose(1, 2)  # type: ignore[no-any-return]
