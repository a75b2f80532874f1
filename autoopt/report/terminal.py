"""The recommendation for a terminal: a tree of the model with one optimizer a line, then the reasons.

Names reach rich only as `Text` objects, so `[red]` in a module's name is shown, not obeyed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autoopt.report import formatting, trade_offs, wording
from autoopt.report.changed import changes
from autoopt.report.formatting import visible
from autoopt.report.grouping import LayerGroup
from autoopt.report.kept import kept_groups
from autoopt.report.raced import race_rows, race_sentence

if TYPE_CHECKING:
    from autoopt.report.recommendation import Recommendation

_COLOURS = ("cyan", "magenta", "green", "blue", "yellow", "red", "white")
_WIDE, _ROOMY, _MEDIUM, _NARROW = 146, 118, 80, 60  # columns of the terminal from which more is shown
_COLUMNS = (  # heading, columns of the terminal from which it is shown, right-aligned
    ("Role", _ROOMY, False),
    ("Params", _MEDIUM, True),
    ("Optimizer", 0, False),
    ("Rate", 0, True),
    ("x ref.", _ROOMY, True),
    ("Loss", _NARROW, True),
    ("Sure", _MEDIUM, True),
    ("Runner-up", _WIDE, False),
)
_LEAST_TREE = 18
_MAX_EVIDENCE = 3
_MAX_KEPT_EVIDENCE = 1


@dataclass
class _Node:
    """One path component in the tree of names."""

    groups: list[LayerGroup] = field(default_factory=list)
    children: dict[str, _Node] = field(default_factory=dict)


@dataclass(frozen=True)
class TreeLine:
    """One line of the tree of names.

    Attributes:
        branch: What is drawn before the label.
        below: What is drawn before the rest of a label that needs another line.
        label: Path components, joined by dots.
        group: The group whose name ends here, None for an inner node.
    """

    branch: str
    below: str
    label: str
    group: LayerGroup | None

    def fold(self, width: int) -> str:
        """The line cut into pieces of at most `width` columns, all of its characters kept."""
        pieces = chop_cells(self.label, max(width - len(self.branch), 1)) or [""]
        return "\n".join([self.branch + pieces[0]] + [self.below + piece for piece in pieces[1:]])


def tree_lines(groups: tuple[LayerGroup, ...]) -> Iterator[TreeLine]:
    """Lines of a tree over the groups' names, top to bottom.

    Chains without a branch are one line, so a group's line is as short as the tree allows.
    """
    root = _Node()
    for group in groups:
        node = root
        for component in group.pattern.components:
            node = node.children.setdefault(visible(component), _Node())
        node.groups.append(group)
    # Not recursive: a hostile name may have thousands of components.
    stack = [(label, child, "", last) for label, child, last in reversed(_children(root))]
    while stack:
        label, node, indent, last = stack.pop()
        parts = [label]
        while not node.groups and len(node.children) == 1:
            component, node = next(iter(node.children.items()))
            parts.append(component)
        branch, below = ("└─ ", "   ") if last else ("├─ ", "│  ")
        for group in node.groups or [None]:
            yield TreeLine(indent + branch, indent + below, ".".join(parts), group)
        stack += [(name, child, indent + below, end) for name, child, end in reversed(_children(node))]


def _children(node: _Node) -> list[tuple[str, _Node, bool]]:
    last = len(node.children) - 1
    return [(label, child, index == last) for index, (label, child) in enumerate(node.children.items())]


def _gain(group: LayerGroup, with_interval: bool) -> Text:
    if group.predicted_gain is None:
        return Text("changed" if group.deviates else "default", style="" if group.deviates else "dim")
    text = Text(formatting.format_loss_change(group.predicted_gain))
    if with_interval and group.predicted_gain_interval is not None:
        text.append(f"\n{formatting.format_interval(group.predicted_gain_interval)}", style="dim")
    return text


@dataclass(frozen=True)
class TerminalReport:
    """A recommendation as a rich renderable; which columns are shown depends on the width.

    Attributes:
        recommendation: What is rendered.
    """

    recommendation: Recommendation

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The parts of the report, top to bottom."""
        content = self.recommendation
        yield Text(content.headline, style="bold")
        for warning in content.warnings:
            yield Text(f"! {visible(warning)}", style="yellow")
        yield Text("")
        yield self._table(options.max_width)
        yield Text(wording.deviations(content))
        if reading := wording.reading(content):
            yield Text(reading, style="dim")
        yield from self._reasons()
        yield from self._kept()
        if content.counterfactuals:
            yield from _section("What would change the choice", content.counterfactuals)
        yield from _section("Cost", [f"{name}: {value}" for name, value in wording.costs(content)])
        yield from self._trade_offs()
        if sentence := race_sentence(content):
            yield from _section("Race of short runs", [sentence, *map(_race_line, race_rows(content))])
        if content.nearest_tasks:
            yield from _section(
                "Nearest recorded tasks",
                [
                    f"{task.name} (distance {formatting.format_number(task.distance)}): {task.winner}"
                    for task in content.nearest_tasks
                ],
            )
        if content.events:
            yield from _section("Events", [f"step {e.step:,}, {e.kind}: {e.message}" for e in content.events])
        yield Text("")
        for line in (
            wording.profiling(content),
            ", ".join(f"{key} {value}" for key, value in content.provenance.items()),
        ):
            if line:
                yield Text(visible(line), style="dim")

    def _trade_offs(self) -> Iterator[RenderableType]:
        points = trade_offs.shown_points(self.recommendation)
        if not points:
            return
        yield Text("\nLoss, time and memory", style="bold")
        yield Text(trade_offs.reading(self.recommendation), style="dim")
        headings, rows = trade_offs.table(points)
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="right" if index else "left", no_wrap=bool(index))
        for point, row in zip(points, rows, strict=True):
            table.add_row(*map(Text, row), style="bold" if point.chosen else "")
        yield Padding(table, (0, 0, 0, 2))

    def _table(self, width: int) -> Table:
        groups = self.recommendation.groups
        names = dict.fromkeys(group.config.optimizer for group in groups)
        colours = {name: _COLOURS[index % len(_COLOURS)] for index, name in enumerate(names)}
        lines = list(tree_lines(groups))
        rows = [self._cells(line.group, width, colours) if line.group else [] for line in lines]
        shown = [(heading, right) for heading, least, right in _COLUMNS if width >= least]
        # The tree gets what the other columns leave, but always room for a few letters of each label.
        taken = sum(
            2
            + max(
                [cell_len(heading)] + [cell_len(part) for row in rows if row for part in row[index].plain.split("\n")]
            )
            for index, (heading, _) in enumerate(shown)
        )
        longest = max((cell_len(line.branch + line.label) for line in lines), default=0)
        least = max((len(line.branch) + 4 for line in lines), default=0)
        tree_width = min(longest, max(width - taken, least, _LEAST_TREE))
        table = Table(box=None, pad_edge=False, header_style="dim", expand=False)
        table.add_column("Layers", no_wrap=True, width=tree_width)
        for heading, right in shown:
            table.add_column(heading, justify="right" if right else "left", no_wrap=True)
        for line, cells in zip(lines, rows, strict=True):
            table.add_row(Text(line.fold(tree_width), style="" if line.group else "dim"), *cells)
        return table

    def _cells(self, group: LayerGroup, width: int, colours: dict[str, str]) -> list[Text]:
        count = len(group.members)
        role = wording.ROLE_TITLES.get(group.role, visible(group.role))
        cells = {
            "Role": Text(f"{count} x {role}" if count > 1 else role, style="dim"),
            "Params": Text(formatting.format_count(group.num_parameters)),
            "Optimizer": Text(wording.title(group.config), style=colours[group.config.optimizer]),
            "Rate": Text(formatting.format_number(group.config.lr)),
            "x ref.": Text(formatting.format_number(group.config.relative_lr), style="dim"),
            "Loss": _gain(group, with_interval=width >= _MEDIUM),
            "Sure": Text(formatting.format_share(group.confidence)),
            "Runner-up": Text(wording.describe_runner_up(group), style="dim"),
        }
        return [cells[column] for column, least, _ in _COLUMNS if width >= least]

    def _reasons(self) -> Iterator[RenderableType]:
        found = changes(self.recommendation.groups)
        if found:
            yield Text("\nWhy", style="bold")
        for change in found:
            yield Text(change.text)
            lines = [f"with {change.settings}"] if change.settings else []
            lines += [visible(reason) for reason in change.reasons]
            lines += [line.text for line in change.evidence[:_MAX_EVIDENCE]]
            for line in lines:
                yield Padding(Text(line, style="dim"), (0, 0, 0, 2))

    def _kept(self) -> Iterator[RenderableType]:
        groups = kept_groups(self.recommendation)
        if groups:
            yield Text("\nWhy the default is kept", style="bold")
        for group in groups:
            yield Text(f"{group.label}: {visible(group.reason)}")
            lines = [group.closest] if group.closest else []
            lines += [line.text for line in group.evidence[:_MAX_KEPT_EVIDENCE]]
            for line in lines:
                yield Padding(Text(line, style="dim"), (0, 0, 0, 2))


def _race_line(row: tuple[str, ...]) -> str:
    name, runs, before, after, interval = row
    return f"{name}: {runs}; predicted {before} before, {after} ({interval}) after"


def _section(title: str, lines: tuple[str, ...] | list[str]) -> Iterator[RenderableType]:
    yield Text(f"\n{title}", style="bold")
    for line in lines:
        yield Padding(Text(visible(line)), (0, 0, 0, 2))


def to_text(recommendation: Recommendation, width: int | None = None) -> str:
    """The terminal report as plain text without colours.

    Args:
        recommendation: What is rendered.
        width: Columns to fill; the terminal's own, or 100 where there is none.
    """
    if width is None:
        console = Console()
        width = console.width if console.is_terminal else 100
    console = Console(
        width=width,
        color_system=None,
        force_terminal=False,
        legacy_windows=False,
        highlight=False,
        markup=False,
        emoji=False,
    )
    with console.capture() as capture:
        console.print(TerminalReport(recommendation))
    return "\n".join(line.rstrip() for line in capture.get().splitlines()) + "\n"
