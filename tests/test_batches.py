import json
import os
import re
import shutil
import unicodedata

import pandas as pd
import pytest

from unetseg import _base, workspace
from unetseg.cases import Case
from unetseg.run import batches, drive


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A laptop: the project's folder, at which relative paths start."""
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.setattr(drive, "project_dir", lambda: tmp_path / "project")
    (tmp_path / "project").mkdir()
    return tmp_path / "project"


def scans_in(folder, *ids, content=b"scan"):
    """Files stand in for scans: only their content matters here."""
    folder.mkdir(parents=True, exist_ok=True)
    for each in ids:
        (folder / f"{each}.nii.gz").write_bytes(content + str(folder.parent).encode())
    return [Case(each, folder / f"{each}.nii.gz") for each in ids]


def finish(out, scan, source=None):
    """Leave what a finished scan leaves; without a source as earlier versions did."""
    about = {"models": [], "maps": [], "settings": {}, "scan": [_base.sha256(scan.image)]}
    row = {"case": scan.id, "label": 1, "name": "one", "volume_ml": 1.0, "problem": ""}
    marker = {"about": about, "labels_sha256": "0" * 64, "rows": [row]}
    marker |= {"source": source} if source else {}
    _base.write_json(out / "done" / f"{scan.id}.json", marker)
    _base.write_file(out / "labels" / f"{scan.id}.nii.gz", b"labels")


def choose(project, folder, *ids):
    scans = scans_in(folder, *ids)
    out = batches.choose_folder(project / "results", folder, scans)
    assert out.parent == project / "results" / "new_scans"
    for scan in scans:
        finish(out, scan, batches.origin(scan.image))
    return out.name


def test_folders_of_one_name_have_folders_of_their_own(project, capsys):
    places = [project / "A" / "images", project / "B" / "images", project / "c" / "B" / "images"]
    for _ in range(2):  # a second time each goes on in its own
        assert [choose(project, each, "scan_1") for each in places] == [
            *("images", "B_images", "images_2")
        ]
    assert "those of B/images go to B_images" in capsys.readouterr().out


@pytest.mark.parametrize("other", ["Imáges", "IMÁGES", "ima\u0301ges"])
def test_names_that_some_disks_take_for_one_are_two(other, project):
    first = choose(project, project / "A" / unicodedata.normalize("NFC", "imáges"), "a")
    second = choose(project, project / "B" / other, "a")
    folded = [unicodedata.normalize("NFC", name).casefold() for name in (first, second)]
    assert len({*folded}) == 2


def test_a_folder_keeps_its_own_by_whatever_path_it_is_given(project, monkeypatch):
    folder = project / "data" / "images"
    assert choose(project, folder, "a") == "images"
    (project / "link").symlink_to(folder)
    monkeypatch.chdir(project)
    scans = scans_in(folder, "a")
    for path in ("data/images", "data/images/", "./data/../data/images", "link", folder):
        assert batches.choose_folder("results", path, scans).name == "images"
    assert len(list((project / "results" / "new_scans").iterdir())) == 1


def test_in_colab_a_folder_on_drive_keeps_its_own_in_each_session(colab):
    there, _ = colab
    for hospital in "AB":
        scans_in(there / hospital / "images", "a", content=hospital.encode())
    names = []
    for session in range(2):
        for given in ("A/images", "B/images", str(there / "A" / "images")):
            place = workspace.prepare(given, "mine")
            scans = [Case("a", place.data / "a.nii.gz")]
            out = batches.choose_folder(place.results, place.data, scans)
            finish(out, scans[0], batches.origin(scans[0].image))
            assert batches.origin(place.data) == f"{given[-8]}/images"
            drive.copy_new(place.results, place.backup)
            names.append(out.name)
        if session == 0:  # which ends with all of its disk
            shutil.rmtree(workspace.LOCAL)
    assert names == ["images", "B_images", "images"] * 2


def test_results_of_an_earlier_version_are_known_by_their_scans(project):
    mine, others = scans_in(project / "A" / "images", "a", "b"), project / "B" / "images"
    out = project / "results" / "new_scans" / "images"
    finish(out, mine[0])
    assert choose(project, others, "a", "c") == "B_images"
    assert not (out / "source.json").exists()
    assert batches.choose_folder(project / "results", project / "A" / "images", mine) == out
    assert json.loads((out / "source.json").read_text()) == {"source": "A/images"}


