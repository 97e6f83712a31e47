"""The commands and their flags; the work of each is in `deepSTRF.cli.commands`, imported when it runs.

The flags of ``deepstrf fit`` are the fields of `ExperimentConfig`.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import Field, fields
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer

from deepSTRF import __version__
from deepSTRF.cli.errors import readable
from deepSTRF.experiments.config import ExperimentConfig, choice_of, default_text, flag_of

__all__ = ["app", "with_fields"]

DATA, RUN = "Data", "Run"
#: Panel of the help for each table of a TOML file.
PANELS = {"dataset": DATA, "model": "Model", "training": "Training", "": RUN}

# ---- Flags from the fields of an experiment


def with_fields(
    config: type[ExperimentConfig] = ExperimentConfig,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator that replaces ``**given`` of a command by one flag per field.

    A flag that is not given is None, so that a config file can decide.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        kinds = get_type_hints(config)
        flags = [
            inspect.Parameter(
                item.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=None,
                annotation=Annotated[_flag_type(kinds[item.name]) | None, _option(item)],
            )
            for item in fields(config)
        ]
        kept = [parameter for parameter in own if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
        ordered = [kept[0], *flags, *kept[1:]]
        keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in ordered]
        command.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in keyword_only}
        return command

    return decorate


def _flag_type(kind: Any) -> Any:
    """What the command line hands over: numbers and switches as they are, the rest as text."""
    if isinstance(kind, types.UnionType):  # of a type and None
        kind = next(one for one in get_args(kind) if one is not type(None))
    if get_origin(kind) is not None and issubclass(get_origin(kind), Mapping):
        return list[str]
    return kind if kind in (bool, int, float) else str


def _option(item: Field[Any]) -> Any:
    """The flag of a field, for typer."""
    declared, flag = choice_of(item), flag_of(item)
    names = [f"{flag}/{flag.replace('--', '--no-')}" if isinstance(item.default, bool) else flag]
    names += [declared.short] if declared.short else []
    default = default_text(item)
    return typer.Option(
        *names,
        metavar=declared.metavar,
        help=_styled(declared.help) + (_default(default) if default else ""),
        rich_help_panel=PANELS.get(declared.toml.partition(".")[0], RUN),
    )


def _styled(text: str) -> str:
    """Help with what stands in backticks in colour."""
    return re.sub(r"`([^`]+)`", r"[cyan]\1[/]", text)


def _default(text: str) -> str:
    """A default as typer prints it."""
    return f"  [dim]\\[default: {text}][/]"


# ---- Other flags


def _target(word: str) -> Path:
    """A folder or file to write; an empty word, as of a variable that is not set, would be this folder."""
    if not word:
        raise typer.BadParameter("'' names no folder and no file; this folder is '.'")
    return Path(word)


_FIELDS = {item.name: item for item in fields(ExperimentConfig)}

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=RUN)]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder that [cyan]deepstrf fit[/] wrote.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="TOML file with the choices; flags win over it."),
]
OtherDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        metavar="NAME|FILE",
        help=f"Another recording of the same neurons.{_default('that of the run')}",
        rich_help_panel=DATA,
    ),
]
DatasetOption = Annotated[list[str] | None, _option(_FIELDS["dataset_options"])]
Clips = Annotated[
    str | None,
    typer.Option(
        metavar="WHICH",
        help="test, validation, train or all clips of the recording; of another one all clips, also those "
        f"that took part in the fit.{_default('test, or new sounds of another recording')}",
        rich_help_panel=DATA,
    ),
]
Download = Annotated[
    bool, typer.Option(help="Fetch missing files of a public recording.", rich_help_panel=DATA)
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace what is in that folder.", rich_help_panel=RUN)
]
Recommended = Annotated[
    bool,
    typer.Option(
        "--recommended",
        help="Fit with the choices that the model recommends, where neither a flag nor the file gives one.",
        rich_help_panel=PANELS["training"],
    ),
]
Neurons = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help="Names or indices of the report's table, with commas: [cyan]3,17,A1-5[/]."
        f"{_default('the four with the best test score')}",
        rich_help_panel=RUN,
    ),
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, only the scores.", rich_help_panel=RUN)
]
Seed = Annotated[
    int | None,
    typer.Option(help=f"Which seed's model.{_default('the best on validation')}", rich_help_panel=RUN),
]
Unit = Annotated[
    str | None,
    typer.Option(
        metavar="sd|raw",
        help="Receptive fields per standard deviation of each band of the training sounds, or per unit of "
        f"the spectrogram.{_default('sd')}",
        rich_help_panel=RUN,
    ),
]
CsvFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the scores per neuron here.", rich_help_panel=RUN)
]
HtmlFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help=f"HTML file.{_default('report.html in the run folder')}"),
]

SweepFile = Annotated[Path, typer.Argument(metavar="FILE", help="TOML file of the sweep or search.")]
SweepFolder = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help=f"Folder of the fits.{_default('runs/NAME OF THE FILE')}",
        parser=_target,
        rich_help_panel=RUN,
    ),
]

Jobs = Annotated[
    int,
    typer.Option(
        "--jobs", "-j", metavar="N", help="Fits at a time; -1 is one per core.", rich_help_panel=RUN
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Run on the workers of this Dask scheduler: [cyan]tcp://host:8786[/].",
        rich_help_panel=RUN,
    ),
]
ShowTables = Annotated[
    bool, typer.Option("--list", help="Print the tables and their rows.", rich_help_panel=RUN)
]
RowFrontEnd = Annotated[
    str | None,
    typer.Option(
        "--wav2spec",
        "-w",
        metavar="NAME",
        help=f"Front-end of rows without one, for sounds.{_default('none')}",
        rich_help_panel=DATA,
    ),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Fit again what failed before.", rich_help_panel=RUN)
]

# ---- Flags of streams


def _fitted_model(graphs: bool = False) -> Any:
    """The argument that names a fitted model, for typer; where exported graphs will do, too."""
    named = "Run folder, checkpoint, folder of an export" if graphs else "Run folder, checkpoint"
    return typer.Argument(metavar="RUN", help=f"{named}, or a model that ships: [cyan]ns1/leaf-linear[/].")


HEARD, SHOWN = "What the model hears", "What is shown and written"


HeardFile = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="A sound file of any rate.", rich_help_panel=HEARD),
]
HeardDevice = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A microphone or other input: a part of its name, its number, or [cyan]default[/].",
        rich_help_panel=HEARD,
    ),
]
Stdin = Annotated[
    bool, typer.Option("--stdin", help="Raw samples from a pipe, little endian.", rich_help_panel=HEARD)
]
ListDevices = Annotated[
    bool, typer.Option("--list-devices", help="List the inputs, and stop.", rich_help_panel=HEARD)
]
Rate = Annotated[
    float | None,
    typer.Option(
        metavar="HZ",
        help=f"Rate of the raw samples, or to run the device at.{_default('of the model where it can')}",
        rich_help_panel=HEARD,
    ),
]
SampleFormat = Annotated[
    str | None,
    typer.Option(
        metavar="float32|int16", help=f"Of raw samples.{_default('float32')}", rich_help_panel=HEARD
    ),
]
Channels = Annotated[
    int | None,
    typer.Option(metavar="N", help=f"Channels of raw samples.{_default('1')}", rich_help_panel=HEARD),
]
Channel = Annotated[
    str | None,
    typer.Option(metavar="K|mean", help="Which of several channels, from 0.", rich_help_panel=HEARD),
]
Seconds = Annotated[
    float | None, typer.Option(metavar="S", help="End after so much sound.", rich_help_panel=HEARD)
]
ChunkMs = Annotated[
    float | None,
    typer.Option(
        metavar="MS",
        help=f"Sound that is computed at a time.{_default('10 of a device, else 100')}",
        rich_help_panel=HEARD,
    ),
]
QueueMs = Annotated[
    float | None,
    typer.Option(
        metavar="MS",
        help=f"Sound of a device that may wait for the model.{_default('1000')}",
        rich_help_panel=HEARD,
    ),
]
Overrun = Annotated[
    str | None,
    typer.Option(
        metavar="silence|stop",
        help="When more waits: drop it, with silence of that length in its place, or end."
        f"{_default('silence')}",
        rich_help_panel=HEARD,
    ),
]
RealTime = Annotated[
    bool, typer.Option("--real-time", help="Read a file at its own speed.", rich_help_panel=HEARD)
]
ShownNeurons = Annotated[
    str | None,
    typer.Option(
        metavar="NAMES",
        help=f"Names or indices, with commas: [cyan]3,17,A1-5[/].{_default('all')}",
        rich_help_panel=SHOWN,
    ),
]
RatesFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="Write rates as .csv or .npz.", rich_help_panel=SHOWN),
]
Rows = Annotated[
    bool,
    typer.Option("--rows", help="Print rates as CSV, also on a terminal.", rich_help_panel=SHOWN),
]
OnlySummary = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only the summary at the end.", rich_help_panel=SHOWN)
]

# ---- Commands

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deepSTRF {__version__}")
        raise typer.Exit


@app.callback()
def deepstrf(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Fit and explain models of auditory neurons: sound in, neural activity out.

    Simulated neurons:       [cyan]deepstrf fit[/]
    A public recording:      [cyan]deepstrf fit --dataset ns1[/]
    From the raw waveform:   [cyan]deepstrf fit --dataset ns1 --wav2spec mel[/]
    Your own recording:      [cyan]deepstrf import PATH --out mine.npz[/]   (spikes and sounds in files)
                             [cyan]deepstrf fit --dataset mine.npz --wav2spec mel[/]

    Each fit writes a run folder with its scores, its model and a report to open in a browser.
    """


