"""What deviates from the calibrated default, one entry for each change, however many layers it is on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from autoopt.report.content import Evidence
from autoopt.report.formatting import format_loss_change, format_number, visible
from autoopt.report.grouping import LayerGroup
from autoopt.report.wording import EvidenceLine, describe_config, evidence_line, settings, title

_MAX_LABELS = 3  # groups of layers that are named before the rest is counted


@dataclass(frozen=True)
class Change:
    """One change of the default, for one reason, on one group of layers or several.

    Attributes:
        groups: The groups of layers, in the order of the model.
    """

    groups: tuple[LayerGroup, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The groups' names."""
        return tuple(group.label for group in self.groups)

    @property
    def config(self) -> str:
        """The new configuration in words; the rate against the reference where it differs between tensors."""
        first = self.groups[0].config
        if len({group.config.lr for group in self.groups}) == 1 or first.relative_lr is None:
            return describe_config(first)
        return f"{title(first)} at {format_number(first.relative_lr)} x reference"

    @property
    def settings(self) -> str:
        """The hyper-parameters that the plan sets besides the rate."""
        return settings(self.groups[0].config)

    @property
    def gain(self) -> str:
        """The predicted change of the loss, `""` where there is none."""
        gain = self.groups[0].predicted_gain
        return "" if gain is None else f"loss {format_loss_change(gain)}"

    @property
    def reasons(self) -> tuple[str, ...]:
        """The reasons, in words."""
        return self.groups[0].reasons

    @property
    def evidence(self) -> tuple[EvidenceLine, ...]:
        """What moved the prediction, the strongest first."""
        return tuple(evidence_line(items) for items in self.groups[0].evidence())

    @property
    def shown(self) -> tuple[tuple[str, ...], int]:
        """The first names, as many as one can take in, and how many more there are."""
        return self.labels[:_MAX_LABELS], max(len(self.labels) - _MAX_LABELS, 0)

    @property
    def text(self) -> str:
        """The layers and the new configuration, in one line."""
        labels, more = self.shown
        names = ", ".join(map(visible, labels)) + (f" and {more} more" if more else "")
        return f"{names}: {self.config}"


def changes(groups: Sequence[LayerGroup]) -> tuple[Change, ...]:
    """The changes among groups of layers; groups changed alike for the same reasons share one."""
    alike: dict[tuple[object, ...], list[LayerGroup]] = {}
    for group in groups:
        if group.deviates:
            alike.setdefault(_key(group), []).append(group)
    return tuple(Change(tuple(members)) for members in alike.values())


def _key(group: LayerGroup) -> tuple[object, ...]:
    config = group.config
    rate = config.lr if config.relative_lr is None else config.relative_lr
    evidence: tuple[tuple[Evidence, ...], ...] = tuple(tuple(dict.fromkeys(items)) for items in group.evidence())
    return (config.optimizer, rate, settings(config), group.group, group.reasons, group.predicted_gain, evidence)
