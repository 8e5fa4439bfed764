"""Scans that are looked at twice: whole and coarsely, then where something was found."""

from dataclasses import replace
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from unetseg import nifti, planning
from unetseg.body import meet, widen
from unetseg.grids import Place, restore_part
from unetseg.patches import FAR, Looks
from unetseg.prediction import find_region, leave_out, predict_case, prepare_case
from unetseg.preprocessing import Preprocessor

SHAPE, SPACING = (64, 60, 40), (1.0, 1.0, 2.0)
AT = (slice(40, 52), slice(10, 22), slice(20, 30))
LEAST = {"patch": (16, 16, 16), "least_contrast": 0.0, "mirror_axes": ()}


class Bright:
    """A network that sees what is brighter than a limit."""

    def __init__(self, limit=1.5):
        self.limit, self.shapes = limit, []

    def predict_on_batch(self, batch):
        self.shapes.append(batch.shape)
        p = 1 / (1 + np.exp(np.clip(8 * (self.limit - batch[..., 0]), -50, 50)))
        return np.stack([1 - p, p], axis=-1).astype(np.float32)


@pytest.fixture
def scan(tmp_path, write_case):
    """A bright box of 12 x 12 x 10 voxels in a noisy scan that is a hundred times as large."""
    rng = np.random.default_rng(0)
    image = rng.normal(100, 5, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint8)
    image[AT], mask[AT] = rng.normal(200, 5, (12, 12, 10)), 1
    return write_case(tmp_path, "a", image, mask, SPACING)


@pytest.fixture
def write_noise(tmp_path, write_case):
    """Return a function that writes a noisy scan with a mask that is a box."""

    def write(box):
        image = np.random.default_rng(0).normal(100, 5, SHAPE).astype(np.float32)
        mask = np.zeros(SHAPE, np.uint8)
        mask[box] = 1
        return write_case(tmp_path, "a", image, mask, SPACING)

    return write


@pytest.fixture
def preprocessor(scan):
    return Preprocessor(**LEAST).fit([scan])


def test_a_small_structure_in_a_large_scan_is_looked_at_twice(preprocessor):
    # 64 x 60 x 80 mm in a patch of 16 voxels each
    assert preprocessor.coarse_mm == (4.0, 3.75, 5.0)
    assert preprocessor.margin == 0.3
    coarse = preprocessor.coarse
    assert (coarse.spacing_mm, coarse.coarse) == ((4.0, 3.75, 5.0), None)
    assert replace(coarse, spacing_mm=SPACING, coarse_mm=preprocessor.coarse_mm) == preprocessor


@pytest.mark.parametrize(
    ("settings", "box"),
    [
        ({"patch": (64, 64, 32)}, AT),  # which holds four fifths of the scan
        ({"coarse_mm": ()}, AT),
        ({}, (slice(4, 60), slice(4, 56), slice(4, 36))),  # a large structure
        ({}, (slice(4, 6), slice(4, 6), slice(4, 6))),  # one that would have half a voxel left
        ({"patch": (64, 60, 1)}, AT),  # whole slices
        ({}, (slice(0),) * 3),  # no structure
    ],
)
def test_one_look_is_enough_or_all_that_helps(write_noise, settings, box):
    case = write_noise(box)
    fitted = Preprocessor(**{**LEAST, **settings}).fit([case])
    assert (fitted.coarse, fitted.coarse_mm, fitted.margin) == (None, (), 0)


def test_of_a_small_structure_more_around_it_is_looked_at(write_noise):
    case = write_noise((slice(40, 50), slice(10, 20), slice(20, 26)))
    facts = [Preprocessor().describe(*nifti.load_image(case.image), nifti.load_mask(case.mask)[0])]
    fitted = Preprocessor().fit([case], facts=facts, patch_voxels=20_000)
    # In patches of its own region, (16, 16, 10) voxels, a first look would see slices of 8 mm.
    assert fitted.patch == (32, 32, 16)
    assert fitted.coarse_mm == (2.0, 1.88, 5.0)
    shape = np.array([10, 10, 6]) * (1 + 2 * fitted.margin)
    assert np.prod(shape) == pytest.approx(np.prod(fitted.patch), rel=0.05)


