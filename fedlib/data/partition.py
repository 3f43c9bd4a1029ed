"""Who holds which training case: a partition of patients over clients, every patient whole at one client.

balanced: equal shares of every class (*from the first author's scripts*).
unbalanced: shares of each class drawn from Dirichlet(1, ..., 1) over the clients, so that sizes and class mixes differ
(*from the first author's scripts*; for hearts, which have no classes, over the cases: *inferred*).
quantity_skew: sizes fall geometrically from the first client to the last, by `unbalance_ratio` (*chosen*).
label_skew: as unbalanced, with Dirichlet(alpha, ..., alpha) and no floor (*chosen*).
missing_classes: each client lacks one or two classes (*from the first author's scripts*; which ones: *chosen*).
by_group: the values of a column of cases.csv, such as the hospital, stay whole (*chosen*).
"""

import numpy as np
import pandas as pd

from fedlib.config import RunConfig, UserError
from fedlib.data.dataset import PreparedDataset, assign_groups

MIN_CASES = 2
"""Cases of the smallest client: BatchNorm cannot train on a batch of one."""
MAX_DRAWS = 100
"""Dirichlet draws before label_skew gives up on MIN_CASES (*chosen*)."""
MAX_GROUPS = 50
"""Values of a column that is still one of groups (*chosen*): a volume in ml is not."""
IDENTIFIERS = ("case", "patient", "file", "dup_group")
"""Columns that are never proposed for by_group: they name single cases."""
EMPTY = "(empty)"


def clients_of(config: RunConfig, data: PreparedDataset) -> list[np.ndarray]:
    """Return the training rows of each client of a run, sorted; all rows at one client when it is centralized.

    The parts are disjoint and together complete, and come from the seed and the number of clients alone.
    Raises UserError, naming the parameter, when the partition is not possible for this set.
    """
    train = data.split("train")
    return [train] if config.mode == "centralized" else partition(config, data.cases, train)


def partition(config: RunConfig, cases: pd.DataFrame, rows: np.ndarray) -> list[np.ndarray]:
    """Partition rows of a table of cases by the rule that the config names; see `clients_of`."""
    chosen = cases.iloc[rows]
    client_of = RULES[config.partition](config, chosen, np.random.default_rng([config.seed, config.n_clients]))
    clients = chosen["patient"].map(client_of).to_numpy()
    return [np.sort(rows[clients == client]) for client in range(config.n_clients)]


def held_out(config: RunConfig, data: PreparedDataset) -> list[np.ndarray]:
    """Return the test rows of each client's site, sorted: dealt like the training cases, after all training (*chosen*)."""
    return deal_alike(config, data.cases, clients_of(config, data), data.split("test"))


def deal_alike(config: RunConfig, cases: pd.DataFrame, clients: list[np.ndarray], rows: np.ndarray) -> list[np.ndarray]:
    """Deal other rows of a table of cases to the sites of the clients, in each client's share of every class.

    Under by_group a client's share of a group, which is all of it or nothing. In random order, each patient goes to the site
    furthest below its share: with one case a patient, a site has its share of each class, rounded up or down. So a site may
    get nothing; and a patient whose class or group no client trains on is at no site.
    """
    column = config.group_column if config.partition == "by_group" else "label"
    kind_of = pd.crosstab(cases["patient"], group_names(cases[column]).rename("kind")).idxmax(axis=1)
    trained = pd.DataFrame([cases["patient"].iloc[own].map(kind_of).value_counts() for own in clients]).fillna(0)
    site_of, rng = {}, np.random.default_rng([config.seed, config.n_clients, 1])  # not the stream of the training cases
    for kind, sizes in cases["patient"].iloc[rows].value_counts().sort_index().groupby(kind_of):
        if kind not in trained:
            continue
        lacking = trained[kind].to_numpy() * (sizes.sum() / trained[kind].sum())
        for patient in rng.permutation(sizes.index):
            site_of[patient] = int(lacking.argmax())
            lacking[site_of[patient]] -= sizes[patient]
    sites = cases["patient"].iloc[rows].map(site_of).to_numpy()
    return [np.sort(rows[sites == site]) for site in range(config.n_clients)]


def client_shares(n_clients: int, ratio: float = 1.0) -> np.ndarray:
    """Return the fraction of the cases of each client, (n_clients,): the first has `ratio` times the last's."""
    sizes = ratio ** -np.linspace(0, 1, n_clients) if n_clients > 1 else np.ones(1)
    return sizes / sizes.sum()


def _stratified(config: RunConfig, cases: pd.DataFrame, rng: np.random.Generator) -> dict[str, int]:
    """Give every client its share of every class, patient by patient: each goes to the client furthest below its share."""
    shares = client_shares(config.n_clients, config.unbalance_ratio if config.partition == "quantity_skew" else 1.0)
    client_of = {}
    for label, sizes in _patients_of_classes(cases):
        _require_patients(config, label, sizes, config.n_clients)
        client_of |= assign_groups(sizes, shares, rng)
    return client_of


