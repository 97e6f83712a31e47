"""``from_trials``: sounds, a table of trials and spike times to exact counts."""

from __future__ import annotations

from fractions import Fraction
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


def exact_counts(
    times: list[float], onset: float, dt: Fraction, before: int, bins: int, observed: list[list[float]] | None
) -> np.ndarray:
    """Counts of one repeat in exact fractions, a plain loop; NaN where a bin is not observed whole."""
    second, slack = Fraction(1000), Fraction(1, 1_000_000)
    counts = np.zeros(bins)
    for time in times:
        index = (Fraction(time) - Fraction(onset) + slack) * second / dt + before
        if 0 <= index < bins:
            counts[int(index)] += 1
    for k in range(bins if observed is not None else 0):
        low = Fraction(onset) + (k - before) * dt / second
        high = low + dt / second
        if not any(Fraction(a) <= low + slack and high - slack <= Fraction(b) for a, b in observed or []):
            counts[k] = np.nan
    return counts


@pytest.mark.parametrize(
    ("dt", "rate"),
    [(10.0, 16000), (5.0, 44100), (15.625, 22050), (1000 / 60, 48000), (0.983, 24414.0625), (2.5, 44100.0)],
)
def test_counts_equal_a_loop_in_fractions(dt: float, rate: float) -> None:
    rng = np.random.default_rng(int(dt * 1000))
    bin_ms = Fraction(dt).limit_denominator(1000)
    assert float(bin_ms) == dt
    before, after = 4, 3
    n_samples = {f"s{k}": int(rng.integers(int(0.05 * rate), int(0.3 * rate))) for k in range(4)}
    sounds = {name: rng.normal(size=n) * 0.1 for name, n in n_samples.items()}
    onset, clock = [], 1.0
    names = [f"s{k}" for k in rng.integers(0, 4, 25)]
    for name in names:
        onset.append(clock)
        clock += n_samples[name] / rate + 0.1 + float(np.round(rng.uniform(0, 0.2), int(rng.integers(2, 7))))
    spikes, observed = {}, {}
    for unit in range(5):
        free = rng.uniform(0, clock, 300)
        on_edges = np.array(onset)[rng.integers(0, 25, 40)] + rng.integers(-5, 10, 40) * float(bin_ms) / 1000
        near = on_edges[:20] + rng.uniform(-2e-6, 2e-6, 20)
        samples = np.round(free[:100] * 30000) / 30000
        spikes[unit] = rng.permutation(np.concatenate([free, on_edges, near, samples]))
        if unit % 2:
            cuts = np.sort(rng.uniform(0, clock, 6)).reshape(3, 2)
            observed[unit] = cuts
    ds = AudioNeuralDataset.from_trials(
        sounds, {"stimulus": names, "onset": onset}, spikes, dt, sounds_fs=rate, observed=observed,
        pre_ms=float(before * bin_ms), post_ms=float(after * bin_ms), check_alignment=False,
    )  # fmt: skip
    assert ds.load_report.count("unsorted spikes") == 5
    seen = 0
    for clip, row in enumerate(ds.stim_meta):
        name = row["name"]
        bins = before + int(Fraction(n_samples[name]) / Fraction(rate) * 1000 / bin_ms) + after
        assert ds.n_bins(clip) in (bins, bins + 1)  # a sound may lack part of a sample
        bins = ds.n_bins(clip)
        onsets = [at for at, shown in zip(onset, names, strict=True) if shown == name]
        for unit in range(5):
            intervals = None if unit not in observed else observed[unit].tolist()
            want = [exact_counts(spikes[unit].tolist(), at, bin_ms, before, bins, intervals) for at in onsets]
            want = [repeat for repeat in want if not np.isnan(repeat).all()]
            got = ds.responses[clip][unit].numpy()
            if not want:
                assert got.shape == (1, 1)
                continue
            assert np.array_equal(got, np.array(want), equal_nan=True), (name, unit)
            seen += int(np.nansum(got))
    assert seen > 300
