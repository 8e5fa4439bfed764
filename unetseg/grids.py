"""Two grids over one field of view: that of the scan and that of the network."""

import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage


class Place(NamedTuple):
    """Where the voxels that the network saw lie on the native grid.

    ``shape``: of the native grid. ``box``: three slices of it, which hold what was not cropped.
    ``inner``: three slices of the network's grid, which hold the box without the padding. Both
    cover the same field of view, edge to edge.
    """

    shape: tuple
    box: tuple
    inner: tuple

    @property
    def box_shape(self):
        """Voxels of the box along each axis."""
        return tuple(part.stop - part.start for part in self.box)

    @property
    def inner_shape(self):
        """Voxels of the network's grid along each axis, the padding left out."""
        return tuple(part.stop - part.start for part in self.inner)

    def to_native(self, box):
        """Find the part of the native grid that a part of the network's grid covers.

        Both are three slices; voxels of the network's grid are counted without the padding.
        """
        covered = []
        sides = zip(box, self.box, self.box_shape, self.inner_shape, strict=True)
        for part, native, n_native, n_network in sides:
            first = math.floor(part.start * n_native / n_network)
            last = math.ceil(part.stop * n_native / n_network)
            covered.append(slice(native.start + first, native.start + last))
        return tuple(covered)

    def to_array(self):
        """Pack it into numbers: a (5, 3) ndarray of int64."""
        ends = []
        for slices in (self.box, self.inner):
            ends.append([part.start for part in slices])
            ends.append([part.stop for part in slices])
        return np.array([self.shape, *ends])

    @classmethod
    def from_array(cls, array):
        """Unpack what `to_array` packed."""
        shape, *ends = array.tolist()
        box = tuple(map(slice, ends[0], ends[1]))
        inner = tuple(map(slice, ends[2], ends[3]))
        return cls(tuple(shape), box, inner)


def zoom(array, shape):
    """Resample to another number of voxels, edge to edge, linearly between voxel centres.

    Parameters
    ----------
    array : (x, y, z) ndarray of float
    shape : tuple of 3 int

    Returns
    -------
    ndarray of that shape
        The array itself if it has that shape.
    """
    if array.shape == tuple(shape):
        return array
    factors = np.array(shape) / array.shape
    return ndimage.zoom(array, factors, order=1, mode="nearest", grid_mode=True)


def restore_part(array, place, box):
    """Resample a part of the native grid from the network's grid, linearly between voxel centres.

    Parameters
    ----------
    array : (x, y, z) ndarray of float
        On the network's grid, with its padding.
    place : Place
    box : tuple of 3 slice
        Of the native grid.

    Returns
    -------
    (x, y, z) ndarray
        Beyond what the network saw its outermost voxels.
    """
    step = np.array(place.inner_shape) / place.box_shape
    first = [wanted.start - whole.start for wanted, whole in zip(box, place.box, strict=True)]
    offset = (np.array(first) + 0.5) * step - 0.5
    shape = tuple(part.stop - part.start for part in box)
    return ndimage.affine_transform(
        array[place.inner], step, offset, shape, order=1, mode="nearest"
    )


def zoom_labels(mask, shape, labels):
    """Resample a mask: each voxel gets the label that has the largest share in it.

    Parameters
    ----------
    mask : (x, y, z) ndarray of integers
    shape : tuple of 3 int
    labels : iterable of int
        Values of the classes 1, 2 ...

    Returns
    -------
    ndarray of uint8
        Class numbers; 0 is the background.
    """
    classes = np.zeros(shape, np.uint8)
    best = np.full(shape, 0.0, np.float32)
    for k, value in enumerate((0, *labels)):
        share = zoom((mask == value).astype(np.float32), shape)
        classes[share > best] = k
        best = np.maximum(best, share)
    return classes
