"""Overlap and surface distances of binary masks, in millimetres."""

from itertools import product
from typing import NamedTuple

import numpy as np
from scipy.spatial import cKDTree

from unetseg._base import require

METRICS = ("dice", "surface_dice", "hausdorff_mm", "hd95_mm", "assd_mm", "sensitivity")
METRICS += ("precision", "volume_true_ml", "volume_pred_ml", "volume_difference_ml")
REACH = 2  # voxels: contours that agree within this need no search
ROUNDING = 1e-6  # relative: 0.1 of a header is 0.10000000149, in float32


class SurfaceDistances(NamedTuple):
    """Distances in mm from each border voxel of one mask to the border of the other.

    Every distance metric is read from these, so one call to `surface_distances` serves them all.
    """

    true_to_pred: np.ndarray
    pred_to_true: np.ndarray

    def hausdorff(self, percentile=100):
        """As the function `hausdorff`."""
        require("percentile", percentile, 0 <= percentile <= 100, "in [0, 100]")
        if not (self.true_to_pred.size and self.pred_to_true.size):
            return self.average()  # NaN or inf; a percentile would interpolate infinities
        return float(max(np.percentile(directed, percentile) for directed in self))

    def average(self):
        """As the function `average_surface_distance`."""
        joined = np.concatenate(self)
        return float(joined.mean()) if joined.size else float("nan")

    def surface_dice(self, tolerance_mm):
        """As the function `surface_dice`."""
        require("tolerance_mm", tolerance_mm, 0 <= tolerance_mm < np.inf, "zero or more, finite")
        joined = np.concatenate(self)
        within = joined <= tolerance_mm * (1 + ROUNDING)
        return float(within.mean()) if joined.size else float("nan")


def dice(mask_true, mask_pred):
    """Dice similarity coefficient, ``2 |A n B| / (|A| + |B|)`` (Dice 1945).

    Parameters
    ----------
    mask_true, mask_pred : ndarray of bool
        Of one shape, 2-D or 3-D.

    Returns
    -------
    float
        In [0, 1]; NaN if both masks are empty.

    Raises
    ------
    ValueError
        If a mask is not boolean, not 2-D or 3-D, or the shapes differ.
    """
    _check_masks(mask_true, mask_pred)
    total = np.count_nonzero(mask_true) + np.count_nonzero(mask_pred)
    return 2 * np.count_nonzero(mask_true & mask_pred) / total if total else float("nan")


def sensitivity(mask_true, mask_pred):
    """Sensitivity (recall, true positive rate), ``|A n B| / |A|`` with A the true mask.

    Parameters
    ----------
    mask_true, mask_pred : ndarray of bool
        As for `dice`.

    Returns
    -------
    float
        In [0, 1]; NaN if the true mask is empty.

    Raises
    ------
    ValueError
        As `dice`.

    Notes
    -----
    Definition as in Metrics Reloaded (Maier-Hein et al. 2024).
    """
    _check_masks(mask_true, mask_pred)
    total = np.count_nonzero(mask_true)
    return np.count_nonzero(mask_true & mask_pred) / total if total else float("nan")


def precision(mask_true, mask_pred):
    """Precision (positive predictive value), ``|A n B| / |B|`` with B the predicted mask.

    Parameters
    ----------
    mask_true, mask_pred : ndarray of bool
        As for `dice`.

    Returns
    -------
    float
        In [0, 1]; NaN if the predicted mask is empty.

    Raises
    ------
    ValueError
        As `dice`.

    Notes
    -----
    Definition as in Metrics Reloaded (Maier-Hein et al. 2024).
    """
    _check_masks(mask_true, mask_pred)
    return sensitivity(mask_pred, mask_true)


