"""One case, by fake models whose answers are known."""

import itertools
import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from fakes import Fake, constant, noise, threshold
from scipy import ndimage

from unetseg import nifti, windows
from unetseg.augmentation import add_neighbours
from unetseg.cases import check_cases, find_cases
from unetseg.metrics import dice
from unetseg.model import build_for, build_unet, plan_unet
from unetseg.prediction import normalised_entropy, predict_and_sample, predict_case
from unetseg.preprocessing import Preprocessor
from unetseg.reliability import compare_with_training
from unetseg.run.state import load_weights
from unetseg.sample import make_sample
from unetseg.training import Recipe, train_fold


@pytest.mark.parametrize(
    ("probabilities", "expected"),
    [
        ([1, 0], 0),
        ([0, 0, 1], 0),
        ([0.5, 0.5], 1),
        ([1 / 3] * 3, 1),
        ([0.25] * 4, 1),
        ([0.25, 0.75], 0.811278),  # binary entropy of 1/4, in bits
        ([0.5, 0.5, 0], np.log(2) / np.log(3)),
    ],
)
def test_the_entropy_runs_from_0_if_certain_to_1_if_all_are_equally_likely(probabilities, expected):
    found = normalised_entropy(np.full((2, 3, len(probabilities)), probabilities, np.float32))
    assert (found.shape, found.dtype) == ((2, 3), np.float32)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert found.min() >= 0
    assert found.max() <= 1


SHAPE = (10, 18, 9)


PLAIN = Preprocessor((1, 2, 3), (8, 16, 8), {5: "five"}, 1, "none")


def bright_box():
    image, mask = np.zeros(SHAPE, np.float32), np.zeros(SHAPE, bool)
    image[1:, 2:16, :8] = 10  # 9 x 14 x 8 voxels are not zero
    mask[3:8, 5:12, 2:6] = True
    image[mask] = 90
    return image, mask


@pytest.mark.parametrize("codes", ["RAS", "PSL", "IRA"])
def test_a_prediction_lies_on_the_native_grid_with_the_users_labels(tmp_path, write_case, codes):
    image, mask = bright_box()
    case = write_case(tmp_path, "a", image, codes=codes)
    found = predict_case(threshold(50), case, PLAIN)
    np.testing.assert_array_equal(found.labels, 5 * mask)
    assert found.labels.dtype == np.int32
    assert (found.probabilities.shape, found.probabilities.dtype) == ((*SHAPE, 2), np.float32)
    np.testing.assert_allclose(found.probabilities[..., 1], mask, atol=1e-6)
    np.testing.assert_allclose(found.uncertainty, 0, atol=1e-5)


def test_a_prediction_on_another_spacing_comes_back_to_its_place(tmp_path, write_case):
    i, j, k = np.indices((30, 24, 16))
    # a ball of 11 mm about (16, 22, 25) mm, in voxels of 1 x 2 x 3 mm
    mask = (i - 16) ** 2 + (2 * j - 22) ** 2 + (3 * k - 25) ** 2 <= 121
    case = write_case(tmp_path, "a", (10 + 80 * mask).astype(np.float32), codes="PSL")
    coarse = Preprocessor((1.5, 1.5, 1.5), (16, 16, 16), {2: "ball"}, 1, "none")
    found = predict_case(threshold(50), case, coarse).labels == 2
    assert 2 * (found & mask).sum() / (found.sum() + mask.sum()) >= 0.95


def test_the_mask_of_a_case_is_not_looked_at(tmp_path, write_case):
    image, mask = bright_box()
    wrong = write_case(tmp_path, "a", image, np.full(SHAPE, 77, np.uint8))
    np.testing.assert_array_equal(predict_case(threshold(50), wrong, PLAIN).labels, 5 * mask)


def test_a_slice_is_predicted_from_itself_and_its_neighbours(tmp_path, write_case):
    image, mask = bright_box()
    case = write_case(tmp_path, "a", image + 1)  # nothing to crop
    below = Fake(lambda batch: batch[..., 0] > 50)  # of channels below, itself, above
    slices = Preprocessor((1, 2, 3), (10, 18, 1), {5: "five"}, 1, "none", neighbours=1)
    expected = np.zeros_like(mask)
    expected[..., 1:] = mask[..., :-1]
    np.testing.assert_array_equal(predict_case(below, case, slices).labels, 5 * expected)


