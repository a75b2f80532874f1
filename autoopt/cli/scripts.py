"""`autoopt record`, `train` and `evaluate`: the scripts of a checkout, under one name."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click

import autoopt
from autoopt.cli.output import print_json

FOLDER = Path(autoopt.__file__).parent.parent / "scripts"
"""Where the scripts lie in a checkout."""

_NEEDS_SOURCE = "Runs scripts/{}.py, which is in the source tree of autoopt and not in the installed package"
_JSON_HELP = "With --json, a summary is printed as JSON, and what the script prints goes to standard error."


def _script(name: str) -> ModuleType:
    """The script as a module.

    Raises:
        click.ClickException: If autoopt was installed without its source tree.
    """
    path = FOLDER / f"{name}.py"
    if not path.is_file():
        raise click.ClickException(f"{_NEEDS_SOURCE.format(name)} (pip install -e '.[record]')")
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # a dataclass in it looks itself up there
    spec.loader.exec_module(module)
    return module


def _run(command: str, name: str, arguments: Sequence[str], summary: Callable[[list[str]], Any]) -> None:
    """Run a script with these arguments and exit with its code.

    Args:
        command: Name of the command.
        name: Name of the script.
        arguments: The command's arguments; `--json` is ours, all others are the script's.
        summary: From the script's arguments, what `--json` prints after it.
    """
    passed = [argument for argument in arguments if argument != "--json"]
    if {"-h", "--help"} & set(passed):
        click.echo(f"{_NEEDS_SOURCE.format(name)}.\n{_JSON_HELP}\n")
        if not (FOLDER / f"{name}.py").is_file():
            sys.exit(0)
    main = _script(name).main
    before = sys.argv[0]
    sys.argv[0] = f"autoopt {command}"  # what argparse calls the program
    try:
        if "--json" in arguments:
            with contextlib.redirect_stdout(sys.stderr):
                code = main(passed)
            print_json({"exit_code": code} | (summary(passed) if code in (0, 3) else {}))
        else:
            code = main(passed)
    finally:
        sys.argv[0] = before
    sys.exit(code)


def _value(arguments: list[str], name: str, default: str) -> str:
    """The value of an option among a script's arguments."""
    for index, argument in enumerate(arguments):
        if argument == name and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2]
    return default


def _passing(command: str, short_help: str) -> Callable[[Callable[..., None]], click.Command]:
    """A decorator that makes a command which passes all of its arguments on, `--help` included."""
    settings: dict[str, Any] = {"ignore_unknown_options": True, "help_option_names": []}

    def decorate(function: Callable[..., None]) -> click.Command:
        function = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)(function)
        return click.command(command, short_help=short_help, context_settings=settings)(function)

    return decorate


@_passing("record", "Record training runs for the meta-dataset.")
def record(arguments: tuple[str, ...]) -> None:
    """Record training runs for the meta-dataset: scripts/build_meta_dataset.py."""

    def summary(passed: list[str]) -> dict[str, Any]:
        from autoopt.meta.dataset import MetaDataset

        folder = _value(passed, "--folder", "meta_data")
        trials = MetaDataset.read(folder).trials
        return {"folder": folder, "num_trials": len(trials), "num_tasks": int(trials["task"].nunique())}

    _run("record", "build_meta_dataset", arguments, summary)


@_passing("train", "Fit the selector on the recorded runs.")
def train(arguments: tuple[str, ...]) -> None:
    """Fit the selector on the recorded runs: scripts/train_selector.py."""

    def summary(passed: list[str]) -> dict[str, Any]:
        from autoopt.meta import artifact

        path = _value(passed, "--output", "meta_data/selector.npz")
        predictor = artifact.load(path)
        return {"output": path, "sha256": predictor.sha256, "info": predictor.info}

    _run("train", "train_selector", arguments, summary)


@_passing("evaluate", "Score the selector on held-out tasks.")
def evaluate(arguments: tuple[str, ...]) -> None:
    """Score the selector on held-out tasks: scripts/evaluate.py."""

    def summary(passed: list[str]) -> dict[str, Any]:
        default = Path(_value(passed, "--folder", "meta_data")) / "evaluation.json"
        path = _value(passed, "--output", str(default))
        if path == "-":
            return {"output": None}
        return {"output": path, "evaluation": json.loads(Path(path).read_text(encoding="utf-8"))}

    _run("evaluate", "evaluate", arguments, summary)
