"""Missing, damaged and wrong files: an error that names the file and the call that mends it, or a report."""

from __future__ import annotations

import os
import re

import numpy as np
import pytest
import torch
from scipy.io import savemat

from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.datasets.audio import ns1 as _ns1_read
from deepSTRF.datasets.audio.ns1 import NS1_WAV_DIR_NAME, NS1_WAV_FILENAMES  # inner: tested by itself


def load(root, **options) -> NS1Dataset:
    return NS1Dataset(root, **{"return_waveform": True, "audio_fs": 2000, **options})


def spikes(root, number=1):
    return root / "spikesandwav" / "exp1" / f"cluster.{number:02d}.data.mat"


def test_the_small_recording_loads(small_units):
    ds = load(small_units)
    assert (ds.N_neurons, len(ds)) == (3, 20)
    assert [row["cell_id"] for row in ds.nrn_meta] == [
        "exp1/cluster.01.data", "exp1/cluster.02.data", "exp2/cluster.03.data",
    ]  # fmt: skip
    assert ds.nrn_meta[0] == {
        "cell_id": "exp1/cluster.01.data", "area": "A1", "depth_um": -100, "noise_ratio": 3.5, "single_n": 2,
        "single_t": "Yes", "n_electrodes": 32, "electrode_number": 1,
    }  # fmt: skip
    assert str(ds.load_report) == "kept 3, skipped 0"


def test_a_folder_that_is_none(tmp_path):
    mend = re.escape(f"NS1Dataset(path={str(tmp_path)!r}, download=True)")
    with pytest.raises(FileNotFoundError, match=rf"MetadataSHEnCneurons\.mat is missing; get it with {mend}"):
        load(tmp_path)


def test_the_folder_above(small_units):
    with pytest.raises(FileNotFoundError, match=rf"did you mean path={str(small_units)!r}\?"):
        load(small_units.parent)


@pytest.mark.parametrize("keep", [0, 1, 100, 0.2, 0.5, 0.9, 0.99, -100, -8, -1])
def test_a_truncated_spike_file_is_named(small_units, keep):
    path = spikes(small_units, 2)
    whole = path.read_bytes()
    path.write_bytes(whole[: round(keep * len(whole))] if isinstance(keep, float) else whole[:keep])
    with pytest.raises(
        ValueError, match=rf"{re.escape(str(path))} is damaged .*delete it, then .*download=True"
    ):
        load(small_units)


@pytest.mark.parametrize("content", [b"<html>not found</html>", b"\x89HDF\r\n\x1a\n" + b"\0" * 600])
def test_something_else_under_the_name_of_a_spike_file(small_units, content):
    spikes(small_units).write_bytes(content)
    with pytest.raises(ValueError, match=r"cluster\.01\.data\.mat is damaged"):
        load(small_units)


@pytest.mark.parametrize("fault", ["few sounds", "no field", "not finite", "no repeat"])
def test_a_spike_file_of_another_structure(small_units, fault):
    entries = np.empty((1, 31 if fault == "few sounds" else 32), dtype=[("repeats", object)])
    for number in range(entries.shape[1]):
        n_repeats = 0 if fault == "no repeat" and number == 3 else 2
        repeats = np.empty((1, n_repeats), dtype=[("x" if fault == "no field" else "t", object)])
        for repeat in range(n_repeats):
            repeats[0, repeat] = (np.array([[1.0, np.nan if fault == "not finite" else 2.0]]),)
        entries[0, number] = (repeats,)
    data = np.empty((1, 1), dtype=[("set", object)])
    data[0, 0] = (entries,)
    savemat(spikes(small_units), {"data": data})
    with pytest.raises(ValueError, match=r"cluster\.01\.data\.mat is damaged"):
        load(small_units)


def test_a_damaged_unit_can_be_left_out_and_is_reported(small_units):
    spikes(small_units, 2).write_bytes(b"nonsense" * 100)
    for _ in range(2):  # parsed, then from the cache
        ds = load(small_units, on_bad_file="skip")
        assert [row["cell_id"] for row in ds.nrn_meta] == ["exp1/cluster.01.data", "exp2/cluster.03.data"]
        assert ds.load_report.kept == ["exp1/cluster.01.data", "exp2/cluster.03.data"]
        ((name, why),) = ds.load_report.skipped
        assert name == "exp1/cluster.02.data"
        assert "is damaged" in why
    with pytest.raises(ValueError, match="is damaged"):
        load(small_units)