def test_slices_across_two_axes_are_averaged(tmp_path, write_case):
    image = np.arange(1.0, 1 + 10 * 18 * 10).reshape(10, 18, 10)
    case = write_case(tmp_path, "a", image, spacing_mm=(1, 1, 1))
    ramp = np.arange(10) / 9
    along_rows = Fake(lambda batch: ramp[:, None])  # of the slice: x across z, z across x
    slices = Preprocessor((1, 1, 1), (10, 18, 1), {1: "a"}, 1, "none", planes=(2, 0))
    found = predict_case(along_rows, case, slices).probabilities[..., 1]
    expected = (ramp[:, None, None] + ramp) / 2
    np.testing.assert_allclose(found, np.broadcast_to(expected, image.shape), atol=1e-6)


def test_models_that_disagree_make_the_prediction_uncertain(tmp_path, write_case):
    case = write_case(tmp_path, "a", noise(*SHAPE))  # nothing to crop
    found = predict_case([constant(1), constant(0)], case, PLAIN)
    np.testing.assert_allclose(found.probabilities, 0.5, atol=1e-6)
    np.testing.assert_allclose(found.uncertainty, 1, atol=1e-6)


EVERYWHERE = Preprocessor((1, 2, 3), (8, 8, 8), {5: "five"}, 1, "zscore", empty_space="background")


@pytest.mark.parametrize("background", [0, -1, -1024, 400])
@pytest.mark.parametrize("stray", [False, True])
def test_the_air_around_a_body_is_background_whatever_a_model_says(
    tmp_path, write_case, background, stray
):
    image = np.full((60, 50, 40), background, np.float32)
    image[20:40, 15:35, 10:30] = 100 + noise(20, 20, 20)
    if stray:  # so that cropping leaves the air where it is
        image[[0, 59, 5], [0, 49, 45], [0, 39, 3]] = 100
    case = write_case(tmp_path, "a", image, spacing_mm=(1, 1, 1))
    preprocessor = replace(EVERYWHERE, spacing_mm=(1, 1, 1))
    labels = predict_case(constant(1), case, preprocessor).labels
    near = np.zeros(image.shape, bool)
    near[16:44, 11:39, 6:34] = True  # 4 voxels around the body may be labelled
    assert (labels[20:40, 15:35, 10:30] == 5).all()
    assert (labels[~near] == 0).all()


@pytest.mark.parametrize("empty_space", ["outside", "zero"])
def test_where_labels_may_lie_in_empty_space_the_model_is_asked(tmp_path, write_case, empty_space):
    image = np.full((40, 20, 20), -1, np.float32)
    image[[0, -1], [0, -1], [0, -1]] = 1
    case = write_case(tmp_path, "a", image, spacing_mm=(1, 1, 1))
    settings = {"spacing_mm": (1, 1, 1), "empty_space": empty_space}
    assert (predict_case(constant(1), case, replace(EVERYWHERE, **settings)).labels == 5).all()


@pytest.mark.parametrize("value", [0, 7, -1000])
@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8, 1)])
def test_a_scan_of_one_value_is_background(tmp_path, write_case, value, patch):
    case = write_case(tmp_path, "a", np.full((20, 20, 20), value, np.int16))
    found = predict_case(constant(1), case, replace(EVERYWHERE, patch=patch))
    assert not found.labels.any()
    np.testing.assert_array_equal(found.probabilities[..., 0], 1)


def test_void_turns_with_the_planes_and_the_mirrored_copies(tmp_path, write_case):
    image = np.zeros((24, 16, 20), np.float32)
    image[2:8, 2:8, 2:10] = 100 + noise(6, 6, 8)
    image[-1, -1, -1] = 100
    case = write_case(tmp_path, "a", image, spacing_mm=(1, 1, 1))
    settings = {"mirror_axes": (0, 1), "planes": (2, 0), "dimensions": 2}
    preprocessor = replace(EVERYWHERE, spacing_mm=(1, 1, 1), patch=(16, 16, 1), **settings)
    labels = predict_case(constant(1), case, preprocessor).labels
    assert (labels[2:8, 2:8, 2:10] == 5).all()
    assert not labels[13:].any()
    assert not labels[:, 13:].any()
    assert not labels[..., 15:].any()


