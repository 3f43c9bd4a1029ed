"""NIfTI volumes from bytes: nibabel reads the header, and no more is unpacked than it claims."""

import gzip
import io
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import product

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from data_prep.cases import Case
from data_prep.files import MAX_BYTES, Files, cleaned
from fedlib.config import UserError

OTHER_SUFFIXES = (".mha", ".mhd", ".nrrd", ".mgz", ".img.gz", ".img", ".hdr")
"""Volumes of other kinds: named to the user, not read."""
SUFFIX = re.compile(rf"({'|'.join(map(re.escape, ('.nii.gz', '.nii', *OTHER_SUFFIXES)))})$", re.IGNORECASE)
SPACING_MM = (0.05, 50.0)
"""No scanner of hearts has smaller or larger voxels; a header that says so is in other units, or damaged."""
UNITS_MM = {1: 1000.0, 3: 0.001}
"""Spatial units of NIfTI other than mm: metres and micrometres."""
APART = 0.1
"""Voxels by which the corners may differ before sform and qform count as different (*chosen*)."""


@dataclass(frozen=True)
class Volume:
    """A volume as it lies in its file, in the order of the file's own axes."""

    name: str
    values: np.ndarray
    """(X, Y, Z), scaled as the header says; whole numbers stay whole where it has no scaling."""
    affine: np.ndarray
    """From voxels to mm in RAS, (4, 4)."""
    note: str
    """What is odd about the header, for the user; mostly empty."""


def stem(name: str) -> str:
    """Return a file's name without its folders and its suffix."""
    return SUFFIX.sub("", name.rsplit("/", 1)[-1])


def by_case(files: Files, pattern: str) -> dict[str, str]:
    """Map cases to volumes: a case is what the pattern's group matches in a path without suffix.

    Raises UserError when two volumes have the same case.
    """
    found: dict[str, str] = {}
    for name in files.stamps:
        if SUFFIX.search(name) and (match := re.fullmatch(pattern, SUFFIX.sub("", name))):
            case = cleaned(match[1])
            if case in found:
                raise UserError(f"{files.where(name)}: the same case as {found[case]}; expected each name once")
            found[case] = name
    return found


def paired(files: Files, images: dict[str, str], labels: dict[str, str], image: str) -> list[Case]:
    """Return the cases of images and labels of one name; the loader refuses an image without a label.

    `image` says how the image of a case is called. Raises UserError when a label has none.
    """
    for alone in sorted(labels.keys() - images.keys()):
        raise UserError(f"{files.where(labels[alone])}: a label without its image; expected {image.format(alone)}")
    return [Case(name, name, file, label_files=(labels[name],) if name in labels else ()) for name, file in images.items()]


def others(files: Files) -> str:
    """Return what to add to a message when the input holds volumes of other kinds; empty when it holds none."""
    names = [name for name in files.stamps if name.lower().endswith(OTHER_SUFFIXES)]
    return f" (found {len(names)} volumes such as {names[0]}; convert them to .nii.gz)" if names else ""


def read(name: str, content: bytes) -> Volume:
    """Decode a .nii or .nii.gz file; whether it is packed is told by its content.

    Raises UserError when it is empty, cut short, no NIfTI-1 or -2 in one file, not a volume of real numbers, larger than
    4 GiB, or when its voxels have no plausible size or position.
    """
    if not content:
        raise UserError(f"{name}: is empty (0 bytes); expected NIfTI")
    if name.lower().endswith(OTHER_SUFFIXES):
        raise UserError(f"{name}: a volume of another kind; expected NIfTI, convert it to .nii.gz")
    plain = io.BytesIO(content)
    try:
        with gzip.GzipFile(fileobj=plain) if content[:2] == b"\x1f\x8b" else plain as stream:
            header = _header(name, stream)
            shape, dtype, offset = _layout(name, header)
            missing = offset - header.sizeof_hdr + dtype.itemsize * int(np.prod(shape))
            rest = stream.read(missing + 1)  # one more: gzip's checksum stands at the end of the file
        affine, note = _affine(name, header)
    except UserError:
        raise
    except Exception as error:  # gzip and nibabel answer bad bytes with some eight kinds
        suffix = ".nii.gz" if name.lower().endswith(".gz") else ".nii"
        raise UserError(f"{name}: damaged or no NIfTI ({error}); expected a whole {suffix} file") from None
    if len(rest) != missing:
        how = f"cut short, {header.sizeof_hdr + len(rest)} bytes" if len(rest) < missing else "longer than its header says"
        raise UserError(f"{name}: {how}; expected {header.sizeof_hdr + missing} bytes by its header")
    stored = np.frombuffer(rest, dtype, offset=offset - header.sizeof_hdr).reshape(shape, order="F")
    return Volume(name, apply_read_scaling(stored, *header.get_slope_inter()), affine, note)


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a view whose axes run to the right, the front and up, and the affine of that view."""
    turn = nib.io_orientation(affine)
    return nib.apply_orientation(array, turn), affine @ nib.orientations.inv_ornt_aff(turn, array.shape)


def spacing(affine: np.ndarray) -> np.ndarray:
    """Return the size of a voxel along each axis in mm, (3,)."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def by(sides: Iterable[float]) -> str:
    """Return figures along the axes, as in `0.4x0.4x0.625`."""
    return "x".join(f"{side:.3g}" for side in sides)


