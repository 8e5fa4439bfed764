"""One look at every file, for all that needs to see the voxels before a training."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from unetseg.annotation import hash_labels
from unetseg.cases import check_cases
from unetseg.digits import decimals_for
from unetseg.metrics import dice
from unetseg.splits import sample_scan


@dataclass(frozen=True)
class Survey:
    """What `look_through` saw.

    ``table``: as `unetseg.cases.check_cases` returns it. ``samples``: for
    `unetseg.splits.find_leaks`. ``masks``: by case id the hash of the labels of each that is not
    empty. ``facts``: for ``Preprocessor.fit``, in the order of the cases; None unless a
    preprocessor was given.
    """

    table: pd.DataFrame
    samples: dict
    masks: dict
    facts: list | None


def look_through(cases, *, labels=None, channels=(), preprocessor=None, allow_empty=False):
    """Read every scan and mask once: what is wrong, what is there twice, what to choose from.

    Parameters
    ----------
    cases : sequence of Case
    labels, channels, allow_empty
        As for `unetseg.cases.check_cases`.
    preprocessor : Preprocessor, optional
        That is to be fitted on these cases; nothing is noted for one that is complete. It tells
        which voxels nobody drew.

    Returns
    -------
    Survey
    """
    samples, masks, facts = {}, {}, []
    to_fit = preprocessor is not None and not preprocessor.is_complete

    def visit(case, image, affine, mask, problem):
        samples[case.id] = sample_scan(image, affine)
        if mask is not None and mask.any():
            masks[case.id] = hash_labels(mask)
        if to_fit and not problem:
            facts.append(preprocessor.describe(image, affine, mask))

    rules = {"labels": labels, "channels": channels, "allow_empty": allow_empty}
    rules["ignore"] = (preprocessor and preprocessor.ignore) or 0
    table = check_cases(cases, visit=visit, **rules)
    return Survey(table, samples, masks, facts if to_fit else None)


def try_out(preprocessor, cases, views):
    """Show what a network will see of some cases, and what the way there and back costs.

    Parameters
    ----------
    preprocessor : Preprocessor
        Fitted.
    cases : sequence of Case
    views : sequence of unetseg.cases.View
        Of each case, with its mask.

    Returns
    -------
    seen : pandas.DataFrame
        A row per case: the shape, and mean, SD, lowest and highest intensity.
    back : pandas.DataFrame
        A row per case, a column per label: Dice of the mask with itself after the way to the
        network's grid and back.
    """
    seen, back = {}, {}
    for case, view in zip(cases, views, strict=True):
        loaded = view.image, view.affine
        prepared = preprocessor.prepare(case, with_mask=True, loaded=loaded)
        x, place = prepared.x, prepared.place
        restored = preprocessor.restore_labels(prepared.y, case, place=place)
        numbers = [x.mean(), x.std(), x.min(), x.max()]
        seen[case.id] = (x.shape, *np.round(numbers, decimals_for(numbers, 4)))
        back[case.id] = [dice(view.masks[0] == k, restored == k) for k in preprocessor.labels]
    columns = ["shape", "mean", "SD", "lowest", "highest"]
    labels = preprocessor.labels.values()
    tables = (seen, columns), (back, labels)
    return tuple(pd.DataFrame.from_dict(v, orient="index", columns=list(c)) for v, c in tables)
