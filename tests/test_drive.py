import os
import subprocess
import sys
from pathlib import Path

import pytest
from files import content_of, fill

from unetseg import _base, workspace
from unetseg.run import drive, fingerprints
from unetseg.run.layout import Batch


def test_mirror_copies_what_is_new_or_changed_and_deletes_nothing(tmp_path):
    source = fill(
        tmp_path / "source",
        same_txt=b"same",
        longer_txt=b"longer",
        other_txt=b"new!",  # of the same size as before
        sub__new_csv=b"1,2",
        sub__deep__empty_h5=b"",
        sub__half_part=b"half a file",
    )
    target = fill(
        tmp_path / "target",
        same_txt=b"same",
        longer_txt=b"long",
        other_txt=b"old!",
        extra_txt=b"stays",
    )
    before = (target / "same.txt").stat()
    assert drive.copy_new(source, str(target)) == 4
    assert content_of(target) == {
        "same.txt": b"same",
        "longer.txt": b"longer",
        "other.txt": b"new!",
        "sub/new.csv": b"1,2",
        "sub/deep/empty.h5": b"",
        "extra.txt": b"stays",
    }
    after = (target / "same.txt").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert drive.copy_new(source, target) == 0


def test_mirror_copies_the_markers_after_everything_else(tmp_path, monkeypatch):
    source = fill(
        tmp_path / "source",
        fold_0__done_json=b"{}",
        fold_0__model_h5=b"w",
        fold_1__done_json=b"{}",
        fold_1__zzz_csv=b"1",
        splits_json=b"[]",
    )
    order, write_file = [], _base.write_file

    def recorded(path, data):
        order.append(path.relative_to(tmp_path / "target").as_posix())
        write_file(path, data)

    monkeypatch.setattr(drive, "write_file", recorded)
    drive.copy_new(source, tmp_path / "target")
    assert set(order[:3]) == {"fold_0/model.h5", "fold_1/zzz.csv", "splits.json"}
    assert set(order[3:]) == {"fold_0/done.json", "fold_1/done.json"}


def test_an_interrupted_second_copy_leaves_no_marker_beside_a_mixture(tmp_path, monkeypatch):
    target = tmp_path / "target"
    first = fill(tmp_path / "a", fold_0__done_json=b"1", fold_0__m_h5=b"1", fold_0__x_csv=b"1")
    drive.copy_new(first, target)
    again = fill(tmp_path / "b", fold_0__done_json=b"2", fold_0__m_h5=b"2", fold_0__x_csv=b"2")
    write_file = _base.write_file

    def interrupted(path, data):
        if path.name == "x.csv":
            raise OSError("Transport endpoint is not connected")
        write_file(path, data)

    monkeypatch.setattr(drive, "write_file", interrupted)
    with pytest.raises(OSError, match="Transport endpoint"):
        drive.copy_new(again, target)
    assert (target / "fold_0" / "m.h5").read_bytes() == b"2"
    assert (target / "fold_0" / "x.csv").read_bytes() == b"1"
    assert not (target / "fold_0" / "done.json").exists()


SESSION = """
import os, sys
from pathlib import Path
os.environ["COLAB_RELEASE_TAG"] = "stand-in"
from unetseg import workspace
from unetseg.run import drive

there = sys.argv[1] + "/MyDrive"
workspace.DRIVE, workspace.LOCAL = Path(there), Path(sys.argv[1]) / "content"
read = []

def watch(event, details):
    if event == "open" and str(details[0]).startswith(there) and not details[2] & os.O_WRONLY:
        read.append(os.path.basename(details[0])) if os.path.isfile(details[0]) else None

sys.addaudithook(watch)
place = workspace.prepare("data/mine", "x")
drive.back_up(place.results, place.backup)
print(*sorted(read), sep=",")
"""


def run_session(folder):
    """What a notebook reads of Drive: each has a process of its own, on one virtual machine."""
    command = [sys.executable, "-c", SESSION, str(folder)]
    said = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return said.splitlines()[-1].split(",")


