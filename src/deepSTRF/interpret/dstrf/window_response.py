"""Responses at one time as a function of the window before it: for finite changes of the stimulus."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepSTRF._validation import check_positive_int
from deepSTRF.interpret.dstrf.receptive_field import ReceptiveFieldError, probe_receptive_field
from deepSTRF.interpret.dstrf.target import UNDECLARED, Target, agree


class WindowResponse:
    """The responses at one time, as a function of the last frames up to it; older frames stay as they are.

    The clip is cut to the receptive field where the model responds to the cut as to the whole, or else to
    the past.
    """

    def __init__(self, target: Target, time: int, lags: int) -> None:
        self.target = target
        declared = target.declared_receptive_field
        first = 0 if declared in (None, UNDECLARED) else max(0, time + 1 - max(lags, int(declared or 0)))
        start = next((cut for cut in (first, 0) if self._suffices(cut, time)), None)
        if start is None:
            raise ReceptiveFieldError(
                f"the response at frame {time} is another one without the sound after it: the model is not "
                "causal. Pad convolutions on the left only, and mask attention to later frames"
            )
        length = min(lags, time + 1)
        frames = target.frames[..., start : time + 1]
        self.past, self.window = frames[..., :-length], frames[..., -length:]
        #: Lags of the window that are before the clip.
        self.missing = lags - length

    def _suffices(self, first: int, time: int) -> bool:
        """Whether the frames from ``first`` to ``time`` make the response that the whole clip makes."""
        with torch.no_grad():
            alone = self.target.respond(self.target.frames[..., first : time + 1])[0, :, -1]
        return agree(alone, self.target.output()[:, time])

    def respond(self, windows: Tensor) -> Tensor:
        """Return the responses (B, N) to windows (B, 1, F, L') in place of the clip's own."""
        past = self.past.expand(len(windows), -1, -1, -1)
        return self.target.respond(torch.cat([past, windows], dim=-1))[..., -1]


def window_length(target: Target, lags: int | None) -> int:
    """Return the frames of a window: the number given, or the receptive field."""
    if lags is not None:
        return check_positive_int("lags", lags)
    field = target.declared_receptive_field
    if field == UNDECLARED:
        with torch.no_grad():
            field = probe_receptive_field(target.respond, target.frames)
    if field is None:
        raise ValueError(
            "the receptive field has no bound: say how many frames the window has, e.g. lags=40 "
            "(dstrf(model, stimulus).lags is what holds 99% of the squared gradient)"
        )
    return field


def noise_sd(frames: Tensor, share: float) -> float:
    """Return the standard deviation of noise that is a share of a clip's own."""
    spread = float(frames.double().std()) if frames.numel() > 1 else 0.0
    if spread == 0:
        raise ValueError(
            "the stimulus does not vary, so a share of its standard deviation is no noise at all"
        )
    return share * spread


def forward_bytes(model: nn.Module, one: WindowResponse) -> int:
    """Return about how much memory the response to one window takes, in bytes."""
    held = [2 * 4 * (one.past.numel() + one.window.numel())]

    def count(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            held.append(output.numel() * output.element_size())

    handles: list[RemovableHandle] = [part.register_forward_hook(count) for part in model.modules()]
    try:
        with torch.no_grad():
            one.respond(one.window)
    finally:
        for handle in handles:
            handle.remove()
    return sum(held)
