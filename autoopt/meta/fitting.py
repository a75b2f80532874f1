"""From a meta-dataset to a trained selector: which rows are learned from, and what is kept of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoopt.errors import MetaDatasetError
from autoopt.meta.artifact import GroupModel, Predictor
from autoopt.meta.encoding import COLUMNS, LENGTHS, encode_candidate
from autoopt.meta.pairs import canonical, paired_outcomes
from autoopt.meta.selector import OptimizerSelector

if TYPE_CHECKING:
    from autoopt.meta.dataset import MetaDataset

MIN_TASKS = 8
"""Recorded tasks a candidate needs before the selector may propose it."""

MIN_SHARE = 0.25
"""Share of its role group's recorded tasks that a candidate needs as well: what was recorded on few, and those of one
kind, says too little of others."""

LINKED_WEIGHT = 0.5
"""Weight of an outcome that two pairs link to the default: it has the noise of both."""

LINKED_SHARE = 0.5
"""Share of its role group's recorded tasks that a configuration needs for its linked outcomes to be learned from."""

SELECTED_FEATURES: tuple[str, ...] = (
    # What the role group and its model are.
    *("log_fan_in", "log_group_share", "conv_share", "norm_adjacent", "role_recurrent", "role_norm"),
    *("relative_depth", "log_output_size", "log_vocabulary", "sparse"),
    # What the run is.
    *("log_batch_size", "log_total_steps", "loss_drop"),
    # What its gradients did in warm-up.
    *("log_signal_to_noise", "log_relative_grad_rms", "log_param_rms", "log_grad_to_param", "log_relative_step"),
    *("log_secant_time", "step_alignment", "untouched_row_share", "log_hill_index", "log_kurtosis"),
    *("sign_cosine", "adaptive_cosine", "log_stable_rank"),
)
"""Meta-features that the selector sees."""


FORMS: dict[str, tuple[float, float]] = {"linear": (0.1, 1e-4), "local": (1e-4, 0.1)}
"""Form of a role group's effects -> amplitudes that the search starts from: linear in the features, local in them."""

FORM_OF_GROUP: dict[str, str] = {"matrix": "linear", "conv": "linear"}
"""The form that closed more on held-out families; local for the others."""


@dataclass(frozen=True)
class Settings:
    """Choices of the selector itself, made by nested cross-validation over families.

    Attributes:
        common, task_noise, noise, relevance, max_iter: As in `OptimizerSelector`.
        spread: Factor on predicted standard deviations.
        caution: Standard deviations that the decision looks to the bad side.
        margin: Pessimistic gain that a change must promise.
        features: Meta-features used.
    """

    common: float = 0.06
    task_noise: float = 0.03
    noise: float = 0.05
    relevance: float = 0.3
    max_iter: int = 25
    spread: float = 1.0
    caution: float = 0.5
    margin: float = 0.01
    features: tuple[str, ...] = SELECTED_FEATURES


@dataclass(frozen=True, eq=False)
class GroupTable:
    """The learning rows of one role group.

    Attributes:
        x: Meta-features and candidate columns, `(num_rows, num_columns)`.
        y: Log ratios to the default, `(num_rows,)`, averaged over seeds.
        tasks: Task of each row.
        families: Architecture family of each row.
        sources: Data source of each row.
        configs: Candidate of each row.
        counts: Seeds that each row is the mean over; one that two pairs link to the default counts
            `LINKED_WEIGHT`.
        form: How effects depend on the meta-features, a key of `FORMS`.
    """

    x: NDArray[np.float64]
    y: NDArray[np.float64]
    tasks: NDArray[np.str_]
    families: NDArray[np.str_]
    sources: NDArray[np.str_]
    configs: NDArray[np.str_]
    counts: NDArray[np.float64]
    form: str = "local"

    def where(self, mask: NDArray[np.bool_]) -> GroupTable:
        """The rows for which `mask` is True."""
        columns = {field.name: getattr(self, field.name)[mask] for field in fields(self) if field.name != "form"}
        return GroupTable(**columns, form=self.form)


def learning_tables(
    dataset: MetaDataset, default: str, features: Sequence[str] = SELECTED_FEATURES
) -> dict[str, GroupTable]:
    """The learning rows of every role group that has recorded pairs around the default.

    Outcomes are averaged over the seeds of a task, and so are its meta-features: a row is one
    (task, candidate). What was recorded around an earlier default is linked to this one where it
    can be. Plan-wide changes (group `"*"`) are left out.

    Args:
        dataset: Recorded trials and meta-features.
        default: Canonical JSON of the default recipe.
        features: Meta-features to use.
    """
    # pandas types what its methods return too loosely to be checked.
    pairs: Any = paired_outcomes(dataset.trials, default, linked=True)
    pairs["weight"] = np.where(pairs["linked"], LINKED_WEIGHT, 1.0)
    groups = json.loads(default)["groups"]
    found: dict[str, GroupTable] = {}
    frame: Any = dataset.features
    known = frame.set_index(["task", "group"])[list(features)].groupby(level=[0, 1]).mean()
    for group in groups:
        rows = pairs[pairs["group"] == group]
        rows = rows[[(task, group) in known.index for task in rows["task"]]]
        if rows.empty:
            continue
        keys = ["task", "family", "source", "config"]
        rows = _common_or_direct(rows)
        rows = rows.assign(outcome=rows["outcome"] * rows["weight"]).groupby(keys, observed=True)
        rows = rows[["outcome", "weight"]].sum().reset_index()
        rows["outcome"] /= rows["weight"]
        base = canonical(groups[group])
        codes = {config: encode_candidate(config, base) for config in rows["config"].unique()}
        left = known.loc[[(task, group) for task in rows["task"]]].to_numpy(dtype=np.float64)
        right = np.stack([codes[config] for config in rows["config"]])
        found[group] = GroupTable(
            np.hstack([left, right]),
            rows["outcome"].to_numpy(dtype=np.float64),
            *(rows[name].to_numpy(dtype=str) for name in keys),
            counts=rows["weight"].to_numpy(dtype=np.float64),
            form=FORM_OF_GROUP.get(group, "local"),
        )
    return found


