"""Running a fitted model: eval mode, gradients by its input, predictions clip by clip.

Both contexts leave the model as it was: training flags, ``requires_grad`` and ``.grad``.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF._validation import check_choice
from deepSTRF.models.configurable import placement
from deepSTRF.models.fitted_on import RELATIVE, check_lag_bins, matching_outputs
from deepSTRF.models.streaming import init_slot_state, step_slot

__all__ = [
    "differentiating",
    "evaluating",
    "front_end_frames",
    "input_pieces",
    "parts_left_in_eval",
    "predict_clips",
    "predict_pieces",
    "start_training",
]

#: Seconds of sound that a front-end is given at once, of a long one.
PIECE_S = 5.0
#: Slots in front of a model's STRFs.
_INPUT = ("wav2spec", "prefiltering")
#: What a unit of rates per second holds.
PER_SECOND = re.compile(r"\bhz\b|(\bper |/ ?)s(ec|econd)?\b", re.IGNORECASE)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Context in which every part of a model is in eval mode, without gradients; restored afterwards."""
    flags = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for part, training in flags:
            part.training = training


def parts_left_in_eval(model: nn.Module) -> list[nn.Module]:
    """Return the parts that the user has put in eval mode, in which a fit leaves them.

    In a model in train mode they are all parts in eval mode. A model in eval mode may come from an earlier
    fit or a file: then they are the parts whose parameters are all frozen, and what is inside them.
    """
    off = [part for part in model.modules() if not part.training]
    if model.training:
        return off
    frozen: set[int] = set()
    for part in model.modules():
        parameters = list(part.parameters())
        if parameters and not any(parameter.requires_grad for parameter in parameters):
            frozen.update(id(inner) for inner in part.modules())
    return [part for part in off if id(part) in frozen]


def start_training(model: nn.Module, left_in_eval: list[nn.Module]) -> None:
    """Put a model in train mode, but for some parts."""
    model.train()
    for part in left_in_eval:
        part.training = False


@contextlib.contextmanager
def differentiating(model: nn.Module) -> Iterator[None]:
    """Context in which a model is differentiated with respect to its input; restored afterwards.

    Inside, every part is in eval mode, gradients are recorded (also within ``no_grad`` or
    ``inference_mode``), parameters need none, which saves their share of the graph, autocast is off, and
    recurrent layers avoid cuDNN, which has no backward pass in eval mode.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    recurrent = any(isinstance(part, nn.RNNBase) for part in model.modules())
    device, _ = placement(model)
    with contextlib.ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast(device_type=device.type, enabled=False))
        if recurrent and device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        try:
            for parameter in trained:
                parameter.requires_grad_(False)
            yield
        finally:
            for parameter in trained:
                parameter.requires_grad_(True)


def front_end_frames(front_end: nn.Module, x: Tensor) -> Tensor:
    """Spectrograms (B, 1, F, T) of waveforms (B, 1, T_audio), long ones in pieces where nothing is trained.

    In eval mode and without gradients a sound of more than two pieces of `PIECE_S` goes through the
    front-end's own ``step``: the numbers are those of the whole to rounding, memory does not grow with the
    sound beyond its frames, and filters work on what fits a cache.
    """
    hop, rate = (getattr(front_end, name, None) for name in ("hop", "audio_fs"))
    if hop is None or rate is None or x.dim() != 3 or not _steps_as_it_runs(front_end):
        return front_end(x)  # type: ignore[no-any-return]
    piece = max(1, round(PIECE_S * rate / hop)) * hop
    if x.shape[-1] <= 2 * piece or x.shape[-1] % hop:
        return front_end(x)  # type: ignore[no-any-return]
    state = init_slot_state(front_end, "wav2spec", len(x), device=x.device, dtype=x.dtype)
    frames: list[Tensor] = []
    for chunk in torch.split(x, piece, dim=-1):
        made, state = step_slot(front_end, "wav2spec", chunk, state)
        frames.append(made)
    return torch.cat(frames, dim=-1)


def _steps_as_it_runs(front_end: nn.Module) -> bool:
    """Whether ``step`` gives what a call would, and nobody waits for the call.

    It does not where gradients are recorded or a part is in train mode, where the call is compiled or hooked,
    and where a class changes ``forward`` or ``transform`` of a base and leaves its ``step`` as it was.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return False
    if any(part.training or part._forward_hooks or part._forward_pre_hooks for part in front_end.modules()):
        return False
    own = [vars(cls).keys() for cls in type(front_end).__mro__]
    steps = next((names for names in own if "step" in names), None)
    if steps is None or {"step", "init_state", "forward"} & vars(front_end).keys():
        return False
    later = own[: own.index(steps)]
    ours = type(front_end).__module__.startswith("deepSTRF.")
    return ours or not any({"forward", "transform"} & names for names in later)


