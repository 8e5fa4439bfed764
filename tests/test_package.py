"""The package as it is imported: without a word."""

import subprocess
import sys

import pytest

WRITES = """
import os, sys
import unetseg

def start():
    os.write(2, b"of compiled code ")
    if sys.argv[1] == "fails":
        raise ValueError("an error")

unetseg._hush(start)
os.write(2, b"later")
"""


@pytest.mark.parametrize(
    ("ends", "expected"), [("well", ["later"]), ("fails", ["of compiled code", "an error"])]
)
def test_what_is_hushed_is_shown_only_with_an_error(ends, expected):
    shown = subprocess.run([sys.executable, "-c", WRITES, ends], capture_output=True).stderr
    words = ("of compiled code", "an error", "later")
    assert [word for word in words if word.encode() in shown] == expected


@pytest.mark.parametrize("module", ["training", "inference"])
def test_tensorflow_starts_without_a_word(module):
    code = f"import unetseg; unetseg.{module}; import sys; assert 'keras' in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert (done.stdout, done.stderr) == (b"", b"")
