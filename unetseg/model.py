"""The U-Net and its plan."""

import contextlib
import functools
import math

import keras
import numpy as np
from keras import layers, ops

from unetseg._base import require

MAX_FILTERS = 320  # as in nnU-Net: deeper levels get no wider than this
WIDEST = 8  # times the first level: wider ones cost two fifths of a step and gain nothing
MIN_SIDE = 4  # voxels: a level whose side would be shorter is not made (nnU-Net)


def plan_unet(
    preprocessor,
    *,
    filters=16,
    depth=None,
    dropout=0.0,
    strides=None,
    kernels=None,
    max_filters=None,
):
    """Choose how often, along which axes and with which kernels a U-Net works on a patch.

    An axis is halved while its length is even, at least 4 voxels remain of it, and its voxels
    are less than twice as long as the shortest of these; so an axis of low resolution is halved
    once the others have become as coarse. Until then kernels span 1 voxel along it, else 3
    (Isensee et al. 2021).

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    filters, dropout
        As for `build_unet`.
    depth : int, optional
        How often the patch is halved. By default as often as it bears.
    strides, kernels
        As for `build_unet`, to be taken instead of the planned ones.
    max_filters : int, optional
        As for `build_unet`. By default eight times as many as the first level has, at most 320.

    Returns
    -------
    dict
        Arguments of `build_unet`: ``filters``, ``depth``, ``dropout``, ``strides``, ``kernels``,
        ``max_filters``.
    """
    axes = [axis for axis in range(3) if preprocessor.patch[axis] > 1]
    side = np.array(preprocessor.patch)[axes]
    length_mm = np.array(preprocessor.spacing_mm)[axes]
    given, strides, widths = strides, [], []
    wide = length_mm < 2 * length_mm.min()
    while True:
        widths.append(tuple(np.where(wide, 3, 1).tolist()))
        fits = (side >= 2 * MIN_SIDE) & (side % 2 == 0)
        shortest = length_mm[fits].min(initial=length_mm.max())
        halved = fits & (length_mm < 2 * shortest)
        if given:
            halved = np.array([*given, [1] * len(axes)][len(strides)]) > 1
        if not halved.any() or len(strides) == depth:
            break
        strides.append(tuple(np.where(halved, 2, 1).tolist()))
        side, length_mm = side // strides[-1], length_mm * strides[-1]
        wide = wide | halved | (length_mm < 2 * length_mm.min())
    long = "of at least 8 voxels, and an even number, along some axis"
    require("patch", preprocessor.patch, strides or depth == 0, long)
    allowed = f"from 1 to {len(strides)} for this patch"
    require("depth", depth, depth in (None, len(given or strides) or -1), allowed)
    plan = {"filters": filters, "depth": len(strides), "dropout": dropout}
    widest = WIDEST * filters if len(strides) > math.log2(WIDEST) else MAX_FILTERS
    plan["max_filters"] = max_filters or min(widest, MAX_FILTERS)
    return {**plan, "strides": given or strides, "kernels": kernels or widths}


registered = keras.saving.register_keras_serializable(package="unetseg")