def predict_clips(
    model: Any,
    dataset: Any,
    *,
    clips: Sequence[int] | None = None,
    unit: str = "bin",
    device: torch.device | str | None = None,
    together: int = 0,
) -> list[Tensor]:
    """Responses (N, T) of a model to the clips of a dataset, on the CPU.

    A fitted model's neurons are matched by name: rows stand in the order of the dataset. Clips of one length
    go through the model together while their stimuli hold at most ``together`` values; else one at a time.
    """
    if not hasattr(dataset, "stims"):
        sound = isinstance(dataset, Tensor) or hasattr(dataset, "__array__")
        raise TypeError(
            f"predict takes a dataset, got {type(dataset).__name__}"
            + (
                "; for one stimulus call model(torch.as_tensor(stim).float()[None]), (1, N, 1, T)"
                if sound
                else ""
            )
        )
    check_lag_bins(model, dataset)
    factor = _unit_factor(unit, dataset)
    home, dtype = placement(model)
    place = torch.device(device) if device is not None else home
    stims = dataset.stims
    selected = range(len(stims)) if clips is None else [int(clip) for clip in clips]
    for clip in selected:
        if not -len(stims) <= clip < len(stims):
            raise IndexError(
                f"clip {clip} does not exist; this dataset has {len(stims)} clips (0..{len(stims) - 1})"
            )
    outputs = matching_outputs(model, dataset)
    rates: list[Tensor] = [torch.empty(0)] * len(selected)
    with evaluating(model):
        model.to(place)
        try:
            for places, clips, batch in _batches(model, dataset, selected, together):
                output = model(batch.to(place, dtype))
                if output.ndim != 4 or output.shape[0] != len(clips) or output.shape[2] != 1:
                    raise ValueError(
                        f"the model must return ({len(clips)}, N, 1, T); for clip {clips[0]} it returned "
                        f"{tuple(output.shape)}"
                    )
                values = output[:, :, 0] if outputs is None else output[:, outputs, 0]
                for position, one in zip(places, (values.cpu() * factor).unbind(), strict=True):
                    rates[position] = one
        finally:
            model.to(home)
    return rates


def _batches(
    model: Any, dataset: Any, selected: Sequence[int], together: int
) -> Iterator[tuple[list[int], list[int], Tensor]]:
    """Stimuli (B, ...) of clips of one length, with their places in ``selected`` and their numbers."""
    waiting: dict[tuple[int, ...], list[tuple[int, int, Tensor]]] = {}

    def batch(held: list[tuple[int, int, Tensor]]) -> tuple[list[int], list[int], Tensor]:
        places, clips, stimuli = zip(*held, strict=True)
        return list(places), list(clips), torch.stack(stimuli)

    for position, index in enumerate(selected):
        clip = index % len(dataset.stims)
        stimulus = dataset.stims[clip]
        _check_stimulus(model, dataset, stimulus, clip)
        shape = tuple(stimulus.shape)
        waiting.setdefault(shape, []).append((position, clip, stimulus))
        if (len(waiting[shape]) + 1) * stimulus.numel() > together:
            yield batch(waiting.pop(shape))
    for held in waiting.values():
        yield batch(held)


def predict_pieces(
    model: Any, dataset: Any, clip: int, pieces: Sequence[tuple[int, int]]
) -> Iterator[Tensor]:
    """Responses (N, T) of a model to consecutive bins (start, stop) of one clip, from the first one on.

    The state is carried from piece to piece, so that they are those of the whole clip; a model that cannot
    run chunk by chunk predicts the whole.
    """
    try:
        state = model.init_state(1)
    except (AttributeError, TypeError):
        whole = predict_clips(model, dataset, clips=[clip])[0]
        yield from (whole[:, start:stop] for start, stop in pieces)
        return
    place, dtype = placement(model)
    outputs = matching_outputs(model, dataset)
    for start, stop in pieces:
        chunk = dataset.stimulus_part(clip, start, stop)
        _check_stimulus(model, dataset, chunk, clip)
        with evaluating(model):
            output, state = model.step(chunk.unsqueeze(0).to(place, dtype), state)
        yield (output[0, :, 0] if outputs is None else output[0, outputs, 0]).cpu()


