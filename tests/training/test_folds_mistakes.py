"""Folders of fits under kills, lost files and mistakes: nothing that is no fit of this run passes for one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from deepSTRF.crossval import FoldFits, fit_folds, predict_folds, score_folds
from deepSTRF.datasets import FoldManifest, NeuralDataset, plan_folds
from deepSTRF.interpret.dstrf import ArraySink, dstrf_folds
from deepSTRF.interpret.filter_statistics import complexity
from deepSTRF.models.audio import Linear

# one class per rule, documented under ModelRuleError
from deepSTRF.training.validate import NeuronCountError

BANDS, NEURONS = 4, 2
QUICK = {"fitter_kwargs": {"max_epochs": 2}}
#: A process that dies while it writes its second fit.
KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from test_folds_mistakes import QUICK, linear, recording
from deepSTRF.datasets import plan_folds
from deepSTRF.models import NeuralModel
from deepSTRF.crossval import fit_folds

write, written = NeuralModel.save_pretrained, []

def dying(model, folder, **options):
    written.append(folder)
    if len(written) == 2:
        folder.mkdir()
        (folder / "config.json").write_text("{{")
        os.kill(os.getpid(), signal.SIGKILL)
    return write(model, folder, **options)

NeuralModel.save_pretrained = dying
ds = recording()
fit_folds(linear, ds, plan_folds(ds, crossval=True), {out!r}, seed=3, **QUICK)
"""


def recording(n_clips: int = 4) -> NeuralDataset:
    rng = np.random.default_rng(0)
    stims = [rng.standard_normal((BANDS, 40 + clip)).astype(np.float32) for clip in range(n_clips)]
    responses = [rng.standard_normal((NEURONS, 3, x.shape[1])) for x in stims]
    names = [{"name": f"sound {clip}"} for clip in range(n_clips)]
    return NeuralDataset.from_arrays(stims, responses, 5.0, stim_meta=names, check_alignment=False)


def linear(seed: int) -> Linear:
    return Linear(BANDS, 3, NEURONS, norm="none")


def made(folder: Path) -> FoldFits:
    ds = recording()
    return fit_folds(linear, ds, plan_folds(ds, crossval=True), folder, seed=3, **QUICK)


def test_a_killed_process_leaves_no_half_fit(tmp_path: Path) -> None:
    code = KILLED.format(here=str(Path(__file__).parent), out=str(tmp_path / "a"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    left = FoldFits(tmp_path / "a")
    assert [left.has(f"model-00{fold}") for fold in range(4)] == [True, False, False, False]
    resumed, straight = made(tmp_path / "a"), made(tmp_path / "b")
    assert resumed.n_missing == 0
    for one, other in zip(
        predict_folds(resumed, recording()), predict_folds(straight, recording()), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("lost", ["config.json", "model.safetensors", None])
def test_a_fit_that_lost_files_is_made_anew(tmp_path: Path, lost) -> None:
    wanted = predict_folds(made(tmp_path), recording())
    folder = tmp_path / "model-001"
    for path in list(folder.iterdir()):
        if lost is None or path.name == lost:
            path.unlink()
    fits = FoldFits(tmp_path)
    assert fits.n_missing == 1
    with pytest.raises(FileNotFoundError, match=r"model-001 has lost .* call fit_folds again"):
        fits.unseen(recording(), 1)
    for one, other in zip(predict_folds(made(tmp_path), recording()), wanted, strict=True):
        assert torch.equal(one, other)


def test_a_damaged_fit_says_how_to_mend_it(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "model-001" / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"damaged.*delete the folder .*model-001 and call fit_folds again"):
        predict_folds(FoldFits(tmp_path), recording())
    shutil.rmtree(tmp_path / "model-001")
    assert made(tmp_path).n_missing == 0


@pytest.mark.parametrize("before", [True, False])
def test_weights_of_another_origin_never_pass_for_a_fit(tmp_path: Path, before) -> None:
    if before:
        made(tmp_path)
        shutil.rmtree(tmp_path / "model-002")
    torch.save(linear(0).state_dict(), tmp_path / "model-002.pt")
    with pytest.raises(FileExistsError, match="weights of another origin"):
        made(tmp_path)


def test_files_of_the_toolbox_are_fits(tmp_path: Path) -> None:
    """``model-000.pt`` and so on, with its names of tensors: the fits that never saw a sound predict it."""
    torch.manual_seed(0)
    shapes = {"conv.weight": (NEURONS, BANDS, 4), "conv.bias": (NEURONS,)}
    for name in ("model-000", "model-001"):
        state = {key: torch.randn(shape) for key, shape in shapes.items()}
        torch.save(state, tmp_path / f"{name}.pt")
    data = recording()

    def build() -> Linear:
        return Linear(BANDS, 4, NEURONS, norm="none")

    fits = FoldFits(tmp_path, recording=data, build=build)
    padded = torch.nn.functional.pad(data.stims[1], (3, 0))
    expected = torch.nn.functional.conv1d(padded, state["conv.weight"], state["conv.bias"])[0]
    (rates,) = predict_folds(fits, data.select(clips=[1]))
    torch.testing.assert_close(torch.as_tensor(rates), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"fitter_kwargs": {"epochs": 3}}, TypeError, "a Fitter has no 'epochs'; it has loss_fn"),
        ({"only": "model-000"}, TypeError, r"only=\['model-000'\]"),
        ({"only": ["model-009"]}, ValueError, "no fold 'model-009'"),
        ({"manifest": ["sound 0"]}, TypeError, "plan_folds"),
        ({"model_factory": lambda: linear(0)}, TypeError, "model_factory is called with a seed"),
        ({"model_factory": lambda seed: Linear(BANDS, 3, 5)}, NeuronCountError, "out_neurons=2"),
        ({"model_factory": lambda seed: Linear(7, 3, NEURONS)}, ValueError, "7"),
    ],
)
def test_a_mistake_claims_no_folder(tmp_path: Path, changed, error, text) -> None:
    ds = recording()
    arguments = {"model_factory": linear, "manifest": plan_folds(ds, crossval=True), **QUICK}
    with pytest.raises(error, match=text):
        fit_folds(dataset=ds, out=tmp_path / "fits", **{**arguments, **changed})
    assert not (tmp_path / "fits").exists()


