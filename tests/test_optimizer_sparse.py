"""Sparse gradients stay sparse: untouched rows keep their bits, and no table is densified in a step."""

import copy

import pytest
import torch
from allocation import LargestAllocation, peak_resident_bytes
from optimizer_cases import Switch, assert_same
from torch import nn

from autoopt.architecture import describe
from autoopt.errors import PlanError
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.catalog import CATALOG, get
from autoopt.optimizers.device_rules import device_rule
from autoopt.optimizers.handover import hand_over
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.recipe import Recipe

SPARSE = {
    "sparseadam": {},
    "adagrad": {"initial_accumulator_value": 0.1},
    "sgd": {"momentum": 0.0},
}
each_rule = pytest.mark.parametrize("name", SPARSE)


def table(rows=20, columns=4, seed=0, **options):
    torch.manual_seed(seed)
    return nn.Embedding(rows, columns, sparse=True, **options)


def step(model, optimizer, rows):
    optimizer.zero_grad()
    model(torch.as_tensor(rows)).pow(2).sum().backward()
    assert model.weight.grad.is_sparse
    optimizer.step()


@each_rule
def test_rows_that_no_batch_touches_keep_their_bits(name):
    model = table()
    before = model.weight.detach().clone()
    optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, name, lr=0.1, **SPARSE[name]))
    for _ in range(3):
        step(model, optimizer, [3, 5, 5, 7])
    changed = (model.weight != before).any(1)
    assert changed.nonzero().flatten().tolist() == [3, 5, 7]
    first = copy.deepcopy(optimizer.state.get(model.weight, {}))
    step(model, optimizer, [1])
    for key, value in optimizer.state.get(model.weight, {}).items():
        if isinstance(value, torch.Tensor) and value.dim() == 2:
            assert torch.equal(value[2:], first[key][2:]), key


@pytest.mark.parametrize("name", [info.name for info in CATALOG])
def test_a_recipe_of_any_rule_trains_a_sparse_table(name):
    model = table()
    plan = Recipe.uniform(name, 0.05, width_free=False).resolve(describe(model).layers)
    optimizer = AutoOptimizer.from_plan(model, plan)
    before = model.weight.detach().clone()
    for _ in range(3):
        step(model, optimizer, [3, 5])
    assert (model.weight != before).any(1).nonzero().flatten().tolist() == [3, 5]


@each_rule
def test_a_batch_without_rows_changes_nothing(name):
    model = table()
    optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, name, **SPARSE[name]))
    before = model.weight.detach().clone()
    step(model, optimizer, torch.zeros(0, dtype=torch.long))
    assert torch.equal(model.weight, before)


@pytest.mark.parametrize("phase", ["fixed", "warmup"])
@each_rule
def test_a_large_table_is_never_densified(name, phase):
    rows, columns = 1_000_000, 64
    size = 4 * rows * columns
    weight = torch.zeros(rows, columns)
    model = nn.Embedding.from_pretrained(weight, freeze=False, sparse=True)
    plan = OptimizerPlan.uniform(model, name, **SPARSE[name])
    layers = dict(describe(model).items())
    selection = Switch(50, layers, plan) if phase == "warmup" else None
    optimizer = AutoOptimizer(model.named_parameters(), plan=plan, selection=selection)
    batch = torch.randint(0, rows, (256,), generator=torch.Generator().manual_seed(0))
    model(batch).sum().backward()
    optimizer.step()  # state is made here
    with LargestAllocation() as largest:
        optimizer.step()
    assert optimizer.phase == phase
    assert largest.num_operations > 0
    assert largest.num_bytes < size / 100
    peak = peak_resident_bytes(optimizer.step)
    assert peak is None or peak < size / 10


def test_a_large_table_is_measured_as_densified_where_it_is():
    weight = torch.zeros(1_000_000, 64)
    assert peak_resident_bytes(lambda: weight + 1.0) in (None, pytest.approx(256e6, rel=0.3))
    with LargestAllocation() as largest:
        torch.zeros(1000, 64) + 1.0
    assert largest.num_bytes == 256_000


