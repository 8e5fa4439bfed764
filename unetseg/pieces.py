"""Pieces of structures: which of them count, and how far they lie apart."""

import math

import numpy as np
from scipy import ndimage

from unetseg.body import find_box

CORNERS = np.ones((3, 3, 3))  # voxels that share one are of one piece
MAIN = 0.1  # of the largest piece of a label: a piece that is not astray
MOST_EXACT = 10**6  # voxels: gaps of larger structures are measured on a coarser grid
HALVINGS = 12  # of the longest gap that there may be: 4096 lengths
UNLIKELY = 0.1  # probability up to which a class is not counted
ABSENT = 0.1  # of the largest class: one that is smaller may be a false one


def keep_largest(classes, values):
    """Take away all but the largest piece of some labels.

    Parameters
    ----------
    classes : (x, y, z) ndarray of integers
    values : sequence of int, or dict by them
        Of the labels, above 0; the others stay as they are.

    Returns
    -------
    (x, y, z) ndarray
        A copy; 0 where pieces were. Voxels that share a corner are one piece; of equal ones the
        first stays.
    """
    kept = classes.copy()
    for value in values:
        there = classes == value
        if there.any():
            box = find_box(there)
            pieces, sizes = _find_pieces(there[box])
            kept[box][(pieces > 0) & (pieces != sizes.argmax())] = 0
    return kept


def count_structures(mask):
    """Count the pieces of a mask that have at least a tenth of the largest one's voxels.

    Parameters
    ----------
    mask : (x, y, z) ndarray of bool

    Returns
    -------
    int
    """
    _, sizes = _find_pieces(mask[find_box(mask)])
    return int(_are_main(sizes).sum())


def _find_pieces(mask):
    # Each voxel's number of a piece, from 1, and the voxels of each number, none of 0.
    pieces, _ = ndimage.label(mask, CORNERS)
    sizes = np.bincount(pieces.ravel())
    sizes[0] = 0
    return pieces, sizes


def _are_main(sizes):
    return sizes >= max(1, MAIN * sizes.max())


def find_structures(classes):
    """Tell structures from stray pieces of them.

    Parameters
    ----------
    classes : (x, y, z) ndarray of integers
        0 is the background.

    Returns
    -------
    (x, y, z) ndarray of bool
        The pieces of every class that have at least a tenth of its largest one's voxels.
    """
    kept = np.zeros(classes.shape, bool)
    for value in np.unique(classes[classes != 0]):
        there = classes == value
        box = find_box(there)
        pieces, sizes = _find_pieces(there[box])
        kept[box] |= _are_main(sizes)[pieces]
    return kept


def measure_gap(found, spacing_mm):
    """Measure how far pieces lie apart.

    Parameters
    ----------
    found : (x, y, z) ndarray of bool
        Such as `find_structures` returns it, with a voxel at least.
    spacing_mm : sequence of 3 float

    Returns
    -------
    float
        Millimetres: the shortest step from piece to piece with which all of them are reached, to
        about a voxel; in boxes of more than a million voxels to as many as make it that small. 0
        of one piece.
    """
    found = found[find_box(found)]
    block = max(1, math.ceil((found.size / MOST_EXACT) ** (1 / 3)))
    for axis, length in enumerate(found.shape):
        found = np.logical_or.reduceat(found, range(0, length, block), axis)
    if ndimage.label(found, CORNERS)[1] == 1:
        return 0.0
    distance = ndimage.distance_transform_edt(~found, np.multiply(spacing_mm, block))
    low, high = 0.0, 2 * distance.max()
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if ndimage.label(distance <= middle / 2, CORNERS)[1] == 1:
            high = middle
        else:
            low = middle
    return float(high)


def find_far(probabilities, reach_mm, spacing_mm, across=None):
    """Find what lies too far from the rest to be of the same structures.

    Parameters
    ----------
    probabilities : (x, y, z, class) ndarray of float
        Class 0 is the background.
    reach_mm : float
        Between pieces that belong together, at most.
    spacing_mm : sequence of 3 float
    across : {0, 1, 2}, optional
        Axis across slices, of which one may be missing in a piece; by default the coarsest.

    Returns
    -------
    (x, y, z) ndarray of bool
        Of where the most likely class is none of the background all but one group: pieces that are
        so close, of which that one stays that holds the largest shares of the classes. The share of
        a class that is hardly there counts little. A class that is nowhere likely in the group
        keeps the group with most of it too, unless hardly any is there: no label vanishes.
    """
    if across is None:
        across = int(np.argmax(spacing_mm))
    found = probabilities.argmax(axis=-1) > 0
    near = ndimage.distance_transform_edt(~found, spacing_mm) <= reach_mm / 2
    slices = np.moveaxis(near, across, 0)  # a view
    slices[1:-1] |= slices[:-2] & slices[2:]
    groups, count = ndimage.label(near, CORNERS)
    if count < 2:
        return np.zeros_like(found)
    by_class = np.moveaxis(probabilities[..., 1:], -1, 0)
    held = np.array([_sum_likely(of_class, groups, count) for of_class in by_class])
    whole = held.sum(axis=1, keepdims=True)
    least = ABSENT * whole.max()
    shares = held / np.maximum(whole, least)
    main = shares.sum(axis=0).argmax()
    lost = (whole[:, 0] >= least) & (shares[:, main] == 0)
    kept = [main, *shares[lost].argmax(axis=1)]
    return found & ~np.isin(groups, np.add(kept, 1))


def has_far_structures(classes, reach_mm, spacing_mm, across=None):
    """Tell whether of a label map `find_far` finds more than a tenth of a label.

    Parameters
    ----------
    classes : (x, y, z) ndarray of integers
        0 is the background.
    reach_mm, spacing_mm, across
        As for `find_far`.

    Returns
    -------
    bool
    """
    certain = np.eye(classes.max() + 1, dtype=bool)[classes]
    far = find_far(certain, reach_mm, spacing_mm, across)
    return any(far[classes == k].mean() > MAIN for k in np.unique(classes[classes > 0]))


def _sum_likely(of_class, groups, count):
    likely = np.where(of_class > UNLIKELY, of_class, 0.0)
    return ndimage.sum(likely, groups, range(1, count + 1))
