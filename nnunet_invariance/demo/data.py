"""Write small synthetic data sets in nnU-Net's raw format, with random or given contrast."""

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import SimpleITK as sitk

LABELS = {"background": 0, "organ": 1, "core": 2}
ENDING = ".nii.gz"
LABEL_OF_TISSUE = np.array([0, 0, 0, 1, 2], dtype=np.uint8)
#: Intensities of air, body, other organ, organ and core in each modality.
MODALITIES = {
    "T1": (10.0, 90.0, 130.0, 150.0, 140.0),
    "T2": (10.0, 120.0, 60.0, 110.0, 190.0),
    "FLAIR": (10.0, 80.0, 100.0, 110.0, 140.0),
}


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
        raw: raw dataset folder.
        n_train, n_test: numbers of labelled cases.
        unlabelled: folder and number of the images without labels.
        levels: intensities, see :func:`make_case`.
        prefix: first part of the names of the cases.
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
    """Make the image (float32) and the labels (uint8), both 3-D, of a body with an organ, its core and another organ.

    The other organ has no label. The shapes vary little between cases. ``levels`` are the intensities of air, body,
    other organ, organ and core; by default they are sampled in any order, so that a network has to learn the shapes.
    """
    tissue, grid = _draw_tissues(rng)
    drawn = 40 + 160 * (rng.permutation(5) + rng.uniform(0.2, 0.8, 5)) / 5
    intensities = drawn if levels is None else np.asarray(levels) + rng.uniform(-5, 5, 5)
    bias = 1 + 0.1 * np.sin(2 * grid @ rng.uniform(-1, 1, 3) + rng.uniform(0, 2 * np.pi))
    image = intensities[tissue] * bias + rng.normal(0, 6, tissue.shape)
    return image.astype(np.float32), LABEL_OF_TISSUE[tissue]


def write_modalities(raw: Path, n_train: int, n_test: int, seed: int) -> None:
    """Write labelled cases with three modalities; in every third training case, one modality is an image of zeros."""
    for number in range(n_train + n_test):
        kind, name = ("Tr" if number < n_train else "Ts"), f"case_{number:03d}"
        images, labels = make_modalities(np.random.default_rng([seed, number]))
        for channel, image in enumerate(images):
            missing = kind == "Tr" and number % 3 == 2 and number // 3 % len(MODALITIES) == channel
            _write(np.zeros_like(image) if missing else image, raw / f"images{kind}" / f"{name}_{channel:04d}{ENDING}")
        _write(labels, raw / f"labels{kind}" / f"{name}{ENDING}")
    channels = {str(channel): name for channel, name in enumerate(MODALITIES)}
    dataset = {"channel_names": channels, "labels": LABELS, "numTraining": n_train, "file_ending": ENDING}
    (raw / "dataset.json").write_text(json.dumps(dataset, indent=1))


def make_modalities(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Make the organs of :func:`make_case` in three modalities (3, *spatial), float32, and their labels.

    Intensities of tissues are the same in every case. The organ has a high contrast in the first modality, the
    core in the second, and both have a low contrast in the third.
    """
    tissue, grid = _draw_tissues(rng)
    bias = 1 + 0.1 * np.sin(2 * grid @ rng.uniform(-1, 1, 3) + rng.uniform(0, 2 * np.pi))
    images = [np.array(table)[tissue] * bias + rng.normal(0, 6, tissue.shape) for table in MODALITIES.values()]
    return np.stack(images).astype(np.float32), LABEL_OF_TISSUE[tissue]


def _draw_tissues(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Sample the tissue map of one individual (air 0, body 1, other organ 2, organ 3, core 4), and its coordinates."""
    size = rng.integers(38, 45, 3)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in size), indexing="ij"), axis=-1)
    grid = grid + 0.04 * np.sin(4 * grid[..., [1, 2, 0]] + rng.uniform(0, 2 * np.pi, 3))  # every case has another shape
    shift = rng.uniform(-0.08, 0.08, 3)
    tissue = np.zeros(size, dtype=np.uint8)
    radii = rng.uniform(0.9, 1.1, 4)
    tissue[_inside(grid, shift, np.array([0.85, 0.8, 0.8]) * radii[0])] = 1
    tissue[_inside(grid, shift + np.array([0.1, 0.4, -0.25]), np.array([0.3, 0.2, 0.3]) * radii[1])] = 2
    tissue[_inside(grid, shift + np.array([0.0, -0.2, 0.2]), np.array([0.5, 0.38, 0.4]) * radii[2])] = 3
    tissue[_inside(grid, shift + np.array([-0.03, -0.23, 0.23]), np.array([0.3, 0.24, 0.26]) * radii[3])] = 4
    return tissue, grid


def _inside(grid: np.ndarray, centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return (((grid - centre) / radii) ** 2).sum(-1) < 1


def _write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
