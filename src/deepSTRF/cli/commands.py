"""The work of each command: a few calls of the library, and what is printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.table import Table
from rich.text import Text

from deepSTRF._files import check_target, write_atomically
from deepSTRF._text import printable
from deepSTRF._validation import check_choice
from deepSTRF.cli.console import stdout_console
from deepSTRF.cli.errors import REFUSALS, UsageProblem, say, usage
from deepSTRF.experiments.build import check_choices, load_dataset
from deepSTRF.experiments.config import FLAGS, ExperimentConfig, parse_options, parse_seeds, values_in
from deepSTRF.experiments.run import ALL, TEST, evaluate_run, run_experiment
from deepSTRF.experiments.run_folder import MAIN_SCORE, START_OF_CSV, Run, ScoreRow
from deepSTRF.metrics.scores import metric_named, metric_order
from deepSTRF.report import explain_run, write_report
from deepSTRF.report.explain.run import choose_neurons
from deepSTRF.report.explanation import Explanation
from deepSTRF.report.gather import START_OF_PAGE, gather_parts
from deepSTRF.report.rendering import number

__all__ = [
    "evaluate_and_print",
    "explain_and_print",
    "fit_and_report",
    "print_run",
    "print_scores",
    "read_config",
    "write_and_print",
]

# ---- ``deepstrf fit``


def fit_and_report(
    config_file: Path | None,
    given: Mapping[str, Any],
    *,
    recommended: bool,
    overwrite: bool,
    download: bool,
    quiet: bool,
) -> None:
    """Run the experiment that file and flags describe; print its scores and the path of its report."""
    config = read_config(config_file, given, recommended=recommended)
    with usage():
        run = run_experiment(
            config,
            overwrite=overwrite,
            download=download,
            progress=False if quiet else "auto",
            log=None if quiet else lambda sentence: say(sentence, err=True),
        )
    print_run(run, write_report(run))


def read_config(
    config_file: Path | None, given: Mapping[str, Any], *, recommended: bool = False
) -> ExperimentConfig:
    """Return the configuration; a flag wins over the file, an option over the same option of the file.

    ``given`` maps fields to what the command line hands over: options as a list of ``KEY=VALUE``, seeds as
    text, None for a flag that was not given. ``recommended``: what the model recommends comes in place of the
    defaults.
    """
    with usage():
        in_file = {} if config_file is None else values_in(config_file)
        base = ExperimentConfig(**in_file)
        changes = {name: value for name, value in given.items() if value is not None}
        if "seeds" in changes:
            changes["seeds"] = parse_seeds(changes["seeds"])
        for name in ("dataset", "model", "wav2spec"):
            field = f"{name}_options"
            another = changes.get(name, getattr(base, name)) != getattr(base, name)
            kept = {} if another else getattr(base, field)  # another dataset or model has other options
            changes[field] = {**kept, **parse_options(changes.get(field, ()), FLAGS[field])}
        if recommended:
            config = ExperimentConfig.recommended(**{"model": base.model, **in_file, **changes})
        else:
            config = base.with_changes(**changes)
        check_choices(config)
    return config


# ---- ``deepstrf evaluate``


def evaluate_and_print(
    folder: Path,
    dataset: str | None,
    option_texts: Sequence[str],
    clips: str | None,
    seed: int | None,
    csv: Path | None,
    *,
    download: bool,
) -> None:
    """Score the model of a run and print the table."""
    if csv is not None and csv.is_dir():
        raise UsageProblem(f"--csv {csv} is a folder; name a file in it: --csv {csv / 'scores.csv'}")
    if dataset is not None and clips not in (None, TEST, ALL):
        raise UsageProblem(
            f"--clips {clips} is a part of the run's own recording, and of another one (--dataset) all clips "
            "are scored: leave one of the two out"
        )
    with usage(*REFUSALS, OSError):
        if csv is not None:
            check_target(csv, START_OF_CSV)
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
        scores = evaluate_run(
            run if dataset is not None else run.with_config(changed),
            other,
            clips=clips,
            seed=seed,
            download=download,
            log=lambda note: say(f"Note: {note}", err=True),
        )
    print_scores(scores.summary(), scores.seeds)
    if csv is not None:
        write_atomically(csv, scores.to_csv().encode())
        stdout_console().print(f"\nScores per neuron  {csv.resolve()}", soft_wrap=True)


# ---- ``deepstrf explain`` and ``deepstrf report``

#: Files of an explanation, in the order in which they are listed.
CONTENTS = {
    "tuning.csv": "tuning of every neuron",
    "nonlinearity.csv": "how the filters of the chosen neurons change",
    "probes.csv": "their responses to probe sounds, summarised",
    "dstrf.gif": "movie of their dynamic STRFs",
    "fields.npz": "receptive fields of every neuron",
    "confidence.npz": "confidence bands of the chosen neurons",
    "modulation.npz": "modulation transfer functions",
    "dstrf.npz": "dynamic STRFs, the sound, responses and predictions",
    "probes.npz": "responses to probe sounds",
    "*.wav": "receptive fields as sounds",
}


def explain_and_print(
    folder: Path,
    neurons: str | None,
    seed: int | None,
    unit: str | None,
    *,
    overwrite: bool,
    download: bool,
    quiet: bool,
) -> None:
    """Explain the model of a run, write its report again, and list its files."""
    named = None if neurons is None else [word.strip() for word in neurons.split(",") if word.strip()]
    with usage():
        check_choice("--unit", unit, (None, "sd", "raw"))
        run = Run.load(folder)
        choose_neurons(run, named)
        if seed is not None:
            run.check_seed(seed)
    with usage(FileExistsError):
        found = explain_run(
            run,
            named,
            seed=seed,
            unit=unit,
            overwrite=overwrite,
            download=download,
            progress=False if quiet else "auto",
        )
    if not quiet:
        say("Writing the report", err=True)
    _print_explanation(found, write_report(run))


def _print_explanation(found: Explanation, report: Path) -> None:
    console = stdout_console()
    names = ", ".join(printable(name) for name in found.names)
    console.print(Text.assemble(("\nExplained", "bold"), f" {names}\n"), soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    for pattern, meaning in CONTENTS.items():
        files = sorted(found.folder.glob(pattern))
        if files:
            name = pattern if len(files) > 1 else files[0].name
            table.add_row(f"  {name}", Text(meaning, "dim"))
    console.print(table)
    for note in found.facts.get("notes", ()):
        say(f"\nNote: {note}")
    for part, reason in found.skipped:
        say(f"\nSkipped {part}: {reason}")
    console.print(f"\nFolder  {found.folder}", soft_wrap=True)
    console.print(f"Report  {report.resolve()}", soft_wrap=True)


def write_and_print(folder: Path, out: Path | None) -> None:
    """Write the report of a run and print its scores."""
    if out is not None and out.is_dir():
        raise UsageProblem(f"--out {out} is a folder; name a file in it: --out {out / 'report.html'}")
    with usage(*REFUSALS, OSError):
        if out is not None:
            check_target(out, START_OF_PAGE)
    with usage():
        run = Run.load(folder)
    print_run(run, write_report(run, out))


# ---- Scores and protocol of a run on a terminal


def print_scores(rows: Iterable[ScoreRow], seeds: Sequence[int]) -> None:
    """Print the score table, and the main score of each seed when there are several."""
    rows = list(rows)
    shown = [row for row in rows if metric_named(row.metric).in_summary]
    shown.sort(key=lambda row: metric_order(row.metric))
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    table.add_column("", no_wrap=True)
    for name in ("mean", "± sd", "median", "neurons", "no score"):
        table.add_column(name, justify="right", no_wrap=True)
    for split in dict.fromkeys(row.split for row in rows):
        table.add_row(Text(printable(split), "bold"))
        for row in (row for row in shown if row.split == split):
            metric = metric_named(row.metric)
            cells = [number(value, metric.decimals) for value in (row.mean, row.sd, row.median)]
            style = "bold" if row.metric == MAIN_SCORE else None
            table.add_row(f"  {metric.label}", *cells, str(row.n), str(row.n_nan), style=style)
    console = stdout_console()
    console.print(table)
    if len(seeds) > 1:
        for row in (row for row in shown if row.metric == MAIN_SCORE):
            spread = f"mean {number(mean(row.per_seed))} ± {number(stdev(row.per_seed))} over seeds"
            console.print(f"\n{row.split}, {metric_named(MAIN_SCORE).label}: {spread}")
            pairs = zip(seeds, row.per_seed, strict=True)
            words = [word for seed, v in pairs for word in ((f"  seed {seed}", "dim"), f" {number(v)}")]
            console.print(Text.assemble(*words))


def print_run(run: Run, report: Path | None) -> None:
    """Print scores, protocol, notes and where things lie."""
    parts = gather_parts(run)
    console = stdout_console()
    console.print(f"\n{printable(parts.title)}", style="bold")
    console.print(f"{printable(parts.subtitle)}\n", style="dim")
    print_scores(parts.score_rows, parts.seeds)
    if parts.protocol:
        console.print("\nProtocol", style="bold")
        grid = Table.grid(padding=(0, 2))
        grid.add_column(style="dim", no_wrap=True)
        grid.add_column()
        for label, value in parts.protocol:
            grid.add_row(f"  {label}", value)
        console.print(grid)
    for level, text in parts.notes:
        colour = "yellow" if level == "warning" else "dim"
        console.print(Text.assemble((f"\n{printable(level.capitalize())}:", colour), f" {printable(text)}"))
    console.print(f"\nRun folder  {run.path}", soft_wrap=True)
    if report is not None:
        console.print(f"Report      {report.resolve()}", soft_wrap=True)
