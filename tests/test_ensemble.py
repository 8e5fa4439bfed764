"""Blocks of made scans by models of which the answer is known."""

import numpy as np
import pytest
from scipy import ndimage

from unetseg import ensemble
from unetseg.ensemble import make_blocks, predict_blocks, restore_plane_block
from unetseg.grids import Place
from unetseg.preprocessing import Preprocessor


class Bright:
    """Class 1 with some certainty where the first channel is above a limit, else background."""

    def __init__(self, limit, certainty):
        self.limit, self.certainty = limit, certainty

    def predict_on_batch(self, batch):
        p = np.where(batch[..., 0] > self.limit, self.certainty, 0)
        return np.stack([1 - p, p], axis=-1).astype(np.float32)


@pytest.mark.parametrize("mirror_axes", [(), (0, 1)])
@pytest.mark.parametrize("most_bytes", [10**9, 5000])
def test_blocks_tile_the_box_with_the_mean_and_the_votes(
    tmp_path, write_case, monkeypatch, mirror_axes, most_bytes
):
    image = np.random.default_rng(0).uniform(0, 10, (14, 12, 10)).astype(np.float32)
    case = write_case(tmp_path, "a", image)
    settings = {"mirror_axes": mirror_axes, "empty_space": "outside", "least_contrast": 0}
    preprocessor = Preprocessor((1, 2, 3), (8, 8, 8), {1: "a"}, 1, "none", **settings).fit([case])
    monkeypatch.setattr(ensemble, "BLOCK_BYTES", most_bytes)
    prepared = preprocessor.prepare(case)
    models = [Bright(2, 0.9), Bright(6, 0.6)]
    mean, votes = np.full((*image.shape, 2), np.nan), np.full((2, *image.shape), 9)
    count = 0
    for block, part, part_votes in predict_blocks(models, prepared, preprocessor, 0.5, mirror_axes):
        index = [slice(None)] * 3
        index[block.axis] = slice(*block.native)
        assert np.isnan(mean[tuple(index)]).all()  # no voxel twice
        mean[tuple(index)] = part
        votes[(slice(None), *index)] = part_votes
        count += 1
    assert count == 1 if most_bytes == 10**9 else count > 1
    expected = (0.9 * (image > 2) + 0.6 * (image > 6)) / 2
    np.testing.assert_allclose(mean[..., 1], expected, atol=1e-6)
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(votes, [image > 2, image > 6])


def make_place(native, network, padding=0):
    """A box that begins at plane 2 of the native grid, and a padding before the network's grid."""
    box = tuple(slice(2, 2 + n) for n in native)
    inner = tuple(slice(padding, padding + n) for n in network)
    return Place(tuple(n + 3 for n in native), box, inner)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("most_bytes", [10**9, 4000, 1500, 1])
@pytest.mark.parametrize(
    ("native", "network"),
    [((9, 8, 7), (9, 8, 7)), ((9, 8, 7), (13, 11, 10)), ((12, 11, 10), (5, 4, 6))],
)
def test_blocks_put_together_are_the_whole_map(native, network, most_bytes, axis):
    place = make_place(native, network, padding=3)
    array = np.random.default_rng(0).random([n + 6 for n in network], np.float32)
    factors = np.array(native) / network
    whole = ndimage.zoom(array[place.inner], factors, order=1, mode="nearest", grid_mode=True)
    parts, end = [], 0
    for block in make_blocks(place, axis, 2, most_bytes):
        assert block.native[0] == end  # one after the other
        end = block.native[1]
        planes = array[ensemble.along(axis, *block.network)]
        parts.append(restore_plane_block(planes, place, block))
    assert end == native[axis]
    np.testing.assert_allclose(np.concatenate(parts, axis), whole, atol=1e-6)


def test_a_block_holds_no_more_than_is_allowed_and_there_are_as_few_as_can_be():
    place = make_place((10, 6, 5), (10, 6, 5))  # a plane of two classes: 6 * 5 * 2 * 4 = 240 bytes
    assert [b.native for b in make_blocks(place, 0, 2, 2400)] == [(0, 10)]
    assert [b.native for b in make_blocks(place, 0, 2, 1200)] == [(0, 5), (5, 10)]
    assert len(make_blocks(place, 0, 2, 1)) == 10  # at least a plane each


def test_a_finer_grid_of_the_network_counts_too():
    place = make_place((10, 6, 5), (20, 12, 10))
    assert len(make_blocks(place, 0, 2, 2400)) == 8


def test_the_bytes_of_a_map_are_four_for_each_voxel_and_class():
    assert ensemble.map_bytes((256, 256, 256), 96) == 6_442_450_944
