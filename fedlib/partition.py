"""How training cases are dealt to clients: whole patients, every client sees every class.

*Chosen*, since the paper's abstract does not say how its clients were made. `balanced`: equal shares. `unbalanced`: shares
fall geometrically from the first client to the last, so that the first holds `unbalance_ratio` times the cases of the last.
"""

import numpy as np
import pandas as pd

from fedlib.config import RunConfig, UserError
from fedlib.data import PreparedSet, deal_groups


def shares(n_clients: int, partition: str, unbalance_ratio: float) -> np.ndarray:
    """Fraction of the cases that each client is to get, (n_clients,), summing to one."""
    ratio = unbalance_ratio if partition == "unbalanced" else 1.0
    sizes = ratio ** -np.linspace(0, 1, n_clients) if n_clients > 1 else np.ones(1)
    return sizes / sizes.sum()


def deal(
    cases: pd.DataFrame, rows: np.ndarray, n_clients: int, partition: str, unbalance_ratio: float, seed: int
) -> list[np.ndarray]:
    """Deal `rows` of `cases` to clients, patient by patient, class by class.

    Returns one sorted array of row numbers per client: disjoint, together complete, no patient at two clients. Each patient
    goes to the client furthest below its share; the order of patients comes from the seed.
    Raises UserError when a class has fewer patients than there are clients.
    """
    fractions = shares(n_clients, partition, unbalance_ratio)
    dealt = cases.iloc[rows].assign(row=rows)
    patient_class = dealt.groupby("patient")["label"].first()
    rng = np.random.default_rng([seed, n_clients])
    owner: dict[str, int] = {}
    for label, patients in patient_class.groupby(patient_class):
        if len(patients) < n_clients:
            found = f"{repr(label) if label else 'the set'} has {len(patients)} training patients"
            raise UserError(f"n_clients = {n_clients}: {found}, expected at least {n_clients}")
        sizes = dealt.groupby("patient").size()[patients.index]
        owner |= deal_groups(sizes, fractions, rng)
    client_of = dealt["patient"].map(owner).to_numpy()
    return [np.sort(dealt["row"].to_numpy()[client_of == client]) for client in range(n_clients)]


def clients_of(config: RunConfig, data: PreparedSet) -> list[np.ndarray]:
    """Training rows of each client of a run; all of them with one client when it is centralized."""
    train = data.split("train")
    if config.mode == "centralized":
        return [train]
    return deal(data.cases, train, config.n_clients, config.partition, config.unbalance_ratio, config.seed)


def table(cases: pd.DataFrame, clients: list[np.ndarray]) -> pd.DataFrame:
    """Cases of each class at each client: one row a client, with its total and share."""
    label = cases["label"].replace("", "volumes")
    counts = pd.DataFrame([label.iloc[rows].value_counts() for rows in clients]).fillna(0).astype(int)
    counts.index = pd.RangeIndex(1, len(clients) + 1, name="client")
    counts = counts[sorted(counts.columns)]
    return counts.assign(total=counts.sum(axis=1), share=(counts.sum(axis=1) / counts.to_numpy().sum()).round(3))
