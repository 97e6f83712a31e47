"""The folds of a cross-validation: which parts of a recording test, and what may be fitted beside them.

The parts are its clips, or the blocks of long clips. Next to a block that is held out, a gap is left out of
what is fitted: neighbouring bins of a continuous response resemble each other.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from deepSTRF.datasets import ClipSplit, FoldManifest, NeuralDataset
from deepSTRF.datasets.folds import Fold, clip_names
from deepSTRF.datasets.splits import index_split, k_fold, leave_one_clip_out, random_split
from deepSTRF.datasets.windows import stretches
from deepSTRF.models.prediction import predict_clips

__all__ = ["ALL_BUT_ONE", "FoldPlan", "check_inner", "plan_of", "predict_view"]

ALL_BUT_ONE = "leave-one-clip-out"
FORMS = (
    f"a number of folds, {ALL_BUT_ONE!r}, 'group:KEY' or 'group:KEY:5' (KEY of stim_meta), 'blocked:5:500' "
    "(blocks of every clip, and a gap in ms), or a list of ClipSplit"
)
#: Key of ``stim_meta`` that says which block of its clip a part is.
BLOCK = "block"
#: A stretch between two gaps that is shorter is left out.
FEWEST_BINS = 2


@dataclass(frozen=True)
class FoldPlan:
    """Parts of a recording and their roles in each fold.

    ``parts`` is the recording itself, or the dataset of its ``blocks`` (clip, first bin, bin after the last);
    ``group`` is the key of ``stim_meta`` that inner folds keep together, ``gap`` counts bins.
    """

    recording: NeuralDataset
    parts: NeuralDataset
    splits: tuple[ClipSplit, ...]
    group: str | None = None
    blocks: tuple[tuple[int, int, int], ...] = ()
    gap: int = 0

    def view(self, parts: Sequence[int], apart: Sequence[int] = ()) -> NeuralDataset:
        """The dataset of some parts, without the bins next to those ``apart``; neighbours are joined."""
        if not self.blocks:
            return self.recording.select(clips=list(parts))
        spans: list[tuple[int, int, int]] = []
        for clip, start, stop in sorted(self.blocks[part] for part in parts):
            if spans and spans[-1][0] == clip and spans[-1][2] == start:
                start = spans.pop()[1]
            spans.append((clip, start, stop))
        for part in apart:
            spans = [piece for span in spans for piece in self._outside(span, part)]
        spans = [span for span in spans if span[2] - span[1] >= FEWEST_BINS]
        if not spans:
            raise ValueError(f"a gap of {self.gap} bins leaves nothing to fit between the blocks")
        return stretches(self.recording, spans)

    def _outside(self, span: tuple[int, int, int], part: int) -> list[tuple[int, int, int]]:
        """What is left of a stretch beside a block and its gaps, also where another clip has the sound."""
        clip, start, stop = span
        other, first, last = self.blocks[part]
        ds = self.recording
        if clip != other and ds.source_fingerprint(clip) != ds.source_fingerprint(other):
            return [span]
        before, after = (clip, start, min(stop, first - self.gap)), (clip, max(start, last + self.gap), stop)
        return [piece for piece in (before, after) if piece[1] < piece[2]]

    def divided(self, share: float, seed: int) -> FoldPlan:
        """The same test parts, with a share of the others for validation."""
        splits = []
        for split in self.splits:
            rest, view = self._rest(split)
            one = random_split(view, (1.0 - share, share, 0.0), seed, group=self.group)
            train, val = ([rest[i] for i in part] for part in (one.train, one.val))
            name = f"{split.name}:inner={share:g}"
            splits.append(index_split(self.parts, train, val, split.test, name=name))
        return replace(self, splits=tuple(splits))

    def inner(
        self, split: ClipSplit, inner: int | str | None, seed: int
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Training and validation parts of the inner folds, all inside the training and validation parts."""
        if inner is None:
            return [(split.train, split.val)] if split.val else []
        rest, view = self._rest(split)
        if inner == ALL_BUT_ONE:
            found = leave_one_clip_out(view, n_val=0, seed=seed, group=self.group)
        else:
            found = k_fold(view, int(inner), n_val=0, seed=seed, group=self.group)
        return [(tuple(rest[i] for i in one.train), tuple(rest[i] for i in one.test)) for one in found]

    def _rest(self, split: ClipSplit) -> tuple[list[int], NeuralDataset]:
        rest = sorted({*split.train, *split.val})
        return rest, self.parts.select(clips=rest)

    def predict(self, model: Any, parts: Sequence[int]) -> list[Tensor]:
        """Predictions (N, T) of some parts; those of a block know the stimulus around it, as the rest has."""
        if not self.blocks:
            return predict_view(model, self.view(parts))
        clips = sorted({self.blocks[part][0] for part in parts})
        whole = dict(zip(clips, predict_view(model, self.recording.select(clips=clips)), strict=True))
        return [
            whole[clip][:, start:stop].clone() for clip, start, stop in map(self.blocks.__getitem__, parts)
        ]

    def joined(self, rates: Sequence[Tensor]) -> list[Tensor]:
        """Predictions (N, T) of the clips of the recording from those of the parts."""
        if not self.blocks:
            return list(rates)
        clips: list[list[Tensor]] = [[] for _ in range(len(self.recording))]
        for (clip, _, _), one in zip(self.blocks, rates, strict=True):
            clips[clip].append(one)
        return [torch.cat(pieces, dim=1) for pieces in clips]

    def manifest(self, seeds: Sequence[int]) -> FoldManifest:
        """The fits of all folds and seeds, as `FoldFits` reads them."""
        first: dict[str, int] = {}
        sound = [self.parts.source_fingerprint(part) for part in range(len(self.parts))]
        for part, one in enumerate(sound):
            first.setdefault(one, part)
        names = dict(zip(first, clip_names(self.parts, list(first.values())), strict=True))
        folds = [
            Fold(fit_name(number, seed, seeds), tuple(dict.fromkeys(names[sound[i]] for i in split.test)))
            for number, split in enumerate(self.splits)
            for seed in seeds
        ]
        sounds = {name: one for one, name in names.items()}
        return FoldManifest(tuple(names.values()), tuple(folds), {}, sounds)


