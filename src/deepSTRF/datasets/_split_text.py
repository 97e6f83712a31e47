"""Reading a split from a line of text: the working part of ``parse_split``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deepSTRF.datasets.base import NeuralDataset
    from deepSTRF.datasets.splits import ClipSplit

_FORMS = (
    "'14/3/3', '0-13/14-16/17,18,19', 'random:0.7/0.15/0.15:seed=0', 'kfold:5:fold=0' or 'loo:fold=0' "
    "(the last two also with ':seed=1' and ':n_val=2')"
)


def parse(ds: NeuralDataset, text: str) -> ClipSplit:
    """See `deepSTRF.datasets.splits.parse_split`."""
    from deepSTRF.datasets import splits

    if not isinstance(text, str):
        raise TypeError(f"a split is described by a string, one of {_FORMS}; got {type(text).__name__}")
    words = text.strip().split(":")
    kind = words[0].lower()
    if kind == "random":
        shares = words[1].split("/") if len(words) > 1 else []
        options = _options(text, words[2:], {"seed": 0})
        return splits.random_split(ds, [_number(text, share) for share in shares], seed=options["seed"])
    if kind == "kfold":
        folds = _whole(text, words[1] if len(words) > 1 else "")
        options = _options(text, words[2:], {"fold": None, "seed": 0, "n_val": None})
        every = splits.k_fold(ds, folds, n_val=options["n_val"], seed=options["seed"])
        return _chosen(text, every, options["fold"])
    if kind == "loo":
        options = _options(text, words[1:], {"fold": None, "seed": 0, "n_val": None})
        every = splits.leave_one_clip_out(ds, n_val=options["n_val"], seed=options["seed"])
        return _chosen(text, every, options["fold"])
    parts = text.strip().split("/")
    if len(words) != 1 or len(parts) != 3:
        raise ValueError(f"{text!r} is no split; use {_FORMS}")
    if all(part.strip().isdecimal() for part in parts):
        return _by_counts(ds, text, [int(part) for part in parts])
    clips = [_indices(text, part) for part in parts]
    return splits.index_split(ds, *clips, name=text.strip())


def _by_counts(ds: NeuralDataset, text: str, counts: list[int]) -> ClipSplit:
    from deepSTRF.datasets import splits

    if sum(counts) != len(ds):
        raise ValueError(
            f"{text!r} gives roles to {sum(counts)} clips, the dataset has {len(ds)}; these must add up, or "
            "name the clips: '0-13/14-16/17-19'"
        )
    ends = [counts[0], counts[0] + counts[1], sum(counts)]
    return splits.index_split(ds, range(ends[0]), range(ends[0], ends[1]), range(ends[1], ends[2]))


def _indices(text: str, part: str) -> list[int]:
    clips: list[int] = []
    for piece in filter(None, (word.strip() for word in part.split(","))):
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", piece)
        if match is None:
            raise ValueError(
                f"{piece!r} in {text!r} is no clip index or range like 0-13; splits are {_FORMS}"
            )
        first = int(match[1])
        clips.extend(range(first, int(match[2] or first) + 1))
    return clips


def _options(text: str, words: list[str], defaults: dict[str, int | None]) -> dict[str, Any]:
    found: dict[str, int | None] = dict(defaults)
    for word in words:
        key, _, value = word.partition("=")
        if key not in defaults:
            raise ValueError(f"unknown option {word!r} in {text!r}; this form takes {', '.join(defaults)}")
        found[key] = _whole(text, value)
    return found


def _number(text: str, word: str) -> float:
    try:
        return float(word)
    except ValueError:
        raise ValueError(f"{word!r} in {text!r} is no number; splits are {_FORMS}") from None


def _whole(text: str, word: str) -> int:
    if not word.strip().isdecimal():
        raise ValueError(f"{word!r} in {text!r} is no whole number; splits are {_FORMS}")
    return int(word)


def _chosen(text: str, every: list[ClipSplit], fold: int | None) -> ClipSplit:
    if fold is None:
        raise ValueError(f"{text!r} names no fold; add ':fold=0' (to ':fold={len(every) - 1}')")
    if fold >= len(every):
        raise ValueError(f"{text!r}: there are {len(every)} folds, 0..{len(every) - 1}")
    return every[fold]
