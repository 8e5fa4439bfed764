"""Going on from an earlier run: which of its cases, folds and models."""

import json
from dataclasses import replace

import pytest
from training_helpers import PATCH, TINY, arrays

from unetseg import earlier
from unetseg.nifti import load_image
from unetseg.preprocessing import Preprocessor
from unetseg.run.fingerprints import fingerprint
from unetseg.splits import recall_leaks, sample_scan
from unetseg.training import cross_validate


def sample(cases):
    return {case.id: sample_scan(*load_image(case.image)) for case in cases}


def forget(results, *, files):
    """As an earlier version left it: without the digests of voxels, perhaps not those of files."""
    table = (results / "cases.csv").read_text().splitlines()
    (results / "cases.csv").write_text("\n".join(line.rpartition(",")[0] for line in table))
    for path in results.glob("fold_*/done.json"):
        done = json.loads(path.read_text())
        if files:
            del done["inputs"]
        path.write_text(json.dumps(done))


def rename(cases, prefix="new_"):
    return [replace(case, id=prefix + case.id) for case in cases]


@pytest.fixture
def grown(cases, write_case, tmp_path):
    """The cases of `run` under other names, and three more; two of them of one patient."""
    more = [write_case(tmp_path, f"x{k}", *arrays(90 + k)) for k in range(3)]
    more = [replace(case, group="p" if k else None) for k, case in enumerate(more)]
    return [*rename(cases), *more]


def test_cases_are_known_by_their_voxels_under_any_name(run, grown):
    known = earlier.match_cases(run.results, grown, sample(grown))
    assert known == {f"new_c{k}": f"c{k}" for k in range(4)}


def test_cases_of_a_run_that_noted_only_files_are_known_by_them(copy, grown):
    forget(copy, files=False)
    assert len(earlier.match_cases(copy, grown, sample(grown))) == 4


def test_old_cases_stay_in_their_folds_and_patients_stay_together(run, grown):
    known = earlier.match_cases(run.results, grown, sample(grown))
    folds = earlier.extend_folds(run.results, grown, known)
    for before, now in zip(run.folds, folds, strict=True):
        assert {f"new_{i}" for i in before["val"]} <= {*now["val"]}
        assert sorted([*now["train"], *now["val"]]) == sorted(case.id for case in grown)
        assert len({"x1", "x2"} & {*now["val"]}) in (0, 2)
    assert sorted(len(fold["val"]) for fold in folds) == [3, 4]
    assert earlier.extend_folds(run.results, grown, known) == folds


def test_without_a_known_case_there_are_no_folds_to_extend(run, grown):
    assert earlier.extend_folds(run.results, grown, {}) is None


def test_a_fold_starts_from_a_model_that_saw_none_of_what_it_validates(run, cases):
    same, leaks = earlier.choose_starts(run.results, run.folds, cases, sample(cases))
    assert {number: start.key for number, start in same.items()} == {0: 0, 1: 1, "final": 0}
    assert leaks.empty
    turned = run.folds[::-1]
    starts, leaks = earlier.choose_starts(run.results, turned, cases, sample(cases))
    assert [starts[number].key for number in (0, 1)] == [1, 0]
    assert leaks.empty
    mixed = [{"train": ["c0"], "val": ["c1", "c2", "c3"]}]
    starts, leaks = earlier.choose_starts(run.results, mixed, cases, sample(cases))
    assert set(leaks["case"]) == {*run.folds[0]["train"]} & {"c1", "c2", "c3"}
    assert set(leaks["kind"]) == {"trained on before"}


def test_what_an_ancestor_saw_is_known_and_so_are_its_patients(copy, cases, grown):
    done = json.loads((copy / "fold_0/done.json").read_text())
    samples = sample(grown)
    done["start"] = {"digests": [samples["x0"].digest], "patients": ["p"]}
    (copy / "fold_0/done.json").write_text(json.dumps(done))
    (copy / "fold_1/done.json").unlink()
    folds = [{"train": ["new_c0"], "val": ["x0", "x1"]}]
    _, leaks = earlier.choose_starts(copy, folds, grown, samples)
    assert leaks[["kind", "case"]].to_numpy().tolist() == [
        ["trained on before", "x0"],
        ["one patient", "x1"],
    ]


@pytest.mark.parametrize("files", [False, True])
def test_what_a_run_of_an_earlier_version_was_trained_on_leaks_as_well(copy, run, cases, files):
    forget(copy, files=files)
    (copy / "fold_1/done.json").unlink()
    now = cases if files else rename(cases)
    new_id = {case.id.removeprefix("new_"): case.id for case in now}
    seen, free = ([new_id[i] for i in run.folds[0][part]] for part in ("train", "val"))
    _, leaks = earlier.choose_starts(copy, [{"train": [], "val": seen}], now, sample(now))
    assert set(leaks["case"]) == {*seen}
    assert set(leaks["kind"]) == {"trained on before"}
    _, leaks = earlier.choose_starts(copy, [{"train": [], "val": free}], now, sample(now))
    assert leaks.empty


