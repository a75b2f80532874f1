"""The graph tasks: knowledge-graph embeddings, and graph convolutions on nodes and on links."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from autoopt.tasks.base import Task, TaskInstance
from autoopt.tasks.data import chunks, minibatches, seeded
from autoopt.tasks.graph_data import load_node_graph, load_triples, relation_edges
from autoopt.tasks.graph_models import KnowledgeEmbedding, LinkPredictor, NodeClassifier

_CARRIERS = {
    "umls": "pykeen",
    "kinships": "pykeen",
    "20newsgroups": "orangecontrib",
    "reuters-r52": "orangecontrib",
    "wikidata-films": "bokeh_sampledata",
}


def tasks() -> tuple[Task, ...]:
    """The graph tasks, in a fixed order."""
    return (
        _embedding("transe", "umls", 32, 128, 400),
        _embedding("distmult", "umls", 64, 256, 300, num_negatives=8, sparse=True),
        _embedding("complex", "umls", 32, 64, 600),
        _embedding("transe", "kinships", 16, 32, 1500, num_negatives=8, sparse=True),
        _embedding("distmult", "kinships", 32, 256, 300),
        _embedding("complex", "kinships", 64, 128, 500, num_negatives=16, sparse=True),
        _embedding("transe", "kinships", 4, 64, 800),
        _embedding("distmult", "umls", 16, 32, 800, num_negatives=8),
        _embedding("complex", "kinships", 8, 512, 300),
        _embedding("distmult", "umls", 512, 64, 200, num_negatives=8),
        _embedding("complex", "umls", 16, 16, 3000),
        _nodes("20newsgroups", 32, 128, 150),
        _nodes("reuters-r52", 64, 64, 150),
        _nodes("wikidata-films", 16, 256, 150),
        _links("umls", 32, 128, 400),
        _links("kinships", 64, 32, 600),
        _links("umls", 4, 256, 500),
        _links("kinships", 16, 128, 300),
    )


def _task(
    family: str,
    variant: str,
    source: str,
    width: int,
    batch: int,
    steps: int,
    build: Callable[..., TaskInstance],
) -> Task:
    """A task named by what tells it from the others; `build` still lacks source, width and batch."""
    label = "-".join(part for part in (source, family, variant) if part)
    return Task(
        name=f"{label}-w{width}-b{batch}-s{steps}",
        family=family,
        source=source,
        batch_size=batch,
        budget_steps=steps,
        build=partial(build, source=source, width=width, batch_size=batch),
        width=width,
        domain="graph",
        requires=(_CARRIERS[source],),
    )


def _embedding(score: str, source: str, width: int, batch: int, steps: int, **options: Any) -> Task:
    """A knowledge-graph embedding, against drawn tails where `num_negatives` is given, else all."""
    variant = f"{score}-sparse" if options.get("sparse") else score
    build = partial(build_embedding, score=score, **options)
    return _task("kge", variant, source, width, batch, steps, build)


def _nodes(source: str, width: int, batch: int, steps: int) -> Task:
    return _task("gcn", "nodes", source, width, batch, steps, build_node_classifier)


def _links(source: str, width: int, batch: int, steps: int) -> Task:
    return _task("gcn", "links", source, width, batch, steps, build_link_predictor)


def sampled_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in nats of finding the true tail, which is the first of those given."""
    scores = model(*batch)
    return functional.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.long))


def link_loss(model: nn.Module, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in nats of finding the true tail among all entities."""
    heads, relations, tails = batch
    return functional.cross_entropy(model(heads, relations), tails)


def node_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """Mean cross-entropy in nats of the nodes' classes, or of their indicators where they have those."""
    nodes, labels = batch
    if labels.is_floating_point():
        return functional.binary_cross_entropy_with_logits(model(nodes), labels)
    return functional.cross_entropy(model(nodes), labels)


def _with_tails(
    triples: Tensor, num_entities: int, num_negatives: int, batch_size: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of heads, relations, and the true tail before the others."""
    generator = torch.Generator().manual_seed(seed)
    others = torch.arange(1, num_entities)
    for (rows,) in minibatches((triples,), batch_size, seed):
        heads, relations, tails = rows.T
        if num_negatives:
            drawn = torch.randint(1, num_entities, (batch_size, num_negatives), generator=generator)
        else:
            drawn = others.expand(batch_size, -1)
        # A shift by 1 to num_entities - 1, round the end, reaches every entity but the true tail.
        wrong = (tails.unsqueeze(1) + drawn) % num_entities
        yield heads, relations, torch.cat((tails.unsqueeze(1), wrong), dim=1)


def build_embedding(
    seed: int,
    *,
    source: str,
    score: str,
    width: int,
    batch_size: int,
    num_negatives: int = 0,
    sparse: bool = False,
) -> TaskInstance:
    """A knowledge-graph embedding that finds the tails of triples.

    Args:
        seed: Seed of the parameters and of the batches.
        source: `"umls"` or `"kinships"`.
        score: One of `SCORES`.
        width: Length of the vectors.
        batch_size: Triples in a training batch.
        num_negatives: Wrong tails drawn for each true one; 0 takes all entities.
        sparse: Whether the tables have sparse gradients.
    """
    triples = load_triples(source)
    model = seeded(KnowledgeEmbedding, seed, score, triples.num_entities, triples.num_relations, width, sparse=sparse)
    train, valid = torch.from_numpy(triples.train), torch.from_numpy(triples.valid)
    size = (triples.num_entities, num_negatives)
    return TaskInstance(
        model=model,
        loss_fn=sampled_loss,
        batches=partial(_with_tails, train, *size, batch_size, seed),
        validation=(next(_with_tails(valid, *size, 1024, 0)),),
        num_examples=len(train),
    )


def build_link_predictor(seed: int, *, source: str, width: int, batch_size: int) -> TaskInstance:
    """Tails of triples by graph convolutions over the training triples; arguments as elsewhere."""
    triples = load_triples(source)
    edges = relation_edges(triples)
    train, valid = (
        tuple(torch.from_numpy(np.ascontiguousarray(column)) for column in side.T)
        for side in (triples.train, triples.valid)
    )
    return TaskInstance(
        model=seeded(LinkPredictor, seed, edges, triples.num_entities, triples.num_relations, width),
        loss_fn=link_loss,
        batches=partial(minibatches, train, batch_size, seed),
        validation=(valid,),
        num_examples=len(train[0]),
    )


def build_node_classifier(seed: int, *, source: str, width: int, batch_size: int) -> TaskInstance:
    """Labels of some nodes from those of others; a batch is the nodes whose loss is taken."""
    graph = load_node_graph(source)
    num_outputs = graph.labels.shape[1] if graph.labels.ndim == 2 else int(graph.labels.max()) + 1
    train, valid = (
        (torch.from_numpy(side), torch.from_numpy(graph.labels[side])) for side in (graph.train, graph.valid)
    )
    return TaskInstance(
        model=seeded(NodeClassifier, seed, graph.features, graph.edges, num_outputs, width),
        loss_fn=node_loss,
        batches=partial(minibatches, train, batch_size, seed),
        validation=chunks(valid, len(valid[0])),
        num_examples=len(train[0]),
    )
