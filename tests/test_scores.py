import shutil

import numpy as np
import pandas as pd
import pytest

from unetseg import nifti
from unetseg._base import write_json
from unetseg.cases import Case
from unetseg.run.fingerprints import fingerprint, sha256
from unetseg.run.layout import read_json
from unetseg.scores import (
    METRICS,
    compare,
    compare_with,
    count_confusion,
    describe_controls,
    find_stale,
    list_means,
    load_scores,
    load_summary,
    rank_cases,
    read_pairs,
    score_predictions,
    summarise,
)

LABELS = {1: "front", 4: "back"}
SHAPE = (6, 5, 4)
NAN, INF = float("nan"), float("inf")


def box(label, x, y, z):
    array = np.zeros(SHAPE, np.uint8)
    array[slice(*x), slice(*y), slice(*z)] = label
    return array


def flipped(array, affine):
    """The same voxels at the same places, stored from right to left."""
    turned = affine.copy()
    turned[:, 3] += (array.shape[0] - 1) * affine[:, 0]
    turned[:, 0] *= -1
    return array[::-1], turned


@pytest.fixture
def cohort(tmp_path, write_nifti, affine):
    """Three cases with masks and predictions, and their folds.

    a: label 1 has 2 x 2 x 2 voxels, the prediction lies one voxel (1 mm) further along x; label
    4 is in neither mask. b: label 1 is missed; label 4 is predicted exactly. c: label 1 has one
    voxel, predicted (2, 6, 3) mm away, that is 7 mm; label 4 is predicted where there is none.
    """
    true = {
        "a": box(1, (1, 3), (1, 3), (1, 3)),
        "b": box(1, (0, 2), (0, 1), (0, 3)) + box(4, (3, 6), (2, 4), (0, 4)),
        "c": box(1, (1, 2), (1, 2), (1, 2)),
    }
    pred = {
        "a": box(1, (2, 4), (1, 3), (1, 3)),
        "b": box(4, (3, 6), (2, 4), (0, 4)),
        "c": box(1, (3, 4), (4, 5), (2, 3)) + box(4, (0, 1), (0, 1), (0, 1)),
    }
    found = []
    for case_id in "abc":
        mask = write_nifti(tmp_path / "labels" / f"{case_id}.nii.gz", true[case_id], affine)
        stored = flipped(pred[case_id], affine) if case_id == "c" else (pred[case_id], affine)
        write_nifti(tmp_path / "predictions" / f"{case_id}.nii.gz", *stored)
        group = None if case_id == "c" else f"patient {case_id}"
        found.append(Case(case_id, None, mask, group))
    folds = [{"train": ["a"], "val": ["c", "b"]}, {"train": ["b", "c"], "val": ["a"]}]
    return found, tmp_path / "predictions", folds


def test_scores_are_those_worked_out_by_hand(cohort):
    scores = score_predictions(*cohort, LABELS)
    # Voxels of 1 x 2 x 3 mm = 0.006 ml. In a, half of 8 voxels overlap; of either box, the layer
    # that the other one lacks lies 1 mm away, which is within the tolerance of 1 mm. Columns: Dice,
    # surface Dice, Hausdorff, HD95, ASSD, sensitivity, precision, true, predicted, difference.
    expected = [
        ("a", "patient a", 1, 1, "front", 0.5, 1, 1, 1, 0.5, 0.5, 0.5, 0.048, 0.048, 0),
        ("a", "patient a", 1, 4, "back", NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0, 0, 0),
        ("b", "patient b", 0, 1, "front", 0, 0, INF, INF, INF, 0, NAN, 0.036, 0, -0.036),
        ("b", "patient b", 0, 4, "back", 1, 1, 0, 0, 0, 1, 1, 0.144, 0.144, 0),
        ("c", None, 0, 1, "front", 0, 0, 7, 7, 7, 0, 0, 0.006, 0.006, 0),
        ("c", None, 0, 4, "back", 0, 0, INF, INF, INF, NAN, 0, 0, 0.006, 0.006),
    ]
    columns = ["case", "group", "fold", "label", "name", *METRICS]
    expected = pd.DataFrame(expected, columns=columns)
    pd.testing.assert_frame_equal(scores[columns], expected, check_dtype=False)
    what = {"mask", "mask_sha256", "prediction_sha256", "largest"}
    assert set(scores.columns) == {*columns, "tolerance_mm", *what}


