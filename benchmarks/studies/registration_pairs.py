"""What registration.py measures on: simulated pairs with a known way, and a CT/MR pair with organ maps."""

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
from nnunet_invariance.registration.register import Pair, read_pair
from nnunet_invariance.synthesis.appearance import apply_appearance
from nnunet_invariance.synthesis.corruptions import apply_corruption
from nnunet_invariance.synthesis.engine import SynthesisEngine, View
from nnunet_invariance.synthesis.options import SynthesisOptions
from nnunet_invariance.synthesis.randomness import element_generator

BORDER = 4  # voxels
WAVE = 8.0  # s.d. of the Gaussian that makes the noise smooth, voxels
CLOSING = [5, 5, 0]  # voxels, of the body's holes


# --- simulated


@dataclass(frozen=True)
class Simulated:
    """Two appearances, their label maps, and d(x) (3, z, y, x) in voxels."""

    pair: Pair
    labels: tuple[np.ndarray, np.ndarray]
    truth: np.ndarray

    def start(self) -> sitk.Transform:
        """The affine map that every method starts from."""
        return align_affine(self.pair.fixed, self.pair.moving)

    def judge(self, field: sitk.Image) -> dict[str, float]:
        """Mean error (voxels), mean Dice of the labels, share of folded voxels."""
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


# --- CT and MR


@dataclass(frozen=True)
class Organs:
    """Two images with the maps of their organs; ``numbers`` are an organ's in the moving and in the fixed map."""

    pair: Pair
    fixed: sitk.Image
    moving: sitk.Image
    numbers: Mapping[str, tuple[int, int]]

    def start(self) -> sitk.Transform:
        """The affine map that every method starts from, found inside of the body."""
        return align_affine(self.pair.fixed, self.pair.moving, self.pair.fixed_mask, self.pair.moving_mask)

    def judge(self, field: sitk.Image) -> dict[str, float]:
        """Dice of every organ, their mean, share of folded voxels."""
        fixed = sitk.GetArrayViewFromImage(self.fixed)
        warped = sitk.GetArrayFromImage(warp(self.moving, field, sitk.sitkNearestNeighbor))
        dice = {name: overlap(fixed == f, warped == m) for name, (m, f) in self.numbers.items()}
        return {**dice, "dice": float(np.mean(list(dice.values()))), "folded": folded(field)}


def ct_and_mr(data: Path) -> Organs:
    """The MR slab (fixed) and the whole CT of abdomen_ct_mr.

    Nothing says that both are of one person, and their frames have nothing in common: the CT is moved so that the
    median over organs of what lies between their centres is 0. That takes the maps, and is given to every method.
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
    """Of one organ, mm."""
    shape = sitk.LabelShapeStatisticsImageFilter()
    shape.Execute(labels)
    return shape.GetCentroid(number)


def body(image: sitk.Image) -> sitk.Image:
    """The largest part above the triangle threshold, its holes closed in every slice."""
    parts = sitk.ConnectedComponent(sitk.BinaryMorphologicalOpening(sitk.TriangleThreshold(image, 0, 1), [2, 2, 1]))
    return sitk.BinaryMorphologicalClosing(sitk.RelabelComponent(parts) == 1, CLOSING)


# --- both


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    """Dice of two masks."""
    return float(2 * (one & other).sum() / (one.sum() + other.sum()))


def folded(field: sitk.Image) -> float:
    """Share of folded voxels."""
    return float((jacobian(field) <= 0).mean())
