"""Nonlinear responses of a fitted model: dynamic STRFs along test clips, and responses to probe sounds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from deepSTRF._files import write_atomically
from deepSTRF.dsp.filters import LongTermSpectrum
from deepSTRF.interpret import NeuronTable
from deepSTRF.interpret.dstrf import ArraySink, CallbackSink, DynamicSTRF, dstrf
from deepSTRF.interpret.filter_statistics import nonlinearities
from deepSTRF.interpret.probes import PROBES, Presentation, probe_battery
from deepSTRF.models.configurable import placement
from deepSTRF.models.prediction import evaluating
from deepSTRF.plots import save_dstrf_movie
from deepSTRF.report.explain.target import Excerpt, Skipped, Target, part_length, strongest_part
from deepSTRF.report.explanation import MOVIE
from deepSTRF.report.parts import shown_lags

#: Longer filters are cut, in ms; the share of the gradient at longer lags is reported.
LONGEST_FILTER_MS = 300.0
#: Durations of the excerpt whose filters are written and drawn, and of the one in the movie.
SHOWN_S, MOVIE_S = 2.0, 1.0
MOVIE_FRAMES = 100
#: Quantile of the colour limits: with logarithmic spectrograms filters are largest in silence.
MOVIE_QUANTILE = 0.75
#: Neurons side by side in the movie.
MOST_IN_MOVIE = 4
#: Fewest filters of another clip for its statistics.
LEAST_FILTERS = 20
#: Filters that vary by less than this share of their largest weight are constant.
CONSTANT, TINY = 1e-5, 1e-30


def explain_dynamics(target: Target) -> dict[str, Any]:
    """Write dynamic STRFs of the neurons chosen: ``dstrf.npz``, ``nonlinearity.csv`` and a movie."""
    excerpt = target.needs_excerpt()
    if getattr(target.model, "lookahead_frames", 0):
        raise Skipped(
            "the model looks ahead; dstrf(model, stimulus) returns its filters, later frames included"
        )
    if target.takes_waveform and target.frequencies_hz is None:
        raise Skipped(
            "the channels of this front-end are learned, not frequency bands; see the receptive field in the "
            "waveform"
        )
    clips = (excerpt, *(one for one in target.others if _n_filters(target, one) >= LEAST_FILTERS))
    # the statistics of a neuron on one clip are one more piece
    pieces = sum(_n_filters(target, one) + len(target.neurons) for one in clips)
    count = target.begin("dynamic STRFs", pieces)
    result = _filters(target, excerpt, count)
    weights: NDArray[np.float32] = result.weights.float().numpy()
    spread, largest = np.abs(weights - weights[:1]).max(), float(np.abs(weights).max())
    constant = bool(spread <= CONSTANT * max(largest, TINY))  # the same filters in all bins, up to rounding
    measured = _statistics(target, clips[:1] if constant else clips, result, count)
    if measured:
        table = _nonlinearity_table(target, list(measured.values()))
        write_atomically(target.folder / "nonlinearity.csv", table.to_csv().encode())
    with evaluating(target.model):
        device, dtype = placement(target.model)
        stim = torch.as_tensor(excerpt.stim)[None].to(device, dtype)
        seen = target.model.spectrogram(stim)[0, 0].cpu().float().numpy()
    times = result.times.cpu().numpy()
    part = strongest_part(excerpt.psth[times].mean(axis=1), part_length(SHOWN_S, target.dt_ms))
    shown = times[part]
    arrays = {
        "stim": target.bands.sorted(seen[:, shown], axis=0),
        "weights": target.bands.sorted(weights[part], axis=3),
        "pred": result.response[part].cpu().float().numpy(),
        "response": excerpt.psth[shown].astype(np.float32),
        "start_s": shown[0] * target.dt_ms / 1000,
    }
    if target.unit == "sd":  # what pictures multiply the filters by
        arrays["band_std"] = target.bands.sorted(target.model.band_std.cpu().float().numpy(), axis=0)
    target.write("dstrf", arrays)
    if not constant:
        _write_movie(target, arrays)
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


def _window(target: Target, excerpt: Excerpt) -> tuple[int, int]:
    """Lags of the filters, and the first bin whose window is full."""
    n_bins = len(excerpt.psth)
    longest = max(1, round(LONGEST_FILTER_MS / target.dt_ms))
    own = getattr(target.model, "receptive_field", None)
    lags = min(longest if own is None else int(own), n_bins)
    return lags, min(max(excerpt.start, lags - 1), n_bins - 1)


def _n_filters(target: Target, excerpt: Excerpt) -> int:
    """Number of filters along an excerpt."""
    return max(1, excerpt.stop - _window(target, excerpt)[1])


def _filters(target: Target, excerpt: Excerpt, count: Callable[[int], None]) -> DynamicSTRF:
    """Filters (T, K, L, F) along the excerpt, from where their windows are full."""
    model, (lags, first) = target.model, _window(target, excerpt)
    order = np.argsort(target.neurons)  # dstrf returns neurons in ascending order
    device, dtype = placement(model)
    stim = torch.as_tensor(excerpt.stim).to(device, dtype)
    made = dstrf(
        model,
        stim,
        lags=lags,
        neurons=[target.neurons[k] for k in order],
        times=slice(first, excerpt.stop),
        sink=[ArraySink(), CallbackSink(lambda rows, block: count(len(rows)))],
    )
    restored = torch.as_tensor(np.argsort(order).copy())
    fields = {name: getattr(made, name) for name in made.__dataclass_fields__}
    fields["weights"] = made.weights[0].cpu()[:, restored]
    for name in ("response", "intercept", "memory"):
        fields[name] = fields[name].cpu()[:, restored]
    return DynamicSTRF(**fields)


def _statistics(
    target: Target, clips: Sequence[Excerpt], first: DynamicSTRF, count: Callable[[int], None]
) -> dict[str, dict[str, NDArray[np.float64]]]:
    """Statistics of the clips that are long enough, by name; ``first`` holds the filters of the first."""
    measured = {}
    for index, clip in enumerate(clips):
        try:
            result = first if index == 0 else _filters(target, clip, count)
            name = clip.name if clip.name not in measured else f"{clip.name} ({clip.clip})"
            measured[name] = _measures(target, result, count)
        except ValueError:
            # too few bins for the delays of the temporal hold: filters are shown without statistics
            continue
    return measured


def _measures(
    target: Target, result: DynamicSTRF, count: Callable[[int], None]
) -> dict[str, NDArray[np.float64]]:
    """Statistics (K,) of one clip, by the name of their column."""
    rows = []
    for k in range(len(target.neurons)):
        measures = nonlinearities(result.weights[:, k : k + 1].float(), corrected=True)
        rows.append({name: float(value) for name, value in measures.items()})
        count(1)
    columns = {}
    for name in rows[0]:
        in_bins = name.startswith("temporal hold")
        values = np.asarray([row[name] for row in rows]) * (target.dt_ms if in_bins else 1.0)
        key = name.replace("temporal hold", "temporal hold ms")
        columns[key.replace(" ", "_").replace("(", "").replace(")", "")] = values
    columns["intercept_share"] = result.intercept_share().numpy()
    return columns


def _nonlinearity_table(target: Target, rows: Sequence[dict[str, NDArray[np.float64]]]) -> NeuronTable:
    """Means over clips and standard deviations between them; clips with an undefined value do not count."""
    columns: dict[str, Any] = {
        "index": np.asarray(target.neurons),
        "clips": np.full(len(target.neurons), len(rows)),
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
    return NeuronTable(tuple(target.names), {**columns, **spreads})


def _write_movie(target: Target, arrays: dict[str, Any]) -> None:
    """Write the movie of the part in which predictions are largest."""
    n_bins = len(arrays["weights"])
    rise = arrays["pred"] - arrays["pred"].min(axis=0)
    rise = (rise / np.maximum(rise.max(axis=0), TINY)).mean(axis=1)
    part = strongest_part(rise, part_length(MOVIE_S, target.dt_ms))
    length = len(range(n_bins)[part])
    every = max(1, round(length / MOVIE_FRAMES))
    count = target.begin("movie", len(range(0, length, every)))
    shown = slice(0, MOST_IN_MOVIE)
    filters = arrays["weights"][part, shown] * arrays.get("band_std", np.float32(1.0))
    lags = shown_lags(filters.reshape(-1, *filters.shape[2:]).transpose(0, 2, 1))
    save_dstrf_movie(
        target.folder / MOVIE,
        arrays["stim"][:, part],
        filters[:, :, -lags:],
        arrays["pred"][part, shown],
        arrays["response"][part, shown],
        target.dt_ms,
        every=every,
        titles=target.labels[shown],
        frequencies_hz=target.frequencies_hz,
        start_s=arrays["start_s"] + (part.start or 0) * target.dt_ms / 1000,
        quantile=MOVIE_QUANTILE,
        on_frame=lambda: count(1),
    )


def _sound_range(target: Target) -> tuple[float, float] | None:
    """Frequencies at which training sounds have power and bands lie: no fit has heard others. None is all."""
    hertz = target.frequencies_hz
    if hertz is None or not target.views or len(hertz) < 2:
        return None
    spectrum = LongTermSpectrum(target.model.wav2spec.audio_fs)
    for stim in target.views[0].stims:
        spectrum.add(torch.as_tensor(stim))
    occupied = spectrum.occupied()
    if occupied is None:
        return None
    low, high = max(occupied[0], float(hertz[0])), min(occupied[1], float(hertz[-1]))
    return (low, high) if low < high else None


def explain_probes(target: Target) -> dict[str, Any]:
    """Write the responses of the neurons chosen to probe sounds (``probes.npz``, ``probes.csv``)."""
    if target.takes_waveform:
        presentation = Presentation(target.model, neurons=target.neurons, range_hz=_sound_range(target))
    elif target.dataset is None:
        raise Skipped(target.missing)
    else:
        try:
            presentation = Presentation.for_dataset(target.model, target.dataset, neurons=target.neurons)
        except ValueError as error:
            raise Skipped(f"sounds cannot be played to this model: {error}") from error
    count = target.begin("probes", len(PROBES))
    begun: list[str] = []

    def progress(name: str) -> None:
        count(int(bool(begun)))
        begun.append(name)

    battery = probe_battery(presentation, PROBES, progress=progress)
    arrays: dict[str, Any] = {}
    for probe, result in battery.results.items():
        for name in result.__dataclass_fields__:
            value = np.asarray(getattr(result, name))
            if name != "neurons" and value.dtype.kind in "fi":
                arrays[f"{probe}_{name}"] = value
    target.write("probes", arrays)
    table = NeuronTable(tuple(target.names), {"index": np.asarray(target.neurons), **battery.table.columns})
    write_atomically(target.folder / "probes.csv", table.to_csv().encode())
    # level of the test clips in the unit of the probes, where they are sounds
    if target.dataset is None or not getattr(target.dataset, "return_waveform", False):
        return {}
    sounds = (np.asarray(stim, dtype=np.float64) for stim in target.dataset.stims)
    sizes = [float(np.sqrt(np.mean(sound**2))) for sound in sounds]
    levels = [20.0 * np.log10(size) for size in sizes if size > 0]
    return {"clip_level_db": float(np.median(levels))} if levels else {}
