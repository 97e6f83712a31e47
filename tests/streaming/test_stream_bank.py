"""Streams equal whole sounds: every registered model, front-end, prefilter and backbone, 200 chunkings each.

The chunkings of a case are 200 streams of one batch, each with its own sound and its own cuts (of 0, 1, many
samples, or all that is left), which are pushed to random subsets and saved and loaded in between. New entries
of the registries are checked with their default arguments.
"""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from deepSTRF.models import NeuralModel
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.registry import BACKBONES, MODELS, PREFILTERS, WAV2SPEC
from deepSTRF.streaming import Stream

FS, DT_MS, BANDS, NEURONS = 8000, 5.0, 8, 3
CHUNKINGS, FRAMES = 200, 15
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-12}

#: Registry name -> small constructor arguments; n_frequency_bands and out_neurons are added.
SMALL: dict[str, dict[str, Any]] = {
    "linear": {"temporal_window_size": 4},
    "linear_nonlinear": {"temporal_window_size": 4},
    "nrf": {"temporal_window_size": 4, "n_hidden": 4},
    "dnet": {"temporal_window_size": 4, "n_hidden": 4, "output_decay": True},
    "convnet2d": {"kernel_size": (3, 4), "c_hidden": 3, "n_hidden": 4},
    "deep_encoder": {"n_hidden": 6, "kernel_size": 3, "dilations": (1, 2)},
    "statenet": {"kernel_size": 4, "stride": 2, "hidden_channels": 4},
    "gatednet": {
        "kernel_size": 4,
        "stride": 2,
        "hidden_channels": 3,
        "n_filters": 3,
        "n_cores": 2,
        "core_size": 4,
    },
    "transformer": {"context_window": 4, "embedding_dim": 8, "n_heads": 2, "positional": "rope"},
}
#: ICNet takes waveforms only: it brings its own front-end.
ICNET = {
    "audio_fs": FS,
    "n_filters": 4,
    "sincnet_kernel_size": 9,
    "encoder_channels": 5,
    "encoder_kernel_size": 6,
    "n_encoder_layers": 3,
    "bottleneck_channels": 3,
}
INPUTS = [None, *WAV2SPEC.names()]
NAMES = [name for name in MODELS.names() if name != "icnet"]
BY_INPUT = [(name, kind, {}) for name in NAMES for kind in INPUTS]
#: Recurrent parts of which each keeps a state of its own form.
OF_BACKBONES = [("statenet", None, {"rnn_type": name, "num_layers": 2}) for name in BACKBONES.names()]
OF_PREFILTERS = [
    ("linear", None, {"prefiltering": {"prefiltering": name, **({"dt": DT_MS} if takes_dt else {})}})
    for name, takes_dt in (
        (name, "dt" in inspect.signature(PREFILTERS.get(name)).parameters) for name in PREFILTERS.names()
    )
]
CASES = [*BY_INPUT, *OF_BACKBONES, *OF_PREFILTERS, ("icnet", "own", {})]


def label(case: tuple[str, str | None, dict[str, Any]]) -> str:
    name, kind, options = case
    inner = [value if isinstance(value, str) else value["prefiltering"] for value in options.values()
             if isinstance(value, str | dict)]  # fmt: skip
    return "-".join([name, kind or "spectrogram", *inner])


def build(name: str, kind: str | None, options: dict[str, Any]) -> NeuralModel:
    torch.manual_seed(0)
    if name == "icnet":
        return MODELS.get(name)(**ICNET, out_neurons=NEURONS)
    front_end = None if kind is None else make_wav2spec(kind, audio_fs=FS, dt_ms=DT_MS, n_filters=BANDS)
    size = {"n_frequency_bands": BANDS, "out_neurons": NEURONS, "wav2spec": front_end}
    return MODELS.get(name)(**size, **SMALL.get(name, {}), **options)


def prepared(case: tuple[str, str | None, dict[str, Any]], dtype: torch.dtype) -> tuple[NeuralModel, int]:
    """A model whose normalisation has seen data, left in train mode; and its samples per bin."""
    model = build(*case).to(dtype)
    hop = 1 if isinstance(model.wav2spec, nn.Identity) else int(model.wav2spec.hop)
    with torch.no_grad():
        model.train()(inputs(model, hop, 4, dtype))
    return model, hop


def inputs(model: NeuralModel, hop: int, batch: int, dtype: torch.dtype) -> torch.Tensor:
    """Sounds (B, 1, T_audio), or energies (B, 1, F, T), which suit every prefilter."""
    shape = (BANDS, FRAMES) if hop == 1 else (FRAMES * hop,)
    noise = torch.randn(batch, 1, *shape, dtype=dtype)
    return noise.square() if hop == 1 else 0.1 * noise


