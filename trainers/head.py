"""The summed segmentation head of a trainer, and its initialisation by a linear probe on the training cases."""

from collections.abc import Sequence

import torch
from dynamic_network_architectures.building_blocks.unet_decoder import UNetDecoder
from torch import nn

from nnunet_invariance.errors import UnsupportedConfigurationError
from nnunet_invariance.networks.hypercolumns import compute_hypercolumns, sample_hypercolumns
from nnunet_invariance.networks.summed_head import SummedHeadUNet
from nnunet_invariance.probing.linear import fit_linear_probe
from nnunet_invariance.probing.samples import load_patch, sample_voxels

MOST_CASES = 10
VOXELS_PER_CLASS = 1000
MOST_VOXELS = 50_000  # 0.5 GB of features for a network of nnU-Net's full size


def add_head(network: nn.Module, head: str, automatic: str) -> nn.Module:
    """Return the network with a segmentation head.

    Args:
        head: the option: "stock", "summed", or "auto".
        automatic: what "auto" stands for if the network can have a summed head; otherwise it stands for "stock".

    Raises:
        UnsupportedConfigurationError: "summed", and the network has not nnU-Net's decoder.
    """
    possible = isinstance(getattr(network, "decoder", None), UNetDecoder)
    if head == "stock" or (head == "auto" and not (possible and automatic == "summed")):
        return network
    if not possible:
        raise UnsupportedConfigurationError(
            f"The summed head needs PlainConvUNet or ResidualEncoderUNet, but the plans name {type(network).__name__}. "
            'Set "head": "stock" in the plans block.'
        )
    return SummedHeadUNet(network)


@torch.no_grad()
def start_from_probe(
    network: SummedHeadUNet,
    folder: str,
    cases: Sequence[str],
    patch_size: Sequence[int],
    num_classes: int,
    ignore: int | None = None,
    seed: int = 0,
) -> float:
    """Initialise the head with a linear probe that is fitted to frozen features of the training cases.

    Args:
        folder: folder of nnU-Net's preprocessed cases.
        cases: names of the training cases; the first ten are used.
        num_classes: number of classes including the background.
        ignore: value of the ignore label, if there is one.

    Returns:
        Accuracy of the probe on the voxels that it was fitted to, in [0, 1].
    """
    cases = cases[:MOST_CASES]
    each = max(1, min(VOXELS_PER_CLASS, MOST_VOXELS // (num_classes * len(cases))))
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    training, features, labels = network.training, [], []
    network.eval()
    for name in cases:
        patch = load_patch(folder, name, patch_size, ignore)
        voxels, values = sample_voxels(patch.labels, num_classes, each, generator)
        maps = compute_hypercolumns(network, patch.image.to(device))
        features.append(sample_hypercolumns(maps, patch.labels.shape, voxels[None].to(device))[0])
        labels.append(values.to(device))
    network.train(training)
    joined, known = torch.cat(features), torch.cat(labels)
    probe = fit_linear_probe(joined, known, num_classes)
    network.set_head(probe.weight, probe.bias)
    return float((probe(joined).argmax(1) == known).float().mean())
