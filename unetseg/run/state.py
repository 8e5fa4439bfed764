"""Weights, settings and the state of a training on disk and back: in one step, verified."""

import contextlib
import hashlib
import io
import json
import os
import time
import warnings
from pathlib import Path

import h5py
import keras
import numpy as np
import pandas as pd

from unetseg._base import explain_full, sha256, write_file
from unetseg.run.inputs import list_hashes, name_differences
from unetseg.run.layout import Fold, Run, read_json


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
        with explain_full(path.parent, path.name):
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
        _check_arrays(path, model)
        model.load_weights(path)
    except Exception as error:
        advice = "Build the model with the arguments in experiment.json."
        raise ValueError(f"{path}: does not fit the model ({error}). {advice}") from error


def _check_arrays(path, model):
    # Before Keras reads them: it follows what leads to other files (CVE-2026-1669), allocates
    # whatever size is declared, and does not mind arrays that no weight asks for.
    with h5py.File(path) as file:
        links, stored = [], []
        file.visititems_links(lambda _, link: links.append(isinstance(link, h5py.HardLink)))
        if not all(links):
            raise ValueError("it holds links to elsewhere")
        file.visititems(lambda _, one: stored.append(one) if hasattr(one, "shape") else None)
        if any(one.external or one.is_virtual for one in stored):
            raise ValueError("it holds arrays that are kept in other files")
        found, wanted = (
            sorted(tuple(w.shape) for w in arrays) for arrays in (stored, model.weights)
        )
        if found != wanted:
            raise ValueError(f"{len(found)} arrays for {len(wanted)} weights, or other shapes")


def save_state(model, folder, about):
    """Save all that a training needs to go on after an epoch.

    Of two files, ``0.state`` and ``1.state``, the older one is replaced: one is whole at any
    moment.

    Parameters
    ----------
    model : keras.Model
        Compiled. Its weights, random state and optimizer, the averages of the weights included,
        are kept.
    folder : str or Path
    about : dict
        In JSON's types; what is trained, the ``history`` with an entry per epoch, and the
        ``minutes`` taken so far.
    """
    arrays = {str(n): np.asarray(value) for n, value in enumerate(_variables(model))}
    stream = io.BytesIO()
    np.savez(stream, about=json.dumps(about), **arrays)
    content = stream.getvalue()
    path = Fold(Path(folder)).state(len(about["history"]) % 2)
    write_file(path, hashlib.sha256(content).digest() + content)


def load_state(model, folder, about):
    """Bring a model to where `save_state` left it.

    Parameters
    ----------
    model : keras.Model
        Of the same architecture, compiled, its optimizer built.
    folder : str or Path
    about : dict
        What is trained now; under ``inputs`` what `unetseg.run.inputs.list_hashes` returns.
        States that tell of something else are warned of, with what it is, and not used.

    Returns
    -------
    dict
        ``about`` of the last state that is whole; without one ``about`` with an empty history
        and 0 minutes. A damaged file is warned of and not used.
    """
    states = []
    for path in filter(Path.is_file, map(Fold(Path(folder)).state, (0, 1))):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            arrays = np.load(io.BytesIO(content[32:]), allow_pickle=False)
            states.append((json.loads(str(arrays["about"])), arrays))
        else:
            problem = "damaged, so not used; training goes on from an earlier epoch"
            warnings.warn(f"{path}: {problem}.", stacklevel=2)
    fitting = [pair for pair in states if not _name_differences(pair[0], about)]
    if states and not fitting:
        other = ", ".join(_name_differences(states[0][0], about))
        problem = f"its state is of a training with another {other}, so it begins anew"
        warnings.warn(f"{folder}: {problem}.", stacklevel=2)
    if not fitting:
        return {**about, "history": [], "minutes": 0.0}
    stored, arrays = max(fitting, key=lambda pair: len(pair[0]["history"]))
    if "inputs" in about and "inputs" not in stored:
        problem = "its state is of an earlier version; not known whether its scans changed since"
        warnings.warn(f"{folder}: {problem}.", stacklevel=2)
    for n, variable in enumerate(_variables(model)):
        variable.assign(arrays[str(n)])
    return stored | about


