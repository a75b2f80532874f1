"""MLflow: the report as artifacts of a run, its facts as tags."""

from __future__ import annotations

from typing import TYPE_CHECKING

from autoopt.errors import AutoOptError
from autoopt.integrations.facts import facts
from autoopt.integrations.images import layers_image
from autoopt.report.recommendation import Recommendation

if TYPE_CHECKING:
    from mlflow import MlflowClient


class MlflowTracker:
    """A `DecisionCallback` that adds the report to an MLflow run.

    Artifacts `autoopt/recommendation.html`, `.json` and `autoopt/layers.png`; tags `autoopt/...` with the
    facts. Tags and no parameters, since a resumed run may decide again and parameters never change.

    Args:
        run_id: The run; the active one at the time of the decision where None.
        client: The client that reaches the run; one of the current tracking URI where None.
        name: What the names in MLflow start with.
    """

    def __init__(self, run_id: str | None = None, client: MlflowClient | None = None, name: str = "autoopt") -> None:
        self.run_id = run_id
        self.client = client
        self.name = name

    def __call__(self, recommendation: Recommendation, step: int) -> None:
        """Add the recommendation to the run.

        Raises:
            AutoOptError: If no run was given and none is active.
        """
        import mlflow

        client = self.client if self.client is not None else mlflow.MlflowClient()
        run_id = self.run_id
        if run_id is None:
            active = mlflow.active_run()
            if active is None:
                raise AutoOptError(
                    "no MLflow run is active at the time of the decision: pass MlflowTracker(run_id=...), or train "
                    "inside `with mlflow.start_run():`"
                )
            run_id = active.info.run_id
        for key, value in {**facts(recommendation), "autoopt/step": step}.items():
            client.set_tag(run_id, key.replace("autoopt", self.name, 1), value)
        client.log_text(run_id, recommendation.to_html(), f"{self.name}/recommendation.html")
        client.log_text(run_id, recommendation.to_json(indent=1), f"{self.name}/recommendation.json")
        client.log_image(run_id, layers_image(recommendation), f"{self.name}/layers.png")
