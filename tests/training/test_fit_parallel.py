"""Two processes with batches of b clips give what one process with batches of 2 b clips gives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from deepSTRF.training import Fitter, make_loaders

WORKER = Path(__file__).with_name("parallel_worker.py")
TOLERANCE = {"rtol": 1e-6, "atol": 1e-6, "equal_nan": True}
NAMES = ("even", "odd", "pairs", "norm", "poisson", "plain", "own", "stopping")


@pytest.fixture(scope="module")
def fits(tmp_path_factory):
    """Results of one process, and of each of two."""
    pytest.importorskip("lightning_fabric")
    folder = tmp_path_factory.mktemp("parallel")
    two = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "0"]
    two += ["--rdzv_backend", "c10d", "--rdzv_endpoint", "localhost:0"]
    for command in ([sys.executable, str(WORKER), str(folder), "one"], [*two, str(WORKER), str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder, *(
        torch.load(folder / name, weights_only=False) for name in ("one.pt", "two0.pt", "two1.pt")
    )


@pytest.mark.parametrize("name", NAMES)
def test_two_processes_give_the_weights_and_histories_of_one(fits, name):
    _, one, *two = fits
    for found in two:
        assert found[name]["best"] == one[name]["best"]
        assert found[name]["weights"].keys() == one[name]["weights"].keys()
        for key, value in one[name]["weights"].items():
            torch.testing.assert_close(found[name]["weights"][key], value, **TOLERANCE, msg=key)
        assert len(found[name]["history"]) == len(one[name]["history"])
        for mine, theirs in zip(found[name]["history"], one[name]["history"], strict=True):
            torch.testing.assert_close(mine, theirs, **TOLERANCE)
        torch.testing.assert_close(found[name]["evaluated"], one[name]["evaluated"], **TOLERANCE)


@pytest.mark.parametrize("name", NAMES)
def test_both_processes_hold_the_same_bits(fits, name):
    _, _, first, second = fits
    for key, value in first[name]["weights"].items():
        assert torch.equal(value, second[name]["weights"][key])
    torch.testing.assert_close(
        first[name]["history"], second[name]["history"], rtol=0, atol=0, equal_nan=True
    )


def test_stopping_is_agreed_before_the_last_epoch(fits):
    assert len(fits[2]["stopping"]["history"]) == len(fits[3]["stopping"]["history"]) < 40


def test_the_first_process_alone_writes_and_logs(fits):
    folder, _, first, second = fits
    assert (folder / "best0.pt").exists()
    assert not (folder / "best1.pt").exists()
    assert (first["log"], second["log"]) == ([0, 1], [])


def test_a_fit_that_goes_on_is_one_that_never_stopped(fits):
    for found in fits[2:]:
        for key, value in fits[1]["odd"]["weights"].items():
            torch.testing.assert_close(found["resumed"]["weights"][key], value, **TOLERANCE)


def test_the_weights_of_the_first_process_count(fits):
    for found in fits[2:]:
        for key, value in fits[1]["even"]["weights"].items():
            torch.testing.assert_close(found["other weights"]["weights"][key], value, **TOLERANCE)


def test_a_loss_that_explodes_in_one_process_ends_the_fit_in_all(fits):
    assert fits[2]["diverged"] == fits[3]["diverged"] == 0


def test_the_precision_is_that_of_the_fabric(fits):
    assert fits[2]["precision"] == ("bf16", 1)


def test_a_fabric_of_one_process_is_a_plain_fit(recording, kit):
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    states = []
    for chosen in ({}, {"fabric": fabric}):
        loaders = make_loaders(recording.select(clips=[0, 1, 2]), recording.select(clips=[3]), seed=2)
        fitter = Fitter(kit.linear(), *loaders, max_epochs=2, progress=False, **chosen)
        fitter.fit()
        states.append(fitter.model.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(
    ("options", "arguments", "text"),
    [
        ({}, {"precision": "bf16"}, "go without a fabric"),
        ({"precision": "bf16-true"}, {}, "bf16-mixed"),
        ({"strategy": "fsdp", "accelerator": "cpu"}, {}, "strategy='ddp'"),
        ({"strategy": "ddp", "devices": 2}, {}, "launch"),
    ],
)
def test_what_a_fit_cannot_do_with_a_fabric_is_said(recording, kit, options, arguments, text):
    lightning = pytest.importorskip("lightning_fabric")
    try:
        fabric = lightning.Fabric(**{"accelerator": "cpu", "devices": 1, **options})
    except ValueError:
        pytest.skip("this Fabric has no such strategy on a CPU")
    loaders = make_loaders(recording.select(clips=[0]), recording.select(clips=[1]))
    with pytest.raises(ValueError, match=text):
        Fitter(kit.linear(), *loaders, fabric=fabric, **arguments)


def test_what_is_no_fabric_is_said(recording, kit):
    loaders = make_loaders(recording.select(clips=[0]), recording.select(clips=[1]))
    with pytest.raises(TypeError, match=r"lightning_fabric\.Fabric, got str"):
        Fitter(kit.linear(), *loaders, fabric="ddp")


def test_what_fabric_has_wrapped_is_refused(recording, kit):
    fabric = pytest.importorskip("lightning_fabric").Fabric(accelerator="cpu", devices=1)
    loaders = make_loaders(recording.select(clips=[0]), recording.select(clips=[1]))
    model = kit.linear()
    wrapped, optimizer = fabric.setup(model, torch.optim.AdamW(model.parameters()))
    with pytest.raises(TypeError, match="model is wrapped"):
        Fitter(wrapped, *loaders, fabric=fabric)
    with pytest.raises(TypeError, match="optimizer is wrapped"):
        Fitter(model, *loaders, fabric=fabric, optimizer=optimizer)
    with pytest.raises(TypeError, match="train_loader is wrapped"):
        Fitter(model, fabric.setup_dataloaders(loaders[0]), loaders[1], fabric=fabric)
