"""python -m data_prep SOURCE --input FOLDER_OR_ZIP --out DIR: make a prepared set."""

import sys
from dataclasses import replace
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import typer
from typer import Option

from data_prep import sources
from data_prep.cardiac import Settings
from data_prep.duplicates import NEAR_BITS
from data_prep.pipeline import CORES
from data_prep.synthetic_cxr import Findings
from fedlib.config import UserError
from fedlib.data.dataset import PreparedDataset

HELP = """Turn raw images into a prepared set that the study trains on.

The set appears at --out whole or not at all: arrays, cases.csv (patients and duplicates within one split), qc.csv (what was
rejected and why), duplicates.csv, manifest.json. Interrupted, the same command resumes; what did not change is not read
again. Sources, licences, sizes and times: data_prep/README.md.

Then: python -m fedlib study --task ... --data DIR
"""
CARDIAC_HELP = {
    "mmwhs": "Cardiac volumes in pairs *_image.nii.gz and *_label.nii.gz, with label values for LV and myocardium.\n\n"
    "Thick slices (short-axis MRI, say): --modality mr --spacing 2.5,2.5,6 --size 64,64,16",
    "totalsegmentator": "TotalSegmentator: a folder a case, with ct.nii.gz and segmentations/<structure>.nii.gz.\n\n"
    "Many of its scans show no whole heart: --on-bad skip lists them in qc.csv.",
    "msd": "The layout of the Medical Segmentation Decathlon and of nnU-Net: imagesTr, labelsTr, dataset.json.\n\n"
    "--lv and --myo are names in dataset.json, or values.",
}

app = typer.Typer(help=HELP, add_completion=False, pretty_exceptions_enable=False)

SplitBy = Literal["patient", "image"]
OnBad = Literal["stop", "skip"]
Input = Annotated[Path, Option("--input", help="Folder or zip with the raw images; a zip is not unpacked.")]
Out = Annotated[Path, Option(help="Folder of the prepared set.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace or update the prepared set that is there.")]
Bad = Annotated[OnBad, Option(help="At a case that cannot be used: stop, or skip it and list it in qc.csv.")]
Seed = Annotated[int, Option(min=0, help="Seed of the splits and, for phantoms, of the images.")]
Fractions = Annotated[str | None, Option(help="Percent of train, val and test, as in 80,10,10; without: 60,10,30.")]
By = Annotated[SplitBy, Option(help="image: a patient and duplicates may be on both sides, and reports say so.")]
Near = Annotated[int, Option("--near", min=0, max=64, help="Bits of 256 in which the hashes of near-duplicates may differ.")]
Jobs = Annotated[int, Option(min=1, max=256, help="Cases read at a time.")]
Raw = Annotated[Path | None, Option(help="Keep the raw files, in the layout of the real data, in this new folder.")]
Side = Annotated[int, Option(min=16, max=4096, help="Side of a prepared image in pixels.")]
Text = str | None


@app.command("synthetic-cxr")
def synthetic_cxr(
    out: Out,
    cases: Annotated[int, Option(min=20, help="Number of images, a quarter in each class.")] = 1000,
    size: Side = 64,
    seed: Seed = 0,
    fractions: Fractions = None,
    split_by: By = "patient",
    keep_raw: Raw = None,
    overwrite: Overwrite = False,
    findings: Annotated[Findings, Option(help="mild: slow to learn; clear: quick to learn, with a ceiling.")] = "clear",
) -> None:
    """Chest X-ray phantoms in four categories, as PNGs in the folders of the COVID-19 Radiography Database."""
    splitting = {"fractions": _fractions(fractions), "split_by": split_by}
    _report(sources.prepare_synthetic("classification", out, cases, size, seed, keep_raw, overwrite, findings, **splitting))


@app.command("synthetic-cardiac")
def synthetic_cardiac(
    out: Out,
    cases: Annotated[int, Option(min=3, help="Number of volumes, one a patient.")] = 66,
    size: Annotated[int, Option(min=16, help="Side of a prepared volume in voxels.")] = 40,
    seed: Seed = 0,
    fractions: Fractions = None,
    split_by: By = "patient",
    keep_raw: Raw = None,
    overwrite: Overwrite = False,
) -> None:
    """Cardiac CT phantoms with LV and myocardium, as NIfTI pairs in the naming and label values of MM-WHS."""
    splitting = {"fractions": _fractions(fractions), "split_by": split_by}
    _report(sources.prepare_synthetic("segmentation", out, cases, size, seed, keep_raw, overwrite, **splitting))


