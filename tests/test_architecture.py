"""`describe` finds what every parameter is for, from modules."""

from __future__ import annotations

import copy
import json
import time
from dataclasses import replace

import pytest
import torch
from architecture_zoo import ZOO, Case, expected_roles
from torch import nn

from autoopt.architecture import ROLE_GROUPS, Architecture, LayerInfo, describe, describe_parameters
from autoopt.errors import ModelError


@pytest.mark.parametrize("case", ZOO, ids=lambda case: case.name)
def test_every_parameter_of_the_zoo_has_the_role_of_the_table(case: Case) -> None:
    model = case.build()
    assert {name: layer.role for name, layer in describe(model).items()} == expected_roles(case, model)


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
    shapes = replace(architecture, layers=tuple(replace(layer, rms=None) for layer in architecture.layers))
    assert describe(copy.deepcopy(model, on_meta)) == shapes
    total = sum(p.numel() for p in model.parameters())
    assert architecture.num_parameters + architecture.num_frozen_parameters == total
    assert sum(map(len, architecture.groups.values())) == len(architecture)
    depths = sorted({layer.depth for layer in architecture.layers})
    assert depths == list(range(len(depths)))


def layer_of(model: nn.Module, name: str) -> LayerInfo:
    return describe(model)[name]


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
    model = nn.Sequential(nn.Embedding(50, 8), nn.Linear(8, 32), nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 3))
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


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_scripted_model_is_refused() -> None:
    model = nn.Sequential(torch.jit.trace(nn.Linear(3, 2), torch.zeros(1, 3)))
    with pytest.raises(ModelError, match=r"compiled by torch\.jit.*before torch\.jit\.script"):
        describe(model)


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
    model = nn.Sequential(*[nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)) for _ in range(2500)])
    seconds = []
    for _ in range(3):
        start = time.process_time()
        architecture = describe(model)
        seconds.append(time.process_time() - start)
    assert len(architecture) == 10_000
    assert min(seconds) < 0.5 * 2.5  # on an idle machine it is under half a second
