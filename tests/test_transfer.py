"""The weights of an earlier run in a new network: whole, by part, or not at all."""

import json
import shutil

import keras
import numpy as np
import pytest
from training_helpers import SETTINGS, weights

from unetseg import transfer
from unetseg.inference import load_models, predict_scans
from unetseg.model import build_unet
from unetseg.run.layout import Run
from unetseg.training import cross_validate


def unet(channels=1, classes=3, filters=4, depth=1):
    net = build_unet((8, 8, 8, channels), classes, filters=filters, depth=depth)
    rng = np.random.default_rng(channels + classes)
    net.set_weights([rng.normal(size=w.shape) for w in net.get_weights()])
    return net


def assert_same(net, other, but=()):
    for n, (one, two) in enumerate(zip(net.get_weights(), other.get_weights(), strict=True)):
        if n not in but:
            np.testing.assert_array_equal(one, two)


def test_a_network_of_one_kind_takes_all():
    net, before = unet(), unet()
    net.set_weights([w + 1 for w in net.get_weights()])
    assert transfer.transfer(net, before, [1, 2], [1, 2]) == []
    assert_same(net, before)


def test_more_channels_repeat_those_that_are_known():
    net, before = unet(channels=3), unet(channels=2)
    (said,) = transfer.transfer(net, before, [1, 2], [1, 2])
    assert said.startswith("layer 1 of")
    assert "3 channels from 2, repeated" in said
    assert_same(net, before, but=[0])
    kernel, old = net.get_weights()[0], before.get_weights()[0]
    np.testing.assert_allclose(kernel, old[..., [0, 1, 0], :] * 2 / 3, rtol=1e-6)


def test_labels_of_the_same_value_are_taken_over_and_others_begin_anew():
    net, before = unet(classes=4), unet(classes=3)
    fresh = [w.copy() for w in net.get_weights()[-2:]]
    (said,) = transfer.transfer(net, before, [2, 5, 7], [2, 7])
    assert "labels 5 are new" in said
    for here, there, new in zip(
        net.get_weights()[-2:], before.get_weights()[-2:], fresh, strict=True
    ):
        np.testing.assert_array_equal(here[..., [0, 1, 3]], there)  # background, 2 and 7
        np.testing.assert_array_equal(here[..., 2], new[..., 2])


def test_layers_of_another_shape_begin_anew_and_are_named():
    net, before = unet(filters=8), unet(filters=4)
    kept = net.get_weights()
    said = transfer.transfer(net, before, [1, 2], [1, 2])
    count = len([layer for layer in net.layers if layer.weights])
    assert len(said) == count
    for now, then in zip(net.get_weights(), kept, strict=True):
        np.testing.assert_array_equal(now, then)


def test_deeper_networks_keep_what_is_alike():
    net, before = unet(depth=2), unet(depth=1)
    said = transfer.transfer(net, before, [1, 2], [1, 2])
    assert_same(net.layers[1], before.layers[1])
    assert "begins anew" in said[-1]


def test_the_classes_of_a_deeper_network_are_not_sought_in_a_hidden_layer():
    net = keras.Sequential([keras.layers.Dense(4), keras.layers.Dense(3)])
    before = keras.Sequential([keras.layers.Dense(width) for width in (4, 4, 3)])
    for one in (net, before):
        one.build((None, 2))
    kept = net.layers[1].get_weights()
    (said,) = transfer.transfer(net, before, [1, 2], [1, 2])
    assert "layer 2 of 2" in said
    assert "begins anew" in said
    assert_same(net.layers[0], before.layers[0])
    for now, then in zip(net.layers[1].get_weights(), kept, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.fixture(scope="module")
def continued(run, cases, tmp_path_factory):
    """A run that starts from `run`, with a model on all cases, its callbacks and weights."""
    folder = tmp_path_factory.mktemp("continued")

    def watch(fold_dir):
        return [keras.callbacks.CSVLogger(fold_dir / "watched.csv")]

    more = {"final": True, "callbacks": watch, "class_weights": {1: 2.0}}
    cross_validate(cases, folder, start_from=run.results, **more, **SETTINGS)
    return folder


def test_folds_start_where_those_before_ended(run, continued):
    for fold in ("fold_0", "fold_1"):
        done = json.loads((continued / fold / "done.json").read_text())
        before = json.loads((run.results / fold / "done.json").read_text())
        start = done["start"]
        assert (start["weights_sha256"], start["anew"]) == (before["weights_sha256"], [])
        assert (len(start["digests"]), start["patients"]) == (4, [])  # of 2 scans and their files
        old, new = (weights(at / fold / "model.weights.h5") for at in (run.results, continued))
        # Four small steps from there; another start would be as far away as weights are large.
        moved = max(np.abs(new[key] - old[key]).max() for key in old)
        assert 0 < moved < 0.1
    settings = json.loads((continued / "experiment.json").read_text())["settings"]
    assert settings["recipe"]["learning_rate"] == pytest.approx(0.002)
    assert settings["class_weights"] == {"1": 2.0}
    assert len(settings["starts"]) == 2


def test_callbacks_of_each_fold_are_called(continued):
    for fold in ("fold_0", "fold_1", "final"):
        assert len((continued / fold / "watched.csv").read_text().splitlines()) == 3


def test_a_run_that_starts_elsewhere_is_another_one(run, continued, cases):
    with pytest.raises(ValueError, match=r"other settings:\n.*class_weights"):
        cross_validate(cases, continued, **SETTINGS)


def test_the_final_model_is_trained_on_all_cases_and_predicts_alone(
    continued, cases, tmp_path, capsys
):
    done = json.loads((continued / "final" / "done.json").read_text())
    assert (done["train"], done["val"]) == ([case.id for case in cases], [])
    assert "temperature" not in done
    assert len(load_models(continued)) == 2
    assert len(load_models(continued, folds=["final"])) == 1
    run = Run(continued)
    assert [fold.key for fold in run.read_models()] == [0, 1, "final"]
    table = predict_scans(cases[:1], continued, tmp_path / "out", folds=["final"])
    assert table["problem"].tolist() == ["", ""]
    note = json.loads((tmp_path / "out/done/c0.json").read_text())
    assert note["about"]["models"] == [done["weights_sha256"]]


def test_a_final_model_of_before_is_not_kept_beside_other_folds(
    run, continued, cases, tmp_path, capsys
):
    folder = shutil.copytree(continued, tmp_path / "again")
    (folder / "fold_1/done.json").unlink()
    settings = {**SETTINGS, "class_weights": {1: 2.0}}
    cross_validate(cases, folder, start_from=run.results, **settings)
    assert not (folder / "final/done.json").exists()
    assert "The model on all cases was of before" in capsys.readouterr().out


def test_a_final_model_is_added_to_a_finished_run(copy, cases, capsys):
    (copy / "components.json").write_text('{"cases": {"c0": [1]}, "new_scans": [1]}')
    before = (copy / "fold_0/done.json").read_bytes()
    cross_validate(cases, copy, final=True, **SETTINGS)
    said = capsys.readouterr().out
    assert "2 of 2 folds are finished." in said
    assert "final epoch 2/2" in said
    assert (copy / "fold_0/done.json").read_bytes() == before
    assert (copy / "final/model.weights.h5").exists()
    assert (copy / "components.json").exists()  # no prediction changed
