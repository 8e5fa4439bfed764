import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from files import content_of, fill
from matplotlib.figure import Figure

from unetseg import nifti, sharing, workspace
from unetseg._base import sha256, write_json
from unetseg.cases import find_cases
from unetseg.preprocessing import Preprocessor
from unetseg.run import drive
from unetseg.run.layout import Run
from unetseg.survey import look_through
from unetseg.workspace import Workspace


def test_colab_is_told_by_its_environment_or_its_module(local, monkeypatch):
    assert not workspace.in_colab()
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert workspace.in_colab()
    monkeypatch.delitem(sys.modules, "google.colab")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert workspace.in_colab()


def test_the_project_folder_holds_the_package():
    assert (workspace.project_dir() / "unetseg" / "workspace.py").samefile(workspace.__file__)


def test_on_a_laptop_folders_are_used_where_they_are(local, tmp_path):
    scans = fill(tmp_path / "elsewhere", images__a_nii=b"a")
    fill(local / "data" / "mine", images__a_nii=b"a")
    results = local / "results" / "first-try_2.0"
    assert workspace.prepare(scans, "first-try_2.0") == Workspace(scans, results)
    assert workspace.prepare("data/mine", "first-try_2.0").data == local / "data" / "mine"
    sample = Workspace(local / "data/sample", local / "results/x", simulated=True)
    assert workspace.prepare("sample", "x") == sample
    assert workspace.prepare(scans, "x", results=tmp_path / "out").results == tmp_path / "out/x"
    assert set(content_of(tmp_path)) == {
        "elsewhere/images/a.nii",
        "project/data/mine/images/a.nii",
    }


def test_a_home_folder_is_understood(local, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "scans").mkdir()
    assert workspace.prepare("~/scans", "x").data == tmp_path / "scans"


@pytest.mark.parametrize("machine", ["local", "colab"])
def test_a_missing_data_folder_is_named_with_what_to_do(machine, request, tmp_path):
    request.getfixturevalue(machine)
    with pytest.raises(FileNotFoundError, match=r"data/typo: no such folder.*'sample'") as error:
        workspace.prepare("data/typo", "x")
    assert str(tmp_path) in str(error.value)
    assert not (tmp_path / "content" / "data").exists()


def test_a_missing_data_folder_is_no_error_where_it_is_not_needed(local):
    place = workspace.prepare("data/typo", "x", need_data=False)
    assert place == Workspace(local / "data/typo", local / "results/x")
    assert not local.exists()


def test_in_colab_results_are_fetched_also_without_the_data(colab):
    there, disk = colab
    fill(there / "results" / "x", splits_json=b"[]")
    place = workspace.prepare("data/typo", "x", need_data=False)
    assert content_of(place.results) == {"splits.json": b"[]"}
    assert disk in place.data.parents
    assert not place.data.exists()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/tmp/x", "a\\b", "a b", "~", "x\n", "a:b"]
)
def test_an_experiment_must_be_a_plain_name(name, local):
    with pytest.raises(ValueError, match="EXPERIMENT must be a plain name"):
        workspace.prepare("sample", name)


def test_in_colab_scans_are_copied_and_results_fetched(colab):
    there, disk = colab
    fill(there / "data" / "scans", images__a_nii=b"scan", labels__a_nii=b"mask")
    fill(there / "results" / "x", fold_0__done_json=b"{}", splits_json=b"[]", half_part=b"")
    fill(there / "results" / "other", splits_json=b"[]")
    place = workspace.prepare("data/scans", "x")
    assert place.results == disk / "results" / "x"
    assert place.backup == there / "results" / "x"
    assert disk in place.data.parents
    assert content_of(place.data) == {"images/a.nii": b"scan", "labels/a.nii": b"mask"}
    assert content_of(disk / "results") == {"x/fold_0/done.json": b"{}", "x/splits.json": b"[]"}
    assert workspace.prepare("data/scans", "x") == place
    fill(place.results, fold_1__done_json=b"{}")
    assert drive.copy_new(place.results, place.backup) == 1
    assert "fold_1/done.json" in content_of(place.backup)


def test_in_colab_a_new_experiment_starts_empty_and_the_sample_is_made_on_the_local_disk(colab):
    there, disk = colab
    place = workspace.prepare("sample", "x")
    folders = disk / "data" / "sample", disk / "results/x", there / "results/x"
    assert place == Workspace(*folders, simulated=True)
    assert not there.exists()
    assert not place.results.exists()


