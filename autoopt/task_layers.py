"""The layers of a task's model, and what a recipe says on them: described once a task, however often it is asked."""

from __future__ import annotations

from functools import lru_cache

from autoopt.architecture import LayerInfo, describe
from autoopt.optimizers.recipe import Recipe
from autoopt.tasks.base import Task


@lru_cache(maxsize=1000)
def layers_of_task(task: Task) -> tuple[LayerInfo, ...]:
    """The description of every parameter of a task's model, as seed 0 builds it."""
    return describe(task.build(0).model).layers


def on_task(recipe: Recipe, task: Task) -> Recipe:
    """A recipe without what changes nothing on a task: the text that its runs are recorded under."""
    return recipe.on(layers_of_task(task), task.budget_steps)
