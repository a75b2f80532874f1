"""The hyper-parameters of a process, found by the evidence: marginal likelihood times a prior."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from autoopt.meta.process import Array, distinct, pinned_similarity, similarity

NUM_SCALES = 5
"""Amplitudes and noise levels among the hyper-parameters."""

LENGTH_SPREAD = 0.5
"""Standard deviation of the prior on log lengths of candidate columns."""

SCALE_SPREAD = 1.0
"""Standard deviation of the prior on log amplitudes and log noise."""

RELEVANCE_SPREAD = 1.0
"""Standard deviation of the prior on the log relevance of a meta-feature."""


@dataclass(frozen=True, eq=False)
class Hyperparameters:
    """What the covariance of `autoopt.meta.process.Process` depends on, in its terms."""

    common: float
    linear: float
    local: float
    task_noise: float
    noise: float
    lengths: Array
    relevance: Array

    def to_vector(self) -> Array:
        """The logs of all of them as one vector."""
        scales = [self.common, self.linear, self.local, self.task_noise, self.noise]
        return np.log(np.concatenate([scales, self.lengths, self.relevance]))

    def from_vector(self, vector: Array) -> Hyperparameters:
        """Those in a vector of logs, of the same sizes as these."""
        values = np.exp(vector)
        split = NUM_SCALES + len(self.lengths)
        common, linear, local, task_noise, noise = map(float, values[:NUM_SCALES])
        return replace(
            self,
            common=common,
            linear=linear,
            local=local,
            task_noise=task_noise,
            noise=noise,
            lengths=values[NUM_SCALES:split],
            relevance=values[split:],
        )

    def pruned(self) -> Hyperparameters:
        """Those in which an amplitude that is a hundredth of the largest, or less, is 0.

        Such a part of an effect is far below the noise, and without the local part predictions are cheap.
        """
        amplitudes = {"common": self.common, "linear": self.linear, "local": self.local}
        least = 0.01 * max(amplitudes.values())
        return replace(self, **{name: value if value > least else 0.0 for name, value in amplitudes.items()})

    @property
    def prior_spreads(self) -> Array:
        """Standard deviation of the normal prior on each log, which is centred on the start."""
        counts = (NUM_SCALES, len(self.lengths), len(self.relevance))
        return np.repeat([SCALE_SPREAD, LENGTH_SPREAD, RELEVANCE_SPREAD], counts)


class Evidence:
    """The log posterior of hyper-parameters given learning rows, with its gradient.

    All sums over pairs of rows are first taken over pairs of tasks, or pairs of candidates: there are
    few of each, so that a gradient costs hardly more than the factorisation.

    Args:
        z: Standardised meta-features, `(num_rows, num_features)`.
        c: Candidate columns, `(num_rows, num_candidate_columns)`.
        y: Outcomes, `(num_rows,)`.
        weight: Weight of each row, which divides the variance of its noise.
        start: Centre of the prior, and where the search starts.
    """

    def __init__(self, z: Array, c: Array, y: Array, weight: Array, start: Hyperparameters) -> None:
        self.y, self.weight, self.start = y, weight, start
        self.tasks, self.task_of = distinct(z)
        self.candidates, self.candidate_of = distinct(c)
        self.same_task = (self.task_of[:, None] == self.task_of[None, :]).astype(np.float64)

    def negative(self, vector: Array) -> tuple[float, Array]:
        """The negative log posterior (without constants) and its gradient."""
        given = self.start.from_vector(vector)
        gap = (vector - self.start.to_vector()) / self.start.prior_spreads
        alike = self._candidate_similarity(given)
        weighed = self.tasks * given.relevance
        products, similar = weighed @ weighed.T, similarity(weighed, weighed)
        size = given.common**2 + given.linear**2 * products + given.local**2 * similar
        alike_rows = alike[np.ix_(self.candidate_of, self.candidate_of)]
        size_rows = size[np.ix_(self.task_of, self.task_of)]
        noise = given.noise**2 / self.weight
        covariance = alike_rows * size_rows + given.task_noise**2 * self.same_task
        covariance[np.diag_indices_from(covariance)] += noise
        try:
            factor = np.linalg.cholesky(covariance)
        except np.linalg.LinAlgError:
            return 1e25, np.zeros_like(vector)
        inverse = _inverse(factor)
        dual = inverse @ self.y
        value = 0.5 * self.y @ dual + np.log(np.diagonal(factor)).sum() + 0.5 * gap @ gap
        # d value / d K = (K^-1 - alpha alpha^T) / 2, then the chain rule to every log.
        outer = 0.5 * (inverse - np.outer(dual, dual))
        between = _summed(outer * alike_rows, self.task_of, len(self.tasks))
        gradient = np.concatenate(
            [
                [
                    2.0 * given.common**2 * between.sum(),
                    2.0 * given.linear**2 * (between * products).sum(),
                    2.0 * given.local**2 * (between * similar).sum(),
                    2.0 * given.task_noise**2 * (outer * self.same_task).sum(),
                    2.0 * (np.diagonal(outer) * noise).sum(),
                ],
                self._length_gradient(given, outer * size_rows),
                self._relevance_gradient(given, given.linear**2 * between, given.local**2 * between * similar),
            ]
        )
        return float(value), gradient + gap / self.start.prior_spreads

    def _candidate_similarity(self, given: Hyperparameters) -> Array:
        scaled = self.candidates / given.lengths
        return pinned_similarity(scaled, scaled)

    def _relevance_gradient(self, given: Hyperparameters, linear: Array, local: Array) -> Array:
        # Over pairs of tasks: d (w z)(w z') / d log w = 2 w^2 z z', and
        # d exp(-w^2 (z - z')^2 / 2) / d log w = -w^2 (z - z')^2 exp(...).
        products = (self.tasks * ((linear + local) @ self.tasks)).sum(axis=0)
        squares = (local.sum(axis=0) + local.sum(axis=1)) @ self.tasks**2
        return given.relevance**2 * (2.0 * products - squares)

    def _length_gradient(self, given: Hyperparameters, rows: Array) -> Array:
        if not len(given.lengths):
            return np.zeros(0)
        between = _summed(rows, self.candidate_of, len(self.candidates))
        scaled = self.candidates / given.lengths
        origin = np.zeros((1, scaled.shape[1]))
        free, at_origin = similarity(scaled, scaled), similarity(scaled, origin)
        found = np.empty(len(given.lengths))
        for column in range(len(found)):
            values = scaled[:, column]
            apart = (values[:, None] - values[None, :]) ** 2 * free
            moved = values[:, None] ** 2 * at_origin
            change = apart - moved @ at_origin.T - at_origin @ moved.T
            found[column] = (between * change).sum()
        return found


def most_probable(evidence: Evidence, max_iter: int) -> tuple[Hyperparameters, int]:
    """The hyper-parameters of the highest posterior, found from the start by L-BFGS, and its iterations."""
    if max_iter < 1:
        return evidence.start, 0
    from scipy.optimize import minimize

    start = evidence.start.to_vector()
    reach = 4.0 * evidence.start.prior_spreads
    bounds = list(zip(start - reach, start + reach, strict=True))
    options = {"maxiter": max_iter, "maxfun": 2 * max_iter}
    found = minimize(evidence.negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)
    return evidence.start.from_vector(np.asarray(found.x)), int(found.nit)


def _summed(rows: Array, index: np.ndarray, count: int) -> Array:
    """Sums over the blocks of a square table of rows that share their index, `(count, count)`."""
    indicator = np.zeros((len(index), count))
    indicator[np.arange(len(index)), index] = 1.0
    return indicator.T @ rows @ indicator


def _inverse(factor: Array) -> Array:
    """The inverse of `factor @ factor.T`."""
    from scipy.linalg import lapack

    inverse, info = lapack.dpotri(factor, lower=1)
    assert info == 0
    return np.tril(inverse) + np.tril(inverse, -1).T
