"""What each setting of a `unetseg.preprocessing.Preprocessor` may be."""

from itertools import combinations, permutations

import numpy as np

from unetseg import planning
from unetseg._base import require

NORMALISATIONS = ("zscore", "percentile", "none")
EMPTY_SPACE = ("background", "outside", "zero")
MIRRORINGS = [axes for n in range(4) for axes in combinations(range(3), n)]
PLANES = [(), *permutations(range(3), 1), *permutations(range(3), 2)]
TRIPLE = "three positive numbers, along x, y, z"


def check_settings(preprocessor):
    """Stop if a setting is not possible, or does not go with another.

    Parameters
    ----------
    preprocessor : Preprocessor
        Those of its settings that are None are not chosen yet.

    Raises
    ------
    ValueError
        Names the setting, and tells what is allowed.
    """
    for name, fits, allowed in _list_rules(preprocessor.patch):
        value = getattr(preprocessor, name)
        require(name, value, value is None or fits(value), allowed)
    _require_regions(preprocessor)
    _require_planes(preprocessor.planes, preprocessor.patch, preprocessor.spacing_mm)


def _list_rules(patch):
    # Of every setting what fits and what is allowed.
    flat = np.iterable(patch) and 1 in patch
    dimensions = (2, 3)
    if np.iterable(patch):
        dimensions = (2,) if flat else (3,)
    may_be_2d = 2 in dimensions
    return (
        ("spacing_mm", _is_triple, TRIPLE),
        (
            "patch",
            lambda v: _is_triple(v) and [*v].count(1) < 2,
            f"{TRIPLE}, at most one of them 1",
        ),
        ("labels", lambda v: isinstance(v, dict) and 0 not in v, "a dict without background 0"),
        ("channels", lambda v: v >= 1, "at least 1"),
        ("normalisation", lambda v: v in NORMALISATIONS, f"one of {NORMALISATIONS}"),
        (
            "dimensions",
            lambda v: v in dimensions,
            f"one of {dimensions}, 2 for a patch of one slice",
        ),
        ("mirror_axes", lambda v: v in MIRRORINGS, f"one of {MIRRORINGS}"),
        ("planes", lambda v: v in PLANES and (not v or may_be_2d), f"in 2-D one of {PLANES}"),
        ("empty_space", lambda v: v in EMPTY_SPACE, f"one of {EMPTY_SPACE}"),
        ("least_contrast", lambda v: v >= 0, "0 or more"),
        ("coarse_mm", lambda v: v == () or _is_triple(v), f"{TRIPLE}, or nothing"),
        ("gap_mm", lambda v: 0 <= v < np.inf, "0 or more"),
        ("assumed_mm", lambda v: v == () or _is_triple(v), f"{TRIPLE}, or nothing"),
        ("rotation_deg", _is_rotation, "three numbers from 0 to 180"),
        ("strength", lambda v: 0 <= v <= 1, "in [0, 1]"),
        ("margin", lambda v: v >= 0, "0 or more"),
        ("ignore", lambda v: v == int(v), "a whole number, 0 for none"),
        ("neighbours", lambda v: v == 0 or (v > 0 and may_be_2d), "0, or more in 2-D"),
    )


def _is_triple(value):
    return np.shape(value) == (3,) and min(value) > 0


def _is_rotation(value):
    return np.shape(value) == (3,) and all(0 <= degrees <= 180 for degrees in value)


def _require_regions(preprocessor):
    labels = preprocessor.labels
    for name, values in (preprocessor.regions or {}).items() if labels else ():
        known = len(values) and {*values} <= {*labels}
        require("regions", {name: values}, known, f"of values among the labels {[*labels]}")


def _require_planes(planes, patch, spacing_mm):
    if not planes:
        return
    if patch:
        across = patch[planes[0]] == 1
        require("planes", planes, across, "first the axis across the patch's slices")
    if spacing_mm:
        ratio = spacing_mm[planes[0]] / spacing_mm[planes[-1]]
        alike = 1 / planning.LIKE <= ratio <= planning.LIKE
        require("planes", planes, alike, "of axes with like voxels")
