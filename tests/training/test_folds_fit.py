"""Fits over folds: no fit that saw a sound predicts it, under subsets and reordering, fits included (7)."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from deepSTRF.crossval import FoldFits, dynamic_strf_settings, fit_folds, predict_folds, score_folds
from deepSTRF.datasets import FoldManifest, NeuralDataset, plan_folds
from deepSTRF.interpret.dstrf import dstrf_folds, jackknifed_dstrf
from deepSTRF.interpret.filter_statistics import nonlinearities
from deepSTRF.models import NeuralModel
from deepSTRF.models.audio import DeepEncoder, Linear
from deepSTRF.training import FitDivergedError, fit_settings, make_loaders

N_CLIPS, BANDS, NEURONS = 5, 4, 2


def recording(n_clips: int = N_CLIPS, copies: int = 0) -> NeuralDataset:
    """Clips of different lengths whose first value is their number; the last ``copies`` repeat the first."""
    rng = np.random.default_rng(0)
    kernel = rng.standard_normal((NEURONS, BANDS))
    stims = []
    for clip in range(n_clips):
        x = rng.standard_normal((BANDS, 40 + 5 * clip)).astype(np.float32)
        x[0, 0] = clip
        stims.append(x)
    noise = [rng.standard_normal((NEURONS, 3, x.shape[1])) for x in stims + stims[:copies]]
    responses = [(kernel @ x)[:, None] + e for x, e in zip(stims + stims[:copies], noise, strict=True)]
    names = [{"name": f"sound {clip}"} for clip in range(n_clips + copies)]
    return NeuralDataset.from_arrays(
        stims + stims[:copies], responses, 5.0, stim_meta=names, check_alignment=False
    )


class Witness(NeuralModel):
    """Notes the number of every clip that it is shown, and is saved with what it saw."""

    def __init__(self) -> None:
        super().__init__(NEURONS)
        self.readout = nn.Conv2d(1, NEURONS, (BANDS, 1))
        self.register_buffer("seen", torch.zeros(N_CLIPS))

    def respond(self, spectrogram: torch.Tensor) -> torch.Tensor:
        for first in spectrogram[:, 0, 0, 0]:
            self.seen[round(float(first))] += 1
        return super().respond(spectrogram)


def linear(seed: int) -> Linear:
    return Linear(BANDS, 3, NEURONS, norm="none")


def each(ds: NeuralDataset) -> FoldManifest:
    return plan_folds(ds, crossval=True)


def both(ds: NeuralDataset) -> FoldManifest:
    return plan_folds(ds, crossval=True, jackknife=True)


def weights(fits: FoldFits) -> dict[str, torch.Tensor]:
    return {
        f"{f.name} {k}": v for f in fits.manifest.folds for k, v in fits.model(f.name).state_dict().items()
    }


PLANS: list[dict[str, Any]] = [
    {"crossval": True},
    {"jackknife": True},
    {"crossval": True, "jackknife": True},
    {"crossval": True, "n_folds": 2},
    {"crossval": True, "jackknife": True, "n_folds": 4},
]


@pytest.mark.parametrize("options", PLANS, ids=["cv", "jackknife", "both", "groups", "both-groups"])
@pytest.mark.parametrize("n_validation", [0, 1])
def test_no_fit_that_saw_a_sound_is_used_for_it(tmp_path: Path, options, n_validation) -> None:
    ds = recording()
    fit_folds(lambda seed: Witness(), ds.select(clips=[3, 1, 4, 0, 2]), plan_folds(ds, **options), tmp_path,
              n_validation=n_validation, fitter_kwargs={"max_epochs": 2})  # fmt: skip

    def witnessed(name: str) -> set[int]:  # what the weights on the disk have been shown
        model = NeuralModel.from_pretrained(tmp_path / name, modules={"Witness": Witness})
        return set(model.seen.nonzero().flatten().tolist())

    fits = FoldFits(tmp_path, modules={"Witness": Witness})
    seen = {fold.name: witnessed(fold.name) for fold in fits.manifest.folds}
    for fold in fits.manifest.folds:
        assert seen[fold.name] == {clip for clip in range(N_CLIPS) if f"sound {clip}" not in fold.left_out}
    draw = random.Random(0)
    every = predict_folds(fits, ds)
    for _ in range(8):
        chosen = draw.sample(range(N_CLIPS), draw.randint(1, N_CLIPS))
        view = ds.select(clips=chosen, neurons=[1]).standardized()
        for place, clip in enumerate(chosen):
            names = [fold.name for fold in fits._folds(view, place, False)]
            assert names
            assert not any(clip in seen[name] for name in names)
        for place, rates in enumerate(predict_folds(fits, ds.select(clips=chosen))):
            assert torch.equal(rates, every[chosen[place]])


def test_predictions_are_means_and_scores_are_theirs(tmp_path: Path) -> None:
    ds = recording()
    fits = fit_folds(linear, ds, both(ds), tmp_path, fitter_kwargs={"max_epochs": 2})
    assert fits.n_missing == 0
    rates = predict_folds(fits, ds)
    psth, predicted = [], []
    for clip in range(N_CLIPS):
        models = [
            NeuralModel.from_pretrained(tmp_path / fold.name)
            for fold in fits.manifest.folds
            if f"sound {clip}" in fold.left_out
        ]
        assert len(models) == N_CLIPS - 1
        with torch.no_grad():
            wanted = torch.stack([model(ds.stims[clip][None])[0, :, 0] for model in models]).mean(0)
        torch.testing.assert_close(rates[clip], wanted)
        psth.append(ds.response_block(clip).mean(1).numpy())
        predicted.append(wanted.numpy())
    table = score_folds(fits, ds, n_bootstrap=0)
    for neuron in range(NEURONS):
        pair = [np.concatenate([one[neuron] for one in many]) for many in (psth, predicted)]
        assert table["cc"][neuron] == pytest.approx(np.corrcoef(*pair)[0, 1], abs=1e-6)
    assert (abs(table["cc_norm"]) > abs(table["cc"])).all()


def test_sounds_that_occur_twice_are_one_trial(tmp_path: Path) -> None:
    ds = recording(4, copies=2)
    plan = each(ds)
    assert plan.trials == tuple(f"sound {clip}" for clip in range(4))
    assert plan.trial_of(ds, 5) == "sound 1"
    fit_folds(lambda seed: Witness(), ds, plan, tmp_path, fitter_kwargs={"max_epochs": 1})
    (model,) = FoldFits(tmp_path, modules={"Witness": Witness}).unseen(ds, 4)
    assert model.seen.tolist() == [0, 3, 1, 1, 0]  # both copies of 1, which is also the clip looked at last
    with pytest.raises(ValueError, match="'sound 0' and 'sound 4' hold the same sound"):
        FoldManifest.plan([f"sound {clip}" for clip in range(6)], crossval=True).bind(ds)


def test_an_interrupted_run_goes_on_and_ends_as_it_would_have(tmp_path: Path) -> None:
    ds, plan, made = recording(), plan_folds(recording(), crossval=True), []

    def factory(seed: int) -> Linear:
        made.append(seed)
        if len(made) == 4:  # one call for the settings, two fits
            raise KeyboardInterrupt
        return linear(seed)

    options: dict[str, Any] = {"seed": 7, "fitter_kwargs": {"max_epochs": 3}}
    with pytest.raises(KeyboardInterrupt):
        fit_folds(factory, ds, plan, tmp_path / "a", **options)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "folds.json",
        "model-000",
        "model-001",
    ]
    times = (tmp_path / "a" / "model-001" / "model.safetensors").stat().st_mtime_ns
    with pytest.raises(FileNotFoundError, match="model-004 is not fitted yet"):
        FoldFits(tmp_path / "a").unseen(ds, 4)
    fits = fit_folds(factory, ds, plan, tmp_path / "a", **options)
    assert made == [7, 7, 8, 9, 7, 9, 10, 11]
    assert (tmp_path / "a" / "model-001" / "model.safetensors").stat().st_mtime_ns == times
    backwards = None
    for only in (["model-004", "model-002"], None):
        backwards = fit_folds(linear, ds, plan, tmp_path / "b", only=only, **options)
    for name, value in weights(backwards).items():
        assert torch.equal(value, weights(fits)[name]), name


def test_processes_give_the_same_fits(tmp_path: Path) -> None:
    ds = recording(3)
    options: dict[str, Any] = dynamic_strf_settings("deep", max_epochs=2)
    make = [
        fit_folds(lambda seed: DeepEncoder(BANDS, 3, NEURONS, dilations=(1, 2)), ds, each(ds),
                  tmp_path / str(jobs), n_jobs=jobs, **options)
        for jobs in (1, 2)
    ]  # fmt: skip
    assert weights(make[0]).keys() == weights(make[1]).keys()
    for name, value in weights(make[0]).items():
        torch.testing.assert_close(value, weights(make[1])[name])


def test_without_validation_the_last_weights_stay(tmp_path: Path) -> None:
    """Against a plain loop of the page's optimiser, all clips in one batch."""
    ds = recording().select(clips=[0, 1, 2])
    settings = dynamic_strf_settings("linear", max_epochs=5)
    fits = fit_folds(linear, ds, plan_folds(ds), tmp_path, seed=3, **settings)
    torch.manual_seed(3)
    model = linear(3)
    optimizer = torch.optim.RAdam(model.parameters(), lr=0.03, weight_decay=30.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.996)
    (loader,) = make_loaders(ds, batch_size=3, shuffle=False)
    batch = next(iter(loader))
    psth = torch.nan_to_num(batch["responses"]).sum(2) / 3
    mask = ~torch.isnan(batch["responses"][:, :, 0])
    for _ in range(5):
        optimizer.zero_grad()
        error = ((model(batch["stims"])[:, :, 0] - psth) ** 2 * mask).sum((0, 2)) / mask.sum((0, 2))
        error.mean().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        scheduler.step()
    for name, value in fits.model("model-all").state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], atol=1e-5, rtol=1e-4)
    history = json.loads((tmp_path / "model-all" / "metadata.json").read_text())["history"]
    assert [sorted(row) for row in history] == [["epoch", "train_loss"]] * 5


