"""`autoopt report`: a saved recommendation, or the plan in a checkpoint, in any format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from autoopt.cli.output import print_report, report_options, status

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation

_MAX_DEPTH = 4  # how deep in a checkpoint's dicts an optimizer is looked for

EXAMPLES = """\b
Examples:
  autoopt report report.json
  autoopt report report.json -o report.html
  autoopt report checkpoint.pt --format markdown
"""


@click.command(short_help="Show a saved recommendation or checkpoint in any format.", epilog=EXAMPLES)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@report_options
def report(file: Path, form: str | None, as_json: bool, output: Path | None) -> None:
    """Show a saved recommendation or checkpoint in any format.

    FILE is what recommendation.save("report.json") wrote, or a checkpoint that torch.save wrote and that
    holds an AutoOptimizer's state_dict somewhere. A checkpoint holds the plan in force; the reasons for it
    are in the recommendation alone.
    """
    print_report(read(file), form, as_json, output)


def read(file: Path) -> Recommendation:
    """The recommendation in a file, or one made of the plan in a checkpoint.

    Raises:
        click.ClickException: If the file holds neither; the message says what is wrong with it.
    """
    try:
        start = file.read_bytes()[:64].lstrip()
    except OSError as error:
        raise click.ClickException(f"cannot read {file}: {error.strerror}") from error
    if not start:
        raise click.ClickException(f"{file} is empty")
    return _from_json(file) if start[:1] in b"{[" else _from_checkpoint(file)


def _from_json(file: Path) -> Recommendation:
    from autoopt.report.content import ReportError
    from autoopt.report.recommendation import Recommendation

    try:
        return Recommendation.from_json(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{file} is no text: {error}") from error
    except ReportError as error:
        raise click.ClickException(f"{file}: {error}") from error


def _from_checkpoint(file: Path) -> Recommendation:
    import pickle

    from autoopt.cli.checkpoint import recommendation_of

    with status(f"reading {file.name}"):
        import torch

        try:
            # weights_only: a checkpoint from elsewhere must not run code here.
            content = torch.load(file, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, OSError) as error:
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise click.ClickException(
                f"{file} is neither a recommendation in JSON nor a checkpoint that torch.load reads with "
                f"weights_only=True ({lines[0]})"
            ) from error
    found = list(_optimizers(content, 0))
    if not found:
        raise click.ClickException(
            f"{file} holds no state_dict of an AutoOptimizer; save one with torch.save({{'optimizer': "
            "optimizer.state_dict()}, ...)"
        )
    if len(found) > 1:
        raise click.ClickException(f"{file} holds {len(found)} optimizers; save the one to be reported by itself")
    return recommendation_of(found[0], content)


def _optimizers(value: Any, depth: int) -> Iterator[Mapping[str, Any]]:
    """The state_dicts of AutoOptimizers in a checkpoint."""
    if not isinstance(value, Mapping) or depth > _MAX_DEPTH:
        return
    groups = value.get("param_groups")
    if isinstance(groups, list) and groups and all(isinstance(g, Mapping) and "plan" in g for g in groups):
        yield value
        return
    for item in value.values():
        yield from _optimizers(item, depth + 1)
