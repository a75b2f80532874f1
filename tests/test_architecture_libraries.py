"""`describe` on the models of other libraries."""

from __future__ import annotations

import re
from typing import Any

import pytest
from torch import nn

from autoopt.architecture import describe

pytest.importorskip("transformers")
pytest.importorskip("peft")

from architecture_library_zoo import LIBRARY_ZOO, bert_classifier, gpt2, llama, mixtral, t5  # noqa: E402
from architecture_zoo import Case, expected_roles  # noqa: E402

pytestmark = [
    # What these libraries deprecate among themselves is not about the architecture.
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]


@pytest.mark.parametrize("case", LIBRARY_ZOO, ids=lambda case: case.name)
def test_every_parameter_of_a_library_model_has_the_role_of_the_table(case: Case) -> None:
    model = case.build()
    assert {name: layer.role for name, layer in describe(model).items()} == expected_roles(case, model)


def test_gpt2_stores_its_matrices_inputs_first() -> None:
    architecture = describe(gpt2())
    fused = architecture["transformer.h.0.attn.c_attn.weight"]
    assert fused.shape == (16, 48)
    assert (fused.fan_in, fused.fan_out, fused.splits, fused.transposed) == (16, 48, 3, True)
    down = architecture["transformer.h.1.mlp.c_proj.weight"]
    assert (down.fan_in, down.fan_out, down.splits, down.transposed) == (64, 16, 1, True)
    assert architecture["transformer.wte.weight"].tied == ("lm_head.weight",)


def test_t5_shares_one_table_four_times() -> None:
    assert describe(t5())["shared.weight"].tied == (
        "encoder.embed_tokens.weight",
        "decoder.embed_tokens.weight",
        "lm_head.weight",
    )


def test_the_experts_of_mixtral_are_stacked_outputs_first() -> None:
    architecture = describe(mixtral())
    up = architecture["model.layers.0.mlp.experts.gate_up_proj"]
    assert (up.shape, up.fan_in, up.fan_out, up.groups) == ((4, 64, 16), 16, 64, 4)
    down = architecture["model.layers.0.mlp.experts.down_proj"]
    assert (down.shape, down.fan_in, down.fan_out, down.groups) == ((4, 16, 32), 32, 16, 4)


@pytest.mark.parametrize(
    ("build", "outside"),
    [
        (
            bert_classifier,
            {"word_embeddings", "position_embeddings", "token_type_embeddings", "pooler", "classifier"},
        ),
        (gpt2, {"wte", "wpe"}),
        (llama, {"embed_tokens", "lm_head"}),
        (t5, {"shared"}),
    ],
)
def test_the_layers_of_a_transformer_are_residual_and_nothing_else_is(build: Any, outside: set[str]) -> None:
    model: nn.Module = build()
    weights = [layer for layer in describe(model).layers if layer.role not in ("norm", "bias")]
    not_residual = {layer.name for layer in weights if not layer.residual}
    assert not_residual == {
        layer.name for layer in weights if any(re.search(rf"\b{word}\b", layer.name) for word in outside)
    }
