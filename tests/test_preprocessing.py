import json
from dataclasses import FrozenInstanceError, asdict, fields, replace
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from unetseg import nifti, planning, preprocessing, rules
from unetseg.cases import Case
from unetseg.preprocessing import Preprocessor
from unetseg.run import devices


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """Return a function that sets the hardware; at first a processor with much memory."""

    def pretend(memory_gb=64.0, gpu=None, gpu_memory_gb=None):
        hardware = {"memory_gb": memory_gb, "gpu": gpu, "gpu_memory_gb": gpu_memory_gb}
        monkeypatch.setattr(preprocessing, "describe_hardware", lambda: hardware)

    pretend()
    return pretend


def noise(shape, seed=0):
    return np.random.default_rng(seed).uniform(1, 100, shape).astype(np.float32)


def boxes(shape, labels):
    mask = np.zeros(shape, np.uint8)
    for k, label in enumerate(labels):
        mask[2 * k : 2 * k + 2, 3:7, 1:4] = label
    return mask


def ramp(shape):
    # compresses well, so that large files are fast
    return np.broadcast_to(np.arange(1, shape[2] + 1, dtype=np.uint8), shape)


def ball(shape, spacing_mm, centre_mm, radius_mm):
    # mm from the edge of the field of view to the voxel centres
    mm = [
        (np.arange(n) + 0.5) * s - c for n, s, c in zip(shape, spacing_mm, centre_mm, strict=True)
    ]
    return mm[0][:, None, None] ** 2 + mm[1][:, None] ** 2 + mm[2] ** 2 <= radius_mm**2


def overlap(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_fit_takes_the_median_spacing_and_the_median_extent_for_the_patch(tmp_path, write_case):
    cases = [
        write_case(tmp_path, f"c{k}", noise((10, 18, 9)), boxes((10, 18, 9), (1,)), spacing)
        for k, spacing in enumerate([(1, 2, 3), (1.2, 2, 3), (2, 2, 5)])
    ]
    fitted = Preprocessor().fit(cases)
    # 12 mm / 1.2 mm = 10, an even number; 36 / 2 = 18 -> 20, a multiple of 4; 27 / 3 = 9 -> 10
    assert fitted.spacing_mm == (1.2, 2.0, 3.0)
    assert fitted.patch == (10, 20, 10)
    assert fitted.input_shape == (10, 20, 10, 1)


@pytest.mark.parametrize(
    ("size_mm", "fitted"),
    [(0.05, 0.05), (0.0004, 0.0004), (0.00043, 0.00043), (4e-5, 4e-5), (0.546875, 0.5469)],
)
def test_the_spacing_of_small_voxels_is_kept(size_mm, fitted, tmp_path, write_case):
    shape, spacing = (10, 18, 9), (size_mm, size_mm, 2 * size_mm)
    case = write_case(tmp_path, "a", noise(shape), boxes(shape, (1,)), spacing)
    found = Preprocessor().fit([case])
    assert found.spacing_mm == pytest.approx((fitted, fitted, 2 * fitted), rel=1e-4, abs=0)
    assert found.transform(case)[0].shape[:3] == found.patch  # no voxel more or less
    found.save(tmp_path / "preprocessor.json")
    assert Preprocessor.load(tmp_path / "preprocessor.json") == found


def stacks(folder, write_case, shape, spacing_z):
    return [
        write_case(folder, f"c{k}", ramp(shape), spacing_mm=(1, 1, z))
        for k, z in enumerate(spacing_z)
    ]


@pytest.mark.parametrize(
    ("shape", "spacing_z", "expected"),
    [
        # of 11 numbers the 10th percentile is the second smallest
        ((24, 24, 8), [6, 3, 4, 5, 5, 5, 5, 5, 5, 5, 3.6], 3.6),
        # never finer than the other axes
        ((24, 24, 8), [0.5, 0.5, 5, 5, 5, 5, 5, 5, 5, 5, 5], 1),
        # more than a third as many voxels as along the other axes: no axis of low resolution
        ((24, 24, 9), [6, 3, 4, 5, 5, 5, 5, 5, 5, 5, 3.6], 5),
        # less than three times coarser
        ((24, 24, 8), [2.9, 2.9, 2.9, 2.9, 1, 1, 6], 2.9),
    ],
)
def test_along_an_axis_of_low_resolution_the_spacing_is_the_10th_percentile(
    tmp_path, write_case, shape, spacing_z, expected
):
    cases = stacks(tmp_path, write_case, shape, spacing_z)
    assert Preprocessor().fit(cases).spacing_mm == pytest.approx((1, 1, expected))


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "patch"),
    [
        # crops: at least 4 voxels remain of a side after all its halvings, at most three
        ((36, 50, 34), (1, 1, 1), (40, 56, 40)),
        ((32, 31, 16), (1, 1, 1), (32, 32, 16)),
        ((17, 15, 8), (1, 1, 1), (20, 16, 8)),
        ((9, 7, 4), (1, 1, 1), (10, 7, 4)),
        # stacks of 20 slices
        ((62, 58, 20), (0.6, 0.6, 3.6), (64, 64, 20)),
        # 72 x 88 x 84 mm: y loses 8 voxels, then z 4, though it has the fewest
        ((72, 88, 20), (1, 1, 4.2), (72, 80, 16)),
    ],
)
def test_the_patch_is_the_shape_rounded_up_to_what_can_be_halved_and_cut_to_100_000_voxels(
    tmp_path, write_case, shape, spacing_mm, patch
):
    case = write_case(tmp_path, "a", ramp(shape), spacing_mm=spacing_mm)
    fitted = Preprocessor().fit([case])
    assert fitted.patch == patch
    assert fitted.spacing_mm == pytest.approx(spacing_mm)
    assert fitted.dimensions == 3


@pytest.fixture(scope="module")
def head(tmp_path_factory, write_case):
    """A whole head at 1 mm."""
    image = ramp((182, 218, 182))
    return write_case(tmp_path_factory.mktemp("head"), "a", image, spacing_mm=(1, 1, 1))


