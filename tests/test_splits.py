import itertools
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import KFold

from unetseg._base import write_json
from unetseg.cases import Case
from unetseg.splits import (
    check_folds,
    count_labels,
    describe_rare_labels,
    find_leaks,
    make_folds,
    refuse_leaks,
    sample_scan,
    settle_folds,
)


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


RESULTS = Path(__file__).parent.parent / "results"


def test_one_file_for_the_only_channel_is_the_same_scan_as_a_plain_file(make_arrays):
    image, _ = make_arrays(seed=3)
    one, other = (sample_scan(array, np.eye(4)) for array in (image, image[..., None]))
    assert (one.digest, one.grid) == (other.digest, other.grid)
    both = np.stack([image, image], axis=-1)
    assert sample_scan(both, np.eye(4)).digest != one.digest


@pytest.mark.parametrize("run", ["hippocampus", "hippocampus_2d"])
def test_the_published_folds_are_made_again(run):
    folds = json.loads((RESULTS / run / "splits.json").read_text())
    ids = folds[0]["train"] + folds[0]["val"]
    assert make_folds(plain_cases(ids), labels_of=dict.fromkeys(ids, (1, 2))) == folds


@pytest.mark.parametrize("labels", [(1,), (1, 2, 300)])
def test_labels_that_every_case_has_change_no_fold(labels):
    cases = plain_cases([f"c{k}" for k in range(23)], lambda case_id: f"p{case_id[-1]}")
    assert make_folds(cases, labels_of={c.id: labels for c in cases}) == make_folds(cases)


def parts_with(label, folds, labels_of, part):
    return sum(any(label in labels_of[i] for i in fold[part]) for fold in folds)


@pytest.mark.parametrize("owners", [*itertools.combinations(range(10), 2)])
def test_a_label_of_two_patients_is_validated_twice_wherever_they_are(owners):
    labels_of = {f"c{k}": (1, 2) if k in owners else (1,) for k in range(10)}
    cases = plain_cases(labels_of)
    folds = make_folds(cases, labels_of=labels_of)
    assert parts_with(2, folds, labels_of, "val") == 2
    assert parts_with(2, folds, labels_of, "train") == 5
    assert sorted(i for fold in folds for i in fold["val"]) == sorted(labels_of)
    assert [len(fold["val"]) for fold in folds] == [2] * 5
    check_folds(folds, cases, labels_of)
    sentence = "Label 2 is in 2 cases, 2 validated, in 2 of 5 folds: its scores are of these alone."
    assert describe_rare_labels(folds, labels_of) == [sentence]
    plain = make_folds(cases)
    if parts_with(2, plain, labels_of, "val") == 2:
        assert folds == plain


@pytest.mark.parametrize("seed", range(5))
def test_several_rare_labels_are_validated_in_as_many_folds_as_can_be(seed):
    # 12 patients and 3 folds: of 4 in each, every label with 3 owners or more can be in all.
    rng = np.random.default_rng(seed)
    labels_of = {f"p{k}_{scan}": {1} for k in range(12) for scan in "ab"}
    owners = {2: rng.choice(12, 3, False), 3: rng.choice(12, 4, False), 4: rng.choice(12, 2, False)}
    for label, patients in owners.items():
        for k in patients:  # some have it in one scan alone
            labels_of[f"p{k}_{rng.choice(['a', 'b'])}"].add(label)
    cases = plain_cases(labels_of, lambda case_id: case_id.split("_")[0])
    folds = make_folds(cases, 3, seed, labels_of=labels_of)
    counted = count_labels(folds, labels_of).set_index("label")
    assert counted["validation parts"].tolist() == [3, 3, 3, 2]
    assert counted["training parts"].tolist() == [3] * 4
    assert counted["cases"].tolist() == counted["validated cases"].tolist() == [24, 3, 4, 2]
    for fold in folds:
        patients = [{i.split("_")[0] for i in fold[part]} for part in ("train", "val")]
        assert not patients[0] & patients[1]
        assert len(patients[1]) == 4


