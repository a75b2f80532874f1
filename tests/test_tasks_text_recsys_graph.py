"""The text, recommender and graph tasks: determinism, splits, sparse gradients, and their models' maths."""

import hashlib
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from autoopt.errors import TaskError
from autoopt.tasks import check_task, graph, recsys, text
from autoopt.tasks.graph import build_embedding
from autoopt.tasks.graph_data import load_node_graph, load_triples, relation_edges
from autoopt.tasks.graph_models import GraphConvolution, KnowledgeEmbedding
from autoopt.tasks.recsys_build import build_two_tower, crossed, in_batch_softmax
from autoopt.tasks.recsys_data import FLIGHT_FIELDS, load_films, load_flights, load_insteval
from autoopt.tasks.recsys_models import DeepFm
from autoopt.tasks.text_build import negative_sampling
from autoopt.tasks.text_data import CORPORA, END, IGNORED, load_corpus, stdlib_digest, stdlib_files
from autoopt.tasks.text_models import RecurrentModel
from autoopt.tasks.transformer import Transformer

TASKS = (*text.tasks(), *recsys.tasks(), *graph.tasks())
RECORDED = tuple(task for task in TASKS if not task.demo and not task.evaluation_only)


def cheapest_by_family():
    """The recorded task of least work in each architecture family."""
    order = sorted(RECORDED, key=lambda task: (task.family, task.width * task.batch_size, task.name))
    return [next(group) for _, group in itertools.groupby(order, key=lambda task: task.family)]


def embeddings(model):
    return [m for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)]


def validation_loss(instance):
    instance.model.eval()
    loss = instance.validation_loss_fn or instance.loss_fn
    with torch.no_grad():
        values = [loss(instance.model, batch).item() for batch in instance.validation]
    instance.model.train()
    return sum(values) / len(values)


@pytest.mark.parametrize("task", cheapest_by_family(), ids=lambda task: task.family)
def test_a_task_of_every_family_keeps_the_contract(task):
    check_task(task, max_draws=20)


@pytest.mark.parametrize("task", [task for task in TASKS if task.demo], ids=lambda task: task.name)
def test_the_demo_tasks_keep_the_contract(task):
    check_task(task, max_draws=5)


def test_the_suite_covers_its_range():
    assert len({task.name for task in TASKS}) == len(TASKS)
    assert len(RECORDED) >= 45
    families = {task.family for task in RECORDED}
    assert len(families) >= 13
    assert min(task.batch_size for task in RECORDED) == 4
    assert max(task.batch_size for task in RECORDED) == 512
    assert min(task.budget_steps for task in RECORDED) <= 200
    assert max(task.budget_steps for task in RECORDED) >= 3000
    for family in families:
        widths = {task.width for task in RECORDED if task.family == family}
        assert len(widths) >= 2, family


def test_nothing_recorded_shares_family_and_source_with_a_demo():
    shown = {(task.family, task.source) for task in TASKS if task.demo}
    assert shown == {("causal-transformer", "python-stdlib"), ("matrix-factorisation", "insteval")}
    assert not shown & {(task.family, task.source) for task in TASKS if not task.demo}


def test_evaluation_only_tasks_are_larger():
    larger = [task for task in TASKS if task.evaluation_only]
    assert len(larger) >= 4
    for task in larger:
        size = sum(p.numel() for p in task.build(0).model.parameters())
        assert 1e6 <= size <= 1e7, (task.name, size)


def test_tasks_survive_pickling():
    for task in TASKS:
        copy = pickle.loads(pickle.dumps(task))
        assert copy.name == task.name and copy.build.func is task.build.func
    task = next(task for task in TASKS if task.source == "umls")
    ours, theirs = task.build(3), pickle.loads(pickle.dumps(task)).build(3)
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))


SPARSE = [task for task in (*RECORDED, *(t for t in TASKS if t.demo)) if "sparse" in task.name or task.demo]


def test_many_tasks_have_sparse_gradients():
    assert len({task.family for task in SPARSE}) >= 6


@pytest.mark.parametrize("task", [t for t in SPARSE if t.source != "python-stdlib"], ids=lambda task: task.name)
def test_sparse_tables_get_sparse_gradients_and_the_rest_dense_ones(task):
    instance = task.build(0)
    instance.loss_fn(instance.model, next(instance.batches())).backward()
    tables = embeddings(instance.model)
    assert tables and all(table.sparse for table in tables)
    for table in tables:
        assert table.weight.grad.is_sparse
    owned = {id(table.weight) for table in tables}
    others = [p for p in instance.model.parameters() if id(p) not in owned]
    assert all(p.grad is not None and not p.grad.is_sparse for p in others)


