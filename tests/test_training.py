import contextlib
import hashlib
import json
import pickle
import platform
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import h5py
import keras
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf

from unetseg import _base, model, sample, splits, training, workspace
from unetseg.augmentation import CachedCases, Patches
from unetseg.inference import load_models, predict_and_sample, predict_case
from unetseg.model import build_unet, dice_cross_entropy
from unetseg.nifti import load_mask
from unetseg.preprocessing import Preprocessor
from unetseg.run import layout, lock, processes, state
from unetseg.training import Recipe, cross_validate, make_folds, train_fold

# numpy's complaint about the variables of TensorFlow, which Keras hands to it
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

SHAPE = (10, 18, 9)
PATCH = (8, 16, 8)
SETTINGS = {
    "model_args": {"filters": 4, "depth": 1},
    "preprocessor": Preprocessor(patch=PATCH),
    "n_splits": 2,
    "epochs": 2,
    "steps": 2,
    "batch_size": 2,
    "precision": "float32",
}


def build_tiny(input_shape, num_classes, *, filters=4, dropout=0.0):
    convolution = getattr(keras.layers, f"Conv{len(input_shape) - 1}D")
    inputs = keras.Input(input_shape)
    x = convolution(filters, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.Dropout(dropout)(x)
    return keras.Model(inputs, convolution(num_classes, 1, activation="softmax")(x))


TINY = {**SETTINGS, "build_model": build_tiny, "model_args": {"filters": 3}}


def arrays(seed, channels=1):
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:5, 4:9, 2:6], mask[5:8, 4:9, 2:6] = 1, 4
    noise = np.random.default_rng(seed).integers(1, 100, (*SHAPE, channels))
    return np.squeeze(noise + 100 * mask[..., None]).astype(np.int16), mask


@pytest.fixture(scope="module")
def make_cases(tmp_path_factory, write_case):
    def make(n=4, channels=1, orientations=("RAS", "PSL", "LPS", "IRA")):
        folder = tmp_path_factory.mktemp("cases")
        return [
            write_case(folder, f"c{k}", *arrays(k, channels), codes=orientations[k % 4])
            for k in range(n)
        ]

    return make


@pytest.fixture(scope="module")
def cases(make_cases):
    return make_cases()


@pytest.fixture(scope="module")
def run(cases, tmp_path_factory):
    """A finished cross-validation that tests look at and never change."""
    folder = tmp_path_factory.mktemp("run")
    folds = cross_validate(cases, folder / "results", backup_dir=folder / "backup", **SETTINGS)
    return SimpleNamespace(results=folder / "results", backup=folder / "backup", folds=folds)


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run.results, tmp_path / "results")


@pytest.fixture
def in_process(monkeypatch):
    """Folds are trained in this process, so that a test may replace what they call."""
    monkeypatch.setattr(processes, "run_apart", lambda folder, function, *args: function(*args))


@pytest.fixture
def trained(monkeypatch, in_process):
    """Training only notes which folds it was called for."""
    calls = []

    def note(train_cases, val_cases, fold_dir, **kwargs):
        assert not (fold_dir / "done.json").exists()
        calls.append((fold_dir.name, [c.id for c in train_cases], [c.id for c in val_cases]))

    monkeypatch.setattr(training, "train_fold", note)
    return calls


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def weights(path):
    found = {}
    with h5py.File(path) as file:
        file.visititems(
            lambda name, item: found.update({name: item[()]} if hasattr(item, "dtype") else {})
        )
    return found


def test_folds_are_made_by_the_function_of_the_splits():
    assert training.make_folds is splits.make_folds


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("steps", 0),
        ("batch_size", 0),
        ("warmup", 1.0),
        ("warmup", -0.1),
        ("averaging", 1.5),
        ("foreground", -0.5),
        ("precision", "float16"),
    ],
)
def test_a_bad_field_of_the_recipe_is_refused_by_name_before_anything_is_read(
    tmp_path, field, value
):
    with pytest.raises(ValueError, match=rf"{field} must be .*Received: {field}='?{value}'?"):
        Recipe(**{field: value})
    with pytest.raises(ValueError, match=field):
        cross_validate([], tmp_path / "results", **{field: value})
    assert not (tmp_path / "results").exists()


def test_a_misspelt_field_of_the_recipe_is_refused(cases, tmp_path):
    with pytest.raises(TypeError, match="epoch"):
        cross_validate(cases, tmp_path / "results", epoch=3)


def test_a_run_leaves_the_files_of_the_design_and_no_others(run, cases):
    assert files(run.results) == {
        *("experiment.json", "preprocessor.json", "cases.csv", "leaks.csv", "splits.json"),
        *(
            f"fold_{k}/{n}"
            for k in (0, 1)
            for n in ("model.weights.h5", "history.csv", "calibration.csv", "done.json")
        ),
        *(f"{folder}/{case.id}.nii.gz" for case in cases for folder in ("masks", "predictions")),
    }


def test_the_experiment_file_tells_settings_labels_versions_hardware_and_minutes(run):
    experiment = json.loads((run.results / "experiment.json").read_text())
    settings = experiment["settings"]
    assert settings["builder"] == "unetseg.model.build_unet"
    assert settings["model_args"] == {
        "filters": 4,
        "depth": 1,
        "dropout": 0.0,
        "strides": [[2, 1, 1]],
        "kernels": [[3, 1, 1], [3, 3, 3]],  # voxels of 1 x 2 x 3 mm
    }
    assert experiment["batch_size"] == 2
    assert settings["preprocessor"]["patch"] == [8, 16, 8]
    assert settings["seed"] == 12345
    assert settings["preprocessor"]["labels"] == {"1": "label 1", "4": "label 4"}
    assert settings["recipe"]["epochs"] == 2
    assert settings["recipe"].keys() == Recipe.__dataclass_fields__.keys()
    assert experiment["precision"] == "float32"
    assert experiment["versions"]["keras"] == keras.__version__
    assert experiment["hardware"]["cores"] >= 1
    assert experiment["minutes"] >= 0


def test_the_preprocessor_that_was_fitted_is_saved(run, cases):
    saved = Preprocessor.load(run.results / "preprocessor.json")
    assert saved == Preprocessor(patch=PATCH).fit(cases)


def test_splits_and_cases_are_tables_one_can_open(run, cases):
    assert json.loads((run.results / "splits.json").read_text()) == run.folds
    assert run.folds == make_folds(cases, 2)
    assert pd.read_csv(run.results / "cases.csv")["case"].tolist() == ["c0", "c1", "c2", "c3"]


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
    val = CachedCases(preprocessor, val_cases, tmp_path)
    sampling = {"foreground": 1.0, "augment": False, "repeat_after": 1}
    x, y = Patches(val, PATCH, 2, 12345, **sampling)[0]
    (model,) = load_models(run.results, folds=[0])
    history = pd.read_csv(run.results / "fold_0" / "history.csv")
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


def test_the_backup_holds_the_same_files(run):
    assert files(run.backup) == files(run.results)
    for name in files(run.results):
        assert (run.backup / name).read_bytes() == (run.results / name).read_bytes()


def test_a_second_call_trains_nothing_and_returns_the_same_folds(copy, run, cases, trained):
    paths = sorted(copy.rglob("*.h5")) + sorted(copy.rglob("*.nii.gz"))
    before = [path.stat().st_mtime_ns for path in paths]
    assert cross_validate(cases[::-1], copy, **SETTINGS) == run.folds
    assert trained == []
    assert [path.stat().st_mtime_ns for path in paths] == before


def test_a_second_call_completes_a_backup_that_was_cut_short(copy, cases, tmp_path, trained):
    cross_validate(cases, copy, backup_dir=tmp_path / "backup", **SETTINGS)
    assert files(tmp_path / "backup") == files(copy)


def test_a_fold_without_its_marker_is_trained_again_and_no_other(copy, run, cases, trained):
    (copy / "fold_1" / "done.json").unlink()
    cross_validate(cases, copy, **SETTINGS)
    assert trained == [("fold_1", run.folds[1]["train"], run.folds[1]["val"])]


@pytest.mark.parametrize("lost", ["fold_1/model.weights.h5", "predictions/{}.nii.gz"])
def test_a_fold_whose_weights_or_predictions_are_gone_is_trained_again(
    copy, run, cases, trained, lost
):
    (copy / lost.format(run.folds[1]["val"][0])).unlink()
    cross_validate(cases, copy, **SETTINGS)
    assert [name for name, *_ in trained] == ["fold_1"]


