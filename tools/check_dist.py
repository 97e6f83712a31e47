"""Contents of the wheel and the sdist against the checkout: `python tools/check_dist.py [dist]`.

The wheel holds every tracked file below src/deepSTRF byte for byte, its metadata, and nothing else (no tests,
no caches); the sdist holds every tracked file, so that the tests run from it. The metadata are those that a
package index takes. Status 1 and one line per problem.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.metadata import InvalidMetadata, Metadata

ROOT = Path(__file__).resolve().parent.parent
IN_DIST_INFO = {"METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"}


def tracked_files(root: Path) -> dict[str, bytes]:
    """Path below ``root`` -> content, of the files that git tracks there."""
    listed = subprocess.run(["git", "-C", str(root), "ls-files", "-z"], capture_output=True, check=True)
    names = [name for name in listed.stdout.decode().split("\0") if (root / name).is_file()]
    return {name: (root / name).read_bytes() for name in names}


def wheel_files(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def sdist_files(path: Path) -> dict[str, bytes]:
    """Path below the one folder of the archive -> content."""
    with tarfile.open(path) as archive:
        members = [member for member in archive if member.isfile()]
        return {one.name.partition("/")[2]: archive.extractfile(one).read() for one in members}


def differences(found: Mapping[str, bytes], wanted: Mapping[str, bytes], where: str) -> Iterator[str]:
    """One line per file that is missing, not wanted, or of another content."""
    for name in sorted(wanted.keys() - found.keys()):
        yield f"{where} lacks {name}"
    for name in sorted(found.keys() - wanted.keys()):
        yield f"{where} holds {name}, which is no tracked file"
    for name in sorted(found.keys() & wanted.keys()):
        if found[name] != wanted[name]:
            yield f"{where} holds another {name} than the checkout"


def check_wheel(files: Mapping[str, bytes], tracked: Mapping[str, bytes]) -> Iterator[str]:
    package = {name: content for name, content in files.items() if ".dist-info/" not in name}
    source = {name[4:]: content for name, content in tracked.items() if name.startswith("src/deepSTRF/")}
    yield from differences(package, source, "the wheel")
    info = {name.partition(".dist-info/")[2] for name in files.keys() - package.keys()}
    if info != IN_DIST_INFO:
        yield f"the wheel has the metadata {sorted(info)}, expected {sorted(IN_DIST_INFO)}"


def check_sdist(files: Mapping[str, bytes], tracked: Mapping[str, bytes]) -> Iterator[str]:
    yield from differences({n: c for n, c in files.items() if n != "PKG-INFO"}, tracked, "the sdist")


def check_metadata(text: bytes) -> Iterator[str]:
    """What a package index refuses: invalid fields, requirements by address, a description of no type."""
    try:
        metadata = Metadata.from_email(text, validate=True)
    except ExceptionGroup as group:
        yield from (f"metadata: {error}" for error in group.exceptions if isinstance(error, InvalidMetadata))
        return
    yield from (f"metadata: {one} has an address" for one in metadata.requires_dist or [] if one.url)
    if metadata.description_content_type != "text/markdown":
        yield f"metadata: the description is {metadata.description_content_type}, expected text/markdown"
    for field in ("summary", "license_expression", "requires_python", "project_urls", "keywords"):
        if not getattr(metadata, field):
            yield f"metadata: no {field}"


def check_folder(folder: Path, root: Path) -> tuple[list[str], list[Path]]:
    """Problems, and the two files of the version that the checkout has."""
    source = (root / "src" / "deepSTRF" / "__init__.py").read_text(encoding="utf-8")
    version = re.search(r'^__version__ = "(.+)"$', source, flags=re.MULTILINE)[1]
    wheel = folder / f"deepstrf_toolkit-{version}-py3-none-any.whl"
    sdist = folder / f"deepstrf_toolkit-{version}.tar.gz"
    missing = [f"{path} is not there: make dist" for path in (wheel, sdist) if not path.is_file()]
    if missing:
        return missing, []
    tracked, in_wheel, in_sdist = tracked_files(root), wheel_files(wheel), sdist_files(sdist)
    metadata = next((c for name, c in in_wheel.items() if name.endswith(".dist-info/METADATA")), b"")
    problems = [*check_wheel(in_wheel, tracked), *check_sdist(in_sdist, tracked), *check_metadata(metadata)]
    if in_sdist.get("PKG-INFO") != metadata:
        problems.append("the metadata of wheel and sdist differ")
    return problems, [wheel, sdist]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist")
    problems, files = check_folder(parser.parse_args().folder, ROOT)
    print("\n".join(problems) or "\n".join(f"{p.name}: {p.stat().st_size / 1e6:.2f} MB" for p in files))
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main())
