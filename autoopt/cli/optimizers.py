"""`autoopt optimizers`: the catalog, filtered, with memory and paper."""

from __future__ import annotations

import math
import shutil
import textwrap
from typing import Any

import click

from autoopt.cli.output import print_json
from autoopt.optimizers.catalog import ALL_GROUPS, CATALOG, OptimizerInfo, get

_BYTES = 4  # state is kept in float32
_INDENT = " " * 12
_GRADIENTS = {"dense": "dense", "sparse": "sparse", "both": "dense or sparse"}


class ShapeType(click.ParamType):
    """A tensor's shape written as `4096x1024`."""

    name = "shape"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """The shape as integers."""
        if isinstance(value, tuple):
            return value
        sizes = str(value).lower().split("x")
        if not all(size.isascii() and size.isdigit() and int(size) for size in sizes):
            self.fail(f"expected sizes joined by x, such as 4096x1024, got {value!r}", param, ctx)
        return tuple(map(int, sizes))


EXAMPLES = """\b
Examples:
  autoopt optimizers --role embedding --sparse
  autoopt optimizers muon soap --shape 4096x1024
"""


@click.command(short_help="List the optimizers that a plan may name.", epilog=EXAMPLES)
@click.argument("names", nargs=-1)
@click.option("--role", type=click.Choice(ALL_GROUPS), help="Only those for this role group.")
@click.option("--family", help="Only those whose rate is measured against this reference: adam, sgd, spectral, ...")
@click.option("--sparse/--dense", "sparse", default=None, help="Only those that take sparse (dense) gradients.")
@click.option(
    "--shape", type=ShapeType(), default=(1024, 1024), help="Tensor that memory is counted for (default 1024x1024)."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def optimizers(
    names: tuple[str, ...],
    role: str | None,
    family: str | None,
    sparse: bool | None,
    shape: tuple[int, ...],
    as_json: bool,
) -> None:
    """List the optimizers that a plan may name, or only NAMES.

    Memory is the float32 state for each element of a tensor of the given shape, beside the parameter and
    its gradient.
    """
    families = sorted({info.family for info in CATALOG})
    if family is not None and family not in families:
        raise click.BadParameter(f"{family!r} is none of {', '.join(families)}", param_hint="--family")
    rows = [
        describe(info, shape)
        for info in _named(names)
        if (role is None or role in info.groups)
        and (family is None or info.family == family)
        and (sparse is None or info.gradients in ("both", "sparse" if sparse else "dense"))
    ]
    if as_json:
        print_json(rows)
    elif rows:
        _print_table(rows, shape)
    else:
        click.echo("No optimizer of the catalog fits these filters.")


def describe(info: OptimizerInfo, shape: tuple[int, ...]) -> dict[str, Any]:
    """One row of the catalog as JSON-compatible values."""
    fits = len(shape) >= info.min_ndim
    elements = math.prod(shape)
    size = _BYTES * info.state_numel(shape, info.hyperparameters) / elements if fits else None
    return {
        "name": info.name,
        "title": info.title,
        "family": info.family,
        "roles": list(info.groups),
        "gradients": info.gradients,
        "state_bytes_per_parameter": size,
        "fused_on": list(info.fused),
        "capturable": info.capturable,
        "hyperparameters": {
            key: list(value) if isinstance(value, tuple) else value for key, value in info.hyperparameters.items()
        },
        "implementation": info.factory.replace(":", "."),
        "description": info.description,
        "paper": info.paper,
    }


def _named(names: tuple[str, ...]) -> tuple[OptimizerInfo, ...]:
    return tuple(get(name) for name in dict.fromkeys(names)) if names else CATALOG


def _print_table(rows: list[dict[str, Any]], shape: tuple[int, ...]) -> None:
    width = max(40, min(shutil.get_terminal_size().columns, 110))
    for row in rows:
        roles = "all roles" if tuple(row["roles"]) == ALL_GROUPS else ", ".join(row["roles"])
        size = row["state_bytes_per_parameter"]
        memory = f"needs {get(row['name']).min_ndim} dimensions" if size is None else f"{size:.3g} bytes a parameter"
        facts = [f"{row['family']} rates", f"{_GRADIENTS[row['gradients']]} gradients", memory, roles]
        click.echo(f"{row['name']:<11} {', '.join(facts)}")
        for text in (row["description"], row["paper"]):
            click.echo(textwrap.fill(text, width, initial_indent=_INDENT, subsequent_indent=_INDENT))
    click.echo(f"Bytes are those of float32 state beside a tensor of {'x'.join(map(str, shape))}.")
