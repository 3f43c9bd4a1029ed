"""What an archive needs of a study: who made what from what (RO-Crate), and whether it is still so (verify)."""

import json
import mimetypes
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from fedlib import analysis
from fedlib.config import RECIPE, UserError
from fedlib.data.dataset import PreparedDataset, open_prepared
from fedlib.data.files import file_sha256, write_atomically
from fedlib.study import experiment
from fedlib.study.record import recall_studies
from fedlib.training.execution import of_client
from fedlib.training.run_store import Run, RunStore, joint_sha256, state_sha256

CRATE = "ro-crate-metadata.json"
CONDITIONS = ("device", "threads", "python", "versions", "code_sha256")
"""Of a run's provenance: where one differs, other weights are no fault."""
WHY = "sums run in another order on another processor, GPU or number of threads, and in other versions of torch"


def write_crate(out_dir: Path, runs: list[Run]) -> None:
    """Write ro-crate-metadata.json: data sets, software, and these finished runs with their files and hashes."""
    from rocrate.model.contextentity import ContextEntity  # here: half a second
    from rocrate.rocrate import ROCrate

    crate = ROCrate(version="1.1")  # which archives read
    crate.name = "Federated against centralized learning on medical images"
    crate.description = "A study by fedlib: every trained run with its record, and the report. Research only."
    if runs:
        crate.root_dataset["datePublished"] = max(run.status["since"] for run in runs)
    rights = {"@type": "CreativeWork", "name": "Not stated: add a licence and the authors before you publish"}
    crate.license, sources = crate.add(ContextEntity(crate, "#rights", properties=rights)), {}

    def add_file(name: str, sha256: str) -> Any:
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        return crate.add_file(out_dir / name, name, properties={"name": name, "sha256": sha256, "encodingFormat": kind})

    for study, data in recall_studies(out_dir):
        about = {"@type": "Dataset", "name": data["title"], "identifier": data["fingerprint"]}
        about["description"] = f"The prepared set for {study.task}; its images are not part of this crate."
        sources[study.task] = crate.add(ContextEntity(crate, f"#data-{study.task}", properties=about))
    for name in ("index.html", "results.csv", "study.json"):
        add_file(name, file_sha256(out_dir / name))
    for run in runs:
        place, made = f"runs/{run.folder.name}", run.provenance
        software = {"@type": "SoftwareApplication", "name": "fedlib", "softwareVersion": made["commit"]}
        software["softwareRequirements"] = [f"{name} {version}" for name, version in made["versions"].items()]
        files = [add_file(f"{place}/{name}", sha256) for name, sha256 in run.status["files"].items()]
        folder = {"name": analysis.arm_name(run.config), "identifier": run.result["weights_sha256"], "hasPart": files}
        crate.add_action(
            crate.add(ContextEntity(crate, f"#fedlib-{made['commit']}", properties=software)),
            f"#train-{run.folder.name}",
            object=sources.get(run.config.task),
            result=crate.add_dataset(out_dir / place, place, properties=folder),
            properties={"name": f"training of {run.folder.name}", "endTime": run.status["since"],
                        "description": f"seed {made['seed']} on {made['device']}, {made['threads']} threads"},
        )  # fmt: skip
    write_atomically(out_dir / CRATE, json.dumps(crate.metadata.generate(), indent=2))


def verify(out_dir: Path, run_id: str | None = None) -> tuple[list[str], str]:
    """Check every hash of a study, then train the shortest run, or the one named, again in a temporary folder.

    Returns what is wrong, a line each, and one line that says what agrees.
    Raises UserError when there is no such run, or when nothing is wrong and it or its data cannot be had.
    """
    store = RunStore(out_dir)
    runs = {run.folder.name: run for run in store.all() if run.done}
    if not runs or run_id not in (None, *runs):
        raise UserError(f"{out_dir}: no finished run {run_id or ''}; expected one of {', '.join(runs) or 'some'}")
    intact, damaged = analysis.check_integrity(store, runs)
    wrong = [f"{name}: {why}" for name, why in damaged.items()]
    wrong += [*_other_weights(intact), *_other_files(out_dir, runs)]
    run = runs[run_id] if run_id else min(intact or runs.values(), key=lambda run: run.result["seconds"])
    agreed = f"{len(intact)} of {len(runs)} runs are as they were recorded"
    try:
        data = _data_of(run, out_dir)
    except UserError as error:
        if not wrong:
            raise
        return wrong, f"{agreed}; none was trained again: {error}"
    again, same_conditions = _train_again(run, data)
    if again.result["weights_sha256"] == run.result["weights_sha256"]:
        took = f"in {again.result['seconds']:.0f} s"
        return wrong, f"{agreed}; {run.folder.name}, trained again {took}, has the same weights to the bit"
    if same_conditions:
        wrong.append(f"{run.folder.name}: trained again, it has other weights, under the same recorded conditions")
    return wrong, f"{agreed}; {run.folder.name}, trained again, has other weights, as it may: {WHY}"


def _data_of(run: Run, out_dir: Path) -> PreparedDataset:
    """Return the prepared set of a run. Raises UserError when it is another, or the run is of another version."""
    folders = [study.prepared_dir for study, data in recall_studies(out_dir) if study.task == run.config.task]
    data = open_prepared(*folders, run.config.task) if folders else None
    if not data or data.fingerprint != run.config.data_fingerprint or run.config.recipe != RECIPE:
        raise UserError(f"{run.folder.name}: of other data or another version (commit {run.provenance['commit']})")
    return data


def _train_again(run: Run, data: PreparedDataset) -> tuple[Run, bool]:
    """Train a run in a temporary folder with its number of threads; tell whether the recorded conditions are the same."""
    before = torch.get_num_threads()
    torch.set_num_threads(run.provenance["threads"])
    try:
        with tempfile.TemporaryDirectory() as folder:
            again = experiment.run(run.config, data, RunStore(folder))
            made, recorded = again.provenance, run.provenance  # read while the folder is there
            _ = again.result
    finally:
        torch.set_num_threads(before)
    return again, all(made[name] == recorded.get(name) for name in CONDITIONS)


def _other_weights(runs: list[Run]) -> Iterator[str]:
    """Yield the runs whose weights are not those of their hash."""
    for run in runs:
        try:
            state = run.weights()
        except UserError as error:
            yield str(error)
            continue
        found = state_sha256(state)
        if run.config.has_client_models:
            found = joint_sha256(state_sha256(of_client(state, client)) for client in range(run.config.n_clients))
        if found != run.result["weights_sha256"]:
            yield f"{run.folder.name}: its weights have another hash than its result"


def _other_files(out_dir: Path, runs: Iterable[str]) -> Iterator[str]:
    """Yield the files of the crate that are missing or changed, and its runs that are not among the finished `runs`."""
    if not (out_dir / CRATE).exists():
        yield f"{out_dir / CRATE}: is missing; `python -m fedlib report {out_dir}` writes it"
        return
    for entity in json.loads((out_dir / CRATE).read_text())["@graph"]:
        path = out_dir / entity["@id"]
        if path.parent == out_dir / "runs" and path.name not in runs:
            yield f"{path}: not a finished run any more; it was when {CRATE} was written"
        if "sha256" in entity and not (path.exists() and file_sha256(path) == entity["sha256"]):
            yield f"{path}: missing or changed since {CRATE} was written"