def test_results_that_nobody_can_tell_the_source_of_are_left_alone(project):
    out = project / "results" / "new_scans" / "images"
    _base.write_file(out / "labels" / "a.nii.gz", b"of a version without markers")
    assert choose(project, project / "A" / "images", "a") == "A_images"


def test_a_folder_that_has_moved_goes_on_in_its_own(project):
    assert choose(project, project / "old" / "images", "a", "b") == "images"
    (project / "old").rename(project / "new")
    folder = project / "new" / "images"
    scans = [Case(each, folder / f"{each}.nii.gz") for each in "ab"]
    assert batches.choose_folder(project / "results", folder, scans).name == "images"
    batches.refuse_other_scans(project / "results" / "new_scans" / "images", scans)


def test_the_copy_of_a_folder_that_is_still_there_is_another_folder(project):
    choose(project, project / "A" / "images", "a")
    shutil.copytree(project / "A", project / "B")
    scans = [Case("a", project / "B" / "images" / "a.nii.gz")]
    out = batches.choose_folder(project / "results", project / "B" / "images", scans)
    assert out.name == "B_images"


@pytest.mark.parametrize("text", ["", "{", "{}", '{"source": 3}'])
def test_a_note_that_was_damaged_is_made_anew(text, project):
    folder = project / "A" / "images"
    choose(project, folder, "a")
    note = project / "results" / "new_scans" / "images" / "source.json"
    note.write_text(text)
    assert choose(project, folder, "a") == "images"
    assert json.loads(note.read_text()) == {"source": "A/images"}


@pytest.mark.parametrize("name", ["my scans é", "-x", "it's (1) $HOME", "n" * 250, "é" * 127])
def test_any_name_of_a_folder_will_do(name, project):
    one, two = (choose(project, project / parent / name, "a") for parent in "AB")
    assert one != two
    assert max(len(os.fsencode(each)) for each in (one, two)) <= 255
    assert choose(project, project / "B" / name, "a") == two


def test_predictions_of_other_scans_with_the_same_ids_are_refused(tmp_path):
    mine, others = (scans_in(tmp_path / h / "images", "a", "b", "c") for h in "AB")
    out = tmp_path / "out"
    finish(out, mine[0], batches.origin(mine[0].image))
    finish(out, mine[1])
    with pytest.raises(
        ValueError, match=r"2 of these ids: a, b\. Predict these scans into another"
    ):
        batches.refuse_other_scans(out, others)
    batches.refuse_other_scans(out, mine)
    mine[0].image.write_bytes(b"corrected in its place")
    batches.refuse_other_scans(out, mine)


def train(results, *ids):
    """Leave what tells that an experiment was trained on these cases."""
    _base.write_file(results / "experiment.json", b"{}")
    rows = "".join(f"{each},1\n" for each in ids)
    _base.write_file(results / "cases.csv", f"case,volume_ml\n{rows}".encode())


def test_an_experiment_is_not_made_from_two_data_sets_of_one_name(project):
    results, folders = project / "results" / "images", [project / h / "images" for h in "ABC"]
    cases = [scans_in(folder, "a", "b") for folder in folders]
    for k in (0, 1, 0):  # before training the folder may be chosen again
        batches.claim(results, folders[k], cases[k])
    batches.refuse_other_source(results, folders[0])
    with pytest.raises(ValueError, match=r"made for A/images, not for B/images\. .*EXPERIMENT"):
        batches.refuse_other_source(results, folders[1])
    train(results, "a", "b")
    batches.refuse_other_source(results, folders[1])  # is left to the training
    with pytest.raises(ValueError, match="trained on A/images, not on B/images") as error:
        batches.claim(results, folders[1], cases[1])
    assert "another EXPERIMENT" in str(error.value)
    batches.claim(results, folders[0], cases[0])
    (project / "A").rename(project / "moved")
    moved = project / "moved" / "images"
    batches.refuse_other_source(results, moved)
    batches.claim(results, moved, cases[0])
    noted = {"source": "moved/images", "group_by": ""}
    assert json.loads((results / "source.json").read_text()) == noted


