"""Google Drive and the local disk of Colab: what is copied between them, and when."""

import contextlib
import hashlib
import os
import re
import sys
import threading
import time
import unicodedata
from pathlib import Path

from unetseg._base import write_file, write_json
from unetseg.run import fingerprints
from unetseg.run.layout import DONE, LOCK, Batch, Run, read_json
from unetseg.run.machine import require_room_for_copies

DRIVE = Path("/content/drive/MyDrive")
LOCAL = Path("/content")
LOOK_SECONDS = 1
BACK_UP_SECONDS = 900  # not after each epoch: Drive's trash keeps what is overwritten
PASSING = re.compile(rf"{LOCK}|.*\.part|part-.*\.weights\.h5|\.part-.*")  # never copied


def in_colab():
    """Whether this is a Google Colab runtime."""
    return "COLAB_RELEASE_TAG" in os.environ or "google.colab" in sys.modules


def project_dir():
    """Folder that holds the package, and in a checkout the notebooks beside it."""
    return Path(__file__).resolve().parents[2]


def base_dir():
    """Folder at which relative paths of the settings start."""
    return DRIVE / "unetseg" if in_colab() else project_dir()


def origin(path):
    """Say where the user keeps a file or folder, so that it is known again in another session.

    Parameters
    ----------
    path : str or Path
        Also a copy on the local disk of Colab, as `unetseg.workspace.prepare` makes them.

    Returns
    -------
    str
        Relative to the project (in Colab: to ``MyDrive/unetseg``) if it lies there, else
        absolute; without links, ``..`` and the like.
    """
    path = Path(path).resolve()
    copies = (LOCAL / "data").resolve()
    if in_colab() and path.is_relative_to(copies):
        original = Path(path.anchor) / path.relative_to(copies)
        path = original.resolve() if original.exists() else path
    base = base_dir().resolve()
    path = path.relative_to(base) if path.is_relative_to(base) else path
    return unicodedata.normalize("NFC", path.as_posix())


def fetch_data(folder, local):
    """Copy a data set to the local disk, as far as it is not there; what is gone there goes here.

    Parameters
    ----------
    folder : Path
        On Drive; if it is away, what was copied before is used, and that is said.
    local : Path

    Raises
    ------
    OSError
        If there is no room, or as `copy_new`.
    """
    if folder.is_dir():
        require_room_for_copies(folder, local)
        copy_new(folder, local)
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
    lists_nothing = not _lists_a_file(folder)
    with _kept_fingerprints():
        for copy in sorted(path for path in local.rglob("*") if path.is_file()):
            name = copy.relative_to(local)
            original = folder / name
            if PASSING.fullmatch(copy.name) or _is_there(original):
                continue
            if lists_nothing or _is_without_files(original.parent):
                doubted.append(str(name))
            elif _is_as_copied(original, copy):
                _remove(original, copy)
                removed.append(str(name))
            else:
                foreign.append(str(name))
    _say(folder, removed, f"not on Drive any more, so gone from the copy in {local}")
    doubt = f"not listed in a folder without any file: does Drive answer? Kept in {local}"
    _say(folder, doubted, doubt)
    _say(folder, foreign, f"not on Drive, and not as copied from there; kept in {local}")


def _remove(original, copy):
    copy.unlink()
    fingerprints.forget(copy)
    fingerprints.forget(original)


def follow_removed(results_dir, backup_dir, patterns):
    """Remove results here that a person removed on Drive, and say so.

    Parameters
    ----------
    results_dir, backup_dir : Path
        An experiment here and on Drive.
    patterns : sequence of str
        Which files, relative to `results_dir`. Only those that were the same on both sides, and
        are as they were then, are removed; none if the experiment on Drive lists no file.
    """
    if not _lists_a_file(backup_dir):  # does Drive answer?
        return
    removed = []
    with _kept_fingerprints():
        for own in _list_files(results_dir, patterns):
            there = backup_dir / own.relative_to(results_dir)
            before = None if _is_there(there) else fingerprints.find_agreement(there, own)
            if before and before == fingerprints.fingerprint(own)["sha256"]:
                _remove(there, own)
                removed.append(str(own.relative_to(results_dir)))
    _say(backup_dir, removed, f"not on Drive any more, so gone from {results_dir}")


