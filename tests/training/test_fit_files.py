"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import os
import stat

import pytest
import torch

# files and states behind ckpt_path and state_path
from deepSTRF import _files as files
from deepSTRF._files import (  # inner: tested by itself
    load_tensors,
    save_or_warn,
    save_tensors,
    write_atomically,
)
from deepSTRF.training import StateMismatchError
from deepSTRF.training.resume import FitStateFile  # inner: tested by itself


def full_disk(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, step):
    path = tmp_path / "best.pt"
    write_atomically(path, b"old")
    monkeypatch.setattr(files.os, step, full_disk)
    with pytest.raises(OSError, match=r"No space left on device: '.*best\.pt'"):  # which file, in the text
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["best.pt"]


def test_parents_are_made_and_permissions_are_usual(tmp_path):
    path = tmp_path / "a" / "b" / "w.pt"
    write_atomically(path, b"x")
    other = tmp_path / "plain"
    other.write_bytes(b"x")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    path.chmod(0o600)
    write_atomically(path, b"y")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "scratch").mkdir()
    (tmp_path / "best.pt").symlink_to(tmp_path / "scratch" / "best.pt")
    write_atomically(tmp_path / "best.pt", b"x")
    assert (tmp_path / "best.pt").is_symlink()
    assert (tmp_path / "scratch" / "best.pt").read_bytes() == b"x"


def test_save_or_warn_goes_on_with_a_warning():
    with pytest.warns(RuntimeWarning, match="ckpt_path=best.pt could not be written .*keeps its best"):
        assert not save_or_warn("ckpt_path", "best.pt", full_disk)


def test_loading_executes_nothing(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "made"),)

    torch.save(Evil(), tmp_path / "evil.pt")
    with pytest.raises(ValueError, match="no readable file of tensors"):
        load_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "made").exists()
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "absent.pt")


def test_state_of_another_fit_names_every_difference(tmp_path):
    path = tmp_path / "fit.state"
    FitStateFile(path, {"model": "A", "loss": "mse", "seed": "0"}).save({"epoch": 1})
    with pytest.raises(StateMismatchError) as caught:
        FitStateFile(path, {"model": "B", "loss": "mse", "seed": "1"}).load()
    text = str(caught.value)
    assert "model: the file has 'A', this fit has 'B'" in text
    assert "seed: " in text
    assert "loss" not in text
    assert "start anew, delete the file" in text
    assert isinstance(caught.value, ValueError)


def test_no_state_and_an_empty_file_are_a_fresh_start(tmp_path):
    assert FitStateFile(tmp_path / "none", {}).load() is None
    (tmp_path / "empty").touch()
    assert FitStateFile(tmp_path / "empty", {}).load() is None


def test_a_foreign_or_damaged_state_file(tmp_path):
    save_tensors(tmp_path / "weights.pt", {"weight": torch.ones(1)})
    with pytest.raises(StateMismatchError, match="no fit state of this version"):
        FitStateFile(tmp_path / "weights.pt", {}).load()
    FitStateFile(tmp_path / "cut", {}).save({"x": torch.ones(100)})
    whole = (tmp_path / "cut").read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="no complete zip file"):
        FitStateFile(tmp_path / "cut", {}).load()
