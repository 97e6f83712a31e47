"""HDF5 files from elsewhere: links, sizes and types are checked before anything is read."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from deepSTRF._files import DamagedFileError, load_npy
from deepSTRF.datasets.hdf5 import Hdf5File, is_hdf5


@pytest.fixture
def path(tmp_path):
    return tmp_path / "file.h5"


def opened(path, call):
    with Hdf5File(path) as file:
        return call(file)


def test_values_texts_and_attributes_come_as_they_are(path):
    with h5py.File(path, "w") as file:
        file["big"] = np.arange(4, dtype=">i2")
        file["scalar"] = 3.5
        file["never"] = np.empty((0, 2))
        file["texts"] = np.array(["a", "b\u00e9", ""], dtype=h5py.string_dtype())
        file["bytes"] = np.array([b"a", b"bc"])
        file["one"] = "text"
        file["group/deep"] = [1, 2]
        file.attrs["n"], file.attrs["t"], file.attrs["ts"] = 2, "word", np.array([b"x", b"y"])
    with Hdf5File(path) as file:
        assert file.values(file.find("big")).tolist() == [0, 1, 2, 3]
        assert file.values(file.find("big")).dtype == np.int16
        assert file.values(file.find("big"), 1, 3).tolist() == [1, 2]
        assert file.values(file.find("big"), 3, 99).tolist() == [3]
        assert file.values(file.find("scalar")) == 3.5
        assert file.values(file.find("never")).shape == (0, 2)
        assert file.texts(file.find("texts")) == ["a", "b\u00e9", ""]
        assert file.texts(file.find("bytes")) == ["a", "bc"]
        assert file.texts(file.find("one")) == ["text"]
        assert file.values(file.find("/group/./deep")).tolist() == [1, 2]
        assert file.find("deep", file.find("group")) is not None
        assert file.find("group/none/x") is None
        assert file.find("big/x") is None
        assert file.attribute(file.root, "n") == 2
        assert file.attribute(file.root, "t") == "word"
        assert file.attribute(file.root, "ts").tolist() == ["x", "y"]
        assert file.attribute(file.root, "no") is None


def test_a_file_beside_is_followed_and_one_outside_is_refused(tmp_path, path):
    inside, outside = tmp_path / "beside.h5", tmp_path.parent / f"{tmp_path.name}-outside.h5"
    for place in (inside, outside):
        with h5py.File(place, "w") as file:
            file["data"] = [1.0, 2.0]
    (tmp_path / "alias.h5").symlink_to(outside)
    with h5py.File(path, "w") as file:
        file["near"] = h5py.ExternalLink("beside.h5", "/data")
        file["soft"] = h5py.SoftLink("/near")
        for name, target in {"far": f"../{outside.name}", "root": str(outside), "alias": "alias.h5"}.items():
            file[name] = h5py.ExternalLink(target, "/data")
        file["passwd"] = h5py.ExternalLink("/etc/passwd", "/data")
        file["gone"] = h5py.ExternalLink("gone.h5", "/data")
    with Hdf5File(path) as file:
        assert file.values(file.find("near")).tolist() == [1, 2] == file.values(file.find("soft")).tolist()
        for name in ("far", "root", "alias", "passwd"):
            with pytest.raises(DamagedFileError, match=r"file\.h5.*outside the folder"):
                file.find(name)
        with pytest.raises(DamagedFileError, match="not there"):
            file.find("gone")
        assert [name for name, _ in file.members(file.root)] == ["near", "soft"]
    outside.unlink()


def test_loops_of_links_end(path, within):
    with h5py.File(path, "w") as file:
        file["a"], file["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/a")
        group = file.create_group("g")
        group["again"] = group
        group["up"] = file["/"]
        group["nothing"] = h5py.SoftLink("/nowhere")
    with Hdf5File(path) as file:
        assert "leads to more than" in str(within(10, lambda: file.find("a")))
        assert file.find("g/nothing") is None
        assert [name for name, _ in file.walk(file.root)] == ["/", "/g"]


def test_shapes_beyond_what_is_stored_are_refused(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("huge", (10**12,), dtype="f8", chunks=(1024,))
        file.create_dataset("wide", (10**12,), dtype="f8", chunks=(1024,), compression="gzip")[:2048] = 1.0
        file.create_dataset("zeros", (300_000,), dtype="f8", chunks=(300_000,), compression="gzip")[:] = 0.0
        file.create_dataset("late", (10,), dtype="f8")
    with Hdf5File(path) as file:
        for name in ("huge", "wide"):
            with pytest.raises(DamagedFileError, match=rf"/{name} states the shape"):
                file.values(file.find(name))
        assert file.values(file.find("wide"), 0, 5).tolist() == [1.0] * 5
        assert file.values(file.find("zeros")).sum() == 0.0
        assert file.values(file.find("late")).tolist() == [0.0] * 10


def test_bytes_of_other_files_are_refused(tmp_path, path):
    (tmp_path / "raw").write_bytes(bytes(80))
    with h5py.File(path, "w") as file:
        file.create_dataset("raw", (10,), dtype="f8", external=[(str(tmp_path / "raw"), 0, 80)])
        layout = h5py.VirtualLayout(shape=(10,), dtype="f8")
        layout[:] = h5py.VirtualSource("other.h5", "x", shape=(10,))
        file.create_virtual_dataset("virtual", layout)
    with Hdf5File(path) as file:
        for name in ("raw", "virtual"):
            with pytest.raises(DamagedFileError, match="other files"):
                file.values(file.find(name))


@pytest.mark.parametrize("size", [0, 1, 100, 2000])
def test_truncated_and_empty_files_are_named(path, size):
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(1000.0)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DamagedFileError, match=r"file\.h5 .*copy it again"):
        opened(path, lambda file: file.values(file.find("data")))


def test_files_are_known_by_their_bytes(tmp_path, path):
    with h5py.File(path, "w", userblock_size=512) as file:
        file["data"] = 1
    (tmp_path / "text").write_text("no HDF5")
    assert is_hdf5(path)
    assert not is_hdf5(tmp_path / "text")
    assert not is_hdf5(tmp_path)
    assert not is_hdf5(tmp_path / "none")


def test_npy_files_are_read_without_pickles_and_beyond_no_size(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    assert load_npy(tmp_path / "a.npy").tolist() == [[0, 1, 2], [3, 4, 5]]
    np.save(tmp_path / "objects.npy", np.array([print, 1], dtype=object), allow_pickle=True)
    with open(tmp_path / "huge.npy", "wb") as stream:
        np.lib.format.write_array_header_1_0(
            stream, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)}
        )
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("objects", "huge", "empty"):
        with pytest.raises(DamagedFileError, match=rf"{name}\.npy"):
            load_npy(tmp_path / f"{name}.npy")
