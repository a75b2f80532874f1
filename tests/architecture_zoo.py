"""The role of every parameter of real module graphs, written down by hand.

Each case is a factory and a table of `(name pattern, role)` rows. Patterns are those of `fnmatch`; the
first match decides, every parameter has to match a row and every row has to be the first match of some
parameter.
"""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import NamedTuple

from architecture_other_models import (
    DLRM,
    GCN,
    VAE,
    ActorCritic,
    BilinearScorer,
    CellStack,
    CharacterRNN,
    GATLayer,
    MatrixFactorisation,
    MultiTask,
    RelationalConv,
    Siamese,
    TwoTower,
    WideAndDeep,
    batchnorm_mlp_model,
    reparametrised_model,
)
from architecture_transformers import (
    GPT,
    CLIPTower,
    Llama,
    MHAWithOwnKeys,
    MoEClassifier,
    ViT,
    lora_adapted_model,
)
from architecture_vision_models import (
    ConvNeXt,
    ResNet,
    UNet,
    conv_autoencoder_model,
    mixer_model,
    temporal_model,
    volumetric_model,
)
from torch import nn

Table = tuple[tuple[str, str], ...]


class Case(NamedTuple):
    """One model of the zoo."""

    name: str
    build: Callable[[], nn.Module]
    roles: Table


def expected_roles(case: Case, model: nn.Module) -> dict[str, str]:
    """The role that the case's table gives to every trainable parameter of its model."""
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rows = {name: next((row for row in case.roles if fnmatchcase(name, row[0])), None) for name in names}
    unmatched = [name for name, row in rows.items() if row is None]
    assert not unmatched, f"{case.name}: no row matches {unmatched}"
    unused = set(case.roles) - set(rows.values())
    assert not unused, f"{case.name}: rows that match nothing: {unused}"
    return {name: row[1] for name, row in rows.items() if row}


_GPT_BLOCK: Table = (
    ("*.c_attn.weight", "qkv"),
    ("*.c_proj.weight", "matrix"),
    ("*.mlp.?.weight", "matrix"),
    ("*.ln_?.*", "norm"),
    ("*.bias", "bias"),
)


