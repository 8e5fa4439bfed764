"""What the machine is made of, and how much memory and disk it has left."""

import contextlib
import errno
import functools
import importlib.metadata
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

from unetseg._base import describe_bytes

PACKAGES = ("keras", "tensorflow", "jax", "torch", "numpy", "scipy", "nibabel", "unetseg")
TEMPORARY = "Make room there, or set TMPDIR to a folder on a larger disk before Python starts"
SPARE = 1.05  # headers, and what else grows meanwhile
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


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
        first NVIDIA GPU that CUDA_VISIBLE_DEVICES leaves ``gpu`` (its name), ``gpu_capability``
        and ``gpu_memory_gb``, or None.
    """
    cpu = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpu.read_text() if cpu.exists() else "")
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if os.name == "posix" else 8e9
    gpu = [None, None, None]
    if shutil.which("nvidia-smi"):
        query = ["--query-gpu=name,compute_cap,memory.total", "--format=csv,noheader,nounits"]
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0]
        if re.match(r"\d|GPU-", visible):
            query.append(f"--id={visible}")
        answer = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True)
        if re.match(r".+, [\d.]+, \d+\n", answer.stdout):
            name, capability, mib = answer.stdout.splitlines()[0].rsplit(", ", 2)
            gpu = [name, float(capability), round(int(mib) * 2**20 / 1e9, 1)]
    return {
        "processor": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
        "memory_gb": round(pages / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        **dict(zip(("gpu", "gpu_capability", "gpu_memory_gb"), gpu, strict=True)),
    }


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
        finding = f"{purpose} need {describe_bytes(need)} and {describe_bytes(free)} are free"
        raise OSError(errno.ENOSPC, f"{folder}: {finding}. {remedy}.")


def require_room_for_copies(source, target):
    """Stop before copying a folder, if what is not there yet does not find room.

    Parameters
    ----------
    source, target : str or Path
        As for `unetseg.run.drive.copy_new`.

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


def available_bytes():
    """Memory that this process may still take, in bytes.

    Returns
    -------
    int
        On Linux what is free or can be freed, but no more than a container is left (its control
        group, version 1 or 2); elsewhere all that the machine has; infinity if nobody knows.
    """
    limits = [_read_free(), *_read_left()]
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else math.inf


def _read_free():
    info = PROC / "meminfo"
    if info.exists() and (line := re.search(r"MemAvailable:\s+(\d+) kB", info.read_text())):
        return int(line[1]) * 1024
    if os.name == "posix":
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _read_left():
    # What the control groups of this process, and those around them, leave.
    path = PROC / "self" / "cgroup"
    lines = path.read_text().splitlines() if path.exists() else []
    for line in lines:
        _, controllers, place = line.split(":", 2)
        if controllers == "":
            yield from _read_groups(CGROUP, place, "memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            names = "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
            yield from _read_groups(CGROUP / "memory", place, *names)


def _read_groups(root, place, limit, usage, cache):
    folder = root / place.lstrip("/")
    folder = folder if folder.is_dir() else root  # inside of a container its own group is the root
    for group in (folder, *folder.parents):
        if group == root.parent:
            return
        try:
            most, used = ((group / name).read_text().strip() for name in (limit, usage))
            kept = re.search(rf"^{cache} (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        except OSError:
            continue
        if most.isdigit():  # else "max"
            yield max(0, int(most) - int(used) + int(kept[1] if kept else 0))