def offline(model: NeuralModel, x: torch.Tensor) -> np.ndarray:
    flags = [(part, part.training) for part in model.modules()]
    with torch.no_grad():
        whole = model.eval()(x)[:, :, 0].numpy()
    for part, training in flags:
        part.training = training
    return whole


def chunk_size(rng: np.random.Generator, left: int, hop: int) -> int:
    """0, 1, less than a bin, some bins, many, or all that is left."""
    sizes = (0, 1, *(int(rng.integers(0, most + 1)) for most in (hop, 4 * hop, 10 * hop)), left)
    return min(left, int(rng.choice(sizes, p=(0.15, 0.15, 0.2, 0.25, 0.2, 0.05))))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=map(label, CASES))
def test_every_chunking_gives_what_the_whole_gives(case: Any, dtype: torch.dtype, tmp_path: Path) -> None:
    rng = np.random.default_rng(len(label(case)))
    model, hop = prepared(case, dtype)
    x = inputs(model, hop, CHUNKINGS, dtype)
    whole = offline(model, x)
    sounds = x[:, 0].numpy()
    length = sounds.shape[-1]
    stream = Stream(model, batch=CHUNKINGS)
    at = np.zeros(CHUNKINGS, dtype=int)
    rates: list[list[np.ndarray]] = [[] for _ in range(CHUNKINGS)]
    saved_at = set(rng.choice(9, 2, replace=False).tolist())
    for turn in range(10):
        chosen = list(range(CHUNKINGS))
        if turn % 2:
            chosen = rng.permutation(CHUNKINGS)[: rng.integers(1, CHUNKINGS)].tolist()
        if turn == 9:  # the rest of all
            chosen, sizes = list(range(CHUNKINGS)), length - at
        else:
            sizes = [chunk_size(rng, length - at[stream_at], hop) for stream_at in chosen]
        chunks = [sounds[i, ..., at[i] : at[i] + n] for i, n in zip(chosen, sizes, strict=True)]
        made = stream.push(chunks, streams=None if len(chosen) == CHUNKINGS and turn != 9 else chosen)
        for i, n, rate in zip(chosen, sizes, made, strict=True):
            at[i] += n
            rates[i].append(rate)
        if turn in saved_at:
            save_file(stream.state_dict(), tmp_path / "stream.safetensors")
            stream = Stream(model, batch=CHUNKINGS)
            stream.load_state_dict(load_file(tmp_path / "stream.safetensors"))
    streamed = np.stack([np.concatenate(parts, axis=-1) for parts in rates])
    assert streamed.shape == whole.shape
    assert streamed.dtype == whole.dtype
    error, span = float(np.abs(streamed - whole).max()), float(np.ptp(whole))
    if error > TOLERANCE[dtype] * span and dtype == torch.float32:
        # sums of large terms of either sign: no order of summation is exact, nor is the whole
        exact = offline(copy.deepcopy(model).double(), x.double())
        assert error <= 3 * float(np.abs(whole - exact).max())
        assert error <= 5 * TOLERANCE[dtype] * span
    else:
        assert error <= TOLERANCE[dtype] * span
    assert stream.frames == (FRAMES,) * CHUNKINGS


def test_every_registered_part_is_in_the_bank() -> None:
    assert {name for name, _, _ in CASES} == set(MODELS.names())
    assert {kind for _, kind, _ in CASES} >= set(WAV2SPEC.names())


@pytest.mark.parametrize("kind", INPUTS)
def test_one_stream_cut_at_random_also_by_tensors(kind: str | None) -> None:
    """A batch of one has its own shapes: (n,), (1, n), frames (F, n)."""
    rng = np.random.default_rng(1)
    model, hop = prepared(("statenet", kind, {}), torch.float32)
    x = inputs(model, hop, 1, torch.float32)
    whole, sound = offline(model, x)[0], x[0, 0]
    stream = Stream(model)
    for chunking in range(20):
        parts, at = [], 0
        while at < sound.shape[-1]:
            size = chunk_size(rng, sound.shape[-1] - at, hop)
            chunk = sound[..., at : at + size]
            made = stream.push(chunk if chunking % 2 else chunk.numpy()[None] if size % 2 else chunk.numpy())
            assert isinstance(made, torch.Tensor if chunking % 2 else np.ndarray)
            parts.append(np.asarray(made))
            at += size
            if rng.random() < 0.05:
                saved = stream.state_dict()
                stream.reset()
                stream.load_state_dict(saved)
        error = np.abs(np.concatenate(parts, axis=-1) - whole).max() / np.ptp(whole)
        assert error <= 1e-6
        stream.reset()
