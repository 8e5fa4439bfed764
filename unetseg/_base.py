"""What every module may need: sound arguments, files that are whole or not there at all, hashes."""

import contextlib
import errno
import hashlib
import json
import os
import re
import shutil
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


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


def sha256(path):
    """SHA-256 of a file's content, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_json(path, value):
    """Write a value as JSON, whole or not at all."""
    write_file(path, json.dumps(value, indent=1).encode())


def write_table(path, table):
    """Write a pandas.DataFrame as CSV, whole or not at all."""
    write_file(path, table.to_csv(index=False).encode())


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


@contextlib.contextmanager
def explain_full(folder, purpose, remedy="Make room there, then run this again"):
    """Say of an error that means a full disk where it is and what to do; pass others on.

    Parameters
    ----------
    folder : str or Path
        Where the files are that are written within.
    purpose : str
        What they are.
    remedy : str
        What to do.

    Raises
    ------
    OSError
        With ENOSPC in the place of an error that says so, also of NumPy's and HDF5's own.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if not is_full(error):
            raise
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(folder).free
            purpose = f"{purpose}; {describe_bytes(free)} are free"
        raise OSError(errno.ENOSPC, f"{folder}: no room left for {purpose}. {remedy}.") from error


def is_full(error):
    """Whether an error means that a disk, a quota or the largest size of a file was reached.

    Parameters
    ----------
    error : Exception

    Returns
    -------
    bool
    """
    known = getattr(error, "errno", None) in FULL
    by_numpy = re.fullmatch(r"\d+ requested and \d+ written", str(error))
    return bool(known or by_numpy or os.strerror(errno.ENOSPC) in str(error))


def describe_bytes(count):
    """Say a number of bytes in the unit that suits it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
