"""The rank correlation of the study of held-out cases, by hand."""

import math

import numpy as np
import pytest
from scipy import stats
from tools.reliability_study import rank_correlation

NAN = float("nan")


def test_the_rank_correlation_is_that_of_the_ranks_with_an_interval_by_hand():
    # Differences of ranks 2, 0, 2, 1, 1: 1 - 6 * 10 / (5 * 24) = 0.5.
    rho, low, high = rank_correlation([0.1, 0.2, 0.3, 0.4, 0.5], [0.7, 0.6, 0.5, 0.95, 0.9])
    assert rho == pytest.approx(0.5)
    width = 1.96 * math.sqrt((1 + 0.5**2 / 2) / (5 - 3))
    assert low == pytest.approx(math.tanh(math.atanh(0.5) - width))
    assert high == pytest.approx(math.tanh(math.atanh(0.5) + width))


@pytest.mark.parametrize("sign", [1, -1])
def test_any_rising_curve_is_of_rank_correlation_1_and_any_falling_one_of_minus_1(sign):
    estimate = np.array([0.3, 0.9, 0.5, 0.7, 0.1])
    rho, low, high = rank_correlation(estimate, sign * np.exp(9 * estimate))
    assert rho == pytest.approx(sign)
    assert -1 <= low <= high <= 1


def test_pairs_that_are_not_finite_are_left_out():
    estimate = [0.1, 0.2, NAN, 0.3, 0.4, math.inf, 0.5]
    dices = [0.7, 0.6, 0.1, 0.5, 0.95, 0.1, 0.9]
    found = rank_correlation([*estimate, 0.9], [*dices, NAN])
    assert found == rank_correlation([0.1, 0.2, 0.3, 0.4, 0.5], [0.7, 0.6, 0.5, 0.95, 0.9])


@pytest.mark.parametrize(
    ("estimate", "dices"),
    [
        ([], []),
        ([0.5], [0.5]),
        ([0.5, 0.6], [0.5, 0.6]),
        ([0.5, 0.6, NAN], [0.5, 0.6, 0.7]),
        ([0.5] * 4, [0.1, 0.2, 0.3, 0.4]),
        ([0.1, 0.2, 0.3, 0.4], [0.5] * 4),
        ([NAN] * 4, [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_too_few_or_constant_numbers_have_no_correlation_and_raise_no_warning(estimate, dices):
    assert np.isnan(rank_correlation(estimate, dices)).all()


def test_ties_are_counted_as_scipy_does():
    rng = np.random.default_rng(0)
    estimate, dices = rng.integers(0, 5, (2, 40)) / 5
    rho, low, high = rank_correlation(estimate, dices)
    assert rho == pytest.approx(stats.spearmanr(estimate, dices).statistic)
    assert rho == pytest.approx(np.corrcoef(stats.rankdata(estimate), stats.rankdata(dices))[0, 1])
    assert low < rho < high


def test_three_pairs_tell_the_order_and_nothing_about_its_certainty():
    rho, low, high = rank_correlation([0.1, 0.2, 0.3], [0.5, 0.7, 0.6])
    assert (rho, low, high) == pytest.approx((0.5, -1, 1))
