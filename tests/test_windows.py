import numpy as np
import pytest
from fakes import Fake, constant, noise, threshold

from unetseg import windows
from unetseg.run import devices
from unetseg.windows import slide, widest


@pytest.fixture(autouse=True)
def not_compiled(monkeypatch):
    monkeypatch.setattr(devices, "compiles_each_size", lambda: False)


@pytest.mark.parametrize("overlap", [0, 0.5, 0.9])
@pytest.mark.parametrize(
    ("patch", "flat"),
    [
        ((8, 16, 8), (8, 16, 8)),
        ((10, 18, 9), (10, 18, 9)),
        ((8, 16, 1), (8, 16)),
        ((1, 16, 8), (16, 8)),
        ((8, 1, 8), (8, 8)),
    ],
)
def test_windows_put_together_give_what_the_whole_volume_would(patch, flat, overlap):
    x, model = noise(10, 18, 9, 2), threshold()
    found = slide([model], x, patch, overlap=overlap)
    assert found.shape == (10, 18, 9, 2)
    np.testing.assert_allclose(found[..., 1], x[..., 0] > 0, atol=1e-6)
    assert {shape[1:] for shape in model.shapes} == {(*flat, 2)}


@pytest.mark.parametrize("overlap", [0, 0.3, 0.5, 0.75])
def test_every_voxel_is_covered_and_the_weights_sum_to_1(overlap):
    for length in range(4, 24):
        found = slide([constant(0.3)], noise(length, 4, 9, 1), (4, 4, 8), overlap=overlap)
        np.testing.assert_allclose(found[..., 1], 0.3, atol=1e-6)
        np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("overlap", "windows"),
    # 16 voxels beyond the first window of 8, in steps of 8, 4 and 2
    [(0, 3), (0.5, 5), (0.75, 9)],
)
def test_overlap_sets_how_many_windows_there_are(overlap, windows):
    model = constant(1)
    slide([model], noise(24, 8, 8, 1), (8, 8, 8), overlap=overlap)
    assert sum(shape[0] for shape in model.shapes) == windows


def test_the_middle_of_a_window_counts_more_than_its_border():
    # Windows start at 0 and 4; voxel 7 is the last of the first and number 3 of the second.
    ramp = Fake(lambda batch: (np.arange(8) / 7)[:, None, None])
    found = slide([ramp], noise(12, 8, 8, 1), (8, 8, 8))[:, 4, 4, 1]
    assert found[0] == pytest.approx(0)  # seen by the first window alone
    assert found[11] == pytest.approx(1)  # seen by the last window alone
    assert found[7] == pytest.approx(3 / 7, abs=0.02)  # hardly the 1 at the first one's border


def test_on_a_gpu_batches_are_filled_up_to_few_sizes_and_give_the_same(monkeypatch):
    monkeypatch.setattr(windows, "BATCH_VOXELS", 1080)
    shapes, found = {}, {}
    for kind in ("cpu", "gpu"):
        monkeypatch.setattr(devices, "compiles_each_size", lambda kind=kind: kind == "gpu")
        shapes[kind], found[kind] = set(), []
        for slices in range(1, 10):
            model = threshold()
            found[kind].append(slide([model], noise(10, 18, slices, 1), (10, 18, 1)))
            shapes[kind] |= {shape[0] for shape in model.shapes}
    assert shapes == {"cpu": {1, 2, 3, 4, 5, 6}, "gpu": {1, 2, 4, 6}}
    for one, other in zip(*found.values(), strict=True):
        np.testing.assert_array_equal(one, other)


def test_many_windows_go_through_in_several_batches(monkeypatch):
    monkeypatch.setattr(windows, "BATCH_VOXELS", 800)
    x, model = noise(10, 18, 9, 1), threshold()
    found = slide([model], x, (10, 18, 1))  # 9 slices of 180 voxels: 4, 4 and 1 of them
    assert [shape[0] for shape in model.shapes] == [4, 4, 1]
    np.testing.assert_allclose(found[..., 1], x[..., 0] > 0, atol=1e-6)


