"""The one optimizer: an ordinary `torch.optim.Optimizer` in which every parameter has its own rule."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from autoopt.architecture import LayerInfo, describe_parameters
from autoopt.errors import CheckpointError, ModelError, PlanError
from autoopt.optimizers.catalog import get
from autoopt.optimizers.handover import hand_over
from autoopt.optimizers.kernels import Kernel
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.program import Program, encode, parse
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.statistics import warmup

NOMINAL_BETAS = (0.9, 0.999)
"""The value of `group["betas"]` that means "as planned"; a scheduler that moves it overrides the plan."""


class Selection(Protocol):
    """What decides, once, after the warm-up steps."""

    warmup_steps: int
    seed: int

    def layers(self) -> Mapping[str, LayerInfo]:
        """Description of every parameter by name."""
        ...

    def decide(self, optimizer: AutoOptimizer) -> Any:
        """The recommendation, whose `.plan` is applied from the next step on."""
        ...


class AutoOptimizer(Optimizer):
    """An optimizer that runs the rule and the rate a plan names for each parameter.

    `group["lr"]` is a multiplier: the effective rate of a parameter is `group["lr"]` times its planned
    rate times the plan's schedule. The library never writes it, so any scheduler scales all layers.

    Args:
        params: Parameters, named parameters, or parameter groups, as for any torch optimizer.
        lr: Multiplier of all planned rates, 1 for "as planned".
        plan: An `OptimizerPlan` by parameter name, a `Recipe` (resolved on each parameter), or None
            for the calibrated default. Unnamed parameters are matched with a plan by order.
        betas: Leave at the default for the planned momenta. Where a scheduler (OneCycle) changes
            `group["betas"]`, its values replace the planned momentum of every layer.
        weight_decay: None for the planned weight decay of each layer, or a value for the group.
        maximize: Whether to ascend.
        foreach: None for the fastest correct implementation, or as in `torch.optim.AdamW`.
        fused: Likewise.
        capturable: Whether steps must be capturable in a CUDA graph (after the switch).
        selection: Set by `autoopt.select`; decides after the warm-up.

    Raises:
        ModelError: If a parameter cannot be optimized (complex, quantised).
        PlanError: If the plan does not fit the parameters.
        ValueError: If a hyper-parameter is out of range.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> plan = OptimizerPlan.uniform(model, "adamw", lr=1e-2)
        >>> optimizer = AutoOptimizer(model.named_parameters(), plan=plan)
        >>> optimizer.phase
        'fixed'
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1.0,
        plan: OptimizerPlan | Recipe | None = None,
        *,
        betas: tuple[float, float] = NOMINAL_BETAS,
        weight_decay: float | None = None,
        maximize: bool = False,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        selection: Selection | None = None,
    ) -> None:
        if differentiable:
            raise ValueError("AutoOptimizer does not support differentiable=True")
        if foreach and fused:
            raise RuntimeError("`fused` and `foreach` cannot be `True` together.")
        self._source: OptimizerPlan | Recipe = plan if plan is not None else calibrated_default()
        self._selection = selection
        self._run: dict[str, Any] = {"recommendation": None}
        self._kernels: dict[Any, Kernel] = {}
        defaults = {
            "lr": lr,
            "betas": betas,
            "weight_decay": weight_decay,
            "maximize": maximize,
            "foreach": foreach,
            "fused": fused,
            "capturable": capturable,
            "differentiable": False,
        }
        super().__init__(params, defaults)
        self._check_covered()

    @classmethod
    def from_plan(cls, model: nn.Module, plan: OptimizerPlan, **options: Any) -> AutoOptimizer:
        """An optimizer that runs a saved plan on a model, without any selection.

        Args:
            model: The model the plan was made for.
            plan: The plan.
            **options: Further arguments of `AutoOptimizer`.

        Raises:
            PlanError: If the plan misses a trainable parameter or names one the model does not have.
        """
        named = [(name, param) for name, param in model.named_parameters() if param.requires_grad]
        return cls(named, plan=plan, **options)

    @classmethod
    def from_recommendation(cls, params: Iterable[Any], recommendation: Any, **options: Any) -> AutoOptimizer:
        """An optimizer that runs a recommendation from its first step on.

        Args:
            params: Named parameters.
            recommendation: A `Recommendation`; its plan must fit the parameters.
            **options: Further arguments of `AutoOptimizer`.
        """
        optimizer = cls(params, plan=recommendation.plan, **options)
        for group in optimizer.param_groups:
            group["phase"] = "selected"
        optimizer._run["recommendation"] = recommendation
        return optimizer

    # ---- groups ---------------------------------------------------------------------------------

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters, planned as the others are.

        Raises:
            PlanError: If an explicit plan does not cover the new parameters.
            ModelError: If a parameter cannot be optimized.
        """
        groups_before = len(self.param_groups)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _check_group(group)
            named = self._named(group, groups_before)
            for name, param in named:
                _check_parameter(name, param)
            group.setdefault("step", self.param_groups[0].get("step", 0))
            group.setdefault("phase", self._initial_phase())
            group.setdefault("num_nonfinite_steps", 0)
            group["plan"] = self._encode(named)
        except Exception:
            del self.param_groups[groups_before:]
            raise

    def _initial_phase(self) -> str:
        if self._selection is None:
            return "fixed"
        return self.param_groups[0].get("phase", "warmup")

    def _named(self, group: dict[str, Any], index: int) -> list[tuple[str, Tensor]]:
        names = group.get("param_names")
        if names is None and isinstance(self._source, OptimizerPlan):
            # Unnamed parameters can only be matched by their order, as torch's checkpoints do.
            start = sum(len(g["params"]) for g in self.param_groups[:index])
            known = list(self._source.layers)
            names = known[start : start + len(group["params"])]
            if len(names) < len(group["params"]):
                raise PlanError(
                    f"the plan covers {len(known)} parameters, but at least {start + len(group['params'])} were "
                    "given; pass model.named_parameters() and a plan made for this model"
                )
        elif names is None:
            names = [f"{index}.{position}" for position in range(len(group["params"]))]
        return list(zip(names, group["params"], strict=True))

    def _encode(self, named: list[tuple[str, Tensor]]) -> str:
        plan = self._source
        if isinstance(plan, Recipe):
            known = self._selection.layers() if self._selection is not None else {}
            plan = plan.resolve([known.get(name) or _guess(name, param) for name, param in named])
        text = encode(plan, [name for name, _ in named])
        for (name, param), config in zip(named, parse(text).configs().values(), strict=True):
            info = get(config.optimizer)
            if param.ndim < info.min_ndim and param.numel() > 0:
                raise PlanError(
                    f"parameter {name!r} of shape {tuple(param.shape)} cannot take {info.title}, which needs at "
                    f"least {info.min_ndim} dimensions; give it 'adamw' or 'sgd'"
                )
        return text

    def _check_covered(self) -> None:
        if isinstance(self._source, OptimizerPlan):
            names = [name for group in self.param_groups for name in parse(group["plan"]).names]
            extra = [name for name in self._source.layers if name not in set(names)]
            if extra:
                raise PlanError(
                    f"the plan names parameter {extra[0]!r}, which is not among the {len(names)} given; "
                    "build the plan from the same model"
                )

    # ---- what users read ------------------------------------------------------------------------

    @property
    def phase(self) -> str:
        """`"warmup"` until the decision, then `"selected"`; `"fixed"` where nothing is to be decided."""
        return self.param_groups[0]["phase"]

    @property
    def recommendation(self) -> Any:
        """The `Recommendation`, or None before the decision (and where there is none)."""
        return self._run["recommendation"]

    @property
    def plan(self) -> OptimizerPlan:
        """The plan in force now."""
        programs = [parse(group["plan"]) for group in self.param_groups]
        layers = {name: config for program in programs for name, config in program.configs().items()}
        return OptimizerPlan(layers, programs[0].schedule)

    @property
    def num_nonfinite_steps(self) -> int:
        """Warm-up steps that were skipped since a gradient held NaN or Inf."""
        return int(self.param_groups[0]["num_nonfinite_steps"])

    def observe(self, loss: Tensor | float) -> None:
        """Tell the optimizer the loss of the coming step, so that warm-up can measure its drop.

        Optional: a closure's loss is observed by itself. Only the first and the latest value are
        kept, as they are; nothing is synchronised.
        """
        if self.phase == "warmup":
            value = loss.detach() if isinstance(loss, Tensor) else float(loss)
            self._run.setdefault("first_loss", value)
            self._run["last_loss"] = value

    def observed_losses(self) -> tuple[float | None, float | None]:
        """The first and the latest loss observed in warm-up, None where there was none; synchronises."""
        first, last = self._run.get("first_loss"), self._run.get("last_loss")
        return (None if first is None else float(first), None if last is None else float(last))

    def __repr__(self) -> str:
        """A summary: phase, and how many parameters each optimizer has."""
        counts: dict[str, int] = {}
        for config in self.plan.layers.values():
            counts[config.optimizer] = counts.get(config.optimizer, 0) + 1
        what = ", ".join(f"{get(name).title} on {count}" for name, count in counts.items())
        return f"AutoOptimizer(phase={self.phase!r}, lr={self.param_groups[0]['lr']}, tensors: {what})"

    # ---- stepping -------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore
        """Update all parameters once.

        Args:
            closure: Re-evaluates the model and returns the loss, as for any torch optimizer.

        Returns:
            The closure's loss, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.param_groups[0]["step"] == 0 and self._is_state_initialisation():
            self._initialise_state()
            return loss
        if self.param_groups[0]["phase"] != "warmup":
            for group in self.param_groups:
                self._step_group(group, None)
                group["step"] += 1
            return loss
        if loss is not None:
            self.observe(loss)
        self._warmup_step()
        return loss

    def _step_group(self, group: dict[str, Any], mask: Tensor | None) -> None:
        text = group["plan"]
        program = parse(text)
        params = group["params"]
        factor = program.schedule.factor(group["step"])
        overrides = _overrides(group)
        options = (group["fused"], group["foreach"], group["maximize"], group["capturable"])
        for index, bucket in enumerate(program.buckets):
            selected = params if bucket.everything else [params[i] for i in bucket.positions]
            if not any(param.grad is not None for param in selected):
                continue
            kernel = self._kernels.get((text, index))
            if kernel is None:
                kernel = self._kernels[text, index] = Kernel(bucket.config)
            lr = group["lr"] * (kernel.hyperparameters["lr"] * factor)
            if mask is not None:
                lr = lr * mask
            own = overrides.for_kernel(kernel) if overrides is not None else {}
            kernel.step(self.state, selected, lr, own, options)

    def _warmup_step(self) -> None:
        assert self._selection is not None
        entries = self.warmup_entries()
        params = [param for _, param, _ in entries]
        grads = [param.grad for param in params]
        finite = _all_finite([grad for grad in grads if grad is not None])
        mask = None
        if finite is not None and finite.device.type == "cpu":
            if not bool(finite):  # a CPU tensor: reading it synchronises nothing
                for group in self.param_groups:
                    group["num_nonfinite_steps"] += 1
                    group["step"] += 1
                self._finish_warmup()
                return
        elif finite is not None:
            mask = finite.to(torch.float32)
            _zero_where_not(finite, [grad for grad in grads if grad is not None])
        step = self.param_groups[0]["step"]
        fresh = self._missing_warmup_states(entries)
        if warmup.collects(step):
            warmup.update(
                [layer for layer, _, _ in entries],
                params,
                grads,
                [fresh.get(index, state) for index, (_, _, state) in enumerate(entries)],
                step=step,
                finite=finite,
                seed=self._selection.seed,
            )
        for group in self.param_groups:
            self._step_group(group, mask)
            group["step"] += 1
        for index, accumulators in fresh.items():
            self.state[params[index]].update(accumulators)
        self._finish_warmup()

    def warmup_entries(self) -> list[tuple[LayerInfo, Tensor, dict[str, Any]]]:
        """Description, parameter and state of every parameter, in the order of the groups."""
        entries = []
        known = self._selection.layers() if self._selection is not None else {}
        for group in self.param_groups:
            for name, param in zip(parse(group["plan"]).names, group["params"], strict=True):
                entries.append((known.get(name) or _guess(name, param), param, self.state[param]))
        return entries

    def _missing_warmup_states(
        self, entries: list[tuple[LayerInfo, Tensor, dict[str, Any]]]
    ) -> dict[int, dict[str, Tensor]]:
        """Accumulators for the parameters that have a gradient but none yet, by position.

        They join the state after the kernels' first step: kernels take a state with anything in it
        for one of their own that is complete.
        """
        assert self._selection is not None
        return {
            index: warmup.init_state(layer, param, self._selection.seed)
            for index, (layer, param, state) in enumerate(entries)
            if param.grad is not None and warmup.HISTORY not in state
        }

    def _finish_warmup(self) -> None:
        assert self._selection is not None
        if self.param_groups[0]["step"] >= self._selection.warmup_steps:
            recommendation = self._selection.decide(self)
            self._switch(recommendation.plan)
            self._run["recommendation"] = recommendation

    def _switch(self, plan: OptimizerPlan) -> None:
        """Put a plan in force: hand every parameter's state over and free what warm-up needed."""
        texts = [encode(plan, list(parse(group["plan"]).names)) for group in self.param_groups]
        for group, text in zip(self.param_groups, texts, strict=True):
            old, new = parse(group["plan"]).configs(), parse(text).configs()
            steps = group["step"] - group["num_nonfinite_steps"]
            for name, param in zip(old, group["params"], strict=True):
                state = self.state[param]
                kept = {k: v for k, v in state.items() if not k.startswith(warmup.STATE_PREFIX)}
                state.clear()
                state.update(hand_over(old[name], new[name], kept, param, steps))
                if not state:
                    del self.state[param]
            group["plan"] = text
            group["phase"] = "selected"
        self._kernels.clear()

    def _is_state_initialisation(self) -> bool:
        """Whether this is the hidden step by which torch.distributed.checkpoint creates state.

        It calls `step()` on an unstepped optimizer with lr 0 and zero gradients (pytorch#164929):
        that is no training step, and must not count as warm-up.
        """
        if any(self.state.values()):
            return False
        if any(float(group["lr"]) != 0.0 for group in self.param_groups):
            return False
        grads = [p.grad for g in self.param_groups for p in g["params"] if p.grad is not None]
        return all(not bool((grad._values() if grad.is_sparse else grad).any()) for grad in grads)

    def _initialise_state(self) -> None:
        entries = self.warmup_entries() if self.phase == "warmup" else []
        fresh = self._missing_warmup_states(entries) if entries else {}
        for group in self.param_groups:
            self._step_group(group, None)
        for index, accumulators in fresh.items():
            self.state[entries[index][1]].update(accumulators)
        for state in self.state.values():
            for key, fresh in (("step", 0), ("mu_product", 1)):
                if isinstance(state.get(key), Tensor):
                    state[key].fill_(fresh)
                elif key in state:
                    state[key] = fresh

    # ---- persistence ----------------------------------------------------------------------------

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling and deepcopy: torch's own, plus what decides and what was decided."""
        own = {"_source": self._source, "_selection": self._selection, "_run": self._run}
        return {**super().__getstate__(), **own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore from `__getstate__` or, within `load_state_dict`, from groups and state alone."""
        super().__setstate__(state)
        self._kernels = {}
        self.__dict__.setdefault("_selection", None)
        self.__dict__.setdefault("_run", {"recommendation": None})
        self.__dict__.setdefault("_source", calibrated_default())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint, its plan and its phase included.

        An optimizer made by `select` takes over the checkpoint's plan. One with a fixed plan refuses
        a checkpoint of another plan: rebuild it with `AutoOptimizer.from_plan` first.

        Raises:
            CheckpointError: If the checkpoint is of another model, plan or schema. Nothing has
                changed then.
        """
        self._check_checkpoint(state_dict)
        super().load_state_dict(dict(state_dict))
        # torch casts state to the parameter's dtype; sums over a warm-up must keep theirs.
        saved_ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        for saved_id, param in zip(saved_ids, params, strict=True):
            for key, value in state_dict["state"].get(saved_id, {}).items():
                if key.startswith(warmup.STATE_PREFIX) and isinstance(value, Tensor):
                    self.state[param][key] = value.detach().clone().to(param.device)

    def _check_checkpoint(self, state_dict: Mapping[str, Any]) -> None:
        saved_groups = state_dict["param_groups"]
        if len(saved_groups) != len(self.param_groups):
            raise CheckpointError(
                f"the checkpoint has a different number of parameter groups ({len(saved_groups)}) than this "
                f"optimizer ({len(self.param_groups)})"
            )
        for index, (saved, group) in enumerate(zip(saved_groups, self.param_groups, strict=True)):
            if "plan" not in saved or "phase" not in saved:
                raise CheckpointError(
                    "the checkpoint was not written by AutoOptimizer: its parameter groups hold no plan"
                )
            theirs, ours = parse(saved["plan"]), parse(group["plan"])
            _check_same_parameters(index, theirs, ours, len(saved["params"]), len(group["params"]))
            if self._selection is None and theirs.buckets != ours.buckets:
                name = next(n for n, c in theirs.configs().items() if c != ours.configs()[n])
                raise CheckpointError(
                    f"the checkpoint's plan has {theirs.configs()[name].optimizer} with another setting for "
                    f"parameter {name!r} than this optimizer; rebuild it from the saved plan with "
                    "AutoOptimizer.from_plan(model, plan), then load"
                )
            for saved_id, param in zip(saved["params"], group["params"], strict=True):
                for key in ("exp_avg", "momentum_buffer", "square_avg", "sum"):
                    value = state_dict["state"].get(saved_id, {}).get(key)
                    if isinstance(value, Tensor) and value.shape != param.shape:
                        raise CheckpointError(
                            f"the checkpoint's state {key!r} has shape {tuple(value.shape)} for a parameter of "
                            f"shape {tuple(param.shape)} in group {index}: it is of another model"
                        )


def _check_same_parameters(index: int, theirs: Program, ours: Program, saved: int, own: int) -> None:
    if saved != own:
        raise CheckpointError(
            f"the checkpoint contains a parameter group that doesn't match the size of optimizer's group "
            f"{index}: {saved} parameters there, {own} here"
        )
    for saved_name, name in zip(theirs.names, ours.names, strict=True):
        if saved_name != name:
            raise CheckpointError(
                f"the checkpoint has parameter {saved_name!r} where this optimizer has {name!r} (group {index}): "
                "it is of another model, or the parameters are in another order"
            )


class _Overrides:
    """Hyper-parameters of a group that a scheduler or the user set over the plan."""

    def __init__(self, betas: tuple[float, float] | None, weight_decay: float | None) -> None:
        self.betas = betas
        self.weight_decay = weight_decay

    def for_kernel(self, kernel: Kernel) -> dict[str, Any]:
        values: dict[str, Any] = {}
        key = kernel.info.momentum_key
        if self.betas is not None and key is not None:
            beta1, beta2 = self.betas
            if key == "betas":
                planned = kernel.hyperparameters["betas"][1]
                values["betas"] = (beta1, planned if beta2 == NOMINAL_BETAS[1] else beta2)
            elif kernel.hyperparameters[key] > 0:
                values[key] = beta1
        if self.weight_decay is not None and "weight_decay" in kernel.hyperparameters:
            values["weight_decay"] = self.weight_decay
        return values


def _overrides(group: dict[str, Any]) -> _Overrides | None:
    betas = group["betas"]
    moved = betas[0] != NOMINAL_BETAS[0] or betas[1] != NOMINAL_BETAS[1]
    if not moved and group["weight_decay"] is None:
        return None
    return _Overrides((betas[0], betas[1]) if moved else None, group["weight_decay"])


def _guess(name: str, param: Tensor) -> LayerInfo:
    """The description of a parameter that comes without a model, frozen or not."""
    return describe_parameters([(name, param.detach().requires_grad_())]).layers[0]


def _check_group(group: dict[str, Any]) -> None:
    lr = group["lr"]
    if isinstance(lr, Tensor):
        if lr.numel() != 1:
            raise ValueError("Tensor lr must be 1-element")
    elif not (math.isfinite(lr) and lr >= 0.0):
        raise ValueError(f"Invalid learning rate: {lr} (lr is a multiplier of the planned rates, finite and >= 0)")
    for position, beta in enumerate(group["betas"]):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"Invalid beta parameter at index {position}: {beta}")
    decay = group["weight_decay"]
    if decay is not None and not decay >= 0.0:
        raise ValueError(f"Invalid weight_decay value: {decay}")


def _check_parameter(name: str, param: Tensor) -> None:
    if param.is_complex():
        raise ModelError(
            f"parameter {name!r} is complex ({param.dtype}); AutoOptimizer takes real parameters only: "
            "store it as torch.view_as_real(...) and view it as complex in forward()"
        )
    if not param.is_floating_point():
        raise ModelError(f"parameter {name!r} has dtype {param.dtype}; only floating-point parameters can be trained")


def _all_finite(grads: list[Tensor]) -> Tensor | None:
    """A 0-d bool tensor on the first gradient's device: whether every gradient is finite."""
    values = [grad._values() if grad.is_sparse else grad for grad in grads]
    # NaN and Inf propagate through a sum, which costs one pass and allocates nothing.
    sums = [value.sum(dtype=torch.float32) for value in values if value.numel()]
    if not sums:
        return None
    device = sums[0].device
    return torch.isfinite(torch.stack([total.to(device) for total in sums]).sum())


def _zero_where_not(finite: Tensor, grads: list[Tensor]) -> None:
    for grad in grads:
        values = grad._values() if grad.is_sparse else grad
        values.masked_fill_(~finite.to(values.device), 0.0)
