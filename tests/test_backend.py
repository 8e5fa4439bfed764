"""What Keras computes with, by stand-ins for machines and packages that are not here."""

import importlib.metadata
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from unetseg.run import backend

NVIDIA_SMI = "#!/bin/sh\necho 'NVIDIA RTX PRO 6000 Blackwell, {}, 97887'\n"


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Return a function that makes a machine with these packages and this GPU."""

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def make(*installed, tensorflow="2.21.0", capability=None, keras_json=None):
        versions = {"tensorflow": tensorflow}
        find = lambda name: name if name in installed else None  # noqa: E731
        monkeypatch.setattr(importlib.util, "find_spec", find)
        monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
        monkeypatch.setenv("KERAS_HOME", str(tmp_path))
        monkeypatch.setenv("KERAS_BACKEND", "")
        hardware = {"gpu": capability and "RTX PRO 6000", "gpu_capability": capability}
        monkeypatch.setattr(backend, "describe_hardware", lambda: hardware)
        if keras_json is not None:
            (tmp_path / "keras.json").write_text(keras_json)

    return make


@pytest.mark.parametrize(
    ("installed", "about", "expected"),
    [
        (("tensorflow", "jax", "torch"), {}, ""),
        (("tensorflow", "jax"), {"capability": 9.0}, ""),
        (("tensorflow", "jax"), {"capability": 12.0}, "jax"),
        (("tensorflow", "torch"), {"capability": 12.0, "tensorflow": "2.20.0"}, "torch"),
        (("tensorflow", "jax"), {"capability": 12.0, "tensorflow": "2.22.0rc0"}, ""),
        (("jax", "torch"), {}, "jax"),
        (("torch",), {"keras_json": '{"backend": "tensorflow"}'}, "torch"),
        (("tensorflow", "torch"), {"capability": 12.0, "keras_json": '{"backend": "jax"}'}, ""),
        (("jax",), {"keras_json": "{"}, "jax"),
    ],
)
def test_tensorflow_is_taken_unless_it_is_missing_or_fails_there(
    machine, installed, about, expected
):
    machine(*installed, **about)
    backend.choose_backend()
    assert os.environ["KERAS_BACKEND"] == expected


@pytest.mark.parametrize(("platform", "visible"), [("win32", "0"), ("linux", "-1"), ("linux", "")])
def test_a_gpu_that_tensorflow_does_not_use_does_no_harm(machine, monkeypatch, platform, visible):
    machine("tensorflow", capability=12.0)
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    backend.choose_backend()
    assert os.environ["KERAS_BACKEND"] == ""


def test_what_the_user_chose_stays(machine, monkeypatch):
    machine("jax")
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    backend.choose_backend()
    assert os.environ["KERAS_BACKEND"] == "tensorflow"


@pytest.mark.parametrize(
    ("installed", "about", "words"),
    [
        ((), {}, r'TensorFlow is not installed, .* pip install "tensorflow>=2\.20"'),
        (
            ("tensorflow",),
            {"capability": 12.0},
            r'on this GPU \(RTX PRO 6000\), and .* pip install "jax\[cuda12\]"',
        ),
    ],
)
def test_where_nothing_can_compute_what_to_install_is_said(machine, installed, about, words):
    machine(*installed, **about)
    with pytest.raises(ImportError, match=words):
        backend.choose_backend()


def test_keras_asks_before_it_is_imported(tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text(NVIDIA_SMI.format("12.0"))
    smi.chmod(0o755)
    code = """
import importlib.metadata, importlib.util
import unetseg
found = importlib.metadata.version
importlib.metadata.version = lambda name: "2.21.0" if name == "tensorflow" else found(name)
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *a: None if name in ("jax", "torch") else find(name, *a)
from unetseg import metrics  # needs no Keras
try:
    import keras
except ImportError as error:
    print(error)
"""
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "KERAS_BACKEND": "", "KERAS_HOME": str(tmp_path)}
    environment["PYTHONPATH"] = str(Path(__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment
    )
    assert "cannot compute on this GPU (NVIDIA RTX PRO 6000 Blackwell)" in done.stdout, done.stderr
