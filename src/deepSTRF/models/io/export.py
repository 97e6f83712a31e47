"""Graphs of a model for programs without this package: ONNX, or archives of ``torch.export``.

A folder holds ``sequence``, whole clips in and rates out, and ``step``, one frame and the state in, rates and
the next state out; beside them ``metadata.json``, which each graph also carries inside. A graph is traced
from a copy of the model in eval mode on the CPU, and kept when the runtime that will load it agrees with the
model at other batch sizes and lengths.
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import math
import operator
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF import __version__
from deepSTRF._files import MANIFEST, check_kind, replace_folder
from deepSTRF._optional import require
from deepSTRF._validation import check_choice
from deepSTRF.models.backbones.base import Backbone
from deepSTRF.models.configurable import HALF_PRECISION, check_has_values, placement
from deepSTRF.models.derived import frozen
from deepSTRF.models.fitted_on import bin_width_ms, output_names
from deepSTRF.models.io.weights import PRECISIONS, pack_weights, round_weights
from deepSTRF.models.streaming import (
    algorithmic_latency_ms,
    merge_streams,
    split_streams,
    state_of,
    state_tensors,
    stream_axes,
)
from deepSTRF.models.wav2spec.pcen import PCEN

__all__ = ["FORMATS", "GRAPHS", "KIND", "METADATA_KEY", "export_model"]

#: Kind of the artefact in its manifest.
KIND = "exported model"
#: Suffix of the files of each format.
FORMATS = {"onnx": ".onnx", "torch": ".pt2"}
#: Graphs of a folder.
GRAPHS: tuple[str, ...] = ("sequence", "step")
#: Key of the metadata in ONNX files; archives of torch hold it as the extra file of this name.
METADATA_KEY = "deepSTRF.json"
METADATA_FILE = "metadata.json"
#: Layout of the metadata.
_FORMAT = 1
#: Largest difference between graph and model, in ranges of the output.
TOLERANCE = 1e-5
#: Rounding that a graph may differ by where rates hardly vary, in units of the last digit.
_ROUNDING = 8
#: (streams, frames) of the clips, and of the steps of a stream, on which graph and model are compared.
_CHECKED, _CHECKED_STEPS = ((1, 1), (3, 77), (2, 400)), ((1, 40), (3, 40), (2, 1000))
#: Amplitude of quiet stretches in units of the loud ones (60 dB); cycles per sample of the tone.
_QUIET, _TONE = 1e-3, 0.05
#: (streams, frames) of the example that is traced; neither is 0 or 1, which a trace takes for constants.
_TRACED = (2, 41)
#: Loggers of the exporters, whose notes are for their authors.
_LOGGERS = (
    "torch.onnx",
    "torch.export",
    "torch.fx",
    "torch._dynamo",
    "torch._export",
    "onnxscript",
    "onnx_ir",
)

_Array = NDArray[Any]
#: Runs a graph: arrays in the order of its inputs to arrays in the order of its outputs.
_Runner = Callable[[Sequence[_Array]], list[_Array]]


class _NotExportableError(Exception):
    """One form of a graph that cannot be made, and why; another form may do."""


class _Part(NamedTuple):
    """One tensor of the state of a step graph."""

    #: Path of the branches that lead to it, joined by dots.
    name: str
    #: Sizes without the batch.
    shape: tuple[int, ...]
    dtype: torch.dtype


def export_model(
    model: Any,
    path: str | os.PathLike[str],
    *,
    format: str = "onnx",
    graphs: Sequence[str] = GRAPHS,
    precision: str = "float32",
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Write graphs of a model into a folder, see `deepSTRF.models.NeuralModel.export`."""
    check_choice("format", format, tuple(FORMATS))
    check_choice("precision", precision, PRECISIONS)
    if precision != "float32" and format != "onnx":
        raise ValueError(f"precision={precision!r} needs format='onnx'; archives keep weights as they are")
    wanted = _wanted(graphs)
    folder = Path(path)
    _check_folder(folder, [f"{graph}{FORMATS[format]}" for graph in wanted])
    _check_model(model)
    if format == "onnx":
        for package in ("onnx", "onnxscript", "onnxruntime"):
            require(package, extra="export")
    stored: dict[str, Any] = {"precision": precision}
    with _quietly(), torch.no_grad():
        if precision != "float32":
            model, facts = _rounded(model, precision)
            stored |= facts
        twin = _copied(model)
        stream = _Step(twin) if _streams(model, twin, wanted) else None
        job = _Job(twin, stream, _Sound.of(twin), format, stored, progress or (lambda _: None))
        made = {graph: _graph(graph, job) for graph in wanted}
    described = {graph: metadata for graph, (_, metadata) in made.items()}
    files = [(f"{graph}{FORMATS[format]}", content) for graph, (content, _) in made.items()]
    files.append((METADATA_FILE, json.dumps(described, indent=1).encode()))
    replace_folder(folder, files, KIND)
    return folder


