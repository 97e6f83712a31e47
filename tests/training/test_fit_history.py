"""Means that say what they rest on, compact storage, JSON without NaN."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from deepSTRF._files import json_safe  # inner: tested by itself
from deepSTRF.training import history_rows, mean_score

# how a history is stored and written is not public
from deepSTRF.training.objective import pack_history, summarise, unpack_history

NAN = float("nan")


def test_mean_score_counts_what_it_leaves_out():
    assert mean_score(torch.tensor([1.0, NAN, 2.0, NAN])) == (1.5, 2, 2)
    empty = mean_score(torch.tensor([NAN, NAN]))
    assert math.isnan(empty.mean)
    assert empty[1:] == (0, 2)
    assert mean_score(0.25) == (0.25, 1, 0)
    assert str(mean_score(torch.tensor([0.5, NAN]))) == "0.5000 (n=1, 1 NaN)"


def test_json_safe_has_no_nan_literals():
    value = {
        "a": NAN,
        "b": [math.inf, 1],
        "c": torch.tensor([1.0, NAN]),
        "d": np.float64(NAN),
        3: np.int64(2),
    }
    text = json.dumps(json_safe(value), allow_nan=False)
    assert json.loads(text) == {"a": None, "b": [None, 1], "c": [1.0, None], "d": None, "3": 2}
    assert json_safe(object).startswith("<class")
    assert json_safe(True) is True


@pytest.mark.parametrize(
    "history",
    [
        [],
        [{"epoch": 0, "val_loss": 1.0, "val_cc": torch.tensor([0.5, NAN])}] * 3,
        [{"epoch": 0, "val_cc": torch.zeros(2)}, {"epoch": 1, "val_cc": torch.zeros(3)}],
        [{"epoch": 0}, {"epoch": 1, "extra": 2.0}],
    ],
)
def test_history_comes_back_as_it_was(history, tmp_path):
    torch.save(pack_history(history), tmp_path / "h.pt")
    back = unpack_history(torch.load(tmp_path / "h.pt", weights_only=True))
    assert len(back) == len(history)
    for a, b in zip(back, history, strict=True):
        assert list(a) == list(b)
        for key, value in b.items():
            same = (
                torch.equal(a[key].nan_to_num(), value.nan_to_num())
                if torch.is_tensor(value)
                else a[key] == value
            )
            assert same


def test_rows_count_nan_only_where_there_are_some():
    rows = history_rows([{"epoch": 0, "val_cc": torch.tensor([0.5, 0.5]), "val_x": torch.tensor([NAN, 1.0])}])
    assert rows == [{"epoch": 0, "val_cc": 0.5, "val_x": 1.0, "val_x_n_nan": 1}]


def test_summary_of_a_vector():
    summary = summarise(torch.arange(11.0))
    assert summary == {"mean": 5.0, "n_valid": 11, "p10": 1.0, "p50": 5.0, "p90": 9.0}
    assert summarise(torch.tensor([NAN])) == {
        "mean": None,
        "n_valid": 0,
        "p10": None,
        "p50": None,
        "p90": None,
    }
    assert summarise(3) == 3
    assert summarise(torch.tensor(0.5)) == 0.5
