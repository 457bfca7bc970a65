"""Pre-trained weights as a file that nnssl, and nnU-Net's fine-tuning of its checkpoints, read."""

import os
from pathlib import Path
from typing import Literal

import torch

from nnunet_invariance.common.atomic import atomic_write
from nnunet_invariance.errors import CheckpointCorruptError
from nnunet_invariance.weights.importers.nnssl import PLAN
from nnunet_invariance.weights.nnssl_format import adaptation_plan, citations_of
from nnunet_invariance.weights.output import refuse_existing
from nnunet_invariance.weights.transfer import TransferReport, load_network, load_pretrained
from nnunet_invariance.weights.transfer_report import ENCODER
from nnunet_invariance.weights.trusted_architecture import trusted_architecture


def export_nnssl(
    checkpoint_path: str | os.PathLike,
    out_path: str | os.PathLike,
    branch: Literal["teacher", "student"] | None = None,
) -> TransferReport:
    """Write nnssl's checkpoint: tensors and native types only, with the adaptation plan that says how to take it.

    ``network_weights`` are the whole state dict, aliases included; the encoder's alone where the decoder was not
    pre-trained, because its readers take the encoder only.

    Args:
        branch: not given: the teacher where there is one, else the student.

    Raises:
        WeightsIncompatibleError: no such network. CheckpointCorruptError: damaged, or metadata that lack something.
        OutputError: ``out_path`` exists or cannot be written.
    """
    out_path = Path(out_path)
    refuse_existing(out_path)
    checkpoint, branch = load_network(checkpoint_path, branch)
    metadata = checkpoint.metadata
    decoder = "decoder" in metadata["pretrained"]
    network = trusted_architecture(checkpoint).build()
    report = load_pretrained(network, checkpoint, transfer="encoder+decoder" if decoder else "encoder", branch=branch)
    if not metadata["spacing"]:
        msg = f"{checkpoint.path} cannot be exported: it does not say its spacing, which nnssl needs. "
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
