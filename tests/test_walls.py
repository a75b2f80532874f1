"""The walls between the floors of the house: who may import whom, read from the source with `ast`."""

import ast
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import autoopt

ROOT = Path(autoopt.__file__).parent

# From the ground up. A module imports from its own entry and from entries on lower floors; entries
# that share a floor do not know each other. The longest entry that a name starts with is its own.
FLOORS = (
    ("errors",),
    ("architecture", "distributed", "tasks", "meta", "progress", "backends"),
    ("run_recorder",),
    ("optimizers", "search"),
    ("statistics",),
    ("optimizers.checkpoint", "guard"),
    ("optimizers.planned_optimizer",),
    ("optimizers.warmup_step", "feature_values", "first_batch", "micro_batches", "start_profile"),
    ("optimizers.guarded_optimizer",),
    ("optimizers.remembered_optimizer",),
    ("features", "optimizers.auto_optimizer", "report"),
    ("choice", "counterfactuals", "fixed_choice"),
    ("reasons", "budget", "exploration"),
    ("decision", "fold_selection"),
    ("selection",),
    ("profiling",),
    ("short_runs",),
    ("race", "arguments", "owners"),
    ("api", "baselines"),
    ("task_layers",),
    ("evaluation_rounds", "lean_round", "proposed_round"),
    ("rounds", "training"),
    ("extraction",),
    ("worker",),
    ("recorder",),
    ("cli", "integrations"),
)
# Package -> what nothing in it imports, not even inside a function.
STRANGERS = {
    "meta": ("torch", "pytorch_optimizer"),
    "search": ("torch", "sklearn", "pytorch_optimizer"),
    "optimizers": ("sklearn", "pandas", "pyarrow", "joblib", "rich", "jinja2"),
    "architecture": ("sklearn", "pandas", "numpy", "pytorch_optimizer"),
    "guard": ("sklearn", "pandas", "numpy", "pytorch_optimizer"),
    "statistics": ("sklearn", "scipy", "pytorch_optimizer"),
    "report": ("torch", "sklearn", "pandas", "matplotlib"),
}


@dataclass(frozen=True)
class Import:
    """One import statement's target."""

    importer: str
    imported: str
    line: int
    typing_only: bool
    lazy: bool

    def __str__(self) -> str:
        return f"autoopt/{self.importer.replace('.', '/')} line {self.line} imports {self.imported}"


