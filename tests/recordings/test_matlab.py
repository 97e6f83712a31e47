"""MATLAB files of versions 5 and 7.3: one tree of values, equal for both, and named errors for damage."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path

import h5py
import numpy as np
import pytest
import scipy.io
from scipy import sparse
from scipy.io import loadmat, savemat

from deepSTRF._files import DamagedFileError
from deepSTRF.datasets.audio.matlab import (
    MatlabFormat,
    Unreadable,
    elements,
    open_mat,
    read_variables,
    version_of,
)


def cell(values, shape):
    out = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        out[index] = value
    return out.reshape(shape, order="F")


class Mat73:
    """Writes variables as MATLAB's version 7.3 does, by the table of its layout."""

    def __init__(self, path):
        self.path = path

    def write(self, variables):
        with h5py.File(self.path, "w", userblock_size=512) as file:
            self.refs, self.made = file.create_group("#refs#"), 0
            for name, value in variables.items():
                self.put(file, name, value)
        with open(self.path, "r+b") as stream:
            stream.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(512, b" "))

    def reference(self, value):
        self.made += 1
        name = f"r{self.made}"
        self.put(self.refs, name, value)
        return self.refs[name].ref

    def put(self, group, name, value):
        if isinstance(value, dict):
            made = group.create_group(name)
            made.attrs["MATLAB_class"] = np.bytes_("struct")
            for key, item in value.items():
                self.put(made, key, item)
            return
        if isinstance(value, np.ndarray) and value.dtype == object and value.size:
            if isinstance(value.flat[0], dict):
                made = group.create_group(name)
                made.attrs["MATLAB_class"] = np.bytes_("struct")
                for key in value.flat[0]:
                    self.put_references(made, key, [item[key] for item in value.T.ravel()], value.shape)
                return
            data = self.put_references(group, name, list(value.T.ravel()), value.shape)
            data.attrs["MATLAB_class"] = np.bytes_("cell")
            return
        kind = {"f8": "double", "f4": "single", "b1": "logical", "O8": "cell", "c16": "double"}
        if isinstance(value, str):
            codes = np.frombuffer(value.encode("utf-16-le"), "<u2")[None]
            array, label = codes, "char"
        else:
            array = np.asarray(value)
            array = array.reshape(1, 1) if array.ndim == 0 else array
            label = kind.get(array.dtype.str[1:], array.dtype.name)
        if array.size == 0:
            data = group.create_dataset(name, data=np.array(array.shape, dtype=np.uint64))
            data.attrs["MATLAB_empty"] = np.uint8(1)
        elif array.dtype.kind == "c":
            parts = np.empty(array.shape, dtype=[("real", "f8"), ("imag", "f8")])
            parts["real"], parts["imag"] = array.real, array.imag
            data = group.create_dataset(name, data=parts.T)
        else:
            stored = array.astype(np.uint8) if array.dtype == bool else array
            data = group.create_dataset(name, data=stored.T)
        data.attrs["MATLAB_class"] = np.bytes_(label)

    def put_references(self, group, name, values, shape):
        references = np.array([self.reference(item) for item in values], dtype=h5py.ref_dtype)
        return group.create_dataset(name, data=references.reshape(shape[::-1]), dtype=h5py.ref_dtype)


def content():
    rng = np.random.default_rng(0)
    units = cell(
        [
            {
                "id": np.array([[7.0]]),
                "spikes": cell([np.array([[-5.0, 0, 14.9]]), np.empty((0, 0))], (1, 2)),
            },
            {"id": np.array([[3.0]]), "spikes": cell([np.array([[np.nan]]), np.array([[250.0]])], (1, 2))},
        ],
        (1, 2),
    )
    return {
        "matrix": rng.normal(size=(2, 3)),
        "cube": rng.integers(-5, 5, size=(2, 3, 4)).astype(np.int16),
        "row": np.arange(4.0)[None],
        "column": np.arange(4.0)[:, None].astype(np.float32),
        "scalar": np.array([[16000.0]]),
        "flags": np.array([[True, False, True]]),
        "z": np.array([[1 + 2j, 3 - 4j]]),
        "name": "zebra finch µ",
        "nothing": "",
        "empty": np.empty((0, 3)),
        "names": cell(["A", "B longer", ""], (1, 3)),
        "nested": cell([cell([np.array([[1.0]])], (1, 1)), np.empty((0, 0)), "x", units], (2, 2)),
        "info": {"fs": np.array([[500]], dtype=np.int32), "deep": {"x": np.eye(2), "label": "ok"}},
        "units": units,
        "big": np.array([[2**63 + 5]], dtype=np.uint64),
    }


