"""Export of pre-trained weights to a file that nnssl, and nnU-Net's fine-tuning of nnssl checkpoints, read."""

import os
from pathlib import Path

import torch

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.errors import CheckpointCorruptError
from nnunet_invariance.weights.importers.nnssl import PLAN
from nnunet_invariance.weights.nnssl_format import adaptation_plan, citations_of
from nnunet_invariance.weights.output import refuse_existing
from nnunet_invariance.weights.transfer import Branch, load_network, load_pretrained
from nnunet_invariance.weights.transfer_report import ENCODER, TransferReport
from nnunet_invariance.weights.trusted_architecture import build_trusted


def export_nnssl(
    checkpoint_path: str | os.PathLike,
    out_path: str | os.PathLike,
    branch: Branch | None = None,
) -> TransferReport:
    """Write a checkpoint of nnssl with its adaptation plan; tensors and built-in types only.

    ``network_weights`` is the complete state dict with all aliases, or the part of the encoder if the decoder was not
    pre-trained: the readers of the format use the encoder only.

    Args:
        branch: default: that of :func:`.default_branch`.

    Raises:
        WeightsIncompatibleError: no such branch, or a network that nnssl does not know.
        CheckpointCorruptError: damaged, or without a spacing. WeightsNotFoundError: no such file.
        OutputError: ``out_path`` exists or cannot be written.

    >>> export_nnssl("no_such_file.safetensors", "nnssl.pth")
    Traceback (most recent call last):
    nnunet_invariance.errors.WeightsNotFoundError: There is no checkpoint no_such_file.safetensors. ...
    """
    out_path = Path(out_path)
    refuse_existing(out_path)
    checkpoint, branch = load_network(checkpoint_path, branch)
    metadata = checkpoint.metadata
    decoder = "decoder" in metadata["pretrained"]
    network = build_trusted(checkpoint)
    report = load_pretrained(network, checkpoint, transfer="encoder+decoder" if decoder else "encoder", branch=branch)
    if not metadata["spacing"]:
        msg = f"{checkpoint.path} cannot be exported: its metadata have no spacing, which nnssl needs. "
        raise CheckpointCorruptError(msg + "Export it with --format nnunet.")
    state = dict(network.state_dict())
    content = {
        "network_weights": state if decoder else {k: v for k, v in state.items() if k.startswith(ENCODER)},
        "optimizer_state": None,
        "grad_scaler_state": None,
        "logging": {},
        "_best_ema": None,
        "current_epoch": metadata["step"],
        "init_args": {"configuration": metadata["configuration"]},
        "trainer_name": f"nnunet_invariance_{metadata['method']}",
        PLAN: adaptation_plan(checkpoint),
        "citations": citations_of(metadata),
        "nnunet_invariance": {**metadata, "branch": branch},
    }
    atomic_write(out_path, lambda file: torch.save(content, file))
    return report
