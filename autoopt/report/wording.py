"""The sentences of a recommendation, the same in every format."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoopt.optimizers.catalog import get
from autoopt.optimizers.plan import OptimizerConfig
from autoopt.optimizers.schedule import Schedule
from autoopt.report.content import Evidence, LayerRecommendation
from autoopt.report.formatting import (
    UNKNOWN,
    format_bytes,
    format_loss_change,
    format_number,
    plural,
    visible,
)
from autoopt.report.grouping import LayerGroup

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation

_MAX_NAMED = 3  # optimizers that a headline can name before nobody listens any more

ROLE_TITLES: dict[str, str] = {
    "embedding": "embedding table",
    "tied": "tied embedding and output",
    "matrix": "hidden matrix",
    "qkv": "fused QKV matrix",
    "recurrent": "recurrent matrix",
    "conv": "convolution",
    "depthwise": "depthwise convolution",
    "head": "output layer",
    "norm": "norm",
    "bias": "bias",
    "bare": "bare parameter",
}
"""Role of a parameter -> the words for it."""

GROUP_NOUNS: dict[str, tuple[str, str]] = {
    "embedding": ("embedding table", "embedding tables"),
    "matrix": ("hidden matrix", "hidden matrices"),
    "conv": ("convolution", "convolutions"),
    "head": ("output layer", "output layers"),
    "vector": ("vector", "vectors"),
}
"""Role group -> the words for one and for several of its tensors."""


def title(config: OptimizerConfig) -> str:
    """The optimizer's name as its authors write it."""
    return get(config.optimizer).title


def _setting(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, int | float):
        return format_number(value)
    if isinstance(value, list | tuple):
        return f"({', '.join(_setting(item) for item in value)})"
    return visible(value)


def settings(config: OptimizerConfig) -> str:
    """The hyper-parameters that the plan sets besides the rate: `betas (0.9, 0.99), weight_decay 0.1`."""
    return ", ".join(
        f"{visible(name)} {_setting(value)}" for name, value in config.hyperparameters.items() if name != "lr"
    )


def relative_rate(config: OptimizerConfig) -> str:
    """The rate against the family's reference for the tensor's shape: `0.8 x reference`."""
    return UNKNOWN if config.relative_lr is None else f"{format_number(config.relative_lr)} x reference"


def describe_config(config: OptimizerConfig) -> str:
    """A configuration in words: `AdamW at 0.004`."""
    return f"{title(config)} at {format_number(config.lr)}"


def describe_runner_up(group: LayerGroup) -> str:
    """The configuration that came second, with its predicted change of the loss."""
    if group.runner_up is None:
        return UNKNOWN
    config, gain = group.runner_up
    return describe_config(config) + ("" if gain is None else f" ({format_loss_change(gain)})")


def describe_schedule(schedule: Schedule) -> str:
    """The schedule in words: `cosine decay over 1,000 steps after 50 of linear warm-up`."""
    text = "constant rate" if schedule.shape == "constant" else f"{schedule.shape} decay"
    if schedule.total_steps is not None:
        text += f" over {schedule.total_steps:,} steps"
    if schedule.warmup_steps:
        text += f" after {schedule.warmup_steps:,} of linear warm-up"
    return text


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _nouns(counts: dict[tuple[str, bool], int]) -> str:
    """Numbers of tensors by kind, in words; only their sum from the third kind on."""
    if len(counts) > 2:
        return plural(sum(counts.values()), "tensor")
    nouns = []
    for (group, sparse), count in counts.items():
        noun = GROUP_NOUNS.get(group, ("tensor", "tensors"))[count != 1]
        nouns.append(f"{count} {'sparse ' if sparse else ''}{noun}")
    return _join(nouns)


def placement(layers: Sequence[LayerRecommendation]) -> str:
    """Which optimizer is on what, counted in tensors, as a user would say it aloud."""
    kinds: dict[str, dict[tuple[str, bool], int]] = {}
    for layer in layers:
        counts = kinds.setdefault(title(layer.config), {})
        kind = (layer.group, layer.sparse and layer.group == "embedding")
        counts[kind] = counts.get(kind, 0) + 1
    if not kinds:
        return "no trainable parameters"
    if len(kinds) == 1:
        name = next(iter(kinds))
        return f"{name} on all {len(layers):,} tensors" if len(layers) > 1 else f"{name} on the only tensor"
    named = sorted(kinds, key=lambda name: -sum(kinds[name].values()))
    # Who has the most tensors of several kinds comes last: "on the remaining" saves a list of kinds.
    mixed = max(named, key=lambda name: (len(kinds[name]) > 1, sum(kinds[name].values())))
    rest = [mixed] if len(kinds[mixed]) > 1 else []
    named = [name for name in named if name not in rest]
    if len(named) > _MAX_NAMED:
        named, rest = named[:_MAX_NAMED], named[_MAX_NAMED:] + rest
    phrases = [f"{name} on {_nouns(kinds[name])}" for name in named]
    if rest:
        who = rest[0] if len(rest) == 1 else f"{len(rest)} other optimizers"
        count = sum(sum(kinds[name].values()) for name in rest)
        phrases.append(f"{who} on the remaining {plural(count, 'tensor')}")
    return ", ".join(phrases)


