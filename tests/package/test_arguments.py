"""The decorator of public calls: what it refuses, what it explains, and what it leaves alone."""

from __future__ import annotations

import copy
import inspect
import os
import pickle
import time
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from deepSTRF._validation import checked, checked_but, to_tensor
from deepSTRF.datasets import write_recording
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.dsp import Hz_to_mel, pcen
from deepSTRF.experiments import ExperimentConfig, Sweep, run_experiment, run_sweep
from deepSTRF.interpret import write_wav
from deepSTRF.metrics import corrcoef, mse_loss
from deepSTRF.models.audio import Linear
from deepSTRF.plots import plot_strf_grid
from deepSTRF.training import Fitter, fit_multi_seed


@checked
def call(
    count: int = 1,
    rate: float = 1.0,
    flag: bool = False,
    name: str | None = None,
    path: str | Path = ".",
    items: Sequence[int] = (),
    table: Mapping[str, float] | None = None,
    act: Callable[[int], int] | None = None,
    sound: Tensor | None = None,
    mode: Literal["a", "b"] = "a",
    anything: Any = None,
) -> str:
    """A call.

    Parameters
    ----------
    sound : Tensor, shape (F, T)
        A sound.
    anything : array, shape (T,)
        Whatever.
    """
    if sound is not None:
        return str(sound @ torch.zeros(3, 2))
    return f"{sum(items)} {anything}"


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ({"count": "3"}, r"count must be an integer, got '3' \(str\)"),
        ({"count": 2.0}, r"count must be an integer, got 2.0 \(float\)"),
        ({"count": None}, "count must be an integer, got None"),
        ({"count": True}, "count must be an integer, got True"),
        ({"rate": "fast"}, "rate must be a number, got 'fast'"),
        ({"rate": 1j}, "rate must be a number"),
        ({"flag": "no"}, "flag must be True or False, got 'no'"),
        ({"flag": 2}, "flag must be True or False, got 2"),
        ({"name": b"x"}, "name must be a string or None"),
        ({"path": 3}, "path must be a string or a path, got 3"),
        ({"items": "12"}, "items must be a sequence of integers, got '12'"),
        ({"items": 3}, "items must be a sequence of integers"),
        ({"items": ["a"]}, r"items must be a sequence of integers, got \['a'\]"),
        ({"table": ["a"]}, "table must be a dictionary or None"),
        ({"act": "f"}, "act must be callable or None, got 'f'"),
        ({"sound": "wav"}, "sound must be a tensor or None, got 'wav'"),
        ({"sound": int}, "sound must be a tensor or None, got the class int"),
        (
            {"sound": np.ones((2, 3))},
            r"sound must be a tensor or None, got a float64 array of shape \(2, 3\)",
        ),
        (
            {"sound": torch.ones(4)},
            r"sound must be Tensor, shape \(F, T\), got a float32 tensor of shape \(4,\)",
        ),
        ({"mode": 3}, "mode must be 'a' or 'b', got 3"),
    ],
)
def test_a_wrong_type_is_named(argument, words):
    with pytest.raises(TypeError, match=words):
        call(**argument)


def test_what_behaves_as_needed_passes():
    class Duck:
        def __getitem__(self, index):
            return [1, 2][index]

        def __float__(self):
            return 2.0

    good = [
        {"count": np.int64(3)},
        {"count": torch.tensor(3)},
        {"rate": 3},
        {"rate": np.float32(2)},
        {"rate": Duck()},
        {"rate": torch.tensor(2.0)},
        {"flag": np.True_},
        {"flag": 1},
        {"path": Path("x")},
        {"items": range(3)},
        {"items": np.arange(3)},
        {"items": torch.arange(3)},
        {"items": Duck()},
        {"table": {"a": 1}},
        {"act": int},
        {"act": torch.nn.Identity()},
        {"sound": torch.ones(2, 3)},
        {"mode": "c"},
        {"anything": object()},
    ]
    for argument in good:
        assert isinstance(call(**argument), str)


