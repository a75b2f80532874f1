"""A selector that has learned from the user's own runs: the given one, conditioned on their pairs.

The hyper-parameters of the Gaussian process stay as they were found on the recorded tasks; own outcomes
join its training rows. So they count most for models that are alike in the features that matter, and no
more elsewhere than recorded ones. Beside that one thing changes: a candidate that gained in own runs is
judged with less caution for models like theirs, also in role groups where nothing transferred between
families.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoopt.errors import MetaDatasetError
from autoopt.meta.artifact import GroupModel, Predictor
from autoopt.meta.encoding import OPTIMIZERS
from autoopt.meta.fitting import GroupTable, in_words, learning_tables
from autoopt.meta.process import Process

if TYPE_CHECKING:
    from autoopt.meta.dataset import MetaDataset

OWN_WEIGHT = 1.0
"""Recorded outcomes that one own outcome counts as (`scripts/learn_from_own_runs.py` compares others)."""

_NO_PAIR = (
    "the own runs hold no pair to learn from: of two finished runs of one task, on the same model for as many steps, "
    "one must train with the default (selector='default') and the other with one role group changed "
    "(explore=True does both in turn)"
)


def learned_from(predictor: Predictor, own: MetaDataset) -> Predictor:
    """The selector after own runs.

    Args:
        predictor: The selector to start from; it stays as it is.
        own: The own runs, as `autoopt.meta.own_runs.own_dataset` gives them.

    Raises:
        MetaDatasetError: If the own runs hold no pair: two runs of one task of which one trained with the
            selector's default and the other with one role group changed.
    """
    if own.trials.empty or own.features.empty:
        raise MetaDatasetError(_NO_PAIR)
    features = own.features.reindex(columns=[*own.features.columns, *_missing(predictor, own)])
    tables = {
        group: known
        for group, table in learning_tables(
            type(own)(own.trials, features), predictor.default, predictor.features
        ).items()
        if group in predictor.groups and len((known := table.where(_encoded(table))).y)
    }
    if not tables:
        raise MetaDatasetError(_NO_PAIR)
    groups = {
        group: conditioned(model, tables[group]) if group in tables else model
        for group, model in predictor.groups.items()
    }
    tasks = {str(task) for table in tables.values() for task in table.tasks}
    info = {"num_own_tasks": len(tasks), "num_own_pairs": sum(len(table.y) for table in tables.values())}
    return replace(predictor, groups=groups, info=predictor.info | info, sha256="")


def conditioned(model: GroupModel, table: GroupTable, weight: float = OWN_WEIGHT) -> GroupModel:
    """What was learned for one role group, after further outcomes.

    Args:
        model: What was learned before.
        table: The rows of the further outcomes.
        weight: Recorded outcomes that each of them counts as.
    """
    tasks, first = np.unique(table.tasks, return_index=True)
    reference = table.x[first, : model.reference.shape[1]]
    tried = tuple(sorted(set(map(str, table.configs))))
    gained = tuple(config for config in tried if table.y[table.configs == config].mean() < 0)
    winners = []
    for task in tasks:
        rows = np.flatnonzero(table.tasks == task)
        best = rows[np.argmin(table.y[rows])]
        winners.append(in_words(str(table.configs[best]), float(table.y[best])))
    return replace(
        model,
        process=with_rows(model.process, table.x, table.y, weight * table.counts),
        candidates=(*model.candidates, *(config for config in tried if config not in model.candidates)),
        reference=np.vstack([model.reference, reference]),
        tasks=(*model.tasks, *map(str, tasks)),
        winners=(*model.winners, *winners),
        own=tuple(dict.fromkeys((*model.own, *gained))),
        stored_forms=None,
        own_reference=reference if model.own_reference is None else np.vstack([model.own_reference, reference]),
    )


def with_rows(process: Process, x: NDArray[np.float64], y: NDArray[np.float64], counts: NDArray[np.float64]) -> Process:
    """The process conditioned on further rows, with the hyper-parameters that it has.

    Args:
        process: The process.
        x: `(num_rows, num_columns)`.
        y: Log ratios to the default, `(num_rows,)`.
        counts: Outcomes that each row is the mean of, which divides the variance of its noise.
    """
    # A row that is the mean of one outcome has the largest noise.
    noise = float(process.noise.max()) / np.sqrt(counts)
    joined = replace(process, x=np.vstack([process.x, x]), noise=np.concatenate([process.noise, noise]))
    outcomes = np.concatenate([process.outcomes(), y])
    return replace(joined, weights=joined.dual_of(outcomes))


def _encoded(table: GroupTable) -> NDArray[np.bool_]:
    """Which rows have a candidate that the columns tell from the default."""
    known = [json.loads(config)["optimizer"] in OPTIMIZERS for config in table.configs.tolist()]
    return np.asarray(known, dtype=np.bool_)


def _missing(predictor: Predictor, own: MetaDataset) -> list[Any]:
    return [name for name in predictor.features if name not in own.features.columns]
