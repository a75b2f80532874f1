"""Sharded parameters (FSDP2) are measured, decided for, stepped and saved as whole ones are."""

import json
import math

import pytest
from distributed_worker import Launcher


@pytest.fixture(scope="module")
def launcher():
    with Launcher() as started:
        yield started


@pytest.mark.parametrize(("ranks", "hybrid"), [(2, False), (4, True)], ids=["two ranks", "hybrid on four"])
def test_a_sharded_run_is_that_of_one_process(launcher, ranks, hybrid):
    answers = launcher.run("distributed_fsdp:compare", ranks=ranks, hybrid=hybrid)
    first = answers[0]
    assert first["same_layers"] and first["sharded_state"] and first["deviates"] > 0
    for answer in answers:
        assert answer["plans"] == [first["plans"][1]] * 2
        assert answer["statistics"]["shared"] == first["statistics"]["shared"]
    shared, alone = first["statistics"]["shared"], first["statistics"]["alone"]
    assert shared["task"] == pytest.approx(alone["task"], rel=1e-3)
    assert shared["task"]["batch_size"] == 16
    compared = 0
    for name, row in alone["layers"].items():
        assert row.keys() == shared["layers"][name].keys(), name
        for key, value in row.items():
            assert shared["layers"][name][key] == pytest.approx(value, rel=5e-3, abs=5e-3), (name, key)
            compared += 1
    assert compared > 150
    for ours, theirs in first["losses"]:
        assert ours == pytest.approx(theirs, rel=1e-3)
    for name, value in first["values"][1].items():
        assert first["values"][0][name] == pytest.approx(value, rel=1e-2, abs=2e-3), name


def test_tensor_parallel_matrices_beside_plain_parameters(launcher):
    answers = launcher.run("distributed_fsdp:compare_tensor_parallel")
    assert answers[0]["plans"] == answers[1]["plans"]
    first = answers[0]
    assert first["placements"] == ["(Shard(dim=0),)", "(Shard(dim=1),)"]
    assert first["plans"][0] == first["plans"][1]
    for name, row in first["statistics"][1].items():
        assert first["statistics"][0][name] == pytest.approx(row, rel=5e-3, abs=5e-3), name
    for name, value in first["values"][1].items():
        assert first["values"][0][name] == pytest.approx(value, rel=1e-2, abs=2e-3), name


@pytest.mark.parametrize("ranks", [2, 3])
def test_every_rule_steps_shards_as_it_steps_whole_parameters(launcher, ranks):
    answers = launcher.run("distributed_fsdp:rules", ranks=ranks)
    assert len(answers[0]) >= 20
    for rule, found in answers[0].items():
        # Whole vectors and their tails round differently, and parts end elsewhere.
        assert found["gap"] <= 1e-6, (rule, found)
        assert found["tensors"] > 2
    for rule in ("sgd {}", "adamw {}", "lion {}", "muon {}"):
        assert sum(answer[rule]["share"] for answer in answers) < 1.2, rule
    # Ranks take turns at orthogonalising, so that none does the work of all.
    turns = [answer["muon {}"]["orthogonalised"] for answer in answers]
    assert sum(turns) == answers[0]["muon {}"]["tensors"] == 9
    assert max(turns) == math.ceil(9 / ranks)


def test_a_step_that_is_not_finite_on_one_rank_is_skipped_on_all(launcher):
    for answer in launcher.run("distributed_fsdp:not_finite"):
        assert answer["same"] and answer["moved"] and answer["skipped"] == 1


def test_profiling_aside_sees_what_training_sees_and_leaves_the_parts_alone(launcher):
    answers = launcher.run("distributed_fsdp:aside")
    assert answers[0]["plan"] == answers[1]["plan"]
    for answer in answers:
        assert answer["same"]
        assert answer["grad_rms"][0] == pytest.approx(answer["grad_rms"][1], rel=1e-5)
        assert any("one process only" in warning for warning in answer["warnings"])


@pytest.mark.parametrize("taken", [10, 20, 25], ids=["in warm-up", "at the switch", "after it"])
def test_a_checkpoint_of_two_ranks_goes_on_on_one_and_on_four(launcher, taken, tmp_path):
    folder = str(tmp_path / "checkpoint")
    saved = launcher.run("distributed_fsdp:save", folder=folder, taken=taken)[0]
    assert saved["phase"] == ("warmup" if taken < 20 else "selected")
    plan = saved["plan"] if saved["phase"] == "selected" else None
    for ranks in (1, 4):
        answers = launcher.run("distributed_fsdp:resume", ranks=ranks, folder=folder, taken=taken, plan=plan)
        for answer in answers:
            assert json.loads(answer["final_plan"]) == json.loads(saved["final_plan"])
            assert answer["losses"] == pytest.approx(saved["losses"], rel=2e-3)


def test_selecting_before_sharding_is_warned_of_once_where_step_is_called(launcher):
    for told in launcher.run("distributed_fsdp:selected_too_early"):
        assert [where for _, where in told] == ["distributed_fsdp.py"]
        assert "no parameter" in told[0][0] and "call select() afterwards" in told[0][0]


def test_fsdp1_is_refused_and_the_proposed_way_trains(launcher):
    for answer in launcher.run("distributed_fsdp:flattened"):
        for key in ("False", "True"):
            assert "FSDP1" in answer[key] and "fully_shard" in answer[key] and "from_plan" in answer[key]
            losses = answer[f"{key} losses"]
            assert losses[-1] < 0.5 * losses[0]
