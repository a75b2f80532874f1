"""A selector whose predictions know what short runs showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields

from autoopt.meta.artifact import CandidatePrediction, Predictor
from autoopt.meta.halving import Contestant, RaceResult


@dataclass(frozen=True, eq=False)
class RacedPredictor(Predictor):
    """A selector, with the candidates that ran judged by their posterior and all others as before.

    Attributes:
        ran: (role group, canonical JSON of the candidate) -> the contestant after its runs.
    """

    ran: Mapping[tuple[str, str], Contestant] = field(default_factory=dict)

    @classmethod
    def after(cls, predictor: Predictor, result: RaceResult) -> RacedPredictor:
        """The selector after a race."""
        known = {item.name: getattr(predictor, item.name) for item in fields(Predictor)}
        return cls(**known, ran={(item.group, item.config): item for item in result.contestants})

    def rank(self, group: str, values: Mapping[str, float]) -> list[CandidatePrediction]:
        """All candidates for a role group, the best first; see `Predictor.rank`."""
        found = [self._judged(group, candidate) for candidate in super().rank(group, values)]
        # What may be applied stands first; the order of the others is the selector's own.
        return sorted(found, key=lambda candidate: min(candidate.pessimistic, -self.margin))

    def is_trusted(self, group: str) -> bool:
        """Whether choices for a role group may be made: as before, or since a candidate of it ran."""
        return super().is_trusted(group) or any(raced == group for raced, _ in self.ran)

    def _judged(self, group: str, candidate: CandidatePrediction) -> CandidatePrediction:
        contestant = self.ran.get((group, candidate.config))
        if contestant is None or not contestant.is_moved:
            return candidate
        mean, std = contestant.posterior
        return CandidatePrediction(candidate.config, mean, std, contestant.pessimistic(candidate.pessimistic))
