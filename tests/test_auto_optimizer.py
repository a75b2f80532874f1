"""Warm-up, decision and hand-over: what is skipped, carried, freed and refused."""

import math
from types import SimpleNamespace

import pytest
import torch
from optimizer_cases import RECIPES, Switch, assert_same, loss_of, net, snapshot, switching, train, twin
from torch import nn

import autoopt
from autoopt.architecture import describe
from autoopt.errors import ModelError, PlanError
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.catalog import CATALOG, get
from autoopt.optimizers.handover import hand_over
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.statistics import warmup

DENSE = [info.name for info in CATALOG if info.gradients != "sparse"]


# ---- warm-up --------------------------------------------------------------------------------------


def test_warmup_trains_as_the_plan_would_without_it():
    model, other = net(), net()
    losses = train(model, switching(model, RECIPES["default"], RECIPES["adamw"], warmup_steps=20), 10)
    plan = RECIPES["default"].resolve(describe(other).layers)
    assert losses == train(other, AutoOptimizer.from_plan(other, plan), 10)
    assert_same(model, other)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_warmup_step_with_a_nonfinite_gradient_is_skipped_and_counted(value, dtype):
    model = net(dtype=dtype)
    optimizer = switching(model, RECIPES["default"], RECIPES["adamw"], warmup_steps=6)
    reference, other = None, net(dtype=dtype)
    reference = switching(other, RECIPES["default"], RECIPES["adamw"], warmup_steps=6)
    for step in range(5):
        for each, using in ((model, optimizer), (other, reference)):
            using.zero_grad()
            loss_of(each, step).backward()
        if step == 2:
            model.hidden.weight.grad[1, 2] = value
            before = snapshot(model)
            optimizer.step()
            assert_same(snapshot(model), before)
            continue
        optimizer.step()
        reference.step()
        # The skipped batch aside, the two runs are one.
        if step < 2:
            assert_same(model, other)
    assert optimizer.num_nonfinite_steps == 1
    assert reference.num_nonfinite_steps == 0
    assert optimizer.param_groups[0]["step"] == 5
    assert int(optimizer.state[model.norm.weight]["step"]) == 4
    train(model, optimizer, 1, start=5)
    assert optimizer.phase == "selected"
    assert optimizer._selection.shown[0][0] == 1
    assert all(torch.isfinite(param).all() for param in model.parameters())


def test_large_finite_gradients_are_no_reason_to_skip():
    param = nn.Parameter(torch.zeros(100, dtype=torch.float16))
    double = nn.Parameter(torch.zeros(100, dtype=torch.float64))
    plan = OptimizerPlan({"p": OptimizerConfig("sgd"), "d": OptimizerConfig("sgd")})
    layers = {
        layer.name: layer for layer in autoopt.architecture.describe_parameters([("p", param), ("d", double)]).layers
    }
    optimizer = AutoOptimizer([("p", param), ("d", double)], plan=plan, selection=Switch(9, layers, plan))
    param.grad, double.grad = torch.full_like(param, 6e4), torch.full_like(double, 1e300)
    optimizer.step()
    assert optimizer.num_nonfinite_steps == 0


def test_skipped_steps_appear_in_the_recommendation():
    model = net()
    optimizer = autoopt.select(model, total_steps=40, warmup_steps=6, selector="default")
    for step in range(6):
        optimizer.zero_grad()
        loss_of(model, step).backward()
        if step in (1, 3):
            model.head.bias.grad[0] = math.nan
        optimizer.step()
    assert optimizer.recommendation.profile["num_nonfinite_steps"] == 2
    assert any("2 warm-up steps were skipped" in warning for warning in optimizer.recommendation.warnings)


def test_a_device_counts_what_it_skips_in_a_parameters_state():
    """The masked path that CUDA takes, run on a CPU by its parts."""
    from autoopt.optimizers.warmup_step import NonfiniteSteps, all_finite, zero_where_not

    state = {"a": {}, "b": {"exp_avg": torch.zeros(2)}}
    groups = [{"num_nonfinite_steps": 0, "step": 0}]
    for value, expected in ((1.0, 0), (math.nan, 1), (math.inf, 2), (2.0, 2)):
        grads = [torch.tensor([value, 1.0]), torch.ones(3)]
        finite = all_finite(grads)
        zero_where_not(finite, grads)
        assert grads[1].any() == math.isfinite(value)
        assert all(torch.isfinite(grad).all() for grad in grads)
        NonfiniteSteps(groups, state).add(finite.float())
        assert NonfiniteSteps(groups, state).count() == expected
    assert list(state["b"]) == ["exp_avg", "warmup_num_nonfinite"]


