"""A model on disk: ``config.json``, ``model.safetensors``, ``README.md`` and, when given, ``metadata.json``.

``manifest.json`` lists their sizes and SHA-256, which `load_checkpoint` verifies before it returns anything.
A full disk or a kill while saving leaves the earlier checkpoint or the new one, whole (`deepSTRF._files`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deepSTRF import __version__
from deepSTRF._files import (
    MANIFEST,
    TEXT_LIMIT,
    Artefact,
    DamagedFileError,
    check_regular,
    damaged,
    naming_damage,
    read_bytes,
    read_folder,
    replace_folder,
    warn_unsealed,
)
from deepSTRF._validation import outside_level
from deepSTRF.models.configurable import bounded_build, placement
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.io.card import model_card as default_card
from deepSTRF.models.io.encoding import UnknownClassError, decode, encode, encode_module, resolve_class
from deepSTRF.models.io.legacy import check_fit, convert_public_state
from deepSTRF.models.prediction import evaluating
from deepSTRF.models.readouts import OutputScale

__all__ = [
    "CARD_FILE",
    "CONFIG_FILE",
    "KIND",
    "METADATA_FILE",
    "WEIGHTS_FILE",
    "check_folder",
    "checkpoint_files",
    "load_checkpoint",
    "save_checkpoint",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
METADATA_FILE = "metadata.json"
CARD_FILE = "README.md"
#: Kind of the artefact in its manifest.
KIND = "checkpoint"

#: Keys of the configuration that are no constructor arguments start with an underscore.
_CLASS_KEY, _FORMAT_KEY = "_model_class", "_format"
_VERSION_KEY, _STAMP_KEY, _FITTED_KEY = "_deepSTRF_version", "_checkpoint", "_fitted_on"
_BANDS_KEY = "_band_std"
#: 1 had no manifest.
_FORMAT, _SEALED_FORMAT = 2, 2
_REMEDY = "fetch it anew, or save the model again"
#: Bins of noise on which a model is compared with what would be loaded.
_PROBE_BINS = 60
_INSTEAD = "Pass parts and settings to the constructor instead of exchanging or changing them later"
#: A model is built while it has at most so many times the values and parts of the file, and so many more:
#: constants that follow from the arguments are not in the file.
_SLACK_FACTOR, _SLACK, _SLACK_OF_CALLERS, _SLACK_PARTS = 4, 1 << 25, 1 << 31, 10_000
#: Files of more bytes are verified beside the building of the model.
_LARGE = 4_000_000
#: Slots whose tensors belong to the neurons.
_OUTPUT_SLOTS = ("readout.", "output_scale.")


def save_checkpoint(
    model: nn.Module,
    directory: str | os.PathLike[str],
    *,
    metadata: Any = None,
    model_card: str | None = None,
    source: str | None = None,
) -> Path:
    """Write a model so that `load_checkpoint` can rebuild it without its author's code.

    The earlier checkpoint in the folder stays until the new one is whole; a folder with files of the same
    names that are no checkpoint is refused.
    """
    target = Path(directory)
    check_folder(target)
    stale = target / METADATA_FILE
    is_stale = metadata is None and stale.is_file() and not os.path.lexists(target / MANIFEST)
    name = source or target.resolve().name
    files = checkpoint_files(model, metadata=metadata, model_card=model_card, source=name)
    replace_folder(target, files, KIND)
    if is_stale:  # of a checkpoint of format 1, which had no manifest to list it
        stale.unlink(missing_ok=True)
    return target


def check_folder(target: Path) -> None:
    """Refuse to save into what is no folder, or into one whose files are not those of a checkpoint."""
    if target.exists() and not target.is_dir():
        raise NotADirectoryError(f"{target} is a file; give a folder to save_pretrained")
    names = (CONFIG_FILE, WEIGHTS_FILE, METADATA_FILE, CARD_FILE)
    there = [name for name in names if os.path.lexists(target / name)]
    sealed = os.path.lexists(target / MANIFEST)
    if there and not sealed and not _names_a_model(target / CONFIG_FILE, WEIGHTS_FILE in there):
        raise FileExistsError(
            f"{target} holds {' and '.join(there)} of something that is no checkpoint; they would be lost: "
            "give another folder, or move them away first"
        )


def _names_a_model(path: Path, otherwise: bool) -> bool:
    """Whether a configuration names a class of model; ``otherwise`` for a damaged or lost one."""
    try:
        return _CLASS_KEY in json.loads(read_bytes(path, limit=TEXT_LIMIT))
    except (OSError, ValueError, TypeError, RecursionError):
        return otherwise


def checkpoint_files(
    model: nn.Module, *, metadata: Any = None, model_card: str | None = None, source: str | None = None
) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of a checkpoint, without the manifest; the model is checked first.

    ``source`` is what the card's example loads from. The weights, the largest, are serialised when they are
    asked for; the values are those at the time of the call.
    """
    described = encode_module(model, type(model).__name__)
    _check_rebuildable(model, described)
    tensors, shared = _collect_tensors(model)
    stamp = _stamp(described, tensors)
    config = {
        _CLASS_KEY: described["$module"], _FORMAT_KEY: _FORMAT, _VERSION_KEY: __version__, _STAMP_KEY: stamp,
        **described["kwargs"],
    }  # fmt: skip
    fitted = getattr(model, "fitted_on", None)
    if isinstance(fitted, FittedOn):
        config[_FITTED_KEY] = dataclasses.asdict(fitted)
    if isinstance(deviations := getattr(model, "band_std", None), Tensor):
        config[_BANDS_KEY] = deviations.tolist()
    card = model_card
    if card is None:
        card = default_card(model, config, metadata, source or "path/to/this/folder")
    texts = {CONFIG_FILE: json.dumps(config, indent=2, allow_nan=False) + "\n", CARD_FILE: card}
    if metadata is not None:
        try:
            texts[METADATA_FILE] = json.dumps(metadata, indent=2) + "\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise TypeError(
                f"metadata must be plain data for JSON (numbers, strings, lists, dictionaries): {error}"
            ) from error
    header = {"format": "pt", "checkpoint": stamp, "shared": json.dumps(shared)}
    return _yield_files(texts, tensors, header)