def of_three(*probabilities):
    """A model that gives every voxel the same probabilities of three classes."""
    model = Fake(None)
    model.predict_on_batch = lambda batch: np.broadcast_to(
        np.float32(probabilities), (*batch.shape[:-1], 3)
    )
    return model


THREE = Preprocessor((1, 2, 3), (8, 8, 8), {3: "a", 7: "b"}, 1, "none")


ENSEMBLES = {
    "all agree": ([(0.1, 0.2, 0.7), (0.3, 0.3, 0.4)], [2, 2], 7, 0),
    "one of three differs": ([(0.1, 0.8, 0.1), (0, 0.6, 0.4), (0, 0.4, 0.6)], [1, 1, 2], 3, 1 / 3),
    "the sure one wins": ([(0, 1, 0), (0.3, 0.3, 0.4), (0.3, 0.3, 0.4)], [1, 2, 2], 3, 2 / 3),
    # The mean is 0.3, 0.4, 0.3: a compromise that no model voted for.
    "none agrees": ([(0.6, 0.4, 0), (0, 0.4, 0.6)], [0, 2], 3, 1),
    "single": ([(0.6, 0.4, 0)], [0], 0, 0),
}


@pytest.mark.parametrize("kind", ENSEMBLES)
def test_every_model_has_its_vote_and_the_others_than_the_label_are_counted(
    kind, tmp_path, write_case
):
    given, votes, label, disagreement = ENSEMBLES[kind]
    case = write_case(tmp_path, "a", 1 + np.abs(noise(8, 9, 8)), codes="PIR")
    found = predict_case([of_three(*p) for p in given], case, THREE)
    assert (found.votes.shape, found.votes.dtype) == ((len(given), 8, 9, 8), np.uint8)
    expected = np.broadcast_to(np.reshape(votes, (-1, 1, 1, 1)), found.votes.shape)
    np.testing.assert_array_equal(found.votes, expected)
    np.testing.assert_array_equal(found.labels, np.full((8, 9, 8), label))
    assert found.disagreement.dtype == np.float32
    np.testing.assert_allclose(found.disagreement, np.full((8, 9, 8), disagreement), atol=1e-6)
    mean = np.broadcast_to(np.mean(given, axis=0), (8, 9, 8, 3))
    np.testing.assert_allclose(found.probabilities, mean, atol=1e-6)


def test_votes_lie_on_the_native_grid(tmp_path, write_case):
    image, mask = bright_box()
    image[4, 6, 3] = 40  # the second model alone finds it
    models = [threshold(50), threshold(30)]
    found = predict_case(models, write_case(tmp_path, "a", image, codes="SLP"), PLAIN)
    inner = mask.copy()
    inner[4, 6, 3] = False
    np.testing.assert_array_equal(found.votes, [inner, mask])
    np.testing.assert_allclose(found.disagreement, 0.5 * (mask ^ inner), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.5, 1, 2])
def test_a_temperature_changes_how_sure_a_prediction_is(temperature, tmp_path, write_case):
    case = write_case(tmp_path, "a", 1 + np.abs(noise(8, 16, 8)))
    models = [constant(0.64), constant(0.96)]  # mean 0.8
    found = predict_case(models, case, PLAIN, temperature=temperature)
    sure = {0.5: 0.64 / 0.68, 1: 0.8, 2: 2 / 3}[temperature]  # p^(1 / T), to a sum of 1
    np.testing.assert_allclose(found.probabilities[..., 1], sure, atol=1e-6)
    bits = -sure * math.log2(sure) - (1 - sure) * math.log2(1 - sure)
    np.testing.assert_allclose(found.uncertainty, bits, atol=1e-5)
    assert (found.labels == 5).all()
    assert not found.disagreement.any()


def test_a_temperature_changes_no_label_also_where_two_are_almost_equal(tmp_path, write_case):
    case = write_case(tmp_path, "a", 1 + np.abs(noise(8, 16, 8)))
    found = predict_case(constant(0.5 + 2e-7), case, PLAIN, temperature=20)
    assert (found.labels == 5).all()


