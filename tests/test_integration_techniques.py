"""Gradient checkpointing, torch.compile, EMA and SWA, LoRA, frozen and thawed parts, clipping."""

import copy
import math

import pytest
import torch
from integration_models import TOTAL, WARMUP, bert, examples, gpt2, select
from small_models import Classifier, batches, bits, loss_fn, parameters, train
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn

import autoopt


def tokens(step, kind=gpt2, size=4):
    rows = examples(kind)[step * size : (step + 1) * size]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def trained(model, optimizer, steps=TOTAL, kind=gpt2, forward=None, start=0):
    """Train a transformer with one batch a step; each step's dropout is seeded."""
    model.train()
    for step in range(start, start + steps):
        torch.manual_seed(step)
        optimizer.zero_grad()
        (forward or model)(**tokens(step, kind)).loss.backward()
        optimizer.step()
    return model


# ---- gradient checkpointing and torch.compile ------------------------------------------------------


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("kind", [bert, gpt2], ids=["BERT", "GPT-2"])
def test_gradient_checkpointing_changes_nothing(kind, reentrant):
    plain, ours = kind(), kind()
    ours.activation_checkpointing_enable({"use_reentrant": reentrant})
    optimizers = [select(model) for model in (plain, ours)]
    for model, optimizer in zip((plain, ours), optimizers, strict=True):
        trained(model, optimizer, kind=kind)
    assert optimizers[0].recommendation.statistics == optimizers[1].recommendation.statistics
    assert parameters(plain) == parameters(ours)


