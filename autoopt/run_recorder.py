"""Remembers a user's own run: its losses, times and meta-features, appended to a journal as it goes.

Nothing here may harm the run: losses stay on their device until a block of steps ends, whatever goes
wrong ends in one warning, and the training itself is the same bit by bit.
"""

from __future__ import annotations

import functools
import math
import os
import platform
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import torch
from torch import Tensor

from autoopt.architecture import LayerInfo
from autoopt.distributed.ranks import Ranks
from autoopt.meta.journal import Journal
from autoopt.meta.own_runs import JOURNAL_NAME, OWN_RUNS_SCHEMA_VERSION, comparable_runs, read_own_runs, runs_folder

BLOCKS = 50
"""Blocks that a run of known length is remembered in: as many points of its curve, and as many fsyncs."""

BLOCK_STEPS = (20, 500)
"""Fewest and most steps of a block."""

P = ParamSpec("P")


@dataclass(frozen=True)
class Remember:
    """Where and how a run is remembered.

    Attributes:
        folder: Folder of own runs; made where it is missing.
        task: What the run trains, in your words, such as `"char-lm"`. Runs of one task on one model over as
            many steps are compared with each other. Without it, runs of equal architecture, batch size
            and horizon are.
        names: Whether the class name of the model and the names of its parameters are kept too. They
            are not by default: a remembered run holds statistics and curves only.

    Raises:
        ValueError: If `folder` is empty.
    """

    folder: str | os.PathLike[str]
    task: str = ""
    names: bool = False

    def __post_init__(self) -> None:
        """Check the folder."""
        if not os.fspath(self.folder):
            raise ValueError("remember needs a folder, such as remember='runs'")

    @classmethod
    def of(cls, value: Remember | str | os.PathLike[str]) -> Remember:
        """The value itself, or a folder with nothing else said."""
        return value if isinstance(value, Remember) else cls(value)


def _harmless(
    method: Callable[Concatenate[RunRecorder, P], None],
) -> Callable[Concatenate[RunRecorder, P], None]:
    @functools.wraps(method)
    def wrapped(self: RunRecorder, *args: P.args, **kwargs: P.kwargs) -> None:
        if self.stopped or os.getpid() != self.pid:  # a forked worker is not the run
            return
        try:
            method(self, *args, **kwargs)
        except Exception as error:  # whatever it is, the training goes on
            self.stopped = True
            warnings.warn(f"this run is no longer remembered, training goes on: {error}", stacklevel=2)

    return wrapped


