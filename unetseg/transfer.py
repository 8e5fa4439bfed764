"""The weights of an earlier run in a new network, as far as they fit."""

from pathlib import Path

import numpy as np

from unetseg.earlier import list_starts
from unetseg.inference import load_models
from unetseg.preprocessing import Preprocessor
from unetseg.run.layout import Run


def apply_start(net, plan, start):
    """Give a network the weights of the model that its training starts from.

    Parameters
    ----------
    net : keras.Model
        Is changed.
    plan : unetseg.recipe.Plan
        By which it was built.
    start : unetseg.earlier.Start

    Returns
    -------
    dict
        ``weights_sha256``; ``anew``, a sentence for each layer that is not taken over whole; and
        the ``digests`` and ``patients`` that the model has seen.
    """
    build = plan.build_model
    (model,) = load_models(start.results_dir, build_model=build, folds=[start.key])
    before = Preprocessor.load(Run(start.results_dir).preprocessor).labels
    anew = transfer(net, model, plan.preprocessor.labels, before)
    seen = {"digests": [*start.digests], "patients": [*start.patients]}
    return {"weights_sha256": start.weights_sha256, "anew": anew, **seen}


def describe_start(net, plan, results_dir):
    """Say layer by layer what a network takes over from an earlier run.

    Parameters
    ----------
    net, plan
        As for `apply_start`.
    results_dir : str or Path
        The earlier run.

    Returns
    -------
    str
    """
    start = next(iter(list_starts(results_dir).values()))
    anew = apply_start(net, plan, start)["anew"]
    count = len([layer for layer in net.layers if layer.weights])
    whole = (
        f"{count - len(anew)} of {count} layers start from {Path(results_dir).name} as they are."
    )
    return "\n".join([whole, *anew])


def transfer(net, earlier, labels, labels_before):
    """Give a network the weights of another one, as far as they fit.

    Layers are compared in their order. The first takes more or fewer channels by repeating those
    that it knows; of the last one the classes of labels with the same values are taken over.

    Parameters
    ----------
    net, earlier : keras.Model
        `net` is changed.
    labels, labels_before : iterable of int
        Values of the labels of each.

    Returns
    -------
    list of str
        A sentence for each layer that is not taken over whole.
    """
    pairs = [[layer for layer in one.layers if layer.weights] for one in (net, earlier)]
    said, number = [], min(map(len, pairs))
    for place, (layer, other) in enumerate(zip(*pairs, strict=False), 1):
        old, new = other.get_weights(), layer.get_weights()
        where = f"layer {place} of {len(pairs[0])} ({layer.name})"
        is_last = place == len(pairs[0]) == len(pairs[1]) and len(old) == len(new)
        if is_last and old[0].shape[:-1] == new[0].shape[:-1]:
            layer.set_weights(_map_classes(old, new, labels, labels_before, where, said))
        elif [w.shape for w in old] == [w.shape for w in new]:
            layer.set_weights(old)
        elif place == 1 and (repeated := _repeat_channels(old, new)):
            layer.set_weights(repeated)
            n, m = old[0].shape[-2], new[0].shape[-2]
            said.append(f"{where}: {m} channels from {n}, repeated.")
        else:
            shapes = f"{old[0].shape} there, {new[0].shape} now"
            said.append(f"{where}: of another shape ({shapes}), so it begins anew.")
    for place, layer in enumerate(pairs[0][number:], number + 1):
        said.append(f"layer {place} of {len(pairs[0])} ({layer.name}): begins anew.")
    return said


def _repeat_channels(old, new):
    kernel, wanted = old[0], new[0].shape
    if len(kernel.shape) != len(wanted):
        return None
    n, m = kernel.shape[-2], wanted[-2]
    kernel = kernel[..., np.arange(m) % n, :] * (n / m)
    repeated = [kernel.astype(old[0].dtype), *old[1:]]
    return repeated if [w.shape for w in repeated] == [w.shape for w in new] else None


def _map_classes(old, new, labels, labels_before, where, said):
    # The background is the first class of both.
    before, now = [0, *labels_before], [0, *labels]
    mapped = [np.array(w) for w in new]
    for place, value in enumerate(now):
        if value in before:
            for there, here in zip(old, mapped, strict=True):
                here[..., place] = there[..., before.index(value)]
    fresh = [value for value in now if value not in before]
    if fresh:
        said.append(f"{where}: labels {', '.join(map(str, fresh))} are new and begin anew.")
    return mapped
