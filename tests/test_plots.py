import base64
import io
import re
from html import unescape

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from figures import legend_of, render, titles_of
from matplotlib.colors import to_hex

from unetseg import charts, plots

LABELS = {1: "front", 4: "back"}
SPACING = (1.0, 2.0, 3.0)  # mm


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


TRUE, PRED = np.zeros((4, 3, 3), np.uint8), np.zeros((4, 3, 3), np.uint8)
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


def test_a_label_keeps_its_colour_in_all_figures(case, affine):
    image, mask = case
    scores = scores_of([0.7, 0.8], [1.0, 2.0])
    expected = [plots.colour_of(label, LABELS) for label in LABELS]
    boxes = render(charts.score_boxes(scores, LABELS))
    for ax in boxes.axes:
        colours = [to_hex(points.get_facecolor()[0]).upper() for points in ax.collections]
        assert colours == [expected[0]] * 2 + [expected[1]] * 2
    for draw in (charts.volume_agreement, charts.dice_by_size):
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


SIZES = [
    ((64, 64, 64), (1, 1, 1)),
    ((512, 512, 24), (0.43, 0.43, 6)),
    ((512, 512, 600), (0.5, 0.5, 0.5)),
    ((20, 20, 5000), (1, 1, 1)),
    ((30000, 20000, 1), (0.00025, 0.00025, 0.004)),
    ((1, 1, 1), (1, 1, 1)),
]


@pytest.mark.parametrize(("shape", "spacing"), SIZES)
def test_blocks_are_as_small_as_fits(shape, spacing):
    factors, side = plots.choose_factors(shape, np.diag([*spacing, 1.0]), 3_000_000)
    blocks = [-(-n // k) for n, k in zip(shape, factors, strict=True)]
    shown = [k * mm for k, mm in zip(factors, spacing, strict=True)]
    several = [axis for axis in range(3) if shape[axis] > 1]
    cubes = np.prod([np.ceil(blocks[axis] * shown[axis] / side) for axis in several])
    assert cubes <= 3_000_000
    for axis in several:  # no voxel shown is shorter than the cubes: none falls between them
        assert shown[axis] >= side * (1 - 1e-6)
    if max(factors) > 1:
        assert cubes > 500_000


@pytest.mark.parametrize(("shape", "spacing"), [SIZES[0], ((512, 512, 1), (0.43, 0.43, 6))])
def test_what_is_small_is_shown_as_it_is(shape, spacing):
    factors, side = plots.choose_factors(shape, np.diag([*spacing, 1.0]), 3_000_000)
    assert (factors, side) == ((1, 1, 1), pytest.approx(spacing[0]))


def test_a_scan_aslant_in_its_box_has_fewer_blocks():
    # Turned by 45 degrees about z a square of side a fills a box of side 1.41 a: half of it.
    turned = np.eye(4)
    turned[:2, :2] = np.array([[1, -1], [1, 1]]) / np.sqrt(2)
    assert plots.choose_factors((140, 140, 140), np.eye(4), 3_000_000)[0] == (1, 1, 1)
    assert plots.choose_factors((140, 140, 140), turned, 3_000_000)[0] == (2, 2, 2)


def test_blocks_lie_where_their_voxels_lie():
    # Blocks of 2 x 3 x 1: the first is centred between voxels 0 and 1, at voxel 1, at voxel 0.
    affine = np.array([[2.0, 0, 0, 10], [0, 3, 0, 20], [0, 0, 4, 30], [0, 0, 0, 1]])
    thinned = plots.thin_affine(affine, (2, 3, 1))
    np.testing.assert_allclose(thinned @ [0, 0, 0, 1], [11, 23, 30, 1])
    np.testing.assert_allclose(thinned @ [1, 1, 1, 1], [15, 32, 34, 1])


def flipped(array):
    return np.flip(np.flip(array).copy())


LAYOUTS = [np.ascontiguousarray, np.asfortranarray, flipped, lambda a: a.T.copy().T]


@pytest.mark.parametrize("at_once", [1, 20, 10**6])
@pytest.mark.parametrize("layout", LAYOUTS, ids=["C", "Fortran", "flipped", "turned"])
@pytest.mark.parametrize("factors", [(1, 1, 1), (2, 3, 1), (4, 4, 4), (1, 7, 2)])
def test_blocks_are_what_loops_make_of_them(factors, layout, at_once, monkeypatch):
    monkeypatch.setattr(plots, "AT_ONCE", at_once)
    array = np.random.default_rng(0).integers(0, 50, (5, 7, 6))
    shape = tuple(-(-n // k) for n, k in zip(array.shape, factors, strict=True))
    mean, highest = np.zeros(shape), np.zeros(shape, int)
    for place in np.ndindex(shape):
        block = array[tuple(slice(p * k, (p + 1) * k) for p, k in zip(place, factors, strict=True))]
        mean[place], highest[place] = block.mean(), block.max()
    stored = layout(array)
    np.testing.assert_allclose(plots.pool_mean(stored, factors), mean, rtol=1e-6)
    np.testing.assert_array_equal(plots.pool_max(stored, factors), highest)


def test_the_rarest_kind_of_a_block_is_shown_and_nothing_only_where_nothing_is():
    kinds = np.zeros((8, 8, 8), np.uint16)
    kinds[:4] = kinds[4:, :4] = 9  # 384 voxels
    kinds[:2, :4] = 5  # 64 of them
    kinds[3, 3, 3] = kinds[7, 7, 7] = 300  # one within, one alone
    shown = plots.pool_rarest(lambda part: part, [kinds], (4, 4, 4))
    expected = np.zeros((2, 2, 2), int)
    expected[0] = expected[1, 0] = 9
    expected[0, 0] = 5
    expected[0, 0, 0] = expected[1, 1, 1] = 300
    np.testing.assert_array_equal(shown, expected)
    as_it_is = plots.pool_rarest(lambda part: part, [kinds], (1, 1, 1))
    np.testing.assert_array_equal(as_it_is, kinds)


def test_the_range_of_grey_is_of_finite_voxels_and_close_in_large_scans():
    image = np.append(np.arange(201.0), [np.nan, np.inf]).reshape(7, 29, 1)
    assert plots.grey_range(image) == pytest.approx((1, 199))
    assert plots.grey_range(np.full((3, 3, 3), np.nan)) == (0, 1)
    sparse = np.full((120, 120, 120), -1.0)
    sparse[61, 61, 61:63] = 5, np.inf  # between the voxels of a large scan that are looked at
    assert plots.grey_range(sparse) == (-1, 5)
    ramp = np.linspace(0, 1, 300**3, dtype=np.float32).reshape(300, 300, 300)
    assert plots.grey_range(ramp) == pytest.approx((0.005, 0.995), abs=0.01)
