"""Markdown of the optimizers' page: a section for each row of the catalog, with what was recorded of it."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any

from links import linked, table
from optimizer_wins import Comparison, change_words, comparisons, strongest

from autoopt.optimizers.catalog import ALL_GROUPS, CATALOG, OptimizerInfo, get
from autoopt.optimizers.recipe import calibrated_default

SHAPE = (1024, 1024)
"""Shape of the matrix whose optimizer state is quoted."""
MOST_FAMILIES = 5

_REFERENCES = {
    "adam": "64 over the fan-in on matrices, convolutions and heads, at most 1",
    "sign": "64 over the fan-in on matrices, convolutions and heads, at most 1",
    "sgd": "fan-out over fan-in on matrices, convolutions and heads, between 1/4 and 4",
    "spectral": "1: the update's spectral norm is fixed already",
    "constant": "1 on every shape",
}


@cache
def _recorded(folder: Path) -> tuple[Comparison, ...]:
    return tuple(strongest(comparisons(folder)))


def wins_summary(folder: Path) -> str:
    """A table of optimizers by role groups: tasks won, lost and recorded against the default."""
    defaults = {group: config.optimizer for group, config in calibrated_default().groups.items()}
    cells = {(c.optimizer, c.group): c for c in _recorded(folder) if not c.is_default}
    rows = []
    for info in CATALOG:
        row = []
        for group in ALL_GROUPS:
            c = cells.get((info.name, group))
            if defaults[group] == info.name:
                row.append("**default**")
            elif c is None:
                row.append("" if group in info.groups else "n/a")
            else:
                row.append(f"{c.better} won, {c.worse} lost of {c.num_tasks}")
        if any(cell not in ("", "n/a") for cell in row):
            rows.append([f"[{info.title}](#{_anchor(info)})", *row])
    return table(("optimizer", *ALL_GROUPS), rows)


def catalog_sections(folder: Path) -> str:
    """A section for each optimizer of the catalog."""
    return "\n".join(_section(info, [c for c in _recorded(folder) if c.optimizer == info.name]) for info in CATALOG)


def _section(info: OptimizerInfo, found: list[Comparison]) -> str:
    lines = [f"({_anchor(info)})=", f"## {info.title}", "", f"{info.description} {linked(info.paper)}.", ""]
    lines += [table(("property", "value"), _facts(info)), "", "### When it wins here", ""]
    lines[-2] = f"**When {info.title} wins here.** " + _verdict(info, found)
    if found:
        lines += ["", _wins_table(found)]
    return "\n".join(lines) + "\n"


def _facts(info: OptimizerInfo) -> list[list[str]]:
    paths = [f"fused on {' and '.join(info.fused)}"] if info.fused else []
    paths += ["foreach"] * info.foreach + ["capturable in CUDA graphs"] * info.capturable
    paths += ["traceable by torch.compile"] * info.traceable
    numel = info.state_numel(SHAPE, info.hyperparameters) / math.prod(SHAPE)
    gradients = {"both": "dense and sparse"}.get(info.gradients, info.gradients)
    if info.sparse_equivalent not in (None, info.name):
        gradients += f"; `{info.sparse_equivalent}` takes its place on sparse ones"
    settings = ", ".join(f"`{key}={value!r}`" for key, value in info.hyperparameters.items())
    return [
        ["name in plans", f"`{info.name}`"],
        ["implementation", f"`{info.factory.replace(':', '.')}`"],
        ["role groups", "all" if info.groups == ALL_GROUPS else ", ".join(info.groups)],
        ["gradients", gradients],
        ["state", f"{4 * numel:.3g} bytes for each element of a float32 matrix of 1024 x 1024"],
        ["fast paths", ", ".join(paths) or "none"],
        ["its rate is relative to", _REFERENCES[info.family]],
        ["settings and their defaults", settings],
    ]


def _verdict(info: OptimizerInfo, found: list[Comparison]) -> str:
    if info.gradients == "sparse":
        names = [other.title for other in CATALOG if other.sparse_equivalent == info.name and other != info]
        return (
            f"It stands in wherever a plan names {_listed(names)} for an embedding with sparse gradients: what was "
            "recorded of those on such embeddings was recorded with it, and is counted under their names."
        )
    if not found:
        return (
            "Not known: no controlled change of a role group to it is recorded. A plan may name it, and "
            "`candidates` may restrict the choice to it."
        )
    words = []
    groups = [group for group, config in calibrated_default().groups.items() if config.optimizer == info.name]
    if groups:
        words.append(f"It is the calibrated default of the role groups {_listed(groups)}.")
    challenger = [c for c in found if not c.is_default]
    for verb, rows in (
        ("It won more tasks than it lost", [c for c in challenger if c.better > c.worse]),
        ("It lost more than it won", [c for c in challenger if c.better <= c.worse]),
    ):
        if rows:
            words.append(f"{verb} on {_listed(sorted({_held(c) for c in rows}))}.")
    return " ".join(words)


def _held(c: Comparison) -> str:
    return f"{c.group} (against {get(c.against['optimizer']).title})"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _wins_table(found: list[Comparison]) -> str:
    header = ("role group", "setting", "against", "won, lost of tasks:", "median change:", "where it won")
    rows = []
    for c in sorted(found, key=lambda c: (ALL_GROUPS.index(c.group), c.against["optimizer"])):
        rows.append(
            [
                c.group,
                _setting(c.config) + " (default)" * c.is_default,
                _setting(c.against) + " (default)" * (not c.is_default),
                f"{c.better}, {c.worse} of {c.num_tasks}",
                change_words(c.median),
                _families(c),
            ]
        )
    return ":::{container} wins\n\n" + table(header, rows) + "\n:::"


def _setting(config: dict[str, Any]) -> str:
    return f"{get(config['optimizer']).title} {config['lr']:g}"


def _families(c: Comparison) -> str:
    shown = [f"{name} {won}/{num}" for name, (won, num) in list(c.families.items())[:MOST_FAMILIES]]
    left = len(c.families) - len(shown)
    return ", ".join(shown) + (f" and {left} more" if left else "") or "none"


def _anchor(info: OptimizerInfo) -> str:
    return f"optimizer-{info.name}"
