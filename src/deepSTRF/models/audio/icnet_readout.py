"""What ICNet reads out of its latent: a rate per neuron, or a distribution over spike counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from deepSTRF.models._checks import check_choice, check_flag, check_positive_int
from deepSTRF.models.causal import FramewiseMixin
from deepSTRF.models.configurable import Configurable

__all__ = ["ICNetReadout", "categorical_loss"]

#: Hours per unit of the time input (the released model's scale: seconds / 36,000).
_HOURS_PER_UNIT = 10.0


class ICNetReadout(FramewiseMixin, nn.Module, Configurable):
    """Affine map of each frame's latent to every neuron, as a Poisson rate or as probabilities of counts.

    Neurons of several recordings stand one after the other. With ``time_input`` each recording scales the
    latent by gains of its own that drift with time, ``1 + gate_weight * t / 10 h + gate_bias``, which start
    at 1.

    Parameters
    ----------
    in_features : int
        Channels of the latent, F.
    neurons_per_recording : sequence of int
        Neurons of each recording; their sum is N.
    head : {"poisson", "categorical"}
        ``"poisson"``: softplus, a rate. ``"categorical"``: softmax over ``n_classes`` spike counts.
    n_classes : int
        Counts told apart, 0 to ``n_classes - 1``; the last one stands for itself and all larger.
    time_input : bool
        Whether the readout has gains that depend on time.

    Attributes
    ----------
    weight : nn.Parameter
        (N, P, F), P of 1 (rate) or ``n_classes`` (logits).
    bias : nn.Parameter
        (N, P).

    Raises
    ------
    TypeError, ValueError
        For illegal arguments.

    Examples
    --------
    >>> readout = ICNetReadout(4, [3], head="categorical")
    >>> latent = torch.zeros(2, 1, 4, 10)
    >>> readout(latent).shape, readout.parameters_of(latent).shape
    (torch.Size([2, 3, 1, 10]), torch.Size([2, 3, 5, 10]))
    """

    def __init__(
        self,
        in_features: int,
        neurons_per_recording: Sequence[int],
        head: str = "poisson",
        n_classes: int = 5,
        time_input: bool = False,
    ) -> None:
        super().__init__()
        check_choice("head", head, ("poisson", "categorical"))
        self.in_features = check_positive_int("in_features", in_features)
        self.neurons_per_recording = [check_positive_int("out_neurons", n) for n in neurons_per_recording]
        if not self.neurons_per_recording:
            raise ValueError("out_neurons must name at least one recording, got an empty list")
        self.head, self.time_input = head, check_flag("time_input", time_input)
        self.n_classes = check_positive_int("n_classes", n_classes)
        if self.n_classes < 2:
            raise ValueError("n_classes must be at least 2: no spike, and one or more")
        per_neuron = 1 if head == "poisson" else self.n_classes
        shape = (sum(self.neurons_per_recording), per_neuron, self.in_features)
        bound = 1.0 / math.sqrt(self.in_features)  # as in nn.Linear
        self.weight = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(shape[:2]).uniform_(-bound, bound))
        if self.time_input:
            self.gate_weight = nn.Parameter(torch.zeros(len(self.neurons_per_recording), self.in_features))
            self.gate_bias = nn.Parameter(torch.zeros(len(self.neurons_per_recording), self.in_features))

    def forward(self, latent: Tensor) -> Tensor:
        """Map (B, 1, F, T) to expected spike counts per bin (B, N, 1, T)."""
        return self.expected_counts(self.parameters_of(latent))

    def parameters_of(self, latent: Tensor, time_hours: Tensor | float | None = None) -> Tensor:
        """Map the latent to the parameters of each neuron's distribution in every bin.

        Parameters
        ----------
        latent : Tensor
            (B, 1, F, T).
        time_hours : Tensor or float, optional
            Hours since the start of the recording: one number, (B,) per clip, or (B, T) per bin. None leaves
            the gains at 1.

        Returns
        -------
        Tensor
            Rates (B, N, 1, T) of the Poisson head, logits (B, N, n_classes, T) of the categorical one.

        Raises
        ------
        ValueError
            For a latent or times of another shape, or times without ``time_input=True``.
        """
        if latent.ndim != 4 or latent.shape[1] != 1 or latent.shape[2] != self.in_features:
            raise ValueError(f"expected a latent (B, 1, {self.in_features}, T), got {tuple(latent.shape)}")
        frames = latent.squeeze(1).transpose(1, 2)
        if time_hours is None:
            drive = self._drive(frames, 0, len(self.weight))
        else:
            gains, start = self._gains(frames, time_hours), 0
            parts = []
            for recording, n_neurons in enumerate(self.neurons_per_recording):
                parts.append(self._drive(frames * gains[recording], start, start + n_neurons))
                start += n_neurons
            drive = torch.cat(parts, dim=1)
        return functional.softplus(drive) if self.head == "poisson" else drive

    def expected_counts(self, parameters: Tensor) -> Tensor:
        """Map what `parameters_of` returns to expected spike counts (B, N, 1, T)."""
        if self.head == "poisson":
            return parameters
        counts = torch.arange(self.n_classes, dtype=parameters.dtype, device=parameters.device)
        return (parameters.softmax(2) * counts.view(-1, 1)).sum(2, keepdim=True)

    def per_neuron_parameters(self) -> list[str]:
        """Return the names of the tensors whose first axis is the neuron."""
        return ["weight", "bias"]

    def _drive(self, frames: Tensor, first: int, last: int) -> Tensor:
        """(B, T, F) -> (B, N', P, T) for the neurons ``first`` to ``last - 1``."""
        weight, bias = self.weight[first:last], self.bias[first:last]
        y = functional.linear(frames, weight.flatten(0, 1), bias.flatten())
        return y.transpose(1, 2).reshape(len(y), *bias.shape, -1)

    def _gains(self, frames: Tensor, time_hours: Tensor | float) -> list[Tensor]:
        """Gains of each recording that broadcast over (B, T, F)."""
        if not self.time_input:
            raise ValueError("this model has no time input; build it with ICNet(..., time_input=True)")
        time = torch.as_tensor(time_hours, dtype=frames.dtype, device=frames.device) / _HOURS_PER_UNIT
        batch, bins = frames.shape[:2]
        if tuple(time.shape) not in ((), (batch,), (batch, bins)):
            raise ValueError(
                f"time_hours must be a number, ({batch},) for the clips or ({batch}, {bins}) for their bins, "
                f"got {tuple(time.shape)}"
            )
        time = time.reshape(*time.shape, *[1] * (3 - time.ndim))
        gates = zip(self.gate_weight, self.gate_bias, strict=True)
        return [1.0 + weight * time + bias for weight, bias in gates]


def categorical_loss(
    logits: Tensor,
    responses: Tensor,
    mask: Tensor | None = None,
    reduction: str = "mean",
    weighting: str = "bins",
) -> Tensor:
    """Cross-entropy of spike counts: the negative log-likelihood of a categorical distribution per bin.

    A bin's value is the mean over its repeats, so R repeats weigh together what one weighs; it is computed
    from the histogram of the counts over repeats, which is exact. Neurons without data are left out.

    Parameters
    ----------
    logits : Tensor
        (B, N, K, T) of the counts 0 to K - 1; the last class also takes all larger counts.
    responses : Tensor
        (B, N, R, T) spike counts of single repeats; NaN where nothing was recorded.
    mask : Tensor of bool, optional
        Expands to ``responses``; True where a recorded bin counts.
    reduction : {"mean", "none"}
        Mean over neurons, or one value per neuron (N,).
    weighting : {"bins", "repeats"}
        Whether a bin weighs 1, or the number of its repeats.

    Returns
    -------
    Tensor
        () or (N,), in nats per bin; NaN for a neuron without data, and for the mean when no neuron has any.

    Raises
    ------
    ValueError
        When shapes disagree, or for responses that are no spike counts (smoothed, averaged, or negative).
    TypeError
        When ``mask`` is not bool.

    Examples
    --------
    >>> counts = torch.tensor([[[[0.0, 2.0], [1.0, 7.0]]]])
    >>> categorical_loss(torch.zeros(1, 1, 5, 2), counts)
    tensor(1.6094)
    """
    check_choice("reduction", reduction, ("mean", "none"))
    check_choice("weighting", weighting, ("bins", "repeats"))
    valid = _valid_counts(logits, responses, mask)
    log_probability = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(2)
    last = logits.shape[2] - 1
    classes = torch.where(valid, responses, torch.zeros_like(responses)).clamp(max=last)
    repeats = valid.sum(2).to(log_probability.dtype)  # (B, N, T)
    surprise = torch.zeros_like(log_probability[:, :, 0])
    for count in range(last + 1):  # one class at a time: nothing of size R x K is made
        seen = ((classes == count) & valid).sum(2)
        surprise = surprise - seen * log_probability[:, :, count]
    weight = repeats
    if weighting == "bins":
        surprise, weight = surprise / repeats.clamp(min=1.0), (repeats > 0).to(repeats.dtype)
    total = weight.sum((0, 2))
    # divided by 1 where there is no data: the gradient of 0 / 0 would be NaN even where it is left out
    per_neuron = surprise.sum((0, 2)) / torch.where(total > 0, total, 1.0)
    if reduction == "none":
        return torch.where(total > 0, per_neuron, torch.nan)
    return per_neuron[total > 0].mean()


def _valid_counts(logits: Tensor, responses: Tensor, mask: Tensor | None) -> Tensor:
    """Return where there is a count (B, N, R, T), after checking shapes and values."""
    batch, neurons, _, bins = logits.shape if logits.ndim == 4 else (-1, -1, -1, -1)
    fits = responses.ndim == 4 and (responses.shape[0], responses.shape[1], responses.shape[3]) == (
        batch, neurons, bins,
    )  # fmt: skip
    if not fits:
        raise ValueError(
            f"expected logits (B, N, K, T) and responses (B, N, R, T), got {tuple(logits.shape)} and "
            f"{tuple(responses.shape)}; the logits come from model.forward_params(stimuli)"
        )
    valid = ~responses.isnan()
    if mask is not None:
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, True where a bin counts, got {mask.dtype}")
        valid = valid & mask.expand_as(responses)
    counts = torch.where(valid, responses, torch.zeros_like(responses))
    wrong = (counts != counts.round()) | (counts < 0) | counts.isinf()
    if bool(wrong.any()):
        raise ValueError(
            "the categorical head needs spike counts, whole numbers of at least 0, and these responses hold "
            f"{float(counts[wrong][0]):.4g}: load the recording with smooth=False, without "
            "normalize_responses or smooth_responses, and give single repeats (B, N, R, T), not their PSTH"
        )
    return valid