# ---- the switch -----------------------------------------------------------------------------------


def shapes(state):
    return {key: tuple(value.shape) if isinstance(value, torch.Tensor) else () for key, value in state.items()}


@pytest.mark.parametrize("after", RECIPES)
def test_after_the_switch_nothing_of_the_warmup_is_left(after):
    model = net()
    optimizer = switching(model, RECIPES["default"], RECIPES[after], warmup_steps=3)
    train(model, optimizer, 2)
    assert any(key.startswith(warmup.STATE_PREFIX) for state in optimizer.state.values() for key in state)
    train(model, optimizer, 2)
    assert optimizer.phase == "selected"
    plan = optimizer.plan
    fresh = net()
    reference = AutoOptimizer.from_plan(fresh, plan)
    train(fresh, reference, 1)
    for name, param in model.named_parameters():
        ours, theirs = optimizer.state[param], reference.state[fresh.get_parameter(name)]
        assert shapes(ours) == shapes(theirs), name
    assert {bucket.info.name for kernels in optimizer._kernels.values() for bucket in kernels} == {
        config.optimizer for config in plan.layers.values()
    }


def test_groups_rates_and_the_object_stay_through_the_switch():
    model = net()
    optimizer = switching(model, RECIPES["adamw"], RECIPES["default"], warmup_steps=2, lr=0.5)
    groups, kind = [id(group["params"]) for group in optimizer.param_groups], type(optimizer)
    train(model, optimizer, 4)
    assert [id(group["params"]) for group in optimizer.param_groups] == groups
    assert type(optimizer) is kind
    assert [group["lr"] for group in optimizer.param_groups] == [0.5]


def test_a_decision_for_the_same_plan_changes_nothing():
    model, other = net(), net()
    same = RECIPES["default"]
    train(model, switching(model, same, same, warmup_steps=3), 8)
    train(other, switching(other, same, same, warmup_steps=100), 8)
    assert_same(model, other)


def test_a_plan_that_no_library_takes_is_refused_at_the_switch_with_nothing_changed():
    model = net()
    optimizer = switching(model, RECIPES["adamw"], RECIPES["adamw"], warmup_steps=2)
    bad = OptimizerPlan.uniform(model, "adamw", betas=(0.9, 7.0))
    optimizer._selection.decide = lambda _: SimpleNamespace(plan=bad)
    train(model, optimizer, 1)
    with pytest.raises(PlanError, match="adamw"):
        train(model, optimizer, 1, start=1)
    assert optimizer.phase == "warmup"
    assert optimizer.recommendation is None
    assert int(optimizer.state[model.scale]["step"]) == 2


# ---- hand-over ------------------------------------------------------------------------------------


@pytest.mark.parametrize("new", DENSE)
@pytest.mark.parametrize("old", ["adamw", "muon", "sgd", "lion", "rmsprop", "adagrad"])
def test_moments_are_carried_in_the_new_rules_units(old, new):
    """Under a constant gradient every rule's state is known: what is handed over must be it."""
    steps, grad = 30, torch.tensor([[0.5, -1.0, 2.0], [1.0, 0.25, -0.75]])

    def state_after(name):
        param = nn.Parameter(torch.zeros(2, 3))
        optimizer = AutoOptimizer([param], plan=OptimizerPlan({"p": OptimizerConfig(name)}))
        for _ in range(steps):
            param.grad = grad.clone()
            optimizer.step()
        return param, optimizer.state[param]

    param, state = state_after(old)
    carried = hand_over(OptimizerConfig(old), OptimizerConfig(new), dict(state), param, steps)
    _, expected = state_after(new)
    mean_known = old in ("adamw", "muon", "sgd", "lion")
    square_known = old in ("adamw", "rmsprop", "adagrad")
    needs_mean = new in ("adam", "adamw", "nadam", "radam", "muon", "lion", "sgd")
    needs_square = new in ("adam", "adamw", "nadam", "radam", "rmsprop", "adagrad", "adafactor")
    if new != old and (new == "soap" or (needs_mean and not mean_known) or (needs_square and not square_known)):
        assert carried == {}
        return
    assert carried.keys() == expected.keys()
    for key, value in carried.items():
        torch.testing.assert_close(torch.as_tensor(value), torch.as_tensor(expected[key]), rtol=1e-4, atol=1e-5)


