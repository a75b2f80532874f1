"""What own runs are worth: recorded trials of a held-out family, played as if a user had just run them.

A selector that has never seen the family explores on some of its members, as `select(explore=True)` does, is
conditioned on what came out, and then chooses for the other members. Every outcome is a recorded one.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from autoopt.meta.artifact import GroupModel
from autoopt.meta.calibration import calibrated_by
from autoopt.meta.evaluation import HARM, predict_held_out
from autoopt.meta.fitting import MIN_TASKS, GroupTable, Settings, fit_group, group_model
from autoopt.meta.own_learning import conditioned
from autoopt.meta.proposals import expected_improvement
from autoopt.meta.selector import OptimizerSelector

PROTOCOLS = ("family", "strict")
"""What a family's selector was fitted without: the family's trials, or those of its data sources too."""

Fit = Callable[[GroupTable, Settings], OptimizerSelector]


@dataclass(frozen=True)
class Budget:
    """How the runs of a user are spent.

    Attributes:
        num_runs: Runs, those of the default included.
        num_members: Members of the family that they are spread over.
    """

    num_runs: int = 12
    num_members: int = 3


@dataclass(frozen=True)
class Learning:
    """How a selector learns from own runs.

    Attributes:
        weight: Recorded outcomes that one own outcome counts as.
        caution: Caution with which what gained in own runs is judged; None for the role group's own.
    """

    weight: float
    caution: float | None


@dataclass(frozen=True)
class Judged:
    """One choice for a member that no run was spent on, as log ratios to the default.

    Attributes:
        family: The family.
        draw: Number of the draw.
        task: The member.
        group: Role group.
        before: Outcome of the choice without own runs.
        after: Outcome of the choice with them.
        oracle: Outcome of the best candidate, at most 0.
    """

    family: str
    draw: int
    task: str
    group: str
    before: float
    after: float
    oracle: float


@dataclass(frozen=True, eq=False)
class HeldOutFamily:
    """A family, and the selector that has not seen it.

    Attributes:
        name: The family.
        models: Role group -> what was learned from the others.
        tables: Role group -> the family's recorded rows of candidates that may be proposed.
        predictions: Role group -> mean and standard deviation of the effect of each of these rows.
        margin: Pessimistic gain that a change must promise.
    """

    name: str
    models: dict[str, GroupModel]
    tables: dict[str, GroupTable]
    predictions: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]
    margin: float

    @property
    def members(self) -> list[str]:
        """The tasks of the family."""
        return sorted({str(task) for table in self.tables.values() for task in table.tasks})


def held_out_families(
    tables: Mapping[str, GroupTable], protocol: str = "family", say: Callable[[str], None] = lambda text: None
) -> Iterator[HeldOutFamily]:
    """Every family with the selector that was fitted, and calibrated, without it.

    Args:
        tables: Learning rows by role group.
        protocol: One of `PROTOCOLS`.
        say: Called with a line on what is done.
    """
    settings = Settings()
    families = sorted({str(family) for table in tables.values() for family in table.families})
    fitted: dict[tuple[str, str], OptimizerSelector] = {}
    found = {}
    for group, table in tables.items():
        here = {str(family) for family in table.families}
        say(f"fitting {len(here)} selectors of {group} on {len(table.y)} pairs")
        masks = {family: _training(table, family, protocol, tables) for family in families if family in here}
        masks = {family: mask for family, mask in masks.items() if len(set(table.tasks[mask])) >= MIN_TASKS}
        for family, mask in masks.items():
            fitted[group, family] = fit_group(table.where(mask), settings)
        models = iter([_fresh(fitted[group, family]) for family in masks])
        folds = [(mask, table.families == family) for family, mask in masks.items()]
        found[group] = predict_held_out(table, settings, folds=folds, fit=lambda *_, models=models: next(models))
    for family in families:
        others = {g: p.of({str(t) for t in p.tasks[p.families != family]}) for g, p in found.items()}
        calibrated, cautions, _ = calibrated_by(others, settings)
        models, own, predictions = {}, {}, {}
        for group, table in tables.items():
            here = table.where(table.families == family)
            if (group, family) not in fitted or not len(here.y):
                continue
            training = table.where(_training(table, family, protocol, tables))
            given = replace(calibrated, caution=cautions[group])
            model = group_model(training, given, lambda *_, key=(group, family): _fresh(fitted[key]))
            models[group] = model
            own[group] = here.where(np.isin(here.configs, model.candidates))
            predictions[group] = model.process.predict(own[group].x)
        yield HeldOutFamily(family, models, own, predictions, calibrated.margin)


def _fresh(model: OptimizerSelector) -> OptimizerSelector:
    """A copy whose process keeps the large table that it computes on first use to itself."""
    found = OptimizerSelector(**model.get_params())
    found.__dict__ |= {**model.__dict__, "process_": replace(model.process_)}
    return found


def _training(table: GroupTable, family: str, protocol: str, tables: Mapping[str, GroupTable]) -> NDArray[np.bool_]:
    other = table.families != family
    if protocol == "family":
        return other
    sources = {str(source) for known in tables.values() for source in known.sources[known.families == family]}
    return other & ~np.isin(table.sources, list(sources))


def spend(
    family: HeldOutFamily, budget: Budget, generator: np.random.Generator
) -> tuple[list[str], dict[str, list[int]]]:
    """The members that runs were spent on, and for each role group the rows that they showed.

    On each member the first run is the default's; each further one is the candidate of the largest
    expected improvement, over all role groups, that was not tried on that member.

    Args:
        family: The family.
        budget: How many runs on how many members.
        generator: Which members.
    """
    members = [str(task) for task in generator.permutation(family.members)[: budget.num_members]]
    shown: dict[str, list[int]] = {group: [] for group in family.tables}
    for number, task in enumerate(members):
        share = budget.num_runs // len(members) + (number < budget.num_runs % len(members))
        for _ in range(share - 1):
            best = max(_improvements(family, task, shown), default=None)
            if best is None:
                break
            shown[best[1]].append(best[2])
    return members, shown


def _improvements(
    family: HeldOutFamily, task: str, shown: Mapping[str, Sequence[int]]
) -> Iterator[tuple[float, str, int]]:
    for group, table in family.tables.items():
        here = np.flatnonzero(table.tasks == task)
        tried = [row for row in shown[group] if table.tasks[row] == task]
        left = np.setdiff1d(here, tried)
        if not len(left):
            continue
        mean, std = (part[left] for part in family.predictions[group])
        reached = min([0.0, *(float(table.y[row]) for row in tried)])
        gains = expected_improvement(mean, family.models[group].spread * std, reached)
        yield float(gains.max()), group, int(left[np.argmax(gains)])


def play(family: HeldOutFamily, budget: Budget, learning: Learning, draws: int) -> list[Judged]:
    """The choices for the members that no run was spent on, over several draws of the runs.

    Args:
        family: The family; it needs more members than the budget takes.
        budget: How many runs on how many members.
        learning: How the selector learns from them.
        draws: Random draws of the members.
    """
    found = []
    for draw in range(draws):
        members, shown = spend(family, budget, np.random.default_rng(draw))
        for group, table in family.tables.items():
            model = family.models[group]
            rows = np.array(shown[group], dtype=np.intp)
            after = _choices(model, table, members, family.predictions[group], family.margin, None)
            before = after
            if len(rows):
                own = GroupTable(
                    **{
                        name: getattr(table, name)[rows]
                        for name in ("x", "y", "tasks", "families", "sources", "configs", "counts")
                    },
                    form=table.form,
                )
                learned = conditioned(model, own, learning.weight)
                predicted = learned.process.predict(table.x)
                after = _choices(learned, table, members, predicted, family.margin, learning.caution)
            for task, (outcome, oracle) in before.items():
                found.append(Judged(family.name, draw, task, group, outcome, after[task][0], oracle))
    return found


def _choices(
    model: GroupModel,
    table: GroupTable,
    spent: Collection[str],
    predicted: tuple[NDArray[np.float64], NDArray[np.float64]],
    margin: float,
    own_caution: float | None,
) -> dict[str, tuple[float, float]]:
    """Task -> outcome of the choice, and of the best candidate."""
    mean, std = predicted
    found = {}
    for task in sorted({str(t) for t in table.tasks} - set(spent)):
        here = np.flatnonzero(table.tasks == task)
        features = table.x[here[0], : model.reference.shape[1]]
        cautions = [model.caution_for(str(table.configs[row]), features, own_caution) for row in here]
        pessimistic = mean[here] + np.array(cautions) * model.spread * std[here]
        best = here[np.argmin(pessimistic)]
        outcome = float(table.y[best]) if pessimistic.min() < -margin else 0.0
        found[task] = outcome, float(min(0.0, table.y[here].min()))
    return found


@dataclass(frozen=True)
class FamilyResult:
    """Means over the draws, members and role groups of a family.

    Attributes:
        family: The family.
        num_members: Its members.
        before: Mean log ratio to the default of the choices without own runs.
        after: With them.
        oracle: Of the best recorded candidates.
        harmed_before: Share of choices without own runs that end over 2 % worse than the default.
        harmed_after: With them.
    """

    family: str
    num_members: int
    before: float
    after: float
    oracle: float
    harmed_before: float
    harmed_after: float


def summary(judged: Sequence[Judged], num_members: int) -> FamilyResult:
    """The result of a family.

    Args:
        judged: Its choices, at least one.
        num_members: Its members.
    """
    columns = np.array([(row.before, row.after, row.oracle) for row in judged])
    means, harmed = columns.mean(axis=0), (columns > HARM).mean(axis=0)
    return FamilyResult(judged[0].family, num_members, *map(float, means), *map(float, harmed[:2]))