def input_pieces(
    model: Any, dataset: Any, clip: int, pieces: Sequence[tuple[int, int]], *, raw: bool = False
) -> Iterator[Tensor]:
    """Input (1, C, F, T) of a model's STRFs for consecutive bins of one clip; ``raw``: its spectrogram."""
    place, dtype = placement(model)
    state = {
        slot: init_slot_state(getattr(model, slot), slot, 1, device=place, dtype=dtype) for slot in _INPUT
    }
    for start, stop in pieces:
        frames = dataset.stimulus_part(clip, start, stop).unsqueeze(0).to(place, dtype)
        with evaluating(model):
            frames, state["wav2spec"] = step_slot(model.wav2spec, "wav2spec", frames, state["wav2spec"])
            if raw:
                yield frames
                continue
            if model.standardizer is not None:
                frames = model.standardizer(frames)
            frames, state["prefiltering"] = step_slot(
                model.prefiltering, "prefiltering", frames, state["prefiltering"]
            )
        yield frames


def _unit_factor(unit: str, dataset: Any) -> float:
    """Factor from the unit of the responses to the one asked for; only counts and rates become hertz."""
    check_choice("unit", unit, ("bin", "hz"))
    if unit == "bin":
        return 1.0
    kind, stated = getattr(dataset, "response_kind", "counts"), getattr(dataset, "response_unit", "per bin")
    if kind == "rate" and PER_SECOND.search(stated):
        return 1.0
    if kind == "trace" or (kind == "rate" and not stated.endswith(("bin", "arbitrary units"))):
        raise ValueError(
            f"unit='hz' needs counts or rates per bin, and these responses are {kind!r} in {stated!r}: leave "
            "unit out for predictions in their own unit"
        )
    return 1000.0 / float(dataset.dt)


def _check_stimulus(model: Any, dataset: Any, stimulus: Tensor, clip: int) -> None:
    """Raise a ValueError that names the argument to change when a stimulus does not fit the model."""
    front_end = getattr(model, "wav2spec", None)
    hop = getattr(front_end, "hop", None)
    if hop is not None:
        if stimulus.ndim != 2:
            raise ValueError(
                f"the model has a waveform front-end ({type(front_end).__name__}) but clip {clip} is a "
                f"spectrogram {tuple(stimulus.shape)}; load the dataset with return_waveform=True"
            )
        rate, data_rate = getattr(front_end, "audio_fs", None), getattr(dataset, "audio_fs", None)
        if not (rate is None or data_rate is None) and not math.isclose(rate, data_rate, rel_tol=RELATIVE):
            raise ValueError(
                f"the front-end expects audio at {rate} Hz, the dataset holds {data_rate} Hz: build it with "
                "audio_fs=dataset.audio_fs, hop_ms=dataset.dt"
            )
        data_hop = getattr(dataset, "hop", None)
        if data_hop is not None and int(data_hop) != int(hop):
            raise ValueError(
                f"the front-end's hop is {hop} samples, the dataset's bin is {data_hop} samples: build it "
                "with audio_fs=dataset.audio_fs, hop_ms=dataset.dt"
            )
        return
    bands = getattr(model, "F", None)
    if stimulus.ndim == 2:
        raise ValueError(
            f"clip {clip} is a waveform {tuple(stimulus.shape)} but the model has no front-end: build it "
            "with wav2spec=make_wav2spec('mel', audio_fs=dataset.audio_fs, dt_ms=dataset.dt), or load "
            "spectrograms"
        )
    if bands is not None and stimulus.shape[-2] != bands:
        raise ValueError(
            f"the model has n_frequency_bands={bands}, clip {clip} has {stimulus.shape[-2]} bands "
            f"{tuple(stimulus.shape)}: build the model with n_frequency_bands=dataset.F"
        )
