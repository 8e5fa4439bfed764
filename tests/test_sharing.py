"""The report and the models that are sent to others, and the data sets that are fetched."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import keras
import nibabel as nib
import numpy as np
import pytest

from unetseg import inference, sample, scores, sharing, training
from unetseg.cases import check_cases, find_cases
from unetseg.preprocessing import Preprocessor


def content_of(folder):
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


SETTINGS = {"epochs": 1, "steps": 1, "batch_size": 1, "n_splits": 2, "precision": "float32"}
ALWAYS = {"experiment.json", "preprocessor.json", "splits.json", "cases.csv", "leaks.csv"}
FOLDS = {f"fold_{n}/{name}" for n in (0, 1) for name in ("model.weights.h5", "history.csv")}
FOLDS |= {"fold_0/calibration.csv", "fold_1/calibration.csv"}
PACKED = ALWAYS | FOLDS | {"fold_0/done.json", "fold_1/done.json", "scores.csv", "summary.csv"}
PACKED |= {"MODEL_CARD.md", "hashes.json"}


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, write_case):
    """Results of a run on four cases of three patients, scored, and what they pack into."""
    folder = tmp_path_factory.mktemp("experiment")
    mask = np.zeros((8, 10, 6), np.uint8)
    mask[2:5, 3:7, 1:4], mask[5:7, 3:7, 1:4] = 1, 2
    cases = []
    for k, patient in enumerate("AABC"):
        image = np.random.default_rng(k).integers(0, 100, mask.shape).astype(np.int16) + 200 * mask
        cases.append(write_case(folder / "data", f"case_{k}", image, mask, group=patient))
    results = folder / "mine"
    preprocessor = Preprocessor(patch=(8, 8, 8), labels={1: "front", 2: "back"})
    arguments = {"model_args": {"filters": 2, "depth": 1}, "preprocessor": preprocessor}
    folds = training.cross_validate(cases, results, **arguments, **SETTINGS)
    table = scores.score_predictions(cases, results / "predictions", folds, preprocessor.labels)
    table.to_csv(results / "scores.csv", index=False)
    scores.summarise(table).to_csv(results / "summary.csv", index=False)
    digest = sharing.pack(results, folder / "packed" / "mine.tar")
    packed = folder / "packed" / "mine.tar"
    return SimpleNamespace(cases=cases, results=results, packed=packed, digest=digest)


@pytest.fixture
def copy(experiment, tmp_path):
    """The results in a folder of their own, to be changed, without card and hashes."""
    folder = shutil.copytree(experiment.results, tmp_path / "mine")
    for name in ("MODEL_CARD.md", "hashes.json"):
        (folder / name).unlink()
    return folder


def members_of(path):
    """Names in the one folder of a tar file, and their content."""
    with tarfile.open(path, "r:") as packed:
        pairs = [(one.name, packed.extractfile(one).read()) for one in packed]
    assert {name.partition("/")[0] for name, _ in pairs} == {"mine"}
    return {name.partition("/")[2]: content for name, content in pairs}


def write_tar(path, members):
    """Write files (bytes) and other members (a dict of their settings); return the SHA-256."""
    with tarfile.open(path, "w") as packed:
        for name, content in members.items():
            member = tarfile.TarInfo(name if name.startswith(("/", "..")) else f"mine/{name}")
            for field, value in (content if isinstance(content, dict) else {}).items():
                setattr(member, field, value)
            data = content if isinstance(content, bytes) else b""
            member.size = len(data)
            packed.addfile(member, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def list_anew(members):
    """The members with a hashes.json that fits them."""
    others = {name: data for name, data in members.items() if name != "hashes.json"}
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in others.items()}
    return others | {"hashes.json": json.dumps(hashes).encode()}


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def section(card, title):
    return card.split(f"## {title}\n")[1].split("\n## ")[0]


def table_in(text):
    """The rows of the first Markdown table, cells by title."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    rows = [[cell.strip() for cell in row] for row in cells]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_packed_models_are_opened_elsewhere_with_the_same_weights(experiment, tmp_path):
    target = tmp_path / "elsewhere" / "theirs"
    assert sharing.unpack(experiment.packed, target, experiment.digest) == target
    pairs = zip(*map(inference.load_models, (experiment.results, target)), strict=True)
    for ours, theirs in pairs:
        for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
    assert Preprocessor.load(target / "preprocessor.json").labels == {1: "front", 2: "back"}
    ours = content_of(experiment.results)
    assert content_of(target) == {name: ours[name] for name in PACKED}
    assert os.listdir(target.parent) == ["theirs"]


