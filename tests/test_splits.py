import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold

from unetseg.cases import Case
from unetseg.splits import check_folds, find_leaks, make_folds, refuse_leaks, settle_folds
from unetseg.workspace import write_json


def plain_cases(ids, group_of=lambda case_id: None):
    return [Case(case_id, None, group=group_of(case_id)) for case_id in ids]


@pytest.mark.parametrize("n", [5, 23, 260])
def test_without_groups_the_folds_are_nnunets(n):
    ids = [f"hippocampus_{k:03d}" for k in np.random.default_rng(0).permutation(n)]
    folds = make_folds(plain_cases(ids))
    ordered = np.sort(ids)
    split = KFold(n_splits=5, shuffle=True, random_state=12345).split(ordered)
    for fold, (train, val) in zip(folds, split, strict=True):
        assert fold == {"train": ordered[train].tolist(), "val": ordered[val].tolist()}


@pytest.mark.parametrize("n_splits", [2, 5])
def test_scans_of_a_patient_never_part_and_every_case_is_validated_once(n_splits):
    ids = [f"p{k // 3}_scan{k % 3}" for k in range(20)]
    cases = plain_cases(ids, lambda case_id: case_id.split("_")[0])
    folds = make_folds(cases, n_splits)
    assert len(folds) == n_splits
    assert sorted(i for fold in folds for i in fold["val"]) == sorted(ids)
    for fold in folds:
        assert sorted(fold["train"] + fold["val"]) == sorted(ids)
        patients = [{i.split("_")[0] for i in fold[part]} for part in ("train", "val")]
        assert not patients[0] & patients[1]


def test_the_order_of_the_cases_makes_no_difference():
    cases = plain_cases([f"c{k}" for k in range(12)], lambda case_id: case_id[-1])
    assert make_folds(cases[::-1], 3) == make_folds(cases, 3)


def test_another_seed_gives_other_folds():
    cases = plain_cases([f"c{k}" for k in range(12)])
    assert make_folds(cases, 3, seed=1) != make_folds(cases, 3)


@pytest.mark.parametrize("n_splits", [1, 5])
def test_more_folds_than_patients_are_refused(n_splits):
    cases = plain_cases([f"p{k // 2}_{k % 2}" for k in range(8)], lambda case_id: case_id[:2])
    with pytest.raises(ValueError, match=f"number of patients, 4.*n_splits={n_splits}"):
        make_folds(cases, n_splits)


FOLDS = [{"train": ["c", "d"], "val": ["a", "b"]}, {"train": ["a", "b"], "val": ["c", "d"]}]
LABELS = {"a": (1,), "b": (4,), "c": (1, 4), "d": ()}


def four_cases(**groups):
    return plain_cases("abcd", groups.get)


def test_sound_folds_pass():
    check_folds(FOLDS, four_cases(a="x", b="x"), LABELS)


@pytest.mark.parametrize(
    ("folds", "groups", "labels", "message"),
    [
        (
            [{"train": ["c", "z"], "val": ["a", "b"]}],
            {},
            {},
            "1 cases are not in the data: z",
        ),
        (
            [{"train": ["a", "c"], "val": ["a", "b"]}],
            {},
            {},
            "Fold 0 .*cases are in both parts: a",
        ),
        (FOLDS, {}, {"c": (1,)}, "Fold 0 .*labels are in no case of its train part: 4"),
        (FOLDS, {}, {"b": ()}, "Fold 0 .*labels are in no case of its val part: 4"),
        (
            [{"train": ["c", "d"], "val": []}],
            {},
            {},
            "are in no case of its val part: 1, 4",
        ),
        (
            [FOLDS[0], {"train": ["d", "b"], "val": ["c", "a"]}],
            {},
            {"d": (1, 4)},
            "Fold 1 .*cases are validated again: a",
        ),
    ],
)
def test_folds_whose_score_would_mean_nothing_are_refused(folds, groups, labels, message):
    with pytest.raises(ValueError, match=message):
        check_folds(folds, four_cases(**groups), LABELS | labels)


LEAKS = ["kind", "case", "other", "fold", "detail"]
SMALL, LARGE = (8, 10, 6), (40, 40, 40)  # 480 and 64,000 voxels: all of them, or a sample


def noise(seed, shape=SMALL):
    return np.random.default_rng(seed).integers(-300, 300, shape).astype(np.int16)


