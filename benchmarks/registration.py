"""Recovery of known smooth deformations across simulated contrasts: ConvexAdam on features, and intensity-MI B-splines.

    python benchmarks/registration.py --pairs 12 --size 64 --out benchmarks/results/registration.json

A pair is one synthetic label map in two independent random appearances. The fixed one is made of the map read at
x + d(x), d a random affine map and smooth noise: x + d(x) is the way to be found. All methods start from the same
affine map (SimpleITK, mutual information). Error: mean |found(x) - (x + d(x))| over the voxels of the fixed image, in
voxels of 1 mm, without those within 4 voxels of a face and those whose partner lies outside of the moving image. What
is not a published setting was chosen on pairs 1000 to 1008, which are not reported.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from common import environment, publish
from scipy import stats
from scipy.ndimage import gaussian_filter, map_coordinates

from nnunet_invariance.registration.affine import align_affine, mutual_information
from nnunet_invariance.registration.convex_adam import ConvexAdamOptions
from nnunet_invariance.registration.fields import jacobian
from nnunet_invariance.registration.network import FeatureNetwork, load_feature_network
from nnunet_invariance.registration.register import Pair, deform
from nnunet_invariance.synthesis.appearance import apply_appearance
from nnunet_invariance.synthesis.corruptions import apply_corruption
from nnunet_invariance.synthesis.engine import SynthesisEngine, View
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator

BORDER = 4  # voxels
WAVE = 8.0  # s.d. of the Gaussian that makes the noise smooth, voxels
KNOTS = 16  # voxels between those of the B-spline
SHARE = 0.15  # of the voxels in its metric
EVALUATIONS = 25  # of its metric at a level of resolution, at most
DENSE_VARIANCES = (3.0, 0.5)  # of the Gaussians over the update and over the whole field, voxels squared
DENSE_ITERATIONS = 40
#: Settings of ConvexAdam by name: those published with anatomix features, and a stiffer field.
SETTINGS = {"published": ConvexAdamOptions(), "smoother": ConvexAdamOptions(smoothness=2.0)}


@dataclass(frozen=True)
class Simulated:
    """Two appearances, their label maps, and d(x) (3, z, y, x) in voxels."""

    pair: Pair
    labels: tuple[np.ndarray, np.ndarray]
    truth: np.ndarray


def simulate(size: int, seed: int, largest: float = 6.0) -> Simulated:
    """A pair; the smooth part of its deformation moves no voxel further than ``largest``."""
    engine = SynthesisEngine(SynthesisOptions(size=(size,) * 3))
    element = engine.sample(element_generator(engine.seed, seed))
    labels = engine.apply([element]).labels[0, 0].numpy()
    truth = random_deformation(size, np.random.default_rng(seed), largest)
    places = np.indices(labels.shape) + truth
    moved = map_coordinates(labels, places, order=0, mode="nearest")
    images = [_image(appearance(engine, m, view)) for m, view in zip((moved, labels), element.views, strict=True)]
    return Simulated(Pair(*images), (moved, labels), truth)


def random_deformation(size: int, rng: np.random.Generator, largest: float) -> np.ndarray:
    """An affine map near the identity about the centre, and smooth noise; (3, z, y, x) voxels."""
    noise = np.stack([gaussian_filter(rng.standard_normal((size,) * 3), WAVE, mode="reflect") for _ in range(3)])
    noise *= largest / np.linalg.norm(noise, axis=0).max()
    matrix = rng.uniform(-0.05, 0.05, (3, 3))
    shift = rng.uniform(-2, 2, 3).reshape(3, 1, 1, 1)
    return noise + np.tensordot(matrix, np.indices((size,) * 3) - (size - 1) / 2, 1) + shift


def appearance(engine: SynthesisEngine, labels: np.ndarray, view: View) -> np.ndarray:
    """One appearance of a label map, corrupted, [0, 1]."""
    x = apply_appearance(torch.from_numpy(labels)[None, None], [view.appearance], engine.options.texture_weight)
    return apply_corruption(x, [view.corruption], engine.options)[0, 0].numpy()


def _image(x: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(x.astype(np.float32))


def mi_spline(pair: Pair, start: sitk.Transform) -> sitk.Image:
    """SimpleITK's cubic B-spline with Mattes' mutual information, from the affine start."""
    spline = sitk.BSplineTransformInitializer(pair.fixed, [n // KNOTS for n in pair.fixed.GetSize()], order=3)
    method = mutual_information(pair.fixed, pair.moving, None, None, seed=0)
    method.SetMetricSamplingPercentage(SHARE, 1)
    method.SetOptimizerAsLBFGSB(numberOfIterations=EVALUATIONS, maximumNumberOfFunctionEvaluations=EVALUATIONS)
    method.SetMovingInitialTransform(start)
    method.SetInitialTransform(spline, inPlace=True)
    method.Execute(pair.fixed, pair.moving)
    return _as_field(sitk.CompositeTransform([start, spline]), pair.fixed)


def mi_dense(pair: Pair, start: sitk.Transform) -> sitk.Image:
    """SimpleITK's displacement field, smoothed by Gaussians in every step, with Mattes' mutual information."""
    dense = sitk.DisplacementFieldTransform(_as_field(sitk.Transform(3, sitk.sitkIdentity), pair.fixed))
    dense.SetSmoothingGaussianOnUpdate(*DENSE_VARIANCES)
    method = mutual_information(pair.fixed, pair.moving, None, None, seed=0)
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetOptimizerAsGradientDescent(1.0, DENSE_ITERATIONS, 1e-7, 10, estimateLearningRate=method.EachIteration)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetMovingInitialTransform(start)
    method.SetInitialTransform(dense, inPlace=True)
    method.Execute(pair.fixed, pair.moving)
    return _as_field(sitk.CompositeTransform([start, dense]), pair.fixed)


def _as_field(transform: sitk.Transform, grid: sitk.Image) -> sitk.Image:
    return sitk.TransformToDisplacementField(
        transform, sitk.sitkVectorFloat64, grid.GetSize(), grid.GetOrigin(), grid.GetSpacing(), grid.GetDirection()
    )


def judge(simulated: Simulated, field: sitk.Image) -> dict[str, float]:
    """Mean error (voxels), mean Dice of the labels, share of folded voxels."""
    found = np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)[::-1]
    n = simulated.truth.shape[1]
    partners = np.indices((n,) * 3) + simulated.truth
    counted = ((partners >= 0) & (partners <= n - 1)).all(0)
    counted &= np.pad(np.ones((n - 2 * BORDER,) * 3, bool), BORDER)
    error = np.linalg.norm(found - simulated.truth, axis=0)[counted].mean()
    fixed, moving = simulated.labels
    warped = map_coordinates(moving, np.indices((n,) * 3) + found, order=0, mode="nearest")
    dice = [
        2 * ((fixed == k) & (warped == k))[counted].sum() / ((fixed == k)[counted].sum() + (warped == k)[counted].sum())
        for k in np.unique(fixed[counted])
    ]
    return {"error": float(error), "dice": float(np.mean(dice)), "folded": float((jacobian(field) <= 0).mean())}


def methods(network: FeatureNetwork | None, device: str) -> dict[str, Callable[[Pair, sitk.Transform], sitk.Image]]:
    """Every method by name: from a pair and the affine start to a field."""
    table = {
        "none": lambda pair, start: _as_field(sitk.Transform(3, sitk.sitkIdentity), pair.fixed),
        "affine": lambda pair, start: _as_field(start, pair.fixed),
        "intensity MI, B-spline": mi_spline,
        "intensity MI, dense field": mi_dense,
    }
    for name, options in SETTINGS.items():
        kinds = [("mind", None, True)]
        kinds += [("anatomix", network, False), ("both", network, True)] if network else []
        for kind, net, mind in kinds:
            table[f"{kind}, {name}"] = lambda pair, start, net=net, mind=mind, options=options: deform(
                pair, start, net, mind, options, device=device
            )
    return table


def interval(values: np.ndarray) -> list[float]:
    """Mean and the ends of its 95 % interval (Student's t over pairs)."""
    mean, half = values.mean(), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return [round(float(v), 4) for v in (mean, mean - half, mean + half)]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="number of the first pair")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, help="checkpoint of the feature network")
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    arguments = parser.parse_args()
    described = environment(arguments.device, arguments.threads)
    torch.set_num_threads(arguments.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(arguments.threads)
    network = arguments.weights and load_feature_network(arguments.weights, torch.device(arguments.device))
    rows: dict[str, list[dict[str, float]]] = {}
    for seed in range(arguments.first, arguments.first + arguments.pairs):
        simulated = simulate(arguments.size, seed)
        start = align_affine(simulated.pair.fixed, simulated.pair.moving)
        for name, method in methods(network, arguments.device).items():
            begun = time.perf_counter()
            field = method(simulated.pair, start)
            seconds = time.perf_counter() - begun
            rows.setdefault(name, []).append({**judge(simulated, field), "seconds": seconds})
            print(seed, name, {key: round(value, 4) for key, value in rows[name][-1].items()}, flush=True)
    columns = {name: {key: np.array([row[key] for row in found]) for key in found[0]} for name, found in rows.items()}
    references = {name: columns[name] for name in columns if name.startswith("intensity MI")}
    result = {
        "pairs": arguments.pairs,
        "size": arguments.size,
        "SimpleITK": sitk.Version_VersionString(),
        "anatomix": "measured" if network else "not measured: no weights were given",
        "mean_and_95_percent_interval": {
            name: {key: interval(values) for key, values in table.items()} for name, table in columns.items()
        },
        "paired_difference": {
            f"{name} minus {other}": {key: interval(table[key] - values[key]) for key in ("error", "dice")}
            for name, table in columns.items()
            for other, values in references.items()
            if name not in references
        },
        "each_pair_error": {name: table["error"].round(4).tolist() for name, table in columns.items()},
    }
    publish("registration", described, result, arguments.out)


if __name__ == "__main__":
    main()