def test_a_gpu_that_the_backend_cannot_use_plays_no_part(head, machine, monkeypatch):
    monkeypatch.setattr(devices, "computes_on_gpu", lambda: False)
    machine(gpu="small", gpu_memory_gb=0.3)
    assert sorted(Preprocessor().fit([head]).patch) == [40, 48, 48]


@pytest.mark.parametrize(
    ("hardware", "sides"),
    [
        ({}, [40, 48, 48]),  # 48 x 48 x 48 are more than 100,000
        ({"memory_gb": 0.3}, [32, 32, 40]),  # half of it is 50,000 times 3,000 bytes
        ({"gpu": "T4", "gpu_memory_gb": 16.1}, [40, 48, 48]),  # the plan that was measured
        # main memory plays no part
        ({"gpu": "T4", "gpu_memory_gb": 16.1, "memory_gb": 0.3}, [40, 48, 48]),
        ({"gpu": "small", "gpu_memory_gb": 0.3}, [32, 32, 40]),
    ],
)
def test_a_whole_head_is_cut_to_a_cube_that_the_hardware_bears(
    head, machine, monkeypatch, hardware, sides
):
    monkeypatch.setattr(planning, "BYTES_PER_VOXEL", 3000)
    monkeypatch.setattr(devices, "computes_on_gpu", lambda: True)
    machine(**hardware)
    assert sorted(Preprocessor().fit([head]).patch) == sides


@pytest.mark.parametrize(
    ("shape", "spacing_mm", "patch"),
    [
        ((24, 20, 7), (1, 1, 3), (24, 20, 1)),  # few thick slices
        ((24, 20, 8), (1, 1, 3), (24, 20, 8)),  # enough of them
        ((24, 20, 7), (1, 1, 2.9), (24, 20, 7)),  # not thick
        ((7, 20, 24), (1, 1, 1), (7, 20, 24)),
        ((5, 20, 24), (4, 1, 1), (1, 20, 24)),  # sagittal
        ((20, 6, 24), (1, 4, 1), (20, 1, 24)),  # coronal
        ((24, 20, 1), (1, 1, 1), (24, 20, 1)),
        ((24, 1, 20), (1, 1, 5), (24, 1, 20)),  # a slice lies across its axis, whatever the voxels
        ((400, 250, 4), (1, 1, 5), (384, 256, 1)),  # 392 x 256 are more than 100,000
    ],
)
def test_few_thick_slices_or_a_single_one_make_a_2d_network(
    tmp_path, write_case, shape, spacing_mm, patch
):
    case = write_case(tmp_path, "a", ramp(shape), spacing_mm=spacing_mm)
    fitted = Preprocessor().fit([case])
    assert fitted.patch == patch
    assert fitted.dimensions == (2 if 1 in patch else 3)
    neighbours = 2 if 1 in patch and 1 not in shape else 0
    assert fitted.neighbours == neighbours
    assert fitted.input_shape == (*(n for n in patch if n > 1), 1 + 2 * neighbours)


@pytest.mark.parametrize(("given", "patch"), [(3, (24, 20, 5)), (2, (24, 20, 1))])
def test_the_users_dimensions_stand(tmp_path, write_case, given, patch):
    case = write_case(tmp_path, "a", ramp((24, 20, 5)), spacing_mm=(1, 1, 4))
    fitted = Preprocessor(dimensions=given).fit([case])
    assert (fitted.dimensions, fitted.patch) == (given, patch)


@pytest.mark.parametrize(("patch", "dimensions"), [((16, 16, 8), 3), ((1, 16, 16), 2)])
def test_dimensions_follow_from_the_users_patch(tmp_path, write_case, patch, dimensions):
    # of their own these few thick slices would be 2-D, across z
    case = write_case(tmp_path, "a", ramp((24, 20, 5)), spacing_mm=(1, 1, 4))
    fitted = Preprocessor(patch=patch).fit([case])
    assert (fitted.patch, fitted.dimensions) == (patch, dimensions)


@pytest.mark.parametrize(
    ("slices", "expected"),
    # one voxel among n - 1 of another value lies sqrt(n - 1) standard deviations from the mean:
    # for 360 voxels 18.9, for 540 23.2
    [([2], "zscore"), ([3], "percentile"), ([2, 2, 3], "zscore"), ([2, 3, 3], "percentile")],
)
def test_percentiles_are_chosen_if_the_median_case_has_voxels_above_20_deviations(
    tmp_path, write_case, slices, expected
):
    cases = []
    for k, n in enumerate(slices):
        image = np.full((10, 18, 2 * n), 7, np.int16)
        image[..., n:] = 0  # does not count
        image[3, 4, 0] = 3000
        cases.append(write_case(tmp_path, f"c{k}", image))
    assert Preprocessor().fit(cases).normalisation == expected


def test_the_outliers_of_one_channel_are_not_hidden_by_another(tmp_path, write_case):
    image = noise((10, 18, 9, 2)) * (1, 50)
    image[3, 4, 5, 0] = 3000  # 37 standard deviations of the first channel
    case = write_case(tmp_path, "a", image.astype(np.float32))
    assert Preprocessor().fit([case]).normalisation == "percentile"


def strips(shift, swapped=False, length=50):
    # Two labels of length x 4 x 4 voxels in front of each other, one further right by some
    # voxels; their centres lie half as far from that of both.
    mask = np.zeros((60, 12, 4), np.uint8)
    mask[:length, 1:5] = 2 if swapped else 1
    mask[shift : shift + length, 5:9] = 1 if swapped else 2
    return mask


LEFT_AND_RIGHT = np.zeros((60, 12, 4), np.uint8)
LEFT_AND_RIGHT[4:10], LEFT_AND_RIGHT[50:56] = 17, 53
LESION = np.zeros((60, 12, 4), np.uint8)
LESION[50:56] = 1


