"""`autoopt doctor`: what is installed, whether the selector loads, and which fast paths hold here."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from importlib import metadata
from typing import Any

import click

from autoopt.cli.output import print_json, status

PACKAGES = (
    *("autoopt", "torch", "numpy", "scikit-learn", "pandas", "joblib", "pytorch-optimizer"),
    *("jinja2", "rich", "click", "pyarrow", "distributed", "ray"),
)
_REPEATS = 7


@click.command(short_help="Check versions, devices, the selector and the fast paths.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> None:
    """Check versions, devices, the selector and the fast paths.

    The exit code is 1 where something does not work, with a line that says what. A fast path that does not
    hold is no problem, only slower.
    """
    with status("checking (a few seconds)"):
        found = examine()
    if as_json:
        print_json(found)
    else:
        _print(found)
    raise SystemExit(1 if found["problems"] else 0)


def examine() -> dict[str, Any]:
    """What `doctor` prints, as JSON-compatible values."""
    problems: list[str] = []
    return {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "threads": _threads(),
        "selector": _selector(problems),
        "fast_paths": _fast_paths(),
        "problems": problems,
    }


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [{"device": "cpu", "name": platform.processor() or platform.machine()}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        devices.append({"device": f"cuda:{index}", "name": properties.name, "memory_bytes": properties.total_memory})
    if torch.backends.mps.is_available():
        devices.append({"device": "mps", "name": "Apple GPU"})
    return devices


def _threads() -> dict[str, Any]:
    import torch

    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "torch": torch.get_num_threads(),
        "cores_allowed": allowed,
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS"),
    }


def _selector(problems: list[str]) -> dict[str, Any]:
    from autoopt.errors import AutoOptError
    from autoopt.meta import artifact

    try:
        path = artifact.shipped_path()
        predictor = artifact.load(path)
    except AutoOptError as error:
        problems.append(str(error))
        return {"loads": False}
    groups = [group for group in predictor.groups if predictor.is_trusted(group)]
    facts = {key: value for key, value in predictor.info.items() if isinstance(value, str | int | float)}
    return {"loads": True, "path": str(path), "sha256": predictor.sha256, "decides_on": groups, "trained_with": facts}


def _fast_paths() -> dict[str, dict[str, Any]]:
    """Name -> whether the path holds, and the time it takes relative to the plain way; CPU only."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def adamw(**options: Any) -> Callable[[], Any]:
        params = [torch.nn.Parameter(torch.randn(256, 256, generator=generator)) for _ in range(8)]
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        return torch.optim.AdamW(params, **options).step

    matrices = torch.randn(2, 512, 512, generator=generator)
    halves = matrices.to(torch.bfloat16)
    fused, plain, single, half = _median_seconds(
        adamw(fused=True),
        adamw(foreach=False, fused=False),
        lambda: matrices[0] @ matrices[1],
        lambda: halves[0] @ halves[1],
    )
    return {
        "fused AdamW": {"holds": fused < plain, "relative_seconds": fused / plain, "against": "the for-loop"},
        "bfloat16 products": {"holds": half < single, "relative_seconds": half / single, "against": "float32"},
    }


def _median_seconds(*calls: Callable[[], Any]) -> list[float]:
    """The median seconds of each call, taken in turn so that a busy moment hits all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(_REPEATS):
        for call, seconds in zip(calls, times, strict=True):
            call()  # caches and buffers are warm then
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    return [sorted(seconds)[len(seconds) // 2] for seconds in times]


def _print(found: dict[str, Any]) -> None:
    click.echo(f"Python {found['python']}, {found['platform']}")
    click.echo(", ".join(f"{name} {version or 'not installed'}" for name, version in found["versions"].items()))
    for device in found["devices"]:
        memory = f", {device['memory_bytes'] / 2**30:.0f} GiB" if "memory_bytes" in device else ""
        click.echo(f"device {device['device']}: {device['name']}{memory}")
    threads = found["threads"]
    click.echo(
        f"threads: torch uses {threads['torch']} of {threads['cores_allowed']} cores, "
        f"OMP_NUM_THREADS {threads['OMP_NUM_THREADS'] or 'not set'}"
    )
    selector = found["selector"]
    if selector["loads"]:
        click.echo(f"selector: {selector['path']}\n  SHA-256 {selector['sha256']}")
        click.echo("  " + ", ".join(f"{key} {value}" for key, value in selector["trained_with"].items()))
        decides = ", ".join(selector["decides_on"]) or "none: the calibrated default is always kept"
        click.echo(f"  role groups in which it may leave the calibrated default: {decides}")
    for name, path in found["fast_paths"].items():
        verdict = "holds" if path["holds"] else "does not hold"
        click.echo(f"fast path {name}: {verdict} ({path['relative_seconds']:.2g} times the time of {path['against']})")
    for problem in found["problems"]:
        click.echo(f"PROBLEM: {problem}")
    if not found["problems"]:
        click.echo("no problem found")
