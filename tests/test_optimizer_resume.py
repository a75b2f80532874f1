"""Checkpoints: a resumed run is bit-identical wherever it was taken, and a misfit one is refused."""

import copy
import io
import json

import pytest
import torch
import torch.distributed.checkpoint as dcp
from optimizer_cases import RECIPES, Switch, assert_same, assert_same_state, loss_of, net, snapshot, switching, train
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from autoopt.errors import CheckpointError
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.schedule import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")  # one process is intended

SWITCH = 4
WHEN = {"in warm-up": 2, "a step before the switch": SWITCH - 1, "at the switch": SWITCH, "a step after": SWITCH + 1}
AFTER = "soap-lion-nadam"


class Run:
    """A training run as users write it, in one of three precisions, through the switch."""

    def __init__(self, precision):
        self.precision = precision
        self.model = net(dtype=torch.bfloat16 if precision == "bfloat16" else torch.float32)
        self.optimizer = switching(self.model, RECIPES["default"], RECIPES[AFTER], SWITCH, total_steps=12)
        self.scaler = torch.amp.GradScaler("cpu", enabled=precision == "autocast")

    def train(self, steps, start=0):
        losses = []
        for step in range(start, start + steps):
            self.optimizer.zero_grad()
            with torch.autocast("cpu", torch.float16, enabled=self.precision == "autocast"):
                loss = loss_of(self.model, step)
            self.scaler.scale(loss).backward()
            self.optimizer.observe(loss)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            losses.append(loss.item())
        return losses

    def load_rest(self, other):
        self.model.load_state_dict(copy.deepcopy(other.model.state_dict()))
        self.scaler.load_state_dict(other.scaler.state_dict())


def through_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def assert_goes_on(run, resumed, taken):
    assert resumed.optimizer.phase == run.optimizer.phase
    assert resumed.optimizer.plan == run.optimizer.plan
    assert_same_state(resumed.optimizer.state_dict(), run.optimizer.state_dict())
    assert resumed.train(5, start=taken) == run.train(5, start=taken)
    assert_same(resumed.model, run.model)
    assert resumed.optimizer.phase == run.optimizer.phase == "selected"
    shown, other = run.optimizer._selection.shown, resumed.optimizer._selection.shown
    assert other == (shown if taken < SWITCH else [])


each_precision = pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
each_moment = pytest.mark.parametrize("taken", WHEN.values(), ids=WHEN)


@each_moment
@each_precision
def test_a_run_resumed_from_a_state_dict_is_bit_identical(precision, taken):
    run = Run(precision)
    run.train(taken)
    resumed = Run(precision)
    resumed.load_rest(run)
    resumed.optimizer.load_state_dict(through_file(run.optimizer.state_dict()))
    assert_goes_on(run, resumed, taken)


@pytest.mark.parametrize("flatten", [False, True], ids=["nested", "flattened"])
@each_moment
@each_precision
def test_a_run_resumed_from_a_distributed_checkpoint_is_bit_identical(precision, taken, flatten, tmp_path):
    options = StateDictOptions(flatten_optimizer_state_dict=flatten)
    run = Run(precision)
    run.train(taken)
    # After the switch the optimizer is rebuilt from the saved plan, before state is read into it.
    selected = run.optimizer.phase == "selected"
    plan = OptimizerPlan.from_json(run.optimizer.plan.to_json())
    saved = get_optimizer_state_dict(run.model, run.optimizer, options=options)
    dcp.save(saved, checkpoint_id=tmp_path, no_dist=True)
    resumed = Run(precision)
    resumed.load_rest(run)
    if selected:
        resumed.optimizer = AutoOptimizer.from_plan(resumed.model, plan)
    template = get_optimizer_state_dict(resumed.model, resumed.optimizer, options=options)
    assert resumed.optimizer.param_groups[0]["step"] == 0
    dcp.load(template, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(resumed.model, resumed.optimizer, template, options=options)
    assert resumed.optimizer.phase == run.optimizer.phase
    assert_same_state(resumed.optimizer.state_dict(), run.optimizer.state_dict())
    assert resumed.train(5, start=taken) == run.train(5, start=taken)
    assert_same(resumed.model, run.model)


@pytest.mark.parametrize("info", CATALOG, ids=lambda info: info.name)
def test_creating_state_for_a_checkpoint_is_no_training_step(info):
    def build():
        torch.manual_seed(0)
        if info.gradients == "sparse":
            return torch.nn.Embedding(5, 4, sparse=True)
        return torch.nn.Linear(4, 4, bias=info.min_ndim < 2)

    def run(model, optimizer):
        for step in range(4):
            optimizer.zero_grad()
            x = torch.arange(4) if info.gradients == "sparse" else torch.ones(2, 4) * (step + 1)
            model(x).pow(2).sum().backward()
            optimizer.step()

    model, other = build(), build()
    plan = OptimizerPlan.uniform(model, info.name, Schedule("linear", 2, 8))
    optimizer, reference = AutoOptimizer.from_plan(model, plan), AutoOptimizer.from_plan(other, plan)
    before = snapshot(model)
    get_optimizer_state_dict(model, optimizer)
    assert_same(snapshot(model), before)
    assert optimizer.param_groups[0]["step"] == 0
    assert all(param.grad is None for param in model.parameters())
    run(model, optimizer)
    run(other, reference)
    assert_same(model, other)


def test_creating_state_for_a_checkpoint_leaves_warmup_as_it_was():
    run, reference = Run("float32"), Run("float32")
    get_optimizer_state_dict(run.model, run.optimizer)
    assert run.train(8) == reference.train(8)
    assert_same(run.model, reference.model)
    assert run.optimizer._selection.shown == reference.optimizer._selection.shown


def test_a_first_step_at_rate_zero_with_gradients_is_a_training_step():
    model = net()
    optimizer = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "adamw"), lr=0.0)
    before = snapshot(model)
    train(model, optimizer, 1)
    assert_same(snapshot(model), before)
    assert optimizer.param_groups[0]["step"] == 1
    assert optimizer.state[model.scale]["exp_avg"].item() != 0


