import math

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from scipy import ndimage

from unetseg.cases import Case, check_cases, find_cases
from unetseg.reading.intensities import describe
from unetseg.reliability import (
    calibration_table,
    compare_with_training,
    describe_votes,
    expected_calibration_error,
    fit_temperature,
    flag,
    pool_calibration,
    sample_voxels,
    soften,
)
from unetseg.scores import list_means

LABELS = {1: "front", 4: "back"}
NAN = float("nan")


def scan(case="a", shape=(100, 100, 100), spacing=(1.5, 1.5, 1.5), stored="RAS", **other):
    """A row as of `check_cases`, in the middle of what `trained` holds."""
    row = {"case": case, "shape": shape, "spacing_mm": spacing, "orientation": stored}
    row |= {"channels": 1, "intensity_p1": 0.0, "intensity_median": 60.0, "intensity_p99": 150.0}
    return row | {"problem": ""} | other


@pytest.fixture
def trained():
    """Spacing 1 to 2 mm, field of view 100 to 200 mm, brightness 100 to 200, contrast 0.3, 0.5."""
    fine = scan("t1", spacing=(1.0, 1.0, 1.0), intensity_median=30.0, intensity_p99=100.0)
    coarse = scan("t2", spacing=(2.0, 2.0, 2.0), stored="LAS")
    coarse |= {"intensity_median": 100.0, "intensity_p99": 200.0}
    return pd.DataFrame([fine, coarse]).assign(volume_ml=[2.0, 6.0])


MM = "mm, along"
DEVIATIONS = {
    "finer": (
        {"spacing": (0.89, 1.5, 1.5), "shape": (170, 100, 100)},
        f"spacing, {MM} x is 0.89, trained on 1 to 2.",
    ),
    "coarser": (
        {"spacing": (1.5, 1.5, 2.21), "shape": (100, 100, 60)},
        f"spacing, {MM} z is 2.21, trained on 1 to 2.",
    ),
    "cut": ({"shape": (100, 53, 100)}, f"field of view, {MM} y is 79.5, trained on 100 to 200."),
    "wide": ({"shape": (170, 100, 100)}, f"field of view, {MM} x is 255, trained on 100 to 200."),
    "dark": (
        {"intensity_median": 19.6, "intensity_p99": 49.0},
        "brightness is 49, trained on 100 to 200.",
    ),
    "bright": (
        {"intensity_median": 493.6, "intensity_p99": 1234.0},
        "brightness is 1230, trained on 100 to 200.",
    ),
    "flat": ({"intensity_median": 28.5}, "contrast is 0.19, trained on 0.3 to 0.5."),
    "steep": ({"intensity_median": 91.5}, "contrast is 0.61, trained on 0.3 to 0.5."),
    "channels": ({"channels": 3}, "number of channels is 3, trained on 1 to 1."),
    "turned": (
        {"stored": "LPS"},
        "voxels are stored as LPS, in training as LAS, RAS: check left and right.",
    ),
}


@pytest.mark.parametrize("kind", DEVIATIONS)
def test_what_lies_outside_of_the_trained_range_is_told_alone_and_with_its_numbers(kind, trained):
    change, words = DEVIATIONS[kind]
    found = compare_with_training(pd.DataFrame([scan("a"), scan("b", **change)]), trained)
    assert found.to_dict() == {"a": "", "b": words}


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"spacing": (0.91, 1.5, 2.19)},  # 1 to 2 and a tenth
        {"shape": (54, 100, 166)},  # 81 and 249 mm: 100 to 200 and a quarter
        {"intensity_median": 20.4, "intensity_p99": 51.0},
        {"intensity_median": 156.0, "intensity_p99": 390.0},
        {"intensity_median": 31.5},  # contrast 0.21
        {"intensity_median": 88.5},  # 0.59
        {"stored": "LAS"},
    ],
)
def test_nothing_is_told_inside_the_margins(change, trained):
    assert compare_with_training(pd.DataFrame([scan(**change)]), trained).tolist() == [""]


