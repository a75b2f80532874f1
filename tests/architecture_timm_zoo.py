"""Models of timm, built small, with their roles written down by hand."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from unittest import mock

from architecture_zoo import Case
from torch import nn

TORCHVISION = ("transforms", "transforms.functional", "models", "models.feature_extraction", "ops", "ops.misc")
"""What timm imports of torchvision: readers and transforms of images, and layers that no model here has."""


def import_timm() -> ModuleType:
    """timm without torchvision: its wheels on PyPI are for CUDA, and do not load beside torch for CPUs."""
    stand_ins = {"torchvision", *(f"torchvision.{name}" for name in TORCHVISION), "torchvision.datasets"}
    if stand_ins & sys.modules.keys():
        return importlib.import_module("timm")
    sys.modules.update({name: mock.MagicMock(__path__=[], __spec__=None) for name in stand_ins})
    try:
        return importlib.import_module("timm")
    finally:
        for name in stand_ins:
            del sys.modules[name]


timm = import_timm()
MlpMixer = importlib.import_module("timm.models.mlp_mixer").MlpMixer


def resnet() -> nn.Module:
    return timm.create_model("resnet10t", num_classes=5)


def vit() -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224", img_size=32, patch_size=8, depth=2, embed_dim=48, num_heads=3, num_classes=5
    )


def convnext() -> nn.Module:
    return timm.create_model("convnext_atto", depths=(1, 1, 1, 1), dims=(8, 16, 24, 32), num_classes=5)


def mixer() -> nn.Module:
    return MlpMixer(num_classes=5, img_size=32, patch_size=8, num_blocks=2, embed_dim=48)


TIMM_ZOO = (
    Case(
        "timm resnet",
        resnet,
        (
            ("fc.weight", "head"),
            ("fc.bias", "bias"),
            ("conv1.[036].weight", "conv"),
            ("conv1.[14].*", "norm"),
            ("*bn?.*", "norm"),
            ("layer?.0.conv?.weight", "conv"),
            ("layer?.0.downsample.1.weight", "conv"),
            ("layer?.0.downsample.2.*", "norm"),
        ),
    ),
    Case(
        "timm vit",
        vit,
        (
            ("cls_token", "bare"),
            ("pos_embed", "bare"),
            ("patch_embed.proj.weight", "conv"),
            ("*norm*", "norm"),
            ("*.qkv.weight", "qkv"),
            ("blocks.?.attn.proj.weight", "matrix"),
            ("blocks.?.mlp.fc?.weight", "matrix"),
            ("head.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "timm convnext",
        convnext,
        (
            ("stem.1.*", "norm"),
            ("stages.?.downsample.0.*", "norm"),
            ("*.norm.*", "norm"),
            ("*.gamma", "bare"),
            ("*.conv_dw.weight", "depthwise"),
            ("head.fc.weight", "head"),
            ("*.bias", "bias"),
            ("stem.0.weight", "conv"),
            ("stages.?.downsample.1.weight", "conv"),
            ("*.mlp.fc?.weight", "conv"),  # timm writes its pointwise layers as convolutions of size 1
        ),
    ),
    Case(
        "timm mixer",
        mixer,
        (
            ("*norm*", "norm"),
            ("stem.proj.weight", "conv"),
            ("blocks.?.mlp_*.fc?.weight", "matrix"),
            ("head.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
)
