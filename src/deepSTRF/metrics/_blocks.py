"""Cutting (K, R, T) rows into blocks that stay inside a core's cache, or inside a GPU's memory."""

from __future__ import annotations

import torch
from torch import Tensor

# Everything done per block is bound by memory traffic. On one core 2 MiB of float64 stay in the cache (half
# the time of 32 MiB). With several threads every operation ends at a barrier, dear when the machine is
# shared: fewer, longer operations then are up to three times faster.
CPU_BLOCK_BYTES = 2 * 2**20
THREADED_BLOCK_BYTES = 32 * 2**20
DEVICE_BLOCK_BYTES = 256 * 2**20
BYTES_PER_VALUE = 8


def row_blocks(rows: Tensor) -> list[slice]:
    """Slices over the first axis, at least one (possibly empty) slice."""
    limit = CPU_BLOCK_BYTES if torch.get_num_threads() == 1 else THREADED_BLOCK_BYTES
    if rows.device.type != "cpu":
        limit = DEVICE_BLOCK_BYTES
    size = max(1, limit // max(1, rows.shape[1] * rows.shape[2] * BYTES_PER_VALUE))
    return [slice(start, start + size) for start in range(0, max(1, len(rows)), size)]
