"""Splits of clips into training, validation and test, with a content hash.

A split is made before the fit and is a value of its own that can be printed beside every score. Its hash
covers the sounds (not their positions in a list, not what was computed from them), the roles and the order,
so equal hashes mean the same sounds in the same roles. Seeded orders come from SHA-256, not from a random
generator: they are the same with every version of numpy and on every machine.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from deepSTRF._validation import checked, checked_but
from deepSTRF.datasets.dataset import NeuralDataset
from deepSTRF.datasets.selection import as_index, resolve_selection

__all__ = ["ClipSplit", "index_split", "k_fold", "leave_one_clip_out", "parse_split", "random_split"]

DatasetT = TypeVar("DatasetT", bound=NeuralDataset)

ROLES = ("train", "val", "test")
#: Fraction of the remaining clips that leave_one_clip_out takes for validation.
_VALIDATION_SHARE = 0.15
#: A number with more digits counts no clips.
_MOST_DIGITS = 18
_FORMS = (
    "'14/3/3', '0-13/14-16/17,18,19', 'random:0.7/0.15/0.15:seed=0', 'kfold:5:fold=0' or 'loo:fold=0' "
    "(the last two also with ':seed=1' and ':n_val=2'; all three with ':group=KEY')"
)
#: What a recording of one long clip needs.
CUT = "cut a long recording into pieces first (ds.cut(length_ms=...), or a split 'cut:10:random:...')"


@checked
@dataclass(frozen=True)
class ClipSplit:
    """Training, validation and test clips of a dataset.

    Attributes
    ----------
    name : str
        Description, e.g. "14/3/3" or "kfold:5:fold=0:seed=0".
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

    @checked
    def apply(self, ds: DatasetT, *, verify: bool = True) -> tuple[DatasetT, DatasetT, DatasetT]:
        """Training, validation and test views of a dataset.

        Parameters
        ----------
        ds : NeuralDataset
            The dataset the split was made for, or another form of it: other neurons (selected with
            ``keep_unheard=True``, so that clips keep their places), smoothing, normalisation.
        verify : bool
            Compare the content of the clips with the hash. False is for another form of the same sounds with
            another hash, e.g. a spectrogram of your own without ``source_sha256``.

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


def split_hash(ds: NeuralDataset, parts: Sequence[Sequence[int]]) -> str:
    """Content hash of a split: role and source fingerprint of every clip, in order."""
    digest = hashlib.sha256()
    for role, clips in zip(ROLES, parts, strict=True):
        for clip in clips:
            digest.update(f"{role} {ds.source_fingerprint(clip)}\n".encode())
    return digest.hexdigest()


@checked
def index_split(ds: NeuralDataset, train: Any, val: Any, test: Any, *, name: str | None = None) -> ClipSplit:
    """Split of given clips.

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
        When ``train`` is empty, a clip has two roles, the same sound is in two roles under different
        indices, or windows of one clip in two roles overlap (see `windows`).

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
    parts = []
    for role, part in zip(ROLES, (train, val, test), strict=True):
        if part is None:
            raise TypeError(f"{role} is None, which would mean all clips; give indices, or [] for none")
        parts.append(tuple(int(i) for i in resolve_selection(part, ds.stim_meta, "clip")))
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
    _check_windows(ds, parts)
    if name is None:
        name = "/".join(str(len(part)) for part in parts)
    return ClipSplit(name, parts[0], parts[1], parts[2], split_hash(ds, parts))


def _check_windows(ds: NeuralDataset, parts: Sequence[Sequence[int]]) -> None:
    """Refuse windows of one clip in two roles that overlap, the context included."""
    spans: dict[str, list[tuple[float, float, str, int]]] = {}
    for role, part in zip(ROLES, parts, strict=True):
        for clip in part:
            row = ds.stim_meta[clip]
            if "window_of" in row:
                first = float(row["start_ms"]) - float(row["context_ms"])
                last = first + ds.n_bins(clip) * ds.dt
                spans.setdefault(str(row["window_of"]), []).append((first, last, role, clip))
    for found in spans.values():
        end: dict[str, tuple[float, int]] = {}  # of each role, the latest so far
        for first, last, role, clip in sorted(found):
            for other, (until, earlier) in end.items():
                if other != role and first < until - 1e-6 * ds.dt:
                    raise ValueError(
                        f"the windows {earlier} ({other}) and {clip} ({role}) overlap in one clip, context "
                        "included: the test would hear what was trained on. Split the recording first (one "
                        "clip by ds.cut(..., gap_ms=...)), then make windows of each part"
                    )
            end[role] = max(end.get(role, (-math.inf, clip)), (last, clip))


