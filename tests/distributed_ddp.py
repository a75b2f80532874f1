"""What the ranks of the DDP tests do; every function runs on each rank and returns plain values."""

import contextlib
import io
import os
import runpy
import time
from pathlib import Path

import torch
import torch.distributed as dist
from distributed_models import batch_of, digest, part_of, plain_classifier
from small_models import classifier, loss_fn
from synthetic_selector import synthetic_predictor
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import autoopt
from autoopt.distributed import register_noise_scale_hook
from autoopt.errors import DistributedError

WARMUP, TOTAL = 20, 220


def select(model, **options):
    settings = {"total_steps": TOTAL, "warmup_steps": WARMUP, "selector": synthetic_predictor()}
    return autoopt.select(model, **settings | options)


def step(model, optimizer, index, rank):
    """One step on this rank's own batch."""
    optimizer.zero_grad()
    loss = loss_fn(model, batch_of(1000 * rank + index))
    loss.backward()
    optimizer.observe(loss)
    optimizer.step()


def train(rank, steps, select_first=False, hook=False):
    """A run with dropout, batch norm and a sparse embedding; each rank starts and draws on its own."""
    model = classifier(seed=rank)
    if select_first:
        optimizer = select(model)
        wrapped = DistributedDataParallel(model)
    else:
        wrapped = DistributedDataParallel(model)
        optimizer = select(wrapped)
    if hook:
        register_noise_scale_hook(wrapped, optimizer)
    for index in range(steps):
        step(wrapped, optimizer, index, rank)
    recommendation = optimizer.recommendation
    return {
        "parameters": digest(model.parameters()),
        "names": list(optimizer.plan.layers),
        "plan": optimizer.plan.fingerprint,
        "optimizers": sorted({config.optimizer for config in optimizer.plan.layers.values()}),
        "deviates": sum(layer.deviates for layer in recommendation.layers),
        "recommendation": recommendation.to_json(),
        "sparse": wrapped.module.embedding.weight.grad.is_sparse,
        "num_ranks": recommendation.profile["num_ranks"],
    }


def statistics(rank):
    """Statistics of ranks that share each batch, and of one process that has all of it."""
    shared, alone = plain_classifier(), plain_classifier()
    wrapped = DistributedDataParallel(shared)
    ours, reference = select(wrapped), select(alone, process_group=None)
    for index in range(WARMUP):
        whole = batch_of(index)
        for model, optimizer, batch in ((wrapped, ours, part_of(whole, rank)), (alone, reference, whole)):
            optimizer.zero_grad()
            loss = loss_fn(model, batch)
            loss.backward()
            optimizer.observe(loss)
            if index == WARMUP - 1:
                seen = optimizer._selection
                found = seen.measure(optimizer)
                seen.last = {"layers": found.layers, "task": found.task}
            optimizer.step()
    return {"shared": ours._selection.last, "alone": reference._selection.last}


def accumulate(rank, sync):
    """Two micro-batches a step; the first one without averaging, or both with."""
    model = plain_classifier()
    wrapped = DistributedDataParallel(model)
    optimizer = select(wrapped)
    for index in range(WARMUP + 5):
        optimizer.zero_grad()
        with contextlib.nullcontext() if sync else wrapped.no_sync():
            (loss_fn(wrapped, batch_of(1000 * rank + 2 * index)) / 2).backward()
        (loss_fn(wrapped, batch_of(1000 * rank + 2 * index + 1)) / 2).backward()
        optimizer.step()
    return {
        "parameters": digest(model.parameters()),
        "values": [p.detach().flatten()[:5].tolist() for p in model.parameters()],
        "plan": optimizer.plan.fingerprint,
    }


