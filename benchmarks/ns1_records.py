"""Records on NS1, one line per arm: `python benchmarks/ns1_records.py [NAME ...] [--protocol five-fold ...] [--jobs 2]`.

Names are arms or groups of `ns1_arms.py` (default: all), protocols are those of `ns1_protocols.py` (default: 14/3/3).
Early stopping looks at validation clips; test clips are scored once per seed and choose nothing. Each fit has a folder
under `runs/records`, so that an interrupted run goes on; scores and protocol cards go to `benchmarks/results/ARM.json`,
tables to `benchmarks/RESULTS.md` and `docs/benchmarks.md` (`--page` only writes these).

`python benchmarks/ns1_records.py --try NAME "KEY=VALUE ..."` tries a configuration on the five folds over clips 0-16
and adds its validation scores to `benchmarks/results/tried.jsonl`; no score of a test clip is read. Choices are fields
of `ExperimentConfig` (`model=gatednet epochs=60 model_options.n_cores=4`), or a TOML file; `arm=leaf` starts from an
arm, `recommended=true` from the recommended choices of the model.

Needs NS1: set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import functools
import json
import shlex
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from deepSTRF.datasets.audio import NS1Dataset
from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.experiments.build import load_dataset
from deepSTRF.experiments.config import parse_options, parse_seeds
from deepSTRF.experiments.run import split_of
from ns1_arms import GROUPS, Arm, all_arms
from ns1_protocols import CHOICE_FOLDS, PROTOCOLS, ClipScores, averaged, choice_splits, published_units
from ns1_tables import write_pages
from results_page import machine

RESULTS = Path(__file__).with_name("results")
TRIED = RESULTS / "tried.jsonl"
RUNS = Path("runs") / "records"
#: The protocol of the published scores.
DEFAULT_PROTOCOL = "14/3/3"


# ---- One fit


@dataclass(frozen=True)
class Task:
    """One fit: an arm, a protocol, the number of its split, a seed."""

    arm: str
    protocol: str
    fold: int
    seed: int

    def config(self) -> ExperimentConfig:
        choices: dict[str, Any] = {"split": PROTOCOLS[self.protocol][self.fold], "seeds": (self.seed,)}
        if self.teachers():
            choices["teachers"] = ",".join(task.folder().as_posix() for task in self.teachers())
        return all_arms()[self.arm].config(**choices)

    def teachers(self) -> list[Task]:
        """Fits that come before."""
        name = all_arms()[self.arm].taught_by
        return [dataclasses.replace(self, arm=name, seed=seed) for seed in range(5)] if name else []

    def folder(self) -> Path:
        return RUNS / self.arm / f"{self.protocol.replace('/', '-')}-{self.fold}-{folder_name(self.config())}"


def folder_name(config: ExperimentConfig) -> str:
    """A name that differs where any choice does, also how long to fit."""
    return f"{Path(config.default_folder()).name}-{config.epochs}-{config.patience}"


def fit(task: Task) -> dict[str, Any]:
    """Fit, or read the fit that is there; predict the test clips."""
    torch.set_num_threads(1)
    config = task.config()
    for teacher in task.teachers():
        run_experiment(teacher.config(), teacher.folder(), progress=False)
    run = run_experiment(config, task.folder(), progress=False)
    dataset = load_dataset(config)
    split = split_of(config, dataset)
    rates = run.load_model(task.seed).predict(dataset, clips=list(split.test))
    return {
        "task": task,
        "predictions": dict(zip(split.test, rates, strict=True)),
        "validation": float(np.nanmean(run.scores.values["validation"]["cc_norm"])),
        "seconds": float(run.facts["seconds"]),
        "parameters": int(run.facts["n_parameters"]),
        "hash": split.hash,
        "card": run.protocol,
        "command": config.command(),
    }


def run_tasks(tasks: Sequence[Task], jobs: int) -> Iterator[dict[str, Any]]:
    """Results in the order in which fits end; each process has one thread."""
    if jobs == 1:
        return map(fit, tasks)
    return iter(Parallel(n_jobs=jobs, return_as="generator_unordered")(delayed(fit)(task) for task in tasks))


# ---- The record of an arm under a protocol


@functools.cache
def scored_clips(clips: tuple[int, ...]) -> ClipScores:
    return ClipScores(recording(), clips)


@functools.cache
def recording() -> NS1Dataset:
    """Its responses are the same with every stimulus."""
    return NS1Dataset()


def record(name: str, protocol: str, fits: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Scores of an arm from its fits."""
    seeds = sorted({one["task"].seed for one in fits})
    by_seed: dict[int, dict[int, torch.Tensor]] = {seed: {} for seed in seeds}
    for one in fits:
        by_seed[one["task"].seed] |= one["predictions"]
    predictions = [by_seed[seed] for seed in seeds]
    clips = tuple(sorted(predictions[0]))
    scores, units = scored_clips(clips), published_units(recording().nrn_meta)
    first = min(fits, key=lambda one: (one["task"].fold, one["task"].seed))
    found: dict[str, Any] = {
        "command": f"python benchmarks/ns1_records.py {name} --protocol {protocol} --seeds {','.join(map(str, seeds))}",
        "seeds": seeds,
        "score": dataclasses.asdict(scores.score(predictions)),
        "published units": dataclasses.asdict(scores.score(predictions, units)),
        "validation": [
            float(np.mean([one["validation"] for one in fits if one["task"].seed == seed])) for seed in seeds
        ],
        "published form": [mean(scores.values(one, clips, "published")["cc_norm"]) for one in predictions],
        "cc": [mean(scores.values(one, clips)["cc"]) for one in predictions],
        "parameters": first["parameters"],
        "seconds": float(np.mean([one["seconds"] for one in fits])),
        "splits": [[PROTOCOLS[protocol][fold], digest] for fold, digest in sorted(hashes(fits).items())],
        "first fit": first["command"],
        "card": first["card"],
        "machine": machine(),
    }
    if len(seeds) > 1:
        found["averaged"] = dataclasses.asdict(scores.score([averaged(predictions)]))
        found["averaged, published units"] = dataclasses.asdict(scores.score([averaged(predictions)], units))
    if len(PROTOCOLS[protocol]) > 1:
        folds = [
            tuple(clip for one in fits if one["task"].fold == fold for clip in one["predictions"])
            for fold in sorted(hashes(fits))
        ]
        found["mean over folds"] = [
            float(np.mean([mean(scores.values(one, sorted(set(part)))["cc_norm"]) for part in folds]))
            for one in predictions
        ]
    return rounded(found)


