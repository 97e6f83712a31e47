"""Values that modules compute from their parameters: kept while these do not change, or fixed for good.

Filters, state-space blocks and parametric kernels cost far more than one frame of a stream. A module derives
from `KeepsDerived` and asks for them by its ``_derived``. `frozen` gives a copy of a model whose values are
constants: graphs are traced from it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

__all__ = ["KeepsDerived", "frozen"]

_Values = TypeVar("_Values")
_Module = TypeVar("_Module", bound=nn.Module)

#: Name of the part that holds the values of a `frozen` copy.
_FIXED = "fixed_values"


class _Kept(NamedTuple):
    """Values, and what they were computed from."""

    sources: list[Tensor]  # compared by value, then by version
    copies: list[Tensor]  # of the former, as they were
    versions: list[int]  # of the latter
    values: Any


class _Fixed(nn.Module):
    """Values of a `frozen` copy, as buffers: traces take those, and no other tensors, into loops."""

    def __init__(self) -> None:
        super().__init__()
        self.trees: dict[Hashable, Any] = {}
        self.values: dict[Hashable, Any] = {}

    def put(self, name: Hashable, values: Any) -> None:
        self.trees[name], self.values[name] = _mapped(self._register, values), values

    def get(self, name: Hashable) -> Any:
        if torch.compiler.is_compiling():  # in a trace the buffers stand for them
            return _mapped(self._buffers.__getitem__, self.trees[name])
        return self.values[name]

    def _register(self, value: Tensor) -> str:
        name = f"value_{len(self._buffers)}"
        self.register_buffer(name, value.detach(), persistent=False)
        return name


class KeepsDerived(nn.Module):
    """Mixin of modules that keep what they compute from their parameters and constants (buffers).

    Nothing is kept while learning (a gradient to a parameter is wanted), under autocast, in replicas of
    ``DataParallel``, under a compiler, or inside a transform (``vmap``, ``functional_call``, forward mode).
    Parameters are compared by value, because a version counter would miss writes through ``.data``; constants
    by version, where they have one.
    Copies and pickles hold no values, and moving a module (``.to``, ``.double``) drops them.
    """

    _kept: dict[Hashable, _Kept] | None = None

    def _derived(
        self, name: Hashable, build: Callable[[], _Values], sources: Sequence[Tensor] | None = None
    ) -> _Values:
        """Return ``build()``, computed anew only when a parameter or a constant has changed.

        ``build`` returns a tree of tensors (tuples, lists, dictionaries). ``sources`` are the parameters that
        it reads; None is all parameters and buffers of the module.
        """
        fixed = self._fixed()
        if fixed is not None and name in fixed.trees:
            return cast(_Values, fixed.get(name))
        # replicas keep their parameters as attributes, which no list of parameters holds
        if torch.compiler.is_compiling() or getattr(self, "_is_replica", False):
            return build()
        found = _tensors(self, [], []) if sources is None else (list(sources), [])
        parameters, constants = found
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in parameters):
            return build()
        kept = None if self._kept is None else self._kept.get(name)
        # tensors made in inference mode count no versions
        parameters = parameters + [constant for constant in constants if constant.is_inference()]
        constants = [constant for constant in constants if not constant.is_inference()]
        everything = parameters + constants
        if everything and _under_autocast(everything[0].device.type):
            return build()  # in reduced precision, which later calls without autocast are not to meet
        same = kept is not None and _are_the_same(everything, kept.sources)
        if not same and not all(map(_outlives_the_call, everything)):
            return build()
        with torch.inference_mode(False), torch.no_grad():
            versions = [constant._version for constant in constants]
            if kept is None or not same or versions != kept.versions or _differ(parameters, kept.copies):
                values = build()
                if not all(map(_outlives_the_call, _leaves(values))):  # of a transform around the call
                    return values
                kept = _Kept(everything, [parameter.clone() for parameter in parameters], versions, values)
                self._keep(name, kept)
            return cast(_Values, kept.values)

    def fix_derived(self) -> None:
        """Ask for every value that one step, or a call on a clip of unknown length, needs."""

    def _fixed(self) -> _Fixed | None:
        return cast("_Fixed | None", self._modules.get(_FIXED))

    def _keep(self, name: Hashable, kept: _Kept) -> None:
        fixed = self._fixed()
        if fixed is not None:
            fixed.put(name, kept.values)
            return
        if self._kept is None:
            self._kept = {}
        self._kept[name] = kept

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        if self._kept is not None:
            self._kept = None
        if self._fixed() is not None:
            self.add_module(_FIXED, _Fixed())
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())  # type: ignore[no-untyped-call]
        state.pop("_kept", None)
        if self._fixed() is not None:
            state["_modules"] = {**state["_modules"], _FIXED: _Fixed()}
        return state


def frozen(model: _Module) -> _Module:
    """Return a copy of a model for inference, with everything that follows from its parameters fixed.

    Parameters
    ----------
    model : nn.Module
        Any model or part of one.

    Returns
    -------
    nn.Module
        In eval mode, without gradients to parameters, on the same device and in the same precision. Filters,
        state-space blocks and kernels are constants there, which a trace takes as they are: its graph holds
        no design of filters. Changing the parameters of the copy changes nothing; freeze the model again.

    Examples
    --------
    >>> from deepSTRF.models.wav2spec import CausalLEAF
    >>> leaf = CausalLEAF(audio_fs=16000, n_filters=4)
    >>> fixed, sound = frozen(leaf), torch.ones(1, 1, 800)
    >>> torch.equal(fixed(sound), leaf.eval()(sound))
    True
    """
    twin = copy.deepcopy(model).eval().requires_grad_(False)
    parts = [module for module in twin.modules() if isinstance(module, KeepsDerived)]
    for part in parts:
        part.add_module(_FIXED, _Fixed())
        part.fix_derived()
    return twin


def _tensors(
    module: nn.Module, parameters: list[Tensor], constants: list[Tensor]
) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters and buffers of a module; ``parameters()`` takes ten times as long, paid for every frame."""
    parameters += [value for value in module._parameters.values() if value is not None]
    constants += [value for value in module._buffers.values() if value is not None]
    for part in module._modules.values():
        if part is not None:
            _tensors(part, parameters, constants)
    return parameters, constants


