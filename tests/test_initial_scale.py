"""Rates and limits that follow from the scale that weights start at."""

import copy
import math

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from autoopt import AutoOptimizer, recommend
from autoopt.architecture import Architecture, describe, frozen_layers
from autoopt.optimizers.muon import Muon
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import Recipe, calibrated_default
from autoopt.optimizers.reference import SCALE_POWER, reference_lr, starts_small


class Sine(nn.Module):
    """A sine network: hidden weights start at sqrt(6 / fan_in) / 30, as its authors say."""

    def __init__(self, width=32):
        super().__init__()
        self.first, self.hidden, self.head = nn.Linear(2, width), nn.Linear(width, width), nn.Linear(width, 3)
        nn.init.uniform_(self.hidden.weight, -math.sqrt(6 / width) / 30, math.sqrt(6 / width) / 30)

    def forward(self, x):
        return self.head(torch.sin(30 * self.hidden(torch.sin(30 * self.first(x)))))


def tables(std):
    model = nn.Sequential(nn.Embedding(50, 8), nn.Flatten(), nn.Linear(8, 3))
    nn.init.normal_(model[0].weight, std=std)
    return model


def test_scales_are_those_of_the_elements():
    model = Sine().double()
    for name, layer in describe(model).items():
        rms = dict(model.named_parameters())[name].square().mean().sqrt().item()
        assert layer.rms == pytest.approx(rms, rel=1e-3), name
    layers = describe(model)
    assert layers["hidden.weight"].relative_scale == pytest.approx(math.sqrt(6) / 30, rel=0.1)
    assert layers["head.weight"].relative_scale == pytest.approx(1.0, rel=0.2)
    assert layers["hidden.bias"].relative_scale is None
    assert Architecture.from_json(layers.to_json()) == layers


def test_what_cannot_be_read_has_no_scale():
    with torch.device("meta"):
        assert all(layer.rms is None for layer in describe(Sine()).layers)
    with FakeTensorMode():
        assert all(layer.rms is None for layer in describe(Sine()).layers)
    model = tables(1.0)
    with torch.no_grad():
        model[0].weight[0, 0] = math.nan
        model[2].weight.zero_()
    layers = describe(model)
    assert layers["0.weight"].rms is None and layers["2.weight"].rms == 0.0
    assert layers["2.weight"].relative_scale is None


def test_frozen_layers_have_scales_too():
    model = tables(0.02)
    model[0].requires_grad_(False)
    assert frozen_layers(model)[0].rms == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("std", [0.01, 0.1, 1.0, 3.0])
def test_an_embeddings_rate_falls_with_its_scale_and_never_rises(std):
    layer = describe(tables(std))["0.weight"]
    wanted = min(1.0, layer.rms) ** SCALE_POWER
    assert reference_lr("adamw", layer, scale_free=True) == pytest.approx(wanted)
    assert reference_lr("adamw", layer) == 1.0
    assert reference_lr("sgd", layer, scale_free=True) == 1.0


def test_other_layers_and_unknown_scales_keep_their_rates():
    with torch.device("meta"):
        unknown = describe(tables(1.0))["0.weight"]
    assert reference_lr("adamw", unknown, scale_free=True) == 1.0
    head = describe(tables(0.01))["2.weight"]
    assert reference_lr("adamw", head, scale_free=True) == reference_lr("adamw", head)


def test_the_recipe_says_whether_rates_follow_the_scale():
    small = tables(0.01)
    absolute = Recipe.uniform("adamw", 0.05)
    relative = Recipe.uniform("adamw", 0.05, scale_free=True)
    assert "scale_free" not in absolute.to_json()
    assert Recipe.from_json(relative.to_json()) == relative
    layers = describe(small).layers
    rates = [recipe.resolve(layers).layers["0.weight"] for recipe in (absolute, relative)]
    assert rates[0].lr == 0.05 and rates[1].lr == pytest.approx(0.05 * layers[0].rms ** SCALE_POWER)
    assert rates[0].relative_lr == pytest.approx(0.05) and rates[1].relative_lr == pytest.approx(0.05)


def test_only_hidden_layers_that_start_small_are_limited():
    layers = describe(Sine())
    assert [name for name, layer in layers.items() if starts_small(layer)] == ["hidden.weight"]
    recipe = Recipe.uniform("muon", 0.02, max_relative_update=0.05)
    configs = recipe.resolve(layers.values()).layers
    limited = [name for name, config in configs.items() if config.complete.get("max_relative_update") == 0.05]
    assert limited == ["hidden.weight"]
    zero = Sine()
    nn.init.zeros_(zero.hidden.weight)
    assert not starts_small(describe(zero)["hidden.weight"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(16, 16), (8, 40), (12, 3, 3, 3)], ids=str)
