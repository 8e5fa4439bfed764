import base64
import io
import re
from html import unescape

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


TRUE, PRED = np.zeros((4, 3, 3), np.uint8), np.zeros((4, 3, 3), np.uint8)
# Slice z 1, by x: agreed, missed, added, another label; every place holds 3 voxels along y.
TRUE[:, :, 1] = np.array([1, 1, 0, 4])[:, None]
PRED[:, :, 1] = np.array([1, 0, 4, 1])[:, None]


def test_differences_are_shown_below_every_case_as_missed_added_or_other_label():
    image = np.random.default_rng(0).normal(size=TRUE.shape)
    rows = [(title, image, [TRUE, PRED]) for title in "ab"]
    names = ("truth", "prediction")
    figure = render(plots.show_cases(rows, SPACING, LABELS, names=names, differences=True))
    first = [ax.get_ylabel() for ax in figure.axes[::3]]
    assert first == ["a", "where they disagree", "b", "where they disagree"]
    drawn = [len(ax.images) for ax in figure.axes]
    assert drawn == [1, 1, 1, 2, 2, 2] * 2
    assert titles_of(figure)[2] == titles_of(figure)[5] == "axial, slice 1"
    assert contours_of(figure.axes[2]) != []
    assert contours_of(figure.axes[5]) == []
    scan, differences = figure.axes[5].images
    assert scan.get_extent() == differences.get_extent()
    shown = differences.get_array()
    np.testing.assert_array_equal(shown.mask, [[True, False, False, False]] * 3)
    colours = [to_hex(colour).upper() for colour in differences.to_rgba(shown)[0, 1:]]
    assert colours == [plots.DIFFERENCES[kind] for kind in ("missed", "added", "other label")]
    lines = legend_of(figure)
    assert list(lines) == ["front", "back", *names, "missed", "added", "other label"]
    assert {n: lines[n].get_color() for n in plots.DIFFERENCES} == plots.DIFFERENCES


def test_masks_that_agree_show_no_difference(case):
    image, mask = case
    rows = [("a", image, [mask, mask])]
    figure = render(plots.show_cases(rows, SPACING, LABELS, names="tp", differences=True))
    assert all(ax.images[1].get_array().mask.all() for ax in figure.axes[3:])


# What a page would fetch. Of a frame a browser fetches no icon.
FETCHED = re.compile(
    r"""<(?!link[^>]*rel="icon")[a-z]+\b[^>]*\s(?:src|href|data)=["']?(?:https?:)?//|@import"""
    r"""|url\(["']?(?:https?:)?//"""
)


def overlay_of(view):
    """How many voxels of the overlay have a colour, and the numbers of slices in x, y, z.

    The slices stand in a square, which 4 of them fill.
    """
    page = unescape(view._repr_html_())
    (data,) = re.findall(r'id="overlayImg[^>]*src="data:image/png;base64,([^"]+)"', page)
    pixels = plt.imread(io.BytesIO(base64.b64decode(data))).reshape(-1, 4)
    colours, counts = np.unique(pixels[pixels[:, 3] > 0], axis=0, return_counts=True)
    found = {to_hex(c[:3]).upper(): int(n) for c, n in zip(colours, counts, strict=True)}
    (slices,) = set(re.findall(r'"nbSlice": {"X": (\d+), "Y": (\d+), "Z": (\d+)}', page))
    return found, [int(number) for number in slices]


def test_the_viewer_colours_every_voxel_by_what_became_of_it():
    pred = PRED.copy()
    pred[0, 0, 1] = 0  # 2 voxels of the front remain
    true = TRUE.copy()
    true[:, :, 2] = pred[:, :, 2] = 4  # and 12 of the back agree
    image = np.random.default_rng(0).normal(size=TRUE.shape)
    colours, slices = overlay_of(plots.view_case(image, np.eye(4), true, pred, LABELS))
    front, back = (plots.colour_of(label, LABELS) for label in LABELS)
    missed, added, other = plots.DIFFERENCES.values()
    assert colours == {front: 2, back: 12, missed: 4, added: 3, other: 3}
    assert slices == [4, 3, 3]


