import numpy as np
import pytest
from volumes import SHAPE, numbered, rng, volume

from unetseg import augmentation
from unetseg.augmentation import (
    Sampling,
    add_neighbours,
    change_intensity,
    random_patch,
    random_turn,
)


def cut(x, y, patch, rng, *, centres=None, foreground=0.0, augment=True, **settings):
    """Cut one patch of a shape; settings as of `Sampling`."""
    chance = {"centres": centres, "foreground": foreground, "augment": augment}
    return random_patch(x, y, Sampling(patch, **settings), rng, **chance)


@pytest.mark.parametrize("patch", [(8, 16, 8), (8, 16, 1), (1, 18, 8), (8, 1, 9), SHAPE])
@pytest.mark.parametrize("augment", [True, False])
def test_a_patch_has_the_shape_asked_for_and_keeps_the_types(always, patch, augment):
    x, y = cut(*volume(), patch, rng(), foreground=0.5, augment=augment)
    assert (x.shape, x.dtype) == ((*patch, 2), np.float32)
    assert (y.shape, y.dtype) == (patch, np.uint8)


def test_a_patch_that_is_not_augmented_is_cut_from_the_volume():
    whole, labels = numbered()
    x, y = cut(whole, labels, (4, 6, 1), rng(3), augment=False)
    corner = np.array(np.unravel_index(int(x[0, 0, 0, 0]), SHAPE))
    numbers = [np.arange(c, c + n) for c, n in zip(corner, (4, 6, 1), strict=True)]
    np.testing.assert_array_equal(x, whole[np.ix_(*numbers)])
    np.testing.assert_array_equal(y, x[..., 0] % 251)