def test_no_update_is_larger_than_the_limit_and_its_direction_stays(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    start = 1e-3 * torch.randn(shape, generator=generator)
    grad = torch.randn(shape, generator=generator).to(dtype)
    changes = []
    for limit in (None, 0.05):
        weight = nn.Parameter(start.to(dtype))
        before = weight.detach().double().clone()
        weight.grad = grad.clone()
        Muon([weight], lr=0.02, max_relative_update=limit).step()
        changes.append(weight.detach().double() - before)
    free, limited = changes
    assert free.norm() > 0.5 * before.norm()
    assert float(limited.norm() / before.norm()) == pytest.approx(0.05, rel=0.02)
    if dtype == torch.float32:
        assert torch.nn.functional.cosine_similarity(free.flatten(), limited.flatten(), dim=0) > 0.9999


def test_large_and_zero_weights_are_stepped_as_without_a_limit():
    for start in (torch.zeros(8, 8), torch.eye(8)):
        stepped = []
        for limit in (None, 0.05):
            weight = nn.Parameter(start.clone())
            weight.grad = torch.randn(8, 8, generator=torch.Generator().manual_seed(1))
            Muon([weight], lr=0.02, max_relative_update=limit).step()
            stepped.append(weight.detach())
        assert torch.equal(*stepped)


def test_a_rate_of_zero_and_a_rate_on_the_device():
    weight = nn.Parameter(torch.full((4, 4), 1e-3))
    weight.grad = torch.eye(4)
    Muon([weight], lr=0.0, max_relative_update=0.05).step()
    assert torch.equal(weight.detach(), torch.full((4, 4), 1e-3))
    Muon([weight], lr=torch.tensor(0.02), max_relative_update=0.05).step()
    assert float((weight.detach() - 1e-3).norm()) == pytest.approx(0.05 * 4e-3, rel=0.01)


def test_limits_out_of_range_are_refused():
    with pytest.raises(ValueError, match="max_relative_update must be above 0"):
        Muon([nn.Parameter(torch.zeros(2, 2))], max_relative_update=0.0)


def test_a_limited_plan_goes_on_from_a_checkpoint_and_travels_as_json():
    config = OptimizerConfig("muon", {"lr": 0.02, "max_relative_update": 0.05})
    model = Sine()
    plan = OptimizerPlan.uniform(model, "adamw")
    plan = OptimizerPlan(plan.layers | {"hidden.weight": config})
    assert OptimizerPlan.from_json(plan.to_json()) == plan
    models, losses = (model, Sine()), []
    models[1].load_state_dict(model.state_dict())
    optimizers = [AutoOptimizer.from_plan(own, plan) for own in models]
    batches = torch.rand(4, 8, 2, generator=torch.Generator().manual_seed(0))

    def step(own, optimizer, batch):
        optimizer.zero_grad()
        loss = own(batch).square().mean()
        loss.backward()
        optimizer.step()
        return loss.item()

    for batch in batches[:2]:
        step(model, optimizers[0], batch)
    models[1].load_state_dict(model.state_dict())
    optimizers[1].load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    for batch in batches[2:]:
        losses.append([step(own, optimizer, batch) for own, optimizer in zip(models, optimizers, strict=True)])
    assert all(one == other for one, other in losses)


def test_the_default_limits_a_sine_network_and_no_common_one():
    default = calibrated_default()
    assert default.scale_free and default.max_relative_update == 0.025
    configs = default.resolve(describe(Sine()).layers).layers
    assert configs["hidden.weight"].complete["max_relative_update"] == 0.025
    common = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 64), nn.Linear(64, 64), nn.Linear(64, 5))
    configs = default.resolve(describe(common).layers).layers
    assert all(config.complete.get("max_relative_update") is None for config in configs.values())


def test_the_report_says_what_follows_from_small_weights():
    class Both(Sine):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(50, 8)
            nn.init.normal_(self.table.weight, std=0.02)

    text = str(recommend(Both(), total_steps=100, selector="default").to_markdown())
    assert "Small initial weights" in text
    assert "rates of 1 embedding table times 0.2" in text
    assert "updates of 1 tensor limited to 2.5 % of its norm" in text
    assert "Small initial weights" not in recommend(nn.Linear(4, 2), total_steps=100, selector="default").to_markdown()
