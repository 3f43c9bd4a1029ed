"""Read the comparison by source, where a set was merged of several: their mean hides that a model serves one less well."""

from dataclasses import replace

import pandas as pd

from fedlib.analysis.comparison import compare
from fedlib.config import StudyConfig
from fedlib.data.partition import group_names
from fedlib.training.run_store import Run


def by_source(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Return `compare` over the test cases of each source alone, with a column source; empty with fewer than two sources."""
    cases = runs[0].cases
    names = sorted(set(group_names(cases["source"]))) if "source" in cases else []
    tables = [compare([replace(run, source=name) for run in runs], study).assign(source=name) for name in names]
    return pd.concat(tables, ignore_index=True) if len(tables) > 1 else pd.DataFrame()
