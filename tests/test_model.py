import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers, ops
from networks import float32_policy, gradients, noise  # noqa: F401  the policy is a fixture

from unetseg import model
from unetseg.losses import dice_cross_entropy
from unetseg.model import InstanceNormalization, build_for, build_unet, plan_unet
from unetseg.preprocessing import Preprocessor

ROOT = Path(__file__).parent.parent


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


def test_filters_are_capped():
    net = build_unet((8, 8, 1), 2, filters=4, depth=3, max_filters=10)
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


def test_normalization_takes_the_scale_out_of_the_features():
    net = build_unet((8, 8, 8, 1), 2, filters=4, depth=1)
    x = 10 * noise(2, 8, 8, 8, 1)
    a, b = (np.asarray(net(factor * x)) for factor in (1, 100))
    assert np.abs(a - b).max() < 1e-2


def test_instance_normalization_sees_one_image_at_a_time():
    net = build_unet((8, 8, 1), 2, filters=4, depth=1)
    x = noise(2, 8, 8, 1) * np.array([1, 30]).reshape(2, 1, 1, 1)
    np.testing.assert_allclose(net(x, training=True)[:1], net(x[:1], training=True), atol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"input_shape": (10, 18, 9, 1)}, r"input_shape.*multiples of \[8, 8, 8\].*\(16, 24, 16\)"),
        ({"input_shape": (10, 18, 1), "depth": 1}, None),
        (
            {"input_shape": (9, 18, 1), "depth": 1},
            r"input_shape.*multiples of \[2, 2\].*\(10, 18\)",
        ),
        ({"input_shape": (8, 1)}, r"input_shape"),
        ({"num_classes": 1}, r"num_classes must be at least 2.*num_classes=1"),
        ({"filters": 0}, r"filters must be at least 1.*filters=0"),
        ({"depth": 0}, r"depth must be at least 1.*depth=0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\).*dropout=1.0"),
        ({"dropout": -0.1}, r"dropout.*-0.1"),
        ({"strides": [(2, 2, 2)]}, r"strides must be one per level, depth=3"),
        ({"kernels": [(3, 3, 3)] * 3}, r"kernels must be one per level"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_with_what_would(change, message):
    arguments = {"input_shape": (8, 8, 8, 1), "num_classes": 2, "filters": 2, **change}
    if message is None:
        assert build_unet(**arguments).name == "unet2d"
        return
    with pytest.raises(ValueError, match=message):
        build_unet(**arguments)


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


def test_the_unet_learns_a_threshold():
    x = noise(2, 8, 8, 1)
    y = (x > 0).astype(np.uint8)
    net = build_unet((8, 8, 1), 2, filters=8, depth=1)
    net.compile(keras.optimizers.Adam(0.02), dice_cross_entropy)
    net.fit(x, y, batch_size=2, epochs=12, verbose=0)
    assert float(ops.mean(ops.argmax(net(x), axis=-1) == y[..., 0])) > 0.9


def fitted(patch, spacing_mm=(1, 1, 1), channels=1):
    return Preprocessor(spacing_mm, patch, {1: "a", 4: "b"}, channels)


@pytest.mark.parametrize(
    ("patch", "spacing_mm", "strides", "kernels"),
    [
        # 64 -> 32 -> 16 -> 8 -> 4
        ((64, 64, 64), (1, 1, 1), [(2, 2, 2)] * 4, [(3, 3, 3)] * 5),
        # z stops at 5, an odd number of less than 8; x at 4
        ((32, 64, 20), (1, 1, 1), [(2, 2, 2)] * 2 + [(2, 2, 1), (1, 2, 1)], [(3, 3, 3)] * 5),
        # of less than twice the length: halved with the others
        ((32, 32, 32), (1, 1, 1.9), [(2, 2, 2)] * 3, [(3, 3, 3)] * 4),
        # of just twice the length: x and y are halved first, then all; x and y stop at 4
        ((32, 32, 16), (1, 1, 2), [(2, 2, 1), (2, 2, 2), (2, 2, 2)], [(3, 3, 1), *[(3, 3, 3)] * 3]),
        # 0.6, 1.2, 2.4 mm beside 3.6: at 2.4 it is less than twice as long
        (
            (96, 96, 16),
            (0.6, 0.6, 3.6),
            [(2, 2, 1), (2, 2, 1), (2, 2, 2), (2, 2, 2)],
            [(3, 3, 1), (3, 3, 1), *[(3, 3, 3)] * 3],
        ),
        # the same, sagittal
        (
            (16, 96, 96),
            (3.6, 0.6, 0.6),
            [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2)],
            [(1, 3, 3), (1, 3, 3), *[(3, 3, 3)] * 3],
        ),
        # 2-D: the thickness of a slice plays no part
        ((64, 48, 1), (1, 1, 9), [(2, 2)] * 3 + [(2, 1)], [(3, 3)] * 5),
        ((1, 16, 64), (9, 2, 1), [(1, 2), (2, 2), (2, 2), (1, 2)], [(1, 3), *[(3, 3)] * 4]),
        # only the one long enough, and 6 and 7 voxels are not
        ((6, 7, 8), (1, 1, 1), [(1, 1, 2)], [(3, 3, 3)] * 2),
    ],
)
def test_the_plan_halves_every_axis_once_its_voxels_are_as_short_as_the_others(
    patch, spacing_mm, strides, kernels
):
    plan = plan_unet(fitted(patch, spacing_mm), filters=6, dropout=0.1)
    assert plan == {
        "filters": 6,
        "depth": len(strides),
        "dropout": 0.1,
        "strides": strides,
        "kernels": kernels,
        "max_filters": 48 if len(strides) > 3 else 320,
    }


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_plan_is_no_deeper_than_asked(depth):
    plan = plan_unet(fitted((64, 64, 32), (1, 1, 2)), depth=depth)
    assert plan["depth"] == depth
    assert plan["strides"] == [(2, 2, 1), (2, 2, 2), (2, 2, 2), (2, 2, 2)][:depth]
    assert plan["kernels"] == [(3, 3, 1), *[(3, 3, 3)] * 4][: depth + 1]


