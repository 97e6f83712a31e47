"""From the names and options of an experiment to objects: recording, front-end, model, fit in closed form.

A fit in closed form stands in a model's place. A new one is a file in ``deepSTRF/baselines`` with a function
``solver(train, validation, *, wav2spec, standardize, warmup_ms, **options)`` that is registered in
`deepSTRF.registry.SOLVERS` and returns a `ClosedFormFit`.
"""

from __future__ import annotations

import contextlib
import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from deepSTRF._files import check_regular
from deepSTRF._validation import check_device, memory_bytes
from deepSTRF.datasets import NeuralDataset
from deepSTRF.datasets.formats import is_saved, open_recording
from deepSTRF.datasets.splits import read_cut
from deepSTRF.experiments.config import DEFAULT_LOSS, ExperimentConfig, FieldError, closest, inline_toml
from deepSTRF.models.configurable import TooLargeError, bounded_build
from deepSTRF.models.io.checkpoint import checkpoint_files
from deepSTRF.registry import DATASETS, FORMATS, LOSSES, MODELS, SOLVERS, WAV2SPEC
from deepSTRF.training.callbacks import learns_spectrogram
from deepSTRF.training.objective import choose_objective, objective_conflict, owns_loss
from deepSTRF.training.seeds import seeded

__all__ = [
    "ClosedFormFit",
    "as_fitted",
    "build_front_end",
    "build_model",
    "check_buildable",
    "check_choices",
    "is_closed_form",
    "is_file",
    "load_dataset",
    "loss_of",
    "naming_split",
    "option_names",
    "resolve_device",
    "solve",
    "solver_options",
    "with_floats",
]

DATASET_SUFFIX = ".npz"
#: Suffixes that no name of a recording has.
_OTHER_SUFFIXES = (
    ".wav", ".csv", ".tsv", ".txt", ".npy", ".zip", ".tgz", ".gz", ".mat", ".nwb", ".h5", ".hdf5", ".pkl",
    ".parquet",
)  # fmt: skip
#: Arguments of a model or front-end that come from the data and the other choices.
FROM_THE_DATA = ("n_frequency_bands", "out_neurons", "wav2spec", "standardize", "audio_fs", "dt_ms", "hop_ms")
#: The same of a fit in closed form, whose own default decides whether bands are standardised.
FROM_THE_DATA_SOLVER = ("train", "validation", "wav2spec", "warmup_ms")
#: Models that take lags into the future.
LAGS_ARE_FOR = " Lags into the future are for the models 'linear' (Linear) and 'ridge' (fit_ridge)."
#: Arguments of a recording that have a flag of their own.
HAVE_A_FLAG = ("download",)
#: Bytes that each value of a fit takes: itself in float32, its gradient, and two moments of the optimiser.
BYTES_PER_VALUE = 16
#: No machine has more, and no model has more modules.
LARGEST_MEMORY, MOST_PARTS = 2.0**50, 100_000
FETCH = (
    "run_experiment(..., download=True) fetches missing files, and so does the command line "
    "(leave out --no-download)"
)

# ---- Names and options


def check_choices(config: ExperimentConfig) -> None:
    """Check names and options of dataset, model and front-end, before any file is read."""
    if is_file(config):
        path = Path(config.dataset)
        if not path.exists():
            raise FileNotFoundError(
                f"dataset file {path} does not exist; write one in Python: ds.save({str(path)!r}), or of a "
                "recording: deepstrf import PATH --out mine.npz"
            )
        if not path.is_dir() or path.suffix.lower() == DATASET_SUFFIX:
            check_regular(path)
        if config.dataset_options and is_saved(path):
            raise ValueError(
                f"a dataset file takes no options, got {', '.join(config.dataset_options)}; "
                "apply them before ds.save(...)"
            )
    else:
        _check_options(_dataset_class(config), config.dataset_options, f"dataset {config.dataset!r}")
    fitted: Callable[..., Any]
    if is_closed_form(config.model):
        fitted = SOLVERS.get(config.model)
        if config.loss not in (None, DEFAULT_LOSS):
            raise FieldError(
                "model {0!r} is solved without epochs, for the squared error; leave out "
                "{loss:{1}}, or choose another model",
                config.model,
                config.loss,
            )
        if config.refit:
            raise FieldError(
                "model {0!r} is solved without epochs, and chooses on the validation clips; "
                "leave out {refit}, or choose another model",
                config.model,
            )
    else:
        if config.refit and config.start == "ridge":
            raise FieldError("{start:ridge} chooses its penalty on the validation clips; leave out {refit}")
        fitted = MODELS.get(config.model, hint=f"Linear fits: {', '.join(map(repr, SOLVERS))}.")
    _check_options(fitted, config.model_options, f"model {config.model!r}")
    if config.wav2spec is not None:
        front_end = WAV2SPEC.get(config.wav2spec)
        _check_options(
            front_end, config.wav2spec_options, f"front-end {config.wav2spec!r}", also=("n_filters",)
        )


