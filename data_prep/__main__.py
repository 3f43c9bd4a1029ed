"""python -m data_prep SOURCE --input FOLDER_OR_ZIP --out DIR: make a prepared set."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from data_prep import sources
from data_prep.mmwhs import Settings
from fedlib.config import UserError, run_command_line
from fedlib.data import PreparedSet

HELP = """Turn raw images into a prepared set that the study trains on.

The set appears at --out whole or not at all: arrays, cases.csv (split by patient), qc.csv (rejected cases), manifest.json.
Then: python -m fedlib study --task ... --data DIR
"""

app = typer.Typer(help=HELP, no_args_is_help=True, add_completion=False, rich_markup_mode=None)


class OnBad(StrEnum):
    """What to do with a case that cannot be used."""

    stop = "stop"
    skip = "skip"


class Modality(StrEnum):
    """Decides the intensity window: Hounsfield units, or percentiles of each volume."""

    ct = "ct"
    mr = "mr"


Input = Annotated[Path, typer.Option("--input", help="Folder or zip with the raw images.")]
Out = Annotated[Path, typer.Option(help="Folder of the prepared set; must be new.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the prepared set that is there.")]
Bad = Annotated[OnBad, typer.Option(help="At a case that cannot be used: stop, or skip it and list it in qc.csv.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the splits and, for phantoms, of the images.")]
Raw = Annotated[Path | None, typer.Option(help="Keep the raw files, in the layout of the real data, in this new folder.")]


@app.command("synthetic-cxr")
def synthetic_cxr(
    out: Out,
    cases: Annotated[int, typer.Option(min=12, help="Number of images, a quarter in each class.")] = 1000,
    size: Annotated[int, typer.Option(min=16, help="Side of a prepared image in pixels.")] = 64,
    seed: Seed = 0,
    keep_raw: Raw = None,
    overwrite: Overwrite = False,
) -> None:
    """Chest X-ray phantoms in four categories, as PNGs in the folders of the COVID-19 Radiography Database."""
    _tell(sources.prepare_synthetic("classification", out, cases, size, seed, keep_raw, overwrite))


@app.command("synthetic-cardiac")
def synthetic_cardiac(
    out: Out,
    cases: Annotated[int, typer.Option(min=3, help="Number of volumes, one a patient.")] = 66,
    size: Annotated[int, typer.Option(min=16, help="Side of a prepared volume in voxels.")] = 40,
    seed: Seed = 0,
    keep_raw: Raw = None,
    overwrite: Overwrite = False,
) -> None:
    """Cardiac CT phantoms with LV and myocardium, as NIfTI pairs in the naming and label values of MM-WHS."""
    _tell(sources.prepare_synthetic("segmentation", out, cases, size, seed, keep_raw, overwrite))


@app.command("class-folders")
def class_folders(
    source: Input,
    out: Out,
    size: Annotated[int, typer.Option(min=16, help="Side of a prepared image in pixels.")] = 224,
    where: Annotated[str | None, typer.Option(help="Keep rows of manifest.csv with this value, as in mini=1.")] = None,
    seed: Seed = 0,
    on_bad: Bad = OnBad.stop,
    overwrite: Overwrite = False,
) -> None:
    """Images in one folder a class: <CLASS>/*.png or <CLASS>/images/*.png, PNG or JPEG.

    A manifest.csv beside the folders (file, class, patient, dup_group) keeps patients and duplicates within one split;
    without it every image is taken as a patient of its own.
    """
    _tell(sources.prepare_class_folders(source, out, size, where, seed=seed, on_bad=on_bad.value, overwrite=overwrite))


@app.command("mmwhs")
def mmwhs(
    source: Input,
    out: Out,
    spacing: Annotated[str, typer.Option(help="Voxel size in mm: right-left, front-back, feet-head.")] = "2,2,2",
    size: Annotated[str, typer.Option(help="Voxels kept around the centre, along the same axes.")] = "96,96,96",
    modality: Annotated[Modality, typer.Option(help="ct: a window in Hounsfield units; mr: percentiles.")] = Modality.ct,
    lv_value: Annotated[int, typer.Option(help="Label value of the LV blood pool.")] = 500,
    myo_value: Annotated[int, typer.Option(help="Label value of the myocardium.")] = 205,
    seed: Seed = 0,
    on_bad: Bad = OnBad.stop,
    overwrite: Overwrite = False,
) -> None:
    """Cardiac volumes in pairs *_image.nii.gz and *_label.nii.gz, with label values for LV and myocardium.

    Thick slices (short-axis MRI, say): --modality mr --spacing 2.5,2.5,6 --size 64,64,16
    """
    settings = Settings(
        spacing_mm=_three("--spacing", spacing, float),
        size=_three("--size", size, int),
        modality=modality.value,
        lv_value=lv_value,
        myo_value=myo_value,
    )
    _tell(sources.prepare_mmwhs(source, out, settings, seed=seed, on_bad=on_bad.value, overwrite=overwrite))


def _three(option: str, text: str, kind: type) -> tuple:
    try:
        values = tuple(kind(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or min(values) <= 0:
        raise UserError(f"{option} {text}: expected three positive numbers, as in 2,2,5")
    if kind is int and any(value % 8 for value in values):
        raise UserError(f"{option} {text}: expected multiples of 8: the 3D U-Net halves a volume three times")
    return values


def _tell(prepared: PreparedSet) -> None:
    cases = prepared.cases
    typer.echo(f"{prepared.manifest['title']}: {len(cases)} cases, {'x'.join(map(str, prepared.images.shape[1:]))}, uint8")
    counts = cases.groupby(["label", "split"] if prepared.task == "classification" else ["split"]).size()
    typer.echo((counts.unstack(0) if prepared.task == "classification" else counts.to_frame("cases")).to_string())
    typer.echo(f"fingerprint {prepared.fingerprint[:12]}; written to {prepared.folder}")


def main() -> None:
    """Run the command line."""
    run_command_line(app, "python -m data_prep")


if __name__ == "__main__":
    main()
