"""Fits in closed form inside an experiment: one call where other models need epochs.

A new one is a file with a function ``solver(train, validation, *, wav2spec, standardize, warmup_ms,
**options)`` of `deepSTRF.baselines` that is registered in `deepSTRF.registry.SOLVERS` and returns a
`ClosedFormFit`. Its name then stands in a model's place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from deepSTRF._validation import check_device
from deepSTRF.datasets import NeuralDataset
from deepSTRF.experiments.config import ExperimentConfig, check_options, option_names, parameters_of
from deepSTRF.registry import DATASETS, MODELS, SOLVERS, WAV2SPEC
from deepSTRF.training.seeds import seeded

__all__ = [
    "ClosedFormFit",
    "build_front_end",
    "build_model",
    "check_buildable",
    "check_choices",
    "dataset_class",
    "is_closed_form",
    "load_dataset",
    "option_names",
    "resolve_device",
    "solve",
]

# ------------------------------------------------------------------------------
# From names and options to objects: recording, front-end, model and loss of an experiment.


DATASET_SUFFIX = ".npz"


def dataset_class(name: str) -> type[NeuralDataset]:
    """Return the registered dataset class of that name.

    Examples
    --------
    >>> dataset_class("synthetic").__name__
    'SyntheticDataset'
    """
    try:
        return DATASETS.get(name)
    except ValueError as error:
        raise ValueError(
            f"{_sentence(error)} A recording of your own: save it with ds.save('mine.npz') and give the path"
        ) from None


def check_choices(config: ExperimentConfig) -> None:
    """Check names and options of dataset, model and front-end, before any file is read.

    Examples
    --------
    >>> check_choices(ExperimentConfig(model_options={"temporal_window": 9}))
    Traceback (most recent call last):
        ...
    ValueError: model 'linear' has no option 'temporal_window'; ... Did you mean 'temporal_window_size'?
    """
    if _is_file(config.dataset):
        _check_file(config)
    else:
        check_options(dataset_class(config.dataset), config.dataset_options, f"dataset {config.dataset!r}")
    check_options(_what_is_fitted(config.model), config.model_options, f"model {config.model!r}")
    if config.model in SOLVERS and config.loss != "mse":
        raise ValueError(
            f"model {config.model!r} is solved in closed form, which minimises the squared error; leave out "
            f"loss={config.loss!r}, or choose another model"
        )
    if config.wav2spec is not None:
        front_end = WAV2SPEC.get(config.wav2spec)
        check_options(
            front_end, config.wav2spec_options, f"front-end {config.wav2spec!r}", also=("n_filters",)
        )


def load_dataset(config: ExperimentConfig, *, download: bool = False) -> NeuralDataset:
    """Load the recording of an experiment: a registered one, or a file written by ``NeuralDataset.save``.

    Parameters
    ----------
    config : ExperimentConfig
        Name and options; a front-end asks for waveforms.
    download : bool
        Let a recording that can fetch itself do so when its files are missing.

    Returns
    -------
    NeuralDataset
        The recording.

    Raises
    ------
    ValueError, TypeError
        For an unknown name or option.
    FileNotFoundError
        When files are missing.

    Examples
    --------
    >>> ds = load_dataset(ExperimentConfig(dataset_options={"n_neurons": 2, "n_clips": 3}))
    >>> ds.N_neurons, len(ds)
    (2, 3)
    """
    check_choices(config)
    if _is_file(config.dataset):
        recording = NeuralDataset.load(config.dataset)
        if recording.name == type(recording).__name__:  # nobody named it: its file says more than its class
            recording.name = Path(config.dataset).stem
        return recording
    cls = dataset_class(config.dataset)
    options = dict(config.dataset_options)
    legal = parameters_of(cls)
    hears = _what_hears_waveforms(config)
    if hears is not None:
        if "return_waveform" not in legal:
            raise ValueError(f"dataset {config.dataset!r} has no waveforms, which {hears} needs")
        if not options.setdefault("return_waveform", True):
            raise ValueError(
                f"{hears} needs waveforms: leave out return_waveform=false, or leave {hears} out"
            )
    if download and "download" in legal:
        options.setdefault("download", True)
    return cls(**options)


def build_model(config: ExperimentConfig, dataset: Any) -> nn.Module:
    """Build the model of an experiment with the sizes of its data; nothing is fitted.

    Examples
    --------
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 2, "n_clips": 3})
    >>> build_model(config, load_dataset(config)).O
    2
    """
    check_choices(config)
    cls = MODELS.get(config.model)
    legal = parameters_of(cls)
    front_end = build_front_end(config, dataset)
    known = {
        "out_neurons": dataset.N_neurons,
        "audio_fs": getattr(dataset, "audio_fs", None),
        "dt_ms": dataset.dt,
    }
    if "n_frequency_bands" in legal:
        known["n_frequency_bands"] = _n_bands(front_end, dataset)
    elif front_end is None and not getattr(dataset, "return_waveform", False):
        raise ValueError(
            f"model {config.model!r} hears waveforms; load the recording with return_waveform=True"
        )
    arguments = {name: value for name, value in known.items() if name in legal and value is not None}
    for name, wanted in (("wav2spec", front_end), ("standardize", config.standardize or None)):
        if wanted is not None and name not in legal:
            raise ValueError(f"model {config.model!r} takes no {name}; leave it out, or choose another model")
        if wanted is not None:
            arguments[name] = wanted
    model: nn.Module = cls(**{**arguments, **config.model_options})
    return model


def check_buildable(config: ExperimentConfig, dataset: Any) -> None:
    """Raise what the model's constructor and the device would, before a run takes its folder.

    Examples
    --------
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 2, "n_clips": 3}, device="gpu")
    >>> check_buildable(config, load_dataset(config))
    Traceback (most recent call last):
        ...
    ValueError: device must be like 'cpu', 'cuda' or 'cuda:1', got 'gpu'
    """
    if config.model not in SOLVERS:
        check_device(resolve_device(config.device))
        with seeded(config.seeds[0]):
            build_model(config, dataset)


def resolve_device(name: str) -> str:
    """Return the device meant: "auto" is CUDA where there is one, then Apple's, then the processor.

    Examples
    --------
    >>> resolve_device("cpu")
    'cpu'
    """
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _what_is_fitted(name: str) -> Callable[..., Any]:
    """The model class, or the fit in closed form, of that name."""
    if name in SOLVERS:
        return SOLVERS.get(name)
    try:
        return MODELS.get(name)
    except ValueError as error:
        raise ValueError(f"{_sentence(error)} In closed form: {', '.join(map(repr, SOLVERS))}.") from None


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith(("?", ".")) else f"{text}."


def _what_hears_waveforms(config: ExperimentConfig) -> str | None:
    """Name what takes the waveform, the front-end or a model with one of its own; None when nothing does."""
    if config.wav2spec is not None:
        return "a front-end"
    own = config.model in MODELS and "n_frequency_bands" not in parameters_of(MODELS.get(config.model))
    return f"model {config.model!r}" if own else None


def build_front_end(config: ExperimentConfig, dataset: Any) -> nn.Module | None:
    """Build the front-end of an experiment with the sample rate and bin width of its data.

    Examples
    --------
    >>> build_front_end(ExperimentConfig(), None) is None
    True
    """
    if config.wav2spec is None:
        return None
    if not getattr(dataset, "return_waveform", False):
        raise ValueError(
            f"a front-end needs waveforms, and {dataset.name} holds spectrograms; leave wav2spec out, or "
            "make the recording from its sounds (return_waveform=True, or from_arrays with audio_fs=...)"
        )
    from deepSTRF.models.wav2spec import make_wav2spec

    options = dict(config.wav2spec_options)
    if not {"n_filters", "n_mels"} & set(options):
        options["n_filters"] = dataset.F
    return make_wav2spec(config.wav2spec, audio_fs=dataset.audio_fs, dt_ms=dataset.dt, **options)


def _n_bands(front_end: nn.Module | None, dataset: Any) -> int | None:
    """Bands the model will see: those the front-end makes, else those of the stimuli."""
    if front_end is not None:
        return int(getattr(front_end, "n_filters", dataset.F))
    stim = dataset.stims[0]
    if stim.ndim != 3:
        raise ValueError(
            "these stimuli are waveforms: name a front-end (wav2spec='mel'), or load spectrograms "
            "(return_waveform=false)"
        )
    return int(stim.shape[-2])


def _is_file(dataset: str) -> bool:
    return dataset.lower().endswith(DATASET_SUFFIX) or Path(dataset).is_file()


def _check_file(config: ExperimentConfig) -> None:
    path = Path(config.dataset)
    if not path.is_file():
        raise FileNotFoundError(f"dataset file {path} does not exist; write one with ds.save({str(path)!r})")
    if config.dataset_options:
        raise ValueError(
            f"a dataset file takes no options, got {', '.join(config.dataset_options)}; "
            "apply them before ds.save(...)"
        )


# ------------------------------------------------------------------------------


class ClosedFormFit(Protocol):
    """What a fit in closed form returns.

    Examples
    --------
    >>> from deepSTRF.baselines.ridge import RidgeFit
    >>> all(hasattr(RidgeFit, name) for name in ("facts", "notes"))
    True
    """

    @property
    def model(self) -> nn.Module:
        """The fitted model, an ordinary one."""
        ...

    def facts(self) -> dict[str, Any]:
        """Facts about the fit for the protocol card."""
        ...

    def notes(self) -> list[tuple[str, str]]:
        """(level, sentence) pairs for the reader of a run."""
        ...


def is_closed_form(name: str) -> bool:
    """Say whether a model name of an experiment stands for a fit in closed form.

    Examples
    --------
    >>> is_closed_form("linear")
    False
    """
    return name in SOLVERS


def solve(config: ExperimentConfig, train: NeuralDataset, validation: NeuralDataset | None) -> ClosedFormFit:
    """Fit an experiment's model in closed form.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> ds = SyntheticDataset(n_neurons=2, n_clips=3, n_repeats=4)
    >>> config = ExperimentConfig(model="ridge", model_options={"n_lags": 8})
    >>> type(solve(config, ds.select(clips=[0, 1]), ds.select(clips=[2])).model).__name__
    'Linear'
    """
    check_choices(config)
    options = dict(config.model_options)
    if config.standardize:
        options["standardize"] = True
    fit: ClosedFormFit = SOLVERS.get(config.model)(
        train,
        validation,
        wav2spec=build_front_end(config, train),
        warmup_ms=config.warmup_ms,
        **options,
    )
    return fit
