"""The online decision: what the warm-up saw, turned into a recommendation, by the selector's word.

`OnlineSelection` travels inside the optimizer, so it is plain data that pickles and copies.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from autoopt.architecture import Architecture, LayerInfo
from autoopt.decision import recommend_plan
from autoopt.features import Features, aggregate_by_group, extract
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.recipe import Recipe
from autoopt.optimizers.schedule import Schedule
from autoopt.statistics import warmup
from autoopt.statistics.warmup import WarmupStatistics


@dataclass
class OnlineSelection:
    """Decides once, after `warmup_steps` steps of the user's own training.

    Attributes:
        architecture: The model's description.
        warmup_steps: Steps of the profile.
        default: The recipe trained with until the decision, and kept where the selector abstains.
        schedule: The plan-wide schedule.
        predictor: `autoopt.meta.artifact.Predictor`, or None to keep the default.
        total_steps: Horizon of the run, or None.
        candidates: Catalog names that deviations may use, or None for all.
        seed: Seed of the sampled coordinates.
        mode: `"online"` or `"aside"`.
        facts: What is known of the run: `batch_size`, and the losses observed.
        warnings: What the report must say, collected so far.
        started: When the profile began (seconds since the epoch): the first training batch, or the
            making of this object where the model's `forward` is never called.
    """

    architecture: Architecture
    warmup_steps: int
    default: Recipe
    schedule: Schedule
    predictor: Any = None
    total_steps: int | None = None
    candidates: tuple[str, ...] | None = None
    seed: int = 0
    mode: str = "online"
    facts: dict[str, float] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.time)

    @cached_property
    def _by_name(self) -> dict[str, LayerInfo]:
        return {layer.name: layer for layer in self.architecture.layers}

    def layers(self) -> Mapping[str, LayerInfo]:
        """Description of every parameter by name."""
        return self._by_name

    def measure(self, optimizer: AutoOptimizer) -> WarmupStatistics:
        """The statistics that the optimizer's warm-up collected; one synchronisation."""
        entries = optimizer.warmup_entries()
        return warmup.summarize(
            [layer for layer, _, _ in entries],
            [param for _, param, _ in entries],
            [state for _, _, state in entries],
            task=self._task_facts(optimizer),
            seed=self.seed,
        )

    def features(self, statistics: WarmupStatistics) -> Features:
        """One row of meta-features for each role group of the model."""
        return aggregate_by_group(extract(self.architecture.layers, statistics))

    def decide(self, optimizer: AutoOptimizer) -> Any:
        """The recommendation for the steps to come."""
        begun = time.perf_counter()
        statistics = self.measure(optimizer)
        features = self.features(statistics)
        profile = {
            "mode": self.mode,
            "warmup_steps": self.warmup_steps,
            "num_nonfinite_steps": optimizer.num_nonfinite_steps,
            "seconds": time.time() - self.started,
        }
        recommendation = recommend_plan(
            self.architecture,
            self.default,
            self.schedule,
            predictor=self.predictor,
            features=features,
            statistics=statistics,
            candidates=self.candidates,
            warnings=self.warnings,
            profile=profile | {"decision_seconds": time.perf_counter() - begun},
            seed=self.seed,
        )
        return recommendation

    def _task_facts(self, optimizer: AutoOptimizer) -> dict[str, float]:
        facts = dict(self.facts)
        facts["num_nonfinite_steps"] = float(optimizer.num_nonfinite_steps)
        if self.total_steps is not None:
            facts["total_steps"] = float(self.total_steps)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        facts["dtype_bits"] = float(max(8 * param.element_size() for param in params))
        first, last = optimizer.observed_losses()
        if first is not None and last is not None:
            facts["loss_start"] = first
            if first != 0:
                facts["loss_drop"] = (first - last) / abs(first)
        return facts


class BatchSizeProbe:
    """A forward pre-hook that reads the batch size off the first training batch and removes itself.

    It is a plain object, so that a model saved whole before its first forward still pickles.

    Args:
        facts: Where the batch size is put.
        selection: Whose clock starts with the first training batch, or None.
    """

    def __init__(self, facts: dict[str, float], selection: OnlineSelection | None = None) -> None:
        self.facts = facts
        self.selection = selection
        self.handle: Any = None

    def __call__(self, module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Read the leading size of the first tensor among the inputs."""
        if not module.training:
            return
        size = leading_size((args, kwargs))
        if size is not None:
            self.facts["batch_size"] = float(size)
        if self.selection is not None:
            # What lies between select() and the first batch, such as loading data, is not profiling.
            self.selection.started = time.time()
        if self.handle is not None:
            self.handle.remove()
            self.handle = None


def leading_size(value: Any) -> int | None:
    """The size of dimension 0 of the first tensor with dimensions in nested inputs, or None."""
    if isinstance(value, torch.Tensor):
        return int(value.shape[0]) if value.ndim > 0 else None
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    for part in parts:
        size = leading_size(part)
        if size is not None:
            return size
    return None
