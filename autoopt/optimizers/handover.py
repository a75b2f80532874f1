"""What a parameter's optimizer state becomes when its optimizer changes.

State is first read into units that all families share: the mean of recent gradients, the mean of
their squares (both free of start-up bias), and the number of steps they were taken over. The new
family's state is then written from these, in its own units. What cannot be carried is freed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from autoopt.optimizers.catalog import get
from autoopt.optimizers.plan import OptimizerConfig

_ADAM_LIKE = ("adam", "adamw", "nadam", "radam", "sparseadam")


@dataclass(frozen=True)
class Moments:
    """Gradient moments in shared units.

    Attributes:
        steps: Steps they were taken over.
        mean: Mean gradient, or None.
        square: Mean squared gradient, or None.
    """

    steps: int
    mean: Tensor | None
    square: Tensor | None


def read_moments(config: OptimizerConfig, state: dict[str, Any], steps: int) -> Moments:
    """The moments that an optimizer's state holds.

    Args:
        config: The configuration the state belongs to.
        state: The parameter's state.
        steps: Steps taken, for rules that do not count them.
    """
    values = config.complete
    name = config.optimizer
    if name in _ADAM_LIKE and "exp_avg" in state:
        steps = int(state["step"])
        beta1, beta2 = values["betas"]
        return Moments(steps, state["exp_avg"] / (1 - beta1**steps), state["exp_avg_sq"] / (1 - beta2**steps))
    if name == "muon" and "momentum_buffer" in state:
        return Moments(steps, state["momentum_buffer"] / (1 - values["momentum"] ** steps), None)
    if name == "lion" and "exp_avg" in state:
        return Moments(steps, state["exp_avg"] / (1 - values["betas"][1] ** steps), None)
    if name == "sgd" and state.get("momentum_buffer") is not None:
        # The buffer sums gradients: over t steps their weights add up to (1 - mu^t) / (1 - mu).
        mu = values["momentum"]
        return Moments(steps, state["momentum_buffer"] * ((1 - mu) / (1 - mu**steps)), None)
    if name == "rmsprop" and "square_avg" in state:
        steps = int(state["step"])
        return Moments(steps, None, state["square_avg"] / (1 - values["alpha"] ** steps))
    if name == "adagrad" and "sum" in state:
        steps = int(state["step"])
        return Moments(steps, None, state["sum"] / max(1, steps))
    return Moments(steps, None, None)


def write_state(config: OptimizerConfig, moments: Moments, param: Tensor) -> dict[str, Any]:
    """The state that a new optimizer starts with; empty where nothing meaningful can be carried.

    An adaptive rule is given moments only if both are known: a mean without its square would be
    divided by zero or by a guess.
    """
    values, steps = config.complete, moments.steps
    mean, square = moments.mean, moments.square
    name = config.optimizer
    if steps == 0:
        return {}
    info = get(name)
    # Counters stay beside the parameter where the kernel reads them without synchronising.
    on_device = info.capturable or param.device.type in info.fused
    step = torch.tensor(float(steps), device=param.device if on_device else "cpu")
    if name in _ADAM_LIKE and mean is not None and square is not None:
        beta1, beta2 = values["betas"]
        state: dict[str, Any] = {
            "step": steps if name == "sparseadam" else step,
            "exp_avg": mean * (1 - beta1**steps),
            "exp_avg_sq": square * (1 - beta2**steps),
        }
        if name == "nadam":
            product = 1.0
            for t in range(1, steps + 1):
                product *= beta1 * (1.0 - 0.5 * 0.96 ** (t * values["momentum_decay"]))
            state["mu_product"] = torch.tensor(product, device=step.device)
        return state
    if name == "muon" and mean is not None:
        return {"momentum_buffer": mean * (1 - values["momentum"] ** steps)}
    if name == "lion" and mean is not None:
        return {"exp_avg": mean * (1 - values["betas"][1] ** steps)}
    if name == "sgd" and mean is not None and values["momentum"] > 0:
        mu = values["momentum"]
        return {"momentum_buffer": mean * ((1 - mu**steps) / (1 - mu))}
    if name == "rmsprop" and square is not None and values["momentum"] == 0:
        return {
            "step": step,
            "square_avg": square * (1 - values["alpha"] ** steps),
        }
    if name == "adagrad" and square is not None:
        total = square * steps + values["initial_accumulator_value"]
        return {"step": step, "sum": total}
    if name == "adafactor" and square is not None:
        if param.dim() > 1:
            return {
                "step": step,
                "row_var": square.mean(dim=-1, keepdim=True),
                "col_var": square.mean(dim=-2, keepdim=True),
            }
        return {"step": step, "variance": square.clone()}
    return {}


def hand_over(
    old: OptimizerConfig, new: OptimizerConfig, state: dict[str, Any], param: Tensor, steps: int
) -> dict[str, Any]:
    """The state with which `new` goes on where `old` stopped.

    Args:
        old: The configuration so far.
        new: The configuration from now on.
        state: The parameter's state under `old`.
        param: The parameter.
        steps: Steps taken so far.

    Returns:
        The same state where the optimizer and its state's decay rates stay, converted moments where
        they can be carried, an empty dict (a fresh start) where they cannot.
    """
    unchanged = all(
        old.complete[key] == new.complete.get(key)
        for key in ("betas", "momentum", "alpha", "momentum_decay")
        if key in old.complete
    )
    if old.optimizer == new.optimizer and unchanged:
        return state
    return write_state(new, read_moments(old, state, steps), param)
