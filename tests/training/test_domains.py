"""Ranges that losses need: refused before training where model or responses cannot keep them."""

from __future__ import annotations

import contextlib
import functools
import json

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.cli import main
from deepSTRF.crossval import fit_folds
from deepSTRF.datasets import neural_collate, plan_folds
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.metrics import gamma_loss, mse_loss, negative_binomial_loss, poisson_loss
from deepSTRF.models import NeuralModel
from deepSTRF.models.activations import ParametricDoubleExponential, ParametricSigmoid, ParametricSoftplus
from deepSTRF.models.audio import ICNet, Linear, LinearNonlinear, StateNet
from deepSTRF.registry import LOSSES, MODELS
from deepSTRF.training import Fitter, fit_multi_seed, make_loaders
from deepSTRF.training.objective import check_objective, loss_domains

LIKELIHOODS = {"poisson": poisson_loss, "negative_binomial": negative_binomial_loss, "gamma": gamma_loss}
#: Registered models whose output may be negative as they are built by default.
REAL = {"deep_encoder", "dnet", "linear", "transformer"}


def made(transform, n_clips=4, **options):
    """Clips of noise; responses are a function of the drive (R, N, T)."""
    rng = np.random.default_rng(0)
    stims = [rng.random((6, 80)) for _ in range(n_clips)]
    responses = [transform(rng, np.broadcast_to(stim[3], (3, 2, 80))) for stim in stims]
    return AudioNeuralDataset.from_arrays(stims, responses, 20.0, check_alignment=False, **options)


def dff(rng, drive):
    return drive - 0.5 + 0.3 * rng.normal(size=drive.shape)


def spikes(rng, drive):
    return rng.poisson(drive)


def calcium(rng, drive):
    return drive + rng.gamma(2.0, 0.3, size=drive.shape)


def loaders(ds):
    return make_loaders(ds.select(clips=[0, 1, 2]), ds.select(clips=[3]), seed=0)


def fitter(model, ds, loss, **options):
    data = loaders(ds) if isinstance(ds, AudioNeuralDataset) else ds
    return Fitter(model, *data, loss_fn=loss, max_epochs=1, progress=False, seed=0, **options)


# ---- what a model's output can be


@pytest.mark.parametrize("name", MODELS.names())
def test_every_registered_model_knows_its_range(name):
    cls = MODELS.get(name)
    torch.manual_seed(0)
    small = {"n_filters": 4, "encoder_channels": 6, "bottleneck_channels": 5}
    model = ICNet(8000, 3, **small) if cls is ICNet else cls(34, out_neurons=3)
    assert model.prediction_domain == ("real" if name in REAL else "non-negative")
    x = torch.randn(1, 1, 4000) if cls is ICNet else 100 * torch.randn(1, 1, 34, 60)
    lowest = float(model.eval()(x).detach().min())
    assert lowest < 0 if name in REAL else lowest >= 0
    categorical = ICNet(8000, 3, **small, head="categorical")
    assert categorical.prediction_domain == "non-negative"


@pytest.mark.parametrize(
    ("activation", "domain"),
    [
        (nn.Softplus(), "non-negative"),
        (nn.ReLU(), "non-negative"),
        (nn.Sigmoid(), "non-negative"),
        ("softplus", "non-negative"),
        ("sigmoid", "non-negative"),
        ("double_exponential", "non-negative"),
        (nn.Sequential(nn.Linear(3, 3), nn.Softplus()), "non-negative"),
        ("identity", "real"),
        (nn.Tanh(), "real"),
        (nn.LeakyReLU(0.001), "real"),
        (nn.ELU(), "real"),
        (nn.GELU(), "real"),
        (nn.SiLU(), "real"),
        (nn.PReLU(), "real"),
        (nn.Softshrink(), "real"),
        (nn.BatchNorm1d(80), "unknown"),  # does not take the grid
        (ParametricSoftplus(3, non_negative_output=False), "real"),
        (ParametricSigmoid(3, non_negative_output=False), "real"),
        (ParametricDoubleExponential(3, non_negative_output=False), "real"),
    ],
    ids=repr,
)
def test_the_range_follows_the_output_activation(activation, domain):
    model = Linear(6, 3, 3, output_activation=activation)
    assert model.train().prediction_domain == domain
    assert all(part.training for part in model.modules())
    assert model.double().prediction_domain == domain


