"""Receptive fields of a fitted model, of whatever kind the model has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["GRADIENT", "WEIGHTS", "ModelFields", "model_fields", "receptive_fields"]

#: What a map is, in words for titles.
WEIGHTS, GRADIENT = "STRF weights", "gradient maps"


@dataclass(frozen=True)
class ModelFields:
    """Receptive fields and what they are.

    Attributes
    ----------
    maps : array (N, F, T)
        One per neuron, most recent lag last.
    kind : str
        `WEIGHTS` of a linear model, or `GRADIENT`: the slope of the prediction around the null stimulus.

    Examples
    --------
    >>> ModelFields(np.zeros((2, 8, 3)), WEIGHTS).kind
    'STRF weights'
    """

    maps: NDArray[np.float64]
    kind: str


def receptive_fields(model: Any) -> ModelFields | None:
    """Return the receptive fields of a model on its spectrogram.

    Those of a linear model are its weights. Signs and sizes are those of the whole linear path, with the
    gains of batch normalisation and standardisation folded in, where the model can say so. Those of any other
    are gradients around the null stimulus, also behind a prefilter of several channels (ON and OFF), where no
    single channel's weights are the receptive field; a model with unbounded memory has its default window.

    Parameters
    ----------
    model : NeuralModel
        The model.

    Returns
    -------
    ModelFields or None
        None for a model that has neither, or whose gradient is not finite.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear, StateNet
    >>> receptive_fields(Linear(8, 3, 2)).kind
    'STRF weights'
    >>> found = receptive_fields(StateNet(8, out_neurons=2))
    >>> found.kind, found.maps.shape
    ('gradient maps', (2, 8, 60))
    >>> receptive_fields(Linear(8, 3, 2, prefiltering={"prefiltering": "adaptrans", "dt": 5.0})).kind
    'gradient maps'
    """
    if hasattr(model, "STRF_weight") and getattr(model, "C_in", 1) == 1:
        try:
            weight = model.STRF_weight(folded=True)
        except ValueError:  # something nonlinear stands between: the bare kernel is what there is
            weight = model.STRF_weight()
        return ModelFields(weight.double().numpy(), WEIGHTS)
    if not hasattr(model, "STRF_gradmap"):
        return None
    try:
        maps = model.STRF_gradmap()[:, 0].cpu().double().numpy()
    except ValueError:  # a user's model whose prediction carries no gradient
        return None
    return ModelFields(maps, GRADIENT) if np.isfinite(maps).all() else None


def model_fields(model: Any) -> NDArray[np.float64] | None:
    """Return the receptive fields (N, F, T) of a model; `receptive_fields` also says what they are.

    Parameters
    ----------
    model : NeuralModel
        The model.

    Returns
    -------
    array (N, F, T) or None
        Most recent lag last.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> model_fields(Linear(8, 3, 2)).shape
    (2, 8, 3)
    """
    found = receptive_fields(model)
    return None if found is None else found.maps