# ---- random splits and folds


@checked
def random_split(
    ds: NeuralDataset,
    fractions: Sequence[float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    *,
    group: str | None = None,
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
    group : str, optional
        Key of ``stim_meta``; clips with the same value stay on one side, such as "cut_from" for the pieces of
        a clip that `NeuralDataset.cut` made. None lets them be on different sides.

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
    groups = same_sounds(ds, group)
    counts = _share_counts(fractions, len(groups))
    order = shuffled(groups, seed)
    ends = np.cumsum(counts)
    parts = [_clips(order[end - count : end]) for end, count in zip(ends, counts, strict=True)]
    shares = "/".join(f"{share:g}" for share in fractions)
    return index_split(ds, *parts, name=f"random:{shares}:seed={seed}" + _grouped(group))


def _share_counts(fractions: Sequence[float], n_clips: int) -> list[int]:
    """Whole numbers near the shares (largest remainders), none of a positive share zero."""
    if len(fractions) != len(ROLES) or any(not 0 <= share <= 1 for share in fractions):
        raise ValueError(f"fractions are three shares (train, val, test) between 0 and 1, got {fractions!r}")
    if abs(math.fsum(fractions) - 1.0) > 1e-6 or fractions[0] == 0:
        raise ValueError(f"fractions sum to 1 and train is above 0, got {fractions!r}")
    needed = sum(share > 0 for share in fractions)
    if n_clips < needed:
        raise ValueError(
            f"{n_clips} different clips cannot fill {needed} roles; {CUT}, set a fraction to 0 or add clips"
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


@checked_but("k", "n_val")
def k_fold(
    ds: NeuralDataset, k: int = 5, *, n_val: int | None = None, seed: int = 0, group: str | None = None
) -> list[ClipSplit]:
    """Splits of a k-fold cross-validation: every clip is tested once.

    Clips are put in a seeded random order and divided into k folds; fold i tests in split i. Clips with the
    same sound, and windows of one clip, stay in one fold.

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
    group : str, optional
        As in `random_split`.

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
    groups = same_sounds(ds, group)
    _check_folds(ds, groups, k, group)
    order = shuffled(groups, seed)
    folds = [[order[i] for i in part] for part in np.array_split(np.arange(len(order)), k)]
    splits = []
    for index, test in enumerate(folds):
        rest = [group for step in range(1, k) for group in folds[(index + step) % k]]
        wanted = (len(folds[(index + 1) % k]) if k > 2 else 0) if n_val is None else n_val
        _check_validation(wanted, len(rest))
        label = (
            f"kfold:{k}:fold={index}:seed={seed}"
            + ("" if n_val is None else f":n_val={n_val}")
            + _grouped(group)
        )
        parts = (_clips(rest[wanted:]), _clips(rest[:wanted]), _clips(test))
        splits.append(index_split(ds, *parts, name=label))
    return splits


@checked
def leave_one_clip_out(
    ds: NeuralDataset, *, n_val: int | None = None, seed: int = 0, group: str | None = None
) -> list[ClipSplit]:
    """Splits of a leave-one-out cross-validation: each clip is tested alone.

    Parameters
    ----------
    ds : NeuralDataset
        Dataset to split.
    n_val : int, optional
        Number of validation clips, drawn from the others with the seed; by default 15 percent of them, at
        least one when two or more are left.
    seed : int
        Seed of the draw.
    group : str, optional
        As in `random_split`.

    Returns
    -------
    list of ClipSplit
        Split i tests clip i (and clips with the same sound).

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
    groups = same_sounds(ds, group)
    _check_folds(ds, groups, max(2, len(groups)), group)
    splits = []
    for index, test in enumerate(groups):
        rest = shuffled([group for group in groups if group is not test], seed)
        wanted = n_val
        if wanted is None:
            wanted = max(1, round(_VALIDATION_SHARE * len(rest))) if len(rest) > 1 else 0
        _check_validation(wanted, len(rest))
        label = (
            f"loo:fold={index}:seed={seed}" + ("" if n_val is None else f":n_val={n_val}") + _grouped(group)
        )
        parts = (_clips(rest[wanted:]), _clips(rest[:wanted]), _clips([test]))
        splits.append(index_split(ds, *parts, name=label))
    return splits


def _check_folds(ds: NeuralDataset, groups: Sequence[list[int]], k: int, group: str | None) -> None:
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 2:
        raise ValueError(f"k is the number of folds, an integer of at least 2, got {k!r}")
    if k > len(groups):
        kind = "different sounds" if group is None else f"groups of different {group!r} and sounds"
        copies = "" if len(groups) == len(ds) else f" ({len(ds)} clips, but only {len(groups)} {kind})"
        raise ValueError(f"k={k} folds need at least {k} clips, the dataset has {len(groups)}{copies}; {CUT}")


def _check_validation(n_val: int, n_left: int) -> None:
    if isinstance(n_val, bool) or not isinstance(n_val, (int, np.integer)) or not 0 <= n_val < n_left:
        raise ValueError(
            f"n_val={n_val!r} leaves nothing to train on or is no count: {n_left} clips remain beside the "
            f"test clips, so 0..{n_left - 1} are possible"
        )


def same_sounds(ds: NeuralDataset, group: str | None = None) -> list[list[int]]:
    """Groups of clips with the same sound or the same metadata ``group``, in order of first appearance."""
    root = list(range(len(ds)))  # of each clip, an earlier one of its group, itself for the first
    first: dict[Any, int] = {}
    for clip, row in enumerate(ds.stim_meta):
        keys: list[Any] = [("sound", ds.source_fingerprint(clip))]
        if group is not None:
            if group not in row:
                has = ", ".join(map(repr, row)) or "nothing"
                raise KeyError(f"stim_meta of clip {clip} has no {group!r}; it has {has}")
            keys.append(("group", row[group]))
        if "window_of" in row:  # the context of a window is heard in the one before
            keys.append(("sound", row["window_of"]))
        together = sorted({_root(root, first[key]) for key in keys if key in first} | {clip})
        for other in together:
            root[other] = together[0]
        first.update(dict.fromkeys(keys, clip))
    groups: dict[int, list[int]] = {}
    for clip in range(len(ds)):
        groups.setdefault(_root(root, clip), []).append(clip)
    return list(groups.values())


def _root(root: list[int], clip: int) -> int:
    while root[clip] != clip:
        clip = root[clip]
    return clip


def _grouped(group: str | None) -> str:
    return "" if group is None else f":group={group}"


def shuffled(groups: Sequence[list[int]], seed: int) -> list[list[int]]:
    """Groups in a seeded order: by SHA-256 of seed and first clip."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)):
        raise TypeError(f"seed is an integer, got {seed!r}")
    keys = [hashlib.sha256(f"{int(seed)}:{group[0]}".encode()).digest() for group in groups]
    return [group for _, group in sorted(zip(keys, groups, strict=True))]


def _clips(groups: Sequence[list[int]]) -> list[int]:
    return sorted(clip for group in groups for clip in group)


# ---- text form


@checked
def parse_split(ds: NeuralDataset, text: str) -> ClipSplit:
    """Split described by one line of text, as the command line and run folders write it.

    Parameters
    ----------
    ds : NeuralDataset
        Dataset to split.
    text : str
        "14/3/3": the first 14 clips train, the next 3 validate, the last 3 test (they must add up).
        "0-13/14-16/17,18,19": clips by index. "random:0.7/0.15/0.15:seed=0".
        "kfold:5:fold=0", optionally ":seed=1" and ":n_val=2". "loo:fold=3", with the same options. The last
        three also take ":group=KEY" (see `random_split`). In experiments, "cut:10+0.5:" before one of these
        cuts clips into pieces of 10 s with gaps of 0.5 s; here the dataset is cut already.

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
    if not isinstance(text, str):
        raise TypeError(f"a split is described by a string, one of {_FORMS}; got {type(text).__name__}")
    if read_cut(text)[0] is not None:
        raise ValueError(f"{text!r} cuts the recording first: call ds.cut(...), and split what it returns")
    words = text.strip().split(":")
    kind = words[0].lower()
    if kind == "random":
        shares = []
        for word in words[1].split("/") if len(words) > 1 else []:
            try:
                shares.append(float(word))
            except ValueError:
                raise ValueError(f"{word!r} in {text!r} is no number; splits are {_FORMS}") from None
        options = _options(text, words[2:], {"seed": 0, "group": None})
        return random_split(ds, shares, **options)
    if kind == "kfold":
        folds = _whole(text, words[1] if len(words) > 1 else "")
        options = _options(text, words[2:], {"fold": None, "seed": 0, "n_val": None, "group": None})
        fold = options.pop("fold")
        return _chosen(text, k_fold(ds, folds, **options), fold)
    if kind == "loo":
        options = _options(text, words[1:], {"fold": None, "seed": 0, "n_val": None, "group": None})
        fold = options.pop("fold")
        return _chosen(text, leave_one_clip_out(ds, **options), fold)
    parts = text.strip().split("/")
    if len(words) != 1 or len(parts) != 3:
        raise ValueError(f"{text!r} is no split; use {_FORMS}")
    if all(part.strip().isdecimal() and len(part) <= _MOST_DIGITS for part in parts):
        counts = [int(part) for part in parts]
        if sum(counts) != len(ds):
            raise ValueError(
                f"{text!r} gives roles to {sum(counts)} clips, the dataset has {len(ds)}; these must add up, "
                "or name the clips: '0-13/14-16/17-19'"
            )
        first, second = counts[0], counts[0] + counts[1]
        return index_split(ds, range(first), range(first, second), range(second, len(ds)))
    clips = [_indices(text, part, len(ds)) for part in parts]
    return index_split(ds, *clips, name=text.strip())


def read_cut(text: str) -> tuple[tuple[float, float] | None, str | None]:
    """``(length_ms, gap_ms)`` and the split behind them of "cut:10+0.5:random:..." (seconds), else None."""
    kind, _, rest = text.strip().partition(":")
    if kind.lower() != "cut":
        return None, text
    lengths, _, split = rest.partition(":")
    match = re.fullmatch(r"(\d*\.?\d+)s?(?:\+(\d*\.?\d+)s?)?", lengths.strip())
    if match is None or float(match[1]) == 0:
        raise ValueError(
            f"{lengths!r} in {text!r} is no length of pieces in seconds; use 'cut:10:random:...'"
        )
    return (1000.0 * float(match[1]), 1000.0 * float(match[2] or 0)), split.strip() or None


def _indices(text: str, part: str, n_clips: int) -> list[int]:
    """Clips of "0-13" or "17,18,19"."""
    clips: list[int] = []
    for piece in filter(None, (word.strip() for word in part.split(","))):
        match = re.fullmatch(r"(\d{1,18})(?:-(\d{1,18}))?", piece)
        if match is None:
            raise ValueError(
                f"{piece!r} in {text!r} is no clip index or range like 0-13; splits are {_FORMS}"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        clips.extend(range(first, min(last, n_clips) + 1))  # one beyond the last, which is refused by name
    return clips


def _options(text: str, words: list[str], defaults: dict[str, int | None]) -> dict[str, Any]:
    """``key=value`` words over their defaults."""
    found: dict[str, Any] = dict(defaults)
    for word in words:
        key, _, value = word.partition("=")
        if key not in defaults:
            raise ValueError(f"unknown option {word!r} in {text!r}; this form takes {', '.join(defaults)}")
        found[key] = value if key == "group" else _whole(text, value)
    return found


def _whole(text: str, word: str) -> int:
    if not word.strip().isdecimal() or len(word) > _MOST_DIGITS:
        raise ValueError(f"{word!r} in {text!r} is no whole number; splits are {_FORMS}")
    return int(word)


def _chosen(text: str, every: list[ClipSplit], fold: int | None) -> ClipSplit:
    if fold is None:
        raise ValueError(f"{text!r} names no fold; add ':fold=0' (to ':fold={len(every) - 1}')")
    if fold >= len(every):
        raise ValueError(f"{text!r}: there are {len(every)} folds, 0..{len(every) - 1}")
    return every[fold]