def test_in_colab_two_folders_of_results_are_not_mixed(colab):
    there, local = colab
    (there / "scans").mkdir(parents=True)
    one, two = (workspace.prepare("scans", "mine", each) for each in ("results", "hers"))
    assert one.results == local / "results" / "mine"
    assert two.results != one.results
    assert (one.backup, two.backup) == (there / "results" / "mine", there / "hers" / "mine")
    assert workspace.prepare("scans", "mine", there / "results") == one


def test_in_colab_two_folders_of_one_name_are_not_mixed(colab):
    there, _ = colab
    fill(there / "liver" / "scans", images__a_nii=b"liver")
    fill(there / "brain" / "scans", images__b_nii=b"brain")
    liver = workspace.prepare("liver/scans", "x")
    brain = workspace.prepare("brain/scans", "y")
    assert content_of(liver.data) == {"images/a.nii": b"liver"}
    assert content_of(brain.data) == {"images/b.nii": b"brain"}


def test_in_colab_splits_edited_on_drive_are_taken_and_other_newer_files_stay(colab):
    there, disk = colab
    fill(there / "results" / "x", splits_json=b"edited", scores_csv=b"old")
    fill(disk / "results" / "x", splits_json=b"before", scores_csv=b"new")
    place = workspace.prepare("sample", "x")
    assert (place.results / "splits.json").read_bytes() == b"edited"
    assert (place.results / "scores.csv").read_bytes() == b"new"


@pytest.fixture
def place(local, tmp_path):
    return Workspace(tmp_path / "scans", local / "results" / "x")


@pytest.fixture
def kept(colab):
    """An experiment in Colab, with nothing on Drive yet."""
    (colab[0] / "scans").mkdir(parents=True)
    return workspace.prepare("scans", "x")


class Page:
    """Saves itself as a page, as viewers do."""

    def save_as_html(self, path):
        path.write_text("<p>page")


def test_a_figure_is_saved_and_handed_on(place, tmp_path):
    figure, page = Figure(), Page()
    assert place.figure(figure, "cases") is figure
    assert (place.results / "figures" / "cases.png").read_bytes().startswith(b"\x89PNG")
    assert place.figure(figure, tmp_path / "new" / "montage.png") is figure
    assert (tmp_path / "new" / "montage.png").is_file()
    assert place.figure(page, tmp_path / "a.html") is page
    assert (tmp_path / "a.html").read_text() == "<p>page"


def test_words_in_the_place_of_a_figure_are_handed_on_and_nothing_is_saved(place):
    assert place.figure("Nothing to show.", "cases") == "Nothing to show."
    assert not place.results.exists()


def test_on_a_laptop_keeping_says_where_the_results_are(place, capsys):
    place.keep()
    place.keep(place.run.batch("new").folder)
    said = capsys.readouterr().out.splitlines()
    assert said == ["Everything is in results/x.", "Everything is in results/x/new_scans/new."]


def test_in_colab_keeping_copies_what_is_new_and_says_where_it_is(kept, capsys):
    fill(kept.results, scores_csv=b"1", figures__a_png=b"2")
    kept.keep()
    assert content_of(kept.backup) == {"scores.csv": b"1", "figures/a.png": b"2"}
    kept.keep()
    said = capsys.readouterr().out.splitlines()
    words = "Everything is on Drive, in results/x; {} files are new there."
    assert said == [words.format(2), words.format(0)]


def test_in_colab_keeping_leaves_splits_that_were_edited_on_drive_as_they_are(kept):
    fill(kept.results, splits_json=b"before")
    fill(kept.backup, splits_json=b"edited")
    kept.keep()
    assert content_of(kept.backup) == content_of(kept.results) == {"splits.json": b"edited"}


def test_a_folder_of_the_results_has_its_place_on_drive_and_none_on_a_laptop(place, kept):
    batch = kept.run.batch("new")
    assert kept.backup_of(batch.folder) == kept.backup / "new_scans" / "new"
    assert place.backup_of(place.run.batch("new").folder) is None


def test_the_cache_is_gone_when_the_session_ends():
    code = "from unetseg.workspace import Workspace\nplace = Workspace('scans', 'results')\n"
    code += "assert place.cache == place.cache and place.cache.is_dir()\nprint(place.cache)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert said.stdout.strip()
    assert not Path(said.stdout.strip()).exists()


