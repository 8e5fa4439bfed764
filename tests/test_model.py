import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers, ops

from unetseg import model
from unetseg.model import (
    ForegroundDice,
    build_for,
    build_unet,
    choose_precision,
    dice_cross_entropy,
)
from unetseg.preprocessing import Preprocessor


@pytest.fixture(autouse=True)
def float32_policy():
    """Every test starts and leaves with float32."""
    keras.config.set_dtype_policy("float32")
    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def of_type(net, *kinds):
    return [layer for layer in net.layers if isinstance(layer, kinds)]


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize(
    ("input_shape", "num_classes"), [((16, 8, 1), 2), ((8, 16, 8, 2), 4), ((4, 8, 4, 1), 3)]
)
def test_the_unet_gives_float32_probabilities_of_the_inputs_size(input_shape, num_classes, policy):
    keras.config.set_dtype_policy(policy)
    net = build_unet(input_shape, num_classes, filters=4, depth=2)
    out = net(noise(2, *input_shape))
    assert net.input_shape == (None, *input_shape)
    assert out.shape == (2, *input_shape[:-1], num_classes)
    assert out.dtype == "float32"
    np.testing.assert_allclose(np.sum(out, axis=-1), 1, atol=1e-5)
    assert np.min(out) >= 0
    assert np.std(out) > 1e-3
    assert not net.compiled


@pytest.mark.parametrize(("input_shape", "ndim"), [((8, 8, 1), 2), ((8, 8, 8, 1), 3)])
def test_filters_double_with_each_level_and_come_down_again(input_shape, ndim):
    net = build_unet(input_shape, 3, filters=4, depth=3)
    convolutions = of_type(net, getattr(layers, f"Conv{ndim}D"))
    assert [layer.filters for layer in convolutions] == [
        *(4, 4, 8, 8, 16, 16, 32, 32),
        *(16, 16, 8, 8, 4, 4),
        3,
    ]
    up = of_type(net, getattr(layers, f"Conv{ndim}DTranspose"))
    assert [layer.filters for layer in up] == [16, 8, 4]


