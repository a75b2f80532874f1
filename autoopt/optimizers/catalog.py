"""The optimizers a plan can name: one literal row each, with what it can do and what it costs.

The update rules are not ours: `torch.optim` first, `pytorch-optimizer` second. Muon is the one
exception (see `autoopt.optimizers.muon`), for speed and for shapes that torch's refuses.
"""

from __future__ import annotations

import difflib
import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from autoopt.errors import PlanError

ALL_GROUPS = ("embedding", "matrix", "conv", "head", "vector")
MATRIX_GROUPS = ("embedding", "matrix", "conv", "head")


StateNumel = Callable[[tuple[int, ...], Mapping[str, Any]], int]


def _moments(count: int) -> StateNumel:
    return lambda shape, values: count * math.prod(shape)


def _with_momentum(count: int) -> StateNumel:
    return lambda shape, values: (count + (values["momentum"] != 0)) * math.prod(shape)


def _factored(shape: tuple[int, ...], values: Mapping[str, Any]) -> int:
    if len(shape) < 2:
        return math.prod(shape)
    return math.prod(shape[:-1]) + math.prod(shape[:-2]) * shape[-1]


def _soap(shape: tuple[int, ...], values: Mapping[str, Any]) -> int:
    bases = 2 * sum(size * size for size in shape if size <= values["max_precondition_dim"]) if len(shape) > 1 else 0
    return 2 * math.prod(shape) + bases


@dataclass(frozen=True)
class OptimizerInfo:
    """One optimizer of the catalog.

    Attributes:
        name: Lower-case name used in plans.
        title: Name as its authors write it.
        family: Which reference rate its learning rate is measured against: `"adam"`, `"sgd"`,
            `"spectral"`, `"sign"` or `"constant"` (see `autoopt.optimizers.reference`).
        factory: `"module:class"` of the implementation.
        hyperparameters: Default of every hyper-parameter that a plan may set.
        groups: Role groups it may be used on.
        gradients: `"dense"`, `"sparse"` or `"both"`.
        momentum_key: Hyper-parameter that a momentum-cycling scheduler moves, or None.
        state_numel: `state_numel(shape, hyperparameters)`, elements of state for a parameter of that
            shape under complete hyper-parameters, in the parameter's dtype; counters are left out.
        num_counters: Scalars beside them, such as a step count, that are float32 tensors of their own.
        fused: Device types on which `fused=True` holds.
        foreach: Whether `foreach=True` holds.
        capturable: Whether it takes `capturable=True` (steps without synchronisation on CUDA).
        tensor_lr: Implementations (`"foreach"`, `"loop"`) whose rate may be a tensor on the device without
            being read back; where there is none, the update of a plain rate is scaled.
        state_keys: Keys that a parameter's state always has.
        optional_state_keys: Beginnings of further keys, which depend on its shape or settings.
        min_ndim: Fewest dimensions a parameter must have.
        traceable: Whether torch.compile traces its step into one graph, whatever the rate.
        elementwise: Whether each element is updated from its own gradients alone, so that any part of
            a tensor may be stepped by itself.
        takes_empty: Whether it may be given parameters without elements.
        decoupled: Whether weight decay is decoupled from the gradient.
        sparse_equivalent: Catalog name that replaces it where gradients are sparse, if any.
        paper: Where it was published.
        description: When it tends to be the right choice, in one sentence.
    """

    name: str
    title: str
    family: str
    factory: str
    hyperparameters: dict[str, Any]
    paper: str
    description: str
    groups: tuple[str, ...] = ALL_GROUPS
    gradients: str = "dense"
    momentum_key: str | None = "betas"
    state_numel: StateNumel = field(default=_moments(2), repr=False)
    num_counters: int = 0
    fused: tuple[str, ...] = ()
    foreach: bool = True
    capturable: bool = False
    tensor_lr: tuple[str, ...] = ("foreach", "loop")
    state_keys: tuple[str, ...] = ()
    optional_state_keys: tuple[str, ...] = ()
    min_ndim: int = 0
    traceable: bool = False
    elementwise: bool = False
    takes_empty: bool = True
    decoupled: bool = True
    sparse_equivalent: str | None = None

    def load(self) -> type:
        """The class that implements the update rule, imported on first use."""
        module, _, attribute = self.factory.partition(":")
        return getattr(importlib.import_module(module), attribute)


_ADAM_STATE = ("step", "exp_avg", "exp_avg_sq")
_ADAM = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0}

