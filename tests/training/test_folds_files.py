"""Files of a cross-validation: damaged manifests, hostile names of folds, refused and failing calls."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF import _files
from deepSTRF._files import DamagedFileError, sealed_json
from deepSTRF.crossval import FoldFits, fit_folds, predict_folds
from deepSTRF.datasets import FoldManifest, NeuralDataset, plan_folds
from deepSTRF.datasets.folds import Fold
from deepSTRF.models.audio import Linear

BANDS, NEURONS = 4, 2
QUICK: dict[str, Any] = {"fitter_kwargs": {"max_epochs": 1}}


def recording(n_clips: int = 3) -> NeuralDataset:
    rng = np.random.default_rng(0)
    stims = [rng.standard_normal((BANDS, 30 + clip)).astype(np.float32) for clip in range(n_clips)]
    responses = [rng.standard_normal((NEURONS, 2, x.shape[1])) for x in stims]
    names = [{"name": f"sound {clip}"} for clip in range(n_clips)]
    return NeuralDataset.from_arrays(stims, responses, 5.0, stim_meta=names, check_alignment=False)


def linear(seed: int) -> Linear:
    return Linear(BANDS, 3, NEURONS, norm="none")


def wider(seed: int) -> Linear:
    return Linear(BANDS, 4, NEURONS, norm="none")


def made(folder: Path, factory: Any = linear, **options: Any) -> FoldFits:
    ds = recording()
    return fit_folds(factory, ds, plan_folds(ds, crossval=True), folder, **{**QUICK, **options})


def tree_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def edit(path: Path, **changes: Any) -> None:
    """Change a manifest and seal it again, as somebody would who means harm."""
    tree = json.loads(path.read_text())
    tree.pop("sha256", None)
    path.write_bytes(sealed_json({**tree, **changes}))


HOSTILE = [
    "../beside", "..", ".", "", "/tmp/x", "a/b", "a\\b", "..\\x", "a\0b", "a\nb", "x" * 300, "\ud800", "C:x",
    "nul", "COM1.txt", ".hidden", "dot.", " a", "\u202eevil", 3, None, ["model"],
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE, ids=repr)
def test_a_name_that_would_lie_elsewhere_is_refused_everywhere(tmp_path: Path, name: Any) -> None:
    with pytest.raises((ValueError, TypeError), match="name of a fold"):
        Fold(name, ())
    folder = tmp_path / "fits"
    folder.mkdir()
    (tmp_path / "beside").mkdir()
    (tmp_path / "beside" / "mine.txt").write_text("mine")
    plan = plan_folds(recording(), crossval=True).save(folder / "folds.json")
    edit(plan, folds=[{"name": name, "left_out": []}])
    before = tree_of(tmp_path)
    with pytest.raises(DamagedFileError, match=r"folds\.json.*name of a fold"):
        FoldFits(folder)
    with pytest.raises(DamagedFileError, match=r"folds\.json.*name of a fold"):
        made(folder, overwrite=True)
    assert tree_of(tmp_path) == before


def test_names_that_share_a_folder_on_some_disks() -> None:
    for one, other in (("A", "a"), ("\u00e9", "e\u0301"), ("a", "a")):
        with pytest.raises(ValueError, match="would share a folder"):
            FoldManifest(("x",), (Fold(one, ("x",)), Fold(other, ())), {})
    with pytest.raises(ValueError, match="trials must hold every name"):
        FoldManifest(("x",), (Fold("a", ("y",)),), {})


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 3},
        {"format": "two"},
        {"format": []},
        {"trials": "abc"},
        {"trials": [1, 2]},
        {"trials": {}},
        {"folds": 3},
        {"folds": [3]},
        {"folds": [{"name": "model-000"}]},
        {"folds": [{"name": "model-000", "left_out": "sound 0"}]},
        {"folds": [{"name": "model-000", "left_out": ["unknown"]}]},
        {"folds": [{"name": "model-000", "left_out": [["sound 0"]]}]},
        {"facts": []},
        {"sounds": []},
        {"sounds": {"sound 0": 3}},
        {"sounds": {"unknown": "abc"}},
    ],
    ids=str,
)
def test_manifests_of_another_shape_are_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = plan_folds(recording(), crossval=True).save(tmp_path / "folds.json")
    edit(path, **changes)
    with pytest.raises(DamagedFileError, match=r"folds\.json is damaged"):
        FoldManifest.load(path)


def test_no_damage_to_a_manifest_goes_unseen(tmp_path: Path) -> None:
    plan = plan_folds(recording(), crossval=True, jackknife=True)
    path = plan.save(tmp_path / "folds.json")
    content, chance = path.read_bytes(), random.Random(5)
    for _ in range(300):
        place, kind = chance.randrange(len(content)), chance.randrange(3)
        broken = {
            0: content[:place],
            1: content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :],
            2: content[:place] + chance.randbytes(4) + content[place:],
        }[kind]
        path.write_bytes(broken)
        try:
            again = FoldManifest.load(path)
        except ValueError as error:
            known = str(path) in str(error)
        else:
            known = again == plan  # white space of the file, no content
        assert known, broken
    path.write_bytes(content)
    assert FoldManifest.load(path) == plan


def test_manifests_of_earlier_versions_load_with_one_warning(tmp_path: Path) -> None:
    made(tmp_path)
    path = tmp_path / "folds.json"
    tree = json.loads(path.read_text())
    facts = {key: value for key, value in tree["facts"].items() if key != "mark_of_run"}
    tree = {**tree, "format": 1, "facts": facts}
    tree.pop("sha256")
    path.write_text(json.dumps(tree, indent=2))
    for fold in ("model-000", "model-001", "model-002"):
        (tmp_path / fold / "run.txt").unlink()
    with pytest.warns(UserWarning, match="earlier version") as caught:
        fits = made(tmp_path)  # nothing is fitted anew, and the manifest has its checksum from now on
    assert len(caught) == 1
    assert fits.n_missing == 0
    assert len(predict_folds(FoldFits(tmp_path), recording())) == 3
    stripped = json.loads(path.read_text())
    stripped.pop("sha256")
    path.write_text(json.dumps(stripped))
    with pytest.raises(DamagedFileError, match="lost its checksum"):
        FoldFits(tmp_path)


def test_manifests_of_users_are_sealed_and_hold_any_fit(tmp_path: Path) -> None:
    plan_folds(recording(), crossval=True).save(tmp_path / "folds.json")
    for number in range(3):
        linear(number).save_pretrained(tmp_path / f"model-00{number}")
    assert len(predict_folds(FoldFits(tmp_path), recording())) == 3
    with pytest.raises(ValueError, match="no fold"):
        FoldFits(tmp_path).model("../model-000")
    assert not FoldFits(tmp_path).has("../model-000")
    with pytest.raises(TypeError, match="JSON"):
        FoldManifest((), (), {"a": object()}).save(tmp_path / "other.json")
    assert not (tmp_path / "other.json").exists()


@pytest.mark.parametrize("special", ["fifo", "zero", "folder", "bytes"])
def test_special_files_are_named(tmp_path: Path, special: str) -> None:
    path = tmp_path / "folds.json"
    if special == "fifo":
        os.mkfifo(path)
    elif special == "zero":
        path.symlink_to("/dev/zero")
    elif special == "folder":
        path.mkdir()
    else:
        path.write_bytes(b"\xff\xfe" + b"{}" * 10)
    with pytest.raises((ValueError, OSError), match=r"folds\.json"):
        FoldManifest.load(path)


def test_a_fit_of_another_run_is_none_of_this(tmp_path: Path) -> None:
    """With the folds of one run and the fits of another nothing predicts."""
    made(tmp_path / "a")
    made(tmp_path / "b", seed=7)
    shutil.copyfile(tmp_path / "b" / "folds.json", tmp_path / "a" / "folds.json")
    assert FoldFits(tmp_path / "a").n_missing == 3
    with pytest.raises(FileNotFoundError, match="of another run"):
        predict_folds(FoldFits(tmp_path / "a"), recording())


def test_a_refused_call_changes_nothing(tmp_path: Path) -> None:
    made(tmp_path / "fits")
    (tmp_path / "fits" / "model-001" / "notes.txt").write_text("mine")
    before = tree_of(tmp_path)
    for options in ({"n_validation": 5}, {"batch_size": 0}, {"fitter_kwargs": {"epochs": 1}}, {"seed": 3}):
        overwrite = "seed" not in options
        with pytest.raises((ValueError, TypeError)):
            made(tmp_path / "fits", overwrite=overwrite, **options)
        assert tree_of(tmp_path) == before
    with pytest.raises(ValueError, match="7"):
        made(tmp_path / "fits", lambda seed: Linear(7, 3, NEURONS), overwrite=True)
    assert tree_of(tmp_path) == before
    with pytest.raises(ValueError, match="7"):
        made(tmp_path / "new", lambda seed: Linear(7, 3, NEURONS))
    assert not (tmp_path / "new").exists()


def test_a_failing_overwrite_leaves_the_earlier_run(tmp_path: Path) -> None:
    fits = made(tmp_path)
    wanted, before = predict_folds(fits, recording()), tree_of(tmp_path)
    calls: list[int] = []

    def failing(seed: int) -> Linear:
        calls.append(seed)
        if len(calls) > 1:  # the first is for the settings
            raise KeyboardInterrupt
        return wider(seed)

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, failing, overwrite=True)
    assert tree_of(tmp_path) == before
    for one, other in zip(predict_folds(FoldFits(tmp_path), recording()), wanted, strict=True):
        assert torch.equal(one, other)


def test_overwriting_replaces_fit_by_fit_and_keeps_what_is_not_ours(tmp_path: Path) -> None:
    ds = recording()
    fit_folds(linear, ds, plan_folds(ds, crossval=True, jackknife=True), tmp_path, **QUICK)
    (tmp_path / "model-000_001" / "notes.txt").write_text("mine")
    made(tmp_path, linear, overwrite=True)  # folds of other names
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "folds.json", "model-000", "model-000_001", "model-001", "model-002",
    ]  # fmt: skip
    assert tree_of(tmp_path / "model-000_001") == {"notes.txt": b"mine"}
    (tmp_path / "model-000" / "notes.txt").write_text("mine")
    calls: list[int] = []

    def stopping(seed: int) -> Linear:
        calls.append(seed)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return wider(seed)

    with pytest.raises(KeyboardInterrupt):
        made(tmp_path, stopping, overwrite=True)
    half = FoldFits(tmp_path)
    assert [half.has(f"model-00{k}") for k in range(3)] == [True, False, False]
    with pytest.raises(FileNotFoundError, match="of another run"):
        half.model("model-001")
    fits = made(tmp_path, wider)
    assert [fits.model(f"model-00{k}").T for k in range(3)] == [4, 4, 4]
    assert (tmp_path / "model-000" / "notes.txt").read_text() == "mine"


def test_folders_that_are_no_fits_are_not_written_into(tmp_path: Path) -> None:
    made(tmp_path)
    shutil.rmtree(tmp_path / "model-001")
    (tmp_path / "model-001").mkdir()
    (tmp_path / "model-001" / "config.json").write_text('{"port": 80}')
    before = tree_of(tmp_path)
    with pytest.raises(FileExistsError, match="model-001"):
        made(tmp_path, wider, overwrite=True)
    assert tree_of(tmp_path) == before
    shutil.rmtree(tmp_path / "model-001")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model-001").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match="link"):
        made(tmp_path, wider, overwrite=True)
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_full_disk_while_a_fit_is_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made(tmp_path)
    before = tree_of(tmp_path)
    true = _files._write_durably

    def full(path: Path, data: bytes) -> None:
        if path.name == "model.safetensors":
            raise OSError(28, "No space left on device")
        true(path, data)

    with monkeypatch.context() as patched:
        patched.setattr(_files, "_write_durably", full)
        with pytest.raises(OSError, match=r"No space left.*model-000"):
            made(tmp_path, wider, overwrite=True)
    assert tree_of(tmp_path) == before


def test_exchanged_fits_are_not_read_and_fitted_anew(tmp_path: Path) -> None:
    ds = recording()
    before = predict_folds(made(tmp_path), ds)
    names = ["model-000", "model-001", "between"]
    for source, target in zip([0, 1, 2], [2, 0, 1], strict=True):
        (tmp_path / names[source]).rename(tmp_path / names[target])
    assert not any(FoldFits(tmp_path).has(name) for name in names[:2])
    with pytest.raises(FileNotFoundError, match="of another run or fold"):
        predict_folds(FoldFits(tmp_path), ds)
    after = predict_folds(made(tmp_path), ds)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
