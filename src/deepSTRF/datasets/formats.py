"""File formats of recordings: what a format offers, and the front door `open_recording` to all of them.

A format is one file in `deepSTRF.datasets.audio` with one class and the decorator
``@FORMATS.register("name")``. The keyword arguments of its ``sessions`` are its hints: what a user must tell
because files do not say it. Names, types and help of hints come from that signature and its docstring.
"""

from __future__ import annotations

import contextlib
import difflib
import inspect
import os
import re
import tempfile
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import tomli_w

from deepSTRF._files import MANIFEST, check_regular, check_target, naming_damage, read_text
from deepSTRF._text import printable
from deepSTRF._validation import checked, checked_but
from deepSTRF.datasets.continuous import fill_from_signal
from deepSTRF.datasets.dataset import AudioNeuralDataset, NeuralDataset
from deepSTRF.datasets.exact import dataset_of_session, session_of_dataset
from deepSTRF.datasets.file_tree import FileTree, is_archive
from deepSTRF.datasets.session import Session
from deepSTRF.datasets.trials import dataset_of, fill_from_sessions
from deepSTRF.registry import FORMATS

__all__ = [
    "Findings",
    "Format",
    "Hint",
    "MissingHintError",
    "choice_names",
    "format_of",
    "formats_at",
    "hints_of",
    "is_saved",
    "open_recording",
    "read_hints",
    "read_sessions",
    "template_of",
    "write_recording",
]

#: What sessions become datasets by.
_ENGINES: dict[str, Callable[..., None]] = {"spikes": fill_from_sessions, "signal": fill_from_signal}
#: Arguments of the engines that are no choices of a user.
_NO_CHOICES = ("ds", "kind", "sessions", "allocate", "choices", "fill")
#: File of hints and facts in the folder of a recording.
_HINTS_FILE = "recording.toml"
#: So many findings and candidates are shown in an error.
_SHOWN = 12
#: So often the first of what was found is taken to see what would be needed then.
_ROUNDS = 4


@dataclass(frozen=True)
class Findings:
    """What was found in a file without a full read, and what is to be told.

    ``found`` holds one line per finding ("2 units: 7, 3", "stimulus templates: A (16000 Hz), B"). ``hints``
    proposes values for hints, best first, each with the evidence in words; a hint with exactly one candidate
    that leaves no doubt (it is not in ``needed``) is used where the user gives none. ``needed`` are the hints
    that must be told.
    """

    found: Sequence[str]
    hints: Mapping[str, Sequence[tuple[Any, str]]] = field(default_factory=dict)
    needed: Sequence[str] = ()


class MissingHintError(ValueError):
    """A recording cannot be read without a hint; the text says what was found and what must be told.

    Parameters
    ----------
    text : str
        The message: what was found, the hints to be told, and the call that tells them.
    summary : str
        The same with the flags of the command line; "" is ``text``.

    Examples
    --------
    >>> import tempfile, numpy
    >>> from deepSTRF.datasets import MissingHintError, open_recording
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     numpy.save(f"{folder}/mine.npy", numpy.ones((2, 3, 40)))
    ...     try:
    ...         open_recording(f"{folder}/mine.npy", dt_ms=5.0)
    ...     except MissingHintError as error:
    ...         print(str(error).splitlines()[0].partition(", and ")[2])
    must be told: spikes, sounds.
    """

    def __init__(self, text: str, summary: str = "") -> None:
        super().__init__(text)
        self.summary = summary or text


