"""Fields of a recipe."""

import pytest

from unetseg.recipe import Recipe


def test_the_defaults_fit():
    assert (Recipe().epochs, Recipe().precision) == (12, "auto")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("steps", 0),
        ("batch_size", 0),
        ("warmup", 1),
        ("averaging", -0.1),
        ("foreground", 1.1),
        ("precision", "half"),
    ],
)
def test_a_field_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        Recipe(**{field: value})


@pytest.mark.parametrize("field", ["warmup", "averaging", "foreground"])
def test_shares_may_be_0(field):
    assert getattr(Recipe(**{field: 0}), field) == 0
