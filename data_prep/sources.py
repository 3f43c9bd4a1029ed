"""The sources, each one function: raw images in, prepared set out. The command line and the notebooks call these."""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from data_prep import cardiac, class_folders, covid19_radiography, mmwhs, msd, nifti, totalsegmentator
from data_prep.cases import Case
from data_prep.files import Files, opened
from data_prep.pipeline import READER, digest, prepare, up_to_date
from data_prep.synthetic_cardiac import write_cardiac_ct
from data_prep.synthetic_cxr import Findings, write_chest_xrays
from fedlib.config import StudyConfig, UserError, validated
from fedlib.data.dataset import PreparedDataset, open_prepared
from fedlib.data.files import require_empty

SYNTHETIC_FIELD_MM = 140.0
"""Field of view of a prepared phantom, whatever its size in voxels: the heart and a rim around it."""
CARDIAC = {"mmwhs": mmwhs, "totalsegmentator": totalsegmentator, "msd": msd}
"""The adapters for cardiac volumes, by the name of their source."""


def prepare_class_folders(
    source: Path, out: Path, size: int = 224, where: str | None = None, about: dict[str, Any] | None = None, **options: Any
) -> PreparedDataset:
    """Prepare images in one folder a class: uint8 (N, 1, size, size). `options` are those of `pipeline.prepare`."""
    about = {"source": "class-folders", "recipe": {"size": size, "where": where}} | (about or {})
    with opened(source) as files:
        return _prepare_radiographs(files, class_folders.find_cases(files, where), out, size, about, options)


def prepare_covid19_radiography(
    source: Path, out: Path, size: int = 224, subset: bool = False, **options: Any
) -> PreparedDataset:
    """Prepare the COVID-19 Radiography Database: uint8 (N, 1, size, size). `options` are those of `pipeline.prepare`.

    With `subset` other counts than the published ones are accepted.
    """
    about = {"source": "covid19-radiography", "recipe": {"size": size}}
    with opened(source) as files:
        return _prepare_radiographs(files, covid19_radiography.find_cases(files, subset), out, size, about, options)


def _prepare_radiographs(
    files: Files, cases: list[Case], out: Path, size: int, about: dict[str, Any], options: dict[str, Any]
) -> PreparedDataset:
    classes = class_folders.class_names(cases)
    manifest = {
        "task": "classification",
        "title": f"images from {files.source.name}",
        "synthetic": False,
        "classes": classes,
        "spacing_mm": None,
        "choices": class_folders.choices(size),
    }
    load = partial(class_folders.load, classes=classes, size=size)
    return prepare(files, cases, load, out, manifest | about, **options)


def prepare_cardiac(
    adapter: str,
    source: Path,
    out: Path,
    settings: cardiac.Settings | None = None,
    about: dict[str, Any] | None = None,
    **options: Any,
) -> PreparedDataset:
    """Prepare cardiac volumes with LV and myocardium: uint8 (N, 1, X, Y, Z) at one spacing.

    `adapter` is one of CARDIAC; `settings` are its DEFAULTS if None; `options` are those of `pipeline.prepare`.
    """
    with opened(source) as files:
        cases, settings = CARDIAC[adapter].find_cases(files, settings or CARDIAC[adapter].DEFAULTS)
        if not cases:
            raise UserError(f"--input {source}: {CARDIAC[adapter].NONE}{nifti.others(files)}")
        cardiac.check_structures(settings)
        manifest = {
            "task": "segmentation",
            "source": adapter,
            "title": f"cardiac {'CT' if settings.modality == 'ct' else 'MRI'} from {source.name}",
            "synthetic": False,
            "classes": cardiac.CLASSES,
            "spacing_mm": settings.spacing_mm,
            "recipe": vars(settings),
            "choices": cardiac.choices(settings),
        }
        return prepare(files, cases, partial(cardiac.load, settings=settings), out, manifest | (about or {}), **options)


def prepare_synthetic(
    task: Literal["classification", "segmentation"],
    out: Path,
    cases: int,
    size: int,
    seed: int = 0,
    keep_raw: Path | None = None,
    overwrite: bool = False,
    findings: Findings = "mild",
    images_per_patient: int | None = None,
    **splitting: Any,
) -> PreparedDataset:
    """Write phantoms as files in the layout of the real data, then prepare those files by the very same adapters.

    The raw files go to `keep_raw`, or to a temporary folder that is removed. `splitting`: fractions and split_by.
    `findings` and `images_per_patient` are for chest X-rays: mild findings are slow to learn, clear ones quick
    (`synthetic_cxr`).
    """
    recipe = {"task": task, "cases": cases, "size": size, "seed": seed, "findings": findings}
    if images_per_patient:
        recipe["images_per_patient"] = images_per_patient
    made_from = digest([READER, recipe, *sorted(splitting.items())])
    if (found := up_to_date(out, made_from, overwrite)) and not keep_raw:  # before anything is drawn
        return found
    if keep_raw:
        require_empty(keep_raw, "--keep-raw")
    field = (SYNTHETIC_FIELD_MM / size,) * 3
    settings = validated(cardiac.Settings, {"spacing_mm": field, "size": (size,) * 3}) if task == "segmentation" else None
    about = {"synthetic": True, "recipe": recipe, "made_from": made_from}
    options = {"seed": seed, "overwrite": overwrite} | splitting
    with tempfile.TemporaryDirectory(prefix="phantoms-") as temporary:
        raw = keep_raw or Path(temporary)
        if task == "classification":
            about |= {"source": "synthetic-cxr", "title": f"synthetic chest X-ray phantoms with {findings} findings"}
            write_chest_xrays(raw, cases, 2 * size, seed, findings, images_per_patient)
            return prepare_class_folders(raw, out, size, about=about, **options)
        about |= {"source": "synthetic-cardiac", "title": "synthetic cardiac CT phantoms"}
        write_cardiac_ct(raw, cases, seed)
        return prepare_cardiac("mmwhs", raw, out, settings, about=about, **options)


def ensure(study: StudyConfig, **drawing: Any) -> PreparedDataset:
    """Return a study's prepared set: the one at its data_dir or, if none is given, a synthetic one, made when missing.

    `drawing`: more options of `prepare_synthetic`.
    """
    out = study.prepared_dir
    if study.data_dir:
        return open_prepared(out, study.task)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f".{study.task}.lock"):
        drawing |= {"findings": study.findings, "overwrite": True}
        return prepare_synthetic(study.task, out, study.synthetic_cases, study.size, **drawing)
