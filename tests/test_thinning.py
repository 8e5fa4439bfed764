import numpy as np
import pytest

from unetseg import thinning

SIZES = [
    ((64, 64, 64), (1, 1, 1)),
    ((512, 512, 24), (0.43, 0.43, 6)),
    ((512, 512, 600), (0.5, 0.5, 0.5)),
    ((20, 20, 5000), (1, 1, 1)),
    ((30000, 20000, 1), (0.00025, 0.00025, 0.004)),
    ((1, 1, 1), (1, 1, 1)),
]


@pytest.mark.parametrize(("shape", "spacing"), SIZES)
def test_blocks_are_as_small_as_fits(shape, spacing):
    factors, side = thinning.choose_factors(shape, np.diag([*spacing, 1.0]), 3_000_000)
    blocks = [-(-n // k) for n, k in zip(shape, factors, strict=True)]
    shown = [k * mm for k, mm in zip(factors, spacing, strict=True)]
    several = [axis for axis in range(3) if shape[axis] > 1]
    cubes = np.prod([np.ceil(blocks[axis] * shown[axis] / side) for axis in several])
    assert cubes <= 3_000_000
    for axis in several:  # no voxel shown is shorter than the cubes: none falls between them
        assert shown[axis] >= side * (1 - 1e-6)
    if max(factors) > 1:
        assert cubes > 500_000


@pytest.mark.parametrize(("shape", "spacing"), [SIZES[0], ((512, 512, 1), (0.43, 0.43, 6))])
def test_what_is_small_is_shown_as_it_is(shape, spacing):
    factors, side = thinning.choose_factors(shape, np.diag([*spacing, 1.0]), 3_000_000)
    assert (factors, side) == ((1, 1, 1), pytest.approx(spacing[0]))


def test_a_scan_aslant_in_its_box_has_fewer_blocks():
    # Turned by 45 degrees about z a square of side a fills a box of side 1.41 a: half of it.
    turned = np.eye(4)
    turned[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    assert thinning.choose_factors((140, 140, 140), np.eye(4), 3_000_000)[0] == (1, 1, 1)
    assert thinning.choose_factors((140, 140, 140), turned, 3_000_000)[0] == (2, 2, 2)


def test_blocks_lie_where_their_voxels_lie():
    # Blocks of 2 x 3 x 1: the first is centred between voxels 0 and 1, at voxel 1, at voxel 0.
    affine = np.array([[2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
    thinned = thinning.thin_affine(affine, (2, 3, 1))
    np.testing.assert_allclose(thinned @ [0, 0, 0, 1], [11, 23, 30, 1])
    np.testing.assert_allclose(thinned @ [1, 1, 1, 1], [15, 32, 34, 1])


def flipped(array):
    return np.flip(np.flip(array).copy())


LAYOUTS = [np.ascontiguousarray, np.asfortranarray, flipped, lambda a: a.T.copy().T]


@pytest.mark.parametrize("at_once", [1, 20, 10**6])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["C", "Fortran", "flipped", "turned"])
@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 3, 1), (4, 4, 4), (1, 7, 2)])
def test_blocks_are_what_loops_make_of_them(factors, layout, at_once, monkeypatch):
    monkeypatch.setattr(thinning, "AT_ONCE", at_once)
    array = np.random.default_rng(0).integers(0, 50, (5, 7, 6))
    shape = tuple(-(-n // k) for n, k in zip(array.shape, factors, strict=True))
    mean, highest = np.zeros(shape), np.zeros(shape, int)
    for place in np.ndindex(shape):
        block = array[tuple(slice(p * k, (p + 1) * k) for p, k in zip(place, factors, strict=True))]
        mean[place], highest[place] = block.mean(), block.max()
    stored = layout(array)
    np.testing.assert_allclose(thinning.pool_mean(stored, factors), mean, rtol=1e-6)
    np.testing.assert_array_equal(thinning.pool_max(stored, factors), highest)


def test_the_rarest_kind_of_a_block_is_shown_and_nothing_only_where_nothing_is():
    kinds = np.zeros((8, 8, 8), np.uint16)
    kinds[:4] = kinds[4:, :4] = 9  # 384 voxels
    kinds[:2, :4] = 5  # 64 of them
    kinds[3, 3, 3] = kinds[7, 7, 7] = 300  # one within, one alone
    shown = thinning.pool_rarest(lambda part: part, [kinds], (4, 4, 4))
    expected = np.zeros((2, 2, 2), int)
    expected[0] = expected[1, 0] = 9
    expected[0, 0] = 5
    expected[0, 0, 0] = expected[1, 1, 1] = 300
    np.testing.assert_array_equal(shown, expected)
    as_it_is = thinning.pool_rarest(lambda part: part, [kinds], (1, 1, 1))
    np.testing.assert_array_equal(as_it_is, kinds)


def test_the_range_of_grey_is_of_finite_voxels_and_close_in_large_scans():
    image = np.append(np.arange(201.0), [np.nan, np.inf]).reshape(7, 29, 1)
    assert thinning.grey_range(image) == pytest.approx((1, 199))
    assert thinning.grey_range(np.full((3, 3, 3), np.nan)) == (0, 1)
    ramp = np.linspace(0, 1, 300**3, dtype=np.float32).reshape(300, 300, 300)
    assert thinning.grey_range(ramp) == pytest.approx((0.005, 0.995), abs=0.01)
