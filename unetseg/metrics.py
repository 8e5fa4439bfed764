"""Overlap and surface distances of binary masks, in millimetres."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from unetseg.workspace import require


class SurfaceDistances(NamedTuple):
    """Distances in mm from each border voxel of one mask to the border of the other."""

    true_to_pred: np.ndarray
    pred_to_true: np.ndarray


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
        If a mask is not boolean or the shapes differ.
    """
    _check_masks(mask_true, mask_pred)
    total = np.count_nonzero(mask_true) + np.count_nonzero(mask_pred)
    return 2 * np.count_nonzero(mask_true & mask_pred) / total if total else float("nan")


def surface_distances(mask_true, mask_pred, spacing_mm):
    """Distances between the borders of two masks; every distance metric reads these.

    The border of a mask are its voxels that have a 6-neighbour (4 in 2-D) outside it, the edge
    of the image counting as outside. Distances run between voxel centres.

    Parameters
    ----------
    mask_true, mask_pred : ndarray of bool
        Of one shape, 2-D or 3-D.
    spacing_mm : sequence of float
        Size of a voxel along each axis, in mm.

    Returns
    -------
    SurfaceDistances
        ``true_to_pred`` and ``pred_to_true``, 1-D float64 arrays in mm with one number per
        border voxel of the mask they start from. Infinite where the other mask is empty; empty
        where the mask itself is.

    Raises
    ------
    ValueError
        If a mask is not boolean, the shapes differ, or the spacing is not one positive number
        per axis.

    Notes
    -----
    Definition as in Metrics Reloaded (Maier-Hein et al. 2024) and MONAI. A border voxel of one
    mask that is also one of the other is at distance 0; only the others are looked up, in a k-d
    tree.
    """
    _check_masks(mask_true, mask_pred)
    spacing = np.asarray(spacing_mm, dtype=float)
    fits = spacing.shape == (mask_true.ndim,) and (np.isfinite(spacing) & (spacing > 0)).all()
    require("spacing_mm", spacing_mm, fits, f"a positive number of mm per axis ({mask_true.ndim})")
    box = ndimage.find_objects((mask_true | mask_pred).astype(np.uint8))
    if not box:
        return SurfaceDistances(np.empty(0), np.empty(0))
    # Beyond the box around both masks there is nothing, so its edge counts as outside too.
    boxed = (mask[box[0]] for mask in (mask_true, mask_pred))
    true, pred = (mask & ~ndimage.binary_erosion(mask) for mask in boxed)
    return SurfaceDistances(_directed(true, pred, spacing), _directed(pred, true, spacing))


def _directed(border_from, border_to, spacing):
    distances = np.zeros(np.count_nonzero(border_from))
    tree = cKDTree(np.argwhere(border_to) * spacing)  # from an empty tree all is at infinity
    apart = np.argwhere(border_from & ~border_to) * spacing
    distances[~border_to[border_from]] = tree.query(apart)[0]
    return distances


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
        In mm, the larger of the two directed percentiles (as in Metrics Reloaded and MONAI;
        linear interpolation). NaN if both masks are empty, inf if one is.
    """
    return hausdorff_from(surface_distances(mask_true, mask_pred, spacing_mm), percentile)


def average_surface_distance(mask_true, mask_pred, spacing_mm):
    """Average symmetric surface distance: the mean over the border voxels of both masks.

    Parameters
    ----------
    mask_true, mask_pred, spacing_mm
        As for `surface_distances`.

    Returns
    -------
    float
        In mm. NaN if both masks are empty, inf if one is.
    """
    distances = np.concatenate(surface_distances(mask_true, mask_pred, spacing_mm))
    return float(distances.mean()) if distances.size else float("nan")


def surface_dice(mask_true, mask_pred, spacing_mm, tolerance_mm):
    """Share of both borders that lies within a tolerance of the other (Nikolov et al. 2021).

    Parameters
    ----------
    mask_true, mask_pred, spacing_mm
        As for `surface_distances`.
    tolerance_mm : float
        In mm, zero or more.

    Returns
    -------
    float
        In [0, 1], counted in border voxels. NaN if both masks are empty, 0 if one is.
    """
    require("tolerance_mm", tolerance_mm, tolerance_mm >= 0, "zero or more")
    distances = np.concatenate(surface_distances(mask_true, mask_pred, spacing_mm))
    return float(np.mean(distances <= tolerance_mm)) if distances.size else float("nan")


def hausdorff_from(distances, percentile):
    """Hausdorff distance at a percentile from distances that are at hand.

    Parameters
    ----------
    distances : SurfaceDistances
    percentile : float
        In [0, 100].

    Returns
    -------
    float
        As `hausdorff`.
    """
    require("percentile", percentile, 0 <= percentile <= 100, "in [0, 100]")
    joined = np.concatenate(distances)
    if not joined.size or np.isinf(joined).any():
        return float("inf" if joined.size else "nan")
    return float(max(np.percentile(directed, percentile) for directed in distances))


def score_case(labels_true, labels_pred, spacing_mm, labels):
    """Score one case, label by label.

    Parameters
    ----------
    labels_true, labels_pred : ndarray of integers
        Label maps of one shape, 2-D or 3-D.
    spacing_mm : sequence of float
        Size of a voxel along each axis, in mm.
    labels : iterable of int
        The label values to score.

    Returns
    -------
    list of dict
        A row per label: ``label``, ``dice``, ``hausdorff_mm``, ``hd95_mm``,
        ``volume_true_ml``, ``volume_pred_ml``.
    """
    rows = []
    voxel_ml = float(np.prod(spacing_mm)) / 1000
    for label in labels:
        mask_true, mask_pred = labels_true == label, labels_pred == label
        distances = surface_distances(mask_true, mask_pred, spacing_mm)
        row = {"label": int(label), "dice": dice(mask_true, mask_pred)}
        row["hausdorff_mm"] = hausdorff_from(distances, 100)
        row["hd95_mm"] = hausdorff_from(distances, 95)
        row["volume_true_ml"] = np.count_nonzero(mask_true) * voxel_ml
        row["volume_pred_ml"] = np.count_nonzero(mask_pred) * voxel_ml
        rows.append(row)
    return rows


def _check_masks(mask_true, mask_pred):
    for name, mask in (("mask_true", mask_true), ("mask_pred", mask_pred)):
        fits = isinstance(mask, np.ndarray) and mask.dtype == bool
        allowed = f"a boolean array; of a label map pass one label, `{name} == 1`"
        require(name, getattr(mask, "dtype", type(mask)), fits, allowed)
    shape = mask_true.shape
    require("mask_pred", mask_pred.shape, mask_pred.shape == shape, f"of mask_true's shape {shape}")