@pytest.mark.parametrize(("patch", "across"), [((16, 16, 1), 2), ((1, 16, 16), 0)])
def test_slices_of_which_a_patch_holds_little_are_looked_at_twice(write_noise, patch, across):
    case = write_noise(AT)
    fitted = Preprocessor(**{**LEAST, "patch": patch, "planes": None}).fit([case])
    whole = np.array([64, 60, 80]) / 16
    whole[across] = SPACING[across]  # every slice is seen
    assert fitted.coarse_mm == tuple(whole)
    assert fitted.coarse.planes == fitted.planes[:1]
    assert fitted.coarse.prepare(case).x.shape[across] == SHAPE[across]


@pytest.mark.parametrize(
    ("box", "coarse_mm"),
    [(AT, (3.2, 3.0, 2.0)), ((slice(4, 60), slice(4, 56), slice(4, 36)), ())],
)
def test_whole_slices_are_looked_at_twice_unless_most_of_the_scan_is_sought(
    write_noise, box, coarse_mm
):
    case = write_noise(box)
    fitted = Preprocessor(dimensions=2, planes=(2,)).fit([case])
    assert fitted.coarse_mm == coarse_mm
    assert fitted.patch == ((20, 20, 1) if coarse_mm else (64, 64, 1))


def fact(spans, counts, scattered=False):
    """Facts of a scan of 64 x 60 x 40 voxels of 1 mm, coarse ones of which hold 16."""
    shape = {"shape": (64, 60, 40), "spacing_mm": np.ones(3), "structures": (30, 9, 9)}
    return {**shape, "spans": spans, "voxels": counts, "scattered": scattered}


PATCH = (16, 30, 20)
COARSE, TALL = (4.0, 2.0, 2.0), (6.0, 3.0, 3.0)
TWICE = {"shape": (128, 120, 80)}
WHOLE = fact({1: 0.9}, {1: 50_000})


@pytest.mark.parametrize(
    ("facts", "coarse_mm"),
    [
        ([WHOLE], ()),
        ([fact({1: 0.9, 2: 0.5}, {1: 50_000, 2: 2_000})], COARSE),  # one has a place of its own
        ([fact({1: 0.9, 2: 0.1}, {1: 50_000, 2: 80})], COARSE),  # of 5 coarse voxels
        ([fact({1: 0.9, 2: 0.1}, {1: 50_000, 2: 79})], ()),  # a first look would overlook it
        ([fact({1: 0.1}, {1: 480})], COARSE),  # of 30
        ([fact({1: 0.1}, {1: 479})], ()),
        ([fact({1: 0.1, 2: 0.1}, {1: 400, 2: 80})], COARSE),  # together
        ([fact({1: 0.1}, {1: 2_000}, scattered=True)], ()),
        ([fact({1: 0.1}, {1: 2_000})] * 2 + [fact({1: 0.1}, {1: 2_000}, scattered=True)], ()),
        ([fact({1: 0.1}, {1: 2_000})] * 3 + [fact({1: 0.1}, {1: 2_000}, scattered=True)], COARSE),
        ([fact({1: 0.1}, {1: 2_000})] * 8 + [fact({1: 0.1}, {1: 9}, scattered=True)] * 2, ()),
        ([fact({1: 0.1}, {1: 2_000})] * 18 + [fact({1: 0.1}, {1: 9}, scattered=True)] * 2, COARSE),
        # A scan of twice the size has windows of its own.
        ([fact({1: 0.1}, {1: 2_000})] * 3 + [fact({1: 0.1}, {1: 2_000}) | TWICE], TALL),
        # One voxel by a slip of the hand changes nothing, as little as a rare label.
        ([WHOLE] * 9 + [fact({1: 0.9, 2: 0.001}, {1: 50_000, 2: 1})], ()),
        ([fact({1: 0.1}, {1: 2_000})] * 9 + [fact({1: 0.1, 2: 0.1}, {1: 2_000, 2: 1})], COARSE),
        ([WHOLE] * 8 + [fact({1: 0.9, 2: 0.1}, {1: 50_000, 2: 2_000})] * 2, COARSE),
        ([fact({}, {}) | {"structures": None}], ()),
        # More than a tenth of the cases have less than 30 coarse voxels in all.
        ([fact({1: 0.1}, {1: 2_000})] * 8 + [fact({1: 0.1}, {1: 400})] * 2, ()),
        # Along x coarse voxels have 4 mm, along z those of the scan would do.
        ([fact({1: 0.1}, {1: 2_000}) | {"structures": (8, 4, 4)}], COARSE),
        ([fact({1: 0.1}, {1: 2_000}) | {"structures": (7, 9, 9)}], ()),
    ],
)
def test_two_looks_where_a_structure_has_a_place_of_its_own_and_can_be_seen(facts, coarse_mm):
    assert planning.choose_coarse_spacing(facts, (1.0, 1.0, 1.0), PATCH) == coarse_mm


