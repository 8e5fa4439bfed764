import hashlib
import io
import os
import time

import h5py
import keras
import numpy as np
import pytest

from unetseg.run import layout, state

# numpy's complaint about the variables of TensorFlow, which Keras hands to it
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy")

X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def build(width=4, depth=1, normalised=True):
    inputs = keras.Input((3,))
    x = inputs
    for _ in range(depth):
        x = keras.layers.Dense(width)(x)
        x = keras.layers.LayerNormalization()(x) if normalised else x
    return keras.Model(inputs, keras.layers.Dense(2)(x))


def trained(seed=0):
    keras.utils.set_random_seed(seed)
    model = build()
    model.compile("adam", "mse", run_eagerly=True)
    model.train_on_batch(X, np.ones((5, 2)))
    return model


@pytest.fixture
def path(tmp_path):
    return tmp_path / "fold_0" / "model.weights.h5"


@pytest.fixture
def saved(path):
    return state.save_weights(trained(), path)


def test_weights_come_back_with_the_same_outputs(path):
    model = trained()
    digest = state.save_weights(model, path)
    other = build()
    assert not np.allclose(other(X), model(X))
    state.load_weights(other, path, digest)
    np.testing.assert_array_equal(other(X), model(X))


def test_the_state_of_random_layers_is_no_weight(path):
    inputs = keras.Input((3,))
    model = keras.Model(inputs, keras.layers.Dropout(0.5)(keras.layers.Dense(2)(inputs)))
    state.load_weights(model, path, state.save_weights(model, path))


def test_the_digest_is_the_sha256_of_the_file(path, saved):
    assert saved == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_model_that_was_never_compiled_is_saved_too(path):
    model = build()
    digest = state.save_weights(model, path)
    other = build()
    state.load_weights(other, path, digest)
    np.testing.assert_array_equal(other(X), model(X))


def test_the_file_holds_the_weights_alone_and_the_optimizer_lives_on(path):
    model = trained()
    optimizer = model.optimizer
    state.save_weights(model, path)
    assert model.optimizer is optimizer
    arrays = []
    with h5py.File(path) as file:
        file.visititems(lambda name, item: arrays.append((name, item)))
        assert not [name for name, _ in arrays if "optimizer" in name]
        stored = [item.shape for _, item in arrays if isinstance(item, h5py.Dataset)]
    assert sorted(stored) == sorted(tuple(weight.shape) for weight in model.weights)
    model.train_on_batch(X, np.ones((5, 2)))
    assert optimizer.iterations == 2


def test_a_failed_save_leaves_the_old_file_as_it_was(path, saved, monkeypatch):
    def half(self, path):
        path.write_bytes(b"half a file")
        raise OSError("no space left on device")

    before = path.read_bytes()
    model = trained(seed=1)
    optimizer = model.optimizer
    monkeypatch.setattr(keras.Model, "save_weights", half)
    with pytest.raises(OSError, match="no space left"):
        state.save_weights(model, path)
    assert path.read_bytes() == before
    assert model.optimizer is optimizer


def test_saving_again_replaces_the_file_and_leaves_no_other(path, saved):
    again = state.save_weights(trained(seed=1), path)
    assert again != saved
    assert os.listdir(path.parent) == ["model.weights.h5"]


def test_a_file_that_is_not_there_is_named(path):
    with pytest.raises(FileNotFoundError, match=r"model\.weights\.h5: no such file"):
        state.load_weights(build(), path)


