"""The online decision: what the warm-up saw, turned into a recommendation, by the selector's word.

`OnlineSelection` travels inside the optimizer, so it is plain data that pickles and copies.
"""

from __future__ import annotations

import json
import time
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import nn

from autoopt.architecture import Architecture, LayerInfo
from autoopt.budget.curve import StepTimes
from autoopt.budget.goal import Goal
from autoopt.budget.step_time import StepClock, Tensors, UpdateTimer
from autoopt.budget.verdict import least_state_bytes, over_limit, plan_within
from autoopt.decision import recommend_plan, unmeasured_groups
from autoopt.distributed.noise_scale import NoiseSums
from autoopt.distributed.ranks import Ranks
from autoopt.errors import AutoOptError
from autoopt.exploration import Tried, tried_in
from autoopt.features import CONTEXT_KEYS, Features, aggregate_by_group, extract
from autoopt.first_batch import FirstBatchProbe
from autoopt.micro_batches import MicroBatchNoise
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.kernels import Options
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import Recipe, RoleConfig
from autoopt.optimizers.recipe_of_plan import recipe_of
from autoopt.optimizers.schedule import Schedule
from autoopt.report.recommendation import Recommendation
from autoopt.run_recorder import RunRecorder
from autoopt.start_profile import StartProfile
from autoopt.statistics import warmup
from autoopt.statistics.over_ranks import mean_over_ranks, with_noise_scale
from autoopt.statistics.warmup import WarmupStatistics

_NOT_PROFILED = "Nothing was measured, since no batches were given: the calibrated default is kept everywhere."
_LOSSES = ("first_loss", "last_loss")


