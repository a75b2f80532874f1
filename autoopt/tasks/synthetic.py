"""Tasks that need no data: physics, densities, quadratics, memory, teachers, deep linear maps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor, nn

from autoopt.tasks.base import Batch, Task, TaskInstance
from autoopt.tasks.data import seeded
from autoopt.tasks.models_mlp import ResMlp, mlp
from autoopt.tasks.models_synthetic import CopyRnn, Quadratic, RealNvp, RecallTransformer, deep_linear
from autoopt.tasks.physics import ResidualLoss, Sensors, sensor_loss
from autoopt.tasks.spec import Spec, cross_entropy, from_samples, mean_squared_error
from autoopt.tasks.synthetic_data import (
    NUM_SYMBOLS,
    AssociativeRecall,
    CopyMemory,
    LinearTeacher,
    MlpTeacher,
    NoisyMinima,
    checkerboard,
    copy_loss,
    pinwheel,
    rings,
)

SPECS = (
    Spec("pinn", "heat", 32, 128, 400, depth=3),
    Spec("pinn", "wave", 64, 64, 400, depth=3),
    Spec("pinn", "helmholtz", 48, 256, 300, depth=3),
    Spec("flow", "checkerboard", 32, 256, 250, depth=6),
    Spec("flow", "pinwheel", 64, 128, 250, depth=4),
    Spec("flow", "rings", 16, 64, 400, depth=4),
    Spec("noisy-quadratic", "quadratic", 100, 16, 400, variant="narrow"),
    Spec("noisy-quadratic", "quadratic", 256, 4, 3000, variant="wide"),
    Spec("noisy-quadratic", "quadratic", 32, 128, 300, variant="matrix"),
    Spec("copy-rnn", "copy-memory", 32, 64, 400, variant="gru"),
    Spec("copy-rnn", "copy-memory", 64, 32, 400, variant="lstm"),
    Spec("recall-transformer", "associative-recall", 32, 64, 500),
    Spec("recall-transformer", "associative-recall", 64, 32, 600),
    Spec("mlp", "teacher", 64, 64, 400),
    Spec("mlp", "teacher", 32, 4, 2000),
    Spec("resmlp", "teacher", 128, 512, 200),
    Spec("deep-linear", "linear-map", 32, 32, 400, depth=4, variant="narrow"),
    Spec("deep-linear", "linear-map", 64, 128, 300, depth=6, variant="wide"),
    Spec("pinn", "heat", 16, 32, 800, depth=3),
    Spec("flow", "pinwheel", 16, 32, 800, depth=4),
    Spec("mlp", "teacher", 256, 128, 200),
    Spec("resmlp", "teacher", 16, 16, 1000),
    Spec("deep-linear", "linear-map", 128, 32, 500, depth=3, variant="narrow"),
    Spec("recall-transformer", "associative-recall", 192, 64, 400, depth=3, evaluation_only=True),
)

DENSITIES = {"checkerboard": checkerboard, "pinwheel": pinwheel, "rings": rings}
CONDITIONS = {"narrow": 1e2, "matrix": 1e3, "wide": 1e4}
"""Variant -> condition number of the quadratics' Hessian and the linear maps' inputs."""
TEACHER = MlpTeacher(size=16, width=8)


def tasks() -> Iterator[Task]:
    """The synthetic tasks."""
    for spec in SPECS:
        yield spec.task(build, "synthetic")


def build(spec: Spec, seed: int) -> TaskInstance:
    """The instance of a synthetic task."""
    model = seeded(_model, seed, spec)
    if spec.family == "pinn":
        sensors, loss = Sensors(spec.source), ResidualLoss(spec.source)
        instance = from_samples(model, loss, sensors, spec.batch_size, seed)
        return replace(instance, validation_loss_fn=sensor_loss)
    if spec.family == "flow":
        return from_samples(model, flow_loss, DENSITIES[spec.source], spec.batch_size, seed)
    if spec.family == "copy-rnn":
        return from_samples(model, copy_loss, CopyMemory(4, 3), spec.batch_size, seed, 512)
    if spec.family == "recall-transformer":
        return from_samples(model, cross_entropy, AssociativeRecall(4), spec.batch_size, seed)
    if spec.source == "teacher":
        return from_samples(model, mean_squared_error, TEACHER, spec.batch_size, seed)
    if spec.source == "quadratic" and spec.variant != "matrix":
        minima = NoisyMinima(spec.width, CONDITIONS[spec.variant])
        return from_samples(model, quadratic_loss, minima, spec.batch_size, seed)
    teacher = LinearTeacher(32, CONDITIONS[spec.variant])
    return from_samples(model, mean_squared_error, teacher, spec.batch_size, seed)


def flow_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean negative log density in nats of a batch of points, given as a tuple of one tensor."""
    return -model(batch[0]).mean()


def quadratic_loss(model: nn.Module, batch: Batch) -> Tensor:
    """The mean loss of a `Quadratic` over a batch of minima, given as a tuple of one tensor."""
    return model(batch[0]).mean()


def _model(spec: Spec) -> nn.Module:
    """The freshly initialised model of a task."""
    width, depth = spec.width, spec.depth
    makers: dict[str, Callable[[], nn.Module]] = {
        "pinn": lambda: mlp(2, 1, width, depth, "tanh"),
        "flow": lambda: RealNvp(width, depth),
        "noisy-quadratic": lambda: (
            nn.Linear(width, width, bias=False)
            if spec.variant == "matrix"
            else Quadratic(width, CONDITIONS[spec.variant])
        ),
        "copy-rnn": lambda: CopyRnn(spec.variant, NUM_SYMBOLS, width),
        "recall-transformer": lambda: RecallTransformer(NUM_SYMBOLS, width, depth),
        "mlp": lambda: mlp(TEACHER.size, 1, width, depth),
        "resmlp": lambda: ResMlp(TEACHER.size, 1, width, depth),
        "deep-linear": lambda: deep_linear(32, width, depth),
    }
    return makers[spec.family]()
