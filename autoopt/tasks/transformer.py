"""Small transformers in the variants found in practice: pre- and post-norm, fused and split attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

ATTENTIONS = ("split", "fused")


class SplitAttention(nn.Module):
    """Multi-head self-attention with separate query, key, value and output matrices."""

    def __init__(self, width: int, num_heads: int, causal: bool) -> None:
        """Build the four projections, without biases."""
        super().__init__()
        self.num_heads = num_heads
        self.causal = causal
        self.query = nn.Linear(width, width, bias=False)
        self.key = nn.Linear(width, width, bias=False)
        self.value = nn.Linear(width, width, bias=False)
        self.output = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """The attended features, of the shape of `x`: `(batch, length, width)`."""
        batch, length, width = x.shape
        split = (batch, length, self.num_heads, width // self.num_heads)
        query, key, value = (layer(x).view(split).transpose(1, 2) for layer in (self.query, self.key, self.value))
        mask = None if padding is None else ~padding[:, None, None, :]
        mixed = functional.scaled_dot_product_attention(query, key, value, mask, is_causal=self.causal)
        return self.output(mixed.transpose(1, 2).reshape(batch, length, width))


class FusedAttention(nn.Module):
    """Multi-head self-attention by `nn.MultiheadAttention`, one matrix for query, key and value."""

    def __init__(self, width: int, num_heads: int, causal: bool) -> None:
        """Build the attention module."""
        super().__init__()
        self.causal = causal
        self.attention = nn.MultiheadAttention(width, num_heads, batch_first=True)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        """The attended features, of the shape of `x`: `(batch, length, width)`."""
        mask = None
        if self.causal:
            length = x.shape[1]
            mask = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        return self.attention(
            x, x, x, key_padding_mask=padding, need_weights=False, attn_mask=mask, is_causal=self.causal
        )[0]


class GatedMlp(nn.Module):
    """The SwiGLU feed-forward block of Shazeer 2020 (arXiv 2002.05202)."""

    def __init__(self, width: int) -> None:
        """Build three matrices with 8/3 of the width inside, so that the cost is a plain block's."""
        super().__init__()
        inner = max(8, 8 * width // 3 // 8 * 8)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """The transformed features, of the shape of `x`."""
        return self.down(functional.silu(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """One transformer layer: attention, then a feed-forward block, each with a residual and a norm."""

    def __init__(self, width: int, num_heads: int, causal: bool, attention: str, pre_norm: bool, gated: bool) -> None:
        """Build the layer; a gated one has RMS norms, as such models do, the others layer norms."""
        super().__init__()
        norm = nn.RMSNorm if gated else nn.LayerNorm
        mixer = SplitAttention if attention == "split" else FusedAttention
        self.pre_norm = pre_norm
        self.attention_norm = norm(width)
        self.attention = mixer(width, num_heads, causal)
        self.mlp_norm = norm(width)
        self.mlp: nn.Module = (
            GatedMlp(width)
            if gated
            else nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        )

    def forward(self, x: Tensor, padding: Tensor | None = None) -> Tensor:
        """The features after this layer, of the shape of `x`: `(batch, length, width)`."""
        if self.pre_norm:
            x = x + self.attention(self.attention_norm(x), padding)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attention_norm(x + self.attention(x, padding))
        return self.mlp_norm(x + self.mlp(x))


class Transformer(nn.Module):
    """A transformer over symbol ids, as a language model, a tagger or a classifier.

    Maps ids `(batch, length)` to logits: `(batch, length, num_outputs)`, or `(batch, num_outputs)`
    from the mean over the symbols that are no padding (id 0) where `pooled`.
    """

    def __init__(
        self,
        num_symbols: int,
        num_outputs: int,
        width: int,
        num_layers: int,
        context: int,
        *,
        causal: bool,
        pooled: bool = False,
        attention: str = "split",
        pre_norm: bool = True,
        gated: bool = False,
        tied: bool = False,
        init_std: float | None = None,
    ) -> None:
        """Build the model.

        Args:
            num_symbols: Size of the vocabulary; id 0 is padding.
            num_outputs: Size of the logits.
            width: Width of the residual stream; heads are 16 wide.
            num_layers: Number of blocks.
            context: Longest sequence.
            causal: Whether a position sees only itself and what is before it.
            pooled: Whether there is one output for the whole sequence.
            attention: One of `ATTENTIONS`.
            pre_norm: Norm before (True) or after (False) each residual branch.
            gated: SwiGLU and RMS norms in place of GELU and layer norms.
            tied: Whether the output layer is the embedding's matrix.
            init_std: Deviation of the embedding at the start; None keeps PyTorch's 1.0.
        """
        super().__init__()
        self.causal = causal
        self.pooled = pooled
        self.embedding = nn.Embedding(num_symbols, width)
        self.positions = nn.Parameter(torch.randn(context, width) * (init_std or 0.1))
        num_heads = max(1, width // 16)
        self.blocks = nn.ModuleList(
            Block(width, num_heads, causal, attention, pre_norm, gated) for _ in range(num_layers)
        )
        self.norm = nn.RMSNorm(width) if gated else nn.LayerNorm(width)
        self.head = nn.Linear(width, num_outputs, bias=not tied)
        if init_std is not None:
            nn.init.normal_(self.embedding.weight, std=init_std)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        """The logits for ids of shape `(batch, length)`."""
        # A causal stream has no padding; masking it would only cost time.
        padding = None if self.causal else ids == 0
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, padding)
        x = self.norm(x)
        if self.pooled:
            keep = (ids != 0).unsqueeze(-1).to(x.dtype)
            x = (x * keep).sum(1) / keep.sum(1).clamp_min(1.0)
        return self.head(x)
