import numpy as np
import pytest

from unetseg import preprocessing
from unetseg.preprocessing import Preprocessor


def noise(shape, seed=0):
    return np.random.default_rng(seed).uniform(1, 100, shape).astype(np.float32)


def boxes(shape, labels):
    mask = np.zeros(shape, np.uint8)
    for k, label in enumerate(labels):
        mask[2 * k : 2 * k + 2, 3:7, 1:4] = label
    return mask


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
    # 12 mm / 1.2 mm = 10 -> 16; 36 / 2 = 18 -> 24; 27 / 3 = 9 -> 16
    assert fitted.spacing_mm == (1.2, 2.0, 3.0)
    assert fitted.patch == (16, 24, 16)
    assert fitted.input_shape == (16, 24, 16, 1)


def test_the_longest_side_of_the_patch_is_cut_until_it_is_small_enough(
    tmp_path, write_case, monkeypatch
):
    case = write_case(tmp_path, "a", noise((6, 38, 15)))
    # 8 x 40 x 16 = 5120; 8 x 32 x 16 = 4096; 8 x 24 x 16 = 3072
    monkeypatch.setattr(preprocessing, "MAX_PATCH_VOXELS", 4000)
    assert Preprocessor(labels={1: "a"}).fit([case]).patch == (8, 24, 16)


def test_the_patch_of_a_large_scan_is_of_multiples_of_8_and_within_the_limit(tmp_path, write_case):
    case = write_case(tmp_path, "a", np.ones((90, 60, 50), np.uint8))  # 96 x 64 x 56 = 344,064
    patch = np.array(Preprocessor(labels={1: "a"}).fit([case]).patch)
    assert (patch % 8 == 0).all()
    assert patch.prod() <= preprocessing.MAX_PATCH_VOXELS < (patch + 8).prod()


def test_fit_lists_the_labels_of_all_masks_and_transform_numbers_them(tmp_path, write_case):
    shape = (10, 18, 9)
    a = write_case(tmp_path, "a", noise(shape), boxes(shape, (4, 1)))
    b = write_case(tmp_path, "b", noise(shape), boxes(shape, (2,)))
    fitted = Preprocessor().fit([a, b])
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
    assert fitted.input_shape == (16, 24, 16, channels)
    expected = np.stack(image, axis=-1) if isinstance(image, list) else image.reshape(10, 18, 9, -1)
    # padded by 6, 6, 7 voxels, half of them (3, 3, 3) before the image
    np.testing.assert_array_equal(x[3:13, 3:21, 3:12], expected)


@pytest.mark.parametrize(
    ("spacing_mm", "axis"), [((1, 2, 3), 2), ((3, 2, 1), 0), ((1, 4, 1), 1), ((2, 2, 2), 2)]
)
def test_slices_lie_across_the_axis_of_the_largest_spacing(tmp_path, write_case, spacing_mm, axis):
    case = write_case(tmp_path, "a", noise((10, 18, 9, 2)), spacing_mm=spacing_mm)
    fitted = Preprocessor(labels={1: "a"}, dimensions=2).fit([case])
    expected = [16, 24, 16]
    expected[axis] = 1
    assert fitted.patch == tuple(expected)
    assert fitted.input_shape == (*(n for n in expected if n > 1), 2)


def test_scans_of_one_slice_make_a_2d_network(tmp_path, write_case):
    case = write_case(tmp_path, "a", noise((10, 18, 1)), codes="SAR")
    assert Preprocessor(labels={1: "a"}).fit([case]).input_shape == (16, 24, 1)


