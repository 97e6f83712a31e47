"""The ridge solution for every penalty and all neurons that were recorded in the same bins.

With ``X`` the lagged features, centred, and ``Y`` the PSTHs, the weights are ``(X'X + lambda I)^-1 X'Y``:
one reduction of the Gram matrix to tridiagonal form serves all penalties and all neurons of a group. Where
there are fewer bins than weights, the same problem is solved by the Gram matrix of bins,
``X'(XX' + lambda I)^-1 Y``.

Neurons that lack a few bins of the same clips share the form of these clips: their Gram matrix differs by the
rows U of those bins, and ``(A + U'SU)^-1 = A^-1 - A^-1 U' (S + U A^-1 U')^-1 U A^-1`` for signs S (Woodbury
1950; Hager 1989, doi 10.1137/1031049), refined until the residual is that of rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deepSTRF.baselines.lagged import (
    LEAST_LEFT,
    BinParts,
    ClipFeatures,
    NeuronGroup,
    lagged_gram,
    lagged_rows,
    mostly,
)
from deepSTRF.baselines.tridiagonal import ShiftedSystems

__all__ = ["GroupSolver", "Problem", "Solution"]

#: Most rows by which a shared form is corrected, as a share of the number of weights: beyond it a form of
#: one's own costs no more.
MOST_ROWS = 1 / 8
#: Steps of refinement, and residual (relative to matrix times solution) that ends it.
REFINEMENTS, RESIDUAL = 3, 4e-15


class Systems(Protocol):
    """Shifted systems in coordinates that they take vectors to; see `ShiftedSystems`."""

    def rotate(self, rows: Tensor) -> Tensor: ...

    def rotate_back(self, rows: Tensor) -> Tensor: ...

    def solve(self, rows: Tensor, shift: float) -> Tensor: ...


class SingleSystem:
    """The system of one matrix that is solved for one shift only: Cholesky factors, no other coordinates."""

    def __init__(self, gram: Tensor) -> None:
        self._gram = gram
        self._factors: dict[float, Tensor | None] = {}

    def rotate(self, rows: Tensor) -> Tensor:
        """The rows as they are."""
        return rows

    def rotate_back(self, rows: Tensor) -> Tensor:
        """The rows as they are."""
        return rows

    def solve(self, rows: Tensor, shift: float) -> Tensor:
        """Rows b as (G + shift I)^-1 b."""
        if shift not in self._factors:  # blocks of neurons are solved one after another
            shifted = self._gram.clone()
            shifted.diagonal().add_(shift)
            factor, singular = torch.linalg.cholesky_ex(shifted)
            self._factors[shift] = None if bool(singular) else factor
        found = self._factors[shift]
        if found is not None:
            return torch.cholesky_solve(rows.T, found).T
        # the shift is below the rounding error of the largest eigenvalue
        general = ShiftedSystems(self._gram.clone())
        return general.rotate_back(general.solve(general.rotate(rows), shift))


class CorrectedSystems:
    """Shifted systems of ``G + U'SU``, from those of G and a few rows U with signs S of 1 or -1."""

    def __init__(self, systems: ShiftedSystems, rows: Tensor, signs: Tensor) -> None:
        self._systems, self._signs = systems, signs
        self._rows = systems.rotate(rows)
        self._norm = systems.norm()
        self.rotate, self.rotate_back = systems.rotate, systems.rotate_back

    def solve(self, rows: Tensor, shift: float) -> Tensor:
        """Rows b as (T + U'SU + shift I)^-1 b; ArithmeticError where rounding spoils it."""
        through = self._systems.solve(self._rows, shift)
        factors = torch.linalg.lu_factor(torch.diag(self._signs) + self._rows @ through.T)
        found, left = torch.zeros_like(rows), rows
        for _ in range(REFINEMENTS):
            step = self._systems.solve(left, shift)
            found += step
            found -= torch.linalg.lu_solve(*factors, self._rows @ step.T).T @ through
            product: Tensor = self._systems.multiply(found) + shift * found
            product += (found @ self._rows.T * self._signs) @ self._rows
            left = rows - product
            allowed = RESIDUAL * ((self._norm + shift) * found.norm(dim=1) + rows.norm(dim=1))
            if bool((left.norm(dim=1) <= allowed * len(self._signs) ** 0.5).all()):
                return found
        raise ArithmeticError("too much of the matrix is taken off again")


