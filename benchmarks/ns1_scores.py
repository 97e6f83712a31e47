"""Scores on NS1 over five seeds, one line per arm: `python benchmarks/ns1_scores.py [ARM ...] [--seeds 0 1 2 3 4]`.

Clips are split 14/3/3 by index, as in the published scores. Early stopping looks at the three validation clips; the
three test clips are scored once per seed and choose nothing. Run folders go to `runs/scores-<arm>` (they resume when
interrupted), the table and the protocol cards to `benchmarks/RESULTS.md`. Needs NS1: set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path

import numpy as np

from deepSTRF.training.experiment import ExperimentConfig, run_experiment
from results_page import machine, table, write_section

BASE = ExperimentConfig(
    dataset="ns1",
    split="14/3/3",
    model="linear",
    epochs=100,
    patience=30,
    learning_rate=1e-3,
    weight_decay=0.0,
)
#: Arm name: (what changes against BASE, published score of one seed, the score this project asks for).
ARMS: dict[str, tuple[dict[str, object], str, float]] = {
    "spectrogram": ({}, "0.548-0.552 (authors' own file)", 0.54),
    "spectrogram-standardized": ({"standardize": True}, "", 0.545),
    "mel": ({"wav2spec": "mel"}, "0.573", 0.565),
}
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
    sd = per_seed.std(ddof=1) if per_seed.size > 1 else float("nan")
    return f"{per_seed.mean():.3f} ± {sd:.3f}"


def run_arm(arm: str, seeds: tuple[int, ...]) -> dict[str, object]:
    """Fit and score one arm; returns its line and its protocol card."""
    changes, published, asked = ARMS[arm]
    config = dataclasses.replace(BASE, seeds=seeds, **changes)
    run = run_experiment(
        config, Path("runs") / f"scores-{arm}", overwrite=False, say=lambda text: print(f"  {text}")
    )
    test, validation = run.scores.values["test"], run.scores.values["validation"]
    return {
        "arm": arm,
        "test cc_norm": spread(test["cc_norm"]),
        "published form": spread(test["cc_norm_published"]),
        "test cc": spread(test["cc"]),
        "validation cc_norm": spread(validation["cc_norm"]),
        "asked": f">= {asked}",
        "published": published,
        "parameters": f"{run.facts['n_parameters']:,}",
        "per_seed": [round(float(v), 4) for v in np.nanmean(test["cc_norm"], axis=1)],
        "n_nan": int(np.isnan(test["cc_norm"]).any(axis=0).sum()),
        "protocol": run.protocol,
        "machine": machine(),
    }


def write_page() -> None:
    """Render the section from the stored lines of every arm."""
    found = [
        json.loads((RESULTS / f"{arm}.json").read_text())
        for arm in ARMS
        if (RESULTS / f"{arm}.json").exists()
    ]
    body = [
        "`DEEPSTRF_DATA_DIR=... python benchmarks/ns1_scores.py`\n",
        "Mean over 119 neurons, mean ± sd over seeds. *cc_norm* is centred on the concatenated clips; the *published form*",
        "mixes two centrings and stands beside it so that older numbers can be compared ([metrics](../docs/metrics.md)).\n",
        table(COLUMNS, [[str(line[column]) for column in COLUMNS] for line in found]),
    ]
    for line in found:
        card = table(["protocol", ""], [[label, str(value)] for label, value in line["protocol"]])
        seeds = ", ".join(f"{value:.4f}" for value in line["per_seed"])
        body.append(
            f"\n<details><summary>{line['arm']}: protocol card</summary>\n\nPer seed: {seeds}. Neurons without a score: "
            f"{line['n_nan']}. {line['machine']}\n\n{card}\n\n</details>"
        )
    write_section("ns1-scores", "Scores on NS1", "\n".join(body))


def main() -> int:
    """Run the chosen arms and rewrite the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "arms", nargs="*", metavar="ARM", help=f"which arms (default: all): {', '.join(ARMS)}"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.arms) - set(ARMS))
    if unknown:
        parser.error(f"unknown arm {unknown[0]!r}; arms: {', '.join(ARMS)}")
    RESULTS.mkdir(exist_ok=True)
    for arm in arguments.arms or list(ARMS):
        print(arm)
        line = run_arm(arm, tuple(arguments.seeds))
        (RESULTS / f"{arm}.json").write_text(json.dumps(line, indent=1) + "\n", encoding="utf-8")
        print(f"  test cc_norm {line['test cc_norm']}, asked {line['asked']}")
    write_page()
    return 0


if __name__ == "__main__":
    sys.exit(main())
