"""What the guard saw and did: plain records that checkpoints, copies and reports hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

MAX_EVENTS = 100
"""Events kept at most: the first ones, which tell how a fault began, and a count of the rest."""


@dataclass(frozen=True)
class GuardEvent:
    """One thing that the guard did.

    Attributes:
        step: 0-based step at which it acted.
        groups: Role groups that it acted on; empty for the whole model.
        seen: What was seen, in words.
        action: `"skip"`, `"roll back"`, `"runner-up"`, `"default"`, `"default everywhere"`, `"halve"`,
            `"restore"` or `"accept"`.
        done: What was done, in words.
        num_steps: Steps that it spans, for steps that were skipped in a row.
    """

    step: int
    groups: tuple[str, ...]
    seen: str
    action: str
    done: str
    num_steps: int = 1

    def __post_init__(self) -> None:
        """Turn the groups that JSON gives back as a list into a tuple."""
        object.__setattr__(self, "groups", tuple(self.groups))

    @property
    def message(self) -> str:
        """The event in one sentence."""
        return f"{self.seen}: {self.done}"

    def to_dict(self) -> dict[str, Any]:
        """The event as JSON-compatible values; `GuardEvent(**value)` gives an equal one back."""
        return {**asdict(self), "groups": list(self.groups)}


def from_dicts(values: list[Mapping[str, Any]]) -> list[GuardEvent]:
    """The events that `to_dict` wrote."""
    return [GuardEvent(**value) for value in values]