@app.command()
@readable
def datasets(debug: Debug = False) -> None:
    """List the available recordings and their options."""
    from deepSTRF.cli.listing import list_datasets

    list_datasets()


@app.command(name="import")
@readable
def import_(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="File, folder or archive of a recording.")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="TARGET",
            help="What to write: [cyan]mine.npz[/], a folder of sounds and tables, or [cyan]mine.nwb[/].",
            parser=_target,
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--option",
            metavar="KEY=VALUE",
            help="Hint of the format or choice of cutting; repeat for more.",
        ),
    ] = None,
    dt_ms: Annotated[float | None, typer.Option(metavar="MS", help="Bin width in ms.")] = None,
    hints: Annotated[
        Path | None, typer.Option("--hints", metavar="FILE", help="TOML file of hints; -o wins over it.")
    ] = None,
    format_name: Annotated[
        str | None, typer.Option("--format", metavar="NAME", help="Format, where files may be of several.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and cut, print the report, and write nothing.")
    ] = False,
    template: Annotated[
        bool,
        typer.Option("--template", help="Print a TOML file of hints (with --out: write it), and stop."),
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what was written there.")] = False,
    debug: Debug = False,
) -> None:
    """Make a dataset of a recording in files, and print what was kept, skipped and found.

    [bold]Examples[/]

      deepstrf import session.nwb --dt-ms 5 --out mine.npz
      deepstrf import songs.zip --dt-ms 5 -o time_unit=ms --dry-run
      deepstrf import lab/ --template --out hints.toml
      deepstrf import lab/ --hints hints.toml --out mine.npz

    Formats and their hints: [cyan]deepstrf datasets[/].
    Then: [cyan]deepstrf fit --dataset mine.npz --wav2spec mel[/].
    """
    from deepSTRF.cli.imports import import_and_print, print_template

    if template:
        print_template(path, out, option or [], hints, format_name, overwrite=overwrite)
    else:
        import_and_print(
            path, out, option or [], hints, format_name, dt_ms, dry_run=dry_run, overwrite=overwrite
        )


