import itertools
import math

import numpy as np
import pytest

from unetseg import metrics

SPACING = (1.0, 2.0, 3.0)  # mm
NAN, INF = float("nan"), float("inf")


def mask(shape, *places):
    """A mask that is true at the given indices and slices."""
    array = np.zeros(shape, bool)
    for place in places:
        array[place] = True
    return array


def box(shape, *bounds):
    return mask(shape, tuple(slice(*b) for b in bounds))


def shifted_cubes():
    """Two cubes of 3 x 3 x 3 voxels, one voxel (2 mm) apart along y.

    Each has 26 border voxels, all but its centre. Of the first cube, 9 in the layer y = 1 lie
    2 mm from the second cube; 8 in y = 2 lie in the second cube's first layer; of 9 in y = 3,
    8 lie on its border and one lies in its centre, 1 mm (along x) from its border. By symmetry
    the same holds the other way. So both ways: 16 x 0 mm, 1 x 1 mm, 9 x 2 mm.
    """
    return (
        box((5, 7, 5), (1, 4), (1, 4), (1, 4)),
        box((5, 7, 5), (1, 4), (2, 5), (1, 4)),
    )


def test_cubes_one_voxel_apart_have_the_scores_worked_out_by_hand():
    true, pred = shifted_cubes()
    assert metrics.dice(true, pred) == pytest.approx(2 * 18 / (27 + 27))
    for directed in metrics.surface_distances(true, pred, SPACING):
        np.testing.assert_allclose(np.sort(directed), [0] * 16 + [1] + [2] * 9)
    assert metrics.hausdorff(true, pred, SPACING) == pytest.approx(2)
    # Of 26 sorted numbers, percentile p stands at p / 100 * 25: 65 at 16.25, between 1 and 2.
    for percentile, expected in ((0, 0), (50, 0), (64, 1), (65, 1.25), (95, 2), (100, 2)):
        found = metrics.hausdorff(true, pred, SPACING, percentile=percentile)
        assert found == pytest.approx(expected)
    assert metrics.average_surface_distance(true, pred, SPACING) == pytest.approx(19 / 26)
    for tolerance_mm, share in ((0, 16 / 26), (1, 17 / 26), (1.9, 17 / 26), (2, 1)):
        found = metrics.surface_dice(true, pred, SPACING, tolerance_mm)
        assert found == pytest.approx(share)


@pytest.mark.parametrize(
    ("shape", "first", "second", "spacing", "expected"),
    [
        ((5, 6, 4), (1, 1, 1), (3, 4, 2), (1, 2, 3), 7),  # (2, 6, 3) mm: 4 + 36 + 9 = 49
        ((5, 6, 4), (0, 0, 0), (4, 3, 2), (0.5, 2, 1.5), 7),  # (2, 6, 3) mm again, to the corner
        ((5, 6, 4), (4, 5, 3), (4, 5, 0), (1, 2, 3), 9),
        ((9, 4), (0, 3), (8, 0), (1, 5), 17),  # (8, 15) mm: 64 + 225 = 289
        ((2, 2, 2), (0, 1, 0), (0, 1, 0), (1, 2, 3), 0),
    ],
)
def test_single_voxels_are_as_far_apart_as_their_centres(shape, first, second, spacing, expected):
    true, pred = mask(shape, first), mask(shape, second)
    assert metrics.dice(true, pred) == (expected == 0)
    assert metrics.hausdorff(true, pred, spacing) == pytest.approx(expected)
    assert metrics.hausdorff(true, pred, spacing, percentile=95) == pytest.approx(expected)
    assert metrics.average_surface_distance(true, pred, spacing) == pytest.approx(expected)
    assert metrics.surface_dice(true, pred, spacing, expected) == 1


@pytest.mark.parametrize(("axis", "expected"), [(0, 3), (1, 6), (2, 9)])
def test_sheets_are_apart_by_their_gap_along_the_axis(axis, expected):
    # Sheets at both ends of an image of 4 voxels: 3 steps of 1, 2 or 3 mm.
    first, last = [slice(None)] * 3, [slice(None)] * 3
    first[axis], last[axis] = 0, 3
    true, pred = mask((4, 4, 4), tuple(first)), mask((4, 4, 4), tuple(last))
    for directed in metrics.surface_distances(true, pred, SPACING):
        np.testing.assert_allclose(directed, [expected] * 16)


