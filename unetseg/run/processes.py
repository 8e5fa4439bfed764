"""Folds and scans in processes of their own, and what is seen of the folds from outside."""

import contextlib
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import warnings
from pathlib import Path

import joblib
import pandas as pd
from loky import ProcessPoolExecutor
from loky.process_executor import BrokenProcessPool, TerminatedWorkerError

from unetseg._base import write_json
from unetseg.run.drive import Keeper
from unetseg.run.layout import FINAL, Run, read_json
from unetseg.run.lock import only_run

KEEP_SECONDS = 60  # on machines that `end_calls` does not reach, such as those of a cluster
_RUNNING = {}  # folder: executor
_IDLE, _BUSY = [], {}  # of `call_apart`


def run_apart(folder, function, *args, **kwargs):
    """Call a function that works in a folder, in a fresh process that ends with the call.

    It also ends, at once, if this process does. Where this process holds a TPU, which no other
    can have then, the function is called here.

    Parameters
    ----------
    folder : Path
        Locked by `only_run` for the time of the call.
    function : callable
        May be defined in a notebook. What it returns is dropped, what it raises is raised here
        and what it warns of is warned of here.
    *args, **kwargs
        Of the function.

    Raises
    ------
    RuntimeError
        If the process dies, or another one uses the folder.
    """
    if _holds_tpu():
        with only_run(folder):
            function(*args, **kwargs)
        return
    multiprocessing.current_process().daemon = False  # of Dask's workers; may have children now
    ours, theirs = multiprocessing.Pipe()
    executor = ProcessPoolExecutor(1, initializer=_end_with, initargs=(theirs,))
    _RUNNING[folder] = executor
    try:
        with only_run(folder):
            try:
                caught = executor.submit(_call, function, args, kwargs).result()
                executor.shutdown()
            finally:
                executor.shutdown(kill_workers=True)
    except TerminatedWorkerError as error:
        cause = "Most often memory ran out: take a smaller patch or batch, or fewer n_jobs."
        advice = "Run this again: it goes on from the last full epoch."
        raise RuntimeError(
            f"{folder}: the process that trained here died. {cause} {advice}"
        ) from error
    finally:
        ours.close()
        theirs.close()
        del _RUNNING[folder]
    for warning in caught:
        warnings.warn_explicit(*warning)


class ProcessDiedError(RuntimeError):
    """A process ended in the middle of a call."""


def call_apart(function, *args):
    """Call a function in another process, which is kept for the next call.

    So what it loads is loaded once, and if it is killed, this process goes on and the next call
    has a new one. `end_calls` ends it; without calls it ends itself after a while.

    Parameters
    ----------
    function : callable
        May be defined in a notebook.
    *args
        Of the function.

    Returns
    -------
    object
        What the function returns. What it raises is raised here.

    Raises
    ------
    ProcessDiedError
        If the process dies.
    """
    if _holds_tpu():
        return function(*args)
    multiprocessing.current_process().daemon = False  # of Dask's workers; may have children now
    try:
        executor, pipe = _IDLE.pop()
    except IndexError:
        pipe = multiprocessing.Pipe()
        executor = ProcessPoolExecutor(
            1, initializer=_end_with, initargs=(pipe[1],), timeout=KEEP_SECONDS
        )
    _BUSY[id(executor)] = executor
    try:
        result = executor.submit(function, *args).result()
    except BaseException as error:
        if isinstance(error, Exception) and not isinstance(error, BrokenProcessPool | OSError):
            _IDLE.append((executor, pipe))  # of the function: the process is as it was
            raise
        executor.shutdown(kill_workers=True)
        if isinstance(error, BrokenProcessPool):
            raise ProcessDiedError("the process died, most often because memory ran out") from error
        raise
    finally:
        del _BUSY[id(executor)]
    _IDLE.append((executor, pipe))
    return result


def limit_jobs(n_jobs):
    """Allow no more than one job at once where this process holds a TPU and does all itself."""
    return 1 if _holds_tpu() else n_jobs


def _holds_tpu():
    # A TPU serves one process alone, and this one has it as soon as Keras has looked for it.
    if "jax" not in sys.modules:
        return False
    from unetseg.run.devices import list_devices  # here, as Keras takes seconds

    return list_devices()[0] == "tpu"


def end_calls():
    """End the processes of `call_apart`, those in the middle of a call too."""
    while _BUSY or _IDLE:
        for executor in [*_BUSY.values(), *(executor for executor, _ in _IDLE)]:
            executor.shutdown(kill_workers=True)
        _IDLE.clear()
        time.sleep(0.01)  # until their threads have cleaned up


