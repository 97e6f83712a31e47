"""The options of a fit and the choices that a model recommends, from the command line to the run folder."""

from __future__ import annotations

import pytest
import torch

from deepSTRF.cli.commands import read_config  # inner: what the command reads, without a fit
from deepSTRF.cli.errors import UsageProblem
from deepSTRF.experiments import ExperimentConfig, Run, run_experiment
from deepSTRF.models.audio import Linear
from deepSTRF.training import Callback, WeightAveraging

SMALL = {"n_neurons": 3, "n_clips": 6, "n_repeats": 4, "clip_seconds": 0.5}
OPTIONS = {"schedule": "wsd", "grad_clip": 0.5, "weight_average": 0.9, "band_shift": 1}
ADVISED = {"learning_rate": 0.02, "epochs": 4, **OPTIONS}


@pytest.fixture
def advice(monkeypatch):
    monkeypatch.setattr(Linear, "recommended", ADVISED)


def small(**choices):
    return ExperimentConfig(dataset_options=SMALL, split="4/1/1", **choices)


def test_options_at_their_default_keep_folders_and_runs_of_before():
    # names of folders as this package has made them before there were these options
    assert ExperimentConfig().default_folder() == FOLDER_OF_BEFORE
    assert ExperimentConfig().differences(small()).keys() == {"dataset_options", "split"}
    for name, value in OPTIONS.items():
        assert ExperimentConfig(**{name: value}).default_folder() != FOLDER_OF_BEFORE
    wsd = [ExperimentConfig(schedule="wsd", epochs=epochs).default_folder() for epochs in (50, 60)]
    assert wsd[0] != wsd[1], "the epochs decide the rate of every step"
    assert ExperimentConfig(epochs=50).default_folder() == FOLDER_OF_BEFORE


FOLDER_OF_BEFORE = "runs/synthetic-linear-f06944"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"schedule": "onecycle"}, "schedule must be one of constant, cosine, wsd, got 'onecycle'"),
        ({"grad_clip": 0}, "grad_clip must be above 0"),
        ({"weight_average": 1.0}, "weight_average must be below 1"),
        ({"band_shift": -1}, "band_shift must be a whole number of bands"),
        ({"band_shift": 1.5}, "band_shift must be a whole number of bands"),
        ({"patience": 0}, "patience must be a whole number of at least 1"),
    ],
)
def test_an_impossible_option_is_refused(wrong, text):
    with pytest.raises(ValueError, match=text):
        ExperimentConfig(**wrong)


def test_numbers_that_may_be_left_out_are_numbers_on_the_command_line(deepstrf):
    code, _, err = deepstrf("fit", "--patience", "many")
    assert (code, "'--patience'" in err, "integer" in err) == (2, True, True), err
    code, _, err = deepstrf("fit", "--grad-clip", "much")
    assert (code, "'--grad-clip'" in err) == (2, True), err


