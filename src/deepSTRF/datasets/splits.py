"""Which clips train, validate and test: named splits with a content hash.

A split is decided before the fit, is a value of its own, and can be printed beside every score. Its hash
covers the sounds (not their positions in a list, not what was computed from them), the roles and the order,
so two people who quote the same hash used the same sounds in the same roles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from deepSTRF.datasets._split_order import ROLES, same_sounds, share_counts, shuffled, split_hash
from deepSTRF.datasets.base import NeuralDataset
from deepSTRF.datasets.selection import as_index, resolve_selection

__all__ = ["ClipSplit", "index_split", "k_fold", "leave_one_clip_out", "parse_split", "random_split"]

DatasetT = TypeVar("DatasetT", bound=NeuralDataset)

#: Share of the remaining clips that leave_one_clip_out puts aside for validation.
_VALIDATION_SHARE = 0.15


@dataclass(frozen=True)
class ClipSplit:
    """Which clips of a dataset train, validate and test.

    Attributes
    ----------
    name : str
        What made it, e.g. "14/3/3" or "kfold:5:fold=0:seed=0".
    train, val, test : tuple of int
        Clip indices of the dataset it was made for, in order.
    hash : str
        SHA-256 (hex) over the sounds, roles and order.

    Examples
    --------
    >>> import torch
    >>> ds = NeuralDataset.from_arrays(
    ...     [torch.rand(4, 50) for _ in range(5)], [torch.ones(2, 3, 50)] * 5, dt_ms=5.0
    ... )
    >>> split = index_split(ds, train=range(3), val=[3], test=[4])
    >>> train, val, test = split.apply(ds)
    >>> len(train), len(val), len(test)
    (3, 1, 1)
    """

    name: str
    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    hash: str

    def apply(self, ds: DatasetT, *, verify: bool = True) -> tuple[DatasetT, DatasetT, DatasetT]:
        """Return the training, validation and test views of a dataset.

        Parameters
        ----------
        ds : NeuralDataset
            The dataset the split was made for, or another form of it: other neurons (selected with
            ``keep_unheard=True``, so that clips keep their places), smoothing, normalisation.
        verify : bool
            Compare the content of the clips with the hash. False is for another form of the same sounds that
            the hash cannot know, e.g. a spectrogram computed by yourself.

        Returns
        -------
        tuple of three NeuralDataset
            Views.

        Raises
        ------
        IndexError
            When the dataset has fewer clips.
        ValueError
            When its clips hold other sounds.
        """
        for clip in (*self.train, *self.val, *self.test):
            as_index(clip, len(ds), "clip")
        if verify and split_hash(ds, (self.train, self.val, self.test)) != self.hash:
            raise ValueError(
                f"split {self.name!r} was made for other sounds than those of {ds!r}; make it from this "
                "dataset (if select(neurons=...) left clips out, keep them with keep_unheard=True), or "
                "pass verify=False if these are the same sounds in another form"
            )
        return ds.select(clips=self.train), ds.select(clips=self.val), ds.select(clips=self.test)

    def __str__(self) -> str:
        sizes = "/".join(str(len(part)) for part in (self.train, self.val, self.test))
        return f"{self.name} ({sizes} clips, {self.hash[:12]})"


def index_split(ds: NeuralDataset, train: Any, val: Any, test: Any, *, name: str | None = None) -> ClipSplit:
    """Split by clip indices.

    Parameters
    ----------
    ds : NeuralDataset
        Dataset to split.
    train, val, test : selector of clips
        Anything `NeuralDataset.select` takes for clips: lists, ranges, slices, masks, metadata, predicates.
        ``val`` and ``test`` may be empty.
    name : str, optional
        Name of the split; by default the three counts.

    Returns
    -------
    ClipSplit
        The split.

    Raises
    ------
    ValueError
        When ``train`` is empty, a clip has two roles, or the same sound is in two roles under different
        indices.

    Examples
    --------
    >>> import torch
    >>> sounds, counts = [torch.rand(4, 9) for _ in range(4)], [torch.ones(1, 9)] * 4
    >>> ds = NeuralDataset.from_arrays(sounds, counts, dt_ms=5.0)
    >>> index_split(ds, [0, 1], [2], [2])
    Traceback (most recent call last):
        ...
    ValueError: clip 2 is in both val and test; give every clip one role
    """
    parts = [
        tuple(int(i) for i in resolve_selection(_listed(part, role), ds.stim_meta, "clip"))
        for role, part in zip(ROLES, (train, val, test), strict=True)
    ]
    if not parts[0]:
        raise ValueError("a split needs at least one training clip")
    seen: dict[str, tuple[str, int]] = {}
    for role, part in zip(ROLES, parts, strict=True):
        for clip in part:
            other, first = seen.setdefault(ds.source_fingerprint(clip), (role, clip))
            if other != role and first == clip:
                raise ValueError(f"clip {clip} is in both {other} and {role}; give every clip one role")
            if other != role:
                raise ValueError(
                    f"clip {clip} ({role}) holds the same sound as clip {first} ({other}); put both on "
                    "one side, else the test is no test"
                )
    if name is None:
        name = "/".join(str(len(part)) for part in parts)
    return ClipSplit(name, parts[0], parts[1], parts[2], split_hash(ds, parts))


def _listed(part: Any, role: str) -> Any:
    if part is None:
        raise TypeError(f"{role} is None, which would mean all clips; give indices, or [] for none")
    return part


def _clips(groups: Sequence[list[int]]) -> list[int]:
    return sorted(clip for group in groups for clip in group)


def _check_folds(ds: NeuralDataset, groups: Sequence[list[int]], k: int) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 2:
        raise ValueError(f"k is the number of folds, an integer of at least 2, got {k!r}")
    if k > len(groups):
        copies = (
            "" if len(groups) == len(ds) else f" ({len(ds)} clips, but only {len(groups)} different sounds)"
        )
        raise ValueError(f"k={k} folds need at least {k} clips, the dataset has {len(groups)}{copies}")


def _check_validation(n_val: int, n_left: int) -> None:
    if isinstance(n_val, bool) or not isinstance(n_val, (int, np.integer)) or not 0 <= n_val < n_left:
        raise ValueError(
            f"n_val={n_val!r} leaves nothing to train on or is no count: {n_left} clips remain beside the "
            f"test clips, so 0..{n_left - 1} are possible"
        )


def k_fold(ds: NeuralDataset, k: int = 5, *, n_val: int | None = None, seed: int = 0) -> list[ClipSplit]:
    """Split k times so that every clip is tested once.

    Clips are put in a seeded random order and dealt into k folds; fold i tests in split i. Clips with the
    same sound stay in one fold.

    Parameters
    ----------
    ds : NeuralDataset
        Dataset to split.
    k : int
        Number of folds.
    n_val : int, optional
        Number of validation clips, taken in the seeded order behind the test fold. By default the whole next
        fold (so every clip validates once, too), or none when ``k`` is 2.
    seed : int
        Seed of the order.

    Returns
    -------
    list of k ClipSplit
        The splits.

    Raises
    ------
    ValueError
        When there are more folds than clips, or nothing is left to train on.

    Examples
    --------
    >>> import torch
    >>> sounds, counts = [torch.rand(4, 9) for _ in range(6)], [torch.ones(1, 9)] * 6
    >>> ds = NeuralDataset.from_arrays(sounds, counts, dt_ms=5.0)
    >>> splits = k_fold(ds, k=3)
    >>> sorted(clip for split in splits for clip in split.test)
    [0, 1, 2, 3, 4, 5]
    >>> [len(part) for part in (splits[0].train, splits[0].val, splits[0].test)]
    [2, 2, 2]
    """
    groups = same_sounds(ds)
    _check_folds(ds, groups, k)
    order = shuffled(groups, seed)
    folds = [[order[i] for i in part] for part in np.array_split(np.arange(len(order)), k)]
    splits = []
    for index, test in enumerate(folds):
        rest = [group for step in range(1, k) for group in folds[(index + step) % k]]
        wanted = (len(folds[(index + 1) % k]) if k > 2 else 0) if n_val is None else n_val
        _check_validation(wanted, len(rest))
        label = f"kfold:{k}:fold={index}:seed={seed}" + ("" if n_val is None else f":n_val={n_val}")
        parts = (_clips(rest[wanted:]), _clips(rest[:wanted]), _clips(test))
        splits.append(index_split(ds, *parts, name=label))
    return splits


def leave_one_clip_out(ds: NeuralDataset, *, n_val: int | None = None, seed: int = 0) -> list[ClipSplit]:
    """Split once per clip: that clip tests, others train.

    Parameters
    ----------
    ds : NeuralDataset
        Dataset to split.
    n_val : int, optional
        Number of validation clips, drawn from the others with the seed; by default 15 percent of them, at
        least one when two or more are left.
    seed : int
        Seed of the draw.

    Returns
    -------
    list of ClipSplit
        Split i tests clip i (and clips with the very same sound).

    Raises
    ------
    ValueError
        When there are fewer than two clips, or nothing is left to train on.

    Examples
    --------
    >>> import torch
    >>> sounds, counts = [torch.rand(4, 9) for _ in range(4)], [torch.ones(1, 9)] * 4
    >>> ds = NeuralDataset.from_arrays(sounds, counts, dt_ms=5.0)
    >>> [split.test for split in leave_one_clip_out(ds)]
    [(0,), (1,), (2,), (3,)]
    """
    groups = same_sounds(ds)
    _check_folds(ds, groups, max(2, len(groups)))
    splits = []
    for index, test in enumerate(groups):
        rest = shuffled([group for group in groups if group is not test], seed)
        wanted = n_val
        if wanted is None:
            wanted = max(1, round(_VALIDATION_SHARE * len(rest))) if len(rest) > 1 else 0
        _check_validation(wanted, len(rest))
        label = f"loo:fold={index}:seed={seed}" + ("" if n_val is None else f":n_val={n_val}")
        parts = (_clips(rest[wanted:]), _clips(rest[:wanted]), _clips([test]))
        splits.append(index_split(ds, *parts, name=label))
    return splits


def random_split(
    ds: NeuralDataset, fractions: Sequence[float] = (0.7, 0.15, 0.15), seed: int = 0
) -> ClipSplit:
    """Split by fractions in a seeded random order.

    Parameters
    ----------
    ds : NeuralDataset
        Dataset to split.
    fractions : three floats
        Shares of training, validation and test clips; they sum to 1. Counts are rounded so that every clip
        has a role and every share above zero at least one clip.
    seed : int
        Seed of the order; the draw is the same on every machine.

    Returns
    -------
    ClipSplit
        The split; indices ascend within each role.

    Raises
    ------
    ValueError
        When the fractions are no shares, or there are fewer clips than roles.

    Examples
    --------
    >>> import torch
    >>> sounds, counts = [torch.rand(4, 9) for _ in range(20)], [torch.ones(1, 9)] * 20
    >>> ds = NeuralDataset.from_arrays(sounds, counts, dt_ms=5.0)
    >>> split = random_split(ds)
    >>> len(split.train), len(split.val), len(split.test)
    (14, 3, 3)
    """
    groups = same_sounds(ds)
    counts = share_counts(fractions, len(groups))
    order = shuffled(groups, seed)
    ends = np.cumsum(counts)
    parts = [_clips(order[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    shares = "/".join(f"{share:g}" for share in fractions)
    return index_split(ds, *parts, name=f"random:{shares}:seed={seed}")


def parse_split(ds: NeuralDataset, text: str) -> ClipSplit:
    """Read a split from one line of text, as the command line and run folders write it.

    Parameters
    ----------
    ds : NeuralDataset
        Dataset to split.
    text : str
        "14/3/3": the first 14 clips train, the next 3 validate, the last 3 test (they must add up).
        "0-13/14-16/17,18,19": clips by index. "random:0.7/0.15/0.15:seed=0".
        "kfold:5:fold=0", optionally ":seed=1" and ":n_val=2". "loo:fold=3", with the same options.

    Returns
    -------
    ClipSplit
        The split; its name is a text that makes the same split again.

    Raises
    ------
    ValueError
        When the text is none of these; the message lists them.

    Examples
    --------
    >>> import torch
    >>> sounds, counts = [torch.rand(4, 9) for _ in range(5)], [torch.ones(1, 9)] * 5
    >>> ds = NeuralDataset.from_arrays(sounds, counts, dt_ms=5.0)
    >>> parse_split(ds, "3/1/1").test
    (4,)
    >>> parse_split(ds, "0,2/1/3-4").train
    (0, 2)
    """
    from deepSTRF.datasets._split_text import parse

    return parse(ds, text)
