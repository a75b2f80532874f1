"""Loads what the user's code makes: the model, and where it is given, batches and a loss."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import click

from autoopt.cli.output import harmless, status

RETURNS = "a torch.nn.Module, or a tuple (model, batches, loss_fn)"


@dataclass(frozen=True)
class Workload:
    """What a factory made.

    Attributes:
        model: The model.
        batches: Batches to profile on, or None.
        loss_fn: `loss_fn(model, batch)`, or None.
    """

    model: Any
    batches: Iterable[Any] | None = None
    loss_fn: Callable[[Any, Any], Any] | None = None


def load_workload(target: str) -> Workload:
    """What the factory that `target` names returns; a model that it names is taken as it is.

    The current folder can be imported from, as with `python -m`.

    Args:
        target: `"module:factory"`.

    Raises:
        click.BadParameter: If `target` is not written so.
        click.ClickException: If it cannot be imported or called, or returns something else; the message
            says where in the user's code it failed.
    """
    module_name, colon, path = target.partition(":")
    if not (colon and module_name and path):
        raise click.BadParameter(f"expected module:factory, such as mypackage.training:make, got {harmless(target)!r}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    made: Any = _imported(module_name)
    for part in path.split("."):
        if not hasattr(made, part):
            raise click.ClickException(f"module {module_name!r} has no {harmless(path)!r}")
        made = getattr(made, part)
    with status("loading torch"):
        import torch

    if not isinstance(made, torch.nn.Module):
        if not callable(made):
            raise click.ClickException(f"{target} is {_article(made)}; expected a function that returns {RETURNS}")
        with user_code(f"{target}()"):
            made = made()
    if isinstance(made, torch.nn.Module):
        return Workload(made)
    if isinstance(made, tuple) and len(made) == 3 and isinstance(made[0], torch.nn.Module):
        if not callable(made[2]):
            raise click.ClickException(f"{target}() returned {_article(made[2])} as loss_fn; expected a function")
        if not isinstance(made[1], Iterable):
            raise click.ClickException(f"{target}() returned {_article(made[1])} as batches; expected an iterable")
        return Workload(*made)
    raise click.ClickException(f"{target}() returned {_article(made)}; expected {RETURNS}")


@contextlib.contextmanager
def user_code(what: str) -> Iterator[None]:
    """A context whose errors become one line that says where in the user's code they arose.

    Args:
        what: What was run, for the message.
    """
    from autoopt.errors import AutoOptError

    try:
        yield
    except (AutoOptError, click.ClickException):
        raise
    except SystemExit as error:
        raise click.ClickException(f"{what} ended the process (sys.exit({error.code!r}))") from error
    except Exception as error:
        raise click.ClickException(f"{what} raised {_described(error)}") from error


def _imported(name: str) -> Any:
    try:
        with user_code(f"importing {name!r}"):
            return importlib.import_module(name)
    except click.ClickException as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            raise click.ClickException(
                f"there is no module {cause.name!r} here ({os.getcwd()}) or among the installed packages"
            ) from cause
        raise


def _described(error: BaseException) -> str:
    """The error and the place in the code that raised it, in one line."""
    frames = traceback.extract_tb(error.__traceback__)
    # The deepest frame of the user's own code says more than one inside torch.
    own = [frame for frame in frames if "site-packages" not in frame.filename and not _is_ours(frame.filename)]
    place = ""
    if isinstance(error, SyntaxError) and error.filename:
        place = f" ({error.filename}, line {error.lineno})"
    elif own:
        place = f" ({own[-1].filename}, line {own[-1].lineno})"
    message = harmless(error) or "without a message"
    return f"{type(error).__name__}: {message}{place}; see where with autoopt --traceback ..."


def _is_ours(filename: str) -> bool:
    folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return filename.startswith((folder, "<frozen"))


def _article(value: Any) -> str:
    """What a value is: `an int`, `a class`, `None`."""
    if value is None:
        return "None"
    if isinstance(value, tuple):
        return f"a tuple of {len(value)} ({', '.join(type(item).__name__ for item in value)})"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
