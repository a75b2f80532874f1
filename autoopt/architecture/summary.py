"""The description of a whole model: its layers in order, and totals over them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from statistics import median_low
from typing import Any

from autoopt.architecture.layer import ROLE_GROUPS, LayerInfo
from autoopt.errors import ModelError

ARCHITECTURE_SCHEMA_VERSION = 1

_WEIGHT_ROLES = frozenset(ROLE_GROUPS) - {"norm", "bias", "bare"}


@dataclass(frozen=True)
class Architecture(Mapping[str, LayerInfo]):
    """Every trainable parameter of a model, by name, in registration order.

    A mapping: `architecture["fc.weight"]` is a `LayerInfo`, `"fc.weight" in architecture`, and
    iteration goes over the names.

    Attributes:
        layers: One entry for each trainable parameter; a shared tensor has one entry.
        num_frozen_parameters: Elements of the parameters that do not require gradients.
    """

    layers: tuple[LayerInfo, ...]
    num_frozen_parameters: int = 0

    def __getitem__(self, name: str) -> LayerInfo:
        """The layer of a parameter's first name.

        Raises:
            KeyError: If no trainable parameter has that name.
        """
        try:
            return self._by_name[name]
        except KeyError:
            raise KeyError(
                f"no trainable parameter is named {name!r}; see `.names` (a shared tensor is listed "
                "under its first name, a frozen one not at all)"
            ) from None

    def __iter__(self) -> Iterator[str]:
        """The names, in registration order."""
        return iter(self.names)

    def __len__(self) -> int:
        """The number of trainable parameter tensors."""
        return len(self.layers)

    @cached_property
    def _by_name(self) -> dict[str, LayerInfo]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The parameters' names, in registration order."""
        return tuple(layer.name for layer in self.layers)

    @cached_property
    def groups(self) -> dict[str, tuple[LayerInfo, ...]]:
        """The layers of each role group that occurs, in order of `ROLE_GROUPS`' values."""
        found: dict[str, list[LayerInfo]] = {group: [] for group in ROLE_GROUPS.values()}
        for layer in self.layers:
            found[layer.group].append(layer)
        return {group: tuple(layers) for group, layers in found.items() if layers}

    @cached_property
    def num_parameters(self) -> int:
        """Trainable elements; a shared tensor counts once."""
        return sum(layer.numel for layer in self.layers)

    @property
    def frozen_share(self) -> float:
        """Share of the model's elements that are frozen, 0 to 1."""
        total = self.num_parameters + self.num_frozen_parameters
        return self.num_frozen_parameters / total if total else 0.0

    @cached_property
    def num_layers(self) -> int:
        """Modules that own a trainable weight: embeddings, matrices, convolutions, heads."""
        return len({layer.depth for layer in self.layers if layer.role in _WEIGHT_ROLES})

    @cached_property
    def width(self) -> int:
        """The hidden width: the (low) median fan-in of the hidden matrices.

        Where there are none, that of the convolutions, else of the heads; where the model has
        nothing but embeddings, their dimension; 0 for vectors only.
        """
        for group in ("matrix", "conv", "head"):
            if group in self.groups:
                return median_low(layer.fan_in for layer in self.groups[group])
        if "embedding" in self.groups:
            return median_low(layer.fan_out for layer in self.groups["embedding"])
        return 0

    def to_dict(self) -> dict[str, Any]:
        """The architecture as JSON-compatible values."""
        return {
            "schema_version": ARCHITECTURE_SCHEMA_VERSION,
            "num_frozen_parameters": self.num_frozen_parameters,
            "layers": [asdict(layer) | {"shape": list(layer.shape), "tied": list(layer.tied)} for layer in self.layers],
        }

    def to_json(self, indent: int | None = None) -> str:
        """The architecture as JSON text; `from_json` gives an equal one back."""
        return json.dumps(self.to_dict(), indent=indent)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> Architecture:
        """The architecture that `to_dict` wrote.

        Raises:
            ModelError: If the value is no architecture, is damaged, or has another schema version.
        """
        if not isinstance(value, Mapping) or "schema_version" not in value:
            raise ModelError("this is not an architecture: it has no 'schema_version'")
        version = value["schema_version"]
        if version != ARCHITECTURE_SCHEMA_VERSION:
            raise ModelError(
                f"the architecture has schema version {version!r}, this autoopt reads "
                f"{ARCHITECTURE_SCHEMA_VERSION}; use the autoopt release that wrote it"
            )
        try:
            layers = tuple(_layer_from_dict(layer) for layer in value["layers"])
            return cls(layers, int(value["num_frozen_parameters"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ModelError(f"the architecture is damaged: {error!r}") from error

    @classmethod
    def from_json(cls, text: str) -> Architecture:
        """The architecture in a JSON text.

        Raises:
            ModelError: If the text is not JSON, no architecture, or has another schema version.
        """
        try:
            value = json.loads(text)
        except ValueError as error:
            raise ModelError(f"the architecture is not JSON: {error}") from error
        return cls.from_dict(value)


def _layer_from_dict(value: Mapping[str, Any]) -> LayerInfo:
    known = {field.name for field in fields(LayerInfo)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise ValueError(f"unknown layer field {unknown[0]!r}")
    if value["role"] not in ROLE_GROUPS:
        raise ValueError(f"unknown role {value['role']!r} of layer {value['name']!r}")
    sequences = {"shape": tuple(map(int, value["shape"])), "tied": tuple(value.get("tied", ()))}
    return LayerInfo(**{**value, **sequences})
