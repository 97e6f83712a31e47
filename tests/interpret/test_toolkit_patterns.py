"""Recurring patterns: filters that alternate in a known order."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.interpret.filter_statistics import filter_patterns, pattern_scores

L, F = 12, 4


def shape(lag: int, band: int) -> torch.Tensor:
    pattern = torch.zeros(L, F, dtype=torch.float64)
    pattern[L - 1 - lag, band], pattern[L - 2 - lag, band] = 1.0, 0.5
    return pattern


def alternating(long: int, short: int, rounds: int, noise: float = 0.05) -> torch.Tensor:
    """A for ``long`` bins, B for ``short``, with any gain and a little noise."""
    draw = torch.Generator().manual_seed(3)
    names = ([0] * long + [1] * short) * rounds
    both = torch.stack([shape(2, 1), shape(5, 3)])
    gains = 0.2 + 3 * torch.rand(len(names), 1, 1, generator=draw).double()
    jitter = noise * torch.randn(len(names), L, F, generator=draw).double()
    return (gains * (both[names] + jitter)).unsqueeze(1)


def test_two_alternating_filters_with_their_dwell_times() -> None:
    (found,) = filter_patterns(alternating(5, 3, 30), 2)
    assert found.labels.tolist() == ([0] * 5 + [1] * 3) * 30
    assert found.share.tolist() == [5 / 8, 3 / 8]
    assert found.dwell_mean.tolist() == [5.0, 3.0]
    assert [set(stays.tolist()) for stays in found.dwell] == [{5}, {3}]
    assert [stays.tolist() for stays in found.cut] == [[5], [3]], "the first and the last stay are cut"
    torch.testing.assert_close(
        found.transitions, torch.tensor([[120, 30], [29, 60]]).double() / torch.tensor([[150.0], [89.0]])
    )
    for centre, truth in zip(found.centres, (shape(2, 1), shape(5, 3)), strict=True):
        assert float(torch.nn.functional.cosine_similarity(centre.flatten(), truth.flatten(), 0)) > 0.999
    assert 0.85 < found.explained < 1.0
    assert found.excluded == 0


def test_scores_find_how_many_there_are() -> None:
    names = torch.randint(3, (200,), generator=torch.Generator().manual_seed(0))
    three = torch.stack([shape(1, 0), shape(4, 2), shape(8, 3)])[names]
    noise = 0.08 * torch.randn(200, L, F, generator=torch.Generator().manual_seed(1)).double()
    scores = pattern_scores((three + noise).unsqueeze(1))
    assert scores.best.tolist() == [3]
    assert bool((scores.explained[:, 0].diff() > -1e-9).all())
    assert torch.isnan(scores.silhouette[0]).all()
    # for one filter, whatever its gain, one pattern is all there is
    gains = torch.rand(50, 1, 1, 1).double() + 0.1
    linear = pattern_scores(gains * shape(1, 0), [1, 2])
    torch.testing.assert_close(linear.explained, torch.ones(2, 1).double())
    assert linear.best.tolist() == [1]
    (one,) = filter_patterns(gains * shape(1, 0), 2)
    assert one.share.tolist() == [1.0, 0.0]
    assert torch.isnan(one.centres[1]).all()
    assert one.dwell_mean.isnan().all()
    assert one.cut[0].tolist() == [50]


def test_k_means_and_silhouette_are_the_textbooks(monkeypatch) -> None:
    cluster = pytest.importorskip("sklearn.cluster")
    metrics = pytest.importorskip("sklearn.metrics")
    filters = torch.randn(150, 1, 3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    units = (filters / filters.flatten(1).norm(dim=1).view(-1, 1, 1, 1)).flatten(1).numpy()
    (found,) = filter_patterns(filters, 3, restarts=20)
    theirs = cluster.KMeans(3, n_init=20, random_state=0).fit(units)
    assert (1 - found.explained) * 150 < 1.005 * theirs.inertia_
    # and where ours have come to rest, theirs stay
    again = cluster.KMeans(3, init=found.centres.flatten(1).numpy(), n_init=1).fit(units)
    assert (1 - found.explained) * 150 == pytest.approx(again.inertia_, rel=1e-9)
    scores = pattern_scores(filters, [3], restarts=20)
    wanted = metrics.silhouette_score(units, found.labels.numpy())
    assert float(scores.silhouette) == pytest.approx(wanted, rel=1e-9)


def test_the_same_arguments_give_the_same_patterns() -> None:
    filters = torch.randn(80, 2, 3, 2, generator=torch.Generator().manual_seed(0))
    one, two = filter_patterns(filters, 4), filter_patterns(filters, 4)
    for a, b in zip(one, two, strict=True):
        assert torch.equal(a.labels, b.labels)
        assert torch.equal(a.centres, b.centres)


def test_a_filter_that_follows_an_event_is_one_pattern_once_aligned() -> None:
    moving = torch.stack([shape(lag, 1) for lag in [0, 1, 2, 3, 4] * 12]).unsqueeze(1)
    assert float(pattern_scores(moving, [1]).explained) < 0.7
    (found,) = filter_patterns(moving, 1, aligned=True)
    assert found.explained == pytest.approx(1.0)
    assert found.shifts is not None
    assert len(found.shifts.unique()) == 5
    assert filter_patterns(moving, 1)[0].shifts is None


def test_broken_bins_are_left_out_and_clips_do_not_run_into_each_other(tmp_path) -> None:
    first, second = alternating(5, 3, 4), alternating(5, 3, 2)
    first[10] = torch.nan  # in the middle of an A
    first[20] = 0.0  # a filter of zeros has no direction; in an A
    np.save(tmp_path / "second.npy", second.numpy())
    (found,) = filter_patterns([first, tmp_path / "second.npy"], 2)
    assert found.lengths == [32, 16]
    assert found.excluded == 2
    assert found.labels[[10, 20]].tolist() == [-1, -1]
    one, two = found.labels.split(found.lengths)
    assert two.tolist() == ([0] * 5 + [1] * 3) * 2
    assert one[:10].tolist() == [0] * 5 + [1] * 3 + [0] * 2
    assert found.dwell[0].tolist() == [4, 5, 5], "a filter that is gone ends a stay"
    assert found.cut[0].tolist() == [5, 2, 2, 5], "by the ends of clips, and by the broken bin"
    assert found.dwell[1].tolist() == [3, 3, 3, 3]
    assert found.cut[1].tolist() == [3, 3]


def test_refusals() -> None:
    filters = torch.zeros(10, 1, L, F)
    with pytest.raises(ValueError, match="0 bins with a filter, fewer than n_patterns=2"):
        filter_patterns(filters, 2)
    assert torch.isnan(pattern_scores(filters, [1, 2]).explained).all()
    with pytest.raises(ValueError, match="at least one number"):
        pattern_scores(filters, [])
    with pytest.raises(TypeError, match="aligned must be True or False"):
        filter_patterns(filters, 2, aligned=1)