def records(tree):
    """The tree as `savemat` needs it: arrays of dictionaries, as record arrays, are struct arrays there."""
    if isinstance(tree, dict):
        return {key: records(value) for key, value in tree.items()}
    if isinstance(tree, np.ndarray) and tree.dtype == object and tree.size:
        if not isinstance(tree.flat[0], dict):
            return cell([records(value) for value in elements(tree)], tree.shape)
        out = np.empty(tree.shape, dtype=[(name, "O") for name in tree.flat[0]])
        for index in np.ndindex(tree.shape):
            for name, value in tree[index].items():
                out[index][name] = records(value)
        return out
    return tree


def same(a, b, where="value"):
    assert type(a) is type(b), (where, type(a), type(b))
    if isinstance(a, dict):
        assert set(a) == set(b), where
        for key in a:
            same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, np.ndarray):
        assert a.shape == b.shape, (where, a.shape, b.shape)
        assert a.dtype == b.dtype, (where, a.dtype, b.dtype)
        if a.dtype == object:
            for index in np.ndindex(a.shape):
                same(a[index], b[index], f"{where}{index}")
        else:
            np.testing.assert_array_equal(a, b, err_msg=where)
    else:
        assert a == b, where


@pytest.mark.parametrize("compressed", [False, True])
def test_both_versions_give_what_was_written(tmp_path, compressed):
    wanted = content()
    savemat(tmp_path / "five.mat", records(wanted), do_compression=compressed)
    Mat73(tmp_path / "seven.mat").write(wanted)
    assert version_of(tmp_path / "five.mat") == "5"
    assert version_of(tmp_path / "seven.mat") == "7.3"
    five, seven = read_variables(tmp_path / "five.mat"), read_variables(tmp_path / "seven.mat")
    same(five, wanted)
    same(seven, wanted)
    for name in ("five.mat", "seven.mat"):
        with open_mat(tmp_path / name) as file:
            found = file.variables()
        assert {key: v.shape for key, v in found.items()} == {
            key: (1, len(v)) if isinstance(v, str) and v else (1, 1) if isinstance(v, dict) else np.shape(v)
            for key, v in wanted.items()
            if key != "nothing"
        } | {"nothing": found["nothing"].shape}
        assert found["units"].kind == "struct"
        assert found["names"].kind == "cell"
        assert found["flags"].kind == "logical"
        assert found["cube"].kind == "int16"
        assert found["name"].kind == "char"


def test_scipys_own_reading_of_numbers_agrees(tmp_path):
    savemat(tmp_path / "a.mat", records(content()))
    theirs = loadmat(tmp_path / "a.mat")
    ours = read_variables(tmp_path / "a.mat")
    for name in ("matrix", "cube", "row", "column", "scalar", "flags", "z", "empty", "big"):
        np.testing.assert_array_equal(ours[name], theirs[name])


def test_the_bytes_decide_not_the_suffix(tmp_path):
    savemat(tmp_path / "a.dat", {"x": np.eye(2)}, appendmat=False)
    same(read_variables(tmp_path / "a.dat"), {"x": np.eye(2)})
    (tmp_path / "b.mat").write_bytes(b"unit,time\n1,2.5\n" * 40)
    with pytest.raises(DamagedFileError, match=r"b\.mat is no MATLAB file"):
        read_variables(tmp_path / "b.mat")


