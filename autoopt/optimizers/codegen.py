"""A plan as PyTorch code that needs no autoopt, and steps bit for bit as `AutoOptimizer` does."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache

from autoopt.optimizers.catalog import OptimizerInfo, get
from autoopt.optimizers.plan import OptimizerConfig, OptimizerPlan
from autoopt.optimizers.program import parse
from autoopt.optimizers.schedule import Schedule

_BUILTIN = "torch"
_OWN = "autoopt."


@dataclass(frozen=True)
class _Group:
    """Parameters of one configuration, and what the code calls them."""

    constant: str
    config: OptimizerConfig
    names: tuple[str, ...]

    @property
    def info(self) -> OptimizerInfo:
        return get(self.config.optimizer)


def plan_to_python(plan: OptimizerPlan) -> str:
    """A Python module, as text, whose `make_optimizer(model)` steps exactly as the plan does.

    The module needs torch, pytorch-optimizer where a rule of the plan comes from there, and not
    autoopt: the source of autoopt's own kernels is carried along. Its optimizer has `step`,
    `zero_grad`, `param_groups`, `state_dict` and `load_state_dict`; the plan's schedule is built in.

    Args:
        plan: The plan; its parameter names may be any strings.

    Example:
        >>> plan = OptimizerPlan({"weight": OptimizerConfig("adamw", {"lr": 0.01})})
        >>> print(plan_to_python(plan).splitlines()[0])
        \"\"\"The optimizer of 1 tensor, as planned by autoopt.
    """
    groups = _groups(plan)
    infos = {group.info.name: group.info for group in groups}.values()
    imports, sources = _sources(infos)
    parts = [
        _docstring(plan, groups),
        _imports(imports, infos),
        "\n\n".join(_names(group) for group in groups),
        _factory(groups, plan.schedule.clip_norm is not None),
        _schedule(plan.schedule),
        _averaging(plan.schedule),
        _optimizer(any(info.gradients == "both" for info in infos), plan.schedule.clip_norm),
        _implementation(infos),
        *sources,
    ]
    return "\n\n\n".join(part.strip("\n") for part in parts if part) + "\n"


def _groups(plan: OptimizerPlan) -> list[_Group]:
    program = parse(json.dumps(plan.to_dict()))
    counts: dict[str, int] = {}
    groups = []
    for bucket in program.buckets:
        title = bucket.config.optimizer.upper()
        counts[title] = counts.get(title, 0) + 1
        names = tuple(program.names[position] for position in bucket.positions)
        groups.append(_Group(f"{title}_{counts[title]}", bucket.config, names))
    return groups


def _docstring(plan: OptimizerPlan, groups: Sequence[_Group]) -> str:
    packages = sorted({"torch"} | {_package(group.info) for group in groups})
    count = len(plan.layers)
    lines = [
        f'"""The optimizer of {count} tensor{"s" * (count != 1)}, as planned by autoopt.',
        "",
        f"Needs {' and '.join(packages)}. Use:",
        "",
        "    optimizer = make_optimizer(model)  # after the model is on its device",
        "    loss.backward()",
        "    optimizer.step()",
        "    optimizer.zero_grad()",
        "",
        f"The learning rates follow the built-in schedule: {_schedule_words(plan.schedule)}.",
        '"""',
    ]
    return "\n".join(lines)


def _package(info: OptimizerInfo) -> str:
    module = info.load().__mro__[1].__module__ if info.factory.startswith(_OWN) else info.factory
    return "pytorch-optimizer" if module.startswith("pytorch_optimizer") else _BUILTIN


def _schedule_words(schedule: Schedule) -> str:
    words = "constant" if schedule.shape == "constant" else f"{schedule.shape} decay to step {schedule.total_steps}"
    return f"{schedule.warmup_steps} warm-up steps, then {words}" if schedule.warmup_steps else words


