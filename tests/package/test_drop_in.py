"""One new file with one decorator is a new model, front-end, dataset, loss, metric and so on.

Such files are written into a copy of the package, and nothing else is edited. The factories, the command
line, the tables of the documentation and the banks of tests then find them, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: The page that shows how to write a model; its first block is a file of the package.
MODEL_PAGE = ROOT / "docs" / "write-your-own-model.md"

#: Path in src/deepSTRF -> content of the new file.
NEW_FILES = {
    "models/audio/new_model.py": '''
"""A new model."""

from deepSTRF.models.audio.linear import Linear
from deepSTRF.registry import MODELS


@MODELS.register("new_model")
class NewModel(Linear):
    """The first line of the new model."""
''',
    "models/wav2spec/new_front_end.py": '''
"""A new front-end."""

import torch
from torch import Tensor

from deepSTRF.models.wav2spec.base import WaveformFrontEnd
from deepSTRF.registry import WAV2SPEC


@WAV2SPEC.register("new_front_end")
class NewFrontEnd(WaveformFrontEnd):
    """The first line of the new front-end."""

    def __init__(self, audio_fs: float, n_filters: int = 3, hop_ms: float = 5.0) -> None:
        super().__init__(audio_fs, n_filters, hop_ms)

    def transform(self, padded: Tensor) -> Tensor:
        power = padded.unfold(-1, self.hop, self.hop).square().mean(-1).unsqueeze(2)
        return power.repeat(1, 1, self.n_filters, 1)

    @property
    def frequencies_hz(self) -> Tensor:
        return 1000.0 * torch.arange(1, self.n_filters + 1)
''',
    "models/backbones/new_backbone.py": '''
"""A new backbone."""

from deepSTRF.models.backbones.gated import GRU
from deepSTRF.registry import BACKBONES


@BACKBONES.register("new_backbone")
class NewBackbone(GRU):
    """The first line of the new backbone."""
''',
    "models/new_prefilter.py": '''
"""A new prefilter."""

from deepSTRF.models.prefiltering import ICAdaptation
from deepSTRF.registry import PREFILTERS


@PREFILTERS.register("new_prefilter")
def make_new_prefilter(n_frequency_bands: int) -> ICAdaptation:
    """The first line of the new prefilter."""
    return ICAdaptation([0.9] * n_frequency_bands)
''',
    "models/new_kernel.py": '''
"""A new kernel."""

from deepSTRF.models.kernels import SeparableSTRF
from deepSTRF.registry import KERNELS


@KERNELS.register("new_kernel")
class NewKernel(SeparableSTRF):
    """The first line of the new kernel."""
''',
    "datasets/audio/new_dataset.py": '''
"""A new dataset."""

from deepSTRF.datasets.audio.synthetic import SyntheticDataset
from deepSTRF.registry import DATASETS


@DATASETS.register("new_dataset")
class NewDataset(SyntheticDataset):
    """The first line of the new dataset."""
''',
    "metrics/new_loss.py": '''
"""A new loss."""

from torch import Tensor

from deepSTRF.metrics.losses import mse_loss
from deepSTRF.registry import LOSSES


@LOSSES.register("new_loss")
def new_loss(pred: Tensor, gt: Tensor) -> Tensor:
    """The first line of the new loss."""
    return 2 * mse_loss(pred, gt)
''',
    "baselines/new_fit.py": '''
"""A new linear fit."""

from typing import Any

from deepSTRF.baselines.ridge import RidgeFit, fit_ridge
from deepSTRF.registry import SOLVERS


@SOLVERS.register("new_fit")
def fit_new(train: Any, validation: Any = None, *, n_lags: int = 4, **options: Any) -> RidgeFit:
    """The first line of the new fit."""
    return fit_ridge(train, validation, n_lags=n_lags, **options)
''',
    "metrics/new_metric.py": '''
"""A new metric."""

from torch import Tensor

from deepSTRF.metrics import Metric, ScoreStatistics
from deepSTRF.registry import METRICS


@METRICS.register("new_metric")
class NewMetric(Metric):
    """The first line of the new metric."""

    label = "label of the new metric"

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        return 2 * statistics.correlation()
''',
}
#: Table of the documentation -> what stands in it.
IN_TABLES = {
    "models": "new model",
    "front-ends": "new front-end",
    "backbones": "new backbone",
    "prefilters": "new prefilter",
    "kernels": "new kernel",
    "datasets": "new dataset",
    "losses": "new loss",
    "closed-form fits": "new fit",
    "metrics": "new metric",
}
#: Bank of tests -> the parameter that a new entry must have there.
IN_BANKS = {
    "tests/models/test_model_bank.py": ("[new_model-0", "[linear-5", "new_prefilter-spectrogram"),
    "tests/models/test_wav2spec.py": ("[new_front_end]",),
    "tests/models/test_backbones_bank.py": ("[new_backbone-11",),
    "tests/baselines/test_solver_bank.py": ("test_moments_of_the_prediction[new_fit]",),
    "tests/metrics/test_registered.py": ("[new_loss]", "[new_metric]"),
}
FACTORIES = """
import json, sys, torch
from deepSTRF.experiments.build import build_model, load_dataset
from deepSTRF.experiments.config import ExperimentConfig
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import Linear, StateNet
from deepSTRF.models.wav2spec import make_wav2spec
from deepSTRF.registry import MODELS

