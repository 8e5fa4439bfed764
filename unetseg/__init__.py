"""U-Net segmentation of NIfTI scans with K-fold cross-validation.

The modules, in the order that data passes through them: `settings`, `fingerprints`, `machine`,
`workspace`, `disk`, `sample`, `contents`, `schemas`, `tables`, `description`, `patients`, `cases`,
`nifti`, `provenance`, `splits`, `body`, `planning`, `preprocessing`, `augmentation`, `model`,
`training`, `parallel`, `checkpoint`, `windows`, `blocks`, `memory`, `inference`, `batches`,
`metrics`, `scores`, `reliability`, `plots`, `sharing`; and the helpers `digits`, `intensities` and
`thinning`. Each is imported when it is first used, so `import unetseg` costs next to nothing and
only `model`, `augmentation`, `training`, `parallel`, `checkpoint` and `inference` bring in Keras.
Where Keras is imported, by whomever, it knows the layers of this package: it then opens a network
that was saved as ``.keras``.
"""

import importlib
import importlib.util
import os
import sys
from pathlib import Path

# Else the process that first uses a GPU, such as a notebook that built a network once, keeps all
# of its memory from the processes that train.
os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

__version__ = "0.1.0"
__all__ = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def __getattr__(name):
    if name in __all__:
        from unetseg.workspace import hushed

        with hushed():
            return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")


class _WithKeras:
    """Imports `model` once Keras is there, as Keras finds classes only where they are registered.

    A finder of modules that finds none itself.
    """

    def find_spec(self, name, path=None, target=None):
        """Let the import of Keras end with that of `model`."""
        if name != "keras":
            return None
        sys.meta_path.remove(self)  # Keras is imported once
        spec = importlib.util.find_spec(name)
        if spec is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module):
            execute(module)
            importlib.import_module(f"{__name__}.model")

        spec.loader.exec_module = execute_and_register
        return spec


if "keras" in sys.modules:
    importlib.import_module(f"{__name__}.model")
else:
    sys.meta_path.insert(0, _WithKeras())
