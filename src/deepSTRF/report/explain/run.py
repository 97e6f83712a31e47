"""Analysis of the fitted model of a run, written to the folder ``explain`` of the run."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from deepSTRF import __version__
from deepSTRF._files import json_safe, replace_folder, write_atomically
from deepSTRF._validation import checked
from deepSTRF.experiments.build import is_closed_form, load_dataset, solve
from deepSTRF.experiments.config import FieldError
from deepSTRF.experiments.examples import ModelFields, receptive_fields
from deepSTRF.experiments.run import normalized_as_fitted, split_of
from deepSTRF.experiments.run_folder import EXPLAIN, EXPLANATION, MAIN_SCORE, Run
from deepSTRF.interpret import (
    NeuronTable,
    modulation_transfer,
    sonify_strf,
    strf_confidence,
    strf_tuning,
    waveform_fields,
    write_wav,
)
from deepSTRF.interpret.strf.confidence import StrfConfidence
from deepSTRF.models.fitted_on import matching_outputs
from deepSTRF.report.explain.dynamics import explain_dynamics, explain_probes
from deepSTRF.report.explain.target import Begin, Excerpt, Skipped, Target, choose_excerpts, no_progress
from deepSTRF.report.explanation import FACTS, FORMAT, Explanation
from deepSTRF.report.parts import Bands
from deepSTRF.training.callbacks import shows_progress

# ---- Receptive fields: maps, tuning, sounds, and confidence bands

#: Audio rate of sonified STRFs, above twice the largest frequency of most recordings.
SONIFIED_FS = 48000.0


def explain_fields(target: Target) -> dict[str, Any]:
    """Write the receptive fields of all neurons (``fields.npz``)."""
    fields = target.needs_fields()
    arrays: dict[str, Any] = {"fields": fields.maps.astype(np.float32), "dt_ms": target.dt_ms}
    if fields.first_lag:
        arrays["first_lag"] = fields.first_lag
    if target.frequencies_hz is not None:
        arrays["frequencies_hz"] = target.frequencies_hz
    target.write("fields", arrays)
    return {"field_kind": fields.kind, "left_out": target.bands.named(fields.left_out)}


def explain_tuning(target: Target) -> dict[str, Any]:
    """Write the tuning of all neurons (``tuning.csv``), and ``modulation.npz`` of those chosen."""
    maps, first_lag = target.needs_fields().maps, target.needs_fields().first_lag
    one = maps.shape[1] == 1 and target.frequencies_hz is None  # it has latency and duration all the same
    hertz, varies = None if one else target.needs_frequencies(), target.varying()
    maps, hertz = maps[:, varies], None if hertz is None else hertz[varies]
    count = target.begin("tuning", len(maps))
    rows = []
    for neuron, field in enumerate(maps):
        table = strf_tuning(
            field, hertz, target.dt_ms, neurons=[target.all_names[neuron]], first_lag=first_lag
        )
        rows.append(table.rows()[0])
        count(1)
    columns = {name: np.asarray([row[name] for row in rows]) for name in rows[0] if name != "neuron"}
    columns["weight_unit"] = np.full(len(maps), target.unit)
    table = NeuronTable(tuple(target.all_names), {"index": np.arange(len(maps)), **columns})
    write_atomically(target.folder / "tuning.csv", table.to_csv().encode())
    if hertz is None or len(hertz) < 2:  # no axis of scales
        return {}
    transfer = modulation_transfer(maps[target.neurons], hertz, target.dt_ms)
    target.write(
        "modulation",
        {
            "power": transfer.power.astype(np.float32),
            "rates_hz": transfer.rates_hz,
            "scales_cyc_oct": transfer.scales_cyc_oct,
        },
    )
    return {}


def explain_sounds(target: Target) -> dict[str, Any]:
    """Write receptive fields as sounds: waveform gradients, or the excitatory parts of STRFs as noise."""
    count = target.begin("sounds", len(target.neurons))
    kind = "field" if target.takes_waveform else "strf"
    sounds: list[tuple[str, str]] = []
    if kind == "field":
        stim = torch.as_tensor(target.needs_excerpt().stim)
    else:
        maps, hertz = target.needs_fields().maps, target.needs_frequencies()
        fs = SONIFIED_FS if 2.0 * hertz[-1] < SONIFIED_FS else float(2 * round(1.2 * hertz[-1]))
    for neuron, name in zip(target.neurons, target.labels, strict=True):
        file = f"{kind}-{neuron}.wav"
        if kind == "field":
            (field,) = waveform_fields(target.model, stim, [neuron])
            if field.duration_ms > 0:  # a constant response has no field
                field.write_wav(target.folder / file)
                sounds.append((file, f"{name}: gradient by the samples, {field.duration_ms:.0f} ms"))
        elif (maps[neuron] > 0).any():
            write_wav(target.folder / file, sonify_strf(maps[neuron], hertz, target.dt_ms, fs), fs)
            sounds.append((file, f"{name}: excitatory part, as noise"))
        count(1)
    return {"sounds": sounds, "sound_kind": kind}


def explain_confidence(target: Target) -> dict[str, Any]:
    """Write confidence bands from refits with one training clip left out at a time (``confidence.npz``).

    Each neuron keeps what was selected on the validation clips: selecting it again in each refit would count
    as uncertainty of the neuron. Only linear fits without epochs have bands.
    """
    config = target.config
    if config is None or not is_closed_form(config.model):
        return {}
    target.needs_excerpt()
    train, validation, _ = target.views
    n_fits = len(train) + 1
    count = target.begin("confidence", len(target.neurons) * (n_fits + 1))
    bands: list[StrfConfidence | None] = []
    reasons = []
    for neuron in target.neurons:
        alone, check = train.select(neurons=[neuron]), validation.select(neurons=[neuron])
        try:
            chosen = solve(config, alone, check)
        except ValueError as error:  # too few clips of this neuron: the others have their bands
            reasons.append(f"{target.all_names[neuron]}: {error}")
            bands.append(None)
            count(n_fits + 1)
            continue
        count(1)
        fixed = replace(config, model_options={**config.model_options, **chosen.choice(0)})

        def refit(clips: Any, fixed: Any = fixed) -> Any:
            count(1)
            return solve(fixed, clips, None)

        if len(alone) < 2:
            reasons.append(f"{target.all_names[neuron]}: it has one training clip")
            bands.append(None)
            count(n_fits)
            continue
        bands.append(strf_confidence(alone, refit, unit=target.unit))
    if not any(bands):
        raise Skipped("; ".join(reasons))
    known = {"estimate": target.needs_fields().maps[list(target.neurons)].astype(np.float32)}
    known |= {name: np.full_like(known["estimate"], np.nan) for name in ("low", "high")}
    for row, band in enumerate(bands):
        if band is not None:
            for name, values in known.items():
                values[row] = getattr(band, name)[0]
    target.write("confidence", known)
    return {"refits": n_fits, "without_band": reasons}


# ---- The analyses of a run

#: Neurons that are explained in full unless others are named: those with the best test score.
BEST = 4
#: The most that may be named; their filters over time must fit into memory.
MOST = 12

#: Analyses in order, by their names in messages and in the report.
ANALYSES: dict[str, Callable[[Target], dict[str, Any]]] = {
    "receptive fields": explain_fields,
    "tuning": explain_tuning,
    "confidence bands": explain_confidence,
    "sounds": explain_sounds,
    "dynamic STRFs": explain_dynamics,
    "probes": explain_probes,
}


@checked
def explain_run(
    run: Run,
    neurons: Sequence[int | str] | None = None,
    *,
    seed: int | None = None,
    unit: str | None = None,
    overwrite: bool = False,
    download: bool = False,
    progress: bool | Literal["auto"] = "auto",
    log: Callable[[str], None] | None = None,
) -> Explanation:
    """Analyse the fitted model of a run, and write the results to the folder ``explain`` of the run.

    Receptive fields and tuning of all neurons; for some neurons the modulation transfer function, the
    receptive field as a sound, dynamic STRFs along the test clip to which they respond most, with a movie,
    their statistics over several test clips, and responses to probe sounds. Analyses that do not apply to the
    model or recording are skipped, with the reason. `deepSTRF.report.write_report` shows the results.

    Parameters
    ----------
    run : Run
        A finished run.
    neurons : sequence of int or str, optional
        Indices or names, at most 12; None is the four with the best test score.
    seed : int, optional
        Seed of the model; None is the best on validation.
    unit : {None, "sd", "raw"}
        Unit of receptive fields, tuning, sounds and dynamic STRFs: per standard deviation of each band of the
        training sounds, or per unit of the spectrogram. None is "sd" where the fit has measured the bands.
    overwrite : bool
        Replace an explanation of other neurons, another seed or unit.
    download : bool
        Download missing files of the recording.
    progress : bool or 'auto'
        Progress bars on stderr; 'auto' when it is a terminal.
    log : callable, optional
        Called with one message per skipped analysis.

    Returns
    -------
    Explanation
        Tables, arrays, sounds and the movie in the folder (`deepSTRF.report.explanation.Explanation`). An
        existing one of the same neurons and seed is read.

    Raises
    ------
    IndexError, ValueError
        For neurons or a seed that the run does not have.
    FileExistsError
        When there is an explanation of other neurons, another seed or unit.

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
    known = "raw" if getattr(model, "band_std", None) is None else "sd"
    if unit not in (None, "raw", known):
        raise ValueError(
            f"unit must be 'sd' or 'raw', and 'sd' needs a fit that measured the bands, got {unit!r}"
        )
    unit = unit or known
    fields = receptive_fields(model, unit)
    choices = {"neurons": chosen, "seed": run.best_seed if seed is None else seed, "unit": unit}
    Explanation.check_folder(run)
    existing = None if overwrite else Explanation.load(run.path)
    if existing is not None:
        _compare(run, existing, choices)
        return existing
    folder = run.path / EXPLAIN
    # the files are made elsewhere: an earlier explanation stays until all of the new one is there
    with open_bars(progress) as begin, tempfile.TemporaryDirectory(prefix="deepSTRF-explain-") as working:
        target = _target(run, model, chosen, Path(working), begin, download, fields, unit)
        try:
            facts, skipped = _analyse(target)
        except OSError as error:  # a full disk: the file is named as the user knows it
            if os.path.dirname(str(error.filename)) == working:
                error.filename = os.fspath(folder / os.path.basename(str(error.filename)))
            raise
        if log is not None:
            for sentence in (*target.notes, *(f"Skipped {title}: {reason}" for title, reason in skipped)):
                log(sentence)
        names = {"names": target.names, "best_seed": run.best_seed, "version": __version__}
        about = {"model": run.model_fingerprint(seed), "notes": target.notes, "skipped": skipped}
        content = {"format": FORMAT, **choices, **names, **facts, **about}
        replace_folder(folder, _files_of(target.folder, content), EXPLANATION)
    made = Explanation.load(run.path)
    if made is None:
        raise FileNotFoundError(f"{folder} vanished while it was written; run the same command again")
    return made


