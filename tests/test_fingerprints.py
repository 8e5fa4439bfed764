"""What is known of files is right, and is not read twice."""

import builtins
import hashlib
import json
import os

import pytest

from unetseg.run import fingerprints


def digest_of(content):
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def opened(monkeypatch):
    """Names of the files that are opened, in order."""
    names, real = [], open

    def noted(path, *args, **kwargs):
        names.append(os.path.basename(path))
        return real(path, *args, **kwargs)

    monkeypatch.setattr(builtins, "open", noted)
    return names


def test_a_file_is_read_once_as_long_as_it_stays_as_it_is(tmp_path, opened):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    first = fingerprints.fingerprint(path)
    assert first == {
        "sha256": digest_of(b"one"),
        "bytes": 3,
        "mtime_ns": path.stat().st_mtime_ns,
    }
    assert fingerprints.fingerprint(str(path)) == first
    assert opened.count("a") == 1
    path.write_bytes(b"three")
    assert fingerprints.fingerprint(path)["sha256"] == digest_of(b"three")
    os.utime(path, ns=(1, 1))
    assert fingerprints.fingerprint(path)["mtime_ns"] == 1
    assert opened.count("a") == 3


def test_an_edit_that_keeps_size_and_time_is_seen_by_reading_alone(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    os.utime(path, ns=(5, 5))
    fingerprints.fingerprint(path)
    path.write_bytes(b"two")
    os.utime(path, ns=(5, 5))
    assert fingerprints.fingerprint(path)["sha256"] == digest_of(b"one")
    assert fingerprints.fingerprint(path, fresh=True)["sha256"] == digest_of(b"two")
    assert fingerprints.fingerprint(path)["sha256"] == digest_of(b"two")


def test_a_file_elsewhere_matches_by_content_and_another_of_its_size_does_not(tmp_path, opened):
    for name, content in {"a": b"one", "copy": b"one", "other": b"two", "long": b"three"}.items():
        (tmp_path / name).write_bytes(content)
        os.utime(tmp_path / name, ns=(len(name), len(name)))
    noted = fingerprints.fingerprint(tmp_path / "a")
    assert fingerprints.matches(tmp_path / "a", noted)
    assert fingerprints.matches(tmp_path / "copy", noted)
    assert not fingerprints.matches(tmp_path / "other", noted)
    assert not fingerprints.matches(tmp_path / "long", noted)
    assert opened == ["a", "copy", "other"]  # the size of the last tells enough


def test_what_another_process_read_is_not_read_again(tmp_path, opened, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    fingerprints.fingerprint(path)
    told = json.loads(json.dumps(fingerprints.list_known()))
    monkeypatch.setattr(fingerprints, "_known", {})
    fingerprints.learn(told)
    assert fingerprints.find_known(path) == digest_of(b"one")
    assert opened.count("a") == 1


@pytest.mark.parametrize(
    "damaged",
    [
        *([], None, {"p": 1}, {"p": [1, 2]}, {"p": [1, "2", "0" * 64]}, {"p": [1, 2, "0" * 63]}),
        *({"p": "0" * 64}, {"p\nq": "0" * 63}),
    ],
)
def test_what_is_no_list_of_fingerprints_is_left_out(damaged, monkeypatch):
    for name in ("_known", "_agreed"):
        monkeypatch.setattr(fingerprints, name, {})
    fingerprints.learn(damaged)
    assert fingerprints.list_known() == {}


def test_what_was_known_of_a_file_that_is_gone_can_be_asked_for_and_forgotten(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"one")
    assert fingerprints.find_known(path) is None
    fingerprints.remember(path, digest_of(b"one"))
    path.unlink()
    assert fingerprints.find_last(path) == digest_of(b"one")
    fingerprints.forget(path)
    assert fingerprints.find_last(path) is None
