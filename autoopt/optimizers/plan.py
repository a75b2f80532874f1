"""Which optimizer, with which hyper-parameters, every parameter of a model gets.

A plan is data: it is total (every trainable parameter has a configuration), disjoint (exactly one),
and turns into JSON and back without loss.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from typing import Any

from torch import Tensor, nn

from autoopt.errors import PlanError
from autoopt.optimizers.catalog import get
from autoopt.optimizers.schedule import Schedule

PLAN_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer of one parameter.

    Attributes:
        optimizer: Catalog name, in lower case.
        hyperparameters: What differs from or repeats the catalog's defaults; `"lr"` is the planned
            rate, in the optimizer's own unit.
        relative_lr: `hyperparameters["lr"]` divided by the family's reference rate for the tensor's
            shape (see `autoopt.optimizers.reference`), or None where it was not computed.
    """

    optimizer: str
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    relative_lr: float | None = None

    def __post_init__(self) -> None:
        """Check the optimizer's name and its hyper-parameters.

        Raises:
            PlanError: If the name is not in the catalog, a hyper-parameter is not the optimizer's,
                or the rate is not a finite number that is at least 0.
        """
        info = get(self.optimizer)
        unknown = sorted(set(self.hyperparameters) - set(info.hyperparameters))
        if unknown:
            raise PlanError(
                f"optimizer '{self.optimizer}' has no hyper-parameter {', '.join(map(repr, unknown))}; "
                f"it takes {', '.join(sorted(info.hyperparameters))}"
            )
        lr = self.hyperparameters.get("lr", info.hyperparameters["lr"])
        if not isinstance(lr, Real) or not math.isfinite(lr) or lr < 0:
            raise PlanError(f"optimizer '{self.optimizer}': lr must be a finite number >= 0, got {lr!r}")
        fixed = {key: _plain(self.optimizer, key, value) for key, value in self.hyperparameters.items()}
        object.__setattr__(self, "hyperparameters", fixed)

    @property
    def complete(self) -> dict[str, Any]:
        """The catalog's default hyper-parameters, overridden by this configuration's own.

        Without momentum there is nothing to look ahead of: `nesterov` is then off unless asked for.
        """
        values = {**get(self.optimizer).hyperparameters, **self.hyperparameters}
        if values.get("momentum") == 0 and values.get("nesterov") and "nesterov" not in self.hyperparameters:
            values["nesterov"] = False
        return values

    @property
    def lr(self) -> float:
        """The planned learning rate."""
        return float(self.complete["lr"])


def _plain(optimizer: str, key: str, value: Any) -> Any:
    """A hyper-parameter as JSON and Python code can both hold it; sequences become tuples."""
    if isinstance(value, list | tuple):
        return tuple(_plain(optimizer, key, part) for part in value)
    if value is None or isinstance(value, bool | str):
        return value
    # NumPy's numbers are numbers too, but write themselves otherwise.
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and math.isfinite(value):
        return float(value)
    raise PlanError(
        f"optimizer {optimizer!r}: hyper-parameter {key!r} must be a finite number, a truth value, a string, "
        f"None or a tuple of them, got {value!r}"
    )


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; JSON's own readers keep the last of equal keys and say nothing."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise PlanError(f"the optimizer plan names {repeated!r} twice; keep one of the two")
    return value


