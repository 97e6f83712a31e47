"""Filters as the statistics take them: results, files of both kinds, iterators; and what they are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from deepSTRF.interpret.dynamic import (
    FileSink,
    complexity,
    dstrf,
    event_locked,
    filter_patterns,
    jackknifed_dstrf,
    nonlinearities,
)
from deepSTRF.models.audio import DeepEncoder

T, N, L, F = 30, 2, 6, 3


def filters(seed: int = 0) -> torch.Tensor:
    return torch.randn(T, N, L, F, generator=torch.Generator().manual_seed(seed))


def test_results_files_and_iterators_are_filters(tmp_path) -> None:
    torch.manual_seed(0)
    models, x = [DeepEncoder(F, 4, N, dilations=(1, 2)) for _ in range(2)], torch.randn(F, T)
    one, mean = dstrf(models[0], x), jackknifed_dstrf(models, x)
    path = dstrf(models[0], x, sink=FileSink(tmp_path / "a.npy"))
    torch.save(one.weights, tmp_path / "dSTRF-000.pt")  # as the DSTRF toolbox stores them
    wanted = complexity(one.weights)
    for same in (one, path, path.weights, tmp_path / "dSTRF-000.pt", str(tmp_path / "dSTRF-000.pt")):
        assert torch.equal(complexity(same), wanted)
    assert torch.equal(complexity(mean), complexity(mean.weights))
    every = [tmp_path / "a.npy", tmp_path / "dSTRF-000.pt"]
    table = nonlinearities((path for path in every), lookahead=5)
    assert torch.equal(table["complexity"], wanted.unsqueeze(1).expand(-1, 2))
    assert event_locked(iter(every), [[10], [12]], before=1, after=1).count[:, 0].tolist() == [2, 2, 2]
    assert [len(one.centres) for one in filter_patterns(iter(every), 2)] == [2, 2]


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "holds no array of filters"),
        (b"\x93NUMPY half", "holds no array of filters"),
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
