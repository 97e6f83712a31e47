"""The commands; each one's work is in a file of its own, imported when it runs."""

from __future__ import annotations

from typing import Annotated

import typer

from deepSTRF import __version__
from deepSTRF.cli import _flags as flags
from deepSTRF.cli._errors import readable

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
def datasets(debug: flags.Debug = False) -> None:
    """List the recordings there are, and their options."""
    from deepSTRF.cli._listing import list_datasets

    list_datasets()


@app.command()
@readable
def models(debug: flags.Debug = False) -> None:
    """List the models and waveform front-ends there are, and their options."""
    from deepSTRF.cli._listing import list_models

    list_models()


@app.command()
@readable
def fit(
    config: flags.ConfigFile = None,
    dataset: flags.DatasetName = None,
    dataset_option: flags.DatasetOption = None,
    split: flags.Split = None,
    download: flags.Download = True,
    model: flags.ModelName = None,
    model_option: flags.ModelOption = None,
    wav2spec: flags.FrontEnd = None,
    wav2spec_option: flags.FrontEndOption = None,
    standardize: flags.Standardize = None,
    loss: flags.Loss = None,
    epochs: flags.Epochs = None,
    patience: flags.Patience = None,
    lr: flags.LearningRate = None,
    weight_decay: flags.WeightDecay = None,
    batch_size: flags.BatchSize = None,
    seeds: flags.Seeds = None,
    warmup_ms: flags.WarmupMs = None,
    start: flags.Start = None,
    calibrate: flags.Calibrate = None,
    device: flags.Device = None,
    out: flags.Out = None,
    overwrite: flags.Overwrite = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
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
    from deepSTRF.cli._fit import fit_and_report

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
    run: flags.RunFolder,
    dataset: flags.OtherDataset = None,
    dataset_option: flags.DatasetOption = None,
    clips: flags.Clips = "test",
    download: flags.Download = True,
    seed: flags.Seed = None,
    csv: flags.CsvFile = None,
    debug: flags.Debug = False,
) -> None:
    """Score the model of a run again, on its own clips or on another recording.

    [bold]Examples[/]

      deepstrf evaluate runs/mel
      deepstrf evaluate runs/mel --clips train --csv train_scores.csv
      deepstrf evaluate runs/mel -o alignment=causal
    """
    from deepSTRF.cli._evaluate import evaluate_and_print

    evaluate_and_print(run, dataset, dataset_option or [], clips, seed, csv, download=download)


@app.command()
@readable
def report(run: flags.RunFolder, out: flags.HtmlFile = None, debug: flags.Debug = False) -> None:
    """Write the report of a run again, and print its scores; needs no recording."""
    from deepSTRF.cli._report import write_and_print

    write_and_print(run, out)


@app.command()
@readable
def explain(
    run: flags.RunFolder,
    neurons: flags.Neurons = None,
    seed: flags.Seed = None,
    overwrite: flags.OverwriteExplanation = False,
    download: flags.Download = True,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Explain the model of a run: tuning, dynamic STRFs, probe sounds; into RUN/explain and the report.

    [bold]Examples[/]

      deepstrf explain runs/mel
      deepstrf explain runs/mel --neurons 3,17,A1-5

    What does not apply to the model or the recording is skipped, with the reason.
    """
    from deepSTRF.cli._explain import explain_and_print

    explain_and_print(run, neurons, seed, overwrite=overwrite, download=download, quiet=quiet)