def _files_of(working: Path, facts: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """Names and contents of the files of an explanation."""
    for path in sorted(working.iterdir()):
        yield path.name, path.read_bytes()
    yield FACTS, (json.dumps(json_safe(facts), indent=1, allow_nan=False) + "\n").encode()


def choose_neurons(run: Run, neurons: Sequence[int | str] | None = None) -> list[int]:
    """Indices of neurons from indices (negative ones count from the end) and names; None is the best four.

    Text that is a number is an index. Unknown, repeated, no or too many neurons are an error.
    """
    names = list(run.scores.neurons)
    if neurons is None:
        scores = run.scores.per_neuron()[MAIN_SCORE]
        valid = np.flatnonzero(np.isfinite(scores))
        best = valid[np.argsort(-scores[valid], kind="stable")][:BEST]
        return [int(neuron) for neuron in best] or list(range(min(BEST, len(names))))
    chosen = [_index_of(neuron, names) for neuron in neurons]
    if not chosen or len(set(chosen)) < len(chosen) or len(chosen) > MOST:
        raise FieldError("{neurons} must name 1 to {0} different neurons, got {1}", MOST, list(neurons))
    return chosen


def _index_of(neuron: int | str, names: list[str]) -> int:
    """Index of one neuron, from an index or a name."""
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


def _compare(run: Run, existing: Explanation, choices: dict[str, Any]) -> None:
    """Raise FileExistsError when an explanation is of other neurons, another seed, unit or model."""
    facts = {**existing.facts, "unit": existing.unit}
    differences = [
        f"{name} {facts.get(name)}, not {value}"
        for name, value in choices.items()
        if facts.get(name) != value
    ]
    if not differences and not existing.explains(run):
        differences = ["of the model that was here before"]
    if differences:
        raise FileExistsError(
            f"{run.path} holds another explanation ({'; '.join(differences)}); replace it with --overwrite"
        )


def _target(
    run: Run,
    model: Any,
    chosen: list[int],
    folder: Path,
    begin: Begin,
    download: bool,
    fields: ModelFields | None,
    unit: str,
) -> Target:
    """The model of a run with its test clips, where the recording is available."""
    views: tuple[Any, ...] = ()
    excerpts: list[Excerpt] = []
    missing, notes = "", []
    count = begin("recording", 1)
    try:
        whole = load_dataset(run.config, download=download)
        if run.facts.get("recording") not in (None, whole.content_fingerprint()):
            notes.append("The recording is another one than that of the fit")
        whole = normalized_as_fitted(run, whole)
        outputs = matching_outputs(model, whole)
        if outputs is not None:  # the file has changed since: neurons in the order of the model
            n_lost = len(set(range(len(run.scores.neurons))) - set(outputs))
            if n_lost:
                raise ValueError(f"it lacks {n_lost} neurons of the run")
            whole = whole.select(neurons=[outputs.index(neuron) for neuron in range(len(outputs))])
        views = split_of(run.config, whole).apply(whole)
        excerpts = choose_excerpts(views[2], chosen)
    except (FileNotFoundError, ValueError) as error:
        missing = f"it needs the test clips of the recording: {error}"
    count(1)
    bands = Bands(run.facts.get("frequencies_hz"))
    names = list(run.scores.neurons)
    return Target(
        model=model,
        fields=bands.of_fields(fields),
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
        unit=unit,
        missing=missing,
        notes=notes,
        folder=folder,
        begin=begin,
    )


def _analyse(target: Target) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """Run all analyses; one that fails is skipped, the others are done all the same."""
    facts: dict[str, Any] = {}
    skipped: list[tuple[str, str]] = []
    for title, analysis in ANALYSES.items():
        try:
            facts.update(analysis(target))
        except Skipped as reason:
            skipped.append((title, str(reason)))
        except (ValueError, TypeError, RuntimeError, ArithmeticError) as error:
            skipped.append((title, f"{type(error).__name__}: {' '.join(str(error).split())}"))
    return facts, skipped


@contextmanager
def open_bars(progress: bool | Literal["auto"] = "auto") -> Iterator[Begin]:
    """Open a display with one bar per step, on stderr."""
    if not shows_progress(progress):
        yield no_progress
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description:<18}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        running: list[tuple[TaskID, int]] = []

        def finish() -> None:
            for task, total in running:
                bars.update(task, completed=total)
            running.clear()

        def begin(title: str, total: int) -> Callable[[int], None]:
            finish()
            task = bars.add_task(title, total=total)
            running.append((task, total))
            return lambda done: bars.advance(task, done)

        yield begin
        finish()
