import numpy as np
import pandas as pd
import pytest

from unetseg.digits import decimals_for, read_numbers, short, show, significant

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (0.05000000074505806, 0.05),  # 0.05 in a header, which holds float32
        (0.0004299999854993075, 0.00043),
        (1.2345678, 1.23457),
        (-1234567.0, -1234570.0),
        (6.4e-14, 6.4e-14),
        (1.0, 1.0),
        (0.0, 0.0),
        (INF, INF),
    ],
)
def test_six_digits_are_kept_of_numbers_of_any_size(value, rounded):
    assert significant(value) == rounded
    assert isinstance(significant(np.float32(value)), float)


def test_arrays_keep_their_shape_and_what_is_not_known():
    found = significant([[0.123456, NAN], [9.87654e-9, -1]], 2)
    np.testing.assert_array_equal(found, [[0.12, NAN], [9.9e-9, -1]])
    assert significant(np.zeros((0, 3))).shape == (0, 3)


@pytest.mark.parametrize(
    ("values", "decimals"),
    [
        ([0.2, 1.0], 3),
        ([1.0000001], 3),  # as probabilities in float32 may be
        ([-0.0008], 6),
        ([5000.0, 2.0], -1),
        ([0.0], 3),
        ([], 3),
        ([NAN, INF], 3),
        ([NAN, 90.0], 1),
    ],
)
def test_decimals_follow_the_largest_value(values, decimals):
    assert decimals_for(np.array(values, np.float32), 3) == decimals


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (0.891, "0.891"),
        (0.8912, "0.891"),
        (1229.0, "1230"),
        (2.0, "2"),
        (0.000027, "0.000027"),
        (1.728e-12, "1.73e-12"),
        (-4e-7, "-4e-07"),
        (0.0, "0"),
        (NAN, "nan"),
        (INF, "inf"),
    ],
)
def test_numbers_are_shown_by_the_digits_that_count(number, shown):
    assert short(number) == shown


def test_tables_show_small_and_large_numbers_alike():
    table = pd.DataFrame({"dice": [0.91234, NAN], "ml": [1.2346e-9, 1234.56]})
    with pd.option_context("display.float_format", show):
        lines = table.to_string(index=False).split("\n")
    assert [line.split() for line in lines[1:]] == [["0.9123", "1.235e-09"], ["NaN", "1235"]]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("(1.0, 2.0, 3.0)", [1, 2, 3]),
        ("(0.0004, 4e-05, 6.4E-14)", [0.0004, 4e-05, 6.4e-14]),
        ((8, 10, 6), [8, 10, 6]),
        ("(-1000.0, -3.5, +2)", [-1000, -3.5, 2]),
        ("((0, 1.5, .5), (1., 2, 3))", [0, 1.5, 0.5, 1, 2, 3]),
        (NAN, []),
        (None, []),
        ("", []),
    ],
)
def test_numbers_are_read_from_text_with_their_signs_and_exponents(text, numbers):
    assert read_numbers(text) == numbers
