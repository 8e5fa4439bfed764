import itertools
import math

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from medpy.metric import binary as medpy

from unetseg import metrics

SPACING = (1.0, 2.0, 3.0)  # mm
NAN, INF = float("nan"), float("inf")
sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)  # more only wait for one another here


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


def solid_and_hollow():
    """A cube of 5 x 5 x 5 voxels, and the same without its centre."""
    solid = box((7, 7, 7), (1, 6), (1, 6), (1, 6))
    return solid, solid & ~mask((7, 7, 7), (3, 3, 3))


def test_cubes_one_voxel_apart_have_the_scores_worked_out_by_hand():
    true, pred = shifted_cubes()
    assert metrics.dice(true, pred) == pytest.approx(2 * 18 / (27 + 27))
    assert metrics.sensitivity(true, pred) == pytest.approx(18 / 27)
    assert metrics.precision(true, pred) == pytest.approx(18 / 27)
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
    ("bounds", "sensitivity", "precision"),
    [
        (((1, 3), (1, 6)), 3 / 4, 3 / 10),  # of 4 and 10 voxels, 3 in both
        (((0, 4), (0, 6)), 1, 4 / 24),
        (((1, 2), (0, 1)), 1 / 4, 1),
        (((3, 4), (0, 6)), 0, 0),
    ],
)
def test_sensitivity_is_of_the_true_mask_and_precision_of_the_other(bounds, sensitivity, precision):
    true, pred = box((4, 6), (1, 2), (0, 4)), box((4, 6), *bounds)
    assert metrics.sensitivity(true, pred) == pytest.approx(sensitivity)
    assert metrics.precision(true, pred) == pytest.approx(precision)