def test_strides_and_kernels_that_are_given_are_taken():
    fitted = Preprocessor((1, 1, 1), (16, 16, 16), {1: "a"}, 1)
    given = {"strides": [[2, 2, 1], [2, 2, 2]], "kernels": [[3, 3, 1], [3, 3, 3], [3, 3, 3]]}
    plan = plan_unet(fitted, filters=2, **given)
    assert plan == {"filters": 2, "depth": 2, "dropout": 0.0, "max_filters": 320, **given}
    assert build_unet((16, 16, 16, 1), 2, **plan).output_shape == (None, 16, 16, 16, 2)
    alone = plan_unet(fitted, strides=given["strides"])
    # z is halved at the second level for the first time; its voxels are never the longer ones
    assert alone["kernels"] == [(3, 3, 3)] * 3
    with pytest.raises(ValueError, match=r"depth must be .*depth=1"):
        plan_unet(fitted, depth=1, strides=given["strides"])


def test_a_depth_that_the_patch_does_not_bear_is_refused_with_the_largest():
    with pytest.raises(ValueError, match=r"depth must be from 1 to 3.*depth=4"):
        plan_unet(fitted((32, 32, 32)), depth=4)


@pytest.mark.parametrize("depth", [0, -1])
def test_a_depth_of_less_than_1_is_refused_as_such(depth):
    with pytest.raises(ValueError, match=rf"^depth must be .*1.*depth={depth}$") as error:
        plan_unet(fitted((32, 32, 32)), depth=depth)
    assert "at most 3 for" not in str(error.value)


def test_no_axis_is_halved_by_a_kernel_of_one_voxel():
    # few thick slices, still coarse when x and y cannot be halved any more
    plan = plan_unet(fitted((80, 80, 8), (0.5, 0.5, 20)))
    for stride, kernel in zip(plan["strides"], plan["kernels"][1:], strict=True):
        assert all(k >= s for s, k in zip(stride, kernel, strict=True))