@pytest.mark.parametrize("channels", [1, 2])
def test_the_viewer_is_one_page_that_fetches_nothing_and_keeps_proportions(
    channels, case, affine, tmp_path
):
    image, mask = (array[2:6] for array in case)
    image = image if channels == 1 else np.stack([image, 0 * image], axis=-1)
    view = plots.view_case(image, affine, mask, np.roll(mask, 1, axis=1), LABELS)
    view.save_as_html(tmp_path / "case.html")
    page = (tmp_path / "case.html").read_text(encoding="utf-8")
    page = unescape(page)  # of the frame in it
    assert "<canvas" in page
    assert FETCHED.findall(page) == []
    # From the first to the last centre of 4 x 10 x 6 voxels are 3 x 18 x 15 mm: 1 mm per slice.
    colours, slices = overlay_of(view)
    assert slices == [4, 19, 16]
    assert len(colours) == 4  # of two labels, missed and added


@pytest.mark.parametrize("turned", [False, True])
def test_the_viewer_thins_what_is_large_and_shows_single_voxels_all_the_same(turned, monkeypatch):
    monkeypatch.setattr(plots, "VIEWED", 20_000)
    shape = (96, 80, 6)
    image = np.indices(shape).sum(axis=0).astype(np.float32)
    true, pred = np.zeros((2, *shape), np.int32)
    true[20:50, 20:50, 1:5] = pred[20:50, 20:50, 1:5] = 1
    true[30, 31, 2] = pred[30, 31, 2] = 4  # within the front
    true[91, 71, 5] = pred[3, 5, 0] = 4  # missed and added, far away
    pred[41, 40, 3] = 4  # within the front too
    if turned:
        image, true, pred = (np.asfortranarray(array) for array in (image, true, pred))
    view = plots.view_case(image, np.diag([0.5, 0.5, 5, 1]), true, pred, LABELS)
    # 48 x 40 x 30 mm are 32 x 27 x 20 cubes of 1.5 mm; 28,800 of 2 voxels would be too many.
    assert "thinned: 3 x 3 x 1 voxels are shown as one" in unescape(view.get_standalone())
    colours, slices = overlay_of(view)
    assert np.prod(slices) <= 20_000
    front, back = (plots.colour_of(label, LABELS) for label in LABELS)
    assert set(colours) == {front, back, *plots.DIFFERENCES.values()}
    monkeypatch.undo()
    view = plots.view_case(image[:, :, :1], np.eye(4), true[:, :, :1], pred[:, :, :1], LABELS)
    assert "thinned" not in view.get_standalone()


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("thickness", [0.1, 6])
def test_the_viewer_shows_one_slice_in_its_own_pixels(axis, thickness):
    true, pred = np.zeros((2, 20, 12), np.uint8)
    true[3:9, 4:8], pred[5:9, 4:8] = 1, 1
    image = np.indices((20, 12)).sum(axis=0)
    arrays = (np.expand_dims(array, axis) for array in (image, true, pred))
    image, true, pred = arrays
    affine = np.diag([*np.insert((0.5, 0.5), axis, thickness), 1])
    colours, slices = overlay_of(plots.view_case(image, affine, true, pred, LABELS))
    assert slices == np.insert((20, 12), axis, 1).tolist()
    assert colours[plots.colour_of(1, LABELS)] == 16