@pytest.mark.parametrize(
    ("shape", "first", "second", "spacing", "expected"),
    [
        ((5, 6, 4), (1, 1, 1), (3, 4, 2), (1, 2, 3), 7),  # (2, 6, 3) mm: 4 + 36 + 9 = 49
        ((5, 6, 4), (0, 0, 0), (4, 3, 2), (0.5, 2, 1.5), 7),  # (2, 6, 3) mm again, to the corner
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


def test_sheets_are_apart_by_their_gap_along_the_axis():
    for axis, expected in enumerate((3, 6, 9)):  # 3 steps of 1, 2 or 3 mm, from edge to edge
        true, pred = (np.indices((4, 4, 4))[axis] == place for place in (0, 3))
        for directed in metrics.surface_distances(true, pred, SPACING):
            np.testing.assert_allclose(directed, [expected] * 16)


def disks():
    """Disks of radius 12 and 20 about one centre."""
    away = ((np.indices((64, 64)) - 31.5) ** 2).sum(axis=0)
    return away <= 12**2, away <= 20**2


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_disks_of_one_slice_score_as_2d_whichever_way_the_slice_lies(axis):
    # Between the circles lie 8 mm of 1 mm pixels, up to a pixel's corner more. Of a slab whose
    # every voxel is a border, surface Dice would be 0.56 and the average distance 2.3 mm.
    true, pred = disks()
    spacing = np.array((1.0, 1.0))
    if axis is not None:
        true, pred = (np.expand_dims(array, axis) for array in (true, pred))
        spacing = np.insert(spacing, axis, 6.0)
    assert metrics.surface_dice(true, pred, spacing, 1) == 0
    assert metrics.hausdorff(true, pred, spacing) == pytest.approx(math.hypot(6, 6))
    assert metrics.hausdorff(true, pred, spacing, percentile=95) == pytest.approx(8.49, abs=0.005)
    assert metrics.average_surface_distance(true, pred, spacing) == pytest.approx(7.91, abs=0.005)
    (row,) = metrics.score_case(1 * true, 1 * pred, spacing, [1])
    assert (row["surface_dice"], row["hd95_mm"]) == (0, pytest.approx(8.49, abs=0.005))
    thickness = 1 if axis is None else 6
    assert row["volume_true_ml"] == pytest.approx(np.count_nonzero(true) * thickness / 1000)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_thickness_of_a_single_slice_has_no_influence_on_distances(axis):
    # A frame of 5 x 4 pixels of 1 x 3 mm and the same with its inside filled: one border.
    frame = box((7, 6), (1, 6), (1, 5)) & ~box((7, 6), (2, 5), (2, 4))
    filled, line = box((7, 6), (1, 6), (1, 5)), box((7, 6), (1, 6), (1, 2))
    for thickness in (0.01, 0.5, 500):
        spacing = np.insert((1.0, 3.0), axis, thickness)
        one_slice = [np.expand_dims(array, axis) for array in (frame, filled, line)]
        assert metrics.hausdorff(*one_slice[:2], spacing) == 0
        # The line is 5 pixels long; the far side of the frame lies 3 pixels of 3 mm away.
        assert metrics.hausdorff(*one_slice[1:], spacing) == pytest.approx(9)


@pytest.mark.parametrize("shape", [(9, 1, 1), (1, 9, 1), (1, 1, 9), (9, 1), (1, 9)])
def test_a_row_of_voxels_has_two_ends(shape):
    spacing = np.where(np.array(shape) > 1, 2.0, 7.0)
    true, pred = np.zeros((2, *shape), bool)
    true.ravel()[1:8] = pred.ravel()[1:5] = True  # ends 1 and 7, and 1 and 4: steps of 2 mm
    distances = metrics.surface_distances(true, pred, spacing)
    assert sorted(distances.true_to_pred) == [0, 6]
    assert sorted(distances.pred_to_true) == [0, 6]


def test_two_slices_are_a_volume():
    # Of a block of 5 x 5 x 2 voxels every voxel has one outside above or below it.
    block = np.ones((5, 5, 2), bool)
    hollow = block & ~mask((5, 5, 2), (2, 2, 0))
    assert metrics.surface_distances(block, hollow, SPACING).true_to_pred.size == 50
    assert metrics.surface_distances(block[:, :, :1], block[:, :, :1], SPACING)[0].size == 16


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
    solid, hollow = solid_and_hollow()
    assert metrics.dice(solid, hollow) == pytest.approx(2 * 124 / (125 + 124))
    distances = metrics.surface_distances(solid, hollow, SPACING)
    np.testing.assert_array_equal(distances.true_to_pred, [0] * 98)
    np.testing.assert_allclose(np.sort(distances.pred_to_true), [0] * 98 + [1] * 2 + [2] * 4)
    # Percentile 95 of 104 numbers stands at 0.95 * 103 = 97.85, between 0 and 1.
    assert metrics.hausdorff(solid, hollow, SPACING, percentile=95) == pytest.approx(0.85)
    average = metrics.average_surface_distance(solid, hollow, SPACING)
    assert average == pytest.approx(10 / (98 + 104))
    assert metrics.surface_dice(solid, hollow, SPACING, 1) == pytest.approx(198 / 202)


@pytest.mark.parametrize("size_mm", [0.05, 0.00043, 4e-7])
def test_scores_of_small_voxels_are_those_of_large_ones_in_smaller_units(size_mm):
    # Headers hold float32: 0.05 mm comes back as 0.05000000074505806.
    size = float(np.float32(size_mm))
    true, pred = shifted_cubes()
    spacing = np.array(SPACING) * size
    assert metrics.hausdorff(true, pred, spacing) == pytest.approx(2 * size, rel=1e-6, abs=0)
    average = metrics.average_surface_distance(true, pred, spacing)
    assert average == pytest.approx(19 / 26 * size, rel=1e-6, abs=0)
    for factor, share in ((0, 16 / 26), (1, 17 / 26), (1.9999, 17 / 26), (2, 1)):
        found = metrics.surface_dice(true, pred, spacing, factor * size_mm)
        assert found == pytest.approx(share)
    (row,) = metrics.score_case(1 * true, 1 * pred, spacing, [1], tolerance_mm=size_mm)
    volume = 27 * 6 * size_mm**3 / 1000
    assert row["volume_true_ml"] == pytest.approx(volume, rel=1e-5, abs=0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_distance_equal_to_the_tolerance_is_within_it_however_it_is_rounded(axis):
    spacing = np.roll((0.1, 1, 1), axis)  # three steps of 0.1 are 0.30000000000000004
    for start in range(8):
        true, pred = (np.indices((11, 11, 11))[axis] == n for n in (start, start + 3))
        assert metrics.surface_dice(true, pred, spacing, 0.3) == 1
        assert metrics.surface_dice(true, pred, spacing, 0.2999) == 0


def test_the_scores_are_read_from_the_distances_of_both_directions():
    distances = metrics.SurfaceDistances(np.array([0.0, 1, 2]), np.array([0.0, 0, 4, 6]))
    assert distances.hausdorff() == 6
    # Percentile 75 of three numbers stands at 1.5 (1.5 mm), of four at 2.25 (4.5 mm).
    assert distances.hausdorff(75) == pytest.approx(4.5)
    assert distances.average() == pytest.approx(13 / 7)
    for tolerance_mm, share in ((0, 3 / 7), (1, 4 / 7), (5, 6 / 7), (6, 1)):
        assert distances.surface_dice(tolerance_mm) == pytest.approx(share)


def border_by_loops(array):
    inside = {place for place in np.ndindex(array.shape) if array[place]}
    axes = range(array.ndim)
    looked_along = [axis for axis in axes if array.shape[axis] > 1] or [0]  # not across one slice
    steps = [[n * (a == axis) for a in axes] for axis in looked_along for n in (-1, 1)]
    return [
        place
        for place in inside
        if any(tuple(map(sum, zip(place, step, strict=True))) not in inside for step in steps)
    ]


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
    for _ in range(80):
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
            for tolerance in (rng.uniform(0, 6), rng.choice(there + back)):
                within = [d < tolerance or math.isclose(d, tolerance) for d in there + back]
                found = metrics.surface_dice(true, pred, spacing, tolerance)
                assert found == pytest.approx(sum(within) / len(within))
        inside = [{i for i in np.ndindex(shape) if array[i]} for array in (true, pred)]
        both, size_true, size_pred = len(inside[0] & inside[1]), *map(len, inside)
        for metric, part, whole in (
            (metrics.dice, 2 * both, size_true + size_pred),
            (metrics.sensitivity, both, size_true),
            (metrics.precision, both, size_pred),
        ):
            expected = part / whole if whole else NAN
            assert metric(true, pred) == pytest.approx(expected, nan_ok=True)


def bodies(ndim):
    """Masks of one grid that are hard for borders: at the edge, thin, hollow, single voxels."""
    shape, every = (5, 6, 7)[:ndim], slice(None)
    full, inner = np.ones(shape, bool), mask(shape, (slice(1, -1),) * ndim)
    yield from (full, inner, full & ~inner, full & ~mask(shape, (2,) * ndim))
    yield from (mask(shape, (place,) * ndim) for place in (0, 2, -1))
    yield from (mask(shape, (every,) * (ndim - 1) + (place,)) for place in (0, 3, -1))
    yield from (mask(shape, (slice(2, 4),) + (every,) * (ndim - 1)), mask(shape, (0,), (-1,)))
    yield np.indices(shape).sum(0) % 2 == 0


def ellipsoids(rng, ndim):
    """Two random ellipsoids, the edge cutting some, with some voxels taken out or put in."""
    shape = rng.integers(6, 16, ndim)
    for _ in range(2):
        centre, radii = rng.uniform(0, shape), rng.uniform(2, 7, ndim)
        away = (np.indices(shape).T - centre) / radii
        yield ((away**2).sum(-1) < 1).T ^ (rng.random(shape) < 0.01)


def pairs(ndim):
    rng = np.random.default_rng(ndim)
    for true, pred in itertools.product(bodies(ndim), repeat=2):
        yield true, pred, SPACING[:ndim]
    for _ in range(60):
        true, pred = ellipsoids(rng, ndim)
        if true.any() and pred.any():
            yield true, pred, rng.uniform(0.3, 4, ndim)


def to_itk(array, spacing):
    image = sitk.GetImageFromArray(np.pad(array, 1).astype(np.uint8))  # the edge is outside
    image.SetSpacing([float(mm) for mm in spacing[::-1]])  # arrays are z, y, x to SimpleITK
    return image


def itk_hausdorff(*images):
    measure = sitk.HausdorffDistanceImageFilter()
    measure.Execute(*images)
    return measure.GetHausdorffDistance()


def itk_distances(border_from, border_to):
    to_border = sitk.SignedMaurerDistanceMap(border_to, squaredDistance=False, useImageSpacing=True)
    return sitk.GetArrayFromImage(to_border)[sitk.GetArrayFromImage(border_from) > 0]


@pytest.mark.parametrize("ndim", [2, 3])
def test_simpleitk_finds_the_same_distances_between_borders(ndim):
    for true, pred, spacing in pairs(ndim):
        images = [to_itk(array, spacing) for array in (true, pred)]
        overlap = sitk.LabelOverlapMeasuresImageFilter()
        overlap.Execute(*images)
        assert metrics.dice(true, pred) == pytest.approx(overlap.GetDiceCoefficient())
        borders = [sitk.BinaryContour(i, False, 0, 1) for i in images]  # neighbours share a face
        found = metrics.surface_distances(true, pred, spacing)
        close = {"rel": 1e-5, "abs": 1e-5}  # SimpleITK's distance maps are float32
        assert found.hausdorff() == pytest.approx(itk_hausdorff(*borders), **close)
        expected = [np.sort(itk_distances(*way)) for way in (borders, borders[::-1])]
        for directed, by_itk in zip(found, expected, strict=True):
            assert np.sort(directed) == pytest.approx(by_itk, **close)
        hd95 = max(percentile_by_hand(by_itk, 95) for by_itk in expected)
        assert found.hausdorff(95) == pytest.approx(hd95, **close)


@pytest.mark.parametrize("ndim", [2, 3])
def test_medpy_finds_the_same_scores_where_its_definitions_agree(ndim):
    for true, pred, spacing in pairs(ndim):
        for metric, its in (
            (metrics.dice, medpy.dc),
            (metrics.sensitivity, medpy.sensitivity),
            (metrics.precision, medpy.precision),
        ):
            assert metric(true, pred) == pytest.approx(its(pred, true))  # the result comes first
        found = metrics.surface_distances(true, pred, spacing)
        assert found.hausdorff() == pytest.approx(medpy.hd(pred, true, spacing))
        assert found.average() == pytest.approx(medpy.assd(pred, true, spacing))  # since 0.5.2
        assert found.true_to_pred.mean() == pytest.approx(medpy.asd(true, pred, spacing))
        assert found.pred_to_true.mean() == pytest.approx(medpy.asd(pred, true, spacing))


def test_percentiles_and_averages_are_not_those_of_medpy_where_borders_differ_in_size():
    # [0] mm one way and [0, 10] mm the other. Percentile 95 of the second is 9.5; of all three
    # together, where medpy takes it, it stands at 1.9 and is 9. The three average 10 / 3; the
    # mean of the directed means 0 and 5 (`assd` in medpy up to 0.4) is 2.5.
    true, pred = mask((3, 6), (1, 0)), mask((3, 6), (1, 0), (1, 5))
    for masks in ((true, pred), (pred, true)):
        assert metrics.hausdorff(*masks, (1, 2), percentile=95) == pytest.approx(9.5)
        assert medpy.hd95(*masks, (1, 2)) == pytest.approx(9)
        assert metrics.hausdorff(*masks, (1, 2), percentile=50) == pytest.approx(5)
        assert metrics.average_surface_distance(*masks, (1, 2)) == pytest.approx(10 / 3)
        directed_means = medpy.asd(*masks, (1, 2)), medpy.asd(*masks[::-1], (1, 2))
        assert np.mean(directed_means) == pytest.approx(2.5)


def test_distances_are_between_borders_and_not_as_in_simpleitk_between_the_masks():
    # The cavity's voxel is 1 mm from the hollow cube; the border around it 2 mm from the solid's.
    masks = solid_and_hollow()
    assert metrics.hausdorff(*masks, SPACING) == pytest.approx(2)
    assert itk_hausdorff(*(to_itk(array, SPACING) for array in masks)) == pytest.approx(1)
    # A slit from the edge to the middle: 1 mm wide, its end 4 mm from the outer border.
    whole = np.ones((9, 9), bool)
    slit = whole & ~mask((9, 9), (4, slice(5)))
    assert metrics.hausdorff(whole, slit, (1, 2)) == pytest.approx(4)
    assert itk_hausdorff(to_itk(whole, (1, 2)), to_itk(slit, (1, 2))) == pytest.approx(1)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 6), (1, 1), (1, 1, 1)])