def test_the_span_of_a_structure_is_that_of_its_box_with_the_margin():
    mask = np.zeros((20, 20, 20), np.int32)
    mask[2:12, 5:10, 5:9], mask[5:7, 6:8, 6:8] = 2**31 - 1, -4
    body = np.zeros(mask.shape, bool)
    body[:, 2:18] = True
    image = np.random.default_rng(0).normal(100, 5, (*mask.shape, 1))
    spans = planning.describe_case(image, mask, body, np.ones(3), margin=0.5)["spans"]
    assert spans == pytest.approx({2**31 - 1: 20 * 10 * 8 / 6400, -4: 4 * 4 * 4 / 6400})


@pytest.mark.parametrize(("first", "scattered"), [(13, False), (14, True)])
def test_a_piece_within_the_margin_of_the_large_ones_is_not_apart(first, scattered):
    mask = np.zeros((20, 20, 20), np.int32)
    mask[2:12, 5:10, 5:9] = 1
    mask[first, 5, 5] = 1  # the margin of 0.2 of 10 voxels ends behind voxel 13
    image = np.random.default_rng(0).normal(100, 5, (*mask.shape, 1))
    body = np.ones(mask.shape, bool)
    facts = planning.describe_case(image, mask, body, np.ones(3), margin=0.2)
    assert facts["scattered"] is scattered


def test_small_pieces_that_lie_apart_are_not_left_to_a_second_look(tmp_path, write_case, scan):
    image, mask = (nib.load(path).get_fdata() for path in (scan.image, scan.mask))
    mask[5:8, 40:43, 5:8] = 1  # 27 of 1467 voxels
    case = write_case(tmp_path / "apart", "a", image, mask.astype(np.uint8), SPACING)
    assert Preprocessor(**LEAST).fit([case]).coarse is None


def test_what_was_prepared_for_other_models_or_by_training_is_refused(preprocessor, scan):
    prepared = prepare_case(Bright(), scan, preprocessor)
    said = "prepared must be what prepare_case returned for the same models"
    with pytest.raises(ValueError, match=said):
        predict_case([Bright(), Bright()], scan, preprocessor, prepared=prepared)
    with pytest.raises(ValueError, match=said):
        predict_case(Bright(), scan, preprocessor, prepared=preprocessor.prepare(scan))


def test_training_looks_closer_where_the_mask_says(preprocessor, scan):
    x, y = preprocessor.transform(scan)
    # 12 x 12 x 10 voxels and three tenths on each side, padded to the patch
    assert y.shape == (20, 20, 16)
    assert np.count_nonzero(y) == 12 * 12 * 10
    whole, _ = preprocessor.transform(replace(scan, mask=None))
    assert whole.shape[:3] == SHAPE
    assert abs(x[y > 0].mean() - x[y == 0].mean()) > 1


