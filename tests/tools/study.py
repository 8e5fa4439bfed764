"""Does a change of the recipe help, on every kind of data that is at hand?

python -m tests.tools.study path/to/data default PROMISE12 CHD_LVRV --inner 0 1 --minutes 8
python -m tests.tools.study path/to/data "one look" CHD_LVRV --inner 0 --set coarse_mm=()

The cases that fold 1 trains on, of the usual five folds, are split once more into three parts;
networks are trained on two of them and scored on the third, so nothing is chosen on a fold that is
scored. ``--set`` changes settings of `Preprocessor`, `Recipe` or `build_unet` by name. A row for
each inner part and label is added to results/recipe.csv: see results/recipe.md.
"""

import argparse
import ast
import datetime
import os
from dataclasses import fields
from pathlib import Path

import numpy as np
import pandas as pd

from unetseg import scores, training
from unetseg._base import write_json, write_table
from unetseg.cases import find_cases
from unetseg.preprocessing import Preprocessor
from unetseg.recipe import Recipe
from unetseg.run.layout import Run, read_json
from unetseg.splits import make_folds

TABLE = Path(__file__).parents[2] / "results" / "recipe.csv"
INNER = 3


def main(arguments=None):
    """Train and score each of the data sets that the command names."""
    asked = _read(arguments)
    for name in asked.names:
        cases = _list_inner_cases(find_cases(Path(asked.data) / name))
        folder = Path(asked.out) / f"{name}_{asked.title}_{asked.seed}".replace(" ", "_")
        run = train(cases, folder, asked)
        rows = score(run, cases, asked.inner)
        about = {"date": str(datetime.date.today()), "data": name, "what": asked.title}
        table = pd.DataFrame([{**about, "seed": asked.seed, **row} for row in rows])
        print(table.to_string(index=False))
        before = [pd.read_csv(TABLE)] if TABLE.exists() else []
        write_table(TABLE, pd.concat([*before, table]))


def _read(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("title")
    parser.add_argument("names", nargs="+")
    parser.add_argument("--inner", type=int, nargs="+", default=[0])
    parser.add_argument("--seed", type=int, default=12345)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", default="/tmp/unetseg_study")
    parser.add_argument("--set", nargs="*", default=[], help="such as steps=150 coarse_mm=()")
    parser.add_argument("--minutes", type=float)
    return parser.parse_args(arguments)


def _list_inner_cases(cases):
    by_id = {case.id: case for case in cases}
    return [by_id[i] for i in make_folds(cases)[1]["train"]]


def train(cases, folder, asked):
    """Train the inner parts that are asked for; ones that are finished stay as they are."""
    run = Run(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(run.splits, [make_folds(cases, INNER, seed=0)[k] for k in asked.inner])
    given = dict(text.split("=", 1) for text in asked.set)
    given = {key: ast.literal_eval(value) for key, value in given.items()}
    if asked.minutes:
        given["minutes"] = asked.minutes
    preprocessor, recipe = (_take(given, kind) for kind in (Preprocessor, Recipe))
    training.cross_validate(
        cases,
        folder,
        preprocessor=Preprocessor(**preprocessor),
        model_args=given,
        seed=asked.seed,
        n_jobs=asked.jobs,
        cache_dir=folder / "cache",
        **recipe,
    )
    return run


def _take(given, kind):
    names = [field.name for field in fields(kind) if field.name in given]
    return {name: given.pop(name) for name in names}


def score(run, cases, inner):
    """A row for each inner part and label: Dice, HD95, the worst decile, failures, minutes."""
    folds, labels = read_json(run.splits), Preprocessor.load(run.preprocessor).labels
    table = scores.score_predictions(cases, run.predictions, folds, labels)
    rows = []
    for (fold, label), part in table.groupby(["fold", "label"]):
        done = read_json(run.fold(fold).done)
        dice, hd95 = part["dice"].to_numpy(), part["hd95_mm"].to_numpy()
        worst = np.sort(dice)[: max(1, len(dice) // 10)]
        rows.append(
            {
                "inner": inner[fold],
                "label": label,
                "n": len(dice),
                "dice": round(dice.mean(), 4),
                "hd95_mm": round(float(np.mean(hd95)), 1),
                "worst_decile": round(worst.mean(), 3),
                "failures": len(scores.find_failures(part)),
                "steps": done["steps"],
                "minutes": done["minutes"],
                "cores": os.cpu_count(),
            }
        )
    return rows


if __name__ == "__main__":
    main()
