"""What was trained on is known by content, and every change is told by name."""

import builtins
import json
import os
import shutil
from dataclasses import replace

import nibabel as nib
import numpy as np
import pytest

from unetseg.cases import find_cases
from unetseg.run import fingerprints, inputs
from unetseg.run.inputs import AS_TRAINED, CORRECTED, UNKNOWN, Trained


@pytest.fixture
def data(make_data):
    return make_data(4)


@pytest.fixture
def results(data, tmp_path):
    """Two finished folds, as far as they tell what they were trained on."""
    cases = find_cases(data)
    for folder, kind in (("masks", "labelsTr"), ("predictions", "labelsTr")):
        shutil.copytree(data / kind, tmp_path / "results" / folder)
    files, ids = inputs.describe_inputs(cases), [case.id for case in cases]
    for fold, val in enumerate((ids[:2], ids[2:])):
        train = [i for i in ids if i not in val]
        names = [f"{case_id}.nii.gz" for case_id in val]
        masks = {name: fingerprints.sha256(data / "labelsTr" / name) for name in names}
        done = {"weights_sha256": "0" * 64, "minutes": 1, "train": train, "val": val}
        done |= {"inputs": files, "masks_sha256": masks, "predictions_sha256": masks}
        folder = tmp_path / "results" / f"fold_{fold}"
        folder.mkdir()
        (folder / "done.json").write_text(json.dumps(done))
    return tmp_path / "results"


def forget_content(results, *names):
    """Make the folds those of an earlier version."""
    for path in results.glob("fold_*/done.json"):
        done = json.loads(path.read_text())
        path.write_text(json.dumps({k: v for k, v in done.items() if k not in names}))


def redraw(path):
    """Correct a mask: the first label loses a voxel."""
    image = nib.load(path)
    mask = np.asarray(image.dataobj).copy()
    mask[tuple(np.argwhere(mask == 1)[0])] = 0
    nib.save(nib.Nifti1Image(mask, image.affine), path)


def store_again(path):
    """Write the same labels in other bytes."""
    image = nib.load(path)
    mask = np.asarray(image.dataobj).astype(np.int16)
    nib.save(nib.Nifti1Image(mask, image.affine), path)