def _yield_files(
    texts: Mapping[str, str], tensors: dict[str, Tensor], header: dict[str, str]
) -> Iterator[tuple[str, bytes]]:
    from safetensors.torch import save

    for name, text in texts.items():
        yield name, text.encode("utf-8", "backslashreplace")
    yield WEIGHTS_FILE, save(tensors, metadata=header)


def _collect_tensors(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors to store, and ``alias -> stored name`` for tensors that are one and the same."""
    stored: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    first: dict[tuple[Any, ...], str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise TypeError(
                f"the state {name!r} is a {type(tensor).__name__}; a checkpoint holds tensors only"
            )
        key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and key in first:
            aliases[name] = first[key]
            continue
        first[key] = name
        stored[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    return stored, aliases


def _stamp(described: dict[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """Return a content hash that ties the configuration to its weights."""
    digest = hashlib.sha256(json.dumps(described, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _check_rebuildable(model: nn.Module, described: dict[str, Any]) -> None:
    """Build the model once more from its description and compare the two, now rather than at loading time."""
    classes = {type(part).__name__: type(part) for part in model.modules()}
    try:
        with torch.random.fork_rng(devices=[]):  # saving must not change the random numbers of a running fit
            twin: nn.Module = decode(described, classes)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{type(model).__name__} cannot be rebuilt from its constructor arguments: {error}"
        ) from error
    for what, ours, theirs in (
        ("modules", _module_tree(model), _module_tree(twin)),
        ("tensors", _tensor_shapes(model), _tensor_shapes(twin)),
        ("settings", _settings(model), _settings(twin)),
    ):
        if ours != theirs:
            different = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
            raise ValueError(
                f"{type(model).__name__} cannot be rebuilt from its constructor arguments: these {what} "
                f"differ: {', '.join(map(repr, different[:5]))}. {_INSTEAD}"
            )
    _check_same_prediction(model, twin)


def _module_tree(model: nn.Module) -> dict[str, str]:
    return {name: type(part).__name__ for name, part in model.named_modules(remove_duplicate=False)}


def _tensor_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _settings(model: nn.Module) -> dict[str, Any]:
    """Constructor arguments of every part, and attributes of the same names, which may have been changed."""
    found: dict[str, Any] = {}
    for name, part in model.named_modules(remove_duplicate=False):
        try:
            arguments = encode_module(part, name)["kwargs"]
        except TypeError:  # an inner part that nobody has to rebuild: its owner does
            continue
        for key, value in arguments.items():
            found[f"{name}.{key}".lstrip(".")] = value
            if key in vars(part) and _is_plain(vars(part)[key]):
                found[f"{name}.{key} (attribute)".lstrip(".")] = encode(vars(part)[key], key)
    return found


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(item) for item in value)
    return value is None or isinstance(value, bool | int | float | str)


def _check_same_prediction(model: nn.Module, twin: nn.Module) -> None:
    """Raise ValueError when the rebuilt model with the same weights predicts something else of noise.

    It finds what no setting shows: attributes that were changed, hooks, parts that share a constructor.
    """
    device, dtype = placement(model)
    tensors = [*model.parameters(), *model.buffers()]
    if any(tensor.is_meta or tensor.device != device for tensor in tensors):
        return
    _match_dtypes(twin, model.state_dict())
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        stimulus = _probe(model)
        if stimulus is None:
            return
        twin.to(device).load_state_dict(model.state_dict())
        predictions = []
        with _left_alone(model), evaluating(model), evaluating(twin):
            for one in (model, model, twin):
                torch.manual_seed(0)
                try:
                    predictions.append(one.forward(stimulus.to(device, dtype)))
                except (RuntimeError, ValueError, TypeError, IndexError):  # it takes other stimuli
                    return
    ours, again, theirs = predictions  # of a model that keeps a state between calls, the first two differ
    if not all(isinstance(one, Tensor) for one in predictions) or not _equal(ours, again):
        return
    if not _equal(ours, theirs):
        raise ValueError(
            f"{type(model).__name__} built anew from its constructor arguments predicts something else with "
            f"the same weights: a part or an attribute was changed since. {_INSTEAD}"
        )


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two predictions are the same but for the order of sums."""
    limit = 1e3 * torch.finfo(one.dtype).eps * float(one.abs().nan_to_num(0.0, 0.0, 0.0).max())
    return one.shape == other.shape and torch.allclose(one, other, rtol=0.0, atol=limit, equal_nan=True)


@contextlib.contextmanager
def _left_alone(model: nn.Module) -> Iterator[None]:
    """Put attributes and buffers of every part back: a model may keep a state between calls."""
    before = [(part, dict(vars(part)), dict(part._buffers)) for part in model.modules()]
    try:
        yield
    finally:
        for part, attributes, buffers in before:
            part._buffers.clear()
            part._buffers.update(buffers)
            vars(part).clear()
            vars(part).update(attributes)


def _probe(model: nn.Module) -> Tensor | None:
    """Noise that a model takes: (1, 1, T_audio) or (1, 1, F, T); None where that is not known."""
    hop, bands = getattr(getattr(model, "wav2spec", None), "hop", None), getattr(model, "F", None)
    if isinstance(hop, int):
        return 0.1 * torch.randn(1, 1, hop * _PROBE_BINS)
    return torch.randn(1, 1, bands, _PROBE_BINS) if isinstance(bands, int) else None


def load_checkpoint(
    directory: str | os.PathLike[str],
    *,
    expected: type[nn.Module] = nn.Module,
    extra_kwargs: Mapping[str, Any] | None = None,
    modules: Mapping[str, type] | None = None,
    strict: bool = True,
    refit_required: bool = False,
    map_location: str | torch.device = "cpu",
) -> tuple[nn.Module, Any]:
    """Rebuild a model from a folder, in eval mode, after its files were verified."""
    artefact = read_folder(_existing_folder(directory), KIND, _REMEDY)
    folder = artefact.folder
    for path in (folder / CONFIG_FILE, folder / WEIGHTS_FILE):
        if not path.exists():
            raise FileNotFoundError(f"{path} is missing; a checkpoint needs {CONFIG_FILE} and {WEIGHTS_FILE}")
        check_regular(path)
    config = _read_config(artefact)
    weights = _Weights(folder / WEIGHTS_FILE, config, is_sealed=artefact.files is not None)
    with _verifying(artefact, WEIGHTS_FILE):
        own = {expected.__name__: expected, **(modules or {})}
        model = _build(config, weights, expected, own, extra_kwargs or {}, draws=not strict)
        left = _load_weights(model, weights, strict, refit_required)
        _restore_fit(model, config, folder / CONFIG_FILE, left, extra_kwargs or {})
    return model.to(map_location).eval(), _read_metadata(artefact)


@contextlib.contextmanager
def _verifying(artefact: Artefact, name: str) -> Iterator[None]:
    """Verify a file while the body works with it; damage comes before what followed from it.

    The hash of a large file takes no time of its own then, while a thread would cost a small one more.
    """
    if os.path.getsize(artefact.folder / name) < _LARGE:
        artefact.path(name)
        yield
        return
    with ThreadPoolExecutor(1) as pool:
        verified = pool.submit(artefact.path, name)
        try:
            yield
        except Exception:
            verified.result()
            raise
        verified.result()


def _load_weights(model: nn.Module, weights: _Weights, strict: bool, refit_required: bool) -> list[str]:
    """Give a model the tensors of the file; returns the names of those that stay as built."""
    state = weights.read()
    if not weights.is_ours:  # a public checkpoint, with the names of its package
        state = convert_public_state(model, state, refit_required=refit_required)
        if strict:
            check_fit(model, state)
        state = _in_one_dtype(state)
    _match_dtypes(model, state)
    return _load_state(model, state, strict, weights.path.parent)


def _restore_fit(
    model: nn.Module, config: Mapping[str, Any], path: Path, left: list[str], replaced: Iterable[str]
) -> None:
    """What a model knows of the recording it was fitted on, as far as it still holds."""
    if "output_scale.scale" in left:  # another population: its scale is to be measured
        model.output_scale._started.fill_(False)  # type: ignore[union-attr, operator]
    with naming_damage(path, _REMEDY):
        if _BANDS_KEY in config and len(config[_BANDS_KEY]) == getattr(model, "F", None):
            device, dtype = placement(model)
            model.band_std = torch.tensor(config[_BANDS_KEY], dtype=dtype, device=device)
            if model.band_std.dim() != 1:
                raise ValueError(f"{_BANDS_KEY} is no list of numbers")
        if _FITTED_KEY in config:
            fitted = FittedOn.from_record(config[_FITTED_KEY])
            if {"wav2spec", "n_frequency_bands"} & set(replaced):
                fitted = fitted.without_stimuli()
            other_size = len(fitted.neurons) != getattr(model, "O", len(fitted.neurons))
            if other_size or any(name.startswith(_OUTPUT_SLOTS) for name in left):
                fitted = fitted.without_neurons()
            model.fitted_on = fitted  # type: ignore[assignment]


def _existing_folder(directory: str | os.PathLike[str]) -> Path:
    folder = Path(directory)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"there is no checkpoint folder {str(folder)!r}; give the folder that save_pretrained wrote"
        )
    inner = folder / "model"
    if not (folder / CONFIG_FILE).exists() and (inner / CONFIG_FILE).is_file():  # the folder of a run
        raise FileNotFoundError(f"{folder / CONFIG_FILE} is missing; the checkpoint of this run is {inner}")
    return folder