@cache
def _carried(module: str) -> tuple[tuple[str, ...], str]:
    """The imports of a self-contained module of ours, and the rest of its source."""
    source = inspect.getsource(importlib.import_module(module))
    body = ast.parse(source).body
    imports = tuple(ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom))
    first = next(
        node
        for node in body[1:]
        if not isinstance(node, ast.Import | ast.ImportFrom)  # body[0]: the docstring
    )
    decorators = getattr(first, "decorator_list", [])
    start = min([first.lineno, *(node.lineno for node in decorators)])
    return imports, "\n".join(source.splitlines()[start - 1 :])


def _sources(infos: Iterable[OptimizerInfo]) -> tuple[set[str], list[str]]:
    modules = sorted({info.factory.partition(":")[0] for info in infos if info.factory.startswith(_OWN)})
    carried = [_carried(module) for module in modules]
    imports = {line for lines, _ in carried for line in lines if "__future__" not in line}
    return imports, [source for _, source in carried]


def _imports(carried: set[str], infos: Iterable[OptimizerInfo]) -> str:
    wanted = {"import math", "import torch"} | carried
    for info in infos:
        module, _, attribute = info.factory.partition(":")
        if not module.startswith((_OWN, _BUILTIN)):
            wanted.add(f"from {module} import {attribute}")
    ordered = sorted(wanted, key=lambda line: (line.startswith("from"), line))
    standard = [line for line in ordered if "torch" not in line]
    packages = [line for line in ordered if "torch" in line]
    return "\n".join(["from __future__ import annotations", "", *standard, "", *packages])


def _names(group: _Group) -> str:
    return "\n".join([f"{group.constant} = (", *(f"    {name!r}," for name in group.names), ")"])


def _schedule(schedule: Schedule) -> str:
    lines = ["def rate_factor(step):", f'    """Factor on every learning rate: {_schedule_words(schedule)}."""']
    warmup, end = schedule.warmup_steps, schedule.end_factor
    if warmup:
        lines += [f"    if step < {warmup}:", f"        return (step + 1) / {warmup}"]
    if schedule.shape == "constant" or schedule.total_steps is None:
        return "\n".join([*lines, "    return 1.0"])
    lines.append(f"    progress = min(1.0, (step - {warmup}) / ({schedule.total_steps} - {warmup}))")
    if schedule.shape == "linear":
        lines.append(f"    return 1.0 - (1.0 - {end!r}) * progress")
    elif schedule.shape == "concave":
        lines.append(f"    return 1.0 - (1.0 - {end!r}) * progress**2")
    elif schedule.shape == "quadratic":
        lines.append(f"    return {end!r} + (1.0 - {end!r}) * (1.0 - progress) ** 2")
    else:
        lines.append(f"    return {end!r} + (1.0 - {end!r}) * 0.5 * (1.0 + math.cos(math.pi * progress))")
    return "\n".join(lines)


def _averaging(schedule: Schedule) -> str:
    if schedule.averaging is None:
        return ""
    power = schedule.averaging
    return (
        '''
def averaged_weights(averaged, current, num_averaged):
    """The average of the weights that the plan keeps for evaluation, one step on.

    Use `AveragedModel(model, avg_fn=averaged_weights, use_buffers=True)` of torch.optim.swa_utils, and its
    `update_parameters(model)` after every step.
    """
    return averaged + (current - averaged) * ('''
        + f"{power + 1!r} / (num_averaged + 1 + {power!r}))"
    )


def _implementation(infos: Iterable[OptimizerInfo]) -> str:
    if not any(_flags(info) for info in infos):
        return ""
    return '''
def fastest(params, fused=(), capturable=None):
    """Flags of the fastest correct implementation on the device that the parameters are on.

    On a CPU, the plain loop beats foreach; on CUDA, `capturable` keeps step counters on the device.
    """
    device = params[0].device.type
    flags = {"foreach": device not in fused and device != "cpu"}
    if fused:
        flags["fused"] = device in fused
    if capturable is not None:
        flags["capturable"] = capturable and device == "cuda" and device not in fused
    return flags
'''


def _flags(info: OptimizerInfo) -> str:
    accepted = inspect.signature(info.load().__init__).parameters
    if "foreach" not in accepted or not info.foreach:
        return ""
    arguments = ["params"]
    if info.fused:
        arguments.append(f"fused={info.fused!r}")
    if "capturable" in accepted:
        arguments.append(f"capturable={info.capturable}")
    return f"**fastest({', '.join(arguments)})"


