"""Neurons, bins and bands are compared wherever a fit, a score or a fold meets a recording."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from deepSTRF.baselines import fit_ridge, start_from_ridge
from deepSTRF.crossval import FoldFits, fit_folds, predict_folds, score_folds
from deepSTRF.datasets import neural_collate, plan_folds
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.experiments import ExperimentConfig, evaluate_run, run_experiment
from deepSTRF.interpret.dstrf import dstrf, dstrf_folds, jackknifed_dstrf
from deepSTRF.models.audio import Linear, LinearNonlinear, StateNet
from deepSTRF.report import explain_run
from deepSTRF.training import Fitter, fit_multi_seed, make_loaders, score_model, validate_model

BANDS, BINS, LAGS = 6, 160, 4
WEIGHTS = np.random.default_rng(9).normal(size=(4, BANDS))
NAMES = "abcd"


def recording(names=NAMES, seed=0, dt=5.0, hertz=(500.0, 8000.0), clips=4):
    """Neuron "a" always answers with the first row of weights, "b" with the second, and so on."""
    rng = np.random.default_rng(seed)
    rows = [NAMES.find(name) % 4 for name in names]
    stims = [rng.random((BANDS, BINS)) for _ in range(clips)]
    rates = [np.clip(0.8 + 0.5 * (WEIGHTS[rows] @ stim), 0, None)[:, None] for stim in stims]
    counts = [rng.poisson(rate, (len(names), 4, BINS)) for rate in rates]
    return AudioNeuralDataset.from_arrays(
        stims, counts, dt_ms=dt, nrn_meta=[{"cell_id": name} for name in names],
        frequencies_hz=np.geomspace(*hertz, BANDS), check_alignment=False,
    )  # fmt: skip


OTHERS = {
    "order": (lambda: recording("dcba", seed=3), "same neurons in another order"),
    "names": (lambda: recording("wxyz", seed=3), "unknown: w, x, y, z"),
    "fewer": (lambda: recording("ab", seed=3), "2 of the neurons"),
    "bins": (lambda: recording(seed=3, dt=10.0), "bins of 10 ms"),
    "bands": (lambda: recording(seed=3, hertz=(100.0, 20000.0)), "bands from 100 to 20000 Hz"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_training_and_validation_clips_must_agree(other):
    build, text = OTHERS[other]
    train, val = recording(), build()
    with pytest.raises(ValueError, match=f"view 1 has .*{text}"):
        make_loaders(train, val)
    with pytest.raises(ValueError, match=f"view 2 has .*{text}"):
        make_loaders(train, train, val)  # the test view as well
    loaders = [DataLoader(part, collate_fn=neural_collate) for part in (train, val)]
    with pytest.raises(ValueError, match=f"val_loader has .*{text}"):
        Fitter(Linear(BANDS, LAGS, 4), *loaders)
    with pytest.raises(ValueError, match=f"val_loader has .*{text}"):
        Fitter(Linear(BANDS, LAGS, 4), loaders[0], DataLoader(Subset(val, [0]), collate_fn=neural_collate))
    with pytest.raises(ValueError, match="validation"):
        fit_ridge(train, val, n_lags=LAGS)


class Plain(nn.Module):
    """A model of a user's own, which knows nothing of recordings."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(BANDS, 4, 1)

    def forward(self, x):
        return self.conv(x[:, 0]).unsqueeze(2)


@pytest.mark.parametrize(
    "model", [Plain, lambda: Linear(BANDS, LAGS, 4), lambda: StateNet(BANDS, out_neurons=4, kernel_size=4)]
)
def test_a_fit_tells_the_model_what_it_was_fitted_on(model):
    ds, model = recording(), model()
    train, val = ds.select(clips=[0, 1]), ds.select(clips=[3])
    fitter = Fitter(model, *make_loaders(train, val), max_epochs=1, progress=False)
    fitter.fit()
    assert model.fitted_on.neurons == tuple(NAMES)
    assert model.fitted_on.sounds == tuple(ds.source_fingerprint(clip) for clip in (0, 1))
    assert model.fitted_on.validation_sounds == (ds.source_fingerprint(3),)
    right = score_model(model, ds, n_bootstrap=0)
    turned = score_model(model, ds.select(neurons=[2, 0, 3]), n_bootstrap=0)
    assert turned.neurons == ("c", "a", "d")
    for name in ("cc", "cc_norm", "mse"):
        np.testing.assert_allclose(turned[name], right[name][[2, 0, 3]], rtol=1e-9)
    for build, text in (OTHERS["names"], OTHERS["bins"], OTHERS["bands"]):
        with pytest.raises(ValueError, match=text):
            score_model(model, build(), n_bootstrap=0)
    with pytest.raises(ValueError, match="the loader has the same neurons in another order"):
        fitter.evaluate(make_loaders(recording("dcba"))[0])


