"""What Keras computes on: processor or GPUs, and in which precision."""

import contextlib
import re
from pathlib import Path

import keras

from unetseg.run.machine import describe_hardware

# As TensorFlow, JAX and PyTorch say it.
NO_MEMORY = re.compile(
    r"resource_?exhausted|out ?of ?memory|OOM when|STATUS_ALLOC_FAILED", re.IGNORECASE
)
MOST_MAKERS = 8  # each holds a batch
OF_GPUS = {8: "mixed_bfloat16", 7: "mixed_float16"}  # by the least compute capability
PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def list_devices():
    """List what Keras' backend computes on: each is "cpu", "gpu" or "tpu".

    A GPU whose driver alone is there, and not what the backend needs, is not listed.
    """
    if keras.backend.backend() == "torch":  # of which keras.distribution does not know
        import torch  # here, as Keras may run without it

        return ["gpu"] * torch.cuda.device_count() or ["cpu"]
    kinds = [name.partition(":")[0] for name in keras.distribution.list_devices()]
    return ["gpu" if kind == "cuda" else kind for kind in kinds]


def describe():
    """Tell by what is computed: Keras' ``backend``, and the kind of its ``device``."""
    return {"backend": keras.backend.backend(), "device": list_devices()[0]}


def computes_on_gpu():
    """Whether Keras' backend has a GPU to compute on."""
    return list_devices()[0] == "gpu"


def compiles_each_size():
    """Whether a network is compiled, for seconds, for each size of batch: by XLA."""
    return keras.backend.backend() == "jax" or list_devices()[0] in ("gpu", "tpu")


def count_makers():
    """Count threads that make batches during a step: none if the processor computes it.

    Beside a GPU or TPU one for each core, up to 8.
    """
    return 0 if list_devices()[0] == "cpu" else min(MOST_MAKERS, describe_hardware()["cores"])


def list_gpus():
    """List the GPUs that one training can share, by their names in TensorFlow."""
    return keras.distribution.list_devices("gpu") if keras.backend.backend() == "tensorflow" else []


@contextlib.contextmanager
def explain_memory(words):
    """Say in words that memory ran out, in the place of what Keras' backend says.

    Parameters
    ----------
    words : str
        What did not find room, and what would.

    Raises
    ------
    MemoryError
        If what is done within raises an error of that kind; others pass.
    """
    try:
        yield
    except Exception as error:
        if not NO_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        where = "of the GPU" if computes_on_gpu() else "of this machine"
        raise MemoryError(f"The memory {where} is full: {words}") from None


def share_gpus(batch_size):
    """Make the context in which a network is built and compiled to train on several GPUs.

    Each GPU has a copy of the network and takes an equal part of every batch. The only place
    that knows of TensorFlow.

    Parameters
    ----------
    batch_size : int
        Of all GPUs together. As many are used as can share it evenly.

    Returns
    -------
    context manager
        One that does nothing if that is less than two, or without TensorFlow.
    """
    gpus = list_gpus()
    count = max((n for n in range(2, len(gpus) + 1) if batch_size % n == 0), default=1)
    if count == 1:
        return contextlib.nullcontext()
    import tensorflow as tf  # here, as Keras may run without it

    return tf.distribute.MirroredStrategy(gpus[:count]).scope()


def choose_precision(precision="auto", *, bfloat16=True):
    """Name the Keras dtype policy that is fast on this hardware.

    Parameters
    ----------
    precision : {"auto", "float32", "mixed_bfloat16", "mixed_float16"}
        Anything but ``auto`` is returned as it is.
    bfloat16 : bool, default True
        Whether the network bears it (`unetseg.recipe.bears_bfloat16`); GPUs bear all.

    Returns
    -------
    str
        bfloat16, in which the recipe was measured and numbers do not overflow, on a GPU of compute
        capability 8 or higher, a TPU, and a processor with AVX512-BF16 or AMX; float16 on a GPU
        of capability 7; else float32.
    """
    if precision != "auto":
        return precision
    kind = list_devices()[0]
    if kind == "gpu":
        capability = describe_hardware()["gpu_capability"] or 0
        return next((name for least, name in OF_GPUS.items() if capability >= least), "float32")
    fast = bfloat16 and (kind == "tpu" or _computes_in_bfloat16())
    return "mixed_bfloat16" if fast else "float32"


def _computes_in_bfloat16():
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and bool(re.search(r"\b(avx512_bf16|amx_bf16)\b", cpu.read_text()))