def _read_config(artefact: Artefact) -> dict[str, Any]:
    path = artefact.folder / CONFIG_FILE
    config = artefact.json(CONFIG_FILE)
    if not isinstance(config, dict) or not isinstance(config.get(_CLASS_KEY), str):
        raise damaged(path, f"it does not name a model class, key {_CLASS_KEY!r}", _REMEDY)
    written = config.get(_FORMAT_KEY, 0)
    if type(written) is not int or written < 0:
        raise damaged(path, f"{_FORMAT_KEY} is {written!r}", _REMEDY)
    if written > _FORMAT:
        raise ValueError(
            f"{path} was written by a later version of deepSTRF ({config.get(_VERSION_KEY)}); upgrade "
            "deepSTRF"
        )
    if written >= _SEALED_FORMAT and artefact.files is None:
        raise damaged(artefact.folder / MANIFEST, "the file is missing", _REMEDY)
    return config


def _build(
    config: dict[str, Any],
    weights: _Weights,
    expected: type[nn.Module],
    own: Mapping[str, type],
    extra_kwargs: Mapping[str, Any],
    *,
    draws: bool,
) -> nn.Module:
    """Build the model that a configuration describes, with the caller's arguments in place of saved ones."""
    path = weights.path.with_name(CONFIG_FILE)
    cls = resolve_class(config[_CLASS_KEY], own, path)
    if not issubclass(cls, expected):
        raise TypeError(
            f"{path.parent} holds a {cls.__name__}, not a {expected.__name__}: call "
            f"{cls.__name__}.from_pretrained, or NeuralModel.from_pretrained for any model"
        )
    saved = {key: value for key, value in config.items() if not key.startswith("_")}
    # the caller's arguments may make another size of it, and are not the file's
    slack = _SLACK if not extra_kwargs else _SLACK_OF_CALLERS
    values = _SLACK_FACTOR * sum(math.prod(shape) for shape in weights.shapes.values()) + slack
    try:
        with bounded_build(values, _SLACK_FACTOR * len(weights.shapes) + _SLACK_PARTS, draws=draws):
            arguments = {key: decode(value, own) for key, value in saved.items() if key not in extra_kwargs}
            model: nn.Module = cls(**{**arguments, **extra_kwargs})
    except (ImportError, UnknownClassError, Warning):
        raise
    except Exception as error:  # of torch, NumPy or a class of the caller's
        what = f"it does not fit the constructor of {cls.__name__}: {type(error).__name__}: {error}"
        if extra_kwargs:
            raise ValueError(f"{path} with extra_kwargs={sorted(extra_kwargs)}: {what}"[:500]) from error
        raise damaged(path, what[:500], _REMEDY) from error
    return model