def race(rank, wrap):
    """Races on each rank's own batches; the loss of a rank depends on it, the decision must not."""
    model = classifier(seed=0, sparse=False)
    wrapped = DistributedDataParallel(model) if wrap else model
    before = digest([*model.parameters(), *model.buffers()])
    recommendation = autoopt.recommend(
        wrapped,
        batches=[batch_of(1000 * rank + index) for index in range(60)],
        loss_fn=lambda model, batch: loss_fn(model, batch) * (1.0 + rank),
        total_steps=1000,
        warmup_steps=WARMUP,
        selector=synthetic_predictor(gain=0.0),
        race=0.3,
    )
    return {
        "recommendation": recommendation.to_json(),
        "plan": recommendation.plan.fingerprint,
        "race_steps": recommendation.profile["race_steps"],
        "restored": digest([*model.parameters(), *model.buffers()]) == before,
    }


def aside(rank, wrap):
    """Profiles aside on each rank's own batches, of the model or of the wrapped one."""
    model = plain_classifier()
    wrapped = DistributedDataParallel(model) if wrap else model
    before = digest(model.parameters())
    data = [batch_of(1000 * rank + index) for index in range(WARMUP)]
    found = autoopt.recommend(
        wrapped, batches=data, loss_fn=loss_fn, total_steps=TOTAL, warmup_steps=WARMUP, selector=synthetic_predictor()
    )
    assert digest(model.parameters()) == before
    return {"plan": found.plan.fingerprint, "statistics": found.statistics, "names": list(found.plan.layers)}


def noise_scale(rank):
    """The hook's sums and result, and what gradients taken by hand say."""
    model = plain_classifier()
    wrapped = DistributedDataParallel(model)
    optimizer = select(wrapped, total_steps=TOTAL)
    sums = register_noise_scale_hook(wrapped, optimizer)
    by_hand = {name: torch.zeros(2, dtype=torch.float64) for name, _ in model.named_parameters()}
    for index in range(WARMUP):
        tokens, _ = batch_of(1000 * rank + index)
        batch = tokens, (tokens[:, 0] > 30).long()  # uneven classes: a gradient that all batches share
        twin = plain_classifier()
        twin.load_state_dict(model.state_dict())
        loss_fn(twin, batch).backward()
        optimizer.zero_grad()
        loss_fn(wrapped, batch).backward()
        for (name, other), param in zip(twin.named_parameters(), model.parameters(), strict=True):
            by_hand[name] += torch.stack([g.to_dense().double().square().sum() for g in (other.grad, param.grad)])
        selection = optimizer._selection
        if index == WARMUP - 1:
            found = selection.measure(optimizer)
        optimizer.step()
    after = {name: float(value) for name, value in sums.local.items()}
    step(wrapped, optimizer, 0, rank)
    return {
        "by_hand": {name: value.tolist() for name, value in by_hand.items()},
        "sums": {name: [after[name], float(sums.averaged[name])] for name in after},
        "stops": after == {name: float(value) for name, value in sums.local.items()},
        "layers": {name: row.get("two_batch_noise_ratio") for name, row in found.layers.items()},
        "missing": found.missing,
        "task": found.task,
        "reported": optimizer.recommendation.statistics["head.weight"].get("two_batch_noise_ratio"),
    }


def noise_hook_inside(rank):
    """Another hook runs inside the measuring one; a second registration is DDP's error."""
    from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import fp16_compress_hook

    model = plain_classifier(sparse=False)
    wrapped = DistributedDataParallel(model)
    optimizer = select(wrapped)
    sums = register_noise_scale_hook(wrapped, optimizer, hook=fp16_compress_hook, state=dist.group.WORLD)
    step(wrapped, optimizer, 0, rank)
    grad = model.head.weight.grad
    try:
        register_noise_scale_hook(wrapped, optimizer)
    except RuntimeError as error:
        refused = str(error)
    return {
        "halved": torch.equal(grad, grad.half().float()),
        "averaged": float(sums.averaged["head.weight"]),
        "expected": float(grad.square().sum()),
        "refused": refused,
    }


def example(rank):
    """What the example of the guide prints on a rank."""
    path = Path(__file__).parent.parent / "examples" / "ddp_classifier.py"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        runpy.run_path(str(path))["train"](rank)
    return printed.getvalue()


