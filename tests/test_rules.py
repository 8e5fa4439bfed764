"""What each setting of a preprocessor may be."""

import pytest

from unetseg.preprocessing import Preprocessor


@pytest.mark.parametrize(
    ("spacing_mm", "patch", "planes", "message"),
    [
        (None, (16, 16, 1), (0,), "first the axis across the patch's slices"),
        (None, (16, 24, 1), (1, 2), "first the axis across the patch's slices"),
        ((1, 1, 3), (16, 24, 1), (2, 0), "of axes with like voxels"),
    ],
)
def test_planes_must_go_with_the_patch_and_the_spacing(spacing_mm, patch, planes, message):
    with pytest.raises(ValueError, match=message):
        Preprocessor(spacing_mm=spacing_mm, patch=patch, planes=planes)


@pytest.mark.parametrize("planes", [(2,), (3,), (1, 1), (0, 1, 2)])
def test_planes_are_distinct_axes_and_none_in_3d(planes):
    with pytest.raises(ValueError, match="planes must be in 2-D one of"):
        Preprocessor(patch=(8, 8, 8), planes=planes)


@pytest.mark.parametrize(("patch", "neighbours"), [((8, 8, 8), 1), ((8, 8, 1), -1)])
def test_neighbours_are_for_slices_and_not_negative(patch, neighbours):
    with pytest.raises(ValueError, match="neighbours must be 0, or more in 2-D"):
        Preprocessor(patch=patch, neighbours=neighbours)


@pytest.mark.parametrize(
    ("setting", "value", "allowed"),
    [
        ("normalisation", "minmax", "one of ('zscore', 'percentile', 'none')"),
        ("dimensions", 4, "one of (2, 3)"),
        ("spacing_mm", (1, 2), "three positive numbers"),
        ("spacing_mm", (1, 2, -3), "three positive numbers"),
        ("patch", (8, 8, 0), "three positive numbers"),
        ("patch", (1, 1, 8), "three positive numbers, along x, y, z, at most one of them 1"),
        ("patch", (8, 8, 8, 1), "three positive numbers"),
        ("spacing_mm", 1, "three positive numbers"),
        ("labels", {0: "background", 1: "a"}, "a dict without background 0"),
        ("labels", (1, 2), "a dict without background 0"),
        ("channels", 0, "at least 1"),
        ("mirror_axes", (0, 3), "one of [(), (0,), (1,), (2,), (0, 1)"),
        ("mirror_axes", (-1,), "one of [()"),
        ("mirror_axes", 0, "one of [()"),
        ("ignore", 1.5, "a whole number, 0 for none"),
    ],
)
def test_a_bad_setting_is_refused_by_name_with_what_was_received(setting, value, allowed):
    with pytest.raises(ValueError) as error:
        Preprocessor(**{setting: value})
    assert str(error.value).startswith(f"{setting} must be {allowed}")
    assert str(error.value).endswith(f"{setting}={value!r}")


@pytest.mark.parametrize("values", [(), (1, 3), (0,)])
def test_regions_are_of_the_labels(values):
    with pytest.raises(ValueError, match=r"regions must be of values among the labels \[1, 2\]"):
        Preprocessor(labels={1: "a", 2: "b"}, regions={"all": values})
