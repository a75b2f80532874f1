"""The text tasks: language models, classifiers, taggers and word vectors on real corpora.

Causal transformers on the standard library's source are kept for the demo alone, so that what the
demo shows was never recorded.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from autoopt.tasks.base import Task, TaskInstance
from autoopt.tasks.text_build import build_classifier, build_skip_gram, build_stream
from autoopt.tasks.text_data import CORPORA
from autoopt.tasks.text_models import BagClassifier, RecurrentModel, TextCnn
from autoopt.tasks.transformer import Transformer

STDLIB, STDLIB_TOKENS = "python-stdlib-characters", "python-stdlib-tokens"
NEWS, NEWS_WORDS = "20newsgroups-characters", "20newsgroups-words"
REUTERS, REUTERS_WORDS = "reuters-r52-characters", "reuters-r52-words"
REVIEWS = "chinese-reviews-characters"
DAILY, DAILY_WORDS = "peoples-daily-characters", "peoples-daily-words"
ALL_SYMBOLS = 1_000_000
"""A vocabulary limit that no corpus reaches."""


def tasks() -> tuple[Task, ...]:
    """The text tasks, in a fixed order."""
    return (
        *_causal_transformers(),
        *_recurrent_networks(),
        *_embedding_bags(),
        *_encoders(),
        *_word_vectors(),
        *_convolutions(),
    )


def _task(
    family: str,
    variant: str,
    corpus: str,
    width: int,
    batch_size: int,
    budget_steps: int,
    build: Callable[..., TaskInstance],
) -> Task:
    """A task named by what tells it from the others; `build` still lacks corpus and batch size."""
    source, package, _ = CORPORA[corpus]
    label = "-".join(part for part in (corpus, family, variant) if part)
    return Task(
        name=f"{label}-w{width}-b{batch_size}-s{budget_steps}",
        family=family,
        source=source,
        batch_size=batch_size,
        budget_steps=budget_steps,
        build=partial(build, corpus=corpus, batch_size=batch_size),
        width=width,
        domain="text",
        requires=(package,) if package else (),
    )


def _larger(task: Task) -> Task:
    return replace(task, evaluation_only=True)


def _causal(
    variant: str,
    corpus: str,
    width: int,
    layers: int,
    length: int,
    batch: int,
    steps: int,
    vocabulary: int = ALL_SYMBOLS,
    **options: Any,
) -> Task:
    model = partial(Transformer, width=width, num_layers=layers, context=length, causal=True, **options)
    build = partial(build_stream, model=model, length=length, vocabulary=vocabulary)
    return _task("causal-transformer", variant, corpus, width, batch, steps, build)


def _causal_transformers() -> list[Task]:
    demo = _causal("", STDLIB, 96, 4, 64, 16, 400, init_std=0.02)
    return [
        _causal("", NEWS, 32, 2, 32, 16, 400, init_std=0.02),
        _causal("", NEWS, 64, 2, 24, 4, 500, attention="fused"),
        _causal("post-norm", NEWS, 16, 2, 24, 64, 250, pre_norm=False, attention="fused"),
        _causal("tied", NEWS_WORDS, 64, 1, 12, 32, 250, 2000, tied=True, init_std=0.02),
        _causal("gated", REUTERS, 96, 2, 24, 8, 250, gated=True, init_std=0.02),
        _causal("", REUTERS_WORDS, 32, 2, 12, 64, 200, 1000),
        _causal("tied", REVIEWS, 48, 2, 24, 8, 300, 1200, tied=True, init_std=0.05),
        _causal("gated", DAILY, 64, 1, 16, 8, 400, 1500, gated=True),
        replace(demo, name="demo-stdlib-transformer", demo=True),
        _larger(_causal("", NEWS, 192, 6, 64, 8, 400, init_std=0.02)),
    ]


def _recurrent(
    kind: str,
    cell: str,
    corpus: str,
    width: int,
    length: int,
    batch: int,
    steps: int,
    vocabulary: int = ALL_SYMBOLS,
    **options: Any,
) -> Task:
    model = partial(RecurrentModel, cell, width=width, pooled=kind == "classifier", **options)
    build: Callable[..., TaskInstance] = (
        build_classifier if kind == "classifier" else partial(build_stream, tagged=kind == "tagger")
    )
    build = partial(build, model=model, length=length, vocabulary=vocabulary)
    return _task(cell, kind, corpus, width, batch, steps, build)


def _recurrent_networks() -> list[Task]:
    return [
        _recurrent("", "lstm", STDLIB, 64, 32, 16, 400),
        _recurrent("", "lstm", STDLIB, 32, 32, 64, 200),
        _recurrent("tied", "lstm", NEWS_WORDS, 64, 16, 16, 300, 2000, tied=True),
        _recurrent("tagger", "lstm", DAILY_WORDS, 48, 16, 32, 300, 8000, bidirectional=True),
        _recurrent("classifier", "lstm", REUTERS_WORDS, 32, 32, 8, 600, 5000),
        _recurrent("", "gru", STDLIB, 96, 24, 4, 500),
        _recurrent("", "gru", STDLIB_TOKENS, 48, 10, 128, 150, 1000),
        _recurrent("classifier", "gru", REVIEWS, 64, 24, 32, 300, 2000),
        _recurrent("tagger", "gru", DAILY_WORDS, 32, 16, 8, 600, 6000),
        _recurrent("two-layers", "gru", NEWS, 48, 32, 16, 300, num_layers=2),
        _recurrent("", "lstm", NEWS, 16, 16, 32, 400),
        _recurrent("", "gru", REUTERS, 8, 16, 64, 400),
        _recurrent("classifier", "gru", REUTERS_WORDS, 16, 16, 32, 400, 3000),
        _larger(_recurrent("", "lstm", STDLIB, 384, 48, 16, 400, num_layers=2)),
    ]


def _bag(
    variant: str,
    corpus: str,
    width: int,
    length: int,
    batch: int,
    steps: int,
    vocabulary: int = ALL_SYMBOLS,
    **options: Any,
) -> Task:
    model = partial(BagClassifier, width=width, **options)
    build = partial(build_classifier, model=model, length=length, vocabulary=vocabulary)
    return _task("embedding-bag", variant, corpus, width, batch, steps, build)


def _embedding_bags() -> list[Task]:
    return [
        _bag("sparse", NEWS_WORDS, 32, 64, 64, 400, 20_000, sparse=True),
        _bag("mlp", NEWS_WORDS, 64, 64, 256, 200, 8000, hidden=64),
        _bag("sparse", REUTERS_WORDS, 32, 48, 16, 1500, 10_000, sparse=True),
        _bag("sparse-mlp", REUTERS_WORDS, 64, 48, 4, 3000, 8000, sparse=True, hidden=32),
        _bag("", REUTERS_WORDS, 128, 48, 128, 200, 5000),
        _bag("sparse-mlp", REVIEWS, 16, 48, 512, 200, sparse=True, hidden=32),
        _bag("sparse", REUTERS_WORDS, 8, 48, 32, 800, 5000, sparse=True),
        _bag("mlp", REUTERS_WORDS, 16, 48, 16, 800, 5000, hidden=32),
        _bag("", REVIEWS, 32, 48, 64, 400),
        _bag("mlp", REVIEWS, 8, 48, 8, 1000, hidden=16),
        _larger(_bag("sparse-mlp", NEWS_WORDS, 64, 128, 64, 1000, 60_000, sparse=True, hidden=256)),
    ]


def _encoder(
    variant: str,
    corpus: str,
    width: int,
    layers: int,
    length: int,
    batch: int,
    steps: int,
    vocabulary: int,
    **options: Any,
) -> Task:
    tagged = variant == "tagger"
    model = partial(
        Transformer,
        width=width,
        num_layers=layers,
        context=length,
        causal=False,
        pooled=not tagged,
        **options,
    )
    build: Callable[..., TaskInstance] = partial(build_stream, tagged=True) if tagged else build_classifier
    build = partial(build, model=model, length=length, vocabulary=vocabulary)
    return _task("encoder-transformer", variant, corpus, width, batch, steps, build)


def _encoders() -> list[Task]:
    return [
        _encoder("", REUTERS_WORDS, 32, 1, 32, 32, 300, 5000, attention="fused"),
        _encoder("gated", REUTERS_WORDS, 96, 2, 24, 8, 300, 2500, gated=True, init_std=0.02),
        _encoder("", NEWS_WORDS, 64, 2, 32, 8, 400, 5000, init_std=0.02),
        _encoder("post-norm", REVIEWS, 32, 2, 32, 8, 500, 2000, pre_norm=False),
        _encoder("tagger", DAILY_WORDS, 48, 2, 16, 16, 300, 8000, attention="fused"),
        _larger(_encoder("", NEWS_WORDS, 192, 3, 64, 8, 400, 20_000, attention="fused")),
    ]


def _vectors(variant: str, corpus: str, width: int, batch: int, steps: int, vocabulary: int, **options: Any) -> Task:
    build = partial(build_skip_gram, width=width, vocabulary=vocabulary, **options)
    return _task("word2vec", variant, corpus, width, batch, steps, build)


def _word_vectors() -> list[Task]:
    return [
        _vectors("sparse", NEWS_WORDS, 32, 512, 800, 8000, sparse=True),
        _vectors("", REUTERS_WORDS, 64, 256, 700, 5000, zero_output=False),
        _vectors("sparse", STDLIB_TOKENS, 16, 128, 2000, 4000, sparse=True),
        _vectors("", DAILY_WORDS, 48, 512, 400, 6000),
        _vectors("", STDLIB_TOKENS, 4, 64, 800, 1000),
        _vectors("", STDLIB_TOKENS, 512, 64, 300, 1000),
    ]


def _convolutional(corpus: str, width: int, length: int, batch: int, steps: int, vocabulary: int) -> Task:
    model = partial(TextCnn, width=width)
    build = partial(build_classifier, model=model, length=length, vocabulary=vocabulary)
    return _task("textcnn", "", corpus, width, batch, steps, build)


def _convolutions() -> list[Task]:
    return [
        _convolutional(REVIEWS, 32, 40, 64, 300, 2500),
        _convolutional(REUTERS_WORDS, 64, 40, 16, 300, 3000),
        _convolutional(NEWS_WORDS, 32, 48, 32, 300, 8000),
        _convolutional(NEWS_WORDS, 96, 40, 32, 200, 4000),
    ]