def test_only_what_is_named_is_read_and_paths_lead_into_structs(tmp_path):
    wanted = content()
    savemat(tmp_path / "five.mat", records(wanted))
    Mat73(tmp_path / "seven.mat").write(wanted)
    for name in ("five.mat", "seven.mat"):
        found = read_variables(tmp_path / name, ["info.deep.x", "units.id", "scalar"])
        assert list(found) == ["info.deep.x", "units.id", "scalar"]
        same(found["info.deep.x"], np.eye(2))
        assert [float(v[0, 0]) for v in elements(found["units.id"])] == [7, 3]
        with pytest.raises(ValueError, match=r"has no variable 'spikes'; it holds: .*matrix"):
            read_variables(tmp_path / name, ["spikes"])
        with pytest.raises(ValueError, match=r"info\.rate cannot be read, there is no field 'rate'.*fs"):
            read_variables(tmp_path / name, ["info.rate"])
    raw = (tmp_path / "five.mat").read_bytes()
    (tmp_path / "cut.mat").write_bytes(raw)
    with open_mat(tmp_path / "cut.mat") as file:
        place = file._found()["matrix"]
    damaged = bytearray(raw)
    damaged[place[2] + 60] ^= 255  # inside of another variable's numbers
    (tmp_path / "cut.mat").write_bytes(damaged)
    same(read_variables(tmp_path / "cut.mat", ["scalar"]), {"scalar": np.array([[16000.0]])})


def test_struct_arrays_with_one_element_and_char_matrices_and_big_endian(tmp_path):
    one = np.zeros((1, 1), dtype=[("a", "O")])
    one[0, 0]["a"] = np.array([[1.0]])
    savemat(tmp_path / "a.mat", {"s": one, "rows": np.array(["abc", "de "])})
    found = read_variables(tmp_path / "a.mat")
    same(found["s"], {"a": np.array([[1.0]])})
    assert list(found["rows"].ravel()) == ["abc", "de "]
    assert found["rows"].shape == (2, 1)
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x01\x00MI"
    body = struct.pack(">IIBBBBI", 6, 8, 0, 0, 0, 6, 0) + struct.pack(">IIii", 5, 8, 1, 2)
    body += struct.pack(">HHcxxx", 1, 1, b"x") + struct.pack(">IIdd", 9, 16, 1.5, -2.0)
    (tmp_path / "b.mat").write_bytes(header + struct.pack(">II", 14, len(body)) + body)
    same(read_variables(tmp_path / "b.mat"), {"x": np.array([[1.5, -2.0]])})


def test_sparse_matrices_are_dense_in_both_versions(tmp_path):
    dense = np.zeros((4, 5))
    dense[[0, 3, 2], [1, 1, 4]] = [2.0, 3.0, -1.0]
    savemat(tmp_path / "five.mat", {"m": sparse.csc_matrix(dense)})
    column = sparse.csc_matrix(dense)
    with h5py.File(tmp_path / "seven.mat", "w", userblock_size=512) as file:
        group = file.create_group("m")
        group.attrs["MATLAB_class"], group.attrs["MATLAB_sparse"] = np.bytes_("double"), np.uint64(4)
        group["data"], group["ir"] = column.data, column.indices.astype(np.uint64)
        group["jc"] = column.indptr.astype(np.uint64)
    for name in ("five.mat", "seven.mat"):
        same(read_variables(tmp_path / name), {"m": dense})
        with open_mat(tmp_path / name) as file:
            assert file.variables()["m"].shape == (4, 5)


def test_version_4(tmp_path):
    savemat(tmp_path / "a.mat", {"x": np.arange(6.0).reshape(2, 3), "t": "text"}, format="4")
    assert version_of(tmp_path / "a.mat") == "4"
    same(read_variables(tmp_path / "a.mat"), {"x": np.arange(6.0).reshape(2, 3), "t": "text"})


def opaque_five(path, kind=b"string"):
    def short(text):
        return struct.pack("<II", 1, len(text)) + text + b"\0" * (-len(text) % 8)

    inner = struct.pack("<IIIIIIiiII", 6, 8, 6, 0, 5, 8, 1, 1, 1, 0) + struct.pack("<IId", 9, 8, 1.0)
    body = struct.pack("<IIII", 6, 8, 17, 0) + short(b"words") + short(b"MCOS") + short(kind)
    body += struct.pack("<II", 14, len(inner)) + inner
    savemat(path, {"x": np.eye(2)})
    with open(path, "ab") as stream:
        stream.write(struct.pack("<II", 14, len(body)) + body)


