"""What the selector fitted on a task's training side chose for it: kept, so that it is recorded once."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from autoopt.errors import MetaDatasetError

FILE_NAME = "selections.json"
SELECTIONS_SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Selection:
    """The choice for one task, made without having seen its fold.

    Attributes:
        plan: Canonical JSON of the chosen recipe.
        default: Canonical JSON of the fold's default, which the choice deviates from.
        changed: Role groups that deviate.
        predicted: Predicted log ratio to the default of each of them.
    """

    plan: str
    default: str
    changed: tuple[str, ...] = ()
    predicted: tuple[float, ...] = ()


@dataclass(frozen=True)
class Selections:
    """The choices for all tasks under each protocol, and what else the folds' selectors showed.

    Attributes:
        by_protocol: Protocol -> task -> choice.
        info: What they were made from.
        predictions: Held-out predictions, for the reliability plot: `group`, `mean`, `std`, `outcome`.
    """

    by_protocol: dict[str, dict[str, Selection]]
    info: dict[str, Any]
    predictions: dict[str, list[Any]]


def selection_text(default: str, plan: str) -> str:
    """The plan text of a run through `select()` that is to end with a choice made beforehand.

    Args:
        default: Canonical JSON of the recipe that warm-up trains with.
        plan: Canonical JSON of the recipe that is chosen.
    """
    value = {"default": json.loads(default), "recipe": json.loads(plan)}
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def save_selections(selections: Selections, folder: str | os.PathLike[str]) -> Path:
    """The file that the choices were written to, atomically; every recipe is written once."""
    recipes: dict[str, int] = {}

    def number(plan: str) -> int:
        return recipes.setdefault(plan, len(recipes))

    chosen = {
        protocol: {
            task: asdict(choice) | {"plan": number(choice.plan), "default": number(choice.default)}
            for task, choice in sorted(by_task.items())
        }
        for protocol, by_task in selections.by_protocol.items()
    }
    value = {
        "schema_version": SELECTIONS_SCHEMA_VERSION,
        "info": selections.info,
        "recipes": [json.loads(plan) for plan in recipes],
        "choices": chosen,
        "predictions": selections.predictions,
    }
    path = Path(folder) / FILE_NAME
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")) + "\n")
    os.replace(temporary, path)
    return path


def load_selections(folder: str | os.PathLike[str]) -> Selections | None:
    """The choices kept in a folder, None where there are none yet.

    Raises:
        MetaDatasetError: If the file is damaged or of another schema.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return None
    try:
        value: Mapping[str, Any] = json.loads(path.read_text())
        if value["schema_version"] != SELECTIONS_SCHEMA_VERSION:
            raise ValueError(f"schema version {value['schema_version']}")
        recipes = [json.dumps(recipe, sort_keys=True, separators=(",", ":")) for recipe in value["recipes"]]
        by_protocol = {
            protocol: {
                task: Selection(
                    recipes[choice["plan"]],
                    recipes[choice["default"]],
                    tuple(choice["changed"]),
                    tuple(choice["predicted"]),
                )
                for task, choice in by_task.items()
            }
            for protocol, by_task in value["choices"].items()
        }
        return Selections(by_protocol, dict(value["info"]), dict(value["predictions"]))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise MetaDatasetError(
            f"{path} is damaged or of another version ({error}); make it again with scripts/evaluate.py --propose"
        ) from error