def _name_differences(stored, about):
    names = [key for key in about if key != "inputs" and stored.get(key) != about[key]]
    if "inputs" in about and "inputs" in stored:  # states of an earlier version lack it
        names += name_differences(stored["inputs"], about["inputs"])
    return names


class SaveState(keras.callbacks.Callback):
    """Write ``history.csv`` and the state of the training after each epoch.

    Parameters
    ----------
    folder : str or Path
    about : dict
        As for `save_state`; its history and minutes are continued. An epoch whose loss is not
        finite is not kept.
    since : float
        `time.monotonic` at the start.
    """

    def __init__(self, folder, about, since):
        super().__init__()
        self.folder, self.about, self.last = Path(folder), about, since

    def on_train_begin(self, logs=None):
        """Write the history that the state tells of: it may be an epoch ahead of the file."""
        if self.about["history"]:
            self._write_history()

    def on_epoch_end(self, epoch, logs=None):
        """Save."""
        if np.isfinite(logs["loss"]):
            row = {name: float(logs[name]) for name in sorted(logs)}
            self.about["history"].append({"epoch": epoch, **row})
            self.last, before = time.monotonic(), self.last
            self.about["minutes"] += (self.last - before) / 60
            self.save()
            self._write_history()

    def save(self):
        """Write the state of the last full epoch."""
        save_state(self.model, self.folder, self.about)

    def _write_history(self):
        table = pd.DataFrame(self.about["history"]).to_csv(index=False).encode()
        path = Fold(self.folder).history
        if not (path.exists() and path.read_bytes() == table):  # a new file tells of a new epoch
            write_file(path, table)


class NoteStop(keras.callbacks.Callback):
    """Write down when a training is stopped early, and by which callback.

    It follows the callback that it watches in the list. The state then tells that the training
    has ended, so that it does not go on if it is interrupted before all else is done.

    Parameters
    ----------
    saver : SaveState
        Its ``about`` gets ``stopped``: ``epoch``, counted from 0, ``by``, the name of a class,
        and ``steps``, of all epochs.
    watched : keras.callbacks.Callback
    """

    def __init__(self, saver, watched):
        super().__init__()
        self.saver, self.name = saver, type(watched).__name__
        self.epoch, self.steps, self.seen = 0, 0, False

    def _look(self):
        if self.model.stop_training and "stopped" not in self.saver.about:
            self.seen = True
            self.saver.about["stopped"] = {"epoch": self.epoch, "by": self.name}

    def on_train_begin(self, logs=None):
        """Look."""
        self.epoch = len(self.saver.about["history"])
        self._look()

    def on_epoch_begin(self, epoch, logs=None):
        """Look."""
        self.epoch, self.steps = epoch, 0
        self._look()

    def on_train_batch_begin(self, batch, logs=None):
        """Look."""
        self._look()

    def on_train_batch_end(self, batch, logs=None):
        """Look, and count."""
        self.steps += 1
        self._look()

    def on_test_begin(self, logs=None):
        """Look."""
        self._look()

    def on_test_end(self, logs=None):
        """Look."""
        self._look()

    def on_epoch_end(self, epoch, logs=None):
        """Look, and keep what was seen."""
        self._look()
        if self.seen:
            steps = epoch * self.params["steps"] + self.steps
            self.saver.about["stopped"]["steps"] = steps
            if np.isfinite(logs["loss"]):
                self.saver.save()


class StopWithRun(keras.callbacks.Callback):
    """End a training after an epoch if the run that it is part of has ended.

    For workers of a cluster, whom nobody can stop.

    Parameters
    ----------
    results_dir : Path
        Holds the lock of its run as long as the run is there.
    """

    def __init__(self, results_dir):
        super().__init__()
        self.results_dir = results_dir

    def on_epoch_end(self, epoch, logs=None):
        """Look."""
        lock = Run(self.results_dir).lock
        if lock.name not in os.listdir(lock.parent):
            problem = "the run that this training is part of has ended, so it ends too"
            raise RuntimeError(f"{self.results_dir}: {problem}. Run it again to go on.")


