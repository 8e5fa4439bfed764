"""All folds: what is checked before, what is left after."""

import json
import subprocess
import sys
from dataclasses import replace

import keras
import numpy as np
import pandas as pd
import pytest
from training_helpers import (
    EDITED,
    PATCH,
    SETTINGS,
    SHAPE,
    TINY,
    arrays,
    assert_same_fold,
    build_tiny,
    files,
)

from unetseg import fitting, training
from unetseg.cases import check_cases
from unetseg.inference import load_models
from unetseg.nifti import load_mask
from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Recipe, recall_plan
from unetseg.scores import score_predictions
from unetseg.splits import make_folds
from unetseg.training import cross_validate


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
        "max_filters": 320,
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
    assert saved == Preprocessor(patch=PATCH, coarse_mm=()).fit(cases)


def test_splits_and_cases_are_tables_one_can_open(run, cases):
    assert json.loads((run.results / "splits.json").read_text()) == run.folds
    assert run.folds == make_folds(cases, 2)
    assert pd.read_csv(run.results / "cases.csv")["case"].tolist() == ["c0", "c1", "c2", "c3"]


def test_the_backup_holds_the_same_files(run):
    assert files(run.backup) == files(run.results)
    for name in files(run.results):
        assert (run.backup / name).read_bytes() == (run.results / name).read_bytes()


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
        (2, Preprocessor(patch=PATCH, coarse_mm=()), "float32", (8, 16, 8, 2)),
        (1, Preprocessor(dimensions=2), "float32", (10, 10, 5)),  # two looks, 2 slices on each side
        (2, Preprocessor(patch=(1, 16, 8)), "float32", (16, 8, 10)),
        (1, Preprocessor(patch=PATCH, coarse_mm=()), "mixed_bfloat16", (8, 16, 8, 1)),
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
    assert experiment["settings"]["builder"].endswith("training_helpers.build_tiny")
    assert experiment["settings"]["model_args"] == {"filters": 3}


def test_folds_at_once_give_what_they_give_one_after_another(run, cases, tmp_path):
    cross_validate(cases, tmp_path / "results", n_jobs=2, **SETTINGS)
    for fold in ("fold_0", "fold_1"):
        assert_same_fold(tmp_path / "results" / fold, run.results / fold)
    assert files(tmp_path / "results") == files(run.results)


def test_importing_the_package_leaves_the_gpus_to_the_processes_that_train():
    code = "import os, unetseg; print(os.environ['TF_FORCE_GPU_ALLOW_GROWTH'])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout == "true\n"


def test_cases_too_large_to_be_predicted_are_told_of_before_training(
    cases, tmp_path, trained, free_memory
):
    free_memory(1000)
    with pytest.warns(UserWarning, match=r"Of the largest case: predicting it takes about .* GB"):
        cross_validate(cases, tmp_path / "results", **SETTINGS)
    assert len(trained) == 2


def test_minutes_are_turned_into_steps_once(cases, tmp_path, monkeypatch, capsys):
    """A run that goes on, here or elsewhere, does so with as many steps as were written down."""
    asked = {**TINY, "steps": None, "minutes": 0.5}
    monkeypatch.setattr(fitting, "plan_steps", lambda plan, cases, folder, validated: 3)
    cross_validate(cases, tmp_path, **asked)
    assert "0.5 minutes a fold: on this machine 2 epochs of 3 steps." in capsys.readouterr().out
    experiment = json.loads((tmp_path / "experiment.json").read_text())
    assert experiment["steps"] == 3
    assert experiment["settings"]["recipe"]["steps"] is None
    (tmp_path / "fold_1" / "done.json").unlink()
    monkeypatch.setattr(fitting, "plan_steps", lambda plan, cases, folder, validated: 99)
    cross_validate(cases, tmp_path, **asked)
    done = json.loads((tmp_path / "fold_1" / "done.json").read_text())
    assert done["steps"] == 2 * 3
    assert recall_plan(tmp_path, build_tiny).recipe.steps == 3


def test_the_minutes_of_a_fold_are_foretold_from_shapes_on_their_own_grid(cases, monkeypatch):
    def foretell(plan, cases, folder, sizes, n_splits):
        return sum(np.prod(shape) * np.prod(spacing) for shape, spacing in sizes) / n_splits

    monkeypatch.setattr(fitting, "foretell_minutes", foretell)
    preprocessor = Preprocessor(patch=PATCH, coarse_mm=()).fit(cases)
    table = pd.DataFrame({"shape": [(2, 3, 4)] * 2, "spacing_mm": [(1, 2, 1), (1, 1, 0.5)]})
    told = "With the usual settings a fold will train for about {} minutes here."
    assert training.foretell(preprocessor, cases, table) == told.format(12)
    facts = [{"shape": (1, 1, 4)}] * 2
    assert training.foretell(preprocessor, cases, table, facts) == told.format(2)
    assert training.foretell(preprocessor, cases, table, facts, n_splits=2) == told.format(5)


