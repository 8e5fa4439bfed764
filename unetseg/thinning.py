"""Large scans made small enough to be shown: fewer, larger voxels, in which no label vanishes."""

import numpy as np
from nibabel.affines import voxel_sizes

AT_ONCE = 2**21  # voxels that are looked at together, so that memory stays small
SAMPLED = 10**6  # voxels that tell the range of the intensities


def choose_factors(shape, affine, most):
    """Choose how many voxels are shown as one, so that cubes of one size are few enough.

    Parameters
    ----------
    shape : tuple of 3 int
    affine : (4, 4) ndarray
        From indices to mm. The size of voxels along an axis of length 1 has no influence.
    most : int
        Cubes that may fill the box, upright in mm, around the scan.

    Returns
    -------
    factors : tuple of int
        Per axis; all 1 if the scan is small.
    side_mm : float
        Of the cubes: the shortest side of the voxels shown, so that none falls between them.
    """
    shape, spacing = np.array(shape), voxel_sizes(affine)
    several = shape > 1 if (shape > 1).any() else shape > 0
    box_mm = np.abs(affine[:3, :3]) @ shape
    most *= np.prod(shape * spacing) / np.prod(box_mm)  # fewer if the scan stands aslant in it
    target = spacing[several].min()
    while True:
        factors = np.minimum(np.ceil(target / spacing * (1 - 1e-9)).astype(int), shape)
        factors = np.maximum(factors, 1)
        side = (spacing * factors)[several].min()
        cubes = np.prod(np.ceil(-(-shape // factors) * factors * spacing / side)[several])
        if cubes <= most or (factors == shape).all():
            return tuple(factors.tolist()), float(side)
        target *= 1.05


def thin_affine(affine, factors):
    """Affine of the voxels shown, each at the middle of those that it stands for.

    Parameters
    ----------
    affine : (4, 4) ndarray
    factors : tuple of 3 int

    Returns
    -------
    (4, 4) ndarray
    """
    step = np.diag([*factors, 1.0])
    step[:3, 3] = (np.array(factors) - 1) / 2
    return affine @ step


def pool_mean(array, factors):
    """Mean of every block of voxels.

    Parameters
    ----------
    array : (...) ndarray of numbers
    factors : tuple of int
        Voxels of a block along each axis; the last block of an axis may hold fewer.

    Returns
    -------
    (...) ndarray of float32
    """
    total = _pool(np.add, lambda part: array[part].astype(np.float32), array, factors)
    for axis, (length, factor) in enumerate(zip(array.shape, factors, strict=True)):
        sizes = np.diff(np.arange(0, length, factor), append=length)
        total /= np.expand_dims(
            sizes.astype(np.float32), [a for a in range(array.ndim) if a != axis]
        )
    return total


def pool_max(array, factors):
    """Largest value of every block of voxels; parameters as of `pool_mean`."""
    return _pool(np.maximum, lambda part: array[part], array, factors)


def pool_rarest(kinds_of, arrays, factors):
    """Of every block of voxels the kind that is rarest in the whole scan, so that none vanishes.

    Parameters
    ----------
    kinds_of : callable
        Makes (...) uint16 kinds of a part of each of the arrays; 0 is nothing, shown only where a
        block holds nothing else.
    arrays : sequence of (...) ndarray
        Of one shape.
    factors : tuple of int
        As for `pool_mean`.

    Returns
    -------
    (...) ndarray of uint16
    """
    if set(factors) == {1}:
        return kinds_of(*arrays)
    every = tuple(slice(None, None, factor) for factor in factors)
    counts = np.bincount(kinds_of(*(array[every] for array in arrays)).ravel(), minlength=2**16)
    counts[0] = counts.max() + 1  # first of all, as the most frequent
    by_rank = np.argsort(-counts, kind="stable").astype(np.uint16)
    rank_of = np.argsort(by_rank).astype(np.uint16)

    def ranks(part):
        return rank_of[kinds_of(*(array[part] for array in arrays))]

    return by_rank[_pool(np.maximum, ranks, arrays[0], factors)]


def slabs(array, factors=None):
    """Cut an array, whatever its order in memory, into parts that are small; whole blocks each.

    Parameters
    ----------
    array : (...) ndarray
    factors : tuple of int, optional
        Voxels of a block along each axis; by default 1.

    Yields
    ------
    part, place : tuple of slice
        Of the array, and of the blocks.
    """
    factors = factors or (1,) * array.ndim
    axis = int(np.argmax(np.abs(array.strides) * (np.array(array.shape) > 1)))  # the slowest
    layer = array.size // array.shape[axis] * factors[axis]
    blocks = max(1, AT_ONCE // layer)
    whole = [slice(None)] * array.ndim
    for first in range(0, -(-array.shape[axis] // factors[axis]), blocks):
        part, place = list(whole), list(whole)
        place[axis] = slice(first, first + blocks)
        part[axis] = slice(first * factors[axis], (first + blocks) * factors[axis])
        yield tuple(part), tuple(place)


def _pool(ufunc, load, array, factors):
    pooled = None
    for part, place in slabs(array, factors):
        block = load(part)
        for axis, factor in enumerate(factors):
            if factor > 1:
                block = ufunc.reduceat(block, np.arange(0, block.shape[axis], factor), axis=axis)
        if pooled is None:
            shape = [-(-n // factor) for n, factor in zip(array.shape, factors, strict=True)]
            pooled = np.empty(shape, block.dtype)
        pooled[place] = block
    return pooled


def grey_range(image):
    """Intensities to show as black and white: percentiles 0.5 and 99.5.

    Parameters
    ----------
    image : (...) ndarray
        Of large ones every n-th voxel along each axis is looked at.

    Returns
    -------
    tuple of float
        (0, 1) if no voxel is finite.
    """
    long = sum(n > 1 for n in image.shape) or 1
    step = int(np.ceil((image.size / SAMPLED) ** (1 / long)))
    values = image[(slice(None, None, step),) * image.ndim]
    values = values[np.isfinite(values)]
    low, high = np.percentile(values, (0.5, 99.5)) if values.size else (0, 1)
    return float(low), float(high)
