"""What is said of a plan, and what is warned of."""

import pandas as pd
import pytest

from unetseg.advice import describe_plan, warn
from unetseg.preprocessing import Preprocessor

ONE_LOOK = {"coarse_mm": (), "assumed_mm": (), "dimensions": 3}


def plan(spacing_mm=(1, 1, 1), patch=(40, 40, 40), n_labels=1, channels=1, **settings):
    labels = {k: str(k) for k in range(1, n_labels + 1)}
    return Preprocessor(spacing_mm, patch, labels, channels, **{**ONE_LOOK, **settings})


def table(n=20, shape=(100, 100, 40), spacing_mm=(1.0, 1.0, 1.0)):
    return pd.DataFrame({"shape": [shape] * n, "spacing_mm": [spacing_mm] * n})


def test_one_look_is_told_with_its_share_of_the_scan():
    assert describe_plan(plan(), table()) == [
        "A typical scan is 100 x 100 x 40 mm; a voxel of the network 1 x 1 x 1 mm.",
        "It is looked at once: a patch spans 40 x 40 x 40 mm, 16% of the scan.",
    ]


def test_a_file_that_cannot_be_read_any_more_is_passed_over():
    gone = pd.DataFrame({"shape": [None], "spacing_mm": [None]})
    told = describe_plan(plan(), pd.concat([table(), gone], ignore_index=True))
    assert told == describe_plan(plan(), table())


def test_two_looks_thick_slices_and_assumed_voxels_are_told():
    settings = {"coarse_mm": (4, 4, 5), "assumed_mm": (1, 1, 4)}
    planned = plan((1, 1, 4), (40, 40, 10), **settings)
    _, looks, thick, second = describe_plan(planned, table(shape=(100, 100, 10)))
    (assumed,) = warn(planned, table())
    assert assumed.startswith(
        "WARNING: Every scan is taken to have voxels of 1 x 1 x 4 mm: structures are"
    )
    assert looks == (
        "It is looked at twice, first whole, in voxels of 4 x 4 x 5 mm, then closer, around what "
        "was found there; a patch spans 40 x 40 x 40 mm, 16% of the scan."
    )
    assert thick == "Slices are 4.0 times as thick as their pixels: they are not tilted."
    assert "a second experiment with DIMENSIONS 2, averaged with this one" in second


def test_what_a_first_look_leaves_out_is_told():
    _, looks, far = describe_plan(plan(coarse_mm=(4, 4, 5), gap_mm=2.0), table())
    assert looks.startswith("It is looked at twice")
    assert far == (
        "What is found more than 7 mm from the rest is left out, as in nine of ten cases no "
        "structure lies so far."
    )


def test_the_empty_space_around_a_body_is_no_scan_if_that_is_known():
    facts = [{"shape": (50, 50, 40)}] * 20
    assert describe_plan(plan(), table(), facts)[1].endswith("64% of the scan.")
    assert warn(plan(), table(), facts) == []
    assert len(warn(plan(), table())) == 1


@pytest.mark.parametrize(("darkest", "warned"), [(-1024, True), (-200, False), (0, False)])
def test_scans_in_hounsfield_units_are_warned_of(darkest, warned):
    lines = warn(plan(patch=(100, 100, 40)), table().assign(intensity_p1=darkest))
    assert [line.startswith("WARNING: Intensities begin at -1000") for line in lines] == (
        [True] if warned else []
    )


@pytest.mark.parametrize(
    ("spacing_mm", "rotation_deg", "strength", "told"),
    [
        ((1, 1, 1), (15, 15, 30), 1, []),
        ((1, 1, 1), (15, 60, 90), 0.5, ["30 degrees about y, 45 degrees about z"]),
        ((1, 1, 4), (15, 60, 90), 1, ["90 degrees about z"]),  # slices are not tilted
    ],
)
def test_it_is_told_if_patches_are_turned_further_than_usual(
    spacing_mm, rotation_deg, strength, told
):
    planned = plan(spacing_mm, rotation_deg=rotation_deg, strength=strength)
    lines = [line for line in describe_plan(planned, table()) if line.startswith("Patches")]
    reason = "as the structures lie turned from case to case"
    assert lines == [f"Patches are turned by up to {angles}, {reason}." for angles in told]


def test_slices_are_told():
    slices = plan((1, 1, 5), (100, 96, 1), dimensions=2)
    assert describe_plan(slices, table())[-1].startswith("The network sees slices")
    assert warn(slices, table()) == []


@pytest.mark.parametrize(
    ("settings", "n", "said"),
    [
        ({}, 20, ["A patch sees 16% of a typical scan"]),
        ({"coarse_mm": (4, 4, 4)}, 20, []),
        ({"patch": (56, 56, 40)}, 20, []),
        ({"patch": (80, 80, 40)}, 14, ["Here: 14 cases. The defaults were formed on"]),
        (
            {"patch": (80, 80, 40), "n_labels": 3, "channels": 2},
            20,
            ["Here: 3 structures, 2 channels."],
        ),
    ],
)
def test_narrow_views_and_data_unlike_those_of_the_recipe_are_warned_of(settings, n, said):
    warned = warn(plan(**settings), table(n))
    assert len(warned) == len(said)
    for sentence, start in zip(warned, said, strict=True):
        assert sentence.startswith(f"WARNING: {start}")
