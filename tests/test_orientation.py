"""Which way structures lie: whether patches are mirrored, how far they are turned."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.linalg import orthogonal_procrustes

from unetseg.orientation import (
    USUAL_DEG,
    choose_mirror_axes,
    choose_rotation,
    describe_position,
    measure_turns,
)

HEAD = np.zeros((40, 40, 40), bool)
HEAD[10:30, 12:28, 10:30] = True


def test_labels_lie_to_the_side_by_shares_of_the_foregrounds_width():
    mask = np.zeros((40, 40, 40), np.int32)
    mask[10:20, 20, 20] = 3
    mask[20:30, 20, 20] = 7
    sides = describe_position(mask, HEAD)["sides"]
    assert sides == {3: pytest.approx(-0.25), 7: pytest.approx(0.25)}


def test_structures_lie_aside_by_shares_of_the_bodys_width():
    mask = np.zeros((40, 40, 40), np.int32)
    mask[25:29, 20, 20] = 1  # centred at 26.5; the head from 10 to 29 at 19.5
    assert describe_position(mask, HEAD)["aside"] == pytest.approx(7 / 20)


def lie(sides, aside):
    return {"sides": sides, "aside": aside}


LEFT, RIGHT, MIDDLE = (lie({1: 0.0}, aside) for aside in (-0.2, 0.2, 0.03))
PAIR = lie({1: -0.25, 2: 0.25}, 0.0)


@pytest.mark.parametrize(
    ("facts", "mirrored"),
    [
        ([MIDDLE] * 8, True),
        ([LEFT] * 6, False),  # one of a pair
        ([LEFT] * 5, True),  # too few to tell
        ([LEFT] * 9 + [RIGHT], False),
        ([LEFT] * 8 + [RIGHT] * 2, True),
        ([PAIR], False),
        ([PAIR, lie({1: 0.25, 2: -0.25}, 0.0)], True),
        # Sides that are missing in some do not make the others' a matter of chance.
        ([PAIR] * 2 + [lie({1: 0.0}, 0.0), lie({2: 0.0}, 0.0)] * 3, False),
        ([lie({1: 0.0}, 0.0), lie({2: 0.0}, 0.0)] * 2, True),
        # One of a pair in each scan, the left or the right one.
        ([lie({1: 0.0}, -0.2), lie({2: 0.0}, 0.2)] * 6, False),
        ([lie({1: 0.0}, -0.2), lie({2: 0.0}, 0.2)] * 5, True),  # too few of each to tell
        # Off by 0.03 on average, with an SD of 0.05: no more than chance in four cases.
        ([lie({1: x, 2: 0.0}, 0.0) for x in (-0.02, 0.08)] * 2, True),
        ([lie({1: x, 2: 0.0}, 0.0) for x in (-0.02, 0.08)] * 10, False),
        # A label of one case of many, and scans without a mask.
        ([MIDDLE] * 19 + [lie({1: 0.0, 2: 0.3}, 0.0)], True),
        ([lie({}, 0.0)] * 5 + [PAIR], False),
        ([lie({}, 0.0)], False),
    ],
)
def test_patches_are_mirrored_unless_something_has_its_side(facts, mirrored):
    axes = choose_mirror_axes(facts, {1: "a", 2: "b"}, (8, 8, 8))
    assert axes == ((0,) if mirrored else ())


def two_balls(degrees, axis=2, spacing_mm=(1.0, 1.0, 1.0)):
    """Labels 1 and 2, whose centres lie on a line that is turned about an axis."""
    shape = [int(40 / mm) for mm in spacing_mm]
    lines = [(np.arange(n) + 0.5) * mm - 20 for n, mm in zip(shape, spacing_mm, strict=True)]
    grid = np.array(np.meshgrid(*lines, indexing="ij"))
    direction = np.zeros(3)
    first, second = (other for other in range(3) if other != axis)
    direction[first], direction[second] = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    mask = np.zeros(shape, int)
    for label, side_mm in ((1, -8), (2, 8)):
        centre = side_mm * direction
        distance = np.linalg.norm(grid - centre[:, None, None, None], axis=0)
        mask[distance <= 5] = label
    return mask


def facts_of(angles, axis, spacing_mm):
    masks = [two_balls(angle, axis, spacing_mm) for angle in angles]
    return [{"spacing_mm": spacing_mm, **describe_position(mask, mask > 0)} for mask in masks]


def test_centres_and_radii_are_those_of_scipy_and_numpy():
    mask = two_balls(30)
    found = describe_position(mask, mask > 0)
    centres = np.array(ndimage.center_of_mass(mask > 0, mask, [1, 2]))
    np.testing.assert_allclose(
        [found["centres"][1], found["centres"][2]], centres - centres.mean(axis=0)
    )
    np.testing.assert_allclose(found["radii"], np.argwhere(mask).std(axis=0))


@pytest.mark.parametrize("spacing_mm", [(1.0, 1.0, 1.0), (1.0, 2.0, 4.0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_patches_are_turned_further_than_nine_of_ten_cases_lie(axis, spacing_mm):
    chosen = choose_rotation(facts_of(np.linspace(-50, 50, 11), axis, spacing_mm))
    # Ten of eleven are turned by up to 50 from the middle, 55 from the mean of the others.
    assert chosen[axis] == pytest.approx(1.5 * 55, rel=0.05)


def facts_at(places, spacing_mm=(1, 1, 1), radius=10.0):
    """Of cases whose labels lie at (case, label, axis) in voxels."""
    places = places - places.mean(axis=1, keepdims=True)
    centres = [dict(enumerate(of_case, 1)) for of_case in places]
    same = {"spacing_mm": spacing_mm, "radii": (radius,) * 3}
    return [{"centres": of_case, **same} for of_case in centres]


def turn(places, degrees):
    """About z."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return places @ np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


