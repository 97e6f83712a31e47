"""Model cards: what they say is true, their code runs, and odd metadata does not break them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.models.audio import ICNet, Linear, Transformer
from deepSTRF.models.io.card import model_card  # inner: tested by itself
from deepSTRF.models.io.encoding import encode_module, foreign_classes  # inner: tested by itself
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.training import ProtocolCard


class OwnLinear(Linear):
    """A user's own model."""


def card_of(model: nn.Module, folder: Path, metadata: Any = None) -> str:
    model.save_pretrained(folder, metadata=metadata)  # type: ignore[operator]
    return (folder / "README.md").read_text()


def cells(card: str) -> dict[str, str]:
    return dict(re.findall(r"^\| ([^|]+) \| (.*) \|$", card, flags=re.MULTILINE))


def code(card: str) -> str:
    return re.search(r"```python\n(.*?)```", card, flags=re.DOTALL)[1]


def test_facts_of_a_spectrogram_model(tmp_path: Path) -> None:
    facts = cells(card_of(Transformer(34, context_window=20, out_neurons=119), tmp_path))
    assert facts["Neurons"] == "119"
    assert facts["Input"] == "spectrogram (B, 1, 34, T)"
    assert facts["Receptive field"] == "20 bins"
    assert facts["Trainable parameters"] == "35,783 (core 29,952, readout 5,831)"
    assert (facts["positional"], facts["freq_patch_size"]) == ("sinusoidal", "None")


def test_facts_of_a_waveform_model(tmp_path: Path) -> None:
    model = Linear(
        8, 3, 2, wav2spec=CausalMelSpectrogram(16000, n_mels=8), output_activation=nn.LeakyReLU(0.2)
    )
    facts = cells(card_of(model, tmp_path))
    assert facts["Input"] == "waveform (B, 1, T_audio) at 16000 Hz"
    assert facts["Bin"] == "80 samples, 5 ms"
    assert facts["Receptive field"] == "3 bins of the front-end's output"
    assert facts["Front-end"] == "CausalMelSpectrogram, latency 2.5 ms"
    assert facts["wav2spec"].startswith("CausalMelSpectrogram(audio_fs=16000, n_mels=8")
    assert facts["output_activation"] == "torch.nn.LeakyReLU(negative_slope=0.2, inplace=False)"
    small = {"n_filters": 4, "encoder_channels": 4, "encoder_kernel_size": 8, "bottleneck_channels": 4}
    deep = ICNet(8000, [2, 3], **small)
    icnet = card_of(deep, tmp_path)
    heard = f"{deep.wav2spec.receptive_field_samples / 8:.0f} ms"
    assert cells(icnet)["Receptive field"] == f"1 bins of the front-end's output, {heard} of sound"
    assert cells(icnet)["out_neurons"] == "2, 3"
    assert "10.1038/s42256-025-01104-9" in icnet


def test_scores_and_protocol(tmp_path: Path) -> None:
    dataset = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4)
    model = Linear(dataset.F, 9, 3)
    protocol = ProtocolCard.collect(dataset, model=model, seeds=[0], training={"loss": "mse"}).rows()
    scores = [
        {"split": "test", "metric": "cc_norm", "mean": 0.55123456, "n": 3},
        {"split": "test", "metric": "cc", "mean": 0.4},
    ]
    metadata = {"protocol": protocol, "scores": scores, "neurons": list("abcdefghijk"), "note": "a|b"}
    card = card_of(model, tmp_path, metadata)
    assert "| split | metric | mean | n |" in card
    assert "| test | cc_norm | 0.551235 | 3 |" in card
    assert "| test | cc | 0.4 |  |" in card
    for label, value in protocol:
        assert f"| {label} | {value} |" in card
    assert "| neurons | 11 entries |" in card
    assert "| note | a\\|b |" in card
    assert "## Scores" not in card_of(model, tmp_path)


def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Linear(8, 3, 2).eval()
    card = card_of(model, tmp_path / "my model")
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code(card), names)
    x = torch.randn(1, 1, 8, 20)
    assert torch.equal(names["model"](x), model(x))


def test_the_code_names_classes_of_the_author(tmp_path: Path) -> None:
    text = code(card_of(OwnLinear(8, 3, 2), tmp_path))
    assert "from your_code import OwnLinear" in text
    assert 'modules={"OwnLinear": OwnLinear}' in text
    assert "your_code" not in code(card_of(Linear(8, 3, 2), tmp_path))
    described = encode_module(nn.Sequential(nn.ReLU(), OwnLinear(8, 3)), "part")
    assert foreign_classes([described, described]) == ["OwnLinear"]


def test_license_authors_citation(tmp_path: Path) -> None:
    card = card_of(Linear(8, 3), tmp_path)
    assert "has not stated a license" in card
    assert "\nlicense:" not in card
    assert "BSD-3-Clause" in card
    assert "10.1523/JNEUROSCI.20-06-02315.2000" in card  # the reference that the class itself names
    stated = {"license": "cc-by-4.0", "authors": "A. Body", "citation": "Body 2026, doi 10/x"}
    card = card_of(Linear(8, 3), tmp_path, stated)
    assert card.startswith('---\nlibrary_name: deepSTRF\nlicense: "cc-by-4.0"\ntags:\n- neuroscience\n')
    assert "The weights: cc-by-4.0." in card
    assert "A. Body\n\nBody 2026, doi 10/x\n\nModel: Theunissen" in card


@pytest.mark.parametrize(
    "metadata", [None, [], 3, "text", {}, {"scores": 0.5}, {"protocol": {"a": {"b": 1.0}}}]
)
def test_odd_metadata(metadata: Any, tmp_path: Path) -> None:
    assert card_of(Linear(8, 3), tmp_path, metadata).startswith("---\nlibrary_name: deepSTRF\n")


def test_a_plain_module_has_a_card() -> None:
    assert "| Trainable parameters | 6 |" in model_card(nn.Linear(2, 2), {"a": 1})