def _read_metadata(artefact: Artefact) -> Any:
    """What lies beside the model; it is optional, so damage to it is a warning."""
    if not artefact.has(METADATA_FILE):
        return None
    try:
        return artefact.json(METADATA_FILE)
    except (OSError, DamagedFileError) as error:
        warnings.warn(
            f"the model was loaded, without its metadata: {error}", UserWarning, stacklevel=outside_level()
        )
    return None


class _Weights:
    """The tensors of a checkpoint: shapes and aliases when made, values on `read`."""

    def __init__(self, path: Path, config: dict[str, Any], *, is_sealed: bool) -> None:
        self.path, self.config, self.is_sealed = path, config, is_sealed
        self.is_ours = _FORMAT_KEY in config
        with self._opened() as handle:
            header = handle.metadata() or {}
            if header.get("checkpoint") != config.get(_STAMP_KEY):
                raise damaged(path, f"it and {CONFIG_FILE} come from two different saves", _REMEDY)
            names = list(handle.keys())
            self.shapes = {name: handle.get_slice(name).get_shape() for name in names}
            self.shared: dict[str, str] = json.loads(header.get("shared", "{}"))
            if lost := [name for name in self.shared.values() if name not in self.shapes]:
                raise KeyError(f"tensors that it shares are missing: {lost[:5]}")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Any]:
        from safetensors import safe_open

        with naming_damage(self.path, _REMEDY), safe_open(self.path, framework="pt", device="cpu") as handle:
            yield handle

    def read(self) -> dict[str, Tensor]:
        """All tensors by name."""
        with self._opened() as handle:
            tensors = {name: handle.get_tensor(name) for name in self.shapes}
        if not self.is_sealed and (self.is_ours or _STAMP_KEY in self.config):
            self._check_stamp(tensors)
        return tensors | {alias: tensors[name] for alias, name in self.shared.items()}

    def _check_stamp(self, tensors: Mapping[str, Tensor]) -> None:
        """Verify the content hash of a checkpoint of format 1, which had no manifest."""
        kwargs = {key: value for key, value in self.config.items() if not key.startswith("_")}
        described, folder = {"$module": self.config[_CLASS_KEY], "kwargs": kwargs}, self.path.parent
        if _stamp(described, tensors) != self.config.get(_STAMP_KEY):
            raise damaged(folder, f"{CONFIG_FILE} or {WEIGHTS_FILE} was changed since it was saved", _REMEDY)
        warn_unsealed(folder, "save the model again to add them")


