"""The sources, each one function: raw images in, prepared set out. The command line and the notebooks call these."""

import tempfile
from pathlib import Path
from typing import Any, Literal

from filelock import FileLock

from data_prep import class_folders, mmwhs
from data_prep.pipeline import check_out, opened, prepare, progress
from data_prep.synthetic_cardiac import write_cardiac_ct
from data_prep.synthetic_cxr import write_chest_xrays
from fedlib.config import StudyConfig, UserError
from fedlib.data import PreparedSet, open_prepared

SYNTHETIC_FIELD_MM = 140.0
"""Field of view of a prepared phantom, whatever its size in voxels: the heart and a rim around it."""


def prepare_class_folders(
    source: Path, out: Path, size: int = 224, where: str | None = None, about: dict[str, Any] | None = None, **options: Any
) -> PreparedSet:
    """Prepare images in one folder a class: uint8 (N, 1, size, size). `options` are those of `pipeline.prepare`."""
    check_out(out, options.get("overwrite", False))
    with opened(source) as folder:
        cases = class_folders.find_cases(folder, where)
        manifest = {
            "task": class_folders.TASK,
            "source": "class-folders",
            "title": f"images from {source.name}",
            "synthetic": False,
            "classes": class_folders.class_names(cases),
            "spacing_mm": None,
            "recipe": {"size": size, "where": where},
        }
        return prepare(cases, class_folders.loader(cases, size), out, manifest | (about or {}), **options)


def prepare_mmwhs(
    source: Path, out: Path, settings: mmwhs.Settings, about: dict[str, Any] | None = None, **options: Any
) -> PreparedSet:
    """Prepare NIfTI pairs in MM-WHS naming: uint8 (N, 1, X, Y, Z) at one spacing. `options` as in `pipeline.prepare`."""
    check_out(out, options.get("overwrite", False))
    with opened(source) as folder:
        manifest = {
            "task": mmwhs.TASK,
            "source": "mmwhs",
            "title": f"cardiac {'CT' if settings.modality == 'ct' else 'MRI'} from {source.name}",
            "synthetic": False,
            "classes": mmwhs.CLASSES,
            "spacing_mm": settings.spacing_mm,
            "recipe": vars(settings),
        }
        return prepare(mmwhs.find_cases(folder), mmwhs.loader(settings), out, manifest | (about or {}), **options)


def prepare_synthetic(
    task: Literal["classification", "segmentation"],
    out: Path,
    cases: int,
    size: int,
    seed: int = 0,
    keep_raw: Path | None = None,
    overwrite: bool = False,
) -> PreparedSet:
    """Write phantoms as files in the layout of the real data, then prepare those files by the very same adapters.

    The raw files go to `keep_raw`, or to a temporary folder that is removed.
    """
    check_out(out, overwrite)
    if keep_raw and keep_raw.exists() and any(keep_raw.iterdir()):
        raise UserError(f"--keep-raw {keep_raw}: is not empty; expected a new folder")
    about = {"synthetic": True, "recipe": synthetic_recipe(task, cases, size, seed)}
    with tempfile.TemporaryDirectory(prefix="phantoms-") as temporary:
        raw = keep_raw or Path(temporary)
        if task == "classification":
            about |= {"source": "synthetic-cxr", "title": "synthetic chest X-ray phantoms"}
            write_chest_xrays(raw, cases, 2 * size, seed, progress=_bar("drawing chest X-rays"))
            return prepare_class_folders(raw, out, size, about=about, seed=seed, overwrite=overwrite)
        about |= {"source": "synthetic-cardiac", "title": "synthetic cardiac CT phantoms"}
        write_cardiac_ct(raw, cases, seed, progress=_bar("drawing hearts"))
        settings = mmwhs.Settings(spacing_mm=(SYNTHETIC_FIELD_MM / size,) * 3, size=(size,) * 3)
        return prepare_mmwhs(raw, out, settings, about=about, seed=seed, overwrite=overwrite)


def synthetic_recipe(task: str, cases: int, size: int, seed: int) -> dict[str, Any]:
    """What a synthetic set is made from; kept in its manifest, so that another recipe is seen."""
    return {"task": task, "cases": cases, "size": size, "seed": seed}


def ensure(study: StudyConfig) -> PreparedSet:
    """The prepared set of a study: the one at its data_dir or, if none is given, a synthetic one, made when missing."""
    out = study.prepared_dir
    if study.data_dir:
        return open_prepared(out, study.task)
    recipe = synthetic_recipe(study.task, study.synthetic_cases, study.size, seed=0)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / f".{study.task}.lock"):
        if (out / "manifest.json").exists():
            known = open_prepared(out, study.task)
            if known.manifest["recipe"] == recipe:
                return known
        return prepare_synthetic(**recipe, out=out, overwrite=True)


def _bar(description: str):
    return lambda cases: progress(cases, description, "case")