def fit_name(number: int, seed: int, seeds: Sequence[int]) -> str:
    """Name of a fit, as of the folders of `fit_folds`; with several seeds it names the seed."""
    return f"model-{number:03d}" + (f"-seed{seed}" if len(seeds) > 1 else "")


def predict_view(model: Any, view: NeuralDataset) -> list[Tensor]:
    """Predictions (N, T) of every clip of a dataset by any model that has ``predict``, or any module."""
    found = predict_clips(model, view) if isinstance(model, nn.Module) else list(model.predict(view))
    rates = [torch.as_tensor(one).detach().cpu() for one in found]
    wanted = [(view.N_neurons, view.n_bins(clip)) for clip in range(len(view))]
    if [tuple(one.shape) for one in rates] != wanted:
        raise ValueError(
            f"{type(model).__name__}.predict(dataset) returned {[tuple(one.shape) for one in rates][:3]} "
            f"for clips of (N, T) = {wanted[:3]}; it returns one (N, T) array per clip"
        )
    return rates


# ---- from the argument ``folds``


def plan_of(ds: NeuralDataset, folds: Any, seed: int) -> FoldPlan:
    """Return the plan that ``folds`` describes."""
    if isinstance(folds, bool) or not isinstance(folds, int | str | Sequence | np.integer):
        raise TypeError(f"folds is {FORMS}; got {type(folds).__name__}")
    if isinstance(folds, int | np.integer):
        return FoldPlan(ds, ds, tuple(k_fold(ds, int(folds), seed=seed)))
    if not isinstance(folds, str):
        return FoldPlan(ds, ds, _given(ds, folds))
    text = folds.strip()
    if text.lower().replace("_", "-") == ALL_BUT_ONE:
        return FoldPlan(ds, ds, tuple(leave_one_clip_out(ds, seed=seed)))
    kind, _, rest = text.partition(":")
    if kind.lower() == "group" and rest:
        key, number = re.fullmatch(r"(.*?)(?::(\d{1,9}))?", rest).groups()  # type: ignore[union-attr]
        splits = (
            leave_one_clip_out(ds, seed=seed, group=key)
            if number is None
            else k_fold(ds, int(number), seed=seed, group=key)
        )
        return FoldPlan(ds, ds, tuple(splits), group=key)
    if kind.lower() == "blocked":
        return _blocked(ds, text, rest)
    raise ValueError(f"folds={folds!r} is unknown; folds is {FORMS}")


