"""What is chosen: facts of the cases in, settings out."""

import numpy as np
from scipy import ndimage

from unetseg.body import find_box, find_void, measure_contrast

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
