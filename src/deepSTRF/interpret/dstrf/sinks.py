"""Sinks: where the blocks of a dynamic STRF are stored, as an array, a file or running statistics.

A sink is opened for a tensor (T, N, L, F), receives its rows in blocks, and returns what it made of them;
after an error, ``abort`` removes what it has begun.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor

from deepSTRF._files import check_target
from deepSTRF._validation import checked

#: Methods of a sink.
STEPS = ("open", "write", "close", "abort")
#: Seconds without a write after which an unfinished file counts as abandoned: a day.
ABANDONED = 86_400


class Sink(Protocol):
    """Receives the rows of a tensor (T, N, L, F) in blocks, in any order, each row once."""

    def open(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Prepare for a tensor of this shape."""
        ...

    def write(self, rows: Tensor, block: Tensor) -> None:
        """Store block (B, N, L, F), the rows (B,) of the tensor; the caller may reuse the block."""
        ...

    def close(self) -> Any:
        """Return what the sink made of the tensor."""
        ...

    def abort(self) -> None:
        """Remove everything unfinished after an error."""
        ...


class ArraySink:
    """Keeps the whole tensor in memory: the default.

    Parameters
    ----------
    dtype : torch.dtype, optional
        Storage type; None is the model's. Half precision loses gradients below 6e-8.
    device : str or torch.device, optional
        Where; None is where the model is.

    Examples
    --------
    >>> sink = ArraySink(dtype=torch.float16)
    >>> sink.open((2, 1, 3, 4), torch.float32, torch.device("cpu"))
    >>> sink.write(torch.tensor([0, 1]), torch.ones(2, 1, 3, 4))
    >>> sink.close().dtype
    torch.float16
    """

    @checked
    def __init__(self, dtype: torch.dtype | None = None, device: str | torch.device | None = None) -> None:
        self.dtype, self.device = dtype, device

    def open(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Allocate the tensor."""
        self._array = torch.empty(shape, dtype=self.dtype or dtype, device=self.device or device)

    def write(self, rows: Tensor, block: Tensor) -> None:
        """Copy the rows."""
        self._array[_as_slice(rows)] = block.to(self._array)

    def close(self) -> Tensor:
        """Return the tensor (T, N, L, F)."""
        return self._array

    def abort(self) -> None:
        """Release the memory."""
        del self._array


class FileSink:
    """Writes a ``.npy`` file, mapped into memory: the tensor may be larger than the memory.

    The file appears under its name when it is complete, and an older one stays until then. Its space is taken
    before the first filter is computed, so that a full disk is an error then.

    Parameters
    ----------
    path : path
        The file, ending in ``.npy``; read it with ``numpy.load(path, mmap_mode="r")``.
    dtype : torch.dtype, optional
        Storage type; None is the model's, and float32 for a model in bfloat16, which numpy does not know.

    Raises
    ------
    ValueError
        For another file ending, or bfloat16.
    OSError
        When it is opened: for a folder, pipe or device of that name, or too little space.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     sink = FileSink(Path(folder) / "dstrf.npy")
    ...     sink.open((2, 1, 3, 4), torch.float32, torch.device("cpu"))
    ...     sink.write(torch.tensor([0, 1]), torch.ones(2, 1, 3, 4))
    ...     np.load(sink.close()).shape
    (2, 1, 3, 4)
    """

    @checked
    def __init__(self, path: str | os.PathLike[str], dtype: torch.dtype | None = None) -> None:
        self.path = Path(path)
        if self.path.suffix != ".npy":
            raise ValueError(f"path must end in .npy, got {self.path.name!r}")
        if dtype is torch.bfloat16:
            raise ValueError("numpy has no bfloat16: give dtype=torch.float16 or torch.float32")
        self.dtype = dtype

    def open(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Make a file of the right size beside the final one."""
        check_target(self.path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()
        self._part = self.path.with_name(f".{self.path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
        stored = self.dtype or (torch.float32 if dtype is torch.bfloat16 else dtype)
        kind = torch.empty(0, dtype=stored).numpy().dtype
        try:
            self._map = np.lib.format.open_memmap(self._part, mode="w+", dtype=kind, shape=shape)
            _take_space(self._part)
        except OSError as error:
            self._part.unlink(missing_ok=True)
            error.filename = os.fspath(self.path)
            raise

    def write(self, rows: Tensor, block: Tensor) -> None:
        """Copy the rows into the file."""
        block = block.float() if block.dtype is torch.bfloat16 else block
        self._map[_as_slice(rows)] = block.cpu().numpy()

    def close(self) -> Path:
        """Finish the file and return its path."""
        self._finish()
        self._part.replace(self.path)
        return self.path

    def _finish(self) -> None:
        """Put all of the file on the disk, beside its place."""
        self._map.flush()
        del self._map
        with open(self._part, "rb") as stream:
            os.fsync(stream.fileno())

    def _remove_abandoned(self) -> None:
        """Remove unfinished files of killed processes, which may be as large as the file."""
        for part in self.path.parent.glob(f".{glob.escape(self.path.name)}.*.part"):
            with contextlib.suppress(FileNotFoundError):  # another process was faster
                if time.time() - part.stat().st_mtime > ABANDONED:
                    part.unlink()

    def abort(self) -> None:
        """Remove the unfinished file."""
        del self._map
        self._part.unlink(missing_ok=True)


def _take_space(path: Path) -> None:
    """Have the disk set the space of a file aside: where it is full, writing a page would end the process."""
    with open(path, "r+b") as stream:
        try:
            os.posix_fallocate(stream.fileno(), 0, os.path.getsize(path))
        except AttributeError:  # a system without
            return
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
                raise


@dataclass(frozen=True)
class Moments:
    """Statistics of a dynamic STRF: ``mean`` and ``sd`` (N, L, F) over time (T - 1 in the denominator).

    Of each bin's filter (T, N): the Frobenius ``norm``, whose standard deviation is the gain change, and the
    sums of its positive and negative entries, ``excitation`` and ``inhibition``.
    """

    mean: Tensor
    sd: Tensor
    norm: Tensor
    excitation: Tensor
    inhibition: Tensor


class MomentSink:
    """Keeps running statistics in float64; the tensor itself is never held.

    All bins count; ``dstrf(..., edge="drop")`` leaves out those whose filters an end of the clip cuts off.

    Examples
    --------
    >>> sink = MomentSink()
    >>> sink.open((2, 1, 3, 4), torch.float32, torch.device("cpu"))
    >>> sink.write(torch.tensor([0, 1]), torch.ones(2, 1, 3, 4))
    >>> sink.close().norm.flatten().tolist() == [12**0.5] * 2
    True
    """

    def open(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Prepare sums of the right shapes."""
        self._count = 0
        self._mean = torch.zeros(shape[1:], dtype=torch.float64, device=device)
        self._squares = torch.zeros_like(self._mean)
        self._traces = torch.zeros(3, *shape[:2], dtype=torch.float64, device=device)

    def write(self, rows: Tensor, block: Tensor) -> None:
        """Update the sums (Chan, Golub & LeVeque 1983), one neuron at a time to stay small."""
        n, before = len(rows), self._count
        self._count = before + n
        rows = rows.to(block.device)
        for neuron in range(block.shape[1]):
            part = block[:, neuron].double()
            mean = part.mean(0)
            shift = mean - self._mean[neuron]
            part_squares = (part - mean).square_().sum(0)
            self._squares[neuron] += part_squares + shift.square() * (before * n / (before + n))
            self._mean[neuron] += shift * (n / (before + n))
            self._traces[0, rows, neuron] = part.square().sum((1, 2)).sqrt()
            self._traces[1, rows, neuron] = part.clamp_min(0).sum((1, 2))
            self._traces[2, rows, neuron] = part.clamp_max(0).sum((1, 2))

    def close(self) -> Moments:
        """Return the statistics."""
        # one bin has no spread: NaN instead of 0
        sd = (self._squares / (self._count - 1 if self._count > 1 else torch.nan)).sqrt()
        return Moments(self._mean, sd, *self._traces)

    def abort(self) -> None:
        """Nothing to remove."""


class CallbackSink:
    """Calls a function with every block.

    Parameters
    ----------
    function : callable
        Called with the rows (B,) and the block (B, N, L, F), which may be reused: copy what you keep.

    Examples
    --------
    >>> peaks = []
    >>> sink = CallbackSink(lambda rows, block: peaks.append(float(block.max())))
    >>> sink.write(torch.tensor([0]), torch.ones(1, 1, 3, 4))
    >>> peaks
    [1.0]
    """

    @checked
    def __init__(self, function: Any) -> None:
        self.function = function

    def open(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Nothing to prepare."""

    def write(self, rows: Tensor, block: Tensor) -> None:
        """Call the function."""
        self.function(rows, block)

    def close(self) -> None:
        """Return None."""

    def abort(self) -> None:
        """Nothing to remove."""


class SinkSet:
    """Several sinks at once, e.g. a file and the running statistics."""

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks = list(sinks)

    def open(self, shape: tuple[int, int, int, int], dtype: torch.dtype, device: torch.device) -> None:
        """Open all, or none: when one cannot be opened, those before it are aborted."""
        opened: list[Sink] = []
        try:
            for sink in self.sinks:
                sink.open(shape, dtype, device)
                opened.append(sink)
        except BaseException:
            for sink in opened:
                sink.abort()
            raise

    def write(self, rows: Tensor, block: Tensor) -> None:
        """Store the block in all."""
        for sink in self.sinks:
            sink.write(rows, block)

    def close(self) -> list[Any]:
        """Return what each of them made of the tensor."""
        return [sink.close() for sink in self.sinks]

    def abort(self) -> None:
        """Abort all."""
        for sink in self.sinks:
            sink.abort()


def _as_slice(rows: Tensor) -> Any:
    """Rows as an index: consecutive ones as a slice, which saves a copy."""
    first, last = int(rows[0]), int(rows[-1])
    consecutive = last - first + 1 == len(rows) and bool((rows[1:] > rows[:-1]).all())
    return slice(first, last + 1) if consecutive else rows.cpu().numpy()


def as_sink(sink: Sink | Sequence[Sink] | None) -> Sink:
    """Return a sink, a sequence of sinks or None (an array in memory) as one sink."""
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
def opened(sink: Sink, shape: tuple[int, ...], like: Tensor) -> Iterator[None]:
    """Open a sink for a tensor (T, N, L, F) of a type and device; abort it when the body fails."""
    sink.open(cast(tuple[int, int, int, int], shape), like.dtype, like.device)
    try:
        yield
    except BaseException:
        sink.abort()
        raise
