"""Roles, fans and heads of single modules, and of the modules of others."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from autoopt.architecture import LayerInfo, describe


def layer_of(model: nn.Module, name: str) -> LayerInfo:
    return describe(model)[name]


@pytest.mark.parametrize(
    ("module", "fan_in", "fan_out", "groups"),
    [
        (nn.Linear(5, 7), 5, 7, 1),
        (nn.Bilinear(3, 4, 5), 12, 5, 1),
        (nn.Conv1d(4, 6, 3), 12, 18, 1),
        (nn.Conv2d(4, 6, (3, 5)), 60, 90, 1),
        (nn.Conv3d(2, 3, 3), 54, 81, 1),
        (nn.Conv2d(8, 12, 3, groups=4), 18, 27, 4),
        (nn.Conv2d(8, 16, 3, groups=8), 9, 18, 8),
        (nn.Conv2d(3, 24, 4, stride=4), 48, 24, 1),  # a patch embedding is a matrix: 48 to 24
        (nn.ConvTranspose2d(6, 4, 3), 54, 36, 1),
        (nn.ConvTranspose2d(6, 4, 2, stride=2), 6, 16, 1),  # its reverse: 6 to 4 * 4
        (nn.ConvTranspose1d(6, 4, 3, groups=2), 9, 6, 2),
        (nn.Embedding(11, 3), 1, 3, 1),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else str(value),
)
def test_fans_count_the_inputs_and_outputs_that_a_weight_connects(
    module: nn.Module, fan_in: int, fan_out: int, groups: int
) -> None:
    layer = layer_of(module, "weight")
    assert (layer.fan_in, layer.fan_out, layer.groups) == (fan_in, fan_out, groups)


def test_fans_of_a_transposed_convolution_agree_with_a_forward_pass() -> None:
    module = nn.ConvTranspose2d(3, 5, 4, stride=2, bias=False)
    nn.init.ones_(module.weight)
    inner = module(torch.ones(1, 3, 9, 9))[0, 0, 8, 8]
    assert layer_of(module, "weight").fan_in == int(inner)


def test_vectors_have_unit_fans() -> None:
    for layer in describe(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.PReLU(4))).layers[1:]:
        assert (layer.fan_in, layer.fan_out) == (1, 1)


def test_fused_blocks_are_counted() -> None:
    assert layer_of(nn.LSTM(4, 6), "weight_ih_l0").splits == 4
    assert layer_of(nn.LSTM(4, 6), "weight_hh_l0").splits == 4
    assert layer_of(nn.LSTM(4, 6, proj_size=2), "weight_hr_l0").splits == 1
    assert layer_of(nn.GRUCell(4, 6), "weight_hh").splits == 3
    assert layer_of(nn.LSTMCell(4, 6), "weight_ih").splits == 4
    assert layer_of(nn.RNN(4, 6), "weight_hh_l0").splits == 1
    attention = layer_of(nn.MultiheadAttention(6, 2), "in_proj_weight")
    assert (attention.role, attention.splits, attention.fan_in, attention.fan_out) == ("qkv", 3, 6, 18)


class Projections(nn.Module):
    """Four linear layers of given sizes, in one module."""

    def __init__(self, **sizes: tuple[int, int]) -> None:
        super().__init__()
        for name, (inputs, outputs) in sizes.items():
            self.add_module(name, nn.Linear(inputs, outputs))


@pytest.mark.parametrize(
    ("sizes", "role"),
    [
        ({"a": (8, 24), "b": (8, 8)}, "qkv"),
        ({"a": (8, 12), "b": (4, 8)}, "qkv"),
        ({"a": (8, 24), "b": (24, 8)}, "matrix"),  # a feed-forward of ratio 3
        ({"a": (8, 24), "b": (24, 8), "c": (8, 8)}, "matrix"),  # its 24 features are taken whole
        ({"b": (8, 8), "a": (8, 24)}, "matrix"),  # nothing after it projects back
        ({"qkv": (8, 24)}, "matrix"),  # a name is no evidence
        ({"a": (8, 16), "b": (8, 8)}, "matrix"),
    ],
)
def test_a_fused_projection_is_told_by_its_siblings(sizes: dict[str, tuple[int, int]], role: str) -> None:
    model = nn.ModuleDict({"block": Projections(**sizes), "end": nn.Linear(5, 2)})
    first = "qkv" if "qkv" in sizes else "a"
    layer = layer_of(model, f"block.{first}.weight")
    assert (layer.role, layer.splits) == (role, 3 if role == "qkv" else 1)


class Bare(nn.Module):
    """A module that holds parameters of given shapes and nothing else."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class Conv1D(Bare):
    """GPT-2's linear layer, by class name and layout."""


class SimpleRMSNorm(Bare):
    pass


class VocabularyEmbedding(Bare):
    pass


