"""Body and background, on made scans."""

import numpy as np
import pytest

from unetseg.body import (
    find_background,
    find_body,
    find_box,
    find_void,
    measure_contrast,
    reach_outside,
)


def tissue(shape, seed=0):
    return np.random.default_rng(seed).normal(100, 20, shape).astype(np.float32)


@pytest.mark.parametrize("value", [0, -1, -1024, 3000, 0.25])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_padding_on_one_side_is_background_whatever_its_value(value, axis):
    scan = tissue((12, 14, 16))
    scan[(slice(None),) * axis + (slice(2),)] = value
    assert find_background(scan) == value


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_edges_of_a_slice_tell_its_background(axis):
    scan = np.full((12, 14), -7, np.float32)
    scan[4:9, 5:10] = tissue((5, 5))
    assert find_background(np.expand_dims(scan, axis)) == -7


@pytest.mark.parametrize(
    "scan",
    [
        tissue((12, 14, 16)),
        np.random.default_rng(0).integers(0, 4, (12, 14, 16)),  # a quarter each
        np.broadcast_to(np.arange(16), (12, 14, 16)),  # each plane has another value
        tissue((1, 1, 1)),
    ],
    ids=["tissue", "four values", "ramp", "one voxel"],
)
def test_where_no_value_fills_a_face_nothing_is_background(scan):
    assert find_background(scan) is None
    body, backgrounds = find_body(scan[..., None])
    assert body.all()
    assert backgrounds == [None]


def test_a_voxel_is_body_if_any_channel_has_signal():
    image = np.full((10, 10, 10, 2), (0, -5), np.float32)
    image[3:6, 3:7, 3:7, 0] = 1
    image[5:8, 3:7, 3:7, 1] = 1
    body, backgrounds = find_body(image)
    assert backgrounds == [0, -5]
    assert find_box(body) == (slice(3, 8), slice(3, 7), slice(3, 7))
    assert body.sum() == 5 * 4 * 4


def test_a_channel_that_fills_the_field_of_view_makes_all_of_it_body():
    image = np.zeros((10, 10, 10, 2), np.float32)
    image[..., 1] = tissue((10, 10, 10))
    assert find_body(image)[0].all()


def test_an_empty_body_has_the_whole_scan_as_its_box():
    assert find_box(np.zeros((3, 4, 5), bool)) == (slice(0, 3), slice(0, 4), slice(0, 5))


def test_holes_of_a_mask_do_not_reach_outside():
    mask = np.zeros((12, 12, 12), bool)
    mask[0:3, 5, 5] = mask[5:7, 5, 5] = mask[9, 5, 5:8] = True
    outside = np.zeros(mask.shape, bool)
    outside[9, 5, 7] = True
    kept = mask.copy()
    kept[5:7, 5, 5] = False
    np.testing.assert_array_equal(reach_outside(mask, outside), kept)
    for flat in (mask[..., 5:6], mask[..., 4:9]):  # in front of few slices there is no outside
        found = reach_outside(flat, np.zeros(flat.shape, bool))
        np.testing.assert_array_equal(found[0:3], flat[0:3])
        assert not found[3:].any()
    assert not reach_outside(np.zeros((4, 4, 4), bool), np.ones((4, 4, 4), bool)).any()


def test_void_begins_beyond_four_voxels_and_does_not_mind_single_ones():
    body = np.zeros((60, 40, 40), bool)
    body[20:40, 10:30, 10:30] = True
    void = find_void(body, (1, 1, 1))
    # five voxels from a face, the box of 9 around a voxel does not reach it; four, and a ninth
    # of it is body
    assert void[14, 20, 20]
    assert not void[16, 20, 20]
    assert not void[body].any()
    body[5, 20, 20] = True
    assert find_void(body, (1, 1, 1))[:15].all()


def test_void_reaches_as_far_in_mm_along_coarse_axes():
    body = np.zeros((40, 40, 12), bool)
    body[10:30, 10:30, 4:8] = True
    void = find_void(body, (1, 1, 5))  # 4 mm are less than a slice
    assert void[:, :, [3, 8]].all()
    assert void[5, 20, 5]
    assert not void[6, 20, 5]


def test_a_body_that_fills_the_scan_leaves_no_void_and_none_is_all_void():
    assert not find_void(np.ones((9, 9, 9), bool), (1, 1, 1)).any()
    assert find_void(np.zeros((9, 9, 9), bool), (1, 1, 1)).all()


@pytest.mark.parametrize("thickness", [0.1, 1, 10])
def test_in_a_single_slice_its_thickness_plays_no_part(thickness):
    body = np.zeros((40, 40, 1), bool)
    body[10:30, 10:30] = True
    void = find_void(body, (1, 1, thickness))
    assert void[4, 20, 0]
    assert not void[6, 20, 0]


def test_contrast_is_0_in_the_air_and_1_where_half_is_one_and_half_the_other_value():
    image = np.zeros((80, 25, 25, 1), np.float32)
    image[40:] = 10
    body = np.ones(image.shape[:3], bool)
    contrast = measure_contrast(image, body, (1, 1, 1))  # two values of one standard deviation
    assert contrast[20, 12, 12] == 0
    # of 25 planes around voxel 40 are 12 of one and 13 of the other value
    assert contrast[40, 12, 12] == pytest.approx(2 * np.sqrt(12 * 13) / 25, rel=1e-4)


def test_contrast_is_measured_in_units_of_the_body_and_of_the_best_channel():
    rng = np.random.default_rng(0)
    image = np.zeros((60, 60, 60, 2), np.float32)
    image[..., 0] = 1000 + rng.normal(0, 1, (60, 60, 60))  # noise
    image[:30, ..., 0] += 100
    image[..., 1] = 7  # one value
    body = np.ones(image.shape[:3], bool)
    contrast = measure_contrast(image, body, (1, 1, 1))
    assert contrast[5, 30, 30] == pytest.approx(1 / 50, rel=0.05)  # the steps alone make 50
    np.testing.assert_allclose(
        measure_contrast(3 * image - 9, body, (1, 1, 1)), contrast, atol=1e-3
    )


def test_a_scan_of_one_value_has_no_contrast():
    image = np.full((9, 9, 9, 1), 5, np.float32)
    assert not measure_contrast(image, np.zeros((9, 9, 9), bool), (1, 1, 1)).any()
