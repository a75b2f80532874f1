"""Profiling aside: train a few steps before step 0, then put everything back bit by bit."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoopt.distributed.shards import is_sharded
from autoopt.distributed.wrappers import unwrapped
from autoopt.errors import ProfileError
from autoopt.first_batch import leading_size
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.report.recommendation import Recommendation
from autoopt.selection import OnlineSelection
from autoopt.start_profile import DEFAULT_PASSES, StartProfile, batches_wanted, measure_start


def profile_aside(
    model: nn.Module,
    batches: Iterable[Any],
    loss_fn: Callable[[nn.Module, Any], Tensor],
    selection: OnlineSelection,
    max_passes: int = DEFAULT_PASSES,
) -> Recommendation:
    """The recommendation after `selection.warmup_steps` steps that leave no trace on the model.

    Before them, rates, curvature and activations are measured at the model's start.

    Args:
        model: The model; parameters, buffers, gradients, train or eval mode and the random
            generators of Python, NumPy and torch are restored exactly, also where this raises.
        batches: At least `selection.warmup_steps` batches. How far an iterator was read is the one
            thing that cannot be put back: pass a loader, or a list.
        loss_fn: `loss_fn(model, batch)`, a scalar tensor.
        selection: What decides.
        max_passes: Forward and backward passes that measuring at the start may take.

    Raises:
        ProfileError: If batches run out, the loss is no finite scalar, or no gradient arrives.
    """
    selection.mode = "aside"
    if (num_examples := _num_examples(batches)) is not None:
        selection.facts.setdefault("num_examples", float(num_examples))
    inside = unwrapped(model)
    named = [(name, param) for name, param in inside.named_parameters() if param.requires_grad]
    averages = selection.ranks.size > 1 and inside is model and not any(is_sharded(param) for _, param in named)
    evaluate = _Checked(loss_fn)
    with restored(model), ExitStack() as stack:
        optimizer = AutoOptimizer(named, plan=selection.starting_plan(), selection=selection)
        model.train()
        stream = iter(batches)
        wanted = min(selection.warmup_steps, batches_wanted(max_passes, selection.architecture))
        first = list(itertools.islice(stream, wanted))
        stream = itertools.chain(first, stream)
        selection.start()
        selection.start_profile = _measured(inside, evaluate, first, selection, max_passes)
        if selection.start_profile.problem:
            selection.warnings.append(f"At the start {selection.start_profile.problem}.")
        probe = selection.watch_first_batch(inside)
        probe.clock = None  # it runs already
        stack.callback(probe.remove)
        for step in range(selection.warmup_steps):
            try:
                batch = next(stream)
            except StopIteration:
                raise ProfileError(
                    f"batches ran out after {step} of {selection.warmup_steps} profiling steps; pass more "
                    f"batches, or warmup_steps={max(1, step)}"
                ) from None
            optimizer.zero_grad()
            loss = evaluate(model, batch)
            if step == 0 and (size := leading_size(batch)) is not None:
                # Of a model that takes no tensors, or is not called itself, the batch tells the size.
                selection.facts.setdefault("batch_size", float(size))
            loss.backward()
            if step == 0 and all(param.grad is None for _, param in named):
                raise ProfileError(
                    "no trainable parameter of the model received a gradient: does loss_fn use the model "
                    "that it is given?"
                )
            if averages:
                selection.ranks.average_gradients([param for _, param in named])
            optimizer.observe(loss)
            optimizer.step()
        recommendation = optimizer.recommendation
    assert recommendation is not None
    return recommendation


def _measured(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, Any], Tensor],
    batches: list[Any],
    selection: OnlineSelection,
    max_passes: int,
) -> StartProfile:
    if selection.ranks.size > 1 or any(is_sharded(param) for param in model.parameters()):
        return StartProfile(problem="rates were not measured: this works on one process only")
    return measure_start(model, loss_fn, batches, selection.architecture, max_passes=max_passes, seed=selection.seed)


def _num_examples(batches: Any) -> int | None:
    """The size of a loader's data set, or None where it has none or does not know it."""
    dataset = getattr(batches, "dataset", None)
    try:
        return len(dataset) if dataset is not None else None
    except TypeError:  # an iterable data set
        return None


class _Checked:
    """The loss function, which says at which evaluation it was wrong."""

    def __init__(self, loss_fn: Callable[[nn.Module, Any], Tensor]) -> None:
        self.loss_fn = loss_fn
        self.step = 0

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        loss = _checked_loss(self.loss_fn(model, batch), self.step)
        self.step += 1
        return loss


def _checked_loss(loss: Any, step: int) -> Tensor:
    if not isinstance(loss, Tensor):
        raise ProfileError(f"loss_fn must return a scalar tensor, got {type(loss).__name__} (profiling step {step})")
    if loss.numel() != 1:
        raise ProfileError(
            f"loss_fn must return a scalar tensor, got shape {tuple(loss.shape)} (profiling step {step}); take its mean"
        )
    if not loss.requires_grad:
        raise ProfileError("loss_fn returned a loss without a gradient: do not detach it or use torch.no_grad()")
    value = float(loss.detach())
    if not math.isfinite(value):
        raise ProfileError(
            f"loss_fn returned {value} at profiling step {step}; check the data and the model's initialisation"
        )
    return loss


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """A context after which the model and the random generators are exactly as before it.

    Parameters and buffers are copied back into the same tensors, so that views and references to
    them stay valid; gradients come back as the same objects.
    """
    tensors = [*model.parameters(), *model.buffers()]
    values = [tensor.detach().clone() for tensor in tensors]
    # Their memory too: `param.data = other` would leave views of a parameter behind.
    homes = [tensor.data if type(tensor) in (Tensor, nn.Parameter) else None for tensor in tensors]
    # The values too: a gradient may be a view of a buffer that others write to, as under DDP.
    grads = [
        (param, param.grad, None if param.grad is None or param.grad.is_sparse else param.grad.clone())
        for param in model.parameters()
    ]
    modes = [(module, module.training) for module in model.modules()]
    registries: list[dict[str, Any]] = [
        registry for module in model.modules() for registry in (module._buffers, module._parameters)
    ]
    held = [(registry, dict(registry)) for registry in registries]
    for param, _, _ in grads:
        param.grad = None
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    states = (torch.get_rng_state(), random.getstate(), np.random.get_state())
    try:
        yield
    finally:
        # A module may have replaced a tensor instead of writing to it.
        for registry, known in held:
            registry.clear()
            registry.update(known)
        with torch.no_grad():
            for tensor, home, value in zip(tensors, homes, values, strict=True):
                if home is not None and (tensor.shape != home.shape or tensor.data_ptr() != home.data_ptr()):
                    tensor.data = home
                tensor.copy_(value)
        for param, grad, value in grads:
            if grad is not None and value is not None:
                grad.detach().copy_(value)
            param.grad = grad
        for module, training in modes:
            module.training = training
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)
