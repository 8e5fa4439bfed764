"""The machine is described as it is."""

import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Return a function that puts a script in the place of nvidia-smi; at first there is none."""

    def install(script):
        (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{script}\n", encoding="utf-8")
        (tmp_path / "nvidia-smi").chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path))
    machine.describe_hardware.cache_clear()
    yield install
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
def test_the_hardware_is_described_with_its_first_gpu(machine, script, gpu):
    if script:
        machine(script)
    hardware = machine.describe_hardware()
    assert (hardware["gpu"], hardware["gpu_capability"], hardware["gpu_memory_gb"]) == gpu
    assert hardware.keys() == {
        *("processor", "cores", "memory_gb", "system"),
        *("gpu", "gpu_capability", "gpu_memory_gb"),
    }
    assert 1 <= hardware["cores"] <= os.cpu_count()
    assert hardware["system"]


@pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux says of the memory")
def test_the_memory_is_what_the_system_says(machine):
    kib = Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]
    expected = int(kib) * 1024 / 1e9
    assert machine.describe_hardware()["memory_gb"] == pytest.approx(expected, abs=0.06)


def test_the_hardware_is_asked_for_once(machine, tmp_path):
    machine(f"echo asked >> {tmp_path / 'log'}; echo 'NVIDIA H200, 9.0, 143771'")
    assert machine.describe_hardware() == machine.describe_hardware()
    machine.describe_machine()
    assert (tmp_path / "log").read_text() == "asked\n"


@pytest.mark.parametrize("script", [None, "echo 'NVIDIA H200, 9.0, 143771'"])
def test_the_machine_is_described_in_json(machine, script):
    if script:
        machine(script)
    found = machine.describe_machine()
    assert json.loads(json.dumps(found)) == found
    assert found.keys() == {"versions", "hardware"}
    assert found["hardware"] == machine.describe_hardware()
    assert found["versions"]["python"].split(".")[:2] == [str(n) for n in sys.version_info[:2]]
    assert found["versions"]["numpy"] == np.__version__
    assert None not in found["versions"].values()