@app.command()
@readable
def models(debug: Debug = False) -> None:
    """List the available models and waveform front-ends, and their options."""
    from deepSTRF.cli.listing import list_models

    list_models()


@app.command()
@readable
def info(debug: Debug = False) -> None:
    """Print versions, machine and folders: what a report of a problem needs to say."""
    from deepSTRF.cli.info import print_info

    print_info()


@app.command()
@readable
@with_fields()
def fit(
    config: ConfigFile = None,
    recommended: Recommended = False,
    download: Download = True,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
    **given: Any,
) -> None:
    """Fit a model to a recording, score it, and write a run folder with a report.

    [bold]Examples[/]

      deepstrf fit
      deepstrf fit --dataset ns1 --standardize --seeds 0-4
      deepstrf fit --dataset ns1 --wav2spec mel --epochs 50 --out runs/mel
      deepstrf fit --dataset ns1 --model ridge --model-option n_lags=40
      deepstrf fit --config experiment.toml --lr 3e-4

    The same command again reads a finished run, or goes on with an interrupted one.
    """
    from deepSTRF.cli.commands import fit_and_report

    fit_and_report(
        config, given, recommended=recommended, overwrite=overwrite, download=download, quiet=quiet
    )


@app.command()
@readable
def sweep(
    file: SweepFile,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    out: SweepFolder = None,
    retry_failed: RetryFailed = False,
    apart: Annotated[
        bool,
        typer.Option(
            "--apart",
            help="Train no seeds together: the last digits are those of deepstrf fit.",
            rich_help_panel=RUN,
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List the fits and what is there of them.", rich_help_panel=RUN)
    ] = False,
    download: Download = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit every combination of models, front-ends, seeds, folds and options that a file describes.

    [bold]Examples[/]

      deepstrf sweep sweep.toml --dry-run
      deepstrf sweep sweep.toml --jobs 2
      deepstrf sweep sweep.toml --scheduler tcp://node7:8786 --out /shared/runs/sweep

    The file holds choices as [cyan]deepstrf fit --config[/] reads them, and lists of values in its grid.
    The same command again reads what is finished and fits the rest; it also joins a sweep that runs.
    """
    from deepSTRF.cli.sweeps import sweep_and_print

    sweep_and_print(
        file,
        out,
        jobs,
        scheduler,
        retry_failed=retry_failed,
        together=not apart,
        dry_run=dry_run,
        download=download,
        quiet=quiet,
    )


@app.command()
@readable
def search(
    file: SweepFile,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials",
            "-n",
            metavar="N",
            help=f"Trials in all, also those of earlier calls.{_default('of the file, else 50')}",
            rich_help_panel=RUN,
        ),
    ] = None,
    out: SweepFolder = None,
    download: Download = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Search for choices with a high validation score, with pruning (Optuna; the extra hpo).

    [bold]Example[/]

      deepstrf search search.toml --trials 100

    The file holds choices as [cyan]deepstrf fit --config[/] reads them, and lists or ranges in search.space.
    The same command again goes on with the search; it also joins one that runs.
    """
    from deepSTRF.cli.sweeps import search_and_print

    search_and_print(file, out, trials, download=download, quiet=quiet)


@app.command()
@readable
def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN RUN ...", help="Run folders, or folders of sweeps, with all their models."
        ),
    ],
    score: Annotated[
        str, typer.Option(metavar="NAME", help="cc_norm, cc, fve or mse.", rich_help_panel=RUN)
    ] = "cc_norm",
    over: Annotated[
        str,
        typer.Option(
            metavar="clips|neurons", help="What the tests take for a random sample.", rich_help_panel=RUN
        ),
    ] = "clips",
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help=f"HTML file.{_default('comparison.html')}", rich_help_panel=RUN
        ),
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table of models here.", rich_help_panel=RUN)
    ] = None,
    json: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write models, pairs and protocols here.", rich_help_panel=RUN),
    ] = None,
    debug: Debug = False,
) -> None:
    """Compare fitted models on the same test clips: intervals, paired tests, one HTML page.

    [bold]Examples[/]

      deepstrf compare runs/mel runs/leaf
      deepstrf compare runs/sweep --score cc --csv models.csv

    Clips are matched by sound, neurons by name; seeds of a model count by the mean of their scores.
    The recording has to be there: predictions are made anew.
    """
    from deepSTRF.cli.comparisons import compare_and_print

    compare_and_print(runs, out, score, over, csv, json)