def expectation(expected: dict[str, Any] | None) -> str:
    """The predicted time to the target in words, `""` where there is none."""
    ratio = (expected or {}).get("time_to_target")
    if expected is None or ratio is None:
        return ""
    of_the = "of the steps" if ratio < 1 else "times the steps"
    text = f"expected to reach tuned AdamW's loss in {format_number(ratio)} {of_the}"
    low, high, basis = (expected.get(key) for key in ("low", "high", "basis"))
    notes = [] if low is None or high is None else [f"{format_number(low)} to {format_number(high)}"]
    notes += [f"as on {visible(basis)}"] if basis else []
    return f"{text} ({', '.join(notes)})" if notes else text


def headline(recommendation: Recommendation) -> str:
    """The recommendation in one sentence, in words that a user says aloud."""
    text = placement(recommendation.layers)
    if recommendation.abstained:
        text = f"calibrated default kept: {text}"
    expected = expectation(recommendation.expected)
    return f"{text}; {expected}" if expected else text


def deviations(recommendation: Recommendation) -> str:
    """How many tensors differ from the calibrated default, and which groups were left alone."""
    if recommendation.profile.get("mode") == "checkpoint":
        return "The plan in force when the checkpoint was taken; which tensors deviate is not told there."
    changed = sum(layer.deviates for layer in recommendation.layers)
    total = plural(len(recommendation.layers), "tensor")
    if recommendation.abstained:
        return "Nothing gave reason enough to leave the calibrated default, so it was kept everywhere."
    if changed:
        text = f"{changed:,} of {total} {'deviates' if changed == 1 else 'deviate'} from the calibrated default"
    else:
        text = f"The calibrated default is kept on {total}: no change was predicted to gain for certain"
    if recommendation.abstained_groups:
        nouns = [GROUP_NOUNS.get(g, ("", visible(g)))[1] for g in recommendation.abstained_groups]
        text += f"; evidence was too thin to judge {_join(nouns)}"
    return f"{text}."


def coverage(recommendation: Recommendation) -> str:
    """What the intervals promise, such as `80 % intervals`."""
    level = recommendation.interval_coverage
    return "intervals of unstated coverage" if level is None else f"{100 * level:g} % intervals"


def reading(recommendation: Recommendation) -> str:
    """How the predicted changes of the loss are to be read; `""` where there are none."""
    layers = recommendation.layers
    if all(layer.predicted_gain is None for layer in layers):
        return ""
    text = "Loss changes are predicted against the calibrated default"
    if any(layer.predicted_gain_interval is not None for layer in layers):
        text += f", with {coverage(recommendation)}"
    return f"{text}."


_AIMS = {
    "time": "the least predicted time: steps times the measured time of a step",
    "memory": "the least optimizer state at nearly the lowest expected loss",
}


def costs(recommendation: Recommendation) -> tuple[tuple[str, str], ...]:
    """What the plan costs against AdamW, as pairs of a name and a value in words."""
    ours, adamw = recommendation.memory_bytes, recommendation.adamw_memory_bytes
    memory = f"{format_bytes(ours)}, {ours:,} bytes"
    if adamw:
        memory += f" ({ours / adamw:.2g} times AdamW's {format_bytes(adamw)})"
    rows = [] if recommendation.objective == "loss" else [("Chosen for", _AIMS[recommendation.objective])]
    rows.append(("Optimizer state", memory))
    if recommendation.max_state_bytes is not None:
        rows.append(("Limit of the state", f"{recommendation.max_state_bytes:,} bytes"))
    if recommendation.step_time_ratio is not None:
        basis = (recommendation.expected or {}).get("basis")
        where = f", as on {visible(basis)}" if basis else ""
        rows.append(("Training step", f"{format_number(recommendation.step_time_ratio)} times AdamW's{where}"))
    if recommendation.profile.get("snapshot_bytes"):
        rows.append(("Guard", f"{format_bytes(recommendation.profile['snapshot_bytes'])} of snapshots to roll back to"))
    rows.append(("Schedule", describe_schedule(recommendation.plan.schedule)))
    if recommendation.plan.schedule.averaging is not None:
        rows.append(("Average of the weights", "evaluate within `with optimizer.averaged():`"))
    if recommendation.plan.schedule.clip_norm is not None:
        norm = format_number(recommendation.plan.schedule.clip_norm)
        rows.append(("Clipping", f"all gradients together to a norm of {norm}, within `optimizer.step()`"))
    if abs(recommendation.horizon_factor - 1.0) >= 0.005:
        factor = format_number(recommendation.horizon_factor)
        which = "matrices, convolutions and heads beside no normalisation"
        rows.append(("Length of the run", f"rates of {which} times {factor}"))
    small = small_weights(recommendation)
    if small:
        rows.append(("Small initial weights", small))
    return tuple(rows)


