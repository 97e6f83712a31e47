"""The recurrence of gated recurrent units on the CPU: one loop forward and one backward, written out.

``nn.GRU`` records a dozen operations per frame for its gradient, which costs several times the arithmetic.
Here a clip is one node of the graph: products with the input, and those that give the gradients of weights,
are single matrix products over all frames, and NumPy runs what is left for each frame.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["gru_recurrence", "runs_in_numpy"]

_Array = NDArray[Any]

#: Largest matrix (elements) whose product with a vector OpenBLAS, NumPy's library, leaves to one thread
#: (``interface/gemv.c``: 2304 * GEMM_MULTITHREAD_THRESHOLD). Waking a second one costs more than a frame.
_ONE_THREAD = 9216


def runs_in_numpy(x: Tensor) -> bool:
    """Whether NumPy can compute with a tensor: on the CPU, outside compilers, traces and transforms."""
    return (
        not torch.compiler.is_compiling()
        and x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and type(x) in (Tensor, torch.nn.Parameter)
        and torch.func.debug_unwrap(x) is x
        and forward_ad.unpack_dual(x).tangent is None  # type: ignore[no-untyped-call]
    )


def gru_recurrence(drive: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Run G independent groups of gated recurrent units along time; returns their outputs (T, G, B, H).

    ``r, z = sigmoid(drive_r,z + U_r,z h)``, ``n = tanh(drive_n + r (U_n h + bias))``, ``h' = n + z (h - n)``.
    ``drive`` (T, G, B, 3 H) holds the products with the input, and all biases but that inside the reset gate,
    in the order r, z, n; ``h`` (G, B, H) is the state before the first frame, ``weight`` (G, H, 3 H) are the
    transposed recurrent weights, ``bias`` is (G, H).
    """
    if not all(map(runs_in_numpy, (drive, h, weight, bias))):
        return _by_torch(drive, h, weight, bias)
    out: Tensor = _Recurrence.apply(drive, h, weight, bias)  # type: ignore[no-untyped-call]
    return out


