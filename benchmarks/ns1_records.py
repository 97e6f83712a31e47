"""Records on NS1: `python benchmarks/ns1_records.py --try NAME "KEY=VALUE ..."` tries a configuration.

A try is fitted on the five folds over clips 0-16 (`ns1_protocols.CHOICE_FOLDS`), and its validation scores are added
to `benchmarks/results/tried.jsonl`; no score of a test clip is read. Choices are fields of `ExperimentConfig`
(`model=gatednet epochs=60 model_options.n_cores=4`), or a TOML file; `arm=leaf` starts from an arm of `ns1_arms.py`.

Needs NS1: set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.experiments.config import parse_options, parse_seeds
from ns1_arms import BASE, GROUPS
from ns1_protocols import CHOICE_FOLDS, choice_splits

RESULTS = Path(__file__).with_name("results")
TRIED = RESULTS / "tried.jsonl"


# ---- Tries: validation scores of a configuration


def read_choices(texts: list[str]) -> ExperimentConfig:
    """Configuration of a try, `BASE` with changes.

    Texts are `key=value` words, `table_options.key=value` for single options, `arm=NAME` to start from an arm, or
    the name of a TOML file.
    """
    words = [word for text in texts for word in shlex.split(text)]
    if len(words) == 1 and words[0].endswith(".toml"):
        return ExperimentConfig.from_toml(words[0], dataset="ns1")
    changes: dict[str, Any] = {}
    for word in words:
        key, _, text = word.partition("=")
        table, _, option = key.partition(".")
        value = parse_options([f"{option or table}={text}"], "a choice")[option or table]
        if key == "arm":
            arms = {name: arm for group in GROUPS.values() for name, arm in group.arms.items()}
            changes = {**arms[value].changes, **changes}
        elif option:
            changes[table] = {**changes.get(table, {}), option: value}
        else:
            changes[key] = value
    return dataclasses.replace(BASE, **changes)


def fit_fold(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
    """Validation scores of one fold, per seed, of the best and the last epoch."""
    torch.set_num_threads(1)
    run = run_experiment(config, folder, progress=False)
    per_seed = np.nanmean(run.scores.values["validation"]["cc_norm"], axis=1)
    histories = [run.histories[seed] for seed in config.seeds if run.histories.get(seed)]
    return {
        "best": per_seed.tolist(),
        "last": [history[-1]["val_cc_norm"] for history in histories] or per_seed.tolist(),
        "seconds": float(run.facts["seconds"]),
        "parameters": int(run.facts["n_parameters"]),
    }


def record_try(name: str, seed: int, choices: dict[str, Any], folds: list[float], **facts: Any) -> str:
    """Add a line to the log of tries: mean over folds of the validation cc_norm, and each fold's."""
    line = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes"),
        "name": name,
        "seed": seed,
        "validation": round(float(np.mean(folds)), 4),
        "folds": [round(float(value), 4) for value in folds],
        **facts,
        "choices": choices,
    }
    text = json.dumps(line)
    RESULTS.mkdir(exist_ok=True)
    with TRIED.open("a", encoding="utf-8") as log:
        log.write(text + "\n")
    return text


def try_configuration(name: str, config: ExperimentConfig, jobs: int, n_folds: int) -> list[str]:
    """Fit a configuration on the folds of choice, log it, and return the lines of the log, one per seed."""
    tried = {"epochs": config.epochs, "patience": config.patience}
    tried |= {
        key: mine for key, (_, mine) in config.differences(BASE).items() if key not in ("split", "seeds")
    }
    folder = Path("runs") / "tries" / Path(config.default_folder()).name
    configs = [dataclasses.replace(config, split=split) for split in choice_splits()[:n_folds]]
    found = Parallel(n_jobs=jobs)(
        delayed(fit_fold)(one, folder / f"fold-{number}") for number, one in enumerate(configs)
    )
    lines = [
        record_try(
            name,
            seed,
            tried,
            [fold["best"][place] for fold in found],
            last_epoch=round(float(np.mean([fold["last"][place] for fold in found])), 4),
            parameters=found[0]["parameters"],
            seconds_per_fit=round(sum(fold["seconds"] for fold in found) / len(found) / len(config.seeds), 1),
        )
        for place, seed in enumerate(config.seeds)
    ]
    shutil.rmtree(folder)  # the code may change before this is tried again
    return lines


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--try", dest="tried", nargs="+", metavar="NAME", help="a name, then choices")
    parser.add_argument("--seeds", type=parse_seeds, default=(0,), metavar="SEEDS", help="0, 0,1,2 or 0-4")
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time, one thread each")
    parser.add_argument("--folds", type=int, default=len(CHOICE_FOLDS), help="only the first so many folds")
    arguments = parser.parse_args()
    if not arguments.tried:
        parser.error("nothing to do: give --try NAME CHOICES")
    name, *choices = arguments.tried
    try:
        config = dataclasses.replace(read_choices(choices), seeds=arguments.seeds)
    except (ValueError, TypeError, KeyError) as error:
        parser.error(str(error))
    for line in try_configuration(name, config, arguments.jobs, arguments.folds):
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
