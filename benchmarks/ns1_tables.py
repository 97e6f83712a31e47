"""Tables of the records on NS1, for `benchmarks/RESULTS.md` and `docs/benchmarks.md`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ns1_arms import BEST_NOTE, GROUPS, PUBLISHED, Group, all_arms
from ns1_protocols import PROTOCOLS
from results_page import PAGE, table, write_section

DOCS_PAGE = Path(__file__).resolve().parent.parent / "docs" / "benchmarks.md"
#: Result of an arm by its name; one without records has none under "protocols".
ResultOf = Callable[[str], Mapping[str, Any]]

#: The documentation says it on its page.
NOTE = (
    "In the tables of scores on NS1: mean over neurons, mean ± sd over seeds; *interval*: 95 % over test clips, by a jackknife (with three or four clips it "
    "mainly says how little these tell); *73 units*: single units of known depth, as in the literature; *averaged*: predictions "
    "of the seeds averaged, with their number; *published form*: the centring of older numbers; *validation* chose the epoch; *s*: seconds per "
    "fit of one thread. A command above a table with the name of one arm in place of the table's repeats its row; splits, hashes and "
    "protocol cards are in `benchmarks/results/ARM.json`. Why five folds: [benchmarks](../docs/benchmarks.md)."
)
FOLDS_NOTE = (
    "Each clip is predicted by the model that never heard it; scores are of all 20 clips together. *mean over folds* is the mean "
    "of five scores of four clips each, which is lower or higher by how loud those clips are for a neuron."
)


def spread(values: Any) -> str:
    """Mean and standard deviation over seeds; a text of an earlier record as it is."""
    if values is None or isinstance(values, str):
        return values or ""
    array = np.asarray(values, dtype=float)
    if array.size == 1:
        return f"{array[0]:.3f}"
    return f"{array.mean():.3f} ± {array.std(ddof=1):.3f}"


def interval(score: Mapping[str, Any] | None) -> str:
    """Interval over clips of a score."""
    limits = (score or {}).get("interval")
    if not limits or any(math.isnan(one) for one in limits):
        return ""
    return f"{limits[0]:.3f} to {limits[1]:.3f}"


def number(value: float | None, form: str = ".3f") -> str:
    return "" if value is None else format(value, form)


def cells(found: Mapping[str, Any]) -> dict[str, str]:
    """The columns of one record."""
    score, units, mixed = (found.get(key) for key in ("score", "published units", "averaged"))
    return {
        "cc_norm": spread(score["per_seed"]),
        "interval": interval(score),
        "median": number(score["median"]),
        "73 units": spread(units["per_seed"]) if units else "",
        "averaged": f"{mixed['per_seed'][0]:.3f} ({len(found['seeds'])})" if mixed else "",
        "mean over folds": spread(found.get("mean over folds")),
        "published form": spread(found.get("published form")),
        "cc": spread(found.get("cc")),
        "validation": spread(found.get("validation")),
        "parameters": f"{found['parameters']:,}",
        "s": number(found.get("seconds"), ".0f"),
    }


def protocol_table(names: Iterable[str], protocol: str, result_of: ResultOf) -> str:
    """One row per arm with a record under a protocol; columns that no row fills are left out."""
    rows = {}
    for name in names:
        found = result_of(name)["protocols"].get(protocol)
        if found is not None:
            rows[name] = {"arm": name, **cells(found)}
    if not rows:
        return ""
    columns = [column for column in next(iter(rows.values())) if any(row[column] for row in rows.values())]
    return table(columns, [[row[column] for column in columns] for row in rows.values()])


def published_table(result_of: ResultOf) -> str:
    """Published scores beside ours of the same configuration; "yes" where our mean reaches the highest.

    Below: what was tried for those that are not reached.
    """
    rows, notes = [], []
    for one in PUBLISHED:
        low, high = one.score
        found = result_of(one.arm)["protocols"].get("14/3/3")
        tuned = None if one.tuned is None else result_of(one.tuned)["protocols"].get("14/3/3")
        best = max((published_form(each) for each in (found, tuned) if each), default=math.nan)
        reached = "yes" if best >= high else "no"
        if reached == "yes" and (one.tuned or "").endswith("-refit") and published_form(found) < high:
            reached = "only refitted"
        rows.append(
            [
                one.model,
                f"{low:g}" if low == high else f"{low:g} to {high:g}",
                one_score(one.arm, found),
                one_score(one.tuned, tuned),
                reached,
            ]
        )
        if reached != "yes" and one.note:
            notes.append(f"* {one.note}")
    head = [
        "model",
        "published",
        "ours, same settings",
        "ours, settings chosen on validation clips",
        "reached",
    ]
    return "\n\n".join([table(head, rows), "\n".join(notes)]).strip()


def best_line(result_of: ResultOf) -> str:
    """The arm with the highest validation score on 14/3/3, and its test score."""
    found = {name: result_of(name)["protocols"].get("14/3/3") for name in all_arms()}
    known = {name: one for name, one in found.items() if one}
    if not known:
        return ""
    name = max(known, key=lambda each: float(spread(known[each]["validation"]).split()[0]))
    mixed = cells(known[name])["averaged"]
    more = f"; the average of the seeds' predictions {mixed.split()[0]}" if mixed else ""
    return f"Our best model, by validation scores: {one_score(name, known[name])}{more}. {BEST_NOTE}"


def published_form(found: Mapping[str, Any]) -> float:
    """Mean over seeds in the centring of published scores, to their three digits."""
    return float(spread(found["published form"]).split()[0])


def one_score(name: str | None, found: Mapping[str, Any] | None) -> str:
    if name is None or found is None:
        return ""
    return f"{spread(found['score']['per_seed'])}; {published_form(found):.3f} (`{name}`)"


def command(names: Sequence[str], protocol: str) -> str:
    return f"`python benchmarks/ns1_records.py {' '.join(names)} --protocol {protocol} --jobs 2`"


def group_body(name: str, group: Group, result_of: ResultOf) -> str:
    """Text and tables of a group, the recommended protocol first."""
    parts = [group.text]
    for protocol in reversed(PROTOCOLS):
        rows = protocol_table(group.arms, protocol, result_of)
        if rows:
            note = f"\n\n{FOLDS_NOTE}" if protocol == "five-fold" else ""
            parts.append(f"**{protocol}**, {command([name], protocol)}{note}\n\n{rows}")
    return "\n\n".join(parts)


def all_sections(result_of: ResultOf) -> dict[str, tuple[str, str]]:
    """Name of a section -> title and body."""
    sections = {
        "ns1-published": (
            "Published scores on NS1, and ours",
            "119 units, clips split 14/3/3 by index. Published scores are of one seed. Ours are mean ± sd over seeds, and after the "
            "semicolon the mean in the *published form* of the score, in which *reached* compares. Arms named "
            "`-refit` were fitted anew on training and validation clips, once all was chosen, which the published models were not. "
            f"The arms and their settings stand in `benchmarks/ns1_arms.py`.\n\n{published_table(result_of)}\n\n"
            f"{best_line(result_of)}",
        )
    }
    for name, group in GROUPS.items():
        sections[f"ns1-{name}"] = (group.title, group_body(name, group, result_of))
    return sections


def write_pages(result_of: ResultOf) -> None:
    """Write every section into the pages that show it."""
    for name, (title, body) in all_sections(result_of).items():
        write_section(name, title, f"{body}\n\n{NOTE}" if name == "ns1-published" else body, PAGE)
        write_section(name, title, body, DOCS_PAGE)
