"""Models that are a chain of convolutions and elementwise functions, read from their modules."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from deepSTRF.models.activations import ParametricDoubleExponential, ParametricSigmoid, ParametricSoftplus
from deepSTRF.models.base import NeuralModel
from deepSTRF.models.kernels import CausalSTRFConv
from deepSTRF.models.norms import BandStandardizer
from deepSTRF.models.readouts import LinearReadout, STRFReadout

__all__ = ["Convolution", "Link", "Padding", "Pointwise", "UnknownLink", "chain_of"]

#: Elementwise modules: the derivative of their summed output is their slope. BatchNorm is, in eval mode.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Threshold,
    nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.PReLU, nn.BatchNorm1d, nn.BatchNorm2d, BandStandardizer,
    ParametricDoubleExponential, ParametricSigmoid, ParametricSoftplus,
)  # fmt: skip
#: Modules that do nothing in eval mode.
IDLE = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout)
#: Elementwise functions and methods, by name, of one tensor and plain numbers.
ELEMENTWISE_NAMES = {
    "relu", "relu_", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "sigmoid", "tanh",
    "softplus", "hardtanh", "relu6", "exp", "log", "log1p", "sqrt", "square", "abs", "neg", "pow", "clamp",
    "clamp_min", "clamp_max", "add", "sub", "mul", "truediv", "div", "true_divide",
}  # fmt: skip
#: Functions and methods that only rename axes.
SHAPING_NAMES = {
    "squeeze", "unsqueeze", "getitem", "flatten", "reshape", "view", "transpose", "permute", "contiguous",
    "movedim", "swapaxes", "size", "getattr", "unflatten", "detach_",
}  # fmt: skip


class UnknownLink(Exception):  # noqa: N818  (caught inside, never shown)
    """The model holds something that is no link of a chain.

    Examples
    --------
    >>> issubclass(UnknownLink, Exception)
    True
    """


@dataclass(frozen=True)
class Convolution:
    """Weights (C_out, C_in, K), newest tap last, of a convolution over time without padding.

    Attributes
    ----------
    weight : Tensor (C_out, C_in, K)
        Taps.
    bias : Tensor (C_out,) or None
        Offset.
    dilation : int
        Frames between taps.

    Examples
    --------
    >>> Convolution(torch.ones(1, 1, 2), None, 1)(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[3., 5.]])
    """

    weight: Tensor
    bias: Tensor | None
    dilation: int

    def __call__(self, z: Tensor) -> Tensor:
        """Map (C_in, T') to (C_out, T' - (K - 1) * dilation)."""
        return functional.conv1d(z.unsqueeze(0), self.weight, self.bias, dilation=self.dilation)[0]


@dataclass(frozen=True)
class Pointwise:
    """An elementwise function of features (C, T).

    Attributes
    ----------
    function : callable
        Maps (C, T) to (C, T), each element by itself.

    Examples
    --------
    >>> Pointwise(torch.relu)(torch.tensor([[-1.0, 2.0]]))
    tensor([[0., 2.]])
    """

    function: Callable[[Tensor], Tensor]

    def __call__(self, z: Tensor) -> Tensor:
        """Apply it."""
        return self.function(z)


@dataclass(frozen=True)
class Padding:
    """Zeros before and after, or frames taken away (negative).

    Attributes
    ----------
    left, right : int
        Frames.

    Examples
    --------
    >>> Padding(1, 0)(torch.ones(1, 2))
    tensor([[0., 1., 1.]])
    """

    left: int
    right: int

    def __call__(self, z: Tensor) -> Tensor:
        """Apply it to (C, T)."""
        return functional.pad(z, (self.left, self.right))


Link = Convolution | Pointwise | Padding


def chain_of(model: nn.Module, frames: Tensor, skip: nn.Module | None = None) -> list[Link] | None:
    """Return a model as a chain of links, or None when it is none.

    Shapes: model (1, 1, F, T); frames (1, 1, F, T); returns (F, T).

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> [type(link).__name__ for link in chain_of(Linear(8, 3).eval(), torch.zeros(1, 1, 8, 20))]
    ['Padding', 'Convolution', 'Pointwise']
    """
    try:
        with torch.no_grad():
            reader = _Reader(frames, skip)
            if isinstance(model, NeuralModel):
                standardizer = getattr(model, "standardizer", None)
                slots = [standardizer, model.prefiltering, model.core, model.readout]
                for part in filter(None, slots):
                    reader.read(part)
            else:
                reader.read(model)
            return reader.links
    except UnknownLink:
        return None


class _Leaves(fx.Tracer):
    """Traces into a user's modules, not into ours or torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = (CausalSTRFConv, STRFReadout, LinearReadout, *ELEMENTWISE, *IDLE)
        return isinstance(m, ours) or (
            type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        )