def surface_distances(mask_true, mask_pred, spacing_mm):
    """Distances between the borders of two masks; every distance metric reads these.

    The border of a mask are its voxels that have a 6-neighbour (4 in 2-D) outside it, the edge
    of the image counting as outside. Distances run between voxel centres.

    Parameters
    ----------
    mask_true, mask_pred : ndarray of bool
        Of one shape, 2-D or 3-D. Along an axis of length 1 no voxel has a neighbour: a scan of one
        slice, (x, y, 1) or (1, y, z), is 2-D, its border a line; of (x, 1, 1) it is two ends.
    spacing_mm : sequence of float
        Size of a voxel along each axis, in mm; that of an axis of length 1 has no influence.

    Returns
    -------
    SurfaceDistances
        ``true_to_pred`` and ``pred_to_true``, 1-D float64 arrays in mm with one number per
        border voxel of the mask they start from. Infinite where the other mask is empty; empty
        where the mask itself is.

    Raises
    ------
    ValueError
        If a mask is not boolean, not 2-D or 3-D, the shapes differ, or the spacing is not one
        positive number per axis.

    Notes
    -----
    Definition as in Metrics Reloaded (Maier-Hein et al. 2024) and MONAI. The nearest border voxel
    is looked for among the neighbours first, in the order of their distance, and only where none
    of them is one in a k-d tree of the whole border. Both are exact.
    """
    _check_masks(mask_true, mask_pred)
    spacing = np.asarray(spacing_mm, dtype=float)
    fits = spacing.shape == (mask_true.ndim,) and (np.isfinite(spacing) & (spacing > 0)).all()
    require("spacing_mm", spacing_mm, fits, f"a positive number of mm per axis ({mask_true.ndim})")
    kept = _axes_with_neighbours(mask_true.shape)
    spacing, shape = spacing[kept], [mask_true.shape[axis] for axis in kept]
    # Beyond the box around both masks there is nothing, so its edge counts as outside too.
    masks = _crop(mask_true.reshape(shape), mask_pred.reshape(shape))
    true, pred = (_border(mask) for mask in masks)
    return SurfaceDistances(_directed(true, pred, spacing), _directed(pred, true, spacing))


def _axes_with_neighbours(shape):
    # Were a scan of one slice taken for a volume, all of its voxels would be border.
    return [axis for axis, length in enumerate(shape) if length > 1] or [0]


def _crop(*masks):
    for axis in range(masks[0].ndim):
        others = tuple(other for other in range(masks[0].ndim) if other != axis)
        (hit,) = np.logical_or.reduce([mask.any(others) for mask in masks]).nonzero()
        box = (slice(None),) * axis + (slice(hit[0], hit[-1] + 1) if hit.size else slice(0),)
        masks = [mask[box] for mask in masks]
    return masks


def _border(mask):
    # With a rim of REACH voxels that are False: a step to a neighbour never leaves the array.
    padded = np.zeros([n + 2 * REACH for n in mask.shape], bool)
    padded[(slice(REACH, -REACH),) * mask.ndim] = mask
    inside = padded.copy()
    flat, kept = padded.ravel(), inside.ravel()  # views
    for step in padded.strides:
        kept[step:] &= flat[:-step]
        kept[:-step] &= flat[step:]
    return padded ^ inside


def _directed(border_from, border_to, spacing):
    target, start = border_to.ravel(), np.flatnonzero(border_from)
    distances, left = np.zeros(start.size), np.flatnonzero(~target[start])
    for step, length in _neighbours(border_to.strides, spacing):
        hit = target[start[left] + step]
        distances[left[hit]] = length
        left = left[~hit]
    if left.size:  # in an empty tree all is at infinity; an unbalanced one is built sooner
        tree = cKDTree(np.argwhere(border_to) * spacing, balanced_tree=False)
        places = np.transpose(np.unravel_index(start[left], border_to.shape))
        distances[left] = tree.query(places * spacing)[0]
    return distances


def _neighbours(strides, spacing):
    # Steps in the flat array and their mm, in ascending order, up to the length from which on a
    # voxel out of REACH may be as near.
    offsets = np.array(list(product(range(-REACH, REACH + 1), repeat=len(strides))))
    lengths = np.linalg.norm(offsets * spacing, axis=1)
    order = np.argsort(lengths, kind="stable")[1:]
    order = order[lengths[order] <= (REACH + 1) * spacing.min()]
    return zip(offsets[order] @ strides, lengths[order], strict=True)


def hausdorff(mask_true, mask_pred, spacing_mm, *, percentile=100):
    """Hausdorff distance, or its percentile, between the borders of two masks.

    Parameters
    ----------
    mask_true, mask_pred, spacing_mm
        As for `surface_distances`.
    percentile : float, default 100
        In [0, 100]; 95 gives HD95, robust against single voxels.

    Returns
    -------
    float
        In mm, 0 or more: the larger of the two directed percentiles, each with linear
        interpolation. NaN if both masks are empty, inf if one is.

    Raises
    ------
    ValueError
        As `surface_distances`, or if the percentile is not in [0, 100].

    Notes
    -----
    Huttenlocher et al. 1993; the percentile as in Metrics Reloaded (Maier-Hein et al. 2024) and
    MONAI. medpy takes it of both directions together.
    """
    return surface_distances(mask_true, mask_pred, spacing_mm).hausdorff(percentile)


