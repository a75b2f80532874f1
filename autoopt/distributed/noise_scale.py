"""The gradient noise scale from gradients before and after averaging, at no extra pass.

Averaging over `W` ranks turns a gradient of the local batch into one of a batch `W` times as large:
squared norms at both sizes give the noise scale (McCandlish et al. 2018, arXiv 1812.06162, appendix
A.1). `DistributedDataParallel` shows both to a communication hook and nowhere else.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from autoopt.distributed.ranks import Ranks, explained
from autoopt.distributed.wrappers import unwrapped
from autoopt.errors import ModelError

Hook = Callable[[Any, dist.GradBucket], torch.futures.Future]


@dataclass
class NoiseSums:
    """Squared gradient norms of warm-up, summed over steps, by parameter name; plain tensors.

    Attributes:
        local: Of the gradients that this rank computed, or of one micro-batch.
        averaged: Of their average over ranks, or over a step's micro-batches.
        num_ranks: How many were averaged.
    """

    num_ranks: int
    local: dict[str, Tensor] = field(default_factory=dict)
    averaged: dict[str, Tensor] = field(default_factory=dict)

    @torch.no_grad()
    def add(self, name: str, local: Tensor, averaged: Tensor) -> None:
        """Add one step's squared norms of a parameter; a step that is not finite adds nothing."""
        finite = torch.isfinite(local) & torch.isfinite(averaged)
        for sums, value in ((self.local, local), (self.averaged, averaged)):
            value = torch.where(finite, value, torch.zeros_like(value))
            sums[name] = sums[name] + value if name in sums else value

    def over(self, ranks: Ranks, names: list[str]) -> Mapping[str, tuple[float, float]]:
        """Parameter name -> summed squared norms, the local ones averaged over ranks; a collective."""
        zero = torch.zeros((), dtype=torch.float64)
        rows = [[sums.get(name, zero).double().cpu() for name in names] for sums in (self.local, self.averaged)]
        total = ranks.sum(torch.stack([torch.stack(row) for row in rows]), "the reduction of the noise scale")
        local, averaged = (total / ranks.size).tolist()
        return {name: (a, b) for name, a, b in zip(names, local, averaged, strict=True) if a > 0}


def register_noise_scale_hook(
    model: nn.Module, optimizer: Any, hook: Hook | None = None, state: Any = None
) -> NoiseSums:
    """Measure the gradient noise scale of warm-up through the model's communication hook.

    It is not registered by `select`: DDP takes one hook, for good, so that one taken unasked would
    stand in the way of your own. Pass yours as `hook`, and it is run inside this one. From the decision on
    only the hook inside is run.

    Costs the norm of every gradient twice in warm-up, and no communication.

    Args:
        model: The model, wrapped by `DistributedDataParallel`, without a hook yet.
        optimizer: What `select` returned for it, or for the model inside.
        hook: How gradients are averaged, as `DistributedDataParallel.register_comm_hook` takes it;
            by default the plain average.
        state: The hook's state; by default the model's process group.

    Returns:
        The sums so far. The decision turns them into the statistic `two_batch_noise_ratio`: the noise
        scale in multiples of all examples of a step, for every layer and for the whole model.

    Raises:
        ModelError: If the model is not wrapped, or the optimizer is not selecting.
        RuntimeError: If the model has a hook already.
    """
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

    if not isinstance(model, DistributedDataParallel):
        raise ModelError(
            f"the noise scale is measured where DistributedDataParallel averages gradients, but the model is a "
            f"{type(model).__name__}: wrap it first"
        )
    selection = getattr(optimizer, "_selection", None)
    if selection is None or optimizer.phase != "warmup":
        raise ModelError("only an optimizer that autoopt.select() has made, and that is still in warm-up, measures")
    group = model.process_group
    sums = NoiseSums(dist.get_world_size(group))
    names: dict[Tensor, str] = {param: name for name, param in unwrapped(model).named_parameters()}
    inside: Any = allreduce_hook if hook is None else hook
    inside_state: Any = group if hook is None and state is None else state
    watched = weakref.ref(optimizer)

    def measure(_, bucket):  # DDP refuses annotations that are strings, as all are in this file
        selecting = watched()
        if selecting is None or selecting.phase != "warmup":
            return inside(inside_state, bucket)
        params, sparse = bucket.parameters(), bucket.buffer().is_sparse
        grads = [bucket.buffer()] if sparse else bucket.gradients()  # a sparse one has its own bucket
        before = [squared_norm(grad) for grad in grads]

        def compare(future: torch.futures.Future) -> Any:
            with explained("the averaging of gradients in warm-up"):
                result = _only(future.value())
            parts = [result] if sparse else result.split([param.numel() for param in params])
            for param, local, part in zip(params, before, parts, strict=True):
                sums.add(names[param], local, squared_norm(part))
            return result

        return inside(inside_state, bucket).then(compare)

    model.register_comm_hook(None, measure)
    selection.noise = sums
    return sums


def _only(value: Any) -> Tensor:
    return value[0] if isinstance(value, list | tuple) else value


def squared_norm(grad: Tensor) -> Tensor:
    """The squared norm of a gradient, 0-d float32."""
    grad = grad.detach()
    if grad.is_sparse:
        # Rows that occur twice are one row's gradient; coalescing waits for a device, in warm-up only.
        grad = grad.coalesce().values()
    return torch.linalg.vector_norm(grad, dtype=torch.float32).square()
