"""One small finished run, shared by the tests of this folder."""

from __future__ import annotations

import pytest

from deepSTRF.experiments import ExperimentConfig, Run, run_experiment

SMALL = {"n_neurons": 3, "n_clips": 6, "n_repeats": 4, "clip_seconds": 0.5}


@pytest.fixture(scope="session")
def small_config() -> ExperimentConfig:
    return ExperimentConfig(dataset_options=SMALL, split="4/1/1", epochs=3, patience=3, seeds=(0, 1))


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory, small_config: ExperimentConfig) -> Run:
    """Two seeds, three neurons; tests only read it."""
    return run_experiment(small_config, tmp_path_factory.mktemp("runs") / "small", progress=False)
