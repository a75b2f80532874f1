"""The task suite: its registry, the contract of a task, and that a task of every family is learned."""

import itertools
import math
import pickle
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from autoopt.errors import TaskError
from autoopt.tasks import (
    Task,
    TaskInstance,
    all_tasks,
    autoencoder,
    check_task,
    get_task,
    load_tasks,
    series,
    survival,
    synthetic,
    tabular,
    vision,
)

MODULES = (vision, autoencoder, tabular, survival, series, synthetic)
TASKS = tuple(task for module in MODULES for task in module.tasks())
RECORDED = tuple(task for task in TASKS if not task.demo and not task.evaluation_only)


def cheapest_by_family():
    """The recorded task of least work in each architecture family."""
    order = sorted(RECORDED, key=lambda task: (task.family, task.width * task.batch_size, task.name))
    return [next(group) for _, group in itertools.groupby(order, key=lambda task: task.family)]


def validation_loss(instance):
    instance.model.eval()
    loss = instance.validation_loss_fn or instance.loss_fn
    weights = instance.batch_weights or (1 / len(instance.validation),) * len(instance.validation)
    with torch.no_grad():
        values = [loss(instance.model, batch).item() for batch in instance.validation]
    instance.model.train()
    return sum(value * weight for value, weight in zip(values, weights, strict=True))


def line_batches(seed):
    generator = torch.Generator().manual_seed(seed)
    while True:
        x = torch.randn(4, 3, generator=generator)
        yield x, x.sum(1, keepdim=True)


def line_loss(model, batch):
    return functional.mse_loss(model(batch[0]), batch[1])


def build_line(seed):
    """A well-behaved task, from which the failing ones are made."""
    torch.manual_seed(seed)
    x = torch.ones(2, 3)
    return TaskInstance(nn.Linear(3, 1), line_loss, lambda: line_batches(seed), ((x, x.sum(1, keepdim=True)),))


def line_task(change=None):
    def build(seed):
        instance = build_line(seed)
        return instance if change is None else change(instance, seed)

    return Task("line", "mlp", "line", 4, 30, build)


def module_with(monkeypatch, name, **members):
    module = types.ModuleType(name)
    module.__dict__.update(members)
    monkeypatch.setitem(sys.modules, name, module)
    return name


# The registry


def test_the_suite_has_every_domain_and_unique_names():
    suite = all_tasks()
    assert len({task.name for task in suite}) == len(suite)
    assert {task.name for task in TASKS} < {task.name for task in suite}
    assert {"vision", "tabular", "survival", "series", "synthetic", "text", "recsys", "graph"} == {
        task.domain for task in suite
    }


def test_the_suite_covers_its_range():
    assert len(RECORDED) >= 100
    assert len({task.family for task in RECORDED}) >= 24
    assert len({task.source for task in RECORDED}) >= 30
    assert {task.batch_size for task in RECORDED} >= {4, 8, 16, 32, 64, 128, 256, 512}
    assert min(task.budget_steps for task in RECORDED) * 20 <= max(task.budget_steps for task in RECORDED)
    assert sum(task.evaluation_only for task in TASKS) >= 4


def test_convolutions_on_mnist_are_left_to_the_demo():
    convolutional = [task for task in all_tasks() if task.family in ("cnn", "resnet") and task.source == "mnist-5k"]
    assert [task.name for task in convolutional] == ["demo-mnist-cnn"]
    assert get_task("demo-mnist-cnn").demo
    assert (get_task("demo-mnist-cnn").batch_size, get_task("demo-mnist-cnn").budget_steps) == (64, 600)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_a_name_tells_the_task(task):
    if not task.demo:
        for part in (task.family, task.source, f"-w{task.width}-", f"-b{task.batch_size}-", f"-s{task.budget_steps}"):
            assert part in task.name
    assert pickle.loads(pickle.dumps(task)).name == task.name


def test_an_unknown_name_lists_close_ones():
    with pytest.raises(TaskError, match="did you mean .*digits-mlp-w32-b16-s400"):
        get_task("digits-mlp-w32-b16")
    with pytest.raises(TaskError, match="all_tasks"):
        get_task("?")


