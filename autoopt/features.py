"""Meta-features: what the selector knows of a layer, one column for each row of `FEATURES`.

The same function extracts them when trials are recorded and when a plan is chosen. Values are plain
NumPy arrays; what was not measured is NaN, never a guess.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from autoopt.errors import ProfileError
from autoopt.feature_values import NAN, architecture_values, exposure_values, statistics_values

if TYPE_CHECKING:
    from autoopt.architecture import LayerInfo
    from autoopt.statistics.warmup import WarmupStatistics

ARCHITECTURE = "architecture"
STATISTICS = "statistics"
CONTEXT = "context"
EXPOSURE = "exposure"


@dataclass(frozen=True)
class Feature:
    """One meta-feature.

    Attributes:
        name: Column name.
        kind: `"architecture"`, `"statistics"` or `"context"`: where the value comes from; `"exposure"`
            for how much the run will show the layer, which takes all three.
        key: Name of the raw value there.
        unit: Unit of the column, after the transform.
        description: What it is.
        source: Paper or reason that makes it a feature.
        floor: If given, the column is `log(max(raw, floor))`; 0 makes a raw value of 0 or below NaN.
            If None, the column is the raw value.
    """

    name: str
    kind: str
    key: str
    unit: str
    description: str
    source: str
    floor: float | None = None


_A, _S, _C, _E = ARCHITECTURE, STATISTICS, CONTEXT, EXPOSURE
_MUP = "arXiv 2203.03466"
_NOISE = "arXiv 1812.06162"
_TAILS = "arXiv 2402.19449"
_SPECTRAL = "arXiv 2512.04299"
_BLOCKS = "arXiv 2402.16788"
_ADAPTIVE = "arXiv 2407.07972"
_SHARP = "arXiv 2406.09405"
_ROLES = "arXiv 2407.07972, 2509.26030"
_SIGN = "arXiv 2302.06675"
_TRUST = "arXiv 1708.03888"
_EMBED = "arXiv 2605.21486"
_FACTOR = "arXiv 1804.04235"
_DEPTH = "arXiv 2309.16620"
_QKV = "arXiv 2509.26030"
_VOCAB = "arXiv 2506.15025"
_SUBSPACE = "arXiv 1812.04754"
_OVERFIT = "arXiv 2001.07384"
_REPEATS = "arXiv 2305.16264"
_UNSEEN = "Good 1953, Biometrika 40"

# One line a feature: the table is read by column.
# fmt: off
FEATURES: tuple[Feature, ...] = (
    # What the layer is.
    Feature("log_fan_in", _A, "fan_in", "nats", "inputs that one output sums over", _MUP, 0),
    Feature("log_fan_out", _A, "fan_out", "nats", "outputs that one input reaches", _MUP, 0),
    Feature("log_aspect", _A, "aspect", "nats", "fan-out over fan-in", "arXiv 2310.17813", 0),
    Feature("log_numel", _A, "numel", "nats", "elements of the parameter", _MUP, 0),
    Feature("log_share", _A, "share", "nats", "share of the model's elements", _BLOCKS, 0),
    Feature("log_depth", _A, "depth", "nats", "1 + position of the module", _ROLES, 0),
    Feature("relative_depth", _A, "relative_depth", "0 to 1", "its position", _ROLES),
    Feature("log_groups", _A, "groups", "nats", "groups of a convolution, or experts", "shape", 0),
    Feature("log_splits", _A, "splits", "nats", "blocks fused in one tensor", _QKV, 0),
    Feature("norm_adjacent", _A, "norm_adjacent", "0 or 1", "normalisation beside it", "arXiv 1706.05350"),
    Feature("residual", _A, "residual", "0 or 1", "inside a residual block", _DEPTH),
    Feature("sparse", _A, "sparse", "0 or 1", "sparse gradients", _TAILS),
    Feature("role_embedding", _A, "role_embedding", "0 or 1", "embedding", _EMBED),
    Feature("role_tied", _A, "role_tied", "0 or 1", "embedding tied to the head", _EMBED),
    Feature("role_matrix", _A, "role_matrix", "0 or 1", "hidden matrix", _ROLES),
    Feature("role_qkv", _A, "role_qkv", "0 or 1", "fused query, key and value", _ROLES),
    Feature("role_recurrent", _A, "role_recurrent", "0 or 1", "recurrent matrix", _ROLES),
    Feature("role_conv", _A, "role_conv", "0 or 1", "convolution", _ROLES),
    Feature("role_depthwise", _A, "role_depthwise", "0 or 1", "depthwise convolution", _ROLES),
    Feature("role_head", _A, "role_head", "0 or 1", "output layer", _ADAPTIVE),
    Feature("role_norm", _A, "role_norm", "0 or 1", "gain or shift of a normalisation", _ADAPTIVE),
    Feature("role_bias", _A, "role_bias", "0 or 1", "bias", _ADAPTIVE),
    Feature("role_bare", _A, "role_bare", "0 or 1", "parameter of no layer module", _ROLES),
    # What its role group and its model are.
    Feature("log_group_tensors", _A, "group_tensors", "nats", "tensors in the role group", _BLOCKS, 0),
    Feature("log_group_share", _A, "group_share", "nats", "its share of elements", _BLOCKS, 0),
    Feature("log_num_parameters", _A, "num_parameters", "nats", "elements of the model", _MUP, 0),
    Feature("log_num_layers", _A, "num_layers", "nats", "modules with a weight", _DEPTH, 0),
    Feature("log_width", _A, "width", "nats", "low median fan-in of the hidden matrices", _MUP, 0),
    Feature("log_output_size", _A, "output_size", "nats", "outputs of the widest head", _TAILS, 0),
    Feature("log_vocabulary", _A, "vocabulary", "nats", "rows of the largest embedding", _VOCAB, 0),
    Feature("embedding_share", _A, "embedding_share", "0 to 1", "share of elements in embeddings", _TAILS),
    Feature("conv_share", _A, "conv_share", "0 to 1", "share of elements in convolutions", _ROLES),
    Feature("vector_share", _A, "vector_share", "0 to 1", "share of tensors in the vector group", _ROLES),
    # What its gradients did in warm-up.
    Feature("zero_share", _S, "zero_share", "0 to 1", "gradient elements that are 0", _TAILS),
    Feature("untouched_row_share", _S, "untouched_row_share", "0 to 1", "rows without gradient", _TAILS),
    Feature("log_rows_touched", _S, "rows_touched", "nats", "rows with a gradient, a batch", _TAILS, 0),
    Feature("row_tail_exponent", _S, "row_tail_exponent", "1", "Zipf exponent of touched rows", _TAILS),
    Feature("row_novelty", _S, "row_novelty", "0 to 1", "chance that a touched row is a new one", _UNSEEN),
    Feature("row_agreement", _S, "row_agreement", "-1 to 1", "cosine of a row's gradients between visits", _OVERFIT),
    Feature("hoyer_sparsity", _S, "hoyer_sparsity", "0 to 1", "Hoyer sparsity of the gradient", "JMLR 5, 2004"),
    Feature(
        "log_signal_to_noise", _S, "signal_to_noise", "nats",
        "squared mean gradient over its variance; batch size over the gradient noise scale", _NOISE, 1e-4,
    ),
    Feature("step_cosine", _S, "step_cosine", "-1 to 1", "cosine of consecutive gradients", _NOISE),
    Feature("sign_agreement", _S, "sign_agreement", "0 to 1", "equal signs in consecutive steps", _SIGN),
    Feature("log_grad_rms", _S, "grad_rms", "nats", "root mean square of the gradient", _BLOCKS, 0),
    Feature("log_relative_grad_rms", _S, "relative_grad_rms", "nats", "the same over the model's", _BLOCKS, 0),
    Feature("log_param_rms", _S, "param_rms", "nats", "RMS of the parameter", _TRUST, 0),
    Feature("log_grad_to_param", _S, "grad_to_param", "nats", "ratio of the two", _TRUST, 0),
    Feature("log_norm_share", _S, "norm_share", "nats", "share of the squared gradient norm", _BLOCKS, 0),
    Feature("norm_trend", _S, "norm_trend", "nats", "change of the log gradient norm", _SHARP),
    Feature("norm_variation", _S, "norm_variation", "nats", "spread of log norms over steps", _TAILS),
    Feature("log_kurtosis", _S, "kurtosis", "nats", "kurtosis of gradient elements", _TAILS, 0),
    Feature("log_hill_index", _S, "hill_index", "nats", "Hill index of gradient elements", "arXiv 1901.06053", 0),
    Feature("second_moment_spread", _S, "second_moment_spread", "nats", "spread of log g^2", _BLOCKS),
    Feature(
        "second_moment_row_spread", _S, "second_moment_row_spread", "nats",
        "spread of log second moments between outputs", _FACTOR,
    ),
    Feature(
        "second_moment_column_spread", _S, "second_moment_column_spread", "nats",
        "spread of log second moments between inputs", _FACTOR,
    ),
    Feature("sign_cosine", _S, "sign_cosine", "0 to 1", "cosine of sign and gradient", "arXiv 1802.04434"),
    Feature("adaptive_cosine", _S, "adaptive_cosine", "0 to 1", "cosine of an Adam step and gradient", _ADAPTIVE),
    Feature("orthogonal_cosine", _S, "orthogonal_cosine", "0 to 1", "cosine of a Muon step and gradient", _SPECTRAL),
    Feature("log_stable_rank", _S, "stable_rank", "nats", "stable rank of a gradient block", _SPECTRAL, 0),
    Feature("log_nuclear_rank", _S, "nuclear_rank", "nats", "squared nuclear to Frobenius ratio", _SPECTRAL, 0),
    Feature("subspace_alignment", _S, "subspace_alignment", "0 to 1", "persistence of its top subspace", _SUBSPACE),
    Feature("log_secant_lipschitz", _S, "secant_lipschitz", "nats", "gradient change over step", _SHARP, 0),
    Feature("log_secant_time", _S, "secant_time", "nats", "the same without units", _SHARP, 0),
    Feature("secant_cosine", _S, "secant_cosine", "-1 to 1", "cosine of step and gradient change", _SHARP),
    Feature("step_alignment", _S, "step_alignment", "-1 to 1", "cosine of step and next descent", "arXiv 1703.04782"),
    Feature(
        "step_generalisation", _S, "step_generalisation", "-1 to 2",
        "gain of a step on the next batch over that on its own", _OVERFIT,
    ),
    Feature("log_relative_step", _S, "relative_step", "nats", "step over parameter", _TRUST, 0),
    Feature("group_grad_spread", _S, "group_grad_spread", "nats", "spread of log RMS in the group", _BLOCKS),
    Feature("model_grad_spread", _S, "model_grad_spread", "nats", "the same in the model", "arXiv 2502.00213"),
    # Measured at the start, where batches and a loss are given (autoopt.statistics.curvature).
    Feature("log_measured_rate_sgd", _S, "measured_rate_sgd", "nats", "best SGD rate for a step", _SHARP, 0),
    Feature("log_measured_rate_adamw", _S, "measured_rate_adamw", "nats", "best Adam rate for a step", _SHARP, 0),
    Feature("log_measured_rate_lion", _S, "measured_rate_lion", "nats", "best sign rate for a step", _SHARP, 0),
    Feature("log_measured_rate_muon", _S, "measured_rate_muon", "nats", "best Muon rate for a step", _SHARP, 0),
    Feature("log_curvature_mean", _S, "curvature_mean", "nats", "mean diagonal of the Hessian", _BLOCKS, 0),
    Feature("curvature_spread", _S, "curvature_spread", "nats", "spread of its log over the layers", _BLOCKS),
    Feature("log_sharpness", _S, "sharpness", "nats", "largest eigenvalue of the Hessian", _SHARP, 0),
    Feature(
        "log_start_signal_to_noise", _S, "start_signal_to_noise", "nats",
        "signal-to-noise ratio at the start, parameters held fixed", _NOISE, 1e-4,
    ),
    # Read from the layer's input then (autoopt.statistics.activation).
    Feature("log_input_rms", _S, "input_rms", "nats", "RMS of the layer's input", _MUP, 0),
    Feature("log_input_stable_rank", _S, "input_stable_rank", "nats", "stable rank of the layer's input", _SPECTRAL, 0),
    Feature("dead_input_share", _S, "dead_input_share", "0 to 1", "inputs that are always 0", "arXiv 1903.06733"),
    Feature(
        "log_spectral_advantage", _S, "spectral_advantage", "nats",
        "nuclear rank of the gradient over stable rank of the input", _SPECTRAL, 0,
    ),
    # What the run is.
    Feature("log_batch_size", _C, "batch_size", "nats", "examples in a batch", "arXiv 2506.12543", 0),
    Feature("log_total_steps", _C, "total_steps", "nats", "horizon of the run", "arXiv 2307.06440", 0),
    Feature("log_loss_start", _C, "loss_start", "nats", "loss of the first step", _SHARP, 0),
    Feature("loss_drop", _C, "loss_drop", "1", "relative drop of the loss in warm-up", _SHARP),
    Feature("log_batch_outputs", _C, "batch_outputs", "nats", "predictions in a batch, such as tokens", _REPEATS, 0),
    Feature("output_entropy", _C, "output_entropy", "0 to 1", "relative entropy of the first outputs", _ADAPTIVE),
    Feature("log_noise_ratio", _C, "noise_ratio", "nats", "gradient noise scale over batch size", _NOISE, 1e-4),
    Feature("frozen_share", _C, "frozen_share", "0 to 1", "share of the model's elements that are frozen", _ROLES),
    Feature("dtype_bits", _C, "dtype_bits", "bits", "bits of a parameter's element", "rounding"),
    # How much of its data the run will show: over-fitting or under-training.
    Feature("log_examples_seen", _E, "examples_seen", "nats", "batch size times horizon", _REPEATS, 0),
    Feature("log_examples_per_parameter", _E, "examples_per_parameter", "nats", "the same over elements", _REPEATS, 0),
    Feature(
        "log_group_examples_per_parameter", _E, "group_examples_per_parameter", "nats",
        "the same over the role group's elements", _REPEATS, 0,
    ),
    Feature(
        "log_outputs_per_parameter", _E, "outputs_per_parameter", "nats",
        "predictions of the run over elements", "arXiv 2203.15556", 0,
    ),
    Feature("log_row_visits", _E, "row_visits", "nats", "steps of the run that touch a mean row", _TAILS, 0),
    Feature("log_epochs", _E, "epochs", "nats", "times that the run sees each distinct example", _REPEATS, 0),
    Feature(
        "log_parameters_per_example", _E, "parameters_per_example", "nats",
        "elements over distinct examples", "arXiv 1611.03530", 0,
    ),
)
# fmt: on
"""Every meta-feature, in the order of the columns."""

CONTEXT_KEYS: tuple[str, ...] = (*(f.key for f in FEATURES if f.kind == CONTEXT), "num_examples")
"""The keys that `extract` takes as context; `num_examples` are the distinct ones of the training data."""


@dataclass(frozen=True, eq=False)
class Features:
    """A table of meta-features.

    Attributes:
        columns: Feature names, in the order of `FEATURES`.
        rows: Parameter names, or role groups after `aggregate_by_group`.
        groups: Role group of each row.
        weights: Elements behind each row.
        values: `(num_rows, num_columns)` float64, NaN where unknown.
    """

    columns: tuple[str, ...]
    rows: tuple[str, ...]
    groups: tuple[str, ...]
    weights: NDArray[np.float64]
    values: NDArray[np.float64]

    @cached_property
    def _index(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.columns)}

    def column(self, name: str) -> NDArray[np.float64]:
        """The values of one feature, `(num_rows,)`.

        Raises:
            KeyError: If there is no such feature.
        """
        return self.values[:, self._index[name]]

    def to_rows(self) -> list[dict[str, Any]]:
        """One dict a row: `"group"`, then every feature; for recording and for tables."""
        return [
            {"group": group, **dict(zip(self.columns, map(float, values), strict=True))}
            for group, values in zip(self.groups, self.values, strict=True)
        ]


def extract(
    layers: Sequence[LayerInfo],
    statistics: WarmupStatistics | None = None,
    context: Mapping[str, float] | None = None,
) -> Features:
    """The meta-features of every layer: one row a layer, one column a row of `FEATURES`.

    Args:
        layers: `Architecture.layers`.
        statistics: What warm-up measured; without it those columns are NaN. Its `task` facts serve
            as context where `context` has no value.
        context: Values for `CONTEXT_KEYS`; what is absent is NaN.

    Raises:
        ProfileError: If there are no layers, or a context key is unknown.
    """
    if not layers:
        raise ProfileError("there are no layers to extract features of: the model has no trainable parameter")
    context = dict(context or {})
    unknown = sorted(set(context) - set(CONTEXT_KEYS))
    if unknown:
        raise ProfileError(f"unknown context {unknown[0]!r}; features use {', '.join(CONTEXT_KEYS)}")
    if statistics is not None:
        context = {key: statistics.task[key] for key in CONTEXT_KEYS if key in statistics.task} | context
    roles = [f.key.removeprefix("role_") for f in FEATURES if f.key.startswith("role_")]
    known = [{} if statistics is None else statistics.layers.get(layer.name, {}) for layer in layers]
    raw = {
        ARCHITECTURE: architecture_values(layers, roles),
        STATISTICS: statistics_values(layers, known),
        CONTEXT: [context] * len(layers),
        EXPOSURE: exposure_values(layers, known, context),
    }
    columns = [_transformed(f, np.array([row.get(f.key, NAN) for row in raw[f.kind]], np.float64)) for f in FEATURES]
    return Features(
        tuple(f.name for f in FEATURES),
        tuple(layer.name for layer in layers),
        tuple(layer.group for layer in layers),
        np.array([max(1, layer.numel) for layer in layers], dtype=np.float64),
        np.stack(columns, axis=1),
    )


def aggregate_by_group(features: Features) -> Features:
    """One row a role group: the mean over its layers, weighted by elements, of what is known.

    Logs are averaged as logs, so scales become geometric means; role columns become shares of the
    group's elements. A column is NaN where it is for every layer of the group. Groups come in the
    order of their first layer.
    """
    names = tuple(dict.fromkeys(features.groups))
    values = np.full((len(names), len(features.columns)), NAN)
    weights = np.zeros(len(names))
    for i, name in enumerate(names):
        members = np.array([group == name for group in features.groups])
        known = ~np.isnan(features.values[members])
        weight = features.weights[members][:, None] * known
        total = weight.sum(0)
        summed = np.sum(np.where(known, features.values[members], 0.0) * weight, axis=0)
        values[i] = np.divide(summed, total, out=np.full(len(total), NAN), where=total > 0)
        weights[i] = features.weights[members].sum()
    return Features(features.columns, names, names, weights, values)


def _transformed(feature: Feature, raw: NDArray[np.float64]) -> NDArray[np.float64]:
    known = np.where(np.isfinite(raw), raw, NAN)
    if feature.floor is None:
        return known
    known = np.maximum(known, feature.floor)
    return np.log(known, out=np.full(len(known), NAN), where=known > 0)