@registered
class InstanceNormalization(layers.Layer):
    """Normalise every channel of every image to mean 0 and variance 1 (Ulyanov et al. 2016).

    Then scale and shift it. Computes in float32. The same as Keras' GroupNormalization with one
    group per channel, at about half of its time on a processor: the last spatial axis is folded
    into the channels, so that sums run over long rows.
    """

    def build(self, input_shape):
        """Make the scale and the shift of every channel."""
        self.gamma = self.add_weight(shape=input_shape[-1:], initializer="ones", name="gamma")
        self.beta = self.add_weight(shape=input_shape[-1:], initializer="zeros", name="beta")

    def call(self, x):
        """Normalise (batch, ..., channel); the shape but the batch must be known."""
        *_, row, channels = x.shape
        voxels = float(np.prod(x.shape[1:-1]))
        rows = ops.cast(ops.reshape(x, (-1, int(voxels) // row, row * channels)), "float32")

        def mean(values):
            folded = ops.reshape(ops.sum(values, axis=1), (-1, row, channels))
            return ops.sum(folded, axis=1, keepdims=True) / voxels

        def unfold(value):
            return ops.tile(ops.reshape(value, (-1, 1, channels)), (1, 1, row))

        rows = rows - unfold(mean(rows))
        scale = ops.cast(self.gamma, "float32") * ops.rsqrt(mean(ops.square(rows)) + 1e-5)
        rows = rows * unfold(scale) + unfold(ops.cast(self.beta, "float32"))
        return ops.reshape(ops.cast(rows, x.dtype), (-1, *x.shape[1:]))


def _channels_last(name):
    # Whatever ~/.keras/keras.json says.
    return functools.partial(getattr(layers, name), data_format="channels_last")


def build_unet(
    input_shape,
    num_classes,
    *,
    filters=16,
    depth=3,
    dropout=0.0,
    strides=None,
    kernels=None,
    max_filters=MAX_FILTERS,
):
    """Build a U-Net (Ronneberger et al. 2015; 3-D: Cicek et al. 2016) with nnU-Net's blocks.

    Two convolutions with instance normalisation and LeakyReLU per level; strided ones shrink
    the image, transposed ones enlarge it again, and the levels of one size are concatenated.

    Parameters
    ----------
    input_shape : tuple of int
        (x, y, channel) makes a 2-D network, (x, y, z, channel) a 3-D one.
    num_classes : int
        The background included; at least 2.
    filters : int, default 16
        Of the first level; each level has twice as many, up to `max_filters`.
    depth : int, default 3
        How often the image is shrunk.
    dropout : float, default 0
        Share of feature maps that is dropped at the end of each block, in [0, 1).
    strides : sequence of tuple of int, optional
        By how much each axis shrinks, `depth` times. By default by 2. Every side of the input
        must be a multiple of the product.
    kernels : sequence of tuple of int, optional
        Sizes of the kernels at each of the ``depth + 1`` levels. By default 3.
    max_filters : int, default 320

    Returns
    -------
    keras.Model
        Uncompiled; from (batch, *input_shape) to float32 class probabilities
        (batch, *input_shape[:-1], num_classes).

    Raises
    ------
    ValueError
        If an argument does not fit.
    """
    ndim = len(input_shape) - 1
    require("input_shape", input_shape, ndim in (2, 3), "(x, y[, z], channel)")
    require("num_classes", num_classes, num_classes >= 2, "at least 2, with the background")
    require("filters", filters, filters >= 1, "at least 1")
    require("depth", depth, depth >= 1, "at least 1")
    require("dropout", dropout, 0 <= dropout < 1, "in [0, 1)")
    strides = strides or [(2,) * ndim] * depth
    kernels = kernels or [(3,) * ndim] * (depth + 1)
    require("strides", strides, len(strides) == depth, f"one per level, depth={depth}")
    require("kernels", kernels, len(kernels) == depth + 1, f"one per level, depth={depth}, and one")
    _require_multiple(input_shape, strides)
    widths = [min(filters * 2**level, max_filters) for level in range(depth + 1)]
    inputs = keras.Input(input_shape)
    skips = [_block(inputs, widths[0], kernels[0], dropout)]
    for level, stride in enumerate(strides, start=1):
        skips.append(_block(skips[-1], widths[level], kernels[level], dropout, stride))
    x, enlarge = skips.pop(), _channels_last(f"Conv{ndim}DTranspose")
    for level in reversed(range(depth)):
        x = enlarge(widths[level], strides[level], strides[level])(x)
        both = layers.Concatenate()([x, skips[level]])
        x = _block(both, widths[level], kernels[level], dropout)
    classify = {"activation": "softmax", "dtype": "float32"}
    outputs = _channels_last(f"Conv{ndim}D")(num_classes, 1, **classify)(x)
    return keras.Model(inputs, outputs, name=f"unet{ndim}d")


def _require_multiple(input_shape, strides):
    multiple = np.prod(strides, axis=0)
    sides = np.array(input_shape[:-1])
    fitting = tuple((-(-sides // multiple) * multiple).tolist())
    allowed = f"multiples of {multiple.tolist()}, then a channel: use {fitting} or less depth"
    require("input_shape", input_shape, fitting == tuple(input_shape[:-1]), allowed)


def _block(x, width, kernel, dropout, stride=1):
    # Two convolutions, the first one strided.
    make = _channels_last(f"Conv{len(x.shape) - 2}D")
    # Without a bias, which the normalisation would take out again.
    settings = {"padding": "same", "use_bias": False, "kernel_initializer": "he_normal"}
    for step in (stride, 1):
        convolution = make(width, kernel, step, **settings)
        x = InstanceNormalization()(convolution(x))
        x = layers.LeakyReLU(negative_slope=0.01)(x)
    if dropout:
        x = _channels_last(f"SpatialDropout{len(x.shape) - 2}D")(dropout)(x)
    return x


@contextlib.contextmanager
def usual_settings(precision="float32"):
    """Let Keras work as it does without a ``keras.json`` of other settings.

    Channels come last, numbers are float32, epsilon is 1e-7. Afterwards all is as before.

    Parameters
    ----------
    precision : str, default "float32"
        Dtype policy of the layers that are made meanwhile.
    """
    config = keras.config
    before = config.dtype_policy(), config.floatx(), config.image_data_format(), config.epsilon()
    try:
        _set_keras(precision, "float32", "channels_last", 1e-7)
        yield
    finally:
        _set_keras(*before)


def _set_keras(policy, floatx, data_format, epsilon):
    keras.config.set_floatx(floatx)
    keras.config.set_image_data_format(data_format)
    keras.config.set_epsilon(epsilon)
    keras.config.set_dtype_policy(policy)


def build_for(preprocessor, build_model, model_args, precision="float32"):
    """Build the network for a preprocessor, computing in a precision.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    build_model : callable
        As `build_unet`: ``build_model(input_shape, num_classes, **model_args)``.
    model_args : dict
    precision : str, default "float32"
        Dtype policy of Keras, such as `unetseg.run.devices.choose_precision` names it. Keras' own
        setting is as before afterwards.

    Returns
    -------
    keras.Model
        Uncompiled.

    Raises
    ------
    ValueError
        If the model does not give a probability per voxel and class.
    """
    with usual_settings(precision):
        model = build_model(preprocessor.input_shape, preprocessor.num_classes, **model_args)
    expected = (None, *preprocessor.input_shape[:-1], preprocessor.num_classes)
    if tuple(model.output_shape) != expected:
        wanted = f"return a model with output shape {expected}, a probability per voxel and class"
        raise ValueError(f"build_model must {wanted}. Received: {model.output_shape}")
    return model
