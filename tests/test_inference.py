"""The models of an experiment, and batches of new scans."""

import hashlib
import json
import math
import multiprocessing
import os
import signal
import sys
from dataclasses import asdict, replace
from pathlib import Path

import joblib
import keras
import nibabel as nib
import numpy as np
import pandas as pd
import pytest
import SimpleITK

from unetseg import inference, memory
from unetseg.inference import load_models, load_temperature, predict_scans
from unetseg.preprocessing import Preprocessor
from unetseg.run import drive, processes


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
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}: no fold is finished"):
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


def make_experiment(folder, *limits, temperature=None, channels=1, mirror_axes=None, augment=True):
    """One finished fold per limit: the probability of "five" is 1 / (1 + exp(limit - x))."""
    how = {"normalisation": "none", "mirror_axes": mirror_axes}
    preprocessor = Preprocessor((1, 2, 3), (8, 8, 1), {5: "five"}, channels, **how)
    folder.mkdir(exist_ok=True)
    settings = {"builder": "mine.build_scale", "model_args": {}, "seed": 0}
    settings |= {"recipe": {"epochs": 1, "precision": "float32", "augment": augment}}
    settings |= {"preprocessor": asdict(preprocessor)}
    about = {"settings": settings, "precision": "float32", "batch_size": 1}
    preprocessor.save(folder / "preprocessor.json")
    (folder / "experiment.json").write_text(json.dumps(about))
    for fold, limit in enumerate(limits):
        model = build_scale((8, 8, channels), 2)
        kernel = np.eye(channels)[:1].T  # of several channels the first counts
        model.set_weights([kernel, np.array([-limit]), np.array([[0, 1]]), np.zeros(2)])
        path = folder / f"fold_{fold}" / "model.weights.h5"
        path.parent.mkdir(exist_ok=True)
        model.save_weights(path)
        done = {"minutes": 1, "train": ["a"], "val": ["b"]}
        done["weights_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        if temperature:
            done["temperature"] = temperature
        (path.parent / "done.json").write_text(json.dumps(done))
    return folder


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    """Three folds, which find "five" above 40, 50 and 60."""
    return make_experiment(tmp_path_factory.mktemp("experiment"), 40, 50, 60)


def blocks():
    """Of 8 x 9 x 4 voxels of 6 mm3 all find 36, the first two folds 12 more, the first 24 more."""
    image = np.full((8, 9, 4), 10, np.float32)
    image[1:4, 1:4], image[4, 1:4], image[5:7, 1:4] = 90, 55, 45
    return image


@pytest.fixture
def predict(tmp_path, experiment, monkeypatch):
    """Return a function that predicts scans into the folder "out" by default, in this process."""
    monkeypatch.setattr(processes, "call_apart", lambda function, *args: function(*args))

    def run(scans, results_dir=experiment, **kwargs):
        kwargs = {"build_model": build_scale, **kwargs}
        return predict_scans(scans, results_dir, tmp_path / "out", **kwargs)

    return run


@pytest.fixture
def counted(monkeypatch):
    """Return the list of the ids that are predicted."""
    ids, real = [], inference.predict_case

    def count(models, case, *args, **kwargs):
        ids.append(case.id)
        return real(models, case, *args, **kwargs)

    monkeypatch.setattr(inference, "predict_case", count)
    return ids


def files_in(folder):
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def read_labels(folder, case_id):
    return np.asarray(nib.load(folder / "labels" / f"{case_id}.nii.gz").dataobj)


def test_scans_are_segmented_and_described_as_counted_by_hand(tmp_path, predict, write_case):
    scans = [write_case(tmp_path, case_id, blocks()) for case_id in ("b", "a")]
    table = predict(scans)
    assert table["case"].tolist() == ["a", "b"]
    for row in table.drop(columns="case").to_dict("records"):
        assert row.pop("seconds") >= 0
        text = {key: row.pop(key) for key in ("label", "name", "problem")}
        assert text == {"label": 5, "name": "five", "problem": ""}
        assert row == pytest.approx(
            {
                "volume_ml": 48 * 0.006,
                "volume_mean_ml": (72 + 48 + 36) / 3 * 0.006,  # by each fold alone
                "volume_sd_ml": math.sqrt((20**2 + 4**2 + 16**2) / 2) * 0.006,
                "volume_min_ml": 36 * 0.006,
                "volume_max_ml": 72 * 0.006,
                "agreement": (96 / 120 + 72 / 108 + 72 / 84) / 3,  # Dice of nested masks
                # In 12 of 48 voxels the mean probability is 2/3.
                "uncertainty": (math.log2(3) - 2 / 3) * 12 / 48,
            },
            abs=1e-4,
        )
    names = {f"{f}/{i}.nii.gz" for f in ("labels", "uncertainty", "disagreement") for i in "ab"}
    names |= {"done/a.json", "done/b.json", "predictions.csv", "scans.csv"}
    assert files_in(tmp_path / "out") == names
    np.testing.assert_array_equal(read_labels(tmp_path / "out", "a"), 5 * (blocks() > 50))


@pytest.mark.parametrize(
    "change",
    [
        {"folds": (fold for fold in (0, 1))},
        {"mirror_axes": {0}},
        {"mirror_axes": np.array([0])},
        {"mirror_axes": range(1), "overlap": np.float32(0.25), "temperature": np.float64(2)},
    ],
)
def test_what_is_asked_for_may_be_any_iterable_or_number(change, predict, tmp_path, write_case):
    results = make_experiment(tmp_path / "experiment", 40, 50, mirror_axes=(0,))
    table = predict([write_case(tmp_path, "a", blocks())], results, **change)
    assert table["problem"].tolist() == [""]


@pytest.mark.parametrize(("augment", "axes"), [(True, (0,)), (False, ())])
def test_what_was_never_mirrored_in_training_is_not_in_prediction(
    augment, axes, predict, tmp_path, write_case, monkeypatch
):
    seen, real = [], inference.predict_case

    def note(models, case, preprocessor, **kwargs):
        seen.append(preprocessor.mirror_axes)
        return real(models, case, preprocessor, **kwargs)

    monkeypatch.setattr(inference, "predict_case", note)
    results = make_experiment(tmp_path / "mine", 40, mirror_axes=(0,), augment=augment)
    predict([write_case(tmp_path, "a", blocks())], results)
    assert seen == [axes]


def test_the_largest_piece_alone_is_written_where_cross_validation_decided_so(
    tmp_path, predict, counted, write_case
):
    image = blocks()
    image[7, 8, :2] = 90  # 2 voxels astray
    scans = [write_case(tmp_path, "a", image)]
    results = make_experiment(tmp_path / "experiment", 40)
    assert predict(scans, results)["volume_ml"].tolist() == pytest.approx([74 * 0.006], abs=1e-4)
    decided = {"cases": {"b": [5]}, "new_scans": [5]}
    (results / "components.json").write_text(json.dumps(decided))
    for _ in range(2):  # once anew, then it is known
        volume = predict(scans, results)["volume_ml"].tolist()
        assert volume == pytest.approx([72 * 0.006], abs=1e-4)
    assert counted == ["a", "a"]
    np.testing.assert_array_equal(read_labels(tmp_path / "out", "a"), 5 * (blocks() > 40))


def test_what_each_fold_says_loses_its_pieces_too(tmp_path, predict, write_case, capsys):
    image = blocks()
    image[7, 8, :2] = 45  # astray, and seen by one of two folds
    scans = [write_case(tmp_path, "a", image)]
    results = make_experiment(tmp_path / "experiment", 40, 50)
    (before,) = predict(scans, results).to_dict("records")
    decided = {"cases": {}, "new_scans": [5, 8]}  # of 8 there is none
    (results / "components.json").write_text(json.dumps(decided))
    (after,) = predict(scans, results).to_dict("records")
    assert "Only the largest piece is kept of five, as cross-validation" in capsys.readouterr().out
    assert before["volume_max_ml"] == pytest.approx(74 * 0.006, abs=1e-4)
    assert after["volume_max_ml"] == pytest.approx(72 * 0.006, abs=1e-4)
    assert after["agreement"] == pytest.approx(2 * 48 / (48 + 72))
    disagreement = nib.load(tmp_path / "out" / "disagreement" / "a.nii.gz").get_fdata()
    np.testing.assert_array_equal(disagreement > 0, blocks() == 45)


def test_volumes_of_small_voxels_are_not_rounded_away(predict, tmp_path, write_case):
    (tmp_path / "small").mkdir()
    experiment = make_experiment(tmp_path / "small", 40, 50, 60)
    path = experiment / "preprocessor.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"spacing_mm": [0.0004, 0.0004, 0.0008]}))
    scan = write_case(tmp_path, "a", blocks(), spacing_mm=(0.0004, 0.0004, 0.0008))
    (row,) = predict([scan], experiment).to_dict("records")
    voxel_ml = 0.0004**2 * 0.0008 / 1000
    volumes = [row[f"volume_{name}ml"] for name in ("", "mean_", "min_", "max_")]
    expected = np.array([48, (72 + 48 + 36) / 3, 36, 72]) * voxel_ml
    assert volumes == pytest.approx(expected, rel=1e-5, abs=0)


def test_the_table_is_kept_as_it_is_returned(tmp_path, predict, write_case):
    scans = [write_case(tmp_path, case_id, blocks()) for case_id in "ab"]
    scans.append(replace(scans[0], id="c", image=tmp_path / "gone.nii"))
    empty = write_case(tmp_path, "d", np.minimum(blocks(), 30))  # nothing is found
    first = predict([*scans, empty])
    again = predict([*scans, empty])
    pd.testing.assert_frame_equal(first, again)
    read = pd.read_csv(tmp_path / "out" / "predictions.csv", keep_default_na=False, na_values={""})
    read = read.assign(problem=read["problem"].fillna("")).astype({"label": "Int64"})
    pd.testing.assert_frame_equal(read, first, check_dtype=False)
    assert "a,5,five,0.288," in (tmp_path / "out" / "predictions.csv").read_text()
    nothing = first.set_index("case").loc["d"]
    assert nothing[["volume_ml", "volume_mean_ml", "volume_sd_ml"]].tolist() == [0, 0, 0]
    assert nothing[["agreement", "uncertainty"]].isna().all()


@pytest.mark.parametrize("codes", ["RAS", "PSL", "LIA"])
def test_labels_and_maps_lie_on_the_grid_of_the_scan(codes, tmp_path, predict, write_case):
    image = blocks() + np.arange(4, dtype=np.float32) / 8  # no two slices alike
    image[0, 0, 0], image[7, 8, 3], image[7, 0, 3] = 90, 54, 46
    scan = write_case(tmp_path, "a", image, codes=codes)
    predict([scan], maps=["uncertainty", "disagreement", "probabilities"])
    p = np.mean([1 / (1 + np.exp(limit - image)) for limit in (40.0, 50.0, 60.0)], axis=0)
    both = np.stack([1 - p, p], axis=-1)
    votes = np.stack([image > limit for limit in (40, 50, 60)])
    expected = {
        "labels": 5.0 * (p > 0.5),
        "probabilities": both,
        "uncertainty": -(both * np.log2(np.maximum(both, 1e-30))).sum(axis=-1),
        "disagreement": (votes != (p > 0.5)).mean(axis=0),
    }
    assert {*np.unique(expected["disagreement"]).round(3)} == {0, 0.333}
    for name, array in expected.items():
        path = tmp_path / "out" / name / "a.nii.gz"
        like = write_case(tmp_path, f"expected_{name}", array, codes=codes).image
        found = nib.load(path)
        np.testing.assert_array_equal(found.affine, nib.load(scan.image).affine)
        np.testing.assert_allclose(found.get_fdata(), nib.load(like).get_fdata(), atol=6e-4)
        if name != "labels":
            assert found.get_data_dtype() == np.float32
        itk, grid = SimpleITK.ReadImage(path), SimpleITK.ReadImage(scan.image)
        read = SimpleITK.GetArrayFromImage(itk if name != "probabilities" else itk[..., 1])
        wanted = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(like))
        np.testing.assert_allclose(read, wanted[1] if wanted.ndim == 4 else wanted, atol=6e-4)
        itk = itk if name != "probabilities" else itk[..., 0]
        for get in ("GetSize", "GetOrigin", "GetSpacing", "GetDirection"):
            assert getattr(itk, get)() == getattr(grid, get)()


