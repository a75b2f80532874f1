"""Several processes under DistributedDataParallel decide alike, whatever each of them has seen."""

import json

import pytest
from distributed_worker import Launcher

TIMEOUT = 5.0


@pytest.fixture(scope="module")
def launcher():
    with Launcher() as started:
        yield started


def same_on_all(answers, *keys):
    for key in keys:
        assert len({json.dumps(answer[key], sort_keys=True) for answer in answers}) == 1, key


@pytest.mark.parametrize("ranks", [2, 4])
def test_all_ranks_have_one_plan_and_the_same_bits_200_steps_later(launcher, ranks):
    answers = launcher.run("distributed_ddp:train", ranks=ranks, steps=220)
    same_on_all(answers, "parameters", "plan", "names", "recommendation")
    first = answers[0]
    assert first["sparse"] and "sparseadam" in first["optimizers"]
    assert first["deviates"] > 0 and first["num_ranks"] == ranks
    assert not any(name.startswith("module.") for name in first["names"])


def test_selecting_before_wrapping_is_the_same_run(launcher):
    wrapped, bare = (
        launcher.run("distributed_ddp:train", steps=40, select_first=select_first) for select_first in (False, True)
    )
    for key in ("parameters", "plan", "names"):
        assert wrapped[0][key] == bare[0][key] == bare[1][key], key


def test_measuring_the_noise_scale_leaves_the_run_as_it_is(launcher):
    plain, measured = (launcher.run("distributed_ddp:train", steps=40, hook=hook) for hook in (False, True))
    assert [answer["parameters"] for answer in measured] == [answer["parameters"] for answer in plain]


def test_statistics_are_those_of_one_process_that_has_the_whole_batch(launcher):
    answers = launcher.run("distributed_ddp:statistics")
    same_on_all(answers, "shared")
    shared, alone = answers[0]["shared"], answers[0]["alone"]
    assert shared["task"]["batch_size"] == alone["task"]["batch_size"] == 16
    assert shared["task"]["loss_start"] == pytest.approx(alone["task"]["loss_start"], rel=1e-5)
    assert shared["layers"].keys() == alone["layers"].keys()
    compared = 0
    for name, row in alone["layers"].items():
        assert row.keys() == shared["layers"][name].keys()
        for key, value in row.items():
            # Elements that cancel to 0 in one order of summation and not in another.
            tolerance = (
                {"rel": 1e-2, "abs": 0.05} if key in ("zero_share", "hill_index") else {"rel": 5e-3, "abs": 1e-4}
            )
            assert shared["layers"][name][key] == pytest.approx(value, **tolerance), (name, key)
            compared += 1
    assert compared > 100


