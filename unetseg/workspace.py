"""Where the files are: Colab or local, Google Drive, safe copies."""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

# By its full name, as the package itself asks this module how to import its modules.
import unetseg.fingerprints as fingerprints
from unetseg.disk import explain_full, require_room_for_copies
from unetseg.fingerprints import sha256
from unetseg.machine import computes_on_gpu as computes_on_gpu  # for those who ask here
from unetseg.machine import describe_hardware as describe_hardware
from unetseg.machine import describe_machine as describe_machine
from unetseg.schemas import read_json

DRIVE = Path("/content/drive/MyDrive")
LOCAL = Path("/content")
LOCK, STALE = "running.json", 180  # seconds without a sign of life
PASSING = re.compile(rf"{LOCK}|.*\.part|part-.*\.weights\.h5|\.part-.*")  # never copied
DONE = "done.json"  # copied last: where it is, everything else is


class Workspace(NamedTuple):
    """Folders of one experiment.

    ``data``: the scans, on a local disk. ``results``: what the notebooks write, on a local disk.
    ``backup``: the same on Google Drive, or None outside Colab.
    """

    data: Path
    results: Path
    backup: Path | None


def in_colab():
    """Whether this is a Google Colab runtime."""
    return "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules


def project_dir():
    """Folder that holds the package, and in a checkout the notebooks beside it."""
    return Path(__file__).resolve().parent.parent


def base_dir():
    """Folder at which relative paths of the settings start."""
    return DRIVE / "unetseg" if in_colab() else project_dir()


def install_missing():
    """Install what the project needs and the runtime lacks; touch no package that is there.

    Does nothing outside Colab.

    Returns
    -------
    list of str
        Names of the packages that were installed.

    Raises
    ------
    subprocess.CalledProcessError
        If pip fails.
    """
    if not in_colab():
        return []
    text = (project_dir() / "requirements.txt").read_text(encoding="utf-8")
    names = re.findall(r"^[A-Za-z][\w.-]*", text, re.MULTILINE)
    missing = [name for name in names if not any(importlib.metadata.distributions(name=name))]
    if missing:
        pip = [sys.executable, "-m", "pip"]
        with tempfile.TemporaryDirectory() as folder:
            pins = Path(folder) / "present.txt"  # pip then takes versions that go with these
            pins.write_bytes(subprocess.check_output([*pip, "list", "--format=freeze"]))
            subprocess.check_call([*pip, "install", "-q", "-c", str(pins), *missing])
    return missing


def prepare(data, experiment, results="results", *, need_data=True):
    """Make the folders of an experiment ready on the local disk.

    On a laptop the folders are used where they are. In Colab the scans are copied from Drive to
    the local disk once, and earlier results of the experiment are fetched from Drive.

    Parameters
    ----------
    data : str or Path
        Folder of the scans: absolute, or relative to the project (in Colab: to
        ``MyDrive/unetseg``). The word ``sample`` stands for the embedded data set.
    experiment : str
        Name of the experiment's own folder among the results.
    results : str or Path, default "results"
        Folder of all results, absolute or relative like `data`.
    need_data : bool, default True
        Whether a missing data folder is an error.

    Returns
    -------
    Workspace

    Raises
    ------
    ValueError
        If `experiment` is not a plain name.
    FileNotFoundError
        If there is no such data folder and it is needed.
    """
    plain = re.fullmatch(r"[\w.-]*\w[\w.-]*", experiment)
    require("EXPERIMENT", experiment, plain, "a plain name of letters, digits, '.', '_' and '-'")
    base, here = base_dir(), LOCAL if in_colab() else project_dir()
    sample = str(data) == "sample"
    folder = here / "data" / "sample" if sample else base / Path(data).expanduser()
    if need_data and not sample and not folder.is_dir():
        allowed = f"the folder of your scans, absolute or relative to {base}, or to 'sample'"
        raise FileNotFoundError(f"{folder}: no such folder. Set DATA (or SCANS) to {allowed}.")
    kept = base / Path(results).expanduser() / experiment
    if not in_colab():
        return Workspace(folder, kept, None)
    local = folder if sample else LOCAL / "data" / folder.relative_to(folder.anchor)
    usual = kept.parent == base / "results"
    other = Path("other_results") / kept.parent.relative_to(kept.anchor)
    place = Workspace(local, LOCAL / ("results" if usual else other) / experiment, kept)
    if not sample:
        _fetch_data(folder, place.data)
    if place.backup.is_dir():
        mirror(place.backup, place.results, overwrite=False)
        mirror(place.backup, place.results, ["splits.json"])  # it may be edited there
    return place


def _fetch_data(folder, local):
    if folder.is_dir():
        require_room_for_copies(folder, local)
        mirror(folder, local)
        _remove_gone(folder, local)
    elif local.is_dir():
        print(f"{folder}: not there now. What was copied from it before is used: {local}.")


