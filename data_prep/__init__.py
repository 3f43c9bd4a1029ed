"""data_prep: from what a hospital has to a prepared set that fedlib trains on.

Imports fedlib.config and fedlib.data.dataset only.
"""

import fedlib  # noqa: F401, says how torch's threads wait, before any module of ours imports torch