def test_the_tolerance_of_the_surface_dice_is_passed_on_and_told(cohort):
    scores = score_predictions(*cohort, LABELS, tolerance_mm=0.9).set_index(["case", "label"])
    # All 8 voxels of a box are border; 4 of them coincide, the other 4 lie 1 mm away.
    assert scores.loc[("a", 1), "surface_dice"] == 0.5
    assert (scores["tolerance_mm"] == 0.9).all()


def test_a_tolerance_of_many_voxels_is_warned_of(cohort):
    with pytest.warns(UserWarning, match="a tolerance of 9 mm is more than 5 voxels: surface"):
        score_predictions(*cohort, LABELS, tolerance_mm=9)


def test_each_label_may_have_a_tolerance_of_its_own(cohort):
    scores = score_predictions(*cohort, LABELS, tolerance_mm={"front": 0.9, 4: 2})
    assert dict(zip(scores["label"], scores["tolerance_mm"], strict=True)) == {1: 0.9, 4: 2}
    assert scores.set_index(["case", "label"]).loc[("a", 1), "surface_dice"] == 0.5
    with pytest.raises(ValueError, match=r"one for each label; 4 \(back\) has none"):
        score_predictions(*cohort, LABELS, tolerance_mm={1: 0.9})
    other = score_predictions(*cohort, LABELS, tolerance_mm={1: 0.9, 4: 1})
    with pytest.raises(ValueError, match=r"tolerance_mm must be the same in both experiments"):
        compare(scores, other)


def test_regions_are_scored_as_one_label(cohort):
    scores = score_predictions(*cohort, LABELS, unions={5: ("whole", (1, 4))})
    rows = scores[scores["label"] == 5].set_index("case")
    assert set(rows["name"]) == {"whole"}
    # b: 6 and 24 voxels are true, the 24 are predicted; c: 1 is true, another and one predicted.
    assert rows["dice"].tolist() == [0.5, 2 * 24 / (30 + 24), 0]
    assert rows["volume_pred_ml"].tolist() == pytest.approx([0.048, 0.144, 0.012])
    assert len(summarise(scores)) == 3 * len(METRICS)


def test_what_nobody_drew_is_not_scored(cohort):
    found, predictions, folds = cohort
    scores = score_predictions(found, predictions, folds, {1: "front"}, ignore=4)
    row = scores.set_index("case").loc["b"]
    # The 24 voxels of label 4 count for nothing, whatever is predicted there.
    assert (row["volume_true_ml"], row["volume_pred_ml"]) == (pytest.approx(0.036), 0)
    for _, _, true, pred, _ in read_pairs(found, predictions, folds, ignore=1):
        assert (pred[true == 1] == 1).all()
    counts = count_confusion(found, predictions, folds, {1: "front"}, ignore=4)
    whole = count_confusion(found, predictions, folds, {1: "front"})
    assert whole.to_numpy().sum() - counts.to_numpy().sum() == 24


def test_where_undrawn_voxels_touch_a_label_nobody_knows_its_surface(tmp_path, write_nifti, affine):
    shape, found = (8, 6, 6), []
    for name, undrawn in {"touched": slice(4, 6), "apart": slice(5, 6), "whole": slice(0)}.items():
        true, pred = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
        true[1:3, 1:4, 1:4] = pred[1:4, 1:4, 1:4] = 1  # drawn a voxel too far along x
        true[undrawn] = 2
        mask = write_nifti(tmp_path / "labels" / f"{name}.nii.gz", true, affine)
        write_nifti(tmp_path / "predictions" / f"{name}.nii.gz", pred, affine)
        found.append(Case(name, None, mask))
    folds = [{"train": [], "val": [case.id for case in found]}]
    scores = score_predictions(found, tmp_path / "predictions", folds, {1: "front"}, ignore=2)
    scores = scores.set_index("case")
    assert scores["dice"].tolist() == [0.8] * 3
    assert (
        scores.loc["touched", ["surface_dice", "hausdorff_mm", "hd95_mm", "assd_mm"]].isna().all()
    )
    assert scores.loc["apart", "hausdorff_mm"] == scores.loc["whole", "hausdorff_mm"] == 1


def test_what_is_drawn_in_healthy_people_is_told(cohort):
    scores = score_predictions(*cohort, LABELS)
    assert describe_controls(scores, LABELS) == ""
    healthy = scores.assign(volume_true_ml=scores["volume_true_ml"].where(scores["case"] == "b", 0))
    said = "2 controls: in 2 something is drawn (0.06 ml): a, c."
    assert describe_controls(healthy, LABELS) == said
    region = healthy[healthy["label"] == 1].assign(label=9)  # which is drawn no second time
    assert describe_controls(pd.concat([healthy, region]), LABELS) == said
    quiet = healthy[healthy["case"] != "c"].assign(volume_pred_ml=0.0)
    assert describe_controls(quiet, LABELS) == "1 controls: in 0 something is drawn."


