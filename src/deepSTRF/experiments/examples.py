"""The neurons a report shows in full: the best, the median and the worst, on the clip they answered most."""

from __future__ import annotations

import io
import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepSTRF._files import npz_bytes

__all__ = [
    "GRADIENT",
    "WEIGHTS",
    "ModelFields",
    "NeuronExample",
    "choose_examples",
    "examples_from_bytes",
    "examples_to_bytes",
    "model_fields",
    "receptive_fields",
]

# ------------------------------------------------------------------------------
# Receptive fields of a fitted model, of whatever kind the model has.


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
    """

    maps: NDArray[np.float64]
    kind: str


def receptive_fields(model: Any) -> ModelFields | None:
    """Return the receptive fields of a model on its spectrogram.

    Those of a linear model are its weights. Signs and sizes are those of the whole linear path, with the
    gains of batch normalisation and standardisation folded in, where the model can say so. Those of any other
    are gradients around the null stimulus, also behind a prefilter of several channels (ON and OFF), where no
    single channel's weights are the receptive field; a model with unbounded memory has its default window.
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

    Shapes: returns (N, F, T).
    """
    found = receptive_fields(model)
    return None if found is None else found.maps


# ------------------------------------------------------------------------------

#: A longer clip is cut to its most eventful stretch: single bins stay visible across a page.
LONGEST_S = 6.0
ARRAYS = ("stim", "response", "pred", "strf", "sound")


@dataclass(frozen=True)
class NeuronExample:
    """One neuron on one clip.

    Attributes
    ----------
    role : str
        Why it is shown: "best", "median", "worst".
    neuron : str
        Its name.
    score : float
        Its test score.
    clip : str
        Name of the clip.
    stim : array (F, T)
        Spectrogram as the model's core sees it.
    response : array (R, T)
        Repeats.
    pred : array (T,)
        Prediction.
    strf : array (F, T_lags) or None
        Receptive field, where the model has one.
    start_s : float
        Where in the clip the excerpt begins.
    sound : array (T_audio,) or None
        The waveform of the excerpt, for the best neuron of a model that hears waveforms.

    Examples
    --------
    >>> import numpy as np
    >>> NeuronExample("best", "A1-3", 0.8, "clip 17", np.zeros((4, 9)), np.zeros((2, 9)), np.zeros(9)).start_s
    0.0
    """

    role: str
    neuron: str
    score: float
    clip: str
    stim: NDArray[Any]
    response: NDArray[Any]
    pred: NDArray[Any]
    strf: NDArray[Any] | None = None
    start_s: float = 0.0
    sound: NDArray[Any] | None = None


def choose_examples(
    model: Any,
    dataset: Any,
    scores: NDArray[np.float64],
    neurons: list[str],
    strfs: NDArray[Any] | None = None,
) -> list[NeuronExample]:
    """Return the best, the median and the worst neuron by score, each on its most eventful clip.

    Shapes: scores (N,); strfs (N, F, T_lags).
    """
    valid = np.flatnonzero(np.isfinite(scores))
    ranked = valid[np.argsort(-scores[valid], kind="stable")]
    if not ranked.size:
        return []
    picked = {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}
    roles: dict[int, str] = {}
    for role, neuron in picked.items():
        roles.setdefault(int(neuron), role)
    predictions = model.predict(dataset)
    examples = []
    for neuron, role in roles.items():
        clip = _most_eventful_clip(dataset, neuron)
        if clip is None:
            continue
        field = None if strfs is None else np.asarray(strfs[neuron])
        response = _repeats(dataset, clip, neuron)
        stim = _spectrogram(model, dataset.stims[clip])
        pred = predictions[clip][neuron].numpy()
        part, start_s = _excerpt(np.nan_to_num(response).mean(axis=0), dataset.dt)
        examples.append(
            NeuronExample(
                role,
                neurons[neuron],
                float(scores[neuron]),
                _clip_name(dataset.stim_meta[clip], clip),
                stim[:, part].astype(np.float32),
                response[:, part].astype(np.float32),
                pred[part].astype(np.float32),
                field,
                start_s,
                _sound(model, dataset.stims[clip], part) if role == "best" else None,
            )
        )
    return examples


def examples_to_bytes(examples: list[NeuronExample]) -> bytes:
    """Return examples as the content of one .npz file."""
    arrays: dict[str, NDArray[Any]] = {}
    facts = []
    for index, example in enumerate(examples):
        facts.append([example.role, example.neuron, example.score, example.clip, example.start_s])
        for name in ARRAYS:
            value = getattr(example, name)
            if value is not None:
                arrays[f"{name}{index}"] = np.asarray(value)
    return npz_bytes({"facts": json.dumps(facts), **arrays})


def examples_from_bytes(content: bytes) -> list[NeuronExample]:
    """Read what `examples_to_bytes` made; nothing in the file is executed."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    examples = []
    for index, (role, neuron, score, clip, start_s) in enumerate(json.loads(str(arrays["facts"]))):
        found = {name: arrays.get(f"{name}{index}") for name in ARRAYS}
        examples.append(NeuronExample(role, neuron, score, clip, start_s=start_s, **found))  # type: ignore[arg-type]
    return examples


def _repeats(dataset: Any, clip: int, neuron: int) -> NDArray[Any]:
    """(R, T) of one neuron, without repeats that were never played to it."""
    block = np.asarray(dataset.response_block(clip)[neuron])
    played = ~np.isnan(block).all(axis=1)
    return block[played] if played.any() else block[:1]


def _most_eventful_clip(dataset: Any, neuron: int) -> int | None:
    """The clip whose PSTH varies most; None when the neuron heard none."""
    spread = []
    for clip in range(len(dataset)):
        block = dataset.response_block(clip)[neuron].numpy()
        heard = ~np.isnan(block).all()
        spread.append(float(np.nan_to_num(block).mean(axis=0).var()) if heard else -1.0)
    best = int(np.argmax(spread))
    return best if spread[best] >= 0 else None


def _excerpt(psth: NDArray[Any], dt_ms: float) -> tuple[slice, float]:
    """The stretch of at most LONGEST_S in which the PSTH varies most, on whole seconds."""
    length = int(LONGEST_S * 1000 / dt_ms)
    if psth.size <= length:
        return slice(0, psth.size), 0.0
    step = max(1, int(1000 / dt_ms))
    starts = range(0, psth.size - length + 1, step)
    start = max(starts, key=lambda first: float(psth[first : first + length].var()))
    return slice(start, start + length), start * dt_ms / 1000


def _spectrogram(model: Any, stim: torch.Tensor) -> NDArray[Any]:
    """(F, T) of one stimulus as the front-end gives it."""
    from deepSTRF.models.prediction import evaluating
    from deepSTRF.models.streaming import placement

    device, dtype = placement(model)
    with evaluating(model):
        spectrogram = model.spectrogram(stim[None].to(device, dtype))
    return np.asarray(spectrogram[0, 0].cpu().float())


def _sound(model: Any, stim: torch.Tensor, part: slice) -> NDArray[Any] | None:
    """The waveform (T_audio,) of some bins of one stimulus; None for a model that hears spectrograms."""
    hop = getattr(getattr(model, "wav2spec", None), "hop", None)
    if hop is None:
        return None
    return np.asarray(stim.reshape(-1)[part.start * hop : part.stop * hop].cpu().float())


def _clip_name(meta: dict[str, Any], clip: int) -> str:
    name = str(meta.get("name", meta.get("stim_id", clip)))
    kind = meta.get("type")
    known = kind and str(kind) != "unknown"
    return f"{name} ({str(kind).replace('_', ' ')})" if known else name
