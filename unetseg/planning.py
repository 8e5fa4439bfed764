"""What is chosen: facts of the cases in, settings out."""

import numpy as np
from scipy import ndimage

from unetseg.body import find_box, find_void, measure_contrast
from unetseg.digits import significant

ANISOTROPIC = 2.999  # times the other spacings: an axis of low resolution (3 in nnU-Net)
OUTLIERS = 20  # standard deviations; brighter voxels would set the scale of a z-score
ASTRAY = 0.001  # share of a label's voxels that may lie anywhere by a slip of the hand


def describe_case(image, mask, body, spacing_mm):
    """Facts of a case from which settings are chosen.

    Parameters
    ----------
    image : (x, y, z, channel) ndarray
    mask : (x, y, z) ndarray of int32, or None
    body : (x, y, z) ndarray of bool
        As `unetseg.body.find_body` returns it.
    spacing_mm : (3,) ndarray

    Returns
    -------
    dict
        ``shape`` of the box of the body; ``spacing_mm``; number of ``channels``;
        ``brightest_sd``, by how many standard deviations the brightest voxel of a channel lies
        above its mean; ``sides``, by label, how far it lies from the middle of the foreground
        along x, in widths of the foreground; ``most_in_void``, the largest share of a label's
        voxels that lies where nothing has signal; ``contrast`` that 99.9 % of the voxels of every
        label exceed, 0 without a mask.
    """
    voxels = image[body] if body.any() else image.reshape(-1, image.shape[3])
    labelled = mask is not None and mask.any()
    return {
        "shape": body[find_box(body)].shape,
        "spacing_mm": spacing_mm,
        "channels": image.shape[3],
        "brightest_sd": max(_brightest_sd(channel) for channel in voxels.T),
        "sides": _measure_sides(mask) if labelled else {},
        "most_in_void": _most_in_void(mask, body, spacing_mm) if labelled else 0.0,
        "contrast": _least_contrast(mask, image, body, spacing_mm) if labelled else 0.0,
    }


def _brightest_sd(voxels):
    spread = voxels.std()
    return (voxels.max() - voxels.mean()) / spread if spread > 0 else 0.0


def _measure_sides(mask):
    foreground = mask != 0
    values = np.unique(mask[foreground]).tolist()
    middle = ndimage.center_of_mass(foreground)[0]
    width = np.ptp(foreground.any(axis=(1, 2)).nonzero()) + 1
    centres = ndimage.center_of_mass(foreground, mask, values)
    return {v: (c[0] - middle) / width for v, c in zip(values, centres, strict=True)}


def _most_in_void(mask, body, spacing_mm):
    labelled = mask[find_void(body, spacing_mm)]
    values, counts = np.unique(labelled[labelled != 0], return_counts=True)
    shares = [n / np.count_nonzero(mask == v) for v, n in zip(values, counts, strict=True)]
    return max(shares, default=0.0)


def _least_contrast(mask, image, body, spacing_mm):
    contrast = measure_contrast(image, body, spacing_mm)
    values = np.unique(mask[mask != 0])
    return min(float(np.quantile(contrast[mask == value], ASTRAY)) for value in values)


def choose_normalisation(facts):
    """How intensities are normalised.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.

    Returns
    -------
    {"zscore", "percentile"}
        Percentiles if in the median case voxels lie more than 20 standard deviations above the
        mean.
    """
    far = np.median([fact["brightest_sd"] for fact in facts])
    return "percentile" if far > OUTLIERS else "zscore"


def choose_empty_space(facts):
    """Whether space without signal is background, or the network is asked about it.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.

    Returns
    -------
    {"background", "outside"}
        As for `unetseg.preprocessing.Preprocessor`.
    """
    labelled = max(fact["most_in_void"] for fact in facts) > ASTRAY
    return "outside" if labelled else "background"


def choose_least_contrast(facts):
    """Contrast under which a voxel is background.

    Parameters
    ----------
    facts : list of dict
        As `describe_case` returns them.

    Returns
    -------
    float
        Half of what every label had in every case; 0 if that is not known.
    """
    return round(min(fact["contrast"] for fact in facts) / 2, 4)


def coarse_axis(spacing_mm):
    """Find the axis of low resolution.

    Parameters
    ----------
    spacing_mm : sequence of 3 float

    Returns
    -------
    int or None
        The axis that is at least three times coarser than the median one; None if there is none.
    """
    coarse = np.array(spacing_mm) >= ANISOTROPIC * np.median(spacing_mm)
    return int(np.argmax(coarse)) if coarse.any() else None


def choose_spacing(shape, spacings_mm):
    """Choose the common voxel size of all cases.

    Parameters
    ----------
    shape : (3,) ndarray
        The median shape.
    spacings_mm : (case, 3) ndarray of float

    Returns
    -------
    tuple of 3 float
        The median over the cases; along an axis of low resolution with few slices the 10th
        percentile, but nothing finer than the other axes (Isensee et al. 2021).
    """
    spacing = np.median(spacings_mm, axis=0)
    coarse = int(np.argmax(spacing))
    finer = np.delete(spacing, coarse).max()
    few = ANISOTROPIC * shape[coarse] <= np.delete(shape, coarse).min()
    if spacing[coarse] >= ANISOTROPIC * finer and few:
        spacing[coarse] = max(np.percentile(spacings_mm[:, coarse], 10), finer)
    return tuple(round(mm, 4) if mm >= 0.1 else significant(mm, 4) for mm in spacing.tolist())