# ---- what can be exported


def _wanted(graphs: Sequence[str]) -> list[str]:
    names = [graphs] if isinstance(graphs, str) else list(graphs)
    for name in names:
        check_choice("graphs", name, GRAPHS)
    if not names:
        raise ValueError(f"graphs must name at least one of {', '.join(GRAPHS)}, got none")
    return [graph for graph in GRAPHS if graph in names]


def _check_folder(folder: Path, names: Iterable[str]) -> None:
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file; give a folder to export")
    there = [name for name in (*names, METADATA_FILE) if os.path.lexists(folder / name)]
    if there and not os.path.lexists(folder / MANIFEST):
        raise FileExistsError(
            f"{folder} holds {' and '.join(there)} of something else; they would be lost: give another "
            "folder, or move them away first"
        )
    check_kind(folder, KIND)


def _check_model(model: Any) -> None:
    """Raise an error for a model whose graphs would not be what it predicts."""
    model.validate()
    check_has_values(model)
    kinds = {value.dtype for value in (*model.parameters(), *model.buffers()) if value.is_floating_point()}
    if not kinds.isdisjoint(HALF_PRECISION):
        half = ", ".join(sorted(str(kind) for kind in kinds & set(HALF_PRECISION)))
        raise ValueError(f"the model is in {half}: export it in single precision, model.float().export(...)")
    if getattr(model.readout, "time_input", False):
        raise ValueError(
            f"{type(model).__name__}(time_input=True) drifts with the time of the recording, for which its "
            "graphs have no input: export a model that was built with time_input=False"
        )


def _copied(model: nn.Module) -> nn.Module:
    """The model in eval mode on the CPU, frozen; the one given stays as it is."""
    twin = frozen(copy.deepcopy(model).cpu())
    for part in twin.modules():  # a scan takes no two tensors of one storage
        for held in (part._buffers, vars(part)):
            for name, value in held.items():
                if isinstance(value, Tensor):
                    held[name] = value.clone()
    return twin


def _rounded(model: nn.Module, precision: str) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of a model with rounded weights; what was rounded, and how far predictions for noise moved."""
    sound = _Sound.of(model)
    if sound.dtype != torch.float32:
        raise ValueError(
            f"precision={precision!r} needs a model in float32, not {sound.dtype}: model.float()"
        )
    x = sound.noise(*_CHECKED[-1], torch.Generator().manual_seed(1))
    copied = copy.deepcopy(model).cpu().eval()
    before = copied(x)
    names = round_weights(copied, precision)
    span = float(before.max() - before.min()) or 1.0
    moved = float((copied(x) - before).abs().max()) / span
    facts = {
        "rounded": names,
        "largest_difference_from_model": moved,
        "in": "ranges of the output, for noise",
    }
    return copied, facts


def _streams(model: nn.Module, twin: Any, wanted: Sequence[str]) -> bool:
    """Whether a model runs frame by frame; an error where a step graph is asked for and it does not."""
    try:
        twin.init_state(1)
    except (TypeError, ValueError, NotImplementedError) as error:
        if "step" not in wanted:
            return False
        raise ValueError(
            f"{type(model).__name__} has no step graph: {error}. The graph of whole clips does not need it: "
            "model.export(path, graphs=['sequence'])"
        ) from error
    return True


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Context without the exporters' warnings, which are about their own code."""
    levels = [(logging.getLogger(name), logging.getLogger(name).level) for name in _LOGGERS]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger, _ in levels:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in levels:
                logger.setLevel(level)