@pytest.mark.parametrize(
    ("trained", "axes", "copies"),
    [
        ((0, 1, 2), (), 1),
        ((0, 1, 2), (0,), 2),
        ((0, 1, 2), (0, 2), 4),
        ((0, 1, 2), [0, 1, 2], 8),
        # by default those of training
        ((0, 1, 2), None, 8),
        ((0,), None, 2),
        ((), None, 1),
        (None, None, 1),
    ],
)
def test_mirrored_copies_are_turned_back_and_averaged(tmp_path, write_case, trained, axes, copies):
    case = write_case(tmp_path, "a", 1 + np.abs(noise(8, 16, 8)))
    square = (np.arange(8) / 7) ** 2
    model = Fake(lambda batch: square[:, None, None])  # depends on the place alone
    options = {} if axes is None else {"mirror_axes": axes}
    found = predict_case(model, case, replace(PLAIN, mirror_axes=trained), **options)
    mirrored = 0 in (trained or () if axes is None else axes)
    expected = (square + square[::-1]) / 2 if mirrored else square
    np.testing.assert_allclose(found.probabilities[..., 1].mean(axis=(1, 2)), expected, atol=1e-6)
    assert sum(shape[0] for shape in model.shapes) == copies


@pytest.mark.parametrize(
    ("trained", "axes"), [((0,), (1,)), ((0,), (0, 2)), ((), (0,)), (None, [0]), ((1, 2), (0, 1))]
)
def test_axes_along_which_training_did_not_mirror_are_refused(tmp_path, write_case, trained, axes):
    case = write_case(tmp_path, "a", 1 + np.abs(noise(8, 16, 8)))
    preprocessor = replace(PLAIN, mirror_axes=trained)
    with pytest.raises(ValueError, match=r"mirror_axes must be among .*mirror_axes=\(") as error:
        predict_case(constant(1), case, preprocessor, mirror_axes=axes)
    assert str(trained or ()) in str(error.value)
    assert str(error.value).endswith(f"={tuple(axes)}")


def test_mirroring_changes_nothing_for_a_model_that_looks_at_the_voxel_alone(tmp_path, write_case):
    image, mask = bright_box()
    case = write_case(tmp_path, "a", image)
    found = predict_case(threshold(50), case, replace(PLAIN, mirror_axes=(0, 1, 2)))
    np.testing.assert_allclose(found.probabilities[..., 1], mask, atol=1e-6)


@pytest.mark.long
def test_a_head_in_a_large_field_of_view_is_alone_labelled(tmp_path, write_case):
    # Trained on heads that fill their field of view, and used on one in five times the volume.
    folder = make_sample(tmp_path / "sample", n_cases=4)
    heads = []
    for case in find_cases(folder):
        (image, _), (mask, _) = nifti.load_image(case.image), nifti.load_mask(case.mask)
        brain = ndimage.binary_dilation(mask > 0)
        heads.append((np.where(brain, image, 0), mask))
    cases = [write_case(tmp_path, f"{k}", *pair, (3, 3, 3)) for k, pair in enumerate(heads)]
    preprocessor = Preprocessor(patch=(32, 32, 32)).fit(cases)
    assert preprocessor.empty_space == "background"
    settings = {"recipe": Recipe(epochs=3, steps=40), "model_args": {"filters": 8}}
    train_fold(cases[:3], cases[3:], tmp_path / "fold_0", preprocessor=preprocessor, **settings)
    model = build_for(preprocessor, build_unet, plan_unet(preprocessor, filters=8))
    load_weights(model, tmp_path / "fold_0" / "model.weights.h5")

    image, mask = heads[3]
    large = np.zeros([int(1.71 * n) for n in image.shape], np.float32)
    head = tuple(slice(10, 10 + n) for n in image.shape)
    large[head] = image
    large[[0, -1, 3], [0, -1, 60], [0, -1, 5]] = 500  # so that the air is not cropped
    labels = predict_case(
        model, write_case(tmp_path, "large", large, spacing_mm=(3, 3, 3)), preprocessor
    ).labels
    assert dice(labels[head] > 0, mask > 0) > 0.8
    labels[head] = 0
    assert np.argwhere(labels).tolist() == []
    flat = write_case(tmp_path, "flat", np.full_like(image, 100), spacing_mm=(3, 3, 3))
    assert not predict_case(model, flat, preprocessor).labels.any()
    static = write_case(tmp_path, "static", 100 + noise(*image.shape), spacing_mm=(3, 3, 3))
    told = compare_with_training(check_cases([static], need_masks=False), check_cases(cases[:3]))
    assert "smoothness" in told["static"]