@pytest.mark.parametrize(
    ("some", "overlap", "distance", "sensitivity", "precision"),
    [
        ((False, False), NAN, NAN, NAN, NAN),
        ((False, True), 0, INF, NAN, 0),
        ((True, False), 0, INF, 0, NAN),
        ((True, True), 1, 0, 1, 1),
    ],
)
def test_empty_masks_score_as_agreed(shape, some, overlap, distance, sensitivity, precision):
    true, pred = (mask(shape, (0,) * len(shape)) & there for there in some)
    masks = true, pred, SPACING[: len(shape)]
    for found, expected in (
        (metrics.dice(true, pred), overlap),
        (metrics.surface_dice(*masks, 100), overlap),
        (metrics.hausdorff(*masks), distance),
        (metrics.hausdorff(*masks, percentile=95), distance),
        (metrics.average_surface_distance(*masks), distance),
        (metrics.sensitivity(true, pred), sensitivity),
        (metrics.precision(true, pred), precision),
    ):
        assert found == pytest.approx(expected, nan_ok=True)


def every_other(array):
    spread = np.zeros([2 * n for n in array.shape], bool)
    spread[::2, ::2, ::2] = array
    return spread[::2, ::2, ::2]


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        every_other,
        lambda a: np.flip(np.flip(a).copy()),
        lambda a: np.broadcast_to(a, a.shape),
    ],
    ids=["fortran", "strided", "flipped view", "read-only"],
)
@pytest.mark.parametrize("both", [True, False])
def test_the_layout_in_memory_makes_no_difference(layout, both):
    true, pred = shifted_cubes()
    true, pred = layout(true), layout(pred) if both else pred
    before = true.copy()
    for directed in metrics.surface_distances(true, pred, SPACING):
        np.testing.assert_allclose(np.sort(directed), [0] * 16 + [1] + [2] * 9)
    for overlap in (metrics.dice, metrics.sensitivity, metrics.precision):
        assert overlap(true, pred) == pytest.approx(2 / 3)
    np.testing.assert_array_equal(true, before)


