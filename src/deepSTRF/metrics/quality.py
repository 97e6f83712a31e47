"""Reliability of the neurons of a recording, and the selection of neurons by it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deepSTRF._files import write_atomically
from deepSTRF._text import csv_table
from deepSTRF._validation import check_n_splits, checked, checked_but
from deepSTRF.metrics._statistics import (
    PooledPowers,
    RepeatSummary,
    by_clip,
    check_centring,
    check_clip,
    is_reliable,
    keep_where,
    signal_to_noise,
    valid_samples,
)
from deepSTRF.metrics.ceilings import (
    N_SPLITS,
    CeilingBootstrap,
    RepeatGroups,
    SplitCeiling,
    check_bootstrap,
)
from deepSTRF.metrics.stacks import stacks
from deepSTRF.protocols import DatasetLike

__all__ = ["neuron_quality", "select_neurons"]

COLUMNS = (
    "n_clips",
    "n_repeats_min",
    "n_repeats_max",
    "n_bins",
    "mean_response",
    "signal_power",
    "noise_power",
    "snr",
    "ccmax",
    "ccmax_low",
    "ccmax_high",
)
COUNTS = ("n_clips", "n_repeats_min", "n_repeats_max", "n_bins")
QUALITY_BOOTSTRAP = 200


@dataclass(frozen=True)
class NeuronQuality:
    """Reliability of every neuron of a recording.

    Attributes
    ----------
    n_clips : Tensor, shape (N,)
        Clips with any data of the neuron.
    n_repeats_min, n_repeats_max : Tensor, shape (N,)
        Fewest and most repeats among those clips.
    n_bins : Tensor, shape (N,)
        Time bins with any data.
    mean_response : Tensor, shape (N,)
        Mean over bins of the PSTH, in the unit of the responses (spikes per bin).
    signal_power, noise_power, snr : Tensor, shape (N,)
        As the functions of those names; NaN without two repeats.
    ccmax, ccmax_low, ccmax_high : Tensor, shape (N,)
        Half-split ceiling and bootstrap interval; NaN without two repeats or without positive reliability.
    reasons : tuple of str
        Per neuron why a value is missing, "" when none is.
    centring, ccmax_centring : str
        "clip" or "concat": of powers and snr, and of the ceiling.
    smoothing_ms : float or None
        Window the dataset smoothed its responses with, None for none. Smoothing single repeats lowers the
        noise power by about the window's length in bins: snr and ccmax with and without don't compare.
    dt_ms : float
        Bin width in milliseconds.
    confidence : float
        Coverage of the interval.
    """

    n_clips: Tensor
    n_repeats_min: Tensor
    n_repeats_max: Tensor
    n_bins: Tensor
    mean_response: Tensor
    signal_power: Tensor
    noise_power: Tensor
    snr: Tensor
    ccmax: Tensor
    ccmax_low: Tensor
    ccmax_high: Tensor
    reasons: tuple[str, ...]
    centring: str
    ccmax_centring: str
    smoothing_ms: float | None
    dt_ms: float
    confidence: float

    def __len__(self) -> int:
        return len(self.reasons)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary per neuron: ``neuron`` (index), the columns as Python numbers, ``reason``."""
        columns = {name: getattr(self, name).tolist() for name in COLUMNS}
        return [
            {
                "neuron": neuron,
                **{
                    name: int(values[neuron]) if name in COUNTS else values[neuron]
                    for name, values in columns.items()
                },
                "reason": reason,
            }
            for neuron, reason in enumerate(self.reasons)
        ]

    def to_csv(self, path: str | Path) -> Path:
        """Write the rows as CSV and return the path."""
        path = Path(path)
        names = ["neuron", *COLUMNS, "reason"]
        cells = [[row[name] for name in names] for row in self.rows()]
        write_atomically(path, csv_table([names, *cells]).encode())
        return path


