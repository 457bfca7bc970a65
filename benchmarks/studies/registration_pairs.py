"""The pairs of registration.py: simulated pairs with a known deformation, and a CT/MR pair with organ maps."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk
import torch
from scipy.ndimage import gaussian_filter, map_coordinates

from benchmarks.studies.icmseg_data import ENDING, ORGANS
from nnunet_invariance.registration.affine import align_affine
from nnunet_invariance.registration.fields import jacobian, warp
from nnunet_invariance.registration.pipeline import Pair, read_pair
from nnunet_invariance.synthesis.appearance import apply_appearance
from nnunet_invariance.synthesis.corruptions import apply_corruption
from nnunet_invariance.synthesis.engine import SynthesisEngine, View
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator

BORDER = 4  # voxels
WAVE = 8.0  # standard deviation of the Gaussian that smooths the noise (voxels)
CLOSING = [5, 5, 0]  # radius in voxels for closing holes of the body


# --- simulated


@dataclass(frozen=True)
class Simulated:
    """Two appearances, their label maps, and the deformation d(x) (3, z, y, x) in voxels."""

    pair: Pair
    labels: tuple[np.ndarray, np.ndarray]
    truth: np.ndarray

    def start(self) -> sitk.Transform:
        """The affine map that every method starts from."""
        return align_affine(self.pair.fixed, self.pair.moving)

    def judge(self, field: sitk.Image) -> dict[str, float]:
        """Mean error (voxels), mean Dice of the labels, and share of folded voxels."""
        found = np.moveaxis(sitk.GetArrayFromImage(field), -1, 0)[::-1]
        n = self.truth.shape[1]
        partners = np.indices((n,) * 3) + self.truth
        counted = ((partners >= 0) & (partners <= n - 1)).all(0)
        counted &= np.pad(np.ones((n - 2 * BORDER,) * 3, bool), BORDER)
        error = np.linalg.norm(found - self.truth, axis=0)[counted].mean()
        fixed, moving = self.labels
        warped = map_coordinates(moving, np.indices((n,) * 3) + found, order=0, mode="nearest")
        dice = [overlap(fixed[counted] == k, warped[counted] == k) for k in np.unique(fixed[counted])]
        return {"error": float(error), "dice": float(np.mean(dice)), "folded": folded(field)}


def simulate(size: int, seed: int, largest: float = 6.0) -> Simulated:
    """Simulate a pair; the smooth part of the deformation moves a voxel by at most ``largest``."""
    engine = SynthesisEngine(SynthesisOptions(size=(size,) * 3))
    element = engine.sample(element_generator(engine.seed, seed))
    labels = engine.apply([element]).labels[0, 0].numpy()
    truth = random_deformation(size, np.random.default_rng(seed), largest)
    places = np.indices(labels.shape) + truth
    moved = map_coordinates(labels, places, order=0, mode="nearest")
    images = [_image(appearance(engine, m, view)) for m, view in zip((moved, labels), element.views, strict=True)]
    return Simulated(Pair(*images), (moved, labels), truth)


def random_deformation(size: int, rng: np.random.Generator, largest: float) -> np.ndarray:
    """An affine map near the identity plus smooth noise; (3, z, y, x) in voxels."""
    noise = np.stack([gaussian_filter(rng.standard_normal((size,) * 3), WAVE, mode="reflect") for _ in range(3)])
    noise *= largest / np.linalg.norm(noise, axis=0).max()
    matrix = rng.uniform(-0.05, 0.05, (3, 3))
    shift = rng.uniform(-2, 2, 3).reshape(3, 1, 1, 1)
    return noise + np.tensordot(matrix, np.indices((size,) * 3) - (size - 1) / 2, 1) + shift


def appearance(engine: SynthesisEngine, labels: np.ndarray, view: View) -> np.ndarray:
    """One corrupted appearance of a label map, in [0, 1]."""
    x = apply_appearance(torch.from_numpy(labels)[None, None], [view.appearance], engine.options.texture_weight)
    return apply_corruption(x, [view.corruption], engine.options)[0, 0].numpy()


def _image(x: np.ndarray) -> sitk.Image:
    return sitk.GetImageFromArray(x.astype(np.float32))


# --- CT and MR


@dataclass(frozen=True)
class Organs:
    """Two images with label maps; ``numbers`` are the values of an organ in the moving and the fixed map."""

    pair: Pair
    fixed: sitk.Image
    moving: sitk.Image
    numbers: Mapping[str, tuple[int, int]]

    def start(self) -> sitk.Transform:
        """The affine map that every method starts from, computed inside of the body."""
        return align_affine(self.pair.fixed, self.pair.moving, self.pair.fixed_mask, self.pair.moving_mask)

    def judge(self, field: sitk.Image) -> dict[str, float]:
        """Dice of every organ, their mean, and share of folded voxels."""
        fixed = sitk.GetArrayViewFromImage(self.fixed)
        warped = sitk.GetArrayFromImage(warp(self.moving, field, sitk.sitkNearestNeighbor))
        dice = {name: overlap(fixed == f, warped == m) for name, (m, f) in self.numbers.items()}
        return {**dice, "dice": float(np.mean(list(dice.values()))), "folded": folded(field)}


def ct_and_mr(data: Path) -> Organs:
    """The MR slab (fixed) and the whole CT (moving) of abdomen_ct_mr.

    The two may show different subjects, and their frames are unrelated. Therefore the CT is translated so that the
    median distance between the centres of the organs is 0. This uses the label maps, and every method starts from it.
    """
    files = {name: data / f"{name}{ENDING}" for name in ("example_mr_sm", "example_ct")}
    pair = read_pair(*files.values(), None, None, ct="moving")
    fixed, moving = (sitk.ReadImage(data / f"example_seg_{name}{ENDING}") for name in ("mr", "fast_force_split"))
    between = [np.subtract(centre(moving, m), centre(fixed, f)) for m, f in ORGANS.values()]
    origin = np.subtract(moving.GetOrigin(), np.median(between, 0)).tolist()
    for image in (pair.moving, moving):
        image.SetOrigin(origin)
    return Organs(Pair(pair.fixed, pair.moving, body(pair.fixed), body(pair.moving)), fixed, moving, ORGANS)


def centre(labels: sitk.Image, number: int) -> tuple[float, ...]:
    """Centre of an organ in mm."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(labels)
    return shape.GetCentroid(number)


def body(image: sitk.Image) -> sitk.Image:
    """The largest component above the triangle threshold, with its holes closed in every slice."""
    parts = sitk.ConnectedComponent(sitk.BinaryMorphologicalOpening(sitk.TriangleThreshold(image, 0, 1), [2, 2, 1]))
    return sitk.BinaryMorphologicalClosing(sitk.RelabelComponent(parts) == 1, CLOSING)


# --- both


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def folded(field: sitk.Image) -> float:
    """Share of voxels at which the field folds."""
    return float((jacobian(field) <= 0).mean())