@pytest.mark.parametrize(
    ("masks", "expected"),
    [
        ([strips(0)], (0,)),
        ([strips(1)], (0,)),  # 0.5 of 51 voxels
        ([strips(3)], ()),  # 1.5 of 53
        ([strips(1, length=20)], ()),  # 0.5 of 21, whatever the size of the image
        ([strips(9), strips(9)], ()),
        ([strips(9), strips(9, swapped=True)], (0,)),  # on either side as often
        ([LEFT_AND_RIGHT], ()),
        ([LEFT_AND_RIGHT, 0 * LEFT_AND_RIGHT], ()),
        ([LESION], (0,)),  # a label of its own has no other side
        ([0 * LESION], ()),
        ([None], ()),
        ([None, strips(0)], (0,)),
    ],
)
@pytest.mark.parametrize("codes", ["RAS", "PSL"])
def test_patches_are_mirrored_left_to_right_unless_a_label_has_its_side(
    tmp_path, write_case, masks, expected, codes
):
    cases = [
        write_case(tmp_path, f"c{k}", ramp((60, 12, 4)), mask, (1, 1, 1), codes)
        for k, mask in enumerate(masks)
    ]
    assert Preprocessor().fit(cases).mirror_axes == expected


@pytest.mark.parametrize(("shape", "spacing_x"), [((1, 20, 24), 1), ((5, 20, 24), 4)])
def test_slices_are_not_mirrored_across_themselves(tmp_path, write_case, shape, spacing_x):
    mask = np.zeros(shape, np.uint8)
    mask[:, 5:9, 6:12] = 1
    fitted = Preprocessor().fit([write_case(tmp_path, "a", ramp(shape), mask, (spacing_x, 1, 1))])
    assert fitted.patch == (1, 20, 24)
    assert fitted.mirror_axes == ()


@pytest.mark.parametrize(
    ("spacing_mm", "patch", "axis"),
    [
        ((1, 1, 1), (8, 8, 8), None),
        ((0.6, 0.6, 3.6), (8, 8, 8), 2),
        ((4, 1, 1), (8, 8, 8), 0),
        ((1, 3, 1), (8, 8, 8), 1),
        ((1, 1, 2.9), (8, 8, 8), None),
        ((1, 4, 4), (8, 8, 8), None),  # two coarse axes: none is of lower resolution than most
        ((1, 1, 1), (1, 8, 8), 0),
        ((1, 1, 5), (8, 1, 8), 1),  # slices, whatever the voxels
    ],
)
def test_the_flat_axis_lies_across_slices_or_along_low_resolution(spacing_mm, patch, axis):
    assert Preprocessor(spacing_mm, patch).flat_axis == axis


def test_fit_lists_the_labels_of_all_masks_and_transform_numbers_them(tmp_path, write_case):
    shape = (10, 18, 9)
    a = write_case(tmp_path, "a", noise(shape), boxes(shape, (4, 1)))
    b = write_case(tmp_path, "b", noise(shape), boxes(shape, (2,)))
    c = write_case(tmp_path, "c", noise(shape))
    fitted = Preprocessor().fit([a, b, c])
    assert list(fitted.labels) == [1, 2, 4]
    assert fitted.num_classes == 4
    y = fitted.transform(a)[1]
    assert np.bincount(y.ravel(), minlength=4)[1:].tolist() == [24, 0, 24]  # boxes of 2 x 4 x 3


@pytest.mark.parametrize(
    ("image", "channels"),
    [
        (noise((10, 18, 9)), 1),
        (noise((10, 18, 9, 2)), 2),
        ([noise((10, 18, 9), k) for k in range(3)], 3),
        ([noise((10, 18, 9))], 1),
    ],
)
def test_channels_come_from_a_4d_file_or_from_several_files(tmp_path, write_case, image, channels):
    case = write_case(tmp_path, "a", image, boxes((10, 18, 9), (1,)))
    fitted = Preprocessor(normalisation="none").fit([case])
    x, _ = fitted.transform(case)
    assert fitted.channels == channels
    assert fitted.input_shape == (10, 20, 10, channels)
    expected = np.stack(image, axis=-1) if isinstance(image, list) else image.reshape(10, 18, 9, -1)
    # padded by 0, 2, 1 voxels, half of them (0, 1, 0) before the image
    np.testing.assert_array_equal(x[:, 1:19, :9], expected)


@pytest.mark.parametrize(
    ("spacing_mm", "axis"), [((1, 2, 3), 2), ((3, 2, 1), 0), ((1, 4, 1), 1), ((2, 2, 2), 2)]
)
def test_slices_lie_across_the_axis_of_the_largest_spacing(tmp_path, write_case, spacing_mm, axis):
    case = write_case(tmp_path, "a", noise((10, 18, 9, 2)), spacing_mm=spacing_mm)
    fitted = Preprocessor(labels={1: "a"}, dimensions=2).fit([case])
    expected = [10, 20, 10]
    expected[axis] = 1
    assert fitted.patch == tuple(expected)
    assert fitted.input_shape == (*(n for n in expected if n > 1), 10)  # 2 channels of 5 slices


def test_scans_of_one_slice_make_a_2d_network(tmp_path, write_case):
    case = write_case(tmp_path, "a", noise((10, 18, 1)), codes="SAR")
    assert Preprocessor(labels={1: "a"}).fit([case]).input_shape == (10, 20, 1)


@pytest.mark.parametrize(
    ("spacing_mm", "patch", "planes"),
    [
        ((1, 1, 1), None, (2, 0)),  # 20 x 32 x 24: of 20 and 32 the former is nearer to 24
        ((1, 1.5, 1.5), None, (2, 1)),  # x is not as long within a fifth
        ((1, 1, 3), None, (2,)),
        ((1, 1, 1), (1, 32, 24), (0, 2)),
        ((1, 1, 1), (16, 16, 16), ()),
    ],
)
def test_slices_lie_across_two_axes_of_like_voxels(tmp_path, write_case, spacing_mm, patch, planes):
    case = write_case(tmp_path, "a", noise((20, 32, 24)), spacing_mm=spacing_mm)
    settings = {"patch": patch} if patch else {"dimensions": 2}
    fitted = Preprocessor(labels={1: "a"}, **settings).fit([case])
    assert fitted.planes == planes


