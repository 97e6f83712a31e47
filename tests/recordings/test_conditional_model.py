"""`ConditionalModel`: spike history, coupling and gain, against a plain loop and a simulated truth."""

import math

import numpy as np
import pytest
import torch

from deepSTRF.datasets import NeuralDataset, index_split
from deepSTRF.metrics import poisson_loss
from deepSTRF.models import ConditionalModel, NeuralModel
from deepSTRF.models.audio import DNet, Linear
from deepSTRF.training import Fitter, make_loaders

FEATURES = {"spectrogram": 4, "past": 3, "pupil": 1, "running": 1}


def _model(coupling: bool = False, n_basis: int | None = None, base=None, **options) -> ConditionalModel:
    torch.manual_seed(0)
    base = base or Linear(4, 3, out_neurons=3, norm="none", output_activation="softplus")
    model = ConditionalModel(
        base, FEATURES, history="past", history_frames=5, coupling=coupling, n_basis=n_basis,
        gain=["pupil", "running"], **options,
    )  # fmt: skip
    with torch.no_grad():
        model.filters.normal_()
        model.log_gain.normal_(0, 0.1)
    return model.eval()


@pytest.mark.parametrize("coupling", [False, True])
def test_prediction_is_that_of_a_plain_loop(coupling):
    model, x = _model(coupling), torch.randn(1, 1, 9, 20)
    mean, std = torch.arange(9.0), torch.arange(9.0) + 1
    model.past_scale.set_moments(mean[4:7], std[4:7])
    model.gain_scale.set_moments(mean[7:], std[7:])
    model.output_scale.start(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([0.5, 0.0, 1.0]))
    found = model(x)[0, :, 0].detach()
    weight = model.base.readout.strf.kernel.weight[:, 0]
    bias = model.base.readout.strf.kernel.bias
    z = (x[0, 0] - mean[:, None]) / std[:, None]
    for t in range(20):
        for n in range(3):
            drive = bias[n].clone()
            for lag in range(3):
                if t - lag >= 0:
                    drive += (weight[n, :, 2 - lag] * x[0, 0, :4, t - lag]).sum()
            for lag in range(5):
                if t - lag >= 0:
                    past = z[4:7, t - lag]
                    drive += (
                        (model.filters[n, :, lag] * past).sum()
                        if coupling
                        else model.filters[n, lag] * past[n]
                    )
            gain = math.exp(float((model.log_gain[n] * z[7:, t]).sum().detach()))
            scale, offset = model.output_scale.scale[n], model.output_scale.offset[n]
            expected = gain * (offset + scale * model.base.readout.activation(drive.expand(1, 1, 3))[0, 0, n])
            assert float(found[n, t]) == pytest.approx(float(expected.detach()), rel=2e-5)


@pytest.mark.parametrize("coupling", [False, True])
@pytest.mark.parametrize("base", [None, DNet(4, 3, out_neurons=3)])
def test_steps_equal_the_whole(coupling, base):
    model, x = _model(coupling, n_basis=3, base=base), torch.randn(2, 1, 9, 30)
    state, parts = model.init_state(2), []
    for piece in torch.split(x, [1, 7, 2, 20], dim=-1):
        y, state = model.step(piece, state)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, -1), model(x), rtol=1e-5, atol=1e-6)


def test_prediction_does_not_see_the_future():
    model, x = _model(True), torch.randn(1, 1, 9, 30)
    changed = x.clone()
    changed[..., 20:] = 1e6
    assert torch.equal(model(x)[..., :20], model(changed)[..., :20])


def test_it_is_saved_and_rebuilt(tmp_path):
    model, x = _model(True, n_basis=2), torch.randn(1, 1, 9, 30)
    model.save_pretrained(tmp_path / "model")
    again = NeuralModel.from_pretrained(tmp_path / "model")
    assert torch.equal(again(x), model(x))
    assert torch.equal(again.history_filters(), model.history_filters())


def test_base_model_is_copied_and_unchanged():
    base = Linear(4, 3, out_neurons=3, norm="none")
    before = {name: value.clone() for name, value in base.state_dict().items()}
    _model(base=base)
    assert all(torch.equal(before[name], value) for name, value in base.state_dict().items())


