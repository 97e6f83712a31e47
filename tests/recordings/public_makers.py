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
            members = nems.site(f"extra/{site}", **made)
            if folder == "VMN" and unit == "u1":  # three sites hold rasters in place of times and tiles
                members = _raster_site(site, **made)
            nems.pack(root / outer / folder / f"{site}_0a1b.tgz", members)
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


def _raster_site(folder: str, spikes: Any, tiles: Any, epochs: Any, fs: float) -> dict[str, bytes]:
    """The content of a site as tables of counts and stimuli, time x channels, without signal_type."""
    n_rows = round(max(end for _, _, end in epochs) * fs)
    resp = np.zeros((n_rows, len(spikes)))
    for column, times in enumerate(spikes.values()):
        np.add.at(resp[:, column], np.floor(np.array(times) * fs + 1e-4).astype(int), 1)
    stim = np.zeros((n_rows, len(next(iter(tiles.values())))))
    for name, start, end in epochs:
        if name in tiles:
            stim[round(start * fs) : round(end * fs)] = tiles[name].T
    table = nems.epoch_bytes(epochs, ("", "start", "name", "end"))
    chans = [str(band) for band in range(stim.shape[1])]
    return nems.signal(
        folder, "resp", "", list(spikes), fs, nems.csv_bytes(resp), ".csv", table, segments=[[0, n_rows]]
    ) | nems.signal(folder, "stim", "", chans, fs, nems.csv_bytes(stim), ".csv", table)


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


def downer2025_calls(root: Path) -> Made:
    """Calls in slots of one long stereo file; call 7 (test) fills slots of 0.5 and 0.4 s: 0.4 s count."""
    downer2025(root)
    rate, code = 41000, {"A": 7, "B": 1, "C": 2, "D": 3}
    slots = [("A", 0.5), ("B", 0.3), ("C", 0.4), ("A", 0.4), ("D", 0.4)]
    stereo, onsets, clock = [], [], 0.0
    for name, length in slots:
        onsets.append(clock)
        piece = samples(name, rate)[: round(length * rate)]
        stereo.append(np.stack([piece, np.full(piece.size, 0.75)], 1))
        clock += length
    folder = root / "auditory" / "stimuli"
    content = io.BytesIO()
    soundfile.write(content, np.concatenate(stereo), rate, format="WAV", subtype="PCM_16")
    write(folder / "MonkVocs_15Blocks.wav", content.getvalue())
    codes = [code[name] for name, _ in slots]
    savemat(
        folder / "SqMoPhys_MVOCStimcodes.mat",
        {"mVocsStimCodes": np.array(codes)[:, None], "mVocsStimOnTimes": np.array(onsets)[:, None]},
    )
    path = root / "auditory" / "sessions" / "180627" / "c_180627_Ch3_MUspk.mat"
    shown = _schedule(TIMES["u1"])
    seen, times = dict.fromkeys(code, 0), []
    for name, onset in shown:
        times += [onset + time for time in TIMES["u1"][name][seen[name]]]
        seen[name] += 1
    trial = {"stimon": np.array([onset for _, onset in shown]),
             "mVocStimcode": np.array([code[name] for name, _ in shown]),
             "timitStimcode": np.zeros(len(shown))}  # fmt: skip
    savemat(path, {"spike": {"spktimes": np.sort(times)}, "trial": trial})
    bins = {"A": 40, "B": 30, "C": 40, "D": 40}
    tables = expected({"u1": "c_180627_Ch3"}, {name: f"{number:03d}" for name, number in code.items()}, bins)
    tables["f_180724_Ch11s2", "007"] = np.zeros((1, 40))  # one trial among sentences
    return Made(
        tables, {"stimuli": "calls"}, tests={"007"},
        areas={"c_180627_Ch3": "A1", "f_180724_Ch11s2": "CPB"},
        notes={"calls in slots of different lengths": 1},
        damage="**/SqMoPhys_MVOCStimcodes.mat",
    )  # fmt: skip


# ---- recordings with signals: every trace is a ramp over its rows, so that a bin's mean is its centre's row


