"""``deepstrf datasets`` and ``deepstrf models`` print what is registered, without importing torch."""

from __future__ import annotations

import json
import pkgutil
import subprocess
import sys

import pytest

from deepSTRF.cli import listing, main
from deepSTRF.registry import DATASETS, MODELS

ALONE = """
import sys
from deepSTRF.cli import main
try:
    main([sys.argv[1]])
finally:
    sys.stderr.write(" ".join(sorted({"torch", "scipy", "matplotlib"} & set(sys.modules))))
"""


def printed(command: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command prints in a process in which the registries are read."""
    assert "torch" in sys.modules
    with pytest.raises(SystemExit) as end:
        main([command])
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", ["datasets", "models"])
def test_the_table_prints_what_the_registries_hold(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run([sys.executable, "-c", ALONE, command], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stderr == "", "heavy packages were imported"
    assert done.stdout == printed(command, capsys)


def test_the_table_is_in_step_with_the_registries() -> None:
    data = pkgutil.get_data("deepSTRF.cli", listing.TABLE)
    assert data is not None
    assert json.loads(data) == json.loads(json.dumps(listing.registered())), "run python tools/docs_tables.py"


def test_an_entry_of_the_user_is_listed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MODELS, "_entries", dict(MODELS._entries))

    @MODELS.register("mine-of-tests")
    class Mine:
        """A model of my own."""

        def __init__(self, depth: int = 3) -> None: ...

    text = printed("models", capsys)
    assert "mine-of-tests\n    A model of my own." in text
    assert "options: depth=3" in text


def test_another_file_in_the_package_sends_to_the_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torch")
    table = listing._found()
    assert table["datasets"].keys() == set(DATASETS)
    files = [*listing._files(), "models/audio/mine.py"]
    monkeypatch.setattr(listing, "_files", lambda: files)
    monkeypatch.setattr(listing, "registered", lambda: {"read": "anew"})
    assert listing._found() == {"read": "anew"}
