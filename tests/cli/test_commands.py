"""The commands as a newcomer types them: output, exit codes, errors in one paragraph."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import pytest

from deepSTRF.cli.commands import (
    print_scores,  # inner: tested by itself
    read_config,  # inner: tested by itself
)
from deepSTRF.cli.errors import UsageProblem, explain  # inner: tested by itself
from deepSTRF.experiments import ExperimentConfig

#: A recording of 3 neurons and 6 clips; the first eight words are its options.
SMALL_FLAGS = [
    *("-o", "n_neurons=3", "-o", "n_clips=6", "-o", "n_repeats=4", "-o", "clip_seconds=0.5"),
    *("--split", "4/1/1", "--epochs", "2", "--quiet"),
]


def test_help_is_quick_and_complete():
    code = (
        "import sys\n"
        "sys.argv = ['deepstrf', '--help']\n"
        "from deepSTRF.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: code = end.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'scipy', 'jinja2'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    for command in ("datasets", "models", "info", "fit", "evaluate", "report", "explain"):
        assert command in done.stdout


@pytest.mark.parametrize("command", ["datasets", "models", "info", "fit", "evaluate", "report", "explain"])
def test_every_command_has_help(deepstrf, command, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    code, out, _ = deepstrf(command, "--help")
    assert code == 0
    assert "--debug" in out
    assert "…" not in out, "help must not be cut off"


def test_help_states_the_defaults_of_the_configuration(deepstrf, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    _, out, _ = deepstrf("fit", "--help")
    default = ExperimentConfig()
    flags = {
        "--dataset ": default.dataset,
        "--model ": default.model,
        "--loss": default.loss or "the model's own, else mse",
        "--epochs": default.epochs,
        "--patience": "30, with a rate that decays all epochs",
        "--schedule": default.schedule,
        "--grad-clip": "none",
        "--weight-average": default.weight_average,
        "--band-shift": default.band_shift,
        "--lr": default.learning_rate,
        "--weight-decay": default.weight_decay,
        "--batch-size": default.batch_size,
        "--seeds": default.seeds[0],
        "--warmup-ms": default.warmup_ms,
        "--device": default.device,
    }
    for flag, value in flags.items():
        line = next(line for line in out.splitlines() if flag in line and line.startswith("│"))
        assert f"[default: {value}]" in line, line


def test_no_arguments_shows_help_and_unknown_flag_is_misuse(deepstrf):
    _, out, err = deepstrf()
    assert "Usage" in out + err
    assert deepstrf("fit", "--epoch", "3")[0] == 2
    assert deepstrf("fti")[0] == 2
    assert deepstrf("--version")[1].startswith("deepSTRF ")


def test_lists_name_everything_registered(deepstrf):
    code, out, _ = deepstrf("datasets")
    assert code == 0
    assert "synthetic" in out
    assert "ns1" in out
    assert "n_neurons=24" in out
    code, out, _ = deepstrf("models")
    assert code == 0
    for needed in ("linear", "temporal_window_size=9", "mel", "The STRF model"):
        assert needed in out


def test_fit_evaluate_report_from_end_to_end(deepstrf, tmp_path):
    code, out, err = deepstrf("fit", *SMALL_FLAGS, "--out", "run")
    assert code == 0, err
    assert err == ""
    for needed in (
        "noise-corrected correlation",
        "validation",
        "Protocol",
        "Run folder  run",
        "hash",
    ):
        assert needed in out
    page = re.search(r"Report +(\S+)", out)[1]
    assert page.endswith("run/report.html")
    assert (tmp_path / "run" / "report.html").is_file()

    code, out, _ = deepstrf("evaluate", "run", "--clips", "train", "--csv", "train.csv")
    assert code == 0
    assert "train" in out
    assert (tmp_path / "train.csv").read_text(encoding="utf-8").startswith("seed,split,neuron,")

    code, out, _ = deepstrf("report", "run", "--out", "other.html")
    assert code == 0
    assert (tmp_path / "other.html").stat().st_size > 10_000

    code, out, err = deepstrf("fit", *SMALL_FLAGS, "--out", "run", "--lr", "0.1")
    assert code == 2
    assert "holds another run (--lr: 0.001, not 0.1)" in " ".join(err.split())


def test_score_table_is_whole_on_a_narrow_terminal(finished, capsys, monkeypatch):
    monkeypatch.setattr("deepSTRF.cli.console.PIPE_WIDTH", 80)
    print_scores(finished.scores.summary(), finished.scores.seeds)
    out = capsys.readouterr().out
    for row in (row for row in finished.scores.summary() if row.metric == "cc_norm"):
        cells = [f"{row.mean:.3f}", f"{row.sd:.3f}", f"{row.median:.3f}", str(row.n), str(row.n_nan)]
        assert re.search(r"noise-corrected correlation +" + " +".join(cells).replace("-", "−"), out)


def test_progress_goes_to_stderr_and_several_seeds_have_columns(deepstrf):
    flags = [flag for flag in SMALL_FLAGS if flag != "--quiet"]
    code, out, err = deepstrf("fit", *flags, "--seeds", "0-1")
    assert code == 0, err
    assert "3 neurons, 6 clips, bins of 5 ms; 4 clips train, 1 validate, 1 test" in err
    assert "Seed 1 (2 of 2)" in err
    assert re.search(
        r"test, noise-corrected correlation: mean \S+ ± \S+ over seeds\n  seed 0 \S+  seed 1 \S+", out
    )
    assert "runs/synthetic-linear-" in out


def test_evaluate_on_another_recording(deepstrf, finished):
    words = ["evaluate", finished.path, "--dataset", "synthetic", *SMALL_FLAGS[:8], "-o", "n_clips=2"]
    code, _, err = deepstrf(*words)
    assert code == 2
    assert "all 2 clips hold sounds that took part in the fit" in err
    assert "ask for these with --clips all" in " ".join(err.split())
    code, out, err = deepstrf(*words, "--clips", "all")
    assert code == 0, err
    assert "all" in out
    assert "Note: 2 of 2 clips hold sounds that took part in the fit" in err
    assert "Note: The recording is another one than that of the fit" in err
    code, _, err = deepstrf(*words, "-o", "n_neurons=5")
    assert code == 2
    assert "2 neurons that are unknown: sim003, sim004" in " ".join(err.split())
    code, _, err = deepstrf(*words, "--clips", "train")
    assert code == 2
    assert "leave one of the two out" in " ".join(err.split())
    code, _, err = deepstrf("evaluate", finished.path, "--clips", "tests")
    assert code == 2
    assert "--clips must be one of" in err


def test_flags_win_over_the_file_option_by_option(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(
        "[dataset]\nsplit = '4/1/1'\noptions = {n_neurons = 3, n_clips = 6}\n"
        "[training]\nepochs = 50\nseeds = [1]\n",
        encoding="utf-8",
    )
    config = read_config(
        path,
        {"epochs": 1, "split": None, "dataset_options": ["n_neurons=2"], "model": None, "seeds": "0-1"},
    )
    assert (config.epochs, config.split, config.seeds) == (1, "4/1/1", (0, 1))
    assert config.dataset_options == {"n_neurons": 2, "n_clips": 6}
    with pytest.raises(UsageProblem, match="no option 'smooth'"):
        read_config(path, {"dataset_options": ["smooth=false"]})
    other = read_config(path, {"dataset": "ns1", "dataset_options": ["smooth=false"]})
    assert other.dataset_options == {"smooth": False}, "options of another dataset do not carry over"


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["fit", "-d", "synthetik"], 2, "Did you mean 'synthetic'"),
        (["fit", "-m", "linnear"], 2, "Did you mean 'linear'"),
        (["fit", "-o", "n_neuron=3"], 2, "Did you mean 'n_neurons'"),
        (["fit", "-o", "n_neurons"], 2, "takes key=value"),
        (["fit", "--epochs", "0"], 2, "Error: --epochs must be a whole number of at least 1"),
        (["fit", "--lr", "-1"], 2, "Error: --lr must be a number"),
        (["fit", "--device", "gpu", "-q"], 2, "Error: --device must be like 'cpu'"),
        (["fit", "--split", "100/1/1", "-q"], 2, "gives roles to 102 clips"),
        (["fit", "--model-option", "norm=foo", "-q"], 2, "norm must be one of"),
        (["fit", "-o", "return_waveform=true", "-q"], 2, "name a front-end (--wav2spec mel), or load"),
        (["fit", "-m", "ridge", "--loss", "poisson"], 2, "leave out --loss poisson"),
        (["fit", "--seeds", "a"], 2, "--seeds must look like"),
        (["fit", "--seeds", "3-1"], 2, "--seeds must look like"),
        (["fit", "--config", "no.toml"], 2, "no.toml does not exist"),
        (["fit", "-d", "no.npz"], 2, "no.npz does not exist"),
        (["fit", "-o", "n_clips=1", "-q"], 2, "1 different clips"),
        (["fit", "-d", "ns1", "--no-download", "-o", "path=nowhere"], 2, "(leave out --no-download)"),
        (["evaluate", "nowhere"], 2, "nowhere is no folder; deepstrf fit writes run folders"),
        (["report", "nowhere"], 2, "nowhere is no folder"),
        (["explain", "nowhere"], 2, "nowhere is no folder"),
    ],
)
def test_errors_are_one_paragraph_with_the_right_exit_code(deepstrf, words, code, message):
    got, _, err = deepstrf(*words)
    assert got == code
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    paragraph = err[err.index("Error:") :].strip()
    assert "\n\n" not in paragraph
    assert len(paragraph) < 900


def test_what_fails_on_the_way_is_no_fault_of_the_call(deepstrf, finished, tmp_path):
    code, _, err = deepstrf("fit", *SMALL_FLAGS, "--lr", "1e30", "--no-calibrate")
    assert code == 1
    assert "lower the learning rate" in err
    assert "fitter" not in err
    assert "grad_clip" not in err
    shutil.copytree(finished.path, tmp_path / "broken")
    (tmp_path / "broken" / "scores.csv").write_text("{broken", encoding="utf-8")
    for command in ("report", "evaluate", "explain"):
        code, _, err = deepstrf(command, "broken")
        assert code == 1
        assert "scores.csv is damaged" in err
    code, _, err = deepstrf("evaluate", finished.path, "--seed", "9")
    assert (code, "seed 9 was not fitted" in err) == (2, True)
    code, _, err = deepstrf("report", finished.path, "--out", ".")
    assert (code, "--out report.html" in err) == (2, True)


def test_debug_shows_the_traceback(deepstrf):
    code, _, err = deepstrf("report", "nowhere", "--debug")
    assert code == 2
    assert "Traceback" in err


def test_faults_of_ours_ask_for_a_report():
    text = " ".join(explain(AttributeError("'NoneType' object has no attribute 'x'")).split())
    assert text.startswith("Error: AttributeError: 'NoneType'")
    assert "please report it with what --debug prints" in text
    full = OSError(28, "No space left on device", "run.json")
    assert "free some space and run the same command" in " ".join(explain(full).split())
    assert explain(KeyError("no key 'area'"), debug=True) == "Error: no key 'area'"


def test_interrupt_says_how_to_go_on(deepstrf, monkeypatch):
    def interrupted(*words, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr("deepSTRF.cli.commands.run_experiment", interrupted)
    code, _, err = deepstrf("fit", "-q")
    assert code == 130
    assert "goes on where it stopped" in err


def test_explain_writes_beside_the_run_and_says_what_it_wrote(deepstrf):
    assert deepstrf("fit", *SMALL_FLAGS, "--out", "run")[0] == 0
    code, out, err = deepstrf("explain", "run", "--neurons", "sim001, 0", "--quiet")
    assert code == 0, err
    assert "Explained sim001, sim000" in out
    for name in ("tuning.csv", "nonlinearity.csv", "probes.csv", "dstrf.npz", "*.wav", "report.html"):
        assert name in out
    assert "dstrf.gif" not in out, "one filter at all times makes no movie"
    again, out, _ = deepstrf("explain", "run", "--neurons", "1,0")
    assert (again, "Explained sim001, sim000" in out) == (0, True)
    code, _, err = deepstrf("explain", "run", "--neurons", "2")
    assert code == 2
    assert "--overwrite" in err
    code, _, err = deepstrf("explain", "run", "--neurons", "0,0")
    assert (code, "--neurons must name 1 to" in err) == (2, True)
    code, _, err = deepstrf("explain", "run", "--neurons", "A1")
    assert code == 2
    assert "no neuron 'A1'" in err
