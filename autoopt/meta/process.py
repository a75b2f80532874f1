"""A fitted Gaussian process as plain arrays: predictions and contributions without scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

LIMIT = 3.0
"""Standardised features are clipped to this many spreads: far outside, distance says no more."""


@dataclass(frozen=True, eq=False)
class Process:
    """A Gaussian process over meta-features and candidate columns.

    With `z` the standardised meta-features and `c` the candidate's columns, the covariance is
    `amplitude^2 exp(-|c - c'|^2 / 2) (shared + (1 - shared) exp(-|z - z'|^2 / (2 n l^2)))`: candidates
    that are alike share an effect, part of it common to all tasks, the rest only to tasks with
    similar features.

    Attributes:
        x: Training rows as they were given, `(num_rows, num_features + num_candidate_columns)`; NaN where a
            feature was not measured.
        weights: Dual coefficients, `(num_rows,)`.
        center: Mean of each meta-feature.
        spread: Standard deviation of each meta-feature.
        amplitude: Standard deviation of effects before anything is known.
        length: Length scale `l` in spreads, averaged over the `n` features.
        shared: Share of an effect's variance that is common to all tasks.
        noise: Standard deviation of an outcome around its effect, `(num_rows,)`.
    """

    x: Array
    weights: Array
    center: Array
    spread: Array
    amplitude: float
    length: float
    shared: float
    noise: Array

    @property
    def num_features(self) -> int:
        """The number of meta-features."""
        return len(self.center)

    def standardised(self, x: Array) -> tuple[Array, Array]:
        """Clipped standardised meta-features, a missing one at the mean; and candidate columns."""
        features = (x[:, : self.num_features] - self.center) / self.spread
        return np.clip(np.where(np.isnan(features), 0.0, features), -LIMIT, LIMIT), x[:, self.num_features :]

    @cached_property
    def _training(self) -> tuple[Array, Array]:
        return self.standardised(self.x)

    @cached_property
    def _inverse_factor(self) -> Array:
        covariance = self._covariance(*self._training, *self._training)
        factor = np.linalg.cholesky(covariance + np.diag(self.noise**2))
        return np.asarray(np.linalg.inv(factor), dtype=np.float64)

    def _covariance(self, z1: Array, c1: Array, z2: Array, c2: Array) -> Array:
        alike = np.exp(-0.5 * _squared_distances(c1, c2))
        similar = np.exp(-0.5 * _squared_distances(z1, z2) / (self.num_features * self.length**2))
        return self.amplitude**2 * alike * (self.shared + (1.0 - self.shared) * similar)

    def mean(self, x: Array) -> Array:
        """The expected outcome of every row, `(num_rows,)`."""
        return self._covariance(*self.standardised(x), *self._training) @ self.weights

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the effect, each `(num_rows,)`; noise is left out."""
        cross = self._covariance(*self.standardised(x), *self._training)
        reduction = ((cross @ self._inverse_factor.T) ** 2).sum(axis=1)
        return cross @ self.weights, np.sqrt(np.maximum(self.amplitude**2 - reduction, 0.0))

    def contributions(self, row: Array) -> Array:
        """What each column of one row adds to its prediction, `(num_columns,)`.

        For a meta-feature: the prediction minus the one with that feature at the recorded mean.
        Features that say the same share the credit only in part, so the parts need not add up.

        Args:
            row: `(num_columns,)`.
        """
        changed = np.repeat(row[None], self.num_features + 1, axis=0)
        for column in range(self.num_features):
            changed[column, column] = self.center[column]
        means = self.mean(changed)
        return means[-1] - means[:-1]


def _squared_distances(a: Array, b: Array) -> Array:
    squared = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None, :] - 2.0 * a @ b.T
    return np.maximum(squared, 0.0)