class Format:
    """A file format of recordings.

    Parameters
    ----------
    path : Path
        The file or folder; it exists and `recognises` it, or the user has named the format.
    """

    #: Suffixes of files, lower case; the bytes decide where they can.
    suffixes: ClassVar[tuple[str, ...]] = ()
    #: Gives way where another format recognises a path too, such as any table beside any sounds.
    general: ClassVar[bool] = False
    #: Whether a folder is read through `FileTree`, so that it may be in a zip or tar archive too.
    reads_trees: ClassVar[bool] = False
    #: Whether `write` is there.
    writes: ClassVar[bool] = False

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def recognises(cls, path: Path) -> bool:
        """Whether a file or folder is of this format, by its first bytes or its members."""
        raise NotImplementedError

    @classmethod
    def takes_object(cls, value: Any) -> bool:
        """Whether an object in memory, such as an `mne.io.Raw`, may stand in place of ``path``."""
        return False

    @classmethod
    def takes(cls, hint: str, value: Any) -> bool:
        """Whether a value is for a hint of this format, where a choice of cutting has the same name."""
        return True

    def look(self, hints: Mapping[str, Any]) -> Findings:
        """What the file holds and which hints are missing, given those the user has told."""
        raise NotImplementedError

    def sessions(self, **hints: Any) -> list[Session]:
        """The sessions in the file. Raises `MissingHintError`, or `DamagedFileError` naming the file."""
        raise NotImplementedError

    @classmethod
    def write(cls, session: Session, path: Path) -> None:
        """Write a session, whole or not at all; what stood at the path may be replaced."""
        raise NotImplementedError


# ---- hints, from signatures and docstrings


@dataclass(frozen=True)
class Hint:
    """One hint of a format: its default, its type in words and its help."""

    name: str
    default: Any
    kind: str
    help: str


def hints_of(reader: type[Format]) -> dict[str, Hint]:
    """The hints of a format: the keyword arguments of its ``sessions``."""
    method = inspect.unwrap(reader.sessions)
    words = _documented(inspect.getdoc(method) or "")
    found = {}
    for name, parameter in inspect.signature(method).parameters.items():
        if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            default = None if parameter.default is parameter.empty else parameter.default
            found[name] = Hint(name, default, *words.get(name, ("", "")))
    return found


def _documented(text: str) -> dict[str, tuple[str, str]]:
    """Type and help of each parameter in a numpydoc docstring."""
    section = re.search(r"Parameters\n-+\n(.*?)(?=\n\S[^\n]*\n-{3,}|\Z)", text, re.DOTALL)
    found: dict[str, tuple[str, str]] = {}
    if section is not None:
        for part in re.split(r"\n(?=\S)", section.group(1)):
            head, _, body = part.partition("\n")
            names, _, kind = head.partition(" : ")
            for name in names.split(","):
                found[name.strip(" *")] = (kind.strip(), " ".join(body.split()))
    return found


def choice_names() -> list[str]:
    """Names of the arguments that cut sessions into clips: ``dt_ms``, ``pre_ms``, ``on_overlap``, ..."""
    calls: list[Callable[..., Any]] = [*_ENGINES.values(), dataset_of]
    names = [name for call in calls for name in inspect.signature(call).parameters]
    return [name for name in dict.fromkeys(names) if name not in _NO_CHOICES]


# ---- which format


def format_of(
    path: Path, name: str | None = None, found: Mapping[str, type[Format]] | None = None
) -> tuple[str, type[Format]]:
    """The format of a file or folder: by name, else the one of ``found`` or of `formats_at`."""
    if name is not None:
        reader: type[Format] = FORMATS.get(name)
        return name.lower(), reader
    found = found or formats_at(path)
    special = {key: entry for key, entry in found.items() if not entry.general}
    found = special or found
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise ValueError(
            f"{path} can be read as {_listed(found)}: name one, format={next(iter(found))!r}. "
            + " ".join(f"{key!r} takes {_hint_words(entry)}." for key, entry in found.items())
        )
    raise ValueError(f"{path} is {_described(path)} of no known format. {_formats_in_words()}")


def formats_at(path: Path) -> dict[str, type[Format]]:
    """The formats that recognise a path, by name."""
    return {key: entry for key, entry in FORMATS.items() if _recognises(entry, path)}


def _recognises(reader: type[Format], path: Path) -> bool:
    """Whether a format recognises a path; damaged bytes are not recognised."""
    try:
        return bool(reader.recognises(path))
    except PermissionError:
        raise
    except Exception:  # noqa: BLE001  (of damaged bytes, parsers raise every class)
        return False


