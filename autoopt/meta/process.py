"""A fitted Gaussian process as plain arrays: predictions without scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LIMIT = 3.0
"""Standardised features are clipped to this many spreads: far outside, distance says no more."""


def similarity(a: Array, b: Array) -> Array:
    """`exp(-|a - b|^2 / 2)` between all rows of two tables, `(num_rows_a, num_rows_b)`."""
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2.0 * a @ b.T
    return np.exp(-0.5 * np.maximum(squared, 0.0))


def pinned_similarity(a: Array, b: Array) -> Array:
    """The covariance of a process of `similarity` once its value at the origin is known to be 0.

    `k(a, b) - k(a, 0) k(0, b)`: a change of size zero has no effect. Tables without columns have the
    covariance 1.
    """
    if a.shape[1] == 0:
        return np.ones((len(a), len(b)))
    origin = np.zeros((1, a.shape[1]))
    return similarity(a, b) - similarity(a, origin) @ similarity(origin, b)


@dataclass(frozen=True, eq=False)
class Process:
    """A Gaussian process over meta-features and candidate columns.

    With `z` the standardised meta-features times their relevance and `c` the candidate's columns over
    their lengths, the covariance of two effects is

        `p(c, c') (common^2 + linear^2 z . z' + local^2 exp(-|z - z'|^2 / 2))`

    where `p` is `pinned_similarity`: the default itself (`c = 0`) has no effect, and candidates that are
    alike share theirs. An effect has a part that is common to all tasks, one that is linear in the
    features that matter, and one that only tasks alike in them share. An outcome adds noise of its own,
    and noise that all outcomes of its task share, since they are measured against the same run.

    Attributes:
        x: Training rows as they were given, `(num_rows, num_features + num_candidate_columns)`; NaN where a
            feature was not measured.
        weights: Dual coefficients, `(num_rows,)`.
        center: Mean of each meta-feature.
        spread: Standard deviation of each meta-feature.
        relevance: Weight of each standardised meta-feature; 0 where it does not count.
        lengths: Length scale of each candidate column.
        common: Standard deviation of the effect that all tasks share, far from the default.
        linear: Standard deviation of what a feature of relevance 1 adds to it, a spread from the mean.
        local: Standard deviation of what only tasks that are alike share.
        task_noise: Standard deviation of the noise that all outcomes of a task share.
        noise: Standard deviation of each outcome's own noise, `(num_rows,)`.
    """

    x: Array
    weights: Array
    center: Array
    spread: Array
    relevance: Array
    lengths: Array
    common: float
    linear: float
    local: float
    task_noise: float
    noise: Array

    @property
    def num_features(self) -> int:
        """The number of meta-features."""
        return len(self.center)

    def standardised(self, x: Array) -> tuple[Array, Array]:
        """Meta-features, standardised, clipped and weighed (a missing one at the mean), and candidate columns."""
        return self.standardised_features(x[:, : self.num_features]), x[:, self.num_features :] / self.lengths

    def standardised_features(self, features: Array) -> Array:
        """The same of meta-features alone, `(num_rows, num_features)`."""
        features = (features - self.center) / self.spread
        return np.clip(np.where(np.isnan(features), 0.0, features), -LIMIT, LIMIT) * self.relevance

    @cached_property
    def _training(self) -> tuple[Array, Array]:
        return self.standardised(self.x)

    @cached_property
    def _tasks(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Which task each training row is of, and the first row of every task."""
        _, task_of = distinct(np.nan_to_num(self.x[:, : self.num_features], nan=np.inf))
        return task_of, np.unique(task_of, return_index=True)[1]

    @cached_property
    def _factor(self) -> Array:
        # There are few distinct tasks and candidates: their covariances are computed once each.
        z, _ = self._training
        task_of, first = self._tasks
        candidates, candidate_of = self._candidates
        size = self._size(z[first], z[first])[np.ix_(task_of, task_of)]
        covariance = size * pinned_similarity(candidates, candidates)[np.ix_(candidate_of, candidate_of)]
        covariance += self.task_noise**2 * (task_of[:, None] == task_of[None, :])
        covariance[np.diag_indices_from(covariance)] += self.noise**2
        return np.asarray(np.linalg.cholesky(covariance), dtype=np.float64)

    def _size(self, z1: Array, z2: Array) -> Array:
        """The covariance of effects far from the default, between tasks."""
        return self.common**2 + self.linear**2 * z1 @ z2.T + self.local**2 * similarity(z1, z2)

    def size(self, z: Array) -> Array:
        """The variance of effects far from the default, before anything is recorded, `(num_rows,)`."""
        return self.common**2 + self.linear**2 * (z**2).sum(axis=1) + self.local**2

    @property
    def anchors(self) -> Array:
        """Standardised meta-features of the recorded tasks, `(num_tasks, num_features)`."""
        return self._training[0][self._tasks[1]]

    def basis(self, z: Array, anchors: Array) -> Array:
        """What the covariances of effects with all recorded ones are linear in, `(num_rows, size)`.

        With `local` it is the covariance, far from the default, with the effects of each recorded task; without,
        the features themselves are enough.

        Args:
            z: Standardised meta-features.
            anchors: The process's own `anchors`, which it takes a while to find.
        """
        return self._size(z, anchors) if self.local > 0.0 else self._sized(z)

    def forms(self, candidates: Array) -> tuple[Array, Array, Array]:
        """The means, reductions and priors of `autoopt.meta.forms.CandidateForms`, reductions as square matrices.

        Args:
            candidates: The candidates' columns, `(num_candidates, num_candidate_columns)`.
        """
        c = candidates / self.lengths
        task_of, first = self._tasks
        # Linear in the basis: `loadings[i] . basis` is the covariance with row `i`, far from the default.
        loadings = np.eye(len(first))[task_of] if self.local > 0.0 else self._sized(self._training[0])
        alike = pinned_similarity(c, self._candidates[0])[:, self._candidates[1]]
        means, reductions = [], []
        for row in alike:
            solved = _solve_lower(self._factor, loadings * row[:, None])
            means.append((self.weights * row) @ loadings)
            reductions.append(solved.T @ solved)
        return np.stack(means), np.stack(reductions), np.diagonal(pinned_similarity(c, c)).copy()

    def outcomes(self) -> Array:
        """The outcomes of the training rows that the dual coefficients were computed from, `(num_rows,)`."""
        return self._factor @ (self._factor.T @ self.weights)

    def dual_of(self, y: Array) -> Array:
        """The dual coefficients for outcomes `y` of the training rows, `(num_rows,)`."""
        return np.asarray(_solve_lower(self._factor, _solve_lower(self._factor, y), transposed=True))

    def mean(self, x: Array) -> Array:
        """The expected effect of every row, `(num_rows,)`."""
        sizes, similarities = self._to_distinct(*self.standardised(x))
        return (sizes @ self._weight_table * similarities).sum(axis=1)

    def _to_distinct(self, z: Array, c: Array) -> tuple[Array, Array]:
        """The two factors of the covariances: with every recorded task, and with every recorded candidate."""
        return self._size(z, self._training[0][self._tasks[1]]), pinned_similarity(c, self._candidates[0])

    @cached_property
    def _weight_table(self) -> Array:
        """The dual coefficients by task and candidate: the mean is one product with each side."""
        table = np.zeros((len(self._tasks[1]), len(self._candidates[0])))
        np.add.at(table, (self._tasks[0], self._candidates[1]), self.weights)
        return table

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the effect, each `(num_rows,)`; noise is left out."""
        z, c = self.standardised(x)
        sizes, similarities = self._to_distinct(z, c)
        reduction = self._reduction(z, c, sizes, similarities)
        prior = np.diagonal(pinned_similarity(c, c)) * self.size(z)
        mean = (sizes @ self._weight_table * similarities).sum(axis=1)
        return mean, np.sqrt(np.maximum(prior - reduction, 0.0))

    def _reduction(self, z: Array, c: Array, sizes: Array, similarities: Array) -> Array:
        """By how much the variance of effects is lower than before anything was recorded, `(num_rows,)`."""
        if self.local > 0.0 or (1 + self.num_features) * len(self._candidates[0]) >= len(self.x):
            cross = sizes[:, self._tasks[0]] * similarities[:, self._candidates[1]]
            return (_solve_lower(self._factor, cross.T) ** 2).sum(axis=0)
        phi = self._features(z, c)
        return (phi**2).sum(axis=1) - (_solve_lower(self._feature_factor, phi.T) ** 2).sum(axis=0)

    def _features(self, z: Array, c: Array) -> Array:
        """Rows whose inner products are the covariances of effects with those recorded, where `local` is 0."""
        return (self._sized(z)[:, :, None] * self._candidate_features(c)[:, None, :]).reshape(len(z), -1)

    def _sized(self, z: Array) -> Array:
        """Rows whose inner products are the covariances of effects far from the default, where `local` is 0."""
        return np.hstack([np.full((len(z), 1), self.common), self.linear * z])

    def _candidate_features(self, c: Array) -> Array:
        candidates, root = self._candidate_root
        return pinned_similarity(c, candidates) @ root

    @cached_property
    def _candidates(self) -> tuple[Array, NDArray[np.intp]]:
        """The distinct candidates' columns, and which of them each training row is of."""
        return distinct(self._training[1])

    @cached_property
    def _candidate_root(self) -> tuple[Array, Array]:
        # Inverse square root of the covariance of the recorded candidates, of which some may be alike.
        candidates, _ = self._candidates
        values, vectors = np.linalg.eigh(pinned_similarity(candidates, candidates))
        kept = values > 1e-12 * max(values.max(initial=0.0), 1e-300)
        return candidates, vectors[:, kept] / np.sqrt(values[kept])

    @cached_property
    def _feature_factor(self) -> Array:
        """The factor of `1 + features^T noise^-1 features`: as large as there are features, not as there are rows."""
        z, c = self._training
        task_of, first = self._tasks
        size = self._sized(z[first])
        codes = self._candidate_features(c)
        inner = np.empty((len(first), codes.shape[1], codes.shape[1]))
        for task in range(len(first)):
            rows = task_of == task
            weighed = codes[rows] / self.noise[rows, None] ** 2
            total = weighed.sum(axis=0)
            shared = self.task_noise**2 / (1.0 + self.task_noise**2 * (1.0 / self.noise[rows] ** 2).sum())
            inner[task] = codes[rows].T @ weighed - shared * np.outer(total, total)
        outer = (size[:, :, None] * size[:, None, :]).reshape(len(first), -1)
        products = (outer.T @ inner.reshape(len(first), -1)).reshape(2 * (size.shape[1],) + 2 * (codes.shape[1],))
        count = size.shape[1] * codes.shape[1]
        precision = np.eye(count) + products.transpose(0, 2, 1, 3).reshape(count, count)
        return np.asarray(np.linalg.cholesky(precision), dtype=np.float64)


def distinct(rows: Array) -> tuple[Array, NDArray[np.intp]]:
    """The distinct rows of a table, and which of them each row is."""
    if rows.shape[1] == 0:
        return np.zeros((1, 0)), np.zeros(len(rows), dtype=np.intp)
    found, index = np.unique(rows, axis=0, return_inverse=True)
    return found, index.ravel()


def _solve_lower(factor: Array, right: Array, transposed: bool = False) -> Array:
    """The solution of `factor @ y = right`, or of `factor.T @ y = right`, for a lower triangular factor."""
    # SciPy is here because scikit-learn needs it; its linear algebra alone loads in milliseconds.
    from scipy.linalg import solve_triangular

    return np.asarray(solve_triangular(factor, right, lower=True, trans=int(transposed), check_finite=False))
