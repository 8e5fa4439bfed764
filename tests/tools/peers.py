"""Train MONAI's networks on the folds of an experiment, for as many minutes: results/peers.json.

pip install -e ".[benchmark]"
python -m tests.tools.peers path/to/PROMISE12 results/promise12 UNet DynUNet --minutes 6
python -m tests.tools.peers path/to/PROMISE12 results/promise12 unetseg

MONAI's own transforms, losses, networks and sliding windows, put together as its tutorials do
(spleen_segmentation_3d, dynunet_pipeline), on the spacing, the patch and the mirrored axes that the
experiment planned, one look at the whole scan. The learning rate falls to 0 by the clock, so that
each fold is trained for the minutes that it is given, whatever a step takes. Where the tutorials
have a rate for hundreds of epochs, AdamW takes 1e-3, as minutes are few. ``unetseg`` enters the
scores of the experiment itself.
"""

import argparse
import datetime
import os
import time
from importlib.metadata import version
from pathlib import Path

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

from unetseg import scores
from unetseg._base import write_json
from unetseg.cases import find_cases
from unetseg.preprocessing import Preprocessor
from unetseg.run.layout import Run, read_json

TABLE = Path(__file__).parents[2] / "results" / "peers.json"
RATE, WEIGHT_DECAY = 1e-3, 1e-4
KEYS = ("image", "label")


def main(arguments=None):
    """Train, predict and score each system that the command names; add a row for each."""
    asked = _read(arguments)
    run, cases = Run(Path(asked.experiment)), find_cases(asked.data)
    folds, preprocessor = read_json(run.splits), Preprocessor.load(run.preprocessor)
    for system in asked.systems:
        if system == "unetseg":
            folder = run.folder
            seconds = [60 * read_json(run.fold(k).done)["minutes"] for k in range(len(folds))]
        else:
            folder = Path(asked.out) / f"{run.folder.name}_{system}"
            seconds = [
                train_fold(system, cases, fold, preprocessor, folder, number, asked.minutes)
                for number, fold in enumerate(folds)
            ]
        table = scores.score_predictions(cases, folder / "predictions", folds, preprocessor.labels)
        command = f"{asked.data} {asked.experiment} {system} --minutes {asked.minutes}"
        add_rows(table, Path(asked.data).name, system, seconds, command)


def _read(arguments):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data")
    parser.add_argument("experiment", help="folder with splits.json and preprocessor.json")
    parser.add_argument("systems", nargs="+", choices=[*NETWORKS, "unetseg"])
    parser.add_argument("--minutes", type=float, help="that each fold is trained")
    parser.add_argument("--out", default="/tmp/unetseg_peers")
    return parser.parse_args(arguments)


def train_fold(system, cases, fold, preprocessor, folder, number, minutes):
    """Train a network and predict the cases that the fold validates, unless that is done.

    Returns
    -------
    float
        Seconds that training and prediction took, together.
    """
    done = folder / f"fold_{number}.json"
    if done.exists():
        return read_json(done)["seconds"]
    started = time.monotonic()
    set_determinism(number)
    by_id = {case.id: case for case in cases}
    train, val = ([_describe(by_id[i]) for i in fold[part]] for part in ("train", "val"))
    net = NETWORKS[system](preprocessor)
    steps = fit(net, train, preprocessor, minutes)
    (folder / "predictions").mkdir(parents=True, exist_ok=True)
    predict(net, val, preprocessor, folder / "predictions")
    seconds = time.monotonic() - started
    write_json(done, {"seconds": seconds, "steps": steps})
    print(f"{system} fold {number}: {steps} steps, {seconds / 60:.1f} minutes")
    return seconds


def _describe(case):
    return {"image": [str(path) for path in case.files], "label": str(case.mask), "id": case.id}


def build_unet(preprocessor):
    """The residual UNet of MONAI's tutorial on spleens; thin axes are halved as DynUNet's are."""
    strides = plan_strides(preprocessor)
    return UNet(
        spatial_dims=3,
        in_channels=preprocessor.channels,
        out_channels=preprocessor.num_classes,
        channels=[16, 32, 64, 128, 256][: len(strides) + 1],
        strides=strides[:4],
        num_res_units=2,
        norm="instance",
    )