def test_what_keeps_minutes_from_being_foretold_is_said_and_stops_nothing(cases, monkeypatch):
    def foretell(*asked):
        raise OSError("no room for the cases")

    monkeypatch.setattr(fitting, "foretell_minutes", foretell)
    preprocessor = Preprocessor(patch=PATCH, coarse_mm=()).fit(cases)
    told = training.foretell(preprocessor, cases, check_cases(cases))
    assert told == "How long a fold will train could not be measured: no room for the cases"


def test_minutes_and_steps_do_not_go_together(cases, tmp_path):
    with pytest.raises(ValueError, match="steps must be left out if minutes say how long"):
        cross_validate(cases, tmp_path / "new", **TINY, minutes=5)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("folder", ["", "masks", "predictions"])
def test_results_never_replace_the_scans_they_come_from(tmp_path, write_case, folder):
    where = tmp_path / "data"
    cases = [write_case(where / folder, f"c{k}", *arrays(k)) for k in range(4)]
    before = {name: (where / name).read_bytes() for name in files(where)}
    with pytest.raises(ValueError, match=r"holds the data themselves, such as .*c0_image"):
        cross_validate(cases, where, **TINY)
    assert {name: (where / name).read_bytes() for name in files(where)} == before


@pytest.mark.parametrize(
    ("wrong", "allowed"),
    [
        ({"seed": -1}, "seed must be a whole number, 0 or more"),
        ({"seed": 0.5}, "seed must be a whole number, 0 or more"),
        ({"n_jobs": 0}, "n_jobs must be 1 or more, or -1"),
        ({"epochs": 1.5}, "epochs must be a whole number"),
        ({"steps": 2.5}, "steps must be a whole number"),
    ],
)
def test_a_setting_that_does_not_fit_leaves_no_folder_behind(cases, tmp_path, wrong, allowed):
    with pytest.raises(ValueError, match=allowed):
        cross_validate(cases, tmp_path / "new", **{**TINY, **wrong})
    assert not (tmp_path / "new").exists()


def test_whole_numbers_of_any_kind_are_written_down_as_such():
    recipe = Recipe(epochs=np.int64(3), steps=2.0, batch_size=np.float32(2))
    assert (recipe.epochs, recipe.steps, recipe.batch_size) == (3, 2, 2)
    assert {type(recipe.epochs), type(recipe.steps), type(recipe.batch_size)} == {int}


def weigh_nothing(y_true, y_pred):
    """A loss of the user's own."""
    return keras.ops.mean(keras.ops.square(y_pred[..., 0]))


def test_healthy_controls_and_partly_drawn_masks_are_trained_on_if_that_is_allowed(
    write_case, tmp_path, capsys
):
    found = []
    for k in range(4):
        image, mask = arrays(k)
        mask[:, :, 5:] = 9  # nobody drew there
        mask[:, :, :5] *= k != 3  # a healthy person
        found.append(write_case(tmp_path, f"c{k}", image, mask))
    named = Preprocessor(patch=PATCH, labels={1: "a", 4: "b", 9: "ignore"})
    about = {**TINY, "preprocessor": named, "loss": weigh_nothing}
    with pytest.raises(ValueError, match=r"c3: c3_mask.*is empty.*ALLOW_EMPTY takes it for a heal"):
        cross_validate(found, tmp_path / "run", **about)
    folds = cross_validate(found, tmp_path / "run", allow_empty=True, **about)
    settings = json.loads((tmp_path / "run/experiment.json").read_text())["settings"]
    assert settings["loss"] == "test_cross_validation.weigh_nothing"
    assert settings["preprocessor"]["ignore"] == 9
    scores = score_predictions(found, tmp_path / "run/predictions", folds, {1: "a", 4: "b"})
    truth = scores.set_index(["case", "label"])["volume_true_ml"]
    assert (truth["c3"] == 0).all()
    assert truth[("c0", 1)] == pytest.approx(np.count_nonzero(arrays(0)[1][..., :5] == 1) * 0.006)


def test_weights_are_of_labels_and_not_for_a_loss_of_ones_own(cases, tmp_path, trained):
    with pytest.raises(
        ValueError, match=r"class_weights must be 0 or more, by values of the labels"
    ):
        cross_validate(cases, tmp_path, class_weights={7: 2.0}, **TINY)
    with pytest.raises(ValueError, match=r"class_weights must be left out with a loss of your own"):
        cross_validate(cases, tmp_path, class_weights={1: 2.0}, loss=weigh_nothing, **TINY)
    assert trained == []
