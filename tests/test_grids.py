"""Two grids over one field of view."""

import numpy as np
import pytest

from unetseg.grids import Place, zoom, zoom_labels

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


@pytest.mark.parametrize("labels", [(3, 7), (7, 3)])
def test_every_voxel_gets_the_class_of_the_label_that_fills_most_of_it(labels):
    mask = np.array([0, 0, 3, 3, 3, 7, 7, 7]).reshape(8, 1, 1)
    # Between the centres of voxels 0 and 1, 2 and 3, 4 and 5, 6 and 7: of the third pair each
    # label has half, and the first one in order wins.
    classes = zoom_labels(mask, (4, 1, 1), labels).ravel().tolist()
    number = {label: k for k, label in enumerate(labels, start=1)}
    assert classes == [0, number[3], 1, number[7]]
