"""Protocol card: data, split, ceiling, model and machine behind a score, so that it can be reproduced."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

import torch
from torch import nn

from deepSTRF import __version__
from deepSTRF._files import json_safe
from deepSTRF._validation import checked, checked_but
from deepSTRF.models.io.card import looks_ahead, milliseconds
from deepSTRF.protocols import DatasetLike

__all__ = ["ProtocolCard"]

#: Centring of the noise-corrected correlation, in the words of a methods section.
CENTRINGS = {
    "concat": "on the concatenated clips",
    "clip": "each clip's own means removed first",
    "published": "the earlier package's mixed form",
}
#: Labels of a dataset's own facts; what is not listed is shown under its own name.
FACT_LABELS = {
    "species": "Species",
    "stimuli": "Stimuli",
    "spectrogram": "Spectrogram",
    "alignment": "Alignment of the spectrogram",
    "look_ahead_ms": "Spectrogram looks ahead (ms)",
    "frame_grid": "Frame grid of the spectrogram",
    "binning": "Binning of spikes",
    "made_at_hz": "Sounds made at (Hz)",
    "spikes": "Spike counts",
    "resampling": "Resampling of the sound",
    "source": "Source",
    "F": "Frequency bands",
    "features": "Features of the stimuli and their rows",
    "frequencies_hz": "Lowest and highest band (Hz)",
    "audio_fs": "Sample rate (Hz)",
    "duration_s": "Duration of all clips (s)",
    "missing_pairs": "Clips that single neurons did not hear",
    "signal_filter": "Signal onto bins",
    "response_kind": "Kind of responses",
    "response_unit": "Unit of responses",
    "response_normalization": "Normalisation of responses",
    "stimuli_standardized": "Stimuli standardised by the dataset",
}
#: Facts that have a row of their own.
OWN_ROWS = {
    "name", "class", "dt_ms", "n_clips", "n_neurons", "smoothing_ms", "repeats_min", "repeats_max",
    "sha256",
}  # fmt: skip
#: Characters of a split's hash that are printed; the whole hash is in the JSON.
SHOWN_HASH = 12
PACKAGES = ("torch", "numpy", "scipy")


@checked
@dataclass(frozen=True)
class ProtocolCard:
    """Data, split, ceiling, model and machine behind a score.

    Make one with `collect`; print its `rows` beside every number, and keep its JSON with the weights.

    Attributes
    ----------
    dataset : dict
        What ``dataset.describe()`` says.
    neurons : str
        Which neurons.
    split : dict or None
        'name', 'hash' and the clips of 'train', 'val' and 'test'.
    model : dict
        'class', 'n_parameters' (trainable), 'front_end', 'latency_ms', 'settings', and of a front-end
        'front_end_bands', 'front_end_hz' (lowest and highest) and 'front_end_settings'; 'looks_ahead' of one
        that is not causal.
    centring, ceiling : str
        How the noise-corrected correlation is centred and what stands in its denominator.
    warmup_ms : float
        Onset of each clip left out of loss and scores.
    seeds : list of int
        Seeds of the fits behind the score.
    training : dict
        How the model was fitted, where known.
    versions, machine : dict
        Software and hardware.

    Examples
    --------
    >>> from deepSTRF.datasets.audio import SyntheticDataset
    >>> from deepSTRF.models.audio import Linear
    >>> ds = SyntheticDataset(n_neurons=3, n_clips=2, n_repeats=4)
    >>> card = ProtocolCard.collect(ds, model=Linear(ds.F, 9, 3), seeds=[0])
    >>> dict(card.rows())["Neurons"]
    '3 (all)'
    >>> ProtocolCard.from_json(card.to_json()) == card
    True
    """

    dataset: dict[str, Any]
    neurons: str
    split: dict[str, Any] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    centring: str = "concat"
    ceiling: str = (
        "cc_norm: signal power from distinct repeats (Schoppe et al. 2016); "
        "ccmax: half-splits of the repeats (Hsu et al. 2004)"
    )
    warmup_ms: float = 0.0
    seeds: list[int] = field(default_factory=list)
    training: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @checked_but("model")
    def collect(
        cls,
        dataset: DatasetLike,
        *,
        split: Any = None,
        model: nn.Module | None = None,
        seeds: Sequence[int] = (),
        centring: str = "concat",
        warmup_ms: float = 0.0,
        training: Mapping[str, Any] | Any = None,
    ) -> Self:
        """Put a card together from the objects at hand.

        Parameters
        ----------
        dataset : DatasetLike
            The recording (or view) that was fitted and scored.
        split : ClipSplit, optional
            Which clips trained, validated and tested.
        model : nn.Module, optional
            The model.
        seeds : sequence of int
            Seeds behind the score.
        centring : str
            Of the noise-corrected correlation.
        warmup_ms : float
            Onset left out.
        training : Fitter or mapping, optional
            How the model was fitted: a `Fitter`, or facts by name.

        Returns
        -------
        ProtocolCard
            The card.

        Raises
        ------
        ValueError
            When ``centring`` is unknown.
        """
        if centring not in CENTRINGS:
            raise ValueError(f"centring must be one of {', '.join(map(repr, CENTRINGS))}, got {centring!r}")
        facts = training if isinstance(training, Mapping) else _training_facts(training)
        selected = getattr(dataset, "I", None)
        which = "all" if selected is None else f"selection {_ranges(selected)} of the recording"
        parts = None
        if split is not None:
            clips = {role: [int(clip) for clip in getattr(split, role)] for role in ("train", "val", "test")}
            parts = {"name": str(split.name), "hash": str(split.hash), **clips}
        described = dataset.describe()
        hertz = getattr(dataset, "frequencies_hz", None)
        if hertz is not None and not getattr(dataset, "return_waveform", False):
            described["frequencies_hz"] = [float(min(hertz)), float(max(hertz))]
        if hasattr(dataset, "content_fingerprint"):
            described["sha256"] = dataset.content_fingerprint()
        return cls(
            dataset=json_safe(described),
            neurons=f"{dataset.N_neurons} ({which})",
            split=parts,
            model={} if model is None else model_facts(model),
            centring=centring,
            warmup_ms=float(warmup_ms),
            seeds=[int(seed) for seed in seeds],
            training=json_safe(facts),
            versions=software_versions(),
            machine=_machine(model),
        )

    def rows(self) -> list[tuple[str, str]]:
        """Return the card as (label, value) pairs, in reading order."""
        data = self.dataset
        smoothing = data.get("smoothing_ms")
        repeats = [data.get("repeats_min"), data.get("repeats_max")]
        rows = [
            ("Recording", str(data.get("name", "?"))),
            ("Neurons", self.neurons),
            ("Clips", _clips_text(data, self.split)),
            ("Repeats", str(repeats[0]) if repeats[0] == repeats[1] else f"{repeats[0]} to {repeats[1]}"),
            ("Bin", f"{data.get('dt_ms')} ms"),
            ("Smoothing of responses", f"Hanning, {smoothing:g} ms, unit gain" if smoothing else "none"),
        ]
        if self.split is not None:
            rows.append(("Split", f"{self.split['name']}, hash {str(self.split['hash'])[:SHOWN_HASH]}"))
        if data.get("sha256"):
            rows.append(("Content of the recording", f"SHA-256 {str(data['sha256'])[:SHOWN_HASH]}"))
        for name, value in data.items():
            advice = name == "F" and data.get("stimuli") == "waveform" and self.model.get("front_end")
            if (
                name not in OWN_ROWS
                and value is not None
                and value is not False
                and value != 0
                and not advice
            ):
                rows.append((FACT_LABELS.get(name, name), _text(value)))
        rows += [
            ("cc_norm centred", CENTRINGS[self.centring]),
            ("Noise ceiling", self.ceiling),
            ("Onset left out", f"{self.warmup_ms:g} ms"),
            ("Seeds", ", ".join(map(str, self.seeds)) or "not stated"),
        ]
        rows += _model_rows(self.model)
        rows += [(f"Fit: {name.replace('_', ' ')}", _text(value)) for name, value in self.training.items()]
        rows.append(("Software", ", ".join(f"{name} {number}" for name, number in self.versions.items())))
        rows.append(("Machine", ", ".join(_text(value) for value in self.machine.values())))
        return rows

    def to_json(self) -> str:
        """Return the whole card as JSON (no NaN literals)."""
        return json.dumps(json_safe(asdict(self)), indent=1, allow_nan=False)

    @classmethod
    @checked
    def from_json(cls, text: str) -> Self:
        """Read what `to_json` wrote; unknown entries of a later version are an error that names them.

        ValueError for what is no JSON, or a card whose entries have other types.
        """
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"this is no protocol card, it is no JSON: {error}") from error
        known = {entry.name for entry in fields(cls)}
        unknown = sorted(set(values) - known) if isinstance(values, dict) else ["no object"]
        if unknown:
            raise ValueError(f"this is no protocol card of this version of deepSTRF: {', '.join(unknown)}")
        try:
            card = cls(**values)
            card.rows()
        except (TypeError, ValueError, LookupError, AttributeError) as error:
            raise ValueError(f"this is no protocol card of this version of deepSTRF: {error}") from error
        return card


def _ranges(numbers: Sequence[int]) -> str:
    """Write 0, 1, 2, 5 as 0-2, 5."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1][1:] = [number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, part)) for part in parts) or "none"