def test_all_that_differs_is_told_of_every_scan_in_their_order(trained):
    changes = (DEVIATIONS[kind] for kind in ("coarser", "dark", "turned"))
    together, words = {}, []
    for change, told in changes:
        together |= change
        words.append(told)
    rows = [scan("007", **together), scan("b"), scan("a", **DEVIATIONS["cut"][0])]
    found = compare_with_training(pd.DataFrame(rows), trained)
    assert found.to_dict() == {"007": " ".join(words), "b": "", "a": DEVIATIONS["cut"][1]}
    assert list(found.index) == ["007", "b", "a"]


def test_tables_from_memory_and_from_a_file_tell_the_same(make_data, tmp_path):
    folder = make_data(3)
    table = check_cases(find_cases(folder))
    table.to_csv(tmp_path / "cases.csv", index=False)
    again = pd.read_csv(tmp_path / "cases.csv")
    assert again.loc[0, "shape"] == "(8, 10, 6)"
    assert compare_with_training(table, again).tolist() == [""] * 3
    # Half of the voxels along x, and twice as large ones along z.
    odd = table.assign(shape=[(4, 10, 6)] * 3, spacing_mm=[(1.0, 2.0, 6.0)] * 3)
    odd.to_csv(tmp_path / "odd.csv", index=False)
    expected = f"spacing, {MM} z is 6, trained on 3 to 3. field of view, {MM} x is 4, trained on 8"
    for new in (odd, pd.read_csv(tmp_path / "odd.csv")):
        for known in (table, again):
            found = compare_with_training(new, known)
            assert list(found.index) == ["case_00", "case_01", "case_02"]
            for words in found:
                assert words.count("trained on") == 3
                assert all(part in words for part in expected.split(". "))
                assert f"field of view, {MM} z is 36, trained on 18 to 18." in words


# Intensities of a body in a flat background, as of five tissues: how many voxels, how bright.
T1 = [(0.1, 150), (0.2, 500), (0.3, 600), (0.3, 900), (0.1, 950)]
T2 = [(0.1, 1000), (0.3, 500), (0.3, 600), (0.25, 700), (0.05, 1300)]
T1_AFTER = [(share, 1.03 * value) for share, value in T1]


def body(seed, *sequences, unit=1.0):
    """Two-thirds of a cube are body; channels in units of their own, smooth, with some noise."""
    rng = np.random.default_rng(seed)
    channels = []
    tissue = ndimage.gaussian_filter(rng.normal(size=(24, 24, 24)), 2)
    rank = tissue.argsort(axis=None).argsort().reshape(tissue.shape) / tissue.size
    for sequence in sequences:
        shares, values = np.transpose(sequence)
        kind = np.minimum(np.searchsorted(shares.cumsum(), rank), len(shares) - 1)
        scan = values[kind] * rng.uniform(0.97, 1.03, len(values))[kind]
        scan = (scan + rng.normal(0, 20, scan.shape)) * unit * rng.uniform(0.8, 1.25)
        scan[:, :, :8] = 0
        channels.append(scan.astype(np.float32))
    return np.stack(channels)


def multichannel(seed, *sequences, **kwargs):
    channels = body(seed, *sequences, **kwargs)
    return scan(f"{seed}", channels=len(channels)) | describe(channels)


@pytest.fixture(scope="module")
def two_sequences():
    return pd.DataFrame([multichannel(seed, T1, T2) for seed in range(6)]).assign(volume_ml=2.0)


def test_channels_in_the_order_of_training_are_not_told(two_sequences):
    new = pd.DataFrame([multichannel(seed, T1, T2) for seed in range(10, 22)])
    assert compare_with_training(new, two_sequences).tolist() == [""] * 12


