import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import joblib
import pandas as pd
import pytest

from unetseg import _base
from unetseg.run import devices, drive, layout, processes


def call(function, folder, *args):
    processes.run_apart(folder / "fold_0", function, *args)


def note(folder):
    (folder / "noted").write_text(f"{os.getpid()} {(folder / 'fold_0' / 'running.json').exists()}")


def test_a_call_has_a_process_of_its_own_and_the_lock_of_its_folder(tmp_path):
    call(note, tmp_path, tmp_path)
    pid, locked = (tmp_path / "noted").read_text().split()
    assert int(pid) != os.getpid()
    assert locked == "True"
    assert not (tmp_path / "fold_0" / "running.json").exists()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


def test_where_this_process_holds_a_tpu_it_does_what_is_called(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    monkeypatch.setattr(devices, "list_devices", lambda: ["tpu"])
    call(note, tmp_path, tmp_path)
    pid, locked = (tmp_path / "noted").read_text().split()
    assert (int(pid), locked) == (os.getpid(), "True")
    assert not (tmp_path / "fold_0" / "running.json").exists()
    assert processes.call_apart(os.getpid) == os.getpid()
    assert processes.limit_jobs(4) == 1


def test_a_function_that_only_this_session_knows_can_be_called(tmp_path):
    name = "made here"
    call(lambda: (tmp_path / name).touch(), tmp_path)
    assert (tmp_path / name).exists()


def test_what_a_call_raises_is_raised(tmp_path):
    def fail():
        raise ValueError("the loss became NaN")

    with pytest.raises(ValueError, match="the loss became NaN"):
        call(fail, tmp_path)
    assert not (tmp_path / "fold_0" / "running.json").exists()


def test_what_a_call_warns_of_is_warned_of(tmp_path):
    with pytest.warns(UserWarning, match="damaged"):
        call(warnings.warn, tmp_path, "a damaged state")


def test_a_process_that_dies_is_an_error_that_names_the_fold_and_what_to_do(tmp_path):
    with pytest.raises(RuntimeError, match=r"fold_0: the process .* died.*Run this again"):
        call(lambda: os.kill(os.getpid(), signal.SIGKILL), tmp_path)
    assert not (tmp_path / "fold_0" / "running.json").exists()


def test_a_daemonic_process_may_call_too(tmp_path):
    # as a worker of Dask is
    with joblib.parallel_config(backend="multiprocessing"):
        jobs = [joblib.delayed(call)(note, tmp_path / str(n), tmp_path / str(n)) for n in (0, 1)]
        for n in (0, 1):
            (tmp_path / str(n)).mkdir()
        joblib.Parallel(n_jobs=2)(jobs)
    assert all((tmp_path / str(n) / "noted").exists() for n in (0, 1))


WAITING = """
import os, signal, sys, time
from pathlib import Path
import joblib
from unetseg.run import processes

def wait(folder):
    (folder / "pid").write_text(str(os.getpid()))
    time.sleep(600)

signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
folder = Path(sys.argv[1])
names = ["fold_0", "fold_1"]
jobs = [joblib.delayed(processes.run_apart)(folder / n, wait, folder / n) for n in names]
try:
    processes.run_all(jobs, int(sys.argv[2]), folder)
except KeyboardInterrupt:
    print("stopped")
    raise
"""


def is_alive(pid):
    try:
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("end", ["interrupt", "interrupt all", "kill"])
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_no_process_goes_on_after_the_first_one_was_stopped(tmp_path, n_jobs, end):
    command = [sys.executable, "-c", WAITING, str(tmp_path), str(n_jobs)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as run:
        while len(list(tmp_path.glob("fold_*/pid"))) < n_jobs:
            assert run.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)  # the numbers are written
        pids = [int(path.read_text()) for path in tmp_path.glob("fold_*/pid")]
        {
            "interrupt": lambda: run.send_signal(signal.SIGINT),
            "interrupt all": lambda: os.killpg(run.pid, signal.SIGINT),
            "kill": run.kill,
        }[end]()
        try:
            said, _ = run.communicate(timeout=60)
        finally:
            run.kill()
        assert said == ("" if end == "kill" else "stopped\n")
    until = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < until:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))
    assert len(list(tmp_path.glob("fold_*/pid"))) == n_jobs  # the next one did not begin
    assert len(list(tmp_path.glob("*/running.json"))) == (n_jobs if end == "kill" else 0)


