"""Two experiments averaged, fold by fold, and used as one."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from training_helpers import SETTINGS, content

from unetseg import averaging, sharing
from unetseg.inference import load_models, predict_scans
from unetseg.metrics import dice
from unetseg.nifti import load_mask
from unetseg.prediction import predict_case
from unetseg.preprocessing import Preprocessor
from unetseg.run.layout import Run
from unetseg.scores import score_predictions
from unetseg.training import cross_validate

LABELS = {1: "label 1", 4: "label 4"}


@pytest.fixture(scope="module")
def flat(cases, tmp_path_factory):
    """The cases of `run`, trained on in slices."""
    folder = tmp_path_factory.mktemp("flat") / "flat"
    cross_validate(cases, folder, **SETTINGS | {"preprocessor": Preprocessor(patch=(8, 16, 1))})
    return folder


@pytest.fixture(scope="module")
def averaged(run, flat, cases, tmp_path_factory):
    folder = tmp_path_factory.mktemp("averaged") / "both"
    return folder, averaging.average([run.results, flat], folder, cases)


def parents(folder):
    return [Run(folder / "parents" / name) for name in ("results", "flat")]


def test_each_fold_gets_what_was_chosen_by_the_dice_of_the_other_folds(averaged, run, flat, cases):
    folder, table = averaged
    chosen = json.loads((folder / "average.json").read_text())
    masks = {case.id: load_mask(case.mask)[0] for case in cases}
    by_id = {case.id: case for case in cases}
    means = []
    for number, parts in enumerate(run.folds):
        rows = {"results": [], "flat": [], "average": []}
        for case_id in parts["val"]:
            each = []
            for parent in parents(folder):
                own = Preprocessor.load(parent.preprocessor)
                models = load_models(parent.folder, folds=[number])
                each.append(predict_case(models, by_id[case_id], own).probabilities)
            kinds = dict(zip(rows, [*each, sum(each) / 2], strict=True))
            for name, probabilities in kinds.items():
                labels = np.array([0, 1, 4])[probabilities.argmax(axis=-1)]
                rows[name] += [dice(masks[case_id] == v, labels == v) for v in LABELS]
                if name == chosen["folds"][number]:
                    kept, _ = load_mask(folder / "predictions" / f"{case_id}.nii.gz")
                    np.testing.assert_array_equal(kept, labels)
        means.append({name: np.nanmean(values) for name, values in rows.items()})
    assert table["fold"].tolist() == ["0", "1", "new scans"]
    for number, other in ((0, 1), (1, 0)):
        for name, mean in means[other].items():
            assert table.loc[number, name] == pytest.approx(mean)
        assert chosen["folds"][number] == table.loc[number, "chosen"]
    said = averaging.describe(table)
    assert f"for new scans {chosen['new_scans']}." in said


# Of four cases: (average, one, other).
ALIKE = [(0.80, 0.83, 0.70), (0.82, 0.80, 0.75), (0.81, 0.83, 0.60), (0.79, 0.78, 0.80)]
BETTER = [(0.80, 0.83, 0.70), (0.82, 0.84, 0.75), (0.81, 0.83, 0.60), (0.79, 0.80, 0.80)]
BOTH = [(0.80, 0.83, 0.84), (0.82, 0.84, 0.86), (0.81, 0.83, 0.83), (0.79, 0.80, 0.83)]


@pytest.mark.parametrize(
    ("dices", "chosen"),
    [
        (ALIKE, "average"),  # one has 0.005 more, with a standard error of 0.012
        (BETTER, "one"),  # 0.02 more, with 0.004
        (BETTER[:1], "average"),  # which nobody can tell by a single case
        (BOTH, "other"),
        ([(0.80, 0.83, 0.7), (np.nan,) * 3, *BETTER[1:]], "one"),
    ],
)
def test_an_experiment_is_chosen_alone_only_if_it_is_clearly_better(dices, chosen, tmp_path):
    names = ("average", "one", "other")
    rows = [
        (case, name, value)
        for case, values in enumerate(dices)
        for name, value in zip(names, values, strict=True)
    ]
    scores = pd.DataFrame(rows, columns=["case", "name", "dice"])
    row = averaging._choose(scores, averaging.Drafts(Run(tmp_path), names[1:], tmp_path))
    assert row == {**scores.groupby("name")["dice"].mean(), "chosen": chosen}


def test_an_average_is_an_experiment_like_any_other(averaged, run, cases, tmp_path):
    folder, _ = averaged
    scores = score_predictions(cases, folder / "predictions", run.folds, LABELS)
    assert len(scores) == 8
    settings = json.loads((folder / "experiment.json").read_text())["settings"]
    assert settings["parents"] == ["results", "flat"]
    with pytest.raises(ValueError, match="other settings"):
        cross_validate(cases, folder, **SETTINGS)
    digest = sharing.pack(folder, tmp_path / "both.tar")
    there = sharing.unpack(tmp_path / "both.tar", tmp_path / "there", digest)
    table = predict_scans(cases[:1], there, tmp_path / "out")
    assert table["problem"].tolist() == ["", ""]
    card = (there / "MODEL_CARD.md").read_text()
    assert "**Average** of two experiments, results and flat" in card


@pytest.mark.parametrize(
    ("chosen", "used", "networks"),
    [
        ("average", "results and flat", "two networks each. The weights of 4"),
        ("flat", "flat", "one network each. The weights of 2"),
    ],
)
def test_the_card_of_an_average_tells_what_segments_new_scans(
    averaged, tmp_path, chosen, used, networks
):
    run = Run(shutil.copytree(averaged[0], tmp_path / "both"))
    decided = json.loads(run.average.read_text())
    run.average.write_text(json.dumps(decided | {"new_scans": chosen}))
    card = sharing.write_model_card(run.folder).read_text()
    assert f"new scans are segmented by {used} (in parents/)" in card
    assert networks in card
    assert ("2-D, on slices" in card) is (chosen == "flat")


@pytest.mark.parametrize("chosen", ["average", "flat"])
def test_new_scans_get_the_mean_of_all_probabilities_or_those_chosen(
    averaged, cases, tmp_path, chosen
):
    folder, _ = averaged
    run = Run(tmp_path / "both")
    shutil.copytree(folder, run.folder)
    decided = json.loads(run.average.read_text())
    run.average.write_text(json.dumps(decided | {"new_scans": chosen}))
    scan = replace(cases[0], mask=None)
    table = predict_scans([scan], run.folder, tmp_path / "out", maps=["probabilities"])
    names = ["results", "flat"] if chosen == "average" else [chosen]
    total = 0
    for name in names:
        parent = Run(run.parents / name)
        own = Preprocessor.load(parent.preprocessor)
        total = total + predict_case(load_models(parent.folder), scan, own).probabilities
    expected = np.array([0, 1, 4])[(total / len(names)).argmax(axis=-1)]
    labels, _ = load_mask(tmp_path / "out/labels/c0.nii.gz")
    np.testing.assert_array_equal(labels, expected)
    assert table["problem"].tolist() == ["", ""]
    note = json.loads((tmp_path / "out/done/c0.json").read_text())
    assert len(note["about"]["models"]) == 2 * len(names)


def test_what_is_there_is_not_made_again_nor_replaced(averaged, run, flat, cases):
    folder, table = averaged
    before = content(folder)
    again = averaging.average([run.results, flat], folder, cases)
    assert again["chosen"].tolist() == table["chosen"].tolist()
    assert content(folder) == before
    with pytest.raises(
        ValueError, match="results_dir must be the average of these as they are now"
    ):
        averaging.average([flat, run.results], folder, cases)
    with pytest.raises(
        ValueError, match="results_dir must be the average of these as they are now"
    ):
        averaging.average([flat, folder], run.results, cases)


def test_an_average_tells_the_leaks_of_both_and_asks_for_the_scans(copy, flat, cases, tmp_path):
    other = shutil.copytree(flat, tmp_path / "other")
    columns = "kind,case,other,fold,detail"
    (copy / "leaks.csv").write_text(f"{columns}\none patient,c0,c1,0,patient p\n")
    (other / "leaks.csv").write_text(f"{columns}\ntrained on before,c2,c2,1,by x\n")
    without = [replace(case, image=None) for case in cases]
    with pytest.raises(ValueError, match=r"DATA: 4 no scan of cases: c0, c1, c2, c3\. Point"):
        averaging.average([copy, other], tmp_path / "both", without)
    assert not (tmp_path / "both").exists()
    averaging.average([copy, other], tmp_path / "both", cases)
    assert (tmp_path / "both/leaks.csv").read_text().splitlines()[1:] == [
        "one patient,c0,c1,0,patient p",
        "trained on before,c2,c2,1,by x",
    ]


def test_without_any_dice_there_is_an_average_all_the_same(averaged, run, flat, cases, tmp_path):
    folder = shutil.copytree(averaged[0], tmp_path / "both")
    content = json.loads((folder / "average.json").read_text())
    names = ["results", "flat", "average"]
    scores = pd.DataFrame({"case": "c0", "name": names, "dice": np.nan})
    row = averaging._choose(scores, averaging.Drafts(Run(folder), ("results", "flat"), tmp_path))
    assert row["chosen"] == "average"
    content["table"][-1] |= {"results": None, "flat": None, "average": None}
    (folder / "average.json").write_text(json.dumps(content))
    table = averaging.average([run.results, flat], folder, cases)
    assert table.iloc[-1][["results", "flat", "average"]].isna().all()
    assert "Mean Dice: results nan" in averaging.describe(table)


def test_too_little_memory_for_both_is_told_before_a_case_is_predicted(
    run, flat, cases, tmp_path, monkeypatch
):
    monkeypatch.setattr(averaging.machine, "available_bytes", lambda: 1000)
    monkeypatch.setattr(averaging.processes, "call_apart", lambda *_: 1 / 0)
    said = r"c\d, predicted by two experiments at once: predicting it takes about .* are free"
    with pytest.raises(ZeroDivisionError), pytest.warns(UserWarning, match=said):
        averaging.average([run.results, flat], tmp_path / "new", cases)


def test_only_experiments_of_one_kind_are_averaged(copy, flat, run, cases, tmp_path):
    with pytest.raises(ValueError, match="two experiments of different names"):
        averaging.average([flat, flat], tmp_path / "new", cases)
    (copy / "splits.json").write_text(json.dumps(run.folds[::-1]))
    with pytest.raises(ValueError, match="of the same folds"):
        averaging.average([copy, flat], tmp_path / "new", cases)
    (copy / "splits.json").write_text(json.dumps(run.folds))
    (copy / "fold_1/done.json").unlink()
    with pytest.raises(FileNotFoundError, match="fold_1 is not finished"):
        averaging.average([copy, flat], tmp_path / "new", cases)
    assert not (tmp_path / "new").exists()
