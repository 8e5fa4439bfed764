"""Runs on machines that are lost, and what Google Drive kept of them."""

import contextlib
import json
import pickle
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from training_helpers import (
    PATCH,
    SETTINGS,
    TINY,
    assert_same_run,
    files,
    pretend,
)

from unetseg import _base, training, workspace
from unetseg.preprocessing import Preprocessor
from unetseg.run import drive, lock, processes, state
from unetseg.training import cross_validate


def test_training_goes_on_while_drive_fails_and_leaves_no_state_there(
    cases, tmp_path, monkeypatch, capsys
):
    results, there = tmp_path / "results", tmp_path / "drive"
    copy, broken = drive.copy_new, [True]

    def mirror(*args):
        if broken.pop() if broken else False:
            raise OSError(107, "Transport endpoint is not connected")
        return copy(*args)

    monkeypatch.setattr(drive, "copy_new", mirror)
    monkeypatch.setattr(drive, "BACK_UP_SECONDS", -1)  # after every epoch
    cross_validate(cases, results, backup_dir=there, **SETTINGS)
    assert "NOT SAFE ON DRIVE YET: [Errno 107]" in capsys.readouterr().out
    assert files(there) == files(results)
    assert not list(there.rglob("*.state"))


DROPPED = {**TINY, "model_args": {"filters": 3, "dropout": 0.3}, "epochs": 3}


class CutOff(BaseException):
    """The virtual machine is gone, with its local disk."""


def train_here(patch):
    """Pretend to train folds in this process; look after each epoch and each fold, never else.

    So each epoch is copied to Drive before the next one begins, however fast this machine is.
    """
    looks = []

    class Follower(processes.Follower):
        def __enter__(self):
            looks.append(self._look)
            return super().__enter__()

    class SaveState(state.SaveState):
        def on_epoch_end(self, epoch, logs=None):
            super().on_epoch_end(epoch, logs)
            looks[-1]()

    def run(folder, function, *args):
        with lock.only_run(folder):
            function(*args)
        looks[-1]()

    patch.setattr(training, "_train_fold", pretend)
    patch.setattr(processes, "Follower", Follower)
    patch.setattr(state, "SaveState", SaveState)
    patch.setattr(processes, "run_apart", run)
    patch.setattr(drive, "LOOK_SECONDS", 3600)
    patch.setattr(drive, "BACK_UP_SECONDS", -1)


def cut_off_now(patch):
    """End this machine, which then copies nothing more."""
    patch.setattr(drive, "back_up", lambda *_: False)
    raise CutOff


def stop(patch, fold, epochs, end=cut_off_now):
    """Make training end in a fold, in the epoch after so many full ones."""

    class Stopped(state.SaveState):
        def on_train_batch_end(self, batch, logs=None):
            if (self.folder.name, len(self.about["history"])) == (f"fold_{fold}", epochs):
                end(patch)

    patch.setattr(state, "SaveState", Stopped)


@pytest.fixture(scope="module")
def uninterrupted(cases, tmp_path_factory):
    """A finished run, its copy on Drive, and the names of the files there after each write."""
    folder, seen, write_file = tmp_path_factory.mktemp("uninterrupted"), [], _base.write_file

    def watched(path, data):
        write_file(path, data)
        seen.append(files(folder / "drive"))

    with pytest.MonkeyPatch.context() as patch:
        train_here(patch)
        patch.setattr(drive, "write_file", watched)
        cross_validate(cases, folder / "results", backup_dir=folder / "drive", **DROPPED)
    return SimpleNamespace(results=folder / "results", drive=folder / "drive", seen=seen)


@pytest.fixture(scope="module")
def cut_off(cases, tmp_path_factory):
    """What is on Drive of a run whose machine was lost in the third epoch of its second fold."""
    folder = tmp_path_factory.mktemp("cut off")
    with pytest.MonkeyPatch.context() as patch, contextlib.suppress(CutOff):
        train_here(patch)
        stop(patch, fold=1, epochs=2)
        cross_validate(cases, folder / "results", backup_dir=folder / "drive", **DROPPED)
    shutil.rmtree(folder / "results")
    lock = {"host": "the lost one", "pid": 1, "time": time.time() - 3600}
    (folder / "drive" / "running.json").write_text(json.dumps(lock))
    return folder / "drive"


@pytest.fixture
def new_machine(colab, monkeypatch):
    """Return a function that prepares a machine with an empty disk, as the notebooks do.

    What is on Drive is a copy of a folder, or what was left there. Every epoch is copied there.
    """
    drive, disk = colab
    train_here(monkeypatch)

    def prepare(content=None, spoil=lambda drive: None):
        shutil.rmtree(disk, ignore_errors=True)
        if content:
            shutil.copytree(content, drive / "results" / "x")
        spoil(drive / "results" / "x")
        return workspace.prepare("sample", "x")

    return prepare


