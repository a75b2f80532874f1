"""`describe` finds what every parameter is for, from modules."""

from __future__ import annotations

import copy
import json
import time
from fnmatch import fnmatchcase

import pytest
import torch
from architecture_zoo import ZOO, Case
from torch import nn

from autoopt.architecture import ROLE_GROUPS, Architecture, LayerInfo, describe, describe_parameters
from autoopt.errors import ModelError


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_every_parameter_of_the_zoo_has_the_role_of_the_table(case: Case) -> None:
    model = case.build()
    expected: dict[str, str] = {}
    used: set[str] = set()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            pattern, role = next(row for row in case.roles if fnmatchcase(name, row[0]))
            expected[name] = role
            used.add(pattern)
    assert {name: layer.role for name, layer in describe(model).items()} == expected
    assert used == {pattern for pattern, _ in case.roles}


def test_the_zoo_names_every_model_once_and_covers_every_role() -> None:
    names = [case.name for case in ZOO]
    assert len(set(names)) == len(names) >= 25
    assert {role for case in ZOO for _, role in case.roles} == set(ROLE_GROUPS)


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_the_zoo_looks_the_same_on_the_meta_device_and_through_json(case: Case) -> None:
    model = case.build()
    architecture = describe(model)
    assert Architecture.from_json(architecture.to_json()) == architecture
    # A deep copy that keeps shared tensors shared, which `model.to("meta")` does not.
    on_meta = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    assert describe(copy.deepcopy(model, on_meta)) == architecture
    total = sum(p.numel() for p in model.parameters())
    assert architecture.num_parameters + architecture.num_frozen_parameters == total
    assert sum(map(len, architecture.groups.values())) == len(architecture)
    depths = sorted({layer.depth for layer in architecture.layers})
    assert depths == list(range(len(depths)))


def layer_of(model: nn.Module, name: str) -> LayerInfo:
    return describe(model)[name]


# --- Fans, blocks and layout


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


# --- Sharing, freezing, surroundings


def test_a_tied_weight_is_listed_once_with_its_other_names() -> None:
    model = nn.ModuleDict({"emb": nn.Embedding(20, 8, sparse=True), "out": nn.Linear(8, 20, bias=False)})
    assert layer_of(model, "emb.weight").sparse
    model["out"].weight = model["emb"].weight
    layer = layer_of(model, "emb.weight")
    assert (layer.role, layer.group, layer.tied) == ("tied", "embedding", ("out.weight",))
    assert not layer.sparse, "the output layer's gradient is dense"
    assert (layer.fan_in, layer.fan_out) == (1, 8)
    assert len(describe(model)) == 1


def test_the_tied_role_does_not_depend_on_which_use_comes_first() -> None:
    model = nn.ModuleDict({"out": nn.Linear(8, 20, bias=False), "emb": nn.Embedding(20, 8)})
    model["out"].weight = model["emb"].weight
    assert layer_of(model, "out.weight").role == "tied"


def test_weights_shared_between_two_embeddings_or_two_matrices_keep_their_role() -> None:
    tables = nn.ModuleList([nn.Embedding(9, 4), nn.Embedding(9, 4), nn.Linear(4, 2)])
    tables[1].weight = tables[0].weight
    assert (layer_of(tables, "0.weight").role, layer_of(tables, "0.weight").tied) == (
        "embedding",
        ("1.weight",),
    )
    square = nn.Linear(4, 4)
    chain = nn.Sequential(square, nn.ReLU(), square, nn.ReLU(), nn.Linear(4, 2))
    layer = layer_of(chain, "0.weight")
    assert (layer.role, layer.tied) == ("matrix", ("2.weight",))


def test_a_module_that_contains_itself_is_described() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[0].add_module("root", model)
    assert describe(model).names == ("0.weight", "0.bias", "2.weight", "2.bias")


def test_frozen_layers_are_left_out_and_counted() -> None:
    model = nn.Sequential(nn.Linear(9, 10), nn.Linear(10, 10, bias=False))
    model[0].requires_grad_(False)
    architecture = describe(model)
    assert architecture.names == ("1.weight",)
    assert architecture["1.weight"].depth == 0
    assert (architecture.num_parameters, architecture.num_frozen_parameters) == (100, 100)
    assert architecture.frozen_share == 0.5


def test_norms_beside_a_layer_are_seen() -> None:
    block = nn.TransformerEncoderLayer(8, 2, 16)
    found = describe(nn.ModuleDict({"first": nn.Sequential(nn.Linear(4, 8)), "block": block}))
    assert found["block.linear1.weight"].norm_adjacent
    assert found["block.self_attn.out_proj.weight"].norm_adjacent
    assert not found["first.0.weight"].norm_adjacent
    assert not found["block.norm1.weight"].norm_adjacent


