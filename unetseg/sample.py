"""The embedded data set: simulated T1 brains, made on the spot from a template."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec
from nilearn.datasets import load_mni152_gm_template, load_mni152_template, load_mni152_wm_template
from scipy import ndimage
from scipy.spatial.transform import Rotation

from unetseg._base import write_json
from unetseg.nifti import write

TEMPLATES = (load_mni152_template, load_mni152_gm_template, load_mni152_wm_template)
SPACING_MM = 3.0
SHAPE = np.array((54, 68, 56))
CENTRE_MM = np.array((0, -16, 8))  # of the brain, in the template's space
VISITS = (2, 1, 1)  # every third patient comes twice
LABELS = {1: "grey matter", 2: "white matter"}


def make_sample(folder, n_cases=16, seed=0):
    """Make a cohort of simulated brains, unless it is there already.

    The ICBM 152 template and its tissue maps (Fonov et al. 2011), which come with nilearn, are
    deformed smoothly at random for every patient, and given a contrast, bias field and noise of
    their own at every visit. They look like T1 scans. They are simulated.

    Parameters
    ----------
    folder : str or Path
        Gets ``imagesTr``, ``labelsTr`` (1 grey matter, 2 white matter) and ``dataset.json``.
        Ids are ``sub-XX_ses-Y``, of the first seed from ``sub-01``, of the next from ``sub-101``;
        every third patient has two visits.
    n_cases : int, default 16
        Scans, of 12 patients.
    seed : int, default 0
        The same seed gives the same bytes.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    ValueError
        If the folder holds something else.
    """
    folder = Path(folder)
    description = _describe(n_cases, seed)
    path = folder / "dataset.json"
    if path.exists() and path.read_text(encoding="utf-8") == json.dumps(description, indent=1):
        return folder
    if _holds_something_else(folder, description):
        raise ValueError(f"{folder}: holds something other than this sample. Choose an empty one.")
    templates = [load(resolution=1) for load in TEMPLATES]
    # At 3 mm a voxel averages over its neighbourhood.
    maps = [ndimage.gaussian_filter(t.get_fdata(dtype=np.float32), 1.2) for t in templates]
    for case_id, patient, visit in _visits(n_cases, seed):
        image, mask = _simulate(maps, templates[0].affine, seed, patient, visit)
        write(folder / "imagesTr" / f"{case_id}.nii.gz", image)
        write(folder / "labelsTr" / f"{case_id}.nii.gz", mask)
    write_json(path, description)  # last: it says that the sample is complete
    return folder


def _holds_something_else(folder, description):
    own = [folder / name for pair in description["training"] for name in pair.values()]
    # Of a call that was interrupted.
    half = [path.with_name(f"{path.name}.part") for path in (*own, folder / "dataset.json")]
    there = [path for path in folder.rglob("[!.]*") if path.is_file()]
    return any(path not in own and path not in half for path in there)


def _visits(n_cases, seed):
    # Id, patient and visit of each case; other seeds make other people.
    cases = []
    for patient in range(n_cases):
        for visit in range(VISITS[patient % len(VISITS)]):
            name = f"sub-{100 * seed + patient + 1:02d}_ses-{visit + 1}"
            cases.append((name, patient, visit))
    return cases[:n_cases]


def _describe(n_cases, seed):
    files = [f"{case_id}.nii.gz" for case_id, *_ in _visits(n_cases, seed)]
    return {
        "name": "Simulated T1 brains",
        "description": f"Made from the ICBM 152 template, not scanned; seed {seed}",
        "labels": {0: "background", **LABELS},
        "training": [{"image": f"./imagesTr/{f}", "label": f"./labelsTr/{f}"} for f in files],
    }


def _simulate(maps, affine, seed, patient, visit):
    anatomy = np.random.default_rng([seed, patient])
    scanner = np.random.default_rng([seed, patient, 1 + visit])
    shape = (SHAPE + anatomy.integers(-2, 3, 3)).tolist()
    placed = _place(shape, scanner)
    mm = _warp(_voxel_centres(placed, shape), anatomy)
    index = _to_index(mm, affine)
    t1, grey, white = (ndimage.map_coordinates(tissue, index, order=1) for tissue in maps)
    mask = np.select([grey + white <= 0.5, white > grey], [0, 2], 1).astype(np.uint8)
    scan = _scan(t1, white, mm, scanner)
    return nib.Nifti1Image(scan, placed), nib.Nifti1Image(mask, placed)


def _to_index(mm, affine):
    # Places among the voxels of an image whose axes are those of its space.
    return (mm - _spread(affine[:3, 3])) / _spread(np.diag(affine)[:3])


def _scan(t1, white, mm, rng):
    # Contrast, bias field and noise of one visit.
    t1 = t1 ** rng.uniform(0.8, 1.2)
    t1 += rng.uniform(-0.05, 0.05) * white
    t1 *= np.exp(0.1 * _smooth_field(mm, rng))
    noise = rng.normal(0, rng.uniform(0.01, 0.03), (2, *t1.shape))
    t1 = np.hypot(t1 + noise[0], noise[1])  # Rician, as of a magnitude image
    return (1000 * t1).astype(np.int16)


def _spread(vector):
    return vector[:, None, None, None]  # along the axes of a volume


def _voxel_centres(affine, shape):
    turned = np.einsum("ij,jxyz->ixyz", affine[:3, :3], np.indices(shape))
    return turned + _spread(affine[:3, 3])


def _warp(mm, rng):
    # Another size along each axis, and a smooth deformation of some mm.
    scaled = mm * rng.uniform(0.93, 1.07, (3, 1, 1, 1))
    return scaled + 4 * np.stack([_smooth_field(scaled, rng) for _ in range(3)])


def _place(shape, rng):
    # Voxels run from right to left, as scanners store them; the head is a little tilted.
    tilt = Rotation.from_euler("xyz", rng.uniform(-6, 6, 3), degrees=True).as_matrix()
    matrix = tilt * np.array([-1, 1, 1]) * SPACING_MM
    middle = CENTRE_MM + rng.uniform(-4, 4, 3)
    return from_matvec(matrix, middle - matrix @ ((np.array(shape) - 1) / 2))


def _smooth_field(mm, rng):
    # Standard normal numbers every 35 mm, with cubic interpolation between them.
    knots = rng.normal(size=(9, 9, 9))
    return ndimage.map_coordinates(knots, mm / 35 + 4, order=3, mode="nearest")
