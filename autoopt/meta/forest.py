"""A regression forest as plain arrays: predictions, uncertainty and contributions without scikit-learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Forest:
    """Trees of a fitted forest, their nodes concatenated.

    Attributes:
        feature: Column that a node splits on, -1 in a leaf; `(num_nodes,)`.
        threshold: A row goes left where its value is at most this.
        left: Index of the left child.
        right: Index of the right child.
        value: Mean outcome of the training rows in the node.
        variance: Variance of the outcomes in the node.
        roots: Index of each tree's root; `(num_trees,)`.
    """

    feature: NDArray[np.int32]
    threshold: Array
    left: NDArray[np.int32]
    right: NDArray[np.int32]
    value: Array
    variance: Array
    roots: NDArray[np.int32]

    @classmethod
    def from_sklearn(cls, model: Any) -> Forest:
        """The arrays of a fitted scikit-learn forest of regression trees."""
        parts: dict[str, list[Any]] = {key: [] for key in ("f", "t", "l", "r", "v", "s")}
        roots, offset = [], 0
        for estimator in model.estimators_:
            tree = estimator.tree_
            leaf = tree.children_left < 0
            parts["f"].append(np.where(leaf, -1, tree.feature))
            parts["t"].append(np.where(leaf, 0.0, tree.threshold))
            parts["l"].append(np.where(leaf, 0, tree.children_left + offset))
            parts["r"].append(np.where(leaf, 0, tree.children_right + offset))
            parts["v"].append(tree.value[:, 0, 0])
            parts["s"].append(tree.impurity)
            roots.append(offset)
            offset += tree.node_count
        f, t, left, right, v, s = (np.concatenate(parts[key]) for key in ("f", "t", "l", "r", "v", "s"))
        int32 = np.int32
        return cls(f.astype(int32), t, left.astype(int32), right.astype(int32), v, s, np.array(roots, int32))

    def leaves(self, x: Array) -> NDArray[np.int64]:
        """The leaf of every row in every tree, `(num_rows, num_trees)`.

        Args:
            x: `(num_rows, num_columns)`, without NaN. Compared in float32, as scikit-learn does.
        """
        x = np.asarray(x, dtype=np.float32)
        node = np.broadcast_to(self.roots, (len(x), len(self.roots))).astype(np.int64)
        rows = np.arange(len(x))[:, None]
        while True:
            feature = self.feature[node]
            inner = feature >= 0
            if not inner.any():
                return node
            go_left = x[rows, np.maximum(feature, 0)] <= self.threshold[node]
            node = np.where(inner, np.where(go_left, self.left[node], self.right[node]), node)

    def predict(self, x: Array) -> tuple[Array, Array]:
        """Mean and standard deviation of the outcome, each `(num_rows,)`.

        The variance is that of the trees' means plus the mean variance within leaves (law of total
        variance; Hutter et al. 2014, arXiv 1211.0906).
        """
        leaves = self.leaves(x)
        means = self.value[leaves]
        variance = means.var(axis=1) + self.variance[leaves].mean(axis=1)
        return means.mean(axis=1), np.sqrt(variance)

    def contributions(self, x: Array) -> Array:
        """What each column adds to the prediction, `(num_rows, num_columns)`.

        Along a row's path, the change of the node mean at a split is credited to the split's column
        (Saabas 2014). A row's contributions and the mean of the roots add up to its prediction.
        """
        x32 = np.asarray(x, dtype=np.float32)
        total = np.zeros(x32.shape)
        for row in range(len(x32)):
            for root in self.roots:
                node = int(root)
                while self.feature[node] >= 0:
                    column = self.feature[node]
                    left = x32[row, column] <= self.threshold[node]
                    child = int(self.left[node] if left else self.right[node])
                    total[row, column] += self.value[child] - self.value[node]
                    node = child
        return total / len(self.roots)
