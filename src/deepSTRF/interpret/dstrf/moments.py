"""One moment of a clip: the window before it, and the responses to other sounds in its place."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from deepSTRF._validation import check_positive_int
from deepSTRF.interpret.dstrf.receptive_field import ReceptiveFieldError, probe_reach
from deepSTRF.interpret.dstrf.target import UNDECLARED, Subject
from deepSTRF.interpret.dstrf.verification import agree

__all__ = ["Moment", "forward_bytes", "noise_sd", "window_length"]


class Moment:
    """The responses at one time, as a function of the last frames before it; older sound stays as it is.

    The clip is cut to the receptive field where the model responds to the cut as to the whole, or else to
    the past.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> subject = Subject(Linear(8, 3, out_neurons=2).eval(), torch.randn(8, 50), "spectrogram")
    >>> moment = Moment(subject, 20, lags=3)
    >>> moment.window.shape, moment.respond(moment.window).shape
    (torch.Size([1, 1, 8, 3]), torch.Size([1, 2]))
    """

    def __init__(self, subject: Subject, time: int, lags: int) -> None:
        self.subject = subject
        reach = subject.declared_reach
        first = 0 if reach in (None, UNDECLARED) else max(0, time + 1 - max(lags, int(reach or 0)))
        heard = next((cut for cut in (first, 0) if self._suffices(cut, time)), None)
        if heard is None:
            raise ReceptiveFieldError(
                f"the response at frame {time} is another one without the sound after it: the model is not "
                "causal. Pad convolutions on the left only, and mask attention to later frames"
            )
        length = min(lags, time + 1)
        frames = subject.frames[..., heard : time + 1]
        self.past, self.window = frames[..., :-length], frames[..., -length:]
        #: Lags of the window that lie before the clip.
        self.missing = lags - length

    def _suffices(self, first: int, time: int) -> bool:
        """Whether the frames from ``first`` to ``time`` make the response that the whole clip makes."""
        with torch.no_grad():
            alone = self.subject.respond(self.subject.frames[..., first : time + 1])[0, :, -1]
        return agree(alone, self.subject.output()[:, time])

    def respond(self, windows: Tensor) -> Tensor:
        """Return the responses (B, N) to windows (B, 1, F, L') in place of the clip's own."""
        past = self.past.expand(len(windows), -1, -1, -1)
        return self.subject.respond(torch.cat([past, windows], dim=-1))[..., -1]


def window_length(subject: Subject, lags: int | None) -> int:
    """Return the frames of a window: those asked for, or the receptive field.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> window_length(Subject(Linear(8, 3).eval(), torch.randn(8, 50), "spectrogram"), None)
    3
    """
    if lags is not None:
        return check_positive_int("lags", lags)
    reach = subject.declared_reach
    if reach == UNDECLARED:
        with torch.no_grad():
            reach = probe_reach(subject.respond, subject.frames)
    if reach is None:
        raise ValueError(
            "the receptive field has no bound: say how many frames the window has, e.g. lags=40 "
            "(dstrf(model, stimulus).lags is what holds 99% of the squared gradient)"
        )
    return reach


def noise_sd(frames: Tensor, share: float) -> float:
    """Return the standard deviation of noise that is a share of a clip's own.

    Examples
    --------
    >>> noise_sd(torch.tensor([0.0, 2.0]), 0.5) == 0.5 * 2**0.5
    True
    """
    spread = float(frames.double().std()) if frames.numel() > 1 else 0.0
    if spread == 0:
        raise ValueError(
            "the stimulus does not vary, so a share of its standard deviation is no noise at all"
        )
    return share * spread


def forward_bytes(model: nn.Module, moment: Moment) -> int:
    """Return about how much memory the response to one window takes, in bytes.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> model = Linear(8, 3, out_neurons=2).eval()
    >>> forward_bytes(model, Moment(Subject(model, torch.randn(8, 50), "spectrogram"), 20, 3)) > 0
    True
    """
    held = [2 * 4 * (moment.past.numel() + moment.window.numel())]

    def count(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, Tensor):
            held.append(output.numel() * output.element_size())

    handles: list[RemovableHandle] = [part.register_forward_hook(count) for part in model.modules()]
    try:
        with torch.no_grad():
            moment.respond(moment.window)
    finally:
        for handle in handles:
            handle.remove()
    return sum(held)
