"""Writes docs/compatibility.md: what holds in which training stack, from the results of the tests that show it.

    python scripts/write_compatibility.py
    python scripts/write_compatibility.py --results report.xml

Without `--results` (a JUnit report of pytest) the tests are run, in one process. Run it again when a version in
constraints.txt or a row of `ROWS` changes; a test compares the page with both.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
PACKAGES = (
    *("torch", "transformers", "accelerate", "lightning", "skorch", "scikit-learn", "peft"),
    *("tensorboard", "mlflow-skinny", "wandb", "matplotlib"),
)
"""What the versions are shown of, as constraints.txt calls it."""


class Row(NamedTuple):
    """One line of the table: what holds, and the tests (functions of one file) that show it."""

    stack: str
    what: str
    file: str
    tests: tuple[str, ...]


ROWS = (
    Row("Hugging Face Trainer", "equal, bit by bit, to a plain loop; accumulated and clipped too",
        "test_integration_huggingface", ("test_the_trainer_trains_as_a_plain_loop_does",)),
    Row("Hugging Face Trainer", "its own schedule (cosine with warm-up); two schedules at once are warned of",
        "test_integration_huggingface",
        ("test_training_goes_through_the_switch_with_the_trainers_own_schedule",
         "test_two_schedules_at_once_are_warned_of")),
    Row("Hugging Face Trainer", "saved and resumed bit by bit before, at and after the decision; float32, and bf16 "
        "with accumulation", "test_integration_huggingface",
        ("test_a_run_resumed_from_a_trainers_checkpoint_is_bit_identical",)),
    Row("Hugging Face Trainer", "`optimizer_cls_and_kwargs` with `model_init`", "test_integration_huggingface",
        ("test_the_factory_form_selects_for_the_trainers_model",)),
    Row("Hugging Face Trainer", "the length of the run, from steps or epochs", "test_integration_huggingface",
        ("test_the_length_of_a_run_is_the_trainers",)),
    Row("Lightning", "automatic optimization: plain, clipped, with a scheduler, bf16 mixed and pure, float64",
        "test_integration_lightning", ("test_it_trains_as_a_plain_loop_does",)),
    Row("Lightning", "accumulated batches", "test_integration_lightning", ("test_accumulated_batches_are_one_step",)),
    Row("Lightning", "manual optimization; several optimizers", "test_integration_lightning",
        ("test_manual_optimization_steps_alike", "test_two_optimizers_decide_each_for_its_own_part")),
    Row("Lightning", "checkpoints resumed bit by bit before, at and after the decision; bf16 too",
        "test_integration_lightning", ("test_a_run_resumed_from_a_checkpoint_is_bit_identical",)),
    Row("Lightning", "a callback for the loggers and the run's folder", "test_integration_lightning",
        ("test_the_callback_writes_the_report_and_tells_the_loggers",
         "test_the_callback_tells_mlflow_and_wandb_loggers")),
    Row("accelerate", "`prepare`, `accumulate`, clipping, bf16, schedulers: equal to a plain loop",
        "test_integration_accelerate", ("test_it_trains_as_a_plain_loop_does",)),
    Row("accelerate", "`save_state` and `load_state`, bit by bit before, at and after the decision",
        "test_integration_accelerate", ("test_a_run_that_loads_a_saved_state_is_bit_identical",)),
    Row("skorch", "equal to a plain loop; the length of the run is known to `fit`", "test_integration_skorch",
        ("test_it_trains_as_select_in_a_plain_loop",
         "test_fit_selects_for_the_module_and_knows_the_length_of_the_run")),
    Row("skorch", "pipelines with grid search; `clone`, `set_params`", "test_integration_skorch",
        ("test_a_pipeline_is_searched_over", "test_clones_start_anew",
         "test_setting_arguments_of_select_selects_anew")),
    Row("skorch", "pickles, copies, saved parameters", "test_integration_skorch",
        ("test_pickles_and_copies_predict_and_train_on", "test_saved_parameters_go_on")),
    Row("Techniques", "gradient checkpointing, reentrant or not", "test_integration_techniques",
        ("test_gradient_checkpointing_changes_nothing",)),
    Row("Techniques", "`torch.compile` of the model: one graph, the same parameters", "test_integration_techniques",
        ("test_a_compiled_model_trains_as_the_model_does_and_is_compiled_once",)),
    Row("Techniques", "EMA and SWA (`torch.optim.swa_utils`)", "test_integration_techniques",
        ("test_ema_follows_the_weights_through_the_switch", "test_swa_with_its_own_scheduler",
         "test_an_average_of_a_model_is_no_second_owner")),
    Row("Techniques", "LoRA adapters (peft)", "test_integration_techniques",
        ("test_lora_adapters_are_selected_for_and_the_base_stays",)),
    Row("Techniques", "clipping by norm across families", "test_integration_techniques",
        ("test_clipping_by_norm_acts_across_families",)),
    Row("Techniques", "frozen parts, thawed with `add_param_group` in warm-up or later, and resumed",
        "test_integration_techniques",
        ("test_a_frozen_part_stays_as_it_is", "test_what_is_thawed_in_warmup_is_decided_with_the_rest",
         "test_what_is_thawed_after_the_decision_gets_the_default_of_its_role",
         "test_a_thawed_run_resumes_bit_by_bit_if_it_is_thawed_first")),
    Row("Trackers", "TensorBoard: text and images", "test_integration_trackers",
        ("test_tensorboard_shows_text_and_images",)),
    Row("Trackers", "MLflow: artifacts and tags", "test_integration_trackers",
        ("test_mlflow_gets_artifacts_and_tags",)),
    Row("Trackers", "Weights & Biases, offline: page, table, summary", "test_integration_trackers",
        ("test_wandb_gets_the_report_and_the_plan_beside_what_the_run_logs",)),
    Row("Many devices", "DDP on 2 and 4 processes: one plan, equal parameters; `no_sync`", "test_distributed_ddp",
        ("test_all_ranks_have_one_plan_and_the_same_bits_200_steps_later",
         "test_accumulating_without_synchronisation")),
    Row("Many devices", "DDP: a rank that is missing or dies is an error on the others", "test_distributed_ddp",
        ("test_a_rank_that_misses_the_decision_is_an_error_on_the_others",
         "test_a_rank_that_dies_in_warmup_stops_the_others_in_their_next_backward")),
    Row("Many devices", "FSDP2: sharded as unsharded, Muon included", "test_distributed_fsdp",
        ("test_a_sharded_run_is_that_of_one_process",
         "test_every_rule_steps_shards_as_it_steps_whole_parameters")),
    Row("Many devices", "distributed checkpoints of 2 ranks on 1 and on 4", "test_distributed_fsdp",
        ("test_a_checkpoint_of_two_ranks_goes_on_on_one_and_on_four",)),
    Row("Many devices", "FSDP1, DeepSpeed ZeRO: refused, with an error that names the alternative",
        "test_distributed_refusals",
        ("test_parameters_that_zero_partitions_are_refused", "test_a_deepspeed_engine_is_refused")),
    Row("Large models", "a billion parameters planned on the meta device; a thousand layers decided",
        "test_integration_load",
        ("test_a_billion_parameters_are_planned_in_two_seconds_and_200_megabytes",
         "test_two_thousand_tensors_are_measured_and_decided_for_in_a_millisecond_and_a_half_each")),
)  # fmt: skip


def run_tests() -> dict[tuple[str, str], list[str]]:
    """The outcomes of the tests of all rows, run now."""
    tests = sorted({f"tests/{row.file}.py::{test}" for row in ROWS for test in row.tests})
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", f"--junitxml={report}", *tests]
        subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
        return outcomes(report.read_text(encoding="utf-8"))


def outcomes(report: str) -> dict[tuple[str, str], list[str]]:
    """File and function of a test -> the outcome of each of its cases, from a JUnit report.

    An outcome is `"passed"`, `"failed"` or `"skipped"`.
    """
    found: dict[tuple[str, str], list[str]] = {}
    for case in ElementTree.fromstring(report).iter("testcase"):
        file = case.get("classname", "").rpartition(".")[2]
        function = case.get("name", "").partition("[")[0]
        marks = {child.tag for child in case}
        outcome = "failed" if marks & {"failure", "error"} else "skipped" if "skipped" in marks else "passed"
        found.setdefault((file, function), []).append(outcome)
    return found


def page(results: Mapping[tuple[str, str], Sequence[str]], versions: Mapping[str, str]) -> str:
    """The page: versions, and for each row what its tests gave."""
    lines = [
        "# Compatibility",
        "",
        "What was tested, each time by training through warm-up, decision and switch on CPUs. Written by",
        "`scripts/write_compatibility.py` from the tests' results; [training stacks](training-stacks.md) and",
        "[many devices](many-devices.md) say how each is used.",
        "",
        "| tested with | version |",
        "| --- | --- |",
        *(f"| {name} | {version} |" for name, version in versions.items()),
    ]
    for stack in dict.fromkeys(row.stack for row in ROWS):
        lines += ["", f"## {stack}", "", "| what | result | cases | tests |", "| --- | --- | --- | --- |"]
        for row in (row for row in ROWS if row.stack == stack):
            cases = [outcome for test in row.tests for outcome in results.get((row.file, test), ("missing",))]
            lines.append(f"| {row.what} | {_verdict(cases)} | {len(cases)} | `tests/{row.file}.py` |")
    return "\n".join(lines) + "\n"


def _verdict(cases: Sequence[str]) -> str:
    counts = {outcome: cases.count(outcome) for outcome in ("failed", "missing", "skipped") if outcome in cases}
    return "holds" if not counts else ", ".join(f"{count} {outcome}" for outcome, count in counts.items())


def tested_versions() -> dict[str, str]:
    """The installed versions of `PACKAGES`, without the label of a build."""
    return {name: metadata.version(name).partition("+")[0] for name in PACKAGES}


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 1 if something does not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, action="append", help="a JUnit report of the tests; run none")
    options = parser.parse_args(arguments)
    results: dict[tuple[str, str], list[str]] = {}
    if options.results:
        for path in options.results:
            results |= outcomes(path.read_text(encoding="utf-8"))
    else:
        results = run_tests()
    text = page(results, tested_versions())
    PAGE.write_text(text, encoding="utf-8")
    bad = [line for line in text.splitlines() if line.endswith(".py` |") and "| holds |" not in line]
    print(f"{PAGE.relative_to(ROOT)}: {len(ROWS) - len(bad)} of {len(ROWS)} rows hold")
    print("\n".join(bad))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
