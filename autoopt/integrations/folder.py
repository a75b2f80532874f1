"""Writes the report into a folder, such as that of a run."""

from __future__ import annotations

import os
from pathlib import Path

from autoopt.report.recommendation import Recommendation


class ReportFolder:
    """A `DecisionCallback` that writes the report as a page and as JSON.

    Args:
        folder: Made with its parents where it does not exist.
        name: File name without suffix; files of that name are replaced.
    """

    def __init__(self, folder: str | os.PathLike[str], name: str = "autoopt") -> None:
        self.folder = Path(folder)
        self.name = name

    def __call__(self, recommendation: Recommendation, step: int) -> None:
        """Write both files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for suffix in ("html", "json"):
            recommendation.save(self.folder / f"{self.name}.{suffix}")
