"""Classification and forecasting of time series."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import torch

from autoopt.tasks.base import Task, TaskInstance
from autoopt.tasks.data import seeded
from autoopt.tasks.models_series import jitter, series_model
from autoopt.tasks.series_data import CLASSIFIED, forecast_windows, labelled_series, requires
from autoopt.tasks.spec import VALIDATION_SEED, Spec, cross_entropy, from_rows, mean_squared_error

SPECS = (
    Spec("cnn1d", "japanese-vowels", 32, 16, 300),
    Spec("gru", "japanese-vowels", 32, 32, 300, depth=1),
    Spec("lstm", "japanese-vowels", 64, 16, 300, depth=1),
    Spec("cnn1d", "osu-leaf", 32, 16, 400, depth=3),
    Spec("tcn", "osu-leaf", 16, 32, 400, depth=5),
    Spec("tcn", "acsf1", 32, 8, 300, depth=5),
    Spec("cnn1d", "acsf1", 16, 16, 400, depth=3),
    Spec("cnn1d", "italy-power", 16, 32, 400),
    Spec("gru", "italy-power", 24, 64, 300, depth=1),
    Spec("tcn", "arrow-head", 24, 16, 300, depth=4),
    Spec("gru", "basic-motions", 24, 4, 400, depth=1),
    Spec("cnn1d", "basic-motions", 64, 8, 300),
    Spec("tcn", "elecdemand", 32, 64, 300, depth=4),
    Spec("lstm", "elecdemand", 32, 32, 300, depth=1),
    Spec("cnn1d", "elecdemand", 64, 32, 400),
    Spec("gru", "elecdemand", 16, 128, 200),
    Spec("gru", "chicago", 48, 32, 400, depth=1),
    Spec("tcn", "chicago", 64, 64, 400, depth=3),
    Spec("lstm", "chicago", 16, 8, 1200, depth=1),
    Spec("lstm", "glucose", 32, 64, 300, depth=1),
    Spec("tcn", "glucose", 16, 256, 200, depth=4),
    Spec("gru", "sea-temperature", 32, 16, 300, depth=1),
    Spec("cnn1d", "sea-temperature", 32, 128, 200, depth=3),
    Spec("gru", "chicago", 6, 64, 400, depth=1),
    Spec("gru", "glucose", 16, 32, 300, depth=1),
    Spec("lstm", "sea-temperature", 4, 32, 400, depth=1),
    Spec("lstm", "glucose", 16, 16, 500, depth=1),
    Spec("tcn", "italy-power", 4, 16, 500, depth=3),
    Spec("tcn", "japanese-vowels", 32, 32, 300, depth=3),
    Spec("cnn1d", "italy-power", 4, 8, 800),
    Spec("cnn1d", "japanese-vowels", 16, 64, 300),
    Spec("cnn1d", "glucose", 16, 32, 400),
    Spec("cnn1d", "chicago", 32, 16, 400),
    Spec("lstm", "chicago", 256, 32, 400, depth=3, evaluation_only=True),
)

NOISE: dict[str, float] = {"japanese-vowels": 1.0, "basic-motions": 1.0}
"""Deviation of the noise on the series that are the easiest to tell apart; 0.2 elsewhere."""


def tasks() -> Iterator[Task]:
    """The time series tasks."""
    for spec in SPECS:
        yield spec.task(build, "series", requires(spec.source))


def build(spec: Spec, seed: int) -> TaskInstance:
    """The instance of a time series task."""
    classified = spec.source in CLASSIFIED
    data = labelled_series(spec.source) if classified else forecast_windows(spec.source)
    train, targets, *validation = data
    num_outputs = int(targets.max()) + 1 if classified else targets.shape[1]
    model = seeded(series_model, seed, spec.family, train.shape[2], num_outputs, spec.width, spec.depth, classified)
    if not classified:
        return from_rows(model, mean_squared_error, (train, targets), validation, spec.batch_size, seed)
    # Validation is as noisy as training: the sets are small, and learned without it to a loss near 0.
    transform = functools.partial(jitter, NOISE.get(spec.source, 0.2))
    fixed = transform(torch.Generator().manual_seed(VALIDATION_SEED), *validation)
    return from_rows(model, cross_entropy, (train, targets), fixed, spec.batch_size, seed, transform)