def test_an_error_in_one_job_ends_the_others(tmp_path):
    def fail():
        while not (tmp_path / "fold_1" / "pid").exists():
            time.sleep(0.05)
        raise ValueError("of one")

    def wait():
        (tmp_path / "fold_1" / "pid").touch()
        time.sleep(600)

    job = joblib.delayed(processes.run_apart)
    jobs = [job(tmp_path / f"fold_{n}", function) for n, function in enumerate((fail, wait))]
    with pytest.raises(ValueError, match="of one"):
        processes.run_all(jobs, 2, tmp_path)
    assert not list(tmp_path.glob("*/running.json"))


@pytest.fixture
def follow(tmp_path, monkeypatch):
    """Return functions that end an epoch of a fold, and that make a follower of two folds."""
    monkeypatch.setattr(drive, "LOOK_SECONDS", 0.01)
    (tmp_path / "experiment.json").write_text('{"settings": 1}')
    for module in (processes, layout):  # without the schemas
        monkeypatch.setattr(module, "read_json", lambda path: json.loads(path.read_text()))

    def end_epoch(fold, epochs):
        names = [f"{part}{name}" for part in ("", "val_") for name in ("loss", "accuracy", "dice")]
        path = tmp_path / f"fold_{fold}" / "history.csv"
        path.parent.mkdir(exist_ok=True)
        part = path.with_suffix(".part")
        table = pd.DataFrame([dict.fromkeys(names, 0.1 * n) | {"epoch": n} for n in range(epochs)])
        table.to_csv(part, index=False)
        part.replace(path)

    return end_epoch, lambda **kwargs: processes.Follower(tmp_path, [0, 1], 3, **kwargs)


def lines(capsys):
    return [line.split("  ")[0] for line in capsys.readouterr().out.splitlines()]


def test_each_new_epoch_has_one_line_the_last_ones_too(follow, capsys):
    end_epoch, make = follow
    end_epoch(0, 1)  # of the run before
    with make():
        end_epoch(0, 2)
        end_epoch(1, 3)
    assert lines(capsys) == [
        *("fold 0 epoch 2/3", "fold 1 epoch 1/3", "fold 1 epoch 2/3", "fold 1 epoch 3/3")
    ]


def test_a_line_tells_the_values_and_the_time_left_for_all_folds(follow, capsys):
    end_epoch, make = follow
    follower = make()
    follower.started = time.monotonic() - 120
    end_epoch(0, 2)
    follower._look()
    [_, last] = capsys.readouterr().out.splitlines()
    # 2 of 6 epochs in 2 minutes
    values = "loss 0.100 (val 0.100)  accuracy 0.100 (val 0.100)  Dice 0.100 (val 0.100)"
    assert last == f"fold 0 epoch 2/3  {values}  4:00 min left"


def test_an_epoch_that_is_trained_again_has_a_line(follow, capsys):
    end_epoch, make = follow
    end_epoch(0, 2)  # whose last state is then found to be damaged
    with make():
        end_epoch(0, 2)
    assert lines(capsys) == ["fold 0 epoch 2/3"]


@pytest.fixture
def copies(monkeypatch):
    """Copies to Drive are only noted; they work unless the list `fails` says otherwise."""
    made, fails = [], []
    monkeypatch.setattr(
        drive, "back_up", lambda *_: made.append(1) or not (fails.pop() if fails else False)
    )
    return made, fails


def test_drive_gets_a_copy_when_a_fold_ends_and_again_if_that_failed(follow, copies, tmp_path):
    end_epoch, make = follow
    made, fails = copies
    follower = make(backup_dir=tmp_path / "drive")
    end_epoch(0, 1)
    follower._look()
    assert made == []
    (tmp_path / "fold_0" / "done.json").write_text('{"minutes": 1.25}')
    fails.append(True)
    follower._look()
    follower._look()
    assert len(made) == 1  # not every second
    end_epoch(1, 1)
    follower._look()
    end_epoch(1, 2)
    follower._look()
    assert len(made) == 2
    assert json.loads((tmp_path / "experiment.json").read_text()) == {"settings": 1, "minutes": 1.2}