prefilter, kernel = {"prefiltering": "new_prefilter"}, {"kernel": "new_kernel", "rank": 2}
model = Linear(6, 3, 2, prefiltering=prefilter, kernel=kernel)
config = ExperimentConfig(
    dataset="new_dataset", dataset_options={"n_neurons": 2, "n_clips": 3},
    model="new_model", wav2spec="new_front_end",
)
recording = load_dataset(config)
saved = NeuralModel.from_pretrained(build_model(config, recording).save_pretrained(sys.argv[1]))
found = {
    "model": MODELS.get("new_model").__name__,
    "front-end": type(make_wav2spec("new_front_end", audio_fs=16000, dt_ms=5.0)).__name__,
    "backbone": type(StateNet(12, rnn_type="new_backbone", kernel_size=4, stride=2).core.rnn).__name__,
    "prefilter": type(model.prefiltering).__name__,
    "kernel": type(model.readout.strf.kernel).__name__,
    "output": list(model(torch.zeros(1, 1, 6, 9)).shape),
    "dataset": type(recording).__name__,
    "saved": type(saved).__name__,
}
sys.stdout.write(json.dumps(found))
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that holds a copy of the package with the new files in it."""
    source = tmp_path_factory.mktemp("copy") / "src"
    shutil.copytree(
        ROOT / "src" / "deepSTRF", source / "deepSTRF", ignore=shutil.ignore_patterns("__pycache__")
    )
    for path, text in NEW_FILES.items():
        (source / "deepSTRF" / path).write_text(text.lstrip())
    block = re.search(r"```python\n(.*?)```", MODEL_PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert block is not None
    (source / "deepSTRF" / "models" / "audio" / "divided.py").write_text(block[1], encoding="utf-8")
    return source


def python(package: Path, *arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(package), "COLUMNS": "200"}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, cwd=cwd, check=False
    )


def test_factories_build_the_new_entries(package: Path, tmp_path: Path) -> None:
    done = python(package, "-c", FACTORIES, str(tmp_path / "model"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "model": "NewModel", "front-end": "NewFrontEnd", "backbone": "NewBackbone",
        "prefilter": "ICAdaptation", "kernel": "NewKernel", "output": [1, 2, 1, 9],
        "dataset": "NewDataset", "saved": "NewModel",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("command", "names"),
    [
        ("models", ["new_model", "new_front_end", "new_prefilter", "new_kernel", "new_backbone", "new_fit"]),
        ("datasets", ["new_dataset"]),
    ],
)
def test_the_command_line_lists_the_new_entries(package: Path, command: str, names: list[str]) -> None:
    done = python(package, "-c", f"from deepSTRF.cli import main; main([{command!r}])")
    assert done.returncode == 0, done.stderr
    for name in names:
        assert name in done.stdout
        assert (
            f"The first line of the {name.replace('_', ' ').replace('front end', 'front-end')}."
            in done.stdout
        )


def test_the_tables_of_the_documentation_hold_the_new_entries(package: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("".join(f"<!-- table: {table} -->\n<!-- end -->\n" for table in IN_TABLES))
    done = python(package, str(ROOT / "tools" / "docs_tables.py"), str(page))
    assert done.returncode == 0, done.stderr
    for what in IN_TABLES.values():
        assert f"| The first line of the {what}. |" in page.read_text()


def test_a_fit_takes_the_new_loss_and_shows_the_new_metric(package: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    options = ["-o", "n_neurons=3", "-o", "n_clips=5", "-e", "1", "--loss", "new_loss", "--out", str(run)]
    done = python(package, "-c", f"from deepSTRF.cli import main; main({['fit', *options]!r})")
    assert done.returncode == 0, done.stderr
    page = (run / "report.html").read_text()
    for shown in (done.stdout, page):
        assert "label of the new metric" in shown
    assert "The first line of the new metric" in page
    assert "new_metric" in (run / "scores.csv").read_text()


@pytest.mark.parametrize("bank", IN_BANKS)
def test_the_banks_of_tests_have_the_new_entries(package: Path, bank: str) -> None:
    done = python(package, "-m", "pytest", "-p", "no:cacheprovider", "--collect-only", "-q", bank)
    assert done.returncode == 0, done.stdout + done.stderr
    for parameter in IN_BANKS[bank]:
        assert parameter in done.stdout


def test_the_model_of_the_page_passes_the_bank(package: Path) -> None:
    chosen = "divided-0 and (test_shape or causal or test_streams or receptive_field or every_parameter)"
    bank = "tests/models/test_model_bank.py"
    done = python(package, "-m", "pytest", "-p", "no:cacheprovider", "-q", bank, "-k", chosen)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout


def test_a_broken_file_is_named(package: Path, tmp_path: Path) -> None:
    broken = tmp_path / "deepSTRF"
    shutil.copytree(package / "deepSTRF", broken)
    (broken / "models" / "wav2spec" / "broken.py").write_text("import no_such_package\n")
    code = "from deepSTRF.models.wav2spec import make_wav2spec as make; make({!r}, audio_fs=16000, dt_ms=5.0)"
    assert python(tmp_path, "-c", code.format("mel")).returncode == 0, "what is known needs no other file"
    done = python(tmp_path, "-c", code.format("no_such_front_end"))
    assert done.returncode != 0
    assert str(Path("deepSTRF", "models", "wav2spec", "broken.py")) in done.stderr.splitlines()[-1]
    assert "no_such_package" in done.stderr.splitlines()[-1]
