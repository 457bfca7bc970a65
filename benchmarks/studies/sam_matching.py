"""The anatomical embedding on real volumes: matching points in a rotated, scaled and cropped copy of the volume.

The seed selects test volumes before planning, so that neither plans nor training see them. The embedding is trained on
the others. Each test volume is then matched with a copy of itself after a known rotation, scaling and change of
intensity, and with a field of view of 0.7 to 1 per axis. The error is the distance in mm to the true position of a
point; normalised body coordinates and random positions are the baselines. The same command continues an interrupted
study.

    python -m benchmarks.studies.sam_matching --data DIR --work DIR [--datasets NAME ...] [--seed 0] [-device cpu]

DIR contains Dataset901_LA2018 and Dataset004_Hippocampus in nnU-Net's raw layout and is only read. The result is
written to benchmarks/results/sam_matching.json (--out).
"""

import argparse
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Steps, use_tree
from nnunet_invariance.augmentation.device_views import apply_affine, apply_intensity, sample_affine, sample_intensity
from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.json_files import read_json
from nnunet_invariance.errors import ComparisonError, InvarianceError
from nnunet_invariance.evaluation.runner.tree import link
from nnunet_invariance.networks.matching import match_points
from nnunet_invariance.networks.planned import cumulative_strides
from nnunet_invariance.nnunet.cases import Case, body_box, load_volume, make_manifest
from nnunet_invariance.nnunet.planned_dataset import open_planned_dataset
from nnunet_invariance.nnunet.unlabelled_images import preprocess_images
from nnunet_invariance.plans.copies import preprocessing_command, write_plans_copy
from nnunet_invariance.pretraining.data.alignment import BodyCoordinates, RandomPoints, sample_point_in_body
from nnunet_invariance.pretraining.data.embedder import Embedder
from nnunet_invariance.weights.locate import pretraining_folder

TEST_CASES = {"Dataset901_LA2018": 4, "Dataset004_Hippocampus": 40}
CONFIGURATION, STOCK_PLANS, PLANS = "3d_fullres", "nnUNetPlans", "nnUNetPlans_sam"
POINTS, COPIES = 256, 2


def main() -> int:
    """Run every step that is not finished; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of the raw datasets; only read")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything the run makes")
    parser.add_argument("--datasets", nargs="+", default=list(TEST_CASES), metavar="NAME")
    parser.add_argument("--test-cases", type=int, help="test volumes a dataset; not given: 4 of LA2018, 40 others")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--iterations", type=int, default=50, help="steps an epoch")
    parser.add_argument("--base-features", type=int, default=16, help="channels of the first stage")
    parser.add_argument("--largest-patch", type=int, default=64, help="voxels per axis; planned patches are cut to it")
    parser.add_argument("--spacing", type=float, default=0, help="mm; planned spacings below it become it")
    parser.add_argument("--set", nargs="*", default=["lr=1e-3", "batch_size=2"], dest="settings", metavar="KEY=VALUE")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-device", choices=["cpu", "cuda", "mps"], default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "sam_matching.json")
    args = parser.parse_args()
    work = args.work.resolve()
    use_tree(work)
    record = read_json(args.out, default={})
    try:
        for name in args.datasets:
            row = {"settings": described(args), **run_dataset(name, work, args)}
            record[f"{name}, {max(row['spacing']):g} mm, seed {args.seed}"] = row
            atomic_write(args.out, lambda file: file.write(json.dumps(record, indent=1).encode()))
    except InvarianceError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def described(args: argparse.Namespace) -> dict[str, Any]:
    """The settings that determine the numbers."""
    names = ("epochs", "iterations", "base_features", "largest_patch", "settings", "device")
    return {name: getattr(args, name) for name in names}


def run_dataset(name: str, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Write the data, plan, train and measure for one data set."""
    steps = Steps(work / name)
    number = str(int(name[7:10]))
    test = args.test_cases or TEST_CASES.get(name, 40)
    lay_out_raw(args.data / name, work / "nnUNet_raw" / name, test, args.seed)
    command = ["nnUNetv2_plan_and_preprocess", "-d", number, "-c", CONFIGURATION, "-npfp", "1", "-np", "1"]
    steps.run("plan_and_preprocess", command)
    write_small_plans(name, steps, work, args)
    train(name, steps, args)
    return measure(name, work, args)


def lay_out_raw(data: Path, raw: Path, test_cases: int, seed: int) -> None:
    """Link the data into a separate raw folder, with the test images in imagesTs."""
    if not (data / "dataset.json").is_file():
        raise ComparisonError(f"{data} contains no dataset.json. Give the folder of the raw datasets with --data.")
    dataset = read_json(data / "dataset.json")
    ending = dataset["file_ending"]
    cases = sorted(p.name[: -len(ending)] for p in (data / "labelsTr").glob(f"*{ending}"))
    test = set(random.Random(f"{data.name} {seed}").sample(cases, test_cases))
    for case in cases:
        for image in (data / "imagesTr").glob(f"{case}_????{ending}"):
            link(image, raw / ("imagesTs" if case in test else "imagesTr") / image.name)
        if case not in test:
            link(data / "labelsTr" / f"{case}{ending}", raw / "labelsTr" / f"{case}{ending}")
    dataset["numTraining"] = len(cases) - len(test)
    if len(list((raw / "labelsTr").iterdir())) != dataset["numTraining"]:
        raise ComparisonError(f"{raw} was made with another seed or from other data. Give another --work.")
    atomic_write(raw / "dataset.json", lambda file: file.write(json.dumps(dataset).encode()))