def bench(rank):
    """The figures of the script, from hardly any steps."""
    path = Path(__file__).parent.parent / "scripts" / "bench_ranks.py"
    return runpy.run_path(str(path))["measure"](rank, steps=3)


def missing_rank(rank, how, at, hook=False):
    """Rank 1 dies or stands still after `at` steps of warm-up; how the others learn of it."""
    wrapped = DistributedDataParallel(plain_classifier())
    optimizer = select(wrapped)
    if hook:
        register_noise_scale_hook(wrapped, optimizer)
    begun = None
    try:
        for index in range(WARMUP):
            if rank == 1 and index == at and how == "dies":
                os._exit(1)
            optimizer.zero_grad()
            loss_fn(wrapped, batch_of(index)).backward()
            if rank == 1 and index == at and how == "dies before its step":
                os._exit(1)
            if rank == 1 and index == at and how == "stands still":
                time.sleep(12)
                os._exit(1)
            begun = time.monotonic()
            optimizer.step()
    except RuntimeError as error:
        return {
            "error": str(error),
            "ours": isinstance(error, DistributedError),
            "seconds": time.monotonic() - begun,
            "phase": optimizer.phase,
        }
    return None


def disagree(rank, how):
    """Ranks that do not train the same, each with what it is told."""
    hidden = 16 if how != "models" or rank == 0 else 24
    model = nn.Sequential(nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, 2))
    predictor = synthetic_predictor(changes={} if rank == 0 else {"matrix": {"lr_factor": 2.0}})
    if how == "first rank fails":
        predictor = Failing() if rank == 0 else predictor
    group = {"alone": None, "groups": pairs()}.get(how, "auto")
    options = {"seed": rank if how == "arguments" else 0, "process_group": group}
    optimizer = autoopt.select(model, total_steps=40, warmup_steps=3, **options)
    optimizer._selection.predictor = predictor
    steps = 3 if how != "alone" or rank == 0 else 2
    try:
        for _ in range(steps):
            model(torch.ones(3, 4)).sum().backward()
            optimizer.step()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}", "phase": optimizer.phase}
    found = optimizer.recommendation
    return {
        "phase": optimizer.phase,
        "num_ranks": found and found.profile.get("num_ranks"),
        "rates": [config.lr for config in optimizer.plan.layers.values()],
        "deviates": found and sum(layer.deviates for layer in found.layers),
    }


def unused(rank):
    """A branch that only rank 0 takes, and one that none does."""
    model = plain_classifier()
    model.extra, model.never = nn.Linear(5, 5), nn.Linear(3, 3)
    forward = model.forward
    model.forward = lambda tokens: model.extra(forward(tokens)) if rank == 0 else forward(tokens)
    wrapped = DistributedDataParallel(model, find_unused_parameters=True)
    optimizer = select(wrapped)
    register_noise_scale_hook(wrapped, optimizer)
    for index in range(WARMUP + 5):
        step(wrapped, optimizer, index, rank)
    found = optimizer.recommendation
    return {
        "parameters": digest(model.parameters()),
        "plan": optimizer.plan.fingerprint,
        "measured": sorted(name for name, row in found.statistics.items() if "grad_rms" in row),
    }


def pairs():
    """Of four ranks, the group of two that this rank is in; None of two."""
    if dist.get_world_size() < 4:
        return None
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    return groups[dist.get_rank() // 2]


class Failing:
    """A selector that cannot decide."""

    margin = 0.0

    def rank(self, *_):
        raise ValueError("no idea")


def remember(rank, folder):
    """A run that all ranks are asked to remember."""
    model = classifier()
    wrapped = DistributedDataParallel(model)
    optimizer = select(wrapped, remember=folder)
    for index in range(40):
        step(wrapped, optimizer, index, rank)
    optimizer.finish()
    return {"parameters": digest(model.parameters())}