@pytest.mark.parametrize(
    ("module", "roles"),
    [
        (Bare(weight=(4, 7), bias=(7,)), {"weight": "matrix", "bias": "bias"}),
        (Bare(kernel=(4, 7), bias=(7,)), {"kernel": "matrix", "bias": "bias"}),
        (Bare(table=(4, 7)), {"table": "bare"}),
        (Bare(lora_A=(2, 7), lora_B=(4, 2), bias=(4,)), {"lora_A": "bare", "lora_B": "bare", "bias": "bias"}),
        (Bare(weight=(4, 7, 3, 3)), {"weight": "conv"}),
        (Bare(pos=(1, 7, 3)), {"pos": "bare"}),
        (Bare(pos=(1, 7, 3, 3)), {"pos": "bare"}),
        (Bare(experts=(5, 7, 3)), {"experts": "matrix"}),
        (Bare(scale=(5, 1, 1)), {"scale": "bare"}),
        (SimpleRMSNorm(scale=(5,)), {"scale": "norm"}),
        (SimpleRMSNorm(weight=(5, 1, 1)), {"weight": "norm"}),
        (SimpleRMSNorm(projection=(5, 5)), {"projection": "bare"}),
        (VocabularyEmbedding(weight=(9, 4)), {"weight": "embedding"}),
    ],
)
def test_parameters_of_foreign_modules(module: nn.Module, roles: dict[str, str]) -> None:
    model = nn.ModuleDict({"foreign": module, "end": nn.Linear(64, 2)})
    found = describe(model)
    assert {name: found[f"foreign.{name}"].role for name in roles} == roles


def test_a_weight_stored_inputs_first_has_its_fans_swapped() -> None:
    model = nn.ModuleDict({"c_attn": Conv1D(weight=(8, 24), bias=(24,)), "end": nn.Linear(24, 2)})
    layer = layer_of(model, "c_attn.weight")
    assert (layer.fan_in, layer.fan_out, layer.transposed) == (8, 24, True)
    usual = layer_of(nn.ModuleDict({"a": nn.Linear(8, 24), "end": nn.Linear(24, 2)}), "a.weight")
    assert (usual.fan_in, usual.fan_out, usual.transposed) == (8, 24, False)


def test_stacked_matrices_are_read_in_the_layout_that_keeps_the_width() -> None:
    inputs_first = Bare(up=(4, 8, 12), down=(4, 6, 8))
    outputs_first = Bare(up=(4, 12, 8), down=(4, 8, 6))
    for module in (inputs_first, outputs_first):
        found = describe(nn.ModuleDict({"experts": module, "end": nn.Linear(8, 2)}))
        up, down = found["experts.up"], found["experts.down"]
        assert (up.fan_in, up.fan_out, up.groups) == (8, 12, 4)
        assert (down.fan_in, down.fan_out, down.groups) == (6, 8, 4)


# --- Heads


class Declaring(nn.Module):
    """Registers its output first, and says so in the words of a library."""

    def __init__(self) -> None:
        super().__init__()
        self.classifier = nn.Linear(8, 3)
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))


class DeclaringClassifier(Declaring):
    def get_classifier(self) -> nn.Module:
        return self.classifier


class DeclaringEmbeddings(Declaring):
    def get_output_embeddings(self) -> nn.Module:
        return self.classifier


class DeclaringNothing(Declaring):
    def get_classifier(self) -> nn.Module:
        return nn.Identity()


def heads(model: nn.Module) -> list[str]:
    return [layer.name for layer in describe(model).layers if layer.role == "head"]


@pytest.mark.parametrize("kind", [DeclaringClassifier, DeclaringEmbeddings])
def test_a_declared_head_is_believed_over_the_order_of_registration(kind: type[nn.Module]) -> None:
    assert heads(kind()) == ["classifier.weight"]
    assert heads(nn.Sequential(kind())) == ["0.classifier.weight"]
    assert heads(DeclaringNothing()) == []
    assert heads(Declaring()) == ["body.2.weight"]


def test_a_declared_head_of_a_backbone_is_hidden_when_layers_follow() -> None:
    assert heads(nn.Sequential(DeclaringClassifier(), nn.Linear(3, 2))) == ["1.weight"]


def test_single_modules_and_stacks_without_an_output_layer() -> None:
    assert heads(nn.Linear(3, 2)) == ["weight"]
    assert heads(nn.LSTM(3, 2)) == []
    assert heads(nn.Embedding(3, 2)) == []
    assert heads(nn.TransformerEncoderLayer(8, 2, 16)) == []
    assert heads(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))) == ["1.weight"]


def test_an_embedding_registered_last_does_not_hide_the_head() -> None:
    model = nn.ModuleDict({"lin": nn.Linear(4, 8), "out": nn.Linear(8, 3), "emb": nn.Embedding(9, 4)})
    assert heads(model) == ["out.weight"]


def test_a_frozen_head_leaves_no_other_head() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    model[2].requires_grad_(False)
    assert heads(model) == []


def test_a_wrapper_changes_names_only() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    wrapped = describe(nn.DataParallel(model))
    assert [layer.role for layer in wrapped.layers] == [layer.role for layer in describe(model).layers]
    assert wrapped.names[0] == "module.0.weight"
