"""What one trainable parameter is for: its role, its fans and its place in the model."""

from __future__ import annotations

import math
from dataclasses import dataclass

ROLE_GROUPS: dict[str, str] = {
    "embedding": "embedding",
    "tied": "embedding",
    "matrix": "matrix",
    "qkv": "matrix",
    "recurrent": "matrix",
    "conv": "conv",
    "depthwise": "vector",
    "head": "head",
    "norm": "vector",
    "bias": "vector",
    "bare": "vector",
}
"""Role of a parameter -> the coarser group in which plans and trials change configurations."""


@dataclass(frozen=True)
class LayerInfo:
    """One trainable parameter: its name, its role and its shape.

    Attributes:
        name: The parameter's first name in `model.named_parameters()`.
        role: One of the keys of `ROLE_GROUPS`.
        shape: The parameter's shape.
        fan_in: Inputs that one output sums over (1 for vectors and embeddings).
        fan_out: Outputs that one input reaches, those of all fused blocks together (1 for vectors).
        depth: 0-based position of the owning module among the modules that own trainable
            parameters, in registration order.
        tied: Other names of the same tensor.
        sparse: Whether the gradient will be sparse (`Embedding(sparse=True)`). False for a tied
            weight, whose gradient the other use makes dense.
        groups: Number of groups of a convolution, or of matrices stacked along dimension 0
            (the experts of a mixture); 1 elsewhere.
        splits: Number of equal blocks fused along dimension 0 (3 for a fused QKV projection or a
            GRU, 4 for an LSTM), 1 elsewhere.
        module: Class name of the owning module.
        transposed: Whether the tensor holds inputs before outputs, as `transformers`' `Conv1D` and
            transposed convolutions do. Fused blocks of a transposed matrix lie along its last
            dimension.
        norm_adjacent: Whether a normalisation module is registered beside the owning module, beside its
            parent, or in the block around it; False for norms themselves.
        residual: Whether the parameter lies on a branch whose outcome is added to the branch's input,
            as far as `autoopt.architecture.code` can read it.
        itemsize: Bytes of one element of the parameter.
        rms: Root mean square of its elements when it was described; None where they could not be read (a
            model on the meta device, or described from shapes).
    """

    name: str
    role: str
    shape: tuple[int, ...]
    fan_in: int
    fan_out: int
    depth: int
    tied: tuple[str, ...] = ()
    sparse: bool = False
    groups: int = 1
    splits: int = 1
    module: str = ""
    transposed: bool = False
    norm_adjacent: bool = False
    residual: bool = False
    itemsize: int = 4
    rms: float | None = None

    @property
    def group(self) -> str:
        """The role group of `ROLE_GROUPS` that this parameter belongs to."""
        return ROLE_GROUPS[self.role]

    @property
    def numel(self) -> int:
        """The number of elements of the parameter."""
        return math.prod(self.shape)

    @property
    def relative_scale(self) -> float | None:
        """The root mean square of the elements over the usual one; None where it is unknown or 0.

        Usual is 1 for embeddings and `1 / sqrt(3 fan_in)` for what sums over inputs, as `torch.nn` starts
        them; vectors have no usual scale.
        """
        if not self.rms or self.group == "vector":
            return None
        return self.rms if self.group == "embedding" else self.rms * math.sqrt(3 * max(1, self.fan_in))