@app.command("class-folders")
def class_folders(
    source: Input,
    out: Out,
    size: Side = 224,
    where: Annotated[Text, Option(help="Keep rows of manifest.csv with this value, as in mini=1.")] = None,
    seed: Seed = 0,
    fractions: Fractions = None,
    split_by: By = "patient",
    near_bits: Near = NEAR_BITS,
    on_bad: Bad = "stop",
    overwrite: Overwrite = False,
    jobs: Jobs = CORES,
) -> None:
    """Images in one folder a class: <CLASS>/*.png or <CLASS>/images/*.png; PNG, JPEG or DICOM.

    A manifest.csv beside the folders (file, class, and perhaps patient, dup_group, split) keeps patients and duplicates
    within one split; without it a folder inside the class is a patient, and so is every image that lies in none.
    """
    _report(sources.prepare_class_folders(source, out, size, where, **_options(locals())))


@app.command("covid19-radiography")
def covid19_radiography(
    source: Input,
    out: Out,
    size: Side = 224,
    subset: Annotated[bool, Option("--subset", help="Accept other counts than the published ones.")] = False,
    seed: Seed = 0,
    fractions: Fractions = None,
    split_by: By = "patient",
    near_bits: Near = NEAR_BITS,
    on_bad: Bad = "stop",
    overwrite: Overwrite = False,
    jobs: Jobs = CORES,
) -> None:
    """The COVID-19 Radiography Database as Kaggle gives it: four classes, 21,165 PNGs, tables of where each came from."""
    _report(sources.prepare_covid19_radiography(source, out, size, subset, **_options(locals())))


def cardiac(
    context: typer.Context,
    source: Input,
    out: Out,
    spacing: Annotated[Text, Option(help="Voxel size in mm: right-left, front-back, feet-head.")] = None,
    size: Annotated[Text, Option(help="Voxels of the window, along the same axes; multiples of 8.")] = None,
    modality: Annotated[
        Literal["ct", "mr"] | None, Option(help="ct: Hounsfield units; mr: percentiles of a volume.")
    ] = None,
    window: Annotated[Text, Option(help="Intensities that become black and white, as in -160,440.")] = None,
    crop: Annotated[
        Literal["heart", "centre"] | None, Option(help="The window lies around LV and Myo, or in the volume's middle.")
    ] = None,
    margin: Annotated[float | None, Option(min=0, help="With --crop heart: mm around both that must fit.")] = None,
    max_loss: Annotated[float | None, Option(min=0, max=1, help="Share of its volume a structure may lose.")] = None,
    lv: Annotated[Text, Option(help="Label value or name of the LV; commas merge several.")] = None,
    myo: Annotated[Text, Option(help="Label value or name of the myocardium; the same.")] = None,
    seed: Seed = 0,
    fractions: Fractions = None,
    split_by: By = "patient",
    near_bits: Near = NEAR_BITS,
    on_bad: Bad = "stop",
    overwrite: Overwrite = False,
    jobs: Jobs = CORES,
) -> None:
    """Prepare one of sources.CARDIAC: the command's own name is the source; what is not given is that source's default."""
    options = _options(locals())
    given = {
        "spacing_mm": _numbers("--spacing", spacing, 3, positive=True),
        "size": _numbers("--size", size, 3, positive=True, multiple=8),
        "modality": modality,
        "window": _numbers("--window", window, 2, rising=True),
        "crop": crop,
        "margin_mm": _finite("--margin", margin),
        "max_loss": _finite("--max-loss", max_loss),
        "lv": lv,
        "myo": myo,
    }
    stated = {name: value for name, value in given.items() if value is not None}
    settings = replace(sources.CARDIAC[context.info_name].DEFAULTS, **stated)
    _report(sources.prepare_cardiac(context.info_name, source, out, settings, **options))


def _defaults(settings: Settings) -> str:
    spacing, size = (",".join(f"{value:g}" for value in values) for values in (settings.spacing_mm, settings.size))
    return (
        f"Defaults: --spacing {spacing} --size {size} --modality {settings.modality} --crop {settings.crop} "
        f"--margin {settings.margin_mm:g} --max-loss {settings.max_loss:g} --lv {settings.lv} --myo {settings.myo}"
    )