def test_a_name_that_two_clips_have_binds_nothing() -> None:
    """Which of them is the trial would hang on their order."""
    twice = recording().select(clips=[2, 0, 3, 1])
    plan = FoldManifest.plan([f"sound {clip}" for clip in range(4)], crossval=True)
    assert plan.bind(twice).trial_of(twice, 0) == "sound 2"
    same = NeuralDataset.from_arrays(
        list(twice.stims), [twice.response_block(clip) for clip in range(4)], 5.0,
        stim_meta=[{"name": "sound 0"}, {"name": "sound 0"}, {"name": "sound 2"}, {"name": "sound 3"}],
        check_alignment=False,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"more than one clip of .* is named 'sound 0'"):
        plan.bind(same)


def test_what_fits_are_is_told(tmp_path: Path) -> None:
    for call in (predict_folds, score_folds):
        with pytest.raises(TypeError, match=r"FoldFits\(folder\)"):
            call(str(tmp_path), recording())
    with pytest.raises(TypeError, match="n_folds must be a whole number"):
        plan_folds(recording(), crossval=True, n_folds=2.0)


def test_what_killed_processes_left_is_swept_away_after_a_day(tmp_path: Path) -> None:
    fits = made(tmp_path / "fits")
    (tmp_path / "filters").mkdir()
    for days, kept in ((0.5, True), (1.5, False)):
        left = [tmp_path / "fits" / ".unfinished-abc", tmp_path / "filters" / ".dSTRF-001.npy.123.part"]
        left[0].mkdir(exist_ok=True)
        left[1].write_bytes(b"half")
        for path in left:
            os.utime(path, (time.time() - days * 86_400,) * 2)
        made(tmp_path / "fits")
        dstrf_folds(fits, recording(), tmp_path / "filters", clips=[1], times=[int(2 * days)])
        assert [path.exists() for path in left] == [kept, kept]


def test_files_note_which_bins_statistics_leave_out(tmp_path: Path) -> None:
    """A linear neuron's filter is constant, but for the start of the clip."""
    ds, fits = recording(), made(tmp_path / "fits")
    for options, cut in (({}, [2, 0]), ({"edge": "drop"}, [0, 0]), ({"times": [0, 1]}, [2, 0])):
        (path,) = dstrf_folds(fits, ds, tmp_path / "filters", clips=[1], **options)
        assert json.loads(path.with_suffix(".json").read_text())["cut"] == cut
        if "times" not in options:
            np.testing.assert_allclose(complexity(path), 1.0, rtol=1e-6)


def test_filters_in_files_go_by_all_of_their_settings(tmp_path: Path) -> None:
    ds, fits = recording(), made(tmp_path / "fits")
    baseline = torch.zeros(BANDS, ds.stims[0].shape[-1] * 1)
    options = {"clips": [0], "n_steps": 2}
    (path,) = dstrf_folds(fits, ds, tmp_path / "filters", baseline=baseline, **options)
    note = path.with_suffix(".json")
    first = json.loads(note.read_text())["settings"]
    time = path.stat().st_mtime_ns
    dstrf_folds(fits, ds, tmp_path / "filters", baseline=baseline, budget_bytes=10**6, **options)
    assert path.stat().st_mtime_ns == time  # no filter depends on the working memory
    baseline[2, 20] = 1.0  # in the middle, which its text leaves out
    dstrf_folds(fits, ds, tmp_path / "filters", baseline=baseline, **options)
    assert path.stat().st_mtime_ns != time
    assert json.loads(note.read_text())["settings"] != first
    for name in ("sink", "error"):
        with pytest.raises(TypeError, match=f"takes no {name}"):
            dstrf_folds(fits, ds, tmp_path / "filters", **{name: ArraySink()})
