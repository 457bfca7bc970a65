"""Volumes of one synthetic anatomy under known deformations and fields of view, and the true matches."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2

from nnunet_invariance.nnunet.cases import Case, scan_cases

SIDE = 48  # voxels of the whole body


@dataclass(frozen=True)
class Deformation:
    """Map from the voxels of a volume to the coordinates of the anatomy: scale, field of view and a smooth wave."""

    scale: np.ndarray
    low: np.ndarray
    phase: np.ndarray
    amplitude: float = 1.5

    def to_anatomy(self, x: np.ndarray) -> np.ndarray:
        """Map voxels (..., 3) to the anatomy; the body ranges from 0 to SIDE."""
        u = (x + self.low) * self.scale
        return u + self.amplitude * np.sin(2 * np.pi * np.roll(u, 1, -1) / SIDE + self.phase)

    def to_voxels(self, u: np.ndarray) -> np.ndarray:
        """The inverse map, computed by iteration."""
        y = u
        for _ in range(60):
            y = u - self.amplitude * np.sin(2 * np.pi * np.roll(y, 1, -1) / SIDE + self.phase)
        return y / self.scale - self.low


def write_volumes(folder: Path, count: int, seed: int = 0) -> tuple[list[Case], dict[str, Deformation]]:
    """Write volumes with random fields of view (0.7 to 1 per axis), gains and noise; returns cases and deformations."""
    rng = np.random.default_rng(seed)
    centres, widths = rng.uniform(0, SIDE, (60, 3)), rng.uniform(2, 5, 60)
    heights = rng.uniform(-1, 1.5, 60)
    deformations = {}
    folder.mkdir(parents=True)
    for index in range(count):
        shape = np.round(SIDE * rng.uniform(0.7, 1, 3)).astype(int)
        low = rng.uniform(0, SIDE - shape)
        change = Deformation(rng.uniform(0.95, 1.05, 3), low, rng.uniform(0, 2 * np.pi, 3))
        u = change.to_anatomy(np.indices(shape).transpose(1, 2, 3, 0) + 0.5)
        image = np.zeros(shape)
        for centre, width, height in zip(centres, widths, heights, strict=True):
            image += height * np.exp(-np.square(u - centre).sum(-1) / (2 * width**2))
        image = (image - image.mean()) / image.std() * rng.uniform(0.9, 1.1) + rng.normal(0, 0.05, shape)
        name = f"volume_{index:02d}"
        data, seg = image[None].astype(np.float32), np.zeros((1, *shape), np.int16)
        chunks = {"chunks": data.shape, "blocks": data.shape, "chunks_seg": seg.shape, "blocks_seg": seg.shape}
        nnUNetDatasetBlosc2.save_case(data, seg, {}, str(folder / name), **chunks)
        deformations[name] = change
    return scan_cases(folder, 1, (8, 8, 8))[0], deformations


def true_matches(source: Case, target: Case, points: np.ndarray, deformations: dict) -> np.ndarray:
    """Positions of the source's points in the target; NaN outside of its field of view."""
    found = deformations[target.name].to_voxels(deformations[source.name].to_anatomy(points))
    inside = ((found >= 0) & (found < target.shape)).all(-1, keepdims=True)
    return np.where(inside, found, np.nan)
