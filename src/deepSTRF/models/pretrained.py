"""Fitted models that ship with the package, by name."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

import torch

from deepSTRF._files import read_json
from deepSTRF._validation import checked
from deepSTRF.models.base import NeuralModel
from deepSTRF.models.io.checkpoint import CONFIG_FILE, METADATA_FILE, load_checkpoint

__all__ = ["load_pretrained", "pretrained_models"]

#: Folders of checkpoints, ``recording/model``; `benchmarks/pretrain.py` of the repository writes them.
FOLDER = Path(__file__).resolve().parent.parent / "pretrained"
_REMEDY = "install deepSTRF again"


def pretrained_models() -> dict[str, str]:
    """Return the names of the fitted models that ship with deepSTRF, each with a line on what it is.

    Returns
    -------
    dict of str to str
        Name for `load_pretrained`, and recording, model and score.

    Examples
    --------
    >>> pretrained_models()["ns1/ridge"].split("; ")
    ['Ridge STRFs of 125 ms on the spectrogram', 'NS1, ferret ...', 'mean test cc_norm 0.641']
    """
    return {
        name: str(read_json(FOLDER / name / METADATA_FILE, _REMEDY).get("summary", "")) for name in _names()
    }


def _names() -> list[str]:
    return sorted(path.parent.relative_to(FOLDER).as_posix() for path in FOLDER.glob(f"*/*/{CONFIG_FILE}"))


@checked
def load_pretrained(
    name: str, *, map_location: str | torch.device = "cpu", return_metadata: bool = False
) -> NeuralModel | tuple[NeuralModel, Any]:
    """Fitted model that ships with deepSTRF, in eval mode; nothing is downloaded.

    Its files are verified as those of any checkpoint. ``README.md`` beside them is its card: scores,
    protocol, licence and citation of the recording, and the command that fitted it.

    Parameters
    ----------
    name : str
        One of `pretrained_models`, e.g. "ns1/leaf-linear".
    map_location : str or torch.device
        Where the model goes.
    return_metadata : bool
        Whether to return ``(model, metadata)``: scores, protocol, names of the neurons, licence, citation.

    Returns
    -------
    NeuralModel or tuple
        The model, or the model and its metadata.

    Raises
    ------
    ValueError
        For an unknown name (the text lists what there is), or damaged files.

    Examples
    --------
    >>> model = load_pretrained("ns1/leaf-linear")
    >>> model.O, model.F, round(model.wav2spec.audio_fs), model.fitted_on.dt_ms
    (119, 34, 48000, 5.0)
    """
    names = _names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        raise ValueError(
            f"no pretrained model {name!r}; there are {', '.join(map(repr, names))}"
            + (f". Did you mean {near[0]!r}?" if near else "")
            + ". A folder or a repository is for NeuralModel.from_pretrained(...)"
        )
    model, metadata = load_checkpoint(FOLDER / name, expected=NeuralModel, map_location=map_location)
    return (model, metadata) if return_metadata else model  # type: ignore[return-value]
