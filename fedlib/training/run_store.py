"""The run store: a folder per run, readable at any moment, whole after any crash.

Every file is written aside and renamed. `status.json` is written last and carries the result, so a run is done exactly when
its result is there. Readers (statistics, plots, the report) use nothing but this store.
"""

import hashlib
import json
import platform
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from fedlib.config import ROOT, RunConfig, UserError, validated
from fedlib.data.dataset import read_cases
from fedlib.data.files import file_sha256, write_atomically
from fedlib.data.partition import group_names

State = dict[str, torch.Tensor]
Rows = list[dict[str, Any]]
PACKAGES = ("torch", "monai", "flwr", "torchmetrics", "numpy", "pandas")


@dataclass(frozen=True)
class Run:
    """One run: its folder, read by everybody and written by the process that trains it."""

    folder: Path
    source: str = ""
    """Read the test cases of this source only, where the set was merged of several."""

    @cached_property
    def config(self) -> RunConfig:
        """The run's configuration. Raises UserError when it is damaged or another version of this project wrote it."""
        path = self.folder / "config.json"
        try:
            return validated(RunConfig, json.loads(path.read_text()))
        except ValueError as error:  # UserError is one
            raise UserError(f"{path}: damaged or of another version ({error}); remove the folder") from None

    @property
    def status(self) -> dict[str, Any]:
        """state (queued, running, done, failed), since, and error, or result and files. A damaged one is a failed run's."""
        try:
            status = json.loads((self.folder / "status.json").read_text())
            if status["state"] == "done":
                status["result"]["weights_sha256"]
            return status
        except (ValueError, LookupError, TypeError) as error:
            return {"state": "failed", "error": f"status.json: damaged ({type(error).__name__}: {error})"}

    @property
    def done(self) -> bool:
        return self.status["state"] == "done"

    @cached_property
    def result(self) -> dict[str, Any]:
        """The run's row of results.csv."""
        return self.status["result"]

    @cached_property
    def provenance(self) -> dict[str, Any]:
        return json.loads(self.verified_path("provenance.json").read_text())

    @property
    def rounds(self) -> pd.DataFrame:
        """A row per round: validation metrics, seconds, bytes_down, bytes_up."""
        return pd.read_csv(self.verified_path("rounds.csv"))

    @property
    def clients(self) -> pd.DataFrame:
        """A row per client (from 0) and round: n, loss, training metric, seconds, bytes_down, bytes_up.

        Where a quorum let a round go on without a client, its row has the reason in a column `absent`.
        """
        return pd.read_csv(self.verified_path("clients.csv"))

    @cached_property
    def validation(self) -> pd.DataFrame | None:
        """What the global model of each round said of the validation cases, a row per round and case, as in `cases`.

        None where there is no such model: outside of federated runs, or where each client has its own.
        """
        kept = "validation.csv" in self.status.get("files", {})
        return read_cases(self.verified_path("validation.csv")) if kept else None

    @cached_property
    def cases(self) -> pd.DataFrame:
        """A row per test case (for local runs: per client and test case)."""
        cases = read_cases(self.verified_path("cases.csv"))
        return cases[group_names(cases["source"]) == self.source] if self.source else cases

    @property
    def classes(self) -> list[str]:
        """Names behind the label values that the model gives: the classes, or background and the structures."""
        names = [column.partition("_")[2] for column in self.cases if column.startswith(("p_", "dice_"))]
        return names if self.config.task == "classification" else ["background", *names]

    def weights(self) -> State:
        """The final weights; of a local run those of all clients, their names prefixed `client0.`, `client1.`, ..."""
        return load_file(self.verified_path("weights.safetensors"))

    def verified_path(self, name: str) -> Path:
        """The path of one of the run's files, as it was when the run was done.

        Raises UserError when the file is missing, or differs from the hash that status.json holds of it.
        """
        path, mend = self.folder / name, "remove the run's folder to train it again"
        if not path.exists():
            raise UserError(f"{path}: is missing; {mend}")
        recorded = self.status.get("files", {}).get(name)
        if recorded and file_sha256(path) != recorded:
            raise UserError(f"{path}: edited or cut short since the run was done (its hash differs); {mend}")
        return path

    def set_status(self, state: str, **more: Any) -> None:
        """Write status.json anew, with the time."""
        text = json.dumps({"state": state, "since": datetime.now(UTC).isoformat(timespec="seconds"), **more}, indent=2)
        write_atomically(self.folder / "status.json", text)

    def write_table(self, name: str, rows: Rows | pd.DataFrame) -> None:
        """Write one of the run's tables anew."""
        write_atomically(self.folder / name, pd.DataFrame(rows).to_csv(index=False))

    def log_validation(self, number: int, cases: pd.DataFrame) -> None:
        """Add a round's rows to validation.csv; those that an interrupted try wrote of it or of a later one go."""
        earlier = [read_cases(self.folder / "validation.csv").query("round < @number")] if number > 1 else []
        self.write_table("validation.csv", pd.concat([*earlier, cases.assign(round=number)]))

    def save_weights(self, state: State) -> None:
        """Write weights.safetensors."""
        write_atomically(self.folder / "weights.safetensors", save(state))

    def save_checkpoint(self, name: str, state: State, rounds: Rows, clients: Rows) -> None:
        """Keep the weights of `global` or `client0`, `client1`, ... with the rows of the rounds that led to them."""
        (self.folder / "checkpoints").mkdir(exist_ok=True)
        about = {"run_id": self.folder.name, "rounds": json.dumps(rounds), "clients": json.dumps(clients)}
        write_atomically(self.folder / "checkpoints" / f"{name}.safetensors", save(state, about))

    def load_checkpoint(self, name: str) -> tuple[State, Rows, Rows]:
        """Return weights, and the rows of rounds.csv and clients.csv, to resume from; all empty where the run has to begin.

        Raises UserError when the checkpoint is damaged or another run's.
        """
        path = self.folder / "checkpoints" / f"{name}.safetensors"
        if not path.exists():
            return {}, [], []
        try:
            with safe_open(path, "pt") as file:
                about, state = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            if about["run_id"] != self.folder.name:
                raise UserError(f"{path}: of run {about['run_id']}, expected {self.folder.name}; remove it to begin anew")
            return state, json.loads(about["rounds"]), json.loads(about["clients"])
        except (SafetensorError, OSError, LookupError, TypeError) as error:
            raise UserError(f"{path}: damaged ({error}); expected a checkpoint; remove it to begin anew") from None

    def finish(self, provenance: dict[str, Any], result: dict[str, Any]) -> "Run":
        """Write provenance.json, then the status `done` with the result and the hash of every file: now the run counts."""
        write_atomically(self.folder / "provenance.json", json.dumps(provenance, indent=2))
        files = {path.name: file_sha256(path) for path in sorted(self.folder.glob("[!.]*.*")) if path.name != "status.json"}
        self.set_status("done", result=result, files=files)
        shutil.rmtree(self.folder / "checkpoints", ignore_errors=True)
        return self