def test_the_edge_of_the_image_counts_as_outside():
    # A full image of 3 x 3 x 3 has 26 border voxels; its centre is 1 mm from them along x, and
    # they are as far from the centre as their offset in {-1, 0, 1} x {-2, 0, 2} x {-3, 0, 3} mm.
    offsets = itertools.product((-1, 0, 1), (-2, 0, 2), (-3, 0, 3))
    expected = sorted(math.hypot(*offset) for offset in offsets)[1:]
    full, centre = np.ones((3, 3, 3), bool), mask((3, 3, 3), (1, 1, 1))
    distances = metrics.surface_distances(full, centre, SPACING)
    np.testing.assert_allclose(np.sort(distances.true_to_pred), expected)
    np.testing.assert_allclose(distances.pred_to_true, [1])
    assert metrics.dice(full, centre) == pytest.approx(2 / 28)


def test_a_cavity_has_a_border_too():
    # Both have the 5^3 - 3^3 = 98 voxels of the outer border. The 6 around the cavity lie from
    # it: 1 mm (twice, along x), and 2 mm (four times: along y, and two steps of x for z).
    solid = box((7, 7, 7), (1, 6), (1, 6), (1, 6))
    hollow = solid & ~mask((7, 7, 7), (3, 3, 3))
    assert metrics.dice(solid, hollow) == pytest.approx(2 * 124 / (125 + 124))
    distances = metrics.surface_distances(solid, hollow, SPACING)
    np.testing.assert_array_equal(distances.true_to_pred, [0] * 98)
    np.testing.assert_allclose(np.sort(distances.pred_to_true), [0] * 98 + [1] * 2 + [2] * 4)
    # Percentile 95 of 104 numbers stands at 0.95 * 103 = 97.85, between 0 and 1.
    assert metrics.hausdorff(solid, hollow, SPACING, percentile=95) == pytest.approx(0.85)
    average = metrics.average_surface_distance(solid, hollow, SPACING)
    assert average == pytest.approx(10 / (98 + 104))
    assert metrics.surface_dice(solid, hollow, SPACING, 1) == pytest.approx(198 / 202)


def test_only_a_missing_neighbour_along_an_axis_makes_a_border_voxel():
    # The centre of a plus has its 4 neighbours inside (of 8); without one arm it is on the border.
    plus = mask((5, 5), (2, slice(1, 4)), (slice(1, 4), 2))
    without = plus & ~mask((5, 5), (1, 2))
    distances = metrics.surface_distances(plus, without, (1, 2))
    np.testing.assert_allclose(np.sort(distances.true_to_pred), [0, 0, 0, 1])
    np.testing.assert_allclose(np.sort(distances.pred_to_true), [0, 0, 0, 1])


def test_one_stray_voxel_moves_the_hausdorff_distance_and_not_hd95():
    # 100 voxels of a sheet agree, one more of 101 is 5 steps of 3 mm away from it.
    true = mask((10, 10, 6), (slice(None), slice(None), 0))
    pred = true | mask((10, 10, 6), (4, 4, 5))
    assert metrics.hausdorff(true, pred, SPACING) == pytest.approx(15)
    assert metrics.hausdorff(true, pred, SPACING, percentile=95) == 0


def test_the_percentile_is_taken_of_each_direction():
    # [0] one way and [0, 10] mm the other: medians 0 and 5; of all three together it were 0.
    true = mask((3, 6), (1, 0))
    pred = mask((3, 6), (1, 0), (1, 5))
    assert metrics.hausdorff(true, pred, (1, 2), percentile=50) == pytest.approx(5)
    assert metrics.hausdorff(pred, true, (1, 2), percentile=50) == pytest.approx(5)


def border_by_loops(array):
    places = [i for i in np.ndindex(array.shape) if array[i]]
    border = []
    for place in places:
        for axis, step in itertools.product(range(array.ndim), (-1, 1)):
            next_to = tuple(n + step * (a == axis) for a, n in enumerate(place))
            in_image = all(0 <= n < size for n, size in zip(next_to, array.shape, strict=True))
            if not in_image or not array[next_to]:
                border.append(place)
                break
    return border


def distances_by_loops(array_from, array_to, spacing):
    in_mm = [
        [[n * mm for n, mm in zip(place, spacing, strict=True)] for place in border_by_loops(array)]
        for array in (array_from, array_to)
    ]
    return sorted(min((math.dist(p, q) for q in in_mm[1]), default=INF) for p in in_mm[0])


