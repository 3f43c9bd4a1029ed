"""The paper beside this run, and the study's question answered in words."""

import pandas as pd

from fedlib import tasks
from fedlib.analysis.arms import ARM, stated
from fedlib.analysis.inference import RESAMPLES
from fedlib.config import RunConfig, StudyConfig
from fedlib.training.run_store import Run

PAPER, INFERRED, CHOSEN = "from the paper", "inferred", "chosen"
STUDIED = {"classification": (2, 4, 8), "segmentation": (2, 4, 8, 16)}
"""Numbers of clients in the paper."""
MODELS = {"classification": "ResNet18", "segmentation": "3D U-Net"}


def paper_table(table: pd.DataFrame) -> pd.DataFrame:
    """The abstract's figures beside those of this run, from `compare`'s table; a row for each that the abstract speaks of.

    Columns: ARM, metric, paper (NaN where it gives words only), paper_says ("0.867", "about 0.94", "similar to
    centralized"), this_run, low, high, difference (this run minus the paper), paper_change and change (federated minus
    centralized, there and here). Other data and training than the paper's: a difference is no error of either.
    """
    central = table[table["mode"] == "centralized"].set_index("metric")
    rows = []
    for row in table[table["mode"] != "local"].itertuples():
        task = next(own for own in map(tasks.get, tasks.TASKS) if row.metric in own.PRIMARY)
        known = task.PAPER.get((row.mode, row.n_clients))
        if known is None:
            continue
        similar, change = row.metric in task.SIMILAR and row.metric not in known, None
        says = f"{'about ' * (row.metric in task.ABOUT)}{row.paper:g}" if not similar else "similar to centralized"
        if row.mode == "federated" and not similar:
            change = row.paper - task.PAPER["centralized", 1][row.metric]
        rows.append({
            **{name: getattr(row, name) for name in (*ARM, "metric", "paper")}, "paper_says": says,
            "this_run": row.value, "low": row.low, "high": row.high, "difference": row.value - row.paper,
            "paper_change": change, "change": row.difference if row.metric in central.index else None,
        })  # fmt: skip
    columns = ["paper", "paper_says", "this_run", "low", "high", "difference", "paper_change", "change"]
    numbers = dict.fromkeys(set(columns) - {"paper_says"}, float)
    return pd.DataFrame(rows, columns=[*ARM, "metric", *columns]).astype(numbers)


def assumptions(runs: list[Run], study: StudyConfig | None = None) -> pd.DataFrame:
    """Everything that this run assumes: what, value, label (from the paper, inferred, chosen), why."""
    configs, evidence = [run.config for run in runs], stated(runs, study)
    config, task = configs[0], configs[0].task
    rows = [*_design(configs), *_endpoints(task), *_training(config)]
    margins = ", ".join(f"{tasks.NAMES[metric]} {evidence.margin(metric):g}" for metric in tasks.get(task).PRIMARY)
    rows += [
        ("margins", margins, CHOSEN, "the paper says no significant decrease, and names no margin"),
        ("significance", f"{evidence.significance:g}", CHOSEN, "two-sided; the abstract names no test"),
        ("intervals", f"BCa bootstrap, {RESAMPLES} resamples of patients", CHOSEN, "scores are bounded and skewed"),
    ]
    return pd.DataFrame(rows, columns=["what", "value", "label", "why"])


def _design(configs: list[RunConfig]) -> list[tuple[str, str, str, str]]:
    task, config = configs[0].task, configs[0]
    counts = sorted({own.n_clients for own in configs if own.mode != "centralized"})
    dealt = sorted({own.partition for own in configs} - {"none"})
    studied = PAPER if set(counts) <= set(STUDIED[task]) else CHOSEN
    published, strategies = ", ".join(map(str, STUDIED[task])), sorted({own.strategy for own in configs} - {"none"})
    rows = [
        ("number of clients", ", ".join(map(str, counts)) or "none yet", studied, f"in the paper {published}"),
        ("aggregation", ", ".join(strategies) or "none yet", CHOSEN, "the abstract does not say"),
        ("partitions", ", ".join(dealt) or "none yet", PAPER if set(dealt) <= {"balanced", "unbalanced"} else CHOSEN,
         "the paper has balanced and unbalanced data"),
        ("partition of the paper's figures", "set beside each partition", INFERRED, "the abstract does not say which"),
        ("data", f"fingerprint {config.data_fingerprint[:12]}", CHOSEN, "the abstract names no data set, size or split"),
    ]  # fmt: skip
    if "unbalanced" in dealt:
        why = "the abstract does not say how the unbalance was made"
        rows.append(("unbalance", f"largest client {config.unbalance_ratio:g} times the smallest", CHOSEN, why))
    if task == "classification":
        rows.append(("the four categories", "COVID-19 Radiography Database", INFERRED, "it has exactly four categories"))
    else:
        rows.append(("modality", "cardiac CT", PAPER, "synthetic volumes and MRI are neither; see the data"))
    return rows