def flip(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize("spoil", [lambda data: data[: len(data) // 2], flip, lambda data: b""])
def test_a_spoilt_file_is_told_by_its_digest(path, saved, spoil):
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(ValueError, match=r"model\.weights\.h5: damaged"):
        state.load_weights(build(), path, saved)


@pytest.mark.parametrize("size", [0, 100, 0.5])
def test_a_truncated_file_is_refused_by_name_without_a_digest_too(path, saved, size):
    data = path.read_bytes()
    path.write_bytes(data[: size if isinstance(size, int) else int(size * len(data))])
    with pytest.raises(ValueError, match=r"model\.weights\.h5: does not fit"):
        state.load_weights(build(), path)


@pytest.mark.filterwarnings("ignore:Skipping nested container:UserWarning")  # Keras 3.15
@pytest.mark.parametrize("other", [{"width": 5}, {"depth": 2}, {"normalised": False}])
def test_weights_of_another_architecture_are_refused_by_name(path, saved, other):
    with pytest.raises(ValueError, match=r"model\.weights\.h5: does not fit the model"):
        state.load_weights(build(**other), path, saved)


def link(file, name, array):
    file[name] = h5py.ExternalLink("/etc/hostname", "/")


def soften(file, name, array):
    file["elsewhere"] = array
    file[name] = h5py.SoftLink("/elsewhere")


def keep_outside(file, name, array):
    file.create_dataset(
        name, array.shape, array.dtype, external=[("/etc/hostname", 0, h5py.h5f.UNLIMITED)]
    )


def map_outside(file, name, array):
    layout = h5py.VirtualLayout(array.shape, array.dtype)
    layout[...] = h5py.VirtualSource("/etc/hostname", "x", array.shape)
    file.create_virtual_dataset(name, layout)


def swell(file, name, array):
    file.create_dataset(name, (2**20, 2**20), array.dtype, chunks=(1024, 1024))  # 4 TB


@pytest.mark.parametrize("plant", [link, soften, keep_outside, map_outside, swell])
def test_weights_that_lead_to_other_files_or_fill_the_memory_are_never_read(
    path, saved, plant, monkeypatch
):
    with h5py.File(path, "a") as file:
        names = []
        file.visititems(
            lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
        )
        array = file[names[0]][...]
        del file[names[0]]
        plant(file, names[0], array)
    model = build()
    monkeypatch.setattr(type(model), "load_weights", lambda *_: pytest.fail("they were read"))
    with pytest.raises(ValueError, match=r"model\.weights\.h5: does not fit"):
        state.load_weights(model, path)


def net(seed=0):
    """A model with random layers, whose weights are averaged while it is trained."""
    keras.utils.set_random_seed(seed)
    layers = [keras.Input((3,)), keras.layers.Dense(4), keras.layers.Dropout(0.5)]
    model = keras.Sequential([*layers, keras.layers.Dense(2)])
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(0.1, 20), use_ema=True
    )
    model.compile(optimizer, "mse")
    optimizer.build(model.trainable_variables)
    return model


def step(model, number=1):
    for _ in range(number):
        model.train_on_batch(X, np.ones((5, 2)))


def values(model):
    return [np.asarray(v) for v in [*model.variables, *model.optimizer.variables]]


ABOUT = {"seed": 7, "train": ["a"]}


def save(model, folder, epochs):
    history = [{"epoch": k, "loss": 1 / 3 + k} for k in range(epochs)]
    state.save_state(model, folder, {**ABOUT, "history": history, "minutes": 1.5})


def test_a_training_goes_on_as_if_it_had_not_been_interrupted(tmp_path):
    whole = net()
    step(whole, 3)
    save(whole, tmp_path, 1)
    step(whole, 4)
    resumed = net(seed=1)
    found = state.load_state(resumed, tmp_path, ABOUT)
    assert found["history"] == [{"epoch": 0, "loss": 1 / 3}]
    assert found["minutes"] == 1.5
    step(resumed, 4)  # dropout, learning rate, momenta and averages included
    for array, expected in zip(values(resumed), values(whole), strict=True):
        np.testing.assert_array_equal(array, expected)


def test_two_states_take_turns_and_the_later_one_is_loaded(tmp_path):
    model = net()
    for epochs in range(1, 6):
        step(model)
        save(model, tmp_path, epochs)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.state", "1.state"]
    found = state.load_state(other := net(seed=1), tmp_path, ABOUT)
    assert len(found["history"]) == 5
    for array, expected in zip(values(other), values(model), strict=True):
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: data[:-1],
        lambda data: data[:100] + bytes([data[100] ^ 1]) + data[101:],
        lambda data: data[:20],
        lambda data: b"",
    ],
    ids=["truncated", "one bit flipped", "cut in the hash", "empty"],
)
def test_of_a_damaged_state_is_warned_and_the_one_before_is_loaded(damage, tmp_path):
    model = net()
    save(model, tmp_path, 1)
    before = values(model)
    step(model)
    save(model, tmp_path, 2)
    path = tmp_path / "0.state"
    path.write_bytes(damage(path.read_bytes()))
    other = net(seed=1)
    with pytest.warns(UserWarning, match=r"0\.state: damaged"):
        found = state.load_state(other, tmp_path, ABOUT)
    assert len(found["history"]) == 1
    for array, expected in zip(values(other), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_without_a_state_a_training_begins(tmp_path):
    model = net()
    before = values(model)
    found = state.load_state(model, tmp_path / "nowhere", ABOUT)
    assert found == {**ABOUT, "history": [], "minutes": 0}
    for array, expected in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(array, expected)


def test_the_state_of_something_else_is_not_used(tmp_path):
    save(net(), tmp_path, 3)
    with pytest.warns(UserWarning, match="of a training with another train, so it begins anew"):
        found = state.load_state(net(), tmp_path, ABOUT | {"train": ["b"]})
    assert found["history"] == []


def test_a_state_is_never_unpickled(tmp_path):
    stream = io.BytesIO()
    np.savez(stream, about=np.array([{"history": []}], dtype=object))
    content = stream.getvalue()
    (tmp_path / "0.state").write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(ValueError, match="allow_pickle=False"):
        state.load_state(net(), tmp_path, ABOUT)


def test_the_state_and_the_history_are_written_after_each_epoch(tmp_path):
    model = net()
    about = {**ABOUT, "history": [], "minutes": 0.0}
    callback = state.SaveState(tmp_path, about, time.monotonic())
    model.fit(X, np.ones((5, 2)), epochs=3, verbose=0, callbacks=[callback])
    rows = (tmp_path / "history.csv").read_text().splitlines()
    assert rows[0] == "epoch,loss"
    assert [row.split(",")[0] for row in rows[1:]] == ["0", "1", "2"]
    found = state.load_state(net(), tmp_path, ABOUT)
    assert found["history"] == about["history"]
    assert len(found["history"]) == 3
    assert found["minutes"] > 0


def test_an_epoch_that_diverged_is_not_kept(tmp_path):
    callback = state.SaveState(tmp_path, {**ABOUT, "history": [], "minutes": 0}, 0)
    callback.set_model(net())
    callback.on_epoch_end(0, {"loss": float("nan")})
    assert not list(tmp_path.iterdir())


def test_a_training_ends_after_the_epoch_in_which_its_run_has_ended(tmp_path):
    callback = state.StopWithRun(tmp_path)
    (tmp_path / layout.LOCK).touch()
    callback.on_epoch_end(0)
    (tmp_path / layout.LOCK).unlink()
    with pytest.raises(RuntimeError, match=r"the run that this training is part of has ended"):
        callback.on_epoch_end(1)
