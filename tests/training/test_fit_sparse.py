"""Populations in which most pairs of clip and neuron were never recorded: batches of recorded pairs only."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.datasets import NeuralDataset
from deepSTRF.metrics import (
    corrcoef,
    gamma_loss,
    mse_loss,
    negative_binomial_loss,
    normalized_corrcoef,
    poisson_loss,
)
from deepSTRF.models.audio import Linear
from deepSTRF.training import Callback, Fitter, make_loaders
from deepSTRF.training.objective import adds_up_over_rows

N, BANDS = 12, 4


def recording(seed: int = 0, *, missing: bool = False, repeats: tuple[int, int] = (1, 5)) -> NeuralDataset:
    """20 ragged clips, 3 of the neurons in each; with ``missing``, NaN inside and trials of other lengths."""
    rng = np.random.default_rng(seed)
    stims, responses = [], []
    for _ in range(20):
        bins = int(rng.integers(20, 60))
        stims.append(rng.standard_normal((BANDS, bins)).astype(np.float32))
        entry = {}
        for neuron in rng.choice(N - 1, 3, replace=False):  # the last one is never recorded
            rows = rng.poisson(1.0, (int(rng.integers(*repeats)), bins)).astype(np.float32)
            if missing:
                rows[0, -5:] = np.nan
                rows[:, 3] = np.nan
            entry[int(neuron)] = rows
        responses.append(entry)
    names = [{"cell_id": f"n{i}"} for i in range(N)]
    return NeuralDataset.from_arrays(stims, responses, 10.0, nrn_meta=names, check_alignment=False)


class Looks(Callback):
    """A callback that is given batches, so that they hold every neuron."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []
        self.pairs: list[object] = []

    def on_loss(self, fitter, batch, prediction, loss):
        self.shapes.append(tuple(batch.targets.shape))
        self.pairs.append(batch.pairs)


def fitted(ds: NeuralDataset, batch: int, norm: str, dense: bool, **options) -> tuple[Fitter, list[dict]]:
    torch.manual_seed(0)
    model = Linear(BANDS, 3, N, norm=norm, output_activation=options.pop("activation", None))
    train, val = ds.select(clips=list(range(14))), ds.select(clips=list(range(14, 20)))
    loaders = make_loaders(train, val, batch_size=batch, seed=1)
    fitter = Fitter(
        model, *loaders, max_epochs=3, patience=3, progress=False, seed=0,
        callbacks=[Looks()] if dense else [], **options,
    )  # fmt: skip
    return fitter, fitter.fit()


@pytest.mark.parametrize("missing", [False, True])
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("norm", ["batch", "none"])
def test_pairs_fit_as_all_neurons_do(batch, norm, missing):
    ds = recording(missing=missing)
    (sparse, one), (dense, other) = (fitted(ds, batch, norm, full) for full in (False, True))
    assert next(iter(sparse.train_source)).pairs is not None
    looks = dense.callbacks[-1]
    assert set(looks.pairs) == {None}
    assert {shape[1] for shape in looks.shapes} == {N}
    for a, b in zip(one, other, strict=True):
        for key in a:
            np.testing.assert_allclose(a[key], b[key], rtol=1e-4, atol=2e-5, equal_nan=True, err_msg=key)
    for a, b in zip(sparse.model.state_dict().values(), dense.model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "loss",
    [
        poisson_loss,
        partial(mse_loss, weighting="repeats"),
        partial(negative_binomial_loss, dispersion=0.5, full=True),
        partial(gamma_loss, shape=2.0),
    ],
)
def test_every_loss_of_ours(loss):
    ds = recording(1, missing=True)
    options = {"loss_fn": loss, "activation": "softplus", "warmup_ms": 40.0}
    (sparse, one), (_, other) = (fitted(ds, 4, "none", full, **options) for full in (False, True))
    assert next(iter(sparse.train_source)).pairs is not None
    for key in ("train_loss", "val_loss"):
        assert [row[key] for row in one] == pytest.approx([row[key] for row in other], rel=1e-5)
    torch.testing.assert_close(one[-1]["val_cc"], other[-1]["val_cc"], rtol=1e-4, atol=1e-5, equal_nan=True)


def test_scores_are_those_of_the_metrics_on_all_clips():
    ds = recording(2, repeats=(2, 5))
    fitter, _ = fitted(ds, 3, "batch", dense=False)
    val = ds.select(clips=list(range(14, 20)))
    found = fitter.evaluate(make_loaders(val, batch_size=4)[0])
    bins, repeats = max(map(val.n_bins, range(6))), 5
    pred, responses = torch.zeros(6, N, 1, bins), torch.full((6, N, repeats, bins), torch.nan)
    for clip, rates in enumerate(fitter.model.predict(val)):
        block = val.response_block(clip)
        pred[clip, :, 0, : rates.shape[1]] = rates
        responses[clip, :, : block.shape[1], : block.shape[2]] = block
    for name, metric in (("cc", corrcoef), ("cc_norm", partial(normalized_corrcoef, method="schoppe"))):
        expected = metric(pred, responses, reduction="none").double()
        torch.testing.assert_close(found[name], expected, rtol=1e-5, atol=1e-6, equal_nan=True)
    assert found["cc"][N - 1].isnan()


def test_what_is_not_known_to_add_up_sees_all_neurons():
    own = lambda pred, responses: (pred - responses).nanmean()  # noqa: E731
    dispersion = nn.Parameter(torch.ones(N))
    assert adds_up_over_rows(mse_loss)
    assert not adds_up_over_rows(own)
    assert not adds_up_over_rows(partial(mse_loss, reduction="sum"))
    assert not adds_up_over_rows(partial(negative_binomial_loss, dispersion=dispersion, full=True))
    assert not adds_up_over_rows(partial(gamma_loss, zeros="exclude"))
    seen = []

    def metric(pred, responses):
        seen.append((tuple(pred.shape), tuple(responses.shape)))
        return corrcoef(pred, responses, reduction="none")

    ds = recording(3)
    for options in ({"loss_fn": own}, {"val_metrics": {"mine": metric}, "monitor": "val_mine"}):
        fitter, _ = fitted(ds, 2, "none", dense=False, **options)
        assert next(iter(fitter.train_source)).pairs is None
    assert {shape[1] for pair in seen for shape in pair} == {N}


def test_a_resumed_fit_ends_with_the_same_weights(tmp_path):
    ds = recording(4)
    whole, _ = fitted(ds, 3, "batch", dense=False)
    path = tmp_path / "state.pt"
    torch.manual_seed(0)
    views = ds.select(clips=list(range(14))), ds.select(clips=list(range(14, 20)))
    for epochs in (1, 3):
        torch.manual_seed(0)
        model = Linear(BANDS, 3, N)
        fitter = Fitter(
            model, *make_loaders(*views, batch_size=3, seed=1), max_epochs=epochs, patience=3, progress=False,
            seed=0, state_path=path,
        )  # fmt: skip
        fitter.fit()
    for a, b in zip(whole.model.state_dict().values(), model.state_dict().values(), strict=True):
        assert torch.equal(a, b)
