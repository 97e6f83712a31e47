"""``deepstrf info``: what a report of a problem needs to say about the installation and the machine."""

from __future__ import annotations

import os
import platform
import re
from importlib.metadata import PackageNotFoundError, packages_distributions, requires, version
from pathlib import Path

import torch

import deepSTRF
from deepSTRF.cli.errors import say
from deepSTRF.datasets.download import DATA_DIR_VARIABLE

__all__ = ["installed_versions", "other_owners", "print_info"]

#: Name of this distribution on a package index; the import name is another one.
DISTRIBUTION = "deepstrf-toolkit"


def print_info() -> None:
    """Print versions, machine and folders, as lines of ``name: value``; nothing but these is read or sent."""
    folder = Path(deepSTRF.__file__).parent
    say(f"deepSTRF: {deepSTRF.__version__} in {_without_home(folder)}")
    say(f"python: {platform.python_version()} ({platform.python_implementation()})")
    say(f"system: {platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores")
    say(f"devices: {', '.join(_devices())}")
    data = os.environ.get(DATA_DIR_VARIABLE)
    say(f"{DATA_DIR_VARIABLE}: {_without_home(Path(data)) if data else 'not set'}")
    found = installed_versions()
    say("packages: " + ", ".join(f"{name} {number}" for name, number in found.items() if number))
    missing = [name for name, number in found.items() if number is None]
    say(f"not installed (optional): {', '.join(missing) or 'none'}")
    for other in other_owners():
        say(
            f"WARNING: the installed package {other!r} has the import name deepSTRF too, and the files of "
            f"both may be mixed. Uninstall both, then install {DISTRIBUTION} again."
        )


def installed_versions() -> dict[str, str | None]:
    """Version of every package that this installation needs or may use; None for those that are not there."""
    found: dict[str, str | None] = {}
    try:
        declared = requires(DISTRIBUTION) or []
    except PackageNotFoundError:  # run from a folder that was never installed
        declared = []
    for requirement in declared:
        if "extra == 'dev'" in requirement.replace('"', "'"):
            continue
        name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


def other_owners() -> list[str]:
    """Installed distributions other than this one that have the import name ``deepSTRF``."""
    owners = set(packages_distributions().get("deepSTRF", []))
    return sorted(owner for owner in owners if re.sub(r"[-_.]+", "-", owner).lower() != DISTRIBUTION)


def _devices() -> list[str]:
    """What fits can run on: the CPU with its threads, and accelerators by name."""
    found = [f"cpu ({torch.get_num_threads()} threads)"]
    found += [f"cuda:{i} ({torch.cuda.get_device_name(i)})" for i in range(torch.cuda.device_count())]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def _without_home(path: Path) -> str:
    """A path with the home folder as ``~``: it often holds the user's name."""
    try:
        return str(Path("~") / path.resolve().relative_to(Path.home().resolve()))
    except (ValueError, RuntimeError):
        return str(path)
