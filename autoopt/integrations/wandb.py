"""Weights & Biases: the report as a page, the plan as a table, its facts in the run's summary."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from autoopt.errors import AutoOptError
from autoopt.integrations.facts import facts
from autoopt.integrations.images import layers_image
from autoopt.report.recommendation import Recommendation

if TYPE_CHECKING:
    from wandb import Run

_COLUMNS = ("layer", "role", "shape", "optimizer", "rate", "deviates", "predicted change of log loss", "reason")


class WandbTracker:
    """A `DecisionCallback` that adds the report to a W&B run.

    It logs `autoopt/report`, `autoopt/layers` and `autoopt/plan`, and puts the facts into the summary. The
    run's own step is not moved: what is logged joins whatever the run logs next.

    Args:
        run: The run; the active one at the time of the decision where None.
        name: What the names in W&B start with.
    """

    def __init__(self, run: Run | None = None, name: str = "autoopt") -> None:
        self.run = run
        self.name = name

    def __call__(self, recommendation: Recommendation, step: int) -> None:
        """Add the recommendation to the run.

        Raises:
            AutoOptError: If no run was given and none is active.
        """
        import wandb

        run = self.run if self.run is not None else wandb.run
        if run is None:
            raise AutoOptError(
                "no W&B run is active at the time of the decision: call wandb.init() before, or pass WandbTracker(run)"
            )
        table = wandb.Table(columns=list(_COLUMNS), data=_rows(recommendation))
        logged = {
            f"{self.name}/report": wandb.Html(recommendation.to_html(), inject=False),
            f"{self.name}/layers": wandb.Image(layers_image(recommendation)),
            f"{self.name}/plan": table,
        }
        run.log(logged, commit=False)
        values = {**facts(recommendation), "autoopt/step": step}
        run.summary.update({key.replace("autoopt", self.name, 1): value for key, value in values.items()})


def _rows(recommendation: Recommendation) -> list[list[Any]]:
    return [
        [
            layer.name,
            layer.role,
            "\u00d7".join(map(str, layer.shape)) or "scalar",
            layer.config.optimizer,
            layer.config.lr,
            layer.deviates,
            layer.predicted_gain,
            layer.reason,
        ]
        for layer in recommendation.layers
    ]
