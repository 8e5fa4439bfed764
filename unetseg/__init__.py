"""U-Net segmentation of NIfTI scans with K-fold cross-validation.

The modules, in the order that data passes through them: `workspace`, `sample`, `cases`, `nifti`,
`splits`, `preprocessing`, `augmentation`, `model`, `training`, `checkpoint`, `inference`,
`metrics`, `scores`, `reliability`, `plots`, `sharing`. Each is imported when it is first used, so
`import unetseg` costs next to nothing and only `model`, `augmentation`, `training`, `checkpoint`
and `inference` bring in Keras.
"""

import importlib
from pathlib import Path

__version__ = "0.1.0"
__all__ = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))


def __getattr__(name):
    if name in __all__:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")
