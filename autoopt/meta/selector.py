"""The meta-learner: what a change of one role group's configuration would do to the loss.

For a role group's meta-features and a candidate configuration it predicts the log ratio to the
calibrated default, with an uncertainty. Only changes whose pessimistic prediction still gains are
worth making, so abstaining needs no machinery of its own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from autoopt.meta.process import Process

_NO_LENGTH = 1e5
"""A length scale so long that the column does not count."""


class OptimizerSelector(RegressorMixin, BaseEstimator):
    """A Gaussian process over meta-features and candidate columns, for one role group.

    It has no intercept: far from everything recorded it falls back to 0, "no different from the
    default", and its uncertainty grows to the amplitude. `autoopt.meta.process.Process` states the
    covariance.

    Args:
        num_candidate_columns: How many of the last columns describe the candidate.
        amplitude: Standard deviation of effects before anything is known (log loss).
        length: Length scale of the meta-features, in spreads.
        shared: Share of an effect's variance that is common to all tasks, between 0 and 1.
        noise: Standard deviation of an outcome around its effect: seed noise and what no feature
            tells.

    Attributes:
        process_: The fitted `Process`.
        n_features_in_: Number of columns.
    """

    def __init__(
        self,
        num_candidate_columns: int = 0,
        amplitude: float = 0.15,
        length: float = 1.0,
        shared: float = 0.3,
        noise: float = 0.1,
    ) -> None:
        self.num_candidate_columns = num_candidate_columns
        self.amplitude = amplitude
        self.length = length
        self.shared = shared
        self.noise = noise

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> OptimizerSelector:  # noqa: N803
        """Fit on rows of meta-features followed by candidate columns.

        Args:
            X: `(num_rows, num_columns)`, NaN where a feature was not measured.
            y: `(num_rows,)`, log ratios to the default.
            sample_weight: Weight of each row: a row of weight 2 counts as two equal rows. Rows of
                weight 0 are left out.
        """
        checked: Any = validate_data  # scikit-learn types its arguments as strings
        x, y = checked(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", y_numeric=True)
        weight = _check_sample_weight(sample_weight, x, dtype=np.float64)
        x, y, weight = x[weight > 0], np.asarray(y, dtype=np.float64)[weight > 0], weight[weight > 0]
        num_features = max(0, x.shape[1] - self.num_candidate_columns)
        center, spread = _scales(x[:, :num_features], weight)
        noise = self.noise / np.sqrt(weight)
        empty = Process(x, np.zeros(len(x)), center, spread, self.amplitude, self.length, self.shared, noise)
        z, c = empty.standardised(x)
        lengths = np.full(num_features, self.length * np.sqrt(max(1, num_features)))
        ones = np.ones(c.shape[1])
        make_kernel: Any = RBF
        common = make_kernel(np.concatenate([np.full(num_features, _NO_LENGTH), ones]))
        similar = make_kernel(np.concatenate([lengths, ones]))
        kernel = (
            ConstantKernel(self.amplitude**2 * self.shared) * common
            + ConstantKernel(self.amplitude**2 * (1.0 - self.shared)) * similar
        )
        make: Any = GaussianProcessRegressor
        model = make(kernel, alpha=noise**2, optimizer=None)
        model.fit(np.hstack([z, c]), y)
        self.model_ = model
        self.process_ = Process(
            x, np.asarray(model.alpha_), center, spread, self.amplitude, self.length, self.shared, noise
        )
        return self

    def predict(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        """The expected log ratio to the default, `(num_rows,)`; negative is better."""
        return self.process_for(X).mean(self._checked(X))

    def predict_with_spread(self, X: ArrayLike) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        """Mean and standard deviation of the log ratio's effect, each `(num_rows,)`."""
        return self.process_for(X).predict(self._checked(X))

    def process_for(self, X: ArrayLike) -> Process:  # noqa: N803
        """The fitted process, after checking that there is one."""
        check_is_fitted(self)
        return self.process_

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


def _scales(x: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each column over what is known; 0 and 1 where nothing is."""
    center, spread = np.zeros(x.shape[1]), np.ones(x.shape[1])
    for column in range(x.shape[1]):
        known = ~np.isnan(x[:, column])
        if known.any():
            values, weights = x[known, column], weight[known] / weight[known].sum()
            center[column] = weights @ values
            deviation = float(np.sqrt(weights @ (values - center[column]) ** 2))
            if deviation > 1e-9:
                spread[column] = deviation
    return center, spread
