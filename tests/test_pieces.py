"""Pieces of structures: stray ones, and how far they lie apart."""

import numpy as np
import pytest

from unetseg import pieces
from unetseg.body import find_box
from unetseg.pieces import count_structures, find_structures, keep_largest, measure_gap


def test_voxels_that_share_a_corner_are_one_piece():
    array = np.zeros((3, 3, 3), np.uint8)
    array[0, 0, 0] = array[1, 1, 1] = 1
    np.testing.assert_array_equal(keep_largest(array, [1]), array)


def test_small_pieces_do_not_count_as_structures():
    mask = np.zeros((30, 10, 10), bool)
    assert count_structures(mask) == 0
    mask[:10] = True  # 1000 voxels
    mask[15:16, 0, :] = True  # 10 voxels
    assert count_structures(mask) == 1
    mask[20:21] = True  # 100 voxels
    assert count_structures(mask) == 2


def test_stray_pieces_do_not_widen_the_region():
    classes = np.zeros((20, 20, 20), int)
    classes[2:8, 2:8, 2:8], classes[15, 15, 15] = 1, 1  # 216 voxels and one
    classes[10:12, 2:4, 2:4] = 2  # a small structure, which is none of the first
    kept = find_structures(classes)
    assert find_box(kept) == (slice(2, 12), slice(2, 8), slice(2, 8))
    classes[13:16, 13:16, 13:16] = 1  # 28 with the one: more than a tenth, as of a pair
    assert find_box(find_structures(classes)) == (slice(2, 16),) * 3
    assert not find_structures(np.zeros((3, 3, 3), int)).any()


@pytest.mark.parametrize("spacing_mm", [(1, 1, 1), (1, 2, 4)])
def test_the_gap_is_the_longest_of_the_shortest_ways_from_piece_to_piece(spacing_mm):
    found = np.zeros((40, 12, 12), bool)
    found[2:8, 2:8, 2:8] = found[11:17, 2:8, 2:8] = found[29:35, 2:8, 2:8] = True
    assert measure_gap(found, spacing_mm) == pytest.approx(12, abs=1)
    assert measure_gap(found[:20], spacing_mm) == pytest.approx(3, abs=1)
    assert measure_gap(found[:10], spacing_mm) == 0


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("place", range(3))
def test_a_small_structure_far_from_a_large_one_is_measured_on_a_coarser_grid(
    axis, place, monkeypatch
):
    found = np.zeros((60, 60, 60), bool)
    found[:30, :30, :30] = True
    at = np.array([2, 2, 2])
    at[axis] = 50 + place
    found[tuple(at)] = True
    exact = measure_gap(found, (1, 1, 1))
    assert exact == pytest.approx(20 + place, abs=1)
    monkeypatch.setattr(pieces, "MOST_EXACT", found[:53].size // 27)
    assert measure_gap(found, (1, 1, 1)) == pytest.approx(exact, abs=6)
