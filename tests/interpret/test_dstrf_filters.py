"""Filters as the statistics take them: results, files of both kinds, iterators; and what they are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.interpret.dstrf import FileSink, dstrf, jackknifed_dstrf
from deepSTRF.interpret.filter_statistics import (
    complexity,
    event_locked,
    filter_patterns,
    nonlinearities,
    singular_spectrum,
)
from deepSTRF.models.audio import DeepEncoder, Linear

T, N, L, F = 30, 2, 6, 3


def filters(seed: int = 0) -> torch.Tensor:
    return torch.randn(T, N, L, F, generator=torch.Generator().manual_seed(seed))


def test_results_files_and_iterators_are_filters(tmp_path) -> None:
    torch.manual_seed(0)
    models, x = [DeepEncoder(F, 4, N, dilations=(1, 2)) for _ in range(2)], torch.randn(F, T)
    one, mean = dstrf(models[0], x, edge="drop"), jackknifed_dstrf(models, x, edge="drop")
    path = dstrf(models[0], x, edge="drop", sink=FileSink(tmp_path / "a.npy"))
    torch.save(one.weights, tmp_path / "dSTRF-000.pt")  # as the DSTRF toolbox stores them
    wanted = complexity(one.weights)
    for same in (one, path, path.weights, tmp_path / "dSTRF-000.pt", str(tmp_path / "dSTRF-000.pt")):
        assert torch.equal(complexity(same), wanted)
    assert torch.equal(complexity(mean), complexity(mean.weights))
    every = [tmp_path / "a.npy", tmp_path / "dSTRF-000.pt"]
    table = nonlinearities((path for path in every), max_delay=5)
    assert torch.equal(table["complexity"], wanted.unsqueeze(1).expand(-1, 2))
    assert event_locked(iter(every), [[10], [12]], before=1, after=1).count[:, 0].tolist() == [2, 2, 2]
    assert [len(one.centres) for one in filter_patterns(iter(every), 2)] == [2, 2]


def test_the_filter_of_a_linear_neuron_does_not_grow_as_the_clip_begins(tmp_path) -> None:
    torch.manual_seed(0)
    models, x = [Linear(F, 9, N, norm="none").double() for _ in range(2)], torch.randn(F, 60).double()
    linear = {"complexity": 1.0, "gain change": 0.0, "temporal hold": 0.0, "shape change": 1.0}
    for found in (
        dstrf(models[0], x),
        dstrf(models[0], x, sink=FileSink(tmp_path / "a.npy")),
        dstrf(models[0], x, times=slice(2, None, 3)),
        dstrf(models[0], x, edge="keep"),
        dstrf(models[0], x, edge="drop").weights,
        jackknifed_dstrf(models, x),
        jackknifed_dstrf(models, x, edge="drop").weights,
    ):
        for name, value in nonlinearities(found, max_delay=4).items():
            torch.testing.assert_close(value, torch.full((N, 1), linear[name]).double(), msg=name)
    # bare arrays are taken as they are
    assert bool((complexity(dstrf(models[0], x).weights) > 1.01).all())
    assert singular_spectrum(dstrf(models[0], x)).excluded.tolist() == [8, 8]
    assert singular_spectrum(dstrf(models[0], x, edge="keep")).excluded.tolist() == [0, 0]
    late = event_locked(dstrf(models[0], x), [6], before=1, after=4)
    assert late.count[:, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert late.norm[1, 3:, 0].std() < 1e-12


def test_filters_that_look_ahead_are_cut_at_the_end_too() -> None:
    model = torch.nn.Conv2d(1, N, (F, 5), padding=(0, 2)).double()
    found = dstrf(model, torch.randn(F, 20).double(), lookahead=2)
    assert found.cut().nonzero().flatten().tolist() == [0, 1, 18, 19]
    torch.testing.assert_close(complexity(found), torch.ones(N).double())


@pytest.mark.parametrize("edge", ["zero", "keep", "drop"])
def test_a_jackknife_treats_the_ends_of_a_clip_alike(edge) -> None:
    torch.manual_seed(0)
    models = [DeepEncoder(F, 4, N, dilations=(1, 2), readout_bias=False).double() for _ in range(3)]
    x = torch.randn(F, T).double()
    mean = jackknifed_dstrf(models, x, edge=edge, budget_bytes=10_000)
    each = [dstrf(model, x, edge=edge) for model in models]
    torch.testing.assert_close(mean.weights, torch.stack([one.weights for one in each]).mean(0))
    assert torch.equal(mean.times, each[0].times)
    assert torch.equal(mean.cut(), each[0].cut())


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is damaged or not of deepSTRF"),
        (b"\x93NUMPY half", "is damaged or not of deepSTRF"),
        (None, "is a folder: give its files, sorted"),
    ],
)
@pytest.mark.parametrize("ending", [".npy", ".pt"])
def test_files_that_hold_none(tmp_path, content, text, ending) -> None:
    path = tmp_path / f"dSTRF-000{ending}"
    path.mkdir() if content is None else path.write_bytes(content)
    with pytest.raises(ValueError, match=text):
        nonlinearities([path])
    with pytest.raises(FileNotFoundError, match="there is no file"):
        nonlinearities([tmp_path / f"dSTRF-001{ending}"])


def test_no_clip_is_told() -> None:
    for none in ([], (), iter([])):
        for call in (nonlinearities, lambda clips: event_locked(clips, [])):
            with pytest.raises(ValueError, match="there is no clip"):
                call(none)


@pytest.mark.parametrize(
    ("events", "error", "text"),
    [
        ([0.5], TypeError, r"events must be bins, got 0.5: of a time in ms that is int\(time // dt_ms\)"),
        (np.array([12.0]), TypeError, "events must be bins"),
        ([[True]], TypeError, "events must be bins"),
        ([[3], 4], ValueError, "one sequence per clip"),
        ([[3], [4]], ValueError, "one sequence per clip, 1, got 2"),
        ([30], ValueError, "events must lie in 0 .. 29"),
        ([[]], ValueError, "there is no event"),
    ],
)
def test_events_are_bins(events, error, text) -> None:
    with pytest.raises(error, match=text):
        event_locked(filters(), events, before=1, after=1)


def test_events_of_any_kind_of_integers() -> None:
    wanted = event_locked(filters(), [10, 20], before=1, after=1).filters
    for events in (
        np.array([10, 20]),
        torch.tensor([10, 20]),
        [np.array([10, 20])],
        [np.int64(10), 20],
        range(10, 21, 10),
    ):
        assert torch.equal(event_locked(filters(), events, before=1, after=1).filters, wanted)
