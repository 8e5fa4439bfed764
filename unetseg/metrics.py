"""Overlap and surface distances of binary masks, in millimetres."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree


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
    if spacing.shape != (mask_true.ndim,) or not (np.isfinite(spacing) & (spacing > 0)).all():
        raise ValueError(
            f"spacing_mm needs one positive number of mm per axis ({mask_true.ndim}). "
            f"Received: {spacing_mm}"
        )
    box = ndimage.find_objects((mask_true | mask_pred).astype(np.uint8))
    if not box:
        return SurfaceDistances(np.empty(0), np.empty(0))
    border_true, border_pred = _border(mask_true[box[0]]), _border(mask_pred[box[0]])
    return SurfaceDistances(
        _directed(border_true, border_pred, spacing), _directed(border_pred, border_true, spacing)
    )


def _border(mask):
    # Beyond the box around both masks there is nothing, so its edge counts as outside too.
    return mask & ~ndimage.binary_erosion(mask)


def _directed(border_from, border_to, spacing):
    distances = np.zeros(np.count_nonzero(border_from))
    apart = ~border_to[border_from]
    if not border_to.any():
        distances[:] = np.inf
    elif apart.any():
        tree = cKDTree(np.argwhere(border_to) * spacing)
        distances[apart] = tree.query(np.argwhere(border_from & ~border_to) * spacing)[0]
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
    if not tolerance_mm >= 0:
        raise ValueError(f"tolerance_mm must be zero or more. Received: {tolerance_mm}")
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
    if not 0 <= percentile <= 100:
        raise ValueError(f"percentile must lie in [0, 100]. Received: {percentile}")
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
        rows.append(
            {
                "label": int(label),
                "dice": dice(mask_true, mask_pred),
                "hausdorff_mm": hausdorff_from(distances, 100),
                "hd95_mm": hausdorff_from(distances, 95),
                "volume_true_ml": np.count_nonzero(mask_true) * voxel_ml,
                "volume_pred_ml": np.count_nonzero(mask_pred) * voxel_ml,
            }
        )
    return rows


def _check_masks(mask_true, mask_pred):
    for name, mask in (("mask_true", mask_true), ("mask_pred", mask_pred)):
        if not isinstance(mask, np.ndarray) or mask.dtype.kind != "b":
            raise ValueError(
                f"{name} must be a boolean array; of a label map pass one label, "
                f"`{name} == 1`. Received: dtype {getattr(mask, 'dtype', type(mask))}"
            )
    if mask_true.shape != mask_pred.shape:
        raise ValueError(
            "The masks must have one shape. "
            f"Received: mask_true {mask_true.shape}, mask_pred {mask_pred.shape}"
        )