def _dirichlet(config: RunConfig, cases: pd.DataFrame, rng: np.random.Generator) -> dict[str, int]:
    """Draw for each class the clients' shares of its patients from Dirichlet(alpha, ..., alpha) (Yurochkin et al., 2019).

    Under unbalanced, every client first gets a patient of each class, so that it can train; the draw shares out the rest.
    Under label_skew, draws are repeated until every client holds MIN_CASES.
    """
    classes, n_clients = _patients_of_classes(cases), config.n_clients
    alpha, least = (config.alpha, 0) if config.partition == "label_skew" else (1.0, 1)
    if not least and len(classes) < 2:
        raise UserError("partitions = label_skew: the training cases are of one class; expected unbalanced")
    for label, sizes in classes:
        _require_patients(config, label, sizes, n_clients * least)
    for _ in range(MAX_DRAWS):
        client_of, held = {}, np.zeros(n_clients)
        for _, sizes in classes:
            shares = rng.dirichlet(np.full(n_clients, alpha)) * (len(sizes) - n_clients * least) + least
            ends = np.rint(np.cumsum(shares))[:-1]
            clients = np.searchsorted(ends, np.arange(len(sizes)), side="right")
            drawn = sizes.iloc[rng.permutation(len(sizes))]
            client_of |= dict(zip(drawn.index, clients, strict=True))
            held += np.bincount(clients, drawn, n_clients)
        if least or held.min() >= MIN_CASES:
            return client_of
    found = f"some client got fewer than {MIN_CASES} cases in each of {MAX_DRAWS} draws"
    raise UserError(f"alpha = {alpha}, n_clients = {n_clients}: {found}; expected a larger alpha or fewer clients")


def _missing_classes(config: RunConfig, cases: pd.DataFrame, rng: np.random.Generator) -> dict[str, int]:
    """Let every client lack `n_missing` classes, in turn around a shuffled list; the others share each class equally.

    A patient stays whole: one with images of several classes takes all of them to the clients of the first.
    """
    classes, n_missing, client_of = _patients_of_classes(cases), config.n_missing, {}
    if n_missing >= len(classes):
        found = f"n_missing = {n_missing}: the training cases are of {len(classes)} classes"
        raise UserError(f"{found}; expected fewer missing than classes")
    order = rng.permutation(len(classes))
    lacks = [{order[(n * n_missing + i) % len(classes)] for i in range(n_missing)} for n in range(config.n_clients)]
    for number, (label, sizes) in enumerate(classes):
        holders = [client for client, lacking in enumerate(lacks) if number not in lacking]
        if not holders:
            raise UserError(f"n_clients = {config.n_clients}: no client would hold {label!r}; expected more clients")
        _require_patients(config, label, sizes, len(holders))
        client_of |= {patient: holders[i] for patient, i in assign_groups(sizes, client_shares(len(holders)), rng).items()}
    return client_of


def _by_group(config: RunConfig, cases: pd.DataFrame, rng: np.random.Generator) -> dict[str, int]:
    """Give whole groups to clients, the largest first, each to the client with the fewest cases so far.

    With as many clients as groups each group is a client. A patient with cases in several groups counts in the one that has
    most of them (of several, the first by name). Empty values are a group, too.
    """
    column, client_of, held = config.group_column, {}, np.zeros(config.n_clients, int)
    suitable = [name for name in cases if 2 <= cases[name].nunique(dropna=False) <= MAX_GROUPS]
    if column not in suitable:
        found = f"values in it: {cases[column].nunique(dropna=False)}" if column in cases else "no such column"
        known = ", ".join(name for name in suitable if name not in IDENTIFIERS) or "(there is none)"
        expected = f"a column of cases.csv with 2 to {MAX_GROUPS} values among the training cases: {known}"
        raise UserError(f"group_column = {column!r}: {found}; expected {expected}")
    group_of = pd.crosstab(cases["patient"], group_names(cases[column]).rename("group")).idxmax(axis=1)
    sizes = cases["patient"].map(group_of).value_counts().sort_index().sort_values(ascending=False, kind="stable")
    for group, size in sizes.items():
        client_of[group] = int(held.argmin())
        held[client_of[group]] += size
    if held.min() < MIN_CASES:
        groups = ", ".join(f"{name} {size}" for name, size in sizes.items())
        found = f"{column!r} has {len(sizes)} groups of training patients (cases of each: {groups})"
        expected = f"expected fewer clients, so that each holds at least {MIN_CASES} cases"
        raise UserError(f"n_clients = {config.n_clients}: {found}; {expected}")
    return group_of.map(client_of).to_dict()


RULES = {
    **{"balanced": _stratified, "quantity_skew": _stratified, "unbalanced": _dirichlet, "label_skew": _dirichlet},
    **{"missing_classes": _missing_classes, "by_group": _by_group},
}
"""By name: config, training cases and random generator -> the client of each patient; or UserError."""


def group_names(values: pd.Series) -> pd.Series:
    """Return a column's values as text."""
    return values.astype(str).mask(values.isna() | (values == ""), EMPTY)


def _patients_of_classes(cases: pd.DataFrame) -> list[tuple[str, pd.Series]]:
    """Return each class with the number of cases of each of its patients; a patient's class is that of the first case."""
    patients = cases.groupby("patient")["label"].agg(["first", "size"])
    return [(label, own["size"]) for label, own in patients.groupby("first")]


def _require_patients(config: RunConfig, label: str, sizes: pd.Series, needed: int) -> None:
    if len(sizes) < needed:
        found = f"{repr(label) if label else 'the set'} has {len(sizes)} training patients"
        raise UserError(f"n_clients = {config.n_clients}: {found}, expected at least {needed}; choose fewer clients")


def table(cases: pd.DataFrame, clients: list[np.ndarray], group_column: str = "") -> pd.DataFrame:
    """Count the cases of each class at each client: one row a client, with its total and share, and its groups."""
    label = cases["label"].replace("", "volumes")
    counts = pd.DataFrame([label.iloc[rows].value_counts() for rows in clients]).fillna(0).astype(int)
    counts.index = pd.RangeIndex(1, len(clients) + 1, name="client")
    counts = counts[sorted(counts.columns)]
    counts = counts.assign(total=counts.sum(axis=1), share=(counts.sum(axis=1) / counts.to_numpy().sum()).round(3))
    if group_column not in cases:
        return counts
    names = group_names(cases[group_column])
    return counts.assign(groups=[", ".join(sorted(names.iloc[rows].unique())) for rows in clients])
