"""Masks as they are drawn: what nobody drew is neither learnt nor scored; which are the same."""

import hashlib
import re

import numpy as np

from unetseg._base import refuse_any

IGNORED = 255  # class number of voxels that nobody drew
IGNORE = re.compile(r"ignored?([ _-]?(label|value|region|area|mask|voxels?))?", re.IGNORECASE)


def is_ignored(name):
    """Whether a label is named as one that marks voxels to ignore."""
    return bool(IGNORE.fullmatch(str(name).strip()))


def split_ignored(labels):
    """Part the labels that are learnt from the one that marks voxels to ignore.

    Parameters
    ----------
    labels : mapping of int to str, iterable of int, or None
        Values with their names, as nnU-Net declares them.

    Returns
    -------
    labels
        Of the same kind, without the one that is named ``ignore``, however it is written.
    ignore : int
        Its value; 0 if there is none.

    Raises
    ------
    ValueError
        If there are several.
    """
    if not hasattr(labels, "items"):
        return labels, 0
    ignored = [value for value, name in labels.items() if is_ignored(name)]
    several = [f"{labels[value]!r} = {value}" for value in ignored] if len(ignored) > 1 else []
    refuse_any(several, "labels:", "mark voxels to ignore", "Give all such voxels one value.")
    if not ignored:
        return labels, 0
    return {value: name for value, name in labels.items() if value not in ignored}, ignored[0]


def hash_labels(mask):
    """Hash the labels of a mask, as the same mask may be stored in other bytes.

    Parameters
    ----------
    mask : (x, y, z) ndarray of int32
        As `unetseg.nifti.load_mask` returns it.

    Returns
    -------
    str
        SHA-256, of the shape too.
    """
    return hashlib.sha256(f"{mask.shape}".encode() + mask.tobytes()).hexdigest()


def is_same(image, mask):
    """Whether a scan holds the values of a mask, or these scaled, such as 0 and 255 for 0 and 1.

    Parameters
    ----------
    image : (x, y, z) or (x, y, z, 1) ndarray of float32
    mask : (x, y, z) ndarray of integers

    Returns
    -------
    bool
    """
    with np.errstate(all="ignore"):
        scaled = np.squeeze(mask).astype(np.float32) * np.float32(image.max() / max(mask.max(), 1))
    return bool(mask.any() and image.any()) and np.array_equal(np.squeeze(image), scaled)


def drop_ignored(mask, ignore):
    """Take voxels that nobody drew for background.

    Parameters
    ----------
    mask : (x, y, z) ndarray of integers
    ignore : int
        Their value; 0 for none.

    Returns
    -------
    ndarray
        `mask` itself if there is nothing to drop.
    """
    return np.where(mask == ignore, 0, mask).astype(mask.dtype) if ignore else mask
