"""Knowledge graphs, document neighbourhoods and film graphs out of installed packages."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np

from autoopt.tasks.data import cached, package_folder, split
from autoopt.tasks.recsys_data import load_films
from autoopt.tasks.text_data import load_corpus

_READERS_VERSION = "1"
"""Part of the cache's key, to be raised with any change of what the readers give."""


@dataclass(frozen=True)
class Triples:
    """A knowledge graph: triples of head, relation and tail, `(num_triples, 3)` int64."""

    train: np.ndarray
    valid: np.ndarray
    num_entities: int
    num_relations: int


@dataclass(frozen=True)
class NodeGraph:
    """An undirected graph with features and labels of its nodes.

    Attributes:
        features: `(num_nodes, num_features)` float32.
        labels: Classes `(num_nodes,)` int64, or indicators `(num_nodes, num_labels)` float32.
        edges: `(2, num_edges)` int64, each edge in both directions, without self-loops.
        train: Nodes to train on.
        valid: Nodes to validate on; they are in the graph, their labels are never trained on.
    """

    features: np.ndarray
    labels: np.ndarray
    edges: np.ndarray
    train: np.ndarray
    valid: np.ndarray


def _read_triples(name: str, *version: str) -> dict[str, np.ndarray]:
    folder = package_folder("pykeen") / "datasets" / name
    sides = {}
    for side in ("train", "valid", "test"):
        lines = (folder / f"{side}.txt").read_text(encoding="utf-8").splitlines()
        sides[side] = [line.split("\t") for line in lines if line.strip()]
    everything = [triple for triples in sides.values() for triple in triples]
    entities = sorted({name for head, _, tail in everything for name in (head, tail)})
    relations = sorted({relation for _, relation, _ in everything})
    entity = {name: index for index, name in enumerate(entities)}
    relation = {name: index for index, name in enumerate(relations)}
    coded = {
        side: np.array([(entity[h], relation[r], entity[t]) for h, r, t in triples], dtype=np.int64)
        for side, triples in sides.items()
    }
    return {
        "train": coded["train"],
        "valid": np.concatenate((coded["valid"], coded["test"])),
        "sizes": np.array([len(entities), len(relations)], dtype=np.int64),
    }


def load_triples(name: str) -> Triples:
    """The triples of `"umls"` or `"kinships"`; validation is the original validation and test part.

    Raises:
        TaskError: If pykeen, which carries the files, is not installed.
    """
    arrays = cached(name, _read_triples, name, _READERS_VERSION)
    num_entities, num_relations = (int(size) for size in arrays["sizes"])
    return Triples(arrays["train"], arrays["valid"], num_entities, num_relations)


def _both_directions(heads: np.ndarray, tails: np.ndarray, num_nodes: int) -> np.ndarray:
    """Each pair once in either direction, `(2, num_edges)`, self-loops left out."""
    keys = np.concatenate((heads * num_nodes + tails, tails * num_nodes + heads))
    keys = np.unique(keys)
    edges = np.stack((keys // num_nodes, keys % num_nodes))
    return edges[:, edges[0] != edges[1]]


def relation_edges(triples: Triples) -> np.ndarray:
    """The edges of the training triples, relations and directions forgotten, `(2, num_edges)`."""
    return _both_directions(triples.train[:, 0], triples.train[:, 2], triples.num_entities)


def _read_neighbourhoods(corpus: str, num_nodes: int, *version: str) -> dict[str, np.ndarray]:
    from scipy.sparse import csr_matrix
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfTransformer
    from sklearn.neighbors import NearestNeighbors

    # Documents are in a random order, so the first ones are a fair sample.
    documents = load_corpus(corpus).train
    starts = documents.starts[: num_nodes + 1]
    ids = documents.ids[: starts[-1]].astype(np.int64)
    counts = csr_matrix((np.ones(len(ids), dtype=np.float32), ids, starts))
    weights = TfidfTransformer(sublinear_tf=True).fit_transform(counts)
    features = TruncatedSVD(64, random_state=0).fit_transform(weights).astype(np.float32)
    features /= np.linalg.norm(features, axis=1, keepdims=True) + 1e-6
    neighbours = NearestNeighbors(n_neighbors=7).fit(features).kneighbors(return_distance=False)
    edges = _both_directions(np.repeat(np.arange(num_nodes), 7), neighbours.ravel(), num_nodes)
    return {
        "features": features * np.float32(8.0),
        "labels": documents.labels[:num_nodes].astype(np.int64),
        "edges": edges,
    }


def _read_shared_casts(num_nodes: int, *version: str) -> dict[str, np.ndarray]:
    films = load_films()
    rows, columns = np.nonzero(films.people > 1)
    people = films.people[rows, columns]
    order = np.argsort(people, kind="stable")
    groups = np.split(rows[order], np.flatnonzero(np.diff(people[order])) + 1)
    # A person in many films would join films that have little else in common.
    pairs = [pair for group in groups if len(group) <= 12 for pair in combinations(group, 2)]
    heads, tails = np.array(pairs, dtype=np.int64).T
    degree = np.bincount(np.concatenate((heads, tails)), minlength=len(films.people))
    chosen = np.sort(np.argsort(-degree, kind="stable")[:num_nodes])
    position = np.full(len(films.people), -1)
    position[chosen] = np.arange(num_nodes)
    inside = (position[heads] >= 0) & (position[tails] >= 0)
    # The commonest makers are countries, languages and decades: what is known of most films.
    features = np.stack([(films.makers[chosen] == maker).any(1) for maker in range(2, 66)], axis=1)
    return {
        "features": features.astype(np.float32),
        "labels": films.genres[chosen],
        "edges": _both_directions(position[heads[inside]], position[tails[inside]], num_nodes),
    }


def load_node_graph(source: str) -> NodeGraph:
    """A graph over documents of `"20newsgroups"` or `"reuters-r52"`, or over `"wikidata-films"`.

    Documents are joined to their 7 nearest in a 64-dimensional space of their words and carry their
    class; films are joined where they share a member of the cast and carry indicators of genres.

    Raises:
        TaskError: If the package that carries the data is not installed.
    """
    if source == "wikidata-films":
        arrays = cached("film-graph", _read_shared_casts, 2500, _READERS_VERSION)
    else:
        corpus = f"{source}-words"
        arrays = cached(f"{source}-graph", _read_neighbourhoods, corpus, 2500, _READERS_VERSION)
    train, valid = split(len(arrays["labels"]), 600)
    return NodeGraph(arrays["features"], arrays["labels"], arrays["edges"], train, valid)