def regression(seed):
    """A small network on a noisy target, as recorded tasks have it: loss and its noise are of one size."""
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Linear(12, 32), nn.ReLU(), nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)
    )
    x = torch.randn(512, 12, generator=generator)
    y = (x[:, :3].sin() + 0.3 * torch.randn(512, 3, generator=generator)).detach()
    order = torch.randint(0, 512, (200, 64), generator=generator)
    return model, lambda step: nn.functional.mse_loss(model(x[order[step]]), y[order[step]]), x, y


@pytest.mark.parametrize("after", ["adamw", "sgd", "default", "adafactor-rmsprop-adagrad"])
def test_the_loss_does_not_jump_at_the_switch(after, monkeypatch):
    """10 steps after the switch the loss is at most 5 % above the same run with all state dropped."""
    ratios = []
    for seed in range(4):
        losses = []
        for carried in (True, False):
            model, loss_fn, x, y = regression(seed)
            optimizer = switching(model, RECIPES["default"], RECIPES[after], warmup_steps=20)
            if not carried:
                monkeypatch.setattr("autoopt.optimizers.guarded_optimizer.hand_over", lambda *args: {})
            for step in range(30):
                optimizer.zero_grad()
                loss_fn(step).backward()
                optimizer.step()
            monkeypatch.undo()
            assert optimizer.phase == "selected"
            with torch.no_grad():
                losses.append(nn.functional.mse_loss(model(x), y).item())
        ratios.append(losses[0] / losses[1])
    assert max(ratios) < 1.05
    assert sum(ratios) / len(ratios) < 1.01


# ---- shapes ---------------------------------------------------------------------------------------

FLAT = [(1, 1), (1, 64), (64, 1), (2, 500), (500, 2), (0, 4), (4, 0)]
SHAPES = [*FLAT, (6, 4, 3), (3, 1, 1), (6, 4, 3, 3), (2, 3, 2, 2, 2)]