class RunRecorder:
    """Gathers what one run shows and appends it to the journal of a folder.

    Between two blocks it costs an addition on the loss's own device; a block's end reads two numbers from
    the device and appends a line that is fsynced, so that a killed process loses at most the last block.
    Copies of it (of a pickled or deep-copied optimizer) remember nothing: one run, one writer.

    Args:
        remember: Where and how.
        layers: Description of every parameter.
        total_steps: Horizon of the run, or None.
        ranks: Of these the first one writes.
        model_name: Class name of the model; kept only where `remember.names` says so.
    """

    def __init__(
        self,
        remember: Remember,
        layers: Iterable[LayerInfo],
        total_steps: int | None,
        ranks: Ranks | None = None,
        model_name: str = "",
    ) -> None:
        self.remember = remember
        self.total_steps = total_steps
        self.ranks = ranks or Ranks()
        self.run = uuid.uuid4().hex[:16]  # of the system's randomness: no generator of the run is touched
        self.pid = os.getpid()
        self.stopped = self.ended = False
        steps = BLOCK_STEPS[1] if total_steps is None else total_steps // BLOCKS
        self.block_steps = max(BLOCK_STEPS[0], min(BLOCK_STEPS[1], steps))
        self.pending: list[dict[str, Any]] = [self._start(list(layers), model_name)]
        self.journal: Journal | None = None
        self.step = 0
        self.plans: list[str] | None = None
        self.replanned = False
        self._begin_block()

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        """A copy is None."""
        return _nothing, ()

    # ---- what happens in the run ----------------------------------------------------------------

    @_harmless
    def decided(self, recipe: str, rows: Iterable[Mapping[str, Any]], mode: str, seconds: float) -> None:
        """Note what was decided, and from which meta-features.

        Args:
            recipe: Canonical JSON of the recipe in force from now on; `""` where no recipe says it.
            rows: One row of meta-features a role group.
            mode: `"online"` or `"aside"`.
            seconds: Seconds of the profile and the decision.
        """
        rows = [dict(row) for row in rows]
        self._note("decision", recipe=recipe, features=rows, mode=mode, selection_seconds=seconds)

    @_harmless
    def observe(self, loss: Tensor | float) -> None:
        """Add the loss of a step to the block's sum, on the loss's own device; one that is not finite is left out."""
        if isinstance(loss, Tensor):
            value = loss.detach().float().mean()
            finite: Tensor | float = value.isfinite().float()
            value = value.nan_to_num(0.0, 0.0, 0.0)
        else:
            finite = float(math.isfinite(loss))
            value = loss if finite else 0.0
        self.total = value + self.total
        self.num_finite = finite + self.num_finite
        self.count += 1

    @_harmless
    def observe_validation(self, loss: Tensor | float, step: int) -> None:
        """Write a validation loss; synchronises where it is on a device.

        Args:
            loss: Mean validation loss.
            step: Optimizer steps taken.
        """
        self._note("validation", step=step, loss=float(loss))
        self._write()

    @_harmless
    def stepped(self, step: int, state: Mapping[Any, Mapping[str, Any]]) -> None:
        """Note a step; at the end of a block, write it.

        Args:
            step: Optimizer steps taken, this one included.
            state: The optimizer's state.
        """
        self.step = step
        self.steps += 1
        if self.steps >= self.block_steps or step == self.total_steps:
            self.state_bytes = _state_bytes(state)
            self._end_block()

    @_harmless
    def trained_with(self, plans: list[str]) -> None:
        """Note where a plan takes the decided one's place, as a guard may do: such a run says nothing of either.

        Args:
            plans: Text of the plan in force by parameter group; groups may have joined.
        """
        if self.plans is None:
            self.plans = plans
        elif not self.replanned and any(new != old for new, old in zip(plans, self.plans, strict=False)):
            self.replanned = True
            self._note("replanned", step=self.step + 1)

    @_harmless
    def resume(self, run: str, step: int) -> None:
        """Go on with the run of a checkpoint.

        Args:
            run: Its identity.
            step: Steps that the checkpoint had taken.
        """
        self.run, self.step = run, step
        self.plans, self.replanned = None, False
        self.pending = [{**record, "run": run} for record in self.pending if record["kind"] == "start"]
        self._note("resume", step=step)
        self._begin_block()

    @_harmless
    def finish(self) -> None:
        """Write what is left; a run that took no step leaves nothing behind."""
        if self.ended or self.step == 0:
            return
        self.ended = True
        if self.steps:
            self._end_block()
        self._note("end", step=self.step)
        self._write()

    def history(self, batch_size: float) -> list[Any]:
        """The remembered runs of the folder that are comparable with this one.

        Args:
            batch_size: Examples in a batch of this run, NaN where it is not known.

        Raises:
            MetaDatasetError: If the folder holds something damaged.
        """
        start = next(record for record in self.pending if record["kind"] == "start")
        return comparable_runs(read_own_runs(self.remember.folder), start, batch_size)

    # ---- the journal ----------------------------------------------------------------------------

    def _start(self, layers: list[LayerInfo], model_name: str) -> dict[str, Any]:
        sizes: dict[str, list[int]] = {}
        for layer in layers:
            count, elements = sizes.get(layer.group, (0, 0))
            sizes[layer.group] = [count + 1, elements + layer.numel]
        names = {"model": model_name, "groups": {layer.name: layer.group for layer in layers}}
        return {
            "kind": "start",
            "run": self.run,
            "schema_version": OWN_RUNS_SCHEMA_VERSION,
            "task": self.remember.task,
            "total_steps": self.total_steps,
            "groups": sizes,
            "recorded_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": {
                "autoopt": metadata.version("autoopt"),
                "torch": torch.__version__,
                "python": platform.python_version(),
            },
            **({"names": names} if self.remember.names else {}),
        }

    def _note(self, kind: str, **values: Any) -> None:
        self.pending.append({"kind": kind, "run": self.run, **values})

    def _begin_block(self) -> None:
        self.total: Tensor | float = 0.0
        self.num_finite: Tensor | float = 0.0
        self.count = self.steps = 0
        self.began = time.perf_counter()

    def _end_block(self) -> None:
        num_finite = float(self.num_finite)
        mean = float(self.total) / num_finite if num_finite else math.nan
        seconds = (time.perf_counter() - self.began) / self.steps
        bytes_now = getattr(self, "state_bytes", 0)
        self._note("losses", step=self.step, loss=mean, num=self.count, step_seconds=seconds, state_bytes=bytes_now)
        self._write()
        self._begin_block()

    def _write(self) -> None:
        if not self.ranks.is_first:
            self.stopped = True
            return
        if self.journal is None:
            self.journal = Journal(runs_folder(Path(self.remember.folder)), JOURNAL_NAME)
        while self.pending:
            self.journal.append(self.pending[0])
            del self.pending[0]


def _nothing() -> None:
    return None


def _state_bytes(state: Mapping[Any, Mapping[str, Any]]) -> int:
    tensors = [value for own in state.values() for value in own.values() if isinstance(value, Tensor)]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)