def test_what_is_done_is_not_done_again(tmp_path, predict, counted, write_case):
    scans = [write_case(tmp_path, case_id, blocks()) for case_id in "abc"]
    first = predict(scans[:2])
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out" / "labels").iterdir()}
    assert counted == ["a", "b"]
    table = predict(scans)
    assert counted == ["a", "b", "c"]
    assert {p: p.stat().st_mtime_ns for p in before} == before
    pd.testing.assert_frame_equal(table[:2], first)
    (tmp_path / "out" / "labels" / "b.nii.gz").unlink()
    predict(scans)
    assert counted == ["a", "b", "c", "b"]


def test_with_another_setting_map_or_scan_it_is_done_again(tmp_path, predict, counted, write_case):
    scan = write_case(tmp_path, "a", blocks())
    settings = ({}, {"overlap": 0.25}, {"temperature": 2.0}, {"maps": ["probabilities"]})
    for number, kwargs in enumerate(settings, start=1):
        for _ in "ab":
            predict([scan], **kwargs)
        assert len(counted) == number
    assert (tmp_path / "out" / "probabilities" / "a.nii.gz").exists()
    write_case(tmp_path, "a", blocks()[::-1])
    table = predict([scan], maps=["probabilities"])
    assert len(counted) == 5
    assert table["problem"].tolist() == [""]
    np.testing.assert_array_equal(read_labels(tmp_path / "out", "a"), 5 * (blocks() > 50)[::-1])


