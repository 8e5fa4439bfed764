"""NIfTI files in and out: read, orient, save; each transform beside its inverse."""

import contextlib
import gzip
import io
import math
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from unetseg._base import write_file

LABEL_TOLERANCE = 1e-3  # float32 arithmetic on a scaled integer stays well within this
SHEAR_TOLERANCE = 1e-3  # largest cosine between two axes
FARTHEST = 1e9  # in the file's unit; no scan is a kilometre away
HEAD = 544  # bytes of the longest header that is read
MAX_VOXELS = 2**30  # 4 GiB as float32
MM = {0: 1, 1: 1000, 2: 1, 3: 0.001}  # of NIfTI's unit codes: not told, m, mm, micron
SET_FORMS = "set both to the right affine (nibabel: set_sform(affine, 1), set_qform(affine, 1))"


def read(path, *, voxels=True):
    """Read one NIfTI file whole, the checksum of its compression included.

    Parameters
    ----------
    path : str or Path
        A ``.nii`` or ``.nii.gz`` file, NIfTI-1 or NIfTI-2. The content counts, not the suffix.
    voxels : bool, default True
        If False, read and check the header alone.

    Returns
    -------
    nibabel.Nifti1Image or nibabel.Nifti2Image, or its header
        In the file's own storage order and units; the data are in memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file does not hold exactly the voxels that its header promises, or the header
        leaves in doubt where they lie: neither qform nor sform, two that differ, axes that are
        not at right angles, or voxel sizes that are not positive or not those of the affine.
        The message says what the file is instead, such as empty, truncated or a web page.

    Notes
    -----
    A slope of 0, NaN or infinity means that voxels are not scaled, and such an intercept that
    nothing is added, as to ITK; the header that is returned says so by 1 and 0.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. {_find_missing(path)}, or remove the case.")
    try:
        with open(path, "rb") as file, np.errstate(over="ignore", invalid="ignore"):
            packed = file.peek(2)[:2] == b"\x1f\x8b"
            stream = gzip.GzipFile(fileobj=file) if packed else file  # unlike nibabel, checks CRC
            header = _read_header(stream, path.stat().st_size)
            return _read_image(stream, header) if voxels else header
    except Exception as error:  # gzip, zlib, NumPy and nibabel each have their own for bad bytes
        from unetseg.reading.contents import explain  # here: whole files are read without it

        finding, remedy = explain(path, error, is_nifti)
        problem = f"cannot be read as NIfTI: {finding}. {remedy}, or remove the case."
        raise ValueError(f"{path}: {problem}") from error


def _find_missing(path):
    if path.is_symlink():
        annexed = "annex" in str(path.readlink())
        return "Fetch what the link leads to" + annexed * " (git annex get, or datalad get)"
    return "Check the spelling" + path.is_dir() * " (this is a folder)"


def _read_header(stream, file_bytes):
    head = _take(stream, HEAD, 348)
    if not is_nifti(head):
        raise ValueError("one file in NIfTI-1 or -2 is read")
    kind = nib.Nifti2Header if head[4:7] == b"n+2" else nib.Nifti1Header
    if len(head) < kind.sizeof_hdr:
        raise ValueError(_describe_truncated(stream, len(head), kind.sizeof_hdr))
    header = kind(head[: kind.sizeof_hdr], check=False)
    _check_promise(header, stream, file_bytes)
    if int(header["xyzt_units"]) & 7 not in MM:
        raise ValueError(f"its header holds 'xyzt_units': {header['xyzt_units']}; correct the unit")
    shape = header.get_data_shape()
    sizes = header["pixdim"][1 : len(shape[:3]) + 1].astype(float)
    _drop_bad_scaling(header)
    header.check_fix()  # what is wrong beyond this is an error or of no importance
    _check_affines(header, (*shape, 1)[:3], sizes)
    return header


def is_nifti(head):
    """Whether the first 544 bytes of a file are those of one file in NIfTI-1 or NIfTI-2."""
    return head[4:7] == b"n+2" or head[344:347] == b"n+1"


def _check_promise(header, stream, file_bytes):
    shape, size = header.get_data_shape(), _count_bytes(header)
    if len(shape) < 2 or min(shape) < 1 or max(math.prod(shape), size / 8) > MAX_VOXELS:
        limits = f"{MAX_VOXELS} voxels along two axes or more are allowed"
        raise ValueError(f"its header promises shape {shape} in {size} bytes; {limits}")
    # No packed byte stands for more than 1032 others.
    most = file_bytes * 1032 if isinstance(stream, gzip.GzipFile) else file_bytes
    if size > most:
        promise = f"its header promises shape {shape}"
        raise ValueError(f"{_describe_truncated(stream, most, size)}; {promise}")


def _drop_bad_scaling(header):
    # As every other reader does; the header is then one that can be written again.
    if not np.isfinite(header["scl_slope"]) or header["scl_slope"] == 0:
        header["scl_slope"], header["scl_inter"] = 1, 0
    if not np.isfinite(header["scl_inter"]):
        header["scl_inter"] = 0


def _take(stream, most, needed):
    # Up to so many bytes of a file; a packed one may end before its end.
    try:
        return stream.read(most)
    except EOFError as error:
        raise ValueError(_describe_truncated(stream, _count_unpacked(stream), needed)) from error


def _count_unpacked(stream):
    stream.seek(0)
    count = 0
    with contextlib.suppress(EOFError):
        while part := stream.read1(2**16):
            count += len(part)
    return count


def _describe_truncated(stream, there, needed):
    where = "can be unpacked" if isinstance(stream, gzip.GzipFile) else "are there"
    return f"truncated: {there} bytes {where}, {needed} are needed"


def _count_bytes(header):
    voxel = header.get_data_dtype().itemsize
    return header.get_data_offset() + math.prod(header.get_data_shape()) * voxel


def _check_affines(header, shape, sizes):
    forms = header.get_sform(coded=True), header.get_qform(coded=True)
    if not (affines := [affine for affine, code in forms if code]):
        raise ValueError(f"neither qform nor sform tells left from right; {SET_FORMS}")
    for affine in affines:
        by_affine = nib.affines.voxel_sizes(affine)
        axes = np.nan_to_num(affine[:3, :3], posinf=0, neginf=0) / np.maximum(by_affine, 1e-12)
        cosines = np.abs(axes.T @ axes - np.eye(3))
        if not (np.abs(affine).max() < FARTHEST and cosines.max() < SHEAR_TOLERANCE):
            raise ValueError(f"its affine {affine[:3].tolist()} sets no voxels at right angles")
        if not np.allclose(by_affine[: len(sizes)], sizes, rtol=1e-3, atol=0):
            problem = f"voxel size {sizes} by pixdim, {by_affine} by affine; correct the wrong"
            raise ValueError(problem)
    if mismatch := describe_grid_mismatch(shape, affines[0], shape, affines[-1]):
        raise ValueError(f"sform and qform are in conflict, the {mismatch}; {SET_FORMS}")


def _read_image(stream, header):
    stream.seek(0)
    size = _count_bytes(header)
    raw = _take(stream, size + 1, size)
    if len(raw) < size:
        raise ValueError(_describe_truncated(stream, len(raw), size))
    if len(raw) > size:
        raise ValueError(f"it holds {len(raw)} bytes or more, not the {size} of its header")
    # Extensions are passed over: nothing here looks at them, and they may name the patient.
    array = header.data_from_fileobj(io.BytesIO(raw))
    return _image_type(header)(array, header.get_best_affine(), header)


def _image_type(header):
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def affine_mm(header):
    """Affine of a header in mm, whatever its units; those that are not told count as mm.

    Parameters
    ----------
    header : nibabel.Nifti1Header

    Returns
    -------
    (4, 4) ndarray of float64
        From storage indices to mm.
    """
    return np.diag([MM[int(header["xyzt_units"]) & 7]] * 3 + [1]) @ header.get_best_affine()


def spatial_shape(shape):
    """Shape along x, y and z of what is stored: a 2-D file counts as one slice.

    Parameters
    ----------
    shape : tuple of int

    Returns
    -------
    tuple of 3 int
    """
    return (*shape[:3], 1, 1)[:3]


def canonical_grid(header):
    """Tell the grid that `to_canonical` gives, by the header alone.

    Parameters
    ----------
    header : nibabel.Nifti1Header

    Returns
    -------
    shape : tuple of 3 int
        Along x, y, z.
    spacing_mm : (3,) ndarray of float64
    """
    affine = affine_mm(header)
    order = np.argsort(_orient(affine)[:, 0])  # storage axes along x, y, z
    stored = np.array(spatial_shape(header.get_data_shape()))
    return tuple(stored[order].tolist()), nib.affines.voxel_sizes(affine)[order]


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
    orientation = _orient(affine)
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
    return apply_orientation(array, ornt_transform(_orient(np.eye(4)), _orient(affine)))


def _orient(affine):
    # Rounded, so that at 45 degrees a mask is turned as its scan, whatever the last digits.
    return io_orientation((affine / [*nib.affines.voxel_sizes(affine), 1]).round(3))


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
        with np.errstate(invalid="ignore"):
            array, fractions = np.rint(array), array
            wrong = ~(np.abs(array - fractions) <= LABEL_TOLERANCE)  # also NaN and infinity
        if wrong.any():
            problem = f"a mask holds whole label values, this file holds {fractions[wrong][0]:.4g}"
            raise ValueError(f"{path}: {problem}. Is it a scan, or was a mask interpolated?")
    return _to_int32(path, array), affine


def _to_int32(path, labels):
    low, high = labels.min(), labels.max()
    if low < -(2**31) or high >= 2**31:
        raise ValueError(f"{path}: labels from {low} to {high} do not fit int32. Renumber them.")
    return labels.astype(np.int32)


def _load(path, dtype=None):
    image = read(path)
    array = np.asanyarray(image.dataobj)
    if array.dtype.kind not in "iuf":
        raise ValueError(f"{path}: voxels of type {array.dtype}. Convert it to a grey-scale scan.")
    channels = tuple(n for n in array.shape[3:] if n > 1)
    if len(channels) > 1:
        raise ValueError(f"{path}: shape {array.shape}; at most x, y, z and channel are read.")
    array = array.reshape(spatial_shape(array.shape) + channels)
    with np.errstate(over="ignore"):  # too large for float32: infinite, of which check_cases tells
        array = array if dtype is None else array.astype(dtype)
    return to_canonical(array, affine_mm(image.header))


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
        If the mask is not on the grid of the scan, or not of an integer type, or if it would
        replace the scan.
    """
    mask = np.asarray(mask)
    if not np.issubdtype(mask.dtype, np.integer):
        raise ValueError(f"{path}: labels must be integers. Received: dtype {mask.dtype}")
    _write_like(path, _to_int32(path, mask), like, "smallest")


