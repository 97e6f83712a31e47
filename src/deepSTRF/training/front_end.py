"""Whether a model's front-end may be computed once per sound, and the one place that does so."""

from __future__ import annotations

from collections.abc import Callable, Hashable

import torch
from torch import Tensor, nn

from deepSTRF.models import NeuralModel
from deepSTRF.training.caching import FrontEndCache, front_end_key, gives_the_same_twice

__all__ = ["FrontEndFeed"]


class FrontEndFeed:
    """Serve a model's spectrograms from a cache, as long as its front-end does not learn.

    Kept out of the cache, and computed in every step as in a plain loop: front-ends with trainable
    parameters, those whose output differs from call to call (dropout in train mode, noise), modules with an
    attribute ``cacheable = False``, and models that are no `NeuralModel` or override ``forward`` or
    ``spectrogram``.

    Parameters
    ----------
    model : nn.Module
        The model.
    cache : FrontEndCache
        Where spectrograms are kept.
    setting : str
        What else the numbers depend on (device, precision), part of each key.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> feed = FrontEndFeed(Linear(n_frequency_bands=4, temporal_window_size=2), FrontEndCache(), "cpu")
    >>> feed.begin_pass(lambda: torch.zeros(1, 1, 4, 9))  # there is no front-end to save
    False
    """

    def __init__(self, model: nn.Module, cache: FrontEndCache, setting: str) -> None:
        self._model = model
        self._cache = cache
        self._setting = setting
        self._verdicts: dict[Hashable, bool] = {}
        self._key: Hashable = None

    def begin_pass(self, sample: Callable[[], Tensor]) -> bool:
        """Look at the front-end as it is now; return True when this pass may use the cache.

        ``sample`` gives a stimulus (1, 1, T_audio) to try it on, once.
        """
        if not _may_be_cached(self._model):
            return False
        model: NeuralModel = self._model  # type: ignore[assignment]
        key = self._present_key(model)
        if key not in self._verdicts:
            verdict = gives_the_same_twice(model.wav2spec, model.spectrogram, sample())
            key = self._present_key(model)  # a front-end may fill its buffers in its first call
            self._verdicts[key] = verdict
        self._key = key
        return self._verdicts[key]

    def _present_key(self, model: NeuralModel) -> tuple[Hashable, ...]:
        return (self._setting, *front_end_key(model.wav2spec))

    def spectrogram(self, fingerprint: str, n_samples: int, stimulus: Callable[[], Tensor]) -> Tensor:
        """Return the spectrogram (1, F, T) of one sound padded to ``n_samples`` samples.

        ``stimulus`` gives the padded sound (1, T_audio), called only on a miss.
        """

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
