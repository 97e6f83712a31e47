"""Sinks as users name them, and filling one: it tidies up when that fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import cast

from torch import Tensor

from deepSTRF.interpret.dynamic.sinks import ArraySink, Sink, SinkSet

__all__ = ["as_sink", "filling"]

#: What a sink can do.
STEPS = ("open", "write", "close", "abort")


def as_sink(sink: Sink | Sequence[Sink] | None) -> Sink:
    """Return what was given for a sink as one.

    Parameters
    ----------
    sink : Sink, sequence of Sink or None
        None is memory.

    Returns
    -------
    Sink
        One sink.

    Raises
    ------
    TypeError, ValueError
        For what is no sink, or an empty sequence.

    Examples
    --------
    >>> type(as_sink(None)).__name__
    'ArraySink'
    """
    if sink is None:
        return ArraySink()
    several = isinstance(sink, list | tuple)
    for one in sink if isinstance(sink, list | tuple) else [sink]:
        if isinstance(one, type) or not all(callable(getattr(one, name, None)) for name in STEPS):
            what = f"the class {one.__name__}" if isinstance(one, type) else f"{one!r}"
            raise TypeError(
                f"sink must be a sink or a sequence of sinks, got {what}: give ArraySink(), MomentSink(), or "
                "for a file FileSink('dstrf.npy')"
            )
    if several and not sink:
        raise ValueError("sink is an empty sequence, so nothing would be kept: None keeps the filters")
    return SinkSet(cast(Sequence[Sink], sink)) if several else cast(Sink, sink)


@contextlib.contextmanager
def filling(sink: Sink, shape: tuple[int, ...], like: Tensor) -> Iterator[None]:
    """Open a sink for what is written inside, and let it tidy up when that fails.

    Parameters
    ----------
    sink : Sink
        Where blocks go.
    shape : tuple of int
        Of the whole, (T, N, L, F).
    like : Tensor
        Has the type and the device of the blocks.

    Yields
    ------
    None
        Nothing; close the sink when all is written.

    Examples
    --------
    >>> import torch
    >>> sink = ArraySink()
    >>> with filling(sink, (1, 1, 3, 4), torch.zeros(1)):
    ...     sink.write(torch.tensor([0]), torch.ones(1, 1, 3, 4))
    """
    sink.open(cast(tuple[int, int, int, int], shape), like.dtype, like.device)  # tidies up after itself
    try:
        yield
    except BaseException:
        sink.abort()
        raise
