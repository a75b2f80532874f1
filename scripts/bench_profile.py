"""Prints what profiling costs: online in percent of a training step, aside in training steps.

    python scripts/bench_profile.py [--models mlp transformer] [--repeats 15] [--warmup-steps 20 50 200]

First what a warm-up step does more than another, timed apart. Then online: two copies of a model train
side by side on the same batches with the same plan, one of them in warm-up, step by step in alternating
order, so that a busy machine slows both alike. Shown are the median over the repeats of the ratio of their
seconds, with its quartiles, and the seconds of the one summary at the end. It is above the parts' share
where caches are cold. Last, aside: seconds of measuring at the start, over those of a training step. All
are CPU seconds of one thread, which other programs disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import autoopt
from autoopt.architecture import describe
from autoopt.arguments import ASIDE_WARMUP_STEPS
from autoopt.optimizers.recipe import calibrated_default
from autoopt.optimizers.warmup_step import all_finite
from autoopt.selection import OnlineSelection
from autoopt.start_profile import DEFAULT_PASSES, batches_wanted, measure_start
from autoopt.statistics import warmup
from autoopt.statistics.sampling import PAIR_SPACING

Batch = tuple[Tensor, Tensor]


class LanguageModel(nn.Module):
    """Embedding, encoder layers and a head: 20 million parameters at width 512."""

    def __init__(self, width: int = 512, num_layers: int = 6, vocabulary: int = 1000) -> None:
        """Build the model."""
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 8, 4 * width, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, num_layers, enable_nested_tensor=False)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of shape `(batch, length, vocabulary)`."""
        return self.head(self.encoder(self.embedding(tokens)))


def mlp() -> tuple[nn.Module, Callable[[], Batch]]:
    """A classifier of 60 thousand parameters, and batches of 64."""
    model = nn.Sequential(nn.Linear(784, 72), nn.ReLU(), nn.Linear(72, 48), nn.ReLU(), nn.Linear(48, 10))
    return model, lambda: (torch.randn(64, 784), torch.randint(10, (64,)))


def transformer() -> tuple[nn.Module, Callable[[], Batch]]:
    """A transformer of 20 million parameters, and batches of 32 sequences of 16 tokens."""
    return LanguageModel(), lambda: (torch.randint(1000, (32, 16)), torch.randint(1000, (32, 16)))


MODELS = {"mlp": mlp, "transformer": transformer}


def loss_fn(model: nn.Module, batch: Batch) -> Tensor:
    """Mean cross entropy over all predictions."""
    logits = model(batch[0])
    return nn.functional.cross_entropy(logits.flatten(0, -2), batch[1].flatten())


class Undecided(OnlineSelection):
    """Stays in warm-up, so that no switch is timed."""

    def decide(self, optimizer: Any) -> Any:
        """Never called: the warm-up is longer than the bench."""
        raise AssertionError("the bench ran past the warm-up")


def optimizers(model: nn.Module, total_steps: int) -> tuple[nn.Module, nn.Module, Any, Any]:
    """Two copies of the model, and their optimizers: with a fixed plan, and in warm-up with the same plan."""
    plain, watched = copy.deepcopy(model), copy.deepcopy(model)
    architecture, default = describe(model), calibrated_default()
    plan = default.resolve(architecture.layers).with_schedule(default.schedule(total_steps))
    fixed = autoopt.AutoOptimizer.from_plan(plain, plan)
    selection = Undecided(architecture, total_steps, default, plan.schedule, total_steps=total_steps)
    warming = autoopt.AutoOptimizer(watched.named_parameters(), plan=plan, selection=selection)
    selection.watch_first_batch(watched, warming)
    return plain, watched, fixed, warming


def seconds_of_a_step(model: nn.Module, optimizer: Any, batch: Batch) -> float:
    """CPU seconds of one training step."""
    start = time.process_time()
    optimizer.zero_grad()
    loss_fn(model, batch).backward()
    optimizer.step()
    return time.process_time() - start


