"""The cases that a fold left out: predicted by what is on disk, as it was trained."""

import numpy as np
import pytest
from training_helpers import train_one

from unetseg import validation
from unetseg.nifti import load_mask
from unetseg.prediction import predict_and_sample
from unetseg.run import state


@pytest.mark.parametrize(("augment", "axes"), [(True, None), (False, ())])
def test_mirrored_copies_are_predicted_only_by_models_that_saw_mirrored_patches(
    cases, tmp_path, monkeypatch, augment, axes
):
    used = []

    def predict(*args, mirror_axes):
        used.append(mirror_axes)
        return predict_and_sample(*args, mirror_axes=mirror_axes)

    monkeypatch.setattr(validation, "predict_and_sample", predict)
    train_one(cases, tmp_path, augment=augment)
    assert used == [axes, axes]  # of two cases


def test_what_is_scored_is_what_the_file_of_the_weights_holds(cases, tmp_path, monkeypatch):
    save = state.save_weights

    def save_zeros(net, path):
        net.set_weights([np.zeros_like(array) for array in net.get_weights()])
        digest = save(net, path)
        net.set_weights([np.full_like(array, np.nan) for array in net.get_weights()])
        return digest

    monkeypatch.setattr(state, "save_weights", save_zeros)
    train_one(cases, tmp_path)
    for path in (tmp_path / "predictions").iterdir():
        assert np.unique(load_mask(path)[0]).tolist() == [0]  # all classes equally likely