def opaque_seven(path, kind="table"):
    Mat73(path).write({"x": np.eye(2), "words": np.zeros((1, 6), dtype=np.uint32)})
    with h5py.File(path, "r+") as file:
        file["words"].attrs["MATLAB_class"] = np.bytes_(kind)
        file["words"].attrs["MATLAB_object_decode"] = np.int32(3)


@pytest.mark.parametrize(
    ("write", "instead"), [(opaque_five, r"'string'.*cellstr"), (opaque_seven, r"'table'.*table2struct")]
)
def test_what_only_matlab_reads_is_refused_by_name(tmp_path, write, instead):
    write(tmp_path / "a.mat")
    found = read_variables(tmp_path / "a.mat")
    same(found["x"], np.eye(2))
    assert isinstance(found["words"], Unreadable)
    for use in (np.asarray, float, list, lambda value: value[0]):
        with pytest.raises(ValueError, match=rf"words is of the MATLAB class {instead}"):
            use(found["words"])
    with pytest.raises(ValueError, match=rf"words is of the MATLAB class {instead}"):
        read_variables(tmp_path / "a.mat", ["words"])


def test_references_that_circle_lead_nowhere_or_multiply(tmp_path):
    def make(name, fill):
        with h5py.File(tmp_path / name, "w", userblock_size=512) as file:
            refs = file.create_group("#refs#")
            fill(file, refs)

    def data(group, name, references):
        made = group.create_dataset(name, shape=(len(references), 1), dtype=h5py.ref_dtype)
        made.attrs["MATLAB_class"] = np.bytes_("cell")
        for index, reference in enumerate(references):
            if reference is not None:
                made[index, 0] = reference
        return made

    def circle(file, refs):
        a = data(refs, "a", [None])
        b = data(refs, "b", [a.ref])
        a[0, 0] = b.ref
        data(file, "x", [a.ref])

    def nothing(file, refs):
        data(file, "x", [None])

    def gone(file, refs):
        refs["a"] = np.eye(2)
        data(file, "x", [refs["a"].ref])
        del refs["a"]

    def laughs(file, refs):
        refs["r0"] = np.eye(2)
        last = refs["r0"]
        for level in range(40):
            last = data(refs, f"r{level + 1}", [last.ref] * 10)
        data(file, "x", [last.ref])

    def deep(file, refs):
        refs["r0"] = np.eye(2)
        last = refs["r0"]
        for level in range(200):
            last = data(refs, f"r{level + 1}", [last.ref])
        data(file, "x", [last.ref])

    def elsewhere(file, refs):
        file["x"] = h5py.ExternalLink("/etc/passwd", "/")

    def soft(file, refs):
        file["x"] = h5py.SoftLink("/x")

    def outside(file, refs):
        (tmp_path / "secret.bin").write_bytes(b"12345678" * 4)
        file.create_dataset("x", shape=(4,), dtype="f8", external=[(str(tmp_path / "secret.bin"), 0, 32)])

    def huge(file, refs):
        file.create_dataset("x", shape=(10**6, 10**6), dtype="f8", chunks=(1000, 1000))

    def hollow(file, refs):
        made = file.create_dataset("x", data=np.array([2**40, 2**40], dtype=np.uint64))
        made.attrs["MATLAB_class"], made.attrs["MATLAB_empty"] = np.bytes_("double"), np.uint8(1)

    for fill in (circle, nothing, gone, deep, elsewhere, soft, outside, huge, hollow):
        make(f"{fill.__name__}.mat", fill)
        with pytest.raises(DamagedFileError, match=rf"{fill.__name__}\.mat is damaged"):
            read_variables(tmp_path / f"{fill.__name__}.mat")
    make("laughs.mat", laughs)
    value = read_variables(tmp_path / "laughs.mat")["x"]
    for _ in range(41):
        value = value.ravel()[-1]
    same(value, np.eye(2))