def test_drive_gets_a_copy_after_an_epoch_every_quarter_of_an_hour(follow, copies, tmp_path):
    end_epoch, make = follow
    follower = make(backup_dir=tmp_path / "drive")
    for minutes, epochs, expected in ((14, 1, 0), (16, 1, 0), (16, 2, 1), (1, 3, 1)):
        if epochs > follower.rows[0]:
            end_epoch(0, epochs)
        follower.saved = time.monotonic() - 60 * minutes
        follower._look()
        assert len(copies[0]) == expected


def test_drive_gets_a_copy_at_the_end_whatever_ended_it(follow, copies, tmp_path):
    _, make = follow
    with make(backup_dir=tmp_path / "drive"):
        pass
    assert len(copies[0]) == 1
    with pytest.raises(KeyboardInterrupt), make(backup_dir=tmp_path / "drive"):
        raise KeyboardInterrupt
    assert len(copies[0]) == 2


def test_a_folder_that_is_away_for_a_while_stops_nothing(follow, capsys, monkeypatch):
    end_epoch, make = follow
    follower = make()
    end_epoch(0, 1)
    with monkeypatch.context() as patch:
        patch.setattr(pd, "read_csv", lambda path: os.stat("/nowhere"))
        follower._look()
    end_epoch(0, 2)
    follower._look()
    assert lines(capsys) == ["fold 0 epoch 1/3", "fold 0 epoch 2/3"]


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, ValueError])
def test_a_keeper_copies_while_work_goes_on_and_however_it_ends(error, tmp_path, monkeypatch):
    monkeypatch.setattr(drive, "LOOK_SECONDS", 0.01)
    monkeypatch.setattr(drive, "BACK_UP_SECONDS", 0)
    work, kept = tmp_path / "work", tmp_path / "drive"
    ends = pytest.raises(error) if error else contextlib.nullcontext()
    with ends, drive.Keeper(work, kept) as keeper:
        _base.write_file(work / "a", b"1")
        while not (kept / "a").exists():
            time.sleep(0.01)
        monkeypatch.setattr(drive, "BACK_UP_SECONDS", 900)
        _base.write_file(work / "b", b"2")
        if error:
            raise error
    assert (kept / "b").read_bytes() == b"2"
    assert not keeper.thread.is_alive()


def test_a_keeper_waits_between_two_copies_and_does_nothing_without_a_drive(tmp_path, monkeypatch):
    calls = []
    monkeypatch.setattr(drive, "back_up", lambda *folders: bool(calls.append(folders)))
    keeper = drive.Keeper(tmp_path, tmp_path / "drive")
    for minutes, copies in ((14, 0), (16, 1), (0, 1)):  # after one that failed too
        keeper.saved -= 60 * minutes
        keeper._look()
        keeper.saved += 60 * minutes * (minutes == 14)
        assert len(calls) == copies
    with drive.Keeper(tmp_path) as keeper:
        keeper.saved -= 3600
        keeper._look()
    assert len(calls) == 1


def kept(number):
    return os.getpid(), number


def fail(number):
    raise KeyError(number)


def leave(number):
    os._exit(number)


def test_calls_share_a_process_until_it_dies():
    try:
        first, second = (processes.call_apart(kept, number) for number in (1, 2))
        assert first[0] == second[0] != os.getpid()
        assert (first[1], second[1]) == (1, 2)
        with pytest.raises(KeyError, match="7"):
            processes.call_apart(fail, 7)
        assert processes.call_apart(kept, 3) == (first[0], 3)  # an error is not a death
        with pytest.raises(processes.ProcessDiedError, match="memory"):
            processes.call_apart(leave, 9)
        again = processes.call_apart(kept, 4)
        assert again[0] != first[0]
    finally:
        processes.end_calls()
    until = time.monotonic() + 10
    while is_alive(again[0]) and time.monotonic() < until:
        time.sleep(0.05)
    assert not is_alive(again[0])
