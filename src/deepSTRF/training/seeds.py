"""Seeds and random states: of the process, of a block of code, and of a fit that is resumed."""

from __future__ import annotations

import os
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from deepSTRF._validation import checked

__all__ = [
    "make_generator",
    "preserved_random_state",
    "random_state",
    "seeded",
    "set_random_seed",
    "set_random_state",
]

#: Workspace setting under which cuBLAS is deterministic (PyTorch notes on reproducibility).
CUBLAS_DETERMINISTIC_WORKSPACE = ":4096:8"
#: NumPy's legacy generator takes seeds of 32 bits.
LARGEST_SEED = 2**32 - 1


def _checked_seed(seed: int) -> int:
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer):
        raise TypeError(f"seed must be an integer, got {type(seed).__name__}")
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must lie in 0 .. {LARGEST_SEED}, got {seed}")
    return int(seed)


@checked
def set_random_seed(seed: int, *, strict: bool = False) -> None:
    """Seed Python, NumPy and PyTorch (all devices) and make cuDNN deterministic, from here on.

    Nothing is restored afterwards: this changes the process. Use `seeded` where the change should end with a
    block of code. Two runs that start with the same seed on the same machine are bit-identical.

    Parameters
    ----------
    seed : int
        Seed, 0 .. 2**32 - 1.
    strict : bool
        Also let PyTorch refuse operations that have no deterministic form, and set
        ``CUBLAS_WORKSPACE_CONFIG`` when it is unset (slower on a GPU).

    Raises
    ------
    TypeError, ValueError
        When ``seed`` is no integer or out of range.

    Examples
    --------
    >>> import torch
    >>> set_random_seed(3)
    >>> a = torch.rand(2)
    >>> set_random_seed(3)
    >>> bool((torch.rand(2) == a).all())
    True
    """
    seed = _checked_seed(seed)
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - users' transforms draw from NumPy's global generator
    torch.manual_seed(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    if strict:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_DETERMINISTIC_WORKSPACE)
        torch.use_deterministic_algorithms(True)


@contextmanager
@checked
def seeded(seed: int, *, strict: bool = False) -> Iterator[None]:
    """Run a block under `set_random_seed` and put every random state and flag back at its end.

    Parameters
    ----------
    seed : int
        Seed, 0 .. 2**32 - 1.
    strict : bool
        As in `set_random_seed`.

    Yields
    ------
    None

    Examples
    --------
    >>> import torch
    >>> with seeded(1):
    ...     a = torch.rand(1)
    >>> with seeded(1):
    ...     b = torch.rand(1)
    >>> bool(a == b)
    True
    """
    before = random_state()
    flags = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    algorithms = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        set_random_seed(seed, strict=strict)
        yield
    finally:
        set_random_state(before)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = flags
        torch.use_deterministic_algorithms(algorithms[0], warn_only=algorithms[1])
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


@checked
def make_generator(seed: int | None) -> torch.Generator | None:
    """Return a seeded generator for a DataLoader, or None for the process's own.

    Parameters
    ----------
    seed : int or None
        Seed, 0 .. 2**32 - 1; None returns None, so that a loader draws from ``torch.manual_seed``'s stream.

    Returns
    -------
    torch.Generator or None
        A CPU generator of its own.

    Examples
    --------
    >>> make_generator(5).initial_seed()
    5
    """
    if seed is None:
        return None
    generator = torch.Generator()
    generator.manual_seed(_checked_seed(seed))
    return generator


def random_state(generators: Iterable[torch.Generator] = ()) -> dict[str, Any]:
    """Return the state of every random source as plain numbers and tensors, which load with weights only."""
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 - the global generator is what users draw from
    if not isinstance(legacy, dict):  # typing: legacy=False always returns a dictionary
        raise TypeError("NumPy returned its random state in an unknown form")
    numpy_state = {
        "key": torch.from_numpy(legacy["state"]["key"].astype(np.int64)),
        "pos": int(legacy["state"]["pos"]),
        "has_gauss": int(legacy["has_gauss"]),
        "gauss": float(legacy["gauss"]),
    }
    version, words, gauss = random.getstate()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "python": [version, torch.tensor(words, dtype=torch.int64), gauss],
        "numpy": numpy_state,
        "torch": torch.get_rng_state(),
        "cuda": cuda,
        "generators": [generator.get_state() for generator in generators],
    }


def set_random_state(state: dict[str, Any], generators: Iterable[torch.Generator] = ()) -> None:
    """Put every random source back into a state taken by `random_state`."""
    generators = list(generators)
    if len(generators) != len(state["generators"]):
        raise ValueError(
            f"generators: the state holds {len(state['generators'])} of them, {len(generators)} were given; "
            "pass the ones given to random_state, in the same order"
        )
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words.tolist()), gauss))
    recorded = state["numpy"]
    np.random.set_state(  # noqa: NPY002 - see random_state
        ("MT19937", recorded["key"].numpy().astype(np.uint32), recorded["pos"], recorded["has_gauss"],
         recorded["gauss"])
    )  # fmt: skip
    torch.set_rng_state(state["torch"])
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
    for generator, saved in zip(generators, state["generators"], strict=True):
        generator.set_state(saved)


@contextmanager
def preserved_random_state(generators: Iterable[torch.Generator] = ()) -> Iterator[None]:
    """Run a block that may draw random numbers and rewind every source at its end."""
    generators = list(generators)
    state = random_state(generators)
    try:
        yield
    finally:
        set_random_state(state, generators)