for name, text in CARDIAC_HELP.items():
    app.command(name, help=f"{text}\n\n{_defaults(sources.CARDIAC[name].DEFAULTS)}")(cardiac)


@app.command("merge")
def merge(
    sets: Annotated[list[Path], typer.Argument(metavar="SET SET...", help="Prepared sets, named by their folders.")],
    out: Out,
    overwrite: Overwrite = False,
) -> None:
    """Put prepared sets of several hospitals or archives together, told apart by a column `source`."""
    from data_prep.merge import merge as together

    _report(together(sets, out, overwrite))


@app.command("download")
def download(
    source: str, to: Annotated[Path, Option(help="Folder to download into; what an earlier call left there is resumed.")]
) -> None:
    """Fetch a public source, or print the steps by hand where its owners ask for an agreement.

    SOURCE is covid19-radiography, totalsegmentator, mmwhs or msd.
    """
    from data_prep.download import download as fetch  # here: needs the extra `download`

    typer.echo(f"next: python -m data_prep {source} --input {fetch(source, to)} --out DIR")


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """Return the options that every source of files has, out of all that were given."""
    names = ("seed", "split_by", "near_bits", "on_bad", "overwrite", "jobs")
    return {name: given[name] for name in names} | {"fractions": _fractions(given["fractions"])}


def _fractions(text: str | None) -> tuple[float, ...] | None:
    shares = _numbers("--fractions", text, 3, positive=True)
    if shares and abs(sum(shares) - 100) > 1e-6:
        raise UserError(f"--fractions {text}: the sum is {sum(shares):g}; expected 100, as in 80,10,10")
    return shares and tuple(share / 100 for share in shares)


def _numbers(
    option: str, text: str | None, count: int, positive: bool = False, multiple: int | None = None, rising: bool = False
) -> tuple[float, ...] | None:
    """Return the numbers in a text such as `2,2,6`; whole ones with `multiple`; None if nothing was given."""
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != count or not all(abs(value) <= 1e6 for value in values) or positive and min(values) <= 0:
        kind = "positive numbers" if positive else "numbers"
        raise UserError(f"{option} {text}: expected {count} {kind} with commas between")
    if rising and values[0] >= values[-1]:
        raise UserError(f"{option} {text}: expected the smaller number first")
    if multiple and any(value % multiple for value in values):
        raise UserError(f"{option} {text}: expected multiples of {multiple}: the 3D U-Net halves a volume three times")
    return tuple(map(int, values)) if multiple else values


def _finite(option: str, value: float | None) -> float | None:
    if value is not None and not isfinite(value):
        raise UserError(f"{option} {value}: expected a finite number")
    return value


def _report(prepared: PreparedDataset) -> None:
    cases, manifest = prepared.cases, prepared.manifest
    typer.echo(f"{manifest['title']}: {len(cases)} cases, {'x'.join(map(str, prepared.images.shape[1:]))}, uint8")
    splits = cases.groupby(["label", "split"] if prepared.task == "classification" else ["split"]).size()
    typer.echo((splits.unstack(0) if prepared.task == "classification" else splits.to_frame("cases")).to_string())
    for structure in prepared.classes[1:] if prepared.task == "segmentation" else ():
        kept = cases[f"{structure}_ml_prepared"] / cases[f"{structure}_ml"]
        typer.echo(f"{structure}: {kept.median():.1%} of its volume kept (median; worst {kept.min():.1%})")
    if manifest["splits"]["split_by"] == "image":
        typer.echo("split by image: patients and duplicates may be on both sides")
    if manifest["passed_over"]:
        typer.echo(f"passed over: {', '.join(f'{n} {kind}' for kind, n in manifest['passed_over'].items())}")
    typer.echo(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in manifest["counts"].items()))
    typer.echo(f"fingerprint {prepared.fingerprint[:12]}; written to {prepared.folder}")
    for warning in manifest["warnings"]:
        typer.echo(f"warning: {warning}", err=True)


def main() -> None:
    """Run the command line: bad input is one line on standard error and exit code 2, Ctrl-C is 130."""
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="python -m data_prep", standalone_mode=False)
    except (UserError, click.ClickException) as error:
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        typer.echo(f"error: {' '.join(message.splitlines())}", err=True)  # a path may hold a line break
        raise SystemExit(2) from None
    if code == 130:
        typer.echo("Interrupted. The same command goes on from here.", err=True)
    raise SystemExit(code)


if __name__ == "__main__":
    main()
