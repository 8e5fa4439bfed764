import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation
from volumes import rng

from unetseg import interpolation
from unetseg.interpolation import sample_affine

TURN = Rotation.from_euler("xyz", (20, -35, 50), degrees=True).as_matrix() * 1.3
IN_PLANE = Rotation.from_euler("z", 40, degrees=True).as_matrix().round(12)


def image(shape, channels=1):
    """Noise, and classes 1 to 4: where it is 0 after sampling the image did not reach."""
    x = rng(1).normal(size=(*shape, channels)).astype(np.float32)
    return x, rng(2).integers(1, 5, shape).astype(np.uint8)


def by_scipy(x, y, shape, matrix, offset):
    where = {"matrix": matrix, "offset": offset, "output_shape": shape}
    channels = [ndimage.affine_transform(one, order=1, **where) for one in np.moveaxis(x, -1, 0)]
    return np.stack(channels, axis=-1), ndimage.affine_transform(y, order=0, **where)


@pytest.mark.parametrize(
    ("size", "channels", "shape", "matrix", "offset"),
    [
        ((30, 25, 20), 1, (16, 12, 10), TURN, (3.3, 9.1, -2.7)),
        ((30, 25, 20), 4, (16, 12, 10), TURN, (3.3, 9.1, -2.7)),
        ((30, 25, 20), 2, (16, 12, 1), TURN, (3.3, 9.1, 4.6)),
        ((30, 25, 1), 7, (16, 12, 1), IN_PLANE, (8.2, 1.4, 0)),
        ((30, 25, 20), 1, (16, 12, 10), np.eye(3), (100, 0, 0)),
    ],
    ids=["turned", "channels", "one plane", "a slice", "outside"],
)
@pytest.mark.parametrize("at_once", [1, 500, 2**15])
def test_sampling_is_that_of_scipy(size, channels, shape, matrix, offset, at_once, monkeypatch):
    monkeypatch.setattr(interpolation, "AT_ONCE", at_once)
    x, y = image(size, channels)
    sampled = sample_affine(x, y, shape, matrix, np.array(offset))
    expected = by_scipy(x, y, shape, matrix, np.array(offset))
    np.testing.assert_allclose(sampled[0], expected[0], atol=1e-4)
    np.testing.assert_array_equal(sampled[1], expected[1])
    assert [array.dtype for array in sampled] == [np.float32, np.uint8]


def test_where_nothing_is_moved_every_voxel_is_the_same():
    x, y = image((9, 8, 7), 2)
    sampled_x, sampled_y = sample_affine(x, y, y.shape, np.eye(3), np.zeros(3))
    np.testing.assert_allclose(sampled_x, x, atol=1e-6)
    np.testing.assert_array_equal(sampled_y, y)


def test_a_view_with_swapped_axes_and_what_cannot_be_written_to_will_do():
    x, y = image((9, 8, 7), 2)
    x.flags.writeable = y.flags.writeable = False
    swapped = x.swapaxes(0, 2), y.swapaxes(0, 2)
    offset = np.array((2.2, 0.7, 3.9))
    sampled = sample_affine(*swapped, (4, 5, 6), TURN, offset)
    expected = sample_affine(*(array.copy() for array in swapped), (4, 5, 6), TURN, offset)
    for one, other in zip(sampled, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_halfway_between_two_voxels_is_their_mean_and_of_classes_the_upper_one():
    x = np.array([2, 6, 4], np.float32).reshape(3, 1, 1, 1)
    y = np.array([1, 2, 3], np.uint8).reshape(3, 1, 1)
    halves = sample_affine(x, y, (4, 1, 1), np.eye(3), np.array((-0.5, 0, 0)))
    assert halves[0].ravel().tolist() == [0, 4, 5, 0]
    assert halves[1].ravel().tolist() == [0, 2, 3, 0]
