"""The U-Net, its loss, and the Dice shown while it trains."""

import re
from pathlib import Path

import keras
from keras import layers, ops

from unetseg.workspace import describe_machine

PRECISIONS = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
NORMALIZATIONS = {
    "instance": lambda: layers.GroupNormalization(groups=-1, epsilon=1e-5),
    "batch": layers.BatchNormalization,
    "none": lambda: layers.Activation("linear"),
}
MAX_FILTERS = 320  # as in nnU-Net: deeper levels get no wider than this


def build_unet(
    input_shape,
    num_classes,
    *,
    filters=16,
    depth=3,
    dropout=0.0,
    normalization="instance",
):
    """Build a U-Net (Ronneberger et al. 2015; 3-D: Cicek et al. 2016) with nnU-Net's blocks.

    Two convolutions with normalisation and LeakyReLU per level; strided convolutions shrink the
    image, transposed ones enlarge it again, and the levels of one size are concatenated.

    Parameters
    ----------
    input_shape : tuple of int
        (x, y, channel) makes a 2-D network, (x, y, z, channel) a 3-D one.
    num_classes : int
        The background included; at least 2.
    filters : int, default 16
        Of the first level; each level has twice as many, up to 320.
    depth : int, default 3
        How often the image is halved. Every side of the input must be a multiple of
        ``2 ** depth``.
    dropout : float, default 0
        Share of feature maps that is dropped at the end of each block, in [0, 1).
    normalization : {"instance", "batch", "none"}, default "instance"

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
    _check_unet_arguments(input_shape, num_classes, filters, depth, dropout, normalization)
    ndim = len(input_shape) - 1
    convolution = getattr(layers, f"Conv{ndim}D")
    transposed = getattr(layers, f"Conv{ndim}DTranspose")
    drop = getattr(layers, f"SpatialDropout{ndim}D")

    def block(x, width, strides):
        for stride in strides:
            x = convolution(
                width, 3, strides=stride, padding="same", kernel_initializer="he_normal"
            )(x)
            x = NORMALIZATIONS[normalization]()(x)
            x = layers.LeakyReLU(negative_slope=0.01)(x)
        return drop(dropout)(x) if dropout else x

    widths = [min(filters * 2**level, MAX_FILTERS) for level in range(depth + 1)]
    inputs = keras.Input(input_shape)
    x, skips = inputs, []
    for level, width in enumerate(widths):
        x = block(x, width, strides=(2 if level else 1, 1))
        skips.append(x)
    for width, skip in zip(widths[-2::-1], skips[-2::-1], strict=True):
        x = transposed(width, 2, strides=2)(x)
        x = block(layers.Concatenate()([x, skip]), width, strides=(1, 1))
    outputs = convolution(num_classes, 1, activation="softmax", dtype="float32")(x)
    return keras.Model(inputs, outputs, name=f"unet{ndim}d")


def _check_unet_arguments(input_shape, num_classes, filters, depth, dropout, normalization):
    multiple = 2**depth
    fitting = tuple(-(-n // multiple) * multiple for n in input_shape[:-1])
    sides = (
        f"multiples of {multiple} with depth={depth}, then a channel: use {fitting} or less depth"
    )
    for name, value, fits, allowed in (
        ("input_shape", input_shape, len(input_shape) in (3, 4), "(x, y[, z], channel)"),
        ("num_classes", num_classes, num_classes >= 2, "at least 2, as it counts the background"),
        ("filters", filters, filters >= 1, "at least 1"),
        ("depth", depth, depth >= 1, "at least 1"),
        ("dropout", dropout, 0 <= dropout < 1, "in [0, 1)"),
        ("normalization", normalization, normalization in NORMALIZATIONS, [*NORMALIZATIONS]),
        ("input_shape", input_shape, fitting == tuple(input_shape[:-1]), sides),
    ):
        if not fits:
            raise ValueError(f"{name} must be {allowed}. Received: {name}={value!r}")


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
        ``1 - mean Dice + cross-entropy``, at least 0. Dice pools the batch, so a patch without
        a class takes no part in it; a class that the whole batch lacks counts as Dice 1 once
        nothing is predicted for it.
    """
    truth = ops.one_hot(ops.cast(y_true[..., 0], "int32"), y_pred.shape[-1])
    axes = tuple(range(len(y_pred.shape) - 1))
    overlap = ops.sum(truth * y_pred, axis=axes)
    total = ops.sum(truth, axis=axes) + ops.sum(y_pred, axis=axes)
    dice = (2 * overlap + 1.0) / (total + 1.0)  # 1 voxel of smoothing
    log = ops.log(ops.clip(y_pred, 1e-7, 1.0))
    return 1 - ops.mean(dice[1:]) - ops.mean(ops.sum(truth * log, axis=-1))


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

    def result(self):
        """Mean over the foreground classes that occurred, in [0, 1]."""
        occurred = ops.cast(self.total[1:] > 0, "float32")
        dice = 2 * self.overlap[1:] / ops.maximum(self.total[1:], 1.0)
        return ops.sum(dice) / ops.maximum(ops.sum(occurred), 1.0)


def build_for(preprocessor, build_model, model_args, precision="auto"):
    """Build the network for a preprocessor, computing in a precision.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    build_model : callable
        As `build_unet`: ``build_model(input_shape, num_classes, **model_args)``.
    model_args : dict
    precision : str, default "auto"
        As for `choose_precision`; ``auto`` takes float32 where bfloat16 is not safe. Keras' own
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
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(choose_precision(precision))
    try:
        model = build_model(preprocessor.input_shape, preprocessor.num_classes, **model_args)
        convolutions = [one for one in model.layers if isinstance(one, layers.Conv3D)]
        thin = any(one.input.shape[1] == 2 for one in convolutions)
        if thin and precision == "auto" and choose_precision() == "mixed_bfloat16":
            # oneDNN leaves the bfloat16 gradient of a 3x3x3 convolution over 2 planes unwritten.
            keras.config.set_dtype_policy("float32")
            model = build_model(preprocessor.input_shape, preprocessor.num_classes, **model_args)
    finally:
        keras.config.set_dtype_policy(before)
    expected = (None, *preprocessor.input_shape[:-1], preprocessor.num_classes)
    if tuple(model.output_shape) != expected:
        wanted = f"with output shape {expected}, a probability per voxel and class"
        raise ValueError(
            f"build_model must return a model {wanted}. Received: {model.output_shape}"
        )
    return model


def choose_precision(precision="auto"):
    """Name the Keras dtype policy that is fast on this hardware.

    Parameters
    ----------
    precision : {"auto", "float32", "mixed_bfloat16", "mixed_float16"}
        Anything but ``auto`` is returned as it is.

    Returns
    -------
    str
        float16 on a GPU of compute capability 7 or higher, bfloat16 on a processor with
        AVX512-BF16 or AMX, else float32.
    """
    if precision != "auto":
        return precision
    if keras.distribution.list_devices("gpu"):
        gpu = describe_machine()["hardware"]["gpu"] or ""
        capability = re.search(r", (\d+)\.\d+$", gpu, re.MULTILINE)
        return "mixed_float16" if capability and int(capability[1]) >= 7 else "float32"
    cpu = Path("/proc/cpuinfo")
    fast = cpu.exists() and re.search(r"\b(avx512_bf16|amx_bf16)\b", cpu.read_text())
    return "mixed_bfloat16" if fast else "float32"
