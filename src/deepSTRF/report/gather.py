"""The report of a finished run: parts are collected, sections are made, and one HTML file is written."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from deepSTRF import __version__
from deepSTRF._files import DamagedFileError, check_target, write_atomically
from deepSTRF._validation import checked
from deepSTRF.experiments.examples import WEIGHTS, NeuronExample, receptive_fields
from deepSTRF.experiments.run_folder import MAIN_SCORE, Run, ScoreRow
from deepSTRF.interpret import WaveformField, front_end_response, initial_front_end, waveform_fields
from deepSTRF.metrics.scores import metric_named, metric_order
from deepSTRF.models.fitted_on import FittedOn
from deepSTRF.report.explanation import Explanation
from deepSTRF.report.parts import NULL_STIMULI, Bands, FrontEndParts, ReportParts
from deepSTRF.report.rendering import number, render
from deepSTRF.report.sections import SECTIONS, SectionMaker

#: Columns that belong to another one: the ends of the ceiling's interval.
INTERVAL = ("ccmax_low", "ccmax_high")
#: What an earlier page begins with, which a new one may replace.
START_OF_PAGE = b"<!DOCTYPE html>"


@checked
def write_report(
    run: Run | ReportParts,
    path: str | os.PathLike[str] | None = None,
    sections: tuple[SectionMaker, ...] = SECTIONS,
) -> Path:
    """Write the report of a run as one HTML file, which loads nothing from the network.

    Parameters
    ----------
    run : Run or ReportParts
        A finished run, or parts made by the caller.
    path : path, optional
        The HTML file; None is ``report.html`` in the run's folder.
    sections : tuple of functions
        Sections of the page, in order: functions from `ReportParts` to `Section`, or to None to leave the
        section out.

    Returns
    -------
    pathlib.Path
        The file.

    Raises
    ------
    ValueError
        When parts are given without a path.
    OSError
        When it cannot be written; an earlier report then stays as it was.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> from deepSTRF.report import ReportParts
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_report(ReportParts("Linear on NS1"), pathlib.Path(folder) / "report.html")
    ...     page.read_text().startswith("<!DOCTYPE html>")
    True
    """
    if isinstance(run, ReportParts):
        if path is None:
            raise ValueError("path is missing: name the HTML file these parts go to")
        check_target(path, START_OF_PAGE)
        parts, target = run, Path(path)
    else:
        target = Path(path or run.report_path)
        if path is not None:
            check_target(target, START_OF_PAGE)
        parts = gather_parts(run)
    try:
        page = render_report(parts, sections)
    except Exception as error:
        found = parts.explanation
        if found is None or found.facts.get("format") != 1:
            raise
        # without checksums, damage to an explanation of an earlier version shows only here
        text = f"{found.folder} is damaged ({type(error).__name__}: {error}); write it again with --overwrite"
        notes = [*parts.notes, ("warning", f"The explanation is not shown: {text}.")]
        page = render_report(replace(parts, explanation=None, notes=notes), sections)
    # in the folder of the run, a link is replaced by the report, not followed
    write_atomically(target, page.encode("utf-8"), follow_links=path is not None)
    return target


def render_report(parts: ReportParts, sections: tuple[SectionMaker, ...] = SECTIONS) -> str:
    """Return the whole page as HTML, with style, script and figures inside."""
    made = [section for section in (make(parts) for make in sections) if section is not None]
    templates = resources.files("deepSTRF.report").joinpath("templates")
    return render(
        "report.html.j2",
        parts=parts,
        sections=made,
        version=__version__,
        style=templates.joinpath("report.css").read_text(encoding="utf-8"),
        script=templates.joinpath("report.js").read_text(encoding="utf-8"),
    )


def gather_parts(run: Run) -> ReportParts:
    """Collect the parts of a run's report; reads the model's weights, needs no recording."""
    facts, model, neurons = run.facts, run.load_model(), run.scores.neurons
    explanation, remarks = _explanation_of(run)
    front_end = f"{facts['wav2spec']} + " if facts.get("wav2spec") else ""
    bands = Bands(facts.get("frequencies_hz"))
    fields = bands.of_fields(receptive_fields(model))
    fitted = getattr(model, "fitted_on", None)
    features = fitted.feature_sizes() if isinstance(fitted, FittedOn) else {}
    rows = [row for row in run.scores.summary() if row.metric not in INTERVAL]
    columns = run.scores.per_neuron("test")
    has_interval = all(name in columns for name in INTERVAL)
    return ReportParts(
        title=f"{front_end}{facts.get('model', 'Model')} on {facts.get('dataset', 'a recording')}",
        subtitle=_subtitle(run),
        headline=_headline(rows, facts, len(neurons)),
        score_rows=sorted(rows, key=lambda row: (row.split != "test", metric_order(row.metric))),
        seeds=run.scores.seeds,
        protocol=run.protocol,
        notes=[(str(level), str(text)) for level, text in (*facts.get("notes", ()), *remarks)],
        columns={
            name: column
            for name, column in columns.items()
            if name not in INTERVAL and np.isfinite(column).any()
        },
        neurons=neurons,
        main_score=MAIN_SCORE,
        ceiling_interval=np.stack([columns[name] for name in INTERVAL], axis=1) if has_interval else None,
        curves=[_curves(history) for history in run.histories.values() if history],
        best_epoch=next(iter(run.best_epochs.values())) if len(run.scores.seeds) == 1 else None,
        examples=[bands.of_example(example) for example in run.examples],
        recording=facts.get("import") or {},
        rasters=run.rasters,
        strfs=None if fields is None else fields.maps,
        strf_kind=WEIGHTS if fields is None else fields.kind,
        null_stimulus=NULL_STIMULI[getattr(model, "standardizer", None) is not None],
        first_lag=0 if fields is None else fields.first_lag,
        features=features,
        feature_frequencies={
            str(name): np.asarray(hertz, dtype=np.float64)
            for name, hertz in (facts.get("feature_frequencies") or {}).items()
        },
        strf_unit="raw" if fields is None else fields.unit,
        left_out=""
        if fields is None
        else _named_rows(fields.left_out, features) or bands.named(fields.left_out),
        frequencies_hz=bands.frequencies_hz,
        # the channels of a front-end that states no frequencies are learned
        latent=bands.order is None and hasattr(getattr(model, "wav2spec", None), "hop"),
        dt_ms=facts.get("dt_ms"),
        response_unit=str(facts.get("response_unit", "response")),
        command=run.config.command(),
        config=run.config.to_toml(),
        versions=[(str(name), str(value)) for name, value in facts.get("versions", [])],
        explanation=explanation,
        front_end=measure_front_end(model),
        waveform_field=example_waveform_field(model, run.examples, neurons),
    )


def _named_rows(rows: Sequence[int], features: Mapping[str, int]) -> str:
    """Rows of named features in words; "" without features."""
    owners = [f"{name} {row}" if size > 1 else name for name, size in features.items() for row in range(size)]
    return ", ".join(owners[row] for row in rows) if owners else ""


def _explanation_of(run: Run) -> tuple[Explanation | None, list[tuple[str, str]]]:
    """The explanation of a run's model, and notes on it, also on one that cannot be shown."""
    try:
        found = Explanation.load(run.path)
    except (DamagedFileError, OSError) as error:
        return None, [("warning", f"The explanation is not shown: {error}.")]
    if found is not None and not found.explains(run):
        text = f"of another model; deepstrf explain {run.path} --overwrite makes one of this model"
        return None, [("warning", f"The explanation is not shown: it is {text}.")]
    notes = found.facts.get("notes") if found is not None else None
    return found, [("warning", f"Explanation: {text}.") for text in notes or ()]