@pytest.mark.parametrize("patch", [(7, 4, 6), (9, 11, 13), (6, 6, 1)])
def test_a_patch_that_cannot_be_halved_is_refused(patch):
    with pytest.raises(ValueError, match=r"patch must be.*at least 8 voxels.*patch=\(\d+, \d+, \d"):
        plan_unet(fitted(patch))


@pytest.mark.parametrize(
    ("patch", "spacing_mm", "coarsest"),
    [
        ((32, 32, 8), (0.6, 0.6, 3.6), (4, 4, 4)),
        ((8, 40, 24), (3, 1, 1), (4, 5, 6)),
        ((16, 16, 16), (1, 1, 1), (4, 4, 4)),
        ((32, 1, 24), (1, 5, 2.5), (4, 6)),  # x alone, then both, then x alone
    ],
)
def test_a_plan_read_back_from_json_builds_a_unet_that_gives_the_inputs_size(
    patch, spacing_mm, coarsest
):
    preprocessor = fitted(patch, spacing_mm, channels=2)
    plan = json.loads(json.dumps(plan_unet(preprocessor, filters=2)))
    net = build_unet(preprocessor.input_shape, preprocessor.num_classes, **plan)
    sides = tuple(n for n in patch if n > 1)
    assert net(noise(1, *sides, 2)).shape == (1, *sides, 3)
    convolutions = of_type(net, layers.Conv2D, layers.Conv3D)
    smallest = min((layer.output.shape[1:-1] for layer in convolutions), key=np.prod)
    assert tuple(smallest) == coarsest


def normalised(layer, x, weight):
    """Return the output, and the gradients of its weighted sum for x, scale and shift."""

    def total(x, *weights):
        out, _ = layer.stateless_call(weights, [], x)
        return ops.sum(ops.cast(out, "float32") * weight)

    out = layer(x)
    weights = [np.asarray(variable.value) for variable in layer.trainable_variables]
    return [out, *gradients(total, x, *weights)]


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (2, 4, 7, 5, 3), (1, 8, 6, 1, 4)])
def test_instance_normalization_is_group_normalization_with_a_group_per_channel(shape):
    rng = np.random.default_rng(0)
    x = rng.normal(2, 3, shape) * rng.uniform(0.5, 5, shape[-1]) + rng.normal(size=shape[-1])
    ours = InstanceNormalization()
    theirs = layers.GroupNormalization(groups=-1, epsilon=1e-5)
    weights = [rng.normal(size=shape[-1]) for _ in range(2)]
    for layer in (ours, theirs):
        layer.build(shape)
        layer.set_weights(weights)
    weight = rng.normal(size=shape).astype(np.float32)
    x = x.astype(np.float32)
    for found, right in zip(*(normalised(one, x, weight) for one in (ours, theirs)), strict=True):
        assert found.shape == right.shape
        np.testing.assert_allclose(found, right, rtol=1e-4, atol=1e-4)


def test_instance_normalization_gives_every_channel_mean_0_and_variance_1():
    x = noise(2, 6, 5, 4, 3) * np.float32([1, 20, 0.3]) + np.float32([0, 30, 1])
    out = np.asarray(InstanceNormalization()(x))
    np.testing.assert_allclose(out.mean(axis=(1, 2, 3)), 0, atol=1e-4)
    np.testing.assert_allclose(out.var(axis=(1, 2, 3)), 1, atol=1e-3)


@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (2, 4, 7, 5, 3)])
@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "mixed_float16", "float32"])
def test_instance_normalization_keeps_the_type_and_computes_in_float32(shape, dtype):
    layer = InstanceNormalization(dtype=dtype)
    kind = layer.compute_dtype
    x = 300 * noise(*shape)  # squares are beyond the largest float16
    out = layer(ops.cast(x, kind))
    assert keras.backend.standardize_dtype(out.dtype) == kind
    rounded = ops.cast(ops.cast(x, kind), "float32")
    tolerance = {"bfloat16": 0.02, "float16": 2e-3, "float32": 1e-5}[kind]
    expected = layers.GroupNormalization(groups=-1, epsilon=1e-5)(rounded)
    np.testing.assert_allclose(ops.cast(out, "float32"), expected, atol=tolerance)
    assert {weight.dtype for weight in layer.weights} == {"float32"}


