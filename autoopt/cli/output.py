"""What commands print: text, JSON, a file, and progress for those who watch."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation

T = TypeVar("T")

FORMATS = ("text", "markdown", "json", "html", "python")
"""The formats of a report."""

PATIENCE_SECONDS = 1.0
"""Progress is shown from here on: what is quicker needs none."""


def report_options(command: Any) -> Any:
    """The options `--format`, `--json` and `--output` of a command that prints a report."""
    for option in (
        click.option(
            "--output",
            "-o",
            type=click.Path(dir_okay=False, path_type=Path),
            help="Write the report to this file; its suffix tells the format: .html, .md, .json, .txt or .py.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print JSON; the same as --format json."),
        click.option("--format", "form", type=click.Choice(FORMATS), help="Format of what is printed (default: text)."),
    ):
        command = option(command)
    return command


def print_report(recommendation: Recommendation, form: str | None, as_json: bool, output: Path | None) -> None:
    """Print a recommendation, or write it to a file.

    Raises:
        click.ClickException: If the file cannot be written.
        click.UsageError: If the options contradict each other.
    """
    if as_json and form not in (None, "json"):
        raise click.UsageError(f"--json and --format {form} contradict each other")
    if output is not None:
        if form is not None or as_json:
            raise click.UsageError("the suffix of --output tells the format: leave --format and --json out")
        try:
            recommendation.save(output)
        except OSError as error:
            raise click.ClickException(f"cannot write {output}: {error.strerror}") from error
        click.echo(f"{recommendation.headline}\nwritten to {output}", err=True)
        return
    if form is None and not as_json and sys.stdout.isatty():
        from rich.console import Console

        Console().print(recommendation)
        return
    writers = {
        "text": recommendation.to_text,
        "markdown": recommendation.to_markdown,
        "json": lambda: recommendation.to_json(indent=1),
        "html": recommendation.to_html,
        "python": recommendation.to_python,
    }
    click.echo(writers["json" if as_json else form or "text"]().rstrip("\n"))


def harmless(text: object) -> str:
    r"""The text with characters that act on a terminal, such as escapes, written out.

    >>> print(harmless("a\x1b[31m"))
    a\x1b[31m
    """
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in str(text))


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def counted(items: Iterable[T], total: int, label: str) -> Iterator[T]:
    """The items; on a terminal, how many of them were taken is shown on standard error.

    Args:
        items: What is passed on.
        total: How many of them will be taken.
        label: What is being done.
    """
    if not sys.stderr.isatty():
        yield from items
        return
    started, said = time.monotonic(), False
    try:
        for done, item in enumerate(items):
            if time.monotonic() - started > PATIENCE_SECONDS:
                click.echo(f"\r{label}: {done} of {total}", nl=False, err=True)
                said = True
            yield item
    finally:
        if said:
            click.echo("\r\x1b[K", nl=False, err=True)


@contextlib.contextmanager
def status(text: str) -> Iterator[None]:
    """A context that shows on a terminal what is being done."""
    shown = sys.stderr.isatty()
    if shown:
        click.echo(text, nl=False, err=True)
    try:
        yield
    finally:
        if shown:
            click.echo("\r\x1b[K", nl=False, err=True)
