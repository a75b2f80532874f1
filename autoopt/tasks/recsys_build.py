"""Builders of recommender tasks: rows of fields, film bags, two towers and implicit pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoopt.tasks.base import TaskInstance
from autoopt.tasks.data import chunks, minibatches, seeded
from autoopt.tasks.recsys_data import Rows, load_films, load_flights, load_insteval
from autoopt.tasks.recsys_models import MatrixFactorisation, TwoTower
from autoopt.tasks.text_build import negative_sampling
from autoopt.tasks.text_data import load_corpus, truncated
from autoopt.tasks.text_models import BagClassifier

_VALIDATION_BATCH = 256


def squared_error(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean squared error; with a standardised target, 1 is what a constant reaches."""
    *inputs, target = batch
    return functional.mse_loss(model(*inputs).flatten(), target)


def binary_cross_entropy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Mean binary cross-entropy in nats a label."""
    *inputs, target = batch
    return functional.binary_cross_entropy_with_logits(model(*inputs), target)


def in_batch_softmax(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in nats of finding each query's item among the batch's items."""
    scores = model(*batch)
    return functional.cross_entropy(scores, torch.arange(len(scores)))


def crossed(rows: Rows, pairs: tuple[tuple[int, int], ...], num_buckets: int) -> Rows:
    """The rows with one more field for each pair of fields, hashed into `num_buckets` categories."""
    columns = [rows.categories]
    for left, right in pairs:
        # A multiplicative hash: Knuth's constant spreads neighbouring codes.
        key = rows.categories[:, left] * rows.sizes[right] + rows.categories[:, right]
        columns.append((key * 2654435761 % 2**32 % num_buckets)[:, None])
    sizes = (*rows.sizes, *(num_buckets for _ in pairs))
    return Rows(np.concatenate(columns, axis=1), rows.numbers, rows.target, sizes, rows.train, rows.valid)


def build_fields(
    seed: int,
    *,
    source: str,
    model: Callable[..., nn.Module],
    batch_size: int,
    crosses: tuple[tuple[int, int], ...] = (),
    num_buckets: int = 0,
) -> TaskInstance:
    """A score from categorical fields: ratings of `"insteval"`, late departures of `"nycflights13"`.

    Args:
        seed: Seed of the parameters and of the batches.
        source: Data source.
        model: `model(sizes, num_numbers)` gives the module.
        batch_size: Rows in a training batch.
        crosses: Pairs of fields to cross, see `crossed`.
        num_buckets: Categories of each cross.
    """
    rows = load_insteval() if source == "insteval" else load_flights()
    if crosses:
        rows = crossed(rows, crosses, num_buckets)
    train, valid = (
        tuple(torch.from_numpy(array[side]) for array in (rows.categories, rows.numbers, rows.target))
        for side in (rows.train, rows.valid)
    )
    return TaskInstance(
        model=seeded(model, seed, rows.sizes, rows.numbers.shape[1]),
        loss_fn=squared_error if source == "insteval" else binary_cross_entropy,
        batches=partial(minibatches, train, batch_size, seed),
        validation=chunks(valid, len(valid[0]) // 2),
        num_examples=len(train[0]),
    )


def build_film_bag(
    seed: int, *, target: str, width: int, batch_size: int, hidden: int = 0, sparse: bool = False
) -> TaskInstance:
    """A film's `"genres"` (20 labels) from its cast, or its `"rating"` from its makers.

    Arguments as in `BagClassifier`.
    """
    films = load_films()
    bags, num_symbols, labels = films.people, films.num_people, films.genres
    if target == "rating":
        bags, num_symbols, labels = films.makers, films.num_makers, films.rating
    train, valid = (
        tuple(
            torch.from_numpy(array[side[~np.isnan(films.rating[side])] if target == "rating" else side])
            for array in (bags, labels)
        )
        for side in (films.train, films.valid)
    )
    num_outputs = 1 if target == "rating" else labels.shape[1]
    return TaskInstance(
        model=seeded(BagClassifier, seed, num_symbols, num_outputs, width, hidden=hidden, sparse=sparse),
        loss_fn=squared_error if target == "rating" else binary_cross_entropy,
        batches=partial(minibatches, train, batch_size, seed),
        validation=(valid,),
        num_examples=len(train[0]),
    )


def _film_towers() -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], int, int]:
    films = load_films()
    sides = tuple((films.people[side], films.makers[side]) for side in (films.train, films.valid))
    return sides[0], sides[1], films.num_people, films.num_makers


