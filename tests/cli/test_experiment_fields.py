"""The table of fields: each is checked, saved, documented and a flag; a new one is one declaration."""

from __future__ import annotations

import pickle
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from deepSTRF.cli import main

# inner names: the table itself and the decorator that makes flags of it
from deepSTRF.cli.app import with_fields
from deepSTRF.experiments import ExperimentConfig
from deepSTRF.experiments.config import (  # inner: tested by itself
    FieldError,
    choice,
    choice_of,
    default_text,
    flag_of,
    flags_table,
    inline_toml,
    parse_options,
)

ROOT = Path(__file__).resolve().parents[2]
FIELDS = fields(ExperimentConfig)
IDS = [item.name for item in FIELDS]
#: A legal value other than the default, by field.
OTHER: dict[str, Any] = {
    "dataset": "ns1",
    "dataset_options": {"smooth": False, "top": None},
    "split": "14/3/3",
    "normalize_responses": "zscore",
    "model": "dnet",
    "model_options": {"kernel": {"rank": 2}},
    "wav2spec": "mel",
    "wav2spec_options": {"f_max": 1e4},
    "standardize": True,
    "loss": "poisson",
    "epochs": 3,
    "patience": 2,
    "learning_rate": 0.1,
    "weight_decay": 0.1,
    "schedule": "wsd",
    "grad_clip": 0.5,
    "weight_average": 0.99,
    "band_shift": 2,
    "teachers": "runs/a,ns1/best",
    "refit": True,
    "batch_size": 4,
    "seeds": (3, 5),
    "warmup_ms": 50.0,
    "start": "ridge",
    "calibrate": False,
    "device": "cuda:1",
    "out": "runs/x",
}


def changed(name: str) -> ExperimentConfig:
    also = {"wav2spec": "mel"} if name == "wav2spec_options" else {}
    return ExperimentConfig(**also, **{name: OTHER[name]})


@pytest.mark.parametrize("item", FIELDS, ids=IDS)
def test_a_field_survives_a_file(item):
    config = changed(item.name)
    assert getattr(config, item.name) != getattr(ExperimentConfig(), item.name)
    assert ExperimentConfig.from_toml_text(config.to_toml()) == config


@pytest.mark.parametrize("item", FIELDS, ids=IDS)
def test_a_field_is_checked_and_the_error_names_it_or_its_flag(item):
    wrong: Any = [1] if item.name.endswith("options") else {}
    with pytest.raises(FieldError, match=rf"^{item.name} must") as caught:
        ExperimentConfig(**{item.name: wrong})
    assert caught.value.command_text().startswith(f"{flag_of(item)} must")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


@pytest.mark.parametrize("item", FIELDS, ids=IDS)
def test_a_field_is_a_flag_with_help_and_repeats_by_the_command(item, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    lines = [line for line in capsys.readouterr().out.splitlines() if f"{flag_of(item)} " in f"{line} "]
    plain = re.sub(r"`", "", choice_of(item).help)
    (line,) = [line for line in lines if plain[:30] in line]
    assert not default_text(item) or f"[default: {default_text(item)}]" in line
    negated = flag_of(item).replace("--", "--no-")
    words = changed(item.name).command().split()
    assert item.name == "out" or flag_of(item) in words or negated in words


def test_the_page_and_the_docstring_list_every_field():
    page = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert flags_table() in page, "python tools/docs_tables.py writes it"
    for item in FIELDS:
        assert f"{item.name} : " in (ExperimentConfig.__doc__ or "")


def test_a_new_field_is_one_declaration():
    def percent(name: str, value: Any) -> Any:
        if not isinstance(value, int) or not 0 <= value <= 100:
            raise FieldError("{" + name + "} must be 0 to 100, got {0!r}", value)
        return value

    @dataclass(frozen=True, kw_only=True)
    class Wider(ExperimentConfig):
        drop_percent: int = choice(5, percent, "model", "Channels that are dropped.", metavar="PERCENT")

    assert "[model]\n" in Wider().to_toml()
    assert "drop_percent = 5" in Wider().to_toml()
    assert Wider.from_toml_text("[model]\ndrop_percent = 7\n").drop_percent == 7
    with pytest.raises(FieldError, match="drop_percent must be 0 to 100, got 101"):
        Wider(drop_percent=101)
    assert Wider(drop_percent=9).command() == "deepstrf fit --drop-percent 9"
    assert Wider(drop_percent=9).default_folder() != Wider().default_folder()
    assert "| `--drop-percent` | `[model]` `drop_percent` | 5 | Channels that are dropped. |" in flags_table(
        Wider
    )

    app, seen = typer.Typer(), {}

    @app.command()
    @with_fields(Wider)
    def fit(quiet: bool = False, **given: Any) -> None:
        seen.update(given)

    shown = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).output
    assert re.search(r"--drop-percent +PERCENT +Channels that are dropped\. +\[default: 5\]", shown)
    assert CliRunner().invoke(app, ["--drop-percent", "12"]).exit_code == 0
    assert (seen["drop_percent"], seen["epochs"]) == (12, None)


@pytest.mark.parametrize(
    "value", [{"rank": 2, "a b": [1, 2.5, {"c": True}]}, [], "x\n\"y'", 1e-5, -3, True, [[1], ["é"]]]
)
def test_option_values_survive_the_command_line(value):
    assert parse_options([f"key={inline_toml(value)}"]) == {"key": value}


def test_values_that_no_file_can_hold_are_refused():
    with pytest.raises(TypeError, match="an option must be a text, number"):
        ExperimentConfig(model_options={"kernel": object()}).to_toml()


def test_texts_may_hold_braces():
    error = FieldError("{model} {0!r} takes no {wav2spec:mel}, {1}", "{x}", "{loss}")
    assert str(error) == "model '{x}' takes no wav2spec='mel', {loss}"
    assert error.command_text() == "--model '{x}' takes no --wav2spec mel, {loss}"
