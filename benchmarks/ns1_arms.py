"""What `ns1_scores.py` fits: every arm is `BASE` with a few changes, chosen on the three validation clips."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from deepSTRF.training.experiment import ExperimentConfig

BASE = ExperimentConfig(
    dataset="ns1",
    split="14/3/3",
    model="linear",
    epochs=100,
    patience=30,
    learning_rate=1e-3,
    weight_decay=0.0,
)


@dataclass(frozen=True)
class Arm:
    """One line of a table.

    Attributes
    ----------
    changes : dict
        Fields of `ExperimentConfig` that differ from `BASE`.
    asked : float or None
        The score this project asks for.
    published : str
        What was published, of one seed.
    seeds : tuple of int
        Fits.
    """

    changes: dict[str, Any] = field(default_factory=dict)
    asked: float | None = None
    published: str = ""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Group:
    """One section of the page: a title, what a reader should know, and arms by name."""

    title: str
    text: str
    arms: dict[str, Arm]


SINCNET = {
    "kernel_size": 753,
    "f_min": 500.0,
    "f_max": 22627.0,
    "init": "mel",
    "activation": "logabs",
    "envelope": True,
    "env_window_ms": 10.0,
}
LEAF = {"wav2spec": "leaf", "learning_rate": 2e-3}


#: Seeds of the arms that explain rather than claim.
FEW = (0, 1, 2)


def _leaf(**options: Any) -> Arm:
    return Arm({**LEAF, "wav2spec_options": options}, seeds=FEW)


GROUPS = {
    "front-ends": Group(
        "Scores on NS1: inputs and front-ends",
        "All arms are `Linear(34, 9, 119)`: one weight per band and frame, 45 ms of memory of its own.",
        {
            "spectrogram": Arm({}, 0.54, "0.548-0.552 (authors' own file)"),
            "spectrogram-standardized": Arm({"standardize": True}, 0.545),
            "mel": Arm({"wav2spec": "mel"}, 0.565, "0.573"),
            "gammatone-log": Arm({"wav2spec": "gammatone", "standardize": True}, 0.52, "0.46"),
            "gammatone-pcen": Arm(
                {"wav2spec": "gammatone", "wav2spec_options": {"compression": "pcen"}, "standardize": True},
                0.57,
                "0.55-0.57",
            ),
            "sincnet": Arm({"wav2spec": "sincnet", "wav2spec_options": SINCNET}, 0.55),
            "sincnet-hz": Arm(
                {"wav2spec": "sincnet", "wav2spec_options": {**SINCNET, "parameterization": "hz"}},
                None,
                "0.340",
            ),
            "leaf": Arm({**LEAF}, 0.73, "0.708"),
        },
    ),
    "leaf-ablation": Group(
        "What LEAF gains, part by part, on NS1",
        "Each arm takes one thing from LEAF, or gives one thing to mel. *fixed* means not learned: the part stays as it "
        "starts.",
        {
            "leaf": Arm({**LEAF}),
            "leaf-fixed-filters": _leaf(learn_filters=False),
            "leaf-fixed-pooling": _leaf(learn_pooling=False),
            "leaf-fixed-pcen": _leaf(learn_pcen=False),
            "leaf-only-pcen-learned": _leaf(learn_filters=False, learn_pooling=False),
            "leaf-nothing-learned": _leaf(learn_filters=False, learn_pooling=False, learn_pcen=False),
            "leaf-log": _leaf(compression="log"),
            "leaf-zero-start": _leaf(pcen_start="zero"),
            "mel-pcen": Arm(
                {
                    "wav2spec": "mel",
                    "wav2spec_options": {"compression": "none"},
                    "model_options": {"prefiltering": {"prefiltering": "pcen", "dt": 5.0}},
                    "learning_rate": 2e-3,
                },
                seeds=FEW,
            ),
            "mel-200ms": Arm({"wav2spec": "mel", "model_options": {"temporal_window_size": 40}}, seeds=FEW),
            "mel": Arm({"wav2spec": "mel"}),
        },
    ),
}
