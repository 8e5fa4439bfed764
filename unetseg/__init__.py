"""U-Net segmentation of NIfTI scans with K-fold cross-validation.

The modules, in the order that data passes through them: `settings`, `fingerprints`, `machine`,
`workspace`, `disk`, `sample`, `contents`, `tables`, `description`, `patients`, `cases`, `nifti`,
`provenance`, `splits`, `body`, `planning`, `preprocessing`, `augmentation`, `model`, `training`,
`parallel`, `checkpoint`, `inference`, `batches`, `metrics`, `scores`, `reliability`, `plots`,
`sharing`; and the helpers `digits`, `intensities` and `thinning`. Each is imported when it is first
used, so `import unetseg` costs next to nothing and only `model`, `augmentation`, `training`,
`checkpoint` and `inference` bring in Keras.
"""

import importlib
import os
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
