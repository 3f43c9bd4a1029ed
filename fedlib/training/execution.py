"""What every experiment does, however it trains: lock, resume, train, score on the test split once, record."""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import torch

from fedlib import tasks
from fedlib.config import DELTA, EPSILON_COVERS, RunConfig
from fedlib.data.dataset import PreparedDataset
from fedlib.data.partition import clients_of
from fedlib.training.loop import deterministic_kernels, device, evaluate, forward, get_state_dict, initial_model, train_round
from fedlib.training.plateau import training_state
from fedlib.training.run_store import Run, RunRecord, RunStore, provenance, state_sha256

Train = Callable[[RunConfig, PreparedDataset, RunRecord], None]
"""Trains a run; rounds, clients and final weights are then in its record."""


def execute(config: RunConfig, data: PreparedDataset, store: RunStore, train: Train, wait: bool = True) -> Run:
    """Train one configuration by `train` and score it, or read it from the store if it is done there.

    While another process trains it, wait for that one or, with `wait=False`, raise filelock.Timeout at once.

    The models are those after the last round: nothing is selected, the test split is touched once, at the end.
    A failure is written to the run's status and raised again; the next call resumes after the last finished round.
    """
    with store.lock(config.run_id, wait):
        if (known := store.get(config.run_id)) and known.done:
            return known
        record = store.begin(config)
        try:
            train(config, data, record)
            return _score(config, data, record)
        except Exception as error:
            record.set_status("failed", error=f"{type(error).__name__}: {error}")
            raise
        except KeyboardInterrupt:
            record.set_status("queued")
            raise


def load_model(run: Run, data: PreparedDataset, client: int | None = None) -> torch.nn.Module:
    """The trained model of a run; where each client has its own (`has_client_models`), that of one client."""
    model, state = initial_model(run.config, data), run.weights()
    prefix = "" if client is None else f"client{client}."
    model.load_state_dict({name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)})
    return model


@torch.inference_mode()
def predict(run: Run, data: PreparedDataset, rows: np.ndarray) -> np.ndarray:
    """Labels that a run's model gives to cases: classes (B,), or structures (B, X, Y, Z).

    Where each client has its own model, that of the first."""
    model = load_model(run, data, 0 if run.config.has_client_models else None).eval()
    images, _ = data.load_batch(rows, device(), run.config.input_low)
    with deterministic_kernels(run.config):
        return forward(model, images, run.config).argmax(1).cpu().numpy()


def train_locally(config: RunConfig, data: PreparedDataset, record: RunRecord) -> None:
    """Centralized and local-only: every client trains alone, from the same start, for as many rounds as a federation."""
    states, rounds = [], []
    for client, rows in enumerate(clients_of(config, data)):
        model = initial_model(config, data)
        state, progress = record.load_checkpoint(f"client{client}")
        if state:
            model.load_state_dict(state)
            record.log_clients(progress.clients)
        for number in range(len(progress.rounds) + 1, config.rounds + 1):
            trained = train_round(model, data, rows, config, client, number)
            scores = tasks.get(config.task).summarize(evaluate(model, data, data.split("val"), config))
            progress.clients.append({"round": number, "client": client, **trained, "bytes_down": 0, "bytes_up": 0})
            progress.rounds.append(
                {"round": number, **scores, "seconds": trained["seconds"], "bytes_down": 0, "bytes_up": 0}
            )
            record.log_clients(progress.clients[-1:])
            record.save_checkpoint(f"client{client}", get_state_dict(model), progress)
        states.append(get_state_dict(model))
        rounds += progress.rounds
    totals = {"seconds": "sum", "bytes_down": "sum", "bytes_up": "sum"}
    table = pd.DataFrame(rounds)
    how = {column: totals.get(column, "mean") for column in table.columns[1:]}
    record.log_rounds(table.groupby("round", as_index=False).agg(how).to_dict("records"))
    if config.mode == "centralized":
        record.save_weights(states[0])
    else:
        own = {f"client{k}.{name}": tensor for k, state in enumerate(states) for name, tensor in state.items()}
        record.save_weights(own)


def _score(config: RunConfig, data: PreparedDataset, record: RunRecord) -> Run:
    """Score the final model, or those of the clients, on the test split; write what a finished run has."""
    trained = Run(record.folder)
    alone = range(config.n_clients) if config.has_client_models else [None]
    tables, scores, hashes = [], [], []
    if config.mode == "federated":  # before the test split is read
        record.log_train_cases(_score_train_cases(trained, data))
    for client in alone:
        model = load_model(trained, data, client)
        cases = evaluate(model, data, data.split("test"), config, final=True)
        scores.append(tasks.get(config.task).summarize(cases))
        hashes.append(state_sha256(model.state_dict()))
        tables.append(cases if client is None else cases.assign(client=client))
    record.log_cases(pd.concat(tables, ignore_index=True))
    if config.has_client_models:
        tested = [{f"test_{metric}": score for metric, score in row.items()} for row in scores]
        record.log_test_scores([row | {"weights_sha256": sha} for row, sha in zip(tested, hashes, strict=True)])
        weights_sha256 = hashlib.sha256("".join(hashes).encode()).hexdigest()
    else:
        weights_sha256 = hashes[0]
    about, result = provenance(config, weights_sha256, device()), pd.DataFrame(scores).mean().to_dict()
    if config.privacy != "none":
        result["epsilon"] = float(trained.rounds["epsilon"].iloc[-1])
        about["privacy"] = {"epsilon": result["epsilon"], "delta": DELTA, "unit": "client", "mechanism": config.privacy,
                            "covers": EPSILON_COVERS[config.privacy]}  # fmt: skip
    return record.finish(about, _result(trained, data, result, weights_sha256))


def _score_train_cases(run: Run, data: PreparedDataset) -> pd.DataFrame:
    """How the model does at each client: on its own training cases, since no client holds test cases."""
    apart, tables = run.config.has_client_models, []
    model = None if apart else load_model(run, data)
    for client, rows in enumerate(clients_of(run.config, data)):
        own = load_model(run, data, client) if apart else model
        tables.append(evaluate(own, data, rows, run.config).assign(client=client))
    return pd.concat(tables, ignore_index=True)


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
