"""What every module may need. How a full disk is explained stands in test_disk."""

import hashlib
import json
import os
from pathlib import Path

import pandas as pd
import pytest
from files import content_of

from unetseg import _base


def test_an_argument_that_fits_is_no_error():
    assert _base.require("depth", 3, True, "at least 1") is None


def test_an_argument_that_does_not_fit_is_named_with_what_is_allowed_and_received():
    with pytest.raises(ValueError, match=r"^depth must be at least 1\. Received: depth=0$"):
        _base.require("depth", 0, False, "at least 1")


def test_all_that_is_wrong_is_counted_and_named_in_one_error():
    _base.refuse_any([], "DATA:", "masks are empty", "Draw them.")
    with pytest.raises(KeyError, match=r"DATA: 2 masks are empty: a, b\. Draw them\."):
        _base.refuse_any(["a", "b"], "DATA:", "masks are empty", "Draw them.", KeyError)


def test_the_hash_is_that_of_the_content(tmp_path):
    data = bytes(range(256)) * 5000
    (tmp_path / "a").write_bytes(data)
    assert _base.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_a_file_is_written_with_its_folder_and_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "a.json"
    _base.write_json(path, {"a": [1, None]})
    assert json.loads(path.read_text()) == {"a": [1, None]}
    _base.write_file(path, b"other")
    assert path.read_bytes() == b"other"
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_a_table_is_written_as_csv_without_its_index(tmp_path):
    _base.write_table(tmp_path / "a.csv", pd.DataFrame({"case": ["001", "a,b"], "n": [1, 2]}))
    assert (tmp_path / "a.csv").read_text() == 'case,n\n001,1\n"a,b",2\n'


def test_what_reads_back_differently_does_not_replace_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    monkeypatch.setattr(_base, "sha256", lambda path: "0" * 64)
    with pytest.raises(OSError, match="reads back differently"):
        _base.write_file(path, b"after")
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize(
    ("count", "words"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2_340_000, "2.34 MB"), (5e10, "50 GB")],
)
def test_bytes_are_said_in_the_unit_that_suits_them(count, words):
    assert _base.describe_bytes(count) == words


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
