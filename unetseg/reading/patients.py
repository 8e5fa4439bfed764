"""Patients: which cases are of one, by a pattern, a table of the user, a function or a mapping."""

import re
from collections import Counter
from unicodedata import normalize

import pandas as pd

from unetseg.reading.folders import fold_name
from unetseg.reading.tables import find_like_number, match_ids, read_table

TABLE = re.compile(r"(.+\.(?:csv|tsv|tab|txt|xlsx?|xlsm|ods))\s*(?::\s*(.*?))?\s*", re.IGNORECASE)
NO_PATIENT = {"", "n/a", "#n/a"}  # of BIDS and of Excel; NA may be a patient's initials
BIDS_SUBJECT = r"^(sub-[^_]+)(_|$)"
WITHOUT_LAST = r"^(.+)[_-][^_-]+$"  # patient001_frame01: a number of a patient, then of a scan
MANY = 10  # scans of one patient on average: more are rather of one hospital


def find_groups(folder, group_by, ids, problems):
    """Find the patient of every case.

    Parameters
    ----------
    folder : Path
        Of the data set; a table lies in it.
    group_by
        As for `unetseg.cases.find_cases`.
    ids : list of str
        Of the cases, in NFC.
    problems : list of str
        Gets a line per case without a patient, or with two.

    Returns
    -------
    dict of str to str or None
        By case id; None if cases are not grouped.

    Raises
    ------
    ValueError, FileNotFoundError
        If a pattern has no bracket, or a table cannot be read or has none of the ids.
    """
    if group_by is None or (isinstance(group_by, str) and not group_by.strip()):
        bids = all(re.search(BIDS_SUBJECT, case_id) for case_id in ids)
        return _match_pattern(BIDS_SUBJECT, ids) if bids else dict.fromkeys(ids)
    if callable(group_by):
        return {case_id: _as_patient(group_by(case_id)) for case_id in ids}
    groups = _find_named(folder, group_by, ids, problems)
    problems += _list_spellings(set(groups.values()) - {None})
    return groups


def _list_spellings(patients):
    # P1 and p1, or 01 and 1: one patient on both sides of a split would leak.
    first, problems = {}, []
    for patient in sorted(patients):
        plain = re.sub(r"^(\d+)[.,]0+$", r"\1", fold_name(patient))  # 3.0 of Excel
        twin = first.setdefault(re.sub(r"^0+(?=\d)", "", plain), patient)
        if twin != patient:
            advice = "write one of them alone, or rename one if they are two"
            problems.append(f"patients {twin} and {patient} are spelt alike; {advice}")
    return problems


def _find_named(folder, group_by, ids, problems):
    advice = "add it"
    if isinstance(group_by, str):
        if table := TABLE.fullmatch(group_by):
            return _look_up(folder / table[1].strip(), table[2], ids, problems)
        groups = _match_pattern(group_by, ids)
        advice = f"GROUPS = {group_by!r} finds nothing in this name; change one of both"
    else:
        groups = {normalize("NFC", str(case_id)): group for case_id, group in group_by.items()}
    groups = {case_id: _as_patient(groups.get(case_id)) for case_id in ids}
    problems += [f"{i}: no patient by group_by; {advice}" for i in ids if groups[i] is None]
    return groups


def describe_patients(cases):
    """Count cases and patients; where ids look as if patients had several scans, say so.

    Parameters
    ----------
    cases : sequence of Case

    Returns
    -------
    str
        One sentence, or with a pattern for ``GROUPS`` two.
    """
    if any(case.group for case in cases):
        patients = {case.group or case.id for case in cases}
        return f"{len(cases)} cases of {len(patients)} patients."
    said = f"{len(cases)} cases; which are of one patient is not known (GROUPS)."
    alike = _find_alike([case.id for case in cases])
    if not alike:
        return said
    asked = f"Are {' and '.join(alike)} of one patient? Then set GROUPS to {WITHOUT_LAST}"
    return f"{said} {asked}, or the scores will be too good."


def _find_alike(ids):
    # Two ids of what may be one patient; none if ids do not look like that.
    stems = {
        i: stem for i, stem in _match_pattern(WITHOUT_LAST, ids).items() if re.search(r"\d", stem)
    }
    several = {stem: n for stem, n in Counter(stems.values()).items() if n > 1}
    shared = sum(several.values())
    if len(several) < 2 or 2 * shared < len(ids) or shared > MANY * len(several):
        return []
    return [i for i, stem in stems.items() if stem == next(iter(several))][:2]


def _as_patient(group):
    if group is None or pd.isna(group) or str(group).strip().lower() in NO_PATIENT:
        return None
    return str(group).strip()


def _match_pattern(group_by, ids):
    pattern = re.compile(group_by)
    if not pattern.groups:
        raise ValueError(f"group_by needs a bracket around the patient. Received: {group_by!r}")
    return {i: found.group(1) for i in ids if (found := pattern.search(i))}


def _look_up(path, column, ids, problems):
    table = read_table(path, [column] if column else ())
    if not column:
        known = f"one of its columns {[*table.columns]}, as '{path.name}:{table.columns[-1]}'"
        raise ValueError(f"{path}: group_by needs the column of the patient, {known}.")
    written = [normalize("NFC", case_id) for case_id in table.iloc[:, 0]]
    places = match_ids(written, ids)
    if ids and not any(places.values()) and not find_like_number(ids[0], written):
        there, sought = (", ".join(names[:3]) for names in (written, ids))
        advice = "Put the ids, or the names of the files, into the first column."
        problem = f"its first column {table.columns[0]!r} ({there} ...) has no id ({sought} ...)"
        raise ValueError(f"{path}: {problem}. {advice}")
    groups = {}
    for case_id, rows in places.items():
        patients = [_as_patient(table[column].iloc[row]) for row in rows] or [None]
        groups[case_id] = patients[0]
        if len(set(patients)) > 1:
            named = " and ".join(map(str, patients))
            problems.append(f"{case_id}: {path.name} has it of patients {named}; remove one")
        elif patients[0] is None:
            words = f"{case_id}: no patient by group_by; add it to {path.name}"
            problems.append(words + _describe_like(case_id, rows, written))
    return groups


def _describe_like(case_id, rows, written):
    like = None if rows else find_like_number(case_id, written)
    advice = "Excel made a number of it? Format the column as text"
    return f" (it has {like!r}: {advice})" if like else ""