def test_retrain_trains_finished_folds_again_and_keeps_no_prediction_of_before(
    copy, cases, trained
):
    cross_validate(cases, copy, retrain=True, **SETTINGS)
    assert [name for name, *_ in trained] == ["fold_0", "fold_1"]
    assert list((copy / "predictions").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"epochs": 3}, "recipe.epochs: 2 there, 3 now"),
        ({"model_args": {"filters": 8, "depth": 1}}, "model_args.filters: 4 there, 8 now"),
        ({"seed": 7}, "seed: 12345 there, 7 now"),
        (
            {"preprocessor": Preprocessor(patch=PATCH, normalisation="percentile")},
            "preprocessor.normalisation: zscore there, percentile now",
        ),
    ],
)
def test_other_settings_are_refused_with_what_differs(copy, cases, trained, change, line):
    for retrain in (False, True):
        with pytest.raises(ValueError, match="other settings") as error:
            cross_validate(cases, copy, retrain=retrain, **SETTINGS | change)
        assert [row.strip() for row in str(error.value).splitlines()[1:-1]] == [line]
    assert trained == []


EDITED = [
    {"train": ["c0", "c1"], "val": ["c2", "c3"]},
    {"train": ["c3"], "val": ["c0"]},
]


def test_splits_edited_by_hand_are_respected(cases, tmp_path, trained):
    (tmp_path / "splits.json").write_text(json.dumps(EDITED))
    assert make_folds(cases, 2) != EDITED
    assert cross_validate(cases, tmp_path, **SETTINGS) == EDITED
    assert trained == [
        ("fold_0", ["c0", "c1"], ["c2", "c3"]),
        ("fold_1", ["c3"], ["c0"]),
    ]


def test_a_rare_label_is_trained_on_in_every_fold_and_what_is_not_scored_is_said(
    write_case, tmp_path, trained, capsys
):
    found = []
    for k in range(5):
        image, mask = arrays(k)
        mask[0, 0, 0] = 9 * (k == 0)
        mask[mask == 4] *= k in (0, 1, 2)
        found.append(write_case(tmp_path, f"c{k}", image, mask))
    folds = cross_validate(found, tmp_path / "results", **SETTINGS)
    assert json.loads((tmp_path / "results" / "splits.json").read_text()) == folds
    for (_, train, val), fold in zip(trained, folds, strict=True):
        assert (train, val) == (fold["train"], fold["val"])
        assert "c0" in train  # which alone has label 9
        assert len({"c1", "c2"} & set(val)) == 1  # which share label 4 with it
    said = capsys.readouterr().out
    assert "4 of 5 cases are validated by one of them." in said
    assert "Label 9 is in 1 case (c0), always trained on: no case that has it is scored." in said
    assert "Label 4" not in said


def test_a_label_to_ignore_stops_before_any_training(cases, tmp_path, trained):
    named = {"preprocessor": Preprocessor(patch=PATCH, labels={1: "lesion", 4: "ignore"})}
    with pytest.raises(ValueError, match=r"labels mark voxels to ignore: 'ignore' = 4"):
        cross_validate(cases, tmp_path, **SETTINGS | named)
    assert trained == []


def test_splits_edited_after_a_fold_was_trained_are_refused(copy, cases, trained):
    (copy / "splits.json").write_text(json.dumps(EDITED))
    with pytest.raises(ValueError, match=r"fold_0.done\.json: this fold was trained on another"):
        cross_validate(cases, copy, **SETTINGS)
    assert trained == []


@pytest.fixture
def own(cases, tmp_path):
    """The same cases in files that a test may change."""

    def take(path):
        return Path(shutil.copy2(path, tmp_path))

    return [replace(case, image=take(case.image), mask=take(case.mask)) for case in cases]


def redraw(path):
    """Correct a mask: its first label loses a voxel."""
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    mask[tuple(np.argwhere(mask == 1)[0])] = 0
    nib.save(nib.Nifti1Image(mask, image.affine), path)


def content(folder):
    return {name: (folder / name).read_bytes() for name in files(folder)}


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


def test_corrected_masks_and_other_scans_stop_before_anything_is_done(copy, own, trained):
    redraw(own[1].mask)
    own[2].image.write_bytes(own[3].image.read_bytes())
    before = content(copy)
    with pytest.raises(ValueError, match="since 2 folds were finished 2 files") as error:
        cross_validate(own, copy, **SETTINGS)
    assert "the mask of c1 changed, the scan of c2 changed. RETRAIN" in str(error.value)
    assert trained == []
    assert content(copy) == before


def test_retrain_trains_on_the_masks_that_were_corrected(copy, own, trained):
    redraw(own[1].mask)
    cross_validate(own, copy, retrain=True, **SETTINGS)
    assert [name for name, *_ in trained] == ["fold_0", "fold_1"]


def test_a_case_that_is_gone_is_named_with_what_to_do(copy, own, trained):
    before = content(copy)
    with pytest.raises(ValueError, match=r"c3 is not in the data any more\. .*EXPERIMENT"):
        cross_validate(own[:3], copy, **SETTINGS)
    assert content(copy) == before


def test_cases_that_are_added_are_named_and_do_not_enter_the_table_of_what_was_trained_on(
    copy, run, own, tmp_path, write_case, trained, capsys
):
    new = write_case(tmp_path / "new", "c9", *arrays(9), group="p9")
    assert cross_validate([*own, new], copy, **SETTINGS) == run.folds
    said = capsys.readouterr().out
    assert "1 cases are in no fold of splits.json, so they are not used: c9." in said
    assert "2 of 2 folds are finished" in said
    assert trained == []
    assert (copy / "cases.csv").read_bytes() == (run.results / "cases.csv").read_bytes()
    (copy / "fold_0" / "done.json").unlink()
    cross_validate([*own, new], copy, **SETTINGS)
    assert pd.read_csv(copy / "cases.csv")["case"].tolist() == ["c0", "c1", "c2", "c3"]


def test_folds_of_an_earlier_version_count_as_finished_and_what_is_not_known_is_said(
    copy, own, trained, capsys
):
    for path in copy.glob("fold_*/done.json"):
        done = json.loads(path.read_text())
        old = {k: v for k, v in done.items() if k not in ("inputs", "masks_sha256")}
        path.write_text(json.dumps(old))
    cross_validate(own, copy, **SETTINGS)
    said = capsys.readouterr().out
    assert "Fold 0, 1: of an earlier version; not known whether its scans changed." in said
    assert "2 of 2 folds are finished" in said
    assert trained == []


def test_splits_that_override_the_settings_are_said(copy, own, trained, capsys):
    cross_validate(own, copy, **SETTINGS)
    assert "splits.json" not in capsys.readouterr().out
    cross_validate(own, copy, **SETTINGS | {"n_splits": 4})
    said = capsys.readouterr().out
    assert "splits.json: its 2 folds are used; FOLDS=4, SEED=12345 and GROUPS" in said


def test_unsound_splits_edited_by_hand_stop_before_training(cases, tmp_path, trained):
    folds = [{"train": ["c0", "c1"], "val": ["c1", "c2"]}]
    (tmp_path / "splits.json").write_text(json.dumps(folds))
    with pytest.raises(ValueError, match="cases are in both parts: c1"):
        cross_validate(cases, tmp_path, **SETTINGS)
    assert trained == []


def test_a_leak_stops_before_any_training_unless_it_is_allowed(
    cases, make_cases, tmp_path, trained, write_case
):
    image, mask = arrays(0)  # that of c0, stored otherwise and under another name
    twice = [*cases, write_case(tmp_path, "again", image, mask, codes="LPS")]
    folds = [{"train": ["c0", "c1", "c2"], "val": ["again", "c3"]}]
    results = tmp_path / "results"
    results.mkdir()
    (results / "splits.json").write_text(json.dumps(folds))
    with pytest.raises(ValueError, match="again and c0: identical scan"):
        cross_validate(twice, results, **SETTINGS)
    assert trained == []
    assert files(results) == {"splits.json"}
    cross_validate(twice, results, allow_leaks=True, **SETTINGS)
    assert [name for name, *_ in trained] == ["fold_0"]
    [header, leak] = (results / "leaks.csv").read_text().splitlines()
    assert header == "kind,case,other,fold,detail"
    assert leak.startswith("identical scan,again,c0,0,")


