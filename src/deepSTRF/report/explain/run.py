"""Explain a fitted model: what its neurons listen to, into the folder of its run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from deepSTRF import __version__
from deepSTRF._files import write_atomically
from deepSTRF.experiments.build import is_closed_form, load_dataset, solve
from deepSTRF.experiments.examples import receptive_fields
from deepSTRF.experiments.run import split_of
from deepSTRF.experiments.run_folder import EXPLAIN, MAIN_SCORE, Run
from deepSTRF.interpret import (
    NeuronTable,
    modulation_transfer,
    sonify_strf,
    strf_confidence,
    strf_tuning,
    waveform_fields,
    write_field_wav,
    write_wav,
)
from deepSTRF.interpret.dstrf import ArraySink, CallbackSink, DynamicSTRF, dstrf
from deepSTRF.interpret.filter_statistics import nonlinearities
from deepSTRF.interpret.probes import PROBES, Presentation, probe_battery
from deepSTRF.interpret.strf.confidence import StrfConfidence
from deepSTRF.models.prediction import evaluating
from deepSTRF.models.streaming import placement
from deepSTRF.plots import save_dstrf_movie
from deepSTRF.report.explain.target import Excerpt, Skipped, Subject, choose_excerpts, strongest_stretch
from deepSTRF.report.explanation import MOVIE, Explanation
from deepSTRF.report.parts import Bands, shown_lags
from deepSTRF.report.rendering import Begin, open_bars

__all__ = [
    "choose_neurons",
    "explain_confidence",
    "explain_dynamics",
    "explain_fields",
    "explain_probes",
    "explain_run",
    "explain_sounds",
    "explain_tuning",
]

# ------------------------------------------------------------------------------
# Receptive fields: the maps, their tuning, and how they sound.


#: Audio rate of sonified STRFs, above twice any hearing range in use.
SONIFIED_FS = 48000.0


def explain_fields(subject: Subject) -> dict[str, Any]:
    """Keep the receptive fields of all neurons (``fields.npz``).

    Examples
    --------
    >>> explain_fields(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explain.target.Skipped: the model has no STRF weights and no finite gradient
    """
    fields = subject.needs_fields()
    arrays: dict[str, Any] = {"fields": fields.maps.astype(np.float32), "dt_ms": subject.dt_ms}
    if subject.frequencies_hz is not None:
        arrays["frequencies_hz"] = subject.frequencies_hz
    subject.write("fields", arrays)
    return {"field_kind": fields.kind}


def explain_tuning(subject: Subject) -> dict[str, Any]:
    """Write the tuning of all neurons (``tuning.csv``) and the modulation transfer of those chosen.

    Examples
    --------
    >>> explain_tuning(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explain.target.Skipped: the model has no STRF weights and no finite gradient
    """
    maps, hertz = subject.needs_fields().maps, subject.needs_frequencies()
    count = subject.begin("tuning", len(maps))
    rows = []
    for neuron, field in enumerate(maps):
        rows.append(strf_tuning(field, hertz, subject.dt_ms, neurons=[subject.all_names[neuron]]).rows()[0])
        count(1)
    columns = {name: np.asarray([row[name] for row in rows]) for name in rows[0] if name != "neuron"}
    table = NeuronTable(tuple(subject.all_names), {"index": np.arange(len(maps)), **columns})
    write_atomically(subject.folder / "tuning.csv", table.to_csv().encode())
    transfer = modulation_transfer(maps[subject.neurons], hertz, subject.dt_ms)
    subject.write(
        "modulation",
        {
            "power": transfer.power.astype(np.float32),
            "rates_hz": transfer.rates_hz,
            "scales_cyc_oct": transfer.scales_cyc_oct,
        },
    )
    return {}


def explain_sounds(subject: Subject) -> dict[str, Any]:
    """Write receptive fields as sounds: the waveform gradient, or the excitatory part of the STRF as noise.

    Examples
    --------
    >>> explain_sounds(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explain.target.Skipped: the model has no STRF weights and no finite gradient
    """
    count = subject.begin("sounds", len(subject.neurons))
    sounds: list[tuple[str, str]] = []
    if subject.hears_samples():
        stim = torch.as_tensor(subject.needs_excerpt().stim)
        for neuron, name in zip(subject.neurons, subject.labels, strict=True):
            (field,) = waveform_fields(subject.model, stim, [neuron])
            if not field.duration_ms > 0:  # a response without a slope: nothing to hear
                count(1)
                continue
            file = f"field-{neuron}.wav"
            write_field_wav(subject.folder / file, field)
            sounds.append((file, f"{name}: gradient by the samples, {field.duration_ms:.0f} ms"))
            count(1)
        return {"sounds": sounds, "sound_kind": "field"}
    maps, hertz = subject.needs_fields().maps, subject.needs_frequencies()
    fs = SONIFIED_FS if 2.0 * hertz[-1] < SONIFIED_FS else float(2 * round(1.2 * hertz[-1]))
    for neuron, name in zip(subject.neurons, subject.labels, strict=True):
        if not (maps[neuron] > 0).any():
            count(1)
            continue
        file = f"strf-{neuron}.wav"
        write_wav(subject.folder / file, sonify_strf(maps[neuron], hertz, subject.dt_ms, fs), fs)
        sounds.append((file, f"{name}: what excites it, as noise"))
        count(1)
    return {"sounds": sounds, "sound_kind": "strf"}


# ------------------------------------------------------------------------------
# Probe sounds, played to a fitted model.


def explain_probes(subject: Subject) -> dict[str, Any]:
    """Play the sounds of a hearing laboratory to the neurons chosen (``probes.npz``, ``probes.csv``).

    Examples
    --------
    >>> explain_probes(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explain.target.Skipped: it needs the recording
    """
    if subject.hears_samples():
        presentation = Presentation(subject.model, neurons=subject.neurons)
    elif subject.dataset is None:
        raise Skipped(subject.missing)
    else:
        try:
            presentation = Presentation.for_dataset(subject.model, subject.dataset, neurons=subject.neurons)
        except ValueError as error:
            raise Skipped(f"sounds cannot be played to this model: {error}") from error
    count = subject.begin("probes", len(PROBES))
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
    subject.write("probes", arrays)
    table = NeuronTable(tuple(subject.names), {"index": np.asarray(subject.neurons), **battery.table.columns})
    write_atomically(subject.folder / "probes.csv", table.to_csv().encode())
    return _clip_level(subject)


def _clip_level(subject: Subject) -> dict[str, Any]:
    """Level of the test clips in the unit of the probes, where they are sounds."""
    if subject.dataset is None or not getattr(subject.dataset, "return_waveform", False):
        return {}
    sounds = (np.asarray(stim, dtype=np.float64) for stim in subject.dataset.stims)
    sizes = [float(np.sqrt(np.mean(sound**2))) for sound in sounds]
    levels = [20.0 * np.log10(size) for size in sizes if size > 0]
    return {"clip_level_db": float(np.median(levels))} if levels else {}


# ------------------------------------------------------------------------------
# Confidence bands of STRFs that are fitted in closed form, where refits are cheap.


def explain_confidence(subject: Subject) -> dict[str, Any]:
    """Refit with one training clip left out at a time, and keep the bands of the neurons chosen.

    Each neuron keeps the penalty that validation clips chose for it: one chosen anew in each refit would
    count as uncertainty of the neuron. A model that is not fitted in closed form has no bands.

    Examples
    --------
    >>> explain_confidence(Subject(model=None))
    {}
    """
    config = subject.config
    if config is None or not is_closed_form(config.model):
        return {}
    subject.needs_excerpt()
    train, validation, _ = subject.views
    n_fits = len(train) + 1
    count = subject.begin("confidence", len(subject.neurons) * (n_fits + 1))
    bands: list[StrfConfidence | None] = []
    reasons = []
    for neuron in subject.neurons:
        alone, check = train.select(neurons=[neuron]), validation.select(neurons=[neuron])
        try:
            chosen: Any = solve(config, alone, check)
        except ValueError as error:  # it heard too few clips: the others have their bands
            reasons.append(f"{subject.all_names[neuron]}: {error}")
            bands.append(None)
            count(n_fits + 1)
            continue
        count(1)
        options = {**config.model_options, "lambdas": float(chosen.lambdas[0])}
        fixed = replace(config, model_options=options)

        def refit(clips: Any, fixed: Any = fixed) -> Any:
            count(1)
            return solve(fixed, clips, None)

        if len(alone) < 2:
            reasons.append(f"{subject.all_names[neuron]}: it heard one training clip")
            bands.append(None)
            count(n_fits)
            continue
        bands.append(strf_confidence(alone, refit))
    if not any(bands):
        raise Skipped("; ".join(reasons))
    known = {"estimate": subject.needs_fields().maps[list(subject.neurons)].astype(np.float32)}
    known |= {name: np.full_like(known["estimate"], np.nan) for name in ("low", "high")}
    for row, band in enumerate(bands):
        if band is not None:
            for name, values in known.items():
                values[row] = getattr(band, name)[0]
    subject.write("confidence", known)
    return {"refits": n_fits, "without_band": reasons}


# ------------------------------------------------------------------------------
# Dynamic STRFs of chosen neurons: filters along a clip, how they change, and a movie of them.


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

    Examples
    --------
    >>> explain_dynamics(Subject(model=None))
    Traceback (most recent call last):
        ...
    deepSTRF.report.explain.target.Skipped: it needs the recording
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


# ------------------------------------------------------------------------------

#: Neurons that are explained in full unless others are named: those with the best test score.
BEST = 4
#: The most that may be named; their filters over time must fit into memory, and their figures on a page.
MOST = 12

Say = Callable[[str], None]

#: Parts in order; the title is what the command and the report call them.
PARTS: dict[str, Callable[[Subject], dict[str, Any]]] = {
    "receptive fields": explain_fields,
    "tuning": explain_tuning,
    "confidence bands": explain_confidence,
    "sounds": explain_sounds,
    "dynamic STRFs": explain_dynamics,
    "probes": explain_probes,
}


def explain_run(
    run: Run,
    neurons: Sequence[int | str] | None = None,
    *,
    seed: int | None = None,
    overwrite: bool = False,
    download: bool = False,
    progress: bool | Literal["auto"] = "auto",
    say: Say | None = None,
) -> Explanation:
    """Compute what explains the model of a run, and write it to the folder ``explain`` of the run.

    Receptive fields and the tuning of all neurons; for some neurons the modulation transfer function, the
    receptive field as a sound, dynamic STRFs along the test clip to which they respond most, with a movie,
    their statistics over several test clips, and the answers to probe sounds. What does not apply to the
    model or recording is skipped, and the explanation says why. `deepSTRF.report.write_report` shows all of
    it.

    Parameters
    ----------
    run : Run
        A finished run.
    neurons : sequence of int or str, optional
        Indices or names, at most 12; None is the four with the best test score.
    seed : int, optional
        Which seed's model; None is the best on validation.
    overwrite : bool
        Replace an explanation of other neurons or another seed.
    download : bool
        Let the recording fetch missing files.
    progress : bool or 'auto'
        Progress bars on stderr; 'auto' when it is a terminal.
    say : callable, optional
        Called with one sentence per part that was skipped.

    Returns
    -------
    Explanation
        As it lies on disk. One that is there already, of the same neurons and seed, is read.

    Raises
    ------
    IndexError, ValueError
        For neurons or a seed that the run does not have.
    FileExistsError
        When another explanation lies there.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.experiments import ExperimentConfig, run_experiment
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 2, "n_clips": 5, "n_repeats": 4}, epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     found = explain_run(run_experiment(config, folder, progress=False), [0], progress=False)
    ...     found.names, found.skipped, sorted(found.tables)
    (['sim000'], [], ['nonlinearity', 'probes', 'tuning'])
    """
    model = run.load_model(seed)
    chosen = choose_neurons(run, neurons)
    used = run.best_seed if seed is None else seed
    choices = {"neurons": chosen, "seed": used}
    there = None if overwrite else Explanation.load(run.path)
    if there is not None:
        _compare(run.path, there, choices)
        return there
    folder = run.path / EXPLAIN
    folder.mkdir(exist_ok=True)
    Explanation.clear(run.path)
    with open_bars(progress) as begin:
        subject = _subject(run, model, chosen, folder, begin, download)
        facts, skipped = _explain(subject, say or _quiet)
    names = {"names": subject.names, "best_seed": run.best_seed, "version": __version__}
    Explanation.seal(run.path, {**choices, **names, **facts, "skipped": skipped})
    made = Explanation.load(run.path)
    if made is None:
        raise FileNotFoundError(f"{folder} vanished while it was written; run the same command again")
    return made


def choose_neurons(run: Run, neurons: Sequence[int | str] | None = None) -> list[int]:
    """Return indices of neurons from indices and names, or of the best ones.

    Parameters
    ----------
    run : Run
        The run.
    neurons : sequence of int or str, optional
        Indices (negative ones count from the end; text that is a number is one, too) or names. None is the
        four with the best test score.

    Returns
    -------
    list of int
        In the order given, best first by default.

    Raises
    ------
    ValueError, IndexError
        For an unknown name or index, one that is named twice, none or more than 12.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> scores = SimpleNamespace(neurons=["a", "b", "c"], per_neuron=lambda: {
    ...     "cc_norm": np.array([0.1, np.nan, 0.5])})
    >>> run = SimpleNamespace(scores=scores)
    >>> choose_neurons(run), choose_neurons(run, ["b", -1])
    ([2, 0], [1, 2])
    """
    names = list(run.scores.neurons)
    if neurons is None:
        scores = run.scores.per_neuron()[MAIN_SCORE]
        valid = np.flatnonzero(np.isfinite(scores))
        best: NDArray[np.intp] = valid[np.argsort(-scores[valid], kind="stable")][:BEST]
        return [int(neuron) for neuron in best] or list(range(min(BEST, len(names))))
    chosen = [_index_of(neuron, names) for neuron in neurons]
    if not chosen or len(set(chosen)) < len(chosen) or len(chosen) > MOST:
        raise ValueError(f"neurons must name 1 to {MOST} different neurons, got {list(neurons)}")
    return chosen


def _index_of(neuron: int | str, names: list[str]) -> int:
    if isinstance(neuron, str) and neuron in names:
        return names.index(neuron)
    try:
        index = int(neuron)
    except ValueError:
        raise ValueError(
            f"there is no neuron {neuron!r}; the run has {len(names)}, from {names[0]!r} to {names[-1]!r}: "
            "give names, or indices as in the report's table"
        ) from None
    if not -len(names) <= index < len(names):
        raise IndexError(f"neuron {index} does not exist; the run has {len(names)}, counted from 0")
    return index % len(names)


def _compare(folder: Path, there: Explanation, choices: dict[str, Any]) -> None:
    differences = [
        f"{name} {there.facts.get(name)}, not {value}"
        for name, value in choices.items()
        if there.facts.get(name) != value
    ]
    if differences:
        raise FileExistsError(
            f"{folder} holds another explanation ({'; '.join(differences)}); replace it with --overwrite"
        )


def _subject(run: Run, model: Any, chosen: list[int], folder: Path, begin: Begin, download: bool) -> Subject:
    views: tuple[Any, ...] = ()
    missing, excerpts = "", []
    count = begin("recording", 1)
    try:
        whole = load_dataset(run.config, download=download)
        views = split_of(run.config, whole).apply(whole)
        excerpts = choose_excerpts(views[2], chosen)
    except (FileNotFoundError, ValueError) as error:
        missing = f"it needs the test clips of the recording: {error}"
    count(1)
    bands = Bands(run.facts.get("frequencies_hz"))
    names = list(run.scores.neurons)
    return Subject(
        model=model,
        fields=bands.of_fields(receptive_fields(model)),
        neurons=chosen,
        names=[names[neuron] for neuron in chosen],
        all_names=names,
        dt_ms=float(run.facts["dt_ms"]),
        bands=bands,
        excerpt=excerpts[0] if excerpts else None,
        others=excerpts[1:],
        dataset=views[2] if views else None,
        views=views,
        config=run.config,
        missing=missing,
        folder=folder,
        begin=begin,
    )


def _explain(subject: Subject, tell: Say) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Do every part; one that fails takes no other with it."""
    facts: dict[str, Any] = {}
    skipped: list[tuple[str, str]] = []
    for title, part in PARTS.items():
        try:
            facts.update(part(subject))
        except Skipped as reason:
            skipped.append((title, str(reason)))
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            skipped.append((title, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    for title, why in skipped:
        tell(f"Skipped {title}: {why}")
    return facts, skipped


def _quiet(sentence: str) -> None:
    """Say nothing."""