@pytest.mark.parametrize("unit", [0.1, 1, 1.5, 40])
def test_channels_that_are_exchanged_are_told_whatever_their_unit(unit, two_sequences):
    new = pd.DataFrame([multichannel(seed, T2, T1, unit=unit) for seed in range(10, 16)])
    for words in compare_with_training(new, two_sequences):
        assert "channels 1 and 2 look exchanged: check their order." in words


def test_the_channel_that_is_unlike_those_of_training_is_named(two_sequences):
    channels = body(10, T1, T2)
    channels[1] *= 5
    row = scan("a", channels=2) | describe(channels)
    (words,) = compare_with_training(pd.DataFrame([row]), two_sequences)
    high = float(np.percentile(channels[1][channels[1] != 0], 99))
    assert words.startswith("brightness of channel 2 is ")
    assert float(words.split()[5].rstrip(",")) == pytest.approx(high, rel=0.01)
    assert "channel 1" not in words


def test_of_three_channels_the_order_they_belong_in_is_told():
    bright = [(0.5, 100), (0.4, 200), (0.1, 9000)]
    order = [T1, T2, bright]
    known = pd.DataFrame([multichannel(seed, *order) for seed in range(5)])
    for moved, told in (([1, 2, 0], "3, 1, 2"), ([2, 0, 1], "2, 3, 1")):
        row = multichannel(9, *[order[k] for k in moved])
        (words,) = compare_with_training(pd.DataFrame([row]), known)
        assert f"channels look as if they belonged in the order {told}: check it." in words
    (words,) = compare_with_training(pd.DataFrame([multichannel(9, bright, T2, T1)]), known)
    assert "channels 1 and 3 look exchanged" in words


def test_channels_of_one_kind_are_not_told_apart():
    known = pd.DataFrame([multichannel(seed, T1, T1_AFTER) for seed in range(6)])
    new = pd.DataFrame([multichannel(seed, T1_AFTER, T1) for seed in range(10, 20)])
    assert compare_with_training(new, known).tolist() == [""] * 10


def test_channels_are_compared_from_a_file_and_with_one_of_an_earlier_version(
    two_sequences, tmp_path
):
    new = pd.DataFrame([multichannel(10, T2, T1)])
    told = compare_with_training(new, two_sequences)
    two_sequences.to_csv(tmp_path / "cases.csv", index=False)
    again = pd.read_csv(tmp_path / "cases.csv")
    pd.testing.assert_series_equal(compare_with_training(new, again), told)
    old = again.drop(columns=["intensities", "smoothness"])
    assert compare_with_training(new, old).tolist() == [""]  # pooled they are alike
    assert compare_with_training(old, two_sequences).tolist() == [""] * 6
    # Of a scan that could not be read nothing is known.
    unread = {**dict.fromkeys(new.columns), "case": "x", "problem": "cut."}
    pair = pd.DataFrame([multichannel(10, T2, T1), unread]).astype({"smoothness": float})
    assert compare_with_training(pair, again).tolist() == [told.iloc[0], ""]


def test_a_scan_of_noise_is_told(trained):
    known = trained.assign(smoothness=[0.7, 0.9])
    rows = [scan(f"{value}", smoothness=value) for value in (0.01, 0.49, 0.51, 0.8, 0.99, NAN)]
    found = compare_with_training(pd.DataFrame(rows), known).tolist()
    assert found[0] == "smoothness (0 is noise) is 0.01, trained on 0.7 to 0.9."
    assert [bool(words) for words in found] == [True, True, False, False, False, False]
    assert compare_with_training(pd.DataFrame(rows), trained).tolist() == [""] * 6


