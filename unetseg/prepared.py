"""A case on the network's grid, with all that its prediction needs."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from unetseg.body import find_void, measure_contrast, reach_outside
from unetseg.grids import Place


class FirstLook(NamedTuple):
    """What models said of a whole scan, seen coarsely, before they looked closer.

    ``place``: where the coarse grid lies on the native one. ``maps``: (model, x, y, z, class)
    float32, probabilities on the coarse grid.
    """

    place: Place
    maps: np.ndarray


@dataclass(frozen=True)
class Prepared:
    """A case on the network's grid, as `Preprocessor.prepare` makes it.

    ``x``: (x, y, z, channel) float32, at least as large as the patch. ``y``: (x, y, z) uint8,
    class numbers, or None without a mask. ``place``: where it lies on the native grid.
    ``inside``: (x, y, z) bool, what is body. ``preprocessor``: the one that made it. ``first``:
    of two looks what was seen at the first one, or None.
    """

    x: np.ndarray
    y: np.ndarray | None
    place: Place
    inside: np.ndarray
    preprocessor: object
    first: FirstLook | None = None

    @functools.cached_property
    def void(self):
        """Background for certain: (x, y, z) bool.

        Where hardly any voxel around has signal (`unetseg.body.find_void`), or where it varies
        less than ``least_contrast``, but for holes in what varies more: the inside of a large and
        even structure. Nowhere unless ``empty_space`` is ``background``.
        """
        settings = self.preprocessor
        if settings.empty_space != "background":
            return np.zeros(self.inside.shape, bool)
        void = find_void(self.inside, settings.spacing_mm)
        if settings.least_contrast:
            contrast = measure_contrast(self.x, self.inside, settings.spacing_mm)
            void |= reach_outside(contrast < settings.least_contrast, void)
        return void
