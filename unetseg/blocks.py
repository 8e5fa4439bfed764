"""Class maps in blocks: what a whole scan of many classes would not leave room for."""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

BLOCK_BYTES = 2_250_000_000  # of one class map; two are in memory at a time
FLOAT_BYTES = 4


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


class Block(NamedTuple):
    """Some planes of the native box, and those of the network's grid that they come from.

    ``axis``: across the planes. ``native``: from the first to behind the last, counted in the
    box; ``network``: the same, counted on the network's grid with its padding.
    """

    axis: int
    native: tuple
    network: tuple


def map_bytes(shape, num_classes):
    """Bytes of a map of float32 with a number per voxel and class."""
    return math.prod(shape) * num_classes * FLOAT_BYTES


def make_blocks(place, axis, num_classes, most_bytes=None):
    """Cut the native box into blocks whose class maps fit into the memory.

    Parameters
    ----------
    place : Place
    axis : {0, 1, 2}
        Across the planes.
    num_classes : int
    most_bytes : int, optional
        Of one class map of float32; by default `BLOCK_BYTES`. A block has at least one plane.

    Returns
    -------
    list of Block
        As few as possible, as equal as possible.
    """
    n_native, n_network = place.box_shape[axis], place.inner_shape[axis]
    largest = max(
        map_bytes(place.box_shape, num_classes), map_bytes(place.inner_shape, num_classes)
    )
    count = -(-largest // (most_bytes or BLOCK_BYTES))
    borders = np.linspace(0, n_native, min(count, n_native) + 1).round().astype(int).tolist()
    blocks = []
    for first, last in itertools.pairwise(borders):
        low, high = first, last
        if n_native != n_network:  # linear interpolation looks at the planes on both sides
            centres = (np.array([first, last - 1]) + 0.5) * n_network / n_native - 0.5
            low = max(0, math.floor(centres[0]))
            high = min(n_network, math.floor(centres[1]) + 2)
        start = place.inner[axis].start
        blocks.append(Block(axis, (first, last), (start + low, start + high)))
    return blocks


def restore_plane_block(array, place, block):
    """Resample one class of a block to the native grid, linearly between voxel centres.

    Parameters
    ----------
    array : (x, y, z) ndarray of float
        On the network's grid with its padding; along the axis of the block its planes alone.
    place : Place
    block : Block

    Returns
    -------
    (x, y, z) ndarray
        The planes of the block within the native box. Both grids cover the same field of view,
        edge to edge; a view if they are the same.
    """
    axis, (first, last), (low, high) = block
    inner = list(place.inner)
    inner[axis] = slice(0, high - low)
    array = array[tuple(inner)]
    if place.inner_shape == place.box_shape:
        return array
    step = np.array(place.inner_shape) / place.box_shape
    offset = 0.5 * step - 0.5
    offset[axis] += first * step[axis] - (low - place.inner[axis].start)
    shape = list(place.box_shape)
    shape[axis] = last - first
    return ndimage.affine_transform(array, step, offset, tuple(shape), order=1, mode="nearest")


def along(axis, first, last):
    """Index of some planes of an array: three slices."""
    index = [slice(None)] * 3
    index[axis] = slice(first, last)
    return tuple(index)