@dataclass(frozen=True)
class OptimizerPlan:
    """Parameter name -> `OptimizerConfig`, and the schedule that scales all rates together.

    Attributes:
        layers: One configuration for every trainable parameter, by name.
        schedule: Factor on every planned rate as a function of the step.
    """

    layers: dict[str, OptimizerConfig]
    schedule: Schedule = field(default_factory=Schedule)

    @classmethod
    def uniform(
        cls,
        model_or_named_parameters: nn.Module | Iterable[tuple[str, Tensor]],
        optimizer: str,
        schedule: Schedule | None = None,
        **hyperparameters: Any,
    ) -> OptimizerPlan:
        """A plan that gives every trainable parameter the same configuration.

        Args:
            model_or_named_parameters: A module, or pairs of name and parameter.
            optimizer: Catalog name.
            schedule: Schedule of the plan; constant where None.
            **hyperparameters: For example `lr=1e-3`; what is left out is the catalog's default.

        Raises:
            PlanError: If the optimizer or a hyper-parameter is unknown.
        """
        if isinstance(model_or_named_parameters, nn.Module):
            named = list(model_or_named_parameters.named_parameters())
        else:
            named = list(model_or_named_parameters)
        config = OptimizerConfig(optimizer, hyperparameters)
        layers = {name: config for name, parameter in named if parameter.requires_grad}
        return cls(layers, schedule or Schedule())

    def with_layers(self, changes: Mapping[str, OptimizerConfig]) -> OptimizerPlan:
        """A copy in which some parameters have another configuration.

        Raises:
            PlanError: If a name is not in the plan.
        """
        missing = sorted(set(changes) - set(self.layers))
        if missing:
            raise PlanError(f"the plan has no parameter named {missing[0]!r}")
        return replace(self, layers={**self.layers, **changes})

    def with_schedule(self, schedule: Schedule) -> OptimizerPlan:
        """A copy with another schedule."""
        return replace(self, schedule=schedule)

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON-compatible values: distinct configurations once, names pointing to them."""
        configs: list[dict[str, Any]] = []
        index: dict[str, int] = {}
        layers: dict[str, int] = {}
        for name, config in self.layers.items():
            value = {
                "optimizer": config.optimizer,
                "hyperparameters": dict(config.hyperparameters),
                "relative_lr": config.relative_lr,
            }
            key = json.dumps(value, sort_keys=True)
            if key not in index:
                index[key] = len(configs)
                configs.append(value)
            layers[name] = index[key]
        return {
            "schema_version": PLAN_SCHEMA_VERSION,
            "configs": configs,
            "layers": layers,
            "schedule": self.schedule.to_dict(),
        }

    def to_json(self, indent: int | None = None) -> str:
        """The plan as JSON text; `from_json` gives an equal plan back."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> OptimizerPlan:
        """The plan that `to_dict` wrote.

        Raises:
            PlanError: If the value is no plan, or of a newer schema.
        """
        try:
            version = value["schema_version"]
        except (KeyError, TypeError) as error:
            raise PlanError("this is not an optimizer plan: it has no 'schema_version'") from error
        if version != PLAN_SCHEMA_VERSION:
            raise PlanError(
                f"the plan has schema version {version}, this autoopt reads {PLAN_SCHEMA_VERSION}; "
                "use the autoopt release that wrote it"
            )
        try:
            configs = [OptimizerConfig(**config) for config in value["configs"]]
            layers = {name: configs[index] for name, index in value["layers"].items()}
            schedule = Schedule(**value["schedule"])
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise PlanError(f"the optimizer plan is damaged: {error!r}") from error
        return cls(layers, schedule)

    @classmethod
    def from_json(cls, text: str) -> OptimizerPlan:
        """The plan in a JSON text.

        Raises:
            PlanError: If the text is not JSON, no plan, names a parameter twice, or is of a newer schema.
        """
        try:
            value = json.loads(text, object_pairs_hook=_without_repeats)
        except PlanError:
            raise
        except ValueError as error:
            raise PlanError(f"the optimizer plan is not JSON: {error}") from error
        return cls.from_dict(value)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the plan's canonical JSON, by which ranks and checkpoints compare plans."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def to_python(self) -> str:
        """PyTorch code, needing no autoopt, that steps exactly as this plan does."""
        from autoopt.optimizers.codegen import plan_to_python

        return plan_to_python(self)

    def _repr_html_(self) -> str:
        """A table of the configurations for a notebook cell."""
        from autoopt.optimizers.plan_html import plan_to_html

        return plan_to_html(self)
