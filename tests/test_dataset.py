import ast
import errno
import json
import math
import os
import subprocess
import sys
import threading
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from trial_rows import requests, run

import autoopt.meta
from autoopt.errors import MetaDatasetError
from autoopt.meta import dataset as dataset_module
from autoopt.meta.dataset import MetaDataset, features_record, trial_record
from autoopt.meta.journal import Journal
from autoopt.meta.parquet import TRIAL_COLUMNS
from autoopt.meta.trial import TRIAL_SCHEMA_VERSION, Trial


def journaled(folder, trials, feature_rows=()):
    journal = Journal(folder)
    for trial in trials:
        journal.append(trial_record(trial.to_row()))
    if feature_rows:
        journal.append(features_record(feature_rows))


def feature_row(task="task-0", seed=0, group="head", **values):
    return {"task": task, "seed": seed, "group": group, "family": "f", "source": "s", **values}


def written(folder, name, rows, kind="trials", version=TRIAL_SCHEMA_VERSION):
    table = pa.Table.from_pylist(rows)
    marks = {"autoopt.kind": kind, "autoopt.schema_version": str(version)}
    (folder / "trials").mkdir(exist_ok=True)
    pq.write_table(table.replace_schema_metadata(marks), folder / "trials" / name)


def test_the_stored_columns_are_the_fields_of_a_trial():
    assert [name for name, _ in TRIAL_COLUMNS] == [field.name for field in fields(Trial)]


@pytest.mark.parametrize("compacted", [False, True])
def test_trials_and_features_come_back_as_recorded(tmp_path, compacted):
    trials = [run(request) for request in requests()]
    journaled(tmp_path, trials, [feature_row(depth=2.0), feature_row(group="matrix", depth=math.nan, noise=3)])
    if compacted:
        assert MetaDataset.compact(tmp_path) == 13
        assert Journal(tmp_path).read() == []
    data = MetaDataset.load(tmp_path)
    assert list(data.trials["trial_id"]) == [trial.trial_id for trial in trials]
    for name in (
        "best_val_loss",
        "final_val_loss",
        "seed",
        "budget_steps",
        "num_parameters",
        "status",
        "plan",
    ):
        expected = pd.Series([getattr(trial, name) for trial in trials])
        assert (data.trials[name].eq(expected) | (data.trials[name].isna() & expected.isna())).all(), name
    for row, trial in zip(data.trials.itertuples(), trials, strict=True):
        assert row.val_losses.dtype == np.float32
        np.testing.assert_array_equal(row.val_losses, np.float32(trial.val_losses))
        np.testing.assert_array_equal(row.train_losses, np.float32(trial.train_losses))
        assert list(row.val_steps) == trial.val_steps
    features = data.features.set_index("group")
    assert features.loc["head", "depth"] == 2.0 and math.isnan(features.loc["head", "noise"])
    assert math.isnan(features.loc["matrix", "depth"]) and features.loc["matrix", "noise"] == 3.0
    assert features["depth"].dtype == np.float64


def test_integers_do_not_overflow_in_products(tmp_path):
    journaled(tmp_path, [run(requests()[0], budget_steps=3000, batch_size=2**30)])
    MetaDataset.compact(tmp_path)
    trials = MetaDataset.load(tmp_path).trials
    assert (trials["budget_steps"] * trials["batch_size"]).item() == 3000 * 2**30


def test_load_joins_shards_and_journal_and_counts_a_trial_once(tmp_path):
    trials = [run(request) for request in requests()]
    journaled(tmp_path, trials[:6])
    MetaDataset.compact(tmp_path)
    journaled(tmp_path, trials[4:])
    assert list(MetaDataset.load(tmp_path).trials["trial_id"]) == [trial.trial_id for trial in trials]
    MetaDataset.compact(tmp_path)
    rows = sum(pq.read_metadata(path).num_rows for path in (tmp_path / "trials").iterdir())
    assert rows == len(trials), "a trial recorded twice is stored once"


@pytest.mark.parametrize("compact_between", [False, True])
def test_a_success_replaces_an_earlier_failure_and_not_the_other_way_round(tmp_path, compact_between):
    first, second = requests()[:2]
    journaled(tmp_path, [Trial.failed(first, "boom"), run(second)])
    if compact_between:
        MetaDataset.compact(tmp_path)
    journaled(tmp_path, [run(first), Trial.failed(second, "boom")])
    for _ in range(2):
        trials = MetaDataset.load(tmp_path).trials
        assert sorted(trials["status"]) == ["completed", "completed"]
        assert set(trials["trial_id"]) == {first.trial_id, second.trial_id}
        MetaDataset.compact(tmp_path)