def _variables(model):
    return [*model.variables, *model.optimizer.variables]


def is_finished(run, number, parts):
    """Whether a fold is finished and nothing of it is missing or damaged; changes nothing.

    Parameters
    ----------
    run : unetseg.run.layout.Run
    number : int
        Of the fold.
    parts : dict
        Its ``train`` and ``val`` ids.

    Returns
    -------
    bool

    Raises
    ------
    ValueError
        If it was trained on another split.
    """
    fold = run.fold(number)
    if not fold.done.exists():
        return False
    try:
        done = read_json(fold.done)
    except ValueError:
        return False
    for part in ("train", "val"):
        if sorted(done[part]) != sorted(parts[part]):
            problem = "this fold was trained on another split than splits.json now says."
            advice = "Restore it, or set RETRAIN to train every fold again."
            raise ValueError(f"{fold.done}: {problem} {advice}")
    if not fold.weights.exists() or sha256(fold.weights) != done["weights_sha256"]:
        return False
    predictions = hash_files(run.prediction(case_id) for case_id in parts["val"])
    noted = done.get("predictions_sha256", predictions)  # older ones lack it
    return len(predictions) == len(parts["val"]) and predictions == noted


def repair(run, number, finished):
    """Remove what a run left that was killed, or the marker of a fold that is not whole.

    Parameters
    ----------
    run, number
        As for `is_finished`.
    finished : bool
        What it said.
    """
    fold = run.fold(number)
    if finished:
        for path in (*fold.list_states(), fold.lock):
            path.unlink(missing_ok=True)
    elif fold.done.exists():
        problem = "was finished, but files are missing or damaged"
        print(f"{fold.folder}: {problem}. It is trained again.")
        fold.done.unlink()


def is_current(run, number, parts, now):
    """Whether a fold is finished, and was trained on the split and the files that there are.

    Parameters
    ----------
    run, number, parts
        As for `is_finished`.
    now : dict
        What the files of the cases hold, as `unetseg.run.inputs.list_hashes` returns it.

    Returns
    -------
    bool
    """
    try:
        finished = is_finished(run, number, parts)
    except ValueError:  # of another split
        return False
    before = read_json(run.fold(number).done).get("inputs") if finished else None
    return bool(before) and not name_differences(list_hashes(before), now)


def clear(run, number, ids, backup_dir=None):
    """Remove what an earlier training of a fold left, or a mixture might be scored.

    Parameters
    ----------
    run, number
        As for `is_finished`. The state of a training that was interrupted stays.
    ids : sequence of str
        Of the cases that it validates: their predictions are removed.
    backup_dir : str or Path, optional
        Loses ``done.json`` of the fold, or the next machine would fetch it; and, as the
        results do, ``components.json``, which was decided on predictions that are made anew.
    """
    fold = run.fold(number)
    old = (*fold.list_states(), fold.history) if fold.done.exists() else ()
    decided = [run.components] if ids else []  # a model on all cases changes no prediction
    for path in (*old, fold.done, *decided, *(run.prediction(case_id) for case_id in ids)):
        path.unlink(missing_ok=True)
    if backup_dir:
        there = Run(backup_dir)
        for path in (there.fold(number).done, *([there.components] if ids else [])):
            with contextlib.suppress(OSError):
                path.unlink()


def hash_files(paths):
    """SHA-256 by name, of the files that are there."""
    return {path.name: sha256(path) for path in paths if path.exists()}


def hash_masks(run, ids):
    """SHA-256 of the predictions and of the masks that a fold leaves, as ``done.json`` has them."""
    return {
        "predictions_sha256": hash_files(run.prediction(case_id) for case_id in ids),
        "masks_sha256": hash_files(run.mask(case_id) for case_id in ids),
    }
