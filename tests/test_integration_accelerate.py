"""accelerate: prepared optimizers, accumulation, mixed precision, saved and loaded states."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from integration_models import MOMENTS, TOTAL, WARMUP, select
from small_models import Classifier, batches, loss_fn, parameters
from torch import nn
from torch.utils.data import DataLoader

from autoopt.integrations import auto_optimizer_of, when_decided


@pytest.fixture(autouse=True)
def fresh_state():
    """accelerate keeps its settings in singletons, which a Trainer in the same process sets as well."""

    def reset():
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    reset()
    yield
    reset()


def model(dropout=0.0):
    torch.manual_seed(0)
    result = Classifier(sparse=False)
    result.drop.p = dropout
    return result


class Run:
    """accelerate's own training loop; `restore` is called once everything is prepared."""

    def __init__(self, accumulate=1, precision="no", dropout=0.0, scheduler=False, clip=None):
        self.accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate, mixed_precision=precision)
        optimizer = select(built := model(dropout), **({"schedule": None} if scheduler else {}))
        stepper = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL) if scheduler else None
        loader = DataLoader(list(batches(TOTAL * accumulate)), batch_size=1, collate_fn=lambda parts: parts[0])
        self.model, self.optimizer, self.loader, self.scheduler = self.accelerator.prepare(
            built, optimizer, loader, stepper
        )
        self.clip = clip
        self.own = optimizer

    def train(self, save=lambda step: None, start=0):
        accumulate = self.accelerator.gradient_accumulation_steps
        loader = self.accelerator.skip_first_batches(self.loader, start * accumulate)
        step = start
        for index, batch in enumerate(loader, start * accumulate):
            torch.manual_seed(index)  # a loader draws from the generator as it starts, wherever it starts
            with self.accelerator.accumulate(self.model):
                with self.accelerator.autocast():
                    loss = loss_fn(self.model, batch)
                self.accelerator.backward(loss)
                if self.accelerator.sync_gradients and self.clip is not None:
                    self.accelerator.clip_grad_norm_(self.model.parameters(), self.clip)
                self.optimizer.step()
                if self.scheduler is not None:
                    self.scheduler.step()
                self.optimizer.zero_grad()
            if self.accelerator.sync_gradients:
                step += 1
                save(step)
        return self


def by_hand(accumulate=1, precision="no", scheduler=False, clip=None):
    plain = model()
    optimizer = select(plain, **({"schedule": None} if scheduler else {}))
    stepper = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL) if scheduler else None
    data = list(batches(TOTAL * accumulate))
    for step in range(TOTAL):
        optimizer.zero_grad()
        for batch in data[step * accumulate : (step + 1) * accumulate]:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                loss = loss_fn(plain, batch)
            (loss / accumulate).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(plain.parameters(), clip)
        optimizer.step()
        if stepper is not None:
            stepper.step()
    return plain


CASES = {
    "plain": {},
    "accumulated": {"accumulate": 2},
    "bf16": {"precision": "bf16"},
    "clipped": {"clip": 0.1},
    "accumulated, clipped, bf16, scheduled": {"accumulate": 3, "precision": "bf16", "clip": 0.1, "scheduler": True},
}


@pytest.mark.parametrize("case", CASES)
def test_it_trains_as_a_plain_loop_does(case):
    run = Run(**CASES[case]).train()
    assert auto_optimizer_of(run.optimizer) is run.own
    assert run.own.phase == "selected" and run.own.param_groups[0]["step"] == TOTAL
    assert parameters(run.model) == parameters(by_hand(**CASES[case]))


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_run_that_loads_a_saved_state_is_bit_identical(precision, tmp_path):
    options = {"accumulate": 2, "precision": precision, "dropout": 0.2, "scheduler": True}
    run = Run(**options)
    run.train(save=lambda step: run.accelerator.save_state(str(tmp_path / str(step))))
    for moment, taken in MOMENTS.items():
        resumed = Run(**options)
        resumed.accelerator.load_state(str(tmp_path / str(taken)))
        assert resumed.own.phase == ("warmup" if taken < WARMUP else "selected"), moment
        resumed.train(start=taken)
        assert resumed.own.plan == run.own.plan, moment
        assert parameters(resumed.model) == parameters(run.model), moment


def test_callbacks_wait_through_the_wrapper():
    told = []
    run = Run()
    when_decided(run.optimizer, lambda recommendation, step: told.append((recommendation, step)))
    run.train()
    assert told == [(run.own.recommendation, WARMUP)]