@checked
def neuron_quality(
    dataset: DatasetLike,
    *,
    centring: str | None = None,
    n_splits: int = N_SPLITS,
    n_bootstrap: int = QUALITY_BOOTSTRAP,
    resample: str = "both",
    confidence: float = 0.95,
    seed: int = 0,
    device: str | torch.device | None = None,
) -> NeuronQuality:
    """Measure the reliability of every neuron, reading the recording clip by clip.

    Memory is that of one clip's responses, whatever the length of the recording, and of a few neurons where a
    clip is very long. The responses are taken as
    the dataset returns them: when it smooths single repeats, signal-to-noise and ceiling are those of
    smoothed repeats.

    Parameters
    ----------
    dataset : DatasetLike
        Anything with ``len``, ``response_block(clip)`` returning (N, R, T), ``dt`` and ``describe()``.
    centring : {"clip", "concat"}, optional
        Around each clip's own mean, or on the concatenated clips. None: each column as the function of its
        name has it by default, "clip" for powers and snr, "concat" for the ceiling, which is then the one
        of `score_model` and of reports. Around clip means the ceiling lacks what tells the clips apart: it
        is lower, by .2 and more where they differ in their mean response.
    n_splits : int
        Number of half-splits of the ceiling.
    n_bootstrap : int
        Number of resamples behind the interval of the ceiling; 0 for none.
    resample : {"both", "repeats", "clips"}
        What is drawn with replacement; see `ceiling`.
    confidence : float
        Coverage of the interval.
    seed : int
        Seed of splits and resamples (generators of their own).
    device : str or torch.device, optional
        Where to compute; by default where the responses are.

    Returns
    -------
    NeuronQuality
        One row per neuron, on the CPU.

    Raises
    ------
    ValueError
        When the dataset has no clips, no neurons, or an option is wrong.

    References
    ----------
    Sahani and Linden (2003), How linear are auditory cortical responses?, NIPS 15.
    Hsu, Borst and Theunissen (2004), 10.1088/0954-898X_15_2_002.

    Examples
    --------
    >>> import torch
    >>> class Recording:
    ...     dt, N_neurons = 5.0, 2
    ...     def __len__(self): return 3
    ...     def describe(self): return {"smoothing_ms": 21.0}
    ...     def response_block(self, clip):
    ...         return torch.rand(2, 1, 100, generator=torch.manual_seed(clip))
    >>> neuron_quality(Recording()).reasons
    ('recorded once: no repeats to compare', 'recorded once: no repeats to compare')
    """
    check_centring(centring or "clip")
    check_n_splits(n_splits)
    check_bootstrap(n_bootstrap, confidence, resample)
    n_clips = len(dataset)
    if getattr(dataset, "N_neurons", None) == 0:
        raise ValueError(
            "the dataset has no neurons to measure; check the selection: dataset.select(neurons=None) is all"
        )
    if n_clips == 0:
        raise ValueError(
            "the dataset has no clips to measure; check the selection: dataset.select(clips=None) is all"
        )
    tables = []
    for neurons in _neuron_blocks(dataset):
        sums = QualitySums(n_clips, centring, n_splits, n_bootstrap, resample, seed)
        blocks = ((clip, (_block(dataset, clip, neurons, device),)) for clip in range(n_clips))
        for clips, (responses,), lengths in stacks(blocks):
            sums.add(clips, responses, sums.summary(responses, lengths))
        tables.append(sums.table(dataset, confidence))
    if len(tables) == 1:
        return tables[0]
    columns: dict[str, Any] = {
        name: torch.cat([getattr(table, name) for table in tables]) for name in COLUMNS
    }
    return replace(tables[0], **columns, reasons=tuple(text for table in tables for text in table.reasons))