def test_the_same_generator_gives_the_same_patch_and_another_one_another(always):
    first, again, other = (
        cut(*volume(), (8, 8, 8), rng(seed), foreground=0.5) for seed in (1, 1, 2)
    )
    for a, b, c in zip(first, again, other, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not np.array_equal(a, c)


def test_no_global_random_state_is_read_or_changed(always):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = cut(*volume(), (8, 8, 8), rng(1))[0]
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002
    np.random.random()  # noqa: NPY002
    np.testing.assert_array_equal(cut(*volume(), (8, 8, 8), rng(1))[0], first)


def test_the_volume_itself_is_left_as_it_was(always):
    x, y = volume()
    cut(x, y, SHAPE, rng())
    change_intensity(x, rng(), Sampling((1, 1, 1)))
    for now, before in zip((x, y), volume(), strict=True):
        np.testing.assert_array_equal(now, before)


@pytest.mark.parametrize("voxel", [(0, 0, 0), (9, 17, 8), (5, 2, 4)])
@pytest.mark.parametrize("patch", [(4, 6, 4), (4, 6, 1), (1, 18, 3)])
def test_with_foreground_1_every_patch_holds_the_foreground(voxel, patch):
    x, y = np.zeros((*SHAPE, 1), np.float32), np.zeros(SHAPE, np.uint8)
    y[voxel] = 2
    held = [
        [cut(x, y, patch, rng(k), foreground=f, augment=False)[1].any() for k in range(30)]
        for f in (1.0, 0.0)
    ]
    assert all(held[0])
    assert not all(held[1])


def test_a_foreground_voxel_away_from_the_border_lies_at_the_centre():
    x, y = np.zeros((*SHAPE, 1), np.float32), np.zeros(SHAPE, np.uint8)
    y[4, 9, 5] = 1
    patch = cut(x, y, (5, 7, 3), rng(), foreground=1.0, augment=False)[1]
    assert np.argwhere(patch).tolist() == [[2, 3, 1]]


@pytest.mark.parametrize("centres", [None, np.empty((0, 3), int)])
def test_a_volume_without_foreground_still_gives_patches(centres):
    x, y = volume()
    patch = cut(x, 0 * y, (4, 6, 4), rng(), centres=centres, foreground=1.0)
    assert patch[0].shape == (4, 6, 4, 2)


def test_patches_are_centred_on_the_centres_that_are_given_and_on_each_of_them():
    x, y = numbered()
    centres = np.array([[4, 9, 5], [6, 4, 1], [7, 13, 7]])
    chance = {"centres": centres, "foreground": 1.0, "augment": False}
    middles = [int(cut(x, y, (5, 7, 3), rng(k), **chance)[0][2, 3, 1, 0]) for k in range(40)]
    # 18 x 9 and 9 voxels to the next one along x and y
    assert set(middles) == {4 * 162 + 9 * 9 + 5, 6 * 162 + 4 * 9 + 1, 7 * 162 + 13 * 9 + 7}


@pytest.mark.parametrize("share", [0.0, 1 / 3, 0.8])
def test_foreground_is_the_share_of_patches_that_are_centred_on_it(share):
    x, y = np.zeros((*SHAPE, 1), np.float32), np.zeros(SHAPE, np.uint8)
    y[4, 9, 5] = 1
    generator = rng(1)
    centred = sum(
        int(cut(x, y, (5, 7, 3), generator, foreground=share, augment=False)[1][2, 3, 1])
        for _ in range(600)
    )
    # by chance alone one of the 6 x 12 x 7 places; four standard deviations are at most 49
    assert centred == pytest.approx(600 * (share + (1 - share) / 504), abs=49 if share else 6)


@pytest.mark.parametrize("flat_axis", [None, 2])
def test_a_turned_patch_is_still_centred_on_the_foreground(geometry_only, flat_axis):
    x, y = np.zeros((*SHAPE, 1), np.float32), np.zeros(SHAPE, np.uint8)
    y[4, 9, 5] = 3
    options = {"foreground": 1.0, "spacing_mm": (1, 2, 3), "flat_axis": flat_axis}
    for seed in range(20):
        patch = cut(x, y, (5, 7, 3), rng(seed), mirror_axes=(0, 1, 2), **options)[1]
        assert patch[2, 3, 1] == 3


@pytest.mark.parametrize("axes", [(), (0,), (1, 2), [0, 1, 2]])
def test_every_other_patch_is_mirrored_along_each_axis_the_mask_with_the_image(monkeypatch, axes):
    for name in ("MOVED", "CHANGED"):  # nothing else is changed
        monkeypatch.setattr(augmentation, name, 0.0)
    x, y = numbered()
    seen = []
    for seed in range(200):
        found_x, found_y = cut(x, y, SHAPE, rng(seed), mirror_axes=axes)
        np.testing.assert_array_equal(found_y, found_x[..., 0] % 251)
        corner = np.unravel_index(int(found_x[0, 0, 0, 0]), SHAPE)
        flipped = tuple(axis for axis in range(3) if corner[axis])
        np.testing.assert_array_equal(found_x, np.flip(x, flipped))
        seen.append(flipped)
    assert {axis for flipped in seen for axis in flipped} == set(axes)
    assert len(set(seen)) == 2 ** len(axes)  # every combination
    for axis in axes:  # four standard deviations of 200 tosses of a coin are 28
        assert sum(axis in flipped for flipped in seen) == pytest.approx(100, abs=28)


def test_a_patch_that_is_not_augmented_is_not_mirrored():
    x, y = numbered()
    for seed in range(10):
        patch = cut(x, y, SHAPE, rng(seed), mirror_axes=(0, 1, 2), augment=False)
        np.testing.assert_array_equal(patch[0], x)
        np.testing.assert_array_equal(patch[1], y)


@pytest.mark.parametrize("mirror_axes", [(), (0, 1, 2)])
@pytest.mark.parametrize("patch", [(24, 20, 16), (24, 20, 1), (1, 20, 16)])
def test_image_and_mask_are_turned_together(geometry_only, patch, mirror_axes):
    i, j, k = np.indices((24, 20, 16))
    # two ellipsoids off the centre, so that a turn shows
    y = ((i - 8) ** 2 / 36 + (j - 12) ** 2 / 25 + (k - 7) ** 2 / 16 <= 1).astype(np.uint8)
    y += 2 * ((i - 19) ** 2 + (j - 5) ** 2 + (k - 9) ** 2 <= 16).astype(np.uint8)
    x = 100 * (y > 0)[..., None].astype(np.float32)
    moved = 0
    for seed in range(10):
        options = {"foreground": 1.0, "mirror_axes": mirror_axes}
        turned_x, turned_y = cut(x, y, patch, rng(seed), **options)
        assert set(np.unique(turned_y)) <= {0, 1, 2}
        in_x, in_y = turned_x[..., 0] > 50, turned_y > 0
        assert 2 * (in_x & in_y).sum() / (in_x.sum() + in_y.sum()) >= 0.93  # also shrunk
        still = cut(x, y, patch, rng(seed), foreground=1.0, augment=False)[1]
        moved += not np.array_equal(turned_y, still)
    assert moved >= 9


def test_a_turn_by_90_degrees_is_the_one_of_rot90_about_the_centre(geometry_only, monkeypatch):
    quarter = np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    monkeypatch.setattr(augmentation, "random_turn", lambda rng, sampling: quarter)
    x, y = rng().normal(size=(7, 7, 5, 1)).astype(np.float32), rng().integers(0, 9, (7, 7, 5))
    turned_x, turned_y = cut(x, y.astype(np.uint8), (7, 7, 5), rng())
    # patch offset (i, j) shows image offset (-j, i): clockwise in numpy's terms
    np.testing.assert_array_equal(turned_y, np.rot90(y, -1))
    np.testing.assert_allclose(turned_x, np.rot90(x, -1), atol=1e-5)


def turning(across=None, **settings):
    return Sampling((8, 8, 8), flat_axis=across, **settings)


@pytest.mark.parametrize("across", [None, 0, 1, 2])
def test_a_random_turn_is_a_rotation_times_one_scale_but_for_the_stretching(across, monkeypatch):
    monkeypatch.setattr(augmentation, "STRETCHING", 0)
    for seed in range(20):
        matrix = random_turn(rng(seed), turning(across))
        inner = matrix if across is None else np.delete(np.delete(matrix, across, 0), across, 1)
        product = inner.T @ inner
        scale = np.sqrt(product[0, 0])
        np.testing.assert_allclose(product, scale**2 * np.eye(len(inner)), atol=1e-12)
        assert abs(np.log(scale)) <= augmentation.SCALING
        assert np.linalg.det(inner) > 0
        assert not np.allclose(inner, scale * np.eye(len(inner)), atol=1e-4)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_the_axis_across_slices_is_untouched(across):
    matrix = random_turn(rng(), turning(across))
    unit = np.eye(3)[across]
    np.testing.assert_allclose(matrix[across], unit, atol=1e-15)
    np.testing.assert_allclose(matrix[:, across], unit, atol=1e-15)


@pytest.mark.parametrize("across", [0, 1, 2])
def test_a_turned_slice_shows_its_own_plane_only(geometry_only, across):
    plane = np.indices(SHAPE)[across]  # every voxel holds the number of its slice
    patch = tuple(1 if axis == across else 6 for axis in range(3))
    y = (plane + 1).astype(np.uint8)
    x, turned = cut(plane[..., None].astype(np.float32), y, patch, rng(2), foreground=1)
    (number,) = np.unique(turned[turned > 0])
    np.testing.assert_allclose(x[..., 0][turned > 0].max(), number - 1, atol=1e-4)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_across_the_flat_axis_keep_to_themselves(geometry_only, axis):
    plane = np.indices(SHAPE)[axis]  # every voxel holds the number of its plane
    x, y = plane[..., None].astype(np.float32), (plane + 1).astype(np.uint8)
    patch = tuple(SHAPE[axis] if k == axis else 6 for k in range(3))
    for seed in range(20):
        options = {"flat_axis": axis, "spacing_mm": (1, 2, 3)}
        found_x, found_y = cut(x, y, patch, rng(seed), **options)
        numbers = [set(np.unique(one)) - {0} for one in np.moveaxis(found_y, axis, 0)]
        assert numbers[1:-1] == [{k + 1} for k in range(1, SHAPE[axis] - 1)]
        inside = found_y > 0
        np.testing.assert_allclose(found_x[inside, 0], found_y[inside] - 1, atol=1e-4)


def test_no_plane_across_the_flat_axis_is_lost(geometry_only):
    x, y = np.ones((*SHAPE, 1), np.float32), np.ones(SHAPE, np.uint8)
    for axis, seed in np.ndindex(3, 20):
        patch = tuple(SHAPE[axis] if k == axis else 6 for k in range(3))
        turned = cut(x, y, patch, rng(seed), flat_axis=axis)[1]
        assert all(one.any() for one in np.moveaxis(turned, axis, 0))


def test_without_a_flat_axis_planes_are_tilted(geometry_only):
    plane = np.indices(SHAPE)[2]
    x, y = plane[..., None].astype(np.float32), (plane + 1).astype(np.uint8)
    patches = [cut(x, y, (6, 6, 5), rng(seed))[1] for seed in range(10)]
    planes = [np.moveaxis(turned, 2, 0) for turned in patches]
    assert any(len(np.unique(one[one > 0])) > 1 for turned in planes for one in turned)


def test_every_slice_gets_those_around_it_as_channels_and_zeros_beyond_the_ends():
    x = np.zeros((2, 4, 3, 2))
    x[..., 0] = np.arange(1, 5)[:, None]  # the number of the slice across y
    x[..., 1] = 10 * x[..., 0]
    wide = add_neighbours(x, 1, 2)
    assert wide.shape == (2, 4, 3, 10)
    rows = [[0, 0, 1, 2, 3], [0, 1, 2, 3, 4], [1, 2, 3, 4, 0], [2, 3, 4, 0, 0]]
    for number, row in enumerate(rows):
        assert (wide[:, number] == [*row, *(10 * value for value in row)]).all()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("augment", [False, True])
def test_a_patch_of_a_slice_holds_its_neighbours_moved_like_itself(axis, augment, geometry_only):
    patch = [6, 6, 6]
    patch[axis] = 1
    x, y = volume()
    x = np.concatenate([x, np.indices(y.shape)[axis][..., None]], -1, dtype=np.float32)
    whole = add_neighbours(x, axis, 1)
    for seed in range(10):
        chance = {"augment": augment, "foreground": 0.5}
        found_x, found_y = cut(x, y, tuple(patch), rng(seed), neighbours=1, **chance)
        assert found_x.shape == (*patch, whole.shape[-1])
        # the same cut from the volume that holds the neighbours everywhere
        cut_x, cut_y = cut(whole, y, tuple(patch), rng(seed), **chance)
        np.testing.assert_allclose(found_x, cut_x, atol=1e-5)
        np.testing.assert_array_equal(found_y, cut_y)


def test_with_two_planes_every_other_patch_is_cut_after_their_axes_were_swapped():
    whole, labels = numbered()
    both, seen = [whole, whole.swapaxes(0, 2)], set()
    for seed in range(20):
        chance = {"planes": (2, 0), "augment": False, "foreground": 1.0}
        centres = np.array([[1, 2, 3]])
        x, y = cut(whole, labels, (4, 6, 1), rng(seed), centres=centres, **chance)
        np.testing.assert_array_equal(y, x[..., 0] % 251)
        slices = [array[:4, :6, [n]] for array, n in zip(both, (3, 1), strict=True)]
        # the centre is voxel (1, 2, 3), swapped (3, 2, 1): patches start at 0, 0 and 1, 0
        slices[1] = both[1][1:5, :6, [1]]
        seen |= {k for k, one in enumerate(slices) if np.array_equal(x, one)}
    assert seen == {0, 1}


@pytest.mark.parametrize("value", ["noise", "constant"])
def test_changed_intensities_keep_shape_and_type_and_stay_finite(always, value):
    x = volume()[0] if value == "noise" else np.full((8, 8, 8, 1), 3, np.float32)
    for seed in range(20):
        changed = change_intensity(x, rng(seed), Sampling((1, 1, 1)))
        assert (changed.shape, changed.dtype) == (x.shape, np.float32)
        assert np.isfinite(changed).all()
        assert not np.array_equal(changed, x)


def test_without_a_draw_intensities_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(augmentation, "CHANGED", 0.0)
    np.testing.assert_array_equal(
        change_intensity(volume()[0], rng(), Sampling((1, 1, 1))), volume()[0]
    )


def test_axes_are_stretched_by_a_tenth_at_most(monkeypatch):
    monkeypatch.setattr(augmentation, "SCALING", 0)
    still = turning(rotation_deg=(0, 0, 0))
    drawn = np.array([np.diag(random_turn(rng(seed), still)) for seed in range(50)])
    assert abs(np.log(drawn)).max() <= augmentation.STRETCHING
    assert abs(np.log(drawn)).max(axis=0).min() > 0.05
    assert not np.allclose(drawn[:, 0], drawn[:, 1])


def test_a_turn_keeps_distances_in_mm_on_an_anisotropic_grid(monkeypatch):
    monkeypatch.setattr(augmentation, "STRETCHING", 0)
    spacing = np.array([1.0, 2.0, 4.0])
    matrix = random_turn(rng(3), turning(spacing_mm=tuple(spacing)))
    # an offset of (4, 0, 0), (0, 2, 0) or (0, 0, 1) voxels is 4 mm long, whatever its direction
    offsets = np.diag([4, 2, 1]) @ matrix.T
    lengths = np.linalg.norm(offsets * spacing, axis=1)
    np.testing.assert_allclose(lengths, lengths[0], rtol=1e-12)
    assert abs(np.log(lengths[0] / 4)) <= augmentation.SCALING


@pytest.mark.parametrize(("most", "strength"), [(90, 1), (90, 0.5), (180, 1)])
def test_slices_are_turned_as_far_as_is_asked_to_both_sides(most, strength):
    turned = turning(2, rotation_deg=(0, 0, most), strength=strength)
    matrices = [random_turn(rng(seed), turned) for seed in range(200)]
    angles = np.degrees([np.arctan2(matrix[1, 0], matrix[0, 0]) for matrix in matrices])
    limit = most * strength + 3  # stretching moves the direction of an axis a little
    assert 0.9 * limit < max(angles) <= limit
    assert -0.9 * limit > min(angles) >= -limit


def test_half_the_strength_turns_scales_and_changes_half_as_much_and_as_often():
    for seed in range(20):
        drawn = [random_turn(rng(seed), turning(strength=s)) for s in (1.0, 0.5)]
        volumes = [np.log(np.linalg.det(matrix)) for matrix in drawn]
        assert volumes[1] == pytest.approx(volumes[0] / 2)
        cosines = [np.trace(m) / np.linalg.det(m) ** (1 / 3) for m in drawn]
        assert cosines[1] >= cosines[0] - 0.05  # a smaller angle, but for the stretching
    x = volume()[0]
    counts = {}
    for strength in (1.0, 0.5, 0.0):
        changed = [
            not np.array_equal(change_intensity(x, rng(k), turning(strength=strength)), x)
            for k in range(300)
        ]
        counts[strength] = np.mean(changed)
    assert counts[1.0] == pytest.approx(1 - 0.7**6, abs=0.06)
    assert counts[0.5] == pytest.approx(1 - 0.85**6, abs=0.08)
    assert counts[0.0] == 0