@pytest.mark.parametrize("size_mm", [0.05, 0.0004])
def test_small_voxels_are_shown_and_viewed(size_mm, case):
    image, mask = (array[2:6] for array in case)
    spacing = np.array(SPACING) * size_mm
    figure = render(plots.show_cases([("a", image, [mask])], spacing, LABELS))
    assert figure.axes[2].get_xlim() == pytest.approx((0, 4 * size_mm))
    assert len(contours_of(figure.axes[2])) == 2
    affine = np.diag([*spacing, 1])
    colours, slices = overlay_of(plots.view_case(image, affine, mask, mask, LABELS))
    # A step of y is two cubes, one of z three; rounding may add an empty slice.
    np.testing.assert_allclose(slices, [4, 19, 16], atol=1)
    assert set(colours) == {plots.colour_of(label, LABELS) for label in LABELS}


def test_the_overview_shows_small_volumes_and_spacings(write_case, make_arrays, tmp_path):
    spacing = (0.0004, 0.0004, 0.0008)
    found = [write_case(tmp_path, f"c{k}", *make_arrays(k), spacing) for k in range(3)]
    figure = render(plots.cases_overview(check_cases(found)))
    (bar,) = [bar for bar in figure.axes[3].patches if bar.get_height()]
    volume = 60 * 0.0004**2 * 0.0008 / 1000
    assert bar.get_x() < volume < bar.get_x() + bar.get_width() < 2 * volume
    assert figure.axes[1].get_ylim()[1] == pytest.approx(1.1 * 0.0008)


def test_pictures_of_large_slices_are_thinned_and_keep_single_voxels(monkeypatch):
    monkeypatch.setattr(plots, "DRAWN", 20)
    image = np.indices((90, 70, 2)).sum(axis=0)
    true, pred = np.zeros((2, 90, 70, 2), np.uint8)
    true[10:31, 10:31] = pred[10:31, 10:31] = 1
    true[71, 51, 0] = pred[81, 11, 0] = 4
    rows = [("a", image, [true, pred])]
    figure = render(plots.show_cases(rows, SPACING, LABELS, names="tp", differences=True))
    above, below = figure.axes[2], figure.axes[5]
    assert above.images[0].get_array().shape == (18, 18)  # blocks of 4 x 5 pixels
    assert above.get_xlim() == (0, 90)
    assert above.get_ylim() == (0, 144)  # 18 blocks of 4 pixels of 2 mm
    colours = [colour.upper() for colour, _ in contours_of(above)]
    assert colours.count(plots.colour_of(4, LABELS)) == 2
    assert sorted(below.images[1].get_array().compressed()) == [1, 2]  # missed and added


@pytest.mark.parametrize(
    "change",
    [
        lambda image, mask: (image, mask, mask),
        lambda image, mask: (image, 0 * mask, mask),
        lambda image, mask: (0 * image + 7, mask, 0 * mask),
        lambda image, mask: (image, 0 * mask, 0 * mask),
    ],
    ids=["all agree", "all added", "constant image", "no label"],
)
def test_odd_cases_are_viewed_too(change, case, affine):
    image, *masks = change(*case)
    assert "overlayImg" in plots.view_case(image, affine, *masks, LABELS).get_standalone()


def scores_of(dice, distance, volumes=None):
    """A table of label 1 with the numbers given, and of label 4 with 0.5 and 3 mm.

    Even cases are of fold 0. The volumes are true and predicted, of label 1.
    """
    rows = []
    volumes = volumes or [(10.0, 10.0)] * len(dice)
    for k, numbers in enumerate(zip(dice, distance, volumes, strict=True)):
        for label, (d, mm, (true, pred)) in ((1, numbers), (4, (0.5, 3.0, (100.0, 100.0)))):
            row = {"case": f"case {k}", "fold": k % 2, "label": label, "dice": d}
            row |= {"hausdorff_mm": mm, "volume_true_ml": true, "volume_pred_ml": pred}
            rows.append(row)
    table = pd.DataFrame(rows).assign(hd95_mm=lambda table: table["hausdorff_mm"])
    table["volume_difference_ml"] = table["volume_pred_ml"] - table["volume_true_ml"]
    return table


def offsets_of(points):
    return np.asarray(points.get_offsets())