METRICS = {
    "dice": metrics.dice,
    "sensitivity": metrics.sensitivity,
    "precision": metrics.precision,
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


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("shape", [(), (3,), (2, 2, 2, 2)])
def test_masks_are_of_two_or_three_dimensions(metric, shape):
    with pytest.raises(ValueError, match="must be 2-D or 3-D") as error:
        METRICS[metric](np.ones(shape, bool), np.ones(shape, bool))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    "spacing", [(1, 2), (1, 2, 3, 4), 2.0, (1, 0, 3), (1, -2, 3), (1, NAN, 3), (1, INF, 3), ()]
)
def test_a_spacing_that_is_not_a_positive_number_per_axis_is_refused(spacing):
    true, pred = shifted_cubes()
    for masks in ((true, pred), (true & False, pred & False)):
        with pytest.raises(ValueError, match="spacing_mm"):
            metrics.surface_distances(*masks, spacing)


@pytest.mark.parametrize("masks", [shifted_cubes(), np.zeros((2, 3, 3, 3), bool)])
def test_percentiles_and_tolerances_out_of_range_are_refused(masks):
    for percentile in (-1, 100.1, NAN):
        with pytest.raises(ValueError, match="percentile"):
            metrics.hausdorff(*masks, SPACING, percentile=percentile)
    for tolerance_mm in (-0.1, NAN):
        with pytest.raises(ValueError, match="tolerance_mm"):
            metrics.surface_dice(*masks, SPACING, tolerance_mm)


