"""How training cases are dealt to clients: always whole patients, every case at one client.

*Chosen*, since the paper's abstract does not say how its clients were made. `balanced`: equal shares. `unbalanced`: shares
fall geometrically from the first client to the last, so that the first holds `unbalance_ratio` times the cases of the last.
Under both every client sees every class. `label_skew`: clients see the classes in different proportions, and differ in size.
`by_group`: the values of a column of cases.csv, such as the hospital, are dealt whole.
"""

import bisect

import numpy as np
import pandas as pd

from fedlib.config import RunConfig, UserError
from fedlib.data.dataset import PreparedSet, deal_groups

FEWEST = 2
"""Cases of the smallest client under label_skew and by_group: BatchNorm cannot train on a batch of one."""
DRAWS = 100
"""Dirichlet draws before label_skew gives up on FEWEST (*chosen*)."""
ALPHAS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100)
"""Values proposed in place of one that does not do."""
MOST_GROUPS = 50
"""Values of a column that still is one of groups (*chosen*): a volume in ml is none."""
SINGLE = ("case", "patient", "file", "dup_group")
"""Columns that are never proposed for by_group: they name single cases."""
EMPTY = "(empty)"


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
    dealt = cases.iloc[rows]
    patient_class = dealt.groupby("patient")["label"].first()
    rng = np.random.default_rng([seed, n_clients])
    owner: dict[str, int] = {}
    for label, patients in patient_class.groupby(patient_class):
        if len(patients) < n_clients:
            found = f"{repr(label) if label else 'the set'} has {len(patients)} training patients"
            raise UserError(f"n_clients = {n_clients}: {found}, expected at least {n_clients}")
        sizes = dealt.groupby("patient").size()[patients.index]
        owner |= deal_groups(sizes, fractions, rng)
    return _rows_of_clients(cases, rows, owner, n_clients)