def percentile_by_hand(numbers, percentile):
    place = percentile / 100 * (len(numbers) - 1)
    low = math.floor(place)
    high = min(low + 1, len(numbers) - 1)
    return numbers[low] + (place - low) * (numbers[high] - numbers[low])


@pytest.mark.parametrize("density", [0.03, 0.15, 0.5, 0.85])
@pytest.mark.parametrize("ndim", [2, 3])
def test_random_masks_score_as_brute_force_says(ndim, density):
    rng = np.random.default_rng([ndim, int(100 * density)])
    for _ in range(25):
        shape = tuple(rng.integers(1, (0, 0, 13, 7)[ndim], ndim))
        spacing = rng.uniform(0.3, 4, ndim)
        true, pred = rng.random((2, *shape)) < density
        there = distances_by_loops(true, pred, spacing)
        back = distances_by_loops(pred, true, spacing)
        found = metrics.surface_distances(true, pred, spacing)
        np.testing.assert_allclose(np.sort(found.true_to_pred), there)
        np.testing.assert_allclose(np.sort(found.pred_to_true), back)
        if there and back:
            percentile = rng.uniform(0, 100)
            expected = max(percentile_by_hand(d, percentile) for d in (there, back))
            found = metrics.hausdorff(true, pred, spacing, percentile=percentile)
            assert found == pytest.approx(expected)
            average = metrics.average_surface_distance(true, pred, spacing)
            assert average == pytest.approx(sum(there + back) / len(there + back))
        both = sum(bool(true[i] and pred[i]) for i in np.ndindex(shape))
        size = int(true.sum()) + int(pred.sum())
        expected = 2 * both / size if size else NAN
        assert metrics.dice(true, pred) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6)])
@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        (0, 0, {"dice": NAN, "hausdorff": NAN, "average": NAN, "surface_dice": NAN}),
        (0, 1, {"dice": 0, "hausdorff": INF, "average": INF, "surface_dice": 0}),
        (1, 0, {"dice": 0, "hausdorff": INF, "average": INF, "surface_dice": 0}),
    ],
)
def test_empty_masks_score_as_agreed(shape, first, second, expected):
    spacing = SPACING[: len(shape)]
    true, pred = (mask(shape, (1,) * len(shape)) & bool(some) for some in (first, second))
    found = {
        "dice": metrics.dice(true, pred),
        "hausdorff": metrics.hausdorff(true, pred, spacing),
        "average": metrics.average_surface_distance(true, pred, spacing),
        "surface_dice": metrics.surface_dice(true, pred, spacing, 100),
    }
    assert found == pytest.approx(expected, nan_ok=True)
    hd95 = metrics.hausdorff(true, pred, spacing, percentile=95)
    assert hd95 == pytest.approx(expected["hausdorff"], nan_ok=True)


def test_swapping_the_masks_swaps_the_directions_and_keeps_the_scores():
    true, pred = np.random.default_rng(0).random((2, 6, 5, 4)) < 0.2
    there = metrics.surface_distances(true, pred, SPACING)
    back = metrics.surface_distances(pred, true, SPACING)
    assert there.true_to_pred.sum() != there.pred_to_true.sum()
    np.testing.assert_array_equal(there.true_to_pred, back.pred_to_true)
    np.testing.assert_array_equal(there.pred_to_true, back.true_to_pred)
    for score in (metrics.hausdorff, metrics.average_surface_distance):
        assert score(true, pred, SPACING) == score(pred, true, SPACING)


def every_other(array):
    spread = np.zeros([2 * n for n in array.shape], bool)
    spread[::2, ::2, ::2] = array
    return spread[::2, ::2, ::2]


@pytest.mark.parametrize(
    "layout",
    [np.asfortranarray, every_other, lambda a: np.flip(np.flip(a).copy())],
    ids=["fortran", "strided", "flipped view"],
)
@pytest.mark.parametrize("both", [True, False])
def test_the_layout_in_memory_makes_no_difference(layout, both):
    true, pred = shifted_cubes()
    true, pred = layout(true), layout(pred) if both else pred
    before = true.copy()
    for directed in metrics.surface_distances(true, pred, SPACING):
        np.testing.assert_allclose(np.sort(directed), [0] * 16 + [1] + [2] * 9)
    assert metrics.dice(true, pred) == pytest.approx(2 / 3)
    np.testing.assert_array_equal(true, before)


