"""How well do the folds' agreement and the probabilities hold on cases that no model has seen?

python -m tests.tools.reliability_study path/to/Task04_Hippocampus 0 [1 ...]

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
from scipy import ndimage, stats

from unetseg import cases, charts, inference, metrics, nifti, reliability, training
from unetseg.plots import colour_of, new_figure
from unetseg.preprocessing import Preprocessor

ROOT = Path(__file__).parents[2]
OUT = ROOT / "results" / "hippocampus"


def rank_correlation(estimate, dices):
    """Spearman's correlation of an estimate of quality with the real Dice.

    Parameters
    ----------
    estimate, dices : (n,) array of float
        Pairs in which either is not finite are left out.

    Returns
    -------
    rho : float
        In [-1, 1]; 1 if the estimate puts the cases in the order of their Dice. NaN for fewer
        than three pairs, or if either is the same for all.
    low, high : float
        95 % confidence interval by Fisher's transformation, with Bonett and Wright's (2000)
        standard error.
    """
    pairs = np.array([estimate, dices], float)
    pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
    n = pairs.shape[1]
    if n < 3 or not np.ptp(pairs, axis=1).all():
        return np.nan, np.nan, np.nan
    rho = stats.spearmanr(*pairs).statistic
    width = 1.96 * np.sqrt((1 + rho**2 / 2) / max(n - 3, 1e-9))
    middle = np.arctanh(np.clip(rho, -1 + 1e-12, 1 - 1e-12))
    return float(rho), float(np.tanh(middle - width)), float(np.tanh(middle + width))


def quality_estimate(estimate, dices, labels, *, rho):
    """Show how well an estimate of quality, such as the agreement of the folds, foretells Dice.

    Parameters
    ----------
    estimate, dices : dict of int to (n,) array of float
        Per label, a number per case.
    labels : dict of int to str
        Value and name of every label.
    rho : dict of int to (rho, low, high)
        As `rank_correlation` returns it, per label.

    Returns
    -------
    matplotlib.figure.Figure
        Pairs in which either is not finite are neither drawn nor counted.
    """
    figure, axes = new_figure(1, len(labels), max(5, 4 * len(labels)), 4)
    for ax, (label, name) in zip(axes[0], labels.items(), strict=True):
        pairs = np.array([estimate[label], dices[label]], float)
        pairs = pairs[:, np.isfinite(pairs).all(axis=0)]
        ax.scatter(*pairs, s=16, color=colour_of(label, labels), alpha=0.7)
        ax.set(xlabel="mean Dice between the folds", ylabel="Dice with the truth")
        for values, set_limits in zip(pairs, (ax.set_xlim, ax.set_ylim), strict=True):
            if values.size:  # a few thousandths are not drawn as if they were much
                half = max(0.05, 0.55 * np.ptp(values))
                set_limits((values.min() + values.max()) / 2 + np.array([-half, half]))
        middle, low, high = rho[label]
        title = f"{name}: rank correlation {middle:.2f}\n({low:.2f} to {high:.2f}, "
        title = f"{name}: no rank correlation\n(" if np.isnan(middle) else title
        ax.set_title(f"{title}n = {pairs.shape[1]})")
    return figure


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
        rho = {k: rank_correlation(agreement[k], dices[k]) for k in labels}
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
    figures = {"quality_estimate": quality_estimate(agreement, dices, labels, rho=rho)}
    figures["calibration"] = charts.reliability_curves(tables, errors)
    for name, figure in figures.items():
        figure.savefig(OUT / "figures" / f"{name}.png", dpi=100)
    (OUT / "reliability.json").write_text(json.dumps(said, indent=1), encoding="utf-8")
    print(json.dumps(said, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), [int(number) for number in sys.argv[2:]])
