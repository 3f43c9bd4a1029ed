"""Hand a run's model over: a MONAI bundle with plain torch weights, ONNX checked against torch, and a model card."""

import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jinja2
import torch

from fedlib import analysis, tasks
from fedlib.config import StudyConfig, UserError
from fedlib.data.dataset import SPLITS, PreparedDataset, chosen, open_prepared
from fedlib.data.files import require_empty
from fedlib.study.record import open_run
from fedlib.training.execution import load_model
from fedlib.training.run_store import Run

TEMPLATES = Path(__file__).resolve().parent / "templates" / "bundle"
PACKAGES = {"monai": "monai", "pytorch": "torch", "numpy": "numpy"}
"""Their names in metadata.json, and in a run's provenance."""
N_CHECKED = 10
LARGEST_DIFFERENCE = 1e-3
"""Of a probability between ONNX and torch (*chosen*): rounding is a thousand times smaller."""


def export(folder: Path, to: Path) -> float:
    """Write a run's model as a MONAI bundle to `to`; return the largest difference of a probability from torch to ONNX.

    Raises UserError when `to` is not empty, the run has GroupNorm, its prepared set or the extra `export` is not there, or
    ONNX differs.
    """
    if not all(map(find_spec, ("onnx", "onnxruntime"))):
        raise UserError("export needs onnx and onnxruntime; expected pip install -e '.[export]'")
    run, study, _ = open_run(folder)
    if run.config.batch_norm == "group":
        raise UserError(f"{folder}: batch_norm = 'group'; MONAI's ResNet has no such layers, so no bundle can name it")
    require_empty(to, "--to")
    data = open_prepared(study.prepared_dir, run.config.task)
    if data.fingerprint != run.config.data_fingerprint:
        raise UserError(f"{data.folder}: not the set that {run.folder.name} was trained on; expected that one")
    for name in ("configs", "models", "docs"):
        (to / name).mkdir(parents=True, exist_ok=True)
    model = load_model(run, data).cpu().eval()
    torch.save(model.state_dict(), to / "models" / "model.pt")
    difference = _write_onnx(model, data.load_batch(data.split("test")[:N_CHECKED], low=run.config.input_low)[0], to)
    for name, content in zip(("metadata", "inference"), _bundle(run, data), strict=True):
        (to / "configs" / f"{name}.json").write_text(json.dumps(content, indent=2))
    (to / "docs" / "README.md").write_text(model_card(run, study, data, difference))
    return difference


@torch.inference_mode()
def _write_onnx(model: torch.nn.Module, images: torch.Tensor, to: Path) -> float:
    """Write model.onnx; return the largest difference of a probability over these cases, by onnxruntime."""
    import onnxruntime  # here: of the extra `export`

    path, names = to / "models" / "model.onnx", {"input_names": ["image"], "output_names": ["pred"]}
    axes = {"image": {0: "batch"}, "pred": {0: "batch"}}
    with warnings.catch_warnings(action="ignore"):  # torch's newer exporter takes ten times as long, and more packages
        torch.onnx.export(model, (images[:1],), path, dynamo=False, dynamic_axes=axes, **names)
    session = onnxruntime.InferenceSession(path)
    found = torch.cat([torch.from_numpy(session.run(None, {"image": image[None].numpy()})[0]) for image in images])
    expected = torch.cat([model(image[None]) for image in images])
    difference = float((found.softmax(1) - expected.softmax(1)).abs().max())
    if not difference <= LARGEST_DIFFERENCE:
        raise UserError(f"{path}: differs from torch by {difference:.2g}; expected at most {LARGEST_DIFFERENCE}")
    return difference


def _bundle(run: Run, data: PreparedDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return metadata.json and inference.json: the templates with what is the run's own."""
    template, config, task = json.loads((TEMPLATES / "bundle.json").read_text()), run.config, tasks.get(run.config.task)
    prepared = chosen(data.manifest["choices"])
    shape, window = list(data.images.shape[2:]), prepared.get("window")
    tensor = {"type": "image", "spatial_shape": shape, "dtype": "float32", "is_patch_data": False}
    image = {"format": "magnitude", "modality": prepared.get("modality", "x-ray"), "num_channels": 1,
             "value_range": [config.input_low, 1], "channel_def": {"0": "image"}}  # fmt: skip
    pred = {"format": "labels", "num_channels": len(data.classes), "value_range": [],
            "channel_def": {str(n): name for n, name in enumerate(data.classes)}}  # fmt: skip
    if config.task == "classification":
        pred |= {"type": "probabilities", "format": "classes", "spatial_shape": []}
    metadata = template["metadata"] | {
        **{f"{name}_version": run.provenance["versions"][package] for name, package in PACKAGES.items()},
        "task": f"{config.task} of {data.manifest['title']}",
        "description": f"{analysis.arm_name(config)}; run {config.run_id}, weights {run.result['weights_sha256']}",
        "data_source": data.manifest["title"],
        "eval_metrics": {metric: run.result[metric] for metric in task.PRIMARY},
        "network_data_format": {"inputs": {"image": tensor | image}, "outputs": {"pred": tensor | pred}},
    }
    network = f"{task.NETWORK.__module__}.{task.NETWORK.__qualname__}"
    own = {"size": shape, "low": config.input_low, "spacing_mm": data.manifest["spacing_mm"],
           "window": None if isinstance(window, str) else window, "whole": prepared.get("crop") != "centre",
           "network_def": {"_target_": network} | task.network_arguments(config, len(data.classes))}  # fmt: skip
    return metadata, template["common"] | own | template[config.task]


def model_card(run: Run, study: StudyConfig, data: PreparedDataset, difference: float) -> str:
    """Return the model card in Markdown, from the run's own record."""
    tables = {"Primary endpoints": analysis.compare([run], study), "Each part": analysis.part_scores([run], study)}
    tables["Each source"] = analysis.by_source([run], study)
    shown = {title: analysis.readable(table).drop(columns=["arm", "the paper"], errors="ignore")
             for title, table in tables.items() if not table.empty}  # fmt: skip
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), trim_blocks=True, lstrip_blocks=True)
    return environment.get_template("model_card.md.j2").render(
        run=run, config=run.config, study=study, manifest=data.manifest, tables=shown, failures=_failures(run),
        arm=analysis.arm_name(run.config), difference=difference, sizes={s: len(data.split(s)) for s in SPLITS},
        names=tasks.NAMES, primary=tasks.get(run.config.task).PRIMARY,
    )  # fmt: skip


def _failures(run: Run) -> list[str]:
    """Return where the model fails most: classes taken for others, or structures that are missed or worst."""
    cases = run.cases
    if run.config.task == "classification":
        wrong = cases[cases["truth"] != cases["prediction"]].groupby(["truth", "prediction"]).size().nlargest(5)
        return [f"{truth} taken for {prediction}: {n} of {(cases['truth'] == truth).sum()} test cases"
                for (truth, prediction), n in wrong.items()]  # fmt: skip
    dice = {name: cases[f"dice_{name}"].dropna() for name in run.classes[1:]}
    return [f"{name}: missed in {(values == 0).sum()} of {len(values)} test cases; lowest DSC {values.min():.3f}"
            for name, values in dice.items()]  # fmt: skip