def test_axes_and_their_spacing_turn_together():
    true, pred = (array.transpose(2, 0, 1) for array in shifted_cubes())
    for directed in metrics.surface_distances(true, pred, (3, 1, 2)):
        np.testing.assert_allclose(np.sort(directed), [0] * 16 + [1] + [2] * 9)


METRICS = {
    "dice": metrics.dice,
    "surface_distances": lambda t, p: metrics.surface_distances(t, p, SPACING),
    "hausdorff": lambda t, p: metrics.hausdorff(t, p, SPACING),
    "average": lambda t, p: metrics.average_surface_distance(t, p, SPACING),
    "surface_dice": lambda t, p: metrics.surface_dice(t, p, SPACING, 1),
}


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    "wrong",
    [
        np.full((3, 3, 3), 2),
        np.ones((3, 3, 3), np.uint8),
        np.ones((3, 3, 3), np.float32),
        [[[True]]],
        None,
    ],
    ids=["label map", "uint8", "float", "list", "none"],
)
def test_what_is_no_boolean_array_is_refused(metric, wrong):
    good = np.ones((3, 3, 3), bool)
    with pytest.raises(ValueError, match="mask_true must be a boolean array"):
        METRICS[metric](wrong, good)
    with pytest.raises(ValueError, match="mask_pred must be a boolean array"):
        METRICS[metric](good, wrong)


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(3, 3, 1), (3, 3), (3, 3, 4)])
def test_masks_of_different_shapes_are_refused_also_if_they_broadcast(metric, shape):
    with pytest.raises(ValueError, match=r"\(3, 3, 3\)") as error:
        METRICS[metric](np.ones((3, 3, 3), bool), np.ones(shape, bool))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    "spacing", [(1, 2), (1, 2, 3, 4), 2.0, (1, 0, 3), (1, -2, 3), (1, NAN, 3), (1, INF, 3), ()]
)
def test_a_spacing_that_is_not_a_positive_number_per_axis_is_refused(spacing):
    true, pred = shifted_cubes()
    for masks in ((true, pred), (true & False, pred & False)):
        with pytest.raises(ValueError, match="spacing_mm"):
            metrics.surface_distances(*masks, spacing)


@pytest.mark.parametrize("percentile", [-1, 100.1, NAN])
def test_a_percentile_out_of_range_is_refused(percentile):
    with pytest.raises(ValueError, match="percentile"):
        metrics.hausdorff(*shifted_cubes(), SPACING, percentile=percentile)


@pytest.mark.parametrize("tolerance_mm", [-0.1, NAN])
def test_a_tolerance_below_zero_is_refused(tolerance_mm):
    with pytest.raises(ValueError, match="tolerance_mm"):
        metrics.surface_dice(*shifted_cubes(), SPACING, tolerance_mm)


def test_a_case_gets_a_row_per_label_in_the_order_asked_for():
    # Voxels of 6 mm3 = 0.006 ml. Label 1: a cube and the same with a cavity, as above. Label 5:
    # 2 voxels in the first only. Label 7: in neither. Label 9: voxels one step of 3 mm apart.
    true = box((7, 7, 7), (1, 6), (1, 6), (1, 6)).astype(np.int16)
    pred = true.copy()
    pred[3, 3, 3] = 0
    true[0, 0, 0:2] = 5
    true[6, 6, 6] = pred[6, 6, 5] = 9
    rows = metrics.score_case(true, pred, SPACING, (7, 1, 5))
    expected = [
        (7, NAN, NAN, NAN, 0, 0),
        (1, 248 / 249, 2, 0.85, 125 * 0.006, 124 * 0.006),
        (5, 0, INF, INF, 2 * 0.006, 0),
    ]
    names = ("label", "dice", "hausdorff_mm", "hd95_mm", "volume_true_ml", "volume_pred_ml")
    assert len(rows) == 3
    for row, numbers in zip(rows, expected, strict=True):
        assert row == pytest.approx(dict(zip(names, numbers, strict=True)), nan_ok=True)
    (row,) = metrics.score_case(true, pred, SPACING, [np.int32(9)])
    assert (row["label"], row["dice"], row["hd95_mm"]) == (9, 0, pytest.approx(3))