def test_experiments_are_compared_on_what_they_share_if_that_is_wanted(cohort, capsys):
    scores = score_predictions(*cohort, LABELS)
    fewer = scores[scores["case"] != "c"]
    with pytest.raises(ValueError, match="do not share 1 cases: c"):
        compare(fewer, scores)
    assert set(compare(fewer, scores, only_shared=True)["n"]) == {2}
    assert set(compare_with(fewer, scores)["n"]) == {2}
    assert "1 are in one of them alone" in capsys.readouterr().out
    with pytest.raises(ValueError, match="do not share 3 cases"):
        compare(scores.iloc[:0], scores, only_shared=True)


@pytest.fixture
def experiment(cohort, tmp_path):
    """The cohort as what two finished folds trained on and predicted."""
    found, predictions, folds = cohort
    for number, fold in enumerate(folds):
        names = [f"{case_id}.nii.gz" for case_id in fold["val"]]
        done = {"weights_sha256": "0" * 64, "minutes": 1, **fold}
        done["predictions_sha256"] = {name: sha256(predictions / name) for name in names}
        done["inputs"] = {
            case.id: {"scan": [fingerprint(case.mask)], "mask": fingerprint(case.mask)}
            for case in found
        }
        write_json(tmp_path / f"fold_{number}" / "done.json", done)
    return tmp_path


def test_a_prediction_that_is_not_the_fold_s_is_not_scored(cohort, experiment):
    predictions = cohort[1]
    score_predictions(*cohort, LABELS)
    shutil.copy(predictions / "b.nii.gz", predictions / "c.nii.gz")
    for score in (score_predictions, count_confusion):
        with pytest.raises(ValueError, match=r"1 predictions are not what .*: c \(fold 0\)\. "):
            score(*cohort, LABELS)


def test_scores_tell_what_was_scored_and_which_masks_were_corrected(
    cohort, experiment, write_nifti, affine, capsys
):
    found, predictions, _ = cohort
    first = score_predictions(*cohort, LABELS).set_index("case")
    assert set(first["mask"]) == {"as in training"}
    assert first.loc["a", "prediction_sha256"].unique() == [sha256(predictions / "a.nii.gz")]
    assert capsys.readouterr().out == ""
    moved = box(1, (1, 3), (1, 3), (0, 2))  # of the same volume
    write_nifti(found[0].mask, moved, affine)
    second = score_predictions(*cohort, LABELS).set_index("case")
    assert "1 masks were corrected since training, and are scored: a." in capsys.readouterr().out
    assert second["mask"].groupby("case").unique().map(list).to_dict() == {
        "a": ["corrected since"],
        "b": ["as in training"],
        "c": ["as in training"],
    }
    assert set(first.loc["a", "mask_sha256"]) != set(second.loc["a", "mask_sha256"])
    with pytest.raises(ValueError, match="The true masks changed in 1 cases: a"):
        compare(first.reset_index(), second.reset_index())


def test_masks_stored_in_other_bytes_are_compared_as_the_same(cohort, write_nifti, affine):
    found, *rest = cohort
    first = score_predictions(*cohort, LABELS)
    for case in found:
        array, stored = nifti.load_mask(case.mask)
        write_nifti(case.mask, *flipped(array.astype(np.int16), stored))
    second = score_predictions(found, *rest, LABELS)
    assert (compare(first, second)["difference"].dropna() == 0).all()
    assert set(first["mask"]) == {"not known"}  # predictions of no experiment


def test_scores_of_folds_that_were_trained_again_are_told_and_not_taken_for_theirs(
    cohort, experiment, capsys
):
    table = score_predictions(*cohort, LABELS)
    table.to_csv(experiment / "scores.csv", index=False)
    summarise(table).to_csv(experiment / "summary.csv", index=False)
    assert find_stale(experiment) == []
    assert len(load_summary(experiment)) == len(summarise(table))
    assert capsys.readouterr().out == ""
    path = experiment / "fold_1" / "done.json"
    done = read_json(path)
    write_json(path, done | {"predictions_sha256": {"a.nii.gz": "1" * 64}})
    assert find_stale(experiment) == ["a"]
    assert len(load_summary(experiment)) == 0
    assert "of other predictions of a: run 03_evaluate again" in capsys.readouterr().out
    load_scores(experiment / "scores.csv")
    assert "scores.csv: of other predictions of a than there are" in capsys.readouterr().out