# ---- the graphs as modules


class _Whole(nn.Module):
    """Whole clips through ``forward``: (B, 1, frames * hop) or (B, 1, F, frames) to (B, N, frames)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.model(x)
        return y[:, :, 0]


class _Step(nn.Module):
    """One frame and the state, streams first and counted from the start, to rates and the next state."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.axes = stream_axes(model)
        start = state_tensors(split_streams(model.init_state(1), self.axes))
        every = [(_Part(name, tuple(value.shape[1:]), value.dtype), value) for name, value in start.items()]
        self.empty = [part for part, value in every if not value.numel()]
        self.parts = [part for part, value in every if value.numel()]
        #: Names of the buffers with the values that parts start from, where they are not zero.
        self.starts: dict[str, str] = {}
        for part, value in every:
            if bool(value.any()):
                if value.is_floating_point() and not bool(torch.isfinite(value).all()):
                    raise ValueError(f"the state {part.name} does not start at finite values")
                self.starts[part.name] = f"start_{len(self.starts)}"
                self.register_buffer(self.starts[part.name], value.detach().clone())

    def forward(self, x: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        tensors = {
            part.name: self._shifted(part, value, 1) for part, value in zip(self.parts, state, strict=True)
        }
        tensors |= dict(zip((part.name for part in self.empty), self.zeros(x, self.empty), strict=True))
        y, following = self.model.step(x, merge_streams(state_of(tensors, self.axes), self.axes))
        tensors = state_tensors(split_streams(following, self.axes))
        after = [self._shifted(part, tensors[part.name], -1) for part in self.parts]
        return (y[:, :, 0], *(value.clone(memory_format=torch.contiguous_format) for value in after))

    def zeros(self, x: Tensor, parts: Sequence[_Part] | None = None) -> list[Tensor]:
        """The state before the first frame of an input (B, ...)."""
        chosen = self.parts if parts is None else parts
        return [x.new_zeros((x.shape[0], *part.shape), dtype=part.dtype) for part in chosen]

    def _shifted(self, part: _Part, value: Tensor, sign: int) -> Tensor:
        """A part from its difference from the start, or back."""
        if part.name not in self.starts:
            return value
        start: Tensor = getattr(self, self.starts[part.name])
        return value ^ start if part.dtype == torch.bool else value + sign * start


class _Scan(nn.Module):
    """Whole clips as a loop over the step: for models whose ``forward`` depends on the length of the clip."""

    def __init__(self, step: _Step, hop: int | None) -> None:
        super().__init__()
        self.step, self.hop = step, hop

    def forward(self, x: Tensor) -> Tensor:
        from torch._higher_order_ops.scan import scan

        if self.hop is None:
            frames = x.permute(3, 0, 1, 2).unsqueeze(-1)
        else:
            frames = x.reshape(x.shape[0], 1, -1, self.hop).permute(2, 0, 1, 3)
        start = self.step.zeros(x) or [x.new_zeros((x.shape[0], 1))]  # a scan carries something

        def one(carry: list[Tensor], frame: Tensor) -> tuple[list[Tensor], Tensor]:
            state = carry if self.step.parts else []
            y, *following = self.step(frame, *state)
            return [value.clone() for value in following or carry], y[..., 0].clone()

        _, rates = scan(one, start, frames)
        y: Tensor = rates.permute(1, 2, 0)
        return y


# ---- one graph: traced, written, checked


@dataclass(frozen=True)
class _Sound:
    """What goes into the graphs of a model: waveforms, or spectrograms of F bands."""

    name: str
    hop: int | None
    bands: int | None
    dtype: torch.dtype

    @classmethod
    def of(cls, model: Any) -> _Sound:
        dtype = placement(model)[1]
        if isinstance(model.wav2spec, nn.Identity):
            return cls("spectrogram", None, int(model.F), dtype)
        hop = getattr(model.wav2spec, "hop", None)
        if not isinstance(hop, int):
            raise ValueError(  # noqa: TRY004 (no argument)
                f"the front-end {type(model.wav2spec).__name__} states no hop (samples per frame): set "
                "self.hop in it"
            )
        return cls("sound", hop, None, dtype)

    def noise(self, streams: int, frames: int, generator: torch.Generator) -> Tensor:
        """Noise of the level that front-ends are made for."""
        return self._noise(streams, frames, generator).to(self.dtype)

    def _noise(self, streams: int, frames: int, generator: torch.Generator) -> Tensor:
        if self.hop is not None:
            return 0.1 * torch.randn(streams, 1, frames * self.hop, generator=generator, dtype=torch.float64)
        size = (streams, 1, int(self.bands or 1), frames)
        return torch.randn(size, generator=generator, dtype=torch.float64)

    def clips(self, streams: int, frames: int, generator: torch.Generator) -> Tensor:
        """Sounds to compare on: noise, in one stream with steps of 60 dB, in others a click and a tone."""
        x = self._noise(streams, frames, generator)
        time = torch.arange(x.shape[-1], dtype=torch.float64)
        quarter = (4 * time / len(time)).floor()
        if streams > 1:
            x[-1] *= torch.where(quarter % 2 == 0, _QUIET, 1.0)
        if streams > 2:
            x[0] = 0.0
            x[0, ..., len(time) // 3] = 1.0
            # alone, a tone leaves other bands to rounding, which logarithms then amplify
            tone = 0.1 * torch.sin(2 * torch.pi * _TONE * time) if self.hop is not None else 1.0
            x[1] = torch.where(quarter == 1, tone + _QUIET * x[1], 0.0)
        return x.to(self.dtype)

    def shape(self, frames: str | int) -> list[str | int]:
        """Sizes with the batch by its name."""
        if self.hop is None:
            return ["batch", 1, int(self.bands or 1), frames]
        return ["batch", 1, self.hop if frames == 1 else f"{self.hop}*{frames}"]


@dataclass(frozen=True)
class _Job:
    """One export: the model, its form by steps, what it hears, and what is written."""

    model: Any
    stream: _Step | None
    sound: _Sound
    format: str
    #: Of the weights, for the metadata.
    stored: dict[str, Any]
    #: Takes a line for each stage.
    say: Callable[[str], None]


def _graph(graph: str, job: _Job) -> tuple[bytes, dict[str, Any]]:
    """Content and metadata of one graph, in the first form that agrees with the model."""
    if graph == "step":
        if job.stream is None:
            raise ValueError("a step graph needs a model that runs frame by frame")
        forms: list[tuple[str, nn.Module]] = [("step", job.stream)]
    else:
        forms = [("forward", _Whole(job.model))]
        if job.stream is not None:
            forms.append(("scan over steps", _Scan(job.stream, job.sound.hop)))
        if any(isinstance(part, Backbone | PCEN) for part in job.model.modules()):
            forms.reverse()  # their blocks depend on the length of the clip
    reasons: list[str] = []
    for form, module in forms:
        try:
            return _made(graph, form, module, job, is_last=form == forms[-1][0])
        except _NotExportableError as error:
            reasons.append(f"{form}: {error}")
    raise ValueError(
        f"the {graph} graph of {type(job.model).__name__} cannot be exported as {job.format}. "
        f"{'; '.join(reasons)}"
    )


def _made(
    graph: str, form: str, module: nn.Module, job: _Job, *, is_last: bool
) -> tuple[bytes, dict[str, Any]]:
    what = graph if form == graph else f"{graph} ({form})"
    job.say(f"{what}: tracing")
    program = _traced(graph, module, job.stream, job.sound)
    if form == "forward" and job.format == "onnx" and not is_last:  # a conversion costs as much as a trace
        _compared(graph, _run_by_torch(program), job)
    metadata = {**_metadata(graph, form, job.model, job.stream, job.sound), "weights": job.stored}
    names = [one["name"] for one in metadata["inputs"]], [one["name"] for one in metadata["outputs"]]
    job.say(f"{what}: writing {job.format}")
    content = _writer(program, names, job.format, job.stored["precision"])
    run = _runner(content(metadata), job.format)
    job.say(f"{what}: checking against the model")
    metadata["checked"] = _compared(graph, run, job)
    return content(metadata), metadata


def _traced(graph: str, module: nn.Module, stream: _Step | None, sound: _Sound) -> Any:
    """The graph as an ExportedProgram, with free sizes of batch and frames."""
    generator = torch.Generator().manual_seed(0)
    streams, frames = _TRACED
    batch = torch.export.Dim.DYNAMIC
    if graph == "step":
        x = sound.noise(streams, 1, generator)
        state = [] if stream is None else stream.zeros(x)
        example: tuple[Tensor, ...] = (x, *state)
        sizes: Any = ({0: batch}, tuple({0: batch} for _ in state)) if state else ({0: batch},)
    else:
        free = torch.export.Dim("frames")
        example = (sound.noise(streams, frames, generator),)
        sizes = ({0: batch, 3: free},) if sound.hop is None else ({0: batch, 2: sound.hop * free},)
    try:
        with torch._dynamo.config.patch(capture_scalar_outputs=True):
            program = torch.export.export(module, example, dynamic_shapes=sizes)
    except Exception as error:
        raise _NotExportableError(_first_line(error)) from error
    # Guards say which branch was taken at the sizes of the example; other sizes are compared below.
    program._guards_code = []
    for inner in program.graph_module.modules():
        graph_of = getattr(inner, "graph", None)
        if graph_of is not None:
            graph_of.eliminate_dead_code()  # cuts of nothing, which archives cannot hold
            for node in list(graph_of.nodes):
                node.meta.pop("stack_trace", None)  # paths of this machine
                if node.target is torch.sym_sum:  # archives hold sums of two sizes only
                    _add_in_turn(graph_of, node)
            inner.recompile()
    return program


def _add_in_turn(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Write a sum of sizes as additions of two."""
    total, *others = cast("Sequence[Any]", node.args[0])
    for other in others:
        size = sum(one.meta["val"] if isinstance(one, torch.fx.Node) else one for one in (total, other))
        with graph.inserting_before(node):
            total = graph.call_function(operator.add, (total, other))
        total.meta = {**node.meta, "val": size}
    node.replace_all_uses_with(total)
    graph.erase_node(node)


def _first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


def _writer(
    program: Any, names: tuple[list[str], list[str]], format: str, precision: str
) -> Callable[[Any], bytes]:
    """A function from metadata to the content of a file."""
    if format == "torch":

        def archive(metadata: Any) -> bytes:
            buffer = io.BytesIO()
            try:
                torch.export.save(program, buffer, extra_files={METADATA_KEY: json.dumps(metadata)})
            except Exception as error:  # an operator that archives do not hold
                raise _NotExportableError(_first_line(error)) from error
            return buffer.getvalue()

        return archive
    try:
        converted: Any = torch.onnx.export(
            program,
            (),
            dynamo=True,
            verbose=False,
            optimize=False,  # its rewriting takes + 1e-9 for + 0
            input_names=names[0],
            output_names=names[1],
            custom_translation_table=_exact_near_zero(),
        )
        optimizer = require("onnxscript", extra="export").optimizer
        optimizer.fold_constants(converted.model, onnx_shape_inference=True)
        optimizer.remove_unused_nodes(converted.model)
    except Exception as error:
        raise _NotExportableError(_first_line(error)) from error
    proto = converted.model_proto
    _name_sizes(proto.graph, _symbols(program))
    if precision != "float32":
        pack_weights(proto, precision)
    entry = proto.metadata_props.add()
    entry.key = METADATA_KEY

    def onnx_file(metadata: Any) -> bytes:
        entry.value = json.dumps(metadata)
        content: bytes = proto.SerializeToString()
        return content

    return onnx_file


def _exact_near_zero() -> dict[Any, Callable[..., Any]]:
    """ONNX functions of operators that it lacks, which keep all digits of small numbers.

    The exporter writes ``exp(x) - 1`` and ``log(1 + x)``, in which the gain control of quiet sound drowns.
    """
    op = require("onnxscript", extra="export").opset18

    def expm1(x: Any) -> Any:
        half = op.Tanh(op.Div(x, 2.0))
        exact = op.Div(op.Mul(half, 2.0), op.Sub(1.0, half))  # near zero and below
        return op.Where(op.Greater(x, 1.0), op.Sub(op.Exp(x), 1.0), exact)

    def log1p(x: Any) -> Any:
        exact = op.Mul(op.Atanh(op.Div(x, op.Add(x, 2.0))), 2.0)  # near zero and below
        return op.Where(op.Greater(x, 1.0), op.Log(op.Add(x, 1.0)), exact)

    aten = torch.ops.aten
    return {aten.expm1.default: expm1, aten.log1p.default: log1p}


def _symbols(program: Any) -> dict[str, str]:
    """Names that the sizes of batch and frames have in a program."""
    shapes = [
        node.meta["val"].shape
        for node in program.graph.nodes
        if node.name in program.graph_signature.user_inputs
    ]
    axes = [(shape[0], "batch") for shape in shapes]  # tracing may name that of a part of the state anew
    found: dict[str, str] = {}
    for size, name in (*axes, (shapes[0][-1], "frames")):
        for symbol in getattr(getattr(size, "node", None), "expr", shapes[0][0].node.expr).free_symbols:
            found.setdefault(str(symbol), name)
    return found


def _name_sizes(graph: Any, names: Mapping[str, str]) -> None:
    """Give the free sizes of an ONNX graph their names, and leave out what traces left in it."""
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param:
                size.dim_param = re.sub(r"\w+", lambda found: names.get(found[0], found[0]), size.dim_param)
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _name_sizes(attribute.g, names)


# ---- the check against the model


def _runner(content: bytes, format: str) -> _Runner:
    if format == "torch":
        try:
            return _run_by_torch(torch.export.load(io.BytesIO(content)))
        except Exception as error:
            raise _NotExportableError(_first_line(error)) from error
    onnxruntime = require("onnxruntime", extra="export")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails at a size is an error of ours
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise _NotExportableError(_first_line(error)) from error
    names = [one.name for one in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _run_by_torch(program: Any) -> _Runner:
    """Runs a program of torch.export."""
    module = program.module()

    def run(arrays: Sequence[_Array]) -> list[_Array]:
        out = module(*(torch.from_numpy(array) for array in arrays))
        return [value.numpy() for value in (out if isinstance(out, tuple | list) else (out,))]

    return run


def _compared(graph: str, run: _Runner, job: _Job) -> dict[str, Any]:
    """Largest difference between a graph and the model, and where; an error where it is too large."""
    model, sound, generator = job.model, job.sound, torch.Generator().manual_seed(1)
    sizes = _CHECKED_STEPS if graph == "step" else _CHECKED
    worst = 0.0
    for streams, frames in sizes:
        x = sound.clips(streams, frames, generator)
        expected = model(x)[:, :, 0].numpy()
        if not np.isfinite(expected).all():
            raise ValueError(
                f"{type(model).__name__} predicts values that are not finite for noise, clicks or tones: its "
                "graph cannot be checked; look at its parameters"
            )
        try:
            if graph == "step":
                got = _stepped(run, x.numpy(), frames, sound, job.stream)
            else:
                (got,) = run([x.numpy()])
        except Exception as error:  # of a runtime
            raise _NotExportableError(f"at {streams} x {frames} frames: {_first_line(error)}") from error
        if got.shape != expected.shape or got.dtype != expected.dtype:
            raise _NotExportableError(
                f"it returns {got.shape} {got.dtype} in place of {expected.shape} {expected.dtype}"
            )
        if not np.isfinite(got).all():  # NaN is lost in a maximum
            raise _NotExportableError(f"at {streams} x {frames} frames: values that are not finite")
        axes, least = (1, 2), _ROUNDING * np.finfo(expected.dtype).eps / TOLERANCE
        span = np.maximum(np.ptp(expected, axis=axes), least * np.abs(expected).max(axis=axes))
        differs = np.abs(got - expected).max(axis=axes) / np.where(span > 0, span, 1.0)
        worst = max(worst, float(differs.max()))  # each stream hears another sound
    if not worst <= TOLERANCE:
        raise _NotExportableError(
            f"it differs from the model by {worst:.1e} of the output's range (at most {TOLERANCE:g})"
        )
    format = job.format
    runtime = "torch" if format == "torch" else "onnxruntime"
    version = torch.__version__ if format == "torch" else require("onnxruntime", extra="export").__version__
    return {
        "largest_difference": worst,
        "in": "ranges of the output",
        "batch_and_frames": [list(size) for size in sizes],
        "runtime": f"{runtime} {version}",
    }


def _stepped(run: _Runner, x: _Array, frames: int, sound: _Sound, stream: _Step | None) -> _Array:
    """Rates (B, N, T) of a step graph, frame by frame from the start."""
    hop = sound.hop or 1
    state = [] if stream is None else [value.numpy() for value in stream.zeros(torch.from_numpy(x))]
    rates = []
    for t in range(frames):
        y, *state = run([np.ascontiguousarray(x[..., t * hop : (t + 1) * hop]), *state])
        rates.append(y)
    return np.concatenate(rates, axis=-1)


# ---- the metadata


def _metadata(graph: str, form: str, model: Any, stream: _Step | None, sound: _Sound) -> dict[str, Any]:
    """What a program needs to know of a graph."""
    fitted = getattr(model, "fitted_on", None)
    front_end = None if sound.hop is None else model.wav2spec
    rate = getattr(front_end, "audio_fs", None)
    latency = algorithmic_latency_ms(model)
    kind = str(sound.dtype).removeprefix("torch.")
    frames: str | int = 1 if graph == "step" else "frames"
    state = [] if graph == "sequence" or stream is None else stream.parts
    parts: list[dict[str, Any]] = [
        {"shape": ["batch", *part.shape], "dtype": str(part.dtype).removeprefix("torch.")} for part in state
    ]
    inputs: list[dict[str, Any]] = [{"name": sound.name, "shape": sound.shape(frames), "dtype": kind}]
    inputs += [{"name": f"state.{one.name}", **facts} for one, facts in zip(state, parts, strict=True)]
    outputs: list[dict[str, Any]] = [
        {"name": "rates", "shape": ["batch", int(model.O), frames], "dtype": kind}
    ]
    outputs += [{"name": f"next.{one.name}", **facts} for one, facts in zip(state, parts, strict=True)]
    return {
        "format": _FORMAT,
        "graph": graph,
        "form": form,
        "model": type(model).__name__,
        "package": f"deepSTRF {__version__}",
        "precision": kind,
        "inputs": inputs,
        "outputs": outputs,
        "protocol": _PROTOCOL[graph],
        "audio_fs": rate,
        "hop": sound.hop,
        "dt_ms": bin_width_ms(model),
        "bands": getattr(model, "F", None),
        "frequencies_hz": _frequencies(front_end, fitted),
        "features": getattr(model, "features", None) or _features(fitted),
        "neurons": output_names(model),
        "response_unit": getattr(fitted, "response_unit", None),
        "level": getattr(fitted, "level", None),
        "rms": getattr(fitted, "rms", None),
        "standardized": getattr(fitted, "standardized", None),
        "latency_ms": None if math.isnan(latency) else latency,
        "lookahead_frames": int(getattr(model, "lookahead_frames", 0)),
    }


_PROTOCOL = {
    "sequence": "Whole clips from silence before their first sample; any number of clips and frames.",
    "step": (
        "One frame per call. Before the first frame every state.* is zero; each next.* goes into the state.* "
        "of the same name at the next call. Streams of a batch do not mix."
    ),
}


def _frequencies(front_end: Any, fitted: Any) -> list[float] | None:
    try:
        found = getattr(front_end, "frequencies_hz", None)
    except NotImplementedError:
        found = None
    if found is None:
        found = getattr(fitted, "frequencies_hz", None)
    return None if found is None else [float(value) for value in found]


def _features(fitted: Any) -> dict[str, int] | None:
    """Rows of the features of the fit by name."""
    return None if fitted is None else fitted.feature_sizes() or None
