"""The notebooks' fit on the real recording: the quick way is the plain way, and the scores add up."""

from __future__ import annotations

import tempfile

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Subset

from deepSTRF.datasets import neural_collate
from deepSTRF.models.audio import Linear
from deepSTRF.models.wav2spec import CausalMelSpectrogram
from deepSTRF.training import Fitter, score_model

pytestmark = pytest.mark.ns1


@pytest.fixture(scope="module", params=["spectrogram", "waveform"])
def dataset(request, ns1_dir):
    from deepSTRF.datasets.audio import NS1Dataset

    return NS1Dataset(ns1_dir, return_waveform=request.param == "waveform")


def notebook_fit(ds, n_train=14, **options):
    """As the notebooks write it."""
    torch.manual_seed(0)
    front_end = CausalMelSpectrogram(audio_fs=ds.audio_fs) if ds.return_waveform else None
    model = Linear(n_frequency_bands=34, temporal_window_size=9, out_neurons=ds.N_neurons, wav2spec=front_end)
    train = DataLoader(Subset(ds, range(n_train)), batch_size=1, shuffle=True, collate_fn=neural_collate)
    val = DataLoader(Subset(ds, range(14, 17)), batch_size=1, shuffle=False, collate_fn=neural_collate)
    test = DataLoader(Subset(ds, range(17, 20)), batch_size=1, shuffle=False, collate_fn=neural_collate)
    opt = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    with tempfile.NamedTemporaryFile(suffix=".pt") as ckpt:
        fitter = Fitter(
            model, train, val, optimizer=opt, device="cpu", patience=30, monitor="val_cc_norm", mode="max",
            ckpt_path=ckpt.name, log_fn=lambda d: None, **options,
        )  # fmt: skip
        history = fitter.fit()
    return model, history, fitter.evaluate(test)


def test_two_epochs_are_bit_identical_to_the_plain_loop(dataset):
    (quick, one, scores), (plain, two, others) = (
        notebook_fit(dataset, n_train=4, max_epochs=2, fast=fast) for fast in (True, False)
    )
    weights = plain.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in quick.state_dict().items())
    assert [r["train_loss"] for r in one] == pytest.approx([r["train_loss"] for r in two])
    assert torch.allclose(scores["cc_norm"], others["cc_norm"], atol=1e-9)


def test_a_few_epochs_predict_neurons_and_the_table_agrees(dataset):
    model, history, scores = notebook_fit(dataset, max_epochs=6)
    assert history[-1]["train_loss"] < history[0]["train_loss"]
    assert float(scores["cc_norm"].cpu().mean()) > 0.4
    table = score_model(model, dataset.select(clips=[17, 18, 19]), n_bootstrap=0)
    assert np.allclose(table["cc_norm"], scores["cc_norm"].numpy(), atol=1e-6)
    assert table.mean("cc_norm").n_nan == 0
    assert not np.allclose(table["cc_norm"], table["cc_norm_published"])
