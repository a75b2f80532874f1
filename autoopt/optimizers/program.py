"""The part of a plan that one parameter group carries, as a string that checkpoints can hold.

The plan of a group lives in the group itself: pickling, deepcopy, `state_dict` and distributed
checkpoints keep groups and state and nothing else. Strings survive all of them.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache

from autoopt.errors import CheckpointError, PlanError
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.schedule import Schedule


@dataclass(frozen=True)
class Bucket:
    """Positions of a group's parameters that share one configuration."""

    config: OptimizerConfig
    positions: tuple[int, ...]
    everything: bool


@dataclass(frozen=True)
class Program:
    """A parsed group plan: names in the group's order, and buckets of equal configuration."""

    names: tuple[str, ...]
    buckets: tuple[Bucket, ...]
    schedule: Schedule
    _configs: tuple[OptimizerConfig, ...]

    def configs(self) -> dict[str, OptimizerConfig]:
        """Parameter name -> configuration, in the group's order."""
        return dict(zip(self.names, self._configs, strict=True))

    def rules(self) -> dict[str, str]:
        """Parameter name -> what is done to it, as text that is equal where the update is."""
        return {name: _rule(config) for name, config in self.configs().items()}


def encode(plan: OptimizerPlan, names: list[str]) -> str:
    """The group plan of the parameters called `names`, in that order.

    Raises:
        PlanError: If the plan has no configuration for a name.
    """
    for name in names:
        if name not in plan.layers:
            raise PlanError(
                f"the plan has no configuration for parameter {name!r}; add it with plan.with_layers() "
                "or build the plan from the same model"
            )
    part = OptimizerPlan({name: plan.layers[name] for name in names}, plan.schedule)
    return json.dumps(part.to_dict(), separators=(",", ":"))


@lru_cache(maxsize=256)
def parse(text: str) -> Program:
    """The program in a group plan.

    Raises:
        CheckpointError: If the text was not written by this version of autoopt.
    """
    try:
        plan = OptimizerPlan.from_json(text)
    except PlanError as error:
        raise CheckpointError(f"the parameter group's plan cannot be read: {error}") from error
    names = tuple(plan.layers)
    positions: dict[int, list[int]] = {}
    configs: dict[int, OptimizerConfig] = {}
    for position, config in enumerate(plan.layers.values()):
        positions.setdefault(id(config), []).append(position)
        configs[id(config)] = config
    buckets = tuple(Bucket(configs[key], tuple(where), len(where) == len(names)) for key, where in positions.items())
    return Program(names, buckets, plan.schedule, tuple(plan.layers.values()))


def _rule(config: OptimizerConfig) -> str:
    return json.dumps([config.optimizer, config.complete], sort_keys=True)