class RunStore:
    """All runs under `<out_dir>/runs/`."""

    def __init__(self, out_dir: Path | str):
        self.out_dir = Path(out_dir)
        self.folder = self.out_dir / "runs"

    def get(self, run_id: str) -> Run | None:
        """The run of that id, begun or done; None when it was never begun."""
        run = Run(self.folder / run_id)
        return run if (run.folder / "status.json").exists() else None

    def done(self, configs: list[RunConfig]) -> list[Run]:
        """Those of the configurations whose runs are done, in the same order."""
        found = [self.get(config.run_id) for config in configs]
        return [run for run in found if run and run.done]

    def require_centralized(self, configs: list[RunConfig]) -> list[Run]:
        """The runs that are done. Raises UserError when the centralized one, which all are compared with, is not."""
        runs = self.done(configs)
        if not any(run.config.mode == "centralized" for run in runs):
            raise UserError(f"out_dir = {str(self.out_dir)!r}: no centralized run there; run notebooks 02 and 03 first")
        return runs

    def all(self) -> list[Run]:
        """Every run in the store, by name."""
        return [Run(status.parent) for status in sorted(self.folder.glob("*/status.json"))]

    def lock(self, run_id: str, wait: bool = True) -> FileLock:
        """A lock that dies with its process: two processes never train the same run.

        `wait=False`: entering a lock that is held raises filelock.Timeout at once.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / f".{run_id}.lock", timeout=-1 if wait else 0)

    def begin(self, config: RunConfig) -> Run:
        """Open the folder of a run for writing; an interrupted run resumes from its checkpoints.

        Its config.json stays: the margins in it were stated before anything was seen of the run.
        """
        run = Run(self.folder / config.run_id)
        run.folder.mkdir(parents=True, exist_ok=True)
        try:
            _ = run.config
        except (UserError, FileNotFoundError):
            write_atomically(run.folder / "config.json", config.model_dump_json(indent=2))
        run.set_status("running")
        return run

    def results(self, runs: list[Run] | None = None) -> pd.DataFrame:
        """One tidy row per finished run."""
        return pd.DataFrame([run.result for run in (self.all() if runs is None else runs) if run.done])

    def write_results(self) -> None:
        """Write results.csv anew from the runs that are done."""
        write_atomically(self.out_dir / "results.csv", self.results().to_csv(index=False))


def state_sha256(state: State) -> str:
    """Hash of a model's weights: names, types, shapes and bits, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = state[name].detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape};".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def joint_sha256(hashes: Iterable[str]) -> str:
    """Hash of several hashes, in their order: that of the clients' own models is a run's weights_sha256."""
    return hashlib.sha256("".join(hashes).encode()).hexdigest()


def provenance(config: RunConfig, weights_sha256: str, device: torch.device) -> dict[str, Any]:
    """What somebody needs to know to get the same bits again."""
    return {
        "weights_sha256": weights_sha256,
        "data_fingerprint": config.data_fingerprint,
        "seed": config.seed,
        "precision": config.precision,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "code_sha256": code_sha256(),
        "commit": commit(),
    }


def commit() -> str:
    """The commit of this checkout, with `+changes` when files differ from it; `unknown` outside of git."""
    try:
        describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+changes", "--abbrev=40", "--exclude=*"]
        return subprocess.run(describe, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def code_sha256() -> str:
    """Hash of this package's Python files: the same in a checkout and in the app that Flower hands to its nodes."""
    digest, package = hashlib.sha256(), ROOT / "fedlib"
    for path in sorted(package.rglob("*.py")):
        digest.update(f"{path.relative_to(package).as_posix()} {file_sha256(path)};".encode())
    return digest.hexdigest()


def software() -> dict[str, str]:
    """Versions that server and nodes of a federation must share; of torch without its build (CPU or GPU)."""
    return {name: version(name).partition("+")[0] for name in ("torch", "monai", "flwr")} | {"fedlib": code_sha256()[:12]}