def average_surface_distance(mask_true, mask_pred, spacing_mm):
    """Average symmetric surface distance (ASSD): the mean over the border voxels of both masks.

    Parameters
    ----------
    mask_true, mask_pred, spacing_mm
        As for `surface_distances`.

    Returns
    -------
    float
        In mm, 0 or more. NaN if both masks are empty, inf if one is.

    Raises
    ------
    ValueError
        As `surface_distances`.

    Notes
    -----
    Definition as in Metrics Reloaded (Maier-Hein et al. 2024, ASSD) and Heimann et al. 2009. The
    mean of the two directed means, ``assd`` of medpy up to 0.4, is Metrics Reloaded's MASD.
    """
    return surface_distances(mask_true, mask_pred, spacing_mm).average()


def surface_dice(mask_true, mask_pred, spacing_mm, tolerance_mm):
    """Surface Dice: share of both borders that lies within a tolerance of the other.

    Parameters
    ----------
    mask_true, mask_pred, spacing_mm
        As for `surface_distances`.
    tolerance_mm : float
        In mm, zero or more; a distance equal to it (to a millionth) is within.

    Returns
    -------
    float
        In [0, 1]. NaN if both masks are empty, 0 if one is.

    Raises
    ------
    ValueError
        As `surface_distances`, or if the tolerance is negative, infinite or NaN.

    Notes
    -----
    Nikolov et al. 2021 (normalised surface Dice); counted in border voxels, as in MONAI and
    Metrics Reloaded, where Nikolov et al. weigh them by the area of the surface.
    """
    return surface_distances(mask_true, mask_pred, spacing_mm).surface_dice(tolerance_mm)


def score_case(labels_true, labels_pred, spacing_mm, labels, *, tolerance_mm=1.0):
    """Score one case, label by label.

    Parameters
    ----------
    labels_true, labels_pred : ndarray of integers
        Label maps of one shape, 2-D or 3-D; of one slice they are scored as 2-D.
    spacing_mm : sequence of float
        Size of a voxel along each axis, in mm. Volumes are those of voxels of this size; of a 2-D
        array they are those of a slice as thick as 1 mm.
    labels : iterable of int
        The label values to score.
    tolerance_mm : float, default 1
        Of the surface Dice.

    Returns
    -------
    list of dict
        A row per label: ``label``, `dice`, `surface_dice` and its ``tolerance_mm``,
        ``hausdorff_mm``, ``hd95_mm``, ``assd_mm`` (`average_surface_distance`), `sensitivity`,
        `precision`, ``volume_true_ml``, ``volume_pred_ml`` and ``volume_difference_ml``
        (predicted - true).

    Raises
    ------
    ValueError
        If the shapes differ, or as `surface_distances` and `surface_dice`.
    """
    rows = []
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    for label in labels:
        masks = labels_true == label, labels_pred == label
        distances = surface_distances(*masks, spacing_mm)
        true_ml, pred_ml = (np.count_nonzero(mask) * voxel_ml for mask in masks)
        rows.append(
            {
                "label": int(label),
                "dice": dice(*masks),
                "surface_dice": distances.surface_dice(tolerance_mm),
                "tolerance_mm": float(tolerance_mm),
                "hausdorff_mm": distances.hausdorff(),
                "hd95_mm": distances.hausdorff(95),
                "assd_mm": distances.average(),
                "sensitivity": sensitivity(*masks),
                "precision": precision(*masks),
                "volume_true_ml": true_ml,
                "volume_pred_ml": pred_ml,
                "volume_difference_ml": pred_ml - true_ml,
            }
        )
    return rows


def _check_masks(mask_true, mask_pred):
    for name, mask in (("mask_true", mask_true), ("mask_pred", mask_pred)):
        fits = isinstance(mask, np.ndarray) and mask.dtype == bool
        allowed = f"a boolean array; of a label map pass one label, `{name} == 1`"
        require(name, getattr(mask, "dtype", type(mask)), fits, allowed)
    shape = mask_true.shape
    require("mask_true", shape, len(shape) in (2, 3), "2-D or 3-D; one channel, one case at a time")
    require("mask_pred", mask_pred.shape, mask_pred.shape == shape, f"of mask_true's shape {shape}")
