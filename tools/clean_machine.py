"""What a newcomer runs, on a clean machine: `python tools/clean_machine.py [--data FOLDER] [--full]`.

The tracked files are copied to an empty folder, with an empty home, cache and temporary folder. There run the
README's two commands (`make demo`, and `make test` with --full, which takes half an hour), the Python code of
README and pages, `--help` of every subcommand, and the examples of the command line that README, pages and
help show. Examples whose files a page only imagines (a session of a lab, a run) find small ones of that name.
What needs a public recording runs where --data has it (NS1). Each step is printed with its minutes; what was
left out is listed with its reason, and what failed with its output. Status 1 when something failed.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 3600
#: Tests that run the code of pages, those of two pages that also compare what is printed among them.
DOCS_TESTS = ["tests/docs", "tests/datasets/test_data_docs.py", "tests/training/test_fit_docs.py"]

#: Files that pages imagine, small: a recording as NWB, archive and folder, a dataset, a configuration, a run.
IMAGINED = """
import pathlib, shutil, sys
import numpy as np, soundfile
from deepSTRF.datasets import open_recording, write_recording
from deepSTRF.experiments import ExperimentConfig, Sweep, run_experiment, run_sweep
from deepSTRF.report import write_report

rng = np.random.default_rng(0)
songs = pathlib.Path("songs")
(songs / "sounds").mkdir(parents=True)
names = [f"song{i}" for i in range(8)]
for name in names:
    soundfile.write(songs / "sounds" / f"{name}.wav", rng.uniform(-0.5, 0.5, 16000), 16000)
onsets = 1000 + 2000 * np.arange(32)  # ms; four repeats of each sound
trials = "".join(f"{names[i % 8]},{onset}\\n" for i, onset in enumerate(onsets))
(songs / "trials.csv").write_text("stimulus,onset\\n" + trials)
units = [*(f"u{i}" for i in range(19)), "A1-5"]  # 3 and 17 are indices, A1-5 a name
rows = [f"{unit},{t:.2f}\\n" for unit in units for t in np.sort(rng.uniform(0, 66000, 1500))]
(songs / "spikes.csv").write_text("unit,time\\n" + "".join(rows))
shutil.make_archive("songs", "zip", songs)
rng.uniform(-0.5, 0.5, 16000).astype("<f4").tofile("song.raw")
shutil.copy(songs / "sounds" / "song0.wav", "song.wav")

ds = open_recording("songs", dt_ms=5.0, time_unit="ms")
for name in ("mine.npz", "fitted.npz"):  # the second is that of the run: examples write the first anew
    ds.save(name)
write_recording(ds, "session.nwb", format="nwb")
write_recording(ds, "lab")
for name in ("hints.toml", "recording.toml"):
    pathlib.Path(name).write_text("dt_ms = 5.0\\n")
text = '[dataset]\\nname = "synthetic"\\noptions = { n_neurons = 3, n_clips = 6, clip_seconds = 0.5 }\\n'
pathlib.Path("experiment.toml").write_text(text + "[training]\\nepochs = 3\\n")
for name, front_end in (("mel", "mel"), ("leaf", "gammatone")):
    config = ExperimentConfig(dataset="fitted.npz", wav2spec=front_end, epochs=2)
    write_report(run_experiment(config, f"runs/{name}"))
