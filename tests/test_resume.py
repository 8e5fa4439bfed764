"""Called again: what is finished stays, what was stopped goes on, what changed is said."""

import contextlib
import hashlib
import json
import platform
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from training_helpers import (
    EDITED,
    PATCH,
    SETTINGS,
    StopAt,
    arrays,
    assert_same_fold,
    assert_same_run,
    content,
    files,
    redraw,
)

from unetseg import recipe, training
from unetseg._base import write_json
from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Recipe
from unetseg.run.layout import Run
from unetseg.training import cross_validate, train_fold


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


def test_a_retraining_that_was_stopped_goes_on_and_trains_no_fold_twice(copy, cases, trained):
    (copy / "fold_1/done.json").unlink()
    cross_validate(cases, copy, retrain=True, **SETTINGS)
    assert [name for name, *_ in trained] == ["fold_1"]


def test_a_model_on_all_cases_that_is_new_does_not_stand_for_a_retraining(copy, cases, trained):
    cross_validate(cases, copy, retrain=True, final=True, **SETTINGS)
    assert [name for name, *_ in trained] == ["fold_0", "fold_1", "final"]


def test_a_cache_that_is_not_there_yet_is_made(cases, tmp_path, monkeypatch, in_process):
    caches, cache = [], tmp_path / "new" / "cache"
    monkeypatch.setattr(training, "_train_fold", lambda *args: caches.append(args[5]))
    cross_validate(cases, tmp_path / "results", cache_dir=cache, **SETTINGS)
    assert caches == [cache, cache]


def test_a_retraining_that_goes_on_leaves_no_fold_of_older_files(copy, own, trained):
    (copy / "fold_1/done.json").unlink()
    redraw(own[1].mask)
    cross_validate(own, copy, retrain=True, **SETTINGS)
    assert [name for name, *_ in trained] == ["fold_0", "fold_1"]


@pytest.mark.parametrize(
    ("change", "where"),
    [({"batch_size": 65537}, "batch_size"), ({"filters": 5000}, "filters")],
)
def test_settings_that_could_not_be_read_again_are_not_written(cases, tmp_path, change, where):
    arguments = SETTINGS["model_args"] | {k: v for k, v in change.items() if k == "filters"}
    recipe = {k: v for k, v in change.items() if k != "filters"}
    with pytest.raises(ValueError, match=where):
        cross_validate(cases, tmp_path, **SETTINGS | {"model_args": arguments} | recipe)
    assert not (tmp_path / "experiment.json").exists()


def test_the_largest_seed_has_seeds_for_all_folds(cases, tmp_path, monkeypatch, in_process):
    seeds = []
    monkeypatch.setattr(training, "_run_fold", lambda *args: seeds.append(args[4]))
    cross_validate(cases, tmp_path, **SETTINGS | {"seed": 2**32 - 1})
    assert seeds == [2**32 - 1, 0]


def test_what_was_decided_on_predictions_goes_with_them_on_drive_too(
    copy, cases, trained, tmp_path
):
    decided = {"cases": {}, "new_scans": [1]}
    for folder in (copy, tmp_path / "drive"):
        write_json(Run(folder).components, decided)
    cross_validate(cases, copy, **SETTINGS)
    assert Run(copy).read_components() == decided  # nothing is trained
    cross_validate(cases, copy, retrain=True, backup_dir=tmp_path / "drive", **SETTINGS)
    assert not Run(copy).components.exists()
    assert not Run(tmp_path / "drive").components.exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"epochs": 3}, "recipe.epochs: 2 there, 3 now"),
        ({"model_args": {"filters": 8, "depth": 1}}, "model_args.filters: 4 there, 8 now"),
        ({"seed": 7}, "seed: 12345 there, 7 now"),
        (
            {"preprocessor": Preprocessor(patch=PATCH, coarse_mm=(), normalisation="percentile")},
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


def test_splits_edited_after_a_fold_was_trained_are_refused(copy, cases, trained):
    (copy / "splits.json").write_text(json.dumps(EDITED))
    with pytest.raises(ValueError, match=r"fold_0.done\.json: this fold was trained on another"):
        cross_validate(cases, copy, **SETTINGS)
    assert trained == []


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


def test_the_batch_of_the_first_run_is_kept_on_another_machine(copy, cases, trained, monkeypatch):
    path = copy / "experiment.json"
    experiment = json.loads(path.read_text())
    experiment["settings"]["recipe"]["batch_size"] = None
    path.write_text(json.dumps(experiment))
    (copy / "fold_1" / "done.json").unlink()
    used = []
    monkeypatch.setattr(recipe, "plan_batch", lambda patch: 7)
    monkeypatch.setattr(training, "_train_fold", lambda plan, *_: used.append(plan.batch_size))
    cross_validate(cases, copy, **{**SETTINGS, "batch_size": None})
    assert used == [2]


@pytest.mark.parametrize("coarse_mm", [(), (2.0, 3.0, 4.0)])
def test_a_stopped_fold_goes_on_and_ends_as_if_it_had_not_been_stopped(cases, tmp_path, coarse_mm):
    preprocessor = Preprocessor(patch=PATCH, coarse_mm=coarse_mm).fit(cases)
    settings = {"preprocessor": preprocessor, "seed": 3}
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
    settings = {"preprocessor": Preprocessor(patch=PATCH, coarse_mm=()).fit(cases), "seed": 3}
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


def test_stopping_by_hand_says_how_to_go_on(cases, tmp_path, monkeypatch, capsys, in_process):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "_train_fold", stop)
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