def _end_with(connection):
    # Ctrl-C and a notebook's stop button reach all processes: the first one alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(OSError):  # where memory runs out, this process is to be killed first
        Path("/proc/self/oom_score_adj").write_text("500")
    threading.Thread(target=_wait_for_end, args=(connection,), daemon=True).start()
    # Several networks in turn are no mistake, whatever TensorFlow says of retracing.
    logging.getLogger("tensorflow").setLevel(logging.ERROR)
    import keras  # noqa: F401


def _wait_for_end(connection):
    with contextlib.suppress(EOFError, OSError):
        connection.recv()  # nothing is ever sent
    os._exit(1)


def _call(function, args, kwargs):
    with warnings.catch_warnings(record=True) as caught:
        function(*args, **kwargs)
    return [(str(one.message), one.category, one.filename, one.lineno) for one in caught]


def run_all(jobs, n_jobs, folder):
    """Run jobs through joblib; whatever ends this, no process of theirs on this machine goes on.

    Parameters
    ----------
    jobs : sequence
        Calls of `run_apart`, made by `joblib.delayed`, for folders inside `folder`.
    n_jobs : int or None
        As for `joblib.Parallel`.
    folder : Path
    """
    try:
        joblib.Parallel(n_jobs=limit_jobs(n_jobs), prefer="threads", batch_size=1)(jobs)
    finally:
        while own := [one for path, one in list(_RUNNING.items()) if path.parent == folder]:
            for executor in own:
                executor.shutdown(kill_workers=True)
            time.sleep(0.01)  # until their threads have cleaned up


class Follower(Keeper):
    """Tells of each epoch of some folds, and copies the results to Drive, while they are trained.

    A context manager. All it knows of the folds is in their folders, so they may be trained
    anywhere.

    Parameters
    ----------
    results_dir : Path
    numbers : sequence of int
        Of the folds.
    epochs : int
        Of each fold.
    backup_dir : Path, optional
        Gets a copy when a fold is finished, at the end, and after an epoch every quarter of an
        hour. A copy that failed is tried again after the next epoch.
    """

    def __init__(self, results_dir, numbers, epochs, backup_dir=None):
        super().__init__(results_dir, backup_dir)
        self.epochs, self.due = epochs, False
        self.run = Run(results_dir)
        self.paths = {n: self.run.fold(n).history for n in numbers}
        self.stamps, self.rows = dict.fromkeys(numbers), dict.fromkeys(numbers, 0)
        for number, path in self.paths.items():
            if path.exists():  # of an interrupted run
                self.stamps[number] = path.stat().st_mtime_ns
                self.rows[number] = len(pd.read_csv(path))
        self.before, self.finished = sum(self.rows.values()), self._count_finished()

    def _look(self):
        with contextlib.suppress(OSError):  # a network folder may be away for a while
            news = [self._tell(number) for number in self.paths]
            if (finished := self._count_finished()) > self.finished:
                self.finished, self.due = finished, True
                done = self.run.read_models().values()
                minutes = round(sum(fold["minutes"] for fold in done), 1)
                experiment = read_json(self.run.experiment)
                write_json(self.run.experiment, experiment | {"minutes": minutes})
                news.append(True)
            if any(news) and (self.due or self._is_late()):
                self.due = not self._save()

    def _count_finished(self):
        return sum(self.run.fold(number).done.exists() for number in self.paths)

    def _tell(self, number):
        path = self.paths[number]
        if not path.exists() or (stamp := path.stat().st_mtime_ns) == self.stamps[number]:
            return False
        table = pd.read_csv(path)
        self.stamps[number] = stamp
        for epoch in range(min(self.rows[number], len(table) - 1), len(table)):
            self.rows[number] = epoch + 1
            done = sum(self.rows.values())
            left = (len(self.rows) * self.epochs - done) / max(1, done - self.before)
            minutes, seconds = divmod(round(left * (time.monotonic() - self.started)), 60)
            values = _describe_epoch(table.loc[epoch])
            which = number if number == FINAL else f"fold {number}"
            title = f"{which} epoch {epoch + 1}/{self.epochs}"
            print(title, *values, f"{minutes}:{seconds:02d} min left", sep="  ", flush=True)
        return True


def _describe_epoch(row):
    texts = []
    for title, name in (("loss", "loss"), ("accuracy", "accuracy"), ("Dice", "dice")):
        validated = f" (val {row[f'val_{name}']:.3f})" if f"val_{name}" in row else ""
        texts.append(f"{title} {row[name]:.3f}{validated}")
    return texts