def test_models_that_were_trained_again_are_noticed(tmp_path, predict, counted, write_case):
    scan = write_case(tmp_path, "a", blocks())
    for limit, voxels in ((50, 48), (60, 36), (50, 48)):
        results = make_experiment(tmp_path / "results", limit)
        assert predict([scan], results)["volume_ml"].tolist() == pytest.approx([voxels * 0.006])
        assert (read_labels(tmp_path / "out", "a") == 5).sum() == voxels
    assert len(counted) == 3
    results = make_experiment(tmp_path / "results", 50, 60)  # and another fold
    assert predict([scan], results)["volume_min_ml"].tolist() == pytest.approx([36 * 0.006])


def change_by_hand(path, value=7):
    image = nib.load(path)
    array = np.array(image.dataobj)
    array[0, 0, 0] = value
    nib.save(nib.Nifti1Image(array, image.affine), path)
    return path.read_bytes()


def test_labels_that_were_changed_by_hand_are_never_replaced(
    tmp_path, predict, counted, write_case
):
    scans = [write_case(tmp_path, case_id, blocks()) for case_id in "ab"]
    results = make_experiment(tmp_path / "results", 50)
    first = predict(scans, results)
    path = tmp_path / "out" / "labels" / "a.nii.gz"
    changed = change_by_hand(path)
    pd.testing.assert_frame_equal(predict(scans, results), first)  # nothing else changed
    assert path.read_bytes() == changed
    make_experiment(results, 60)
    table = predict(scans, results)
    assert path.read_bytes() == changed
    assert counted == ["a", "b", "b"]
    kept, other = table["problem"]
    assert str(path) in kept
    assert "not replaced" in kept
    assert "Move it elsewhere" in kept
    assert other == ""
    path.rename(tmp_path / "mine.nii.gz")
    assert predict(scans, results)["problem"].tolist() == ["", ""]
    assert (read_labels(tmp_path / "out", "a") == 5).sum() == 36


