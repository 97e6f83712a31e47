"""Structure of the package in figures: `python tools/structure.py [--before REVISION] [--calls] [--check]`.

Static, from the syntax trees: files, lines, code lines and docstring lines per folder; circles of imports
between files, also those under TYPE_CHECKING or inside functions; names that the faces export. With
``--calls``: how many files of the package five typical calls cross, counted with ``sys.setprofile``.
``--before`` prints the figures of an earlier revision beside today's, ``--check`` ends with status 1 when a
limit is broken.
"""

from __future__ import annotations

import argparse
import ast
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: 50,000 after the redesign; what makes numbers right with every recording, and files safe, came on top.
MAX_LINES = 100_940  # statistics, linear models, sweeps and live streams on top of any recording
MAX_PUBLIC_NAMES = 323
#: Most files of the package that a call may cross.
MAX_FILES_CROSSED = {
    "Fitter.fit": 22,  # scores from sufficient statistics, and passes over recorded pairs only
    "normalized_corrcoef": 5,  # the statistics of repeats, and those of predictions beside them
    "dstrf(Linear)": 10,
    "Linear(...)(x)": 6,
    "run_experiment": 51,  # the lags of the responses stand in the report
}


def modules(source: Path) -> dict[str, Path]:
    """Module name -> file, of every Python file below ``source``."""
    found = {}
    for path in sorted(source.rglob("*.py")):
        name = ".".join(path.relative_to(source).with_suffix("").parts)
        found[name.removesuffix(".__init__")] = path
    return found


def is_face(path: Path) -> bool:
    return path.name == "__init__.py"


def docstring_lines(tree: ast.Module) -> int:
    total = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False)
            total += text.count("\n") + 1 if text else 0
    return total


def lines_per_folder(source: Path) -> dict[str, Counter[str]]:
    """Room -> files, lines, code lines (no blank, comment or docstring line) and docstring lines."""
    folders: dict[str, Counter[str]] = {}
    for path in modules(source).values():
        parts = path.relative_to(source).parts[1:]
        folder = parts[0] if len(parts) > 1 else "(root)"
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        docs = docstring_lines(ast.parse(text))
        plain = sum(bool(line.strip()) and not line.lstrip().startswith("#") for line in lines)
        blank_in_docs = blank_docstring_lines(ast.parse(text))
        row = Counter(files=1, lines=len(lines), code=plain - docs + blank_in_docs, docstrings=docs)
        folders.setdefault(folder, Counter()).update(row)
    return folders


def blank_docstring_lines(tree: ast.Module) -> int:
    """Lines of docstrings that are blank, or would pass for a comment."""
    total = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node, clean=False) or ""
            total += sum(not line.strip() or line.lstrip().startswith("#") for line in text.split("\n"))
    return total


def imports(source: Path) -> dict[str, set[str]]:
    """Module -> modules it imports anywhere in its file; faces are left out."""
    names = modules(source)
    graph = {}
    for name, path in names.items():
        if is_face(path):
            continue
        found: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    package = name.split(".")[: -node.level]
                    base = ".".join([*package, *([node.module] if node.module else [])])
                found |= {f"{base}.{alias.name}" for alias in node.names} | {base}
        graph[name] = {other for other in found if other in names and not is_face(names[other])} - {name}
    return graph


def circles(source: Path) -> list[list[str]]:
    """Groups of files that import each other, directly or through others."""
    graph = imports(source)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        pending = list(graph[start])
        while pending:
            name = pending.pop()
            if name not in seen:
                seen.add(name)
                pending += graph[name]
        return seen

    ahead = {name: reached(name) for name in graph}
    groups = {frozenset(o for o in ahead[name] if name in ahead[o]) for name in graph if name in ahead[name]}
    return sorted(sorted(group) for group in groups)


def public_names(source: Path) -> dict[str, str]:
    """Exported name -> the face that exports it first; submodules do not count, re-exports count once."""
    found: dict[str, str] = {}
    names = modules(source)
    for name, path in names.items():
        if not is_face(path):
            continue
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
                try:
                    exported = ast.literal_eval(node.value)
                except ValueError:
                    continue  # the face of the package: names of the folders
                for one in exported:
                    if f"{name}.{one}" not in names or not is_face(names[f"{name}.{one}"]):
                        found.setdefault(one, name)
    return found


