"""Quality of a PUIR pre-training on a patient that it has not seen, and a baseline for modality translation."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from acvl_utils.cropping_and_padding.padding import pad_nd_image
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from torch import Tensor, nn

from nnunet_invariance.evaluation.protocols.cases import LabelledCase
from nnunet_invariance.losses.decomposition import foreground
from nnunet_invariance.networks.architectures.bottleneck_decoder import BottleneckDecoder
from nnunet_invariance.networks.architectures.puir import PUIRNet
from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.networks.presence import over_maps, present_channels
from nnunet_invariance.nnunet.planned_dataset import PlannedDataset
from nnunet_invariance.pretraining.engine.state import restore_module
from nnunet_invariance.pretraining.methods.puir_diagnostics import measure
from nnunet_invariance.weights.checkpoint import load_checkpoint

BATCH = 4  # crops per forward pass


class Average(nn.Module):
    """Baseline: every modality is ``factor`` times the mean of the given ones, in normalised intensities."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor, present: Tensor) -> Tensor:
        """Map (B, C, *spatial) to the same shape; ``present`` is (B, C)."""
        mask = over_maps(present, x)
        mean = torch.where(mask, x, 0).sum(1, keepdim=True) / mask.sum(1, keepdim=True).clamp(min=1)
        return (self.factor * mean).expand_as(x)


def held_out_crops(planned: PlannedDataset, cases: Sequence[LabelledCase]) -> Tensor:
    """Adjacent crops (N, C, *patch) that cover all cases, preprocessed with the plans."""
    plans, manager, patch = planned.plans, planned.configuration, planned.patch_size
    crops = []
    for case in cases:
        preprocessor = manager.preprocessor_class(verbose=False)
        files = [str(path) for path in case.images]
        image = preprocessor.run_case(files, None, plans, manager, planned.dataset_json)[0]
        image = pad_nd_image(torch.from_numpy(np.asarray(image, np.float32)), patch, "constant", {"value": 0})
        steps = compute_steps_for_sliding_window(tuple(image.shape[1:]), tuple(patch), 1.0)
        for corner in np.stack(np.meshgrid(*steps, indexing="ij"), -1).reshape(-1, len(patch)):
            crops.append(image[(slice(None), *(slice(c, c + p) for c, p in zip(corner, patch, strict=True)))])
    return torch.stack(crops)


@torch.no_grad()
def held_out_quantities(planned: PlannedDataset, checkpoint: Path, crops: Tensor) -> dict[str, float]:
    """Means over the crops: see ``puir_diagnostics.measure``, and ``error_own`` and ``error_others``.

    The errors are those of the modality itself, and of the others, rebuilt from the estimate of one modality alone:
    squared error in the foreground over the mean square there, so that 1 is what a blank image has.
    """
    network, decoder = _load(planned, checkpoint)
    found: list[Mapping[str, Tensor]] = []
    errors = {name: torch.zeros(2, dtype=torch.float64) for name in ("own", "others")}
    for image in crops.split(BATCH):
        present = present_channels(image)
        profiles = network.estimate(image, present).profiles
        if len(image) == BATCH:
            found.append(measure(profiles, present))
        front = foreground(image, present, torch.ones_like(image[:, :1], dtype=torch.bool))
        for source in range(image.shape[1]):
            squared = (decoder(profiles[:, source]) - image).square()
            for target in range(image.shape[1]):
                mask = (front[:, 0] & over_maps(present[:, [source, target]].all(1), image[:, 0])).double()
                pair = torch.stack([(v[:, target] * mask).sum() for v in (squared, image.square())])
                errors["own" if source == target else "others"] += pair
    means = {name: float(torch.stack([m[name] for m in found]).mean()) for name in found[0]}
    return {**means, **{f"error_{name}": float(error / square) for name, (error, square) in errors.items()}}


def _load(planned: PlannedDataset, checkpoint: Path) -> tuple[PUIRNet, BottleneckDecoder]:
    """Network and reconstruction decoder of a finished pre-training with PUIR."""
    loaded = load_checkpoint(checkpoint, ["network", "heads"])
    options, channels = loaded.metadata["options"], len(planned.channel_names)
    architecture = Architecture.from_plans(loaded.metadata["plans"]["architecture"], channels, channels)
    network = PUIRNet(architecture, planned.patch_size, options["tokens"], options["prior"], options["stem"])
    decoder = BottleneckDecoder(network.encoder, channels)
    restore_module(network, loaded.section("network"))
    heads = loaded.section("heads")
    restore_module(decoder, {n.removeprefix("decoder."): t for n, t in heads.items() if n.startswith("decoder.")})
    return network.eval(), decoder.eval()