def build_dynunet(preprocessor):
    """DynUNet as its pipeline plans it, with two heads of deep supervision."""
    strides = plan_strides(preprocessor)
    kernels = plan_kernels(preprocessor, strides)
    return DynUNet(
        spatial_dims=3,
        in_channels=preprocessor.channels,
        out_channels=preprocessor.num_classes,
        kernel_size=kernels,
        strides=[(1, 1, 1), *strides],
        upsample_kernel_size=strides,
        norm_name="instance",
        deep_supervision=True,
        deep_supr_num=min(2, len(strides) - 1),
    )


NETWORKS = {"UNet": build_unet, "DynUNet": build_dynunet}


def plan_strides(preprocessor):
    """Halve the axes whose voxels are up to twice the shortest ones, while 8 voxels remain."""
    side, length = np.array(preprocessor.patch), np.array(preprocessor.spacing_mm)
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


def fit(net, train, preprocessor, minutes):
    """Train for some minutes, the preparation of the cases included; return the steps."""
    deadline = 60 * minutes
    started = time.monotonic()
    data = CacheDataset(train, _make_transforms(preprocessor), num_workers=2, progress=False)
    loader = DataLoader(data, batch_size=1, shuffle=True)
    loss = DiceCELoss(to_onehot_y=True, softmax=True, include_background=False)
    if isinstance(net, DynUNet):
        loss = DeepSupervisionLoss(loss)
    optimizer = torch.optim.AdamW(net.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    net.train()
    steps = 0
    while True:
        for batch in loader:
            elapsed = (time.monotonic() - started) / deadline
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


def _make_transforms(preprocessor):
    labels = [0, *preprocessor.labels]
    patch, mirrored = preprocessor.patch, preprocessor.mirror_axes
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
            *(tr.RandFlipd(KEYS, prob=0.5, spatial_axis=axis) for axis in mirrored),
            tr.RandGaussianNoised("image", prob=0.15),
            tr.RandGaussianSmoothd("image", prob=0.15),
            tr.RandScaleIntensityd("image", factors=0.3, prob=0.15),
            tr.RandAdjustContrastd("image", prob=0.15, gamma=(0.7, 1.5), retain_stats=True),
        ]
    )


def predict(net, val, preprocessor, folder):
    """Segment each case, and write its labels on the native grid."""
    read = tr.Compose(_read_transforms(preprocessor, ["image"]))
    back = tr.Invertd("pred", read, orig_keys="image", nearest_interp=False)
    values = np.array([0, *preprocessor.labels], np.uint8)
    net.eval()
    for batch in DataLoader(Dataset(val, read)):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            window = batch["image"], preprocessor.patch, 4, net, 0.5, "gaussian"
            batch["pred"] = sliding_window_inference(*window).float()
        (case,) = decollate_batch(batch)
        classes = back(case)["pred"].argmax(dim=0).numpy()
        scan = nib.load(case["image"].meta["filename_or_obj"])
        labels = nib.Nifti1Image(values[classes], scan.affine, scan.header)
        labels.set_data_dtype(np.uint8)
        nib.save(labels, folder / f"{case['id']}.nii.gz")


def add_rows(table, data, system, seconds, command):
    """Add a row for each label to the table of peers, in the place of an earlier one."""
    about = {"data": data, "system": system, "version": _find_version(system)}
    about |= {"date": str(datetime.date.today()), "cores": os.cpu_count()}
    about |= {"minutes": round(sum(seconds) / 60, 1), "command": command}
    rows = [{**about, **_describe_scores(part)} for _, part in table.groupby("label")]
    before = read_json(TABLE) if TABLE.exists() else []
    kept = [row for row in before if (row["data"], row["system"]) != (data, system)]
    write_json(TABLE, kept + rows)
    print(pd.DataFrame(rows).drop(columns="command").to_string(index=False))


def _find_version(system):
    return version("unetseg") if system == "unetseg" else f"MONAI {version('monai')}"


def _describe_scores(part):
    distances = part["hd95_mm"][np.isfinite(part["hd95_mm"])]
    return {
        "label": part["name"].iloc[0],
        "n": len(part),
        "dice": round(part["dice"].mean(), 4),
        "dice_sd": round(part["dice"].std(), 4),
        "hd95_mm": round(distances.mean(), 2),
        "without_distance": len(part) - len(distances),
        "failures": len(scores.find_failures(part)),
    }


if __name__ == "__main__":
    main()
