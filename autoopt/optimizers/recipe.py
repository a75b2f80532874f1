"""A plan before it meets a model: one configuration a role group, with rates relative to shape.

Trials are recorded with recipes, and the calibrated default is one, since the same recipe can be
resolved on any architecture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib import resources
from typing import Any

from autoopt.architecture import LayerInfo
from autoopt.errors import PlanError
from autoopt.meta.options import PART
from autoopt.optimizers.catalog import ALL_GROUPS, get
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.reference import decay_factor, horizon_factor, is_wide, reference_lr, starts_small
from autoopt.optimizers.schedule import Schedule

PLAN_WIDE = (
    "warmup_share",
    "shape",
    "end_factor",
    "width_free",
    "averaging",
    "scale_free",
    "norm_free",
    "horizon_free",
    "decay_free",
    "max_relative_update",
    "clip_norm",
)
"""Fields of a recipe that hold for all role groups."""

WIDE = PART
"""A part of the embeddings that a recipe may configure by itself: tables of one column in an `EmbeddingBag`.

They are the linear, wide part of wide & deep models (Cheng et al. 2016, arXiv 1606.07792): an update of each
of the rows in a bag goes straight into the prediction.
"""


@dataclass(frozen=True)
class RoleConfig:
    """The optimizer of one role group.

    Attributes:
        optimizer: Catalog name.
        lr: Rate relative to `reference_lr(optimizer, layer)`.
        hyperparameters: What differs from the catalog's defaults, the rate left out.
    """

    optimizer: str
    lr: float
    hyperparameters: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str) -> RoleConfig:
        """The configuration in a JSON text, as it stands under `"groups"` in a recipe's."""
        return _role_config(json.loads(text))

    def resolve(
        self,
        layer: LayerInfo,
        width_free: bool = True,
        max_relative_update: float | None = None,
        decay: float = 1.0,
        **relative: Any,
    ) -> OptimizerConfig:
        """The configuration of one parameter: the rate in its shape, and what its shape allows.

        The arguments are those of `Recipe`, whose `config_of` gives its own, a factor on weight decay that
        the configuration names, and options of `reference_lr`.

        A layer with sparse gradients gets the optimizer's sparse equivalent at the same rate; one
        that the optimizer cannot take (Muon on a vector) gets AdamW at the same relative rate.
        """
        info = get(self.optimizer)
        name, hyperparameters = self.optimizer, dict(self.hyperparameters)
        if layer.sparse and info.gradients != "sparse":
            name = info.sparse_equivalent or "sparseadam"
        elif (info.gradients == "sparse" and not layer.sparse) or len(layer.shape) < info.min_ndim:
            name = "adamw"
        info = get(name)
        hyperparameters = {k: v for k, v in hyperparameters.items() if k in info.hyperparameters}
        if layer.sparse and name == "sgd":
            # Momentum would be a dense buffer that moves rows no batch has touched.
            hyperparameters |= {"momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
        if layer.sparse and name == "adagrad":
            hyperparameters |= {"weight_decay": 0.0}
        if name == "muon" and layer.splits > 1:
            hyperparameters.setdefault("splits", layer.splits)
        if name == "muon" and layer.groups > 1 and layer.role == "matrix":
            hyperparameters["stacked"] = True
        if name == "muon" and layer.transposed:
            hyperparameters["transposed"] = True
        if name == "muon" and max_relative_update is not None and starts_small(layer):
            hyperparameters["max_relative_update"] = max_relative_update
        if "weight_decay" in hyperparameters:
            hyperparameters["weight_decay"] *= decay
        reference = reference_lr(name, layer, **relative)
        hyperparameters["lr"] = self.lr * reference if width_free else self.lr
        return OptimizerConfig(name, hyperparameters, hyperparameters["lr"] / reference)


@dataclass(frozen=True)
class Recipe:
    """A configuration for every role group, and the plan-wide schedule.

    Attributes:
        groups: Role group -> `RoleConfig`, one for each of `ALL_GROUPS`; `WIDE` may be beside them, and goes
            with the embeddings where it is not.
        warmup_share: Share of the run spent on linear warm-up.
        shape: Shape of the decay (see `Schedule`).
        end_factor: Factor that the decay ends at.
        averaging: Power of the weights' average, None for none (see `Schedule`).
        width_free: Whether rates are relative to `reference_lr`; False for plain absolute rates, as
            baselines use them.
        scale_free: Whether the rates of embeddings are also relative to the scale they start at.
        norm_free: Whether the rates of convolutions also depend on whether a normalisation stands next to them.
        horizon_free: Whether the rates of matrices, convolutions and heads that no normalisation stands
            next to are also relative to the length of the run.
        decay_free: Whether the weight decay of embeddings is relative to the length of the run, too.
        max_relative_update: Largest norm of a Muon update over that of the tensor, for hidden matrices and
            convolutions that start small (`autoopt.optimizers.reference.starts_small`); None for no limit.
        clip_norm: Largest norm of all gradients together (see `Schedule`), None for no clipping. Models with
            sparse gradients, of which torch has no norm, are not clipped.
        total_steps: Steps of the run that `config_of` gives rates for, None while that is unknown. It is
            no part of the recipe's text, which holds for runs of every length.
    """

    groups: dict[str, RoleConfig]
    warmup_share: float = 0.05
    shape: str = "linear"
    end_factor: float = 0.0
    width_free: bool = True
    averaging: float | None = None
    scale_free: bool = False
    norm_free: bool = False
    horizon_free: bool = False
    decay_free: bool = False
    max_relative_update: float | None = None
    clip_norm: float | None = None
    total_steps: int | None = None

    def __post_init__(self) -> None:
        """Check that every role group is there.

        Raises:
            PlanError: If a role group is missing or unknown, or an optimizer is unknown.
        """
        if set(self.groups) - {WIDE} != set(ALL_GROUPS):
            raise PlanError(f"a recipe needs exactly the groups {', '.join(ALL_GROUPS)}; got {sorted(self.groups)}")
        for config in self.groups.values():
            get(config.optimizer)

    @classmethod
    def uniform(cls, optimizer: str, lr: float, **options: Any) -> Recipe:
        """A recipe with one configuration for all role groups.

        Args:
            optimizer: Catalog name.
            lr: Relative rate.
            **options: Fields of `Recipe` (`shape=...`) or hyper-parameters of the optimizer.
        """
        fields = {name: options.pop(name) for name in PLAN_WIDE if name in options}
        config = RoleConfig(optimizer, lr, options)
        return cls({group: config for group in ALL_GROUPS}, **fields)

    def schedule(self, total_steps: int | None) -> Schedule:
        """The schedule of a run of `total_steps`, or a constant one where the horizon is unknown."""
        if total_steps is None or total_steps < 2:
            return Schedule(averaging=self.averaging, clip_norm=self.clip_norm)
        warmup_steps = min(total_steps - 1, round(self.warmup_share * total_steps))
        return Schedule(self.shape, warmup_steps, total_steps, self.end_factor, self.averaging, self.clip_norm)

    def over(self, total_steps: int | None) -> Recipe:
        """The recipe for a run of `total_steps`."""
        return replace(self, total_steps=total_steps)

    def resolve(self, layers: Iterable[LayerInfo], total_steps: int | None = None) -> OptimizerPlan:
        """The plan for the parameters of a model.

        Args:
            layers: Their descriptions.
            total_steps: Steps of the run, which the schedule is for. Without it the schedule is constant,
                and rates are for a run of the recipe's own `total_steps`.
        """
        layers = tuple(layers)
        own = self if total_steps is None else self.over(total_steps)
        schedule = own.clipping_on(layers).schedule(total_steps)
        return OptimizerPlan({layer.name: own.config_of(layer) for layer in layers}, schedule)

    def clipping_on(self, layers: Iterable[LayerInfo]) -> Recipe:
        """The recipe, without clipping where a layer has sparse gradients."""
        clips = self.clip_norm is not None and not any(layer.sparse for layer in layers)
        return self if clips or self.clip_norm is None else replace(self, clip_norm=None)

    def config_of(self, layer: LayerInfo) -> OptimizerConfig:
        """The configuration of one parameter."""
        role = self.groups[self.key_of(layer)]
        decay = self.decay_factor(layer)
        return role.resolve(layer, self.width_free, self.max_relative_update, decay, **self._relative())

    def key_of(self, layer: LayerInfo) -> str:
        """Which of the recipe's groups configures a layer: its role group, or `WIDE`."""
        return WIDE if WIDE in self.groups and is_wide(layer) else layer.group

    def on(self, layers: Iterable[LayerInfo], total_steps: int | None = None) -> Recipe:
        """The recipe without what changes nothing on these layers, so that equal runs have equal texts.

        That is the `WIDE` part, `decay_free` and `clip_norm`, which came last: others are in the text everywhere.

        Args:
            layers: Their descriptions.
            total_steps: Steps of the run.
        """
        layers = tuple(layers)
        recipe = self.clipping_on(layers)
        if WIDE in self.groups and not any(is_wide(layer) for layer in layers):
            recipe = replace(recipe, groups={name: config for name, config in self.groups.items() if name != WIDE})
        without, whole = (replace(recipe, decay_free=own, total_steps=total_steps) for own in (False, True))
        if recipe.decay_free and all(without.config_of(layer) == whole.config_of(layer) for layer in layers):
            recipe = replace(recipe, decay_free=False)
        return recipe

    def reference_lr(self, optimizer: str, layer: LayerInfo) -> float:
        """What one unit of relative rate stands for in this recipe's run."""
        return reference_lr(optimizer, layer, **self._relative())

    @property
    def horizon_factor(self) -> float:
        """The factor on the rates of layers that no normalisation stands next to, for the length of the run."""
        return horizon_factor(self.total_steps) if self.horizon_free else 1.0

    def decay_factor(self, layer: LayerInfo) -> float:
        """The factor on a layer's weight decay for the length of the run."""
        return decay_factor(layer, self.total_steps) if self.decay_free else 1.0

    def _relative(self) -> dict[str, Any]:
        """What rates are relative to, as options of `reference_lr`."""
        total_steps = self.total_steps if self.horizon_free else None
        return {"scale_free": self.scale_free, "norm_free": self.norm_free, "total_steps": total_steps}

    def with_change(self, group: str, change: Mapping[str, Any]) -> Recipe:
        """A copy with one controlled change.

        Args:
            group: A role group, or `"*"` for the plan-wide fields.
            change: For a role group: `"optimizer"`, `"lr"` (the new relative rate), `"lr_factor"`
                (a factor on the present one) or hyper-parameters. Changing the optimizer drops the
                old one's hyper-parameters, and that of embeddings takes the wide tables with it. For
                `"*"`: fields of `Recipe`.

        Raises:
            PlanError: If the group is unknown.
        """
        if group == "*":
            return replace(self, **change)
        if group not in self.groups:
            raise PlanError(f"a recipe has no group {group!r}; it has {', '.join(ALL_GROUPS)}")
        values = dict(change)
        old = self.groups[group]
        optimizer = values.pop("optimizer", old.optimizer)
        lr = values.pop("lr", old.lr) * values.pop("lr_factor", 1.0)
        kept = old.hyperparameters if optimizer == old.optimizer else {}
        return self._with(group, RoleConfig(optimizer, lr, {**kept, **values}))

    def with_config(self, group: str, config: str) -> Recipe:
        """A copy with another configuration of one role group.

        Args:
            group: A role group.
            config: Its JSON, as it stands under `"groups"` in the recipe's.
        """
        return self._with(group, RoleConfig.from_json(config))

    def _with(self, group: str, config: RoleConfig) -> Recipe:
        groups = {**self.groups, group: config}
        if group == "embedding" and config.optimizer != self.groups[group].optimizer:
            groups.pop(WIDE, None)
        return replace(self, groups=groups)

    def to_json(self) -> str:
        """The canonical JSON of the recipe: equal recipes give equal text."""
        value = {
            "groups": {
                name: {
                    "optimizer": config.optimizer,
                    "lr": float(f"{config.lr:.6g}"),
                    "hyperparameters": config.hyperparameters,
                }
                for name, config in self.groups.items()
            },
            "warmup_share": self.warmup_share,
            "shape": self.shape,
            "end_factor": self.end_factor,
            "width_free": self.width_free,
            # Left out where there is none, so that recipes recorded before there was any keep their text.
            **({} if self.averaging is None else {"averaging": self.averaging}),
            **({"scale_free": True} if self.scale_free else {}),
            **({"norm_free": True} if self.norm_free else {}),
            **({"horizon_free": True} if self.horizon_free else {}),
            **({"decay_free": True} if self.decay_free else {}),
            **({} if self.max_relative_update is None else {"max_relative_update": self.max_relative_update}),
            **({} if self.clip_norm is None else {"clip_norm": self.clip_norm}),
        }
        return json.dumps(value, sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Recipe:
        """The recipe in a JSON text.

        Raises:
            PlanError: If the text is no recipe.
        """
        try:
            value = json.loads(text)
            groups = {name: _role_config(config) for name, config in value.pop("groups").items()}
            return cls(groups, **value)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, PlanError):
                raise
            raise PlanError(f"this is no recipe: {error!r}") from error


def _role_config(value: dict[str, Any]) -> RoleConfig:
    hyperparameters = {k: tuple(v) if isinstance(v, list) else v for k, v in value["hyperparameters"].items()}
    return RoleConfig(value["optimizer"], float(value["lr"]), hyperparameters)


@cache
def calibrated_default() -> Recipe:
    """The calibrated default: the single best recipe over the recorded training tasks.

    It is what `AutoOptimizer` uses without a plan, what `select` trains with during warm-up, and
    what it keeps where the evidence for a deviation is thin.
    """
    text = resources.files("autoopt.optimizers").joinpath("calibrated_default.json").read_text("utf-8")
    return Recipe.from_json(text)
