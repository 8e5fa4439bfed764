"""Facts of made cases, and what is chosen from them."""

import numpy as np
import pytest

from unetseg.body import find_body
from unetseg.planning import (
    choose_empty_space,
    choose_least_contrast,
    choose_normalisation,
    choose_patch,
    choose_spacing,
    coarse_axis,
    describe_case,
)


def describe(image, mask=None, spacing_mm=(1, 1, 1)):
    image = image if image.ndim == 4 else image[..., None]
    return describe_case(image, mask, find_body(image)[0], np.array(spacing_mm, float))


def head(background=0.0):
    image = np.full((40, 40, 40), background, np.float32)
    image[10:30, 12:28, 10:30] = np.random.default_rng(0).normal(100, 20, (20, 16, 20))
    return image


@pytest.mark.parametrize("background", [0, -1, 700])
def test_the_shape_is_that_of_the_body_and_channels_are_counted(background):
    facts = describe(np.stack([head(background)] * 2, axis=-1), spacing_mm=(1, 2, 3))
    assert facts["shape"] == (20, 16, 20)
    assert facts["spacing_mm"].tolist() == [1, 2, 3]
    assert facts["channels"] == 2
    assert (facts["sides"], facts["most_in_void"], facts["contrast"]) == ({}, 0, 0)


def test_the_brightest_voxel_is_told_in_standard_deviations_of_the_body():
    image = np.zeros((10, 10, 10, 2), np.float32)
    image[:5] = 2  # mean 1, SD 1
    image[0, 0, 0, 1] = 100  # about 99 from a mean of 1.1, in units of an SD of 3.3
    facts = describe_case(image, None, np.ones((10, 10, 10), bool), np.ones(3))
    values = [2.0] * 499 + [0.0] * 500 + [100.0]
    mean = sum(values) / 1000
    spread = (sum((value - mean) ** 2 for value in values) / 1000) ** 0.5
    assert facts["brightest_sd"] == pytest.approx((100 - mean) / spread, rel=1e-4)


def test_without_a_mask_nothing_lies_aside():
    assert describe(head())["aside"] == 0


def test_the_label_of_which_most_lies_in_the_air_counts():
    mask = np.zeros((40, 40, 40), np.int32)
    mask[10:30, 12:28, 10:30] = 1
    mask[12, 14, 10:14], mask[0, 0, 0] = 2, 2
    assert describe(head(), mask)["most_in_void"] == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("shares", "expected"),
    [([0, 0], "background"), ([0, 0.0009], "background"), ([0.0011, 0], "outside")],
)
def test_more_than_a_slip_of_the_hand_in_the_air_is_meant(shares, expected):
    assert choose_empty_space([{"most_in_void": share} for share in shares]) == expected


@pytest.mark.parametrize(
    ("far", "expected"), [([19, 19, 99], "zscore"), ([5, 21, 22], "percentile")]
)
def test_the_median_case_decides_on_the_normalisation(far, expected):
    assert choose_normalisation([{"brightest_sd": value} for value in far]) == expected


@pytest.mark.parametrize(
    ("shape", "dimensions", "planes", "most", "expected"),
    [
        ((1, 8, 8), 2, (0,), 32, (1, 8, 8)),
        ((8, 8, 8), 3, None, 256, (8, 8, 8)),
        ((16, 8, 8), 3, None, 256, (8, 8, 8)),
    ],
)
def test_a_patch_is_not_cut_to_nothing(shape, dimensions, planes, most, expected):
    assert choose_patch(shape, (1, 1, 1), dimensions, planes, most) == expected


def test_the_least_contrast_is_half_of_that_of_the_dullest_case():
    facts = [{"contrast": contrast, "structures": (1, 1, 1)} for contrast in (0.8, 0.5, 0.0)]
    assert choose_least_contrast(facts[:2], ()) == 0.25
    assert choose_least_contrast(facts, ()) == 0
    healthy = {"contrast": 0.0, "structures": None}  # tells nothing of the others' labels
    assert choose_least_contrast([*facts[:2], healthy], ()) == 0.25
    assert choose_least_contrast([healthy], ()) == 0


@pytest.mark.parametrize(
    ("spacing_mm", "axis"),
    [((1, 1, 1), None), ((1, 1, 2.9), None), ((1, 1, 3), 2), ((6, 1, 2), 0), ((0.4e-3,) * 3, None)],
)
def test_an_axis_three_times_coarser_is_of_low_resolution(spacing_mm, axis):
    assert coarse_axis(spacing_mm) == axis


def test_the_spacing_is_the_median_with_the_digits_that_count():
    spacings = np.array([[0.00043, 0.00043, 0.0008]] * 3 + [[0.01, 0.01, 0.01]])
    assert choose_spacing(np.array([90, 90, 90]), spacings) == (0.00043, 0.00043, 0.0008)