def by_the_book(models, case, preprocessor, mirror_axes=(), overlap=0.5):
    """All class maps at once: windows, mirrored copies, planes, then each model's map resampled."""
    prepared, sampling = preprocessor.prepare(case), preprocessor.sampling
    place = prepared.place
    flat = preprocessor.patch.index(1) if 1 in preprocessor.patch else 0
    planes, maps = sampling.planes or (flat,), []
    for model in models:
        total = 0
        for plane in planes:
            view = prepared.x.swapaxes(plane, flat)
            view = add_neighbours(view, flat, sampling.neighbours)
            for n in range(len(mirror_axes) + 1):
                for axes in itertools.combinations(mirror_axes, n):
                    axes = [{plane: flat, flat: plane}.get(axis, axis) for axis in axes]
                    found = whole_slide(model, np.flip(view, axes), preprocessor.patch, overlap)
                    total = total + np.flip(found, axes).swapaxes(plane, flat)
        total = total / (len(planes) * 2 ** len(mirror_axes))
        native = np.zeros((*place.shape, total.shape[-1]), np.float32)
        native[..., 0] = 1
        factors = np.array(place.box_shape) / place.inner_shape
        for k in range(total.shape[-1]):
            zoomed = ndimage.zoom(
                total[(*place.inner, k)], factors, order=1, mode="nearest", grid_mode=True
            )
            native[(*place.box, k)] = zoomed
        maps.append(native)
    return np.mean(maps, axis=0), np.stack([one.argmax(axis=-1) for one in maps])


def whole_slide(model, x, patch, overlap):
    weight = windows._window_weight(patch)[..., None]
    total, weights = 0, np.zeros((*x.shape[:3], 1))
    steps = [windows._starts(n, p, overlap) for n, p in zip(x.shape, patch, strict=False)]
    for start in itertools.product(*steps):
        box = tuple(slice(a, a + p) for a, p in zip(start, patch, strict=True))
        flat = (*(n for n in patch if n > 1), -1)
        found = model.predict_on_batch(x[box].reshape(flat)[None])[0].reshape(*patch, -1)
        if not np.any(total):
            total = np.zeros((*x.shape[:3], found.shape[-1]))
        total[box] += found * weight
        weights[box] += weight
    return total / weights


class Textured:
    """A model whose probabilities of four classes depend on the image and the place in it."""

    def __init__(self, seed):
        self.rates = np.random.default_rng(seed).normal(size=(4, 3))

    def predict_on_batch(self, batch):
        place = np.indices(batch.shape[1:-1]).sum(axis=0) / 7
        features = [batch.mean(axis=-1), np.broadcast_to(place, batch.shape[:-1]), batch[..., 0]]
        features = [np.sin(3 * one) for one in features]
        logits = np.tensordot(np.stack(features, axis=-1), self.rates, axes=(-1, -1))
        raised = np.exp(logits)
        return (raised / raised.sum(axis=-1, keepdims=True)).astype(np.float32)


FOUR = {"labels": {3: "a", 5: "b", 9: "c"}, "channels": 1, "normalisation": "zscore"}


BLOCKS = {
    "one model": (1, (1, 2, 3), (8, 8, 8), {}),
    "five models": (5, (1, 2, 3), (8, 8, 8), {}),
    "mirrored": (2, (1, 2, 3), (8, 8, 8), {"mirror_axes": (0, 2)}),
    "finer grid": (2, (0.8, 1.3, 1.4), (8, 10, 8), {"mirror_axes": (1,)}),
    "coarser grid": (2, (1.7, 2.5, 3.6), (8, 8, 8), {}),
    "patch beyond the scan": (2, (1.4, 2.6, 3), (32, 8, 8), {"mirror_axes": (0,)}),
    "slices": (2, (1, 2, 3), (8, 8, 1), {"neighbours": 1, "mirror_axes": (0,)}),
    "sagittal slices": (1, (1.2, 2, 2.8), (1, 8, 8), {"neighbours": 1}),
    "two planes": (2, (1.5, 1.5, 1.6), (8, 12, 1), {"planes": (2, 0), "mirror_axes": (0, 1)}),
}


