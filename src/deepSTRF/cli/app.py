"""The commands; each one's work is in a file of its own, imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from deepSTRF import __version__
from deepSTRF.cli.flags import (
    BatchSize,
    Calibrate,
    Clips,
    ConfigFile,
    CsvFile,
    DatasetName,
    DatasetOption,
    Debug,
    Device,
    Download,
    Epochs,
    FrontEnd,
    FrontEndOption,
    HtmlFile,
    LearningRate,
    Loss,
    ModelName,
    ModelOption,
    Neurons,
    OtherDataset,
    Out,
    Overwrite,
    OverwriteExplanation,
    Patience,
    Quiet,
    RunFolder,
    Seed,
    Seeds,
    Split,
    Standardize,
    Start,
    WarmupMs,
    WeightDecay,
)
from deepSTRF.cli.tables import readable

__all__ = ["app"]

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

    Try it, nothing needed:  [cyan]deepstrf fit[/]
    A public recording:      [cyan]deepstrf fit --dataset ns1[/]
    From the raw waveform:   [cyan]deepstrf fit --dataset ns1 --wav2spec mel[/]
    Your own recording:      [cyan]deepstrf fit --dataset mine.npz[/]   (ds.save("mine.npz") in Python)

    Each fit writes a run folder with its scores, its model and a report to open in a browser.
    """


@app.command()
@readable
def datasets(debug: Debug = False) -> None:
    """List the recordings there are, and their options."""
    from deepSTRF.cli.commands import list_datasets

    list_datasets()


@app.command()
@readable
def models(debug: Debug = False) -> None:
    """List the models and waveform front-ends there are, and their options."""
    from deepSTRF.cli.commands import list_models

    list_models()


@app.command()
@readable
def fit(
    config: ConfigFile = None,
    dataset: DatasetName = None,
    dataset_option: DatasetOption = None,
    split: Split = None,
    download: Download = True,
    model: ModelName = None,
    model_option: ModelOption = None,
    wav2spec: FrontEnd = None,
    wav2spec_option: FrontEndOption = None,
    standardize: Standardize = None,
    loss: Loss = None,
    epochs: Epochs = None,
    patience: Patience = None,
    lr: LearningRate = None,
    weight_decay: WeightDecay = None,
    batch_size: BatchSize = None,
    seeds: Seeds = None,
    warmup_ms: WarmupMs = None,
    start: Start = None,
    calibrate: Calibrate = None,
    device: Device = None,
    out: Out = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    debug: Debug = False,
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

    given = {
        "dataset": dataset,
        "split": split,
        "model": model,
        "wav2spec": wav2spec,
        "standardize": standardize,
        "loss": loss,
        "epochs": epochs,
        "patience": patience,
        "learning_rate": lr,
        "weight_decay": weight_decay,
        "batch_size": batch_size,
        "warmup_ms": warmup_ms,
        "start": start,
        "calibrate": calibrate,
        "device": device,
        "out": out,
    }
    options = {"dataset": dataset_option, "model": model_option, "wav2spec": wav2spec_option}
    fit_and_report(config, given, options, seeds, overwrite=overwrite, download=download, quiet=quiet)


@app.command()
@readable
def evaluate(
    run: RunFolder,
    dataset: OtherDataset = None,
    dataset_option: DatasetOption = None,
    clips: Clips = "test",
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
    overwrite: OverwriteExplanation = False,
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

    explain_and_print(run, neurons, seed, overwrite=overwrite, download=download, quiet=quiet)
