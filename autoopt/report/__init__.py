"""A recommendation and the forms it is read in: terminal, HTML, Markdown, JSON and PyTorch code."""

from autoopt.report.content import (
    Candidate,
    Event,
    Evidence,
    LayerRecommendation,
    NearestTask,
    ReportError,
)
from autoopt.report.grouping import LayerGroup, NamePattern, group_layers
from autoopt.report.recommendation import RECOMMENDATION_SCHEMA_VERSION, Recommendation

__all__ = [
    "RECOMMENDATION_SCHEMA_VERSION",
    "Candidate",
    "Event",
    "Evidence",
    "LayerGroup",
    "LayerRecommendation",
    "NamePattern",
    "NearestTask",
    "Recommendation",
    "ReportError",
    "group_layers",
]
