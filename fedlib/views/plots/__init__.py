"""Figures of the notebooks and the report: of prepared sets (`images`) and of the run store (`results`)."""

from fedlib.views.plots.figure import COLOURS, AccessibleFigure
from fedlib.views.plots.images import contours, gallery, intensities, masks, partitions, prediction, rank_by_error, volumes
from fedlib.views.plots.results import (
    arm_name,
    client_scores,
    communication,
    comparison,
    confusion,
    differences,
    learning_curves,
    reliability,
)

__all__ = [
    "COLOURS",
    "AccessibleFigure",
    "arm_name",
    "comparison",
    "confusion",
    "contours",
    "differences",
    "gallery",
    "intensities",
    "learning_curves",
    "masks",
    "partitions",
    "prediction",
    "reliability",
    "client_scores",
    "communication",
    "volumes",
    "rank_by_error",
]
