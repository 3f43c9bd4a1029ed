"""One progress bar for a terminal, a notebook and a log."""

import sys
from typing import Any

from tqdm import tqdm

LOG_EVERY_S = 10.0


class ProgressBar(tqdm):
    """tqdm's bar; in a log, a whole line at most every LOG_EVERY_S seconds, and none of what takes less."""

    def __init__(self, *arguments: Any, **options: Any):
        file, kernel = options.get("file") or sys.stderr, getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
        self.in_log, self.written = not (file.isatty() or kernel), None
        words = "{desc}: {n} of {total} {unit}s, {remaining} left"
        log = {"bar_format": words, "mininterval": LOG_EVERY_S, "delay": LOG_EVERY_S, "miniters": 1, "leave": False}
        super().__init__(*arguments, **options | log if self.in_log else options)

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Show the bar, or write its line; tqdm's close calls this a last time."""
        if not self.in_log:
            super().display(msg, pos)
        elif self.n != self.written:
            self.written = self.n
            self.fp.write(f"{self}\n")
