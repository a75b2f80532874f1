"""Prints what the selector and large models cost: loading, planning a billion parameters, deciding for many layers.

    python scripts/bench_load.py [--layers 20] [--depth 1000] [--selector FILE]

The first figures are those of a process that has decided nothing before: the selector is read, and applied to
a transformer of 12 layers. The transformer on the meta device is there so that nothing but `select` itself takes
memory; the deep network is trained through a short warm-up. Seconds are CPU seconds of one thread, which other
programs disturb less than the clock on the wall, but for what applying the selector took, which is the clock's
(`profile["decision_seconds"]`); memory is what Python and NumPy allocate at most.
"""

from __future__ import annotations

import argparse
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import autoopt
from autoopt.meta import artifact

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
    """The recommendation for a deep network, and the CPU seconds that the decision took."""
    torch.manual_seed(0)
    return decided(Deep(num_layers), torch.randn(16, 8), torch.randint(4, (16,)), selector)


def decide_for_transformer(num_layers: int = 12, selector: Any = None) -> tuple[autoopt.Recommendation, float]:
    """The same for a narrow transformer."""
    torch.manual_seed(0)
    tokens = torch.randint(100, (4, 17))
    return decided(Transformer(num_layers, 64, 100), tokens[:, :-1], tokens[:, 1:], selector)


def decided(model: nn.Module, x: Tensor, labels: Tensor, selector: Any) -> tuple[autoopt.Recommendation, float]:
    """The recommendation after a short warm-up, and the CPU seconds that the decision took.

    The decision's step does what any warm-up step does as well, so the median of those is taken off.
    """
    optimizer = autoopt.select(model, total_steps=1000, warmup_steps=WARMUP_STEPS, selector=selector)
    seconds = []
    for _ in range(WARMUP_STEPS):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(x).flatten(0, -2), labels.flatten())
        loss.backward()
        optimizer.observe(loss)
        seconds.append(cpu_seconds(optimizer.step)[1])
    plain = sorted(seconds[:-1])[len(seconds) // 2]
    return optimizer.recommendation, seconds[-1] - plain


def main() -> None:
    """Measure both and print a line for each figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--layers", type=int, default=20, help="layers of the transformer")
    parser.add_argument("--depth", type=int, default=1000, help="layers of the deep network")
    parser.add_argument("--selector", default=str(artifact.shipped_path()), help="artifact; the shipped one by default")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.optim.SGD(nn.Linear(2, 2).parameters())  # what the first optimizer of all imports
    _, loading = cpu_seconds(lambda: artifact.load(arguments.selector))
    megabytes = Path(arguments.selector).stat().st_size / 1e6
    recommendation, _ = decide_for_transformer(12, arguments.selector)
    applying = recommendation.profile["decision_seconds"]
    print(f"selector of {megabytes:.2f} MB: loaded in {loading:.3f} s, first applied to a 12-layer transformer "
          f"({len(recommendation.layers)} tensors) in {applying:.3f} s")  # fmt: skip
    billions, peak, seconds = plan_on_meta(arguments.layers)
    print(f"{billions:.2f} billion parameters on the meta device: planned in {seconds:.2f} s, {peak / 2**20:.0f} MiB")
    recommendation, seconds = decide_for(arguments.depth, arguments.selector)
    tensors = len(recommendation.layers)
    applying = recommendation.profile["decision_seconds"]
    each = 1e6 * seconds / tensors
    print(f"{arguments.depth} layers ({tensors} tensors): decided in {seconds:.2f} s, {each:.0f} us each; "
          f"the selector applied in {applying:.2f} s of them, the others for statistics")  # fmt: skip
    for name in ("text", "markdown", "html"):
        text, seconds = cpu_seconds(getattr(recommendation, f"to_{name}"))
        lines = text.count("\n")
        print(f"  report as {name}: {seconds:.2f} s, {lines} lines, {len(text.encode()) / 1024:.0f} KiB")


if __name__ == "__main__":
    main()
