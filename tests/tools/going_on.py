"""Does it help to start from the weights of another run? Rows of results/going_on.csv.

python -m tests.tools.going_on path/to/data PROMISE12 "Case(0|1|2[0-4])" --steps 25 100
python -m tests.tools.going_on path/to/data CHD_LVRV "_ses-ED" --steps 25 100

The cases whose id fits the pattern are the earlier ones, but for patients who have others too: a
network is trained on them as long as usual. The others are the few new ones, in two folds: each is
scored by a network that was trained on the other half of them, from nothing and from the earlier
network, for as many steps and so for as many minutes.
"""

import argparse
import datetime
import re
from pathlib import Path

import pandas as pd

from tests.tools.study import score
from unetseg import earlier, training
from unetseg._base import write_json, write_table
from unetseg.cases import find_cases
from unetseg.preprocessing import Preprocessor
from unetseg.run.layout import Run

TABLE = Path(__file__).parents[2] / "results" / "going_on.csv"
FOLDS = 2


def main(arguments=None):
    """Train the earlier network, then both kinds of new ones with every number of steps."""
    asked = _read(arguments)
    old, new = divide(find_cases(Path(asked.data) / asked.name), asked.pattern)
    folder = Path(asked.out) / asked.name
    before = train_earlier(old, folder / "earlier")
    for steps in asked.steps:
        for start in (None, before.folder):
            run = Run(folder / f"{'from_nothing' if start is None else 'from_earlier'}_{steps}")
            rows = train_new(new, run, start, steps, asked.jobs)
            about = {"date": str(datetime.date.today()), "data": asked.name, "earlier": len(old)}
            about["start"] = "nothing" if start is None else "earlier"
            add_rows(pd.DataFrame([{**about, **row} for row in rows]))


def _read(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("name")
    parser.add_argument("pattern", help="of the ids of the earlier cases")
    parser.add_argument("--steps", type=int, nargs="+", default=[100], help="of each of 12 epochs")
    parser.add_argument("--jobs", type=int, default=1, help="folds that are trained at once")
    parser.add_argument("--out", default="/tmp/unetseg_going_on")
    return parser.parse_args(arguments)


def divide(cases, pattern):
    """Divide cases into the earlier ones and the new ones, no patient in both."""
    new = [case for case in cases if not re.search(pattern, case.id)]
    patients = {case.group or case.id for case in new}
    old = [case for case in cases if (case.group or case.id) not in patients]
    return old, new


def train_earlier(cases, folder):
    """Train one network, on all cases but those of one patient, which every fold must have."""
    run, last = Run(folder), cases[-1].group or cases[-1].id
    val = [case.id for case in cases if (case.group or case.id) == last]
    train = [case.id for case in cases if case.id not in val]
    folder.mkdir(parents=True, exist_ok=True)
    write_json(run.splits, [{"train": train, "val": val}])
    training.cross_validate(cases, folder, cache_dir=folder / "cache")
    return run


def train_new(cases, run, start, steps, jobs):
    """Train and score the new cases in two folds; rows as of `tests.tools.study.score`."""
    preprocessor = (
        Preprocessor() if start is None else earlier.adopt_settings(Preprocessor(), start)
    )
    folds = training.cross_validate(
        cases,
        run.folder,
        n_splits=FOLDS,
        preprocessor=preprocessor,
        start_from=start,
        steps=steps,
        n_jobs=jobs,
        cache_dir=run.folder / "cache",
    )
    return score(run, cases, range(len(folds)))


def add_rows(table):
    """Add rows to the table of results."""
    print(table.to_string(index=False))
    before = [pd.read_csv(TABLE)] if TABLE.exists() else []
    write_table(TABLE, pd.concat([*before, table]))


if __name__ == "__main__":
    main()