def go_on(place, cases, **settings):
    """Train as the notebooks do."""
    preprocessor = Preprocessor(patch=PATCH, coarse_mm=())
    if (path := place.results / "preprocessor.json").exists():
        preprocessor = Preprocessor.load(path)
    settings = {**DROPPED, "preprocessor": preprocessor, **settings}
    return cross_validate(cases, place.results, backup_dir=place.backup, **settings)


def epochs_of(said):
    """Which epochs of which folds were trained, in the words of the output."""
    return [line.split("  ")[0] for line in said.splitlines() if " epoch " in line]


def spoil(name, change):
    """Return a function that changes the content of one file of a folder, or removes it."""

    def spoil_file(folder):
        path = folder / name
        content = change(path.read_bytes(), folder)
        path.unlink()
        if content is not None:
            path.write_bytes(content)

    return spoil_file


def gone(content, folder):
    return None


def half(content, folder):
    return content[: len(content) // 2]


def empty(content, folder):
    return b""


def one_before(content, folder):
    (folder / "fold_1" / "0.state.part").write_bytes(half(content, folder))
    return (folder / "fold_1" / "1.state").read_bytes()


def of_another(content, folder):
    return (folder / "predictions" / "c0.nii.gz").read_bytes()


def both(first, second):
    def spoil_both(folder):
        first(folder)
        second(folder)

    return spoil_both


@pytest.mark.parametrize(
    ("spoil", "since", "warning"),
    [
        (lambda folder: None, 3, None),
        (spoil("fold_1/0.state", gone), 2, None),
        (spoil("fold_1/0.state", half), 2, r"fold_1.0\.state: damaged"),
        (spoil("fold_1/0.state", empty), 2, r"fold_1.0\.state: damaged"),
        (spoil("fold_1/0.state", one_before), 2, None),
        (spoil("fold_1/1.state", half), 3, r"fold_1.1\.state: damaged"),
        (both(spoil("fold_1/0.state", gone), spoil("fold_1/1.state", gone)), 1, None),
        (
            both(spoil("fold_1/0.state", half), spoil("fold_1/1.state", half)),
            *(1, r"fold_1.[01]\.state: damaged"),
        ),
    ],
    ids=[
        *("nothing", "newest state", "half of the newest", "all but the name of the newest"),
        *("last write of the newest", "half of the older", "both states", "half of both"),
    ],
)
def test_a_run_whose_machine_is_lost_goes_on_from_what_drive_kept(
    cut_off, uninterrupted, new_machine, cases, capsys, spoil, since, warning
):
    place = new_machine(cut_off, spoil)
    with pytest.warns(UserWarning, match=warning) if warning else contextlib.nullcontext():
        go_on(place, cases)
    said = capsys.readouterr().out
    assert epochs_of(said) == [f"fold 1 epoch {k}/3" for k in range(since, 4)]
    assert "1 of 2 folds are finished" in said
    assert "taken over from process 1 on the lost one" in said
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("fold_1/model.weights.h5", gone, "fold_1: was finished, but files are"),
        ("fold_1/model.weights.h5", half, "fold_1: was finished, but files are"),
        ("predictions/{}.nii.gz", gone, "fold_1: was finished, but files are"),
        ("predictions/{}.nii.gz", half, "fold_1: was finished, but files are"),
        ("predictions/{}.nii.gz", of_another, "fold_1: was finished, but files are"),
        ("fold_1/done.json", half, "fold_1: was finished, but files are"),
        ("fold_1/done.json", empty, "fold_1: was finished, but files are"),
        ("fold_1/done.json", gone, "1 of 2 folds are finished"),
    ],
)
def test_a_finished_fold_of_which_drive_lost_a_file_is_trained_again(
    uninterrupted, new_machine, cases, capsys, name, change, sentence
):
    folds = json.loads((uninterrupted.results / "splits.json").read_text())
    name = name.format(max(folds[1]["val"]))  # not c0
    place = new_machine(uninterrupted.drive, spoil(name, change))
    go_on(place, cases)
    said = capsys.readouterr().out
    assert sentence in said
    assert epochs_of(said) == [f"fold 1 epoch {k}/3" for k in (1, 2, 3)]
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


def test_two_finished_folds_of_which_drive_lost_something_are_both_trained_again(
    uninterrupted, new_machine, cases, capsys
):
    lost = both(spoil("fold_0/model.weights.h5", gone), spoil("fold_1/done.json", half))
    place = new_machine(uninterrupted.drive, lost)
    go_on(place, cases)
    assert len(epochs_of(capsys.readouterr().out)) == 6
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


