"""Curvature: the leading eigenvectors of the second derivative of a response by the stimulus before it.

Products with the Hessian come from differentiating twice (Pearlmutter 1994, doi 10.1162/neco.1994.6.1.147),
eigenvectors from Lanczos iterations; for networks of rectified units, whose Hessian is zero almost
everywhere, filters at a finite distance are compared instead (secant).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deepSTRF._validation import (
    check_choice,
    check_differentiable,
    check_positive_int,
    check_positive_number,
    checked_but,
    neuron_indices,
)
from deepSTRF.interpret.dstrf.autodiff import Jacobian
from deepSTRF.interpret.dstrf.estimate import BUDGET, output_slope, target_of, time_indices
from deepSTRF.interpret.dstrf.target import Target, check_model, replaced_output, submodule
from deepSTRF.interpret.dstrf.window_response import WindowResponse, noise_sd, window_length
from deepSTRF.models.prediction import differentiating

METHODS = ("exact", "secant")
#: Weights up to which the whole matrix is made: below this, iterations save nothing.
SMALL = 64
#: Accuracy of eigenvalues, relative to the largest, by bytes of the model's type: products are no better.
ACCURACY = {2: 1e-3, 4: 1e-6, 8: 1e-12}


@dataclass(frozen=True)
class Curvature:
    """The strongest second-order patterns of one neuron at several times.

    Around the stimulus X of a time, ``response(X + d) = response + filter . d + sum_k e_k (p_k . d)^2 / 2``
    with the eigenvalues e and patterns p, to second order and up to the patterns that are not returned.

    Attributes
    ----------
    eigenvalues : Tensor (T, K). Falling in magnitude, in response units per squared stimulus unit. Positive:
        a change along the pattern raises the response, whatever its sign; negative: it lowers it.
    patterns : Tensor (T, K, L, F). Of norm 1, with a positive largest entry; lags from the oldest frame to
        the current one, zero before the clip.
    filters : Tensor (T, L, F). First order: the dynamic STRF at each time.
    response : Tensor (T,). The model's responses.
    flat : Tensor (T,). Times at which there is no curvature at all.
    times : list of int. Which frames.
    neuron : int. Which neuron.
    method : {"exact", "secant"}. How.
    scale : float or None. With ``"secant"``: standard deviation of the change of each entry, in stimulus
        units.
    """

    eigenvalues: Tensor
    patterns: Tensor
    filters: Tensor
    response: Tensor
    flat: Tensor
    times: list[int]
    neuron: int
    method: str
    scale: float | None


@checked_but("model", "neuron")
def curvature(
    model: nn.Module,
    stimulus: Tensor,
    neuron: int,
    times: int | slice | Sequence[int],
    *,
    n_patterns: int = 4,
    lags: int | None = None,
    wrt: str = "spectrogram",
    skip_nonlinearity: str | None = None,
    method: str = "exact",
    scale: float = 0.3,
    n_directions: int | None = None,
    seed: int = 0,
    budget_bytes: int = BUDGET,
) -> Curvature:
    """Leading eigenvectors of the second derivative of a response by the stimulus before it.

    ``"exact"`` is the Hessian itself: products with it come from differentiating twice, eigenvectors from
    Lanczos iterations (ARPACK), so that it becomes a matrix only where it is small.

    Networks of rectified units consist of flat pieces: their Hessian is zero almost everywhere, though their
    filters change all the time. For them, and to ignore small fluctuations of any model, ``"secant"`` takes
    the curvature at a finite scale: it compares filters a step ahead and a step back along random orthogonal
    directions, ``H = D/S sum_s (w(X + h u_s) - w(X - h u_s)) u_s^T / 2h``, made symmetric. For a quadratic
    neuron this is the Hessian, exactly, at any scale (with whole sets of directions). With a kink within a
    step, a pattern is the difference of the filters on its sides.

    Parameters
    ----------
    model : nn.Module
        As for `dstrf`.
    stimulus : Tensor
        One clip, as for `dstrf`.
    neuron : int
        Which neuron.
    times : int, slice or sequence of int
        Which frames of the clip; each takes its own iterations.
    n_patterns : int
        Eigenvectors, K, by magnitude.
    lags : int, optional
        Frames of the patterns; None is the receptive field, which must then be finite. Older frames stay.
    wrt : {"spectrogram", "samples"} or str
        See `dstrf`.
    skip_nonlinearity : str, optional
        Name of an output nonlinearity to leave out. Otherwise its own curvature adds a pattern like the
        filter.
    method : {"exact", "secant"}
        As above.
    scale : float
        ``"secant"``: the step is as long as noise whose standard deviation is this share of the stimulus's.
    n_directions : int, optional
        ``"secant"``: directions, S, each two filters; None is L * F, a whole orthogonal set, D.
    seed : int
        Of the directions, and of the start of the iterations.
    budget_bytes : int
        Working memory of the steps, roughly.

    Returns
    -------
    Curvature
        Eigenvalues and patterns per time.

    Raises
    ------
    ValueError
        When the exact curvature is zero at all times: the model is linear there, or made of flat pieces.
    ValueError, TypeError, IndexError, KeyError
        For illegal arguments.

    References
    ----------
    Pearlmutter 1994, fast products with the Hessian, doi 10.1162/neco.1994.6.1.147. Of filters at a finite
    scale: Stein 1981, doi 10.1214/aos/1176345632.

    Examples
    --------
    >>> class Energy(nn.Module):
    ...     receptive_field = 1
    ...     def forward(self, x):
    ...         return (x[:, :, :2].sum(2, keepdim=True)).square()
    >>> found = curvature(Energy(), torch.randn(3, 20), neuron=0, times=[10], n_patterns=1)
    >>> found.eigenvalues.round(decimals=4).tolist(), found.patterns[0, 0].round(decimals=4).tolist()
    ([[4.0]], [[0.7071, 0.7071, 0.0]])
    """
    check_choice("method", method, METHODS)
    wanted = check_positive_int("n_patterns", n_patterns)
    share, budget = check_positive_number("scale", scale), check_positive_int("budget_bytes", budget_bytes)
    directions = None if n_directions is None else check_positive_int("n_directions", n_directions)
    check_model(model)
    part = None if skip_nonlinearity is None else submodule(model, skip_nonlinearity)
    with contextlib.ExitStack() as stack:
        stack.enter_context(_twice_differentiable(model))
        target = target_of(model, stimulus, wrt)
        if part is not None:
            output_slope(target, part)  # an error for a part that is no output nonlinearity
            stack.enter_context(replaced_output(part))
        indices = neuron_indices(neuron, len(target.output()))
        if len(indices) != 1:
            raise ValueError(f"neuron must be one neuron, got {neuron!r}: take them one by one")
        index = indices[0]
        named = time_indices(times, target.frames.shape[-1])
        length = window_length(target, lags)
        step = noise_sd(target.frames, share) if method == "secant" else None
        rows = []
        for time in named:
            one = _Response(WindowResponse(target, time, length), index)
            if step is None:
                found = _eigenpairs(one, wanted, seed)
            else:
                found = _secant_pairs(one, wanted, step, directions, seed, budget)
            rows.append((*found, one))
    if step is None and not any(bool(values.any()) for values, _, _ in rows):
        raise ValueError(
            f"the second derivative of neuron {index} is zero at all {len(named)} times: the model is linear "
            "there, or its rectified units make it flat in pieces. method='secant' compares filters at a "
            "finite scale, and active_subspace(filters, centred=True) over the sounds of a clip"
        )
    return _gathered(rows, target, wanted, named, index, method, step)


class _Response:
    """One response as a function of its window, flattened."""

    def __init__(self, at: WindowResponse, neuron: int) -> None:
        self.at, self.neuron = at, neuron
        self.x = at.window.detach().clone().requires_grad_()
        y = at.respond(self.x)[0, neuron]
        check_differentiable(y)
        self.response = y.detach()
        (self.gradient,) = torch.autograd.grad(y, self.x, create_graph=True)

    @property
    def size(self) -> int:
        return self.x.numel()

    def product(self, vector: NDArray[np.float64]) -> NDArray[np.float64]:
        """The Hessian times a vector."""
        if not self.gradient.requires_grad:  # a linear model: its filter depends on nothing
            return np.zeros(self.size)
        v = torch.from_numpy(np.ascontiguousarray(vector).reshape(-1)).to(self.x).view_as(self.x)
        (turned,) = torch.autograd.grad(self.gradient, self.x, v, retain_graph=True, allow_unused=True)
        return np.zeros(self.size) if turned is None else _flat(turned)

    def gradients(self, windows: Tensor) -> NDArray[np.float64]:
        """Filters (B, D) at other windows (B, 1, F, L')."""
        x = windows.detach().clone().requires_grad_()
        y = self.at.respond(x)[:, self.neuron].sum()
        (found,) = torch.autograd.grad(y, x)
        return found.detach().flatten(1).double().cpu().numpy()


def _eigenpairs(one: _Response, wanted: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Eigenvalues (K,) by magnitude and vectors (K, D) of the Hessian."""
    size, draw = one.size, np.random.default_rng(seed)
    start = draw.standard_normal(size)
    # a matrix whose product with a random vector is zero is zero
    if not one.product(start).any():
        return np.zeros(0), np.zeros((0, size))
    if size <= SMALL or wanted >= size - 1:
        matrix = np.stack([one.product(row) for row in np.eye(size)])
        return _strongest((matrix + matrix.T) / 2, wanted)
    from scipy.sparse.linalg import LinearOperator

    operator = LinearOperator((size, size), matvec=one.product, dtype=np.float64)
    return _lanczos(operator, wanted, start, ACCURACY[one.x.element_size()])


def _lanczos(
    operator: Any, wanted: int, start: NDArray[np.float64], accuracy: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    from scipy.sparse.linalg import ArpackNoConvergence, eigsh

    try:
        values, vectors = eigsh(operator, k=wanted, which="LM", v0=start, tol=accuracy)
    except ArpackNoConvergence as error:
        raise ValueError(
            f"only {len(error.eigenvalues)} of n_patterns={wanted} eigenvectors settled: take fewer, or "
            "run the model in double precision, model.double()"
        ) from error
    order = np.argsort(-np.abs(values), kind="stable")
    return values[order], vectors[:, order].T


def _secant_pairs(
    one: _Response, wanted: int, step: float, n_directions: int | None, seed: int, budget: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The same of the curvature at a finite scale."""
    size, draw = one.size, np.random.default_rng(seed)
    count = n_directions or size
    length = step * size**0.5  # of noise with this standard deviation per entry
    last = one.at.past.shape[-1] + one.x.shape[-1] - 1
    per_copy = Jacobian(one.at.target, [one.neuron], one.x.shape[-1]).bytes_per_time([last])
    at_once = max(1, budget // max(1, 2 * per_copy))
    matrix = np.zeros((size, size))
    for directions in _orthogonal(count, size, draw):
        for first in range(0, len(directions), at_once):
            units = directions[first : first + at_once]
            moves = torch.from_numpy(length * units).to(one.x).view(-1, *one.x.shape[1:])
            base = one.x.detach()
            turn = one.gradients(torch.cat([base + moves, base - moves]))
            matrix += (turn[: len(units)] - turn[len(units) :]).T @ units
    matrix *= size / count / (2 * length)
    matrix = (matrix + matrix.T) / 2
    if size <= SMALL or wanted >= size - 1 or not matrix.any():
        return _strongest(matrix, wanted)
    return _lanczos(matrix, wanted, draw.standard_normal(size), ACCURACY[8])


def _orthogonal(count: int, size: int, draw: np.random.Generator) -> Iterator[NDArray[np.float64]]:
    """Unit vectors in sets that are orthogonal within, each set turned at random."""
    for first in range(0, count, size):
        square, scale = np.linalg.qr(draw.standard_normal((size, size)))
        yield (square * np.sign(np.diag(scale))).T[: count - first]


def _strongest(matrix: NDArray[np.float64], wanted: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if not matrix.any():
        return np.zeros(0), np.zeros((0, len(matrix)))
    values, vectors = np.linalg.eigh(matrix)
    order = np.argsort(-np.abs(values), kind="stable")[:wanted]
    return values[order], vectors[:, order].T


@contextlib.contextmanager
def _twice_differentiable(model: nn.Module) -> Iterator[None]:
    """As `differentiating`, with attention that can be differentiated again: fused kernels cannot."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with differentiating(model), sdpa_kernel(SDPBackend.MATH):
        yield


def _flat(gradient: Tensor) -> NDArray[np.float64]:
    flat: NDArray[np.float64] = gradient.detach().reshape(-1).double().cpu().numpy()
    return flat


def _gathered(
    rows: list[tuple[NDArray[np.float64], NDArray[np.float64], _Response]],
    target: Target,
    wanted: int,
    times: list[int],
    neuron: int,
    method: str,
    step: float | None,
) -> Curvature:
    """Everything on (lag, frequency) axes, zeros where there is no pattern."""
    bands, lags = target.frames.shape[2], rows[0][2].x.shape[-1] + rows[0][2].at.missing
    eigenvalues = torch.zeros(len(rows), wanted, dtype=torch.float64)
    patterns = torch.zeros(len(rows), wanted, lags, bands, dtype=torch.float64)
    filters = torch.zeros(len(rows), lags, bands, dtype=torch.float64)
    for row, (values, vectors, one) in enumerate(rows):
        late, known = one.at.missing, len(values)
        eigenvalues[row, :known] = torch.from_numpy(values)
        largest = np.take_along_axis(vectors, np.abs(vectors).argmax(1, keepdims=True), 1)
        maps = torch.from_numpy(vectors * np.sign(largest)).view(known, bands, lags - late)
        patterns[row, :known, late:] = maps.transpose(1, 2)
        filters[row, late:] = torch.from_numpy(_flat(one.gradient)).view(bands, -1).T
    shape = (lags * target.hop, 1) if target.samples else (lags, bands)
    return Curvature(
        eigenvalues=eigenvalues,
        patterns=patterns.reshape(len(rows), wanted, *shape),
        filters=filters.reshape(len(rows), *shape),
        response=torch.stack([one.response for _, _, one in rows]),
        flat=~eigenvalues.any(1),
        times=times,
        neuron=neuron,
        method=method,
        scale=step,
    )