def test_a_run_with_all_options_is_the_fit_of_its_settings(deepstrf, tmp_path):
    flags = [word for key, value in SMALL.items() for word in ("-o", f"{key}={value}")]
    words = ["--lr", "0.02", "--epochs", "4", "--schedule", "wsd", "--grad-clip", "0.5",
             "--weight-average", "0.9", "--band-shift", "1"]  # fmt: skip
    code, _, err = deepstrf("fit", *flags, "--split", "4/1/1", *words, "--out", "run", "--quiet")
    assert code == 0, err
    run = Run.load(tmp_path / "run")
    assert run.config == small(**ADVISED)
    assert deepstrf(*run.config.command().split()[1:], "--out", "run")[0] == 0, "the same run is read"
    card = dict(run.protocol)
    assert card["Fit: schedule"] == "wsd over 4 epochs"
    assert card["Fit: grad clip"] == "gradients clipped at a norm of 0.5"
    assert card["Fit: weight average"] == "of all steps, decay 0.9"
    assert card["Fit: band shift"] == "training clips by up to 1 band(s) at random"
    assert card["Fit: stopped by"] == "best validation cc_norm, patience 4, at most 4"
    # the same fit in Python
    again = run_experiment(small(**ADVISED), tmp_path / "again", progress=False)
    plain = run_experiment(small(learning_rate=0.02, epochs=4), tmp_path / "plain", progress=False)
    states = [one.load_model(0).state_dict() for one in (run, again, plain)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    assert not all(torch.equal(value, states[2][name]) for name, value in states[0].items())
    assert not {"Fit: schedule", "Fit: grad clip", "Fit: weight average", "Fit: band shift"} & {
        label for label, _ in plain.protocol
    }
    assert dict(plain.protocol)["Fit: stopped by"] == "best validation cc_norm, patience 30, at most 4"


def test_a_finished_run_of_before_stated_its_patience(tmp_path):
    """Runs of before wrote ``patience = 30`` where nothing was chosen."""
    config = small(epochs=2)
    run_experiment(small(epochs=2, patience=30), tmp_path / "run", progress=False)
    assert run_experiment(config, tmp_path / "run", progress=False).config.patience == 30
    with pytest.raises(FileExistsError, match="epochs/patience: 2/30, not 2/7"):
        run_experiment(small(epochs=2, patience=7), tmp_path / "run", progress=False)


def test_an_average_as_a_callback_of_the_users_own_is_remembered(tmp_path):
    def own(seed):
        return [WeightAveraging(0.9), Callback()]

    run = run_experiment(small(epochs=2), tmp_path / "run", progress=False, callbacks=own)
    assert run.facts["callbacks"] == ["WeightAveraging", "Callback"]
    again = run_experiment(small(epochs=2), tmp_path / "run", progress=False, callbacks=own)
    assert again.facts["finished"] == run.facts["finished"]


@pytest.mark.usefixtures("advice")
def test_recommended_choices_fill_what_is_not_given():
    config = ExperimentConfig.recommended("linear", epochs=9, grad_clip=None)
    assert config == ExperimentConfig(model="linear", **{**ADVISED, "epochs": 9, "grad_clip": None})
    assert ExperimentConfig.from_toml_text(config.to_toml()) == config


@pytest.mark.usefixtures("advice")
def test_flags_win_over_the_file_and_the_file_over_recommendations(tmp_path):
    path = tmp_path / "choices.toml"
    path.write_text('[training]\nepochs = 100\nschedule = "constant"\nlearning_rate = 0.5\n')
    config = read_config(path, {"learning_rate": 0.1, "epochs": None}, recommended=True)
    assert (config.epochs, config.schedule) == (100, "constant"), "given, though they are the defaults"
    assert (config.learning_rate, config.weight_average, config.band_shift) == (0.1, 0.9, 1)
    assert read_config(path, {}).weight_average == 0.0
    assert read_config(None, {}, recommended=True) == ExperimentConfig(**ADVISED)


@pytest.mark.usefixtures("advice")
def test_fit_recommended_writes_all_choices(deepstrf, tmp_path):
    flags = [word for key, value in SMALL.items() for word in ("-o", f"{key}={value}")]
    words = ["fit", *flags, "--split", "4/1/1", "--recommended", "--epochs", "2", "--out", "run", "-q"]
    code, _, err = deepstrf(*words)
    assert code == 0, err
    run = Run.load(tmp_path / "run")
    assert run.config == small(**{**ADVISED, "epochs": 2})
    assert "--recommended" not in run.config.command()
    assert "--recommended: learning_rate=0.02" in deepstrf("models")[1].replace("\n", " ")


@pytest.mark.usefixtures("advice")
@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("nrf", r"model='nrf' has none; models that have them: .*linear"),
        ("ridge", r"model='ridge' is solved without epochs.*linear"),
        ("statenett", r"unknown .*'statenett'.*Did you mean 'statenet'"),
    ],
)
def test_a_model_without_recommendations_names_those_with(model, text):
    with pytest.raises(ValueError, match=text):
        ExperimentConfig.recommended(model)
    with pytest.raises(UsageProblem):
        read_config(None, {"model": model}, recommended=True)


def test_band_shifts_are_refused_for_waveforms_before_the_run_takes_its_folder(deepstrf, tmp_path):
    words = ["fit", "-o", "n_neurons=3", "-o", "n_clips=6", "-o", "clip_seconds=0.5", "--split", "4/1/1",
             "--epochs", "1", "--band-shift", "1", "--out", "run", "-q"]  # fmt: skip
    code, _, err = deepstrf(*words, "-w", "leaf")
    assert code == 2, err
    assert "--band-shift shifts spectrograms" in " ".join(err.split())
    assert not (tmp_path / "run").exists()
    assert deepstrf(*words, "-w", "mel")[0] == 0, "a fixed front-end has spectrograms"
