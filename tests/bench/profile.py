"""make bench: where the time of a federated run goes, as a picture: docs/profile.svg.

Two rounds of four clients in this process, in the sizes of the quick profile, seen by Python's profiler: what the network's
arithmetic takes, and what everything around it does.
"""

import cProfile
import pstats
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import matplotlib

matplotlib.use("svg")
matplotlib.rcParams["svg.hashsalt"] = "profile"  # the same picture from the same figures
import matplotlib.pyplot as plt  # noqa: E402

from fedlib.config import ROOT, RunConfig, StudyConfig  # noqa: E402
from fedlib.data.dataset import PreparedDataset  # noqa: E402
from fedlib.federated import in_process as engines  # noqa: E402
from tests.bench.federation import CASES, grid_of, train  # noqa: E402
from tests.bench.harness import prepared, show  # noqa: E402

PARTS = {
    "forward and loss": ("module.py", "_wrapped_call_impl"),
    "backward": ("_tensor.py", "backward"),
    "optimiser": ("training.py", "step"),
    "reading": ("dataset.py", "load_batch"),
    "augmentation": ("data.py", "random_affine"),
    "training metric": ("", "training_metric"),
    "validation": ("training.py", "evaluate"),
    "packing": ("arrayrecord.py", "from_torch_state_dict"),
    "unpacking": ("module.py", "load_state_dict"),
    "checks": ("checked_strategy.py", "_fault"),
    "averaging": ("checked_strategy.py", "_aggregate"),
    "writing": ("data.py", "write_atomically"),
}
"""The function whose time, with all that it calls, is the part's. Validation is taken off the first."""
ARITHMETIC = ("forward and loss", "backward", "optimiser")


class Here(ThreadPoolExecutor):
    """Clients in the thread of their server, the only one that a profiler sees."""

    def submit(self, turn: Callable, *arguments: object) -> Future:
        """What the turn gives is there at once."""
        done = Future()
        done.set_result(turn(*arguments))
        return done


def parts(config: RunConfig, data: PreparedDataset, folder: Path) -> dict[str, float]:
    """Share of the run's time that each part takes, and of what is left."""
    train(config, data, folder)  # warms up
    profiler = cProfile.Profile()
    profiler.runcall(train, config, data, folder)
    stats = pstats.Stats(profiler).stats
    taken = dict.fromkeys(PARTS, 0.0)
    for (path, _, name), row in stats.items():
        for part, (file, function) in PARTS.items():
            if path.endswith(file) and name == function:
                taken[part] = max(taken[part], row[3])
    taken["forward and loss"] -= taken["validation"]
    total = max(row[3] for row in stats.values())
    shares = {part: seconds / total for part, seconds in taken.items()}
    return shares | {"the rest": 1 - sum(shares.values())}


def draw(found: dict[str, dict[str, float]]) -> None:
    """A bar for each task and part, the arithmetic in another colour than the rest."""
    figure, axes = plt.subplots(1, len(found), figsize=(9, 3.4), sharey=True, layout="constrained")
    for axis, (task, shares) in zip(axes, found.items(), strict=True):
        names = list(shares)[::-1]
        colours = ["#0072b2" if name in ARITHMETIC else "#d55e00" for name in names]
        bars = axis.barh(names, [100 * shares[name] for name in names], color=colours)
        axis.bar_label(bars, fmt="%.1f", padding=2, fontsize=8)
        axis.set(title=task, xlabel="% of the run's time", xlim=(0, 70))
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / "docs" / "profile.svg", metadata={"Date": None})


def main() -> None:
    """Measure, print, draw."""
    engines.ThreadPoolExecutor, found = Here, {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for task, cases in CASES["quick"].items():
            data = prepared(task, cases, StudyConfig.make(task=task, profile="quick").size, folder)
            found[task] = parts(grid_of(task, data, folder, client_counts=4)[1], data, folder)
            show(task, [{"part": part, "share": share} for part, share in found[task].items()])
    draw(found)


if __name__ == "__main__":
    main()
