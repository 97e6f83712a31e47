"""One small finished run, and the command line, shared by the tests of this folder."""

from __future__ import annotations

import pytest

from deepSTRF.cli import main
from deepSTRF.experiments import ExperimentConfig, Run, run_experiment

SMALL = {"n_neurons": 3, "n_clips": 6, "n_repeats": 4, "clip_seconds": 0.5}


@pytest.fixture(scope="session")
def small_config() -> ExperimentConfig:
    return ExperimentConfig(dataset_options=SMALL, split="4/1/1", epochs=3, patience=3, seeds=(0, 1))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_config: ExperimentConfig) -> Run:
    """Two seeds, three neurons; tests only read it."""
    return run_experiment(small_config, tmp_path_factory.mktemp("runs") / "small", progress=False)


@pytest.fixture
def deepstrf(capsys, tmp_path, monkeypatch):
    """The command line in an empty folder: exit status, output and errors of a call."""
    monkeypatch.chdir(tmp_path)

    def call(*words: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(word) for word in words])
        out, err = capsys.readouterr()
        return int(end.value.code or 0), out, err

    return call
