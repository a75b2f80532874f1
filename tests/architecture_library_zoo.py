"""Models of transformers and peft, built from configurations, with their roles written down by hand."""

from __future__ import annotations

from typing import Any

import peft
import transformers
from architecture_zoo import Case
from torch import nn

_ENCODER: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
}
_IMAGE: dict[str, Any] = {"image_size": 16, "patch_size": 4}


def bert_for_pretraining() -> nn.Module:
    return transformers.BertForPreTraining(transformers.BertConfig(**_ENCODER))


def bert_classifier() -> nn.Module:
    return transformers.BertForSequenceClassification(transformers.BertConfig(**_ENCODER))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=50, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> nn.Module:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**_ENCODER, num_key_value_heads=1))


def t5() -> nn.Module:
    config = transformers.T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, vocab_size=50)
    return transformers.T5ForConditionalGeneration(config)


def mixtral() -> nn.Module:
    config = transformers.MixtralConfig(**_ENCODER, num_key_value_heads=1, num_local_experts=4)
    return transformers.MixtralForCausalLM(config)


def gpt_oss() -> nn.Module:
    config = transformers.GptOssConfig(**_ENCODER, head_dim=8, num_key_value_heads=1, num_local_experts=4)
    return transformers.GptOssForCausalLM(config)


def mamba() -> nn.Module:
    config = transformers.MambaConfig(hidden_size=16, num_hidden_layers=2, vocab_size=50, state_size=4)
    return transformers.MambaForCausalLM(config)


def vit() -> nn.Module:
    return transformers.ViTForImageClassification(transformers.ViTConfig(**_ENCODER, **_IMAGE))


def convnext() -> nn.Module:
    config = transformers.ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    return transformers.ConvNextForImageClassification(config)


def resnet() -> nn.Module:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2])
    return transformers.ResNetForImageClassification(config)


def gpt2_with_lora() -> nn.Module:
    config = peft.LoraConfig(r=2, target_modules=["c_attn"], fan_in_fan_out=True)
    return peft.get_peft_model(gpt2(), config)


def bert_classifier_with_dora() -> nn.Module:
    config = peft.LoraConfig(r=2, target_modules=["query"], modules_to_save=["classifier"], use_dora=True)
    return peft.get_peft_model(bert_classifier(), config)


_BERT_LAYERS = (
    ("bert.embeddings.*_embeddings.weight", "embedding"),
    ("*LayerNorm.*", "norm"),
    ("bert.encoder.layer.*.attention.self.*.weight", "matrix"),
    ("bert.encoder.layer.*.dense.weight", "matrix"),
    ("bert.pooler.dense.weight", "matrix"),
)

LIBRARY_ZOO: tuple[Case, ...] = (
    Case(
        "bert-pretraining",
        bert_for_pretraining,
        (
            ("*.word_embeddings.weight", "tied"),
            ("cls.predictions.transform.dense.weight", "matrix"),
            ("cls.seq_relationship.weight", "head"),
            *_BERT_LAYERS,
            ("*bias", "bias"),
        ),
    ),
    Case(
        "bert-classifier",
        bert_classifier,
        (*_BERT_LAYERS, ("classifier.weight", "head"), ("*bias", "bias")),
    ),
    Case(
        "gpt2",
        gpt2,
        (
            ("transformer.wte.weight", "tied"),
            ("transformer.wpe.weight", "embedding"),
            ("*.c_attn.weight", "qkv"),
            ("*.attn.c_proj.weight", "matrix"),
            ("*.mlp.c_*.weight", "matrix"),
            ("*.ln_?.*", "norm"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "llama",
        llama,
        (
            ("model.embed_tokens.weight", "embedding"),
            ("*_proj.weight", "matrix"),
            ("*norm.weight", "norm"),
            ("lm_head.weight", "head"),
        ),
    ),
    Case(
        "t5",
        t5,
        (
            ("shared.weight", "tied"),
            ("*.relative_attention_bias.weight", "embedding"),
            ("*.?.weight", "matrix"),
            ("*.DenseReluDense.w?.weight", "matrix"),
            ("*layer_norm.weight", "norm"),
        ),
    ),
    Case(
        "mixtral",
        mixtral,
        (
            ("model.embed_tokens.weight", "embedding"),
            ("*.mlp.experts.*_proj", "matrix"),
            ("*.mlp.gate.weight", "matrix"),
            ("*.self_attn.?_proj.weight", "matrix"),
            ("*norm.weight", "norm"),
            ("lm_head.weight", "head"),
        ),
    ),
    Case(
        "gpt-oss",
        gpt_oss,
        (
            ("model.embed_tokens.weight", "embedding"),
            ("*.sinks", "bare"),
            ("*.mlp.experts.*_bias", "bias"),
            ("*.mlp.experts.*_proj", "matrix"),
            ("*.mlp.router.weight", "matrix"),
            ("*.self_attn.?_proj.weight", "matrix"),
            ("*norm.weight", "norm"),
            ("lm_head.weight", "head"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "mamba",
        mamba,
        (
            ("backbone.embeddings.weight", "tied"),
            ("*.A_log", "bare"),
            ("*.D", "bare"),
            ("*.conv1d.weight", "depthwise"),
            ("*_proj.weight", "matrix"),
            ("*norm*.weight", "norm"),
            ("*.bias", "bias"),
        ),
    ),
    Case(
        "vit",
        vit,
        (
            ("vit.embeddings.cls_token", "bare"),
            ("vit.embeddings.position_embeddings", "bare"),
            ("vit.embeddings.patch_embeddings.projection.weight", "conv"),
            ("vit.layers.*_proj.weight", "matrix"),
            ("vit.layers.*.fc?.weight", "matrix"),
            ("*layernorm*", "norm"),
            ("classifier.weight", "head"),
            ("*bias", "bias"),
        ),
    ),
    Case(
        "convnext",
        convnext,
        (
            ("convnext.embeddings.patch_embeddings.weight", "conv"),
            ("*.dwconv.weight", "depthwise"),
            ("*.pwconv?.weight", "matrix"),
            ("*.layer_scale_parameter", "bare"),
            ("*.downsampling_layer.0.*", "norm"),
            ("*.downsampling_layer.1.weight", "conv"),
            ("*norm*", "norm"),
            ("classifier.weight", "head"),
            ("*bias", "bias"),
        ),
    ),
    Case(
        "resnet",
        resnet,
        (
            ("*.convolution.weight", "conv"),
            ("*.normalization.*", "norm"),
            ("classifier.1.weight", "head"),
            ("classifier.1.bias", "bias"),
        ),
    ),
    Case("gpt2-lora", gpt2_with_lora, (("*.lora_?.default.weight", "matrix"),)),
    Case(
        "bert-dora",
        bert_classifier_with_dora,
        (
            ("*.lora_?.default.weight", "matrix"),
            ("*.lora_magnitude_vector.default.weight", "bare"),
            ("*.classifier.modules_to_save.default.weight", "head"),
            ("*.classifier.modules_to_save.default.bias", "bias"),
        ),
    ),
)
"""Every model of the library zoo."""