@pytest.mark.parametrize(
    "name",
    [
        "umls-kge-distmult-sparse",
        "insteval-wide-deep-sparse",
        "reuters-r52-words-embedding-bag-sparse-w32",
        "reuters-r52-words-encoder-transformer-w32",
        "python-stdlib-characters-lstm-w32",
        "insteval-two-tower-sparse",
    ],
)
def test_training_lowers_the_validation_loss(name):
    task = next(task for task in RECORDED if task.name.startswith(name))
    instance = task.build(0)
    start = validation_loss(instance)
    sparse = [m.weight for m in embeddings(instance.model) if m.sparse]
    kept = {id(p) for p in sparse}
    dense = [p for p in instance.model.parameters() if id(p) not in kept]
    optimizers = [torch.optim.AdamW(dense, lr=5e-3)] if dense else []
    optimizers += [torch.optim.SparseAdam(sparse, lr=2e-2)] if sparse else []
    for batch in itertools.islice(instance.batches(), 60):
        for optimizer in optimizers:
            optimizer.zero_grad()
        instance.loss_fn(instance.model, batch).backward()
        for optimizer in optimizers:
            optimizer.step()
    end = validation_loss(instance)
    assert 0.05 < end < 0.97 * start


@pytest.mark.parametrize("corpus", ["20newsgroups-words", "reuters-r52-words", "chinese-reviews-characters"])
def test_no_document_is_on_both_sides(corpus):
    data = load_corpus(corpus)
    documents = [{ids.tobytes() for ids in np.split(side.ids, side.starts[1:-1])} for side in (data.train, data.valid)]
    # Rare words become one id, so short messages may coincide without being the same text.
    assert len(documents[0] & documents[1]) <= 0.002 * len(documents[1])


def test_the_standard_library_is_split_by_file_and_hashed():
    data = load_corpus("python-stdlib-characters")
    files = stdlib_files()
    assert len(data.train.starts) + len(data.valid.starts) - 2 == len(files)
    assert len(data.train.ids) > 1_000_000
    assert stdlib_digest() == hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
    assert not any(file.name.startswith("_") for file in files)


def test_a_corpus_keeps_its_text():
    data = load_corpus("python-stdlib-characters")
    first = next(file for i, file in enumerate(stdlib_files()) if i % 10)
    ids = data.train.ids[: data.train.starts[1]]
    content = first.read_text(encoding="utf-8")
    assert len(ids) == len(content) + 1 and ids[-1] == END
    # One symbol is one id: a bijection between the characters and the ids that occur.
    assert len(set(zip(content, ids[:-1].tolist(), strict=True))) == len(set(content)) == len(set(ids[:-1]))


def test_tags_stand_beside_their_words():
    data = load_corpus("peoples-daily-words")
    assert data.num_tags > 30
    for side in (data.train, data.valid):
        assert len(side.tags) == len(side.ids)
        assert np.array_equal(side.tags == IGNORED, side.ids == END) or side is data.valid
        assert side.tags.max() < data.num_tags


def test_an_unknown_corpus_is_named_with_the_known_ones():
    with pytest.raises(TaskError, match="no corpus 'moby-dick'.*reuters-r52-words"):
        load_corpus("moby-dick")
    assert "reuters-r52-words" in CORPORA


@pytest.mark.parametrize("load", [load_insteval, load_flights, load_films])
def test_rows_are_split_into_disjoint_parts(load):
    data = load()
    both = np.concatenate((data.train, data.valid))
    assert len(np.unique(both)) == len(both)
    assert len(data.valid) > 1000


@pytest.mark.parametrize("name", ["umls", "kinships"])
def test_no_triple_is_on_both_sides(name):
    triples = load_triples(name)
    train, valid = (set(map(tuple, side.tolist())) for side in (triples.train, triples.valid))
    assert not train & valid
    edges = relation_edges(triples)
    assert {tuple(edge) for edge in edges.T.tolist()} == {tuple(edge) for edge in edges[::-1].T.tolist()}


@pytest.mark.parametrize("source", ["20newsgroups", "wikidata-films"])
def test_node_graphs_are_symmetric_and_split(source):
    data = load_node_graph(source)
    edges = {tuple(edge) for edge in data.edges.T.tolist()}
    assert edges == {(b, a) for a, b in edges}
    assert not any(a == b for a, b in edges)
    assert not set(data.train.tolist()) & set(data.valid.tolist())


def test_flights_know_nothing_that_happens_after_departure():
    rows = load_flights()
    assert rows.categories.shape[1] == len(FLIGHT_FIELDS)
    assert not {"dep_time", "arr_time", "arr_delay", "air_time", "dep_delay"} & set(FLIGHT_FIELDS)
    late = rows.target > 0
    assert 0.15 < late.mean() < 0.3
    for column in rows.numbers.T:
        assert abs(np.corrcoef(column, rows.target)[0, 1]) < 0.3


def test_crosses_add_fields_within_their_buckets():
    rows = load_insteval()
    more = crossed(rows, ((0, 1), (2, 3)), 100)
    assert more.sizes == (*rows.sizes, 100, 100)
    assert more.categories[:, -1].max() < 100 and more.categories.min() >= 0
    # A cross is a function of its two fields.
    pairs = {}
    for row in more.categories[:3000]:
        assert pairs.setdefault((row[2], row[3]), row[-1]) == row[-1]


