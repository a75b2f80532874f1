"""Update rules without state of their own: library optimizers re-bound to an outer state each step.

A kernel holds one library optimizer, made on a dummy parameter. On every step it is given the outer
`state` and a transient group, so that one `torch.optim.Optimizer` owns all parameters while each
bucket of parameters runs the rule its plan names. The undecorated step is called: the decorated one
would fire PyTorch's global step hooks once a kernel.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autoopt.distributed.shards import is_sharded
from autoopt.errors import PlanError
from autoopt.optimizers.catalog import OptimizerInfo, get
from autoopt.optimizers.device_rules import device_rule
from autoopt.optimizers.plan import OptimizerConfig
from autoopt.optimizers.sharded import step_sharded

State = MutableMapping[Tensor, dict[str, Any]]


class Options(NamedTuple):
    """How the user wants steps to be run; None lets the fastest correct implementation be chosen."""

    fused: bool | None
    foreach: bool | None
    maximize: bool
    capturable: bool


class Implementation(NamedTuple):
    """The implementation of a rule that a step runs; never more than one of the first two."""

    fused: bool
    foreach: bool
    capturable: bool

    @property
    def name(self) -> str:
        """`"fused"`, `"foreach"` or `"loop"`."""
        return "fused" if self.fused else "foreach" if self.foreach else "loop"


def raw_step(optimizer_class: type) -> Any:
    """The step function of an optimizer class beneath its hooks and grad-mode decorators."""
    return inspect.unwrap(optimizer_class.step)


def choose_implementation(
    info: OptimizerInfo,
    values: Mapping[str, Any],
    device: str,
    sparse: bool,
    options: Options,
    tensor_rate: bool = False,
) -> Implementation:
    """The fastest correct implementation of a rule on a type of device, within the user's options.

    Args:
        info: The catalog's row.
        values: Complete hyper-parameters.
        device: Device type of the parameters.
        sparse: Whether any gradient is sparse.
        options: What the user asked for.
        tensor_rate: Whether the rate is a tensor that the host must not wait for.
    """
    # Fused SGD cannot start one momentum later than another, unless a zero buffer stands for none.
    can_fuse = device in info.fused and not sparse and not values.get("dampening")
    # torch's fused rules take such a rate too, but cannot be shown not to wait (see test_optimizer_fake_cuda).
    other = tensor_rate and bool(info.tensor_lr)
    fused = can_fuse and not other and options.fused is not False and options.foreach is not True
    # On a CPU the for-loop beats foreach (53 ms against 26 ms for 20 M AdamW parameters).
    wanted = options.foreach is True or (options.foreach is None and device != "cpu")
    foreach = info.foreach and not sparse and not fused and wanted
    # A step counter on the device keeps CUDA free of synchronisation.
    capturable = info.capturable and not fused and (device == "cuda" or (options.capturable and device != "cpu"))
    return Implementation(fused, foreach, capturable)


class Kernel:
    """One catalog optimizer with fixed hyper-parameters, ready to update any parameters.

    Attributes:
        info: The catalog's row.
        hyperparameters: Complete hyper-parameters, as planned.
    """

    def __init__(self, config: OptimizerConfig) -> None:
        """Build the library optimizer that a configuration names.

        Raises:
            PlanError: If the library refuses a hyper-parameter.
        """
        self.info: OptimizerInfo = get(config.optimizer)
        self.hyperparameters = config.complete
        factory = self.info.load()
        dummy = torch.zeros((1,) * max(1, self.info.min_ndim), device="cpu")
        # A planned rate of 0 is allowed, also where a library's constructor refuses it.
        values = self.hyperparameters | {"lr": self.info.hyperparameters["lr"]}
        try:
            self._optimizer = factory([dummy], **values)
        except (ValueError, TypeError) as error:
            raise PlanError(f"optimizer {self.info.name!r} refuses its hyper-parameters {values}: {error}") from error
        self._group = self._optimizer.param_groups[0]
        self._optimizer.state = {}
        self._group["params"] = []
        self._step = raw_step(factory)
        self._implementation: Implementation | None = None
        self._choices: dict[tuple[str, bool, Options, bool], Implementation] = {}
        self._overridden = True
        # Libraries outside torch negate the user's gradients in place; they never learn of it here.
        self._negates = "maximize" not in self._optimizer.defaults

    def step(
        self,
        state: State,
        params: list[Tensor],
        lr: float,
        scale: Tensor | None,
        overrides: Mapping[str, Any],
        options: Options,
        sparse: bool,
        bind_only: bool = False,
    ) -> bool:
        """Update `params` from their gradients, keeping all state in `state`.

        Args:
            state: The owning optimizer's state, keyed by parameter.
            params: Parameters on one type of device; those without a gradient are left alone.
            lr: The rate of this step.
            scale: A further factor on the rate that only the device may know, or None.
            overrides: Hyper-parameters that replace the planned ones in this step.
            options: How the user wants steps to be run.
            sparse: Whether any gradient is sparse.
            bind_only: Where torch.compile can trace the update, prepare it for `run` instead.

        Returns:
            Whether it was prepared only: then `run` and `release` are to be called.
        """
        values = {**self.hyperparameters, **overrides} if overrides else self.hyperparameters
        if type(params[0]) is not torch.nn.Parameter and is_sharded(params[0]):  # the first test is quick
            step_sharded(self, state, params, lr, scale, overrides, options)
            return False
        device = params[0].device.type
        if device != "cpu":
            rule = device_rule(self.info.name, sparse, values)
            if rule is not None and (not sparse or all(_has_sparse_rows(p.grad) for p in params)):
                rule(state, params, values, lr if scale is None else scale * lr, options.maximize)
                return False
        if scale is not None and scale.device.type == "cpu":
            lr, scale = lr * float(scale), None  # reading it waits for nothing
        chosen = self._chosen(values, device, sparse, options, scale is not None)
        scaled = scale is not None and chosen.name not in self.info.tensor_lr
        rate = lr if scale is None or scaled else scale * lr
        self._bind(state, params, rate, values, chosen, options.maximize)
        if bind_only and self.info.traceable and not (sparse or scaled or chosen.fused):
            # Its own part of the state: torch.compile moves step counters that it finds there.
            self._optimizer.state = {p: state[p] for p in params if p.grad is not None}  # pyright: ignore
            return True
        touched = [param for param in params if param.grad is not None] if scaled or self._negates else ()
        before = [param.clone() for param in touched] if scaled else ()
        try:
            if sparse:
                with _unchecked(), _negated(touched if self._negates and options.maximize else ()):
                    self.run()
            elif self._negates and options.maximize:
                with _negated(touched):
                    self.run()
            else:
                self.run()
        finally:
            self.release()
        if scaled and scale is not None:
            for param, old in zip(touched, before, strict=True):
                param.lerp_(old, (1.0 - scale).to(param.device, param.dtype))
        return False

    def _chosen(
        self, values: Mapping[str, Any], device: str, sparse: bool, options: Options, tensor_rate: bool
    ) -> Implementation:
        if values is not self.hyperparameters:
            return choose_implementation(self.info, values, device, sparse, options, tensor_rate)
        key = (device, sparse, options, tensor_rate)
        if key not in self._choices:
            self._choices[key] = choose_implementation(self.info, values, device, sparse, options, tensor_rate)
        return self._choices[key]

    def _bind(
        self,
        state: State,
        params: list[Tensor],
        lr: float | Tensor,
        values: Mapping[str, Any],
        chosen: Implementation,
        maximize: bool,
    ) -> None:
        group = self._group
        if chosen is not self._implementation and chosen != self._implementation:
            group.update(chosen._asdict())
            self._implementation = chosen
        if self._overridden or values is not self.hyperparameters:
            group.update(values)
            self._overridden = values is not self.hyperparameters
        group["lr"] = lr
        group["maximize"] = maximize and not self._negates
        if "dampening" in values and values["momentum"] and not values["dampening"]:
            _start_momentum(state, params)
        if not self.info.takes_empty:
            params = [param for param in params if param.numel() > 0]
        group["params"] = params
        self._optimizer.state = state  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def params(self) -> list[Tensor]:
        """The parameters that are bound."""
        return self._group["params"]

    def run(self) -> None:
        """Run the library's step on what is bound."""
        self._step(self._optimizer)

    def release(self) -> None:
        """Let go of parameters and state: a kernel must not keep them alive between steps."""
        self._group["params"] = []
        self._optimizer.state = {}  # pyright: ignore[reportAttributeAccessIssue]