def test_the_probabilities_of_several_models_are_averaged():
    found = slide([constant(0.2), constant(0.6), constant(1)], noise(10, 8, 9, 1), (8, 8, 8))
    np.testing.assert_allclose(found[..., 1], 0.6, atol=1e-6)


@pytest.mark.parametrize("overlap", [-0.1, 1, 1.5])
def test_an_overlap_out_of_range_is_refused(overlap):
    with pytest.raises(ValueError, match=rf"overlap must be in \[0, 1\).*={overlap}$"):
        slide([constant(1)], noise(8, 8, 8, 1), (8, 8, 8), overlap=overlap)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_planes_alone_are_as_in_the_whole_and_need_fewer_windows(axis):
    x, model = noise(20, 18, 22, 1), Fake(lambda batch: np.abs(np.sin(batch[..., 0])))
    whole = slide([model], x, (8, 8, 8))
    before = sum(shape[0] for shape in model.shapes)
    shape = [20, 18, 22, 2]
    shape[axis] = 3
    out = np.ones(shape, np.float32)
    slide([model], x, (8, 8, 8), span=(axis, 2, 5), out=out, part=0.5)
    np.testing.assert_allclose(out, 1 + 0.5 * whole.take(range(2, 5), axis), atol=1e-6)
    assert 0 < sum(shape[0] for shape in model.shapes) - before <= before / 2


def test_neighbours_are_further_channels_of_the_network():
    x = noise(8, 8, 5, 2)
    stacked = np.stack([x, x + 1, x + 2], axis=-1)
    model = Fake(lambda batch: batch[..., 5] > 1)  # the last neighbour of the last channel
    found = slide([model], stacked, (8, 8, 1))
    np.testing.assert_array_equal(found[..., 1], x[..., 1] + 2 > 1)
    assert {shape[1:] for shape in model.shapes} == {(8, 8, 6)}


def test_the_widest_windows_are_those_of_all_planes():
    assert widest((8, 16, 4), 0, ()) == [8, 16, 4]
    assert widest((8, 16, 1), 2, (2,)) == [8, 16, 1]
    assert widest((8, 16, 1), 2, (2, 0)) == [8, 16, 8]


def test_windows_of_nothing_but_void_are_background_without_a_model():
    x, void = noise(32, 16, 16, 1), np.zeros((32, 16, 16), bool)
    void[:16] = True
    model = constant(1)
    found = slide([model], x, (16, 16, 16), overlap=0, void=void)
    assert [shape[0] for shape in model.shapes] == [1]
    np.testing.assert_array_equal(found[:16], np.broadcast_to((1, 0), (16, 16, 16, 2)))
    np.testing.assert_array_equal(found[16:], np.broadcast_to((0, 1), (16, 16, 16, 2)))


def test_where_all_is_void_all_is_background():
    x = np.zeros((16, 16, 16, 1), np.float32)
    found = slide([constant(1)], x, (8, 8, 8), void=np.ones((16, 16, 16), bool))
    np.testing.assert_array_equal(found, np.broadcast_to((1, 0), (16, 16, 16, 2)))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_void_is_background_in_the_wanted_planes_too(axis):
    void = np.zeros((16, 16, 16), bool)
    void[:9, :7, 3:] = True
    x = noise(16, 16, 16, 1)
    whole = slide([constant(0.25)], x, (8, 8, 8), void=void)
    np.testing.assert_allclose(whole[void], np.broadcast_to((1, 0), (void.sum(), 2)), atol=1e-6)
    np.testing.assert_allclose(
        whole[~void], np.broadcast_to((0.75, 0.25), ((~void).sum(), 2)), atol=1e-6
    )
    out = np.zeros_like(whole.take(range(4, 12), axis))
    slide([constant(0.25)], x, (8, 8, 8), span=(axis, 4, 12), out=out, part=0.5, void=void)
    np.testing.assert_allclose(out, 0.5 * whole.take(range(4, 12), axis), atol=1e-6)
