"""The pictures of the notebooks and the report: of prepared sets (`images`) and of the run store (`results`)."""

from fedlib.views.plots.images import contours, gallery, intensities, partitions, volumes, worst_first
from fedlib.views.plots.picture import COLOURS, Picture
from fedlib.views.plots.results import (
    arm_name,
    comparison,
    confusion,
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
    "gallery",
    "intensities",
    "learning_curves",
    "partitions",
    "reliability",
    "spread",
    "traffic",
    "volumes",
    "worst_first",
]
