"""The loss of a training, and the Dice shown while it goes on."""

import keras
import numpy as np
from keras import ops

from unetseg.annotation import IGNORED

registered = keras.saving.register_keras_serializable(package="unetseg")


@registered
def dice_cross_entropy(y_true, y_pred, members=None, class_weights=None):
    """Soft Dice loss of the foreground classes plus cross-entropy (Isensee et al. 2021).

    Parameters
    ----------
    y_true : (batch, ..., 1) tensor
        Class numbers; voxels of 255, which nobody drew, do not count.
    y_pred : (batch, ..., class) tensor of float32
        Class probabilities.
    members : (class, region) ndarray of float32, optional
        1 where a class is part of a region: Dice is then of the regions, whose probabilities are
        the sums of those of their classes.
    class_weights : (class,) ndarray of float32, optional
        How much a voxel of each class, the background first, counts in the cross-entropy.

    Returns
    -------
    scalar tensor
        ``1 - mean Dice + cross-entropy``, at least 0. Dice pools the batch, and its mean is over
        the foreground classes, or regions, that the batch holds. What it lacks is left to
        cross-entropy: as Dice it would reward that a class is never predicted, so small structures
        among many would not be learnt. A batch of background has its cross-entropy alone.
    """
    truth, drawn = _encode(y_true, y_pred.shape[-1])
    axes = tuple(range(len(y_pred.shape) - 1))
    true, found = truth[..., 1:], (drawn * y_pred)[..., 1:]
    if members is not None:
        true, found = (ops.matmul(part, members[1:]) for part in (true, found))
    overlap = ops.sum(true * found, axis=axes)
    there = ops.sum(true, axis=axes)
    total = there + ops.sum(found, axis=axes)
    dice = (2 * overlap + 1.0) / (total + 1.0)  # 1 voxel of smoothing
    held = ops.cast(there > 0, dice.dtype)
    missed = ops.sum((1 - dice) * held) / ops.maximum(ops.sum(held), 1.0)
    log = ops.log(ops.clip(y_pred, 1e-7, 1.0))
    counted = truth if class_weights is None else truth * class_weights
    return missed - ops.sum(counted * log) / ops.maximum(ops.sum(counted), 1e-7)


def _encode(y_true, num_classes):
    # One-hot, all 0 where nobody drew; and where somebody did.
    numbers = ops.cast(y_true[..., 0], "float32")
    drawn = ops.cast(numbers != IGNORED, "float32")
    classes = ops.cast(numbers * drawn, "int32")
    return drawn[..., None] * ops.one_hot(classes, num_classes), drawn[..., None]


@registered
def patch_loss(y_true, y_pred):
    """`dice_cross_entropy` in one dimension: Keras would add scalars up over the GPUs."""
    return ops.reshape(dice_cross_entropy(y_true, y_pred), (1,))


@registered
class PatchLoss:
    """Another loss in one dimension, as `patch_loss`.

    Parameters
    ----------
    loss : callable, default dice_cross_entropy
        Of ``y_true`` and ``y_pred``, as `dice_cross_entropy`.
    **settings
        Further arguments of the loss: ndarrays, or None.
    """

    __name__ = "patch_loss"

    def __init__(self, loss=dice_cross_entropy, **settings):
        self.loss, self.settings = loss, settings

    def __call__(self, y_true, y_pred):
        """Give the loss of a batch, as a tensor of one number."""
        return ops.reshape(self.loss(y_true, y_pred, **self.settings), (1,))

    def get_config(self):
        """Arguments with which Keras makes it again."""
        given = {name: array for name, array in self.settings.items() if array is not None}
        lists = {name: np.asarray(array).tolist() for name, array in given.items()}
        return {"loss": keras.saving.serialize_keras_object(self.loss), **lists}

    @classmethod
    def from_config(cls, config):
        """Make it of what `get_config` returned."""
        loss = keras.saving.deserialize_keras_object(config.pop("loss"))
        return cls(loss, **{name: np.array(v, np.float32) for name, v in config.items()})


@registered
class Accuracy(keras.metrics.Mean):
    """Share of the voxels whose class is right, in [0, 1], of those that somebody drew."""

    def __init__(self, name="accuracy", **kwargs):
        super().__init__(name=name, **kwargs)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Count the voxels of one batch; arguments as for `dice_cross_entropy`."""
        numbers = ops.cast(y_true[..., 0], "float32")
        right = numbers == ops.cast(ops.argmax(y_pred, axis=-1), "float32")
        super().update_state(right, ops.cast(numbers != IGNORED, "float32"))


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
        truth, drawn = _encode(y_true, self.num_classes)
        found = drawn * ops.one_hot(ops.argmax(y_pred, axis=-1), self.num_classes)
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