@app.command()
@readable
def bench(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="A recording: its name, or a file.")
    ] = "ns1",
    table: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="quick, models or front-ends; [cyan]--list[/] prints their rows.",
            rich_help_panel=RUN,
        ),
    ] = "models",
    rows: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help=f"Only these rows, with commas.{_default('all')}", rich_help_panel=RUN
        ),
    ] = None,
    seeds: Annotated[
        str, typer.Option(metavar="SEEDS", help="Seeds of every row: 0, 0,1,2 or 0-4.", rich_help_panel=RUN)
    ] = "0-2",
    split: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT",
            help="As of [cyan]deepstrf fit[/]; of [cyan]kfold:K[/] all folds; [cyan]default[/] is that of "
            f"the recording.{_default('kfold:5')}",
            rich_help_panel=DATA,
        ),
    ] = None,
    dataset_option: DatasetOption = None,
    wav2spec: RowFrontEnd = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            "--epochs",
            "-e",
            help=f"Epochs of every row.{_default('those of the row')}",
            rich_help_panel=PANELS["training"],
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FOLDER",
            help=f"Folder.{_default('runs/bench-DATASET-TABLE')}",
            parser=_target,
            rich_help_panel=RUN,
        ),
    ] = None,
    jobs: Jobs = 1,
    scheduler: Scheduler = None,
    retry_failed: RetryFailed = False,
    show: ShowTables = False,
    download: Download = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Fit a named table of models on a recording, and compare them.

    [bold]Examples[/]

      deepstrf bench synthetic --table quick --seeds 0
      deepstrf bench ns1 --jobs 2
      deepstrf bench --list

    Writes run folders, a table, comparison.html with protocols, intervals and the command of each row,
    and comparison.json. The same command again goes on where it was.
    """
    from deepSTRF.cli.comparisons import bench_and_print, list_tables

    if show:
        list_tables()
        return
    bench_and_print(
        dataset,
        table,
        rows,
        seeds,
        split,
        dataset_option or [],
        {"wav2spec": wav2spec, "epochs": epochs},
        out,
        jobs,
        scheduler,
        retry_failed=retry_failed,
        download=download,
        quiet=quiet,
    )


@app.command()
@readable
def evaluate(
    run: RunFolder,
    dataset: OtherDataset = None,
    dataset_option: DatasetOption = None,
    clips: Clips = None,
    download: Download = True,
    seed: Seed = None,
    csv: CsvFile = None,
    debug: Debug = False,
) -> None:
    """Score the model of a run again, on its own clips or on another recording.

    [bold]Examples[/]

      deepstrf evaluate runs/mel
      deepstrf evaluate runs/mel --clips train --csv train_scores.csv
      deepstrf evaluate runs/mel -o alignment=causal
    """
    from deepSTRF.cli.commands import evaluate_and_print

    evaluate_and_print(run, dataset, dataset_option or [], clips, seed, csv, download=download)


@app.command()
@readable
def report(run: RunFolder, out: HtmlFile = None, debug: Debug = False) -> None:
    """Write the report of a run again, and print its scores; needs no recording."""
    from deepSTRF.cli.commands import write_and_print

    write_and_print(run, out)


@app.command()
@readable
def explain(
    run: RunFolder,
    neurons: Neurons = None,
    seed: Seed = None,
    unit: Unit = None,
    overwrite: Overwrite = False,
    download: Download = True,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Explain the model of a run: tuning, dynamic STRFs, probe sounds; into RUN/explain and the report.

    [bold]Examples[/]

      deepstrf explain runs/mel
      deepstrf explain runs/mel --neurons 3,17,A1-5

    What does not apply to the model or the recording is skipped, with the reason.
    """
    from deepSTRF.cli.commands import explain_and_print

    explain_and_print(run, neurons, seed, unit, overwrite=overwrite, download=download, quiet=quiet)