def test_a_case_holds_slices_of_the_patchs_size_across_both_axes(tmp_path, write_case):
    case = write_case(tmp_path, "a", noise((10, 18, 9)), spacing_mm=(1, 1, 1))
    fitted = Preprocessor(labels={1: "a"}, patch=(10, 20, 1), planes=(2, 1)).fit([case])
    assert fitted.transform(case)[0].shape == (10, 20, 20, 1)  # swapped (10, 20, 20)


def test_the_users_planes_tell_where_the_slices_lie(tmp_path, write_case):
    case = write_case(tmp_path, "a", noise((10, 18, 9)))
    fitted = Preprocessor(labels={1: "a"}, dimensions=2, planes=(0,)).fit([case])
    assert (fitted.patch, fitted.planes) == ((1, 20, 10), (0,))


@pytest.mark.parametrize("setting", [{"planes": (2,)}, {"neighbours": 1}])
def test_settings_of_slices_make_a_2d_network(tmp_path, write_case, setting):
    case = write_case(tmp_path, "a", noise((10, 18, 9)), spacing_mm=(1, 1, 1))
    fitted = Preprocessor(labels={1: "a"}, **setting).fit([case])
    assert (fitted.dimensions, fitted.patch) == (2, (10, 20, 1))


def test_settings_saved_before_there_were_planes_mean_none(tmp_path):
    path = tmp_path / "preprocessor.json"
    GIVEN.save(path)
    saved = json.loads(path.read_text())
    path.write_text(
        json.dumps({k: v for k, v in saved.items() if k not in ("planes", "neighbours")})
    )
    assert Preprocessor.load(path) == GIVEN


GIVEN = Preprocessor(
    (1, 2, 2),
    (8, 16, 8),
    {1: "a", 7: "b"},
    1,
    "none",
    3,
    (1, 2),
    0,
    (),
    "zero",
    0.25,
    (4, 4, 4),
    0.5,
    (2, 2, 2),
    0.75,
    9,
    {"all": (1,)},
    30.0,
    (0, 0, 90),
)


@pytest.mark.parametrize("name", [field.name for field in fields(Preprocessor)])
def test_an_explicit_setting_is_kept_and_the_others_are_chosen(tmp_path, write_case, name):
    shape = (24, 20, 16)
    case = write_case(tmp_path, "a", noise(shape), boxes(shape, (1,)), (1.5, 1.5, 1.5))
    given = getattr(GIVEN, name)
    fitted = Preprocessor(**{name: given}).fit([case])
    assert getattr(fitted, name) == given
    assert None not in [getattr(fitted, field.name) for field in fields(fitted)]
    takes = name in ("spacing_mm", "assumed_mm")
    assert fitted.spacing_mm == (given if takes else (1.5, 1.5, 1.5))
    assert list(fitted.labels) == ([1, 7] if name == "labels" else [1])


def test_with_every_setting_given_no_file_is_read():
    given = replace(GIVEN)
    assert given.fit([Case("a", "nowhere.nii.gz", "nowhere.nii.gz")]) is given
    assert given == GIVEN


def test_the_users_patch_is_not_cut(tmp_path, write_case, machine):
    machine(memory_gb=0.1)
    case = write_case(tmp_path, "a", noise((10, 18, 9)))
    assert Preprocessor(patch=(64, 64, 64)).fit([case]).patch == (64, 64, 64)


def test_the_patch_follows_from_the_users_spacing(tmp_path, write_case):
    # 36 x 30 x 36 mm
    case = write_case(tmp_path, "a", ramp((36, 30, 9)), spacing_mm=(1, 1, 4))
    assert Preprocessor(spacing_mm=(1, 1, 1)).fit([case]).patch == (40, 32, 40)


def test_scans_thinner_than_the_users_voxels_make_slices(tmp_path, write_case):
    case = write_case(tmp_path, "a", ramp((60, 60, 3)), spacing_mm=(1, 1, 1))
    assert Preprocessor(spacing_mm=(10, 10, 10)).fit([case]).patch == (6, 6, 1)


@pytest.mark.parametrize("patch", [(8, 8, 8), (16, 24, 8), (32, 8, 1)])
def test_transform_gives_float32_and_uint8_at_least_as_large_as_the_patch(
    tmp_path, write_case, patch
):
    case = write_case(tmp_path, "a", noise((10, 18, 9)), boxes((10, 18, 9), (1,)))
    x, y = Preprocessor(patch=patch).fit([case]).transform(case)
    assert (x.dtype, y.dtype) == (np.float32, np.uint8)
    assert y.shape == tuple(np.maximum(patch, (10, 18, 9)))
    assert x.shape == (*y.shape, 1)


def test_a_case_without_a_mask_gives_no_y(tmp_path, write_case):
    case = write_case(tmp_path, "a", noise((10, 18, 9)))
    assert Preprocessor(labels={1: "a"}).fit([case]).transform(case)[1] is None


@pytest.fixture
def hollow(tmp_path, write_case):
    """Two channels on different scales, with voxels of zero inside."""
    image = noise((10, 18, 9, 2)) * (1, 50) + (0, 1000)
    image[3:6, 4:9, 2:5] = 0
    return write_case(tmp_path, "a", image.astype(np.float32)), image[..., 0] != 0


