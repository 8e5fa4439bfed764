"""One run at a time in a folder."""

import contextlib
import os
import platform
import threading
import time
from pathlib import Path

from unetseg._base import write_json
from unetseg.run.layout import LOCK, read_json

STALE = 180  # seconds without a sign of life


@contextlib.contextmanager
def only_run(*folders):
    """Keep folders from being used by two runs at once.

    Parameters
    ----------
    *folders : Path or None
        Each gets ``running.json`` with host, process and the time, renewed every minute, and
        loses it at the end.

    Raises
    ------
    RuntimeError
        If another run is alive: on this machine by its process, elsewhere by the renewal of its
        lock, for which three minutes are waited. A lock that nobody renews is taken over.
    """
    paths = [Path(folder) / LOCK for folder in folders if folder]
    for path in paths:
        if path.is_file():
            _take_over(path)
    ended = threading.Event()
    _sign(paths)
    thread = threading.Thread(target=_renew, args=(paths, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


def _take_over(path):
    other = _read_lock(path)
    who = f"process {other['pid']} on {other['host']}"
    if _is_renewed(path, other, who):
        advice = "Wait for it or stop it. Remove this file only if you are sure that it ended."
        raise RuntimeError(f"{path}: another run uses this folder ({who}). {advice}")
    print(f"{path}: taken over from {who}, which ended without a word.")


def _is_renewed(path, other, who):
    if time.time() - other["time"] >= STALE:
        return False
    if other["host"] == platform.node() and os.name == "posix":
        return _is_alive(other["pid"])
    print(f"{path}: waiting {STALE:.0f} seconds for a sign of life of {who}.")
    time.sleep(STALE)
    return path.is_file() and _read_lock(path) != other


def _renew(paths, ended):
    while not ended.wait(STALE / 3):
        _sign(paths)


def _sign(paths):
    for path in paths:
        with contextlib.suppress(OSError):  # Drive may be away for a while
            write_json(path, {"host": platform.node(), "pid": os.getpid(), "time": time.time()})


def _read_lock(path):
    try:
        return read_json(path)
    except ValueError:  # Drive lost its content
        return {"host": "?", "pid": "?", "time": path.stat().st_mtime}


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return pid != os.getpid()  # an earlier run of this very process has ended
