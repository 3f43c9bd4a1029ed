"""Analyse the finished runs of a study. Reads the run store, and `sites` who holds which case; returns tidy tables.

The unit is the patient: a patient's cases, a seed's runs and a local arm's clients are averaged first, so that none of them
counts as independent evidence. Margins and significance are set in the configuration before a run (`config.AnalysisConfig`).

    inference    numbers in, numbers out: intervals, tests, the verdict at a margin
    arms         which runs are intact, which may be compared, and what each patient scored
    comparison   arms against each other, paired by patient and seed
    scores       per arm: over seeds, per class, calibration, per structure, per client
    sites        every model on the test cases of each client's site
    paper        protocol, the paper beside this run, and the answer in words
    tables       the same tables in words
"""

from fedlib.analysis.arms import arm_name, check_integrity, missing_clients
from fedlib.analysis.comparison import client_trend, compare, federated_vs_local, partition_effect, training_table
from fedlib.analysis.inference import verdict
from fedlib.analysis.paper import answer, in_short, paper_table, protocol, settings
from fedlib.analysis.scores import calibration, confusion, part_scores, seed_spread
from fedlib.analysis.sites import alone_and_together, by_site, site_matrix, worth_joining
from fedlib.analysis.sources import by_source
from fedlib.analysis.tables import readable
