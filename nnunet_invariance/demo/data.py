"""Small labelled data sets in nnU-Net's raw layout, of random or given contrast."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LABELS = {"background": 0, "organ": 1, "core": 2}
ENDING = ".nii.gz"


def write_dataset(
    raw: Path,
    n_train: int,
    n_test: int = 0,
    *,
    unlabelled: tuple[Path, int] | None = None,
    levels: Sequence[float] | None = None,
    seed: int = 0,
    prefix: str = "case",
) -> None:
    """Write labelled training and test cases into a raw dataset folder, and images without labels into another.

    Args:
        unlabelled: that other folder, and the number of images.
        levels: see :func:`make_case`.
        prefix: of the cases' names.
    """
    folder, n_unlabelled = unlabelled or (raw, 0)
    kinds = [("Tr", n_train), ("Ts", n_test), ("", n_unlabelled)]
    number = 0
    for kind, n in kinds:
        for _ in range(n):
            image, labels = make_case(np.random.default_rng([seed, number]), levels)
            name = f"{prefix}_{number:03d}"
            number += 1
            _write(image, (raw / f"images{kind}" if kind else folder) / f"{name}_0000{ENDING}")
            if kind:
                _write(labels, raw / f"labels{kind}" / f"{name}{ENDING}")
    dataset = {"channel_names": {"0": "MRI"}, "labels": LABELS, "numTraining": n_train, "file_ending": ENDING}
    (raw / "dataset.json").write_text(json.dumps(dataset, indent=1))


def make_case(rng: np.random.Generator, levels: Sequence[float] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """An organ with a core, and a second, unlabelled organ, in a body; image (float32) and labels (uint8), both 3-D.

    The shapes are about the same in every case. ``levels`` are the intensities of air, body, second organ, organ and
    core; without them they are drawn anew and may come in any order, so that a network has to learn the shapes.
    """
    size = rng.integers(38, 45, 3)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij"), axis=-1)
    grid = grid + 0.04 * np.sin(4 * grid[..., [1, 2, 0]] + rng.uniform(0, 2 * np.pi, 3))  # no two are quite alike
    shift = rng.uniform(-0.08, 0.08, 3)
    tissue = np.zeros(size, dtype=np.uint8)
    radii = rng.uniform(0.9, 1.1, 4)
    tissue[_inside(grid, shift, np.array([0.85, 0.8, 0.8]) * radii[0])] = 1
    tissue[_inside(grid, shift + np.array([0.1, 0.4, -0.25]), np.array([0.3, 0.2, 0.3]) * radii[1])] = 2
    tissue[_inside(grid, shift + np.array([0.0, -0.2, 0.2]), np.array([0.5, 0.38, 0.4]) * radii[2])] = 3
    tissue[_inside(grid, shift + np.array([-0.03, -0.23, 0.23]), np.array([0.3, 0.24, 0.26]) * radii[3])] = 4
    drawn = 40 + 160 * (rng.permutation(5) + rng.uniform(0.2, 0.8, 5)) / 5
    intensities = drawn if levels is None else np.asarray(levels) + rng.uniform(-5, 5, 5)
    bias = 1 + 0.1 * np.sin(2 * grid @ rng.uniform(-1, 1, 3) + rng.uniform(0, 2 * np.pi))
    image = intensities[tissue] * bias + rng.normal(0, 6, size)
    labels = np.array([0, 0, 0, 1, 2], dtype=np.uint8)[tissue]
    return image.astype(np.float32), labels


def _inside(grid: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return (((grid - centre) / radii) ** 2).sum(-1) < 1


def _write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
