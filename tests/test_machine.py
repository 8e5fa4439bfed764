"""The machine is described as it is."""

import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import pytest

from unetseg.run import machine


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Return a function that puts a script in the place of nvidia-smi; at first there is none."""

    def write(script):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    machine.describe_hardware.cache_clear()
    yield write
    machine.describe_hardware.cache_clear()


NO_GPU = (None, None, None)


@pytest.mark.parametrize(
    ("script", "gpu"),
    [
        (None, NO_GPU),
        # 143,771 and 15,360 times 2**20 bytes
        ("echo 'NVIDIA H200, 9.0, 143771'", ("NVIDIA H200", 9.0, 150.8)),
        ("echo 'Tesla T4, 7.5, 15360'; echo 'Tesla P4, 6.1, 8192'", ("Tesla T4", 7.5, 16.1)),
        ("echo 'Board, two of them, 10.3, 8192'", ("Board, two of them", 10.3, 8.6)),
        # What a Colab runtime without a GPU prints.
        ("echo 'NVIDIA-SMI has failed because it could not communicate'; exit 9", NO_GPU),
        ("echo 'Field \"compute_cap\" is not a valid field to query.'; exit 2", NO_GPU),
        ("echo 'No devices were found'", NO_GPU),
        ("echo 'Old, [N/A], 4096'", NO_GPU),
        ("exit 1", NO_GPU),
    ],
)
def test_the_hardware_is_described_with_its_first_gpu(install, script, gpu):
    if script:
        install(script)
    hardware = machine.describe_hardware()
    assert (hardware["gpu"], hardware["gpu_capability"], hardware["gpu_memory_gb"]) == gpu
    assert hardware.keys() == {
        *("processor", "cores", "memory_gb", "system"),
        *("gpu", "gpu_capability", "gpu_memory_gb"),
    }
    assert 1 <= hardware["cores"] <= os.cpu_count()
    assert hardware["system"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of the memory")
def test_the_memory_is_what_the_system_says(install):
    kib = Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]
    expected = int(kib) * 1024 / 1e9
    assert machine.describe_hardware()["memory_gb"] == pytest.approx(expected, abs=0.06)


def test_the_hardware_is_asked_for_once(install, tmp_path):
    install(f"echo asked >> {tmp_path / 'log'}; echo 'NVIDIA H200, 9.0, 143771'")
    assert machine.describe_hardware() == machine.describe_hardware()
    machine.describe_machine()
    assert (tmp_path / "log").read_text() == "asked\n"


@pytest.mark.parametrize(("visible", "asked"), [("1,0", "--id=1"), ("GPU-8f2", "--id=GPU-8f2")])
def test_the_gpu_is_the_first_of_those_that_are_left_visible(install, monkeypatch, visible, asked):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    install(f"case \"$*\" in *{asked}) echo 'A100, 8.0, 40960';; *) echo 'T400, 7.5, 4096';; esac")
    assert machine.describe_hardware()["gpu"] == "A100"


@pytest.mark.parametrize("script", [None, "echo 'NVIDIA H200, 9.0, 143771'"])
def test_the_machine_is_described_in_json(install, script):
    if script:
        install(script)
    found = machine.describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {"versions", "hardware"}
    assert found["hardware"] == machine.describe_hardware()
    assert found["versions"]["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    assert found["versions"]["numpy"] == np.__version__
    assert None not in found["versions"].values()


def fill(root, **texts):
    for name, text in texts.items():
        path = root / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A made /proc and /sys/fs/cgroup; 8 GB are free."""
    monkeypatch.setattr(machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(machine, "CGROUP", tmp_path / "cgroup")
    fill(tmp_path, proc__meminfo="MemTotal: 16000000 kB\nMemFree: 1 kB\nMemAvailable: 8000000 kB\n")
    return tmp_path


def test_what_is_free_is_what_the_kernel_says(system):
    assert machine.available_bytes() == 8_192_000_000


def test_a_container_may_leave_less(system):
    fill(system, proc__self__cgroup="0::/user/job\n")
    for folder in ("cgroup__user__job", "cgroup__user"):
        fill(
            system, **{f"{folder}__memory_dot_max": "max\n", f"{folder}__memory_dot_current": "9\n"}
        )
        fill(system, **{f"{folder}__memory_dot_stat": "anon 5\ninactive_file 4\n"})
    assert machine.available_bytes() == 8_192_000_000
    fill(system, cgroup__user__memory_dot_max="1000\n", cgroup__user__memory_dot_current="900\n")
    assert machine.available_bytes() == 104  # of 1000, 900 taken, 4 of which can be freed


def test_the_older_kind_of_container_is_known_too(system):
    fill(system, proc__self__cgroup="5:cpu:/x\n4:memory,hugetlb:/docker/1\n")
    folder = "cgroup__memory__memory_dot"
    fill(system, **{f"{folder}_limit_in_bytes": "5000", f"{folder}_usage_in_bytes": "2000"})
    fill(system, **{f"{folder}_stat": "total_inactive_file 500\n"})
    assert machine.available_bytes() == 3500  # the group's own folder is the root, from inside


def test_where_nobody_knows_there_is_no_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PROC", tmp_path)
    monkeypatch.setattr(machine.os, "name", "nt")
    assert machine.available_bytes() == math.inf