def _given(ds: NeuralDataset, folds: Sequence[Any]) -> tuple[ClipSplit, ...]:
    if not folds:
        raise ValueError(f"folds is an empty list; give at least one ClipSplit, or {FORMS}")
    for place, split in enumerate(folds):
        if not isinstance(split, ClipSplit):
            raise TypeError(
                f"folds[{place}] must be a ClipSplit, got {type(split).__name__}: k_fold(ds, 5) and "
                "index_split(ds, train, val, test) make them"
            )
        split.apply(ds)  # that it is of these sounds
        if not split.test:
            raise ValueError(f"folds[{place}] ({split.name}) has no test clips: nothing would be predicted")
    return tuple(folds)


def _blocked(ds: NeuralDataset, text: str, rest: str) -> FoldPlan:
    """Fold i tests the i-th block of every clip; the next block validates, as the next fold of `k_fold`."""
    match = re.fullmatch(r"(\d{1,6})(?::(\d+\.?\d*|\.\d+)(?:\s*ms)?)?", rest.strip())
    if match is None or int(match[1]) < 2:
        raise ValueError(
            f"folds={text!r}: give the number of blocks (at least 2) and the gap in ms, as 'blocked:5:500'"
        )
    if any("window_of" in row for row in ds.stim_meta):
        raise ValueError(
            "these are windows: give the recording that they were made of to folds='blocked:...'"
        )
    k, gap = int(match[1]), math.ceil(float(match[2] or 0.0) / ds.dt - 1e-9)
    blocks: list[tuple[int, int, int]] = []
    for clip in range(len(ds)):
        ends = np.linspace(0, ds.n_bins(clip), k + 1).round().astype(int).tolist()
        if ends[1] <= 2 * gap + FEWEST_BINS:
            raise ValueError(
                f"folds={text!r}: clip {clip} has {ds.n_bins(clip)} bins, so a block {ends[1]}, which two "
                f"gaps of {gap} bins use up; give fewer blocks or a shorter gap, or folds of whole clips "
                f"({ALL_BUT_ONE!r})"
            )
        blocks += [(clip, first, last) for first, last in itertools.pairwise(ends)]
    numbers = [place % k for place in range(len(blocks))]
    parts = stretches(ds, blocks, **{BLOCK: numbers})
    splits = []
    for test in range(k):
        val = (test + 1) % k if k > 2 else None
        roles = [
            [place for place, number in enumerate(numbers) if number == wanted] for wanted in (val, test)
        ]
        train = [place for place, number in enumerate(numbers) if number not in (val, test)]
        splits.append(index_split(parts, train, *roles, name=f"blocked:{k}:{gap * ds.dt:g}:fold={test}"))
    return FoldPlan(ds, parts, tuple(splits), BLOCK, tuple(blocks), gap)


def check_inner(inner: Any) -> int | float | str | None:
    """Return ``inner`` where it is a number of folds, a share, "leave-one-clip-out" or None."""
    if isinstance(inner, str) and inner.strip().lower().replace("_", "-") == ALL_BUT_ONE:
        return ALL_BUT_ONE
    whole = isinstance(inner, int | np.integer) and not isinstance(inner, bool)
    share = isinstance(inner, float) and 0.0 < inner < 1.0
    if inner is not None and not share and not (whole and inner >= 2):
        raise ValueError(
            f"inner must be a number of inner folds (at least 2), {ALL_BUT_ONE!r}, a share of validation "
            f"clips between 0 and 1, or None for the validation clips of each fold; got {inner!r}"
        )
    return int(inner) if whole else inner
