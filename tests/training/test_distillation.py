"""Distillation: targets from the average of fitted models, synthetic clips, and fits that use them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.models.audio import Linear
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.training import distilled


def teachers(ds: Any, count: int = 2) -> list[Linear]:
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(Linear(ds.F, 5, ds.N_neurons, output_activation="softplus").eval())
    return made


def small(**options: Any) -> AudioNeuralDataset:
    rng = np.random.default_rng(0)
    stims = [rng.normal(size=(6, length)) for length in (50, 61, 40)]
    responses = [[rng.poisson(1.0, (3, s.shape[1])).astype(float) for _ in range(2)] for s in stims]
    responses[1][0] = None  # never recorded
    responses[2][1][:, 7] = np.nan
    return AudioNeuralDataset.from_arrays(stims, responses, 5.0, **options)


def test_targets_mix_psth_and_teachers_and_are_the_teachers_where_nothing_was_recorded() -> None:
    ds = small()
    found = distilled(ds, teachers(ds), teacher_share=0.25, n_synthetic=0)
    assert len(found) == len(ds)
    taught = [torch.stack(both).mean(0) for both in zip(*(t.predict(ds) for t in teachers(ds)), strict=True)]
    for clip in range(3):
        block = ds.response_block(clip).float()
        expected = 0.25 * taught[clip] + 0.75 * block.nanmean(1)
        expected = torch.where(expected.isnan(), taught[clip], expected)
        torch.testing.assert_close(found.response_block(clip)[:, 0].float(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.stims[2], ds.stims[2])


def test_synthetic_clips_have_the_answers_of_the_teachers() -> None:
    ds = small()
    found = distilled(ds, teachers(ds), seed=3)
    assert len(found) == 6
    answers = zip(*(t.predict(found) for t in teachers(ds)), strict=True)
    for clip, both in enumerate(answers):
        if clip >= 3:
            expected = torch.stack(both).mean(0)
            torch.testing.assert_close(found.response_block(clip)[:, 0].float(), expected)
    shortest = min(s.shape[-1] for s in ds.stims)
    assert all(0.8 * shortest - 1 <= found.stims[clip].shape[-1] <= 1.25 * 61 for clip in (3, 4, 5))


def test_synthetic_clips_do_not_depend_on_the_unit_of_levels() -> None:
    ds, other = small(), small()
    other.stims = [10.0 * stim + 60.0 for stim in ds.stims]
    one, two = (distilled(view, teachers(ds), seed=1) for view in (ds, other))
    for mine, theirs in zip(one.stims, two.stims, strict=True):
        torch.testing.assert_close(10.0 * mine + 60.0, theirs, rtol=1e-5, atol=1e-4)


def test_the_seed_draws_the_synthetic_clips() -> None:
    ds = small()
    same, again, other = (distilled(ds, teachers(ds), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(same.stims[4], again.stims[4])
    assert same.stims[4].shape != other.stims[4].shape or not torch.equal(same.stims[4], other.stims[4])


def test_what_cannot_be_distilled_is_refused() -> None:
    ds = small()
    with pytest.raises(ValueError, match="at least one fitted model"):
        distilled(ds, [])
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match="teacher_share"):
            distilled(ds, teachers(ds), teacher_share=share)
    with pytest.raises(ValueError, match="n_synthetic=0"):
        distilled(ds.select(clips=[0]), teachers(ds))
    with pytest.raises(ValueError, match="return_waveform=False"):
        distilled(SyntheticDataset(n_neurons=2, n_clips=2, return_waveform=True), teachers(ds))


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    options = {"dataset_options": {"n_neurons": 2, "n_clips": 8, "clip_seconds": 0.5}, "epochs": 2}
    folder = tmp_path_factory.mktemp("teachers") / "run"
    run_experiment(ExperimentConfig(split="4/2/2", seeds=(0, 1), **options), folder, progress=False)
    return folder, options


@pytest.mark.parametrize("refit", [False, True])
def test_a_run_is_taught_by_all_seeds_of_another(
    taught: tuple[Path, dict[str, Any]], tmp_path: Path, refit: bool
) -> None:
    folder, options = taught
    config = ExperimentConfig(split="4/2/2", teachers=str(folder), refit=refit, **options)
    run = run_experiment(config, tmp_path / "student", progress=False)
    assert any("distillation" in label for label, _ in run.protocol)
    assert np.isfinite(run.scores.values["test"]["cc"]).all()
    fitted = run.load_model().fitted_on
    assert len(fitted.sounds) == (12 if refit else 8)  # twice the clips


def test_teachers_that_heard_the_clips_that_judge_are_refused(
    taught: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    folder, options = taught
    for split, part in (("2-5/6-7/0-1", "test"), ("2-5/0-1/6-7", "validation")):
        config = ExperimentConfig(split=split, teachers=str(folder), **options)
        with pytest.raises(
            ValueError, match=rf"2 of 2 {part} clips took part in the fit of a model of teachers"
        ):
            run_experiment(config, tmp_path / part, progress=False)
        assert not (tmp_path / part).exists()
    config = ExperimentConfig(split="4/2/2", teachers=str(folder), normalize_responses="max", **options)
    with pytest.raises(ValueError, match=r"teachers is of another recording: .*fraction of maximum"):
        run_experiment(config, tmp_path / "unit", progress=False)
    assert not (tmp_path / "unit").exists()
    with pytest.raises(ValueError, match="teachers are for networks"):
        run_experiment(
            ExperimentConfig(split="4/2/2", model="ridge", teachers=str(folder), **options),
            tmp_path / "ridge", progress=False,
        )  # fmt: skip


def fitted(ds: Any) -> Linear:
    (model,) = teachers(ds, 1)
    model.fitted_on = FittedOn.of(ds)
    return model


def test_teachers_of_another_unit_standardisation_or_alignment_are_refused() -> None:
    ds = small()
    with pytest.raises(ValueError, match="fraction of maximum"):
        distilled(ds.normalized(), [fitted(ds)])
    for dataset, teacher in ((ds, fitted(ds.standardized())), (ds.standardized(), fitted(ds))):
        with pytest.raises(ValueError, match="standardised by the dataset"):
            distilled(dataset, [teacher])
    ahead = small()
    ds.facts["look_ahead_ms"], ahead.facts["look_ahead_ms"] = 0.0, 5.0
    with pytest.raises(ValueError, match="look 5 ms ahead"):
        distilled(ahead, [fitted(ds)])


def test_a_student_of_standardised_clips_states_that_they_were() -> None:
    ds = small()
    ds.facts["look_ahead_ms"] = 5.0
    ds = ds.standardized()
    teacher = fitted(ds)
    made = distilled(ds, [teacher], teacher_share=1.0)
    assert torch.allclose(made.responses[0][0][0], teacher.predict(ds)[0][0])
    student = FittedOn.of(made)
    assert student.standardized is True
    assert student.look_ahead_ms == 5.0
    student.match(ds)
    assert FittedOn.of(made.select(clips=[0, 1])).standardized is True