def test_the_hash_that_is_told_is_that_of_the_file(experiment):
    assert experiment.digest == hashlib.sha256(experiment.packed.read_bytes()).hexdigest()


def test_every_packed_file_is_listed_with_its_hash(experiment):
    members = members_of(experiment.packed)
    hashes = json.loads(members.pop("hashes.json"))
    assert {name: hashlib.sha256(data).hexdigest() for name, data in members.items()} == hashes


def test_members_are_sorted_and_tell_no_time_and_no_owner(experiment):
    with tarfile.open(experiment.packed, "r:") as packed:  # not compressed
        members = packed.getmembers()
    assert [one.name for one in members] == sorted(f"mine/{name}" for name in PACKED)
    facts = {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode, m.type) for m in members}
    assert facts == {(0, 0, 0, "", "", 0o644, tarfile.REGTYPE)}


def test_the_same_results_give_the_same_bytes_wherever_they_lie(experiment, copy, tmp_path):
    for path in copy.rglob("*"):
        os.utime(path, (1e9, 1e9))
    (copy / "cases.csv").chmod(0o600)
    os.link(copy / "cases.csv", tmp_path / "twin.csv")
    shutil.move(copy / "fold_0" / "model.weights.h5", tmp_path / "elsewhere.h5")
    (copy / "fold_0" / "model.weights.h5").symlink_to(tmp_path / "elsewhere.h5")
    assert sharing.pack(copy, tmp_path / "again.tar") == experiment.digest
    assert sharing.pack(copy, tmp_path / "again.tar") == experiment.digest  # card and hashes there


def test_what_was_unpacked_packs_into_the_same_bytes(experiment, tmp_path):
    target = sharing.unpack(experiment.packed, tmp_path / "mine", experiment.digest)
    assert sharing.pack(target, tmp_path / "again.tar") == experiment.digest


def test_scans_masks_predictions_and_the_like_are_not_packed(copy, tmp_path):
    for name in (
        "scan.nii.gz", "data/scan.nii", "masks/a.nii.gz", "predictions/a.nii.gz", "report.html",
        "fold_0/0.state", "fold_0/scan.nii.gz", "figures/x.png", "notebooks/03.ipynb", "notes.md",
        "cases.csv.part", "fold_9/model.weights.h5", "elsewhere.h5", ".hidden", "other.csv",
    ):  # fmt: skip
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"secret of a patient")
    sharing.pack(copy, tmp_path / "x.tar")
    assert set(members_of(tmp_path / "x.tar")) == PACKED
    assert b"secret of a patient" not in (tmp_path / "x.tar").read_bytes()


def test_folds_that_are_not_finished_are_not_packed(copy, tmp_path):
    (copy / "fold_1" / "done.json").unlink()
    digest = sharing.pack(copy, tmp_path / "x.tar")
    target = sharing.unpack(tmp_path / "x.tar", tmp_path / "opened", digest)
    assert len(inference.load_models(target)) == 1
    assert not (target / "fold_1").exists()
    card = (target / "MODEL_CARD.md").read_text()
    assert "1 of 2 folds are finished" in card
    assert [row["minutes"] for row in table_in(section(card, "Splits"))][1] == "not finished"


def test_a_run_that_is_not_scored_is_packed_too(copy, tmp_path):
    for name in ("scores.csv", "summary.csv", "leaks.csv"):
        (copy / name).unlink()
    digest = sharing.pack(copy, tmp_path / "x.tar")
    target = sharing.unpack(tmp_path / "x.tar", tmp_path / "opened", digest)
    card = (target / "MODEL_CARD.md").read_text()
    assert section(card, "Scores") == "\nNot scored yet.\n"
    assert section(card, "Leaks") == "\nNot looked for, or not recorded here.\n"