def _remove_gone(folder, local):
    """Remove from a local copy what is not on Drive any more, and say so.

    Only what was copied from there, and is as it was copied, is removed. A folder that is there,
    but without a single file, is more likely a Drive that does not answer than one that was
    emptied: what was copied from it stays.
    """
    removed, doubted, foreign = [], [], []
    nothing = not any(path.is_file() for path in folder.rglob("*"))
    with _kept_fingerprints():
        for copy in sorted(path for path in local.rglob("*") if path.is_file()):
            name = copy.relative_to(local)
            original = folder / name
            if PASSING.fullmatch(copy.name) or _is_there(original):
                continue
            if nothing or _lists_nothing(original.parent):
                doubted.append(str(name))
            elif _is_as_copied(original, copy):
                copy.unlink()
                fingerprints.forget(copy)
                fingerprints.forget(original)
                removed.append(str(name))
            else:
                foreign.append(str(name))
    for names, found in (
        (removed, f"not on Drive any more, so gone from the copy in {local}"),
        (doubted, f"not listed in a folder without any file: does Drive answer? Kept in {local}"),
        (foreign, f"not on Drive, and not as copied from there; kept in {local}"),
    ):
        if names:
            print(f"{folder}: {len(names)} files are {found}: {', '.join(names)}.")


def _is_there(path):
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True  # an error of any other kind says nothing about the file, so it is raised


def _is_as_copied(original, copy):
    digest = fingerprints.find_last(original)
    return digest is not None and digest == fingerprints.find_known(copy)


def _lists_nothing(folder):
    return folder.is_dir() and not os.listdir(folder)


@contextlib.contextmanager
def _kept_fingerprints():
    """Know in this process what others on this virtual machine have read, and tell them."""
    path = LOCAL / "fingerprints.json"
    if not in_colab():
        yield
        return
    if path.is_file():
        with contextlib.suppress(OSError, ValueError):  # without it files are read once more
            fingerprints.learn(read_json(path))
    before = fingerprints.list_known()
    try:
        yield
    finally:
        if fingerprints.list_known() != before:
            with contextlib.suppress(OSError):
                write_json(path, fingerprints.list_known())


def mirror(source, target, patterns=("**/*",), *, overwrite=True):
    """Copy every file that is new or changed, each one whole or not at all.

    A file arrives as ``name.part``, is read back and compared by hash, and is then renamed. The
    markers ``done.json`` come last, and only if no copy failed. Nothing is deleted in `target`.
    What is known to be the same on both sides is not read again: see
    `unetseg.fingerprints.fingerprint`, also for what that cannot tell.

    Parameters
    ----------
    source, target : Path
    patterns : sequence of str, default ("**/*",)
        Which files, relative to `source`.
    overwrite : bool, default True
        Whether to replace files of `target` that differ.

    Returns
    -------
    int
        How many files were copied.

    Raises
    ------
    OSError
        If a copy fails or does not hold what was written to it: after all others were tried;
        names the files.
    """
    source, target = Path(source), Path(target)
    copied, failed = 0, {}
    with _kept_fingerprints():
        for path in _list_files(source, patterns):
            name = path.relative_to(source)
            if not _is_wanted(path, target / name, failed):
                continue
            try:
                copied += _copy(path, target / name, overwrite)
            except OSError as error:
                if path.exists():  # else it was removed meanwhile
                    failed[name] = error
    if failed:
        names, first = ", ".join(map(str, failed)), next(iter(failed.values()))
        raise OSError(f"{target}: {len(failed)} files are not there yet: {names} ({first}).")
    return copied


def _list_files(source, patterns):
    # Twice, so that of a fold which ends meanwhile the marker does not come without the rest.
    first = {path for pattern in patterns for path in source.glob(pattern)}
    found = {path for pattern in patterns for path in source.glob(pattern)}
    files = []
    for path in found:
        late = path.name == DONE and path not in first
        if path.is_file() and not late and not PASSING.fullmatch(path.name):
            files.append(path)
    return sorted(files, key=lambda path: (path.name == DONE, path))


def _is_wanted(path, copy, failed):
    if path.name == DONE:
        return not failed
    finished = copy.with_name(DONE).is_file()
    return not (finished and path.suffix == ".state")  # of a finished fold no state is wanted


def _copy(path, copy, overwrite):
    if copy.is_file() and (not overwrite or _hold_the_same(path, copy)):
        return False
    if overwrite:
        copy.with_name(DONE).unlink(missing_ok=True)
    stamp = fingerprints.stamp_of(path)
    data = path.read_bytes()
    write_file(copy, data)
    digest = hashlib.sha256(data).hexdigest()
    fingerprints.remember(path, digest, stamp)
    fingerprints.remember(copy, digest)
    return True


