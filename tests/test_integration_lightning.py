"""Lightning: `select` in `configure_optimizers`, in automatic and manual optimization, through checkpoints."""

import lightning.pytorch as pl
import pytest
import torch
from integration_models import MOMENTS, TOTAL, WARMUP, select
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from small_models import Classifier, batches, loss_fn, parameters
from torch import nn
from torch.utils.data import DataLoader

from autoopt.architecture import describe
from autoopt.integrations import auto_optimizer_of
from autoopt.integrations.lightning import LogRecommendation, ValidateAverage
from autoopt.report.recommendation import Recommendation

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),  # Lightning itself calls what torch has deprecated
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.*number of training batches"),
]


def classifier():
    """A dense classifier without dropout, since the order of random draws differs between the loops."""
    torch.manual_seed(0)
    model = Classifier(sparse=False)
    model.drop.p = 0.0
    return model


class Module(pl.LightningModule):
    """The classifier with one optimizer, and whatever scheduler is asked for."""

    def __init__(self, scheduler=None, **options):
        super().__init__()
        self.model = classifier()
        self.scheduler, self.options = scheduler, options
        self.horizon = None

    def training_step(self, batch, batch_index):
        return loss_fn(self.model, batch)

    def configure_optimizers(self):
        self.horizon = int(self.trainer.estimated_stepping_batches)
        optimizer = select(self, total_steps=self.horizon, **self.options)
        if self.scheduler is None:
            return optimizer
        return [optimizer], [{"scheduler": self.scheduler(optimizer), "interval": "step"}]