def test_negative_sampling_is_the_sum_of_logistic_losses():
    scores = torch.tensor([[0.5, -1.0, 2.0], [0.0, 0.0, 0.0]])

    def model(centres, contexts):
        return scores

    by_hand = [math.log1p(math.exp(-0.5)) + math.log1p(math.exp(-1)) + math.log1p(math.exp(2)), 3 * math.log(2)]
    loss = negative_sampling(model, (torch.zeros(2), torch.zeros(2, 3)))
    assert loss.item() == pytest.approx(sum(by_hand) / 2, rel=1e-6)


def test_in_batch_softmax_wants_the_diagonal():
    def model(queries, items):
        return queries @ items.T

    eye = torch.eye(4) * 20.0
    assert in_batch_softmax(model, (eye, eye)).item() < 1e-6
    assert in_batch_softmax(model, (eye, eye.flip(0))).item() > 100.0
    instance = build_two_tower(0, source="insteval", width=8, batch_size=16)
    assert all(len(queries) == 256 for queries, _ in instance.validation)


def test_the_causal_transformer_does_not_look_ahead():
    for attention in ("split", "fused"):
        torch.manual_seed(0)
        model = Transformer(20, 20, 32, 2, 8, causal=True, attention=attention, gated=attention == "split")
        ids = torch.randint(1, 20, (3, 8))
        changed = ids.clone()
        changed[:, 5:] = (changed[:, 5:] % 19) + 1
        before, after = model(ids), model(changed)
        assert torch.allclose(before[:, :5], after[:, :5], atol=1e-5)
        assert not torch.allclose(before[:, 5:], after[:, 5:], atol=1e-3)


def test_padding_changes_nothing_for_encoders():
    for attention in ("split", "fused"):
        torch.manual_seed(0)
        model = Transformer(20, 3, 32, 2, 10, causal=False, pooled=True, attention=attention).eval()
        ids = torch.randint(1, 20, (4, 6))
        padded = torch.cat((ids, torch.zeros(4, 4, dtype=torch.long)), dim=1)
        with torch.no_grad():
            assert torch.allclose(model(ids), model(padded), atol=1e-5)


def test_tied_models_share_one_matrix():
    tied = Transformer(20, 20, 32, 1, 8, causal=True, tied=True, init_std=0.02)
    assert tied.head.weight is tied.embedding.weight
    recurrent = RecurrentModel("lstm", 20, 20, 16, tied=True)
    assert recurrent.head.weight is recurrent.embedding.weight


def test_the_factorisation_term_is_the_sum_over_pairs():
    torch.manual_seed(0)
    model = DeepFm((5, 6, 7), 0, 4, (8,), sparse=False)
    for parameter in model.deep.parameters():
        nn.init.zeros_(parameter)
    categories = torch.tensor([[1, 2, 3], [4, 5, 6]])
    vectors = model.embedding(categories + torch.tensor([0, 5, 11]))
    pairs = [(vectors[:, i] * vectors[:, j]).sum(1) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert torch.allclose(model(categories, torch.zeros(2, 0)), sum(pairs), atol=1e-6)


def test_a_graph_convolution_is_the_normalised_adjacency():
    torch.manual_seed(0)
    edges = np.array([[0, 1, 1, 2], [1, 0, 2, 1]])
    layer = GraphConvolution(3, 2, edges, 4)
    adjacency = torch.eye(4)
    adjacency[edges[0], edges[1]] = 1.0
    scale = adjacency.sum(1).rsqrt()
    x = torch.randn(4, 3)
    by_hand = (scale[:, None] * adjacency * scale) @ layer.linear(x)
    assert torch.allclose(layer(x), by_hand, atol=1e-6)


def test_knowledge_graph_scores_follow_their_formulas():
    heads, relations, tails = torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([[2, 3], [3, 0]])
    for score in ("transe", "distmult", "complex"):
        torch.manual_seed(0)
        model = KnowledgeEmbedding(score, 4, 2, 6, sparse=False)
        h, r, t = model.entity(heads)[:, None], model.relation(relations)[:, None], model.entity(tails)
        if score == "transe":
            by_hand = -(h + r - t).abs().sum(-1)
        elif score == "distmult":
            by_hand = (h * r * t).sum(-1)
        else:
            h, r, t = (torch.complex(x[..., :3], x[..., 3:]) for x in (h, r, t))
            by_hand = (h * r * t.conj()).sum(-1).real
        assert torch.allclose(model(heads, relations, tails), by_hand, atol=1e-6)


@pytest.mark.parametrize("num_negatives", [0, 8])
def test_drawn_tails_never_repeat_the_true_one(num_negatives):
    instance = build_embedding(0, source="umls", score="distmult", width=8, batch_size=64, num_negatives=num_negatives)
    for _, _, tails in itertools.islice(instance.batches(), 5):
        assert not (tails[:, 1:] == tails[:, :1]).any()
        if num_negatives == 0:
            assert torch.equal(tails.sort(1).values, torch.arange(tails.shape[1]).expand_as(tails))
