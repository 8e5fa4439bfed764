"""One look at every file, for all that needs to see the voxels before a training."""

from dataclasses import dataclass

import pandas as pd

from unetseg.cases import check_cases
from unetseg.splits import sample_scan


@dataclass(frozen=True)
class Survey:
    """What `look_through` saw.

    ``table``: as `unetseg.cases.check_cases` returns it. ``samples``: for
    `unetseg.splits.find_leaks`. ``facts``: for ``Preprocessor.fit``, in the order of the cases;
    None unless a preprocessor was given.
    """

    table: pd.DataFrame
    samples: dict
    facts: list | None


def look_through(cases, *, labels=None, channels=(), preprocessor=None):
    """Read every scan and mask once: what is wrong, what is there twice, what to choose from.

    Parameters
    ----------
    cases : sequence of Case
    labels, channels
        As for `unetseg.cases.check_cases`.
    preprocessor : Preprocessor, optional
        That is to be fitted on these cases; nothing is noted for one that is complete.

    Returns
    -------
    Survey
    """
    samples, facts = {}, []
    to_fit = preprocessor is not None and not preprocessor.is_complete

    def visit(case, image, affine, mask, problem):
        samples[case.id] = sample_scan(image, affine)
        if to_fit and not problem:
            facts.append(preprocessor.describe(image, affine, mask))

    table = check_cases(cases, labels=labels, channels=channels, visit=visit)
    return Survey(table, samples, facts if to_fit else None)