def test_zscore_gives_mean_0_and_deviation_1_over_non_zero_voxels_per_channel(hollow):
    case, inside = hollow
    preprocessor = Preprocessor(patch=(8, 8, 8), labels={1: "a"}, empty_space="zero")
    x, _ = preprocessor.fit([case]).transform(case)
    np.testing.assert_allclose(x[inside].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(x[inside].std(axis=0), 1, atol=1e-4)


def test_percentile_brings_percentiles_1_and_99_of_non_zero_voxels_to_0_and_1(hollow):
    case, inside = hollow
    settings = {"normalisation": "percentile", "empty_space": "zero"}
    preprocessor = Preprocessor(patch=(8, 8, 8), labels={1: "a"}, **settings)
    x, _ = preprocessor.fit([case]).transform(case)
    ordered = np.sort(x[inside], axis=0)
    n = len(ordered) - 1
    for share, value in ((0.01, 0), (0.99, 1)):
        assert (ordered[int(share * n)] <= value + 1e-4).all()
        assert (ordered[int(share * n) + 1] >= value - 1e-4).all()


def framed(shape, background, seed=0, margin=3):
    """Noise about 100 in the middle of a field of view that one value fills."""
    image = np.full(shape, background, np.float32)
    middle = tuple(slice(margin, n - margin) if n > 2 * margin else slice(None) for n in shape[:3])
    image[middle] = np.random.default_rng(seed).normal(100, 20, image[middle].shape)
    return image, middle


SHAPES = [(20, 18, 16), (20, 18, 1), (20, 18, 16, 2)]


@pytest.mark.parametrize("normalisation", ["zscore", "percentile"])
@pytest.mark.parametrize("shape", SHAPES, ids=["3-D", "one slice", "two channels"])
@pytest.mark.parametrize("background", [0, -1, -1024, 250, None])
@pytest.mark.parametrize(("factor", "offset"), [(1, 1000), (1, -100), (0.01, 0), (37, -5)])
def test_a_scan_in_another_unit_gives_the_same_input(
    tmp_path, write_case, normalisation, shape, background, factor, offset
):
    image = noise(shape) if background is None else framed(shape, background)[0]
    image[..., 8:10, 8:10, 0] = image.min()  # a hole
    image = image.astype(np.float32)
    usual = write_case(tmp_path, "a", image)
    other = write_case(tmp_path, "b", (image * factor + offset).astype(np.float32))
    fitted = Preprocessor(labels={1: "a"}, normalisation=normalisation).fit([usual])
    assert fitted.fit([other]) == fitted
    np.testing.assert_allclose(fitted.transform(other)[0], fitted.transform(usual)[0], atol=2e-3)


@pytest.mark.parametrize("background", [0, -1, -1024, 500])
def test_what_fills_the_field_of_view_takes_no_part_in_the_box_and_the_normalisation(
    tmp_path, write_case, background
):
    image, middle = framed((20, 18, 16), background)
    case = write_case(tmp_path, "a", image)
    preprocessor = Preprocessor(patch=(16, 16, 12), labels={1: "a"})
    x, _ = preprocessor.fit([case]).transform(case)
    body = image[middle]  # 14 x 12 x 10 voxels, which padding by 1, 2 and 1 brings to the patch
    np.testing.assert_allclose(x[1:-1, 2:-2, 1:-1, 0], (body - body.mean()) / body.std(), atol=1e-4)
    padding = np.ones(x.shape[:3], bool)
    padding[1:-1, 2:-2, 1:-1] = False
    assert (x[padding] == 0).all()  # the mean


@pytest.mark.parametrize("normalisation", ["zscore", "percentile"])
@pytest.mark.parametrize("background", [0, -1, -1000])
@pytest.mark.parametrize("signal", ["rare", "one value", "two values"])
def test_what_the_network_sees_stays_within_sane_numbers(
    tmp_path, write_case, normalisation, background, signal
):
    image = np.full((40, 40, 40), background, np.float32)
    body = image[18:22, 18:22, 18:22]
    body[:] = 1e6 if signal == "one value" else 500
    if signal == "two values":
        body[0, 0, 0] = 501  # of 64, so percentiles 1 and 99 may be equal
    if signal == "rare":
        body[:] = np.random.default_rng(0).normal(500, 30, body.shape)
    case = write_case(tmp_path, "a", image)
    preprocessor = Preprocessor(labels={1: "a"}, normalisation=normalisation)
    x, _ = preprocessor.fit([case]).transform(case)
    assert np.isfinite(x).all()
    assert np.abs(x).max() < 2e3  # -1000 lies 1500 units of at most 1 below 500


def test_many_voxels_in_several_channels_are_summed_exactly(tmp_path, write_case):
    # float32 sums of 2 million numbers near 1000 are off by several units, channel by channel
    image = np.random.default_rng(0).normal(1000, 5, (128, 128, 128, 2)).astype(np.float32)
    case = write_case(tmp_path, "a", image)
    preprocessor = Preprocessor((1, 2, 3), (64, 64, 64), {1: "a"}, 2, "zscore", 3, (), 0, ())
    x, _ = preprocessor.transform(case)
    np.testing.assert_allclose(x.mean(axis=(0, 1, 2), dtype=float), 0, atol=0.01)
    np.testing.assert_allclose(x.std(axis=(0, 1, 2), dtype=float), 1, atol=0.01)


def test_settings_of_version_0_1_leave_zeros_out_as_it_did(tmp_path):
    old = asdict(GIVEN)
    del old["empty_space"]
    (tmp_path / "preprocessor.json").write_text(json.dumps(old))
    assert Preprocessor.load(tmp_path / "preprocessor.json").empty_space == "zero"


@pytest.mark.parametrize("normalisation", rules.NORMALISATIONS)
@pytest.mark.parametrize("value", [0, 5])
def test_an_image_of_one_value_stays_finite(tmp_path, write_case, normalisation, value):
    case = write_case(tmp_path, "a", np.full((10, 18, 9), value, np.int16))
    preprocessor = Preprocessor(labels={1: "a"}, normalisation=normalisation).fit([case])
    assert np.isfinite(preprocessor.transform(case)[0]).all()


# Three letters, one of L/R, P/A and I/S each, in any order: 6 orders x 8 signs.
AXIS_CODES = ["".join(c) for ends in product("LR", "PA", "IS") for c in permutations(ends)]
OBLIQUE = Rotation.from_euler("xyz", (12, -7, 10), degrees=True).as_matrix()


@pytest.mark.parametrize("turn", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize("codes", AXIS_CODES)
def test_whatever_the_storage_the_network_sees_the_same_and_left_stays_left(
    tmp_path, write_case, codes, turn
):
    image, mask = np.zeros((10, 18, 9), np.float32), np.zeros((10, 18, 9), np.uint8)
    image[1:9, 5:15, 2:6] = noise((8, 10, 4))
    mask[1:3, 6:9, 2:5], mask[4:5, 7:12, 3:6], mask[6:9, 10:15, 3:6] = 200, 7, 3
    ras, case = (write_case(tmp_path, c, image, mask, codes=c, turn=turn) for c in ("RAS", codes))
    preprocessor = Preprocessor(spacing_mm=(1, 2, 3), patch=(12, 8, 8)).fit([ras])
    x, y = preprocessor.transform(case)
    for turned, straight in zip((x, y), preprocessor.transform(ras), strict=True):
        np.testing.assert_array_equal(turned, straight)
    assert y.shape == (12, 10, 8)  # of 8 x 10 x 4 voxels that are not zero, padded to the patch
    left_to_right = [np.argwhere(y == k)[:, 0].mean() for k in (3, 2, 1)]  # classes of 200, 7, 3
    assert left_to_right == [2.5, 5, 8]  # the middles 0.5, 3, 6 of the crop after a padding of 2

    labels = preprocessor.inverse_transform(preprocessor.encode(y), case)
    nifti.save_mask(tmp_path / "prediction.nii.gz", labels, case.image)
    found, affine = nifti.load_mask(tmp_path / "prediction.nii.gz")
    np.testing.assert_array_equal(found, mask)
    np.testing.assert_allclose(affine, nifti.load_image(ras.image)[1], atol=1e-4)
    stored, drawn = nib.load(tmp_path / "prediction.nii.gz"), nib.load(case.mask)
    np.testing.assert_array_equal(stored.dataobj, drawn.dataobj)
    np.testing.assert_array_equal(stored.affine, drawn.affine)


@pytest.mark.parametrize("codes", ["LPS", "PIR", "ASL", "SRA", "IPL", "RSA"])
def test_the_storage_orientation_makes_no_difference_when_resampled(tmp_path, write_case, codes):
    image, mask = noise((10, 18, 9)), boxes((10, 18, 9), (1, 4))
    image[8:] = 0
    ras, case = (
        write_case(tmp_path, c, image, mask, codes=c, turn=OBLIQUE) for c in ("RAS", codes)
    )
    preprocessor = Preprocessor(spacing_mm=(1.5, 1.5, 2)).fit([ras])
    (x, y), (x_turned, y_turned) = map(preprocessor.transform, (ras, case))
    np.testing.assert_array_equal(y_turned, y)
    np.testing.assert_array_equal(x_turned, x)
    assert len(np.unique(y)) == 3


def bean(spacing_mm):
    """A bent ellipsoid of 24 x 40 x 28 mm in a field of view of 48 mm, cut in two at y = 4 mm."""
    mm = [(np.arange(round(48 / s)) + 0.5) * s - 24 for s in spacing_mm]
    x, y, z = np.meshgrid(*mm, indexing="ij")
    inside = ((x - y**2 / 60) / 12) ** 2 + (y / 20) ** 2 + (z / 14) ** 2 <= 1
    return np.where(inside, np.where(y < 4, 3, 7), 0).astype(np.uint8)


FINE = (0.99, 0.02)  # least Dice and largest change of volume if no axis gets coarser


@pytest.mark.parametrize("turn", [np.eye(3), OBLIQUE], ids=["straight", "oblique"])
@pytest.mark.parametrize(
    ("native_mm", "network_mm", "bounds"),
    [
        ((1, 1, 1), (1, 1, 1), FINE),
        ((1, 1, 1), (0.7, 0.7, 0.7), FINE),
        ((0.7, 0.7, 3), (0.7, 0.7, 0.7), FINE),
        ((1, 1, 3), (0.7, 0.7, 3), FINE),
        ((1.5, 0.8, 1.2), (1.1, 0.7, 0.9), FINE),
        # What is lost where an axis gets coarser, as measured.
        ((0.7, 0.7, 3), (1, 1, 1), (0.97, 0.04)),
        ((1, 1, 1), (0.7, 0.7, 3), (0.95, 0.02)),
        ((1, 1, 1), (2, 2, 2), (0.95, 0.05)),
        ((1, 1, 1), (1.5, 1.5, 1.5), (0.92, 0.14)),
    ],
)
def test_a_smooth_structure_survives_the_way_to_another_grid_and_back(
    tmp_path, write_case, native_mm, network_mm, bounds, turn
):
    mask = bean(native_mm)
    image = (1 + mask).astype(np.float32)
    case = write_case(tmp_path, "a", image, mask, native_mm, codes="PSL", turn=turn)
    preprocessor = Preprocessor(network_mm, (8, 8, 8), normalisation="none").fit([case])
    y = preprocessor.transform(case)[1]
    labels = preprocessor.inverse_transform(preprocessor.encode(y), case)
    least_dice, most_change = bounds
    for value in (3, 7):
        assert (mask == value).sum() > 1500
        assert overlap(labels == value, mask == value) >= least_dice
        assert (labels == value).sum() == pytest.approx((mask == value).sum(), rel=most_change)


# 64 x 32 x 24 voxels of 1 x 2 x 3 mm; without 4 planes of zeros a field of view of 60 x 64 x 72 mm
BALL = {"shape": (64, 32, 24), "spacing_mm": (1, 2, 3)}
CENTRE_MM, RADIUS_MM = (30, 33, 38), 24


@pytest.fixture
def ball_case(tmp_path, write_case):
    mask = ball(**BALL, centre_mm=CENTRE_MM, radius_mm=RADIUS_MM)
    image = (1 + 99 * mask).astype(np.float32)
    image[:4] = 0
    return write_case(tmp_path, "ball", image, 7 * mask.astype(np.uint8)), mask


@pytest.mark.parametrize("spacing_mm", [(2, 2, 2), (1, 1, 1), (2, 1, 4)])
def test_a_ball_keeps_its_volume_and_place_in_mm_when_resampled(ball_case, spacing_mm):
    case, _ = ball_case
    preprocessor = Preprocessor(spacing_mm, (8, 8, 8), normalisation="none").fit([case])
    x, y = preprocessor.transform(case)
    assert y.shape == tuple(np.array((60, 64, 72)) // spacing_mm)
    volume = 4 / 3 * np.pi * RADIUS_MM**3
    for weights in (y, (x[..., 0] - 1) / 99):
        assert weights.sum() * np.prod(spacing_mm) == pytest.approx(volume, rel=0.03)
        mm = [
            np.average((np.indices(y.shape)[a] + 0.5) * spacing_mm[a], weights=weights)
            for a in range(3)
        ]
        np.testing.assert_allclose(mm, np.array(CENTRE_MM) - (4, 0, 0), atol=0.3)


@pytest.mark.parametrize("spacing_mm", [(2, 2, 2), (1, 1, 1), (1.3, 1.7, 2.2)])
def test_a_ball_survives_the_way_to_the_networks_grid_and_back(ball_case, spacing_mm):
    case, mask = ball_case
    preprocessor = Preprocessor(spacing_mm).fit([case])
    y = preprocessor.transform(case)[1]
    labels = preprocessor.inverse_transform(np.eye(2)[y], case)
    assert set(np.unique(labels)) == {0, 7}
    assert overlap(labels == 7, mask) >= 0.97


def test_outside_the_crop_the_background_is_certain(tmp_path, write_case):
    image = np.zeros((10, 18, 9), np.float32)
    image[3:9, 5:15, 2:6] = noise((6, 10, 4))
    case = write_case(tmp_path, "a", image)
    preprocessor = Preprocessor(patch=(8, 8, 8), labels={1: "a", 2: "b"}).fit([case])
    native = preprocessor.restore(np.full((8, 10, 8, 3), 1 / 3), case)
    assert native.dtype == np.float32
    assert native.shape == (10, 18, 9, 3)
    np.testing.assert_allclose(native[3:9, 5:15, 2:6], 1 / 3, rtol=1e-6)
    np.testing.assert_array_equal(native[image == 0], [[1, 0, 0]] * (1620 - 240))


def test_decode_gives_the_users_values_and_encode_certain_probabilities():
    preprocessor = Preprocessor(labels={2: "a", 5: "b"})
    labels = preprocessor.decode(np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3], [0.3, 0.3, 0.4]]))
    assert labels.tolist() == [0, 2, 5]
    assert preprocessor.encode(np.array([2, 0])).tolist() == [[0, 0, 1], [1, 0, 0]]