def online(model: nn.Module, draw: Callable[[], Batch], num_steps: int, repeat: int) -> tuple[float, float, float]:
    """Ratio of the seconds with and without collection, seconds of a plain step, and of the summary."""
    plain, watched, fixed, warming = optimizers(model, num_steps + 10)
    totals = [0.0, 0.0]
    for step in range(num_steps):
        batch = draw()
        pairs = [(0, plain, fixed), (1, watched, warming)]
        for index, one, optimizer in pairs if (step + repeat) % 2 else reversed(pairs):
            totals[index] += seconds_of_a_step(one, optimizer, batch)
    start = time.process_time()
    selection = warming._selection
    selection.features(selection.measure(warming))
    return totals[1] / totals[0], totals[0] / num_steps, time.process_time() - start


def parts(model: nn.Module, draw: Callable[[], Batch]) -> tuple[str, float]:
    """What a warm-up step does more than a plain one, in words, and the seconds of a step.

    Timed apart, which takes a few steps alone: for models whose training steps take seconds.
    """
    _, watched, _, warming = optimizers(model, 300)
    batch = draw()
    seconds = min(seconds_of_a_step(watched, warming, batch) for _ in range(3))
    loss_fn(watched, batch).backward()
    layers, params, states = map(list, zip(*warming.warmup_entries(), strict=True))
    grads = [param.grad for param in params]
    look = _median(lambda: warmup.update(layers, params, grads, states, step=PAIR_SPACING))
    check = _median(lambda: bool(all_finite(grads)))
    share = sum(warmup.collects(step) for step in range(20)) / 20
    text = (
        f"a look at the gradients {1e3 * look:.2f} ms on {100 * share:.0f} % of 20 steps, the check for NaN "
        f"{1e3 * check:.2f} ms on all: {100 * (share * look + check) / seconds:.1f} % of {1e3 * seconds:.1f} ms a step"
    )
    return text, seconds


def _median(work: Callable[[], Any], count: int = 9) -> float:
    """The median CPU seconds of some work."""
    times = []
    for _ in range(count):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
    return statistics.median(times)


def aside(model: nn.Module, draw: Callable[[], Batch], step_seconds: float) -> str:
    """What measuring at the start costs, in words."""
    architecture = describe(model)
    batches = [draw() for _ in range(batches_wanted(DEFAULT_PASSES, architecture))]
    start = time.process_time()
    found = measure_start(model, loss_fn, batches, architecture)
    spent = (time.process_time() - start) / step_seconds
    assert not found.problem, found.problem
    return (
        f"aside: {found.num_passes} passes at the start take {spent:.0f} training steps, "
        f"with {ASIDE_WARMUP_STEPS} steps of warm-up {spent + ASIDE_WARMUP_STEPS:.0f} in all"
    )


def main() -> None:
    """Measure the models and print a line for each number of warm-up steps, and one for profiling aside."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--repeats", type=int, default=15, help="0 leaves out training side by side")
    parser.add_argument("--warmup-steps", type=int, nargs="+", default=[20, 50, 200])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name in arguments.models:
        model, draw = MODELS[name]()
        size = sum(param.numel() for param in model.parameters())
        text, seconds_of_one = parts(model, draw)
        print(f"{name} ({size:,} parameters): {text}", flush=True)
        plain_seconds = [seconds_of_one]
        for num_steps in arguments.warmup_steps if arguments.repeats else ():
            found = [online(model, draw, num_steps, repeat) for repeat in range(arguments.repeats)]
            ratios, seconds, summaries = zip(*found, strict=True)
            plain_seconds += seconds
            low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
            print(
                f"{name}, {num_steps} steps of {1e3 * statistics.median(seconds):.2f} ms: "
                f"online {100 * (middle - 1):+.1f} % (quartiles {100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} %), "
                f"summary {1e3 * statistics.median(summaries):.0f} ms once",
                flush=True,
            )
        print(f"{name}: {aside(model, draw, statistics.median(plain_seconds))}", flush=True)


if __name__ == "__main__":
    main()