def test_noise_is_told_from_a_scan_by_its_voxels(write_case, tmp_path, make_arrays):
    rng = np.random.default_rng(0)
    mask = make_arrays(shape=(20, 20, 20))[1]
    for k in range(4):
        smooth = 100 + 400 * ndimage.gaussian_filter(rng.normal(size=(20, 20, 20)), 2)
        write_case(tmp_path, f"c{k}", smooth.astype(np.float32), mask)
    files = sorted(tmp_path.glob("c*_image.nii.gz"))
    known = check_cases(
        [Case(f.name[:2], f, f.with_name(f"{f.name[:2]}_mask.nii.gz")) for f in files]
    )
    values = np.asarray(nib.load(files[0]).dataobj).ravel()
    shuffled = rng.permutation(values).reshape(20, 20, 20)  # the same histogram
    new = check_cases([write_case(tmp_path, "noise", shuffled)], need_masks=False)
    (words,) = compare_with_training(new, known)
    assert words.startswith("smoothness (0 is noise) is ")
    assert words.count("trained on") == 1
    assert compare_with_training(known, known).tolist() == [""] * 4


@pytest.mark.parametrize("size_mm", [0.05, 0.0004, 4e-5])
def test_small_voxels_and_volumes_are_compared_as_large_ones(size_mm, tmp_path):
    ml = 27 * size_mm**3 / 1000
    known = pd.DataFrame([scan(k, spacing=(size_mm,) * 3) for k in "ab"]).assign(volume_ml=ml)
    known.to_csv(tmp_path / "cases.csv", index=False)
    for trained in (known, pd.read_csv(tmp_path / "cases.csv")):
        new = pd.DataFrame([scan("a", spacing=(1.05 * size_mm,) * 3)])
        assert compare_with_training(new, trained).tolist() == [""]
        new = pd.DataFrame([scan("a", spacing=(1.3 * size_mm,) * 3)])
        (words,) = compare_with_training(new, trained)
        assert words.count("spacing, mm") == 3
        for factor, told in ((1, False), (1.9, False), (2.1, True), (0.4, True)):
            part = predicted("a", front=(factor * ml / 2, 0.9), back=(factor * ml / 2, 0.9))
            (row,) = flagged(trained, part).to_dict("records")
            assert ("ml are labelled" in row["look_at"]) == told


def test_what_an_earlier_version_rounded_to_nothing_is_not_compared():
    old = pd.DataFrame([scan("t", spacing=(0.0, 0.0, 0.001))]).assign(volume_ml=0.0)
    new = pd.DataFrame([scan("a", spacing=(0.0004, 0.0004, 0.001))])
    assert compare_with_training(new, old).tolist() == [""]
    (row,) = flagged(old, predicted("a", front=(1e-9, 0.9), back=(1e-9, 0.9))).to_dict("records")
    assert row["look_at"] == ""


@pytest.mark.parametrize("others", [True, False])
def test_of_a_scan_that_cannot_be_read_nothing_is_told(others, make_data, trained):
    folder = make_data(2)
    for case in ("case_00", "case_01")[: 1 if others else 2]:
        (folder / "imagesTr" / f"{case}.nii.gz").write_bytes(b"<html>")
    table = check_cases(find_cases(folder), need_masks=False)
    found = compare_with_training(table, trained)
    assert found["case_00"] == ""
    assert bool(found["case_01"]) is others  # of 8 x 20 x 18 mm


def test_one_training_case_is_a_range_too(trained):
    found = compare_with_training(pd.DataFrame([scan(spacing=(1.15, 1, 1))]), trained[:1])
    assert f"spacing, {MM} x is 1.15, trained on 1 to 1. contrast is 0.4" not in found["a"]
    assert f"spacing, {MM} x is 1.15, trained on 1 to 1." in found["a"]
    assert "field of view" not in found["a"]


def test_negative_intensities_have_margins_too(trained):
    levels = {"intensity_p1": -1000.0, "intensity_median": -600.0}
    known = trained.assign(**levels, intensity_p99=[-100.0, -50.0])
    new = [
        scan(str(p99), **levels, intensity_p99=p99) for p99 in (-160.0, -140.0, -75.0, -1.0, 9.0)
    ]
    found = compare_with_training(pd.DataFrame(new), known)
    assert [bool(words) for words in found] == [True, False, False, False, True]
    assert found["9.0"] == "brightness is 9, trained on -100 to -50."


