"""Choices of an experiment: checked when made, the same from TOML, flags and Python."""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path

import pytest

from deepSTRF.experiments import ExperimentConfig
from deepSTRF.experiments.build import build_model, check_choices, load_dataset  # inner: tested by itself
from deepSTRF.experiments.config import FLAGS, parse_options, parse_seeds  # inner: tested by itself

ROOT = Path(__file__).resolve().parents[2]

FULL = ExperimentConfig(
    dataset="ns1",
    dataset_options={
        "smooth": False,
        "binning": "published",
        "path": 'C:\\data "x" é',
        "levels": [1, 2.5],
        "top": None,
    },
    split="kfold:5:fold=0",
    model_options={"temporal_window_size": 15, "kernel": {"rank": 2}},
    wav2spec="mel",
    wav2spec_options={"n_mels": 40, "f_max": 1e4},
    standardize=True,
    loss="poisson",
    epochs=7,
    patience=3,
    learning_rate=3e-4,
    weight_decay=1e-5,
    batch_size=2,
    seeds=(3, 4),
    warmup_ms=50.0,
    calibrate=False,
    device="auto",
    out="runs/x",
)


def test_toml_round_trip_keeps_every_field():
    text = FULL.to_toml()
    tomllib.loads(text)
    assert ExperimentConfig.from_toml_text(text) == FULL
    assert ExperimentConfig.from_toml_text(ExperimentConfig().to_toml()) == ExperimentConfig()
    assert ExperimentConfig.from_toml_text("") == ExperimentConfig()


def test_example_file_is_valid_and_names_exist():
    config = ExperimentConfig.from_toml(ROOT / "examples" / "linear_ns1.toml")
    check_choices(config)
    assert config.seeds == (0, 1, 2, 3, 4)


def test_documented_toml_is_valid():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    block = re.search(r"```toml\n(.*?)```", page, re.DOTALL)[1]
    check_choices(ExperimentConfig.from_toml_text(block))


def test_overrides_win_and_none_means_not_given(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("[training]\nepochs = 5\nlearning_rate = 0.01\n", encoding="utf-8")
    config = ExperimentConfig.from_toml(path, epochs=9, learning_rate=None)
    assert (config.epochs, config.learning_rate) == (9, 0.01)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[trainig]\nepochs = 1", r"'trainig' means nothing here.*Did you mean 'training'"),
        ("[training]\nepoch = 1", r"\[training\] has no key 'epoch'; legal are .*Did you mean 'epochs'"),
        ("epochs = 1", "'epochs' means nothing here"),
        ("[dataset]\noptions = 3", r"\[dataset.options\] must be a table"),
        ("training = 1", "means nothing here"),
        ("[training\n", "is no valid TOML"),
    ],
)
def test_toml_errors_name_the_key_and_the_nearest(text, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ExperimentConfig.from_toml_text(text)


def test_missing_file_says_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ExperimentConfig.from_toml(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("epochs", 0, "epochs must be a whole number of at least 1"),
        ("epochs", 2.5, "epochs must be a whole number"),
        ("epochs", True, "epochs must be a whole number"),
        ("learning_rate", 0, "learning_rate must be above 0"),
        ("learning_rate", float("nan"), "learning_rate must be a number"),
        ("weight_decay", -1, "weight_decay must be a number of at least 0"),
        ("loss", "msee", "Did you mean 'mse'"),
        ("seeds", (), "seeds must be a whole number or a list"),
        ("seeds", (0, 0), "seeds must differ"),
        ("seeds", (-1,), "a seed is a whole number in 0"),
        ("seeds", (0.5,), "a seed is a whole number"),
        ("dataset", "", "dataset must be a non-empty text"),
        ("standardize", 1, "standardize must be true or false"),
        ("dataset_options", [1], "dataset_options must map names to values"),
        ("wav2spec_options", {"n_mels": 3}, "name the front-end"),
    ],
)
def test_impossible_values_name_the_field(field, value, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ExperimentConfig(**{field: value})


def test_one_seed_may_be_a_number():
    assert ExperimentConfig(seeds=3).seeds == (3,)


def test_command_repeats_the_experiment():
    words = FULL.command().split()
    assert words[:2] == ["deepstrf", "fit"]
    assert "--standardize" in words
    assert "--no-calibrate" in words
    assert "--seeds 3,4" in FULL.command()
    assert "--lr 0.0003" in FULL.command()
    assert ExperimentConfig().command() == "deepstrf fit"
    assert set(FLAGS) == set(ExperimentConfig.__dataclass_fields__) - {"out"}


def test_folder_name_follows_the_choices():
    base = ExperimentConfig(dataset="ns1", wav2spec="mel")
    assert re.fullmatch(r"runs/ns1-linear-mel-[0-9a-f]{6}", base.default_folder())
    assert base.default_folder() == base.with_changes(epochs=3, device="cuda", out="x").default_folder()
    assert base.default_folder() != base.with_changes(learning_rate=0.1).default_folder()
    assert ExperimentConfig(dataset="/a b/mine.npz").default_folder().startswith("runs/mine-linear-")


def test_options_and_seeds_as_text():
    assert parse_options(["a=1", "b=true", "c=x/y.z", "d=[1, 2]", "e=none", "f=", "g=1e-3", "h=a=b"]) == {
        "a": 1, "b": True, "c": "x/y.z", "d": [1, 2], "e": None, "f": "", "g": 1e-3, "h": "a=b",
    }  # fmt: skip
    for bad in ("a", "=1", "1a=2"):
        with pytest.raises(ValueError, match="--dataset-option takes key=value"):
            parse_options([bad])
    assert parse_seeds("0-2,7") == (0, 1, 2, 7)
    for bad in ("", "a", "3-1", "1,,2", "-1"):
        with pytest.raises(ValueError, match="seeds must"):
            parse_seeds(bad)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (
            {"dataset": "synthetik"},
            ValueError,
            r"unknown dataset 'synthetik'.*Did you mean 'synthetic'.*ds.save",
        ),
        ({"dataset": "no.npz"}, FileNotFoundError, "no.npz does not exist"),
        ({"model": "linnear"}, ValueError, "Did you mean 'linear'"),
        ({"wav2spec": "mell"}, ValueError, "unknown front-end 'mell'"),
        ({"dataset_options": {"n_neuron": 3}}, ValueError, "Did you mean 'n_neurons'"),
        (
            {"model_options": {"window": 3}},
            ValueError,
            "model 'linear' has no option 'window'; it takes temporal",
        ),
        ({"wav2spec": "mel", "wav2spec_options": {"n_mel": 3}}, ValueError, "Did you mean 'n_mels'"),
    ],
)
def test_names_are_checked_before_anything_is_loaded(changes, error, message):
    with pytest.raises(error, match=message):
        check_choices(ExperimentConfig(**changes))


