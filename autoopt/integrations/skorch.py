"""skorch: scikit-learn estimators whose optimizer is selected for their module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from skorch import NeuralNetClassifier, NeuralNetRegressor
from torch import nn
from torch.optim import Optimizer

from autoopt.api import select


class _Selects:
    """Gives the module, where skorch gives its parameters, and the length of the run, to `optimizer`."""

    def __init__(self, *args: Any, optimizer: Callable[..., Optimizer] = select, **kwargs: Any) -> None:
        super().__init__(*args, optimizer=optimizer, **kwargs)  # pyright: ignore[reportCallIssue]

    def initialize_optimizer(self, triggered_directly: bool | None = None) -> Any:
        """Make `optimizer_`; part of skorch's interface."""
        net: Any = self
        options = dict(net.get_params_for("optimizer"))
        for name, value in getattr(self, "run_facts_", {}).items():
            options.setdefault(name, value)
        self.optimizer_ = net.optimizer(_trained(net), **options)
        return self

    def set_params(self, **params: Any) -> Any:
        """Set parameters as any skorch net does; those of `optimizer` select anew, if one was made already.

        skorch by itself would write them into the parameter groups of the optimizer that is there.
        """
        own = {name: value for name, value in params.items() if name.startswith("optimizer__")}
        if not getattr(self, "initialized_", False):
            own = {}
        rest = {name: value for name, value in params.items() if name not in own}
        super().set_params(**rest)  # pyright: ignore[reportAttributeAccessIssue]
        if own:
            vars(self).update(own)
            self.initialize_optimizer()
        return self

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> Any:
        """Fit on data as any skorch net does; `total_steps` and `num_examples` follow from them where not set."""
        net: Any = self
        train, _ = net.get_split_datasets(X, y, **fit_params)
        steps = net.max_epochs * len(net.get_iterator(train, training=True))
        self.run_facts_ = {"total_steps": steps, "num_examples": len(train)}
        return super().fit(X, y, **fit_params)  # pyright: ignore[reportAttributeAccessIssue]


class SelectedClassifier(_Selects, NeuralNetClassifier):
    """`skorch.NeuralNetClassifier` with `autoopt.select` for its optimizer.

    Arguments of `select` are given with the prefix `optimizer__`, and searched over like any others:
    `optimizer__candidates=["adamw"]`. `lr` is not used. `fit` knows the number of steps; with
    `partial_fit` alone pass `optimizer__total_steps`.

    Example:
        >>> net = SelectedClassifier(nn.Linear, module__in_features=4, module__out_features=2)
        >>> net.get_params()["optimizer"].__name__
        'select'
    """


class SelectedRegressor(_Selects, NeuralNetRegressor):
    """`skorch.NeuralNetRegressor` with `autoopt.select` for its optimizer; see `SelectedClassifier`."""


def _trained(net: Any) -> nn.Module:
    """The module with parameters, or all of them under one roof: a criterion may have parameters too."""
    parts = {name: getattr(net, f"{name}_") for name in (*net._modules, *net._criteria)}
    parts = {
        name: part
        for name, part in parts.items()
        if isinstance(part, nn.Module) and next(part.parameters(), None) is not None
    }
    return next(iter(parts.values())) if len(parts) == 1 else nn.ModuleDict(parts)
