"""`autoopt recommend`: the recommendation for a model that the user's code makes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoopt.cli.factory import load_workload, user_code
from autoopt.cli.output import counted, print_report, report_options

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation

EXAMPLES = """\b
Examples:
  autoopt recommend training:make --total-steps 2000
  autoopt recommend training:make --total-steps 2000 -o report.html
  autoopt recommend training:make --total-steps 2000 --objective time
  autoopt recommend torchvision.models:resnet18 --format python
"""


@click.command(short_help="Choose the optimizers of a model that your code makes.", epilog=EXAMPLES)
@click.argument("target", metavar="MODULE:FACTORY")
@click.option("--total-steps", type=click.IntRange(min=1), help="Optimizer steps of the whole run.")
@click.option("--warmup-steps", type=click.IntRange(min=1), help="Steps of the profile.")
@click.option(
    "--candidate", "candidates", multiple=True, metavar="NAME", help="An optimizer that may be used; repeat for more."
)
@click.option(
    "--objective",
    type=click.Choice(["loss", "time", "memory"]),
    default="loss",
    show_default=True,
    help="What the choice is to be good for.",
)
@click.option("--max-state-bytes", type=click.IntRange(min=0), help="Bytes of optimizer state not to be exceeded.")
@click.option("--selector", metavar="FILE", help="Another selector than the shipped one, or 'default' for none.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the sampled statistics.")
@report_options
def recommend(
    target: str,
    total_steps: int | None,
    warmup_steps: int | None,
    candidates: tuple[str, ...],
    objective: str,
    max_state_bytes: int | None,
    selector: str | None,
    seed: int,
    form: str | None,
    as_json: bool,
    output: Path | None,
) -> None:
    """Choose the optimizers of a model that your code makes.

    FACTORY is a function without arguments in a module that can be imported from here. It returns
    (model, batches, loss_fn), with loss_fn(model, batch) a scalar tensor: the model is trained on the
    batches for a few steps, its gradients are measured, and it is put back as it was. From a factory
    that returns a model alone, the calibrated default for it is shown: nothing can be measured then.
    """
    workload = load_workload(target)
    options: dict[str, Any] = {
        "total_steps": total_steps,
        "warmup_steps": warmup_steps,
        "candidates": list(candidates) or None,
        "objective": objective,
        "max_state_bytes": max_state_bytes,
        "selector": selector,
        "seed": seed,
    }
    print_report(_recommendation(workload.model, workload.batches, workload.loss_fn, options), form, as_json, output)


def _recommendation(model: Any, batches: Any, loss_fn: Any, options: dict[str, Any]) -> Recommendation:
    import autoopt
    from autoopt.arguments import default_warmup_steps

    if batches is None:
        return _checked(lambda: autoopt.recommend(model, **options))
    steps = options["warmup_steps"] or default_warmup_steps(options["total_steps"])
    watched = counted(batches, steps, "profiling, step")
    with user_code("the profile"):
        return _checked(lambda: autoopt.recommend(model, batches=watched, loss_fn=loss_fn, **options))


def _checked(make: Any) -> Recommendation:
    """What `make` returns; a wrong argument of the command line is a usage error."""
    try:
        return make()
    except ValueError as error:
        from autoopt.errors import AutoOptError

        if isinstance(error, AutoOptError) or not _from_api(error):
            raise
        raise click.UsageError(str(error)) from error


def _from_api(error: BaseException) -> bool:
    """Whether autoopt itself refused an argument, rather than the user's code failing inside."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        last, trace = trace.tb_frame.f_globals.get("__name__", ""), trace.tb_next
    return last in ("autoopt.api", "autoopt.arguments", "autoopt.selection")
