"""The words and numbers of a recommendation, the same in every format."""

from __future__ import annotations

import math
import statistics
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from autoopt.optimizers.catalog import get
from autoopt.optimizers.plan import OptimizerConfig
from autoopt.optimizers.schedule import Schedule
from autoopt.report.content import Evidence, LayerRecommendation
from autoopt.report.grouping import LayerGroup

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation

UNKNOWN = "-"

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

# Controls move a terminal's cursor, format characters reorder text, lone surrogates cannot be encoded.
_HIDDEN = {"Cc", "Cf", "Cs", "Zl", "Zp"}


def visible(text: object) -> str:
    r"""The text with control, formatting and unencodable characters written as escapes.

    Module names are free text: a newline or a terminal escape in one must not act as such.

    >>> print(visible("a\nb\x1b[31m"))
    a\nb\x1b[31m
    """
    return "".join(
        repr(character)[1:-1] if unicodedata.category(character) in _HIDDEN else character
        for character in str(text)
    )


def shorten(text: str, length: int) -> str:
    """The text, cut in its middle where it is longer than `length` characters."""
    if len(text) <= length:
        return text
    tail = (length - 1) // 2
    return f"{text[: length - 1 - tail]}…{text[len(text) - tail :]}"


def format_number(value: float | None, unit: str = "") -> str:
    """A number to three significant digits, with its unit.

    >>> [format_number(v) for v in (0.02, 0.0003, 1234.0, 123456.0, 0.0, None)]
    ['0.02', '3e-4', '1234', '1.23e5', '0', '-']
    """
    if value is None or not math.isfinite(value):
        return UNKNOWN
    size = abs(value)
    if value == 0:
        text = "0"
    elif 1e-3 <= size < 1e3:
        text = f"{value:.3g}"
        text = f"{value:.0f}" if "e" in text else text
    elif 1e3 <= size < 1e4:
        text = f"{value:.0f}"
    else:
        mantissa, _, exponent = f"{value:.3g}".partition("e")
        if not exponent:
            mantissa, _, exponent = f"{value:.2e}".partition("e")
        if "." in mantissa:
            mantissa = mantissa.rstrip("0").rstrip(".")
        text = f"{mantissa}e{int(exponent)}"
    return f"{text} {unit}" if unit else text


def format_count(count: int) -> str:
    """A count with thousands separators, shortened from a million on.

    >>> [format_count(n) for n in (512, 12_345, 7_087_872, 1_500_000_000)]
    ['512', '12,345', '7.09 M', '1.5 G']
    """
    if count < 1_000_000:
        return f"{count:,}"
    scale, suffix = (1e6, "M") if count < 1_000_000_000 else (1e9, "G")
    return f"{count / scale:.3g} {suffix}"


def format_bytes(count: int) -> str:
    """A number of bytes in MiB (2**20 bytes), three significant digits.

    >>> [format_bytes(n) for n in (1_000, 12_345_678, 5_000_000_000)]
    ['0.000954 MiB', '11.8 MiB', '4,768 MiB']
    """
    size = count / 2**20
    return f"{size:,.0f} MiB" if size >= 1000 else f"{size:.3g} MiB"


def format_loss_change(gain: float | None) -> str:
    """A change of log loss as the change of the loss in per cent.

    >>> [format_loss_change(g) for g in (-0.073, 0.5, -0.69, None)]
    ['-7.0 %', '+65 %', '-50 %', '-']
    """
    if gain is None:
        return UNKNOWN
    percent = 100 * math.expm1(min(gain, 20.0))
    return f"{percent:+.1f} %" if abs(percent) < 9.95 else f"{percent:+,.0f} %"


def format_interval(ends: tuple[float, float] | None) -> str:
    """An interval of changes of log loss as changes of the loss: `-12 % to -1.5 %`."""
    return UNKNOWN if ends is None else f"{format_loss_change(ends[0])} to {format_loss_change(ends[1])}"


def format_share(probability: float | None) -> str:
    """A probability in per cent."""
    return UNKNOWN if probability is None else f"{100 * probability:.0f} %"


def format_shapes(shapes: Sequence[tuple[int, ...]]) -> str:
    """Shapes as text: `768x2304`, more than two of them as the first and the number of others."""
    texts = ["x".join(map(str, shape)) or "scalar" for shape in shapes]
    return ", ".join(texts) if len(texts) <= 2 else f"{texts[0]} and {len(texts) - 1} other shapes"


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