@dataclass
class MadeSignal:
    """What a load of a recording with signals has to give: rows of the traces at the onsets of repeats."""

    #: (unit, clip) -> (rows of the onsets, bins, value of a row); rows are of the trace, from 0.
    onsets: dict[tuple[str, str], list[float]]
    bins: dict[str, int]
    rate: float
    per_row: float
    dt: float
    unit: str
    missing: dict[tuple[str, str], dict[int, list[int]]] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    damage: str = ""

    def table(self, pair: tuple[str, str]) -> np.ndarray:
        step = self.rate * self.dt
        rows = np.array(self.onsets[pair])[:, None]
        values = (rows + (np.arange(self.bins[pair[1]]) + 0.5) * step) * self.per_row
        for repeat, bins in self.missing.get(pair, {}).items():
            values[repeat, bins] = np.nan
        return values


def _structs(rows: list[dict[str, Any]]) -> np.ndarray:
    """A struct array for savemat."""
    table = np.empty((1, len(rows)), dtype=[(key, object) for key in rows[0]])
    for k, row in enumerate(rows):
        for key, value in row.items():
            table[0, k][key] = value
    return table


def ac1_wehr(root: Path) -> MadeSignal:
    """1-based triggers, a type that is misspelt, paths with backslashes, one file without natural sounds."""
    sf, n, rate = 4000, 12000, 97656
    where = {"A": ("fragments", 3), "C": ("category1", 1), "D": ("fragments", 12)}
    for name, (kind, number) in where.items():
        path = root / "wehr" / "Stimuli" / kind / f"{number}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        param = {"description": f"sound {name}", "sf": float(rate)}
        savemat(path, {"stimulus": {"samples": samples(name, rate)[:, None], "param": param}})
    first = [("A", 4001, "naturalsound"), ("A", 6001, "nauralsound"), ("C", 1, "natural")]
    second = [("D", 3, "naturalsound"), ("C", 5001, "natural")]
    cells = {"20020528-mw-003": first, "20020601-mw-012": second}
    onsets: dict[tuple[str, str], list[float]] = {}
    names = {name: "/".join([kind, str(number)]) for name, (kind, number) in where.items()}
    for cell, files in cells.items():
        folder = root / "wehr" / "Results" / cell
        folder.mkdir(parents=True)
        for record, (name, time, kind) in enumerate([*files, ("A", 5, "tone")], start=1):
            trace = np.arange(n, dtype=np.int32)[:, None]
            if (cell, record) == ("20020528-mw-003", 2):
                trace[time - 1 + 105] = 900_000  # an artefact in bin 5
            kind_of, number = where[name]
            file = "..\\Stimuli\\" + f"{kind_of}\\{number}.mat"
            param = {"duration": 1000 * LENGTHS[name], "description": f"sound {name}"}
            trigger = {"time": float(time), "type": kind, "file": "" if name == "C" else file, "param": param}
            savemat(
                folder / f"{cell}-{record:03d}.mat",
                {"response": {"trace": trace, "scale": 0.001, "sf": float(sf)}, "triggers": trigger},
            )
            if kind != "tone":
                onsets.setdefault((cell, names[name]), []).append(time - 1.0)
    return MadeSignal(
        onsets, {names[name]: round(LENGTHS[name] / 0.005) for name in where}, sf, 0.001, 0.005, "mV",
        missing={("20020528-mw-003", names["A"]): {1: [5]}},
        notes={"fixes": 1, "triggers of other kinds": 2, "files without natural sounds": 2,
               "samples beyond 150 mV": 1},
        damage="wehr/Results/20020601-mw-012/20020601-mw-012-001.mat",
    )  # fmt: skip