class Reader(ast.NodeVisitor):
    """Collects a module's imports; those under TYPE_CHECKING and inside functions are marked."""

    def __init__(self, module, package):
        self.module, self.package = module, package
        self.typing_only = self.lazy = False
        self.found = []

    def visit_If(self, node):
        before = self.typing_only
        self.typing_only = before or (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING")
        for child in node.body:
            self.visit(child)
        self.typing_only = before
        for child in node.orelse:
            self.visit(child)

    def visit_FunctionDef(self, node):
        before, self.lazy = self.lazy, True
        self.generic_visit(node)
        self.lazy = before

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Import(self, node):
        for alias in node.names:
            self.add(alias.name, node.lineno)

    def visit_ImportFrom(self, node):
        assert node.level == 0, f"{self.module}: relative imports hide which floor they reach"
        known = modules()
        for alias in node.names:
            # `from autoopt.meta import artifact` imports the module, not its package alone.
            full = f"{node.module}.{alias.name}"
            self.add(full if full.removeprefix("autoopt.") in known else node.module, node.lineno)

    def add(self, name, line):
        self.found.append(Import(self.module, name, line, self.typing_only, self.lazy))


def modules():
    """Dotted name below `autoopt` -> file, the package's own `__init__` left out."""
    names = {}
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip(".")
        if name:
            names[name] = path
    return names


def imports():
    """All imports of all modules."""
    found = []
    for name, path in modules().items():
        reader = Reader(name, path)
        reader.visit(ast.parse(path.read_text(encoding="utf-8")))
        found += reader.found
    return found


IMPORTS = imports()
OWN = [i for i in IMPORTS if i.imported.startswith("autoopt.") and not i.typing_only]


def entry_of(module):
    """The entry of `FLOORS` that a module belongs to, and its floor; None where it has none."""
    entries = [(entry, floor) for floor, row in enumerate(FLOORS) for entry in row]
    found = [e for e in entries if module == e[0] or module.startswith(e[0] + ".")]
    return max(found, key=lambda e: len(e[0]), default=None)


def test_the_readers_find_the_imports():
    assert len(OWN) > 100
    assert {i.imported.split(".")[0] for i in IMPORTS} >= {"torch", "numpy", "sklearn", "rich"}
    assert any(i.lazy for i in IMPORTS) and any(i.typing_only for i in IMPORTS)


def test_every_module_has_its_floor():
    homeless = [name for name in modules() if entry_of(name) is None]
    assert not homeless, f"add to FLOORS: {homeless}"


def test_nothing_imports_upward():
    wrong = []
    for found in OWN:
        own, other = entry_of(found.importer), entry_of(found.imported.removeprefix("autoopt."))
        assert other is not None, f"{found} is no module of autoopt"
        if own != other and own[1] <= other[1]:
            wrong.append(str(found))
    assert not wrong, "\n".join(wrong)


def test_modules_do_not_import_each_other_in_circles():
    graph = {name: set() for name in modules()}
    for found in OWN:
        if not found.lazy:
            graph[found.importer].add(found.imported.removeprefix("autoopt."))
    # A package and a module inside it are one here: the package's __init__ gathers its modules' names.
    graph = {a: {b for b in after if not a.startswith(b + ".")} for a, after in graph.items()}
    left = dict(graph)
    while free := [name for name, after in left.items() if not after & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"a circle among {sorted(left)}"


@pytest.mark.parametrize(("package", "strangers"), STRANGERS.items())
def test_packages_leave_these_libraries_alone(package, strangers):
    own = [i for i in IMPORTS if i.importer == package or i.importer.startswith(package + ".")]
    if package == "optimizers":  # SOAP, imported when a plan names it, and what is compared with
        importers = {i.importer for i in IMPORTS if i.imported.startswith("pytorch_optimizer")}
        assert importers <= {"optimizers.soap", "baselines"}
    assert own
    wrong = [str(i) for i in own if i.imported.split(".")[0] in strangers and not i.typing_only]
    assert not wrong, "\n".join(wrong)


def loaded_after(code, names):
    """Which of these modules are loaded in a fresh interpreter after running the code."""
    probe = f"{code}\nimport sys\nprint(*[name for name in {names!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    return done.stdout.split()


def test_importing_autoopt_stays_light():
    heavy = ["torch", "numpy", "sklearn", "pandas", "pytorch_optimizer", "rich", "jinja2"]
    assert loaded_after("import autoopt", heavy) == []
    heavy = ["sklearn", "pandas", "pytorch_optimizer", "pyarrow", "joblib", "matplotlib", "jinja2", "autoopt.search"]
    assert loaded_after("import autoopt\nautoopt.select, autoopt.AutoOptimizer", heavy) == []


def test_a_decision_needs_neither_scikit_learn_nor_scipy(artifact_path):
    code = f"""
import torch, autoopt
model = torch.nn.Linear(2, 2)
optimizer = autoopt.select(model, total_steps=100, warmup_steps=2, selector={str(artifact_path)!r})
for _ in range(2):
    model(torch.randn(4, 2)).sum().backward()
    optimizer.step()
assert optimizer.recommendation is not None
"""
    assert loaded_after(code, ["sklearn", "scipy", "pandas"]) == []


def test_search_loads_its_libraries_when_a_method_needs_them():
    assert loaded_after("import autoopt.search", ["torch", "nevergrad", "openjij", "autoopt.optimizers"]) == []


def test_meta_runs_without_torch():
    names = [name for name in modules() if name == "meta" or name.startswith("meta.")]
    code = "\n".join(f"import autoopt.{name}" for name in names)
    assert loaded_after(code, ["torch", "sklearn"]) == ["sklearn"]
