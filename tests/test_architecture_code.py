"""What `describe` reads from the code of `forward`: residual branches, and heads by the flow of data."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from autoopt.architecture import describe


def heads(model: nn.Module) -> set[str]:
    return {layer.name for layer in describe(model).layers if layer.role == "head"}


def residual(model: nn.Module) -> set[str]:
    return {layer.name for layer in describe(model).layers if layer.residual}


class Base(nn.Module):
    """Four square layers, one norm and two numbers; what is done with them is up to `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8, bias=False)
        self.b = nn.Linear(8, 8, bias=False)
        self.c = nn.Linear(8, 8, bias=False)
        self.d = nn.Linear(8, 8, bias=False)
        self.norm = nn.LayerNorm(8, bias=False)
        self.skip = nn.Identity()
        self.scale = nn.Parameter(torch.ones(8))


# --- Residual branches


class PreNorm(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        x = x + self.scale * self.c(torch.relu(self.b(self.norm(x))))
        return self.d(x)


def test_a_branch_is_what_lies_between_an_input_and_the_sum() -> None:
    assert residual(PreNorm()) == {"norm.weight", "b.weight", "c.weight", "scale"}


class SavedInput(Base):
    def forward(self, x: Tensor, downsample: bool = False) -> Tensor:
        identity = x
        out = torch.relu(self.a(x))
        out = self.b(out)
        if downsample:
            identity = self.c(x)
        out += identity
        return self.d(out)


def test_a_saved_input_and_an_optional_projection_of_it() -> None:
    assert residual(SavedInput()) == {"a.weight", "b.weight"}


class ThroughIdentity(Base):
    def forward(self, x: Tensor) -> Tensor:
        return torch.add(self.a(x), self.skip(x))


def test_an_identity_leaves_a_skip_a_skip() -> None:
    assert residual(ThroughIdentity()) == {"a.weight"}


class InMethods(Base):
    def forward(self, x: Tensor) -> Tensor:
        x = x + self._attend(x)
        return self._finish(x)

    def _attend(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).softmax(-1))

    def _finish(self, x: Tensor) -> Tensor:
        y = self.c(x)
        y = y + x
        return self.d(y)


def test_methods_are_followed() -> None:
    assert residual(InMethods()) == {"a.weight", "b.weight", "c.weight"}


class NoResidual(Base):
    """Sums that add no input to what was made of it."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        positions = self.a(torch.arange(x.shape[1]).float())
        x = self.b(x) + positions
        x = self.c(x) + self.d(x)  # two branches
        first, second = x.chunk(2)
        return (first * second).sum(-1, keepdim=True) + self.scale


def test_other_sums_are_not_residual() -> None:
    assert residual(NoResidual()) == set()


class AddsArguments(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense = nn.Linear(8, 8, bias=False)

    def forward(self, hidden: Tensor, before: Tensor) -> Tensor:
        return torch.tanh(self.dense(hidden) + before)


class CallsOne(Base):
    def __init__(self) -> None:
        super().__init__()
        self.output = AddsArguments()

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        y = self.b(x)
        return self.c(self.output(y, x))


def test_a_child_may_do_the_addition() -> None:
    assert residual(CallsOne()) == {"b.weight", "output.dense.weight"}


class Loops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleList([nn.Linear(8, 8, bias=False)]) for _ in range(2)])
        self.out = nn.Linear(8, 2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for (block,) in self.blocks:
            x = block(x) + x
        return self.out(x)


def test_loops_over_children_are_followed() -> None:
    assert residual(Loops()) == {"blocks.0.0.weight", "blocks.1.0.weight"}
    assert heads(Loops()) == {"out.weight"}


def test_a_branch_far_above_a_parameter_counts() -> None:
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.Linear(8, 8)))

        def forward(self, x: Tensor) -> Tensor:
            return x + self.inner(x)

    assert residual(Outer()) == {"inner.0.weight", "inner.0.bias", "inner.1.0.weight", "inner.1.0.bias"}


def test_code_without_source_is_taken_as_not_residual() -> None:
    namespace: dict[str, type[nn.Module]] = {"Base": Base}  # type: ignore[dict-item]
    exec("class Hidden(Base):\n    def forward(self, x):\n        return x + self.a(x)\n", namespace)
    assert residual(namespace["Hidden"]()) == set()
    assert heads(namespace["Hidden"]()) == {"d.weight"}


# --- Heads by the flow of data


class RegisteredFirst(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.a(self.d(self.c(self.b(x))))


def test_the_order_of_calls_beats_the_order_of_registration() -> None:
    assert heads(RegisteredFirst()) == {"a.weight"}


class SquareTowers(Base):
    def forward(self, query: Tensor, item: Tensor) -> Tensor:
        query, item = self.b(torch.relu(self.a(query))), self.d(torch.relu(self.c(item)))
        return (query * item).sum(-1)


def test_square_towers_both_end_in_heads() -> None:
    assert heads(SquareTowers()) == {"b.weight", "d.weight"}


class HeadsInList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads = nn.ModuleList([nn.Linear(8, 8) for _ in range(3)])
        self.body = nn.Linear(4, 8)

    def forward(self, x: Tensor) -> list[Tensor]:
        x = self.body(x)
        return [head(x) for head in self.heads]


class ChainInList(HeadsInList):
    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        x = self.body(x)
        for layer in self.heads:
            x = torch.relu(layer(x))
        return x


def test_a_list_of_square_layers_is_parallel_or_a_chain_as_it_is_used() -> None:
    assert heads(HeadsInList()) == {"heads.0.weight", "heads.1.weight", "heads.2.weight"}
    assert heads(ChainInList()) == {"heads.2.weight"}


class EarlyReturn(Base):
    def forward(self, x: Tensor, features: bool = False) -> tuple[Tensor, ...]:
        hidden = self.b(self.a(x))
        if features:
            return (hidden,)
        policy, value = self.c(hidden), self.d(hidden)
        return policy, value, hidden


def test_hidden_features_that_are_returned_as_well_are_no_heads() -> None:
    assert heads(EarlyReturn()) == {"c.weight", "d.weight"}


class SingleBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(3, 8)
        self.block = PreNorm()

    def forward(self, x: Tensor) -> Tensor:
        return self.block(self.embed(x))


class EndsInBranch(Base):
    def forward(self, x: Tensor) -> Tensor:
        return x + self.d(self.c(self.b(self.a(x))))


class SingleResidualBlock(SingleBlock):
    def __init__(self) -> None:
        super().__init__()
        self.block = EndsInBranch()  # type: ignore[assignment]


def test_a_residual_branch_below_the_root_is_hidden() -> None:
    assert heads(SingleBlock()) == {"block.d.weight"}
    assert heads(SingleResidualBlock()) == set()


def test_a_residual_branch_at_the_root_gives_the_output() -> None:
    class Denoiser(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encode = nn.Conv2d(1, 8, 3, padding=1)
            self.decode = nn.Conv2d(8, 1, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.decode(torch.relu(self.encode(x)))

    assert heads(Denoiser()) == {"decode.weight"}


class Feedback(Base):
    """An autoregressive loop: the output is the next input, so the flow does not tell."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = self.d(torch.relu(self.c(self.b(self.a(x)))))
        return x


class CallsParent(RegisteredFirst):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.d(x))


class ByName(Base):
    def forward(self, x: Tensor) -> Tensor:
        for name in ("a", "b", "c", "d"):
            x = getattr(self, name)(x)
        return x


def test_where_the_code_does_not_tell_the_last_registered_layer_is_the_head() -> None:
    for kind in (Base, Feedback, CallsParent, ByName):
        assert heads(kind()) == {"d.weight"}


def test_a_loss_inside_the_model_changes_nothing() -> None:
    class WithLoss(Base):
        def __init__(self) -> None:
            super().__init__()
            self.criterion = nn.CrossEntropyLoss()

        def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            hidden = self.b(self.a(x))
            logits = self.d(self.c(hidden))
            out = {"logits": logits, "hidden": hidden}
            if labels is not None:
                out["loss"] = self.criterion(logits.view(-1, 8), labels)
            return out

    assert heads(WithLoss()) == {"d.weight"}
