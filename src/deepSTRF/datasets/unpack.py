"""Safe unpacking: no path leaves the folder, no links, a partial extraction is never taken for a whole."""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

__all__ = ["unpack_zip"]

#: Entries a Mac adds to an archive; they are no part of a recording.
CLUTTER_FOLDERS = {"__MACOSX"}
CLUTTER_FILES = {".DS_Store", "Thumbs.db"}
COPY_BLOCK = 1 << 20


def unpack_zip(archive: str | os.PathLike[str], dest: str | os.PathLike[str]) -> list[Path]:
    """Unpack a zip file into a folder, checking every entry first.

    Entries are checked before anything is written, extracted into a hidden folder beside ``dest``, verified
    by their CRC, and only then moved in, each by one atomic rename. A run that is killed half-way leaves no
    truncated file under ``dest``. Files that are there already are replaced by those of the archive.

    Parameters
    ----------
    archive : path
        The zip file.
    dest : path
        Folder to unpack into, made when absent.

    Returns
    -------
    list of Path
        The files written, in the order of the archive.

    Raises
    ------
    FileNotFoundError
        When ``archive`` does not exist.
    ValueError
        When it is no zip file or damaged, or an entry is absolute, climbs out of ``dest``, is a link, is
        encrypted, or appears twice. Nothing is written in that case.
    OSError
        When the disk has no room for the content. Nothing is left behind.

    Examples
    --------
    >>> import tempfile, zipfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> archive = Path(folder.name, "a.zip")
    >>> with zipfile.ZipFile(archive, "w") as out:
    ...     out.writestr("sub/one.txt", "hello")
    >>> [path.name for path in unpack_zip(archive, Path(folder.name, "out"))]
    ['one.txt']
    >>> folder.cleanup()
    """
    archive, dest = Path(archive), Path(dest)
    if not archive.is_file():
        raise FileNotFoundError(f"there is no archive {archive}")
    try:
        with zipfile.ZipFile(archive) as opened:
            entries = _checked_entries(opened, archive)
            _check_room(dest, sum(entry.file_size for entry, _ in entries))
            return _extract(opened, entries, archive, dest)
    except zipfile.BadZipFile as error:
        raise ValueError(
            f"{archive} is no zip file or is damaged ({error}); delete it and download it again"
        ) from error


def _checked_entries(opened: zipfile.ZipFile, archive: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """Return the file entries with their safe relative paths; folders and clutter are left out."""
    entries: list[tuple[zipfile.ZipInfo, PurePosixPath]] = []
    seen: set[PurePosixPath] = set()
    for entry in opened.infolist():
        name = entry.filename.replace("\\", "/")
        path = PurePosixPath(name)
        fault = _fault(entry, name, path)
        if fault is None and path in seen and not entry.is_dir():
            fault = "appears twice"
        if fault is not None:
            raise ValueError(
                f"{archive} is not safe to unpack: its entry {entry.filename!r} {fault}; nothing written"
            )
        if entry.is_dir() or CLUTTER_FOLDERS & set(path.parts) or path.name in CLUTTER_FILES:
            continue
        seen.add(path)
        entries.append((entry, path))
    return entries


def _fault(entry: zipfile.ZipInfo, name: str, path: PurePosixPath) -> str | None:
    """Say what is wrong with one entry, or None."""
    kind = stat.S_IFMT(entry.external_attr >> 16)
    if not path.parts or "\0" in name:
        return "has no legal name"
    if path.is_absolute() or ":" in path.parts[0]:
        return "has an absolute path"
    if ".." in path.parts:
        return "climbs out of the folder"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a special file"
    if entry.flag_bits & 0x1:
        return "is encrypted"
    return None


def _check_room(dest: Path, needed: int) -> None:
    folder = dest.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            f"unpacking into {dest} needs {needed / 1e6:.0f} MB, the disk has {free / 1e6:.0f} MB left"
        )


def _extract(
    opened: zipfile.ZipFile,
    entries: list[tuple[zipfile.ZipInfo, PurePosixPath]],
    archive: Path,
    dest: Path,
) -> list[Path]:
    """Extract into a hidden neighbour of ``dest``, then move file by file."""
    dest.parent.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    with tempfile.TemporaryDirectory(prefix=f".{dest.name}.unpacking-", dir=dest.parent) as hidden:
        for entry, path in entries:
            target = Path(hidden, *path.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                with opened.open(entry) as source, open(target, "wb") as out:
                    shutil.copyfileobj(source, out, COPY_BLOCK)
            except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
                raise ValueError(
                    f"{archive} is damaged at its entry {entry.filename!r} ({error}); "
                    "delete it and download it again"
                ) from error
        for _, path in entries:
            final = dest.joinpath(*path.parts)
            final.parent.mkdir(parents=True, exist_ok=True)
            os.replace(Path(hidden, *path.parts), final)
            written.append(final)
    return written
