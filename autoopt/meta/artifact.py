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
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoopt.errors import ArtifactError
from autoopt.meta.encoding import encode_candidate
from autoopt.meta.forms import CandidateForms
from autoopt.meta.process import Process

ARTIFACT_SCHEMA_VERSION = 2
FILE_NAME = "selector.npz"

NEVER = 1e6
"""The caution of a role group whose choices did not gain on held-out families: it keeps the default."""

OWN_CAUTION = 0.5
"""The caution with which what gained in own runs is judged (`scripts/learn_from_own_runs.py` compares others)."""

FORMS_BYTES = 2_500_000
"""Bytes that all forms of a file may take; those of the largest role groups are left out above, and worked out anew."""

_FORMS = ("anchors", "means", "reductions", "priors")
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
        stored_forms: The forms of the candidates' predictions, where they have been worked out. Whoever changes
            the process or the candidates must not keep them.
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
    stored_forms: CandidateForms | None = None

    def forms(self, default: str) -> CandidateForms:
        """The forms of the candidates' predictions; worked out at the first call where none are stored.

        Args:
            default: Canonical JSON of the role group's default configuration.
        """
        if self.stored_forms is not None:
            return self.stored_forms
        if default not in self._worked_out:
            codes = np.stack([encode_candidate(candidate, default) for candidate in self.candidates])
            self._worked_out[default] = CandidateForms.of(self.process, codes)
        return self._worked_out[default]

    @cached_property
    def _worked_out(self) -> dict[str, CandidateForms]:
        return {}

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

    @cached_property
    def _spread(self) -> NDArray[np.float64]:
        """Spread of every feature over the recorded tasks."""
        known = ~np.isnan(self.reference).all(axis=0)
        spread = np.ones(self.reference.shape[1])
        if known.any():
            spread[known] = np.nanstd(self.reference[:, known], axis=0)
        return np.where(spread > 1e-9, spread, 1.0)

    def distances(self, x: NDArray[np.float64], to: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Root mean squared standardised distance to each recorded task over the features both have.

        Args:
            x: Meta-features, `(num_features,)`.
            to: Rows to which the distance is measured; the recorded tasks without it.
        """
        difference = ((self.reference if to is None else to) - x) / self._spread
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

    def forms(self, group: str) -> CandidateForms:
        """The forms of the predictions for a role group's candidates."""
        return self.groups[group].forms(self._defaults[group])

    def rank(self, group: str, values: Mapping[str, float]) -> list[CandidatePrediction]:
        """All candidates for a role group, the best first.

        The order weighs gain against uncertainty with a caution of at most 1, so that it says
        something also where the role group's own caution rules every change out.
        """
        model = self.groups.get(group)
        if model is None or not model.candidates:
            return []
        x = self.columns(values)
        mean, std = self.forms(group).predict(model.process, x)
        std = model.spread * std
        found = [
            CandidatePrediction(config, float(m), float(s), float(m + model.caution_for(config, x) * s))
            for config, m, s in zip(model.candidates, mean, std, strict=True)
        ]
        return sorted(found, key=lambda candidate: candidate.mean + min(model.caution, 1.0) * candidate.std)

    def favourite(self, group: str, values: Mapping[str, float], usable: Callable[[str], bool]) -> str | None:
        """The candidate whose pessimistic prediction gains most, None where none gains more than the margin.

        Args:
            group: Role group.
            values: Its meta-features.
            usable: Whether a candidate may be chosen.
        """
        ranked = [candidate for candidate in self.rank(group, values) if usable(candidate.config)]
        best = min(ranked, key=lambda candidate: candidate.pessimistic, default=None)
        return best.config if best is not None and best.pessimistic < -self.margin else None

    def is_trusted(self, group: str) -> bool:
        """Whether a choice may be made for a role group: choices gained on held-out families, or in own runs."""
        return group in self.groups and (self.groups[group].caution < NEVER or bool(self.groups[group].own))

    @cached_property
    def _defaults(self) -> dict[str, str]:
        """Role group -> canonical JSON of its default configuration."""
        groups = json.loads(self.default)["groups"]
        return {name: json.dumps(value, sort_keys=True, separators=(",", ":")) for name, value in groups.items()}

    def contributions(self, group: str, values: Mapping[str, float], config: str) -> dict[str, float]:
        """Feature -> what it adds to the prediction of one candidate (log loss)."""
        model = self.groups[group]
        parts = self.forms(group).contributions(model.process, self.columns(values), model.candidates.index(config))
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
    arrays |= _forms_of(predictor)
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
            # A fixed date, so that refitting gives the same bytes. Reductions hold nothing to compress.
            way = zipfile.ZIP_STORED if name.endswith("/reductions") else zipfile.ZIP_DEFLATED
            archive.writestr(zipfile.ZipInfo(f"{name}.npy", (2020, 1, 1, 0, 0, 0)), part.getvalue(), compress_type=way)
    target = Path(path)
    temporary = target.with_suffix(".tmp")
    temporary.write_bytes(buffer.getvalue())
    os.replace(temporary, target)
    return digest


def _forms_of(predictor: Predictor) -> dict[str, np.ndarray]:
    """The arrays of the forms that are stored: those of the smallest role groups, as far as they fit."""
    known = {name: predictor.forms(name) for name, model in predictor.groups.items() if model.candidates}
    arrays: dict[str, np.ndarray] = {}
    num_bytes = 0
    for name in sorted(known, key=lambda name: (known[name].num_bytes, name)):
        num_bytes += known[name].num_bytes
        if num_bytes <= FORMS_BYTES:
            arrays |= {f"{name}/{key}": getattr(known[name], key) for key in _FORMS}
    return arrays


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
            stored_forms=_stored_forms(name, arrays),
        )
    return Predictor(
        default=header["default"],
        features=tuple(header["features"]),
        groups=groups,
        margin=header["margin"],
        info=header["info"],
        sha256=digest,
    )


def _stored_forms(name: str, arrays: Mapping[str, np.ndarray]) -> CandidateForms | None:
    # Files from before there were any, and those of very large role groups, have none.
    if f"{name}/{_FORMS[0]}" not in arrays:
        return None
    return CandidateForms(**{key: arrays[f"{name}/{key}"] for key in _FORMS})


def _digest(header: str, arrays: Mapping[str, np.ndarray]) -> str:
    sha = hashlib.sha256(header.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(array.tobytes())
    return sha.hexdigest()