def deal_skewed(cases: pd.DataFrame, rows: np.ndarray, n_clients: int, alpha: float, seed: int) -> list[np.ndarray]:
    """Deal `rows` so that clients see the classes in different proportions; returns what `deal` does.

    For each class a Dirichlet(alpha) draw over the clients decides the share of its patients that each gets: label skew
    after Hsu et al., 2019 (arXiv:1909.06335). They draw the mix of classes for each client, at equal sizes; the draw for
    each class (as in Yurochkin et al., 2019, arXiv:1905.12022) deals every case, and lets clients differ in size too. A
    patient's class is that of the first of their cases.
    Raises UserError when there is one class, as in segmentation: such a draw would skew sizes, which is `unbalanced`. And
    when some client holds fewer than FEWEST cases in each of DRAWS draws from the seed; it names an alpha and a number of
    clients that would do.
    """
    patients = cases.iloc[rows].groupby("patient")["label"].agg(["first", "size"])
    if patients["first"].nunique() < 2:
        raise UserError("partitions = label_skew: the training cases are of one class, nothing to skew; expected unbalanced")
    most = min(len(patients), len(rows) // FEWEST)
    if n_clients > most:
        found = f"{len(rows)} training cases of {len(patients)} patients, at least {FEWEST} cases at each client"
        raise UserError(f"n_clients = {n_clients}: expected at most {most} under label_skew ({found})")
    client_of = _draw(patients, n_clients, alpha, seed)
    if client_of is None:
        larger = next((a for a in ALPHAS if a > alpha and _draw(patients, n_clients, a, seed) is not None), None)
        fewer = bisect.bisect_left(range(1, n_clients), True, key=lambda n: _draw(patients, n, alpha, seed) is None)
        expected = " or ".join([f"alpha = {larger}"] * bool(larger) + [f"n_clients = {fewer}"])
        found = f"in {DRAWS} draws some client always got fewer than {FEWEST} cases"
        raise UserError(f"alpha = {alpha}, n_clients = {n_clients}, seed = {seed}: {found}; expected {expected}")
    return _rows_of_clients(cases, rows, dict(zip(patients.index, client_of, strict=True)), n_clients)


def _draw(patients: pd.DataFrame, n_clients: int, alpha: float, seed: int) -> np.ndarray | None:
    """Client of each patient in the first draw where all clients hold enough cases; None when no draw is so."""
    rng, label, size = np.random.default_rng([seed, n_clients]), *patients.to_numpy().T
    members = [np.flatnonzero(label == name) for name in np.unique(label)]
    for _ in range(DRAWS):
        client_of = np.empty(len(patients), int)
        for own in members:
            ends = np.cumsum(rng.dirichlet(np.full(n_clients, alpha)))[:-1] * len(own)
            client_of[rng.permutation(own)] = np.searchsorted(np.rint(ends), np.arange(len(own)), side="right")
        if np.bincount(client_of, size.astype(int), n_clients).min() >= FEWEST:
            return client_of
    return None


def deal_by_group(cases: pd.DataFrame, rows: np.ndarray, n_clients: int, column: str) -> list[np.ndarray]:
    """Deal `rows` by the values of a column, the largest group first, each to the client with the fewest cases so far.

    With as many clients as groups each group is a client. No chance has a part in it: every seed deals alike. A patient with
    cases in several groups stays whole, in the group of most of them (of several, the first by name). Empty values are a
    group too: cases of unknown origin at one client, for a prepared set cannot be edited. Returns what `deal` does.
    Raises UserError when `column` is none of groups, and when they are too few for every client to hold FEWEST cases.
    """
    dealt = cases.iloc[rows]
    suitable = [name for name in dealt if 2 <= dealt[name].nunique(dropna=False) <= MOST_GROUPS]
    if column not in suitable:
        found = f"values in it: {dealt[column].nunique(dropna=False)}" if column in dealt else "no such column"
        known = ", ".join(name for name in suitable if name not in SINGLE) or "(there is none)"
        expected = f"a column of cases.csv with 2 to {MOST_GROUPS} values among the training cases: {known}"
        raise UserError(f"group_column = {column!r}: {found}; expected {expected}")
    group_of = pd.crosstab(dealt["patient"], group_names(dealt[column]).rename("group")).idxmax(axis=1)
    sizes = dealt["patient"].map(group_of).value_counts().sort_index().sort_values(ascending=False, kind="stable")
    most = next(n for n in range(len(sizes), 0, -1) if _largest_first(sizes, n)[1].min() >= FEWEST)
    if n_clients > most:
        groups = ", ".join(f"{name} {size}" for name, size in sizes.items())
        expected = f"expected at most {most} (cases of each group: {groups}; at least {FEWEST} at each client)"
        raise UserError(f"n_clients = {n_clients}: {column!r} has {len(sizes)} groups of training patients, {expected}")
    client_of, _ = _largest_first(sizes, n_clients)
    return _rows_of_clients(cases, rows, group_of.map(client_of).to_dict(), n_clients)


def _largest_first(sizes: pd.Series, n_clients: int) -> tuple[dict[str, int], np.ndarray]:
    """Client of each group, and the cases of each client."""
    client_of, held = {}, np.zeros(n_clients, int)
    for group, size in sizes.items():
        client_of[group] = int(held.argmin())
        held[client_of[group]] += size
    return client_of, held


def group_names(values: pd.Series) -> pd.Series:
    """A column's values as text."""
    return values.astype(str).mask(values.isna() | (values == ""), EMPTY)


def _rows_of_clients(cases: pd.DataFrame, rows: np.ndarray, owner: dict[str, int], n_clients: int) -> list[np.ndarray]:
    client_of = cases["patient"].iloc[rows].map(owner).to_numpy()
    return [np.sort(rows[client_of == client]) for client in range(n_clients)]


def clients_of(config: RunConfig, data: PreparedSet) -> list[np.ndarray]:
    """Training rows of each client of a run; all of them with one client when it is centralized."""
    train = data.split("train")
    if config.mode == "centralized":
        return [train]
    if config.partition == "label_skew":
        return deal_skewed(data.cases, train, config.n_clients, config.alpha, config.seed)
    if config.partition == "by_group":
        return deal_by_group(data.cases, train, config.n_clients, config.group_column)
    return deal(data.cases, train, config.n_clients, config.partition, config.unbalance_ratio, config.seed)


def table(cases: pd.DataFrame, clients: list[np.ndarray], group_column: str = "") -> pd.DataFrame:
    """Cases of each class at each client: one row a client, with its total and share, and the groups it holds cases of."""
    label = cases["label"].replace("", "volumes")
    counts = pd.DataFrame([label.iloc[rows].value_counts() for rows in clients]).fillna(0).astype(int)
    counts.index = pd.RangeIndex(1, len(clients) + 1, name="client")
    counts = counts[sorted(counts.columns)]
    counts = counts.assign(total=counts.sum(axis=1), share=(counts.sum(axis=1) / counts.to_numpy().sum()).round(3))
    if group_column not in cases:
        return counts
    names = group_names(cases[group_column])
    return counts.assign(groups=[", ".join(sorted(names.iloc[rows].unique())) for rows in clients])