def test_a_patient_in_both_parts_stops_before_any_training(cases, tmp_path, trained):
    grouped = [replace(case, group="x") for case in cases]
    (tmp_path / "splits.json").write_text(json.dumps(EDITED))
    with pytest.raises(ValueError, match="one patient, patient x"):
        cross_validate(grouped, tmp_path, **SETTINGS)
    assert trained == []


def test_the_masks_are_kept_beside_the_predictions(run, cases):
    for case in cases:
        kept, kept_affine = load_mask(run.results / "masks" / f"{case.id}.nii.gz")
        mask, affine = load_mask(case.mask)
        np.testing.assert_array_equal(kept, mask)
        np.testing.assert_allclose(kept_affine, affine)


def test_a_bad_case_stops_before_any_training(cases, tmp_path, write_case, trained):
    image, mask = arrays(9)
    bad = [
        *(write_case(tmp_path, "unmasked", image), write_case(tmp_path, "empty", image, 0 * mask)),
        write_case(tmp_path, "smaller", image, mask[:5]),
    ]
    with pytest.raises(ValueError, match="3 of 7 cases have a problem") as error:
        cross_validate([*cases, *bad], tmp_path / "results", **SETTINGS)
    assert all(f"{case.id}: " in str(error.value) for case in bad)
    assert trained == []
    assert not (tmp_path / "results").exists()


def test_a_case_with_other_channels_stops_before_any_training(cases, tmp_path, write_case):
    odd = write_case(tmp_path, "odd", *arrays(9, channels=2))
    with pytest.raises(ValueError, match=r"odd: not 1 channels, as most cases have"):
        cross_validate([*cases, odd], tmp_path / "results", **TINY)
    assert not list(tmp_path.rglob("history.csv"))


def test_settings_that_could_not_be_trained_can_be_corrected(cases, tmp_path, trained):
    too_deep = {**SETTINGS, "model_args": {"filters": 4, "depth": 5}}
    try:
        cross_validate(cases, tmp_path, **too_deep)
    except ValueError as error:
        assert "depth" in str(error)  # noqa: PT017
    trained.clear()
    cross_validate(cases, tmp_path, **SETTINGS)
    assert [name for name, *_ in trained] == ["fold_0", "fold_1"]


@pytest.mark.parametrize(
    ("channels", "preprocessor", "precision", "input_shape"),
    [
        (2, Preprocessor(patch=PATCH), "float32", (8, 16, 8, 2)),
        (1, Preprocessor(dimensions=2), "float32", (10, 20, 5)),  # 2 slices on each side
        (2, Preprocessor(patch=(1, 16, 8)), "float32", (16, 8, 10)),
        (1, Preprocessor(patch=PATCH), "mixed_bfloat16", (8, 16, 8, 1)),
    ],
)
def test_any_builder_trains_on_several_channels_slices_and_precisions(
    make_cases, tmp_path, capsys, channels, preprocessor, precision, input_shape
):
    cases = make_cases(channels=channels)
    settings = {**TINY, "preprocessor": preprocessor, "precision": precision}
    cross_validate(cases, tmp_path, **settings)
    assert capsys.readouterr().out.count(" epoch ") == 4  # 2 folds of 2 epochs
    models = load_models(tmp_path, build_model=build_tiny)
    assert [model.input_shape for model in models] == [(None, *input_shape)] * 2
    for fold in (0, 1):
        assert np.isfinite(pd.read_csv(tmp_path / f"fold_{fold}" / "history.csv")).all(axis=None)
    for case in cases:
        labels, _ = load_mask(tmp_path / "predictions" / f"{case.id}.nii.gz")
        assert labels.shape == SHAPE
        assert set(np.unique(labels)) <= {0, 1, 4}
    experiment = json.loads((tmp_path / "experiment.json").read_text())
    assert experiment["settings"]["builder"].endswith("test_training.build_tiny")
    assert experiment["settings"]["model_args"] == {"filters": 3}


def train_one(cases, folder, build_model=build_tiny, seed=12345, **recipe):
    train_fold(
        cases[:2],
        cases[2:],
        folder / "fold_0",
        preprocessor=Preprocessor(patch=PATCH).fit(cases),
        build_model=build_model,
        recipe=Recipe(**{"epochs": 2, "steps": 2, "precision": "float32", **recipe}),
        seed=seed,
    )
    return weights(folder / "fold_0" / "model.weights.h5")


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(cases, tmp_path):
    first, again, other = (
        train_one(cases, tmp_path / name, seed=seed)
        for name, seed in (("first", 1), ("again", 1), ("other", 2))
    )
    assert first.keys() == again.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(again[name], array)
    assert any(not np.array_equal(other[name], array) for name, array in first.items())


class Watched(keras.Model):
    """Runs step by step and notes the learning rate before each step, the kernel after it."""

    def compile(self, *args, **kwargs):
        super().compile(*args, run_eagerly=True, **kwargs)
        self.rates, self.kernels = [], []

    def train_step(self, data):
        self.rates.append(float(self.optimizer.learning_rate))
        logs = super().train_step(data)
        self.kernels.append(np.array(self.weights[0].numpy()))
        return logs


@pytest.fixture
def train_watched(cases, tmp_path):
    """Return a function that trains in 4 epochs of 3 steps; it returns the model and its file."""

    def train(**recipe):
        built = []

        def build(input_shape, num_classes):
            model = build_tiny(input_shape, num_classes)
            built.append(Watched(model.input, model.output))
            return built[-1]

        kept = train_one(cases, tmp_path, build, epochs=4, steps=3, batch_size=1, **recipe)
        assert len(built[0].rates) == 12
        return built[0], kept

    return train


@pytest.mark.parametrize(("averaging", "momentum"), [(0, 0), (0.5, 5 / 6), (0.1, 1 / 2)])
def test_averaging_tells_whether_the_last_weights_or_their_average_are_kept(
    train_watched, averaging, momentum
):
    # half of 12 steps is a window of 6, a tenth of them one of 2, the shortest
    model, kept = train_watched(averaging=averaging)
    (kernel,) = (array for array in kept.values() if array.shape == model.kernels[0].shape)
    average = model.kernels[0]
    for step in model.kernels[1:]:
        average = momentum * average + (1 - momentum) * step
    np.testing.assert_allclose(kernel, average, atol=1e-6)
    assert np.allclose(kernel, model.kernels[-1], atol=1e-6) == (averaging == 0)


@pytest.mark.parametrize("warmup", [0.0, 0.25])
def test_the_learning_rate_rises_over_the_warmup_and_falls_as_a_cosine(train_watched, warmup):
    model, _ = train_watched(warmup=warmup, learning_rate=0.01)
    rise = int(12 * warmup)
    rising = [0.01 * k / 3 for k in range(rise)]
    falling = [0.005 * (1 + np.cos(np.pi * k / (12 - rise))) for k in range(12 - rise)]
    assert model.rates == pytest.approx(rising + falling, abs=1e-6)


def test_a_fold_whose_loss_is_not_finite_is_not_marked_as_done(cases, tmp_path):
    def build_broken(input_shape, num_classes):
        model = build_tiny(input_shape, num_classes)
        return keras.Model(model.input, keras.layers.Rescaling(np.nan)(model.output))

    with pytest.raises(ValueError, match=r"(?i)finite|nan"):
        train_one(cases, tmp_path, build_broken)
    assert not (tmp_path / "fold_0" / "done.json").exists()