def mean(values: np.ndarray) -> float:
    return float(np.nanmean(values))


def hashes(fits: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    return {one["task"].fold: one["hash"] for one in fits}


def rounded(value: Any) -> Any:
    """Numbers to four decimals, so that files differ only where scores do."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) else value


def make_records(names: Sequence[str], protocols: Sequence[str], seeds: Sequence[int], jobs: int) -> None:
    """Fit, score and write; an arm is written when its last fit ends."""
    arms = {name: all_arms()[name] for name in names}
    tasks = [
        Task(name, protocol, fold, seed)
        for name, arm in arms.items()
        for protocol in protocols
        for fold in range(len(PROTOCOLS[protocol]))
        for seed in (seeds or arm_seeds(arm, protocol))
    ]
    tasks.sort(
        key=lambda task: -seconds_before(task.arm)
    )  # long ones first, so that all processes end together
    waiting = {(task.arm, task.protocol): 0 for task in tasks}
    for task in tasks:
        waiting[task.arm, task.protocol] += 1
    fits: dict[tuple[str, str], list[dict[str, Any]]] = {key: [] for key in waiting}
    started = time.monotonic()
    for number, one in enumerate(run_tasks(tasks, jobs), 1):
        key = one["task"].arm, one["task"].protocol
        fits[key].append(one)
        if len(fits[key]) < waiting[key]:
            continue
        found = record(*key, fits.pop(key))
        write_record(*key, found)
        print(
            f"{key[0]}, {key[1]}: {np.mean(found['score']['per_seed']):.4f} "
            f"({number} of {len(tasks)} fits, {(time.monotonic() - started) / 60:.1f} min)",
            flush=True,
        )


def arm_seeds(arm: Arm, protocol: str) -> tuple[int, ...]:
    return arm.seeds if len(PROTOCOLS[protocol]) == 1 else arm.fold_seeds


def result_of(name: str) -> dict[str, Any]:
    path = RESULTS / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"arm": name, "protocols": {}}


def seconds_before(name: str) -> float:
    """Seconds of a fit when it was last made; a new arm comes first."""
    known = [one["seconds"] for one in result_of(name)["protocols"].values() if one.get("seconds")]
    return max(known, default=float("inf"))


def write_record(name: str, protocol: str, found: Mapping[str, Any]) -> None:
    result = result_of(name)
    result["protocols"][protocol] = found
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


# ---- Tries: validation scores of a configuration


def read_choices(texts: list[str]) -> ExperimentConfig:
    """Configuration of a try, `BASE` with changes.

    Texts are `key=value` words, `table_options.key=value` for single options, `arm=NAME` to start from an arm, or
    the name of a TOML file.
    """
    words = [word for text in texts for word in shlex.split(text)]
    if len(words) == 1 and words[0].endswith(".toml"):
        return ExperimentConfig.from_toml(words[0], dataset="ns1")
    arm, changes = Arm(), {}
    for word in words:
        key, _, text = word.partition("=")
        table, _, option = key.partition(".")
        value = parse_options([f"{option or table}={text}"], "a choice")[option or table]
        if key == "arm":
            arm = all_arms()[value]
        elif key == "recommended":
            arm = dataclasses.replace(arm, recommended=value)
        elif option:
            changes[table] = {**changes.get(table, arm.changes.get(table, {})), option: value}
        else:
            changes[key] = value
    return arm.config(**changes)


def fit_choice(config: ExperimentConfig, folder: Path) -> dict[str, Any]:
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
    plain = Arm().config()
    tried |= {
        key: mine for key, (_, mine) in config.differences(plain).items() if key not in ("split", "seeds")
    }
    folder = Path("runs") / "tries" / folder_name(config)
    configs = [dataclasses.replace(config, split=split) for split in choice_splits()[:n_folds]]
    found = Parallel(n_jobs=jobs)(
        delayed(fit_choice)(one, folder / f"fold-{number}") for number, one in enumerate(configs)
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


# ---- Command line


def choose(names: Sequence[str]) -> list[str]:
    """The arms meant by names of arms and groups; all when there is none."""
    arms, chosen = all_arms(), {}
    for name in names or list(GROUPS):
        if name not in GROUPS and name not in arms:
            raise ValueError(f"unknown arm {name!r}; groups: {', '.join(GROUPS)}; arms: {', '.join(arms)}")
        chosen |= GROUPS[name].arms if name in GROUPS else {name: arms[name]}
    return list(chosen)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="arms or groups (default: all)")
    parser.add_argument(
        "--protocol", nargs="+", choices=list(PROTOCOLS), default=[DEFAULT_PROTOCOL], help="default: 14/3/3"
    )
    parser.add_argument(
        "--seeds", type=parse_seeds, metavar="SEEDS", help="0, 0,1,2 or 0-4; else those of the arm"
    )
    parser.add_argument("--jobs", type=int, default=1, help="fits at a time, one thread each (default: 1)")
    parser.add_argument("--page", action="store_true", help="only write the pages from stored results")
    parser.add_argument(
        "--try",
        dest="tried",
        nargs="+",
        metavar="CHOICE",
        help="a name, then choices: validation scores only",
    )
    parser.add_argument(
        "--folds", type=int, default=len(CHOICE_FOLDS), help="of --try: only the first so many"
    )
    arguments = parser.parse_args()
    try:
        if arguments.tried:
            config = read_choices(arguments.tried[1:])
            config = dataclasses.replace(config, seeds=arguments.seeds or (0,))
        chosen = choose(arguments.names)
    except (ValueError, TypeError, KeyError) as error:
        parser.error(str(error))
    if arguments.tried:
        for line in try_configuration(arguments.tried[0], config, arguments.jobs, arguments.folds):
            print(line)
        return 0
    if not arguments.page:
        make_records(chosen, arguments.protocol, arguments.seeds or (), arguments.jobs)
    write_pages(result_of)
    return 0


if __name__ == "__main__":
    sys.exit(main())
