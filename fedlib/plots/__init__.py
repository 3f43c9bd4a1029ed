"""The pictures of the notebooks and the report: of prepared sets (`images`) and of the run store (`results`)."""

from fedlib.plots.images import browse, contours, gallery, intensities, partitions, volumes, worst_middle_best
from fedlib.plots.picture import COLOURS, Picture
from fedlib.plots.results import (
    arm_name,
    client_curves,
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
    "browse",
    "client_curves",
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
    "worst_middle_best",
]
