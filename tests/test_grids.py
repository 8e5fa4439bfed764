"""Two grids over one field of view."""

import numpy as np
import pytest

from unetseg.grids import Place, average, zoom, zoom_labels

PLACE = Place(
    (9, 8, 7),
    (slice(1, 6), slice(0, 8), slice(2, 5)),
    (slice(2, 12), slice(0, 4), slice(1, 4)),
)


def test_the_voxels_of_both_grids_are_counted_without_padding():
    assert PLACE.box_shape == (5, 8, 3)
    assert PLACE.inner_shape == (10, 4, 3)


def test_a_place_is_the_same_after_it_was_packed_into_numbers():
    assert Place.from_array(PLACE.to_array()) == PLACE
    assert PLACE.to_array().shape == (5, 3)


def test_twice_the_voxels_lie_a_quarter_of_a_voxel_beside_the_old_centres():
    ramp = np.arange(4, dtype=np.float32).reshape(4, 1, 1)
    expected = [0, 0.25, 0.75, 1.25, 1.75, 2.25, 2.75, 3]  # beyond the centres nothing is made up
    np.testing.assert_allclose(zoom(ramp, (8, 1, 1)).ravel(), expected)


def test_an_array_of_that_shape_stays_itself():
    array = np.zeros((3, 4, 5))
    assert zoom(array, (3, 4, 5)) is array


@pytest.mark.parametrize("shape", [(4, 5, 3), (3, 2, 6), (12, 7, 4), (1, 1, 1)])
def test_a_larger_voxel_is_the_mean_of_what_it_covers(shape):
    array = np.random.default_rng(0).normal(size=(12, 5, 6))
    # Every voxel cut in so many equal parts that the new ones are made of whole parts.
    for axis, n in enumerate(shape):
        if n < array.shape[axis]:
            fine = np.repeat(array, n, axis)
            parts = fine.reshape(*array.shape[:axis], n, -1, *array.shape[axis + 1 :])
            expected = parts.mean(axis + 1)
            whole = [*array.shape]
            whole[axis] = n
            np.testing.assert_allclose(average(array, whole), expected)
    means = average(array, shape)
    assert means.shape == tuple(min(pair) for pair in zip(shape, array.shape, strict=True))
    np.testing.assert_allclose(means.mean(), array.mean())


def test_a_mean_is_of_the_voxels_around_it_alone():
    array = np.zeros((9, 7, 5), np.float32)
    array[:3], array[8, 0, 0] = 1e6, np.nan
    means = average(array, (3, 7, 5))
    assert means.dtype == np.float32
    np.testing.assert_allclose(means[0], 1e6, rtol=1e-6)
    assert not means[1].any()
    assert np.isnan(means[2]).sum() == 1


@pytest.mark.parametrize("labels", [(3, 7), (7, 3)])
def test_every_voxel_gets_the_class_of_the_label_that_fills_most_of_it(labels):
    mask = np.array([0, 0, 3, 3, 3, 7, 7, 7]).reshape(8, 1, 1)
    # Between the centres of voxels 0 and 1, 2 and 3, 4 and 5, 6 and 7: of the third pair each
    # label has half, and the first one in order wins.
    classes = zoom_labels(mask, (4, 1, 1), labels).ravel().tolist()
    number = {label: k for k, label in enumerate(labels, start=1)}
    assert classes == [0, number[3], 1, number[7]]
