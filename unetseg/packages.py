"""What the project needs and a runtime lacks; imported before anything of it is there."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from unetseg.run import drive
from unetseg.run.backend import list_backends


def install_missing():
    """Install what the project needs and the runtime lacks; touch no package that is there.

    Installs nothing outside Colab, and no TensorFlow where JAX or PyTorch is there, as on Colab's
    TPU runtimes: Keras computes with these too.

    Returns
    -------
    list of str
        Names of the packages that were installed.

    Raises
    ------
    subprocess.CalledProcessError
        If pip fails.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # no log of TensorFlow's in a notebook
    if not drive.in_colab():
        return []
    text = (drive.project_dir() / "requirements.txt").read_text(encoding="utf-8")
    names = re.findall(r"^[A-Za-z][\w.-]*", text, re.MULTILINE)
    needed = [name for name in names if name != "tensorflow" or not list_backends()]
    missing = [name for name in needed if not any(importlib.metadata.distributions(name=name))]
    if missing:
        pip = [sys.executable, "-m", "pip"]
        with tempfile.TemporaryDirectory() as folder:
            pins = Path(folder) / "present.txt"  # pip then takes versions that go with these
            pins.write_bytes(subprocess.check_output([*pip, "list", "--format=freeze"]))
            subprocess.check_call([*pip, "install", "-q", "-c", str(pins), *missing])
    return missing
