"""Spike times to counts: half-open bins decided by their edges, and the older rounding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepSTRF.datasets.spikes import bin_spikes, count_bins  # inner: tested by itself

DT = st.sampled_from([0.1, 0.3, 1.0, 2.5, 5.0, 7.0, 10.0, 4.99712])


@settings(max_examples=200, deadline=None)
@given(dt=DT, edges=st.lists(st.integers(0, 60), max_size=30), shifts=st.lists(st.floats(0, 1), max_size=30))
def test_bins_are_half_open_also_at_their_edges(dt, edges, shifts):
    times = np.array(
        [edge * dt for edge in edges] + [edge * dt + dt * s for edge, s in zip(edges, shifts, strict=False)]
    )
    counts = bin_spikes(times, np.zeros(len(times), dtype=np.int64), 1, 50, dt)[0]
    expected = [int(((times >= k * dt) & (times < (k + 1) * dt)).sum()) for k in range(50)]
    assert counts.tolist() == expected


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.floats(-20, 120, allow_nan=False)), max_size=40),
    st.sampled_from([1.0, 5.0]),
)
def test_the_published_form(spikes, dt):
    rows = np.array([row for row, _ in spikes], dtype=np.int64)
    times = np.array([time for _, time in spikes])
    n_bins = count_bins(100, dt)
    ticks = np.zeros((4, 100), dtype=int)
    for row, time in spikes:
        if 0 <= round(time) < 100:  # Python rounds halves to even, as the published code does
            ticks[row, round(time)] = 1
    expected = ticks.reshape(4, n_bins, -1).sum(2)
    np.testing.assert_array_equal(bin_spikes(times, rows, 4, n_bins, dt, "published"), expected)


def test_rows_are_kept_apart_and_order_does_not_matter():
    times, rows = np.array([9.0, 1.0, 2.0, 12.0]), np.array([1, 0, 1, 1])
    counts = bin_spikes(times, rows, 3, 2, 5.0)
    assert counts.tolist() == [[1, 0], [1, 1], [0, 0]]
    assert counts.dtype == np.int8


@pytest.mark.parametrize(("n", "kind"), [(127, np.int8), (128, np.int16), (40_000, np.int32)])
def test_many_spikes_in_a_bin(n, kind):
    counts = bin_spikes(np.zeros(n), np.zeros(n, dtype=np.int64), 1, 1, 5.0)
    assert (counts[0, 0], counts.dtype) == (n, kind)


def test_no_spikes():
    assert bin_spikes(np.empty(0), np.empty(0, dtype=np.int64), 2, 3, 5.0).tolist() == [[0] * 3] * 2


def test_bad_arguments():
    with pytest.raises(ValueError, match="binning is one of 'half-open', 'published', got 'floor'"):
        bin_spikes(np.empty(0), np.empty(0, dtype=np.int64), 1, 1, 5.0, "floor")
    for dt in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="dt_ms is the bin"):
            count_bins(100, dt)
    with pytest.raises(ValueError, match="does not fit into 100 ms"):
        count_bins(100, 101)
    assert count_bins(1.0, 0.1) == 10