@pytest.mark.parametrize("name", [".hidden", "Größe 1"])
def test_results_of_any_name_are_packed_and_opened(name, copy, tmp_path):
    results = copy.rename(tmp_path / name)
    digest = sharing.pack(results, tmp_path / "x.tar")
    target = sharing.unpack(tmp_path / "x.tar", tmp_path / "opened", digest)
    assert set(content_of(target)) == PACKED


def test_large_weights_are_not_held_in_memory(copy, tmp_path):
    for number in (0, 1):
        weights = copy / f"fold_{number}" / "model.weights.h5"
        weights.write_bytes(bytes(20_000_000))
        digest = hashlib.sha256(bytes(20_000_000)).hexdigest()
        change_json(weights.with_name("done.json"), weights_sha256=digest)
    tracemalloc.start()
    digest = sharing.pack(copy, tmp_path / "x.tar")
    sharing.unpack(tmp_path / "x.tar", tmp_path / "opened", digest)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_pack_that_is_interrupted_leaves_the_older_file(copy, tmp_path, monkeypatch):
    (tmp_path / "x.tar").write_bytes(b"older")

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)
    with pytest.raises(OSError, match="no space left"):
        sharing.pack(copy, tmp_path / "x.tar")
    assert (tmp_path / "x.tar").read_bytes() == b"older"


def drop_done(folder):
    for path in folder.glob("fold_*/done.json"):
        path.unlink()


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        (drop_done, FileNotFoundError, r"mine: no fold is finished\. Run 02_train_kfold"),
        (lambda f: flip(f / "fold_1" / "model.weights.h5"), ValueError, r"weights\.h5: .*SHA-256"),
        (lambda f: (f / "fold_0" / "model.weights.h5").unlink(), ValueError, "fold_0.*: missing"),
        (lambda f: (f / "splits.json").write_text("[{"), ValueError, "splits.json: not valid"),
        (lambda f: (f / "experiment.json").write_text("{}"), ValueError, r"experiment.json: at \$"),
        (lambda f: (f / "fold_1" / "done.json").write_text("{}"), ValueError, r"done.json: at \$"),
        (lambda f: (f / "preprocessor.json").unlink(), FileNotFoundError, "preprocessor.json"),
        (lambda f: (f / "cases.csv").unlink(), FileNotFoundError, "cases.csv"),
        (lambda f: (f / "cases.csv").write_text("case\na\n"), ValueError, "mine: a file is not as"),
        (lambda f: (f / "summary.csv").write_text("metric\ndice\n"), ValueError, "'label'"),
        (lambda f: (f / "leaks.csv").write_text(""), ValueError, "mine: a file is not as"),
    ],
)
def test_results_that_are_damaged_are_named_and_not_packed(change, error, says, copy, tmp_path):
    change(copy)
    before = content_of(tmp_path)
    with pytest.raises(error, match=says):
        sharing.pack(copy, tmp_path / "new" / "x.tar")
    assert content_of(tmp_path) == before


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
HARD = {"type": tarfile.LNKTYPE, "linkname": "mine/cases.csv"}


