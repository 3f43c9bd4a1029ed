"""NIfTI volumes from bytes: the header first, then no more than it claims, and no copy that is not needed."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from nibabel.volumeutils import apply_read_scaling

from data_prep.files import MAX_BYTES, Files
from fedlib.config import UserError

SUFFIXES = (".nii.gz", ".nii")
SPACING_MM = (0.05, 50.0)
"""No scanner of hearts has smaller or larger voxels; a header that says so is in other units, or damaged."""
HEADER_BYTES = 540
CHUNK = 2**22


@dataclass(frozen=True)
class Volume:
    """A volume as it lies in its file, in the order of the file's own axes."""

    name: str
    flat: np.ndarray
    """Stored values, (X * Y * Z,), a view of the file's content in Fortran order."""
    shape: tuple[int, int, int]
    affine: np.ndarray
    """From voxels to mm in RAS, (4, 4)."""
    slope: float
    inter: float

    def scaled(self, part: np.ndarray) -> np.ndarray:
        """Stored values as the values they stand for; whole numbers stay whole where the header has no scaling."""
        return apply_read_scaling(part, self.slope, self.inter)

    def chunks(self) -> Iterator[tuple[slice, np.ndarray]]:
        """Where in `flat`, and the scaled values there: a pass over a large volume in little memory."""
        for start in range(0, len(self.flat), CHUNK):
            where = slice(start, start + CHUNK)
            yield where, self.scaled(self.flat[where])


def stem(name: str) -> str:
    """The name of a file without its folders and without .nii or .nii.gz."""
    return name.rsplit("/", 1)[-1].removesuffix(".gz").removesuffix(".nii")


def by_case(files: Files, case_of: Callable[[str], str | None]) -> dict[str, str]:
    """Case to name of file, for the volumes that `case_of` finds a case for. Raises UserError when two have the same."""
    found: dict[str, str] = {}
    for name in files.stamps:
        if name.endswith(SUFFIXES) and (case := case_of(name)) is not None:
            if case in found:
                raise UserError(f"{files.where(name)}: the same case as {found[case]}; expected each name once")
            found[case] = name
    return found


def read(name: str, content: bytes) -> Volume:
    """Decode a .nii or .nii.gz file.

    Raises UserError when it is empty, cut short, no NIfTI-1 or -2 in one file, not a volume of real numbers, larger than
    4 GiB, or when its voxels have no plausible size or position.
    """
    if not content:
        raise UserError(f"{name}: is empty (0 bytes); expected NIfTI")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) if name.endswith(".gz") else io.BytesIO(content) as stream:
            head = stream.read(HEADER_BYTES)
            header = _header(name, head)
            shape, dtype, offset = _layout(name, header)
            slope, inter = header.get_slope_inter()
            whole = np.empty(offset + int(np.prod(shape)) * dtype.itemsize, np.uint8)
            whole[: len(head)] = np.frombuffer(head, np.uint8)[: len(whole)]
            _fill(name, stream, whole, len(head))
    except UserError:
        raise
    except (OSError, EOFError, zlib.error, HeaderDataError, ValueError, KeyError, OverflowError, MemoryError) as error:
        raise UserError(f"{name}: damaged or no NIfTI ({error}); expected a whole {_suffix(name)} file") from None
    flat = whole[offset:].view(dtype)
    return Volume(name, flat, shape, _affine(name, header), 1.0 if slope is None else slope, inter or 0.0)


def to_ras(array: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A view of a volume whose axes run to the right, the front and up, and the affine of that view."""
    turn = nib.io_orientation(affine)
    return nib.apply_orientation(array, turn), affine @ nib.orientations.inv_ornt_aff(turn, array.shape)


def spacing(affine: np.ndarray) -> np.ndarray:
    """Size of a voxel along each axis in mm, (3,)."""
    return np.linalg.norm(affine[:3, :3], axis=0)


def by(sides: np.ndarray) -> str:
    """Figures along the axes, as in `0.4x0.4x0.625`."""
    return "x".join(f"{side:.3g}" for side in sides)


def _suffix(name: str) -> str:
    return ".nii.gz" if name.endswith(".gz") else ".nii"


def _header(name: str, head: bytes) -> nib.Nifti1Header:
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        if kind.may_contain_header(head):
            # Unchecked: nibabel's own check mends what we refuse, as in a negative voxel size.
            header = kind.from_fileobj(io.BytesIO(head), check=False)
            if header["magic"].item().startswith(b"n+"):  # else the voxels are in a second file
                return header
    raise UserError(f"{name}: no NIfTI header; expected NIfTI-1 or NIfTI-2 in one file")


def _layout(name: str, header: nib.Nifti1Header) -> tuple[tuple[int, int, int], np.dtype, int]:
    """Shape, type and place of the voxels. A trailing axis of length 1 is dropped."""
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


def _fill(name: str, stream: io.BufferedIOBase, whole: np.ndarray, done: int) -> None:
    """Read until `whole` is full, and to the end of the file, where gzip keeps its checksum."""
    view = memoryview(whole)
    while done < len(whole):
        n = stream.readinto(view[done:])
        if not n:
            raise UserError(f"{name}: cut short, {done} bytes; expected {len(whole)} by its header")
        done += n
    if stream.read(1):
        raise UserError(f"{name}: longer than its header says; expected {len(whole)} bytes")


def _affine(name: str, header: nib.Nifti1Header) -> np.ndarray:
    pixdim = header["pixdim"][1:4].astype(float)
    if not (np.isfinite(pixdim).all() and pixdim.min() > 0):
        raise UserError(f"{name}: voxels of {by(pixdim)} mm in its header; expected positive numbers")
    affine = _affine_in_mm(name, header.get_best_affine(), pixdim)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine)) < 1e-9:
        raise UserError(f"{name}: its affine is singular or not finite; expected three axes and an origin in mm")
    sides = spacing(affine)
    if sides.min() < SPACING_MM[0] or sides.max() > SPACING_MM[1]:
        raise UserError(f"{name}: voxels of {by(sides)} mm; expected {SPACING_MM[0]} to {SPACING_MM[1]} mm")
    if abs(np.linalg.det(affine[:3, :3])) < 0.99 * sides.prod():
        raise UserError(f"{name}: its axes are sheared (a tilted gantry); expected right angles")
    return affine


def _affine_in_mm(name: str, affine: np.ndarray, pixdim: np.ndarray) -> np.ndarray:
    """The affine, with the header's voxel size where the affine states none.

    Some tools (public copies of ACDC went through one) write an affine of unit voxels and keep the true size in `pixdim`
    only. Taken at its word, a slice of 10 mm would be 1 mm thick. Any other disagreement has no obvious cure.
    """
    affine, stated = affine.astype(float), spacing(affine)
    if not np.allclose(stated, pixdim, rtol=0.01):
        if not np.allclose(stated, 1, rtol=1e-3):
            raise UserError(f"{name}: voxels of {by(stated)} mm in its affine, {by(pixdim)} mm in its header; expected one")
        affine[:3, :3] *= pixdim
    return affine
