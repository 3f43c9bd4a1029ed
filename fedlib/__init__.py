"""fedlib: federated and centralized learning for medical images, thin over MONAI and Flower.

The rooms, from the ground up (a room imports only from rooms below it)::

    config -> data -> runs -> partition -> tasks -> training -> messages -> strategies, privacy -> client -> federation
           -> guard, certificates -> deployment -> engines -> progress -> experiment -> executors, flower_app
           -> statistics, plots, widgets -> lessons, exercises, machine -> report -> study -> cli
"""

import ctypes
import os
import sys

# OpenMP threads that spin long while they wait slow a step down up to twenty times as soon as another process wants a core;
# those that never spin make two threads slower than one. A few microseconds of it bring nearly all that it can bring
# (docs/speed.md). Read once, when torch is imported, so it is set here, before any module imports torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("GOMP_SPINCOUNT", "2000")
# A study of medical images runs offline: Flower and Ray neither report usage nor ask for updates.
os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
# Ray: the coming default for tasks without a GPU, and no warning that it is coming.
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")


def _keep_freed_memory() -> None:
    """Have glibc keep what is freed for the next step, which would otherwise pay a page fault for every 4 KB of it.

    A step frees and takes again some 5 MB, and glibc hands them back to the system in between (docs/speed.md). What is
    larger than 32 MB, a set or a large model's message, is given back still. glibc's own variables for this, where they
    are set, decide instead; where there is no glibc nothing changes.
    """
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt") and not {"MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"} & set(os.environ):
        libc.mallopt(-3, 32 * 2**20)  # M_MMAP_THRESHOLD, bytes: the most that every glibc takes
        libc.mallopt(-1, 2**30)  # M_TRIM_THRESHOLD, bytes


_keep_freed_memory()