def test_truncated_and_changed_bytes_are_named(tmp_path):
    savemat(tmp_path / "plain.mat", records(content()))
    savemat(tmp_path / "packed.mat", records(content()), do_compression=True)
    Mat73(tmp_path / "seven.mat").write(content())
    rng = np.random.default_rng(1)
    for name in ("plain.mat", "packed.mat", "seven.mat"):
        raw = (tmp_path / name).read_bytes()
        for _ in range(40):
            bad = bytearray(raw)
            if rng.random() < 0.5:
                bad = bad[: int(rng.integers(128, len(raw)))]
            else:
                for place in rng.integers(0, len(raw), size=4):
                    bad[place] = int(rng.integers(256))
            (tmp_path / "bad.mat").write_bytes(bad)
            try:
                read_variables(tmp_path / "bad.mat")
            except DamagedFileError as error:
                if "bad.mat" not in str(error):
                    raise
        if name != "seven.mat":
            (tmp_path / "bad.mat").write_bytes(raw[:128])
            with pytest.raises(DamagedFileError, match=r"bad\.mat holds no variable"):
                MatlabFormat(tmp_path / "bad.mat").look({})
            (tmp_path / "bad.mat").write_bytes(raw[:-9])
            with pytest.raises(DamagedFileError, match=r"bad\.mat is damaged"):
                read_variables(tmp_path / "bad.mat")


def test_declared_sizes_take_no_memory(tmp_path):
    header = b"MATLAB 5.0 MAT-file".ljust(124) + b"\x00\x01IM"

    def variable(kind, shape, rest):
        body = struct.pack("<IIII", 6, 8, kind, 0) + struct.pack("<IIii", 5, 8, *shape)
        return body + struct.pack("<II", 1 | 1 << 16, ord("x")) + rest

    def element(body, kind=14):
        return struct.pack("<II", kind, len(body)) + body

    cases = {
        "cells": element(variable(1, (2**30, 2**30), b"")),
        "numbers": element(variable(6, (2**30, 2**30), struct.pack("<IId", 9, 8, 1.0))),
        "length": element(variable(6, (1, 1), struct.pack("<IId", 9, 2**32 - 8, 1.0))),
        "negative": element(variable(6, (-1, -1), struct.pack("<IId", 9, 8, 1.0))),
        "packed": element(zlib.compress(struct.pack("<II", 14, 2**32 - 8) + b"\0" * 64), 15),
        "structs": element(variable(2, (2**30, 2**30), struct.pack("<II", 5 | 4 << 16, 8))),
        "top": struct.pack("<II", 14, 2**32 - 8) + b"\0" * 64,
    }
    deep = element(variable(6, (1, 1), struct.pack("<IId", 9, 8, 1.0)))
    for _ in range(3000):
        deep = element(variable(1, (1, 1), deep))
    cases["deep"] = deep
    for name, bytes_ in cases.items():
        (tmp_path / f"{name}.mat").write_bytes(header + bytes_)
        with pytest.raises(DamagedFileError, match=rf"{name}\.mat is damaged"):
            read_variables(tmp_path / f"{name}.mat")


FILES_OF_SCIPY = sorted((Path(scipy.io.__file__).parent / "matlab" / "tests" / "data").glob("*.mat"))


@pytest.mark.skipif(not FILES_OF_SCIPY, reason="SciPy is installed without the files of its tests")
def test_files_of_many_versions_of_matlab_agree_with_scipy():
    compared = 0
    for path in FILES_OF_SCIPY:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                theirs = loadmat(path)
            except Exception:  # noqa: BLE001  (damaged, or of version 7.3)
                continue
        if path.name == "bad_miuint32.mat":
            continue
        ours = read_variables(path)
        for name, value in theirs.items():
            if name in ours and isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
                np.testing.assert_array_equal(ours[name], value, err_msg=f"{path.name}: {name}")
                compared += 1
            elif (
                name in ours and isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size == 1
            ):
                assert ours[name] == str(value.ravel()[0]), path.name
                compared += 1
            elif name in ours and hasattr(value, "toarray"):
                np.testing.assert_array_equal(ours[name], value.toarray(), err_msg=f"{path.name}: {name}")
                compared += 1
    assert compared > 50