def _clips_text(data: Mapping[str, Any], split: Mapping[str, Any] | None) -> str:
    if split is None:
        return str(data.get("n_clips"))
    sizes = [len(split[role]) for role in ("train", "val", "test")]
    return f"{data.get('n_clips')} (train {sizes[0]}, validation {sizes[1]}, test {sizes[2]})"


def model_facts(model: nn.Module) -> dict[str, Any]:
    """Facts about a model."""
    front_end = getattr(model, "wav2spec", None)
    has_front_end = isinstance(front_end, nn.Module) and not isinstance(front_end, nn.Identity)
    facts = {
        "class": type(model).__name__,
        "n_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "front_end": type(front_end).__name__ if has_front_end else None,
        "latency_ms": float(getattr(model, "latency_ms", 0.0)),
        "settings": json_safe(_settings(model)),
    }
    if looks_ahead(model):
        facts["looks_ahead"] = looks_ahead(model)
    if has_front_end:
        hertz = getattr(front_end, "frequencies_hz", None)
        facts["front_end_bands"] = getattr(front_end, "out_channels", None)
        facts["front_end_hz"] = None if hertz is None else [float(min(hertz)), float(max(hertz))]
        facts["front_end_settings"] = json_safe(_settings(front_end))
    return facts


def _settings(module: Any) -> dict[str, Any]:
    """Constructor arguments as plain data, other parts by class and arguments, but for the front-end.

    Where None stands for a value that follows from others (``f_max``), the value is given.
    """
    found: dict[str, Any] = {}
    for key, given in getattr(module, "init_arguments", {}).items():
        value: Any = vars(module).get(key) if given is None else given
        if isinstance(value, nn.Module) and key != "wav2spec":
            inner = ", ".join(f"{name}={_text(one)}" for name, one in _settings(value).items())
            value = f"{type(value).__name__}({inner})"
        if isinstance(value, Mapping):
            value = dict(value)
        if isinstance(value, bool | int | float | str | type(None) | dict | list | tuple):
            found[key] = value
    return found


