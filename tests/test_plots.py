import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from unetseg import plots
from unetseg.cases import check_cases, find_cases

LABELS = {1: "front", 4: "back"}
SPACING = (1.0, 2.0, 3.0)  # mm
NAN, INF = float("nan"), float("inf")


def render(figure):
    """Draw the figure, see that it is a picture, and that no figure stays open."""
    assert isinstance(figure, Figure)
    assert plt.get_fignums() == []
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    picture = plt.imread(io.BytesIO(file.getvalue()))
    assert picture[..., :3].std() > 0
    return figure


def titles_of(figure):
    return [ax.get_title() for ax in figure.axes]


def legend_of(figure):
    (legend,) = figure.legends
    return dict(zip((t.get_text() for t in legend.get_texts()), legend.get_lines(), strict=True))


def contours_of(ax):
    """Colour and line style of every contour."""
    lines = [line for line in ax.collections if len(line.get_paths()[0].vertices)]
    return [(to_hex(line.get_edgecolor()[0]), line.get_linestyle()[0][1]) for line in lines]


@pytest.fixture
def case(make_arrays):
    """Label 1 fills x 2 to 4, y 3 to 6, z 1 to 3, label 4 the same of x 5 to 6."""
    return make_arrays(labels=(1, 4))


@pytest.mark.parametrize("n_cases", [1, 3])
def test_cases_are_shown_in_three_planes_in_mm(n_cases, case):
    image, mask = case
    figure = render(plots.show_cases([("a", image, [mask])] * n_cases, SPACING, LABELS))
    assert len(figure.axes) == 3 * n_cases
    assert [ax.get_ylabel() for ax in figure.axes] == ["a", "", ""] * n_cases
    # Every x of 2 to 6 holds 12 labelled voxels, every y of 3 to 6 15, every z of 1 to 3 20: of
    # equal slices the first is shown.
    assert (
        titles_of(figure) == ["sagittal, slice 2", "coronal, slice 3", "axial, slice 1"] * n_cases
    )
    # 8 x 10 x 6 voxels are 8 x 20 x 18 mm.
    sizes = [(ax.get_xlim(), ax.get_ylim()) for ax in figure.axes[:3]]
    assert sizes == [((0, 20), (0, 18)), ((0, 8), (0, 18)), ((0, 8), (0, 20))]
    assert all(ax.get_aspect() == 1 for ax in figure.axes)
    assert set(legend_of(figure)) == {"front", "back"}


def test_a_contour_surrounds_its_voxels_in_mm(case):
    image, mask = case
    figure = render(plots.show_cases([("a", image, [mask])], SPACING, {1: "front"}))
    axial = figure.axes[2]
    (front,) = axial.collections
    # Half-way between the centres of voxels inside and outside: voxels x 2 to 4 reach from 2 to
    # 5 mm, voxels y 3 to 6 from 6 to 14 mm.
    box = front.get_paths()[0].get_extents()
    np.testing.assert_allclose((box.x0, box.x1, box.y0, box.y1), (2, 5, 6, 14))


def test_the_picture_is_the_slice_with_right_and_up_as_named(case):
    image, mask = case
    figure = render(plots.show_cases([("a", image, [mask])], SPACING, LABELS))
    slices = (image[2], image[:, 3], image[:, :, 1])
    for ax, expected in zip(figure.axes, slices, strict=True):
        (picture,) = ax.images
        np.testing.assert_array_equal(picture.get_array(), expected.T)
        assert picture.origin == "lower"
    letters = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert letters == [["A", "S"], ["R", "S"], ["R", "A"]]


def test_every_row_may_have_its_own_spacing(case):
    rows = [("a", *case[:1], [case[1]])] * 2
    figure = render(plots.show_cases(rows, [SPACING, (2, 2, 2)], LABELS))
    assert [ax.get_xlim()[1] for ax in figure.axes] == [20, 8, 8, 20, 16, 16]


def test_of_several_channels_the_first_is_shown(case):
    image, mask = case
    channels = np.stack([image, 0 * image], axis=-1)
    figure = render(plots.show_cases([("a", channels, [mask])], SPACING, LABELS))
    np.testing.assert_array_equal(figure.axes[2].images[0].get_array(), image[:, :, 1].T)