def test_a_missing_unit(small_units):
    spikes(small_units).unlink()
    with pytest.raises(FileNotFoundError, match=r"cluster\.01\.data\.mat is missing; .*on_bad_file='skip'"):
        load(small_units)
    ds = load(small_units, on_bad_file="skip")
    assert ds.N_neurons == 2
    assert ds.load_report.skipped == [
        ("exp1/cluster.01.data", "its spike file exp1/cluster.01.data.mat is missing")
    ]


def test_the_other_name_of_a_spike_file(small_units):
    truth = load(small_units)
    spikes(small_units).rename(spikes(small_units).with_name("cluster.01.data_1.mat"))
    ds = load(small_units)
    assert ds.nrn_meta == truth.nrn_meta
    assert torch.equal(ds.responses[3][0], truth.responses[3][0])


def test_no_spike_file_at_all(small_units):
    for number in (1, 2):
        spikes(small_units, number).unlink()
    (small_units / "spikesandwav" / "exp2" / "cluster.03.data.mat").unlink()
    with pytest.raises(FileNotFoundError, match="and 2 more spike files are missing"):
        load(small_units)
    with pytest.raises(FileNotFoundError, match="holds none of the 3 spike files"):
        load(small_units, on_bad_file="skip")


def test_damaged_metadata(small_units):
    path = small_units / "MetadataSHEnCneurons.mat"
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"MetadataSHEnCneurons\.mat is damaged"):
        load(small_units)


@pytest.mark.parametrize("options", [{}, {"return_waveform": False}])
def test_a_missing_sound(small_ns1, options):
    (small_ns1 / NS1_WAV_DIR_NAME / NS1_WAV_FILENAMES[4]).unlink()
    name = re.escape(NS1_WAV_FILENAMES[4])
    with pytest.raises(FileNotFoundError, match=rf"sound file .*{name} is missing; .*download=True"):
        load(small_ns1, **options)


@pytest.mark.parametrize("content", ["half", "text", "nothing"])
def test_a_damaged_sound(small_ns1, content):
    path = small_ns1 / NS1_WAV_DIR_NAME / NS1_WAV_FILENAMES[0]
    path.write_bytes({"half": path.read_bytes()[:400_000], "text": b"<html>", "nothing": b""}[content])
    with pytest.raises(ValueError, match=rf"{re.escape(path.name)} is damaged"):
        load(small_ns1)


def test_an_incomplete_repeat_list_is_ragged_not_lost(small_units):
    entries = np.empty((1, 32), dtype=[("repeats", object)])
    for number in range(32):
        repeats = np.empty((1, 7), dtype=[("t", object)])
        for repeat in range(7):
            repeats[0, repeat] = (np.array([[12.0]]),)
        entries[0, number] = (repeats,)
    data = np.empty((1, 1), dtype=[("set", object)])
    data[0, 0] = (entries,)
    savemat(spikes(small_units), {"data": data})
    ds = load(small_units, smooth=False)
    assert tuple(ds.responses[0][0].shape) == (7, 999)
    assert tuple(ds.responses[0][1].shape) == (20, 999)
    assert ds.responses[0][0].sum() == 7
    assert bool(ds.nrn_masks.all())
    drc = ds.drc_responses()
    assert tuple(drc.responses[0].shape) == (3, 7, 999)
    assert bool(drc.responses[0][1, 5:].isnan().all())
    assert bool(drc.responses[0][1, :5].isfinite().all())


def test_a_second_load_reads_no_recording(small_units, monkeypatch):
    first = load(small_units)

    def refuse(*args, **kwargs):
        raise RuntimeError("parsed again")

    for reader in ("load_mat", "read_spikes", "read_waveforms"):
        monkeypatch.setattr(_ns1_read, reader, refuse)
    second = load(small_units)
    assert all(torch.equal(a, b) for a, b in zip(first.stims, second.stims, strict=True))
    assert torch.equal(first.response_block(0), second.response_block(0))
    assert first.nrn_meta == second.nrn_meta
    assert first.stim_meta == second.stim_meta
    load(small_units, dt_ms=10.0)  # other bins come from the same parsed files
    with pytest.raises(RuntimeError, match="parsed again"):
        load(small_units, cache=False)


def test_a_changed_file_is_parsed_again(small_units):
    before = load(small_units).responses[0][0]
    path = spikes(small_units)
    path.write_bytes(spikes(small_units, 2).read_bytes())
    os.utime(path, ns=(1, 1))
    assert not torch.equal(load(small_units).responses[0][0], before)


def test_nothing_is_written_beside_the_recording(small_units):
    before = {path: path.stat().st_mtime_ns for path in small_units.rglob("*")}
    load(small_units)
    load(small_units, cache=False)
    assert {path: path.stat().st_mtime_ns for path in small_units.rglob("*")} == before