@pytest.mark.parametrize("value", [0, 3, -1e4])
@pytest.mark.parametrize("shape", [(2, 5, 7, 3), (2, 4, 7, 5, 3)])
def test_instance_normalization_of_a_constant_is_finite(shape, value):
    out, *gradients = normalised(
        InstanceNormalization(), np.full(shape, value, np.float32), noise(*shape)
    )
    assert np.isfinite(out).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_allclose(out, 0, atol=abs(value) * 1e-3)


OTHER_SETTINGS = [
    {"image_data_format": "channels_first"},
    {"floatx": "float16"},
    {"floatx": "float64"},
    {"floatx": "bfloat16", "epsilon": 0.01, "image_data_format": "channels_first"},
]
IN_ANOTHER_HOME = """
import sys
import keras, numpy as np
from unetseg import cases, inference, training
from unetseg.preprocessing import Preprocessor

def build_own(input_shape, num_classes):
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv3D(4, 3, padding="same", activation="relu")(inputs)
    x = keras.layers.BatchNormalization()(x)
    return keras.Model(inputs, keras.layers.Conv3D(num_classes, 1, activation="softmax")(x))

found = cases.find_cases("data")
preprocessor = Preprocessor((1, 2, 3), (8, 8, 4), {1: "a", 2: "b"}, 1, "zscore", 3, (), 0, ())
recipe = training.Recipe(epochs=1, steps=2, batch_size=2, precision="float32")
asked = keras.config.floatx(), keras.config.image_data_format(), keras.config.epsilon()
for name, builder in (("unet", {"model_args": {"filters": 4, "depth": 1}}),
                      ("own", {"build_model": build_own})):
    fold = f"{sys.argv[1]}/{name}/fold_0"
    settings = {"preprocessor": preprocessor, "recipe": recipe, **builder}
    training.train_fold(found[:1], found[1:], fold, **settings)
assert asked == (keras.config.floatx(), keras.config.image_data_format(), keras.config.epsilon())
"""


