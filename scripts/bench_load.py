"""Prints what large models cost: planning a billion parameters, deciding for a thousand layers.

    python scripts/bench_load.py [--layers 20] [--depth 1000]

The first model is a transformer on the meta device, so that nothing but `select` itself takes memory; the
second is trained through a short warm-up. Seconds are CPU seconds of one thread, which other programs
disturb less than the clock on the wall; memory is what Python and NumPy allocate at most.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import autoopt

WARMUP_STEPS = 8


class Block(nn.Module):
    """Attention and a multi-layer perceptron, each behind a norm and a residual connection."""

    def __init__(self, width: int) -> None:
        """Build the block."""
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, width // 64, batch_first=True)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Hidden states of the same shape."""
        normed = self.attention_norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return x + self.mlp(self.mlp_norm(x))


class Transformer(nn.Module):
    """A language model: 1.1 billion parameters at the default sizes."""

    def __init__(self, num_layers: int = 20, width: int = 2048, num_tokens: int = 32_000) -> None:
        """Build the model."""
        super().__init__()
        self.embedding = nn.Embedding(num_tokens, width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(num_layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, num_tokens, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token."""
        return self.head(self.norm(self.blocks(self.embedding(tokens))))


class Deep(nn.Module):
    """A residual network of so many narrow linear layers, each with a bias."""

    def __init__(self, num_layers: int = 1000, width: int = 32) -> None:
        """Build the model."""
        super().__init__()
        self.first = nn.Linear(8, width)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(num_layers - 2)])
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of four classes."""
        x = self.first(x)
        for layer in self.layers:
            x = x + 0.05 * torch.relu(layer(x))
        return self.head(x)


def cpu_seconds(action: Callable[[], Any]) -> tuple[Any, float]:
    """What an action returns, and the CPU seconds that it took."""
    start = time.process_time()
    result = action()
    return result, time.process_time() - start


def plan_on_meta(num_layers: int = 20) -> tuple[float, int, float]:
    """Parameters in billions, peak bytes and CPU seconds of `select` on a transformer on the meta device."""
    with torch.device("meta"):
        model = Transformer(num_layers)
    num_parameters = sum(param.numel() for param in model.parameters())
    _, seconds = cpu_seconds(lambda: autoopt.select(model, total_steps=100_000))
    tracemalloc.start()
    autoopt.select(model, total_steps=100_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return num_parameters / 1e9, peak, seconds


def decide_for(num_layers: int = 1000, selector: Any = None) -> tuple[autoopt.Recommendation, float]:
    """The recommendation for a deep network, and the CPU seconds that the decision took.

    The decision's step does what any warm-up step does as well, so the median of those is taken off.
    """
    torch.manual_seed(0)
    model = Deep(num_layers)
    optimizer = autoopt.select(model, total_steps=1000, warmup_steps=WARMUP_STEPS, selector=selector)
    x, labels = torch.randn(16, 8), torch.randint(4, (16,))
    seconds = []
    for _ in range(WARMUP_STEPS):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), labels).backward()
        seconds.append(cpu_seconds(optimizer.step)[1])
    plain = sorted(seconds[:-1])[len(seconds) // 2]
    return optimizer.recommendation, seconds[-1] - plain


def main() -> None:
    """Measure both and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=20, help="layers of the transformer")
    parser.add_argument("--depth", type=int, default=1000, help="layers of the deep network")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    autoopt.select(nn.Linear(2, 2), total_steps=1000)  # imports and reads the selector
    billions, peak, seconds = plan_on_meta(arguments.layers)
    print(f"{billions:.2f} billion parameters on the meta device: planned in {seconds:.2f} s, {peak / 2**20:.0f} MiB")
    recommendation, seconds = decide_for(arguments.depth)
    tensors = len(recommendation.layers)
    each = 1e6 * seconds / tensors
    print(f"{arguments.depth} layers ({tensors} tensors): decided in {seconds:.2f} s, {each:.0f} us each")
    for name in ("text", "markdown", "html"):
        text, seconds = cpu_seconds(getattr(recommendation, f"to_{name}"))
        lines = text.count("\n")
        print(f"  report as {name}: {seconds:.2f} s, {lines} lines, {len(text.encode()) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
