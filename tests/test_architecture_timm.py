"""`describe` on timm's models."""

from __future__ import annotations

import importlib.util

import pytest

from autoopt.architecture import describe

if importlib.util.find_spec("timm") is None:
    pytest.skip("timm is not installed", allow_module_level=True)

from architecture_timm_zoo import TIMM_ZOO, convnext, resnet, vit  # noqa: E402
from architecture_zoo import Case, expected_roles  # noqa: E402


@pytest.mark.parametrize("case", TIMM_ZOO, ids=lambda case: case.name)
def test_every_parameter_of_a_timm_model_has_the_role_of_the_table(case: Case) -> None:
    model = case.build()
    assert {name: layer.role for name, layer in describe(model).items()} == expected_roles(case, model)


def test_depth_follows_the_blocks_and_residual_branches_are_seen() -> None:
    layers = describe(vit())
    names = [
        f"blocks.{block}.{part}.weight" for block in (0, 1) for part in ("norm1", "attn.qkv", "attn.proj", "norm2")
    ]
    order = ["pos_embed", "patch_embed.proj.weight", *names[:4], "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.weight"]
    order += [*names[4:], "blocks.1.mlp.fc1.weight", "blocks.1.mlp.fc2.weight", "norm.weight", "head.weight"]
    assert [layers[name].depth for name in order] == list(range(len(order)))
    assert {name for name, layer in layers.items() if layer.residual} == {n for n in layers if n.startswith("blocks.")}


def test_fused_and_grouped_layers_are_described() -> None:
    fused = describe(vit())["blocks.0.attn.qkv.weight"]
    assert (fused.fan_in, fused.fan_out, fused.splits) == (48, 144, 3)
    grouped = describe(convnext())["stages.1.blocks.0.conv_dw.weight"]
    assert (grouped.fan_in, grouped.groups, grouped.norm_adjacent) == (49, 16, True)


def test_a_shortcut_is_no_residual_branch() -> None:
    layers = describe(resnet())
    assert layers["layer2.0.conv1.weight"].residual and not layers["layer2.0.downsample.1.weight"].residual
    assert all(layer.norm_adjacent for layer in layers.values() if layer.role == "conv")