def _listed(names: Any) -> str:
    words = [repr(name) for name in names]
    return ", ".join(words[:-1]) + (" and " if words[:-1] else "") + words[-1] if words else "nothing"


def _hint_words(reader: type[Format]) -> str:
    return ", ".join(hints_of(reader)) or "no hints"


def _formats_in_words() -> str:
    words = "; ".join(f"{key!r} ({_hint_words(entry)})" for key, entry in FORMATS.items())
    return (
        f"Formats and their hints: {words or 'none'}. format= names one. Arrays that you have cut and binned "
        "yourself: AudioNeuralDataset.from_arrays(stims, responses, dt_ms, audio_fs=...); sounds, trials and "
        "spike times in memory: AudioNeuralDataset.from_trials"
    )


def _described(path: Path) -> str:
    """What stands at a path, in a few words."""
    if path.is_dir():
        names = sorted(entry.name for entry in os.scandir(path))
        return (
            f"a folder ({', '.join(names[:_SHOWN])}{', ...' if names[_SHOWN:] else ''})"
            if names
            else ("an empty folder")
        )
    with open(path, "rb") as stream:
        start = stream.read(16)
    return f"a file that begins with {start!r}," if start else "an empty file"


# ---- opening


def _existing(path: str | os.PathLike[str]) -> Path:
    """A path that is a folder or a regular file; a similar name is proposed for one that is not there."""
    path = Path(path).expanduser()
    if not path.exists():
        near = []
        with contextlib.suppress(OSError):
            near = difflib.get_close_matches(path.name, os.listdir(path.parent), n=1)
        raise FileNotFoundError(
            f"there is no file or folder {path}"
            + (f"; did you mean {path.parent / near[0]}?" if near else "")
        )
    if not path.is_dir():
        check_regular(path)
    return path