def test_score_boxes_show_every_case_by_label_and_fold_with_units():
    figure = render(plots.score_boxes(scores_of([0.7, 0.8, 0.9], [1.0, 2.0, 4.0]), LABELS))
    names = ("Dice", "Hausdorff distance", "HD95")
    assert titles_of(figure) == [f"{name} (n = 3 cases)" for name in names]
    units = ["Dice, 0 to 1", "Hausdorff distance, mm", "HD95, mm"]
    assert [ax.get_ylabel() for ax in figure.axes] == units
    assert figure.axes[0].get_ylim()[1] == 1
    assert [ax.get_ylim()[0] for ax in figure.axes[1:]] == [0, 0]
    for ax in figure.axes:
        # Label by label, with a gap between them: cases 0 and 2, then case 1.
        assert ax.get_xticks().tolist() == [0, 1, 3, 4]
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["fold 0", "fold 1"] * 2
        (above,) = ax.child_axes
        assert above.get_xticks().tolist() == [0.5, 3.5]
        assert [tick.get_text() for tick in above.get_xticklabels()] == ["front", "back"]
        for place, points in zip(ax.get_xticks(), ax.collections, strict=True):
            assert (np.abs(offsets_of(points)[:, 0] - place) < 0.25).all()
    distances = [offsets_of(points)[:, 1].tolist() for points in figure.axes[1].collections]
    assert distances == [[1, 4], [2], [3, 3], [3]]
    dice = [offsets_of(points)[:, 1].tolist() for points in figure.axes[0].collections]
    assert dice == [[0.7, 0.9], [0.8], [0.5, 0.5], [0.5]]


def test_score_boxes_have_the_median_of_their_fold():
    distances = [1.0, 5.0, 2.0, 7.0, 4.0, 9.0]  # 1, 2, 4 of fold 0; 5, 7, 9 of fold 1
    figure = render(plots.score_boxes(scores_of([0.5] * 6, distances), LABELS))
    medians = {line.get_ydata()[0] for line in figure.axes[1].lines if line.get_color() == "k"}
    assert medians == {2, 7, 3}  # 3 of the other label


@pytest.mark.parametrize(
    ("dice", "distance", "lost"),
    [
        ([NAN, 0.0, 0.9], [NAN, INF, 2.0], (1, 2)),
        ([0.0, 0.0, 0.9], [INF, INF, 2.0], (0, 2)),
        ([NAN, NAN, NAN], [NAN, NAN, NAN], (3, 3)),
    ],
)
def test_score_boxes_count_what_cannot_be_drawn(dice, distance, lost):
    figure = render(plots.score_boxes(scores_of(dice, distance), LABELS))
    names = {"Dice": lost[0], "Hausdorff distance": lost[1], "HD95": lost[1]}
    texts = {0: "", **{n: f"; {n} values are NaN or inf and not drawn" for n in (1, 2, 3)}}
    assert titles_of(figure) == [f"{name} (n = 3 cases{texts[n]})" for name, n in names.items()]
    drawn = [sum(len(points.get_offsets()) for points in ax.collections) for ax in figure.axes]
    assert drawn == [6 - n for n in names.values()]


