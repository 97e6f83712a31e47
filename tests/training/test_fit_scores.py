"""Scores per neuron and the card beside them."""

from __future__ import annotations

import csv
import io
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.datasets import index_split, neural_collate
from deepSTRF.metrics import corrcoef, fve, mse_loss, normalized_corrcoef, snr
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.training import Fitter, ProtocolCard, ScoreTable, score_model

# one class per rule, documented under ModelRuleError
from deepSTRF.training.validate import NeuronCountError


def strict_json(text):
    def refuse(literal):
        raise AssertionError(f"{literal} is not JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.fixture(scope="module")
def fitted(kit, ragged_recording):
    model = kit.linear()
    Fitter(model, *kit.loaders(ragged_recording), max_epochs=3).fit()
    return model


def test_columns_equal_the_one_shot_metrics(fitted, ragged_recording):
    table = score_model(fitted, ragged_recording, n_bootstrap=0)
    whole = neural_collate([ragged_recording[clip] for clip in range(6)])
    with torch.no_grad():
        pred = fitted(whole["stims"])
    responses = whole["responses"]
    wanted = {
        "cc": corrcoef(pred, responses, reduction="none"),
        "cc_norm": normalized_corrcoef(pred, responses, reduction="none"),
        "cc_norm_published": normalized_corrcoef(pred, responses, reduction="none", centring="published"),
        "fve": fve(pred, responses, reduction="none"),
        "mse": mse_loss(pred, responses, reduction="none"),
        "snr": snr(responses, reduction="none", centring="concat"),
    }
    for name, values in wanted.items():
        assert np.allclose(table[name], values.double().numpy(), rtol=1e-5, atol=1e-7), name
    assert np.isnan(table["ccmax_low"]).all()
    assert not fitted.training


def test_the_ceiling_comes_with_its_interval(fitted, ragged_recording):
    table = score_model(fitted, ragged_recording, n_bootstrap=50)
    known = ~np.isnan(table["ccmax"])
    assert known.any()
    assert (table["ccmax_low"][known] <= table["ccmax_high"][known]).all()


def test_other_centrings(fitted, ragged_recording):
    tables = {
        c: score_model(fitted, ragged_recording, centring=c, n_bootstrap=0) for c in ("clip", "published")
    }
    assert np.array_equal(tables["published"]["cc_norm"], tables["published"]["cc_norm_published"])
    assert not np.array_equal(tables["clip"]["cc_norm"], tables["clip"]["cc_norm_published"])
    with pytest.raises(ValueError, match="centring"):
        score_model(fitted, ragged_recording, centring="none")


def test_a_silent_neuron_has_no_score_and_a_reason(kit, fitted):
    from deepSTRF.datasets.audio import AudioNeuralDataset

    whole = kit.spectrogram_recording()
    blocks = [np.asarray(whole.response_block(clip)).copy() for clip in range(6)]
    for block in blocks:
        block[2] = 0
    dataset = AudioNeuralDataset.from_arrays(
        [s[0] for s in whole.stims], blocks, dt_ms=5.0, nrn_meta=[{"cell_id": f"unit{n}"} for n in range(4)],
        check_alignment=False,
    )  # fmt: skip
    table = score_model(fitted, dataset, n_bootstrap=0)
    assert table.mean("cc_norm")[1:] == (3, 1)
    assert math.isfinite(table.mean("cc_norm").mean)
    assert "silent" in table.reasons[2]
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert rows[2]["neuron"] == "unit2"
    assert rows[2]["cc_norm"] == ""
    assert float(rows[0]["cc_norm"]) == pytest.approx(table["cc_norm"][0])
    content = strict_json(table.to_json())
    assert content["neurons"][2]["cc_norm"] is None
    row = next(row for row in content["summary"] if row["score"] == "cc_norm")
    assert (row["n"], row["n_nan"]) == (3, 1)
    assert content["facts"]["centring"] == "concat"
    assert "cc_norm" in str(table)


def test_files_are_written(tmp_path):
    table = ScoreTable(("a",), {"cc": np.array([np.nan])})
    assert (table.to_csv(tmp_path / "x" / "s.csv"), table.to_json(tmp_path / "s.json")) == (
        (tmp_path / "x" / "s.csv").read_text(),
        (tmp_path / "s.json").read_text(),
    )
    assert math.isnan(table.mean("cc").mean)
    assert math.isnan(table.summary_rows()[0]["median"])
    with pytest.raises(KeyError, match="no score 'r2'; this table has cc"):
        table["r2"]
    with pytest.raises(ValueError, match=r"column 'cc' must be \(2,\)"):
        ScoreTable(("a", "b"), {"cc": np.zeros(3)})


def test_a_model_for_other_neurons(kit, ragged_recording):
    with pytest.raises(NeuronCountError, match="out_neurons=4"):
        score_model(kit.linear(neurons=3).eval(), ragged_recording)


def test_the_model_goes_back_to_its_place_and_mode(kit, ragged_recording):
    model = kit.linear().train()
    score_model(model, ragged_recording, device="cpu", n_bootstrap=0)
    assert model.training


# ------------------------------------------------------------------------------------------ protocol card


def test_the_card_says_what_a_reader_must_know(kit, sound_recording):
    split = index_split(sound_recording, train=range(3), val=[3], test=[4, 5])
    model = kit.linear(kit.PowerBands())
    train, val = kit.loaders(sound_recording)
    fitter = Fitter(model, train, val, max_epochs=2)
    fitter.fit()
    view = sound_recording.select(neurons=[0, 1, 3])
    card = ProtocolCard.collect(view, split=split, model=model, seeds=[0, 1], warmup_ms=25.0, training=fitter)
    rows = dict(card.rows())
    assert rows["Neurons"] == "3 (selection 0-1, 3 of the recording)"
    assert rows["Split"].startswith(split.name)
    assert split.hash[:12] in rows["Split"]
    assert rows["Clips"] == "6 (train 3, validation 1, test 2)"
    assert rows["Bin"] == "5.0 ms"
    assert rows["Smoothing of responses"] == "none"
    assert rows["Onset left out"] == "25 ms"
    assert rows["Seeds"] == "0, 1"
    assert rows["cc_norm centred"] == "on the concatenated clips"
    assert rows["Front-end"] == "PowerBands, latency 0 ms"
    assert rows["Fit: optimiser"] == "AdamW"
    assert "torch 2" in rows["Software"]
    assert all(isinstance(label, str) and isinstance(value, str) for label, value in card.rows())
    assert strict_json(card.to_json())["split"]["test"] == [4, 5]
    assert ProtocolCard.from_json(card.to_json()) == card


def test_the_card_shows_smoothing_and_facts(recording):
    card = ProtocolCard.collect(recording.smoothed(21.0))
    rows = dict(card.rows())
    assert rows["Smoothing of responses"] == "Hanning, 21 ms, unit gain"
    assert rows["Seeds"] == "not stated"
    assert "Model" not in rows
    with pytest.raises(ValueError, match="centring"):
        ProtocolCard.collect(recording, centring="x")


def test_the_card_gives_a_latency_to_a_tenth_of_a_ms_and_keeps_all_of_it_as_data(recording):
    model = Linear(12, 3, 2, wav2spec=make_wav2spec("gammatone", audio_fs=16000, dt_ms=5.0, n_filters=12))
    card = ProtocolCard.collect(recording, model=model)
    text = dict(card.rows())["Front-end"]
    assert text == f"{type(model.wav2spec).__name__}, latency {model.latency_ms:.1f} ms"
    assert card.model["latency_ms"] == model.latency_ms
    with pytest.raises(ValueError, match=r"no protocol card.*colour"):
        ProtocolCard.from_json('{"colour": 1}')


@pytest.mark.parametrize("kind", ["mel", "gammatone", "gammatonegram", "leaf", "sincnet"])
def test_the_card_states_bands_and_settings_of_every_front_end(sound_recording, kind):
    front_end = make_wav2spec(kind, audio_fs=16000, dt_ms=5.0, n_filters=12, f_min=700.0)
    card = ProtocolCard.collect(sound_recording, model=Linear(12, 3, 2, wav2spec=front_end))
    rows = dict(card.rows())
    hertz = [float(one) for one in front_end.frequencies_hz]
    assert rows["Bands of the front-end"] == f"12, centred from {min(hertz):.6g} to {max(hertz):.6g} Hz"
    settings = rows["Settings of the front-end"].split(", ")
    assert {"audio_fs=16000", "f_min=700", "f_max=8000"} <= set(settings)  # None follows from the rate
    assert "Frequency bands" not in rows, "those of a waveform recording are advice"
    assert ProtocolCard.from_json(card.to_json()) == card


def test_the_card_states_the_bands_of_spectrograms_and_nested_parts(recording):
    recording.frequencies_hz = np.geomspace(500.0, 8000.0, recording.F)
    model = Linear(
        recording.F, 3, 2, kernel={"kernel": "separable", "rank": 2},
        prefiltering={"prefiltering": "adaptrans", "dt": 5.0}, output_activation=nn.LeakyReLU(),
    )  # fmt: skip
    rows = dict(ProtocolCard.collect(recording, model=model).rows())
    assert rows["Lowest and highest band (Hz)"] == "500, 8000"
    assert "Front-end" not in rows
    for part in ("kernel=kernel separable, rank 2", "prefiltering=prefiltering adaptrans, dt 5", "LeakyReLU"):
        assert part in rows["Model"]


def test_neuron_names_are_all_different():
    from deepSTRF.training.evaluation import neuron_names  # not public: names come with a ScoreTable

    assert neuron_names([{"cell_id": "a"}, {"cell_id": "a"}, {}]) == ("a", "a (1)", "2")