@pytest.mark.parametrize("name", [name for name in DENSE if get(name).min_ndim == 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_matrix_rules_take_every_shape(name, shape):
    param = nn.Parameter(torch.zeros(shape))
    optimizer = AutoOptimizer([param], plan=OptimizerPlan({"p": OptimizerConfig(name, {"lr": 0.1})}))
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        param.grad = torch.randn(shape, generator=generator)
        optimizer.step()
    assert torch.isfinite(param).all()
    assert param.numel() == 0 or param.abs().max() > 1e-4


def test_the_default_trains_a_model_of_every_kind_of_tensor():
    class Zoo(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.rnn = nn.GRU(8, 8, batch_first=True)
            self.conv = nn.Conv1d(8, 8, 3, padding=1)
            self.depthwise = nn.Conv1d(8, 8, 3, padding=1, groups=8)
            self.up = nn.ConvTranspose1d(8, 8, 2, stride=2)
            self.experts = nn.Parameter(torch.randn(3, 8, 8) / 8)
            self.bilinear = nn.Bilinear(8, 8, 4)
            self.norm = nn.LayerNorm(8)
            self.gain = nn.Parameter(torch.tensor(1.0))
            self.empty = nn.Parameter(torch.zeros(0, 8))
            self.head = nn.Linear(4, 2)

        def forward(self, rows):
            x = self.embedding(rows)
            x = x + self.attention(x, x, x)[0]
            x = self.norm(self.rnn(x)[0])
            x = self.up(self.depthwise(self.conv(x.transpose(1, 2)))).mean(2)
            x = sum(torch.tanh(x @ expert) for expert in self.experts) * self.gain + self.empty.sum()
            return self.head(self.bilinear(x, x))

    torch.manual_seed(0)
    model = Zoo()
    rows, target = torch.randint(0, 11, (16, 5)), torch.randint(0, 2, (16,))
    optimizer = autoopt.select(model, total_steps=60, warmup_steps=10, selector="default")
    losses = []
    for _ in range(25):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(rows), target)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert optimizer.phase == "selected"
    assert losses[-1] < 0.7 * losses[0]


# ---- bad input ------------------------------------------------------------------------------------


def test_an_unknown_optimizer_is_refused_with_close_names():
    with pytest.raises(PlanError, match="'admw'.*'adamw'"):
        OptimizerConfig("admw")


@pytest.mark.parametrize("lr", [-0.1, math.nan, math.inf, "0.1", None, torch.tensor(0.1)])
def test_a_planned_rate_that_is_no_finite_number_is_refused(lr):
    with pytest.raises(PlanError, match="lr"):
        OptimizerConfig("adamw", {"lr": lr})


def test_a_plan_that_misses_a_parameter_is_refused_by_name():
    model = net()
    plan = OptimizerPlan.uniform(model, "adamw")
    layers = {name: config for name, config in plan.layers.items() if name != "head.bias"}
    with pytest.raises(PlanError, match="no configuration for parameter 'head.bias'"):
        AutoOptimizer.from_plan(model, OptimizerPlan(layers))


def test_a_plan_that_names_a_foreign_parameter_is_refused_by_name():
    model = net()
    plan = OptimizerPlan.uniform(model, "adamw")
    layers = {**plan.layers, "tail.weight": OptimizerConfig("sgd")}
    with pytest.raises(PlanError, match="'tail.weight', which is not among the 9 given"):
        AutoOptimizer.from_plan(model, OptimizerPlan(layers))


def test_a_repeated_name_is_refused_within_a_group_and_across_groups():
    params = [("p", nn.Parameter(torch.ones(1))), ("p", nn.Parameter(torch.ones(1)))]
    for groups in (params, [{"params": [param]} for param in params]):
        with pytest.raises(ModelError, match="two parameters are named 'p'"):
            AutoOptimizer(groups)


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate")  # torch's own
def test_a_tensor_under_two_names_is_refused_by_both():
    param = nn.Parameter(torch.ones(2))
    with pytest.raises(ModelError, match="'a' and 'b' are one tensor"):
        AutoOptimizer([("a", param), ("b", param)])


def test_a_saved_plan_that_names_a_parameter_twice_is_refused_by_name():
    text = OptimizerPlan.uniform(nn.Linear(2, 2), "adamw").to_json()
    twice = text.replace('"layers": {', '"layers": {"weight": 0, ')
    assert twice != text
    with pytest.raises(PlanError, match="names 'weight' twice"):
        OptimizerPlan.from_json(twice)


def test_a_step_that_is_refused_changes_nothing():
    """Every gradient is looked at before any parameter is stepped."""
    model = nn.ModuleDict({"first": nn.Linear(3, 3), "table": nn.Embedding(5, 3)})
    plan = OptimizerPlan.uniform(model, "adamw").with_layers({"table.weight": OptimizerConfig("sparseadam")})
    optimizer = AutoOptimizer.from_plan(model, plan)
    before = snapshot(model)
    model["first"](model["table"](torch.tensor([1, 2]))).sum().backward()
    with pytest.raises(PlanError, match="'table.weight' has a dense gradient"):
        optimizer.step()
    assert_same(snapshot(model), before)
    assert not optimizer.state
    assert optimizer.param_groups[0]["step"] == 0


@pytest.mark.parametrize("name", ["muon", "soap"])
def test_a_matrix_rule_on_a_vector_is_refused_by_name(name):
    model = nn.Linear(3, 3)
    with pytest.raises(PlanError, match=r"'bias' of shape \(3,\).*2 dimensions"):
        AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, name))


def test_a_rule_on_a_role_it_cannot_take_is_refused_by_name():
    model = nn.Linear(3, 3)
    layers = dict(describe(model).items())
    plan = OptimizerPlan.uniform(model, "sparseadam")
    with pytest.raises(PlanError, match="'weight' is of role 'head' and cannot take SparseAdam"):
        AutoOptimizer(model.named_parameters(), plan=plan, selection=Switch(3, layers, plan))


def test_blocks_that_do_not_divide_a_matrix_are_refused_by_name():
    model = nn.Linear(3, 4, bias=False)
    with pytest.raises(PlanError, match="'weight'.*3 equal blocks"):
        AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "muon", splits=3))


def test_a_refused_group_leaves_the_optimizer_as_it_was():
    model = net()
    optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "adamw"))
    train(model, optimizer, 1)
    before = twin(model)
    for group in ({"params": [nn.Parameter(torch.ones(2))]}, {"params": [("x", nn.Parameter(torch.ones(2)))]}):
        with pytest.raises((PlanError, ValueError)):
            optimizer.add_param_group(group)
    assert len(optimizer.param_groups) == 1
    assert_same(model, before)
    train(model, optimizer, 1, start=1)


def test_empty_parameters_are_refused_as_by_torch():
    with pytest.raises(ValueError, match="empty parameter list"):
        AutoOptimizer([])


def test_the_repr_says_what_runs():
    model = net()
    plan = RECIPES["default"].resolve(describe(model).layers)
    text = repr(AutoOptimizer.from_plan(model, plan))
    assert "phase='fixed'" in text
    assert "Muon on 2" in text