# ---- refusals -------------------------------------------------------------------------------------


def fixed(optimizer="adamw", model=None, schedule=None, **options):
    model = model or net()
    return model, AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, optimizer, schedule, **options))


def saved_from(*args, **options):
    model, optimizer = fixed(*args, **options)
    train(model, optimizer, 2)
    return optimizer.state_dict()


def smaller():
    model = net()
    model.head = torch.nn.Linear(6, 3, bias=False)
    return model


def wider():
    model = net()
    model.scale = torch.nn.Parameter(torch.ones(3))
    return model


def reordered():
    model = net()
    model.tail = model.head
    del model.head
    model.forward = lambda x: model.tail(torch.tanh(model.hidden(model.norm(model.conv(x).flatten(1))))) * model.scale
    return model


def older(state_dict):
    for group in state_dict["param_groups"]:
        group["plan"] = json.dumps({**json.loads(group["plan"]), "schema_version": 0})
    return state_dict


def of_adamw():
    model = net()
    optimizer = torch.optim.AdamW(model.parameters())
    train(model, optimizer, 2)
    return optimizer.state_dict()


def mixed_up():
    state_dict = saved_from()
    state_dict["state"][2] = {"momentum_buffer": torch.zeros_like(state_dict["state"][2]["exp_avg"])}
    return state_dict


REFUSED = {
    "another rule": (lambda: saved_from("sgd"), "another setting for parameter 'scale'.*sgd"),
    "another rate": (lambda: saved_from(lr=0.5), "another setting for parameter 'scale'.*0.5"),
    "another schedule": (lambda: saved_from(schedule=Schedule("linear", 1, 9)), "another schedule"),
    "fewer parameters": (lambda: saved_from(model=smaller()), "doesn't match the size.*8 parameters there, 9 here"),
    "another shape": (lambda: saved_from(model=wider()), "'exp_avg' of parameter 'scale' has shape"),
    "other names": (lambda: saved_from(model=reordered()), "'tail.weight' where this optimizer has 'head.weight'"),
    "an older schema": (lambda: older(saved_from()), "schema version 0"),
    "another optimizer": (of_adamw, "not written by AutoOptimizer"),
    "state of another plan": (mixed_up, "momentum_buffer.* is not that of AdamW"),
    "no state_dict": (lambda: {"model": {}}, "needs 'state' and 'param_groups'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_checkpoint_that_does_not_fit_is_refused_and_nothing_changes(case):
    make, message = REFUSED[case]
    model, optimizer = fixed()
    train(model, optimizer, 3)
    state, weights = copy.deepcopy(optimizer.state_dict()), snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        optimizer.load_state_dict(make())
    assert_same_state(optimizer.state_dict(), state)
    assert_same(snapshot(model), weights)
    assert optimizer.param_groups[0]["step"] == 3


def test_another_number_of_groups_is_refused():
    model, optimizer = fixed()
    params = list(model.parameters())
    other = AutoOptimizer([{"params": params[:2]}, {"params": params[2:]}], plan=RECIPES["adamw"])
    with pytest.raises(CheckpointError, match="different number of parameter groups"):
        optimizer.load_state_dict(other.state_dict())


def test_a_warmup_checkpoint_is_refused_where_nothing_is_to_be_decided():
    run = Run("float32")
    run.train(2)
    optimizer = AutoOptimizer.from_plan(run.model, run.optimizer.plan)
    with pytest.raises(CheckpointError, match=r"before the decision.*autoopt\.select"):
        optimizer.load_state_dict(run.optimizer.state_dict())


def test_a_distributed_checkpoint_read_into_the_wrong_plan_is_refused(tmp_path):
    run = Run("float32")
    run.train(SWITCH + 1)
    dcp.save(get_optimizer_state_dict(run.model, run.optimizer), checkpoint_id=tmp_path, no_dist=True)
    resumed = Run("float32")
    template = get_optimizer_state_dict(resumed.model, resumed.optimizer)
    before = copy.deepcopy(resumed.optimizer.state_dict())
    with pytest.raises((CheckpointError, dcp.api.CheckpointException)) as caught:
        # Fresh templates hold the default's state: torch either misses it in the file or keeps it.
        dcp.load(template, checkpoint_id=tmp_path, no_dist=True)
        set_optimizer_state_dict(resumed.model, resumed.optimizer, template)
    assert "rebuild" in str(caught.value) or "Missing key" in str(caught.value)
    assert_same_state(resumed.optimizer.state_dict(), before)


def test_the_selection_itself_is_no_part_of_a_state_dict():
    run = Run("float32")
    run.train(1)
    assert not any(isinstance(value, Switch) for value in run.optimizer.state_dict()["param_groups"][0].values())


def test_scalar_state_keeps_its_type_in_a_bfloat16_run():
    model = torch.nn.Linear(3, 3, dtype=torch.bfloat16)
    plan = OptimizerPlan({name: OptimizerConfig("nadam") for name, _ in model.named_parameters()})
    optimizer = AutoOptimizer.from_plan(model, plan)
    for _ in range(3):
        model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
        optimizer.step()
    resumed = AutoOptimizer.from_plan(model, plan)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.state[model.weight]["mu_product"].dtype == torch.float32
    assert_same_state(resumed.state_dict(), optimizer.state_dict())
