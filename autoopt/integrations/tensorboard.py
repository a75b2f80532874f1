"""TensorBoard: the report as text, its pictures as images."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from autoopt.integrations.images import layers_image, statistics_image
from autoopt.report.recommendation import Recommendation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardTracker:
    """A `DecisionCallback` that writes the text `autoopt/recommendation` and two images.

    Args:
        writer: A `SummaryWriter`, or the folder of a run, where a file of its own is added.
        name: What the names in TensorBoard start with.
    """

    def __init__(self, writer: SummaryWriter | str | os.PathLike[str], name: str = "autoopt") -> None:
        self.writer = writer
        self.name = name

    def __call__(self, recommendation: Recommendation, step: int) -> None:
        """Write the recommendation at a step."""
        if not isinstance(self.writer, str | os.PathLike):
            self._write(self.writer, recommendation, step)
            return
        from torch.utils.tensorboard import SummaryWriter

        with SummaryWriter(os.fspath(self.writer)) as writer:
            self._write(writer, recommendation, step)

    def _write(self, writer: SummaryWriter, recommendation: Recommendation, step: int) -> None:
        writer.add_text(f"{self.name}/recommendation", recommendation.to_markdown(), step)
        writer.add_image(f"{self.name}/layers", layers_image(recommendation), step, dataformats="HWC")
        statistics = statistics_image(recommendation)
        if statistics is not None:
            writer.add_image(f"{self.name}/statistics", statistics, step, dataformats="HWC")
        writer.flush()