def test_volumes_agree_with_a_mean_and_limits_by_hand():
    # Differences 2, -1, 2 ml: mean 1, variance (1 + 4 + 1) / 2 = 3, so 1 +- 1.96 * 1.732.
    scores = scores_of([0.5] * 3, [1.0] * 3, [(10.0, 12.0), (20.0, 19.0), (30.0, 32.0)])
    figure = render(plots.volume_agreement(scores, LABELS))
    assert titles_of(figure) == ["front (n = 3)", "back (n = 3)"]
    front, back = figure.axes
    (points,) = front.collections
    np.testing.assert_allclose(offsets_of(points), [(11, 2), (19.5, -1), (31, 2)])
    heights = {line.get_ydata()[0]: line.get_linestyle() for line in front.lines}
    assert sorted(heights) == pytest.approx([1 - 3.3948, 1, 1 + 3.3948], abs=1e-3)
    assert [heights[height] for height in sorted(heights)] == ["--", "-", "--"]
    assert [line.get_ydata()[0] for line in back.lines] == [0, 0, 0]
    mean, limits = (text.get_text() for text in front.get_legend().get_texts())
    assert mean == "mean +1 ml"
    told = [float(number) for number in re.findall(r"[+-][\d.]+", limits)]
    assert told == pytest.approx([-2.3948, 4.3948], abs=0.01)
    units = ("mean of true and predicted volume, ml", "predicted - true, ml")
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes] == [units] * 2


def test_dice_is_drawn_against_the_true_volume_where_it_is_defined():
    volumes = [(10.0, 12.0), (20.0, 19.0), (0.0, 0.0)]
    figure = render(plots.dice_by_size(scores_of([0.7, 0.0, NAN], [1.0] * 3, volumes), LABELS))
    (ax,) = figure.axes
    front, back = (offsets_of(points).tolist() for points in ax.collections)
    assert front[:2] == [[10, 0.7], [20, 0]]
    assert back == [[100, 0.5]] * 3
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["front", "back"]
    assert ax.get_ylim()[1] == pytest.approx(1.01)  # a point at 1 is drawn whole
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("true volume, ml", "Dice, 0 to 1")
    assert ax.get_title() == "Dice and size (n = 3 cases; 1 values are NaN and not drawn)"


def test_confusion_gives_the_share_of_every_true_label():
    names = ["background", "front", "back"]
    counts = pd.DataFrame([[9000, 1000, 0], [5, 15, 0], [0, 0, 0]], names, names)
    figure = render(plots.confusion(counts, n_cases=2))
    (ax,) = figure.axes
    shares = [[0.9, 0.1, 0], [0.25, 0.75, 0], [0, 0, 0]]  # of no voxel nothing is a share
    np.testing.assert_allclose(ax.images[0].get_array(), shares)
    assert ax.images[0].get_clim() == (0, 1)
    texts = {text.get_position(): text.get_text() for text in ax.texts}  # by column and row
    assert texts[1, 0] == "10.0 %\n1,000"
    assert texts[0, 1] == "25.0 %\n5"
    assert texts[2, 2] == "0.0 %\n0"
    assert len(texts) == 9
    assert [tick.get_text() for tick in ax.get_xticklabels()] == names
    assert [tick.get_text() for tick in ax.get_yticklabels()] == names
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted", "true")
    assert ax.get_title() == "Voxels (n = 2 cases)"


@pytest.mark.parametrize("n_cases", [1, 2])
def test_figures_of_one_or_two_cases_are_drawn_too(n_cases):
    scores = scores_of([0.5] * n_cases, [1.0] * n_cases)
    for draw in (plots.score_boxes, plots.volume_agreement, plots.dice_by_size):
        render(draw(scores, LABELS))


def test_a_label_keeps_its_colour_in_all_figures(case, affine):
    image, mask = case
    scores = scores_of([0.7, 0.8], [1.0, 2.0])
    expected = [plots.colour_of(label, LABELS) for label in LABELS]
    boxes = render(plots.score_boxes(scores, LABELS))
    for ax in boxes.axes:
        colours = [to_hex(points.get_facecolor()[0]).upper() for points in ax.collections]
        assert colours == [expected[0]] * 2 + [expected[1]] * 2
    for draw in (plots.volume_agreement, plots.dice_by_size):
        axes = render(draw(scores, LABELS)).axes
        drawn = [points for ax in axes for points in ax.collections]
        assert [to_hex(points.get_facecolor()[0]).upper() for points in drawn] == expected
    view = plots.view_case(image[2:6], affine, mask[2:6], mask[2:6], LABELS)
    assert set(overlay_of(view)[0]) == set(expected)


