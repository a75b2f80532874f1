"""`autoopt runs` and `autoopt learn`: what `select(remember=...)` kept, and a selector that learned from it."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoopt.cli.output import harmless, print_json, status

if TYPE_CHECKING:
    from autoopt.meta.own_runs import OwnRun

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command()
@click.argument("folder", type=_FOLDER)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def runs(folder: Path, as_json: bool) -> None:
    """List the own runs that lie in FOLDER, and what each changed."""
    from autoopt.meta.own_runs import read_own_runs, tasks_of

    found = read_own_runs(folder)
    numbers = {run.run: number for number, task in enumerate(tasks_of(found), 1) for run in task}
    rows = [_row(run, numbers.get(run.run)) for run in found]
    if as_json:
        print_json(rows)
        return
    click.echo(f"{'started':20} {'task':16} {'status':11} {'steps':>8} {'loss':>12} {'of':10} change")
    for row in rows:
        loss = "" if row["loss"] is None else f"{row['loss']:.6g}"
        steps = f"{row['step']}/{row['total_steps'] or '?'}"
        click.echo(
            f"{row['started'][:19]:20} {harmless(row['task']):16} {row['status']:11} {steps:>8} {loss:>12} "
            f"{row['measure']:10} {row['change']}"
        )
    click.echo(f"{len(rows)} runs, {len(set(numbers.values()))} tasks", err=True)


@click.command()
@click.argument("folders", nargs=-1, required=True, type=_FOLDER)
@click.option("--output", "-o", required=True, type=click.Path(dir_okay=False, path_type=Path), help="File to write.")
@click.option("--selector", type=click.Path(dir_okay=False, path_type=Path), help="Start from it, not the shipped one.")
def learn(folders: Sequence[Path], output: Path, selector: Path | None) -> None:
    """Write a selector that has learned from the own runs in FOLDERS; use it as select(selector="FILE")."""
    from autoopt.meta import artifact
    from autoopt.meta.own_learning import learned_from
    from autoopt.meta.own_runs import own_dataset, read_own_runs

    found = [run for folder in folders for run in read_own_runs(folder)]
    with status(f"learning from {len(found)} runs"):
        predictor = learned_from(artifact.load(selector), own_dataset(found))
        try:
            digest = artifact.save(predictor, output)
        except OSError as error:
            raise click.ClickException(f"cannot write {output}: {error.strerror}") from error
    info = predictor.info
    click.echo(
        f"{output}: {info['num_own_pairs']} own pairs of {info['num_own_tasks']} tasks, SHA-256 {digest[:12]}", err=True
    )


def _row(run: OwnRun, number: int | None) -> dict[str, Any]:
    name = run.task or "own"
    return {
        "run": run.run,
        "started": run.recorded_at,
        "task": name if number is None else f"{name} {number}",
        "status": run.status,
        "step": run.step,
        "total_steps": run.total_steps,
        "loss": run.outcome if math.isfinite(run.outcome) else None,
        "measure": run.measure,
        "change": _change(run),
        "step_seconds": run.step_seconds,
        "state_bytes": run.state_bytes,
    }


def _change(run: OwnRun) -> str:
    """What the run changed of the calibrated default, in words."""
    from autoopt.meta.pairs import canonical
    from autoopt.optimizers.recipe import calibrated_default

    if not run.recipe:
        return "no recipe says its plan"
    default = json.loads(calibrated_default().to_json())["groups"]
    parts = [
        f"{group}: {config['optimizer']} at {config['lr']:g}"
        for group, config in json.loads(run.recipe)["groups"].items()
        if canonical(config) != canonical(default[group])
    ]
    return ", ".join(parts) or "default"