def test_the_last_features_of_a_task_seed_and_group_count(tmp_path):
    journaled(tmp_path, [], [feature_row(depth=1.0), feature_row(seed=1, depth=1.0)])
    MetaDataset.compact(tmp_path)
    journaled(tmp_path, [], [feature_row(noise=5.0)])
    for _ in range(2):
        features = MetaDataset.load(tmp_path).features
        assert list(features["seed"]) == [0, 1]
        assert math.isnan(features["depth"][0]) and features["noise"][0] == 5.0 and features["depth"][1] == 1.0
        MetaDataset.compact(tmp_path)


def test_full_shards_are_never_rewritten(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "SHARD_ROWS", 10)
    work = requests(num_tasks=9, num_plans=5, round="coordinate-1")

    def contents():
        return {path.name: path.read_bytes() for path in (tmp_path / "trials").iterdir()}

    journaled(tmp_path, [run(request) for request in work[:25]])
    MetaDataset.compact(tmp_path)
    before = contents()
    assert sorted(before) == [f"coordinate-1-{number:03d}.parquet" for number in range(3)]
    journaled(tmp_path, [run(request) for request in work[20:42]])
    MetaDataset.compact(tmp_path)
    after = contents()
    assert sorted(after) == [f"coordinate-1-{number:03d}.parquet" for number in range(5)]
    assert [name for name in before if before[name] != after[name]] == ["coordinate-1-002.parquet"]
    MetaDataset.compact(tmp_path)
    assert contents() == after, "nothing new, nothing written"
    assert set(MetaDataset.load(tmp_path).trials["trial_id"]) == {r.trial_id for r in work[:42]}


def test_a_shard_that_is_exactly_full_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset_module, "SHARD_ROWS", 4)
    work = requests(num_tasks=1, num_plans=5)
    journaled(tmp_path, [run(request) for request in work[:4]])
    MetaDataset.compact(tmp_path)
    full = tmp_path / "trials" / "portfolio-000.parquet"
    before = full.stat().st_ino
    journaled(tmp_path, [run(work[4])])
    MetaDataset.compact(tmp_path)
    assert full.stat().st_ino == before
    assert [pq.read_metadata(path).num_rows for path in sorted(full.parent.iterdir())] == [4, 1]


def test_rounds_have_their_own_shards_whatever_they_are_called(tmp_path):
    names = ["portfolio", "coordinate-1", "coordinate-10", "a/b: c", ""]
    journaled(tmp_path, [run(request) for n in names for request in requests(2, 2, seeds=(len(n),), round=n)])
    MetaDataset.compact(tmp_path)
    files = sorted(path.name for path in (tmp_path / "trials").iterdir())
    rounds = ("a_b_c", "coordinate-1", "coordinate-10", "portfolio", "unnamed")
    assert files == sorted(f"{name}-000.parquet" for name in rounds)
    assert set(MetaDataset.load(tmp_path).trials["round"]) == set(names)


def test_save_adds_to_a_folder_what_is_not_there(tmp_path):
    trials = [run(request) for request in requests()]
    journaled(tmp_path / "a", trials[:8], [feature_row(depth=1.0)])
    journaled(tmp_path / "b", trials[5:])
    MetaDataset.compact(tmp_path / "b")
    MetaDataset.load(tmp_path / "a").save(tmp_path / "b")
    MetaDataset.load(tmp_path / "a").save(tmp_path / "c")
    both = MetaDataset.load(tmp_path / "b")
    assert set(both.trials["trial_id"]) == {trial.trial_id for trial in trials}
    assert both.features["depth"].tolist() == [1.0]
    pd.testing.assert_frame_equal(MetaDataset.load(tmp_path / "c").trials, MetaDataset.load(tmp_path / "a").trials)


ADDED = {
    0: ("optimizer_seconds", "state_bytes", "mode", "schema_version", "selection_seconds"),
    1: ("selection_seconds",),
}


