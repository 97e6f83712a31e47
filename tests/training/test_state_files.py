"""Files of a running fit: damaged, foreign and special ones are named, and nothing is resumed."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from deepSTRF import _files
from deepSTRF._files import DamagedFileError, load_tensors, save_tensors
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, ProtocolCard, fit_multi_seed, make_loaders
from deepSTRF.training.resume import STATE_KIND, UNSEALED_FORMAT


@pytest.fixture(scope="module")
def ds() -> SyntheticDataset:
    return SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=3)


def fitter(ds: SyntheticDataset, epochs: int = 2, **options: Any) -> Fitter:
    torch.manual_seed(0)
    loaders = make_loaders(ds.select(clips=[0]), ds.select(clips=[1]), ds.select(clips=[2]), seed=0)
    model = Linear(ds.F, 5, 2)
    return Fitter(model, *loaders[:2], max_epochs=epochs, seed=0, progress=False, patience=9, **options)


def damage(content: bytes, chance: random.Random) -> bytes:
    """Truncate, flip one bit, overwrite a block, or put bytes in between."""
    place, kind = chance.randrange(len(content)), chance.randrange(4)
    if kind == 0:
        return content[: max(1, place)]  # an empty file is no state yet
    if kind == 1:
        return content[:place] + bytes([content[place] ^ (1 << chance.randrange(8))]) + content[place + 1 :]
    if kind == 2:
        return content[:place] + chance.randbytes(16) + content[place + 16 :]
    return content[:place] + chance.randbytes(chance.randrange(1, 9)) + content[place:]


def test_a_damaged_state_is_never_resumed(ds: SyntheticDataset, tmp_path: Path) -> None:
    path = tmp_path / "fit.state"
    first = fitter(ds, state_path=path)
    first.fit()
    content, chance = path.read_bytes(), random.Random(3)
    again = fitter(ds, state_path=path)
    for case in range(200):
        broken = damage(content, chance)
        if broken == content:
            continue
        path.write_bytes(broken)
        with pytest.raises(DamagedFileError, match=r"fit\.state is damaged") as caught:
            again.fit()
        assert "delete it" in str(caught.value), case
        assert path.read_bytes() == broken, case  # refused, and left alone
    path.write_bytes(content)
    again.fit()
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name])


def test_states_of_earlier_versions_resume_with_one_warning(ds: SyntheticDataset, tmp_path: Path) -> None:
    path = tmp_path / "fit.state"
    fitter(ds, epochs=1, state_path=path).fit()
    torch.save({**load_tensors(path), "format": UNSEALED_FORMAT}, path)
    content = path.read_bytes()
    with pytest.warns(UserWarning, match="earlier version") as caught:
        fitter(ds, state_path=path).fit()
    assert len(caught) == 1
    assert load_tensors(path, STATE_KIND)["format"] == 3  # sealed by the next epoch
    flipped = bytearray(content)
    place = len(content) // 3
    flipped[place] ^= 4
    path.write_bytes(bytes(flipped))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(DamagedFileError, match=r"fit\.state"):
            fitter(ds, state_path=path).fit()


def test_a_state_that_lost_its_checksum_is_never_resumed(ds: SyntheticDataset, tmp_path: Path) -> None:
    path = tmp_path / "fit.state"
    fitter(ds, epochs=1, state_path=path).fit()
    torch.save(load_tensors(path), path)
    with pytest.raises(DamagedFileError, match=r"fit\.state .* lost its checksum"):
        fitter(ds, state_path=path).fit()


def _without(tree: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if name != key}


@pytest.mark.parametrize(
    "change",
    [
        lambda tree: {**tree, "signature": []},
        lambda tree: {**tree, "content": 3},
        lambda tree: {**tree, "content": {}},
        lambda tree: {**tree, "content": {**tree["content"], "model": 3}},
        lambda tree: {**tree, "content": {**tree["content"], "model": {}}},
        lambda tree: {**tree, "content": {**tree["content"], "optimizer": {"state": 1}}},
        lambda tree: {**tree, "content": {**tree["content"], "history": {"n": "two"}}},
        lambda tree: {**tree, "content": {**tree["content"], "history": 1}},
        lambda tree: {**tree, "content": {**tree["content"], "random": {}}},
        lambda tree: {**tree, "content": {**tree["content"], "callbacks": 7}},
        lambda tree: {**tree, "content": _without(tree["content"], "random")},
        lambda tree: {
            **tree,
            "content": {
                **tree["content"],
                "callbacks": {"BestWeights": {"weights": {"other": torch.zeros(1)}}},
            },
        },
        lambda tree: {
            **tree,
            "content": {
                **tree["content"],
                "callbacks": {"EarlyStopping": {"best_score": "x", "best_epoch": 1, "waited": 0}},
            },
        },
    ],
)
def test_a_sealed_state_of_another_shape_is_named(
    ds: SyntheticDataset, tmp_path: Path, change: Callable[[dict[str, Any]], Any]
) -> None:
    path = tmp_path / "fit.state"
    fitter(ds, epochs=1, state_path=path).fit()
    save_tensors(path, change(load_tensors(path)), STATE_KIND)
    with pytest.raises(DamagedFileError, match=r"fit\.state is damaged.*delete it"):
        fitter(ds, state_path=path).fit()


@pytest.mark.parametrize(
    "content", [b"notes", b"PK\x03\x04", bytes(1000), b"PK\x05\x06" + bytes(18), b"\x80\x02."]
)
def test_foreign_files_are_named(ds: SyntheticDataset, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "fit.state"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"fit\.state"):
        fitter(ds, state_path=path).fit()
    assert path.read_bytes() == content


@pytest.mark.parametrize("argument", ["state_path", "ckpt_path"])
@pytest.mark.parametrize("special", ["fifo", "zero", "folder", "below a file", "a link to zero"])
def test_what_is_no_file_is_refused_before_the_fit(
    ds: SyntheticDataset, tmp_path: Path, argument: str, special: str, within
) -> None:
    path = tmp_path / "target"
    if special == "fifo":
        os.mkfifo(path)
    elif special == "folder":
        path.mkdir()
    elif special == "below a file":
        path.write_text("x")
        path = path / "inside"
    elif special == "a link to zero":
        path.symlink_to("/dev/zero")
    else:
        path = Path("/dev/zero")
    before = os.lstat(tmp_path / "target") if special != "zero" else os.lstat(path)
    raised = within(30, lambda: fitter(ds, **{argument: path}))
    assert isinstance(raised, OSError), raised
    assert str(path) in str(raised)
    after = os.lstat(tmp_path / "target") if special != "zero" else os.lstat(path)
    assert (before.st_mode, before.st_ino) == (after.st_mode, after.st_ino)


def test_links_and_empty_files_are_good_targets(ds: SyntheticDataset, tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch" / "best.pt")  # to a file that is made
    (tmp_path / "empty").touch()
    fitter(ds, ckpt_path=tmp_path / "link", state_path=tmp_path / "empty").fit()
    assert (tmp_path / "link").is_symlink()
    assert load_tensors(tmp_path / "scratch" / "best.pt")
    assert load_tensors(tmp_path / "empty", STATE_KIND)["format"] == 3


def test_a_full_disk_keeps_the_state_of_the_epoch_before(
    ds: SyntheticDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "fit.state"
    fitter(ds, epochs=1, state_path=path).fit()
    before = path.read_bytes()

    def full(target: Path, data: bytes) -> None:
        target.write_bytes(data[:100])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(_files, "_write_durably", full)
        with pytest.warns(RuntimeWarning, match=r"state_path=.*fit\.state"):
            fitter(ds, state_path=path).fit()
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["fit.state"]


def test_seeds_check_all_files_before_the_first_fit(ds: SyntheticDataset, tmp_path: Path) -> None:
    made: list[int] = []

    def model(seed: int) -> Linear:
        made.append(seed)
        return Linear(ds.F, 5, 2)

    def loaders(seed: int) -> Any:
        return make_loaders(*(ds.select(clips=[k]) for k in range(3)), seed=seed)

    def fit(**options: Any) -> Any:
        return fit_multi_seed(model, loaders, **options)

    os.mkfifo(tmp_path / "best_seed1.pt")
    with pytest.raises(OSError, match="best_seed1"):
        fit(n_seeds=2, fitter_kwargs={"max_epochs": 1, "ckpt_path": tmp_path / "best.pt"})
    (tmp_path / "out" / "seed1").mkdir(parents=True)
    (tmp_path / "out" / "seed1" / "best.pt").symlink_to(tmp_path / "mine.pt")
    (tmp_path / "mine.pt").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match="is a link"):
        fit(n_seeds=2, fitter_kwargs={"max_epochs": 1}, output_dir=tmp_path / "out")
    with pytest.raises(ValueError, match="seeds asks for more than"):
        fit(seeds=range(2**32))
    with pytest.raises(ValueError, match="n_seeds asks for more than"):
        fit(n_seeds=10**30)
    assert not made
    assert (tmp_path / "mine.pt").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "3", "null", "NaN", '"x"', "[" * 100_000, "{}", '{"dataset": 3, "neurons": "all"}',
        '{"dataset": {}, "neurons": 4}', '{"dataset": {}, "neurons": "all", "centring": "other"}',
        '{"dataset": {}, "neurons": "all", "warmup_ms": "five"}',
        '{"dataset": {}, "neurons": "all", "split": {}}',
        '{"dataset": {}, "neurons": "all", "model": []}', '{"dataset": {}, "neurons": "all", "seeds": 5}',
    ],
)  # fmt: skip
def test_protocol_cards_of_another_shape_are_named(text: str) -> None:
    with pytest.raises((ValueError, TypeError), match="this is no protocol card"):
        ProtocolCard.from_json(text)