def test_a_label_keeps_its_colour_whatever_else_is_drawn(case):
    image, mask = case
    both = render(plots.show_cases([("a", image, [mask])], SPACING, LABELS))
    only = render(plots.show_cases([("a", image, [mask * (mask == 4)])], SPACING, LABELS))
    front, back = (to_hex(plots.colour_of(label, LABELS)) for label in LABELS)
    assert front != back
    assert {colour for colour, _ in contours_of(both.axes[2])} == {front, back}
    assert {colour for colour, _ in contours_of(only.axes[2])} == {back}
    lines = legend_of(both)
    assert to_hex(lines["front"].get_color()) == front
    assert to_hex(lines["back"].get_color()) == back


def test_more_labels_than_colours_still_have_one_each():
    labels = {k: str(k) for k in range(1, 12)}
    colours = [to_hex(plots.colour_of(k, labels)) for k in labels]
    assert len(set(colours)) == len(set(colours[:7])) == 7


def test_of_two_masks_the_first_is_solid_and_the_second_dashed(case):
    image, mask = case
    pred = np.roll(mask, 1, axis=1)
    rows = [("a", image, [mask, pred])]
    figure = render(plots.show_cases(rows, SPACING, {1: "front"}, names=("expert", "model")))
    (_, solid), (_, dashed) = contours_of(figure.axes[2])
    assert solid is None
    assert dashed is not None
    lines = legend_of(figure)
    assert list(lines) == ["front", "expert", "model"]
    assert (lines["expert"].get_linestyle(), lines["model"].get_linestyle()) == ("-", "--")


@pytest.mark.parametrize(
    "change",
    [
        lambda image, mask: (image, 0 * mask),
        lambda image, mask: (image, 0 * mask + 1),
        lambda image, mask: (0 * image + 7, mask),
        lambda image, mask: (image[:, :, 2:3], mask[:, :, 2:3]),
        lambda image, mask: (image[3:4], mask[3:4]),
        lambda image, mask: (image[:, :, 2:3], 0 * mask[:, :, 2:3]),
        lambda image, mask: (np.where(mask, np.nan, image), mask),
    ],
    ids=["empty mask", "full mask", "constant", "1 slice", "1 sagittal", "1 empty slice", "nan"],
)
def test_odd_cases_are_drawn_too(change, case):
    image, mask = change(*case)
    figure = render(plots.show_cases([("a", image, [mask, mask])], SPACING, LABELS, names="tp"))
    assert len(figure.axes) == 3


def test_an_empty_mask_shows_the_middle(case):
    image, mask = case
    figure = render(plots.show_cases([("a", image, [0 * mask])], SPACING, LABELS))
    assert titles_of(figure) == ["sagittal, slice 4", "coronal, slice 5", "axial, slice 3"]
    assert [contours_of(ax) for ax in figure.axes] == [[], [], []]


@pytest.mark.parametrize("n_cases", [1, 2, 5])
def test_the_overview_tells_its_numbers_and_units(n_cases, make_data):
    table = check_cases(find_cases(make_data(n_cases)))
    figure = render(plots.cases_overview(table))
    n = f"(n = {n_cases})"
    assert titles_of(figure) == [
        f"{t} {n}" for t in ("shape", "spacing", "intensity", "labelled volume")
    ]
    units = [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes]
    expected = [("axis", "voxels"), ("axis", "mm"), ("case", "stored units"), ("ml", "cases")]
    assert units == expected
    assert sum(bar.get_height() for bar in figure.axes[3].patches) == n_cases


def test_the_overview_counts_only_what_it_draws(make_data):
    # Of 4 scans one cannot be read, and one has no mask.
    folder = make_data(4)
    (folder / "imagesTr" / "case_00.nii.gz").write_bytes(b"<html>" * 100)
    (folder / "labelsTr" / "case_01.nii.gz").unlink()
    figure = render(plots.cases_overview(check_cases(find_cases(folder))))
    assert [title.split("(")[1] for title in titles_of(figure)] == [*["n = 3)"] * 3, "n = 2)"]
    assert sum(bar.get_height() for bar in figure.axes[3].patches) == 2


