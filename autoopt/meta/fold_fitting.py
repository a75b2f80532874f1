"""Selectors that have not seen a fold: the one place where the evaluation fits anything.

`FoldFitter` is all that the evaluation knows of the learner: from recorded data and a default to a
function of the tasks that may be learned from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import Any

from autoopt.meta.artifact import Predictor
from autoopt.meta.calibration import calibrated_by
from autoopt.meta.dataset import MetaDataset
from autoopt.meta.evaluation import predict_held_out, strict_folds
from autoopt.meta.fitting import MIN_TASKS, GroupTable, Settings, fit_group, fit_predictor, learning_tables
from autoopt.meta.selector import OptimizerSelector


class FoldFitter:
    """Fits a selector on any part of the recorded tasks, as `scripts/train_selector.py` does on all.

    Interval widths and cautions are chosen by the outcomes of the training side alone. The held-out
    predictions that they are chosen by are made once for all folds: that for a training task comes
    from a selector without this task's family and source, but with the judged tasks. To leave those
    out as well would take a fit for every pair of folds.

    Args:
        dataset: Recorded trials and meta-features.
        default: Canonical JSON of the default that choices deviate from.
        jobs: Fits at a time, each in its own process with one thread.
        say: Called with a line on what is done.
    """

    def __init__(
        self, dataset: MetaDataset, default: str, *, jobs: int = 1, say: Callable[[str], None] = lambda text: None
    ) -> None:
        self.dataset, self.default = dataset, default
        self.settings = Settings()
        self.tables = learning_tables(dataset, default, self.settings.features)
        self._fitted: dict[str, OptimizerSelector] = {}
        for group, table in self.tables.items():
            say(f"fitting the folds of {group}: {len(table.y)} pairs of {len(set(table.tasks))} tasks")
            self._fit_folds(table, jobs)
        self.predictions = {
            group: predict_held_out(table, self.settings, MIN_TASKS, fit=self._fit)
            for group, table in self.tables.items()
        }

    def fit(self, tasks: Collection[str], groups: Collection[str] | None = None) -> Predictor:
        """The selector that was fitted and calibrated on these tasks alone.

        Args:
            tasks: Tasks to learn from.
            groups: Role groups that it has to know; all of them without it.

        Raises:
            MetaDatasetError: If nothing was recorded around the default on them.
        """
        settings, cautions = self.calibration(tasks)
        part = restricted(self.dataset, tasks)
        if groups is not None:
            known = part.features["group"].isin(list(groups))
            part = MetaDataset(part.trials, part.features[known].reset_index(drop=True))
        return fit_predictor(part, self.default, settings, cautions, self._fit)

    def calibration(self, tasks: Collection[str]) -> tuple[Settings, dict[str, float]]:
        """Settings and cautions by the outcomes of these tasks."""
        found = {group: predictions.of(tasks) for group, predictions in self.predictions.items()}
        settings, cautions, _ = calibrated_by(found, self.settings)
        return settings, cautions

    def positions(self, train: Collection[str], test: Collection[str]) -> dict[str, list[float]]:
        """Role group -> where the outcomes of `test` lie in the distributions predicted for them.

        0.5 is the predicted mean, 0.975 the upper end of the 95 % interval. The predictions are
        those of the strict protocol, the width of their intervals is calibrated on `train`.
        """
        from scipy.special import ndtr

        settings, _ = self.calibration(train)
        return {
            group: [round(float(value), 4) for value in ndtr(predictions.of(test).errors(settings.spread))]
            for group, predictions in self.predictions.items()
        }

    def _fit_folds(self, table: GroupTable, jobs: int) -> None:
        """Nothing; fits a selector for every fold of a role group's rows."""
        from joblib import Parallel, delayed

        parts = [table.where(train) for train, _ in strict_folds(table.families, table.sources)]
        missing = {_key(part): part for part in parts if len(set(part.tasks)) >= MIN_TASKS}
        models: Any = Parallel(n_jobs=jobs)(delayed(fit_group)(part, self.settings) for part in missing.values())
        self._fitted |= dict(zip(missing, models, strict=True))

    def _fit(self, table: GroupTable, settings: Settings) -> OptimizerSelector:
        """A selector fitted on these rows; equal rows are fitted once."""
        key = _key(table)
        if key not in self._fitted:
            self._fitted[key] = fit_group(table, settings)
        kept = self._fitted[key]
        found = OptimizerSelector(**kept.get_params())
        # The process is a copy: what it computes on first use, a large table, is not kept for every fold.
        found.__dict__ |= {**kept.__dict__, "process_": replace(kept.process_)}
        return found


def _key(table: GroupTable) -> str:
    return hashlib.sha256(table.x.tobytes() + table.y.tobytes() + table.counts.tobytes()).hexdigest()


def restricted(dataset: MetaDataset, tasks: Collection[str]) -> MetaDataset:
    """The trials and meta-features of some tasks only."""
    trials, features = dataset.trials, dataset.features
    names = list(tasks)
    return MetaDataset(
        trials[trials["task"].isin(names)].reset_index(drop=True),
        features[features["task"].isin(names)].reset_index(drop=True),
    )
