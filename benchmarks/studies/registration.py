"""Recovery of known deformations across simulated contrasts: ConvexAdam on features against intensity-based methods.

    python -m benchmarks.studies.registration --pairs 12 --size 64 [--weights FILE] \
        [--ct-mr DIR/abdomen_ct_mr] --out FILE

A pair is one synthetic label map in two independent random appearances. The fixed image is made from the map sampled at
x + d(x), where d is a random affine map plus smooth noise; a method has to find x + d(x). All methods start from the
same affine map (SimpleITK, mutual information). The error is the mean of |found(x) - (x + d(x))| over the voxels of the
fixed image, in voxels of 1 mm, except voxels within 4 voxels of a face and those whose partner is outside of the moving
image. Settings that are not published were chosen on pairs 1000 to 1008, which are not reported.

--ct-mr adds one CT/MR pair, whose organ maps are model output, and measures it first: the Dice of the organs, where
"none" is the start with aligned centres of the organs. FILE is written after every pair, and the same command continues
from there; another size or other weights start from the beginning.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from scipy import stats

from benchmarks.common import environment, publish
from benchmarks.studies.registration_pairs import Organs, Simulated, ct_and_mr, simulate
from nnunet_invariance.common.hashing import sha256_of_file
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.registration.affine import mutual_information
from nnunet_invariance.registration.convex_adam import ConvexAdamOptions
from nnunet_invariance.registration.network import FeatureNetwork, load_feature_network
from nnunet_invariance.registration.pipeline import Pair, deform

CT_MR = "CT/MR"
KNOTS = 16  # voxels between the knots of the B-spline
SHARE = 0.15  # share of the voxels that its metric uses
EVALUATIONS = 25  # maximum number of metric evaluations per resolution level
DENSE_VARIANCES = (3.0, 0.5)  # of the Gaussians for the update and for the whole field (voxels squared)
DENSE_ITERATIONS = 40
#: Settings of ConvexAdam by name: the published ones for anatomix features, and a stiffer field.
SETTINGS = {"published": ConvexAdamOptions(), "smoother": ConvexAdamOptions(smoothness=2.0)}


def mi_spline(pair: Pair, start: sitk.Transform) -> sitk.Image:
    """SimpleITK's cubic B-spline with Mattes' mutual information, from the affine start."""
    spline = sitk.BSplineTransformInitializer(pair.fixed, [n // KNOTS for n in pair.fixed.GetSize()], order=3)
    method = mutual_information(pair.fixed, pair.moving, pair.fixed_mask, pair.moving_mask, seed=0)
    method.SetMetricSamplingPercentage(SHARE, 1)
    method.SetOptimizerAsLBFGSB(numberOfIterations=EVALUATIONS, maximumNumberOfFunctionEvaluations=EVALUATIONS)
    method.SetMovingInitialTransform(start)
    method.SetInitialTransform(spline, inPlace=True)
    method.Execute(pair.fixed, pair.moving)
    return _as_field(sitk.CompositeTransform([start, spline]), pair.fixed)


def mi_dense(pair: Pair, start: sitk.Transform) -> sitk.Image:
    """SimpleITK's displacement field, smoothed with Gaussians in every step, with Mattes' mutual information."""
    dense = sitk.DisplacementFieldTransform(_as_field(sitk.Transform(3, sitk.sitkIdentity), pair.fixed))
    dense.SetSmoothingGaussianOnUpdate(*DENSE_VARIANCES)
    method = mutual_information(pair.fixed, pair.moving, pair.fixed_mask, pair.moving_mask, seed=0)
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


def methods(network: FeatureNetwork | None, device: str) -> dict[str, Callable[[Pair, sitk.Transform], sitk.Image]]:
    """Every method by name: a function from a pair and the affine start to a field."""
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
    """Mean and its 95 % interval (Student's t over pairs)."""
    mean, half = values.mean(), stats.sem(values) * stats.t.ppf(0.975, len(values) - 1)
    return [round(float(v), 4) for v in (mean, mean - half, mean + half)]


def measure(
    case: Simulated | Organs, table: Mapping[str, Callable[[Pair, sitk.Transform], sitk.Image]]
) -> dict[str, dict[str, float]]:
    """Run every method on one pair, from the same start."""
    start, rows = case.start(), {}
    for name, method in table.items():
        begun = time.perf_counter()
        field = method(case.pair, start)
        seconds = time.perf_counter() - begun
        rows[name] = {**case.judge(field), "seconds": seconds}
        print(name, {key: round(value, 4) for key, value in rows[name].items()}, flush=True)
    return rows


def summary(rows: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """Means over the simulated pairs, and paired differences from the intensity methods, with intervals."""
    pairs = list(rows.values())
    if len(pairs) < 2:
        return {}
    columns = {
        name: {key: np.array([pair[name][key] for pair in pairs]) for key in values}
        for name, values in pairs[0].items()
    }
    references = {name: columns[name] for name in columns if name.startswith("intensity MI")}
    return {
        "mean_and_95_percent_interval": {
            name: {key: interval(values) for key, values in table.items()} for name, table in columns.items()
        },
        "paired_difference": {
            f"{name} minus {other}": {key: interval(table[key] - values[key]) for key in ("error", "dice")}
            for name, table in columns.items()
            for other, values in references.items()
            if name not in references
        },
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=12)
    parser.add_argument("--first", type=int, default=0, help="number of the first pair")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--ct-mr", type=Path, help="folder abdomen_ct_mr of the shared data")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--weights", type=Path, help="checkpoint of the feature network")
    parser.add_argument("-device", default="cpu")
    parser.add_argument("--out", type=Path, help="JSON file; printed only by default")
    return parser.parse_args()


def main() -> None:
    """Measure, print and write the result."""
    arguments = parse()
    described = environment(arguments.device, arguments.threads)
    torch.set_num_threads(arguments.threads)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(arguments.threads)
    weights = arguments.weights
    table = methods(
        load_feature_network(weights, torch.device(arguments.device)) if weights else None, arguments.device
    )
    settings = {
        "size": arguments.size,
        "weights": {"file": weights.name, "sha256": sha256_of_file(weights)} if weights else None,
        "SimpleITK": sitk.Version_VersionString(),
    }
    found = read_json(arguments.out, default={}) if arguments.out else {}
    rows = found.get("rows", {}) if found.get("settings") == settings else {}
    numbers = range(arguments.first, arguments.first + arguments.pairs)
    cases: dict[str, Callable[[], Simulated | Organs]] = {str(n): partial(simulate, arguments.size, n) for n in numbers}
    if arguments.ct_mr:
        cases = {CT_MR: partial(ct_and_mr, arguments.ct_mr), **cases}
    for case in [name for name in cases if name not in rows]:
        print(f"pair {case}", flush=True)
        rows[case] = measure(cases[case](), table)
        simulated = {name: rows[name] for name in rows if name != CT_MR}
        result = {
            "settings": settings,
            "pairs": len(simulated),
            "not_run": [name for name in cases if name not in rows],
            "anatomix": "measured" if weights else "not measured: no weights were given",
            **summary(simulated),
            "rows": rows,
        }
        publish("registration", described, result, arguments.out)


if __name__ == "__main__":
    main()
