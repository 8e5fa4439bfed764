"""A labelled test set: scored like the cross-validation, and held against its claim."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from training_helpers import arrays

from unetseg import nifti, testset
from unetseg._base import sha256, write_json
from unetseg.lesions import recall_lesions
from unetseg.run.inputs import Trained
from unetseg.run.layout import Run
from unetseg.scores import score_predictions, summarise

LABELS = {1: "label 1", 4: "label 4"}


@pytest.fixture
def experiment(copy, cases):
    """The results of `run`, as if it had drawn each case without a fault, scored."""
    run = Run(copy)
    for case in cases:
        shutil.copy(case.mask, run.prediction(case.id))
    folds = [{"train": [], "val": [case.id for case in cases]}]
    elsewhere = shutil.move(run.predictions, copy.parent / "drawn")
    table = score_predictions(cases, elsewhere, folds, LABELS)
    made = Trained(copy).list_predictions()  # as if these had been they
    table.assign(prediction_sha256=table["case"].map(made)).to_csv(run.scores, index=False)
    return run


@pytest.fixture
def batch(experiment, cases, write_case, tmp_path):
    """Four new scans with masks, of which a fifth of label 1 was found, and a trained one."""
    scans = [write_case(tmp_path / "new", f"n{k}", *arrays(50 + k)) for k in range(4)]
    scans.append(replace(cases[0], id="old"))
    batch = experiment.batch("new")
    for scan in scans:
        mask, _ = nifti.load_mask(scan.mask)
        drawn = np.where((mask == 1) & (np.arange(mask.shape[1])[:, None] > 4), 0, mask)
        nifti.save_mask(batch.label(scan.id), drawn, scan.files[0])
    return batch, scans


def test_without_masks_there_is_nothing_to_score(experiment, cases):
    scans = [replace(case, mask=None) for case in cases]
    tested = testset.score_batch(experiment.folder, experiment.batch("new"), scans)
    assert tested == ("No masks beside these scans: nothing to score.", None, None, None)


def test_a_test_set_is_scored_and_the_claim_is_broken(experiment, batch):
    place, scans = batch
    tested = testset.score_batch(experiment.folder, place, scans)
    assert "5 of 5 scans have a mask. Trained on, so not counted: old. 4 scored." in tested.said
    assert "Trained on, so not counted: old." in place.report.read_text(encoding="utf-8")
    assert "WORSE THAN CROSS-VALIDATION CLAIMED: label 1 (dice)" in tested.said
    assert sorted(set(tested.scores["case"])) == ["n0", "n1", "n2", "n3"]
    assert tested.scores.loc[tested.scores["label"] == 1, "dice"].tolist() == [1 / 3] * 4
    claim = tested.claim.set_index(["name", "metric"])
    assert claim.loc[("label 1", "dice"), "claimed"] == 1
    assert claim.loc[("label 1", "dice"), "difference"] == pytest.approx(-2 / 3)
    assert claim.loc[("label 4", "dice"), "held"] == "yes"
    pd.testing.assert_frame_equal(pd.read_csv(place.claim), tested.claim)
    assert len(pd.read_csv(place.summary)) == len(summarise(tested.scores))


@pytest.mark.parametrize(
    ("models", "who"),
    [
        (["final"], "the model on all cases"),
        ([0, 1], "the models of the folds"),
        ([0], "other models than are here now"),
    ],
)
def test_it_is_said_which_models_drew_the_labels(experiment, batch, models, who):
    place, scans = batch
    done = json.loads(experiment.fold(0).done.read_text())
    write_json(experiment.fold("final").done, {**done, "weights_sha256": "a" * 64})
    drawn_by = [json.loads(experiment.fold(n).done.read_text())["weights_sha256"] for n in models]
    row = {"case": "n1", "label": 1, "name": "label 1", "volume_ml": 1.0, "problem": ""}
    note = {"about": {"models": drawn_by}, "rows": [row]}
    write_json(place.note("n1"), {**note, "labels_sha256": sha256(place.label("n1"))})
    tested = testset.score_batch(experiment.folder, place, scans)
    assert f"Segmented by {who}." in tested.said
    assert f"Segmented by {who}." in place.report.read_text(encoding="utf-8")


def test_scores_that_are_left_of_before_are_said_to_be_so(experiment, batch):
    place, scans = batch
    testset.score_batch(experiment.folder, place, scans)
    tested = testset.score_batch(experiment.folder, place, scans[-1:])  # which was trained on
    assert tested.said.endswith("scores.csv and report.html there are of before.")
    assert tested.scores is None


def test_lesions_are_counted_by_the_rule_of_the_cross_validation(experiment, batch):
    place, scans = batch
    testset.score_batch(experiment.folder, place, scans)
    assert not place.lesions.exists()
    columns = "case,group,fold,label,name,lesion,volume_ml,iou,overlap,least_ml"
    experiment.lesions.write_text(f"{columns}\nc0,,0,1,label 1,found,1,0.9,0.5,0\n")
    testset.score_batch(experiment.folder, place, scans)
    found, rule = recall_lesions(place.lesions)
    assert rule == {"overlap": 0.5, "least_ml": 0}
    kinds = found.loc[found["label"] == 1, "lesion"]  # a fifth of each was drawn: IoU 0.2
    assert kinds.tolist() == ["missed", "false"] * 4
    assert (found.loc[found["label"] == 4, "lesion"] == "found").all()
    assert place.figure("lesions").exists()
    assert "<h2>Lesions</h2>" in place.report.read_text(encoding="utf-8")


def test_what_too_few_scans_cannot_tell_is_said(experiment, batch):
    place, scans = batch
    said = testset.score_batch(experiment.folder, place, scans[:1]).said
    assert "Whether what it claimed holds is not known of label 1 (dice)" in said
    assert "What cross-validation claimed held" not in said


def test_scores_of_other_predictions_claim_nothing(experiment, batch):
    place, scans = batch
    table = pd.read_csv(experiment.scores).assign(prediction_sha256="0" * 64)  # of before
    table.to_csv(experiment.scores, index=False)
    tested = testset.score_batch(experiment.folder, place, scans)
    assert tested.claim.empty
    assert "The models as they are now are not scored" in tested.said


def test_the_interval_is_that_of_welch():
    here, there = pd.Series([0.5, 0.6, 0.7, 0.8]), pd.Series([0.7, 0.8, 0.9, 0.85, 0.75])
    low, high = testset._interval(here, there)
    # By hand: difference -0.15; variances 0.016667 and 0.00625; SE 0.073598, 4.749 degrees of
    # freedom, t 2.612.
    half = 2.612 * 0.073598
    assert (low, high) == pytest.approx((-0.15 - half, -0.15 + half), abs=1e-4)


def test_labels_that_earlier_models_drew_of_a_scan_that_now_failed_are_not_scored(
    experiment, batch
):
    place, scans = batch
    rows = [f"{scan.id},{'no memory' if scan.id == 'n1' else ''}" for scan in scans]
    place.predictions.write_text("\n".join(["case,problem", *rows]))
    tested = testset.score_batch(experiment.folder, place, scans)
    assert "NOT SEGMENTED, so without a score: n1." in tested.said


def test_scans_of_patients_with_the_names_of_trained_ones_are_named_and_count(experiment, batch):
    place, scans = batch
    table = pd.read_csv(experiment.cases, dtype={"case": str}).assign(group="p1")
    table.to_csv(experiment.cases, index=False)
    scans[2:4] = [replace(scans[2], group="p1"), replace(scans[3], group="p2")]
    said = testset.score_batch(experiment.folder, place, scans).said
    assert "NAMED AS PATIENTS OF THE TRAINING: take them out if they are these: n2." in said
    assert "4 scored." in said
    assert "here each scan counts as one" not in said


def test_that_patients_are_not_known_of_the_test_set_alone_is_told(experiment, batch):
    place, scans = batch
    unknown = "In training patients were known; here each scan counts as one (GROUPS)."
    assert unknown not in testset.score_batch(experiment.folder, place, scans).said
    table = pd.read_csv(experiment.cases, dtype={"case": str}).assign(group="p1")
    table.to_csv(experiment.cases, index=False)
    assert unknown in testset.score_batch(experiment.folder, place, scans).said


def test_scans_that_are_not_segmented_are_named(experiment, batch):
    place, scans = batch
    place.label("n1").unlink()
    said = testset.score_batch(experiment.folder, place, scans).said
    assert "NOT SEGMENTED, so without a score: n1." in said
    assert "3 scored." in said


def test_labels_that_a_person_corrected_are_no_prediction(experiment, batch):
    place, scans = batch
    row = {"case": "n2", "label": 1, "name": "one", "volume_ml": 1.0, "problem": ""}
    about = {"models": [], "maps": [], "settings": {}, "scan": []}
    write_json(place.note("n2"), {"about": about, "rows": [row], "labels_sha256": "0" * 64})
    said = testset.score_batch(experiment.folder, place, scans).said
    assert "Labels corrected by hand, so not counted: n2. 3 scored." in said


def test_what_floating_point_leaves_of_nothing_is_nothing(experiment, batch):
    place, scans = batch
    for scan in scans:
        shutil.copy(scan.mask, place.label(scan.id))
    table = pd.read_csv(experiment.scores, dtype={"case": str})
    table.assign(hd95_mm=table["hd95_mm"] - 1e-9).to_csv(experiment.scores, index=False)
    claim = testset.score_batch(experiment.folder, place, scans).claim
    far = claim[claim["metric"] == "hd95_mm"]
    assert (far[["difference", "low", "high"]] == 0).all(axis=None)
    assert (far["held"] == "yes").all()


def test_a_structure_that_was_not_found_leaves_a_claim_of_distances_unknown(experiment, batch):
    place, scans = batch
    for scan in scans:
        shutil.copy(scan.mask, place.label(scan.id))
    labels, _ = nifti.load_mask(scans[0].mask)
    nifti.save_mask(place.label("n0"), np.where(labels == 4, 0, labels), scans[0].files[0])
    tested = testset.score_batch(experiment.folder, place, scans)
    claim = tested.claim.set_index(["name", "metric"])
    far = claim.loc[("label 4", "hd95_mm")]
    assert far[["n", "left_out", "held"]].tolist() == [3, 1, "not known"]
    assert claim.loc[("label 1", "hd95_mm"), ["left_out", "held"]].tolist() == [0, "yes"]
    assert "not known of label 4 (hd95_mm): too few patients, or distances that are" in tested.said
    assert "left out" in place.report.read_text(encoding="utf-8")


@pytest.mark.parametrize("simulated", [True, False])
def test_the_report_says_of_simulated_scans_that_they_are(experiment, batch, simulated):
    place, scans = batch
    testset.score_batch(experiment.folder, place, scans, simulated=simulated)
    assert ("simulated" in place.report.read_text(encoding="utf-8")) is simulated


def test_patients_count_once_in_the_claim(experiment, batch):
    place, scans = batch
    one = [replace(scan, group="same") for scan in scans[:4]]
    claim = testset.score_batch(experiment.folder, place, one).claim
    assert set(claim["n"]) == {1}
    assert set(claim["held"]) == {"not known"}


def test_a_damaged_mask_is_named_and_stops_nothing(experiment, batch, capsys):
    place, scans = batch
    scans[1].mask.write_bytes(scans[1].mask.read_bytes()[:-20])
    said = testset.score_batch(experiment.folder, place, scans).said
    assert "Masks that cannot be scored: n1." in said
    assert "3 scored." in said
    assert "n1: n1_mask.nii.gz: cannot be read" in capsys.readouterr().out.replace(
        f"{scans[1].mask.parent}/", ""
    )


def test_an_experiment_that_is_not_scored_claims_nothing(experiment, batch):
    experiment.scores.unlink()
    place, scans = batch
    tested = testset.score_batch(experiment.folder, place, scans)
    assert "not scored (notebook 3)" in tested.said
    assert tested.claim.empty
