"""The scripts as modules, for tests of what is in them."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def script(name):
    """The module of a script, loaded from its file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