def run_bound(kernels: Sequence[Kernel], any_tensor: Tensor) -> None:
    """Run kernels that are bound: the one function that torch.compile traces, into one graph.

    Args:
        kernels: Bound kernels.
        any_tensor: Not used: torch.compile passes functions by that are given no tensor.
    """
    for kernel in kernels:
        kernel.run()


@contextmanager
def _negated(params: Sequence[Tensor]) -> Iterator[None]:
    grads = [param.grad for param in params if param.grad is not None]
    for grad in grads:
        grad.neg_()
    try:
        yield
    finally:
        for grad in grads:
            grad.neg_()


def _unchecked() -> AbstractContextManager[None]:
    # torch warns once where sparse tensors are made and nobody said whether to check them.
    setting = torch.sparse.check_sparse_tensor_invariants
    return setting(enable=setting.is_enabled())


def _start_momentum(state: State, params: list[Tensor]) -> None:
    """Zero buffers where SGD has none yet: the first update is the same, and every step is alike.

    torch's fused SGD fails if only some parameters have one, and torch.compile would trace twice.
    """
    for param in params:
        if param.grad is not None and not param.grad.is_sparse:
            own = state[param]
            if own.get("momentum_buffer") is None:
                own["momentum_buffer"] = torch.zeros_like(param.grad, memory_format=torch.preserve_format)


def _has_sparse_rows(grad: Tensor | None) -> bool:
    return grad is None or (grad.is_sparse and grad.sparse_dim() == 1)