class Manual(Module):
    """The same with manual optimization: two batches a step, clipped by hand."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_index):
        optimizer = self.optimizers()
        self.manual_backward(loss_fn(self.model, batch) / 2)
        if batch_index % 2:
            self.clip_gradients(optimizer, gradient_clip_val=0.1, gradient_clip_algorithm="norm")
            optimizer.step()
            optimizer.zero_grad()

    def configure_optimizers(self):
        return select(self)


def loader(count=TOTAL):
    return DataLoader(list(batches(count)), batch_size=None)


def trainer(folder, **options):
    settings = {
        "max_steps": TOTAL,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "default_root_dir": str(folder),
    }
    return pl.Trainer(**settings | options)


def fitted(module, folder, data=None, resume=None, **options):
    """The module after training, and its optimizer."""
    fit = trainer(folder, **options)
    fit.fit(module, data or loader(), ckpt_path=resume)
    return module, auto_optimizer_of(fit.optimizers[0])


def by_hand(steps, precision=None, clip=None, scheduler=None, dtype=torch.float32):
    """A plain loop over lists of batches, one list a step."""
    model = classifier().to(dtype)
    options = {} if scheduler is None else {"schedule": None}
    optimizer = select(model, **options)
    stepper = None if scheduler is None else scheduler(optimizer)
    for parts in steps:
        optimizer.zero_grad()
        for batch in parts:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
                loss = loss_fn(model, batch)
            (loss / len(parts)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        if stepper is not None:
            stepper.step()
    return model


def in_parts(size):
    data = list(batches(TOTAL * size))
    return [data[start : start + size] for start in range(0, len(data), size)]


def cosine(optimizer):
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL)


CASES = {
    "plain": ({}, {}, {}),
    "clipped": ({}, {"gradient_clip_val": 0.1}, {"clip": 0.1}),
    "with a scheduler": ({"scheduler": cosine, "schedule": None}, {}, {"scheduler": cosine}),
    "bf16 mixed": ({}, {"precision": "bf16-mixed"}, {"precision": "bf16"}),
    "bf16": ({}, {"precision": "bf16-true"}, {"dtype": torch.bfloat16}),
    "float64": ({}, {"precision": "64-true"}, {"dtype": torch.float64}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_trains_as_a_plain_loop_does(case, tmp_path):
    options, settings, plain = CASES[case]
    module, optimizer = fitted(Module(**options), tmp_path, **settings)
    assert module.horizon == TOTAL
    assert optimizer.phase == "selected" and not optimizer.recommendation.abstained
    first, last = (optimizer.recommendation.profile[key] for key in ("warmup_steps", "num_nonfinite_steps"))
    assert (first, last) == (WARMUP, 0)
    expected = by_hand(in_parts(1), **plain)
    if "dtype" in plain:
        expected = expected.to(torch.float32)
        module = module.to(torch.float32)
    assert parameters(module.model) == parameters(expected)


def test_accumulated_batches_are_one_step(tmp_path):
    module, optimizer = fitted(Module(), tmp_path, loader(2 * TOTAL), accumulate_grad_batches=2)
    assert module.horizon == TOTAL and optimizer.param_groups[0]["step"] == TOTAL
    assert parameters(module.model) == parameters(by_hand(in_parts(2)))


def test_manual_optimization_steps_alike(tmp_path):
    module, optimizer = fitted(Manual(), tmp_path, loader(2 * TOTAL))
    assert optimizer.phase == "selected"
    assert parameters(module.model) == parameters(by_hand(in_parts(2), clip=0.1))


def test_the_roles_are_those_of_the_model_inside(tmp_path):
    module = Module()
    inside = {f"model.{name}": (layer.role, layer.depth) for name, layer in describe(module.model).items()}
    assert {name: (layer.role, layer.depth) for name, layer in describe(module).items()} == inside


class Resumable(Module):
    """Batch and dropout follow from the step, since Lightning restores neither loader nor generator."""

    def __init__(self):
        super().__init__()
        self.model.drop.p = 0.2

    def training_step(self, batch, batch_index):
        torch.manual_seed(self.global_step)
        return loss_fn(self.model, next(batches(1, seed=self.global_step)))


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_a_run_resumed_from_a_checkpoint_is_bit_identical(precision, tmp_path):
    def checkpointed(resume=None):
        every = ModelCheckpoint(
            tmp_path, "step={step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False
        )
        options = {"precision": precision, "enable_checkpointing": True, "callbacks": [every]}
        return fitted(Resumable(), tmp_path, resume=resume, **options)

    module, optimizer = checkpointed()
    for moment, taken in MOMENTS.items():
        resumed, other = checkpointed(str(tmp_path / f"step={taken}.ckpt"))
        assert other.param_groups[0]["step"] == TOTAL and other.plan == optimizer.plan, moment
        assert parameters(resumed) == parameters(module), moment
        assert (other.recommendation is None) == (taken >= WARMUP), moment


def test_two_optimizers_decide_each_for_its_own_part(tmp_path):
    class Pair(Manual):
        def __init__(self):
            super().__init__()
            self.other = Classifier(sparse=False)

        def training_step(self, batch, batch_index):
            for model, optimizer in zip((self.model, self.other), self.optimizers(), strict=True):
                optimizer.zero_grad()
                self.manual_backward(loss_fn(model, batch))
                optimizer.step()

        def configure_optimizers(self):
            return select(self.model), select(self.other)

    callback = LogRecommendation()
    # Manual optimization counts a step of either optimizer.
    module, _ = fitted(Pair(), tmp_path, max_steps=2 * TOTAL, callbacks=[callback])
    optimizers = [auto_optimizer_of(each) for each in module.optimizers()]
    assert [optimizer.phase for optimizer in optimizers] == ["selected"] * 2
    for index, optimizer in enumerate(optimizers):
        text = (tmp_path / f"autoopt-{index}.json").read_text(encoding="utf-8")
        assert Recommendation.from_json(text) == optimizer.recommendation


def test_the_callback_writes_the_report_and_tells_the_loggers(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    told = []
    logger = TensorBoardLogger(str(tmp_path), name="run")
    callback = LogRecommendation([lambda recommendation, step: told.append(step)])
    _, optimizer = fitted(Module(), tmp_path, logger=[logger, CSVLogger(str(tmp_path))], callbacks=[callback])
    folder = tmp_path / "run" / "version_0"
    assert "<html" in (folder / "autoopt.html").read_text(encoding="utf-8")
    text = (folder / "autoopt.json").read_text(encoding="utf-8")
    assert Recommendation.from_json(text) == optimizer.recommendation
    assert told == [WARMUP]
    events = EventAccumulator(str(folder)).Reload()
    assert {"autoopt/layers", "autoopt/statistics"} <= set(events.Tags()["images"])
    assert [event.step for event in events.Tensors("autoopt/recommendation/text_summary")] == [WARMUP]


def test_the_callback_tells_mlflow_and_wandb_loggers(tmp_path, monkeypatch):
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    for name, value in {
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_SILENT": "true",
        "WANDB_CONSOLE": "off",
    }.items():
        monkeypatch.setenv(name, value)
    mlflow = MLFlowLogger("tests", tracking_uri=(tmp_path / "mlruns").as_uri())
    wandb = WandbLogger(project="tests", offline=True, save_dir=str(tmp_path))
    try:
        fitted(Module(), tmp_path, logger=[mlflow, wandb], callbacks=[LogRecommendation()])
        tags = mlflow.experiment.get_run(mlflow.run_id).data.tags
        assert tags["autoopt/step"] == str(WARMUP)
        assert wandb.experiment.summary["autoopt/step"] == WARMUP
    finally:
        wandb.experiment.finish()


class Validated(Module):
    """Notes the weights that it is trained and validated with."""

    def __init__(self, fails=False):
        super().__init__()
        self.fails, self.trained, self.validated = fails, [], []

    def _weights(self):
        return next(self.model.parameters()).detach().clone()

    def training_step(self, batch, batch_index):
        self.trained.append(self._weights())
        return super().training_step(batch, batch_index)

    def validation_step(self, batch, batch_index):
        self.validated.append(self._weights())
        if self.fails and self.trained:
            raise RuntimeError("validation fails")


class TestValidateAverage:
    def fit(self, module, tmp_path):
        data = DataLoader(list(batches(8)), batch_size=None)
        trainer = pl.Trainer(
            max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, val_check_interval=4, limit_val_batches=1,
            callbacks=[ValidateAverage()],
        )  # fmt: skip
        trainer.fit(module, data, data)
        return trainer

    def test_validation_sees_the_average_and_training_the_weights(self, tmp_path):
        module = Validated()
        optimizer = auto_optimizer_of(self.fit(module, tmp_path).optimizers[0])
        plain = Validated()
        pl.Trainer(
            max_steps=8, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=tmp_path, val_check_interval=4, limit_val_batches=1,
        ).fit(plain, *2 * [DataLoader(list(batches(8)), batch_size=None)])  # fmt: skip
        assert all(torch.equal(a, b) for a, b in zip(module.trained, plain.trained, strict=True))
        with optimizer.averaged():
            assert torch.equal(module.validated[-1], module._weights())
        assert not torch.equal(module.validated[-1], module._weights())

    def test_a_failing_validation_leaves_the_weights(self, tmp_path):
        module = Validated(fails=True)
        with pytest.raises(RuntimeError, match="validation fails"):
            self.fit(module, tmp_path)
        assert not torch.equal(module.validated[-1], module._weights())
