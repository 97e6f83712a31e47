"""7: no fit that saw a trial is ever used for it, under subsets and reordering."""

from __future__ import annotations

import random

import pytest

from deepSTRF.datasets import FoldManifest

TRIALS = ["speech a", "speech b", "rain", "birds", "wind"]


@pytest.mark.parametrize(
    ("options", "fits", "each"),
    [({"crossval": True}, 5, 1), ({"jackknife": True}, 5, 1), ({"crossval": True, "jackknife": True}, 10, 4)],
)
def test_eligible_fits_never_saw_the_trial(tmp_path, options, fits, each) -> None:
    plan = FoldManifest.plan(TRIALS, **options, seed=3)
    assert len(plan.folds) == fits
    seen = {fold.name: set(TRIALS) - set(fold.left_out) for fold in plan.folds}
    for fold in plan.folds:
        (tmp_path / f"{fold.name}.pt").touch()
    again = FoldManifest.load(plan.save(tmp_path / "folds.json"))
    assert again == plan
    assert again.facts == {"seed": 3}
    draw = random.Random(0)
    for manifest in (again, FoldManifest.from_names(tmp_path, TRIALS)):
        for _ in range(20):
            for trial in draw.sample(TRIALS, draw.randint(1, 5)):
                names = [fold.name for fold in manifest.eligible(trial)]
                assert len(names) == each
                assert not any(trial in seen[name] for name in names)


def test_names_are_those_of_the_page() -> None:
    assert [f.name for f in FoldManifest.plan(TRIALS).folds] == ["model-all"]
    assert FoldManifest.plan(TRIALS, crossval=True).folds[4].name == "model-004"
    assert FoldManifest.plan(TRIALS, crossval=True, jackknife=True).folds[-1].name == "model-003_004"


def test_what_cannot_be_is_told(tmp_path) -> None:
    with pytest.raises(ValueError, match="every fit saw trial 'rain'"):
        FoldManifest.plan(TRIALS).eligible("rain")
    with pytest.raises(KeyError, match="no trial 'snow'"):
        FoldManifest.plan(TRIALS, crossval=True).eligible("snow")
    with pytest.raises(ValueError, match="occur twice: a"):
        FoldManifest.plan(["a", "b", "a"])
    with pytest.raises(ValueError, match="leaves none to fit"):
        FoldManifest.plan(["a", "b"], crossval=True, jackknife=True)
    with pytest.raises(FileNotFoundError, match="holds no file"):
        FoldManifest.from_names(tmp_path, TRIALS)
    (tmp_path / "model-007.pt").touch()
    with pytest.raises(ValueError, match="leaves out trial 7"):
        FoldManifest.from_names(tmp_path, TRIALS)
    (tmp_path / "folds.json").write_text("{}")
    with pytest.raises(ValueError, match="is no fold manifest"):
        FoldManifest.load(tmp_path / "folds.json")