def test_user_modules_are_loaded(monkeypatch):
    name = module_with(monkeypatch, "my_tasks", tasks=lambda: [line_task()])
    assert [task.name for task in load_tasks([name])] == ["line"]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"tasks": lambda: [line_task(), line_task()]}, "two tasks are named 'line'"),
        ({"tasks": lambda: ["line"]}, "gave a str, expected a Task"),
        ({"tasks": 3}, "must expose a function tasks"),
        ({}, "must expose a function tasks"),
    ],
)
def test_a_bad_user_module_is_named(monkeypatch, members, message):
    name = module_with(monkeypatch, "bad_tasks", **members)
    with pytest.raises(TaskError, match=message):
        load_tasks([name])


def test_a_missing_user_module_is_named():
    with pytest.raises(TaskError, match="'no_such_tasks' cannot be imported"):
        load_tasks(["no_such_tasks"])
    with pytest.raises(TaskError, match="sequence of module names"):
        load_tasks("no_such_tasks")


# The contract


@pytest.mark.parametrize("task", cheapest_by_family(), ids=lambda task: task.family)
def test_a_task_of_every_family_keeps_the_contract(task):
    check_task(task, max_draws=20)


@pytest.mark.parametrize("name", ["demo-mnist-cnn", "mnist-5k-autoencoder-w1024-b64-s300"])
def test_demo_and_larger_tasks_keep_the_contract(name):
    check_task(get_task(name), num_batches=1, max_draws=2)


def unseeded_model(instance, seed):
    torch.seed()
    return replace(instance, model=nn.Linear(3, 1))


def same_model(instance, seed):
    torch.manual_seed(0)
    return replace(instance, model=nn.Linear(3, 1))


def other_sequence_each_time(instance, seed):
    calls = itertools.count()
    return replace(instance, batches=lambda: line_batches(seed + 10 * next(calls)))


def seeded_validation(instance, seed):
    return replace(instance, validation=((torch.full((2, 3), float(seed)), torch.ones(2, 1)),))


BREACHES = {
    "bit-identical parameters": unseeded_model,
    "different parameters": same_model,
    "different sequences": lambda instance, seed: replace(instance, batches=lambda: line_batches(0)),
    "same sequence of batches": lambda instance, seed: replace(
        instance, batches=lambda: line_batches(torch.seed() % 2**31)
    ),
    "same sequence again": other_sequence_each_time,
    "must be endless": lambda instance, seed: replace(
        instance, batches=lambda: itertools.islice(line_batches(seed), 8)
    ),
    "must not depend on the seed": seeded_validation,
    "at least one validation batch": lambda instance, seed: replace(instance, validation=()),
    "batch_weights": lambda instance, seed: replace(instance, batch_weights=(0.5, 0.5)),
    "scalar tensor, of shape": lambda instance, seed: replace(instance, loss_fn=lambda model, batch: model(batch[0])),
    "must be finite": lambda instance, seed: replace(
        instance, loss_fn=lambda model, batch: line_loss(model, batch) * math.inf
    ),
    "by gradient": lambda instance, seed: replace(
        instance, loss_fn=lambda model, batch: line_loss(model, batch).detach()
    ),
    "gradient of 'weight' is not finite": lambda instance, seed: replace(
        instance, loss_fn=lambda model, batch: (model.weight - model.weight).abs().sqrt().sum()
    ),
    "finite scalar tensor": lambda instance, seed: replace(
        instance, validation_loss_fn=lambda model, batch: torch.tensor(math.nan)
    ),
    "no trainable parameter": lambda instance, seed: replace(instance, model=instance.model.requires_grad_(False)),
    "train mode": lambda instance, seed: replace(instance, model=instance.model.eval()),
}


def test_a_well_behaved_task_passes():
    assert check_task(line_task()) is None


@pytest.mark.parametrize("rule", BREACHES)
def test_each_broken_rule_is_named(rule):
    with pytest.raises(TaskError, match=f"task 'line': .*{rule}"):
        check_task(line_task(BREACHES[rule]))


# Learning


@pytest.mark.parametrize("task", cheapest_by_family(), ids=lambda task: task.family)
def test_a_task_of_every_family_is_learned(task):
    instance = task.build(0)
    before = validation_loss(instance)
    optimizer = torch.optim.AdamW(instance.model.parameters(), lr=1e-2, fused=True)
    for batch in itertools.islice(instance.batches(), min(task.budget_steps, 120)):
        optimizer.zero_grad()
        instance.loss_fn(instance.model, batch).backward()
        optimizer.step()
    after = validation_loss(instance)
    assert 0 < after < 0.97 * before
