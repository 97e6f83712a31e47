"""Which neurons a call is about."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

__all__ = ["NeuronSelection", "neuron_indices"]

#: One neuron, several in any order (negative numbers count from the end), or None for all.
NeuronSelection: TypeAlias = int | slice | Sequence[int] | Tensor | None


def neuron_indices(neurons: NeuronSelection, n_neurons: int) -> list[int]:
    """Return which of N neurons are meant, as numbers from 0.

    Parameters
    ----------
    neurons : int, slice or sequence of int, optional
        Which, in which order, duplicates kept; negative numbers count from the end. None is all.
    n_neurons : int
        N.

    Returns
    -------
    list of int
        Numbers from 0 to N - 1.

    Raises
    ------
    TypeError
        For something that names no neurons, booleans among it.
    IndexError
        For a neuron that does not exist.

    Examples
    --------
    >>> neuron_indices([2, -1], 5), neuron_indices(slice(0, 2), 5), neuron_indices(None, 2)
    ([2, 4], [0, 1], [0, 1])
    """
    if neurons is None:
        return list(range(n_neurons))
    if isinstance(neurons, slice):
        return list(range(n_neurons))[neurons]
    named = _as_list(neurons)
    if named is None or any(isinstance(n, bool) or not isinstance(n, numbers.Integral) for n in named):
        raise TypeError(
            f"neurons must be an integer, a slice, a sequence of integers or None, got {neurons!r}"
        )
    for n in named:
        if not -n_neurons <= n < n_neurons:
            raise IndexError(f"there is no neuron {n}: the model has {n_neurons} (0 to {n_neurons - 1})")
    return [int(n) % n_neurons for n in named]


def _as_list(neurons: Any) -> list[Any] | None:
    """Integers, arrays, tensors and sequences as a list; None for anything else."""
    if isinstance(neurons, numbers.Integral):
        return [neurons]
    if hasattr(neurons, "tolist"):  # arrays and tensors of any library
        neurons = neurons.tolist()
    if isinstance(neurons, int):  # an array without axes
        return [neurons]
    return list(neurons) if isinstance(neurons, Sequence) and not isinstance(neurons, str) else None