def test_the_automatic_precision_gives_the_gradients_of_float32_on_few_planes(cases, tmp_path):
    class Compiled(Exception):  # noqa: N818
        pass

    class Stopped(keras.Model):
        def compile(self, *args, **kwargs):
            raise Compiled(self)

    def build(input_shape, num_classes):
        model = build_unet(input_shape, num_classes, filters=4, depth=2)
        return Stopped(model.input, model.output)

    # 8 planes, halved twice: oneDNN's bfloat16 gradient of a convolution over 2 planes is wrong
    with pytest.raises(Compiled) as compiled:
        train_one(cases, tmp_path, build, precision="auto")
    (model,) = compiled.value.args
    exact = build_unet((*PATCH, 1), 3, filters=4, depth=2)
    exact.set_weights(model.get_weights())
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *PATCH, 1)).astype(np.float32)
    y = rng.integers(0, 3, (2, *PATCH, 1)).astype(np.uint8)
    gradients = []
    for net in (model, exact):
        with tf.GradientTape() as tape:
            loss = dice_cross_entropy(y, net(x, training=True))
        kernels = [v for v in net.trainable_variables if v.path.endswith("kernel")]
        found = tape.gradient(loss, [v.value for v in kernels])
        gradients.append([gradient.numpy().astype(float) for gradient in found])
    for found, right in zip(*gradients, strict=True):
        error = np.linalg.norm(found - right) / np.linalg.norm(right)
        assert error < 0.3  # more than bfloat16 makes


TRAIN = """
import sys
from unetseg import cases, training
found = cases.find_cases(sys.argv[1])
settings = {"n_splits": 2, "epochs": 2, "steps": 5, "model_args": {"filters": 8}}
training.cross_validate(found, sys.argv[2], **settings)
"""


def test_two_processes_train_identical_weights_with_the_default_recipe(tmp_path):
    data = sample.make_sample(tmp_path / "data", n_cases=3)
    for name in ("first", "second"):
        command = [sys.executable, "-c", TRAIN, str(data), str(tmp_path / name)]
        subprocess.run(command, check=True, capture_output=True)
    for fold in ("fold_0", "fold_1"):
        first, second = (
            weights(tmp_path / name / fold / "model.weights.h5") for name in ("first", "second")
        )
        assert first.keys() == second.keys()
        for key, array in first.items():
            np.testing.assert_array_equal(second[key], array)
        histories = [(tmp_path / n / fold / "history.csv").read_text() for n in ("first", "second")]
        assert histories[0] == histories[1]


@pytest.mark.parametrize(
    ("limits", "batch_size", "steps"),
    [((1, 250), 1, 4), ((1, 250), 2, 2), ((1, 3), 1, 3), ((6, 250), 1, 6)],
)
def test_an_epoch_covers_the_training_cases_once_within_limits(
    cases, tmp_path, monkeypatch, limits, batch_size, steps
):
    monkeypatch.setattr(training, "MIN_STEPS", limits[0])
    monkeypatch.setattr(training, "MAX_STEPS", limits[1])
    # 2 cases of 10 x 18 x 9 = 1620 voxels in patches of 8 x 16 x 8 = 1024: 3.2 patches
    train_one(cases, tmp_path, steps=None, batch_size=batch_size, epochs=1)
    done = json.loads((tmp_path / "fold_0" / "done.json").read_text())
    assert done["steps"] == steps


@pytest.mark.parametrize(
    ("patch", "budget", "batch"),
    [
        ((40, 56, 40), 10**9, 1),  # 89,600 voxels
        ((40, 56, 1), 10**9, 22),  # 2,240: 22 of them have 49,280
        ((40, 56, 1), 25_000, 11),  # what little memory bears
        ((128, 128, 128), 10**9, 1),
    ],
)
def test_small_patches_make_larger_batches(monkeypatch, patch, budget, batch):
    monkeypatch.setattr(training, "patch_budget", lambda: budget)
    assert training.plan_batch(patch) == batch


def test_the_batch_of_the_first_run_is_kept_on_another_machine(copy, cases, trained, monkeypatch):
    path = copy / "experiment.json"
    experiment = json.loads(path.read_text())
    experiment["settings"]["recipe"]["batch_size"] = None
    path.write_text(json.dumps(experiment))
    (copy / "fold_1" / "done.json").unlink()
    used = []
    monkeypatch.setattr(training, "plan_batch", lambda patch: 7)
    monkeypatch.setattr(training, "train_fold", lambda *_, recipe, **__: used.append(recipe))
    cross_validate(cases, copy, **{**SETTINGS, "batch_size": None})
    assert [recipe.batch_size for recipe in used] == [2]


@pytest.mark.parametrize(("augment", "axes"), [(True, None), (False, ())])
def test_mirrored_copies_are_predicted_only_by_models_that_saw_mirrored_patches(
    cases, tmp_path, monkeypatch, augment, axes
):
    used = []

    def predict(*args, mirror_axes):
        used.append(mirror_axes)
        return predict_and_sample(*args, mirror_axes=mirror_axes)

    monkeypatch.setattr(training, "predict_and_sample", predict)
    train_one(cases, tmp_path, augment=augment)
    assert used == [axes, axes]  # of two cases


class StopAt(keras.callbacks.Callback):
    """Stops as the stop button of a notebook does, in a batch of an epoch."""

    def __init__(self, epoch):
        super().__init__()
        self.stop, self.epoch = epoch, None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if self.epoch == self.stop:
            raise KeyboardInterrupt


def test_a_stopped_fold_goes_on_and_ends_as_if_it_had_not_been_stopped(cases, tmp_path):
    settings = {"preprocessor": Preprocessor(patch=PATCH).fit(cases), "seed": 3}
    settings["model_args"] = {"filters": 4, "depth": 1, "dropout": 0.3}
    settings["recipe"] = Recipe(epochs=4, steps=2, batch_size=2, precision="float32")
    train_fold(cases[:3], cases[3:], tmp_path / "whole" / "fold_0", **settings)
    fold = tmp_path / "stopped" / "fold_0"
    for epoch in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            train_fold(cases[:3], cases[3:], fold, callbacks=[StopAt(epoch)], **settings)
        assert len(pd.read_csv(fold / "history.csv")) == epoch
        assert not (fold / "done.json").exists()
    train_fold(cases[:3], cases[3:], fold, **settings)
    assert_same_fold(fold, tmp_path / "whole" / "fold_0")
    assert files(fold) == {"model.weights.h5", "history.csv", "calibration.csv", "done.json"}


def test_a_stopped_fold_begins_anew_if_a_mask_was_corrected_and_names_it(cases, own, tmp_path):
    settings = {"preprocessor": Preprocessor(patch=PATCH).fit(cases), "seed": 3}
    settings["model_args"] = {"filters": 4, "depth": 1}
    settings["recipe"] = Recipe(epochs=2, steps=1, batch_size=1, precision="float32")
    fold = tmp_path / "run" / "fold_0"
    with pytest.raises(KeyboardInterrupt):
        train_fold(own[:3], own[3:], fold, callbacks=[StopAt(1)], **settings)
    redraw(own[2].mask)
    with pytest.warns(UserWarning, match="with another mask of c2, so it begins anew"):
        train_fold(own[:3], own[3:], fold, **settings)
    done = json.loads((fold / "done.json").read_text())
    digest = hashlib.sha256(own[2].mask.read_bytes()).hexdigest()
    assert done["inputs"]["c2"]["mask"]["sha256"] == digest