def test_a_file_of_somebody_else_is_never_replaced(tmp_path, predict, counted, write_case):
    scans = [write_case(tmp_path, case_id, blocks()) for case_id in "ab"]
    path = tmp_path / "out" / "labels" / "a.nii.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not ours")
    for _ in range(2):
        problems = predict(scans)["problem"].tolist()
        assert "not replaced" in problems[0]
        assert problems[1] == ""
        assert path.read_bytes() == b"not ours"
    assert counted == ["b"]


STEPS = ["predict_case", "save_mask", "save_map", "write_json", "replace"]


def stop_at(step, monkeypatch):
    """The user stops the run at this step of the first scan."""

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    places = {"save_mask": inference.nifti, "save_map": inference.nifti, "replace": Path}
    monkeypatch.setattr(places.get(step, inference), step, stop)


@pytest.mark.parametrize("step", STEPS)
def test_a_run_that_was_stopped_goes_on_where_it_was(step, tmp_path, predict, write_case):
    scan = write_case(tmp_path, "a", blocks())
    with pytest.MonkeyPatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            predict([scan])
    assert not (tmp_path / "out" / "labels" / "a.nii.gz").exists()
    assert predict([scan])["problem"].tolist() == [""]
    np.testing.assert_array_equal(read_labels(tmp_path / "out", "a"), 5 * (blocks() > 50))
    assert {name for name in files_in(tmp_path / "out") if "done" in name} == {"done/a.json"}