@pytest.mark.parametrize("name", ["experiment.json", "splits.json", "preprocessor.json"])
@pytest.mark.parametrize("change", [half, empty])
def test_a_file_of_settings_that_drive_truncated_is_named(
    cut_off, new_machine, cases, trained, name, change
):
    place = new_machine(cut_off, spoil(name, change))
    with pytest.raises(ValueError, match=rf"{re.escape(str(place.results / name))}: "):
        go_on(place, cases)
    assert trained == []


@pytest.mark.parametrize("fault", [5, 28, 30, 107, "truncates"])  # EIO, ENOSPC, EROFS, ENOTCONN
def test_training_ends_without_drive_and_another_call_copies_all_of_it(
    cut_off, uninterrupted, new_machine, cases, break_drive, capsys, fault
):
    place = new_machine(cut_off)
    drive = break_drive(place.backup, fault, since=".state")
    go_on(place, cases)
    *_, last = capsys.readouterr().out.splitlines()
    assert last.startswith("NOT SAFE ON DRIVE YET: ")
    assert "fold_1/model.weights.h5" in last
    assert last.endswith(f"All of it is on the local disk, in {place.results}.")
    assert_same_run(place.results, uninterrupted.results)
    assert not (place.backup / "fold_1" / "done.json").exists()
    drive.fault = None
    go_on(place, cases)
    said = capsys.readouterr().out
    assert "2 of 2 folds are finished" in said
    assert "NOT SAFE" not in said
    assert epochs_of(said) == []
    assert_same_run(place.backup, uninterrupted.results)


def test_drive_holds_at_most_two_states_of_a_fold_and_none_of_a_finished_one(uninterrupted):
    for fold in ("fold_0", "fold_1"):
        states = [{n for n in names if fold in n and ".state" in n} for names in uninterrupted.seen]
        assert max(map(len, states)) == 2
    assert not any(name.endswith(".part") for names in uninterrupted.seen for name in names)
    assert not [name for name in files(uninterrupted.drive) if ".state" in name]
    assert_same_run(uninterrupted.drive, uninterrupted.results)


def test_a_fold_that_is_trained_again_is_not_mixed_with_its_copy_on_drive(
    uninterrupted, new_machine, cases, monkeypatch, capsys
):
    place = new_machine(uninterrupted.drive)
    with monkeypatch.context() as patch, contextlib.suppress(CutOff):
        stop(patch, fold=0, epochs=2)
        patch.setattr(drive, "back_up", lambda *_: False)  # not yet, in so short a time
        go_on(place, cases, retrain=True)
    place = workspace.prepare("sample", "x")  # on the same machine
    capsys.readouterr()
    go_on(place, cases)
    assert epochs_of(capsys.readouterr().out) == [
        *("fold 0 epoch 3/3", "fold 1 epoch 1/3", "fold 1 epoch 2/3", "fold 1 epoch 3/3")
    ]
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


HELD = """
import pickle
import signal
import sys
import time
import training_helpers
from unetseg import training

def hold(*args):  # defined here, so what it does is done in the process of the fold
    from unetseg import training
    from unetseg.run import state

    class Held(state.SaveState):
        def on_epoch_begin(self, epoch, logs=None):
            while epoch == 2:
                time.sleep(600)

    state.SaveState = Held
    training._train_fold = training_helpers.pretend
    training._run_fold(*args)

training._run_fold = hold
signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
cases, results, drive, settings = pickle.load(sys.stdin.buffer)
training.cross_validate(cases, results, backup_dir=drive, **settings)
"""


