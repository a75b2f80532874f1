"""Prints what a step of AutoOptimizer costs: ratios to the same work done without it, interleaved.

    python scripts/bench_step.py [--sizes 60k 1M 20M] [--repeats 20] [--threads 2] [--parts adamw mixed ...]

Each repeat times both sides one right after the other, in alternating order, so that a busy machine
slows both alike; the median ratio and its quartiles are shown as rows of a Markdown table. Gradients
are drawn once: only the optimizers work. With one thread, CPU seconds are taken, which other programs
disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from autoopt.architecture import describe
from autoopt.guard.guard import UNKNOWN
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.averaging import averages_in
from autoopt.optimizers.catalog import get
from autoopt.optimizers.muon import Muon
from autoopt.optimizers.plan import OptimizerPlan
from autoopt.optimizers.program import encode, parse
from autoopt.optimizers.recipe import calibrated_default

WINDOW = 20
"""Steps of the shortest warm-up that `select` makes by itself: the one with the largest share of looks."""
SHORTEST_SECONDS = 0.02
"""Steps are timed in blocks of at least this long."""


class Transformer(nn.Module):
    """A causal language model: its loss on tokens of shape `(batch, length)`."""

    def __init__(self, width: int, num_layers: int, num_tokens: int) -> None:
        """Build the model."""
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, num_tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Mean cross-entropy of the next token."""
        mask = nn.Transformer.generate_square_subsequent_mask(tokens.size(1) - 1)
        hidden = self.encoder(self.embedding(tokens[:, :-1]), mask=mask, is_causal=True)
        return nn.functional.cross_entropy(self.head(hidden).flatten(0, 1), tokens[:, 1:].flatten())


def mlp() -> nn.Module:
    """A classifier of 60 thousand parameters in 6 tensors."""
    return nn.Sequential(nn.Linear(784, 70), nn.ReLU(), nn.Linear(70, 64), nn.ReLU(), nn.Linear(64, 10))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "60k": mlp,
    "1M": lambda: Transformer(128, 4, 1000),
    "20M": lambda: Transformer(384, 9, 5000),
}


def build(size: str) -> nn.Module:
    """A model of a size, the same each time, with gradients."""
    torch.manual_seed(0)
    model = MODELS[size]()
    for param in model.parameters():
        param.grad = 0.01 * torch.randn_like(param)
    return model


@dataclass(frozen=True)
class Ratio:
    """One row of the table: two things to time, and the ratio that is not to be passed."""

    title: str
    size: str
    limit: float | None
    ours: Callable[[], object]
    other: Callable[[], object]
    steps: int = 1

    def measure(self, repeats: int) -> str:
        """The row, measured."""
        seconds_of(self.ours, self.steps), seconds_of(self.other, self.steps)  # state is made here
        pilot = seconds_of(self.other, self.steps) / self.steps
        steps = max(self.steps, round(SHORTEST_SECONDS / pilot))
        ratios, ours_seconds = [], []
        for repeat in range(repeats):
            if repeat % 2:
                ours = seconds_of(self.ours, steps)
                other = seconds_of(self.other, steps)
            else:
                other = seconds_of(self.other, steps)
                ours = seconds_of(self.ours, steps)
            ratios.append(ours / other)
            ours_seconds.append(ours / steps)
        low, median, high = statistics.quantiles(ratios, n=4)
        limit = "" if self.limit is None else f"{self.limit:.2f}"
        milliseconds = 1e3 * statistics.median(ours_seconds)
        return f"| {self.title} | {self.size} | {milliseconds:.3f} | {median:.3f} | {low:.3f}-{high:.3f} | {limit} |"


def seconds_of(call: Callable[[], object], steps: int) -> float:
    """Seconds of several calls."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    for _ in range(steps):
        call()
    return clock() - start


def default_plan(model: nn.Module) -> OptimizerPlan:
    """The calibrated default on a model, over a long run."""
    return calibrated_default().resolve(describe(model).layers, 100_000)


def separately(model: nn.Module, plan: OptimizerPlan) -> Callable[[], None]:
    """Step a plan's library optimizers one after the other, as their users would."""
    named = dict(model.named_parameters())
    program = parse(encode(plan, list(named)))
    optimizers = []
    for bucket in program.buckets:
        params = [named[program.names[position]] for position in bucket.positions]
        info = get(bucket.config.optimizer)
        flags = {"fused": True} if "cpu" in info.fused else {}
        optimizers.append(info.load()(params, **bucket.config.complete, **flags))

    def step() -> None:
        for optimizer in optimizers:
            optimizer.step()

    return step


def adamw(size: str) -> Iterator[Ratio]:
    """An all-AdamW plan against torch's fused AdamW."""
    model, other = build(size), build(size)
    ours = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "adamw"))
    limit = {"60k": 1.15, "20M": 1.03}.get(size)
    reference = torch.optim.AdamW(other.parameters(), fused=True)
    yield Ratio("AdamW plan / `torch.optim.AdamW(fused=True)`", size, limit, ours.step, reference.step)


def mixed(size: str) -> Iterator[Ratio]:
    """The calibrated default against its kernels one by one."""
    model, other = build(size), build(size)
    plan = default_plan(model)
    ours = AutoOptimizer.from_plan(model, plan)
    limit = 1.05 if size == "20M" else None
    yield Ratio("default plan / its kernels called separately", size, limit, ours.step, separately(other, plan))