def _insteval_towers() -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], int, int]:
    rows = load_insteval()
    # Ids from 1, since 0 is the padding of a bag; each field has its own range of ids.
    ids = rows.categories + np.concatenate(([0], np.cumsum(rows.sizes)[:-1])) + 1
    liked = rows.target > 0
    sides = tuple(
        (ids[side[liked[side]]][:, [0, 3]], ids[side[liked[side]]][:, [1, 2, 5]]) for side in (rows.train, rows.valid)
    )
    num_ids = sum(rows.sizes) + 1
    return sides[0], sides[1], num_ids, num_ids


def _document_towers(
    corpus: str, vocabulary: int, length: int
) -> tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...], int, int]:
    data = load_corpus(corpus)
    vocabulary = min(vocabulary, data.num_symbols)
    sides = []
    for side in (data.train, data.valid):
        table = truncated(side.padded(2 * length, vocabulary), vocabulary)
        table = table[(table != 0).sum(1) > length + 4]
        sides.append((table[:, :length], table[:, length:]))
    return sides[0], sides[1], vocabulary, vocabulary


def build_two_tower(
    seed: int, *, source: str, width: int, batch_size: int, sparse: bool = False, hidden: bool = True
) -> TaskInstance:
    """Retrieval by two towers of what belongs together in a source.

    The makers of a film are found by its cast, liked lecturers by their students, and the second
    part of a Reuters message by its first. Arguments as in `TwoTower`. Validation ranks among 256
    items whatever the batch size.
    """
    if source == "wikidata-films":
        train, valid, num_queries, num_items = _film_towers()
    elif source == "insteval":
        train, valid, num_queries, num_items = _insteval_towers()
    else:
        train, valid, num_queries, num_items = _document_towers("reuters-r52-words", 8000, 24)
    num_valid = min(4, len(valid[0]) // _VALIDATION_BATCH) * _VALIDATION_BATCH
    return TaskInstance(
        model=seeded(TwoTower, seed, num_queries, num_items, width, sparse=sparse, hidden=hidden),
        loss_fn=in_batch_softmax,
        batches=partial(minibatches, tuple(map(torch.from_numpy, train)), batch_size, seed),
        validation=chunks([torch.from_numpy(side[:num_valid]) for side in valid], _VALIDATION_BATCH),
        num_examples=len(train[0]),
    )


def _noisy_pairs(
    users: Tensor, items: Tensor, noise: Tensor, batch_size: int, num_negatives: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of users, and their items with the true one first."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(len(users), (batch_size,), generator=generator)
        drawn = torch.randint(len(noise), (batch_size, num_negatives), generator=generator)
        yield users[rows], torch.cat((items[rows, None], noise[drawn]), dim=1)


def _observed_pairs(source: str) -> tuple[np.ndarray, np.ndarray]:
    if source == "nycflights13":
        categories = load_flights().categories
        return categories[:, 6], categories[:, 2]
    people = load_films().people
    rows, columns = np.nonzero(people > 1)
    return rows, people[rows, columns]


def build_implicit(
    seed: int, *, source: str, width: int, batch_size: int, num_negatives: int = 4, sparse: bool = False
) -> TaskInstance:
    """Matrix factorisation of observed pairs against drawn ones.

    The pairs are who plays in which film of `"wikidata-films"`, or which aircraft flies which flight
    number of `"nycflights13"`. Arguments as in `MatrixFactorisation`.
    """
    users, items = _observed_pairs(source)
    order = np.random.RandomState(0).permutation(len(users))
    valid, train = order[:4096], order[4096:]
    num_users, num_items = int(users.max()) + 1, int(items.max()) + 1
    noise = torch.from_numpy(items[train])
    sides = [
        (torch.from_numpy(users[side].astype(np.int64)), torch.from_numpy(items[side].astype(np.int64)))
        for side in (train, valid)
    ]
    return TaskInstance(
        model=seeded(MatrixFactorisation, seed, num_users, num_items, width, sparse=sparse),
        loss_fn=negative_sampling,
        batches=partial(_noisy_pairs, *sides[0], noise, batch_size, num_negatives, seed),
        validation=(next(_noisy_pairs(*sides[1], noise, 4096, num_negatives, 0)),),
        num_examples=len(train),
    )
