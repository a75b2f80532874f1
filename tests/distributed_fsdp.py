"""What the ranks of the FSDP2 tests do; every function runs on each rank and returns plain values."""

import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from distributed_models import batch_of, part_of, plain_classifier
from small_models import loss_fn
from synthetic_selector import synthetic_predictor
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import autoopt
from autoopt import AutoOptimizer, OptimizerPlan
from autoopt.architecture import describe
from autoopt.distributed.shards import local, whole
from autoopt.errors import ModelError
from autoopt.optimizers import clipping, sharded
from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.plan import OptimizerConfig

WARMUP, TOTAL = 20, 40
WIDTH = 15  # odd, so that parts are uneven


def select(model, predictor=None, **options):
    settings = {"total_steps": TOTAL, "warmup_steps": WARMUP, "selector": predictor or synthetic_predictor()}
    return autoopt.select(model, **settings | options)


def sharded_classifier(hybrid=False):
    size = dist.get_world_size()
    shape = (2, size // 2) if hybrid else (size,)
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("copies", "parts")[-len(shape) :])
    model = plain_classifier(sparse=False, width=WIDTH)
    for module in (model.hidden, model.head, model):
        fully_shard(module, mesh=mesh)
    return model


def step(model, optimizer, index, rank, ranks):
    """One step on this rank's share of the batch; the loss on all of it."""
    optimizer.zero_grad()
    loss = loss_fn(model, part_of(batch_of(index), rank, ranks))
    loss.backward()
    optimizer.observe(loss)
    total = loss.detach().clone()
    dist.all_reduce(total)
    optimizer.step()
    return float(total / dist.get_world_size())


def values(model):
    return {name: whole(param).flatten().tolist() for name, param in model.named_parameters()}


def tensor_parallel_classifier():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layouts = {
        "hidden": ColwiseParallel(output_layouts=Replicate()),
        "head": RowwiseParallel(input_layouts=Replicate()),
    }
    return parallelize_module(plain_classifier(sparse=False, width=WIDTH), mesh, layouts)


def compare_tensor_parallel(rank):
    """Ranks that share two matrices and see the same batches, and one process that has everything."""
    shared, alone = tensor_parallel_classifier(), plain_classifier(sparse=False, width=WIDTH)
    pair = [(model, select(model, process_group=None)) for model in (shared, alone)]
    for index in range(TOTAL - 1):
        for model, optimizer in pair:
            optimizer.zero_grad()
            loss_fn(model, batch_of(index)).backward()
            optimizer.step()
    found = [optimizer.recommendation.statistics for _, optimizer in pair]
    return {
        "placements": [str(shared.hidden.weight.placements), str(shared.head.weight.placements)],
        "plans": [optimizer.plan.to_json() for _, optimizer in pair],
        "statistics": [{name: one[name] for name in ("hidden.weight", "head.weight", "norm.weight")} for one in found],
        "values": [values(model) for model, _ in pair],
    }


def compare(rank, hybrid=False):
    """Statistics, plan, losses and parameters of a sharded run, and of one process that has everything."""
    ranks = dist.get_world_size()
    shared, alone = sharded_classifier(hybrid), plain_classifier(sparse=False, width=WIDTH)
    ours, reference = select(shared), select(alone, process_group=None)
    layers = [
        [(x.name, x.role, x.shape, x.fan_in, x.fan_out, x.depth, x.norm_adjacent) for x in describe(model).layers]
        for model in (shared, alone)
    ]
    losses, found = [], {}
    for index in range(TOTAL - 1):
        pair = []
        for label, model, optimizer, share in (("shared", shared, ours, rank), ("alone", alone, reference, None)):
            optimizer.zero_grad()
            loss = loss_fn(model, batch_of(index) if share is None else part_of(batch_of(index), share, ranks))
            loss.backward()
            optimizer.observe(loss)
            if index == WARMUP - 1:
                statistics = optimizer._selection.measure(optimizer)
                found[label] = {"layers": statistics.layers, "task": statistics.task}
            total = loss.detach().clone()
            dist.all_reduce(total)
            pair.append(float(total / ranks))
            optimizer.step()
        losses.append(pair)
    return {
        "same_layers": layers[0] == layers[1],
        "statistics": found,
        "plans": [ours.plan.to_json(), reference.plan.to_json()],
        "deviates": sum(layer.deviates for layer in ours.recommendation.layers),
        "losses": losses,
        "values": [values(shared), values(alone)],
        "sharded_state": all(
            isinstance(value, DTensor)
            for own in ours.state.values()
            for k, value in own.items()
            if k == "momentum_buffer"
        ),
    }