def muon(size: str) -> Iterator[Ratio]:
    """The Muon kernel against torch's, on all hidden matrices."""

    def matrices() -> list[Tensor]:
        named = build(size).named_parameters()
        return [p for name, p in named if p.ndim == 2 and not name.startswith(("embedding", "head"))]

    limit = 0.7 if size == "20M" else None
    ours, reference = Muon(matrices()), torch.optim.Muon(matrices(), weight_decay=0.0)
    yield Ratio("Muon kernel / `torch.optim.Muon`", size, limit, ours.step, reference.step)


def warmup(size: str) -> Iterator[Ratio]:
    """The first steps with statistics against the same steps without, for the default and for AdamW."""
    for title in ("default", "AdamW"):
        model, other = build(size), build(size)
        plan = default_plan(model) if title == "default" else OptimizerPlan.uniform(model, "adamw")
        layers = {layer.name: layer for layer in describe(model).layers}
        selection = SimpleNamespace(warmup_steps=10**9, seed=0, layers=lambda layers=layers: layers, clock=None)
        collecting = AutoOptimizer(model.named_parameters(), plan=plan, selection=selection)
        ours = again(collecting)
        reference = AutoOptimizer.from_plan(other, plan)
        limit = 1.15 if size == "20M" and title == "default" else None
        yield Ratio(f"warm-up / without statistics, {title} plan", size, limit, ours, reference.step, WINDOW)


def again(optimizer: AutoOptimizer) -> Callable[[], None]:
    """Steps of an optimizer that starts its warm-up again after every `WINDOW`."""

    def step() -> None:
        if optimizer.param_groups[0]["step"] >= WINDOW:
            for group in optimizer.param_groups:
                group["step"] = 0
        optimizer.step()

    return step


def guarded(size: str) -> Iterator[Ratio]:
    """Steps with a guard and a loss, without any fault, against the same steps without a guard."""
    for title in ("default", "AdamW"):
        model, other = build(size), build(size)
        plan = default_plan(model) if title == "default" else OptimizerPlan.uniform(model, "adamw")
        watched = AutoOptimizer.from_plan(model, plan, guard=True)
        reference = AutoOptimizer.from_plan(other, plan)

        def ours(optimizer: AutoOptimizer = watched) -> None:
            optimizer.observe(1.0)
            optimizer.step()

        title = f"guarded / without a guard, {title} plan"
        yield Ratio(title, size, None, ours, reference.step, UNKNOWN)  # with the snapshots that fall due


def training(size: str) -> Iterator[Ratio]:
    """Whole training steps on 32 sequences of 64 tokens: with statistics against without."""
    if size == "60k":
        return
    model, other = build(size), build(size)
    plan = default_plan(model)
    layers = {layer.name: layer for layer in describe(model).layers}
    selection = SimpleNamespace(warmup_steps=10**9, seed=0, layers=lambda: layers, clock=None)
    ours = again(AutoOptimizer(model.named_parameters(), plan=plan, selection=selection))
    reference = AutoOptimizer.from_plan(other, plan)
    tokens = torch.randint(model.embedding.num_embeddings, (32, 65))

    def train(model: nn.Module, step: Callable[[], object]) -> None:
        model.zero_grad()
        model(tokens).backward()
        step()

    limit = 1.03 if size == "20M" else None
    title = "training step in warm-up / without statistics"
    yield Ratio(title, size, limit, lambda: train(model, ours), lambda: train(other, reference.step), 4)
    watched = AutoOptimizer.from_plan(model, plan, guard=True)
    title = "training step guarded / without a guard"
    yield Ratio(title, size, None, lambda: train(model, watched.step), lambda: train(other, reference.step), 4)


def construction(size: str) -> Iterator[Ratio]:
    """Making the optimizer from a plan that was not parsed before, against making torch's AdamW."""
    model = build(size)
    params, named = list(model.parameters()), list(model.named_parameters())
    plan = default_plan(model)

    def ours() -> None:
        parse.cache_clear()
        AutoOptimizer(named, plan=plan)

    title = f"construction, {len(params)} tensors / `torch.optim.AdamW`"
    yield Ratio(title, size, None, ours, lambda: torch.optim.AdamW(params, fused=True))


def state_bytes(size: str) -> str:
    """A line on how much state there is: ours, and the kernels' own."""
    model, other = build(size), build(size)
    plan = default_plan(model)
    optimizer = AutoOptimizer.from_plan(model, plan)
    optimizer.step()
    everything = sum(value.nbytes for own in optimizer.state.values() for value in own.values())
    averages = sum(value.nbytes for own in optimizer.state.values() for value in averages_in(own).values())
    ours = everything - averages
    theirs = 0
    named = dict(other.named_parameters())
    for name, config in plan.layers.items():
        info = get(config.optimizer)
        library = info.load()([named[name]], **config.complete)
        library.step()
        theirs += sum(value.nbytes for own in library.state.values() for value in own.values())
    watched = AutoOptimizer.from_plan(other, plan, guard=True)
    for _ in range(3 * UNKNOWN):
        watched.step()
    assert watched.guard is not None
    kept = watched.guard.snapshot_bytes
    text = f"State of the default plan at {size}: {ours:,} bytes; of its kernels called separately: {theirs:,} bytes; "
    return text + f"average of the weights: {averages:,} bytes; snapshots of the guard: {kept:,} bytes."


PARTS = {part.__name__: part for part in (adamw, mixed, muon, warmup, guarded, training, construction)}


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", nargs="+", default=list(MODELS), choices=MODELS)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print("| what | parameters | ours, ms | ratio | quartiles | limit |\n| --- | --- | --- | --- | --- | --- |")
    for part in arguments.parts:
        for size in arguments.sizes:
            for ratio in PARTS[part](size):
                print(ratio.measure(arguments.repeats), flush=True)
    print()
    for size in arguments.sizes:
        print(state_bytes(size), flush=True)


if __name__ == "__main__":
    main()
