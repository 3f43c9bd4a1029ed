"""What the runs of a study say. Reads the run store and nothing else; plain functions from finished runs to tidy tables.

The unit is the patient: a patient's cases, a seed's runs and a local arm's clients are averaged first, so that none of them
counts as independent evidence. Margins and significance stand in the configuration before a run (`config.Evidence`).

    inference    numbers in, numbers out: intervals, tests, the verdict at a margin
    arms         which runs are intact, which may be compared, and what each patient scored
    scores       per arm: over seeds, per class, calibration, per structure, per client
    comparison   arms against each other, paired by patient and seed
    paper        the paper beside this run, and the answer in words
"""

from fedlib.analysis.arms import absences, comparable, settings, sound
from fedlib.analysis.comparison import client_trend, compare, federation_worth, partition_effect
from fedlib.analysis.inference import interval, verdict
from fedlib.analysis.paper import answer, assumptions, paper_table
from fedlib.analysis.scores import calibration, class_scores, client_scores, confusion, seed_spread, structure_scores

__all__ = [
    "absences", "answer", "assumptions", "calibration", "class_scores", "client_scores", "client_trend", "comparable",
    "compare", "confusion", "federation_worth", "interval", "paper_table", "partition_effect", "seed_spread", "settings",
    "sound", "structure_scores", "verdict",
]  # fmt: skip
