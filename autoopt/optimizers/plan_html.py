"""An optimizer plan as an HTML fragment for a notebook cell: one row for each distinct configuration."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from autoopt.optimizers.catalog import get

if TYPE_CHECKING:
    from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan

_CELL = "text-align: left; padding-right: 12px"
_MAX_NAMES = 4  # parameter names of a configuration that are shown at once
_HEADINGS = ("Optimizer", "Rate", "x reference", "Other settings", "Tensors")


def plan_to_html(plan: OptimizerPlan) -> str:
    """The plan as a table; names of parameters are free text and show as text.

    Args:
        plan: What is shown.
    """
    alike: dict[str, tuple[OptimizerConfig, list[str]]] = {}
    for name, config in plan.layers.items():
        alike.setdefault(repr(config), (config, []))[1].append(name)
    schedule = plan.schedule
    steps = "" if schedule.total_steps is None else f" over {schedule.total_steps:,} steps"
    warmup = f", {schedule.warmup_steps:,} of warm-up" if schedule.warmup_steps else ""
    head = "".join(f'<th scope="col" style="{_CELL}">{text}</th>' for text in _HEADINGS)
    rows = "".join(_row(config, names) for config, names in alike.values())
    tensors = "1 tensor" if len(plan.layers) == 1 else f"{len(plan.layers):,} tensors"
    return (
        f"<p><strong>Optimizer plan of {tensors}</strong>; {_text(schedule.shape)} rate{steps}{warmup}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
    )


def _row(config: OptimizerConfig, names: Sequence[str]) -> str:
    relative = "-" if config.relative_lr is None else f"{config.relative_lr:.3g}"
    others = ", ".join(f"{key} {_value(value)}" for key, value in config.hyperparameters.items() if key != "lr")
    cells = (get(config.optimizer).title, f"{config.lr:.3g}", relative, others or "-")
    texts = "".join(f'<td style="{_CELL}">{_text(cell)}</td>' for cell in cells)
    return f'<tr>{texts}<td style="{_CELL}">{_names(names)}</td></tr>'


def _names(names: Sequence[str]) -> str:
    """The names as code; those that are too many for a glance are behind a click."""
    codes = [f"<code>{_text(name)}</code>" for name in names]
    if len(codes) <= _MAX_NAMES:
        return "<br>".join(codes)
    return f"<details><summary>{len(codes):,}, from {codes[0]} to {codes[-1]}</summary>{'<br>'.join(codes)}</details>"


def _value(value: Any) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(_value, value))})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _text(value: object) -> str:
    """The text with markup and invisible characters made harmless."""
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(value))
    return html.escape(shown)