@pytest.mark.parametrize("step", STEPS)
def test_a_second_run_that_was_stopped_leaves_what_was_or_nothing(
    step, tmp_path, predict, write_case
):
    scan, path = write_case(tmp_path, "a", blocks()), tmp_path / "out" / "labels" / "a.nii.gz"
    predict([scan])
    with pytest.MonkeyPatch.context() as patch:
        stop_at(step, patch)
        with pytest.raises(KeyboardInterrupt):
            predict([scan], overlap=0.25)
    assert path.exists() is (step in STEPS[:2])
    if path.exists():
        changed = change_by_hand(path)  # what was predicted before is corrected meanwhile
        assert "not replaced" in predict([scan], overlap=0.25)["problem"][0]
        assert path.read_bytes() == changed
    else:
        assert predict([scan], overlap=0.25)["problem"].tolist() == [""]
        assert path.exists()


@pytest.mark.parametrize("step", ["save_map", "write_json"])
def test_what_an_interrupted_run_left_on_drive_is_not_taken_for_a_correction(
    step, tmp_path, predict, write_case
):
    scan, there = write_case(tmp_path, "a", blocks()), tmp_path / "drive" / "new_scans" / "out"
    out = tmp_path / "out"
    predict([scan])
    assert drive.back_up(out, there)
    for overlap in (0.25, 0.75):
        with pytest.MonkeyPatch.context() as patch:
            stop_at(step, patch)
            with pytest.raises(KeyboardInterrupt):
                predict([scan], overlap=overlap)
    assert predict([scan], overlap=0.25)["problem"].tolist() == [""]
    drive.copy_new(out / "done", there / "done")  # Drive has the note, not yet the labels
    assert not drive.is_corrected(there / "labels" / "a.nii.gz")


def test_maps_that_are_missing_are_made_again(tmp_path, predict, counted, write_case):
    scan, out = write_case(tmp_path, "a", blocks()), tmp_path / "out"
    predict([scan])
    (out / "uncertainty" / "a.nii.gz").unlink()
    assert predict([scan])["problem"].tolist() == [""]
    assert (out / "uncertainty" / "a.nii.gz").exists()
    assert counted == ["a", "a"]


def test_a_scan_of_another_number_of_channels_is_not_read(
    tmp_path, predict, write_case, monkeypatch
):
    scan = write_case(tmp_path, "a", np.stack([blocks()] * 3, axis=-1))
    monkeypatch.setattr(inference, "check_scan", lambda scan: pytest.fail("it was read"))
    assert "has 3 channels, the network has 1" in predict([scan])["problem"][0]


def test_the_scans_of_another_folder_with_the_same_ids_are_refused_and_nothing_is_replaced(
    tmp_path, predict, counted, write_case
):
    mine = [write_case(tmp_path / "A", case_id, blocks()) for case_id in "ab"]
    others = [write_case(tmp_path / "B", case_id, blocks() + 1) for case_id in "abc"]
    predict(mine)
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="other scans with 2 of these ids: a, b"):
        predict(others)
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert after == before
    predict(others[2:])
    table = pd.read_csv(tmp_path / "out" / "predictions.csv", dtype=str, keep_default_na=False)
    assert table["case"].tolist() == ["c", "a", "b"]
    first = before[tmp_path / "out" / "predictions.csv"].decode().splitlines()
    assert {*first} <= {*(tmp_path / "out" / "predictions.csv").read_text().splitlines()}
    assert counted == ["a", "b", "c"]


def test_a_scan_that_was_corrected_in_its_place_is_predicted_anew(
    tmp_path, predict, counted, write_case
):
    predict([write_case(tmp_path, "a", blocks())])
    table = predict([write_case(tmp_path, "a", blocks() + 10)])
    assert table["problem"].tolist() == [""]
    assert counted == ["a", "a"]


def test_results_of_an_earlier_version_are_kept_as_they_are(tmp_path, predict, counted, write_case):
    scan = write_case(tmp_path, "a", blocks())
    first = predict([scan])
    marker = tmp_path / "out" / "done" / "a.json"
    known = json.loads(marker.read_text())
    marker.write_text(json.dumps({k: known[k] for k in ("about", "labels_sha256", "rows")}))
    pd.testing.assert_frame_equal(predict([scan]), first)
    assert counted == ["a"]


def test_labels_that_drive_got_later_than_their_marker_are_predicted_anew(
    tmp_path, predict, counted, write_case
):
    scan, path = write_case(tmp_path, "a", blocks()), tmp_path / "out" / "labels" / "a.nii.gz"
    for limit in (50, 60):
        before = path.read_bytes() if path.exists() else b""
        results = make_experiment(tmp_path / "results", limit)
        predict([scan], results)
    newest = path.read_bytes()
    assert newest != before
    path.write_bytes(before)  # as if the session had ended between the two copies
    assert predict([scan], results)["problem"].tolist() == [""]
    assert path.read_bytes() == newest
    assert counted == ["a"] * 3