def test_what_is_unchanged_on_drive_is_read_by_the_first_notebook_of_a_machine_alone(tmp_path):
    there, disk = tmp_path / "MyDrive" / "unetseg", tmp_path / "content"
    fill(there / "data" / "mine", images__a_nii=b"a", images__b_nii=b"b", labels__a_nii=b"m")
    fill(there / "results" / "x", splits_json=b"[]", fold_0__model_h5=b"w", fold_0__done_json=b"{}")
    every = ["a.nii", "a.nii", "b.nii", "done.json", "model.h5", "splits.json"]
    assert run_session(tmp_path) == every
    assert run_session(tmp_path) == [""]
    fill(there / "data" / "mine", images__b_nii=b"new")
    fill(disk / "results" / "x", scores_csv=b"1")
    assert run_session(tmp_path) == ["b.nii", "scores.csv.part"]  # what is written is verified
    assert run_session(tmp_path) == [""]
    (disk / "fingerprints.json").write_text("{")
    assert "b.nii" in run_session(tmp_path)
    (disk / "fingerprints.json").unlink()
    for path in sorted(disk.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    assert run_session(tmp_path) == sorted([*every, "scores.csv"])  # another machine


def test_a_back_up_reads_nothing_of_drive_again_and_follows_a_change_of_the_same_size(
    tmp_path, monkeypatch
):
    local, there = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED)
    assert drive.back_up(local, there)
    monkeypatch.setattr(fingerprints, "sha256", lambda path: pytest.fail(f"{path} read"))
    assert drive.back_up(local, there)
    monkeypatch.undo()
    (local / "fold_0" / "model.weights.h5").write_bytes(b"v" * 100)
    os.utime(local / "fold_0" / "model.weights.h5", (1, 1))
    assert drive.back_up(local, there)
    assert content_of(there) == content_of(local)


@pytest.fixture
def copied(colab):
    """A data set on Drive and its copy, with an experiment on both."""
    there, _ = colab
    names = [f"{kind}__{name}_nii" for kind in ("images", "labels") for name in "abc"]
    fill(there / "data" / "mine", **dict.fromkeys(names, b"1"), patients_csv=b"a")
    fill(there / "results" / "x", scores_csv=b"1")
    return there / "data" / "mine", workspace.prepare("data/mine", "x")


def test_what_is_removed_or_renamed_on_drive_is_gone_from_the_copy_and_said(copied, capsys):
    there, place = copied
    for kind in ("images", "labels"):
        (there / kind / "a.nii").unlink()
        (there / kind / "b.nii").rename(there / kind / "z.nii")
    (there / "patients.csv").unlink()
    assert workspace.prepare("data/mine", "x") == place
    assert content_of(place.data) == content_of(there)
    said = capsys.readouterr().out
    assert "5 files are not on Drive any more, so gone from the copy" in said
    assert "images/a.nii, images/b.nii, labels/a.nii, labels/b.nii, patients.csv" in said


def test_a_folder_that_is_renamed_on_drive_does_not_come_twice(copied):
    there, place = copied
    (there / "images").rename(there / "imagesTr")
    workspace.prepare("data/mine", "x")
    assert content_of(place.data) == content_of(there)


@pytest.fixture
def on_both(copied):
    """Folds and labels of new scans that are the same here and on Drive."""
    _, place = copied
    _base.write_file(place.run.splits, b"[]")
    for name in "ab":
        _base.write_file(place.results / f"new_scans/new/labels/{name}.nii.gz", b"labels")
    assert drive.back_up(place.results, place.backup)
    return place


def test_results_that_are_removed_on_drive_do_not_come_back(on_both, capsys):
    gone = ["new_scans/new/labels/a.nii.gz", "splits.json"]
    for name in gone:
        (on_both.backup / name).unlink()
    workspace.prepare("data/mine", "x")
    assert f"2 files are not on Drive any more, so gone from {on_both.results}: " in (
        capsys.readouterr().out
    )
    drive.back_up(on_both.results, on_both.backup)
    for folder in (on_both.results, on_both.backup):
        assert not any((folder / name).exists() for name in gone)
        assert (folder / "new_scans/new/labels/b.nii.gz").exists()


@pytest.mark.parametrize("doubt", ["changed here", "fold begun", "drive lists nothing"])
def test_results_that_may_not_be_had_again_stay(doubt, on_both):
    splits, there = on_both.run.splits, on_both.backup / "splits.json"
    there.unlink()
    if doubt == "changed here":
        splits.write_bytes(b"[{}]")
    elif doubt == "fold begun":
        on_both.run.fold(0).folder.mkdir()
    else:
        empty_folder(on_both.backup)
    workspace.prepare("data/mine", "x")
    assert splits.exists()


def empty_folder(folder):
    for path in folder.iterdir():
        empty_folder(path) if path.is_dir() else path.unlink()


def rename_away(folder):
    folder.rename(folder.with_name("away"))


def empty_mount(folder):
    folder.rename(folder.parent.parent / "away")
    folder.mkdir()


@pytest.mark.parametrize("fault", [empty_folder, rename_away, empty_mount])
def test_a_drive_that_lists_nothing_does_not_empty_the_copy(copied, fault, capsys):
    there, place = copied
    before = content_of(place.data)
    fault(there)
    workspace.prepare("data/mine", "x", need_data=False)
    assert content_of(place.data) == before
    assert str(there) in capsys.readouterr().out


def test_a_listing_that_lacks_files_which_are_there_removes_nothing(copied, monkeypatch):
    _, place = copied
    before, glob = content_of(place.data), Path.glob

    def half(folder, pattern, **kwargs):
        return [path for path in glob(folder, pattern, **kwargs) if path.name != "a.nii"]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", half)
        workspace.prepare("data/mine", "x")
    assert content_of(place.data) == before


def test_a_drive_that_breaks_off_removes_nothing(copied, monkeypatch):
    there, place = copied
    (there / "images" / "a.nii").unlink()
    before, stat = content_of(place.data), Path.stat

    def gone(path, **kwargs):
        if path.name == "a.nii" and there in path.parents:
            raise OSError(107, "Transport endpoint is not connected")
        return stat(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", gone)
        with pytest.raises(OSError, match="Transport endpoint"):
            workspace.prepare("data/mine", "x")
    assert content_of(place.data) == before


def test_only_what_was_copied_and_not_changed_since_is_removed(copied, capsys):
    there, place = copied
    fill(place.data, images__own_nii=b"made here", images__a_nii=b"edited here")
    fill(place.results, own_csv=b"made here")
    (there / "images" / "a.nii").unlink()
    workspace.prepare("data/mine", "x")
    assert (place.data / "images" / "own.nii").read_bytes() == b"made here"
    assert (place.data / "images" / "a.nii").read_bytes() == b"edited here"
    assert content_of(place.results) == {"own.csv": b"made here", "scores.csv": b"1"}
    said = capsys.readouterr().out
    assert "2 files are not on Drive, and not as copied from there; kept" in said
    assert "images/a.nii, images/own.nii" in said


def test_results_that_are_gone_from_drive_stay_here(copied):
    _, place = copied
    (place.backup / "scores.csv").unlink()
    workspace.prepare("data/mine", "x")
    assert content_of(place.results) == {"scores.csv": b"1"}
    drive.back_up(place.results, place.backup)
    assert content_of(place.backup) == {"scores.csv": b"1"}


def test_mirror_copies_only_the_files_of_the_patterns(tmp_path):
    source = fill(tmp_path / "source", a_csv=b"1", figures__b_png=b"2", fold_0__c_h5=b"3")
    assert drive.copy_new(source, tmp_path / "copy", ["a.csv", "figures/*"]) == 2
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*.*")) == ["a.csv", "b.png"]


TRAINED = {"fold_0__model.weights_h5": b"w" * 100, "fold_0__done_json": b"{}"}


@pytest.mark.parametrize("fault", [5, 28, 30, 107, "truncates"])  # EIO, ENOSPC, EROFS, ENOTCONN
def test_a_drive_that_fails_stops_nothing_and_gets_the_files_later(
    fault, tmp_path, break_drive, capsys
):
    local, there = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED, scores_csv=b"1")
    failing = break_drive(there, fault, "weights")
    assert drive.back_up(local, there) is False
    said = capsys.readouterr().out
    assert "NOT SAFE ON DRIVE YET" in said
    assert "1 files are not there yet: fold_0/model.weights.h5" in said
    assert f"on the local disk, in {local}" in said
    assert set(content_of(there)) - {"fold_0/model.weights.h5.part"} == {"scores.csv"}
    failing.fault = None
    assert drive.back_up(local, there) is True
    assert not capsys.readouterr().out
    assert content_of(there) == content_of(local)


def test_what_drive_lost_after_it_was_written_is_copied_again(tmp_path):
    local, there = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED)
    assert drive.back_up(local, there)
    (there / "fold_0" / "model.weights.h5").write_bytes(b"w" * 50)
    (there / "fold_0" / "done.json").unlink()
    assert drive.back_up(local, there)
    assert content_of(there) == content_of(local)


def test_fetching_results_takes_no_marker_and_no_state_to_a_finished_fold(tmp_path):
    local, there = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED)
    fill(there, fold_0__1_state=b"s", fold_0__history_csv=b"h")
    drive.copy_new(there, local, overwrite=False)
    assert set(content_of(local)) == {
        *("fold_0/model.weights.h5", "fold_0/done.json", "fold_0/history.csv")
    }


def test_a_back_up_removes_the_states_of_finished_folds_there(tmp_path):
    local, there = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED, fold_1__0_state=b"s")
    fill(there, fold_0__1_state=b"s")
    assert drive.back_up(local, there)
    assert set(content_of(there)) == set(content_of(local))


def test_locks_and_files_that_are_being_written_are_not_mirrored(tmp_path):
    fill(tmp_path / "local", a_csv=b"1", running_json=b"{}", fold_0__running_json=b"{}")
    for name in ("a.csv.part", "part-model.weights.h5"):
        (tmp_path / "local" / name).touch()
    assert drive.copy_new(tmp_path / "local", tmp_path / "drive") == 1


def test_a_file_that_goes_while_others_are_mirrored_is_no_failure(tmp_path, monkeypatch):
    source = fill(tmp_path / "local", fold_0__0_state=b"s", fold_0__history_csv=b"h")
    copy = drive._copy

    def copy_late(path, *rest):
        path.unlink() if path.suffix == ".state" else None
        return copy(path, *rest)

    monkeypatch.setattr(drive, "_copy", copy_late)
    assert drive.back_up(source, tmp_path / "drive")
    assert set(content_of(tmp_path / "drive")) == {"fold_0/history.csv"}


def test_the_marker_of_a_fold_that_ends_while_files_are_listed_comes_with_all_the_rest(
    tmp_path, monkeypatch
):
    source, there = fill(tmp_path / "local", fold_0__history_csv=b"h"), tmp_path / "drive"
    glob = Path.glob

    def list_late(folder, pattern):
        monkeypatch.setattr(Path, "glob", glob)
        early = list(glob(folder, pattern))
        fill(source, **TRAINED)
        return [*early, source / "fold_0" / "done.json"]

    monkeypatch.setattr(Path, "glob", list_late)
    drive.copy_new(source, there)
    assert content_of(there) == content_of(source)


COPY = """
import os
import signal
import sys
from pathlib import Path
from unetseg.run import drive

local, there, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
write_file = drive.write_file

def killed(path, data):
    global left
    left -= 1
    if left == 0:
        Path(f"{path}.part").write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write_file(path, data)

drive.write_file = killed
drive.back_up(local, there)
"""


def two_folds(folder, version):
    names = [f"fold_{k}__{n}" for k in (0, 1) for n in ("done_json", "history_csv", "model_h5")]
    names += ["fold_1__0_state"] if version == b"old" else []
    return fill(folder, **dict.fromkeys([*names, "splits_json"], version * 100))


@pytest.mark.skipif(os.name != "posix", reason="kills as Linux and macOS do")
@pytest.mark.parametrize("write", range(1, 8))
def test_a_copy_killed_at_any_file_leaves_no_marker_beside_files_of_another_training(
    write, tmp_path
):
    local, there = two_folds(tmp_path / "local", b"new"), two_folds(tmp_path / "drive", b"old")
    command = [sys.executable, "-c", COPY, str(local), str(there), str(write)]
    assert subprocess.run(command).returncode == -9
    for fold in ("fold_0", "fold_1"):
        versions = {path.read_bytes()[:3] for path in (there / fold).iterdir()}
        assert len(versions) == 1 or not (there / fold / "done.json").exists()
    assert len(list(there.rglob("*.part"))) == 1
    assert drive.back_up(local, there)
    assert content_of(there) == content_of(local)


def test_a_back_up_removes_what_a_copy_that_was_cut_off_left_beside_the_whole_file(tmp_path):
    local, there = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED)
    fill(there, **TRAINED, **{"fold_0__model.weights.h5_part": b"w", "a__b.png_part": b""})
    assert drive.back_up(local, there)
    assert content_of(there) == content_of(local)


LABELLED = {"same": b"labels", "corrected": b"by hand", "both": b"by hand too", "unknown": b"?"}


@pytest.fixture
def corrected(tmp_path):
    """An experiment here and on Drive, where a person corrected labels of new scans."""
    here, there = tmp_path / "here", tmp_path / "drive"
    for folder in (here, there):
        batch = Batch(folder / "new_scans/new")
        for name, by_hand in LABELLED.items():
            label = batch.label(name)
            _base.write_file(label, b"labels")
            row = {"case": name, "label": 1, "name": "one", "volume_ml": 1.0, "problem": ""}
            note = {"about": {"models": [], "scan": []}, "rows": [row]}
            _base.write_json(batch.note(name), note | {"labels_sha256": _base.sha256(label)})
            if folder == there:
                _base.write_file(label, by_hand)
    _base.write_file(Batch(here / "new_scans/new").label("both"), b"by hand here")
    Batch(there / "new_scans/new").note("unknown").write_bytes(b"")  # as Drive may leave it
    return here, there


def read_labels(folder):
    return {name: Batch(folder / "new_scans/new").label(name).read_bytes() for name in LABELLED}


def test_labels_corrected_on_drive_are_fetched(corrected, capsys):
    here, there = corrected
    drive.fetch_corrected(here, there)
    assert read_labels(here) == {
        "same": b"labels",
        "corrected": b"by hand",
        "both": b"by hand here",
        "unknown": b"labels",
    }
    assert "not known whether unknown.nii.gz was corrected" in capsys.readouterr().out


def test_labels_corrected_on_drive_are_not_replaced_by_a_copy(corrected):
    here, there = corrected
    assert drive.back_up(here, there)
    found = read_labels(there)
    assert found == LABELLED  # the notes come before the labels, also in the place of damaged ones
    assert drive.back_up(here, there)
    assert read_labels(there) == found


@pytest.fixture
def machines(tmp_path):
    """An experiment that two machines fetched from Drive after one of them had trained it."""
    there, one, other = (tmp_path / name for name in ("drive", "one", "other"))
    fill(one, **TRAINED, scores_csv=b"old")
    assert drive.back_up(one, there)
    drive.copy_new(there, other, overwrite=False)
    return there, one, other


def test_what_another_machine_made_newer_on_drive_is_fetched_and_not_replaced(machines):
    there, one, other = machines
    fill(one, **TRAINED | {"fold_0__model.weights_h5": b"v" * 90}, fold_1__done_json=b"{}")
    assert drive.back_up(one, there)
    newer = content_of(one)
    assert drive.back_up(other, there)  # of which nothing was changed since
    assert content_of(there) == newer
    drive.copy_new(there, other, overwrite=False)
    assert content_of(other) == newer


def test_what_was_changed_here_alone_stays_and_goes_to_drive(machines):
    there, _, other = machines
    fill(other, scores_csv=b"new")
    drive.copy_new(there, other, overwrite=False)
    assert (other / "scores.csv").read_bytes() == b"new"
    assert drive.back_up(other, there)
    assert (there / "scores.csv").read_bytes() == b"new"


def test_where_both_were_changed_what_is_here_stays_and_replaces_the_other(machines):
    there, one, other = machines
    fill(one, scores_csv=b"one")
    assert drive.back_up(one, there)
    fill(other, scores_csv=b"two")
    drive.copy_new(there, other, overwrite=False)
    assert (other / "scores.csv").read_bytes() == b"two"
    assert drive.back_up(other, there)
    assert (there / "scores.csv").read_bytes() == b"two"


@pytest.mark.parametrize("left", [b"", b"w" * 50, b"w" * 50 + b"\0" * 50])
def test_what_drive_lost_is_not_fetched_as_if_it_were_newer(machines, left):
    there, _, other = machines
    whole = content_of(other)
    (there / "fold_0/model.weights.h5").write_bytes(left)
    drive.copy_new(there, other, overwrite=False)
    assert content_of(other) == whole
    assert drive.back_up(other, there)
    assert content_of(there) == whole
