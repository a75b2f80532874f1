"""Recorded runs as the evaluation reads them: by task, by what was trained with, by seed."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.options import canonical, options_in, recorded_options, without
from autoopt.meta.trial import TrialStatus

if TYPE_CHECKING:
    from autoopt.meta.dataset import MetaDataset

MAX_EXCESS = 3.0
"""Largest log excess kept in size: twenty times the best loss is as bad as a run can be."""

CHOSEN_ROUNDS = ("strict-selection", "best-known")
"""Rounds whose plans were chosen for a task by its own outcomes or features: none is a plan for all tasks."""


@dataclass(frozen=True, eq=False)
class Run:
    """One training run, as far as the evaluation looks at it.

    Attributes:
        seed: Seed of the run.
        loss: Best validation loss within the budget; infinite for a run that diverged.
        steps: Steps at which validation was run.
        losses: Validation loss there, in float32.
        budget_steps: Steps of the whole run.
        best_step: Step of the best validation loss, -1 where there is none.
        diverged: Whether the run diverged.
        step_seconds: Median seconds of a training step.
        optimizer_seconds: Median seconds of the optimizer in it, 0 where that was not measured.
        selection_seconds: Seconds that choosing took beyond plain training.
        state_bytes: Bytes of optimizer state.
    """

    seed: int
    loss: float
    steps: NDArray[np.float64]
    losses: NDArray[np.float32]
    budget_steps: int
    best_step: int = -1
    diverged: bool = False
    step_seconds: float = 0.0
    optimizer_seconds: float = 0.0
    selection_seconds: float = 0.0
    state_bytes: int = 0

    def pace(self, other: Run) -> float:
        """The factor that turns this run's seconds into those that it would have taken beside `other`.

        Runs were recorded at different times beside other work. Forward and backward pass are the same
        computation in all runs of a task, so what they took says how fast the machine was just then.
        The factor is 1 where it was not measured.
        """
        own, others = (run.step_seconds - run.optimizer_seconds for run in (self, other))
        measured = min(self.optimizer_seconds, other.optimizer_seconds, own, others) > 0
        return others / own if measured else 1.0


Runs = Mapping[int, Run]
"""The runs of one plan on one task, by seed."""


@dataclass(frozen=True)
class TaskFacts:
    """What the evaluation needs to know of a task.

    Attributes:
        name: Name of the task.
        family: Architecture family.
        source: Data source.
        budget_steps: Steps of a run.
        groups: Role groups that the model has, and the options that change something on it
            (`autoopt.meta.options`); empty where no meta-features are recorded.
        evaluation_only: Whether nothing may ever be learned from the task.
    """

    name: str
    family: str
    source: str
    budget_steps: int
    groups: frozenset[str] = frozenset()
    evaluation_only: bool = False


@dataclass(frozen=True, eq=False)
class Recordings:
    """All runs of a meta-dataset, those that failed left out.

    Attributes:
        tasks: Facts by task name.
        whole_plans: Text of every plan that was recorded as a whole (no single change) -> its name.
        baselines: Text of every recorded baseline setting -> its name.
        runs: Task -> (mode, what the plan comes to on this task) -> runs by seed.
        names: What a plan comes to on a task -> its name where it was first recorded.
    """

    tasks: dict[str, TaskFacts]
    whole_plans: dict[str, str]
    baselines: dict[str, str]
    runs: dict[str, dict[tuple[str, str], dict[int, Run]]] = field(repr=False)
    names: dict[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, dataset: MetaDataset, evaluation_only: Iterable[str] = ()) -> Recordings:
        """The recordings of a meta-dataset.

        Args:
            dataset: Recorded trials and meta-features.
            evaluation_only: Names of the tasks that nothing may be learned from.
        """
        # pandas types what its methods return too loosely to be checked.
        trials: Any = dataset.trials
        features: Any = dataset.features
        rows = features.groupby("task", observed=True)["group"].unique()
        options = recorded_options(trials)
        groups = {task: frozenset(names) | options.get(task, frozenset()) for task, names in rows.items()}
        held_out = frozenset(evaluation_only)
        tasks, whole, baselines, runs, names = {}, {}, {}, {}, {}
        for row in trials[trials["status"] != TrialStatus.FAILED].to_dict("records"):
            name, mode, plan = row["task"], row["mode"], row["plan"]
            if name not in tasks:
                place = row["family"], row["source"], int(row["budget_steps"])
                tasks[name] = TaskFacts(name, *place, groups.get(name, frozenset()), name in held_out)
                runs[name] = {}
            if mode == "plan" and not row["group"] and row["round"] not in CHOSEN_ROUNDS:
                whole.setdefault(plan, row["plan_name"])
            if mode == "baseline":
                baselines.setdefault(plan, row["plan_name"])
            key = effective_plan(plan, tasks[name].groups) if mode == "plan" else plan
            names.setdefault(key, row["plan_name"])
            runs[name].setdefault((mode, key), {}).setdefault(int(row["seed"]), _run(row))
        return cls(dict(sorted(tasks.items())), whole, baselines, runs, names)

    def restricted(self, names: Iterable[str]) -> Recordings:
        """The recordings of some tasks only."""
        kept = [name for name in names if name in self.tasks]
        return Recordings(
            {name: self.tasks[name] for name in kept},
            self.whole_plans,
            self.baselines,
            {name: self.runs[name] for name in kept},
            self.names,
        )

    def get(self, task: str, plan: str, mode: str = "plan") -> Runs:
        """The runs of a plan on a task by seed; none where it was not recorded.

        Two plans that differ only in role groups which the task's model lacks are the same run.
        """
        if task not in self.tasks:
            return {}
        key = effective_plan(plan, self.tasks[task].groups) if mode == "plan" else plan
        return self.runs[task].get((mode, key), {})

    def plans(self, task: str) -> dict[str, Runs]:
        """All recorded plans of a task, each with its runs by seed."""
        return {key: runs for (mode, key), runs in self.runs[task].items() if mode == "plan"}

    @cached_property
    def base_seeds(self) -> dict[str, int]:
        """Task -> the seed on which most of its plans were recorded, the lowest of them."""
        found = {}
        for task in self.tasks:
            counts: dict[int, int] = {}
            for runs in self.plans(task).values():
                for seed in runs:
                    counts[seed] = counts.get(seed, 0) + 1
            if counts:
                found[task] = min(counts, key=lambda seed: (-counts[seed], seed))
        return found

    @cached_property
    def pools(self) -> dict[str, NDArray[np.float64]]:
        """Task -> sorted best losses of all its plans on the base seed, diverged ones infinite."""
        return {
            task: np.sort([runs[seed].loss for runs in self.plans(task).values() if seed in runs])
            for task, seed in self.base_seeds.items()
        }

    def excess(self, task: str, loss: float) -> float:
        """Log excess of a loss over the best one recorded for the task, clipped to [0, 3].

        A task whose best loss is not positive (a negative log density) has no log ratio: there it is
        the difference over the scale `max(|best|, median - best)` of the recorded losses.
        """
        return log_excess(loss, *self._scales[task])

    def rank(self, task: str, loss: float) -> float:
        """The share of the task's other recorded plans that are better: 0 is best, 1 is worst.

        Ties count half. The pool is that of the base seed, whatever the seed of the loss.
        """
        pool = self.pools[task]
        below, upto = np.searchsorted(pool, loss, "left"), np.searchsorted(pool, loss, "right")
        own = int(upto > below)
        return float((below + 0.5 * (upto - below - own)) / max(1, len(pool) - own))

    @cached_property
    def _scales(self) -> dict[str, tuple[float, float]]:
        found = {}
        for task, pool in self.pools.items():
            finite = pool[np.isfinite(pool)]
            best = float(finite[0]) if len(finite) else math.inf
            found[task] = best, max(1e-12, abs(best), float(np.median(finite)) - best) if len(finite) else 1.0
        return found

    def log_ratio(self, task: str, loss: float, reference: float) -> float:
        """How much worse a loss is than another on the same task, in nats, within [-3, 3]."""
        if not math.isfinite(loss):
            return MAX_EXCESS if math.isfinite(reference) else 0.0
        if not math.isfinite(reference):
            return -MAX_EXCESS
        scale = self._scales[task][1]
        value = math.log(loss / reference) if loss > 0 and reference > 0 else (loss - reference) / scale
        return max(-MAX_EXCESS, min(MAX_EXCESS, value))


def log_excess(loss: float, best: float, scale: float) -> float:
    """Log excess of `loss` over `best`, clipped to [0, 3]; over `scale` where `best` is not positive.

    >>> round(log_excess(2.0, 1.0, 1.0), 3), log_excess(float("inf"), 1.0, 1.0), log_excess(-1.0, -2.0, 4.0)
    (0.693, 3.0, 0.25)
    """
    if not math.isfinite(loss) or not math.isfinite(best):
        return MAX_EXCESS
    value = math.log(loss / best) if best > 0 and loss > 0 else (loss - best) / scale
    return max(0.0, min(MAX_EXCESS, value))


@lru_cache(maxsize=1 << 17)
def effective_plan(plan: str, groups: frozenset[str]) -> str:
    """A plan's canonical JSON without the role groups that a model lacks, and options that do nothing on it.

    Args:
        plan: Canonical JSON of a recipe; text that is none comes back as it is.
        groups: Those that the model has; nothing is left out where they are not known.
    """
    value = _parsed(plan)
    if value is None or not groups:
        return plan
    return canonical(without(value, (set(value["groups"]) | options_in(value)) - groups))


@lru_cache(maxsize=1 << 14)
def _parsed(plan: str) -> dict[str, Any] | None:
    value = json.loads(plan)
    return value if isinstance(value, dict) and "groups" in value else None


def uniform_configuration(plan: str) -> tuple[str, float, dict[str, Any]] | None:
    """Optimizer, rate and hyper-parameters of a plan with one configuration and plain rates, else None."""
    value = _parsed(plan)
    if value is None or value.get("width_free", True):
        return None
    configs = list(value["groups"].values())
    if not configs or any(config != configs[0] for config in configs):
        return None
    return configs[0]["optimizer"], float(configs[0]["lr"]), configs[0]["hyperparameters"]


def plan_kind(plan: str) -> str:
    """What sort of whole plan this is.

    The optimizer's name for a plan with one configuration and plain rates; that name and
    `"-relative"` for one with rates relative to shapes; `"muon+adamw"` or `"soap+adamw"` for the hand
    rule (one rule on matrices and convolutions, one AdamW elsewhere); `"roles"` for anything else.
    """
    value = _parsed(plan)
    if value is None:
        return "roles"
    groups = value["groups"]
    configs = list(groups.values())
    if all(config == configs[0] for config in configs):
        return configs[0]["optimizer"] + ("-relative" if value.get("width_free", True) else "")
    hidden = [groups[name] for name in ("matrix", "conv") if name in groups]
    others = [config for name, config in groups.items() if name not in ("matrix", "conv")]
    one_each = all(c == hidden[0] for c in hidden) and all(c == others[0] for c in others)
    if not hidden or not others or not one_each:
        return "roles"
    plain = not hidden[0]["hyperparameters"] and set(others[0]["hyperparameters"]) <= {"betas"}
    return f"{hidden[0]['optimizer']}+adamw" if plain and others[0]["optimizer"] == "adamw" else "roles"


def _run(row: Mapping[str, Any]) -> Run:
    diverged = row["status"] == TrialStatus.DIVERGED
    return Run(
        seed=int(row["seed"]),
        loss=math.inf if diverged else float(row["best_val_loss"]),
        steps=np.asarray(row["val_steps"], dtype=np.float64),
        losses=np.asarray(row["val_losses"], dtype=np.float32),
        budget_steps=int(row["budget_steps"]),
        best_step=int(row["best_step"]),
        diverged=diverged,
        step_seconds=float(row["step_seconds"]),
        optimizer_seconds=float(row["optimizer_seconds"]),
        selection_seconds=float(row.get("selection_seconds") or 0.0),
        state_bytes=int(row["state_bytes"]),
    )