def small_weights(recommendation: Recommendation) -> str:
    """What follows from weights that start small, in one sentence; `""` where nothing does."""
    scaled, limited = [], []
    for layer in recommendation.layers:
        config = layer.config
        if layer.group == "embedding" and config.relative_lr and config.lr < 0.999 * config.relative_lr:
            scaled.append(config.lr / config.relative_lr)
        if config.hyperparameters.get("max_relative_update") is not None:
            limited.append(config.hyperparameters["max_relative_update"])
    parts = []
    if scaled:
        factors = " to ".join(dict.fromkeys(format_number(value) for value in (min(scaled), max(scaled))))
        parts.append(f"rates of {plural(len(scaled), 'embedding table')} times {factors}")
    if limited:
        parts.append(f"updates of {plural(len(limited), 'tensor')} limited to {100 * max(limited):g} % of its norm")
    return "; ".join(parts)


def profiling(recommendation: Recommendation) -> str:
    """How the statistics were taken, in one sentence; `""` where nothing is known."""
    profile = recommendation.profile
    if not profile:
        return ""
    if profile.get("mode") == "checkpoint":
        return f"Read from a checkpoint at step {profile['step']:,}, phase {visible(profile['phase'])}."
    steps = profile.get("warmup_steps")
    text = "Statistics" if steps is None else f"Statistics from {plural(steps, 'step')}"
    if profile.get("mode") == "online":
        text += " of the run itself"
    elif profile.get("mode") == "aside":
        text += " taken aside, before training"
    if profile.get("seconds") is not None:
        text += f", {format_number(profile['seconds'], 's')}"
    if (profile.get("num_ranks") or 1) > 1:
        text += f", over {profile['num_ranks']} ranks"
    if profile.get("start_passes") and profile.get("start_seconds") is not None:
        passes = f"{profile['start_passes']} passes before the first step"
        text += f"; {passes} took {format_number(profile['start_seconds'], 's')}"
    skipped = profile.get("num_nonfinite_steps")
    if skipped:
        text += f"; {plural(skipped, 'step')} with non-finite gradients skipped"
    by_reason: dict[str, list[str]] = {}
    for name, reason in (profile.get("not_measured") or {}).items():
        by_reason.setdefault(visible(reason), []).append(visible(name))
    for reason, names in by_reason.items():
        text += f"; not measured: {_join(names)} ({reason})"
    return f"{text}."


@dataclass(frozen=True)
class EvidenceLine:
    """One feature's evidence over the members of a group.

    Attributes:
        feature: Name of the feature.
        description: What it measures.
        value: Its value, or the range of values, with the unit.
        percentile: Median percentile of the members among the recorded tasks.
        percentiles: Lowest and highest percentile.
        contribution: Mean contribution to the predicted change of log loss.
    """

    feature: str
    description: str
    value: str
    percentile: float | None
    percentiles: tuple[float, float] | None
    contribution: float | None

    @property
    def position(self) -> str:
        """Where the value lies among the recorded tasks, in words."""
        if self.percentile is None or self.percentiles is None:
            return ""
        low, high = (round(end) for end in self.percentiles)
        if high == 0:
            return "lower than in all recorded tasks"
        if low == 100:
            return "as high as in any recorded task"
        if high - low < 1:
            return f"higher than {round(self.percentile)} % of the recorded tasks"
        return f"higher than {low} to {high} % of the recorded tasks"

    @property
    def text(self) -> str:
        """The evidence in one clause."""
        words = f"{visible(self.feature)} {self.value}"
        return f"{words}, {self.position}" if self.position else words


def evidence_line(items: Sequence[Evidence]) -> EvidenceLine:
    """One line for the evidence that one feature gave on the members of a group."""
    first = items[0]
    values = [item.value for item in items if item.value is not None]
    text = "not measured"
    if values:
        low, high = format_number(min(values)), format_number(max(values))
        text = low if low == high else f"{low} to {high}"
        text += f" {visible(first.unit)}" if first.unit else ""
    ranks = [item.percentile for item in items if item.percentile is not None]
    moved = [item.contribution for item in items if item.contribution is not None]
    return EvidenceLine(
        feature=first.feature,
        description=first.description,
        value=text,
        percentile=statistics.median(ranks) if ranks else None,
        percentiles=(min(ranks), max(ranks)) if ranks else None,
        contribution=statistics.fmean(moved) if moved else None,
    )