def rules(rank):
    """For every dense rule the largest difference between sharded and whole parameters after some steps."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layouts = [((7, 6), 0), ((6, 9), 1), *[((6, 6), 0)] * 5, ((6, 4, 3), 0), ((7,), 0), ((1,), 0), ((1, 4), 0)]
    found, orthogonalise, worked_on = {}, sharded.orthogonal_updates, []

    def counted(updates, *args):
        worked_on.extend(updates)
        return orthogonalise(updates, *args)

    sharded.orthogonal_updates = counted  # in this forked process alone
    for info in CATALOG:
        if info.gradients == "sparse":
            continue
        for extra in ({}, {"weight_decay": 0.1}, *MUON) if info.name == "muon" else ({}, {"weight_decay": 0.1}):
            if not set(extra) <= set(info.hyperparameters):
                continue
            generator = torch.Generator().manual_seed(0)
            whole_ones, parts = {}, {}
            for index, (shape, dim) in enumerate(layouts):
                odd = shape[-1 if extra.get("transposed") else 0] % extra.get("splits", 1)
                if len(shape) < info.min_ndim or odd:
                    continue
                value = torch.randn(shape, generator=generator)
                whole_ones[f"p{index}"] = nn.Parameter(value.clone())
                parts[f"p{index}"] = nn.Parameter(distribute_tensor(value, mesh, [Shard(dim)], src_data_rank=None))
            plan = OptimizerPlan({name: OptimizerConfig(info.name, {"lr": 0.05} | extra) for name in parts})
            pair = [AutoOptimizer(list(given.items()), plan=plan) for given in (whole_ones, parts)]
            for _ in range(4):
                for name, param in whole_ones.items():
                    param.grad = torch.randn(param.shape, generator=generator)
                    part = parts[name]
                    part.grad = distribute_tensor(param.grad.clone(), mesh, part.placements, src_data_rank=None)
                for optimizer in pair:
                    optimizer.step()
                assert all(part.to_local().grad is None for part in parts.values())
            gaps = [float((whole(parts[name]) - param.detach()).abs().max()) for name, param in whole_ones.items()]
            elements = sum(
                local(v).numel() for own in pair[1].state.values() for v in own.values() if isinstance(v, torch.Tensor)
            )
            of_whole = sum(v.numel() for own in pair[0].state.values() for v in own.values() if torch.is_tensor(v))
            found[f"{info.name} {extra}"] = {
                "gap": max(gaps),
                "share": elements / of_whole,
                "tensors": len(gaps),
                "orthogonalised": len(worked_on) / 4,
            }
            worked_on.clear()
    return found


LIMITED = {"max_relative_update": 1e-3}
MUON = ({"splits": 3}, {"transposed": True}, {"stacked": True}, {"nesterov": False}, {"momentum": 0.5}, LIMITED)


def not_finite(rank):
    """A step with NaN in one rank's part of one gradient, and one without."""
    model = sharded_classifier()
    optimizer = select(model)
    before = values(model)
    loss_fn(model, part_of(batch_of(0), rank)).backward()
    if rank == 1:
        local(model.hidden.weight.grad)[0, 0] = float("nan")
    optimizer.step()
    same = values(model) == before
    step(model, optimizer, 1, rank, 2)
    return {"same": same, "skipped": optimizer.num_nonfinite_steps, "moved": values(model) != before}


