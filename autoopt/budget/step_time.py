"""How long things take on this device: a training step without its update, and updates by other rules."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from autoopt.architecture import LayerInfo
from autoopt.optimizers.catalog import get
from autoopt.optimizers.kernels import Kernel, Options
from autoopt.optimizers.plan import OptimizerConfig

SKIPPED_GAPS = 2
"""First gaps between steps that are not counted: allocation and compilation fall into them."""

REPETITIONS = 5
DEADLINE_SECONDS = 1.0
"""After which further rules are timed once instead of `REPETITIONS` times."""


class StepClock:
    """Times the user's part of each warm-up step: from the end of one update to the beginning of the next.

    On CUDA the marks are events, which wait for nothing; elsewhere they are readings of the clock. Copies
    and pickles start anew.
    """

    def __init__(self) -> None:
        self._marks: list[tuple[Any, Any]] = []
        self._begun: Any = None

    def __reduce__(self) -> tuple[type[StepClock], tuple[()]]:
        """A clock without marks: times of one process mean nothing in another."""
        return StepClock, ()

    def begin(self, device: torch.device) -> None:
        """Mark where an update begins."""
        self._begun = _mark(device)

    def end(self, device: torch.device) -> None:
        """Mark where it ends."""
        self._marks.append((self._begun, _mark(device)))

    def gap_seconds(self) -> float | None:
        """Median seconds between two updates: data, forward, backward. None where there are too few; waits."""
        pairs = zip(self._marks[SKIPPED_GAPS:], self._marks[SKIPPED_GAPS + 1 :], strict=False)
        gaps = [_between(before[1], after[0]) for before, after in pairs]
        return statistics.median(gaps) if len(gaps) > 1 else None


def _mark(device: torch.device) -> Any:
    if device.type == "cuda" and torch.cuda.is_available():
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
    return time.perf_counter()


def _between(before: Any, after: Any) -> float:
    if isinstance(before, float):
        return after - before
    after.synchronize()
    return before.elapsed_time(after) / 1e3


@dataclass(frozen=True)
class Tensors:
    """What has to be known of a parameter to time its update.

    Attributes:
        device: Where it lies.
        dtype: Its type.
        num_rows: Rows that its sparse gradient touches, None for a dense gradient.
    """

    device: torch.device
    dtype: torch.dtype
    num_rows: int | None = None

    @classmethod
    def of(cls, param: Tensor) -> Tensors:
        """Those of a parameter, whose gradient is still there."""
        grad = param.grad
        rows = grad._values().shape[0] if grad is not None and grad.layout is torch.sparse_coo else None
        return cls(param.device, param.dtype, rows)


class UpdateTimer:
    """Times updates on throw-away tensors; nothing of the model or of the random generators is touched.

    Tensors that are small together are timed as they are. Of larger ones one of each shape is timed, a
    very large one in a smaller shape, and the seconds are scaled by the arithmetic: elements for rules
    that treat elements alone, elements times the smaller side for Muon and SOAP.

    Args:
        tensors: What is known of each parameter, by name.
        options: How the optimizer runs its steps.
    """

    def __init__(self, tensors: Mapping[str, Tensors], options: Options) -> None:
        self._tensors = tensors
        self._options = options
        self._known: dict[Any, float] = {}
        self.spent_seconds = 0.0

    def seconds(self, layers: Sequence[LayerInfo], configs: Sequence[OptimizerConfig]) -> float:
        """Seconds that one update of these parameters takes.

        Args:
            layers: The parameters.
            configs: The configuration of each.
        """
        buckets: dict[Any, list[tuple[LayerInfo, OptimizerConfig]]] = defaultdict(list)
        for layer, config in zip(layers, configs, strict=True):
            if layer.numel:
                # One call for all tensors of a configuration, as in a step.
                key = config.optimizer, tuple(config.complete.items()), self._tensors[layer.name].device
                buckets[key].append((layer, config))
        return sum(self._bucket(members) for members in buckets.values())

    def _bucket(self, members: Sequence[tuple[LayerInfo, OptimizerConfig]]) -> float:
        config = members[0][1]
        kinds = Counter((layer.shape, self._tensors[layer.name]) for layer, _ in members)
        largest = _largest(config, members[0][0], self._tensors)
        if sum(layer.numel for layer, _ in members) <= largest:
            return self._timed(config, tuple(sorted(kinds.elements(), key=repr)))
        total = 0.0
        for (shape, tensors), count in kinds.items():
            single, shape, count = _unfused(config, shape, count)
            small = _shrunk(shape, largest)
            work = _work(single, shape) / _work(single, small)
            total += count * work * self._timed(single, ((small, tensors),))
        return total

    def _timed(self, config: OptimizerConfig, kinds: tuple[tuple[tuple[int, ...], Tensors], ...]) -> float:
        key = (_structure(config), kinds)
        if key not in self._known:
            begun = time.perf_counter()
            self._known[key] = self._measured(config, kinds)
            self.spent_seconds += time.perf_counter() - begun
        return self._known[key]

    @torch.no_grad()
    def _measured(self, config: OptimizerConfig, kinds: tuple[tuple[tuple[int, ...], Tensors], ...]) -> float:
        kernel = Kernel(config)
        params = [_throw_away(shape, tensors) for shape, tensors in kinds]
        sparse = any(tensors.num_rows is not None for _, tensors in kinds)
        state: dict[Tensor, dict[str, Any]] = defaultdict(dict)
        device = params[0].device
        times = []
        # A rule that does more in some steps is timed over the whole of its period.
        period = int(config.complete.get("precondition_frequency", 1))
        repetitions = 1 if self.spent_seconds > DEADLINE_SECONDS else max(1, REPETITIONS // period)
        for repetition in range(2 + repetitions):  # the first make state and load code
            steps = 1 if repetition < 2 else period
            _wait(device)
            begun = time.perf_counter()
            for _ in range(steps):
                kernel.step(state, params, config.lr, None, {}, self._options, sparse)
            _wait(device)
            times.append((time.perf_counter() - begun) / steps)
        return min(times[2:])  # what else runs on the machine can only add


def _structure(config: OptimizerConfig) -> tuple[Any, ...]:
    """What of a configuration its time depends on: not the rate, and of other numbers whether they are 0."""
    values = config.complete
    kept = ("splits", "stacked", "transposed", "max_precondition_dim", "precondition_frequency")
    flags = {key: bool(values[key]) for key in ("momentum", "nesterov", "weight_decay") if key in values}
    return config.optimizer, tuple(flags.items()), tuple((key, values[key]) for key in kept if key in values)


def _largest(config: OptimizerConfig, layer: LayerInfo, tensors: Mapping[str, Tensors]) -> int:
    """Elements that are timed at most: a few megabytes on a CPU, less where matrices are multiplied."""
    if tensors[layer.name].device.type != "cpu":
        return 2**22
    return 2**20 if not _multiplies(config) else 2**16


def _multiplies(config: OptimizerConfig) -> bool:
    return get(config.optimizer).min_ndim > 1


def _work(config: OptimizerConfig, shape: tuple[int, ...]) -> float:
    elements = 1
    for size in shape:
        elements *= size
    if not _multiplies(config):
        return float(elements)
    rows = shape[0]
    return float(elements) * min(rows, elements // rows)


def _unfused(
    config: OptimizerConfig, shape: tuple[int, ...], count: int
) -> tuple[OptimizerConfig, tuple[int, ...], int]:
    """Fused blocks as so many tensors of one block each, which may then be made smaller."""
    splits = int(config.complete.get("splits", 1))
    if splits == 1:
        return config, shape, count
    side = len(shape) - 1 if config.complete["transposed"] else 0
    block = tuple(size // splits if index == side else size for index, size in enumerate(shape))
    return replace(config, hyperparameters={**config.hyperparameters, "splits": 1}), block, count * splits


def _shrunk(shape: tuple[int, ...], largest: int) -> tuple[int, ...]:
    """The shape with its largest sides halved until it has at most `largest` elements."""
    sizes = list(shape)
    while torch.Size(sizes).numel() > largest:
        side = sizes.index(max(sizes))
        sizes[side] = (sizes[side] + 1) // 2
    return tuple(sizes)


def _throw_away(shape: tuple[int, ...], tensors: Tensors) -> Tensor:
    generator = torch.Generator(tensors.device).manual_seed(0)

    def drawn(*sizes: int) -> Tensor:
        return torch.empty(sizes, dtype=tensors.dtype, device=tensors.device).normal_(generator=generator)

    param = torch.nn.Parameter(drawn(*shape))
    param.grad = drawn(*shape)
    if tensors.num_rows is not None and shape:
        count = min(tensors.num_rows, shape[0])
        rows = torch.arange(count, device=tensors.device).unsqueeze(0)
        param.grad = torch.sparse_coo_tensor(rows, drawn(count, *shape[1:]), shape, check_invariants=False)
    return param


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