def _in_one_dtype(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Public tensors in one floating dtype: their own, or the default where they mix several."""
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    dtype = dtypes.pop() if len(dtypes) == 1 else torch.get_default_dtype()
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}


def _match_dtypes(model: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Give every parameter and buffer the dtype it was saved with, so that float64 models stay float64."""
    dtypes = {tensor.dtype for tensor in state.values() if tensor.is_floating_point()}
    if len(dtypes) == 1:
        model.to(dtypes.pop())  # also moves constants that are derived, not saved
        return
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if name in state and state[name].dtype != tensor.dtype:
            tensor.data = tensor.data.to(state[name].dtype)


def _load_state(model: nn.Module, state: dict[str, Tensor], strict: bool, folder: Path) -> list[str]:
    """Load the weights; with ``strict=False`` those whose name and shape fit. Returns what stays as built."""
    fitting = state if strict else _fitting_part(model, state)
    try:
        result = model.load_state_dict(fitting, strict=strict)
    except RuntimeError as error:
        raise ValueError(
            f"the weights in {folder} do not fit {type(model).__name__}: {error}\nstrict=False loads those "
            "that fit, and leaves the others as they are built"
        ) from error
    ours = model.state_dict()
    unfit = [name for name in state if name not in fitting]
    left = list(dict.fromkeys([*result.missing_keys, *(name for name in unfit if name in ours)]))
    unused = [name for name in unfit if name not in ours]
    notes = [f"stays as built, to be fitted: {', '.join(left)}"] if left else []
    notes += [f"not used of the file: {', '.join(unused)}"] if unused else []
    if notes:
        warnings.warn(
            f"loading {folder} with strict=False; {'; '.join(notes)}", UserWarning, stacklevel=outside_level()
        )
    return left


def _fitting_part(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors whose name and shape fit; normalisations and scales are loaded whole or not at all."""
    ours = model.state_dict()
    fits = {name: name in ours and ours[name].shape == tensor.shape for name, tensor in state.items()}
    whole = (nn.modules.batchnorm._NormBase, OutputScale)
    norms = tuple(f"{name}." for name, part in model.named_modules() if isinstance(part, whole))
    for norm in norms:
        inside = [name for name in fits if name.startswith(norm)]
        if not all(fits[name] for name in inside):
            fits.update(dict.fromkeys(inside, False))
    return {name: tensor for name, tensor in state.items() if fits[name]}
