"""The loss of a training, and the Dice shown while it goes on."""

import keras
from keras import ops

registered = keras.saving.register_keras_serializable(package="unetseg")


@registered
def dice_cross_entropy(y_true, y_pred):
    """Soft Dice loss of the foreground classes plus cross-entropy (Isensee et al. 2021).

    Parameters
    ----------
    y_true : (batch, ..., 1) tensor
        Class numbers.
    y_pred : (batch, ..., class) tensor of float32
        Class probabilities.

    Returns
    -------
    scalar tensor
        ``1 - mean Dice + cross-entropy``, at least 0. Dice pools the batch, and its mean is over
        the foreground classes that the batch holds. What it lacks is left to cross-entropy: as
        Dice it would reward that a class is never predicted, so small structures among many would
        not be learnt. A batch of background has its cross-entropy alone.
    """
    truth = ops.one_hot(ops.cast(y_true[..., 0], "int32"), y_pred.shape[-1])
    axes = tuple(range(len(y_pred.shape) - 1))
    overlap = ops.sum(truth * y_pred, axis=axes)
    there = ops.sum(truth, axis=axes)
    total = there + ops.sum(y_pred, axis=axes)
    dice = (2 * overlap + 1.0) / (total + 1.0)  # 1 voxel of smoothing
    held = ops.cast(there > 0, dice.dtype)[1:]
    missed = ops.sum((1 - dice[1:]) * held) / ops.maximum(ops.sum(held), 1.0)
    log = ops.log(ops.clip(y_pred, 1e-7, 1.0))
    return missed - ops.mean(ops.sum(truth * log, axis=-1))


@registered
def patch_loss(y_true, y_pred):
    """`dice_cross_entropy` in one dimension: Keras would add scalars up over the GPUs."""
    return ops.expand_dims(dice_cross_entropy(y_true, y_pred), 0)


@registered
class ForegroundDice(keras.metrics.Metric):
    """Mean Dice of the foreground classes, pooled over all voxels since the last reset.

    A training monitor: it counts patches on the network's grid. Scores of cases come from
    `unetseg.scores`. A class that is neither there nor predicted takes no part in the mean.

    Parameters
    ----------
    num_classes : int
        The background included.
    name : str, default "dice"
    """

    def __init__(self, num_classes, name="dice", **kwargs):
        super().__init__(name=name, **kwargs)
        self.num_classes = num_classes
        self.overlap = self.add_weight(shape=(num_classes,), name="overlap", initializer="zeros")
        self.total = self.add_weight(shape=(num_classes,), name="total", initializer="zeros")

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count the voxels of one batch; arguments as for `dice_cross_entropy`."""
        truth = ops.one_hot(ops.cast(y_true[..., 0], "int32"), self.num_classes)
        found = ops.one_hot(ops.argmax(y_pred, axis=-1), self.num_classes)
        axes = tuple(range(len(y_pred.shape) - 1))
        self.overlap.assign_add(ops.sum(truth * found, axis=axes))
        self.total.assign_add(ops.sum(truth, axis=axes) + ops.sum(found, axis=axes))

    def get_config(self):
        """Arguments with which Keras makes it again."""
        return {**super().get_config(), "num_classes": self.num_classes}

    def result(self):
        """Mean over the foreground classes that occurred, in [0, 1]."""
        occurred = ops.cast(self.total[1:] > 0, "float32")
        dice = 2 * self.overlap[1:] / ops.maximum(self.total[1:], 1.0)
        return ops.sum(dice) / ops.maximum(ops.sum(occurred), 1.0)
