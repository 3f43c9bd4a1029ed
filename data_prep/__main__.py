"""python -m data_prep SOURCE --input FOLDER_OR_ZIP --out DIR: make a prepared set."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from data_prep import quality, sources
from data_prep.cardiac import Settings
from data_prep.duplicates import NEAR_BITS
from data_prep.merge import merge
from data_prep.pipeline import CORES
from data_prep.splits import shares
from fedlib.config import UserError, validated
from fedlib.data.dataset import PreparedDataset

HELP = """Turn raw images into a prepared set that the study trains on.

The set appears at --out whole or not at all: arrays, cases.csv (patients and duplicates within one split), qc.csv (what was
rejected and why), duplicates.csv, manifest.json. Interrupted, the same command resumes. Sources, licences, sizes and times,
and how to get the images: data_prep/README.md.

Then: python -m fedlib study --task ... --data DIR
"""
app = click.Group(help=HELP)


def option(names: str, kind: Any, help: str, **more: Any) -> click.Option:
    """Return an option by its name and, where it is another one, that of its argument."""
    return click.Option(names.split(), type=kind, help=help, show_default=True, **more)


def flag(name: str, help: str) -> click.Option:
    """Return an option without a value."""
    return option(name, bool, help, is_flag=True)


def add(name: str, prepare: Callable[..., PreparedDataset], params: list[click.Parameter], help: str) -> None:
    """Add a command that passes its options to `prepare` and tells what is in the set."""
    app.add_command(click.Command(name, params=params, callback=lambda **given: _tell(prepare(**given)), help=help))


def _volumes(adapter: str, **given: Any) -> PreparedDataset:
    settings = validated(Settings, {name: given.pop(name) for name in vars(Settings())})
    return sources.prepare_cardiac(adapter, settings=settings, **given)


def _settings(defaults: Settings) -> list[click.Option]:
    """Return an option for each setting, which takes text as it is written: `Settings` explains and checks them."""
    options = []
    for name, value in vars(defaults).items():
        names = f"--{name.removesuffix('_mm').replace('_', '-')} {name}"
        text = {} if value is None else {"default": str(value).strip("()").replace(" ", "")}
        options.append(option(names, str, Settings.__pydantic_fields__[name].description, **text))
    return options


PATH, WORDS, WHOLE = click.Path(path_type=Path), click.Choice, click.IntRange
SIDES = "image: a patient and duplicates may be on both sides, and reports say so."
SPLITS = "Percent of train, val and test, as in 80,10,10; without: 60,10,30."
SIDE = "Side of a prepared image in pixels."
OUT = [
    option("--out", PATH, "Folder of the prepared set.", required=True),
    flag("--overwrite", "Replace the prepared set that is there."),
]
SPLITTING = [
    option("--seed", WHOLE(0), "Seed of the splits and, for phantoms, of the images.", default=0),
    option("--fractions", str, SPLITS, callback=lambda _, __, text: text if text is None else shares(text)),
    option("--split-by", WORDS(["patient", "image"]), SIDES, default="patient"),
]
PHANTOMS = [*OUT, *SPLITTING, option("--keep-raw", PATH, "Keep the raw files, in the layout of real data, in this folder.")]
FILES = [
    option("--input source", PATH, "Folder or zip with the raw images; a zip is not unpacked.", required=True),
    *OUT,
    *SPLITTING,
    option(
        "--near near_bits", WHOLE(0, 64), "Bits of 256 in which hashes of near-duplicates may differ.", default=NEAR_BITS
    ),
    option(
        "--on-bad", WORDS(["stop", "skip"]), "At a case that cannot be used: stop, or list it in qc.csv.", default="stop"
    ),
    option("--jobs", WHOLE(1, 256), "Cases read at a time.", default=CORES),
]
add(
    "synthetic-cxr",
    partial(sources.prepare_synthetic, "classification"),
    [
        *PHANTOMS,
        option("--size", WHOLE(16, 4096), SIDE, default=64),
        option("--cases", WHOLE(20), "Number of images, a quarter in each class.", default=1000),
        option(
            "--findings", WORDS(["clear", "mild"]), "mild: slow to learn; clear: quick, with a ceiling.", default="clear"
        ),
    ],
    "Chest X-ray phantoms in four categories, as PNGs in the folders of the COVID-19 Radiography Database.",
)
add(
    "synthetic-cardiac",
    partial(sources.prepare_synthetic, "segmentation"),
    [
        *PHANTOMS,
        option("--size", WHOLE(16), "Side of a prepared volume in voxels, a multiple of 8.", default=40),
        option("--cases", WHOLE(3), "Number of volumes, one a patient.", default=66),
    ],
    "Cardiac CT phantoms with LV and myocardium, as NIfTI pairs in the naming and label values of MM-WHS.",
)
add(
    "class-folders",
    sources.prepare_class_folders,
    [
        *FILES,
        option("--size", WHOLE(16, 4096), SIDE, default=224),
        option("--where", str, "Keep rows of manifest.csv with this value, as in mini=1."),
    ],
    """Images in one folder a class: <CLASS>/*.png or <CLASS>/images/*.png; PNG, JPEG or DICOM.

    A manifest.csv beside the folders (file, class, and perhaps patient, dup_group, split) keeps patients and duplicates
    within one split; without it a folder inside the class is a patient, and so is every image that lies in none.
    """,
)
add(
    "covid19-radiography",
    sources.prepare_covid19_radiography,
    [
        *FILES,
        option("--size", WHOLE(16, 4096), SIDE, default=224),
        flag("--subset", "Accept other counts than the published ones."),
    ],
    "The COVID-19 Radiography Database as Kaggle gives it: four classes, 21,165 PNGs, tables of where each came from.",
)
for name, adapter in sources.CARDIAC.items():
    add(name, partial(_volumes, name), [*FILES, *_settings(adapter.DEFAULTS)], adapter.__doc__)
add(
    "merge",
    merge,
    [click.Argument(["sets"], type=PATH, nargs=-1, required=True, metavar="SET SET..."), *OUT],
    "Put prepared sets of several hospitals or archives together, told apart by a column `source`: the folders' names.",
)


def _tell(prepared: PreparedDataset) -> None:
    manifest = prepared.manifest
    click.echo(f"{manifest['title']}: {len(prepared.cases)} cases, {'x'.join(map(str, prepared.images.shape[1:]))}, uint8")
    click.echo(quality.counts(prepared).to_string())
    if prepared.task == "segmentation":
        click.echo(quality.volumes_kept(prepared).to_string())
    if manifest["splits"]["split_by"] == "image":
        click.echo("split by image: patients and duplicates may be on both sides")
    if manifest["passed_over"]:
        click.echo(f"passed over: {', '.join(f'{n} {kind}' for kind, n in manifest['passed_over'].items())}")
    click.echo(", ".join(f"{count} {name.replace('_', ' ')}" for name, count in manifest["counts"].items()))
    click.echo(f"fingerprint {prepared.fingerprint[:12]}; written to {prepared.folder}")
    for warning in manifest["warnings"]:
        click.echo(f"warning: {warning}", err=True)


def main() -> None:
    """Run the command line: bad input is one line on standard error and exit code 2, Ctrl-C is 130."""
    try:
        raise SystemExit(app(sys.argv[1:] or ["--help"], prog_name="python -m data_prep", standalone_mode=False))
    except click.Abort:
        click.echo("Interrupted. The same command resumes.", err=True)
        raise SystemExit(130) from None
    except (UserError, OSError, click.ClickException) as error:  # OSError: a folder that cannot be written, a full disk
        message = error.format_message() if isinstance(error, click.ClickException) else str(error)
        click.echo(f"error: {' '.join(message.splitlines())}", err=True)  # a path may hold a line break
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
