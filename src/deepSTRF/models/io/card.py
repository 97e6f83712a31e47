"""The model card: the README of a saved model, with its sizes, scores, use, license and citation."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from deepSTRF import __version__
from deepSTRF._text import markdown, printable
from deepSTRF.models.fitted_on import bin_width_ms
from deepSTRF.models.io.encoding import foreign_classes

__all__ = ["looks_ahead", "milliseconds", "model_card"]

_TAGS = ("neuroscience", "sensory-encoding", "auditory", "pytorch")
_SLOTS = ("wav2spec", "prefiltering", "core", "readout")
#: Entries of the metadata with a section or line of their own; the rest stands in a table.
_OWN_SECTION = ("scores", "protocol", "license", "citation", "authors")
#: Longer lists are counted, not printed; they are in metadata.json.
_MOST_ITEMS = 8
_REFERENCES = re.compile(r"^References\n-+\n(?P<text>.*?)(?=\n\n|\Z)", flags=re.DOTALL | re.MULTILINE)


def model_card(
    model: nn.Module, config: Mapping[str, Any], metadata: Any = None, source: str = "path/to/this/folder"
) -> str:
    """Return a model card in Markdown; scores, protocol, license and citation are read from the metadata."""
    facts = metadata if isinstance(metadata, Mapping) else {}
    front = ["---", "library_name: deepSTRF"]
    if isinstance(facts.get("license"), str):
        front.append(f"license: {json.dumps(facts['license'])}")  # a JSON string is a YAML string
    front += ["tags:", *(f"- {tag}" for tag in _TAGS), "---"]
    what = (inspect.getdoc(type(model)) or "").split("\n\n")[0].replace("\n", " ").replace("``", "`")
    stated = facts.get("license")
    weights = f"The weights: {stated}." if stated else "The author of the weights has not stated a license."
    rest = {key: value for key, value in facts.items() if key not in _OWN_SECTION}
    arguments = {key: value for key, value in config.items() if not key.startswith("_")}
    sections = [
        "\n".join(front),
        f"# {markdown(type(model).__name__)}",
        f"A deepSTRF model of auditory neurons. {what}".rstrip(),
        _pairs(_sizes(model)),
        "## Use",
        _use(model, config, source),
        *_section("Scores", facts.get("scores")),
        *_section("Protocol", facts.get("protocol")),
        *_section("Arguments", arguments),
        *_section("More", rest),
        "## License",
        f"{weights} The code that runs them, deepSTRF: BSD-3-Clause.",
        "## Citation",
        _citation(model, facts),
    ]
    return printable("\n\n".join(section for section in sections if section), keep="\n\t") + "\n"


def _sizes(model: nn.Module) -> Iterator[tuple[str, str]]:
    """Sizes of a model (name, text); of a plain module only its parameters."""
    if hasattr(model, "O"):
        yield "Neurons", str(model.O)
    front_end: Any = getattr(model, "wav2spec", nn.Identity())
    if not isinstance(front_end, nn.Identity):
        yield "Input", f"waveform (B, 1, T_audio) at {_number(front_end.audio_fs)} Hz"
        yield "Bin", f"{front_end.hop} samples, {1e3 * front_end.hop / float(front_end.audio_fs):g} ms"
        latency: Any = model.latency_ms
        yield "Front-end", f"{type(front_end).__name__}, latency {milliseconds(latency)}"
    elif hasattr(model, "F"):
        yield "Input", f"spectrogram (B, 1, {model.F}, T)"
    if hasattr(model, "F"):
        yield "Frequency bands", str(model.F)
        yield "Receptive field", _receptive_field(model, front_end)
    if looks_ahead(model):
        yield "Not causal", f"looks {looks_ahead(model)} ahead: no prediction before that much more is heard"
    parts = [
        f"{slot} {_count(getattr(model, slot)):,}" for slot in _SLOTS if _count(getattr(model, slot, None))
    ]
    yield "Trainable parameters", f"{_count(model):,}" + (f" ({', '.join(parts)})" if parts else "")
    yield "Written by", f"deepSTRF {__version__}, torch {torch.__version__}"


def _receptive_field(model: Any, front_end: Any) -> str:
    """Bins that a prediction depends on; a front-end's own memory comes on top, in samples where it ends."""
    field = model.receptive_field
    bins = "unbounded" if field is None else f"{field} bins"
    if field is None or isinstance(front_end, nn.Identity):
        return bins
    samples = getattr(front_end, "receptive_field_samples", None)
    if samples is None:
        return f"{bins} of the front-end's output"
    heard = 1e3 * (samples + (field - 1) * front_end.hop) / float(front_end.audio_fs)
    return f"{bins} of the front-end's output, {heard:.0f} ms of sound"


