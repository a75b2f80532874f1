"""Two processes train one classifier under DistributedDataParallel with one plan.

Run it with `python examples/ddp_classifier.py`, or on your own launcher's ranks with
`torchrun --nproc-per-node 2 examples/ddp_classifier.py`.
"""

import os
import tempfile

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import autoopt
from autoopt.distributed import register_noise_scale_hook

STEPS, WARMUP, BATCH = 120, 20, 32


def batch_of(rank, step):
    """Points on two noisy rings; every rank draws its own."""
    generator = torch.Generator().manual_seed(1000 * rank + step)
    labels = torch.randint(2, (BATCH,), generator=generator)
    angles = torch.rand(BATCH, generator=generator) * 6.2832
    radius = 1.0 + labels + 0.2 * torch.randn(BATCH, generator=generator)
    return torch.stack([radius * angles.cos(), radius * angles.sin()], 1), labels


def train(rank):
    torch.manual_seed(rank)  # DDP gives all ranks the first one's parameters
    model = nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    wrapped = DistributedDataParallel(model)
    optimizer = autoopt.select(wrapped, total_steps=STEPS, warmup_steps=WARMUP)
    noise = register_noise_scale_hook(wrapped, optimizer)  # optional
    for step in range(STEPS):
        points, labels = batch_of(rank, step)
        loss = nn.functional.cross_entropy(wrapped(points), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    report(rank, model, optimizer, noise, loss.detach())


def report(rank, model, optimizer, noise, loss):
    flat = torch.cat([param.detach().flatten() for param in model.parameters()])
    ranks = [torch.empty_like(flat) for _ in range(dist.get_world_size())]
    dist.all_gather(ranks, flat)
    dist.all_reduce(loss)
    if rank == 0:
        print(optimizer.recommendation.summary())
        print(f"Loss {loss / dist.get_world_size():.3f} after {STEPS} steps on {dist.get_world_size()} ranks.")
        print(f"Plan {optimizer.plan.fingerprint[:12]}; parameters are equal on all ranks: ", end="")
        print(all(torch.equal(other, flat) for other in ranks))
        ratio = optimizer.recommendation.statistics["2.weight"].get("two_batch_noise_ratio")
        shown = "not measurable: mostly noise" if ratio is None else f"{ratio:.2f} of a step's examples"
        print(f"Gradient noise scale of 2.weight: {shown}, from {len(noise.local)} tensors.")


def run(rank, ranks, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=ranks)
    try:
        train(rank)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    if "RANK" in os.environ:  # started by torchrun
        dist.init_process_group("gloo")
        train(dist.get_rank())
        dist.destroy_process_group()
    else:
        with tempfile.TemporaryDirectory() as folder:
            mp.spawn(run, (2, f"{folder}/store"), nprocs=2)