def test_votes_are_described_as_counted_by_hand():
    # Boxes of 4, 4 and 6 by 2 voxels of 6 mm3 (1 x 2 x 3 mm).
    votes = np.zeros((3, 10, 6, 5), np.uint8)
    for model, (start, stop) in zip(votes, ((2, 6), (4, 8), (2, 8)), strict=True):
        model[start:stop, 3:5, 4] = 2
    front, back = describe_votes(votes, LABELS, voxel_ml=0.006)
    assert (back["label"], back["name"]) == (4, "back")
    # Dice: 2 * 4 / (8 + 8), 2 * 8 / (8 + 12) and the same.
    assert back["agreement"] == pytest.approx((0.5 + 0.8 + 0.8) / 3)
    volumes = [back[f"volume_{of}_ml"] for of in ("mean", "sd", "min", "max")]
    # 0.048, 0.048, 0.072: differences from the mean -0.008, -0.008, 0.016
    assert volumes == pytest.approx([0.056, math.sqrt(384e-6 / 2), 0.048, 0.072])
    assert (front["label"], front["name"]) == (1, "front")  # in no vote
    assert math.isnan(front["agreement"])
    assert [front[f"volume_{of}_ml"] for of in ("mean", "sd", "min", "max")] == [0] * 4


def test_a_label_that_one_model_alone_finds_is_no_agreement():
    votes = np.zeros((3, 4, 4, 4), np.uint8)
    votes[1, 1, 1, 1] = 1
    front, _ = describe_votes(votes, LABELS, voxel_ml=3)
    assert front["agreement"] == 0  # with both others; these two alone have nothing to compare
    assert (front["volume_min_ml"], front["volume_max_ml"]) == (0, 3)


def test_a_single_model_agrees_with_nobody():
    votes = np.ones((1, 2, 3, 1), np.uint8)
    front, _ = describe_votes(votes, LABELS, voxel_ml=1)
    assert math.isnan(front["agreement"])
    assert math.isnan(front["volume_sd_ml"])
    assert [front[f"volume_{of}_ml"] for of in ("mean", "min", "max")] == [6, 6, 6]


def test_votes_for_the_background_alone_are_described_too():
    for row in describe_votes(np.zeros((2, 3, 3, 3), np.uint8), LABELS, voxel_ml=1):
        assert math.isnan(row["agreement"])
        assert (row["volume_mean_ml"], row["volume_sd_ml"]) == (0, 0)


def predicted(case, front=(1.0, 0.9), back=(3.0, 0.95), problem=""):
    """Rows as of `predict_scans`: per label its volume in ml and its agreement."""
    if problem:
        return [{"case": case, "volume_ml": NAN, "agreement": NAN, "problem": problem}]
    parts = zip(LABELS.items(), (front, back), strict=True)
    names = ("label", "name", "volume_ml", "agreement", "problem")
    return [
        dict(zip(names, (*label, *part, ""), strict=True)) | {"case": case} for label, part in parts
    ]


def flagged(trained, *scans, outside=None):
    table = pd.DataFrame([row for rows in scans for row in rows])
    return flag(table, pd.Series(outside or {}, dtype=str), trained)


