"""What a run shows of model and recording: receptive fields, three neurons on one clip each, rasters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepSTRF._files import load_npz, npz_bytes
from deepSTRF.models.configurable import placement
from deepSTRF.models.prediction import evaluating

__all__ = [
    "GRADIENT",
    "WEIGHTS",
    "ModelFields",
    "NeuronExample",
    "Raster",
    "choose_examples",
    "choose_rasters",
    "examples_from_bytes",
    "examples_to_bytes",
    "rasters_from_bytes",
    "receptive_fields",
]

#: What a receptive field is, in words for titles.
WEIGHTS, GRADIENT = "STRF weights", "gradient maps"
#: A longer clip is cut to the part in which responses vary most: single bins stay visible across a page.
LONGEST_S = 6.0
#: Neurons whose repeats are shown, two pages of twelve, and repeats of each at most.
MOST_RASTERS, MOST_REPEATS = 24, 60
ARRAYS = ("stim", "response", "pred", "strf", "sound")


@dataclass(frozen=True)
class ModelFields:
    """Receptive fields ``maps`` (N, F, T), most recent lag last (``first_lag``), and their ``kind``.

    The kind is `WEIGHTS` of a linear model, or `GRADIENT`, the slope of the prediction around the null
    stimulus. The unit is "sd" (per standard deviation of each band of the training sounds) or "raw"; bands
    ``left_out`` did not vary in them.
    """

    maps: NDArray[np.float64]
    kind: str
    unit: str = "raw"
    left_out: tuple[int, ...] = ()
    first_lag: int = 0


def receptive_fields(model: Any, unit: str | None = None) -> ModelFields | None:
    """Return the receptive fields of a model on its spectrogram; None for a model without.

    Those of a linear model are its weights, with signs and sizes of the whole linear path: the gains of batch
    normalisation and standardisation are folded in where that is possible. Those of any other model are
    gradients around the null stimulus, also behind a prefilter of several channels (ON and OFF), where no
    single channel's weights are the receptive field; a model with unbounded memory has its default window.
    With ``unit=None`` they are per standard deviation where a fit has measured the bands.
    """
    std = getattr(model, "band_std", None)
    known = std is not None and unit != "raw"
    left_out = tuple((std == 0).nonzero().flatten().tolist()) if std is not None and known else ()
    facts: dict[str, Any] = {"unit": "sd" if known else "raw", "left_out": left_out}
    options = {"unit": unit} if hasattr(model, "band_std") else {}
    if hasattr(model, "STRF_weight") and getattr(model, "C_in", 1) == 1:
        try:
            weight = model.STRF_weight(folded=True, **options)
        except ValueError:  # a nonlinear stage lies between: only the bare kernel is defined
            weight = model.STRF_weight(**options)
        first_lag = int(getattr(model, "first_lag", 0))
        return ModelFields(weight.double().numpy(), WEIGHTS, **facts, first_lag=first_lag)
    if not hasattr(model, "STRF_gradmap"):
        return None
    try:
        maps = model.STRF_gradmap(**options)[:, 0].cpu().double().numpy()
    except ValueError:  # a user's model whose prediction carries no gradient
        return None
    facts["first_lag"] = -int(getattr(model, "lookahead_frames", 0))
    return ModelFields(maps, GRADIENT, **facts) if np.isfinite(maps).all() else None


@dataclass(frozen=True)
class NeuronExample:
    """One neuron on one clip.

    ``role`` is "best", "median" or "worst" by test ``score``, ``start_s`` the start of the excerpt in s.
    Shapes: stim (F, T), the model's spectrogram; response (R, T); pred (T,); strf (F, T_lags), None for a
    model without; sound (T_audio,), only of the best neuron of a model with waveform input.
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
    model: Any, dataset: Any, scores: NDArray[np.float64], neurons: list[str]
) -> list[NeuronExample]:
    """Return best, median and worst neuron by score (N,), each on the clip where its PSTH varies most."""
    valid = np.flatnonzero(np.isfinite(scores))
    ranked = valid[np.argsort(-scores[valid], kind="stable")]
    if not ranked.size:
        return []
    picked = {"best": ranked[0], "median": ranked[(len(ranked) - 1) // 2], "worst": ranked[-1]}
    roles: dict[int, str] = {}
    for role, neuron in picked.items():
        roles.setdefault(int(neuron), role)
    predictions = model.predict(dataset)
    fields = receptive_fields(model)
    examples = []
    clips = _most_variable_clips(dataset, list(roles))
    for (neuron, role), clip in zip(roles.items(), clips, strict=True):
        if clip is None:
            continue
        stim = dataset.stims[clip]
        response = np.asarray(dataset.response_block(clip)[neuron])
        played = ~np.isnan(response).all(axis=1)
        response = response[played] if played.any() else response[:1]
        part, start_s = _excerpt(np.nan_to_num(response).mean(axis=0), dataset.dt)
        examples.append(
            NeuronExample(
                role,
                neurons[neuron],
                float(scores[neuron]),
                _clip_name(dataset.stim_meta[clip], clip),
                _spectrogram(model, stim)[:, part].astype(np.float32),
                response[:, part].astype(np.float32),
                predictions[clip][neuron].numpy()[part].astype(np.float32),
                None if fields is None else np.asarray(fields.maps[neuron]),
                start_s,
                _sound(model, stim, part) if role == "best" else None,
            )
        )
    return examples


@dataclass(frozen=True)
class Raster:
    """Repeats (R, T) of one neuron on one clip; ``start_s`` is the start of the excerpt in s."""

    neuron: str
    score: float
    clip: str
    response: NDArray[Any]
    start_s: float = 0.0


def choose_rasters(dataset: Any, scores: NDArray[np.float64], neurons: list[str]) -> list[Raster]:
    """Return rasters of neurons evenly spaced by score (N,), best first, those without a score last.

    Each is on the clip where its PSTH varies most.
    """
    order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")
    picked = order[
        np.unique(np.linspace(0, len(order) - 1, min(MOST_RASTERS, len(order))).round().astype(int))
    ]
    rasters = []
    for neuron, clip in zip(picked.tolist(), _most_variable_clips(dataset, picked.tolist()), strict=True):
        if clip is None:
            continue
        response = np.asarray(dataset.response_block(clip)[neuron])
        response = response[~np.isnan(response).all(axis=1)][:MOST_REPEATS]
        part, start_s = _excerpt(np.nan_to_num(response).mean(axis=0), dataset.dt)
        name = _clip_name(dataset.stim_meta[clip], clip)
        rasters.append(
            Raster(neurons[neuron], float(scores[neuron]), name, _small(response[:, part]), start_s)
        )
    return rasters


def _small(values: NDArray[Any]) -> NDArray[Any]:
    """Small whole numbers as int8, anything else as float32."""
    whole = (
        np.isfinite(values).all() and (values == values.round()).all() and np.abs(values).max(initial=0) < 128
    )
    return values.astype(np.int8 if whole else np.float32)


def _most_variable_clips(dataset: Any, neurons: Sequence[int]) -> list[int | None]:
    """The clip where the PSTH of each neuron varies most; None when it was recorded in none."""
    spread = np.full((len(dataset), len(neurons)), -1.0)
    for clip in range(len(dataset)):
        block = dataset.response_block(clip)  # of all neurons: read once
        for at, neuron in enumerate(neurons):
            repeats = block[neuron].numpy()
            if not np.isnan(repeats).all():
                spread[clip, at] = float(np.nan_to_num(repeats).mean(axis=0).var())
    best = spread.argmax(axis=0).tolist()
    return [clip if spread[clip, at] >= 0 else None for at, clip in enumerate(best)]


def _excerpt(psth: NDArray[Any], dt_ms: float) -> tuple[slice, float]:
    """Bins of at most LONGEST_S in which the PSTH (T,) varies most, and their start in (whole) s."""
    length = int(LONGEST_S * 1000 / dt_ms)
    if psth.size <= length:
        return slice(0, psth.size), 0.0
    step = max(1, int(1000 / dt_ms))
    starts = range(0, psth.size - length + 1, step)
    start = max(starts, key=lambda first: float(psth[first : first + length].var()))
    return slice(start, start + length), start * dt_ms / 1000


def _spectrogram(model: Any, stim: torch.Tensor) -> NDArray[Any]:
    """Spectrogram (F, T) of one stimulus at the model's front-end."""
    device, dtype = placement(model)
    with evaluating(model):
        spectrogram = model.spectrogram(stim[None].to(device, dtype))
    return np.asarray(spectrogram[0, 0].cpu().float())


def _sound(model: Any, stim: torch.Tensor, part: slice) -> NDArray[Any] | None:
    """Waveform (T_audio,) of some bins of one stimulus; None for a model with spectrogram input."""
    hop = getattr(getattr(model, "wav2spec", None), "hop", None)
    if hop is None:
        return None
    return np.asarray(stim.reshape(-1)[part.start * hop : part.stop * hop].cpu().float())


def _clip_name(meta: dict[str, Any], clip: int) -> str:
    name = str(meta.get("name", meta.get("stim_id", clip)))
    kind = meta.get("type")
    known = kind and str(kind) != "unknown"
    return f"{name} ({str(kind).replace('_', ' ')})" if known else name


def examples_to_bytes(examples: list[NeuronExample], rasters: Sequence[Raster] = ()) -> bytes:
    """Return examples and rasters as the content of one .npz file."""
    arrays: dict[str, NDArray[Any]] = {}
    facts = []
    for index, example in enumerate(examples):
        facts.append([example.role, example.neuron, example.score, example.clip, example.start_s])
        for name in ARRAYS:
            value = getattr(example, name)
            if value is not None:
                arrays[f"{name}{index}"] = np.asarray(value)
    shown = [[one.neuron, one.score, one.clip, one.start_s] for one in rasters]
    arrays |= {f"raster{index}": one.response for index, one in enumerate(rasters)}
    more: dict[str, Any] = {"rasters": json.dumps(shown)} if rasters else {}
    return npz_bytes({"facts": json.dumps(facts), **more, **arrays})


def rasters_from_bytes(content: bytes) -> list[Raster]:
    """Read the rasters of `examples_to_bytes`; none in files of earlier versions."""
    arrays = load_npz(content)
    rasters = []
    for index, (neuron, score, clip, start_s) in enumerate(json.loads(str(arrays.get("rasters", "[]")))):
        response = arrays[f"raster{index}"]
        if response.ndim != 2 or response.dtype.kind not in "fiu":
            raise ValueError(f"the raster of {neuron!r} is no array of numbers (R, T)")
        rasters.append(Raster(str(neuron), float(score), str(clip), response, float(start_s)))
    return rasters


def examples_from_bytes(content: bytes) -> list[NeuronExample]:
    """Read what `examples_to_bytes` made; nothing in the file is executed. ValueError for other content."""
    arrays = load_npz(content)
    examples = []
    for index, (role, neuron, score, clip, start_s) in enumerate(json.loads(str(arrays["facts"]))):
        found = {name: arrays.get(f"{name}{index}") for name in ARRAYS}
        for name, shape in zip(ARRAYS, ("FT", "RT", "T", "FL", "A"), strict=True):
            array = found[name]
            if (array is None and name in ARRAYS[:3]) or (
                array is not None and (array.ndim != len(shape) or array.dtype.kind not in "fiu")
            ):
                raise ValueError(f"{name} of {neuron!r} is no array of numbers {tuple(shape)}")
        example = NeuronExample(
            str(role),
            str(neuron),
            float(score),
            str(clip),
            start_s=float(start_s),
            **found,  # type: ignore[arg-type]
        )
        if not example.stim.shape[1] == example.response.shape[1] == example.pred.shape[0]:
            raise ValueError(f"the arrays of {neuron!r} have different numbers of bins")
        examples.append(example)
    return examples
