"""How well do the folds' agreement and the probabilities hold on cases that no model has seen?

python -m tests.reliability_study path/to/Task04_Hippocampus 0 [1 ...]

For each of the named folds of the published split, five models are trained by cross-validation
within its training part alone (38 minutes on two cores) and together predict its validation part,
as notebook 4 predicts new scans. Writes results/hippocampus/reliability.csv and .json, and two
figures. The temperature comes from the training part; nothing is chosen on the cases shown.
"""

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes

from unetseg import cases, inference, metrics, nifti, plots, reliability, training
from unetseg.preprocessing import Preprocessor

ROOT = Path(__file__).parent.parent
OUT = ROOT / "results" / "hippocampus"


def train(found, folds, outer, labels):
    part = [case for case in found if case.id in set(folds[outer]["train"])]
    results = ROOT / "results" / f"inner_{outer}"
    preprocessor = Preprocessor(labels=labels).fit(part)
    training.cross_validate(part, results, preprocessor=preprocessor, n_splits=5)
    return results


def predict(results, held_out):
    models, preprocessor = (
        inference.load_models(results),
        Preprocessor.load(results / "preprocessor.json"),
    )
    rng, rows, voxels = np.random.default_rng(0), [], []
    for case in held_out:
        found = inference.predict_case(models, case, preprocessor)
        truth, affine = nifti.load_mask(case.mask)
        spacing = voxel_sizes(affine)
        described = reliability.describe_votes(
            found.votes, preprocessor.labels, np.prod(spacing) / 1000
        )
        scored = metrics.score_case(truth, found.labels, spacing, preprocessor.labels)
        for one, score in zip(described, scored, strict=True):
            row = {"case": case.id, **one, "dice": score["dice"], "hd95_mm": score["hd95_mm"]}
            inside = found.labels == one["label"]
            row["uncertainty"] = found.uncertainty[inside].mean() if inside.any() else np.nan
            rows.append(row)
        classes = sum(k * (truth == v) for k, v in enumerate(preprocessor.labels, 1))
        voxels.append(reliability.sample_voxels(found.probabilities, classes, rng))
    return rows, voxels, inference.load_temperature(results)


def main(data, outers):
    found, labels = cases.find_cases(data), cases.read_label_names(data)
    folds = json.loads((OUT / "splits.json").read_text(encoding="utf-8"))
    rows, before, after, truth, temperatures = [], [], [], [], {}
    for outer in outers:
        results = train(found, folds, outer, labels)
        held_out = [case for case in found if case.id in set(folds[outer]["val"])]
        some, voxels, temperature = predict(results, held_out)
        rows += [{"fold": outer, **row} for row in some]
        temperatures[outer] = round(temperature, 4)
        for probabilities, classes in voxels:
            before.append(probabilities)
            after.append(reliability.soften(probabilities, temperature))
            truth.append(classes)
    table = pd.DataFrame(rows)
    table.round(6).to_csv(OUT / "reliability.csv", index=False)
    truth = np.concatenate(truth)
    tables = {"mean of the folds": np.concatenate(before), "calibrated": np.concatenate(after)}
    tables = {k: reliability.calibration_table(v, truth) for k, v in tables.items()}
    errors = {k: reliability.expected_calibration_error(v) for k, v in tables.items()}
    parts = {label: table[table["label"] == label] for label in labels}
    agreement = {label: part["agreement"].to_numpy() for label, part in parts.items()}
    dices = {label: part["dice"].to_numpy() for label, part in parts.items()}
    rho = {k: reliability.rank_correlation(agreement[k], dices[k]) for k in labels}
    unsure = {
        k: reliability.rank_correlation(-part["uncertainty"], part["dice"])
        for k, part in parts.items()
    }
    figures = {"quality_estimate": plots.quality_estimate(agreement, dices, labels, rho=rho)}
    figures["calibration"] = plots.reliability_curves(tables, errors)
    for name, figure in figures.items():
        figure.savefig(OUT / "figures" / f"{name}.png", dpi=100)
    said = {
        "cases": len(table) // len(labels),
        "temperatures": temperatures,
        "dice": {labels[k]: float(dices[k].mean()) for k in labels},
        "rank_correlation_of_agreement": {labels[k]: rho[k] for k in labels},
        "rank_correlation_of_certainty": {labels[k]: unsure[k] for k in labels},
        "expected_calibration_error": errors,
    }
    (OUT / "reliability.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
