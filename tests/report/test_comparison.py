"""Models compared on common clips: against scores computed by hand, and what must not be compared."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from deepSTRF.datasets.audio import AudioNeuralDataset, SyntheticDataset
from deepSTRF.experiments import ExperimentConfig, bench_sweep, run_experiment, run_sweep
from deepSTRF.report import compare_runs, find_runs, write_comparison
from deepSTRF.training import score_model

DATA = {"n_neurons": 3, "n_clips": 14, "n_repeats": 4, "clip_seconds": 0.4}


def ridge(folder: Path, lags: int, **changes: object) -> object:
    fields = {"dataset_options": DATA, "split": "random:0.4/0.1/0.5", "model": "ridge", **changes}
    config = ExperimentConfig(**fields, model_options={"n_lags": lags})  # type: ignore[arg-type]
    return run_experiment(config, folder, progress=False)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    folder = tmp_path_factory.mktemp("runs")
    return {"short": ridge(folder / "short", 1), "long": ridge(folder / "long", 20)}


def test_scores_are_those_of_the_runs(two):
    result = compare_runs(two)
    for row, run in zip(result.rows, two.values(), strict=True):
        expected = run.scores.per_neuron("test")["cc_norm"]
        np.testing.assert_allclose(result.comparison.scores[row["model"]], expected, rtol=1e-5)
        assert row["mean"] == pytest.approx(np.nanmean(expected), rel=1e-5)
        assert row["command"] == run.config.command()
        assert row["low"] < row["mean"] < row["high"]
    pair = result.comparison.pairs[0]
    assert pair.population.value[0] == pytest.approx(result.rows[0]["mean"] - result.rows[1]["mean"])


def test_seeds_count_by_the_mean_of_their_scores(tmp_path, two):
    fields = {"dataset_options": DATA, "split": "random:0.4/0.1/0.5", "epochs": 2}
    run = run_experiment(ExperimentConfig(**fields, seeds=(0, 1)), tmp_path / "linear", progress=False)
    result = compare_runs({"linear": run, "ridge": two["long"]})
    means = run.scores.values["test"]["cc_norm"].mean(1)
    np.testing.assert_allclose(result.comparison.seed_means["linear"], means, rtol=1e-4)
    assert result.rows[0]["seeds"] == 2
    assert result.rows[0]["sd over seeds"] == pytest.approx(means.std(ddof=1), rel=1e-3)
    assert any("numbers of seeds" in text for _, text in result.notes)


def test_common_clips_only(tmp_path, two):
    other = ridge(tmp_path / "other", 20, split="random:0.4/0.1/0.5:seed=1")
    result = compare_runs({"first": two["long"], "other": other})
    sounds = []
    dataset = SyntheticDataset(**DATA)
    for run in (two["long"], other):
        fitted = run.load_model().fitted_on
        used = {*fitted.sounds, *fitted.validation_sounds}
        sounds.append({clip for clip in range(len(dataset)) if dataset.source_fingerprint(clip) not in used})
    assert result.comparison.facts["n_clips"] == len(sounds[0] & sounds[1]) < len(sounds[0])
    assert any("had more" in text for _, text in result.notes)
    view = dataset.select(clips=sorted(sounds[0] & sounds[1]))
    expected = score_model(other.load_model(), view, n_bootstrap=0)["cc_norm"]
    np.testing.assert_allclose(result.comparison.scores["other"], expected, rtol=1e-5)


def test_folds_are_scored_together(tmp_path):
    sweep = bench_sweep(
        "synthetic", "quick", rows=["ridge", "linear"], seeds=[0], epochs=2, dataset_options=DATA
    )
    run_sweep(sweep, tmp_path / "bench", progress=False)
    runs = find_runs(tmp_path / "bench")
    assert {name: len(own) for name, own in runs.items()} == {"ridge": 5, "linear": 5}
    result = compare_runs(runs)
    assert result.comparison.facts["n_clips"] == DATA["n_clips"]
    page = write_comparison(result, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "kfold:5:fold=4" in page
    tree = json.loads(result.to_json())
    assert len(tree["fits"]["ridge"]) == 5
    assert tree["fits"]["ridge"][0]["command"].startswith("deepstrf fit")


def test_normalised_responses_are_put_back(tmp_path, two):
    run = ridge(tmp_path / "scaled", 20, normalize_responses="zscore")
    result = compare_runs({"raw": two["long"], "scaled": run}, score="mse")
    scores = result.comparison.scores
    assert not torch.equal(torch.tensor(scores["raw"]), torch.tensor(run.scores.per_neuron("test")["mse"]))
    np.testing.assert_allclose(scores["raw"], scores["scaled"], rtol=0.2)  # another penalty, the same unit


def test_few_clips_conclude_nothing(tmp_path):
    runs = {str(n): ridge(tmp_path / str(n), n, split="random:0.6/0.2/0.2") for n in (1, 20)}
    result = compare_runs(runs)
    assert np.isnan(result.rows[0]["low"])
    assert np.isnan(result.comparison.pairs[0].mean_p)
    page = write_comparison(result, tmp_path / "page.html").read_text(encoding="utf-8")
    assert "nothing can be concluded" in page


def test_one_clip_concludes_nothing(tmp_path):
    runs = {str(n): ridge(tmp_path / str(n), n, split="0,1,2,3/4/5") for n in (1, 20)}
    result = compare_runs(runs)
    assert np.isnan(result.comparison.pairs[0].mean_p)
    assert result.rows[0]["mean"] == pytest.approx(runs["1"].scores.per_neuron()["cc_norm"].mean(), rel=1e-5)


def test_what_does_not_compare(tmp_path, two):
    with pytest.raises(ValueError, match="needs two"):
        compare_runs({"one": two["long"]})
    with pytest.raises(ValueError, match="another recording"):
        compare_runs({"a": two["long"], "b": ridge(tmp_path / "b", 5, dataset_options={**DATA, "seed": 7})})
    with pytest.raises(ValueError, match="another onset"):
        compare_runs({"a": two["long"], "c": ridge(tmp_path / "c", 5, warmup_ms=50.0)})
    with pytest.raises(ValueError, match="differ in seed or fold"):
        compare_runs({"a": two["long"], "d": [two["short"], two["short"]]})
    first = ridge(tmp_path / "e", 5, split="0,1,2,3,4,5/6/7,8,9,10,11,12,13")
    second = ridge(tmp_path / "f", 5, split="7,8,9,10,11,12,13/6/0,1,2,3,4,5")
    with pytest.raises(ValueError, match="no clip is a test clip"):
        compare_runs({"e": first, "f": second})


def test_pages_of_others_are_kept(tmp_path, two):
    (tmp_path / "notes.html").write_text("my notes")
    with pytest.raises(OSError, match=r"notes\.html"):
        write_comparison(compare_runs(two), tmp_path / "notes.html")


def test_a_sound_played_as_two_clips_counts_twice(tmp_path):
    dataset = SyntheticDataset(**DATA)
    order = [*range(len(dataset)), 12, 13]  # the sounds of the last two once more
    stims = [dataset.stims[clip][0] for clip in order]
    responses = [dataset.response_block(clip) for clip in order]
    AudioNeuralDataset.from_arrays(stims, responses, dt_ms=dataset.dt, check_alignment=False).save(
        tmp_path / "twice.npz"
    )
    split = "0,1,2,3,4,5/6/7,8,9,10,11,12,13,14,15"
    runs = {
        name: ridge(
            tmp_path / name, lags, dataset=str(tmp_path / "twice.npz"), dataset_options={}, split=split
        )
        for name, lags in (("a", 1), ("b", 20))
    }
    result = compare_runs(runs)
    assert result.comparison.facts["n_clips"] == 9
    expected = runs["b"].scores.per_neuron("test")["cc_norm"]
    np.testing.assert_allclose(result.comparison.scores["b"], expected, rtol=1e-5)


def test_closed_forms_are_fitted_once():
    sweep = bench_sweep("synthetic", "quick", seeds=[3, 4], split="4/1/1")
    assert sorted(fit.name for fit in sweep.fits()) == [
        *(f"row=linear, seeds={seed}" for seed in (3, 4)),
        *(f"row=linear-nonlinear, seeds={seed}" for seed in (3, 4)),
        "row=ridge, seeds=3",
    ]


def test_names_of_folders(tmp_path, two):
    names = list(find_runs(two["short"].path, two["long"].path))
    assert names == ["short", "long"]
    again = find_runs(two["short"].path, two["short"].path)
    assert len(again) == 2


def test_a_seed_without_all_folds_is_left_out_and_named(tmp_path):
    runs = [
        ridge(tmp_path / f"{seed}-{fold}", 5, split=f"kfold:3:fold={fold}", seeds=(seed,))
        for seed, fold in ((0, 0), (0, 1), (1, 0))
    ]
    result = compare_runs({"a": runs, "b": runs[:2]})
    assert len(result.comparison.seed_means["a"]) == 1
    assert any("left out are its seeds without all folds: 1." in text for _, text in result.notes)