def test_a_run_with_other_settings_is_refused(tmp_path: Path) -> None:
    ds, options = recording(3), {"fitter_kwargs": {"max_epochs": 1}}
    fit_folds(linear, ds, each(ds), tmp_path, **options)
    for changed, what in (
        ((linear, ds, each(ds), {**options, "seed": 1}), "seed: '0' there, '1' now"),
        ((linear, ds.smoothed(21.0), each(ds), options), "responses:"),
        (
            (linear, ds, both(ds), options),
            "the folds or their sounds differ",
        ),
        (
            (linear, ds, each(ds), {"fitter_kwargs": {"max_epochs": 2}}),
            "max_epochs: '1' there",
        ),
        ((lambda seed: Linear(BANDS, 4, NEURONS), ds, each(ds), options), "model:"),
    ):
        with pytest.raises(ValueError, match=what):
            fit_folds(*changed[:3], tmp_path, **changed[3])
    fits = fit_folds(
        lambda seed: Linear(BANDS, 4, NEURONS),
        ds,
        each(ds),
        tmp_path,
        overwrite=True,
        **options,
    )
    assert [fits.model(fold.name).T for fold in fits.manifest.folds] == [4, 4, 4]
    (tmp_path / "folds.json").unlink()
    with pytest.raises(FileExistsError, match="whose origin is unknown"):
        fit_folds(linear, ds, each(ds), tmp_path, **options)