def test_a_table_shared_by_two_embeddings_takes_both_gradients():
    model = nn.ModuleDict({"query": table(), "key": nn.Embedding(20, 4, sparse=True)})
    model["key"].weight = model["query"].weight
    plan = Recipe.uniform("adamw", 0.1, width_free=False).resolve(describe(model).layers)
    assert [config.optimizer for config in plan.layers.values()] == ["sparseadam"]
    optimizer = AutoOptimizer.from_plan(model, plan)
    before = model["key"].weight.detach().clone()
    (model["query"](torch.tensor([1, 2])).sum() + model["key"](torch.tensor([2, 3])).sum()).backward()
    optimizer.step()
    assert (model["key"].weight != before).any(1).nonzero().flatten().tolist() == [1, 2, 3]


def test_a_table_tied_to_a_head_gets_dense_gradients_and_a_dense_rule():
    model = nn.ModuleDict({"embedding": table(), "head": nn.Linear(4, 20, bias=False)})
    model["head"].weight = model["embedding"].weight
    plan = Recipe.uniform("adamw", 0.1, width_free=False).resolve(describe(model).layers)
    assert [config.optimizer for config in plan.layers.values()] == ["adamw"]
    optimizer = AutoOptimizer.from_plan(model, plan)
    before = model["head"].weight.detach().clone()
    model["head"](model["embedding"](torch.tensor([1, 2]))).logsumexp(1).sum().backward()
    optimizer.step()
    assert not torch.equal(model["head"].weight, before)


def test_a_dense_rule_on_a_sparse_gradient_is_refused_by_name_before_anything_changes():
    model = nn.ModuleDict({"other": nn.Linear(4, 4), "table": table()})
    optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "adamw"))
    before = [param.detach().clone() for param in model.parameters()]
    model["other"](model["table"](torch.tensor([1]))).sum().backward()
    with pytest.raises(PlanError, match=r"'table.weight' has a sparse gradient.*sparseadam"):
        optimizer.step()
    assert_same([param.detach() for param in model.parameters()], before)
    assert not optimizer.state
    assert optimizer.param_groups[0]["step"] == 0


def test_a_sparse_rule_on_a_dense_gradient_is_refused_by_name():
    model = nn.Embedding(5, 4)
    optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "sparseadam"))
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(PlanError, match="'weight' has a dense gradient.*adamw"):
        optimizer.step()


@pytest.mark.parametrize("options", [{"weight_decay": 0.1}, {}])
def test_weight_decay_on_a_sparse_gradient_is_refused_by_name(options):
    model = table()
    plan = OptimizerPlan.uniform(model, "sgd", momentum=0.0, **options)
    optimizer = AutoOptimizer.from_plan(model, plan, weight_decay=None if options else 0.1)
    model(torch.tensor([1])).sum().backward()
    with pytest.raises(PlanError, match="'weight'.*weight decay"):
        optimizer.step()


@each_rule
def test_the_rule_for_devices_steps_as_the_library_does(name):
    """Run on a CPU: the rules that never wait, which CUDA tensors take, against torch's own."""
    torch.manual_seed(0)
    values = OptimizerConfig(name, SPARSE[name]).complete
    ours, theirs = nn.Parameter(torch.randn(9, 4)), None
    theirs = nn.Parameter(ours.detach().clone())
    library = get(name).load()([theirs], **values)
    rule, state = device_rule(name, True, values), {ours: {}}
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        rows = torch.randint(0, 9, (1, 6), generator=generator)
        grad = torch.sparse_coo_tensor(rows, torch.randn(6, 4, generator=generator), (9, 4), check_invariants=False)
        ours.grad, theirs.grad = grad, grad.clone()
        with torch.no_grad(), torch.sparse.check_sparse_tensor_invariants(enable=False):
            rule(state, [ours], values, 0.1, False)
            library.param_groups[0]["lr"] = 0.1
            library.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    for key, value in library.state[theirs].items():
        if isinstance(value, torch.Tensor):
            torch.testing.assert_close(state[ours][key], value, rtol=1e-5, atol=1e-6)


def test_rates_of_a_sparse_table_survive_a_change_of_rule_without_being_densified():
    param = nn.Parameter(torch.zeros(6, 4))
    state = {"step": 5, "exp_avg": torch.rand(6, 4), "exp_avg_sq": torch.rand(6, 4)}
    old, new = OptimizerConfig("sparseadam"), OptimizerConfig("adagrad")
    carried = hand_over(old, new, dict(state), param, 5)
    torch.testing.assert_close(carried["sum"], 5 * state["exp_avg_sq"] / (1 - 0.999**5))
