"""Weights of exported graphs in 16 or 8 bits: half or a quarter of the file, computed in single precision.

The weights of a copy of the model are rounded to values that the narrow type holds exactly (of int8 times one
scale per row), the graph is made of that copy, and what is exact in the narrow type is then stored so: a
graph equals the rounded model to the last bit of its weights, whatever the exporter folded or transposed.
Parameters of the front-end are not rounded, as filters, energies and logarithms need single precision, nor
are biases and poles. Runtimes widen the weights once, when they load a graph, so that a step costs what it
did.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF._optional import require

#: Precisions of weights; the first leaves them as they are.
PRECISIONS = ("float32", "float16", "int8")
#: Parameters of fewer values stay as they are: they cost nothing, and rounding them costs most.
LEAST_VALUES = 256
#: Names of parameters that stay as they are, though some stand in matrices: biases, one stacked on the other,
#: and poles of state-space systems, which enter through exponentials (S4D in int8: off by the whole range).
NOT_WEIGHTS = re.compile(r"bias|^A_(log|imag)$")
#: Whole numbers of int8 are symmetric around 0.
LARGEST = 127
#: Scales of int8 have this many significant bits, so that a whole number times a scale is exact in float32.
SCALE_BITS = 12
#: Rounding to 16 bits may move a weight by this share of the largest: more is out of their range.
HALF_ROUNDING = 2.0**-10

_Array = NDArray[Any]


def round_weights(model: nn.Module, precision: str) -> list[str]:
    """Round the weights of a model behind its front-end in place; return the names of those rounded."""
    rounded = []
    for name, parameter in model.named_parameters():
        vector = parameter.ndim < 2 or parameter.numel() < LEAST_VALUES
        other = name.startswith("wav2spec.") or NOT_WEIGHTS.search(name.rpartition(".")[2])
        if vector or other or parameter.dtype != torch.float32:
            continue
        values = parameter.detach()
        near = values.half().float() if precision == "float16" else _eight_bits(values)
        largest = float(values.abs().max())
        if precision == "float16" and not float((near - values).abs().max()) <= HALF_ROUNDING * largest:
            continue
        with torch.no_grad():  # counted as a change, so that values derived from it are made anew
            parameter.copy_(near)
        rounded.append(name)
    return rounded


def _eight_bits(values: Tensor) -> Tensor:
    """Nearest whole multiples of a scale: per output, of stacked matrices per row of each."""
    rows = values.flatten(2 if values.ndim == 3 else 1)
    scale = _few_bits(rows.abs().amax(dim=-1, keepdim=True) / LARGEST)
    whole = (rows / torch.where(scale > 0, scale, 1.0)).round().clamp(-LARGEST, LARGEST)
    return (whole * scale).reshape(values.shape)


def _few_bits(scale: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(scale.double())
    return torch.ldexp((mantissa * 2**SCALE_BITS).round() / 2**SCALE_BITS, exponent).float()


def pack_weights(proto: Any, precision: str) -> int:
    """Store the constants of an ONNX graph that are exact in a narrow type so; return how many."""
    onnx = require("onnx", extra="export")
    n_packed = 0
    for graph in _graphs(proto.graph):
        kept, stored, nodes = [], [], []
        for tensor in graph.initializer:
            values = onnx.numpy_helper.to_array(tensor)
            narrow = None
            if values.dtype == np.float32 and values.size >= LEAST_VALUES:
                narrow = _as_half(values) if precision == "float16" else _as_whole(values)
            if narrow is None:
                kept.append(tensor)
                continue
            n_packed += 1
            packed, scale = narrow
            name = tensor.name
            stored.append(onnx.numpy_helper.from_array(packed, f"{name}.{precision}"))
            wide = name if scale is None else f"{name}.wide"
            nodes.append(
                onnx.helper.make_node("Cast", [f"{name}.{precision}"], [wide], to=onnx.TensorProto.FLOAT)
            )
            if scale is not None:
                stored.append(onnx.numpy_helper.from_array(scale, f"{name}.scale"))
                nodes.append(onnx.helper.make_node("Mul", [wide, f"{name}.scale"], [name]))
        nodes += list(graph.node)
        del graph.initializer[:], graph.node[:]
        graph.initializer.extend([*kept, *stored])
        graph.node.extend(nodes)
    return n_packed


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those inside its nodes (the bodies of loops)."""
    inner = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    for one in inner:
        yield from _graphs(one)
    yield graph


def _as_half(values: _Array) -> tuple[_Array, None] | None:
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    return (half, None) if np.array_equal(half.astype(np.float32), values) else None


def _as_whole(values: _Array) -> tuple[_Array, _Array] | None:
    """Whole numbers and the scales whose product the values are exactly, along some of the axes."""
    for n_shared in range(values.ndim, 0, -1):
        for shared in itertools.combinations(range(values.ndim), n_shared):
            largest = np.abs(values).max(axis=shared, keepdims=True)
            scale = np.where(largest > 0, largest / np.float32(LARGEST), np.float32(1.0)).astype(np.float32)
            whole = np.round(values / scale)
            if 8 * scale.size < values.size and np.array_equal(whole.astype(np.float32) * scale, values):
                return whole.astype(np.int8), scale
    return None