ALIKE = np.random.default_rng(0).normal(0, 20, (5, 3))
TURNED = np.array([turn(ALIKE, degrees) for degrees in np.linspace(-50, 50, 20)])


def usual_where(facts):
    return choose_rotation(facts) == USUAL_DEG


def test_five_labels_that_are_turned_about_one_axis_are_turned_about_that_one():
    x, y, z = choose_rotation(facts_at(TURNED))
    assert (x, y) == USUAL_DEG[:2]
    assert 60 < z < 75


@pytest.mark.parametrize(
    "facts",
    [
        facts_at(TURNED)[:9],  # too few cases to tell
        facts_at(TURNED[:, :1]),  # one label
        [{"centres": {}, "spacing_mm": (1, 1, 1), "radii": (0, 0, 0)}] * 11,  # no masks
        facts_at(np.array([turn(ALIKE, degrees) for degrees in np.linspace(-20, 20, 20)])),
        facts_at(np.array([ALIKE] * 19 + [ALIKE * [-1, 1, 1]])),  # sides swapped in one case
        facts_at(np.array([ALIKE] * 9 + [-ALIKE])),
    ],
)
def test_patches_are_turned_as_usual_where_cases_do_not_tell_more(facts):
    assert usual_where(facts)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("n_labels", [2, 3, 5, 10])
def test_places_without_a_direction_as_of_lesions_tell_no_turn(seed, n_labels):
    rng = np.random.default_rng(seed)
    assert usual_where(facts_at(rng.normal(0, 20, (20, n_labels, 3))))


@pytest.mark.parametrize("seed", range(10))
def test_one_label_that_is_shifted_from_case_to_case_tells_no_turn(seed):
    places = np.zeros((15, 2, 3))
    places[:, 1] = [8, 0, 35]
    places[:, 1] += np.random.default_rng(seed).normal(0, 4, (15, 3))
    assert usual_where(facts_at(places))


def test_labels_that_some_cases_lack_tell_nothing_and_no_turn():
    facts = facts_at(TURNED)
    for fact in facts[::2]:
        del fact["centres"][5]
    assert choose_rotation(facts)[2] > 60  # by the four that all have
    right, front = np.array([[0, 0, 0], [20, 0, 0]]), np.array([[0, 0, 0], [0, 20, 0]])
    facts = facts_at(np.array([right] * 10 + [front] * 10))
    for fact in facts[10:]:
        fact["centres"][3] = fact["centres"].pop(2)
    assert usual_where(facts)


def test_a_turn_is_that_by_which_a_case_was_turned_and_scaled():
    angles = np.array([0.0, 30.0, -50.0, 20.0])
    places = np.array([2 * turn(ALIKE, angle) for angle in angles])[..., :2]
    turns = measure_turns(places)
    for k in range(4):
        others = np.delete(places, k, axis=0).mean(axis=0)
        others, own = others - others.mean(axis=0), places[k] - places[k].mean(axis=0)
        expected, distance = orthogonal_procrustes(others, own)
        direction = np.degrees(np.arctan2(expected[0, 1], expected[0, 0]))
        assert np.degrees(np.angle(turns[k])) == pytest.approx(direction)
        assert np.abs(turns[k]) == pytest.approx(distance / np.linalg.norm(others) ** 2)
