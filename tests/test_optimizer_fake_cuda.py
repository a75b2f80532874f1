"""No step waits for the device, shown without one: on fake CUDA tensors, reading a value raises."""

from dataclasses import replace

import pytest
import torch
from optimizer_cases import Switch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from autoopt.architecture import describe_parameters
from autoopt.guard.readout import INTERVAL, Readout
from autoopt.optimizers.auto_optimizer import AutoOptimizer
from autoopt.optimizers.catalog import CATALOG
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.schedule import Schedule

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks")

ROWS = {info.name: info for info in CATALOG}
DENSE = [info.name for info in CATALOG if info.gradients != "sparse"]
SPARSE = [info.name for info in CATALOG if info.gradients != "dense"]
SHAPES = ((), (0,), (5,), (6, 4), (4, 12), (4, 3, 3, 3))


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    return request.param


@pytest.fixture
def fake():
    with FakeTensorMode(allow_non_fake_inputs=False) as mode:
        yield mode


def parameters(name, dtype, sparse=False):
    if sparse:
        return {"table": torch.nn.Parameter(torch.zeros(50, 4, dtype=dtype, device="cuda"))}
    shapes = [shape for shape in SHAPES if len(shape) >= ROWS[name].min_ndim]
    return {
        f"p{index}": torch.nn.Parameter(torch.zeros(shape, dtype=dtype, device="cuda"))
        for index, shape in enumerate(shapes)
    }


def give_gradients(params, sparse=False):
    for param in params.values():
        if sparse:
            rows = torch.zeros(1, 7, dtype=torch.long, device="cuda")
            values = torch.zeros(7, 4, dtype=param.dtype, device="cuda")
            param.grad = torch.sparse_coo_tensor(rows, values, param.shape, check_invariants=False)
        else:
            param.grad = torch.zeros_like(param)


def config(name, sparse=False):
    options = {"momentum": 0.0} if name == "sgd" and sparse else {}
    return OptimizerConfig(name, options)


def run(params, optimizer, steps=4, sparse=False):
    for _ in range(steps):
        give_gradients(params, sparse)
        optimizer.step()


def plan_for(params, name, sparse=False):
    return OptimizerPlan(dict.fromkeys(params, config(name, sparse)), Schedule("linear", 2, 20))


def cases():
    return [(name, False) for name in DENSE] + [(name, True) for name in SPARSE]


each_case = pytest.mark.parametrize(("name", "sparse"), cases(), ids=lambda v: {True: "sparse", False: ""}.get(v, v))


@each_case
def test_a_planned_step_never_waits(name, sparse, dtype, fake):
    params = parameters(name, dtype, sparse)
    optimizer = AutoOptimizer(list(params.items()), plan=plan_for(params, name, sparse))
    run(params, optimizer, sparse=sparse)
    assert optimizer.state or name == "sgd"


@each_case
def test_a_planned_step_at_a_rate_on_the_device_never_waits(name, sparse, fake):
    params = parameters(name, torch.float32, sparse)
    rate = torch.ones((), device="cuda")
    optimizer = AutoOptimizer(list(params.items()), lr=rate, plan=plan_for(params, name, sparse))
    run(params, optimizer, sparse=sparse)


@pytest.mark.parametrize(
    "options", [{"foreach": False, "fused": False}, {"foreach": True}, {"capturable": True}], ids=str
)
@pytest.mark.parametrize("name", [name for name in DENSE if name != "soap"])
def test_no_implementation_waits(name, options, fake):
    params = parameters(name, torch.float32)
    rate = torch.ones((), device="cuda")
    for lr in (1.0, rate):
        optimizer = AutoOptimizer(list(params.items()), lr=lr, plan=plan_for(params, name), **options)
        run(params, optimizer, steps=2)


@each_case
def test_a_warmup_step_never_waits(name, sparse, dtype, fake):
    params = parameters(name, dtype, sparse)
    role = {"role": "embedding", "sparse": True} if sparse else {}
    layers = {layer.name: replace(layer, **role) for layer in describe_parameters(params.items()).layers}
    plan = plan_for(params, name, sparse)
    optimizer = AutoOptimizer(list(params.items()), plan=plan, selection=Switch(30, layers, plan))
    run(params, optimizer, steps=10, sparse=sparse)
    assert optimizer.phase == "warmup"
    assert optimizer.param_groups[0]["step"] == 10
    assert any("warmup_num_nonfinite" in state for state in optimizer.state.values())


def test_a_mixed_plan_on_the_device_never_waits(fake):
    names = ["sgd", "adamw", "muon", "lion", "adafactor", "nadam", "soap"]
    params = {f"p{i}": torch.nn.Parameter(torch.zeros(6, 4, device="cuda")) for i in range(len(names))}
    plan = OptimizerPlan({key: config(name) for key, name in zip(params, names, strict=True)})
    run(params, AutoOptimizer(list(params.items()), plan=plan))


@pytest.mark.parametrize("name", ["adamw", "muon", "sgd", "adafactor"])
def test_a_guarded_step_never_waits(name, fake, monkeypatch):
    sent = []
    monkeypatch.setattr(Readout, "_send", lambda self: sent.append(self._rows) or setattr(self, "_rows", []))
    params = parameters(name, torch.float32)
    optimizer = AutoOptimizer(list(params.items()), plan=plan_for(params, name), guard=True)
    statistics = [torch.zeros(4, device="cuda"), torch.ones(4, device="cuda"), torch.zeros((), dtype=torch.long)]
    optimizer.guard._buffers.extend(statistics[: 3 if name == "adamw" else 0])
    for step in range(2 * INTERVAL):
        give_gradients(params)
        # A real training run has its loss on the device; a number is what some report.
        optimizer.observe(torch.zeros((), device="cuda") if step % 2 else 1.0)
        optimizer.step()
    assert len(sent) == 2 and len(sent[0]) == INTERVAL
    assert optimizer.guard.snapshot_bytes > 0


def test_the_method_sees_a_wait():
    with FakeTensorMode():
        optimizer = torch.optim.Adafactor([torch.nn.Parameter(torch.zeros(4, device="cuda"))])
        optimizer.param_groups[0]["params"][0].grad = torch.zeros(4, device="cuda")
        with pytest.raises(DataDependentOutputException):
            optimizer.step()
