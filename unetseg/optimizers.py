"""The optimizer: steps of AdamW, for kernels made orthogonal."""

import math

import keras
from keras import ops

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
        step = ops.matmul(nearest_orthogonal(step), step)
        step = ops.transpose(step) if sides[0] > sides[1] else step
        rate = ops.cast(learning_rate, variable.dtype) * 0.2 * max(sides) ** 0.5
        return self.assign_sub(variable, rate * ops.reshape(step, variable.shape))


def nearest_orthogonal(matrix):
    """Find the matrix that makes another about orthogonal when it multiplies it from the left.

    Five Newton-Schulz steps of Jordan et al. (2024) that bring the singular values to between
    0.7 and 1.2. They run on the small square matrix of products of rows.

    Parameters
    ----------
    matrix : (n, m) tensor of float32
        With n <= m.

    Returns
    -------
    (n, n) tensor of float32
    """
    norm = ops.sqrt(ops.sum(ops.square(matrix))) + 1e-7
    gram = ops.matmul(matrix, ops.transpose(matrix)) / ops.square(norm)
    identity = total = ops.eye(matrix.shape[0])
    for _ in range(5):
        factor = 3.4445 * identity - 4.7750 * gram + 2.0315 * ops.matmul(gram, gram)
        total = ops.matmul(factor, total)
        gram = ops.matmul(ops.matmul(factor, gram), factor)
    return total / norm
