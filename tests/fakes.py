"""Models that are functions of their batch, for tests of prediction."""

import numpy as np


class Fake:
    """A model whose probability of class 1 is a function of the batch."""

    def __init__(self, probability):
        self.probability, self.shapes = probability, []

    def predict_on_batch(self, batch):
        self.shapes.append(batch.shape)
        p = np.broadcast_to(self.probability(batch), batch.shape[:-1])
        return np.stack([1 - p, p], axis=-1).astype(np.float32)


def threshold(limit=0.0):
    return Fake(lambda batch: batch[..., 0] > limit)


def constant(p):
    return Fake(lambda batch: p)


def noise(*shape):
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)