def test_cases_are_found_and_an_experiment_is_bound_to_them(local, make_data):
    first, other = make_data(2), make_data(2, "other")
    place = Workspace(first, local / "results" / "x")
    found = place.claim_cases(group_by=r"_(\d+)")
    assert [(case.id, case.group) for case in found] == [("case_00", "00"), ("case_01", "01")]
    assert place.find_cases(group_by=r"_(\d+)") == found
    fill(place.results, preprocessor_json=b"{}")
    with pytest.raises(ValueError, match=r"preprocessor\.json was made for .*data"):
        Workspace(other, place.results).load_preprocessor()


def test_without_folds_none_are_read_and_without_finished_ones_no_history(place):
    assert place.read_folds() is None
    assert place.read_histories() == {}
    fill(place.results, splits_json=b'[{"train": ["a"], "val": ["b"]}]')
    fill(place.results, fold_0__history_csv=b"epoch,loss\n0,1.5\n", fold_0__done_json=b"{}")
    fill(place.results, fold_1__history_csv=b"epoch,loss\n0,2.5\n")
    assert place.read_folds() == [{"train": ["a"], "val": ["b"]}]
    [(name, history)] = place.read_histories().items()
    assert (name, history.to_dict("list")) == ("fold 0", {"epoch": [0], "loss": [1.5]})


def test_of_finished_folds_the_last_epochs_are_read(place):
    names = "epoch,loss,val_loss,accuracy,val_accuracy,dice,val_dice"
    history = f"{names},rate\n0,3,3,0.1,0.1,0.1,0.1,1\n1,1.5,2,0.9,0.8,0.7,0.6,0\n".encode()
    fill(place.results, fold_3__history_csv=history, fold_3__done_json=b"{}")
    last = place.read_last_epochs()
    assert last.index.tolist() == ["fold 3"]
    assert last.columns.tolist() == names.split(",")[1:]
    assert last.iloc[0].tolist() == [1.5, 2, 0.9, 0.8, 0.7, 0.6]


def test_an_experiment_to_compare_with_must_be_scored(place):
    fill(place.results.parent, other__scores_csv=b"case\na\n", empty__splits_json=b"[]")
    assert place.load_other_scores("") is None
    with pytest.raises(ValueError, match=r"COMPARE_WITH must be .* of 1, for example: other"):
        place.load_other_scores("empty")
    with pytest.raises(ValueError, match=r"other/scores\.csv: \d+ columns are missing"):
        place.load_other_scores("other")


def test_scans_are_opened_with_their_labels_as_far_as_these_are_there(place, make_data, capsys):
    scans = find_cases(make_data(5))
    batch = place.run.batch("new")
    for scan in scans[:4]:
        nifti.save_mask(batch.label(scan.id), nifti.load_mask(scan.mask)[0], scan.image)
    order = ["case_04", "case_02", "case_00", "case_03", "case_01"]
    views = place.view_labelled(scans, batch, order, most=2, also="case_01")
    assert [*views] == ["case_02", "case_00", "case_01"]
    title, image, (labels,) = views["case_00"]
    assert title == "case_00"
    np.testing.assert_array_equal(image, nifti.load_image(scans[0].image)[0])
    np.testing.assert_array_equal(labels, nifti.load_mask(scans[0].mask)[0])
    assert views["case_00"].spacing_mm == (1, 2, 3)
    assert [*place.view_labelled(scans, batch, order, most=1, also="case_04")] == ["case_02"]
    assert capsys.readouterr().out == "case_04 was not segmented.\n"
    batch.predictions.write_text("case,problem\ncase_02,no memory\ncase_00,\n")
    assert [*place.view_labelled(scans, batch, order, most=1)] == ["case_00"]


FITTED = Preprocessor(
    spacing_mm=(1, 1, 1), patch=(8, 8, 8), labels={1: "one"}, channels=1, normalisation="zscore"
)


def test_scored_cases_are_opened_with_mask_and_prediction_if_their_scans_are_here(place, make_data):
    replace(FITTED, ignore=2).save(place.run.preprocessor)
    found = find_cases(make_data(2))
    for case in found:
        nifti.save_mask(place.run.prediction(case.id), nifti.load_mask(case.mask)[0], case.image)
    rows = [("best", "case_01", 0.9), ("worst", "case_00", 0.5)]
    examples = pd.DataFrame(rows, columns=["which", "case", "mean_dice"])
    views = place.view_scored(found, examples)
    assert [(i, view.title) for i, view in views.items()] == [
        ("case_01", "best: case_01\nmean Dice 0.900"),
        ("case_00", "worst: case_00\nmean Dice 0.500"),
    ]
    for view in views.values():  # without what nobody drew
        assert [np.unique(mask).tolist() for mask in view.masks] == [[0, 1]] * 2
    assert place.view_scored([replace(case, image=None) for case in found], examples) == {}