def save_map(path, array, like):
    """Save a map of numbers, such as probabilities or an uncertainty, on the grid of a scan.

    Parameters
    ----------
    path, like
        As for `save_mask`.
    array : (x, y, z) or (x, y, z, channel) ndarray of float
        In RAS+. Stored as float32, rounded to three decimals, or to about three digits of the
        largest if that is less than 1. More are not worth their space.

    Raises
    ------
    ValueError
        If the map is not on the grid of the scan, or would replace it.
    """
    array = np.asarray(array, np.float32)
    largest = np.abs(array[np.isfinite(array)]).max(initial=0)
    small = 0 < largest < 1
    decimals = 3 - round(math.log10(largest)) if small else 3
    _write_like(path, np.round(array, decimals), like, np.float32)


def _write_like(path, array, like, dtype):
    if Path(path).exists() and Path(path).samefile(like):
        raise ValueError(
            f"{path}: is the scan itself, which is never replaced. Choose another name."
        )
    header = read(like, voxels=False)
    shape, _ = canonical_grid(header)
    if array.shape[:3] != shape or array.ndim > 3 + (dtype != "smallest"):
        problem = f"shape {array.shape} is not the RAS+ shape {shape} of {like}"
        raise ValueError(f"{path}: {problem}. Pass the array in RAS+ on the scan's own grid.")
    for field in ("descrip", "aux_file", "intent_name", "db_name"):
        if field in header:  # free text may name the patient
            header[field] = b""
    header["cal_min"] = header["cal_max"] = header["intent_code"] = 0
    affine = header.get_best_affine()
    stored = from_canonical(array, affine)
    if array.ndim == 3:
        stored = stored.reshape(header.get_data_shape()[:3])  # of two numbers for a 2-D file
    write(path, _image_type(header)(stored, affine, header, dtype=dtype))


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