def test_what_is_finished_is_on_drive_when_a_batch_is_stopped_and_goes_on_from_there(
    tmp_path, predict, counted, write_case, monkeypatch
):
    scans = [write_case(tmp_path, case_id, blocks()) for case_id in "abc"]
    there, real = tmp_path / "drive", inference.predict_case

    def stop_at_c(models, case, *args, **kwargs):
        if case.id == "c":
            raise KeyboardInterrupt
        return real(models, case, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inference, "predict_case", stop_at_c)
        with pytest.raises(KeyboardInterrupt):
            predict(scans, backup_dir=there)
    kinds = ("labels", "uncertainty", "disagreement")
    expected = {f"{kind}/{i}.nii.gz" for kind in kinds for i in "ab"}
    expected |= {"done/a.json", "done/b.json", "predictions.csv", "scans.csv"}
    assert files_in(there) == expected
    table = pd.read_csv(there / "predictions.csv")
    assert table["case"].tolist() == ["a", "b"]
    (tmp_path / "out").rename(tmp_path / "gone")  # with the session's disk
    drive.copy_new(there, tmp_path / "out", overwrite=False)
    counted.clear()
    assert predict(scans, backup_dir=there)["problem"].tolist() == ["", "", ""]
    assert counted == ["c"]
    assert files_in(there) == files_in(tmp_path / "out")


@pytest.mark.parametrize("fault", [5, 28, 107])  # EIO, ENOSPC, ENOTCONN
def test_a_drive_that_fails_stops_no_batch(
    fault, tmp_path, predict, write_case, break_drive, capsys
):
    scans = [write_case(tmp_path, case_id, blocks()) for case_id in "ab"]
    broken = break_drive(tmp_path / "drive", fault)
    assert predict(scans, backup_dir=tmp_path / "drive")["problem"].tolist() == ["", ""]
    assert "NOT SAFE ON DRIVE YET" in capsys.readouterr().out
    broken.fault = None
    predict(scans, backup_dir=tmp_path / "drive")
    assert files_in(tmp_path / "drive") == files_in(tmp_path / "out")


def test_scans_that_fail_are_reported_and_the_others_go_on(
    tmp_path, predict, counted, monkeypatch, write_case
):
    sound = [write_case(tmp_path, case_id, blocks()) for case_id in ("a", "z")]
    holes = write_case(tmp_path, "holes", np.where(blocks() > 80, np.nan, blocks()))
    vast = write_case(tmp_path, "vast", np.where(blocks() > 80, 1e35, blocks()))
    two = write_case(tmp_path, "two", np.stack([blocks()] * 2, axis=-1))
    flat = write_case(tmp_path, "flat", 0 * blocks() + 3)
    cut, huge = (write_case(tmp_path, name, blocks()) for name in ("cut", "huge"))
    cut.image.write_bytes(cut.image.read_bytes()[:-20])
    nib.save(nib.Nifti1Image(blocks(), np.eye(4)), tmp_path / "huge.nii")
    raw = bytearray((tmp_path / "huge.nii").read_bytes())
    raw[42:48] = np.array([30_000] * 3, "<i2").tobytes()
    (tmp_path / "huge.nii").write_bytes(raw)
    huge = replace(huge, image=tmp_path / "huge.nii")
    gone = replace(sound[0], id="gone", image=tmp_path / "gone.nii")
    large = write_case(tmp_path, "large", blocks())
    real = inference.predict_case

    def too_large(models, case, *args, **kwargs):
        if case.id == "large":
            raise MemoryError  # which says nothing
        return real(models, case, *args, **kwargs)

    monkeypatch.setattr(inference, "predict_case", too_large)
    expected = {
        "a": "",
        "cut": "cut_image.nii.gz: cannot be read as NIfTI",
        "flat": "has the same value everywhere",
        "gone": "No such file or directory: '",
        "holes": "holds NaN, infinite or huge voxels",
        "huge": "its header promises shape (30000, 30000, 30000)",
        "large": "MemoryError",
        "two": "2 channels, the network has 1",
        "vast": "holds NaN, infinite or huge voxels",
        "z": "",
    }
    scans = [*sound, holes, vast, two, flat, cut, huge, gone, large]
    for _ in "ab":
        table = predict(scans)
        assert table["case"].tolist() == list(expected)
        for row in table.itertuples():
            words = expected[row.case]
            assert words in row.problem
            assert bool(words) == bool(row.problem)
            assert "\n" not in row.problem
            assert pd.isna(row.label) == pd.isna(row.volume_ml) == bool(words)
        assert files_in(tmp_path / "out" / "labels") == {"a.nii.gz", "z.nii.gz"}
    assert counted == ["a", "z"]


