"""How much memory the prediction of a scan takes."""

import math

import numpy as np

from unetseg import ensemble, nifti, windows
from unetseg.ensemble import FLOAT_BYTES, map_bytes

# Copies at a time, as counted in the code and measured: of the scan while it is read, of the
# network's input while it is made, and of a map while it is saved.
READING, MAKING, SAVING = 4, 4, 5
SAID = "A scan takes up to {:.2g} GB of memory, {:.3g} GB are free."
REMEDY = "Predict fewer scans at once (N_JOBS), without probabilities, or on a larger machine"


def prediction_bytes(preprocessor, shape, spacing_mm, models=(), *, n_models=1, maps=()):
    """Estimate the memory that `unetseg.inference.predict_scans` takes for one scan.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    shape : tuple of 3 int
        Of the scan.
    spacing_mm : tuple of 3 float
    models : sequence of keras.Model, optional
        Of which the first is looked at, for the memory of its layers.
    n_models : int, default 1
        If `models` is not given.
    maps : iterable of str
        As for `unetseg.inference.predict_scans`.

    Returns
    -------
    int
        Bytes beyond those that the process has taken already. As if nothing were cropped.
    """
    n_models, num_classes = len(models) or n_models, preprocessor.num_classes
    extent = np.multiply(shape, preprocessor.take_spacing(spacing_mm))
    resampled = np.maximum(1, np.round(extent / preprocessor.spacing_mm))
    network = np.maximum(resampled, preprocessor.patch).astype(int).tolist()
    voxels, seen = math.prod(shape), math.prod(network)
    scan = voxels * preprocessor.channels * FLOAT_BYTES
    x = seen * preprocessor.channels * FLOAT_BYTES
    if preprocessor.coarse:  # whose maps are kept
        coarse = np.maximum(extent / preprocessor.coarse_mm, preprocessor.patch)
        x += n_models * map_bytes(coarse, num_classes)
    drawn = voxels * (3 * FLOAT_BYTES + n_models)
    block = min(
        max(map_bytes(shape, num_classes), map_bytes(network, num_classes)), ensemble.BLOCK_BYTES
    )
    kept = map_bytes(shape, num_classes) if "probabilities" in maps else 0
    saved = max(kept, voxels * FLOAT_BYTES)
    steps = (
        READING * scan + MAKING * x,
        2 * x + drawn + kept + 2 * block + _window_bytes(preprocessor, models),
        drawn + kept + SAVING * saved,
    )
    return int(max(steps))


def _window_bytes(preprocessor, models):
    patch = math.prod(preprocessor.patch)
    batch = max(1, windows.BATCH_VOXELS // patch)
    maps = 2 * batch * map_bytes(preprocessor.patch, preprocessor.num_classes)
    layers = getattr(models[0], "layers", ()) if models else ()
    sizes = [math.prod(layer.output.shape[1:]) for layer in layers]
    return maps + batch * FLOAT_BYTES * sum(sorted(sizes)[-4:])  # alive at a time


def describe_lack(need, free):
    """Say that a prediction takes more memory than there is; empty if it does not.

    Parameters
    ----------
    need, free : int
        In bytes.

    Returns
    -------
    str
    """
    if need <= free:
        return ""
    amounts = f"predicting it takes about {need / 1e9:.1f} GB of memory"
    return f"{amounts}, {free / 1e9:.1f} GB are free. {REMEDY}."


def foretell(scan, preprocessor, models=(), **known):
    """Estimate the memory for a scan from its header.

    Parameters
    ----------
    scan : Case
    preprocessor, models, **known
        As for `prediction_bytes`.

    Returns
    -------
    int
        Bytes; 0 if the header cannot be read, of which `unetseg.cases.check_cases` tells.
    """
    try:
        header = nifti.read(scan.files[0], voxels=False)
    except (OSError, ValueError):
        return 0
    return prediction_bytes(preprocessor, *nifti.canonical_grid(header), models, **known)
