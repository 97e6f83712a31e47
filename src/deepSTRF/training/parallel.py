"""A fit on several processes, each with its share of the clips, equal to one process with larger batches.

`Fitter(..., fabric=...)` takes a Lightning Fabric and asks `Processes` wherever processes must agree: which
batches are theirs, the weights and random states at the start, the statistics of batch normalisation, the
loss and its gradient, the scores of a pass, and when to stop. `OneProcess` answers for a fit without one.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DistributedSampler

from deepSTRF.training.data import Batch, Loader, Share, generators_of
from deepSTRF.training.objective import LossMeter, mean_over_neurons
from deepSTRF.training.pass_scores import PassScores
from deepSTRF.training.seeds import random_state, set_random_state

__all__ = ["OneProcess", "Processes", "check_bare", "processes_of"]

#: Precision of a Fabric -> that of a `Fitter`.
FABRIC_PRECISIONS = {
    "32-true": "float32", "64-true": "float32", "bf16-mixed": "bf16", "16-mixed": "fp16",
}  # fmt: skip
#: What `fabric.setup`, `fabric.setup_dataloaders` and PyTorch make of a model, an optimizer or a loader.
WRAPPERS = (
    "_FabricModule", "_FabricOptimizer", "_FabricDataLoader", "DistributedDataParallel", "DataParallel",
)  # fmt: skip
#: Strategies of a Fabric in which every process holds the whole model.
STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")


class OneProcess:
    """A fit in one process, which agrees with itself."""

    share = Share()
    writes = True  # files, progress and log functions

    def converted(self, model: nn.Module) -> nn.Module:
        """The model in the precision of its parameters."""
        return model

    def join(self, model: nn.Module, loaders: Sequence[Loader]) -> None:
        """Begin a fit."""

    def leave(self) -> None:
        """End it."""

    def begin_step(self, batch: Batch) -> None:
        """Look at the batch that the next loss belongs to."""

    def mean_loss(self, loss: Tensor, batch: Batch, pred: Tensor) -> Tensor:
        """Scalar to differentiate, of a loss () or (N,)."""
        return mean_over_neurons(*batch.by_neuron(loss))

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Make the gradients those of all processes."""

    def merge(self, meter: LossMeter, scores: PassScores | None) -> None:
        """Take in what the other processes have measured in a pass."""

    def agree(self, value: Any) -> Any:
        """Return the value of the first process."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return flag


class Processes(OneProcess):
    """The processes of a Lightning Fabric, of which this is number ``rank``."""

    def __init__(self, fabric: Any) -> None:
        self._fabric = fabric
        self.share = Share(int(fabric.global_rank), int(fabric.world_size))
        self.writes = self.share.rank == 0
        self.counts = True  # the present batch is one of the pass, and no stand-in for a missing one
        self._weights = torch.zeros(0)
        self._normalising: list[_BatchNorm] = []
        if self.share.size > 1 and not dist.is_initialized():
            raise ValueError(
                "fabric: its processes were not started; call fabric.launch() before the Fitter is built"
            )

    def converted(self, model: nn.Module) -> nn.Module:
        """The model in the precision of its parameters."""
        made: nn.Module = self._fabric.strategy.precision.convert_module(model)
        return made

    def join(self, model: nn.Module, loaders: Sequence[Loader]) -> None:
        """Start from the weights and random states of the first process; batch statistics are joint."""
        for loader in loaders:
            if isinstance(loader.sampler, DistributedSampler):
                raise ValueError(  # noqa: TRY004 - the fit would share out shares
                    "the Fitter shares batches out over the processes itself: pass loaders without a "
                    "DistributedSampler, as make_loaders(view) makes them"
                )
        if self.share.size == 1:
            return
        state = {name: value.cpu() for name, value in model.state_dict().items() if isinstance(value, Tensor)}
        model.load_state_dict(self.agree(state), strict=False)
        generators = generators_of(*loaders)
        # the states of other processes' devices are theirs
        set_random_state(self.agree({**random_state(generators), "cuda": []}), generators)
        self._normalising = [module for module in model.modules() if isinstance(module, _BatchNorm)]
        for module in self._normalising:
            module.forward = functools.partial(_joint_batch_norm, module, self)  # type: ignore[method-assign]

    def leave(self) -> None:
        """Give batch normalisation back to its own process."""
        for module in self._normalising:
            del module.forward
        self._normalising = []

    def begin_step(self, batch: Batch) -> None:
        """Sum the valid bins of each neuron over the batches of all processes."""
        self.counts = bool(batch.keys)
        self._weights = self.sum(batch.weights)

    def mean_loss(self, loss: Tensor, batch: Batch, pred: Tensor) -> Tensor:
        """This process's part of the mean over neurons of each one's mean over the joint batch.

        The parts of all processes add up to it, and so do their gradients; the value is that of the sum.
        """
        weights, joint = batch.weights, self._weights
        if not loss.dim():
            weights, joint = weights.sum(), joint.sum()
        elif loss.shape != weights.shape:
            mean_over_neurons(loss, weights)  # raises
        if self.counts:
            heard = joint > 0
            each = torch.where(weights > 0, loss * weights, 0.0) / joint.clamp(min=1)
            part = each.sum() / heard.sum().clamp(min=1)
        else:
            part = 0.0 * pred.sum()
        return part + (self.sum(part.detach()) - part.detach())

    def sum_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Sum them in one message; what has no gradient in any process keeps none."""
        if self.share.size == 1:
            return
        wide = max((p.dtype for p in parameters), key=lambda dtype: torch.finfo(dtype).bits)
        present = torch.tensor([float(p.grad is not None) for p in parameters])
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in parameters]
        parts = [part.to(wide) for part in [present.to(parts[0].device), *parts]]
        flags, *sums = torch.split(self.sum(torch.cat(parts)), [part.numel() for part in parts])
        for parameter, flag, total in zip(parameters, flags.tolist(), sums, strict=True):
            if flag:
                parameter.grad = total.view_as(parameter).to(parameter.dtype)

    def sum(self, value: Tensor) -> Tensor:
        """Sum of a tensor over all processes."""
        total = value.detach().clone()
        if self.share.size > 1:
            dist.all_reduce(total)
        return total

    def merge(self, meter: LossMeter, scores: PassScores | None) -> None:
        """Add sums of losses and moments of predictions, in the order of the processes."""
        if self.share.size == 1:
            return
        parts: list[Any] = [None] * self.share.size
        dist.all_gather_object(parts, (meter.part(), None if scores is None else scores.part()))
        for rank, (losses, moments) in enumerate(parts):
            if rank != self.share.rank:
                meter.merge(losses)
                if scores is not None:
                    scores.merge(moments)

    def agree(self, value: Any) -> Any:
        """Return the value of the first process."""
        return self._fabric.broadcast(value)

    def any(self, flag: bool) -> bool:
        """Whether a flag is set in any process."""
        return bool(self.sum(torch.tensor(float(flag), device=self._fabric.device)))