@dataclass
class OnlineSelection:
    """Decides once, after `warmup_steps` steps of the user's own training.

    Attributes:
        architecture: The model's description.
        warmup_steps: Steps of the profile.
        default: The recipe that is kept where the selector abstains. Until the decision it is trained
            with, unless a limit of memory rules it out (`starting_plan`).
        schedule: The plan-wide schedule.
        predictor: `autoopt.meta.artifact.Predictor`, or None to keep the default.
        total_steps: Horizon of the run, or None.
        candidates: Catalog names that deviations may use, or None for all.
        seed: Seed of the sampled coordinates.
        mode: `"online"` or `"aside"`.
        facts: What is known of the run: `num_examples` where it was told, and what the first batch
            showed (`autoopt.first_batch`).
        warnings: What the report must say, collected so far.
        start_profile: What was measured before the first step, where batches and a loss were given.
        started: When the profile began (seconds since the epoch): the first training batch, or the
            making of this object where the model's `forward` is never called.
        ranks: Who decides together.
        noise: Squared gradient norms before and after averaging over ranks or micro-batches, where hooks take
            them.
        thawable: Frozen parameters of the model, by name: what `add_param_group` may bring later.
        goal: What the choice is to be good for.
        clock: Times the warm-up's steps, where the goal asks for it.
        buffer_bytes: Bytes of the averages of the model's statistics, where any are kept.
        races: Whether a race follows the profile and decides again.
        decided: What the decision was made from, kept where a race follows, on the rank that decides.
        recorder: What remembers the run, or None.
        explore: Whether to try a change that own runs of the task have not tried, in place of the best choice.
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
    facts: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    started: float = field(default_factory=time.time)
    start_profile: StartProfile | None = None
    ranks: Ranks = field(default_factory=Ranks)
    noise: NoiseSums | None = None
    thawable: dict[str, LayerInfo] = field(default_factory=dict)
    goal: Goal = field(default_factory=Goal)
    clock: StepClock | None = None
    buffer_bytes: int = 0
    races: bool = False
    decided: dict[str, Any] = field(default_factory=dict)
    recorder: RunRecorder | None = None
    explore: bool = False

    @cached_property
    def _by_name(self) -> dict[str, LayerInfo]:
        return {layer.name: layer for layer in self.architecture.layers}

    def decide_with(self, ranks: Ranks) -> None:
        """Decide together with other ranks; a collective where there are any.

        Ranks may have drawn different weights, which a wrapper makes equal later: the first rank's scales
        count for all, so that no two start at different rates.
        """
        self.ranks = ranks
        self.architecture = replace(self.architecture, layers=self._with_first_scales(self.architecture.layers))
        self.__dict__.pop("_by_name", None)

    def scales(self) -> str:
        """The scale that every layer started at, as JSON: a resumed run cannot measure it any more."""
        return _scales_of(self.architecture.layers)

    def take_scales(self, text: str) -> None:
        """Take over what `scales` gave."""
        self.architecture = replace(self.architecture, layers=_with_scales(self.architecture.layers, text))
        self.__dict__.pop("_by_name", None)

    def may_thaw(self, frozen: Sequence[LayerInfo]) -> None:
        """Take note of frozen parameters that `add_param_group` may bring later; a collective over ranks."""
        self.thawable = {layer.name: layer for layer in self._with_first_scales(frozen)}

    def _with_first_scales(self, layers: Sequence[LayerInfo]) -> tuple[LayerInfo, ...]:
        if self.ranks.size == 1:
            return tuple(layers)
        text = self.ranks.from_first(lambda: _scales_of(layers), "select()")
        return _with_scales(layers, text)

    def layers(self) -> Mapping[str, LayerInfo]:
        """Description of every parameter by name."""
        return self._by_name

    def admit(self, names: Sequence[str]) -> dict[str, OptimizerConfig]:
        """The default's configurations of parameters that were frozen and now join the optimizer, by name.

        From now on they belong to the architecture, so that a decision yet to come is made for them too.
        Names of no frozen parameter are passed over.
        """
        joining = tuple(self.thawable.pop(name) for name in names if name in self.thawable)
        num_frozen = self.architecture.num_frozen_parameters - sum(layer.numel for layer in joining)
        self.architecture = Architecture((*self.architecture.layers, *joining), max(num_frozen, 0))
        self.__dict__.pop("_by_name", None)
        plan = self.starting_plan() if joining else OptimizerPlan({})
        return {layer.name: plan.layers[layer.name] for layer in joining}

    def starting_plan(self) -> OptimizerPlan:
        """What is trained with until the decision: the calibrated default, or what comes next to it under a limit."""
        plan = self.default.resolve(self.architecture.layers)
        limit = self._attainable().max_state_bytes
        if limit is not None:
            plan = plan_within(limit, self.architecture.layers, self.default, self.candidates)
        return plan.with_schedule(self.schedule)

    def check_limit(self) -> None:
        """Check that some plan stays under the limit.

        Raises:
            ValueError: If none does; the message says what the smallest one takes.
        """
        if self.goal.max_state_bytes is None:
            return
        least = least_state_bytes(self.architecture.layers, self.default, self.candidates)
        if least > self.goal.max_state_bytes:
            raise ValueError(over_limit(self.goal, least))

    def _attainable(self) -> Goal:
        """The goal, its limit raised where parameters have joined that do not fit: training must go on."""
        limit = self.goal.max_state_bytes
        if limit is None:
            return self.goal
        least = least_state_bytes(self.architecture.layers, self.default, self.candidates)
        return replace(self.goal, max_state_bytes=max(limit, least))

    def watch_first_batch(self, model: nn.Module, optimizer: AutoOptimizer | None = None) -> FirstBatchProbe:
        """A probe that waits for the model's first training batch and puts what it sees into `facts`.

        With the optimizer that will step it also counts over how many backward passes gradients are
        accumulated, and has the noise scale measured where they are.
        """
        heads = [layer for layer in self.architecture.layers if layer.group == "head"]
        probe = FirstBatchProbe(self.facts, max((layer.fan_out for layer in heads), default=None), self)
        if optimizer is None:
            return probe.attach(model)
        # Of an output layer, since no step does without it.
        watched = dict(model.named_parameters())[(heads or self.architecture.layers)[-1].name]
        owner, trained = weakref.ref(optimizer), weakref.ref(model)

        def step() -> int | None:
            alive = owner()
            return None if alive is None or alive.phase != "warmup" else alive.param_groups[0]["step"]

        def measure_noise(num_micro_batches: int) -> None:
            # Over several ranks a step's last gradient is an average, and its micro-batches' are not.
            alive = trained()
            if self.ranks.size == 1 and self.noise is None and alive is not None:
                self.noise = MicroBatchNoise(dict(alive.named_parameters()), num_micro_batches, step).sums

        return probe.attach(model, watched, lambda: 1 if (now := step()) is None else now, measure_noise)

    def start(self) -> None:
        """Begin to count the seconds of the profile."""
        self.started = time.time()

    def measure(self, optimizer: AutoOptimizer) -> WarmupStatistics:
        """The statistics that the optimizer's warm-up collected, over all ranks; one synchronisation."""
        entries = optimizer.warmup_entries()
        layers = [layer for layer, _, _ in entries]
        states = [state for _, _, state in entries]
        facts = self._task_facts(optimizer)
        if self.ranks.size > 1:
            losses = dict(zip(_LOSSES, optimizer.observed_losses(), strict=True))
            context = {key: facts.get(key) for key in CONTEXT_KEYS}
            states, means = mean_over_ranks(self.ranks, layers, states, context | losses, self.seed)
            losses = [means.pop(key, None) for key in _LOSSES]
            facts |= means | _loss_facts(*losses)
            facts |= {key: means[key] * self.ranks.size for key in ("batch_size", "batch_outputs") if key in means}
        params = [param for _, param, _ in entries]
        statistics = warmup.summarize(layers, params, states, task=facts, seed=self.seed)
        if self.start_profile is not None:
            statistics = statistics.with_layer_values(self.start_profile.layers)
        if self.noise is None:
            return statistics
        squares = self.noise.over(self.ranks, [layer.name for layer in layers])
        return with_noise_scale(statistics, squares, self.noise.num_ranks)

    def features(self, statistics: WarmupStatistics) -> Features:
        """One row of meta-features for each role group of the model."""
        return aggregate_by_group(extract(self.architecture.layers, statistics))

    def decide(self, optimizer: AutoOptimizer) -> Any:
        """The recommendation for the steps to come, the same on all ranks.

        Raises:
            DistributedError: If a rank is missing, or trains something else.
        """
        ranks = self.ranks
        if ranks.size == 1:
            return self._decide(optimizer, self.measure(optimizer))
        where = f"the decision after {self.warmup_steps} warm-up steps"
        ranks.meet(where)
        ranks.check_same(self._fingerprint(), "the model or an argument of select()", where)
        statistics = self.measure(optimizer)
        text = ranks.from_first(lambda: self._decide(optimizer, statistics).to_json(), where)
        recommendation = Recommendation.from_json(text)
        ranks.check_same(recommendation.plan.fingerprint, "the plan", where)
        return recommendation

    def _decide(self, optimizer: AutoOptimizer, statistics: WarmupStatistics) -> Recommendation:
        begun = time.perf_counter()
        features = self.features(statistics)
        profile = {
            "mode": self.mode,
            "warmup_steps": self.warmup_steps,
            "num_nonfinite_steps": optimizer.num_nonfinite_steps,
            "seconds": time.time() - self.started,
            **({"num_ranks": self.ranks.size} if self.ranks.size > 1 else {}),
        }
        goal, times = self._attainable(), self._step_times(optimizer)
        tried = self._tried(statistics) if self.explore else None
        notes = list(self.warnings)
        if goal != self.goal:
            notes.append(over_limit(self.goal, goal.max_state_bytes or 0))
        if times is not None:
            profile |= {"step_seconds_without_update": times.base_seconds}
        if self.start_profile is not None:
            profile |= {"start_passes": self.start_profile.num_passes, "start_seconds": self.start_profile.seconds}
        given = {
            "features": features,
            "statistics": statistics,
            "candidates": self.candidates,
            "warnings": notes,
            "seed": self.seed,
            "goal": goal,
            "times": times,
            "buffer_bytes": self.buffer_bytes,
            "tried": tried,
        }
        recommendation = recommend_plan(
            self.architecture, self.default, self.schedule, predictor=self.predictor, profile=profile, **given
        )
        self.decided = given if self.races else {}
        self._remember(features, recommendation)
        seconds = {"decision_seconds": time.perf_counter() - begun}
        return replace(recommendation, profile=recommendation.profile | seconds)

    def _step_times(self, optimizer: AutoOptimizer) -> StepTimes | None:
        """What the clock and throw-away tensors tell of the time of a step, None where nothing was timed."""
        gap = None if self.clock is None else self.clock.gap_seconds()
        if gap is None:
            return None
        tensors = {layer.name: Tensors.of(param) for layer, param, _ in optimizer.warmup_entries()}
        group = optimizer.param_groups[0]
        options = Options(group["fused"], group["foreach"], False, group["capturable"])
        return StepTimes(gap, UpdateTimer(tensors, options).seconds)

    def unmeasured_groups(self) -> set[str]:
        """Role groups of which the warm-up measured no finite gradient, once a decision was made."""
        return unmeasured_groups(self.architecture, self.decided["statistics"])

    def redecided(self, predictor: Any, profile: Mapping[str, Any]) -> Recommendation:
        """The decision by what the warm-up measured, made anew by a selector that knows more.

        Args:
            predictor: The selector.
            profile: How the statistics were taken.
        """
        recommendation = recommend_plan(
            self.architecture, self.default, self.schedule, predictor=predictor, profile=profile, **self.decided
        )
        self._remember(self.decided["features"], recommendation)
        return recommendation

    def _tried(self, statistics: WarmupStatistics) -> Tried:
        """What own runs of the same task have tried; nothing, with a warning, where they cannot be read."""
        if self.recorder is None:  # a copy of the run that is remembered
            return Tried(False, {})
        try:
            runs = self.recorder.history(float(statistics.task.get("batch_size", float("nan"))))
        except AutoOptError as error:
            self.warnings.append(f"What was remembered cannot be read, so the calibrated default runs: {error}.")
            return Tried(False, {})
        return tried_in(runs, self.default.to_json())

    def _remember(self, features: Features, recommendation: Recommendation) -> None:
        if self.recorder is not None:
            recipe = self._recipe(recommendation)
            self.recorder.decided(recipe, features.to_rows(), self.mode, time.time() - self.started)

    def _recipe(self, recommendation: Recommendation) -> str:
        known = {} if self.predictor is None else {g: model.candidates for g, model in self.predictor.groups.items()}
        candidates = {group: [RoleConfig.from_json(text) for text in texts] for group, texts in known.items()}
        recipe = recipe_of(recommendation.plan, self.architecture.layers, self.default, candidates)
        return "" if recipe is None else recipe.to_json()

    def _fingerprint(self) -> str:
        """What all ranks must have in common, as text."""
        layers = [(layer.name, layer.role, layer.shape) for layer in self.architecture.layers]
        settings = (self.warmup_steps, self.total_steps, self.candidates, self.seed, self.schedule.to_dict())
        settings = (*settings, asdict(self.goal))
        return json.dumps([layers, settings, self.default.to_json()])

    def unmeasured(self) -> Any:
        """The recommendation where nothing was measured: the calibrated default, with a warning."""
        return recommend_plan(
            self.architecture,
            self.default,
            self.schedule,
            predictor=self.predictor,
            features=None,
            statistics=None,
            candidates=self.candidates,
            warnings=[*self.warnings, _NOT_PROFILED],
            profile={},
            seed=self.seed,
            goal=self.goal,
            buffer_bytes=self.buffer_bytes,
        )

    def _task_facts(self, optimizer: AutoOptimizer) -> dict[str, float]:
        facts = {key: float(value) for key, value in self.facts.items()}
        facts["frozen_share"] = self.architecture.frozen_share
        for key in ("batch_size", "batch_outputs"):
            if key in facts:
                facts[key] *= facts.get("micro_batches", 1.0)
        facts["num_nonfinite_steps"] = float(optimizer.num_nonfinite_steps)
        if self.total_steps is not None:
            facts["total_steps"] = float(self.total_steps)
        params = [param for group in optimizer.param_groups for param in group["params"]]
        facts["dtype_bits"] = float(max(8 * param.element_size() for param in params))
        return facts | _loss_facts(*optimizer.observed_losses())


def _loss_facts(first: float | None, last: float | None) -> dict[str, float]:
    if first is None or last is None:
        return {}
    return {"loss_start": first} | ({"loss_drop": (first - last) / abs(first)} if first != 0 else {})


def _scales_of(layers: Sequence[LayerInfo]) -> str:
    return json.dumps({layer.name: layer.rms for layer in layers})


def _with_scales(layers: Sequence[LayerInfo], text: str) -> tuple[LayerInfo, ...]:
    scales = json.loads(text)
    return tuple(replace(layer, rms=scales.get(layer.name, layer.rms)) for layer in layers)
