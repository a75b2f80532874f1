"""A selector whose choice was made beforehand, so that `select` can be run and measured with it.

The strict protocol judges a task by a selector that was fitted without its family and its data. Its
choice is made once, from the task's recorded meta-features; the run that scores it goes through
`select` as a user's does, with the same statistics and the same switch, and ends with that choice.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from autoopt.errors import PlanError
from autoopt.meta.artifact import CandidatePrediction, Predictor


@dataclass(frozen=True, eq=False)
class FixedChoice(Predictor):
    """A selector that is sure of one configuration for each role group, whatever it measures.

    Attributes:
        chosen: Role group -> canonical JSON of its configuration, where it deviates from the default.
    """

    chosen: dict[str, str] = field(default_factory=dict)

    @classmethod
    def between(cls, default: str, recipe: str) -> FixedChoice:
        """The selector that turns one recipe into another.

        Args:
            default: Canonical JSON of the recipe that warm-up trains with.
            recipe: Canonical JSON of the recipe that is chosen.

        Raises:
            PlanError: If the two differ in more than role groups: `select` changes nothing else.
        """
        before, after = json.loads(default), json.loads(recipe)
        for name in before.keys() | after.keys():
            if name != "groups" and before.get(name) != after.get(name):
                raise PlanError(f"select() changes role groups alone, but {name!r} differs between the two recipes")
        chosen = {
            group: json.dumps(config, sort_keys=True, separators=(",", ":"))
            for group, config in after["groups"].items()
            if config != before["groups"].get(group)
        }
        return cls(default=default, features=(), groups={}, margin=0.0, chosen=chosen)

    def rank(self, group: str, values: Mapping[str, float]) -> list[CandidatePrediction]:
        """The one configuration that is chosen for a role group, if any."""
        config = self.chosen.get(group)
        return [] if config is None else [CandidatePrediction(config, mean=-1.0, std=0.0, pessimistic=-1.0)]

    def is_trusted(self, group: str) -> bool:
        """True: what is chosen is applied."""
        return True

    def is_far(self, group: str, values: Mapping[str, float]) -> bool:
        """False: no features are looked at."""
        return False

    def contributions(self, group: str, values: Mapping[str, float], config: str) -> dict[str, float]:
        """Nothing: no feature had a part in it."""
        return {}

    def percentile(self, group: str, feature: str, value: float) -> float | None:
        """None: nothing recorded is compared with."""
        return None