class _SumOverProcesses(torch.autograd.Function):
    """Sum over all processes, whose gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total


def _joint_batch_norm(module: _BatchNorm, processes: Processes, x: Tensor) -> Tensor:
    """Batch normalisation (B, C, ...) with the statistics of the batches of all processes."""
    if not module.training:
        return type(module).forward(module, x)
    values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    axes = [axis for axis in range(x.dim()) if axis != 1]
    shape = [1, -1, *(1 for _ in axes[1:])]
    share = float(processes.counts)
    bins = values.new_tensor([share * values.numel() / values.shape[1]])
    sums: Tensor = _SumOverProcesses.apply(torch.cat([share * values.sum(axes), bins]))  # type: ignore[no-untyped-call]
    count = sums[-1].detach()
    mean = sums[:-1] / count
    deviation = values - mean.view(shape)
    squares: Tensor = _SumOverProcesses.apply(share * deviation.square().sum(axes))  # type: ignore[no-untyped-call]
    variance = squares / count
    if module.running_mean is not None and module.running_var is not None:
        _move_statistics(module, mean.detach(), variance.detach() * count / (count - 1).clamp(min=1))
    y = deviation * torch.rsqrt(variance + module.eps).view(shape)
    if module.affine:
        y = y * module.weight.view(shape) + module.bias.view(shape)
    return y.to(x.dtype)


@torch.no_grad()
def _move_statistics(module: _BatchNorm, mean: Tensor, variance: Tensor) -> None:
    """Move the running statistics as `nn.BatchNorm1d` does."""
    momentum = module.momentum
    if module.num_batches_tracked is not None:
        module.num_batches_tracked.add_(1)
        if momentum is None:
            momentum = 1.0 / float(module.num_batches_tracked)
    for running, value in ((module.running_mean, mean), (module.running_var, variance)):
        if running is not None and momentum is not None:
            running.lerp_(value.to(running.dtype), momentum)


def check_bare(**parts: Any) -> None:
    """Raise TypeError for what was wrapped for several processes: the Fitter would wait for ever."""
    for name, part in parts.items():
        if any(base.__name__ in WRAPPERS for base in type(part).__mro__):
            raise TypeError(
                f"{name} is wrapped ({type(part).__name__}): a Fitter shares batches out and sums gradients "
                "itself. Pass what you gave to fabric.setup or DistributedDataParallel, and fabric=fabric"
            )


def processes_of(fabric: Any, device: Any, precision: str) -> tuple[OneProcess, Any, str]:
    """Return the processes of a fit, its device and its precision; None is this process alone."""
    if fabric is None:
        return OneProcess(), device, precision
    strategy = getattr(fabric, "strategy", None)
    if strategy is None or not all(hasattr(fabric, name) for name in ("broadcast", "world_size", "device")):
        raise TypeError(
            f"fabric must be a lightning_fabric.Fabric, got {type(fabric).__name__}; the extra 'distributed' "
            "installs it"
        )
    if type(strategy).__name__ not in STRATEGIES:
        raise ValueError(
            f"fabric: every process of a fit holds the whole model, which {type(strategy).__name__} does not "
            "do; use Fabric(strategy='ddp'), or one device"
        )
    named = str(strategy.precision.precision)
    if named not in FABRIC_PRECISIONS:
        legal = ", ".join(map(repr, FABRIC_PRECISIONS))
        raise ValueError(f"fabric: a fit computes in the precisions {legal} of a Fabric, got {named!r}")
    if str(device) != "cpu" or precision != "float32":
        raise ValueError(
            f"device={str(device)!r} and precision={precision!r} go without a fabric, which states both: "
            "leave them out, and choose them with Fabric(accelerator=..., precision=...)"
        )
    return Processes(fabric), fabric.device, FABRIC_PRECISIONS[named]
