"""Ask of each client's site whether joining is worth it: every model on the test cases that are dealt to the site.

Beside the run store this reads the prepared set, for who holds which case (`data.partition.held_out`).
"""

from collections.abc import Iterator

import pandas as pd

from fedlib import tasks
from fedlib.analysis import inference
from fedlib.analysis.arms import by_arm, n_patients, strata
from fedlib.analysis.comparison import DIFFERENCE, SCORE
from fedlib.analysis.tables import bracketed
from fedlib.config import PartitionConfig, UserError
from fedlib.data.dataset import PreparedDataset
from fedlib.data.partition import held_out
from fedlib.training.run_store import Run

DIFFERS = ["difference", "difference_low", "difference_high", "direction"]
SAME = {*PartitionConfig.model_fields, "partition", "n_clients", "seed", "unbalance_ratio", "data_fingerprint"}
"""Settings that decide who holds which case."""


def by_site(runs: list[Run], data: PreparedDataset, metric: str) -> pd.DataFrame:
    """Return a row per model and site: its score on the site's test cases, and how far that is from the site's own model's.

    `runs`: local, federated and FedBN runs of the same clients, those that there are. Columns: model (`local 1`, ...;
    `federated`; `FedBN`: at each site its own), site (from 1), metric, n_patients, value, low, high, how (see
    `inference.Interval`); difference from the site's local model with its limits, paired by patient, and direction (empty
    for that model itself, or without one). A site without a test case has no score.
    Raises UserError when the runs are not of the same clients of this set.
    """
    settings = [run.config.model_dump(include=SAME) for run in runs]
    if any(other != settings[0] | {"data_fingerprint": data.fingerprint} for other in settings):
        names = ", ".join(run.config.run_id for run in runs)
        raise UserError(f"runs = {names}: expected runs of the same clients, trained on {data.folder}")
    config, rows = runs[0].config, []
    for site, held in enumerate(held_out(config, data)):
        tables, names = dict(_models(runs, site)), data.cases["case"].iloc[held]
        own = {model: cases[cases["case"].isin(names)] for model, cases in tables.items()}
        scores = {model: tasks.get(config.task).patient_scores(cases, metric) for model, cases in own.items()}
        for model, found in scores.items():
            row = {"model": model, "site": site + 1, "metric": metric, "n_patients": n_patients(found)}
            row |= inference.interval(strata(found), config.significance, SCORE)._asdict()
            if (home := f"local {site + 1}") in scores and home != model and len(found):
                differs = inference.interval(strata((found - scores[home]).dropna()), config.significance, DIFFERENCE)
                direction = inference.direction(differs.low, differs.high)
                row |= dict(zip(DIFFERS, [*differs[:3], direction], strict=True))
            rows.append(row)
    return pd.DataFrame(rows, columns=["model", "site", "metric", "n_patients", *inference.Interval._fields, *DIFFERS])


def _models(runs: list[Run], site: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the models that a site may choose from, each with its table of all test cases."""
    for run in runs:
        if run.config.mode == "local":
            yield from ((f"local {client + 1}", cases) for client, cases in run.cases.groupby("client"))
        elif run.config.is_personalized:
            yield "FedBN", run.cases[run.cases["client"] == site]
        else:
            yield "federated", run.cases


def site_matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of `by_site` as text: a row per model below the numbers of test patients, a column per site."""
    shown = table.assign(score=[bracketed(*row) for row in table[["value", "low", "high"]].itertuples(index=False)])
    shown = shown.pivot(index="model", columns="site", values="score").reindex(table["model"].unique())
    patients = table.groupby("site")["n_patients"].max().astype(str).rename("test patients").to_frame().T
    return pd.concat([patients, shown]).add_prefix("site ")


def worth_joining(table: pd.DataFrame) -> str:
    """Return in words at how many sites each model that comes of joining is better than the site's own, and how surely.

    Beyond chance: the interval of the difference lies on one side of 0.
    """
    together = table[~table["model"].str.startswith("local")]
    words = [f"no test case at site {site}" for site in together[together["n_patients"] == 0]["site"].unique()]
    for model, rows in together.dropna(subset="difference").groupby("model", sort=False):
        better, worse = ((sign * rows["difference"] > inference.EQUAL).sum() for sign in (1, -1))
        sure = " and ".join(str((rows["direction"] == side).sum()) for side in ("higher", "lower"))
        found = f"better than the site's own model at {better} of {len(rows)} sites and worse at {worse}"
        words.append(f"*{model}* is {found} (beyond chance: {sure})")
    return "; ".join(words) or "no local model to compare with"


def alone_and_together(runs: list[Run]) -> dict[str, list[Run]]:
    """Return the local and the federated run of each partition that has both, of the first seed that they share.

    With the most clients that leave a site `inference.FEWEST` test patients on average, for an interval; else the fewest.
    """
    arms, pairs = by_arm(runs), {}
    for arm, members in arms.items():
        local = {run.config.seed: run for run in arms.get(arm._replace(mode="local"), [])}
        shared = [[local[run.config.seed], run] for run in members if run.config.seed in local and arm.mode == "federated"]
        enough = shared and shared[0][1].cases["patient"].nunique() >= inference.FEWEST * arm.n_clients
        if enough or (shared and arm.partition not in pairs):
            pairs[arm.partition] = shared[0]
    return pairs
