"""Backbones of Alice's release: training checkpoints, and what its extract script writes for student and teacher.

A training checkpoint holds ``student`` and ``teacher``. The script puts the student's tensors at the top level, beside
an empty ``state_dict``, and the teacher's inside it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnunet_invariance.errors import CheckpointCorruptError
from nnunet_invariance.networks.architectures.nnformer import NNFORMER, SMALLEST
from nnunet_invariance.weights.importers.network import ForeignNetwork, facts_without_plans
from nnunet_invariance.weights.trusted_architecture import architecture_of

DESCRIPTION = "a backbone of Alice's release (nnFormer): a training checkpoint, or what its extract script writes"
KEYS = ("model_down.",)
CITATION = (
    "Jiang et al., Anatomical Invariance Modeling and Semantic Alignment for Self-supervised Learning in 3D "
    "Medical Image Analysis, ICCV 2023, arXiv 2302.05615"
)
ENCODER = "model_down."
NOT_USED = ("decoder.", "final.", "head.", "model_down.mask_token")  # its own decoder and heads; never used in training
INDEX, TABLE = "relative_position_index", "relative_position_bias_table"


def recognises(content: Mapping[str, Any]) -> bool:
    """Whether a file has the keys of this source."""
    return any(key.startswith(ENCODER) for key in _state(content))


def read(path: Path, content: Mapping[str, Any], plans: Mapping[str, Any] | None, configuration: str) -> ForeignNetwork:
    """The encoder of the file; ``plans`` and ``configuration`` are not needed.

    Tables and indices of relative positions are the file's: the release computes indices in which offsets share rows.
    Its table of absolute positions is noise that was drawn at every start and never saved; ours starts at 0. Of a
    training checkpoint the teacher is read, or the student where there is none; ``notes`` say which.

    Raises:
        CheckpointCorruptError: another layout.
    """
    state, side = _state(content), _side(content)
    own = {_own_name(path, name): tensor for name, tensor in state.items()}
    _check_indices(path, own)
    width = own["encoder.norms.0.weight"].shape[0]
    channels = own["encoder.patch_embed.proj1.conv1.weight"].shape[1]
    own["encoder.position"] = torch.zeros(1, width, *[SMALLEST // 2] * 3)
    arguments = {
        "n_stages": 5,
        "features_per_stage": [width, *[width * 2**stage for stage in range(4)]],
        "strides": [[1] * 3, *[[2] * 3] * 4],
        "axes": [2, 1, 0],
    }
    entry = {"network_class_name": NNFORMER, "arch_kwargs": arguments, "_kw_requires_import": []}
    facts = facts_without_plans([SMALLEST] * 3, ["CT"] * channels, ["SoftTissueWindowNormalization"] * channels)
    notes = {"read": side} if side else {}
    architecture = architecture_of(path, entry, channels, 1)
    return ForeignNetwork(own, architecture, facts, citation=CITATION, method="alice", notes=notes)


def _side(content: Mapping[str, Any]) -> str | None:
    """Which network of a training checkpoint is read; None for other files."""
    return next((side for side in ("teacher", "student") if isinstance(content.get(side), Mapping)), None)


def _state(content: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of any layout, without the prefixes that some of them have."""
    nested = content.get(_side(content) or "state_dict")
    box = nested if isinstance(nested, Mapping) and nested else content
    tensors = {str(key): value for key, value in box.items() if isinstance(value, Tensor)}
    return {key.removeprefix("module.").removeprefix("backbone."): value for key, value in tensors.items()}


def _own_name(path: Path, name: str) -> str:
    if name.startswith(NOT_USED):
        return name
    if not name.startswith(ENCODER):
        msg = f"{path} cannot be imported: it holds {name}, which is in neither layout of the extract script. "
        raise CheckpointCorruptError(msg + "Take the file as the script wrote it.")
    rest = name.removeprefix(ENCODER)
    stage = rest.removeprefix("norm")[:1]
    return f"encoder.norms.{stage}{rest[5:]}" if rest.startswith("norm") and stage.isdigit() else f"encoder.{rest}"


def _check_indices(path: Path, own: Mapping[str, Tensor]) -> None:
    """An index out of its table would only be noticed in training, as an error of the device."""
    for name in (n for n in own if n.endswith(INDEX)):
        index, table = own[name], own.get(name.replace(INDEX, TABLE))
        if table is not None and (index.is_floating_point() or index.min() < 0 or index.max() >= len(table)):
            msg = f"{path} cannot be imported: {name} does not point into its table of {len(table)} rows. "
            raise CheckpointCorruptError(msg + "Take the file as the script wrote it.")
