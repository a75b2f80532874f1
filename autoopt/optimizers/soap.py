"""SOAP of pytorch-optimizer, with a state that checkpoints can hold.

The library keeps lists of tensors in its state and its step count in the group. Checkpoint formats
take tensors and numbers only, and parameters may start at different steps, so both are moved into
the parameter's own state between steps.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from pytorch_optimizer import SOAP as LibrarySOAP

_LISTS = ("GG", "Q")
_OWN = ("exp", "GG", "Q", "precondition", "shampoo", "step")
"""What the keys of its state begin with; others are kept beside it."""

_library_step = inspect.unwrap(LibrarySOAP.step)


def _unpack(state: dict[str, Any]) -> int:
    """Give the library its lists back, in place; returns the parameter's step count."""
    if not state.get("step"):
        state.clear()  # made before the first gradient, as distributed checkpoints do: a fresh start
        return 0
    for key in _LISTS:
        size = sum(name.startswith(f"{key}_") for name in state)
        # An empty tensor stands for a dimension that is not preconditioned.
        parts = [state.pop(f"{key}_{index}") for index in range(size)]
        state[key] = [part if part.numel() else [] for part in parts]
    return int(state.pop("step"))


def _pack(state: dict[str, Any], step: int, device: torch.device) -> None:
    for key in _LISTS:
        for index, part in enumerate(state.pop(key)):
            state[f"{key}_{index}"] = part if len(part) else torch.zeros(0, device=device)
    state["step"] = step


class SOAP(LibrarySOAP):
    """Adam in the eigenbasis of Shampoo's preconditioner.

    The first step of a parameter only starts the preconditioner and moves nothing, as in the
    authors' code. Source: Vyas et al. 2024, arXiv 2409.11321.
    """

    @torch.no_grad()
    def step(self, closure=None):
        """Update the parameters once; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in list(self.param_groups):
            by_step: dict[int, list[torch.Tensor]] = {}
            others: dict[torch.Tensor, dict[str, Any]] = {}
            for param in group["params"]:
                if param.grad is not None and param.numel() > 0:
                    # The library starts a parameter only where its state is empty.
                    own = self.state[param]
                    others[param] = {key: own.pop(key) for key in list(own) if key.partition("_")[0] not in _OWN}
                    by_step.setdefault(_unpack(own), []).append(param)
            for step, params in by_step.items():
                self._step_cohort({**group, "params": params, "step": step})
            for param, kept in others.items():
                self.state[param].update(kept)
        return loss

    def _step_cohort(self, group: dict[str, Any]) -> None:
        groups, self.param_groups = self.param_groups, [group]
        try:
            _library_step(self)
        finally:
            self.param_groups = groups
            for param in group["params"]:
                state = self.state[param]
                if state:
                    _pack(state, group["step"], param.device)
