"""Linearization of chains of convolutions and elementwise functions; the closed form for one convolution.

`chain_of` reads a model's modules as a chain of links: convolutions over time, elementwise functions and
padding. `linearize` sends a clip through it once and keeps the slope of every unit at every frame; a dynamic
STRF is then the product of the weights with these slopes between them. `ClosedForm` is that product where
there is one convolution; `deepSTRF.interpret.dstrf.sweep.Sweep` takes it through several.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from deepSTRF.interpret.dstrf.target import Estimator, Target, agree
from deepSTRF.models.activations import ParametricDoubleExponential, ParametricSigmoid, ParametricSoftplus
from deepSTRF.models.kernels import CausalSTRFConv
from deepSTRF.models.norms import BandStandardizer
from deepSTRF.models.readouts import LinearReadout, OutputScale, STRFReadout

#: Elementwise modules: the derivative of their summed output is their slope. BatchNorm is, in eval mode.
ELEMENTWISE = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.SELU, nn.CELU, nn.GELU, nn.SiLU, nn.Mish, nn.Sigmoid, nn.Tanh,
    nn.Softplus, nn.Softsign, nn.Hardtanh, nn.Hardsigmoid, nn.Hardswish, nn.LogSigmoid, nn.Threshold,
    nn.Softshrink, nn.Hardshrink, nn.Tanhshrink, nn.PReLU, nn.BatchNorm1d, nn.BatchNorm2d, BandStandardizer,
    ParametricDoubleExponential, ParametricSigmoid, ParametricSoftplus, OutputScale,
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
    """The model holds an operation that is no link of a chain."""


@dataclass(frozen=True)
class Convolution:
    """A convolution over time without padding: weights (C_out, C_in, K), newest tap last, bias (C_out,)."""

    weight: Tensor
    bias: Tensor | None
    dilation: int

    @property
    def span(self) -> int:
        """Frames between the oldest tap and the newest."""
        return (self.weight.shape[-1] - 1) * self.dilation

    def __call__(self, z: Tensor) -> Tensor:
        """Map (C_in, T') to (C_out, T' - span)."""
        return functional.conv1d(z.unsqueeze(0), self.weight, self.bias, dilation=self.dilation)[0]


@dataclass(frozen=True)
class Pointwise:
    """An elementwise function of features (C, T)."""

    function: Callable[[Tensor], Tensor]

    def __call__(self, z: Tensor) -> Tensor:
        """Apply it."""
        return self.function(z)


@dataclass(frozen=True)
class Padding:
    """Zero frames before and after, or frames taken away (negative)."""

    left: int
    right: int

    def __call__(self, z: Tensor) -> Tensor:
        """Apply it to (C, T)."""
        return functional.pad(z, (self.left, self.right))


Link = Convolution | Pointwise | Padding


def chain_of(target: Target, skip: nn.Module | None = None) -> list[Link] | None:
    """Return a target as a chain of links, without one of its modules; None when it is no such chain."""
    sequence = target.sequence()
    if sequence is None:
        return None
    modules, frames = sequence
    reader = _Reader(frames, skip)
    try:
        with torch.no_grad():
            for module in modules:
                reader.read(module)
    except UnknownLink:
        return None
    links = reader.links
    if target.delay:  # without padding on the right, the last responses are missing
        links = [Padding(link.left, 0) if isinstance(link, Padding) else link for link in links]
        links.append(Padding(target.delay, 0))
    return links


class _Leaves(fx.Tracer):
    """Traces into a user's modules, not into ours or torch's."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        ours = (CausalSTRFConv, STRFReadout, LinearReadout, *ELEMENTWISE, *IDLE)
        return isinstance(m, ours) or (
            type(m).__module__.startswith("torch.nn") and not isinstance(m, nn.Sequential)
        )