def train_in_home(folder, settings):
    home = folder / "home"
    home.mkdir()
    (home / "keras.json").write_text(json.dumps({"backend": keras.backend.backend(), **settings}))
    environment = {**os.environ, "KERAS_HOME": str(home), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", IN_ANOTHER_HOME, str(folder)]
    subprocess.run(command, env=environment, check=True, cwd=folder.parent)
    files = ("history.csv", "model.weights.h5", "calibration.csv")
    folds = [folder / name / "fold_0" for name in ("unet", "own")]
    return [(fold / name).read_bytes() for fold in folds for name in files[::2]]


IN_A_FILE = [  # where Keras itself takes no bfloat16
    *OTHER_SETTINGS[:3],
    {"floatx": "float16", "epsilon": 0.01, "image_data_format": "channels_first"},
]


@pytest.mark.long
@pytest.mark.parametrize("settings", IN_A_FILE, ids=str)
def test_a_keras_json_of_other_settings_changes_no_number(settings, make_data, tmp_path):
    make_data(2)
    usual, other = tmp_path / "usual", tmp_path / "other"
    for folder in (usual, other):
        folder.mkdir()
    assert train_in_home(other, settings) == train_in_home(usual, {})


@pytest.fixture
def keras_settings():
    before = keras.config.floatx(), keras.config.image_data_format(), keras.config.epsilon()
    yield
    keras.config.set_floatx(before[0])
    keras.config.set_image_data_format(before[1])
    keras.config.set_epsilon(before[2])
    keras.config.set_dtype_policy(before[0])


# JAX has no float64 unless asked for, and says so.
@pytest.mark.filterwarnings("ignore:Explicitly requested dtype float64")
@pytest.mark.parametrize("settings", OTHER_SETTINGS, ids=str)
@pytest.mark.parametrize("patch", [(8, 8, 8), (8, 8, 1)])
def test_the_network_is_the_same_whatever_keras_json_says(settings, patch, keras_settings):
    preprocessor = Preprocessor((1, 1, 1), patch, {1: "a"}, 1, "none")
    plan = model.plan_unet(preprocessor, filters=4, dropout=0.1)

    def build():
        keras.utils.set_random_seed(0)
        return model.build_for(preprocessor, model.build_unet, plan, "float32")

    x = np.random.default_rng(0).normal(size=(2, *preprocessor.input_shape)).astype(np.float32)
    usual = build()
    expected = usual.predict_on_batch(x)
    keras.config.set_image_data_format(settings.get("image_data_format", "channels_last"))
    keras.config.set_floatx(settings.get("floatx", "float32"))
    keras.config.set_dtype_policy(settings.get("floatx", "float32"))
    keras.config.set_epsilon(settings.get("epsilon", 1e-7))
    other = build()
    assert keras.config.floatx() == settings.get("floatx", "float32")
    for a, b in zip(usual.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)
        assert a.dtype == b.dtype
    np.testing.assert_array_equal(other.predict_on_batch(x), expected)
    alone = model.build_unet((8, 8, 8, 1), 2, filters=4, depth=1)  # a user may call it himself
    assert alone.output_shape == (None, 8, 8, 8, 2)


SAVE = """
import sys
import keras, numpy as np
from unetseg import fitting, model, training
from unetseg.preprocessing import Preprocessor

for name, patch in (("3d", (8, 8, 8)), ("2d", (8, 8, 1))):
    preprocessor = Preprocessor((1, 1, 1), patch, {1: "a"}, 1, "none")
    settled = training.Recipe(epochs=2, steps=2, precision=sys.argv[1])
    more = {"class_weights": {0: 0.5}} if name == "2d" else {}
    plan = training.make_plan(preprocessor, model_args={"filters": 8}, recipe=settled, **more)
    net = fitting.build(plan, settled, 0)
    x = np.random.default_rng(0).normal(size=(2, *preprocessor.input_shape)).astype("float32")
    net.train_on_batch(x, (x > 0).astype("uint8"))
    net.save(f"{name}.keras")
    with open(f"{name}.json", "w") as file:
        file.write(net.to_json())
    y = net.predict_on_batch(x)
    net.reset_metrics()
    np.savez(f"{name}.npz", x=x, y=y, after=net.train_on_batch(x, x > 0))
"""
LOAD = """
import unetseg
import keras, numpy as np
for name in ("3d", "2d"):
    kept = np.load(f"{name}.npz")
    net = keras.models.load_model(f"{name}.keras", safe_mode=True)
    np.testing.assert_array_equal(net.predict_on_batch(kept["x"]), kept["y"])
    assert type(net.optimizer).__name__ == "Muon"
    twin = keras.models.clone_model(net)
    twin.set_weights(net.get_weights())
    np.testing.assert_array_equal(twin.predict_on_batch(kept["x"]), kept["y"])
    with open(f"{name}.json") as file:
        other = keras.models.model_from_json(file.read())
    other.set_weights(net.get_weights())
    np.testing.assert_array_equal(other.predict_on_batch(kept["x"]), kept["y"])
    after = net.train_on_batch(kept["x"], kept["x"] > 0)
    np.testing.assert_allclose(after, kept["after"], rtol=1e-5)
"""


@pytest.mark.parametrize(
    ("imports", "precision"),
    [("import unetseg", "mixed_bfloat16"), ("import keras\nimport unetseg", "float32")],
)
def test_a_network_saved_whole_opens_where_unetseg_is_imported(imports, precision, tmp_path):
    load = LOAD.replace("import unetseg", imports, 1)
    for code in (SAVE, load):
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, precision],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            cwd=tmp_path,
            check=True,
        )
