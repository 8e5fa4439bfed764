"""Time `surface_distances` beside its peers, on one thread; prints rows as JSON.

python -m tests.tools.benchmark_metrics    called by the benchmark as a process of its own

Every peer gets the masks in the form that it likes best, made beforehand, and computes the
distances of both directions or their maximum. Times are medians of repeats in which all took turns,
of a tenth of a second each.
"""

import json
import os
import time
import tracemalloc

os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import SimpleITK
import surface_distance
import torch
from medpy.metric import binary
from monai.metrics import compute_hausdorff_distance
from nilearn.datasets import load_mni152_brain_mask
from scipy import ndimage
from scipy.spatial.distance import directed_hausdorff

from unetseg import metrics

REPEATS = 7
torch.set_num_threads(1)
SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)


def noise(shape, sigma, seed):
    """Smooth noise with a standard deviation of 1."""
    field = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    field = ndimage.gaussian_filter(field, sigma)
    return field / field.std()


def ellipsoid(shape, radii):
    """Distance from the centre, 1 on the surface of the ellipsoid."""
    axes = [(np.arange(n, dtype=np.float32) - n / 2) / r for n, r in zip(shape, radii, strict=True)]
    return np.sqrt(sum(axis**2 for axis in np.meshgrid(*axes, indexing="ij", sparse=True)))


def hippocampus():
    shape = (35, 50, 36)
    radius = ellipsoid(shape, (8, 18, 7)) + 0.1 * noise(shape, 4, 0)
    return radius < 1, radius + 0.05 * noise(shape, 3, 1) < 1, (1.0, 1.0, 1.0)


def brain():
    """The brain mask of the ICBM template, and one whose contour errs by a voxel or two."""
    true = load_mni152_brain_mask(resolution=1).get_fdata()[8:190, 8:226, :182] > 0
    smooth = ndimage.gaussian_filter(true.astype(np.float32), 1)
    pred = (smooth + 0.15 * noise(true.shape, 5, 2) > 0.5) & (smooth > 0.05)
    return true, pred, (1.0, 1.0, 1.0)


def thin_organ():
    """A curved shell, such as a bladder wall or a pancreas' outline, in a large field of view."""
    part = (300, 200, 120)
    radius = ellipsoid(part, (130, 85, 50)) + 0.03 * noise(part, 6, 3)
    masks = [np.zeros((512, 512, 200), bool) for _ in range(2)]
    for mask, at in zip(masks, (0.80, 0.81), strict=True):
        mask[100:400, 150:350, 40:160] = np.abs(radius - at) < 0.05
        mask[:250] = False
    return *masks, (0.75, 0.75, 2.0)


def peers(true, pred, spacing):
    """What each is called for, by name."""
    tensors = [torch.from_numpy(mask)[None, None].float() for mask in (pred, true)]
    images = [
        SimpleITK.GetImageFromArray(mask.transpose(2, 1, 0).astype(np.uint8))
        for mask in (true, pred)
    ]
    for image in images:
        image.SetSpacing([float(mm) for mm in spacing])
    itk = SimpleITK.HausdorffDistanceImageFilter()

    def scipy_directed():
        borders = [np.argwhere(m & ~ndimage.binary_erosion(m)) * spacing for m in (true, pred)]
        return max(directed_hausdorff(*borders)[0], directed_hausdorff(*borders[::-1])[0])

    return {
        "unetseg": lambda: metrics.surface_distances(true, pred, spacing).hausdorff(),
        "MONAI": lambda: float(
            compute_hausdorff_distance(*tensors, include_background=True, spacing=spacing)
        ),
        "surface-distance": lambda: surface_distance.compute_robust_hausdorff(
            surface_distance.compute_surface_distances(true, pred, spacing), 100
        ),
        "scipy, directed": scipy_directed,
        "medpy": lambda: binary.hd(pred, true, spacing),
        "SimpleITK": lambda: itk.Execute(*images) or itk.GetHausdorffDistance(),
    }


def time_calls(function, calls):
    """Seconds of a call, the mean of some in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        function()
    return (time.perf_counter() - start) / calls


def main():
    rows = []
    for make in (hippocampus, brain, thin_organ):
        true, pred, spacing = make()
        functions, seconds, calls = peers(true, pred, spacing), {}, {}
        for name, function in functions.items():  # once to warm up, once to plan
            function()
            seconds[name] = [time_calls(function, 1)]
            calls[name] = max(1, int(0.1 / seconds[name][0]))  # a tenth of a second at a turn
        fast = [name for name, (once,) in seconds.items() if once < 10 * seconds["MONAI"][0]]
        seconds |= {name: [] for name in fast}
        for _ in range(REPEATS):
            for name in fast:  # the slow are not repeated
                seconds[name].append(time_calls(functions[name], calls[name]))
        tracemalloc.start()
        functions["unetseg"]()
        peak = tracemalloc.get_traced_memory()[1] / (true.nbytes + pred.nbytes)
        tracemalloc.stop()
        setting = f"{make.__name__.replace('_', ' ')}, {' x '.join(map(str, true.shape))}"
        median = {name: float(np.median(values)) for name, values in seconds.items()}
        for name, value in median.items():
            times = len(seconds[name])
            rows.append(("surface distances", f"{setting}, {name}", 1000 * value, "ms", times))
        best = min(value for name, value in median.items() if name != "unetseg")
        ratio = best / median["unetseg"]
        rows.append(("surface distances", f"{setting}, fastest peer / unetseg", ratio, "", REPEATS))
        rows.append(("surface distances", f"{setting}, peak / masks", peak, "", 1))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