def test_accumulating_without_synchronisation(launcher):
    lazy, eager = (launcher.run("distributed_ddp:accumulate", sync=sync) for sync in (False, True))
    same_on_all(lazy, "parameters", "plan")
    assert lazy[0]["plan"] == eager[0]["plan"]
    for ours, theirs in zip(lazy[0]["values"], eager[0]["values"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def test_profiling_aside_averages_gradients_whether_the_model_is_wrapped_or_not(launcher):
    wrapped, bare = (launcher.run("distributed_ddp:aside", wrap=wrap) for wrap in (True, False))
    same_on_all(bare, "plan", "statistics", "names")
    same_on_all(wrapped, "plan", "statistics", "names")
    assert wrapped[0]["plan"] == bare[0]["plan"] and wrapped[0]["names"] == bare[0]["names"]
    norms = [answer["statistics"]["hidden.weight"]["grad_rms"] for answer in (wrapped[0], bare[0])]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("wrap", [True, False])
def test_all_ranks_race_alike(launcher, wrap):
    answers = launcher.run("distributed_ddp:race", wrap=wrap)
    same_on_all(answers, "recommendation", "plan", "race_steps")
    assert answers[0]["race_steps"] > 0 and all(answer["restored"] for answer in answers)


def test_the_example_trains_and_says_that_ranks_agree(launcher):
    first, second = launcher.run("distributed_ddp:example")
    assert second == ""
    assert "parameters are equal on all ranks: True" in first
    assert "on 2 ranks" in first and "from 6 tensors" in first
    loss = float(first.split("Loss ")[1].split()[0])
    assert loss < 0.2


def test_the_bench_of_ranks_runs(launcher):
    for figures in launcher.run("distributed_ddp:bench"):
        assert figures["ranks"] == 2 and figures["parameters"] == 276_234
        assert len(figures) == 8 and all(value > 0 for value in figures.values())


# ---- the noise scale -----------------------------------------------------------------------------


def test_the_noise_scale_is_that_of_gradients_taken_by_hand(launcher):
    answers = launcher.run("distributed_ddp:noise_scale")
    first, second = answers
    local = {name: (value[0] + second["by_hand"][name][0]) / 2 for name, value in first["by_hand"].items()}
    averaged = {name: value[1] for name, value in first["by_hand"].items()}
    for answer in answers:
        assert answer["sums"].keys() == answer["by_hand"].keys()
        for name, values in answer["by_hand"].items():
            assert answer["sums"][name] == pytest.approx(values, rel=1e-4)
        assert answer["stops"]
    same_on_all(answers, "layers", "task")
    measured = 0
    for name, value in first["layers"].items():
        signal, trace = 2 * averaged[name] - local[name], 2 * (local[name] - averaged[name])
        if signal > 0:
            assert value == pytest.approx(trace / signal / 2, rel=1e-3)
            measured += 1
        else:
            assert value is None and "two_batch_noise_ratio" in first["missing"][name]
    assert measured > 2 and first["reported"] == first["layers"]["head.weight"] > 0
    signal = sum(2 * averaged[name] - local[name] for name in local)
    assert signal > 0
    whole = sum(local[name] - averaged[name] for name in local) / signal
    assert first["task"]["two_batch_noise_ratio"] == pytest.approx(whole, rel=1e-3)
    assert first["task"]["two_batch_noise_scale"] == pytest.approx(32 * whole, rel=1e-3)


def test_another_hook_runs_inside_the_measuring_one(launcher):
    for answer in launcher.run("distributed_ddp:noise_hook_inside"):
        assert answer["halved"]
        assert answer["averaged"] == pytest.approx(answer["expected"], rel=1e-5)
        assert "register_comm_hook" in answer["refused"]


# ---- ranks that are missing or disagree ----------------------------------------------------------


@pytest.mark.parametrize("how", ["dies before its step", "stands still"])
def test_a_rank_that_misses_the_decision_is_an_error_on_the_others(launcher, how):
    answers = launcher.run("distributed_ddp:missing_rank", timeout=TIMEOUT, may_die=[1], how=how, at=19)
    told, _ = answers
    assert told["ours"] and "the decision after 20 warm-up steps" in told["error"]
    assert "a rank has stopped" in told["error"]
    assert told["seconds"] < TIMEOUT + 2
    assert told["phase"] == "warmup"
    if how == "stands still":
        assert "Rank 1 failed" in told["error"] or "Ranks 1 failed" in told["error"], told["error"]


def test_a_rank_that_dies_in_warmup_stops_the_others_in_their_next_backward(launcher):
    for hook in (False, True):
        told, _ = launcher.run(
            "distributed_ddp:missing_rank", timeout=TIMEOUT, may_die=[1], how="dies", at=7, hook=hook
        )
        assert told["seconds"] < TIMEOUT + 2
        assert told["phase"] == "warmup"
        assert ("the averaging of gradients in warm-up: a rank has stopped" in told["error"]) == hook
        assert "onnection" in told["error"]  # what the backend has to say


@pytest.mark.parametrize("how", ["models", "arguments"])
def test_ranks_that_train_differently_are_told_so(launcher, how):
    for answer in launcher.run("distributed_ddp:disagree", how=how):
        assert answer["error"].startswith("DistributedError: the model or an argument of select() of rank 1")
        assert "process_group=" in answer["error"] and answer["phase"] == "warmup"


def test_the_first_ranks_selector_decides_where_ranks_have_different_ones(launcher):
    first, second = launcher.run("distributed_ddp:disagree", how="selectors")
    assert first["rates"] == second["rates"] and first["deviates"] > 0
    assert (first["phase"], second["phase"]) == ("selected", "selected")


def test_parameters_that_some_ranks_or_none_use(launcher):
    answers = launcher.run("distributed_ddp:unused")
    same_on_all(answers, "parameters", "plan", "measured")
    measured = answers[0]["measured"]
    assert "extra.weight" in measured and "never.weight" not in measured


def test_a_failure_to_decide_reaches_all_ranks(launcher):
    first, second = launcher.run("distributed_ddp:disagree", how="first rank fails")
    assert first["error"].startswith("ValueError: no idea")
    assert second["error"].startswith("DistributedError: the first rank failed at the decision")


def test_ranks_may_decide_alone_or_in_groups(launcher):
    first, second = launcher.run("distributed_ddp:disagree", how="alone")
    assert (first["phase"], second["phase"]) == ("selected", "warmup")
    for answer in launcher.run("distributed_ddp:disagree", ranks=4, how="groups"):
        assert answer["phase"] == "selected" and answer["num_ranks"] == 2
