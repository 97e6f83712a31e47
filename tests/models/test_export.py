"""Exported graphs: reloaded by their own runtime, compared with the model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram


@pytest.mark.parametrize("heard", ["spectrogram", "sound"])
def test_linear_as_torch(tmp_path: Path, heard: str) -> None:
    torch.manual_seed(0)
    front_end = CausalMelSpectrogram(16000, n_mels=12) if heard == "sound" else None
    model = Linear(12, 4, out_neurons=3, wav2spec=front_end).train()
    folder = model.export(tmp_path / "graphs", format="torch")
    assert model.training
    x = torch.randn(4, 1, 80 * 30) if heard == "sound" else torch.randn(4, 1, 12, 30)
    held = {"deepSTRF.json": ""}
    graph = torch.export.load(folder / "sequence.pt2", extra_files=held).module()
    torch.testing.assert_close(graph(x), model.eval()(x)[:, :, 0], rtol=1e-5, atol=1e-5)
    assert json.loads(held["deepSTRF.json"])["inputs"][0]["name"] == heard
