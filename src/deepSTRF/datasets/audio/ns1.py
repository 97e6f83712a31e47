"""NS1: ferret auditory cortex, 119 units, 20 natural sounds (Harper et al. 2016).

The files are those of osf.io/ayw2p. Their SHA-256 are pinned in ``ns1_sha256.txt`` and verified before a file
is parsed: scipy can crash on a damaged .mat file, and most damaged sound files are readable. Files are parsed
once into a cache of arrays; spikes are binned and spectrograms or waveforms computed for the options of each
dataset.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import struct
import zipfile
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deepSTRF._files import DamagedFileError, check_regular
from deepSTRF._validation import checked
from deepSTRF.datasets.dataset import AudioNeuralDataset, check_hop, plain_rate
from deepSTRF.datasets.download import (
    OSF_BASE_URL,
    Arrays,
    cached_arrays,
    data_dir,
    download_file,
    hash_files,
    osf_url,
    unpack_zip,
)
from deepSTRF.datasets.recording import LoadReport
from deepSTRF.datasets.spikes import BINNINGS, bin_spikes, count_bins, validate_binning
from deepSTRF.dsp.cochleagram import ALIGNMENTS, RAHMAN_N_FILTERS, rahman_cochleagram, rahman_frequencies
from deepSTRF.dsp.resample import rate_ratio, resample_exact
from deepSTRF.registry import DATASETS

__all__ = [
    "NS1_DNET_FILES",
    "NS1_DNET_REF",
    "NS1_DNET_REPO",
    "NS1_DRC_REPEATS",
    "NS1_DRC_SOUNDS",
    "NS1_NAT_SOUNDS",
    "NS1_OSF_FILES",
    "NS1_RAHMAN_TEST_INDICES",
    "NS1_RAHMAN_TRAINVAL_INDICES",
    "NS1_RAW_LEN_MS",
    "NS1_SPEECH_INDICES",
    "NS1_TYPE_OVERRIDES",
    "NS1_WAV_DIR_NAME",
    "NS1_WAV_FILENAMES",
    "NS1_WAV_NATIVE_FS",
    "DRCResponses",
    "NS1Dataset",
    "download_ns1",
]

# ---- constants

#: Analysed part of each clip in ms: 999 bins of 5 ms. The sounds last 5.000 s.
NS1_RAW_LEN_MS = 4995
_SOUND_SECONDS = 5.0
NS1_NAT_SOUNDS = 20
#: Random chord sequences: entries 20..31 of each spike file, 5 repeats; their sounds do not ship.
NS1_DRC_SOUNDS = 12
NS1_DRC_REPEATS = 5
#: OSF identifiers (project osf.io/ayw2p, no account needed).
NS1_OSF_FILES = {"MetadataSHEnCneurons.mat": "gdwyd", "spikesandwav.zip": "5nxga", "ReadMe.rtf": "f3rtm"}
#: The authors' own cochleagram, which is not on OSF.
NS1_DNET_REPO = "monzilur/DNet"
NS1_DNET_REF = "master"
NS1_DNET_FILES = ("test_data_5ms.mat",)
NS1_SPEECH_INDICES = (8, 9, 10, 11)
#: Kinds of the clips that are known.
NS1_TYPE_OVERRIDES = {
    0: "water_sounds",
    3: "ferret_vocalization",
    6: "insects_buzzing",
    **dict.fromkeys(NS1_SPEECH_INDICES, "human_speech"),
    19: "water_sounds",
}
#: Clips of the two sets of Rahman et al. 2019.
NS1_RAHMAN_TRAINVAL_INDICES = [0, 1, 2, 4, 5, 7, 8, 10, 11, 12, 13, 14, 15, 16, 17, 18]
NS1_RAHMAN_TEST_INDICES = [3, 6, 9, 19]
NS1_WAV_FILENAMES = [
    *(f"source.1.sound.0.snr.0.token.0.fw.2.frozen.{number}" for number in range(1, 13)),
    *(f"source.2.sound.0.snr.0.token.0.fw.1.frozen.{number}" for number in range(1, 9)),
]
#: True rate of the sound files, 50 MHz / 1024; their headers say 48828.
NS1_WAV_NATIVE_FS = Fraction(50_000_000, 1024)
#: Rate in the headers of the sound files (the true one, cut to an integer).
_HEADER_RATE = 48828
NS1_SPIKE_DIR_NAME = "spikesandwav"
NS1_WAV_DIR_NAME = "spikesandwav/SH.En.C"
NS1_METADATA = "MetadataSHEnCneurons.mat"
NS1_OSF_PAGE = "https://osf.io/ayw2p"
GITHUB_RAW_URL = "https://raw.githubusercontent.com"
#: No file of the recording comes near this size in bytes.
_LARGEST_FILE = 1 << 30
#: Field of the metadata file -> key of nrn_meta and its type.
_METADATA_FIELDS: dict[str, tuple[str, type]] = {
    "depth": ("depth_um", int),
    "NoiseRatio": ("noise_ratio", float),
    "singleN": ("single_n", int),
    "singleT": ("single_t", str),
    "NrOfElectrodes": ("n_electrodes", int),
    "ElectrodeNumber": ("electrode_number", int),
}
#: Sets of sounds: entries of each spike file.
_SETS = {"natural": slice(0, NS1_NAT_SOUNDS), "drc": slice(NS1_NAT_SOUNDS, None)}
#: Random chord sequences as the spike files describe them: four sets with three tokens each, at 75 dB.
_DRC_SETS, _DRC_LEVEL_DB = (10, 20, 30, 40), 75

#: "shipped": the authors' X_nfht; "recomputed": their recipe applied to the sound files; "auto": "shipped"
#: where its file is there and fits the options, else "recomputed".
SPECTROGRAMS = ("auto", "shipped", "recomputed")
#: The only bin of the shipped spectrogram; at it the recomputed one has the authors' frame grid.
SHIPPED_DT_MS = 5.0
#: What to do with a neuron whose spike file is missing or damaged.
ON_BAD_FILE = ("error", "skip")
#: Width of the Hanning window of the literature (Hsu, Borst & Theunissen 2004, 10.1088/0954-898X_15_2_002).
SMOOTHING_MS = 21.0
#: Ferret audiogram, advice for front-ends.
FERRET_HEARING_RANGE_HZ = (200.0, 40000.0)

#: Everything that scipy raises on files that are truncated, overwritten or no MATLAB files.
MAT_DAMAGE = (
    OSError, ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, MemoryError,
    NotImplementedError, zlib.error, struct.error,
)  # fmt: skip

# ---- reading files


@functools.cache
def published_files() -> Mapping[str, tuple[str, int]]:
    """SHA-256 and size in bytes of the published files, by their path in the recording's folder.

    ``test_data_5ms.mat`` is not among them: no copy was at hand, so that only its structure is checked.
    """
    text = resources.files("deepSTRF.datasets.audio").joinpath("ns1_sha256.txt").read_text("utf-8")
    rows = (line.split(maxsplit=2) for line in text.splitlines())
    return {name: (sha256, int(size)) for sha256, size, name in rows}


def identify(
    root: Path, names: Iterable[str], *, verify: bool, cache: bool = True
) -> tuple[dict[str, str], dict[str, str]]:
    """SHA-256 of files, and what is wrong with each that has a published name and another content."""
    known = published_files() if verify else {}
    faults, intact = {}, []
    for name in names:
        size = check_regular(root / name, limit=_LARGEST_FILE).st_size
        if name in known and size != known[name][1]:
            faults[name] = _not_published(root, name, f"{size:,} bytes instead of {known[name][1]:,}")
        else:
            intact.append(name)
    digests = hash_files(root, intact, memory="NS1" if cache else None)
    for name, sha256 in digests.items():
        if name in known and sha256 != known[name][0]:
            faults[name] = _not_published(root, name, f"SHA-256 {sha256} instead of {known[name][0]}")
    return digests, faults


def _not_published(root: Path, name: str, why: str) -> str:
    return (
        f"{root / name} is not the published file ({why}): delete it, then {_remedy(root)}; "
        "NS1Dataset(..., verify=False) reads it as it is"
    )


def _identified(root: Path, names: Sequence[str], verify: bool, cache: bool) -> dict[str, str]:
    """SHA-256 of files that are all needed; DamagedFileError for the first that is not the published one."""
    digests, faults = identify(root, names, verify=verify, cache=cache)
    if faults:
        raise DamagedFileError(next(iter(faults.values())))
    return digests


def read_metadata(root: Path, *, cache: bool = True, verify: bool = True) -> list[dict[str, Any]]:
    """One dictionary per neuron: ``file`` (relative spike file) and the ``nrn_meta`` keys."""
    path = root / NS1_METADATA
    if not path.exists():
        inside = root / "NS1" / NS1_METADATA
        hint = f"did you mean path={str(inside.parent)!r}?" if inside.is_file() else _remedy(root)
        raise FileNotFoundError(f"{root} holds no NS1 recording: {path} is missing; {hint}")
    # cached although it is small: a second load need not import scipy, which takes longer than the load
    stored = cached_arrays(
        "NS1",
        "units",
        {"files": _identified(root, [NS1_METADATA], verify, cache)},
        lambda: {"json": np.array(json.dumps(_parse_metadata(path, root)))},
        enabled=cache,
    )
    neurons: list[dict[str, Any]] = json.loads(str(stored["json"]))
    return neurons


def _parse_metadata(path: Path, root: Path) -> list[dict[str, Any]]:
    neurons = []
    try:
        for entry in load_mat(path)["neuron"][0]:
            file = str(entry["path"].item())
            facts = {key: kind(entry[field].item()) for field, (key, kind) in _METADATA_FIELDS.items()}
            neurons.append({"file": file, "cell_id": file[:-4], "area": "A1", **facts})
    except MAT_DAMAGE as error:
        raise _damaged(path, root, error) from error
    if not neurons:
        raise _damaged(path, root, "it names no neuron")
    return neurons


def resolve_spike_file(root: Path, file: str) -> str | None:
    """The spike file that is there, relative to the spike folder: itself, ``..._1.mat`` or None."""
    folder = root / NS1_SPIKE_DIR_NAME
    for candidate in (file, file.removesuffix(".mat") + "_1.mat"):
        if (folder / candidate).exists():
            return candidate
    return None


def read_spikes(path: Path, root: Path) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Spike times in ms, repeat by repeat, and the (sounds, repeats) numbers of spikes, -1 for no repeat."""
    entries = NS1_NAT_SOUNDS + NS1_DRC_SOUNDS
    times: list[npt.NDArray[np.float64]] = []
    counts: list[list[int]] = []
    try:
        blocks = load_mat(path)["data"]["set"][0, 0]["repeats"][0]
        if len(blocks) != entries:
            raise ValueError(f"it holds {len(blocks)} sounds instead of {entries}")
        for block in blocks:
            repeats = [np.asarray(one, dtype=np.float64).ravel() for one in block["t"][0]]
            counts.append([len(one) for one in repeats])
            times += repeats
    except MAT_DAMAGE as error:
        raise _damaged(path, root, error) from error
    flat = np.concatenate(times) if times else np.empty(0)
    if not np.isfinite(flat).all():
        raise _damaged(path, root, "a spike time is not a finite number")
    table = np.full((entries, max(map(len, counts))), -1, dtype=np.int32)
    for row, lengths in zip(table, counts, strict=True):
        row[: len(lengths)] = lengths
    if (table < 0).all(axis=1).any():
        raise _damaged(path, root, "a sound has no repeat")
    return flat, table


