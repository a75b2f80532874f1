"""Train three real models twice, with AdamW 1e-3 and with autoopt, and show what autoopt chose.

    make demo
    python examples/demo.py [--steps N] [--json FILE] [--reports FOLDER]

Both runs of a model start from the same weights, see the same batches and share one schedule. The three
tasks are left out of what the selector was trained on. Losses are what they are: some runs may go to AdamW.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

# torch takes seconds to import: everything that needs it is imported inside `run`, so that --help
# answers at once and Ctrl-C ends in one line from the first moment on.
if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from torch import nn

    from autoopt import AutoOptimizer, Recommendation, Schedule

SEED = 0
TASKS = {
    "demo-insteval-mf": "recommender with sparse embeddings, lecture ratings (InstEval)",
    "demo-stdlib-transformer": "character transformer, Python's standard library",
    "demo-mnist-cnn": "convolutional network, MNIST (5,000 digits)",
}
WIDTH = 100  # where there is no terminal
BASELINE, OURS = "AdamW 1e-3", "autoopt"


@dataclass
class Run:
    """One training run: a line of the table."""

    task: str
    optimizer: str
    final_val_loss: float
    best_val_loss: float
    seconds: float
    steps: int
    diverged_step: int


def adamw(model: nn.Module, schedule: Schedule) -> AutoOptimizer:
    """The baseline: AdamW 1e-3 on everything (SparseAdam where gradients are sparse)."""
    from autoopt import AutoOptimizer, OptimizerConfig, OptimizerPlan, describe

    plan = OptimizerPlan.uniform(model, "adamw", schedule, lr=1e-3, weight_decay=0.01)
    sparse = [layer.name for layer in describe(model).layers if layer.sparse]
    plan = plan.with_layers({name: OptimizerConfig("sparseadam", {"lr": 1e-3}) for name in sparse})
    return AutoOptimizer.from_plan(model, plan)


def train_twice(name: str, options: argparse.Namespace, show: Display) -> tuple[list[Run], Recommendation | None]:
    """Both runs of a task, and what autoopt recommended (None if it diverged before the decision)."""
    import torch

    import autoopt
    from autoopt.tasks import get_task
    from autoopt.training import build_instance, train

    task = get_task(name)
    steps = options.steps or task.budget_steps
    plain, chosen = build_instance(task, SEED), build_instance(task, SEED)
    optimizer = autoopt.select(chosen.model, total_steps=steps, selector=options.selector)
    baseline = adamw(plain.model, replace(optimizer.plan.schedule, averaging=None, clip_norm=None))
    runs = []
    for label, instance, stepper in ((BASELINE, plain, baseline), (OURS, chosen, optimizer)):
        torch.manual_seed(SEED)
        show.begin(name, label, steps)
        curve = train(instance, stepper, steps, on_validation=show.validated, validating=stepper.averaged)
        final = curve.val_losses[-1] if curve.diverged_step < 0 else math.inf
        runs.append(Run(name, label, final, curve.best_val_loss, curve.total_seconds, steps, curve.diverged_step))
        show.finish(runs[-1])
    return runs, optimizer.recommendation


class Display:
    """Progress of the runs: bars on a terminal, a line now and then elsewhere."""

    line_seconds = 10.0

    def __init__(self, console: Console, bars: Progress | None) -> None:
        self.console = console
        self.bars = bars
        self.name = ""
        self.steps = 0
        self.bar: Any = None
        self.line_at = 0.0

    def say(self, text: str) -> None:
        """Print one line, as it is."""
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def begin(self, name: str, label: str, steps: int) -> None:
        """A run starts."""
        self.name, self.steps = f"{name} with {label}", steps
        self.line_at = time.monotonic()
        if self.bars is not None:
            self.bar = self.bars.add_task(self.name, total=steps, remark="")
        else:
            self.say(f"{self.name}: {steps} steps")

    def validated(self, step: int, val_loss: float) -> None:
        """A validation was run."""
        if self.bars is not None:
            self.bars.update(self.bar, completed=step, remark=f"validation loss {val_loss:.4f}")
        elif step < self.steps and time.monotonic() - self.line_at >= self.line_seconds:
            self.line_at = time.monotonic()
            self.say(f"  step {step} of {self.steps}, validation loss {val_loss:.4f}")

    def finish(self, run: Run) -> None:
        """A run ended."""
        outcome = f"validation loss {run.final_val_loss:.4f}"
        if run.diverged_step >= 0:
            outcome = f"diverged at step {run.diverged_step}"
        if self.bars is not None:
            self.bars.update(self.bar, remark=outcome)
        else:
            self.say(f"  {outcome} after {run.seconds:.1f} s")


def table(runs: list[Run]) -> Any:
    """Final validation losses and seconds, a line for each task."""
    from rich.table import Table

    result = Table(title="Validation loss at the end of training, lower is better", title_justify="left")
    result.add_column("task")
    for label in (BASELINE, OURS):
        result.add_column(label, justify="right")
    result.add_column("change", justify="right")
    for label in (BASELINE, OURS):
        result.add_column(f"{label}, s", justify="right")
    for name in dict.fromkeys(run.task for run in runs):
        plain, chosen = (next(r for r in runs if r.task == name and r.optimizer == o) for o in (BASELINE, OURS))
        result.add_row(
            name,
            _loss(plain.final_val_loss),
            _loss(chosen.final_val_loss),
            _change(chosen.final_val_loss, plain.final_val_loss),
            f"{plain.seconds:.1f}",
            f"{chosen.seconds:.1f}",
        )
    return result


def _loss(value: float) -> str:
    return f"{value:.4f}" if math.isfinite(value) else "diverged"


def _change(loss: float, reference: float) -> str:
    if not (math.isfinite(loss) and math.isfinite(reference)):
        return "-"
    return f"{100 * (loss / reference - 1):+.1f} %"


def run(options: argparse.Namespace) -> None:
    """Everything that the demo shows."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    show = Display(console, None)
    show.say("Three models, each trained twice from the same weights on the same batches:")
    for name, what in TASKS.items():
        show.say(f"  {name}: {what}")
    show.say("Loading torch and the data; all six runs together take about two minutes on 2 cores.\n")
    runs: list[Run] = []
    recommendations = {}
    if console.is_terminal:
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn())
        show.bars = Progress(*columns, TextColumn("{task.fields[remark]}"), console=console)
        show.bars.start()
    try:
        for name in TASKS:
            found, recommendations[name] = train_twice(name, options, show)
            runs += found
    finally:
        if show.bars is not None:
            show.bars.stop()
    show.say("")
    console.print(table(runs))
    show.say("Seconds are those of the training steps; autoopt's include its warm-up and its decision.")
    if options.steps:
        show.say(f"--steps {options.steps}: too short to judge by; leave it out for the full runs.")
    folder = Path(options.reports)
    folder.mkdir(parents=True, exist_ok=True)
    saved: list[Path] = []
    for name, recommendation in recommendations.items():
        show.say("")
        console.rule(name, align="left")
        if recommendation is None:
            show.say("The run diverged in its warm-up, before anything was decided.")
            continue
        # Piped, the report is plain text without the blanks that fill a terminal's lines.
        console.print(recommendation) if console.is_terminal else show.say(recommendation.to_text(WIDTH).rstrip())
        saved.append(recommendation.save(folder / f"{name}.html"))
    show.say("")
    console.rule()
    show.say("The same reports with pictures, for a browser:")
    for path in saved:
        show.say(f"  {path.resolve()}")
    if options.json:
        _write(Path(options.json), runs)
        show.say(f"The table's figures: {options.json}")