def test_the_spread_is_the_best_there_is():
    # All ways to share out 6 patients in 3 folds of 2 are tried.
    rng = np.random.default_rng(0)
    for _ in range(20):
        has = rng.random((6, 4)) < 0.4
        has[:2] |= has.sum(axis=0) < 2  # each label has two owners or more
        labels_of = {f"c{k}": tuple(np.flatnonzero(row)) for k, row in enumerate(has)}
        folds = make_folds(plain_cases(labels_of), 3, labels_of=labels_of)
        found = [parts_with(label, folds, labels_of, "val") for label in range(4)]
        ways = {tuple(way) for way in itertools.permutations([0, 0, 1, 1, 2, 2])}
        possible = [
            sum(has[np.array(way) == fold].any(axis=0) for fold in range(3)) for way in ways
        ]
        assert min(found) >= 2 or max(min(parts) for parts in possible) < 2
        assert sum(found) == max(sum(parts) for parts in possible if min(parts) >= min(found))


def test_who_alone_has_a_label_is_always_trained_on_and_it_is_said():
    labels_of = {f"c{k}": (1,) for k in range(8)} | {"c3": (1, 5), "c6": (1, 5), "c7": (1, 9)}
    cases = plain_cases(labels_of, {"c3": "eve", "c6": "eve"}.get)
    folds = make_folds(cases, 5, labels_of=labels_of)
    for fold in folds:
        assert {"c3", "c6", "c7"} <= set(fold["train"])
        assert sorted(fold["train"] + fold["val"]) == sorted(labels_of)
    validated = sorted(i for fold in folds for i in fold["val"])
    assert validated == ["c0", "c1", "c2", "c4", "c5"]
    check_folds(folds, cases, labels_of)
    assert describe_rare_labels(folds, labels_of) == [
        "Label 5 is in 2 cases (c3, c6), always trained on: no case that has it is scored.",
        "Label 9 is in 1 case (c7), always trained on: no case that has it is scored.",
    ]
    counted = count_labels(folds, labels_of)
    assert counted.to_numpy().tolist() == [[1, 8, 5, 5, 5], [5, 2, 0, 5, 0], [9, 1, 0, 5, 0]]


def test_too_few_patients_beside_those_who_alone_have_a_label_are_refused():
    labels_of = {"a": (1, 2), "b": (1, 3), "c": (1,), "d": (1,)}
    cases = plain_cases(labels_of)
    words = "number of patients, 2, not counted who .*: a with label 2; b with label 3.*n_splits=3"
    with pytest.raises(ValueError, match=words):
        make_folds(cases, 3, labels_of=labels_of)
    assert [fold["val"] for fold in make_folds(cases, 2, labels_of=labels_of)] in (
        [["c"], ["d"]],
        [["d"], ["c"]],
    )
    with pytest.raises(ValueError, match=r"Two patients at least.*Received: 1, not .*Add cases of"):
        make_folds(cases[:3], 2, labels_of=labels_of)


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
    assert describe_rare_labels(FOLDS, LABELS) == []


def test_a_label_that_is_not_validated_everywhere_is_said_and_not_refused():
    labels = LABELS | {"b": (1,)}
    folds = [{"train": ["c", "d"], "val": ["a", "b"]}]
    check_folds(folds, four_cases(), labels)
    assert describe_rare_labels(folds, labels) == [
        "Label 4 is in 1 case (c), always trained on: no case that has it is scored."
    ]


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
        (
            FOLDS,
            {},
            {"c": (1,)},
            r"Fold 0 .*labels are in no case of its train part: 4 \(it is in b\). Move.*or remove",
        ),
        ([{"train": ["c", "d"], "val": []}], {}, {}, "1 parts have no case: val"),
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
        assert "For those remove it before a fold is trained" in said
    write_json(tmp_path / "start.json", {"from": "first"})  # of which every model saw other cases
    settle_folds(path, cases, 2, 1)
    said = capsys.readouterr().out
    assert "remove" not in said
    assert "in the folds of START_FROM" in said


def test_a_patient_of_the_number_0_is_one_too():
    cases = [Case(str(k), "scan", "mask", k // 2) for k in range(4)]
    for fold in make_folds(cases, 2):
        assert sorted(fold["val"]) in (["0", "1"], ["2", "3"])
