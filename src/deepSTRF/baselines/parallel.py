"""Solutions of many linear systems at a time, each on one thread.

A system of a thousand unknowns is too small for the threads of a linear algebra library: with two of them a
reduction to tridiagonal form takes twice as long as with one. Systems side by side use all cores.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from threadpoolctl import threadpool_limits

__all__ = ["each_on_one_thread"]

Item = TypeVar("Item")
Result = TypeVar("Result")


def each_on_one_thread(work: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Results in the order of the items, as many at a time as PyTorch has threads."""
    n_threads = min(torch.get_num_threads(), len(items))
    if n_threads < 2:
        yield from map(work, items)
        return
    before = torch.get_num_threads()
    with (
        threadpool_limits(limits=1, user_api="blas"),
        ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool,
    ):
        try:
            yield from pool.map(work, items)
        finally:
            pool.shutdown(cancel_futures=True)
            torch.set_num_threads(before)  # what threads started later begin with
