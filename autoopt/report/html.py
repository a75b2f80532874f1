"""The recommendation as one HTML page, and as a fragment for a notebook cell.

The page holds everything it needs. Its content security policy allows its own script and style by
their hash and nothing else, so neither a name in the model nor a request can reach outside.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoopt.errors import PlanError
from autoopt.report import charts, formatting, pictures, trade_offs, wording
from autoopt.report.changed import changes
from autoopt.report.formatting import visible
from autoopt.report.grouping import LayerGroup
from autoopt.report.kept import kept_groups
from autoopt.report.raced import RACE_HEADINGS, race_rows, race_sentence

if TYPE_CHECKING:
    import jinja2

    from autoopt.report.recommendation import Recommendation

_TEMPLATES = Path(__file__).with_name("templates")


@cache
def _environment() -> jinja2.Environment:
    import jinja2
    from markupsafe import Markup

    def finalize(value: Any) -> Any:
        return value if isinstance(value, Markup) else visible("" if value is None else value)

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _safe(text: str) -> Any:
    """Text that is already HTML: a picture drawn by `svg`, or a file of the templates folder."""
    from markupsafe import Markup

    return Markup(text)


def _source_hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"


def _gain(group: LayerGroup) -> str:
    if group.predicted_gain is None:
        return "changed" if group.deviates else "default"
    return formatting.format_loss_change(group.predicted_gain)


def _known(value: float | None) -> float | str:
    return "" if value is None else value


def _rows(groups: Sequence[LayerGroup], swatches: dict[str, str]) -> list[dict[str, Any]]:
    rows = []
    why = {label: index for index, change in enumerate(changes(groups), start=1) for label in change.labels}
    for group in groups:
        config = group.config
        rows.append(
            {
                "label": group.label,
                "changed": group.deviates,
                "why": why.get(group.label),
                "role": wording.ROLE_TITLES.get(group.role, group.role),
                "count": len(group.members),
                "shapes": formatting.format_shapes(group.shapes),
                "num_parameters": group.num_parameters,
                "parameters": formatting.format_count(group.num_parameters),
                "optimizer": wording.title(config),
                "swatch": swatches[wording.title(config)],
                "settings": wording.settings(config),
                "lr": config.lr,
                "rate": formatting.format_number(config.lr),
                "relative": "" if config.relative_lr is None else wording.relative_rate(config),
                "gain": _gain(group),
                "gain_value": _known(group.predicted_gain),
                "interval": (
                    ""
                    if group.predicted_gain_interval is None
                    else formatting.format_interval(group.predicted_gain_interval)
                ),
                "confidence": formatting.format_share(group.confidence),
                "confidence_value": _known(group.confidence),
                "runner_up": wording.describe_runner_up(group),
            }
        )
    return rows


def _reasons(groups: Sequence[LayerGroup]) -> list[dict[str, Any]]:
    return [
        {
            "labels": change.shown[0],
            "more": change.shown[1],
            "config": change.config,
            "gain": change.gain,
            "texts": change.reasons,
            "evidence": _evidence(change.evidence),
        }
        for change in changes(groups)
    ]


def _evidence(lines: Iterable[wording.EvidenceLine]) -> list[tuple[dict[str, Any], Any]]:
    """Each line's cells, and the strip that shows its place among the recorded tasks."""
    return [
        (
            {
                "feature": line.feature,
                "description": line.description,
                "value": line.value,
                "position": line.position,
                "moved": formatting.format_loss_change(line.contribution),
            },
            _safe(charts.percentile_strip(line)),
        )
        for line in lines
    ]


def _kept(content: Recommendation) -> list[dict[str, Any]]:
    return [
        {
            "label": group.label,
            "reason": group.reason,
            "closest": group.closest,
            "evidence": _evidence(group.evidence),
        }
        for group in kept_groups(content)
    ]


def _tensors(content: Recommendation) -> list[dict[str, Any]]:
    return [
        {
            "name": layer.name,
            "changed": layer.deviates,
            "shape": formatting.format_shapes([layer.shape]),
            "num_parameters": layer.num_parameters,
            "parameters": formatting.format_count(layer.num_parameters),
            "optimizer": wording.title(layer.config),
            "lr": layer.config.lr,
            "rate": formatting.format_number(layer.config.lr),
            "gain": formatting.format_loss_change(layer.predicted_gain),
            "gain_value": _known(layer.predicted_gain),
        }
        for layer in content.layers
    ]


def _gain_chart(content: Recommendation, groups: Sequence[LayerGroup]) -> Any:
    lines = [
        charts.IntervalRow(change.text, first.predicted_gain, first.predicted_gain_interval)
        for change in changes(groups)
        if (first := change.groups[0]).predicted_gain is not None
    ]
    lines.sort(key=lambda line: line.gain)
    if not lines:
        return None
    return _safe(charts.interval_chart("Predicted gain of every change", lines, wording.coverage(content)))


