"""The work of ``deepstrf import``: a recording in files becomes a dataset, and its report is printed."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from deepSTRF._files import check_target, write_atomically
from deepSTRF._text import printable
from deepSTRF.cli.console import stdout_console
from deepSTRF.cli.errors import REFUSALS, UsageProblem, say, usage
from deepSTRF.datasets import NeuralDataset, open_recording, write_recording
from deepSTRF.datasets.formats import read_hints, template_of
from deepSTRF.experiments.config import parse_options
from deepSTRF.registry import FORMATS

__all__ = ["import_and_print", "print_template"]

#: Rows of a report that are printed before the rest is counted.
_SHOWN = 40


def print_template(
    path: Path,
    out: Path | None,
    option_texts: Sequence[str],
    hints: Path | None,
    name: str | None,
    *,
    overwrite: bool,
) -> None:
    """Print the hints of a recording's format as TOML, or write them."""
    with usage(*REFUSALS, OSError):
        if out is not None:
            _check_free(out, overwrite=overwrite)
    with usage():
        options = _options(option_texts, hints)
        text = template_of(path, name or options.pop("format", None), **options)
    if out is None:
        say(text.rstrip("\n"))
    else:
        write_atomically(out, text.encode())
        stdout_console().print(f"Hints  {out.resolve()}", soft_wrap=True)


def import_and_print(
    path: Path,
    out: Path | None,
    option_texts: Sequence[str],
    hints: Path | None,
    name: str | None,
    dt_ms: float | None,
    *,
    dry_run: bool,
    overwrite: bool,
) -> None:
    """Read a recording, print its report, and write it unless that is not wanted."""
    if out is None and not dry_run:
        raise UsageProblem(
            "say where the dataset goes: --out mine.npz (or a folder, or mine.nwb); --dry-run writes nothing"
        )
    target = None if out is None else _format_of_target(out)
    with usage(*REFUSALS, OSError):
        if out is not None and not dry_run:
            _check_free(out, overwrite=overwrite, is_folder=target == "folder")
    with usage():
        options = _options(option_texts, hints)
        if dt_ms is not None:
            options["dt_ms"] = dt_ms
        named = name or options.pop("format", None)
        options.pop("format", None)
        ds = open_recording(path, format=named, **options)
    print_dataset(ds)
    if dry_run or out is None:
        say("\nNothing was written (--dry-run).")
        return
    with usage(FileExistsError):
        if target is None:
            ds.save(out)
        else:
            write_recording(ds, out, target, overwrite=overwrite)
    stdout_console().print(f"\nDataset  {out.resolve()}", soft_wrap=True)
    # models take spectrograms: waveforms need a front-end
    front_end = " --wav2spec mel" if getattr(ds, "return_waveform", False) else ""
    stdout_console().print(f"Fit      deepstrf fit --dataset {os.fspath(out)}{front_end}", soft_wrap=True)


def _options(texts: Sequence[str], hints: Path | None) -> dict[str, Any]:
    return {**(read_hints(hints) if hints is not None else {}), **parse_options(texts, "-o")}


def _format_of_target(out: Path) -> str | None:
    """The format that a target is written in; None is a file of ``ds.save``."""
    suffix = out.suffix.lower()
    if suffix == ".npz":
        return None
    if not suffix or out.is_dir():
        return "folder"
    able = {one: key for key, entry in FORMATS.items() if entry.writes for one in entry.suffixes}
    if suffix not in able:
        legal = ", ".join(["mine.npz", "a folder", *(f"mine{one}" for one in able)])
        raise UsageProblem(f"--out {out} ends in {suffix}, and datasets are written as {legal}")
    return able[suffix]


def _check_free(out: Path, *, overwrite: bool, is_folder: bool = False) -> None:
    filled = out.is_dir() and any(out.iterdir())
    if os.path.lexists(out) and not overwrite and (filled or not (is_folder and out.is_dir())):
        raise FileExistsError(f"{out} exists; --overwrite replaces it, or name another one with --out")
    check_target(out / "recording.toml" if is_folder else out)


def print_dataset(ds: NeuralDataset) -> None:
    """Print the sizes of a dataset, and what its report says was kept, skipped and found."""
    console = stdout_console()
    console.print(f"\n{printable(ds.name)}", style="bold")
    counts = np.concatenate([clip.counts for clip in ds.response_storage.clips] or [np.zeros(0, int)])
    bins = [ds.n_bins(clip) for clip in range(len(ds))]
    rows = [
        ("Neurons", str(ds.N_neurons)),
        ("Clips", str(len(ds))),
        ("Pairs", f"{int(ds.nrn_masks.sum())} of {len(ds) * ds.N_neurons} with data"),
        ("Repeats", _range(counts.tolist())),
        ("Bins", f"{sum(bins)} of {ds.dt:g} ms ({_range(bins)} per clip)"),
        ("Responses", f"{ds.response_kind}, {ds.response_unit}"),
    ]
    if ds.response_kind == "counts":
        spikes = sum(float(np.nansum(clip.values(), dtype=np.float64)) for clip in ds.response_storage.clips)
        rows.append(("Spikes", f"{spikes:.0f}"))
    audio = getattr(ds, "audio_fs", None)
    if audio is not None:
        rows.append(("Sounds", f"{audio:g} Hz"))
    grid = Table.grid(padding=(0, 2))
    for label, value in rows:
        grid.add_row(Text(f"  {label}", "dim"), printable(value))
    console.print(grid)
    report = ds.load_report
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    for title in ("", "What", "Count", "Detail"):
        table.add_column(title, justify="right" if title == "Count" else "left", overflow="fold")
    entries = [("skipped", what, "", why) for what, why in report.skipped]
    entries += [("note", topic, str(count), text) for topic, text, count in report.notes]
    console.print(
        f"\nReport: {len(report.kept)} kept, {len(report.skipped)} skipped, {len(report.notes)} notes"
    )
    for kind, what, count, text in entries[:_SHOWN]:
        table.add_row(
            Text(kind, "yellow" if kind == "skipped" else "dim"), *map(printable, (what, count, text))
        )
    if entries:
        console.print(table)
    if len(entries) > _SHOWN:
        console.print(f"... and {len(entries) - _SHOWN} more")


def _range(values: Sequence[int]) -> str:
    low, high = min(values, default=0), max(values, default=0)
    return str(low) if low == high else f"{low} to {high}"