def _common_or_direct(rows: Any) -> Any:
    """Without the linked outcomes of configurations that few tasks have: they cost time and say little."""
    tasks = rows.groupby("config", observed=True)["task"].nunique()
    common = set(tasks.index[tasks >= LINKED_SHARE * rows["task"].nunique()])
    return rows[~rows["linked"] | rows["config"].isin(common)]


def fit_group(table: GroupTable, settings: Settings) -> OptimizerSelector:
    """A selector fitted on a role group's rows."""
    linear, local = FORMS[table.form]
    model = OptimizerSelector(
        num_candidate_columns=len(COLUMNS),
        common=settings.common,
        linear=linear,
        local=local,
        task_noise=settings.task_noise,
        noise=settings.noise,
        relevance=settings.relevance,
        lengths=tuple(LENGTHS.values()),
        max_iter=settings.max_iter,
    )
    return model.fit(table.x, table.y, table.counts)


def proposable(table: GroupTable, min_tasks: int = MIN_TASKS) -> tuple[str, ...]:
    """The candidates paired with the default itself on enough tasks, in a fixed order.

    What is only linked to it informs the others.
    """
    direct = table.where(table.counts >= 1.0)
    least = max(min_tasks, MIN_SHARE * len(set(table.tasks)))
    return tuple(c for c in sorted(set(direct.configs)) if len(set(direct.tasks[direct.configs == c])) >= least)


def fit_predictor(
    dataset: MetaDataset,
    default: str,
    settings: Settings | None = None,
    cautions: Mapping[str, float] | None = None,
    fit: Callable[[GroupTable, Settings], OptimizerSelector] = fit_group,
) -> Predictor:
    """The trained selector, ready to be saved and applied.

    Args:
        dataset: Recorded trials and meta-features.
        default: Canonical JSON of the calibrated default.
        settings: Choices of the selector itself.
        cautions: Caution of each role group; that of the settings where it is not given.
        fit: Fits a selector on a role group's rows.

    Raises:
        MetaDatasetError: If nothing was recorded around the default.
    """
    settings = settings or Settings()
    tables = learning_tables(dataset, default, settings.features)
    if not tables:
        raise MetaDatasetError(
            "no recorded pair has the calibrated default on one side; record a coordinate round with "
            "scripts/build_meta_dataset.py first, and features with --rounds features"
        )
    groups = {
        group: group_model(table, replace(settings, caution=(cautions or {}).get(group, settings.caution)), fit)
        for group, table in tables.items()
    }
    tasks = {task for table in tables.values() for task in table.tasks}
    return Predictor(
        default=default,
        features=tuple(settings.features),
        groups=groups,
        margin=settings.margin,
        info=_info(dataset, tables, tasks),
    )


def group_model(
    table: GroupTable, settings: Settings, fit: Callable[[GroupTable, Settings], OptimizerSelector]
) -> GroupModel:
    """What is learned for one role group.

    Args:
        table: Its rows.
        settings: Choices of the selector, the role group's caution among them.
        fit: Fits a selector on the rows.
    """
    model = fit(table, settings)
    tasks, first = np.unique(table.tasks, return_index=True)
    reference = table.x[first, : len(settings.features)]
    winners = []
    for task in tasks:
        rows = np.flatnonzero(table.tasks == task)
        best = rows[np.argmin(table.y[rows])]
        winners.append(in_words(str(table.configs[best]), float(table.y[best])))
    group = GroupModel(
        process=model.process_,
        candidates=proposable(table),
        spread=settings.spread,
        caution=settings.caution,
        reference=reference,
        tasks=tuple(map(str, tasks)),
        winners=tuple(winners),
        reach=float("inf"),
    )
    return replace(group, reach=_reach(group))


def _reach(group: GroupModel) -> float:
    # Twice the distance within which 95 % of the recorded tasks have a neighbour.
    nearest = []
    for index, row in enumerate(group.reference):
        distances = group.distances(row)
        distances[index] = np.inf
        nearest.append(distances.min())
    return 2.0 * float(np.quantile(nearest, 0.95)) if len(nearest) > 2 else float("inf")


def in_words(config: str, outcome: float) -> str:
    """A configuration and its outcome, as reports tell what won on a recorded task."""
    if outcome >= 0:
        return "the calibrated default"
    value: dict[str, Any] = json.loads(config)
    extra = "".join(f", {k} {v}" for k, v in value["hyperparameters"].items() if k in ("weight_decay", "momentum"))
    return f"{value['optimizer']} at relative rate {value['lr']:g}{extra} ({100 * (np.exp(outcome) - 1):.0f} % loss)"


def _info(dataset: MetaDataset, tables: dict[str, GroupTable], tasks: set[str]) -> dict[str, Any]:
    import sklearn

    families = {str(f) for table in tables.values() for f in table.families}
    return {
        "num_tasks": len(tasks),
        "num_families": len(families),
        "num_trials": int(len(dataset.trials)),
        "num_pairs": int(sum(len(table.y) for table in tables.values())),
        "interval_coverage": 0.8,
        "scikit_learn": sklearn.__version__,
        "numpy": np.__version__,
    }