@pytest.mark.parametrize("version", ADDED)
def test_files_of_older_versions_are_migrated(tmp_path, version):
    rows = [run(request).to_row() for request in requests()]
    old = [{name: value for name, value in row.items() if name not in ADDED[version]} for row in rows]
    if version:
        old = [row | {"schema_version": version} for row in old]
    written(tmp_path, "old-000.parquet", old[:7], version=version)
    journal = Journal(tmp_path)
    for row in old[7:]:
        journal.append({"kind": "trial", "row": row})
    for _ in range(2):
        trials = MetaDataset.load(tmp_path).trials
        assert set(trials["trial_id"]) == {row["trial_id"] for row in rows}
        assert set(trials["mode"]) == {"plan"} and set(trials["schema_version"]) == {TRIAL_SCHEMA_VERSION}
        assert (trials["optimizer_seconds"] == 0).all() and trials["best_val_loss"].max() == math.inf
        assert (trials["selection_seconds"] == 0).all()
        MetaDataset.compact(tmp_path)


def test_a_newer_schema_is_named(tmp_path):
    rows = [run(requests()[0]).to_row()]
    written(tmp_path, "new-000.parquet", rows, version=9)
    with pytest.raises(MetaDatasetError, match=r"new-000\.parquet has schema version 9.*upgrade autoopt"):
        MetaDataset.load(tmp_path)
    journaled(tmp_path / "other", [run(requests()[0], schema_version=9)])
    with pytest.raises(MetaDatasetError, match=r"schema version 9.*upgrade autoopt"):
        MetaDataset.load(tmp_path / "other")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), r"portfolio-000\.parquet cannot be read"),
        (lambda path: path.write_bytes(b""), r"portfolio-000\.parquet cannot be read"),
        (lambda path: pq.write_table(pa.table({"x": [1]}), path), "no file of trials written by autoopt"),
        (lambda path: path.rename(path.with_name("mine.parquet")), "not named <round>-<number>"),
    ],
)
def test_a_damaged_or_foreign_file_is_named(tmp_path, spoil, message):
    journaled(tmp_path, [run(request) for request in requests()])
    MetaDataset.compact(tmp_path)
    spoil(tmp_path / "trials" / "portfolio-000.parquet")
    with pytest.raises(MetaDatasetError, match=message):
        MetaDataset.load(tmp_path)


def test_a_file_that_lacks_a_column_is_named(tmp_path):
    row = run(requests()[0]).to_row()
    del row["plan"]
    written(tmp_path, "short-000.parquet", [row])
    with pytest.raises(MetaDatasetError, match=r"short-000\.parquet lacks the columns \['plan'\]"):
        MetaDataset.load(tmp_path)


def test_nothing_recorded_is_an_error_that_says_how_to_record(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(MetaDatasetError, match=r"no recorded trials; record some with"):
            MetaDataset.load(folder)
        assert MetaDataset.read(folder).trials.empty


def test_tables_with_missing_columns_are_refused():
    empty = MetaDataset.read("nowhere")
    with pytest.raises(MetaDatasetError, match="table of trials lacks the columns plan, seed"):
        MetaDataset(empty.trials.drop(columns=["plan", "seed"]), empty.features)
    with pytest.raises(MetaDatasetError, match="table of features lacks the columns group"):
        MetaDataset(empty.trials, empty.features.drop(columns=["group"]))


@pytest.mark.parametrize("failing", ["replace", "fsync"])
def test_a_disk_that_fills_up_while_compacting_loses_nothing(tmp_path, monkeypatch, failing):
    trials = [run(request) for request in requests()]
    journaled(tmp_path, trials[:5])
    MetaDataset.compact(tmp_path)
    journaled(tmp_path, trials[5:])

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, failing, full)
        with pytest.raises(MetaDatasetError, match=r"cannot be written.*No space left.*intact"):
            MetaDataset.compact(tmp_path)
    assert set(MetaDataset.load(tmp_path).trials["trial_id"]) == {trial.trial_id for trial in trials}
    assert not list(tmp_path.rglob("*.tmp"))
    assert MetaDataset.compact(tmp_path) == len(trials) - 5
    assert set(MetaDataset.load(tmp_path).trials["trial_id"]) == {trial.trial_id for trial in trials}


def test_a_crash_between_writing_parquet_and_emptying_the_journal_stores_nothing_twice(tmp_path, monkeypatch):
    trials = [run(request) for request in requests()]
    journaled(tmp_path, trials)
    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            MetaDataset.compact(tmp_path)
    assert len(Journal(tmp_path).read()) == len(trials)
    assert len(MetaDataset.load(tmp_path).trials) == len(trials)
    MetaDataset.compact(tmp_path)
    assert pq.read_metadata(tmp_path / "trials" / "portfolio-000.parquet").num_rows == len(trials)