def read_waveforms(root: Path) -> list[npt.NDArray[np.float32]]:
    """The 20 sounds as stored: mono float32 at `NS1_WAV_NATIVE_FS`, peaks up to 14, not normalised."""
    import soundfile

    shortest = round(NS1_RAW_LEN_MS / 1000 * NS1_WAV_NATIVE_FS)
    sounds = []
    for name in wav_paths():
        path = root / name
        try:
            with open(path, "rb") as handle:
                samples, rate = soundfile.read(handle, dtype="float32")
        except (soundfile.LibsndfileError, RuntimeError, TypeError) as error:
            raise _damaged(path, root, error) from error
        if rate != _HEADER_RATE or samples.ndim != 1:
            raise _damaged(path, root, f"it is not mono at {_HEADER_RATE} Hz: {samples.shape} at {rate} Hz")
        if len(samples) < shortest or not np.isfinite(samples).all():
            raise _damaged(path, root, f"{len(samples)} samples, at least {shortest} finite ones are needed")
        sounds.append(samples)
    return sounds


def wav_paths() -> list[str]:
    """Sound files in clip order, relative to the recording's folder."""
    return [f"{NS1_WAV_DIR_NAME}/{name}" for name in NS1_WAV_FILENAMES]


def read_shipped_spectrogram(root: Path) -> npt.NDArray[np.float32]:
    """The authors' cochleagram X_nfht, (20, 34, 999) float32."""
    path = root / NS1_DNET_FILES[0]
    if not path.exists():
        source = f"https://github.com/{NS1_DNET_REPO}"
        raise FileNotFoundError(
            f"the authors' cochleagram {path} is missing (source: {source}); get it with "
            f"NS1Dataset(path={str(root)!r}, spectrogram='shipped', download=True), "
            "or use spectrogram='recomputed'"
        )
    try:
        stored = np.asarray(load_mat(path, ["X_nfht"])["X_nfht"], dtype=np.float32)
    except MAT_DAMAGE as error:
        raise _damaged(path, root, error) from error
    legal = (NS1_NAT_SOUNDS, 34, 1, 999)
    if stored.shape != legal or not np.isfinite(stored).all():
        raise _damaged(path, root, f"X_nfht is {stored.shape}, expected {legal} finite numbers")
    return np.ascontiguousarray(stored[:, :, 0, :])


