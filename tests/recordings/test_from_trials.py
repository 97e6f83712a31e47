"""``from_trials``: sounds, a table of trials and spike times to exact counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from deepSTRF.datasets.audio import AudioNeuralDataset


def mini_sounds() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {"A": (rng.normal(size=8000) * 3000).astype(np.int16),
            "B": (rng.normal(size=4800) * 3000).astype(np.int16)}  # fmt: skip


MINI_TRIALS = {
    "stimulus": ["A", "B", "A", "B", "A", ""],
    "onset": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
    "offset": [1.5, 2.3, 3.5, 4.3, 5.5, 6.5],
}
MINI_SPIKES = {7: [0.995, 1.000, 1.0149, 1.499, 1.500, 2.105, 3.070, 3.255, 4.2999], 3: [1.250]}
MINI_OBSERVED = {7: [[0.0, 7.0]], 3: [[0.0, 3.9]]}


def mini(**changes: Any) -> AudioNeuralDataset:
    given: dict[str, Any] = {
        "sounds": mini_sounds(), "trials": MINI_TRIALS, "spikes": MINI_SPIKES, "dt_ms": 10.0,
        "sounds_fs": 16000, "observed": MINI_OBSERVED, "span_s": (0.0, 7.0), "check_alignment": False,
    } | changes  # fmt: skip
    return AudioNeuralDataset.from_trials(**given)


def expected_mini() -> list[list[np.ndarray]]:
    a7, b7 = np.zeros((3, 50)), np.zeros((2, 30))
    a7[0, [0, 1, 49]] = a7[1, [7, 25]] = 1
    b7[0, 10] = b7[1, 29] = 1
    a3, b3 = np.zeros((2, 50)), np.zeros((1, 30))
    a3[0, 25] = 1
    return [[a7, a3], [b7, b3]]


def test_mini_session() -> None:
    ds = mini()
    assert [row["name"] for row in ds.stim_meta] == ["A", "B"]
    assert [row["cell_id"] for row in ds.nrn_meta] == ["7", "3"]
    for row, wanted in zip(ds.responses, expected_mini(), strict=True):
        for got, want in zip(row, wanted, strict=True):
            assert np.array_equal(got.numpy(), want)
    sound = mini_sounds()["A"] / 32768
    assert ds.audio_fs == 16000
    assert torch.equal(ds.stims[0][0], torch.from_numpy(sound).float())
    report = ds.load_report
    assert report.count("blank trials") == 1
    assert report.count("spikes outside trials") == 2
    assert report.count("spikes at trial edges") == 2
    assert report.count("trials without sound") == 0


def test_missing_sound_can_be_an_error() -> None:
    trials = {"stimulus": ["A", "C"], "onset": [1.0, 2.0]}
    assert mini(trials=trials).load_report.count("trials without sound") == 1
    with pytest.raises(ValueError, match=r"trials without sound.*C.*on_missing_sound"):
        mini(trials=trials, on_missing_sound="error")