def test_a_mask_beside_a_scan_is_not_looked_at(tmp_path, predict, write_case):
    scan = write_case(tmp_path, "a", blocks(), np.zeros((2, 2, 2), np.uint8))
    assert predict([scan])["problem"].tolist() == [""]


def test_a_scan_of_one_file_per_channel_is_segmented_on_the_grid_of_the_first(
    tmp_path, predict, write_case
):
    results = make_experiment(tmp_path / "results", 50, channels=2)
    scan = write_case(tmp_path, "a", [blocks(), 100 - blocks()], codes="ASL")
    table = predict([scan], results, maps=["probabilities"])
    assert table["volume_ml"].tolist() == pytest.approx([48 * 0.006])
    expected = write_case(tmp_path, "expected", 5.0 * (blocks() > 50), codes="ASL").image
    np.testing.assert_array_equal(read_labels(tmp_path / "out", "a"), nib.load(expected).dataobj)
    saved = nib.load(tmp_path / "out" / "probabilities" / "a.nii.gz")
    np.testing.assert_array_equal(saved.affine, nib.load(scan.image[0]).affine)


def test_a_damaged_marker_is_reported_and_replaces_nothing(tmp_path, predict, write_case):
    scans = [write_case(tmp_path, case_id, blocks()) for case_id in "ab"]
    predict(scans)
    marker, path = (tmp_path / "out" / name for name in ("done/a.json", "labels/a.nii.gz"))
    whole, labels = json.loads(marker.read_text()), path.read_bytes()
    for text in ("", "{", "[]", "{}", json.dumps(whole | {"rows": [{"case": "a"}]})):
        marker.write_text(text)
        problems = predict(scans, overlap=0.25)["problem"].tolist()
        assert problems[0].startswith(f"{marker}: ")
        assert problems[1] == ""
        assert path.read_bytes() == labels
        assert marker.read_text() == text


def test_the_temperature_of_the_experiment_is_used(tmp_path, predict, write_case):
    scan = write_case(tmp_path, "a", blocks())
    cold = predict([scan], make_experiment(tmp_path / "results", 40, 50, 60))
    warm = predict([scan], make_experiment(tmp_path / "results", 40, 50, 60, temperature=2))
    # 2/3 against 1/3 become the roots of 2 against 1; certain voxels have 1 against 1e-7.
    shares = [math.sqrt(2) / (1 + math.sqrt(2)), 1 / (1 + math.sqrt(1e-7))]
    bits = [-p * math.log2(p) - (1 - p) * math.log2(1 - p) for p in shares]
    expected = (12 * bits[0] + 36 * bits[1]) / 48
    assert warm["uncertainty"].tolist() == pytest.approx([expected], abs=1e-4)
    same = ["volume_ml", "volume_mean_ml", "agreement"]
    pd.testing.assert_frame_equal(warm[same], cold[same])


def test_the_temperature_of_an_experiment_is_the_geometric_mean_of_its_folds(results):
    assert load_temperature(results) == 1
    for fold, temperature in ((0, 2.0), (10, 4.0)):
        path = results / f"fold_{fold}" / "done.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"temperature": temperature}))
    assert load_temperature(results) == pytest.approx(2)  # 2 * 1 * 4 = 8 of three folds
    with pytest.raises(FileNotFoundError, match="no fold is finished"):
        load_temperature(results / "fold_0")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"maps": ["entropy"]}, r"maps must be among .*maps=\('entropy',\)"),
        ({"maps": "uncertainty"}, "maps must be among"),
    ],
)
def test_unknown_maps_are_refused_before_anything_is_read(change, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        predict_scans([], tmp_path / "nowhere", tmp_path / "out", **change)
    assert files_in(tmp_path) == set()


def test_two_scans_of_one_id_are_refused(tmp_path, predict, write_case):
    scan = write_case(tmp_path, "a", blocks())
    with pytest.raises(ValueError, match="1 ids stand twice: a"):
        predict([scan, replace(scan, id="b"), scan])
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("setting", "error", "words"),
    [
        ({"overlap": 1}, ValueError, r"overlap must be in \[0, 1\)"),
        ({"mirror_axes": [2]}, ValueError, "mirror_axes must be among"),
        ({"temperature": 0}, ValueError, "temperature must be above 0"),
        ({"window": 3}, TypeError, "window"),
    ],
)
def test_a_setting_that_is_not_possible_is_refused_once_and_not_scan_by_scan(
    setting, error, words, tmp_path, predict, write_case
):
    scan = write_case(tmp_path, "a", blocks())
    with pytest.raises(error, match=words):
        predict([scan], **setting)
    assert not (tmp_path / "out").exists()


