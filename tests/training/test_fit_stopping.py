"""When an epoch is the best, and when to give up."""

from __future__ import annotations

import pytest

# the rule itself, without a fit around it
from deepSTRF.training.callbacks import EarlyStopping


def epochs_run(scores, **options):
    stopping = EarlyStopping(**options)
    for epoch, score in enumerate(scores):
        stopping.update(epoch, score)
        if stopping.exhausted:
            return epoch + 1, stopping.best_epoch
    return len(scores), stopping.best_epoch


@pytest.mark.parametrize("patience", [1, 3, 10])
def test_a_constant_score_ends_after_patience_plus_one_epochs(patience):
    assert epochs_run([0.5] * 50, patience=patience) == (patience + 1, 0)


def test_any_strict_improvement_resets_the_wait():
    assert epochs_run([0.1, 0.1, 0.2, 0.2, 0.2, 0.9], patience=2) == (5, 2)
    assert epochs_run([3.0, 2.0, 2.0, 1.0, 1.0, 1.0], mode="min", patience=2) == (6, 3)


def test_min_delta_is_the_smallest_gain_that_counts():
    slow = [0.1 * n for n in range(10)]
    assert epochs_run(slow, patience=2, min_delta=0.15)[1] == 8
    assert epochs_run(slow, patience=2)[1] == 9
    assert epochs_run([1.0, 1.5], patience=2, min_delta=0.5)[1] == 0, "a gain of min_delta itself is none"


@pytest.mark.parametrize(
    ("options", "text"),
    [({"mode": "up"}, "mode must be"), ({"patience": 0}, "patience"), ({"min_delta": -1.0}, "min_delta"),
     ({"min_delta": float("nan")}, "min_delta")],
)  # fmt: skip
def test_illegal_settings(options, text):
    with pytest.raises(ValueError, match=text):
        EarlyStopping(**options)


def test_the_count_survives_a_crash():
    a, b = EarlyStopping(patience=3), EarlyStopping(patience=3)
    for epoch, score in enumerate([0.1, 0.3, 0.2]):
        a.update(epoch, score)
    b.load_state_dict(a.state_dict())
    assert (b.best_score, b.best_epoch, b.waited) == (0.3, 1, 1)