REASONS = {
    "none": ({}, ""),
    "missing": ({"front": (0.0, NAN)}, "no front was found"),
    "one fold found it": ({"back": (0.0, 0.0), "front": (3.0, 0.9)}, "no back was found"),
    "folds disagree": ({"back": (3.0, 0.794)}, "the folds agree by a Dice of 0.79 on back"),
    "just agree": ({"back": (3.0, 0.8)}, ""),
    # Of 2 to 6 ml in training, half and twice.
    "small": ({"front": (0.5, 0.9), "back": (0.4, 0.9)}, "0.9 ml are labelled, trained on 2 to 6"),
    "small enough": ({"front": (0.5, 0.9), "back": (0.6, 0.9)}, ""),
    "large": ({"back": (1229.0, 0.9)}, "1230 ml are labelled, trained on 2 to 6"),
    "large enough": ({"back": (10.9, 0.9)}, ""),
    "rounded away": ({"front": (0.0, 0.95), "back": (0.0, 0.95)}, ""),  # by an earlier version
    "single fold": ({"front": (1.0, NAN), "back": (3.0, NAN)}, ""),
    "failed": ({"problem": "a.nii: cannot be read."}, "a.nii: cannot be read"),
    "failed without a stop": ({"problem": "a.nii: no such file"}, "a.nii: no such file"),
}


@pytest.mark.parametrize("kind", REASONS)
def test_every_reason_to_look_is_told(kind, trained):
    change, words = REASONS[kind]
    (row,) = flagged(trained, predicted("a", **change), outside={"a": ""}).to_dict("records")
    assert row["look_at"] == words


def test_several_reasons_are_told_together(trained):
    odd = predicted("a", front=(0.0, NAN), back=(0.5, 0.5))
    (row,) = flagged(trained, odd, outside={"a": "contrast is 9."}).to_dict("records")
    small = "0.5 ml are labelled, trained on 2 to 6"
    disagreement = "the folds agree by a Dice of 0.50 on back"
    assert row["look_at"] == f"no front was found; {disagreement}; {small}; contrast is 9"
    assert row == {"case": "a", "agreement": 0.5, "volume_ml": 0.5, "look_at": row["look_at"]}


@pytest.mark.parametrize(("usual", "words"), [(0.95, "by a Dice of 0.94 on back"), (0.9, "")])
def test_folds_should_agree_as_much_as_they_did_with_the_truth(usual, words, trained):
    rows = [("back", "dice", usual), ("back", "hd95_mm", 2.0)]
    summary = pd.DataFrame(rows, columns=["name", "metric", "mean"]).assign(label=[*LABELS][1])
    table = pd.DataFrame(predicted("a", back=(3.0, 0.94)))
    told = flag(table, pd.Series(dtype=str), trained, list_means(summary))
    assert told["look_at"][0].endswith(words)


def test_what_failed_comes_first_then_most_reasons_then_the_least_agreement(trained):
    table = flagged(
        trained,
        predicted("fine", front=(1.0, 0.93)),
        predicted("better", front=(1.0, 0.94)),
        predicted("alone", front=(1.0, NAN), back=(3.0, NAN)),
        predicted("two reasons", front=(1.0, 0.7), back=(3.0, 0.75)),
        predicted("failed", problem="gone.nii: no such file."),
        predicted("unlike", front=(1.0, 0.91)),
        predicted("one reason", front=(1.0, 0.7)),
        outside={"unlike": "contrast is 9.", "fine": "", "another scan": "x."},
    )
    order = ["failed", "two reasons", "one reason", "unlike", "fine", "better", "alone"]
    assert table["case"].tolist() == order
    assert table["agreement"].tolist()[1:4] == [0.7, 0.7, 0.91]  # the lower of both labels
    assert table["volume_ml"].tolist()[1:3] == [4, 4]
    assert table.loc[0, ["agreement", "volume_ml"]].isna().all()
    assert list(table.columns) == ["case", "agreement", "volume_ml", "look_at"]
    assert (table["look_at"] != "").tolist() == [True] * 4 + [False] * 3