@contextlib.contextmanager
def held(cases, results, drive):
    """A training in processes of their own, held in the third epoch of its first fold."""
    process = subprocess.Popen(
        [sys.executable, "-c", HELD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=Path(__file__).parent,  # where build_tiny is found
    )
    pickle.dump((cases, results, drive, DROPPED), process.stdin)
    process.stdin.flush()
    try:
        while b"fold 0 epoch 2/3" not in process.stdout.readline():
            assert process.poll() is None
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_run_stopped_by_hand_is_on_drive_and_goes_on_with_the_same_settings_only(
    uninterrupted, new_machine, cases, capsys
):
    place = new_machine()
    with held(cases, place.results, place.backup) as process:
        assert not list(place.backup.rglob("*.state"))  # a quarter of an hour is not over
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate()
    assert b"Stopped in fold 0. Run this again: it goes on from" in said
    place = new_machine()
    with pytest.raises(ValueError, match="other settings") as error:
        go_on(place, cases, epochs=5, learning_rate=0.001)
    assert [row.strip() for row in str(error.value).splitlines()[1:-1]] == [
        "recipe.epochs: 3 there, 5 now",
        "recipe.learning_rate: 0.006 there, 0.001 now",
    ]
    assert sorted(path.name for path in (place.results / "fold_0").glob("*.state")) == [
        *("0.state", "1.state")
    ]
    go_on(place, cases)
    assert epochs_of(capsys.readouterr().out)[0] == "fold 0 epoch 3/3"
    assert_same_run(place.backup, uninterrupted.results)


def test_an_error_of_a_fold_leaves_on_drive_what_it_has_learnt(
    uninterrupted, new_machine, cases, monkeypatch, capsys
):
    def fail(patch):
        raise MemoryError("of the GPU")

    place = new_machine()
    with monkeypatch.context() as patch:
        stop(patch, fold=1, epochs=1, end=fail)
        patch.setattr(drive, "BACK_UP_SECONDS", 900)
        with pytest.raises(MemoryError):
            go_on(place, cases)
    place = new_machine()
    capsys.readouterr()
    go_on(place, cases)
    assert epochs_of(capsys.readouterr().out) == ["fold 1 epoch 2/3", "fold 1 epoch 3/3"]
    assert_same_run(place.backup, uninterrupted.results)


def test_a_second_run_is_refused_until_the_first_is_killed_and_then_goes_on(
    uninterrupted, cases, tmp_path, capsys, monkeypatch
):
    results, drive = tmp_path / "results", tmp_path / "drive"
    train_here(monkeypatch)
    with held(cases, results, drive) as process:
        for folder in (results, tmp_path / "other results"):
            with pytest.raises(RuntimeError, match=f"another run .*process {process.pid} on"):
                cross_validate(cases, folder, backup_dir=drive, **DROPPED)
        process.kill()
        process.stdout.read()  # ends when the process of the fold does, which writes there too
    assert process.returncode == -9
    cross_validate(cases, results, backup_dir=drive, **DROPPED)
    said = capsys.readouterr().out
    assert f"taken over from process {process.pid} on" in said
    assert epochs_of(said)[0] == "fold 0 epoch 3/3"
    for folder in (results, drive):
        assert_same_run(folder, uninterrupted.results)


def assert_markers_hold(folder):
    for path in folder.glob("fold_*/done.json"):
        done = json.loads(path.read_text())
        noted = {path.with_name("model.weights.h5"): done["weights_sha256"]}
        for name, digest in done["predictions_sha256"].items():
            noted[folder / "predictions" / name] = digest
        assert {file: _base.sha256(file) for file in noted} == noted


def lose(patch, folder, writes, name=""):
    """Make a machine end in the middle of a write to a folder: of the n-th file of some name."""
    write_file, left = _base.write_file, writes

    def lost(path, data):
        nonlocal left
        path = Path(path)
        if threading.current_thread() is not threading.main_thread():  # renews a lock
            return write_file(path, data)
        left -= folder in path.parents and name in path.name
        if left > 0:
            return write_file(path, data)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.part").write_bytes(data[: len(data) // 2])
        cut_off_now(patch)

    patch.setattr(drive, "write_file", lost)


def test_a_machine_lost_between_the_last_state_and_its_history_loses_no_epoch(
    cut_off, uninterrupted, new_machine, cases, monkeypatch, capsys
):
    place = new_machine(cut_off)
    with monkeypatch.context() as patch, contextlib.suppress(CutOff):
        lose(patch, place.backup, 1, "history.csv")
        go_on(place, cases)
    place = new_machine()
    assert len(pd.read_csv(place.results / "fold_1" / "history.csv")) == 2
    capsys.readouterr()
    stop(monkeypatch, fold=1, epochs=2)  # would be reached if an epoch were trained
    go_on(place, cases)
    assert epochs_of(capsys.readouterr().out) == ["fold 1 epoch 3/3"]  # found in the state
    for folder in (place.results, place.backup):
        assert_same_run(folder, uninterrupted.results)


@pytest.mark.long
def test_a_run_whose_machine_is_lost_20_times_while_it_copies_ends_as_if_it_had_not_been(
    uninterrupted, new_machine, cases, monkeypatch
):
    rng, losses, finished = np.random.default_rng(0), 0, False
    while losses < 20 or not finished:
        place, finished = new_machine(), False
        with monkeypatch.context() as patch, contextlib.suppress(CutOff):
            lose(patch, place.backup, rng.integers(1, 25) if losses < 20 else 1000)
            go_on(place, cases)
            finished = True
        assert_markers_hold(place.backup)
        losses += not finished
        if finished:
            for folder in (place.results, place.backup):
                assert_same_run(folder, uninterrupted.results)
            shutil.rmtree(place.backup)
