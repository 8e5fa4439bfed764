"""Charts of tables: what they say in words and numbers."""

import re

import numpy as np
import pandas as pd
import pytest
from figures import legend_of, render, titles_of

from unetseg import charts, plots
from unetseg.cases import check_cases, find_cases

LABELS = {1: "front", 4: "back"}
NAN, INF = float("nan"), float("inf")


@pytest.fixture
def case(make_arrays):
    """Label 1 fills x 2 to 4, y 3 to 6, z 1 to 3, label 4 the same of x 5 to 6."""
    return make_arrays(labels=(1, 4))


@pytest.mark.parametrize("n_cases", [1, 2, 5])
def test_the_overview_tells_its_numbers_and_units(n_cases, make_data):
    table = check_cases(find_cases(make_data(n_cases)))
    figure = render(charts.cases_overview(table))
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
    figure = render(charts.cases_overview(check_cases(find_cases(folder))))
    assert [title.split("(")[1] for title in titles_of(figure)] == [*["n = 3)"] * 3, "n = 2)"]
    assert sum(bar.get_height() for bar in figure.axes[3].patches) == 2


def test_the_overview_is_drawn_also_if_there_is_no_mask_at_all(make_data):
    folder = make_data(2)
    for mask in (folder / "labelsTr").iterdir():
        mask.unlink()
    figure = render(charts.cases_overview(check_cases(find_cases(folder))))
    assert "n = 0" in titles_of(figure)[3]


@pytest.mark.parametrize("n_folds", [1, 9])
def test_learning_curves_have_training_dashed_and_validation_solid(n_folds):
    columns = [f"{v}{m}" for v in ("", "val_") for m in ("loss", "accuracy", "dice")]
    history = pd.DataFrame({"epoch": range(4), **{c: [0.1, 0.3, 0.5, 0.7] for c in columns}})
    history["val_dice"] = [NAN, 0.2, 0.2, 0.6]
    figure = render(charts.learning_curves({f"fold {k}": history for k in range(n_folds)}))
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


def test_the_overview_shows_small_volumes_and_spacings(write_case, make_arrays, tmp_path):
    spacing = (0.0004, 0.0004, 0.0008)
    found = [write_case(tmp_path, f"c{k}", *make_arrays(k), spacing) for k in range(3)]
    figure = render(charts.cases_overview(check_cases(found)))
    (bar,) = [bar for bar in figure.axes[3].patches if bar.get_height()]
    volume = 60 * 0.0004**2 * 0.0008 / 1000
    assert bar.get_x() < volume < bar.get_x() + bar.get_width() < 2 * volume
    assert figure.axes[1].get_ylim()[1] == pytest.approx(1.1 * 0.0008)


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
    figure = render(charts.score_boxes(scores_of([0.7, 0.8, 0.9], [1.0, 2.0, 4.0]), LABELS))
    names = ("Dice", "Hausdorff distance", "HD95")
    assert titles_of(figure) == [f"{name} (n = 3 cases)" for name in names]
    units = ["Dice, 0 to 1", "Hausdorff distance, mm", "HD95, mm"]
    assert [ax.get_ylabel() for ax in figure.axes] == units
    assert figure.axes[0].get_ylim()[1] == 1
    assert [ax.get_ylim()[0] for ax in figure.axes[1:]] == [0, 0]
    for ax in figure.axes:
        # Label by label, with a gap between them: cases 0 and 2, then case 1.
        assert ax.get_xticks().tolist() == [0, 1, 3, 4]
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1"] * 2
        assert ax.get_xlabel() == "fold"
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
    figure = render(charts.score_boxes(scores_of([0.5] * 6, distances), LABELS))
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
    figure = render(charts.score_boxes(scores_of(dice, distance), LABELS))
    names = {"Dice": lost[0], "Hausdorff distance": lost[1], "HD95": lost[1]}
    texts = {0: "", **{n: f"; {n} values are NaN or inf and not drawn" for n in (1, 2, 3)}}
    assert titles_of(figure) == [f"{name} (n = 3 cases{texts[n]})" for name, n in names.items()]
    drawn = [sum(len(points.get_offsets()) for points in ax.collections) for ax in figure.axes]
    assert drawn == [6 - n for n in names.values()]


