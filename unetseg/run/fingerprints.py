"""What files hold, by SHA-256: a file is read once, as long as its size and time stay."""

import re
from pathlib import Path

from unetseg._base import sha256

_known = {}  # absolute path: (bytes, mtime_ns, sha256)
_agreed = {}  # absolute paths of two files, in order, joined by a line break: sha256
SHA256 = re.compile(r"[0-9a-f]{64}")


def stamp_of(path):
    """Size in bytes and time of the last change in ns of a file."""
    status = Path(path).stat()
    return status.st_size, status.st_mtime_ns


def fingerprint(path, *, fresh=False):
    """Tell what a file holds, without reading it if that is known.

    Parameters
    ----------
    path : str or Path
    fresh : bool, default False
        Whether to read it whatever is known.

    Returns
    -------
    dict
        ``sha256`` of its bytes, its size in ``bytes``, and ``mtime_ns``, the time of its last
        change.

    Raises
    ------
    OSError
        If it cannot be read.

    Notes
    -----
    A file that was changed without a change of its size and of its time of change is taken for
    what it was. Only ``fresh`` tells then.
    """
    stamp = stamp_of(path)
    digest = None if fresh else find_known(path)
    if digest is None:
        digest = sha256(path)
        remember(path, digest, stamp)
    size, mtime_ns = stamp
    return {"sha256": digest, "bytes": size, "mtime_ns": mtime_ns}


def matches(path, noted):
    """Whether a file holds what was noted of it, which may have been elsewhere.

    Parameters
    ----------
    path : str or Path
    noted : dict
        As `fingerprint` returned it.

    Returns
    -------
    bool
        Told by size and time if both are as noted or the size is not, else by content.
    """
    size, mtime_ns = stamp_of(path)
    if size != noted["bytes"]:
        return False
    if mtime_ns == noted["mtime_ns"]:
        return True
    return fingerprint(path)["sha256"] == noted["sha256"]


def remember(path, digest, stamp=None):
    """Note what a file holds.

    Parameters
    ----------
    path : str or Path
    digest : str
        Its SHA-256.
    stamp : tuple of 2 int, optional
        Its size and time before it was read, as `stamp_of` told. By default those of now.
    """
    _known[_key(path)] = (*(stamp or stamp_of(path)), digest)


def find_known(path):
    """SHA-256 of a file if it is known and size and time are as they were, else None."""
    known = _known.get(_key(path))
    return known[2] if known and known[:2] == stamp_of(path) else None


def note_agreement(one, other, digest):
    """Note what two files held when they were last the same."""
    _agreed[_pair(one, other)] = digest


def find_agreement(one, other):
    """SHA-256 that two files had when they were last the same, as far as noted, else None."""
    return _agreed.get(_pair(one, other))


def find_last(path):
    """SHA-256 that a file had when it was last looked at, even if it is gone; None if never."""
    known = _known.get(_key(path))
    return known and known[2]


def forget(path):
    """Drop what is known of a file."""
    _known.pop(_key(path), None)


def list_known():
    """All that is known, in JSON's types.

    Returns
    -------
    dict
        ``[bytes, mtime_ns, sha256]`` by absolute path, and a SHA-256 by two of them.
    """
    return {path: [*entry] for path, entry in _known.items()} | _agreed


def learn(entries):
    """Take over what `list_known` told elsewhere; what is not of that form is left out.

    Parameters
    ----------
    entries : dict
    """
    for path, entry in entries.items() if isinstance(entries, dict) else ():
        if _is_entry(entry):
            _known.setdefault(path, tuple(entry))
        elif _is_digest(entry) and "\n" in path:
            _agreed.setdefault(path, entry)


def _is_entry(entry):
    if not (isinstance(entry, list) and len(entry) == 3):
        return False
    *stamp, digest = entry
    return all(type(number) is int for number in stamp) and _is_digest(digest)


def _is_digest(entry):
    return isinstance(entry, str) and bool(SHA256.fullmatch(entry))


def _key(path):
    return str(Path(path).absolute())


def _pair(one, other):
    return "\n".join(sorted((_key(one), _key(other))))
