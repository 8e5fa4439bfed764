"""What Keras computes on, by stand-ins for machines that are not here."""

import sys
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf

from unetseg.run import devices


@pytest.mark.parametrize(
    ("device", "cores", "makers"), [("cpu:0", 6, 0), ("gpu:0", 6, 6), ("gpu:0", 64, 8)]
)
def test_beside_a_gpu_cores_make_batches(monkeypatch, device, cores, makers):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda *kind: [device])
    monkeypatch.setattr(devices, "describe_hardware", lambda: {"cores": cores})
    assert devices.count_makers() == makers


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
    [(7.5, "mixed_float16"), (7.0, "mixed_float16"), (3.7, "float32"), (None, "float32")],
)
def test_on_a_gpu_float16_is_chosen_from_compute_capability_7(monkeypatch, capability, expected):
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


@pytest.mark.parametrize("there", [False, True])
def test_pytorch_is_asked_itself_whether_it_has_a_gpu(monkeypatch, there):
    cuda = SimpleNamespace(is_available=lambda: there)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(keras.backend, "backend", lambda: "torch")
    assert devices.computes_on_gpu() is there
