"""The course of a training run in its report: losses in bounded memory, the switch, and what was guarded."""

import copy
import pickle

import pytest
import torch
from report_example import Page, deviating, layer, recommendation
from synthetic_selector import synthetic_predictor

import autoopt
from autoopt.optimizers.loss_history import LossHistory


def train(steps, poisoned=(), observe=True):
    """An optimizer that `select` made with 5 steps of warm-up, after some steps."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    optimizer = autoopt.select(model, total_steps=100, warmup_steps=5, selector=synthetic_predictor())
    for step in range(steps):
        x, y = torch.randn(16, 6), torch.randint(3, (16,))
        loss = torch.nn.functional.cross_entropy(model(x), y) * (float("nan") if step in poisoned else 1.0)
        optimizer.zero_grad()
        loss.backward()
        if observe:
            optimizer.observe(loss)
        optimizer.step()
    return optimizer


@pytest.mark.parametrize("count", [1, 2, 7, 8, 9, 100, 1000])
def test_a_history_is_bounded_even_and_holds_the_first_and_the_latest(count):
    history = LossHistory(limit=8)
    for step in range(count):
        history.add(step, torch.tensor(float(step)) if step % 2 else float(step))
    points = history.points()
    assert len(history.kept) <= 8 and len(points) <= 9
    assert points[0] == (0, 0.0) and points[-1] == (count - 1, float(count - 1))
    assert all(step == loss for step, loss in points)
    gaps = {b - a for (a, _), (b, _) in zip(points[:-1], points[1:-1], strict=False)}
    assert len(gaps) <= 1
    assert len(points) >= min(count, 4)


def test_a_history_keeps_values_that_the_tensor_has_since_lost():
    history, loss = LossHistory(), torch.tensor(0.0)
    for step in range(3):
        history.add(step, loss.fill_(float(step)))
    assert history.points() == ((0, 0.0), (1, 1.0), (2, 2.0))


def test_the_report_shows_the_losses_and_the_switch():
    assert train(3).report() is None
    optimizer = train(20)
    content = optimizer.report()
    assert [step for step, _ in content.losses] == list(range(20))
    assert content.plan == optimizer.recommendation.plan and optimizer.recommendation.losses == ()
    (switch,) = content.events
    assert (switch.step, switch.kind) == (5, "switch") and "4 tensors left" in switch.message
    page = Page(content.to_html()).text
    assert "Training so far" in page and switch.message in page and "Shaded: the 5 steps" in page
    assert switch.message in content.to_text(200) and switch.message in content.to_markdown()


def test_skipped_steps_and_losses_that_are_not_finite_are_marked():
    content = train(12, poisoned={2, 9}).report()
    kinds = [(event.step, event.kind) for event in content.events]
    assert kinds == [(2, "nonfinite"), (5, "guard"), (5, "switch"), (9, "guard")]
    assert "1 step of warm-up skipped" in content.events[1].message
    assert "not finite" in content.events[3].message and "skipped" in content.events[3].message
    assert content.losses[2] == (2, None)


def test_without_observed_losses_the_report_still_tells_the_switch():
    content = train(8, observe=False).report()
    assert content.losses == () and [event.kind for event in content.events] == ["switch"]


def test_a_run_that_kept_the_default_says_so_and_one_profiled_aside_has_no_switch():
    online = recommendation([layer("w")], profile={"mode": "online", "warmup_steps": 9})
    assert online.with_training([(0, 1.0)]).events[0].message.endswith("the calibrated default is kept")
    aside = recommendation([deviating("w")], profile={"mode": "aside", "warmup_steps": 9})
    assert aside.with_training([(0, 1.0), (1, 0.5)]).events == ()


def test_copies_and_pickles_keep_the_history():
    optimizer = train(8)
    for other in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert other.report().losses == optimizer.report().losses