def test_code_of_ones_own_is_unknown():
    class Rectified(Linear):
        def forward(self, x):
            return super().forward(x).relu()

    class Mine(NeuralModel):
        def __init__(self):
            super().__init__(2)
            self.readout = nn.Conv2d(1, 2, (6, 1))

    class Stated(Mine):
        prediction_domain = "non-negative"

    assert Rectified(6, 3, 2).prediction_domain == Mine().prediction_domain == "unknown"
    check_objective(Stated(), poisson_loss)
    check_objective(nn.Linear(2, 2), poisson_loss)


def test_losses_state_their_ranges():
    stated = {name: loss_domains(loss) for name, loss in LOSSES.items()}
    assert stated["mse"] == ("real", "real")
    assert stated["poisson"] == stated["negative_binomial"] == ("non-negative", "non-negative")
    assert stated["gamma"] == ("positive", "positive")
    assert loss_domains(functools.partial(poisson_loss, log_input=True)) == ("real", "non-negative")
    assert (
        loss_domains(functools.partial(functools.partial(gamma_loss, shape=2.0), zeros="exclude"))
        == ("positive",) * 2
    )
    assert loss_domains(nn.MSELoss()) == loss_domains(lambda pred, responses: 0) == ("real", "real")


# ---- predictions


@pytest.mark.parametrize("loss", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_a_model_that_may_be_negative_is_refused_with_the_choices(loss):
    ds = made(spikes)
    with pytest.raises(
        ValueError,
        match=rf"{loss.__name__} needs .* never negative.*output of Linear.*softplus.*mse_loss.*log_input",
    ):
        fitter(Linear(6, 3, 3), ds, loss)
    fitter(Linear(6, 3, 3), ds, mse_loss)
    for model in (Linear(6, 3, 3, output_activation="softplus"), LinearNonlinear(6, 3, 3)):
        assert np.isfinite(fitter(model, ds, loss).fit()[0]["train_loss"])
    assert np.isfinite(
        fitter(Linear(6, 3, 3), ds, functools.partial(loss, log_input=True)).fit()[0]["train_loss"]
    )
    with pytest.raises(
        ValueError,
        match="log_input=True needs log rates, and the output of LinearNonlinear is never negative",
    ):
        fitter(LinearNonlinear(6, 3, 3), ds, functools.partial(loss, log_input=True))


class Plain(nn.Module):
    """A module of a user's own, of which nothing is known."""

    def __init__(self, offset):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3, 6))
        self.offset = offset

    def forward(self, x):
        return torch.einsum("nf,bcft->bnct", self.weight, x) + self.offset


