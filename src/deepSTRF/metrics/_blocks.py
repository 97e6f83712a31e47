"""Cutting (K, R, T) rows into blocks that stay inside a core's cache, or inside a GPU's memory."""

from __future__ import annotations

from torch import Tensor

# Everything done per block is bound by memory traffic; between 1 and 8 MiB of float64 the time is flat.
CPU_BLOCK_BYTES = 2 * 2**20
DEVICE_BLOCK_BYTES = 256 * 2**20
BYTES_PER_VALUE = 8


def row_blocks(rows: Tensor) -> list[slice]:
    """Slices over the first axis, at least one (possibly empty) slice."""
    limit = CPU_BLOCK_BYTES if rows.device.type == "cpu" else DEVICE_BLOCK_BYTES
    size = max(1, limit // max(1, rows.shape[1] * rows.shape[2] * BYTES_PER_VALUE))
    return [slice(start, start + size) for start in range(0, max(1, len(rows)), size)]