def _under_autocast(kind: str) -> bool:
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)


def _are_the_same(found: list[Tensor], before: list[Tensor]) -> bool:
    return len(found) == len(before) and all(now is then for now, then in zip(found, before, strict=True))


def _differ(parameters: list[Tensor], copies: list[Tensor]) -> bool:
    if not parameters:
        return False
    if any(
        now.dtype != then.dtype or now.device != then.device
        for now, then in zip(parameters, copies, strict=True)
    ):
        return True
    if parameters[0].device.type == "cpu":
        return not all(map(torch.equal, parameters, copies))
    # each comparison waits for the accelerator
    return not torch.equal(_joined(parameters), _joined(copies))


def _joined(tensors: Iterable[Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def _mapped(fn: Callable[[Any], Any], tree: Any) -> Any:
    """The tree with ``fn`` of every leaf; ``None`` stays."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {name: _mapped(fn, branch) for name, branch in tree.items()}
    if isinstance(tree, list | tuple):
        branches = [_mapped(fn, branch) for branch in tree]
        if isinstance(tree, list):
            return branches
        return type(tree)(*branches) if hasattr(tree, "_fields") else tuple(branches)
    return fn(tree)


def _leaves(tree: Any) -> Iterator[Tensor]:
    if isinstance(tree, Tensor):
        yield tree
    elif isinstance(tree, Mapping):
        for branch in tree.values():
            yield from _leaves(branch)
    elif isinstance(tree, list | tuple):
        for branch in tree:
            yield from _leaves(branch)


def _outlives_the_call(tensor: Tensor) -> bool:
    """Whether a tensor has values of its own: no part of a vmap, a derivative, a trace, the meta device."""
    return (
        type(tensor) in (Tensor, nn.Parameter)
        and not tensor.is_meta
        and torch.func.debug_unwrap(tensor) is tensor
        and forward_ad.unpack_dual(tensor).tangent is None  # type: ignore[no-untyped-call]
    )
