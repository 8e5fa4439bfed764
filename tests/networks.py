"""What tests of networks share."""

import keras
import numpy as np
import pytest
from keras import ops


@pytest.fixture(autouse=True)
def float32_policy():
    """Every test starts and leaves with float32."""
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def gradients(function, *arrays):
    """Gradients of a scalar function of tensors, on the backend that there is."""
    tensors = [ops.convert_to_tensor(array) for array in arrays]
    if keras.backend.backend() == "jax":
        import jax

        return jax.grad(function, argnums=tuple(range(len(tensors))))(*tensors)
    import tensorflow as tf

    with tf.GradientTape() as tape:
        tape.watch(tensors)
        total = function(*tensors)
    return tape.gradient(total, tensors)