def test_errors_that_name_their_argument_and_errors_of_others_pass():
    mine = ValueError("rate must be small")

    @checked
    def fails(rate: float, act: Callable[[], None]) -> None:
        act()

    for error in (mine, RuntimeError("CUDA is tired"), KeyError("a"), OSError("no file"), StopIteration()):

        def act(error: BaseException = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            fails(1.0, act)
        assert caught.value is error


def test_a_check_of_its_own_says_more():
    @checked_but("n_folds")
    def plan(n_folds: int) -> None:
        raise ValueError(f"n_folds is a number of parts, for instance 5, got {n_folds!r}")

    with pytest.raises(ValueError, match="for instance 5, got 'x'"):
        plan("x")


def test_the_fields_of_a_dataclass():
    @checked
    @dataclass(frozen=True)
    class Row:
        name: str
        values: tuple[float, ...] = ()

    assert Row("a", (1.0, 2)).values == (1.0, 2)
    for wrong in (3, None):
        with pytest.raises(TypeError, match="name must be a string"):
            Row(wrong)
    with pytest.raises(TypeError, match="values must be"):
        Row("a", ("b",))


def test_a_call_stays_what_it_was():
    assert list(inspect.signature(call).parameters)[:2] == ["count", "rate"]
    assert call.__doc__.startswith("A call.")
    assert pickle.loads(pickle.dumps(corrcoef)) is corrcoef
    assert list(inspect.signature(Linear).parameters)[:3] == [
        "n_frequency_bands",
        "temporal_window_size",
        "out_neurons",
    ]
    model = Linear(3, 2, 2)
    for one in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert one.init_arguments == model.init_arguments
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
        call(colour=3)


def test_transforms_of_torch_see_through():
    x, y = torch.rand(4, 1, 1, 1, 5), torch.rand(4, 1, 1, 1, 5)
    assert torch.vmap(Hz_to_mel)(x).shape == x.shape
    assert torch.func.jacrev(mse_loss)(x[0], y[0]).shape == x[0].shape
    compiled = torch.compile(lambda a, b: mse_loss(a, b), backend="eager")
    torch.testing.assert_close(compiled(x[0], y[0]), mse_loss(x[0], y[0]))


def test_it_costs_next_to_nothing():
    @checked
    def plain(a: Tensor, b: Tensor, reduction: str = "mean") -> None: ...

    a, n = torch.rand(2), 20_000
    bare = plain.__wrapped__
    spent = [
        min(
            timeit.repeat(
                lambda one=one: one(a, a, reduction="none"), timer=time.process_time, number=n, repeat=5
            )
        )
        for one in (plain, bare)
    ]
    assert (spent[0] - spent[1]) / n < 10e-6  # measured: 1 to 2 microseconds


@pytest.mark.parametrize("wrong", ["text", None, object(), [None], {"a": 1}, ["a"], np.array(["a"]), 1j])
def test_no_wrong_array_ends_inside_a_library(wrong):
    for function, name, rest in (
        (Hz_to_mel, "frequency", ()),
        (corrcoef, "pred", (torch.rand(1, 1, 1, 5),)),
        (plot_strf_grid, "strfs", ()),
        (pcen, "energy", (1.0, 0.9, 2.0, 0.5)),
    ):
        if name not in inspect.signature(function).parameters:
            name = next(iter(inspect.signature(function).parameters))
        with pytest.raises((TypeError, ValueError), match=name):
            function(wrong, *rest)


def test_arrays_of_any_kind_become_tensors():
    plain = np.arange(6.0).reshape(2, 3)
    for array in (
        plain,
        plain[:, ::-1],
        plain.astype(">f4"),
        np.asfortranarray(plain),
        plain[:1, ::-1],
        plain[::-1][:1],
    ):
        assert torch.equal(to_tensor(array), torch.tensor(array.tolist(), dtype=to_tensor(array).dtype))
    assert torch.equal(to_tensor([plain[0, ::-1], plain[1]]), torch.tensor([[2.0, 1, 0], [3, 4, 5]]).double())


@checked
def save(
    path: str | os.PathLike[str], copy_to: str | Path | None = None, name: str = "", old: str | Path = ""
) -> str:
    """A writer."""
    return f"{path}{copy_to}{name}{old}"


def test_an_empty_path_is_refused_and_a_default_is_not() -> None:
    for arguments in (("",), (Path("a"), "")):
        with pytest.raises(ValueError, match=r"must name a file or folder, got ''; this folder is '\.'"):
            save(*arguments)
    with pytest.raises(ValueError, match="copy_to must name"):
        save("a", copy_to="")
    assert save(".", name="", old="") == ".None"
    assert save(Path(), None) == ".None"


def test_writers_refuse_an_empty_path_before_anything_runs(tmp_path: Path, monkeypatch: Any) -> None:
    """It would be the current folder; a sample of each room."""
    monkeypatch.chdir(tmp_path)
    model, ds = Linear(4, 3, out_neurons=2), SyntheticDataset(n_neurons=2, n_clips=3)
    calls: list[Callable[[], Any]] = [
        lambda: model.export(""),
        lambda: model.save_pretrained(""),
        lambda: ds.save(""),
        lambda: write_recording(ds, ""),
        lambda: run_experiment(ExperimentConfig(epochs=1), out=""),
        lambda: run_sweep(Sweep(ExperimentConfig(epochs=1)), ""),
        lambda: fit_multi_seed(lambda seed: model, lambda seed: ([], []), output_dir=""),
        lambda: Fitter(model, [], [], ckpt_path=""),
        lambda: write_wav("", np.zeros(9), 8000),
    ]
    for one in calls:
        with pytest.raises((ValueError, TypeError), match=r"got ''|needs a folder"):
            one()
    assert not list(tmp_path.iterdir())