def test_scores_that_excel_saved_are_read(cohort, experiment):
    table = score_predictions(*cohort, LABELS)
    summary = summarise(table)
    for name, one in (("scores", table), ("summary", summary)):
        saved = one.to_csv(index=False, sep=";", decimal=",").encode("utf-16")
        (experiment / f"{name}.csv").write_bytes(saved)
    assert find_stale(experiment) == []
    read = load_summary(experiment)
    assert read["mean"].tolist() == pytest.approx(summary["mean"].tolist(), nan_ok=True)
    assert list_means(read) == pytest.approx(list_means(summary))


def test_without_scores_there_is_an_empty_summary(tmp_path):
    assert len(load_summary(tmp_path)) == 0
    assert find_stale(tmp_path) == []


def test_pairs_are_read_in_order_and_in_the_orientation_of_the_mask(cohort):
    pairs = list(read_pairs(*cohort))
    assert [(case.id, fold) for case, fold, *_ in pairs] == [("a", 1), ("b", 0), ("c", 0)]
    _, _, true, pred, spacing = pairs[2]
    np.testing.assert_array_equal(true, box(1, (1, 2), (1, 2), (1, 2)))
    np.testing.assert_array_equal(
        pred, box(1, (3, 4), (4, 5), (2, 3)) + box(4, (0, 1), (0, 1), (0, 1))
    )
    np.testing.assert_allclose(spacing, [1, 2, 3])


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        # Of 3 x 120 voxels: front overlaps in 4 (of a), is missed in 4 + 6 + 1 and invented in
        # 4 + 0 + 1; back overlaps in 24 (of b), is never missed and invented in 1 (of c).
        (LABELS, [[315, 5, 1], [11, 4, 0], [0, 0, 24]]),
        ({4: "back", 1: "front"}, [[315, 1, 5], [0, 24, 0], [11, 0, 4]]),
        ({1: "front"}, [[315 + 1 + 24, 5], [11, 4]]),
    ],
)
def test_voxels_are_counted_by_true_and_predicted_label(labels, expected, cohort):
    names = ["background", *labels.values()]
    counts = count_confusion(*cohort, labels)
    assert counts.to_numpy().tolist() == expected
    assert counts.index.tolist() == counts.columns.tolist() == names
    assert (counts.index.name, counts.columns.name) == ("true", "predicted")


def test_a_label_taken_for_another_stands_in_the_row_of_the_true_one(cohort, write_nifti, affine):
    write_nifti(cohort[1] / "a.nii.gz", box(4, (2, 4), (1, 3), (1, 3)), affine)
    counts = count_confusion(*cohort, LABELS)
    # As above, but a's 4 overlapping voxels are back now, and so are its 4 invented ones.
    assert counts.to_numpy().tolist() == [[315, 1, 5], [11, 0, 4], [0, 0, 24]]


def test_a_case_that_no_fold_validates_is_left_out(cohort):
    found, predictions, _ = cohort
    (predictions / "b.nii.gz").unlink()
    scores = score_predictions(found, predictions, [{"train": ["b"], "val": ["a", "c"]}], LABELS)
    assert scores["case"].unique().tolist() == ["a", "c"]


