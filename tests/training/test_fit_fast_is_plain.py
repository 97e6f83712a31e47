"""The quick way through memory ends with the weights of the plain loop."""

from __future__ import annotations

import pytest
import torch

from deepSTRF.metrics import corrcoef, mse_loss
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.training import Fitter


def front_end(kit, kind):
    if kind == "mel":
        return CausalMelSpectrogram(kit.AUDIO_FS, n_mels=kit.BANDS, hop_ms=kit.DT_MS, f_min=50.0, f_max=800.0)
    return {"own": kit.PowerBands, "learnable": lambda: kit.PowerBands(True), "dropping": kit.DroppingBands}[
        kind
    ]()


def run(kit, dataset, kind, *, fast, batch_size, epochs=4, **options):
    model = kit.linear(None if kind is None else front_end(kit, kind), standardize=kind == "mel")
    if batch_size > 1 and kind is not None:
        # A cached front-end saw one clip at a time, the plain loop sees a batch: rounding differs, and Adam
        # steps along it where a gradient is zero (the bias before a batch norm). In float64 its eps absorbs.
        model = model.double()
    torch.manual_seed(2)
    train, val = kit.loaders(dataset, batch_size=batch_size)
    fitter = Fitter(model, train, val, max_epochs=epochs, fast=fast, **options)
    history = fitter.fit()
    assert ("memory" in fitter.data_path["train"]) is fast
    return model.state_dict(), history, float(torch.rand(()))


def assert_same(a, b):
    weights, history, draw = a
    other_weights, other_history, other_draw = b
    assert draw == other_draw, "the random streams are in the same place afterwards"
    assert len(history) == len(other_history)
    for name, value in weights.items():
        assert torch.allclose(value.double(), other_weights[name].double(), rtol=0, atol=1e-6), name
    for one, two in zip(history, other_history, strict=True):
        assert one.keys() == two.keys()
        for key in one:
            x, y = torch.as_tensor(one[key]).double(), torch.as_tensor(two[key]).double()
            assert torch.allclose(x, y, atol=1e-5, equal_nan=True), key


@pytest.mark.parametrize("lengths", ["EVEN", "RAGGED"])
@pytest.mark.parametrize("kind", [None, "mel", "own", "learnable", "dropping"])
@pytest.mark.parametrize("batch_size", [1, 3])
def test_same_weights_and_history(kit, kind, lengths, batch_size):
    recording = kit.spectrogram_recording if kind is None else kit.waveform_recording
    dataset = recording(getattr(kit, lengths))
    results = [run(kit, dataset, kind, fast=fast, batch_size=batch_size) for fast in (True, False)]
    assert_same(*results)


def test_bit_for_bit_with_one_clip_per_batch(kit):
    for kind, dataset in (
        (None, kit.spectrogram_recording(kit.RAGGED)),
        ("mel", kit.waveform_recording(kit.RAGGED)),
    ):
        (fast, *_), (plain, *_) = (run(kit, dataset, kind, fast=fast, batch_size=1) for fast in (True, False))
        assert all(torch.equal(value, plain[name]) for name, value in fast.items())


@pytest.mark.parametrize(
    "options",
    [
        {"warmup_ms": 30.0},
        {"val_metrics": {"cc": lambda p, r: corrcoef(p, r, reduction="none")}, "monitor": "val_cc"},
        {"loss_fn": lambda p, r: mse_loss(p, r)},
        {"clip_bytes": 3000},
        {"track_train_metrics": False},
        {"precision": "bf16"},
        {"seed": 7},
    ],
    ids=lambda options: next(iter(options)),
)
def test_same_under_every_option(kit, options):
    dataset = kit.spectrogram_recording(kit.RAGGED)
    assert_same(*(run(kit, dataset, None, fast=fast, batch_size=2, **options) for fast in (True, False)))


def test_same_with_missing_neurons_and_ragged_repeats(kit):
    import numpy as np

    from deepSTRF.datasets.audio import AudioNeuralDataset

    whole = kit.spectrogram_recording(kit.RAGGED)
    responses = []
    for clip in range(6):
        block = np.asarray(whole.response_block(clip)).copy()
        block[clip % 4, 3:] = np.nan  # fewer repeats
        block[:, 1, 30:] = np.nan  # a repeat that ended early
        if clip in (1, 4):
            block[2] = np.nan  # a neuron that did not hear the clip
        responses.append(block)
    stims = [whole.stims[clip][0] for clip in range(6)]
    holed = AudioNeuralDataset.from_arrays(stims, responses, dt_ms=5.0)
    assert_same(*(run(kit, holed, None, fast=fast, batch_size=2) for fast in (True, False)))


def test_float64_models_are_fed_float64(kit):
    results = []
    for fast in (True, False):
        model = kit.linear().double()
        fitter = Fitter(
            model, *kit.loaders(kit.spectrogram_recording(), shuffle=False), max_epochs=2, fast=fast
        )
        fitter.fit()
        results.append(model.STRF_weight())
    assert results[0].dtype == torch.float64
    assert torch.equal(*results)