def hash_of_weights(members):
    return json.loads(members["hashes.json"])["fold_0/model.weights.h5"].encode()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda m: m | {"extra.txt": b"x"}, r"does not fit 1 files: extra\.txt\."),
        (lambda m: m | {"fold_0/hashes.json": b"{}"}, r"does not fit 1 files: fold_0/hashes\.json"),
        (lambda m: m | {"summary.csv": b"better"}, r"does not fit 1 files: summary\.csv\."),
        (lambda m: {k: v for k, v in m.items() if k != "leaks.csv"}, r"1 files: leaks\.csv\."),
        (lambda m: {k: v for k, v in m.items() if k != "hashes.json"}, "hashes.json"),
        (lambda m: m | {"hashes.json": b"{}"}, f"does not fit {len(PACKED) - 1} files"),
        (lambda m: m | {"hashes.json": b"[]"}, r"mine/hashes\.json: at \$"),
        (lambda m: m | {"hashes.json": b"{"}, r"mine/hashes\.json: not valid JSON"),
        (
            lambda m: m | {"hashes.json": m["hashes.json"].replace(hash_of_weights(m), b"0" * 64)},
            r"does not fit 1 files: fold_0/model\.weights\.h5\.",
        ),
        (lambda m: list_anew(m | {"fold_0/model.weights.h5": b"x"}), r"fold_0/.*\.h5: .*SHA-256"),
        (lambda m: list_anew(m | {"splits.json": b"{}"}), r"mine/splits\.json: at \$"),
        (lambda m: list_anew(m | {"more.json": b"{,}"}), r"mine/more\.json: not valid JSON"),
        (
            lambda m: list_anew({k: v for k, v in m.items() if "fold" not in k}),
            "mine: no fold is finished",
        ),
        (
            lambda m: list_anew({k: v for k, v in m.items() if k != "experiment.json"}),
            r"mine/experiment\.json",
        ),
        (lambda m: m | {"link": LINK}, "not a sound tar file .*mine/link is no plain file"),
        (lambda m: m | {"link": HARD}, "not a sound tar file .*mine/link is no plain file"),
        (lambda m: m | {"pipe": {"type": tarfile.FIFOTYPE}}, "mine/pipe is no plain file"),
        (lambda m: m | {"../outside": b"x"}, "not a sound tar file .*outside"),
        (lambda m: m | {"../../outside": b"x"}, "not a sound tar file .*outside"),
        (lambda m: {}, "hashes.json"),
    ],
)
def test_a_packed_file_with_anything_wrong_in_it_leaves_nothing(change, says, experiment, tmp_path):
    path = tmp_path / "bad.tar"
    digest = write_tar(path, change(members_of(experiment.packed)))
    with pytest.raises(ValueError, match=says) as caught:
        sharing.unpack(path, tmp_path / "in" / "x", digest)
    assert str(caught.value).startswith(f"{path}: ")
    assert ".part-" not in str(caught.value) or "outside" in says  # tarfile tells where to
    assert os.listdir(tmp_path) == ["bad.tar", "in"] or os.listdir(tmp_path) == ["in", "bad.tar"]
    assert os.listdir(tmp_path / "in") == []


def test_an_unchanged_rewritten_file_is_opened(experiment, tmp_path):
    digest = write_tar(tmp_path / "same.tar", list_anew(members_of(experiment.packed)))
    assert sharing.unpack(tmp_path / "same.tar", tmp_path / "x", digest).is_dir()


@pytest.mark.parametrize("where", [0, 0.3, 0.99])
def test_one_flipped_bit_is_noticed_before_anything_is_unpacked(where, experiment, tmp_path):
    content = bytearray(experiment.packed.read_bytes())
    content[int(where * len(content))] ^= 1
    (tmp_path / "x.tar").write_bytes(content)
    with pytest.raises(ValueError, match=r"sha256 must be that of .*x\.tar.*fetch the file again"):
        sharing.unpack(tmp_path / "x.tar", tmp_path / "opened", experiment.digest)
    assert os.listdir(tmp_path) == ["x.tar"]


@pytest.mark.parametrize("digest", ["", "0" * 64, "md5"])
def test_another_hash_than_that_of_the_file_is_refused(digest, experiment, tmp_path):
    with pytest.raises(ValueError, match=r"sha256 must be that of .*mine\.tar"):
        sharing.unpack(experiment.packed, tmp_path / "opened", digest)
    assert os.listdir(tmp_path) == []


def test_a_hash_in_capitals_is_the_same_hash(experiment, tmp_path):
    assert sharing.unpack(experiment.packed, tmp_path / "x", experiment.digest.upper()).is_dir()


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9])
def test_a_truncated_file_is_refused_even_by_its_own_hash(share, experiment, tmp_path):
    content = experiment.packed.read_bytes()
    content = content[: int(share * len(content))]
    (tmp_path / "short.tar").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(ValueError, match=r"sha256 must be"):
        sharing.unpack(tmp_path / "short.tar", tmp_path / "x", experiment.digest)
    with pytest.raises(ValueError, match=r"short\.tar: "):
        sharing.unpack(tmp_path / "short.tar", tmp_path / "x", digest)
    assert os.listdir(tmp_path) == ["short.tar"]


