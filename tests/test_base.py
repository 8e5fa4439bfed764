import hashlib
import os
from pathlib import Path

import numpy as np
import pytest
from files import content_of

from unetseg import _base


def test_a_file_is_written_whole_into_new_folders_without_leftovers(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    for data in (b"first", b"", b"second" * 100_000):
        _base.write_file(str(path), data)
        assert content_of(tmp_path) == {"new/folder/a.json": data}


def fail(*args, **kwargs):
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("target", "name", "replacement"),
    [
        (os, "replace", fail),
        (Path, "write_bytes", fail),
        (_base, "sha256", lambda path: "0" * 64),  # as if it read back differently
    ],
    ids=["rename", "write", "read back"],
)
def test_a_failed_write_leaves_the_old_file_as_it_was(
    target, name, replacement, tmp_path, monkeypatch
):
    (tmp_path / "a.json").write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr(target, name, replacement)
        with pytest.raises(OSError, match=r"the disk is gone|a\.json.*reads back differently"):
            _base.write_file(tmp_path / "a.json", b"new")
    assert (tmp_path / "a.json").read_bytes() == b"old"
    _base.write_file(tmp_path / "a.json", b"new")
    assert content_of(tmp_path) == {"a.json": b"new"}


@pytest.mark.parametrize("data", [b"", b"abc", bytes(range(256)) * 5000])
def test_sha256_is_that_of_hashlib(data, tmp_path):
    (tmp_path / "a").write_bytes(data)
    assert _base.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("name", "value", "allowed", "message"),
    [
        ("overlap", 1.5, "in [0, 1)", "overlap must be in [0, 1). Received: overlap=1.5"),
        ("kind", "x", "a or b", "kind must be a or b. Received: kind='x'"),
        ("patch", (0, 1), "positive", "patch must be positive. Received: patch=(0, 1)"),
    ],
)
@pytest.mark.parametrize("fits", [False, None, 0, []])
def test_what_does_not_fit_is_refused_with_its_name_and_value(name, value, allowed, message, fits):
    with pytest.raises(ValueError) as error:
        _base.require(name, value, fits, allowed)
    assert str(error.value) == message


@pytest.mark.parametrize("fits", [True, np.True_, 1])
def test_what_fits_passes(fits):
    assert _base.require("depth", 3, fits, "at least 1") is None