class _Reader:
    """Follows frames through modules and collects links; features are flattened in the axes' order."""

    def __init__(self, frames: Tensor, skip: nn.Module | None) -> None:
        self.now = frames  # features at this place of the model, for their shape
        self.time_last = True  # else time is the axis before the last
        self.skip = skip
        self.links: list[Link] = []

    # ---- modules

    def read(self, module: nn.Module) -> None:
        if module is self.skip or isinstance(module, IDLE):
            return
        # hooks may do anything; a parametrisation is a class of its own and reads as its weight
        if module._forward_hooks or module._forward_pre_hooks:
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
        shape, time_last = self.now.shape, self.time_last

        def function(z: Tensor) -> Tensor:
            # the number of frames differs from that of the example where padding stands before
            inside = z.reshape(*shape[:-1], -1) if time_last else z.T.reshape(*shape[:-2], -1, shape[-1])
            out = module(inside.clone())  # it may work in place
            return out.reshape(z.shape) if time_last else out.reshape(z.shape[::-1]).T

        self.links.append(Pointwise(function))

    def _convolve(self, module: nn.Conv1d | nn.Conv2d) -> None:
        shape, time_last = self.now.shape, self.time_last
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
        frames = shape[-1] + 2 * padding - link.span
        if frames < 1 or shape[1:-1].numel() != weight.shape[1]:
            raise UnknownLink
        self._resized(1, len(weight), *[1] * (len(shape) - 3), frames)

    def _frame_by_frame(self, module: nn.Linear) -> None:
        shape, time_last = self.now.shape, self.time_last
        if time_last or shape[:-2].numel() != 1:
            raise UnknownLink
        if shape[-1] != module.in_features:
            raise UnknownLink
        self.links.append(Convolution(module.weight.unsqueeze(-1), module.bias, 1))
        self._resized(*shape[:-1], module.out_features)

    def _strf(self, module: CausalSTRFConv) -> None:
        shape, time_last = self.now.shape, self.time_last
        if (
            module.first_lag > 0
            or not time_last
            or not (type(module.kernel) is nn.Conv2d or hasattr(module.kernel, "build_kernel"))
        ):
            raise UnknownLink
        weight = module.STRF_weight().to(self.now.device, self.now.dtype).flatten(1, 2)
        zeros = self.now.new_zeros(1, module.C_in, module.F, 1)
        self.links.append(Padding(module.T - 1 + module.first_lag, -module.first_lag))
        self.links.append(Convolution(weight, module(zeros).flatten(), 1))
        self._resized(1, module.C_out, 1, shape[-1])

    def _pad(self, widths: tuple[int, ...], value: float) -> None:
        shape, time_last = self.now.shape, self.time_last
        if not time_last or value != 0 or any(widths[2:]):
            raise UnknownLink
        self.links.append(Padding(int(widths[0]), int(widths[1])))
        self._resized(*shape[:-1], shape[-1] + int(widths[0]) + int(widths[1]))

    # ---- axes

    def _reshape(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow a renaming of axes, with numbered features to verify that their order stays."""
        shape, time_last = self.now.shape, self.time_last
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
        self.time_last = last
        self._resized(*after.shape)

    def _resized(self, *sizes: int) -> None:
        """Continue with another shape, without values and so without memory."""
        self.now = self.now.new_zeros(1).expand(sizes)

    # ---- a user's modules

    def _trace(self, module: nn.Module) -> None:
        """Follow the graph of a module, as long as it is one line."""
        try:
            graph = _Leaves().trace(module)
        except Exception as error:
            raise UnknownLink from error
        parts = dict(module.named_modules())
        line: fx.Node | None = None  # the node whose value the reader follows
        plain: dict[fx.Node, Any] = {}  # values beside it: sizes and numbers
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


@dataclass(frozen=True)
class Linearization:
    """The slopes of a chain along a clip.

    ``links`` holds, from input to output, convolutions and between them slopes (T + b, C), where b is the
    entry of ``before``: the frames that the layer holds before the clip (of a convolution, those that it
    returns). ``output`` (N, T) is the responses, ``first`` the frame of the clip at which the slopes begin.
    """

    links: list[Convolution | Tensor]
    before: list[int]
    output: Tensor
    first: int = 0


def linearize(chain: list[Link], features: Tensor) -> Linearization | None:
    """Send features (F, T) through a chain and keep the slopes; None where it returns other than T frames."""
    z, length = features, features.shape[1]
    before = after = 0
    links: list[Convolution | Tensor] = []
    offsets: list[int] = []
    for link in chain:
        if isinstance(link, Convolution):
            if z.shape[1] <= link.span:
                return None
            before -= link.span
            links.append(link)
            offsets.append(before)
        elif isinstance(link, Padding):
            before, after = before + link.left, after + link.right
            if link.left > 0:
                # features before the padding do not reach the padded frames
                mask = z.new_ones(z.shape[1] + link.left, 1)
                mask[: link.left] = 0
                links.append(mask)
                offsets.append(before)
        else:
            with torch.enable_grad():
                inside = z.detach().requires_grad_()
                out = link(inside)
                (slope,) = torch.autograd.grad(out.sum(), inside)
            links.append(slope.T.contiguous())
            offsets.append(before)
        z = link(z).detach()
    if before != 0 or after != 0 or z.shape[1] != length:
        return None
    return Linearization(links, offsets, z)


class Linearizer:
    """Linearizes a clip (F, T) piece by piece, so that a long clip takes no more memory than a short one."""

    def __init__(self, chain: list[Link], features: Tensor, budget: int) -> None:
        self.chain, self.features = chain, features
        convolutions = [link for link in chain if isinstance(link, Convolution)]
        #: Frames that a response depends on, its own included.
        self.receptive_field = 1 + sum(link.span for link in convolutions)
        self.piece = features.shape[1]
        if len(convolutions) > 1:
            # slopes, and as much again while they are made
            widths = [link.weight.shape[0] for link in convolutions]
            per_frame = 2 * features.element_size() * (sum(widths) + features.shape[0])
            self.piece = max(2 * self.receptive_field, budget // per_frame)
        self.held: Linearization | None = None

    def over(self, first: int, last: int) -> Linearization | None:
        """Return a piece that holds everything that the responses at some times depend on."""
        start = max(0, first - self.receptive_field + 1)
        held = self.held
        if held is None or start < held.first or last >= held.first + held.output.shape[1]:
            self.held = held = None  # its memory, before the next takes as much
            stop = max(last + 1, start + self.piece)
            found = linearize(self.chain, self.features[:, start:stop])
            self.held = None if found is None else replace(found, first=start)
        return self.held

    def covering(self, times: Sequence[int]) -> Linearization:
        """Return such a piece for some times, of a chain that is known to have one."""
        found = self.over(min(times), max(times))
        if found is None:
            raise ValueError("the chain does not return as many frames as it was given")
        return found

    def agrees(self, output: Tensor) -> bool:
        """Return whether the chain returns a model's responses (N, T), by the first piece and the last.

        Links treat all frames alike but for those at the ends, so that the pieces between need no check.
        """
        last = output.shape[1] - 1
        ours, theirs = [], []
        for time in (last, 0) if self.piece <= last else (0,):  # the first last: it is where a run begins
            piece = self.over(time, time)
            if piece is None or piece.output.shape[0] != output.shape[0]:
                return False
            valid = 0 if piece.first == 0 else self.receptive_field - 1
            ours.append(piece.output[:, valid:])
            theirs.append(output[:, piece.first + valid :][:, : ours[-1].shape[1]])
        if any(one.shape != other.shape for one, other in zip(ours, theirs, strict=True)):
            return False
        return agree(torch.cat(ours, dim=1), torch.cat(theirs, dim=1))


class ClosedForm(Estimator):
    """One convolution and elementwise functions around it: the kernel, times the slope at each time.

    It needs slopes before the kernel that are the same at all times.
    """

    name = "closed"

    def __init__(
        self, target: Target, neurons: list[int], lags: int, linearizer: Linearizer, budget: int = 2**28
    ) -> None:
        super().__init__(target, neurons, lags, linearizer.receptive_field, budget)
        self.linearizer = linearizer

    @staticmethod
    def suits(linearizer: Linearizer) -> bool:
        """Return whether a chain has this form."""
        found = linearizer.over(0, 0)
        if found is None:
            return False
        kinds = [isinstance(link, Convolution) for link in found.links]
        if sum(kinds) != 1:
            return False
        slopes = [link for link in found.links[: kinds.index(True)] if isinstance(link, Tensor)]
        return all(bool((slope == slope[-1:]).all()) for slope in slopes if slope.shape[1] > 1)

    def prepare(self, times: Sequence[int]) -> None:
        """Set the size of blocks."""
        self.size = max(1, self.budget // max(1, 2 * self.row_bytes()))

    def block(self, times: Sequence[int]) -> Tensor:
        """Return (B, N, L, F)."""
        at = torch.as_tensor(times, device=self.target.frames.device)
        kernel, slope = self._parts(at)
        block = slope[:, :, None, None] * kernel
        age = torch.arange(self.lags - 1, -1, -1, device=at.device)
        exists = at.unsqueeze(1) >= age
        if not bool(exists.all()):
            block = block * exists.view(len(at), 1, -1, 1)
        return block

    def _parts(self, at: Tensor) -> tuple[Tensor, Tensor]:
        """Kernel (N, L, F), times the slopes before it, and the slope (B, N) after it."""
        kernel: Tensor | None = None
        slope = self.target.frames.new_ones(len(at), len(self.neurons))
        found = self.linearizer.covering([0])  # the whole clip: there is one convolution
        for link, before in zip(found.links, found.before, strict=True):
            if isinstance(link, Convolution):
                lags = link.span + 1
                full = link.weight.new_zeros(len(self.neurons), max(lags, self.lags), link.weight.shape[1])
                full[:, full.shape[1] - lags :: link.dilation] = link.weight[self.neurons].transpose(1, 2)
                kernel = full[:, -self.lags :] if kernel is None else full[:, -self.lags :] * kernel
            elif kernel is not None and kernel.ndim == 3:
                slope = slope * link[at + before][:, self.neurons if link.shape[1] > 1 else [0]]
            elif link.shape[1] > 1:  # a padding's mask only marks what is before the clip
                gain = link[-1]
                kernel = gain if kernel is None else kernel * gain
        if kernel is None:
            raise ValueError("a chain without a convolution has no closed form")
        return kernel, slope