def _subtitle(run: Run) -> str:
    facts = run.facts
    sizes = facts.get("split", {}).get("sizes", [])
    seeds = run.scores.seeds
    words = [
        f"{len(run.scores.neurons)} neurons",
        f"{'/'.join(map(str, sizes))} clips to train/validate/test" if sizes else "",
        f"bins of {facts['dt_ms']:g} ms" if facts.get("dt_ms") else "",
        f"{len(seeds)} seeds" if len(seeds) > 1 else f"seed {seeds[0]}",
        f"fitted in {facts['seconds']:.0f} s" if facts.get("seconds") else "",
        str(facts.get("finished", ""))[:10],
    ]
    return " · ".join(word for word in words if word)


def _headline(rows: list[ScoreRow], facts: dict[str, Any], n_neurons: int) -> list[tuple[str, str]]:
    main = next((row for row in rows if row.split == "test" and row.metric == MAIN_SCORE), None)
    headline: list[tuple[str, str]] = []
    if main is not None:
        headline.append((number(main.mean), f"{metric_named(MAIN_SCORE).label}, test mean"))
        headline.append((number(main.median), "test median over neurons"))
        without = f", {main.n_nan} without a score" if main.n_nan else ""
        headline.append((f"{n_neurons:,}", f"neurons{without}"))
    if "n_parameters" in facts:
        headline.append((f"{facts['n_parameters']:,}", "trainable parameters"))
    return headline


def _curves(history: list[dict[str, Any]]) -> dict[str, list[float]]:
    """One series per key of a seed's history; a missing value is NaN."""
    keys = [key for key in history[0] if key.startswith(("train_", "val_")) and not key.endswith("_n_nan")]
    return {
        key: [float("nan") if row.get(key) is None else float(row[key]) for row in history] for key in keys
    }


def measure_front_end(model: Any) -> FrontEndParts | None:
    """Measure the channels of a model's front-end, where they have frequencies."""
    front_end = _front_end(model)
    try:
        has_frequencies = getattr(front_end, "frequencies_hz", None) is not None
    except NotImplementedError:  # a deep encoder: it has none, and would take minutes to measure
        has_frequencies = False
    if front_end is None or not has_frequencies:
        return None
    initial = initial_front_end(front_end)
    return FrontEndParts(
        name=type(front_end).__name__,
        learned=front_end_response(front_end),
        initial=None if initial is None else front_end_response(initial),
    )


def example_waveform_field(
    model: Any, examples: Sequence[NeuronExample], neurons: Sequence[str]
) -> tuple[NeuronExample, WaveformField] | None:
    """Receptive field in the waveform of the first example neuron that has a sound."""
    example = next((one for one in examples if one.sound is not None), None)
    if _front_end(model) is None or example is None or example.neuron not in neurons:
        return None
    sound = torch.as_tensor(example.sound)
    (field,) = waveform_fields(model, sound, list(neurons).index(example.neuron))
    return (example, field) if field.duration_ms > 0 and math.isfinite(field.duration_ms) else None


def _front_end(model: Any) -> nn.Module | None:
    front_end = getattr(model, "wav2spec", None)
    return None if isinstance(front_end, nn.Identity) else front_end
