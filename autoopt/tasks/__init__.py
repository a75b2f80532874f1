"""The suite of training tasks that trials are recorded on, and the way to add one's own.

Every domain module exposes `tasks() -> Iterable[Task]`. They are imported only when asked for, and
building a task is what loads its data, so listing the suite is cheap and needs no data package.
"""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Callable, Iterable
from typing import Any

from autoopt.errors import TaskError
from autoopt.tasks.base import Batch, Task, TaskInstance
from autoopt.tasks.check import check_task

__all__ = [
    "Batch",
    "DOMAINS",
    "Task",
    "TaskInstance",
    "all_tasks",
    "check_task",
    "get_task",
    "load_tasks",
]

DOMAINS = (
    "autoopt.tasks.vision",
    "autoopt.tasks.autoencoder",
    "autoopt.tasks.tabular",
    "autoopt.tasks.survival",
    "autoopt.tasks.series",
    "autoopt.tasks.synthetic",
    "autoopt.tasks.text",
    "autoopt.tasks.recsys",
    "autoopt.tasks.graph",
)
"""The modules whose `tasks()` make the suite."""


def all_tasks() -> tuple[Task, ...]:
    """The whole suite, in a fixed order, evaluation-only and demo tasks included.

    Raises:
        TaskError: If two tasks have the same name.
    """
    return load_tasks(DOMAINS)


def get_task(name: str) -> Task:
    """The task of the suite with this name.

    Raises:
        TaskError: If there is none; the message lists the closest names.
    """
    by_name = {task.name: task for task in all_tasks()}
    if name in by_name:
        return by_name[name]
    close = difflib.get_close_matches(name, by_name, n=5, cutoff=0.4)
    hint = f"did you mean {', '.join(close)}?" if close else "autoopt.tasks.all_tasks() lists them"
    raise TaskError(f"there is no task named {name!r}; {hint}")


def load_tasks(module_names: Iterable[str]) -> tuple[Task, ...]:
    """The tasks of the named modules, in order, each name once.

    Args:
        module_names: Import names of modules that expose `tasks() -> Iterable[Task]`, such as
            `["my_project.tasks"]`.

    Raises:
        TaskError: If a module cannot be imported, exposes no `tasks()`, yields something that is
            not a `Task`, or repeats a name.
    """
    if isinstance(module_names, str):
        raise TaskError(f"load_tasks takes a sequence of module names, got the string {module_names!r}")
    owners: dict[str, str] = {}
    collected: list[Task] = []
    for module_name in module_names:
        for task in _tasks_of(module_name):
            if task.name in owners:
                raise TaskError(
                    f"two tasks are named {task.name!r}, in {owners[task.name]} and {module_name}; rename one"
                )
            owners[task.name] = module_name
            collected.append(task)
    return tuple(collected)


def _tasks_of(module_name: str) -> list[Any]:
    """The tasks of one module, checked for their type."""
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise TaskError(f"the task module {module_name!r} cannot be imported: {error}") from error
    factory: Callable[[], Iterable[Any]] | None = getattr(module, "tasks", None)
    if factory is None or not callable(factory):
        raise TaskError(f"the task module {module_name!r} must expose a function tasks() -> Iterable[Task]")
    found = list(factory())
    for task in found:
        if not isinstance(task, Task):
            raise TaskError(f"tasks() of {module_name!r} gave a {type(task).__name__}, expected a Task")
    return found
