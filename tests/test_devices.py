"""What Keras computes on, by stand-ins for machines that are not here."""

import sys
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from unetseg.run import devices, machine
from unetseg.workspace import name_hardware


@pytest.mark.parametrize(
    ("device", "cores", "makers"),
    [("cpu:0", 6, 0), ("gpu:0", 6, 6), ("gpu:0", 64, 8), ("tpu:0", 6, 6)],
)
def test_beside_a_gpu_or_tpu_cores_make_batches(monkeypatch, device, cores, makers):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda *kind: [device])
    monkeypatch.setattr(devices, "describe_hardware", lambda: {"cores": cores})
    assert devices.count_makers() == makers


@pytest.mark.parametrize(
    ("backend", "device", "each"),
    [
        ("tensorflow", "cpu:0", False),
        ("tensorflow", "gpu:0", True),
        ("jax", "cpu:0", True),
        ("jax", "tpu:0", True),
    ],
)
def test_xla_compiles_each_size_of_batch(monkeypatch, backend, device, each):
    monkeypatch.setattr(keras.backend, "backend", lambda: backend)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda *kind: [device])
    assert devices.compiles_each_size() is each


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_precision_that_is_named_is_taken(precision):
    assert devices.choose_precision(precision) == precision


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx2 avx512f", "float32"),
        ("flags : fpu avx512_bf16 sse", "mixed_bfloat16"),
        ("flags : amx_bf16", "mixed_bfloat16"),
        ("Features : asimd bf16", "float32"),
    ],
)
def test_on_a_processor_bfloat16_is_chosen_where_it_is_built_in(
    tmp_path, monkeypatch, flags, expected
):
    (tmp_path / "cpuinfo").write_text(flags)
    monkeypatch.setattr(keras.distribution, "list_devices", lambda *kind: ["cpu:0"])
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / "cpuinfo")
    assert devices.choose_precision() == expected


@pytest.mark.parametrize(
    ("capability", "expected"),
    [
        (12.0, "mixed_bfloat16"),
        (8.0, "mixed_bfloat16"),
        (7.5, "mixed_float16"),
        (7.0, "mixed_float16"),
        (3.7, "float32"),
        (None, "float32"),
    ],
)
def test_on_a_gpu_the_compute_capability_chooses(monkeypatch, capability, expected):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda *kind: ["gpu:0"])
    monkeypatch.setattr(devices, "describe_hardware", lambda: {"gpu_capability": capability})
    assert devices.choose_precision() == expected


def test_a_network_that_does_not_bear_bfloat16_gets_float32(tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text("flags : avx512_bf16")
    monkeypatch.setattr(keras.distribution, "list_devices", lambda *kind: ["cpu:0"])
    monkeypatch.setattr(devices, "Path", lambda path: tmp_path / "cpuinfo")
    assert devices.choose_precision(bfloat16=False) == "float32"
    assert devices.choose_precision("mixed_bfloat16", bfloat16=False) == "mixed_bfloat16"


@pytest.mark.parametrize(("batch", "shared"), [(1, 1), (2, 2), (3, 3), (4, 2), (6, 3), (5, 1)])
def test_a_batch_is_shared_by_as_many_gpus_as_divide_it(monkeypatch, gpus, batch, shared):
    class Strategy:
        def __init__(self, devices):
            self.devices = devices

        def scope(self):
            return self

    gpus(3)
    monkeypatch.setattr(tf.distribute, "MirroredStrategy", Strategy)
    assert len(getattr(devices.share_gpus(batch), "devices", ["one"])) == shared


class OutOfMemoryError(RuntimeError):
    """Named as that of PyTorch."""


def fill_tensorflow():
    raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor with shape[9]")


def fill_jax():
    raise RuntimeError(
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 8589934592 bytes"
    )


def fill_torch():
    raise OutOfMemoryError("CUDA error")


@pytest.mark.parametrize("fill", [fill_tensorflow, fill_jax, fill_torch])
def test_that_memory_ran_out_is_said_in_words(fill):
    with pytest.raises(MemoryError) as caught, devices.explain_memory("a smaller patch would do."):
        fill()
    assert str(caught.value) == "The memory of this machine is full: a smaller patch would do."
    assert caught.value.__suppress_context__


def test_other_errors_pass():
    with pytest.raises(ValueError, match="something else"), devices.explain_memory("no."):
        raise ValueError("something else")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_pytorch_is_asked_itself_how_many_gpus_it_has(monkeypatch, count):
    cuda = SimpleNamespace(device_count=lambda: count)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    assert devices.list_devices() == (["gpu"] * count or ["cpu"])
    assert devices.computes_on_gpu() is (count > 0)


@pytest.mark.parametrize(
    ("listed", "kinds"),
    [(["cpu:0"], ["cpu"]), (["gpu:0", "gpu:1"], ["gpu", "gpu"]), (["cuda:0"], ["gpu"])],
)
def test_devices_are_named_by_kind_however_the_backend_spells_them(monkeypatch, listed, kinds):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda *kind: listed)
    assert devices.list_devices() == kinds
    assert devices.computes_on_gpu() is (kinds[0] == "gpu")


def test_a_tpu_computes_in_bfloat16_if_the_network_bears_it(monkeypatch):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda *kind: ["tpu:0"])
    assert not devices.computes_on_gpu()
    assert devices.choose_precision() == "mixed_bfloat16"
    assert devices.choose_precision(bfloat16=False) == "float32"


@pytest.mark.parametrize(
    ("kinds", "shared", "name"),
    [
        (["cpu"], [], "EPYC"),
        (["cpu", "cpu"], [], "EPYC"),
        (["gpu"], [], "Tesla T4"),
        (["gpu", "gpu"], ["gpu:0", "gpu:1"], "Tesla T4"),
        (["gpu", "gpu"], [], "Tesla T4, one of 2, as a training shares"),
        (["tpu"], [], "a TPU"),
    ],
)
def test_what_is_computed_on_is_named_and_what_stays_idle(monkeypatch, kinds, shared, name):
    monkeypatch.setattr(devices, "list_devices", lambda: kinds)
    monkeypatch.setattr(devices, "list_gpus", lambda: shared)
    there = {"processor": "EPYC", "gpu": "Tesla T4" if "gpu" in kinds else None}
    monkeypatch.setattr(machine, "describe_hardware", lambda: there)
    assert name_hardware().startswith(name)
    assert ("one of" in name_hardware()) == ("one of" in name)
