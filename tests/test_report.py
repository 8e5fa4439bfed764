"""The report of made scores, as text and as a browser shows it."""

import json
import re

import numpy as np
import pandas as pd
import pytest
from browser import open_in_browser

from unetseg._base import write_json
from unetseg.plots import view_case
from unetseg.report import write_report
from unetseg.run.layout import Run
from unetseg.scores import METRICS, compare, compare_with, summarise
from unetseg.splits import COLUMNS

LONG = "subject-{:03d}_session-2021-03-14_run-00001"  # 40 characters
NO_LEAKS = pd.DataFrame(columns=COLUMNS)
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010806000000"
    "1f15c4890000000d49444154789c636068f8ff1f0005830280"
    "a1ec2bd40000000049454e44ae426082"
)


def make_scores(n_cases=4, labels=("front", "back"), case="case_{:02d}", group="p{}"):
    rows = []
    rng = np.random.default_rng(0)
    for number in range(n_cases):
        for label, name in enumerate(labels, start=1):
            about = {"case": case.format(number), "group": group and group.format(number // 2)}
            about.update(fold=number % 2, label=label, name=name, tolerance_mm=1.0)
            rows.append({**about, **{metric: rng.uniform(0.5, 0.9) for metric in METRICS}})
    return pd.DataFrame(rows)


@pytest.fixture
def results(tmp_path):
    """What a training leaves, as far as the report reads it."""
    folder = tmp_path / "knees"
    (folder / "figures").mkdir(parents=True)
    settings = {
        "builder": "unetseg.model.build_unet",
        "model_args": {"filters": 16},
        "preprocessor": {
            "spacing_mm": [1.0, 1.0, 1.0],
            "patch": [40, 48, 40],
            "labels": {"1": "front", "2": "back"},
            "channels": 1,
            "normalisation": "zscore",
        },
        "recipe": {"epochs": 12, "precision": "auto"},
        "seed": 12345,
    }
    experiment = {"settings": settings, "precision": "float32", "batch_size": 1, "minutes": 38.4}
    experiment["hardware"] = {"processor": "Some CPU", "cores": 2, "gpu": None}
    (folder / "experiment.json").write_text(json.dumps(experiment))
    folds = [{"train": ["a"], "val": ["b"]}, {"train": ["b"], "val": ["a"]}]
    (folder / "splits.json").write_text(json.dumps(folds))
    for name in ("scores", "examples", "learning_curves"):
        (folder / "figures" / f"{name}.png").write_bytes(PIXEL)
    return folder


def write(results, table, **settings):
    settings = {"leaks": NO_LEAKS, **settings}
    return write_report(results, table, summarise(table), **settings).read_text(encoding="utf-8")


def words_of(page):
    text = re.sub(r"</?span[^>]*>", "", page.partition("<body>")[2])
    return " ".join(re.sub(r"<[^>]+>", " ", text).split())


def test_controls_are_told(results):
    table = make_scores()
    assert "controls" not in words_of(write(results, table))
    healthy = table["case"] == table["case"].iloc[0]
    table.loc[healthy, ["volume_true_ml", "volume_pred_ml"]] = 0.0, 0.25
    volume = f"{0.25 * healthy.sum():g}"
    said = f"1 controls: in 1 something is drawn ({volume} ml): {table['case'].iloc[0]}."
    assert said in words_of(write(results, table))


def test_it_begins_with_what_was_trained_on_what_and_how_good_it_is(results):
    table = make_scores()
    words = words_of(write(results, table))
    first = words.index("4 cases of 2 patients in 2 folds; labels: front, back.")
    second = words.index("A 3-D U-Net on patches of 40 x 48 x 40 voxels, 12 epochs, 38 minutes")
    assert "on 2 cores of Some CPU." in words
    front = table[table["name"] == "front"]
    third = words.index(f"front {front['dice'].mean():.3f}")
    order = ["Where does it fail?", "Volumes", "Every case", "Appendix: settings"]
    places = [first, second, third, *map(words.index, order)]
    assert places == sorted(places)


def test_it_says_where_only_the_largest_piece_counts(results):
    table = make_scores(3)
    table["largest"] = (table["label"].eq(2) & table["case"].ne("case_02")).astype(int)
    words = words_of(write(results, table))
    assert "Only the largest piece counts of back (in 2 of the cases), as the other folds" in words


def test_every_case_is_listed_with_its_main_scores(results):
    table = make_scores(3)
    page = write(results, table)
    last = page[page.index("Every case") :]
    for row in table.itertuples():
        assert re.search(rf">{row.case}</td><td[^>]*>{row.fold}</td>.*{row.dice:.3f}", last)


def test_what_has_no_number_and_what_was_missed_is_counted_and_named(results):
    table = make_scores(4)
    table.loc[0, ["dice", "hd95_mm"]] = 0, np.inf  # case_00, front
    table.loc[2, ["dice", "hd95_mm"]] = np.nan  # case_01, front: in neither mask
    page = write(results, table)
    words = words_of(page)
    assert "A Dice of 0 (missed, invented or nowhere overlapping): case_00 (front)." in words
    row = re.search(r"<td[^>]*>front</td>(.*?)</tr>", page)[1]
    dice, _, n_dice, distance, _, n_distance, *counts = re.findall(r">([^<]*)</td>", row)
    front = table[table["name"] == "front"].set_index("case")
    scored = front.loc[["case_00", "case_02", "case_03"], "dice"]  # one of them 0
    assert (dice, n_dice) == (f"{scored.mean():.3f} ({scored.std():.3f})", "3")
    measured = front.loc[["case_02", "case_03"], "hd95_mm"].mean()
    assert (distance.split()[0], n_distance) == (f"{measured:.3g}", "2")
    assert counts == ["1", "1", "1"]  # in neither, in one only, failures
    assert "inf" not in words.lower().replace("information", "")


def test_leaks_and_simulated_brains_are_said_on_the_first_page(results):
    leaks = pd.DataFrame([("identical scan", "a", "b", 0, "the same")], columns=COLUMNS)
    words = words_of(write(results, make_scores(), leaks=leaks, simulated=True))
    assert words.index("simulated brains") < words.index("1 leak found") < words.index("Volumes")
    assert "No leak found" not in words
    assert "simulated" not in words_of(write(results, make_scores()))


def test_what_strangers_named_stays_text(results):
    evil = "<script>alert(1)</script>"
    page = write(results, make_scores(2, labels=(evil, "b & c"), case="<b>{}</b>"))
    assert "<script>alert" not in page
    assert "<b>0" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_without_patients_it_says_cases(results):
    words = words_of(write(results, make_scores(group=None)))
    assert "4 cases in 2 folds" in words
    assert "95 % interval of the mean over cases, as the patients are not known." in words


def test_a_case_of_an_unknown_patient_counts_as_one(results):
    table = make_scores(4)
    table.loc[table["case"] == "case_03", "group"] = None
    words = words_of(write(results, table))
    assert "4 cases of 3 patients" in words  # p0, p1 and one more
    assert "95 % interval of the mean over patients." in words


def test_masks_that_were_corrected_since_training_are_named(results):
    table = make_scores()
    assert "corrected" not in words_of(write(results, table))
    table["mask"] = ["corrected since"] * 2 + ["as in training"] * 6
    words = words_of(write(results, table))
    assert "Masks that were corrected since training: case_00." in words


def test_the_viewer_is_not_cut_off(results, make_arrays, affine, tmp_path):
    image, mask = make_arrays()
    labels = {1: "front", 2: "back"}
    viewer = view_case(image, affine, mask, np.roll(mask, 1, axis=1), labels)
    page = write(results, make_scores(), viewer=viewer, title="worst: a")
    [frame] = open_in_browser(page, tmp_path)["frames"]
    assert frame["width"] <= 0
    assert len(frame["canvases"]) == 1
    assert frame["fetched"] == []
    assert "<iframe" not in write(results, make_scores(), viewer="Nothing to show.")


def test_another_experiment_is_compared_only_if_there_is_one(results):
    table = make_scores()
    assert "Compared with" not in write(results, table, compared="No COMPARE_WITH is set.")
    other = table.assign(dice=table["dice"] - 0.1)
    page = write(results, table, compared=compare_with(other, table, ("flat", "knees")))
    part = page[page.index("Compared with") :]
    assert re.search(r">flat</th>\s*<th[^>]*>knees</th>", part)
    assert re.search(r">front</td><td[^>]*>Dice</td>.*>0\.100<", part)


def test_the_weights_that_training_started_from_are_told(results):
    run, table = Run(results), make_scores()
    write_json(run.start, {"from": "ankles"})  # noted, but not yet trained
    assert "ankles" not in write(results, table)
    experiment = json.loads(run.experiment.read_text())
    experiment["settings"]["starts"] = ["a hash", "another"]
    write_json(run.experiment, experiment)
    assert "on 2 cores of Some CPU, from the weights of ankles." in words_of(write(results, table))
    run.start.unlink()  # as after `cross_validate(start_from=...)`
    assert "from the weights of an earlier experiment." in words_of(write(results, table))


def test_lesions_are_counted_where_they_were_asked_for(results):
    table = make_scores()
    assert "<h2>Lesions</h2>" not in write(results, table)
    columns = "case,group,fold,label,name,lesion,volume_ml,iou,overlap,least_ml"
    rows = ["all,,0,1,spot,found,2,0.7,0.5,0.1", "all,,0,1,spot,missed,1,0,0.5,0.1"]
    rows += ["b,,0,1,spot,false,1,0,0.5,0.1", "c,,0,1,spot,,0,0,0.5,0.1"]
    (results / "lesions.csv").write_text("\n".join([columns, *rows]))
    (results / "figures/lesions.png").write_bytes(PIXEL)
    page = write(results, table)
    before, _, after = words_of(page).partition(" A lesion is ")
    assert before.endswith("spot 3 2 1 1 1 0.500 0.500 0.500 2 1")
    assert "by 0.5 (IoU) or more. Share of the true lesions" in after


def test_figures_that_are_not_there_are_left_out(results):
    page = write(results, make_scores())
    assert page.count("<img") == 3
    assert len(re.findall(r'<img[^>]* alt="[^"]+"', page)) == 3
    assert words_of(page).count("n = 4 cases.") == 2
    assert words_of(page).count("n = 2 folds.") == 1


MANY = [f"structure {number} of the brain" for number in range(12)]


def test_an_older_picture_of_single_cases_is_not_shown_as_one_of_these_scores(results):
    assert "or else the worst one" in write(results, make_scores())
    assert "or else the worst one" not in write(results, make_scores(), examples=False)


@pytest.mark.parametrize(
    ("case", "labels"),
    [
        ("case_{:02d}", ("front", "back")),
        (LONG, MANY),
    ],
)
def test_nothing_is_wider_than_the_page_and_nothing_is_fetched(case, labels, results, tmp_path):
    table = make_scores(30, labels, case)
    leaks = pd.DataFrame([("one patient", *table["case"].unique()[:2], 0, "p")], columns=COLUMNS)
    page = write(results, table, leaks=leaks, compared=compare(table, table))
    seen = open_in_browser(page, tmp_path)
    assert seen["width"] <= 0  # at 1100 pixels
    assert seen["fetched"] == []
    assert seen["frames"] == []
    printed = page.replace("@media print", "@media all")
    paper = open_in_browser(printed, tmp_path, width=695)  # 180 mm, and a bar
    assert paper["width"] <= 0


def test_many_failures_do_not_push_the_figures_away(results):
    table = make_scores(30)
    table.loc[table["name"] == "front", "dice"] = 0
    words = words_of(write(results, table))
    named = words[words.index("A Dice of 0") : words.index("All scores")]
    assert re.findall(r"case_\d\d", named) == [f"case_{number:02d}" for number in range(20)]
    assert "and 10 more cases." in named


def test_what_is_of_the_last_digits_of_sums_is_no_deviation(results):
    table = make_scores()
    table["hd95_mm"] = [3.0, 3.0000001] * 4
    assert re.search(r">3 \(0\)</td>", write(results, table))


@pytest.mark.parametrize(("n_labels", "beside"), [(4, True), (5, False)])
def test_figures_stand_beside_one_another_if_they_can_be_read_so(n_labels, beside, results):
    page = write(results, make_scores(4, MANY[:n_labels]))
    assert ('<div class="pair">' in page) is beside


def test_the_calibration_is_shown_where_it_was_counted(results):
    (results / "figures" / "calibration.png").write_bytes(PIXEL)  # of something else
    assert "Is it as sure" not in write(results, make_scores())
    columns = ("stage", "bin", "n", "confidence", "accuracy")
    rows = [("as trained", 5, 400, 0.55, 0.4), ("as trained", 9, 1600, 0.97, 0.9)]
    for number in range(2):
        fold = Run(results).fold(number)
        fold.calibration.parent.mkdir()
        pd.DataFrame(rows, columns=columns).to_csv(fold.calibration, index=False)
        fold.done.write_text("{}")
    words = words_of(write(results, make_scores()))
    assert words.index("Labels taken") < words.index("Is it as sure") < words.index("How the")
    assert "n = 4,000 voxels." in words
