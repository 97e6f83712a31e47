"""What a model was fitted on: kept with the model, and compared wherever a dataset meets it."""

from __future__ import annotations

import copy
import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from deepSTRF._files import replace_folder  # inner: writes what a checkpoint of another version holds
from deepSTRF.datasets import concat_neural_datasets
from deepSTRF.datasets.audio import AudioNeuralDataset
from deepSTRF.models import FittedOn, NeuralModel
from deepSTRF.models.audio import Linear
from deepSTRF.models.fitted_on import check_views, matching_outputs, remember_fit
from deepSTRF.models.wav2spec import make_wav2spec

BANDS, BINS = 6, 80


def recording(names="abcd", seed=0, dt=5.0, hertz=(500.0, 8000.0), bands=BANDS, **options):
    """Two clips of noise; ``names=None`` leaves the names to from_arrays, a number gives how many."""
    rng = np.random.default_rng(seed)
    n = names if isinstance(names, int) else len(names)
    meta = None if isinstance(names, int) else [{"cell_id": name} for name in names]
    stims = [rng.random((bands, BINS)) for _ in range(2)]
    counts = [rng.poisson(0.5, (n, 3, BINS)) for _ in range(2)]
    return AudioNeuralDataset.from_arrays(
        stims, counts, dt_ms=dt, nrn_meta=meta, frequencies_hz=np.geomspace(*hertz, bands),
        check_alignment=False, **options,
    )  # fmt: skip


def sounds(fs=1600, dt=5.0, n=3, names="abc"):
    rng = np.random.default_rng(1)
    hop = round(fs * dt / 1000)
    return AudioNeuralDataset.from_arrays(
        [0.1 * rng.standard_normal(hop * 40) for _ in range(2)],
        [rng.poisson(0.5, (n, 3, 40)) for _ in range(2)],
        dt_ms=dt, audio_fs=fs, nrn_meta=[{"cell_id": name} for name in names], check_alignment=False,
    )  # fmt: skip


def fitted_model(dataset, **options):
    model = Linear(BANDS, 5, dataset.N_neurons, **options).eval()
    remember_fit(model, dataset)
    return model


def test_it_holds_what_the_recording_states():
    ds = recording("abcd", dt=4.0)
    fitted = FittedOn.of(ds.select(clips=[1]), ds.select(clips=[0]))
    assert fitted.neurons == tuple("abcd")
    assert (fitted.dt_ms, fitted.n_bands, fitted.audio_fs, fitted.hop) == (4.0, BANDS, None, None)
    assert fitted.frequencies_hz == pytest.approx(np.geomspace(500, 8000, BANDS))
    assert fitted.sounds == (ds.source_fingerprint(1),)
    assert fitted.validation_sounds == (ds.source_fingerprint(0),)
    heard = FittedOn.of(sounds())
    assert (heard.audio_fs, heard.hop, heard.n_bands) == (1600.0, 8, None)


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1], [2, 0], [0, 1, 2, 3], [1, 3, 2]])
def test_predictions_come_in_the_order_of_the_dataset(order):
    ds = recording("abcd")
    model = fitted_model(ds)
    view = ds.select(neurons=order)
    assert model.fitted_on.match(view) == order
    for ours, every in zip(model.predict(view), model.predict(ds), strict=True):
        assert torch.equal(ours, every[order])
    other = recording("".join("abcd"[i] for i in order), seed=3)  # another recording of the same neurons
    assert model.fitted_on.match(other) == order
    with torch.no_grad():
        raw = model(other.stims[0][None])[0, :, 0]
    assert torch.equal(model.predict(other)[0], raw[order])


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (
            lambda: recording("wxyz"),
            r"4 neurons that are unknown: w, x, y, z \(the model was fitted on a, b, c, d\)",
        ),
        (lambda: recording("abx"), r"1 neurons that are unknown: x .*dataset.select\(neurons=\[0, 1\]\)"),
        (lambda: recording("abba"), "a, b stands for several neurons"),
        (lambda: recording("abcd", dt=10.0), r"bins of 10 ms \(the model was fitted on bins of 5 ms\)"),
        (lambda: recording("abcd", dt=5.0 * (1 + 1e-8)), "bins of 5.00000005 ms"),
        (lambda: recording("abcd", hertz=(100.0, 20000.0)), "bands from 100 to 20000 Hz"),
        (lambda: recording("abcd", bands=7), r"7 bands \(the model was fitted on 6 bands\)"),
        (lambda: recording("abcd").standardized(), "standardised by the dataset: True"),
    ],
)
def test_other_recordings_are_refused(other, text):
    model = fitted_model(recording("abcd"))
    other = other()
    for call in (lambda: model.predict(other), lambda: model.fitted_on.match(other)):
        with pytest.raises(ValueError, match=text) as caught:
            call()
        assert "model.fitted_on = None" in str(caught.value)
    model.fitted_on = None  # and then nothing is compared
    if other.F == BANDS:
        assert len(model.predict(other)) == 2


