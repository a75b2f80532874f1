"""What was recommended for a model and why: the one content that every report format is made from."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from autoopt.errors import PlanError
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.report import formatting, wording
from autoopt.report.content import (
    Candidate,
    Event,
    Evidence,
    LayerRecommendation,
    NearestTask,
    RaceRun,
    ReportError,
    TradeOff,
    number,
    plain,
)
from autoopt.report.grouping import LayerGroup, group_layers
from autoopt.report.training import training_events

RECOMMENDATION_SCHEMA_VERSION = 1

_SEQUENCES = (
    *("layers", "abstained_groups", "nearest_tasks", "warnings"),
    *("counterfactuals", "events", "candidates", "trade_offs", "race"),
)
_RECORDS = {
    "nearest_tasks": NearestTask,
    "events": Event,
    "candidates": Candidate,
    "trade_offs": TradeOff,
    "race": RaceRun,
}


@dataclass(frozen=True, repr=False)
class Recommendation:
    """An optimizer plan with its reasons, its uncertainty and its costs.

    The plan is what is applied; everything else says why. Numbers that are not finite are stored as
    None. In a notebook the object shows as a table; `print` writes the terminal report.

    Attributes:
        plan: The recommended plan.
        layers: One entry for each of the plan's parameters.
        abstained: True where the evidence was too thin and the calibrated default was kept.
        abstained_groups: Role groups whose default was kept for that reason.
        expected: Predicted outcome of the whole plan: `"time_to_target"`, `"low"`, `"high"` in
            multiples of the steps that tuned AdamW needs to its own best loss.
        nearest_tasks: The recorded tasks most like this model, the nearest first.
        warnings: What the reader has to know before trusting the plan, one sentence each.
        memory_bytes: Bytes of optimizer state of the plan, once every parameter had a gradient.
        adamw_memory_bytes: Bytes of state of AdamW on the same parameters.
        step_time_ratio: Seconds of a training step over those with AdamW.
        profile: How the statistics were taken: `"warmup_steps"`, `"seconds"`,
            `"num_nonfinite_steps"`, `"mode"` (`"online"`, `"aside"` or `"checkpoint"`), `"not_measured"`
            (what the selector looks at and the run did not tell, with the reason), and in `report()`
            `"snapshot_bytes"` (memory of the guard's snapshots).
        provenance: Versions, artifact hash, seed.
        counterfactuals: What would have changed the choice, one sentence each.
        events: What happened in training so far.
        interval_coverage: Nominal coverage of every predicted interval, such as 0.8.
        statistics: Parameter name -> statistic -> value, for the heat map.
        candidates: Whole plans that were weighed.
        race: The changes that ran in a race of short runs, the best prediction first.
        losses: `(step, training loss)` recorded so far.
        objective: What the choice was made for: `"loss"`, `"time"` or `"memory"`.
        max_state_bytes: Bytes of optimizer state that it was to stay under, or None.
        trade_offs: The plans that no other one beats in loss, time and memory, the leanest first; the
            recommended one and the calibrated default are always among them.
        horizon_factor: Factor that comes of the run's length, on the rates of matrices, convolutions and
            heads that no normalisation stands next to: 1 at 400 steps, and where the length is unknown.
        schema_version: Version of the JSON form.
    """

    plan: OptimizerPlan
    layers: tuple[LayerRecommendation, ...]
    abstained: bool = False
    abstained_groups: tuple[str, ...] = ()
    expected: dict[str, Any] | None = None
    nearest_tasks: tuple[NearestTask, ...] = ()
    warnings: tuple[str, ...] = ()
    memory_bytes: int = 0
    adamw_memory_bytes: int = 0
    step_time_ratio: float | None = None
    profile: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    counterfactuals: tuple[str, ...] = ()
    events: tuple[Event, ...] = ()
    interval_coverage: float | None = None
    statistics: dict[str, dict[str, float | None]] = field(default_factory=dict)
    candidates: tuple[Candidate, ...] = ()
    race: tuple[RaceRun, ...] = ()
    losses: tuple[tuple[int, float | None], ...] = ()
    objective: str = "loss"
    max_state_bytes: int | None = None
    trade_offs: tuple[TradeOff, ...] = ()
    horizon_factor: float = 1.0
    schema_version: int = RECOMMENDATION_SCHEMA_VERSION

    def __post_init__(self) -> None:
        """Bring the content to the form that JSON gives back, and check it against the plan.

        Raises:
            ReportError: If the layers and the plan disagree, a layer deviates although `abstained`, or
                a statistic names no layer.
        """
        for name in _SEQUENCES:
            object.__setattr__(self, name, tuple(getattr(self, name)))
        for name in ("expected", "profile", "provenance", "statistics"):
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in ("step_time_ratio", "interval_coverage"):
            object.__setattr__(self, name, number(getattr(self, name)))
        object.__setattr__(self, "losses", tuple((int(step), number(loss)) for step, loss in self.losses))
        self._check_plan()

    def _check_plan(self) -> None:
        names = [layer.name for layer in self.layers]
        if len(set(names)) < len(names):
            repeated = next(name for index, name in enumerate(names) if name in names[:index])
            raise ReportError(f"layer {repeated!r} is recommended twice; every parameter gets one entry")
        missing = sorted(set(self.plan.layers) ^ set(names))
        if missing:
            side = "the plan" if missing[0] in names else "the recommended layers"
            raise ReportError(f"layer {missing[0]!r} is missing from {side}; both must name the same ones")
        for layer in self.layers:
            if layer.config != self.plan.layers[layer.name]:
                raise ReportError(f"layer {layer.name!r}: its configuration is not the plan's")
            if self.abstained and layer.deviates:
                raise ReportError(
                    f"layer {layer.name!r} deviates from the calibrated default although the recommendation "
                    "abstains; say which groups were left alone in abstained_groups instead"
                )
        unknown = sorted(set(self.statistics) - set(names))
        if unknown:
            raise ReportError(f"statistics are given for {unknown[0]!r}, which is no layer of the plan")

    @property
    def headline(self) -> str:
        """The recommendation in one sentence."""
        return wording.headline(self)

    @property
    def groups(self) -> tuple[LayerGroup, ...]:
        """The layers, those that repeat grouped together."""
        return group_layers(self.layers)

    def with_training(
        self,
        losses: Iterable[tuple[int, float | None]],
        guarded: Sequence[tuple[int, str]] = (),
        snapshot_bytes: int | None = None,
    ) -> Recommendation:
        """The recommendation with the course of the training: losses, the switch, and what was guarded against.

        Args:
            losses: `(step, training loss)`, in order.
            guarded: `(step, sentence)` for everything that the guard did, in order.
            snapshot_bytes: Memory of the guard's snapshots, None where there is no guard.
        """
        found = tuple(losses)
        events = (*self.events, *training_events(self, found, guarded))
        profile = self.profile if snapshot_bytes is None else {**self.profile, "snapshot_bytes": snapshot_bytes}
        return replace(self, losses=found, events=events, profile=profile)

    def summary(self) -> str:
        """A few lines of plain text: the headline, deviations, costs and warnings."""
        lines = [self.headline, wording.deviations(self)]
        lines += [f"{name}: {value}." for name, value in wording.costs(self)]
        lines += [text for text in (wording.profiling(self),) if text]
        if self.warnings:
            lines.append(f"Warnings: {'; '.join(map(formatting.visible, self.warnings))}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """The recommendation as JSON-compatible values, with stable keys."""
        value = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name not in ("plan", "layers", *_RECORDS)
        }
        value["headline"] = self.headline
        value["plan"] = self.plan.to_dict()
        for name in ("layers", *_RECORDS):
            value[name] = [asdict(item) for item in getattr(self, name)]
        return plain({key: value[key] for key in sorted(value)})

    def to_json(self, indent: int | None = None) -> str:
        """The recommendation as JSON text; `from_json` gives an equal one back."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Recommendation:
        """The recommendation that `to_dict` wrote.

        Raises:
            ReportError: If the value is no recommendation, damaged, or of another schema.
        """
        if not isinstance(value, Mapping) or "schema_version" not in value or "layers" not in value:
            raise ReportError("this is not a recommendation: it has no 'schema_version' and 'layers'")
        version = value["schema_version"]
        if version != RECOMMENDATION_SCHEMA_VERSION:
            raise ReportError(
                f"the recommendation has schema version {version}, this autoopt reads "
                f"{RECOMMENDATION_SCHEMA_VERSION}; use the autoopt release that wrote it"
            )
        # The headline is computed from the rest: a file cannot say one thing and plan another.
        fields = {key: item for key, item in value.items() if key != "headline"}
        try:
            fields["plan"] = OptimizerPlan.from_dict(fields["plan"])
            fields["layers"] = [_layer(item) for item in fields["layers"]]
            for name in ("trade_offs", "race"):
                fields.setdefault(name, [])  # files of earlier versions have none
            for name, kind in _RECORDS.items():
                fields[name] = [kind(**item) for item in fields[name]]
            return cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, ReportError | PlanError):
                raise
            raise ReportError(f"the recommendation is damaged: {error!r}") from error

    @classmethod
    def from_json(cls, text: str) -> Recommendation:
        """The recommendation in a JSON text.

        Raises:
            ReportError: If the text is not JSON, no recommendation, damaged, or of another schema.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ReportError(f"the recommendation is not JSON: {error}") from error
        return cls.from_dict(value)

    def to_python(self) -> str:
        """PyTorch code, needing no autoopt, that steps exactly as the plan does."""
        return self.plan.to_python()

    def to_text(self, width: int | None = None) -> str:
        """The terminal report as plain text without colours.

        Args:
            width: Columns to fill; the terminal's own, or 100 where there is none.
        """
        from autoopt.report.terminal import to_text

        return to_text(self, width)

    def to_markdown(self) -> str:
        """The report as GitHub-flavoured Markdown."""
        from autoopt.report.markdown import to_markdown

        return to_markdown(self)

    def to_html(self) -> str:
        """The report as one HTML page that loads nothing from anywhere."""
        from autoopt.report.html import to_html

        return to_html(self)

    def save(self, path: str | Path) -> Path:
        """Write the report to a file in the format of its suffix, and return the path.

        Args:
            path: Ends in `.html`, `.md`, `.json`, `.txt` or `.py`; its folder exists.

        Raises:
            ReportError: If the suffix is none of these.
        """
        writers = {
            ".html": self.to_html,
            ".json": lambda: self.to_json(indent=1),
            ".md": self.to_markdown,
            ".py": self.to_python,
            ".txt": self.to_text,
        }
        path = Path(path)
        if path.suffix.lower() not in writers:
            raise ReportError(f"cannot tell the format of {path.name!r} by its suffix; use one of {', '.join(writers)}")
        path.write_text(writers[path.suffix.lower()](), encoding="utf-8", newline="\n")
        return path

    def __repr__(self) -> str:
        """One line: the headline."""
        return f"<Recommendation: {self.headline}>"

    def __str__(self) -> str:
        """The terminal report."""
        return self.to_text()

    def __rich__(self) -> Any:
        """The terminal report as a rich renderable, which adapts to the width it is printed at."""
        from autoopt.report.terminal import TerminalReport

        return TerminalReport(self)

    def _repr_html_(self) -> str:
        """The headline, pictures and table for a notebook cell."""
        from autoopt.report.html import to_notebook

        return to_notebook(self)


def _layer(value: Mapping[str, Any]) -> LayerRecommendation:
    fields = dict(value)
    fields["config"] = OptimizerConfig(**fields["config"])
    if fields["runner_up"] is not None:
        fields["runner_up"] = OptimizerConfig(**fields["runner_up"])
    fields["evidence"] = [Evidence(**item) for item in fields["evidence"]]
    return LayerRecommendation(**fields)
