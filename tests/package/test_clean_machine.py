"""What `tools/clean_machine.py` finds to run, and what its environment leaves behind."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
spec = importlib.util.spec_from_file_location("clean_machine", ROOT / "tools" / "clean_machine.py")
clean_machine = importlib.util.module_from_spec(spec)
sys.modules["clean_machine"] = clean_machine
spec.loader.exec_module(clean_machine)

PAGE = """\
Text with `deepstrf fit` in it.

```bash
deepstrf import a.nwb --out mine.npz   # a remark
make demo
deepstrf import b.npz --dt-ms 1 \\
    -o zero=onset
```

    deepstrf fit                       # indented

```python
    deepstrf = "no command"
```
"""
HELP = """\
 Usage: deepstrf fit [OPTIONS]

 Simulated neurons:       deepstrf fit
 From files:              deepstrf import lab/ --out mine.npz   (spikes and sounds in files)
 Formats: deepstrf datasets. Then: deepstrf fit --dataset mine.npz.

   deepstrf fit --dataset ns1

\u2502 RUN   <path>  Run folder that deepstrf fit wrote. \u2502
\u256d\u2500 Commands \u2500\u2500\u2500\u2500\u256e
\u2502 datasets  List the recordings. \u2502
\u2502 fit       Fit a model.         \u2502
"""


def test_examples_of_a_page_are_its_shell_blocks_and_indented_lines():
    assert clean_machine.examples_of(PAGE) == [
        "deepstrf import a.nwb --out mine.npz",
        "deepstrf import b.npz --dt-ms 1 -o zero=onset",
        "deepstrf fit",
    ]


def test_examples_of_help_are_lines_of_their_own():
    assert clean_machine.examples_of_help(HELP) == [
        "deepstrf fit",
        "deepstrf import lab/ --out mine.npz",
        "deepstrf fit --dataset ns1",
    ]


def test_subcommands_are_those_of_the_panel():
    assert list(clean_machine.subcommands(HELP)) == ["datasets", "fit"]


@pytest.mark.parametrize(
    ("command", "has_ns1", "reason"),
    [
        ("deepstrf fit", False, None),
        ("deepstrf fit --dataset mine.npz", False, None),
        ("deepstrf fit --dataset ns1 --seeds 0-4", False, "needs the recording ns1"),
        ("deepstrf fit --dataset ns1 --seeds 0-4", True, None),
        ("deepstrf fit --dataset crcns-aa1", True, "needs the recording crcns-aa1"),
        (
            "deepstrf evaluate runs/mel -o alignment=causal",
            False,
            "an option of the recording ns1, or of a run on it",
        ),
        (
            "deepstrf evaluate runs/mel -o alignment=causal",
            True,
            "an option of the recording ns1, or of a run on it",
        ),
        ("deepstrf fit --dataset ns1 -o alignment=causal", True, None),
        ("deepstrf import PATH --out mine.npz", False, "a placeholder"),
        ("deepstrf import there.nwb", False, None),
        ("deepstrf stream runs/mel --device default --neurons 3", False, "needs a microphone"),
        ("deepstrf stream runs/mel --list-devices", False, "needs a microphone"),
        ("deepstrf serve runs/mel --port 0", True, "serves until Ctrl-C"),
        ("deepstrf stream runs/mel --stdin --rate 16000 < song.raw", False, None),
        ("deepstrf fit --dataset <yours>", False, "a placeholder"),
        ("deepstrf import elsewhere.nwb", False, "needs elsewhere.nwb, which its page makes"),
    ],
)
def test_what_cannot_run_has_a_reason(command, has_ns1, reason, tmp_path):
    (tmp_path / "there.nwb").touch()
    assert clean_machine.reason_to_skip(command, has_ns1, tmp_path) == reason


def test_what_an_example_writes_is_not_there_before(tmp_path):
    (tmp_path / "mine.npz").touch()
    (tmp_path / "runs" / "mel").mkdir(parents=True)
    clean_machine.clear_target("deepstrf import a.nwb --out mine.npz --dry-run", tmp_path)
    clean_machine.clear_target("deepstrf evaluate runs/mel", tmp_path)
    assert (tmp_path / "mine.npz").exists()
    assert (tmp_path / "runs" / "mel").exists()
    clean_machine.clear_target("deepstrf import a.nwb --out mine.npz", tmp_path)
    clean_machine.clear_target("deepstrf fit --out runs/mel", tmp_path)
    assert [path.name for path in tmp_path.rglob("*")] == ["runs"]
    (tmp_path / "graphs").mkdir()
    clean_machine.clear_target("deepstrf export ns1/best", tmp_path)
    clean_machine.clear_target("deepstrf export ns1/best --format torch", tmp_path)
    assert (tmp_path / "graphs").exists()
    clean_machine.clear_target("deepstrf export runs/mel graphs --format torch", tmp_path)
    assert not (tmp_path / "graphs").exists()


def test_the_environment_is_empty_but_for_what_pip_needs(tmp_path):
    user = tmp_path / "user"
    (user / ".config" / "pip").mkdir(parents=True)
    (user / ".config" / "pip" / "pip.conf").touch()
    before = {
        "HOME": str(user),
        "PATH": "p",
        "PYTHONPATH": "src",
        "DEEPSTRF_DATA_DIR": "d",
        "VIRTUAL_ENV": "v",
    }
    after = clean_machine.clean_variables(before, tmp_path, None)
    assert after["PATH"] == "p"
    assert not {"PYTHONPATH", "DEEPSTRF_DATA_DIR", "VIRTUAL_ENV"} & after.keys()
    assert {Path(after[key]).parent for key in ("HOME", "XDG_CACHE_HOME", "TMPDIR")} == {tmp_path}
    assert after["PIP_CONFIG_FILE"] == str(user / ".config" / "pip" / "pip.conf")
    assert clean_machine.clean_variables(before, tmp_path, user)["DEEPSTRF_DATA_DIR"] == str(user.resolve())


def test_a_copy_holds_what_git_tracks(tmp_path):
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "part").mkdir(parents=True)
    for name in ("part/kept.py", "left.py"):
        (source / name).write_text("1\n")
    hidden = {key: value for key, value in os.environ.items() if not key.startswith("GIT_")}
    for words in (["init", "-q"], ["add", "part/kept.py"]):
        subprocess.run(["git", "-C", str(source), *words], check=True, env=hidden)
    (source / "part" / "kept.py").write_text("2\n")
    clean_machine.copy_tracked(source, target)
    assert [path.relative_to(target).as_posix() for path in target.rglob("*.py")] == ["part/kept.py"]
    assert (target / "part" / "kept.py").read_text() == "2\n"


def test_the_pages_of_this_checkout_have_examples():
    found = clean_machine.examples_of((ROOT / "docs" / "cli.md").read_text(encoding="utf-8"))
    assert "deepstrf fit" in found
    assert any(command.startswith("deepstrf import") for command in found)


def test_the_script_of_imagined_files_is_whole():
    compile(clean_machine.IMAGINED, "imagined", "exec")


def test_only_templates_that_nobody_filled_in_are_replaced(tmp_path):
    template, filled = tmp_path / "template.toml", tmp_path / "filled.toml"
    template.write_text("dt_ms = \n")
    filled.write_text("dt_ms = 5.0\n")
    assert [clean_machine.is_filled_in(path) for path in (template, filled, tmp_path / "none.toml")] == [
        False, True, False,
    ]  # fmt: skip
