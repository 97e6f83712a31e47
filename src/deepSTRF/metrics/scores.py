"""The registered scores of a model: the columns of every score table, computed from shared statistics."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from deepSTRF.metrics._statistics import keep_where
from deepSTRF.metrics.score_statistics import ScoreStatistics
from deepSTRF.registry import METRICS

__all__ = ["Metric"]

INFINITY = float("inf")


class Metric:
    """A score of a model, one value per neuron, computed from the shared statistics.

    A new metric is a subclass in a file of its own, registered by ``@METRICS.register(name)``. It then is the
    column ``name`` of every score table, of the command line, the report and the documentation. The first
    line of its docstring is its description.

    Attributes
    ----------
    label : str
        Name in tables.
    meaning : str
        One sentence, the first line of the docstring.
    limits : tuple of float
        Smallest and largest value possible.
    higher_is_better : bool
        Direction; False for errors.
    decimals : int
        Digits after the decimal point.
    order : int
        Position in tables, ascending.
    per_epoch : bool
        Whether a fit computes it after every epoch (``val_<name>`` in the history).
    in_summary : bool
        Whether the command line prints it; the report and scores.csv hold all.
    in_neuron_table : bool
        Whether the report's table of neurons has a column for it.

    Examples
    --------
    >>> from deepSTRF.registry import METRICS
    >>> METRICS.get("cc").label, METRICS.get("mse").higher_is_better
    ('correlation', False)
    """

    label: ClassVar[str] = ""
    meaning: ClassVar[str] = ""
    limits: ClassVar[tuple[float, float]] = (-INFINITY, INFINITY)
    higher_is_better: ClassVar[bool] = True
    decimals: ClassVar[int] = 3
    order: ClassVar[int] = 100
    per_epoch: ClassVar[bool] = False
    in_summary: ClassVar[bool] = True
    in_neuron_table: ClassVar[bool] = True

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.meaning = (cls.__doc__ or "").partition("\n")[0].removesuffix(".")

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return one value per neuron, (N,), NaN where undefined."""
        raise NotImplementedError("a metric defines compute(statistics) -> Tensor of shape (N,)")


def metric_named(name: str) -> type[Metric]:
    """Return the registered metric of a column; a column of unknown origin is labelled by its own name."""
    if name in METRICS:
        known: type[Metric] = METRICS.get(name)
        return known
    return type("UnknownMetric", (Metric,), {"label": name})


def metric_order(name: str) -> tuple[int, str]:
    """Return the sorting key of a column: registered metrics in their order, then the others by name."""
    return metric_named(name).order, name


def score_columns(statistics: ScoreStatistics) -> dict[str, Tensor]:
    """Compute every registered metric, each (N,), in the order of tables."""
    return {name: metric_named(name).compute(statistics) for name in sorted(METRICS, key=metric_order)}


@METRICS.register("cc_norm")
class NoiseCorrectedCorrelation(Metric):
    """Correlation corrected for the noise left in the PSTH; 1 is the best that any model can reach."""

    label, order, per_epoch = "noise-corrected correlation", 10, True

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return `normalized_corrcoef` in the centring of the statistics, (N,)."""
        return statistics.cc_norm(statistics.centring)


@METRICS.register("cc_norm_published")
class PublishedCorrelation(Metric):
    """Noise-corrected correlation centred as in earlier papers, to compare with their numbers."""

    label, order, in_neuron_table = "noise-corrected, as published", 11, False

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return `normalized_corrcoef` with ``centring="published"``, (N,)."""
        return statistics.cc_norm("published")


@METRICS.register("cc")
class Correlation(Metric):
    """Pearson correlation of the prediction and the PSTH, over all test bins."""

    label, order, per_epoch, limits = "correlation", 20, True, (-1.0, 1.0)

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return `corrcoef`, (N,)."""
        return statistics.correlation()


@METRICS.register("fve")
class ExplainedVariance(Metric):
    """Share of the PSTH's variance explained; negative when worse than its mean."""

    label, order, limits = "variance explained", 30, (-INFINITY, 1.0)

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return `fve`, (N,)."""
        return statistics.pooled.explained_variance(statistics.error)


@METRICS.register("mse")
class MeanSquaredError(Metric):
    """Mean squared error in squared response units per bin."""

    label, order, decimals, limits = "mean squared error", 40, 4, (0.0, INFINITY)
    higher_is_better = in_summary = in_neuron_table = False

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return `mse_loss`, (N,)."""
        count = statistics.pooled.count
        return keep_where(count > 0, statistics.error / count.clamp(min=1))


@METRICS.register("ccmax")
class CeilingColumn(Metric):
    """The highest correlation a perfect model could reach on these repeats."""

    label, order, limits = "noise ceiling", 50, (0.0, 1.0)

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return the half-split ceiling, (N,)."""
        return statistics.reliability["ccmax"]


@METRICS.register("ccmax_low")
class CeilingLowColumn(Metric):
    """Lower end of the 95 % bootstrap interval of the ceiling."""

    label, order, limits, in_summary = "ceiling, lower", 51, (0.0, 1.0), False

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return the lower bound, (N,)."""
        return statistics.reliability["ccmax_low"]


@METRICS.register("ccmax_high")
class CeilingHighColumn(Metric):
    """Upper end of the 95 % bootstrap interval of the ceiling."""

    label, order, limits, in_summary = "ceiling, upper", 52, (0.0, 1.0), False

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return the upper bound, (N,)."""
        return statistics.reliability["ccmax_high"]


@METRICS.register("snr")
class SignalToNoiseColumn(Metric):
    """Signal power over noise power of a single repeat."""

    label, order, in_summary = "signal-to-noise ratio", 60, False

    @staticmethod
    def compute(statistics: ScoreStatistics) -> Tensor:
        """Return `snr`, (N,)."""
        return statistics.reliability["snr"]
