"""Stray pieces: decided on the other folds, applied to scores, pictures and new scans."""

import shutil

import numpy as np
import pandas as pd
import pytest

from unetseg.cases import Case
from unetseg.components import choose, compare_pieces, decide, describe
from unetseg.pieces import keep_largest
from unetseg.preprocessing import Preprocessor
from unetseg.run.layout import Run
from unetseg.scores import find_stale, score_predictions

LABELS = {1: "heart", 3: "liver"}
SHAPE = (12, 10, 8)
HEART, LIVER = (slice(1, 5), slice(1, 5), slice(1, 5)), (slice(1, 5), slice(6, 9), slice(1, 5))
FAR_OFF, AT_THE_EDGE = (slice(9, 11), slice(1, 3), slice(1, 3)), (slice(9, 11), slice(6, 8), 6)


def draw(**parts):
    """Draw boxes: each label, by its name, in a list of places."""
    values = {name: value for value, name in LABELS.items()}
    array = np.zeros(SHAPE, np.uint8)
    for name, places in parts.items():
        for place in places:
            array[place] = values[name]
    return array


@pytest.fixture
def cohort(tmp_path, write_nifti, affine):
    """Four cases in two folds: the predicted heart of each has a stray piece, no liver has.

    Case d has two livers of one size in truth, and both are predicted.
    """
    found = []
    for case_id in "abcd":
        livers = [LIVER, AT_THE_EDGE]
        livers = livers if case_id == "d" else livers[:1]
        true = draw(heart=[HEART], liver=livers)
        pred = draw(heart=[HEART, FAR_OFF], liver=livers)
        mask = write_nifti(tmp_path / "labels" / f"{case_id}.nii.gz", true, affine)
        write_nifti(tmp_path / "predictions" / f"{case_id}.nii.gz", pred, affine)
        found.append(Case(case_id, None, mask))
    folds = [{"train": ["c", "d"], "val": ["a", "b"]}, {"train": ["a", "b"], "val": ["c", "d"]}]
    return found, folds


def test_the_largest_piece_of_a_label_is_kept():
    array = draw(heart=[HEART, FAR_OFF], liver=[LIVER, AT_THE_EDGE])
    kept = keep_largest(array, [1])
    np.testing.assert_array_equal(kept, draw(heart=[HEART], liver=[LIVER, AT_THE_EDGE]))
    kept = keep_largest(array, [3, 7])  # of 7 there is none
    np.testing.assert_array_equal(kept, draw(heart=[HEART, FAR_OFF], liver=[LIVER]))


def test_the_largest_piece_is_that_of_all_that_was_predicted(tmp_path, write_nifti, affine):
    # A larger piece lies where nobody drew: then nothing is left of what is scored.
    true = draw(heart=[HEART])
    true[6:] = 9
    pred = draw(heart=[HEART, (slice(7, 12), slice(0, 9), slice(0, 8))])
    write_nifti(tmp_path / "predictions/a.nii.gz", pred, affine)
    case = Case("a", None, write_nifti(tmp_path / "labels/a.nii.gz", true, affine))
    Preprocessor(labels={1: "heart"}, ignore=9).save(tmp_path / "preprocessor.json")
    table = compare_pieces(
        [case], tmp_path / "predictions", [{"train": [], "val": ["a"]}], {1: "h"}
    )
    assert table[["dice", "largest_dice"]].to_numpy().tolist() == [[1, 0]]
    assert choose(table) == []


def pieces(dice, distances, in_truth=(1, 1)):
    before = {"dice": [0.8, 0.6], "mm": [5.0, 5.0]}
    after = {"largest_dice": dice, "largest_mm": distances}
    return pd.DataFrame({"label": 1, "pieces": in_truth, **before, **after})


@pytest.mark.parametrize(
    ("dice", "distances", "chosen"),
    [
        ([0.8, 0.7], [9.0, 9.0], True),  # a better Dice, whatever the distances
        ([0.8, 0.5], [1.0, 1.0], False),  # a worse one
        ([0.8, 0.6], [5.0, 4.0], True),  # as good, nearer
        ([0.8, 0.6], [5.0, 5.0], False),  # all the same
        ([0.80001, 0.60001], [5.0, 9.0], False),  # farther, Dice the same in four digits
        ([0.8, np.nan], [4.0, np.inf], True),  # a case without a distance tells nothing
    ],
)
def test_dice_decides_and_then_the_distance(dice, distances, chosen):
    table = pieces(dice, distances)
    table.loc[np.isnan(table["largest_dice"]), ["dice", "mm"]] = np.nan, np.inf
    assert choose(table) == [1] * chosen