COLUMNS = (
    *("label", "dice", "surface_dice", "tolerance_mm", "hausdorff_mm", "hd95_mm", "assd_mm"),
    *("sensitivity", "precision", "volume_true_ml", "volume_pred_ml", "volume_difference_ml"),
)


def test_a_case_gets_a_row_per_label_in_the_order_asked_for():
    # Voxels of 6 mm3 = 0.006 ml. Label 1: a cube and the same with a cavity, as above. Label 5:
    # 2 voxels in the first only. Label 4: one in the second only. Label 7: in neither.
    solid, hollow = solid_and_hollow()
    true, pred = solid.astype(np.int16), hollow.astype(np.int16)
    true[0, 0, 0:2], pred[0, 6, 0] = 5, 4
    rows = metrics.score_case(true, pred, SPACING, (7, 1, 5, 4))
    expected = [
        (7, NAN, NAN, 1, NAN, NAN, NAN, NAN, NAN, 0, 0, 0),
        (1, 248 / 249, 198 / 202, 1, 2, 0.85, 10 / 202, 124 / 125, 1, 0.75, 0.744, -0.006),
        (5, 0, 0, 1, INF, INF, INF, 0, NAN, 0.012, 0, -0.012),
        (4, 0, 0, 1, INF, INF, INF, NAN, 0, 0, 0.006, 0.006),
    ]
    for row, numbers in zip(rows, expected, strict=True):
        assert tuple(row) == COLUMNS
        assert tuple(row.values()) == pytest.approx(numbers, nan_ok=True)