@dataclass(frozen=True)
class Solution:
    """Estimates of n neurons for k penalties.

    Shapes: weights (k, n, P); biases, and summed squares of the prediction about its mean over the training
    bins, (k, n).
    """

    weights: Tensor
    biases: Tensor
    squares: Tensor


@dataclass(frozen=True)
class GroupSolver:
    """Solver of a group of neurons; ``form`` is "primal" (by weights) or "dual" (by bins).

    ``targets`` (n, Q) are the right-hand sides in the coordinates of ``systems``, ``means`` (n,) of the
    responses, ``centre`` (P,) of the features; ``columns`` are those of the design, where form is "dual".
    """

    systems: Systems
    targets: Tensor
    means: Tensor
    centre: Tensor
    form: str
    clips: ClipFeatures
    group: NeuronGroup
    lags: range
    max_bytes: int

    def solve(self, lambdas: Tensor, members: Tensor) -> Solution:
        """Solve for some of the group's neurons and every penalty."""
        n_neurons = len(members)
        targets = self.targets if n_neurons == len(self.targets) else self.targets[members]
        found = targets.new_empty(len(lambdas) * n_neurons, targets.shape[1])
        squares = targets.new_empty(len(lambdas), n_neurons)
        for place, shift in enumerate(lambdas.tolist()):
            one = found[place * n_neurons : (place + 1) * n_neurons]
            one.copy_(self.systems.solve(targets, shift))
            product = targets.sub(one, alpha=shift)  # by the matrix itself
            squares[place] = product.mul_(one if self.form == "primal" else product).sum(1)
            del product
        weights = self.systems.rotate_back(found)
        if self.form == "dual":
            weights = _by_columns(self.clips, self.group, self.lags, weights, self.max_bytes)
        weights = weights.view(len(lambdas), n_neurons, -1)
        return Solution(weights, self.means[members] - weights @ self.centre, squares.clamp_(min=0.0))