def test_another_number_of_channels_is_refused_with_the_file(tmp_path, write_case):
    one = write_case(tmp_path, "one", noise((10, 18, 9)))
    two = write_case(tmp_path, "two", noise((10, 18, 9, 2)))
    with pytest.raises(ValueError, match=r"two_image\.nii\.gz: 2 channels, the network has 1"):
        Preprocessor(labels={1: "a"}).fit([one]).transform(two)


def test_a_label_that_is_not_declared_is_refused_with_the_file(tmp_path, write_case):
    case = write_case(tmp_path, "a", noise((10, 18, 9)), boxes((10, 18, 9), (1, 6)))
    with pytest.raises(ValueError, match=r"a_mask\.nii\.gz: holds label \[6\]; declared: \[1\]"):
        Preprocessor(labels={1: "a"}).fit([case]).transform(case)


@pytest.mark.parametrize(
    "preprocessor",
    [
        Preprocessor((1.5, 2.0, 3.0), (16, 24, 1), {4: "four", 1: "one"}, 2, "percentile", 2, (0,)),
        Preprocessor((1.5, 2.0, 3.0), (16, 24, 8), {1: "one"}, 1, "none", 3, ()),
        Preprocessor(spacing_mm=(1, 1, 1)),
    ],
)
def test_what_is_saved_is_loaded_again(tmp_path, preprocessor):
    preprocessor.save(tmp_path / "preprocessor.json")
    loaded = Preprocessor.load(tmp_path / "preprocessor.json")
    assert loaded == preprocessor
    assert list(loaded.labels or ()) == list(preprocessor.labels or ())


