"""Train MONAI's networks on the folds of an experiment, for as many minutes: results/peers.json.

pip install -e ".[benchmark]"
python -m tests.tools.peers path/to/PROMISE12 results/promise12 unetseg
python -m tests.tools.peers path/to/PROMISE12 results/promise12 UNet DynUNet --minutes 12 --jobs 2

MONAI's own transforms, losses, networks and sliding windows, put together as its tutorials do
(spleen_segmentation_3d, dynunet_pipeline), at the spacing and with the mirrored axes that the
experiment planned, in one look at the whole scan, in patches of up to 96 voxels along each axis. A
batch is one patch. The learning rate falls from 1e-3 to 0 by the clock (AdamW), so each fold is
trained for the minutes that it is given, whatever a step takes; prediction comes on top, with
mirrored copies, and of each label only the largest piece counts where the other folds say so, as
in unetseg. Nothing of it was tuned on these data, while unetseg's defaults were formed on inner
splits of them. ``unetseg`` enters the scores of the experiment itself. With ``--jobs 2`` two folds
are trained at once, each with one thread (set OMP_NUM_THREADS=1), as TF_NUM_INTRAOP_THREADS=1 and
N_JOBS=2 do it with unetseg.
"""

import argparse
import datetime
import os
import time
from importlib.metadata import version
from itertools import combinations
from pathlib import Path

import joblib
import nibabel as nib
import numpy as np
import pandas as pd
import torch
from monai import transforms as tr
from monai.data import CacheDataset, DataLoader, Dataset, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.networks.nets import DynUNet, UNet
from monai.utils import set_determinism

from unetseg import __version__, components, scores
from unetseg._base import write_json
from unetseg.cases import find_cases
from unetseg.preprocessing import Preprocessor
from unetseg.run.layout import Run, read_json

TABLE = Path(__file__).parents[2] / "results" / "peers.json"
RATE, WEIGHT_DECAY = 1e-3, 1e-4
LONGEST = 96  # voxels of a patch along an axis
KEYS = ("image", "label")
SPREAD = ["mean", "sd"]


def main(arguments=None):
    """Train, predict and score each system that the command names; add a row for each label."""
    asked = _read(arguments)
    run, cases = Run(Path(asked.experiment)), find_cases(asked.data)
    folds = dict(enumerate(read_json(run.splits)))
    folds = {number: folds[number] for number in asked.folds or folds}
    for system in asked.systems:
        if system == "unetseg":
            table, minutes = read_own(run, folds)
        else:
            folder = Path(asked.out) / f"{run.folder.name}_{system}_{asked.minutes:g}"
            minutes = train_folds(system, cases, folds, run, folder, asked)
            table = score(cases, folder, folds, run)
        add_rows(table, Path(asked.data).name, system, [*folds], minutes, asked.jobs)


def read_own(run, folds):
    """Read the scores of the experiment itself, and how many minutes each fold took."""
    table = scores.load_scores(run.scores)
    minutes = [done["minutes"] for done in run.read_finished(folds).values()]
    return table[table["fold"].isin(list(folds))], minutes


def score(cases, folder, folds, run):
    """Score predictions as unetseg does; stray pieces of some folds as the experiment's are."""
    labels, chosen = Preprocessor.load(run.preprocessor).labels, list(folds.values())
    if len(folds) == len(read_json(run.splits)):
        components.decide(folder, cases, chosen, labels)
    else:
        write_json(Run(folder).components, run.read_components())
    return scores.score_predictions(cases, folder / "predictions", chosen, labels)


