"""Trackers are told once, right after the decision: TensorBoard, MLflow, W&B (offline) and a folder."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch
from integration_models import TOTAL, WARMUP, select
from report_example import transformer
from small_models import Classifier, batches, classifier, train
from torch import nn

from autoopt import AutoOptimizer, OptimizerPlan
from autoopt.errors import AutoOptError
from autoopt.integrations import auto_optimizer_of, when_decided
from autoopt.integrations.facts import facts
from autoopt.integrations.folder import ReportFolder
from autoopt.integrations.images import MAX_COLUMNS, layers_image, statistics_image
from autoopt.report.recommendation import Recommendation


def running(*callbacks, steps=0, **options):
    """A model and an optimizer that the callbacks wait for."""
    model = classifier()
    optimizer = select(model, **options)
    for callback in callbacks:
        when_decided(optimizer, callback)
    train(model, optimizer, batches(steps))
    return model, optimizer


@pytest.fixture(scope="module")
def recommendation():
    return running(steps=WARMUP)[1].recommendation


class Heard:
    """A callback that keeps what it was told."""

    def __init__(self):
        self.told = []

    def __call__(self, recommendation, step):
        self.told.append((recommendation, step))


# ---- the protocol --------------------------------------------------------------------------------


def test_every_callback_is_called_once_right_after_the_decision():
    first, second = Heard(), Heard()
    model, optimizer = running(first, second)
    train(model, optimizer, batches(WARMUP - 1))
    assert first.told == second.told == []
    train(model, optimizer, batches(1))
    assert first.told == second.told == [(optimizer.recommendation, WARMUP)]
    train(model, optimizer, batches(3))
    assert len(first.told) == len(second.told) == 1


def test_a_decision_that_was_made_already_is_told_at_once():
    _, optimizer = running(steps=WARMUP + 2)
    heard = Heard()
    when_decided(optimizer, heard)
    assert heard.told == [(optimizer.recommendation, WARMUP + 2)]


def test_a_skipped_last_step_of_warmup_is_told_too():
    heard = Heard()
    model, optimizer = running(heard, steps=WARMUP - 1)
    for param in model.parameters():
        param.grad = torch.full_like(param, torch.nan)
    optimizer.step()
    assert [step for _, step in heard.told] == [WARMUP]


def test_nothing_is_told_where_nothing_is_decided():
    model = Classifier(sparse=False)
    fixed = AutoOptimizer.from_plan(model, OptimizerPlan.uniform(model, "adamw"))
    heard = Heard()
    when_decided(fixed, heard)
    train(model, fixed, batches(2))
    _, decided = running(steps=WARMUP)
    resumed = select(classifier())
    when_decided(resumed, heard)
    resumed.load_state_dict(decided.state_dict())
    when_decided(resumed, heard)
    model = classifier()
    for param in model.parameters():
        param.grad = None
    resumed.step()
    assert heard.told == []


def test_copies_and_pickles_do_not_call():
    heard = Heard()
    model, optimizer = running(heard, steps=1)
    for other in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        train(*other, batches(WARMUP))
        assert other[1].phase == "selected" and heard.told == []


def test_wrapped_optimizers_are_looked_into():
    class Wrapper(torch.optim.Optimizer):
        def __init__(self, optimizer):
            self.optimizer = optimizer

    _, optimizer = running()
    assert auto_optimizer_of(Wrapper(Wrapper(optimizer))) is optimizer
    sgd = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    assert auto_optimizer_of(Wrapper(sgd)) is None
    with pytest.raises(TypeError, match=r"autoopt\.select.*SGD"):
        when_decided(sgd, Heard())


def test_an_error_of_a_callback_is_not_swallowed():
    def broken(recommendation, step):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        running(broken, steps=WARMUP)


# ---- what is told --------------------------------------------------------------------------------


def test_the_facts_count_tensors_by_optimizer(recommendation):
    values = facts(recommendation)
    assert values["autoopt/headline"] == recommendation.headline
    counts = {name.rpartition("/")[2]: value for name, value in values.items() if "/tensors/" in name}
    used = [layer.config.optimizer for layer in recommendation.layers]
    assert counts == {name: used.count(name) for name in set(used)}
    assert values["autoopt/deviating_tensors"] == sum(layer.deviates for layer in recommendation.layers) > 0
    assert values["autoopt/warmup_steps"] == WARMUP
    assert all(isinstance(value, str | int | float) for value in values.values())


def test_images_are_pixels_that_show_something(recommendation):
    for image in (layers_image(recommendation), statistics_image(recommendation)):
        assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 20
    changed = copy.deepcopy(recommendation)
    assert np.array_equal(layers_image(changed), layers_image(recommendation))


def test_images_of_large_models_stay_small_and_hostile_names_do_no_harm():
    large = transformer(200, note="$x_1$ \u202e<b>")
    image = layers_image(large)
    assert image.shape[0] < 1000 and image.shape[1] < 100 * (4 + 0.22 * MAX_COLUMNS)


def test_there_is_no_picture_of_statistics_that_were_not_taken(recommendation):
    bare = Recommendation(plan=recommendation.plan, layers=recommendation.layers)
    assert statistics_image(bare) is None


# ---- adapters ------------------------------------------------------------------------------------


def test_a_folder_gets_the_page_and_the_json(recommendation, tmp_path):
    ReportFolder(tmp_path / "run" / "reports", "mine")(recommendation, 3)
    page = (tmp_path / "run" / "reports" / "mine.html").read_text(encoding="utf-8")
    assert "<html" in page
    text = (tmp_path / "run" / "reports" / "mine.json").read_text(encoding="utf-8")
    assert Recommendation.from_json(text) == recommendation


@pytest.mark.parametrize("given", ["folder", "writer"])
def test_tensorboard_shows_text_and_images(given, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from autoopt.integrations.tensorboard import TensorBoardTracker

    writer = SummaryWriter(str(tmp_path)) if given == "writer" else None
    _, optimizer = running(TensorBoardTracker(writer or tmp_path), steps=WARMUP)
    if writer is not None:
        writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert set(events.Tags()["images"]) == {"autoopt/layers", "autoopt/statistics"}
    (text,) = events.Tensors("autoopt/recommendation/text_summary")
    assert text.step == WARMUP
    assert text.tensor_proto.string_val[0].decode() == optimizer.recommendation.to_markdown()
    (image,) = events.Images("autoopt/layers")
    assert (image.step, image.height) == (WARMUP, layers_image(optimizer.recommendation).shape[0])


@pytest.fixture
def mlflow(monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    module = pytest.importorskip("mlflow")
    before = module.get_tracking_uri()
    module.set_tracking_uri((tmp_path / "mlruns").as_uri())
    yield module
    module.set_tracking_uri(before)


@pytest.mark.parametrize("given", ["active run", "run and client"])
def test_mlflow_gets_artifacts_and_tags(given, mlflow):
    from autoopt.integrations.mlflow import MlflowTracker

    client = mlflow.MlflowClient()
    with mlflow.start_run() as run:
        active = given == "active run"
        tracker = MlflowTracker() if active else MlflowTracker(run.info.run_id, client, "first")
        _, optimizer = running(tracker, steps=WARMUP)
    name = "autoopt" if active else "first"
    tags = client.get_run(run.info.run_id).data.tags
    expected = {key.replace("autoopt", name, 1): str(value) for key, value in facts(optimizer.recommendation).items()}
    assert {key: value for key, value in tags.items() if key.startswith(f"{name}/")} == expected | {
        f"{name}/step": str(WARMUP)
    }
    files = [item.path for item in client.list_artifacts(run.info.run_id, name)]
    assert files == [f"{name}/layers.png", f"{name}/recommendation.html", f"{name}/recommendation.json"]
    written = mlflow.artifacts.load_dict(f"{run.info.artifact_uri}/{name}/recommendation.json")
    assert Recommendation.from_dict(written) == optimizer.recommendation


def test_without_an_active_run_mlflow_says_what_to_do(mlflow, recommendation):
    from autoopt.integrations.mlflow import MlflowTracker

    with pytest.raises(AutoOptError, match=r"no MLflow run is active.*start_run"):
        MlflowTracker()(recommendation, 1)


@pytest.fixture
def wandb(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    return pytest.importorskip("wandb")


def test_wandb_gets_the_report_and_the_plan_beside_what_the_run_logs(wandb, tmp_path):
    from autoopt.integrations.wandb import WandbTracker

    with wandb.init(project="tests", dir=str(tmp_path), settings=wandb.Settings(console="off")) as run:
        _, optimizer = running(WandbTracker(), steps=TOTAL)
        run.log({"loss": 1.0})
        assert run.step == 1, "the run's own count of steps is not moved"
        summary = dict(run.summary)
    values = facts(optimizer.recommendation) | {"autoopt/step": WARMUP}
    assert {key: summary[key] for key in values} == values
    (table,) = tmp_path.rglob("plan_*.table.json")
    rows = json.loads(table.read_text(encoding="utf-8"))["data"]
    assert [row[0] for row in rows] == [layer.name for layer in optimizer.recommendation.layers]
    (page,) = tmp_path.rglob("report_*.html")
    assert page.read_text(encoding="utf-8") == optimizer.recommendation.to_html()
    assert list(tmp_path.rglob("layers_*.png"))


def test_without_an_active_run_wandb_says_what_to_do(wandb, recommendation):
    from autoopt.integrations.wandb import WandbTracker

    with pytest.raises(AutoOptError, match=r"no W&B run is active.*wandb\.init"):
        WandbTracker()(recommendation, 1)