def test_the_colours_of_differences_are_no_label_s():
    assert not set(plots.COLOURS) & set(plots.DIFFERENCES.values())


def test_differences_need_two_masks(case):
    image, mask = case[:2]
    with pytest.raises(ValueError, match="rows of two masks"):
        plots.show_cases([("a", image, [mask])], (1, 1, 1), LABELS, differences=True)


@pytest.fixture
def heat(case):
    """A map that grows along x from 0 to 0.7."""
    return np.broadcast_to(np.arange(8)[:, None, None] / 10, case[1].shape)


@pytest.mark.parametrize("n_cases", [1, 3])
def test_maps_are_shown_below_the_contours_with_a_scale(n_cases, case, heat):
    image, mask = case
    rows = [(f"case {k}", image, [mask]) for k in range(n_cases)]
    maps = [heat / (k + 1) for k in range(n_cases)]
    figure = render(plots.show_cases(rows, SPACING, LABELS, maps=maps))
    *panels, bar = figure.axes
    planes = ["sagittal, slice 2", "coronal, slice 3", "axial, slice 1"]
    assert [ax.get_title() for ax in panels] == planes * 2 * n_cases
    names = [[f"case {k}", "", "", "uncertainty", "", ""] for k in range(n_cases)]
    assert [ax.get_ylabel() for ax in panels] == [name for row in names for name in row]
    assert (bar.get_ylabel(), bar.get_ylim()) == ("uncertainty, 0 to 1", (0, 1))
    for k, drawn in enumerate(maps):
        above, below = panels[6 * k : 6 * k + 3], panels[6 * k + 3 : 6 * k + 6]
        assert [len(ax.images) for ax in above] == [1] * 3
        assert [len(contours_of(ax)) for ax in above] == [1, 2, 2]  # label 4 starts at x = 5
        assert [contours_of(ax) for ax in below] == [[]] * 3
        for ax, expected in zip(below, (drawn[2], drawn[:, 3], drawn[:, :, 1]), strict=True):
            grey, hot = ax.images
            assert grey.get_array().shape == hot.get_array().shape
            np.testing.assert_array_equal(
                hot.get_array().filled(-1), np.where(expected.T < 0.05, -1, expected.T)
            )
            assert hot.get_clim() == (0, 1)
            assert grey.get_extent() == hot.get_extent()
    assert set(legend_of(figure)) == {"front", "back"}


@pytest.mark.parametrize("value", [0, 0.04, 1])
def test_maps_of_one_value_are_drawn_too(value, case):
    image, mask = case
    maps = [np.full(mask.shape, value, np.float32)]
    figure = render(plots.show_cases([("a", image, [0 * mask])], SPACING, LABELS, maps=maps))
    hidden = np.ma.getmaskarray(figure.axes[5].images[1].get_array())
    assert hidden.all() == (value < 0.05)
    assert hidden.any() == (value < 0.05)


def test_maps_go_with_two_masks_but_not_with_differences(case, heat):
    image, mask = case
    rows, names = [("a", image, [mask, np.roll(mask, 1, axis=1)])], ("one", "two")
    figure = render(plots.show_cases(rows, SPACING, LABELS, names=names, maps=[heat]))
    assert set(legend_of(figure)) == {"front", "back", *names}
    with pytest.raises(ValueError, match="maps must be None where differences are shown"):
        plots.show_cases(rows, SPACING, LABELS, differences=True, maps=[heat])


ESTIMATE = {1: np.array([0.5, 0.7, 0.9, 0.8]), 4: np.array([0.4, NAN, 0.6, 0.5])}
DICES = {1: np.array([0.6, 0.8, 0.9, NAN]), 4: [0.4, 0.5, INF, 0.6]}


