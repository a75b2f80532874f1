"""Hugging Face Trainer: one argument, its own schedule or ours, and runs that resume bit by bit."""

import pytest
import torch
from integration_models import LENGTH, MOMENTS, TOTAL, WARMUP, bert, examples, gpt2, select
from small_models import parameters
from synthetic_selector import synthetic_predictor
from torch import nn
from transformers import Trainer, TrainingArguments, get_scheduler

import autoopt
from autoopt.integrations.huggingface import Select, total_steps

BATCH = 4
each_model = pytest.mark.parametrize("model_of", [bert, gpt2], ids=["BERT", "GPT-2"])


def arguments(folder, **options):
    settings = {
        "max_steps": TOTAL,
        "per_device_train_batch_size": BATCH,
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_strategy": "no",
        "seed": 3,
    }
    return TrainingArguments(str(folder), **settings | options)


def trained(folder, model, optimizer, resume=None, **options):
    """The Trainer after training."""
    kind = bert if type(model).__name__.startswith("Bert") else gpt2
    trainer = Trainer(model, arguments(folder, **options), train_dataset=examples(kind), optimizers=(optimizer, None))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def by_hand(model, optimizer, folder, accumulate=1, clip=1.0):
    """The Trainer's run as a plain loop, on the batches that the Trainer's loader gives."""
    settings = arguments(folder, gradient_accumulation_steps=accumulate)
    kind = bert if type(model).__name__.startswith("Bert") else gpt2
    loader = Trainer(model, settings, train_dataset=examples(kind)).get_train_dataloader()
    torch.manual_seed(settings.seed)
    batches = [batch for _ in range(accumulate) for batch in loader]
    model.train()
    for step in range(TOTAL):
        optimizer.zero_grad()
        parts = batches[step * accumulate : (step + 1) * accumulate]
        # A language model's loss is a mean over the tokens of all parts; a classifier's is summed over parts.
        items = {"num_items_in_batch": sum(part["labels"].numel() for part in parts)} if kind is gpt2 else {}
        for part in parts:
            model(**part, **items).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


def without_dropout(model):
    """The model with dropout off, since the order of random draws differs between the loops."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model


@each_model
def test_training_goes_through_the_switch_with_the_trainers_own_schedule(model_of, tmp_path):
    model = model_of()
    optimizer = select(model, schedule=None)
    rates = []
    optimizer.register_step_post_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    trainer = trained(tmp_path, model, optimizer, lr_scheduler_type="cosine", warmup_steps=2)
    assert trainer.state.global_step == TOTAL and len(rates) == TOTAL
    assert optimizer.phase == "selected" and not optimizer.recommendation.abstained
    assert optimizer.recommendation.profile["warmup_steps"] == WARMUP
    # The Trainer's scheduler multiplies; learning_rate of its arguments is not used.
    other = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0)
    scheduler, expected = get_scheduler("cosine", other, 2, TOTAL), []
    for _ in range(TOTAL):
        expected.append(other.param_groups[0]["lr"])
        other.step()
        scheduler.step()
    assert rates == expected
    assert max(rates) == 1.0 and rates[0] == 0.0


@each_model
@pytest.mark.parametrize(("accumulate", "clip"), [(1, 1.0), (2, 0.1)], ids=["plain", "accumulated and clipped"])
def test_the_trainer_trains_as_a_plain_loop_does(model_of, accumulate, clip, tmp_path):
    ours, plain = without_dropout(model_of()), without_dropout(model_of())
    optimizer = select(ours)
    options = {"gradient_accumulation_steps": accumulate, "max_grad_norm": clip}
    trained(tmp_path, ours, optimizer, lr_scheduler_type="constant", **options)
    assert optimizer.param_groups[0]["step"] == TOTAL
    by_hand(plain, select(plain), tmp_path, accumulate, clip)
    assert parameters(ours) == parameters(plain)


@each_model
@pytest.mark.parametrize("options", [{}, {"bf16": True, "gradient_accumulation_steps": 2}], ids=["fp32", "bf16 x2"])
def test_a_run_resumed_from_a_trainers_checkpoint_is_bit_identical(model_of, options, tmp_path):
    options = {**options, "save_strategy": "steps", "save_steps": 1}
    model = model_of()
    optimizer = select(model, schedule=None)
    trained(tmp_path, model, optimizer, **options)
    for moment, taken in MOMENTS.items():
        resumed = model_of(seed=1)
        other = select(resumed, schedule=None)
        folder = tmp_path / f"checkpoint-{taken}"
        trainer = trained(tmp_path / "resumed", resumed, other, str(folder), **options)
        assert trainer.state.global_step == TOTAL
        assert other.plan == optimizer.plan and other.phase == "selected", moment
        assert parameters(resumed) == parameters(model), moment
        assert (other.recommendation is None) == (taken >= WARMUP), moment


def test_the_factory_form_selects_for_the_trainers_model(tmp_path):
    told = []
    options = {
        "total_steps": TOTAL,
        "warmup_steps": WARMUP,
        "selector": synthetic_predictor(),
        "schedule": None,
        "callbacks": (lambda recommendation, step: told.append((recommendation, step)),),
    }
    trainer = Trainer(
        model_init=lambda: gpt2(),
        args=arguments(tmp_path),
        train_dataset=examples(gpt2),
        optimizer_cls_and_kwargs=(Select, options),
    )
    trainer.train()
    inner = trainer.optimizer.optimizer
    assert isinstance(inner, autoopt.AutoOptimizer) and inner.phase == "selected"
    assert list(inner.plan.layers) == [name for name, _ in trainer.model.named_parameters()]
    assert [(recommendation is inner.recommendation, step) for recommendation, step in told] == [(True, WARMUP)]
    first = trainer.optimizer
    trainer.train()  # a search calls it again and again, each time on a fresh model
    assert trainer.optimizer is not first and trainer.optimizer.optimizer.phase == "selected"
    assert len(told) == 2


def test_two_schedules_at_once_are_warned_of(tmp_path):
    model = gpt2()
    with pytest.warns(UserWarning, match=r"schedule of its own.*schedule=None"):
        trained(tmp_path, model, select(model), lr_scheduler_type="linear")


@pytest.mark.parametrize("options", [{"max_steps": 7}, {"num_train_epochs": 2.5, "max_steps": -1}])
@pytest.mark.parametrize("accumulate", [1, 5])
@pytest.mark.parametrize("drop", [False, True])
def test_the_length_of_a_run_is_the_trainers(options, accumulate, drop, tmp_path):
    data = examples(gpt2, count=50)
    settings = arguments(tmp_path, **options, gradient_accumulation_steps=accumulate, dataloader_drop_last=drop)
    trainer = Trainer(gpt2(), settings, train_dataset=data)
    *_, expected = trainer.set_initial_training_values(settings, trainer.get_train_dataloader())
    assert total_steps(settings, data) == expected


def test_a_run_without_a_known_length_is_refused(tmp_path):
    with pytest.raises(ValueError, match="max_steps"):
        total_steps(arguments(tmp_path, max_steps=-1))


def test_the_examples_have_the_length_of_the_model():
    assert examples(bert)[0]["input_ids"].shape == (LENGTH,)