def test_a_fit_of_a_subset_of_clips_holds_those_sounds():
    ds, model = recording(), Linear(BANDS, LAGS, 4)
    nested = Subset(Subset(ds, [3, 1, 0]), [0, 2])
    loaders = [DataLoader(part, collate_fn=neural_collate) for part in (nested, Subset(ds, [2]))]
    Fitter(model, *loaders, max_epochs=1, progress=False).fit()
    assert model.fitted_on.sounds == (ds.source_fingerprint(3), ds.source_fingerprint(0))
    assert model.fitted_on.validation_sounds == (ds.source_fingerprint(2),)


def test_a_fit_of_a_fitted_model_meets_its_own_neurons():
    model = Linear(BANDS, LAGS, 4)
    Fitter(model, *make_loaders(recording(), recording(seed=1)), max_epochs=1, progress=False).fit()
    other = make_loaders(recording("dcba"), recording("dcba", seed=1))
    with pytest.raises(ValueError, match="the training data has the same neurons in another order"):
        Fitter(model, *other, max_epochs=1, progress=False).fit()
    model.fitted_on = None
    Fitter(model, *other, max_epochs=1, progress=False).fit()
    assert model.fitted_on.neurons == tuple("dcba")


def test_a_loader_of_other_data_is_left_alone():
    class Items(torch.utils.data.Dataset):
        def __len__(self):
            return 2

        def __getitem__(self, index):
            return recording()[index]

    model = Linear(BANDS, LAGS, 4)
    loaders = [DataLoader(Items(), collate_fn=neural_collate) for _ in range(2)]
    Fitter(model, *loaders, max_epochs=1, progress=False).fit()
    assert model.fitted_on is None


def test_ridge_and_warm_starts_know_their_recording():
    ds, val = recording(), recording(seed=1)
    fit = fit_ridge(ds, val, n_lags=LAGS)
    assert fit.model.fitted_on.neurons == tuple(NAMES)
    turned = fit.model.predict(recording("dcba", seed=1))
    for mine, theirs in zip(turned, fit.model.predict(val), strict=True):
        assert torch.equal(mine, theirs[[3, 2, 1, 0]])
    model = start_from_ridge(LinearNonlinear(BANDS, LAGS, 4), fit, ds)
    assert model.fitted_on == fit.model.fitted_on
    with pytest.raises(ValueError, match="train has the same neurons in another order"):
        start_from_ridge(Linear(BANDS, LAGS, 4), fit, recording("dcba"))


def test_validate_model_takes_some_of_the_neurons_of_a_fitted_model():
    model = fit_ridge(recording(), recording(seed=1), n_lags=LAGS).model
    assert validate_model(model, recording("ca", seed=2)).passed
    with pytest.raises(ValueError, match="unknown"):
        validate_model(model, recording("xa", seed=2))


def test_every_seed_meets_the_same_neurons():
    ds, val, test = recording(), recording(seed=1), recording("dcba", seed=2)
    with pytest.raises(ValueError, match="view 2 has the same neurons in another order"):
        fit_multi_seed(
            lambda seed: Linear(BANDS, LAGS, 4),
            lambda seed: make_loaders(ds, val, test, seed=seed),
            n_seeds=1,
        )

    def by_hand(seed):
        return [DataLoader(part, collate_fn=neural_collate) for part in (ds, val, test)]

    with pytest.raises(ValueError, match="the loader has the same neurons in another order"):
        fit_multi_seed(
            lambda seed: Linear(BANDS, LAGS, 4), by_hand, n_seeds=1, fitter_kwargs={"max_epochs": 1}
        )


@pytest.fixture(scope="module")
def folds(tmp_path_factory):
    ds, folder = recording(clips=3), tmp_path_factory.mktemp("folds")
    fits = fit_folds(
        lambda seed: Linear(BANDS, LAGS, 4), ds, plan_folds(ds, crossval=True), folder,
        fitter_kwargs={"max_epochs": 2}, progress=False,
    )  # fmt: skip
    return ds, fits


