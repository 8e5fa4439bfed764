"""What a fold says of the cases that it left out: their predictions, and how sure it was."""

import functools

import numpy as np
import pandas as pd

from unetseg import nifti, reliability
from unetseg._base import write_table
from unetseg.prediction import predict_and_sample, prepare_case
from unetseg.run import state
from unetseg.run.layout import Run

MAX_SAMPLED = 1_000_000  # voxels of a fold, to look at its calibration


def predict_validated(plan, fold, val, digest):
    """Predict the cases that a fold validates, copy their masks, and count how sure it was.

    Parameters
    ----------
    plan : unetseg.recipe.Plan
    fold : unetseg.run.layout.Fold
        Its weights are there. Gets ``calibration.csv``; the predictions and masks go to the
        folders beside it.
    val : unetseg.patches.Looks
        The cases.
    digest : str
        SHA-256 of the weights.

    Returns
    -------
    float
        The temperature that makes the probabilities honest
        (`unetseg.reliability.fit_temperature`).
    """
    preprocessor, net = plan.preprocessor, plan.build()  # on one device
    state.load_weights(net, fold.weights, digest)  # with what is in the file
    run, sampler = Run(fold.folder.parent), Sampler(preprocessor, len(val.cases))
    axes = None if plan.recipe.augment else ()  # mirrored copies only if it has seen some
    for number, case in enumerate(val.cases):
        truth, _ = nifti.load_mask(case.mask)
        nifti.save_mask(run.mask(case.id), truth, case.mask)
        choose = functools.partial(sampler.choose, truth)
        prepared = _prepare(net, val, number, axes)
        labels, chosen, probabilities = predict_and_sample(
            net, prepared, preprocessor, choose, mirror_axes=axes
        )
        nifti.save_mask(run.prediction(case.id), labels, case.files[0])
        sampler.add(truth, chosen, probabilities)
    return calibrate(sampler.sampled, fold.calibration)


class Sampler:
    """Draws voxels of the cases of a fold, to look at how sure it was of them.

    Parameters
    ----------
    preprocessor : Preprocessor
    n_cases : int
        That share `MAX_SAMPLED` voxels.
    """

    def __init__(self, preprocessor, n_cases):
        """Start with none."""
        self.preprocessor, self.most = preprocessor, MAX_SAMPLED // n_cases
        self.rng, self.sampled = np.random.default_rng(0), []

    def choose(self, truth, labels):
        """Choose voxels of a case (`unetseg.reliability.choose_voxels`): an (n,) ndarray."""
        about = {"rng": self.rng, "most": self.most, "ignore": self.preprocessor.ignore}
        return reliability.choose_voxels(truth, labels, **about)

    def add(self, truth, chosen, probabilities):
        """Add those of a case to ``sampled``; ``probabilities``: (n, class), of each of them."""
        values = truth.ravel()[chosen]
        classes = sum(k * (values == label) for k, label in enumerate(self.preprocessor.labels, 1))
        self.sampled.append((probabilities, classes))


def _prepare(net, val, number, mirror_axes):
    if not val.preprocessor.coarse:
        return val.near.prepared(number)
    # Anew: the cached region is that of its mask, which is not for the prediction.
    return prepare_case(net, val.cases[number], val.preprocessor, mirror_axes=mirror_axes)


def calibrate(sampled, path):
    """Count how often voxels are right that are so sure, before and after calibration.

    Parameters
    ----------
    sampled : list of pair of ndarray
        Of each case the probabilities of some voxels, (n, class), and their classes, (n,).
    path : str or Path
        Gets the table.

    Returns
    -------
    float
        The temperature (`unetseg.reliability.fit_temperature`).
    """
    probabilities, classes = (np.concatenate(parts) for parts in zip(*sampled, strict=True))
    # A fold may validate healthy people alone, in whom nothing was drawn.
    temperature = reliability.fit_temperature(probabilities, classes) if len(classes) else 1.0
    after = reliability.soften(probabilities, temperature)
    tables = {"as trained": probabilities, "calibrated": after}
    tables = {k: reliability.calibration_table(v, classes) for k, v in tables.items()}
    table = pd.concat(tables, names=["stage"]).reset_index("stage")
    write_table(path, table)
    return round(temperature, 4)
