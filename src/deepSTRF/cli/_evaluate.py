"""``deepstrf evaluate``: score a fitted model again."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deepSTRF.cli._errors import UsageProblem
from deepSTRF.cli._tables import print_scores, stdout_console
from deepSTRF.training.building import check_choices, load_dataset
from deepSTRF.training.experiment import evaluate_run
from deepSTRF.training.experiment_config import parse_options
from deepSTRF.training.files import write_atomically
from deepSTRF.training.run_folder import Run

__all__ = ["evaluate_and_print"]


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
        When a name or option is illegal.
    """
    run = Run.load(folder)
    try:
        options = parse_options(option_texts)
        changed = run.config.with_changes(
            dataset=dataset,
            dataset_options={**({} if dataset else run.config.dataset_options), **options},
        )
        check_choices(changed)
    except (ValueError, TypeError) as error:
        raise UsageProblem(str(error)) from error
    other = None
    if dataset is not None:
        other = load_dataset(changed, download=download)
        clips = "all"
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
