"""A race of short runs after profiling aside: the likeliest changes of the plan, tried before step 0."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from autoopt.choice import allowed
from autoopt.counterfactuals import describe_change
from autoopt.errors import ProfileError
from autoopt.meta.artifact import Predictor
from autoopt.meta.extrapolation import Extrapolation, direction, short_log_ratio
from autoopt.meta.halving import Contestant, RaceResult, Rung, longest_run, run
from autoopt.meta.pairs import canonical
from autoopt.meta.raced_predictor import RacedPredictor
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.recipe import Recipe
from autoopt.profiling import restored
from autoopt.reasons import interval
from autoopt.report.content import RaceRun
from autoopt.report.recommendation import Recommendation
from autoopt.report.wording import GROUP_NOUNS
from autoopt.selection import OnlineSelection
from autoopt.short_runs import NUM_HELD_BACK, ShortRun, short_run, short_schedule

_WHERE = "the race of short runs"

LossFn = Callable[[nn.Module, Any], Tensor]


def race_aside(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: LossFn,
    selection: OnlineSelection,
    profiled: Recommendation,
    share: float,
    extrapolation: Extrapolation,
) -> Recommendation:
    """The recommendation after a race, which leaves the model, its gradients and all generators as they were.

    In each rung the default and the changes whose run is worth most train on the same batches from the
    model's present parameters, with a schedule that ends with the run, and are judged on batches that none of
    them trains on. What their losses say of the whole run was learned on recorded runs of both.

    Args:
        model: The model.
        batches: Batches to train on and to judge by; read from their beginning where they have one.
        loss_fn: `loss_fn(model, batch)`, a scalar tensor.
        selection: What has profiled and decides.
        profiled: Its recommendation without a race.
        share: Share of the step budget that the race may take.
        extrapolation: What was learned of short runs.

    Raises:
        ProfileError: If there are fewer batches than a race takes.
    """
    predictor, total_steps = selection.predictor, selection.total_steps
    assert isinstance(predictor, Predictor) and total_steps is not None
    begun = time.perf_counter()
    contestants = _contestants(selection, predictor, extrapolation)
    race_steps = math.floor(share * total_steps)
    with restored(model):
        runs = _Runs(model, loss_fn, selection, batches, longest_run(total_steps, race_steps))
        result = run(contestants, total_steps, race_steps, extrapolation, predictor.margin, runs)
    raced = RacedPredictor.after(predictor, result)
    facts = {"race_steps": result.num_steps, "race_reason": result.reason, "race_share": share}
    facts["race_seconds"] = time.perf_counter() - begun

    def decide() -> Recommendation:
        found = selection.redecided(raced, {**profiled.profile, **facts})
        return replace(found, race=_rows(result, found, selection.default))

    ranks = selection.ranks
    if ranks.size == 1:
        return decide()
    return Recommendation.from_json(ranks.from_first(lambda: decide().to_json(), _WHERE))


def _contestants(selection: OnlineSelection, predictor: Predictor, extrapolation: Extrapolation) -> list[Contestant]:
    """The changes of a rate that may run, with what the selector predicts, the same on all ranks."""

    def found() -> str:
        rows = {row.pop("group"): row for row in selection.decided["features"].to_rows()}
        silent = selection.unmeasured_groups()
        base = json.loads(selection.default.to_json())["groups"]
        known = [
            (group, item.config, way, item.mean, item.std)
            for group in extrapolation.groups
            if group in rows and group not in silent and not predictor.is_far(group, rows[group])
            for item in predictor.rank(group, rows[group])
            if (way := direction(item.config, canonical(base[group]))) and allowed(item, selection.candidates)
        ]
        return json.dumps(known)

    return [
        Contestant(group, config, way, (mean, std), extrapolation.caution, extrapolation.surprise)
        for group, config, way, mean, std in json.loads(selection.ranks.from_first(found, _WHERE))
    ]


class _Runs:
    """Makes the short runs of a rung; the default's run is the reference of all."""

    def __init__(
        self, model: nn.Module, loss_fn: LossFn, selection: OnlineSelection, batches: Iterable[Any], longest: int
    ) -> None:
        self.model, self.loss_fn, self.selection = model, loss_fn, selection
        self.source, self.longest = batches, longest
        self.batches: list[Any] = []
        self.start = math.nan

    def _draw(self) -> None:
        """Draw the batches that the longest runs train on, and those held back, which come last."""
        wanted = self.longest + NUM_HELD_BACK
        self.batches = list(itertools.islice(iter(self.source), wanted))
        if len(self.batches) < wanted:
            raise ProfileError(
                f"batches ran out in the race: its longest short run takes {self.longest} batches and "
                f"{NUM_HELD_BACK} are held back, but only {len(self.batches)} came; pass a loader (an iterator was "
                "read by the profile already), more batches, or a smaller race="
            )
        self.start = self._loss(self.selection.default, 0)

    def __call__(self, contestants: Sequence[Contestant], rung: Rung) -> list[float]:
        default = self.selection.default
        if not self.batches:
            self._draw()
        reference = self._loss(default, rung.num_steps)
        losses = [self._loss(default.with_config(item.group, item.config), rung.num_steps) for item in contestants]
        return [short_log_ratio(loss, reference, self.start) for loss in losses]

    def _loss(self, recipe: Recipe, num_steps: int) -> float:
        layers = self.selection.architecture.layers
        plan: OptimizerPlan = recipe.resolve(layers).with_schedule(short_schedule(num_steps))
        done: ShortRun = short_run(
            self.model,
            self.loss_fn,
            plan,
            self.batches[:num_steps],
            self.batches[self.longest :],
            self.selection.ranks,
        )
        return done.held_back_loss


def _rows(result: RaceResult, recommendation: Recommendation, default: Recipe) -> tuple[RaceRun, ...]:
    """A line of the report for every contestant that ran, the best posterior first."""
    layers = {layer.group: layer for layer in recommendation.layers if layer.deviates}
    found = []
    for item in sorted(result.contestants, key=lambda contestant: contestant.posterior[0]):
        mean, std = item.posterior
        chosen = layers.get(item.group)
        wanted = default.with_config(item.group, item.config).groups[item.group]
        found.append(
            RaceRun(
                name=f"{describe_change(item.config)} on {GROUP_NOUNS[item.group][1]}",
                num_steps=item.lengths,
                short_gains=item.shorts,
                prior_gain=item.prior[0],
                predicted_gain=mean,
                predicted_gain_interval=interval(mean, std),
                chosen=chosen is not None
                and wanted.optimizer == chosen.config.optimizer
                and _same(wanted.lr, chosen.config.relative_lr),
            )
        )
    return tuple(found)


def _same(rate: float, other: float | None) -> bool:
    return other is not None and math.isclose(rate, other, rel_tol=1e-6)