def test_what_cannot_be_is_told(tmp_path: Path) -> None:
    ds = recording(3)
    plan = each(ds)
    for kwargs, what in (
        ({"n_validation": 2}, "leaves nothing to train on: a fold has 2 trials"),
        ({"n_validation": -1}, "n_validation must be"),
        ({"fitter_kwargs": {"patience": 3}}, "patience needs trials to stop by"),
        ({"fitter_kwargs": {"seed": 3}}, "seed is managed by fit_folds"),
        ({"fitter_kwargs": {"optimizer": torch.optim.SGD(linear(0).parameters())}}, "must be a function"),
        ({"only": ["model-009"], "fitter_kwargs": {"max_epochs": 1}}, "no fold 'model-009'"),
    ):
        with pytest.raises(ValueError, match=what):
            fit_folds(linear, ds, plan, tmp_path / what[:3], **kwargs)
    with pytest.raises(TypeError, match="returned a Conv1d"):
        fit_folds(lambda seed: nn.Conv1d(1, 1, 1), ds, plan, tmp_path / "x")
    with pytest.raises(ValueError, match="holds the sound of trial 'sound 2'"):
        fit_folds(linear, ds.select(clips=[0, 1]), plan, tmp_path / "y")
    fits = fit_folds(linear, ds, plan, tmp_path / "z", fitter_kwargs={"max_epochs": 1})
    unknown = recording(4).select(clips=[3])
    with pytest.raises(KeyError, match=r"sound 3.*allow_unknown=True"):
        predict_folds(fits, unknown)
    assert len(fits.unseen(unknown, 0, allow_unknown=True)) == 3
    assert predict_folds(fits, unknown, allow_unknown=True)[0].shape == (NEURONS, 55)
    alone = fit_folds(linear, ds, plan_folds(ds), tmp_path / "all", fitter_kwargs={"max_epochs": 1})
    with pytest.raises(ValueError, match="every fit saw trial 'sound 1'"):
        score_folds(alone, ds.select(clips=[1]))
    with pytest.raises(FileNotFoundError, match=r"folds.json does not exist"):
        FoldFits(tmp_path)
    with pytest.raises(ValueError, match=r"n_folds must lie in 2 .. 3"):
        plan_folds(ds, crossval=True, n_folds=4)
    with pytest.raises(ValueError, match="how many groups are left out"):
        plan_folds(ds, n_folds=2)