def test_every_third_batch_is_of_whole_scans(preprocessor, scan, tmp_path):
    looks = Looks(preprocessor, [scan], tmp_path / "cache")
    drawn = looks.draw(1, seed=0, foreground=1.0, augment=False)
    counts = [np.count_nonzero(drawn[k][1]) for k in range(2 * FAR)]
    near, far = 12 * 12 * 10, 12 * 12 * 10 * 2 / (4 * 3.75 * 5)
    assert [count > (near + far) / 2 for count in counts] == [True, True, False] * 2
    for start in (1, 4):
        later = looks.draw(1, seed=0, foreground=1.0, augment=False, start=start)
        np.testing.assert_array_equal(later[1][0], drawn[start + 1][0])
    again = looks.draw(1, seed=0, foreground=1.0, augment=False, repeat_after=3)
    np.testing.assert_array_equal(again[4][0], drawn[1][0])


def test_of_one_look_all_batches_are_alike(scan, tmp_path):
    fitted = Preprocessor(**LEAST, coarse_mm=()).fit([scan])
    looks = Looks(fitted, [scan], tmp_path / "cache")
    assert looks.far is None
    assert looks.draw(2, seed=0).cases is looks.near


def test_prediction_looks_closer_where_something_was_found(preprocessor, scan):
    net = Bright()
    prepared = prepare_case(net, replace(scan, mask=None), preprocessor)
    assert prepared.first.maps.shape == (1, 16, 16, 16, 2)
    for found, true, length in zip(prepared.place.box, AT, SHAPE, strict=True):
        # what was found is at most a coarse voxel of 4 larger, then three tenths on each side
        assert 0 <= found.start <= true.start - 2
        assert true.stop + 2 <= found.stop <= length
        assert found.stop - found.start < 2.5 * (true.stop - true.start)
    prediction = predict_case(net, replace(scan, mask=None), preprocessor)
    truth = np.zeros(SHAPE)
    truth[AT] = 1
    assert np.count_nonzero(prediction.labels != truth) < 0.15 * truth.sum()
    np.testing.assert_allclose(prediction.probabilities.sum(axis=-1), 1, atol=1e-5)


@pytest.mark.parametrize(("coarse_mm", "share"), [((2.5, 2.5, 5.0), 1 / 2), ((4, 4, 5), 1 / 3)])
def test_a_first_look_counts_half_or_a_third_if_it_is_much_coarser(
    coarse_mm, share, preprocessor, scan
):
    """What the first look says of a voxel, and the second, each voxel by hand."""
    preprocessor = replace(preprocessor, coarse_mm=coarse_mm)
    first, second = np.float32(0.9), np.float32(0.2)

    class Constant:
        def predict_on_batch(self, batch):
            spread = batch.std(axis=(1, 2, 3), keepdims=True)
            p = np.broadcast_to(np.where(spread > 0, p_now[0], 0.5), batch.shape)[..., 0]
            return np.stack([1 - p, p], axis=-1).astype(np.float32)

    p_now = [first]
    prepared = prepare_case(Constant(), scan, preprocessor)
    p_now[0] = second
    prediction = predict_case(Constant(), scan, preprocessor, prepared=prepared)
    inside = prediction.probabilities[prepared.place.box][..., 1]
    expected = share * first + (1 - share) * second
    np.testing.assert_allclose(inside, expected, atol=1e-5)


def test_the_mask_of_a_scan_is_not_looked_at(preprocessor, scan):
    masked, bare = (
        predict_case(Bright(), c, preprocessor) for c in (scan, replace(scan, mask=None))
    )
    for one, other in zip(masked, bare, strict=True):
        np.testing.assert_array_equal(one, other)


def test_where_nothing_was_found_the_first_look_is_all(preprocessor, scan):
    net = Bright(limit=99)
    prepared = prepare_case(net, scan, preprocessor)
    assert prepared.preprocessor == preprocessor.coarse
    prediction = predict_case(net, scan, preprocessor)
    assert not prediction.labels.any()
    assert prediction.probabilities.shape == (*SHAPE, 2)


