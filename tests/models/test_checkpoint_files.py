"""Files of a checkpoint: damage, kills, full disks, absurd sizes and special files, against one contract.

A load returns the model that was saved or raises an error that names the file; a save that fails or is killed
leaves the earlier checkpoint or the new one, whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from deepSTRF import _files
from deepSTRF._files import MANIFEST, DamagedFileError, adding_manifest
from deepSTRF.models import Configurable, NeuralModel
from deepSTRF.models.audio import ICNet, Linear, StateNet, Transformer
from deepSTRF.models.io import checkpoint as checkpoint_module
from deepSTRF.models.io.checkpoint import checkpoint_files, save_checkpoint

FILES = ("config.json", "model.safetensors", "manifest.json", "metadata.json")


def small(seed: int = 0) -> Linear:
    torch.manual_seed(seed)
    return Linear(4, 3, 2)


def reseal(folder: Path) -> None:
    """Give a changed folder a right manifest: what somebody would do who means harm."""
    names = [name for name in ("config.json", "README.md", "model.safetensors") if (folder / name).exists()]
    files = {name: (folder / name).read_bytes() for name in names}
    (folder / MANIFEST).write_bytes(dict(adding_manifest(files.items(), "checkpoint"))[MANIFEST])


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    reseal(folder)


def as_format_1(folder: Path) -> None:
    """Turn a checkpoint into one of format 1: the same files, and no manifest."""
    (folder / MANIFEST).unlink()
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_format": 1}, indent=2))


def equal(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


# ------------------------------ damaged bytes


def damage(content: bytes, chance: random.Random) -> bytes:
    """Truncate, flip one bit, overwrite a block, or put bytes in between."""
    place = chance.randrange(len(content))
    kind = chance.randrange(4)
    if kind == 0:
        return content[:place]
    if kind == 1:
        return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + chance.randbytes(16) + content[place + 16 :]
    return content[:place] + chance.randbytes(chance.randrange(1, 9)) + content[place:]


@pytest.mark.parametrize("name", FILES)
def test_no_damage_goes_unseen(tmp_path: Path, name: str) -> None:
    model = small()
    model.save_pretrained(tmp_path, metadata={"sha256": "mine", "scores": [0.5, None]})
    content, chance = (tmp_path / name).read_bytes(), random.Random(name)
    for case in range(200):
        broken = damage(content, chance)
        if broken == content:
            continue
        (tmp_path / name).write_bytes(broken)
        if name == "metadata.json":
            with pytest.warns(UserWarning, match=r"without its metadata.*metadata\.json is damaged"):
                twin, metadata = Linear.from_pretrained(tmp_path, return_metadata=True)
            assert metadata is None, case
            assert equal(twin, model), case
        else:
            with pytest.raises(ValueError, match=name):
                Linear.from_pretrained(tmp_path)
    (tmp_path / name).write_bytes(content)
    twin, metadata = Linear.from_pretrained(tmp_path, return_metadata=True)
    assert equal(twin, model)
    assert metadata == {"sha256": "mine", "scores": [0.5, None]}


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_damage_to_checkpoints_of_format_1(tmp_path: Path, name: str, within) -> None:
    """Their content hash was written, and covers class, arguments and weights."""
    model = small()
    model.save_pretrained(tmp_path)
    as_format_1(tmp_path)
    with pytest.warns(UserWarning, match="earlier version.*save the model again"):
        assert equal(Linear.from_pretrained(tmp_path), model)
    content, chance = (tmp_path / name).read_bytes(), random.Random(1)
    loaded: list[nn.Module] = []
    for case in range(100):
        (tmp_path / name).write_bytes(damage(content, chance))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            raised = within(20, lambda: loaded.append(Linear.from_pretrained(tmp_path)))
        if raised is None:
            assert equal(loaded[-1], model), case
        else:
            assert isinstance(raised, ValueError | OSError), raised
            assert str(tmp_path) in str(raised), raised


def test_what_is_lost_is_named(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "a", metadata={"a": 1})
    for name, error in (
        ("config.json", FileNotFoundError),
        ("model.safetensors", FileNotFoundError),
        (MANIFEST, DamagedFileError),
    ):
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        (tmp_path / "b" / name).unlink()
        with pytest.raises(error, match=name):
            NeuralModel.from_pretrained(tmp_path / "b")
        shutil.rmtree(tmp_path / "b")
    (tmp_path / "a" / "metadata.json").unlink()
    with pytest.warns(UserWarning, match=r"metadata\.json is damaged.*missing"):
        assert Linear.from_pretrained(tmp_path / "a", return_metadata=True)[1] is None


def test_the_card_may_be_edited(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    (tmp_path / "README.md").write_bytes(b"\xff mine")
    assert equal(Linear.from_pretrained(tmp_path), small())
    (tmp_path / "README.md").unlink()
    assert equal(Linear.from_pretrained(tmp_path), small())


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", MANIFEST])
def test_files_of_two_checkpoints(tmp_path: Path, name: str, sealed: bool) -> None:
    """Of the same sizes: another seed, and a setting that no shape shows."""
    small().save_pretrained(tmp_path / "a")
    torch.manual_seed(1)
    Linear(4, 3, 2, output_activation="softplus").save_pretrained(tmp_path / "b")
    shutil.copyfile(tmp_path / "b" / name, tmp_path / "a" / name)
    if sealed and name != MANIFEST:
        reseal(tmp_path / "a")
    with pytest.raises(DamagedFileError, match=str(tmp_path / "a")):
        Linear.from_pretrained(tmp_path / "a")


def test_missing_and_extra_tensors_are_named(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import save_file

    small().save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    with safe_open(path, framework="pt") as handle:
        header = handle.metadata()
        state = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118  (no mapping)
    for changed in (
        {**state, "extra": torch.zeros(2)},
        dict(list(state.items())[1:]),
        {**state, next(iter(state)): torch.zeros(3, 3)},
    ):
        save_file(changed, path, metadata=header)
        reseal(tmp_path)
        with pytest.raises(ValueError, match=r"do not fit Linear|damaged") as caught:
            Linear.from_pretrained(tmp_path)
        assert str(tmp_path) in str(caught.value)
    for shared in ("[]", '"x"', "{", '{"a": 1}', '{"a": "gone"}', "3", "null"):
        save_file(state, path, metadata={**header, "shared": shared})
        reseal(tmp_path)
        with pytest.raises(DamagedFileError, match=r"model\.safetensors"):
            Linear.from_pretrained(tmp_path)


# ------------------------------ configurations of other shapes and absurd sizes


@pytest.mark.parametrize(
    "changes",
    [
        {"_model_class": 3},
        {"_model_class": None},
        {"_model_class": ["Linear"]},
        {"_format": "two"},
        {"_format": [2]},
        {"_format": -1},
        {"out_neurons": "2"},
        {"out_neurons": [2]},
        {"out_neurons": float("nan")},
        {"temporal_window_size": {}},
        {"kernel": {"$module": 3}},
        {"kernel": {"$module": ["x"], "kwargs": {}}},
        {"kernel": {"$module": "torch.nn.Linear", "kwargs": [1]}},
        {"kernel": {"$module": "torch.nn.Sequential", "kwargs": {"0": 3}}},
        {"kernel": {"$tuple": 3}},
        {"kernel": {"$float": []}},
        {"kernel": {"$dtype": []}},
        {"kernel": {"$tensor": [[1], [2, 3]], "dtype": "float32"}},
        {"kernel": {"$tensor": [1]}},
        {"_fitted_on": []},
        {"_fitted_on": {"neurons": "ab"}},
        {"_fitted_on": {"neurons": [1]}},
        {"_fitted_on": {"dt_ms": "5"}},
        {"_fitted_on": {"frequencies_hz": 3}},
        {"_band_std": 3},
        {"_band_std": ["a", "b", "c", "d"]},
        {"_band_std": [[1.0], [1.0], [1.0], [1.0]]},
    ],
    ids=str,
)
def test_configurations_of_another_shape(tmp_path: Path, changes: dict[str, Any]) -> None:
    small().save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged"):
        NeuralModel.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "content", [b"[" * 100_000, b'{"a":' * 50_000, b"\xff\xfe{}", b"", b"null", b"3", b'"x"', b"NaN", b"[]"]
)
def test_configurations_that_are_none(tmp_path: Path, content: bytes) -> None:
    small().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(content)
    reseal(tmp_path)
    with pytest.raises(DamagedFileError, match=r"config\.json is damaged"):
        NeuralModel.from_pretrained(tmp_path)


class Stack(NeuralModel, Configurable):
    """A model of a user's: layers in a loop without a bound, and a layer of any width."""

    def __init__(self, n_layers: int = 1, width: int = 2, out_neurons: int = 1) -> None:
        super().__init__(out_neurons)
        self.layers = nn.ModuleList()
        for _ in range(n_layers):
            self.layers.append(nn.ReLU())
        self.first = nn.Linear(width, width)


