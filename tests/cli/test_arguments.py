"""Absurd arguments end within seconds in one sentence that names them, before anything is written."""

from __future__ import annotations

import os
import signal

import pytest

from deepSTRF.cli import main
from deepSTRF.experiments import ExperimentConfig
from deepSTRF.experiments.config import parse_seeds

#: A recording of 6 clips of 0.5 s.
SMALL = (
    "-o",
    "n_neurons=3",
    "-o",
    "n_clips=6",
    "-o",
    "n_repeats=4",
    "-o",
    "clip_seconds=0.5",
    "-e",
    "1",
    "-q",
)
#: No case may run longer, in s.
PATIENCE = 60


@pytest.fixture
def refused(capsys, tmp_path, monkeypatch):
    """Call the command line; return its error, after seeing that nothing was written."""
    monkeypatch.chdir(tmp_path)

    def late(*_: object) -> None:
        raise AssertionError(f"still running after {PATIENCE} s")

    usual = signal.signal(signal.SIGALRM, late)

    def call(*words: object, there: int = 0) -> str:
        signal.alarm(PATIENCE)
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        signal.alarm(0)
        err = " ".join(capsys.readouterr().err.split())
        assert end.value.code == 2, err
        assert "Traceback" not in err
        assert "fault of deepSTRF" not in err
        assert len(err) < 1200
        assert len(list(tmp_path.iterdir())) == there
        return err

    yield call
    signal.alarm(0)
    signal.signal(signal.SIGALRM, usual)


@pytest.mark.parametrize(
    "words",
    [
        ("export", "ns1/ridge", ""),
        ("sweep", "mine.toml", "--out", ""),
        ("search", "mine.toml", "--out="),
        ("bench", "--out", ""),
        ("import", "mine.mat", "--out", ""),
        ("fit", "--out", ""),
        ("stream", "ns1/ridge", "--stdin", "--rate", "48000", "--out", ""),
        ("evaluate", "ns1/ridge", "--csv", ""),
    ],
)
def test_an_empty_word_is_not_the_current_folder(refused, words) -> None:
    refused(*words)