@pytest.mark.parametrize("loss", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_an_unknown_model_is_looked_at_in_its_first_batch(loss):
    model = Plain(-0.1)
    with pytest.raises(ValueError, match=r"the model's are in places: end it in a softplus"):
        fitter(model, made(spikes), loss).fit()
    assert not model.weight.any(), "before the first step"
    assert fitter(Plain(1.0), made(spikes), loss).fit()


def test_a_fitter_that_computes_its_own_prediction_or_loss_is_its_own_affair():
    class Rectifies(Fitter):
        def predict_batch(self, batch):
            return nn.functional.softplus(super().predict_batch(batch))

    class Computes(Fitter):
        def compute_loss(self, pred, responses):
            return poisson_loss(nn.functional.softplus(pred), responses)

    for cls in (Rectifies, Computes):
        assert cls(
            Linear(6, 3, 3), *loaders(made(spikes)), loss_fn=poisson_loss, max_epochs=1, progress=False
        ).fit()


# ---- responses


@pytest.mark.parametrize("loss", LIKELIHOODS.values(), ids=LIKELIHOODS)
def test_negative_responses_are_refused_before_training(loss):
    for ds in (
        made(dff, response_unit="dF/F"),
        made(spikes).normalized("zscore"),
        made(calcium).normalized("zscore"),
    ):
        model = LinearNonlinear(6, 3, 3)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with pytest.raises(
            ValueError,
            match=rf"{loss.__name__} needs responses .* are 'trace' in '(dF/F|z-score)': use mse_loss",
        ):
            fitter(model, ds, loss).fit()
        assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
        assert fitter(model, ds, mse_loss).fit()
    for ds in (made(spikes), made(spikes).smoothed(60.0), made(spikes).normalized("max"), made(calcium)):
        assert fitter(LinearNonlinear(6, 3, 3), ds, loss).fit()


def test_a_positive_trace_suits_the_gamma_likelihood_but_no_likelihood_of_counts():
    ds = made(calcium, response_kind="trace", response_unit="F")
    assert fitter(LinearNonlinear(6, 3, 3), ds, gamma_loss).fit()
    for loss in (poisson_loss, negative_binomial_loss):
        with pytest.raises(ValueError, match="response_kind='rate'"):
            fitter(LinearNonlinear(6, 3, 3), ds, loss).fit()


def test_responses_that_only_a_loader_knows_are_looked_at():
    def collate(items):
        batch = neural_collate(items)
        return {**batch, "responses": batch["responses"] - 1}

    views = made(spikes).select(clips=[0, 1, 2]), made(spikes).select(clips=[3])
    own = [torch.utils.data.DataLoader(view, collate_fn=collate) for view in views]
    with pytest.raises(ValueError, match="those of the loader are in places: use mse_loss"):
        fitter(LinearNonlinear(6, 3, 3), own, poisson_loss).fit()


# ---- every kind of fit


def test_series_of_fits_refuse_before_anything_is_written(tmp_path):
    ds = made(dff)
    ds.save(tmp_path / "dff.npz")
    plan = plan_folds(ds, crossval=True, n_folds=2)
    made(spikes).save(tmp_path / "spikes.npz")
    settings = {"max_epochs": 1, "loss_fn": poisson_loss}
    views = [ds.select(clips=clips) for clips in ([0, 1], [2], [3])]

    def loader_factory(seed):
        return make_loaders(*views, seed=seed)

    for cls, words in ((Linear, "output of Linear may be negative"), (LinearNonlinear, "are 'trace'")):

        def factory(seed, cls=cls):
            return cls(6, 3, 3)

        with pytest.raises(ValueError, match=words):
            fit_folds(factory, ds, plan, tmp_path / "folds", fitter_kwargs=settings)
        with pytest.raises(ValueError, match=words):
            fit_multi_seed(factory, loader_factory, 1, fitter_kwargs=settings, output_dir=tmp_path / "seeds")
    for recording, model, words in (
        (
            "spikes.npz",
            "linear",
            r"output of Linear may be negative.*model_options \(output_activation=softplus\)",
        ),
        ("dff.npz", "linear_nonlinear", "are 'trace' in 'arbitrary units'"),
    ):
        config = ExperimentConfig(
            dataset=str(tmp_path / recording), model=model, loss="poisson", split="2/1/1", epochs=1
        )
        with pytest.raises(ValueError, match=words):
            run_experiment(config, tmp_path / "run", progress=False)
    assert {path.name for path in tmp_path.iterdir()} == {"dff.npz", "spikes.npz"}


def test_the_command_line_names_its_flags(tmp_path, capsys):
    made(spikes).save(tmp_path / "u.npz")
    words = ["fit", "-d", str(tmp_path / "u.npz"), "--split", "2/1/1", "--epochs", "1", "--loss", "poisson"]
    with pytest.raises(SystemExit) as stop:
        main([*words, "--out", str(tmp_path / "run")])
    said = " ".join(capsys.readouterr().err.split())
    assert stop.value.code == 2
    assert "--model-option (output_activation=softplus)" in said
    assert not (tmp_path / "run").exists()
    positive = [*words, "--model-option", "output_activation=softplus", "--out", str(tmp_path / "run"), "-q"]
    with contextlib.suppress(SystemExit):
        main(positive)
    assert (tmp_path / "run").is_dir()


# ---- a categorical head


def waveforms(smooth=False):
    rng = np.random.default_rng(1)
    rates = [4 * rng.random((2, 1, 30)) ** 3 for _ in range(4)]
    counts = [rng.poisson(np.broadcast_to(rate, (2, 3, 30))) for rate in rates]
    sounds = [rng.normal(size=30 * 40).astype("float32") * 0.1 for _ in range(4)]
    ds = AudioNeuralDataset.from_arrays(sounds, counts, 5.0, audio_fs=8000, check_alignment=False)
    return ds.smoothed(21.0) if smooth else ds


def head(seed=0):
    torch.manual_seed(seed)
    return ICNet(
        8000,
        2,
        n_filters=4,
        encoder_channels=6,
        encoder_kernel_size=8,
        bottleneck_channels=5,
        head="categorical",
        n_classes=4,
    )


def cross_entropy(model, ds, clips):
    """Mean over neurons and bins, by torch's own cross-entropy of single repeats."""
    found = []
    for clip in clips:
        counts = ds.response_block(clip).clamp(max=3).long()  # (N, R, T)
        with torch.no_grad():
            logits = model.eval().forward_params(ds.stims[clip][None])[0]  # (N, K, T)
        each = [nn.functional.cross_entropy(logits, counts[:, r], reduction="none") for r in range(3)]
        found.append(torch.stack(each).mean())
    return float(torch.stack(found).mean())


def test_a_categorical_head_is_trained_by_its_cross_entropy_in_every_kind_of_fit(tmp_path):
    ds = waveforms()
    fit = fitter(head(), ds, None, optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.0))
    assert fit.fit()[0]["val_loss"] == pytest.approx(cross_entropy(fit.model, ds, [3]), rel=1e-5)
    settings = {"max_epochs": 1, "optimizer": lambda model: torch.optim.SGD(model.parameters(), 0.0)}
    views = [ds.select(clips=clips) for clips in ([0, 1], [2], [3])]
    many = fit_multi_seed(head, lambda seed: make_loaders(*views, seed=seed), 1, fitter_kwargs=settings)
    assert float(many["per_seed_test_loss"][0]) == pytest.approx(cross_entropy(head(0), ds, [3]), rel=1e-5)
    plan = plan_folds(ds, crossval=True, n_folds=2)
    fits = fit_folds(head, ds, plan, tmp_path / "folds", n_validation=1, fitter_kwargs=settings)
    name = fits.manifest.folds[0].name
    facts = json.loads((tmp_path / "folds" / name / "metadata.json").read_text())
    possible = [cross_entropy(head(0), ds, [clip]) for clip in range(4)]  # one of them chose the epoch
    assert np.isclose(facts["history"][0]["val_loss"], possible, rtol=1e-5).any()


