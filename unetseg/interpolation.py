"""Turned patches: all channels and the mask interpolated in one go, a few planes at a time."""

import numpy as np

AT_ONCE = 2**15  # voxels that are worked on together: they stay in a processor's cache


def sample_affine(x, y, shape, matrix, offset):
    """Sample an image and its classes where an affine map points.

    What `scipy.ndimage.affine_transform` does (Virtanen et al. 2020) with ``order=1`` for the
    image and ``order=0`` for the classes; places are found once for both and for all channels.

    Parameters
    ----------
    x : (x, y, z, channel) ndarray of float32
    y : (x, y, z) ndarray of uint8
        Class numbers.
    shape : tuple of 3 int
        Of what is returned.
    matrix : (3, 3) ndarray of float
    offset : (3,) ndarray of float
        Voxel ``v`` is taken from place ``matrix @ v + offset`` of the image, in voxels. Places
        are computed in float32: to 1e-4 of a voxel.

    Returns
    -------
    x : (*shape, channel) ndarray of float32
        Interpolated linearly along each axis; outside the image, that is beyond the centres of
        its outer voxels, 0.
    y : shape-shaped ndarray of uint8
        Of the nearest voxel; outside 0.
    """
    rows, classes = np.ascontiguousarray(x).reshape(-1, x.shape[-1]), y.ravel()
    sampled_x = np.empty((*shape, x.shape[-1]), x.dtype)
    sampled_y = np.empty(shape, y.dtype)
    planes = max(1, AT_ONCE // (shape[1] * shape[2]))
    for first in range(0, shape[0], planes):
        part = slice(first, min(first + planes, shape[0]))
        places = _find_places(part, shape, matrix, offset)
        inside, nearest, lowest, ways = _find_neighbours(places, y.shape)
        sampled_y[part] = inside * classes.take(nearest, mode="clip")
        sampled_x[part] = inside[..., None] * _interpolate(rows, lowest, ways)
    return sampled_x, sampled_y


def _find_places(part, shape, matrix, offset):
    lines = [np.arange(n, dtype=np.float32) for n in shape]
    lines[0] = lines[0][part]
    grid = np.ix_(*lines)
    matrix, offset = matrix.astype(np.float32), offset.astype(np.float32)
    return [
        sum((a * line for a, line in zip(row, grid, strict=True)), start)
        for row, start in zip(matrix, offset, strict=True)
    ]


def _find_neighbours(places, shape):
    # Numbers of voxels in the order of memory: the nearest one, and of those around the lowest,
    # with the way from it along each axis: how far its neighbour is, what of the way is gone.
    inside, nearest, lowest, ways = True, 0, 0, []
    strides = (shape[1] * shape[2], shape[2], 1)
    for place, n, stride in zip(places, shape, strides, strict=True):
        inside = inside & (place >= 0) & (place <= n - 1)
        low = np.clip(place, 0, max(n - 2, 0)).astype(np.intp)
        gone = place - low.astype(np.float32)
        nearest = nearest + (low + (gone >= 0.5)) * stride
        lowest = lowest + low * stride
        if n > 1:
            ways.append((stride, gone[..., None]))
    return inside, nearest, lowest, ways


def _interpolate(rows, lowest, ways):
    if not ways:
        return rows.take(lowest, axis=0)
    (stride, gone), *others = ways
    low = _interpolate(rows, lowest, others)
    high = _interpolate(rows, lowest + stride, others)
    return low + gone * (high - low)