def test_voxels_within_three_of_a_structure_are_drawn():
    truth = np.zeros((11, 11, 11), np.uint8)
    truth[5, 5, 5] = 1
    certain = np.zeros((*truth.shape, 2), np.float32)
    certain[..., 0] = 1
    certain[..., 1] = np.arange(11**3).reshape(truth.shape) * 1e-6  # to know them again
    found, classes = sample_voxels(certain, truth, np.random.default_rng(0))
    # Three steps along the axes: 1 + 6 + 18 + 38 voxels.
    assert (found.shape, classes.shape) == ((63, 2), (63,))
    places = np.array(np.unravel_index(np.rint(found[:, 1] * 1e6).astype(int), truth.shape)) - 5
    assert set(np.abs(places).sum(axis=0)) == {0, 1, 2, 3}
    assert len({*map(tuple, places.T)}) == 63
    np.testing.assert_array_equal(classes, (places == 0).all(axis=0))


def test_voxels_near_a_wrong_prediction_are_drawn_and_at_most_so_many_whatever_their_order():
    truth = np.asfortranarray(np.zeros((9, 8, 7), np.int64))
    truth[1, 2, 3] = 1
    probabilities = np.zeros((9, 8, 7, 2), np.float32)
    probabilities[..., 0] = 0.9
    probabilities[7, 6, 5] = 0.3, 0.7
    found, classes = sample_voxels(probabilities, truth, np.random.default_rng(0), most=10**6)
    assert (found[:, 1] > 0.5).sum() == 1
    assert not classes[found[:, 1] > 0.5].any()
    assert classes.sum() == 1
    some = [sample_voxels(probabilities, truth, np.random.default_rng(1), most=5) for _ in "ab"]
    assert len(some[0][0]) == 5
    np.testing.assert_array_equal(some[0][0], some[1][0])


def test_without_a_structure_nothing_is_drawn():
    certain = np.eye(3)[np.zeros((4, 4, 4), int)]
    found, classes = sample_voxels(certain, np.zeros((4, 4, 4), int), np.random.default_rng(0))
    assert (found.shape, classes.shape) == ((0, 3), (0,))


@pytest.mark.parametrize(
    ("probabilities", "temperature", "expected"),
    [
        # p^(1 / T), to a sum of 1: at T = 2 the roots 0.8 and 0.6 of 0.64 and 0.36
        ([0.64, 0.36], 2, [0.8 / 1.4, 0.6 / 1.4]),
        ([0.8, 0.2], 0.5, [0.64 / 0.68, 0.04 / 0.68]),
        ([0.25, 0.25, 0.5], 0.5, [1 / 6, 1 / 6, 4 / 6]),
        ([0.5, 0.5], 7, [0.5, 0.5]),
        ([0.1, 0.7, 0.2], 1, [0.1, 0.7, 0.2]),
        ([0, 1, 0], 1, [0, 1, 0]),
        ([0, 1], 0.1, [0, 1]),
        ([0, 1], 7, [0.1 / 1.1, 1 / 1.1]),  # 0 counts as 1e-7, as in the loss
    ],
)
def test_probabilities_are_softened_as_by_hand(probabilities, temperature, expected):
    found = soften(np.full((3, 2, len(expected)), probabilities, np.float32), temperature)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), atol=1e-6)


@pytest.mark.parametrize("temperature", [0.05, 0.3, 1, 3, 20])
def test_the_most_probable_class_stays_and_the_sum_is_1(temperature):
    probabilities = np.random.default_rng(0).dirichlet([0.3] * 4, (20, 30))
    found = soften(probabilities, temperature)
    np.testing.assert_array_equal(found.argmax(axis=-1), probabilities.argmax(axis=-1))
    np.testing.assert_allclose(found.sum(axis=-1), 1, atol=1e-6)
    surer = found.max(axis=-1).mean() - probabilities.max(axis=-1).mean()
    assert np.sign(round(surer, 6)) == np.sign(1 - temperature)


def honest():
    """Probabilities that are right as often as they say, in two, three and one class of three."""
    kinds = {
        (0.8, 0.15, 0.05): (80, 15, 5),
        (0.3, 0.6, 0.1): (30, 60, 10),
        (0.4, 0.2, 0.4): (4, 2, 4),
    }
    probabilities = np.repeat(np.array([*kinds]), [sum(n) for n in kinds.values()], axis=0)
    return probabilities, np.concatenate([np.repeat(range(3), n) for n in kinds.values()])