@pytest.mark.parametrize("most_bytes", [10**9, 9000, 1])
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_change_no_number(kind, most_bytes, tmp_path, write_case, small_blocks):
    count, spacing_mm, patch, more = BLOCKS[kind]
    preprocessor = Preprocessor(spacing_mm, patch, **FOUR, **more)
    image = np.zeros((17, 13, 15), np.float32)
    image[2:16, :12, 1:14] = np.random.default_rng(0).normal(9, 2, (14, 12, 13))
    case = write_case(tmp_path, "a", image, codes="PIR")
    models = [Textured(seed) for seed in range(count)]
    mean, votes = by_the_book(models, case, preprocessor, more.get("mirror_axes", ()))
    small_blocks(most_bytes)
    found = predict_case(models, case, preprocessor)
    np.testing.assert_allclose(found.probabilities, mean, atol=2e-6)
    np.testing.assert_array_equal(found.votes, votes)
    np.testing.assert_array_equal(found.labels, np.array([0, 3, 5, 9])[mean.argmax(axis=-1)])
    assert len(np.unique(found.labels)) >= 3
    np.testing.assert_allclose(
        found.disagreement, (votes != mean.argmax(axis=-1)).mean(axis=0), atol=1e-6
    )
    expected = -(mean * np.log(np.maximum(mean, 1e-12))).sum(axis=-1) / np.log(4)
    np.testing.assert_allclose(found.uncertainty, expected, atol=1e-5)
    without = predict_case(models, case, preprocessor, probabilities=False, temperature=2)
    assert without.probabilities is None
    np.testing.assert_array_equal(without.labels, found.labels)
    softened = predict_case(models, case, preprocessor, temperature=2)
    np.testing.assert_array_equal(without.uncertainty, softened.uncertainty)


@pytest.mark.parametrize("most_bytes", [10**9, 9000])
def test_the_probabilities_of_chosen_voxels_are_those_of_the_map(
    most_bytes, tmp_path, write_case, small_blocks
):
    image = np.zeros((17, 13, 15), np.float32)
    image[2:16, :12, 1:14] = np.random.default_rng(0).normal(9, 2, (14, 12, 13))
    case = write_case(tmp_path, "a", image)
    preprocessor = Preprocessor((1.2, 2, 3), (8, 8, 8), **FOUR, mirror_axes=(0,))
    small_blocks(most_bytes)
    whole = predict_case(Textured(0), case, preprocessor)
    seen = []

    def choose(labels):
        seen.append(labels)
        return np.random.default_rng(1).choice(labels.size, 500, replace=False)

    labels, chosen, sampled = predict_and_sample(
        Textured(0), preprocessor.prepare(case), preprocessor, choose
    )
    np.testing.assert_array_equal(labels, whole.labels)
    assert seen[0] is labels
    expected = whole.probabilities.reshape(-1, 4)[chosen]
    np.testing.assert_array_equal(sampled, expected)
    assert (expected == [1, 0, 0, 0]).all(axis=1).any()  # also where the scan was cropped


class Flat:
    """A model to which all of 64 classes are equally likely."""

    def predict_on_batch(self, batch):
        return np.full((*batch.shape[:-1], 64), 1 / 64, np.float32)


@pytest.mark.parametrize(
    ("spacing", "mirror_axes", "patch"),
    [(1.0, (), (32, 32, 32)), (1.25, (0,), (32, 32, 32)), (1.0, (), (32, 32, 1))],
)
def test_many_classes_take_less_memory_than_one_map_of_them(
    spacing, mirror_axes, patch, tmp_path, write_case, small_blocks, monkeypatch
):
    image = np.random.default_rng(0).normal(100, 9, (64, 64, 64)).astype(np.float32)
    case = write_case(tmp_path, "a", image, spacing_mm=(1, 1, 1))
    labels, axes = {k: str(k) for k in range(1, 64)}, {"mirror_axes": mirror_axes, "planes": ()}
    preprocessor = Preprocessor((spacing,) * 3, patch, labels, 1, "none", **axes)
    small_blocks(2**23)
    monkeypatch.setattr(windows, "BATCH_VOXELS", 2**15)
    tracemalloc.start()
    try:
        predict_case([Flat()] * 2, case, preprocessor, probabilities=False, temperature=2.0)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    whole = 4 * 64**3 * 64  # 67 MB; there once were five of them at a time
    assert 0.1 * whole < peak < 0.8 * whole


def test_without_a_model_nothing_is_predicted():
    with pytest.raises(ValueError, match="models must be at least one"):
        predict_case([], None, PLAIN)