def test_totals_of_an_architecture() -> None:
    model = nn.Sequential(
        nn.Embedding(50, 8), nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 3)
    )
    architecture = describe(model)
    assert architecture.width == 8  # low median of 8 and 32
    assert architecture.num_layers == 4
    assert list(architecture.groups) == ["embedding", "matrix", "vector", "head"]
    assert [layer.depth for layer in architecture.layers] == [0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert list(architecture) == [name for name, _ in model.named_parameters()]
    assert "1.weight" in architecture
    with pytest.raises(KeyError, match="no trainable parameter is named 'nowhere'"):
        architecture["nowhere"]


# --- Parameters without a model


def test_parameters_without_a_model_have_roles_by_shape() -> None:
    shared = nn.Parameter(torch.zeros(6, 5))
    named = [
        ("emb.weight", nn.Parameter(torch.zeros(9, 4))),
        ("conv.weight", nn.Parameter(torch.zeros(8, 2, 3, 3))),
        ("conv.bias", nn.Parameter(torch.zeros(8))),
        ("scale", nn.Parameter(torch.zeros(()))),
        ("a.weight", shared),
        ("b.weight", shared),
        ("frozen", nn.Parameter(torch.zeros(7), requires_grad=False)),
    ]
    architecture = describe_parameters(named)
    assert {name: layer.role for name, layer in architecture.items()} == {
        "emb.weight": "matrix",
        "conv.weight": "conv",
        "conv.bias": "bare",
        "scale": "bare",
        "a.weight": "matrix",
    }
    conv = architecture["conv.weight"]
    assert (conv.fan_in, conv.fan_out, conv.depth) == (18, 72, 1)
    assert architecture["conv.bias"].depth == 1
    assert architecture["a.weight"].tied == ("b.weight",)
    assert architecture.num_frozen_parameters == 7


def test_parameters_without_a_model_need_distinct_names() -> None:
    weight = nn.Parameter(torch.zeros(3))
    with pytest.raises(ModelError, match="two parameters are named 'a'"):
        describe_parameters([("a", weight), ("a", nn.Parameter(torch.zeros(3)))])
    with pytest.raises(ModelError, match="no trainable parameter"):
        describe_parameters([("a", weight.detach())])


# --- What cannot be described


def _complex_model() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, dtype=torch.complex64))


def _float8_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn))
    return model


def _flattened_model() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 3))
    model[0].weight = nn.Parameter(torch.zeros(9))
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (_complex_model, r"parameter '1\.weight' of Linear is complex .*view_as_real"),
        (_float8_model, r"parameter '0\.weight' of Linear is quantised .*requires_grad_\(False\)"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), r"parameter '0\.weight' of LazyLinear .*one forward pass"),
        (_flattened_model, r"parameter '0\.weight' of Linear has shape \(9,\), expected 2 .*fully_shard"),
        (lambda: nn.Linear(3, 3).requires_grad_(False), "no trainable parameter: .*frozen"),
        (nn.ReLU, "no trainable parameter"),
    ],
)
def test_models_that_cannot_be_trained_are_refused_by_name(build: object, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        describe(build())  # type: ignore[operator]


def test_a_frozen_complex_or_float8_parameter_is_no_obstacle() -> None:
    for build in (_complex_model, _float8_model):
        model = build()
        for parameter in model.parameters():
            if parameter.dtype != torch.float32:
                parameter.requires_grad_(False)
        assert describe(model).num_frozen_parameters > 0


def test_something_that_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match="expected a torch.nn.Module, got list.*describe_parameters"):
        describe(list(nn.Linear(2, 2).parameters()))  # type: ignore[arg-type]


def test_a_lazy_model_is_described_after_a_forward_pass() -> None:
    model = nn.Sequential(nn.LazyLinear(3))
    model(torch.zeros(1, 5))
    assert layer_of(model, "0.weight").fan_in == 5


# --- JSON and speed


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 99}, "schema version 99"),
        ({"schema_version": None}, "schema version None"),
        ({"layers": [{"name": "a"}]}, "damaged"),
        ({"layers": None}, "damaged"),
        ({"num_frozen_parameters": "many"}, "damaged"),
    ],
)
def test_foreign_json_is_refused(change: dict[str, object], message: str) -> None:
    value = describe(nn.Linear(3, 2)).to_dict() | change
    with pytest.raises(ModelError, match=message):
        Architecture.from_json(json.dumps(value))


def test_text_that_is_no_architecture_is_refused() -> None:
    for text in ("{", "[]", "{}"):
        with pytest.raises(ModelError, match="not"):
            Architecture.from_json(text)


def test_a_model_of_10000_tensors_is_described_in_half_a_second() -> None:
    block = [
        nn.Sequential(nn.Linear(4, 4, device="meta"), nn.LayerNorm(4, device="meta")) for _ in range(2500)
    ]
    model = nn.Sequential(*block)
    seconds = []
    for _ in range(5):
        start = time.process_time()
        architecture = describe(model)
        seconds.append(time.process_time() - start)
    assert len(architecture) == 10_000
    assert min(seconds) < 0.5