class _Recurrence(torch.autograd.Function):
    """`gru_recurrence` as one node; a gradient of its gradient goes through operations of torch."""

    @staticmethod
    def forward(ctx: Any, drive: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        arrays = [tensor.detach().numpy() for tensor in (drive, h, weight, bias)]
        out, *inner = _forward(*arrays)
        result = torch.from_numpy(out)
        ctx.save_for_backward(drive, h, weight, bias, result)
        ctx.inner = inner
        return result

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        drive, h, weight, bias, out = ctx.saved_tensors
        again = torch.is_grad_enabled()  # create_graph=True
        values = None if again else _values(grads[0])
        if values is None:
            inputs = drive, h, weight, bias
            needed = [tensor for tensor in inputs if tensor.requires_grad]
            with torch.enable_grad():
                y = _by_torch(*inputs)
            found = iter(torch.autograd.grad(y, needed, grads[0], create_graph=again))
            return tuple(next(found) if tensor.requires_grad else None for tensor in inputs)
        arrays = _backward(values, h.detach().numpy(), weight.detach().numpy(), out.numpy(), *ctx.inner)
        return tuple(torch.from_numpy(array) for array in arrays)


def _values(grad: Tensor) -> _Array | None:
    """Values of a gradient; None for many at once, by vmap (``is_grads_batched``)."""
    try:
        return grad.detach().numpy() if runs_in_numpy(grad) else None
    except RuntimeError:
        return None


def _forward(drive: _Array, h: _Array, weight: _Array, bias: _Array) -> tuple[_Array, ...]:
    """Outputs, gates r and z (T, G, B, 2 H), candidates n, and U_n h + bias (T, G, B, H)."""
    size = h.shape[-1]
    half = np.full(3 * size, 0.5, drive.dtype)  # sigmoid(x) = (1 + tanh(x / 2)) / 2
    half[2 * size :] = 1.0
    drive, weight, bias = drive * half, weight * half, bias[:, None]
    gates, inner = np.ascontiguousarray(drive[..., : 2 * size]), np.ascontiguousarray(drive[..., 2 * size :])
    out, recurrent = np.empty_like(inner), np.empty_like(inner)
    product = np.empty(drive.shape[1:], drive.dtype)
    blocks, in_blocks = _in_blocks(weight, product)
    to_gates, to_inner = product[..., : 2 * size], product[..., 2 * size :]
    for gate, reset, update, n, hidden, new in zip(
        gates, gates[..., :size], gates[..., size:], inner, recurrent, out, strict=True
    ):
        np.matmul(h[:, None], blocks, out=in_blocks)
        gate += to_gates
        np.tanh(gate, out=gate)
        gate *= 0.5
        gate += 0.5
        np.add(to_inner, bias, out=hidden)
        np.multiply(reset, hidden, out=new)
        n += new
        np.tanh(n, out=n)
        np.subtract(h, n, out=new)
        new *= update
        new += n
        h = new
    return out, gates, inner, recurrent


def _backward(
    grad: _Array, h: _Array, weight: _Array, out: _Array, gates: _Array, n: _Array, recurrent: _Array
) -> tuple[_Array, ...]:
    """Gradients of drive, h, weight and bias; ``d`` of a gate is that of its argument."""
    frames, groups, batch, size = out.shape
    r, z = gates[..., :size], gates[..., size:]
    before = np.concatenate([h[None], out[:-1]])
    # each gate's share of the gradient of the new state, for all frames at once
    share = np.empty((frames, groups, batch, 3, size), out.dtype)
    d_inner = (1 - z) * (1 - n * n)
    share[..., 0, :] = d_inner * recurrent * r * (1 - r)
    share[..., 1, :] = (before - n) * z * (1 - z)
    share[..., 2, :] = d_inner * r
    d_out, d_h = np.empty_like(out), np.zeros_like(h)
    blocks, in_blocks = _in_blocks(weight.swapaxes(1, 2), d_h)
    z = np.ascontiguousarray(z)
    kept = np.empty_like(h)
    flat = share.reshape(frames, groups, batch, 3 * size)
    for t in range(frames - 1, -1, -1):
        now = d_out[t]
        np.add(grad[t], d_h, out=now)
        share[t] *= now[..., None, :]
        np.matmul(flat[t][:, None], blocks, out=in_blocks)
        np.multiply(now, z[t], out=kept)
        d_h += kept
    by_group = (1, 0, 2, 3)
    states = torch.from_numpy(before.transpose(by_group).reshape(groups, frames * batch, size))
    to_states = torch.from_numpy(flat.transpose(by_group).reshape(groups, frames * batch, 3 * size))
    d_weight = (states.mT @ to_states).numpy()
    d_bias = share[..., 2, :].sum((0, 2))
    share[..., 2, :] = d_out * d_inner
    return flat, d_h, d_weight, d_bias


def _in_blocks(weight: _Array, product: _Array) -> tuple[_Array, _Array]:
    """A matrix (G, K, N) cut along N for products of a vector, (G, n, K, N / n), and the product cut so."""
    groups, rows, columns = weight.shape
    n = 1
    if product.shape[1] == 1:  # for several clips at once it is a product of matrices
        n = next(n for n in range(-(-rows * columns // _ONE_THREAD), columns + 1) if columns % n == 0)
    blocks = weight.reshape(groups, rows, n, columns // n).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(blocks), product.reshape(groups, n, -1, columns // n)


def _by_torch(drive: Tensor, h: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The same in operations that torch differentiates."""
    out = []
    for now in drive:
        r, z, n = now.chunk(3, dim=-1)
        to_r, to_z, to_n = (h @ weight).chunk(3, dim=-1)
        z = torch.sigmoid(z + to_z)
        n = torch.tanh(n + torch.sigmoid(r + to_r) * (to_n + bias[:, None]))
        h = n + z * (h - n)
        out.append(h)
    return torch.stack(out)
