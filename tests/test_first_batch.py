"""What is read off the first training batch."""

import copy
import math
import pickle

import pytest
import torch
from small_models import batches, classifier, loss_fn
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import autoopt
from autoopt.features import extract
from autoopt.first_batch import FirstBatchProbe, relative_entropy


def hooks(model):
    return len(model._forward_pre_hooks) + len(model._forward_hooks)


class Says(nn.Module):
    """Returns what it was made with."""

    def __init__(self, outputs):
        super().__init__()
        self.outputs = outputs

    def forward(self, inputs=None):
        return self.outputs


def read(outputs, num_outputs, *inputs):
    facts = {}
    model = Says(outputs)
    FirstBatchProbe(facts, num_outputs).attach(model)
    model(*inputs)
    assert hooks(model) == 0
    return facts


def test_relative_entropy_matches_brute_force():
    logits = 3 * torch.randn(4, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for row in logits.reshape(-1, 6).tolist():
        weights = [math.exp(value) for value in row]
        total -= sum(w / sum(weights) * math.log(w / sum(weights)) for w in weights)
    assert float(relative_entropy(logits)) == pytest.approx(total / 20 / math.log(6), rel=1e-5)
    assert float(relative_entropy(torch.tensor([[200.0, 0.0]]))) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("outputs", "num_predictions"),
    [
        (torch.zeros(8, 10), 8),
        (torch.zeros(8, 5, 10), 40),
        (torch.zeros(8, 10, 4, 4), 128),
        ({"loss": torch.tensor(1.0), "logits": torch.zeros(8, 10)}, 8),
        ((torch.zeros(8, 10, dtype=torch.bfloat16), torch.zeros(3)), 8),
    ],
)
def test_predictions_are_found_among_the_outputs(outputs, num_predictions):
    facts = read(outputs, 10, torch.zeros(8, 3))
    assert facts.pop("batch_size") == 8.0
    assert facts.pop("batch_outputs") == num_predictions
    assert float(facts.pop("output_entropy")) == pytest.approx(1)
    assert not facts


@pytest.mark.parametrize("outputs", [torch.zeros(8, 3), torch.zeros(8, 10).long(), torch.tensor(1.0), None, "text"])
def test_other_outputs_are_left_alone(outputs):
    assert read(outputs, 10) == {}
    assert read(outputs, None) == {}


@pytest.mark.parametrize("outputs", [torch.zeros(8, 1), torch.zeros(8)])
def test_a_single_output_has_no_entropy(outputs):
    assert read(outputs, 1) == {"batch_outputs": 8.0}


def test_an_evaluation_and_a_failed_step_before_training_are_passed_over():
    class Fails(nn.Linear):
        def forward(self, inputs):
            if len(inputs) == 7:
                raise RuntimeError("out of memory")
            return super().forward(inputs)

    model, facts = Fails(3, 2), {}
    FirstBatchProbe(facts, 2).attach(model)
    model.eval()(torch.zeros(5, 3))
    assert facts == {} and hooks(model) == 2
    with pytest.raises(RuntimeError, match="memory"):
        model.train()(torch.zeros(7, 3))
    model(torch.zeros(4, 3))
    assert facts["batch_size"] == facts["batch_outputs"] == 4.0 and hooks(model) == 0


@pytest.mark.parametrize("way", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_of_a_waiting_model_stops_waiting_too(way):
    model = classifier()
    optimizer = autoopt.select(model, total_steps=100, selector="default")
    other = way(model)
    other(next(batches(1))[0])
    assert hooks(other) == 0 and hooks(model) == 2
    model(next(batches(1))[0])
    assert hooks(model) == 0 and optimizer.phase == "warmup"


def test_both_ways_of_profiling_know_the_same_task(predictor):
    options = {"total_steps": 40, "warmup_steps": 5, "selector": predictor}
    model = classifier()
    model.hidden.bias.requires_grad_(False)
    aside = autoopt.recommend(model, batches=list(batches(5)), loss_fn=loss_fn, **options)
    optimizer = autoopt.select(model, **options)
    facts = optimizer._selection.facts
    for batch in batches(5):
        optimizer.zero_grad()
        loss_fn(model, batch).backward()
        optimizer.step()
    assert facts["batch_size"] == facts["batch_outputs"] == 16.0
    assert 0.5 < float(facts["output_entropy"]) <= 1
    assert hooks(model) == 0 and aside.statistics.keys() == optimizer.recommendation.statistics.keys()


@pytest.mark.parametrize("told", [None, 320])
def test_the_number_of_examples_is_told_or_asked_of_the_loader(predictor, monkeypatch, told):
    seen = []
    monkeypatch.setattr(
        "autoopt.selection.extract", lambda layers, found: seen.append(found.task) or extract(layers, found)
    )
    inputs, labels = zip(*batches(4), strict=True)
    loader = DataLoader(TensorDataset(torch.cat(inputs), torch.cat(labels)), batch_size=16)
    options = {"total_steps": 40, "warmup_steps": 4, "selector": predictor, "num_examples": told}
    autoopt.recommend(classifier(), batches=loader, loss_fn=loss_fn, **options)
    assert seen[0]["num_examples"] == (told or 64)
    stream = DataLoader(Stream(loader.dataset), batch_size=16)
    autoopt.recommend(classifier(), batches=stream, loss_fn=loss_fn, **options)
    assert seen[1].get("num_examples") == told


class Stream(IterableDataset):
    def __init__(self, rows):
        self.rows = rows

    def __iter__(self):
        return (self.rows[i] for i in range(len(self.rows)))


@pytest.mark.parametrize("wrong", [0, -5, 2.5, True, "many"])
def test_an_impossible_number_of_examples_is_refused(wrong):
    with pytest.raises(ValueError, match="num_examples must be a positive whole number"):
        autoopt.select(classifier(), total_steps=100, num_examples=wrong)
