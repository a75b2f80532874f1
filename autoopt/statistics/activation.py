"""Statistics of what flows into layers, read by forward hooks that are removed afterwards.

The input of a layer is a matrix `A` of shape `(num_rows, fan_in)`: a row an example, a token, or the
patch under a convolution's kernel at one position. Rows are sampled at regular strides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from autoopt.architecture import LayerInfo

MOST_ROWS = 512
"""Rows of an input, and rows or columns of a gradient, that spectra are taken of."""

_ROLES = ("matrix", "qkv", "head", "conv")


def input_rms(rows: Tensor) -> float:
    """The root mean square of a layer's input.

    muP keeps it near 1 at any width (arXiv 2203.03466); the gradient of a weight scales with it.
    """
    return math.sqrt(float(rows.double().square().mean())) if rows.numel() else math.nan


def dead_input_share(rows: Tensor) -> float:
    """The share of inputs that are 0 in every row, in [0, 1]: dead or unused units of the layer before.

    Nothing is learned in their columns. On few rows, units that fire rarely look dead.
    """
    return float((rows == 0).all(0).float().mean()) if rows.numel() else math.nan


def stable_rank(matrix: Tensor) -> float:
    """The stable rank `|A|_F^2 / |A|_2^2` of a matrix, at least 1; NaN for zeros.

    Taken from the eigenvalues of the smaller Gram matrix. It is at most the smaller side, so
    that values of inputs with few rows are bounded by them.
    """
    values = _gram_eigenvalues(matrix)
    return float(values.sum() / values[-1]) if values is not None else math.nan


def nuclear_rank(matrix: Tensor) -> float:
    """The squared ratio of nuclear to Frobenius norm `(|G|_* / |G|_F)^2`, at least 1; NaN for zeros."""
    values = _gram_eigenvalues(matrix)
    return float(values.sqrt().sum().square() / values.sum()) if values is not None else math.nan


def spectral_advantage(grad: Tensor, rows: Tensor) -> float:
    """How much more a spectral step gains than a Euclidean one: above 1 Muon is favoured.

    Formula: `(|G|_* / |G|_F)^2 / (|A|_F^2 / |A|_2^2)`, the gradient's nuclear rank over the stable
    rank of the layer's input (Davis & Drusvyatskiy 2025, arXiv 2512.04299). It compares one step of
    each on a layer by itself, at the same data; it knows nothing of momentum or noise.
    """
    return nuclear_rank(sampled(grad)) / stable_rank(rows)


def sampled(matrix: Tensor) -> Tensor:
    """The matrix, of which at most `MOST_ROWS` rows and columns are kept, at regular strides."""
    for dim in (0, 1):
        if matrix.size(dim) > MOST_ROWS:
            matrix = matrix.index_select(dim, _spread(matrix.size(dim), matrix.device))
    return matrix


def _spread(size: int, device: torch.device) -> Tensor:
    return torch.linspace(0, size - 1, MOST_ROWS, device=device, dtype=torch.float64).round().long()


def _gram_eigenvalues(matrix: Tensor) -> Tensor | None:
    """Squared singular values in ascending order, up to a common factor; None for zeros and non-finite ones."""
    largest = matrix.abs().max() if matrix.numel() else matrix.new_zeros(())
    if not 0 < float(largest) < math.inf:
        return None
    matrix = (matrix / largest).double()
    gram = matrix @ matrix.T if matrix.size(0) <= matrix.size(1) else matrix.T @ matrix
    return torch.linalg.eigvalsh(gram).clamp(min=0.0)


def input_rows(layer: LayerInfo, module: nn.Module, value: Tensor) -> Tensor | None:
    """The sampled rows of a layer's input, `(at most MOST_ROWS, fan_in)`; None where they are not known.

    Args:
        layer: The weight's description.
        module: The module that owns it.
        value: What the module is called with.
    """
    if not value.is_floating_point() or value.numel() == 0 or value.ndim == 0:
        return None
    if isinstance(module, nn.Conv1d | nn.Conv2d):
        return _patches(layer, module, value)
    if value.size(-1) != layer.fan_in:
        return None
    rows = value.detach().reshape(-1, layer.fan_in)
    # A copy: the activation may be overwritten in place later in the pass.
    return rows.index_select(0, _spread(len(rows), rows.device)) if len(rows) > MOST_ROWS else rows.clone()


def _patches(layer: LayerInfo, module: nn.Conv1d | nn.Conv2d, value: Tensor) -> Tensor | None:
    flat = isinstance(module, nn.Conv1d)
    if module.groups != 1 or isinstance(module.padding, str) or value.ndim != (3 if flat else 4):
        return None
    sizes = [getattr(module, name) for name in ("kernel_size", "dilation", "padding", "stride")]
    if flat:
        value = value.unsqueeze(2)
        sizes = [(neutral, *size) for neutral, size in zip((1, 1, 0, 1), sizes, strict=True)]
    # As many examples as give enough rows: unfolding a whole batch would cost more than training on it.
    positions = max(1, value[0, 0].numel() // math.prod(sizes[3]))
    few = value.detach()[: -(-MOST_ROWS // positions)].float()
    unfolded = nn.functional.unfold(few, *sizes).transpose(1, 2).reshape(-1, layer.fan_in)
    return unfolded.index_select(0, _spread(len(unfolded), unfolded.device)) if len(unfolded) > MOST_ROWS else unfolded


@contextmanager
def inputs_read(model: nn.Module, layers: Sequence[LayerInfo]) -> Iterator[dict[str, Tensor]]:
    """A context in which the rows of each layer's first input are put into the dict that it gives.

    Only weights of modules that are called themselves are found; of a module that is called several
    times the first call counts. The hooks are gone afterwards, whatever happened. Nothing is
    synchronised, and inputs on their way are not changed.
    """
    found: dict[str, Tensor] = {}
    handles = []
    for layer, module in _owners(model, layers):
        handles.append(module.register_forward_pre_hook(_reader(found, layer), with_kwargs=True))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


def _owners(model: nn.Module, layers: Sequence[LayerInfo]) -> Iterator[tuple[LayerInfo, nn.Module]]:
    for layer in layers:
        prefix, _, leaf = layer.name.rpartition(".")
        if layer.role in _ROLES and leaf == "weight" and layer.groups == 1:
            yield layer, model.get_submodule(prefix)


def _reader(found: dict[str, Tensor], layer: LayerInfo) -> Callable[..., None]:
    def read(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        value = next((v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)), None)
        if layer.name not in found and value is not None:
            rows = input_rows(layer, module, value)
            if rows is not None:
                found[layer.name] = rows

    return read


def activation_statistics(
    layers: Sequence[LayerInfo], inputs: Mapping[str, Tensor], grads: Mapping[str, Tensor]
) -> dict[str, dict[str, float]]:
    """Parameter name -> statistics of its input: `input_rms`, `input_stable_rank`, `dead_input_share`.

    Where the gradient of the same data is given as well, `spectral_advantage` is added.

    Args:
        layers: What the parameters are.
        inputs: What `inputs_read` found.
        grads: Dense gradients of the same batch by parameter name.
    """
    values = {}
    for layer in layers:
        rows = inputs.get(layer.name)
        if rows is None:
            continue
        row = {
            "input_rms": input_rms(rows),
            "input_stable_rank": stable_rank(rows),
            "dead_input_share": dead_input_share(rows),
        }
        if layer.name in grads:
            grad = grads[layer.name].detach()
            row["spectral_advantage"] = spectral_advantage(grad.reshape(grad.size(0), -1), rows)
        values[layer.name] = {key: value for key, value in row.items() if math.isfinite(value)}
    return values