def placement(layers: Sequence[LayerRecommendation]) -> str:
    """Which optimizer is on what, counted in tensors, as a user would say it aloud."""
    if not layers:
        return "no trainable parameters"
    kinds: dict[str, dict[tuple[str, bool], int]] = {}
    for layer in layers:
        counts = kinds.setdefault(title(layer.config), {})
        kind = (layer.group, layer.sparse and layer.group == "embedding")
        counts[kind] = counts.get(kind, 0) + 1
    if len(kinds) == 1:
        return f"{next(iter(kinds))} on all {len(layers)} tensors"
    # Who has the most tensors gets "the remaining", if that saves a list of kinds.
    rest = max(kinds, key=lambda name: (len(kinds[name]) > 1, sum(kinds[name].values())))
    phrases = []
    for name, counts in sorted(kinds.items(), key=lambda item: -sum(item[1].values())):
        if name == rest and len(counts) > 1:
            continue
        nouns = []
        for (group, sparse), count in counts.items():
            noun = GROUP_NOUNS.get(group, ("tensor", "tensors"))[count != 1]
            nouns.append(f"{count} {'sparse ' if sparse else ''}{noun}")
        phrases.append(f"{name} on {_join(nouns)}")
    if len(kinds[rest]) > 1:
        count = sum(kinds[rest].values())
        phrases.append(f"{rest} on the remaining {count} tensors" if count > 1 else f"{rest} on the rest")
    return ", ".join(phrases)


def expectation(expected: dict[str, Any] | None) -> str:
    """The predicted time to the target in words, `""` where there is none."""
    ratio = (expected or {}).get("time_to_target")
    if expected is None or ratio is None:
        return ""
    text = f"expected to reach tuned AdamW's loss in {format_number(ratio)} of the steps"
    low, high = expected.get("low"), expected.get("high")
    if low is not None and high is not None:
        text += f" ({format_number(low)} to {format_number(high)})"
    return text


def headline(recommendation: Recommendation) -> str:
    """The recommendation in one sentence, in words that a user says aloud."""
    text = placement(recommendation.layers)
    if recommendation.abstained:
        text = f"calibrated default kept: {text}"
    expected = expectation(recommendation.expected)
    return f"{text}; {expected}" if expected else text


def deviations(recommendation: Recommendation) -> str:
    """How many tensors differ from the calibrated default, and which groups were left alone."""
    changed = sum(layer.deviates for layer in recommendation.layers)
    total = len(recommendation.layers)
    if recommendation.abstained:
        return "The evidence was too thin to leave the calibrated default, so it was kept everywhere."
    text = (
        f"{changed} of {total} tensors deviate from the calibrated default"
        if changed
        else f"All {total} tensors keep the calibrated default"
    )
    if recommendation.abstained_groups:
        nouns = [GROUP_NOUNS.get(g, ("", visible(g)))[1] for g in recommendation.abstained_groups]
        text += f"; evidence was too thin to judge {_join(nouns)}"
    return f"{text}."


def coverage(recommendation: Recommendation) -> str:
    """What the intervals promise: `80 % intervals`, or just `intervals` where that is not known."""
    level = recommendation.interval_coverage
    return "intervals of unstated coverage" if level is None else f"{100 * level:g} % intervals"


def costs(recommendation: Recommendation) -> tuple[tuple[str, str], ...]:
    """What the plan costs against AdamW, as pairs of a name and a value in words."""
    ours, adamw = recommendation.memory_bytes, recommendation.adamw_memory_bytes
    memory = format_bytes(ours)
    if adamw:
        memory += f" ({ours / adamw:.2g} times AdamW's {format_bytes(adamw)})"
    rows = [("Optimizer state", memory)]
    if recommendation.step_time_ratio is not None:
        rows.append(("Training step", f"{format_number(recommendation.step_time_ratio)} times AdamW's"))
    rows.append(("Schedule", describe_schedule(recommendation.plan.schedule)))
    return tuple(rows)


def profiling(recommendation: Recommendation) -> str:
    """How the statistics were taken, in one sentence; `""` where nothing is known."""
    profile = recommendation.profile
    if not profile:
        return ""
    steps = profile.get("warmup_steps")
    text = "Statistics" if steps is None else f"Statistics from {steps:,} steps"
    if profile.get("mode") == "online":
        text += " of the run itself"
    elif profile.get("mode") == "aside":
        text += " taken aside, before training"
    if profile.get("seconds") is not None:
        text += f", {format_number(profile['seconds'], 's')}"
    skipped = profile.get("num_nonfinite_steps")
    if skipped:
        text += f"; {skipped:,} steps with non-finite gradients were skipped"
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
