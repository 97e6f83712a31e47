"""Wheel and sdist in a new environment, used from an empty folder: `python tools/bare_install.py [dist]`.

A virtual environment is made outside the checkout, with no packages of the system: first torch, then the
wheel alone, as a user installs it. The command fits, reports and prints its help; every public name is
imported, with warnings as errors and without optional packages. The sdist must give the same wheel byte for
byte, and works when it is installed instead. Status 1 when a step fails; everything is removed at the end.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SMALL = "-o n_neurons=3 -o n_clips=6 -o n_repeats=4 -o clip_seconds=0.5 --split 4/1/1 --epochs 2"

#: Run by the new environment; the first argument is its folder.
IMPORT_ALL = """
import importlib, importlib.util, pathlib, pkgutil, sys
import deepSTRF
place = pathlib.Path(deepSTRF.__file__).resolve()
home = pathlib.Path(sys.argv[1]).resolve()
if home not in place.parents:
    sys.exit(f"deepSTRF came from {place}, not from the new environment {home}")
for optional in ("h5py", "pynwb", "mne", "pandas", "pytest"):
    if importlib.util.find_spec(optional):
        sys.exit(f"{optional} is in the environment, which should hold what deepSTRF needs and no more")
modules = [deepSTRF.__name__, *(m.name for m in pkgutil.walk_packages(deepSTRF.__path__, "deepSTRF."))]
names = 0
for name in modules:
    module = importlib.import_module(name)
    for public in getattr(module, "__all__", ()):
        getattr(module, public)
        names += 1
print(f"{len(modules)} modules, {names} names")
models = importlib.import_module("deepSTRF.models")
for name in models.pretrained_models() if hasattr(models, "pretrained_models") else ():
    print(name, type(models.load_pretrained(name)).__name__)
"""


class Environment:
    """A new virtual environment, and an empty working folder beside it."""

    def __init__(self, folder: Path) -> None:
        self.home, self.work = folder / "environment", folder / "work"
        self.work.mkdir()
        venv.create(self.home, with_pip=True)
        self.bin = self.home / ("Scripts" if os.name == "nt" else "bin")
        # nothing of the checkout, of other environments, or of the user's own packages
        hidden = {"PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "DEEPSTRF_DATA_DIR"}
        self.variables = {key: value for key, value in os.environ.items() if key not in hidden}
        self.variables |= {"PYTHONNOUSERSITE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
        self.variables |= {"MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}

    def run(self, *words: str | Path, cwd: Path | None = None) -> str:
        """Output of a command of the environment; its error ends the check."""
        started = time.perf_counter()
        command = [str(self.bin / words[0]), *map(str, words[1:])]
        shown = " ".join("..." if "\n" in str(word) else Path(word).name for word in words)
        done = subprocess.run(
            command, cwd=cwd or self.work, env=self.variables, capture_output=True, text=True, check=False
        )
        seconds = time.perf_counter() - started
        print(f"{seconds:6.1f} s  {'ok    ' if done.returncode == 0 else 'FAILED'}  {shown}", flush=True)
        if done.returncode:
            raise SystemExit(f"{shown}\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def pip(self, *words: str | Path, cwd: Path | None = None) -> None:
        self.run("python", "-m", "pip", "--quiet", *words, cwd=cwd)


def expect(found: str, wanted: str, what: str) -> None:
    if wanted not in found:
        raise SystemExit(f"{what} printed {found!r}, expected {wanted!r}")


def use(environment: Environment, version: str) -> None:
    """What a newcomer does first, from an empty folder."""
    expect(environment.run("deepstrf", "--version"), f"deepSTRF {version}\n", "deepstrf --version")
    expect(environment.run("deepstrf", "--help"), "fit", "deepstrf --help")
    expect(environment.run("deepstrf", "info"), f"deepSTRF: {version} in ", "deepstrf info")
    expect(environment.run("deepstrf", "fit", *SMALL.split(), "--out", "run"), "cc_norm", "deepstrf fit")
    (environment.work / "run" / "report.html").unlink()
    expect(environment.run("deepstrf", "report", "run"), "cc_norm", "deepstrf report")
    if not (environment.work / "run" / "report.html").is_file():
        raise SystemExit("deepstrf report wrote no report.html")


def import_all(environment: Environment) -> None:
    print(environment.run("python", "-W", "error", "-c", IMPORT_ALL, environment.home).strip())


def check(wheel: Path, sdist: Path, torch: str, folder: Path) -> None:
    environment = Environment(folder)
    environment.pip("install", *shlex.split(torch), cwd=ROOT)
    environment.pip("install", wheel)
    environment.pip("check")
    use(environment, wheel.name.split("-")[1])
    import_all(environment)
    environment.pip("wheel", "--no-deps", "--wheel-dir", "from-sdist", sdist)
    again = environment.work / "from-sdist" / wheel.name
    if again.read_bytes() != wheel.read_bytes():
        raise SystemExit(
            f"{sdist.name} gives another wheel than {wheel.name}: is SOURCE_DATE_EPOCH the same?"
        )
    environment.pip("uninstall", "--yes", "deepstrf-toolkit")
    environment.pip("install", "--no-deps", "--no-cache-dir", sdist)
    expect(environment.run("deepstrf", "report", "run"), "cc_norm", "deepstrf report")
    import_all(environment)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "dist")
    parser.add_argument("--torch", default="-r constraints.txt", help="requirement of torch for pip")
    options = parser.parse_args()
    (wheel,), (sdist,) = options.folder.glob("*.whl"), options.folder.glob("*.tar.gz")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        check(wheel.resolve(), sdist.resolve(), options.torch, Path(folder))
    print(f"wheel and sdist work in a new environment ({(time.perf_counter() - started) / 60:.1f} minutes)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
