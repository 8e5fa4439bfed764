"""Cases on the disk and batches of patches from them."""

import collections
import queue
import threading
from dataclasses import replace

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from volumes import SHAPE, numbered, scan, volume

from unetseg import training
from unetseg.augmentation import Sampling
from unetseg.cases import check_cases, find_cases
from unetseg.patches import (
    CachedCases,
    Patches,
    as_rows,
    cache_bytes,
    make_ahead,
    require_cache,
)
from unetseg.preprocessing import Preprocessor
from unetseg.run import machine


def pairs(n=5, channels=2):
    # case k is filled with k
    return [
        (np.full((*SHAPE, channels), k, np.float32), np.full(SHAPE, k, np.uint8)) for k in range(n)
    ]


def test_a_batch_is_a_pure_function_of_seed_and_index():
    data = [volume(seed) for seed in range(3)]
    used, fresh, other = (Patches(data, Sampling((8, 8, 8)), 2, seed) for seed in (7, 7, 8))
    for index in (0, 3, 1):
        used[index]
    for a, b in zip(used[5], fresh[5], strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(used[5][0], used[6][0])
    assert not np.array_equal(used[5][0], other[5][0])


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_batches_made_ahead_are_those_made_in_their_turn(threads):
    plain = Patches([volume(seed) for seed in range(3)], Sampling((8, 8, 8)), 2, 7)
    with make_ahead(plain, threads) as batches:
        for index in (0, 1, 0, 1, 2, 3, 9, 4):  # Keras looks at the first ones twice
            for a, b in zip(batches[index], plain[index], strict=True):
                np.testing.assert_array_equal(a, b)


def test_the_next_batches_are_made_before_they_are_asked_for_and_none_after_the_end():
    begun, go_on = queue.Queue(), threading.Event()

    class Slow:
        def __getitem__(self, index):
            begun.put(index)
            if index:
                go_on.wait(60)
            return index

    def stop_early():
        with make_ahead(Slow(), 2) as batches:
            assert batches[0] == 0
            assert {begun.get(timeout=60) for _ in range(3)} == {0, 1, 2}  # both threads wait
            for number in (3, 4):
                batches.pool.submit(batches.batches.__getitem__, number)
            threading.Timer(0.2, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_early()
    assert begun.empty()


def test_what_fails_ahead_of_its_turn_is_raised_in_its_turn():
    class Damaged:
        def __getitem__(self, index):
            if index == 2:
                raise OSError("case_2 cannot be read")
            return index

    with make_ahead(Damaged(), 4) as batches:
        assert [batches[0], batches[1]] == [0, 1]
        with pytest.raises(OSError, match="case_2 cannot be read"):
            batches[2]


@pytest.mark.parametrize("batch_size", [1, 2, 7])
def test_every_case_comes_once_before_any_comes_again(batch_size):
    patches = Patches(pairs(5), Sampling((4, 4, 4)), batch_size, 3, augment=False)
    batches = [patches[index] for index in range(-(-15 // batch_size))]
    for part, last in ((0, (..., 0)), (1, (..., 0))):
        order = np.concatenate([batch[part][last][:, 0, 0, 0] for batch in batches])[:15]
        assert [sorted(one_round) for one_round in order.reshape(3, 5)] == [[0, 1, 2, 3, 4]] * 3
        assert len({tuple(one_round) for one_round in order.reshape(3, 5)}) > 1


def test_after_repeat_after_batches_the_same_ones_come_again():
    patches = Patches([volume(k) for k in range(3)], Sampling((8, 8, 8)), 2, 0, repeat_after=2)
    np.testing.assert_array_equal(patches[2][0], patches[0][0])
    np.testing.assert_array_equal(patches[5][1], patches[1][1])
    assert not np.array_equal(patches[1][0], patches[0][0])


@pytest.mark.parametrize(
    ("patch", "flat"),
    [((8, 16, 8), (8, 16, 8)), ((8, 16, 1), (8, 16)), ((1, 16, 8), (16, 8)), ((8, 1, 8), (8, 8))],
)
@pytest.mark.parametrize("channels", [1, 2])
def test_batches_are_3d_or_for_slices_2d(patch, flat, channels):
    x, y = Patches(pairs(3, channels), Sampling(patch), 2, 0, foreground=0.5)[0]
    assert (x.shape, x.dtype) == ((2, *flat, channels), np.float32)
    assert (y.shape, y.dtype) == ((2, *flat, 1), np.uint8)


def test_foreground_and_augment_reach_the_patches(geometry_only):
    y = np.zeros(SHAPE, np.uint8)
    y[9, 17, 8] = 1
    data = [(y[..., None].astype(np.float32), y)]
    chosen = Patches(data, Sampling((4, 4, 4)), 1, 0, foreground=1.0, augment=False)
    assert all(chosen[index][1].sum() == 1 for index in range(5))
    still, turned = (
        Patches([volume()], Sampling(SHAPE), 1, 0, augment=augment) for augment in (False, True)
    )
    np.testing.assert_array_equal(still[0][0][0], volume()[0])
    assert not np.array_equal(turned[0][0][0], volume()[0])


def test_the_centres_of_a_case_reach_its_patches():
    x, y = numbered()
    known, unknown = [(x, 0 * y, np.array([[4, 9, 5]]))], [(x, 0 * y)]
    share = {"foreground": 1.0, "augment": False}
    middles = [
        {
            int(Patches(cases, Sampling((5, 7, 3)), 2, 0, **share)[k][0][0, 2, 3, 1, 0])
            for k in range(10)
        }
        for cases in (known, unknown)
    ]
    assert middles[0] == {4 * 162 + 9 * 9 + 5}
    assert len(middles[1]) > 5


def test_flat_axis_and_mirror_axes_reach_the_patches(geometry_only):
    plane = np.indices(SHAPE)[2].astype(np.uint8)
    cases = [(plane[..., None].astype(np.float32), plane + 1)]
    patches = Patches(cases, Sampling(SHAPE, flat_axis=2, mirror_axes=(2,)), 1, 0)
    planes = [np.moveaxis(patches[k][1][0, ..., 0], -1, 0) for k in range(10)]
    order = [[set(np.unique(one)) - {0} for one in planes[k]] for k in range(10)]
    upwards = [{k} for k in range(1, 10)]
    assert all(numbers in (upwards, upwards[::-1]) for numbers in order)
    assert upwards in order
    assert upwards[::-1] in order


@pytest.mark.parametrize("share", [0, 0.25, 0.5, 1])
def test_the_share_of_centred_patches_is_kept_exactly_over_batches(share):
    x, y = np.zeros((*SHAPE, 1), np.float32), np.zeros(SHAPE, np.uint8)
    centres = np.array([[4, 9, 5]])
    x[4, 9, 5] = 1  # at the centre of a patch of 3 x 3 x 3 only if it was asked for, or by chance
    patches = Patches([(x, y, centres)], Sampling((3, 3, 3)), 5, 0, foreground=share, augment=False)
    hits = [x[1, 1, 1, 0] for index in range(8) for x in patches[index][0]]
    assert 40 * share <= np.sum(hits) <= 40 * share + 3


def test_cached_cases_are_memory_maps_of_transform_and_computed_once(
    tmp_path, write_case, monkeypatch
):
    cases = [write_case(tmp_path, f"c{k}", *scan(k + 1)) for k in range(2)]
    preprocessor = Preprocessor().fit(cases)
    expected = [preprocessor.transform(case) for case in cases]
    assert len(CachedCases(preprocessor, cases, tmp_path / "new" / "cache")) == 2
    monkeypatch.setattr(Preprocessor, "prepare", lambda *_, **__: pytest.fail("computed again"))
    again = CachedCases(preprocessor, cases, tmp_path / "new" / "cache")
    assert len(CachedCases(preprocessor, cases[1:], tmp_path / "new" / "cache")) == 1
    for found, right in zip(again, expected, strict=True):
        assert [isinstance(array, np.memmap) for array in found] == [True] * 3
        for array, whole in zip(found[:2], right, strict=True):
            assert array.dtype == whole.dtype
            np.testing.assert_array_equal(array, whole)


@pytest.mark.parametrize("empty_space", ["background", "zero"])
def test_a_cached_case_is_prepared_as_from_its_file(tmp_path, write_case, empty_space):
    image, mask = scan(1)
    image = np.pad(image, ((3, 2), (0, 4), (1, 1)))  # is cropped again
    case = write_case(tmp_path, "a", image, np.pad(mask, ((3, 2), (0, 4), (1, 1))))
    asked = Preprocessor(patch=(16, 16, 16), empty_space=empty_space, spacing_mm=(1, 2, 4))
    preprocessor = asked.fit([case])
    right = preprocessor.prepare(case, with_mask=True)
    found = CachedCases(preprocessor, [case], tmp_path / "cache").prepared(0)
    assert isinstance(found.x, np.memmap)
    assert found.place == right.place
    for name in ("x", "y", "inside", "void"):
        array, expected = getattr(found, name), getattr(right, name)
        assert array.dtype == expected.dtype
        np.testing.assert_array_equal(array, expected)


def test_a_cache_that_holds_other_content_or_preprocessing_is_not_used(tmp_path, write_case):
    case = write_case(tmp_path, "a", *scan(1))
    preprocessor = Preprocessor(labels={1: "a", 2: "b"}).fit([case])
    CachedCases(preprocessor, [case], tmp_path / "cache")
    other = replace(preprocessor, normalisation="none")
    ((x, _, _),) = CachedCases(other, [case], tmp_path / "cache")
    np.testing.assert_array_equal(x, other.transform(case)[0])
    write_case(tmp_path, "a", *scan(2))  # another scan under the same id
    ((x, y, _),) = CachedCases(preprocessor, [case], tmp_path / "cache")
    for found, right in zip((x, y), preprocessor.transform(case), strict=True):
        np.testing.assert_array_equal(found, right)


def test_two_processes_may_cache_the_same_case_at_once(tmp_path, write_case, monkeypatch):
    cases, folder = [write_case(tmp_path, "a", *scan(1))], tmp_path / "cache"
    preprocessor, save = Preprocessor().fit(cases), np.save

    def save_with_other(path, array):
        monkeypatch.setattr(np, "save", save)
        CachedCases(preprocessor, cases, folder)  # all of it, while this one is about to write
        save(path, array)

    monkeypatch.setattr(np, "save", save_with_other)
    ((x, y, _),) = CachedCases(preprocessor, cases, folder)
    for found, right in zip((x, y), preprocessor.transform(cases[0]), strict=True):
        np.testing.assert_array_equal(found, right)
    assert len(list(folder.iterdir())) == 5


def test_only_the_cases_that_are_missing_are_computed(tmp_path, write_case, monkeypatch):
    cases = [write_case(tmp_path, name, *scan(1)) for name in "abc"]
    preprocessor, done, prepare = Preprocessor().fit(cases), [], Preprocessor.prepare

    def recorded(self, case, **kwargs):
        done.append(case.id)
        return prepare(self, case, **kwargs)

    monkeypatch.setattr(Preprocessor, "prepare", recorded)
    CachedCases(preprocessor, cases[1:2], tmp_path / "cache")
    CachedCases(preprocessor, cases, tmp_path / "cache")
    assert done == ["b", "a", "c"]


def test_cached_centres_are_voxels_of_the_foreground_equally_many_of_every_class(
    tmp_path, write_case
):
    image, mask = scan(0)
    mask[0, 0, 0], mask[2:6, 3:7, 1:4], mask[6:, 10:, 5:] = 9, 4, 2  # 1, 48 and 128 voxels
    case = write_case(tmp_path, "a", image, mask)
    preprocessor = Preprocessor(labels={1: "absent", 2: "a", 4: "b", 9: "c"}).fit([case])
    ((_, y, centres),) = CachedCases(preprocessor, [case], tmp_path / "cache")
    assert np.issubdtype(centres.dtype, np.integer)
    assert centres.shape[1] == 3
    counts = np.bincount(y[tuple(centres.T)], minlength=5)  # classes 2, 3, 4 are there
    assert counts.tolist() == [0, 0, *[len(centres) // 3] * 3]
    assert len(np.unique(centres, axis=0)) > 150  # nearly all of the 177 voxels


def test_centres_of_a_partly_drawn_mask_are_voxels_that_somebody_drew(tmp_path, write_case):
    mask = np.full((10, 12, 8), 9, np.uint8)
    mask[..., 3:5] = 0
    mask[4:6, 4:6, 3:5] = 1
    case = write_case(
        tmp_path, "a", (np.arange(mask.size) % 97).astype("i2").reshape(mask.shape), mask
    )
    preprocessor = Preprocessor(patch=(8, 8, 8), labels={1: "a", 9: "ignore"}).fit([case])
    ((_, y, centres),) = CachedCases(preprocessor, [case], tmp_path / "cache")
    assert np.unique(y).tolist() == [0, 1, 255]
    counts = np.bincount(y[tuple(centres.T)], minlength=256)
    assert counts[0] == counts[1] > 0 == counts[255]
    (row,) = as_rows((np.zeros((1, 8, 8, 8, 1)), y[None, :8, :8, :8, None]), preprocessor)
    assert set(np.unique(row[2][0])) == {0, 1}


def test_the_cached_centres_of_an_empty_mask_are_none(tmp_path, write_case):
    case = write_case(tmp_path, "a", *scan(0))
    preprocessor = Preprocessor(labels={1: "a"}).fit([case])
    for _ in range(2):  # computed, then read
        ((x, y, centres),) = CachedCases(preprocessor, [case], tmp_path / "cache")
        assert centres.shape == (0, 3)
        assert x.shape == (*y.shape, 1)


# Of the 8 x 10 x 6 voxels of `make_data` at 1 x 2 x 3 mm, on their own grid.
CASE_BYTES = 8 * 10 * 6 * 5 + 8 * 10 * 6 // 8


def test_what_the_cache_takes_is_known_from_shapes_and_spacings():
    table = pd.DataFrame({"shape": [(10, 10, 5), (4, 4, 4)], "spacing_mm": [(1, 1, 2), (1, 1, 1)]})
    # 10 x 10 x 10 at 1 mm, and the other padded to 8 x 8 x 8; two channels, a class and a bit.
    voxels = 1000 + 512
    assert cache_bytes(table, (1, 1, 1), (8, 8, 8), 2) == voxels * 9 + voxels // 8


def test_the_cache_of_a_training_takes_what_was_foretold(make_data, tmp_path):
    found = find_cases(make_data(2))
    preprocessor = Preprocessor(patch=(8, 8, 4), spacing_mm=(1, 2, 3), coarse_mm=()).fit(found)
    CachedCases(preprocessor, found, tmp_path / "cache")
    sizes = []
    for part in ("x", "y", "inside"):
        for path in (tmp_path / "cache").glob(f"*.{part}.npy"):
            sizes.append(path.stat().st_size - 128)  # without the header
    assert sum(sizes) == 2 * CASE_BYTES
    assert cache_bytes(check_cases(found), (1, 2, 3), (8, 8, 4), 1) == 2 * CASE_BYTES


@pytest.fixture
def leave(monkeypatch):
    """Return a function after which every disk has so many bytes left."""
    usage = collections.namedtuple("Usage", "total used free")

    def leave(free):
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda folder: usage(10**12, 0, free))

    return leave


def test_a_training_is_refused_before_it_starts_if_its_cases_find_no_room(
    make_data, tmp_path, leave, monkeypatch
):
    found = find_cases(make_data(4))
    monkeypatch.setattr(training, "_run_folds", lambda *args: pytest.fail("it has started"))
    leave(2 * CASE_BYTES)
    with pytest.raises(OSError, match=r"preprocessed cases .* set TMPDIR to a folder on") as error:
        training.cross_validate(
            found,
            tmp_path / "results",
            preprocessor=Preprocessor(patch=(8, 8, 4), spacing_mm=(1, 2, 3), coarse_mm=()),
            model_args={"filters": 4, "depth": 1},
            n_splits=2,
        )
    assert f"at most {4 * CASE_BYTES / 1000:.3g} kB" in str(error.value)


def test_what_is_prepared_already_takes_no_more_room(tmp_path, make_data, leave):
    found = find_cases(make_data(3))
    settings = {"patch": (8, 8, 4), "spacing_mm": (1, 2, 3), "coarse_mm": ()}
    preprocessor = Preprocessor(**settings).fit(found)
    asked = found, check_cases(found), preprocessor, tmp_path / "cache"
    CachedCases(preprocessor, found[:2], tmp_path / "cache")
    leave(2 * CASE_BYTES)
    require_cache(*asked)
    with pytest.raises(OSError, match="preprocessed cases"):
        require_cache(*asked[:3])
    leave(CASE_BYTES // 2)
    with pytest.raises(OSError, match="preprocessed cases"):
        require_cache(*asked)


def test_a_case_that_memory_cannot_hold_is_asked_for_its_unit(make_data, leave):
    found = find_cases(make_data(3))
    preprocessor = Preprocessor(patch=(8, 8, 4), spacing_mm=(1, 2, 3), coarse_mm=()).fit(found)
    far = nib.load(found[1].image)
    for path in (found[1].image, found[1].mask):
        image = nib.load(path)
        affine = far.affine @ np.diag([1000, 1000, 1000, 1])
        nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    leave(10**9)
    with pytest.raises(MemoryError, match=r"case_01.*Is the unit of its voxels right"):
        require_cache(found, check_cases(found), preprocessor)


def test_cases_that_are_mostly_cropped_are_not_refused(tmp_path, write_case, leave):
    image, mask = np.zeros((40, 40, 40), np.float32), np.zeros((40, 40, 40), np.uint8)
    image[10:18, 10:18, 10:18], mask[12:14, 12:14, 12:14] = 5, 1
    image[12, 12, 12] = 9
    found = [write_case(tmp_path, case_id, image, mask) for case_id in "ab"]
    preprocessor = Preprocessor(patch=(8, 8, 8)).fit(found)
    x, _ = preprocessor.transform(found[0])
    leave(3 * (x.nbytes + x.size))
    require_cache(found, check_cases(found), preprocessor)
    leave(x.nbytes + x.size)
    with pytest.raises(OSError, match="need"):
        require_cache(found, check_cases(found), preprocessor)
