"""Export of pre-trained weights to a file that nnU-Net's ``-pretrained_weights`` reads."""

import os
from pathlib import Path

import torch

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.errors import WeightsIncompatibleError
from nnunet_invariance.weights.output import refuse_existing
from nnunet_invariance.weights.transfer import Branch, load_network, load_pretrained
from nnunet_invariance.weights.transfer_report import TransferReport
from nnunet_invariance.weights.trusted_architecture import build_trusted


def export_nnunet(
    checkpoint_path: str | os.PathLike,
    out_path: str | os.PathLike,
    branch: Branch | None = None,
    random_decoder: bool = False,
) -> TransferReport:
    """Write ``{"network_weights": state_dict, "nnunet_invariance": metadata}`` with tensors and built-in types only.

    ``-pretrained_weights`` reads the file for plans of the same architecture and number of input channels, with any
    number of classes. It requires every tensor of encoder and decoder except the segmentation layers.

    Args:
        branch: default: that of :func:`.default_branch`.
        random_decoder: initialise a decoder that was not pre-trained at random, with seed 0.

    Raises:
        WeightsIncompatibleError: no such branch, or no pre-trained decoder and ``random_decoder`` is False.
        OutputError: ``out_path`` exists or cannot be written.
        WeightsNotFoundError: no such file. CheckpointCorruptError: it is damaged.

    >>> export_nnunet("no_such_file.safetensors", "stock.pth")
    Traceback (most recent call last):
    nnunet_invariance.errors.WeightsNotFoundError: There is no checkpoint no_such_file.safetensors. ...
    """
    out_path = Path(out_path)
    refuse_existing(out_path)
    checkpoint, branch = load_network(checkpoint_path, branch)
    decoder = "decoder" in checkpoint.metadata["pretrained"]
    if not decoder and not random_decoder:
        msg = (
            f"The decoder in {checkpoint.path} was not pre-trained, but nnU-Net's -pretrained_weights requires one. "
            "Export it with --random-decoder, or train with the trainer of the method, which needs the encoder only."
        )
        raise WeightsIncompatibleError(msg)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(0)
        network = build_trusted(checkpoint)
    report = load_pretrained(network, checkpoint, transfer="encoder+decoder" if decoder else "encoder", branch=branch)
    metadata = {**checkpoint.metadata, "branch": branch, "decoder": report.decoder}
    content = {"network_weights": dict(network.state_dict()), "nnunet_invariance": metadata}
    atomic_write(out_path, lambda file: torch.save(content, file))
    return report