def test_what_unpacks_to_more_than_was_stored_is_refused(tmp_path):
    with tarfile.open(tmp_path / "bomb.tar", "w:gz") as packed:
        member = tarfile.TarInfo("mine/hashes.json")
        member.size = 10**7
        packed.addfile(member, io.BytesIO(bytes(member.size)))
    digest = hashlib.sha256((tmp_path / "bomb.tar").read_bytes()).hexdigest()
    with pytest.raises(ValueError, match=r"bomb\.tar: not a sound tar file"):
        sharing.unpack(tmp_path / "bomb.tar", tmp_path / "x", digest)
    assert os.listdir(tmp_path) == ["bomb.tar"]


@pytest.mark.parametrize("kind", ["results", "empty", "file"])
def test_a_folder_that_is_there_is_never_touched(kind, experiment, tmp_path):
    target = tmp_path / "mine"
    if kind == "file":
        target.write_bytes(b"kept")
    else:
        target.mkdir()
    if kind == "results":
        (target / "experiment.json").write_bytes(b"kept")
    before = content_of(tmp_path)
    with pytest.raises(FileExistsError, match=r"mine: is there already\. Choose another"):
        sharing.unpack(experiment.packed, target, experiment.digest)
    assert content_of(tmp_path) == before
    assert os.listdir(tmp_path) == ["mine"]


def test_a_packed_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.tar"):
        sharing.unpack(tmp_path / "missing.tar", tmp_path / "x", "0" * 64)
    assert os.listdir(tmp_path) == []


TITLES = {"dice": "Dice", "surface_dice": "surface Dice"}
TITLES |= {"hausdorff_mm": "Hausdorff, mm", "hd95_mm": "HD95, mm"}


def expected_rows(path):
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["metric"] in TITLES]
    for row in rows:
        form = "{:.4g}" if row["metric"].endswith("_mm") else "{:.4f}"
        numbers = {k: form.format(float(row[k] or "nan")) for k in ("mean", "sd", "median")}
        ends = (form.format(float(row[name] or "nan")) for name in ("ci_low", "ci_high"))
        yield {
            "label": f"{row['label']} {row['name']}",
            "score": TITLES[row["metric"]],
            "cases": row["n"],
            "mean": numbers["mean"],
            "95 % interval": " to ".join(ends),
            "SD": numbers["sd"],
            "median": numbers["median"],
            "NaN": row["nan"],
            "inf": row["inf"],
        }


def test_the_scores_in_the_card_are_those_of_the_summary(experiment):
    card = (experiment.results / "MODEL_CARD.md").read_text()
    found = table_in(section(card, "Scores"))
    assert len(found) == 2 * 4
    assert found == list(expected_rows(experiment.results / "summary.csv"))


PUBLISHED = Path(__file__).parent.parent / "results"


@pytest.mark.parametrize("name", ["hippocampus", "hippocampus_2d"])
def test_a_card_of_published_results_tells_what_their_files_tell(name, tmp_path):
    results = shutil.copytree(PUBLISHED / name, tmp_path / name)
    card = sharing.write_model_card(results).read_text()
    assert table_in(section(card, "Scores")) == list(expected_rows(results / "summary.csv"))
    assert card.startswith(f"# Model card: {name}\n")
    assert "5 of 5 folds are finished, one network each. The weights of 0 of them" in card
    shown = table_in(section(card, "Splits"))
    assert [row["validation cases"] for row in shown] == ["42", "42", "42", "41", "41"]
    assert "208 cases. Who the patients are is not known" in card
    assert "the intervals are too narrow" in card
    assert "Simulated" not in card
    kind = "2-D, on slices across z and x with 2 neighbours" if "2d" in name else "3-D, made"
    assert f"**Architecture:** {kind}" in card
    assert "{" not in card.replace("{folder}", "")


