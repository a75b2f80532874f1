"""PyTorch's generic expectations of an optimizer, on AutoOptimizer with uniform and mixed recipes."""

import copy
import io
import pickle
import warnings
from functools import partial

import pytest
import torch
from optimizer_cases import (
    RECIPES,
    assert_same,
    assert_same_state,
    loss_of,
    net,
    snapshot,
    switching,
    tensors_of,
    train,
    twin,
)
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch's test utilities warn about what is not installed
    from torch.testing._internal.common_optimizers import ErrorOptimizerInput, OptimizerErrorEnum, OptimizerInfo
    from torch.testing._internal.common_optimizers import OptimizerInput as Input

from autoopt.errors import ModelError
from autoopt.optimizers.auto_optimizer import AutoOptimizer

INPUTS = (
    Input(None, {}, "default"),
    Input(None, {"lr": 0.5}, "another multiplier"),
    Input(None, {"lr": torch.tensor(0.5)}, "tensor lr"),
    Input(None, {"lr": torch.tensor([0.5])}, "1-element tensor lr"),
    Input(None, {"weight_decay": 0.1}, "weight decay"),
    Input(None, {"betas": (0.7, 0.99)}, "betas"),
    Input(None, {"maximize": True}, "maximize"),
    Input(None, {"maximize": True, "weight_decay": 0.1}, "maximize with weight decay"),
    Input(None, {"foreach": True}, "foreach"),
    Input(None, {"foreach": False, "fused": False}, "for-loop"),
    Input(None, {"fused": True}, "fused"),
)


def error_inputs(device, dtype):
    params = [torch.nn.Parameter(torch.randn(2, 3, device=device, dtype=dtype))]
    cases = (
        ({"lr": -1.0}, ValueError, "Invalid learning rate: -1"),
        ({"lr": float("nan")}, ValueError, "Invalid learning rate: nan"),
        ({"lr": float("inf")}, ValueError, "Invalid learning rate: inf"),
        ({"lr": torch.tensor([0.1, 0.2])}, ValueError, "Tensor lr must be 1-element"),
        ({"betas": (1.0, 0.9)}, ValueError, "Invalid beta parameter at index 0: 1.0"),
        ({"betas": (0.9, -0.1)}, ValueError, "Invalid beta parameter at index 1: -0.1"),
        ({"weight_decay": -1.0}, ValueError, "Invalid weight_decay value: -1.0"),
        ({"foreach": True, "fused": True}, RuntimeError, "cannot be `True` together"),
        ({"differentiable": True}, ValueError, "differentiable"),
    )
    return [
        ErrorOptimizerInput(
            Input(params, kwargs, ""),
            error_on=OptimizerErrorEnum.CONSTRUCTION_ERROR,
            error_type=error,
            error_regex=text,
        )
        for kwargs, error, text in cases
    ]


INFOS = [
    OptimizerInfo(
        partial(AutoOptimizer, plan=recipe),
        optim_inputs_func=lambda device, dtype=None: list(INPUTS),
        optim_error_inputs_func=error_inputs,
        supported_impls=("foreach", "fused"),
        supports_complex=False,
        has_capturable_arg=True,
    )
    for recipe in RECIPES.values()
]
each_info = pytest.mark.parametrize("info", INFOS, ids=list(RECIPES))
each_input = pytest.mark.parametrize("optim_input", INPUTS, ids=lambda i: i.desc)


def make(info, model, optim_input=INPUTS[0], named=False):
    kwargs = copy.deepcopy(optim_input.kwargs)
    return info.optim_cls(model.named_parameters() if named else model.parameters(), **kwargs)


def through_file(state_dict):
    """A state_dict after a round trip through a file, read with torch's safe default."""
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


# ---- state_dict -----------------------------------------------------------------------------------


