"""Chooses and configures the optimizer of every layer of a PyTorch model, and says why.

Names are imported on first use, so that `import autoopt` (and the command line) stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autoopt.api import recommend, select
    from autoopt.architecture import Architecture, LayerInfo, describe
    from autoopt.errors import (
        ArtifactError,
        AutoOptError,
        CheckpointError,
        DistributedError,
        MetaDatasetError,
        ModelError,
        PlanError,
        ProfileError,
        TaskError,
    )
    from autoopt.optimizers.auto_optimizer import AutoOptimizer
    from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
    from autoopt.optimizers.recipe import Recipe
    from autoopt.optimizers.schedule import Schedule
    from autoopt.report.recommendation import Recommendation
    from autoopt.run_recorder import Remember

__version__ = "0.1.0"

__all__ = [
    "Architecture",
    "ArtifactError",
    "AutoOptError",
    "AutoOptimizer",
    "CheckpointError",
    "DistributedError",
    "LayerInfo",
    "MetaDatasetError",
    "ModelError",
    "OptimizerConfig",
    "OptimizerPlan",
    "PlanError",
    "ProfileError",
    "Recipe",
    "Recommendation",
    "Remember",
    "Schedule",
    "TaskError",
    "describe",
    "recommend",
    "select",
]

_HOMES = {
    "autoopt.architecture": ("Architecture", "LayerInfo", "describe"),
    "autoopt.errors": (
        "ArtifactError",
        "AutoOptError",
        "CheckpointError",
        "DistributedError",
        "MetaDatasetError",
        "ModelError",
        "PlanError",
        "ProfileError",
        "TaskError",
    ),
    "autoopt.optimizers.auto_optimizer": ("AutoOptimizer",),
    "autoopt.optimizers.plan": ("OptimizerConfig", "OptimizerPlan"),
    "autoopt.optimizers.recipe": ("Recipe",),
    "autoopt.optimizers.schedule": ("Schedule",),
    "autoopt.api": ("recommend", "select"),
    "autoopt.report.recommendation": ("Recommendation",),
    "autoopt.run_recorder": ("Remember",),
}


def __getattr__(name: str) -> Any:
    """Import a public name from the module that defines it."""
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'autoopt' has no attribute {name!r}")


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