def _say(folder, names, what):
    if names:
        print(f"{folder}: {len(names)} files are {what}: {', '.join(names)}.")


def _is_there(path):
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True  # an error of any other kind says nothing about the file, so it is raised


def _is_as_copied(original, copy):
    digest = fingerprints.find_last(original)
    return digest is not None and digest == fingerprints.find_known(copy)


def _lists_a_file(folder):
    return any(path.is_file() for path in folder.rglob("*"))


def _is_without_files(folder):
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


def copy_new(source, target, patterns=("**/*",), *, overwrite=True):
    """Copy every file that is new or changed there, each one whole or not at all.

    What two files held when they were last the same is noted. One that has changed since in
    `target` alone is newer there, such as by a notebook on another machine, and stays.

    A file arrives as ``name.part``, is read back and compared by hash, and is then renamed. The
    markers ``done.json`` come last, and only if no copy failed. Nothing is deleted in `target`.
    What is known to be the same on both sides is not read again: see
    `unetseg.run.fingerprints.fingerprint`, also for what that cannot tell. Labels of new scans
    that a person corrected in `target` stay.

    Parameters
    ----------
    source, target : Path
    patterns : sequence of str, default ("**/*",)
        Which files, relative to `source`.
    overwrite : bool, default True
        Whether to replace files of `target` that differ, if it is not known that they are newer.
        Otherwise only those are replaced that are known to be as they were when both were the
        same.

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
            try:
                if _is_wanted(path, target / name, failed) and _copy(
                    path, target / name, overwrite
                ):
                    copied += 1
            except OSError as error:
                if path.exists():  # else it was removed meanwhile
                    failed[name] = error
    if failed:
        names, first = ", ".join(map(str, failed)), next(iter(failed.values()))
        raise OSError(f"{target}: {len(failed)} files are not there yet: {names} ({first}).")
    return copied


def _list_files(source, patterns):
    # Markers last. Twice, so that of a fold which ends meanwhile the marker does not come without
    # the rest.
    before = {path for pattern in patterns for path in source.glob(pattern)}
    files, markers = [], []
    for path in {path for pattern in patterns for path in source.glob(pattern)}:
        if PASSING.fullmatch(path.name) or not path.is_file():
            continue
        if path.name != DONE:
            files.append(path)
        elif path in before:
            markers.append(path)
    return sorted(files) + sorted(markers)


def _is_wanted(path, copy, failed):
    if path.name == DONE:
        return not failed
    finished = copy.with_name(DONE).is_file()
    return not (finished and path.suffix == ".state")  # of a finished fold no state is wanted


def _copy(path, copy, overwrite):
    if copy.is_file() and not _is_newer(path, copy, overwrite):
        return False
    if overwrite or copy.is_file():
        copy.with_name(DONE).unlink(missing_ok=True)
    stamp = fingerprints.stamp_of(path)
    data = path.read_bytes()
    write_file(copy, data)
    digest = hashlib.sha256(data).hexdigest()
    fingerprints.remember(path, digest, stamp)
    fingerprints.remember(copy, digest)
    fingerprints.note_agreement(path, copy, digest)
    return True


def _is_newer(path, copy, overwrite):
    # Whether a file is to replace the one that is there.
    before = fingerprints.find_agreement(path, copy)
    if before is None and not overwrite:
        return False
    there = fingerprints.fingerprint(copy)["sha256"]
    if overwrite and before in (None, there) and path.stat().st_size != copy.stat().st_size:
        return not is_corrected(copy)  # without reading it twice
    known = fingerprints.fingerprint(path)["sha256"]
    if known == there:
        fingerprints.note_agreement(path, copy, known)
        return False
    if there == before:  # it changed here alone
        return overwrite or not _is_cut_off(path, copy)
    if known == before:  # it changed there alone
        return overwrite and _is_cut_off(copy, path)
    return overwrite and not is_corrected(copy)


def _is_cut_off(path, other):
    # Whether a file holds no more than the beginning of another one, as where Drive lost a write.
    return other.read_bytes().startswith(path.read_bytes().rstrip(b"\0"))


def is_corrected(label):
    """Whether a person changed the labels of a new scan after they were predicted.

    Parameters
    ----------
    label : Path
        Any file; of one that is no such labels, or whose note is damaged, it is not known.

    Returns
    -------
    bool
        Whether they are there, and neither what was predicted nor what that replaced.
    """
    batch = Batch(label.parent.parent)
    note = batch.note(label.name.removesuffix(".nii.gz"))
    if label.parent != batch.labels or not (note.exists() and label.exists()):
        return False
    try:
        noted = read_json(note, "prediction")
    except ValueError as error:
        print(f"{error} So it is not known whether {label.name} was corrected.")
        return False
    return fingerprints.fingerprint(label)["sha256"] not in list_made(noted)


def list_made(note):
    """SHA-256 of all labels that were predicted of a scan, the newest first.

    Parameters
    ----------
    note : dict
        Of the scan, as `unetseg.inference.predict_scans` leaves it.

    Returns
    -------
    list of str
        An interrupted copy may have left any of them on Drive.
    """
    made = [note.get("labels_sha256"), note.get("replaced_sha256"), *note.get("earlier_sha256", [])]
    return [digest for digest in made if digest]


def fetch_corrected(results_dir, backup_dir):
    """Fetch labels of new scans that a person corrected on Drive.

    Parameters
    ----------
    results_dir, backup_dir : Path
        An experiment here and on Drive. Labels here that were corrected too stay.
    """
    with _kept_fingerprints():
        for label in Run(backup_dir).new_scans.glob("*/labels/*.nii.gz"):
            own = Path(results_dir) / label.relative_to(backup_dir)
            if is_corrected(label) and not is_corrected(own):
                write_file(own, label.read_bytes())
                digest = fingerprints.fingerprint(label)["sha256"]
                fingerprints.note_agreement(label, own, digest)


def back_up(source, target):
    """Copy results to Drive; if that fails, say what is not safe yet instead of stopping.

    Parameters
    ----------
    source, target : Path
        As for `copy_new`. What failed is tried again by the next call.

    Returns
    -------
    bool
        Whether all files are there.
    """
    try:
        copy_new(source, target)
        left = [p for p in Path(target).glob("*/?.state") if p.with_name(DONE).is_file()]
        for path in (*left, *Path(target).rglob("*.part")):  # nothing is under way any more
            path.unlink(missing_ok=True)
    except OSError as error:
        print(f"NOT SAFE ON DRIVE YET: {error} All of it is on the local disk, in {source}.")
        return False
    return True


class Keeper:
    """Copies a folder to Drive while something works in it: at intervals, and however that ends.

    A context manager; nobody else writes to Drive meanwhile.

    Parameters
    ----------
    folder : Path
    backup_dir : Path, optional
        Gets a copy every quarter of an hour and at the end, also when the work is stopped or
        fails. If a copy fails that is said, and the work goes on.
    """

    def __init__(self, folder, backup_dir=None):
        self.folder, self.backup_dir = folder, backup_dir
        self.ended = threading.Event()
        self.started = self.saved = time.monotonic()
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self):
        """Begin."""
        self.thread.start()
        return self

    def __exit__(self, *_):
        """Leave everything on Drive."""
        self.ended.set()
        self.thread.join()
        if self.backup_dir:  # also what was done before it was stopped or failed
            back_up(self.folder, self.backup_dir)

    def _follow(self):
        while not self.ended.wait(LOOK_SECONDS):
            self._look()
        self._look()

    def _look(self):
        if self._is_late():
            self._save()

    def _is_late(self):
        return time.monotonic() - self.saved > BACK_UP_SECONDS

    def _save(self):
        whole = not self.backup_dir or back_up(self.folder, self.backup_dir)
        self.saved = time.monotonic()
        return whole