SMALL = {"n_neurons": 2, "n_clips": 4, "n_repeats": 3, "clip_seconds": 0.5}


def test_sizes_come_from_the_data_and_the_front_end():
    spectrogram = ExperimentConfig(dataset_options=SMALL, model_options={"temporal_window_size": 5})
    ds = load_dataset(spectrogram)
    model = build_model(spectrogram, ds)
    assert (model.F, model.T, model.O) == (ds.F, 5, 2)
    waveform = ExperimentConfig(dataset_options=SMALL, wav2spec="mel", standardize=True)
    ds = load_dataset(waveform)
    assert ds.return_waveform
    model = build_model(waveform, ds)
    assert model.wav2spec.audio_fs == ds.audio_fs
    assert model.F == ds.F == model.wav2spec.n_filters
    assert model.standardizer is not None
    wider = waveform.with_changes(wav2spec_options={"n_mels": 12})
    assert build_model(wider, ds).F == 12


def test_front_end_needs_waveforms_and_waveforms_need_a_front_end():
    with pytest.raises(ValueError, match="leave out return_waveform=false"):
        load_dataset(ExperimentConfig(dataset_options={**SMALL, "return_waveform": False}, wav2spec="mel"))
    config = ExperimentConfig(dataset_options={**SMALL, "return_waveform": True})
    with pytest.raises(ValueError, match="name a front-end"):
        build_model(config, load_dataset(config))


def test_own_recording_from_a_file(tmp_path):
    ds = load_dataset(ExperimentConfig(dataset_options=SMALL))
    path = tmp_path / "mine.npz"
    ds.save(path)
    again = load_dataset(ExperimentConfig(dataset=str(path)))
    assert again.N_neurons == 2
    ds.name = type(again).__name__
    ds.save(path)
    assert load_dataset(ExperimentConfig(dataset=str(path))).name == "mine"
    with pytest.raises(ValueError, match="takes no options"):
        check_choices(ExperimentConfig(dataset=str(path), dataset_options={"smooth": True}))


def test_a_dataset_file_is_a_regular_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "endless.npz").symlink_to("/dev/full")
    (tmp_path / "folder.npz").mkdir()
    for name in ("pipe.npz", "pipe", "endless.npz", "folder.npz"):
        config = ExperimentConfig(dataset=str(tmp_path / name), model="linear")
        with pytest.raises((ValueError, OSError), match=re.escape(str(tmp_path / name))):
            check_choices(config)
        with pytest.raises((ValueError, OSError), match=re.escape(str(tmp_path / name))):
            load_dataset(config)