CALLS = """
import pathlib, sys, tempfile, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import deepSTRF
SOURCE = str(pathlib.Path(deepSTRF.__file__).parent)
from deepSTRF.datasets.audio import SyntheticDataset
from deepSTRF.interpret import dstrf
from deepSTRF.metrics import normalized_corrcoef
from deepSTRF.models.audio import Linear
from deepSTRF.training import Fitter, make_loaders
try:
    from deepSTRF.experiments import ExperimentConfig, run_experiment
except ImportError:
    from deepSTRF.training import ExperimentConfig, run_experiment
recording = SyntheticDataset(n_neurons=3, n_clips=6, n_repeats=4, clip_seconds=0.5)

def model():
    return Linear(recording.F, 9, recording.N_neurons)

def fit():
    loaders = make_loaders(recording.select(clips=[0, 1, 2]), recording.select(clips=[3]), seed=0)
    return Fitter(model(), *loaders, max_epochs=2, progress=False).fit

def experiment():
    folder = tempfile.mkdtemp()
    options = {"n_neurons": 3, "n_clips": 6, "n_repeats": 4, "clip_seconds": 0.5}
    data = {"dataset": "synthetic", "dataset_options": options, "split": "4/1/1"}
    config = ExperimentConfig(**data, model="linear", epochs=2)
    return lambda: run_experiment(config, folder + "/run")

sound = recording.stims[0]
rates, repeats = torch.rand(2, 3, 1, 50), torch.rand(2, 3, 4, 50)
CASES = {
    "Fitter.fit": fit,
    "normalized_corrcoef": lambda: lambda: normalized_corrcoef(rates, repeats),
    "dstrf(Linear)": lambda: (lambda one: lambda: dstrf(one, sound))(model().eval()),
    "Linear(...)(x)": lambda: lambda: model()(sound[None]),
    "run_experiment": experiment,
}
for name, prepare in CASES.items():
    prepare()()  # late imports and caches
    call, files = prepare(), set()

    def watch(frame, event, argument):
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(SOURCE) and frame.f_code.co_name != "<module>":
            files.add(name[len(SOURCE) + 1:])

    sys.setprofile(watch)
    try:
        call()
    finally:
        sys.setprofile(None)
    print(name, len(files), *sorted(files), sep="\\t")
"""


def files_crossed(source: Path) -> dict[str, list[str]]:
    """Call -> files of the package in which a function runs during it."""
    environment = {**os.environ, "PYTHONPATH": str(source), "MPLBACKEND": "Agg", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", CALLS], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    rows = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    return {name: files for name, _, *files in rows}


def measure(source: Path, calls: bool) -> dict[str, object]:
    return {
        "folders": lines_per_folder(source),
        "circles": circles(source),
        "names": public_names(source),
        "calls": files_crossed(source) if calls else {},
    }


COLUMNS = ("files", "lines", "code", "docstrings")


def figures(measured: dict) -> dict[str, int]:
    """Everything that is printed, as label -> number."""
    rows = dict(measured["folders"])
    rows["**all**"] = sum(rows.values(), Counter())
    found = {f"{folder}/{column}": row[column] for folder, row in rows.items() for column in COLUMNS}
    found["circles of imports"] = len(measured["circles"])
    found["public names"] = len(measured["names"])
    return found | {f"files crossed by {call}": len(files) for call, files in measured["calls"].items()}


def report(now: dict, before: dict | None, verbose: bool) -> None:
    """Print a Markdown table of the folders, then one line per other figure."""
    new, old = figures(now), figures(before) if before else None

    def shown(label: str) -> str:
        value = f"{new.get(label, 0):,}"
        return value if old is None else f"{old.get(label, 0):,} -> {value}"

    print(f"| folder | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}")
    for folder in [*sorted({*now["folders"], *(before["folders"] if before else ())}), "**all**"]:
        print(f"| {folder} | {' | '.join(shown(f'{folder}/{column}') for column in COLUMNS)} |")
    print(f"\ncircles of imports: {shown('circles of imports')}")
    for circle in now["circles"]:
        print("  " + ", ".join(circle))
    print(f"public names: {shown('public names')}")
    for face, count in Counter(now["names"].values()).most_common() if verbose else ():
        print(f"  {face}: {count}")
    for call, files in now["calls"].items():
        print(
            f"files crossed by {call}: {shown(f'files crossed by {call}')}, limit {MAX_FILES_CROSSED[call]}"
        )
        if verbose:
            print("  " + ", ".join(files))


def broken_limits(now: dict) -> list[str]:
    lines = sum(row["lines"] for row in now["folders"].values())
    found = [f"{lines:,} lines in src, at most {MAX_LINES:,}"] if lines > MAX_LINES else []
    found += [f"a circle of imports: {', '.join(circle)}" for circle in now["circles"]]
    if len(now["names"]) > MAX_PUBLIC_NAMES:
        found.append(f"{len(now['names'])} public names, at most {MAX_PUBLIC_NAMES}")
    for call, files in now["calls"].items():
        if len(files) > MAX_FILES_CROSSED[call]:
            found.append(f"{call} crosses {len(files)} files, at most {MAX_FILES_CROSSED[call]}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", metavar="REVISION", help="compare with a revision of git")
    parser.add_argument("--calls", action="store_true", help="count the files that typical calls cross")
    parser.add_argument(
        "--check", action="store_true", help="print broken limits; status 1 when there is one"
    )
    parser.add_argument("--verbose", action="store_true", help="name faces and files")
    options = parser.parse_args()
    now = measure(ROOT / "src", options.calls)
    if options.check:
        broken = broken_limits(now)
        print("\n".join(broken) or "structure: within its limits")
        return bool(broken)
    before = None
    if options.before:
        with tempfile.TemporaryDirectory() as folder:
            archive = subprocess.run(
                ["git", "-C", str(ROOT), "archive", options.before, "src"], capture_output=True, check=True
            )
            with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
                tar.extractall(folder, filter="data")
            before = measure(Path(folder) / "src", options.calls)
    report(now, before, options.verbose)
    return 0


if __name__ == "__main__":
    sys.exit(main())
