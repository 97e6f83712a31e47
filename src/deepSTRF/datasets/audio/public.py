"""Public recordings by key: found or downloaded, read by their layout, cut into one dataset with its split.

What a recording is, where its files are and how they are laid out are a record of the table in
`deepSTRF.datasets.audio.public_table`; here is what all of them share.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from deepSTRF._files import DamagedFileError, check_regular, read_json
from deepSTRF._validation import check_choice, checked, first_names
from deepSTRF.datasets.audio.public_layouts import (
    NAT4_RESPONSES,
    Reading,
    hdf5_units,
    json_units,
    nat4,
    nems_sites,
    text_lines,
)
from deepSTRF.datasets.audio.public_matlab import fif_subjects, mat_traces, mat_units
from deepSTRF.datasets.audio.public_table import PUBLIC_RECORDINGS, PublicFile, PublicRecording
from deepSTRF.datasets.continuous import fill_from_signal
from deepSTRF.datasets.dataset import AudioNeuralDataset
from deepSTRF.datasets.download import data_dir, download_file, unpack_tar, unpack_zip
from deepSTRF.datasets.session import Session
from deepSTRF.datasets.splits import same_sounds, shuffled
from deepSTRF.datasets.trials import fill_from_sessions
from deepSTRF.dsp.cochleagram import RAHMAN_LOG_FLOOR, rahman_cochleagram, rahman_frequencies
from deepSTRF.registry import DATASETS

__all__ = ["PUBLIC_RECORDINGS", "PublicDataset", "load_public"]

#: Readers by the name that a record gives as its layout.
LAYOUTS: Mapping[str, Callable[..., Iterator[Session]]] = {
    "nems_sites": nems_sites,
    "nat4": nat4,
    "text_lines": text_lines,
    "hdf5_units": hdf5_units,
    "json_units": json_units,
    "mat_traces": mat_traces,
    "mat_units": mat_units,
    "fif_subjects": fif_subjects,
}
#: Addresses by host: of the list of files of a record, and of a file.
HOSTS: dict[str, tuple[str, str]] = {
    "zenodo": (
        "https://zenodo.org/api/records/{record}",
        "https://zenodo.org/api/records/{record}/files/{name}/content",
    ),
    "figshare": ("https://api.figshare.com/v2/articles/{record}", ""),
    "crcns": ("", "https://portal.nersc.gov/project/crcns/download/{record}/{name}"),
}
#: An account at CRCNS, where it is not given as arguments.
USERNAME_VARIABLE, PASSWORD_VARIABLE = "CRCNS_USERNAME", "CRCNS_PASSWORD"
#: No file of a recording is larger, in bytes; no list of files is.
_LARGEST_FILE, _LARGEST_LIST = 1 << 36, 10_000_000
#: First bytes of archives.
_STARTS = {".zip": b"PK", ".tgz": b"\x1f\x8b", ".gz": b"\x1f\x8b"}
#: Bands per octave of spectrograms, and how near to the Nyquist frequency the highest may be.
_PER_OCTAVE, _HIGHEST = 6, 0.9
#: Shares of validation and test where the data come with no split, and of validation where they do.
_VALIDATION, _TEST = 0.15, 0.15


# ---- download


def fetch(
    record: PublicRecording,
    root: Path,
    *,
    sounds: bool,
    username: str | None = None,
    password: str | None = None,
) -> None:
    """Get what is missing of a recording, verified, and unpack it; nothing is asked of the network else."""
    reading = Reading(record, root)
    is_there = root.is_dir()
    missing = [
        file
        for file in record.files
        if (sounds or not file.only_sounds) and not (is_there and _is_here(reading, file))
    ]
    if not missing:
        return
    absent = [file.name for file in missing if not (root / file.name).is_file()]
    if record.host == "by hand" and absent:
        raise FileNotFoundError(
            f"{record.title} has no address for downloads that we know: get {first_names(absent)} from "
            f"{record.page}, put them into {root} and call again, which verifies and unpacks them"
        )
    root.mkdir(parents=True, exist_ok=True)
    listed = _listed(record, root) if absent else {}
    for file in missing:
        path = root / file.name
        was_there = path.is_file()
        url, size, md5 = listed.get(file.name, (None, None, None))
        check = _checker(file.md5 or md5)
        if was_there:
            check(path)
        else:
            form = None
            if record.account:
                form = _account(record, file, username, password)
            address = url or HOSTS[record.host][1].format(record=record.record, name=file.name)
            download_file(address, path, size=size, limit=_LARGEST_FILE, check=check, form=form)
        if file.holds is not None:
            mark = root / f".{file.name}.unpacking"
            mark.touch()
            (unpack_zip if file.name.endswith(".zip") else unpack_tar)(path, root)
            mark.unlink()
            if not was_there:
                path.unlink()


def _is_here(reading: Reading, file: PublicFile) -> bool:
    """Whether a file, or what an archive holds, is there and was not left half unpacked."""
    path = reading.root / file.name
    if (reading.root / f".{file.name}.unpacking").exists():
        return False
    if file.holds is None:
        return reading.file(file.name) is not None
    if file.holds == "?":
        return not path.is_file()
    return reading.folder(file.holds) is not None or reading.file(file.holds) is not None


def _listed(record: PublicRecording, root: Path) -> dict[str, tuple[str | None, int | None, str | None]]:
    """Address, size and MD5 of each file of a record as its host lists them; the list is kept in the root."""
    address = HOSTS[record.host][0]
    if not address:
        return {}
    path = root / f"{record.host}-{record.record}.json"
    download_file(address.format(record=record.record), path, limit=_LARGEST_LIST)
    remedy = "delete it; the next download gets it again"
    tree = read_json(path, remedy)
    found: dict[str, tuple[str | None, int | None, str | None]] = {}
    try:
        for entry in tree["files"]:
            name = str(entry["key"] if "key" in entry else entry["name"])
            md5 = entry.get("computed_md5") or str(entry.get("checksum", "")).removeprefix("md5:") or None
            url = entry.get("download_url")
            found[name] = (url, int(entry["size"]), md5)
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedFileError(f"{path} is no list of files ({error!r}); {remedy}") from error
    absent = [file.name for file in record.files if file.name not in found]
    if absent:
        raise ValueError(
            f"{record.page} lists {first_names(list(found))} and not {first_names(absent)}: the recording "
            f"has changed; get its files by hand, and see {path}"
        )
    return found


def _checker(md5: str | None) -> Callable[[Path], None]:
    """Raise ValueError for a page in the place of an archive, and for another MD5 than is known."""

    def check(path: Path) -> None:
        name = path.name.removesuffix(".part")
        check_regular(path)
        with open(path, "rb") as stream:
            start = stream.read(512)
            stream.seek(0)
            seen = hashlib.file_digest(stream, "md5").hexdigest() if md5 is not None else None
        wanted = _STARTS.get(Path(name).suffix, b"")
        if not start.startswith(wanted) or start.lstrip()[:1] == b"<":
            page = " but a web page: is the account right?" if start.lstrip()[:1] == b"<" else ""
            raise ValueError(f"what arrived for {name} is not the file{page}")
        if seen != md5:
            raise ValueError(f"{path} has the MD5 {seen}, expected {md5}; delete it and get it again")

    return check


def _account(
    record: PublicRecording, file: PublicFile, username: str | None, password: str | None
) -> dict[str, str]:
    username = username or os.environ.get(USERNAME_VARIABLE)
    password = password or os.environ.get(PASSWORD_VARIABLE)
    if not username or not password:
        raise ValueError(
            f"{record.title} needs a free account ({record.page}): set {USERNAME_VARIABLE} and "
            f"{PASSWORD_VARIABLE} in the environment, or pass username= and password="
        )
    return {
        "fn": f"{record.record}/{file.name}", "username": username, "password": password, "submit": "Login",
    }  # fmt: skip


# ---- the dataset


class PublicDataset(AudioNeuralDataset):
    """A public recording of the table; `load_public` makes one by its key."""

    record: ClassVar[PublicRecording]
    built_by: ClassVar[str]

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        dt_ms: float | None = None,
        download: bool = False,
        *,
        area: Any = None,
        quality: Any = None,
        only: Any = None,
        stimuli: Any = None,
        return_waveform: bool = False,
        audio_fs: float | None = None,
        username: str | None = None,
        password: str | None = None,
        **options: Any,
    ) -> None:
        record = self.record
        own = dict(record.options)
        if "stimuli" in own and stimuli is not None:
            options["stimuli"], stimuli = stimuli, None
        unknown = sorted(set(options) - set(own))
        if unknown:
            legal = ", ".join(inspect.signature(type(self)).parameters)
            raise ValueError(f"{record.key} has no option {unknown[0]!r}; it takes {legal}")
        if return_waveform and not record.sounds:
            raise ValueError(f"{record.key} has no waveforms: they are not in the deposit ({record.page})")
        own |= options
        if "responses" in own:
            check_choice("responses", own["responses"], NAT4_RESPONSES)
        if audio_fs is not None and not return_waveform:
            raise ValueError("audio_fs is the rate of waveforms: pass return_waveform=True too")
        folder = data_dir(record.folder) if root is None else Path(root).expanduser()
        super().__init__(folder, record.dt_ms if dt_ms is None else dt_ms)
        if download:
            fetch(record, folder, sounds=return_waveform, username=username, password=password)
        reading = Reading(
            record, folder, _words("area", area), _words("quality", quality or own.get("quality")),
            _words("only", only), _words("stimuli", stimuli),
            return_waveform or not record.spectrogram, own,
        )  # fmt: skip
        if not folder.is_dir():
            raise reading.missing("that folder")
        sessions = list(LAYOUTS[record.layout](reading, **record.parameters))
        if not sessions:
            raise ValueError(_nothing(reading))
        _share_tests(sessions)
        if all(session.signal is not None for session in sessions):
            kind = "rate" if own.get("responses") == "population" else "trace"
            fill_from_signal(
                self, sessions, dt_ms=self.dt, audio_fs=audio_fs, on_same_channel="join", response_kind=kind
            )
        else:
            fill_from_sessions(self, sessions, dt_ms=self.dt, audio_fs=audio_fs)
        self.name, self.species = record.key, record.species
        self.hearing_range_hz = record.hearing_range_hz
        self.facts |= {
            "source": record.page,
            "doi": ", ".join(record.dois),
            "citation": record.citation,
            "licence": record.licence,
            **{name: value for name, value in own.items() if value is not None},
        }
        if self.return_waveform:
            self._set_bands(*record.bands_hz)
        if self.return_waveform and not return_waveform:
            self._as_spectrograms()
        self._assign_roles()
        self._compare(reading, filtered=any(v is not None for v in (area, quality, only, stimuli)))
        self.validate()

    def _set_bands(self, low: float, high: float) -> None:
        """Centres of bands in steps of a sixth of an octave, below the Nyquist frequency of the sounds."""
        top = min(high, _HIGHEST * float(self.audio_fs or 0) / 2)
        steps = math.floor(_PER_OCTAVE * math.log2(top / low) + 1e-9)
        self.F = steps + 1
        self.frequencies_hz = rahman_frequencies(self.F, low, low * 2.0 ** (steps / _PER_OCTAVE)).numpy()

    def _as_spectrograms(self) -> None:
        """Causal cochleagrams in place of the waveforms."""
        rate, hop, hz = float(self.audio_fs or 0), self.samples_per_bin, self.frequencies_hz
        low, high = (float(hz[0]), float(hz[-1])) if hz is not None else (0.0, 0.0)
        frames = [
            rahman_cochleagram(
                wave, rate, self.dt, alignment="causal", n_filters=self.F, f_min=low, f_max=high,
                n_bins=wave.shape[-1] // hop,
            )
            for wave in self._stims.raw()
        ]  # fmt: skip
        self.stims = [values - math.log(RAHMAN_LOG_FLOOR) for values in frames]
        self.return_waveform, self.audio_fs = False, None
        self.facts |= {
            "spectrogram": "cochleagram above its floor", "made_at_hz": rate, "alignment": "causal",
            "look_ahead_ms": 0.0,
        }  # fmt: skip

    # ---- split

    @property
    def default_split(self) -> str | None:
        """Clips by index of the roles in ``stim_meta[i]["split"]``; None where a role is missing."""
        parts = [
            [i for i, row in enumerate(self.stim_meta) if row.get("split") == role]
            for role in ("train", "validation", "test")
        ]
        return "/".join(map(_ranges, parts)) if parts[0] and parts[2] else None

    def _assign_roles(self) -> None:
        """Roles of clips: the published test, or one drawn; validation is drawn, equal sounds together."""
        group = self.record.group
        if group is not None and any(group not in row for row in self.stim_meta):
            group = None
        groups = same_sounds(self, group)
        published = any(row.get("split") == "test" for row in self.stim_meta)
        tests = [g for g in groups if any(self.stim_meta[i].get("split") == "test" for i in g)]
        classes: dict[str, list[list[int]]] = {}
        for one in groups:
            if one not in tests:
                kind = str(self.stim_meta[one[0]].get(self.record.within or "", ""))
                classes.setdefault(kind, []).append(one)
        roles: dict[int, str] = {i: "test" for one in tests for i in one}
        for members in classes.values():
            order = shuffled(members, 0)
            n_test = 0 if published else _share(_TEST, len(order))
            n_val = _share(_VALIDATION, len(order) - n_test)
            for at, one in enumerate(order):
                role = "test" if at < n_test else "validation" if at < n_test + n_val else "train"
                roles |= dict.fromkeys(one, role)
        for clip, row in enumerate(self.stim_meta):
            row["split"] = roles[clip]

    # ---- report

    def _compare(self, reading: Reading, *, filtered: bool) -> None:
        """Notes of what was found, and where counts are others than expected."""
        report = self.load_report
        report.notes[:0] = reading.notes()
        counts = [int(n) for clip in self.response_storage.clips for n in clip.counts]
        if counts:
            mode, _ = Counter(counts).most_common(1)[0]
            other = sum(count != mode for count in counts)
            report.note("pairs", f"{len(counts)} recorded, most with {mode} repeats", len(counts))
            if other:
                report.note("pairs with other repeats", f"{other} have not {mode}", other)
        report.note("sessions", f"{len(self.load_report.kept)} units", 1)
        found = {"neurons": self.N_neurons, "clips": len(self)}
        for what, expected in self.record.expect.items():
            if not filtered and found[what] != expected:
                report.note("expectations", f"{found[what]} {what} found, {expected} expected")


def _words(name: str, value: Any) -> frozenset[str] | None:
    """A choice of texts: one, or several."""
    if value is None:
        return None
    if isinstance(value, str):
        return frozenset([value])
    if isinstance(value, Sequence | set | frozenset) and value and all(isinstance(v, str) for v in value):
        return frozenset(value)
    raise TypeError(f"{name} is a text or a list of texts, got {value!r:.80}")


def _nothing(reading: Reading) -> str:
    """What to say where no unit is left."""
    asked = {
        "area": reading.area, "quality": reading.quality, "only": reading.only, "stimuli": reading.stimuli,
    }  # fmt: skip
    parts = [
        f"{name}={sorted(wanted)} (there are {first_names(sorted(reading.seen.get(name, ()))) or 'none'})"
        for name, wanted in asked.items()
        if wanted is not None
    ]
    found = [f"{topic}: {text}" for topic, text, _ in reading.notes()[:4]]
    return (
        f"{reading.root}: no unit of {reading.record.title} is left with "
        f"{' and '.join(parts) or 'these files'}" + (f"; {'; '.join(found)}" if found else "")
    )


def _share_tests(sessions: Sequence[Session]) -> None:
    """A stimulus that is the test of one session is the test of all."""
    tests = {
        name for session in sessions for name, row in session.stim_meta.items() if row.get("split") == "test"
    }
    for session in sessions:
        session.stim_meta = {
            name: {**row, "split": "test"} if name in tests else row
            for name, row in session.stim_meta.items()
        }


def _share(fraction: float, n_groups: int) -> int:
    """Groups of a role: the rounded share, at least one where two or more are left for training."""
    return 0 if n_groups < 3 else max(1, round(fraction * n_groups))


def _ranges(clips: Sequence[int]) -> str:
    """ "0-3,7" of ascending clips."""
    parts: list[list[int]] = []
    for clip in clips:
        if parts and clip == parts[-1][1] + 1:
            parts[-1][1] = clip
        else:
            parts.append([clip, clip])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)


# ---- by key


def _signature(record: PublicRecording) -> inspect.Signature:
    """The options of one recording."""
    keyword, both = inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
    options: dict[str, Any] = {"area": None, "quality": None, "only": None, "stimuli": None}
    if record.sounds:
        options |= {"return_waveform": False, "audio_fs": None}
    if record.account:
        options |= {"username": None, "password": None}
    options |= record.options
    first = {"root": None, "dt_ms": record.dt_ms, "download": False}
    return inspect.Signature(
        [inspect.Parameter(name, both, default=value) for name, value in first.items()]
        + [inspect.Parameter(name, keyword, default=value) for name, value in options.items()]
    )


def _register(record: PublicRecording) -> None:
    """Make the class of a recording, so that experiments and the command line find it by its key."""
    name = f"Public_{record.key.replace('-', '_')}"
    where = record.area if record.species in record.title else f"{record.species}, {record.area}"
    made = type(
        name,
        (PublicDataset,),
        {
            "__module__": __name__,
            "__doc__": f"{record.title}: {where}; neurons: {record.neurons}.",
            "__signature__": _signature(record),
            "record": record,
            "built_by": f'load_public("{record.key}")',
        },
    )
    globals()[name] = DATASETS.register(record.key)(made)  # found by pickle


for _record in PUBLIC_RECORDINGS.values():
    _register(_record)


@checked
def load_public(
    key: str,
    root: str | os.PathLike[str] | None = None,
    download: bool = False,
    dt_ms: float | None = None,
    **options: Any,
) -> AudioNeuralDataset:
    """Load a public recording by its key.

    The keys, with species, area, neurons, licence and citation, are `PUBLIC_RECORDINGS` and the page "Public
    recordings". Equal sounds of several sites or animals are one clip. Pairs that were not recorded are
    missing, which silent trials are not. What was left out and why is in ``ds.load_report``, and where counts
    differ from those expected.

    Parameters
    ----------
    key : str
        Such as "crcns-aa1"; see `PUBLIC_RECORDINGS`.
    root : path, optional
        Folder of the recording as its archives unpack. Default: ``$DEEPSTRF_DATA_DIR/<name>``, else the
        user's cache folder.
    download : bool
        Fetch and verify what is missing. Some hosts need a free account (``username=``, ``password=``, or
        ``CRCNS_USERNAME`` and ``CRCNS_PASSWORD`` in the environment).
    dt_ms : float, optional
        Bin in ms. Default: that of the record.
    **options
        ``area``, ``quality``, ``only`` (sites, animals, sessions or units) and ``stimuli`` (classes) choose a
        part: a text or a list of texts. ``return_waveform=True`` and ``audio_fs`` (Hz) give waveforms in
        place of spectrograms where there are any. Others belong to single recordings (``deepstrf datasets``
        lists them).

    Returns
    -------
    AudioNeuralDataset
        Spectrograms (1, F, T), as published or made of the sounds, or waveforms (1, T_audio), with counts per
        bin or traces. ``default_split`` and ``stim_meta[i]["split"]`` are its split.

    Raises
    ------
    FileNotFoundError
        When files are missing; the text says how to get them.
    ValueError
        For an unknown key or option, where nothing is left, or for a damaged file (a DamagedFileError).

    Examples
    --------
    >>> from deepSTRF.datasets.audio import PUBLIC_RECORDINGS, load_public
    >>> PUBLIC_RECORDINGS["nat4-a1"].licence
    'CC BY 4.0'
    >>> ds = load_public("crcns-aa1", root="aa1", area="MLd")                     # doctest: +SKIP
    >>> load_public("crcns-aa9")
    Traceback (most recent call last):
        ...
    ValueError: key must be one of 'nat4-a1', 'nat4-peg', 'espejo-nat', ...
    """
    check_choice("key", key, list(PUBLIC_RECORDINGS))
    made: AudioNeuralDataset = DATASETS.get(key)(root, dt_ms, download, **options)
    return made