def _model_rows(model: Mapping[str, Any]) -> list[tuple[str, str]]:
    if not model:
        return []
    given = model["settings"].items()
    settings = ", ".join(f"{key}={_text(value)}" for key, value in given if value is not None)
    rows = [
        ("Model", f"{model['class']}({settings})"),
        ("Trainable parameters", f"{model['n_parameters']:,}"),
    ]
    if model.get("looks_ahead"):
        rows.append(("Causal", f"no: the model looks {model['looks_ahead']} ahead"))
    if model["front_end"]:
        rows.append(("Front-end", f"{model['front_end']}, latency {milliseconds(model['latency_ms'])}"))
        hertz, bands = model.get("front_end_hz"), model.get("front_end_bands")
        span = f", centred from {hertz[0]:.6g} to {hertz[1]:.6g} Hz" if hertz else ""
        rows += [("Bands of the front-end", f"{bands}{span}")] if bands else []
        own = (model.get("front_end_settings") or {}).items()
        text = ", ".join(f"{key}={_text(value)}" for key, value in own if value is not None)
        rows += [("Settings of the front-end", text)] if text else []
    return rows


def _training_facts(fitter: Any) -> dict[str, Any]:
    """Facts of a `Fitter` about its fit; nothing for None."""
    if fitter is None:
        return {}
    group = fitter.optimizer.param_groups[0]
    loss = getattr(fitter.loss_fn, "__name__", type(fitter.loss_fn).__name__)
    return {
        "loss": fitter.model.own_loss if fitter.loss_fn == getattr(fitter.model, "loss", None) else loss,
        "optimiser": type(fitter.optimizer).__name__,
        "learning_rate": group.get("initial_lr", group["lr"]),
        "weight_decay": group.get("weight_decay", 0.0),
        "batch_size": getattr(fitter.train_loader.batch_sampler, "batch_size", None),
        "epochs": len(fitter.history),
        "best_epoch": fitter.best_epoch,
        "chosen_by": f"{fitter.mode} {fitter.monitor}, patience {fitter.stopping.patience}",
        "precision": fitter.precision,
    }


def software_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a score depends on."""
    found = {"python": platform.python_version(), "deepSTRF": __version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _machine(model: nn.Module | None) -> dict[str, Any]:
    device = (
        next((p.device for p in model.parameters()), torch.device("cpu")) if model else torch.device("cpu")
    )
    machine: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": f"{os.cpu_count()} cores",
        "threads": f"{torch.get_num_threads()} threads",
    }
    if device.type == "cuda":
        machine["device"] = torch.cuda.get_device_name(device)
    return machine


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(item)}" for key, item in value.items())
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value)
    return str(value)