def test_what_is_looked_at_has_the_pieces_that_count(place, tmp_path, write_case):
    FITTED.save(place.run.preprocessor)
    mask = np.zeros((6, 5, 4), np.uint8)
    mask[:3] = 1
    case = write_case(tmp_path / "scans", "a", np.ones(mask.shape, np.float32), mask)
    drawn = mask.copy()
    drawn[5, 4, 3] = 1
    nifti.save_mask(place.run.prediction("a"), drawn, case.image)
    write_json(place.run.components, {"cases": {"a": [1]}, "new_scans": []})
    examples = pd.DataFrame([("worst", "a", 0.9)], columns=["which", "case", "mean_dice"])
    shown = place.view_scored([case], examples)["a"].masks[1]
    np.testing.assert_array_equal(shown, mask)


@pytest.fixture
def continuing(local, copy, cases):
    """A new experiment beside a trained one, `first`, with the cases of both and one more."""
    copy.rename(fill(local / "results", keep=b"").parent / "results" / "first")
    return Workspace(cases[0].image.parent, local / "results" / "second")


def test_training_starts_from_an_experiment_beside_this_one(continuing, cases, capsys):
    place = continuing
    seen = look_through(cases)
    assert place.note_start("", cases, seen) == "Training will start from nothing."
    assert place.read_start() is None
    said = place.note_start("first", cases, seen)
    assert said.startswith("Training will start from first, which knows 4 of 4 cases. They stay")
    first = place.results.with_name("first")
    assert place.read_start() == first
    assert place.read_folds() == json.loads((first / "splits.json").read_text())
    wanted = place.adopt_settings("first", Preprocessor(labels={1: "a", 4: "b"}))
    assert wanted.patch == Preprocessor.load(first / "preprocessor.json").patch
    said = place.note_start("", cases, seen)
    assert said.startswith("Training will start from nothing. The folds stay those of before")
    assert place.read_start() is None


def test_folds_that_are_there_stay_as_they_are(continuing, cases):
    seen = look_through(cases)
    own = [{"train": ["c0"], "val": ["c1"]}]
    write_json(continuing.run.splits, own)
    assert "splits.json is there already" in continuing.note_start("first", cases, seen)
    assert continuing.read_folds() == own


def test_training_starts_from_a_packed_file(continuing, local, capsys):
    digest = sharing.pack(local / "results" / "first", local / "theirs.tar")
    start = continuing.find_start("theirs.tar")
    assert len(Run(start).list_finished()) == 2
    assert digest in capsys.readouterr().out
    assert continuing.find_start("theirs.tar") == start


@pytest.mark.parametrize("name", ["frist", "second", "missing.tar"])
def test_a_start_that_is_not_there_is_refused_with_what_is(continuing, name):
    with pytest.raises(ValueError, match=r"START_FROM must be the name of a trained .*first"):
        continuing.find_start(name)


def test_corrected_labels_become_cases_of_a_data_set(continuing, local, cases, tmp_path):
    place = replace(continuing, results=local / "results" / "first")
    batch, scans = place.run.batch("new"), [replace(case, mask=None) for case in cases[:2]]
    for case in cases[:2]:
        mask, _ = nifti.load_mask(case.mask)
        nifti.save_mask(batch.label(case.id), mask, case.files[0])
        row = {"case": case.id, "label": 1, "name": "one", "volume_ml": 1.0, "problem": ""}
        about = {"models": [], "maps": [], "settings": {}, "scan": []}
        note = {"about": about, "rows": [row], "labels_sha256": sha256(batch.label(case.id))}
        write_json(batch.note(case.id), note)
    said = place.add_corrected(scans, batch, "data/more")
    assert said == "No labels were corrected."
    mask[tuple(np.argwhere(mask == 1)[0])] = 0
    nifti.save_mask(batch.label(scans[1].id), mask, scans[1].files[0])
    assert place.add_corrected(scans, batch, "") == "Labels of 1 scans were corrected: c1."
    assert not (local / "data").exists()
    said = place.add_corrected(scans, batch, "data/more")
    assert "1 are new in" in said
    assert "DATA=data/more, START_FROM=first and another EXPERIMENT" in said
    (found,) = find_cases(local / "data/more")
    np.testing.assert_array_equal(nifti.load_mask(found.mask)[0], mask)