def test_filters_are_capped(monkeypatch):
    monkeypatch.setattr(model, "MAX_FILTERS", 10)
    net = build_unet((8, 8, 1), 2, filters=4, depth=3)
    widths = [layer.filters for layer in of_type(net, layers.Conv2D)]
    assert widths[:8] == [4, 4, 8, 8, 10, 10, 10, 10]


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_depth_is_how_often_the_image_is_halved(depth):
    net = build_unet((16, 32, 1), 2, filters=2, depth=depth)
    sides = [layer.output.shape[1:3] for layer in of_type(net, layers.Conv2D)]
    assert min(sides) == (16 // 2**depth, 32 // 2**depth)
    assert len(of_type(net, layers.Conv2DTranspose)) == depth


def test_each_level_is_joined_with_its_skip():
    net = build_unet((8, 8, 8, 1), 2, filters=4, depth=2)
    shapes = [layer.output.shape[1:] for layer in of_type(net, layers.Concatenate)]
    assert shapes == [(4, 4, 4, 16), (8, 8, 8, 8)]  # twice the 8 and the 4 filters of the level


def test_dropout_acts_in_training_alone():
    net = build_unet((8, 8, 8, 1), 2, filters=4, depth=1, dropout=0.5)
    x = noise(1, 8, 8, 8, 1)
    assert {layer.rate for layer in of_type(net, layers.SpatialDropout3D)} == {0.5}
    np.testing.assert_array_equal(net(x, training=False), net(x, training=False))
    assert not np.allclose(net(x, training=True), net(x, training=True))


def test_without_dropout_training_is_deterministic():
    net = build_unet((8, 8, 8, 1), 2, filters=4, depth=1)
    x = noise(1, 8, 8, 8, 1)
    np.testing.assert_allclose(net(x, training=True), net(x, training=True), atol=1e-6)


@pytest.mark.parametrize(
    ("normalization", "training", "invariant"),
    [
        ("instance", False, True),
        ("instance", True, True),
        ("batch", False, False),
        ("batch", True, True),
        ("none", True, False),
    ],
)
def test_normalization_takes_the_scale_out_of_the_features(normalization, training, invariant):
    net = build_unet((8, 8, 8, 1), 2, filters=4, depth=1, normalization=normalization)
    x = 10 * noise(2, 8, 8, 8, 1)
    a, b = (np.asarray(net(factor * x, training=training)) for factor in (1, 100))
    assert (np.abs(a - b).max() < 1e-2) == invariant


def test_instance_normalization_sees_one_image_at_a_time():
    net = build_unet((8, 8, 1), 2, filters=4, depth=1)
    x = noise(2, 8, 8, 1) * np.array([1, 30]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(net(x, training=True)[:1], net(x[:1], training=True), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shape": (10, 18, 9, 1)}, r"input_shape.*multiples of 8.*\(16, 24, 16\)"),
        ({"input_shape": (10, 18, 1), "depth": 1}, None),
        ({"input_shape": (9, 18, 1), "depth": 1}, r"input_shape.*multiples of 2.*\(10, 18\)"),
        ({"input_shape": (8, 1)}, r"input_shape"),
        ({"num_classes": 1}, r"num_classes must be at least 2.*num_classes=1"),
        ({"filters": 0}, r"filters must be at least 1.*filters=0"),
        ({"depth": 0}, r"depth must be at least 1.*depth=0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\).*dropout=1.0"),
        ({"dropout": -0.1}, r"dropout.*-0.1"),
        ({"normalization": "layer"}, r"normalization.*instance.*batch.*none.*'layer'"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_with_what_would(change, message):
    arguments = {"input_shape": (8, 8, 8, 1), "num_classes": 2, "filters": 2, **change}
    if message is None:
        assert build_unet(**arguments).name == "unet2d"
        return
    with pytest.raises(ValueError, match=message):
        build_unet(**arguments)


def random_prediction(shape, num_classes, seed=0):
    rng = np.random.default_rng(seed)
    p = rng.uniform(0.01, 1, (*shape, num_classes))
    p /= p.sum(axis=-1, keepdims=True)
    return rng.integers(0, num_classes, (*shape, 1)).astype(np.uint8), p.astype(np.float32)


@pytest.mark.parametrize("shape", [(2, 4, 5), (2, 3, 4, 5)])
@pytest.mark.parametrize("num_classes", [2, 4])
def test_the_loss_is_soft_dice_plus_cross_entropy_voxel_by_voxel(shape, num_classes):
    y, p = random_prediction(shape, num_classes)
    truth, flat = y.ravel(), p.reshape(-1, num_classes).astype(float)
    entropy = -sum(np.log(flat[i, k]) for i, k in enumerate(truth)) / len(truth)
    dice = [
        (2 * flat[truth == k, k].sum() + 1) / ((truth == k).sum() + flat[:, k].sum() + 1)
        for k in range(1, num_classes)
    ]
    expected = 1 - sum(dice) / len(dice) + entropy
    assert float(dice_cross_entropy(y, p)) == pytest.approx(expected, rel=1e-5)


def test_the_loss_of_a_perfect_prediction_is_0_even_if_a_class_is_absent():
    y = np.array([0, 1, 1, 0], np.uint8).reshape(1, 2, 2, 1)
    assert float(dice_cross_entropy(y, np.eye(3, dtype=np.float32)[y[..., 0]])) == 0


def test_the_loss_with_an_absent_class_is_the_one_worked_out_by_hand():
    y = np.array([0, 1, 1, 0], np.uint8).reshape(1, 2, 2, 1)
    p = np.eye(3, dtype=np.float32)[y[..., 0]]
    p[0, 1, 1] = (0.5, 0, 0.5)
    # Dice of class 1: (4 + 1) / (4 + 1); of class 2: (0 + 1) / (0.5 + 1). Their mean: 5 / 6.
    # Cross-entropy: one voxel of four has probability 1/2.
    assert float(dice_cross_entropy(y, p)) == pytest.approx(1 - 5 / 6 + np.log(2) / 4, abs=1e-6)


@pytest.mark.parametrize("certain", ["right", "wrong", "random"])
def test_the_gradient_of_the_loss_is_finite(certain):
    y, p = random_prediction((1, 3, 4, 5), 3)
    if certain != "random":
        p = np.eye(3, dtype=np.float32)[(y[..., 0] + (certain == "wrong")) % 3]
    p = tf.constant(p)
    with tf.GradientTape() as tape:
        tape.watch(p)
        loss = dice_cross_entropy(y, p)
    assert np.isfinite(loss)
    assert np.isfinite(tape.gradient(loss, p)).all()


def test_a_better_prediction_has_a_lower_loss():
    y, p = random_prediction((1, 4, 4, 4), 3)
    truth = np.eye(3, dtype=np.float32)[y[..., 0]]
    losses = [float(dice_cross_entropy(y, (1 - s) * p + s * truth)) for s in (0, 0.5, 1)]
    assert losses[0] > losses[1] > losses[2] == pytest.approx(0, abs=1e-5)


def test_foreground_dice_pools_the_voxels_of_all_batches():
    metric = ForegroundDice(3)
    overlap, total = np.zeros(3), np.zeros(3)
    for seed in range(3):
        y, p = random_prediction((2, 4, 5), 3, seed)
        metric.update_state(y, p)
        found, truth = p.argmax(axis=-1).ravel(), y.ravel()
        for k in (1, 2):
            a, b = set(np.flatnonzero(truth == k)), set(np.flatnonzero(found == k))
            overlap[k] += len(a & b)
            total[k] += len(a) + len(b)
    expected = np.mean(2 * overlap[1:] / total[1:])
    assert float(metric.result()) == pytest.approx(expected, rel=1e-6)


def test_foreground_dice_leaves_out_a_class_that_does_not_occur():
    metric = ForegroundDice(4)
    y = np.array([0, 1, 1, 1], np.uint8).reshape(1, 4, 1, 1)
    found = np.array([0, 0, 1, 1])
    metric.update_state(y, np.eye(4, dtype=np.float32)[found].reshape(1, 4, 1, 4))
    assert float(metric.result()) == pytest.approx(2 * 2 / (3 + 2))  # of class 1 alone


def test_foreground_dice_counts_a_class_that_is_predicted_but_absent():
    metric = ForegroundDice(3)
    y = np.array([1, 1, 0], np.uint8).reshape(1, 3, 1, 1)
    metric.update_state(y, np.eye(3, dtype=np.float32)[[1, 1, 2]].reshape(1, 3, 1, 3))
    assert float(metric.result()) == pytest.approx((1 + 0) / 2)


def test_foreground_dice_starts_again_after_a_reset():
    metric = ForegroundDice(2)
    y = np.ones((1, 2, 2, 1), np.uint8)
    metric.update_state(y, np.eye(2, dtype=np.float32)[y[..., 0]])
    assert float(metric.result()) == 1
    metric.reset_state()
    assert float(metric.result()) == 0


FITTED = Preprocessor((1, 2, 3), (8, 16, 1), {1: "a", 4: "b"}, 2)


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16"])
def test_a_model_built_for_a_preprocessor_fits_it_and_leaves_keras_as_it_was(precision):
    net = build_for(FITTED, build_unet, {"filters": 4, "depth": 1}, precision)
    assert net.input_shape == (None, 8, 16, 2)
    assert net.output_shape == (None, 8, 16, 3)
    assert of_type(net, layers.Conv2D)[0].dtype_policy.name == precision
    assert keras.config.dtype_policy().name == "float32"


def test_a_builder_that_fails_leaves_keras_as_it_was():
    with pytest.raises(ValueError, match="filters must be at least 1"):
        build_for(FITTED, build_unet, {"filters": 0}, "mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"


def test_a_model_whose_output_is_no_probability_per_voxel_and_class_is_refused():
    def build_classifier(input_shape, num_classes):
        inputs = keras.Input(input_shape)
        return keras.Model(inputs, layers.Dense(num_classes)(layers.Flatten()(inputs)))

    with pytest.raises(ValueError, match=r"\(None, 8, 16, 3\).*Received: \(None, 3\)"):
        build_for(FITTED, build_classifier, {})


@pytest.mark.parametrize("precision", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_precision_that_is_named_is_taken(precision):
    assert choose_precision(precision) == precision


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
    monkeypatch.setattr(keras.distribution, "list_devices", lambda kind: [])
    monkeypatch.setattr(model, "Path", lambda path: tmp_path / "cpuinfo")
    assert choose_precision() == expected


@pytest.mark.parametrize(
    ("gpu", "expected"),
    [("Tesla T4, 7.5", "mixed_float16"), ("Tesla K80, 3.7", "float32"), (None, "float32")],
)
def test_on_a_gpu_float16_is_chosen_from_compute_capability_7(monkeypatch, gpu, expected):
    monkeypatch.setattr(keras.distribution, "list_devices", lambda kind: ["gpu:0"])
    monkeypatch.setattr(model, "describe_machine", lambda: {"hardware": {"gpu": gpu}})
    assert choose_precision() == expected


def test_the_unet_learns_a_threshold():
    x = noise(2, 8, 8, 1)
    y = (x > 0).astype(np.uint8)
    net = build_unet((8, 8, 1), 2, filters=8, depth=1)
    optimizer = keras.optimizers.Adam(0.02)
    for _ in range(12):
        with tf.GradientTape() as tape:
            loss = dice_cross_entropy(y, net(x, training=True))
        weights = net.trainable_variables
        optimizer.apply(tape.gradient(loss, [w.value for w in weights]), weights)
    assert float(ops.mean(ops.argmax(net(x), axis=-1) == y[..., 0])) > 0.9