@pytest.mark.parametrize("power", [0.4, 1, 2.5, 4])
def test_the_temperature_is_that_by_which_honest_probabilities_were_sharpened(power):
    probabilities, truth = honest()
    sharp = probabilities**power
    sharp = (sharp / sharp.sum(axis=-1, keepdims=True)).astype(np.float32)
    temperature = fit_temperature(sharp, truth)
    assert temperature == pytest.approx(power, rel=1e-3)
    np.testing.assert_allclose(soften(sharp, temperature), probabilities, atol=1e-3)
    after = expected_calibration_error(calibration_table(soften(sharp, temperature), truth))
    before = expected_calibration_error(calibration_table(sharp, truth))
    assert after == pytest.approx(0, abs=1e-3)
    assert before > 0.05 or power == 1


@pytest.mark.parametrize(("right", "limit"), [(True, 0.05), (False, 20)])
def test_the_temperature_keeps_within_its_limits(right, limit):
    probabilities = np.array([[0.6, 0.4], [0.3, 0.7]])
    truth = np.array([0, 1] if right else [1, 0])
    assert fit_temperature(probabilities, truth) == pytest.approx(limit, rel=0.01)


CERTAIN = [[0.95, 0.05], [0.09, 0.91], [0.55, 0.45], [0, 1], [0.5, 0.5], [0.42, 0.58]]
TRUE = np.array([0, 0, 0, 1, 1, 1])


def test_the_table_counts_how_often_voxels_are_right_as_by_hand():
    table = calibration_table(np.array(CERTAIN), TRUE)
    assert table["bin"].tolist() == [5, 9]
    assert table["n"].tolist() == [3, 3]
    # 0.55 right, 0.5 (the first of two equal classes) wrong, 0.58 right; 0.95 right, 0.91 wrong, 1
    np.testing.assert_allclose(table["confidence"], [1.63 / 3, 2.86 / 3])
    np.testing.assert_allclose(table["accuracy"], [2 / 3, 2 / 3])
    error = (abs(1.63 / 3 - 2 / 3) + abs(2.86 / 3 - 2 / 3)) / 2
    assert expected_calibration_error(table) == pytest.approx(error)


@pytest.mark.parametrize(
    ("n_bins", "bins"), [(1, [0]), (2, [1]), (4, [2, 3]), (20, [10, 11, 18, 19])]
)
def test_bins_are_of_equal_width_and_the_last_one_holds_1(n_bins, bins):
    table = calibration_table(np.array(CERTAIN, np.float32), TRUE, n_bins)
    assert table["bin"].tolist() == bins
    assert table["n"].sum() == 6


def test_the_error_weighs_the_bins_by_their_voxels():
    table = pd.DataFrame({"n": [10, 30], "confidence": [0.9, 0.6], "accuracy": [0.7, 0.7]})
    assert expected_calibration_error(table) == pytest.approx(0.25 * 0.2 + 0.75 * 0.1)


def test_tables_of_parts_pool_to_the_table_of_all(tmp_path):
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([0.5] * 3, 500)
    truth = rng.integers(0, 3, 500)
    parts = [calibration_table(probabilities[s], truth[s]) for s in (slice(7), slice(7, 500))]
    assert len(parts[0]) < len(parts[1])
    for number, part in enumerate(parts):
        part.to_csv(tmp_path / f"{number}.csv", index=False)
    read = [pd.read_csv(tmp_path / f"{number}.csv") for number in range(2)]
    expected = calibration_table(probabilities, truth)
    for tables in (parts, read):
        pd.testing.assert_frame_equal(pool_calibration(pd.concat(tables)), expected)
    pd.testing.assert_frame_equal(pool_calibration(expected), expected)
