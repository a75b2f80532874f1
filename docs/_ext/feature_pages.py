"""Markdown of the meta-features' page: a table for each kind, with ranges from the recorded tasks."""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from functools import cache
from pathlib import Path
from typing import Any

from links import linked, table

from autoopt import statistics
from autoopt.features import ARCHITECTURE, CONTEXT, EXPOSURE, FEATURES, STATISTICS, Feature

_COLLECTORS = (".activation", ".layer", ".warmup", ".over_ranks")


def _statistics_modules() -> tuple[str, ...]:
    """The modules of the package of statistics, those with one formula a function before those that collect."""
    found = [f"autoopt.statistics.{module.name}" for module in pkgutil.iter_modules(statistics.__path__)]
    return (*(n for n in found if not n.endswith(_COLLECTORS)), *(n for n in found if n.endswith(_COLLECTORS)))


FORMULAS = {
    ARCHITECTURE: ("autoopt.feature_values",),
    EXPOSURE: ("autoopt.feature_values",),
    STATISTICS: (*_statistics_modules(), "autoopt.feature_values"),
    CONTEXT: (),
}
"""Kind of a feature -> the modules whose functions compute it, the plainest formulas first."""

_OTHERWISE = {
    "rows_touched": "autoopt.statistics.layer.layer_statistics",
    "role_": "autoopt.feature_values.architecture_values",
    "measured_rate_": "autoopt.statistics.curvature.measure_curvature",
    "curvature_mean": "autoopt.statistics.curvature.hutchinson_traces",
}
"""Beginning of the names of values that no function spells out -> their function."""

TITLES = {
    ARCHITECTURE: ("What the layer and its model are", "Read from the modules; nothing is run."),
    STATISTICS: (
        "What its gradients did in warm-up",
        "From sampled blocks of the gradients of some of the first steps.",
    ),
    CONTEXT: ("What the run is", "From the arguments of `select`, the first batch and the first losses."),
    EXPOSURE: ("How much the run will show the layer", "From the three above."),
}


def feature_tables(folder: Path) -> str:
    """A section with a table for each kind of feature."""
    ranges = _ranges(folder / "features.parquet")
    parts = []
    for kind, (title, remark) in TITLES.items():
        rows = [
            [
                _named(feature),
                feature.description,
                "log" if feature.floor is not None else feature.unit,
                ranges.get(feature.name, "not yet"),
                linked(feature.source),
            ]
            for feature in FEATURES
            if feature.kind == kind
        ]
        header = ("column", "what it is", "unit", "recorded", "source")
        parts.append(f"## {title}\n\n{remark}\n\n:::{{container}} features\n\n{table(header, rows)}\n:::\n")
    return "\n".join(parts)


def formula_modules() -> str:
    """The docstrings of the modules that a feature's formula is in."""
    used = {formula_of(feature) for feature in FEATURES}
    modules = dict.fromkeys(name for names in FORMULAS.values() for name in names)
    shown = [name for name in modules if any(formula.startswith(f"{name}.") for formula in used)]
    blocks = [f".. automodule:: {name}\n   :members:\n   :member-order: bysource\n" for name in shown]
    return "```{eval-rst}\n" + "\n".join(blocks) + "```\n"


@cache
def _functions(module_name: str) -> tuple[tuple[str, str], ...]:
    """Name and source of each public function and method of a module."""
    module = importlib.import_module(module_name)
    own = {name: value for name, value in vars(module).items() if getattr(value, "__module__", "") == module_name}
    for owner in [value for value in own.values() if inspect.isclass(value)]:
        own |= {f"{owner.__name__}.{name}": value for name, value in vars(owner).items()}
    return tuple(
        (name, inspect.getsource(value))
        for name, value in own.items()
        if inspect.isfunction(value) and not re.search(r"(^|\.)_", name)
    )


def formula_of(feature: Feature) -> str:
    """Dotted name of the function that computes a feature, `""` for plain facts of the run.

    A function of the feature's name is its formula; else the one that sets the value under that name.
    """
    modules = FORMULAS[feature.kind]
    found = [(name, function, source) for name in modules for function, source in _functions(name)]
    for name, function, _ in found:
        if function == feature.key:
            return f"{name}.{function}"
    for name, function, source in found:
        if re.search(rf'"{feature.key}"(:|\] =)|\b{feature.key}=', source):
            return f"{name}.{function}"
    return next((name for start, name in _OTHERWISE.items() if feature.key.startswith(start)), "")


def _named(feature: Feature) -> str:
    """The feature's name, as a link to its formula where it has one."""
    name = formula_of(feature)
    return f"{{py:obj}}`{feature.name} <{name}>`" if name else f"`{feature.name}`"


def _ranges(path: Path) -> dict[str, str]:
    """Column -> 5 %, median and 95 % of its recorded values, before the logarithm."""
    import pandas as pd

    frame: Any = pd.read_parquet(path)
    found = {}
    for feature in FEATURES:
        if feature.name not in frame or frame[feature.name].notna().sum() == 0:
            continue
        values = frame[feature.name].quantile([0.05, 0.5, 0.95])
        shown = [math.exp(value) if feature.floor is not None else value for value in values]
        found[feature.name] = " · ".join(_short(value) for value in shown)
    return found


def _short(value: float) -> str:
    return f"{value:.0f}" if 100 <= abs(value) < 1e6 else f"{value:.2g}"