@each_input
@each_info
def test_loading_a_state_dict_goes_on_bit_identically(info, optim_input):
    model = net()
    optimizer = make(info, model, optim_input)
    train(model, optimizer, 3)
    other = twin(model)
    resumed = make(info, other, optim_input)
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    assert_same_state(optimizer.state_dict(), resumed.state_dict())
    train(model, optimizer, 3, start=3)
    train(other, resumed, 3, start=3)
    assert_same(model, other)


@each_info
def test_equal_runs_give_equal_state_dicts(info):
    states = []
    for _ in range(2):
        model = net()
        optimizer = make(info, model)
        train(model, optimizer, 3)
        states.append(optimizer.state_dict())
    assert_same_state(*states)


@pytest.mark.parametrize("saved_named", [False, True])
@pytest.mark.parametrize("own_named", [False, True])
@each_info
def test_named_and_unnamed_state_dicts_load_into_each_other(info, saved_named, own_named):
    model = net()
    optimizer = make(info, model, named=saved_named)
    train(model, optimizer, 2)
    other = twin(model)
    resumed = make(info, other, named=own_named)
    resumed.load_state_dict(through_file(optimizer.state_dict()))
    train(model, optimizer, 2, start=2)
    train(other, resumed, 2, start=2)
    assert_same(model, other)
    if own_named or saved_named:
        assert list(resumed.plan.layers) == [name for name, _ in model.named_parameters()]


def test_state_dict_hooks_run_around_saving_and_loading():
    model = net()
    optimizer = make(INFOS[0], model)
    calls = []
    optimizer.register_state_dict_pre_hook(lambda _: calls.append("before save"))
    optimizer.register_state_dict_post_hook(lambda _, state: calls.append("after save"))
    optimizer.register_load_state_dict_pre_hook(lambda _, state: calls.append("before load"))
    optimizer.register_load_state_dict_post_hook(lambda _: calls.append("after load"))
    optimizer.load_state_dict(optimizer.state_dict())
    assert calls == ["before save", "after save", "before load", "after load"]


# ---- pickling and copying, before, at and after the switch ----------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4], ids=lambda n: f"after {n} of 3 warm-up steps")
@pytest.mark.parametrize("copier", [copy.deepcopy, lambda v: pickle.loads(pickle.dumps(v))], ids=["copy", "pickle"])
def test_a_copy_goes_on_bit_identically_around_the_switch(copier, steps):
    model = net()
    optimizer = switching(model, RECIPES["adamw"], RECIPES["soap-lion-nadam"], warmup_steps=3)
    train(model, optimizer, steps)
    other, resumed = copier((model, optimizer))
    assert resumed.phase == optimizer.phase
    assert resumed.plan == optimizer.plan
    losses = train(model, optimizer, 5, start=steps)
    assert train(other, resumed, 5, start=steps) == losses
    assert_same(model, other)
    assert (resumed.recommendation is None) == (optimizer.recommendation is None)


@each_info
def test_a_pickled_optimizer_goes_on_bit_identically(info):
    model = net()
    optimizer = make(info, model)
    train(model, optimizer, 2)
    other, resumed = pickle.loads(pickle.dumps((model, optimizer)))
    train(model, optimizer, 2)
    train(other, resumed, 2)
    assert_same(model, other)


# ---- the step -------------------------------------------------------------------------------------


@each_info
def test_the_loss_falls(info):
    model = net()
    optimizer = make(info, model)
    first = loss_of(model).item()
    for _ in range(30):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
    assert loss_of(model).item() < first - 0.01


@each_info
def test_a_closure_is_called_once_with_gradients_and_its_loss_returned(info):
    model, other = net(), net()
    optimizer, reference = make(info, model), make(info, other)
    losses = train(other, reference, 3)
    calls = []

    def closure():
        assert torch.is_grad_enabled()
        optimizer.zero_grad()
        loss = loss_of(model, len(calls))
        loss.backward()
        calls.append(loss)
        return loss

    for step in range(3):
        assert optimizer.step(closure) is calls[-1]
        assert calls[-1].item() == losses[step]
    assert len(calls) == 3
    assert_same(model, other)