def voxels_apart(one: np.ndarray, other: np.ndarray, shape: tuple[int, ...]) -> float:
    """Return how far apart two affines put the corners of a volume, in voxels of the first."""
    corners = np.array(list(product(*[(0, n - 1) for n in shape], (1,)))).T  # (4, 8)
    return float(np.abs(np.linalg.solve(one, other) @ corners - corners).max())


def _header(name: str, stream: io.BufferedIOBase) -> nib.Nifti1Header:
    """Return the header, with what the standard allows and nibabel refuses put as nibabel expects it."""
    head = stream.read(348)
    if 540 in (int.from_bytes(head[:4], order) for order in ("little", "big")):
        head += stream.read(540 - 348)
    kind = next((kind for kind in (nib.Nifti1Header, nib.Nifti2Header) if kind.may_contain_header(head)), None)
    # Unchecked: nibabel's own check mends what we refuse, as in a voxel size of 0. Extensions are not looked at.
    header = kind(head, check=False) if kind else None
    if header is None or not header["magic"].item().startswith(b"n+"):  # else the voxels are in a second file
        raise UserError(f"{name}: no NIfTI header; expected NIfTI-1 or NIfTI-2 in one file")
    header["pixdim"][0] = -1 if header["pixdim"][0] < 0 else 1  # the standard takes all else, 0 too, for 1
    quaternion = [header[f"quatern_{part}"].item() for part in "bcd"]
    if 1 < (norm := np.linalg.norm(quaternion)) < 1.01:  # rounded: a half turn has no room for its first part
        for part, value in zip("bcd", quaternion, strict=True):
            header[f"quatern_{part}"] = value / norm
    return header


def _layout(name: str, header: nib.Nifti1Header) -> tuple[tuple[int, int, int], np.dtype, int]:
    """Return shape, type and place of the voxels. A trailing axis of length 1 is dropped."""
    shape, dtype = tuple(int(n) for n in header.get_data_shape()), header.get_data_dtype()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 2:
        raise UserError(f"{name}: shape {shape}; expected a volume with three axes")
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise UserError(f"{name}: voxels of type {header.get_value_label('datatype')}; expected real numbers")
    offset = header.get_data_offset()
    size = offset + dtype.itemsize * int(np.prod(shape, dtype=object))
    if offset < header.sizeof_hdr or size > MAX_BYTES:
        raise UserError(f"{name}: claims {size} bytes, {shape} {dtype} at byte {offset}; expected at most {MAX_BYTES}")
    return shape, dtype, offset


def _affine(name: str, header: nib.Nifti1Header) -> tuple[np.ndarray, str]:
    """Return the affine in mm, and a note where the header leaves a choice."""
    unit = UNITS_MM.get(int(header["xyzt_units"]) & 7, 1.0)
    pixdim = header["pixdim"][1:4].astype(float) * unit
    if not (np.isfinite(pixdim).all() and pixdim.min() > 0):
        raise UserError(f"{name}: voxels of {by(pixdim)} mm in its header; expected positive numbers")
    affine = header.get_best_affine().astype(float)
    affine[:3] *= unit
    note = _note(header)
    affine = _with_spacing(name, affine, pixdim)
    if not np.isfinite(affine).all():
        raise UserError(f"{name}: its affine is not finite; expected three axes and an origin in mm")
    sides = spacing(affine)
    if sides.min() < SPACING_MM[0] or sides.max() > SPACING_MM[1]:
        raise UserError(f"{name}: voxels of {by(sides)} mm; expected {SPACING_MM[0]} to {SPACING_MM[1]} mm")
    if abs(np.linalg.det(affine[:3, :3])) < 0.99 * sides.prod():
        raise UserError(f"{name}: its axes are sheared (a tilted gantry) or parallel; expected right angles")
    return affine, note


def _note(header: nib.Nifti1Header) -> str:
    if not header["sform_code"] and not header["qform_code"]:
        return "its header states no orientation (sform and qform have code 0); left and right may be exchanged"
    if header["sform_code"] > 0 and header["qform_code"] > 0:
        with suppress(ValueError, HeaderDataError, np.linalg.LinAlgError):  # the sform is taken, whatever the qform is
            if voxels_apart(header.get_sform(), header.get_qform(), header.get_data_shape()[:3]) > APART:
                return "sform and qform disagree; the sform is taken"
    return ""


def _with_spacing(name: str, affine: np.ndarray, pixdim: np.ndarray) -> np.ndarray:
    """Return the affine, with the header's voxel size where the affine states none.

    Some tools (public copies of ACDC went through one) write an affine of unit voxels and keep the true size in `pixdim`
    only. Taken at its word, a slice of 10 mm would be 1 mm thick. Any other disagreement has no obvious cure.
    """
    stated = spacing(affine)
    if np.allclose(stated, pixdim, rtol=0.01):
        return affine
    if not np.allclose(stated, 1, rtol=1e-3):
        raise UserError(f"{name}: voxels of {by(stated)} mm in its affine, {by(pixdim)} mm in its header; expected one")
    return affine @ np.diag([*pixdim, 1.0])