ABSURD = {
    "layers": (lambda: StateNet(8, out_neurons=2), {"num_layers": 10**30}),
    "width": (lambda: StateNet(8, out_neurons=2), {"hidden_channels": 10**12}),
    "window": (small, {"temporal_window_size": 10**12}),
    "large window": (small, {"temporal_window_size": 10**9}),
    "neurons": (small, {"out_neurons": 2**31 - 1}),
    "digits": (small, {"out_neurons": 10**4000}),
    "a loop of a user's": (Stack, {"n_layers": 10**30}),
    "a width of a user's": (Stack, {"width": 10**6}),
    "torch": (Stack, {"width": {"$module": "torch.nn.Conv1d", "kwargs": {
        "in_channels": 10**12, "out_channels": 1, "kernel_size": 1,
    }}}),
    "attention": (lambda: Transformer(8, out_neurons=2), {"n_layers": 10**30}),
}  # fmt: skip


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_sizes_are_refused_before_they_are_allocated(tmp_path: Path, case: str, within) -> None:
    make, changes = ABSURD[case]
    make().save_pretrained(tmp_path)
    edit(tmp_path, **changes)
    started = time.process_time()
    raised = within(60, lambda: NeuralModel.from_pretrained(tmp_path, modules={"Stack": Stack}))
    assert isinstance(raised, DamagedFileError), raised
    assert "config.json" in str(raised)
    assert time.process_time() - started < 3.0  # a second on a machine that does nothing else