@app.command()
@readable
def stream(
    run: Annotated[str | None, _fitted_model(graphs=True)] = None,
    wav: HeardFile = None,
    device: HeardDevice = None,
    stdin: Stdin = False,
    list_devices: ListDevices = False,
    rate: Rate = None,
    sample_format: SampleFormat = None,
    channels: Channels = None,
    channel: Channel = None,
    seconds: Seconds = None,
    chunk_ms: ChunkMs = None,
    queue_ms: QueueMs = None,
    overrun: Overrun = None,
    real_time: RealTime = False,
    neurons: ShownNeurons = None,
    out: RatesFile = None,
    rows: Rows = False,
    quiet: OnlySummary = False,
    seed: Seed = None,
    debug: Debug = False,
) -> None:
    """Let a fitted model hear a file, a microphone or a pipe; draw, print or write its rates.

    [bold]Examples[/]

      deepstrf stream ns1/leaf-linear --wav song.wav
      deepstrf stream runs/mel --device default --neurons 3,17,A1-5
      deepstrf stream runs/mel --wav song.wav --out rates.npz

    A terminal shows scrolling lines, a pipe gets rows of CSV. Ctrl-C ends with a summary of speed, latency
    and what was lost. The level of the sound is never changed. Devices need the extra live.
    """
    from deepSTRF.cli.streams import Request, print_devices, stream_and_print

    if list_devices:
        print_devices()
        return
    stream_and_print(
        Request(
            run, wav, device, stdin, rate, sample_format, channels, channel, neurons, seconds, chunk_ms,
            queue_ms, overrun, out, seed, real_time, rows, quiet,
        )
    )  # fmt: skip


