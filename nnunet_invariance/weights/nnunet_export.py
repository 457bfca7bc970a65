"""Pre-trained weights as a file that nnU-Net's own ``-pretrained_weights`` reads."""

import os
from pathlib import Path
from typing import Literal

import torch

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.weights.output import refuse_existing
from nnunet_invariance.weights.transfer import TransferReport, load_network, load_pretrained
from nnunet_invariance.weights.trusted_architecture import trusted_architecture


def export_nnunet(
    checkpoint_path: str | os.PathLike,
    out_path: str | os.PathLike,
    branch: Literal["teacher", "student"] | None = None,
    random_decoder: bool = False,
) -> TransferReport:
    """Write ``{"network_weights": state_dict, "nnunet_invariance": metadata}``, tensors and native types only.

    ``-pretrained_weights`` takes the file for plans of the same architecture and number of input channels, whatever the
    classes. It wants every tensor but the segmentation layers, the decoder's included.

    Args:
        branch: not given: the teacher where there is one, else the student.
        random_decoder: give a decoder that was not pre-trained freshly initialised values (of seed 0).

    Raises:
        WeightsIncompatibleError: no such network, or no pre-trained decoder and ``random_decoder`` is False.
        OutputError: ``out_path`` exists or cannot be written.
    """
    out_path = Path(out_path)
    refuse_existing(out_path)
    checkpoint, branch = load_network(checkpoint_path, branch)
    decoder = "decoder" in checkpoint.metadata["pretrained"]
    if not decoder and not random_decoder:
        msg = (
            f"The decoder in {checkpoint.path} was not pre-trained, but nnU-Net's -pretrained_weights wants one. "
            "Export it with --random-decoder, or train with the method's own trainer, which takes the encoder alone."
        )
        raise WeightsIncompatibleError(msg)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = trusted_architecture(checkpoint).build()
    report = load_pretrained(network, checkpoint, transfer="encoder+decoder" if decoder else "encoder", branch=branch)
    metadata = {**checkpoint.metadata, "branch": branch, "decoder": report.decoder}
    content = {"network_weights": dict(network.state_dict()), "nnunet_invariance": metadata}
    atomic_write(out_path, lambda file: torch.save(content, file))
    return report
