"""The guard on several ranks: whatever one of them has met, all skip, roll back and fall back alike."""

import math

import pytest
from distributed_worker import Launcher

KINDS = ["ddp", "fsdp"]


@pytest.fixture(scope="module")
def launcher():
    with Launcher() as started:
        yield started


def alike(answers, *left_out):
    """The first rank's answer, once it is known to be that of all ranks."""
    for key in ("events", "plans", "head", "parameters", "finite", "unmoved"):
        if key not in left_out:
            assert all(answer[key] == answers[0][key] for answer in answers), key
    assert answers[0]["finite"]
    return answers[0]


def actions(answer):
    return [event["action"] for event in answer["events"]]


@pytest.mark.parametrize("factor", [math.nan, 1e7])
@pytest.mark.parametrize("kind", [*KINDS, "batch norm"])
def test_a_bad_batch_of_one_rank_is_skipped_on_all(launcher, kind, factor):
    first = alike(launcher.run("distributed_guard:poisoned", kind=kind, length=1, factor=factor))
    assert first["unmoved"] and actions(first) == ["skip"]
    assert (first["events"][0]["step"], len(first["plans"])) == (60, 1)


@pytest.mark.parametrize("kind", KINDS)
def test_batches_of_one_rank_that_stay_bad_roll_all_back_together(launcher, kind):
    first = alike(launcher.run("distributed_guard:poisoned", kind=kind, length=6))
    assert actions(first) == ["skip", "roll back", "skip"]  # the last two are met when it has just been rolled back
    assert first["events"][1]["step"] == 63


@pytest.mark.parametrize("kind", KINDS)
def test_a_rate_that_explodes_is_halved_and_falls_to_the_default_on_all_ranks(launcher, kind):
    first = alike(launcher.run("distributed_guard:exploding", kind=kind, factor=1e6))
    assert actions(first) == ["skip", "roll back", "skip", "default"]
    assert all(event["groups"] == ["head"] for event in first["events"][1::2])
    assert "half the rates of head" in first["events"][1]["done"]
    # The default, the choice, half of its rates, the default again.
    assert len(first["plans"]) == 4 and first["plans"][3] == first["plans"][0]


@pytest.mark.parametrize(("kind", "interval"), [("ddp", None), ("ddp", 4), ("fsdp", None)])
def test_a_spoilt_layer_comes_back_on_all_ranks(launcher, kind, interval):
    first = alike(launcher.run("distributed_guard:killed", kind=kind, interval=interval), "unmoved")
    assert "roll back" in actions(first)
    assert first["loss"] < 1.7


def test_ranks_vote_on_whether_a_rollback_has_helped(launcher):
    alike(launcher.run("distributed_guard:killed", kind="ddp", extra="high losses"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_room_for_snapshots_goes_back_nowhere_and_neither_do_others(launcher, kind):
    first = alike(launcher.run("distributed_guard:killed", kind=kind, extra="no room"))
    assert actions(first)[:2] == ["skip", "roll back"]
    assert "no snapshot" in first["events"][1]["done"]
    assert not any("rolled back to" in event["done"] for event in first["events"])


@pytest.mark.parametrize("observing", [[0], [0, 1]])
def test_an_overflow_is_one_where_all_ranks_know_that_their_losses_are_sound(launcher, observing):
    first = alike(launcher.run("distributed_guard:overflowing", kind="ddp", observing=observing))
    assert actions(first) == (["skip"] if observing == [0, 1] else ["skip", "roll back", "skip"])
