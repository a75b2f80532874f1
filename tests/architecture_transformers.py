"""Small transformers with the module graphs of real ones, for the tests of the architecture.

Only what the description looks at is real: modules, their nesting and the order of registration; most have
no `forward`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GPTBlock(nn.Module):
    """Pre-norm causal block with a fused projection, as in nanoGPT."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1 = nn.LayerNorm(width)
        self.attn = FusedAttention(width)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class FusedAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)


class GPT(nn.Module):
    """nanoGPT's layout: a ModuleDict that holds the stack, then the head."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(50, 16),
                "wpe": nn.Embedding(8, 16),
                "h": nn.ModuleList([GPTBlock(16) for _ in range(2)]),
                "ln_f": nn.LayerNorm(16),
            }
        )
        self.lm_head = nn.Linear(16, 50, bias=False)
        if tied:
            self.lm_head.weight = self.transformer["wte"].weight


class FeedForward(nn.Module):
    """Ratio 3 on purpose: its first layer has the shape of a fused projection."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 3 * width)
        self.fc2 = nn.Linear(3 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))


class ViTAttention(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.to_qkv = nn.Linear(width, 3 * inner, bias=False)
        self.to_out = nn.Sequential(nn.Linear(inner, width), nn.Dropout(0.1))


class ViT(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 24))
        self.pos_embed = nn.Parameter(torch.zeros(1, 17, 24))
        self.patch_embed = nn.Conv2d(3, 24, 4, stride=4)
        self.blocks = nn.Sequential(
            *[
                nn.ModuleDict(
                    {
                        "norm1": nn.LayerNorm(24),
                        "attn": ViTAttention(24, 32),
                        "norm2": nn.LayerNorm(24),
                        "mlp": FeedForward(24),
                    }
                )
                for _ in range(2)
            ]
        )
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 10)


class CLIPTower(nn.Module):
    """Bare 2-D parameters at the root, which no rule may take for matrices."""

    def __init__(self) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(40, 16)
        self.positional_embedding = nn.Parameter(torch.zeros(8, 16))
        self.text_projection = nn.Parameter(torch.zeros(16, 12))
        self.logit_scale = nn.Parameter(torch.tensor(2.6))
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True),
            2,
            enable_nested_tensor=False,
        )


class RMSNormalisation(nn.Module):
    """Third party's norm, by its class name."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))


class LlamaRMSNorm(RMSNormalisation):
    pass


class LlamaBlock(nn.Module):
    """Grouped-query attention and a gated feed-forward; norms registered last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = nn.ModuleDict(
            {
                "q_proj": nn.Linear(width, width, bias=False),
                "k_proj": nn.Linear(width, width // 2, bias=False),
                "v_proj": nn.Linear(width, width // 2, bias=False),
                "o_proj": nn.Linear(width, width, bias=False),
            }
        )
        self.gate_proj = nn.Linear(width, 40, bias=False)
        self.up_proj = nn.Linear(width, 40, bias=False)
        self.down_proj = nn.Linear(40, width, bias=False)
        self.input_layernorm = LlamaRMSNorm(width)


class Llama(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(50, 16)
        self.layers = nn.ModuleList([LlamaBlock(16) for _ in range(2)])
        self.norm = nn.RMSNorm(16)
        self.lm_head = nn.Linear(16, 50, bias=False)


class MixtureOfExperts(nn.Module):
    """Stacked expert weights as bare 3-D parameters, behind a router."""

    def __init__(self, experts: int, width: int, hidden: int) -> None:
        super().__init__()
        self.router = nn.Linear(width, experts, bias=False)
        self.w_in = nn.Parameter(torch.zeros(experts, width, hidden))
        self.w_in_bias = nn.Parameter(torch.zeros(experts, hidden))
        self.w_out = nn.Parameter(torch.zeros(experts, hidden, width))


class MoEClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 16)
        self.moe = nn.ModuleList([MixtureOfExperts(4, 16, 32) for _ in range(2)])
        self.out = nn.Linear(16, 5)


class LoRALinear(nn.Linear):
    """loralib's layout: factors are bare parameters beside a frozen weight."""

    def __init__(self, inputs: int, outputs: int, rank: int) -> None:
        super().__init__(inputs, outputs)
        self.weight.requires_grad_(False)
        self.lora_A = nn.Parameter(torch.zeros(rank, inputs))
        self.lora_B = nn.Parameter(torch.zeros(outputs, rank))


class AdaptedLinear(nn.Module):
    """peft's layout: the frozen layer beside two small linear layers in dicts."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base_layer = base.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(base.in_features, rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(rank, base.out_features, bias=False)})


class MHAWithOwnKeys(nn.Module):
    """Cross-attention whose keys and values have other widths, with learned extra key and value."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = nn.MultiheadAttention(16, 2, kdim=12, vdim=8, add_bias_kv=True, batch_first=True)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 3)


def lora_adapted_model() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(20, 8).requires_grad_(False),
        LoRALinear(8, 8, 2),
        nn.ReLU(),
        AdaptedLinear(nn.Linear(8, 8), 2),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
