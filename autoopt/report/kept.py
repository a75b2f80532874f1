"""Why the calibrated default was kept: one entry for each role group and reason, not for each layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoopt.report.content import LayerRecommendation
from autoopt.report.formatting import format_loss_change, format_number, plural, visible
from autoopt.report.wording import GROUP_NOUNS, EvidenceLine, evidence_line, settings, title

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation


@dataclass(frozen=True)
class KeptGroup:
    """Layers of one role group that keep the calibrated default for one reason.

    Attributes:
        layers: The layers.
    """

    layers: tuple[LayerRecommendation, ...]

    @property
    def label(self) -> str:
        """Which layers these are: `hidden matrices (48 tensors)`."""
        group = self.layers[0].group
        noun = GROUP_NOUNS.get(group, ("", visible(group)))[1]
        return f"{noun} ({plural(len(self.layers), 'tensor')})"

    @property
    def reason(self) -> str:
        """Why the default was kept."""
        return self.layers[0].reason

    @property
    def closest(self) -> str:
        """The change that came closest, with its predicted change of the loss; `""` where there is none."""
        first = self.layers[0]
        if first.runner_up is None:
            return ""
        config = first.runner_up
        rate = format_number(config.lr)
        if config.relative_lr is not None:
            rate = f"{format_number(config.relative_lr)} x reference"
        extra = f", {settings(config)}" if settings(config) else ""
        gain = "" if first.runner_up_gain is None else f", loss {format_loss_change(first.runner_up_gain)}"
        return f"closest change: {title(config)} at {rate}{extra}{gain}"

    @property
    def evidence(self) -> tuple[EvidenceLine, ...]:
        """What moved the prediction of the closest change, the strongest first."""
        return tuple(evidence_line([item]) for item in self.layers[0].evidence)


def kept_groups(recommendation: Recommendation) -> tuple[KeptGroup, ...]:
    """The role groups that keep the default, with the reason; none where no reasons are known."""
    alike: dict[tuple[str, str], list[LayerRecommendation]] = {}
    for layer in _reasoned(recommendation):
        alike.setdefault((layer.group, layer.reason), []).append(layer)
    return tuple(KeptGroup(tuple(layers)) for layers in alike.values())


def _reasoned(recommendation: Recommendation) -> Sequence[LayerRecommendation]:
    if recommendation.profile.get("mode") == "checkpoint":
        return ()
    return [layer for layer in recommendation.layers if not layer.deviates and layer.reason]