ZOO: tuple[Case, ...] = (
    Case(
        "torch-transformer",
        lambda: nn.Transformer(16, 2, 2, 2, 32, batch_first=True),
        (
            ("*.in_proj_weight", "qkv"),
            ("*.out_proj.weight", "matrix"),
            ("*.linear?.weight", "matrix"),
            ("*norm*", "norm"),
            ("*bias", "bias"),
        ),
    ),
    Case(
        "gpt",
        lambda: GPT(tied=False),
        (
            ("transformer.w?e.weight", "embedding"),
            ("lm_head.weight", "head"),
            *_GPT_BLOCK,
        ),
    ),
    Case(
        "gpt-tied",
        lambda: GPT(tied=True),
        (("*.wte.weight", "tied"), ("*.wpe.weight", "embedding"), *_GPT_BLOCK),
    ),
    Case(
        "vit",
        ViT,
        (
            ("cls_token", "bare"),
            ("pos_embed", "bare"),
            ("patch_embed.weight", "conv"),
            ("*.to_qkv.weight", "qkv"),
            ("*.to_out.0.weight", "matrix"),
            ("*.fc?.weight", "matrix"),
            ("*.gamma", "bare"),
            ("*norm*", "norm"),
            ("head.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "clip-tower",
        CLIPTower,
        (
            ("token_embedding.weight", "embedding"),
            ("positional_embedding", "bare"),
            ("text_projection", "bare"),
            ("logit_scale", "bare"),
            ("*.in_proj_weight", "qkv"),
            ("*norm?.*", "norm"),
            ("*.weight", "matrix"),
            ("*bias", "bias"),
        ),
    ),
    Case(
        "llama",
        Llama,
        (
            ("embed_tokens.weight", "embedding"),
            ("*_proj.weight", "matrix"),
            ("*norm.*", "norm"),
            ("lm_head.weight", "head"),
        ),
    ),
    Case(
        "mixture-of-experts",
        MoEClassifier,
        (
            ("moe.*.w_in", "matrix"),
            ("moe.*.w_out", "matrix"),
            ("moe.*.w_in_bias", "bias"),
            ("moe.*.router.weight", "matrix"),
            ("embed.weight", "matrix"),
            ("out.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "lora-adapted",
        lora_adapted_model,
        (
            ("1.lora_?", "bare"),
            ("3.lora_?.default.weight", "matrix"),
            ("5.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "attention-own-keys",
        MHAWithOwnKeys,
        (
            ("attn.?_proj_weight", "matrix"),
            ("attn.bias_?", "bias"),
            ("attn.in_proj_bias", "bias"),
            ("attn.out_proj.weight", "matrix"),
            ("norm.*", "norm"),
            ("out.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "resnet",
        lambda: ResNet(10),
        (
            ("*bn?.*", "norm"),
            ("*.downsample.1.*", "norm"),
            ("fc.weight", "head"),
            ("fc.bias", "bias"),
            ("*", "conv"),
        ),
    ),
    Case(
        "resnet-backbone",
        lambda: ResNet(0),
        (("*bn?.*", "norm"), ("*.downsample.1.*", "norm"), ("*", "conv")),
    ),
    Case(
        "unet",
        UNet,
        (
            ("*.1.*", "norm"),
            ("*.4.*", "norm"),
            ("*.5.weight", "bare"),
            ("final.weight", "head"),
            ("*.weight", "conv"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "convnext",
        ConvNeXt,
        (
            ("stem.0.weight", "conv"),
            ("stem.1.*", "norm"),
            ("*.dwconv.weight", "depthwise"),
            ("*.norm.*", "norm"),
            ("*.pwconv?.weight", "matrix"),
            ("*.gamma", "bare"),
            ("head.0.*", "norm"),
            ("head.1.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "mlp-mixer",
        mixer_model,
        (
            ("0.weight", "conv"),
            ("*_mix.?.weight", "matrix"),
            ("*norm?.*", "norm"),
            ("4.*", "norm"),
            ("5.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "conv-autoencoder",
        conv_autoencoder_model,
        (("6.weight", "head"), ("*.weight", "conv"), ("*.bias", "bias")),
    ),
    Case(
        "conv1d",
        temporal_model,
        (("1.*", "norm"), ("5.weight", "head"), ("*.weight", "conv"), ("*.bias", "bias")),
    ),
    Case(
        "conv3d",
        volumetric_model,
        (
            ("0.weight", "conv"),
            ("1.*", "norm"),
            ("2.weight", "depthwise"),
            ("3.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "dlrm",
        DLRM,
        (
            ("tables.*", "embedding"),
            ("bottom.*.weight", "matrix"),
            ("top.0.weight", "matrix"),
            ("top.2.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case("matrix-factorisation", MatrixFactorisation, (("*.weight", "embedding"), ("mean", "bare"))),
    Case(
        "wide-and-deep",
        WideAndDeep,
        (
            ("wide.weight", "head"),
            ("embedding.weight", "embedding"),
            ("deep.0.weight", "matrix"),
            ("deep.2.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "two-tower",
        TwoTower,
        (
            ("item_embedding.weight", "embedding"),
            ("*.0.weight", "matrix"),
            ("*.2.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case("gcn", GCN, (("gc1.weight", "matrix"), ("gc2.weight", "head"), ("*.bias", "bias"))),
    Case(
        "relational-gcn",
        lambda: nn.ModuleDict({"a": RelationalConv(3, 8, 16), "b": RelationalConv(3, 16, 5), "c": nn.Linear(5, 2)}),
        (
            ("c.weight", "head"),
            ("?.weight", "matrix"),
            ("?.root.weight", "matrix"),
            ("?.bias", "bias"),
        ),
    ),
    Case(
        "gat",
        lambda: nn.Sequential(GATLayer(12, 4, 8), nn.ELU(), GATLayer(32, 1, 7)),
        (
            ("0.lin.weight", "matrix"),
            ("2.lin.weight", "head"),
            ("*.att_???", "bare"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "gru",
        lambda: CharacterRNN(nn.GRU),
        (
            ("encoder.weight", "embedding"),
            ("rnn.weight*", "recurrent"),
            ("decoder.weight", "head"),
            ("*bias*", "bias"),
        ),
    ),
    Case(
        "lstm-projected",
        lambda: CharacterRNN(nn.LSTM, proj_size=5, bidirectional=True),
        (
            ("encoder.weight", "embedding"),
            ("rnn.weight*", "recurrent"),
            ("decoder.weight", "head"),
            ("*bias*", "bias"),
        ),
    ),
    Case(
        "cells",
        CellStack,
        (("cells.*.weight_?h", "recurrent"), ("readout.weight", "head"), ("*bias*", "bias")),
    ),
    Case(
        "bilinear",
        BilinearScorer,
        (("left.weight", "matrix"), ("right.weight", "matrix"), ("score.weight", "head"), ("*.bias", "bias")),
    ),
    Case(
        "batchnorm-mlp",
        batchnorm_mlp_model,
        (("1.*", "norm"), ("4.*", "norm"), ("6.weight", "head"), ("*.weight", "matrix"), ("*.bias", "bias")),
    ),
    Case(
        "module-dict-heads",
        MultiTask,
        (("trunk.*.weight", "matrix"), ("heads.*.weight", "head"), ("*.bias", "bias")),
    ),
    Case(
        "actor-critic",
        ActorCritic,
        (
            ("body.*.weight", "matrix"),
            ("log_std", "bare"),
            ("policy.weight", "head"),
            ("value.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "vae",
        VAE,
        (("decoder.2.weight", "head"), ("*.weight", "matrix"), ("*.bias", "bias")),
    ),
    Case(
        "siamese",
        Siamese,
        (("pair.left.net.?.weight", "matrix"), ("out.weight", "head"), ("*.bias", "bias")),
    ),
    Case(
        "reparametrised",
        reparametrised_model,
        (
            ("*.original0", "norm"),
            ("0.*.original1", "conv"),
            ("2.*.original", "matrix"),
            ("3.*.original", "matrix"),
            ("4.*.original1", "head"),
            ("*.bias", "bias"),
        ),
    ),
)
"""Every model of the zoo; a literal, so that a duplicate name is seen by the tests."""