def test_all_missing_predictions_are_listed(cohort):
    found, predictions, folds = cohort
    (predictions / "a.nii.gz").unlink()
    (predictions / "c.nii.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"predictions: no prediction for 2 cases: a, c\."):
        score_predictions(found, predictions, folds, LABELS)


def test_all_missing_cases_are_listed(cohort):
    found, predictions, folds = cohort
    without_mask = Case("a", found[0].image, None)
    with pytest.raises(FileNotFoundError, match=r"2 cases of the folds: a, b\."):
        score_predictions([without_mask, found[2]], predictions, folds, LABELS)


@pytest.mark.parametrize(
    ("shape", "shift_mm", "words"), [((5, 5, 4), 0, r"\(5, 5, 4\)"), (SHAPE, 3, "3 mm")]
)
def test_a_prediction_on_another_grid_is_refused_by_name(
    shape, shift_mm, words, cohort, write_nifti, affine
):
    found, predictions, folds = cohort
    moved = affine.copy()
    moved[2, 3] += shift_mm
    write_nifti(predictions / "b.nii.gz", np.ones(shape, np.uint8), moved)
    with pytest.raises(ValueError, match=rf"predictions/b\.nii\.gz.*{words}.*labels/b\.nii\.gz"):
        score_predictions(found, predictions, folds, LABELS)


def table_of(**columns):
    """Scores of one label and case per number; metrics that are not given are 1."""
    n = len(next(iter(columns.values())))
    table = {"case": [f"case {k}" for k in range(n)], "group": None, "label": 1, "name": "front"}
    table |= {"tolerance_mm": 1.0, **dict.fromkeys(METRICS, 1.0)}
    return pd.DataFrame({**table, **columns})


@pytest.fixture
def from_csv(tmp_path):
    """Return a function that writes scores to a file, as 03_evaluate does, and loads them."""

    def reload(scores):
        scores.to_csv(tmp_path / "scores.csv", index=False)
        return load_scores(tmp_path / "scores.csv")

    return reload


def test_scores_are_loaded_as_they_were_written(cohort, from_csv):
    scores = score_predictions(*cohort, LABELS, tolerance_mm=0.75)
    loaded = from_csv(scores)
    pair = (table.fillna({"group": "nobody"}) for table in (loaded, scores))
    pd.testing.assert_frame_equal(*pair, check_dtype=False, rtol=1e-14)
    for name in (*METRICS, "tolerance_mm"):
        assert loaded[name].dtype.kind == "f"


def test_ids_groups_and_names_of_digits_keep_their_zeros(from_csv):
    about = {"case": ["001", "010", "1"], "group": "01", "name": "02"}
    loaded = from_csv(table_of(dice=[0.0, 0.5, 0.7], **about))
    assert loaded["case"].tolist() == ["001", "010", "1"]
    assert loaded["group"].tolist() == ["01"] * 3
    assert loaded["name"].tolist() == ["02"] * 3
    assert (summarise(loaded)["failures"] == "001").all()


@pytest.mark.parametrize("text", ["NA", "None", "null", "N/A", "NaN", "<NA>"])
def test_words_that_pandas_takes_for_missing_stay_text(text, from_csv):
    loaded = from_csv(table_of(dice=[0.4, 0.8], name=text, case=[text, "b"], group=[text, None]))
    assert loaded["name"].tolist() == [text] * 2
    assert loaded["case"].tolist() == [text, "b"]
    assert loaded.loc[0, "group"] == text
    assert loaded["group"].isna().tolist() == [False, True]
    assert (summarise(loaded)["name"] == text).all()


def test_numbers_that_are_none_or_infinite_are_loaded_as_such(from_csv):
    values = [NAN, INF, -INF, 0.1 + 0.2, 1e-9]
    loaded = from_csv(table_of(volume_difference_ml=values, dice=[NAN] * 5))
    np.testing.assert_allclose(loaded["volume_difference_ml"], values, rtol=1e-14)
    np.testing.assert_array_equal(loaded["dice"], [NAN] * 5)


def test_scores_of_an_earlier_version_are_refused_with_what_they_lack(from_csv):
    columns = ["case", "group", "fold", "name", "label", "dice", "hausdorff_mm", "hd95_mm"]
    columns += ["volume_true_ml", "volume_pred_ml"]
    old = table_of(dice=[0.5, 0.6], fold=0)[columns]
    words = r"scores\.csv: \d columns are missing: surface_dice, assd_mm, sensitivity, precision, "
    words += r"volume_difference_ml.*\. Run 03_evaluate"
    with pytest.raises(ValueError, match=words):
        from_csv(old)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # 0.5, 0.7, 0.9: squares of the deviations 0.04 + 0 + 0.04 over 2 is 0.2 squared. Of 3
        # drawn with replacement, all are the lowest in 1 of 27, that is more than 2.5 %: the
        # interval runs from the lowest to the highest.
        ([0.9, NAN, 0.5, 0.7], (4, 0.7, 0.2, 0.5, 0.9, 0.7, 0.6, 0.8, 1, 0)),
        ([INF, 2.0, NAN, INF], (4, 2, NAN, NAN, NAN, 2, 2, 2, 1, 2)),
        # Quartiles of 4 numbers stand at 0.75 and 2.25; the deviations are -3, -2, 0, 5. Of the
        # 256 draws of 4, the sums 4 and 5 come in 1 + 4 (2.0 %) and 6 (1, 1, 2, 2) in 6 more; 36
        # and 31 come in 1 + 4 and 29 (9, 9, 9, 2) in 4 more (3.5 %): from 6 / 4 to 29 / 4.
        ([1, 2, 4, 9], (4, 4, (38 / 3) ** 0.5, 1.5, 7.25, 3, 1.75, 5.25, 0, 0)),
        ([NAN, NAN], (2, NAN, NAN, NAN, NAN, NAN, NAN, NAN, 2, 0)),
        ([INF], (1, NAN, NAN, NAN, NAN, NAN, NAN, NAN, 0, 1)),
    ],
)
@pytest.mark.parametrize("metric", ["dice", "hausdorff_mm"])
def test_a_summary_counts_what_has_no_number(metric, values, expected):
    scores = table_of(**{metric: values})
    before = scores.copy()
    summary = summarise(scores).set_index("metric")
    statistics = ["n", "mean", "sd", "ci_low", "ci_high", "median", "q1", "q3", "nan", "inf"]
    np.testing.assert_allclose(summary.loc[metric, statistics].astype(float), expected)
    others = summary.drop(metric)
    assert set(others.index) == set(METRICS) - {metric}
    assert (others[["mean", "median"]] == 1).all(axis=None)
    assert (others[["nan", "inf"]] == 0).all(axis=None)
    pd.testing.assert_frame_equal(scores, before)


