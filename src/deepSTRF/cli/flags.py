"""The flags of every command, with their help; defaults are those of `ExperimentConfig` (a test compares)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__: list[str] = []

DATA, MODEL, TRAINING, RUN = "Data", "Model", "Training", "Run"


def _default(text: str) -> str:
    """The default as typer prints it; a flag not given is None, so that a config file can decide."""
    return f"  [dim]\\[default: {text}][/]"


Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=RUN)]
RunFolder = Annotated[
    Path, typer.Argument(metavar="RUN", help="Run folder that [cyan]deepstrf fit[/] wrote.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", "-c", metavar="FILE", help="TOML file with the choices; flags win over it."),
]

DatasetName = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        metavar="NAME|FILE",
        help=f"A name of [cyan]deepstrf datasets[/], or an .npz file.{_default('synthetic')}",
        rich_help_panel=DATA,
    ),
]
OtherDataset = Annotated[
    str | None,
    typer.Option(
        "--dataset",
        "-d",
        metavar="NAME|FILE",
        help=f"Another recording of the same neurons.{_default('the own one of the run')}",
        rich_help_panel=DATA,
    ),
]
DatasetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--dataset-option",
        "-o",
        metavar="KEY=VALUE",
        help="Option of the dataset, e.g. [cyan]alignment=causal[/]; repeat for more.",
        rich_help_panel=DATA,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        metavar="SPLIT",
        help="Clips to train/validate/test: [cyan]14/3/3[/], [cyan]random:0.7/0.15/0.15[/] or "
        f"[cyan]kfold:5:fold=0[/].{_default('of the recording, else random')}",
        rich_help_panel=DATA,
    ),
]
Clips = Annotated[
    str,
    typer.Option(
        metavar="WHICH", help="test, validation, train or all clips of the recording.", rich_help_panel=DATA
    ),
]
Download = Annotated[
    bool, typer.Option(help="Fetch missing files of a public recording.", rich_help_panel=DATA)
]

ModelName = Annotated[
    str | None,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help=f"A name of [cyan]deepstrf models[/].{_default('linear')}",
        rich_help_panel=MODEL,
    ),
]
ModelOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Option of the model, e.g. [cyan]norm=none[/]; repeat.",
        rich_help_panel=MODEL,
    ),
]
FrontEnd = Annotated[
    str | None,
    typer.Option(
        "--wav2spec",
        "-w",
        metavar="NAME",
        help="Fit from the waveform through this front-end, e.g. [cyan]mel[/].",
        rich_help_panel=MODEL,
    ),
]
FrontEndOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE", help="Option of the front-end; repeat for more.", rich_help_panel=MODEL
    ),
]
Standardize = Annotated[
    bool | None,
    typer.Option(
        "--standardize/--no-standardize",
        help=f"Standardise each frequency band on the training clips.{_default('no')}",
        rich_help_panel=MODEL,
    ),
]

Loss = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"mse, poisson, negative_binomial or gamma.{_default('mse')}",
        rich_help_panel=TRAINING,
    ),
]
Epochs = Annotated[
    int | None,
    typer.Option("--epochs", "-e", help=f"Most epochs.{_default('100')}", rich_help_panel=TRAINING),
]
Patience = Annotated[
    int | None,
    typer.Option(
        help=f"Stop after so many epochs without a better validation score.{_default('30')}",
        rich_help_panel=TRAINING,
    ),
]
LearningRate = Annotated[
    float | None,
    typer.Option("--lr", help=f"Learning rate of AdamW.{_default('0.001')}", rich_help_panel=TRAINING),
]
WeightDecay = Annotated[
    float | None, typer.Option(help=f"Weight decay.{_default('0.0')}", rich_help_panel=TRAINING)
]
BatchSize = Annotated[
    int | None, typer.Option(help=f"Clips per step.{_default('1')}", rich_help_panel=TRAINING)
]
Seeds = Annotated[
    str | None,
    typer.Option(
        "--seeds",
        "-s",
        metavar="SEEDS",
        help=f"One fit per seed: [cyan]0[/], [cyan]0,1,2[/] or [cyan]0-4[/].{_default('0')}",
        rich_help_panel=TRAINING,
    ),
]
WarmupMs = Annotated[
    float | None,
    typer.Option(
        help=f"Onset of each clip left out of loss and scores, in ms.{_default('0.0')}",
        rich_help_panel=TRAINING,
    ),
]
Start = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help=f"default, or ridge: start STRFs from a ridge estimate.{_default('default')}",
        rich_help_panel=TRAINING,
    ),
]
Calibrate = Annotated[
    bool | None,
    typer.Option(
        "--calibrate/--no-calibrate",
        help=f"Set output gain and offset of each neuron on the training clips.{_default('yes')}",
        rich_help_panel=TRAINING,
    ),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help=f"cpu, cuda, mps or auto.{_default('cpu')}", rich_help_panel=TRAINING),
]

Out = Annotated[
    str | None,
    typer.Option(
        "--out",
        metavar="FOLDER",
        help=f"Run folder.{_default('one under runs/ named after the choices')}",
        rich_help_panel=RUN,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace another run that lies there.", rich_help_panel=RUN)
]
OverwriteExplanation = Annotated[
    bool,
    typer.Option("--overwrite", help="Replace an explanation that lies there.", rich_help_panel=RUN),
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
CsvFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write the scores per neuron here.", rich_help_panel=RUN)
]
HtmlFile = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help=f"HTML file.{_default('report.html in the run folder')}"),
]
