"""Classification and regression on tables: perceptrons, residual ones, embeddings, transformers."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from autoopt.tasks.base import Batch, Task, TaskInstance
from autoopt.tasks.data import seeded
from autoopt.tasks.models_mlp import EmbeddingMlp, ResMlp, mlp
from autoopt.tasks.models_tabular import FeatureTransformer
from autoopt.tasks.spec import (
    VALIDATION_SEED,
    Spec,
    cross_entropy,
    from_rows,
    mean_squared_error,
    poisson_loss,
)
from autoopt.tasks.tabular_data import TABLES, Columns, columns, requires

SPECS = (
    Spec("mlp", "breast-cancer", 32, 16, 300),
    Spec("mlp", "wine", 16, 8, 200),
    Spec("mlp", "diabetes", 32, 16, 200),
    Spec("mlp", "diamonds", 64, 128, 600, depth=3),
    Spec("mlp", "diamonds", 16, 4, 2500),
    Spec("mlp-norm", "diamonds", 128, 512, 200, variant="batch"),
    Spec("resmlp", "diamonds", 64, 256, 400),
    Spec("ft-transformer", "diamonds", 32, 64, 250),
    Spec("mlp", "hotel-rates", 64, 64, 600),
    Spec("mlp-norm", "hotel-rates", 64, 256, 300, variant="poisson"),
    Spec("resmlp", "hotel-rates", 128, 128, 300),
    Spec("mlp-embedding", "hotel-rates", 64, 64, 500),
    Spec("mlp-embedding", "hotel-rates", 128, 512, 200),
    Spec("ft-transformer", "hotel-rates", 16, 32, 250),
    Spec("mlp", "leaf", 64, 32, 500),
    Spec("resmlp", "leaf", 32, 16, 600),
    Spec("deep-tanh", "leaf", 48, 32, 600, depth=5),
    Spec("mlp-norm", "cells", 64, 64, 300, variant="layer"),
    Spec("mlp-norm", "cells", 32, 16, 600, variant="batch"),
    Spec("ft-transformer", "cells", 32, 16, 200, depth=1),
    Spec("mlp", "gene-expression", 64, 8, 300),
    Spec("resmlp", "gene-expression", 32, 16, 200),
    Spec("mlp", "loans", 64, 64, 500),
    Spec("resmlp", "loans", 128, 256, 300),
    Spec("mlp-embedding", "loans", 32, 32, 600),
    Spec("ft-transformer", "loans", 32, 32, 150, depth=1),
    Spec("mlp", "grants", 64, 64, 300),
    Spec("mlp-norm", "grants", 32, 512, 150, variant="layer"),
    Spec("mlp", "diamonds", 128, 512, 150),
    Spec("mlp", "loans", 16, 8, 1500),
    Spec("mlp", "cells", 64, 32, 300),
    Spec("mlp", "leaf", 16, 128, 400),
    Spec("mlp-norm", "diamonds", 16, 32, 1000, variant="layer"),
    Spec("mlp-norm", "loans", 64, 16, 800, variant="layer"),
    Spec("mlp-norm", "leaf", 32, 64, 400, variant="batch"),
    Spec("resmlp", "hotel-rates", 16, 32, 800),
    Spec("resmlp", "cells", 64, 32, 300),
    Spec("resmlp", "loans", 16, 16, 1000),
    Spec("deep-tanh", "diamonds", 32, 64, 500, depth=5),
    Spec("deep-tanh", "cells", 16, 16, 600, depth=8),
    Spec("mlp-embedding", "hotel-rates", 8, 32, 800),
    Spec("mlp-embedding", "loans", 64, 256, 300),
    Spec("mlp", "leaf", 512, 32, 250, depth=1),
    Spec("mlp-norm", "cells", 512, 32, 200, depth=1, variant="layer"),
    Spec("mlp-embedding", "loans", 512, 64, 150, depth=1),
    Spec("resmlp", "cells", 512, 32, 100, depth=1),
    Spec("mlp-embedding", "loans", 16, 16, 3000, depth=1),
    Spec("mlp", "grants", 1024, 128, 300, depth=3, evaluation_only=True),
    Spec("ft-transformer", "loans", 128, 32, 200, depth=6, evaluation_only=True),
)

NOISE: dict[str, float] = {"breast-cancer": 0.5, "wine": 1.0, "gene-expression": 4.0, "leaf": 1.0}
"""Deviation of the noise on the inputs of small clean tables, which else reach a loss near zero."""


def tasks() -> Iterator[Task]:
    """The tabular tasks."""
    for spec in SPECS:
        yield spec.task(build, "tabular", requires(spec.source))


def build(spec: Spec, seed: int) -> TaskInstance:
    """The instance of a tabular task."""
    if spec.variant == "poisson":
        data = columns(spec.source, "total_of_special_requests", "count")
        loss_fn = poisson_loss
    else:
        data = columns(spec.source)
        loss_fn = cross_entropy if TABLES[spec.source].kind == "class" else mean_squared_error
    if spec.family in ("mlp-embedding", "ft-transformer"):
        train: tuple[Tensor, ...] = (data.numeric, data.categories, data.target)
        validation: tuple[Tensor, ...] = data.validation
        num_inputs = data.numeric.shape[1]
    else:
        train, validation = data.one_hot()
        num_inputs = train[0].shape[1]
    transform = None
    if spec.source in NOISE:
        transform = _Noise(NOISE[spec.source])
        validation = transform(torch.Generator().manual_seed(VALIDATION_SEED), *validation)
    model = seeded(_model, seed, spec, data, num_inputs)
    return from_rows(model, loss_fn, train, validation, spec.batch_size, seed, transform)


def _model(spec: Spec, data: Columns, num_inputs: int) -> nn.Module:
    """The freshly initialised model of a task."""
    width, depth, num_outputs = spec.width, spec.depth, data.num_outputs
    if spec.family == "mlp-embedding":
        return EmbeddingMlp(num_inputs, data.cardinalities, num_outputs, width, depth)
    if spec.family == "ft-transformer":
        return FeatureTransformer(num_inputs, data.cardinalities, num_outputs, width, depth)
    if spec.family == "resmlp":
        return ResMlp(num_inputs, num_outputs, width, depth)
    if spec.family == "deep-tanh":
        return mlp(num_inputs, num_outputs, width, depth, "tanh")
    norm = {"mlp": "", "mlp-norm": "batch" if spec.variant == "batch" else "layer"}[spec.family]
    return mlp(num_inputs, num_outputs, width, depth, norm=norm)


class _Noise:
    """A transform that adds Gaussian noise to the inputs; an object, so that it can be pickled."""

    def __init__(self, deviation: float) -> None:
        self.deviation = deviation

    def __call__(self, generator: torch.Generator, inputs: Tensor, *rest: Tensor) -> Batch:
        noise = torch.randn(inputs.shape, generator=generator)
        return (inputs + self.deviation * noise, *rest)
