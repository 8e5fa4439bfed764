"""How a fold is trained."""

from dataclasses import dataclass

from unetseg.model import PRECISIONS
from unetseg.workspace import require


@dataclass(frozen=True)
class Recipe:
    """How a fold is trained. The defaults are meant to be left alone.

    Parameters
    ----------
    epochs : int
        Validated and written to the history after each.
    steps : int, optional
        Batches per epoch. By default as many as cover the training cases once, from 50 to 250.
    batch_size : int, optional
        Patches per step, shared out among the GPUs. By default as
        `unetseg.training.plan_batch` says.
    learning_rate : float
        At its peak, for `unetseg.model.Muon`.
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
        ``auto`` takes float16 on a GPU that computes in it, bfloat16 on a processor that does,
        else float32.
    """

    epochs: int = 12
    steps: int | None = None
    batch_size: int | None = None
    learning_rate: float = 6e-3  # of 2e-3, 6e-3 and 12e-3 the best in an inner split
    weight_decay: float = 1e-4
    warmup: float = 0.05
    averaging: float = 0.1  # scores steadier than the last weights alone
    foreground: float = 0.5
    augment: bool = True
    precision: str = "auto"

    def __post_init__(self):
        """Check the fields."""
        for name, fits, allowed in (
            ("epochs", self.epochs >= 1, "at least 1"),
            ("steps", self.steps is None or self.steps >= 1, "at least 1"),
            ("batch_size", self.batch_size is None or self.batch_size >= 1, "at least 1"),
            ("warmup", 0 <= self.warmup < 1, "in [0, 1)"),
            ("averaging", 0 <= self.averaging <= 1, "in [0, 1]"),
            ("foreground", 0 <= self.foreground <= 1, "in [0, 1]"),
            ("precision", self.precision in PRECISIONS, f"one of {PRECISIONS}"),
        ):
            require(name, getattr(self, name), fits, allowed)
