"""The meta-learner: what a change of one role group's configuration would do to the loss.

For a role group's meta-features and a candidate configuration it predicts the log ratio to the
calibrated default, with an uncertainty. Only changes whose pessimistic prediction still gains are
worth making, so abstaining needs no machinery of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from autoopt.meta.evidence import Evidence, Hyperparameters, most_probable
from autoopt.meta.process import Process, distinct


class OptimizerSelector(RegressorMixin, BaseEstimator):
    """A Gaussian process over meta-features and candidate columns, for one role group.

    The default itself (all candidate columns 0) has no effect by construction, candidates unlike all
    recorded ones are expected to be no different from it, and the uncertainty grows away from what was
    recorded. `autoopt.meta.process.Process` states the covariance. Which meta-features matter, and how
    much, is found on the training rows: their relevance and all other hyper-parameters are those of
    the highest posterior, starting from (and drawn towards) the values given here.

    Args:
        num_candidate_columns: How many of the last columns describe the candidate.
        common: Standard deviation of the effect that all tasks share (log loss).
        linear: Standard deviation of what a feature of relevance 1 adds to it, a spread from its mean.
        local: Standard deviation of what only tasks with similar features share.
        task_noise: Standard deviation of the noise that all outcomes of a task share.
        noise: Standard deviation of an outcome's own noise.
        relevance: Weight of each standardised meta-feature.
        lengths: Length scale of each candidate column; 1 for each where None.
        max_iter: Iterations of the search for hyper-parameters; 0 keeps those given.
        evidence_rows: Rows that the search looks at, of as many tasks drawn at random as fit: its cost grows
            with their cube. All rows are learned from.
        seed: Seed of that draw.

    Attributes:
        process_: The fitted `Process`.
        hyperparameters_: The hyper-parameters found.
        n_iter_: Iterations that the search took.
        n_features_in_: Number of columns.

    Source: automatic relevance determination, Neal 1996; marginal likelihood, Rasmussen & Williams 2006,
    chapter 5.
    """

    def __init__(
        self,
        num_candidate_columns: int = 0,
        common: float = 0.06,
        linear: float = 0.1,
        local: float = 0.05,
        task_noise: float = 0.03,
        noise: float = 0.05,
        relevance: float = 0.3,
        lengths: Sequence[float] | None = None,
        max_iter: int = 25,
        evidence_rows: int = 600,
        seed: int = 0,
    ) -> None:
        self.num_candidate_columns = num_candidate_columns
        self.common = common
        self.linear = linear
        self.local = local
        self.task_noise = task_noise
        self.noise = noise
        self.relevance = relevance
        self.lengths = lengths
        self.max_iter = max_iter
        self.evidence_rows = evidence_rows
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, counts: ArrayLike | None = None) -> OptimizerSelector:  # noqa: N803
        """Fit on rows of meta-features followed by candidate columns.

        Rows with the same meta-features are outcomes of one task.

        Args:
            X: `(num_rows, num_columns)`, NaN where a feature was not measured.
            y: `(num_rows,)`, log ratios to the default.
            counts: How many outcomes each row is the mean of, which divides the variance of its noise;
                1 for each where None.
        """
        checked: Any = validate_data  # scikit-learn types its arguments as strings
        x, y = checked(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", y_numeric=True)
        y = np.asarray(y, dtype=np.float64)
        weight = np.ones(len(x)) if counts is None else np.asarray(counts, dtype=np.float64)
        if weight.shape != y.shape or not (weight > 0).all():
            raise ValueError(f"counts must hold a positive number for each of the {len(y)} rows")
        num_features = max(0, x.shape[1] - self.num_candidate_columns)
        start = Hyperparameters(
            self.common,
            self.linear,
            self.local,
            self.task_noise,
            self.noise,
            self._lengths(x.shape[1] - num_features),
            np.full(num_features, float(self.relevance)),
        )
        center, spread = _scales(x[:, :num_features])
        plain = self._process(x, np.zeros(len(x)), center, spread, weight, start, np.ones(num_features))
        z, _ = plain.standardised(x)
        seen = _whole_tasks(x[:, :num_features], self.evidence_rows, self.seed)
        evidence = Evidence(z[seen], x[seen, num_features:], y[seen], weight[seen], start)
        found, self.n_iter_ = most_probable(evidence, self.max_iter)
        found = found.pruned()
        prior = self._process(x, np.zeros(len(x)), center, spread, weight, found, found.relevance)
        self.hyperparameters_ = found
        self.process_ = self._process(x, prior.dual_of(y), center, spread, weight, found, found.relevance)
        return self

    def _lengths(self, count: int) -> np.ndarray:
        lengths = np.ones(count) if self.lengths is None else np.asarray(self.lengths, dtype=np.float64)
        if len(lengths) != count:
            raise ValueError(f"lengths must have a value for each of the {count} candidate columns, not {len(lengths)}")
        return lengths

    @staticmethod
    def _process(
        x: np.ndarray,
        dual: np.ndarray,
        center: np.ndarray,
        spread: np.ndarray,
        weight: np.ndarray,
        given: Hyperparameters,
        relevance: np.ndarray,
    ) -> Process:
        return Process(
            x=x,
            weights=dual,
            center=center,
            spread=spread,
            relevance=relevance,
            lengths=given.lengths,
            common=given.common,
            linear=given.linear,
            local=given.local,
            task_noise=given.task_noise,
            noise=given.noise / np.sqrt(weight),
        )

    def predict(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        """The expected log ratio to the default, `(num_rows,)`; negative is better."""
        check_is_fitted(self)
        return self.process_.mean(self._checked(X))

    def predict_with_spread(self, X: ArrayLike) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        """Mean and standard deviation of the log ratio's effect, each `(num_rows,)`."""
        check_is_fitted(self)
        return self.process_.predict(self._checked(X))

    def _checked(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        checked: Any = validate_data
        return checked(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)

    def __sklearn_tags__(self) -> Any:
        """Tags: missing values are allowed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        # Effects are shrunk towards 0: a target far from 0 is not what this is made for.
        tags.regressor_tags.poor_score = True
        return tags


def _whole_tasks(features: np.ndarray, count: int, seed: int) -> np.ndarray:
    """At most `count` rows (but at least one task's): those of tasks drawn at random, in their order."""
    if len(features) <= count:
        return np.arange(len(features))
    _, task_of = distinct(np.nan_to_num(features, nan=np.inf))
    sizes = np.bincount(task_of)
    order = np.random.default_rng(seed).permutation(len(sizes))
    drawn = order[: max(1, int(np.searchsorted(np.cumsum(sizes[order]), count, side="right")))]
    return np.flatnonzero(np.isin(task_of, drawn))


def _scales(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column over the tasks that know it; 0 and 1 where none does."""
    center, spread = np.zeros(features.shape[1]), np.ones(features.shape[1])
    tasks = np.unique(np.nan_to_num(features, nan=np.inf), axis=0)
    for column in range(features.shape[1]):
        values = tasks[np.isfinite(tasks[:, column]), column]
        if len(values):
            center[column] = values.mean()
            if values.std() > 1e-9:
                spread[column] = values.std()
    return center, spread