def _neuron_blocks(dataset: Any) -> list[dict[str, slice]]:
    """Neurons that are read at once: all, or a few at a time where a clip is too long for that."""
    pieces = getattr(dataset, "pieces", None)
    n_pieces = 1 if pieces is None else max(len(pieces(clip)) for clip in range(len(dataset)))
    if n_pieces == 1:
        return [{}]
    step = max(1, dataset.N_neurons // n_pieces)
    return [{"neurons": slice(first, first + step)} for first in range(0, dataset.N_neurons, step)]


def _block(dataset: Any, clip: int, neurons: dict[str, slice], device: str | torch.device | None) -> Tensor:
    """Responses (N, R, T) of some neurons to a clip."""
    responses: Tensor = dataset.response_block(clip, **neurons)
    check_clip(responses)
    return responses if device is None else responses.to(device)


class QualitySums:
    """What `neuron_quality` accumulates over clips, stacks of some clips at a time."""

    #: How the columns of clips combine, those of a stack and those of two stacks: clips, fewest and most
    #: repeats, bins, total, lowest, highest.
    OPERATIONS: tuple[tuple[Callable[..., Tensor], Callable[[Tensor, Tensor], Tensor]], ...] = (
        (torch.sum, torch.add), (torch.amin, torch.minimum), (torch.amax, torch.maximum),
        (torch.sum, torch.add), (torch.sum, torch.add),
        (torch.amin, torch.minimum), (torch.amax, torch.maximum),
    )  # fmt: skip

    def __init__(
        self,
        n_clips: int,
        centring: str | None,
        n_splits: int = N_SPLITS,
        n_bootstrap: int = QUALITY_BOOTSTRAP,
        resample: str = "both",
        seed: int = 0,
    ) -> None:
        self.centring, self.ccmax_centring = (centring or default for default in ("clip", "concat"))
        check_bootstrap(n_bootstrap, 0.95, resample)
        self.ceiling = SplitCeiling(self.ccmax_centring, n_splits, seed)
        self.bootstrap: CeilingBootstrap | None = None
        if n_bootstrap:
            average = self.ccmax_centring == "clip"
            self.bootstrap = CeilingBootstrap(
                n_clips, n_bootstrap, resample, self.ccmax_centring, seed, average
            )
        self.powers: PooledPowers | None = None
        self.columns: list[Tensor] = []

    @staticmethod
    def summary(responses: Tensor, lengths: Tensor | None = None) -> RepeatSummary:
        """Summary of (B, N, R, T) responses, from which `add` and the moments of predictions follow.

        ``lengths`` (B,): bins of each clip, of responses without a gap that are padded with zeros.
        """
        return RepeatSummary.of(responses, None, products=True, lengths=lengths)

    def add(self, clips: Sequence[int], responses: Tensor, summary: RepeatSummary) -> None:
        """Take in the responses (B, N, R, T) to some clips, and their `summary`."""
        shape = (responses.shape[0], responses.shape[1])
        by_clip = summary.powers.unflatten(*shape)
        powers = PooledPowers.of(by_clip)
        self.powers = powers if self.powers is None else self.powers.merge(powers)
        recorded = None if summary.repeats is not None else valid_samples(responses, None)
        groups = RepeatGroups.of(responses, recorded, summary.repeats)
        self.ceiling.add(groups)
        if self.bootstrap is not None:
            self.bootstrap.add(groups, by_clip, clips)
        self._add_columns(responses.flatten(0, 1), recorded, summary, shape)

    def _add_columns(
        self, responses: Tensor, recorded: Tensor | None, summary: RepeatSummary, shape: tuple[int, int]
    ) -> None:
        """Counts, totals and extremes of the rows (K, R, T)."""
        repeats = torch.full_like(summary.count, responses.shape[1])
        if recorded is not None:
            recorded = recorded.flatten(0, 1)
            repeats = recorded.any(2).sum(1).to(summary.count)
        recorded_here = summary.count > 0
        columns = [
            recorded_here.to(repeats),
            torch.where(recorded_here, repeats, torch.full_like(repeats, torch.inf)),
            repeats * recorded_here,
            summary.count,
            summary.count * summary.mean,
            *_extremes(responses, recorded, summary),
        ]
        for number, (over_clips, merge) in enumerate(self.OPERATIONS):
            found = over_clips(by_clip(columns[number], shape), 0)
            columns[number] = merge(self.columns[number], found) if self.columns else found
        self.columns = columns

    def table(self, dataset: DatasetLike, confidence: float = 0.95) -> NeuronQuality:
        """Turn the sums into columns."""
        if self.powers is None:
            raise ValueError("the dataset has no clips to measure")
        signal, noise = self.powers.powers(self.centring)
        clips, fewest, most, bins, total, lowest, highest = self.columns
        ceiling = keep_where(self.powers.bins > 0, self.ceiling.value())
        low = high = torch.full_like(ceiling, torch.nan)
        if self.bootstrap is not None:
            low, high = (
                keep_where(~torch.isnan(ceiling), bound) for bound in self.bootstrap.interval(confidence)
            )
        columns = {
            "n_clips": clips.long(),
            "n_repeats_min": torch.where(clips > 0, fewest, torch.zeros_like(fewest)).long(),
            "n_repeats_max": most.long(),
            "n_bins": bins.long(),
            "mean_response": keep_where(bins > 0, total / bins.clamp(min=1)),
            "signal_power": signal,
            "noise_power": noise,
            "snr": signal_to_noise(signal, noise),
            "ccmax": ceiling,
            "ccmax_low": low,
            "ccmax_high": high,
        }
        unknown = object()  # describe looks at every clip
        smoothing: Any = getattr(dataset, "smoothing_ms", unknown)
        if smoothing is unknown:
            smoothing = dataset.describe().get("smoothing_ms")
        return NeuronQuality(
            **{name: column.cpu() for name, column in columns.items()},
            reasons=_reasons(clips, most, lowest >= highest, signal, noise, ceiling),
            centring=self.centring,
            ccmax_centring=self.ccmax_centring,
            smoothing_ms=None if smoothing is None else float(smoothing),
            dt_ms=float(dataset.dt),
            confidence=confidence,
        )


def _extremes(responses: Tensor, recorded: Tensor | None, summary: RepeatSummary) -> list[Tensor]:
    """Lowest and highest value of rows (K, R, T); infinite bounds where the products show that they vary."""
    if summary.repeats is not None:
        means = summary.repeats.mean
        constant = summary.repeats.product.diagonal(dim1=1, dim2=2).sum(1) == 0
        constant &= means.amin(1) == means.amax(1)
        value = responses[:, 0, 0]
        return [torch.where(constant, value, -torch.inf), torch.where(constant, value, torch.inf)]
    if recorded is None:
        return [responses.amin((1, 2)), responses.amax((1, 2))]
    lowest = responses.masked_fill(~recorded, torch.inf).amin((1, 2))
    return [lowest, responses.masked_fill(~recorded, -torch.inf).amax((1, 2))]


def _reasons(
    clips: Tensor, most: Tensor, flat: Tensor, signal: Tensor, noise: Tensor, ceiling: Tensor
) -> tuple[str, ...]:
    """Why a value is missing, per neuron."""
    rules = (
        (clips == 0, "no data"),
        (flat | (signal == 0) & (noise == 0), "silent: the response never varies"),
        (most < 2, "recorded once: no repeats to compare"),
        (torch.isnan(signal), "no two repeats in the same bins"),
        (~is_reliable(signal, noise), "no positive signal power"),
        (torch.isnan(ceiling), "half-splits don't correlate positively"),
    )
    code = torch.full_like(most, len(rules))
    for number, (condition, _) in reversed(list(enumerate(rules))):
        code = torch.where(condition, float(number), code)
    texts = [text for _, text in rules] + [""]
    return tuple(texts[int(number)] for number in code.tolist())


@dataclass(frozen=True)
class Inclusion:
    """Neurons kept and left out by an inclusion rule."""

    kept: tuple[int, ...]  # ascending, for ``dataset.select(neurons=list(kept))``
    left_out: tuple[tuple[int, str], ...]  # the others, each with the reason
    rule: str  # in words, for the protocol card

    def __len__(self) -> int:
        return len(self.kept)

    def __str__(self) -> str:
        total = len(self.kept) + len(self.left_out)
        lines = [f"{len(self.kept)} of {total} neurons kept ({self.rule})"]
        return "\n".join(lines + [f"  neuron {neuron}: {reason}" for neuron, reason in self.left_out])


@checked_but("quality")
def select_neurons(
    quality: NeuronQuality,
    *,
    min_snr: float | None = None,
    min_ccmax: float | None = None,
    min_ccmax_low: float | None = None,
    min_signal_power: float | None = None,
    min_mean_response: float | None = None,
    min_repeats: int | None = None,
    min_clips: int | None = None,
    min_bins: int | None = None,
) -> Inclusion:
    """Keep the neurons that meet every threshold; a neuron whose value is NaN does not meet it.

    Parameters
    ----------
    quality : NeuronQuality
        The table of `neuron_quality`.
    min_snr : float, optional
        Smallest signal-to-noise ratio. The rule "noise ratio below 40" of the NS1 papers is ``min_snr=1 /
        40``.
    min_ccmax : float, optional
        Smallest half-split ceiling.
    min_ccmax_low : float, optional
        Smallest lower bound of the ceiling's interval: a rule that few repeats cannot pass by luck.
    min_signal_power : float, optional
        Smallest signal power, squared units of the responses.
    min_mean_response : float, optional
        Smallest mean response (spikes per bin).
    min_repeats : int, optional
        Fewest repeats in any clip with data of the neuron.
    min_clips : int, optional
        Fewest clips.
    min_bins : int, optional
        Fewest time bins.

    Returns
    -------
    Inclusion
        Kept indices, and the others with the first threshold each one missed. Without a threshold all are
        kept.

    Raises
    ------
    TypeError
        When ``quality`` is no `NeuronQuality` or a threshold is no number.

    Examples
    --------
    >>> import torch
    >>> class Recording:
    ...     dt, N_neurons = 5.0, 2
    ...     def __len__(self): return 4
    ...     def describe(self): return {}
    ...     def response_block(self, clip):
    ...         noise = torch.randn(2, 6, 200, generator=torch.manual_seed(clip))
    ...         noise[0] += 2 * torch.randn(1, 200)  # the first neuron follows the stimulus
    ...         return noise
    >>> from deepSTRF.metrics import neuron_quality
    >>> select_neurons(neuron_quality(Recording()), min_snr=0.1).kept
    (0,)
    """
    if not isinstance(quality, NeuronQuality):
        raise TypeError(f"quality is the table of neuron_quality(dataset), got {type(quality).__name__}")
    thresholds = {
        "n_clips": min_clips,
        "n_repeats_min": min_repeats,
        "n_bins": min_bins,
        "mean_response": min_mean_response,
        "signal_power": min_signal_power,
        "snr": min_snr,
        "ccmax": min_ccmax,
        "ccmax_low": min_ccmax_low,
    }
    rules: dict[str, float] = {}
    for column, threshold in thresholds.items():
        if threshold is None:
            continue
        try:
            rules[column] = float(threshold)
        except (TypeError, ValueError) as error:
            raise TypeError(f"the threshold for {column} is a number or None, got {threshold!r}") from error
    kept: list[int] = []
    left_out: list[tuple[int, str]] = []
    for row in quality.rows():
        missed = next((column for column in rules if not row[column] >= rules[column]), None)
        if missed is None:
            kept.append(row["neuron"])
            continue
        value = row[missed]
        because = f" ({row['reason']})" if row["reason"] else ""
        left_out.append((row["neuron"], f"{missed} {value:.4g} < {rules[missed]:.4g}{because}"))
    rule = " and ".join(f"{column} >= {limit:.4g}" for column, limit in rules.items())
    return Inclusion(tuple(kept), tuple(left_out), rule or "no threshold")
