"""Descriptions of sweeps: what the grid gives, what is refused, keys, TOML."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from deepSTRF.datasets import NeuralDataset
from deepSTRF.experiments import ExperimentConfig, Sweep
from deepSTRF.experiments.sweep_results import FitResult, SweepResults, read_result, table_text

FILE = """
name = "front-ends"
[dataset]
name = "ns1"
split = "kfold:5"
[training]
epochs = 20
[grid]
seeds = [0, 1]
fold = [0, 1, 2]
wav2spec = ["none", "mel"]
model_options.temporal_window_size = [9, 15]
[[grid.network]]
name = "linear"
model = "linear"
[[grid.network]]
model = "gatednet"
model_options.n_cores = 4
epochs = 40
[[exclude]]
network = "linear"
wav2spec = "mel"
fold = [1, 2]
"""


def keys_of(sweep: Sweep) -> dict[str, str]:
    return {fit.name: fit.key for fit in sweep.fits()}


def test_a_grid_is_every_combination_less_the_excluded_ones():
    sweep = Sweep.from_toml_text(FILE)
    assert sweep.axes["network"] == ["linear", "model=gatednet, model_options.n_cores=4, epochs=40"]
    configs = sweep.configs()
    assert len(configs) == 2 * 3 * 2 * 2 * 2 - 2 * 2 * 2
    one = configs["seeds=1, fold=2, wav2spec=none, model_options.temporal_window_size=15, network=linear"]
    assert one == ExperimentConfig(
        dataset="ns1", split="kfold:5:fold=2", epochs=20, seeds=1, model_options={"temporal_window_size": 15}
    )
    last = list(configs.values())[-1]
    assert (last.model, last.epochs, last.wav2spec) == ("gatednet", 40, "mel")
    assert last.model_options == {"n_cores": 4, "temporal_window_size": 15}


def test_a_file_comes_back_with_the_same_fits():
    sweep = Sweep.from_toml_text(FILE)
    again = Sweep.from_toml_text(sweep.to_toml())
    assert again.configs() == sweep.configs()
    assert keys_of(again) == keys_of(sweep)


def test_python_objects_and_a_configuration_as_base():
    base = ExperimentConfig(dataset="ns1", epochs=7, out="runs/one")
    sweep = Sweep(base, {"seeds": range(3), "learning_rate": (1e-3, np.float64(1e-2))})
    configs = list(sweep.configs().values())
    assert [config.seeds for config in configs[::2]] == [(0,), (1,), (2,)]
    assert {config.epochs for config in configs} == {7}
    assert {config.out for config in configs} == {None}  # each fit has a folder of its own
    assert keys_of(Sweep.from_toml_text(sweep.to_toml())) == keys_of(sweep)
    plain = Sweep({"epochs": 7}, {"model_options.temporal_window_size": [3]})
    assert keys_of(Sweep({"epochs": 7}, {"model_options.temporal_window_size": np.arange(3, 4)})) == (
        keys_of(plain)
    )


def test_several_seeds_may_be_one_fit():
    configs = Sweep({}, {"seeds": [[0, 1], [2, 3]]}).configs()
    assert {name: config.seeds for name, config in configs.items()} == {
        "seeds=0,1": (0, 1),
        "seeds=2,3": (2, 3),
    }


def test_no_grid_is_one_fit():
    assert list(Sweep(name="alone").configs()) == ["alone"]


def test_options_of_another_model_are_dropped():
    base = {"model": "linear", "model_options": {"temporal_window_size": 9}}
    configs = Sweep(base, {"model": ["linear", "ridge"]}).configs()
    assert configs["model=linear"].model_options == {"temporal_window_size": 9}
    assert configs["model=ridge"].model_options == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grid": {"models": ["linear"]}}, "'models' is no field.*Did you mean 'model'"),
        ({"grid": {"model": "linear"}}, "axis 'model' must be a list"),
        ({"grid": {"model": []}}, "axis 'model' has no values"),
        ({"grid": {"seeds": [0, 0]}}, "equal values"),
        ({"grid": {"epochs": [0]}}, "epochs must be a whole number"),
        ({"grid": {"a": [{"models": "linear"}]}}, "'models' in the axis 'a'.*Did you mean 'model'"),
        ({"grid": {"a": [{"name": "x"}, {"model": "linear"}]}}, "have the same choices"),
        ({"grid": {"fold": [0]}}, "completes a split"),
        ({"base": {"split": "kfold:5:fold=0"}, "grid": {"fold": [0]}}, "completes a split"),
        ({"base": {"split": "kfold:5"}, "grid": {"fold": [-1]}}, "at least 0"),
        ({"base": {"models": "linear"}}, "'models' is no field.*Did you mean 'model'"),
        ({"base": {"out": "here"}}, "argument of its own"),
        ({"grid": {"seeds": [0]}, "exclude": [{"seeds": 1}]}, "matches none"),
        ({"grid": {"seeds": [0]}, "exclude": [{"seeds": 0}]}, "leaves no fit"),
        ({"grid": {"seeds": [0]}, "exclude": [{"sed": 0}]}, "neither an axis nor a field"),
        ({"grid": {"seeds": range(1000), "epochs": range(1, 1000)}}, "999,000 combinations"),
        ({"name": " "}, "name"),
    ],
)
def test_what_cannot_be_meant_is_refused(arguments, message):
    with pytest.raises((ValueError, TypeError), match=f"(?s){message}"):
        Sweep(**arguments)


def test_an_error_names_the_combination():
    with pytest.raises(ValueError) as caught:
        Sweep({}, {"wav2spec_options.n_filters": [8], "wav2spec": ["mel", None]})
    assert "wav2spec=none" in caught.value.__notes__[0]


@pytest.mark.parametrize("text", ["[grid]\nseeds = 1\n", "[grids]\nseeds = [1]\n", "grid = 3\n", "=\n"])
def test_a_wrong_file_is_an_error_of_the_file(text):
    with pytest.raises((ValueError, TypeError)):
        Sweep.from_toml_text(text)


def test_keys_follow_everything_that_decides_a_result(tmp_path):
    def key(**fields):
        return Sweep(fields).fits()[0].key

    assert key() == key(device="cuda") == key(loss="mse")  # the same fit elsewhere; the default loss
    different = [
        {}, {"epochs": 3}, {"patience": 3}, {"seeds": 1}, {"model": "ridge"}, {"split": "4/1/1"},
        {"dataset_options": {"seed": 1}}, {"learning_rate": 0.01},
    ]  # fmt: skip
    assert len({key(**fields) for fields in different}) == len(different)


def test_a_key_holds_the_content_of_a_recording_in_files(tmp_path):
    path = tmp_path / "mine.npz"
    sounds = [np.random.default_rng(0).random((3, 40)) for _ in range(2)]
    keys = []
    for counts in (1.0, 2.0, 1.0):
        NeuralDataset.from_arrays(sounds, [np.full((2, 2, 40), counts)] * 2, dt_ms=5.0).save(path)
        keys.append(Sweep({"dataset": str(path)}).fits()[0].key)
    assert keys[0] == keys[2] != keys[1]


@pytest.mark.parametrize(
    "same",
    [
        [{"learning_rate": 1}, {"learning_rate": 1.0}, {"learning_rate": np.float32(1)}],
        [{"warmup_ms": 0}, {"warmup_ms": 0.0}, {}],
        [{"epochs": 3}, {"epochs": np.int64(3)}],
        [{"seeds": 2}, {"seeds": [2]}, {"seeds": np.int64(2)}],
        [{"dataset_options": {"clip_seconds": 1}}, {"dataset_options": {"clip_seconds": 1.0}}],
        [{"model": "ridge", "model_options": {"lambdas": one}} for one in ([1, 10], (1.0, 10.0))],
    ],
)
def test_a_number_is_one_choice_however_it_is_written(same):
    assert len({Sweep(fields).fits()[0].key for fields in same}) == 1


def test_whole_numbers_where_they_are_not_amounts_stay_apart():
    keys = {Sweep({"model_options": {"temporal_window_size": n}}).fits()[0].key for n in (9, 9.0, "9")}
    assert len(keys) == 3


def test_a_recording_is_known_by_its_content_wherever_it_is(tmp_path, monkeypatch):
    sounds = [np.random.default_rng(0).random((3, 40)) for _ in range(2)]
    NeuralDataset.from_arrays(sounds, [np.ones((2, 2, 40))] * 2, dt_ms=5.0).save(tmp_path / "mine.npz")
    monkeypatch.chdir(tmp_path)
    fits = [Sweep({"dataset": name}).fits()[0] for name in ("mine.npz", tmp_path / "mine.npz")]
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    fits.append(Sweep({"dataset": "../mine.npz"}).fits()[0])
    assert len({fit.key for fit in fits}) == len({fit.folder for fit in fits}) == 1
    assert Path(fits[0].config.dataset) == tmp_path / "mine.npz"  # a worker has another working folder


def test_a_key_holds_the_content_of_the_folder_of_a_named_recording(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("NS1").mkdir()
    keys = []
    for text in ("a", "b", "a"):
        Path("NS1", "spikes.txt").write_text(text, encoding="utf-8")
        keys += [
            Sweep({"dataset": "ns1", "dataset_options": {"path": path}}).fits()[0].key
            for path in ("NS1", Path("NS1").absolute())
        ]
    assert keys[0] == keys[1] == keys[4] == keys[5] != keys[2] == keys[3]


# ---- tables


def results_of(scores, grid, **changes) -> SweepResults:
    """Results of given (validation, test) scores, None for a failed fit."""
    sweep = Sweep({"split": "kfold:3"}, grid)
    fits = []
    for fit, score in zip(sweep.fits(), scores, strict=True):
        found = FitResult(fit.name, fit.choices, fit.config, "failed", "folder", error="it broke")
        if score is not None:
            both = {"validation": {"cc_norm": score[0], "cc": score[0] / 2}, "test": {"cc_norm": score[1]}}
            facts = {"seconds": 2.0, "n_neurons": 4, "recording": changes.get(fit.name, "r")}
            found = dataclasses.replace(found, status="done", scores=both, error="", **facts)
        fits.append(found)
    return SweepResults(sweep, "out", fits)


GRID = {"model": ["linear", "ridge"], "fold": [0, 1]}


def test_the_summary_is_over_seeds_and_folds():
    rows = results_of([(0.2, 0.5), (0.4, 0.7), (0.5, 0.1), (0.5, 0.3)], GRID).summary()
    assert [row["model"] for row in rows] == ["linear", "ridge"]
    assert rows[0]["validation"] == pytest.approx(0.3)
    assert rows[0]["validation sd"] == pytest.approx(np.std([0.2, 0.4], ddof=1))
    assert rows[0]["test"] == pytest.approx(0.6)
    assert (rows[0]["fits"], rows[0]["seconds"]) == (2, 4.0)
    assert "linear" in table_text(rows, ["model"])


def test_the_best_is_chosen_by_validation_only():
    results = results_of([(0.2, 0.9), (0.4, 0.9), (0.5, 0.1), (0.5, 0.1)], GRID)
    best = results.best()
    assert (best["model"], best["score"]) == ("ridge", 0.5)
    assert results.best("validation_cc")["score"] == 0.25
    for score in ("test", "test_cc", "cc"):
        with pytest.raises(ValueError, match="never by its test score"):
            results.best(score)
    assert results.best(model="linear")["model"] == "linear"
    with pytest.raises(ValueError, match="axes and labels"):
        results.best(model="dnet")


def test_a_configuration_that_lost_a_fold_is_not_the_best():
    results = results_of([(0.2, 0.2), (0.4, 0.4), (0.9, 0.9), None], GRID)
    assert results.best()["model"] == "linear"
    assert [fit.name for fit in results.failed] == ["model=ridge, fold=1"]
    assert any("lack fits" in note for note in results.notes())
    with pytest.raises(ValueError, match="no configuration has all its fits"):
        results.best(model="ridge")


def test_scores_of_two_recordings_are_not_compared():
    grid = {"dataset_options.seed": [0, 1]}
    results = results_of([(0.2, 0.2), (0.4, 0.4)], grid, **{"dataset_options.seed=1": "other"})
    with pytest.raises(ValueError, match="several recordings"):
        results.best()
    assert results.best(**{"dataset_options.seed": "0"})["score"] == 0.2


def test_a_recording_that_changed_on_the_way_is_noted():
    results = results_of([(0.2, 0.2)] * 4, GRID, **{"model=ridge, fold=1": "other"})
    assert any("has changed between fits" in note for note in results.notes())


def test_csv_and_json_hold_every_fit_without_nan():
    results = results_of([(0.2, float("nan")), None, (0.5, 0.1), (0.5, 0.3)], GRID)
    lines = results.to_csv().splitlines()
    assert len(lines) == 5
    assert lines[0].startswith("name,model,fold,status,validation,test,")
    assert "NaN" not in results.to_json()
    assert "nan" not in results.to_csv()


def test_a_folder_without_a_sweep_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"holds no sweep\.toml"):
        SweepResults.load(tmp_path)
    assert read_result(tmp_path, Sweep().fits()[0]).status == "missing"