class Counting:
    """A backend of torch.compile that runs graphs as they are and counts them."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.mark.parametrize("selected_for", ["the model", "the compiled model"])
def test_a_compiled_model_trains_as_the_model_does_and_is_compiled_once(selected_for):
    plain, ours = (Classifier(sparse=False) for _ in range(2))
    ours.load_state_dict(plain.state_dict())
    for model in (plain, ours):
        model.drop.p = 0.0
    torch._dynamo.reset()
    backend = Counting()
    compiled = torch.compile(ours, backend=backend)
    optimizer = select(compiled if selected_for == "the compiled model" else ours)
    reference = select(plain)
    train(plain, reference, batches(TOTAL))
    graphs = []
    train(compiled, optimizer, batches(TOTAL), lambda step: graphs.append(backend.graphs))
    assert graphs[-1] == graphs[0] == 1, "nothing that select() hung onto the model breaks or recompiles its graph"
    assert parameters(ours) == parameters(plain)
    names = [name.removeprefix("_orig_mod.") for name in optimizer.plan.layers]
    assert names == list(reference.plan.layers)
    configs = [list(each.plan.layers.values()) for each in (optimizer, reference)]
    assert configs[0] == configs[1], "roles are seen through the wrapper"


# ---- averaged weights ------------------------------------------------------------------------------


def test_ema_follows_the_weights_through_the_switch():
    model = Classifier(sparse=False)
    optimizer = select(model)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    expected = None
    for batch in batches(TOTAL):
        train(model, optimizer, [batch])
        average.update_parameters(model)
        now = [param.detach().double() for param in model.parameters()]
        expected = now if expected is None else [0.5 * a + 0.5 * b for a, b in zip(expected, now, strict=True)]
    assert optimizer.phase == "selected"
    for found, wanted in zip(average.module.parameters(), expected, strict=True):
        torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-6)


def test_swa_with_its_own_scheduler():
    model = Classifier(sparse=False)
    optimizer = select(model, schedule=None)
    average = AveragedModel(model)
    scheduler = SWALR(optimizer, swa_lr=0.1, anneal_epochs=3)
    rates, seen = [], []
    for step, batch in enumerate(batches(TOTAL)):
        train(model, optimizer, [batch])
        rates.append(optimizer.param_groups[0]["lr"])
        if step >= WARMUP:
            scheduler.step()
            average.update_parameters(model)
            seen.append([param.detach().double() for param in model.parameters()])
    assert rates[0] == 1.0 and rates[-1] == pytest.approx(0.1)
    for found, *each in zip(average.module.parameters(), *seen, strict=True):
        torch.testing.assert_close(found.double(), sum(each) / len(each), rtol=1e-5, atol=1e-6)
    update_bn(batches(3), average)
    assert math.isfinite(loss_fn(average.eval(), next(batches(1))).item())


def test_an_average_of_a_model_is_no_second_owner():
    model = Classifier(sparse=False)
    optimizer = select(model)
    average = copy.deepcopy(model)
    assert autoopt.select(average, total_steps=100).phase == optimizer.phase == "warmup"


# ---- LoRA ------------------------------------------------------------------------------------------


@pytest.fixture
def lora():
    from peft import LoraConfig, get_peft_model

    # GPT-2's projections are Conv1D, stored as (inputs, outputs).
    return get_peft_model(gpt2(), LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True))


# peft itself asks transformers in a deprecated way.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_lora_adapters_are_selected_for_and_the_base_stays(lora):
    base = {name: bits(param) for name, param in lora.named_parameters() if not param.requires_grad}
    optimizer = select(lora)
    assert base and all("lora_" in name for name in optimizer.plan.layers)
    assert {layer.role for layer in autoopt.describe(lora).layers} == {"matrix"}
    trained(lora, optimizer)
    assert optimizer.phase == "selected"
    assert {name: bits(param) for name, param in lora.named_parameters() if name in base} == base
    # B starts at zero, and so does A's gradient: both must move all the same.
    assert all(param.abs().sum() > 0 for param in lora.parameters() if param.requires_grad)
    assert optimizer.recommendation.memory_bytes < 8 * sum(p.numel() for p in lora.parameters())


# ---- clipping --------------------------------------------------------------------------------------


def test_clipping_by_norm_acts_across_families():
    """One norm over all layers, whichever rule they have: the plan's rules see the clipped gradients."""
    model, reference = (Classifier(sparse=False) for _ in range(2))
    reference.load_state_dict(model.state_dict())
    optimizer, other = select(model), select(reference)
    families = set()
    for step in range(TOTAL):
        for each, stepper, clip in ((model, optimizer, True), (reference, other, False)):
            torch.manual_seed(step)
            stepper.zero_grad()
            loss_fn(each, next(batches(1, seed=step))).backward()
            grads = [param.grad for param in each.parameters()]
            if clip:
                nn.utils.clip_grad_norm_(each.parameters(), 0.05)
            else:
                norm = torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(grad) for grad in grads]))
                for grad in grads:
                    grad.mul_(torch.clamp(0.05 / (norm + 1e-6), max=1.0))
            stepper.step()
        families.add(frozenset(config.optimizer for config in optimizer.plan.layers.values()))
        assert parameters(model) == parameters(reference), step
    assert {"soap", "lion", "adamw"} <= max(families, key=len)


# ---- frozen and thawed parts -----------------------------------------------------------------------


def frozen_classifier():
    """A classifier of which only the head trains."""
    torch.manual_seed(0)
    model = Classifier(sparse=False)
    model.drop.p = 0.0
    for name, param in model.named_parameters():
        param.requires_grad_(name.startswith("head"))
    return model


def thaw(model, optimizer):
    """Flip `requires_grad` and tell the optimizer, by name."""
    late = [(name, param) for name, param in model.named_parameters() if not param.requires_grad]
    for _, param in late:
        param.requires_grad_(True)
    optimizer.add_param_group({"params": late})
    return [name for name, _ in late]


def test_a_frozen_part_stays_as_it_is():
    model = frozen_classifier()
    before = {name: bits(param) for name, param in model.named_parameters()}
    optimizer = select(model)
    train(model, optimizer, batches(TOTAL))
    moved = {name for name, param in model.named_parameters() if bits(param) != before[name]}
    assert moved == set(optimizer.plan.layers) == {"head.weight", "head.bias"}


