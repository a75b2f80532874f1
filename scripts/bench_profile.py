"""Prints what online statistics cost: ratios of collected to plain training steps, interleaved.

    python scripts/bench_profile.py [--repeats 15] [--warmup-steps 20 50 200]

Each repeat trains `warmup_steps` steps without and with collection, one right after the other and in
alternating order, so that a busy machine slows both alike; the median ratio over the repeats and its
quartiles are shown, then the seconds of the one summary at the end. All are CPU seconds of one thread,
which other programs disturb less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from autoopt.architecture import describe
from autoopt.statistics import warmup


def mlp() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A 60 thousand parameter classifier and its loss on one batch of 64."""
    model = nn.Sequential(nn.Linear(784, 72), nn.ReLU(), nn.Linear(72, 48), nn.ReLU(), nn.Linear(48, 10))
    inputs, labels = torch.randn(64, 784), torch.randint(10, (64,))
    return model, lambda model: nn.functional.cross_entropy(model(inputs), labels)


class TinyLanguageModel(nn.Module):
    """Embedding, two encoder layers of width 64, and a head over 256 tokens."""

    def __init__(self) -> None:
        """Build the model."""
        super().__init__()
        self.embedding = nn.Embedding(256, 64)
        layer = nn.TransformerEncoderLayer(64, 4, 256, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(64, 256)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of shape `(batch, length, 256)`."""
        return self.head(self.encoder(self.embedding(tokens)))


def transformer() -> tuple[nn.Module, Callable[[nn.Module], Tensor]]:
    """A 130 thousand parameter transformer and its loss on one batch of 32 sequences of 32."""
    tokens = torch.randint(256, (32, 33))

    def loss(model: nn.Module) -> Tensor:
        return nn.functional.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    return TinyLanguageModel(), loss


def train(
    model: nn.Module, loss_fn: Callable[[nn.Module], Tensor], num_steps: int, collect: bool
) -> tuple[float, float]:
    """Seconds of the steps, and of the summary after them (0 without collection)."""
    layers = describe(model).layers
    named = dict(model.named_parameters())
    params = [named[layer.name] for layer in layers]
    optimizer = torch.optim.AdamW(params, lr=1e-3, fused=True)
    states = [warmup.init_state(layer, p) for layer, p in zip(layers, params, strict=True)]
    start = time.process_time()
    for step in range(num_steps):
        loss_fn(model).backward()
        if collect and warmup.collects(step):
            warmup.update(layers, params, [p.grad for p in params], states, step=step)
        optimizer.step()
        optimizer.zero_grad()
    middle = time.process_time()
    if collect:
        warmup.summarize(layers, params, states)
    return middle - start, time.process_time() - middle


def main() -> None:
    """Measure both models and print one line for each number of warm-up steps."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--warmup-steps", type=int, nargs="+", default=[20, 50, 200])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for name, build in (("mlp-60k-b64", mlp), ("transformer-130k-b32", transformer)):
        model, loss_fn = build()
        train(model, loss_fn, 20, True)
        for num_steps in arguments.warmup_steps:
            ratios, plain_seconds, summary_seconds = [], [], []
            for repeat in range(arguments.repeats):
                order = (False, True) if repeat % 2 else (True, False)
                seconds = {collect: train(model, loss_fn, num_steps, collect) for collect in order}
                ratios.append(seconds[True][0] / seconds[False][0])
                plain_seconds.append(seconds[False][0] / num_steps)
                summary_seconds.append(seconds[True][1])
            low, median, high = statistics.quantiles(ratios, n=4)
            print(
                f"{name}: {num_steps} warm-up steps of {1e6 * statistics.median(plain_seconds):.0f} us: "
                f"collection costs {100 * (median - 1):+.1f} % "
                f"(quartiles {100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} %); "
                f"summary {1e3 * statistics.median(summary_seconds):.1f} ms once"
            )


if __name__ == "__main__":
    main()