@pytest.mark.parametrize(
    ("in_truth", "chosen"),
    [
        ([1] * 9 + [2], True),  # one of ten
        ([1] * 8 + [2], False),  # one of nine
        ([0] * 20 + [1, 2], False),  # masks without the label tell nothing
        ([0] * 10, False),
    ],
)
def test_labels_of_several_pieces_keep_them(in_truth, chosen):
    table = pd.concat([pieces([0.9, 0.9], [1.0, 1.0])[:1]] * len(in_truth))
    assert choose(table.assign(pieces=in_truth)) == [1] * chosen


def test_nothing_is_chosen_without_cases():
    assert choose(pieces([0.9, 0.9], [1.0, 1.0])[:0]) == []


def test_pieces_are_left_out_where_the_other_folds_say_so(cohort, tmp_path):
    found, folds = cohort
    table = decide(tmp_path, found, folds, LABELS).set_index("name")
    # 64 voxels of heart and 8 astray, 2 mm more than 7 mm off: Dice 2 * 64 / (64 + 72).
    assert table.loc["heart", "dice"] == pytest.approx(128 / 136)
    assert table.loc["heart", "largest_dice"] == 1
    assert table.loc["heart", "largest_mm"] == 0 < table.loc["heart", "mm"]
    assert table.loc["heart", ["folds", "new_scans"]].tolist() == [2, True]
    assert table.loc["liver", ["folds", "new_scans"]].tolist() == [0, False]
    assert Run(tmp_path).read_components() == {
        "cases": {"a": [1], "b": [1], "c": [1], "d": [1]},
        "new_scans": [1],
    }


def test_scores_are_of_what_was_decided(cohort, tmp_path):
    found, folds = cohort
    settings = found, tmp_path / "predictions", folds, LABELS
    before = score_predictions(*settings)
    decide(tmp_path, found, folds, LABELS)
    after = score_predictions(*settings)
    assert (before.loc[before["label"] == 1, "dice"] < 1).all()
    assert (after["dice"] == 1).all()
    pd.testing.assert_frame_equal(before, score_predictions(*settings, largest={}))


def test_a_fold_is_not_asked_about_itself(cohort, tmp_path, write_nifti, affine):
    # The heart of fold 1 is split, and its larger half lies where none is.
    found, folds = cohort
    wrong = draw(heart=[(slice(1, 3), *HEART[1:]), (slice(6, 11), *HEART[1:])])
    for case_id in "cd":
        write_nifti(tmp_path / "predictions" / f"{case_id}.nii.gz", wrong, affine)
    decide(tmp_path, found, folds, LABELS)
    decided = Run(tmp_path).read_components()["cases"]
    assert decided == {"a": [], "b": [], "c": [1], "d": [1]}


def test_the_masks_of_a_fold_do_not_decide_on_it(cohort, tmp_path, write_nifti, affine):
    found, folds = cohort
    for case in found[:2]:
        write_nifti(case.mask, draw(heart=[HEART, FAR_OFF]), affine)
    table = decide(tmp_path, found, folds, LABELS).set_index("name")
    assert table.loc["heart", ["folds", "new_scans"]].tolist() == [1, False]
    decided = Run(tmp_path).read_components()["cases"]
    assert decided == {"a": [1], "b": [1], "c": [], "d": []}


def test_scores_of_other_pieces_than_were_decided_are_stale(cohort, tmp_path):
    found, folds = cohort
    run = Run(tmp_path)
    score_predictions(found, run.predictions, folds, LABELS).to_csv(run.scores, index=False)
    assert find_stale(tmp_path) == []
    decide(tmp_path, found, folds, LABELS)
    assert find_stale(tmp_path) == ["a", "b", "c", "d"]
    score_predictions(found, run.predictions, folds, LABELS).to_csv(run.scores, index=False)
    assert find_stale(tmp_path) == []


def test_predictions_of_another_system_keep_their_pieces(cohort, tmp_path):
    found, folds = cohort
    decide(tmp_path, found, folds, LABELS)
    other = shutil.copytree(tmp_path / "predictions", tmp_path / "other")
    table = score_predictions(found, other, folds, LABELS)
    assert (table.loc[table["label"] == 1, "dice"] < 1).all()
    assert describe(table) == ""


def test_what_counts_is_said(cohort, tmp_path):
    found, folds = cohort
    decide(tmp_path, found, folds, LABELS)
    table = score_predictions(found, tmp_path / "predictions", folds, LABELS)
    assert describe(table).startswith("Only the largest piece counts of heart (in 4 of the cases)")
    assert describe(table.drop(columns="largest")) == ""