def test_cases_without_a_label_do_not_speak_for_its_volumes():
    scores = scores_of([0.5] * 3, [1.0] * 3, [(10.0, 12.0), (0.0, 0.0), (30.0, 32.0)])
    front, _ = render(charts.volume_agreement(scores, LABELS)).axes
    assert front.get_title() == "front (n = 2)"
    assert front.get_legend().get_texts()[0].get_text() == "mean +2 ml"
    nothing = scores.assign(volume_true_ml=0.0, volume_pred_ml=0.0)
    assert titles_of(render(charts.volume_agreement(nothing, LABELS)))[0] == "front (n = 0)"


def test_labels_of_one_colour_have_different_markers():
    many = {number: f"label {number}" for number in range(1, 10)}
    looks = {(plots.colour_of(label, many), charts._marker_of(label, many)) for label in many}
    assert len(looks) == 9


def test_volumes_agree_with_a_mean_and_limits_by_hand():
    # Differences 2, -1, 2 ml: mean 1, variance (1 + 4 + 1) / 2 = 3, so 1 +- 1.96 * 1.732.
    scores = scores_of([0.5] * 3, [1.0] * 3, [(10.0, 12.0), (20.0, 19.0), (30.0, 32.0)])
    figure = render(charts.volume_agreement(scores, LABELS))
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
    figure = render(charts.dice_by_size(scores_of([0.7, 0.0, NAN], [1.0] * 3, volumes), LABELS))
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
    figure = render(charts.confusion(counts, n_cases=2))
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
    for draw in (charts.score_boxes, charts.volume_agreement, charts.dice_by_size):
        render(draw(scores, LABELS))


def test_reliability_is_drawn_against_a_line_with_the_voxels_below():
    columns = ("bin", "n", "confidence", "accuracy")
    tables = {
        "as trained": [(5, 400, 0.55, 0.4), (9, 1600, 0.97, 0.9)],
        "calibrated": [(5, 1000, 0.54, 0.5), (7, 400, 0.75, 0.77), (9, 600, 0.95, 0.95)],
    }
    tables = {name: pd.DataFrame(rows, columns=columns) for name, rows in tables.items()}
    errors = {"as trained": 0.086, "calibrated": 0.02412}
    figure = render(charts.reliability_curves(tables, errors))
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


def test_many_labels_stay_on_a_page_and_are_all_named():
    labels = {k: f"structure {k}" for k in range(1, 13)}
    few = scores_of([0.7, 0.8, 0.9], [1.0, 2.0, 4.0])
    scores = pd.concat([few[few["label"] == 1].assign(label=k) for k in labels])
    boxes = render(charts.score_boxes(scores, labels))
    assert boxes.get_figwidth() == charts.WIDEST
    for ax in boxes.axes:
        assert [tick.get_text() for tick in ax.get_xticklabels()] == ["0", "1"] * 12
        assert ax.get_xlabel() == "fold"
        (above,) = ax.child_axes
        assert [tick.get_text() for tick in above.get_xticklabels()] == [*labels.values()]
    volumes = render(charts.volume_agreement(scores, labels))
    assert titles_of(volumes) == [f"{name} (n = 3)" for name in labels.values()]
    assert volumes.get_figwidth() <= charts.WIDEST
    five = dict(list(labels.items())[:5])
    assert len(render(charts.volume_agreement(scores, five)).axes) == 5


def test_where_nothing_was_trained_or_measured_there_are_words():
    assert charts.learning_curves({}) == "Nothing to show."
    assert charts.reliability_curves({}, {}) == "Trained before this was counted."
