"""How a fold is trained: the recipe, and the plan that is made of it for some cases."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from unetseg import model
from unetseg._base import require
from unetseg.losses import PatchLoss, dice_cross_entropy, patch_loss
from unetseg.preprocessing import OLDER, Preprocessor, patch_budget
from unetseg.run import devices
from unetseg.run.layout import Run, read_json, write_checked

BATCH_VOXELS = 50_000
UNET = f"{model.build_unet.__module__}.{model.build_unet.__qualname__}"


@dataclass(frozen=True)
class Recipe:
    """How a fold is trained. The defaults are meant to be left alone.

    Parameters
    ----------
    epochs : int
        Validated and written to the history after each.
    steps : int, optional
        Batches per epoch. By default as `unetseg.fitting.count_steps` says.
    minutes : float, optional
        How long a fold may train: the steps of an epoch are planned from the seconds that one
        takes on this machine, measured before the first fold and written down.
    batch_size : int, optional
        Patches per step, shared out among the GPUs. By default as
        `plan_batch` says.
    learning_rate : float
        At its peak, for `unetseg.optimizers.Muon`.
    weight_decay : float
    warmup : float
        Share of the steps in which the learning rate rises; after it, it falls as a cosine.
    averaging : float
        Share of the steps that the average of the weights looks back on; 0 for none.
    foreground : float
        Share of patches centred on the foreground.
    augment : bool
        Whether patches are turned, scaled, mirrored and changed in intensity.
    precision : {"auto", "float32", "mixed_bfloat16", "mixed_float16"}
        ``auto`` is as of `unetseg.run.devices.choose_precision`: bfloat16 or float16 where the
        hardware is fast in it, else float32.
    """

    epochs: int = 12
    steps: int | None = None
    minutes: float | None = None
    batch_size: int | None = None
    learning_rate: float = 6e-3  # of 2e-3, 6e-3 and 12e-3 the best in an inner split
    weight_decay: float = 1e-4
    warmup: float = 0.05
    averaging: float = 0.1  # scores steadier than the last weights alone
    foreground: float = 0.5
    augment: bool = True
    precision: str = "auto"

    def __post_init__(self):
        """Check the fields; whole numbers of whatever kind become integers."""
        for name in ("epochs", "steps", "batch_size"):
            value = getattr(self, name)
            if value is not None:
                require(name, value, value == int(value), "a whole number")
                object.__setattr__(self, name, int(value))
        for name, fits, allowed in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("steps", self.steps is None or self.steps >= 1, "at least 1"),
            ("minutes", self.minutes is None or self.minutes > 0, "above 0"),
            ("batch_size", self.batch_size is None or self.batch_size >= 1, "at least 1"),
            ("learning_rate", 0 < self.learning_rate < np.inf, "above 0"),
            ("weight_decay", 0 <= self.weight_decay < np.inf, "0 or more"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("averaging", 0 <= self.averaging <= 1, "in [0, 1]"),
            ("foreground", 0 <= self.foreground <= 1, "in [0, 1]"),
            ("precision", self.precision in devices.PRECISIONS, f"one of {devices.PRECISIONS}"),
        ):
            require(name, getattr(self, name), fits, allowed)


@dataclass(frozen=True)
class Plan:
    """What every fold of an experiment is trained with: made once, handed on whole.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    build_model : callable
        As for `unetseg.model.build_for`.
    model_args : dict
        Complete.
    recipe : Recipe
    batch_size : int
        Patches per step.
    loss : callable
        Of ``y_true`` and ``y_pred``, as `unetseg.losses.dice_cross_entropy`.
    class_weights : dict of int to float
        By label value, 0 for the background; 1 for those that are not named.
    """

    preprocessor: Preprocessor
    build_model: Callable
    model_args: dict
    recipe: Recipe
    batch_size: int
    loss: Callable = dice_cross_entropy
    class_weights: dict = field(default_factory=dict)

    @property
    def precision(self):
        """Dtype policy in which this machine trains the network."""
        shape = self.preprocessor.input_shape
        bfloat16 = bears_bfloat16(self.build_model, shape, self.model_args)
        return devices.choose_precision(self.recipe.precision, bfloat16=bfloat16)

    @property
    def seen(self):
        """The preprocessor for predictions: without mirroring if in training there was none."""
        mirrored = self.recipe.augment
        return self.preprocessor if mirrored else replace(self.preprocessor, mirror_axes=())

    def build(self):
        """Build the network: a keras.Model, uncompiled."""
        return model.build_for(self.preprocessor, self.build_model, self.model_args, self.precision)

    def list_levels(self):
        """List the levels of `unetseg.model.build_unet` on the way down.

        Returns
        -------
        pandas.DataFrame
            A row per level: the ``kernel`` of its convolutions, and by what it is ``then shrunk``.
        """
        strides = [*self.model_args["strides"], None]
        return pd.DataFrame({"kernel": self.model_args["kernels"], "then shrunk by": strides})

    def make_loss(self):
        """Make the loss of a patch."""
        if self.loss is not dice_cross_entropy:
            return PatchLoss(self.loss)
        members, weights = self.preprocessor.members, None
        if self.class_weights:
            values = 0, *self.preprocessor.labels
            listed = [self.class_weights.get(value, 1) for value in values]
            weights = np.array(listed, np.float32)
        usual = members is None and weights is None
        return patch_loss if usual else PatchLoss(members=members, class_weights=weights)

    def describe(self, seed):
        """Tell what the results depend on, as ``experiment.json`` holds it."""
        about = {
            "builder": _name(self.build_model),
            "model_args": self.model_args,
            "preprocessor": asdict(self.preprocessor),
            "recipe": asdict(self.recipe),
            "seed": seed,
        }
        if self.loss is not dice_cross_entropy:
            about["loss"] = _name(self.loss)
        return {**about, "class_weights": self.class_weights} if self.class_weights else about


def _name(function):
    return f"{function.__module__}.{getattr(function, '__qualname__', type(function).__qualname__)}"


def recall_plan(results_dir, build_model=model.build_unet):
    """Tell what an experiment was trained with.

    Parameters
    ----------
    results_dir : str or Path
    build_model : callable, default build_unet
        The builder that its models were trained with.

    Returns
    -------
    Plan
    """
    run = Run(results_dir)
    experiment = read_json(run.experiment)
    settings = experiment["settings"]
    preprocessor, recipe = Preprocessor.load(run.preprocessor), Recipe(**settings["recipe"])
    model_args, batch_size = settings["model_args"], experiment["batch_size"]
    recipe = replace(recipe, steps=experiment.get("steps", recipe.steps))
    return Plan(preprocessor, build_model, model_args, recipe, batch_size)


def make_plan(
    preprocessor,
    build_model=model.build_unet,
    model_args=None,
    recipe=None,
    *,
    loss=dice_cross_entropy,
    class_weights=None,
):
    """Settle what is trained: the network for the patch, and how many patches make a batch.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    build_model : callable, default build_unet
    model_args : dict, optional
        Those of `build_unet` are completed by `unetseg.model.plan_unet`; of others they stay.
    recipe : Recipe, optional
    loss, class_weights
        As for `Plan`.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If class weights are given that the loss does not take, or of no label, or below 0.
    """
    recipe, given, weights = recipe or Recipe(), model_args or {}, class_weights or {}
    known = {*weights} <= {0, *preprocessor.labels} and min(weights.values(), default=0) >= 0
    allowed = f"0 or more, by values of the labels {[0, *preprocessor.labels]}"
    require("class_weights", weights, known, allowed)
    own = loss is dice_cross_entropy or not weights
    require("class_weights", weights, own, "left out with a loss of your own, which weighs itself")
    if build_model is model.build_unet:
        axes, strides = 3 - preprocessor.patch.count(1), given.get("strides")
        fits = all(len(stride) == axes and max(stride) > 1 for stride in strides or ())
        allowed = f"whole numbers for each of {axes} axes, not 1 for all of them"
        require("strides", strides, fits, allowed)
        given = model.plan_unet(preprocessor, **given)
    batch_size = recipe.batch_size or plan_batch(preprocessor.patch)
    return Plan(preprocessor, build_model, given, recipe, batch_size, loss, weights)


def bears_bfloat16(build_model, input_shape, model_args):
    """Whether a network learns in bfloat16 on a processor.

    oneDNN leaves the bfloat16 gradient of a 3x3x3 convolution over 2 planes unwritten; builders of
    others may hide one in a layer.

    Parameters
    ----------
    build_model, input_shape, model_args
        As for `unetseg.model.build_for`.

    Returns
    -------
    bool
    """
    if len(input_shape) == 3:
        return True
    if build_model is not model.build_unet:
        return False
    strides = model_args.get("strides") or [(2, 2, 2)] * model_args.get("depth", 3)
    planes = [input_shape[0]]
    for stride in strides:
        planes.append(planes[-1] // stride[0])
    return 2 not in planes


def plan_batch(patch):
    """Choose how many patches make a batch.

    One, as more steps learn more in the same time; as many as hold 50,000 voxels if they are
    small, such as slices, and the memory bears it; a multiple of the GPUs.

    Parameters
    ----------
    patch : tuple of int

    Returns
    -------
    int
    """
    count = max(1, min(BATCH_VOXELS, patch_budget()) // math.prod(patch))
    gpus = max(1, len(devices.list_gpus()))
    return -(-count // gpus) * gpus


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
        write_checked(path, {"settings": settings, **run})
    recorded = read_json(path)
    there = dict(recorded["settings"])
    if "preprocessor" in there:
        there["preprocessor"] = json.loads(json.dumps(OLDER)) | there["preprocessor"]
    if there.get("builder") == UNET:
        there["model_args"] = {"max_filters": model.MAX_FILTERS} | there["model_args"]
    both = there, settings
    old, new = (pd.json_normalize(one).astype(object).iloc[0].to_dict() for one in both)
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    if changed:
        lines = "\n".join(f"  {key}: {old.get(key)} there, {new.get(key)} now" for key in changed)
        advice = "Go back to those settings, or choose another EXPERIMENT name."
        problem = f"this folder holds an experiment with other settings:\n{lines}\n"
        raise ValueError(f"{path}: {problem}{advice}")
    return recorded