def test_rounding_of_rates_and_bins_is_no_difference():
    model = fitted_model(recording("abcd"))
    noisy = recording("abcd", dt=5.0 * (1 + 1e-12))
    assert len(model.predict(noisy)) == 2
    single = np.geomspace(500, 8000, BANDS).astype(np.float32)
    known = recording("abcd")
    known.frequencies_hz = single
    assert len(model.predict(known)) == 2
    known.frequencies_hz = None  # unknown is not compared
    assert len(model.predict(known)) == 2


def test_sample_rates_are_compared():
    ds = sounds(1600)
    model = Linear(BANDS, 3, 3, wav2spec=make_wav2spec("mel", 1600, 5.0, n_filters=BANDS, f_min=50.0)).eval()
    remember_fit(model, ds)
    assert len(model.predict(ds)) == 2
    with pytest.raises(ValueError, match=r"sounds at 3200 Hz.*bins of 16 samples"):
        model.predict(sounds(3200))


def test_names_that_from_arrays_made_are_names():
    model = fitted_model(recording(4))
    assert len(model.predict(recording(4, seed=2))) == 2
    assert model.fitted_on.match(recording(4, seed=2).select(neurons=[2, 1])) == [2, 1]
    with pytest.raises(ValueError, match=r"3 neurons without names .* 4 without names"):
        model.predict(recording(3))


def test_one_side_without_names_is_taken_by_place():
    named, unnamed = recording("abcd"), recording(4, seed=2)
    model = fitted_model(named)
    with pytest.warns(UserWarning, match="taken in their order: the first of them for a"):
        assert model.fitted_on.match(unnamed) == [0, 1, 2, 3]
    with pytest.warns(UserWarning, match="taken in their order: the first of them for d"):
        assert model.fitted_on.match(unnamed.select(neurons=[3, 0, 1, 2])) == [3, 0, 1, 2]
    nameless = fitted_model(unnamed)  # whose recording said nothing that could be compared
    assert nameless.fitted_on.match(named) == [0, 1, 2, 3]
    assert nameless.fitted_on.match(named.select(neurons=[3, 0, 1, 2])) == [3, 0, 1, 2]
    for one, other in ((model, unnamed), (nameless, named)):
        with pytest.raises(ValueError, match="no names to match"):
            one.predict(other.select(neurons=[0, 1]))
    with pytest.raises(ValueError, match="no names to match"):
        fitted_model(named).predict(recording(5))


def test_metadata_without_names_count_by_place():
    ds = recording(3)
    for meta in ({"area": "A1"}, {"cell_id": None}):
        ds.nrn_meta = [dict(meta) for _ in range(3)]
        model = fitted_model(ds)
        assert model.fitted_on.match(ds.select(neurons=[2, 0])) == [2, 0]


@pytest.mark.parametrize("ids", [[7, 8, 9], np.array([7, 8, 9]), ["7", "8", "9"]])
@pytest.mark.parametrize("key", ["cell_id", "name"])
def test_names_of_any_kind(ids, key):
    model = fitted_model(recording("789"))
    other = recording(3, seed=2)
    other.nrn_meta = [{key: ids[k]} for k in (2, 0, 1)]
    assert model.fitted_on.match(other) == [2, 0, 1]


def test_equal_names_stand_in_their_order():
    ds = recording("aab")  # a recording whose names are not unique still fits, and predicts in that order
    model = fitted_model(ds)
    assert model.fitted_on.match(ds) == [0, 1, 2]
    assert model.fitted_on.match(ds.select(neurons=[2])) == [2]
    with pytest.raises(ValueError, match="a stands for several"):
        model.predict(ds.select(neurons=[0]))


