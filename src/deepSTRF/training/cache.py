"""Outputs of front-ends that do not learn, computed once per sound and kept by content.

The key of an entry is what determines it: the bytes of the stimulus, the length it was padded to, and the
front-end's class, settings, parameters and buffers. A changed filterbank or a changed sound therefore never
meets an old entry, and a cache may be shared by several fits. What cannot be read to its end is not cached.
"""

from __future__ import annotations

import dataclasses
import hashlib
import types
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF._validation import checked
from deepSTRF.models import NeuralModel
from deepSTRF.models.prediction import evaluating
from deepSTRF.training.validate import left_as_found

__all__ = ["FrontEndCache", "FrontEndFeed", "front_end_key", "gives_the_same_twice"]

#: Default size of a cache: 20 minutes of 34 bands at 5 ms take 33 MB.
DEFAULT_CACHE_BYTES = 512 * 2**20
#: Attributes that every torch module has: bookkeeping, no setting.
_BOOKKEEPING = frozenset(vars(nn.Module()))
#: Types whose text is all that they are.
_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, range, torch.dtype, torch.device})


class FrontEndCache:
    """Spectrograms by content, up to a number of bytes; when it is full, further ones are computed each time.

    Pass one to several fits to share it (``fit_multi_seed`` does so by itself).

    Parameters
    ----------
    max_bytes : int
        Most bytes to hold.

    Attributes
    ----------
    hits, misses : int
        How often an entry was found, and how often it was not.
    n_bytes : int
        Bytes held.

    Examples
    --------
    >>> import torch
    >>> cache = FrontEndCache(max_bytes=1000)
    >>> cache.get_or_compute("sound 1", lambda: torch.ones(2)).sum()
    tensor(2.)
    >>> cache.get_or_compute("sound 1", lambda: torch.zeros(2)).sum()
    tensor(2.)
    >>> cache.hits, cache.misses, cache.n_bytes
    (1, 1, 8)
    """

    @checked
    def __init__(self, max_bytes: int = DEFAULT_CACHE_BYTES) -> None:
        if max_bytes < 0:
            raise ValueError(f"max_bytes must be >= 0, got {max_bytes}")
        self._max_bytes = int(max_bytes)
        self._entries: dict[Hashable, Tensor] = {}
        self.hits = self.misses = self.n_bytes = 0

    def get_or_compute(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return the entry of ``key``; on a miss compute it, and keep it while the cache is not full."""
        found = self._entries.get(key)
        if found is not None:
            self.hits += 1
            return found
        self.misses += 1
        value = compute()
        n_bytes = value.numel() * value.element_size()
        if self.n_bytes + n_bytes <= self._max_bytes:
            self.n_bytes += n_bytes
            self._entries[key] = value
        return value

    def clear(self) -> None:
        """Drop every entry and the counts."""
        self._entries.clear()
        self.hits = self.misses = self.n_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)


def front_end_key(module: nn.Module) -> tuple[Hashable, ...]:
    """Return a key that is equal for two front-ends only when they compute the same thing.

    It digests plain attributes, constructor arguments, parameters and buffers of every part, and holds the
    classes and what they define. A module with hooks, or with an attribute that cannot be read to its end (a
    function, a ``functools.partial``, an object of another class), is the key itself; `is_known` tells.
    """
    contents = _Contents()
    return contents.key() if contents.add_module(module) else (_Same(module),)


def is_known(key: tuple[Hashable, ...]) -> bool:
    """Whether the key of a front-end holds all that determines its output."""
    return isinstance(key[0], str)


class _Same:
    """An object as part of a key: equal to itself alone, and alive as long as the key."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __hash__(self) -> int:
        return id(self.value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and other.value is self.value


class _Contents:
    """A digest of values, and the classes; every ``add`` is False for what it cannot read to its end."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._same: list[_Same] = []
        self._seen: dict[int, int] = {}

    def key(self) -> tuple[Hashable, ...]:
        return (self._digest.hexdigest(), *self._same)

    def _write(self, text: str) -> bool:
        self._digest.update(f"{text};".encode())
        return True

    def add_module(self, module: nn.Module) -> bool:
        """Add every part of a module, each place of a shared one."""
        if id(module) in self._seen:  # held in two places, or in a circle
            return self._write(f"part {self._seen[id(module)]}")
        self._seen[id(module)] = len(self._seen)
        if module._forward_hooks or module._forward_pre_hooks:
            return False
        # of our classes, what a copy starts with: filters prepared for the next call are no setting
        ours = str(getattr(type(module).__getstate__, "__module__", "")).startswith("deepSTRF.")
        state: dict[str, Any] = module.__getstate__() if ours else vars(module)  # type: ignore[no-untyped-call]
        own = {name: state[name] for name in sorted(state.keys() - _BOOKKEEPING)}
        tensors = {**module._parameters, **module._buffers}
        parts = [("settings", own), ("tensors", tensors), ("modules", dict(module._modules))]
        return self._add_class(type(module)) and all(
            self._write(name) and self.add(part) for name, part in parts
        )

    def _add_class(self, cls: type) -> bool:
        """Add a class; of foreign classes what they define as well, which may be replaced later."""
        self._same.append(_Same(cls))
        for base in cls.__mro__:
            if base is object or base.__module__.split(".")[0] in ("torch", "deepSTRF"):
                continue
            for name, value in vars(base).items():
                if isinstance(value, types.MemberDescriptorType):  # slots hold values that nothing lists
                    return False
                if type(value) in _PLAIN:
                    self._write(f"{base.__qualname__}.{name}={value!r}")
                elif isinstance(value, types.FunctionType) or not name.startswith("__"):
                    self._same.append(_Same(value))
        return True

    def add(self, value: Any) -> bool:
        """Add a value, a container with all of its content."""
        kind = type(value)
        if kind in _PLAIN:
            return self._write(f"{kind.__name__} {value!r}")
        if isinstance(value, nn.Module):
            return self.add_module(value)
        if kind in (Tensor, nn.Parameter) and value.layout is torch.strided:
            return self._add_array(value.detach().cpu().resolve_conj().resolve_neg())
        if (kind is np.ndarray or isinstance(value, np.generic)) and not value.dtype.hasobject:
            self._write(f"numpy {value.dtype} {value.shape}")
            self._digest.update(value.tobytes())
            return True
        if dataclasses.is_dataclass(value) and kind.__module__.startswith("deepSTRF."):
            value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
        elif kind in (set, frozenset):
            value = sorted(value, key=repr)
        elif kind not in (dict, list, tuple, torch.Size) and not kind.__module__.startswith("deepSTRF."):
            return False
        if not isinstance(value, dict | list | tuple):
            return False
        items = [part for pair in value.items() for part in pair] if isinstance(value, dict) else value
        return self._write(f"{kind.__qualname__} {len(value)}") and all(map(self.add, items))

    def _add_array(self, tensor: Tensor) -> bool:
        self._write(f"tensor {tensor.dtype} {tuple(tensor.shape)}")
        if tensor.numel():
            self._digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return True


def gives_the_same_twice(module: nn.Module, function: Callable[[Tensor], Tensor], sample: Tensor) -> bool:
    """Whether a front-end maps (1, 1, T_audio) to the same output twice, in both modes; no trace is left."""
    outputs: list[Tensor] = []
    with torch.no_grad(), left_as_found(module):
        for mode in (True, True, False):
            module.train(mode)
            outputs.append(function(sample))
    return all(torch.equal(outputs[0], other) for other in outputs[1:])


class FrontEndFeed:
    """Serve a model's spectrograms from a cache, as long as its front-end does not learn.

    Computed in every step instead: front-ends with trainable parameters, with outputs that differ from call
    to call (dropout, noise), with ``cacheable = False``, or that hold what cannot be read (`front_end_key`),
    and models that override ``forward`` or ``spectrogram``.
    """

    def __init__(self, model: nn.Module, cache: FrontEndCache, setting: str) -> None:
        self._model = model
        self._cache = cache
        self._setting = setting
        self._repeatable: dict[Hashable, bool] = {}
        self._key: Hashable = None

    def begin_pass(self, sample: Callable[[], Tensor]) -> bool:
        """True when this pass may use the cache; ``sample`` gives a stimulus (1, 1, T_audio) to test on."""
        if not _may_be_cached(self._model):
            return False
        model: NeuralModel = self._model  # type: ignore[assignment]
        key = front_end_key(model.wav2spec)
        if is_known(key) and key not in self._repeatable:
            repeatable = gives_the_same_twice(model.wav2spec, model.spectrogram, sample())
            key = front_end_key(model.wav2spec)  # a front-end may fill its buffers in its first call
            self._repeatable[key] = repeatable
        self._key = (self._setting, key)
        return is_known(key) and self._repeatable[key]

    def spectrogram(self, fingerprint: str, n_samples: int, stimulus: Callable[[], Tensor]) -> Tensor:
        """Return (1, F, T) of a sound padded to ``n_samples``; ``stimulus`` gives (1, T_audio) on a miss."""

        def compute() -> Tensor:
            # it was found to give the same in both modes: in eval mode long sounds are computed in pieces
            with evaluating(self._model.wav2spec):  # type: ignore[arg-type]
                spectrogram: Tensor = self._model.spectrogram(stimulus().unsqueeze(0))[0]  # type: ignore[operator]
            return spectrogram

        return self._cache.get_or_compute((self._key, fingerprint, n_samples), compute)


def _may_be_cached(model: nn.Module) -> bool:
    if not isinstance(model, NeuralModel) or isinstance(model.wav2spec, nn.Identity):
        return False
    cls = type(model)
    if cls.forward is not NeuralModel.forward or not cls.spectrogram.__module__.startswith("deepSTRF."):
        return False
    # a hook expects to see the waveform, and methods of the instance are unknown
    if model._forward_hooks or model._forward_pre_hooks or {"forward", "spectrogram"} & vars(model).keys():
        return False
    parts = list(model.wav2spec.modules())
    if any(not getattr(part, "cacheable", True) for part in parts):
        return False
    return not any(parameter.requires_grad for parameter in model.wav2spec.parameters())
