"""Trainable parameters of the zoo: published counts, one row each. 34 bands and 119 neurons unless stated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import nn

from deepSTRF.models import make_prefiltering
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalGammatone, CausalLEAF, CausalMelSpectrogram, SincNet
from deepSTRF.registry import MODELS

FS = 48_000
ADAPTRANS = {"prefiltering": "AdapTrans", "dt": 1.0, "min_freq": 500, "max_freq": 20000, "scale": "mel"}


def model(name: str, **options: Any) -> nn.Module:
    return MODELS.get(name)(**{"n_frequency_bands": 34, "out_neurons": 119, **options})


def linear(T: int = 9, **options: Any) -> nn.Module:
    return Linear(34, temporal_window_size=T, out_neurons=119, **options)


#: Label, model, count: the table of the models page, in its order.
ROWS: list[tuple[str, Callable[[], nn.Module], int]] = [
    ("linear", linear, 36_771),
    ("linear, mel", lambda: linear(wav2spec=CausalMelSpectrogram(FS)), 36_771),
    ("linear, gammatone", lambda: linear(wav2spec=CausalGammatone(FS, n_filters=34)), 36_771),
    ("linear, SincNet", lambda: linear(wav2spec=SincNet(FS, n_filters=34)), 36_839),
    ("linear, LEAF", lambda: linear(wav2spec=CausalLEAF(FS, n_filters=34)), 37_009),
    ("linear-nonlinear", lambda: model("linear_nonlinear", temporal_window_size=9), 37_009),
    ("linear, AdapTrans", lambda: linear(prefiltering=ADAPTRANS), 73_287),
    ("linear, 15 frames", lambda: linear(15), 61_047),
    ("linear, 15 frames, separable", lambda: linear(15, kernel={"kernel": "separable"}), 6_188),
    (
        "linear, 15 frames, 8 Gaussians",
        lambda: linear(15, kernel={"kernel": "parametric", "num_gaussians": 8}),
        5_117,
    ),
    ("linear, separable", lambda: linear(kernel={"kernel": "separable"}), 5_474),
    ("linear, 4 Gaussians", lambda: linear(kernel={"kernel": "parametric", "num_gaussians": 4}), 2_737),
    ("NRF", lambda: model("nrf", temporal_window_size=9, n_hidden=20), 8_917),
    ("DNet", lambda: model("dnet", temporal_window_size=9, n_hidden=20), 8_699),
    ("2D-CNN", lambda: model("convnet2d", kernel_size=(3, 9), c_hidden=10, n_hidden=20), 14_117),
    (
        "2D-CNN, 32 bands, 59 neurons",
        lambda: model("convnet2d", n_frequency_bands=32, out_neurons=59),
        12_337,
    ),
    ("transformer", lambda: model("transformer", embedding_dim=48, n_layers=1), 35_783),
    (
        "transformer, 32 bands, 49 neurons",
        lambda: model("transformer", n_frequency_bands=32, out_neurons=49, n_heads=2),
        32_257,
    ),
    ("StateNet GRU", lambda: model("statenet", rnn_type="GRU"), 39_081),
    ("StateNet LSTM", lambda: model("statenet", rnn_type="LSTM"), 49_021),
    ("StateNet RNN", lambda: model("statenet", rnn_type="RNN"), 19_201),
    ("StateNet LMU", lambda: model("statenet", rnn_type="LMU"), 28_289),
    ("StateNet Mamba", lambda: model("statenet", rnn_type="Mamba"), 47_761),
    ("StateNet S4", lambda: model("statenet", rnn_type="S4"), 37_261),
    ("StateNet GRU, fully connected", lambda: model("statenet", connectivity="FC"), 40_971),
    ("StateNet GRU, convolutional", lambda: model("statenet", connectivity="CONV"), 38_577),
    ("ICNet", lambda: MODELS.get("icnet")(audio_fs=FS, out_neurons=119, dt_ms=5.0), 5_121_047),
    ("AdapTrans alone", lambda: make_prefiltering("adaptrans", 34, 5.0), 102),
    ("ICAdaptation alone", lambda: make_prefiltering("icadaptation", 34, 5.0), 0),
]


@pytest.mark.parametrize(("build", "count"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_published_parameter_count(build: Callable[[], nn.Module], count: int) -> None:
    module = build()
    assert sum(p.numel() for p in module.parameters() if p.requires_grad) == count
    if hasattr(module, "count_trainable_params"):
        assert module.count_trainable_params() == count


@pytest.mark.parametrize(
    ("name", "options", "more"),
    [
        ("linear", {"norm": "none"}, -2 * 119),
        ("linear_nonlinear", {"norm": "none"}, -2 * 119),
        ("nrf", {"norm": "none"}, -2 * 20),
        ("dnet", {"output_decay": True}, 119),
        ("dnet", {"decay_input": False}, 0),
        ("convnet2d", {"norm": "none"}, -60),
        ("convnet2d", {"norm": "none", "bias": False}, -60 - 3 * 10 - 20 - 119),
        ("nrf", {"standardize": True}, 0),
        ("nrf", {"prefiltering": ADAPTRANS}, 20 * 34 * 9 + 102),
        ("convnet2d", {"prefiltering": {"type": "icadaptation", "dt": 5.0}}, 0),
    ],
)
def test_what_an_option_adds(name: str, options: dict[str, Any], more: int) -> None:
    plain = model(name).count_trainable_params()
    assert model(name, **options).count_trainable_params() == plain + more
