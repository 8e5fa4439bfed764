"""Which of TensorFlow, JAX and PyTorch Keras computes with: chosen before it is imported."""

import contextlib
import importlib.metadata
import importlib.util
import json
import os
import re
import sys
from pathlib import Path

from unetseg.run.machine import describe_hardware

BACKENDS = ("tensorflow", "jax", "torch")
BLACKWELL = 10.0  # least compute capability of NVIDIA GPUs such as B200 and Colab's G4
KNOWS_BLACKWELL = (2, 22)  # the first TensorFlow with kernels for it


def choose_backend():
    """Take JAX, or PyTorch, where TensorFlow is missing or cannot compute on the GPU.

    Nothing is changed where the user has chosen: by ``KERAS_BACKEND``, or by another one than
    TensorFlow in ``keras.json``, which Keras writes itself. The choice is handed on to the
    processes that train, as ``KERAS_BACKEND``.

    Raises
    ------
    ImportError
        If TensorFlow cannot be used and none of the others is installed; says what to install.
    """
    if os.environ.get("KERAS_BACKEND") or _read_configured() != "tensorflow":
        return
    problem, remedy = _find_problem()
    if not problem:
        return
    others = [name for name in list_backends() if name != "tensorflow"]
    if not others:
        raise ImportError(f"{problem}, and neither JAX nor PyTorch is installed. {remedy}")
    os.environ["KERAS_BACKEND"] = others[0]
    print(f"{problem}: Keras computes with {others[0]}.")


def list_backends():
    """List what is installed of TensorFlow, JAX and PyTorch, the preferred one first."""
    return [name for name in BACKENDS if importlib.util.find_spec(name)]


def _read_configured():
    home = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((home / "keras.json").read_text(encoding="utf-8"))
        return config.get("backend", "tensorflow")
    return "tensorflow"


def _find_problem():
    # What keeps TensorFlow from computing here, and what helps; empty if nothing does.
    if not importlib.util.find_spec("tensorflow"):
        return "TensorFlow is not installed", 'Install one: pip install "tensorflow>=2.20".'
    capability = describe_hardware()["gpu_capability"] or 0
    if capability >= BLACKWELL and _may_use_gpu() and _is_older(KNOWS_BLACKWELL):
        gpu = describe_hardware()["gpu"]
        remedy = 'Install one: pip install "jax[cuda12]". '
        remedy += "Or set CUDA_VISIBLE_DEVICES=-1, to compute on the processor."
        return f"TensorFlow before 2.22 cannot compute on this GPU ({gpu})", remedy
    return "", ""


def _may_use_gpu():
    # TensorFlow knows GPUs on Linux alone, unless they are hidden from it.
    return sys.platform == "linux" and os.environ.get("CUDA_VISIBLE_DEVICES") not in ("", "-1")


def _is_older(version):
    try:
        installed = importlib.metadata.version("tensorflow")
    except importlib.metadata.PackageNotFoundError:  # under another name, such as for processors
        return False
    return tuple(map(int, re.findall(r"\d+", installed)[:2])) < version