CATALOG: tuple[OptimizerInfo, ...] = (
    OptimizerInfo(
        name="sgd",
        title="SGD",
        family="sgd",
        factory="torch.optim:SGD",
        hyperparameters={
            "lr": 0.05,
            "momentum": 0.9,
            "dampening": 0.0,
            "weight_decay": 0.0,
            "nesterov": True,
        },
        paper="Sutskever et al. 2013, On the importance of initialization and momentum in deep learning",
        description="One buffer and no adaptivity: enough where gradients are even and little noisy.",
        gradients="both",
        momentum_key="momentum",
        state_numel=_with_momentum(0),
        fused=("cpu",),
        tensor_lr=(),
        optional_state_keys=("momentum_buffer",),
        decoupled=False,
        sparse_equivalent="sgd",
        traceable=True,
        elementwise=True,
    ),
    OptimizerInfo(
        name="adam",
        title="Adam",
        family="adam",
        factory="torch.optim:Adam",
        hyperparameters=_ADAM,
        paper="Kingma & Ba 2015, arXiv 1412.6980",
        description="Per-coordinate rates from second moments; weight decay enters the gradient.",
        fused=("cuda", "cpu"),
        capturable=True,
        decoupled=False,
        state_keys=_ADAM_STATE,
        num_counters=1,
        sparse_equivalent="sparseadam",
        traceable=True,
        elementwise=True,
    ),
    OptimizerInfo(
        name="adamw",
        title="AdamW",
        family="adam",
        factory="torch.optim:AdamW",
        hyperparameters=_ADAM,
        paper="Loshchilov & Hutter 2019, arXiv 1711.05101",
        description="Adam with decoupled weight decay: the safe choice for vectors, heads and embeddings.",
        fused=("cuda", "cpu"),
        capturable=True,
        state_keys=_ADAM_STATE,
        num_counters=1,
        sparse_equivalent="sparseadam",
        traceable=True,
        elementwise=True,
    ),
    OptimizerInfo(
        name="nadam",
        title="NAdam",
        family="adam",
        factory="torch.optim:NAdam",
        hyperparameters={**_ADAM, "momentum_decay": 4e-3, "decoupled_weight_decay": True},
        paper="Dozat 2016, Incorporating Nesterov momentum into Adam",
        description="Adam with Nesterov momentum, strong in AlgoPerf's baselines.",
        capturable=True,
        state_keys=(*_ADAM_STATE, "mu_product"),
        num_counters=2,
        sparse_equivalent="sparseadam",
        traceable=True,
        elementwise=True,
    ),
    OptimizerInfo(
        name="radam",
        title="RAdam",
        family="adam",
        factory="torch.optim:RAdam",
        hyperparameters={**_ADAM, "decoupled_weight_decay": True},
        paper="Liu et al. 2020, arXiv 1908.03265",
        description="Adam whose first steps are damped until the second moment can be trusted.",
        capturable=True,
        state_keys=_ADAM_STATE,
        num_counters=1,
        sparse_equivalent="sparseadam",
        traceable=True,
        elementwise=True,
    ),
    OptimizerInfo(
        name="rmsprop",
        title="RMSprop",
        family="adam",
        factory="torch.optim:RMSprop",
        hyperparameters={"lr": 1e-3, "alpha": 0.99, "eps": 1e-8, "weight_decay": 0.0, "momentum": 0.0},
        paper="Tieleman & Hinton 2012, Lecture 6.5 - rmsprop",
        description="Second moments without momentum: quick to follow embeddings and recurrences.",
        momentum_key="momentum",
        state_numel=_with_momentum(1),
        num_counters=1,
        tensor_lr=("foreach",),
        state_keys=("step", "square_avg"),
        optional_state_keys=("momentum_buffer",),
        capturable=True,
        decoupled=False,
        sparse_equivalent="sparseadam",
        traceable=True,
        elementwise=True,
    ),
    OptimizerInfo(
        name="adagrad",
        title="Adagrad",
        family="constant",
        factory="torch.optim:Adagrad",
        hyperparameters={
            "lr": 0.05,
            "lr_decay": 0.0,
            "eps": 1e-10,
            "weight_decay": 0.0,
            "initial_accumulator_value": 0.0,
        },
        paper="Duchi et al. 2011, JMLR 12",
        description="Rare rows keep large rates: sparse embeddings with heavy-tailed use.",
        gradients="both",
        momentum_key=None,
        state_numel=_moments(1),
        num_counters=1,
        fused=("cpu",),
        tensor_lr=(),
        state_keys=("step", "sum"),
        decoupled=False,
        sparse_equivalent="adagrad",
        traceable=True,
        elementwise=True,
    ),
    OptimizerInfo(
        name="sparseadam",
        title="SparseAdam",
        family="adam",
        factory="torch.optim:SparseAdam",
        hyperparameters={"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8},
        paper="torch.optim.SparseAdam; Kingma & Ba 2015, arXiv 1412.6980",
        description="Adam on the touched rows only, for embeddings made with sparse=True.",
        groups=("embedding",),
        gradients="sparse",
        tensor_lr=(),
        state_keys=_ADAM_STATE,
        foreach=False,
        sparse_equivalent="sparseadam",
        elementwise=True,
    ),
    OptimizerInfo(
        name="adafactor",
        title="Adafactor",
        family="constant",
        factory="torch.optim:Adafactor",
        hyperparameters={
            "lr": 1e-2,
            "beta2_decay": -0.8,
            "eps": (None, 1e-3),
            "d": 1.0,
            "weight_decay": 0.0,
        },
        paper="Shazeer & Stern 2018, arXiv 1804.04235",
        description="Row and column second moments: a large matrix costs next to no state.",
        momentum_key=None,
        state_numel=_factored,
        num_counters=1,
        state_keys=("step",),
        optional_state_keys=("row_var", "col_var", "variance"),
        takes_empty=False,
        tensor_lr=(),
        sparse_equivalent="sparseadam",
    ),
    OptimizerInfo(
        name="lion",
        title="Lion",
        family="sign",
        factory="pytorch_optimizer:Lion",
        hyperparameters={"lr": 1e-4, "betas": (0.9, 0.99), "weight_decay": 0.0},
        paper="Chen et al. 2023, arXiv 2302.06675",
        description="The sign of a momentum: one buffer, steps of equal size, wants small rates.",
        state_numel=_moments(1),
        state_keys=("exp_avg",),
        sparse_equivalent="sparseadam",
        elementwise=True,
    ),
    OptimizerInfo(
        name="muon",
        title="Muon",
        family="spectral",
        factory="autoopt.optimizers.muon:Muon",
        hyperparameters={
            "lr": 0.02,
            "momentum": 0.95,
            "nesterov": True,
            "weight_decay": 0.0,
            "splits": 1,
            "stacked": False,
            "transposed": False,
            "max_relative_update": None,
        },
        paper="Jordan et al. 2024, Muon: An optimizer for hidden layers in neural networks",
        description="Orthogonalised momentum: equal progress along all directions of a weight matrix.",
        groups=MATRIX_GROUPS,
        momentum_key="momentum",
        state_numel=_moments(1),
        foreach=False,
        state_keys=("momentum_buffer",),
        min_ndim=2,
        sparse_equivalent="sparseadam",
        traceable=True,
    ),
    OptimizerInfo(
        name="soap",
        title="SOAP",
        family="adam",
        factory="autoopt.optimizers.soap:SOAP",
        hyperparameters={
            "lr": 3e-3,
            "betas": (0.95, 0.95),
            "eps": 1e-8,
            "weight_decay": 0.0,
            "precondition_frequency": 10,
            "max_precondition_dim": 2048,
        },
        paper="Vyas et al. 2024, arXiv 2409.11321",
        description="Adam in Shampoo's eigenbasis: fewer steps on matrices, at a higher price a step.",
        groups=MATRIX_GROUPS,
        state_numel=_soap,
        foreach=False,
        tensor_lr=(),
        state_keys=_ADAM_STATE,
        optional_state_keys=("GG_", "Q_", "precondition_frequency", "shampoo_beta"),
        min_ndim=2,
        sparse_equivalent="sparseadam",
    ),
)
"""Every optimizer that a plan may name."""


@cache
def _by_name() -> dict[str, OptimizerInfo]:
    names = [info.name for info in CATALOG]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise PlanError(f"the catalog names {', '.join(sorted(repeated))} twice")
    return {info.name: info for info in CATALOG}


def get(name: str) -> OptimizerInfo:
    """The catalog's row of an optimizer.

    Raises:
        PlanError: If the catalog has no such name; close names are suggested.
    """
    rows = _by_name()
    if isinstance(name, str) and name in rows:
        return rows[name]
    close = difflib.get_close_matches(str(name).lower(), rows, n=3)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else f"it has {', '.join(rows)}"
    raise PlanError(f"the catalog has no optimizer {name!r}; {hint}")