def write_small_plans(name: str, steps: Steps, work: Path, args: argparse.Namespace) -> None:
    """Write a plans copy with fewer channels and a patch of limited size; preprocess if spacings differ."""
    stock = read_json(work / "nnUNet_preprocessed" / name / f"{STOCK_PLANS}.json")
    configuration = stock["configurations"][CONFIGURATION]
    architecture, spacing = configuration["architecture"], configuration["spacing"]
    arguments = architecture["arch_kwargs"]
    arguments["features_per_stage"] = [
        min(args.base_features * 2**stage, 10 * args.base_features) for stage in range(arguments["n_stages"])
    ]
    coarser = [max(mm, args.spacing) for mm in spacing]
    cell = cumulative_strides(arguments["strides"])[-1]
    patch = [
        max(c, min(int(p * old / new), args.largest_patch) // c * c)
        for p, c, old, new in zip(configuration["patch_size"], cell, spacing, coarser, strict=True)
    ]
    changes = {"architecture": architecture, "patch_size": patch, "spacing": coarser}
    write_plans_copy(name, STOCK_PLANS, plans_of(args), CONFIGURATION, {}, changes)
    if command := preprocessing_command(name, plans_of(args), CONFIGURATION):
        steps.run(f"preprocess_{plans_of(args)}", [*command.split(), "-np", "1"])


def plans_of(args: argparse.Namespace) -> str:
    """Name of the plans copy; the embedding has the same name."""
    return f"{PLANS}_{args.spacing:g}mm".replace(".", "_") if args.spacing else PLANS


def train(name: str, steps: Steps, args: argparse.Namespace) -> None:
    """Train the embedding, or continue its training."""
    folder = pretraining_folder("sam", name, plans_of(args), CONFIGURATION)
    command = ["nnunet-invariance", "pretrain", "sam", name, CONFIGURATION, "-p", plans_of(args)]
    command += ["-device", args.device]
    command += ["--epochs", str(args.epochs), "--iterations", str(args.iterations), "--seed", str(args.seed)]
    command += ["--preview", "--set", *args.settings]
    if any(folder.glob("checkpoint_*.safetensors")):
        command.append("--c")
    steps.run(f"pretrain_{plans_of(args)}", command)


def measure(name: str, work: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Errors in mm of all points whose true position is inside of the copy."""
    planned = open_planned_dataset(name, CONFIGURATION, plans_of(args))
    folders = preprocess_images([work / "nnUNet_raw" / name / "imagesTs"], planned)
    embed = Embedder.load(
        pretraining_folder("sam", name, plans_of(args), CONFIGURATION) / "checkpoint_final.safetensors", args.device
    )
    cases = make_manifest(folders, len(planned.channel_names), embed.head.deepest_cell, 1).cases
    generator, rng = torch.Generator().manual_seed(args.seed), np.random.default_rng(args.seed)
    rows: list[np.ndarray] = []
    for case in cases:
        image = torch.from_numpy(np.asarray(load_volume(case)[:]))
        source = embed(image)
        for _ in range(COPIES):
            copy, move = changed_copy(image, planned.spacing, generator, rng)
            points = np.stack([sample_point_in_body(case, rng) for _ in range(POINTS)])
            true = move(points)
            target = Case("copy", "", tuple(copy.shape[1:]), body_box(copy[0].numpy()))
            found = match_points(source, embed(copy), torch.from_numpy(points).float().to(args.device))
            others = (alignment.match(case, target, points)[0] for alignment in (BodyCoordinates(), RandomPoints()))
            places = np.stack([found.points.cpu().numpy(), *others])
            errors = np.linalg.norm((places - true) * np.asarray(planned.spacing), axis=-1)
            inside = ((true >= 0) & (true < target.shape)).all(1)
            rows.append(np.stack((*errors, found.similarity.cpu().numpy(), found.cycle_error.cpu().numpy()))[:, inside])
    joined = np.concatenate(rows, 1)
    sure = (joined[3] > 0.7) & (
        joined[4] < 4 * np.linalg.norm(np.asarray(planned.spacing) * embed.head.fine_cell) / 3**0.5
    )
    means = dict(zip(("sam_mm", "coordinates_mm", "random_mm"), joined[:3].mean(1).round(3).tolist(), strict=True))
    sure_mm = round(float(joined[0, sure].mean()), 3) if sure.any() else None
    return {
        "test_cases": len(cases), "points": joined.shape[1], **means,
        "sam_median_mm": round(float(np.median(joined[0])), 3),
        "sure_share": round(float(sure.mean()), 4), "sam_sure_mm": sure_mm, "spacing": list(planned.spacing),
        "fine_cell": list(embed.head.fine_cell),
    }  # fmt: skip


def changed_copy(image: Tensor, spacing: tuple[float, ...], generator: torch.Generator, rng: np.random.Generator):
    """A rotated, scaled and cropped copy (C, *shape) with other intensities, and the new positions of points (n, 3)."""
    matrix = sample_affine(1, spacing, generator)
    copy = apply_affine(image[None], matrix, spacing)
    copy = apply_intensity(copy, sample_intensity(copy.shape, generator))[0]
    shape = np.asarray(image.shape[1:])
    size = np.round(shape * rng.uniform(0.7, 1, 3)).astype(int)
    low = np.floor(rng.uniform(0, shape - size + 1)).astype(int)
    inverse, mm = np.linalg.inv(matrix[0].double().numpy()), np.asarray(spacing)

    def move(points: np.ndarray) -> np.ndarray:
        return ((points - shape / 2) * mm) @ inverse.T / mm + shape / 2 - low

    return copy[(slice(None), *(slice(a, a + n) for a, n in zip(low, size, strict=True)))].contiguous(), move


if __name__ == "__main__":
    sys.exit(main())
