import json
import os
import platform
import subprocess
import sys
import time

import pytest

from unetseg.run import lock


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
    monkeypatch.setattr(lock.time, "sleep", lambda seconds: lock_of(tmp_path, pid=77))
    with (
        pytest.raises(RuntimeError, match=r"running.json: another run .*process 77 on elsewhere"),
        lock.only_run(tmp_path),
    ):
        pytest.fail("ran")
    assert json.loads((tmp_path / "running.json").read_text())["pid"] == 77


def test_a_lock_of_a_machine_that_was_cut_off_just_now_is_waited_for(tmp_path, monkeypatch):
    waited = []
    lock_of(tmp_path)
    monkeypatch.setattr(lock.time, "sleep", waited.append)
    with lock.only_run(tmp_path):
        assert json.loads((tmp_path / "running.json").read_text())["pid"] == os.getpid()
    assert waited == [180]


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
    monkeypatch.setattr(lock.time, "sleep", waited.append)
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
