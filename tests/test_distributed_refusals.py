"""Wrappers that lose the layers are refused with what to do instead, and what is proposed works."""

import copy
import json
import pickle

import pytest
import torch
from distributed_models import plain_classifier
from small_models import batches, classifier, loss_fn, parameters, train
from torch import nn

import autoopt
from autoopt import AutoOptimizer, ModelError, OptimizerPlan
from autoopt.distributed import Ranks, register_noise_scale_hook

OPTIONS = {"total_steps": 40, "warmup_steps": 6, "selector": "default"}


def test_parameters_that_zero_partitions_are_refused():
    model = classifier()
    model.hidden.weight.ds_id = 3
    with pytest.raises(ModelError, match=r"'hidden.weight' is partitioned by DeepSpeed ZeRO.*fully_shard.*stage to 0"):
        autoopt.select(model, **OPTIONS)


def test_a_deepspeed_engine_is_refused():
    class DeepSpeedEngine(nn.Module):
        __module__ = "deepspeed.runtime.engine"

        def __init__(self):
            super().__init__()
            self.module = classifier()

    with pytest.raises(ModelError, match="DeepSpeed ZeRO flattens parameters"):
        autoopt.select(DeepSpeedEngine(), **OPTIONS)


@pytest.mark.parametrize("make", [autoopt.select, None], ids=["selecting", "fixed plan"])
def test_parameters_that_were_flattened_after_select_are_refused_at_the_next_step(make):
    """ZeRO 1 and 2 put one flat tensor in place of the parameters of each group."""
    model = classifier(sparse=False)
    if make is None:
        optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "adamw"))
    else:
        optimizer = autoopt.select(model, **OPTIONS)
    flat = nn.Parameter(torch.cat([param.detach().flatten() for param in model.parameters()]))
    flat.grad = torch.ones_like(flat)
    before = flat.detach().clone()
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(ModelError, match=r"made for 7 parameters, but its group holds 1 now.*fully_shard"):
        optimizer.step()
    assert torch.equal(flat, before)


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # which torch.distributed.optim still uses
def test_an_optimizer_in_backward_is_refused_at_select():
    from torch.distributed.optim import _apply_optimizer_in_backward

    model = plain_classifier(sparse=False)
    _apply_optimizer_in_backward(torch.optim.SGD, model.parameters(), {"lr": 0.1})
    with pytest.raises(ModelError, match=r"steps within backward.*OptimizerPlan\(\{name: plan.layers\[name\]\}"):
        autoopt.select(model, **OPTIONS)


def test_stepping_within_backward_is_refused_before_the_decision():
    model = plain_classifier(sparse=False)
    optimizer = autoopt.select(model, **OPTIONS)
    model.head.weight.register_post_accumulate_grad_hook(lambda _: optimizer.step())
    before = parameters(model)
    with pytest.raises(ModelError, match=r"step\(\) was called within backward.*autoopt.recommend"):
        loss_fn(model, next(batches(1))).backward()
    assert parameters(model) == before


def test_one_optimizer_a_parameter_steps_within_backward_as_the_whole_plan_does(predictor):
    whole, each = plain_classifier(sparse=False), plain_classifier(sparse=False)
    data = list(batches(12))
    options = OPTIONS | {"selector": predictor, "clip_norm": None}  # nobody sees all gradients together
    plan = autoopt.recommend(each, batches=data, loss_fn=loss_fn, **options).plan
    optimizers = {
        param: AutoOptimizer([(name, param)], plan=OptimizerPlan({name: plan.layers[name]}, plan.schedule))
        for name, param in each.named_parameters()
    }

    def step(param):
        optimizers[param].step()
        optimizers[param].zero_grad()

    for param in each.parameters():
        param.register_post_accumulate_grad_hook(step)
    for batch in data:
        loss_fn(each, batch).backward()
    train(whole, AutoOptimizer.from_plan(whole, plan), data)
    # Muon orthogonalises matrices of one shape in one batch, which none of these share.
    assert parameters(each) == parameters(whole)


def test_data_parallel_is_seen_through(predictor):
    model = plain_classifier(sparse=False)
    optimizer = autoopt.select(nn.DataParallel(model), **OPTIONS | {"selector": predictor})
    assert list(optimizer.plan.layers) == [name for name, _ in model.named_parameters()]
    again = AutoOptimizer.from_plan(nn.DataParallel(model), optimizer.plan)
    assert again.plan == optimizer.plan


def test_the_noise_scale_needs_a_wrapped_model_and_a_selecting_optimizer():
    model = classifier()
    optimizer = autoopt.select(model, **OPTIONS)
    with pytest.raises(ModelError, match="the model is a Classifier: wrap it first"):
        register_noise_scale_hook(model, optimizer)


@pytest.mark.parametrize("group", ["all", 3, object()])
def test_a_process_group_is_one(group):
    with pytest.raises((ValueError, TypeError), match="process_group must be 'auto', None or a"):
        autoopt.select(classifier(), process_group=group, **OPTIONS)


def test_ranks_travel_with_the_optimizer():
    ranks = Ranks("some group")
    assert pickle.loads(pickle.dumps(ranks)) == copy.deepcopy(ranks) == ranks
    assert ranks.size == 1  # torch.distributed is not in use
    assert ranks.from_first(lambda: json.dumps([1]), "a test") == "[1]"