class Problem:
    """Ridge problem of a recording: Gram matrices of groups of neurons, and what they share.

    Features may be scaled anew (`rescale`): with ``keep_sums`` their sums are not made again. ``single``: all
    of a group is solved for the same one penalty.
    """

    def __init__(
        self,
        clips: ClipFeatures,
        groups: Sequence[NeuronGroup],
        lags: range,
        max_bytes: int,
        *,
        keep_sums: bool = False,
        single: bool = False,
    ) -> None:
        self._keeps, self._single = keep_sums, single
        self.clips, self.groups, self.lags, self.max_bytes = clips, list(groups), lags, max_bytes
        self._cross: tuple[Tensor, Tensor] | None = None
        self._grams: dict[tuple[bool, ...] | int, tuple[Tensor, Tensor]] = {}
        self._shared: dict[tuple[bool, ...], tuple[ShiftedSystems, Tensor, Tensor]] = {}
        self._scale: Tensor | None = None
        self._last: tuple[int, GroupSolver] | None = None
        outlines = [self._outline(group) for group in self.groups]
        self._several = {one for one in outlines if outlines.count(one) > 1}

    @property
    def n_weights(self) -> int:
        """Weights of a neuron."""
        return len(self.lags) * self.clips.n_features

    def rescale(self, scale: Tensor | None) -> None:
        """Multiply the features by numbers (D,) from here on, in place of earlier ones."""
        self._scale, self._last = scale, None
        self._shared.clear()

    def solve(self, number: int, lambdas: Tensor, members: Tensor) -> Solution:
        """Solve for some neurons of a group and every penalty."""
        if self._last is None or self._last[0] != number:
            self._last = number, self._prepare(number)
        try:
            return self._last[1].solve(lambdas, members)
        except ArithmeticError:
            self._last = number, self._direct(number)
        return self._last[1].solve(lambdas, members)

    def means(self, number: int) -> Tensor:
        """Mean responses (n,) of a group."""
        group = self.groups[number]
        return self._cross_of(group)[1] / group.n_bins(self.clips.lengths)

    def form(self, number: int) -> str:
        """Form in which a group is solved, "primal" or "dual"."""
        return "primal" if self.groups[number].n_bins(self.clips.lengths) >= self.n_weights else "dual"

    def _prepare(self, number: int) -> GroupSolver:
        group = self.groups[number]
        if self.form(number) == "dual":
            return self._dual(group)
        found = self._corrected(group) if self._outline(group) in self._several else None
        return self._direct(number) if found is None else found

    def _direct(self, number: int) -> GroupSolver:
        """Solver by the group's own Gram matrix."""
        group = self.groups[number]
        n_bins = group.n_bins(self.clips.lengths)
        xy, sums = self._cross_of(group)
        gram, centre = self._centred_gram(number, group, n_bins)
        systems = self._systems(gram)
        targets = systems.rotate(xy.addr(centre, sums, alpha=-1.0).T)
        return self._solver(group, systems, targets, sums / n_bins, centre, "primal")

    def _systems(self, gram: Tensor) -> Systems:
        return SingleSystem(gram) if self._single else ShiftedSystems(gram)

    def _corrected(self, group: NeuronGroup) -> GroupSolver | None:
        """Solver by the form of whole clips, less the bins that the group lacks; None where they are many."""
        lacking = sum(int(min(mask.sum(), (~mask).sum())) for mask in group.masks if mask is not None)
        if lacking > MOST_ROWS * self.n_weights:
            return None
        found = self._whole_clips(self._outline(group))
        if found is None:
            return None
        shared, centre, squares = found
        n_bins, scale = group.n_bins(self.clips.lengths), self._per_weight()
        masks = {clip: mask for clip, mask in enumerate(group.masks) if mask is not None}
        whole = [clip for clip, mask in masks.items() if mostly(mask)]
        parts = list(BinParts(self.clips, self.lags, self.max_bytes, whole, masks, None).rows())
        systems: Systems = shared
        if parts:
            rows = torch.cat([part for part, _ in parts])
            rows = (rows if scale is None else rows * scale) - centre
            signs = torch.cat([rows.new_full((len(part),), sign) for part, sign in parts])
            if bool((squares + signs @ rows.square() < LEAST_LEFT * squares).any()):
                return None
            moved = signs @ rows
            centre = centre + moved / n_bins
            # about the group's own mean
            rows = torch.cat([rows, moved.unsqueeze(0) / n_bins**0.5])
            systems = CorrectedSystems(shared, rows, torch.cat([signs, signs.new_tensor([-1.0])]))
        xy, sums = self._cross_of(group)
        targets = systems.rotate(xy.addr(centre, sums, alpha=-1.0).T)
        return self._solver(group, systems, targets, sums / n_bins, centre, "primal")

    def _whole_clips(self, outline: tuple[bool, ...]) -> tuple[ShiftedSystems, Tensor, Tensor] | None:
        """Systems over all bins of some clips about the mean, this mean, and sums of squares about it."""
        if outline not in self._shared:
            lengths = self.clips.lengths
            n_bins = sum(length for length, inside in zip(lengths, outline, strict=True) if inside)
            if n_bins < self.n_weights:
                return None
            nothing = [torch.zeros(length, dtype=torch.bool) for length in lengths]
            masks = [None if inside else none for inside, none in zip(outline, nothing, strict=True)]
            gram, centre = self._centred_gram(outline, NeuronGroup(torch.empty(0), masks), n_bins)
            squares = gram.diagonal().clone()
            self._shared[outline] = ShiftedSystems(gram), centre, squares
        return self._shared[outline]

    def _dual(self, group: NeuronGroup) -> GroupSolver:
        """Solver by the Gram matrix of bins: columns of the design are made a few lags at a time."""
        clips = self.clips if self._scale is None else self.clips.scaled(self._scale)
        n_bins = group.n_bins(clips.lengths)
        kernel = torch.zeros(n_bins, n_bins, dtype=torch.float64)
        centres = []
        for piece in _lag_pieces(clips, self.lags, n_bins, self.max_bytes):
            columns, centre = _centred_columns(clips, group, piece)
            kernel.addmm_(columns, columns.T)
            centres.append(centre)
        rates = [clips.psth(clip)[group.neurons] for clip in range(len(clips))]
        recorded = torch.cat(
            [y if mask is None else y[:, mask] for y, mask in zip(rates, group.masks, strict=True)], dim=1
        )
        means = recorded.mean(1)
        systems = self._systems(kernel)
        targets = systems.rotate(recorded - means.unsqueeze(1))
        return self._solver(group, systems, targets, means, torch.cat(centres), "dual")

    def _solver(
        self, group: NeuronGroup, systems: Systems, targets: Tensor, means: Tensor, centre: Tensor, form: str
    ) -> GroupSolver:
        clips = self.clips if self._scale is None else self.clips.scaled(self._scale)
        return GroupSolver(systems, targets, means, centre, form, clips, group, self.lags, self.max_bytes)

    def _outline(self, group: NeuronGroup) -> tuple[bool, ...]:
        """Clips in which most bins of a group were recorded."""
        return tuple(mask is None or mostly(mask) for mask in group.masks)

    def _per_weight(self) -> Tensor | None:
        return None if self._scale is None else self._scale.repeat(len(self.lags))

    def _cross_of(self, group: NeuronGroup) -> tuple[Tensor, Tensor]:
        if self._cross is None:
            self._cross = self.clips.cross(self.lags)
        everyone = len(group.neurons) == self.clips.n_neurons
        xy, sums = self._cross if everyone else (values[..., group.neurons] for values in self._cross)
        scale = self._per_weight()
        return (xy if scale is None else xy * scale.unsqueeze(1)), sums

    def _centred_gram(
        self, key: int | tuple[bool, ...], group: NeuronGroup, n_bins: int
    ) -> tuple[Tensor, Tensor]:
        """Gram matrix over a group's bins about their mean, and the mean (P,)."""
        found = self._grams.get(key)
        if found is None:
            found = lagged_gram(self.clips, group, self.lags, max_bytes=self.max_bytes)
            if self._keeps and (len(self._grams) + 1) * 8 * self.n_weights**2 <= self.max_bytes:
                self._grams[key] = found
        gram, sums = found
        scale = self._per_weight()
        if scale is not None:
            gram, sums = gram * scale * scale.unsqueeze(1), sums * scale
        centre = sums / n_bins
        kept = scale is None and key in self._grams
        return (gram.clone() if kept else gram).addr_(sums, centre, alpha=-1.0), centre


