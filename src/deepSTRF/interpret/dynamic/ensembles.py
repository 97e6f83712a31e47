"""Dynamic STRFs as the statistics read them: neuron by neuron, in double precision, broken bins set apart."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Filters", "as_filters", "ensembles"]


class Weighted(Protocol):
    """What holds filters: a result of `dstrf`, `jackknifed_dstrf` or `smooth_dstrf`.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> as_filters(SimpleNamespace(weights=torch.zeros(10, 2, 5, 3))).shape
    torch.Size([10, 2, 5, 3])
    """

    @property
    def weights(self) -> Any:
        """The filters (T, N, L, F), or what a sink made of them."""
        ...


#: A tensor, array, ``.npy`` or ``.pt`` file (read in pieces) or result of `dstrf`, of shape (T, N, L, F).
Filters: TypeAlias = Tensor | NDArray[Any] | str | os.PathLike[str] | Weighted


def as_filters(dstrfs: Filters) -> Tensor | NDArray[Any]:
    """Return dynamic STRFs as something that can be sliced, (T, N, L, F).

    Parameters
    ----------
    dstrfs : Tensor, array, path, DynamicSTRF or JackknifedSTRF
        The filters. Files of the DSTRF toolbox, ``dSTRF-000.pt``, are read too.

    Returns
    -------
    Tensor or array
        A file is mapped into memory, not read.

    Raises
    ------
    ValueError
        For another shape, or no bins, or a file that holds no array.
    FileNotFoundError
        For a file that is not there.
    TypeError
        For something else.

    Examples
    --------
    >>> as_filters(torch.zeros(10, 2, 5, 3)).shape
    torch.Size([10, 2, 5, 3])
    """
    found: Any = getattr(dstrfs, "weights", dstrfs)
    if isinstance(found, str | os.PathLike):
        found = _read(Path(found))
    if not isinstance(found, Tensor | np.ndarray):
        raise TypeError(
            f"dstrfs must be a tensor, an array, the path of a .npy file or a result of dstrf, got "
            f"{type(found).__name__}; of several sinks pass one result"
        )
    if found.ndim != 4 or 0 in found.shape:
        raise ValueError(
            f"dstrfs must be (T, N, L, F) with at least one of each, got {tuple(found.shape)}; for one "
            "neuron add the axis, weights[:, None]"
        )
    return found


def _read(path: Path) -> Any:
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give its files, sorted(Path({str(path)!r}).glob('*.npy'))")
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}; FileSink and dstrf_folds write such files")
    try:
        if path.suffix == ".pt":
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        return np.load(path, mmap_mode="r")
    except (ValueError, EOFError, RuntimeError, pickle.UnpicklingError) as error:
        raise ValueError(f"{path} holds no array of filters ({error}); make it anew") from error


def ensembles(dstrfs: Filters) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each neuron's filters (T, L, F) in double precision and which bins are sound (T,).

    Parameters
    ----------
    dstrfs : Filters
        The filters of N neurons.

    Yields
    ------
    tuple of Tensor
        Filters, with broken bins (NaN or infinite) zeroed, and the mask of sound bins.

    Examples
    --------
    >>> [filters.shape for filters, sound in ensembles(torch.zeros(10, 2, 5, 3))]
    [torch.Size([10, 5, 3]), torch.Size([10, 5, 3])]
    """
    every = as_filters(dstrfs)
    for neuron in range(every.shape[1]):
        column = every[:, neuron]
        filters = (
            torch.as_tensor(column if isinstance(column, Tensor) else np.array(column)).detach().double()
        )
        sound = torch.isfinite(filters).flatten(1).all(1)
        yield torch.where(sound[:, None, None], filters, 0.0), sound


def per_neuron(values: Sequence[float]) -> Tensor:
    """Return one number per neuron as a tensor (N,).

    Parameters
    ----------
    values : sequence of float
        The numbers.

    Returns
    -------
    Tensor
        Double precision.

    Examples
    --------
    >>> per_neuron([1.0])
    tensor([1.], dtype=torch.float64)
    """
    return torch.tensor(list(values), dtype=torch.float64)