def test_another_size_than_the_weights_is_named(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    edit(tmp_path, out_neurons=3)
    with pytest.raises(ValueError, match="do not fit Linear") as caught:
        NeuralModel.from_pretrained(tmp_path)
    assert str(tmp_path) in str(caught.value)


def test_sizes_that_the_caller_gives_are_no_damage(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match="strict=False"):
        model = Linear.from_pretrained(tmp_path, extra_kwargs={"out_neurons": 300_000}, strict=False)
    assert model.O == 300_000
    with pytest.raises(ValueError, match=r"extra_kwargs.*out_neurons") as caught:
        Linear.from_pretrained(tmp_path, extra_kwargs={"out_neurons": -1})
    assert not isinstance(caught.value, DamagedFileError)


@pytest.mark.parametrize(
    ("argument", "build"),
    [
        ("num_layers", lambda n: StateNet(8, out_neurons=2, num_layers=n)),
        ("n_layers", lambda n: Transformer(8, out_neurons=2, n_layers=n)),
        ("n_encoder_layers", lambda n: ICNet(48000.0, out_neurons=2, n_encoder_layers=n)),
        ("out_neurons", lambda n: Linear(4, 3, n)),
        ("temporal_window_size", lambda n: Linear(4, n, 2)),
    ],
)
def test_constructors_refuse_absurd_counts_by_name(
    argument: str, build: Callable[[int], nn.Module], within
) -> None:
    for number in (10**12, 10**30, 10**5000):
        raised = within(30, lambda number=number: build(number))
        assert isinstance(raised, ValueError), raised
        assert argument in str(raised) or "temporal_window" in str(raised)


# ------------------------------ special files and links


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("special", ["fifo", "zero", "folder", "dangling"])
def test_special_files_are_named_and_nothing_hangs(tmp_path: Path, name: str, special: str, within) -> None:
    small().save_pretrained(tmp_path, metadata={"a": 1})
    (tmp_path / name).unlink()
    if special == "fifo":
        os.mkfifo(tmp_path / name)
    elif special == "folder":
        (tmp_path / name).mkdir()
    else:
        (tmp_path / name).symlink_to("/dev/zero" if special == "zero" else tmp_path / "nowhere")
    if name == "metadata.json":
        with pytest.warns(UserWarning, match=r"metadata\.json"):
            assert within(20, lambda: Linear.from_pretrained(tmp_path)) is None
        return
    raised = within(20, lambda: Linear.from_pretrained(tmp_path))
    assert isinstance(raised, ValueError | OSError), raised
    assert name in str(raised)


def test_folders_of_links_are_read_and_nothing_is_written_through_links(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path / "blobs")
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (snapshot / path.name).symlink_to(path)
    assert equal(Linear.from_pretrained(snapshot), small())
    before = {path.name: path.read_bytes() for path in (tmp_path / "blobs").iterdir()}
    small(1).save_pretrained(snapshot)
    assert {path.name: path.read_bytes() for path in (tmp_path / "blobs").iterdir()} == before
    assert not any(path.is_symlink() for path in snapshot.iterdir())
    assert equal(Linear.from_pretrained(snapshot), small(1))
    (tmp_path / "link").symlink_to(snapshot)  # a folder that the user names may be a link
    small(2).save_pretrained(tmp_path / "link")
    assert equal(Linear.from_pretrained(snapshot), small(2))


def test_files_of_others_are_not_replaced(tmp_path: Path) -> None:
    for name, text in (
        ("README.md", "# My project"),
        ("config.json", '{"port": 80}'),
        ("metadata.json", "{}"),
        (MANIFEST, '{"name": "an app"}'),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).write_text(text)
        with pytest.raises(FileExistsError, match=name):
            small().save_pretrained(folder)
        assert [(path.name, path.read_text()) for path in folder.iterdir()] == [(name, text)]
    run = tmp_path / "run"
    _files.replace_folder(run, [("scores.csv", b"1")], "run")
    with pytest.raises(FileExistsError, match="run"):
        small().save_pretrained(run)
    assert (run / "scores.csv").read_bytes() == b"1"


# ------------------------------ kills and full disks


class Killed(BaseException):
    """A kill: nothing that catches errors may catch it."""


@pytest.mark.parametrize(
    "function", ["_write_durably", "_sync_folder", "os.replace", "os.rename", "shutil.rmtree"]
)
def test_a_kill_at_every_step_leaves_one_whole_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    old, new = small(0), small(1)
    holder: Any = _files
    if "." in function:
        holder = getattr(_files, function.split(".")[0])
    name = function.split(".")[-1]
    true = getattr(holder, name)
    for step in range(40):
        target = tmp_path / f"{step}"
        old.save_pretrained(target, metadata={"which": "old"})
        calls = iter(range(1000))
        stopped = False

        def step_or_kill(*args: Any, step: int = step, calls: Any = calls, **kwargs: Any) -> Any:
            nonlocal stopped
            if stopped or next(calls) == step:
                stopped = True
                raise Killed
            return true(*args, **kwargs)

        with monkeypatch.context() as patched:
            patched.setattr(holder, name, step_or_kill)
            with contextlib.suppress(Killed):
                save_checkpoint(new, target, metadata={"which": "new"})
        twin, metadata = Linear.from_pretrained(target, return_metadata=True)
        assert equal(twin, new if metadata["which"] == "new" else old), step
        save_checkpoint(new, target, metadata={"which": "new"})
        assert equal(Linear.from_pretrained(target), new), step
        assert {path.name for path in target.iterdir() if path.suffix} == {*FILES, "README.md"}, step
        if not stopped:
            break
    else:
        raise AssertionError("more steps than expected")


def test_a_full_disk_at_every_write_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small(0).save_pretrained(tmp_path, metadata={"which": "old"})
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    true = _files._write_durably
    for step in range(5):
        written: list[str] = []

        def full(path: Path, data: bytes, step: int = step, written: list[str] = written) -> None:
            written.append(path.name)
            if len(written) == step + 1:
                path.write_bytes(data[: len(data) // 2])
                raise OSError(28, "No space left on device")
            true(path, data)

        with monkeypatch.context() as patched:
            patched.setattr(_files, "_write_durably", full)
            for target in (tmp_path, tmp_path / "new"):
                written.clear()
                with pytest.raises(OSError, match=r"No space left.*\.(json|md|safetensors)"):
                    small(1).save_pretrained(target, metadata={"which": "new"})
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert equal(Linear.from_pretrained(tmp_path), small(0))


def test_files_of_a_checkpoint_can_go_into_another_artefact(tmp_path: Path) -> None:
    names = [name for name, _ in checkpoint_files(small(), metadata={"a": 1})]
    assert sorted(names) == sorted({*FILES, "README.md"} - {MANIFEST})
    inner = adding_manifest(checkpoint_files(small()), checkpoint_module.KIND)
    _files.replace_folder(tmp_path, ((f"model/{name}", content) for name, content in inner), "run")
    assert equal(NeuralModel.from_pretrained(tmp_path / "model"), small())
    with pytest.raises(FileNotFoundError, match=r"checkpoint of this run is .*model"):
        NeuralModel.from_pretrained(tmp_path)


def test_large_files_are_verified_beside_the_building(tmp_path: Path) -> None:
    model = Linear(200, 60, 100)
    model.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    assert path.stat().st_size > checkpoint_module._LARGE
    assert equal(Linear.from_pretrained(tmp_path), model)
    content = bytearray(path.read_bytes())
    content[-1000] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(DamagedFileError, match=r"model\.safetensors is damaged"):
        Linear.from_pretrained(tmp_path)


def test_stale_metadata_of_format_1_goes(tmp_path: Path) -> None:
    small().save_pretrained(tmp_path, metadata={"a": 1})
    as_format_1(tmp_path)
    small(1).save_pretrained(tmp_path)
    assert not (tmp_path / "metadata.json").exists()
