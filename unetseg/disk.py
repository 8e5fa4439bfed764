"""Room on disks: foretold where it can be, and a full disk said with its place and remedy."""

import contextlib
import errno
import math
import os
import re
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TEMPORARY = "Make room there, or set TMPDIR to a folder on a larger disk before Python starts"
SPARE = 1.05  # headers, and what else grows meanwhile


def free_bytes(folder):
    """Room on the disk of a folder, which need not be there yet.

    Parameters
    ----------
    folder : str or Path

    Returns
    -------
    int
        Bytes.
    """
    place = Path(folder).absolute()
    while not place.exists():
        place = place.parent
    return shutil.disk_usage(place).free


def require_room(folder, need, purpose, remedy="Make room there, or choose another folder"):
    """Stop before a work whose files do not find room.

    Parameters
    ----------
    folder : str or Path
        Where they will be.
    need : int
        Bytes.
    purpose : str
        What they are.
    remedy : str
        What to do.

    Raises
    ------
    OSError
        With ENOSPC; names the folder, the need and what is free.
    """
    free = free_bytes(folder)
    if need * SPARE > free:
        found = f"{purpose} need {_size(need)} and {_size(free)} are free"
        raise OSError(errno.ENOSPC, f"{folder}: {found}. {remedy}.")


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
            purpose = f"{purpose}; {_size(free_bytes(folder))} are free"
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
    numpy = re.fullmatch(r"\d+ requested and \d+ written", str(error))
    return bool(known or numpy or os.strerror(errno.ENOSPC) in str(error))


def require_room_for_copies(source, target):
    """Stop before copying a folder, if what is not there yet does not find room.

    Parameters
    ----------
    source, target : str or Path
        As for `unetseg.workspace.mirror`.

    Raises
    ------
    OSError
        As `require_room`.
    """
    source, target, need = Path(source), Path(target), 0
    for path in source.rglob("*"):
        if path.is_file():
            size, copy = path.stat().st_size, target / path.relative_to(source)
            need += 0 if copy.is_file() and copy.stat().st_size == size else size
    remedy = "Choose a runtime with a larger disk, or fewer scans"
    require_room(target, need, f"the copies of {source}", remedy)


def cache_bytes(table, spacing_mm, patch, channels):
    """Foretell what preprocessed cases take on the disk.

    Parameters
    ----------
    table : pandas.DataFrame
        As `unetseg.cases.check_cases` returns it.
    spacing_mm : tuple of 3 float
        Of the network's grid.
    patch : tuple of 3 int
        No case is smaller.
    channels : int

    Returns
    -------
    int
        Bytes, at most: what is cropped is counted too. Per voxel a float32 for each channel and
        a byte for the class.
    """
    voxels = 0
    for shape, spacing in zip(table["shape"], table["spacing_mm"], strict=True):
        sides = [round(n * own / mm) for n, own, mm in zip(shape, spacing, spacing_mm, strict=True)]
        voxels += math.prod(max(side, least) for side, least in zip(sides, patch, strict=True))
    return voxels * (4 * channels + 1)


def require_cache(cases, table, preprocessor):
    """Stop before a training whose preprocessed cases find no room in the temporary folder.

    Parameters
    ----------
    cases : sequence of Case
        Read only if it is not sure from their shapes that they find room.
    table : pandas.DataFrame
        What `unetseg.cases.check_cases` says of them.
    preprocessor : Preprocessor
        Fitted.

    Raises
    ------
    OSError
        As `require_room`.
    """
    place, channels = tempfile.gettempdir(), preprocessor.channels
    most = cache_bytes(table, preprocessor.spacing_mm, preprocessor.patch, channels)
    if most * SPARE <= free_bytes(place):
        return
    need = 0
    for case in cases:  # how much of each is cropped only its voxels tell
        x, _ = preprocessor.transform(replace(case, mask=None))
        need += x.nbytes + x.nbytes // (4 * channels)
        purpose = f"preprocessed cases (of {len(table)} at most {_size(most)})"
        require_room(place, need, purpose, TEMPORARY)


def _size(count):
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
