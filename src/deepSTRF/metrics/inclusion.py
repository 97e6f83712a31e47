"""Choosing neurons by their reliability, with a record of who was left out and why."""

from __future__ import annotations

from dataclasses import dataclass

from .quality import NeuronQuality

__all__ = ["Inclusion", "select_neurons"]


@dataclass(frozen=True)
class Inclusion:
    """The outcome of an inclusion rule.

    Parameters
    ----------
    kept : tuple of int
        Indices of the neurons that pass, ascending; hand them to ``dataset.select(neurons=list(kept))``.
    left_out : tuple of (int, str)
        The others, each with the reason.
    rule : str
        The rule in words, for the protocol card.

    Examples
    --------
    >>> print(Inclusion((0, 2), ((1, "snr 0.01 < 0.03"),), "snr >= 0.03"))
    2 of 3 neurons kept (snr >= 0.03)
      neuron 1: snr 0.01 < 0.03
    """

    kept: tuple[int, ...]
    left_out: tuple[tuple[int, str], ...]
    rule: str

    def __len__(self) -> int:
        return len(self.kept)

    def __str__(self) -> str:
        total = len(self.kept) + len(self.left_out)
        lines = [f"{len(self.kept)} of {total} neurons kept ({self.rule})"]
        return "\n".join(lines + [f"  neuron {neuron}: {reason}" for neuron, reason in self.left_out])


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
        Fewest repeats in any clip that the neuron heard.
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
