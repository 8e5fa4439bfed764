"""One fold: trained, predicted, marked as done."""

import hashlib
import json
import subprocess
import sys

import keras
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from training_helpers import PATCH, build_tiny, redraw, train_one, weights

from unetseg import sample, training
from unetseg.inference import load_models
from unetseg.losses import dice_cross_entropy
from unetseg.nifti import load_mask
from unetseg.patches import Looks
from unetseg.prediction import predict_case
from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Recipe, recall_plan
from unetseg.training import train_fold


@pytest.mark.parametrize("fold", [0, 1])
def test_the_history_has_a_finite_line_per_epoch(run, fold):
    history = pd.read_csv(run.results / f"fold_{fold}" / "history.csv")
    assert set(history) == {
        "epoch",
        *(f"{part}{name}" for part in ("", "val_") for name in ("loss", "accuracy", "dice")),
    }
    assert history["epoch"].tolist() == [0, 1]
    assert np.isfinite(history).all(axis=None)
    assert history["loss"][1] < history["loss"][0]


@pytest.mark.parametrize("fold", [0, 1])
def test_the_marker_tells_the_split_and_the_digest_of_the_weights(run, fold):
    folder = run.results / f"fold_{fold}"
    done = json.loads((folder / "done.json").read_text())
    assert {part: done[part] for part in ("train", "val")} == run.folds[fold]
    digest = hashlib.sha256((folder / "model.weights.h5").read_bytes()).hexdigest()
    assert done["weights_sha256"] == digest
    assert done["steps"] == 4  # 2 epochs of 2


def test_the_weights_kept_are_those_that_the_last_line_of_the_history_scored(run, cases, tmp_path):
    preprocessor = Preprocessor.load(run.results / "preprocessor.json")
    val_cases = [case for case in cases if case.id in run.folds[0]["val"]]
    val = Looks(preprocessor, val_cases, tmp_path)
    drawn = val.draw(2, 12345, foreground=1.0, augment=False)
    (model,) = load_models(run.results, folds=[0])
    history = pd.read_csv(run.results / "fold_0" / "history.csv")
    x, y = drawn[0]  # one batch, as two cases are validated
    loss = float(dice_cross_entropy(y, model(x)))
    assert loss == pytest.approx(history["val_loss"][1], abs=1e-4)


def test_every_case_is_predicted_on_its_own_grid_by_the_model_that_did_not_see_it(run, cases):
    preprocessor = Preprocessor.load(run.results / "preprocessor.json")
    models = load_models(run.results)
    for case in cases:
        path = run.results / "predictions" / f"{case.id}.nii.gz"
        found, scan = nib.load(path), nib.load(case.image)
        assert found.shape == scan.shape
        np.testing.assert_array_equal(found.affine, scan.affine)
        labels, _ = load_mask(path)
        assert set(np.unique(labels)) <= {0, 1, 4}
        (fold,) = (k for k, fold in enumerate(run.folds) if case.id in fold["val"])
        np.testing.assert_array_equal(labels, predict_case(models[fold], case, preprocessor).labels)