def _endpoints(task: str) -> list[tuple[str, str, str, str]]:
    if task == "classification":
        return [("figures of merit", "accuracy, sensitivity", PAPER, ""),
                ("sensitivity", "mean over the classes", INFERRED, "the abstract does not say how the classes are averaged"),
                ("unit of analysis", "patient", CHOSEN, "images of one patient are no independent evidence")]  # fmt: skip
    return [("figures of merit", "DSC of LV and Myo", PAPER, ""), ("DSC", "mean over patients", INFERRED, "the usual way"),
            ("a missed structure", "DSC 0, no distance, counted", CHOSEN, "an infinite distance has no mean")]  # fmt: skip


def _training(config: RunConfig) -> list[tuple[str, str, str, str]]:
    model, why = MODELS[config.task], "the abstract does not say"
    return [
        ("model", model, PAPER, ""),
        ("channels of its first layer", str(config.width), CHOSEN, why),
        ("budget", f"{config.rounds} rounds of {config.local_epochs} local epochs, the same in every arm", CHOSEN, why),
        ("optimiser", f"AdamW, peak learning rate {config.learning_rate:g}, batches of {config.batch_size}", CHOSEN, why),
        ("start", "random weights, no pre-training", CHOSEN, why),
    ]


def answer(table: pd.DataFrame) -> list[str]:
    """The study's question answered in sentences, one text a metric, verdict first, from `compare`'s table."""
    return [_answer(tasks.NAMES[metric], own) for metric, own in table.groupby("metric", sort=False)]


def _answer(name: str, own: pd.DataFrame) -> str:
    central, federated = own[own["mode"] == "centralized"], own[own["mode"] == "federated"]
    if central.empty or federated.empty:
        done = central if len(central) else own
        lacking = "centralized" if central.empty else "federated"
        reached = "; ".join(f"{_arm(row)} reaches {_score(row)}" for row in done.itertuples())
        return f"{name}: no verdict, for there is no finished {lacking} run to compare with. So far {reached}."
    parts = [f"{verdict} with {_listed(arms)}" for verdict, arms in _by_verdict(federated)]
    margin = federated["margin"].iloc[0]
    text = f"{name}: against centralized training, federated training is {'; '.join(parts)}, at a margin of {margin:g}"
    note = federated["margin_note"].iloc[0]
    text += f" ({note}). " if note else ". "
    text += f"Centralized training reaches {_score(central.iloc[0])}. "
    for side in ("lower", "higher"):
        arms = [f"{row.n_clients} clients {row.partition}" for row in federated[federated["reading"] == side].itertuples()]
        text += f"Federated training is {side}, and its interval excludes 0, with {', '.join(arms)}. " * bool(arms)
    open_ = federated[federated["verdict"] == "inconclusive"]
    if len(open_):
        text += f"Inconclusive is no proof of equality: {_why(open_)}. "
    return (text + _alone(own)).strip()


def _by_verdict(federated: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    order = ("inferior", "inconclusive", "non-inferior", "equivalent")
    return [(verdict, arms) for verdict in order if len(arms := federated[federated["verdict"] == verdict])]


def _why(arms: pd.DataFrame) -> str:
    """What stands in the way of a verdict."""
    without = arms[arms["difference_low"].isna()]
    if len(without):
        return f"there is no interval ({without['difference_how'].iloc[0].removeprefix('none: ')})"
    return f"the smallest margin that these data could have shown is {arms['smallest_margin'].min():.3f}"


def _alone(own: pd.DataFrame) -> str:
    local = own[own["mode"] == "local"]
    if local.empty:
        return ""
    worst = local.loc[local["value"].idxmin()]
    return f"Clients alone reach {worst.value:.3f} on average at worst ({worst.n_clients} clients, {worst.partition})."


def _listed(arms: pd.DataFrame) -> str:
    return ", ".join(f"{row.n_clients} clients {row.partition} ({_difference(row)})" for row in arms.itertuples())


def _difference(row: tuple) -> str:
    if pd.isna(row.difference):
        return "no common seed"
    limits = "" if pd.isna(row.difference_low) else f" [{row.difference_low:+.3f}, {row.difference_high:+.3f}]"
    return f"{row.difference:+.3f}{limits}"


def _score(row: tuple) -> str:
    return f"{row.value:.3f}" + ("" if pd.isna(row.low) else f" [{row.low:.3f}, {row.high:.3f}]")


def _arm(row: tuple) -> str:
    return "centralized training" if row.mode == "centralized" else f"{row.mode}, {row.n_clients} clients {row.partition},"