def test_boxes_are_widened_as_far_as_the_array_reaches_and_meet():
    box = slice(2, 12), slice(0, 10), slice(5, 6)
    assert widen(box, 0.25, (20, 12, 6)) == (slice(0, 15), slice(0, 12), slice(4, 6))
    other = slice(10, 20), slice(3, 5), slice(0, 9)
    assert meet(box, other) == (slice(10, 12), slice(3, 5), slice(5, 6))
    assert meet(box, (slice(13, 20), *other[1:])) == box


def test_a_region_on_the_coarse_grid_covers_its_native_voxels():
    place = Place((60, 60, 60), (slice(10, 50),) * 3, (slice(3, 13), slice(0, 20), slice(0, 40)))
    box = (slice(1, 3), slice(1, 3), slice(1, 3))
    assert place.to_native(box) == (slice(14, 22), slice(12, 16), slice(11, 13))


@pytest.mark.parametrize("step", [1, 2, 4])
def test_a_part_of_the_native_grid_is_restored_between_voxel_centres(step):
    place = Place((16, 8, 8), (slice(0, 16), slice(0, 8), slice(0, 8)), None)
    place = place._replace(inner=(slice(1, 1 + 16 // step), slice(0, 8), slice(0, 8)))
    coarse = np.zeros((16 // step + 2, 8, 8), np.float32)
    centres = (np.arange(16 // step) + 0.5) * step - 0.5
    coarse[1:-1] = centres[:, None, None]  # each voxel holds where its centre lies
    part = restore_part(coarse, place, (slice(4, 9), slice(2, 5), slice(0, 8)))
    expected = np.broadcast_to(np.arange(4, 9.0)[:, None, None], (5, 3, 8))
    np.testing.assert_allclose(part, expected, atol=1e-5)


def test_a_first_look_that_finds_only_padding_finds_nothing(preprocessor, scan):
    first = preprocessor.coarse.prepare(scan)
    narrow = first.place._replace(inner=(slice(1, 15), *first.place.inner[1:]))
    classes = np.zeros(first.x.shape[:3], int)
    classes[0] = 1
    assert find_region(classes, replace(first, place=narrow)) is None


def first_look(
    shape=(20, 20, 20), step=4, margin=0.3, reach_mm=0.0, spacing_mm=(4, 4, 4), patch=(8, 8, 8)
):
    """Of a scan of so many times as many voxels along each axis."""
    whole = tuple(slice(0, length) for length in shape)
    native = tuple(length * step for length in shape)
    place = Place(native, tuple(slice(0, length) for length in native), whole)
    grid = {"spacing_mm": spacing_mm, "flat_axis": patch.index(1) if 1 in patch else None}
    settings = SimpleNamespace(margin=margin, reach_mm=reach_mm, **grid)
    return SimpleNamespace(place=place, preprocessor=settings)


def find_classes(probabilities, first):
    """What is seen at a first look by one model, without what lies too far from the rest."""
    maps = np.array([probabilities])
    leave_out(maps, first)
    return maps[0].argmax(axis=-1)


def test_a_second_look_goes_beyond_what_a_coarse_voxel_may_have_hidden():
    classes = np.zeros((20, 20, 20), int)
    classes[9:11, 8:12, 0:10] = 1
    # Three tenths of 8, 16 and 40 voxels, but at least 1.5 coarse ones of 4.
    assert find_region(classes, first_look()) == (slice(30, 50), slice(26, 54), slice(0, 52))


def look_at_a_heart_and_a_stomach():
    """Two labels in one place; 8 empty voxels from there more of the second one."""
    classes = np.zeros((20, 20, 20), int)
    classes[2:6, 2:6, 2:6], classes[2:3, 6:9, 2:6] = 1, 2
    classes[2:6, 2:6, 14:19] = 2
    return classes


@pytest.mark.parametrize(
    ("reach_mm", "expected"),
    [
        (0.0, (slice(2, 30), slice(2, 42), slice(2, 80))),  # no limit
        (32.0, (slice(2, 30), slice(2, 42), slice(2, 80))),  # 8 voxels of 4 mm
        (31.0, (slice(2, 30), slice(2, 42), slice(2, 30))),
        (9.0, (slice(2, 30), slice(2, 42), slice(2, 30))),  # all of the heart's second label
    ],
)
def test_what_lies_too_far_from_the_others_is_left_out_of_a_second_look(reach_mm, expected):
    first = first_look(margin=0, reach_mm=reach_mm)
    classes = find_classes(np.eye(3)[look_at_a_heart_and_a_stomach()], first)
    assert find_region(classes, first) == expected


def test_of_two_places_the_one_counts_that_holds_more_of_every_label():
    classes = look_at_a_heart_and_a_stomach()
    first, heart, stomach = first_look(reach_mm=9.0), classes == 1, np.zeros(classes.shape, bool)
    stomach[2:6, 2:6, 14:19] = True
    maps = 0.9 * np.eye(3)[classes] + 0.1 / 3
    maps[2:3, 6:9, 2:6] = [0.8, 0, 0.2]  # likely enough to tell, though the background is likelier
    np.testing.assert_array_equal(find_classes(maps, first) > 0, heart)
    maps = np.eye(3)[np.where(heart | stomach, 1, 0)]
    np.testing.assert_array_equal(find_classes(maps, first) > 0, stomach)  # 80 voxels, not 64


def test_a_label_that_is_nowhere_else_is_not_left_out():
    classes = np.zeros((20, 20, 20), int)
    classes[2:8, 2:8, 2:8] = 1
    classes[2:6, 2:6, 13:18] = 2  # far from the first, and all there is of it
    classes[15:18, 15:18, 15:18] = 1  # less of the first, somewhere else
    expected = np.where(np.arange(20)[:, None, None] < 10, classes, 0)
    np.testing.assert_array_equal(
        find_classes(np.eye(3)[classes], first_look(reach_mm=9.0)), expected
    )


def test_a_label_that_a_scan_lacks_does_not_outweigh_an_organ_by_a_false_voxel():
    classes = np.zeros((20, 20, 20), int)
    classes[2:10, 2:10, 2:10] = 1
    maps = 0.95 * np.eye(3)[classes] + 0.05 / 3
    maps[15, 15, 15] = [0.3, 0.1, 0.6]
    np.testing.assert_array_equal(find_classes(maps, first_look(reach_mm=10.0)), classes)


@pytest.mark.parametrize(
    ("spacing_mm", "patch"), [((2.5, 2.5, 19.2), (8, 8, 8)), ((2.5, 2.5, 2.5), (8, 8, 1))]
)
def test_a_slice_that_a_first_look_overlooks_does_not_part_a_structure(spacing_mm, patch):
    classes = np.zeros((20, 20, 20), int)
    classes[4:12, 4:12, 4:14] = 1
    classes[..., 7] = 0
    first = first_look(reach_mm=4.0, spacing_mm=spacing_mm, patch=patch)
    np.testing.assert_array_equal(find_classes(np.eye(2)[classes], first), classes)
    classes[..., 8] = 0  # two slices do
    assert find_classes(np.eye(2)[classes], first)[..., :8].sum() == 0


def test_what_a_first_look_leaves_out_counts_as_background_in_both(preprocessor, scan):
    image, affine = nifti.load_image(scan.image)
    image[40:52, 30:36, 20:30] = 200  # 8 voxels from the structure, within its margin of 0.9
    wide = replace(preprocessor, margin=0.9, coarse_mm=(2.5, 2.5, 4.0))
    limited = replace(wide, gap_mm=1.0)
    both = [
        prepare_case(Bright(), scan, settings, loaded=(image, affine))
        for settings in (wide, limited)
    ]
    drawn = [predict_case(Bright(), scan, wide, prepared=one).labels for one in both]
    assert drawn[0][AT].mean() > 0.9
    assert drawn[0][40:52, 30:36, 20:30].mean() > 0.9
    assert drawn[1][AT].mean() > 0.9
    assert drawn[1][40:52, 30:36, 20:30].mean() < 0.1


def test_nothing_is_left_out_of_what_might_be_something(preprocessor, scan):
    class Doubtful(Bright):
        def predict_on_batch(self, batch):
            sure = np.full((*batch.shape[:4], 2), [0.95, 0.05], np.float32)
            sure[:, 1, 1, 1] = sure[:, -2, -2, -2] = [0.6, 0.4]
            return sure

    limited = replace(preprocessor, gap_mm=1.0)
    found = [prepare_case(Doubtful(), scan, settings) for settings in (preprocessor, limited)]
    assert found[0].first is not None
    assert found[0].place.box == found[1].place.box


@pytest.mark.parametrize("bridges", [slice(14, 15), slice(8, 20)])
def test_a_limit_that_would_take_what_masks_hold_is_none(bridges, tmp_path, write_case):
    image = np.random.default_rng(0).normal(100, 5, SHAPE).astype(np.float32)
    mask = np.zeros(SHAPE, np.uint8)
    mask[8:20, 8:20, 20:28] = mask[44:56, 8:20, 20:28] = 1
    mask[20:44, bridges, 24] = 1  # between the two: of one pixel, or of 12
    mask[20:44, bridges, 20:28] |= bridges.stop - bridges.start > 1
    case = write_case(tmp_path, "a", image, mask, SPACING)
    fitted = Preprocessor(**LEAST, coarse_mm=(4, 4, 4)).fit([case] * 10)
    assert fitted.gap_mm == (0 if bridges == slice(14, 15) else 1)


def test_pieces_may_lie_half_as_far_again_apart_and_a_voxel_may_be_overlooked():
    settings = Preprocessor(spacing_mm=(1, 1, 2), coarse_mm=(4, 5, 6), gap_mm=3.0)
    assert settings.reach_mm == settings.coarse.reach_mm == 9.5
    assert Preprocessor(spacing_mm=(1, 1, 2), coarse_mm=(4, 5, 6), gap_mm=0.0).reach_mm == 0


@pytest.mark.parametrize(
    ("gaps", "coarse", "expected"),
    [
        ([0] * 9 + [3] * 2, (4, 4, 4), 3.0),
        ([0] * 10 + [3], (4, 4, 4), 1.5),  # of eleven cases one: a slip of the hand
        ([0] * 8 + [3], (4, 4, 4), 0.0),  # too few to tell
        ([3] * 10, (), 0.0),
        ([], (4, 4, 4), 0.0),
    ],
)
def test_as_far_apart_as_in_more_than_a_tenth_of_the_cases_pieces_may_lie(gaps, coarse, expected):
    alike = {"structures": (9, 9, 9), "spacing_mm": (1.5, 1.5, 2.0), "scattered": False}
    facts = [{**alike, "gap": gap} for gap in gaps]
    facts.append({**alike, "structures": None, "gap": 9})  # without a mask
    assert planning.choose_gap(facts, coarse) == expected
    scattered = [fact | {"scattered": True} for fact in facts]
    assert planning.choose_gap(scattered, coarse) == 0


def test_where_a_first_look_is_sure_of_nothing_the_second_goes_where_something_might_be(
    preprocessor, scan
):
    class Doubtful(Bright):
        def predict_on_batch(self, batch):
            sure = super().predict_on_batch(batch)
            return 0.4 * sure + [0.6, 0]  # at most 0.4 for what is bright

    prepared = prepare_case(Doubtful(), scan, preprocessor)
    assert prepared.first is not None
    assert np.count_nonzero(prepared.place.box_shape < np.array(SHAPE)) == 3
    inside = [
        part.start <= at.start and at.stop <= part.stop
        for part, at in zip(prepared.place.box, AT, strict=True)
    ]
    assert all(inside)


def describe(sides, spacing_mm):
    return {"structures": sides, "spacing_mm": np.array(spacing_mm), "shape": (200, 200, 100)}


def test_where_fields_of_view_were_fitted_to_patients_voxels_are_taken_as_alike():
    sizes = [(20, 20, 10), (22, 18, 10), (19, 21, 11), (20, 22, 9)]
    voxels = [(1, 1, 5), (2, 2, 8), (1.5, 1.5, 6), (2.5, 2.5, 10)]
    fitted = [describe(*pair) for pair in zip(sizes, voxels, strict=True)] * 3
    assert planning.choose_assumed_spacing(fitted[:9]) == ()  # too few to tell
    assert planning.choose_assumed_spacing(fitted) == (1.75, 1.75, 7.0)
    in_mm = [describe(tuple(np.divide((40, 40, 60), voxel)), voxel) for voxel in voxels] * 3
    assert planning.choose_assumed_spacing(in_mm) == ()
    alike = [describe(size, (1, 1, 1)) for size in sizes] * 3
    assert planning.choose_assumed_spacing(alike) == ()
    assert planning.choose_assumed_spacing([{"structures": None}]) == ()


def test_structures_that_fill_the_field_of_view_are_no_sign_of_a_fitted_one():
    # A spine of 40 mm in a field of view of any size: as long as that, in rows and in slices.
    spines, voxels = [], (0.7, 0.9, 1.1, 1.3)
    for mm in voxels * 3:
        fact = describe((40 / mm, 240, 18), (mm, mm, 3.0))
        spines.append({**fact, "shape": (256, 256, 20)})
    assert planning.choose_assumed_spacing(spines) == ()
    shorter = [{**fact, "structures": (40 / 0.9, 120, 9)} for fact in spines]
    assert planning.choose_assumed_spacing(shorter) == (1.0, 1.0, 3.0)


def test_a_scan_is_resampled_as_if_it_had_the_assumed_voxels(tmp_path, write_case):
    cases = []
    for number, mm in enumerate((1.0, 2.0, 1.5, 2.5) * 3):
        image = np.random.default_rng(number).normal(100, 5, (24, 24, 24)).astype(np.float32)
        mask = np.zeros((24, 24, 24), np.uint8)
        mask[4:20, 4:20, 4 : 20 - number % 2] = 1
        cases.append(write_case(tmp_path, str(number), image, mask, (mm,) * 3))
    fitted = Preprocessor(patch=(24, 24, 24)).fit(cases)
    assert fitted.assumed_mm == fitted.spacing_mm == (1.75,) * 3
    for case in cases:
        assert fitted.transform(case)[0].shape[:3] == (24, 24, 24)
    by_hand = Preprocessor(patch=(24, 24, 24), spacing_mm=(1.75,) * 3).fit(cases)
    assert by_hand.assumed_mm == ()
    assert by_hand.transform(cases[3])[0].shape[:3] == (34, 34, 34)


@pytest.mark.parametrize(
    ("n", "spread", "dimensions", "strength"),
    [
        (60, 0.2, 3, 1.0),
        (80, 0.2, 3, 0.75),
        (200, 0.2, 3, 0.75),
        (61, 0.0, 3, 0.75),  # many are trained for longer
        (20, 0.09, 3, 0.75),
        (60, 0.0, 3, 0.5),
        (9, 0.0, 3, 1.0),  # too few to tell
        (200, 0.0, 2, 1.0),
    ],
)
def test_patches_are_changed_as_strongly_as_few_various_cases_need(n, spread, dimensions, strength):
    sizes = 30 * np.exp(spread * np.where(np.arange(n) % 2, 1, -1))
    facts = [describe((size,) * 3, (1, 1, 1)) for size in sizes]
    assert planning.choose_strength(facts, dimensions) == pytest.approx(strength, abs=2e-3)
    nothing = [{"structures": None}] * n
    assert planning.choose_strength(nothing, 2) == 1
