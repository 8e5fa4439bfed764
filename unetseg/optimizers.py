"""The optimizer: steps of AdamW, for kernels made orthogonal."""

import math

import keras
from keras import ops

from unetseg.run import devices

STEPS = 5  # of Newton and Schulz

registered = keras.saving.register_keras_serializable(package="unetseg")


@registered
class Muon(keras.optimizers.AdamW):
    """AdamW whose steps for convolution kernels are made orthogonal (Jordan et al. 2024).

    The momentum of a kernel, as a matrix from its inputs to its output channels, is replaced by
    the nearest orthogonal matrix, times 0.2 and the root of the longer side, so that learning
    rates of AdamW fit (Liu et al. 2025). A U-Net reaches the same Dice in fewer steps; Keras' own
    Muon does not take kernels of convolutions. Biases, scales and matrices with a side of less
    than 8 are left to AdamW. Arguments as for AdamW.
    """

    momentum = 0.95

    def update_step(self, gradient, variable, learning_rate):
        """Move one variable."""
        sides = (math.prod(variable.shape[:-1]), *variable.shape[-1:])
        if len(variable.shape) < 4 or min(sides) < 8:
            return super().update_step(gradient, variable, learning_rate)
        gradient = ops.cast(gradient, variable.dtype)
        speed = self._momentums[self._get_variable_index(variable)]
        self.assign(speed, self.momentum * speed + gradient)
        step = ops.reshape(gradient + self.momentum * speed, sides)
        step = ops.transpose(step) if sides[0] > sides[1] else step
        step = orthogonalise(step)
        step = ops.transpose(step) if sides[0] > sides[1] else step
        rate = ops.cast(learning_rate, variable.dtype) * 0.2 * max(sides) ** 0.5
        return self.assign_sub(variable, rate * ops.reshape(step, variable.shape))


def orthogonalise(matrix):
    """Make a matrix about orthogonal: its singular values come to between 0.7 and 1.2.

    Five Newton-Schulz steps of Jordan et al. (2024). On a processor they run on the small square
    matrix of products of rows, which is faster. GPUs and TPUs multiply with 7 to 10 bits, in which
    that would let the smallest singular values grow without bound: there they run on the whole.

    Parameters
    ----------
    matrix : (n, m) tensor of float32
        With n <= m.

    Returns
    -------
    (n, m) tensor of float32
    """
    norm = ops.sqrt(ops.sum(ops.square(matrix))) + 1e-7
    if devices.list_devices()[0] == "cpu":
        return ops.matmul(_iterate_on_products(matrix, norm) / norm, matrix)
    matrix = matrix / norm
    for _ in range(STEPS):
        matrix = ops.matmul(_find_factor(ops.matmul(matrix, ops.transpose(matrix))), matrix)
    return matrix


def _iterate_on_products(matrix, norm):
    gram = ops.matmul(matrix, ops.transpose(matrix)) / ops.square(norm)
    total = ops.eye(matrix.shape[0])
    for _ in range(STEPS):
        factor = _find_factor(gram)
        total = ops.matmul(factor, total)
        gram = ops.matmul(ops.matmul(factor, gram), factor)
    return total


def _find_factor(gram):
    identity = ops.eye(gram.shape[0])
    return 3.4445 * identity - 4.7750 * gram + 2.0315 * ops.matmul(gram, gram)