@pytest.mark.parametrize("copies", [1, 10])
def test_many_scans_of_one_patient_do_not_narrow_the_interval(copies):
    patients = {"anna": 0.2, "ben": 0.5, "cleo": 0.9}
    scores = table_of(dice=[*patients.values()] * copies, group=[*patients] * copies)
    # Three patients: from the lowest to the highest, as above.
    interval = summarise(scores).loc[0, ["ci_low", "ci_high"]]
    np.testing.assert_allclose(interval.astype(float), [0.2, 0.9])


def test_the_interval_agrees_with_a_plain_bootstrap_of_patients_and_is_the_same_again():
    patients = [[0.3, 0.32, 0.35, 0.31, 0.3], [0.9], [0.8, 0.82], [0.7], [0.95, 0.9, 0.92], [0.5]]
    rng = np.random.default_rng(1)
    drawn = [rng.integers(len(patients), size=len(patients)) for _ in range(5000)]
    means = [np.concatenate([patients[k] for k in draw]).mean() for draw in drawn]
    group = np.repeat([f"patient {k}" for k in range(6)], [len(p) for p in patients])
    scores = table_of(dice=np.concatenate(patients), group=group)
    summary = summarise(scores)
    interval = summary.loc[0, ["ci_low", "ci_high"]].astype(float)
    # The percentiles of 5,000 differ by 0.005 from seed to seed. Drawn case by case, or with each
    # patient's mean as one number, the lower end is 0.08 or 0.11 higher.
    np.testing.assert_allclose(interval, np.percentile(means, [2.5, 97.5]), atol=0.015)
    pd.testing.assert_frame_equal(summarise(scores), summary)


def test_one_patient_has_no_interval_and_equal_values_one_of_no_width():
    one = summarise(table_of(dice=[0.4, 0.8], group="anna"))
    assert one[["ci_low", "ci_high"]].isna().all(axis=None)
    same = summarise(table_of(dice=[0.7] * 5, group=["anna", "anna", "ben", None, None]))
    np.testing.assert_allclose(same.loc[0, ["ci_low", "ci_high"]].astype(float), [0.7, 0.7])


def test_a_summary_keeps_the_labels_apart(cohort):
    summary = summarise(score_predictions(*cohort, LABELS)).set_index(["metric", "label"])
    assert len(summary) == 2 * len(METRICS)
    assert summary.loc["dice", "name"].to_dict() == LABELS
    columns = ["n", "mean", "nan", "inf"]
    # Dice of label 1: 0.5, 0 and 0; of label 4: NaN, 1 and 0. Distances: 1, inf, 7; NaN, 0, inf.
    expected = {
        ("dice", 1): (3, 1 / 6, 0, 0),
        ("dice", 4): (3, 0.5, 1, 0),
        ("hausdorff_mm", 1): (3, 4, 0, 1),
        ("hd95_mm", 4): (3, 0, 1, 1),
        ("volume_true_ml", 1): (3, 0.03, 0, 0),
    }
    for row, numbers in expected.items():
        np.testing.assert_allclose(summary.loc[row, columns].astype(float), numbers)
    # Missed in b, elsewhere in c; label 4 is invented in c, and in neither mask of a.
    for label, failures in ((1, "b; c"), (4, "c")):
        assert (summary.xs(label, level="label")["failures"] == failures).all()


