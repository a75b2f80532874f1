"""The libraries behind the optional methods, imported when a search names one."""

from __future__ import annotations

import importlib
from typing import Any

from autoopt.errors import AutoOptError


def imported(library: str) -> Any:
    """The library's module.

    Raises:
        AutoOptError: If it is not installed; the message says how to install it.
    """
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise AutoOptError(
            f"this method of search needs {library}, which cannot be imported ({error}): "
            "pip install autoopt[search], or search with method='exact'"
        ) from error
