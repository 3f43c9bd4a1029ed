"""What every experiment does, however it trains: lock, resume, train, score on the test split once, record."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from fedlib import tasks
from fedlib.config import DELTA, EPSILON_COVERS, RunConfig
from fedlib.data.dataset import PreparedDataset
from fedlib.data.partition import clients_of
from fedlib.training.loop import device, evaluate, forward, get_state_dict, initial_model, train_round
from fedlib.training.plateau import training_state
from fedlib.training.run_store import Run, RunStore, State, joint_sha256, provenance, state_sha256

Train = Callable[[RunConfig, PreparedDataset, Run], None]
"""Trains a run; rounds, clients and final weights are then in its folder."""
SILENT = {"bytes_down": 0, "bytes_up": 0}
"""What a client sends and receives that trains alone."""


def execute(config: RunConfig, data: PreparedDataset, store: RunStore, train: Train, wait: bool = True) -> Run:
    """Train one configuration by `train` and score it, or read it from the store if it is done there.

    While another process trains it, wait for that one or, with `wait=False`, raise filelock.Timeout at once.

    The models are those after the last round: nothing is selected, the test split is touched once, at the end.
    A failure is written to the run's status and raised again; the next call resumes after the last finished round.
    """
    with store.lock(config.run_id, wait):
        if (known := store.get(config.run_id)) and known.done:
            return known
        run = store.begin(config)
        try:
            train(config, data, run)
            return _score(config, data, run)
        except Exception as error:
            run.set_status("failed", error=f"{type(error).__name__}: {error}")
            raise
        except KeyboardInterrupt:
            run.set_status("queued")
            raise


def load_model(run: Run, data: PreparedDataset, client: int | None = None) -> torch.nn.Module:
    """Return the trained model of a run; where each client has its own (`has_client_models`), that of one client."""
    model, state = initial_model(run.config, data), run.weights()
    model.load_state_dict(state if client is None else of_client(state, client))
    return model


@torch.inference_mode()
def predict(run: Run, data: PreparedDataset, rows: np.ndarray) -> np.ndarray:
    """Return the labels that a run's model gives to cases: classes (B,), or structures (B, X, Y, Z).

    Where each client has its own model, the first one's.
    """
    model = load_model(run, data, 0 if run.config.has_client_models else None).eval()
    images, _ = data.load_batch(rows, device(), run.config.input_low)
    return forward(model, images, run.config).argmax(1).cpu().numpy()


def by_client(states: dict[int, State]) -> State:
    """Return the weights of all clients as one state, no tensor twice; names get the prefix `client0.`, `client1.`, ..."""
    return {f"client{client}.{name}": value.clone() for client, state in states.items() for name, value in state.items()}


def of_client(state: State, client: int) -> State:
    """Return the weights of one client of a state made by `by_client`."""
    prefix = f"client{client}."
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}


def train_locally(config: RunConfig, data: PreparedDataset, run: Run) -> None:
    """Centralized and local-only: every client trains alone, from the same start, for as many rounds as a federation."""
    states, rounds, clients = {}, [], []
    for client, rows in enumerate(clients_of(config, data)):
        model = initial_model(config, data)
        state, scored, trained = run.load_checkpoint(f"client{client}")
        if state:
            model.load_state_dict(state)
        for number in range(len(scored) + 1, config.rounds + 1):
            done = train_round(model, data, rows, config, client, number)
            scores = tasks.get(config.task).summarize(evaluate(model, data, data.split("val"), config))
            trained.append({"round": number, "client": client, **done, **SILENT})
            scored.append({"round": number, **scores, "seconds": done["seconds"], **SILENT})
            run.write_table("clients.csv", clients + trained)
            run.save_checkpoint(f"client{client}", get_state_dict(model), scored, trained)
        states[client] = get_state_dict(model)
        rounds += scored
        clients += trained
    run.write_table("clients.csv", clients)
    table = pd.DataFrame(rounds)
    how = {column: "sum" if column in ("seconds", *SILENT) else "mean" for column in table.columns[1:]}
    run.write_table("rounds.csv", table.groupby("round", as_index=False).agg(how))
    run.save_weights(states[0] if config.mode == "centralized" else by_client(states))


def _score(config: RunConfig, data: PreparedDataset, run: Run) -> Run:
    """Score the final model, or those of the clients, on the test split; write what a finished run has."""
    task, apart = tasks.get(config.task), config.has_client_models
    models = [load_model(run, data, client) for client in (range(config.n_clients) if apart else [None])]
    tested = [evaluate(model, data, data.split("test"), config, final=True) for model in models]
    run.write_table("cases.csv", _numbered(tested) if apart else tested[0])
    result = pd.DataFrame([task.summarize(cases) for cases in tested]).mean().to_dict()
    hashes = [state_sha256(model.state_dict()) for model in models]
    weights_sha256 = joint_sha256(hashes) if apart else hashes[0]
    about = provenance(config, weights_sha256, device())
    if config.privacy != "none":
        result["epsilon"] = float(run.rounds["epsilon"].iloc[-1])
        about["privacy"] = {"epsilon": result["epsilon"], "delta": DELTA, "unit": "client", "mechanism": config.privacy,
                            "covers": EPSILON_COVERS[config.privacy]}  # fmt: skip
    return run.finish(about, _result(run, data, result, weights_sha256))


def _numbered(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Return the tables of the clients (from 0) as one, with a column `client`."""
    return pd.concat([table.assign(client=client) for client, table in enumerate(tables)], ignore_index=True)


def _result(run: Run, data: PreparedDataset, metrics: dict[str, float], weights_sha256: str) -> dict[str, Any]:
    """The run's row of results.csv. seconds: of all rounds, without the server's scoring; bytes: both ways, all rounds."""
    config, rounds, primary = run.config, run.rounds, tasks.get(run.config.task).PRIMARY
    shown = ("task", "mode", "n_clients", "partition", "strategy", "seed", "rounds", "local_epochs")
    return {
        "run_id": config.run_id,
        **{name: getattr(config, name) for name in shown},
        "n_train": len(data.split("train")),
        "n_test": len(data.split("test")),
        **metrics,
        **{f"{metric}_training": training_state(rounds[metric].tolist(), config.margin(metric)) for metric in primary},
        "seconds": round(float(rounds["seconds"].sum()), 3),
        "bytes": int(rounds[["bytes_down", "bytes_up"]].to_numpy().sum()),
        "weights_sha256": weights_sha256,
    }
