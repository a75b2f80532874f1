"""The recommendation as GitHub-flavoured Markdown, for an issue, a pull request or a model card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from autoopt.report import formatting, trade_offs, wording
from autoopt.report.changed import changes
from autoopt.report.formatting import visible
from autoopt.report.grouping import LayerGroup
from autoopt.report.kept import kept_groups
from autoopt.report.raced import RACE_HEADINGS, race_rows, race_sentence

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation

_PLAIN_NAME = re.compile(r"[\w.,\- ]+", re.ASCII)
_MARKUP = re.compile(r"[^\w\s.,;:()%+'/=-]", re.ASCII)
_OUTER_UNDERSCORE = re.compile(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")  # inside a word it is no emphasis
_BLOCK_START = re.compile(r"^(\s*\d*)([-+=.)])(?=\s|[-=]|$)")  # a list, a rule, an underlined heading
_MAX_EVIDENCE = 4
_HEADINGS = (
    "| Layers | Role | Parameters | Optimizer | Rate | x reference | Other settings "
    "| Predicted loss change | Interval | Confidence | Runner-up |"
)


def _entity(match: re.Match[str]) -> str:
    character = match.group()
    return f"&#{ord(character)};" if character.isascii() else character


def escape(text: object) -> str:
    """The text with every character that Markdown or HTML could read as markup as an entity.

    Entities show as the character and can never open or close a construct (CommonMark 6.2), inside
    a table as well, where a backslash before `|` would depend on the place.
    """
    escaped = _MARKUP.sub(_entity, visible(text)).replace("://", "&#58;//")
    escaped = _OUTER_UNDERSCORE.sub("&#95;", escaped)
    return _BLOCK_START.sub(lambda match: f"{match.group(1)}&#{ord(match.group(2))};", escaped)


def code(name: object) -> str:
    """A name as a code span, or as escaped text where a code span could be broken out of."""
    text = visible(name)
    if _PLAIN_NAME.fullmatch(text) and text == text.strip():
        return f"`{text}`"
    return escape(text)


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _layers_table(groups: tuple[LayerGroup, ...]) -> Iterator[str]:
    yield _HEADINGS
    yield "| --- | --- | ---: | --- | ---: | ---: | --- | ---: | --- | ---: | --- |"
    for group in groups:
        count = len(group.members)
        role = escape(wording.ROLE_TITLES.get(group.role, group.role))
        gain = formatting.format_loss_change(group.predicted_gain)
        if group.predicted_gain is None:
            gain = "changed" if group.deviates else "default"
        yield _row(
            [
                code(group.label),
                f"{count} x {role}" if count > 1 else role,
                formatting.format_count(group.num_parameters),
                wording.title(group.config),
                formatting.format_number(group.config.lr),
                formatting.format_number(group.config.relative_lr),
                escape(wording.settings(group.config)) or formatting.UNKNOWN,
                gain,
                formatting.format_interval(group.predicted_gain_interval),
                formatting.format_share(group.confidence),
                wording.describe_runner_up(group),
            ]
        )


def _reasons(groups: tuple[LayerGroup, ...]) -> Iterator[str]:
    for change in changes(groups):
        names = ", ".join(code(label) for label in change.labels)
        reason = " ".join(escape(reason) for reason in change.reasons)
        yield f"- {names}: {change.config}. {reason}".rstrip()
        yield from _evidence(change.evidence)


def _kept(recommendation: Recommendation) -> Iterator[str]:
    for group in kept_groups(recommendation):
        closest = f" ({escape(group.closest)})" if group.closest else ""
        yield f"- {escape(group.label)}: {escape(group.reason)}{closest}"
        yield from _evidence(group.evidence)


def _evidence(lines: Iterable[wording.EvidenceLine]) -> Iterator[str]:
    for line in list(lines)[:_MAX_EVIDENCE]:
        meaning = f" ({escape(line.description)})" if line.description else ""
        position = f", {line.position}" if line.position else ""
        yield f"  - {code(line.feature)} {escape(line.value)}{position}{meaning}"


def _race(recommendation: Recommendation) -> Iterator[str]:
    if sentence := race_sentence(recommendation):
        yield escape(sentence)
    if rows := race_rows(recommendation):
        yield ""
        yield _row(RACE_HEADINGS)
        yield "| --- | --- | ---: | ---: | --- |"
        yield from (_row([escape(cell) for cell in row]) for row in rows)


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield from ("", f"## {title}", "", *lines)


def to_markdown(recommendation: Recommendation) -> str:
    """The report as GitHub-flavoured Markdown."""
    content, groups = recommendation, recommendation.groups
    lines = [
        "# Optimizers chosen by autoopt",
        "",
        f"**{escape(content.headline)}**",
        "",
        escape(wording.deviations(content)),
    ]
    lines += _section("Warnings", [f"- {escape(warning)}" for warning in content.warnings])
    lines += _section("Layers", list(_layers_table(groups)))
    if reading := wording.reading(content):
        lines += ["", reading]
    lines += _section("Why", list(_reasons(groups)))
    lines += _section("Why the default is kept", list(_kept(content)))
    lines += _section("What would change the choice", [f"- {escape(t)}" for t in content.counterfactuals])
    lines += _section("Cost", [f"- {name}: {escape(value)}" for name, value in wording.costs(content)])
    if points := trade_offs.shown_points(content):
        headings, cells = trade_offs.table(points)
        rows = [_row(headings), f"| --- |{' ---: |' * (len(headings) - 1)}"]
        rows += [_row([escape(cell) for cell in row]) for row in cells]
        lines += _section("Loss, time and memory", [*rows, "", trade_offs.reading(content)])
    if content.candidates:
        rows = [_row(["Plan", "Predicted loss change", "Interval"]), "| --- | ---: | --- |"]
        rows += [
            _row(
                [
                    escape(c.name) + (" (chosen)" if c.chosen else ""),
                    formatting.format_loss_change(c.predicted_gain),
                    formatting.format_interval(c.predicted_gain_interval),
                ]
            )
            for c in content.candidates
        ]
        lines += _section("Plans weighed", rows)
    lines += _section("Race of short runs", list(_race(content)))
    if content.nearest_tasks:
        rows = [_row(["Recorded task", "Distance", "Winner"]), "| --- | ---: | --- |"]
        rows += [
            _row([code(task.name), formatting.format_number(task.distance), escape(task.winner)])
            for task in content.nearest_tasks
        ]
        lines += _section("Nearest recorded tasks", rows)
    lines += _section("Events", [f"- step {e.step:,}, {escape(e.kind)}: {escape(e.message)}" for e in content.events])
    origin = [f"- {escape(key)}: {escape(value)}" for key, value in content.provenance.items()]
    profile = wording.profiling(content)
    lines += _section("Provenance", ([f"- {escape(profile)}"] if profile else []) + origin)
    return "\n".join(lines) + "\n"