@pytest.mark.parametrize("name", [None, NAN, "NA", ""])
def test_a_label_without_a_proper_name_is_summarised_and_compared_all_the_same(name):
    # Means of label 1: 0.3 and 0.5; of label 4, the unnamed one: 0.6 and 0.9.
    first, second = (
        pd.concat([table_of(dice=front), table_of(dice=back, label=4, name=name)])
        for front, back in (([0.2, 0.4], [0.5, 0.7]), ([0.4, 0.6], [0.8, 1.0]))
    )
    summary = summarise(first).query("metric == 'dice'").set_index("label")
    np.testing.assert_allclose(summary["mean"], [0.3, 0.6])
    table = compare(first, second).query("metric == 'dice'").set_index("label")
    np.testing.assert_allclose(table["difference"], [0.2, 0.3])
    for found in (summary, table):
        assert found.index.tolist() == [1, 4]
        assert found.loc[1, "name"] == "front"
        assert found.loc[4, "name"] == name or (pd.isna(name) and pd.isna(found.loc[4, "name"]))


def test_without_a_failure_none_is_named():
    assert (summarise(table_of(dice=[0.6, NAN]))["failures"] == "").all()


def test_a_comparison_takes_the_second_less_the_first_case_by_case():
    first = table_of(dice=[0.5, 0.6, 0.7], hd95_mm=[1.0, INF, 4.0], assd_mm=[INF, NAN, 1.0])
    second = table_of(dice=[0.7, 0.6, 0.8], hd95_mm=[3.0, 2.0, 2.0], assd_mm=[1.0, 1.0, INF])
    table = compare(first, second[::-1])
    assert table["metric"].tolist() == [m for m in METRICS if m != "volume_true_ml"]
    assert table[["label", "name", "n"]].drop_duplicates().to_numpy().tolist() == [[1, "front", 3]]
    columns = ["first", "second", "difference", "ci_low", "ci_high", "p", "left_out"]
    expected = {
        # Differences 0.2, 0, 0.1; three patients, so from the lowest to the highest. Of the two
        # that differ both are positive: p is 2 of 4.
        "dice": (0.6, 0.7, 0.1, 0, 0.2, 0.5, 0),
        # 1 to 3 and 4 to 2; the infinite pair counts in neither mean. The means of two drawn
        # are -2, 0, 0, 2; the two ranks tie.
        "hd95_mm": (2.5, 2.5, 0, -2, 2, 1, 1),
        "assd_mm": (NAN, NAN, NAN, NAN, NAN, NAN, 3),
        "precision": (1, 1, 0, 0, 0, 1, 0),
    }
    for metric, numbers in expected.items():
        row = table.set_index("metric").loc[metric, columns]
        np.testing.assert_allclose(row.astype(float), numbers, atol=1e-12, err_msg=metric)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # Of the 2^n signs, as extreme: all positive or all negative; or, with the smallest one
        # negative, a sum of negative (or positive) ranks of 0 or 1.
        ([0.01, 0.02, 0.03, 0.04, 0.05, 0.06], 2 / 64),
        ([-0.01, 0.02, 0.03, 0.04, 0.05], 4 / 32),
    ],
)
def test_the_p_value_is_that_of_patients_not_of_their_scans(differences, p):
    # Two scans a patient, 0.4 above and below the difference of the patient.
    second = 0.5 + np.array([[d - 0.4, d + 0.4] for d in differences]).ravel()
    group = np.repeat([f"patient {k}" for k in range(len(differences))], 2)
    first = table_of(dice=[0.5] * len(second), group=group)
    table = compare(first, table_of(dice=second, group=group))
    assert table.loc[0, "p"] == pytest.approx(p)
    assert table.loc[0, "difference"] == pytest.approx(np.mean(differences))


def test_the_interval_of_a_difference_is_that_of_patients():
    group = ["anna", "ben", "cleo"] * 10
    second = table_of(dice=[0.4, 0.6, 0.9] * 10, group=group)
    table = compare(table_of(dice=[0.5] * 30, group=group), second)
    interval = table.loc[0, ["ci_low", "ci_high"]].astype(float)
    np.testing.assert_allclose(interval, [-0.1, 0.4])  # lowest and highest patient, as above


