import collections
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unetseg import _base, sharing
from unetseg.run import machine

ROOT = Path(__file__).parent.parent
Usage = collections.namedtuple("Usage", "total used free")
# Of the 8 x 10 x 6 voxels of `make_data` at 1 x 2 x 3 mm, on their own grid.
CASE_BYTES = 8 * 10 * 6 * (4 + 1)


@pytest.fixture
def leave(monkeypatch):
    """Return a function after which a disk has so many bytes left, wherever a folder is."""
    asked = []

    def say(folder):
        asked.append(Path(folder))
        return Usage(10**12, 0, leave.free)

    def leave(free):
        leave.free = free
        monkeypatch.setattr(machine.shutil, "disk_usage", say)
        return asked

    return leave


def test_room_is_asked_for_where_the_folder_will_be(leave, tmp_path):
    asked = leave(5)
    assert machine.free_bytes(tmp_path / "not" / "yet" / "there") == 5
    assert asked == [tmp_path]


def test_what_finds_no_room_is_refused_with_place_need_room_and_remedy(leave, tmp_path):
    leave(2 * 10**9)
    machine.require_room(tmp_path, 19 * 10**8, "scans")
    with pytest.raises(OSError, match=r"scans need 3 GB and 2 GB are free\. Buy one") as error:
        machine.require_room(tmp_path, 3 * 10**9, "scans", "Buy one")
    assert str(tmp_path) in str(error.value)
    assert error.value.errno == errno.ENOSPC


HDF5 = "[Errno 28] Can't write data (errno = 28, error message = 'No space left on device')"
FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    OSError("56 requested and 12 written"),  # of NumPy
    OSError(HDF5),
    RuntimeError(f"Unable to flush file ({HDF5})"),
]


@pytest.mark.parametrize("raised", FULL, ids=str)
def test_every_way_to_say_that_a_disk_is_full_is_explained(raised, leave, tmp_path):
    leave(12)
    with (
        pytest.raises(OSError, match=r"no room left for scans; 12 bytes are free\. Make ") as error,
        _base.explain_full(tmp_path, "scans", "Make room"),
    ):
        raise raised
    assert str(tmp_path) in str(error.value)
    assert "requested" not in str(error.value)
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize("raised", [OSError(errno.EIO, "I/O"), ValueError("x"), KeyError("x")])
def test_other_errors_are_passed_on(raised, tmp_path):
    with pytest.raises(type(raised)) as error, _base.explain_full(tmp_path, "scans"):
        raise raised
    assert error.value is raised


def test_only_what_is_not_there_yet_is_counted_for_a_copy(tmp_path, leave):
    for name, size in (("a", 1000), ("b/c", 500)):
        _base.write_file(tmp_path / "drive" / name, bytes(size))
    leave(600)
    with pytest.raises(OSError, match=r"the copies of .* need 1\.5 kB and 600 bytes are free"):
        machine.require_room_for_copies(tmp_path / "drive", tmp_path / "local")
    _base.write_file(tmp_path / "local" / "a", bytes(1000))
    machine.require_room_for_copies(tmp_path / "drive", tmp_path / "local")


def test_a_file_to_unpack_is_refused_if_it_finds_no_room(tmp_path, leave):
    import tarfile

    (tmp_path / "a").write_bytes(bytes(5000))
    with tarfile.open(tmp_path / "a.tar", "w") as packed:
        packed.add(tmp_path / "a", "a")
    leave(4000)
    with pytest.raises(OSError, match=r"a\.tar need 5 kB and 4 kB are free"):
        sharing.unpack_tar(tmp_path / "a.tar", tmp_path / "out", tmp_path / "a.tar")
    assert not (tmp_path / "out").exists()


LIMITED = """
import resource, sys
from pathlib import Path
import numpy as np
from unetseg import _base, patches
from unetseg.run import state
from unetseg.cases import Case
from unetseg.prepared import Prepared
from unetseg.preprocessing import Preprocessor

class Rough(Preprocessor):
    def prepare(self, case, **kwargs):
        x, y = np.ones((64, 64, 64, 1), np.float32), np.ones((64, 64, 64), np.uint8)
        return Prepared(x, y, None, y > 0, self)

import keras
net = keras.Sequential([keras.Input((300,)), keras.layers.Dense(300)])
folder = Path(sys.argv[1])
_base.write_file(folder / "results.csv", b"before")
case = Case("a", folder / "results.csv", folder / "results.csv")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for work in (
    lambda: patches.CachedCases(Rough(), [case], folder / "cache"),
    lambda: _base.write_file(folder / "results.csv", bytes(100_000)),
    lambda: state.save_weights(net, folder / "model.weights.h5"),
):
    try:
        work()
    except OSError as error:
        print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
def test_a_disk_that_really_takes_no_more_is_said_with_its_place(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    cached, written, weights = done.stdout.splitlines()
    assert f"{tmp_path}/cache: no room left for preprocessed cases" in cached
    assert "set TMPDIR" in cached
    assert f"{tmp_path}: no room left for results.csv" in written
    assert f"{tmp_path}: no room left for model.weights.h5" in weights
    assert "requested" not in done.stdout
    assert (tmp_path / "results.csv").read_bytes() == b"before"