def test_what_is_thawed_in_warmup_is_decided_with_the_rest():
    model = frozen_classifier()
    optimizer = select(model)
    train(model, optimizer, batches(1))
    late = thaw(model, optimizer)
    assert optimizer.phase == "warmup"
    train(model, optimizer, batches(TOTAL - 1))
    decided = {layer.name: layer for layer in optimizer.recommendation.layers}
    assert set(decided) == {name for name, _ in model.named_parameters()} > set(late)
    assert decided["hidden.weight"].deviates and decided["hidden.weight"].config.optimizer == "soap"
    assert set(optimizer.recommendation.statistics) == set(decided)


def test_what_is_thawed_after_the_decision_gets_the_default_of_its_role():
    model = frozen_classifier()
    optimizer = select(model)
    train(model, optimizer, batches(WARMUP))
    decided = optimizer.plan
    late = thaw(model, optimizer)
    whole = Classifier(sparse=False)
    default = select(whole, selector="default").plan
    ours, theirs = ({name: plan.layers[name] for name in late} for plan in (optimizer.plan, default))
    for name in late:  # the two tables start at scales of their own
        assert ours[name].optimizer == theirs[name].optimizer and ours[name].relative_lr == theirs[name].relative_lr
    assert {name: optimizer.plan.layers[name] for name in decided.layers} == decided.layers
    assert [group["phase"] for group in optimizer.param_groups] == ["selected"] * 2
    before = {name: bits(param) for name, param in model.named_parameters()}
    train(model, optimizer, batches(1))
    assert not [name for name, param in model.named_parameters() if bits(param) == before[name]]
    # The schedule goes on where it was, for the newcomers too.
    assert [group["step"] for group in optimizer.param_groups] == [WARMUP + 1] * 2


@pytest.mark.parametrize("taken", [WARMUP - 2, WARMUP + 2])
def test_a_thawed_run_resumes_bit_by_bit_if_it_is_thawed_first(taken):
    model = frozen_classifier()
    optimizer = select(model)
    train(model, optimizer, batches(1))
    thaw(model, optimizer)
    train(model, optimizer, batches(taken - 1, seed=1))
    resumed = frozen_classifier()
    other = select(resumed)
    thaw(resumed, other)
    resumed.load_state_dict(model.state_dict())
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for each, stepper in ((model, optimizer), (resumed, other)):
        train(each, stepper, batches(TOTAL - taken, seed=2))
    assert other.plan == optimizer.plan and optimizer.phase == "selected"
    assert parameters(resumed) == parameters(model)


def test_flipping_requires_grad_alone_trains_nothing_more():
    model = frozen_classifier()
    optimizer = select(model)
    model.hidden.requires_grad_(True)
    before = bits(model.hidden.weight)
    train(model, optimizer, batches(TOTAL))
    assert bits(model.hidden.weight) == before and model.hidden.weight.grad is not None


def test_a_group_of_unknown_or_unnamed_parameters_is_refused():
    model = frozen_classifier()
    optimizer = select(model)
    with pytest.raises(autoopt.PlanError, match="no configuration for parameter 'other'"):
        optimizer.add_param_group({"params": [("other", nn.Parameter(torch.ones(2, 2)))]})
    with pytest.raises(ValueError, match="names"):
        optimizer.add_param_group({"params": [model.hidden.weight]})
    assert len(optimizer.param_groups) == 1


def test_parameters_that_can_never_train_are_left_out_of_what_may_thaw():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    model[0].weight = nn.Parameter(torch.ones(3, 3, dtype=torch.int8), requires_grad=False)
    model[0].bias.requires_grad_(False)
    from autoopt.architecture import frozen_layers

    assert [layer.name for layer in frozen_layers(model)] == ["0.bias"]