@pytest.mark.parametrize(("tolerance_mm", "share"), [(1.9, 0), (2, 1)])
def test_a_slice_as_thick_as_1_mm_is_scored_with_the_tolerance_asked_for(tolerance_mm, share):
    true, pred = np.zeros((2, 4, 4), np.uint8)
    true[1, 1] = pred[1, 2] = 9  # voxels of 2 mm3, one step of 2 mm apart
    (row,) = metrics.score_case(true, pred, (1, 2), [np.int32(9)], tolerance_mm=tolerance_mm)
    expected = (9, 0, share, tolerance_mm, 2, 2, 2, 0, 0, 0.002, 0.002, 0)
    assert tuple(row.values()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("shapes", "spacing", "tolerance_mm", "message"),
    [
        (((3, 3, 3), (3, 3, 1)), SPACING, 1, "mask_pred must be of mask_true's shape"),
        (((3, 3, 3, 1), (3, 3, 3, 1)), (*SPACING, 1), 1, "must be 2-D or 3-D"),
        (((3, 3, 3), (3, 3, 3)), (1, 2), 1, "spacing_mm must be"),
        (((3, 3, 3), (3, 3, 3)), SPACING, -1, "tolerance_mm must be"),
    ],
)
def test_a_case_that_cannot_be_scored_is_refused(shapes, spacing, tolerance_mm, message):
    with pytest.raises(ValueError, match=message):
        metrics.score_case(*map(np.ones, shapes), spacing, [1], tolerance_mm=tolerance_mm)


def test_the_metrics_that_are_summarised_are_those_of_a_case():
    mask = np.ones((3, 3, 3), np.uint8)
    [row] = metrics.score_case(mask, mask, (1, 1, 1), [1])
    assert {*row} - {"label", "tolerance_mm"} == {*metrics.METRICS}
