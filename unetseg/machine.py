"""What the machine is made of, and which versions are installed."""

import contextlib
import functools
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

PACKAGES = ("keras", "tensorflow", "jax", "torch", "numpy", "scipy", "nibabel", "unetseg")


def describe_machine():
    """Say what the numbers of an experiment were measured on.

    Returns
    -------
    dict
        ``versions`` of Python and of the packages that matter, and ``hardware`` as
        `describe_hardware` gives it.
    """
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    return {"versions": versions, "hardware": describe_hardware()}


@functools.cache
def describe_hardware():
    """Say what this machine is made of.

    Returns
    -------
    dict
        ``processor``, ``cores`` that this process may use, ``memory_gb``, ``system``, and of the
        first NVIDIA GPU ``gpu`` (its name), ``gpu_capability`` and ``gpu_memory_gb``, or None.
    """
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpu.read_text() if cpu.exists() else "")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if os.name == "posix" else 8e9
    gpu = [None, None, None]
    if shutil.which("nvidia-smi"):
        query = ["--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
        found = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True)
        if re.match(r".+, [\d.]+, \d+\n", found.stdout):
            name, capability, mib = found.stdout.splitlines()[0].rsplit(", ", 2)
            gpu = [name, float(capability), round(int(mib) * 2**20 / 1e9, 1)]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        **dict(zip(("gpu", "gpu_capability", "gpu_memory_gb"), gpu, strict=True)),
    }


def computes_on_gpu():
    """Whether Keras' backend has a GPU to compute on; a driver alone does not mean that."""
    import keras  # here, as it takes seconds

    return keras.distribution.list_devices()[0].startswith(("gpu", "cuda"))
