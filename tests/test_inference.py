import hashlib
import json
from dataclasses import asdict, replace

import keras
import nibabel as nib
import numpy as np
import pytest

from unetseg import inference
from unetseg.inference import (
    load_models,
    normalised_entropy,
    predict_case,
    predict_cases,
    slide,
)
from unetseg.preprocessing import Preprocessor

# numpy's complaint about the variables of TensorFlow, which Keras hands to it
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")


class Fake:
    """A model whose probability of class 1 is a function of the batch."""

    def __init__(self, probability):
        self.probability, self.shapes = probability, []

    def predict_on_batch(self, batch):
        self.shapes.append(batch.shape)
        p = np.broadcast_to(self.probability(batch), batch.shape[:-1])
        return np.stack([1 - p, p], axis=-1).astype(np.float32)


def threshold(limit=0.0):
    return Fake(lambda batch: batch[..., 0] > limit)


def constant(p):
    return Fake(lambda batch: p)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


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


def test_many_windows_go_through_in_several_batches(monkeypatch):
    monkeypatch.setattr(inference, "BATCH_VOXELS", 800)
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
    image, _ = bright_box()
    case = write_case(tmp_path, "a", image + 1)  # nothing to crop
    found = predict_case([constant(1), constant(0)], case, PLAIN)
    np.testing.assert_allclose(found.probabilities, 0.5, atol=1e-6)
    np.testing.assert_allclose(found.uncertainty, 1, atol=1e-6)


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


def test_predictions_are_written_as_nifti_on_the_grid_of_each_scan(tmp_path, write_case):
    image, mask = bright_box()
    cases = [
        write_case(tmp_path, "one", image, codes="PSL"),
        write_case(tmp_path, "two", [image], codes="LIA"),
    ]
    predict_cases(threshold(50), cases, PLAIN, tmp_path / "out", overlap=0.25)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "one.nii.gz",
        "two.nii.gz",
    ]
    for case, codes in zip(cases, ("PSL", "LIA"), strict=True):
        like = write_case(tmp_path, f"{case.id}_expected", 5 * mask.astype(np.uint8), codes=codes)
        expected = nib.load(like.image)
        found = nib.load(tmp_path / "out" / f"{case.id}.nii.gz")
        np.testing.assert_array_equal(found.affine, expected.affine)
        np.testing.assert_array_equal(np.asanyarray(found.dataobj), expected.dataobj)


def build_scale(input_shape, num_classes, *, width=1):
    inputs = keras.Input(input_shape)
    hidden = keras.layers.Dense(width)(inputs)
    return keras.Model(inputs, keras.layers.Dense(num_classes, activation="softmax")(hidden))


@pytest.fixture
def results(tmp_path):
    """An experiment with folds 0, 2 and 10 finished and 3 not; all weights of fold k are k."""
    preprocessor = Preprocessor((1, 2, 3), (8, 8, 1), {5: "five"}, 1)
    preprocessor.save(tmp_path / "preprocessor.json")
    settings = {"builder": "mine.build_scale", "model_args": {"width": 3}, "seed": 0}
    settings |= {"recipe": {"epochs": 1, "precision": "float32"}}
    settings |= {"preprocessor": asdict(preprocessor)}
    about = {"settings": settings, "precision": "float32", "batch_size": 1}
    (tmp_path / "experiment.json").write_text(json.dumps(about))
    done = {"minutes": 1, "train": ["a"], "val": ["b"]}
    for fold in (0, 2, 10, 3):
        folder = tmp_path / f"fold_{fold}"
        folder.mkdir()
        model = build_scale((8, 8, 1), 2, width=3)
        model.set_weights([np.full(w.shape, fold) for w in model.get_weights()])
        model.save_weights(folder / "model.weights.h5")
        if fold != 3:
            digest = hashlib.sha256((folder / "model.weights.h5").read_bytes()).hexdigest()
            (folder / "done.json").write_text(json.dumps(done | {"weights_sha256": digest}))
    return tmp_path


@pytest.mark.parametrize(
    ("folds", "expected"), [(None, [0, 2, 10]), ([2], [2]), (range(0, 3, 2), [0, 2])]
)
def test_the_finished_folds_are_loaded_in_order(results, folds, expected):
    models = load_models(results, build_model=build_scale, folds=folds)
    assert [model.get_weights()[0].max() for model in models] == expected
    assert models[0].input_shape == (None, 8, 8, 1)
    assert models[0].compute_dtype == "float32"  # as they were trained, whatever the hardware


@pytest.mark.parametrize("folds", [[3], [0, 7]])
def test_a_fold_that_is_not_finished_is_refused_by_number(results, folds):
    with pytest.raises(FileNotFoundError, match=f"fold_{folds[-1]}"):
        load_models(results, build_model=build_scale, folds=folds)


def test_a_folder_without_a_finished_fold_is_refused_by_name(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}: no finished fold"):
        load_models(tmp_path)


def test_damaged_weights_are_refused_by_name(results):
    (results / "fold_2" / "model.weights.h5").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"fold_2.model\.weights\.h5: damaged"):
        load_models(results, build_model=build_scale)


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")  # Keras 3.15
def test_weights_of_another_builder_are_refused_by_name(results):
    def narrower(input_shape, num_classes, *, width):
        return build_scale(input_shape, num_classes, width=width - 1)

    with pytest.raises(ValueError, match=r"fold_0.model\.weights\.h5: does not fit"):
        load_models(results, build_model=narrower)
