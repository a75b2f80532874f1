"""A planned optimizer that may have a guard: bad steps are left out, a broken run is rolled back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from autoopt.distributed.shards import local
from autoopt.distributed.wrappers import check_group_shape
from autoopt.guard.detection import NONFINITE, OK, worst
from autoopt.guard.events import GuardEvent
from autoopt.guard.guard import Guard, has_climbed
from autoopt.optimizers import averaging
from autoopt.optimizers.handover import hand_over
from autoopt.optimizers.kernels import Kernel
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.planned_optimizer import PlannedOptimizer
from autoopt.optimizers.program import encode, parse
from autoopt.optimizers.validation import layers_of
from autoopt.optimizers.warmup_step import zero_where_not
from autoopt.statistics import warmup


class GuardedOptimizer(PlannedOptimizer):
    """Runs a plan under a guard's eyes; without one, exactly as a `PlannedOptimizer`."""

    @property
    def guard(self) -> Guard | None:
        """The guard, or None."""
        return self._run.get("guard")

    @property
    def guard_events(self) -> tuple[GuardEvent, ...]:
        """What the guard has seen and done so far, the oldest first; `()` where there is no guard."""
        return () if self.guard is None else tuple(self.guard.events)

    def change_plan(self, plan: OptimizerPlan, num_steps: Sequence[int]) -> None:
        """Put a plan in force from the next step on, and hand every parameter's state over.

        What warm-up collected is freed, and so is state that the new rules cannot use.

        Args:
            plan: A plan for all parameters.
            num_steps: Steps that the state of each parameter group was made in.

        Raises:
            PlanError: If no library takes the plan. Nothing has changed then.
        """
        texts = [encode(plan, list(parse(group["plan"]).names)) for group in self.param_groups]
        kernels = {text: self._kernels_of(text) for text in texts}
        fresh: set[Tensor] = set()
        averages: dict[Tensor, dict[str, Any]] = {}
        for group, text, steps in zip(self.param_groups, texts, num_steps, strict=True):
            old, new = parse(group["plan"]).configs(), parse(text).configs()
            for name, param in zip(old, group["params"], strict=True):
                state = self.state[param]
                averages[param] = averaging.averages_in(state) if plan.schedule.averaging is not None else {}
                kept = {k: v for k, v in state.items() if not k.startswith((warmup.STATE_PREFIX, averaging.KEY))}
                state.clear()
                state.update(hand_over(old[name], new[name], kept, param, steps))
                if not state:
                    del self.state[param]
                    if kept:
                        fresh.add(param)
            group["plan"] = text
        self._kernels.clear()
        self._kernels.update(kernels)
        # A checkpoint taken now must hold what one taken a step later holds.
        self._start_state(fresh)
        for param, kept in averages.items():
            if kept:
                self.state[param].update(kept)

    def role_groups(self) -> dict[str, str]:
        """Parameter name -> role group, in order."""
        known = self._known_layers()
        named = [pair for group in self.param_groups for pair in _named(group)]
        return {layer.name: layer.group for layer in layers_of(named, known)}

    # ---- steps ----------------------------------------------------------------------------------

    def _take_step(self, loss: Any, traced: bool) -> list[Kernel]:
        guard = self.guard
        if guard is None or _is_captured(self.param_groups[0]["params"]):
            return super()._take_step(loss, traced)
        verdicts = guard.judge(self, self._loss_of_step())
        if verdicts is None:
            return super()._take_step(loss, traced)
        step = self.param_groups[0]["step"]
        admitted = guard.admits(self, verdicts, step)
        if guard.reads_at_once:
            guard.keep_buffers(admitted)
        if not admitted:
            for group in self.param_groups:
                group["step"] += 1
            return []
        guard.save(self, step)
        if guard.reads_at_once:
            return super()._take_step(loss, traced)
        return self._masked_step(guard, worst(verdicts) == OK, loss, traced)

    def _masked_step(self, guard: Guard, accepted: Tensor, loss: Any, traced: bool) -> list[Kernel]:
        """Take a step that changes no parameter where the device finds it bad; moments decay there.

        Where torch.compile traces the kernels they run later: gradients are zeroed, and no more is done.
        """
        params = [param for group in self.param_groups for param in group["params"] if param.grad is not None]
        guard.keep_buffers(accepted)
        zero_where_not(accepted, [param.grad for param in params if param.grad is not None])
        if traced:
            return super()._take_step(loss, traced)
        parts = [local(param) for param in params]
        before = [part.clone() for part in parts]
        bound = super()._take_step(loss, traced)
        pairs = zip(parts, before, strict=True)
        kept = [torch.where(accepted.to(part.device, non_blocking=True), part, old) for part, old in pairs]
        torch._foreach_copy_(parts, kept)  # pyright: ignore[reportPrivateImportUsage]
        return bound

    def _watch(self) -> None:
        """Show the guard a step of warm-up, which it only learns from."""
        guard = self.guard
        verdicts = None if guard is None else guard.judge(self, self._loss_of_step(), alone=True)
        if guard is not None and verdicts is not None:
            finite = worst(verdicts) < NONFINITE
            guard.keep_buffers(bool(finite) if guard.reads_at_once else finite)
            guard.save(self, self.param_groups[0]["step"])

    def _loss_of_step(self) -> Any:
        losses = self._run.get("losses")
        if losses is None or losses.latest is None:
            return None
        step, loss = losses.latest
        return loss if step == self.param_groups[0]["step"] else None

    # ---- persistence ----------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs, what the guard has seen and done included."""
        result = super().state_dict()
        if self.guard is not None:
            text = self.guard.to_json()
            for group in result["param_groups"]:
                group["guard"] = text
        return result

    def _takes_over(self, state_dict: Mapping[str, Any]) -> bool:
        """Whether a checkpoint may bring another plan: also one that this run's guard has put in force."""
        return super()._takes_over(state_dict) or (self.guard is not None and has_climbed(state_dict))

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint, what the guard has seen and done included.

        Raises:
            CheckpointError: If the checkpoint is of another model, plan or schema. Nothing has
                changed then.
        """
        super().load_state_dict(state_dict)
        texts = [group.get("guard") for group in self.param_groups]
        for group in self.param_groups:
            group["guard"] = None
        if self.guard is not None and texts[0] is not None:
            self.guard.load(texts[0])


def _named(group: Mapping[str, Any]) -> list[tuple[str, Tensor]]:
    names = parse(group["plan"]).names
    check_group_shape(names, group["params"])
    return list(zip(names, group["params"], strict=True))


def _is_captured(params: Sequence[Tensor]) -> bool:
    """Whether a CUDA graph is being captured: a replay repeats kernels and decides nothing."""
    on_device = bool(params) and params[0].is_cuda and torch.cuda.is_initialized()
    return on_device and torch.cuda.is_current_stream_capturing()