grid = "[model]\\nname = 'ridge'\\n[grid]\\nmodel_options.n_lags = [1, 9]\\n"
pathlib.Path("sweep.toml").write_text(text + grid)
run_sweep(Sweep.from_toml("sweep.toml"), "runs/sweep")
space = "[search]\\nn_trials = 2\\n[search.space]\\nlearning_rate = { low = 1e-3, high = 1e-2 }\\n"
pathlib.Path("search.toml").write_text(text + "[training]\\nepochs = 2\\n" + space)
"""

# ---- Examples of the command line

FENCED = re.compile(r"^```(?:bash|sh)\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)
ANY_BLOCK = re.compile(r"^```.*?^```", flags=re.DOTALL | re.MULTILINE)
INDENTED = re.compile(r"^ {4}(deepstrf .*)$", flags=re.MULTILINE)
IN_HELP = re.compile(r"^ *(?:[A-Z][\w ]+: {2,})?(deepstrf [a-z].*)$", flags=re.MULTILINE)
#: Recordings of others that no example may fetch here.
RECORDING = re.compile(r"--dataset (?!synthetic|mine\.npz)(\S+)")


def command_of(line: str) -> str:
    """A line without its remark: what follows two spaces, or a hash."""
    return re.split(r"\s{2,}|\s#", line.strip())[0]


def examples_of(text: str) -> list[str]:
    """Commands ``deepstrf`` of a Markdown page: those of its shell blocks, then lines indented by four."""
    lines = [line for block in FENCED.findall(text) for line in re.sub(r" *\\\n *", " ", block).splitlines()]
    lines += INDENTED.findall(ANY_BLOCK.sub("", text))
    return [command_of(line) for line in lines if line.startswith("deepstrf ")]


def examples_of_help(text: str) -> list[str]:
    """Commands that a help page shows, alone on a line or after a label."""
    return [command_of(line) for line in IN_HELP.findall(text)]


def reason_to_skip(command: str, has_ns1: bool, folder: Path) -> str | None:
    """Why an example cannot run here, or None."""
    if re.search(r"<\S|\.\.\.|\b(PATH|RUN|NAME|FILE|KEY)\b", command):
        return "a placeholder"
    recording = RECORDING.search(command)
    if recording and not (has_ns1 and recording[1] == "ns1"):
        return f"needs the recording {recording[1]}"
    if "alignment=" in command and not (has_ns1 and recording):
        return "an option of the recording ns1, or of a run on it"
    if "--scheduler" in command:
        return "needs a scheduler of a cluster"
    if re.search(r"--device\b|--list-devices", command):
        return "needs a microphone"
    words = shlex.split(command)
    if words[1] == "serve":
        return "serves until Ctrl-C"
    if words[1:3] == ["bench", "ns1"]:
        return "takes an hour"
    if words[1] == "import" and not (folder / words[2]).exists():
        return f"needs {words[2]}, which its page makes"
    return None


def clear_target(command: str, folder: Path) -> None:
    """Remove what an example is going to write: in a row of examples several write to one place."""
    target = re.search(r"--out (\S+)|^deepstrf export \S+ (\w\S*)", command)
    if target and "--dry-run" not in command:
        path = folder / (target[1] or target[2])
        shutil.rmtree(path, ignore_errors=True)
        if path.is_file():
            path.unlink()


def is_filled_in(path: Path) -> bool:
    """Whether a TOML file can be read."""
    try:
        tomllib.loads(path.read_text())
    except (OSError, tomllib.TOMLDecodeError):
        return False
    return True


# ---- Steps


class Clean:
    """A copy of the repository with an empty home, and the outcome of each step."""

    def __init__(self, folder: Path, data: Path | None, torch: str | None) -> None:
        self.folder, self.repository = folder, folder / "deepSTRF"
        self.make = ["make", f"PYTHON={sys.executable}", *([f"TORCH={torch}"] if torch else [])]
        self.bin = self.repository / ".venv" / ("Scripts" if os.name == "nt" else "bin")
        self.failed: dict[str, str] = {}
        self.skipped: dict[str, str] = {}
        self.variables = clean_variables(os.environ, folder, data)
        for name in ("home", "cache", "temporary"):
            (folder / name).mkdir()
        copy_tracked(ROOT, self.repository)

    def run(self, name: str, command: list[str | Path] | str, cwd: Path | None = None) -> str:
        """Run a step, print its minutes, keep the output of a failure."""
        started = time.perf_counter()
        words = ["bash", "-c", command] if isinstance(command, str) else list(map(str, command))
        path = f"{self.bin}{os.pathsep}{self.variables.get('PATH', '')}"
        try:
            done = subprocess.run(
                words, cwd=cwd or self.repository, env=self.variables | {"PATH": path}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=LIMIT_S, check=False,
            )  # fmt: skip
            output, failed = done.stdout, done.returncode != 0
        except subprocess.TimeoutExpired:
            output, failed = f"no end after {LIMIT_S} s", True
        if failed:
            self.failed[name] = output
        minutes = (time.perf_counter() - started) / 60
        print(f"{minutes:6.2f} min  {'FAILED' if failed else 'ok    '}  {name}", flush=True)
        return output

    def restore_runs(self, folder: Path) -> None:
        """Put the imagined runs back: an example before may have fitted or explained one anew."""
        for run in (self.folder / "imagined" / "runs").iterdir():
            shutil.rmtree(folder / "runs" / run.name, ignore_errors=True)
            shutil.copytree(run, folder / "runs" / run.name)

    def run_examples(self, source: str, commands: list[str], has_ns1: bool) -> None:
        """Examples of one page, in a folder with the files that pages imagine."""
        folder = self.folder / "examples" / re.sub(r"\W+", "-", source)
        shutil.copytree(self.folder / "imagined", folder)
        for command in commands:
            reason = reason_to_skip(command, has_ns1, folder)
            if reason:
                self.skipped[f"{source}: {command}"] = reason
                continue
            for file in (self.folder / "imagined").glob("*.toml"):
                if not is_filled_in(folder / file.name):  # a template for its user
                    shutil.copy(file, folder)
            clear_target(command, folder)
            if not re.search(r"^deepstrf (fit|import|sweep|search|bench) ", command):
                self.restore_runs(folder)
            self.run(f"{source}: {command}", command, folder)


def clean_variables(variables: Mapping[str, str], folder: Path, data: Path | None) -> dict[str, str]:
    """The environment with empty folders, and without what points into other ones; pip keeps its settings."""
    dropped = re.compile(
        r"PYTHON.*|VIRTUAL_ENV|DEEPSTRF_.*|MPLCONFIGDIR|XDG_.*|MAKE.*|MFLAGS|SOURCE_DATE_EPOCH"
    )
    kept = {key: value for key, value in variables.items() if not dropped.fullmatch(key)}
    settings = Path(variables.get("HOME", "")) / ".config" / "pip" / "pip.conf"
    if settings.is_file():
        kept.setdefault("PIP_CONFIG_FILE", str(settings))  # a mirror: without it nothing may be found
    home, cache, temporary = (str(folder / name) for name in ("home", "cache", "temporary"))
    kept |= {"HOME": home, "USERPROFILE": home, "XDG_CACHE_HOME": cache, "LOCALAPPDATA": cache}
    kept |= {"TMPDIR": temporary, "TEMP": temporary, "TMP": temporary, "MPLBACKEND": "Agg", "COLUMNS": "200"}
    return kept | ({"DEEPSTRF_DATA_DIR": str(data.resolve())} if data else {})


def copy_tracked(source: Path, target: Path) -> None:
    """Copy the files that git tracks, as they are in the working tree."""
    listed = subprocess.run(["git", "-C", str(source), "ls-files", "-z"], capture_output=True, check=True)
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name)


def subcommands(help_text: str) -> Iterator[str]:
    """Names in the panel of commands of ``deepstrf --help``."""
    panel = help_text.partition(" Commands ")[2]
    yield from re.findall(r"^\W*([a-z]+)\s{2,}\S", panel, flags=re.MULTILINE)


def prove(clean: Clean, has_ns1: bool, full: bool) -> None:
    clean.run("make demo", [*clean.make, "demo"])
    if clean.failed:
        return  # without an environment nothing else can run
    clean.run("tools of the tests", [*clean.make, ".venv/.dev"])
    texts = {"deepstrf --help": clean.run("deepstrf --help", "deepstrf --help")}
    for name in subcommands(texts["deepstrf --help"]):
        texts[f"deepstrf {name} --help"] = clean.run(f"deepstrf {name} --help", f"deepstrf {name} --help")
    (clean.folder / "imagined").mkdir()
    clean.run("files for the examples", [clean.bin / "python", "-c", IMAGINED], clean.folder / "imagined")
    pages = [clean.repository / "README.md", *sorted((clean.repository / "docs").glob("*.md"))]
    examples = {page.name: examples_of(page.read_text(encoding="utf-8")) for page in pages}
    examples |= {name: examples_of_help(text) for name, text in texts.items()}
    for source, commands in examples.items():
        if commands:
            clean.run_examples(source, commands, has_ns1)
    clean.run("code of README and pages", [clean.bin / "python", "-m", "pytest", "-q", *DOCS_TESTS])
    if full:
        clean.run("make test", [*clean.make, "test"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder that holds NS1/: what needs it runs too")
    parser.add_argument("--full", action="store_true", help="also make test")
    parser.add_argument("--torch", help="requirement of torch, as TORCH= of make")
    options = parser.parse_args()
    has_ns1 = bool(options.data) and (options.data / "NS1").is_dir()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        clean = Clean(Path(folder).resolve(), options.data, options.torch)
        prove(clean, has_ns1, options.full)
    for name, reason in clean.skipped.items():
        print(f"left out  {name}  ({reason})")
    for name, output in clean.failed.items():
        print(f"\nFAILED  {name}\n" + "\n".join(output.splitlines()[-40:]))
    minutes = (time.perf_counter() - started) / 60
    print(f"\n{len(clean.failed)} failed, {len(clean.skipped)} left out, {minutes:.1f} minutes")
    return bool(clean.failed)


if __name__ == "__main__":
    sys.exit(main())