def _candidate_chart(content: Recommendation) -> Any:
    lines = [
        charts.IntervalRow(item.name, item.predicted_gain, item.predicted_gain_interval, item.chosen)
        for item in content.candidates
        if item.predicted_gain is not None
    ]
    if not lines:
        return None
    heading = "Predicted outcome of the plans that were weighed"
    return _safe(charts.interval_chart(heading, lines, wording.coverage(content)))


def _trade_offs(content: Recommendation) -> dict[str, Any] | None:
    """Picture, table and reading of the trade-off curve, None where there is nothing to trade."""
    points = trade_offs.shown_points(content)
    if not points:
        return None
    headings, rows = trade_offs.table(points)
    return {
        "chart": _safe(trade_offs.trade_off_chart(points)),
        "headings": headings,
        "rows": [(index, point.chosen, row) for index, (point, row) in enumerate(zip(points, rows, strict=True), 1)],
        "reading": trade_offs.reading(content),
        "timed": any(point.step_time_ratio is not None for point in points),
    }


def _code(content: Recommendation) -> tuple[Any, str]:
    """The plan's code as HTML, or "" and the reason why it cannot be written."""
    from markupsafe import escape

    try:
        source = content.to_python()
    except PlanError as error:
        return "", f"This plan cannot be written as plain PyTorch: {error}"
    return _safe("\n".join(str(escape(visible(line))) for line in source.split("\n"))), ""


def _training(content: Recommendation) -> tuple[Any, int]:
    """The loss curve, if there are losses to draw, and the number of steps that are shaded in it."""
    online = content.profile.get("mode") == "online"
    shaded = int(content.profile.get("warmup_steps") or 0) if online else 0
    if sum(loss is not None for _, loss in content.losses) < 2:
        return None, 0
    return _safe(charts.loss_curve(content.losses, content.events, shaded)), shaded


def to_html(recommendation: Recommendation) -> str:
    """The report as one HTML page that loads nothing from anywhere.

    Light and dark follow the reader's system; the tables sort and filter by mouse and keyboard; it
    prints. Without JavaScript everything but sorting and filtering is there.
    """
    content, groups = recommendation, recommendation.groups
    style = (_TEMPLATES / "report.css").read_text(encoding="utf-8")
    script = (_TEMPLATES / "report.js").read_text(encoding="utf-8")
    legend = [(_safe(swatch), name, count) for swatch, name, count in pictures.optimizer_legend(groups)]
    swatches = {name: swatch for swatch, name, _ in legend}
    table = pictures.group_statistics(groups, content.statistics)
    losses, shaded = _training(content)
    code, no_code = _code(content)
    template = _environment().get_template("report.html.jinja")
    return template.render(
        content=content,
        style=_safe(style),
        script=_safe(script),
        style_hash=_source_hash(style),
        script_hash=_source_hash(script),
        deviations=wording.deviations(content),
        num_groups=formatting.plural(len(groups), "group"),
        num_tensors=formatting.plural(len(content.layers), "tensor"),
        reading=wording.reading(content),
        costs=wording.costs(content),
        profiling=wording.profiling(content),
        legend=legend,
        rows=_rows(groups, swatches),
        strip=_safe(pictures.layer_strip(groups)),
        reasons=_reasons(groups),
        kept=_kept(content),
        gains=_gain_chart(content, groups),
        candidates=_candidate_chart(content),
        trade_offs=_trade_offs(content),
        heatmap=_safe(pictures.statistics_heatmap(groups, content.statistics)) if table else None,
        statistics_names=list(table),
        statistics_rows=[
            (group.label, [formatting.format_number(row[index]) for row in table.values()])
            for index, group in enumerate(groups)
        ],
        nearest=[(task, formatting.format_number(task.distance)) for task in content.nearest_tasks],
        race_headings=RACE_HEADINGS,
        race_rows=race_rows(content),
        race_sentence=race_sentence(content),
        losses=losses,
        shaded=shaded,
        tensors=_tensors(content),
        code=code,
        no_code=no_code,
    )


def to_notebook(recommendation: Recommendation) -> str:
    """The headline, the strip and the table as a fragment without script, for a notebook cell."""
    content, groups = recommendation, recommendation.groups
    legend = {name: _safe(swatch) for swatch, name, _ in pictures.optimizer_legend(groups)}
    template = _environment().get_template("notebook.html.jinja")
    return template.render(
        content=content,
        deviations=wording.deviations(content),
        rows=_rows(groups, legend),
        legend=legend,
        strip=_safe(pictures.layer_strip(groups)),
    )
