"""The guard of one run: what it remembers, and what it does with a step."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from autoopt.distributed.ranks import Ranks
from autoopt.distributed.shards import local
from autoopt.guard import events as event_records
from autoopt.guard import ladder as rungs
from autoopt.guard import snapshot as snapshots
from autoopt.guard.detection import BLOCK, NONFINITE, OK, Detector
from autoopt.guard.events import MAX_EVENTS, GuardEvent
from autoopt.guard.fallback import Fallbacks, equal, suspects
from autoopt.guard.ladder import Ladder, Sight
from autoopt.guard.readout import INTERVAL, Readout
from autoopt.guard.signals import GradientNorms, scalar, size_of
from autoopt.guard.snapshot import Snapshot
from autoopt.guard.wording import DONE, STATISTICS, seen
from autoopt.optimizers.plan import OptimizerPlan

SNAPSHOTS_A_RUN = 40
"""Snapshots in a run of known length, as far as the bounds allow."""
SHORTEST, LONGEST, UNKNOWN = 12, 200, 50
"""Bounds of the steps between two snapshots, and their number where the length of the run is not known."""
GAP_SPIKE, GAP_RISE = BLOCK, 2 * BLOCK
"""A fault shows some steps after it has begun: a snapshot must be older than what was seen by so many."""


class Guard:
    """Watches a run, and rolls it back where it goes wrong.

    Args:
        total_steps: Optimizer steps of the run, or None.
        ranks: Who trains together.
        buffers: Running statistics of the model (batch norm), which a bad batch has changed before any
            gradient is known; they are put back with it. Where a run has them to itself they are looked at
            too: a norm hides the size of what it is given from the gradients and the loss, but not from them.
        interval: Steps between two looks at verdicts; None for the one that the device asks for.
    """

    def __init__(
        self,
        total_steps: int | None = None,
        ranks: Ranks | None = None,
        buffers: Sequence[Tensor] = (),
        interval: int | None = None,
    ) -> None:
        every = UNKNOWN if total_steps is None else total_steps // SNAPSHOTS_A_RUN
        self.every = max(SHORTEST, min(LONGEST, every))
        self.ranks = Ranks(alone=True) if ranks is None else ranks
        self.interval = interval
        self.ladder = Ladder(window=8 * self.every)
        self.fallbacks = Fallbacks({})
        self.events: list[GuardEvent] = []
        self.num_more_events = 0
        self._buffers = list(buffers)
        self._detector: Detector | None = None
        self._readout: Readout | None = None
        self._groups: list[str] = []
        self._names: tuple[str, ...] = ()
        self._norms: GradientNorms | None = None
        self._snapshots: list[Snapshot] = []
        self._pinned: Snapshot | None = None
        self._pins_next = False
        self._watched: list[Tensor] = []
        self._sound_buffers: list[Tensor] = []
        self._num_kept, self._spacing = 0, 1
        self._knows_loss = False
        self._held_until: int | None = None
        self._back_step: int | None = None
        self._waiting: dict[str, Any] | None = None
        self._halved_from: dict[str, Any] | None = None

    # ---- looking --------------------------------------------------------------------------------

    def judge(self, optimizer: Any, loss: Tensor | float | None, alone: bool = False) -> Tensor | None:
        """The verdicts on the coming step, or None where there is no gradient; never waits.

        Args:
            optimizer: A `PlannedOptimizer`, whose gradients are looked at.
            loss: The loss of this step, where it is known.
            alone: Whether other ranks are not to be asked, as in warm-up.
        """
        params = [param for group in optimizer.param_groups for param in group["params"]]
        present = tuple(index for index, param in enumerate(params) if param.grad is not None)
        if not present:
            return None
        device, self._knows_loss = local(params[present[0]]).device, loss is not None
        if len(self._groups) != len(params) or self._detector is None:
            self._prepare(optimizer, device)
        assert self._detector is not None and self._norms is not None
        squares = self._norms.squares([params[index].grad for index in present], present)
        if self._watched:
            squares = torch.cat((squares, size_of(self._watched, device)))
        if self.ranks.size == 1:
            return self._detector.judge(squares, scalar(loss, device))
        return self._detector.judge(squares, None if alone else scalar(loss, device), None if alone else self._sum)

    def _prepare(self, optimizer: Any, device: torch.device) -> None:
        """Get ready for these parameters, from what a checkpoint or a pickle brought where there is any."""
        self.fallbacks = replace(self.fallbacks, groups=optimizer.role_groups())
        self._groups = list(self.fallbacks.groups.values())
        # Under several ranks each has statistics of its own, and all must come to the same verdict.
        floating = [buffer for buffer in self._buffers if buffer.is_floating_point()]
        self._watched = floating if self.ranks.size == 1 else []
        self._names = (*dict.fromkeys(self._groups), *([STATISTICS] if self._watched else []))
        self._snapshots, self._norms = [], GradientNorms(self._groups, device)
        self._readout = Readout((0 if device.type == "cpu" else INTERVAL) if self.interval is None else self.interval)
        self.every = max(self.every, 3 * self._readout.interval)
        self.ladder.window = 8 * self.every
        self._detector = Detector(len(self._names), device)
        if self._waiting is not None and self._waiting["groups"] == list(self._names):
            self._detector.load(self._waiting["detector"])
        self._waiting = None

    def _sum(self, values: Tensor) -> Tensor:
        return self.ranks.sum(values, "the guard's look at the losses")

    @property
    def reads_at_once(self) -> bool:
        """Whether verdicts are on the host already, so that a bad step is left out altogether."""
        return self._readout is not None and self._readout.interval == 0

    # ---- acting ---------------------------------------------------------------------------------

    def admits(self, optimizer: Any, verdicts: Tensor, step: int) -> bool:
        """Whether the coming step may be taken; rolls the optimizer back where it must be.

        Args:
            optimizer: A `GuardedOptimizer`.
            verdicts: What `judge` returned.
            step: 0-based step.
        """
        assert self._readout is not None
        held = self._held_until is not None and step < self._held_until
        for seen_step, row in self._readout.add(step, verdicts):
            sight, words = self._sight(row), seen(self._names, row)
            action = self.ladder.see(seen_step, sight)
            if action == rungs.SKIP and sight.suspicious:
                self._note_skip(seen_step, words)
                held = held or self.reads_at_once  # where verdicts come late, the step was masked when it was taken
            elif action == rungs.RESTORE:
                self._restore(optimizer, step)
            elif action in (rungs.CLIMB, rungs.DEEPER):
                self._drop_unshared()
                if action == rungs.CLIMB:
                    begun = seen_step - (GAP_RISE if sight.risen and not sight.suspicious else GAP_SPIKE)
                    self._climb(optimizer, step, begun, words)
                else:
                    self._go_deeper(optimizer, step, words)
                self._readout.clear()  # what it holds was seen before
                return False
        return not held

    def _sight(self, row: Sequence[int]) -> Sight:
        *channels, high, risen = row
        broken = NONFINITE in channels[:-1]
        sound, is_high = self._knows_loss and channels[-1] == OK and high != NONFINITE, high > OK
        if self.ranks.size > 1 and (broken or self.ladder.probes):
            # These are of this rank's own loss, and all must do the same.
            votes = self.ranks.sum(torch.tensor([float(sound), float(is_high)]), "the guard's look at a bad step")
            sound, is_high = float(votes[0]) == self.ranks.size, 2 * float(votes[1]) > self.ranks.size
        return Sight(any(channels), broken and sound, bool(risen), is_high)

    def keep_buffers(self, accepted: Tensor | bool) -> None:
        """Nothing; takes note of the running statistics after a good batch, puts them back after a bad one."""
        if not self._buffers:
            return
        if not self._sound_buffers:
            self._sound_buffers = [buffer.clone() for buffer in self._buffers]
        pairs = zip(self._buffers, self._sound_buffers, strict=True)
        if isinstance(accepted, Tensor):
            kept = [torch.where(accepted.to(buffer.device), buffer, sound) for buffer, sound in pairs]
            torch._foreach_copy_(self._buffers, kept)  # pyright: ignore[reportPrivateImportUsage]
        elif not accepted:
            torch._foreach_copy_(self._buffers, self._sound_buffers)  # pyright: ignore[reportPrivateImportUsage]
            return
        torch._foreach_copy_(self._sound_buffers, self._buffers)  # pyright: ignore[reportPrivateImportUsage]

    def pin(self) -> None:
        """Nothing; from the next step a snapshot is kept for a window: a new plan has yet to show what it is worth."""
        self._pins_next = True

    def save(self, optimizer: Any, step: int) -> None:
        """Nothing; keeps this moment where one is due: the model is as sound as its gradients are.

        Args:
            optimizer: The optimizer.
            step: 0-based step that is about to be taken.
        """
        assert self._detector is not None
        last = self.ladder.last
        # Right after a climb the new plan has yet to show that it is sound.
        if last is not None and step - last < 2 * self.every:
            return
        if self._pinned is not None and step - self._pinned.step > self.ladder.window:
            self._pinned = None
        if not self._pins_next and self._snapshots and step - self._snapshots[-1].step < self.every * self._spacing:
            return
        if not self._snapshots:
            self._num_kept = snapshots.number_kept(optimizer)
            self._spacing = 1 if self._num_kept == snapshots.NUM_SMALL else 2
        if self._num_kept and self._pins_next:
            self._pinned = snapshots.take(optimizer, step, self._detector, None, self._spacing > 1)
            self._pins_next = False
            return
        if self._num_kept:
            spare = self._snapshots.pop(0) if len(self._snapshots) == self._num_kept else None
            self._snapshots.append(snapshots.take(optimizer, step, self._detector, spare, self._spacing > 1))

    def _drop_unshared(self) -> None:
        """Forget the snapshots that not all ranks have: machines may have less memory, or parts be larger."""
        kept = self._snapshots if self._pinned is None else [*self._snapshots, self._pinned]
        steps = [2 * snapshot.step + (snapshot is self._pinned) for snapshot in kept]
        shared = self.ranks.common(steps, "the guard's choice of a snapshot")
        self._snapshots = [snapshot for snapshot in self._snapshots if 2 * snapshot.step in shared]
        if self._pinned is not None and 2 * self._pinned.step + 1 not in shared:
            self._pinned = None

    def _climb(self, optimizer: Any, step: int, begun: int, words: str) -> None:
        assert self._detector is not None
        plan, rung = optimizer.plan, self.ladder.climb(step)
        if rung is None:
            self._give_up(step, words, "nothing has helped, the run goes on as it is")
            return
        position = self._sound_position(begun)
        if rung == rungs.ROLL_BACK:
            self.ladder.suspects = self._suspects(optimizer, step, position, plan)
            rung = rungs.HALVE if self.ladder.suspects else rung
        base = plan if self._halved_from is None else OptimizerPlan.from_dict(self._halved_from)
        fresh = self.fallbacks.plan(rung, base, self.ladder.suspects)
        while rung not in (rungs.ROLL_BACK, rungs.LAST) and equal(fresh, base):
            rung += 1
            fresh = self.fallbacks.plan(rung, base, self.ladder.suspects)
        self.ladder.rung, self.ladder.halved = rung, rung == rungs.HALVE
        self._halved_from = base.to_dict() if rung == rungs.HALVE else None
        action, done = DONE[rung]
        if rung > rungs.HALVE and self._pinned is not None:
            # The plan was wrong from its start, and so is what was trained with it.
            self._snapshots = [*(kept for kept in self._snapshots if kept.step < self._pinned.step), self._pinned]
            position, self._pinned = len(self._snapshots) - 1, None
        where = self._roll_back(optimizer, step, position, fresh)
        if not where:
            # Nothing is as it was before the fault: by what was ordinary then, every step would be skipped.
            self._detector.forget()
            where = "there is no snapshot to go back to, so what was ordinary is forgotten"
        affected = () if rung in (rungs.EVERYWHERE, rungs.LAST) else self.ladder.suspects
        done = done.format(", ".join(affected) or "all layers")
        self._note(GuardEvent(step, affected, words, action, "; ".join(part for part in (where, done) if part)))

    def _sound_position(self, begun: int) -> int:
        """The position of the newest snapshot from before a fault began, but not of one that led to it again."""
        usable = [index for index, kept in enumerate(self._snapshots) if kept.step <= begun]
        position = usable[-1] if usable else 0
        again = position > 0 and self._snapshots[position].step == self._back_step
        return position - 1 if again else position

    def _roll_back(self, optimizer: Any, step: int, position: int, plan: OptimizerPlan) -> str:
        """Put a snapshot back, newer ones dropped, and a plan in force over it; what was done, in words."""
        num_steps, where = step, ""
        if self._snapshots:
            back = self._snapshots[position]
            snapshots.restore(optimizer, back)
            self._detector, num_steps = back.detector.copy(), back.step
            self._snapshots = self._snapshots[: position + 1]
            self.ladder.probe()
            self._back_step = back.step
            self._held_until = step + rungs.PATIENCE + 1
            where = f"rolled back to step {back.step:,}"
        optimizer.change_plan(plan, [num_steps] * len(optimizer.param_groups))
        return where

    def _go_deeper(self, optimizer: Any, step: int, words: str) -> None:
        words = words or "the loss after the rollback is no better"
        if len(self._snapshots) > 1:
            where = self._roll_back(optimizer, step, len(self._snapshots) - 2, optimizer.plan)
            self._note(GuardEvent(step, self.ladder.suspects, words, "roll back", where))
            return
        if self._halved_from is not None:
            optimizer.change_plan(OptimizerPlan.from_dict(self._halved_from), [step] * len(optimizer.param_groups))
            self.ladder.halved, self._halved_from = False, None
        self._give_up(step, words, "the same at parameters that were sound, so it is the data")

    def _give_up(self, step: int, words: str, done: str) -> None:
        assert self._detector is not None
        self._detector.forget()
        self.ladder.rung, self.ladder.last = 0, step
        self._note(GuardEvent(step, (), words, "accept", done))

    def _suspects(self, optimizer: Any, step: int, position: int, plan: OptimizerPlan) -> tuple[str, ...]:
        deviating = tuple(name for name in self.fallbacks.deviating(plan) if name in self._names)
        if not self._snapshots:
            return deviating
        params = [param for group in optimizer.param_groups for param in group["params"]]
        older = self._snapshots[position - 1] if position else None
        return suspects(params, self._groups, step, self._snapshots[position], older, deviating)

    def _restore(self, optimizer: Any, step: int) -> None:
        if self._halved_from is not None:
            before = OptimizerPlan.from_dict(self._halved_from)
            optimizer.change_plan(before, [step] * len(optimizer.param_groups))
        self.ladder.last, self.ladder.halved, self._halved_from = step, False, None
        self._note(GuardEvent(step, self.ladder.suspects, "calm since the rollback", "restore", "planned rates again"))

    def _note_skip(self, step: int, words: str) -> None:
        if self.events and not self.num_more_events:
            last = self.events[-1]
            if last.action == "skip" and last.step + last.num_steps == step:
                done = f"{last.num_steps + 1} steps in a row skipped"
                self.events[-1] = replace(last, num_steps=last.num_steps + 1, done=done)
                return
        self._note(GuardEvent(step, (), words, "skip", "the step was skipped"))

    def _note(self, event: GuardEvent) -> None:
        if len(self.events) < MAX_EVENTS:
            self.events.append(event)
        else:
            self.num_more_events += 1

    # ---- persistence ----------------------------------------------------------------------------

    @property
    def snapshot_bytes(self) -> int:
        """Bytes that the snapshots take now."""
        kept = self._snapshots if self._pinned is None else [*self._snapshots, self._pinned]
        return sum(snapshot.num_bytes for snapshot in kept)

    def to_json(self) -> str:
        """What a resumed run needs, without the snapshots; waits for the device."""
        value = {
            "ladder": self.ladder.to_dict(),
            "runner_ups": self.fallbacks.to_dict(),
            "events": [event.to_dict() for event in self.events],
            "num_more_events": self.num_more_events,
            "halved_from": self._halved_from,
            "groups": list(self._names),
            "detector": None if self._detector is None else self._detector.to_dict(),
        }
        return json.dumps(value, separators=(",", ":"), allow_nan=False)

    def load(self, text: str) -> None:
        """Nothing; takes over what `to_json` wrote. Snapshots are taken anew from here on."""
        value: Mapping[str, Any] = json.loads(text)
        self.ladder = Ladder.from_dict(value["ladder"])
        self.fallbacks = self.fallbacks.with_runner_ups(value["runner_ups"])
        self.events = event_records.from_dicts(value["events"])
        self.num_more_events, self._halved_from = value["num_more_events"], value["halved_from"]
        self._waiting = None if value["detector"] is None else dict(value)
        self._detector, self._snapshots, self._pinned = None, [], None

    def __getstate__(self) -> dict[str, Any]:
        """State for pickling and deepcopy: all but snapshots, buffers, and what is on its way to the host."""
        dropped = {
            "_snapshots": [],
            "_buffers": [],
            "_watched": [],
            "_sound_buffers": [],
            "_readout": None,
            "_detector": None,
            "_norms": None,
        }
        waiting = self._waiting
        if self._detector is not None:
            waiting = {"groups": list(self._names), "detector": self._detector.to_dict()}
        return {**self.__dict__, **dropped, "_waiting": waiting}


def has_climbed(state_dict: Mapping[str, Any]) -> bool:
    """Whether an optimizer's checkpoint is of a run whose plan the guard has changed."""
    texts = [group.get("guard") for group in state_dict["param_groups"]]
    return any(text is not None and json.loads(text)["ladder"]["rung"] > 0 for text in texts[:1])
