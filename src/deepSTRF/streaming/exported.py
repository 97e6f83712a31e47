"""The step graph of an exported model, as what a `deepSTRF.streaming.Stream` runs."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np
import torch
from torch import Tensor

from deepSTRF._files import damaged, naming_damage, read_folder
from deepSTRF._optional import require
from deepSTRF._validation import checked
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.models.io.export import KIND, METADATA_KEY
from deepSTRF.models.streaming import Device, DType, State

__all__ = ["STEP_FILE", "ExportedModel"]

#: Name of the graph in the folder of an export.
STEP_FILE = "step.onnx"
_REMEDY = "export the model again: model.export(folder)"
#: What the metadata state of the fit, as a `FittedOn` has it.
_FIT = ("neurons", "dt_ms", "frequencies_hz", "response_unit", "level", "standardized", "rms")


@checked
class ExportedModel:
    """A model as its exported ONNX step graph, which streams two to three times faster than the model itself.

    ONNX Runtime computes a frame in one call, on one thread of the CPU; a `Stream` or a `Server` of it does
    not need the classes of the model. Rates agree with the model's to 1e-5 of their range, which the export
    checked. It cannot be trained or explained.

    Parameters
    ----------
    folder : str or path
        What ``model.export(folder)`` wrote, with its step graph.

    Attributes
    ----------
    name : str
        Class of the model.
    audio_fs : float or None
        Sample rate in Hz; None for a model of spectrograms.
    hop : int
        Samples per bin; 1 for a model of spectrograms.
    F : int or None
        Bands of the spectrogram, where the model states them.
    O : int
        Neurons, N.
    dt_ms : float or None
        Bin width in ms.
    latency_ms : float
        Algorithmic latency of a stream in ms; NaN where the bin width is not known.
    dtype : torch.dtype
        Precision.
    fitted_on : FittedOn
        What the graph states of the recording of the fit: names of the neurons, units, level.

    Raises
    ------
    FileNotFoundError
        When the folder, or its step graph, is not there.
    DamagedFileError
        When a file is not the one that was written.
    ImportError
        Without ``onnxruntime``.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.models.audio import Linear
    >>> from deepSTRF.models.wav2spec import make_wav2spec
    >>> from deepSTRF.streaming import Stream
    >>> model = Linear(8, 5, out_neurons=3, wav2spec=make_wav2spec("mel", 16000, 5.0, n_filters=8))
    >>> sound = 0.1 * np.random.default_rng(0).standard_normal(800).astype(np.float32)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     fast = ExportedModel(model.export(folder, graphs=["step"]))
    >>> bool(np.allclose(Stream(fast).push(sound), Stream(model).push(sound), atol=1e-5))
    True
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        files = read_folder(folder, KIND, _REMEDY)
        if not files.has(STEP_FILE):
            there = "an export without a step graph" if files.files else "no export of a model"
            raise FileNotFoundError(
                f"{files.folder} is {there}: streams run from {STEP_FILE}, which model.export(folder) writes"
            )
        content = files.read(STEP_FILE)
        onnxruntime = require("onnxruntime", extra="export")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # a frame is less work than waking threads
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise damaged(files.folder / STEP_FILE, error, _REMEDY) from error
        with naming_damage(files.folder / STEP_FILE, _REMEDY):
            about = json.loads(session.get_modelmeta().custom_metadata_map[METADATA_KEY])
            self.name: str = about["model"]
            self.audio_fs: float | None = about["audio_fs"]
            self.hop: int = about["hop"] or 1
            self.F: int | None = about["bands"]
            self.dt_ms: float | None = about["dt_ms"]
            self.dtype: torch.dtype = getattr(torch, about["precision"])
            self.latency_ms = float("nan") if about["latency_ms"] is None else float(about["latency_ms"])
            self.O: int = about["outputs"][0]["shape"][1]
            self.fitted_on = FittedOn.from_record({name: about[name] for name in _FIT})
            #: Names of the inputs, the sound first and then the parts of the state.
            self._inputs: list[str] = [one["name"] for one in about["inputs"]]
            self._parts: dict[str, tuple[list[int], torch.dtype]] = {
                one["name"].removeprefix("state."): (one["shape"][1:], getattr(torch, one["dtype"]))
                for one in about["inputs"][1:]
            }
            self._outputs: list[str] = [one["name"] for one in about["outputs"]]
        self._run = session.run
        self._content = content

    @property
    def hears(self) -> bool:
        """Whether the input is sound; spectrograms otherwise."""
        return self._inputs[0] == "sound"

    def init_state(self, batch: int, *, device: Device = None, dtype: DType = None) -> State:
        """Return the state before the first frame, of ``batch`` streams: zeros, on the CPU."""
        return {name: torch.zeros(batch, *shape, dtype=kind) for name, (shape, kind) in self._parts.items()}

    def step(self, chunk: Tensor, state: State) -> tuple[Tensor, State]:
        """Respond to the next whole frames.

        Parameters
        ----------
        chunk : Tensor
            (B, 1, n * hop) samples, or (B, 1, F, n) frames.
        state : dict
            From `init_state` or the previous step; it is not changed.

        Returns
        -------
        tuple
            Rates (B, N, 1, n) and the next state.
        """
        sound, held, rates = chunk.numpy(), [state[name].numpy() for name in self._parts], []
        for start in range(0, sound.shape[-1], self.hop):
            frame = np.ascontiguousarray(sound[..., start : start + self.hop])
            made, *held = self._run(self._outputs, dict(zip(self._inputs, (frame, *held), strict=True)))
            rates.append(made)
        joined = rates[0] if len(rates) == 1 else np.concatenate(rates, axis=-1)
        following = {name: torch.from_numpy(part) for name, part in zip(self._parts, held, strict=True)}
        return torch.from_numpy(joined).unsqueeze(2), following

    def digest(self) -> bytes:
        """SHA-256 of the graph."""
        return hashlib.sha256(self._content).digest()

    def __repr__(self) -> str:
        """Return the model's class, the number of neurons and the precision."""
        return f"ExportedModel({self.name}, {self.O} neurons, {str(self.dtype).removeprefix('torch.')})"
