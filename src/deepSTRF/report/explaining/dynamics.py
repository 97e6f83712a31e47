"""Dynamic STRFs of chosen neurons: filters along a clip, how they change, and a movie of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepSTRF.interpret import dstrf
from deepSTRF.interpret.dynamic import ArraySink, CallbackSink, DynamicSTRF, nonlinearities
from deepSTRF.interpret.tuning_table import NeuronTable
from deepSTRF.models.causal import placement
from deepSTRF.models.prediction import evaluating
from deepSTRF.plots import save_dstrf_movie
from deepSTRF.report.explaining.excerpts import Excerpt, strongest_stretch
from deepSTRF.report.explaining.subject import Skipped, Subject
from deepSTRF.report.explanation import MOVIE
from deepSTRF.report.windows import shown_lags
from deepSTRF.training.files import write_atomically

__all__ = ["explain_dynamics"]

#: Filters longer than this are cut, in ms: what a recurrent model owes to older sound is told in a number.
LONGEST_FILTER_MS = 300.0
#: The stretch whose filters are kept and drawn, and the one that the movie shows.
SHOWN_S, MOVIE_S = 2.0, 1.0
MOVIE_FRAMES = 100
#: Logarithmic spectrograms make filters steepest in silence, where little happens: colours are for the rest.
MOVIE_QUANTILE = 0.75
#: Neurons side by side in the movie.
MOST_IN_MOVIE = 4
#: Another clip must hold so many filters to say something about their variety.
LEAST_FILTERS = 20
#: Filters that vary by less than this share of their largest weight are one filter.
CONSTANT, TINY = 1e-5, 1e-30


def explain_dynamics(subject: Subject) -> dict[str, Any]:
    """Write dynamic STRFs of the neurons chosen: filters, statistics, and a movie.

    Parameters
    ----------
    subject : Subject
        What is explained.

    Returns
    -------
    dict
        How they were made, and the shares that lie outside them.

    Raises
    ------
    Skipped
        Without a recording, or for a front-end whose channels are no bands.
    ValueError, RuntimeError
        From the model or its gradients.

    Examples
    --------
    >>> explain_dynamics(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explaining.subject.Skipped: it needs the recording
    """
    excerpt = subject.needs_excerpt()
    if subject.hears_samples() and subject.frequencies_hz is None:
        raise Skipped(
            "the frames of this front-end are a learned latent, not bands of frequency; what it hears is in "
            "the samples, see its receptive field as a sound"
        )
    clips = (excerpt, *(one for one in subject.others if _n_filters(subject, one) >= LEAST_FILTERS))
    # the statistics of a neuron on one clip are one more piece
    pieces = sum(_n_filters(subject, one) + len(subject.neurons) for one in clips)
    count = subject.begin("dynamic STRFs", pieces)
    result = _filters(subject, excerpt, count)
    weights: NDArray[np.float32] = result.weights.float().numpy()
    constant = _is_constant(weights)
    measured = _statistics(subject, clips[:1] if constant else clips, result, count)
    if measured:
        table = _nonlinearity_table(subject, list(measured.values()))
        write_atomically(subject.folder / "nonlinearity.csv", table.to_csv().encode())
    with evaluating(subject.model):
        device, dtype = placement(subject.model)
        stim = torch.as_tensor(excerpt.stim)[None].to(device, dtype)
        seen = subject.model.spectrogram(stim)[0, 0].cpu().float().numpy()
    times = result.times.cpu().numpy()
    part = strongest_stretch(excerpt.psth[times].mean(axis=1), round(1000 * SHOWN_S / subject.dt_ms))
    shown = times[part]
    arrays = {
        "stim": subject.bands.sorted(seen[:, shown], axis=0),
        "weights": subject.bands.sorted(weights[part], axis=3),
        "pred": result.response[part].cpu().float().numpy(),
        "response": excerpt.psth[shown].astype(np.float32),
        "start_s": shown[0] * subject.dt_ms / 1000,
    }
    subject.write("dstrf", arrays)
    if not constant:
        _write_movie(subject, arrays)
    return {
        "clip": excerpt.name,
        "statistics_clips": list(measured),
        "bins": len(times),
        "lags": result.lags,
        "receptive_field": result.receptive_field,
        "method": result.method,
        "outside": result.outside,
        "constant": constant,
    }


def _window(subject: Subject, excerpt: Excerpt) -> tuple[int, int]:
    """Lags of the filters, and the first bin whose window is full."""
    n_bins = len(excerpt.psth)
    longest = max(1, round(LONGEST_FILTER_MS / subject.dt_ms))
    reach = getattr(subject.model, "receptive_field", None)
    lags = min(longest if reach is None else int(reach), n_bins)
    return lags, min(max(excerpt.start, lags - 1), n_bins - 1)


def _n_filters(subject: Subject, excerpt: Excerpt) -> int:
    return max(1, excerpt.stop - _window(subject, excerpt)[1])


def _filters(subject: Subject, excerpt: Excerpt, count: Callable[[int], None]) -> DynamicSTRF:
    """Filters (T, K, L, F) along the excerpt, from where their windows are full."""
    model, (lags, first) = subject.model, _window(subject, excerpt)
    order = np.argsort(subject.neurons)  # dstrf answers in ascending order of what it was asked for
    device, dtype = placement(model)
    stim = torch.as_tensor(excerpt.stim).to(device, dtype)
    made = dstrf(
        model,
        stim,
        lags=lags,
        neurons=[subject.neurons[k] for k in order],
        times=slice(first, excerpt.stop),
        sink=[ArraySink(), CallbackSink(lambda rows, block: count(len(rows)))],
    )
    back = torch.as_tensor(np.argsort(order).copy())
    fields = {name: getattr(made, name) for name in made.__dataclass_fields__}
    fields["weights"] = made.weights[0].cpu()[:, back]
    for name in ("response", "intercept", "memory"):
        fields[name] = fields[name].cpu()[:, back]
    return DynamicSTRF(**fields)


def _statistics(
    subject: Subject, clips: Sequence[Excerpt], first: DynamicSTRF, count: Callable[[int], None]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Statistics by clip, of those that are long enough; of all but the first only the numbers are kept."""
    measured = {}
    for index, clip in enumerate(clips):
        try:
            result = first if index == 0 else _filters(subject, clip, count)
            name = clip.name if clip.name not in measured else f"{clip.name} ({clip.clip})"
            measured[name] = _measures(subject, result, count)
        except ValueError:
            # too few bins for the delays of the hold: the filters are shown all the same
            continue
    return measured


def _measures(
    subject: Subject, result: DynamicSTRF, count: Callable[[int], None]
) -> dict[str, NDArray[np.float64]]:
    """Statistics (K,) of one clip, by the name of their column."""
    rows = []
    for k in range(len(subject.neurons)):
        measures = nonlinearities(result.weights[:, k : k + 1].float(), corrected=True)
        rows.append({name: float(value) for name, value in measures.items()})
        count(1)
    columns = {}
    for name in rows[0]:
        held = name.startswith("temporal hold")
        values = np.asarray([row[name] for row in rows]) * (subject.dt_ms if held else 1.0)
        key = name.replace("temporal hold", "temporal hold ms") if held else name
        columns[key.replace(" ", "_").replace("(", "").replace(")", "")] = values
    columns["intercept_share"] = result.intercept_share().numpy()
    return columns


def _nonlinearity_table(subject: Subject, rows: Sequence[dict[str, NDArray[np.float64]]]) -> NeuronTable:
    """Means over clips and the spread between them; a clip in which a figure is undefined does not count."""
    columns: dict[str, Any] = {
        "index": np.asarray(subject.neurons),
        "clips": np.full(len(subject.neurons), len(rows)),
    }
    spreads = {}
    for name in rows[0]:
        values = np.stack([row[name] for row in rows])
        known = np.isfinite(values)
        n = known.sum(axis=0)
        mean = np.where(known, values, 0.0).sum(axis=0) / np.maximum(n, 1)
        squares = np.where(known, (values - mean) ** 2, 0.0).sum(axis=0)
        columns[name] = np.where(n > 0, mean, np.nan)
        spreads[f"{name}_sd"] = np.where(n > 1, np.sqrt(squares / np.maximum(n - 1, 1)), np.nan)
    return NeuronTable(tuple(subject.names), {**columns, **spreads})


def _is_constant(weights: NDArray[np.float32]) -> bool:
    spread = np.abs(weights - weights[:1]).max()
    return bool(spread <= CONSTANT * max(float(np.abs(weights).max()), TINY))


def _write_movie(subject: Subject, arrays: dict[str, Any]) -> None:
    n_bins = len(arrays["weights"])
    rise = arrays["pred"] - arrays["pred"].min(axis=0)
    rise = (rise / np.maximum(rise.max(axis=0), TINY)).mean(axis=1)
    part = strongest_stretch(rise, round(1000 * MOVIE_S / subject.dt_ms))
    length = len(range(n_bins)[part])
    every = max(1, round(length / MOVIE_FRAMES))
    count = subject.begin("movie", len(range(0, length, every)))
    most = slice(0, MOST_IN_MOVIE)
    filters = arrays["weights"][part, most]
    lags = shown_lags(filters.reshape(-1, *filters.shape[2:]).transpose(0, 2, 1))
    save_dstrf_movie(
        subject.folder / MOVIE,
        arrays["stim"][:, part],
        filters[:, :, -lags:],
        arrays["pred"][part, most],
        arrays["response"][part, most],
        subject.dt_ms,
        every=every,
        titles=subject.labels[most],
        frequencies_hz=subject.frequencies_hz,
        start_s=arrays["start_s"] + (part.start or 0) * subject.dt_ms / 1000,
        quantile=MOVIE_QUANTILE,
        on_frame=lambda: count(1),
    )
