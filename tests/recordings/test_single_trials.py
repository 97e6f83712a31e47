"""`single_trials`: repeats as clips, their past and covariates as features."""

import numpy as np
import pytest
import torch

from deepSTRF.baselines import fit_ridge
from deepSTRF.datasets import NeuralDataset, random_split, single_trials
from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.models import ConditionalModel
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, make_loaders


def _ragged(seed: int = 0) -> AudioNeuralDataset:
    random = np.random.default_rng(seed)
    stims = [random.random((4, length)) for length in (30, 50)]
    responses = [
        [random.poisson(1.0, (3, 30)).astype(float), random.poisson(1.0, (2, 30)), None],
        [random.poisson(1.0, (2, 50)), random.poisson(1.0, (2, 50)), random.poisson(1.0, (2, 50))],
    ]
    responses[0][0][1, 4:6] = np.nan
    hertz = [100.0, 200.0, 400.0, 800.0]
    return AudioNeuralDataset.from_arrays(
        stims, responses, 5.0, frequencies_hz=hertz, stim_meta=[{"name": "a"}, {"name": "b"}],
        check_alignment=False,
    )  # fmt: skip


def test_rows_are_the_responses_one_bin_earlier():
    ds = _ragged()
    trials = single_trials(ds)
    assert trials.features == {"spectrogram": 4, "history": 3}
    assert [(row["name"], row["repeat"]) for row in trials.stim_meta] == [
        ("a", 0), ("a", 1), ("a", 2), ("b", 0), ("b", 1),
    ]  # fmt: skip
    for clip, row in enumerate(trials.stim_meta):
        source = "ab".index(row["name"])
        block = ds.response_block(source)[:, row["repeat"]].double().numpy()
        past = np.zeros_like(block)
        for n, values in enumerate(block):
            mean = np.nanmean(values) if not np.isnan(values).all() else 0.0
            past[n, 1:] = np.where(np.isnan(values), mean, values)[:-1]
        torch.testing.assert_close(trials.stims[clip][0, 4:], torch.from_numpy(past).float())
        assert torch.equal(trials.stims[clip][0, :4], ds.stims[source][0])
        found = trials.response_block(clip)[:, 0].numpy()
        np.testing.assert_array_equal(found, block.astype(np.float32))
    assert np.array_equal(trials.select(features=["spectrogram"]).frequencies_hz, ds.frequencies_hz)


def test_repeats_of_a_sound_stay_on_one_side_of_a_split():
    ds = SyntheticDataset(n_neurons=2, n_clips=6, n_repeats=3).smoothed(None)
    trials = single_trials(ds)
    parts = random_split(trials, seed=0).apply(trials)
    names = [{row["name"] for row in part.stim_meta} for part in parts]
    assert sum(len(part) for part in parts) == 18
    assert sum(len(part) for part in names) == len(set.union(*names))


def test_covariates_are_features_of_single_repeats():
    ds = _ragged()
    pupil = [np.arange(90.0).reshape(3, 30), np.arange(50.0)]
    trials = single_trials(ds, history=None, covariates={"pupil": pupil})
    assert trials.features == {"spectrogram": 4, "pupil": 1}
    assert trials.stims[1][0, 4].tolist() == pupil[0][1].tolist()
    assert trials.stims[4][0, 4].tolist() == pupil[1].tolist()


def test_history_lifts_ridge_and_models_of_neurons_with_memory():
    random = np.random.default_rng(1)
    stims = [random.standard_normal((3, 400)) for _ in range(8)]
    responses = []
    for stim in stims:
        traces = np.zeros((1, 4, 400))
        for t in range(1, 400):
            traces[0, :, t] = 0.8 * traces[0, :, t - 1] + 0.5 * stim[0, t] + 0.7 * random.standard_normal(4)
        responses.append(traces)
    trials = single_trials(NeuralDataset.from_arrays(stims, responses, 10.0, check_alignment=False))
    train, val = trials.select(clips=range(24)), trials.select(clips=range(24, 32))
    scores = {}
    for names in (["spectrogram"], ["spectrogram", "history"]):
        parts = [part.select(features=names) for part in (train, val)]
        scores[len(names)] = float(fit_ridge(*parts, n_lags=2, score="cc").scores["cc"].max())
    assert scores[2] > scores[1] + 0.1
    base = Linear(3, 2, out_neurons=1, norm="none")
    model = ConditionalModel(base, trials.features, history="history", history_frames=3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.03, weight_decay=0.0)
    fitter = Fitter(model, *make_loaders(train, val, batch_size=4, seed=0), optimizer=optimizer,
                    max_epochs=15, monitor="val_cc", progress=False, device="cpu")  # fmt: skip
    fitter.fit()
    assert fitter.best_score == pytest.approx(scores[2], abs=0.03)
    assert len(model.predict(val)) == 8


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda ds: single_trials(ds, history="all"), "repeats"),
        (lambda ds: single_trials(ds, history="yes"), "history"),
        (lambda ds: single_trials(ds.smoothed(21.0)), "smoothed"),
        (lambda ds: single_trials(ds.standardized()), "standardise"),
        (lambda ds: single_trials(ds, covariates={"pupil": [[1.0]]}), "2 clips"),
        (lambda ds: single_trials(ds, covariates={"pupil": [np.ones((2, 30)), np.ones(50)]}), r"\(3, 30\)"),
        (lambda ds: single_trials(ds, covariates={"p": [np.full(30, np.nan), np.ones(50)]}), "NaN"),
        (lambda ds: single_trials(ds, covariates={"spectrogram": [np.ones(30), np.ones(50)]}), "otherwise"),
    ],
)
def test_errors_name_what_is_wrong(make, words):
    with pytest.raises(ValueError, match=words):
        make(_ragged())
