"""Test-time adaptation: the norms of a trained network are adapted to images without labels (arXiv 2312.06275)."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from torch import Tensor, nn

from nnunet_invariance.augmentation.interventions.base import coarse_axes
from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.common.builtin_types import to_builtin
from nnunet_invariance.common.options import Options, count, number
from nnunet_invariance.common.progress import Progress
from nnunet_invariance.errors import OutputError, UnsupportedConfigurationError
from nnunet_invariance.losses.consistency import ConsistencyLoss
from nnunet_invariance.prediction.model import checked_cases
from nnunet_invariance.prediction.opening import CHECKPOINT, checkpoint_files, open_model
from nnunet_invariance.prediction.styles import random_style
from nnunet_invariance.weights.foreign import open_foreign

#: Keys of nnU-Net's checkpoint that prediction reads, without the weights.
KEYS = ("trainer_name", "init_args", "inference_allowed_mirroring_axes")
FILES = ("plans.json", "dataset.json", "dataset_fingerprint.json")
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class AdaptationOptions(Options):
    """Options of the adaptation.

    >>> AdaptationOptions(steps=10).lr
    0.001
    """

    steps: int = count(5, 1, doc="Steps for each case.")
    lr: float = number(1e-3, 0.0, 1.0, low_excluded=True, doc="Learning rate of AdamW.")
    seed: int = count(0, 0, doc="Seed of the patches and of the styles.")


@dataclass(frozen=True)
class AdaptationReport:
    """What an adaptation did, of the last fold.

    Attributes:
        cases: number of cases.
        parameters: number of values that were adapted.
        losses: of each step.
        seconds: duration, all folds together.

    >>> AdaptationReport(1, 10, (0.5, 0.4), 2.0).losses[-1]
    0.4
    """

    cases: int
    parameters: int
    losses: tuple[float, ...]
    seconds: float


def adapt_model(
    folder: Path,
    images: Path,
    out: Path,
    options: AdaptationOptions = AdaptationOptions(),
    folds: Sequence[str] = (),
    checkpoint: str = CHECKPOINT,
    device: str = "cpu",
) -> AdaptationReport:
    """Adapt a trained model to the images of a folder and write it as a new model that ``nnUNetv2_predict`` loads.

    Every fold is adapted to the same patches, :func:`adapt_norms` says how. A step costs a forward and a backward pass
    of two patches, so the duration is steps x cases x folds of them, whatever the size of the images.

    Args:
        folder: of the trained model, of any trainer; not a cascade.
        images: files ``CASE_0000`` and so on, without labels.
        out: folder of the new model; it must be empty or not exist.
        folds, checkpoint: as in :func:`.open_model`.

    Raises:
        WeightsNotFoundError, UnsafeCheckpointError, CheckpointCorruptError, DamagedFileError: see :func:`.open_model`.
        ImagesFolderError, VolumeError: see :func:`.predict_folder`.
        OutputError: ``out`` is not empty or cannot be written.
        UnsupportedConfigurationError: a cascade, or a network without norms that can be adapted.
    """
    start = time.monotonic()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise OutputError(f"{out} is not empty. Give a new folder.")
    files = checkpoint_files(folder, folds, checkpoint)
    predictor = open_model(nnUNetPredictor(device=torch.device(device), allow_tqdm=False), folder, folds, checkpoint)
    if predictor.configuration_manager.previous_stage_name is not None:
        raise UnsupportedConfigurationError(f"{folder} is the second stage of a cascade. Adapt its first stage.")
    patches, cases = cut_patches(predictor, images, options)
    spacing = predictor.configuration_manager.spacing
    network, loss = predictor.network.to(device), ConsistencyLoss(predictor.label_manager.has_regions)
    for file, weights in zip(files.values(), predictor.list_of_parameters, strict=True):
        network.load_state_dict(weights)
        losses = adapt_norms(network, patches, loss, options, coarse_axes(spacing))
        _write_fold(network, file, out / file.parent.name / checkpoint, options, cases)
    for name in FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, out / name)
    parameters = sum(parameter.numel() for parameter in norm_parameters(network))
    return AdaptationReport(cases, parameters, tuple(losses), time.monotonic() - start)


def norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Weights and biases of the normalisation layers.

    >>> [p.shape for p in norm_parameters(nn.Sequential(nn.Conv2d(1, 3, 1), nn.InstanceNorm2d(3, affine=True)))]
    [torch.Size([3]), torch.Size([3])]

    Raises:
        UnsupportedConfigurationError: there are none.
    """
    norms = [module for module in network.modules() if isinstance(module, NORMS)]
    found = [parameter for module in norms for parameter in module.parameters(recurse=False)]
    if not found:
        raise UnsupportedConfigurationError(
            f"{type(network).__name__} has no normalisation layers with weights, which the adaptation would change. "
            "Predict with styles instead: nnunet-invariance predict --styles 4."
        )
    return found


