"""NIfTI files in and out: read, orient, save; each transform beside its inverse."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from unetseg.workspace import write_file

LABEL_TOLERANCE = 1e-3  # float32 arithmetic on a scaled integer stays well within this


def read(path):
    """Read one NIfTI file whole, the checksum of its compression included.

    Parameters
    ----------
    path : str or Path
        A ``.nii`` or ``.nii.gz`` file, NIfTI-1 or NIfTI-2.

    Returns
    -------
    nibabel.Nifti1Image or nibabel.Nifti2Image
        In the file's own storage order; its data are in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file cannot be read to its end, or its affine does not place the voxels in space.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Check the folder and the spelling.")
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)  # unlike nibabel, checks the CRC
        nifti2 = raw[:4] in (b"\x1c\x02\x00\x00", b"\x00\x00\x02\x1c")  # header size 540
        image = (nib.Nifti2Image if nifti2 else nib.Nifti1Image).from_bytes(raw)
        array = np.asanyarray(image.dataobj)
        oriented = np.isfinite(io_orientation(image.affine)).all()
        volume = np.prod(nib.affines.voxel_sizes(image.affine))
        oriented &= abs(np.linalg.det(image.affine[:3, :3])) > 1e-4 * volume
    except Exception as error:  # gzip, zlib, NumPy and nibabel each have their own for bad bytes
        advice = "Copy or export the file again, or remove the case."
        raise ValueError(f"{path}: cannot be read as NIfTI ({error!r}). {advice}") from error
    if not oriented:
        problem = f"its affine does not place the voxels in space ({image.affine[:3].tolist()})"
        raise ValueError(f"{path}: {problem}. Export the scan again with its orientation.")
    return type(image)(array, image.affine, image.header)


def spatial_shape(image):
    """Shape of an image as (x, y, z): a 2-D file counts as one slice.

    Parameters
    ----------
    image : nibabel.Nifti1Image

    Returns
    -------
    tuple of 3 int
    """
    return (*image.shape[:3], 1, 1)[:3]


def to_canonical(array, affine):
    """Turn an array from storage order to RAS+ (x to the right, y to the front, z up).

    Parameters
    ----------
    array : (i, j, k) or (i, j, k, channel) ndarray
        In storage order.
    affine : (4, 4) ndarray
        From storage indices to mm.

    Returns
    -------
    array : (x, y, z) or (x, y, z, channel) ndarray
        A view where possible.
    affine : (4, 4) ndarray
        From the new indices to mm: the same voxels stay at the same places.

    See Also
    --------
    from_canonical : the inverse.
    """
    orientation = io_orientation(affine)
    turned = affine @ inv_ornt_aff(orientation, array.shape[:3])
    return apply_orientation(array, orientation), turned


def from_canonical(array, affine):
    """Turn an RAS+ array back to the storage order that `affine` describes.

    Parameters
    ----------
    array : (x, y, z) or (x, y, z, channel) ndarray
        In RAS+.
    affine : (4, 4) ndarray
        From storage indices to mm, as it stands in the file.

    Returns
    -------
    (i, j, k) or (i, j, k, channel) ndarray

    See Also
    --------
    to_canonical : the inverse.
    """
    # The orientation of the file itself does not undo itself for 28 of the 48 axis codes.
    ras = io_orientation(np.eye(4))
    return apply_orientation(array, ornt_transform(ras, io_orientation(affine)))


def load_image(path):
    """Load a scan in RAS+.

    Parameters
    ----------
    path : str, Path, or sequence of them
        One file (3-D, 4-D with channels last, or 2-D, which counts as one slice), or one file
        per channel.

    Returns
    -------
    array : (x, y, z) or (x, y, z, channel) ndarray of float32
        With a channel axis for a 4-D file or several files.
    affine : (4, 4) ndarray of float64
        From indices to mm.

    Raises
    ------
    ValueError
        If a file cannot be read, is not numeric, or the channels lie on different grids.
    """
    if isinstance(path, str | Path):
        return _load(path, np.float32)
    arrays, affines = zip(*(_load(one, np.float32) for one in path), strict=True)
    for one, array, affine in zip(path, arrays, affines, strict=True):
        if array.ndim != 3:
            raise ValueError(f"{one}: shape {array.shape}; one of several channels has three axes.")
        if problem := describe_grid_mismatch(arrays[0].shape, affines[0], array.shape, affine):
            problem = f"its {problem} as the first channel ({path[0]})"
            raise ValueError(f"{one}: {problem}. Resample the channels to one grid.")
    return np.stack(arrays, axis=-1), affines[0]