@each_info
def test_parameters_without_a_gradient_are_left_alone_and_get_no_state(info):
    model = net()
    optimizer = make(info, model)
    for _ in range(2):
        loss_of(model).backward()
        for param in model.hidden.parameters():
            param.grad = None
        before = snapshot(model.hidden)
        optimizer.step()
        assert_same(snapshot(model.hidden), before)
    assert not any(optimizer.state.get(param) for param in model.hidden.parameters())
    loss_of(model).backward()  # a first gradient may come late
    optimizer.step()
    assert not torch.equal(model.hidden.weight, before[0]) or info is INFOS[3]  # SOAP's first step moves nothing


@each_info
def test_no_gradient_at_all_changes_nothing(info):
    model = net()
    optimizer = make(info, model)
    before = snapshot(model)
    optimizer.step()
    assert_same(snapshot(model), before)
    assert not optimizer.state


@each_info
def test_zero_gradients_change_nothing_before_there_is_momentum(info):
    model = net()
    optimizer = make(info, model)
    before = snapshot(model)
    for _ in range(3):
        for param in model.parameters():
            param.grad = torch.zeros_like(param)
        optimizer.step()
    assert_same(snapshot(model), before)


@each_info
def test_maximizing_is_minimizing_the_negative_and_leaves_gradients_as_they_are(info):
    model, other = net(), net()
    up = make(info, model, Input(None, {"maximize": True}))
    down = make(info, other)
    for step in range(4):
        up.zero_grad()
        down.zero_grad()
        (-loss_of(model, step)).backward()
        loss_of(other, step).backward()
        grads = [param.grad.clone() for param in model.parameters()]
        up.step()
        down.step()
        assert_same([param.grad for param in model.parameters()], grads)
    assert_same(model, other)


@pytest.mark.parametrize("options", [{"foreach": True}, {"fused": True}, {"foreach": False, "fused": False}])
@each_info
def test_implementations_agree(info, options):
    model, other = net(dtype=torch.float64), net(dtype=torch.float64)
    train(model, make(info, model), 5)
    train(other, make(info, other, Input(None, options)), 5)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-7, atol=1e-9)


@each_info
def test_a_tensor_rate_steps_as_the_same_number_does(info):
    model, other = net(dtype=torch.float64), net(dtype=torch.float64)
    train(model, make(info, model, Input(None, {"lr": 0.25})), 5)
    optimizer = make(info, other, Input(None, {"lr": torch.tensor(0.25, dtype=torch.float64)}))
    train(other, optimizer, 5)
    assert isinstance(optimizer.param_groups[0]["lr"], torch.Tensor)
    for left, right in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-7)


@each_info
def test_hooks_fire_once_a_step(info):
    model = net()
    optimizer = make(info, model)
    calls = []
    handles = [
        register_optimizer_step_pre_hook(lambda opt, args, kwargs: calls.append("global before")),
        register_optimizer_step_post_hook(lambda opt, args, kwargs: calls.append("global after")),
        optimizer.register_step_pre_hook(lambda opt, args, kwargs: calls.append("before")),
        optimizer.register_step_post_hook(lambda opt, args, kwargs: calls.append("after")),
    ]
    try:
        train(model, optimizer, 1)
    finally:
        for handle in handles:
            handle.remove()
    assert calls == ["before", "global before", "after", "global after"] or calls == [
        "global before",
        "before",
        "after",
        "global after",
    ]
    train(model, optimizer, 1)
    assert len(calls) == 4


# ---- groups ---------------------------------------------------------------------------------------


@each_info
def test_groups_have_multipliers_of_their_own(info):
    model, other = net(), net()
    groups = [
        {"params": list(model.conv.parameters()), "lr": 0.0},
        {"params": [p for name, p in model.named_parameters() if not name.startswith("conv")]},
    ]
    optimizer = info.optim_cls(groups)
    conv = snapshot(model.conv)
    train(model, optimizer, 3)
    train(other, make(info, other, Input(None, {})), 3)
    assert_same(snapshot(model.conv), conv)
    assert len(optimizer.param_groups) == 2
    assert not torch.equal(model.head.weight, net().head.weight)


