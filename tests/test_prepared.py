"""What of a prepared case is background for certain."""

import numpy as np
import pytest

from unetseg import rules
from unetseg.preprocessing import Preprocessor


def noise(shape, seed=0):
    return np.random.default_rng(seed).uniform(1, 100, shape).astype(np.float32)


@pytest.mark.parametrize("empty_space", rules.EMPTY_SPACE)
def test_void_is_told_on_the_grid_of_the_network(tmp_path, write_case, empty_space):
    image = np.full((40, 40, 40), -3, np.float32)
    image[10:30, 10:30, 10:30] = noise((20, 20, 20))
    image[0, 0, 0] = 100
    image[30:38, 30:38, 30:38] = noise((8, 8, 8))
    case = write_case(tmp_path, "a", image, spacing_mm=(1, 1, 1))
    settings = {"labels": {1: "a"}, "spacing_mm": (2, 2, 2), "patch": (32, 16, 16)}
    preprocessor = Preprocessor(**settings, empty_space=empty_space).fit([case])
    prepared = preprocessor.prepare(case)
    x, void = prepared.x, prepared.void
    np.testing.assert_array_equal(x, preprocessor.transform(case)[0])
    assert void.shape == x.shape[:3]
    if empty_space == "background":  # of 10 to 38 along each axis; x is padded by 9 on each side
        assert x.shape == (32, 16, 16, 1)
        assert not void[9:19, :10, :10].any()
        assert not void[19:23, 10:14, 10:14].any()
        assert void[:3].all()
        assert void[9:12, 15, 15].all()
    else:
        assert not void.any()


def test_beyond_a_scan_that_tissue_fills_there_is_no_void(tmp_path, write_case):
    case = write_case(tmp_path, "a", noise((10, 10, 10)))
    preprocessor = Preprocessor(patch=(32, 32, 32), labels={1: "a"}, empty_space="background")
    assert not preprocessor.fit([case]).prepare(case).void.any()


def test_the_inside_of_a_large_and_even_structure_is_no_void(tmp_path, write_case):
    # A bladder of 48 voxels, with less noise than in any scan of the training.
    image = np.random.default_rng(0).normal(100, 20, (80, 80, 80)).astype(np.float32)
    image[16:64, 16:64, 16:64] = 200
    case = write_case(tmp_path, "a", image, spacing_mm=(1, 1, 1))
    settings = {"labels": {1: "bladder"}, "empty_space": "background", "least_contrast": 0.2}
    preprocessor = Preprocessor(**settings, coarse_mm=()).fit([case])
    assert not preprocessor.prepare(case).void.any()
    flat = np.full((80, 80, 80), 7, np.float32)
    flat[0, 0, 0] = 8
    assert preprocessor.prepare(write_case(tmp_path, "b", flat)).void[20:].all()


def test_noise_in_the_air_has_less_contrast_than_any_label_in_training(tmp_path, write_case):
    rng = np.random.default_rng(0)
    image = rng.normal(0, 1, (90, 40, 40)).astype(np.float32)
    image[5:35, 5:35, 5:35] += rng.normal(100, 20, (30, 30, 30))
    mask = np.zeros(image.shape, np.uint8)
    mask[10:30, 10:30, 10:30] = 1
    case = write_case(tmp_path, "a", image, mask, spacing_mm=(1, 1, 1))
    preprocessor = Preprocessor().fit([case])
    void = preprocessor.prepare(case).void
    assert void[50:].all()  # 12 voxels and more from the body
    assert not void[5:35, 5:35, 5:35].any()
    unknown = write_case(tmp_path, "b", image, spacing_mm=(1, 1, 1))
    assert Preprocessor(labels={1: "a"}).fit([unknown]).least_contrast == 0
