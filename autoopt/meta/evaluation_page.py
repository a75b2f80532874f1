"""The generated parts of the documentation's page on the evaluation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from autoopt.errors import MetaDatasetError
from autoopt.meta.evaluation_tables import COLUMNS, cell, family_table, markdown_table, score_rows, worst_table
from autoopt.meta.protocols import PROTOCOLS

_HEADLINE = ("time_to_target", "missed", "seconds_to_target", "closed_gap_loss", "closed_gap_rank")
_NO_HARM = ("no_harm", "no_harm_tuned", "profile_integral", "log_excess", "rank")
_COST = ("step_seconds_ratio", "state_bytes_ratio", "selection_seconds")


def updated_page(page: str, result: Mapping[str, Any], pictures: Mapping[str, str], folder: str = "evaluation") -> str:
    """The page with its generated parts made anew; what stands outside of the markers stays.

    A part begins with `<!-- begin NAME -->` and ends with `<!-- end NAME -->`, each on a line of its own.

    Args:
        page: The page as it is.
        result: What `autoopt.meta.scoreboard.evaluate` gave.
        pictures: File name -> title of the pictures that were written.
        folder: Folder of the pictures beside the page.

    Raises:
        MetaDatasetError: If the markers of a part are missing.
    """
    parts = {
        "data": _data(result),
        "strict": _protocol(result, "strict", result["main"]),
        "milder": _milder(result),
        "pictures": "\n\n".join(f"![{title}]({folder}/{name})" for name, title in pictures.items()),
        "families": markdown_table(*family_table(result)),
        "worst": markdown_table(*worst_table(result)),
        "ablations": _ablations(result.get("ablations")),
    }
    for name, text in parts.items():
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        if not pattern.search(page):
            raise MetaDatasetError(f"the page has no markers <!-- begin {name} --> and <!-- end {name} -->")
        page = pattern.sub(lambda match, text=text: f"{match[1]}{text}\n{match[2]}", page)
    return page


def _data(result: Mapping[str, Any]) -> str:
    data = result["data"]
    border = data["targets_at_border"]
    lines = [
        f"{data['num_trials']:,} recorded runs on {data['num_tasks']} tasks in {data['num_families']} architecture "
        f"families and {data['num_sources']} data sources make {data['num_folds']} folds of the strict protocol. "
        f"{data['num_targets']} tasks have a target, {data['num_targets_on_3_seeds']} of them on three seeds or more.",
    ]
    if border:
        lines.append(f"AdamW's best rate lies at the border of its sweep on {len(border)} tasks: {', '.join(border)}.")
    share = data["vbs_scored_on_other_seeds"]
    if share is not None and share < 1.0:
        lines.append(
            f"The VBS is scored on seeds that it was not chosen on for {100 * share:.0f} % of the tasks. On the others "
            "it is scored on the seed that it was chosen on, which widens the gap beyond what anyone could close."
        )
    if data["selections"]:
        lines.append(f"The selections were made when {data['selections']['num_trials']:,} runs were recorded.")
    missing = result["missing"]["strict"]
    if missing:
        lines.append("Missing: " + "; ".join(f"`{name}` {how}" for name, how in missing.items()) + ".")
    return "\n\n".join(lines)


def _protocol(result: Mapping[str, Any], protocol: str, main: str) -> str:
    headings = {name: heading for name, heading, _ in COLUMNS} | {"selection_seconds": "seconds of choosing"}
    rows = dict(result[protocol])
    first = {name: rows[name] for name in (main, "sbs") if name in rows}
    ordered = first | {name: row for name, row in rows.items() if name not in first}
    tables = []
    for names in (_HEADLINE, _NO_HARM, _COST):
        lines = score_rows(ordered, names, interval=names is not _COST)
        kept = [line for line in lines if any(text != "-" for text in line[2:])]
        if kept:
            tables.append(markdown_table(["contender", "tasks", *(headings[name] for name in names)], kept))
    return "\n\n".join(tables)


def _milder(result: Mapping[str, Any]) -> str:
    headings = {name: heading for name, heading, _ in COLUMNS}
    parts = []
    for protocol in (name for name in PROTOCOLS if name != "strict" and name in result):
        lines = score_rows(result[protocol], _HEADLINE)
        table = markdown_table(["contender", "tasks", *(headings[name] for name in _HEADLINE)], lines)
        parts.append(f"**{protocol}**: {PROTOCOLS[protocol]}.\n\n{table}")
    return "\n\n".join(parts)


def _ablations(rows: Sequence[Mapping[str, Any]] | None) -> str:
    if not rows:
        return "Not computed yet: `python scripts/evaluate.py --ablate`."
    headings = ["selector", "tasks", "log loss ratio to the default", "closed", "changed", "harmed by over 2 %"]
    lines = []
    for row in rows:
        shares = [f"{100 * row[name]:.0f} %" for name in ("changed", "harmed")]
        lines.append(
            [row["title"], str(row["num_tasks"]), _signed(row, "gain"), cell(row, "closed", interval=True), *shares]
        )
    return markdown_table(headings, lines)


def _signed(row: Mapping[str, Any], name: str) -> str:
    value, interval = row[name], row[f"{name}_ci"]
    return f"{value:+.3f} ({interval[0]:+.3f} to {interval[1]:+.3f})"