def adapt_norms(
    network: nn.Module,
    patches: Sequence[Tensor],
    loss: ConsistencyLoss,
    options: AdaptationOptions,
    coarse: Sequence[int] = (),
) -> list[float]:
    r"""Make the predictions of two styles of each patch agree, by the weights of the norms alone; returns the losses.

    .. math:: \min_{\gamma, \beta} \; \mathrm{JS}\big(f(g_1(x)), f(g_2(x))\big)

    g_1 and g_2 are two GIN styles, sampled anew for each patch. The consistency between two augmentations of a test
    image is the idea of DG-TTA (arXiv 2312.06275), which adapts all weights, with a Dice loss.

    Args:
        network: in evaluation mode afterwards; only the affine parameters of its norms change.
        patches: (C, *spatial) each, one step per patch.
        coarse: axes along which the styles have kernels of size 1.
    """
    network.requires_grad_(False).eval()
    parameters = norm_parameters(network)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.AdamW(parameters, options.lr, weight_decay=0.0)
    generator = torch.Generator().manual_seed(options.seed)
    losses = []
    for patch in Progress(patches, desc="adapting", unit="step"):
        image = patch[None].to(parameters[0].device)
        views = torch.cat([random_style(image, coarse, generator) for _ in range(2)])
        first, second = network(views).chunk(2)
        value = loss(first, second)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        losses.append(float(value.detach()))
    return losses


def cut_patches(predictor: nnUNetPredictor, images: Path, options: AdaptationOptions) -> tuple[list[Tensor], int]:
    """Preprocess every case as prediction does, and cut ``steps`` patches of the planned size; also returns the cases.

    The patches of the cases take turns.
    """
    rng = np.random.default_rng(options.seed)
    configuration = predictor.configuration_manager
    cases = checked_cases(predictor, images)  # it can replace the preprocessor by one that accepts missing files
    preprocessor = configuration.preprocessor_class(verbose=False)
    found = []
    for files in cases.values():
        image, _, _ = preprocessor.run_case(
            list(map(str, files)), None, predictor.plans_manager, configuration, predictor.dataset_json
        )
        found.append([cut_patch(image, configuration.patch_size, rng) for _ in range(options.steps)])
    return [patch for patches in zip(*found, strict=True) for patch in patches], len(found)


def cut_patch(image: np.ndarray, size: Sequence[int], rng: np.random.Generator) -> Tensor:
    """Cut a patch (C, *size) around a random voxel above the image's mean; zeros where the image (C, Z, Y, X) ends.

    A size of two axes gives a slice.
    """
    brightness = image.mean(0)
    voxel = np.unravel_index(rng.choice(np.flatnonzero(brightness >= brightness.mean())), brightness.shape)
    centre, shape = [int(v) for v in voxel], image.shape[1:]
    if len(size) == 2:
        image, centre, shape = image[:, centre[0]], centre[1:], shape[1:]
    starts = [min(max(c - s // 2, 0), max(n - s, 0)) for c, s, n in zip(centre, size, shape, strict=True)]
    region = (slice(None), *(slice(a, a + s) for a, s in zip(starts, size, strict=True)))
    patch = image[region]
    padded = np.zeros((len(image), *size), np.float32)
    padded[tuple(slice(n) for n in patch.shape)] = patch
    return torch.from_numpy(padded)


def _write_fold(network: nn.Module, file: Path, target: Path, options: AdaptationOptions, cases: int) -> None:
    """Write the adapted weights with the keys of the source checkpoint that prediction reads."""
    source: dict[str, Any] = open_foreign(file)
    state = {key: source[key] for key in KEYS if key in source}
    state |= {"network_weights": network.state_dict(), "adaptation": {**asdict(options), "cases": cases}}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{target.parent} cannot be made ({error.strerror}). Give a writable folder.") from error
    atomic_write(target, lambda stream: torch.save(to_builtin(state), stream))