def test_a_case_that_has_more_channels_now_is_known_by_one_of_them(
    run, cases, write_case, tmp_path
):
    now = []
    for k, case in enumerate(cases):
        other = write_case(tmp_path, f"more{k}", *arrays(70 + k))
        now.append(replace(case, id=f"new_c{k}", image=(case.image, other.image)))
    samples = {case.id: sample_scan(*load_image(case.files)) for case in now}
    assert earlier.match_cases(run.results, now, samples) == {
        f"new_c{k}": f"c{k}" for k in range(4)
    }
    trained = [f"new_{i}" for i in run.folds[0]["train"]]
    start = earlier.list_starts(run.results)[0]
    assert sorted(earlier.find_seen(start, now, samples)) == trained


def test_a_file_that_several_cases_share_tells_none_of_them(copy, cases, write_case, tmp_path):
    blank = write_case(tmp_path, "blank", *arrays(80)).image
    for path in copy.glob("fold_*/done.json"):
        done = json.loads(path.read_text())
        for files in done["inputs"].values():
            files["scan"].append(fingerprint(blank))
        path.write_text(json.dumps(done))
    new = write_case(tmp_path, "new", *arrays(81))
    new = replace(new, image=(new.image, blank))
    samples = {"new": sample_scan(*load_image(new.files))}
    assert earlier.match_cases(copy, [new], samples) == {}
    assert earlier.find_seen(earlier.list_starts(copy)[0], [new], samples) == {}


def test_names_that_are_known_without_their_voxels_and_unfinished_folds_are_said(copy, cases):
    known = {case.id: case.id for case in cases[1:]}
    assert earlier.describe_doubts(copy, cases, known | {"c0": "c0"}) == ""
    (copy / "fold_1/done.json").unlink()
    said = earlier.describe_doubts(copy, cases, known)
    assert "It has cases named c0 too, with other voxels" in said
    assert "1 of its folds are not finished" in said


def test_new_patients_who_alone_have_a_label_are_not_all_validated_in_one_fold(run, grown):
    known = earlier.match_cases(run.results, grown, sample(grown))
    for rare in (["x0", "x1"], ["x0", "x2"], ["x1", "x2"]):
        labels_of = {case.id: (1, 9) if case.id in rare else (1, 4) for case in grown}
        folds = earlier.extend_folds(run.results, grown, known, labels_of=labels_of)
        for parts in folds:
            assert any(9 in labels_of[i] for i in parts["train"])


@pytest.mark.parametrize("changed", [False, True])
def test_what_a_fold_started_from_stays_among_its_leaks(copy, run, cases, changed):
    rows = ["one patient,c1,c1,0,by old", "trained on before,c2,c2,1,by old"]
    text = "\n".join(["kind,case,other,fold,detail", *rows, "one patient,c0,c3,0,patient p"])
    (copy / "leaks.csv").write_text(text)
    folds = run.folds[::-1] if changed else run.folds
    leaks = recall_leaks(copy, cases, folds)
    assert sorted(leaks["case"]) == ["c1", "c2"]  # of patients within the folds nothing is left


def test_who_alone_has_a_label_is_not_validated_and_no_fold_is_empty(run, grown):
    known = earlier.match_cases(run.results, grown, sample(grown))
    labels_of = {case.id: (1, 4) if case.id != "x0" else (1, 9) for case in grown}
    folds = earlier.extend_folds(run.results, grown, known, labels_of=labels_of)
    assert all("x0" in fold["train"] for fold in folds)
    one = {"new_c0": known["new_c0"]}
    assert earlier.extend_folds(run.results, grown[:1], one) is None


def test_what_a_start_was_trained_on_leaks_like_anything_else(run, cases, tmp_path, trained):
    mixed = [{"train": ["c0"], "val": ["c1", "c2", "c3"]}]
    (tmp_path / "splits.json").write_text(json.dumps(mixed))
    with pytest.raises(ValueError, match=r"leaks:.*\n.*trained on before, by results, from which"):
        cross_validate(cases, tmp_path, start_from=run.results, **TINY)
    assert trained == []


def test_settings_of_the_grid_are_taken_over_unless_others_are_wanted(run):
    wanted = Preprocessor(labels={1: "new"}, spacing_mm=(2, 2, 2))
    adopted = earlier.adopt_settings(wanted, run.results)
    assert (adopted.patch, adopted.spacing_mm) == (PATCH, (2, 2, 2))
    assert adopted.labels == {1: "new"}
    assert adopted.channels is None
    assert adopted.strength is None