def test_the_marker_tells_the_content_of_every_file_that_was_used(run, cases):
    done = json.loads((run.results / "fold_0" / "done.json").read_text())
    for case in cases:
        noted = done["inputs"][case.id]
        for path, (about, *more) in ((case.image, noted["scan"]), (case.mask, [noted["mask"]])):
            assert more == []
            assert about["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
            assert about["bytes"] == path.stat().st_size
    for folder in ("predictions", "masks"):
        for name, digest in done[f"{folder}_sha256"].items():
            path = run.results / folder / name
            assert hashlib.sha256(path.read_bytes()).hexdigest() == digest
        assert len(done[f"{folder}_sha256"]) == len(done["val"])


def test_the_masks_are_kept_beside_the_predictions(run, cases):
    for case in cases:
        kept, kept_affine = load_mask(run.results / "masks" / f"{case.id}.nii.gz")
        mask, affine = load_mask(case.mask)
        np.testing.assert_array_equal(kept, mask)
        np.testing.assert_allclose(kept_affine, affine)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(cases, tmp_path):
    first, again, other = (
        train_one(cases, tmp_path / name, seed=seed)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first.keys() == again.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)
    assert any(not np.array_equal(other[name], array) for name, array in first.items())


def test_a_fold_whose_loss_is_not_finite_is_not_marked_as_done(cases, tmp_path):
    def build_broken(input_shape, num_classes):
        model = build_tiny(input_shape, num_classes)
        return keras.Model(model.input, keras.layers.Rescaling(np.nan)(model.output))

    with pytest.raises(ValueError, match=r"(?i)finite|nan"):
        train_one(cases, tmp_path, build_broken)
    assert not (tmp_path / "fold_0" / "done.json").exists()


TRAIN = """
import sys
from pathlib import Path
from unetseg import cases, preprocessing, recipe, training
found = cases.find_cases(sys.argv[1])
settings = {"preprocessor": preprocessing.Preprocessor().fit(found), "model_args": {"filters": 8}}
settings["recipe"] = recipe.Recipe(epochs=2, steps=5)
training.train_fold(found[:2], found[2:], Path(sys.argv[2]), **settings)
"""


def test_two_processes_train_identical_weights_with_the_default_recipe(tmp_path):
    data = sample.make_sample(tmp_path / "data", n_cases=3)
    for name in ("first", "second"):
        command = [sys.executable, "-c", TRAIN, str(data), str(tmp_path / name / "fold_0")]
        subprocess.run(command, check=True, capture_output=True)
    folders = [tmp_path / name / "fold_0" for name in ("first", "second")]
    first, second = (weights(folder / "model.weights.h5") for folder in folders)
    assert first.keys() == second.keys()
    for key, array in first.items():
        np.testing.assert_array_equal(second[key], array)
    histories = [(folder / "history.csv").read_text() for folder in folders]
    assert histories[0] == histories[1]


def test_a_fold_whose_files_change_while_it_is_trained_is_not_marked_as_done(cases, own, tmp_path):
    class Redraw(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            redraw(own[3].mask)

    settings = {"preprocessor": Preprocessor(patch=PATCH, coarse_mm=()).fit(cases)}
    settings["model_args"] = {"filters": 4, "depth": 1}
    settings["recipe"] = Recipe(epochs=1, steps=1, batch_size=1, precision="float32")
    fold = tmp_path / "run" / "fold_0"
    with pytest.raises(ValueError, match="1 files were changed while they were in use: mask of c3"):
        train_fold(own[:3], own[3:], fold, callbacks=[Redraw()], **settings)
    assert not (fold / "done.json").exists()


@pytest.mark.parametrize(
    ("batch_size", "advice"),
    [(4, "BATCH_SIZE = 2 in 02_train_kfold"), (1, r"PATCH = \[8, 8, 8\] in 01_load_data")],
)
def test_where_memory_runs_out_what_would_find_room_is_said(cases, tmp_path, batch_size, advice):
    class Fill(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9663676416 bytes.")

    settings = {"preprocessor": Preprocessor(patch=PATCH, coarse_mm=()).fit(cases)}
    settings["recipe"] = Recipe(epochs=1, steps=1, batch_size=batch_size, precision="float32")
    settings |= {"build_model": build_tiny, "callbacks": [Fill()]}
    words = (
        f"a batch of {batch_size} patches of 8 x 16 x 8 voxels finds no room in it. Set {advice}"
    )
    with pytest.raises(MemoryError, match=words):
        train_fold(cases[:3], cases[3:], tmp_path / "fold_0", **settings)


def test_a_fold_that_another_worker_finished_is_not_trained_again(copy, cases, trained):
    training._run_fold(recall_plan(copy), cases[:2], cases[2:], copy / "fold_0", 1, "/nowhere")
    assert trained == []


def test_a_machine_without_the_cache_of_the_run_makes_its_own(copy, cases, tmp_path, monkeypatch):
    used, plan = [], recall_plan(copy)
    monkeypatch.setattr(training, "_train_fold", lambda *args: used.append(args[5]))
    for cache in (tmp_path, tmp_path / "elsewhere"):
        training._run_fold(plan, cases[:2], cases[2:], tmp_path / "fold_0", 1, cache)
    assert used[0] == tmp_path
    assert used[1] not in (tmp_path, tmp_path / "elsewhere")
    assert not used[1].exists()  # removed with the training
