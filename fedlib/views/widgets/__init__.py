"""What a reader moves: images, partitions, rounds, results, and training as it goes.

Each is a widget in JupyterLab and, in an exported page or under papermill, a still picture with a slider of its own.
Nothing here imports ipywidgets before somebody is there to move something.
"""

from fedlib.views.progress import Monitor as training_monitor
from fedlib.views.widgets.partitions import partition_explorer
from fedlib.views.widgets.results import result_explorer
from fedlib.views.widgets.rounds import round_player
from fedlib.views.widgets.viewer import viewer

__all__ = ["partition_explorer", "result_explorer", "round_player", "training_monitor", "viewer"]
