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
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.utils.validation import check_is_fitted, validate_data

from autoopt.meta.forest import Forest


class OptimizerSelector(RegressorMixin, BaseEstimator):
    """A forest over meta-features and candidate columns, with its uncertainty, for one role group.

    Predictions are shrunk towards 0, "no different from the default", since a recorded effect is
    partly noise and unseen families differ from the recorded ones.

    Args:
        num_trees: Trees of the forest.
        min_leaf_share: Smallest share of the training weight in a leaf.
        max_features: Share of the columns tried at a split.
        shrinkage: Factor on predicted means, between 0 and 1.
        spread: Factor on predicted standard deviations (calibrated by cross-validation).
        seed: Seed of the forest.

    Attributes:
        forest_: The fitted `Forest`.
        medians_: Value that stands for a missing one, a column.
        n_features_in_: Number of columns.
    """

    def __init__(
        self,
        num_trees: int = 64,
        min_leaf_share: float = 0.01,
        max_features: float = 0.33,
        shrinkage: float = 1.0,
        spread: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.num_trees = num_trees
        self.min_leaf_share = min_leaf_share
        self.max_features = max_features
        self.shrinkage = shrinkage
        self.spread = spread
        self.seed = seed

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> OptimizerSelector:  # noqa: N803
        """Fit on rows of meta-features followed by candidate columns.

        Args:
            X: `(num_rows, num_columns)`, NaN where a feature was not measured.
            y: `(num_rows,)`, log ratios to the default.
            sample_weight: Weight of each row; tasks with many rows should not count more.
        """
        x, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", y_numeric=True)
        with np.errstate(all="ignore"):
            known = ~np.isnan(x).all(axis=0)
            medians = np.zeros(x.shape[1])
            medians[known] = np.nanmedian(x[:, known], axis=0)
        self.medians_ = medians
        model = ExtraTreesRegressor(
            n_estimators=self.num_trees,
            min_weight_fraction_leaf=self.min_leaf_share,
            max_features=self.max_features,
            random_state=self.seed,
        )
        model.fit(self._filled(x), y, sample_weight=sample_weight)
        self.model_ = model
        self.forest_ = Forest.from_sklearn(model)
        return self

    def _filled(self, x: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(x), self.medians_, x)

    def predict(self, X: ArrayLike) -> np.ndarray:  # noqa: N803
        """The expected log ratio to the default, `(num_rows,)`; negative is better."""
        return self.predict_with_spread(X)[0]

    def predict_with_spread(self, X: ArrayLike) -> tuple[np.ndarray, np.ndarray]:  # noqa: N803
        """Mean and standard deviation of the log ratio, each `(num_rows,)`."""
        check_is_fitted(self)
        x = validate_data(self, X, dtype=np.float64, ensure_all_finite="allow-nan", reset=False)
        mean, std = self.forest_.predict(self._filled(x))
        return self.shrinkage * mean, self.spread * std

    def __sklearn_tags__(self) -> Any:
        """Tags: missing values are allowed."""
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags
