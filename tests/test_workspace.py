import hashlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from unetseg import _base, workspace
from unetseg.run import drive, lock


def fill(folder, **files):
    """Write files; a double underscore in a name stands for a folder."""
    for name, content in files.items():
        stem, _, suffix = name.replace("__", "/").rpartition("_")
        path = folder / f"{stem}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def content_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A laptop, with the project in a folder of its own."""
    monkeypatch.delenv("COLAB_RELEASE_TAG", raising=False)
    monkeypatch.delitem(sys.modules, "google.colab", raising=False)
    monkeypatch.setattr(workspace, "project_dir", lambda: tmp_path / "project")
    return tmp_path / "project"


def test_colab_is_told_by_its_environment_or_its_module(local, monkeypatch):
    assert not workspace.in_colab()
    monkeypatch.setitem(sys.modules, "google.colab", SimpleNamespace())
    assert workspace.in_colab()
    monkeypatch.delitem(sys.modules, "google.colab")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab")
    assert workspace.in_colab()


def test_the_project_folder_holds_the_package():
    assert (workspace.project_dir() / "unetseg" / "workspace.py").samefile(workspace.__file__)


def test_a_file_is_written_whole_into_new_folders_without_leftovers(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    for data in (b"first", b"", b"second" * 100_000):
        _base.write_file(str(path), data)
        assert content_of(tmp_path) == {"new/folder/a.json": data}


def fail(*args, **kwargs):
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("target", "name", "replacement"),
    [
        (os, "replace", fail),
        (Path, "write_bytes", fail),
        (workspace, "sha256", lambda path: "0" * 64),  # as if it read back differently
    ],
    ids=["rename", "write", "read back"],
)
def test_a_failed_write_leaves_the_old_file_as_it_was(
    target, name, replacement, tmp_path, monkeypatch
):
    (tmp_path / "a.json").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(target, name, replacement)
        with pytest.raises(OSError, match=r"the disk is gone|a\.json.*reads back differently"):
            _base.write_file(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"old"
    _base.write_file(tmp_path / "a.json", b"new")
    assert content_of(tmp_path) == {"a.json": b"new"}


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5000])
def test_sha256_is_that_of_hashlib(data, tmp_path):
    (tmp_path / "a").write_bytes(data)
    assert _base.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


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


def test_on_a_laptop_folders_are_used_where_they_are(local, tmp_path):
    scans = fill(tmp_path / "elsewhere", images__a_nii=b"a")
    fill(local / "data" / "mine", images__a_nii=b"a")
    results = local / "results" / "first-try_2.0"
    assert workspace.prepare(scans, "first-try_2.0") == (scans, results, None)
    assert workspace.prepare("data/mine", "first-try_2.0").data == local / "data" / "mine"
    assert workspace.prepare("sample", "x") == (local / "data/sample", local / "results/x", None)
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
    assert place == (local / "data/typo", local / "results/x", None)
    assert not local.exists()


def test_in_colab_results_are_fetched_also_without_the_data(colab):
    drive, disk = colab
    fill(drive / "results" / "x", splits_json=b"[]")
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
    drive, disk = colab
    fill(drive / "data" / "scans", images__a_nii=b"scan", labels__a_nii=b"mask")
    fill(drive / "results" / "x", fold_0__done_json=b"{}", splits_json=b"[]", half_part=b"")
    fill(drive / "results" / "other", splits_json=b"[]")
    place = workspace.prepare("data/scans", "x")
    assert place.results == disk / "results" / "x"
    assert place.backup == drive / "results" / "x"
    assert disk in place.data.parents
    assert content_of(place.data) == {"images/a.nii": b"scan", "labels/a.nii": b"mask"}
    assert content_of(disk / "results") == {"x/fold_0/done.json": b"{}", "x/splits.json": b"[]"}
    assert workspace.prepare("data/scans", "x") == place
    fill(place.results, fold_1__done_json=b"{}")
    assert drive.copy_new(place.results, place.backup) == 1
    assert "fold_1/done.json" in content_of(place.backup)


def test_in_colab_a_new_experiment_starts_empty_and_the_sample_is_made_on_the_local_disk(colab):
    drive, disk = colab
    place = workspace.prepare("sample", "x")
    assert place == (disk / "data" / "sample", disk / "results/x", drive / "results/x")
    assert not drive.exists()
    assert not place.results.exists()


def test_in_colab_two_folders_of_results_are_not_mixed(colab):
    drive, local = colab
    (drive / "scans").mkdir(parents=True)
    one, two = (workspace.prepare("scans", "mine", each) for each in ("results", "hers"))
    assert one.results == local / "results" / "mine"
    assert two.results != one.results
    assert (one.backup, two.backup) == (drive / "results" / "mine", drive / "hers" / "mine")
    assert workspace.prepare("scans", "mine", drive / "results") == one


def test_in_colab_two_folders_of_one_name_are_not_mixed(colab):
    drive, _ = colab
    fill(drive / "liver" / "scans", images__a_nii=b"liver")
    fill(drive / "brain" / "scans", images__b_nii=b"brain")
    liver = workspace.prepare("liver/scans", "x")
    brain = workspace.prepare("brain/scans", "y")
    assert content_of(liver.data) == {"images/a.nii": b"liver"}
    assert content_of(brain.data) == {"images/b.nii": b"brain"}


SESSION = """
import os, sys
from pathlib import Path
os.environ["COLAB_RELEASE_TAG"] = "stand-in"
from unetseg import workspace

drive = sys.argv[1] + "/MyDrive"
workspace.DRIVE, workspace.LOCAL = Path(drive), Path(sys.argv[1]) / "content"
read = []

def watch(event, details):
    if event == "open" and str(details[0]).startswith(drive) and not details[2] & os.O_WRONLY:
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
    drive, disk = tmp_path / "MyDrive" / "unetseg", tmp_path / "content"
    fill(drive / "data" / "mine", images__a_nii=b"a", images__b_nii=b"b", labels__a_nii=b"m")
    fill(drive / "results" / "x", splits_json=b"[]", fold_0__model_h5=b"w", fold_0__done_json=b"{}")
    every = ["a.nii", "a.nii", "b.nii", "done.json", "model.h5", "splits.json"]
    assert run_session(tmp_path) == every
    assert run_session(tmp_path) == [""]
    fill(drive / "data" / "mine", images__b_nii=b"new")
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
    local, drive = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED)
    assert drive.back_up(local, drive)
    monkeypatch.setattr(workspace.fingerprints, "sha256", lambda path: pytest.fail(f"{path} read"))
    assert drive.back_up(local, drive)
    monkeypatch.undo()
    (local / "fold_0" / "model.weights.h5").write_bytes(b"v" * 100)
    os.utime(local / "fold_0" / "model.weights.h5", (1, 1))
    assert drive.back_up(local, drive)
    assert content_of(drive) == content_of(local)


@pytest.fixture
def copied(colab):
    """A data set on Drive and its copy, with an experiment on both."""
    drive, _ = colab
    names = [f"{kind}__{name}_nii" for kind in ("images", "labels") for name in "abc"]
    fill(drive / "data" / "mine", **dict.fromkeys(names, b"1"), patients_csv=b"a")
    fill(drive / "results" / "x", scores_csv=b"1")
    return drive / "data" / "mine", workspace.prepare("data/mine", "x")


def test_what_is_removed_or_renamed_on_drive_is_gone_from_the_copy_and_said(copied, capsys):
    drive, place = copied
    for kind in ("images", "labels"):
        (drive / kind / "a.nii").unlink()
        (drive / kind / "b.nii").rename(drive / kind / "z.nii")
    (drive / "patients.csv").unlink()
    assert workspace.prepare("data/mine", "x") == place
    assert content_of(place.data) == content_of(drive)
    said = capsys.readouterr().out
    assert "5 files are not on Drive any more, so gone from the copy" in said
    assert "images/a.nii, images/b.nii, labels/a.nii, labels/b.nii, patients.csv" in said


def test_a_folder_that_is_renamed_on_drive_does_not_come_twice(copied):
    drive, place = copied
    (drive / "images").rename(drive / "imagesTr")
    workspace.prepare("data/mine", "x")
    assert content_of(place.data) == content_of(drive)


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
    drive, place = copied
    before = content_of(place.data)
    fault(drive)
    workspace.prepare("data/mine", "x", need_data=False)
    assert content_of(place.data) == before
    assert str(drive) in capsys.readouterr().out


def test_a_listing_that_lacks_files_which_are_there_removes_nothing(copied, monkeypatch):
    _, place = copied
    before, glob = content_of(place.data), Path.glob

    def half(folder, pattern):
        return [path for path in glob(folder, pattern) if path.name != "a.nii"]

    with monkeypatch.context() as patch:
        patch.setattr(Path, "glob", half)
        workspace.prepare("data/mine", "x")
    assert content_of(place.data) == before


def test_a_drive_that_breaks_off_removes_nothing(copied, monkeypatch):
    drive, place = copied
    (drive / "images" / "a.nii").unlink()
    before, stat = content_of(place.data), Path.stat

    def gone(path, **kwargs):
        if path.name == "a.nii" and drive in path.parents:
            raise OSError(107, "Transport endpoint is not connected")
        return stat(path, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", gone)
        with pytest.raises(OSError, match="Transport endpoint"):
            workspace.prepare("data/mine", "x")
    assert content_of(place.data) == before


def test_only_what_was_copied_and_not_changed_since_is_removed(copied, capsys):
    drive, place = copied
    fill(place.data, images__own_nii=b"made here", images__a_nii=b"edited here")
    fill(place.results, own_csv=b"made here")
    (drive / "images" / "a.nii").unlink()
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


REQUIREMENTS = b"""# Floors only: absent-package, another
present-package>=1.3
absent-package
Other.Absent>=0.12  # not in Colab
"""


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Record what pip is called with, where nothing is installed beside present-package."""
    installed = tmp_path / "site" / "Present_Package-1.0.dist-info"
    installed.mkdir(parents=True)
    text = "Metadata-Version: 2.1\nName: Present_Package\nVersion: 1.0\n"
    (installed / "METADATA").write_text(text, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    calls = []
    monkeypatch.setattr(subprocess, "check_call", lambda command, **_: calls.append(command))
    return calls


def test_on_a_laptop_nothing_is_installed(local, pip):
    fill(local, requirements_txt=REQUIREMENTS)
    assert workspace.install_missing() == []
    assert pip == []


def test_in_colab_only_what_is_missing_is_installed(colab, pip):
    fill(workspace.project_dir(), requirements_txt=REQUIREMENTS)
    missing = ["absent-package", "Other.Absent"]
    assert workspace.install_missing() == missing
    (command,) = pip
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[4:6] == ["-q", "-c"]  # a list of what is there, which pip must keep
    assert command[7:] == missing


def test_in_colab_pip_is_not_called_if_all_is_there(colab, pip):
    fill(workspace.project_dir(), requirements_txt=b"present-package>=1.3\n")
    assert workspace.install_missing() == []
    assert pip == []


def test_in_colab_a_package_that_lost_its_metadata_does_no_harm(colab, pip, tmp_path):
    (tmp_path / "site" / "broken-1.0.dist-info").mkdir()
    fill(workspace.project_dir(), requirements_txt=REQUIREMENTS)
    assert workspace.install_missing() == ["absent-package", "Other.Absent"]


def test_a_failing_pip_stops_the_cell(colab, pip, monkeypatch):
    def failing(command, **_):
        raise subprocess.CalledProcessError(1, command)

    monkeypatch.setattr(subprocess, "check_call", failing)
    fill(workspace.project_dir(), requirements_txt=REQUIREMENTS)
    with pytest.raises(subprocess.CalledProcessError):
        workspace.install_missing()


@pytest.mark.parametrize(
    ("name", "value", "allowed", "message"),
    [
        ("overlap", 1.5, "in [0, 1)", "overlap must be in [0, 1). Received: overlap=1.5"),
        ("kind", "x", "a or b", "kind must be a or b. Received: kind='x'"),
        ("patch", (0, 1), "positive", "patch must be positive. Received: patch=(0, 1)"),
    ],
)
@pytest.mark.parametrize("fits", [False, None, 0, []])
def test_what_does_not_fit_is_refused_with_its_name_and_value(name, value, allowed, message, fits):
    with pytest.raises(ValueError) as error:
        _base.require(name, value, fits, allowed)
    assert str(error.value) == message


@pytest.mark.parametrize("fits", [True, np.True_, 1])
def test_what_fits_passes(fits):
    assert _base.require("depth", 3, fits, "at least 1") is None


def test_mirror_copies_only_the_files_of_the_patterns(tmp_path):
    source = fill(tmp_path / "source", a_csv=b"1", figures__b_png=b"2", fold_0__c_h5=b"3")
    assert drive.copy_new(source, tmp_path / "copy", ["a.csv", "figures/*"]) == 2
    assert sorted(path.name for path in (tmp_path / "copy").rglob("*.*")) == ["a.csv", "b.png"]


def test_in_colab_splits_edited_on_drive_are_taken_and_other_newer_files_stay(colab):
    drive, disk = colab
    fill(drive / "results" / "x", splits_json=b"edited", scores_csv=b"old")
    fill(disk / "results" / "x", splits_json=b"before", scores_csv=b"new")
    place = workspace.prepare("sample", "x")
    assert (place.results / "splits.json").read_bytes() == b"edited"
    assert (place.results / "scores.csv").read_bytes() == b"new"


TRAINED = {"fold_0__model.weights_h5": b"w" * 100, "fold_0__done_json": b"{}"}


@pytest.mark.parametrize("fault", [5, 28, 30, 107, "truncates"])  # EIO, ENOSPC, EROFS, ENOTCONN
def test_a_drive_that_fails_stops_nothing_and_gets_the_files_later(
    fault, tmp_path, break_drive, capsys
):
    local, drive = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED, scores_csv=b"1")
    failing = break_drive(drive, fault, "weights")
    assert drive.back_up(local, drive) is False
    said = capsys.readouterr().out
    assert "NOT SAFE ON DRIVE YET" in said
    assert "1 files are not there yet: fold_0/model.weights.h5" in said
    assert f"on the local disk, in {local}" in said
    assert set(content_of(drive)) - {"fold_0/model.weights.h5.part"} == {"scores.csv"}
    failing.fault = None
    assert drive.back_up(local, drive) is True
    assert not capsys.readouterr().out
    assert content_of(drive) == content_of(local)


def test_what_drive_lost_after_it_was_written_is_copied_again(tmp_path):
    local, drive = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED)
    assert drive.back_up(local, drive)
    (drive / "fold_0" / "model.weights.h5").write_bytes(b"w" * 50)
    (drive / "fold_0" / "done.json").unlink()
    assert drive.back_up(local, drive)
    assert content_of(drive) == content_of(local)


def lock_of(folder, **about):
    known = {"host": "elsewhere", "pid": 1, "time": time.time()}
    (folder / "running.json").write_text(json.dumps(known | about))


def test_a_run_locks_its_folders_and_gives_them_back(tmp_path):
    (tmp_path / "a").mkdir()
    with lock.only_run(tmp_path / "a", tmp_path / "b", None):
        for name in "ab":
            held = json.loads((tmp_path / name / "running.json").read_text())
            assert held["pid"] == os.getpid()
            assert held["host"] == platform.node()
            assert abs(held["time"] - time.time()) < 60
    assert not list(tmp_path.rglob("running.json"))


def test_a_run_that_fails_gives_its_folder_back(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.only_run(tmp_path):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_the_lock_is_renewed(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "STALE", 0.03)
    with lock.only_run(tmp_path):
        first = (tmp_path / "running.json").read_text()
        for _ in range(1000):
            time.sleep(0.01)
            if (tmp_path / "running.json").read_text() != first:
                break
        else:
            pytest.fail("not renewed")


def test_a_second_run_elsewhere_is_refused_if_the_first_shows_a_sign_of_life(tmp_path, monkeypatch):
    lock_of(tmp_path, pid=77)
    monkeypatch.setattr(workspace.time, "sleep", lambda seconds: lock_of(tmp_path, pid=77))
    with (
        pytest.raises(RuntimeError, match=r"running.json: another run .*process 77 on elsewhere"),
        lock.only_run(tmp_path),
    ):
        pytest.fail("ran")
    assert json.loads((tmp_path / "running.json").read_text())["pid"] == 77


def test_a_lock_of_a_machine_that_was_cut_off_just_now_is_waited_for(tmp_path, monkeypatch):
    waited = []
    lock_of(tmp_path)
    monkeypatch.setattr(workspace.time, "sleep", waited.append)
    with lock.only_run(tmp_path):
        assert json.loads((tmp_path / "running.json").read_text())["pid"] == os.getpid()
    assert waited == [180]


def test_fetching_results_takes_no_marker_and_no_state_to_a_finished_fold(tmp_path):
    local, drive = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED)
    fill(drive, fold_0__1_state=b"s", fold_0__history_csv=b"h")
    drive.copy_new(drive, local, overwrite=False)
    assert set(content_of(local)) == {
        *("fold_0/model.weights.h5", "fold_0/done.json", "fold_0/history.csv")
    }


def test_a_back_up_removes_the_states_of_finished_folds_there(tmp_path):
    local, drive = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED, fold_1__0_state=b"s")
    fill(drive, fold_0__1_state=b"s")
    assert drive.back_up(local, drive)
    assert set(content_of(drive)) == set(content_of(local))


def test_a_lock_without_a_sign_of_life_is_taken_over(tmp_path, capsys):
    lock_of(tmp_path, time=time.time() - 181)
    with lock.only_run(tmp_path):
        assert json.loads((tmp_path / "running.json").read_text())["pid"] == os.getpid()
    assert "taken over from process 1 on elsewhere" in capsys.readouterr().out


@pytest.mark.parametrize(("age", "wait"), [(0, [180]), (200, [])])
def test_a_lock_whose_content_was_lost_is_taken_over_if_nobody_renews_it(
    age, wait, tmp_path, monkeypatch
):
    path, waited = tmp_path / "running.json", []
    path.write_bytes(b"")
    os.utime(path, (time.time() - age,) * 2)
    monkeypatch.setattr(workspace.time, "sleep", waited.append)
    with lock.only_run(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert waited == wait


def test_on_this_machine_a_lock_holds_as_long_as_its_process_lives(tmp_path, capsys):
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        lock_of(tmp_path, host=platform.node(), pid=process.pid)
        with pytest.raises(RuntimeError, match="another run"), lock.only_run(tmp_path):
            pytest.fail("ran")
        process.communicate(b"\n")
    with lock.only_run(tmp_path):
        assert "taken over" in capsys.readouterr().out


def test_an_earlier_run_of_this_process_holds_no_lock(tmp_path):
    lock_of(tmp_path, host=platform.node(), pid=os.getpid())
    with lock.only_run(tmp_path):
        pass


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
    source, drive = fill(tmp_path / "local", fold_0__history_csv=b"h"), tmp_path / "drive"
    glob = Path.glob

    def list_late(folder, pattern):
        monkeypatch.setattr(Path, "glob", glob)
        early = list(glob(folder, pattern))
        fill(source, **TRAINED)
        return [*early, source / "fold_0" / "done.json"]

    monkeypatch.setattr(Path, "glob", list_late)
    drive.copy_new(source, drive)
    assert content_of(drive) == content_of(source)


COPY = """
import os
import signal
import sys
from pathlib import Path
from unetseg import workspace

local, drive, left = sys.argv[1], sys.argv[2], int(sys.argv[3])
write_file = _base.write_file

def killed(path, data):
    global left
    left -= 1
    if left == 0:
        Path(f"{path}.part").write_bytes(data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)
    write_file(path, data)

_base.write_file = killed
drive.back_up(local, drive)
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
    local, drive = two_folds(tmp_path / "local", b"new"), two_folds(tmp_path / "drive", b"old")
    command = [sys.executable, "-c", COPY, str(local), str(drive), str(write)]
    assert subprocess.run(command).returncode == -9
    for fold in ("fold_0", "fold_1"):
        versions = {path.read_bytes()[:3] for path in (drive / fold).iterdir()}
        assert len(versions) == 1 or not (drive / fold / "done.json").exists()
    assert len(list(drive.rglob("*.part"))) == 1
    assert drive.back_up(local, drive)
    assert content_of(drive) == content_of(local)


def test_a_back_up_removes_what_a_copy_that_was_cut_off_left_beside_the_whole_file(tmp_path):
    local, drive = tmp_path / "local", tmp_path / "drive"
    fill(local, **TRAINED)
    fill(drive, **TRAINED, **{"fold_0__model.weights.h5_part": b"w", "a__b.png_part": b""})
    assert drive.back_up(local, drive)
    assert content_of(drive) == content_of(local)


WRITES = """
import os, sys
from unetseg import workspace
with workspace.hushed():
    os.write(2, b"of compiled code ")
    if sys.argv[1] == "fails":
        raise ValueError("an error")
os.write(2, b"later")
"""


@pytest.mark.parametrize(
    ("ends", "expected"), [("well", ["later"]), ("fails", ["of compiled code", "an error"])]
)
def test_what_is_hushed_is_shown_only_with_an_error(ends, expected):
    shown = subprocess.run([sys.executable, "-c", WRITES, ends], capture_output=True).stderr
    words = ("of compiled code", "an error", "later")
    assert [word for word in words if word.encode() in shown] == expected


@pytest.mark.parametrize("module", ["training", "inference"])
def test_tensorflow_starts_without_a_word(module):
    code = f"import unetseg; unetseg.{module}; import sys; assert 'keras' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")


def test_folds_are_read_in_the_order_of_their_numbers(tmp_path, monkeypatch):
    monkeypatch.setattr(workspace, "read_json", lambda path: json.loads(path.read_text()))
    for number in (10, 9, 2):
        fill(tmp_path, **{f"fold_{number}__done_json": json.dumps(number).encode()})
    fill(tmp_path, fold_3__history_csv=b"not finished")
    folds = workspace.read_folds(tmp_path)
    assert [*folds.items()] == [(tmp_path / f"fold_{n}", n) for n in (2, 9, 10)]
    assert [*workspace.read_folds(tmp_path, [10, 2]).values()] == [10, 2]
    with pytest.raises(FileNotFoundError, match=r"fold_3, fold_4 is not a finished fold\. Run 02"):
        workspace.read_folds(tmp_path, [2, 3, 4])
