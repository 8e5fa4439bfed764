"""Small volumes and their masks, as arrays."""

import numpy as np

SHAPE = (10, 18, 9)


def rng(seed=0):
    return np.random.default_rng(seed)


def volume(seed=0, channels=2):
    x = rng(seed).normal(size=(*SHAPE, channels)).astype(np.float32)
    return x, rng(seed).integers(0, 3, SHAPE).astype(np.uint8)


def scan(label):
    """Noise without zeros, so that nothing is cropped, and a box of one label."""
    mask = np.zeros(SHAPE, np.uint8)
    mask[2:4, 3:7, 1:4] = label
    return rng(label).uniform(1, 100, SHAPE).astype(np.float32), mask


def numbered():
    place = np.arange(np.prod(SHAPE)).reshape(SHAPE)  # every voxel holds its own number
    return place[..., None].astype(np.float32), (place % 251).astype(np.uint8)