def test_loading_a_file_that_is_not_there_names_it(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        Preprocessor.load(tmp_path / "nowhere.json")


def test_fit_returns_another_preprocessor_and_none_can_be_changed(tmp_path, write_case):
    case = write_case(tmp_path, "c", noise((10, 18, 9)), boxes((10, 18, 9), (1,)), (1, 2, 3))
    asked = Preprocessor(normalisation="none")
    fitted = asked.fit([case])
    assert asked == Preprocessor(normalisation="none")
    assert fitted.is_complete
    assert not asked.is_complete
    with pytest.raises(FrozenInstanceError):
        fitted.patch = (8, 8, 8)


def test_facts_that_are_given_are_taken_and_no_file_is_read(tmp_path, write_case):
    case = write_case(tmp_path, "c", noise((10, 18, 9)), boxes((10, 18, 9), (1,)), (1, 2, 3))
    asked = Preprocessor()
    facts = [asked.describe(*nifti.load_image(case.image), nifti.load_mask(case.mask)[0])]
    elsewhere = Case("c", "nowhere.nii.gz", "nowhere.nii.gz")
    assert asked.fit([elsewhere], facts=facts) == asked.fit([case])


def test_the_hardware_is_an_argument(tmp_path, write_case):
    case = write_case(tmp_path, "c", noise((48, 48, 48)), spacing_mm=(1, 1, 1))
    fitted = Preprocessor(labels={1: "a"}).fit([case], patch_voxels=32**3)
    assert fitted.patch == (32, 32, 32)


def test_what_is_not_fitted_says_so(tmp_path, write_case):
    case = write_case(tmp_path, "c", noise((10, 18, 9)))
    words = r"3 settings are not chosen yet: spacing_mm, channels, normalisation\. Use what fit"
    with pytest.raises(ValueError, match=words):
        Preprocessor(patch=(8, 8, 8), labels={1: "a"}).transform(case)


def test_a_scan_is_read_once_for_all_that_its_prediction_needs(tmp_path, write_case, monkeypatch):
    image = np.pad(noise((10, 18, 9)), 4)
    case = write_case(tmp_path, "c", image, boxes(image.shape, (1,)), (1, 2, 3))
    fitted = Preprocessor().fit([case])
    x, y = fitted.transform(case)
    place, read, opened = fitted.place(case), nifti.read, []

    def count(path, **kwargs):
        opened.append(path)
        return read(path, **kwargs)

    monkeypatch.setattr(nifti, "read", count)
    prepared = fitted.prepare(case, with_mask=True)
    assert opened == [case.image, case.mask]
    np.testing.assert_array_equal(prepared.x, x)
    np.testing.assert_array_equal(prepared.y, y)
    assert prepared.place == place
    assert prepared.void.shape == y.shape
    classes = fitted.restore_labels(y, None, place=prepared.place)
    certain = fitted.inverse_transform(fitted.encode(y), None, place=prepared.place)
    np.testing.assert_array_equal(classes, certain)
    loaded = nifti.load_image(case.image)
    np.testing.assert_array_equal(fitted.prepare(case, loaded=loaded).x, x)
    assert opened == [case.image, case.mask, case.image]


def test_the_settings_of_a_trained_experiment_are_not_replaced_by_others(tmp_path):
    path = tmp_path / "preprocessor.json"
    settings = Preprocessor((1, 2, 3), (8, 16, 8), {1: "a"}, 1)
    settings.save(path)
    (tmp_path / "experiment.json").write_text("{}")
    settings.save(path)
    with pytest.raises(ValueError, match=r"preprocessor.json: .*trained with other preprocessing"):
        Preprocessor((1, 2, 3), (8, 16, 8), {1: "a"}, 1, "none").save(path)
    assert Preprocessor.load(path) == settings


def test_slices_of_a_single_slice_stay_two_dimensional(tmp_path, write_case):
    case = write_case(
        tmp_path, "c", noise((16, 20, 1)), boxes((16, 20, 4), (1,))[..., :1], (3, 1, 1)
    )
    assert Preprocessor(dimensions=2).fit([case]).patch == (16, 20, 1)


@pytest.mark.parametrize(("dimensions", "patch"), [(2, (8, 8, 8)), (3, (8, 8, 1))])
def test_dimensions_that_contradict_the_patch_are_refused(dimensions, patch):
    with pytest.raises(ValueError, match=f"dimensions must be .*dimensions={dimensions}"):
        Preprocessor(dimensions=dimensions, patch=patch)


def test_empty_space_is_background_unless_masks_label_some_of_it(tmp_path, write_case):
    image, middle = framed((40, 40, 40), 0, margin=10)
    body = np.zeros(image.shape, np.uint8)
    body[middle] = 1
    beyond = body.copy()
    beyond[0, :10, 0] = 1  # 10 voxels of 8,000 are more than 0.1 %
    astray = body.copy()
    astray[0, :8, 0] = 1
    chosen = []
    for name, mask in (("a", body), ("b", beyond), ("c", astray)):
        case = write_case(tmp_path, name, image, mask, spacing_mm=(1, 1, 1))
        chosen.append(Preprocessor().fit([case]).empty_space)
    assert chosen == ["background", "outside", "background"]
    without = write_case(tmp_path, "d", image, spacing_mm=(1, 1, 1))
    assert Preprocessor(labels={1: "a"}).fit([without]).empty_space == "background"


def test_a_small_label_in_empty_space_counts_as_much_as_a_large_one(tmp_path, write_case):
    image, middle = framed((40, 40, 40), 0, margin=10)
    mask = np.zeros(image.shape, np.uint8)
    mask[middle] = 1
    mask[0, 0, 0] = 2
    case = write_case(tmp_path, "a", image, mask, spacing_mm=(1, 1, 1))
    assert Preprocessor().fit([case]).empty_space == "outside"


def test_voxels_that_nobody_drew_get_a_class_of_their_own(tmp_path, write_case):
    shape = (24, 20, 16)
    image, mask = noise(shape), boxes(shape, (1, 2))
    drawn = write_case(tmp_path, "drawn", image, mask)
    mask[..., 2:] = 7
    case = write_case(tmp_path, "partly", image, mask)
    labels = {1: "a", 2: "b", 7: "Ignore"}
    fitted = Preprocessor(labels=labels).fit([case])
    assert (fitted.labels, fitted.ignore, fitted.coarse_mm) == ({1: "a", 2: "b"}, 7, ())
    assert Preprocessor(ignore=7).fit([case]).labels == {1: "label 1", 2: "label 2"}
    y = fitted.transform(case)[1]
    assert set(np.unique(y)) == {0, 1, 2, 255}
    same = y != 255
    np.testing.assert_array_equal(y[same], fitted.transform(drawn)[1][same])
    fitted.save(tmp_path / "preprocessor.json")
    assert Preprocessor.load(tmp_path / "preprocessor.json") == fitted


def test_regions_are_numbered_after_the_labels(tmp_path):
    regions = {"whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
    names = {1: "label 1", 2: "label 2", 3: "enhancing"}
    preprocessor = replace(GIVEN, labels=names, regions=regions)
    assert preprocessor.unions == {4: ("whole", (1, 2, 3)), 5: ("core", (2, 3))}
    assert preprocessor.targets == {**names, 4: "whole", 5: "core"}
    members = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]
    np.testing.assert_array_equal(preprocessor.members, members)
    preprocessor.save(tmp_path / "preprocessor.json")
    assert Preprocessor.load(tmp_path / "preprocessor.json") == preprocessor
    assert replace(GIVEN, regions={}).members is None