@app.command()
@readable
def export(
    run: Annotated[str, _fitted_model()],
    path: Annotated[
        Path | None,
        typer.Argument(
            metavar="PATH",
            help=f"Folder to write.{_default('named after the model, here')}",
            parser=_target,
        ),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", metavar="onnx|torch", help="For ONNX Runtime, or for PyTorch.")
    ] = "onnx",
    graphs: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help=f"sequence: whole clips; step: one frame at a time.{_default('both')}"
        ),
    ] = None,
    precision: Annotated[
        str,
        typer.Option(metavar="float32|float16|int8", help="How ONNX files store weights; float32 computes."),
    ] = "float32",
    seed: Seed = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the files.")] = False,
    debug: Debug = False,
) -> None:
    """Write graphs of a fitted model for programs without deepSTRF, checked against the model.

    [bold]Examples[/]

      deepstrf export ns1/ridge
      deepstrf export runs/mel graphs --format torch

    The folder holds whole clips to rates (sequence), one frame with the state in and out (step), and
    metadata.json. ONNX needs the extra export.
    """
    from deepSTRF.cli.exports import export_and_print

    export_and_print(run, path, format, graphs, precision, seed, quiet=quiet)


@app.command()
@readable
def serve(
    run: Annotated[str, _fitted_model(graphs=True)],
    seed: Seed = None,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to listen on; another than this machine's own needs [cyan]--token[/].",
            rich_help_panel=RUN,
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", "-p", help="Port; 0 takes a free one.", rich_help_panel=RUN)
    ] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="DEEPSTRF_TOKEN",
            metavar="SECRET",
            help="Secret of at least 16 characters that clients must send.",
            rich_help_panel=RUN,
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Origin of web pages that may connect: [cyan]http://localhost:8000[/]; repeat for more.",
            rich_help_panel=RUN,
        ),
    ] = None,
    clients: Annotated[int, typer.Option(help="Streams at a time.", rich_help_panel=RUN)] = 128,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the address only.", rich_help_panel=RUN)
    ] = False,
    debug: Debug = False,
) -> None:
    """Serve a fitted model to other programs: sound in, rates out, over a websocket (the extra live).

    [bold]Examples[/]

      deepstrf serve ns1/leaf-linear
      deepstrf serve runs/mel --origin http://localhost:8000

    Every connection is a stream of its own. The protocol is on the page "Closed loop" of the documentation.
    """
    from deepSTRF.cli.serve import serve_and_print

    serve_and_print(run, seed, host, port, token, origin or [], clients, quiet=quiet)
