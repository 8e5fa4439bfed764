import numpy as np
import pytest
from scipy import ndimage

from unetseg.reading.intensities import describe, find_background, measure_smoothness

NAN = float("nan")


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(100, 10, shape).astype(np.float32)


def test_every_channel_has_its_percentiles_and_the_pool_those_of_all():
    # 0, 1 ... 200 in any order: percentile p is 2 p; and ten times that.
    ramp = np.random.default_rng(0).permutation(201).reshape(3, 67, 1).astype(np.float32)
    found = describe(np.stack([ramp, 10 * ramp]))
    percentiles = np.array([2, 20, 50, 100, 150, 180, 198])
    np.testing.assert_allclose(found["intensities"], [percentiles, 10 * percentiles])
    pooled = np.percentile(np.concatenate([np.arange(201), 10 * np.arange(201)]), (1, 50, 99))
    names = ("intensity_p1", "intensity_median", "intensity_p99")
    np.testing.assert_allclose([found[name] for name in names], pooled, rtol=1e-5)


@pytest.mark.parametrize("background", [0, -1024, -1, 3.7])
def test_a_background_of_one_value_is_left_out_whatever_it_is(background):
    body = noise(20, 20, 20)
    scan = np.full((40, 40, 40), background, np.float32)
    scan[10:30, 10:30, 10:30] = body
    assert find_background(scan.ravel()) == np.float32(background)
    alone, within = describe(body[None]), describe(scan[None])
    np.testing.assert_allclose(within["intensities"], alone["intensities"], rtol=1e-5)
    assert within["smoothness"] == pytest.approx(alone["smoothness"], abs=1e-4)


@pytest.mark.parametrize(
    ("values", "background"),
    [
        (np.arange(100.0), NAN),
        (np.ones(100), NAN),  # of a constant scan nothing would be left
        (np.append(np.arange(95.0), [500] * 5), 500),
        (np.append(np.arange(97.0), [500] * 3), NAN),
        (np.array([NAN, 3, 3, 4]), 3),
        (np.array([]), NAN),
    ],
)
def test_a_background_is_the_value_of_five_in_a_hundred_voxels(values, background):
    np.testing.assert_equal(find_background(values), background)


@pytest.mark.parametrize("shape", [(24, 24, 24), (80, 80, 1), (1, 80, 80), (3000, 1, 1)])
def test_noise_has_no_smoothness_and_what_varies_slowly_has_much(shape):
    assert abs(describe(noise(*shape)[None])["smoothness"]) < 0.05
    ramp = np.indices(shape).sum(axis=0).astype(np.float32)
    assert describe(ramp[None])["smoothness"] == pytest.approx(1, abs=0.01)


def test_smoothness_is_the_mean_over_the_axes_and_that_of_the_least_smooth_channel():
    # Along z voxels come in pairs of equal value: half of the neighbours are equal, the others
    # independent, so that their correlation is a half; it is 0 along x and y.
    paired = noise(40, 40, 40).repeat(2, axis=2)
    assert describe(paired[None])["smoothness"] == pytest.approx(0.5 / 3, abs=0.02)
    ramp = np.indices(paired.shape).sum(axis=0)
    both = describe(np.stack([ramp, paired]))
    assert both["smoothness"] == pytest.approx(0.5 / 3, abs=0.02)


def test_smoothness_does_not_depend_on_offset_and_unit_nor_on_the_size():
    scan = ndimage.gaussian_filter(noise(40, 40, 40), 1)
    expected = describe(scan[None])["smoothness"]
    for factor, offset in ((1e-6, 0), (-50, 0), (1, -1000)):
        changed = describe((factor * scan + offset)[None])["smoothness"]
        assert changed == pytest.approx(expected, abs=1e-3)
    large = ndimage.gaussian_filter(noise(140, 140, 140, seed=1), 1)  # sampled
    assert describe(large[None])["smoothness"] == pytest.approx(expected, abs=0.02)


def test_of_what_has_no_neighbours_or_no_number_nothing_is_told():
    assert np.isnan(measure_smoothness(np.ones((1, 1, 1, 1)), [NAN]))
    constant = describe(np.full((1, 4, 4, 4), 7.0))
    assert np.isnan(constant["smoothness"])
    assert constant["intensities"] == ((7.0,) * 7,)
    broken = noise(6, 6, 6)
    broken[2, 2, 2] = np.inf
    assert describe(broken[None])["intensities"] is None
    assert describe(np.full((1, 3, 3, 3), NAN))["intensities"] is None
