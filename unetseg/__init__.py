"""U-Net segmentation of NIfTI scans with K-fold cross-validation.

``import unetseg as us`` gives the functions that are named below, and every module by its name;
each is imported when it is first used, so ``import unetseg`` costs next to nothing. The core
stands alone: `nifti`, `model`, `metrics`, `plots`. The way of a case, in order: `sample`, `cases`,
`splits`, `survey`, `planning`, `preprocessing`, `augmentation`, `patches`, `recipe`, `fitting`,
`training`, `prediction`, `inference`, `scores`, `charts`, `reliability`, `report`, `sharing`,
`workspace`. What keeps a run safe is in `run`, what reads files of others in `reading`.
"""

import importlib
import importlib.util
import os
import sys

# Else the process that first uses a GPU, such as a notebook that built a network once, keeps all
# of its memory from the processes that train.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

__version__ = "0.1.0"

TYPE_CHECKING = False  # but for editors, which complete what stands here
if TYPE_CHECKING:
    from unetseg.cases import check_cases, find_cases
    from unetseg.inference import load_models, predict_scans
    from unetseg.metrics import dice, hausdorff, surface_dice
    from unetseg.model import build_unet
    from unetseg.nifti import load_image, load_mask, save_mask
    from unetseg.plots import show_cases, view_case
    from unetseg.prediction import predict_case
    from unetseg.preprocessing import Preprocessor
    from unetseg.scores import score_predictions, summarise
    from unetseg.splits import make_folds
    from unetseg.training import cross_validate

_MODULE_OF = {
    "load_image": "nifti",
    "load_mask": "nifti",
    "save_mask": "nifti",
    "find_cases": "cases",
    "check_cases": "cases",
    "make_folds": "splits",
    "Preprocessor": "preprocessing",
    "build_unet": "model",
    "cross_validate": "training",
    "load_models": "inference",
    "predict_case": "prediction",
    "predict_scans": "inference",
    "dice": "metrics",
    "hausdorff": "metrics",
    "surface_dice": "metrics",
    "score_predictions": "scores",
    "summarise": "scores",
    "show_cases": "plots",
    "view_case": "plots",
}
__all__ = [
    "Preprocessor",
    "build_unet",
    "check_cases",
    "cross_validate",
    "dice",
    "find_cases",
    "hausdorff",
    "load_image",
    "load_mask",
    "load_models",
    "make_folds",
    "predict_case",
    "predict_scans",
    "save_mask",
    "score_predictions",
    "show_cases",
    "summarise",
    "surface_dice",
    "view_case",
]


def __getattr__(name):
    if name in _MODULE_OF:
        return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    if not name.startswith("__") and importlib.util.find_spec(f"{__name__}.{name}"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")


def __dir__():
    return sorted({*globals(), *__all__})


class _WithKeras:
    """Lets the import of Keras, by whomever, be a quiet one, and end with what belongs to it here.

    Before it what Keras computes with is chosen. Keras finds the classes of a network that was
    saved as ``.keras`` only where they are registered. A finder of modules that finds none itself.
    """

    def find_spec(self, name, path=None, target=None):
        """Wrap what executes the module of Keras."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)  # Keras is imported once
        importlib.import_module(f"{__name__}.run.backend").choose_backend()
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module):
            _hush(execute, module)
            _register()

        spec.loader.exec_module = execute_and_register
        return spec


def _register():
    for name in ("model", "losses", "optimizers"):
        importlib.import_module(f"{__name__}.{name}")


def _hush(function, *args):
    # TensorFlow writes lines as it starts, which no log level silences. They go to a file, and
    # are shown if it fails.
    import tempfile

    with tempfile.TemporaryFile() as kept:
        shown = os.dup(2)
        os.dup2(kept.fileno(), 2)
        try:
            function(*args)
        except BaseException:
            kept.seek(0)
            os.write(shown, kept.read())
            raise
        finally:
            os.dup2(shown, 2)
            os.close(shown)


if "keras" in sys.modules:
    _register()
else:
    sys.meta_path.insert(0, _WithKeras())
