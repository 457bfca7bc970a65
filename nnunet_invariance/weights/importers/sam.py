"""Importer of released checkpoints of SAM / UAE (Self-supervised Anatomical eMbedding): the plain embedding."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from nnunet_invariance.networks.planned import Architecture
from nnunet_invariance.weights.importers.network import ForeignNetwork, without_wrappers
from nnunet_invariance.weights.transfer_report import ENCODER

DESCRIPTION = "an anatomical embedding of SAM / UAE"
KEYS = ("backbone.conv1.conv.", "neck.lateral_convs.", "read_out_head.")
CITATION = "Yan et al., IEEE TMI 2022, arXiv 2012.02383 (SAM.pth: MIT-licensed code; ask the authors about the weights)"
#: Command that uses the imported file.
USE = "pretrain sam DATASET CONFIGURATION --set backbone=resnet initial_weights={file}"
COUNTER = "num_batches_tracked"  # no statistic depends on it

#: Prefixes of names in the file and in our heads.
HEADS = {
    **{f"neck.lateral_convs.{i}.conv.": f"fine.lateral.{i}." for i in range(3)},
    "neck.fpn_convs.0.conv.": "fine.smooth.",
    "read_out_head.lateral_convs.0.conv.": "coarse.lateral.0.",
    "read_out_head.fpn_convs.0.conv.": "coarse.smooth.",
}

#: The training of the release: 2 mm voxels, windows of 32 x 96 x 96 (z, y, x), one CT channel.
FACTS: dict[str, Any] = {
    "dataset_name": "SAM",
    "plans_name": "SAM",
    "configuration": "3d_fullres",
    "data_identifier": "SAM",
    "spacing": [2.0, 2.0, 2.0],
    "patch_size": [32, 96, 96],
    "normalization_schemes": ["SAM: [-1024, 3071] HU to [-50, 205]"],
    "channel_names": ["CT"],
    "plans": {},
}


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether this importer reads a file with this content."""
    state = _state(content)
    return all(any(key.startswith(own) for key in state) for own in KEYS)


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The encoder and, as ``heads``, the two embeddings, without other (semantic) heads of the file.

    ``plans`` and ``configuration`` are ignored.
    """
    state, heads = {}, {}
    for key, tensor in _state(content).items():
        head = next((own + key.removeprefix(theirs) for theirs, own in HEADS.items() if key.startswith(theirs)), None)
        if key.endswith(COUNTER):
            continue
        if head is not None:
            heads[head] = tensor
        else:
            state[ENCODER + key.removeprefix("backbone.") if key.startswith("backbone.") else key] = tensor
    architecture = Architecture("nnunet_invariance.networks.architectures.resnet3d.ResNet3dNetwork", {}, (), 1, 1)
    return ForeignNetwork(state, architecture, dict(FACTS), citation=CITATION, method="sam", heads=heads)


def _state(content: Mapping[str, Any]) -> dict[str, Any]:
    box = content.get("state_dict", content)
    if not isinstance(box, Mapping):
        return {}
    return without_wrappers({str(key): value for key, value in box.items() if isinstance(value, Tensor)})