def test_fits_that_diverge_are_told_at_the_end(tmp_path: Path) -> None:
    ds = recording(3)

    def factory(seed: int) -> Linear:
        model = linear(seed)
        if seed == 1:
            nn.init.constant_(model.readout.strf.kernel.weight, 1e30)
        return model

    with pytest.raises(FitDivergedError, match=r"1 of 3 fits diverged; the others are saved. model-001"):
        fit_folds(factory, ds, each(ds), tmp_path, fitter_kwargs={"max_epochs": 1})
    assert FoldFits(tmp_path).n_missing == 1


def test_files_of_the_page(tmp_path: Path) -> None:
    ds = recording(3)
    for name in ("model-000_001", "model-000_002", "model-001_002"):
        torch.save(linear(0).state_dict(), tmp_path / f"{name}.pt")
    fits = FoldFits(tmp_path, recording=ds, build=lambda: linear(0))
    assert len(fits.unseen(ds.select(clips=[2, 0]), 0)) == 2
    assert [fold.name for fold in fits._folds(ds.select(clips=[2, 0]), 0, False)] == [
        "model-000_002", "model-001_002",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="holds weights only"):
        FoldFits(tmp_path, recording=ds).unseen(ds, 0)


def test_jackknifed_filters_from_such_a_folder(tmp_path: Path) -> None:
    ds = recording()
    fits = fit_folds(lambda seed: DeepEncoder(BANDS, 3, NEURONS, dilations=(1, 2)), ds,
                     both(ds), tmp_path / "fits",
                     fitter_kwargs={"max_epochs": 2})  # fmt: skip
    paths = dstrf_folds(fits, ds.select(clips=[4, 1]), tmp_path / "filters", agreement=0.75)
    assert [path.name for path in paths] == ["dSTRF-004.npy", "dSTRF-001.npy"]
    note = json.loads((tmp_path / "filters" / "dSTRF-004.json").read_text())
    assert note["fits"] == [f"model-{i:03d}_004" for i in range(4)]
    wanted = jackknifed_dstrf(
        [NeuralModel.from_pretrained(tmp_path / "fits" / name) for name in note["fits"]],
        ds.stims[4],
        agreement=0.75,
    )
    np.testing.assert_array_equal(np.load(paths[0]), wanted.weights)
    assert note["kept"] == wanted.kept
    assert 0 < wanted.kept < 1
    times = [path.stat().st_mtime_ns for path in paths]
    assert dstrf_folds(fits, ds.select(clips=[4]), tmp_path / "filters", agreement=0.75) == paths[:1]
    assert paths[0].stat().st_mtime_ns == times[0]
    dstrf_folds(fits, ds.select(clips=[4]), tmp_path / "filters")  # another setting: made anew
    assert paths[0].stat().st_mtime_ns != times[0]
    paths[1].with_suffix(".json").write_text("{")  # killed
    dstrf_folds(fits, ds, tmp_path / "filters", clips=[1], agreement=0.75, dtype=torch.float32)
    assert set(nonlinearities(paths)) == {"complexity", "gain change", "temporal hold", "shape change"}


def test_a_bar_counts_the_folds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ds = recording(3)
    fits = fit_folds(linear, ds, each(ds), tmp_path, progress=True, fitter_kwargs={"max_epochs": 1})
    assert "folds" in capsys.readouterr().err
    assert repr(fits).endswith("3 fits, 0 missing)")
    with pytest.raises(ValueError, match="progress must be True, False or 'auto'"):
        fit_folds(linear, ds, each(ds), tmp_path, progress="yes", fitter_kwargs={"max_epochs": 1})


def test_models_that_standardise_their_input(tmp_path):
    """What `GatedNet.recommended` needs; each fold measures the bands of its own training clips."""
    ds = recording()
    settings = fit_settings(epochs=2, standardize=True)
    callbacks, _ = settings.pop("callbacks"), settings.pop("patience")
    plan = plan_folds(ds, crossval=True, n_folds=2)
    fits = fit_folds(
        lambda seed: Linear(BANDS, 3, NEURONS, standardize=True), ds, plan, tmp_path, callbacks=callbacks,
        fitter_kwargs=settings,
    )  # fmt: skip
    means = [fits.model(fold.name).standardizer.mean for fold in plan.folds]
    assert not torch.equal(*means)
