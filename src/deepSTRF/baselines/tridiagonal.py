"""Solutions of ``(G + lambda I) x = b`` for many lambda from one reduction of G to tridiagonal form.

``G = Q T Q'`` with T tridiagonal takes a fifth of the time of an eigendecomposition, and ``T + lambda I`` is
solved in time proportional to its size (Golub & Van Loan 2013, *Matrix Computations*, 8.3.1). Q stays the
product of its reflectors, in the block form of Schreiber & Van Loan 1989, doi 10.1137/0910005.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable

import numpy as np
import scipy
import torch
from numpy.typing import NDArray
from scipy.linalg import cython_lapack, lapack
from threadpoolctl import threadpool_limits
from torch import Tensor

__all__ = ["ShiftedSystems"]

#: Reflectors that are applied together, vectors that stay in a cache meanwhile, workspace of LAPACK per row.
BLOCK, AT_ONCE, WORKSPACE = 128, 256, 64


class ShiftedSystems:
    """Systems ``G + lambda I`` of one symmetric matrix (P, P) without negative eigenvalues but by rounding.

    Vectors are rows: (m, P) tensors in double precision. `rotate` takes them to the coordinates in which G is
    tridiagonal, where `solve` and `multiply` work, and `rotate_back` returns. The matrix is overwritten.
    """

    def __init__(self, gram: Tensor) -> None:
        size = len(gram)
        reduced = gram.contiguous()  # symmetric: the transpose is the same, and as LAPACK counts
        self._diagonal, self._off, tau = _reduce(reduced.numpy(), size)
        self._blocks = _reflectors(reduced, torch.from_numpy(tau))
        self._backwards: list[tuple[int, Tensor, Tensor]] | None = None
        self._spectrum: tuple[Tensor, Tensor] | None = None

    def rotate(self, rows: Tensor) -> Tensor:
        """Rows x as Q'x."""
        rotated = rows.clone(memory_format=torch.contiguous_format)
        for start, reflectors, factor in self._blocks:
            part = rotated[:, start:]
            part.addmm_((part @ reflectors.T) @ factor, reflectors, alpha=-1.0)
        return rotated

    def rotate_back(self, rows: Tensor) -> Tensor:
        """Rows y as Q y; they are overwritten."""
        if self._backwards is None:
            self._backwards = [
                (start, vectors, factor.T @ vectors) for start, vectors, factor in reversed(self._blocks)
            ]
        for piece in torch.split(rows, AT_ONCE):
            for start, reflectors, product in self._backwards:
                part = piece[:, start:]
                part.addmm_(part @ reflectors.T, product, alpha=-1.0)
        return rows

    def multiply(self, rows: Tensor) -> Tensor:
        """Rows y as T y."""
        diagonal, off = torch.from_numpy(self._diagonal), torch.from_numpy(self._off)
        product = rows * diagonal
        product[:, :-1] += rows[:, 1:] * off
        product[:, 1:] += rows[:, :-1] * off
        return product

    def norm(self) -> float:
        """Largest sum of absolute values in a row of T: at least the largest eigenvalue."""
        sizes = np.abs(self._diagonal)
        sizes[:-1] += np.abs(self._off)
        sizes[1:] += np.abs(self._off)
        return float(sizes.max())

    def solve(self, rows: Tensor, shift: float) -> Tensor:
        """Rows b as (T + shift I)^-1 b."""
        if not len(self._off):
            return rows / (max(float(self._diagonal[0]), 0.0) + shift)
        diagonal, off, singular = lapack.dpttrf(self._diagonal + shift, self._off)
        if singular:  # the shift is below the rounding error of the largest eigenvalue
            sizes, directions = self._eigenvectors()
            return (rows @ directions / (sizes + shift)) @ directions.T
        found, _ = lapack.dpttrs(diagonal, off, rows.numpy().T)
        return torch.from_numpy(found.T)

    def _eigenvectors(self) -> tuple[Tensor, Tensor]:
        if self._spectrum is None:
            full = np.diag(self._diagonal) + np.diag(self._off, 1) + np.diag(self._off, -1)
            sizes, directions = torch.linalg.eigh(torch.from_numpy(full))
            self._spectrum = sizes.clamp(min=0.0), directions
        return self._spectrum


def _reduce(matrix: NDArray[np.float64], size: int) -> tuple[NDArray[np.float64], ...]:
    """Reduce a matrix in place to tridiagonal form: diagonal, what is beside it, factors of the reflectors.

    That of `scipy.linalg.lapack` holds Python's lock for a tenth of a second, and no other system is solved
    meanwhile: the same routine through its address does not.
    """
    diagonal, off, tau = np.empty(size), np.empty(max(size - 1, 0)), np.empty(max(size - 1, 0))
    work = np.empty(WORKSPACE * size)
    n, n_work, info = ctypes.c_int(size), ctypes.c_int(len(work)), ctypes.c_int()
    arrays = [one.ctypes.data_as(ctypes.c_void_p) for one in (matrix, diagonal, off, tau, work)]
    a, d, e, t, w = arrays
    with threadpool_limits(limits=1, user_api="blas"):  # twice as fast as with two threads
        _dsytrd()(
            b"L", ctypes.byref(n), a, ctypes.byref(n), d, e, t, w, ctypes.byref(n_work), ctypes.byref(info)
        )
    return diagonal, off, tau


@functools.cache
def _dsytrd() -> Callable[..., None]:
    """LAPACK's ``dsytrd``, as compiled code of other packages finds it in SciPy."""
    capsule, api = cython_lapack.__pyx_capi__["dsytrd"], ctypes.pythonapi
    api.PyCapsule_GetName.restype, api.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    signature = api.PyCapsule_GetName(capsule)
    if signature.count(b"int *") != 4:  # whole numbers of 32 bits: with others memory would be overwritten
        raise RuntimeError(f"dsytrd of SciPy {scipy.__version__} is called otherwise: {signature.decode()}")
    address = api.PyCapsule_GetPointer(capsule, signature)
    return ctypes.CFUNCTYPE(None, ctypes.c_char_p, *[ctypes.c_void_p] * 9)(address)


def _reflectors(reduced: Tensor, tau: Tensor) -> list[tuple[int, Tensor, Tensor]]:
    """Blocks of reflectors: first place, vectors (k, P - place) as rows, factor (k, k).

    A block is ``I - V' F V``; row i of ``reduced`` holds the vector of reflector i from place i + 2 on, after
    a one that is not stored.
    """
    blocks = []
    for first in range(0, len(tau), BLOCK):
        rows = reduced[first : first + BLOCK, first + 1 :][: len(tau) - first]
        scale = tau[first : first + BLOCK]
        vectors = rows.triu(1)
        vectors.diagonal().fill_(1.0)
        vectors[scale == 0] = 0.0  # no reflection
        inverse = (vectors @ vectors.T).triu(1)
        inverse.diagonal().copy_(torch.where(scale == 0, 1.0, 1.0 / scale))
        identity = torch.eye(len(inverse), dtype=torch.float64)
        factor = torch.linalg.solve_triangular(inverse, identity, upper=True)
        blocks.append((first + 1, vectors, factor))
    return blocks
