"""From a finished run to the parts of its report."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from deepSTRF import __version__
from deepSTRF._files import write_atomically
from deepSTRF.experiments.examples import WEIGHTS, receptive_fields
from deepSTRF.experiments.run_folder import MAIN_SCORE, Run, ScoreRow
from deepSTRF.metrics.scores import metric_named, metric_order
from deepSTRF.report.explanation import EXPLANATION, Explanation
from deepSTRF.report.front_end import front_end_extras
from deepSTRF.report.parts import Bands, Note, ReportParts
from deepSTRF.report.rendering import number, render
from deepSTRF.report.sections import SECTIONS, SectionMaker

__all__ = ["gather_parts", "render_report", "write_parts", "write_report"]

# ------------------------------------------------------------------------------
# The page: sections, style and script in one file that asks nothing of the network.


def render_report(parts: ReportParts, sections: tuple[SectionMaker, ...] = SECTIONS) -> str:
    """Return the whole page as one HTML string.

    Parameters
    ----------
    parts : ReportParts
        What to show.
    sections : tuple of functions
        Sections in order; each may leave itself out.

    Returns
    -------
    str
        HTML with style, script and figures inside.

    Examples
    --------
    >>> page = render_report(ReportParts("Linear on NS1"))
    >>> "<h1>Linear on NS1</h1>" in page, "http" in page
    (True, False)
    """
    made = [section for section in (make(parts) for make in sections) if section is not None]
    return render(
        "report.html.j2",
        parts=parts,
        sections=made,
        version=__version__,
        style=_template_text("report.css"),
        script=_template_text("report.js"),
    )


def write_parts(
    parts: ReportParts, path: str | os.PathLike[str], sections: tuple[SectionMaker, ...] = SECTIONS
) -> Path:
    """Write the page to a file, completely or not at all.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write_parts(ReportParts("Linear on NS1"), pathlib.Path(folder) / "report.html").name
    'report.html'
    """
    target = Path(path)
    write_atomically(target, render_report(parts, sections).encode("utf-8"))
    return target


def _template_text(name: str) -> str:
    return resources.files("deepSTRF.report").joinpath("templates", name).read_text(encoding="utf-8")


# ------------------------------------------------------------------------------

#: Columns that belong to another one: the ends of the ceiling's interval.
INTERVAL = ("ccmax_low", "ccmax_high")


def write_report(
    run: Run | ReportParts,
    path: str | os.PathLike[str] | None = None,
    sections: tuple[SectionMaker, ...] = SECTIONS,
) -> Path:
    """Write the HTML report of a run: one file, no network.

    Parameters
    ----------
    run : Run or ReportParts
        A finished run, or parts put together by hand.
    path : path, optional
        The HTML file; None is ``report.html`` in the run's folder.
    sections : tuple of functions
        Sections of the page, in order.

    Returns
    -------
    pathlib.Path
        Where it lies.

    Raises
    ------
    ValueError
        When parts are given without a path.
    OSError
        When it cannot be written; an earlier report is untouched then.

    Examples
    --------
    >>> import pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     page = write_report(ReportParts("Linear on NS1"), pathlib.Path(folder) / "report.html")
    ...     page.read_text().startswith("<!DOCTYPE html>")
    True
    """
    if isinstance(run, ReportParts):
        if path is None:
            raise ValueError("path is missing: name the HTML file these parts go to")
        return write_parts(run, path, sections)
    return write_parts(gather_parts(run), path or run.report_path, sections)


def gather_parts(run: Run) -> ReportParts:
    """Put together what the report of a run shows; reads the model's weights, needs no recording.

    Parameters
    ----------
    run : Run
        A finished run.

    Returns
    -------
    ReportParts
        The parts.

    Examples
    --------
    >>> import tempfile
    >>> from deepSTRF.experiments import ExperimentConfig, run_experiment
    >>> config = ExperimentConfig(dataset_options={"n_neurons": 3, "n_clips": 5, "n_repeats": 4}, epochs=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     gather_parts(run_experiment(config, folder + "/run", progress=False)).n_neurons
    3
    """
    facts, model = run.facts, run.load_model()
    bands = Bands(facts.get("frequencies_hz"))
    fields, explained = bands.of_fields(receptive_fields(model)), Explanation.load(run.path)
    one_seed = len(run.scores.seeds) == 1
    rows = [row for row in run.scores.summary() if row.metric not in INTERVAL]
    return ReportParts(
        title=_title(facts),
        subtitle=_subtitle(run),
        headline=_headline(rows, facts, len(run.scores.neurons)),
        score_rows=sorted(rows, key=_reading_order),
        seeds=run.scores.seeds,
        protocol=run.protocol,
        notes=[Note(level, text) for level, text in facts.get("notes", [])],
        columns=_neuron_columns(run),
        neurons=run.scores.neurons,
        main_score=MAIN_SCORE,
        curves=[_curves(history) for history in run.histories.values() if history],
        best_epoch=next(iter(run.best_epochs.values())) if one_seed else None,
        examples=[bands.of_example(example) for example in run.examples],
        strfs=None if fields is None else fields.maps,
        strf_kind=WEIGHTS if fields is None else fields.kind,
        frequencies_hz=bands.frequencies_hz,
        # a front-end that states no frequencies has learned what its channels are
        latent=bands.order is None and hasattr(getattr(model, "wav2spec", None), "hop"),
        ceiling_interval=_ceiling_interval(run),
        dt_ms=facts.get("dt_ms"),
        response_unit=str(facts.get("response_unit", "response")),
        command=run.config.command(),
        config=run.config.to_toml(),
        versions=[(str(name), str(value)) for name, value in facts.get("versions", [])],
        extras={
            **front_end_extras(model, run.examples, run.scores.neurons),
            **({} if explained is None else {EXPLANATION: explained}),
        },
    )


def _title(facts: dict[str, Any]) -> str:
    front_end = f"{facts['wav2spec']} + " if facts.get("wav2spec") else ""
    return f"{front_end}{facts.get('model', 'Model')} on {facts.get('dataset', 'a recording')}"


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
        label = metric_named(MAIN_SCORE).label
        headline.append((number(main.mean), f"{label}, test mean"))
        headline.append((number(main.median), "test median over neurons"))
        without = f", {main.n_nan} without a score" if main.n_nan else ""
        headline.append((f"{n_neurons:,}", f"neurons{without}"))
    if "n_parameters" in facts:
        headline.append((f"{facts['n_parameters']:,}", "trainable parameters"))
    return headline


def _reading_order(row: ScoreRow) -> tuple[bool, tuple[int, str]]:
    return row.split != "test", metric_order(row.metric)


def _neuron_columns(run: Run) -> dict[str, Any]:
    """Test scores per neuron, without columns in which nobody has a value."""
    columns = run.scores.per_neuron("test")
    return {
        name: column for name, column in columns.items() if name not in INTERVAL and np.isfinite(column).any()
    }


def _ceiling_interval(run: Run) -> Any:
    """(N, 2) ends of the noise ceiling's interval, where it was computed."""
    columns = run.scores.per_neuron("test")
    if any(name not in columns for name in INTERVAL):
        return None
    return np.stack([columns[name] for name in INTERVAL], axis=1)


def _curves(history: list[dict[str, Any]]) -> dict[str, list[float]]:
    """One series per key of a seed's history; a missing value is a gap."""
    keys = [key for key in history[0] if key.startswith(("train_", "val_")) and not key.endswith("_n_nan")]
    return {
        key: [float("nan") if row.get(key) is None else float(row[key]) for row in history] for key in keys
    }