def test_an_estimate_of_quality_is_drawn_against_the_truth_with_its_correlation():
    rho = {1: (0.954, 0.256, 0.999), 4: (NAN, NAN, NAN)}
    figure = render(plots.quality_estimate(ESTIMATE, DICES, LABELS, rho=rho))
    # Pairs that are not finite are not drawn, and n is of those that are.
    assert titles_of(figure) == [
        "front: rank correlation 0.95\n(0.26 to 1.00, n = 3)",
        "back: no rank correlation\n(n = 2)",
    ]
    front, back = (ax.collections[0] for ax in figure.axes)
    np.testing.assert_allclose(offsets_of(front), [(0.5, 0.6), (0.7, 0.8), (0.9, 0.9)])
    np.testing.assert_allclose(offsets_of(back), [(0.4, 0.4), (0.5, 0.6)])
    words = ("mean Dice between the folds", "Dice with the truth")
    assert [(ax.get_xlabel(), ax.get_ylabel()) for ax in figure.axes] == [words] * 2
    colours = [to_hex(points.get_facecolor()[0]).upper() for points in (front, back)]
    assert colours == [plots.colour_of(label, LABELS) for label in LABELS]


def test_estimates_that_hardly_differ_are_not_drawn_far_apart():
    near, rho = {1: [0.970, 0.971], 4: [0.2, 0.9]}, dict.fromkeys(LABELS, (NAN, NAN, NAN))
    figure = render(plots.quality_estimate(near, near, LABELS, rho=rho))
    close, wide = figure.axes
    for limits in (close.get_xlim(), close.get_ylim()):
        np.testing.assert_allclose(limits, (0.9205, 1.0205))
    for limits in (wide.get_xlim(), wide.get_ylim()):
        np.testing.assert_allclose(limits, (0.55 - 0.385, 0.55 + 0.385))


@pytest.mark.parametrize("values", [[], [NAN, NAN], [0.5]])
def test_an_estimate_without_any_case_is_drawn_too(values):
    numbers = {label: np.array(values) for label in LABELS}
    rho = dict.fromkeys(LABELS, (NAN, NAN, NAN))
    figure = render(plots.quality_estimate(numbers, numbers, LABELS, rho=rho))
    n = sum(np.isfinite(values))
    assert titles_of(figure) == [f"{i}: no rank correlation\n(n = {n})" for i in LABELS.values()]


def test_reliability_is_drawn_against_a_line_with_the_voxels_below():
    columns = ("bin", "n", "confidence", "accuracy")
    tables = {
        "as trained": [(5, 400, 0.55, 0.4), (9, 1600, 0.97, 0.9)],
        "calibrated": [(5, 1000, 0.54, 0.5), (7, 400, 0.75, 0.77), (9, 600, 0.95, 0.95)],
    }
    tables = {name: pd.DataFrame(rows, columns=columns) for name, rows in tables.items()}
    errors = {"as trained": 0.086, "calibrated": 0.02412}
    figure = render(plots.reliability_curves(tables, errors))
    above, below = figure.axes
    assert above.get_title() == "2,000 voxels near the structures"
    *curves, diagonal = above.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [(0, 0), (1, 1)])
    assert diagonal.get_linestyle() == "--"
    for name, curve, counts in zip(tables, curves, below.lines, strict=True):
        np.testing.assert_array_equal(curve.get_xydata(), tables[name][["confidence", "accuracy"]])
        np.testing.assert_array_equal(counts.get_xydata(), tables[name][["confidence", "n"]])
        assert curve.get_color() == counts.get_color()
    texts = [text.get_text() for text in above.get_legend().get_texts()]
    lines = ["as trained: expected error 0.0860", "calibrated: expected error 0.0241"]
    assert texts == [*lines, "right as often as sure"]
    assert (above.get_ylabel(), below.get_ylabel()) == ("share that is right", "voxels")
    assert below.get_xlabel() == "probability of the predicted class"
    assert below.get_yscale() == "log"
    assert above.get_xlim() == below.get_xlim()