def test_joined_recordings_tell_equal_names_apart():
    one, two = recording("ab", seed=1), recording("ab", seed=2)
    both = concat_neural_datasets([one, two], names=["left", "right"])
    model = fitted_model(both)
    assert model.fitted_on.neurons == ("left/a", "left/b", "right/a", "right/b")
    assert model.fitted_on.match(both.select(neurons=[3, 0])) == [3, 0]
    assert model.fitted_on.match(both.select(neurons={"dataset": "right"})) == [2, 3]


def rewrite(folder, config):
    """Write a checkpoint with another configuration."""
    held = {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "manifest.json"}
    held["config.json"] = json.dumps(config).encode()
    replace_folder(folder, held.items(), "checkpoint")


def test_a_checkpoint_holds_it(tmp_path):
    model = fitted_model(recording("abcd"))
    loaded = NeuralModel.from_pretrained(model.save_pretrained(tmp_path / "m"))
    assert loaded.fitted_on == model.fitted_on
    with pytest.raises(ValueError, match="unknown"):
        loaded.predict(recording("wxyz"))
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["_fitted_on"]["later"] = 3  # of a later version
    rewrite(tmp_path / "m", config)
    assert NeuralModel.from_pretrained(tmp_path / "m").fitted_on == model.fitted_on
    del config["_fitted_on"]  # of an earlier version
    rewrite(tmp_path / "m", config)
    old = NeuralModel.from_pretrained(tmp_path / "m")
    assert old.fitted_on is None
    assert len(old.predict(recording("wxyz"))) == 2


def test_copies_hold_it_and_other_models_do_not():
    model = fitted_model(recording("abcd"))
    assert copy.deepcopy(model).fitted_on == model.fitted_on
    assert Linear(BANDS, 5, 4).fitted_on is None


def test_a_second_fit_compares_before_it_forgets():
    ds = recording("abcd")
    model = fitted_model(ds)
    with pytest.raises(ValueError, match=r"same neurons in another order .*select\(neurons=\[3, 2, 1, 0\]\)"):
        remember_fit(model, recording("dcba"))
    with pytest.raises(ValueError, match="fitted before on bins of 5 ms"):
        remember_fit(model, recording("abcd", dt=2.0))
    assert model.fitted_on == FittedOn.of(ds)
    model.fitted_on = None
    remember_fit(model, recording("dcba", dt=2.0))
    assert model.fitted_on.neurons == tuple("dcba")


def test_views_of_one_fit_must_agree():
    train = recording("abc")
    check_views((train, recording("abc", seed=4)), ("train", "val"))
    for other, text in (
        (recording("cba"), r"val has the same neurons in another order than train has \(a, b, c\)"),
        (recording("ab"), "val has 2 of the neurons"),
        (recording("xyz"), "val has 3 neurons that are unknown"),
        (recording("abc", dt=2.0), "val has bins of 2 ms"),
        (recording("abc", hertz=(50.0, 900.0)), "val has bands from 50 to 900 Hz"),
    ):
        with pytest.raises(ValueError, match=text):
            check_views((train, other), ("train", "val"))


def test_units_are_compared_where_responses_count():
    ds, other = recording("abc"), recording("abc", seed=2)
    ds.response_unit, other.response_unit = "spikes per bin", "uV"
    model = fitted_model(ds)
    assert len(model.predict(other)) == 2  # a prediction needs no responses
    with pytest.raises(ValueError, match="responses in 'uV'"):
        model.fitted_on.check_unit(other, "the dataset", "the fit")
    with pytest.raises(ValueError, match="responses in 'uV'"):
        check_views((ds, other), ("train", "val"))


def test_levels_of_sounds_are_compared():
    ds, other = sounds(), sounds()
    ds.level, other.level = "pascal", "raw"
    model = SimpleNamespace(fitted_on=FittedOn.of(ds))
    with pytest.raises(ValueError, match="sounds of level 'raw'"):
        matching_outputs(model, other)


def test_what_another_population_or_front_end_makes_void():
    fitted = FittedOn.of(recording("abc"))
    assert fitted.without_neurons() == dataclasses.replace(
        fitted, neurons=(), response_unit=None, response_kind=None
    )
    bare = fitted.without_stimuli()
    assert (bare.n_bands, bare.frequencies_hz, bare.neurons, bare.dt_ms) == (None, None, ("a", "b", "c"), 5.0)
