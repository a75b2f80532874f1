"""The one protocol between an optimizer that decides and whoever wants to know: trackers, folders, prints."""

from __future__ import annotations

from typing import Any, Protocol

from torch.optim import Optimizer

from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.report.recommendation import Recommendation


class DecisionCallback(Protocol):
    """Anything that is called once with a recommendation: a function, a tracker's adapter."""

    def __call__(self, recommendation: Recommendation, step: int) -> None:
        """Take the recommendation that was decided after `step` optimizer steps."""
        ...


def auto_optimizer_of(optimizer: Any) -> AutoOptimizer | None:
    """The `AutoOptimizer` inside what a training stack wrapped around it, or None where there is none.

    accelerate and Lightning keep the optimizer they wrap in the attribute `optimizer`.

    >>> import torch
    >>> auto_optimizer_of(torch.optim.SGD([torch.ones(1, requires_grad=True)], lr=0.1)) is None
    True
    """
    seen: set[int] = set()
    while optimizer is not None and id(optimizer) not in seen:
        # Lightning's wrapper is made a subclass of what it wraps: look inside before looking at the type.
        inner = getattr(optimizer, "optimizer", None)
        if inner is None and isinstance(optimizer, AutoOptimizer):
            return optimizer
        seen.add(id(optimizer))
        optimizer = inner
    return None


def when_decided(optimizer: Any, callback: DecisionCallback) -> None:
    """Call `callback(recommendation, step)` once: right after the decision, or now if it was made already.

    Nothing is called where there is no recommendation to come: for an optimizer with a fixed plan, and
    for one that went on from a checkpoint taken after the decision. Copies and pickles of the optimizer
    do not call.

    Args:
        optimizer: What `autoopt.select` returned, or a training stack's wrapper of it.
        callback: What is called. An error that it raises ends the training step.

    Raises:
        TypeError: If there is no `AutoOptimizer` inside.

    Example:
        >>> import torch, autoopt
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = autoopt.select(model, total_steps=9, warmup_steps=2)
        >>> when_decided(optimizer, lambda recommendation, step: print("decided after", step))
        >>> for _ in range(3):
        ...     model(torch.ones(1, 4)).sum().backward()
        ...     optimizer.step()
        decided after 2
    """
    own = auto_optimizer_of(optimizer)
    if own is None:
        raise TypeError(
            f"expected what autoopt.select returned, got {type(optimizer).__name__} without an AutoOptimizer inside"
        )
    if own.recommendation is not None:
        callback(own.recommendation, own.param_groups[0]["step"])
        return
    if own.phase != "warmup":
        return

    waiting = [callback]

    def after_step(stepped: Optimizer, args: Any, kwargs: Any) -> None:
        assert isinstance(stepped, AutoOptimizer)
        if not waiting or stepped.phase == "warmup":
            return
        told = waiting.pop()  # the hook stays and does nothing: torch lets none be removed while it runs them
        if stepped.recommendation is not None:
            told(stepped.recommendation, stepped.param_groups[0]["step"])

    own.register_step_post_hook(after_step)