def aside(rank):
    """Profiles aside; the model and its parts are as before."""
    model = sharded_classifier()
    before = values(model)
    data = [part_of(batch_of(index), rank) for index in range(WARMUP)]
    options = {"total_steps": TOTAL, "warmup_steps": WARMUP, "selector": synthetic_predictor()}
    found = autoopt.recommend(model, batches=data, loss_fn=loss_fn, **options)
    same = values(model) == before
    online = select(model)
    for index in range(WARMUP):
        step(model, online, index, rank, 2)
    both = [one.statistics["hidden.weight"]["grad_rms"] for one in (found, online.recommendation)]
    return {"same": same, "grad_rms": both, "plan": found.plan.to_json(), "warnings": list(found.warnings)}


def selected_too_early(rank):
    """What a user is told whose optimizer holds the parameters of before `fully_shard`."""
    model = plain_classifier(sparse=False)
    optimizer = select(model)
    fully_shard(model, mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for index in range(3):
            step(model, optimizer, index, rank, 2)
    return [[str(one.message), Path(one.filename).name] for one in caught if "select()" in str(one.message)]


def save(rank, folder, taken):
    """Train, save a distributed checkpoint after some steps, go on."""
    model = sharded_classifier()
    optimizer = select(model)
    losses = []
    for index in range(TOTAL - 1):
        if index == taken:
            state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
            dcp.save(state, checkpoint_id=folder)
            plan, phase = optimizer.plan.to_json(), optimizer.phase
        losses.append(step(model, optimizer, index, rank, 2))
    return {"losses": losses[taken:], "plan": plan, "phase": phase, "final_plan": optimizer.plan.to_json()}


def resume(rank, folder, taken, plan):
    """Load that checkpoint on other ranks, or on one without any sharding, and go on."""
    ranks = dist.get_world_size()
    model = sharded_classifier() if ranks > 1 else plain_classifier(sparse=False, seed=5, width=WIDTH)
    for param in model.parameters():
        local(param.detach()).zero_()
    optimizer = select(model) if plan is None else AutoOptimizer.from_plan(model, OptimizerPlan.from_json(plan))
    state = {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer)}
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(model, state["model"])
    set_optimizer_state_dict(model, optimizer, state["optimizer"])
    losses = [step(model, optimizer, index, rank, ranks) for index in range(taken, TOTAL - 1)]
    return {"losses": losses, "final_plan": optimizer.plan.to_json()}


def flattened(rank):
    """FSDP1 is refused, and what the error proposes instead trains."""
    found = {}
    for use_orig_params in (False, True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # FSDP1 warns of its own end
            model = FullyShardedDataParallel(
                plain_classifier(sparse=False), device_id=torch.device("cpu"), use_orig_params=use_orig_params
            )
        try:
            autoopt.select(model, total_steps=TOTAL, selector="default")
        except ModelError as error:
            found[str(use_orig_params)] = str(error)
        optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "adamw", lr=3e-2))
        losses = []
        for index in range(30):
            optimizer.zero_grad()
            loss = loss_fn(model, part_of(batch_of(index % 3), rank))
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
        found[f"{use_orig_params} losses"] = losses
    return found


def clipped(rank):
    """The norm of gradients of sharded and of plain parameters before, and after they are clipped."""
    model = sharded_classifier()
    plain = torch.nn.Parameter(torch.ones(3))
    plain.grad = torch.full((3,), 2.0)
    loss_fn(model, batch_of(0)).backward()
    params = [*model.parameters(), plain]
    grads = [whole(param.grad) for param in params]
    expected = float(torch.linalg.vector_norm(torch.cat([grad.flatten() for grad in grads])))
    norm = float(clipping.total_norm([param.grad for param in params]))
    clipping.clip_gradients(params, 0.05)
    left = float(torch.linalg.vector_norm(torch.cat([whole(param.grad).flatten() for param in params])))
    sharded_count = sum(isinstance(param.grad, DTensor) for param in params)
    return {"norm": norm, "expected": expected, "left": left, "sharded": sharded_count, "whole": 1}
