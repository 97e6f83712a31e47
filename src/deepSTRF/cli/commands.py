"""``deepstrf report``: write the page of a run again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.padding import Padding
from rich.table import Table

from deepSTRF._files import write_atomically
from deepSTRF.cli.tables import UsageProblem, print_run, print_scores, stdout_console, usage
from deepSTRF.experiments.build import check_choices, load_dataset, option_names
from deepSTRF.experiments.config import ExperimentConfig, parse_options, parse_seeds
from deepSTRF.experiments.run import evaluate_run, run_experiment
from deepSTRF.experiments.run_folder import Run
from deepSTRF.registry import BACKBONES, DATASETS, KERNELS, MODELS, PREFILTERS, SOLVERS, WAV2SPEC, Registry
from deepSTRF.report import explain_run, write_report
from deepSTRF.report.explain import choose_neurons
from deepSTRF.report.explanation import Explanation

__all__ = [
    "evaluate_and_print",
    "explain_and_print",
    "fit_and_report",
    "list_datasets",
    "list_models",
    "one_line",
    "options_text",
    "read_config",
    "write_and_print",
]

# ------------------------------------------------------------------------------
# ``deepstrf datasets`` and ``deepstrf models``: what there is, from the registries and docstrings.


INDENT = 4


def list_datasets() -> None:
    """Print every registered dataset with its options."""
    console = stdout_console()
    _list(console, "Datasets", DATASETS)
    console.print("\nUse one:     deepstrf fit --dataset NAME -o KEY=VALUE")
    console.print('Your own:    save it with ds.save("mine.npz"), then deepstrf fit --dataset mine.npz')


def list_models() -> None:
    """Print every registered model, fit in closed form and part of a model with its options."""
    console = stdout_console()
    _list(console, "Models", MODELS)
    console.print()
    _list(console, "Fits in closed form (a name for --model)", SOLVERS)
    console.print()
    _list(console, "Front-ends (waveform to spectrogram)", WAV2SPEC)
    console.print()
    _list(console, "Prefilters (model option prefiltering)", PREFILTERS, ("n_frequency_bands",))
    console.print()
    _list(console, "Kernels of receptive fields (model option kernel)", KERNELS, ("F", "T", "C_in", "C_out"))
    console.print()
    _list(console, "Backbones (statenet option rnn_type)", BACKBONES, ("input_size", "hidden_size"))
    console.print("\nUse them:    deepstrf fit --model NAME --model-option KEY=VALUE --wav2spec NAME")


def one_line(cls: Callable[..., Any]) -> str:
    """Return the first sentence of a class's docstring.

    Examples
    --------
    >>> class Gain:
    ...     '''Multiply.
    ...
    ...     More.'''
    >>> one_line(Gain)
    'Multiply.'
    """
    paragraph = (inspect.getdoc(cls) or "").split("\n\n")[0]
    return " ".join(paragraph.split())


def options_text(cls: Callable[..., Any], hidden: Sequence[str] = ()) -> str:
    """Return the options of a class as ``name=default`` words, without the hidden ones.

    Examples
    --------
    >>> from deepSTRF.models.audio import Linear
    >>> options_text(Linear).split(", ")[0]
    'temporal_window_size=9'
    """
    parameters = inspect.signature(cls).parameters
    words = []
    for name in (name for name in option_names(cls) if name not in hidden):
        default = parameters[name].default
        words.append(name if default is inspect.Parameter.empty else f"{name}={_plain(default)}")
    return ", ".join(words)


def _plain(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return "none" if value is None else str(value)


def _list(console: Console, title: str, registry: Registry[Any], hidden: Sequence[str] = ()) -> None:
    console.print(f"[bold]{title}[/]")
    for name, cls in registry.items():
        console.print(f"\n  [bold cyan]{name}[/]")
        console.print(Padding(one_line(cls), (0, 0, 0, INDENT)), markup=False)
        console.print(Padding(f"[dim]options: {options_text(cls, hidden)}[/]", (0, 0, 0, INDENT)))


# ------------------------------------------------------------------------------
# ``deepstrf fit``: from flags and file to a configuration, then the run, its report and its scores.


def fit_and_report(
    config_file: Path | None,
    given: Mapping[str, Any],
    options: Mapping[str, Sequence[str] | None],
    seeds: str | None,
    *,
    overwrite: bool,
    download: bool,
    quiet: bool,
) -> None:
    """Run the experiment that file and flags describe; print its scores and where its report lies."""
    config = read_config(config_file, given, options, seeds)
    with usage():
        run = run_experiment(
            config,
            overwrite=overwrite,
            download=download,
            progress=False if quiet else "auto",
            say=None if quiet else _say,
        )
    print_run(run, write_report(run))


def read_config(
    config_file: Path | None,
    given: Mapping[str, Any],
    options: Mapping[str, Sequence[str] | None],
    seeds: str | None,
) -> ExperimentConfig:
    """Return the configuration; a flag wins over the file, an option over the same option of the file.

    Examples
    --------
    >>> read_config(None, {"epochs": 3}, {"dataset": ["n_clips=5"]}, "0-1").seeds
    (0, 1)
    """
    with usage():
        base = ExperimentConfig() if config_file is None else ExperimentConfig.from_toml(config_file)
        changes = dict(given)
        if seeds is not None:
            changes["seeds"] = parse_seeds(seeds)
        for name, pairs in options.items():
            field = f"{name}_options"
            another = given.get(name) not in (None, getattr(base, name))
            kept = {} if another else getattr(base, field)  # another dataset or model has other options
            changes[field] = {**kept, **parse_options(pairs or (), f"--{name}-option")}
        config = base.with_changes(**changes)
        check_choices(config)
    return config


def _say(sentence: str) -> None:
    typer.echo(sentence, err=True)


# ------------------------------------------------------------------------------
# ``deepstrf evaluate``: score a fitted model again.


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
    """Score the model of a run and print the table."""
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


# ------------------------------------------------------------------------------
# ``deepstrf explain``: what the neurons of a run listen to.


#: What the files are, in the order in which a reader wants them.
CONTENTS = {
    "tuning.csv": "tuning of every neuron",
    "nonlinearity.csv": "how the filters of the chosen neurons change",
    "probes.csv": "their answers to probe sounds, summarised",
    "dstrf.gif": "movie of their dynamic STRFs",
    "fields.npz": "receptive fields of every neuron",
    "confidence.npz": "confidence bands of the chosen neurons",
    "modulation.npz": "modulation transfer functions",
    "dstrf.npz": "dynamic STRFs, the sound, responses and predictions",
    "probes.npz": "responses to probe sounds",
    "*.wav": "receptive fields as sounds",
}


def explain_and_print(
    folder: Path, neurons: str | None, seed: int | None, *, overwrite: bool, download: bool, quiet: bool
) -> None:
    """Explain the model of a run, write its report again, and print what there is."""
    named = None if neurons is None else [word.strip() for word in neurons.split(",") if word.strip()]
    with usage():
        run = Run.load(folder)
        choose_neurons(run, named)
        if seed is not None:
            run.check_seed(seed)
    with usage(FileExistsError):
        found = explain_run(
            run,
            named,
            seed=seed,
            overwrite=overwrite,
            download=download,
            progress=False if quiet else "auto",
        )
    if not quiet:
        typer.echo("Writing the report", err=True)
    _print(found, write_report(run))


def _print(found: Explanation, report: Path) -> None:
    console = stdout_console()
    console.print(f"\n[bold]Explained[/] {', '.join(found.names)}\n", soft_wrap=True)
    table = Table.grid(padding=(0, 2))
    for pattern, meaning in CONTENTS.items():
        files = sorted(found.folder.glob(pattern))
        if files:
            name = pattern if len(files) > 1 else files[0].name
            table.add_row(f"  {name}", f"[dim]{meaning}[/]")
    console.print(table)
    for part, reason in found.skipped:
        typer.echo(f"\nSkipped {part}: {reason}")
    console.print(f"\nFolder  {found.folder}", soft_wrap=True)
    console.print(f"Report  {report.resolve()}", soft_wrap=True)


# ------------------------------------------------------------------------------


def write_and_print(folder: Path, out: Path | None) -> None:
    """Write the report of a run and print its scores."""
    if out is not None and out.is_dir():
        raise UsageProblem(f"--out {out} is a folder; name a file in it: --out {out / 'report.html'}")
    with usage():
        run = Run.load(folder)
    print_run(run, write_report(run, out))
