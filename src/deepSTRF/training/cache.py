"""Outputs of front-ends that do not learn, computed once per sound and kept by content.

The key of an entry is what determines it: the bytes of the stimulus, the length it was padded to, and the
front-end's class, settings, parameters and buffers. A changed filterbank or a changed sound therefore never
meets an old entry, and a cache may be shared by several fits.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF.models import NeuralModel
from deepSTRF.models.configurable import Configurable
from deepSTRF.training.validate import left_as_found

__all__ = ["FrontEndCache", "FrontEndFeed", "front_end_key", "gives_the_same_twice"]

#: Default size of a cache: 20 minutes of 34 bands at 5 ms take 33 MB.
DEFAULT_CACHE_BYTES = 512 * 2**20
#: Attributes that every torch module has: bookkeeping, no setting.
_BOOKKEEPING = frozenset(vars(nn.Module()))


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

    It digests class, plain attributes, parameters and buffers of every part. An attribute that cannot be
    digested (a function, say) makes a module of a foreign class equal to itself alone.
    """
    digest = hashlib.sha256()
    unreadable: list[nn.Module] = []
    for name, part in module.named_modules():
        digest.update(f"|{name}:{type(part).__module__}.{type(part).__qualname__}".encode())
        complete = True
        for attribute, value in sorted(vars(part).items()):
            if attribute not in _BOOKKEEPING:
                digest.update(f"|{attribute}=".encode())
                complete &= _digest(digest, value)
        if not complete and not isinstance(part, Configurable):
            unreadable.append(part)
        tensors = itertools.chain(part.named_parameters(recurse=False), part.named_buffers(recurse=False))
        for tensor_name, tensor in tensors:
            digest.update(f"|{tensor_name}=".encode())
            _digest(digest, tensor)
    return (digest.hexdigest(), *unreadable)


def _digest(digest: Any, value: Any) -> bool:
    """Add a value (a container to its end) to the digest; False when its content cannot be read."""
    if value is None or isinstance(
        value, bool | int | float | complex | str | bytes | torch.dtype | torch.device
    ):
        digest.update(repr(value).encode())
        return True
    if isinstance(value, Tensor):
        array = value.detach().cpu().contiguous()
        digest.update(f"{array.dtype}{tuple(array.shape)}".encode())
        digest.update(array.flatten().view(torch.uint8).numpy().tobytes() if array.numel() else b"")
        return True
    if isinstance(value, np.ndarray | np.generic) and value.dtype != object:
        digest.update(f"{value.dtype}{value.shape}".encode() + value.tobytes())
        return True
    if isinstance(value, dict):
        items = sorted(value.items(), key=lambda pair: repr(pair[0]))
        return min((_digest(digest, key) & _digest(digest, item) for key, item in items), default=True)
    if isinstance(value, list | tuple | set | frozenset):
        members = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return min((_digest(digest, item) for item in members), default=True)
    return False


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
    to call (dropout, noise), or with ``cacheable = False``, and models that override ``forward`` or
    ``spectrogram``.
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
        key = self._present_key(model)
        if key not in self._repeatable:
            repeatable = gives_the_same_twice(model.wav2spec, model.spectrogram, sample())
            key = self._present_key(model)  # a front-end may fill its buffers in its first call
            self._repeatable[key] = repeatable
        self._key = key
        return self._repeatable[key]

    def _present_key(self, model: NeuralModel) -> tuple[Hashable, ...]:
        return (self._setting, *front_end_key(model.wav2spec))

    def spectrogram(self, fingerprint: str, n_samples: int, stimulus: Callable[[], Tensor]) -> Tensor:
        """Return (1, F, T) of a sound padded to ``n_samples``; ``stimulus`` gives (1, T_audio) on a miss."""

        def compute() -> Tensor:
            with torch.no_grad():
                spectrogram: Tensor = self._model.spectrogram(stimulus().unsqueeze(0))[0]  # type: ignore[operator]
            return spectrogram

        return self._cache.get_or_compute((self._key, fingerprint, n_samples), compute)


def _may_be_cached(model: nn.Module) -> bool:
    if not isinstance(model, NeuralModel) or isinstance(model.wav2spec, nn.Identity):
        return False
    cls = type(model)
    if cls.forward is not NeuralModel.forward or not cls.spectrogram.__module__.startswith("deepSTRF."):
        return False
    if model._forward_hooks or model._forward_pre_hooks:  # a hook expects to see the waveform
        return False
    parts = list(model.wav2spec.modules())
    if any(not getattr(part, "cacheable", True) for part in parts):
        return False
    return not any(parameter.requires_grad for parameter in model.wav2spec.parameters())
