"""What the ranks of the guard's tests do; every function runs on each rank and returns plain values."""

import math

import torch
import torch.distributed as dist
from distributed_fsdp import sharded_classifier
from distributed_models import batch_of, digest, plain_classifier
from small_models import classifier, loss_fn
from torch.nn.parallel import DistributedDataParallel

import autoopt
from autoopt.distributed.shards import local, whole
from autoopt.fixed_choice import FixedChoice
from autoopt.guard import snapshot
from autoopt.optimizers.recipe import calibrated_default

WARMUP, TOTAL, FAULT = 20, 400, 60


def run(
    rank,
    kind,
    steps=80,
    selector="default",
    scale=lambda step: 1.0,
    observed=lambda step, loss: loss,
    spoil=None,
    interval=None,
):
    """A run in which this rank's loss is multiplied, or told otherwise, or its model changed before a step.

    Args:
        rank: This rank.
        kind: "ddp", "batch norm" (likewise) or "fsdp".
        steps: How many.
        selector: As in `select`.
        scale: Factor on the loss of a step, and with it on its gradients.
        observed: What the optimizer is told of a step's loss; None for nothing.
        spoil: Called with the step and the model before each step.
        interval: Steps between two looks of the guard at its verdicts; None for each step.
    """
    if kind == "fsdp":
        model = wrapped = sharded_classifier()
    else:
        model = classifier(sparse=False) if kind == "batch norm" else plain_classifier()
        wrapped = DistributedDataParallel(model)
    optimizer = autoopt.select(wrapped, total_steps=TOTAL, warmup_steps=WARMUP, selector=selector)
    optimizer.guard.interval = interval
    losses, plans, before = [], [], None
    for step in range(steps):
        if spoil is not None:
            spoil(step, model)
        if step == FAULT:
            before = digest(map(local, model.parameters()))
        optimizer.zero_grad()
        loss = loss_fn(wrapped, batch_of(1000 * rank + step)) * scale(step)
        loss.backward()
        told = observed(step, loss)
        if told is not None:
            optimizer.observe(told)
        optimizer.step()
        if step == FAULT:
            unmoved = digest(map(local, model.parameters())) == before
        losses.append(float(loss.detach()))
        if not plans or plans[-1] != optimizer.plan.fingerprint:
            plans.append(optimizer.plan.fingerprint)
    dist.barrier()
    parameters = [whole(param) for param in model.parameters()]
    return {
        "parameters": digest(parameters),
        "finite": all(bool(torch.isfinite(tensor).all()) for tensor in (*parameters, *model.buffers())),
        "events": [event.to_dict() for event in optimizer.guard_events],
        "plans": plans,
        "head": optimizer.plan.layers["head.weight"].lr,
        "unmoved": unmoved,
        "loss": sum(losses[-20:]) / 20,
    }


def poisoned(rank, kind, length, factor=math.nan):
    """Rank 1 alone meets bad batches."""
    return run(rank, kind, scale=lambda step: factor if rank == 1 and 0 <= step - FAULT < length else 1.0)


def exploding(rank, kind, factor):
    """A rate that is far too high on one layer, from the decision on."""
    default = calibrated_default()
    wrong = default.with_change("head", {"lr_factor": factor})
    return run(rank, kind, steps=70, selector=FixedChoice.between(default.to_json(), wrong.to_json()))


def killed(rank, kind, extra=None, interval=None):
    """The head is spoilt on all ranks at one step.

    Args:
        rank: This rank.
        kind: As in `run`.
        extra: What else rank 1 has: "high losses" from then on, or "no room" for snapshots.
        interval: As in `run`.
    """
    own = rank == 1

    def spoil(step, model):
        if step == FAULT:
            with torch.no_grad():
                local(model.head.weight).mul_(-100.0)

    def observed(step, loss):
        return loss * 100.0 if own and extra == "high losses" and step >= FAULT else loss

    if own and extra == "no room":
        snapshot.SMALL_BYTES, snapshot.HOST_SHARE = 0, 0.0  # in this forked process alone
    return run(rank, kind, steps=110, spoil=spoil, observed=observed, interval=interval)


def overflowing(rank, kind, observing):
    """Gradients that are not finite for six steps on all ranks, under finite losses that some ranks tell.

    Args:
        rank: This rank.
        kind: As in `run`.
        observing: Ranks that call `observe`.
    """

    def infinite(grad):
        return grad * math.inf if FAULT <= now[0] < FAULT + 6 else grad

    now = [0]

    def spoil(step, model):
        now[0] = step
        if step == 0:
            model.scale.register_hook(infinite)

    return run(rank, kind, spoil=spoil, observed=lambda step, loss: loss if rank in observing else None)
