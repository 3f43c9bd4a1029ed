"""Figures of the notebooks and the report: of prepared sets (`images`) and of the run store (`results`)."""

from fedlib.analysis import arm_name
from fedlib.views.plots.figure import AccessibleFigure
from fedlib.views.plots.images import contours, gallery, intensities, masks, partitions, prediction, rank_by_error, sites
from fedlib.views.plots.results import (
    by_site,
    communication,
    comparison,
    confusion,
    differences,
    learning_curves,
    reliability,
)