def test_the_card_tells_what_the_models_are_and_what_they_were_trained_on(experiment):
    card = (experiment.results / "MODEL_CARD.md").read_text()
    assert "2 of 2 folds are finished, one network each. The weights of 2 of them are here." in card
    numbers = "filters: 2, depth: 1, dropout: 0.0, max_filters: 320"
    assert f"3-D, made by unetseg.model.build_unet\n  ({numbers};" in card
    assert "1 channel, any orientation" in card
    assert "voxels of 1 x 2 x 3 mm" in card
    assert "0: background, 1: front, 2: back." in card
    assert "epochs: 1, steps: 1, batch_size: 1" in card
    assert f"precision: float32, by {keras.backend.backend()} on a cpu." in card
    data = section(card, "Training data")
    assert "4 cases of 3 patients." in data
    shown = {row["over the cases"]: row["lowest to highest"] for row in table_in(data)}
    assert shown["voxels (x, y, z)"] == "8, 10, 6"
    assert shown["voxel size (x, y, z), mm"] == "1, 2, 3"
    assert shown["volume of all labels, ml"] == "0.36"  # 60 voxels of 6 mm3
    assert shown["orientation as stored"] == "RAS"
    images = [np.asarray(nib.load(case.image).dataobj) for case in experiment.cases]
    medians = [np.median(image) for image in images]
    assert shown["intensity, median"] == f"{min(medians):g} to {max(medians):g}"
    minutes = [json.loads(p.read_text())["minutes"] for p in experiment.results.glob("*/done.json")]
    assert f"**Minutes:** {sum(minutes):.1f}, for" in card
    about = json.loads((experiment.results / "experiment.json").read_text())
    assert f"keras {about['versions']['keras']}, " in card
    assert f"cores: {about['hardware']['cores']}, " in card


def test_pieces_that_are_left_out_are_told_and_packed(copy, tmp_path):
    decided = {"cases": {"case_00": [2]}, "new_scans": [2]}
    (copy / "components.json").write_text(json.dumps(decided))
    sharing.pack(copy, tmp_path / "mine.tar")
    assert "components.json" in dict(members_of(tmp_path / "mine.tar"))
    card = (copy / "MODEL_CARD.md").read_text()
    assert "0: background, 1: front, 2: back. Of back\n  only the largest piece is kept" in card


def test_the_card_tells_how_the_files_of_training_are_known(copy):
    card = sharing.write_model_card(copy).read_text()
    assert "are known by their SHA-256, which stand in its done.json." in section(
        card, "Training data"
    )
    path = copy / "fold_1" / "done.json"
    done = json.loads(path.read_text())
    del done["inputs"]  # of an earlier version
    path.write_text(json.dumps(done))
    card = sharing.write_model_card(copy).read_text()
    assert "Which files exactly fold 1 had is not recorded." in section(card, "Training data")


def test_the_card_names_the_masks_that_were_corrected_before_they_were_scored(copy):
    path = copy / "scores.csv"
    table = scores.load_scores(path)
    assert "corrected" not in section(sharing.write_model_card(copy).read_text(), "Scores")
    table.loc[table["case"] == "case_2", "mask"] = "corrected since"
    table.to_csv(path, index=False)
    card = sharing.write_model_card(copy).read_text()
    assert "**1 masks were corrected since training**, and scored: case_2." in card


def test_the_card_of_folds_that_were_trained_again_does_not_show_the_scores_of_before(copy):
    path = copy / "fold_0" / "done.json"
    done = json.loads(path.read_text())
    done["predictions_sha256"] = dict.fromkeys(done["predictions_sha256"], "1" * 64)
    path.write_text(json.dumps(done))
    shown = section(sharing.write_model_card(copy).read_text(), "Scores")
    assert "Not scored since it was trained again" in shown
    assert "| Dice |" not in shown


def test_the_card_warns_of_what_it_is_not_for_and_of_the_ids(experiment):
    card = (experiment.results / "MODEL_CARD.md").read_text()
    limits = section(card, "Limits")
    assert "Not a medical device" in limits
    assert "Tests on scans from elsewhere are not reported here" in limits
    assert "over cases, not over patients" in limits
    assert "Research:" in section(card, "Intended use")
    before = section(card, "Before you pass it on")
    assert "**the ids of cases and patients are**" in before
    assert "also holds the SHA-256 of the scans and masks" in before
    assert "ids of cases and patients are" in sharing.pack.__doc__