def _by_columns(
    clips: ClipFeatures, group: NeuronGroup, lags: range, shares: Tensor, max_bytes: int
) -> Tensor:
    """Weights (m, P) of which the rows of the design have shares (m, n_bins)."""
    pieces = _lag_pieces(clips, lags, shares.shape[1], max_bytes)
    return torch.cat([shares @ _centred_columns(clips, group, piece)[0] for piece in pieces], dim=1)


def _lag_pieces(clips: ClipFeatures, lags: range, n_bins: int, max_bytes: int) -> list[range]:
    """Lags of which columns over some bins stay within a number of bytes."""
    at_once = max(1, max_bytes // (8 * n_bins * clips.n_features))
    return [lags[first : first + at_once] for first in range(0, len(lags), at_once)]


def _centred_columns(clips: ClipFeatures, group: NeuronGroup, lags: range) -> tuple[Tensor, Tensor]:
    """Columns of some lags over the group's bins, without their means, and the means."""
    rows = []
    for clip, mask in enumerate(group.masks):
        bins = torch.arange(clips.lengths[clip]) if mask is None else mask.nonzero().squeeze(1)
        rows.append(lagged_rows(clips.features(clip), bins, lags))
    columns = torch.cat(rows)
    centre = columns.mean(0)
    return columns - centre, centre
