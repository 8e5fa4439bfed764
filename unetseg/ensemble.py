"""What several networks say of a scan, in blocks: many classes would fill the memory at once."""

import itertools
import math
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from unetseg.augmentation import view_neighbours
from unetseg.grids import restore_part
from unetseg.windows import slide, widest

BLOCK_BYTES = 2_250_000_000  # of one class map; two are in memory at a time
FLOAT_BYTES = 4
MUCH_LARGER = 2.5  # times as long are voxels of a first look that may miss thin structures


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
    place : unetseg.grids.Place
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
    place : unetseg.grids.Place
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


def predict_blocks(models, prepared, preprocessor, overlap, mirror_axes):
    """Predict a scan, a block of its native grid after the other.

    Parameters
    ----------
    models : sequence of keras.Model
    prepared : unetseg.prepared.Prepared
    preprocessor : Preprocessor
    overlap : float
    mirror_axes : tuple of {0, 1, 2}
        As for `unetseg.prediction.predict_case`.

    Yields
    ------
    block : Block
    mean : (x, y, z, class) ndarray of float32
        Probabilities, averaged over the models, in the planes of the block.
    votes : (model, x, y, z) ndarray of uint8
        Class numbers by each model alone.
    """
    settings = preprocessor, overlap, mirror_axes
    for block in _cut(preprocessor, prepared.x.shape, prepared.place):
        yield block, *_predict_block(models, prepared, block, *settings)


def predict_maps(models, prepared, preprocessor, overlap, mirror_axes):
    """Predict a scan on the network's grid.

    Parameters
    ----------
    models, prepared, preprocessor, overlap, mirror_axes
        As for `predict_blocks`.

    Returns
    -------
    (model, x, y, z, class) ndarray of float32
        Probabilities.
    """
    shape = prepared.x.shape[:3]
    maps = np.zeros((len(models), *shape, preprocessor.num_classes), np.float32)
    for out, model in zip(maps, models, strict=True):
        _predict(out, model, prepared, preprocessor, overlap, mirror_axes, (0, 0, shape[0]))
    return maps


def _cut(preprocessor, shape, place):
    # Windows that reach into two blocks are predicted twice: cut where they are short.
    reach = widest(preprocessor.patch, _flat_axis(preprocessor), preprocessor.sampling.planes)
    shares = [part / n for part, n in zip(reach, shape, strict=False)]
    return make_blocks(place, int(np.argmin(shares)), preprocessor.num_classes)


def _flat_axis(preprocessor):
    return preprocessor.patch.index(1) if 1 in preprocessor.patch else 0


def _predict_block(models, prepared, block, preprocessor, overlap, mirror_axes):
    # The mean of the models' probabilities and their votes, in the block of the native box.
    place, num_classes = prepared.place, preprocessor.num_classes
    low, high = block.network
    network_shape = [*prepared.x.shape[:3], num_classes]
    network_shape[block.axis] = high - low
    shape = list(place.box_shape)
    shape[block.axis] = block.native[1] - block.native[0]
    mean = np.zeros((*shape, num_classes), np.float32)
    votes = np.zeros((len(models), *shape), np.uint8)
    span = block.axis, low, high
    for number, model in enumerate(models):
        network = np.zeros(network_shape, np.float32)
        _predict(network, model, prepared, preprocessor, overlap, mirror_axes, span)
        _add_native(mean, votes[number], network, place, block, _recall(prepared, number, block))
    mean /= np.float32(len(models))
    return mean, votes


def count_first(preprocessor):
    """How much a first look counts in the mean with the second one.

    Parameters
    ----------
    preprocessor : unetseg.preprocessing.Preprocessor
        Of two looks.

    Returns
    -------
    float
        A half. A third if its voxels are on average more than 2.5 times as long as those of the
        second look, which so can draw what is thinner than they are: at a half nothing is drawn
        where the first look sees nothing.
    """
    times = np.divide(preprocessor.coarse_mm, preprocessor.spacing_mm)
    return 1 / 3 if np.prod(times) ** (1 / 3) > MUCH_LARGER else 1 / 2


def _recall(prepared, number, block):
    # What averages in what a model said at its first look, in the native part of the block.
    if prepared.first is None:
        return None
    place, maps = prepared.first
    part = list(prepared.place.box)
    start = part[block.axis].start
    part[block.axis] = slice(start + block.native[0], start + block.native[1])
    share = count_first(prepared.preprocessor)

    def average(k, native):
        return (1 - share) * native + share * restore_part(maps[number, ..., k], place, part)

    return average


def _add_native(total, vote, network, place, block, average):
    # Class by class, so that no other map of all of them is needed.
    best = np.full(vote.shape, -np.inf, np.float32)
    for k in range(network.shape[-1]):
        native = restore_plane_block(network[..., k], place, block)
        if average:
            native = average(k, native)
        total[..., k] += native
        vote[native > best] = k
        np.maximum(best, native, out=best)


def _predict(out, model, prepared, preprocessor, overlap, mirror_axes, span):
    # Adds to `out`, of which views are turned and mirrored as the volume is.
    flat = _flat_axis(preprocessor)
    planes = preprocessor.sampling.planes or (flat,)  # of a 3-D network one, which turns nothing
    mirrorings = [*_list_mirrorings(mirror_axes)]
    part = 1 / (len(planes) * len(mirrorings))
    for plane in planes:
        turned = {plane: flat, flat: plane}
        x = view_neighbours(
            prepared.x.swapaxes(plane, flat), flat, preprocessor.sampling.neighbours
        )
        void, into = (array.swapaxes(plane, flat) for array in (prepared.void, out))
        for mirrored in mirrorings:
            axes = [turned.get(axis, axis) for axis in mirrored]
            slide(
                [model],
                np.flip(x, axes),
                preprocessor.patch,
                overlap=overlap,
                span=_turn_span(span, turned, mirrored, prepared.x.shape),
                out=np.flip(into, axes),
                part=part,
                void=np.flip(void, axes),
            )


def _list_mirrorings(axes):
    # None of them, each, each two ...
    for count in range(len(axes) + 1):
        yield from itertools.combinations(axes, count)


def _turn_span(span, turned, mirrored, shape):
    axis, low, high = span
    if axis in mirrored:
        low, high = shape[axis] - high, shape[axis] - low
    return turned.get(axis, axis), low, high