def load_mask(path):
    """Load a mask in RAS+ with the label values that the file holds.

    Parameters
    ----------
    path : str or Path
        A 3-D file, or 2-D, which counts as one slice. Values may be stored as floating point
        but must be whole within 0.001.

    Returns
    -------
    array : (x, y, z) ndarray of int32
    affine : (4, 4) ndarray of float64
        From indices to mm.

    Raises
    ------
    ValueError
        If the file cannot be read, has more than one channel, or holds fractions.
    """
    array, affine = _load(path)
    if array.ndim != 3:
        problem = f"a mask has three axes, this file has shape {array.shape}"
        raise ValueError(f"{path}: {problem}. Save one label map, not one channel per label.")
    if array.dtype.kind == "f":
        wrong = ~np.isclose(array, np.rint(array), rtol=0, atol=LABEL_TOLERANCE) | np.isinf(array)
        if wrong.any():
            problem = f"a mask holds whole label values, this file holds {array[wrong][0]:.4g}"
            raise ValueError(f"{path}: {problem}. Is it a scan, or was a mask interpolated?")
    return _to_int32(path, array), affine


def _to_int32(path, labels):
    low, high = labels.min(), labels.max()
    if low < -(2**31) or high >= 2**31:
        raise ValueError(f"{path}: labels from {low} to {high} do not fit int32. Renumber them.")
    return labels.round().astype(np.int32)


def _load(path, dtype=None):
    image = read(path)
    array = np.asanyarray(image.dataobj)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path}: voxels of type {array.dtype}. Convert it to a grey-scale scan.")
    channels = tuple(n for n in array.shape[3:] if n > 1)
    if len(channels) > 1:
        raise ValueError(f"{path}: shape {array.shape}; at most x, y, z and channel are read.")
    array = array.reshape(spatial_shape(image) + channels)
    return to_canonical(array if dtype is None else array.astype(dtype), image.affine)


def describe_grid_mismatch(shape_a, affine_a, shape_b, affine_b):
    """Say how two voxel grids differ.

    Parameters
    ----------
    shape_a, shape_b : tuple of int
        The first three numbers count.
    affine_a, affine_b : (4, 4) ndarray
        From indices to mm.

    Returns
    -------
    str
        Empty if the grids are the same: equal shapes, and affines that put no corner of the
        volume more than a tenth of a voxel apart. Otherwise words that fit after "its".
    """
    if tuple(shape_a[:3]) != tuple(shape_b[:3]):
        return f"shape {tuple(shape_b[:3])} is not the shape {tuple(shape_a[:3])}"
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape_a[:3]], [1])).reshape(4, -1)
    shift = np.linalg.norm(((affine_a - affine_b) @ corners)[:3], axis=0).max()
    if shift > 0.1 * nib.affines.voxel_sizes(affine_a).min():
        return f"affine puts voxels {shift:.3g} mm away from the same place"
    return ""


def save_mask(path, mask, like):
    """Save a label map on the grid of a scan.

    Parameters
    ----------
    path : str or Path
        ``.nii`` or ``.nii.gz``; replaced in one step if it exists.
    mask : (x, y, z) ndarray of integers
        In RAS+, as `load_image` of `like` gives it.
    like : str or Path
        The scan whose shape, affine codes and units the file takes.

    Raises
    ------
    ValueError
        If the mask is not on the grid of the scan, or not of an integer type.
    """
    mask = np.asarray(mask)
    scan = read(like)
    if not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f"{path}: labels must be integers. Received: dtype {mask.dtype}")
    shape = to_canonical(np.empty(spatial_shape(scan), bool), scan.affine)[0].shape
    if mask.shape != shape:
        problem = f"shape {mask.shape} is not the RAS+ shape {shape} of {like}"
        raise ValueError(f"{path}: {problem}. Pass the mask in RAS+ on the scan's own grid.")
    header = scan.header.copy()
    header.extensions.clear()  # these and the free text may name the patient
    for field in {"descrip", "aux_file", "intent_name", "db_name"} & set(header):
        header[field] = b""
    header["cal_min"] = header["cal_max"] = 0
    stored = from_canonical(_to_int32(path, mask), scan.affine).reshape(scan.shape[:3])
    write(path, type(scan)(stored, scan.affine, header, dtype="smallest"))


def write(path, image):
    """Write a NIfTI image in one step; the same image always gives the same bytes.

    Parameters
    ----------
    path : str or Path
        Compressed if it ends in ``.gz``.
    image : nibabel.Nifti1Image
    """
    raw = image.to_bytes()
    write_file(path, gzip.compress(raw, 6, mtime=0) if Path(path).suffix.lower() == ".gz" else raw)
