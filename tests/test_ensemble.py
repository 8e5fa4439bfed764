"""Blocks of made scans by models of which the answer is known."""

import numpy as np
import pytest

from unetseg import ensemble
from unetseg.ensemble import predict_blocks
from unetseg.preprocessing import Preprocessor


class Bright:
    """Class 1 with some certainty where the first channel is above a limit, else background."""

    def __init__(self, limit, certainty):
        self.limit, self.certainty = limit, certainty

    def predict_on_batch(self, batch):
        p = np.where(batch[..., 0] > self.limit, self.certainty, 0)
        return np.stack([1 - p, p], axis=-1).astype(np.float32)


@pytest.mark.parametrize("mirror_axes", [(), (0, 1)])
@pytest.mark.parametrize("most_bytes", [10**9, 5000])
def test_blocks_tile_the_box_with_the_mean_and_the_votes(
    tmp_path, write_case, monkeypatch, mirror_axes, most_bytes
):
    image = np.random.default_rng(0).uniform(0, 10, (14, 12, 10)).astype(np.float32)
    case = write_case(tmp_path, "a", image)
    preprocessor = Preprocessor((1, 2, 3), (8, 8, 8), {1: "a"}, 1, "none", mirror_axes=mirror_axes)
    monkeypatch.setattr(ensemble, "BLOCK_BYTES", most_bytes)
    place = preprocessor.place(case)
    models = [Bright(2, 0.9), Bright(6, 0.6)]
    mean, votes = np.full((*image.shape, 2), np.nan), np.full((2, *image.shape), 9)
    count = 0
    for block, part, part_votes in predict_blocks(
        models, case, preprocessor, place, 0.5, mirror_axes
    ):
        index = [slice(None)] * 3
        index[block.axis] = slice(*block.native)
        assert np.isnan(mean[tuple(index)]).all()  # no voxel twice
        mean[tuple(index)] = part
        votes[(slice(None), *index)] = part_votes
        count += 1
    assert count == 1 if most_bytes == 10**9 else count > 1
    expected = (0.9 * (image > 2) + 0.6 * (image > 6)) / 2
    np.testing.assert_allclose(mean[..., 1], expected, atol=1e-6)
    np.testing.assert_allclose(mean.sum(axis=-1), 1, atol=1e-6)
    np.testing.assert_array_equal(votes, [image > 2, image > 6])
