"""Figures of the notebooks and the report: of prepared sets (`images`) and of the run store (`results`)."""

from fedlib.views.plots.images import contours, gallery, intensities, masks, partitions, volumes, worst_first
from fedlib.views.plots.picture import COLOURS, Picture
from fedlib.views.plots.results import (
    arm_name,
    comparison,
    confusion,
    differences,
    learning_curves,
    reliability,
    spread,
    traffic,
)

__all__ = [
    "COLOURS",
    "Picture",
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
    "reliability",
    "spread",
    "traffic",
    "volumes",
    "worst_first",
]
