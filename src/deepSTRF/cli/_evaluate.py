"""``deepstrf evaluate``: score a fitted model again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepSTRF.cli._errors import UsageProblem, usage
from deepSTRF.cli._tables import print_scores, stdout_console
from deepSTRF.training.building import check_choices, load_dataset
from deepSTRF.training.experiment import evaluate_run
from deepSTRF.training.experiment_config import parse_options
from deepSTRF.training.files import write_atomically
from deepSTRF.training.run_folder import Run

__all__ = ["evaluate_and_print"]

#: What the flag --clips is when nobody gave it, and what another recording is scored on.
DEFAULT_CLIPS, EVERY_CLIP = "test", "all"


def evaluate_and_print(
    folder: Path,
    dataset: str | None,
    option_texts: Sequence[str],
    clips: str,
    seed: int | None,
    csv: Path | None,
    *,
    download: bool,
) -> None:
    """Score the model of a run and print the table.

    Parameters
    ----------
    folder : Path
        Run folder.
    dataset : str or None
        Another recording (all its clips); None is the run's own.
    option_texts : sequence of str
        key=value options of the recording.
    clips : str
        "test", "validation", "train" or "all".
    seed : int or None
        Which seed's model.
    csv : Path or None
        Where to write the scores per neuron.
    download : bool
        Let the recording fetch missing files.

    Raises
    ------
    UsageProblem
        When a name or option is illegal, or the recording is none of the run's neurons.
    """
    if csv is not None and csv.is_dir():
        raise UsageProblem(f"--csv {csv} is a folder; name a file in it: --csv {csv / 'scores.csv'}")
    if dataset is not None and clips not in (DEFAULT_CLIPS, EVERY_CLIP):
        raise UsageProblem(
            f"--clips {clips} is a part of the run's own recording, and of another one (--dataset) all clips "
            "are scored: leave one of the two out"
        )
    with usage():
        run = Run.load(folder)
        options = parse_options(option_texts)
        changed = run.config.with_changes(
            dataset=dataset,
            dataset_options={**({} if dataset else run.config.dataset_options), **options},
        )
        check_choices(changed)
        other = None
        if dataset is not None:
            other = load_dataset(changed, download=download)
            clips = EVERY_CLIP
        scores = evaluate_run(
            run if dataset is not None else run.with_config(changed),
            other,
            clips=clips,
            seed=seed,
            download=download,
        )
    print_scores(scores.summary(), scores.seeds)
    if csv is not None:
        write_atomically(csv, scores.to_csv().encode())
        stdout_console().print(f"\nScores per neuron  {csv.resolve()}", soft_wrap=True)
