"""Fetching the public NS1 recording."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

from deepSTRF.datasets.audio import _ns1_read
from deepSTRF.datasets.audio.ns1_files import (
    GITHUB_RAW_URL,
    NS1_DNET_FILES,
    NS1_DNET_REF,
    NS1_DNET_REPO,
    NS1_METADATA,
    NS1_OSF_FILES,
    NS1_SPIKE_DIR_NAME,
)
from deepSTRF.datasets.fetch import OSF_BASE_URL, download_file, osf_url, unpack_zip

__all__ = ["download_ns1"]


def download_ns1(
    dest: str | os.PathLike[str],
    *,
    spectrogram: bool = False,
    osf_base: str = OSF_BASE_URL,
    github_base: str = GITHUB_RAW_URL,
    cache: bool = True,
) -> Path:
    """Fetch what is missing of the recording; asks the network for nothing that is there.

    Parameters
    ----------
    dest : path
        Folder of the recording, made when absent.
    spectrogram : bool
        Also fetch the authors' cochleagram (``test_data_5ms.mat``, 5 MB).
    osf_base, github_base : str
        Addresses to ask instead of osf.io and GitHub.
    cache : bool
        Use and fill the cache of parsed metadata.

    Returns
    -------
    Path
        ``dest``.

    Raises
    ------
    ConnectionError, ValueError, OSError
        See `deepSTRF.datasets.fetch.download_file` and `deepSTRF.datasets.unpack.unpack_zip`.

    Examples
    --------
    >>> download_ns1("recordings/NS1")                                               # doctest: +SKIP
    PosixPath('recordings/NS1')
    """
    dest = Path(dest)
    if not (dest / NS1_METADATA).is_file():
        download_file(osf_url(NS1_OSF_FILES[NS1_METADATA], osf_base), dest / NS1_METADATA, check=_check_mat)
    if not _sounds_and_spikes_are_there(dest, cache):
        archive = dest / "spikesandwav.zip"
        brought_by_hand = archive.is_file()
        download_file(osf_url(NS1_OSF_FILES["ReadMe.rtf"], osf_base), dest / "ReadMe.rtf")
        download_file(osf_url(NS1_OSF_FILES[archive.name], osf_base), archive, check=_check_zip)
        unpack_zip(archive, dest if _has_root_folder(archive) else dest / NS1_SPIKE_DIR_NAME)
        if not brought_by_hand:
            archive.unlink()
    if spectrogram:
        for name in NS1_DNET_FILES:
            if not (dest / name).is_file():
                url = f"{github_base.rstrip('/')}/{NS1_DNET_REPO}/{NS1_DNET_REF}/{name}"
                download_file(url, dest / name, check=_check_mat)
    return dest


def _sounds_and_spikes_are_there(root: Path, cache: bool) -> bool:
    if not all((root / name).is_file() for name in _ns1_read.wav_paths()):
        return False
    units = _ns1_read.read_metadata(root, cache=cache)
    return all(_ns1_read.resolve_spike_file(root, unit["file"]) is not None for unit in units)


def _has_root_folder(archive: Path) -> bool:
    """Say whether the archive carries the folder ``spikesandwav`` itself."""
    with zipfile.ZipFile(archive) as opened:
        return any(name.startswith(f"{NS1_SPIKE_DIR_NAME}/") for name in opened.namelist())


def _check_zip(path: Path) -> None:
    """Raise ValueError unless the file is a zip archive whose members all have the right CRC."""
    name = path.name.removesuffix(".part")
    try:
        with zipfile.ZipFile(path) as opened:
            fault = opened.testzip()
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(f"what arrived for {name} is no intact zip archive ({error})") from error
    if fault is not None:
        raise ValueError(f"what arrived for {name} is damaged at its entry {fault!r}")


def _check_mat(path: Path) -> None:
    """Raise ValueError unless scipy reads the file to its end."""
    try:
        _ns1_read.load_mat(path)
    except _ns1_read.MAT_DAMAGE as error:
        raise ValueError(
            f"what arrived for {path.name.removesuffix('.part')} is no MATLAB file ({error})"
        ) from error
