"""The data and the losses of the image, table, series and synthetic tasks, against what they should be."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from autoopt.errors import TaskError
from autoopt.tasks.data import cached, minibatches, package_folder, split, standardise
from autoopt.tasks.models_synthetic import RealNvp, spectrum
from autoopt.tasks.physics import SOLUTIONS, ResidualLoss, Sensors
from autoopt.tasks.series_data import FORECAST, forecast_windows, read_ts
from autoopt.tasks.survival import RISK_SET, cox_loss, stratified_cox_loss
from autoopt.tasks.synthetic_data import checkerboard
from autoopt.tasks.tabular_data import TABLES, columns
from autoopt.tasks.vision_data import photo_patches


def count_loads(name):
    calls = cached_calls.setdefault(name, [])
    calls.append(name)
    return {"x": np.arange(3)}


cached_calls: dict[str, list[str]] = {}


def needs_missing_package():
    import mlxtend_is_not_here  # noqa: F401  # pyright: ignore[reportMissingImports]

    return {}


def test_data_is_loaded_once_and_survives_a_damaged_file(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOOPT_CACHE", str(tmp_path))
    first = cached("counted", count_loads, "a")
    assert cached("counted", count_loads, "a") is first
    cached.cache_clear()
    assert cached("counted", count_loads, "a")["x"].tolist() == [0, 1, 2]
    assert len(cached_calls["a"]) == 1
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:50])
    cached.cache_clear()
    assert cached("counted", count_loads, "a")["x"].tolist() == [0, 1, 2]
    assert len(cached_calls["a"]) == 2
    assert list(tmp_path.iterdir()) == [file]
    cached.cache_clear()


def test_an_unwritable_cache_only_costs_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AUTOOPT_CACHE", str(tmp_path / "file"))
    assert cached("unwritable", count_loads, "b")["x"].tolist() == [0, 1, 2]


def test_a_missing_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("AUTOOPT_CACHE", str(tmp_path))
    with pytest.raises(TaskError, match="pip install mlxtend_is_not_here"):
        cached("absent", needs_missing_package)
    with pytest.raises(TaskError, match="pip install nothing_of_this_name"):
        package_folder("nothing_of_this_name")


def test_an_epoch_of_minibatches_has_each_row_once_and_drops_the_rest():
    rows = torch.arange(10)
    taken = [batch[0] for batch in itertools.islice(minibatches((rows,), 3, seed=1), 6)]
    for epoch in (taken[:3], taken[3:]):
        assert len(set(torch.cat(epoch).tolist())) == 9
    assert not torch.equal(torch.cat(taken[:3]), torch.cat(taken[3:]))
    with pytest.raises(TaskError, match="batch_size 11 does not fit 10"):
        next(minibatches((rows,), 11, seed=1))
    with pytest.raises(TaskError, match="differ in length"):
        next(minibatches((rows, rows[:3]), 2, seed=1))


def test_a_split_is_disjoint_complete_and_fixed():
    train, validation = split(20, 5)
    assert sorted([*train, *validation]) == list(range(20))
    assert validation.tolist() == split(20, 5)[1].tolist()
    with pytest.raises(TaskError, match="20 validation rows out of 20"):
        split(20, 20)


def test_only_training_rows_set_the_scale():
    train = np.array([[0.0, 5.0], [2.0, 5.0]])
    scaled, other = standardise(train, np.array([[100.0, 6.0], [1.0, 5.0]]))
    assert scaled.tolist() == [[-1, 0], [1, 0]]
    assert other.tolist() == [[8, 1], [0, 0]]


def test_loans_do_not_see_what_gives_the_rate_away():
    assert {"grade", "sub_grade", "installment", "paid_interest"} <= set(TABLES["loans"].drop)
    data = columns("loans")
    train, validation = data.one_hot()
    width = data.numeric.shape[1] + sum(data.cardinalities)
    assert train[0].shape == (9200, width) and validation[0].shape == (800, width)
    # No single column explains most of the target.
    inputs = train[0][:, train[0].std(0) > 0]
    correlation = np.corrcoef(np.concatenate([inputs, train[1]], axis=1).T)[-1, :-1]
    assert np.abs(correlation).max() < 0.8


def test_photo_patches_share_no_pixel_between_the_splits():
    train, labels, validation, held_out_labels = photo_patches()
    flat = {tuple(patch.flatten()[:96].tolist()) for patch in train}
    assert not any(tuple(patch.flatten()[:96].tolist()) in flat for patch in validation)
    assert set(labels.tolist()) == set(held_out_labels.tolist()) == set(range(10))


def test_ts_files_are_read_by_the_format(tmp_path):
    path = tmp_path / "a.ts"
    path.write_text("#c\n@data\n\n1,2,3:4,5,6:left\n7,8:9,10:right\n")
    read, labels = read_ts(path)
    assert labels == ["left", "right"]
    assert read[0].tolist() == [[1, 4], [2, 5], [3, 6]] and read[1].tolist() == [[7, 9], [8, 10]]


@pytest.mark.parametrize("source", ["elecdemand", "chicago", "sea-temperature"])
def test_forecasts_are_changes_from_the_last_value_seen(source):
    windows, futures, _, held_out = forecast_windows(source)
    assert windows.shape[1] == FORECAST[source].window and futures.shape[1] == FORECAST[source].horizon
    assert futures.std().item() == pytest.approx(1, abs=1e-3)
    assert 0.5 < held_out.square().mean().item() < 1.6
    # The next window's last value is this window's first future, in the same unit.
    if FORECAST[source].stride == 1:
        moved = windows[1, -1, 0] - windows[0, -1, 0]
        scale = moved / futures[0, 0]
        again = (windows[2, -1, 0] - windows[1, -1, 0]) / futures[1, 0]
        assert scale.item() == pytest.approx(again.item(), rel=1e-3)


# Losses and models against what they should be


def cox_by_hand(log_hazard, times, events):
    total = 0.0
    for row in range(len(times)):
        if events[row]:
            at_risk = [other for other in range(len(times)) if times[other] >= times[row]]
            total += math.log(sum(math.exp(log_hazard[other]) for other in at_risk)) - log_hazard[row]
    return total / max(1, sum(events))


def test_cox_losses_match_the_definition():
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(2 * RISK_SET, 1, generator=generator)
    times = torch.randperm(2 * RISK_SET, generator=generator).float()
    events = (torch.rand(2 * RISK_SET, generator=generator) < 0.5).float()
    model = nn.Identity()
    lists = features.squeeze(1).tolist(), times.tolist(), events.tolist()
    assert cox_loss(model, (features, times, events)).item() == pytest.approx(cox_by_hand(*lists), rel=1e-5)
    halves = [[part[:RISK_SET] for part in lists], [part[RISK_SET:] for part in lists]]
    expected = sum(cox_by_hand(*half) * sum(half[2]) for half in halves) / sum(lists[2])
    assert stratified_cox_loss(model, (features, times, events)).item() == pytest.approx(expected, rel=1e-5)
    assert cox_loss(model, (features, times, torch.zeros_like(events))).item() == 0


def test_a_flow_is_a_density():
    torch.manual_seed(0)
    flow = RealNvp(8, 3)
    axis = torch.linspace(-8, 8, 400)
    grid = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        mass = flow(grid).exp().sum() * (axis[1] - axis[0]) ** 2
    assert mass.item() == pytest.approx(1, abs=0.01)


def test_the_checkerboard_is_dark_squares_only():
    (points,) = checkerboard(torch.Generator().manual_seed(0), 4000)
    squares = ((points + 4) // 2).long()
    assert squares.min() == 0 and squares.max() == 3
    assert ((squares.sum(1) % 2) == 0).all()
    assert len(torch.unique(squares, dim=0)) == 8


@pytest.mark.parametrize("equation", SOLUTIONS)
def test_the_exact_solution_leaves_no_residual(equation):
    class Exact(nn.Module):
        def forward(self, points):
            return SOLUTIONS[equation](points)

    batch = Sensors(equation)(torch.Generator().manual_seed(0), 2000)
    noise = functional.mse_loss(SOLUTIONS[equation](batch[1]), batch[2]).item()
    assert ResidualLoss(equation)(Exact(), batch).item() == pytest.approx(noise, abs=1e-5)
    wrong = ResidualLoss(equation)(nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 1)), batch).item()
    assert wrong > 2 * noise


def test_a_spectrum_has_its_condition_number_and_mean():
    values = spectrum(50, 1e3)
    assert (values[0] / values[-1]).item() == pytest.approx(1e3, rel=1e-4)
    assert values.mean().item() == pytest.approx(1, rel=1e-5)
