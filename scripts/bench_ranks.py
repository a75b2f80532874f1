"""What deciding together, the noise-scale hook and sharding cost: ratios of interleaved steps on gloo ranks.

Usage: python scripts/bench_ranks.py [--ranks 2] [--steps 60]

Every figure compares runs that take turns, step by step, in the same processes: a busy machine slows both.
"""

import argparse
import json
import statistics
import tempfile
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import autoopt
from autoopt.distributed import register_noise_scale_hook

BATCH = 64


def model_of(width=256, depth=4):
    """A network of 276,234 parameters, the same on all ranks."""
    torch.manual_seed(0)
    blocks = [part for _ in range(depth) for part in (nn.Linear(width, width), nn.LayerNorm(width), nn.ReLU())]
    return nn.Sequential(nn.Linear(32, width), *blocks, nn.Linear(width, 10))


def sharded_model():
    """The same network, every layer spread over all ranks."""
    model = model_of()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for module in (*(m for m in model if isinstance(m, nn.Linear)), model):
        fully_shard(module, mesh=mesh)
    return model


def backward(model, step):
    """Forward and backward on the batch of a step."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, 32, generator=generator)
    y = torch.randint(10, (BATCH,), generator=generator)
    nn.functional.cross_entropy(model(x), y).backward()


def interleaved(runs, steps):
    """Median seconds of `(backward, step)` for each named `(model, optimizer)`, taking turns."""
    seconds = {name: ([], []) for name in runs}
    for index in range(steps):
        for name, (model, optimizer) in runs.items():
            optimizer.zero_grad()
            begun = time.perf_counter()
            backward(model, index)
            middle = time.perf_counter()
            optimizer.step()
            seconds[name][0].append(middle - begun)
            seconds[name][1].append(time.perf_counter() - middle)
    # The first steps set up buffers and connections.
    return {name: tuple(statistics.median(s[min(5, steps // 2) :]) for s in both) for name, both in seconds.items()}


def measure(rank, steps):
    """All figures, the same calls on every rank; those of this rank are returned."""
    options = {"total_steps": 100 * steps, "warmup_steps": 10 * steps, "selector": "default"}

    def selecting(hook=False, **changes):
        model = DistributedDataParallel(model_of())
        optimizer = autoopt.select(model, **options | changes)
        if hook:
            register_noise_scale_hook(model, optimizer)
        return model, optimizer

    plain, hooked = selecting(), selecting(hook=True)
    fixed_model = DistributedDataParallel(model_of())
    fixed = fixed_model, autoopt.AutoOptimizer.from_plan(fixed_model, plain[1].plan)
    ddp = interleaved({"warm-up": plain, "warm-up with hook": hooked, "fixed plan": fixed}, steps)

    together, alone = selecting(warmup_steps=20), selecting(warmup_steps=20, process_group=None)
    decisions = {}
    for name, (model, optimizer) in (("together", together), ("alone", alone)):
        for index in range(20):
            optimizer.zero_grad()
            backward(model, index)
            if index == 19:
                dist.barrier()
            begun = time.perf_counter()
            optimizer.step()
            decisions[name] = time.perf_counter() - begun

    sharded, whole, adamw_model, torch_model = sharded_model(), model_of(), sharded_model(), sharded_model()
    plan, adamw = plain[1].plan, autoopt.OptimizerPlan.uniform(whole, "adamw", lr=1e-3)
    runs = {
        "sharded": (sharded, autoopt.AutoOptimizer.from_plan(sharded, plan)),
        "whole": (whole, autoopt.AutoOptimizer.from_plan(whole, plan)),
        "AdamW, sharded": (adamw_model, autoopt.AutoOptimizer.from_plan(adamw_model, adamw)),
        "torch AdamW, sharded": (torch_model, torch.optim.AdamW(torch_model.parameters(), lr=1e-3, fused=True)),
    }
    fsdp = interleaved(runs, steps)
    return {
        "ranks": dist.get_world_size(),
        "parameters": sum(p.numel() for p in whole.parameters()),
        "warm-up step over fixed step": ddp["warm-up"][1] / ddp["fixed plan"][1],
        "backward with hook over without": ddp["warm-up with hook"][0] / ddp["warm-up"][0],
        "decision together, milliseconds": 1e3 * decisions["together"],
        "decision alone, milliseconds": 1e3 * decisions["alone"],
        "default's step, sharded over whole": fsdp["sharded"][1] / fsdp["whole"][1],
        "AdamW's step on shards over torch's": fsdp["AdamW, sharded"][1] / fsdp["torch AdamW, sharded"][1],
    }


def run(rank, ranks, store, steps):
    """One rank."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        found = measure(rank, steps)
        if rank == 0:
            print(json.dumps(found, indent=1))
    finally:
        dist.destroy_process_group()


def main():
    """Start the ranks; the first one prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(run, (chosen.ranks, f"{folder}/store", chosen.steps), nprocs=chosen.ranks)


if __name__ == "__main__":
    main()
