"""fedlib: federated and centralized learning for medical images, thin over MONAI and Flower.

The packages, lowest layer first; each imports only from those before it: config, data, tasks, training, federated and
analysis, views, course and study, cli (docs/design.md).
"""

import os

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
