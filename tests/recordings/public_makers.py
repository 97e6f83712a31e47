"""Small public recordings in their documented layouts, made by the tests, with what a load has to give.

Each maker writes two or three units and four sounds with the traps of its layout, and returns what is
expected, computed from the lists below one spike at a time.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import nems_archives as nems
import numpy as np
import soundfile
from scipy.io import savemat

#: Length of each sound in s.
LENGTHS = {"A": 0.5, "B": 0.3, "C": 0.4, "D": 0.4}
#: Unit -> sound -> spike times in s from the onset of each repeat; what is not listed was not recorded.
TIMES = {
    "u1": {
        "A": [[-0.005, 0.0, 0.0149, 0.499, 0.5], [0.070, 0.255], []],
        "B": [[0.105], [0.2999]],
        "C": [[0.1], [0.39, 0.45]],
        "D": [[], []],
    },
    "u2": {"A": [[0.25], []], "C": [[0.0, 0.0], [0.2]], "D": [[0.3], [-1.5]]},
}
DT = 0.01


def counts(times: list[list[float]], n_bins: int, dt: float = DT) -> np.ndarray:
    """(R, T) counts, one spike at a time."""
    table = np.zeros((len(times), n_bins))
    for row, repeat in enumerate(times):
        for time in repeat:
            at = int(np.floor((time + 1e-6) / dt))
            if 0 <= at < n_bins:
                table[row, at] += 1
    return table


@dataclass
class Made:
    """What a load has to give."""

    #: (unit, clip) -> (R, T); pairs that are not listed are missing.
    counts: dict[tuple[str, str], np.ndarray]
    options: dict[str, Any] = field(default_factory=dict)
    tests: set[str] | None = None
    groups: str | None = None
    notes: dict[str, int] = field(default_factory=dict)
    areas: dict[str, Any] = field(default_factory=dict)
    stims: dict[str, np.ndarray] = field(default_factory=dict)
    #: Files to damage: a pattern below the root, and whether damage must be an error.
    damage: str = ""


def expected(unit_of: dict[str, str], clip_of: dict[str, str], bins: dict[str, int] | None = None) -> dict:
    bins = bins or {name: round(length / DT) for name, length in LENGTHS.items()}
    return {
        (unit_of[unit], clip_of[name]): counts(times, bins[name])
        for unit, by_sound in TIMES.items()
        for name, times in by_sound.items()
        if unit in unit_of and name in clip_of
    }


def samples(name: str, rate: float, length: float | None = None) -> np.ndarray:
    """Noise, another one for each name, on the grid of 16 bits."""
    rng = np.random.default_rng(list(name.encode()))
    n = round((LENGTHS[name] if length is None else length) * rate)
    return np.round(rng.uniform(-0.5, 0.5, n) * 32768) / 32768


def wav_bytes(values: np.ndarray, rate: int) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, values, rate, format="WAV", subtype="PCM_16")
    return content.getvalue()


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# ---- CRCNS aa-1 and aa-2


def _lines(times: list[list[float]], ending: str = "\n") -> str:
    return ending.join(" ".join(f"{1000 * time:.10g}" for time in repeat) for repeat in times)


def _text_cell(folder: Path, unit: str, classes: dict[str, str], wavs: dict[str, str]) -> None:
    """Numbers without meaning: stim10 comes after stim2."""
    number = {"A": 10, "B": 2, "C": 3, "D": 1}
    for name, times in TIMES[unit].items():
        place = folder / classes[name]
        write(place / f"stim{number[name]}", wavs[name] + ("\n" if name == "A" else ""))
        # a file may end with a line's end or without; the last trial of A and D of u1 is an empty line
        write(place / f"spike{number[name]}", _lines(times) + "\n")
    write(folder / classes["B"] / "stim7", wavs["B"])  # a stimulus without spike file is not recorded


def crcns_aa1(root: Path) -> Made:
    classes = {"A": "conspecific", "B": "conspecific", "C": "flatrip", "D": "flatrip"}
    wavs = {}
    for name, kind in classes.items():
        content = wav_bytes(samples(name, 32000), 32000)
        wavs[name] = f"{hashlib.md5(content).hexdigest().upper()}.wav"
        write(root / "crcns-aa1" / "all_stims" / kind / wavs[name], content)
    _text_cell(root / "crcns-aa1" / "Field_L_cells" / "pipu1018_2_B", "u2", classes, wavs)
    _text_cell(root / "crcns-aa1" / "MLd_cells" / "aa12_3_A", "u1", classes, wavs)
    units = {"u1": "aa12_3_A", "u2": "pipu1018_2_B"}
    return Made(
        expected(units, {name: wav[:-4] for name, wav in wavs.items()}),
        notes={"silent trials": 4, "stimuli without spike file": 2, "spikes before the sound": 2,
               "spikes after the sound": 2},
        areas={"aa12_3_A": "MLd", "pipu1018_2_B": "Field_L"},
        damage="**/spike10",
    )  # fmt: skip


def crcns_aa2(root: Path) -> Made:
    base = root / "crcns" / "aa2"
    classes = {"A": "conspecific", "B": "flatrip", "C": "songrip", "D": "conspecific"}
    wavs = {}
    for name in classes:
        content = wav_bytes(samples(name, 24000 if name == "C" else 32000), 24000 if name == "C" else 32000)
        wavs[name] = f"{hashlib.md5(content).hexdigest().upper()}.wav"
        write(base / "all_stims" / wavs[name], content)
    _text_cell(base / "all_cells" / "gg0116_1_A", "u1", classes, wavs)
    _text_cell(base / "all_cells" / "gg0116_1_B", "u2", classes, wavs)
    write(base / "cell_regions.csv", "cell,region\ngg0116_1_A,None\ngg0116_1_B,L2a\n")
    write(base / "cell_stim_classes.csv", "cell,classes\ngg0116_1_A,conspecific,flatrip\ngg0116_1_B,x\n")
    return Made(
        expected({"u1": "gg0116_1_A", "u2": "gg0116_1_B"}, {name: wav[:-4] for name, wav in wavs.items()}),
        areas={"gg0116_1_A": "None", "gg0116_1_B": "L2a"},
        damage="**/cell_regions.csv",
    )


# ---- CRCNS aa-4


def crcns_aa4(root: Path) -> Made:
    """The rate is not a whole number of samples per bin; a trial without spikes holds -999."""
    rate, number = 24414, {"A": 1, "B": 12, "C": 2, "D": 30}
    md5 = {name: hashlib.md5(name.encode()).hexdigest() for name in number}
    units = {"u1": ("YelBlu6903F", 3), "u2": ("WhiWhi4522M", 14)}
    for unit, (animal, electrode) in units.items():
        for name in number:
            content = wav_bytes(samples(name, rate), rate)
            write(root / animal / "wavfiles" / f"stim{number[name]}.wav", content)
        path = root / animal / f"Site1_L1200R1400_e{electrode}_s0_ss1.h5"
        with h5py.File(path, "w") as opened:
            opened.attrs["sortType"] = "singl" if unit == "u1" else "single"
            opened.attrs["electrode"] = electrode
            opened.create_group("class_info")
            opened.create_group("extra_info")
            for name, times in TIMES[unit].items():
                group = opened.create_group(f"Call1/{number[name]}")
                group.attrs["stim_md5"] = md5[name]
                group.attrs["stim_duration"] = LENGTHS[name]
                group.attrs["stim_type"] = "song" if name in "AB" else "call"
                for row, repeat in enumerate(times):
                    trial = group.create_group(str(row + 9))  # '9' sorts after '10' as text
                    trial.attrs["pre_time"] = 2.0
                    trial["spike_times"] = np.array(repeat) if repeat else np.float64(-999)
    multi = root / "WhiWhi4522M" / "Site1_L1200R1400_e15_s0.h5"
    with h5py.File(multi, "w") as opened:
        opened.attrs["sortType"] = "multi"
    names = {unit: f"{animal}_Site1_L1200R1400_e{e}_s0_ss1" for unit, (animal, e) in units.items()}
    return Made(
        expected(names, md5),
        notes={"silent trials": 4, "units of another quality": 1, "fixes": 1},
        areas=dict.fromkeys(names.values()),
        damage="YelBlu6903F/*.h5",
    )


# ---- NEMS archives: NAT4, Espejo, Wingert

_EPOCH_OF = {"A": "STIM_00cat1_a.wav", "B": "STIM_cat2_b.wav", "C": "STIM_cat3_c.wav", "D": "STIM_cat4_d.wav"}


def _schedule(unit_times: dict[str, list[list[float]]], gap: float = 2.5) -> list[tuple[str, float]]:
    """(sound, onset) of each presentation, interleaved."""
    shown, clock = [], 1.0
    for repeat in range(max(map(len, unit_times.values()))):
        for name, times in unit_times.items():
            if repeat < len(times):
                shown.append((name, clock))
                clock += gap
    return shown


def _nems_site(
    units: dict[str, str], length: dict[str, float], before: float, marked: bool, rows: int, fs: float,
    epoch_of: dict[str, str], tiles: bool = True, jitter: float = 0.0,
) -> dict[str, Any]:  # fmt: skip
    """Arguments of `nems_archives.site`: spikes, tiles and epochs of units that heard the same sounds."""
    by_sound = {name: TIMES[next(iter(units))][name] for name in TIMES[next(iter(units))]}
    shown = _schedule(by_sound)
    spikes: dict[str, list[float]] = {cell: [] for cell in units.values()}
    epochs: list[tuple[str, float, float]] = []
    seen: dict[str, int] = {}
    for name, clock in shown:
        onset = clock + jitter
        repeat = seen.get(name, 0)
        seen[name] = repeat + 1
        epochs.append((epoch_of[name], onset, onset + length[name]))
        if marked:
            epochs.append(("PreStimSilence", onset, onset + before))
            epochs.append(("PostStimSilence", onset + before + LENGTHS[name], onset + length[name]))
        for unit, cell in units.items():
            spikes[cell] += [clock + before + time for time in TIMES[unit][name][repeat]]
    values = {
        epoch_of[name]: np.random.default_rng(list(name.encode())).random((rows, round(length[name] * 100)))
        for name in by_sound
    }
    last = max(end for _, _, end in epochs)
    epochs.append(("TRIAL", 0.0, last + 1.0))
    return {
        "spikes": {cell: np.sort(times) for cell, times in spikes.items()},
        "tiles": values if tiles else None,
        "epochs": epochs,
        "fs": fs,
    }


def _shifted(unit: str, name: str, before: float, n_bins: int) -> np.ndarray:
    return counts([[time + before for time in repeat] for repeat in TIMES[unit][name]], n_bins)


def nat4(area: str) -> Callable[[Path], Made]:
    def make(root: Path) -> Made:
        """A population archive with averaged responses, and a site whose electrode is padded otherwise."""
        length, before = dict.fromkeys(LENGTHS, 1.0), 0.25
        cells = {"u1": "TNC010a-05-1", "u2": "ARM020b-11-2"}
        epochs, start = [], 0.0
        stim = []
        tiles = {name: np.random.default_rng(list(name.encode())).random((18, 100)) for name in LENGTHS}
        for name in LENGTHS:
            epochs += [(_EPOCH_OF[name], start, start + 1.0), ("PreStimSilence", start, start + before)]
            stim.append(tiles[name].T)
            start += 1.0
        table, folder = nems.epoch_bytes(epochs, ("end", "name", "", "start")), f"{area}_NAT4"
        resp = np.random.default_rng(0).random((400, 2))
        resp[100:200, 1] = np.nan
        members = nems.signal(
            folder, "resp", "RasterizedSignal", list(cells.values()), 100, nems.csv_bytes(resp), ".csv",
            table, segments=[[0, 400]],
        ) | nems.signal(
            folder, "stim", "RasterizedSignal", [str(b) for b in range(18)], 100,
            nems.csv_bytes(np.concatenate(stim)), ".csv", table, segments=[[0, 400]],
        )  # fmt: skip
        del members[f"{folder}/stim.epoch.csv"]  # one table serves all signals
        nems.pack(root / f"{area}_NAT4_ozgf.fs100.ch18.tgz", members)
        rows = "".join(
            f"{cell},{flag}\n" for cell, flag in zip(cells.values(), ("True", "False"), strict=True)
        )
        write(root / f"{area}_pred_correlation.csv", "cellid,sig_auditory\n" + rows)
        for unit, name in (("u1", "TNC010a-005-1"), ("u2", "ARM020b-11-2")):
            site = _nems_site({unit: name}, length, before, True, 18, 1000, _EPOCH_OF, tiles=False)
            label = name.split("-")[0]
            nems.pack(root / f"{area}_single_sites" / f"{label}.tgz", nems.site(label, **site))
        for name, epoch in _EPOCH_OF.items():
            file = epoch.removeprefix("STIM_").replace("cat", "Cat")  # differs in letter case only
            write(root / "wav" / file, wav_bytes(samples(name, 44100, 0.5), 44100))
        clip = {name: epoch.removeprefix("STIM_") for name, epoch in _EPOCH_OF.items()}
        return Made(
            {
                (cells[unit], clip[name]): _shifted(unit, name, before, 100)
                for unit in cells
                for name in TIMES[unit]
            },
            tests={clip["A"]},
            notes={"cell ids rewritten": 1},
            areas=dict.fromkeys(cells.values(), area),
            stims={clip[name]: values for name, values in tiles.items()},
            damage=f"{area}_single_sites/TNC010a.tgz",
        )

    return make


def espejo(folder: str) -> Callable[[Path], Made]:
    def make(root: Path) -> Made:
        """Two sites; the test of one is the test of both; a cell in two archives has its repeats joined."""
        outer = "A1_natural_sounds" if folder == "NAT" else "A1_voc_mod_noise"
        length, before, rows = {n: LENGTHS[n] + 1.0 for n in LENGTHS}, 0.5, 18 if folder == "NAT" else 2
        epochs = {name: f"STIM_{name.lower()}.wav" for name in LENGTHS}
        cells = {"u1": "AMT003c-11-1", "u2": "btn144a-c1"}
        bins = {name: round(length[name] * 100) for name in LENGTHS}
        for unit, cell in cells.items():
            site = cell.split("-")[0]
            made = _nems_site({unit: cell}, length, before, True, rows, 100, epochs)
            nems.pack(root / outer / folder / f"{site}_0a1b.tgz", nems.site(f"extra/{site}", **made))
        made = _nems_site({"u2": cells["u2"]}, length, before, True, rows, 100, epochs)
        other = {cells["u2"]: np.append(made["spikes"][cells["u2"]], 500.0)}  # not the same archive twice
        nems.pack(
            root / outer / folder / "btn144a_9f9f.tgz", nems.site("btn144a", **{**made, "spikes": other})
        )
        tables = {
            (cells[unit], f"{name.lower()}.wav"): _shifted(unit, name, before, bins[name])
            for unit in cells
            for name in TIMES[unit]
        }
        tables |= {key: np.concatenate([t, t]) for key, t in tables.items() if key[0] == cells["u2"]}
        stims = {epoch.removeprefix("STIM_"): made["tiles"][epoch] for epoch in made["tiles"]}
        # u1 heard A three times; in both archives of u2 every sound was heard twice, as often as each other
        return Made(tables, tests={"a.wav"}, areas=dict.fromkeys(cells.values(), "A1"), stims=stims,
                    damage=f"{outer}/{folder}/AMT003c_0a1b.tgz")  # fmt: skip

    return make


def wingert2026(root: Path) -> Made:
    """Epochs off the grid, silence in no table, an archive twice, a cell in no list."""
    length = {name: LENGTHS[name] + 1.2 for name in LENGTHS}
    epochs = {"A": "STIM_00seq1.wav", "B": "STIM_seq2.wav", "C": "STIM_seq3.wav", "D": "STIM_seq4.wav"}
    cells = {"u1": "PRN018a-001-1", "u2": "SLJ032a-A-003-1"}
    bins = {name: round(length[name] * 100) for name in LENGTHS}
    for unit, cell in cells.items():
        site = cell.split("-")[0]
        made = _nems_site({unit: cell}, length, 1.0, False, 32, 100, epochs, jitter=0.003)
        members = nems.site(site, **made, meta={"siteid": "wrong"})
        nems.pack(root / "recordings" / f"{site}_77aa.tgz", members)
        if unit == "u1":
            nems.pack(root / "recordings" / "PRN018b_88bb.tgz", nems.site("PRN018b", **made))
    write(root / "cell_list.csv", ",cellid,siteid,area,layer,depth\n0,PRN018a-001-1,PRN018,PEG,3,-120.5\n")
    for name, epoch in epochs.items():
        write(root / "wav" / epoch.removeprefix("STIM_"), wav_bytes(samples(name, 44100), 44100))
    clip = {name: epoch.removeprefix("STIM_") for name, epoch in epochs.items()}
    # the onset is off by 3 ms and rounds to the grid: floor(t * fs) - round(start * fs)
    return Made(
        {
            (cells[unit], clip[name]): _shifted(unit, name, 1.0, bins[name])
            for unit in cells
            for name in TIMES[unit]
        },
        tests={clip["A"]},
        notes={"duplicate archives": 1, "cells in no list": 1},
        areas={cells["u1"]: "PEG", cells["u2"]: None},
        stims={clip[name]: made["tiles"][epochs[name]] for name in TIMES["u2"]},
        damage="recordings/PRN018a_77aa.tgz",
    )


# ---- Le 2025


def le2025(root: Path) -> Made:
    """One unit of each form in one folder; the sound of the newer form begins 0.05 s into the trial."""
    names = {"A": "ep_m1_C", "B": "ep_m1_GB_g1", "C": "ep_m2_C", "D": "ep_m3_N_g2_snr10"}
    for name, stimulus in names.items():
        write(root / "zebf" / "nat8b-stimuli" / f"{stimulus}.wav", wav_bytes(samples(name, 48000), 48000))
    folder = root / "zebf" / "nat8b-responses"
    trials = [
        {
            "events": [time + 0.05 for time in repeat], "offset": 17.0, "interval": [-1.95, 2.0],
            "stimulus": {"name": names[name], "interval": [0.05, 0.05 + LENGTHS[name]]},
        }
        for name, repeats in TIMES["u1"].items()
        for repeat in repeats
    ]  # fmt: skip
    schema = "https://meliza.org/spec:2/{}.json#"
    write(folder / "C104_1_1_c12.json", json.dumps({"$schema": schema.format("stimtrial"), "pprox": trials}))
    trials = []
    for name, repeats in TIMES["u2"].items():
        for repeat in repeats:
            trials.append(
                {
                    "event": [1000 * (time + 1.0) for time in repeat], "stim_on": 1000.0,
                    "stimulus": names[name].rpartition("_")[0] if name == "C" else names[name],
                    "condition": "C" if name == "C" else "",
                }
            )  # fmt: skip
    legacy = {"$schema": schema.format("pprox"), "bird": "P22", "location": "NCM", "pprox": trials}
    write(folder / "P22_2_1_c3.json", json.dumps(legacy))
    rows = "site,bird,probe,area\n1_1,C104,x,L2a\n1_1,C105,x,CM\n"
    write(root / "zebf" / "metadata" / "recordings.csv", rows)
    return Made(
        expected({"u1": "C104_1_1_c12", "u2": "P22_2_1_c3"}, names),
        groups="motif",
        areas={"C104_1_1_c12": "L2a", "P22_2_1_c3": "NCM"},
        notes={"silent trials": 4},
        damage="**/P22_2_1_c3.json",
    )


# ---- Downer 2025


def downer2025(root: Path) -> Made:
    """Sentences 1, 12 (test), 2 and 3; the stored sounds have 0.5 s of silence at each end."""
    code = {"A": 12, "B": 1, "C": 2, "D": 3}
    rate = 16000
    stored = []
    for number in range(1, 13):
        name = next((n for n, c in code.items() if c == number), None)
        sound = samples(name, rate) if name else np.ones(1600)
        padded = np.concatenate([np.full(8000, 0.25), sound, np.full(8000, 0.25)])
        stored.append({"name": f"s{number}", "sound": padded, "soundf": float(rate), "befaft": [0.5, 0.5]})
    path = root / "auditory" / "stimuli" / "out_sentence_details_timit_all_loudness.mat"
    path.parent.mkdir(parents=True)
    fields = [(key, object) for key in stored[0]]
    table = np.empty((1, len(stored)), dtype=fields)
    for k, one in enumerate(stored):
        for key, value in one.items():
            table[0, k][key] = np.atleast_1d(value) if key != "name" else value
    savemat(path, {"sentdet": table})
    units = {"u1": ("180627", "c_180627_Ch3"), "u2": ("180724", "f_180724_Ch11s2")}
    for unit, (session, file) in units.items():
        shown = _schedule(TIMES[unit])
        times, seen = [], dict.fromkeys(code, 0)
        for name, onset in shown:
            times += [onset + time for time in TIMES[unit][name][seen[name]]]
            seen[name] += 1
        onsets = [onset for _, onset in shown] + [90.0]
        codes = [code[name] for name, _ in shown] + [0]
        folder = root / "auditory" / "sessions" / session
        folder.mkdir(parents=True)
        trial = {"stimon": np.array(onsets)[None], "timitStimcode": np.array(codes)[None],
                 "mVocStimcode": np.array([0] * len(shown) + [7])[None]}  # fmt: skip
        spike = {"spktimes": np.sort(times)[:, None], "events": np.zeros((len(times), 3))}
        savemat(folder / f"{file}_MUspk.mat", {"spike": spike, "trial": trial})
    names = {"u1": "c_180627_Ch3", "u2": "f_180724_Ch11s2"}
    return Made(
        expected(names, {name: f"{number:03d}" for name, number in code.items()}),
        tests={"012"},
        areas={"c_180627_Ch3": "A1", "f_180724_Ch11s2": "CPB"},
        damage="**/c_180627_Ch3_MUspk.mat",
    )


#: Makers of recordings with spikes, by key.
SPIKES: dict[str, Callable[[Path], Made]] = {
    "nat4-a1": nat4("A1"),
    "nat4-peg": nat4("PEG"),
    "espejo-nat": espejo("NAT"),
    "espejo-vmn": espejo("VMN"),
    "crcns-aa1": crcns_aa1,
    "crcns-aa2": crcns_aa2,
    "crcns-aa4": crcns_aa4,
    "le2025": le2025,
    "downer2025": downer2025,
    "wingert2026": wingert2026,
}
