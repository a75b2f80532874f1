"""Lightning: callbacks that log the recommendation, and that validate at the average of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from autoopt.integrations.decision_callback import DecisionCallback, auto_optimizer_of, when_decided
from autoopt.integrations.folder import ReportFolder
from autoopt.integrations.mlflow import MlflowTracker
from autoopt.integrations.tensorboard import TensorBoardTracker
from autoopt.integrations.wandb import WandbTracker


class LogRecommendation(Callback):
    """Logs what was recommended, once, right after the decision.

    `autoopt.select` goes into `configure_optimizers`; this callback is optional. It writes `autoopt.html` and
    `autoopt.json` into the run's folder (`trainer.log_dir`, else `trainer.default_root_dir`), and tells every
    TensorBoard, MLflow and W&B logger of the trainer. With several optimizers the names are numbered.

    Args:
        callbacks: Further callbacks, each called with the recommendation and the step.

    Example:
        >>> trainer = Trainer(callbacks=[LogRecommendation()], logger=False, enable_checkpointing=False,
        ...                   accelerator="cpu", enable_progress_bar=False, enable_model_summary=False)
    """

    def __init__(self, callbacks: Sequence[DecisionCallback] = ()) -> None:
        self.callbacks = tuple(callbacks)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Wait for the decision of each optimizer, on the process that writes."""
        if not trainer.is_global_zero:
            return
        own = [found for found in map(auto_optimizer_of, trainer.optimizers) if found is not None]
        folder = trainer.log_dir or trainer.default_root_dir
        for index, optimizer in enumerate(own):
            name = "autoopt" if len(own) == 1 else f"autoopt-{index}"
            trackers = [_tracker(logger, name) for logger in trainer.loggers]
            for callback in (ReportFolder(folder, name), *trackers, *self.callbacks):
                if callback is not None:
                    when_decided(optimizer, callback)


class ValidateAverage(Callback):
    """Validates at the average of the weights (`AutoOptimizer.averaged`), and trains on with the weights.

    What is saved is not changed: checkpoints hold the weights that are trained, and the average in the
    optimizer's state. To save the average itself, save within `optimizer.averaged()`.
    """

    def __init__(self) -> None:
        self._averages = ExitStack()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the averages to the model; without effect before the first step."""
        for optimizer in filter(None, map(auto_optimizer_of, trainer.optimizers)):
            self._averages.enter_context(optimizer.averaged())

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Bring the weights back."""
        self._averages.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Bring the weights back where validation fails."""
        self._averages.close()


def _tracker(logger: Logger, name: str) -> DecisionCallback | None:
    """What tells a logger; None for those that take neither text nor pictures, such as CSV files."""
    experiment: Any = logger.experiment if isinstance(logger, TensorBoardLogger | MLFlowLogger | WandbLogger) else None
    if isinstance(logger, TensorBoardLogger):
        return TensorBoardTracker(experiment, name)
    if isinstance(logger, MLFlowLogger):
        return MlflowTracker(logger.run_id, experiment, name)
    if isinstance(logger, WandbLogger):
        return WandbTracker(experiment, name)
    return None
