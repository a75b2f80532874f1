"""A planned optimizer whose run can be remembered: what it tells the recorder, and when."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from autoopt.architecture import LayerInfo
from autoopt.optimizers.guarded_optimizer import GuardedOptimizer
from autoopt.optimizers.recipe import calibrated_default
from autoopt.optimizers.recipe_of_plan import recipe_of
from autoopt.run_recorder import Remember, RunRecorder

_RUN_ID = "run_id"


class RememberedOptimizer(GuardedOptimizer):
    """Tells a `RunRecorder` of every step, where it was given one; otherwise it is a `GuardedOptimizer`.

    `AutoOptimizer` documents the arguments.
    """

    def observe_validation(self, loss: Tensor | float) -> None:
        """Tell the run's memory (`remember=`) a validation loss; it synchronises, and does nothing without one.

        The best of them is the outcome of the run. Without any, the mean training loss of the run's last
        tenth stands in, and such runs are compared among themselves only.

        Args:
            loss: Mean loss over the validation data, the same data in all runs of a task.
        """
        if (recorder := self._recorder) is not None:
            recorder.observe_validation(loss, self.param_groups[0]["step"])

    def finish(self) -> None:
        """Write what the run's memory (`remember=`) still holds; it does nothing without one.

        Without this call the same happens when the optimizer is collected or the interpreter exits. A run
        whose `total_steps` are unknown counts as over only once this, or that, has happened.
        """
        if (recorder := self._recorder) is not None:
            recorder.finish()

    def keep_in(self, recorder: RunRecorder) -> None:
        """Have this run remembered by a recorder, which is finished when this optimizer is gone."""
        self._run["recorder"] = recorder
        weakref.finalize(self, recorder.finish)

    def remember_plan(self, remember: Remember, layers: Sequence[LayerInfo], model_name: str) -> None:
        """Have this run of a fixed plan remembered.

        Args:
            remember: Where and how.
            layers: Description of every parameter.
            model_name: Class name of the model.
        """
        plan = self.plan
        recorder = RunRecorder(remember, layers, plan.schedule.total_steps, model_name=model_name)
        recipe = recipe_of(plan, layers, calibrated_default().over(plan.schedule.total_steps))
        recorder.decided("" if recipe is None else recipe.to_json(), (), "plan", 0.0)
        self.keep_in(recorder)

    @property
    def _recorder(self) -> RunRecorder | None:
        return self._run.get("recorder")

    def _advance(self, loss: Any, traced: bool = False) -> list[Any]:
        recorder = self._recorder
        if recorder is None:
            return super()._advance(loss, traced)
        before, told = self.param_groups[0]["step"], recorder.count
        bound = super()._advance(loss, traced)
        step = self.param_groups[0]["step"]
        if step > before:  # not where only state was initialised
            if loss is not None and recorder.count == told:
                recorder.observe(loss)
            if self.phase != "warmup":
                recorder.trained_with([group["plan"] for group in self.param_groups])
            recorder.stepped(step, self.state)
        return bound

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed run needs: state, multipliers, plan, phase and step."""
        result = super().state_dict()
        if (recorder := self._recorder) is not None:
            for group in result["param_groups"]:
                group[_RUN_ID] = recorder.run
        return result

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a checkpoint, its plan, its phase and the run that it belongs to included."""
        super().load_state_dict(state_dict)
        runs = [group.pop(_RUN_ID, None) for group in self.param_groups]
        if (recorder := self._recorder) is not None and runs and runs[0] is not None:
            recorder.resume(runs[0], self.param_groups[0]["step"])
