import numpy as np
import pytest
from scipy import ndimage

from unetseg import ensemble
from unetseg.ensemble import Place, make_blocks, restore_plane_block


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