@pytest.mark.parametrize("ml", [1.0, 1e-5, 6.4e-14])
def test_small_volumes_are_compared_as_large_ones(ml):
    # Five patients, all five larger: the two-sided p of the signed ranks is 2 / 2^5. Floating
    # point leaves 0.1 + 0.2 and 0.3 apart by their last digit; that is no difference.
    true = np.array([1.0, 2, 3, 4, 5]) * ml
    first = table_of(volume_true_ml=true, volume_pred_ml=true)
    larger = table_of(volume_true_ml=true, volume_pred_ml=true + np.arange(1, 6) * 0.01 * ml)
    same = table_of(volume_true_ml=true, volume_pred_ml=true * (0.1 + 0.2) / 0.3)
    for second, difference, p in ((larger, 0.03 * ml, 0.0625), (same, 0, 1)):
        row = compare(first, second).set_index("metric").loc["volume_pred_ml"]
        assert row["difference"] == pytest.approx(difference, rel=1e-9, abs=1e-12 * ml)
        assert row["p"] == pytest.approx(p)
    changed = table_of(volume_true_ml=1.01 * true, volume_pred_ml=true)
    with pytest.raises(ValueError, match="The true masks changed in 5 cases"):
        compare(first, changed)


def test_labels_are_compared_apart():
    first, second = (
        pd.concat([table_of(dice=dice), table_of(dice=dice[::-1], label=4, name="back")])
        for dice in ([0.2, 0.4, 0.6], [0.3, 0.4, 0.9])
    )
    table = compare(first, second).query("metric == 'dice'").set_index("name")
    # Label 1: 0.1, 0, 0.3 in the order of the cases; label 4 the other way round.
    np.testing.assert_allclose(table["difference"], [0.4 / 3] * 2)
    assert table["label"].to_dict() == {"front": 1, "back": 4}


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t[2:], "do not share 2 cases: case 0, case 1"),
        (lambda t: t.assign(label=[1, 4, 1, 1]), "do not share 1 cases: case 1"),
        (lambda t: t.assign(volume_true_ml=[1, 1, 1.01, 0]), "changed in 2 cases: case 2, case 3"),
    ],
)
def test_experiments_on_other_cases_labels_or_masks_are_refused_by_name(change, words, swapped):
    scores = table_of(dice=[0.5, 0.6, 0.7, 0.8])
    pair = [scores, change(scores)]
    with pytest.raises(ValueError, match=words):
        compare(*pair[:: -1 if swapped else 1])


@pytest.mark.parametrize("swapped", [False, True])
def test_experiments_scored_with_other_tolerances_are_refused(swapped):
    pair = [table_of(dice=[0.5, 0.6], tolerance_mm=mm) for mm in (1.0, 2.0)]
    words = r"tolerance_mm must be the same in both experiments.*\[1\.0, 2\.0\]"
    with pytest.raises(ValueError, match=words):
        compare(*pair[:: -1 if swapped else 1])
    compare(pair[1], pair[1])  # one tolerance, whichever it is


@pytest.mark.parametrize(
    "columns",
    [
        {"group": None},
        {"group": ["1", "1", "2", None]},
        {"group": ["anna", None, "ben", "ben"]},
        {"group": ["1", "1", "2", "3"], "case": ["10", "11", "12", "13"]},
        {"group": ["01", "1", "1", None], "case": ["001", "01", "1", "NA"]},
    ],
    ids=["no groups", "numbers and none", "names and none", "numbers as ids too", "zeros in front"],
)
def test_a_table_read_back_from_csv_gives_the_same(columns, from_csv):
    first = table_of(dice=[0.0, 0.5, 0.7, NAN], hd95_mm=[INF, 1.0, 2.0, 3.0], **columns)
    second = first.assign(dice=[0.2, 0.6, 0.5, 0.9])
    pd.testing.assert_frame_equal(summarise(from_csv(first)), summarise(first))
    expected = compare(first, second)
    for pair in ((from_csv(first), second), (from_csv(first), from_csv(second))):
        pd.testing.assert_frame_equal(compare(*pair), expected)


def test_cases_are_ranked_by_their_mean_dice_with_ties_in_order_and_nan_last():
    dice = {"x": (NAN, NAN), "a": (0.9, 0.5), "d": (0.6, 0.8), "b": (NAN, 0.8), "c": (0.0, 0.1)}
    rows = [{"case": case, "dice": d} for case, pair in dice.items() for d in pair]
    ranked = rank_cases(pd.DataFrame(rows))
    assert ranked.index.tolist() == ["b", "a", "d", "c", "x"]
    np.testing.assert_allclose(ranked, [0.8, 0.7, 0.7, 0.05, NAN])