def correlated(scan, correlation):
    """A scan of which the correlation with the given one is exactly this, by Gram-Schmidt."""
    one = scan - scan.mean()
    other = np.random.default_rng(99).normal(size=scan.shape)
    other -= other.mean()
    other -= one * (one * other).sum() / (one**2).sum()
    other *= np.linalg.norm(one) / np.linalg.norm(other)
    return (correlation * one + (1 - correlation**2) ** 0.5 * other).astype(np.float32)


def found_in(leaks):
    assert leaks.columns.tolist() == LEAKS
    fold = leaks["fold"].astype(object).where(leaks["fold"].notna(), None)
    return list(zip(leaks["kind"], leaks["case"], leaks["other"], fold, strict=True))


def test_one_scan_under_several_ids_is_found_however_it_is_stored(
    write_case, write_nifti, tmp_path
):
    scan = noise(0)
    found = [
        write_case(tmp_path, "a", scan),
        write_case(tmp_path, "b", scan.astype(np.float32), codes="PSL"),
        write_case(tmp_path, "c", scan.astype(np.int32), codes="ILA", group="anna"),
        Case("d", write_nifti(tmp_path / "d.nii", scan, np.eye(4)), None, "ben"),
        write_case(tmp_path, "another", noise(1)),
    ]
    pairs = [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    assert found_in(find_leaks(found)) == [("identical scan", *pair, None) for pair in pairs]


# What is done to the scan, and its correlation with itself after that.
CHANGES = {
    "linear": (lambda scan: (2.5 * scan + 3000).astype(np.float32), 1),
    "inverted": (lambda scan: 300 - scan, -1),
    "one voxel": (lambda scan: np.where(np.arange(scan.size).reshape(scan.shape), scan, 299), 1),
    "noise": (lambda scan: correlated(scan, 0.991), 0.991),
    "inverted with noise": (lambda scan: correlated(scan, -0.991), -0.991),
}


@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("change", CHANGES)
def test_a_near_duplicate_is_found(change, shape, write_case, tmp_path):
    scan = noise(0, shape)
    altered, expected = CHANGES[change]
    found = [
        write_case(tmp_path, "a", scan),
        write_case(tmp_path, "b", altered(scan), codes="PSL"),
    ]
    leaks = find_leaks(found)
    assert found_in(leaks) == [("near-duplicate scan", "a", "b", None)]
    # The standard error over the sample is (1 - 0.991^2) / sqrt(32768) = 0.0001.
    atol = 6e-5 if shape == SMALL else 4e-4
    shown = float(leaks.loc[0, "detail"].removeprefix("correlation "))
    assert shown == pytest.approx(expected, abs=atol if abs(expected) < 1 else 1e-3)


@pytest.mark.parametrize("shape", [SMALL, LARGE])
def test_scans_that_differ_or_lie_on_other_grids_are_no_leak(shape, write_case, tmp_path):
    scan = noise(0, shape)
    found = [
        write_case(tmp_path, "a", scan),
        write_case(tmp_path, "noise", noise(1, shape)),
        write_case(tmp_path, "below", correlated(scan, 0.989)),
        write_case(tmp_path, "below, inverted", correlated(scan, -0.989)),
        write_case(tmp_path, "spacing", 2 * scan, spacing_mm=(1, 2, 2.9)),
        write_case(tmp_path, "cropped", scan[:-1]),
        write_case(tmp_path, "zero", 0 * scan),
        write_case(tmp_path, "constant", 0 * scan + np.float32(0.1)),
    ]
    for folds in (None, [{"train": ["a"], "val": [case.id for case in found[1:]]}]):
        assert found_in(find_leaks(found, folds)) == []


def test_grids_of_small_voxels_are_told_apart_too(write_case, tmp_path):
    scan = noise(0)
    found = [
        write_case(tmp_path, "a", scan, spacing_mm=(0.0004, 0.0004, 0.0004)),
        write_case(tmp_path, "copy", 2 * scan, spacing_mm=(0.0004, 0.0004, 0.0004)),
        write_case(tmp_path, "coarser", 3 * scan, spacing_mm=(0.0004, 0.0004, 0.00045)),
    ]
    assert found_in(find_leaks(found)) == [("near-duplicate scan", "a", "copy", None)]


def test_all_channels_together_make_a_scan(write_case, tmp_path):
    one, two = noise(0), noise(1)
    found = [
        write_case(tmp_path, "a", [one, two]),
        write_case(tmp_path, "in one file", np.stack([one, two], -1), codes="PSL"),
        write_case(tmp_path, "one of two", [one, noise(2)]),
    ]
    assert found_in(find_leaks(found)) == [("identical scan", "a", "in one file", None)]


def test_channels_of_unlike_intensities_neither_make_nor_hide_a_near_duplicate(
    write_case, tmp_path
):
    found = [
        write_case(tmp_path, "a", [noise(0), noise(1) + 9000]),
        write_case(tmp_path, "another", [noise(2), noise(3) + 9000]),
        write_case(tmp_path, "b", [noise(0) + 5000, noise(1) // 2]),
    ]
    assert found_in(find_leaks(found)) == [("near-duplicate scan", "a", "b", None)]


@pytest.fixture
def twins(write_case, tmp_path):
    """Cases a and b of one scan, c and d of one patient, e and f both, and g apart from all."""
    about = {"a": 0, "b": 0, "c": 1, "d": 2, "e": 3, "f": 3, "g": 4}
    patient = {"c": "cleo", "d": "cleo", "e": "eve", "f": "eve"}
    return [write_case(tmp_path, i, noise(k), group=patient.get(i)) for i, k in about.items()]


def test_what_folds_part_is_found_in_the_first_fold_that_does(twins):
    folds = [
        {"train": ["d", "e", "f", "g"], "val": ["a", "b", "c"]},
        {"train": ["a", "c", "d", "g"], "val": ["b", "e", "f"]},
        {"train": ["a", "b", "c", "e"], "val": ["d", "f", "g"]},
        {"train": ["a", "c", "d", "e"], "val": ["b", "f", "g"]},
    ]
    assert set(found_in(find_leaks(twins, folds))) == {
        ("one patient", "c", "d", 0),
        ("identical scan", "b", "a", 1),
        ("one patient", "d", "c", 2),
        ("one patient", "f", "e", 2),
        ("identical scan", "f", "e", 2),
    }


def test_what_stays_together_is_no_leak(twins):
    folds = [
        {"train": ["e", "f", "g"], "val": ["a", "b", "c", "d"]},
        {"train": ["a", "b", "c", "d"], "val": ["e", "f", "g"]},
    ]
    leaks = find_leaks(twins, folds)
    assert found_in(leaks) == []
    refuse_leaks(leaks)
    # Without folds only those that nothing keeps together.
    assert found_in(find_leaks(twins)) == [("identical scan", "a", "b", None)]


def test_a_patient_is_named_once_a_fold(twins):
    folds = [{"train": ["a", "e"], "val": ["c", "d", "f"]}, {"train": ["c", "d"], "val": ["e"]}]
    more = [*twins, Case("g2", twins[-1].image, None, "cleo")]
    folds[1]["val"].append("g2")
    leaks = find_leaks(more, folds)
    found = [row for row in found_in(leaks) if row[0] == "one patient"]
    assert found == [("one patient", "f", "e", 0), ("one patient", "g2", "c", 1)]
    assert leaks.loc[0, "detail"] == "patient eve"


PROBLEM = "of these cases one would be validated and the other trained on"


def test_an_error_lists_twenty_leaks_with_their_kind_and_says_what_to_do():
    rows = [("identical scan", f"a{k}", f"b{k}", 0, "the same voxel values") for k in range(22)]
    for count in (1, 20, 22):
        with pytest.raises(ValueError, match=f"^{count} leaks: {PROBLEM}:\n") as error:
            refuse_leaks(pd.DataFrame(rows[:count], columns=LEAKS))
        message = str(error.value)
        for k in range(22):
            line = f"a{k} and b{k}: identical scan, the same voxel values\n"
            assert (line in message) == (k < min(count, 20))
        assert ("and 2 more" in message) == (count == 22)
        for word in ("Remove", "GROUPS", "splits.json", "allow_leaks=True"):
            assert word in message


def test_folds_that_are_written_down_are_taken_and_what_they_override_is_said(tmp_path, capsys):
    cases, path = plain_cases("abcdef"), tmp_path / "splits.json"
    made = settle_folds(path, cases, 3, 1)
    assert made == make_folds(cases, 3, 1)
    assert not path.exists()
    write_json(path, made)
    assert settle_folds(path, cases, 3, 1) == made
    assert capsys.readouterr().out == ""
    pairs = plain_cases("abcdef", {"a": "p", "b": "p"}.get)
    for settings in ((cases, 2, 1), (cases, 3, 2), (cases, 99, 1), (pairs, 3, 1)):
        assert settle_folds(path, *settings) == made
        said = capsys.readouterr().out
        assert f"its 3 folds are used; FOLDS={settings[1]}, SEED={settings[2]} and GROUPS" in said