def test_a_fold_whose_files_change_while_it_is_trained_is_not_marked_as_done(cases, own, tmp_path):
    class Redraw(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            redraw(own[3].mask)

    settings = {"preprocessor": Preprocessor(patch=PATCH).fit(cases)}
    settings["model_args"] = {"filters": 4, "depth": 1}
    settings["recipe"] = Recipe(epochs=1, steps=1, batch_size=1, precision="float32")
    fold = tmp_path / "run" / "fold_0"
    with pytest.raises(ValueError, match="1 files were changed while they were in use: mask of c3"):
        train_fold(own[:3], own[3:], fold, callbacks=[Redraw()], **settings)
    assert not (fold / "done.json").exists()


def assert_same_fold(fold, expected):
    assert (fold / "history.csv").read_text() == (expected / "history.csv").read_text()
    found, right = (weights(folder / "model.weights.h5") for folder in (fold, expected))
    assert found.keys() == right.keys()
    for key, array in right.items():
        np.testing.assert_array_equal(found[key], array)


def test_stopping_by_hand_says_how_to_go_on(cases, tmp_path, monkeypatch, capsys, in_process):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_fold", stop)
    with pytest.raises(KeyboardInterrupt):
        cross_validate(cases, tmp_path / "results", **SETTINGS)
    assert "Stopped in fold 0. Run this again: it goes on from" in capsys.readouterr().out
    assert not (tmp_path / "results" / "running.json").exists()


def test_a_second_run_on_the_folder_is_refused(copy, cases, trained):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        lock = {"host": platform.node(), "pid": process.pid, "time": time.time()}
        (copy / "running.json").write_text(json.dumps(lock))
        with pytest.raises(RuntimeError, match="another run uses this folder"):
            cross_validate(cases, copy, **SETTINGS)
        process.communicate(b"\n")
    assert trained == []


def test_a_fold_trained_again_does_not_go_on_from_an_old_state(copy, cases, trained):
    (copy / "fold_0" / "1.state").write_bytes(b"left")
    cross_validate(cases, copy, retrain=True, **SETTINGS)
    assert not (copy / "fold_0" / "1.state").exists()


def test_a_finished_fold_keeps_no_state_and_no_lock_of_a_run_that_was_killed_at_its_end(
    copy, run, cases, trained
):
    (copy / "fold_1" / "0.state").write_bytes(b"left")
    lock = {"host": platform.node(), "pid": 1, "time": time.time()}
    (copy / "fold_1" / "running.json").write_text(json.dumps(lock))
    cross_validate(cases, copy, **SETTINGS)
    assert trained == []
    assert files(copy) == files(run.results)


def test_a_finished_fold_whose_weights_are_damaged_is_trained_again(copy, cases, trained, capsys):
    path = copy / "fold_1" / "model.weights.h5"
    path.write_bytes(path.read_bytes()[:-1])
    cross_validate(cases, copy, **SETTINGS)
    assert [name for name, *_ in trained] == ["fold_1"]
    assert "fold_1: was finished, but files are missing or damaged" in capsys.readouterr().out


def test_training_goes_on_while_drive_fails_and_leaves_no_state_there(
    cases, tmp_path, monkeypatch, capsys
):
    results, drive = tmp_path / "results", tmp_path / "drive"
    copy, broken = drive.copy_new, [True]

    def mirror(*args):
        if broken.pop() if broken else False:
            raise OSError(107, "Transport endpoint is not connected")
        return copy(*args)

    monkeypatch.setattr(workspace, "mirror", mirror)
    monkeypatch.setattr(processes, "BACK_UP_SECONDS", -1)  # after every epoch
    cross_validate(cases, results, backup_dir=drive, **SETTINGS)
    assert "NOT SAFE ON DRIVE YET: [Errno 107]" in capsys.readouterr().out
    assert files(drive) == files(results)
    assert not list(drive.rglob("*.state"))


INTERRUPTED = """
import sys
from pathlib import Path
from unetseg.cases import find_cases
from unetseg.preprocessing import Preprocessor
from unetseg.training import cross_validate

found = find_cases(sys.argv[1])
arguments = {"filters": 4, "depth": 1, "dropout": 0.3}
settings = {"epochs": 4, "steps": 4, "batch_size": 2, "n_splits": 2, "model_args": arguments}
print("ready", flush=True)
results = Path(sys.argv[2])
cross_validate(found, results, preprocessor=Preprocessor(patch=(8, 8, 8)), **settings)
"""


def start(data, results):
    """Start a training in a process of its own; return it when its imports are done."""
    command = [sys.executable, "-c", INTERRUPTED, str(data), str(results)]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout.readline() == "ready\n"
    return process


def finish(process, after=None):
    """Wait for a process, or kill it after some seconds; return its exit status."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(after)
    process.kill()  # SIGKILL
    process.stdout.close()
    return process.wait()


def assert_same_run(results, expected):
    for fold in ("fold_0", "fold_1"):
        assert_same_fold(results / fold, expected / fold)
    assert files(results) == files(expected)
    for path in (expected / "predictions").iterdir():
        assert (results / "predictions" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.long
def test_trainings_killed_at_20_random_moments_end_as_if_they_had_not_been(make_data, tmp_path):
    data, expected = make_data(4), tmp_path / "expected"
    process = start(data, expected)
    began = time.monotonic()
    assert finish(process) == 0
    lasts = time.monotonic() - began
    rng, kills, runs, epochs = np.random.default_rng(0), 0, 0, 0
    while kills < 20 or process.returncode != 0:
        results = tmp_path / f"run {runs}"
        process = start(data, results)
        finish(process, after=rng.uniform(0, 0.8 * lasts) if kills < 20 else None)
        trained = sum(len(pd.read_csv(path)) for path in results.glob("fold_*/history.csv"))
        assert trained >= epochs  # what was trained stays
        kills, epochs = kills + (process.returncode != 0), trained
        if process.returncode == 0:
            assert_same_run(results, expected)
            runs, epochs = runs + 1, 0
    assert runs >= 1


DROPPED = {**TINY, "model_args": {"filters": 3, "dropout": 0.3}, "epochs": 3}


class CutOff(BaseException):
    """The virtual machine is gone, with its local disk."""


def train_here(patch):
    """Train folds in this process, and look at them after each epoch and each fold, never else.

    So each epoch is copied to Drive before the next one begins, however fast this machine is.
    """
    looks = []

    class Follower(processes.Follower):
        def __enter__(self):
            looks.append(self._look)
            return super().__enter__()

    class SaveState(state.SaveState):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            looks[-1]()

    def run(folder, function, *args):
        with lock.only_run(folder):
            function(*args)
        looks[-1]()

    patch.setattr(processes, "Follower", Follower)
    patch.setattr(state, "SaveState", SaveState)
    patch.setattr(processes, "run_apart", run)
    patch.setattr(processes, "LOOK_SECONDS", 3600)
    patch.setattr(processes, "BACK_UP_SECONDS", -1)


def cut_off_now(patch):
    """End this machine, which then copies nothing more."""
    patch.setattr(processes, "back_up", lambda *_: False)
    raise CutOff


def stop(patch, fold, epochs, end=cut_off_now):
    """Make training end in a fold, in the epoch after so many full ones."""

    class Stopped(state.SaveState):
        def on_train_batch_end(self, batch, logs=None):
            if (self.folder.name, len(self.about["history"])) == (f"fold_{fold}", epochs):
                end(patch)

    patch.setattr(state, "SaveState", Stopped)


@pytest.fixture(scope="module")
def uninterrupted(cases, tmp_path_factory):
    """A finished run, its copy on Drive, and the names of the files there after each write."""
    folder, seen, write_file = tmp_path_factory.mktemp("uninterrupted"), [], _base.write_file

    def watched(path, data):
        write_file(path, data)
        seen.append(files(folder / "drive"))

    with pytest.MonkeyPatch.context() as patch:
        train_here(patch)
        patch.setattr(workspace, "write_file", watched)
        cross_validate(cases, folder / "results", backup_dir=folder / "drive", **DROPPED)
    return SimpleNamespace(results=folder / "results", drive=folder / "drive", seen=seen)


@pytest.fixture(scope="module")
def cut_off(cases, tmp_path_factory):
    """What is on Drive of a run whose machine was lost in the third epoch of its second fold."""
    folder = tmp_path_factory.mktemp("cut off")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(CutOff):
        train_here(patch)
        stop(patch, fold=1, epochs=2)
        cross_validate(cases, folder / "results", backup_dir=folder / "drive", **DROPPED)
    shutil.rmtree(folder / "results")
    lock = {"host": "the lost one", "pid": 1, "time": time.time() - 3600}
    (folder / "drive" / "running.json").write_text(json.dumps(lock))
    return folder / "drive"


@pytest.fixture
def new_machine(colab, monkeypatch):
    """Return a function that prepares a machine with an empty disk, as the notebooks do.

    What is on Drive is a copy of a folder, or what was left there. Every epoch is copied there.
    """
    drive, disk = colab
    train_here(monkeypatch)

    def prepare(content=None, spoil=lambda drive: None):
        shutil.rmtree(disk, ignore_errors=True)
        if content:
            shutil.copytree(content, drive / "results" / "x")
        spoil(drive / "results" / "x")
        return workspace.prepare("sample", "x")

    return prepare


def go_on(place, cases, **settings):
    """Train as the notebooks do."""
    preprocessor = Preprocessor(patch=PATCH)
    if (path := place.results / "preprocessor.json").exists():
        preprocessor = Preprocessor.load(path)
    settings = {**DROPPED, "preprocessor": preprocessor, **settings}
    return cross_validate(cases, place.results, backup_dir=place.backup, **settings)


def epochs_of(said):
    """Which epochs of which folds were trained, in the words of the output."""
    return [line.split("  ")[0] for line in said.splitlines() if " epoch " in line]


def spoil(name, change):
    """Return a function that changes the content of one file of a folder, or removes it."""

    def spoil_file(folder):
        path = folder / name
        content = change(path.read_bytes(), folder)
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return spoil_file


def gone(content, folder):
    return None


def half(content, folder):
    return content[: len(content) // 2]


def empty(content, folder):
    return b""


def one_before(content, folder):
    (folder / "fold_1" / "0.state.part").write_bytes(half(content, folder))
    return (folder / "fold_1" / "1.state").read_bytes()


def of_another(content, folder):
    return (folder / "predictions" / "c0.nii.gz").read_bytes()


def both(first, second):
    def spoil_both(folder):
        first(folder)
        second(folder)

    return spoil_both


@pytest.mark.parametrize(
    ("spoil", "since", "warning"),
    [
        (lambda folder: None, 3, None),
        (spoil("fold_1/0.state", gone), 2, None),
        (spoil("fold_1/0.state", half), 2, r"fold_1.0\.state: damaged"),
        (spoil("fold_1/0.state", empty), 2, r"fold_1.0\.state: damaged"),
        (spoil("fold_1/0.state", one_before), 2, None),
        (spoil("fold_1/1.state", half), 3, r"fold_1.1\.state: damaged"),
        (both(spoil("fold_1/0.state", gone), spoil("fold_1/1.state", gone)), 1, None),
        (
            both(spoil("fold_1/0.state", half), spoil("fold_1/1.state", half)),
            *(1, r"fold_1.[01]\.state: damaged"),
        ),
    ],
    ids=[
        *("nothing", "newest state", "half of the newest", "all but the name of the newest"),
        *("last write of the newest", "half of the older", "both states", "half of both"),
    ],
)
def test_a_run_whose_machine_is_lost_goes_on_from_what_drive_kept(
    cut_off, uninterrupted, new_machine, cases, capsys, spoil, since, warning
):
    place = new_machine(cut_off, spoil)
    with pytest.warns(UserWarning, match=warning) if warning else contextlib.nullcontext():
        go_on(place, cases)
    said = capsys.readouterr().out
    assert epochs_of(said) == [f"fold 1 epoch {k}/3" for k in range(since, 4)]
    assert "1 of 2 folds are finished" in said
    assert "taken over from process 1 on the lost one" in said
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("fold_1/model.weights.h5", gone, "fold_1: was finished, but files are"),
        ("fold_1/model.weights.h5", half, "fold_1: was finished, but files are"),
        ("predictions/{}.nii.gz", gone, "fold_1: was finished, but files are"),
        ("predictions/{}.nii.gz", half, "fold_1: was finished, but files are"),
        ("predictions/{}.nii.gz", of_another, "fold_1: was finished, but files are"),
        ("fold_1/done.json", half, "fold_1: was finished, but files are"),
        ("fold_1/done.json", empty, "fold_1: was finished, but files are"),
        ("fold_1/done.json", gone, "1 of 2 folds are finished"),
    ],
)
def test_a_finished_fold_of_which_drive_lost_a_file_is_trained_again(
    uninterrupted, new_machine, cases, capsys, name, change, sentence
):
    folds = json.loads((uninterrupted.results / "splits.json").read_text())
    name = name.format(max(folds[1]["val"]))  # not c0
    place = new_machine(uninterrupted.drive, spoil(name, change))
    go_on(place, cases)
    said = capsys.readouterr().out
    assert sentence in said
    assert epochs_of(said) == [f"fold 1 epoch {k}/3" for k in (1, 2, 3)]
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


def test_two_finished_folds_of_which_drive_lost_something_are_both_trained_again(
    uninterrupted, new_machine, cases, capsys
):
    lost = both(spoil("fold_0/model.weights.h5", gone), spoil("fold_1/done.json", half))
    place = new_machine(uninterrupted.drive, lost)
    go_on(place, cases)
    assert len(epochs_of(capsys.readouterr().out)) == 6
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


@pytest.mark.parametrize("name", ["experiment.json", "splits.json", "preprocessor.json"])
@pytest.mark.parametrize("change", [half, empty])
def test_a_file_of_settings_that_drive_truncated_is_named(
    cut_off, new_machine, cases, trained, name, change
):
    place = new_machine(cut_off, spoil(name, change))
    with pytest.raises(ValueError, match=rf"{re.escape(str(place.results / name))}: "):
        go_on(place, cases)
    assert trained == []


@pytest.mark.parametrize("fault", [5, 28, 30, 107, "truncates"])  # EIO, ENOSPC, EROFS, ENOTCONN
def test_training_ends_without_drive_and_another_call_copies_all_of_it(
    cut_off, uninterrupted, new_machine, cases, break_drive, capsys, fault
):
    place = new_machine(cut_off)
    drive = break_drive(place.backup, fault, since=".state")
    go_on(place, cases)
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("NOT SAFE ON DRIVE YET: ")
    assert "fold_1/model.weights.h5" in last
    assert last.endswith(f"All of it is on the local disk, in {place.results}.")
    assert_same_run(place.results, uninterrupted.results)
    assert not (place.backup / "fold_1" / "done.json").exists()
    drive.fault = None
    go_on(place, cases)
    said = capsys.readouterr().out
    assert "2 of 2 folds are finished" in said
    assert "NOT SAFE" not in said
    assert epochs_of(said) == []
    assert_same_run(place.backup, uninterrupted.results)


def test_drive_holds_at_most_two_states_of_a_fold_and_none_of_a_finished_one(uninterrupted):
    for fold in ("fold_0", "fold_1"):
        states = [{n for n in names if fold in n and ".state" in n} for names in uninterrupted.seen]
        assert max(map(len, states)) == 2
    assert not any(name.endswith(".part") for names in uninterrupted.seen for name in names)
    assert not [name for name in files(uninterrupted.drive) if ".state" in name]
    assert_same_run(uninterrupted.drive, uninterrupted.results)


def test_a_fold_that_is_trained_again_is_not_mixed_with_its_copy_on_drive(
    uninterrupted, new_machine, cases, monkeypatch, capsys
):
    place = new_machine(uninterrupted.drive)
    with monkeypatch.context() as patch, contextlib.suppress(CutOff):
        stop(patch, fold=0, epochs=2)
        patch.setattr(processes, "back_up", lambda *_: False)  # not yet, in so short a time
        go_on(place, cases, retrain=True)
    place = workspace.prepare("sample", "x")  # on the same machine
    capsys.readouterr()
    go_on(place, cases)
    assert epochs_of(capsys.readouterr().out) == [
        *("fold 0 epoch 3/3", "fold 1 epoch 1/3", "fold 1 epoch 2/3", "fold 1 epoch 3/3")
    ]
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


HELD = """
import pickle
import signal
import sys
import time
from unetseg import training

def hold(*args):  # defined here, so what it does is done in the process of the fold
    from unetseg import training
from unetseg.run import state

    class Held(state.SaveState):
        def on_epoch_begin(self, epoch, logs=None):
            while epoch == 2:
                time.sleep(600)

    state.SaveState = Held
    training._run_fold(*args)

training._run_fold = hold
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
cases, results, drive, settings = pickle.load(sys.stdin.buffer)
training.cross_validate(cases, results, backup_dir=drive, **settings)
"""


@contextlib.contextmanager
def held(cases, results, drive):
    """A training in processes of their own, held in the third epoch of its first fold."""
    process = subprocess.Popen(
        [sys.executable, "-c", HELD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent,  # where build_tiny is found
    )
    pickle.dump((cases, results, drive, DROPPED), process.stdin)
    process.stdin.flush()
    try:
        while b"fold 0 epoch 2/3" not in process.stdout.readline():
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_stopped_by_hand_is_on_drive_and_goes_on_with_the_same_settings_only(
    uninterrupted, new_machine, cases, capsys
):
    place = new_machine()
    with held(cases, place.results, place.backup) as process:
        assert not list(place.backup.rglob("*.state"))  # a quarter of an hour is not over
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
    assert b"Stopped in fold 0. Run this again: it goes on from" in said
    place = new_machine()
    with pytest.raises(ValueError, match="other settings") as error:
        go_on(place, cases, epochs=5, learning_rate=0.001)
    assert [row.strip() for row in str(error.value).splitlines()[1:-1]] == [
        "recipe.epochs: 3 there, 5 now",
        "recipe.learning_rate: 0.006 there, 0.001 now",
    ]
    assert sorted(path.name for path in (place.results / "fold_0").glob("*.state")) == [
        *("0.state", "1.state")
    ]
    go_on(place, cases)
    assert epochs_of(capsys.readouterr().out)[0] == "fold 0 epoch 3/3"
    assert_same_run(place.backup, uninterrupted.results)


def test_an_error_of_a_fold_leaves_on_drive_what_it_has_learnt(
    uninterrupted, new_machine, cases, monkeypatch, capsys
):
    def fail(patch):
        raise MemoryError("of the GPU")

    place = new_machine()
    with monkeypatch.context() as patch:
        stop(patch, fold=1, epochs=1, end=fail)
        patch.setattr(processes, "BACK_UP_SECONDS", 900)
        with pytest.raises(MemoryError):
            go_on(place, cases)
    place = new_machine()
    capsys.readouterr()
    go_on(place, cases)
    assert epochs_of(capsys.readouterr().out) == ["fold 1 epoch 2/3", "fold 1 epoch 3/3"]
    assert_same_run(place.backup, uninterrupted.results)


def test_a_second_run_is_refused_until_the_first_is_killed_and_then_goes_on(
    uninterrupted, cases, tmp_path, capsys, monkeypatch
):
    results, drive = tmp_path / "results", tmp_path / "drive"
    train_here(monkeypatch)
    with held(cases, results, drive) as process:
        for folder in (results, tmp_path / "other results"):
            with pytest.raises(RuntimeError, match=f"another run .*process {process.pid} on"):
                cross_validate(cases, folder, backup_dir=drive, **DROPPED)
        process.kill()
        process.stdout.read()  # ends when the process of the fold does, which writes there too
    assert process.returncode == -9
    cross_validate(cases, results, backup_dir=drive, **DROPPED)
    said = capsys.readouterr().out
    assert f"taken over from process {process.pid} on" in said
    assert epochs_of(said)[0] == "fold 0 epoch 3/3"
    for folder in (results, drive):
        assert_same_run(folder, uninterrupted.results)


def assert_markers_hold(folder):
    for path in folder.glob("fold_*/done.json"):
        done = json.loads(path.read_text())
        noted = {path.with_name("model.weights.h5"): done["weights_sha256"]}
        for name, digest in done["predictions_sha256"].items():
            noted[folder / "predictions" / name] = digest
        assert {file: _base.sha256(file) for file in noted} == noted


def lose(patch, folder, writes, name=""):
    """Make a machine end in the middle of a write to a folder: of the n-th file of some name."""
    write_file, left = _base.write_file, writes

    def lost(path, data):
        nonlocal left
        path = Path(path)
        if threading.current_thread() is not threading.main_thread():  # renews a lock
            return write_file(path, data)
        left -= folder in path.parents and name in path.name
        if left > 0:
            return write_file(path, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.part").write_bytes(data[: len(data) // 2])
        cut_off_now(patch)

    patch.setattr(workspace, "write_file", lost)


def test_a_machine_lost_between_the_last_state_and_its_history_loses_no_epoch(
    cut_off, uninterrupted, new_machine, cases, monkeypatch, capsys
):
    place = new_machine(cut_off)
    with monkeypatch.context() as patch, contextlib.suppress(CutOff):
        lose(patch, place.backup, 1, "history.csv")
        go_on(place, cases)
    place = new_machine()
    assert len(pd.read_csv(place.results / "fold_1" / "history.csv")) == 2
    capsys.readouterr()
    stop(monkeypatch, fold=1, epochs=2)  # would be reached if an epoch were trained
    go_on(place, cases)
    assert epochs_of(capsys.readouterr().out) == ["fold 1 epoch 3/3"]  # found in the state
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


@pytest.mark.long
def test_a_run_whose_machine_is_lost_20_times_while_it_copies_ends_as_if_it_had_not_been(
    uninterrupted, new_machine, cases, monkeypatch
):
    rng, losses, finished = np.random.default_rng(0), 0, False
    while losses < 20 or not finished:
        place, finished = new_machine(), False
        with monkeypatch.context() as patch, contextlib.suppress(CutOff):
            lose(patch, place.backup, rng.integers(1, 25) if losses < 20 else 1000)
            go_on(place, cases)
            finished = True
        assert_markers_hold(place.backup)
        losses += not finished
        if finished:
            for folder in (place.results, place.backup):
                assert_same_run(folder, uninterrupted.results)
            shutil.rmtree(place.backup)


SHARED = """
import sys
from pathlib import Path
import keras
import tensorflow as tf
from unetseg import cases, model, training
from unetseg.preprocessing import Preprocessor

data, folder, devices, loss, stop = sys.argv[1:]
[cpu] = tf.config.list_physical_devices("CPU")
parts = [tf.config.LogicalDeviceConfiguration()] * int(devices)
tf.config.set_logical_device_configuration(cpu, parts)
if devices == "2":
    model.list_gpus = lambda: keras.distribution.list_devices("cpu")
    assert training.plan_batch((128, 128, 128)) == 2
if loss == "cross-entropy":
    error = keras.losses.sparse_categorical_crossentropy
    model.dice_cross_entropy = lambda *pair: keras.ops.mean(error(*pair))

class Stop(keras.callbacks.Callback):
    def on_epoch_begin(self, epoch, logs=None):
        replicas = self.model.distribute_strategy.num_replicas_in_sync
        assert replicas == int(devices)
        if epoch == int(stop):
            raise KeyboardInterrupt

found = cases.find_cases(data)
settings = {"preprocessor": Preprocessor(patch=(8, 8, 4)).fit(found)}
settings["model_args"] = {"filters": 8, "depth": 1}
recipe = {"epochs": 4, "steps": 4, "batch_size": 4, "averaging": 0.3, "precision": "float32"}
settings["recipe"] = training.Recipe(**recipe)
try:
    training.train_fold(found[:3], found[3:], folder, callbacks=[Stop()], **settings)
except KeyboardInterrupt:
    stop = -1
    training.train_fold(found[:3], found[3:], folder, callbacks=[Stop()], **settings)
"""


@pytest.fixture
def train_shared(make_data, tmp_path):
    """Return a function that trains in a process of its own, on so many logical devices."""
    data = make_data(4)

    def train(devices, loss, stop=-1):
        fold = tmp_path / f"{devices} {loss} {stop}" / "fold_0"
        arguments = [str(data), str(fold), str(devices), loss, str(stop)]
        subprocess.run([sys.executable, "-c", SHARED, *arguments], check=True, capture_output=True)
        return fold

    return train


@pytest.mark.long
def test_two_devices_train_as_one_with_the_same_batch(train_shared):
    one, two = train_shared(1, "cross-entropy"), train_shared(2, "cross-entropy")
    histories = [pd.read_csv(fold / "history.csv") for fold in (one, two)]
    pd.testing.assert_frame_equal(*histories, rtol=1e-5)  # measured: 2e-7
    found, right = (weights(fold / "model.weights.h5") for fold in (two, one))
    for key, array in right.items():
        np.testing.assert_allclose(found[key], array, atol=1e-5)  # measured: 3e-7
    first = pd.read_csv(one / "history.csv")["loss"]
    assert first.iloc[-1] < 0.8 * first[0]  # so that there is something to compare


@pytest.mark.long
def test_dice_pooled_on_each_device_changes_the_curve_by_less_than_a_hundredth(train_shared):
    one, two = (
        pd.read_csv(train_shared(n, "Dice and cross-entropy") / "history.csv") for n in (1, 2)
    )
    for name in ("loss", "val_loss"):
        np.testing.assert_allclose(two[name], one[name], rtol=0.01)  # measured: 0.0014


@pytest.mark.long
def test_a_training_on_two_devices_that_was_stopped_ends_as_if_it_had_not_been(train_shared):
    whole = train_shared(2, "Dice and cross-entropy")
    assert_same_fold(train_shared(2, "Dice and cross-entropy", stop=2), whole)


@pytest.mark.parametrize(("batch", "gpus"), [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3), (5, 1)])
def test_a_batch_is_shared_by_as_many_gpus_as_divide_it(monkeypatch, batch, gpus):
    class Strategy:
        def __init__(self, devices):
            self.devices = devices

        def scope(self):
            return self

    monkeypatch.setattr(model, "list_gpus", lambda: ["gpu:0", "gpu:1", "gpu:2"])
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", Strategy)
    assert len(getattr(model.mirrored(batch), "devices", ["one"])) == gpus


@pytest.mark.parametrize(("gpus", "batch"), [(0, 11), (1, 11), (2, 12), (4, 12), (16, 16)])
def test_the_automatic_batch_is_a_multiple_of_the_gpus(monkeypatch, gpus, batch):
    monkeypatch.setattr(training, "patch_budget", lambda: 25_000)
    monkeypatch.setattr(model, "list_gpus", lambda: [f"gpu:{n}" for n in range(gpus)])
    assert training.plan_batch((40, 56, 1)) == batch


def test_what_is_scored_is_what_the_file_of_the_weights_holds(cases, tmp_path, monkeypatch):
    save = training.checkpoint.save_weights

    def save_zeros(net, path):
        net.set_weights([np.zeros_like(array) for array in net.get_weights()])
        digest = save(net, path)
        net.set_weights([np.full_like(array, np.nan) for array in net.get_weights()])
        return digest

    monkeypatch.setattr(training.checkpoint, "save_weights", save_zeros)
    train_one(cases, tmp_path)
    for path in (tmp_path / "predictions").iterdir():
        assert np.unique(load_mask(path)[0]).tolist() == [0]  # all classes equally likely


def test_folds_at_once_give_what_they_give_one_after_another(run, cases, tmp_path):
    cross_validate(cases, tmp_path / "results", n_jobs=2, **SETTINGS)
    for fold in ("fold_0", "fold_1"):
        assert_same_fold(tmp_path / "results" / fold, run.results / fold)
    assert files(tmp_path / "results") == files(run.results)


def test_a_fold_that_another_worker_finished_is_not_trained_again(copy, cases, trained):
    settings = {"seed": 1}
    training._run_fold(cases[:2], cases[2:], copy / "fold_0", "/nowhere", settings)
    assert trained == []


def test_a_machine_without_the_cache_of_the_run_makes_its_own(cases, tmp_path, monkeypatch):
    used = []
    monkeypatch.setattr(training, "train_fold", lambda *_, cache_dir, **__: used.append(cache_dir))
    for cache in (tmp_path, tmp_path / "elsewhere"):
        training._run_fold(cases[:2], cases[2:], tmp_path / "fold_0", cache, {})
    assert used == [tmp_path, None]


def test_importing_the_package_leaves_the_gpus_to_the_processes_that_train():
    code = "import os, unetseg; print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "true\n"


class StopIn(keras.callbacks.Callback):
    """Stops the training, as Keras allows it, at the given event of the given epoch."""

    def __init__(self, event, epoch):
        super().__init__()
        self.event, self.stop, self.epoch = event, epoch, 0

    def look(self, event):
        if event == self.event and self.epoch == self.stop:
            self.model.stop_training = True

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch
        self.look("epoch begin")

    def on_train_batch_end(self, batch, logs=None):
        self.look("batch")

    def on_test_end(self, logs=None):
        self.look("test")

    def on_epoch_end(self, epoch, logs=None):
        self.look("epoch end")


STOPPED = {
    "epoch begin": (1, 3),  # the epoch, and the steps that are done: Keras ends it after a batch
    "batch": (1, 3),
    "test": (1, 4),
    "epoch end": (1, 4),
}


def stoppable(cases, fold, callbacks=(), **recipe):
    settings = {"epochs": 4, "steps": 2, "batch_size": 2, "precision": "float32", **recipe}
    settings = {"recipe": Recipe(**settings), "model_args": {"filters": 4, "depth": 1}}
    settings["preprocessor"] = Preprocessor(patch=PATCH).fit(cases)
    train_fold(cases[:3], cases[3:], fold, callbacks=callbacks, **settings)
    return json.loads((fold / "done.json").read_text())


@pytest.mark.parametrize("event", STOPPED)
def test_a_fold_that_a_callback_stops_is_finished_and_says_when_and_by_what(
    event, cases, tmp_path, capsys
):
    epoch, steps = STOPPED[event]
    patient = keras.callbacks.LambdaCallback()
    fold = tmp_path / "fold_0"
    done = stoppable(cases, fold, [patient, StopIn(event, epoch), patient])
    assert done["stopped"] == {"epoch": epoch, "by": "StopIn"}
    assert done["steps"] == steps
    assert len(pd.read_csv(fold / "history.csv")) == 2
    assert f"{fold}: stopped in epoch 2 of 4 by StopIn." in capsys.readouterr().out
    layout.read_json(fold / "done.json")  # fits the schema
    assert files(fold) == {"model.weights.h5", "history.csv", "calibration.csv", "done.json"}


def test_early_stopping_gives_the_averaged_weights_of_the_steps_so_far(cases, tmp_path):
    kept = {}

    class Keep(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            averages = self.model.optimizer._model_variables_moving_average
            kept["average"] = [np.array(value) for value in averages]

    early = keras.callbacks.EarlyStopping("loss", patience=0, min_delta=1e9)
    done = stoppable(cases, tmp_path / "fold_0", [Keep(), early], averaging=0.5)
    assert done["stopped"] == {"epoch": 1, "by": "EarlyStopping"}
    found = weights(tmp_path / "fold_0" / "model.weights.h5").values()
    expected = kept["average"]
    assert len(found) == len(expected)
    for array in found:
        assert any(array.shape == one.shape and np.array_equal(array, one) for one in expected)


def test_a_stopped_fold_that_is_interrupted_does_not_train_on(cases, tmp_path, monkeypatch):
    stop = [StopIn("epoch end", 1)]
    whole = stoppable(cases, tmp_path / "whole" / "fold_0", stop)
    fold = tmp_path / "killed" / "fold_0"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(state, "save_weights", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            stoppable(cases, fold, stop)
    done = stoppable(cases, fold)  # also if the callback is not given any more
    assert_same_fold(fold, tmp_path / "whole" / "fold_0")
    for key in ("stopped", "steps"):
        assert done[key] == whole[key]


def test_nan_is_still_said_where_a_callback_stops_too(cases, tmp_path):
    def build(input_shape, num_classes):
        inputs = keras.Input(input_shape)
        outputs = keras.layers.Conv3D(num_classes, 1, activation="softmax")(inputs)
        return keras.Model(inputs, outputs * np.float32(np.nan))

    fold = tmp_path / "fold_0"
    with pytest.raises(ValueError, match="NaN or infinite"):
        train_fold(
            *(cases[:3], cases[3:], fold),
            preprocessor=Preprocessor(patch=PATCH).fit(cases),
            build_model=build,
            recipe=Recipe(epochs=3, steps=2, precision="float32"),
            callbacks=[StopIn("batch", 0)],
        )
    assert not (fold / "done.json").exists()


def test_nan_in_the_very_last_step_is_said(tmp_path):
    stopped = {"epoch": 2, "by": "TerminateOnNaN", "steps": 6}
    state = {"history": [{"epoch": 0}, {"epoch": 1}], "stopped": stopped}
    with pytest.raises(ValueError, match="NaN or infinite"):
        training._describe_end(state, Recipe(epochs=3, steps=2), tmp_path)


@pytest.mark.filterwarnings("ignore:Limiting epochs")
def test_epochs_that_the_environment_limits_are_said(cases, tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_MAX_EPOCHS", "2")
    keras.config.set_max_epochs(2)
    try:
        done = stoppable(cases, tmp_path / "fold_0")
    finally:
        keras.config.set_max_epochs(None)
    assert done["stopped"] == {"epoch": 1, "by": "KERAS_MAX_EPOCHS"}
    assert done["steps"] == 4


def test_a_fold_that_is_not_stopped_says_nothing_of_it(run):
    done = json.loads((run.results / "fold_0" / "done.json").read_text())
    assert "stopped" not in done
    assert done["steps"] == 4


def test_cases_too_large_to_be_predicted_are_told_of_before_training(
    cases, tmp_path, trained, monkeypatch
):
    monkeypatch.setattr(training.memory, "available_bytes", lambda: 1000)
    with pytest.warns(UserWarning, match=r"Of the largest case: predicting it takes about .* GB"):
        cross_validate(cases, tmp_path / "results", **SETTINGS)
    assert len(trained) == 2