def test_an_experiment_that_cannot_be_used_is_refused_at_once(tmp_path, predict, write_case):
    scan = write_case(tmp_path, "a", blocks())
    with pytest.raises(FileNotFoundError, match="no fold is finished"):
        predict([scan], tmp_path)
    results = make_experiment(tmp_path / "results", 50)
    (results / "fold_0" / "model.weights.h5").write_bytes(b"no weights")
    with pytest.raises(ValueError, match=r"model\.weights\.h5: damaged"):
        predict([scan], results)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("backend", ["threading", pytest.param("loky", marks=pytest.mark.long)])
def test_two_at_once_write_what_one_does(backend, tmp_path, experiment, write_case):
    if (backend, keras.backend.backend()) == ("threading", "jax"):
        pytest.skip("one Keras model in two threads: not with JAX")
    scans = [write_case(tmp_path, case_id, blocks() + k) for k, case_id in enumerate("abc")]
    scans.append(replace(scans[0], id="gone", image=tmp_path / "gone.nii"))
    tables, contents = [], []
    for n_jobs in (1, 2):
        folder = tmp_path / f"out_{n_jobs}"
        with joblib.parallel_config(backend, n_jobs=n_jobs):
            table = predict_scans(scans, experiment, folder, build_model=build_scale)
        tables.append(table.drop(columns="seconds"))
        contents.append({p.name: p.read_bytes() for p in folder.glob("*/*.nii.gz")})
        contents[-1] |= {"files": files_in(folder)}
    pd.testing.assert_frame_equal(*tables)
    assert contents[0] == contents[1]


def die_at(scan, *args):
    if scan.id == "b":
        os.kill(os.getpid(), signal.SIGKILL)
    return REAL(scan, *args)


REAL = inference._predict_scan


@pytest.mark.skipif(sys.platform != "linux", reason="kills as Linux does")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_process_that_is_killed_costs_its_scan_alone(
    n_jobs, tmp_path, experiment, write_case, monkeypatch
):
    monkeypatch.setattr(inference, "_predict_scan", die_at)
    scans = [write_case(tmp_path, case_id, blocks()) for case_id in "abcd"]
    table = predict_scans(
        scans, experiment, tmp_path / "out", build_model=build_scale, n_jobs=n_jobs
    )
    assert table["case"].tolist() == [*"abcd"]
    problems = table["problem"].tolist()
    assert problems[:1] + problems[2:] == [""] * 3
    assert problems[1].startswith(f"{scans[1].image}: the process died, most often because memory")
    assert "GB" in problems[1]
    assert "N_JOBS" in problems[1]
    assert files_in(tmp_path / "out" / "labels") == {"a.nii.gz", "c.nii.gz", "d.nii.gz"}
    assert not multiprocessing.active_children()
    assert (processes._IDLE, processes._BUSY) == ([], {})


def test_a_scan_that_takes_more_memory_than_there_is_is_reported_before(
    tmp_path, predict, counted, write_case, capsys
):
    small = write_case(tmp_path, "small", blocks())
    large = write_case(tmp_path, "large", np.tile(blocks(), (32, 32, 4)))
    needs = [memory.foretell(scan, PLAIN_SLICES, n_models=3) for scan in (small, large)]
    assert 2 * needs[0] < needs[1]
    free = needs[1] // 2
    table = predict([small, large], memory_bytes=free).set_index("case")
    assert counted == ["small"]
    assert table.loc["small", "problem"] == ""
    problem = table.loc["large", "problem"]
    assert problem.startswith(f"{large.image}: predicting it takes about 0.1 GB of memory")
    assert "GB are free. Predict fewer scans at once (N_JOBS)" in problem
    assert "A scan takes up to" in capsys.readouterr().out


PLAIN_SLICES = Preprocessor((1, 2, 3), (8, 8, 1), {5: "five"}, 1, "none")
