"""Run stores made by hand: finished runs with the scores that a test wants, trained by nobody."""

import pandas as pd

from fedlib import tasks
from fedlib.config import RunConfig
from fedlib.training.run_store import Run, RunStore
from tests.helpers import ARMS, SIZES


def central_dice() -> dict[str, list[float]]:
    """Dice of eight patients, of whom the first has two test volumes."""
    rest = (0.6, 0.4, 0.8, 0.5, 0.7, 0.55, 0.65)
    return {"p1": [0.9, 0.7]} | {f"p{n}": [dice] for n, dice in enumerate(rest, 2)}


def shifted(by) -> dict[str, list[float]]:
    """The same, each patient's volumes by their own amount."""
    return {patient: [value + by[n] for value in values] for n, (patient, values) in enumerate(central_dice().items())}


def segmented(dice: dict[str, list[float]]) -> pd.DataFrame:
    """A table of test cases with the given Dice of LV of each patient's volumes; Myo is half of it."""
    rows = [{"case": f"{p}-{n}", "patient": p, "dice_LV": d} for p, all_of in dice.items() for n, d in enumerate(all_of)]
    table = pd.DataFrame(rows)
    return table.assign(dice_Myo=table["dice_LV"] / 2)


def classified(right: dict[str, list[int]], classes: str = "abc") -> pd.DataFrame:
    """A table of test cases, one a patient: for each class whether its patients are told; a wrong one is called the next."""
    rows = []
    for truth, told in right.items():
        wrong = classes[(classes.index(truth) + 1) % len(classes)]
        for n, good in enumerate(told):
            said = truth if good else wrong
            rows.append({"case": f"{truth}{n}", "patient": f"{truth}{n}", "truth": truth, "prediction": said}
                        | {f"p_{name}": 0.8 if name == said else 0.2 / (len(classes) - 1) for name in classes})  # fmt: skip
    return pd.DataFrame(rows)


def write_tables(
    store: RunStore, task: str, mode: str, tables: list[pd.DataFrame], seed: int = 1, curve=(1.0,) * 8, **changes
) -> Run:
    """A finished run whose models (one, or of a local run one a client) have these tables of test cases.

    `curve`: the validation scores of its rounds, as shares of the final ones.
    """
    arm = SIZES | ARMS[mode] | {"task": task, "mode": mode, "seed": seed, "data_fingerprint": "f"}
    record = store.begin(RunConfig(**arm | changes))
    by_client = [cases.assign(client=client) if mode == "local" else cases for client, cases in enumerate(tables)]
    record.write_table("cases.csv", pd.concat(by_client, ignore_index=True))
    rounds = (arm | changes)["rounds"]
    record.write_table("clients.csv", [{"round": number, "client": 0, "n": 8} for number in range(1, rounds + 1)])
    scores = pd.DataFrame([tasks.get(task).summarize(cases) for cases in tables]).mean().to_dict()
    curves = [{metric: share * scores[metric] for metric in tasks.get(task).PRIMARY} for share in curve]
    record.write_table("rounds.csv", [{"round": number, **row} for number, row in enumerate(curves, 1)])
    known = {"run_id": record.folder.name, "mode": mode, "n_test": len(tables[0]), "weights_sha256": "w"}
    return record.finish({"weights_sha256": "w"}, known | scores)


def write_run(store: RunStore, mode: str, dice, seed: int = 1, **changes) -> Run:
    """A finished segmentation run with these Dice, of a local run a list of them."""
    tables = [segmented(own) for own in (dice if isinstance(dice, list) else [dice])]
    return write_tables(store, "segmentation", mode, tables, seed, **changes)


def write_classification(store: RunStore, mode: str, right, seed: int = 1, **changes) -> Run:
    """A finished classification run with these answers, of a local run a list of them."""
    tables = [classified(own) for own in (right if isinstance(right, list) else [right])]
    return write_tables(store, "classification", mode, tables, seed, **changes)