@pytest.mark.parametrize(
    ("flag", "value", "text"),
    [
        ("--seeds", "0-4294967295", "--seeds must be at most 1,000"),
        ("--seeds", "0-" + "9" * 5000, "--seeds must look like"),
        ("--seeds", "-1", "--seeds"),
        ("--epochs", 10**30, "--epochs must be at most 1,000,000,000, got 1e+30"),
        ("--epochs", 0, "--epochs"),
        ("--epochs", "nan", "--epochs"),
        ("--patience", 10**400, "--patience must be at most 1,000,000,000, got inf"),
        ("--batch-size", 10**12, "--batch-size must be at most"),
        ("--batch-size", "", "--batch-size"),
        ("--lr", "nan", "--lr"),
        ("--lr", "inf", "--lr"),
        ("--lr", "-1", "--lr"),
        ("--weight-decay", "1e400", "--weight-decay"),
        ("--warmup-ms", "nan", "--warmup-ms"),
        ("--warmup-ms", 1000, "--warmup-ms covers 200 bins"),
        ("--warmup-ms", 500, "has only 100"),
        ("--split", "6/0/0", "--split leaves no clip for the part validation"),
        ("--split", "5/1/0", "--split leaves no clip for the part test"),
        ("--split", "5/0/1", "--split leaves no clip for the part validation"),
        ("--split", "0/3/3", "train"),
        ("--split", "0-999999999999/1/2", "0-999999999999"),
        ("--split", "9" * 5000 + "/1/1", "999"),
        ("--split", "cut:1e-300:random", "cut:1e-300"),
        ("--split", "cut:0.0000001:random", "cut:0.0000001"),
        ("--split", "cut:999999999999:random", "cut:999999999999"),
        ("--split", "random:nan/nan/nan", "random:nan"),
        ("--split", "kfold:999999999:fold=0", "999999999"),
        ("--split", "", "--split"),
        ("--device", "nonsense", "--device"),
        ("--device", "cuda:99999999999999999999", "device"),
        ("--device", "xpu", "device"),
        ("--dataset", "x" * 5000, "unknown dataset"),
        ("--dataset", "", "--dataset"),
        ("--model", "", "--model"),
        ("--wav2spec", "", "--wav2spec"),
        ("--loss", "", "--loss"),
        ("--out", "", "--out"),
        ("--out", "a\0b", "null character"),
        ("--out", "\ud800", "lone surrogate"),
        ("--start", "nonsense", "--start"),
        ("--normalize-responses", "nan", "--normalize-responses"),
        ("--config", "", "config file"),
        ("-o", "n_neurons=1000000000000", "n_neurons"),
        ("-o", f"n_clips={10**30}", "n_clips must be at most"),
        ("-o", "n_repeats=2000000000", "n_repeats=2000000000"),
        ("-o", "clip_seconds=1e15", "GB of memory"),
        ("-o", "clip_seconds=nan", "clip_seconds must be finite"),
        ("-o", "missing_fraction=inf", "missing_fraction must be finite"),
        ("-o", "n_neurons=", "n_neurons"),
        ("-o", "=1", "--dataset-option takes key=value"),
        ("-o", "n_neurons=" + "[" * 2000, "n_neurons"),
        ("--model-option", f"temporal_window_size={10**30}", "temporal_window_size must be at most 100,000"),
        ("--model-option", "temporal_window_size=1000000", "temporal_window_size must be at most 100,000"),
        ("--model-option", "temporal_window_size=-1", "temporal_window_size"),
        ("--model-option", "output_activation=7", "output_activation=7"),
        ("--model-option", "norm=", "norm"),
        ("--wav2spec-option", "kernel_ms=100000", "kernel_ms must be at most 10,000"),
        ("--wav2spec-option", "n_filters=100000", "n_filters must be at most 10,000"),
        ("--wav2spec-option", "n_filters=-1", "n_filters=-1"),
    ],
)
def test_flags_of_fit(refused, flag, value, text):
    words = [*SMALL, "--split", "4/1/1", *(("-w", "gammatone") if flag == "--wav2spec-option" else ())]
    assert text in refused("fit", *words, f"{flag}={value}" if flag.startswith("--") else flag, *(
        () if flag.startswith("--") else (value,)
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("model", "option", "text"),
    [
        ("statenet", f"num_layers={10**30}", "num_layers must be at most"),
        ("statenet", "num_layers=100000", "num_layers must be at most"),
        ("statenet", "hidden_channels=90000", "hidden_channels=90000"),
        ("statenet", "rnn_options=7", "rnn_options=7"),
        ("transformer", "n_layers=99999", "n_layers must be at most"),
        ("transformer", "embedding_dim=100000", "embedding_dim=100000"),
        ("deep_encoder", "n_hidden=100000", "n_hidden must be at most 10,000"),
        ("nrf", "n_hidden=nan", "n_hidden must be finite"),
        ("ridge", f"n_lags={10**12}", "n_lags must be at most"),
    ],
)
def test_options_of_models(refused, model, option, text):
    memory = ("deepSTRF.experiments.build", "memory_bytes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(".".join(memory), lambda: 8e9)
        error = refused("fit", *SMALL, "--split", "4/1/1", "-m", model, "--model-option", option)
    assert text in error


def test_numbers_in_python_are_bounded_too():
    with pytest.raises(ValueError, match="seeds must be at most 1,000"):
        ExperimentConfig(seeds=range(2**32))
    assert len(parse_seeds("0-999")) == 1000
    with pytest.raises(ValueError, match="warmup_ms must be a number"):
        ExperimentConfig(warmup_ms=10**400)
    nested: list[object] = []
    nested.append(nested)
    with pytest.raises(ValueError, match="nested more than"):
        ExperimentConfig(model_options={"x": nested})
    assert ExperimentConfig(model_options={"seed": 2**40, "max_bytes": 2**40}).model_options["seed"] == 2**40


CONFIGS = {
    "empty": (b"", "is empty"),
    "blank": (b" \n\t", "is empty"),
    "UTF-16": ('[model]\nname = "linear"'.encode("utf-16"), "no UTF-8"),
    "latin-1": ('[dataset]\nname = "m\u00fc"'.encode("latin-1"), "no UTF-8"),
    "JSON": (b'{"model": {"name": "linear"}}', "no valid TOML"),
    "bytes": (b"\x00\xff" * 50, "no UTF-8"),
    "nested": (b"x = " + b"[" * 100_000, "no valid TOML"),
    "digits": (b"[training]\nepochs = " + b"9" * 5000, "no valid TOML"),
    "huge": (b"# \n" * 400_000, "bytes"),
    "nan": (b"[training]\nlearning_rate = nan", "--lr"),
    "null": (b'out = "a\\u0000b"', "null character"),
}


@pytest.mark.parametrize(("content", "text"), CONFIGS.values(), ids=list(CONFIGS))
def test_config_files(refused, tmp_path_factory, content, text):
    path = tmp_path_factory.mktemp("config") / "experiment.toml"
    path.write_bytes(content)
    error = refused("fit", "--config", path)
    assert text in error
    assert "--lr" in text or "null" in text or "experiment.toml" in error


def test_configs_that_are_no_files(refused, tmp_path_factory):
    folder = tmp_path_factory.mktemp("config")
    os.mkfifo(folder / "pipe.toml")
    (folder / "link.toml").symlink_to("/dev/zero")
    (folder / "loop.toml").symlink_to("loop.toml")
    for name in ("pipe.toml", "link.toml", "loop.toml", "none.toml", "."):
        assert str(folder / name) in refused("fit", "--config", folder / name)


def test_config_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "experiment.toml"
    path.write_bytes(b"\xef\xbb\xbf[training]\nepochs = 7\n")
    assert ExperimentConfig.from_toml(path).epochs == 7


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (("evaluate", "RUN", "--csv", "."), "is a folder"),
        (("evaluate", "RUN", "--csv", "/dev/null"), "device"),
        (("evaluate", "RUN", "--csv", "/dev/null/x"), "no folder"),
        (("evaluate", "RUN", "--clips", ""), "--clips"),
        (("evaluate", "RUN", "--seed", "-1"), "seed -1"),
        (("evaluate", "RUN", "--seed", "nan"), "--seed"),
        (("evaluate", "RUN", "-d", ""), "--dataset"),
        (("evaluate", "RUN", "-o", "n_neurons=1e9"), "n_neurons"),
        (("evaluate", ""), "run folder"),
        (("report", "RUN", "--out", "/dev/null"), "device"),
        (("report", "RUN", "--out", "."), "is a folder"),
        (("report", "/dev/null"), "no folder"),
        (("explain", "RUN", "--neurons", ""), "--neurons"),
        (("explain", "RUN", "--neurons", "9" * 5000), "no neuron"),
        (("explain", "RUN", "--neurons", ",".join("0" * 500)), "--neurons"),
        (("explain", "RUN", "--seed", str(10**30)), "was not fitted"),
        (("explain", "RUN", "--unit", "nan"), "--unit"),
    ],
)
def test_other_commands(refused, finished, words, text):
    before = {path.name: path.stat().st_mtime_ns for path in finished.path.iterdir()}
    assert text in refused(*(finished.path if word == "RUN" else word for word in words))
    assert {path.name: path.stat().st_mtime_ns for path in finished.path.iterdir()} == before
