"""Predictions for a few known candidates, in microseconds: linear and quadratic forms of the meta-features.

With the candidate fixed, the covariances of its effect with all recorded ones are linear in a vector `u` of a
few hundred numbers (`Process.basis`), however many outcomes were recorded. So its mean is `u . m`, and what
was recorded lowers its variance by `u . R u`. Both are worked out once, at best when the selector is
trained; then nothing is left of the rows, nor of the factor of their covariance.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from autoopt.meta.process import Array, Process


@dataclass(frozen=True, eq=False)
class CandidateForms:
    """The forms of a role group's candidates.

    Attributes:
        anchors: Standardised meta-features of the recorded tasks, `(num_tasks, num_features)`.
        means: `m` of each candidate, `(num_candidates, size)`.
        reductions: `R` of each candidate, its upper triangle row by row, `(num_candidates, size (size + 1) / 2)`.
            Single precision would move standard deviations by up to 1e-6.
        priors: The variance of each candidate's effect before anything is recorded, over that of an effect far
            from the default, `(num_candidates,)`.
    """

    anchors: Array
    means: Array
    reductions: Array
    priors: Array

    @classmethod
    def of(cls, process: Process, candidates: Array) -> CandidateForms:
        """The forms of a process.

        Args:
            process: The process.
            candidates: The candidates' columns, `(num_candidates, num_candidate_columns)`.
        """
        anchors = process.anchors
        means, reductions, priors = process.forms(candidates)
        upper = np.triu_indices(means.shape[1])
        return cls(anchors, means, reductions[:, upper[0], upper[1]], priors)

    @property
    def num_bytes(self) -> int:
        """The bytes of its arrays."""
        return self.anchors.nbytes + self.means.nbytes + self.reductions.nbytes + self.priors.nbytes

    @cached_property
    def _square(self) -> Array:
        size = self.means.shape[1]
        upper = np.triu_indices(size)
        square = np.zeros((len(self.means), size, size))
        square[:, upper[0], upper[1]] = self.reductions
        square[:, upper[1], upper[0]] = self.reductions
        return square

    def predict(self, process: Process, features: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of every candidate's effect, each `(num_candidates,)`; noise is left out.

        Args:
            process: The process that the forms are of.
            features: Meta-features, `(num_features,)`.
        """
        z = process.standardised_features(features[None])
        basis = process.basis(z, self.anchors)[0]
        variance = self.priors * process.size(z)[0] - self._square @ basis @ basis
        return self.means @ basis, np.sqrt(np.maximum(variance, 0.0))

    def mean(self, process: Process, features: Array, candidate: int) -> Array:
        """The mean of one candidate's effect at many meta-features, `(num_rows,)`.

        Args:
            process: The process that the forms are of.
            features: `(num_rows, num_features)`.
            candidate: Its position.
        """
        return process.basis(process.standardised_features(features), self.anchors) @ self.means[candidate]

    def contributions(self, process: Process, features: Array, candidate: int) -> Array:
        """What each meta-feature adds to the mean of one candidate's effect, `(num_features,)`.

        The mean minus the one with that feature at its recorded mean. Features that say the same share the
        credit only in part, so the parts need not add up.

        Args:
            process: The process that the forms are of.
            features: Meta-features, `(num_features,)`.
            candidate: Its position.
        """
        changed = np.repeat(features[None], len(features) + 1, axis=0)
        np.fill_diagonal(changed, process.center)
        means = self.mean(process, changed, candidate)
        return means[-1] - means[:-1]