def test_folds_predict_and_score_by_name(folds, tmp_path):
    ds, fits = folds
    view = ds.select(neurons=[3, 1])
    for mine, every in zip(predict_folds(fits, view), predict_folds(fits, ds), strict=True):
        assert torch.equal(mine, every[[3, 1]])
    right, turned = (score_folds(fits, one, n_bootstrap=0) for one in (ds, view))
    assert turned.neurons == ("d", "b")
    np.testing.assert_allclose(turned["cc"], right["cc"][[3, 1]], rtol=1e-9)
    with pytest.raises(ValueError, match="responses in 'fraction of maximum'"):
        score_folds(fits, ds.normalized("max"), n_bootstrap=0)
    renamed = ds.select()
    renamed.nrn_meta = [{"cell_id": name} for name in "wxyz"]
    for call in (
        lambda: predict_folds(FoldFits(fits.folder), renamed),
        lambda: dstrf_folds(FoldFits(fits.folder), renamed, tmp_path / "no"),
    ):
        with pytest.raises(ValueError, match="unknown: w, x, y, z"):
            call()
    every, some = (np.load(dstrf_folds(fits, one, tmp_path / str(k), clips=[0])[0]) for k, one in
                   enumerate((ds, view)))  # fmt: skip
    np.testing.assert_array_equal(some, every[:, [3, 1]])
    (one,) = dstrf_folds(fits, view, tmp_path / "1", clips=[0], neurons=[1])
    np.testing.assert_array_equal(np.load(one), every[:, [1]])


def test_an_average_of_fits_joins_equal_neurons():
    ds = recording()
    one, other = (fit_ridge(part, n_lags=LAGS, lambdas=10.0).model for part in (ds, recording("dcba")))
    with pytest.raises(ValueError, match="different neurons, or in another order"):
        jackknifed_dstrf([one, other], ds.stims[0])
    assert dstrf(one, ds.stims[0]).weights.shape[1] == 4


# ---- runs


@pytest.fixture(scope="module", params=["ridge", "linear"])
def run(request, tmp_path_factory):
    folder: Path = tmp_path_factory.mktemp(request.param)
    recording(clips=8).save(folder / "train.npz")
    options = {"n_lags": LAGS} if request.param == "ridge" else {"temporal_window_size": LAGS}
    config = ExperimentConfig(
        dataset=str(folder / "train.npz"), model=request.param, model_options=options, epochs=2
    )
    return run_experiment(config, folder / "run", progress=False)


def test_evaluate_pairs_neurons_by_name(run):
    new = recording(seed=5)
    right = evaluate_run(run, new)
    turned = evaluate_run(run, new.select(neurons=[3, 2, 0]))
    assert turned.neurons == ["d", "c", "a"]
    for name in ("cc", "cc_norm", "fve"):
        np.testing.assert_allclose(
            turned.values["all"][name], right.values["all"][name][:, [3, 2, 0]], rtol=1e-9
        )
    for build, text in (OTHERS["names"], OTHERS["bins"], OTHERS["bands"]):
        with pytest.raises(ValueError, match=text):
            evaluate_run(run, build())


def test_evaluate_leaves_out_the_sounds_of_the_fit(run):
    own = recording(clips=8)  # the very recording of the run, as a copy
    fitted = run.load_model().fitted_on
    used = {*fitted.sounds, *fitted.validation_sounds}
    free = [clip for clip in range(len(own)) if own.source_fingerprint(clip) not in used]
    assert 0 < len(free) < len(own)
    with pytest.warns(UserWarning, match=f"{8 - len(free)} of 8 clips hold sounds that took part"):
        found = evaluate_run(run, own)
    np.testing.assert_allclose(found.values["all"]["cc"], evaluate_run(run).values["test"]["cc"], rtol=1e-9)
    told = []
    evaluate_run(run, own, log=told.append)
    assert len(told) == 1
    assert "left out" in told[0]
    seen = own.select(clips=[c for c in range(8) if c not in free])
    with pytest.raises(ValueError, match=r"all \d clips hold sounds that took part in the fit.*clips='all'"):
        evaluate_run(run, seen)
    assert len(evaluate_run(run, seen, clips="all").neurons) == 4  # on request
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for clips in ("train", "validation", "test", "all"):  # of its own recording on request
            assert list(evaluate_run(run, clips=clips).values) == [clips]


def test_evaluate_of_an_earlier_run_counts_neurons(run, monkeypatch):
    model = run.load_model()
    model.fitted_on = None
    monkeypatch.setattr(type(run), "load_model", lambda self, seed=None: model)
    with pytest.raises(ValueError, match="has 3 neurons, and the run has 4 neurons"):
        evaluate_run(run, recording("abc", seed=5))


def test_explain_follows_a_file_in_another_order(run, tmp_path):
    before = explain_run(run, ["a", "c"], progress=False)
    turned = recording(clips=8).select(neurons=[2, 3, 1, 0])
    turned.save(tmp_path / "turned.npz")
    other = replace(run.with_config(replace(run.config, dataset=str(tmp_path / "turned.npz"))))
    after = explain_run(other, ["a", "c"], overwrite=True, progress=False)
    assert [title for title, _ in after.skipped] == [title for title, _ in before.skipped]
    for name in ("dstrf",):
        one, two = before.arrays[name], after.arrays[name]
        for key in one:
            np.testing.assert_array_equal(one[key], two[key])