def ac1_asari(root: Path) -> MadeSignal:
    """Sequences of segments by 1-based numbers; the same description is another sound in another session."""
    sf, rate = 10000, 97656
    for number, name in ((1, "A"), (2, "B"), (3, "C")):
        path = root / "asari" / "Stimuli" / "class6" / f"{number}.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"stimulus": {"sample": samples(name, rate)[None], "param": {"sf": float(rate)}}})
    cells = {"20051010-ha1-004": ("auditory cortex", [3, 1, 2]), "20060101-ha3-001": ("thalamus", [1, 2, 3])}
    onsets: dict[tuple[str, str], list[float]] = {}
    bins: dict[str, int] = {}
    length = {1: LENGTHS["A"], 2: LENGTHS["B"], 3: LENGTHS["C"]}
    for cell, (site, listed) in cells.items():
        folder = root / "asari-results-1" / cell
        folder.mkdir(parents=True)
        triggers = []
        for time, sequence in ((101, [2, 1]), (20001, [3]), (30001, [2, 1])):
            param = {
                "description": f"Sequence {len(sequence)}: " + " ".join(map(str, sequence)),
                "stimulus": _structs([{"file": f"class6/{number}.mat"} for number in listed]),
                "recording": {"type": "whole cell", "site": site},
            }
            triggers.append({"time": float(time), "type": "natural sound", "param": param})
            files = [listed[number - 1] for number in sequence]
            name = "+".join(f"class6/{number}" for number in files)
            onsets.setdefault((cell, name), []).append(time - 1.0)
            bins[name] = int(sum(round(length[number] * rate) for number in files) / rate / 0.005 + 1e-3)
        trace = np.arange(40_000, dtype=np.int32)
        response = {"trace": trace[:, None], "scale": 0.001, "sf": float(sf)}
        savemat(folder / "001.mat", {"response": response, "triggers": _structs(triggers)})
        attached = [
            {**t, "param": {**t["param"], "recording": {"type": "cell attached", "site": site}}}
            for t in triggers
        ]
        savemat(folder / "002.mat", {"response": response, "triggers": _structs(attached)})
    return MadeSignal(
        onsets, bins, sf, 0.001, 0.005, "mV", options={"experimenter": "asari"},
        notes={"recordings that are no whole-cell traces": 2}, damage="asari-results-1/**/001.mat",
    )  # fmt: skip


def alice_eeg(root: Path) -> MadeSignal:
    """A cropped file, a bad channel, a bad span, and a subject without the first segment."""
    import mne

    rate, n = 500.0, 7000
    for number in (1, 2, 3):
        write(root / "stimuli" / f"{number}.wav", wav_bytes(samples(f"seg{number}", 44100, 1.0), 44100))
    onsets: dict[tuple[str, str], list[float]] = {}
    missing = {}
    for subject, first in (("S01", 1000), ("S26", 0)):
        info = mne.create_info(["1", "2", "AUD", "VEOG"], rate, ["eeg", "eeg", "misc", "eog"])
        data = np.tile(np.arange(n) * 1e-6, (4, 1))
        raw = mne.io.RawArray(data, info, first_samp=first, verbose="ERROR")
        times = {"1": 1.0, "2": 4.0, "3": 8.0}
        if subject == "S26":
            del times["1"]
        raw.set_annotations(
            mne.Annotations(
                [*times.values(), 1.5, 0.2], [0.1] * len(times) + [0.1, 0.1],
                [*times, "BAD_x", "New Segment"],
            )
        )  # fmt: skip
        raw.info["bads"] = ["2"]
        path = root / "eeg" / subject / f"{subject}_alice-raw.fif"
        path.parent.mkdir(parents=True)
        raw.save(path, verbose="ERROR")
        for name, time in times.items():
            onsets[f"{subject}-1", name] = [time * rate]
        if "1" in times:
            missing[f"{subject}-1", "1"] = {0: list(range(50, 60))}
    return MadeSignal(
        onsets, dict.fromkeys("123", 100), rate, 1e-6, 0.01, "V", missing=missing,
        notes={"segments that a subject lacks": 1},
        damage="eeg/S26/S26_alice-raw.fif",
    )  # fmt: skip


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

#: Second makers of recordings that have two parts, by key and part.
PARTS: dict[str, Callable[[Path], Made]] = {"downer2025 calls": downer2025_calls}
#: Makers of recordings with signals, by key and part.
SIGNALS: dict[str, Callable[[Path], MadeSignal]] = {
    "crcns-ac1 wehr": ac1_wehr,
    "crcns-ac1 asari": ac1_asari,
    "alice-eeg": alice_eeg,
}
