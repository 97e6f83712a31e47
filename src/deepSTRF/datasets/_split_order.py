"""How splits order, count and hash clips."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from deepSTRF.datasets.base import NeuralDataset

ROLES = ("train", "val", "test")


def split_hash(ds: NeuralDataset, parts: Sequence[Sequence[int]]) -> str:
    digest = hashlib.sha256()
    for role, clips in zip(ROLES, parts, strict=True):
        for clip in clips:
            digest.update(f"{role} {ds.source_fingerprint(clip)}\n".encode())
    return digest.hexdigest()


def same_sounds(ds: NeuralDataset) -> list[list[int]]:
    """Clips with the same sound belong together, in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for clip in range(len(ds)):
        groups.setdefault(ds.source_fingerprint(clip), []).append(clip)
    return list(groups.values())


def shuffled(groups: Sequence[list[int]], seed: int) -> list[list[int]]:
    """Seeded order that is the same with every version of numpy and on every machine."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed is an integer, got {seed!r}")
    keys = [hashlib.sha256(f"{int(seed)}:{group[0]}".encode()).digest() for group in groups]
    return [group for _, group in sorted(zip(keys, groups, strict=True))]


def clip_names(ds: NeuralDataset, clips: Sequence[int]) -> list[str]:
    """The recording's own names where it has them, made different where they are not."""
    names: dict[str, None] = {}
    for clip in clips:
        name = str(ds.stim_meta[clip].get("name", f"clip{clip:03d}"))
        while name in names:  # a recording may itself name a clip "rain (1)"
            name = f"{name} ({clip})"
        names[name] = None
    return list(names)


def share_counts(fractions: Sequence[float], n_clips: int) -> list[int]:
    """Whole numbers near the shares (largest remainders), none of a positive share zero."""
    if len(fractions) != len(ROLES) or any(not 0 <= share <= 1 for share in fractions):
        raise ValueError(f"fractions are three shares (train, val, test) between 0 and 1, got {fractions!r}")
    if abs(math.fsum(fractions) - 1.0) > 1e-6 or fractions[0] == 0:
        raise ValueError(f"fractions sum to 1 and train is above 0, got {fractions!r}")
    needed = sum(share > 0 for share in fractions)
    if n_clips < needed:
        raise ValueError(
            f"{n_clips} different clips cannot fill {needed} roles; set a fraction to 0 or add clips"
        )
    exact = [share * n_clips for share in fractions]
    counts = [max(math.floor(value + 1e-9), int(value > 0)) for value in exact]
    while sum(counts) < n_clips:
        counts[int(np.argmax([value - count for value, count in zip(exact, counts, strict=True)]))] += 1
    while sum(counts) > n_clips:
        spare = [
            count - value if count > 1 else -math.inf for value, count in zip(exact, counts, strict=True)
        ]
        counts[int(np.argmax(spare))] -= 1
    return counts
