"""Builders of text tasks: streams (language models, taggers), classifiers and word vectors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoopt.tasks.base import TaskInstance
from autoopt.tasks.data import chunks, minibatches, seeded
from autoopt.tasks.text_data import END, IGNORED, Split, load_corpus, truncated
from autoopt.tasks.text_models import SkipGram

_VALIDATION_SYMBOLS = 4096
"""Symbols that a language model or a tagger is validated on, in two batches."""


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in nats a label, of any shape, leaving out the label -100."""
    inputs, labels = batch
    logits = model(inputs)
    return functional.cross_entropy(logits.flatten(0, -2), labels.flatten(), ignore_index=IGNORED)


def negative_sampling(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean over centres of the skip-gram loss in nats: the first context is true, the others drawn.

    The sum of the logistic losses of one true pair and of its negatives (Mikolov et al. 2013,
    arXiv 1310.4546, equation 4).
    """
    scores = model(*batch)
    signs = torch.ones(scores.shape[1])
    signs[1:] = -1.0
    return -functional.logsigmoid(scores * signs).sum(1).mean()


def _windows(ids: np.ndarray, labels: np.ndarray, starts: np.ndarray, length: int) -> tuple[Tensor, Tensor]:
    rows = starts[:, None] + np.arange(length)
    return torch.from_numpy(ids[rows]), torch.from_numpy(labels[rows].astype(np.int64))


def _random_windows(
    ids: np.ndarray, labels: np.ndarray, length: int, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of windows that start anywhere in a stream."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(ids) - length, (batch_size,), generator=generator)
        yield _windows(ids, labels, starts.numpy(), length)


def _stream(split: Split, vocabulary: int, tagged: bool) -> tuple[np.ndarray, np.ndarray]:
    """Inputs and labels of a stream: each symbol's tag, or the symbol that follows it."""
    ids = truncated(split.ids, vocabulary)
    return (ids, split.tags) if tagged else (ids[:-1], ids[1:])


def build_stream(
    seed: int,
    *,
    corpus: str,
    model: Callable[..., nn.Module],
    batch_size: int,
    length: int,
    vocabulary: int = 1_000_000,
    tagged: bool = False,
) -> TaskInstance:
    """A language model, or a tagger where `tagged`, on random windows of a corpus.

    Args:
        seed: Seed of the parameters and of the windows.
        corpus: A key of `CORPORA`.
        model: `model(num_symbols=..., num_outputs=...)` gives the module.
        batch_size: Windows in a training batch.
        length: Symbols in a window.
        vocabulary: Largest number of symbols; rarer ones become one.
        tagged: Predict each symbol's tag rather than the next symbol.
    """
    data = load_corpus(corpus)
    vocabulary = min(vocabulary, data.num_symbols)
    ids, labels = _stream(data.train, vocabulary, tagged)
    valid_ids, valid_labels = _stream(data.valid, vocabulary, tagged)
    num_outputs = data.num_tags if tagged else vocabulary
    num_windows = max(8, _VALIDATION_SYMBOLS // length // 2 * 2)
    starts = np.linspace(0, len(valid_ids) - length, num_windows).astype(np.int64)
    held_out = _windows(valid_ids, valid_labels, starts, length)
    return TaskInstance(
        model=seeded(model, seed, num_symbols=vocabulary, num_outputs=num_outputs),
        loss_fn=cross_entropy,
        batches=partial(_random_windows, ids, labels, length, batch_size, seed),
        validation=chunks(held_out, num_windows // 2),
        num_examples=len(ids) // length,
    )


def build_classifier(
    seed: int,
    *,
    corpus: str,
    model: Callable[..., nn.Module],
    batch_size: int,
    length: int,
    vocabulary: int = 1_000_000,
) -> TaskInstance:
    """A classifier of documents by their first `length` symbols; arguments as in `build_stream`."""
    data = load_corpus(corpus)
    vocabulary = min(vocabulary, data.num_symbols)
    train, valid = (
        (torch.from_numpy(side.padded(length, vocabulary)), torch.from_numpy(side.labels.astype(np.int64)))
        for side in (data.train, data.valid)
    )
    return TaskInstance(
        model=seeded(model, seed, num_symbols=vocabulary, num_outputs=data.num_labels),
        loss_fn=cross_entropy,
        batches=partial(minibatches, train, batch_size, seed),
        validation=chunks((valid[0][:512], valid[1][:512]), 256),
        num_examples=len(train[0]),
    )


def _frequent_words_thinned(ids: np.ndarray, vocabulary: int, threshold: float = 1e-3) -> np.ndarray:
    """The known symbols of a stream, frequent ones kept with probability sqrt(threshold / share)."""
    known = ids[(ids > END) & (ids < vocabulary)].astype(np.int64)
    share = np.bincount(known, minlength=vocabulary) / len(known)
    keep = np.sqrt(threshold / np.maximum(share, threshold))
    return known[np.random.RandomState(0).random_sample(len(known)) < keep[known]]


def _pairs(
    ids: np.ndarray, noise: np.ndarray, batch_size: int, num_negatives: int, seed: int, window: int = 4
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of centres, and their contexts with the true one first."""
    stream, table = torch.from_numpy(ids), torch.from_numpy(noise)
    generator = torch.Generator().manual_seed(seed)
    while True:
        centres = torch.randint(window, len(ids) - window, (batch_size,), generator=generator)
        distance = torch.randint(1, window + 1, (batch_size,), generator=generator)
        side = torch.randint(2, (batch_size,), generator=generator) * 2 - 1
        drawn = torch.randint(len(noise), (batch_size, num_negatives), generator=generator)
        yield stream[centres], torch.cat((stream[centres + side * distance, None], table[drawn]), dim=1)


def build_skip_gram(
    seed: int,
    *,
    corpus: str,
    width: int,
    batch_size: int,
    vocabulary: int,
    num_negatives: int = 5,
    sparse: bool = False,
    zero_output: bool = True,
) -> TaskInstance:
    """Word vectors by skip-gram with negative sampling; arguments as in `build_stream` and `SkipGram`."""
    data = load_corpus(corpus)
    vocabulary = min(vocabulary, data.num_symbols)
    train, valid = (_frequent_words_thinned(side.ids, vocabulary) for side in (data.train, data.valid))
    # The noise of word2vec: shares to the power 3/4, here as a table to draw rows from.
    shares = np.bincount(train, minlength=vocabulary) ** 0.75
    noise = np.repeat(np.arange(vocabulary), np.round(shares / shares.sum() * 200_000).astype(np.int64))
    return TaskInstance(
        model=seeded(SkipGram, seed, vocabulary, width, sparse=sparse, zero_output=zero_output),
        loss_fn=negative_sampling,
        batches=partial(_pairs, train, noise, batch_size, num_negatives, seed),
        validation=(next(_pairs(valid, noise, 8192, num_negatives, 0)),),
        num_examples=len(train),
    )
