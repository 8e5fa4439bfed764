"""What of a scan is body, what is space without signal around it, and where the structures lie."""

import math

import numpy as np
from scipy import ndimage

MOST = 0.5  # of the outermost planes of a scan, which one value does not fill by chance
REACH = 4  # voxels of the finest axis: how far from the body a structure may lie
SPECKS = 0.02  # share of single voxels with signal that do not make a body
NEIGHBOURHOOD = 12  # voxels of the finest axis: over which contrast is measured


def find_background(channel):
    """Value that fills the field of view outside of the body, whatever it is.

    Parameters
    ----------
    channel : (x, y, z) ndarray
        One channel of a scan. Axes of length 1 have no faces.

    Returns
    -------
    float or None
        The value, such as 0, -1 or -1024, that fills most of the two outermost planes at one
        of the faces of the scan (at that face which a single value fills most). None if there is
        none: then tissue or noise reaches all faces.
    """
    fullest, background = MOST, None
    for axis, length in enumerate(channel.shape):
        for planes in ((0, 1), (-2, -1)) if length > 1 else ():
            values, counts = np.unique(channel.take(planes, axis), return_counts=True)
            share = counts.max() / counts.sum()
            if share > fullest:
                fullest, background = share, float(values[counts.argmax()])
    return background


def find_body(image):
    """Tell the body from the space without signal around it.

    Parameters
    ----------
    image : (x, y, z, channel) ndarray

    Returns
    -------
    body : (x, y, z) ndarray of bool
        Where some channel differs from its background; everywhere if a channel has none.
    backgrounds : list of float or None
        Per channel, as `find_background` returns it.
    """
    channels = np.moveaxis(image, -1, 0)
    backgrounds = [find_background(channel) for channel in channels]
    body = np.zeros(image.shape[:3], bool)
    for channel, background in zip(channels, backgrounds, strict=True):
        body |= True if background is None else channel != background
    return body, backgrounds


def find_box(body):
    """Smallest box that holds a body.

    Parameters
    ----------
    body : (x, y, z) ndarray of bool

    Returns
    -------
    tuple of 3 slice
        All of the array if the body is empty.
    """
    boxes = ndimage.find_objects(body.astype(np.uint8))
    return boxes[0] if boxes else tuple(slice(0, length) for length in body.shape)


def reach_outside(mask, outside):
    """Take away the holes of a mask: what neither touches a face of the array nor the outside.

    Parameters
    ----------
    mask, outside : (x, y, z) ndarray of bool
        Axes of less than half of the longest one's length have no faces: the first and last of
        few slices go through structures.

    Returns
    -------
    (x, y, z) ndarray of bool
        Those pieces of `mask` (voxels that share a face) that do.
    """
    pieces, count = ndimage.label(mask)
    reaches = np.zeros(count + 1, bool)
    reaches[pieces[outside]] = True
    for axis, length in enumerate(mask.shape):
        for plane in (0, -1) if 2 * length >= max(mask.shape) else ():
            reaches[pieces.take(plane, axis)] = True
    reaches[0] = False
    return reaches[pieces]


def widen(box, share, shape, least=(0, 0, 0)):
    """Put a margin around a box, as far as the array reaches.

    Parameters
    ----------
    box : tuple of 3 slice
    share : float
        Of the box's sides, on each side.
    shape : tuple of 3 int
        Of the array.
    least : sequence of 3 float, optional
        Voxels that the margin has, at least.

    Returns
    -------
    tuple of 3 slice
    """
    wide = []
    for part, length, fewest in zip(box, shape, least, strict=True):
        margin = math.ceil(max(share * (part.stop - part.start), fewest))
        wide.append(slice(max(0, part.start - margin), min(length, part.stop + margin)))
    return tuple(wide)


def meet(box, other):
    """Part that two boxes have in common; the first one if there is none.

    Parameters
    ----------
    box, other : tuple of 3 slice

    Returns
    -------
    tuple of 3 slice
    """
    pairs = zip(box, other, strict=True)
    common = [slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in pairs]
    return tuple(common) if all(part.start < part.stop for part in common) else box


def find_void(body, spacing_mm):
    """Voxels that have next to nothing of the body around them.

    Parameters
    ----------
    body : (x, y, z) ndarray of bool
    spacing_mm : sequence of 3 float

    Returns
    -------
    (x, y, z) ndarray of bool
        Where less than 2 % of the box around a voxel is body, which reaches 4 voxels of the
        finest axis to each side. So single voxels with signal in the air around a head do not
        count as body, and a margin of some voxels around it is no void.
    """
    if body.all():
        return ~body
    size = _box_size(REACH, body.shape, spacing_mm)
    share = ndimage.uniform_filter(body.astype(np.float32), size, mode="constant")
    return share < SPECKS


def measure_contrast(image, body, spacing_mm):
    """How much the signal varies around each voxel, in units of how it varies in the body.

    Parameters
    ----------
    image : (x, y, z, channel) ndarray
    body : (x, y, z) ndarray of bool
    spacing_mm : sequence of 3 float

    Returns
    -------
    (x, y, z) ndarray of float32
        Standard deviation in the box that reaches 12 voxels of the finest axis to each side,
        over that of the body; of the channel in which it is largest. 0 where there is no signal,
        a few hundredths in the noise of air, about 1 across a structure.
    """
    size = _box_size(NEIGHBOURHOOD, body.shape, spacing_mm)
    contrast = np.zeros(image.shape[:3], np.float32)
    for channel in np.moveaxis(image, -1, 0):
        voxels = channel[body] if body.any() else channel
        spread = voxels.std()
        if spread == 0:
            continue
        scaled = ((channel - voxels.mean()) / spread).astype(np.float32)
        mean = ndimage.uniform_filter(scaled, size, mode="nearest")
        square = ndimage.uniform_filter(scaled**2, size, mode="nearest")
        contrast = np.maximum(contrast, np.sqrt(np.maximum(square - mean**2, 0)))
    return contrast


def _box_size(steps, shape, spacing_mm):
    several = np.array(shape) > 1  # a single slice is 2-D
    spacing = np.asarray(spacing_mm, float)
    along = steps * spacing.min(where=several, initial=np.inf) / spacing
    return 2 * np.floor(np.where(several, along + 1e-6, 0)).astype(int) + 1