def _split(
    reader: type[Format], name: str, options: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Hints of the format and choices of cutting; TypeError for what is neither."""
    hints, choices = hints_of(reader), choice_names()
    takes_any = (
        any(
            one.kind is one.VAR_KEYWORD
            for one in inspect.signature(inspect.unwrap(reader.sessions)).parameters.values()
        )
        and not hints
    )
    for key in options:
        if key not in hints and key not in choices and not takes_any:
            near = difflib.get_close_matches(key, [*hints, *choices], n=1)
            raise TypeError(
                f"format {name!r} has no hint {key!r}; it takes {_hint_words(reader)}; and how sessions are "
                f"cut: {', '.join(choices)}" + (f". Did you mean {near[0]!r}?" if near else "")
            )
    told = {
        key: value
        for key, value in options.items()
        if (key in hints and reader.takes(key, value)) or key not in choices
    }
    return told, {key: value for key, value in options.items() if key not in told}


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Begin the text of an error about a recording with its path, where it does not name it."""
    try:
        yield
    except (ValueError, TypeError) as error:
        if type(error) not in (ValueError, TypeError, UnicodeDecodeError) or path.name in str(error):
            raise
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{path}: {error}") from error


def read_sessions(
    path: Path, name: str, reader: type[Format], hints: Mapping[str, Any]
) -> tuple[list[Session], list[tuple[str, Any, str]]]:
    """The sessions of a recording, and the hints that were used because the files leave no doubt."""
    opened = reader(path)
    told = {key: value for key, value in hints.items() if value is not None}
    used: list[tuple[str, Any, str]] = []
    for _ in range(len(hints_of(reader)) + 1):  # a hint may settle what the next one is
        with naming(path):
            findings = opened.look(told)
        settled = [
            (key, *candidates[0])
            for key, candidates in findings.hints.items()
            if key not in told and len(candidates) == 1 and key not in findings.needed
        ]
        if not settled:
            break
        used += settled
        told.update({key: value for key, value, _ in settled})
    missing = [key for key in findings.needed if key not in told]
    if missing:
        later, findings = _needed_later(opened, findings, missing, told)
        raise MissingHintError(*missing_text(path, name, reader, findings, missing, told, later))
    with naming(path):
        sessions = opened.sessions(**told)
    if not sessions:
        raise ValueError(f"{path} holds no session that can be read as {name!r}")
    return sessions, used


def _needed_later(
    opened: Format, findings: Findings, missing: Sequence[str], told: Mapping[str, Any]
) -> tuple[list[str], Findings]:
    """Hints that will be needed once those missing are the first of what was found; all that was found."""
    assumed, later, hints = dict(told), list(missing), dict(findings.hints)
    for _ in range(_ROUNDS):
        new = {key: hints[key][0][0] for key in later if key not in assumed and hints.get(key)}
        if not new:
            break
        assumed.update(new)
        try:
            then = opened.look(assumed)
        except Exception:  # noqa: BLE001 (a guess that does not fit, of any parser: nothing to say about it)
            break
        hints = {**then.hints, **hints}
        later += [key for key in then.needed if key not in later and key not in assumed]
    return later[len(missing) :], Findings(findings.found, hints, findings.needed)


def missing_text(
    path: Path,
    name: str,
    reader: type[Format],
    findings: Findings,
    missing: Sequence[str],
    told: Mapping[str, Any],
    later: Sequence[str] = (),
) -> tuple[str, str]:
    """What was found, what must be told, and the call that does; and the same for the command line."""
    helps = hints_of(reader)
    wanted, values = [], []
    then = f"; then, with the first of what was found: {', '.join(later)}" if later else ""
    for key in (*missing, *later):
        candidates = findings.hints.get(key, ())
        shown = [f"{value!r} ({why})" for value, why in candidates[:_SHOWN]]
        words = helps[key].help if key in helps else ""
        wanted.append(
            f"{key}" + (f" - {words}" if words else "") + (f" Found: {'; '.join(shown)}" if shown else "")
        )
        values.append((key, candidates[0][0] if candidates else "..."))
    call = ", ".join(f"{key}={value!r}" for key, value in (*told.items(), *values))
    lines = [_toml_line(key, value) for key, value in values]
    text = "\n".join(
        [
            f"{path} is read as {name!r}, and must be told: {', '.join(missing)}{then}.",
            *(f"  {line}" for line in wanted),
            *(["Found in it:"] if findings.found else []),
            *(f"  {line}" for line in findings.found[:_SHOWN]),
            f"Call: open_recording({os.fspath(path)!r}, dt_ms=..., {call}); or as lines of recording.toml: "
            + "; ".join(lines),
        ]
    )
    flags = " ".join(f"-o {key}={value}" for key, value in values)
    summary = (
        f"{path} is read as {name!r}, and must be told: {' '.join(wanted)} Add {flags}; deepstrf import "
    )
    return text, f"{summary}--template lists all hints. Found: {'; '.join(findings.found[:_SHOWN])}"


def _toml_line(key: str, value: Any) -> str:
    try:
        return tomli_w.dumps({key: list(value) if isinstance(value, tuple) else value}).strip()
    except TypeError:
        return f'{key} = "{value}"'


@checked_but("options")
def open_recording(
    path: Any,
    *,
    format: str | None = None,
    dt_ms: float | None = None,
    audio_fs: float | None = None,
    pre_ms: float = 0.0,
    post_ms: float = 0.0,
    **options: Any,
) -> NeuralDataset:
    """Dataset of a recording in files: the format is found by what they hold, then they are cut and binned.

    Folders, single files, and zip and tar archives of them, of every registered format; and files of
    ``ds.save``, which come as they are. What was kept, skipped and noted is in ``load_report``.

    Parameters
    ----------
    path : str, path-like, mne.io.Raw or mne.Epochs
        File, folder or archive. Nothing in it is executed, and nothing is extracted beside it. Or an object
        that a format takes in place of its files.
    format : str, optional
        Name of the format, where the files could be of several.
    dt_ms : float, optional
        Bin width in ms. A recording that `write_recording` wrote comes back as it was without it.
    audio_fs : float, optional
        Sample rate in Hz that sounds are resampled to; None is the lowest one that keeps the sounds and has a
        whole number of samples per bin.
    pre_ms, post_ms : float
        Length before the onset and after the end of each sound that belongs to its clip, in ms.
    **options
        Hints of the format (``deepstrf import PATH --template`` lists them), choices of
        `AudioNeuralDataset.from_trials` or ``from_continuous`` such as ``on_missing_sound``, and ``facts``, a
        dictionary for reports. They win over those of a ``recording.toml`` in the folder.

    Returns
    -------
    AudioNeuralDataset
        The dataset (a `NeuralDataset` where a file of ``ds.save`` holds one).

    Raises
    ------
    MissingHintError
        A ValueError: the files do not say something; the text says what was found and what must be told.
    DamagedFileError
        A ValueError: the files are damaged.
    FileNotFoundError
        When there is no such path.
    TypeError
        For an option that is neither a hint of the format nor a choice.
    ValueError
        When the format is not known, or the files are of several.

    See Also
    --------
    write_recording : The other direction.

    Examples
    --------
    >>> import tempfile, torch
    >>> from deepSTRF.datasets import NeuralDataset, open_recording, write_recording
    >>> ds = NeuralDataset.from_arrays([torch.rand(4, 50)], [torch.ones(2, 3, 50)], dt_ms=5.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     again = open_recording(write_recording(ds, f"{folder}/mine"))
    >>> again.content_fingerprint() == ds.content_fingerprint()
    True
    """
    given = {"dt_ms": dt_ms, "audio_fs": audio_fs, "pre_ms": pre_ms or None, "post_ms": post_ms or None}
    given = {key: value for key, value in given.items() if value is not None} | options
    if not isinstance(path, (str, os.PathLike)):
        return _of_object(path, given)
    path = _existing(path)
    found = {} if format is not None else formats_at(path)
    if format is None and not found and path.suffix.lower() == ".npz":
        if given:
            raise TypeError(
                f"{path.name} is a file of ds.save, which is cut already; leave out {', '.join(given)}"
            )
        return NeuralDataset.load(path)
    with contextlib.ExitStack() as stack:
        inside = path if found or format is not None else _sole_member(path, stack)
        told = {**_told(inside, found), **given}
        facts, named = told.pop("facts", {}), told.pop("format", None)
        name, reader = format_of(inside, format or named, found if inside is path else None)
        with naming(path):
            hints, choices = _split(reader, name, told)
        sessions, used = read_sessions(inside, name, reader, hints)
        with naming(path):
            ds = _dataset(sessions, path, choices)
    for key, value, why in used:
        ds.load_report.note("hint used", f"{key}={value!r} ({why})")
    if not sessions[0].exact:
        ds.facts |= facts
    ds.path = os.fspath(path)
    return ds


def _of_object(value: Any, given: Mapping[str, Any]) -> NeuralDataset:
    """Dataset of an object of another package that a format takes in place of files."""
    for name, reader in FORMATS.items():
        if reader.takes_object(value):
            hints, choices = _split(reader, name, given)
            return _dataset(reader(value).sessions(**hints), Path(f"<{type(value).__name__}>"), choices)
    raise TypeError(
        "path is a file or folder (str or path-like), or an object that a format takes, such as an "
        f"mne.io.Raw; got {type(value).__name__}"
    )


def _told(path: Path, found: Mapping[str, type[Format]]) -> dict[str, Any]:
    """What a ``recording.toml`` in a folder, or in an archive of one, says."""
    if path.is_dir():
        file = path / _HINTS_FILE
        return read_hints(file) if file.is_file() else {}
    if not is_archive(path) or not any(entry.reads_trees for entry in found.values()):
        return {}
    with contextlib.closing(FileTree(path)) as tree:
        return _parsed(tree.text(_HINTS_FILE), tree.where(_HINTS_FILE)) if _HINTS_FILE in tree else {}


def read_hints(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Hints, choices and facts of a TOML file."""
    return _parsed(read_text(path), os.fspath(path))


def _parsed(text: str, where: str) -> dict[str, Any]:
    with naming_damage(where, "correct it; a text stands in quotes, and true and false are in lower case"):
        return tomllib.loads(text)


def _sole_member(path: Path, stack: contextlib.ExitStack) -> Path:
    """A private copy of the one recording in an archive, or the path where a format reads it in place."""
    if not is_archive(path):
        return path
    tree = stack.enter_context(contextlib.closing(FileTree(path)))
    suffixes = tuple({one for _, entry in FORMATS.items() for one in entry.suffixes})
    inside = [name for name in tree.names if name.lower().endswith(suffixes)] if suffixes else []
    if len(inside) != 1:
        return path
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="deepstrf-"))
    copy = Path(folder) / Path(inside[0]).name
    copy.write_bytes(tree.read(inside[0]))
    return copy


def _dataset(sessions: list[Session], path: Path, choices: dict[str, Any]) -> NeuralDataset:
    """Sessions as a dataset: as it was where we wrote it, else by the engine of spikes or of signals."""
    exact = sessions[0].exact if len(sessions) == 1 else {}
    if exact and all(choices[key] == exact["header"].get(key) for key in choices):
        return dataset_of_session(sessions[0], path)
    if any(session.features and session.exact for session in sessions):
        raise ValueError(
            f"{path} holds stimuli of {exact['header']['dt_ms']:g} ms bins; leave out {', '.join(choices)}"
        )
    kinds = {"signal" if session.signal is not None else "spikes" for session in sessions}
    if len(kinds) > 1:
        raise ValueError(f"{path} holds sessions of spikes and of signals; read them one by one")
    dt_ms = choices.pop("dt_ms", None)
    if dt_ms is None:
        raise MissingHintError(
            f"{path} holds {'spike times' if 'spikes' in kinds else 'a continuous signal'}, and must be told "
            f"the bin width: open_recording({os.fspath(path)!r}, dt_ms=10.0), or --dt-ms 10"
        )
    _check_binned(sessions, path, dt_ms, choices)
    fill = _ENGINES[kinds.pop()]
    legal = {**inspect.signature(fill).parameters, **inspect.signature(dataset_of).parameters}
    unknown = [key for key in choices if key not in legal]
    if unknown:
        raise TypeError(
            f"{path} holds {'spikes' if fill is fill_from_sessions else 'a continuous signal'}, to which "
            f"{', '.join(unknown)} does not apply"
        )
    made: NeuralDataset = dataset_of(AudioNeuralDataset, sessions, dt_ms=dt_ms, fill=fill, **choices)
    return made


def _check_binned(sessions: list[Session], path: Path, dt_ms: float, choices: Mapping[str, Any]) -> None:
    """Counts that were binned before fit only bins of whole multiples."""
    for session in sessions:
        header = session.exact.get("header", {})
        bin_ms = float(session.facts.get("bin_ms") or header.get("dt_ms") or 0.0)
        widths = {"dt_ms": dt_ms, "pre_ms": float(choices.get("pre_ms", 0.0))} if bin_ms else {}
        for key, value in widths.items():
            if abs(value / bin_ms - round(value / bin_ms)) > 1e-6:
                raise ValueError(
                    f"{path} holds counts in bins of {bin_ms:g} ms, and {key}={value:g} is no multiple of it"
                )


def template_of(path: str | os.PathLike[str], format: str | None = None, **options: Any) -> str:
    """TOML of every hint of a recording's format, with help and what was found as comments."""
    path = _existing(path)
    with contextlib.ExitStack() as stack:
        found = {} if format is not None else formats_at(path)
        inside = path if found or format is not None else _sole_member(path, stack)
        told = {**_told(inside, found), **options}
        name, reader = format_of(
            inside, format or told.pop("format", None), found if inside is path else None
        )
        facts = told.pop("facts", {})
        hints, choices = _split(reader, name, told)
        opened = reader(inside)
        findings = opened.look(hints)
        later, findings = _needed_later(opened, findings, findings.needed, hints)
    lines = [f"# Hints for {path.name}, for: deepstrf import {path.name} --hints FILE --out mine.npz"]
    lines += [f"# {line}" for line in findings.found]
    lines += ["", f'format = "{name}"', "", "# Bin width in ms."]
    lines += [_toml_line("dt_ms", choices.pop("dt_ms")) if "dt_ms" in choices else "# dt_ms = 10.0"]
    for key, hint in hints_of(reader).items():
        must = " Must be told." if key in (*findings.needed, *later) else ""
        lines += [
            "",
            *textwrap.wrap(
                f"{hint.help} ({hint.kind}){must}", 100, initial_indent="# ", subsequent_indent="# "
            ),
        ]
        candidates = findings.hints.get(key, ())
        if key in hints:
            lines.append(_toml_line(key, hints[key]))
        elif candidates:
            lines += [f"# {_toml_line(key, value)}   # {why}" for value, why in candidates[:_SHOWN]]
        else:
            lines.append(f"# {_toml_line(key, hint.default)}" if hint.default is not None else f"# {key} = ")
    rest = [one for one in choice_names() if one not in ("dt_ms", *hints_of(reader))]
    lines += [
        "",
        *textwrap.wrap(
            f"How sessions are cut: {', '.join(rest)}.", 100, initial_indent="# ", subsequent_indent="# "
        ),
    ]
    lines += [_toml_line(key, value) for key, value in choices.items()]
    lines += [
        "",
        "[facts]",
        *([_toml_line(k, v) for k, v in facts.items()] or ['# source = "..."', '# licence = "..."']),
    ]
    return "\n".join(printable(line) for line in lines) + "\n"


def is_saved(path: str | os.PathLike[str]) -> bool:
    """Whether a file is one of ``ds.save`` by its name, and no format claims it."""
    path = Path(path).expanduser()
    return path.suffix.lower() == ".npz" and not (path.is_file() and formats_at(path))


# ---- writing


@checked
def write_recording(
    ds: NeuralDataset,
    path: str | os.PathLike[str],
    format: str = "folder",
    *,
    overwrite: bool = False,
) -> Path:
    """Write a dataset as a recording that other programs read, and `open_recording` reads back equal.

    Parameters
    ----------
    ds : NeuralDataset
        Any dataset or view: waveforms, spectrograms or named features; counts, rates or traces.
    path : str or path-like
        Folder or file to write.
    format : str
        "folder" (sounds, tables and a ``recording.toml``), or another format that writes.
    overwrite : bool
        Replace what was written there before.

    Returns
    -------
    Path
        The folder or file.

    Raises
    ------
    FileExistsError
        When something is there and ``overwrite`` is false.
    ValueError
        When the format is unknown or only read.

    Examples
    --------
    >>> import tempfile, torch
    >>> from deepSTRF.datasets import NeuralDataset, write_recording
    >>> ds = NeuralDataset.from_arrays([torch.rand(4, 50)], [torch.ones(2, 3, 50)], dt_ms=5.0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sorted(file.name for file in write_recording(ds, f"{folder}/mine").glob("*.csv"))
    ['spikes.csv', 'trials.csv', 'units.csv']
    """
    path = Path(path).expanduser()
    reader: type[Format] = FORMATS.get(format)
    if not reader.writes:
        able = [key for key, entry in FORMATS.items() if entry.writes]
        raise ValueError(f"recordings are written as {_listed(able)}, got {format!r}")
    there = os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))
    if there and not overwrite:
        raise FileExistsError(
            f"{path} exists; overwrite=True (--overwrite) replaces it, or name another place"
        )
    if path.is_dir() and there and not (path / MANIFEST).exists():
        raise FileExistsError(f"{path} holds files that deepSTRF did not write; name another folder")
    check_target(path / "recording.toml" if format == "folder" else path)
    reader.write(session_of_dataset(ds), path)
    return path