def load_mat(path: Path, names: list[str] | None = None) -> dict[str, Any]:
    """Variables of a MATLAB file; a damaged one raises one of `MAT_DAMAGE`."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    check_regular(path, limit=_LARGEST_FILE)
    try:
        content: dict[str, Any] = loadmat(path, variable_names=names)
    except MatReadError as error:
        raise ValueError(str(error)) from error
    return content


def _damaged(path: Path, root: Path, why: object) -> DamagedFileError:
    """The error for a file that is there but cannot be read."""
    return DamagedFileError(f"{path} is damaged ({why}); delete it, then {_remedy(root)}")


def _remedy(root: Path) -> str:
    """How to get missing files, for error messages."""
    return f"get it with NS1Dataset(path={str(root)!r}, download=True), or by hand from {NS1_OSF_PAGE}"


# ---- spikes


@dataclass(frozen=True, eq=False)
class SpikeTrains:
    """Spike times of one set of sounds for all kept neurons."""

    neurons: list[dict[str, Any]]  # ``nrn_meta`` of the kept neurons, in metadata order
    report: LoadReport  # neurons kept and skipped
    times: npt.NDArray[np.float64]  # in ms, sound by sound, neuron by neuron, repeat by repeat
    counts: npt.NDArray[np.int32]  # (S, N, R) spikes of each, -1 where a repeat does not exist

    def binned(self, n_bins: int, dt_ms: float, binning: str) -> list[Any]:
        """Per sound an (N, R, T) block of counts, or a list of (R_n, T) where repeats differ."""
        blocks: list[Any] = []
        first = 0
        for counts in self.counts:
            there = counts >= 0
            lengths = np.where(there, counts, 0).ravel()
            last = first + int(lengths.sum())
            rows = np.repeat(np.arange(lengths.size), lengths)
            binned = bin_spikes(self.times[first:last], rows, lengths.size, n_bins, dt_ms, binning)
            block = binned.reshape(*counts.shape, n_bins)
            ragged = not there.all()
            blocks.append([rows[kept] for rows, kept in zip(block, there, strict=True)] if ragged else block)
            first = last
        return blocks


def load_spikes(
    root: Path, sounds: str, *, on_bad_file: str = "error", cache: bool = True, verify: bool = True
) -> SpikeTrains:
    """Spike trains of one set of sounds, ``"natural"`` or ``"drc"``."""
    neurons = read_metadata(root, cache=cache, verify=verify)
    report = LoadReport()
    found: list[dict[str, Any]] = []
    missing: list[str] = []
    for neuron in neurons:
        resolved = resolve_spike_file(root, neuron["file"])
        if resolved is None:
            missing.append(neuron["file"])
            report.skip(neuron["cell_id"], f"its spike file {neuron['file']} is missing")
        else:
            found.append({**neuron, "file": resolved})
    if missing and on_bad_file == "error":
        folder = root / NS1_SPIKE_DIR_NAME
        more = f" and {len(missing) - 1} more spike files are" if len(missing) > 1 else " is"
        raise FileNotFoundError(
            f"{folder / missing[0]}{more} missing; {_remedy(root)}; on_bad_file='skip' loads the others"
        )
    if not found:
        raise FileNotFoundError(f"{root} holds none of the {len(neurons)} spike files; {_remedy(root)}")
    place = f"{NS1_SPIKE_DIR_NAME}/"
    digests, unlike = identify(root, [place + neuron["file"] for neuron in found], verify=verify, cache=cache)
    if unlike and on_bad_file == "error":
        raise DamagedFileError(f"{next(iter(unlike.values()))}; on_bad_file='skip' loads the others")
    for neuron in found:
        if place + neuron["file"] in unlike:
            report.skip(neuron["cell_id"], unlike[place + neuron["file"]])
    found = [neuron for neuron in found if place + neuron["file"] not in unlike]
    if not found:
        raise DamagedFileError(next(iter(unlike.values())))
    files = [neuron["file"] for neuron in found]
    stored = cached_arrays(
        "NS1",
        "spikes",
        {"files": {file: digests[place + file] for file in files}, "on_bad_file": on_bad_file},
        lambda: _parse_spikes(root, files, on_bad_file),
        members=["bad", "faults", f"{sounds}_times", f"{sounds}_counts"],
        enabled=cache,
    )
    faults = dict(zip(stored["bad"].tolist(), stored["faults"].tolist(), strict=True))
    kept = []
    for index, neuron in enumerate(found):
        if index in faults:
            report.skip(neuron["cell_id"], faults[index])
            continue
        report.keep(neuron["cell_id"])
        kept.append({key: value for key, value in neuron.items() if key != "file"})
    return SpikeTrains(kept, report, stored[f"{sounds}_times"], stored[f"{sounds}_counts"])


def _parse_spikes(root: Path, files: list[str], on_bad_file: str) -> Arrays:
    """Read every spike file and sort the times by sound, neuron, repeat."""
    bad: list[int] = []
    faults: list[str] = []
    units: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]] = []
    for index, file in enumerate(files):
        try:
            units.append(read_spikes(root / NS1_SPIKE_DIR_NAME / file, root))
        except ValueError as error:
            if on_bad_file == "error":
                raise
            bad.append(index)
            faults.append(str(error))
    if not units:
        raise ValueError(f"none of the {len(files)} spike files under {root} can be read; {_remedy(root)}")
    arrays: Arrays = {"bad": np.array(bad, dtype=np.int64), "faults": np.array(faults, dtype=np.str_)}
    repeats = max(counts.shape[1] for _, counts in units)
    table = np.full((len(units[0][1]), len(units), repeats), -1, dtype=np.int32)
    ends = []
    for unit, (_, counts) in enumerate(units):
        table[:, unit, : counts.shape[1]] = counts
        ends.append(np.concatenate([[0], np.cumsum(np.maximum(counts, 0).sum(axis=1))]))
    for name, entries in _SETS.items():
        counts = table[entries]
        used = int(np.flatnonzero((counts >= 0).any(axis=(0, 1)))[-1]) + 1
        pieces = [
            times[end[entry] : end[entry + 1]]
            for entry in range(*entries.indices(len(table)))
            for (times, _), end in zip(units, ends, strict=True)
        ]
        arrays[f"{name}_times"] = np.concatenate(pieces)
        arrays[f"{name}_counts"] = np.ascontiguousarray(counts[:, :, :used])
    return arrays


# ---- stimuli


@dataclass(frozen=True, eq=False)
class Stimuli:
    """Stimuli of the 20 clips."""

    values: npt.NDArray[np.float32]  # (20, 1, F, T) spectrograms or (20, 1, T_audio) waveforms
    source_sha256: list[str]  # hash of each sound file; empty when the sound files are not there
    facts: dict[str, Any]  # processing, for reports


def choose_spectrogram(root: Path, spectrogram: str, alignment: str, dt_ms: float) -> str:
    """Kind of spectrogram, "shipped" or "recomputed", for the requested options."""
    fits = dt_ms == SHIPPED_DT_MS and alignment == "native"
    if spectrogram == "shipped" and not fits:
        raise ValueError(
            f"the shipped spectrogram has bins of {SHIPPED_DT_MS:g} ms in native alignment only, asked for "
            f"dt_ms={dt_ms:g}, alignment={alignment!r}; use spectrogram='recomputed'"
        )
    if spectrogram == "auto":
        present = (root / NS1_DNET_FILES[0]).exists()
        return "shipped" if present and fits else "recomputed"
    return spectrogram


def load_spectrograms(
    root: Path,
    kind: str,
    alignment: str,
    dt_ms: float,
    n_bins: int,
    *,
    cache: bool = True,
    verify: bool = True,
) -> Stimuli:
    """Cochleagrams of the 20 sounds; ``kind`` is "shipped" or "recomputed"."""
    facts: dict[str, Any] = {
        "spectrogram": kind,
        "alignment": alignment,
        "look_ahead_ms": dt_ms if alignment == "native" else 0.0,
    }
    if kind == "shipped":
        values = read_shipped_spectrogram(root)[:, None, :, :n_bins]
        there = all((root / name).exists() for name in wav_paths())
        return Stimuli(values, _sound_hashes(root, verify, cache) if there else [], facts)
    grid = "authors" if dt_ms == SHIPPED_DT_MS else "exact"
    options = {"dt_ms": dt_ms, "alignment": alignment, "grid": grid, "n_bins": n_bins}

    def build() -> Arrays:
        sounds = read_waveforms(root)
        frames = [
            rahman_cochleagram(torch.from_numpy(sound), float(NS1_WAV_NATIVE_FS), **options).numpy()  # type: ignore[arg-type]
            for sound in sounds
        ]
        return {"values": np.stack(frames)}

    hashes = _sound_hashes(root, verify, cache)
    stored = cached_arrays("NS1", "cochleagram", {**options, "files": hashes}, build, enabled=cache)
    return Stimuli(stored["values"][:, None], hashes, {**facts, "frame_grid": grid})


def load_waveforms(
    root: Path, audio_fs: float, n_samples: int, *, cache: bool = True, verify: bool = True
) -> Stimuli:
    """The first ``n_samples`` of the 20 sounds, resampled by the exact ratio to ``audio_fs``."""
    ratio = rate_ratio(NS1_WAV_NATIVE_FS, audio_fs)
    length = math.floor(_SOUND_SECONDS * audio_fs)

    def build() -> Arrays:
        sounds = read_waveforms(root)
        resampled = [
            resample_exact(torch.from_numpy(sound), NS1_WAV_NATIVE_FS, audio_fs, length).numpy()
            for sound in sounds
        ]
        return {"values": np.stack(resampled)}

    hashes = _sound_hashes(root, verify, cache)
    depends_on = {"audio_fs": audio_fs, "files": hashes}
    stored = cached_arrays("NS1", f"waveform-{audio_fs}", depends_on, build, enabled=cache)
    how = f"{float(NS1_WAV_NATIVE_FS):.3f} Hz by {ratio.numerator}/{ratio.denominator}, linear phase"
    facts = {"resampling": how}
    return Stimuli(stored["values"][:, None, :n_samples], hashes, facts)


def _sound_hashes(root: Path, verify: bool, cache: bool) -> list[str]:
    """SHA-256 (hex) of each sound file in clip order; FileNotFoundError names the one that is missing."""
    try:
        digests = _identified(root, wav_paths(), verify, cache)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"the sound file {error.filename} is missing; {_remedy(root)}") from error
    return [digests[name] for name in wav_paths()]


# ---- download


def download_ns1(
    dest: str | os.PathLike[str],
    *,
    spectrogram: bool = False,
    osf_base: str = OSF_BASE_URL,
    github_base: str = GITHUB_RAW_URL,
    cache: bool = True,
    verify: bool = True,
) -> Path:
    """Fetch the missing files of the recording; files that are there cause no network traffic.

    With ``verify``, what arrives under the name of a published file must be that file.
    """
    dest = Path(dest)
    known = published_files() if verify else {}
    if not (dest / NS1_METADATA).exists():
        sha256, size = known.get(NS1_METADATA, (None, None))
        url = osf_url(NS1_OSF_FILES[NS1_METADATA], osf_base)
        download_file(
            url, dest / NS1_METADATA, sha256=sha256, size=size, limit=_LARGEST_FILE, check=_check_mat
        )
    complete = all((dest / name).exists() for name in wav_paths()) and all(
        resolve_spike_file(dest, unit["file"]) is not None
        for unit in read_metadata(dest, cache=cache, verify=verify)
    )
    if not complete:
        archive = dest / "spikesandwav.zip"
        was_there = archive.is_file()
        read_me = osf_url(NS1_OSF_FILES["ReadMe.rtf"], osf_base)
        download_file(read_me, dest / "ReadMe.rtf", limit=_LARGEST_FILE)
        check = functools.partial(_check_zip, known=known)
        download_file(
            osf_url(NS1_OSF_FILES[archive.name], osf_base), archive, limit=_LARGEST_FILE, check=check
        )
        if was_there:
            check(archive)
        with zipfile.ZipFile(archive) as opened:
            has_root = any(name.startswith(f"{NS1_SPIKE_DIR_NAME}/") for name in opened.namelist())
        unpack_zip(archive, dest if has_root else dest / NS1_SPIKE_DIR_NAME)
        if not was_there:
            archive.unlink()
    if spectrogram and not (dest / NS1_DNET_FILES[0]).exists():
        url = f"{github_base.rstrip('/')}/{NS1_DNET_REPO}/{NS1_DNET_REF}/{NS1_DNET_FILES[0]}"
        download_file(url, dest / NS1_DNET_FILES[0], limit=_LARGEST_FILE, check=_check_mat)
    return dest


def _check_zip(path: Path, known: Mapping[str, tuple[str, int]]) -> None:
    """Raise ValueError unless a zip archive is intact, and its members of ``known`` names are those."""
    name = path.name.removesuffix(".part")
    try:
        with zipfile.ZipFile(path) as opened:
            total = sum(entry.file_size for entry in opened.infolist())
            if total > _LARGEST_FILE:
                raise ValueError(f"what arrived for {name} would unpack to {total:,} bytes")
            for entry in opened.infolist():
                with opened.open(entry) as member:
                    sha256 = hashlib.file_digest(member, "sha256").hexdigest()  # type: ignore[arg-type]
                inner = f"{NS1_SPIKE_DIR_NAME}/{entry.filename.removeprefix(f'{NS1_SPIKE_DIR_NAME}/')}"
                if inner in known and known[inner][0] != sha256:
                    raise ValueError(
                        f"what arrived for {name} holds another {entry.filename} (SHA-256 {sha256}) than was "
                        f"published ({known[inner][0]})"
                    )
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"what arrived for {name} is no intact zip archive ({error})") from error


def _check_mat(path: Path) -> None:
    """Raise ValueError unless scipy reads the file to its end."""
    try:
        load_mat(path)
    except MAT_DAMAGE as error:
        raise ValueError(
            f"what arrived for {path.name.removesuffix('.part')} is no MATLAB file ({error})"
        ) from error


# ---- the dataset


@dataclass(frozen=True, eq=False)
class DRCResponses:
    """Responses to the 12 random chord sequences of NS1, whose sounds were not published.

    Attributes
    ----------
    responses : list of Tensor (N, R, T)
        Spike counts per bin, float32, not smoothed; R is 5. NaN where a unit has fewer repeats.
    stim_meta : list of dict
        ``name``, ``type``, ``set``, ``token`` and ``level_db`` as the spike files give them.
    cell_ids : list of str
        ``cell_id`` of each row.
    dt_ms : float
        Bin in ms.
    """

    responses: list[Tensor]
    stim_meta: list[dict[str, Any]]
    cell_ids: list[str]
    dt_ms: float


@DATASETS.register("ns1")
class NS1Dataset(AudioNeuralDataset):
    """Ferret primary auditory cortex: 119 units, 20 natural sounds of 5 s, 20 repeats, nothing missing.

    The published spectrogram of these data (``X_nfht``) is not part of the recording; by default it is
    recomputed from the sounds by its authors' recipe (`deepSTRF.dsp.cochleagram.rahman_cochleagram`), at any
    bin. Its native form looks one bin ahead. The spectrogram, alignment, binning and smoothing used are
    in `describe`. Files are parsed once; later loads read a cache.

    Parameters
    ----------
    path : path, optional
        Folder with ``MetadataSHEnCneurons.mat`` and ``spikesandwav/``. Default: ``$DEEPSTRF_DATA_DIR/NS1``,
        else the user's cache folder.
    dt_ms : float
        Bin in ms. 5 gives 999 bins; other bins give ``floor(4995 / dt_ms)``.
    smooth : bool
        Read the responses through a 21 ms Hanning window of unit gain (the unit stays spikes per bin).
    download : bool
        Fetch missing files from osf.io/ayw2p (about 160 MB); touches no network when the files are there.
    return_waveform : bool
        Stimuli are (1, T_audio) waveforms instead of (1, 34, T) spectrograms. Responses are the same.
    audio_fs : int
        Rate in Hz of the waveforms, resampled by the exact ratio from 48,828.125 Hz; a bin must be a whole
        number of samples. Not used in spectrogram mode.
    spectrogram : {"auto", "shipped", "recomputed"}
        "shipped" reads ``test_data_5ms.mat`` (5 ms, native alignment; ``download=True`` fetches it),
        "recomputed" applies the recipe, "auto" takes the first when it is there and fits, else the second.
    alignment : {"native", "causal"}
        Spectrogram frame k covers bins k and k+1 (native, 5 ms look-ahead) or k-1 and k (causal).
    binning : {"half-open", "published"}
        "half-open" counts every spike in ``[k*dt, (k+1)*dt)``; "published" reproduces earlier packages, which
        round to milliseconds and lose coincident spikes (see `deepSTRF.datasets.spikes.bin_spikes`).
    on_bad_file : {"error", "skip"}
        A missing or damaged spike file stops the load, or leaves that unit out (see ``load_report``).
    cache : bool
        Use and fill the cache of parsed files.
    verify : bool
        Compare each file that has the name of a published one with its SHA-256, at every load and before
        anything is parsed. False reads altered files as they are; a damaged .mat file can then crash the
        process. The hash of ``test_data_5ms.mat`` is not known: its structure is checked.

    Attributes
    ----------
    nrn_meta : list of dict
        ``cell_id``, ``area``, ``depth_um`` (negative: unknown), ``noise_ratio`` (low is clean), ``single_n``
        (2, 1, 0) and ``single_t`` ("Yes", "Maybe", "No": is it a single unit), ``n_electrodes``,
        ``electrode_number``.
    stim_meta : list of dict
        ``name`` ("nat01" ...), ``type``, ``file``, ``source_sha256``.
    load_report : LoadReport
        Units kept and skipped.

    Raises
    ------
    FileNotFoundError
        When files are missing; the text names the first one and the call that fetches it.
    ValueError, TypeError
        When an option is not legal (checked before any file is touched), or a file is damaged or not the
        published one (a DamagedFileError, which is a ValueError).

    References
    ----------
    Harper et al. 2016, PLoS Comput. Biol. 12(11), 10.1371/journal.pcbi.1005113. Rahman et al. 2019, PLoS
    Comput. Biol. 15(5), 10.1371/journal.pcbi.1006618. Data: osf.io/ayw2p.

    Examples
    --------
    >>> from deepSTRF.datasets.audio.ns1 import NS1Dataset
    >>> ds = NS1Dataset(return_waveform=True)                                        # doctest: +SKIP
    >>> ds.N_neurons, ds.hop, tuple(ds.stims[0].shape)                               # doctest: +SKIP
    (119, 240, (1, 239760))
    >>> NS1Dataset(audio_fs=44100, return_waveform=True)
    Traceback (most recent call last):
        ...
    ValueError: audio_fs=44100 Hz at 5 ms per bin gives 220.5 samples per bin, which must be a whole number...
    """

    #: Clips by index, as in every published score of these data; used where no split is named.
    default_split = "14/3/3"

    @checked
    def __init__(
        self,
        path: str | os.PathLike[str] | None = None,
        dt_ms: float = 5.0,
        smooth: bool = True,
        download: bool = False,
        return_waveform: bool = False,
        audio_fs: float = 48000,
        *,
        spectrogram: str = "auto",
        alignment: str = "native",
        binning: str = "half-open",
        on_bad_file: str = "error",
        cache: bool = True,
        verify: bool = True,
    ) -> None:
        root = data_dir("NS1") if path is None else Path(path)
        super().__init__(root, dt_ms)
        n_bins = count_bins(NS1_RAW_LEN_MS, self.dt)
        for option, value, legal in (
            ("spectrogram", spectrogram, SPECTROGRAMS),
            ("alignment", alignment, ALIGNMENTS),
            ("binning", binning, BINNINGS),
            ("on_bad_file", on_bad_file, ON_BAD_FILE),
        ):
            if value not in legal:
                raise ValueError(f"{option} is one of {', '.join(map(repr, legal))}, got {value!r}")
        validate_binning(binning, self.dt)
        hop = 0
        if return_waveform:
            hop, audio_fs = check_hop(audio_fs, self.dt), plain_rate(audio_fs)
        kind = "recomputed" if return_waveform else choose_spectrogram(root, spectrogram, alignment, self.dt)
        if download:
            download_ns1(root, spectrogram=spectrogram == "shipped", cache=cache, verify=verify)
        self.name, self.species = "NS1", "ferret"
        self.hearing_range_hz = FERRET_HEARING_RANGE_HZ
        self.F = RAHMAN_N_FILTERS
        self.frequencies_hz = rahman_frequencies().numpy()
        self.return_waveform, self.audio_fs = return_waveform, audio_fs if return_waveform else None
        trains = load_spikes(root, "natural", on_bad_file=on_bad_file, cache=cache, verify=verify)
        if return_waveform:
            stimuli = load_waveforms(root, audio_fs, n_bins * hop, cache=cache, verify=verify)
        else:
            stimuli = load_spectrograms(root, kind, alignment, self.dt, n_bins, cache=cache, verify=verify)
        self.nrn_meta, self.load_report = trains.neurons, trains.report
        self.N_neurons = len(trains.neurons)
        self.stims = [torch.from_numpy(values) for values in stimuli.values]
        self.responses = trains.binned(n_bins, self.dt, binning)
        self.stim_meta = _stim_meta(stimuli)
        self.smoothing_ms = SMOOTHING_MS if smooth else None
        self.facts = {**stimuli.facts, "binning": binning, "source": "osf.io/ayw2p", "files_verified": verify}
        self.validate()

    @checked
    def drc_responses(self, duration_ms: float = NS1_RAW_LEN_MS, *, cache: bool = True) -> DRCResponses:
        """Responses of the units of this dataset to the 12 random chord sequences.

        The sounds of these sequences were not published, so nothing can be fitted; the responses serve
        reliability and rate statistics. With the sounds, ``AudioNeuralDataset.from_arrays`` makes a
        dataset of both.

        Parameters
        ----------
        duration_ms : float
            Whole bins up to this time after sound onset; spikes were recorded up to 5200 ms.
        cache : bool
            Use and fill the cache of parsed files.

        Returns
        -------
        DRCResponses
            12 blocks (N, 5, T), binned as this dataset is, rows in the order of `nrn_meta`.

        Raises
        ------
        FileNotFoundError, ValueError
            When the recording is no longer where this dataset was loaded from.
        """
        binning = self.facts.get("binning", BINNINGS[0])
        n_bins = count_bins(duration_ms, self.dt)
        verify = bool(self.facts.get("files_verified", True))
        trains = load_spikes(Path(self.path), "drc", on_bad_file="skip", cache=cache, verify=verify)
        rows = {neuron["cell_id"]: row for row, neuron in enumerate(trains.neurons)}
        cell_ids = [str(neuron["cell_id"]) for neuron in self.nrn_meta]
        chosen = [rows[cell_id] for cell_id in cell_ids]
        blocks = trains.binned(n_bins, self.dt, binning)
        stim_meta = [
            {
                "name": f"drc{number + 1:02d}",
                "type": "random_chords",
                "set": _DRC_SETS[number % len(_DRC_SETS)],
                "token": number // len(_DRC_SETS),
                "level_db": _DRC_LEVEL_DB,
            }
            for number in range(NS1_DRC_SOUNDS)
        ]
        return DRCResponses([_block(block)[chosen] for block in blocks], stim_meta, cell_ids, self.dt)


def _stim_meta(stimuli: Stimuli) -> list[dict[str, Any]]:
    meta = []
    for clip in range(NS1_NAT_SOUNDS):
        row = {
            "name": f"nat{clip + 1:02d}",
            "type": NS1_TYPE_OVERRIDES.get(clip, "unknown"),
            "file": NS1_WAV_FILENAMES[clip],
        }
        if stimuli.source_sha256:
            row["source_sha256"] = stimuli.source_sha256[clip]
        meta.append(row)
    return meta


def _block(counts: Any) -> Tensor:
    """(N, R, T) float32 of a block, or of a list of (R_n, T) padded with NaN."""
    if not isinstance(counts, list):
        return torch.from_numpy(counts.astype(np.float32))
    rows = [torch.from_numpy(one.astype(np.float32)) for one in counts]
    block = torch.full((len(rows), max(len(one) for one in rows), rows[0].shape[-1]), torch.nan)
    for at, one in enumerate(rows):
        block[at, : len(one)] = one
    return block
