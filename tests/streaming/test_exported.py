"""Streams of exported graphs: the numbers of the model, whatever the chunks, and errors that help."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deepSTRF._files import DamagedFileError
from deepSTRF.models import FittedOn, NeuralModel
from deepSTRF.models.audio import Linear, StateNet, Transformer
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.streaming import ExportedModel, Stream

pytest.importorskip("onnxruntime", reason="extra 'export'")
pytest.importorskip("onnxscript", reason="extra 'export'")

FS, BANDS, HOP = 8000, 8, 40


def waveform_model() -> NeuralModel:
    front_end = make_wav2spec("gammatone", audio_fs=FS, dt_ms=5.0, n_filters=BANDS)
    model = StateNet(BANDS, out_neurons=3, kernel_size=4, stride=2, hidden_channels=3, wav2spec=front_end)
    model.fitted_on = FittedOn(neurons=("a", "b", "c"), response_unit="spikes/s", dt_ms=5.0, rms=0.1)
    return model


MAKERS = {
    "gammatone+gru": waveform_model,
    "mel+attention": lambda: Transformer(
        BANDS, out_neurons=3, context_window=4, embedding_dim=8, n_heads=2,
        wav2spec=make_wav2spec("mel", audio_fs=FS, dt_ms=5.0, n_filters=BANDS),
    ),
    "spectrogram": lambda: Linear(BANDS, 4, out_neurons=3),
    "spectrogram, double": lambda: Linear(BANDS, 4, out_neurons=3).double(),
}  # fmt: skip


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[NeuralModel, Path]]:
    torch.manual_seed(0)
    made = {}
    for name, make in MAKERS.items():
        model = make().eval()
        made[name] = model, model.export(tmp_path_factory.mktemp("graphs") / "graph", graphs=["step"])
    return made


def sounds(model: NeuralModel, batch: int, frames: int, seed: int = 0) -> np.ndarray:
    """(B, n) samples or (B, F, n) frames, in the precision of the model."""
    rng = np.random.default_rng(seed)
    hears = hasattr(model.wav2spec, "hop")
    shape = (batch, frames * HOP) if hears else (batch, BANDS, frames)
    kind = np.float64 if next(model.parameters()).dtype == torch.float64 else np.float32
    return (0.1 * rng.standard_normal(shape)).astype(kind)


def whole(model: NeuralModel, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x).unsqueeze(1))[:, :, 0].numpy()


@pytest.mark.parametrize("name", MAKERS)
def test_any_chunks_give_the_rates_of_the_model(
    name: str, exported: dict[str, tuple[NeuralModel, Path]], tmp_path: Path
) -> None:
    model, folder = exported[name]
    x = sounds(model, 3, 60)
    expected = whole(model, x)
    stream, rng = Stream(ExportedModel(folder), batch=3), np.random.default_rng(1)
    at, parts = [0, 0, 0], [[], [], []]
    while min(at) < x.shape[-1]:
        chosen = [one for one in range(3) if rng.random() < 0.7]
        sizes = [int(rng.integers(0, 3 * stream.hop + 2)) for _ in chosen]
        pieces = [x[one, ..., at[one] : at[one] + size] for one, size in zip(chosen, sizes, strict=True)]
        for one, size, rates in zip(chosen, sizes, stream.push(pieces, streams=chosen), strict=True):
            parts[one].append(rates)
            at[one] = min(at[one] + size, x.shape[-1])
        if rng.random() < 0.1:
            save_file(stream.state_dict(), tmp_path / "state.safetensors")
            stream = Stream(ExportedModel(folder), batch=3)
            stream.load_state_dict(load_file(tmp_path / "state.safetensors"))
    span = np.ptp(expected)
    for one in range(3):
        got = np.concatenate(parts[one], axis=-1)
        assert got.dtype == x.dtype
        np.testing.assert_allclose(got, expected[one], rtol=0, atol=1e-5 * span)
    stream.reset([1])
    np.testing.assert_allclose(stream.push(x[1], streams=1), expected[1], rtol=0, atol=1e-5 * span)


def test_it_states_what_the_model_states(exported: dict[str, tuple[NeuralModel, Path]]) -> None:
    model, folder = exported["gammatone+gru"]
    graph = ExportedModel(folder)
    fast, slow = Stream(graph), Stream(model)
    for name in ("audio_fs", "hop", "dt_ms", "n_neurons", "neurons", "dtype", "device"):
        assert getattr(fast, name) == getattr(slow, name), name
    assert fast.latency_ms == pytest.approx(slow.latency_ms)
    assert fast.neurons == ("a", "b", "c")
    assert graph.fitted_on.response_unit == "spikes/s"
    assert fast.model is graph
    assert repr(fast) == repr(slow)
    assert repr(graph) == "ExportedModel(StateNet, 3 neurons, float32)"


def test_states_belong_to_one_graph(exported: dict[str, tuple[NeuralModel, Path]]) -> None:
    (model, folder), (_, other) = exported["spectrogram"], exported["spectrogram, double"]
    state = Stream(ExportedModel(folder)).state_dict()
    with pytest.raises(ValueError, match="another model"):
        Stream(ExportedModel(other)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"lacks|another model"):
        Stream(model).load_state_dict(state)


def test_errors_name_the_call_that_helps(
    exported: dict[str, tuple[NeuralModel, Path]], tmp_path: Path
) -> None:
    model, folder = exported["spectrogram"]
    with pytest.raises(FileNotFoundError, match=r"no export .*model\.export"):
        ExportedModel(tmp_path)
    model.export(tmp_path / "whole", format="torch")
    with pytest.raises(FileNotFoundError, match=r"without a step graph.*step\.onnx"):
        ExportedModel(tmp_path / "whole")
    with pytest.raises(ValueError, match=r"float32, not torch\.float64"):
        Stream(ExportedModel(folder), dtype=torch.float64)
    with pytest.raises(ValueError, match="graphs run on the CPU"):
        Stream(ExportedModel(folder), device="meta")
    broken = tmp_path / "broken"
    model.export(broken, graphs=["step"])
    content = (broken / "step.onnx").read_bytes()
    (broken / "step.onnx").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DamagedFileError, match=r"step\.onnx"):
        ExportedModel(broken)
    model.save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ValueError, match="checkpoint, not of a exported model"):
        ExportedModel(tmp_path / "checkpoint")


def test_a_fit_on_standardised_stimuli_warns(tmp_path: Path) -> None:
    model = Linear(BANDS, 4, out_neurons=3)
    model.fitted_on = FittedOn(standardized=True)
    graph = ExportedModel(model.export(tmp_path / "graph", graphs=["step"]))
    with pytest.warns(UserWarning, match="standardised"):
        Stream(graph)


def test_a_server_serves_a_graph(exported: dict[str, tuple[NeuralModel, Path]]) -> None:
    connect: Any = pytest.importorskip("websockets.sync.client", reason="extra 'live'").connect
    from deepSTRF.streaming import Server

    model, folder = exported["gammatone+gru"]
    x = sounds(model, 1, 20)
    with Server(ExportedModel(folder)) as server, connect(server.url) as client:
        hello = json.loads(client.recv())
        client.send(x[0].astype("<f4").tobytes())
        rates = np.frombuffer(client.recv(), "<f4", offset=8).reshape(-1, 3)
    assert (hello["hop"], hello["response_unit"], hello["neurons"]) == (HOP, "spikes/s", ["a", "b", "c"])
    expected = whole(model, x)[0].T
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-5 * np.ptp(expected))


def test_the_command_hears_by_a_graph(exported: dict[str, tuple[NeuralModel, Path]], tmp_path: Path) -> None:
    import soundfile
    from typer.testing import CliRunner

    from deepSTRF.cli.app import app

    model, folder = exported["gammatone+gru"]
    x = sounds(model, 1, 30)
    soundfile.write(tmp_path / "sound.wav", x[0], FS, subtype="FLOAT")
    out = tmp_path / "rates.npz"
    words = ["stream", str(folder), "--wav", str(tmp_path / "sound.wav"), "--out", str(out), "--quiet"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    written = np.load(out)
    expected = whole(model, x)[0]
    np.testing.assert_allclose(written["rates"], expected, rtol=0, atol=1e-5 * np.ptp(expected))
    assert str(written["unit"]) == "spikes/s"
    refused = CliRunner().invoke(app, [*words, "--seed", "1"])
    assert refused.exit_code == 2
    assert "one graph" in refused.output