def test_unchanged_data_are_not_read_and_nothing_is_said(data, results, monkeypatch, capsys):
    cases = find_cases(data)
    read, real = [], open

    def noted(path, *args, **kwargs):
        read.append(str(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(fingerprints, "_known", {})  # another process
    monkeypatch.setattr(builtins, "open", noted)
    Trained(results).refuse_stale(cases)
    assert [path for path in read if ".nii" in path] == []
    assert capsys.readouterr().out == ""


def test_copies_with_other_times_are_the_same_data(data, results, tmp_path):
    shutil.copytree(data, tmp_path / "moved")
    for path in (tmp_path / "moved").rglob("*.nii.gz"):
        os.utime(path, (1, 1))
    Trained(results).refuse_stale(find_cases(tmp_path / "moved"))


def test_every_change_is_told_by_name_with_what_to_do(data, results):
    redraw(data / "labelsTr" / "case_00.nii.gz")
    (data / "imagesTr" / "case_01.nii.gz").write_bytes(b"another scan")
    for kind in ("imagesTr", "labelsTr"):
        (data / kind / "case_02.nii.gz").unlink()
    with pytest.raises(ValueError) as error:
        Trained(results).refuse_stale(find_cases(data))
    said = str(error.value)
    assert "since 2 folds were finished 3 files of their data changed" in said
    assert "the mask of case_00 changed" in said
    assert "the scan of case_01 changed" in said
    assert "case_02 is not in the data any more" in said
    assert "case_03" not in said
    for remedy in ("RETRAIN", "EXPERIMENT", "put the files back", "03_evaluate"):
        assert remedy in said


def test_two_cases_that_were_exchanged_are_told_although_size_and_time_are_the_same(
    data, tmp_path, write_nifti, affine, make_arrays
):
    for k in range(2):  # not compressed, so of one size, and unpacked in the same second
        image, mask = make_arrays(seed=k)
        for kind, array in (("imagesTr", image), ("labelsTr", mask)):
            path = write_nifti(tmp_path / "plain" / kind / f"c{k}.nii", array, affine)
            os.utime(path, (10**9, 10**9))
    cases = find_cases(tmp_path / "plain")
    done = {"weights_sha256": "0" * 64, "minutes": 1, "train": ["c0"], "val": ["c1"]}
    done["inputs"] = inputs.describe_inputs(cases)
    (tmp_path / "results" / "fold_0").mkdir(parents=True)
    (tmp_path / "results" / "fold_0" / "done.json").write_text(json.dumps(done))
    Trained(tmp_path / "results").refuse_stale(cases)
    first, second = (tmp_path / "plain" / "imagesTr" / f"c{k}.nii" for k in range(2))
    first.rename(tmp_path / "kept")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    with pytest.raises(ValueError, match=r"2 files .*the scan of c0 changed, the scan of c1"):
        Trained(tmp_path / "results").refuse_stale(cases)


def test_a_mask_stored_anew_with_the_same_labels_is_the_same(data, results):
    store_again(data / "labelsTr" / "case_00.nii.gz")
    cases = find_cases(data)
    assert Trained(results).compare_mask(cases[0]) == AS_TRAINED
    Trained(results).refuse_stale(cases)


def test_of_folds_of_an_earlier_version_masks_are_told_by_their_copies_and_scans_are_not_known(
    data, results, capsys
):
    forget_content(results, "inputs", "masks_sha256", "predictions_sha256")
    (data / "imagesTr" / "case_01.nii.gz").write_bytes(b"another scan")
    cases = find_cases(data)
    trained = Trained(results)
    assert trained.knows_scan(cases[1]) is None
    trained.refuse_stale(cases)
    assert "Fold 0, 1: of an earlier version; not known whether" in capsys.readouterr().out
    redraw(data / "labelsTr" / "case_00.nii.gz")
    with pytest.raises(ValueError, match="1 files of their data changed: the mask of case_00"):
        trained.refuse_stale(cases)
    shutil.rmtree(results / "masks")
    assert trained.compare_mask(cases[0]) == UNKNOWN


def test_the_copy_of_a_mask_that_was_edited_itself_is_no_witness(data, results):
    copy = results / "masks" / "case_00.nii.gz"
    redraw(copy)
    case = find_cases(data)[0]
    assert Trained(results).compare_mask(case) == AS_TRAINED
    assert Trained(results).compare_mask(replace(case, mask=copy)) == CORRECTED


def test_corrected_masks_are_scored_and_named(data, results, capsys):
    redraw(data / "labelsTr" / "case_00.nii.gz")
    (data / "imagesTr" / "case_01.nii.gz").write_bytes(b"another scan")
    masks = Trained(results).describe_scored(find_cases(data))
    assert masks == {
        "case_00": CORRECTED,
        "case_01": AS_TRAINED,
        "case_02": AS_TRAINED,
        "case_03": AS_TRAINED,
    }
    said = capsys.readouterr().out
    assert "1 masks were corrected since training, and are scored: case_00." in said
    assert "1 scans changed since they were predicted: case_01." in said


def test_a_case_with_another_scan_and_another_mask_is_not_scored(data, results):
    redraw(data / "labelsTr" / "case_00.nii.gz")
    (data / "imagesTr" / "case_00.nii.gz").write_bytes(b"another patient")
    with pytest.raises(ValueError, match=r"1 cases have another scan .*: case_00\. .*RETRAIN"):
        Trained(results).describe_scored(find_cases(data))


def test_predictions_that_no_fold_made_are_refused_by_name(results):
    fold_of = {"case_00": 0, "case_01": 0, "case_02": 1, "case_03": 1}
    Trained(results).refuse_foreign(results / "predictions", fold_of)
    redraw(results / "predictions" / "case_02.nii.gz")
    with pytest.raises(ValueError, match=r"1 predictions are not .*: case_02 \(fold 1\)\. "):
        Trained(results).refuse_foreign(results / "predictions", fold_of)
    (results / "fold_0" / "done.json").unlink()
    with pytest.raises(ValueError, match=r"3 predictions .*: case_00 \(fold 0\), case_01"):
        Trained(results).refuse_foreign(results / "predictions", fold_of)
    forget_content(results, "predictions_sha256")
    del fold_of["case_00"], fold_of["case_01"]
    Trained(results).refuse_foreign(results / "predictions", fold_of)  # nothing is known


def test_files_that_change_while_they_are_used_are_named(data):
    cases = find_cases(data)
    files = inputs.describe_inputs(cases)
    inputs.refuse_changed_meanwhile(files, cases)
    redraw(data / "labelsTr" / "case_03.nii.gz")
    with pytest.raises(ValueError, match=r"1 files were changed while .*: mask of case_03"):
        inputs.refuse_changed_meanwhile(files, cases)


def test_preprocessing_that_was_chosen_from_other_data_is_said(data, tmp_path, capsys):
    path = tmp_path / "fitted_on.json"
    cases = find_cases(data)
    assert not inputs.say_if_fitted_on_others(path, cases)
    inputs.note_inputs(path, cases[:3])
    assert not inputs.say_if_fitted_on_others(path, cases[:3])
    assert capsys.readouterr().out == ""
    redraw(cases[1].mask)
    assert inputs.say_if_fitted_on_others(path, cases[1:])
    said = capsys.readouterr().out
    assert "another mask of case_01, case_00 is gone, case_03 is new. Run 01_load_data" in said


def test_cases_in_no_fold_are_named(data, capsys):
    cases = find_cases(data)
    folds = [{"train": ["case_00"], "val": ["case_02"]}]
    assert inputs.list_used(folds) == {"case_00", "case_02"}
    inputs.say_unused(folds, cases)
    assert "2 cases are in no fold of splits.json" in (said := capsys.readouterr().out)
    assert "case_01, case_03" in said
