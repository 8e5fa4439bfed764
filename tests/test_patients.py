import pytest

from unetseg.cases import Case
from unetseg.reading.patients import WITHOUT_LAST, describe_patients, find_groups

IDS = ["p1_a", "p1_b", "p2_a"]


@pytest.mark.parametrize(
    ("group_by", "expected"),
    [
        (None, [None, None, None]),
        (" ", [None, None, None]),
        (r"^(p\d)_", ["p1", "p1", "p2"]),
        (lambda case_id: case_id[-1], ["a", "b", "a"]),
        (lambda case_id: float("nan"), [None, None, None]),
        ({"p1_a": " eve ", "p1_b": "eve", "p2_a": 7}, ["eve", "eve", "7"]),
        ("who.csv:who", ["eve", "eve", "NA"]),
    ],
)
def test_every_case_gets_its_patient(group_by, expected, tmp_path):
    (tmp_path / "who.csv").write_text("id,who\np2_a,NA\np1_a.nii, eve\np1_b,eve\n")
    problems = []
    assert find_groups(tmp_path, group_by, IDS, problems) == dict(zip(IDS, expected, strict=True))
    assert problems == []


TIMES = [f"patient{k:03d}_frame{t:02d}" for k in range(4) for t in (1, 12)]


@pytest.mark.parametrize(
    ("ids", "alike"),
    [
        (TIMES, ["patient000_frame01", "patient000_frame12"]),
        ([*TIMES[:6], "patient007_frame01"], TIMES[:2]),  # one has one scan
        ([f"BraTS-GLI-{k:05d}-{t:03d}" for k in range(3) for t in (0, 1)], None),
        ([f"knee_{k}_{side}" for k in range(5) for side in ("L", "R")], ["knee_0_L", "knee_0_R"]),
        ([f"hippocampus_{k:03d}" for k in range(9)], []),  # a number of a patient and no more
        ([f"Case{k:02d}" for k in range(9)], []),
        ([*TIMES[:4], *(f"other{k}_x" for k in range(5))], []),  # most have one
        ([f"site{k}_{n:03d}" for k in (1, 2) for n in range(30)], []),  # of two hospitals
    ],
)
def test_ids_that_look_like_several_scans_of_patients_are_told(ids, alike):
    said = describe_patients([Case(i, None) for i in ids])
    assert said.startswith(f"{len(ids)} cases; which are of one patient is not known")
    alike = ids[:2] if alike is None else alike
    asked = f"Are {' and '.join(alike)} of one patient? Then set GROUPS to {WITHOUT_LAST}"
    assert (asked in said) == bool(alike)
    assert ("Are " in said) == bool(alike)


def test_with_that_pattern_scans_of_a_patient_are_together(tmp_path):
    groups = find_groups(tmp_path, WITHOUT_LAST, TIMES, [])
    assert sorted({*groups.values()}) == [f"patient{k:03d}" for k in range(4)]
    said = describe_patients([Case(i, None, group=groups[i]) for i in TIMES])
    assert said == "8 cases of 4 patients."


@pytest.mark.parametrize("missing", ["", "n/a", "N/A", "#N/A"])
def test_a_case_without_a_patient_is_a_problem(missing, tmp_path):
    (tmp_path / "who.csv").write_text(f"id,who\np1_a,eve\np1_b,{missing}\np2_a,ben\n")
    for group_by in ("who.csv:who", {"p1_a": "eve", "p1_b": missing, "p2_a": "ben"}):
        problems = []
        groups = find_groups(tmp_path, group_by, IDS, problems)
        assert groups == {"p1_a": "eve", "p1_b": None, "p2_a": "ben"}
        assert [line.startswith("p1_b: no patient by group_by; add it") for line in problems] == [1]