def _read(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("experiment", help="folder with splits.json and preprocessor.json")
    parser.add_argument("systems", nargs="+", choices=[*NETWORKS, "unetseg"])
    parser.add_argument("--folds", type=int, nargs="*", help="numbers, by default all")
    parser.add_argument("--minutes", type=float, default=12, help="that each fold is trained")
    parser.add_argument("--jobs", type=int, default=1, help="folds that are trained at once")
    parser.add_argument("--out", default="/tmp/unetseg_peers")
    return parser.parse_args(arguments)


def train_folds(system, cases, folds, run, folder, asked):
    """Train and predict each fold; tell how many minutes both took."""
    preprocessor = Preprocessor.load(run.preprocessor)
    call = joblib.delayed(train_fold)
    about = system, preprocessor, folder, asked.minutes
    jobs = (call(cases, fold, number, *about) for number, fold in folds.items())
    return joblib.Parallel(asked.jobs)(jobs)


def train_fold(cases, fold, number, system, preprocessor, folder, minutes):
    """Train a network and predict the cases that the fold validates, unless that is done.

    Returns
    -------
    float
        Minutes that training and prediction took, together.
    """
    done = folder / f"fold_{number}.json"
    if done.exists() and read_json(done)["fold"] == fold:
        return read_json(done)["minutes"]
    started = time.monotonic()
    set_determinism(number)
    by_id = {case.id: case for case in cases}
    train, val = ([_describe(by_id[i]) for i in fold[part]] for part in ("train", "val"))
    patch = choose_patch(train, preprocessor)
    net = NETWORKS[system](preprocessor, patch)
    steps = fit(net, train, preprocessor, patch, minutes)
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    predict(net, val, preprocessor, patch, folder / "predictions")
    took = (time.monotonic() - started) / 60
    write_json(done, {"minutes": took, "steps": steps, "patch": patch, "fold": fold})
    print(f"{system} fold {number}: {steps} steps on {patch}, {took:.1f} minutes", flush=True)
    return took


def _describe(case):
    return {"image": [str(path) for path in case.files], "label": str(case.mask), "id": case.id}


def choose_patch(train, preprocessor):
    """Choose the median shape, rounded up to what can be halved, up to 96 voxels an axis."""
    read = tr.Compose(_read_transforms(preprocessor, ["image"]))
    shapes = [read(about)["image"].shape[1:] for about in train]
    sides = np.minimum(np.median(shapes, axis=0), LONGEST)
    multiple = np.where(sides >= 32, 16, 4)
    return (np.ceil(sides / multiple) * multiple).astype(int).tolist()


def build_unet(preprocessor, patch):
    """Build the residual UNet of MONAI's tutorial on spleens, halving thin axes as DynUNet does."""
    strides = plan_strides(preprocessor, patch)[:4]
    return UNet(
        spatial_dims=3,
        in_channels=preprocessor.channels,
        out_channels=preprocessor.num_classes,
        channels=[16, 32, 64, 128, 256][: len(strides) + 1],
        strides=strides,
        num_res_units=2,
        norm="instance",
    )


def build_dynunet(preprocessor, patch):
    """Build DynUNet as its pipeline plans it, with two heads of deep supervision."""
    strides = plan_strides(preprocessor, patch)
    return DynUNet(
        spatial_dims=3,
        in_channels=preprocessor.channels,
        out_channels=preprocessor.num_classes,
        kernel_size=plan_kernels(preprocessor, strides),
        strides=[(1, 1, 1), *strides],
        upsample_kernel_size=strides,
        norm_name="instance",
        deep_supervision=True,
        deep_supr_num=min(2, len(strides) - 1),
    )


NETWORKS = {"UNet": build_unet, "DynUNet": build_dynunet}


def plan_strides(preprocessor, patch):
    """Halve the axes whose voxels are up to twice the shortest ones, while 8 voxels remain."""
    side, length = np.array(patch), np.array(preprocessor.spacing_mm)
    strides = []
    while True:
        halved = (length <= 2 * length.min()) & (side >= 8) & (side % 2 == 0)
        if not halved.any():
            return strides
        strides.append(tuple(np.where(halved, 2, 1).tolist()))
        side, length = side // strides[-1], length * strides[-1]


def plan_kernels(preprocessor, strides):
    """Kernels span 1 voxel along an axis more than twice as long as the shortest, else 3."""
    length, kernels = np.array(preprocessor.spacing_mm), []
    for stride in [(1, 1, 1), *strides]:
        length = length * stride
        kernels.append(tuple(np.where(length > 2 * length.min(), 1, 3).tolist()))
    return kernels


def fit(net, train, preprocessor, patch, minutes):
    """Train for some minutes, the preparation of the cases included; return the steps."""
    started = time.monotonic()
    data = CacheDataset(train, _make_transforms(preprocessor, patch), progress=False)
    loader = DataLoader(data, batch_size=1, shuffle=True)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    if isinstance(net, DynUNet):
        loss = DeepSupervisionLoss(loss)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    net.train()
    steps = 0
    while True:
        for batch in loader:
            elapsed = (time.monotonic() - started) / (60 * minutes)
            if elapsed >= 1:
                return steps
            for group in optimizer.param_groups:
                group["lr"] = RATE * 0.5 * (1 + np.cos(np.pi * elapsed))
            _take_step(net, batch, loss, optimizer)
            steps += 1


def _take_step(net, batch, loss, optimizer):
    optimizer.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        out = net(batch["image"].as_tensor())
    heads = list(out.float().unbind(1)) if isinstance(net, DynUNet) else out.float()
    loss(heads, batch["label"].as_tensor()).backward()
    torch.nn.utils.clip_grad_norm_(net.parameters(), 12)
    optimizer.step()


def _read_transforms(preprocessor, keys):
    modes = ("bilinear", "nearest")[: len(keys)]
    return [
        tr.LoadImaged(keys),
        tr.EnsureChannelFirstd(keys),
        tr.Orientationd(keys, axcodes="RAS", labels=None),
        tr.Spacingd(keys, pixdim=preprocessor.spacing_mm, mode=modes),
        tr.NormalizeIntensityd("image", nonzero=True, channel_wise=True),
    ]


def _make_transforms(preprocessor, patch):
    labels = [0, *preprocessor.labels]
    return tr.Compose(
        [
            *_read_transforms(preprocessor, KEYS),
            tr.MapLabelValued("label", labels, range(len(labels))),
            tr.SpatialPadd(KEYS, patch),
            tr.RandCropByPosNegLabeld(KEYS, "label", patch, pos=1, neg=1),
            tr.RandAffined(
                KEYS,
                prob=0.3,
                rotate_range=(0.26, 0.26, 0.52),
                scale_range=0.2,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            *(tr.RandFlipd(KEYS, 0.5, axis) for axis in preprocessor.mirror_axes),
            tr.RandGaussianNoised("image", prob=0.15),
            tr.RandGaussianSmoothd("image", prob=0.15),
            tr.RandScaleIntensityd("image", factors=0.3, prob=0.15),
            tr.RandAdjustContrastd("image", prob=0.15, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )


def predict(net, val, preprocessor, patch, folder):
    """Segment each case, and write its labels on the native grid."""
    read = tr.Compose(_read_transforms(preprocessor, ["image"]))
    back = tr.Invertd("pred", read, orig_keys="image", nearest_interp=False)
    values = np.array([0, *preprocessor.labels], np.uint8)
    net.eval()
    for batch in DataLoader(Dataset(val, read)):
        batch["pred"] = _predict_mirrored(net, batch["image"], patch, preprocessor.mirror_axes)
        (case,) = decollate_batch(batch)
        classes = back(case)["pred"].argmax(dim=0).numpy()
        scan = nib.load(case["image"].meta["filename_or_obj"])
        labels = nib.Nifti1Image(values[classes], scan.affine, scan.header)
        labels.set_data_dtype(np.uint8)
        nib.save(labels, folder / f"{case['id']}.nii.gz")


def _predict_mirrored(net, scan, patch, axes):
    total = 0
    for count in range(len(axes) + 1):
        for mirrored in combinations(axes, count):
            flip = [2 + axis for axis in mirrored]
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                seen = torch.flip(scan, flip) if flip else scan
                pred = sliding_window_inference(seen, patch, 4, net, 0.5, "gaussian")
            pred = torch.softmax(pred.float(), dim=1)
            total = total + (torch.flip(pred, flip) if flip else pred)
    return total


def add_rows(table, data, system, folds, minutes, jobs):
    """Add a row for each label to the table of peers, in the place of an earlier one."""
    about = {"data": data, "system": system, "version": _find_version(system)}
    about |= {"date": str(datetime.date.today()), "cores": os.cpu_count(), "jobs": jobs}
    about |= {"folds": folds, "minutes": round(float(np.sum(minutes)), 1)}
    of_labels = scores.summarise(table).groupby("label")
    rows = [{**about, **_describe_scores(part)} for _, part in of_labels]
    before = read_json(TABLE) if TABLE.exists() else []
    this = data, system, folds
    kept = [row for row in before if (row["data"], row["system"], row["folds"]) != this]
    write_json(TABLE, kept + rows)
    print(pd.DataFrame(rows).to_string(index=False))


def _find_version(system):
    return __version__ if system == "unetseg" else f"MONAI {version('monai')}"


def _describe_scores(summary):
    # Of one label; a number that no case has is null in JSON.
    part = summary.set_index("metric")
    described = {"label": part["name"].iloc[0], "n": int(part["n"].iloc[0])}
    for metric, digits in (("dice", 4), ("hausdorff_mm", 2), ("hd95_mm", 2)):
        mean, sd = (None if pd.isna(x) else round(x, digits) for x in part.loc[metric, SPREAD])
        described |= {metric: mean, f"{metric}_sd": sd}
    described["without_distance"] = int(part.loc["hd95_mm", ["nan", "inf"]].sum())
    failures = part["failures"].iloc[0]
    return {**described, "failures": len(failures.split("; ")) if failures else 0}


if __name__ == "__main__":
    main()