def test_explicit_settings_are_kept(tmp_path, write_case):
    case = write_case(tmp_path, "a", noise((10, 18, 9)), boxes((10, 18, 9), (1,)))
    given = Preprocessor((1, 1, 1), (8, 16, 8), {1: "a", 7: "b"}, 1, "none", 3)
    assert given.fit([case]) == given


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("normalisation", "minmax"),
        ("dimensions", 4),
        ("spacing_mm", (1, 2)),
        ("spacing_mm", (1, 2, -3)),
        ("patch", (8, 8, 0)),
    ],
)
def test_a_bad_setting_is_refused_by_name_with_what_was_received(setting, value):
    with pytest.raises(ValueError) as error:
        Preprocessor(**{setting: value})
    assert setting in str(error.value)
    assert str(value) in str(error.value)


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
    x, _ = Preprocessor(patch=(8, 8, 8), labels={1: "a"}).fit([case]).transform(case)
    np.testing.assert_allclose(x[inside].mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(x[inside].std(axis=0), 1, atol=1e-4)


def test_percentile_brings_percentiles_1_and_99_of_non_zero_voxels_to_0_and_1(hollow):
    case, inside = hollow
    preprocessor = Preprocessor(patch=(8, 8, 8), labels={1: "a"}, normalisation="percentile")
    x, _ = preprocessor.fit([case]).transform(case)
    ordered = np.sort(x[inside], axis=0)
    n = len(ordered) - 1
    for share, value in ((0.01, 0), (0.99, 1)):
        assert (ordered[int(share * n)] <= value + 1e-4).all()
        assert (ordered[int(share * n) + 1] >= value - 1e-4).all()


@pytest.mark.parametrize("normalisation", preprocessing.NORMALISATIONS)
@pytest.mark.parametrize("value", [0, 5])
def test_an_image_of_one_value_stays_finite(tmp_path, write_case, normalisation, value):
    case = write_case(tmp_path, "a", np.full((10, 18, 9), value, np.int16))
    preprocessor = Preprocessor(labels={1: "a"}, normalisation=normalisation).fit([case])
    assert np.isfinite(preprocessor.transform(case)[0]).all()


@pytest.mark.parametrize("codes", ["LPS", "PIR", "ASL", "SRA", "IPL", "RSA"])
def test_the_storage_orientation_makes_no_difference(tmp_path, write_case, codes):
    image, mask = noise((10, 18, 9)), boxes((10, 18, 9), (1, 4))
    image[8:] = 0
    stored = [write_case(tmp_path, code, image, mask, codes=code) for code in ("RAS", codes)]
    preprocessor = Preprocessor(spacing_mm=(1.5, 1.5, 2)).fit(stored[:1])
    (x, y), (x_turned, y_turned) = map(preprocessor.transform, stored)
    np.testing.assert_array_equal(y_turned, y)
    np.testing.assert_allclose(x_turned, x, atol=1e-5)
    assert len(np.unique(y)) == 3


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


@pytest.mark.parametrize("codes", ["RAS", "PIR", "LSA"])
def test_labels_come_back_to_the_place_they_were_cropped_from(tmp_path, write_case, codes):
    image, mask = np.zeros((10, 18, 9), np.float32), np.zeros((10, 18, 9), np.uint8)
    image[3:9, 5:15, 2:6] = noise((6, 10, 4))
    mask[4:6, 6:9, 2:5], mask[6:9, 10:15, 3:6] = 9, 3
    case = write_case(tmp_path, "a", image, mask, codes=codes)
    preprocessor = Preprocessor(patch=(8, 8, 8)).fit([case])
    y = preprocessor.transform(case)[1]
    assert y.shape == (8, 10, 8)  # the 6 x 10 x 4 voxels that are not zero, padded to the patch
    labels = preprocessor.inverse_transform(preprocessor.encode(y), case)
    np.testing.assert_array_equal(labels, mask)


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
        Preprocessor((1.5, 2.0, 3.0), (16, 24, 1), {4: "four", 1: "one"}, 2, "percentile", 2),
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


def test_cached_gives_memory_maps_of_transform_and_computes_them_once(
    tmp_path, write_case, monkeypatch
):
    case = write_case(tmp_path, "a", noise((10, 18, 9)), boxes((10, 18, 9), (1,)))
    preprocessor = Preprocessor().fit([case])
    expected = preprocessor.transform(case)
    preprocessor.cached(case, tmp_path / "cache")
    monkeypatch.setattr(Preprocessor, "transform", lambda *_: pytest.fail("computed again"))
    for array, right in zip(preprocessor.cached(case, tmp_path / "cache"), expected, strict=True):
        assert isinstance(array, np.memmap)
        assert array.dtype == right.dtype
        np.testing.assert_array_equal(array, right)


def test_fit_changes_the_preprocessor_itself_as_scikit_learn_does(tmp_path, write_case):
    case = write_case(tmp_path, "c", noise((10, 18, 9)), boxes((10, 18, 9), (1,)), (1, 2, 3))
    preprocessor = Preprocessor()
    assert preprocessor.fit([case]) is preprocessor
    assert preprocessor.patch is not None


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
    assert Preprocessor(dimensions=2).fit([case]).patch == (16, 24, 1)
