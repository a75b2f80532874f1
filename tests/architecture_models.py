"""Small models with the module graphs of real ones, for the tests of the architecture.

Only what the description looks at is real: modules, their nesting and the order of registration; most have
no `forward`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

# --- Transformers


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


# --- Vision


class BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if stride != 1
            else None
        )


class ResNet(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8, 1), BasicBlock(8, 8, 1))
        self.layer2 = nn.Sequential(BasicBlock(8, 16, 2), BasicBlock(16, 16, 1))
        self.fc = nn.Linear(16, num_classes) if num_classes else nn.Identity()


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = self._double(1, 8)
        self.down2 = self._double(8, 16)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.merge = self._double(16, 8)
        self.final = nn.Conv2d(8, 2, 1)

    @staticmethod
    def _double(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.GroupNorm(4, outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.GroupNorm(4, outputs),
            nn.PReLU(outputs),
        )


class LayerNorm2d(nn.Module):
    """Channels-first norm with broadcastable parameters."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(width, 1, 1))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = LayerNorm2d(width)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.ones(width))


class ConvNeXt(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 4, 4), LayerNorm2d(8))
        self.stages = nn.Sequential(ConvNeXtBlock(8), ConvNeXtBlock(8))
        self.head = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 10))


class MixerBlock(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.token_mix = nn.Sequential(nn.Linear(tokens, 32), nn.GELU(), nn.Linear(32, tokens))
        self.norm2 = nn.LayerNorm(width)
        self.channel_mix = nn.Sequential(nn.Linear(width, 48), nn.GELU(), nn.Linear(48, width))


def mixer_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 4, 4),
        nn.Flatten(2),
        MixerBlock(49, 16),
        MixerBlock(49, 16),
        nn.LayerNorm(16),
        nn.Linear(16, 10),
    )


def conv_autoencoder_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 4, 2, 1),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 1, 4, 2, 1),
    )


def temporal_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(4, 16, 3, dilation=2),
        nn.BatchNorm1d(16),
        nn.Conv1d(16, 32, 3, groups=4),
        nn.AdaptiveAvgPool1d(1),
        nn.Flatten(),
        nn.Linear(32, 6),
    )


def volumetric_model() -> nn.Module:
    return nn.Sequential(
        nn.Conv3d(1, 8, 3),
        nn.InstanceNorm3d(8, affine=True),
        nn.Conv3d(8, 8, 3, groups=8),
        nn.Conv3d(8, 2, 1),
    )


# --- Recommendation, graphs, sequences, tabular


class DLRM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(
            [nn.EmbeddingBag(100, 8, sparse=True), nn.EmbeddingBag(30, 8, mode="sum")]
        )
        self.bottom = nn.Sequential(nn.Linear(13, 32), nn.ReLU(), nn.Linear(32, 8))
        self.top = nn.Sequential(nn.Linear(11, 16), nn.ReLU(), nn.Linear(16, 1))


class MatrixFactorisation(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.user = nn.Embedding(20, 4, sparse=True)
        self.item = nn.Embedding(30, 4, sparse=True)
        self.user_bias = nn.Embedding(20, 1, sparse=True)
        self.mean = nn.Parameter(torch.zeros(()))


class WideAndDeep(nn.Module):
    """Two parts of different input widths add up to one output."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(100, 1)
        self.embedding = nn.Embedding(40, 8)
        self.deep = nn.Sequential(nn.Linear(24, 16), nn.ReLU(), nn.Linear(16, 1))


class TwoTower(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.item_embedding = nn.EmbeddingBag(50, 16)
        self.user_tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))
        self.item_tower = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 12))


class GraphConvolution(nn.Module):
    """Kipf's layer: a bare (inputs, outputs) weight with a bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.in_features, self.out_features = inputs, outputs
        self.weight = nn.Parameter(torch.zeros(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))


class GCN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gc1 = GraphConvolution(34, 16)
        self.gc2 = GraphConvolution(16, 4)


class RelationalConv(nn.Module):
    """One matrix a relation, stacked."""

    def __init__(self, relations: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(relations, inputs, outputs))
        self.root = nn.Linear(inputs, outputs, bias=False)
        self.bias = nn.Parameter(torch.zeros(outputs))


class GATLayer(nn.Module):
    """Graph attention: a projection and bare attention vectors of shape (1, heads, features)."""

    def __init__(self, inputs: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.lin = nn.Linear(inputs, heads * outputs, bias=False)
        self.att_src = nn.Parameter(torch.zeros(1, heads, outputs))
        self.att_dst = nn.Parameter(torch.zeros(1, heads, outputs))
        self.bias = nn.Parameter(torch.zeros(heads * outputs))


class CharacterRNN(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], **options: object) -> None:
        super().__init__()
        self.encoder = nn.Embedding(30, 8)
        self.rnn = kind(8, 16, num_layers=2, **options)  # type: ignore[arg-type]
        self.decoder = nn.Linear(16, 30)


class CellStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.ModuleList([nn.RNNCell(8, 16), nn.GRUCell(16, 16), nn.LSTMCell(16, 16)])
        self.readout = nn.Linear(16, 2)


class BilinearScorer(nn.Module):
    """Biaffine: two projections into one bilinear form."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(10, 6)
        self.right = nn.Linear(10, 7)
        self.score = nn.Bilinear(6, 7, 3)


def batchnorm_mlp_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(30, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 64),
        nn.BatchNorm1d(64),
        nn.ReLU(),
        nn.Linear(64, 2),
    )


class MultiTask(nn.Module):
    """A trunk and a dict of heads, one of them square."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(10, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.heads = nn.ModuleDict(
            {"age": nn.Linear(16, 1), "vector": nn.Linear(16, 16), "kind": nn.Linear(16, 7)}
        )


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh())
        self.log_std = nn.Parameter(torch.zeros(2))
        self.policy = nn.Linear(32, 2)
        self.value = nn.Linear(32, 1)


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 32), nn.ReLU())
        self.mean = nn.Linear(32, 4)
        self.log_variance = nn.Linear(32, 4)
        self.decoder = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 64))


class Siamese(nn.Module):
    """One tower registered at two places, inside a deeper module."""

    def __init__(self) -> None:
        super().__init__()
        tower = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 8))
        self.pair = nn.ModuleDict({"left": nn.ModuleDict({"net": tower}), "right": tower})
        self.out = nn.Linear(16, 1)


def reparametrised_model() -> nn.Module:
    return nn.Sequential(
        parametrizations.weight_norm(nn.Conv1d(3, 8, 3)),
        nn.Flatten(),
        parametrizations.orthogonal(nn.Linear(8, 8)),
        parametrizations.spectral_norm(nn.Linear(8, 8)),
        parametrizations.weight_norm(nn.Linear(8, 1)),
    )


def lora_adapted_model() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(20, 8).requires_grad_(False),
        LoRALinear(8, 8, 2),
        nn.ReLU(),
        AdaptedLinear(nn.Linear(8, 8), 2),
        nn.ReLU(),
        nn.Linear(8, 3),
    )