class _Reader:
    """Follows frames through modules, noting links; features lie flattened in the order of their axes."""

    def __init__(self, frames: Tensor, skip: nn.Module | None) -> None:
        self.now = frames  # what the model would hold here, for its shape
        self.skip = skip
        self.links: list[Link] = []

    # ------------------------------------------------------------------ modules

    def read(self, module: nn.Module) -> None:
        if module is self.skip or isinstance(module, IDLE):
            return
        if _has_hooks(module):
            raise UnknownLink
        if isinstance(module, ELEMENTWISE):
            self._elementwise(module)
        elif isinstance(module, nn.Conv1d | nn.Conv2d):
            self._convolve(module)
        elif isinstance(module, nn.Linear):
            self._frame_by_frame(module)
        elif isinstance(module, nn.ConstantPad1d | nn.ZeroPad2d | nn.ConstantPad2d):
            self._pad(tuple(module.padding), float(module.value))
        elif isinstance(module, CausalSTRFConv):
            self._strf(module)
        elif isinstance(module, STRFReadout):
            self.read(module.strf)
            self._reshape(lambda x: x.squeeze(2))
            if module.norm == "batch":
                self.read(module.bn)
            self._reshape(lambda x: x.transpose(1, 2))
            self.read(module.activation)
            self._reshape(lambda x: x.transpose(1, 2).unsqueeze(2))
        elif isinstance(module, LinearReadout):
            self._reshape(lambda x: (x.squeeze(2) if x.ndim == 4 else x).transpose(1, 2))
            self.read(module.fc)
            self.read(module.activation)
            self._reshape(lambda x: x.transpose(1, 2).unsqueeze(2))
        elif type(module) is nn.Sequential:
            for part in module:
                self.read(part)
        else:
            self._trace(module)

    def _elementwise(self, module: Callable[[Tensor], Tensor]) -> None:
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) and module.running_var is None:
            raise UnknownLink  # it would take the statistics of the clip
        shape, time_last = self._layout()

        def function(z: Tensor) -> Tensor:
            # the number of frames differs from that of the example where padding stands before
            inside = z.reshape(*shape[:-1], -1) if time_last else z.T.reshape(*shape[:-2], -1, shape[-1])
            out = module(inside.clone())  # it may work in place
            return out.reshape(z.shape) if time_last else out.reshape(z.shape[::-1]).T

        self.links.append(Pointwise(function))

    def _convolve(self, module: nn.Conv1d | nn.Conv2d) -> None:
        shape, time_last = self._layout()
        plain = module.groups == 1 and set(module.stride) == {1} and module.padding_mode == "zeros"
        if not plain or not time_last or isinstance(module.padding, str) or len(shape) != module.weight.ndim:
            raise UnknownLink
        padding = int(module.padding[-1])
        weight = module.weight
        if isinstance(module, nn.Conv2d):
            if weight.shape[2] != shape[2] or module.padding[0] != 0:
                raise UnknownLink  # it slides over the bands
            weight = weight.flatten(1, 2)
        if padding:
            self.links.append(Padding(padding, padding))
        link = Convolution(weight, module.bias, int(module.dilation[-1]))
        self.links.append(link)
        frames = shape[-1] + 2 * padding - (weight.shape[-1] - 1) * link.dilation
        if frames < 1 or shape[1:-1].numel() != weight.shape[1]:
            raise UnknownLink
        self._resized(1, len(weight), *[1] * (len(shape) - 3), frames)

    def _frame_by_frame(self, module: nn.Linear) -> None:
        shape, time_last = self._layout()
        if time_last or shape[:-2].numel() != 1:
            raise UnknownLink
        if shape[-1] != module.in_features:
            raise UnknownLink
        self.links.append(Convolution(module.weight.unsqueeze(-1), module.bias, 1))
        self._resized(*shape[:-1], module.out_features)

    def _strf(self, module: CausalSTRFConv) -> None:
        shape, time_last = self._layout()
        if not time_last or not (type(module.kernel) is nn.Conv2d or hasattr(module.kernel, "build_kernel")):
            raise UnknownLink
        weight = module.STRF_weight().to(self.now.device, self.now.dtype).flatten(1, 2)
        silence = self.now.new_zeros(1, module.C_in, module.F, 1)
        self.links.append(Padding(module.T - 1, 0))
        self.links.append(Convolution(weight, module(silence).flatten(), 1))
        self._resized(1, module.C_out, 1, shape[-1])

    def _pad(self, widths: tuple[int, ...], value: float) -> None:
        shape, time_last = self._layout()
        if not time_last or value != 0 or any(widths[2:]):
            raise UnknownLink
        self.links.append(Padding(int(widths[0]), int(widths[1])))
        self._resized(*shape[:-1], shape[-1] + int(widths[0]) + int(widths[1]))

    # ------------------------------------------------------------------ axes

    def _layout(self) -> tuple[torch.Size, bool]:
        """Shape here, and whether time is its last axis (else the one before)."""
        return self.now.shape, self._time_last

    _time_last = True

    def _reshape(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow a renaming of axes, with numbered features to see that their order stays."""
        shape, time_last = self._layout()
        n_time = shape[-1] if time_last else shape[-2]
        numbered = torch.arange(self.now.numel(), device=self.now.device).reshape(-1, n_time)
        before = numbered if time_last else numbered.T
        after = function(before.reshape(shape))
        for last in (True, False):
            flat = after.reshape(-1, after.shape[-1]) if last else after.reshape(-1, after.shape[-1]).T
            same = flat.shape[0] == numbered.shape[0] and after.ndim >= 2
            if same and flat.shape[1] == n_time and torch.equal(flat, numbered):
                break
            kept = flat.shape[1] if last else 0
            if same and last and 0 < kept < n_time and torch.equal(flat, numbered[:, :kept]):
                self.links.append(Padding(0, kept - n_time))
                break
            if same and last and 0 < kept < n_time and torch.equal(flat, numbered[:, -kept:]):
                self.links.append(Padding(kept - n_time, 0))
                break
        else:
            raise UnknownLink
        self._time_last = last
        self._resized(*after.shape)

    def _resized(self, *sizes: int) -> None:
        """Go on with another shape; the values are no one's business, so that they take no memory."""
        self.now = self.now.new_zeros(1).expand(sizes)

    # ------------------------------------------------------------------ a user's modules

    def _trace(self, module: nn.Module) -> None:
        """Follow the graph of a module, as long as it is one line."""
        try:
            graph = _Leaves().trace(module)
        except Exception as error:
            raise UnknownLink from error
        parts = dict(module.named_modules())
        line: fx.Node | None = None  # the node that holds what the reader holds
        plain: dict[fx.Node, Any] = {}  # sizes and numbers on the side
        for node in graph.nodes:
            if node.op == "placeholder":
                if line is not None:
                    raise UnknownLink
                line = node
            elif node.op == "output":
                if node.args[0] is not line:
                    raise UnknownLink
            elif node.op == "call_module":
                self._follow(node, line, plain)
                self.read(parts[str(node.target)])
                line = node
            elif node.op in ("call_function", "call_method"):
                if self._call(node, line, plain):
                    line = node
            else:
                raise UnknownLink

    def _call(self, node: fx.Node, line: fx.Node | None, plain: dict[fx.Node, Any]) -> bool:
        """Follow a function or method; True when the line goes on through it."""
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        name = str(name).removeprefix("_").strip("_") if name != "relu_" else name

        def function(x: Tensor) -> Any:
            values = {**plain, **({line: x} if line is not None else {})}
            args = fx.node.map_arg(node.args, lambda n: values[n])
            kwargs = fx.node.map_arg(node.kwargs, lambda n: values[n])
            if node.op == "call_method":
                return getattr(args[0], str(node.target))(*args[1:], **kwargs)
            return node.target(*args, **kwargs)  # type: ignore[operator]

        on_line = line in node.all_input_nodes
        if not on_line or name in ("size", "getattr") or not isinstance(self._value(function), Tensor):
            plain[node] = self._value(function)
            return False
        self._follow(node, line, plain)
        if name == "pad":
            mode = node.args[2] if len(node.args) > 2 else node.kwargs.get("mode", "constant")
            value = node.args[3] if len(node.args) > 3 else node.kwargs.get("value", None)
            widths = node.args[1] if len(node.args) > 1 else node.kwargs["pad"]
            if mode != "constant" or not all(isinstance(width, int) for width in widths):  # type: ignore[union-attr]
                raise UnknownLink
            self._pad(tuple(widths), float(value or 0.0))  # type: ignore[arg-type]
        elif name in SHAPING_NAMES:
            self._reshape(function)
        elif name in ELEMENTWISE_NAMES and not any(
            isinstance(plain.get(n), Tensor) for n in node.all_input_nodes
        ):
            self._elementwise(function)
        else:
            raise UnknownLink
        return True

    def _value(self, function: Callable[[Tensor], Any]) -> Any:
        try:
            return function(self.now)
        except Exception as error:
            raise UnknownLink from error

    def _follow(self, node: fx.Node, line: fx.Node | None, plain: dict[fx.Node, Any]) -> None:
        """Check that a node takes the line, once, and else plain numbers."""
        taken = list(node.args) + list(node.kwargs.values())
        if sum(argument is line for argument in taken) != 1 or node.args[0] is not line:
            raise UnknownLink
        others = [n for n in node.all_input_nodes if n is not line]
        if any(n not in plain for n in others):
            raise UnknownLink


def _has_hooks(module: nn.Module) -> bool:
    """Hooks may do anything; a parametrisation is a class of its own and reads as its weight."""
    return bool(module._forward_hooks or module._forward_pre_hooks)