def _hold_the_same(path, copy):
    if path.stat().st_size != copy.stat().st_size:
        return False
    one, other = fingerprints.fingerprint(path), fingerprints.fingerprint(copy)
    return one["sha256"] == other["sha256"]


def back_up(source, target):
    """Copy results to Drive; if that fails, say what is not safe yet instead of stopping.

    Parameters
    ----------
    source, target : Path
        As for `mirror`. What failed is tried again by the next call.

    Returns
    -------
    bool
        Whether all files are there.
    """
    try:
        mirror(source, target)
        left = [p for p in Path(target).glob("*/?.state") if p.with_name(DONE).is_file()]
        for path in (*left, *Path(target).rglob("*.part")):  # nothing is under way any more
            path.unlink(missing_ok=True)
    except OSError as error:
        print(f"NOT SAFE ON DRIVE YET: {error} All of it is on the local disk, in {source}.")
        return False
    return True


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
    for path in [path for path in paths if path.is_file()]:
        other = _read_lock(path)
        who = f"process {other['pid']} on {other['host']}"
        alive = time.time() - other["time"] < STALE
        if alive and other["host"] == platform.node() and os.name == "posix":
            alive = _is_alive(other["pid"])
        elif alive:
            print(f"{path}: waiting {STALE:.0f} seconds for a sign of life of {who}.")
            time.sleep(STALE)
            alive = path.is_file() and _read_lock(path) != other
        if alive:
            advice = "Wait for it or stop it. Remove this file only if you are sure that it ended."
            raise RuntimeError(f"{path}: another run uses this folder ({who}). {advice}")
        print(f"{path}: taken over from {who}, which ended without a word.")
    stop = threading.Event()

    def sign():
        for path in paths:
            with contextlib.suppress(OSError):  # Drive may be away for a while
                about = {"host": platform.node(), "pid": os.getpid(), "time": time.time()}
                write_json(path, about)

    def renew():
        while not stop.wait(STALE / 3):
            sign()

    sign()
    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        for path in paths:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)


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


def write_file(path, data):
    """Write a file so that it is there whole or not at all.

    Parameters
    ----------
    path : str or Path
        Its folder is made if needed.
    data : bytes

    Raises
    ------
    OSError
        If the disk is full, or what was written does not read back the same.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        with explain_full(path.parent, path.name):
            part.write_bytes(data)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)  # or a full disk stays full
        raise
    if sha256(part) != hashlib.sha256(data).hexdigest():
        raise OSError(f"{part}: reads back differently from what was written. Is the disk full?")
    os.replace(part, path)


def write_json(path, value):
    """Write a value as JSON, whole or not at all."""
    write_file(path, json.dumps(value, indent=1).encode())


def read_folds(results_dir, folds=None):
    """Read what the finished folds of an experiment say of themselves.

    Parameters
    ----------
    results_dir : str or Path
    folds : iterable of int, optional
        By default every fold that is finished.

    Returns
    -------
    dict of Path to dict
        The folder and the ``done.json`` of each, in the order of their numbers.

    Raises
    ------
    FileNotFoundError
        If no fold is finished, or one that was asked for is not.
    ValueError
        If a ``done.json`` is damaged.
    """
    paths = sorted(Path(results_dir).glob(f"fold_*/{DONE}"), key=lambda p: int(p.parent.name[5:]))
    if folds is not None:
        paths = [Path(results_dir) / f"fold_{fold}" / DONE for fold in folds]
    missing = [path.parent.name for path in paths if not path.is_file()]
    if missing or not paths:
        which = f"{', '.join(missing)} is not a" if missing else "no"
        raise FileNotFoundError(f"{results_dir}: {which} finished fold. Run 02_train_kfold first.")
    return {path.parent: read_json(path) for path in paths}


@contextlib.contextmanager
def hushed():
    """Keep back the lines that TensorFlow writes as it starts, which no log level silences.

    What was written to the error output before an exception is shown.
    """
    with tempfile.TemporaryFile() as kept:
        shown = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except BaseException:
            kept.seek(0)
            os.write(shown, kept.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


def require(name, value, fits, allowed):
    """Stop with one error that names an argument, what is allowed and what was received.

    Raises
    ------
    ValueError
        If `fits` is false.
    """
    if not fits:
        raise ValueError(f"{name} must be {allowed}. Received: {name}={value!r}")


def refuse_any(names, subject, problem, advice, error=ValueError):
    """Stop with one error that counts and lists what is wrong, and says what to do.

    Raises
    ------
    ValueError or what `error` names
        If there is any name.
    """
    if names:
        raise error(f"{subject} {len(names)} {problem}: {', '.join(names)}. {advice}")
