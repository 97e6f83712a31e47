"""The README that is saved beside a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["model_card"]

_FRONT_MATTER = """---
library_name: deepSTRF
tags:
- neuroscience
- sensory-encoding
- pytorch
---
"""


def model_card(model: nn.Module, config: Mapping[str, Any], metadata: Any = None) -> str:
    """Return a model card in Markdown: what the model is, its arguments, its metadata, how to load it.

    Parameters
    ----------
    model : nn.Module
        The model.
    config : mapping
        Its configuration as saved; keys that start with an underscore are left out.
    metadata : object, optional
        A mapping is shown as a table.

    Returns
    -------
    str
        Markdown with front matter.

    Examples
    --------
    >>> print(model_card(nn.Identity(), {"out_neurons": 2}).splitlines()[8])
    # Identity
    """
    name = type(model).__name__
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    lines = [
        _FRONT_MATTER,
        f"# {name}",
        "",
        f"A deepSTRF model of auditory neurons with {count:,} trainable parameters.",
        "",
        "```python",
        "from deepSTRF.models import NeuralModel",
        "",
        'model = NeuralModel.from_pretrained("path/to/this/folder")',
        "```",
        "",
        "## Arguments",
        "",
        *_table({key: value for key, value in config.items() if not key.startswith("_")}),
    ]
    if isinstance(metadata, Mapping) and metadata:
        lines += ["", "## Metadata", "", *_table(metadata)]
    return "\n".join(lines) + "\n"


def _table(rows: Mapping[str, Any]) -> list[str]:
    cells = [f"| {key} | {_cell(value)} |" for key, value in rows.items()]
    return ["| name | value |", "|---|---|", *cells]


def _cell(value: Any) -> str:
    if isinstance(value, Mapping) and "$module" in value:
        arguments = ", ".join(f"{key}={_cell(item)}" for key, item in value.get("kwargs", {}).items())
        return f"{value['$module']}({arguments})"
    return str(value).replace("|", "\\|").replace("\n", " ")
