"""Numbers of any size: rounded to the digits that count, shown in few, read back from text.

Voxels are 1 mm or 0.0004 mm long, lesions fill 10 ml or a millionth of one: no number of decimals
suits both.
"""

import re

import numpy as np
import pandas as pd

NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
SMALL = 1e-5  # below, zeros behind the point would have to be counted


def significant(values, digits=6):
    """Round to so many digits that count; as headers hold float32, more than 7 mean nothing.

    Parameters
    ----------
    values : float, or (...) array_like of float
    digits : int, default 6

    Returns
    -------
    float, or (...) ndarray of float64
        NaN, inf and 0 stay what they are.
    """
    values = np.asarray(values, float)
    rounded = [float(f"{value:.{digits}g}") for value in values.ravel()]
    return np.reshape(rounded, values.shape) if values.ndim else rounded[0]


def decimals_for(values, digits):
    """Decimals that leave the largest of the values about so many digits that count.

    Parameters
    ----------
    values : (...) array_like of float
    digits : int
        Of numbers from 0.32 to 3.2 this is the answer too.

    Returns
    -------
    int
        For `numpy.round`; negative for large numbers. `digits` if no value is finite, or all are 0.
    """
    sizes = np.abs(np.asarray(values))
    largest = sizes.max(initial=0, where=np.isfinite(sizes))
    return digits - round(float(np.log10(largest))) if largest else digits


def short(number, digits=3):
    """Show a number in as few digits as tell it.

    Parameters
    ----------
    number : float
    digits : int, default 3
        That count.

    Returns
    -------
    str
        With an exponent only if it is smaller than 0.00001.
    """
    if 0 < abs(number) < SMALL:
        return f"{number:.{digits}g}"
    return np.format_float_positional(number, digits, fractional=False, trim="-")


def show(number):
    """Show a number in four digits that count; for ``pandas.options.display.float_format``."""
    return short(number, 4)


def show_tables():
    """Let pandas show tables with the digits that count, however small, and words to their end."""
    pd.set_option("display.float_format", show)
    pd.set_option("display.max_colwidth", None)


def read_numbers(text):
    """Read the numbers in a cell of a table, such as a spacing of ``(0.5, 4e-05, 3)``.

    Parameters
    ----------
    text : object
        Its text counts.

    Returns
    -------
    list of float
        In their order; empty if there is none.
    """
    return [float(number) for number in NUMBER.findall(str(text))]