def test_leftovers_of_a_killed_compaction_are_cleared(tmp_path):
    journaled(tmp_path, [run(requests()[0])])
    (tmp_path / "journal" / "portfolio-000.parquet.1.tmp").write_bytes(b"half")
    MetaDataset.compact(tmp_path)
    assert not list(tmp_path.rglob("*.tmp"))


def test_journals_of_other_machines_are_read_and_compacted(tmp_path):
    trials = [run(request) for request in requests()]
    journaled(tmp_path, trials[:4])
    for trial in trials[4:]:
        Journal(tmp_path, "host-b").append(trial_record(trial.to_row()))
    assert len(MetaDataset.load(tmp_path).trials) == len(trials)
    MetaDataset.compact(tmp_path)
    assert len(MetaDataset.load(tmp_path).trials) == len(trials)
    assert not any(path.stat().st_size for path in (tmp_path / "journal").glob("*.jsonl"))


def test_loading_and_compacting_while_recording_misses_nothing(tmp_path):
    trials = [run(request) for request in requests(5, 8)]
    acknowledged = []

    def write():
        journal = Journal(tmp_path)
        for trial in trials:
            journal.append(trial_record(trial.to_row()))
            acknowledged.append(trial.trial_id)

    writer = threading.Thread(target=write)
    writer.start()
    while writer.is_alive():
        before = set(acknowledged)
        assert before <= set(MetaDataset.read(tmp_path).trials["trial_id"])
        MetaDataset.compact(tmp_path)
    writer.join()
    assert set(MetaDataset.load(tmp_path).trials["trial_id"]) == {trial.trial_id for trial in trials}


def test_forty_thousand_trials_fit_in_the_repository(tmp_path):
    """2,000 realistic rows, with random losses and plans of full length, extrapolated to 40,000."""
    generator = np.random.default_rng(0)
    groups = ("conv", "embedding", "head", "matrix", "vector")

    def plan(number):
        lr = float(f"{generator.lognormal():.6g}")
        config = {
            "optimizer": "adamw",
            "lr": lr,
            "hyperparameters": {"betas": [0.9, 0.99], "weight_decay": 0.01},
        }
        return json.dumps({"plan": number, "groups": dict.fromkeys(groups, config), "shape": "linear"})

    plans = [plan(number) for number in range(60)]
    trials = []
    for number in range(2000):
        request = requests(1, 1, seeds=(number,))[0]
        losses = generator.lognormal(size=12).tolist()
        trials.append(
            run(
                request,
                trial_id=f"{generator.integers(1 << 62):020x}",
                paired_with=f"{generator.integers(1 << 62):020x}",
                plan=plans[number % 60],
                val_steps=list(range(25, 325, 25)),
                val_losses=losses,
                train_losses=generator.lognormal(size=12).tolist(),
                best_val_loss=min(losses),
                step_seconds=generator.lognormal(),
                optimizer_seconds=generator.lognormal(),
            )
        )
    rows = pd.DataFrame([trial.to_row() for trial in trials])
    MetaDataset(rows, MetaDataset.read("nowhere").features).save(tmp_path)
    size = sum(path.stat().st_size for path in (tmp_path / "trials").iterdir())
    assert len(MetaDataset.load(tmp_path).trials) == 2000
    assert size * 20 < 20e6


def test_the_package_never_imports_torch_and_is_light(tmp_path):
    folder = Path(autoopt.meta.__file__).parent
    for path in sorted(folder.glob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(name.split(".")[0] == "torch" for name in names), path
    code = (
        "import sys, autoopt.meta.dataset, autoopt.recorder;"
        "print([name for name in ('torch', 'pandas', 'pyarrow', 'sklearn', 'joblib') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_joining_counts_each_trial_once_and_prefers_the_other_data_set(tmp_path):
    trials = [run(request) for request in requests()]
    journaled(tmp_path / "shipped", trials[:8], [feature_row(depth=2.0)])
    own = [*trials[8:], run(requests()[0], best_val_loss=0.125)]
    journaled(tmp_path / "own", own, [feature_row(depth=3.0), feature_row(group="matrix", depth=1.0)])
    data = MetaDataset.load(tmp_path / "shipped").joined(MetaDataset.load(tmp_path / "own"))
    assert sorted(data.trials["trial_id"]) == sorted(trial.trial_id for trial in trials)
    assert data.trials.set_index("trial_id")["best_val_loss"][trials[0].trial_id] == 0.125
    assert data.features.set_index("group")["depth"].to_dict() == {"head": 3.0, "matrix": 1.0}
