"""What may be learned from before a task is judged: the strict protocol and two milder ones."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from autoopt.meta.runs import TaskFacts

PROTOCOLS: dict[str, str] = {
    "strict": "neither the architecture family nor the data source of a task was learned from",
    "family": "no task of the same architecture family was learned from",
    "source": "no task of the same data source was learned from",
    "larger": "the larger tasks, which are only evaluated on; learned from all others",
}
"""Protocol -> what it keeps apart."""


@dataclass(frozen=True)
class Fold:
    """One split of the tasks.

    Attributes:
        name: What is held out.
        test: Tasks that are judged.
        train: Tasks that may be learned from.
    """

    name: str
    test: tuple[str, ...]
    train: tuple[str, ...]


def folds(tasks: Mapping[str, TaskFacts] | Iterable[TaskFacts], protocol: str) -> list[Fold]:
    """The folds of a protocol; every task is judged in at most one.

    `"strict"`: a fold for each pair of architecture family and data source, learned from the tasks
    that share neither. `"family"` and `"source"`: a fold for each of them, learned from all others.
    `"larger"`: one fold, the evaluation-only tasks; these are in no other protocol, on neither side.

    Args:
        tasks: The tasks.
        protocol: One of `PROTOCOLS`.

    Raises:
        ValueError: If there is no such protocol.
    """
    everything = list(tasks.values()) if isinstance(tasks, Mapping) else list(tasks)
    facts = [task for task in everything if not task.evaluation_only]
    if protocol == "larger":
        test = tuple(task.name for task in everything if task.evaluation_only)
        return [Fold("larger tasks", test, tuple(task.name for task in facts))] if test else []
    if protocol == "strict":
        keys = sorted({(task.family, task.source) for task in facts})
        return [
            Fold(
                f"{family} on {source}",
                tuple(t.name for t in facts if t.family == family and t.source == source),
                tuple(t.name for t in facts if t.family != family and t.source != source),
            )
            for family, source in keys
        ]
    if protocol not in PROTOCOLS:
        raise ValueError(f"there is no protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    values = sorted({getattr(task, protocol) for task in facts})
    return [
        Fold(
            value,
            tuple(t.name for t in facts if getattr(t, protocol) == value),
            tuple(t.name for t in facts if getattr(t, protocol) != value),
        )
        for value in values
    ]