@each_info
def test_a_group_added_later_is_planned_and_trained(info):
    model = net()
    optimizer = info.optim_cls(list(model.conv.parameters()))
    loss_of(model).backward()
    optimizer.step()
    rest = [param for name, param in model.named_parameters() if not name.startswith("conv")]
    optimizer.add_param_group({"params": rest, "lr": 0.5})
    before = snapshot(model)
    train(model, optimizer, 3)
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True))
    assert [group["lr"] for group in optimizer.param_groups] == [1.0, 0.5]


@each_info
def test_a_parameter_in_two_groups_is_refused_and_nothing_added(info):
    model = net()
    optimizer = make(info, model)
    with pytest.raises(ValueError, match="more than one parameter group"):
        optimizer.add_param_group({"params": [model.scale]})
    assert len(optimizer.param_groups) == 1


@each_info
def test_wrong_arguments_are_refused_by_name(info):
    for case in info.optim_error_inputs_func("cpu", torch.float32):
        given = case.optimizer_error_input
        with pytest.raises(case.error_type, match=case.error_regex):
            info.optim_cls(given.params, **given.kwargs)


@each_info
def test_complex_and_integer_parameters_are_refused(info):
    for dtype in (torch.complex64, torch.int64):
        param = torch.zeros(3, dtype=dtype)
        with pytest.raises(ModelError, match=str(dtype)):
            info.optim_cls([param])
    optimizer = make(info, net())
    with pytest.raises(ModelError, match="complex"):
        optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(2, dtype=torch.complex64))]})
    assert len(optimizer.param_groups) == 1


@each_info
def test_no_state_is_created_before_the_first_step(info):
    optimizer = make(info, net())
    assert not optimizer.state


@each_info
def test_the_rate_in_the_groups_is_never_written(info):
    model = net()
    optimizer = make(info, model, Input(None, {"lr": 0.3}))
    train(model, optimizer, 3)
    assert [group["lr"] for group in optimizer.param_groups] == [0.3]


@each_info
def test_zero_grad_sets_to_none_or_zero(info):
    model = net()
    optimizer = make(info, model)
    loss_of(model).backward()
    optimizer.zero_grad(set_to_none=False)
    assert all(not param.grad.any() for param in model.parameters())
    optimizer.zero_grad()
    assert all(param.grad is None for param in model.parameters())


@each_info
def test_bfloat16_parameters_train(info):
    model = net(dtype=torch.bfloat16)
    before = snapshot(model)
    train(model, make(info, model, Input(None, {"lr": 4.0})), 5)
    moved = [not torch.equal(a, b) for a, b in zip(model.parameters(), before, strict=True)]
    assert sum(moved) >= len(moved) - 1
    assert all(torch.isfinite(param).all() for param in model.parameters())


@each_info
def test_empty_and_scalar_parameters_are_taken(info):
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((), (0,), (0, 3), (3, 0), (1,), (1, 1), (2, 3, 0))]
    optimizer = info.optim_cls(params)
    for _ in range(2):
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
    assert params[0].item() < 1 and params[4].item() < 1
    pickle.loads(pickle.dumps(optimizer)).step()


@each_info
def test_state_holds_tensors_numbers_and_dicts_only(info):
    model = net()
    optimizer = make(info, model)
    train(model, optimizer, 2)
    state = optimizer.state_dict()["state"]
    for own in state.values():
        assert all(isinstance(key, str) for key in own)
        assert all(isinstance(value, torch.Tensor | int | float) for value in own.values()), own
    assert set(state) <= set(range(len(list(model.parameters()))))
    assert sum(tensor.numel() for _, tensor in tensors_of(state)) > 0