def test_a_categorical_head_needs_counts_as_recorded(tmp_path):
    for ds in (waveforms(smooth=True), waveforms().normalized("max"), waveforms().normalized("zscore")):
        with pytest.raises(ValueError, match=r"cross-entropy of spike counts needs .*smooth=False"):
            fitter(head(), ds, None).fit()
        with pytest.raises(ValueError, match="smooth=False"):
            fit_folds(head, ds, plan_folds(ds, crossval=True, n_folds=2), tmp_path / "folds")
    assert not (tmp_path / "folds").exists()
    ds = waveforms(smooth=True)
    assert fitter(head(), ds, mse_loss, objective="loss_fn").fit(), "what is asked for by name"


def test_an_experiment_leaves_the_loss_to_the_model_unless_one_is_named(tmp_path):
    waveforms().save(tmp_path / "w.npz")
    small = {
        "n_filters": 4,
        "encoder_channels": 6,
        "encoder_kernel_size": 8,
        "bottleneck_channels": 5,
        "head": "categorical",
    }
    config = ExperimentConfig(
        dataset=str(tmp_path / "w.npz"), model="icnet", model_options=small, split="2/1/1", epochs=1
    )
    run = run_experiment(config, tmp_path / "run", progress=False)
    assert dict(run.protocol)["Fit: loss"] == "cross-entropy of spike counts"
    with pytest.raises(ValueError, match="trained on its own loss"):
        run_experiment(config.with_changes(loss="mse"), tmp_path / "other", progress=False)
    assert not (tmp_path / "other").exists()
    plain = ExperimentConfig()
    assert plain.default_folder() == plain.with_changes(loss="mse").default_folder()
    assert not plain.differences(plain.with_changes(loss="mse"))
    assert plain.with_changes(loss="mse").command() == "deepstrf fit --loss mse"


def test_statenet_fits_counts_by_name(tmp_path):
    ds = made(spikes)
    assert fitter(StateNet(6, out_neurons=3, kernel_size=3), ds, poisson_loss).fit()