def _glm_data(n_bins: int = 20_000, seed: int = 0):
    """Counts of a known GLM: stimulus, own refractoriness, gain by pupil; numpy only."""
    random = np.random.default_rng(seed)
    stimulus, pupil = random.standard_normal((2, n_bins)), np.sin(np.arange(n_bins) / 300.0)
    kernel, refractory = np.array([[0.8, 0.4], [-0.5, 0.9]]), np.array([-2.0, -1.0, -0.5])
    counts, past = np.zeros((2, n_bins)), np.zeros((2, n_bins))
    for t in range(3, n_bins):
        past[:, t] = counts[:, t - 1]
        drive = kernel @ stimulus[:, t] - 0.5
        drive = drive + sum(refractory[lag] * counts[:, t - 1 - lag] for lag in range(3))
        counts[:, t] = random.poisson(np.exp(0.5 * pupil[t]) * np.log1p(np.exp(drive)))
    rows = np.concatenate([stimulus, past, pupil[None]])
    pieces = [slice(start, start + 2000) for start in range(0, n_bins, 2000)]
    return NeuralDataset.from_arrays(
        [rows[:, piece] for piece in pieces], [counts[:, None, piece] for piece in pieces], dt_ms=5.0,
        check_alignment=False,
    )  # fmt: skip


@pytest.mark.slow
def test_fit_finds_history_and_gain_of_a_simulated_neuron():
    ds = _glm_data()
    train, val = (part for part in index_split(ds, 8, 2, 0).apply(ds)[:2])
    features = {"stimulus": 2, "past": 2, "pupil": 1}
    losses = {}
    for history, gain in ((None, []), ("past", ["pupil"])):
        torch.manual_seed(0)
        rows = 2 if history else 5
        base = Linear(rows, 1, out_neurons=2, norm="none", output_activation="softplus")
        model = base
        if history:
            model = ConditionalModel(base, features, history=history, history_frames=6, gain=gain)
        loaders = make_loaders(train, val, batch_size=1, seed=0)
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.0)
        fitter = Fitter(
            model, *loaders, loss_fn=poisson_loss, optimizer=optimizer, max_epochs=60, monitor="val_loss",
            seed=0, progress=False, device="cpu",
        )  # fmt: skip
        losses[history] = min(row["val_loss"] for row in fitter.fit())
    assert losses["past"] < losses[None] - 0.02
    filters = (model.history_filters() / model.past_scale.std.view(2, 1)).detach()  # per spike
    kernel = model.base.readout.strf.kernel.weight.detach()[:, 0, :, 0]
    # the scale of the drive is that of the nonlinearity: filters are compared in units of the STRF
    filters, kernel = (value / kernel.norm(dim=1, keepdim=True) for value in (filters, kernel))
    truth = torch.tensor([[0.8, 0.4], [-0.5, 0.9]])
    size = truth.norm(dim=1, keepdim=True)
    assert torch.allclose(kernel, truth / size, atol=0.05)
    assert torch.allclose(filters[:, :3], torch.tensor([-2.0, -1.0, -0.5]) / size, atol=0.35)
    assert filters[:, 3:].abs().max() < 0.25
    gain = (model.log_gain[:, 0] / model.gain_scale.std[0]).detach()
    assert torch.allclose(gain, torch.tensor([0.5, 0.5]), atol=0.15)


def test_simulation_feeds_spikes_back():
    base = Linear(1, 1, out_neurons=1, norm="none", output_activation="softplus")
    with torch.no_grad():
        base.readout.strf.kernel.weight.zero_()
        base.readout.strf.kernel.bias.fill_(4.0)
    model = ConditionalModel(base, {"s": 1, "past": 1}, history="past", history_frames=1)
    with torch.no_grad():
        model.filters.fill_(-100.0)  # one spike silences the next bin
    counts = model.simulate(torch.zeros(1, 1, 2, 500), generator=torch.Generator().manual_seed(0))[0, 0]
    assert counts.sum() > 500
    assert counts[1:][counts[:-1] > 0].mean() < 0.1 < counts[1:][counts[:-1] == 0].mean()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"history": "pst"}, "pst"),
        ({"gain": ["pupil", "pupil"]}, "different features"),
        ({"history_frames": 0}, "history_frames"),
        ({"own_rows": [0, 1]}, "own_rows"),
        ({"own_rows": [0, 1, 9]}, "own_rows"),
        ({"n_basis": 9}, "n_basis"),
        ({"base": Linear(5, 3, out_neurons=3)}, "n_frequency_bands=5"),
        ({"base": torch.nn.Linear(3, 3)}, "encoding model"),
        ({"base": Linear(4, 3, out_neurons=2)}, "own_rows"),
    ],
)
def test_errors_name_what_is_wrong(change, words):
    options = {
        "base": Linear(4, 3, out_neurons=3), "features": FEATURES, "history": "past", "history_frames": 5,
        "gain": ["pupil", "running"], **change,
    }  # fmt: skip
    with pytest.raises((TypeError, ValueError), match=words):
        ConditionalModel(**options)