def _optimizer(mixed: bool, clip_norm: float | None) -> str:
    clips = clip_norm is not None
    clip = f"""
        dense = [p for p in self.params if p.grad is not None and not p.grad.is_sparse]
        if dense:
            torch.nn.utils.clip_grad_norm_(dense, {clip_norm!r})"""
    sparse = """
            for group in optimizer.param_groups:
                # Neither the fused nor the foreach implementation takes sparse gradients.
                sparse = any(p.grad is not None and p.grad.is_sparse for p in group["params"])
                for flag in ("fused", "foreach"):
                    if flag in group:
                        group[flag] = self.flags[index].get(flag, False) and not sparse
                if group.get("fused") and group.get("momentum"):
                    # Fused SGD fails if only some parameters have a momentum yet: zeros stand for none.
                    for p in group["params"]:
                        if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                            optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p.grad)"""
    return f'''
class PlannedOptimizer:
    """Optimizers of disjoint parameters that step as one, under the plan's schedule."""

    def __init__(self, optimizers{", params" if clips else ""}):
        self.optimizers = optimizers{
        """
        self.params = params"""
        if clips
        else ""
    }
        self.rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
        self.flags = [dict(optimizer.param_groups[0]) for optimizer in optimizers]
        self.num_steps = 0

    @property
    def param_groups(self):
        """The groups of all optimizers, for gradient scalers and clipping."""
        return [group for optimizer in self.optimizers for group in optimizer.param_groups]

    def step(self, closure=None):
        """Update all parameters once; returns the closure's loss, if one is given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure(){clip if clips else ""}
        factor = rate_factor(self.num_steps)
        for index, optimizer in enumerate(self.optimizers):
            for group in optimizer.param_groups:
                group["lr"] = self.rates[index] * factor{sparse if mixed else ""}
            if any(p.grad is not None for group in optimizer.param_groups for p in group["params"]):
                optimizer.step()
        self.num_steps += 1
        return loss

    def zero_grad(self, set_to_none=True):
        """Reset all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self):
        """Everything that a resumed run needs."""
        states = [optimizer.state_dict() for optimizer in self.optimizers]
        return {{"num_steps": self.num_steps, "optimizers": states}}

    def load_state_dict(self, state_dict):
        """Resume from a `state_dict`."""
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.num_steps = state_dict["num_steps"]
'''


def _factory(groups: Sequence[_Group], clips: bool) -> str:
    lines = [
        "def make_optimizer(model):",
        '    """The optimizer of a model, whose trainable parameters must be exactly those of the plan."""',
        "    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}",
        "    groups = (",
        *(f"        {group.constant}," for group in groups),
        "    )",
        "    planned = {name for names in groups for name in names}",
        "    if planned != trainable.keys():",
        "        odd = sorted(planned ^ trainable.keys())[0]",
        '        raise ValueError(f"the plan does not fit the model: {odd!r} is in only one of them")',
        "    optimizers = []",
    ]
    for group in groups:
        info, count = group.info, len(group.names)
        lines += [
            "",
            f"    # {info.title} for {count} tensor{'s' * (count != 1)}. {info.paper}.",
            f"    params = [p for name, p in trainable.items() if name in {group.constant}]",
            f"    optimizer = {_constructor(info)}(",
            "        params,",
            *(f"        {argument}," for argument in _arguments(group)),
            "    )",
            "    optimizers.append(optimizer)",
        ]
    params = ", list(trainable.values())" if clips else ""
    return "\n".join([*lines, "", f"    return PlannedOptimizer(optimizers{params})"])


def _constructor(info: OptimizerInfo) -> str:
    module, _, attribute = info.factory.partition(":")
    return f"{module}.{attribute}" if module.startswith(_BUILTIN) else attribute


def _arguments(group: _Group) -> list[str]:
    arguments = [f"{key}={value!r}" for key, value in group.config.complete.items()]
    flags = _flags(group.info)
    return [*arguments, flags] if flags else arguments