def test_the_lines_of_python_in_the_card_segment_a_new_scan(experiment, tmp_path, monkeypatch):
    card = (experiment.results / "MODEL_CARD.md").read_text()
    code = re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]
    shutil.copy(experiment.packed, tmp_path / "packed.tar")
    shutil.copy(experiment.cases[0].image, tmp_path / "scan.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(code.replace('sha256="..."', f"sha256={experiment.digest!r}"), {})
    labels = nib.load(tmp_path / "labels.nii.gz")
    np.testing.assert_array_equal(labels.affine, nib.load(tmp_path / "scan.nii.gz").affine)
    assert labels.shape == (8, 10, 6)
    assert set(np.unique(labels.dataobj)) <= {0, 1, 2}


def test_leaks_are_told_in_the_card(copy):
    rows = [f"one patient,a{n},b{n},0,patient {n}" for n in range(30)]
    (copy / "leaks.csv").write_text("\n".join(["kind,case,other,fold,detail", *rows, ""]))
    told = section(sharing.write_model_card(copy).read_text(), "Leaks")
    assert "30 found: the scores above are too good" in told
    assert "The first 20:" in told
    assert len(table_in(told)) == 20
    first = {"validated": "a0", "trained on": "b0", "fold": "0", "what": "one patient"}
    assert table_in(told)[0] == first | {"detail": "patient 0"}


def test_the_card_says_that_no_leak_was_found(experiment):
    told = section((experiment.results / "MODEL_CARD.md").read_text(), "Leaks")
    assert told.startswith("\nNone was found: ")
    assert "patients are not known" not in told


def test_failures_and_scores_without_a_number_are_told_in_the_card(copy):
    lines = (copy / "summary.csv").read_text().splitlines()
    names = lines[0].split(",")
    changed = {"mean": "", "sd": "", "ci_low": "", "ci_high": "", "nan": "1", "inf": "3"}
    for number, line in enumerate(lines):
        cells = dict(zip(names, line.split(","), strict=True))
        if cells["label"] == "2":
            cells |= {"failures": "case_0; case_3"} | changed
            lines[number] = ",".join(cells.values())
    (copy / "summary.csv").write_text("\n".join(lines))
    card = sharing.write_model_card(copy).read_text()
    row = table_in(section(card, "Scores"))[-1]
    assert (row["mean"], row["95 % interval"], row["NaN"], row["inf"]) == (
        "nan",
        "nan to nan",
        "1",
        "3",
    )
    assert "- 2 back: case_0; case_3\n" in card


def test_what_strangers_named_stays_text_on_its_line(copy):
    name = "a|b\n\n# <script>alert(1)</script> [x](y) `c` **d** \u202e \\"
    change_json(copy / "preprocessor.json", labels={"1": name, "2": "back"})
    with open(copy / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(copy / "summary.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(row | {"name": name, "failures": name} for row in rows)
    (copy / "leaks.csv").write_text(
        f'kind,case,other,fold,detail\nk,"{name}",NA,0,{{{{ 7 * 7 }}}}\n'
    )
    card = sharing.write_model_card(copy).read_text()
    assert {len(row) for row in table_in(section(card, "Scores"))} == {9}
    leak = table_in(section(card, "Leaks"))[0]
    shown = r"a\|b # \<script\>alert(1)\</script\> \[x\](y) \`c\` \*\*d\*\* "
    assert leak["validated"].startswith(shown.strip())
    assert leak["trained on"] == "NA"
    assert leak["detail"] == "{{ 7 * 7 }}".replace("*", r"\*")
    assert not re.search(r"(?<!\\)<", card)
    assert "\n# " not in card
    assert "\u202e" not in card


def test_a_card_of_the_embedded_data_set_says_that_it_is_simulated(copy, tmp_path):
    found = find_cases(sample.make_sample(tmp_path / "sample", n_cases=2))
    check_cases(found).to_csv(copy / "cases.csv", index=False)
    labels = {str(value): name for value, name in sample.LABELS.items()}
    change_json(copy / "preprocessor.json", labels=labels)
    assert "**Simulated**" in sharing.write_model_card(copy).read_text()
    change_json(copy / "preprocessor.json", labels=labels | {"2": "lesion"})
    assert "Simulated" not in sharing.write_model_card(copy).read_text()


def test_older_settings_without_later_fields_have_a_card(copy):
    about = json.loads((copy / "preprocessor.json").read_text())
    for name in ("dimensions", "mirror_axes", "neighbours", "planes"):
        del about[name]
    (copy / "preprocessor.json").write_text(json.dumps(about | {"patch": [8, 8, 1]}))
    experiment = json.loads((copy / "experiment.json").read_text())
    for name in ("versions", "hardware", "minutes"):
        del experiment[name]
    (copy / "experiment.json").write_text(json.dumps(experiment))
    card = sharing.write_model_card(copy).read_text()
    assert "2-D, on slices across z with 0 neighbours" in card
    assert "**Versions:** not recorded\n" in card
    assert "**Hardware:** not recorded\n" in card


def test_the_card_is_in_what_is_installed():
    project = (PUBLISHED.parent / "pyproject.toml").read_text()
    assert '"model_card.md"' in project
    assert (Path(sharing.__file__).parent / "model_card.md").is_file()


def pack(path, *members, mode="w"):
    """Write a tar file of (name, content or settings of the member); return its SHA-256."""
    with tarfile.open(path, mode) as packed:
        for name, content in members:
            member = tarfile.TarInfo(name)
            data = content if isinstance(content, bytes) else b""
            member.size = len(data)
            for field, value in ({} if isinstance(content, bytes) else content).items():
                setattr(member, field, value)
            packed.addfile(member, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def unpack_tar(path, folder):
    return sharing.unpack_tar(path, folder, path, max_gb=0.001)


@pytest.mark.parametrize("mode", ["w", "w:gz", "w:xz"])
def test_the_only_folder_of_an_archive_is_told(mode, make_data, tmp_path):
    source, path = make_data(2), tmp_path / "Task00.tar"
    with tarfile.open(path, mode) as packed:
        packed.add(source, "Task00")
        packed.addfile(tarfile.TarInfo("._Task00"))  # as a Mac leaves it
    target = unpack_tar(path, tmp_path / "new")
    assert target == tmp_path / "new" / "Task00"
    assert content_of(target) == content_of(source)


def test_files_without_a_folder_around_them_are_unpacked_too(tmp_path):
    path, members = tmp_path / "flat.tar", {"images/a.nii": b"a", "labels/a.nii": b"b"}
    pack(path, *members.items())
    assert unpack_tar(path, tmp_path / "flat") == tmp_path / "flat"
    assert content_of(tmp_path / "flat") == members


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("../outside", b"x", "outside"),
        ("data/../../outside", b"x", "outside"),
        ("data/link", {"type": tarfile.SYMTYPE, "linkname": "/etc"}, "no plain file"),
        ("data/hard", {"type": tarfile.LNKTYPE, "linkname": "../../outside"}, "no plain file"),
        ("data/device", {"type": tarfile.CHRTYPE}, "no plain file"),
        ("data/pipe", {"type": tarfile.FIFOTYPE}, "no plain file"),
        ("data/large", bytes(2_000_000), "over max_gb=0.001"),
    ],
)
def test_an_archive_that_is_not_sound_leaves_nothing_outside_its_folder(
    name, content, reason, tmp_path
):
    path = tmp_path / "bad.tar.gz"
    pack(path, (name, content), ("data/second", b"1"), mode="w:gz")
    with pytest.raises(ValueError, match=rf"bad\.tar\.gz: not a sound tar file .*{reason}"):
        unpack_tar(path, tmp_path / "in" / "x")
    assert {*content_of(tmp_path)} == {"bad.tar.gz"}


def test_an_absolute_name_stays_in_the_folder(tmp_path):
    path = tmp_path / "absolute.tar"
    pack(path, (f"{tmp_path}/outside", b"x"), ("data/a", b"a"))
    target = unpack_tar(path, tmp_path / "in")
    assert (target / "data" / "a").read_bytes() == b"a"
    assert not (tmp_path / "outside").exists()


def test_too_many_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing, "MAX_FILES", 2)
    pack(tmp_path / "many.tar", *[(f"data/{k}", b"") for k in range(4)])
    with pytest.raises(ValueError, match="over 2 files"):
        unpack_tar(tmp_path / "many.tar", tmp_path / "x")


@pytest.mark.parametrize(
    "data", [b"<html>not a tar</html>" * 100, gzip.compress(b"x" * 10**5, mtime=0)[:90]]
)
def test_what_is_no_tar_file_is_refused_by_its_name(data, tmp_path):
    (tmp_path / "page.tar").write_bytes(data)
    with pytest.raises(ValueError, match=r"page\.tar: not a sound tar file"):
        unpack_tar(tmp_path / "page.tar", tmp_path / "x")
    assert os.listdir(tmp_path) == ["page.tar"]
