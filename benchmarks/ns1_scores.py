"""Scores on NS1, one line per arm: `python benchmarks/ns1_scores.py [ARM or GROUP ...] [--seeds 0 1 2 ...]`.

Clips are split 14/3/3 by index, as in the published scores. Early stopping looks at the three validation clips; the
three test clips are scored once per seed and choose nothing. What is fitted stands in `ns1_arms.py`. Run folders go to
`runs/scores-<arm>` (they resume when interrupted), the tables and protocol cards to `benchmarks/RESULTS.md`. Needs NS1:
set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from deepSTRF.experiments import run_experiment
from ns1_arms import BASE, GROUPS, Arm, Group
from results_page import machine, table, write_section

RESULTS = Path(__file__).with_name("results")
COLUMNS = [
    "arm",
    "test cc_norm",
    "published form",
    "test cc",
    "validation cc_norm",
    "asked",
    "published",
    "parameters",
]


def spread(values: np.ndarray) -> str:
    """Mean and standard deviation over seeds of the mean over neurons."""
    per_seed = np.nanmean(values, axis=1)
    if per_seed.size == 1:
        return f"{per_seed[0]:.3f}"
    return f"{per_seed.mean():.3f} ± {per_seed.std(ddof=1):.3f}"


def run_arm(name: str, arm: Arm, seeds: tuple[int, ...]) -> dict[str, object]:
    """Fit and score one arm; returns its line and its protocol card."""
    config = dataclasses.replace(BASE, seeds=seeds, **arm.changes)
    run = run_experiment(
        config, Path("runs") / f"scores-{name}", overwrite=False, log=lambda text: print(f"  {text}")
    )
    test, validation = run.scores.values["test"], run.scores.values["validation"]
    return {
        "arm": name,
        "test cc_norm": spread(test["cc_norm"]),
        "published form": spread(test["cc_norm_published"]),
        "test cc": spread(test["cc"]),
        "validation cc_norm": spread(validation["cc_norm"]),
        "parameters": f"{run.facts['n_parameters']:,}",
        "per_seed": [round(float(v), 4) for v in np.nanmean(test["cc_norm"], axis=1)],
        "n_nan": int(np.isnan(test["cc_norm"]).any(axis=0).sum()),
        "protocol": run.protocol,
        "machine": machine(),
    }


def write_page(name: str, group: Group, shown: set[str]) -> None:
    """Render the section of a group from the stored lines of its arms; a card already shown is not repeated."""
    found = {
        arm: json.loads((RESULTS / f"{arm}.json").read_text())
        for arm in group.arms
        if (RESULTS / f"{arm}.json").exists()
    }
    for arm, line in found.items():
        asked = group.arms[arm].asked
        line["asked"] = "" if asked is None else f">= {asked}"
        line["published"] = group.arms[arm].published
    columns = [column for column in COLUMNS if any(line.get(column) for line in found.values())]
    body = [
        f"`DEEPSTRF_DATA_DIR=... python benchmarks/ns1_scores.py {name}`\n",
        group.text + "\n",
        "Mean over 119 neurons, mean ± sd over seeds. *cc_norm* is centred on the concatenated clips; the *published form*",
        "mixes two centrings and stands beside it so that older numbers can be compared ([metrics](../docs/metrics.md)).\n",
        table(columns, [[str(line.get(column, "")) for column in columns] for line in found.values()]),
    ]
    for line in found.values():
        if line["arm"] in shown:
            continue
        shown.add(line["arm"])
        card = table(["protocol", ""], [[label, str(value)] for label, value in line["protocol"]])
        seeds = ", ".join(f"{value:.4f}" for value in line["per_seed"])
        body.append(
            f"\n<details><summary>{line['arm']}: protocol card</summary>\n\nPer seed: {seeds}. Neurons without a score: "
            f"{line['n_nan']}. {line['machine']}\n\n{card}\n\n</details>"
        )
    write_section(f"ns1-{name}", group.title, "\n".join(body))


def choose(names: list[str]) -> dict[str, Arm]:
    """The arms meant by names of arms and groups; all when there is none."""
    arms: dict[str, Arm] = {}
    for group in GROUPS.values():
        for name, arm in group.arms.items():
            arms.setdefault(name, arm)  # an arm that stands in two groups is the same fit
    if not names:
        return arms
    chosen: dict[str, Arm] = {}
    for name in names:
        if name in GROUPS:
            chosen.update({arm: arms[arm] for arm in GROUPS[name].arms})
        elif name in arms:
            chosen[name] = arms[name]
        else:
            raise ValueError(f"unknown arm {name!r}; groups: {', '.join(GROUPS)}; arms: {', '.join(arms)}")
    return chosen


def main() -> int:
    """Run the chosen arms and rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="arms or groups (default: all)")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of those of the arm")
    parser.add_argument("--page", action="store_true", help="only write the page from stored results")
    arguments = parser.parse_args()
    try:
        chosen = {} if arguments.page else choose(arguments.names)
    except ValueError as error:
        parser.error(str(error))
    RESULTS.mkdir(exist_ok=True)
    for name, arm in chosen.items():
        print(name)
        line = run_arm(name, arm, tuple(arguments.seeds or arm.seeds))
        (RESULTS / f"{name}.json").write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")
        print(f"  test cc_norm {line['test cc_norm']}, asked {arm.asked}")
    shown: set[str] = set()
    for name, group in GROUPS.items():
        write_page(name, group, shown)
    return 0


if __name__ == "__main__":
    sys.exit(main())
