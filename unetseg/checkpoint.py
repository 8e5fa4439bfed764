"""Weights and settings on disk and back: written in one step, verified."""

import json
import os
from pathlib import Path

import h5py
import pandas as pd

from unetseg.workspace import read_json, sha256, write_json


def save_weights(model, path):
    """Save the weights of a model, and nothing else, in one step.

    Parameters
    ----------
    model : keras.Model
    path : str or Path
        Ends in ``.weights.h5``.

    Returns
    -------
    str
        SHA-256 of the file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")  # Keras insists on the ending
    optimizer = getattr(model, "optimizer", None)
    model.optimizer = None  # else its state doubles the file
    try:
        model.save_weights(part)
        os.replace(part, path)
    finally:
        model.optimizer = optimizer
        part.unlink(missing_ok=True)
    return sha256(path)


def load_weights(model, path, digest=None):
    """Load weights into a model of the same architecture.

    Parameters
    ----------
    model : keras.Model
    path : str or Path
        As written by `save_weights`, on this version of Keras or another.
    digest : str, optional
        SHA-256 that the file must have.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is damaged or belongs to another architecture.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file. Train the fold with 02_train_kfold first.")
    if digest and sha256(path) != digest:
        problem = "damaged, its SHA-256 is not the one noted when it was saved"
        raise ValueError(f"{path}: {problem}. Fetch it again, or train the fold again.")
    try:
        model.load_weights(path)
        stored = []  # Keras does not mind arrays that no weight asks for
        with h5py.File(path) as file:
            file.visititems(lambda _, item: stored.append(isinstance(item, h5py.Dataset)))
        if sum(stored) != len(model.weights):
            raise ValueError(f"{sum(stored)} arrays for {len(model.weights)} weights")
    except Exception as error:
        advice = "Build the model with the arguments in experiment.json."
        raise ValueError(f"{path}: does not fit the model ({error}). {advice}") from error


def record_settings(path, settings, run):
    """Write the settings of an experiment down, or refuse ones that differ from those written.

    Parameters
    ----------
    path : str or Path
        ``experiment.json``.
    settings : dict
        What the results depend on; nested, in JSON's types.
    run : dict
        What else is worth knowing. Written beside the settings the first time, kept after that.

    Returns
    -------
    dict
        What the file now holds.

    Raises
    ------
    ValueError
        If the file is there and holds other settings; lists the differences.
    """
    path, settings = Path(path), json.loads(json.dumps(settings))
    if not path.exists():
        write_json(path, {"settings": settings, **run})
    recorded = read_json(path)
    both = recorded["settings"], settings
    old, new = (pd.json_normalize(one).astype(object).iloc[0].to_dict() for one in both)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        lines = "\n".join(f"  {key}: {old.get(key)} there, {new.get(key)} now" for key in changed)
        advice = "Go back to those settings, or choose another EXPERIMENT name."
        problem = f"this folder holds an experiment with other settings:\n{lines}\n"
        raise ValueError(f"{path}: {problem}{advice}")
    return recorded
