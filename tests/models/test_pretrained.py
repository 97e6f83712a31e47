"""Checkpoints that ship: their files, cards and sizes, and predictions of fixed stimuli."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import deepSTRF
from deepSTRF.datasets import parse_split
from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.models import NeuralModel, load_pretrained, pretrained, pretrained_models
from deepSTRF.training import score_model

FOLDER = Path(deepSTRF.__file__).parent / "pretrained"
NAMES = list(pretrained_models())
#: What everybody who installs the package gets, in bytes.
MOST_BYTES = 1_000_000
#: Entry of the metadata: mean over time of the prediction of the first neurons for `stimulus`.
KNOWN = "mean predictions of a rising tone, neurons 0-2"


def stimulus(model: NeuralModel) -> torch.Tensor:
    """A rising tone for a front-end, a rising band for a spectrogram; both without random numbers."""
    if hasattr(model.wav2spec, "audio_fs"):
        time = torch.arange(24_000, dtype=torch.float64) / model.wav2spec.audio_fs
        return (0.1 * torch.sin(2 * np.pi * (1000.0 * time + 4000.0 * time**2))).float().view(1, 1, -1)
    bands = torch.arange(model.F, dtype=torch.float64).view(-1, 1)
    frames = torch.arange(100, dtype=torch.float64)
    return (3.0 * torch.exp(-(((bands - frames / 3.0) / 2.0) ** 2)) - 6.0).float().view(1, 1, model.F, -1)


def test_names() -> None:
    assert {"ns1/leaf-linear", "ns1/ridge"} <= set(NAMES)
    assert all("test cc_norm 0." in text and "NS1" in text for text in pretrained_models().values())


def test_they_are_small() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    names = {"README.md", "config.json", "manifest.json", "metadata.json", "model.safetensors"}
    assert {path.name for path in files} == names


@pytest.mark.parametrize("name", NAMES)
def test_a_model_that_ships(name: str) -> None:
    model, metadata = load_pretrained(name, return_metadata=True)
    assert not model.training
    assert model.O == 119
    assert model.fitted_on is not None
    assert model.fitted_on.neurons == tuple(metadata["neurons"])
    assert len(model.fitted_on.sounds) == 14
    assert metadata["command"] == f"python benchmarks/pretrain.py {name}"
    assert "osf.io/ayw2p" in metadata["license"]
    assert "10.1371/journal.pcbi.1005113" in metadata["citation"]
    card = (FOLDER / name / "README.md").read_text(encoding="utf-8")
    assert f'load_pretrained("{name}")' in card
    assert all(f"## {title}" in card for title in ("Scores", "Protocol", "License", "Citation"))
    text = "".join(path.read_text() for path in (FOLDER / name).glob("*.json"))
    assert "/work" not in text
    assert "/home" not in text
    with torch.no_grad():
        rates = model(stimulus(model))[0, :3, 0].mean(-1)
    # front-ends pass through FFTs and convolutions, whose last digits differ between processors
    np.testing.assert_allclose(rates.numpy(), metadata[KNOWN], rtol=1e-3, atol=1e-5)


def test_unknown_names() -> None:
    with pytest.raises(ValueError, match=r"'ns1/lef-linear'; there are .*Did you mean 'ns1/leaf-linear'"):
        load_pretrained("ns1/lef-linear")
    with pytest.raises(ValueError, match=r"no pretrained model '\.\./models'"):
        load_pretrained("../models")
    with pytest.raises(TypeError, match="name"):
        load_pretrained(3)


def test_a_damaged_one_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(FOLDER / "ns1" / "ridge", tmp_path / "ns1" / "ridge")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path)
    path = tmp_path / "ns1" / "ridge" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        load_pretrained("ns1/ridge")


@pytest.mark.ns1
@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_scores_are_those_of_the_card(ns1_dir: Path, name: str) -> None:
    model, metadata = load_pretrained(name, return_metadata=True)
    alignment = "causal" if model.fitted_on.look_ahead_ms == 0.0 else "native"
    ds = NS1Dataset(ns1_dir, return_waveform=model.fitted_on.audio_fs is not None, alignment=alignment)
    test = parse_split(ds, "14/3/3").apply(ds)[2]
    found = score_model(model, test, n_bootstrap=0).mean("cc_norm").mean
    known = {(row["split"], row["metric"]): row["mean"] for row in metadata["scores"]}
    assert found == pytest.approx(known["test", "cc_norm"], abs=2e-3)
    assert json.dumps(metadata)


@pytest.mark.ns1
def test_the_other_alignment_of_the_spectrogram_is_refused(ns1_dir: Path) -> None:
    """The best network scores 0.74 in the place of 0.82 on frames that are 5 ms early."""
    with pytest.raises(ValueError, match=r"spectrograms that look 5 ms ahead .*look 0 ms ahead"):
        score_model(load_pretrained("ns1/best"), NS1Dataset(ns1_dir).select(clips=[17]))