def test_the_overview_is_drawn_also_if_there_is_no_mask_at_all(make_data):
    folder = make_data(2)
    for mask in (folder / "labelsTr").iterdir():
        mask.unlink()
    figure = render(plots.cases_overview(check_cases(find_cases(folder))))
    assert "n = 0" in titles_of(figure)[3]


@pytest.mark.parametrize("n_folds", [1, 9])
def test_learning_curves_have_training_dashed_and_validation_solid(n_folds):
    columns = [f"{v}{m}" for v in ("", "val_") for m in ("loss", "accuracy", "dice")]
    history = pd.DataFrame({"epoch": range(4), **{c: [0.1, 0.3, 0.5, 0.7] for c in columns}})
    history["val_dice"] = [NAN, 0.2, 0.2, 0.6]
    figure = render(plots.learning_curves({f"fold {k}": history for k in range(n_folds)}))
    metrics = ("loss", "accuracy", "dice")
    assert titles_of(figure) == [f"{m} (n = {n_folds} folds)" for m in metrics]
    assert [ax.get_xlabel() for ax in figure.axes] == ["epoch"] * 3
    assert [ax.get_ylabel() for ax in figure.axes] == list(metrics)
    training, validation = figure.axes[2].lines[:2]
    np.testing.assert_array_equal(training.get_xdata(), [1, 2, 3, 4])
    np.testing.assert_array_equal(training.get_ydata(), history["dice"])
    np.testing.assert_array_equal(validation.get_ydata(), history["val_dice"])
    assert (training.get_linestyle(), validation.get_linestyle()) == ("--", "-")
    assert training.get_color() == validation.get_color()
    assert set(legend_of(figure)) == {
        *(f"fold {k}" for k in range(n_folds)),
        "training",
        "validation",
    }


def scores_of(dice, distance):
    """A table of label 1 with the numbers given, and of label 4 with 0.5 and 3 mm."""
    rows = []
    for k, numbers in enumerate(zip(dice, distance, strict=True)):
        for label, (d, mm) in ((1, numbers), (4, (0.5, 3.0))):
            rows.append({"case": f"case {k}", "label": label, "dice": d, "hausdorff_mm": mm})
    return pd.DataFrame(rows).assign(hd95_mm=lambda table: table["hausdorff_mm"])


def test_score_boxes_show_every_case_and_their_units():
    figure = render(plots.score_boxes(scores_of([0.7, 0.8, 0.9], [1.0, 2.0, 4.0]), LABELS))
    names = ("Dice", "Hausdorff distance", "HD95")
    assert titles_of(figure) == [f"{name} (n = 3 cases)" for name in names]
    assert [ax.get_ylabel() for ax in figure.axes] == ["Dice, 0 to 1", "mm", "mm"]
    for ax in figure.axes:
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["front", "back"]
        colours = [to_hex(points.get_facecolor()[0]) for points in ax.collections]
        assert colours == [to_hex(plots.colour_of(label, LABELS)) for label in LABELS]
    points = np.asarray(figure.axes[1].collections[0].get_offsets())
    np.testing.assert_array_equal(points[:, 1], [1, 2, 4])
    assert (np.abs(points[:, 0]) < 0.25).all()


@pytest.mark.parametrize(
    ("dice", "distance", "dice_title", "distance_title"),
    [
        ([NAN, 0.0, 0.9], [NAN, INF, 2.0], ", 1 without a number", ", 2 without a number"),
        ([0.0, 0.0, 0.9], [INF, INF, 2.0], "", ", 2 without a number"),
        ([NAN, NAN, NAN], [NAN, NAN, NAN], ", 3 without a number", ", 3 without a number"),
    ],
)
def test_score_boxes_count_what_cannot_be_drawn(dice, distance, dice_title, distance_title):
    figure = render(plots.score_boxes(scores_of(dice, distance), LABELS))
    expected = [
        f"Dice (n = 3 cases{dice_title})",
        f"Hausdorff distance (n = 3 cases{distance_title})",
        f"HD95 (n = 3 cases{distance_title})",
    ]
    assert titles_of(figure) == expected
    drawn = [len(ax.collections[0].get_offsets()) for ax in figure.axes]
    assert drawn == [np.isfinite(dice).sum(), *[np.isfinite(distance).sum()] * 2]
