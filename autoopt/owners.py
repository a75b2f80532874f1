"""Which model a parameter was last selected for, so that two optimizers never pull at one tensor."""

from __future__ import annotations

import weakref
from collections.abc import Iterable

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from autoopt.errors import ModelError

_OWNERS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def own(model: nn.Module, optimizer: Optimizer, params: Iterable[Tensor]) -> None:
    """Nothing; notes whose parameters these are from now on."""
    for param in params:
        _OWNERS[param] = (weakref.ref(model), weakref.ref(optimizer))


def check_owner(model: nn.Module) -> None:
    """Nothing.

    Raises:
        ModelError: If a parameter belongs to another model that an optimizer was selected for, and both live.
    """
    own = {id(module) for module in model.modules()}
    for name, param in model.named_parameters():
        other_model, other_optimizer = (ref() for ref in _OWNERS.get(param) or (lambda: None, lambda: None))
        if other_model is None or other_optimizer is None or id(other_model) in own:
            continue
        if any(module is model for module in other_model.modules()):
            continue
        raise ModelError(
            f"parameter {name!r} is shared with another model ({type(other_model).__name__}) that an optimizer "
            "was already selected for; put both into one nn.Module and select for that, or delete the other "
            "optimizer first"
        )