def test_patients_are_told_as_when_the_experiment_was_claimed(project):
    results, folder = project / "results" / "images", project / "A" / "images"
    batches.refuse_other_groups(results, "(p.)")  # nothing is noted yet
    cases = scans_in(folder, "p1_a")
    for claimed, others in (("(p.)_", ("x", "", None)), (None, ("x",))):
        batches.claim(results, folder, cases, claimed)
        batches.refuse_other_groups(results, claimed)
        batches.refuse_other_groups(results, {"p1_a": "p1"})
        for other in others:
            said = f"GROUPS = {other or ''!r} here, but 01_load_data was run with {claimed or ''!r}"
            with pytest.raises(ValueError, match=re.escape(said)):
                batches.refuse_other_groups(results, other)
    batches.claim(results, folder, cases, lambda name: name)
    batches.refuse_other_groups(results, "x")


def test_an_experiment_of_an_earlier_version_is_known_by_its_ids(project):
    results = project / "results" / "images"
    train(results, "007", "NA")
    batches.refuse_other_source(results, project / "A")
    batches.claim(results, project / "A", scans_in(project / "A", "007", "c"))
    (results / "source.json").unlink()
    with pytest.raises(ValueError, match="trained on other cases than are in B"):
        batches.claim(results, project / "B", scans_in(project / "B", "c"))
    assert not (results / "source.json").exists()


def test_rows_of_other_scans_stay_in_a_table_as_they_were_written(tmp_path):
    path = tmp_path / "table.csv"
    old = "case,label,dice,gone\n007,1,0.1234567890123456,x\nNA,2,,y\nb,1,0.5,z\n"
    path.write_text(old)
    new = pd.DataFrame({"case": ["b", "c"], "label": [1, 1], "dice": [0.25, None]})
    for _ in range(2):
        batches.update_table(path, new)
        assert path.read_text().splitlines() == [
            *("case,label,dice,gone", "b,1,0.25,", "c,1,,"),
            *("007,1,0.1234567890123456,x", "NA,2,,y"),
        ]


@pytest.mark.parametrize("separator", [",", ";"])
def test_what_a_person_noted_in_a_table_stays(separator, tmp_path):
    path = tmp_path / "look_at.csv"
    rows = ["case,agreement,verdict", "a,0.5,leaks into the orbit", "b,0.9,", "z,0.7,fine"]
    path.write_text("\n".join(rows).replace(",", separator))
    new = pd.DataFrame({"case": ["c", "a"], "agreement": [0.25, 0.75]})
    batches.update_table(path, new, notes=True)
    assert path.read_text().splitlines() == [
        *("case,agreement,verdict", "c,0.25,", "a,0.75,leaks into the orbit"),
        *("b,0.9,", "z,0.7,fine"),
    ]


@pytest.mark.parametrize("text", ["", "name;label\na;1\n", '"'])
def test_a_table_that_cannot_be_read_is_kept_beside_the_new_one(text, tmp_path, capsys):
    path = tmp_path / "table.csv"
    path.write_text(text)
    batches.update_table(path, pd.DataFrame({"case": ["a"]}))
    assert path.read_text() == "case\na\n"
    assert (tmp_path / "table.csv.old").read_text() == text
    assert "kept as table.csv.old" in capsys.readouterr().out
    path.write_text("as little")
    batches.update_table(path, pd.DataFrame({"case": ["a"]}))
    assert (tmp_path / "table.csv.old").read_text() == text
    assert (tmp_path / "table.csv.old1").read_text() == "as little"


def test_labels_that_a_person_changed_are_told_from_those_that_were_predicted(tmp_path):
    scans = scans_in(tmp_path / "scans", "kept", "changed", "late", "alone")
    for scan in scans[:3]:
        finish(tmp_path / "out", scan)
        label = tmp_path / "out/labels" / f"{scan.id}.nii.gz"
        note = tmp_path / "out/done" / f"{scan.id}.json"
        content = json.loads(note.read_text())
        content["labels_sha256"] = _base.sha256(label)
        if scan.id == "late":  # Drive had the note, not yet the labels
            content |= {"labels_sha256": "0" * 64, "replaced_sha256": _base.sha256(label)}
        _base.write_json(note, content)
    label = tmp_path / "out/labels/changed.nii.gz"
    label.write_bytes(b"corrected")
    (found,) = batches.list_corrected(tmp_path / "out", scans)
    assert (found.id, found.mask, found.image) == ("changed", label, scans[1].image)
