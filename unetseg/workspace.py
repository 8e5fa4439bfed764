"""Where the files are: Colab or local, Google Drive, safe copies."""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

from unetseg.contents import read_text

DRIVE = Path("/content/drive/MyDrive")
LOCAL = Path("/content")
PACKAGES = ("keras", "tensorflow", "jax", "torch", "numpy", "scipy", "nibabel", "unetseg")
LOCK, STALE = "running.json", 180  # seconds without a sign of life
PASSING = re.compile(rf"{LOCK}|.*\.part|part-.*\.weights\.h5")  # never copied
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
    base, disk = (DRIVE / "unetseg", LOCAL) if in_colab() else [project_dir()] * 2
    sample = str(data) == "sample"
    folder = disk / "data" / "sample" if sample else base / Path(data).expanduser()
    if need_data and not sample and not folder.is_dir():
        allowed = f"the folder of your scans, absolute or relative to {base}, or to 'sample'"
        raise FileNotFoundError(f"{folder}: no such folder. Set DATA to {allowed}.")
    kept = base / Path(results).expanduser() / experiment
    if not in_colab():
        return Workspace(folder, kept, None)
    local = folder if sample else LOCAL / "data" / folder.relative_to(folder.anchor)
    place = Workspace(local, LOCAL / "results" / experiment, kept)
    if not sample and folder.is_dir():
        mirror(folder, place.data)
    if place.backup.is_dir():
        mirror(place.backup, place.results, overwrite=False)
        mirror(place.backup, place.results, ["splits.json"])  # it may be edited there
    return place


def mirror(source, target, patterns=("**/*",), *, overwrite=True):
    """Copy every file that is new or changed, each one whole or not at all.

    A file arrives as ``name.part``, is read back and compared by hash, and is then renamed. The
    markers ``done.json`` come last, and only if no copy failed. Nothing is deleted in `target`.

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
    # Twice, so that of a fold which ends meanwhile the marker does not come without the rest.
    done, found = ({p for each in patterns for p in source.glob(each)} for _ in range(2))
    found = {p for p in found if p.name != DONE or p in done}
    files = [p for p in found if p.is_file() and not PASSING.fullmatch(p.name)]
    copied, failed = 0, {}
    for path in sorted(files, key=lambda path: (path.name == DONE, path)):
        name = path.relative_to(source)
        kept = (target / name).with_name(DONE)
        if (path.name == DONE and failed) or (path.suffix == ".state" and kept.is_file()):
            continue  # of a finished fold no state is wanted
        try:
            copied += _copy(path, target / name, overwrite)
        except OSError as error:
            if path.exists():  # else it was removed meanwhile
                failed[name] = error
    if failed:
        names, first = ", ".join(map(str, failed)), next(iter(failed.values()))
        raise OSError(f"{target}: {len(failed)} files are not there yet: {names} ({first}).")
    return copied


def _copy(path, copy, overwrite):
    if copy.is_file() and (not overwrite or sha256(copy) == sha256(path)):
        return False
    if overwrite:
        copy.with_name(DONE).unlink(missing_ok=True)
    write_file(copy, path.read_bytes())
    return True


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
        If what was written does not read back the same.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    if sha256(part) != hashlib.sha256(data).hexdigest():
        raise OSError(f"{part}: reads back differently from what was written. Is the disk full?")
    os.replace(part, path)


def write_json(path, value):
    """Write a value as JSON, whole or not at all."""
    write_file(path, json.dumps(value, indent=1).encode())


def read_json(path, kind=None):
    """Read a JSON file, and check what is in it if it is one that a run leaves.

    Parameters
    ----------
    path : str or Path
    kind : str, optional
        Which file it is, such as ``"splits.json"``; by default its own name. ``schemas.json``
        beside this module tells the types and ranges of each.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is damaged, or holds something else than such a file does; says where.
    """
    import jsonschema  # here, as it takes a tenth of a second

    path = Path(path)
    schemas, name = _load_schemas(), kind or path.name
    by_hand = name not in schemas["$defs"]
    text = read_text(path, "not valid JSON")
    try:
        hook = _refuse_twice if by_hand else None
        value = json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=hook)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}). Correct or remove it.") from error
    if not by_hand:
        validator = jsonschema.Draft202012Validator({**schemas, "$ref": f"#/$defs/{name}"})
        if error := jsonschema.exceptions.best_match(validator.iter_errors(value)):
            found = f"at {error.json_path}: {error.message[:300]}"
            raise ValueError(f"{path}: {found}. Correct it, or fetch it again.")
    return value


@functools.cache
def _load_schemas():
    return json.loads(Path(__file__).with_name("schemas.json").read_text(encoding="utf-8"))


def _refuse_constant(name):
    raise ValueError(f"{name} is no number of JSON")


def _refuse_twice(pairs):
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice")
    return found


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


def sha256(path):
    """SHA-256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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


def describe_machine():
    """Say what the numbers of an experiment were measured on.

    Returns
    -------
    dict
        ``versions`` of Python and of the packages that matter, and ``hardware`` as
        `describe_hardware` gives it.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"versions": versions, "hardware": describe_hardware()}


@functools.cache
def describe_hardware():
    """Say what this machine is made of.

    Returns
    -------
    dict
        ``processor``, ``cores`` that this process may use, ``memory_gb``, ``system``, and of the
        first NVIDIA GPU ``gpu`` (its name), ``gpu_capability`` and ``gpu_memory_gb``, or None.
    """
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpu.read_text() if cpu.exists() else "")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if os.name == "posix" else 8e9
    gpu = [None, None, None]
    if shutil.which("nvidia-smi"):
        query = ["--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
        found = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True)
        if re.match(r".+, [\d.]+, \d+\n", found.stdout):
            name, capability, mib = found.stdout.splitlines()[0].rsplit(", ", 2)
            gpu = [name, float(capability), round(int(mib) * 2**20 / 1e9, 1)]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        **dict(zip(("gpu", "gpu_capability", "gpu_memory_gb"), gpu, strict=True)),
    }


def computes_on_gpu():
    """Whether Keras' backend has a GPU to compute on; a driver alone does not mean that."""
    import keras  # here, as it takes seconds

    return keras.distribution.list_devices()[0].startswith(("gpu", "cuda"))


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