def option_names(entry: Callable[..., Any]) -> list[str]:
    """Return the options a registered class or function takes: its arguments less those filled in."""
    if not isinstance(entry, type):
        hidden: tuple[str, ...] = FROM_THE_DATA_SOLVER
    else:
        hidden = HAVE_A_FLAG if issubclass(entry, NeuralDataset) else FROM_THE_DATA
    return [name for name in _arguments(entry) if name not in hidden]


def _arguments(entry: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(entry).parameters


def _check_options(
    entry: Callable[..., Any], options: Mapping[str, Any], what: str, also: tuple[str, ...] = ()
) -> None:
    """Raise ValueError for the first option that is no argument."""
    arguments = _arguments(entry)
    if any(argument.kind is inspect.Parameter.VAR_KEYWORD for argument in arguments.values()):
        return
    legal = [*option_names(entry), *also]
    for name in options:
        if name not in arguments and name not in also:
            advice = LAGS_ARE_FOR if name in ("lags", "lags_ms") else closest(name, legal)
            raise ValueError(f"{what} has no option {name!r}; it takes {', '.join(legal)}.{advice}")


def with_floats(entry: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in which whole numbers for arguments that are annotated as floats are floats: 1 is 1.0."""
    found = dict(options)
    for name, argument in _arguments(entry).items():
        words = re.findall(r"\w+", getattr(argument.annotation, "__name__", str(argument.annotation)))
        if name in found and "float" in words and "int" not in words:
            found[name] = _as_floats(found[name])
    return found


def _as_floats(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_as_floats(item) for item in value]
    return float(value) if type(value) is int else value


def is_closed_form(model: str) -> bool:
    """Whether a model name stands for a fit in closed form."""
    return model in SOLVERS


def is_file(config: ExperimentConfig) -> bool:
    """Whether the recording of an experiment is a path, not a name."""
    name = config.dataset
    try:
        is_there = Path(name).exists() and not (name in DATASETS and Path(name).is_dir())
    except OSError:  # a name that no file can have
        return False
    if name in DATASETS:
        return is_there
    suffixes = {
        DATASET_SUFFIX,
        *_OTHER_SUFFIXES,
        *(one for _, entry in FORMATS.items() for one in entry.suffixes),
    }
    return is_there or Path(name).suffix.lower() in suffixes


def _dataset_class(config: ExperimentConfig) -> type[NeuralDataset]:
    return DATASETS.get(
        config.dataset,
        hint="A recording of your own: save it in Python with ds.save('mine.npz') and give the path",
    )


def as_fitted(config: ExperimentConfig) -> ExperimentConfig:
    """Return a configuration that states the standardisation of the fit, where the model has a default."""
    if not is_closed_form(config.model) and config.model not in MODELS:
        return config  # an unknown name, for which `check_choices` has a hint
    entry = SOLVERS.get(config.model) if is_closed_form(config.model) else MODELS.get(config.model)
    argument = _arguments(entry).get("standardize")
    default = config.model_options.get("standardize", argument.default if argument is not None else False)
    return config.with_changes(standardize=config.standardize or default is True)


# ---- Recording


def load_dataset(config: ExperimentConfig, *, download: bool = False) -> NeuralDataset:
    """Load the recording of an experiment: a registered one, one in files, or a file of ``ds.save``.

    A front-end, or a model with one of its own, gets waveforms. ``download`` lets a recording fetch missing
    files. A split "cut:..." cuts its clips.
    """
    check_choices(config)
    recording = _load_whole(config, download=download)
    with naming_split(config):
        cut = None if config.split is None else read_cut(config.split)[0]
        return recording if cut is None else recording.cut(cut[0], gap_ms=cut[1])


@contextlib.contextmanager
def naming_split(config: ExperimentConfig) -> Iterator[None]:
    """Add the split of an experiment to an error about it."""
    try:
        yield
    except (ValueError, IndexError, KeyError) as error:
        if config.split is not None and config.split not in str(error):
            error.add_note(f"The split is {config.split[:60]!r}")
        raise


def _load_whole(config: ExperimentConfig, *, download: bool) -> NeuralDataset:
    if is_file(config):
        if not is_saved(config.dataset):
            return open_recording(config.dataset, **config.dataset_options)
        recording = NeuralDataset.load(config.dataset)
        if recording.name == type(recording).__name__:  # nobody named it: its file says more than its class
            recording.name = Path(config.dataset).stem
        return recording
    cls = _dataset_class(config)
    options, legal = dict(config.dataset_options), _arguments(cls)
    needs = None
    if config.wav2spec is not None:
        needs = "a front-end"
    elif config.model in MODELS and "n_frequency_bands" not in _arguments(MODELS.get(config.model)):
        needs = f"model {config.model!r}"
    if needs is not None:
        if "return_waveform" not in legal:
            raise ValueError(f"dataset {config.dataset!r} has no waveforms, which {needs} needs")
        if not options.setdefault("return_waveform", True):
            raise ValueError(
                f"{needs} needs waveforms: leave out return_waveform=false, or leave {needs} out"
            )
    if download and "download" in legal:
        options.setdefault("download", True)
    try:
        return cls(**options)
    except FileNotFoundError as error:
        if not download and "download" in legal:
            error.add_note(FETCH)
        raise


# ---- Front-end, model, device


@contextlib.contextmanager
def _refusing_absurd_sizes() -> Iterator[None]:
    """Name the options behind a front-end or model that this machine cannot hold, before it is made."""
    values, refused = (
        min(memory_bytes(), LARGEST_MEMORY) / BYTES_PER_VALUE,
        "{model_options}/{wav2spec_options}",
    )
    try:
        with bounded_build(int(values), MOST_PARTS):
            yield
    except TooLargeError as error:
        raise FieldError(refused + " make a model that is too large for this machine: {0}", error) from None
    except (MemoryError, OverflowError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("allocate|overflow", str(error)):
            raise
        raise FieldError(
            refused + " make a model that is too large for this machine ({0})", str(error)[:200]
        ) from None


def build_front_end(config: ExperimentConfig, dataset: Any) -> nn.Module | None:
    """Build the front-end of an experiment with the sample rate and bin width of its data."""
    if config.wav2spec is None:
        return None
    if not getattr(dataset, "return_waveform", False):
        raise FieldError(
            "a front-end needs waveforms, and {0} holds spectrograms; leave {wav2spec} out, or make the "
            "recording from its sounds (dataset option return_waveform=true, or in Python from_arrays with "
            "audio_fs=...)",
            dataset.name,
        )
    from deepSTRF.models.wav2spec import make_wav2spec

    options = dict(config.wav2spec_options)
    takes = inspect.signature(WAV2SPEC.get(config.wav2spec)).parameters
    if {"n_filters", "n_mels"} & set(takes) and not {"n_filters", "n_mels"} & set(options):
        options["n_filters"] = dataset.F  # as many channels as the recording's own spectrogram
    with _naming_options("front-end", config.wav2spec, config.wav2spec_options), _refusing_absurd_sizes():
        made = make_wav2spec(config.wav2spec, audio_fs=dataset.audio_fs, dt_ms=dataset.dt, **options)
        heard = getattr(dataset, "hearing_range_hz", None)
        if heard is None or "f_max" in options or not getattr(made, "f_max", 0.0) > heard[1]:
            return made
        options["f_max"] = heard[1]  # a default bank ends where the animal's hearing does
        return make_wav2spec(config.wav2spec, audio_fs=dataset.audio_fs, dt_ms=dataset.dt, **options)


def build_model(config: ExperimentConfig, dataset: Any) -> nn.Module:
    """Build the model of an experiment with the sizes of its data; nothing is fitted."""
    check_choices(config)
    cls = MODELS.get(config.model)
    legal = _arguments(cls)
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
            f"model {config.model!r} takes waveforms; load the recording with return_waveform=true"
        )
    arguments = {name: value for name, value in known.items() if name in legal and value is not None}
    if "lags_ms" in legal and "lags_ms" not in config.model_options:
        del arguments["dt_ms"]  # it only goes with them
    for name, wanted in (("wav2spec", front_end), ("standardize", config.standardize or None)):
        if wanted is not None and name not in legal:
            raise FieldError(
                "model {0!r} takes no {" + name + "}; leave it out, or choose another model", config.model
            )
        if wanted is not None:
            arguments[name] = wanted
    with _naming_options("model", config.model, config.model_options), _refusing_absurd_sizes():
        model: nn.Module = cls(**{**arguments, **config.model_options})
    return model


@contextlib.contextmanager
def _naming_options(what: str, name: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Add to an error of a constructor which options it was given."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if options:
            given = ", ".join(f"{key}={inline_toml(value)[:60]}" for key, value in options.items())
            error.add_note(f"The options of {what} {name!r} are {given}")
        raise


def _n_bands(front_end: nn.Module | None, dataset: Any) -> int:
    """Bands at the model's input: those of the front-end, else those of the stimuli."""
    if front_end is not None:
        return int(getattr(front_end, "n_filters", dataset.F))
    stim = dataset.stims[0]
    if stim.ndim != 3:
        raise FieldError(
            "these stimuli are waveforms: name a front-end ({wav2spec:mel}), or load spectrograms "
            "(return_waveform=false)"
        )
    return int(stim.shape[-2])


def check_buildable(config: ExperimentConfig, dataset: Any) -> None:
    """Raise what the model's constructor and the device would, before a run takes its folder."""
    if config.teachers and (is_closed_form(config.model) or getattr(dataset, "return_waveform", False)):
        raise FieldError(
            "{teachers} are for networks fitted from spectrograms epoch by epoch: leave them out, or "
            "choose such a {model} and {dataset_options} (return_waveform=false)"
        )
    if not is_closed_form(config.model):
        check_device(resolve_device(config.device))
        with seeded(config.seeds[0]):
            model = build_model(config, dataset)
        checkpoint_files(model)  # that it cannot be saved is known before it is fitted
        loss = choose_objective(model, loss_of(config))
        conflict = objective_conflict(model, loss, dataset)
        if conflict is not None:
            raise FieldError(
                "{0}: {1}. The choices for that are {loss}, {model_options} (output_activation=softplus) and "
                "{dataset_options} (smooth=false)",
                *conflict,
            )
        if config.teachers and owns_loss(model):
            raise FieldError(
                "{teachers} give one target per bin, and model {0!r} has a loss of its own", config.model
            )
        given_sounds = getattr(dataset, "return_waveform", False)
        if config.band_shift and given_sounds and (owns_loss(model) or not _is_fixed_front_end(model)):
            raise FieldError(
                "{band_shift} shifts spectrograms, and model {0!r} is given waveforms: leave it out, fit "
                "from spectrograms (return_waveform=false), or name a front-end that does not learn "
                "({wav2spec:mel})",
                config.model,
            )


def _is_fixed_front_end(model: nn.Module) -> bool:
    front_end = getattr(model, "wav2spec", None)
    return not isinstance(front_end, nn.Identity | None) and not learns_spectrogram(model)


def loss_of(config: ExperimentConfig) -> Any:
    """The loss that an experiment names; None leaves it to the model, else to the squared error."""
    return None if config.loss is None else LOSSES.get(config.loss)


def resolve_device(name: str) -> str:
    """Return the device meant: "auto" is CUDA where there is one, then Apple's, then the processor."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


# ---- Fits in closed form


class ClosedFormFit(Protocol):
    """What a fit in closed form returns."""

    @property
    def model(self) -> nn.Module:
        """The fitted model, an ordinary one."""
        ...

    def choice(self, neuron: int) -> dict[str, Any]:
        """Options that repeat what one neuron chose on validation clips, without these."""
        ...

    def facts(self) -> dict[str, Any]:
        """Facts about the fit for the protocol card."""
        ...

    def notes(self) -> list[tuple[str, str]]:
        """(level, sentence) pairs for the reader of a run."""
        ...


def solve(config: ExperimentConfig, train: NeuralDataset, validation: NeuralDataset | None) -> ClosedFormFit:
    """Fit an experiment's model in closed form."""
    check_choices(config)
    fit: ClosedFormFit = SOLVERS.get(config.model)(train, validation, **solver_options(config, train))
    return fit


def solver_options(config: ExperimentConfig, dataset: NeuralDataset) -> dict[str, Any]:
    """Arguments of an experiment's solver beside the clips."""
    return {
        "wav2spec": build_front_end(config, dataset),
        "warmup_ms": config.warmup_ms,
        **config.model_options,
        **({"standardize": True} if config.standardize else {}),
    }
