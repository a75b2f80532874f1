"""The trained selector as plain data, and what applies it: NumPy arrays and JSON, never a pickle.

One `.npz` file holds the arrays and a JSON header; the header holds the SHA-256 of the arrays.
Loading and applying it needs NumPy alone.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoopt.errors import ArtifactError
from autoopt.meta.encoding import encode_candidate
from autoopt.meta.process import Process

ARTIFACT_SCHEMA_VERSION = 2
FILE_NAME = "selector.npz"

NEVER = 1e6
"""The caution of a role group whose choices did not gain on held-out families: it keeps the default."""

OWN_CAUTION = 0.5
"""The caution with which what gained in own runs is judged (`scripts/learn_from_own_runs.py` compares others)."""

_ARRAYS = ("x", "weights", "center", "spread", "relevance", "lengths", "noise")
_NUMBERS = ("common", "linear", "local", "task_noise")


@dataclass(frozen=True)
class CandidatePrediction:
    """What the selector expects of one candidate configuration of a role group.

    Attributes:
        config: Canonical JSON of the role group's configuration.
        mean: Expected log ratio to the default, negative is better.
        std: Its standard deviation.
        pessimistic: The upper end that the decision looks at.
    """

    config: str
    mean: float
    std: float
    pessimistic: float


@dataclass(frozen=True, eq=False)
class GroupModel:
    """What was learned for one role group.

    Attributes:
        process: The Gaussian process over meta-features and the candidate's columns.
        candidates: Canonical JSON of the configurations that were recorded often enough.
        spread: Factor on predicted standard deviations.
        caution: How many standard deviations the decision looks to the bad side.
        reference: Meta-features of the recorded tasks, `(num_tasks, num_features)`.
        tasks: Their names.
        winners: The best recorded configuration of each, in words.
        reach: Distance to the nearest recorded task beyond which a model counts as unlike all of them.
        own: Candidates that gained in the user's own runs (`autoopt.meta.own_learning`).
        own_reference: Meta-features of the tasks of own runs, `(num_own_tasks, num_features)`.
    """

    process: Process
    candidates: tuple[str, ...]
    spread: float
    caution: float
    reference: NDArray[np.float64]
    tasks: tuple[str, ...]
    winners: tuple[str, ...]
    reach: float
    own: tuple[str, ...] = ()
    own_reference: NDArray[np.float64] | None = None

    def caution_for(self, config: str, x: NDArray[np.float64], own_caution: float | None = OWN_CAUTION) -> float:
        """The caution with which a candidate is judged: that of the role group, or a smaller one.

        The latter where the candidate gained in the user's own runs of a model that is alike: then a choice
        does not rest on what transfers between families.

        Args:
            config: The candidate.
            x: Meta-features of the role group, `(num_features,)`.
            own_caution: The smaller caution; None for that of the role group.
        """
        if own_caution is None or config not in self.own or self.own_reference is None:
            return self.caution
        alike = float(self.distances(x, self.own_reference).min()) <= self.reach
        return min(self.caution, own_caution) if alike else self.caution

    def scales(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Median and spread of every feature over the recorded tasks."""
        center = _nan_safe(np.nanmedian, self.reference, 0.0)
        spread = _nan_safe(np.nanstd, self.reference, 1.0)
        return center, np.where(spread > 1e-9, spread, 1.0)

    def distances(self, x: NDArray[np.float64], to: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Root mean squared standardised distance to each recorded task over the features both have.

        Args:
            x: Meta-features, `(num_features,)`.
            to: Rows to which the distance is measured; the recorded tasks without it.
        """
        _, spread = self.scales()
        difference = ((self.reference if to is None else to) - x) / spread
        known = ~np.isnan(difference)
        squared = np.where(known, np.minimum(difference**2, 9.0), 0.0).sum(axis=1)
        return np.sqrt(squared / np.maximum(1, known.sum(axis=1)))


@dataclass(frozen=True, eq=False)
class Predictor:
    """A trained selector, ready to be applied.

    Attributes:
        default: Canonical JSON of the calibrated default recipe.
        features: Names of the meta-features, in the order of the columns.
        groups: Role group -> what was learned for it.
        margin: Pessimistic gain (log loss) below which the default is kept.
        info: Facts about the training: number of tasks and trials, versions, calibrated intervals.
        sha256: Hash of the arrays.
    """

    default: str
    features: tuple[str, ...]
    groups: dict[str, GroupModel]
    margin: float
    info: dict[str, Any] = field(default_factory=dict)
    sha256: str = ""

    def columns(self, values: Mapping[str, float]) -> NDArray[np.float64]:
        """The meta-features in the selector's order; NaN where one is missing."""
        return np.array([float(values.get(name, float("nan"))) for name in self.features])

    def rank(self, group: str, values: Mapping[str, float]) -> list[CandidatePrediction]:
        """All candidates for a role group, the best first.

        The order weighs gain against uncertainty with a caution of at most 1, so that it says
        something also where the role group's own caution rules every change out.
        """
        model = self.groups.get(group)
        if model is None or not model.candidates:
            return []
        mean, std = model.process.predict(self._rows(group, values))
        std = model.spread * std
        x = self.columns(values)
        found = [
            CandidatePrediction(config, float(m), float(s), float(m + model.caution_for(config, x) * s))
            for config, m, s in zip(model.candidates, mean, std, strict=True)
        ]
        return sorted(found, key=lambda candidate: candidate.mean + min(model.caution, 1.0) * candidate.std)

    def favourite(self, group: str, values: Mapping[str, float], usable: Callable[[str], bool]) -> str | None:
        """The candidate whose pessimistic prediction gains most, None where none gains more than the margin.

        That of `rank`, but uncertainty is worked out only for what gains enough without it.

        Args:
            group: Role group.
            values: Its meta-features.
            usable: Whether a candidate may be chosen.
        """
        model = self.groups.get(group)
        if model is None or not model.candidates:
            return None
        rows, x = self._rows(group, values), self.columns(values)
        kept = [
            index
            for index, mean in enumerate(model.process.mean(rows))
            if mean < -self.margin and usable(model.candidates[index])
        ]
        if not kept:
            return None
        mean, std = model.process.predict(rows[kept])
        names = [model.candidates[index] for index in kept]
        worst = [
            float(m + model.caution_for(name, x) * model.spread * s)
            for name, m, s in zip(names, mean, std, strict=True)
        ]
        best = min(range(len(kept)), key=worst.__getitem__)
        return names[best] if worst[best] < -self.margin else None

    def is_trusted(self, group: str) -> bool:
        """Whether a choice may be made for a role group: choices gained on held-out families, or in own runs."""
        return group in self.groups and (self.groups[group].caution < NEVER or bool(self.groups[group].own))

    def _rows(self, group: str, values: Mapping[str, float]) -> NDArray[np.float64]:
        model = self.groups[group]
        recipe = json.loads(self.default)
        default = json.dumps(recipe["groups"][group], sort_keys=True, separators=(",", ":"))
        x = self.columns(values)
        return np.stack([np.concatenate([x, encode_candidate(c, default)]) for c in model.candidates])

    def contributions(self, group: str, values: Mapping[str, float], config: str) -> dict[str, float]:
        """Feature -> what it adds to the prediction of one candidate (log loss)."""
        model = self.groups[group]
        index = model.candidates.index(config)
        parts = model.process.contributions(self._rows(group, values)[index])
        return dict(zip(self.features, map(float, parts), strict=True))

    def percentile(self, group: str, feature: str, value: float) -> float | None:
        """Where a value lies among the recorded tasks, 0 to 100, or None where it is unknown."""
        if group not in self.groups or feature not in self.features or not np.isfinite(value):
            return None
        column = self.groups[group].reference[:, self.features.index(feature)]
        column = column[~np.isnan(column)]
        return float(100.0 * np.mean(column <= value)) if len(column) else None

    def nearest(self, group: str, values: Mapping[str, float], count: int = 3) -> list[tuple[str, float, str]]:
        """The recorded tasks most like this role group: name, distance, what won there."""
        model = self.groups.get(group)
        if model is None or not len(model.tasks):
            return []
        distances = model.distances(self.columns(values))
        order = np.argsort(distances)[:count]
        return [(model.tasks[i], float(distances[i]), model.winners[i]) for i in order]

    def is_far(self, group: str, values: Mapping[str, float]) -> bool:
        """Whether a role group is unlike everything recorded."""
        model = self.groups.get(group)
        if model is None or not len(model.tasks):
            return True
        return float(model.distances(self.columns(values)).min()) > model.reach


def save(predictor: Predictor, path: str | os.PathLike[str]) -> str:
    """The SHA-256 of the artifact, after writing it atomically; equal content gives equal bytes."""
    arrays: dict[str, np.ndarray] = {}
    groups: dict[str, Any] = {}
    for name, model in predictor.groups.items():
        for key in _ARRAYS:
            arrays[f"{name}/{key}"] = getattr(model.process, key)
        arrays[f"{name}/reference"] = model.reference
        groups[name] = {
            "candidates": list(model.candidates),
            "process": {key: float(getattr(model.process, key)) for key in _NUMBERS},
            "spread": model.spread,
            "caution": model.caution,
            "tasks": list(model.tasks),
            "winners": list(model.winners),
            "reach": model.reach,
            **({"own": list(model.own)} if model.own else {}),
        }
        if model.own_reference is not None:
            arrays[f"{name}/own_reference"] = model.own_reference
    header = {
        "schema_version": ARTIFACT_SCHEMA_VERSION,
        "default": predictor.default,
        "features": list(predictor.features),
        "margin": predictor.margin,
        "info": predictor.info,
        "groups": groups,
    }
    text = json.dumps(header, sort_keys=True)
    digest = _digest(text, arrays)
    arrays["header"] = np.frombuffer(text.encode(), dtype=np.uint8)
    arrays["sha256"] = np.frombuffer(digest.encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(arrays):
            part = io.BytesIO()
            np.lib.format.write_array(part, np.ascontiguousarray(arrays[name]), allow_pickle=False)
            # A fixed date, so that refitting gives the same bytes.
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (2020, 1, 1, 0, 0, 0)), part.getvalue(),
                             compress_type=zipfile.ZIP_DEFLATED)  # fmt: skip
    target = Path(path)
    temporary = target.with_suffix(".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, target)
    return digest


def shipped_path() -> Path:
    """Where the shipped artifact lies: in the installed package, else in the checkout.

    Raises:
        ArtifactError: If there is none.
    """
    packaged = Path(str(resources.files("autoopt"))) / "data" / FILE_NAME
    checkout = Path(str(resources.files("autoopt"))).parent / "meta_data" / FILE_NAME
    for path in (packaged, checkout):
        if path.exists():
            return path
    raise ArtifactError(
        f"the selector artifact is missing ({packaged}); reinstall autoopt, or pass selector='default' to keep "
        "the calibrated default"
    )


def load(path: str | os.PathLike[str] | None = None) -> Predictor:
    """The selector in an artifact file; the shipped one without a path.

    Raises:
        ArtifactError: If the file is missing, truncated, corrupted, or of another schema; the message
            says which.
    """
    target = shipped_path() if path is None else Path(path)
    way_out = "pass selector='default' to keep the calibrated default, or retrain with scripts/train_selector.py"
    if not target.exists():
        raise ArtifactError(f"there is no selector artifact at {target}; {way_out}")
    try:
        # From memory: a damaged archive would leave the file open.
        archive = np.load(io.BytesIO(target.read_bytes()), allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("a single array, not an archive")
        with archive:
            arrays = {name: archive[name] for name in archive.files}
        text = bytes(arrays.pop("header")).decode()
        digest = bytes(arrays.pop("sha256")).decode()
        header = json.loads(text)
        version = header["schema_version"]
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
        RuntimeError,
    ) as error:
        raise ArtifactError(f"the selector artifact {target} is truncated or corrupted ({error}); {way_out}") from error
    if version != ARTIFACT_SCHEMA_VERSION:
        relation = "newer" if version > ARTIFACT_SCHEMA_VERSION else "older"
        raise ArtifactError(
            f"the selector artifact {target} has the {relation} schema version {version}, this autoopt reads "
            f"{ARTIFACT_SCHEMA_VERSION}; install the matching release, or {way_out}"
        )
    if _digest(text, arrays) != digest:
        raise ArtifactError(f"the selector artifact {target} is corrupted: its SHA-256 does not match; {way_out}")
    groups = {}
    for name, value in header["groups"].items():
        groups[name] = GroupModel(
            process=Process(**{key: arrays[f"{name}/{key}"] for key in _ARRAYS}, **value["process"]),
            candidates=tuple(value["candidates"]),
            spread=value["spread"],
            caution=value["caution"],
            reference=arrays[f"{name}/reference"],
            tasks=tuple(value["tasks"]),
            winners=tuple(value["winners"]),
            reach=value["reach"],
            own=tuple(value.get("own", ())),
            own_reference=arrays.get(f"{name}/own_reference"),
        )
    return Predictor(
        default=header["default"],
        features=tuple(header["features"]),
        groups=groups,
        margin=header["margin"],
        info=header["info"],
        sha256=digest,
    )


def _digest(header: str, arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()


def _nan_safe(function: Any, values: np.ndarray, fallback: float) -> np.ndarray:
    result = np.full(values.shape[1], fallback)
    known = ~np.isnan(values).all(axis=0)
    if known.any():
        result[known] = function(values[:, known], axis=0)
    return result