def looks_ahead(model: Any) -> str:
    """How far a model sees the stimulus after the response, in ms where its bins are known; "" for not."""
    frames = int(getattr(model, "lookahead_frames", 0))
    if not frames:
        return ""
    dt = bin_width_ms(model)
    return f"{frames} frame{'s' * (frames > 1)}" if dt is None else milliseconds(frames * dt)


def _count(module: nn.Module | None) -> int:
    return 0 if module is None else sum(p.numel() for p in module.parameters() if p.requires_grad)


def _use(model: nn.Module, config: Mapping[str, Any], source: str) -> str:
    own = foreign_classes({"$module": type(model).__name__, "kwargs": dict(config)})
    names = ", ".join(own)
    handed = ", modules={" + ", ".join(f'"{name}": {name}' for name in own) + "}" if own else ""
    lines = [
        "```python",
        "from deepSTRF.models import NeuralModel",
        *([f"from your_code import {names}  # classes of the author's, not of deepSTRF"] if own else []),
        "",
        f"model = NeuralModel.from_pretrained({json.dumps(source)}{handed})",
        "```",
        "",
        "`model(x)` returns responses (B, N, 1, T), one per bin; `model.predict(dataset)` (N, T) per clip.",
    ]
    return "\n".join(lines)


def _citation(model: nn.Module, facts: Mapping[str, Any]) -> str:
    """Return the author's citation, and the references of the model's class."""
    found = _REFERENCES.search(inspect.getdoc(type(model)) or "")
    lines = [
        str(facts["authors"]) if facts.get("authors") else "",
        str(facts["citation"]) if facts.get("citation") else "",
        f"Model: {' '.join(found['text'].split())}" if found else "",
        f"Software: deepSTRF {__version__}.",
    ]
    return "\n\n".join(line for line in lines if line)


def _section(title: str, content: Any) -> list[str]:
    """Return a heading and a table, or nothing for no content."""
    if not content:
        return []
    return [f"## {title}", _table(content)]


def _table(content: Any) -> str:
    if isinstance(content, Mapping):
        return _pairs(content.items())
    if _is_list(content) and all(isinstance(row, Mapping) for row in content):
        names = list(dict.fromkeys(name for row in content for name in row))
        return _rows(names, ([row.get(name, "") for name in names] for row in content))
    if _is_list(content) and all(_is_list(row) and len(row) == 2 for row in content):
        return _pairs(content)
    return _cell(content)


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _pairs(pairs: Iterable[Sequence[Any]]) -> str:
    return _rows(["name", "value"], pairs)


def _rows(names: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and "$module" in value:
        arguments = ", ".join(
            f"{markdown(key)}={_cell(item)}" for key, item in value.get("kwargs", {}).items()
        )
        return f"{markdown(value['$module'])}({arguments})"
    if isinstance(value, Mapping):
        return ", ".join(f"{markdown(key)} {_cell(item)}" for key, item in value.items())
    if _is_list(value):
        long = len(value) > _MOST_ITEMS
        return f"{len(value)} entries" if long else ", ".join(_cell(item) for item in value)
    if isinstance(value, float):
        return _number(value)
    return markdown(value)


def milliseconds(value: float) -> str:
    """Return a latency as cards print it: to a tenth of a ms, a fiftieth of a usual bin."""
    return f"{round(value, 1):g} ms"


def _number(value: float) -> str:
    return f"{value:.6g}"
