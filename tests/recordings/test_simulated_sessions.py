"""Simulated sessions with known truth: each nuisance is reported, none else, and every count is right."""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from deepSTRF.datasets.audio import AudioNeuralDataset

NUISANCES = {
    "zero": "clock offset",
    "drift": "clock drift",
    "dropped": "dropped triggers",
    "extra": "extra triggers",
    "twin": "equal sounds under two names",
    "empty": "units without spikes",
    "overlap": "overlapping trials",
    "missing": "trials without sound",
    "unused": "sounds without trials",
    "unsorted": "unsorted spikes",
    "stereo": "stereo sounds",
    "blank": "blank trials",
    "resampled": "resampled sounds",
}
PPM = 20e-6


@dataclass
class Simulated:
    """What ``from_trials`` is given, and the truth."""

    given: dict[str, Any]
    nuisances: set[str]
    counted: dict[str, int]  # how often each nuisance is there
    onsets: dict[str, list[float]]  # of each clip, on the recording's clock
    bins: dict[str, int]
    times: dict[str, np.ndarray] = field(default_factory=dict)


def simulate(seed: int) -> Simulated:
    rng = np.random.default_rng(seed)
    has = {key for key in NUISANCES if rng.random() < 0.35}
    rate, dt = [(16000, 10.0), (22050, 20.0), (44100, 10.0)][int(rng.integers(3))]
    if "resampled" in has:
        rate, dt = 44100, 5.0
    onset_of_clips: dict[str, list[float]] = {}
    sounds = {f"song{k}": rng.normal(size=int(rng.integers(rate // 5, rate // 2))) * 0.1 for k in range(4)}
    names = [f"song{k}" for k in rng.integers(0, 4, 100)]
    names[:4] = list(sounds)
    counted = dict.fromkeys(has, 1)
    shown_as = dict.fromkeys(names, "")
    if "twin" in has:
        sounds["twin"] = sounds["song1"].copy()
        where = [k for k, name in enumerate(names) if name == "song1"][1::2]
        for k in where:
            names[k] = "twin"
        if not where:
            names.append("twin")
    true = np.cumsum(np.round(rng.uniform(1.5, 4.0, len(names)), 4)) + 5.0
    if "missing" in has:
        for k in (7, 40, 41):
            names[k] = "lost.wav"
        counted["missing"] = 3
    if "blank" in has:
        names[20] = ""
    if "unused" in has:
        sounds["never"] = rng.normal(size=rate // 4)
    if "overlap" in has:
        names[60], names[61] = "song0", "song2"
        true[61] = true[60] + 0.1
        counted["overlap"] = 2
    shown_as = {name: "song1" if name == "twin" else name for name in set(names)}
    for k, name in enumerate(names):
        if name not in ("", "lost.wav"):
            onset_of_clips.setdefault(shown_as[name], []).append(float(true[k]))
    end = true[-1] + 3.0
    times = {f"u{n}": np.sort(rng.uniform(1.0, end, int(rng.integers(400, 900)))) for n in range(4)}
    if "empty" in has:
        times["u1"] = np.empty(0)
    spikes = dict(times)
    if "unsorted" in has:
        spikes["u2"] = rng.permutation(times["u2"])
    given: dict[str, Any] = {"spikes": spikes, "dt_ms": dt, "sounds_fs": rate}
    table = true.copy()
    if has & {"zero", "drift", "dropped", "extra"}:
        zero = float(np.round(rng.uniform(20.0, 4000.0), 3)) * (1 if rng.random() < 0.5 else -1)
        table = (true - (zero if "zero" in has else 0.0)) / (1.0 + (PPM if "drift" in has else 0.0))
        if "drift" in has and "zero" not in has:
            table += true[0] - table[0]
        pulses = true.copy()
        if "dropped" in has:
            counted["dropped"] = int(rng.integers(1, 5))
            pulses = np.delete(pulses, rng.choice(len(true), counted["dropped"], replace=False))
        if "extra" in has:
            counted["extra"] = 2
            pulses = np.concatenate([pulses, true[[30, 50]] + 0.7])
        given["triggers"] = pulses
        if rng.random() < 0.3:
            table += rng.normal(0, 2e-4, len(table))  # the computer's log is not exact
            if "dropped" in has:  # their place is known no better than the log
                has, counted = has - {"dropped"}, {k: v for k, v in counted.items() if k != "dropped"}
                given["triggers"] = np.unique(np.concatenate([pulses, true]))
    if "stereo" in has:
        sounds = {name: np.stack([x, np.arange(len(x)) % 2], axis=1) for name, x in sounds.items()}
        given["channel"] = 0
        counted["stereo"] = len(sounds) - ("unused" in has)
    if "resampled" in has:
        counted["resampled"] = 4
    given |= {"sounds": sounds, "trials": {"stimulus": names, "onset": table}}
    bins = {name: int(Fraction(len(x), rate) * 1000 / Fraction(dt)) for name, x in sounds.items()}
    return Simulated(given, has, counted, onset_of_clips, bins, times)


def true_counts(times: np.ndarray, onset: float, dt_ms: float, bins: int) -> np.ndarray:
    """Counts of one repeat: how many times are below each edge, and differences."""
    edges = np.array([onset + k * dt_ms / 1000 - 1e-6 for k in range(bins + 1)])
    return np.diff((times[:, None] < edges).sum(axis=0))


@pytest.mark.parametrize("seed", range(100))
def test_report_names_each_nuisance_and_counts_are_right(seed: int) -> None:
    sim = simulate(seed)
    ds = AudioNeuralDataset.from_trials(**sim.given, check_alignment=False)
    report = ds.load_report
    for key, topic in NUISANCES.items():
        assert report.count(topic) == sim.counted.get(key, 0), (key, report.notes)
    usual = {"spikes outside trials", "spikes at trial edges", "sounds cut to whole bins"}
    assert {topic for topic, _, _ in report.notes} <= {NUISANCES[key] for key in sim.nuisances} | usual
    assert {row["name"] for row in ds.stim_meta} == set(sim.onsets)
    for clip, row in enumerate(ds.stim_meta):
        onsets = sorted(sim.onsets[row["name"]])
        for n, unit in enumerate(ds.nrn_meta):
            want = [
                true_counts(sim.times[unit["cell_id"]], at, ds.dt, sim.bins[row["name"]]) for at in onsets
            ]
            assert np.array_equal(ds.responses[clip][n].numpy(), np.array(want)), (row, unit)


@pytest.mark.parametrize("seed", [3, 11, 23])
def test_orders_change_no_number(seed: int) -> None:
    sim = simulate(seed)
    rng = np.random.default_rng(seed)
    one = AudioNeuralDataset.from_trials(**sim.given, check_alignment=False)
    given = dict(sim.given)
    order = rng.permutation(len(given["trials"]["stimulus"]))
    given["trials"] = {
        "onset": np.asarray(given["trials"]["onset"])[order],
        "stimulus": [given["trials"]["stimulus"][k] for k in order],
    }
    given["spikes"] = {u: rng.permutation(given["spikes"][u]) for u in reversed(given["spikes"])}
    given["sounds"] = {name: given["sounds"][name] for name in reversed(given["sounds"])}
    two = AudioNeuralDataset.from_trials(**given, check_alignment=False)
    units = [row["cell_id"] for row in two.nrn_meta]
    hashes = [row["source_sha256"] for row in two.stim_meta]
    for clip, row in enumerate(one.stim_meta):
        other = hashes.index(row["source_sha256"])
        for n, unit in enumerate(one.nrn_meta):
            got = two.responses[other][units.index(unit["cell_id"])]
            assert np.array_equal(one.responses[clip][n].numpy(), got.numpy())