def _write(path: Path, runs: list[Run]) -> None:
    # JSON has no word for infinity: a diverged run's losses are null.
    rows = [
        {key: None if isinstance(v, float) and not math.isfinite(v) else v for key, v in asdict(run).items()}
        for run in runs
    ]
    path.write_text(json.dumps({"seed": SEED, "runs": rows}, indent=1) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The command line's parser."""
    result = argparse.ArgumentParser(description="Train three real models with AdamW 1e-3 and with autoopt.")
    result.add_argument("--steps", type=_steps, help="train for N steps instead of each task's budget")
    result.add_argument("--json", metavar="FILE", help="write the table's figures to FILE")
    result.add_argument("--reports", default="reports", metavar="FOLDER", help="where HTML reports go")
    result.add_argument(
        "--selector", metavar="FILE", help="another selector artifact, or 'default' for the calibrated default"
    )
    return result


def _steps(text: str) -> int:
    if not text.isdecimal() or int(text) <= 20:
        raise argparse.ArgumentTypeError(f"expected a number above 20, the shortest warm-up, got {text!r}")
    return int(text)


def main(arguments: list[str] | None = None) -> int:
    """The exit code, after the demo."""
    options = parser().parse_args(arguments)
    try:
        run(options)
    except KeyboardInterrupt:
        print("\nInterrupted; nothing was saved.", file=sys.stderr)
        return 130
    except Exception as error:
        from autoopt import AutoOptError

        if not isinstance(error, AutoOptError):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
