"""Fit and write the checkpoints that ship with deepSTRF: `python benchmarks/pretrain.py [NAME ...]`.

Choices are those of the arms of `ns1_arms.py`, seed 0, split 14/3/3, all 119 neurons. Run folders go to `runs/pretrained-<name>` and are read when they are finished; checkpoints go to
`src/deepSTRF/pretrained/<recording>/<name>`. Needs NS1: set DEEPSTRF_DATA_DIR.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from deepSTRF.experiments import ExperimentConfig, run_experiment
from deepSTRF.models import NeuralModel
from ns1_arms import GROUPS

SHIPPED = Path(__file__).resolve().parent.parent / "src" / "deepSTRF" / "pretrained"
#: Together, in bytes: what everybody who installs the package gets.
MOST_BYTES = 1_000_000
SHOWN = ("cc_norm", "cc_norm_published", "cc", "fve")
CITATION = (
    "Recording: Harper, Schoppe, Willmore, Cui, Schnupp & King 2016, Network receptive field modeling reveals extensive "
    "integration and multi-feature selectivity in auditory cortical neurons, PLoS Comput. Biol. 12(11): e1005113, doi "
    "10.1371/journal.pcbi.1005113; data: osf.io/ayw2p."
)
LICENSE = (
    "BSD-3-Clause, as deepSTRF. The recording itself is not part of it: the files of osf.io/ayw2p that deepSTRF reads state "
    "no licence (unknown)"
)


def _arm(group: str, name: str) -> ExperimentConfig:
    return GROUPS[group].arms[name].config(seeds=(0,))


def _ridge() -> ExperimentConfig:
    """As the arm `ridge-40`, with 25 lags: 40 score 0.014 higher and would fill most of the space there is."""
    return _arm("models", "ridge-40").with_changes(model_options={"n_lags": 25})


#: Name: (what it is, the configuration of its fit).
MODELS: dict[str, tuple[str, Callable[[], ExperimentConfig]]] = {
    "ns1/best": ("GatedNet on the causal spectrogram", lambda: _arm("models", "gatednet")),
    "ns1/leaf-linear": (
        "Linear behind a learned LEAF front-end, from the waveform",
        lambda: _arm("front-ends", "leaf"),
    ),
    "ns1/ridge": ("Ridge STRFs of 125 ms on the spectrogram", _ridge),
}


def check_stimulus(model: NeuralModel) -> torch.Tensor:
    """A rising tone for a front-end, a rising band for a spectrogram; the tests have the same."""
    if hasattr(model.wav2spec, "audio_fs"):
        time = torch.arange(24_000, dtype=torch.float64) / model.wav2spec.audio_fs
        return (0.1 * torch.sin(2 * torch.pi * (1000.0 * time + 4000.0 * time**2))).float().view(1, 1, -1)
    bands = torch.arange(model.F, dtype=torch.float64).view(-1, 1)
    frames = torch.arange(100, dtype=torch.float64)
    return (3.0 * torch.exp(-(((bands - frames / 3.0) / 2.0) ** 2)) - 6.0).float().view(1, 1, model.F, -1)


def make(name: str) -> None:
    """Fit one model and write its checkpoint."""
    what, configured = MODELS[name]
    run = run_experiment(configured(), Path("runs") / f"pretrained-{name.replace('/', '-')}", log=print)
    rows = [vars(row) for row in run.scores.summary()]
    keys = ("split", "metric", "mean", "sd", "median", "n")
    shown = [{key: row[key] for key in keys} for row in rows if row["metric"] in SHOWN]
    score = next(row["mean"] for row in shown if row["split"] == "test" and row["metric"] == "cc_norm")
    model = run.load_model()
    with torch.no_grad():
        rates = model(check_stimulus(model))[0, :3, 0].mean(-1).tolist()
    metadata = {
        "summary": f"{what}; NS1, ferret auditory cortex, {len(run.scores.neurons)} neurons; mean test cc_norm {score:.3f}",
        "command": f"python benchmarks/pretrain.py {name}",
        "scores": shown,
        "protocol": run.protocol,
        "neurons": run.scores.neurons,
        "mean predictions of a rising tone, neurons 0-2": [float(f"{rate:.6g}") for rate in rates],
        "license": LICENSE,
        "citation": CITATION,
    }
    folder = model.save_pretrained(SHIPPED / name, metadata=metadata)
    card = (folder / "README.md").read_text(encoding="utf-8")
    card = card.replace(
        "from deepSTRF.models import NeuralModel", "from deepSTRF.models import load_pretrained"
    )
    card = card.replace(f'NeuralModel.from_pretrained("{folder.name}")', f'load_pretrained("{name}")')
    model.save_pretrained(folder, metadata=metadata, model_card=card)
    NeuralModel.from_pretrained(folder)
    print(f"{name}: test cc_norm {score:.4f}, {sum(p.stat().st_size for p in folder.iterdir()):,} bytes")


def main() -> int:
    """Make the chosen checkpoints; exit status 1 when all of them take too much."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"which (default: all): {', '.join(MODELS)}")
    names = parser.parse_args().names or list(MODELS)
    if unknown := [name for name in names if name not in MODELS]:
        parser.error(f"unknown {unknown[0]!r}; there are {', '.join(MODELS)}")
    for name in names:
        make(name)
    total = sum(path.stat().st_size for path in SHIPPED.rglob("*") if path.is_file())
    print(f"all: {total:,} bytes of at most {MOST_BYTES:,}")
    return int(total > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
