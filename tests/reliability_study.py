"""How well do the folds' agreement and the probabilities hold on cases that no model has seen?

python -m tests.reliability_study path/to/Task04_Hippocampus 0 [1 ...]

For each of the named folds of the published split, five models are trained by cross-validation
within its training part alone (38 minutes on two cores) and together predict its validation part,
as notebook 4 predicts new scans: as they are, and once more after each was made worse (noise, blur
or thick slices, of random strength), as scans from elsewhere may be. Writes
results/hippocampus/reliability.csv and .json, and two figures. The temperature comes from the
training part; nothing is chosen on the cases shown.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nibabel.affines import voxel_sizes
from scipy import ndimage

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


def make_worse(case, folder, rng):
    image, affine = nifti.load_image(case.image)
    strength = rng.uniform()
    noise = rng.standard_normal(image.shape) * image.std() * 2 * strength
    blurred = ndimage.gaussian_filter(image, 4 * strength)
    slices = image[..., :: 2 + int(8 * strength)]
    thick = np.repeat(slices, 2 + int(8 * strength), axis=-1)[..., : image.shape[-1]]
    kinds = {"noise": image + noise, "blur": blurred, "thick slices": thick}
    kind = rng.choice(list(kinds))
    path = folder / f"{case.id}.nii.gz"
    nib.save(nib.Nifti1Image(kinds[kind].astype(np.float32), affine), path)
    return replace(case, image=path), f"{kind}, strength {strength:.2f}"


def predict(results, held_out):
    models, preprocessor = (
        inference.load_models(results),
        Preprocessor.load(results / "preprocessor.json"),
    )
    rng, rows, voxels = np.random.default_rng(0), [], []
    with tempfile.TemporaryDirectory() as folder:
        cases_of = [(case, "") for case in held_out]
        cases_of += [make_worse(case, Path(folder), rng) for case in held_out]
        for case, worse in cases_of:
            some, sampled = predict_one(models, case, preprocessor, rng)
            rows += [{"worse": worse, **row} for row in some]
            voxels += [] if worse else [sampled]
    return rows, voxels, inference.load_temperature(results)


def predict_one(models, case, preprocessor, rng):
    found = inference.predict_case(models, case, preprocessor)
    truth, affine = nifti.load_mask(case.mask)
    spacing, labels, rows = voxel_sizes(affine), preprocessor.labels, []
    described = reliability.describe_votes(found.votes, labels, np.prod(spacing) / 1000)
    scored = metrics.score_case(truth, found.labels, spacing, labels)
    for one, score in zip(described, scored, strict=True):
        row = {"case": case.id, **one, "dice": score["dice"], "hd95_mm": score["hd95_mm"]}
        inside = found.labels == one["label"]
        row["uncertainty"] = found.uncertainty[inside].mean() if inside.any() else np.nan
        rows.append(row)
    classes = sum(k * (truth == v) for k, v in enumerate(labels, 1))
    return rows, reliability.sample_voxels(found.probabilities, classes, rng)


def as_scanned(table):
    return table[table["worse"] == ""]


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
    known = pd.read_csv(OUT / "summary.csv")
    usual = known[known["metric"] == "dice"].set_index("label")["mean"]
    said = {"cases": len(as_scanned(table)) // len(labels), "temperatures": temperatures}
    for name, part in (("as scanned", as_scanned(table)), ("as scanned and made worse", table)):
        parts = {label: part[part["label"] == label] for label in labels}
        agreement = {label: one["agreement"].to_numpy() for label, one in parts.items()}
        dices = {label: one["dice"].to_numpy() for label, one in parts.items()}
        rho = {k: reliability.rank_correlation(agreement[k], dices[k]) for k in labels}
        low = {k: one["agreement"] < usual[k] for k, one in parts.items()}
        bad = {k: one["dice"] < 0.7 for k, one in parts.items()}
        said[name] = {
            "labels": len(part),
            "flagged": int(sum(low[k].sum() for k in labels)),
            "dice_below_0.7": int(sum(bad[k].sum() for k in labels)),
            "flagged_of_these": int(sum((low[k] & bad[k]).sum() for k in labels)),
            "mean_dice": {labels[k]: round(float(dices[k].mean()), 4) for k in labels},
            "rank_correlation": {labels[k]: np.round(rho[k], 4).tolist() for k in labels},
        }
    said["expected_calibration_error"] = {k: round(v, 4) for k, v in errors.items()}
    figures = {"quality_estimate": plots.quality_estimate(agreement, dices, labels, rho=rho)}
    figures["calibration"] = plots.reliability_curves(tables, errors)
    for name, figure in figures.items():
        figure.savefig(OUT / "figures" / f"{name}.png", dpi=100)
    (OUT / "reliability.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
